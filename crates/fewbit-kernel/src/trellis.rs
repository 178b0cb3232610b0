//! The Viterbi search for the closed path through a bit-shift trellis that is nearest to a tile of numbers.

use fewbit_format::{TILE_LEN, TrellisGrid};

use crate::lanes::{Simd, vectorised};

/// A trellis, its numbers laid out for the search.
///
/// A state is `rest · 2ᵏ + new`, `k` the bits that its weight adds: `rest` is what it shares with the state before. All
/// that the search knows of the past is the least cost for each `rest`, so that a step takes `2^state_bits` additions.
#[derive(Debug)]
pub struct Trellis {
    state_bits: usize,
    /// Bits that each weight adds.
    shifts: [u8; TILE_LEN],
    /// For each number of bits that are added (two at most): the states' numbers as `[new][rest]`.
    tables: Vec<(u8, Vec<f32>)>,
}

/// What a search works in; made once per thread.
#[derive(Debug, Default)]
pub struct Search {
    costs: [Vec<f32>; 2],
    /// For each weight and each `rest` of the state after it: the bits of this weight's state that are dropped then.
    dropped: Vec<u8>,
}

impl Trellis {
    /// The most bits of a weight, rounded up, for states of so many bits: whole registers are left between the bits
    /// that come and those that go.
    pub fn most_bits(state_bits: u8) -> u8 {
        (state_bits.saturating_sub(4) / 2).min(4)
    }

    /// The trellis of a grid.
    ///
    /// # Panics
    /// If a weight has more bits than [`most_bits`](Self::most_bits).
    pub fn new(grid: TrellisGrid) -> Self {
        let state_bits = usize::from(grid.state_bits);
        let end = |i: usize| if i == 0 { 0 } else { grid.end(i - 1) };
        let shifts: [u8; TILE_LEN] = std::array::from_fn(|i| (grid.end(i) - end(i)) as u8);
        let (least, most) = (shifts.iter().min().copied().unwrap_or(1), shifts.iter().max().copied().unwrap_or(1));
        assert!(least > 0 && most <= Self::most_bits(grid.state_bits), "{least} to {most} bits for {state_bits}");
        let table = |k: u8| {
            let rests = 1u32 << (state_bits - usize::from(k));
            let states = (0..1u32 << k).flat_map(|new| (0..rests).map(move |rest| rest << k | new));
            (k, states.map(|s| grid.code.value(s)).collect())
        };
        Self { state_bits, shifts, tables: (least..=most).map(table).collect() }
    }

    fn table(&self, shift: u8) -> &[f32] {
        let index = usize::from(shift - self.tables[0].0);
        &self.tables[index].1
    }

    /// Writes the states of a closed path with small `Σ (targets[i] − scales[i] · f(states[i]))²`, and returns that sum.
    ///
    /// The nearest open path of the tile turned by half decides what the last state and the first share; then the
    /// nearest path with that is found (QTIP, algorithm 4).
    pub fn nearest(
        &self,
        search: &mut Search,
        targets: &[f32; TILE_LEN],
        scales: &[f32; TILE_LEN],
        states: &mut [u16; TILE_LEN],
    ) -> f32 {
        search.reserve(self);
        forward(self, search, targets, scales, TILE_LEN / 2, None);
        let last = search.least();
        self.trace(search, TILE_LEN / 2, last, states);
        let shared = usize::from(states[0] >> self.shifts[0]);
        let cost = forward(self, search, targets, scales, 0, Some(shared));
        self.trace(search, 0, shared, states);
        cost
    }

    /// Follows the path back from what its last state leaves to the next.
    fn trace(&self, search: &Search, first: usize, last: usize, states: &mut [u16; TILE_LEN]) {
        let mut rest = last;
        let stride = self.stride();
        for step in (0..TILE_LEN).rev() {
            let i = (first + step) % TILE_LEN;
            let next = usize::from(self.shifts[(i + 1) % TILE_LEN]);
            let state = usize::from(search.dropped[step * stride + rest]) << (self.state_bits - next) | rest;
            states[i] = state as u16;
            rest = state >> self.shifts[i];
        }
    }

