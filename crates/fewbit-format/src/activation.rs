use std::fmt;

use crate::{Minifloat, ScaleType};

/// The numbers that an input is rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    /// Integers of so many bits, with a zero point or without.
    Int {
        /// 2 to 8.
        bits: u8,
        /// Whether zero is the middle.
        symmetric: bool,
    },
    /// Small floats.
    Float(Minifloat),
}

/// What of an input shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Everything; the scale was found before, and is stored.
    Tensor,
    /// One token; the scale follows from its values.
    Token,
    /// So many columns of a token; likewise. The last of a row may be fewer.
    Columns(usize),
}

/// How the input of a linear is rounded, without the numbers that are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ActivationGrid {
    /// To which numbers.
    pub number: Number,
    /// What shares a scale.
    pub sharing: Sharing,
    /// What kind of number a scale is: [`ScaleType::F32`], a power of two, or a float of 8 bits under a stored number.
    pub scale: ScaleType,
    /// Whether a scale that follows from the values is the one of a few under which they are rounded best.
    pub is_searched: bool,
}

/// How the input of a linear is rounded while the model runs.
///
/// A part with the greatest magnitude `a` has the scale `s = a / half the codes` (127.5 for 8 bits), or `a` over the
/// greatest float; `x̂ = s · clamp(round(x / s))`. Ties go to even.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationFormat {
    /// Numbers and sharing.
    pub grid: ActivationGrid,
    /// The scale of [`Sharing::Tensor`]; what divides the scales of [`ScaleType::E4M3`]; else 1.
    pub scale: f32,
    /// The code of zero of [`Sharing::Tensor`], signed.
    pub zero: i32,
    /// Share of the greatest magnitude that is kept.
    pub clip: f32,
}

impl ActivationGrid {
    /// With no stored numbers: for scales that follow from the values.
    pub fn dynamic(self) -> ActivationFormat {
        ActivationFormat { grid: self, scale: 1.0, zero: 0, clip: 1.0 }
    }

    /// Whether a number is stored beside the linear.
    pub fn has_stored_scale(self) -> bool {
        self.sharing == Sharing::Tensor || self.scale == ScaleType::E4M3
    }
}

impl ActivationFormat {
    /// Everything stored, in bits.
    pub fn stored_bits(&self) -> u64 {
        let zero =
            matches!(self.grid.number, Number::Int { symmetric: false, .. }) && self.grid.sharing == Sharing::Tensor;
        (if self.grid.has_stored_scale() { 32 } else { 0 }) + if zero { 8 } else { 0 }
    }

    /// Scale and signed zero point of a part with these extremes, `least ≤ 0 ≤ most`.
    pub fn part(&self, least: f32, most: f32) -> (f32, i32) {
        let ActivationGrid { number, sharing, scale, .. } = self.grid;
        if sharing == Sharing::Tensor {
            return (self.scale, self.zero);
        }
        let (least, most) = (self.clip * least, self.clip * most);
        let reach = most.max(-least);
        match number {
            Number::Int { bits, symmetric: false } => {
                let codes = ((1u32 << bits) - 1) as f32;
                let s = positive((most - least) / codes);
                let (low, high) = range(bits);
                (s, (low - least / s).clamp(low, high).round_ties_even() as i32)
            }
            Number::Int { bits, symmetric: true } => {
                let half = ((1u32 << bits) - 1) as f32 / 2.0;
                (self.stored(scale, reach / half), 0)
            }
            Number::Float(element) if scale == ScaleType::E8M0 => (element.power_scale(reach), 0),
            Number::Float(element) => (self.stored(scale, reach / element.max()), 0),
        }
    }

    /// A scale as its type holds it.
    fn stored(&self, kind: ScaleType, s: f32) -> f32 {
        match kind {
            ScaleType::E4M3 => positive(kind.round(self.scale * s)) / self.scale,
            ScaleType::E8M0 => kind.round(s),
            _ => positive(s),
        }
    }

    /// Rounds one value under a scale and zero point.
    #[inline]
    pub fn value(&self, x: f32, (scale, zero): (f32, i32)) -> f32 {
        match self.grid.number {
            Number::Int { bits, .. } => (code(x, bits, (scale, zero)) - zero as f32) * scale,
            Number::Float(element) => element.round(x / scale) * scale,
        }
    }

