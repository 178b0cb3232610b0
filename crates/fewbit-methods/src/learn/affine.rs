use fewbit_engine::kinds::{Entry, Fake, Leaf, LeafJob, Learner, parse};
use fewbit_format::{Error, Group, IntCodes, IntGrid, Mat, Result, Storage, Zeros};
use fewbit_kernel::Team;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::float::Small;
use super::round::{Round, RoundSetting, Value};

pub(crate) const ENTRY: Entry<dyn Learner> = Entry {
    name: "rounding",
    cite: "Cheng et al., Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs, 2023 (arXiv:2309.05516)",
    settings: &[
        (
            "round = \"offset\"",
            "what moves a weight's code: `offset` (SignRound), `divide` (FlexRound), `sigmoid` (AdaRound), `low-rank` (CBQ: a sigmoid of two factors), `weight` (LSQ, EfficientQAT: the weight itself), `none` (under `scale` not even the scale does)",
        ),
        (
            "range = \"clip\"",
            "what moves a group's grid: `clip` (two factors of its range), `sigmoid` (the same through sigmoids: OmniQuant), `scale` (a factor of the scale), `scale-zero` (and the zero point), `fixed`",
        ),
        (
            "rate = 0.0",
            "learning rate of what moves codes, in steps of the grid; 0 is the form's own (1/steps for `offset`)",
        ),
        ("range-rate = 0.0", "learning rate of what moves grids, relative; 0 is the form's own (1/steps for `clip`)"),
        ("widest = 1.0", "largest factor of a range under `clip`"),
        ("rank = 5", "rank under `low-rank`"),
        ("penalty = 10.0", "weight of what drives `sigmoid` to 0 and 1, against the root of the mean squared gradient"),
    ],
    build: |table| {
        let settings: Rounding = parse("learn.rounding", table)?;
        settings.checked().map(|s| Box::new(s) as Box<dyn Learner>)
    },
};

/// Learned codes and ranges of integer grids: `ŵ = s (clamp(round(v), 0, 2^b − 1) − z)`, `v = w / s + z` moved by one
/// variable per weight, `s` and `z` by few per group; what is rounded passes its gradient through.
///
/// With `m = 1` where `round(v)` is in range: `∂ŵ/∂v = s m`, `∂ŵ/∂s = (q − z) − m w / s`, `∂ŵ/∂z = −s (1 − m)`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Rounding {
    round: RoundSetting,
    range: RangeSetting,
    rate: f32,
    range_rate: f32,
    widest: f32,
    rank: usize,
    penalty: f32,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum RangeSetting {
    Fixed,
    Clip,
    Sigmoid,
    Scale,
    ScaleZero,
}

impl Default for Rounding {
    fn default() -> Self {
        Self {
            round: RoundSetting::Offset,
            range: RangeSetting::Clip,
            rate: 0.0,
            range_rate: 0.0,
            widest: 1.0,
            rank: 5,
            penalty: 10.0,
        }
    }
}

impl Rounding {
    fn checked(self) -> Result<Self> {
        if self.round == RoundSetting::None && self.range == RangeSetting::Fixed {
            return Err(Error::input(
                "`learn.round = \"none\"` with `learn.range = \"fixed\"` leaves nothing to learn",
            ));
        }
        let numbers = [("rate", self.rate), ("range-rate", self.range_rate), ("penalty", self.penalty)];
        if let Some((name, value)) = numbers.into_iter().find(|(_, v)| !(v.is_finite() && *v >= 0.0)) {
            return Err(Error::input(format!("`learn.{name}` is {value}, where 0 or a positive number is needed")));
        }
        if !(1.0..=4.0).contains(&self.widest) {
            return Err(Error::input(format!("`learn.widest` is {}, where 1 to 4 is possible", self.widest)));
        }
        if self.rank == 0 {
            return Err(Error::input("`learn.rank` is 0, where a positive number is needed"));
        }
        Ok(self)
    }

