use fewbit_format::Dtype;
use proptest::prelude::*;

use super::*;

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn near(got: &[f32], want: &[f64], magnitude: &[f64]) -> Result<(), TestCaseError> {
    for ((g, w), scale) in got.iter().zip(want).zip(magnitude) {
        prop_assert!((f64::from(*g) - w).abs() <= 1e-5 * scale + 1e-30, "{g} for {w}");
    }
    Ok(())
}

/// The sums in f64, and the sums of magnitudes, against which a rounding error is judged.
fn reference(
    m: usize,
    n: usize,
    k: usize,
    x: impl Fn(usize, usize) -> f32,
    w: impl Fn(usize, usize) -> f32,
) -> [Vec<f64>; 2] {
    let terms = |i: usize, j: usize| (0..k).map(|l| f64::from(x(i, l)) * f64::from(w(j, l))).collect::<Vec<_>>();
    let at = |t: usize| terms(t / n, t % n);
    [
        (0..m * n).map(|t| at(t).iter().sum()).collect(),
        (0..m * n).map(|t| at(t).iter().map(|v| v.abs()).sum()).collect(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn nt_is_the_sum(m in 1usize..40, n in 1usize..80, k in 0usize..600, kind in 0usize..3, pad in 0usize..3,
                     accumulate: bool, seed: u64) {
        let (ldx, ldy) = (k + pad, n + pad);
        let x = numbers(m * ldx, seed);
        let dtype = [Dtype::F32, Dtype::BF16, Dtype::F16][kind];
        let bytes = dtype.narrow(&numbers(n * k, seed ^ 1)).unwrap();
        let mut w = vec![0.0; n * k];
        dtype.widen(&bytes, &mut w).unwrap();
        let shifted: Vec<u8> = std::iter::once(0).chain(bytes.iter().copied()).collect();
        let weights = [Weights::F32(&w), Weights::Bf16(&shifted[1..]), Weights::F16(&shifted[1..])][kind];
        let before = numbers(m * ldy, seed ^ 2);
        let [mut want, mut magnitude] = reference(m, n, k, |i, l| x[i * ldx + l], |j, l| w[j * k + l]);
        if accumulate {
            for i in 0..m * n {
                let y = f64::from(before[i / n * ldy + i % n]);
                want[i] += y;
                magnitude[i] += y.abs();
            }
        }
        let (one, three) = (Team::new(1), Team::new(3));
        let mut fma: Option<Vec<f32>> = None;
        for level in Level::of_machine() {
            let run = |team: &Team, rows: std::ops::Range<usize>| {
                let mut y = before[rows.start * ldy..].to_vec();
                product_nt_at(level, team, rows.len(), n, k, &x[rows.start * ldx..], ldx, weights, &mut y, ldy, accumulate);
                y
            };
            let y = run(&one, 0..m);
            let compact: Vec<f32> = (0..m * n).map(|i| y[i / n * ldy + i % n]).collect();
            near(&compact, &want, &magnitude)?;
            prop_assert!((0..m).all(|i| y[i * ldy + n..(i + 1) * ldy] == before[i * ldy + n..(i + 1) * ldy]));
            // The same bits with more threads, and for a row alone or in a smaller batch.
            prop_assert!(y == run(&three, 0..m));
            for rows in [m - 1..m, m / 2..m] {
                prop_assert_eq!(&run(&three, rows.clone())[..rows.len() * ldy], &y[rows.start * ldy..]);
            }
            if level > Level::Scalar {
                prop_assert!(fma.get_or_insert(y.clone()) == &y);
            }
        }
    }

    #[test]
    fn nn_is_the_sum(m in 1usize..40, n in 1usize..70, k in 0usize..300, pad in 0usize..3, minus: bool, seed: u64) {
        let (lda, ldb, ldc) = (k + pad, n + pad, n + 2 * pad);
        let (a, b, before) = (numbers(m * lda, seed), numbers(k * ldb, seed ^ 1), numbers(m * ldc, seed ^ 2));
        let alpha = if minus { -1.0 } else { 1.0 };
        let [mut want, mut magnitude] = reference(m, n, k, |i, l| alpha * a[i * lda + l], |j, l| b[l * ldb + j]);
        for i in 0..m * n {
            want[i] += f64::from(before[i / n * ldc + i % n]);
            magnitude[i] += 1.0;
        }
        let (one, three) = (Team::new(1), Team::new(3));
        for level in Level::of_machine() {
            let mut c = before.clone();
            product_nn_at(level, &one, m, n, k, alpha, &a, lda, &b, ldb, &mut c, ldc);
            let compact: Vec<f32> = (0..m * n).map(|i| c[i / n * ldc + i % n]).collect();
            near(&compact, &want, &magnitude)?;
            let mut again = before.clone();
            product_nn_at(level, &three, m, n, k, alpha, &a, lda, &b, ldb, &mut again, ldc);
            prop_assert!(c == again);
        }
    }

    #[test]
    fn tn_is_the_sum(m in 1usize..40, n in 1usize..70, k in 0usize..1300, pad in 0usize..3, seed: u64) {
        let (lda, ldb, ldc) = (m + pad, n + pad, n + 2 * pad);
        let (a, b, before) = (numbers(k * lda, seed), numbers(k * ldb, seed ^ 1), numbers(m * ldc, seed ^ 2));
        let [mut want, mut magnitude] = reference(m, n, k, |i, l| a[l * lda + i], |j, l| b[l * ldb + j]);
        for i in 0..m * n {
            want[i] += f64::from(before[i / n * ldc + i % n]);
            magnitude[i] += 1.0;
        }
        let (one, three) = (Team::new(1), Team::new(3));
        for level in Level::of_machine() {
            let [c, again] = [&one, &three].map(|team| {
                let mut c = before.clone();
                product_tn_at(level, team, m, n, k, &a, lda, &b, ldb, &mut c, ldc);
                c
            });
            let compact: Vec<f32> = (0..m * n).map(|i| c[i / n * ldc + i % n]).collect();
            near(&compact, &want, &magnitude)?;
            prop_assert!(c == again);
        }
    }

    #[test]
    fn gram_is_the_sum(n in 1usize..90, tokens in 0usize..600, pad in 0usize..3, seed: u64) {
        let ldx = n + pad;
        let x = numbers(tokens * ldx, seed);
        let [want, magnitude] = reference(n, n, tokens, |i, t| x[t * ldx + i], |j, t| x[t * ldx + j]);
        let (one, three) = (Team::new(1), Team::new(3));
        for level in Level::of_machine() {
            let [h, again] = [&one, &three].map(|team| {
                let mut h = vec![0.0; n * n];
                gram_add_at(level, team, n, tokens, &x, ldx, &mut h);
                gram_mirror(team, n, &mut h);
                h
            });
            near(&h, &want, &magnitude)?;
            prop_assert!(h == again);
            prop_assert!((0..n * n).all(|i| h[i] == h[i % n * n + i / n]));
        }
    }
}

#[test]
fn more_rows_than_one_block() {
    let (m, n, k) = (1100, 35, 300);
    let (x, w) = (numbers(m * k, 1), numbers(n * k, 2));
    let team = Team::new(2);
    for level in Level::of_machine() {
        let mut y = vec![0.0; m * n];
        product_nt_at(level, &team, m, n, k, &x, k, Weights::F32(&w), &mut y, n, false);
        for i in [0, 515, 516, 1099] {
            let mut row = vec![0.0; n];
            product_nt_at(level, &team, 1, n, k, &x[i * k..], k, Weights::F32(&w), &mut row, n, false);
            assert_eq!(row, y[i * n..(i + 1) * n]);
        }
    }
}
