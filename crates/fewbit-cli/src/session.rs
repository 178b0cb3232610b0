use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fewbit_format::{Error, Result};
use fewbit_kernel::{Team, cpu};

use crate::arguments::Global;
use crate::interrupt;
use crate::output::Output;

/// What every command gets: where to speak, how many threads, whether to stop.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) output: Output,
    /// Threads of a team; for `bench`, of one after the other.
    pub(crate) threads: Vec<usize>,
    /// Whether models of the hub come from the cache alone.
    pub(crate) is_offline: bool,
    /// Set by Ctrl-C: long work looks at it and stops.
    pub(crate) stop: &'static AtomicBool,
}

impl Session {
    /// Puts the global options into effect.
    pub(crate) fn new(global: &Global) -> Self {
        start_log(global.quiet);
        if let Some(level) = global.cpu {
            if level > cpu::machine() {
                log::warn!("this machine has no {}: {} is used", level.name(), cpu::machine().name());
            }
            cpu::limit(level);
        }
        // Two threads of one core share its vector units, and one has the bandwidth of both.
        let all = || num_cpus::get_physical().min(num_cpus::get());
        Self {
            output: Output::new(global.json, global.quiet),
            threads: global.threads.as_ref().map_or_else(|| vec![all()], |t| t.0.clone()),
            is_offline: global.offline,
            stop: interrupt::listen(),
        }
    }

    /// The threads, started: where there are several counts, as many as the first says.
    pub(crate) fn team(&self) -> Arc<Team> {
        Arc::new(Team::new(self.threads[0]))
    }

    /// Whether Ctrl-C asks to stop.
    pub(crate) fn is_asked_to_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Refuses to go on when asked to stop.
    pub(crate) fn check_stop(&self) -> Result<()> {
        if self.is_asked_to_stop() { Err(Error::interrupted("interrupted")) } else { Ok(()) }
    }
}

/// Warnings of all rooms go to stderr; `RUST_LOG` says otherwise.
fn start_log(is_quiet: bool) {
    let default = if is_quiet { "error" } else { "warn" };
    let environment = env_logger::Env::default().default_filter_or(default);
    env_logger::Builder::from_env(environment)
        .format(|out, record| match record.level() {
            log::Level::Warn => writeln!(out, "warning: {}", record.args()),
            log::Level::Error => writeln!(out, "error: {}", record.args()),
            level => writeln!(out, "{} {}: {}", level.as_str().to_lowercase(), record.target(), record.args()),
        })
        .init();
}
