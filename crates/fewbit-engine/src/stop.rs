//! Where a run may end before its time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fewbit_format::{Error, Result};

/// Refuses to go on when asked to stop.
pub(crate) fn check_stop(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) {
        Err(Error::interrupted("stopped").hint("`--resume` goes on where it was"))
    } else {
        Ok(())
    }
}

/// A point at which a test may end the process as a power cut would: `FEWBIT_CRASH_AT=n` is the n-th that is passed.
pub(crate) fn crash_point() {
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let n = PASSED.fetch_add(1, Ordering::Relaxed) + 1;
    if std::env::var("FEWBIT_CRASH_AT").is_ok_and(|v| v.parse() == Ok(n)) {
        std::process::abort();
    }
}