    /// Of small floats, whose steps are not equal, the weight itself moves the code, and a factor the scale.
    fn check_float(&self) -> Result<()> {
        if !matches!(self.round, RoundSetting::Weight | RoundSetting::None) {
            return Err(Error::input("the codes of small floats are moved by the weight itself")
                .hint("set `learn.round=weight`, or `none`"));
        }
        if !matches!(self.range, RangeSetting::Scale | RangeSetting::Fixed) {
            return Err(Error::input("small floats have scales alone").hint("set `learn.range=scale`, or `fixed`"));
        }
        Ok(())
    }

    /// Peak rates of what moves codes, and of what moves grids.
    fn rates(&self, steps: usize) -> [f32; 2] {
        let by_steps = 1.0 / steps as f32;
        let own = match self.round {
            RoundSetting::Offset => by_steps,
            RoundSetting::Divide | RoundSetting::None => 1e-3,
            RoundSetting::Sigmoid | RoundSetting::LowRank => 3e-2,
            RoundSetting::Weight => 2e-3,
        };
        let ranges = match self.range {
            RangeSetting::Clip => by_steps,
            RangeSetting::Sigmoid => 1e-2,
            RangeSetting::Scale | RangeSetting::ScaleZero | RangeSetting::Fixed => 1e-3,
        };
        let or = |set: f32, own: f32| if set > 0.0 { set } else { own };
        [or(self.rate, own), or(self.range_rate, ranges)]
    }
}

impl Learner for Rounding {
    fn check(&self, storage: &Storage) -> Result<()> {
        if let Storage::Float(_) = storage {
            return self.check_float();
        }
        let Storage::Int(codes) = storage else {
            return Err(Error::input("`learn.rounding` learns integers and small floats")
                .hint("use `grid.int` or `grid.float`"));
        };
        if codes.grid().group == Group::Tensor || codes.group_index().is_some() {
            return Err(Error::input("`learn.rounding` needs groups of neighbouring columns, or rows"));
        }
        if codes.has_nested() || matches!(codes.zeros(), Zeros::Points(_)) {
            return Err(Error::input("scales of scales and real zero points are not learned")
                .hint("take the grid's `second` and `zero` away"));
        }
        let keeps_zeros = matches!(self.range, RangeSetting::Fixed | RangeSetting::Scale);
        if matches!(codes.zeros(), Zeros::Offsets(_)) && !keeps_zeros {
            return Err(
                Error::input("real offsets are not learned").hint("set `learn.range=scale`, or `grid.zero=code`")
            );
        }
        if *codes.zeros() == Zeros::Middle && self.range == RangeSetting::ScaleZero {
            return Err(Error::input("a symmetric grid has no zero points to learn").hint("set `learn.range=scale`"));
        }
        Ok(())
    }

    fn begin(&self, job: &LeafJob<'_>) -> Result<Box<dyn Fake>> {
        self.check(job.start).map_err(|e| e.tensor(job.name))?;
        match job.start {
            Storage::Int(start) => Ok(Box::new(Affine::new(*self, job, start))),
            Storage::Float(start) => {
                let [rate, range_rate] = self.rates(job.steps);
                let weight = (self.round == RoundSetting::Weight).then_some(rate);
                let scale = (self.range == RangeSetting::Scale).then_some(range_rate);
                Ok(Box::new(Small::new(job, start, weight, scale)))
            }
            _ => Err(Error::internal("a storage that was checked")),
        }
    }
}

/// What moves the grid of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Range {
    Fixed,
    /// Leaf `at`: two factors a group (one where the grid is symmetric), as they are or through a sigmoid.
    Clip {
        at: usize,
        is_soft: bool,
    },
    /// Leaf `at`: a factor of the scale; the next one, if any: the zero point.
    Scale {
        at: usize,
        zero: Option<usize>,
    },
}

/// The grid of one group under the leaves.
#[derive(Clone, Copy)]
struct Params {
    scale: f32,
    zero: f32,
    /// Added to what is decoded.
    shift: f32,
}

