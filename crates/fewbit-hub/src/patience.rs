use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Listener;
use crate::refusal::Refusal;

/// Tries in a row that give nothing, after which it is said.
const TRIES: u32 = 5;

/// Longer than this nobody is kept waiting without having been asked.
const LONGEST: Duration = Duration::from_secs(300);

/// How often something that may pass was tried.
#[derive(Debug)]
pub(crate) struct Patience<'a> {
    pause: Duration,
    stop: &'a AtomicBool,
    failures: u32,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(pause: Duration, stop: &'a AtomicBool) -> Self {
        Self { pause, stop, failures: 0 }
    }

    /// Something came: the count begins again.
    pub(crate) fn renew(&mut self) {
        self.failures = 0;
    }

    /// Waits, as long as the hub asks or longer each time, if another try may help and not too many were made.
    ///
    /// # Errors
    /// The refusal itself if it stands.
    pub(crate) fn wait(&mut self, refusal: Refusal, listener: &mut dyn Listener) -> Result<(), Refusal> {
        self.failures += 1;
        let usual = self.pause * 2u32.pow(self.failures - 1);
        let asked = match &refusal {
            Refusal::Status(status) if status.is_passing() => status.retry_after,
            Refusal::Broken(_) | Refusal::Unreachable(_) => None,
            _ => return Err(refusal),
        };
        let wait = asked.unwrap_or(usual);
        if self.failures >= TRIES || wait > LONGEST {
            return Err(refusal);
        }
        if let Some(asked) = asked.filter(|a| !a.is_zero()) {
            listener.note(&format!("the hub asks to wait {} s", asked.as_secs()));
        }
        self.sleep(wait)
    }

    /// Sleeps, and wakes up when asked to stop.
    pub(crate) fn sleep(&self, time: Duration) -> Result<(), Refusal> {
        let end = Instant::now() + time;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Refusal::Stopped);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}
