//! Error feedback on strips of sixteen rows, for solvers that round column by column.

use crate::lanes::{Simd, vectorised};

/// Rows of a strip.
pub const STRIP: usize = 16;

vectorised! {
    /// `data[j][lane] −= error[lane] · u[j]` for each column `j` of a strip `data [columns][16]`.
    pub fn feedback(data: &mut [f32], error: &[f32], u: &[f32]) = feedback_all
}

#[inline(always)]
fn feedback_all<S: Simd>(s: S, data: &mut [f32], error: &[f32], u: &[f32]) {
    assert!(error.len() == STRIP && data.len() == STRIP * u.len(), "{} values for {} columns", data.len(), u.len());
    let zero = s.splat(0.0);
    for lanes in (0..STRIP).step_by(S::LANES) {
        let back = s.sub(zero, s.load(&error[lanes..]));
        for (column, by) in data.chunks_exact_mut(STRIP).zip(u) {
            let at = &mut column[lanes..];
            let sum = s.mul_add(back, s.splat(*by), s.load(at));
            s.store(at, sum);
        }
    }
}

vectorised! {
    /// Rows `w [rows][columns]` as a strip: `out[column][lane] = w[lane][column]`, zeros in lanes without a row.
    ///
    /// # Panics
    /// If there are more than [`STRIP`] rows, or sizes disagree.
    pub fn gather(w: &[f32], columns: usize, out: &mut [f32]) = gather_all
}

#[inline(always)]
fn gather_all<S: Simd>(s: S, w: &[f32], columns: usize, out: &mut [f32]) {
    assert!(w.len() <= STRIP * columns && out.len() == STRIP * columns, "{} values in {columns} columns", w.len());
    let rows = w.len().checked_div(columns).unwrap_or(0);
    let whole = if rows == STRIP { columns / S::LANES * S::LANES } else { 0 };
    for lanes in (0..STRIP).step_by(S::LANES) {
        for c in (0..whole).step_by(S::LANES) {
            // SAFETY: all sixteen rows are there and `c + LANES` is at most `columns`, so that the source ends at or
            // before `w`'s end; the target's columns `c..c + LANES` lie within `out`, by the assertion.
            unsafe {
                s.transpose_at(
                    w.as_ptr().add(lanes * columns + c),
                    columns,
                    out.as_mut_ptr().add(c * STRIP + lanes),
                    STRIP,
                );
            }
        }
    }
    for (c, column) in out.chunks_exact_mut(STRIP).enumerate().skip(whole) {
        for (lane, v) in column.iter_mut().enumerate() {
            *v = if lane < rows { w[lane * columns + c] } else { 0.0 };
        }
    }
}

vectorised! {
    /// `xᵀ G x` for each lane of a strip `x [columns][16]` and a symmetric `G [columns, columns]`.
    ///
    /// # Panics
    /// If sizes disagree.
    pub fn quadratic(g: &[f32], x: &[f32]) -> [f64; STRIP] = quadratic_all
}

#[inline(always)]
fn quadratic_all<S: Simd>(s: S, g: &[f32], x: &[f32]) -> [f64; STRIP] {
    let columns = x.len() / STRIP;
    assert!(x.len() == STRIP * columns && g.len() == columns * columns, "{} weights of {columns} columns", g.len());
    let (mut sums, mut inner) = ([0.0; STRIP], [0.0; STRIP]);
    for (row, own) in g.chunks_exact(columns.max(1)).zip(x.chunks_exact(STRIP)) {
        for lanes in (0..STRIP).step_by(S::LANES) {
            // Two chains, since an addition waits for the one before.
            let mut sum = [s.splat(0.0); 2];
            for (by, column) in row.chunks(2).zip(x.chunks(2 * STRIP)) {
                for (i, by) in by.iter().enumerate() {
                    sum[i] = s.mul_add(s.splat(*by), s.load(&column[i * STRIP + lanes..]), sum[i]);
                }
            }
            s.store(&mut inner[lanes..], s.mul(s.add(sum[0], sum[1]), s.load(&own[lanes..])));
        }
        sums.iter_mut().zip(&inner).for_each(|(sum, v)| *sum += f64::from(*v));
    }
    sums
}

/// How integer codes stand for numbers, for each row of a strip.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// Scale per lane.
    pub scale: &'a [f32; STRIP],
    /// Zero point (a code) or offset (a number) per lane.
    pub zero: &'a [f32; STRIP],
    /// Greatest code, at most 255.
    pub most: f32,
    /// Whether `zero` is an offset: the value is `s q + z`, else `s (q − z)`.
    pub has_offsets: bool,
}

vectorised! {
    /// Nearest codes (ties to even) of the columns of a strip, and the values that they stand for.
    ///
    /// With a code as zero point `q = clamp(round(w / s) + z)`, with an offset `q = clamp(round((w − z) / s))`.
    pub fn round_affine(
        affine: Affine<'_>,
        w: &[[f32; STRIP]],
        codes: &mut [[u16; STRIP]],
        values: &mut [[f32; STRIP]],
    ) = round_all
}

