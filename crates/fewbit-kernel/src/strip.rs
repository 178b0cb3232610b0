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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_definition() {
        let u = [0.5, -2.0, 3.0];
        let error: Vec<f32> = (0..16).map(|i| i as f32 - 7.0).collect();
        let mut data: Vec<f32> = (0..48).map(|i| i as f32).collect();
        feedback(&mut data, &error, &u);
        for j in 0..3 {
            for lane in 0..16 {
                assert_eq!(data[16 * j + lane], (16 * j + lane) as f32 - error[lane] * u[j]);
            }
        }
    }
}
