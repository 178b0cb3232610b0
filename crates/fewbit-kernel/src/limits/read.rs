use std::fmt;
use std::hint::black_box;
use std::time::Instant;

use fewbit_format::{Error, Result};
use memmap2::MmapMut;

use crate::Team;
#[cfg(target_arch = "x86_64")]
use crate::{Level, cpu};

/// The size of memory's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// The smallest that the machine has: 4 KiB on most.
    Small,
    /// As large as the system gives when it is asked to: 2 MiB on most.
    Huge,
}

impl Pages {
    /// As programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Huge => "huge",
        }
    }
}

/// The cache that a line is fetched into ahead of its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hint {
    None,
    #[cfg(target_arch = "x86_64")]
    Nearest,
    #[cfg(target_arch = "x86_64")]
    Second,
}

impl Hint {
    fn cache(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            #[cfg(target_arch = "x86_64")]
            Self::Nearest => Some("L1"),
            #[cfg(target_arch = "x86_64")]
            Self::Second => Some("L2"),
        }
    }
}

/// A way for one thread to read memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    streams: usize,
    hint: Hint,
    ahead_bytes: usize,
}

impl Scheme {
    const PLAIN: Self = Self { streams: 1, hint: Hint::None, ahead_bytes: 0 };

    /// All ways that are tried: one or four streams, plainly or with lines fetched ahead into the first or second cache.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for streams in [1, 4] {
            all.push(Self { streams, ..Self::PLAIN });
            #[cfg(target_arch = "x86_64")]
            for hint in [Hint::Nearest, Hint::Second] {
                all.extend([1, 2, 4, 8, 16].map(|kib| Self { streams, hint, ahead_bytes: kib << 10 }));
            }
        }
        all
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = if self.streams == 1 { "one stream" } else { "four streams" };
        match self.hint.cache() {
            None => f.write_str(streams),
            Some(cache) => write!(f, "{streams}, {} KiB fetched ahead into {cache}", self.ahead_bytes >> 10),
        }
    }
}

/// Numbers of a line of 64 bytes.
const LINE: usize = 8;
/// Numbers that each stream reads in turn.
const TURN: usize = 4 * LINE;
/// Numbers of a task: long streams, and enough tasks that no thread waits for another. 4 MiB.
const TASK: usize = (4 << 20) / 8;
/// Parts of the memory, of which the search for the best scheme reads one at a time.
const PARTS: usize = 4;

/// Memory far larger than any cache, to be read at full speed.
#[derive(Debug)]
pub struct Memory {
    map: MmapMut,
}

impl Memory {
    /// As much memory as it takes: four times the largest cache and 1 GiB at least, but not more than half of what the
    /// machine has free.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn new(pages: Pages) -> Result<Self> {
        let wanted = (4 * largest_cache_bytes()).max(1 << 30);
        Self::of(wanted.min(available_memory_bytes().unwrap_or(usize::MAX) / 2), pages)
    }

    /// So many bytes, rounded up to whole tasks.
    fn of(bytes: usize, pages: Pages) -> Result<Self> {
        let tasks = bytes.div_ceil(8 * TASK).max(1);
        let failed = |e| Error::input(format!("getting memory to measure the machine failed: {e}"));
        let mut map = MmapMut::map_anon(tasks * TASK * 8).map_err(failed)?;
        advise(&map, pages);
        // Written, for pages that nobody wrote are all one page of zeros.
        map.fill(1);
        Ok(Self { map })
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.map.len()
    }

    /// Bytes a second of one pass over all.
    pub fn read(&self, team: &Team, scheme: Scheme) -> f64 {
        pass(team, self.numbers(), scheme)
    }

    /// The fastest of all schemes for this team: the best of three short passes each.
    pub fn best_scheme(&self, team: &Team) -> Scheme {
        let numbers = self.numbers();
        let part = (numbers.len() / TASK).div_ceil(PARTS) * TASK;
        // Each pass reads another part than the last, so that it finds nothing in a cache.
        let mut parts = numbers.chunks(part).cycle();
        let mut best = (0.0, Scheme::PLAIN);
        for _ in 0..3 {
            for scheme in Scheme::all() {
                let speed = pass(team, parts.next().unwrap_or(numbers), scheme);
                if speed > best.0 {
                    best = (speed, scheme);
                }
            }
        }
        best.1
    }

    fn numbers(&self) -> &[u64] {
        // SAFETY: any bytes are numbers, and what does not lie on their boundaries is left out: nothing, in a map.
        unsafe { self.map.align_to::<u64>().1 }
    }
}

#[cfg(target_os = "linux")]
fn advise(map: &MmapMut, pages: Pages) {
    let advice = match pages {
        Pages::Small => memmap2::Advice::NoHugePage,
        Pages::Huge => memmap2::Advice::HugePage,
    };
    // A system without huge pages refuses; then there are small ones, for the weights too.
    let _ = map.advise(advice);
}

#[cfg(not(target_os = "linux"))]
fn advise(_: &MmapMut, _: Pages) {}

