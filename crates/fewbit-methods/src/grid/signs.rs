use fewbit_engine::kinds::{BoundGrid, Entry, Grid, GridJob, LANES, Needs, Params, Place, WeighBy, Weighting, parse};
use fewbit_format::{Error, Group, Result, SignCodes, SignGrid, Signs, Storage};
use serde::Deserialize;

use super::{GroupSetting, ScaleSetting, flat_codes, group_label};

pub(crate) const ENTRY: Entry<dyn Grid> = Entry {
    name: "signs",
    cite: "Park et al., LUT-GEMM: Quantized Matrix Multiplication based on LUTs for Efficient Inference in Large-Scale Generative Language Models, 2022 (arXiv:2206.09557)",
    settings: &[
        ("levels = \"planes\"", "`planes` (sums of ±α), `ternary` (−α, 0, α), `range` (lo, 0, hi)"),
        ("bits = 3", "how many α `planes` has, 1 to 8; one bit of a code each"),
        ("offset = false", "a number that is added to every sum of `planes`"),
        ("group = 128", "columns that share their α; or `\"row\"`"),
        (
            "weights = \"none\"",
            "how much an error counts: `none` (all alike), `activations` (by the size of the input), `fisher`",
        ),
        ("rounds = 15", "times that numbers and codes are found anew; 0: greedy (of `range`: the extremes)"),
        (
            "scale = \"source\"",
            "type of the stored numbers: `f16`, `bf16`, `f32`; `source` is bf16 for a bf16 checkpoint, else f16",
        ),
    ],
    build: |table| {
        let grid: SignSettings = parse("grid.signs", table)?;
        if !(1..=8).contains(&grid.bits) {
            return Err(Error::input(format!("`grid.bits` is {}, where 1 to 8 are possible", grid.bits)));
        }
        if matches!(grid.group.into(), Group::Tensor | Group::Block(_)) {
            return Err(Error::input("`grid.group` is a number of columns or `row` where signs are stored"));
        }
        Ok(Box::new(grid))
    },
};

/// Signs of few numbers: `ŵ = Σ_i ±α_i`, found by least squares and nearest sums in turns.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SignSettings {
    levels: LevelSetting,
    bits: u8,
    offset: bool,
    group: GroupSetting,
    weights: WeightSetting,
    rounds: usize,
    scale: ScaleSetting,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum LevelSetting {
    Planes,
    Ternary,
    Range,
}

/// How much an error counts.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(super) enum WeightSetting {
    None,
    Activations,
    Fisher,
}

impl WeightSetting {
    pub(super) fn needs(self) -> Needs {
        Needs { gram: self == Self::Activations, fisher: self == Self::Fisher, ..Needs::default() }
    }

    pub(super) fn weigh_by(self) -> WeighBy {
        match self {
            Self::None => WeighBy::Nothing,
            Self::Activations => WeighBy::Columns,
            Self::Fisher => WeighBy::Fisher,
        }
    }
}

impl Default for SignSettings {
    fn default() -> Self {
        Self {
            levels: LevelSetting::Planes,
            bits: 3,
            offset: false,
            group: GroupSetting::Columns(128),
            weights: WeightSetting::None,
            rounds: 15,
            scale: ScaleSetting::F16,
        }
    }
}

impl SignSettings {
    fn grid(&self) -> SignGrid {
        let signs = match self.levels {
            LevelSetting::Planes => Signs::Planes { count: self.bits, has_offset: self.offset },
            LevelSetting::Ternary => Signs::Ternary,
            LevelSetting::Range => Signs::Range,
        };
        SignGrid { signs, group: self.group.into(), scale: self.scale.into() }
    }
}

impl Grid for SignSettings {
    fn check(&self, _: usize, cols: usize) -> Result<()> {
        Group::from(self.group).check(cols)
    }

    fn needs(&self) -> Needs {
        self.weights.needs()
    }

    fn weigh_by(&self) -> WeighBy {
        self.weights.weigh_by()
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        let SignGrid { signs, group, scale } = self.grid();
        let numbers = group.count(rows, cols) * signs.numbers();
        8 * (rows * signs.row_bytes(cols)) as u64 + numbers as u64 * scale.bits()
    }