    /// The signed code of a value, if the numbers are integers.
    #[inline]
    pub fn code(&self, x: f32, params: (f32, i32)) -> Option<f32> {
        if let Number::Int { bits, .. } = self.grid.number { Some(code(x, bits, params)) } else { None }
    }

    /// Rounds one token. A part with a value that is no number becomes NaN, so that it is not hidden.
    pub fn round(&self, row: &mut [f32]) {
        let width = match self.grid.sharing {
            Sharing::Tensor | Sharing::Token => row.len().max(1),
            Sharing::Columns(g) => g,
        };
        for part in row.chunks_mut(width) {
            match self.params(part) {
                Some(params) => self.round_part(part, params),
                None => part.fill(f32::NAN),
            }
        }
    }

    /// [`value`](Self::value) of all, with the choice outside of the loop.
    fn round_part(&self, part: &mut [f32], (scale, zero): (f32, i32)) {
        match self.grid.number {
            Number::Int { bits, .. } => {
                part.iter_mut().for_each(|x| *x = (code(*x, bits, (scale, zero)) - zero as f32) * scale);
            }
            Number::Float(element) => part.iter_mut().for_each(|x| *x = element.round(*x / scale) * scale),
        }
    }

    /// Scale and signed zero point of a part; `None` where a value is no number.
    #[inline]
    pub fn params(&self, part: &[f32]) -> Option<(f32, i32)> {
        let (mut least, mut most, mut bits) = (0f32, 0f32, 0u32);
        for x in part {
            (least, most) = (least.min(*x), most.max(*x));
            bits = bits.max(x.to_bits() & 0x7fff_ffff);
        }
        let is_number = bits < f32::INFINITY.to_bits();
        is_number
            .then(|| self.part(least, most))
            .map(|first| if self.grid.is_searched { self.best(part, first) } else { first })
    }

    /// What a part loses by rounding, `Σ (x − x̂)²`, in eight sums that vectors hold.
    fn error(&self, part: &[f32], (scale, zero): (f32, i32)) -> f32 {
        fn sum(part: &[f32], rounded: impl Fn(f32) -> f32) -> f32 {
            let mut sums = [0f32; 8];
            for chunk in part.chunks(8) {
                for (sum, x) in sums.iter_mut().zip(chunk) {
                    let lost = x - rounded(*x);
                    *sum += lost * lost;
                }
            }
            sums.iter().sum()
        }
        match self.grid.number {
            Number::Int { bits, .. } => sum(part, |x| (code(x, bits, (scale, zero)) - zero as f32) * scale),
            Number::Float(element) => sum(part, |x| element.round(x / scale) * scale),
        }
    }

    /// The scale among the first and some beside it that leaves the least squared error; the first of equals.
    fn best(&self, part: &[f32], (first, zero): (f32, i32)) -> (f32, i32) {
        let ActivationGrid { number, sharing, scale, .. } = self.grid;
        let factors: &[f32] = match number {
            _ if sharing == Sharing::Tensor => &[],
            // The greatest value may saturate, or leave half of the numbers unused.
            _ if scale == ScaleType::E8M0 => &POWERS,
            Number::Int { .. } => &CLIPS,
            Number::Float(_) => &WITHIN_A_BINADE,
        };
        let (mut best, mut least) = ((first, zero), self.error(part, (first, zero)));
        for factor in factors {
            let tried = (self.stored(scale, first * factor), zero);
            let error = self.error(part, tried);
            if error < least {
                (best, least) = (tried, error);
            }
        }
        best
    }
}

/// What scales that are powers of two are multiplied with in a search.
const POWERS: [f32; 2] = [0.5, 2.0];

/// What the scales of integers are multiplied with: the greatest values saturate.
const CLIPS: [f32; 5] = [0.95, 0.9, 0.85, 0.8, 0.7];

/// What the scales of floats are multiplied with. For E2M1, 1.5 puts the greatest value at 4 where it was at 6.
const WITHIN_A_BINADE: [f32; 5] = [1.5, 1.25, 1.12, 0.9, 0.8];

#[inline]
fn code(x: f32, bits: u8, (scale, zero): (f32, i32)) -> f32 {
    let (low, high) = range(bits);
    round((x / scale + zero as f32).clamp(low, high))
}

