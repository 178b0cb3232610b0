//! Activation functions, in place.

use super::arithmetic::{each, each_pair};
use super::transcendental::{exp_lanes, one_plus_erf_lanes, tanh_lanes};
use crate::lanes::{Simd, vectorised};

vectorised! {
    /// `x ← x / (1 + e⁻ˣ)`, also called swish.
    pub fn silu(x: &mut [f32]) = silu_all
}

vectorised! {
    /// `x ← x/2 · (1 + erf(x / √2))`: the exact Gaussian error linear unit.
    pub fn gelu_erf(x: &mut [f32]) = gelu_erf_all
}

vectorised! {
    /// `x ← x/2 · (1 + tanh u)` with `u = √(2/π) (x + 0.044715 x³)`: its approximation by tanh.
    ///
    /// Computed as the equal `x / (1 + e⁻²ᵘ)`, which does not cancel for negative `x`.
    pub fn gelu_tanh(x: &mut [f32]) = gelu_tanh_all
}

vectorised! {
    /// `x ← max(x, 0)`.
    pub fn relu(x: &mut [f32]) = relu_all
}

vectorised! {
    /// `x ← cap · tanh(x / cap)`.
    pub fn softcap(x: &mut [f32], cap: f32) = softcap_all
}

vectorised! {
    /// `x ← 1 / (1 + e⁻ˣ)`.
    pub fn sigmoid(x: &mut [f32]) = sigmoid_all
}

vectorised! {
    /// `gate ← (clamp(up, ±limit) + 1) · g / (1 + e^(−alpha·g))` with `g = min(gate, limit)`: the gate of gpt-oss.
    pub fn clamped_glu(gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) = clamped_glu_all
}

#[inline(always)]
fn sigmoid_all<S: Simd>(s: S, x: &mut [f32]) {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    each(
        s,
        x,
        #[inline(always)]
        |x| s.div(one, s.add(one, exp_lanes(s, s.sub(zero, x)))),
    );
}

#[inline(always)]
fn clamped_glu_all<S: Simd>(s: S, gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
    let (one, minus_alpha) = (s.splat(1.0), s.splat(-alpha));
    let (limit, minus_limit) = (s.splat(limit), s.splat(-limit));
    each_pair(
        s,
        gate,
        up,
        #[inline(always)]
        |gate, up| {
            // Both take their second operand at a NaN.
            let (g, up) = (s.min(limit, gate), s.max(minus_limit, s.min(limit, up)));
            s.div(s.mul(s.add(up, one), g), s.add(one, exp_lanes(s, s.mul(minus_alpha, g))))
        },
    );
}

#[inline(always)]
fn silu_all<S: Simd>(s: S, x: &mut [f32]) {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    each(
        s,
        x,
        #[inline(always)]
        |x| s.div(x, s.add(one, exp_lanes(s, s.sub(zero, x)))),
    );
}

#[inline(always)]
fn gelu_erf_all<S: Simd>(s: S, x: &mut [f32]) {
    let (half, root) = (s.splat(0.5), s.splat(std::f32::consts::FRAC_1_SQRT_2));
    each(
        s,
        x,
        #[inline(always)]
        |x| s.mul(s.mul(half, x), one_plus_erf_lanes(s, s.mul(x, root))),
    );
}

#[inline(always)]
fn gelu_tanh_all<S: Simd>(s: S, x: &mut [f32]) {
    let (one, cubic) = (s.splat(1.0), s.splat(0.044_715));
    let minus_two_roots = s.splat(-1.595_769_2);
    each(
        s,
        x,
        #[inline(always)]
        |x| {
            let inner = s.mul_add(s.mul(cubic, s.mul(x, x)), x, x);
            s.div(x, s.add(one, exp_lanes(s, s.mul(minus_two_roots, inner))))
        },
    );
}

#[inline(always)]
fn relu_all<S: Simd>(s: S, x: &mut [f32]) {
    let zero = s.splat(0.0);
    each(
        s,
        x,
        #[inline(always)]
        |x| s.max(zero, x),
    );
}

#[inline(always)]
fn softcap_all<S: Simd>(s: S, x: &mut [f32], cap: f32) {
    let cap = s.splat(cap);
    each(
        s,
        x,
        #[inline(always)]
        |x| softcap_lanes(s, x, cap),
    );
}

/// `cap · tanh(x / cap)`.
#[inline(always)]
pub(crate) fn softcap_lanes<S: Simd>(s: S, x: S::V, cap: S::V) -> S::V {
    s.mul(cap, tanh_lanes(s, s.div(x, cap)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;

    /// Largest error relative to `1e-3 + |want|`, over a grid of odd length.
    fn worst(run: impl Fn(&mut [f32]), want: impl Fn(f64) -> f64) -> f64 {
        let xs: Vec<f32> = (-12_345..12_346).map(|i| i as f32 / 1000.0).collect();
        let mut got = xs.clone();
        run(&mut got);
        let error = |(&x, &y): (&f32, &f32)| {
            let want = want(f64::from(x));
            (f64::from(y) - want).abs() / (1e-3 + want.abs())
        };
        xs.iter().zip(&got).map(error).fold(0.0, f64::max)
    }

    #[test]
    fn activations_follow_their_formulas() {
        at_every_level(|level| {
            let silu = worst(silu, |x| x / (1.0 + (-x).exp()));
            assert!(silu < 4e-7, "{level:?}: silu {silu}");
            let tanh = worst(gelu_tanh, |x| {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
            });
            assert!(tanh < 4e-6, "{level:?}: gelu_tanh {tanh}");
            assert_eq!(worst(relu, |x| x.max(0.0)), 0.0, "{level:?}");
            let sigmoid = worst(sigmoid, |x| 1.0 / (1.0 + (-x).exp()));
            assert!(sigmoid < 4e-7, "{level:?}: sigmoid {sigmoid}");
            for up in [-9.0, -0.3, 2.5, 11.0] {
                let run = |x: &mut [f32]| clamped_glu(x, &vec![up; x.len()], 1.702, 7.0);
                let glu = worst(run, |x| {
                    let g = x.min(7.0);
                    (f64::from(up).clamp(-7.0, 7.0) + 1.0) * g / (1.0 + (-1.702 * g).exp())
                });
                assert!(glu < 4e-6, "{level:?}: clamped_glu {glu} at {up}");
            }
            let cap = worst(|x| softcap(x, 5.0), |x| 5.0 * (x / 5.0).tanh());
            assert!(cap < 4e-7, "{level:?}: softcap {cap}");
        });
    }

    #[test]
    fn gelu_matches_the_tabulated_normal_distribution() {
        // Φ(x) to 16 digits.
        let table = [(1.0, 0.841_344_746_068_542_9), (-2.0, 0.022_750_131_948_179_2), (0.5, 0.691_462_461_274_013_1)];
        at_every_level(|level| {
            for (x, phi) in table {
                let mut y = [x as f32];
                gelu_erf(&mut y);
                let error = (f64::from(y[0]) - x * phi).abs() / (x * phi).abs();
                assert!(error < 6e-7, "{level:?}: {x} {error}");
            }
        });
    }
}