    /// Values of `rest` at most.
    fn stride(&self) -> usize {
        1 << (self.state_bits - usize::from(self.tables[0].0))
    }
}

impl Search {
    fn reserve(&mut self, trellis: &Trellis) {
        let stride = trellis.stride();
        self.costs.iter_mut().for_each(|c| c.resize(stride, 0.0));
        self.dropped.resize(stride * TILE_LEN, 0);
    }

    /// Where the cost after the last step is least.
    fn least(&self) -> usize {
        let costs = self.costs[0].iter().enumerate();
        costs.fold((0, f32::INFINITY), |best, (i, c)| if *c < best.1 { (i, *c) } else { best }).0
    }
}

vectorised! {
    /// Costs and choices along the tile from weight `first` around to the one before it; the costs end in
    /// `search.costs[0]`. With `shared` the path must begin there; the cost of ending there is returned.
    fn forward(
        trellis: &Trellis,
        search: &mut Search,
        targets: &[f32; TILE_LEN],
        scales: &[f32; TILE_LEN],
        first: usize,
        shared: Option<usize>,
    ) -> f32 = forward_all
}

#[inline(always)]
fn forward_all<S: Simd>(
    s: S,
    trellis: &Trellis,
    search: &mut Search,
    targets: &[f32; TILE_LEN],
    scales: &[f32; TILE_LEN],
    first: usize,
    shared: Option<usize>,
) -> f32 {
    let stride = trellis.stride();
    let Search { costs: [before, after], dropped } = search;
    before.fill(0.0);
    if let Some(shared) = shared {
        before.fill(f32::INFINITY);
        before[shared] = 0.0;
    }
    for (step, dropped) in dropped.chunks_exact_mut(stride).enumerate() {
        let i = (first + step) % TILE_LEN;
        let (shift, next) = (trellis.shifts[i], trellis.shifts[(i + 1) % TILE_LEN]);
        let job = Step {
            target: targets[i],
            scale: scales[i],
            table: trellis.table(shift),
            before: &before[..1 << (trellis.state_bits - usize::from(shift))],
            branches: 1 << next,
        };
        let count = 1 << (trellis.state_bits - usize::from(next));
        let (after_now, dropped) = (&mut after[..count], &mut dropped[..count]);
        match shift {
            1 => job.run::<S, 2>(s, after_now, dropped),
            2 => job.run::<S, 4>(s, after_now, dropped),
            3 => job.run::<S, 8>(s, after_now, dropped),
            _ => job.run::<S, 16>(s, after_now, dropped),
        }
        std::mem::swap(before, after);
    }
    // An even number of steps: the costs lie where they began.
    shared.map_or(0.0, |at| before[at])
}

/// One weight of the tile.
struct Step<'a> {
    target: f32,
    scale: f32,
    /// `[new][rest]`.
    table: &'a [f32],
    /// Least costs by `rest` of this weight's state.
    before: &'a [f32],
    /// How many states lead to each `rest` of the next.
    branches: usize,
}

