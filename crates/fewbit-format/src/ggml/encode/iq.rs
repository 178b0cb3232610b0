//! Points of grids: each four or eight magnitudes take the point that loses least under a scale, and scales are
//! searched for.
//!
//! IQ2_XXS and IQ2_XS, which ggml makes with importances only, take those of IQ2_S where there are none.

use std::sync::LazyLock;

use super::super::{Eight, GgmlType};
use super::near::{IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, Near};
use super::search::{best_scale, nearest, positive};
use super::{Source, power, put_f16, squares, weighted};

type Block<'a> = Source<'a, 256>;

/// Magnitudes of a group, at most.
const MOST: usize = 32;

/// Which points are looked for again under the scale that was found.
#[derive(PartialEq)]
enum Again {
    /// Those that were not the nearest of the cube.
    Moved,
    /// All, if one was not.
    AllIfMoved,
    All,
}

/// What tells the types apart.
struct Form<const N: usize> {
    near: &'static LazyLock<Near<N>>,
    /// Weights that share a scale.
    group: usize,
    /// An even number of eight signs is negative.
    has_even_signs: bool,
    /// What the mean square of a block counts for.
    power: f32,
    /// Below this greatest magnitude a group counts as zeros.
    nothing: f32,
    /// So many candidates below and above, so far apart.
    tries: (i8, f32),
    /// Whether candidates begin at the scale of single levels, not at the greatest magnitude.
    from_levels: bool,
    again: Again,
    /// The stored scale, as a multiple of what was found: a small improvement.
    stretch: f32,
}

/// The groups of a block.
struct Found {
    scales: [f32; 16],
    /// By [`Near`]'s `N` weights.
    points: [u16; 64],
    /// By eight weights.
    signs: [u8; 32],
}

/// One group.
struct Group {
    /// Without their signs, but where an even number of signs made one wrong.
    values: [f32; MOST],
    weights: [f32; MOST],
    roots: [f32; MOST],
    signs: [u8; MOST / 8],
}

impl<const N: usize> Form<N> {
    fn search(&self, source: &Block<'_>) -> Found {
        let mut found = Found { scales: [0.0; 16], points: [0; 64], signs: [0; 32] };
        let mean = self.power * power(source.values) / 256.0;
        for (j, values) in source.values.chunks_exact(self.group).enumerate() {
            let mut group =
                Group::of(values, source.importance.map(|i| &i[j * self.group..]), mean, N, self.has_even_signs);
            let points = &mut found.points[j * self.group / N..(j + 1) * self.group / N];
            let mut scale = self.scale(&group, points);
            if scale == 0.0 || scale.is_nan() {
                points.fill(0);
                continue;
            }
            if scale < 0.0 {
                scale = -scale;
                group.signs = group.signs.map(|s| !s);
            }
            found.scales[j] = scale;
            found.signs[j * self.group / 8..(j + 1) * self.group / 8].copy_from_slice(&group.signs[..self.group / 8]);
        }
        found
    }

    /// The best scale and the points for it.
    fn scale(&self, group: &Group, points: &mut [u16]) -> f32 {
        let (near, len) = (&**self.near, self.group);
        let (values, weights) = (&group.values[..len], &group.weights[..len]);
        let high = values.iter().fold(values[0], |m, v| if *v > m { *v } else { m });
        if high < self.nothing || high == 0.0 {
            return 0.0;
        }
        let reach = if self.from_levels {
            f32::from(near.count) * positive(values, weights, near.count + 1, &mut [0; MOST][..len])
        } else {
            high
        };
        if reach <= 0.0 {
            return 0.0;
        }
        let mut moved = [false; MOST / 4];
        let mut place = |inverse: f32, scale: f32, only_moved: bool, points: &mut [u16]| {
            let (values, roots) = (values.as_chunks::<N>().0, group.roots.as_chunks::<N>().0);
            let groups = values.iter().zip(roots).zip(points).zip(&mut moved);
            for (((values, roots), point), moved) in groups {
                if !only_moved || *moved {
                    let (at, is_nearest) = near.place(inverse, scale, values, roots);
                    (*point, *moved) = (at, !is_nearest);
                }
            }
            moved.contains(&true)
        };
        let sums = |points: &[u16]| {
            let levels = points.iter().flat_map(|p| *near.levels(*p)).map(|l| f32::from(2 * l + 1));
            let mut sums = [0.0; 2];
            for ((q, v), w) in levels.zip(values).zip(weights) {
                sums[0] += w * v * q;
                sums[1] += w * q * q;
            }
            sums
        };
        let (count, step) = self.tries;
        let inverses = (-count..=count).map(|i| (f32::from(2 * near.count - 1) + f32::from(i) * step) / reach);
        let found = best_scale(inverses, |inverse| {
            place(inverse, 1.0 / inverse, false, points);
            sums(points)
        });
        let Some((scale, inverse)) = found else { return 0.0 };
        let is_moved = place(inverse, 1.0 / inverse, false, points);
        if scale > 0.0 && (is_moved || self.again == Again::All) {
            place(1.0 / scale, scale, self.again == Again::Moved, points);
            let [xq, qq] = sums(points);
            if qq > 0.0 {
                return xq / qq;
            }
        }
        scale
    }

    /// Writes the block's scale and gives those of the groups as four bits; `None` where all is zero.
    fn put_scales(&self, found: &Found, block: &mut [u8]) -> Option<[u8; 16]> {
        let high = found.scales.iter().fold(0.0f32, |m, s| if *s > m { *s } else { m });
        if high == 0.0 {
            return None;
        }
        let d = high / 31.0;
        put_f16(block, 0, d * self.stretch);
        let inverse = 1.0 / d;
        Some(found.scales.map(|s| nearest(0.5 * (inverse * s - 1.0)).clamp(0, 15) as u8))
    }
}

