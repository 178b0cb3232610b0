use std::borrow::Cow;
use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// Time between two lines where stderr is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How far long work is, with the time that is left: a bar on a terminal, else a line every few seconds.
pub(crate) struct Progress<'a> {
    output: &'a Output,
    bar: Option<ProgressBar>,
    what: &'static str,
    total: u64,
    start: Instant,
    last_line: Cell<Instant>,
}

impl<'a> Progress<'a> {
    /// Work of `total` equal steps.
    pub(crate) fn new(output: &'a Output, what: &'static str, total: u64) -> Self {
        let is_bar = !output.is_quiet() && io::stderr().is_terminal();
        let bar = is_bar.then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} %  {eta} left  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(what);
            bar
        });
        let now = Instant::now();
        Self { output, bar, what, total, start: now, last_line: Cell::new(now) }
    }

    /// `done` steps are done; `detail` says what comes now.
    pub(crate) fn set(&self, done: u64, detail: impl Into<Cow<'static, str>>) {
        if let Some(bar) = &self.bar {
            bar.set_message(detail);
            bar.set_position(done);
        } else if self.last_line.get().elapsed() >= LINE_EVERY {
            self.last_line.set(Instant::now());
            self.output.note(&self.sentence(done, &detail.into()));
        }
    }

    fn sentence(&self, done: u64, detail: &str) -> String {
        let percent = 100.0 * done as f64 / self.total.max(1) as f64;
        let detail = if detail.is_empty() { String::new() } else { format!(", {detail}") };
        let mut left = String::new();
        if done > 0 {
            let per_step = self.start.elapsed().as_secs_f64() / done as f64;
            left = format!(", {:.0} s left", per_step * self.total.saturating_sub(done) as f64);
        }
        format!("{}: {percent:.0} %{left}{detail}", self.what)
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_and_how_long() {
        let output = Output::new(false, true);
        let progress = Progress::new(&output, "reading", 4);
        assert_eq!(progress.sentence(0, ""), "reading: 0 %");
        assert!(progress.sentence(2, "layer 1").starts_with("reading: 50 %, 0 s left, layer 1"));
    }
}