    fn begin(&self, job: &GridJob<'_>) -> Result<Box<dyn BoundGrid>> {
        let (rows, cols) = (job.weight.rows(), job.weight.cols());
        self.check(rows, cols)?;
        Ok(Box::new(Bound { grid: self.grid(), rounds: self.rounds, rows, cols }))
    }

    fn label(&self) -> String {
        let what = match self.levels {
            LevelSetting::Planes => format!("{} signs", self.bits),
            LevelSetting::Ternary => "ternary".to_owned(),
            LevelSetting::Range => "lo 0 hi".to_owned(),
        };
        format!("{what} {}", group_label(self.group.into()))
    }
}

struct Bound {
    grid: SignGrid,
    rounds: usize,
    rows: usize,
    cols: usize,
}

/// Values of one row's group, and how much each counts.
type Points = [(f32, f32)];

impl Bound {
    /// Numbers to begin with.
    fn first(&self, points: &Points) -> Vec<f32> {
        let mean = |of: &dyn Fn(f32) -> f32| -> f32 {
            let (sum, weight) = (points.iter())
                .fold((0.0, 0.0), |(sum, all), (w, h)| (sum + f64::from(h * of(*w)), all + f64::from(*h)));
            if weight > 0.0 { (sum / weight) as f32 } else { 0.0 }
        };
        let magnitude = mean(&f32::abs);
        match self.grid.signs {
            Signs::Planes { count, has_offset } => {
                // What is left after each sign, greedily.
                let offset = if has_offset { mean(&|w| w) } else { 0.0 };
                let mut rest: Vec<(f32, f32)> = points.iter().map(|(w, h)| (w - offset, *h)).collect();
                let mut numbers = vec![0.0; usize::from(count)];
                for number in &mut numbers {
                    let (sum, weight) = (rest.iter())
                        .fold((0.0, 0.0), |(s, all), (r, h)| (s + f64::from(h * r.abs()), all + f64::from(*h)));
                    *number = if weight > 0.0 { (sum / weight) as f32 } else { 0.0 };
                    rest.iter_mut().for_each(|(r, _)| *r -= number.copysign(*r));
                }
                if has_offset {
                    numbers.push(offset);
                }
                numbers
            }
            // The best threshold for normal weights is 0.6 of their deviation, the mean above it 1.2 (TWN, section 2.2).
            Signs::Ternary => vec![1.5 * magnitude],
            Signs::Range if self.rounds == 0 => {
                let seen = || points.iter().filter(|(_, h)| *h > 0.0).map(|(w, _)| *w);
                vec![seen().fold(0.0, f32::min), seen().fold(0.0, f32::max)]
            }
            Signs::Range => vec![-1.5 * magnitude, 1.5 * magnitude],
        }
    }

    /// The numbers with the least `Σ h (w − Σ_i M[q, i] n_i)²` for these codes; `None` where they are not determined.
    fn least_squares(&self, points: &Points, codes: &[usize]) -> Option<Vec<f32>> {
        let (signs, n) = (self.grid.signs, self.grid.signs.numbers());
        let (mut a, mut b) = (vec![0.0f64; n * n], vec![0.0f64; n]);
        for ((w, h), q) in points.iter().zip(codes).filter(|((_, h), _)| *h > 0.0) {
            for i in 0..n {
                let by = f64::from(*h) * f64::from(signs.factor(*q, i));
                b[i] += by * f64::from(*w);
                (0..n).for_each(|j| a[i * n + j] += by * f64::from(signs.factor(*q, j)));
            }
        }
        solve(&mut a, &mut b).then(|| b.iter().map(|v| self.grid.scale.round(*v as f32)).collect())
    }

    /// Nearest codes, and what they cost.
    fn assign(&self, points: &Points, numbers: &[f32], codes: &mut [usize]) -> f64 {
        let signs = self.grid.signs;
        let levels: Vec<f32> = (0..signs.levels()).map(|q| signs.level(q, numbers)).collect();
        let mut cost = 0.0;
        for ((w, h), code) in points.iter().zip(codes) {
            *code = nearest(&levels, *w);
            cost += f64::from(*h) * f64::from(w - levels[*code]).powi(2);
        }
        cost
    }