/// The differentiable form of one matrix.
struct Affine {
    grid: IntGrid,
    rows: usize,
    cols: usize,
    width: usize,
    /// The weights, moved into the cells of the start's codes, without their groups' shifts; or the codes themselves, less
    /// their zero points.
    base: Mat,
    /// By group.
    start: Vec<Params>,
    most: f32,
    is_symmetric: bool,
    has_offsets: bool,
    round: Round,
    range: Range,
    widest: f32,
    leaves: Vec<Leaf>,
}

/// How far from the edge of its cell a weight begins that the solver put into another.
pub(super) const INSIDE: f32 = 0.01;

impl Affine {
    fn new(settings: Rounding, job: &LeafJob<'_>, codes: &IntCodes) -> Self {
        let ([rows, cols], grid) = (codes.shape(), codes.grid());
        let (width, most) = (grid.group.width(cols), ((1u32 << grid.bits) - 1) as f32);
        let per_row = cols / width;
        let params = |g: usize| match codes.group_params(g / per_row, g % per_row) {
            (scale, fewbit_format::Zero::Code(z)) => Params { scale, zero: f32::from(z), shift: 0.0 },
            (scale, fewbit_format::Zero::Offset(shift)) => Params { scale, zero: 0.0, shift },
        };
        let start: Vec<Params> = (0..rows * per_row).map(params).collect();
        // Weights that lie at the edge of their cells, as learning leaves them, would change their codes with the scale.
        let keeps_codes = settings.round == RoundSetting::None && settings.range == RangeSetting::Scale;
        let mut base = job.weight.clone();
        let mut row_codes = vec![0; cols];
        for r in 0..rows {
            codes.row_codes(r, &mut row_codes);
            for (c, (w, q)) in base.row_mut(r).iter_mut().zip(&row_codes).enumerate() {
                let Params { scale, zero, shift } = start[r * per_row + c / width];
                let (q, v) = (f32::from(*q), (*w - shift) / scale + zero);
                if keeps_codes {
                    *w = q - zero;
                    continue;
                }
                let inside = if v.round_ties_even().clamp(0.0, most) == q {
                    v
                } else {
                    v.clamp(q - 0.5 + INSIDE, q + 0.5 - INSIDE)
                };
                *w = scale * (inside - zero);
            }
        }
        let [rate, range_rate] = settings.rates(job.steps);
        let mut leaves = Vec::new();
        let mut rng = ChaCha8Rng::seed_from_u64(job.seed);
        let fraction = |r: usize, c: usize| {
            let Params { scale, zero, .. } = start[r * per_row + c / width];
            let v = base[(r, c)] / scale + zero;
            v - v.floor()
        };
        let unit = start.iter().map(|p| f64::from(p.scale)).sum::<f64>() / start.len() as f64;
        let round = Round::new(
            settings.round,
            keeps_codes,
            [rows, cols],
            settings.rank,
            settings.penalty,
            unit as f32,
            &fraction,
            rate,
            &mut rng,
            &mut leaves,
        );
        let groups = start.len();
        let is_symmetric = *codes.zeros() == Zeros::Middle;
        let leaf = |name, values| Leaf { name, values, rate: range_rate };
        let at = leaves.len();
        let range = match settings.range {
            RangeSetting::Fixed => Range::Fixed,
            RangeSetting::Clip | RangeSetting::Sigmoid => {
                let is_soft = settings.range == RangeSetting::Sigmoid;
                let factors = if is_symmetric { groups } else { 2 * groups };
                // OmniQuant begins at σ(4) of the range.
                leaves.push(leaf("clip", vec![if is_soft { 4.0 } else { 1.0 }; factors]));
                Range::Clip { at, is_soft }
            }
            RangeSetting::Scale => {
                leaves.push(leaf("scale", vec![1.0; groups]));
                Range::Scale { at, zero: None }
            }
            RangeSetting::ScaleZero => {
                leaves.push(leaf("scale", vec![1.0; groups]));
                leaves.push(leaf("zero", start.iter().map(|p| p.zero).collect()));
                Range::Scale { at, zero: Some(at + 1) }
            }
        };
        Self {
            grid,
            rows,
            cols,
            width,
            base,
            start,
            most,
            is_symmetric,
            has_offsets: matches!(codes.zeros(), Zeros::Offsets(_)),
            round,
            range,
            widest: settings.widest,
            leaves,
        }
    }

