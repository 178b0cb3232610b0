//! Weights and statistics where maps run before and after the product.

use fewbit_format::{Mat, Online};
use fewbit_kernel::Team;
use fewbit_kernel::online::Map;

use crate::stats::InputStats;

/// `W'` with `y = U⁻¹(W' V x)`: each row of `W` takes `V⁻ᵀ`, each column `U`.
pub(crate) fn weight(team: &Team, mut w: Mat, input: Option<&Online>, output: Option<&Online>) -> Mat {
    if let Some(map) = input {
        // An orthonormal map is its own inverse transposed.
        let map = if matches!(map, Online::Diagonal(_)) { map.inverse() } else { map.clone() };
        Map::new(&map, w.cols()).apply(team, w.data_mut());
    }
    if let Some(map) = output {
        let mut columns = w.transposed();
        Map::new(map, columns.cols()).apply(team, columns.data_mut());
        w = columns.transposed();
    }
    w
}

/// What the statistics are after the map. Magnitudes of single values are not known any more.
pub(crate) fn stats(team: &Team, stats: &InputStats, map: &Online) -> InputStats {
    let gram = stats.gram.as_ref().map(|h| {
        let map = Map::new(map, h.cols());
        let mut half = h.clone();
        map.apply(team, half.data_mut());
        let mut whole = half.transposed();
        map.apply(team, whole.data_mut());
        // Rounding leaves it not quite symmetric.
        Mat::from_fn(h.rows(), h.cols(), |r, c| 0.5 * (whole[(r, c)] + whole[(c, r)]))
    });
    InputStats { gram, tokens: stats.tokens, ..InputStats::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tr(W' H' W'ᵀ) = tr(W H Wᵀ)`, and the product is the same.
    #[test]
    fn maps_change_neither_the_product_nor_the_loss() {
        let team = Team::new(1);
        let number = |i: usize| ((i * 7919 + 13) % 101) as f32 / 50.0 - 1.0;
        let (w, x) =
            (Mat::from_fn(8, 12, |r, c| number(12 * r + c)), Mat::from_fn(5, 12, |r, c| number(300 + 12 * r + c)));
        let product = |w: &Mat, x: &Mat| {
            Mat::from_fn(x.rows(), w.rows(), |t, r| (0..w.cols()).map(|c| x[(t, c)] * w[(r, c)]).sum())
        };
        let flips = |n: usize| (0..n).map(|i| i % 3 == 1).collect();
        let input = Online::Hadamard { block: 12, flips: flips(12), is_inverse: false };
        let output = Online::Hadamard { block: 4, flips: flips(8), is_inverse: false };
        let mapped = weight(&team, w.clone(), Some(&input), Some(&output));
        let mut inputs = x.clone();
        Map::new(&input, 12).apply(&team, inputs.data_mut());
        let mut y = product(&mapped, &inputs);
        Map::new(&output.inverse(), 8).apply(&team, y.data_mut());
        let near = |a: &Mat, b: &Mat| a.data().iter().zip(b.data()).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(near(&y, &product(&w, &x)));
        let gram = Mat::from_fn(12, 12, |a, b| (0..5).map(|t| x[(t, a)] * x[(t, b)]).sum());
        let after = stats(&team, &InputStats { gram: Some(gram.clone()), tokens: 5, ..Default::default() }, &input);
        let trace = |w: &Mat, h: &Mat| -> f32 {
            (0..8)
                .map(|r| {
                    (0..12)
                        .flat_map(|a| (0..12).map(move |b| (a, b)))
                        .map(|(a, b)| w[(r, a)] * h[(a, b)] * w[(r, b)])
                        .sum::<f32>()
                })
                .sum()
        };
        let (before, now) = (trace(&w, &gram), trace(&mapped, after.gram.as_ref().unwrap()));
        assert!((before - now).abs() < 1e-4 * before, "{before} {now}");
        let diagonal = Online::Diagonal((0..12).map(|i| 1.0 + i as f32).collect());
        let mapped = weight(&team, w.clone(), Some(&diagonal), None);
        let mut inputs = x.clone();
        Map::new(&diagonal, 12).apply(&team, inputs.data_mut());
        assert!(near(&product(&mapped, &inputs), &product(&w, &x)));
    }
}
