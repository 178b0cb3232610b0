//! One-dimensional clusters, exactly.

/// The `count` centres with the least `Σ h (w − c)²` for points `(w, h)` with weights `h ≥ 0`, ascending; fewer distinct
/// points give some centre several times.
///
/// Clusters of sorted points are intervals, and the best first point of the last one moves to the right with its last
/// point: dynamic programming by halves, `O(count · n log n)` (Wu 1991, Optimal quantization by matrix searching).
/// Points that all weigh nothing count alike.
pub(super) fn centres(points: &mut Vec<(f32, f32)>, count: usize) -> Vec<f32> {
    if points.iter().any(|(_, h)| *h > 0.0) {
        points.retain(|(_, h)| *h > 0.0);
    } else {
        points.iter_mut().for_each(|(_, h)| *h = 1.0);
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let n = points.len();
    let count = count.max(1);
    if n == 0 {
        return vec![0.0; count];
    }
    let intervals = Intervals::new(points);
    // The least cost of the first j points in so many clusters, and where the last of them begins.
    let mut costs: Vec<f64> = (0..=n).map(|j| intervals.cost(0, j)).collect();
    let mut begins = vec![vec![0u32; n + 1]];
    for _ in 1..count.min(n) {
        let (mut next, mut begin) = (vec![0.0; n + 1], vec![0u32; n + 1]);
        halves(&intervals, &costs, &mut next, &mut begin, [0, n], [0, n]);
        costs = next;
        begins.push(begin);
    }
    let (mut end, mut found) = (n, Vec::with_capacity(count));
    for begin in begins.iter().rev() {
        let first = begin[end] as usize;
        if first < end {
            found.push(intervals.centre(first, end));
        }
        end = first;
    }
    found.reverse();
    let last = found[found.len() - 1];
    found.resize(count, last);
    found
}

/// `next[j] = min_i costs[i] + cost(i, j)` for `j` in `js` (inclusive), the best `i` being in `is`.
fn halves(
    intervals: &Intervals,
    costs: &[f64],
    next: &mut [f64],
    begin: &mut [u32],
    [first, last]: [usize; 2],
    [least, most]: [usize; 2],
) {
    if first > last {
        return;
    }
    let j = first.midpoint(last);
    let (mut best, mut at) = (f64::INFINITY, least);
    for i in least..=most.min(j) {
        let cost = costs[i] + intervals.cost(i, j);
        if cost < best {
            (best, at) = (cost, i);
        }
    }
    (next[j], begin[j]) = (best, at as u32);
    if j > first {
        halves(intervals, costs, next, begin, [first, j - 1], [least, at]);
    }
    halves(intervals, costs, next, begin, [j + 1, last], [at, most]);
}

/// Sums over the sorted points before each.
struct Intervals {
    /// `Σ h`, `Σ h w`, `Σ h w²`, with `w` from the middle of the points, so that nothing large cancels.
    sums: Vec<[f64; 3]>,
    middle: f64,
}

impl Intervals {
    fn new(points: &[(f32, f32)]) -> Self {
        let middle = f64::from(points[points.len() / 2].0);
        let mut sums = vec![[0.0; 3]];
        for (w, h) in points {
            let (w, h, before) = (f64::from(*w) - middle, f64::from(*h), sums[sums.len() - 1]);
            sums.push([before[0] + h, before[1] + h * w, before[2] + h * w * w]);
        }
        Self { sums, middle }
    }

    fn of(&self, first: usize, end: usize) -> [f64; 3] {
        std::array::from_fn(|k| self.sums[end][k] - self.sums[first][k])
    }

    fn cost(&self, first: usize, end: usize) -> f64 {
        let [weight, sum, squares] = self.of(first, end);
        if weight > 0.0 { (squares - sum * sum / weight).max(0.0) } else { 0.0 }
    }

    /// The weighted mean of points.
    fn centre(&self, first: usize, end: usize) -> f32 {
        let [weight, sum, _] = self.of(first, end);
        (self.middle + sum / weight) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(points: &[(f32, f32)], centres: &[f32]) -> f64 {
        let nearest = |w: f32| centres.iter().map(|c| f64::from(w - c).powi(2)).fold(f64::INFINITY, f64::min);
        points.iter().map(|(w, h)| f64::from(*h) * nearest(*w)).sum()
    }

    /// All ways to cut the sorted points.
    fn least(points: &[(f32, f32)], count: usize) -> f64 {
        if points.is_empty() {
            return 0.0;
        }
        let intervals = Intervals::new(points);
        if count == 1 {
            return intervals.cost(0, points.len());
        }
        (0..=points.len())
            .map(|cut| least(&points[..cut], count - 1) + Intervals::new(points).cost(cut, points.len()))
            .fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn no_other_centres_cost_less() {
        for seed in 0..6u32 {
            let value = |i: u32, k: u32| ((seed * 31 + i * 17 + k * 7) as f32 * 0.618).sin();
            let mut points: Vec<(f32, f32)> = (0..11).map(|i| (value(i, 0), value(i, 1).abs())).collect();
            for count in 1..=4 {
                let found = centres(&mut points, count);
                assert!(found.windows(2).all(|w| w[0] <= w[1]) && found.len() == count);
                let (own, best) = (cost(&points, &found), least(&points, count));
                // Centres are rounded to f32.
                assert!(own <= best * (1.0 + 1e-6) + 1e-9, "{count} centres: {own}, the best {best}");
            }
        }
    }

    #[test]
    fn as_many_centres_as_values_leave_nothing() {
        let mut points: Vec<(f32, f32)> = (0..40).map(|i| ((i % 7) as f32, 1.0 + (i % 3) as f32)).collect();
        let found = centres(&mut points, 8);
        assert_eq!(cost(&points, &found), 0.0);
        let mut nothing = vec![(1.0, 0.0), (3.0, 0.0)];
        assert_eq!(centres(&mut nothing, 1), [2.0]);
        assert_eq!(centres(&mut Vec::new(), 4), [0.0; 4]);
    }
}
