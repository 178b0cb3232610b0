//! A team of persistent threads that share out numbered tasks.

use std::any::Any;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread that has nothing to do looks for the next region before it sleeps: longer than the gaps between
/// the regions of one token, shorter than anyone would notice on the meter.
const SPIN: Duration = Duration::from_micros(50);

/// Persistent threads that work on one region at a time; the caller takes part.
///
/// A region of [`run`](Self::run) costs about a microsecond while the team is awake. Threads spin shortly, then sleep:
/// an idle team uses no CPU, and a region never waits for a thread that did not wake in time. Each thread begins with a
/// share of its own of consecutive tasks, so that what they read is one stream for each thread; who is done takes the
/// last tasks of others, so that a busy core holds nobody up. Where several tasks are taken at once, it is never more
/// than half of what is left of a share: the last ones are single, and threads end within the time of one. A call from inside a task, or while another thread holds
/// the team, runs on the calling thread alone.
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

/// The task function of a region, and how many tasks it is given at most.
#[derive(Clone, Copy)]
struct Job {
    tasks: *const (dyn Fn(Range<usize>) + Sync),
    most: u64,
}

struct Shared {
    /// Region number · 2^17 | open · 2^16 | helpers inside.
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// What is left of each thread's share of the tasks; the caller's comes first.
    shares: Vec<Share>,
    busy: AtomicBool,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
    /// The caller, once it sleeps until the last helper has left.
    waiting: Mutex<Option<Thread>>,
    has_panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A range of tasks: the first · 2^32 | the end. On a cache line of its own.
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    fn set(&self, tasks: Range<usize>) {
        self.0.store((tasks.start as u64) << 32 | tasks.end as u64, Relaxed);
    }

    /// Takes up to `most` tasks, but no more than half of what is left: `of` says which of those in a range.
    fn take(&self, most: u64, of: impl Fn(Range<u64>, u64) -> Range<u64>) -> Option<Range<usize>> {
        let mut taken = 0..0;
        let update = self.0.fetch_update(Relaxed, Relaxed, |share| {
            let (first, end) = (share >> 32, share & u64::from(u32::MAX));
            if first >= end {
                return None;
            }
            taken = of(first..end, (end - first).div_ceil(2).min(most));
            Some(if taken.start == first { taken.end << 32 | end } else { first << 32 | taken.start })
        });
        update.is_ok().then_some(taken.start as usize..taken.end as usize)
    }

    fn first(&self, most: u64) -> Option<Range<usize>> {
        self.take(most, |left, count| left.start..left.start + count)
    }

    fn last(&self, most: u64) -> Option<Range<usize>> {
        self.take(most, |left, count| left.end - count..left.end)
    }
}

// SAFETY: `job` is written only by the holder of `busy` while no helper is inside (`state`), and read only by helpers
// that entered an open region, which the writer's release store of `state` published. The task pointer inside is
// dereferenced only between entering and leaving, during which `Team::run` keeps the closure borrowed.
unsafe impl Sync for Shared {}
// SAFETY: as above; nothing in it belongs to one thread.
unsafe impl Send for Shared {}

const INSIDE: u64 = (1 << 16) - 1;
const OPEN: u64 = 1 << 16;
const REGION: u64 = 1 << 17;

impl Team {
    /// A team of `threads` threads, the caller included; zero counts as one.
    pub fn new(threads: usize) -> Self {
        let count = threads.clamp(1, 4096) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            shares: (0..=count).map(|_| Share(AtomicU64::new(0))).collect(),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: (0..count).map(|_| AtomicBool::new(false)).collect(),
            waiting: Mutex::new(None),
            has_panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let helpers = (0..count)
            .map_while(|i| {
                let shared = shared.clone();
                // Where the system refuses more threads the team is smaller: results do not depend on it.
                thread::Builder::new().name(format!("team-{i}")).spawn(move || shared.help(i)).ok()
            })
            .collect();
        Self { shared, helpers }
    }

