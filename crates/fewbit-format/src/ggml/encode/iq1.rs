//! Points of three values, moved up or down by an eighth.
//!
//! With three values the best scale is found among all ways to part the sorted weights in three; then each eight take
//! a point of the grid.
//!
//! IQ1_S, which ggml makes with importances only, counts errors by the square of the weight where there are none, as
//! IQ1_M does.

use std::sync::LazyLock;

use super::super::grids;
use super::near::Near;
use super::search::{best_scale, nearest};
use super::{Source, power, put_f16, squares, weighted};

type Block<'a> = Source<'a, 256>;

static NEAR: LazyLock<Near<8>> = LazyLock::new(|| Near::new(&grids::IQ1, 2048, 3, 3));

/// What the three levels stand for, moved up and moved down.
const LEVELS: [[f32; 3]; 2] = [[-0.875, 0.125, 1.125], [-1.125, -0.125, 0.875]];

/// How sorted weights are parted: levels change at two places, and each half of the group is moved up (0) or down (1).
#[derive(Clone, Copy)]
struct Parting {
    at: [usize; 2],
    moved: [usize; 2],
}

/// Finds the best scale and parting of weights with importances, whose order is given.
type Part<const N: usize> = fn(&[f32; N], &[f32; N], &[usize; N]) -> Option<(f32, Parting)>;

/// `N` weights that share a scale.
struct Group<const N: usize> {
    scale: f32,
    weights: [f32; N],
    /// By eight weights.
    points: [u16; 4],
    moved: [usize; 2],
}

impl<const N: usize> Group<N> {
    /// Groups of a magnitude below `nothing` count as zeros.
    fn of(values: &[f32; N], importance: Option<&[f32]>, mean: f32, nothing: f32, part: Part<N>) -> Self {
        let mut out = Self { scale: 0.0, weights: [0.0; N], points: [0; 4], moved: [0; 2] };
        match importance {
            Some(importance) => weighted(values, importance, mean, &mut out.weights),
            None => squares(values, &mut out.weights),
        }
        if super::extreme(values).abs() < nothing {
            return out;
        }
        let mut order: [usize; N] = std::array::from_fn(|i| i);
        order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
        if let Some((scale, parting)) = part(values, &out.weights, &order) {
            out.place(values, scale, parting, &order);
        }
        out
    }

    fn place(&mut self, values: &[f32; N], scale: f32, parting: Parting, order: &[usize; N]) {
        let mut levels = [0; N];
        for (place, i) in order.iter().enumerate() {
            levels[*i] = parting.at.iter().filter(|at| place >= **at).count();
        }
        (self.scale, self.moved) = (scale, parting.moved);
        if scale < 0.0 {
            levels = levels.map(|l| 2 - l);
            (self.scale, self.moved) = (-scale, parting.moved.map(|m| 1 - m));
        }
        let mut is_moved = false;
        for (k, levels) in levels.as_chunks::<8>().0.iter().enumerate() {
            let numbers = self.numbers(k);
            let (values, weights) = (&values[8 * k..], &self.weights[8 * k..]);
            let packed = levels.iter().rev().fold(0, |packed, l| packed << 2 | l);
            let (point, is_here) = NEAR.closest(packed, |levels| {
                let each = levels.iter().zip(values).zip(weights);
                each.fold(0.0f32, |sum, ((level, v), w)| {
                    let off = self.scale * numbers[usize::from(*level)] - v;
                    sum + w * off * off
                })
            });
            self.points[k] = point;
            is_moved |= !is_here;
        }
        let mut sums = [0.0; 2];
        self.add_to(&mut sums, values, 1.0);
        if is_moved && sums[0] > 0.0 && sums[1] > 0.0 {
            self.scale = sums[0] / sums[1];
        }
    }

    /// What the levels of eight weights stand for.
    fn numbers(&self, eight: usize) -> &'static [f32; 3] {
        &LEVELS[self.moved[16 * eight / N]]
    }

    /// Adds `Σ w x q` and `Σ w q²` of the group, each `q` times `factor`.
    fn add_to(&self, sums: &mut [f32; 2], values: &[f32; N], factor: f32) {
        for (k, values) in values.as_chunks::<8>().0.iter().enumerate() {
            let levels = NEAR.levels(self.points[k]).iter().zip(values).zip(&self.weights[8 * k..]);
            for ((level, v), w) in levels {
                let q = self.numbers(k)[usize::from(*level)] * factor;
                sums[0] += w * q * v;
                sums[1] += w * q * q;
            }
        }
    }

    /// The scale as three bits under that of the block.
    fn step(&self, inverse: f32) -> u8 {
        nearest(0.5 * (inverse * self.scale - 1.0)).clamp(0, 7) as u8
    }
}

/// All ways to part `n` sorted weights in three.
fn places(n: usize) -> impl Iterator<Item = [usize; 2]> {
    (0..=n).flat_map(move |low| (low..=n).map(move |high| [low, high]))
}

