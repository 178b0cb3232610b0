//! Points of a grid that are near a point of the cube around it.

use std::array::from_fn;
use std::sync::LazyLock;

use super::super::grids::{self, Grid};
use super::search::level;

/// For each point of a cube the points of the grid that are near: itself, if it is one, or those at the least
/// distances.
pub(in super::super) struct Near<const N: usize> {
    /// The cube's point `u` has those of `points` from `first[u]` to `first[u + 1]`.
    first: Vec<u32>,
    points: Vec<u16>,
    /// The levels of each point of the grid.
    levels: Vec<[u8; N]>,
    /// Levels of the cube.
    pub(super) count: u8,
}

pub(in super::super) static IQ2_XXS: LazyLock<Near<8>> = LazyLock::new(|| Near::new(&grids::IQ2_XXS, 256, 3, 2));
pub(in super::super) static IQ2_XS: LazyLock<Near<8>> = LazyLock::new(|| Near::new(&grids::IQ2_XS, 512, 3, 2));
pub(in super::super) static IQ2_S: LazyLock<Near<8>> = LazyLock::new(|| Near::new(&grids::IQ2_S, 1024, 3, 1));
pub(in super::super) static IQ3_XXS: LazyLock<Near<4>> = LazyLock::new(|| Near::new(&grids::IQ3_XXS, 256, 8, 2));
pub(in super::super) static IQ3_S: LazyLock<Near<4>> = LazyLock::new(|| Near::new(&grids::IQ3_S, 512, 8, 3));

impl<const N: usize> Near<N> {
    const BITS: usize = if N == 8 { 2 } else { 3 };

    /// With the points at so many of the least distances.
    pub(super) fn new(grid: &Grid<N>, points: usize, count: u8, distances: usize) -> Self {
        let unpack = |packed: usize| from_fn(|j| (packed >> (Self::BITS * j) & ((1 << Self::BITS) - 1)) as u8);
        let levels: Vec<[u8; N]> = (0..points).map(|i| grid.levels(i)).collect();
        let mut out = Self { first: vec![0], points: Vec::new(), levels, count };
        let mut apart = vec![0; points];
        for u in 0..1usize << (Self::BITS * N) {
            let here: [u8; N] = unpack(u);
            if here.iter().all(|level| *level < count) {
                out.add(&here, distances, &mut apart);
            }
            out.first.push(out.points.len() as u32);
        }
        out
    }

    fn add(&mut self, here: &[u8; N], distances: usize, apart: &mut [i32]) {
        let square = |(a, b): (&u8, &u8)| (i32::from(*a) - i32::from(*b)).pow(2);
        for (apart, there) in apart.iter_mut().zip(&self.levels) {
            *apart = here.iter().zip(there).map(square).sum();
        }
        let mut after = -1;
        for _ in 0..distances {
            let Some(next) = apart.iter().copied().filter(|d| *d > after).min() else { break };
            self.points.extend((0..apart.len()).filter(|i| apart[*i] == next).map(|i| i as u16));
            if next == 0 {
                break;
            }
            after = next;
        }
    }

    /// The levels of a point.
    pub(super) fn levels(&self, point: u16) -> &[u8; N] {
        &self.levels[usize::from(point)]
    }

    /// The point with the least error of those near the cube's point `packed`, and whether it is that point itself.
    pub(super) fn closest(&self, packed: usize, error: impl Fn(&[u8; N]) -> f32) -> (u16, bool) {
        let near = &self.points[self.first[packed] as usize..self.first[packed + 1] as usize];
        let pack = |point: u16| self.levels(point).iter().rev().fold(0, |u, l| u << Self::BITS | usize::from(*l));
        let mut best = (near[0], f32::MAX);
        if near.len() > 1 || pack(near[0]) != packed {
            for point in near {
                let error = error(self.levels(*point));
                if error < best.1 {
                    best = (*point, error);
                }
            }
            return (best.0, false);
        }
        (near[0], true)
    }

    /// The point for some magnitudes under a scale, and whether it is the nearest of the cube.
    pub(super) fn place(&self, inverse: f32, scale: f32, values: &[f32; N], roots: &[f32; N]) -> (u16, bool) {
        let most = f32::from(self.count - 1);
        let codes: [f32; N] = from_fn(|j| level(0.5 * (inverse * values[j] - 1.0), 0.0, most));
        let packed = codes.iter().rev().fold(0, |packed, code| packed << Self::BITS | *code as usize);
        // What each level of each weight costs: points differ in few of them.
        let levels = 1 << Self::BITS;
        let costs: [f32; 32] = from_fn(|i| {
            let off = scale * (2 * (i % levels) + 1) as f32 - values[i / levels];
            roots[i / levels] * off * off
        });
        self.closest(packed, |point| {
            let cost = |j: usize| costs[(j * levels + usize::from(point[j])) % 32];
            (0..N).fold(0.0f32, |sum, j| sum + cost(j))
        })
    }

    /// The point for some magnitudes under a scale with the least error, of those that are near; the error is of what
    /// the point stands for.
    pub(in super::super) fn nearest(
        &self,
        grid: &Grid<N>,
        scale: f32,
        magnitudes: &[f32; N],
        error: impl Fn([f32; N]) -> f32,
    ) -> u16 {
        let between = |level: u8| 0.5 * scale * (grid.number(level) + grid.number(level + 1));
        let mut packed = 0;
        for (j, v) in magnitudes.iter().enumerate() {
            let level = (0..self.count - 1).filter(|l| *v > between(*l)).count();
            packed |= level << (Self::BITS * j);
        }
        self.closest(packed, |levels| error(levels.map(|l| grid.number(l)))).0
    }
}
