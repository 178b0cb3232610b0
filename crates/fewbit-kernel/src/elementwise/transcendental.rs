//! Exponential, hyperbolic tangent and error function of vectors.

use super::arithmetic::each;
use crate::lanes::{Simd, vectorised};

vectorised! {
    /// `x ← eˣ`, within 2 units in the last place; 0 instead of subnormal results, ∞ beyond f32.
    pub fn exp(x: &mut [f32]) = exp_all
}

#[inline(always)]
fn exp_all<S: Simd>(s: S, x: &mut [f32]) {
    each(
        s,
        x,
        #[inline(always)]
        |v| exp_lanes(s, v),
    );
}

/// `c₀ xᵈ + … + c_d` by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::V, coefficients: [f32; N]) -> S::V {
    let mut sum = s.splat(coefficients[0]);
    for c in &coefficients[1..] {
        sum = s.mul_add(sum, x, s.splat(*c));
    }
    sum
}

/// `eˣ = 2ⁿ eʳ` with `n = round(x / ln 2)` and `r = x − n ln 2`, ln 2 in two parts of which the first times n is exact.
#[inline(always)]
pub(crate) fn exp_lanes<S: Simd>(s: S, x: S::V) -> S::V {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 · 2²³ rounds to an integer.
    const ROUNDER: f32 = 12582912.0;
    // Subnormal results would be slow to make and to use.
    const LEAST: f32 = -87.33;
    // Bounds first, so that a NaN in `x` survives.
    let bounded = s.min(s.splat(89.0), s.max(s.splat(LEAST), x));
    let rounder = s.splat(ROUNDER);
    let n = s.sub(s.mul_add(bounded, s.splat(std::f32::consts::LOG2_E), rounder), rounder);
    let r = s.mul_add(n, s.splat(-LN2_HIGH), bounded);
    let r = s.mul_add(n, s.splat(-LN2_LOW), r);
    let p =
        polynomial(s, r, [1.378_059_4e-3, 8.373_124_5e-3, 4.166_953_6e-2, 1.666_647_2e-1, 4.999_998_5e-1, 1.0, 1.0]);
    s.select(s.less(x, s.splat(LEAST)), s.splat(0.0), s.scale_by_power(p, n))
}

/// `tanh x`: an odd polynomial (Cephes) near 0, `1 − 2 / (e²ˣ + 1)` beyond.
#[inline(always)]
pub(crate) fn tanh_lanes<S: Simd>(s: S, x: S::V) -> S::V {
    let t = s.abs(x);
    let z = s.mul(x, x);
    let p = polynomial(s, z, [-5.704_988_7e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1]);
    let near = s.mul_add(s.mul(p, z), x, x);
    let e = exp_lanes(s, s.add(t, t));
    let one = s.splat(1.0);
    let far = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    s.select(s.less(t, s.splat(0.625)), near, s.copysign(far, x))
}

