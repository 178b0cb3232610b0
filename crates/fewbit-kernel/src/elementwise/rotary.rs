//! Rotary positions.

use crate::lanes::{Simd, vectorised};

/// Rotates the first `rotary_dims` of each head by the token's angles, halves paired.
///
/// `x [tokens, heads · head_dim]`; `cos` and `sin [tokens, rotary_dims / 2]`. With `h = rotary_dims / 2`,
/// `(x[i], x[i + h]) ← (x[i] cos[i] − x[i + h] sin[i], x[i + h] cos[i] + x[i] sin[i])`.
/// Source: RoFormer (Su et al. 2021), in the layout of GPT-NeoX.
pub fn rope(x: &mut [f32], heads: usize, head_dim: usize, rotary_dims: usize, cos: &[f32], sin: &[f32]) {
    turn(x, heads, head_dim, rotary_dims, cos, sin, 1.0);
}

/// The gradient of [`rope`]: turns back, since `(x, y) ↦ (x c − y s, y c + x s)` has this map with `−s` as transpose.
pub fn rope_backward(d: &mut [f32], heads: usize, head_dim: usize, rotary_dims: usize, cos: &[f32], sin: &[f32]) {
    turn(d, heads, head_dim, rotary_dims, cos, sin, -1.0);
}

fn turn(x: &mut [f32], heads: usize, head_dim: usize, rotary_dims: usize, cos: &[f32], sin: &[f32], sign: f32) {
    assert!(rotary_dims.is_multiple_of(2) && rotary_dims <= head_dim, "{rotary_dims} of {head_dim} dimensions rotate");
    if rotary_dims == 0 || x.is_empty() {
        return;
    }
    let tokens = x.len() / (heads * head_dim);
    assert_eq!(x.len(), tokens * heads * head_dim, "whole tokens");
    assert_eq!(cos.len(), tokens * rotary_dims / 2, "a row of angles per token");
    assert_eq!(sin.len(), cos.len(), "a sine for each cosine");
    rotate(x, heads, head_dim, rotary_dims / 2, cos, sin, sign);
}

vectorised! {
    fn rotate(
        x: &mut [f32], heads: usize, head_dim: usize, half: usize, cos: &[f32], sin: &[f32], sign: f32,
    ) = rotate_all
}

#[inline(always)]
fn rotate_all<S: Simd>(
    s: S,
    x: &mut [f32],
    heads: usize,
    head_dim: usize,
    half: usize,
    cos: &[f32],
    sin: &[f32],
    sign: f32,
) {
    let sign = s.splat(sign);
    let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
    for (token, (cos, sin)) in x.chunks_exact_mut(heads * head_dim).zip(angles) {
        for head in token.chunks_exact_mut(head_dim) {
            let (low, high) = head[..2 * half].split_at_mut(half);
            let mut at = 0;
            while at < half {
                let end = (at + S::LANES).min(half);
                let (c, n) = (s.load_partial(&cos[at..end]), s.mul(sign, s.load_partial(&sin[at..end])));
                let (a, b) = (s.load_partial(&low[at..end]), s.load_partial(&high[at..end]));
                s.store_partial(&mut low[at..end], s.sub(s.mul(a, c), s.mul(b, n)));
                s.store_partial(&mut high[at..end], s.add(s.mul(b, c), s.mul(a, n)));
                at = end;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;

    #[test]
    fn pairs_turn_and_the_rest_stays() {
        at_every_level(|level| {
            for (heads, head_dim, rotary_dims) in [(1, 2, 2), (3, 8, 8), (2, 80, 20), (2, 64, 64), (1, 34, 34)] {
                let (tokens, half) = (3, rotary_dims / 2);
                let x: Vec<f32> = (0..tokens * heads * head_dim).map(|i| (i as f32 * 0.3).cos()).collect();
                let angle = |t: usize, i: usize| (t as f32 + 0.5) / (i as f32 + 1.0);
                let table = |f: fn(f32) -> f32| -> Vec<f32> {
                    (0..tokens * half).map(|i| f(angle(i / half, i % half))).collect()
                };
                let (cos, sin) = (table(f32::cos), table(f32::sin));
                let mut y = x.clone();
                rope(&mut y, heads, head_dim, rotary_dims, &cos, &sin);
                for i in 0..x.len() {
                    let (t, d) = (i / (heads * head_dim), i % head_dim);
                    let want = if d >= rotary_dims {
                        x[i]
                    } else if d < half {
                        x[i] * cos[t * half + d] - x[i + half] * sin[t * half + d]
                    } else {
                        x[i] * cos[t * half + d - half] + x[i - half] * sin[t * half + d - half]
                    };
                    assert!((y[i] - want).abs() < 1e-6, "{level:?} {head_dim} {i}");
                }
                // The transpose of a rotation is its inverse.
                rope_backward(&mut y, heads, head_dim, rotary_dims, &cos, &sin);
                assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() < 1e-6), "{level:?} {head_dim}");
            }
        });
    }
}