/// Bytes a second.
fn pass(team: &Team, numbers: &[u64], scheme: Scheme) -> f64 {
    let begun = Instant::now();
    team.run(numbers.len().div_ceil(TASK), &|i| {
        black_box(sum(&numbers[i * TASK..(i * TASK + TASK).min(numbers.len())], scheme));
    });
    (8 * numbers.len()) as f64 / begun.elapsed().as_secs_f64()
}

/// The sum of whole turns of all streams: what is left at the end of uneven data is not read.
fn sum(numbers: &[u64], scheme: Scheme) -> u64 {
    match scheme.streams {
        4 => sum_in::<4>(numbers, scheme),
        _ => sum_in::<1>(numbers, scheme),
    }
}

#[cfg(target_arch = "x86_64")]
fn sum_in<const STREAMS: usize>(numbers: &[u64], scheme: Scheme) -> u64 {
    use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

    #[inline(always)]
    fn by_hint<const STREAMS: usize>(numbers: &[u64], scheme: Scheme) -> u64 {
        let ahead = |line: *const u64| line.wrapping_byte_add(scheme.ahead_bytes).cast::<i8>();
        match scheme.hint {
            Hint::None => in_turns::<STREAMS>(numbers, |_| ()),
            // SAFETY: fetching ahead reads nothing, and may be asked for at any address.
            Hint::Nearest => in_turns::<STREAMS>(numbers, |line| unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead(line)) }),
            // SAFETY: as above.
            Hint::Second => in_turns::<STREAMS>(numbers, |line| unsafe { _mm_prefetch::<_MM_HINT_T1>(ahead(line)) }),
        }
    }
    #[target_feature(enable = "avx2")]
    fn wide<const STREAMS: usize>(numbers: &[u64], scheme: Scheme) -> u64 {
        by_hint::<STREAMS>(numbers, scheme)
    }
    // The machine's limit, whatever instructions the kernels are held to.
    if cpu::machine() >= Level::Avx2 {
        // SAFETY: the machine has it.
        unsafe { wide::<STREAMS>(numbers, scheme) }
    } else {
        by_hint::<STREAMS>(numbers, scheme)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn sum_in<const STREAMS: usize>(numbers: &[u64], _: Scheme) -> u64 {
    in_turns::<STREAMS>(numbers, |_| ())
}

/// Sums streams side by side, a turn of each; `ahead` is told every line as it is read.
#[inline(always)]
fn in_turns<const STREAMS: usize>(numbers: &[u64], ahead: impl Fn(*const u64)) -> u64 {
    let each = numbers.len() / STREAMS / TURN * TURN;
    let streams: [&[[u64; TURN]]; STREAMS] = std::array::from_fn(|s| numbers[s * each..][..each].as_chunks().0);
    let mut sums = [0u64; TURN];
    for turn in 0..each / TURN {
        for stream in &streams {
            let turn = &stream[turn];
            turn.iter().step_by(LINE).for_each(|line| ahead(line));
            sums.iter_mut().zip(turn).for_each(|(s, v)| *s = s.wrapping_add(*v));
        }
    }
    sums.iter().fold(0, |sum, s| sum.wrapping_add(*s))
}

/// Memory that programs could get now without others being pushed out; `None` where the system does not tell.
pub fn available_memory_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? << 10)
}

/// The largest of the first processor's caches, in bytes; 0 where the system does not tell.
fn largest_cache_bytes() -> usize {
    let size = |index: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        std::fs::read_to_string(path).ok()?.trim().strip_suffix('K')?.parse::<usize>().ok()
    };
    (0..8).filter_map(size).max().unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole turns of all streams, whatever the instruction set.
    #[test]
    fn every_scheme_reads_everything() {
        let numbers: Vec<u64> = (0..4 * TURN as u64 * 5).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let expected = numbers.iter().fold(0u64, |s, v| s.wrapping_add(*v));
        for scheme in Scheme::all() {
            assert_eq!(sum(&numbers, scheme), expected, "{scheme}");
        }
    }

    #[test]
    fn what_is_short_or_uneven_is_read_as_far_as_turns_go() {
        for len in [0, 1, TURN - 1, TURN, 4 * TURN - 1, 4 * TURN + 3] {
            for scheme in Scheme::all() {
                let whole = len / (scheme.streams * TURN) * scheme.streams * TURN;
                assert_eq!(sum(&vec![1; len], scheme), whole as u64, "{scheme}, {len}");
            }
        }
    }

    #[test]
    fn memory_is_read_at_some_speed() {
        for pages in [Pages::Small, Pages::Huge] {
            let memory = Memory::of(9 << 20, pages).unwrap();
            assert_eq!(memory.bytes(), 12 << 20);
            let team = Team::new(2);
            let scheme = memory.best_scheme(&team);
            assert!(memory.read(&team, scheme) > 0.0);
        }
    }

    #[test]
    fn schemes_say_what_they_do() {
        assert_eq!(Scheme::PLAIN.to_string(), "one stream");
        let all = Scheme::all();
        assert!(all.iter().enumerate().all(|(i, s)| !all[..i].contains(s)));
    }
}
