//! Where a tail begins that is cut off (CBQ's coarse-to-fine pre-processing, arXiv:2312.07950, section 3.4).

/// Weight of the spread of what stays, against the gap to what is cut off.
const SPREAD: f64 = 1.0;

/// The greatest magnitude that stays: beyond a fence of 1.5 interquartile ranges, the split with the greatest
/// `(least above − greatest below)² − λ₂ Var(below)`. All stay where no gap is wider than what lies below it is spread.
///
/// The paper's `below` begins at the fence: then the tail of any bell would be cut off there, for want of gaps in it.
pub(crate) fn fence(values: impl Iterator<Item = f32>) -> f32 {
    let mut sizes: Vec<f32> = values.map(f32::abs).collect();
    sizes.sort_unstable_by(f32::total_cmp);
    let Some(greatest) = sizes.last().copied() else { return 0.0 };
    let quartile = |share: usize| sizes[(sizes.len() - 1) * share / 4];
    let far = quartile(3) + 1.5 * (quartile(3) - quartile(1));
    let body = sizes.partition_point(|v| *v <= far);
    let (mut best, mut most) = (greatest, 0.0);
    let (mut sum, mut squares) = (0.0, 0.0);
    for (i, pair) in sizes.windows(2).enumerate() {
        let (below, above) = (f64::from(pair[0]), f64::from(pair[1]));
        (sum, squares) = (sum + below, squares + below * below);
        if i + 1 < body {
            continue;
        }
        let count = (i + 1) as f64;
        let variance = squares / count - (sum / count).powi(2);
        let merit = (above - below).powi(2) - SPREAD * variance;
        if merit > most {
            (best, most) = (pair[0], merit);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_cut_at_its_widest_gap() {
        let body = (0..100).map(|i| i as f32 / 100.0);
        // The fence is at 0.74 + 1.5 · 0.5 = 1.49; 2.0 and 2.1 are beyond it and near, 9 is not.
        assert_eq!(fence(body.clone().chain([2.0, -2.1, -9.0])), 2.1);
        assert_eq!(fence(body.clone()), 0.99, "nothing is far away");
        assert_eq!(fence(body.clone().chain([-5.0])), 0.99);
        assert_eq!(fence(body.chain([1.5, 1.6, 1.7])), 1.7, "a tail without gaps");
        assert_eq!(fence([0.0; 4].into_iter()), 0.0);
        assert_eq!(fence([].into_iter()), 0.0);
    }
}
