//! Which numbers can be stored.

use fewbit_engine::kinds::{Entry, Grid, LANES, Params, Weighting};
use fewbit_format::{Group, ScaleType};
use fewbit_kernel::strip::quadratic;
use serde::Deserialize;

mod cluster;
mod e8p;
mod float;
mod ggml;
mod int;
mod learned;
mod second;
mod signs;
mod sparse;
mod table;
mod trellis;
mod vector;

/// `grid.*`
pub(crate) const GRIDS: &[Entry<dyn Grid>] = &[
    int::ENTRY,
    table::ENTRY,
    float::ENTRY,
    ggml::ENTRY,
    learned::ENTRY,
    signs::ENTRY,
    sparse::ENTRY,
    e8p::ENTRY,
    trellis::ENTRY,
    vector::ENTRY,
];

/// How many columns share parameters, as a recipe says it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a number of columns, `\"row\"`, `\"tensor\"`, or `[rows, columns]` of a block is needed"
)]
pub(crate) enum GroupSetting {
    Columns(usize),
    Named(GroupName),
    Block([usize; 2]),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum GroupName {
    Row,
    Tensor,
}

/// The type of stored scales, as a recipe says it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ScaleSetting {
    F16,
    Bf16,
    F32,
    E8m0,
    E4m3,
}

impl From<GroupSetting> for Group {
    fn from(setting: GroupSetting) -> Self {
        match setting {
            GroupSetting::Columns(g) => Self::Columns(g),
            GroupSetting::Named(GroupName::Row) => Self::Row,
            GroupSetting::Named(GroupName::Tensor) => Self::Tensor,
            GroupSetting::Block(sizes) => Self::Block(sizes),
        }
    }
}

impl From<ScaleSetting> for ScaleType {
    fn from(setting: ScaleSetting) -> Self {
        match setting {
            ScaleSetting::F16 => Self::F16,
            ScaleSetting::Bf16 => Self::BF16,
            ScaleSetting::F32 => Self::F32,
            ScaleSetting::E8m0 => Self::E8M0,
            ScaleSetting::E4m3 => Self::E4M3,
        }
    }
}

/// How bad errors `[column][lane]` of a group are, per lane: the sum of `measure` of each, or what the outputs say.
fn errors(delta: &[[f32; LANES]], by: Weighting<'_>, measure: impl Fn(f32) -> f32) -> [f64; LANES] {
    let mut sums = [0.0; LANES];
    match by {
        Weighting::Gram(g) => return quadratic(g.data(), delta.as_flattened()),
        Weighting::Column(weights) => {
            for (column, w) in delta.iter().zip(weights) {
                sums.iter_mut().zip(column).for_each(|(sum, d)| *sum += f64::from(w * measure(*d)));
            }
        }
        Weighting::Element(weights) => {
            for (column, w) in delta.iter().zip(weights) {
                for lane in 0..LANES {
                    sums[lane] += f64::from(w[lane] * measure(column[lane]));
                }
            }
        }
        Weighting::None => {
            for column in delta {
                sums.iter_mut().zip(column).for_each(|(sum, d)| *sum += f64::from(measure(*d)));
            }
        }
    }
    sums
}

/// `g128`, `row` or `tensor`.
fn group_label(group: Group) -> String {
    match group {
        Group::Columns(g) => format!("g{g}"),
        other => other.to_string(),
    }
}

/// Mean square of the weights of each lane that are in sight.
fn mean_squares(values: &[[f32; LANES]], by: Weighting<'_>) -> [f64; LANES] {
    let (mut sums, mut counts) = ([0.0f64; LANES], [0.0f64; LANES]);
    for (c, column) in values.iter().enumerate() {
        for lane in (0..LANES).filter(|lane| !by.hides(c, *lane)) {
            sums[lane] += f64::from(column[lane]) * f64::from(column[lane]);
            counts[lane] += 1.0;
        }
    }
    std::array::from_fn(|lane| sums[lane] / counts[lane].max(1.0))
}

/// Codes `[strip][column][lane]` as `[rows · cols]`.
fn flat_codes(rows: usize, cols: usize, codes: &[Vec<[u16; LANES]>]) -> Vec<u8> {
    let mut flat = vec![0; rows * cols];
    for (r, row) in flat.chunks_exact_mut(cols).enumerate() {
        row.iter_mut().zip(&codes[r / LANES]).for_each(|(out, lanes)| *out = lanes[r % LANES] as u8);
    }
    flat
}

/// The `index`-th number of all groups' parameters, as `[rows · groups]`, or `[1]` for a whole matrix.
fn flat_params(group: Group, rows: usize, cols: usize, params: &[Vec<Params>], index: usize) -> Vec<f32> {
    if group == Group::Tensor {
        return vec![params[0][0].0[index][0]];
    }
    let per_row = cols / group.width(cols);
    (0..rows * per_row).map(|i| params[i / per_row / LANES][i % per_row].0[index][i / per_row % LANES]).collect()
}
