use fewbit_format::Mat;
use fewbit_kernel::Team;
use fewbit_kernel::codebook::Codebook;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Points that one task looks at.
const CHUNK: usize = 1024;
/// Centres up to which each new one is drawn by its distance to those before (k-means++); more are drawn by weight.
const SPREAD: usize = 1024;

/// At most `count` centres of `points [n, d]` that make `Σ weight · |point − nearest centre|²` small (Lloyd's descent from
/// k-means++, Arthur and Vassilvitskii 2007).
///
/// A centre that loses all its points takes the one that costs most. Ends after `rounds`, or when a round gains less than
/// a part in 10⁵. With no more different points than centres, these are the points.
///
/// # Panics
/// If there are no points, or not one weight for each.
pub fn kmeans(team: &Team, points: &Mat, weights: &[f32], count: usize, rounds: usize, seed: u64) -> Mat {
    assert!(points.rows() == weights.len() && points.rows() > 0 && count > 0, "one weight for each point");
    let mut centres = seeded(team, points, weights, count, seed);
    let mut last = f64::INFINITY;
    for _ in 0..rounds {
        let cost = round(team, points, weights, &mut centres);
        if cost >= last * (1.0 - 1e-5) {
            break;
        }
        last = cost;
    }
    centres
}

/// Moves each centre to the mean of the points that are nearest to it; returns the cost before.
fn round(team: &Team, points: &Mat, weights: &[f32], centres: &mut Mat) -> f64 {
    let (n, d, count) = (points.rows(), points.cols(), centres.rows());
    let book = Codebook::new(centres.data(), d);
    let mut near = vec![0u32; n];
    team.for_pieces(&mut near, CHUNK, &|i, near| {
        near.iter_mut().enumerate().for_each(|(k, c)| *c = book.nearest(points.row(i * CHUNK + k)) as u32);
    });
    let (mut sums, mut totals) = (vec![0.0f64; count * d], vec![0.0f64; count]);
    // The dearest point, and what it costs.
    let (mut cost, mut worst) = (0.0, (0.0, 0));
    for (i, c) in near.iter().enumerate() {
        let (c, weight) = (*c as usize, f64::from(weights[i]));
        let mut own = 0.0;
        for ((sum, x), centre) in sums[c * d..].iter_mut().zip(points.row(i)).zip(centres.row(c)) {
            *sum += weight * f64::from(*x);
            own += f64::from(x - centre).powi(2);
        }
        totals[c] += weight;
        cost += weight * own;
        if weight * own > worst.0 {
            worst = (weight * own, i);
        }
    }
    let mut is_taken = false;
    for c in 0..count {
        if totals[c] > 0.0 {
            let by = 1.0 / totals[c];
            let sums = &sums[c * d..(c + 1) * d];
            centres.row_mut(c).iter_mut().zip(sums).for_each(|(x, s)| *x = (s * by) as f32);
        } else if !is_taken && worst.0 > 0.0 {
            is_taken = true;
            centres.row_mut(c).copy_from_slice(points.row(worst.1));
        }
    }
    cost
}

/// Where the descent begins.
fn seeded(team: &Team, points: &Mat, weights: &[f32], count: usize, seed: u64) -> Mat {
    let (n, d) = (points.rows(), points.cols());
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut centres = Mat::zeros(count, d);
    // What each point costs with the centres so far; before the first its weight.
    let mut costs: Vec<f32> = weights.to_vec();
    for c in 0..count {
        let total: f64 = costs.iter().map(|v| f64::from(*v)).sum();
        let mut rest = random.random::<f64>() * total;
        let drawn = costs.iter().position(|v| {
            rest -= f64::from(*v);
            rest < 0.0
        });
        // With all costs at zero every point has its centre.
        let chosen = drawn.unwrap_or_else(|| random.random_range(0..n));
        centres.row_mut(c).copy_from_slice(points.row(chosen));
        if count > SPREAD {
            // Drawn by weight, none twice.
            costs[chosen] = 0.0;
            continue;
        }
        let centre = points.row(chosen);
        team.for_pieces(&mut costs, CHUNK, &|i, costs| {
            for (k, cost) in costs.iter_mut().enumerate() {
                let at = i * CHUNK + k;
                let square: f32 = points.row(at).iter().zip(centre).map(|(x, y)| (x - y) * (x - y)).sum();
                let own = weights[at] * square;
                *cost = if c == 0 { own } else { cost.min(own) };
            }
        });
    }
    centres
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(n: usize, d: usize, seed: u64) -> Mat {
        let mut r = ChaCha8Rng::seed_from_u64(seed);
        Mat::from_fn(n, d, |_, _| r.random::<f32>())
    }

    fn cost(points: &Mat, weights: &[f32], centres: &Mat) -> f64 {
        let square = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum() };
        let least =
            |i: usize| (0..centres.rows()).map(|c| square(points.row(i), centres.row(c))).fold(f64::MAX, f64::min);
        (0..points.rows()).map(|i| f64::from(weights[i]) * least(i)).sum()
    }

    #[test]
    fn enough_centres_leave_no_error_and_more_rounds_never_hurt() {
        let team = Team::new(2);
        let all = points(40, 4, 1);
        assert!(cost(&all, &[1.0; 40], &kmeans(&team, &all, &[1.0; 40], 40, 100, 0)) < 1e-10);
        assert!(cost(&all, &[1.0; 40], &kmeans(&team, &all, &[1.0; 40], 64, 100, 0)) < 1e-10);
        let (all, weights) = (points(3000, 2, 2), points(1, 3000, 3).into_vec());
        let mut before = f64::INFINITY;
        for rounds in [0, 1, 2, 5, 20, 100] {
            let now = cost(&all, &weights, &kmeans(&team, &all, &weights, 30, rounds, 7));
            assert!(now <= before * (1.0 + 1e-6), "{rounds} rounds: {now} after {before}");
            before = now;
        }
        // Squares of area 1/30 with uniform points would lose 1/(6·30) each; hexagons a little less.
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        assert!(before / total < 1.05 / 180.0, "{}", before / total);
    }

    #[test]
    fn neither_threads_matter_nor_points_without_weight() {
        let (mut all, mut weights) = (points(5000, 4, 4), vec![1.0; 5000]);
        let of = |all: &Mat, weights: &[f32], threads| kmeans(&Team::new(threads), all, weights, 50, 20, 3);
        assert_eq!(of(&all, &weights, 1), of(&all, &weights, 3));
        for i in (0..5000).step_by(10) {
            weights[i] = 0.0;
        }
        let before = of(&all, &weights, 1);
        (0..5000).step_by(10).for_each(|i| all.row_mut(i).fill(1e6));
        assert_eq!(of(&all, &weights, 1), before);
        // Heavy points draw centres.
        let heavy: Vec<f32> = (0..5000).map(|i| if i % 100 == 1 { 1000.0 } else { 1.0 }).collect();
        let centres = of(&all, &heavy, 1);
        let only: Vec<f32> = heavy.iter().map(|w| if *w > 1.0 { 1.0 } else { 0.0 }).collect();
        assert!(cost(&all, &only, &centres) < 0.2 * cost(&all, &only, &before));
    }
}
