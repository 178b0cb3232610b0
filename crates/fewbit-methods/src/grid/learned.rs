use fewbit_engine::kinds::{BoundGrid, Entry, Grid, GridJob, LANES, Needs, Params, Place, WeighBy, Weighting, parse};
use fewbit_format::{Error, Group, Result, ScaleType, Storage, TableCodes, TableGrid, packed_len};
use serde::Deserialize;

use super::cluster::centres;
use super::flat_codes;
use super::signs::WeightSetting;

pub(crate) const ENTRY: Entry<dyn Grid> = Entry {
    name: "learned",
    cite: "Kim et al., SqueezeLLM: Dense-and-Sparse Quantization, 2023 (arXiv:2306.07629)",
    settings: &[
        ("bits = 3", "bits of a code, 1 to 8; each row has a table of 2^bits numbers in f16"),
        (
            "weights = \"fisher\"",
            "how much an error counts: `none` (all alike), `activations` (by the size of the input), `fisher` (by squared gradients)",
        ),
    ],
    build: |mut table| {
        // Tables are in f16, whatever the source's type.
        table.remove("scale");
        let grid: Learned = parse("grid.learned", table)?;
        if !(1..=8).contains(&grid.bits) {
            return Err(Error::input(format!("`grid.bits` is {}, where 1 to 8 are possible", grid.bits)));
        }
        Ok(Box::new(grid))
    },
};

/// A table of numbers for each row: the best there is for `Σ h (w − ŵ)²` over the row, found exactly.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Learned {
    bits: u8,
    weights: WeightSetting,
}

impl Default for Learned {
    fn default() -> Self {
        Self { bits: 3, weights: WeightSetting::Fisher }
    }
}

impl Learned {
    fn grid(self) -> TableGrid {
        TableGrid { bits: self.bits, group: Group::Tensor, scale: ScaleType::F16 }
    }
}

impl Grid for Learned {
    fn check(&self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn needs(&self) -> Needs {
        self.weights.needs()
    }

    fn weigh_by(&self) -> WeighBy {
        self.weights.weigh_by()
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        // One row's table is everybody's.
        let level = if rows == 1 { 32 } else { 16 };
        (rows * (8 * packed_len(cols, self.bits) + level * self.grid().levels())) as u64 + ScaleType::F16.bits()
    }

    fn begin(&self, job: &GridJob<'_>) -> Result<Box<dyn BoundGrid>> {
        Ok(Box::new(Bound { grid: self.grid(), rows: job.weight.rows(), cols: job.weight.cols() }))
    }

    fn label(&self) -> String {
        format!("w{} learned", self.bits)
    }
}

struct Bound {
    grid: TableGrid,
    rows: usize,
    cols: usize,
}

impl BoundGrid for Bound {
    fn width(&self) -> usize {
        1
    }

    fn group(&self) -> usize {
        self.cols
    }

    /// The levels of each row, ascending.
    fn fit(&self, at: Place, values: &[[f32; LANES]], by: Weighting<'_>) -> Params {
        let mut levels = vec![[0.0; LANES]; self.grid.levels()];
        let mut points = Vec::with_capacity(values.len());
        for lane in 0..LANES.min(self.rows - at.strip * LANES) {
            points.clear();
            points.extend(values.iter().enumerate().map(|(c, column)| {
                let weight = match by {
                    Weighting::None | Weighting::Gram(_) => 1.0,
                    Weighting::Column(w) => w[c],
                    Weighting::Element(w) => w[c][lane],
                };
                (column[lane], weight)
            }));
            for (level, centre) in levels.iter_mut().zip(centres(&mut points, self.grid.levels())) {
                level[lane] = ScaleType::F16.round(centre);
            }
        }
        Params(levels)
    }

    fn round(
        &self,
        _: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        for ((w, code), out) in tile.iter().zip(codes).zip(decoded) {
            *code = [0; LANES];
            for pair in params.0.windows(2) {
                for lane in 0..LANES {
                    code[lane] += u16::from(w[lane] > 0.5 * (pair[0][lane] + pair[1][lane]));
                }
            }
            (0..LANES).for_each(|lane| out[lane] = params.0[usize::from(code[lane])][lane]);
        }
    }

    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, params: Vec<Vec<Params>>) -> Result<Storage> {
        let flat = flat_codes(self.rows, self.cols, &codes);
        let row = |r: usize| params[r / LANES][0].0.iter().map(move |level| level[r % LANES]);
        let tables = (0..self.rows).flat_map(row).collect();
        TableCodes::new(self.rows, self.cols, self.grid, &flat, vec![1.0], tables).map(Storage::Table)
    }
}