#[inline(always)]
fn round_all<S: Simd>(
    _: S,
    a: Affine<'_>,
    w: &[[f32; STRIP]],
    codes: &mut [[u16; STRIP]],
    values: &mut [[f32; STRIP]],
) {
    // Plain loops over lanes, which become vectors of the level that this is compiled for.
    for ((w, codes), values) in w.iter().zip(codes).zip(values) {
        for lane in 0..STRIP {
            let q = a.code(w[lane], lane);
            // The low bits of the mantissa are the integer.
            codes[lane] = (q + MAGIC).to_bits() as u16;
            values[lane] = a.value(q, lane);
        }
    }
}

/// Adding and subtracting it rounds to the nearest integer, ties to even, for magnitudes below 2²².
const MAGIC: f32 = 12_582_912.0;

#[inline(always)]
fn round(x: f32) -> f32 {
    (x.clamp(-1_048_576.0, 1_048_576.0) + MAGIC) - MAGIC
}

impl Affine<'_> {
    /// The nearest code of a number, as a whole f32.
    #[inline(always)]
    pub fn code(&self, w: f32, lane: usize) -> f32 {
        let (s, z) = (self.scale[lane], self.zero[lane]);
        let q = if self.has_offsets { round((w - z) / s) } else { round(w / s) + z };
        q.clamp(0.0, self.most)
    }

    /// What a code stands for.
    #[inline(always)]
    pub fn value(&self, q: f32, lane: usize) -> f32 {
        let (s, z) = (self.scale[lane], self.zero[lane]);
        if self.has_offsets { s * q + z } else { s * (q - z) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;

    #[test]
    fn feedback_equals_its_definition() {
        let u = [0.5, -2.0, 3.0];
        let error: Vec<f32> = (0..16).map(|i| i as f32 - 7.0).collect();
        at_every_level(|level| {
            let mut data: Vec<f32> = (0..48).map(|i| i as f32).collect();
            feedback(&mut data, &error, &u);
            for j in 0..3 {
                for lane in 0..16 {
                    assert_eq!(data[16 * j + lane], (16 * j + lane) as f32 - error[lane] * u[j], "{level:?}");
                }
            }
        });
    }

    #[test]
    fn a_strip_holds_the_rows_side_by_side() {
        at_every_level(|level| {
            for (rows, columns) in [(16, 37), (16, 16), (16, 7), (5, 40), (1, 1), (0, 3)] {
                let w: Vec<f32> = (0..rows * columns).map(|i| i as f32 + 1.0).collect();
                let mut strip = vec![-1.0; STRIP * columns];
                gather(&w, columns, &mut strip);
                for (i, v) in strip.iter().enumerate() {
                    let (c, lane) = (i / STRIP, i % STRIP);
                    let expected = if lane < rows { w[lane * columns + c] } else { 0.0 };
                    assert_eq!(*v, expected, "{level:?}: {rows} rows, {columns} columns");
                }
            }
        });
    }

    #[test]
    fn quadratic_forms_of_all_lanes() {
        for columns in [1, 2, 7, 32] {
            let g: Vec<f32> = (0..columns * columns).map(|i| ((i / columns + i % columns) % 5) as f32 - 1.5).collect();
            let x: Vec<f32> = (0..STRIP * columns).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
            at_every_level(|level| {
                let all = quadratic(&g, &x);
                for lane in 0..STRIP {
                    let at = |c: usize| f64::from(x[c * STRIP + lane]);
                    let expected: f64 =
                        (0..columns * columns).map(|i| f64::from(g[i]) * at(i / columns) * at(i % columns)).sum();
                    assert_eq!(all[lane], expected, "{level:?}: {columns} columns, lane {lane}");
                }
            });
        }
    }

    #[test]
    fn rounds_to_the_nearest_code() {
        let scale: [f32; STRIP] = std::array::from_fn(|i| 0.25 + 0.125 * i as f32);
        let w: Vec<[f32; STRIP]> =
            (0..50).map(|c| std::array::from_fn(|i| ((c * 31 + i * 17) % 101) as f32 * 0.21 - 10.0)).collect();
        for has_offsets in [false, true] {
            let zero: [f32; STRIP] =
                std::array::from_fn(|i| if has_offsets { -1.0 - i as f32 / 7.0 } else { (i % 8) as f32 });
            let affine = Affine { scale: &scale, zero: &zero, most: 15.0, has_offsets };
            at_every_level(|level| {
                let (mut codes, mut values) = (vec![[9; STRIP]; 50], vec![[0.0; STRIP]; 50]);
                round_affine(affine, &w, &mut codes, &mut values);
                for (c, column) in w.iter().enumerate() {
                    for lane in 0..STRIP {
                        let (s, z) = (scale[lane], zero[lane]);
                        let plain = if has_offsets { (column[lane] - z) / s } else { column[lane] / s };
                        let q = (plain.round_ties_even() + if has_offsets { 0.0 } else { z }).clamp(0.0, 15.0);
                        let value = if has_offsets { s * q + z } else { s * (q - z) };
                        assert_eq!(
                            (codes[c][lane], values[c][lane]),
                            (q as u16, value),
                            "{level:?}: column {c}, lane {lane}"
                        );
                    }
                }
            });
        }
    }
}