impl Step<'_> {
    /// Least costs by `rest` of the next state, and the bits that are dropped on the way; `NEW` states continue each.
    #[inline(always)]
    fn run<S: Simd, const NEW: usize>(&self, s: S, after: &mut [f32], dropped: &mut [u8]) {
        let (rests, middles) = (self.before.len(), self.before.len() / self.branches);
        assert!(
            self.table.len() == NEW * rests
                && middles.is_multiple_of(S::LANES)
                && after.len() == NEW * middles
                && dropped.len() == after.len(),
            "the layout of a trellis"
        );
        let (target, scale) = (s.splat(self.target), s.splat(-self.scale));
        for middle in (0..middles).step_by(S::LANES) {
            let mut best = [s.splat(f32::INFINITY); NEW];
            let mut from = [s.splat(0.0); NEW];
            for branch in 0..self.branches {
                let at = branch * middles + middle;
                let number = s.splat(branch as f32);
                // SAFETY: `at + LANES` is at most `rests`, the length of `before`.
                let past = unsafe { s.load_at(self.before.as_ptr().add(at)) };
                for new in 0..NEW {
                    // SAFETY: as above; the table has `rests` numbers for each `new`.
                    let value = unsafe { s.load_at(self.table.as_ptr().add(new * rests + at)) };
                    let error = s.mul_add(value, scale, target);
                    let cost = s.mul_add(error, error, past);
                    let is_less = s.less(cost, best[new]);
                    best[new] = s.select(is_less, cost, best[new]);
                    from[new] = s.select(is_less, number, from[new]);
                }
            }
            interleave(s, &mut best);
            interleave(s, &mut from);
            let at = middle * NEW;
            for (v, out) in best.iter().zip(after[at..at + NEW * S::LANES].chunks_exact_mut(S::LANES)) {
                s.store(out, *v);
            }
            let mut numbers = [0.0; 16];
            for (v, out) in from.iter().zip(dropped[at..at + NEW * S::LANES].chunks_exact_mut(S::LANES)) {
                s.store(&mut numbers, *v);
                // The low bits of the mantissa are the integer.
                out.iter_mut().zip(&numbers).for_each(|(o, n)| *o = (n + 12_582_912.0).to_bits() as u8);
            }
        }
    }
}

/// Lane `l` of vector `i` comes to place `l · N + i`.
#[inline(always)]
fn interleave<S: Simd, const N: usize>(s: S, v: &mut [S::V; N]) {
    let mut width = N / 2;
    while width > 0 {
        let before = *v;
        for i in 0..N / 2 {
            [v[2 * i], v[2 * i + 1]] = s.interleave(before[i], before[i + N / 2]);
        }
        width /= 2;
    }
}

#[cfg(test)]
mod tests {
    use fewbit_format::{Group, ScaleType, TrellisCode, pack_path};

    use super::*;
    use crate::lanes::tests::at_every_level;

    fn grid(state_bits: u8, tile_bits: u16) -> TrellisGrid {
        TrellisGrid { state_bits, tile_bits, code: TrellisCode::OneMad, group: Group::Tensor, scale: ScaleType::F32 }
    }

    /// Sums of twelve uniform numbers: nearly normal.
    fn normal(seed: &mut u64) -> f32 {
        let mut next = || {
            *seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (*seed >> 40) as f32 / (1 << 24) as f32
        };
        (0..12).map(|_| next()).sum::<f32>() - 6.0
    }

    #[test]
    fn vectors_interleave() {
        at_every_level(|level| {
            for (a, b) in lanes_of_two().into_iter().enumerate() {
                assert_eq!(b as usize, a, "{level:?}");
            }
        });
    }

    fn lanes_of_two() -> Vec<f32> {
        let mut out = vec![0.0; 64];
        let len = weave(&mut out);
        out.truncate(len);
        out
    }

    vectorised! {
        fn weave(out: &mut [f32]) -> usize = weave_all
    }

    #[inline(always)]
    fn weave_all<S: Simd>(s: S, out: &mut [f32]) -> usize {
        let numbers: Vec<f32> = (0..4 * S::LANES).map(|i| (i % S::LANES * 4 + i / S::LANES) as f32).collect();
        let mut v = [0, 1, 2, 3].map(|i| s.load(&numbers[i * S::LANES..]));
        interleave(s, &mut v);
        v.iter().zip(out.chunks_exact_mut(S::LANES)).for_each(|(v, out)| s.store(out, *v));
        4 * S::LANES
    }

