//! Ctrl-C: the first asks the work to stop, the second ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);
static WAITING: AtomicBool = AtomicBool::new(false);

/// Exit code of an interrupted program.
pub(crate) const EXIT_CODE: u8 = 130;

/// Listens to Ctrl-C and termination from now on; the flag that work watches.
pub(crate) fn listen() -> &'static AtomicBool {
    let handler = || {
        let was_asked = STOP.swap(true, Ordering::SeqCst);
        if was_asked || WAITING.load(Ordering::SeqCst) {
            std::process::exit(i32::from(EXIT_CODE));
        }
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        log::debug!("Ctrl-C ends the program at once: {e}");
    }
    &STOP
}

/// Does what blocks without looking at the flag, such as reading a line: Ctrl-C ends the program at once meanwhile.
pub(crate) fn while_waiting<T>(wait: impl FnOnce() -> T) -> T {
    WAITING.store(true, Ordering::SeqCst);
    if STOP.load(Ordering::SeqCst) {
        std::process::exit(i32::from(EXIT_CODE));
    }
    let out = wait();
    WAITING.store(false, Ordering::SeqCst);
    out
}
