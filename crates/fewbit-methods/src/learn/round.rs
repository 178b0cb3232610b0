use fewbit_engine::kinds::Leaf;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// What moves the code of a weight.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum RoundSetting {
    None,
    Offset,
    Divide,
    Sigmoid,
    LowRank,
    Weight,
}

/// The form with its leaves' places, beginning at 0.
#[derive(Clone, Copy, Debug)]
pub(super) enum Round {
    /// `v = w / s`.
    None,
    /// `v = w`: the codes, less their zero points, stay what they are (EfficientQAT's scales of the whole model).
    Kept,
    /// `v = w / s + V` (SignRound).
    Offset,
    /// `v = w / (s exp(S₂ + s₃))`, one `S₂` a weight and one `s₃` a row (FlexRound, equation 2, in logarithms).
    Divide,
    /// `v = ⌊w / s⌋ + h(V)`, `h` a rectified sigmoid (AdaRound); or `V` what it was at first and a product of two
    /// factors, `h` rounded at each step (CBQ, but for that).
    Sigmoid { factors: Option<usize>, penalty: f32 },
    /// `v = (w + unit · δ) / s` (LSQ, EfficientQAT): `δ` in steps of a mean grid.
    Weight { unit: f32 },
}

/// Where a weight falls before rounding and zero point.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    pub(super) v: f32,
    /// Whether it is used without rounding.
    pub(super) is_soft: bool,
    /// `∂v` by the weight's own leaf.
    pub(super) by_leaf: f32,
    /// `∂v` by the scale.
    pub(super) by_scale: f32,
}

impl Value {
    /// The value as it is rounded at the end.
    pub(super) fn hard(&self) -> f32 {
        if self.is_soft { (self.v + 1e-6).round() } else { self.v }
    }
}

/// `h(V) = clamp(σ(V) · 1.2 − 0.1, 0, 1)`, and its derivative.
fn rectified(v: f32) -> (f32, f32) {
    let s = 1.0 / (1.0 + (-v).exp());
    let h = 1.2 * s - 0.1;
    if (0.0..=1.0).contains(&h) { (h, 1.2 * s * (1.0 - s)) } else { (h.clamp(0.0, 1.0), 0.0) }
}

/// Share of the steps without penalty, and the exponent's way over the rest.
const WARMUP: f32 = 0.2;
const EXPONENT: (f32, f32) = (20.0, 2.0);