/// Codes of so many bits, signed.
fn range(bits: u8) -> (f32, f32) {
    let half = (1u32 << (bits - 1)) as f32;
    (-half, half - 1.0)
}

/// To the nearest integer, ties to even, for magnitudes below 2²².
#[inline]
fn round(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

/// A part of zeros has any scale.
fn positive(s: f32) -> f32 {
    if s > 0.0 { s } else { 1.0 }
}

impl fmt::Display for ActivationGrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Number::Int { bits, symmetric } => write!(f, "int{bits}{}", if symmetric { "" } else { " asymmetric" })?,
            Number::Float(element) => element.fmt(f)?,
        }
        match self.sharing {
            Sharing::Tensor => f.write_str(" static")?,
            Sharing::Token => f.write_str(" per token")?,
            Sharing::Columns(g) => write!(f, " per {g} columns")?,
        }
        f.write_str(match self.scale {
            ScaleType::E8M0 => ", scales powers of two",
            ScaleType::E4M3 => ", scales e4m3",
            _ => "",
        })?;
        f.write_str(if self.is_searched { ", the best scale" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT8: Number = Number::Int { bits: 8, symmetric: true };

    fn format(number: Number, sharing: Sharing, scale: ScaleType) -> ActivationFormat {
        ActivationGrid { number, sharing, scale, is_searched: false }.dynamic()
    }

    #[test]
    fn integers_per_token_are_half_steps_at_most() {
        let x: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin() * 3.0 + 0.5).collect();
        for (symmetric, step) in [(true, 2.0 * 3.5 / 255.0), (false, 6.0 / 255.0)] {
            let f = format(Number::Int { bits: 8, symmetric }, Sharing::Token, ScaleType::F32);
            let mut y = x.clone();
            f.round(&mut y);
            assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() <= 0.502 * step), "{symmetric}");
            assert!(x != y);
        }
    }

    #[test]
    fn the_greatest_of_a_part_is_at_the_end_of_the_codes() {
        let f = format(INT8, Sharing::Token, ScaleType::F32);
        let mut row = [-2.0, 1.0, 0.0];
        f.round(&mut row);
        assert!((row[0] + 2.0).abs() <= 0.501 * (2.0 / 127.5) && row[2] == 0.0);
        let asymmetric = format(Number::Int { bits: 4, symmetric: false }, Sharing::Token, ScaleType::F32);
        assert_eq!(asymmetric.part(-1.0, 2.0), (0.2, -3));
        let fixed = ActivationFormat { scale: 0.5, zero: -10, ..format(INT8, Sharing::Tensor, ScaleType::F32) };
        let mut row = [100.0, -100.0, 1.2];
        fixed.round(&mut row);
        assert_eq!(row, [68.5, -59.0, 1.0]);
    }

    #[test]
    fn floats_in_blocks() {
        let e2m1 = Number::Float(Minifloat::E2M1);
        let mx = format(e2m1, Sharing::Columns(2), ScaleType::E8M0);
        let mut row = [7.5, 1.0, 0.0, 0.0, 6.9, 1.0];
        mx.round(&mut row);
        // 7.5 is nearer to the next binade than 6.9 is.
        assert_eq!(row, [8.0, 1.0, 0.0, 0.0, 6.0, 1.0]);
        let nv = ActivationFormat { scale: 448.0 * 6.0 / 12.0, ..format(e2m1, Sharing::Columns(2), ScaleType::E4M3) };
        let mut row = [12.0, 1.0, 0.0, 0.0];
        nv.round(&mut row);
        assert_eq!(row, [12.0, 1.0, 0.0, 0.0]);
        let fp8 = format(Number::Float(Minifloat::E4M3), Sharing::Token, ScaleType::F32);
        let mut row = [448.0, 17.0, 0.001];
        fp8.round(&mut row);
        assert_eq!(row, [448.0, 16.0, 1.0 / 1024.0 * 2.0]);
    }

    /// compressed-tensors 0.19 on the same numbers.
    #[test]
    fn blocks_are_rounded_as_the_reference_does() {
        let x: Vec<f32> = (0..32).map(|i| ((i * 37) % 101 - 50) as f32 / 13.0).collect();
        let of = |f: ActivationFormat| -> Vec<f32> {
            let mut row = x.clone();
            f.round(&mut row);
            row
        };
        let mxfp4 = [
            -4.0, -1.0, 2.0, -3.0, -0.0, 3.0, -2.0, 0.5, 3.0, -1.5, 1.5, -4.0, -1.0, 2.0, -3.0, 0.0, 3.0, -2.0, 1.0,
            4.0, -1.5, 1.5, -3.0, -0.5, 2.0, -3.0, 0.0, 3.0, -2.0, 1.0, 4.0, -1.0,
        ];
        assert_eq!(of(format(Number::Float(Minifloat::E2M1), Sharing::Columns(32), ScaleType::E8M0)), mxfp4);
        let mxfp8 = [
            -3.75, -1.0, 1.875, -3.0, -0.234375, 2.5, -2.25, 0.5625, 3.5, -1.5, 1.25, -3.5, -0.75, 2.0, -2.75, 0.0,
            2.75, -2.0, 0.75, 3.5, -1.25, 1.5, -3.5, -0.5625, 2.25, -2.5, 0.234375, 3.0, -1.875, 1.0, 3.75, -1.125,
        ];
        assert_eq!(of(format(Number::Float(Minifloat::E4M3), Sharing::Columns(32), ScaleType::E8M0)), mxfp8);
        // In units of the scale of a block, 320 / 500 in both.
        let nvfp4 = [
            -6.0, -1.5, 3.0, -4.0, -0.5, 4.0, -4.0, 1.0, 6.0, -2.0, 2.0, -6.0, -1.0, 3.0, -4.0, 0.0, 4.0, -3.0, 1.0,
            6.0, -2.0, 2.0, -6.0, -1.0, 4.0, -4.0, 0.5, 4.0, -3.0, 1.5, 6.0, -1.5,
        ];
        let nv = format(Number::Float(Minifloat::E2M1), Sharing::Columns(16), ScaleType::E4M3);
        let unit = 320.0 / 500.0;
        let found: Vec<f32> = of(ActivationFormat { scale: 500.0, ..nv }).iter().map(|v| v / unit).collect();
        assert_eq!(found, nvfp4);
    }

    #[test]
    fn a_searched_scale_is_never_worse_and_takes_four_over_six() {
        let searched = |grid: ActivationGrid| ActivationGrid { is_searched: true, ..grid }.dynamic();
        let error = |f: ActivationFormat, x: &[f32]| -> f32 {
            let mut row = x.to_vec();
            f.round(&mut row);
            row.iter().zip(x).map(|(a, b)| (a - b).powi(2)).sum()
        };
        let e2m1 = Number::Float(Minifloat::E2M1);
        // 5/6 of the greatest lies between 4 and 6; under 4 it lies near 3.
        let nv =
            ActivationGrid { number: e2m1, sharing: Sharing::Columns(4), scale: ScaleType::E4M3, is_searched: false };
        let row = [6.0, 4.8, 4.8, -4.8];
        assert!(error(searched(nv), &row) < 0.5 * error(nv.dynamic(), &row));
        let x: Vec<f32> = (0..960).map(|i| (i as f32 * 0.7).sin() * (1.0 + (i as f32 * 0.13).cos()) * 3.0).collect();
        for (number, sharing, scale) in [
            (e2m1, Sharing::Columns(16), ScaleType::E4M3),
            (Number::Int { bits: 4, symmetric: true }, Sharing::Columns(32), ScaleType::F32),
            (Number::Float(Minifloat::E4M3), Sharing::Token, ScaleType::F32),
        ] {
            let grid = ActivationGrid { number, sharing, scale, is_searched: false };
            let parts = x.chunks_exact(32).map(|part| (error(searched(grid), part), error(grid.dynamic(), part)));
            let [ours, plain] = parts.fold([0.0; 2], |[a, b], (ours, plain)| {
                assert!(ours <= plain * 1.0001, "{grid}: {ours} {plain}");
                [a + ours, b + plain]
            });
            assert!(ours < plain, "{grid}");
        }
    }

    #[test]
    fn what_is_no_number_shows() {
        for number in [INT8, Number::Float(Minifloat::E4M3)] {
            let mut row = [1.0, f32::INFINITY, 2.0, 3.0];
            format(number, Sharing::Columns(2), ScaleType::F32).round(&mut row);
            assert!(row[0].is_nan() && row[1].is_nan() && row[2].is_finite());
        }
    }
}