    fn per_row(&self) -> usize {
        self.cols / self.width
    }

    /// A factor of a range, and its derivative by the leaf.
    fn factor(is_soft: bool, leaf: f32) -> (f32, f32) {
        if is_soft {
            let s = 1.0 / (1.0 + (-leaf).exp());
            (s, s * (1.0 - s))
        } else {
            (leaf, 1.0)
        }
    }

    /// The grid of group `g` as it is stored.
    fn params(&self, g: usize) -> Params {
        let start = self.start[g];
        let stored = |s: f32| {
            let rounded = self.grid.scale.round(s);
            if rounded > 0.0 { rounded } else { start.scale }
        };
        match self.range {
            Range::Fixed => start,
            Range::Scale { at, zero } => {
                let scale = stored(start.scale * self.leaves[at].values[g]);
                let zero =
                    zero.map_or(start.zero, |z| self.leaves[z].values[g].round_ties_even().clamp(0.0, self.most));
                Params { scale, zero, ..start }
            }
            Range::Clip { at, is_soft } if self.is_symmetric => {
                let scale = stored(start.scale * Self::factor(is_soft, self.leaves[at].values[g]).0);
                Params { scale, ..start }
            }
            Range::Clip { at, is_soft } => {
                let [low, high] = [0, 1].map(|i| Self::factor(is_soft, self.leaves[at].values[2 * g + i]).0);
                let (lo, hi) = (-start.scale * start.zero * low, start.scale * (self.most - start.zero) * high);
                let scale = stored((hi - lo) / self.most);
                Params { scale, zero: (-lo / scale).round_ties_even().clamp(0.0, self.most), ..start }
            }
        }
    }

    /// Gradients of the leaves of group `g`, from those of its scale and zero point.
    fn range_gradients(&self, g: usize, by_scale: f32, by_zero: f32, gradients: &mut [Vec<f32>]) {
        let start = self.start[g];
        match self.range {
            Range::Fixed => {}
            Range::Scale { at, zero } => {
                gradients[at][g] = by_scale * start.scale;
                if let Some(z) = zero {
                    gradients[z][g] = by_zero;
                }
            }
            Range::Clip { at, is_soft } if self.is_symmetric => {
                gradients[at][g] = by_scale * start.scale * Self::factor(is_soft, self.leaves[at].values[g]).1;
            }
            // The zero point is rounded, and a constant here.
            Range::Clip { at, is_soft } => {
                let reach = [start.scale * start.zero, start.scale * (self.most - start.zero)];
                for i in 0..2 {
                    let slope = Self::factor(is_soft, self.leaves[at].values[2 * g + i]).1;
                    gradients[at][2 * g + i] = by_scale / self.most * reach[i] * slope;
                }
            }
        }
    }

    /// Calls `each(column, params, value)` for row `r`.
    fn row(&self, r: usize, progress: f32, moved: &[f32], mut each: impl FnMut(usize, &Params, Value)) {
        for k in 0..self.per_row() {
            let params = self.params(r * self.per_row() + k);
            for c in k * self.width..(k + 1) * self.width {
                let at = r * self.cols + c;
                let value = self.round.value(&self.leaves, moved, r, at, self.base.data()[at], params.scale, progress);
                each(c, &params, value);
            }
        }
    }

    fn code(&self, v: f32) -> f32 {
        v.round_ties_even().clamp(0.0, self.most)
    }
}

