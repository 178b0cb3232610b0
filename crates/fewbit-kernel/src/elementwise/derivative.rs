//! Derivatives of the activation functions: `d ← d ⊙ f′(x)`, with `x` what went into `f`.

use super::arithmetic::each_pair;
use super::transcendental::{exp_lanes, one_plus_erf_lanes, tanh_lanes};
use crate::lanes::{Simd, vectorised};

vectorised! {
    /// `d ← d ⊙ silu′(x)`, `silu′ = σ(x) (1 + x (1 − σ(x)))`.
    pub fn silu_backward(x: &[f32], d: &mut [f32]) = silu_all
}

vectorised! {
    /// `d ← d ⊙ gelu′(x)`, `gelu′ = Φ(x) + x φ(x)`.
    pub fn gelu_erf_backward(x: &[f32], d: &mut [f32]) = gelu_erf_all
}

vectorised! {
    /// `d ← d ⊙ gelu′(x)` of the approximation by tanh: with `s = σ(2u)`, `gelu′ = s (1 + x (1 − s) 2u′)`.
    pub fn gelu_tanh_backward(x: &[f32], d: &mut [f32]) = gelu_tanh_all
}

vectorised! {
    /// `d ← d` where `x > 0`, else 0.
    pub fn relu_backward(x: &[f32], d: &mut [f32]) = relu_all
}

vectorised! {
    /// `d ← d ⊙ (1 − tanh²(x / cap))`.
    pub fn softcap_backward(x: &[f32], d: &mut [f32], cap: f32) = softcap_all
}

vectorised! {
    /// Gradients through `y = (u + 1) g σ(alpha g)` with `g = min(gate, limit)` and `u = clamp(up, ±limit)`, given `d`,
    /// that of `y`: `gate` and `up` become theirs.
    pub fn clamped_glu_backward(gate: &mut [f32], up: &mut [f32], d: &[f32], alpha: f32, limit: f32) = clamped_glu_all
}

#[inline(always)]
fn clamped_glu_all<S: Simd>(s: S, gate: &mut [f32], up: &mut [f32], d: &[f32], alpha: f32, limit: f32) {
    assert!(gate.len() == up.len() && up.len() == d.len(), "three sides of one shape");
    let (zero, one, alpha, minus_alpha) = (s.splat(0.0), s.splat(1.0), s.splat(alpha), s.splat(-alpha));
    let (limit, minus_limit) = (s.splat(limit), s.splat(-limit));
    let sides = gate.chunks_mut(S::LANES).zip(up.chunks_mut(S::LANES)).zip(d.chunks(S::LANES));
    for ((gate, up), d) in sides {
        let (raw_gate, raw_up, d) = (s.load_partial(gate), s.load_partial(up), s.load_partial(d));
        let (g, u) = (s.min(limit, raw_gate), s.max(minus_limit, s.min(limit, raw_up)));
        let sigmoid = s.div(one, s.add(one, exp_lanes(s, s.mul(minus_alpha, g))));
        let slope = s.mul(sigmoid, s.mul_add(s.mul(alpha, g), s.sub(one, sigmoid), one));
        let d_gate = s.mul(d, s.mul(s.add(u, one), slope));
        let d_up = s.mul(d, s.mul(g, sigmoid));
        s.store_partial(gate, s.select(s.less(raw_gate, limit), d_gate, zero));
        s.store_partial(up, s.select(s.less(s.abs(raw_up), limit), d_up, zero));
    }
}

#[inline(always)]
fn silu_all<S: Simd>(s: S, x: &[f32], d: &mut [f32]) {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    each_pair(
        s,
        d,
        x,
        #[inline(always)]
        |d, x| {
            let sigmoid = s.div(one, s.add(one, exp_lanes(s, s.sub(zero, x))));
            s.mul(d, s.mul(sigmoid, s.mul_add(x, s.sub(one, sigmoid), one)))
        },
    );
}

