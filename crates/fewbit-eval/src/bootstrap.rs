/// A 95 % interval.
pub type Interval = [f64; 2];

const RESAMPLES: usize = 10_000;
const SEED: u64 = 7;
/// More units than this are joined to consecutive groups: tokens of neighbouring windows depend on each other, and the
/// time is bounded.
const MOST_UNITS: usize = 1024;

/// 95 % intervals of statistics of sums over units: percentiles over 10,000 resamples of the units with replacement.
///
/// A resample adds up the sums of the units that it draws, and all statistics are taken of the same resamples; so the
/// interval of a difference between two models is that of paired differences. The draws follow from a fixed seed and
/// counters. `None` for fewer than two units.
pub fn intervals<const S: usize, const N: usize>(
    units: &[[f64; S]],
    statistics: impl Fn(&[f64; S]) -> [f64; N],
) -> Option<[Interval; N]> {
    intervals_of(&joined(units), RESAMPLES, SEED, statistics)
}

fn intervals_of<const S: usize, const N: usize>(
    units: &[[f64; S]],
    resamples: usize,
    seed: u64,
    statistics: impl Fn(&[f64; S]) -> [f64; N],
) -> Option<[Interval; N]> {
    if units.len() < 2 {
        return None;
    }
    let mut values: [Vec<f64>; N] = std::array::from_fn(|_| Vec::with_capacity(resamples));
    for b in 0..resamples {
        let mut sums = [0.0; S];
        for i in 0..units.len() {
            let unit = &units[draw(seed, (b * units.len() + i) as u64, units.len())];
            sums.iter_mut().zip(unit).for_each(|(s, u)| *s += u);
        }
        for (all, value) in values.iter_mut().zip(statistics(&sums)) {
            all.push(value);
        }
    }
    Some(values.map(|mut v| {
        v.sort_unstable_by(f64::total_cmp);
        [quantile(&v, 0.025), quantile(&v, 0.975)]
    }))
}

/// Number `counter` of the sequence of numbers below `below` that belongs to `seed` (splitmix64).
fn draw(seed: u64, counter: u64, below: usize) -> usize {
    let mut z = seed.wrapping_mul(0xA076_1D64_78BD_642F).wrapping_add(counter.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    ((u128::from(z) * below as u128) >> 64) as usize
}

fn joined<const S: usize>(units: &[[f64; S]]) -> Vec<[f64; S]> {
    let size = units.len().div_ceil(MOST_UNITS).max(1);
    let sum = |group: &[[f64; S]]| {
        group.iter().fold([0.0; S], |mut sums, unit| {
            sums.iter_mut().zip(unit).for_each(|(s, u)| *s += u);
            sums
        })
    };
    units.chunks(size).map(sum).collect()
}

/// The value below which the share `share` of sorted values lies, interpolated between neighbours; NaN for none.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = share.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number from -√3 to √3: mean 0, variance 1.
    fn uniform(seed: u64, counter: u64) -> f64 {
        let unit = draw(seed, counter, 1 << 52) as f64 / (1u64 << 52) as f64;
        (unit - 0.5) * 12f64.sqrt()
    }

    #[test]
    fn intervals_cover_the_truth() {
        const SETS: u64 = 400;
        let mut covered = [0; 2];
        for set in 0..SETS {
            // Windows of 100 tokens with a level of their own; the second model is worse by 0.05 ± a little.
            let units: Vec<[f64; 3]> = (0..60)
                .map(|w| {
                    let level = 3.0 + 0.5 * uniform(100 + set, w);
                    let worse = 0.05 + 0.02 * uniform(10_000 + set, w);
                    [100.0, 100.0 * level, 100.0 * (level + worse)]
                })
                .collect();
            let all = intervals_of(&units, 500, set, |s| [s[1] / s[0], (s[2] - s[1]) / s[0]]).unwrap();
            for (i, truth) in [3.0, 0.05].into_iter().enumerate() {
                covered[i] += u32::from(all[i][0] <= truth && truth <= all[i][1]);
            }
            // Paired: the interval of the difference does not know the spread of the levels.
            assert!(all[1][1] - all[1][0] < 0.02, "{all:?}");
        }
        for c in covered {
            let share = f64::from(c) / SETS as f64;
            assert!((0.91..=0.98).contains(&share), "{share}");
        }
    }

    #[test]
    fn identical_systems_differ_by_nothing() {
        let units: Vec<[f64; 2]> = (0..20).map(|i| [1.0, uniform(1, i)]).collect();
        let all = intervals(&units, |s| [(s[1] - s[1]) / s[0], s[1] / s[0]]).unwrap();
        assert_eq!(all[0], [0.0, 0.0]);
        assert!(all[1][0] < all[1][1]);
        assert_eq!(intervals(&units, |s| [s[1]]), intervals(&units, |s| [s[1]]));
    }

    #[test]
    fn one_unit_has_no_interval() {
        assert_eq!(intervals(&[[1.0]], |s| [s[0]]), None);
        assert_eq!(intervals(&[] as &[[f64; 1]], |s| [s[0]]), None);
    }

    #[test]
    fn many_units_are_joined_without_loss() {
        let units: Vec<[f64; 2]> = (0..5000).map(|i| [1.0, f64::from(i)]).collect();
        let groups = joined(&units);
        assert_eq!(groups.len(), 1000);
        let sum = groups.iter().fold([0.0, 0.0], |s, g| [s[0] + g[0], s[1] + g[1]]);
        assert_eq!(sum, [5000.0, 4999.0 * 2500.0]);
    }

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[5.0], 0.99), 5.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