    /// Threads that may work on a region, the caller included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `task(i)` once for every `i` in `0..tasks`, on any thread and in any order, and returns when all are done.
    ///
    /// # Panics
    /// With the panic of a task, after the others that had begun are done; tasks that had not begun are left out.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.run_ranges(tasks, 1, &|range| range.for_each(task));
    }

    /// Calls `tasks(range)` for ranges of up to `most` of the tasks `0..count` that hold each of them once, and returns
    /// when all are done: which ranges they are depends on chance, so that results must not depend on them.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn run_ranges(&self, count: usize, most: usize, tasks: &(dyn Fn(Range<usize>) + Sync)) {
        let most = most.max(1);
        let shared = &*self.shared;
        if count <= 1 || self.helpers.is_empty() || count > u32::MAX as usize || shared.busy.swap(true, Acquire) {
            return (0..count).step_by(most).for_each(|i| tasks(i..(i + most).min(count)));
        }
        #[expect(clippy::transmute_ptr_to_ptr, reason = "a cast cannot lengthen the lifetime in a trait object")]
        // SAFETY: only the lifetime is erased; the region is closed and empty before this function returns.
        let tasks = unsafe {
            std::mem::transmute::<*const (dyn Fn(Range<usize>) + Sync + '_), *const (dyn Fn(Range<usize>) + Sync)>(
                tasks,
            )
        };
        let job = Job { tasks, most: most as u64 };
        // SAFETY: `busy` is ours and the last region is closed and empty, so nobody reads `job`.
        unsafe { *shared.job.get() = Some(job) };
        let threads = self.threads();
        for (i, share) in shared.shares.iter().enumerate() {
            let begin = |i: usize| i.min(threads) * count / threads;
            share.set(begin(i)..begin(i + 1));
        }
        let region = (shared.state.load(Relaxed) & !INSIDE & !OPEN) + REGION;
        shared.state.store(region | OPEN, SeqCst);
        for (helper, asleep) in self.helpers.iter().zip(&shared.asleep).take(count - 1) {
            if asleep.load(SeqCst) && asleep.swap(false, SeqCst) {
                helper.thread().unpark();
            }
        }
        shared.work(job, 0);
        shared.close();
        let panic = shared.has_panicked.swap(false, Relaxed).then(|| shared.take_panic());
        shared.busy.store(false, Release);
        if let Some(Some(panic)) = panic {
            resume_unwind(panic);
        }
    }

    /// Cuts `data` in pieces of `piece` elements (the last may be shorter) and calls `task(i, piece_i)` for each.
    pub fn for_pieces<T: Send>(&self, data: &mut [T], piece: usize, task: &(dyn Fn(usize, &mut [T]) + Sync)) {
        let (len, all) = (data.len(), Disjoint::new(data));
        self.run(len.div_ceil(piece.max(1)), &|i| {
            // SAFETY: each task has a range of its own, and each runs once.
            task(i, unsafe { all.slice(i * piece..((i + 1) * piece).min(len)) });
        });
    }

    /// Calls `task(first element, rows)` over pieces of whole rows of `width`; small work stays on this thread.
    pub fn for_rows(&self, width: usize, data: &mut [f32], task: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        const PIECE: usize = 1 << 14;
        if data.len() <= PIECE {
            return task(0, data);
        }
        let piece = (PIECE / width.max(1)).max(1) * width.max(1);
        self.for_pieces(data, piece, &|i, rows| task(i * piece, rows));
    }

    /// Cuts `a` in pieces of `piece_a` and `b` in pieces of `piece_b`, as many, and calls `task(i, a_i, b_i)` for each.
    ///
    /// # Panics
    /// If there are not as many pieces of one as of the other.
    pub fn for_paired_pieces<A: Send, B: Send>(
        &self,
        a: &mut [A],
        piece_a: usize,
        b: &mut [B],
        piece_b: usize,
        task: impl Fn(usize, &mut [A], &mut [B]) + Sync,
    ) {
        let (piece_a, piece_b) = (piece_a.max(1), piece_b.max(1));
        let (len_a, len_b) = (a.len(), b.len());
        assert_eq!(len_a.div_ceil(piece_a), len_b.div_ceil(piece_b), "pieces in pairs");
        let (a, b) = (Disjoint::new(a), Disjoint::new(b));
        self.run(len_a.div_ceil(piece_a), &|i| {
            let of = |piece: usize, len: usize| i * piece..((i + 1) * piece).min(len);
            // SAFETY: each task has ranges of its own, and each runs once.
            unsafe { task(i, a.slice(of(piece_a, len_a)), b.slice(of(piece_b, len_b))) };
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper catches the panics of its tasks, so that there is nothing to report here.
            let _ = helper.join();
        }
    }
}

