//! What the machine can do at most, and the linears alone, measured between the cases.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fewbit_format::Result;
use fewbit_kernel::Team;
use fewbit_kernel::limits::{Memory, Pages, Scheme, f32_peak, int8_peak};
use fewbit_runtime::{Linears, Runtime};

/// Time for the linears, between two cases.
const LINEARS: Duration = Duration::from_millis(20);

/// The machine under each team.
pub(super) struct Machine {
    memory: Memory,
    pub(super) pages: Pages,
    pub(super) limits: Vec<Limits>,
}

/// What was measured with one team, a figure for each time.
pub(super) struct Limits {
    team: Arc<Team>,
    pub(super) scheme: Scheme,
    /// Bytes a second.
    pub(super) reads: Vec<f64>,
    /// Bytes of weights a second, by the linears alone.
    pub(super) linears: Vec<f64>,
    /// Operations a second.
    pub(super) int8: Vec<f64>,
    pub(super) f32: Vec<f64>,
}

impl Limits {
    pub(super) fn threads(&self) -> usize {
        self.team.threads()
    }
}

impl Machine {
    /// Finds the fastest way to read for each team.
    pub(super) fn new(teams: &[Arc<Team>], has_huge_pages: bool) -> Result<Self> {
        let pages = if has_huge_pages { Pages::Huge } else { Pages::Small };
        let memory = Memory::new(pages)?;
        let limits = teams.iter().map(|team| {
            let scheme = memory.best_scheme(team);
            let none = Vec::new;
            Limits { team: team.clone(), scheme, reads: none(), linears: none(), int8: none(), f32: none() }
        });
        Ok(Self { limits: limits.collect(), memory, pages })
    }

    /// Measures everything once with the team that `runtime` has now.
    pub(super) fn measure(&mut self, runtime: &Runtime, team: usize) {
        let limits = &mut self.limits[team];
        limits.reads.push(self.memory.read(&limits.team, limits.scheme));
        limits.linears.push(linears(runtime));
        limits.int8.push(int8_peak(&limits.team).wall);
        limits.f32.push(f32_peak(&limits.team).wall);
    }
}

/// Bytes of weights a second: the linears once to come from what ran before, then for as long as it takes.
fn linears(runtime: &Runtime) -> f64 {
    let mut linears = Linears::of(runtime);
    linears.run(runtime);
    let (mut runs, begun) = (0, Instant::now());
    while runs == 0 || begun.elapsed() < LINEARS {
        linears.run(runtime);
        runs += 1;
    }
    (runs * runtime.weight_bytes(1)) as f64 / begun.elapsed().as_secs_f64()
}
