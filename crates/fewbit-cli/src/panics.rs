//! A panic is a mistake of ours; the user gets one sentence of it.

use std::backtrace::BacktraceStatus;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook};
use std::sync::{Mutex, PoisonError};

use fewbit_format::{Error, Result};

static FIRST: Mutex<Option<String>> = Mutex::new(None);

/// Runs `work`; a panic in it, in any thread that passes it on, becomes an error.
pub(crate) fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    set_hook(Box::new(remember));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let said = FIRST.lock().unwrap_or_else(PoisonError::into_inner).take();
        let said = said.unwrap_or_else(|| "a panic".to_owned());
        Err(Error::internal(format!("the program broke a promise: {said}"))
            .hint("please report it with the command line, and what `RUST_BACKTRACE=1` adds"))
    })
}

fn remember(info: &PanicHookInfo<'_>) {
    let trace = std::backtrace::Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        log::error!("{info}\n{trace}");
    }
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = text.unwrap_or("no message").replace('\n', " ");
    let place = info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
    // The last panic that is not caught on the way is the one that ends the work.
    *FIRST.lock().unwrap_or_else(PoisonError::into_inner) = Some(message + &place);
}

#[cfg(test)]
mod tests {
    use fewbit_format::Kind;

    use super::*;

    #[test]
    fn a_panic_is_one_sentence() {
        let e = caught(|| -> Result<()> { panic!("seven\nis odd") }).unwrap_err();
        assert_eq!(e.kind(), Kind::Internal);
        let text = e.to_string();
        assert!(text.contains("seven is odd (") && text.contains("panics.rs:"), "{text}");
        assert_eq!(caught(|| Ok(7)).unwrap(), 7);
    }
}