impl Shared {
    /// Takes tasks until none is left: the own share from its beginning, then those of others from their ends.
    fn work(&self, job: Job, thread: usize) {
        let (before, from) = self.shares.split_at(thread);
        let own = std::iter::from_fn(|| from[0].first(job.most));
        let others = from[1..].iter().chain(before).flat_map(|share| std::iter::from_fn(|| share.last(job.most)));
        let tasks = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: the region is open or we are inside it, so `Team::run` still borrows the closure.
            own.chain(others).for_each(|range| unsafe { (*job.tasks)(range) });
        }));
        if let Err(panic) = tasks {
            self.shares.iter().for_each(|share| share.set(0..0));
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            self.has_panicked.store(true, Release);
        }
    }

    fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Lets no further helper in, and waits for those inside.
    fn close(&self) {
        if self.state.fetch_and(!OPEN, AcqRel) & INSIDE == 0 {
            return;
        }
        let begun = Instant::now();
        while self.state.load(Acquire) & INSIDE != 0 {
            if begun.elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
            while self.state.load(SeqCst) & INSIDE != 0 {
                thread::park();
            }
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// The life of helper `i`.
    fn help(&self, i: usize) {
        let mut last = 0;
        let mut idle_since = Instant::now();
        let mut looks = 0u32;
        while !self.stop.load(Relaxed) {
            let state = self.state.load(Acquire);
            let region = state & !INSIDE & !OPEN;
            if state & OPEN != 0 && region != last {
                if self.state.compare_exchange(state, state + 1, AcqRel, Relaxed).is_ok() {
                    last = region;
                    // SAFETY: we are inside an open region, whose job was published before it opened.
                    if let Some(job) = unsafe { *self.job.get() } {
                        self.work(job, i + 1);
                    }
                    self.leave();
                    (idle_since, looks) = (Instant::now(), 0);
                }
                continue;
            }
            looks += 1;
            if !looks.is_multiple_of(16) || idle_since.elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            self.asleep[i].store(true, SeqCst);
            let state = self.state.load(SeqCst);
            let missed = state & OPEN != 0 && state & !INSIDE & !OPEN != last;
            if !missed && !self.stop.load(SeqCst) {
                thread::park();
            }
            self.asleep[i].store(false, SeqCst);
            idle_since = Instant::now();
        }
    }

    fn leave(&self) {
        let before = self.state.fetch_sub(1, SeqCst);
        let last_to_leave = before & INSIDE == 1 && before & OPEN == 0;
        if last_to_leave && let Some(caller) = &*self.waiting.lock().unwrap_or_else(PoisonError::into_inner) {
            caller.unpark();
        }
    }
}

/// A mutable slice of which the tasks of a region take disjoint parts.
pub struct Disjoint<'a, T> {
    at: *mut T,
    len: usize,
    of: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out parts only under the promise of `slice` that no two overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: it is a `&mut [T]` in disguise.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Takes the slice for as long as its parts are in use.
    pub fn new(data: &'a mut [T]) -> Self {
        Self { at: data.as_mut_ptr(), len: data.len(), of: PhantomData }
    }

    /// The elements `range`.
    ///
    /// # Safety
    /// While the part lives, no other part that overlaps it may live.
    ///
    /// # Panics
    /// If `range` lies outside.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts do not overlap")]
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        // SAFETY: inside the slice; disjoint from the other parts by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(range.start), range.len()) }
    }

    /// Elements of the slice.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The first element's address, for kernels that write rows with a stride.
    pub fn as_ptr(&self) -> *mut T {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn counted(team: &Team, tasks: usize) {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        team.run(tasks, &|i| {
            counts[i].fetch_add(1, Relaxed);
        });
        assert!(counts.iter().all(|c| c.load(Relaxed) == 1));
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [0, 1, 2, 5] {
            let team = Team::new(threads);
            assert_eq!(team.threads(), threads.max(1));
            for tasks in [0, 1, 2, 3, 7, 100, 1000] {
                counted(&team, tasks);
            }
        }
    }

    #[test]
    fn ranges_cover_every_task_once() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads);
            for (count, most) in [(0, 4), (1, 4), (3, 2), (7, 4), (100, 3), (1000, 1), (1000, 64), (5, 0)] {
                let counts: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                team.run_ranges(count, most, &|range| {
                    assert!((1..=most.max(1)).contains(&range.len()));
                    counts[range].iter().for_each(|c| _ = c.fetch_add(1, Relaxed));
                });
                assert!(counts.iter().all(|c| c.load(Relaxed) == 1), "{count} tasks, {most} at once");
            }
        }
    }

    #[test]
    fn it_wakes_after_sleep() {
        let team = Team::new(3);
        for _ in 0..20 {
            thread::sleep(4 * SPIN);
            team.run(3, &|_| thread::sleep(SPIN));
            counted(&team, 10);
        }
    }

    #[test]
    fn nested_and_concurrent_regions_finish() {
        let team = Team::new(3);
        let sum = AtomicUsize::new(0);
        thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    for _ in 0..200 {
                        team.run(4, &|i| {
                            team.run(3, &|j| {
                                sum.fetch_add(i * j, Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Relaxed), 3 * 200 * 6 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(2);
        for _ in 0..3 {
            let e = catch_unwind(AssertUnwindSafe(|| team.run(64, &|i| assert!(i != 40, "task 40")))).unwrap_err();
            assert!(e.downcast_ref::<&str>().is_some_and(|m| m.contains("task 40")));
            counted(&team, 64);
        }
    }

    #[test]
    fn pieces_cover_the_slice() {
        let mut v = vec![0usize; 103];
        Team::new(2).for_pieces(&mut v, 10, &|i, piece| piece.fill(i + 1));
        assert!(v.iter().enumerate().all(|(k, x)| *x == k / 10 + 1));
    }

    #[test]
    fn rows_stay_whole() {
        for rows in [0, 1, 7, 1000] {
            let mut v = vec![0.0; rows * 33];
            Team::new(2).for_rows(33, &mut v, &|at, rows| {
                assert!(at.is_multiple_of(33) && rows.len().is_multiple_of(33));
                rows.iter_mut().enumerate().for_each(|(i, x)| *x += (at + i) as f32);
            });
            assert!(v.iter().enumerate().all(|(k, x)| *x == k as f32));
        }
    }

    #[test]
    fn pieces_come_in_pairs() {
        let (mut a, mut b) = (vec![0usize; 23], vec![0usize; 5]);
        Team::new(2).for_paired_pieces(&mut a, 5, &mut b, 1, |i, a, b| {
            a.fill(i + 1);
            b.fill(a.len());
        });
        assert!(a.iter().enumerate().all(|(k, x)| *x == k / 5 + 1));
        assert_eq!(b, [5, 5, 5, 5, 3]);
    }
}
