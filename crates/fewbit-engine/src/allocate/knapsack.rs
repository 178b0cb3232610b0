//! The integer programme: one option for each unit, least cost, within a budget of bits.

/// One way to store a unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    /// Everything stored.
    pub(super) bits: u64,
    /// Damage, in any unit that adds up.
    pub(super) cost: f64,
}

/// Steps that a budget is cut into at most.
const MOST_STEPS: u64 = 1 << 15;

/// The option of each unit for `min Σ cost` under `Σ bits ≤ budget`; `None` where even the smallest are too many.
///
/// The multiple-choice knapsack by dynamic programming over the bits above each unit's smallest option, in steps of
/// their greatest common divisor. This is the optimum, unless the budget has more than 32768 such steps: then sizes are
/// rounded up to as many, and what that leaves is spent on the best changes that still fit. Of equal costs the smaller
/// option is taken.
pub(super) fn solve(units: &[Vec<Choice>], budget: u64) -> Option<Vec<usize>> {
    let least: Vec<u64> = units.iter().map(|u| u.iter().map(|c| c.bits).min()).collect::<Option<_>>()?;
    let spare = budget.checked_sub(least.iter().sum())?;
    let extra = |u: usize, k: usize| units[u][k].bits - least[u];
    let all = || (0..units.len()).flat_map(|u| (0..units[u].len()).map(move |k| extra(u, k)));
    let divisor = all().fold(0, gcd).max(1);
    let spare = spare.min((0..units.len()).map(|u| (0..units[u].len()).map(|k| extra(u, k)).max().unwrap_or(0)).sum());
    let step = if spare / divisor < MOST_STEPS { divisor } else { spare.div_ceil(MOST_STEPS) };
    let capacity = (spare / step) as usize;

    let mut best = vec![0.0; capacity + 1];
    let mut chosen: Vec<Vec<u16>> = Vec::with_capacity(units.len());
    for (u, unit) in units.iter().enumerate() {
        let mut by_size: Vec<usize> = (0..unit.len()).collect();
        by_size.sort_by_key(|k| (unit[*k].bits, *k));
        let mut next = vec![f64::INFINITY; capacity + 1];
        let mut taken = vec![0; capacity + 1];
        for k in by_size {
            let steps = extra(u, k).div_ceil(step) as usize;
            for at in steps..=capacity {
                let cost = best[at - steps] + unit[k].cost;
                if cost < next[at] {
                    (next[at], taken[at]) = (cost, k as u16);
                }
            }
        }
        best = next;
        chosen.push(taken);
    }
    let mut at = capacity;
    let mut solution = vec![0; units.len()];
    for u in (0..units.len()).rev() {
        solution[u] = usize::from(chosen[u][at]);
        at -= extra(u, solution[u]).div_ceil(step) as usize;
    }
    spend(units, budget, &mut solution);
    Some(solution)
}

/// Takes the change that lowers the cost most and fits, as long as there is one.
fn spend(units: &[Vec<Choice>], budget: u64, solution: &mut [usize]) {
    loop {
        let used: u64 = solution.iter().zip(units).map(|(k, u)| u[*k].bits).sum();
        let gain = |u: usize, k: usize| units[u][solution[u]].cost - units[u][k].cost;
        let fits = |u: usize, k: usize| used - units[u][solution[u]].bits + units[u][k].bits <= budget;
        let changes = (0..units.len()).flat_map(|u| (0..units[u].len()).map(move |k| (u, k)));
        let best = changes
            .filter(|(u, k)| gain(*u, *k) > 0.0 && fits(*u, *k))
            .max_by(|a, b| gain(a.0, a.1).total_cmp(&gain(b.0, b.1)).then(b.cmp(a)));
        match best {
            Some((u, k)) => solution[u] = k,
            None => return,
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn total(units: &[Vec<Choice>], solution: &[usize]) -> (u64, f64) {
        let chosen = || solution.iter().zip(units).map(|(k, u)| u[*k]);
        (chosen().map(|c| c.bits).sum(), chosen().map(|c| c.cost).sum())
    }

    /// The least cost among all solutions.
    fn brute(units: &[Vec<Choice>], budget: u64) -> Option<f64> {
        let count: usize = units.iter().map(Vec::len).product();
        let solution = |mut n: usize| -> Vec<usize> {
            let digit = |u: &Vec<Choice>| {
                let k = n % u.len();
                n /= u.len();
                k
            };
            units.iter().map(digit).collect()
        };
        let all = (0..count).map(|n| total(units, &solution(n)));
        all.filter(|(bits, _)| *bits <= budget).map(|(_, cost)| cost).min_by(f64::total_cmp)
    }

    #[test]
    fn is_the_optimum_of_all_solutions() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut refused = 0;
        for case in 0..200 {
            // Matrices of a few sizes, and costs that need not fall with the bits.
            let units: Vec<Vec<Choice>> = (0..rng.random_range(1..7))
                .map(|_| {
                    let weights = 128 * rng.random_range(1..5u64);
                    let option = |bits: u64| Choice { bits: bits * weights + 32, cost: 0.0 };
                    let mut options: Vec<Choice> = [2, 3, 4, 8].into_iter().map(option).collect();
                    options.iter_mut().for_each(|o| o.cost = rng.random::<f64>());
                    options
                })
                .collect();
            let budget = rng.random_range(200..12000);
            let (found, best) = (solve(&units, budget), brute(&units, budget));
            refused += usize::from(found.is_none());
            assert_eq!(found.is_some(), best.is_some(), "case {case}");
            if let (Some(found), Some(best)) = (found, best) {
                let (bits, cost) = total(&units, &found);
                assert!(bits <= budget, "case {case}: {bits} of {budget}");
                assert!((cost - best).abs() < 1e-12, "case {case}: {cost} where {best} is possible");
            }
        }
        assert!((1..150).contains(&refused), "{refused}");
    }

    #[test]
    fn a_budget_of_many_steps_is_kept_and_spent() {
        // Sizes without a common divisor, far more than can be tabulated: the relaxed problem bounds the loss.
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let units: Vec<Vec<Choice>> = (0..60)
            .map(|_| {
                let weights = rng.random_range(1_000_000..9_000_000u64);
                let scale = rng.random::<f64>();
                let option =
                    |bits: u64| Choice { bits: bits * weights + bits, cost: scale * (-1.4 * bits as f64).exp() };
                [2, 3, 4, 8].into_iter().map(option).collect()
            })
            .collect();
        let weights: u64 = units.iter().map(|u| u[0].bits / 2).sum();
        for tenths in [21, 32, 45, 79] {
            let budget = weights * tenths / 10;
            let solution = solve(&units, budget).unwrap();
            let (bits, cost) = total(&units, &solution);
            assert!(bits <= budget);
            // No option of one unit that fits is better, and the least `cost + λ bits` over all prices is near.
            let bound = (0..2000).map(|i| (-1.4 * 8.0 + f64::from(i) * 0.006).exp() * 1e-8).map(|price| {
                let relaxed =
                    |u: &Vec<Choice>| u.iter().map(|c| c.cost + price * c.bits as f64).min_by(f64::total_cmp).unwrap();
                units.iter().map(relaxed).sum::<f64>() - price * budget as f64
            });
            let bound = bound.max_by(f64::total_cmp).unwrap();
            assert!(cost >= bound - 1e-9, "{cost} below the bound {bound}");
            assert!(cost < bound * 1.05 + 1e-4, "{cost}, bound {bound}");
        }
    }
}
