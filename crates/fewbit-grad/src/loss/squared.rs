use fewbit_kernel::Team;

/// `Σᵢ wᵢ Σ_d (y − target)² / dim` over rows of `dim`; `y` becomes its gradient `2 wᵢ (y − target) / dim`.
///
/// `weights` has one number per row: `1 / tokens` each for the mean squared error, more for tokens that matter more.
///
/// # Panics
/// If the shapes differ.
pub fn squared_error(team: &Team, y: &mut [f32], target: &[f32], dim: usize, weights: &[f32]) -> f64 {
    assert_eq!(y.len(), target.len(), "a target of the same shape");
    assert_eq!(y.len(), weights.len() * dim, "a weight for each row");
    let piece = (super::vocabulary::PIECE / dim.max(1)).max(1);
    let mut sums = vec![0.0f64; weights.len()];
    team.for_paired_pieces(y, piece * dim, &mut sums, piece, |i, y, sums| {
        let rows = y.chunks_exact_mut(dim).zip(target[i * piece * dim..].chunks_exact(dim));
        for (((y, target), weight), sum) in rows.zip(&weights[i * piece..]).zip(sums) {
            let slope = 2.0 * weight / dim as f32;
            let mut squares = 0.0;
            for (y, t) in y.iter_mut().zip(target) {
                let error = *y - t;
                squares += f64::from(error) * f64::from(error);
                *y = slope * error;
            }
            *sum = squares * f64::from(*weight) / dim as f64;
        }
    });
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_rows_by_hand() {
        let mut y = [1.0, 2.0, 3.0, 4.0];
        let loss = squared_error(&Team::new(1), &mut y, &[0.0, 0.0, 3.0, 2.0], 2, &[1.0, 0.5]);
        assert_eq!(loss, 2.5 + 1.0);
        assert_eq!(y, [1.0, 2.0, 0.0, 1.0]);
    }

    #[test]
    fn threads_do_not_matter() {
        let y: Vec<f32> = (0..70_000).map(|i| (i as f32 * 0.1).sin()).collect();
        let target: Vec<f32> = y.iter().map(|v| v * v).collect();
        let run = |threads| {
            let mut y = y.clone();
            (squared_error(&Team::new(threads), &mut y, &target, 100, &[0.1; 700]), y)
        };
        assert_eq!(run(1), run(3));
    }
}