    /// The least cost of any path that begins and ends in `shared`, by the definition.
    fn plain(trellis: &Trellis, grid: TrellisGrid, targets: &[f32; 256], scales: &[f32; 256], shared: usize) -> f64 {
        let states = 1usize << grid.state_bits;
        let mut costs = vec![f64::INFINITY; states];
        for (s, cost) in costs.iter_mut().enumerate() {
            if s >> trellis.shifts[0] == shared {
                *cost = f64::from(targets[0] - scales[0] * grid.code.value(s as u32)).powi(2);
            }
        }
        for i in 1..256 {
            let shift = trellis.shifts[i];
            let mut next = vec![f64::INFINITY; states];
            for (s, cost) in costs.iter().enumerate() {
                for new in 0..1 << shift {
                    let to = (s << shift & (states - 1)) | new;
                    let cost = cost + f64::from(targets[i] - scales[i] * grid.code.value(to as u32)).powi(2);
                    next[to] = cost.min(next[to]);
                }
            }
            costs = next;
        }
        let keeps = |s: usize| (s << trellis.shifts[0] & (states - 1)) >> trellis.shifts[0] == shared;
        (0..states).filter(|s| keeps(*s)).map(|s| costs[s]).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn the_path_is_closed_nearest_and_what_is_stored() {
        let mut seed = 1;
        for (state_bits, tile_bits) in [(8, 512), (9, 256), (10, 584), (10, 768), (12, 1024)] {
            let grid = grid(state_bits, tile_bits);
            let trellis = Trellis::new(grid);
            let targets: [f32; 256] = std::array::from_fn(|_| normal(&mut seed));
            let scales: [f32; 256] = std::array::from_fn(|i| 0.5 + (i / 16) as f32 * 0.1);
            at_every_level(|level| {
                let mut states = [0; 256];
                let cost = trellis.nearest(&mut Search::default(), &targets, &scales, &mut states);
                let found: f64 = (0..256)
                    .map(|i| f64::from(targets[i] - scales[i] * grid.code.value(u32::from(states[i]))).powi(2))
                    .sum();
                assert!((found - f64::from(cost)).abs() < 1e-3 * found, "{level:?} {grid:?}: {found} {cost}");
                let least = plain(&trellis, grid, &targets, &scales, usize::from(states[0] >> trellis.shifts[0]));
                assert!((found - least).abs() < 1e-4 * least, "{level:?} {grid:?}: {found} found, {least} possible");
                // The stored stream decodes to the very path.
                let mut stream = vec![0; grid.tile_bytes()];
                pack_path(grid, &states, &mut stream);
                let codes = fewbit_format::TrellisCodes::new(16, 16, grid, stream, &[1.0]).unwrap();
                let mut values = [0.0; 256];
                codes.decode_rows(0..16, &mut values);
                assert_eq!(values, states.map(|s| grid.code.value(u32::from(s))), "{level:?} {grid:?}");
            });
        }
    }

    /// What a number of unit variance loses; the page of the method measured 0.074 with 12 bits and 2 a weight.
    #[test]
    fn normal_numbers_lose_as_little_as_published() {
        let mut seed = 2;
        for (state_bits, tile_bits, scale, most) in
            [(8, 512, 1.0, 0.089), (12, 512, 1.05, 0.075), (12, 768, 1.05, 0.0195), (12, 1024, 1.05, 0.0052)]
        {
            let trellis = Trellis::new(grid(state_bits, tile_bits));
            let (mut search, mut sum) = (Search::default(), 0.0);
            for _ in 0..40 {
                let targets: [f32; 256] = std::array::from_fn(|_| normal(&mut seed));
                sum += trellis.nearest(&mut search, &targets, &[scale; 256], &mut [0; 256]);
            }
            let error = sum / (40.0 * 256.0);
            assert!(error < most, "states of {state_bits} bits, {tile_bits} a tile: {error}");
        }
    }
}
