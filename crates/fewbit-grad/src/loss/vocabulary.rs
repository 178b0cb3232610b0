use fewbit_kernel::{Team, elementwise};

/// Numbers of one task.
pub(super) const PIECE: usize = 1 << 14;

/// `−Σᵢ wᵢ ln softmax(logitsᵢ)[targetᵢ]`; `logits [tokens, vocabulary]` become its gradient `wᵢ (softmax − one-hot)`.
///
/// # Panics
/// If there is not a target and a weight for each row, or a target is no entry of the vocabulary.
pub fn cross_entropy(team: &Team, logits: &mut [f32], vocabulary: usize, targets: &[u32], weights: &[f32]) -> f64 {
    assert_eq!(logits.len(), targets.len() * vocabulary, "a target for each row");
    by_row(team, logits, vocabulary, weights, |i, row, weight| {
        if weight == 0.0 {
            row.fill(0.0);
            return 0.0;
        }
        let target = targets[i] as usize;
        let (_, log_sum) = elementwise::log_softmax_stats(row);
        let loss = log_sum - f64::from(row[target]);
        elementwise::softmax_in_place(row);
        row[target] -= 1.0;
        elementwise::scale(row, weight);
        f64::from(weight) * loss
    })
}

/// `Σᵢ wᵢ KL(pᵢ ‖ softmax(logitsᵢ))` for `log_p`, the logarithms of `p`; `logits` become its gradient
/// `wᵢ (softmax − pᵢ)`. Both are `[tokens, vocabulary]`.
///
/// # Panics
/// If the shapes differ.
pub fn divergence(team: &Team, logits: &mut [f32], vocabulary: usize, log_p: &[f32], weights: &[f32]) -> f64 {
    assert_eq!(logits.len(), log_p.len(), "a reference for each row");
    by_row(team, logits, vocabulary, weights, |i, row, weight| {
        if weight == 0.0 {
            row.fill(0.0);
            return 0.0;
        }
        let log_p = &log_p[i * vocabulary..(i + 1) * vocabulary];
        let (_, log_sum) = elementwise::log_softmax_stats(row);
        let mut p = log_p.to_vec();
        elementwise::exp(&mut p);
        let terms = p.iter().zip(log_p).zip(&*row);
        // What is impossible adds nothing, whatever its logarithm.
        let sum = terms
            .filter(|((p, _), _)| **p > 0.0)
            .map(|((p, log_p), logit)| f64::from(*p) * (f64::from(*log_p) - (f64::from(*logit) - log_sum)));
        let loss: f64 = sum.sum();
        elementwise::softmax_in_place(row);
        row.iter_mut().zip(&p).for_each(|(q, p)| *q = weight * (*q - p));
        f64::from(weight) * loss
    })
}

/// Each row `x` of `[tokens, vocabulary]` becomes `ln softmax(x)`.
///
/// # Panics
/// If the rows are not whole.
pub fn log_softmax(team: &Team, rows: &mut [f32], vocabulary: usize) {
    team.for_pieces(rows, vocabulary, &|_, row| {
        let (_, log_sum) = elementwise::log_softmax_stats(row);
        row.iter_mut().for_each(|x| *x -= log_sum as f32);
    });
}

/// Calls `task(row number, row, weight)` on each row, and adds what it returns in order.
fn by_row(
    team: &Team,
    logits: &mut [f32],
    vocabulary: usize,
    weights: &[f32],
    task: impl Fn(usize, &mut [f32], f32) -> f64 + Sync,
) -> f64 {
    assert_eq!(logits.len(), weights.len() * vocabulary, "a weight for each row");
    let piece = (PIECE / vocabulary.max(1)).max(1);
    let mut losses = vec![0.0; weights.len()];
    team.for_paired_pieces(logits, piece * vocabulary, &mut losses, piece, |i, rows, losses| {
        for (k, (row, loss)) in rows.chunks_exact_mut(vocabulary).zip(losses).enumerate() {
            let row_number = i * piece + k;
            *loss = task(row_number, row, weights[row_number]);
        }
    });
    losses.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCABULARY: usize = 37;
    const TOKENS: usize = 5;

    fn logits() -> Vec<f32> {
        (0..TOKENS * VOCABULARY).map(|i| (i as f32 * 1.7).sin() * 4.0).collect()
    }

    fn log_softmax(row: &[f64]) -> Vec<f64> {
        let sum: f64 = row.iter().map(|v| v.exp()).sum();
        row.iter().map(|v| v - sum.ln()).collect()
    }

    /// The loss and its slopes in f64, against `run` in f32.
    fn check(run: impl Fn(&Team, &mut [f32]) -> f64, definition: impl Fn(usize, &[f64]) -> f64) {
        let total = |logits: &[f64]| -> f64 {
            logits.chunks_exact(VOCABULARY).enumerate().map(|(i, row)| definition(i, &log_softmax(row))).sum()
        };
        let wide: Vec<f64> = logits().into_iter().map(f64::from).collect();
        let mut d = logits();
        let loss = run(&Team::new(2), &mut d);
        assert!((loss - total(&wide)).abs() < 1e-5, "{loss} {}", total(&wide));
        let mut again = logits();
        assert_eq!(run(&Team::new(1), &mut again), loss);
        assert_eq!(again, d);
        for i in 0..wide.len() {
            let at = |h: f64| {
                let mut moved = wide.clone();
                moved[i] += h;
                total(&moved)
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((f64::from(d[i]) - slope).abs() < 2e-6, "{i}: {} {slope}", d[i]);
        }
    }

    const WEIGHTS: [f32; TOKENS] = [0.5, 0.0, 1.0, 2.0, 0.25];

    #[test]
    fn cross_entropy_and_its_slopes() {
        let targets = [3, 0, 36, 7, 7];
        check(
            |team, d| cross_entropy(team, d, VOCABULARY, &targets, &WEIGHTS),
            |i, log_q| -f64::from(WEIGHTS[i]) * log_q[targets[i] as usize],
        );
    }

    #[test]
    fn divergence_and_its_slopes() {
        let mut log_p: Vec<f32> = Vec::new();
        for i in 0..TOKENS {
            let mut row: Vec<f64> = (0..VOCABULARY).map(|j| f64::from((i * 31 + j * 17) as f32).cos() * 3.0).collect();
            row[4] = f64::NEG_INFINITY;
            log_p.extend(log_softmax(&row).iter().map(|v| *v as f32));
        }
        check(
            |team, d| divergence(team, d, VOCABULARY, &log_p, &WEIGHTS),
            |i, log_q| {
                let terms = log_p[i * VOCABULARY..].iter().zip(log_q).filter(|(p, _)| p.is_finite());
                f64::from(WEIGHTS[i]) * terms.map(|(p, q)| f64::from(*p).exp() * (f64::from(*p) - q)).sum::<f64>()
            },
        );
        // Nothing is lost where the distributions are the same.
        let none = divergence(&Team::new(1), &mut log_p.clone(), VOCABULARY, &log_p, &[1.0; TOKENS]);
        assert!(none.abs() < 1e-6, "{none}");
    }
}