/// `1 + erf a`, to 2e-7 and without cancellation in the lower tail; polynomials by N. Juffa.
#[inline(always)]
pub(crate) fn one_plus_erf_lanes<S: Simd>(s: S, a: S::V) -> S::V {
    let t = s.abs(a);
    let z = s.mul(a, a);
    let near = polynomial(
        s,
        z,
        [-5.967_617e-4, 4.991_194_2e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_3e-1, 1.283_791_7e-1],
    );
    let near = s.mul_add(near, a, a);
    // Beyond 475 / 512, erfc t = exp of a polynomial.
    let high = s.mul_add(s.splat(-1.728_534_7e-5), t, s.splat(3.831_971_3e-4));
    let low = s.mul_add(s.splat(-3.883_964_4e-3), t, s.splat(2.425_462_2e-2));
    let r = s.mul_add(high, z, low);
    let r = s.mul_add(r, t, s.splat(-1.067_778_8e-1));
    let r = s.mul_add(r, t, s.splat(-6.348_468_7e-1));
    let r = s.mul_add(r, t, s.splat(-1.287_175_1e-1));
    let tail = exp_lanes(s, s.sub(s.mul(r, t), t));
    let far = s.select(s.less(a, s.splat(0.0)), tail, s.sub(s.splat(2.0), tail));
    s.select(s.less(t, s.splat(0.927_734_4)), s.add(s.splat(1.0), near), far)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;

    vectorised! {
        fn tanh(x: &mut [f32]) = tanh_all
    }
    vectorised! {
        fn one_plus_erf(x: &mut [f32]) = one_plus_erf_all
    }

    #[inline(always)]
    fn tanh_all<S: Simd>(s: S, x: &mut [f32]) {
        each(
            s,
            x,
            #[inline(always)]
            |v| tanh_lanes(s, v),
        );
    }

    #[inline(always)]
    fn one_plus_erf_all<S: Simd>(s: S, x: &mut [f32]) {
        each(
            s,
            x,
            #[inline(always)]
            |v| one_plus_erf_lanes(s, v),
        );
    }

    /// Distance to `want` in units of the last place of f32.
    fn ulps(got: f32, want: f64) -> f64 {
        let nearest = (want as f32).abs().max(f32::MIN_POSITIVE);
        let unit = f64::from(nearest.next_up()) - f64::from(nearest);
        (f64::from(got) - want).abs() / unit
    }

    fn worst(xs: &[f32], run: fn(&mut [f32]), want: fn(f64) -> f64) -> f64 {
        let mut got = xs.to_vec();
        run(&mut got);
        xs.iter().zip(&got).map(|(&x, &y)| ulps(y, want(f64::from(x)))).fold(0.0, f64::max)
    }

    /// `erfc x` for `x ≥ 0`: the Taylor series of erf below 2.5, the continued fraction beyond.
    fn erfc(x: f64) -> f64 {
        if x < 2.5 {
            let (mut term, mut sum) = (x, x);
            for n in 1..120 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI
        } else {
            let fraction = (1..=200).rev().fold(x, |f, k| x + f64::from(k) * 0.5 / f);
            (-x * x).exp() / fraction / std::f64::consts::PI.sqrt()
        }
    }

    #[test]
    fn exp_is_within_two_ulps() {
        at_every_level(|level| {
            let xs: Vec<f32> = (-87_300..88_700).map(|i| i as f32 / 1000.0 + 1.7e-4).collect();
            let worst = worst(&xs, exp, f64::exp);
            assert!(worst < 2.0, "{level:?}: {worst}");
            let mut ends = [f32::NEG_INFINITY, -1e30, -200.0, -100.0, 0.0, -0.0, 88.9, 1e30, f32::INFINITY, f32::NAN];
            exp(&mut ends);
            assert_eq!(ends[..4], [0.0; 4]);
            assert_eq!(ends[4..9], [1.0, 1.0, f32::INFINITY, f32::INFINITY, f32::INFINITY]);
            assert!(ends[9].is_nan());
        });
    }

    #[test]
    fn tanh_and_erf_are_accurate() {
        at_every_level(|level| {
            let xs: Vec<f32> = (-110_000..110_000).map(|i| i as f32 / 10_000.0 + 3e-6).collect();
            let tanh = worst(&xs, tanh, f64::tanh);
            assert!(tanh < 4.0, "{level:?}: {tanh}");
            let xs: Vec<f32> = (-30_000..30_000).map(|i| i as f32 / 10_000.0).collect();
            let mut got = xs.clone();
            one_plus_erf(&mut got);
            for (&x, &y) in xs.iter().zip(&got) {
                let x = f64::from(x);
                let want = if x < 0.0 { erfc(-x) } else { 2.0 - erfc(x) };
                let error = (f64::from(y) - want).abs();
                assert!(error < 2e-7 && error < 1e-4 * want, "{level:?}: {x} {error}");
            }
        });
    }
}