    /// The even steps from one end of the values to the other, as sums of signs; several planes alone know them.
    fn even(&self, points: &Points) -> Option<Vec<f32>> {
        let Signs::Planes { count: count @ 2.., has_offset } = self.grid.signs else { return None };
        let seen = || points.iter().filter(|(_, h)| *h > 0.0).map(|(w, _)| *w);
        let (mut least, mut most) = (seen().fold(0.0, f32::min), seen().fold(0.0, f32::max));
        if !has_offset {
            most = most.max(-least);
            least = -most;
        }
        let step = (most - least) / (self.grid.signs.levels() - 1) as f32;
        let mut numbers: Vec<f32> = (0..count).map(|i| step * 0.5 * (1u32 << i) as f32).collect();
        numbers.extend(has_offset.then_some(0.5 * (least + most)));
        Some(numbers)
    }

    /// Of what is found from either beginning, that which costs less.
    fn fit_row(&self, points: &Points) -> Vec<f32> {
        let (greedy, cost) = self.alternate(points, self.first(points));
        let other = self.even(points).filter(|_| self.rounds > 0).map(|even| self.alternate(points, even));
        other.filter(|(_, other)| *other < cost).map_or(greedy, |(even, _)| even)
    }

    fn alternate(&self, points: &Points, first: Vec<f32>) -> (Vec<f32>, f64) {
        let mut numbers: Vec<f32> = first.into_iter().map(|n| self.grid.scale.round(n)).collect();
        let mut codes = vec![0; points.len()];
        let (mut least, mut best) = (self.assign(points, &numbers, &mut codes), numbers.clone());
        for _ in 0..self.rounds {
            let Some(next) = self.least_squares(points, &codes) else { break };
            numbers = next;
            let cost = self.assign(points, &numbers, &mut codes);
            if cost >= least {
                break;
            }
            (least, best) = (cost, numbers.clone());
        }
        (best, least)
    }
}

fn nearest(levels: &[f32], w: f32) -> usize {
    let mut best = 0;
    for (q, level) in levels.iter().enumerate().skip(1) {
        if (w - level).abs() < (w - levels[best]).abs() {
            best = q;
        }
    }
    best
}

/// Solves `a x = b` in place by elimination; false where `a` is singular.
fn solve(a: &mut [f64], b: &mut [f64]) -> bool {
    let n = b.len();
    for p in 0..n {
        let (row, pivot) =
            (p..n).map(|r| (r, a[r * n + p].abs())).max_by(|x, y| x.1.total_cmp(&y.1)).unwrap_or((p, 0.0));
        if pivot <= 1e-12 * a.iter().fold(0.0, |m: f64, v| m.max(v.abs())) || pivot == 0.0 {
            return false;
        }
        (0..n).for_each(|c| a.swap(p * n + c, row * n + c));
        b.swap(p, row);
        for r in (0..n).filter(|r| *r != p) {
            let by = a[r * n + p] / a[p * n + p];
            (p..n).for_each(|c| a[r * n + c] -= by * a[p * n + c]);
            b[r] -= by * b[p];
        }
    }
    (0..n).for_each(|p| b[p] /= a[p * n + p]);
    b.iter().all(|v| v.is_finite())
}

impl BoundGrid for Bound {
    fn width(&self) -> usize {
        1
    }

    fn group(&self) -> usize {
        self.grid.group.width(self.cols)
    }

    fn fit(&self, _: Place, values: &[[f32; LANES]], by: Weighting<'_>) -> Params {
        let mut numbers = vec![[0.0; LANES]; self.grid.signs.numbers()];
        for lane in 0..LANES {
            let weight = |c: usize| match by {
                Weighting::None | Weighting::Gram(_) => 1.0,
                Weighting::Column(w) => w[c],
                Weighting::Element(w) => w[c][lane],
            };
            let points: Vec<(f32, f32)> = values.iter().enumerate().map(|(c, v)| (v[lane], weight(c))).collect();
            numbers.iter_mut().zip(self.fit_row(&points)).for_each(|(to, n)| to[lane] = n);
        }
        Params(numbers)
    }