impl Round {
    pub(super) fn new(
        setting: RoundSetting,
        keeps_codes: bool,
        [rows, cols]: [usize; 2],
        rank: usize,
        penalty: f32,
        unit: f32,
        fraction: &dyn Fn(usize, usize) -> f32,
        rate: f32,
        rng: &mut ChaCha8Rng,
        leaves: &mut Vec<Leaf>,
    ) -> Self {
        let leaf = |name, values| Leaf { name, values, rate };
        // Soft at first: `h` is the fraction itself.
        let soft = || -> Vec<f32> {
            let logit = |f: f32| -(1.2 / (f.clamp(0.001, 0.999) + 0.1) - 1.0).ln();
            (0..rows * cols).map(|at| logit(fraction(at / cols, at % cols))).collect()
        };
        match setting {
            RoundSetting::None if keeps_codes => Self::Kept,
            RoundSetting::None => Self::None,
            RoundSetting::Offset => {
                leaves.push(leaf("offset", vec![0.0; rows * cols]));
                Self::Offset
            }
            RoundSetting::Divide => {
                leaves.push(leaf("divisor", vec![0.0; rows * cols]));
                leaves.push(leaf("row divisor", vec![0.0; rows]));
                Self::Divide
            }
            RoundSetting::Weight => {
                leaves.push(leaf("weight", vec![0.0; rows * cols]));
                Self::Weight { unit }
            }
            RoundSetting::Sigmoid => {
                leaves.push(leaf("rounding", soft()));
                Self::Sigmoid { factors: None, penalty }
            }
            RoundSetting::LowRank => {
                let normal = |rng: &mut ChaCha8Rng| (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
                leaves.push(Leaf { rate: 0.0, ..leaf("rounding", soft()) });
                leaves.push(leaf("left", (0..rows * rank).map(|_| normal(rng)).collect()));
                leaves.push(leaf("right", vec![0.0; rank * cols]));
                // Nor can they be driven anywhere, each for itself.
                Self::Sigmoid { factors: Some(rank), penalty: 0.0 }
            }
        }
    }

    /// What low-rank factors add to each weight's leaf; empty where there are none.
    pub(super) fn moved(&self, leaves: &[Leaf]) -> Vec<f32> {
        let Self::Sigmoid { factors: Some(rank), .. } = *self else { return Vec::new() };
        let (left, right) = (&leaves[1].values, &leaves[2].values);
        let cols = right.len() / rank;
        let mut moved = vec![0.0; left.len() / rank * cols];
        for (row, a) in moved.chunks_exact_mut(cols).zip(left.chunks_exact(rank)) {
            for (a, b) in a.iter().zip(right.chunks_exact(cols)) {
                row.iter_mut().zip(b).for_each(|(m, b)| *m += a * b);
            }
        }
        moved
    }

    /// Where weight `w` at `at` of row `r` falls on a grid of steps `s`.
    pub(super) fn value(
        &self,
        leaves: &[Leaf],
        moved: &[f32],
        r: usize,
        at: usize,
        w: f32,
        s: f32,
        progress: f32,
    ) -> Value {
        let hard = |v: f32, by_leaf: f32, by_scale: f32| Value { v, is_soft: false, by_leaf, by_scale };
        match *self {
            Self::None => hard(w / s, 0.0, -w / (s * s)),
            Self::Kept => hard(w, 0.0, 0.0),
            Self::Offset => hard(w / s + leaves[0].values[at], 1.0, -w / (s * s)),
            Self::Divide => {
                let v = w / (s * (leaves[0].values[at] + leaves[1].values[r]).exp());
                hard(v, -v, -v / s)
            }
            Self::Weight { unit } => {
                let v = (w + unit * leaves[0].values[at]) / s;
                hard(v, unit / s, -v / s)
            }
            Self::Sigmoid { factors, .. } => {
                let logit = leaves[0].values[at] + moved.get(at).copied().unwrap_or(0.0);
                let (h, slope) = rectified(logit);
                let floor = (w / s).floor();
                // Thin factors cannot drive each weight to its own side: softly rounded, the matrix would stay what it was.
                let is_soft = progress < 1.0 && factors.is_none();
                let v = if is_soft { floor + h } else { floor + f32::from(h >= 0.5) };
                Value { v, is_soft, by_leaf: slope, by_scale: 0.0 }
            }
        }
    }

    /// Gradients of the leaves from those by each weight's own, with the penalty's.
    pub(super) fn gradients(
        &self,
        leaves: &[Leaf],
        moved: &[f32],
        progress: f32,
        by_code: &dyn Fn(usize) -> f32,
        [rows, cols]: [usize; 2],
        gradients: &mut [Vec<f32>],
    ) {
        match *self {
            Self::None | Self::Kept => {}
            Self::Offset | Self::Weight { .. } => {
                gradients[0].iter_mut().enumerate().for_each(|(at, g)| *g = by_code(at));
            }
            Self::Divide => {
                gradients[0].iter_mut().enumerate().for_each(|(at, g)| *g = by_code(at));
                for r in 0..rows {
                    gradients[1][r] = gradients[0][r * cols..(r + 1) * cols].iter().sum();
                }
            }
            Self::Sigmoid { factors, penalty } => {
                let logit = |at: usize| leaves[0].values[at] + moved.get(at).copied().unwrap_or(0.0);
                gradients[0].iter_mut().enumerate().for_each(|(at, g)| *g = by_code(at));
                // Losses have the scale of the model's outputs; the penalty has that of what it stands against.
                let squares: f64 = gradients[0].iter().map(|g| f64::from(*g).powi(2)).sum();
                let penalty = penalty * (squares / (rows * cols) as f64).sqrt() as f32;
                if penalty > 0.0 {
                    for (at, g) in gradients[0].iter_mut().enumerate() {
                        *g += penalty * Self::penalty_slope(logit(at), progress);
                    }
                }
                let Some(rank) = factors else { return };
                let all = std::mem::take(&mut gradients[0]);
                let (left, right) = (&leaves[1].values, &leaves[2].values);
                gradients[2].fill(0.0);
                for r in 0..rows {
                    let row = &all[r * cols..(r + 1) * cols];
                    for k in 0..rank {
                        let b = &right[k * cols..(k + 1) * cols];
                        gradients[1][r * rank + k] = row.iter().zip(b).map(|(g, b)| g * b).sum();
                        let by = left[r * rank + k];
                        let out = &mut gradients[2][k * cols..(k + 1) * cols];
                        out.iter_mut().zip(row).for_each(|(o, g)| *o += by * g);
                    }
                }
                // The leaf that it began with stays.
                gradients[0] = all;
                gradients[0].fill(0.0);
            }
        }
    }

    /// The derivative of `1 − |2h − 1|^β` by `V`, `β` falling over the steps after the warm-up.
    fn penalty_slope(logit: f32, progress: f32) -> f32 {
        if progress < WARMUP {
            return 0.0;
        }
        let rest = (progress - WARMUP) / (1.0 - WARMUP);
        let beta = EXPONENT.1 + (EXPONENT.0 - EXPONENT.1) * (1.0 - rest);
        let (h, slope) = rectified(logit);
        let x = 2.0 * h - 1.0;
        -beta * x.abs().powf(beta - 1.0) * x.signum() * 2.0 * slope
    }
}
