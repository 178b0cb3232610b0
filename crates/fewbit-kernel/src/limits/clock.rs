use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::Team;

/// A figure by two clocks: others use the machine too, which only the wall's clock notices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clocks {
    /// By the time that this process had processors, divided by the threads of the team.
    pub processor: f64,
    /// By the wall's clock.
    pub wall: f64,
}

impl Clocks {
    /// Another figure of each.
    pub fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self { processor: f(self.processor), wall: f(self.wall) }
    }
}

/// The fewest seconds that `run` took, over at least five runs and so much time; `between` comes before each, untimed.
///
/// By the processors' time it is the average where there are several threads: of those on other processors the system
/// knows it to some milliseconds only.
pub fn best_seconds(team: &Team, at_least: Duration, mut between: impl FnMut(), mut run: impl FnMut()) -> Clocks {
    let (mut best, mut sum, mut runs) = (Clocks { processor: f64::INFINITY, wall: f64::INFINITY }, 0.0, 0);
    let begun = Instant::now();
    while runs < 5 || begun.elapsed() < at_least {
        between();
        let (processor, wall) = (processor_seconds(), Instant::now());
        run();
        best.wall = best.wall.min(wall.elapsed().as_secs_f64());
        let processor = processor_seconds() - processor;
        best.processor = best.processor.min(processor);
        sum += processor;
        runs += 1;
    }
    match team.threads() {
        1 => best,
        threads => Clocks { processor: sum / f64::from(runs) / threads as f64, ..best },
    }
}

/// Seconds that all threads of this process had processors.
fn processor_seconds() -> f64 {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[test]
    fn both_clocks_see_work() {
        let (mut between, mut runs) = (0, 0);
        let best = best_seconds(
            &Team::new(1),
            Duration::ZERO,
            || between += 1,
            || {
                runs += 1;
                black_box((0..100_000u64).map(black_box).sum::<u64>());
            },
        );
        assert_eq!((between, runs), (5, 5));
        assert!(best.processor > 0.0 && best.wall > 0.0, "{best:?}");
        assert_eq!(best.map(|s| s / s), Clocks { processor: 1.0, wall: 1.0 });
    }
}