impl Group {
    fn of(values: &[f32], importance: Option<&[f32]>, mean: f32, n: usize, has_even_signs: bool) -> Self {
        let mut out = Self { values: [0.0; MOST], weights: [0.0; MOST], roots: [0.0; MOST], signs: [0; MOST / 8] };
        match importance {
            Some(importance) => weighted(values, importance, mean, &mut out.weights),
            None if n == 4 => squares(values, &mut out.weights),
            None => out.weights.iter_mut().zip(values).for_each(|(w, v)| *w = 0.25 * mean + v * v),
        }
        out.roots.iter_mut().zip(&out.weights).for_each(|(root, w)| *root = w.sqrt());
        let eights = values.as_chunks::<8>().0.iter().zip(out.values.as_chunks_mut::<8>().0);
        for ((k, (values, magnitudes)), signs) in eights.enumerate().zip(&mut out.signs) {
            *magnitudes = values.map(|v| if v >= 0.0 { v } else { -v });
            *signs = values.iter().enumerate().fold(0, |bits, (i, v)| bits | u8::from(*v < 0.0) << i);
            if has_even_signs && signs.count_ones() % 2 == 1 {
                // The sign that costs least is wrong.
                let cost = |i: usize| out.weights[8 * k + i] * values[i] * values[i];
                let least = (1..8).fold(0, |least, i| if cost(i) < cost(least) { i } else { least });
                magnitudes[least] = -magnitudes[least];
                *signs ^= 1 << least;
            }
        }
        out
    }
}

const XXS: Form<8> = Form {
    near: &IQ2_XXS,
    group: 32,
    has_even_signs: true,
    power: 1.0,
    nothing: 1e-15,
    tries: (6, 0.1),
    from_levels: true,
    again: Again::All,
    stretch: 1.0,
};

const XS: Form<8> = Form { near: &IQ2_XS, group: 16, tries: (9, 0.1), from_levels: false, again: Again::Moved, ..XXS };

const S: Form<8> = Form { near: &IQ2_S, has_even_signs: false, power: 2.0, nothing: 1e-8, stretch: 0.9875, ..XS };

const XXS3: Form<4> = Form {
    near: &IQ3_XXS,
    group: 32,
    has_even_signs: true,
    power: 2.0,
    nothing: 1e-8,
    tries: (15, 0.2),
    from_levels: false,
    again: Again::Moved,
    stretch: 1.0125,
};

const S3: Form<4> = Form {
    near: &IQ3_S,
    has_even_signs: false,
    nothing: 0.0,
    tries: (9, 0.2),
    again: Again::AllIfMoved,
    stretch: 1.033,
    ..XXS3
};

/// Puts points and signs in their places.
fn put_points<const N: usize>(kind: GgmlType, found: &Found, block: &mut [u8]) {
    for (i, signs) in found.signs.into_iter().enumerate() {
        let points = if N == 8 { [found.points[i], 0] } else { [found.points[2 * i], found.points[2 * i + 1]] };
        kind.put_eight(Eight { points, signs }, i, block);
    }
}

/// Puts the scales of each 32 weights into the upper halves of bytes that have signs in the lower ones.
fn put_beside_signs(scales: &[u8; 16], block: &mut [u8], first: usize, step: usize) {
    for (i, scale) in scales[..8].iter().enumerate() {
        block[first + step * i] |= scale << 4;
    }
}

pub(super) fn iq2_xxs(source: &Block<'_>, block: &mut [u8; 66]) {
    let found = XXS.search(source);
    let Some(scales) = XXS.put_scales(&found, block) else { return };
    put_points::<8>(GgmlType::Iq2Xxs, &found, block);
    put_beside_signs(&scales, block, 9, 8);
}

pub(super) fn iq2_xs(source: &Block<'_>, block: &mut [u8; 74]) {
    let found = XS.search(source);
    let Some(scales) = XS.put_scales(&found, block) else { return };
    put_points::<8>(GgmlType::Iq2Xs, &found, block);
    put_scale_pairs(&scales, &mut block[66..]);
}

pub(super) fn iq2_s(source: &Block<'_>, block: &mut [u8; 82]) {
    let found = S.search(source);
    let Some(scales) = S.put_scales(&found, block) else { return };
    put_points::<8>(GgmlType::Iq2S, &found, block);
    put_scale_pairs(&scales, &mut block[74..]);
}

pub(super) fn iq3_xxs(source: &Block<'_>, block: &mut [u8; 98]) {
    let found = XXS3.search(source);
    let Some(scales) = XXS3.put_scales(&found, block) else { return };
    put_points::<4>(GgmlType::Iq3Xxs, &found, block);
    put_beside_signs(&scales, block, 69, 4);
}

pub(super) fn iq3_s(source: &Block<'_>, block: &mut [u8; 110]) {
    let found = S3.search(source);
    let Some(scales) = S3.put_scales(&found, block) else { return };
    put_points::<4>(GgmlType::Iq3S, &found, block);
    put_scale_pairs(&scales[..8], &mut block[106..]);
}

/// Two scales of four bits in a byte, the first low.
fn put_scale_pairs(scales: &[u8], out: &mut [u8]) {
    out.iter_mut().zip(scales.as_chunks::<2>().0).for_each(|(byte, [low, high])| *byte = low | high << 4);
}