impl Fake for Affine {
    fn leaves(&self) -> Vec<&Leaf> {
        self.leaves.iter().collect()
    }

    fn leaves_mut(&mut self) -> Vec<&mut Leaf> {
        self.leaves.iter_mut().collect()
    }

    fn forward(&self, team: &Team, progress: f32, out: &mut Mat) {
        let moved = self.round.moved(&self.leaves);
        team.for_pieces(out.data_mut(), self.cols, &|r, row| {
            self.row(r, progress, &moved, |c, p, value| {
                let v = value.v + p.zero;
                let q = if value.is_soft { v.clamp(0.0, self.most) } else { self.code(v) };
                row[c] = p.scale * (q - p.zero) + p.shift;
            });
        });
    }

    fn backward(&self, team: &Team, progress: f32, gradient: &Mat, gradients: &mut [Vec<f32>]) {
        let moved = self.round.moved(&self.leaves);
        let (cols, per_row) = (self.cols, self.per_row());
        // Per row: by what moves each code, then by scale and zero point of each group.
        let stride = cols + 2 * per_row;
        let mut rows = vec![0.0f32; self.rows * stride];
        team.for_pieces(&mut rows, stride, &|r, row| {
            let (codes, groups) = row.split_at_mut(cols);
            let g = gradient.row(r);
            self.row(r, progress, &moved, |c, p, value| {
                let v = value.v + p.zero;
                let q = if value.is_soft { v } else { v.round_ties_even() };
                let is_inside = (0.0..=self.most).contains(&q);
                let q = q.clamp(0.0, self.most);
                let through = if is_inside { p.scale } else { 0.0 };
                codes[c] = g[c] * through * value.by_leaf;
                let by_scale = (q - p.zero) + if is_inside { p.scale * value.by_scale } else { 0.0 };
                groups[2 * (c / self.width)] += g[c] * by_scale;
                groups[2 * (c / self.width) + 1] += g[c] * (through - p.scale);
            });
        });
        for r in 0..self.rows {
            for k in 0..per_row {
                let at = r * stride + cols + 2 * k;
                self.range_gradients(r * per_row + k, rows[at], rows[at + 1], gradients);
            }
        }
        let by_code = |at: usize| rows[at / cols * stride + at % cols];
        self.round.gradients(&self.leaves, &moved, progress, &by_code, [self.rows, cols], gradients);
    }

    fn settle(&mut self) {
        match self.range {
            Range::Clip { at, is_soft: false } => {
                self.leaves[at].values.iter_mut().for_each(|c| *c = c.clamp(0.0, self.widest));
            }
            Range::Scale { at, zero } => {
                self.leaves[at].values.iter_mut().for_each(|c| *c = c.clamp(0.05, 4.0));
                if let Some(z) = zero {
                    self.leaves[z].values.iter_mut().for_each(|z| *z = z.clamp(0.0, self.most));
                }
            }
            _ => {}
        }
    }

    fn bake(&self) -> Result<Storage> {
        let moved = self.round.moved(&self.leaves);
        let mut codes = vec![0u8; self.rows * self.cols];
        for (r, row) in codes.chunks_exact_mut(self.cols).enumerate() {
            self.row(r, 1.0, &moved, |c, p, value| row[c] = self.code(value.hard() + p.zero) as u8);
        }
        let params: Vec<Params> = (0..self.start.len()).map(|g| self.params(g)).collect();
        let scales: Vec<f32> = params.iter().map(|p| p.scale).collect();
        let zeros = match (self.is_symmetric, self.has_offsets) {
            (true, _) => Zeros::Middle,
            (_, true) => Zeros::Offsets(params.iter().map(|p| p.shift).collect()),
            _ => Zeros::Codes(params.iter().map(|p| p.zero as u8).collect()),
        };
        IntCodes::new(self.rows, self.cols, self.grid, &codes, scales, zeros).map(Storage::Int)
    }
}