#[inline(always)]
fn gelu_erf_all<S: Simd>(s: S, x: &[f32], d: &mut [f32]) {
    let (half, root) = (s.splat(0.5), s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let (minus_half, density) = (s.splat(-0.5), s.splat(0.398_942_3));
    each_pair(
        s,
        d,
        x,
        #[inline(always)]
        |d, x| {
            let below = s.mul(half, one_plus_erf_lanes(s, s.mul(x, root)));
            let here = s.mul(density, exp_lanes(s, s.mul(minus_half, s.mul(x, x))));
            s.mul(d, s.mul_add(x, here, below))
        },
    );
}

#[inline(always)]
fn gelu_tanh_all<S: Simd>(s: S, x: &[f32], d: &mut [f32]) {
    let (one, cubic, three_cubic) = (s.splat(1.0), s.splat(0.044_715), s.splat(0.134_145));
    let (two_roots, minus_two_roots) = (s.splat(1.595_769_2), s.splat(-1.595_769_2));
    each_pair(
        s,
        d,
        x,
        #[inline(always)]
        |d, x| {
            let square = s.mul(x, x);
            let inner = s.mul_add(s.mul(cubic, square), x, x);
            let sigmoid = s.div(one, s.add(one, exp_lanes(s, s.mul(minus_two_roots, inner))));
            let slope = s.mul(two_roots, s.mul_add(three_cubic, square, one));
            // x · slope is infinite where 1 − σ is zero only beyond |x| of 1e12.
            let rise = s.mul(s.mul(x, s.sub(one, sigmoid)), slope);
            s.mul(d, s.mul_add(sigmoid, rise, sigmoid))
        },
    );
}

#[inline(always)]
fn relu_all<S: Simd>(s: S, x: &[f32], d: &mut [f32]) {
    let zero = s.splat(0.0);
    each_pair(
        s,
        d,
        x,
        #[inline(always)]
        |d, x| s.select(s.less(zero, x), d, zero),
    );
}

#[inline(always)]
fn softcap_all<S: Simd>(s: S, x: &[f32], d: &mut [f32], cap: f32) {
    let (one, cap) = (s.splat(1.0), s.splat(cap));
    each_pair(
        s,
        d,
        x,
        #[inline(always)]
        |d, x| {
            let t = tanh_lanes(s, s.div(x, cap));
            s.mul(d, s.sub(one, s.mul(t, t)))
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;

    /// Largest error over a grid of odd length, for `d = 2`.
    fn worst(run: impl Fn(&[f32], &mut [f32]), want: impl Fn(f64) -> f64) -> f64 {
        let xs: Vec<f32> = (-12_345..12_346).map(|i| i as f32 / 1000.0).collect();
        let mut got = vec![2.0; xs.len()];
        run(&xs, &mut got);
        let error = |(&x, &y): (&f32, &f32)| (f64::from(y) - 2.0 * want(f64::from(x))).abs();
        xs.iter().zip(&got).map(error).fold(0.0, f64::max)
    }

    /// The slope of `f` by central differences: good to 1e-9 for these functions.
    fn slope(f: impl Fn(f64) -> f64) -> impl Fn(f64) -> f64 {
        move |x| (f(x + 1e-5) - f(x - 1e-5)) / 2e-5
    }

    /// Φ by Simpson's rule on the density.
    fn normal(x: f64) -> f64 {
        let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let h = x / 400.0;
        let inner: f64 = (1..400).map(|i| if i % 2 == 1 { 4.0 } else { 2.0 } * density(f64::from(i) * h)).sum();
        0.5 + h / 3.0 * (density(0.0) + inner + density(x))
    }

    #[test]
    fn derivatives_are_slopes() {
        at_every_level(|level| {
            let silu = worst(silu_backward, slope(|x| x / (1.0 + (-x).exp())));
            assert!(silu < 2e-6, "{level:?}: silu {silu}");
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = slope(|x| 0.5 * x * (1.0 + (root * (x + 0.044_715 * x * x * x)).tanh()));
            let tanh = worst(gelu_tanh_backward, tanh);
            assert!(tanh < 4e-6, "{level:?}: gelu_tanh {tanh}");
            let cap = worst(|x, d| softcap_backward(x, d, 5.0), slope(|x| 5.0 * (x / 5.0).tanh()));
            assert!(cap < 2e-6, "{level:?}: softcap {cap}");
            assert_eq!(worst(relu_backward, |x| f64::from(u8::from(x > 0.0))), 0.0, "{level:?}");
        });
    }

    #[test]
    fn a_clamped_glu_has_slopes_on_both_sides() {
        let value = |gate: f64, up: f64| {
            let g = gate.min(7.0);
            (up.clamp(-7.0, 7.0) + 1.0) * g / (1.0 + (-1.702 * g).exp())
        };
        let gates: Vec<f32> = (-450..451).map(|i| i as f32 / 50.0 + 0.003).collect();
        at_every_level(|level| {
            for up in [-9.0f32, -3.0, 0.5, 6.9, 8.0] {
                let (mut d_gate, mut d_up) = (gates.clone(), vec![up; gates.len()]);
                clamped_glu_backward(&mut d_gate, &mut d_up, &vec![2.0; gates.len()], 1.702, 7.0);
                for (i, gate) in gates.iter().enumerate() {
                    let (gate, up) = (f64::from(*gate), f64::from(up));
                    let slopes = [slope(|g| value(g, up))(gate), slope(|u| value(gate, u))(up)];
                    for (got, want) in [d_gate[i], d_up[i]].into_iter().zip(slopes) {
                        assert!((f64::from(got) - 2.0 * want).abs() < 2e-5, "{level:?}: {gate} {up}: {got} {want}");
                    }
                }
            }
        });
    }

    #[test]
    fn gelu_follows_the_normal_distribution() {
        let xs: Vec<f32> = (-400..401).map(|i| i as f32 / 50.0).collect();
        at_every_level(|level| {
            let mut d = vec![1.0; xs.len()];
            gelu_erf_backward(&xs, &mut d);
            for (x, got) in xs.iter().zip(&d) {
                let x = f64::from(*x);
                let want = normal(x) + x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                assert!((f64::from(*got) - want).abs() < 1e-6, "{level:?}: {x} {got} {want}");
            }
        });
    }
}