/// The whole group moved in one direction.
fn part_whole(values: &[f32; 32], weights: &[f32; 32], order: &[usize; 32]) -> Option<(f32, Parting)> {
    let mut before = [[0.0f32; 2]; 33];
    for (j, i) in order.iter().enumerate() {
        before[j + 1] = [before[j][0] + weights[*i] * values[*i], before[j][1] + weights[*i]];
    }
    let partings = places(32).flat_map(|at| {
        let (low, high, all) = (before[at[0]], before[at[1]], before[32]);
        let [x0, x1, x2] = [low[0] - before[0][0], high[0] - low[0], all[0] - high[0]];
        let [w0, w1, w2] = [low[1] - before[0][1], high[1] - low[1], all[1] - high[1]];
        let moved = |m: usize| {
            let [l0, l1, l2] = LEVELS[m];
            let sums = [x0 * l0 + x1 * l1 + x2 * l2, w0 * l0 * l0 + w1 * l1 * l1 + w2 * l2 * l2];
            (Parting { at, moved: [m; 2] }, sums)
        };
        [moved(0), moved(1)]
    });
    best_scale(partings, |(_, sums)| sums).map(|(scale, (parting, _))| (scale, parting))
}

/// Each half moved in a direction of its own.
fn part_halves(values: &[f32; 16], weights: &[f32; 16], order: &[usize; 16]) -> Option<(f32, Parting)> {
    // By half, weighted values and weights.
    let mut before = [[[0.0f32; 2]; 17]; 2];
    for (j, i) in order.iter().enumerate() {
        for half in &mut before {
            half[j + 1] = half[j];
        }
        let half = &mut before[i / 8][j + 1];
        *half = [half[0] + weights[*i] * values[*i], half[1] + weights[*i]];
    }
    let of_half = |h: usize, moved: usize, [low, high]: [usize; 2]| {
        let (before, [x, w], [l0, l1, l2]) = (&before[h], before[h][16], LEVELS[moved]);
        // Neighbouring levels are one apart.
        let xq = x * l2 - (before[low][0] + before[high][0]);
        let qq = w * l2 * l2 + before[low][1] * (l0 * l0 - l1 * l1) + before[high][1] * (l1 * l1 - l2 * l2);
        [xq, qq]
    };
    let partings = places(16).flat_map(|at| {
        let a = [of_half(0, 0, at), of_half(0, 1, at)];
        let b = [of_half(1, 0, at), of_half(1, 1, at)];
        let both = |m: usize, n: usize| (Parting { at, moved: [m, n] }, [a[m][0] + b[n][0], a[m][1] + b[n][1]]);
        [both(0, 0), both(0, 1), both(1, 0), both(1, 1)]
    });
    best_scale(partings, |(_, sums)| sums).map(|(scale, (parting, _))| (scale, parting))
}

fn greatest<const N: usize>(groups: &[Group<N>]) -> f32 {
    groups.iter().fold(0.0f32, |m, g| if g.scale > m { g.scale } else { m })
}

/// The groups of a block.
fn groups<const N: usize>(source: &Block<'_>, nothing: f32, part: Part<N>) -> Vec<Group<N>> {
    let mean = 2.0 * power(source.values) / 256.0;
    let importance = |j: usize| source.importance.map(|i| &i[N * j..]);
    let groups = source.values.as_chunks::<N>().0.iter().enumerate();
    groups.map(|(j, values)| Group::of(values, importance(j), mean, nothing, part)).collect()
}

pub(super) fn iq1_s(source: &Block<'_>, block: &mut [u8; 50]) {
    let groups = groups(source, 1e-12, part_whole);
    let d = greatest(&groups) / 15.0;
    if d == 0.0 {
        return;
    }
    // A small improvement.
    put_f16(block, 0, d * 1.125);
    for (j, group) in groups.iter().enumerate() {
        let step = u16::from(group.step(1.0 / d)) | (group.moved[0] as u16) << 3;
        let high = group.points.iter().enumerate().fold(step << 12, |bits, (k, p)| bits | p >> 8 << (3 * k));
        block[2 + 4 * j..6 + 4 * j].copy_from_slice(&group.points.map(|p| p as u8));
        block[34 + 2 * j..36 + 2 * j].copy_from_slice(&high.to_le_bytes());
    }
}

pub(super) fn iq1_m(source: &Block<'_>, block: &mut [u8; 56]) {
    let groups = groups(source, 1e-7, part_halves);
    let mut d = greatest(&groups) / 15.0;
    if d == 0.0 {
        return;
    }
    let (mut sums, mut steps) = ([0.0; 2], [0u16; 4]);
    for (j, (group, values)) in groups.iter().zip(source.values.as_chunks::<16>().0).enumerate() {
        let step = group.step(1.0 / d);
        group.add_to(&mut sums, values, f32::from(2 * step + 1));
        steps[j / 4] |= u16::from(step) << (3 * (j % 4));
        let [a, b] = [0, 1].map(|k| (group.points[k] >> 8) as u8 | (group.moved[k] as u8) << 3);
        block[2 * j] = group.points[0] as u8;
        block[2 * j + 1] = group.points[1] as u8;
        block[32 + j] = a | b << 4;
    }
    // The scale is fitted again, and slightly more.
    if sums[1] > 0.0 {
        d = sums[0] / sums[1];
    }
    let mut half = [0; 2];
    put_f16(&mut half, 0, d * 1.1125);
    let half = u16::from_le_bytes(half);
    for (i, steps) in steps.into_iter().enumerate() {
        let word = steps | (half >> (4 * i) & 15) << 12;
        block[48 + 2 * i..50 + 2 * i].copy_from_slice(&word.to_le_bytes());
    }
}