    fn round(
        &self,
        _: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        let signs = self.grid.signs;
        let levels: Vec<[f32; LANES]> = (0..signs.levels())
            .map(|q| {
                let mut sums = [0.0; LANES];
                for (i, numbers) in params.0.iter().enumerate() {
                    let by = signs.factor(q, i);
                    sums.iter_mut().zip(numbers).for_each(|(s, n)| *s += by * n);
                }
                sums
            })
            .collect();
        for ((w, code), out) in tile.iter().zip(codes).zip(decoded) {
            let mut distance = [f32::INFINITY; LANES];
            for (q, level) in levels.iter().enumerate() {
                for lane in 0..LANES {
                    let d = (w[lane] - level[lane]).abs();
                    if d < distance[lane] {
                        (distance[lane], code[lane], out[lane]) = (d, q as u16, level[lane]);
                    }
                }
            }
        }
    }

    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, params: Vec<Vec<Params>>) -> Result<Storage> {
        let flat = flat_codes(self.rows, self.cols, &codes);
        let row = |r: usize| params[r / LANES].iter().flat_map(move |p| p.0.iter().map(move |n| n[r % LANES]));
        let numbers: Vec<f32> = (0..self.rows).flat_map(row).collect();
        SignCodes::new(self.rows, self.cols, self.grid, &flat, &numbers).map(Storage::Signs)
    }
}

#[cfg(test)]
mod tests {
    use fewbit_format::ScaleType;

    use super::*;

    fn bound(signs: Signs, rounds: usize) -> Bound {
        let grid = SignGrid { signs, group: Group::Row, scale: ScaleType::F32 };
        Bound { grid, rounds, rows: 1, cols: 64 }
    }

    fn points(seed: u32) -> Vec<(f32, f32)> {
        let value = |i: u32| ((seed * 131 + i * 17) as f32 * 0.618).sin() + ((seed + 7 * i) as f32 * 0.37).cos();
        (0..64).map(|i| (value(i) + 0.2, 0.1 + value(i + 99).abs())).collect()
    }

    fn cost(bound: &Bound, points: &Points, numbers: &[f32]) -> f64 {
        bound.assign(points, numbers, &mut vec![0; points.len()])
    }

    #[test]
    fn one_sign_is_the_mean_magnitude() {
        let bound = bound(Signs::Planes { count: 1, has_offset: false }, 15);
        let points: Vec<(f32, f32)> = points(1).iter().map(|(w, _)| (*w, 1.0)).collect();
        let mean = points.iter().map(|(w, _)| w.abs()).sum::<f32>() / 64.0;
        assert!((bound.fit_row(&points)[0] - mean).abs() < 1e-6);
    }

    #[test]
    fn rounds_never_cost_more() {
        for signs in [
            Signs::Planes { count: 2, has_offset: false },
            Signs::Planes { count: 3, has_offset: true },
            Signs::Ternary,
            Signs::Range,
        ] {
            for seed in 0..8 {
                let points = points(seed);
                let costs = [1, 2, 4, 15].map(|rounds| {
                    let bound = bound(signs, rounds);
                    cost(&bound, &points, &bound.fit_row(&points))
                });
                assert!(costs.windows(2).all(|w| w[1] <= w[0]), "{signs:?}: {costs:?}");
            }
        }
        // Three signs found in turns are better than three found one after the other, on the whole.
        let sum = |rounds| -> f64 {
            let bound = bound(Signs::Planes { count: 3, has_offset: false }, rounds);
            (0..8).map(|seed| cost(&bound, &points(seed), &bound.fit_row(&points(seed)))).sum()
        };
        assert!(sum(15) < 0.8 * sum(0), "{} {}", sum(15), sum(0));
    }

    #[test]
    fn the_extremes_are_levels_where_nothing_is_searched() {
        let (bound, points) = (bound(Signs::Range, 0), points(3));
        let (lo, hi) = points.iter().fold((0f32, 0f32), |(lo, hi), (w, _)| (lo.min(*w), hi.max(*w)));
        assert_eq!(bound.fit_row(&points), [lo, hi]);
        // Half of an extreme is where zero ends (QMoE, section 3.3).
        let levels = [lo, 0.0, hi];
        assert_eq!([nearest(&levels, 0.51 * hi), nearest(&levels, 0.49 * hi), nearest(&levels, 0.51 * lo)], [2, 1, 0]);
    }
}
