use fewbit_kernel::elementwise::{argmax, exp, log_softmax_stats};

/// What the logits of one position say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct RowScore {
    /// Nats of the token that came.
    pub(crate) nll: f64,
    /// KL divergence from the original's distribution, in nats.
    pub(crate) kl: f64,
    /// Whether the likeliest token is the original's.
    pub(crate) agrees: bool,
}

/// `−ln p(target)` of one row of logits.
pub(crate) fn nll(logits: &[f32], target: u32) -> f64 {
    log_softmax_stats(logits).1 - f64::from(logits[target as usize])
}

/// Whether `target` is the likeliest token of a row.
pub(crate) fn is_greatest(logits: &[f32], target: u32) -> bool {
    argmax(logits) == target as usize
}

/// One row of a model beside the original's.
pub(crate) fn compare(original: &[f32], logits: &[f32], target: u32) -> RowScore {
    let (_, original_sum) = log_softmax_stats(original);
    let (_, sum) = log_softmax_stats(logits);
    RowScore {
        nll: sum - f64::from(logits[target as usize]),
        kl: divergence(original, logits, original_sum, sum),
        agrees: argmax(original) == argmax(logits),
    }
}

/// `KL(P ‖ Q) = Σ p (ln p − ln q)` of two rows of logits with their `ln Σ eˣ`, summed in f64.
fn divergence(p: &[f32], q: &[f32], p_sum: f64, q_sum: f64) -> f64 {
    const CHUNK: usize = 512;
    const LANES: usize = 8;
    let mut probability = [0f32; CHUNK];
    let (mut mass, mut difference) = ([0f64; LANES], [0f64; LANES]);
    for (p, q) in p.chunks(CHUNK).zip(q.chunks(CHUNK)) {
        let probability = &mut probability[..p.len()];
        for (e, p) in probability.iter_mut().zip(p) {
            *e = (f64::from(*p) - p_sum) as f32;
        }
        exp(probability);
        let rows = probability.chunks(LANES).zip(p.chunks(LANES)).zip(q.chunks(LANES));
        for ((e, p), q) in rows {
            for i in 0..e.len() {
                let e = f64::from(e[i]);
                mass[i] += e;
                difference[i] += e * (f64::from(p[i]) - f64::from(q[i]));
            }
        }
    }
    let mean = difference.iter().sum::<f64>() / mass.iter().sum::<f64>();
    // Rounding alone can make it negative.
    (mean - (p_sum - q_sum)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: usize, phase: f32, noise: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 1.3).sin() * 9.0 + noise * (i as f32 * 7.7 + phase).cos()).collect()
    }

    fn exact(p: &[f32], q: &[f32]) -> f64 {
        let sum = |x: &[f32]| x.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
        let (ps, qs) = (sum(p), sum(q));
        let terms = p.iter().zip(q).map(|(p, q)| {
            let (p, q) = (f64::from(*p) - ps, f64::from(*q) - qs);
            p.exp() * (p - q)
        });
        terms.sum()
    }

    #[test]
    fn divergence_agrees_with_f64() {
        for n in [1, 7, 512, 513, 2048, 49_152] {
            for noise in [0.0, 1e-3, 0.1, 3.0] {
                let (p, q) = (row(n, 0.0, 0.0), row(n, 1.0, noise));
                let (found, expected) = (compare(&p, &q, 0).kl, exact(&p, &q));
                assert!((found - expected).abs() < 3e-7 + 1e-6 * expected, "{n} {noise}: {found} {expected}");
                assert_eq!(compare(&p, &p, 0).kl, 0.0);
            }
        }
    }

    #[test]
    fn a_row_is_shift_invariant() {
        let (p, q) = (row(300, 0.0, 0.0), row(300, 1.0, 0.5));
        let shifted: Vec<f32> = p.iter().map(|v| v - 16.0).collect();
        let (a, b) = (compare(&p, &q, 5), compare(&shifted, &q, 5));
        assert!((a.kl - b.kl).abs() < 1e-5 && a.agrees == b.agrees && a.nll == b.nll);
    }
}
