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
        (
            "bits = 3",
            "bits of a code, 1 to 8; each row has a table of 2^bits numbers, of 8 bits under a scale up to 5 bits, else in f16",
        ),
        (
            "weights = \"fisher\"",
            "how much an error counts: `none` (all alike), `activations` (by the size of the input), `fisher` (by squared gradients)",
        ),
    ],
    build: |mut table| {
        // Scales are in f16, whatever the source's type.
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
        let group = if self.has_int8() { Group::Row } else { Group::Tensor };
        TableGrid { bits: self.bits, group, scale: ScaleType::F16 }
    }

    /// Whether levels are integers under a scale of the row: on rows of few hundred weights a table in f16 is most of what
    /// stands beside the codes, and so few levels lie far enough apart.
    fn has_int8(self) -> bool {
        self.bits <= 5
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
        let level = match rows {
            // One row's table is everybody's.
            1 => 32,
            _ if self.has_int8() => 8,
            _ => 16,
        };
        let scales = if self.has_int8() { rows } else { 1 };
        (rows * (8 * packed_len(cols, self.bits) + level * self.grid().levels()) + 16 * scales) as u64
    }

    fn begin(&self, job: &GridJob<'_>) -> Result<Box<dyn BoundGrid>> {
        Ok(Box::new(Bound {
            grid: self.grid(),
            has_int8: self.has_int8(),
            rows: job.weight.rows(),
            cols: job.weight.cols(),
        }))
    }

    fn label(&self) -> String {
        format!("w{} learned", self.bits)
    }
}

struct Bound {
    grid: TableGrid,
    has_int8: bool,
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

    /// The levels of each row, ascending, and the scale under which they are stored.
    fn fit(&self, at: Place, values: &[[f32; LANES]], by: Weighting<'_>) -> Params {
        let mut numbers = vec![[0.0; LANES]; self.grid.levels() + 1];
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
            let levels = centres(&mut points, self.grid.levels());
            let reach = levels.iter().fold(0f32, |most, l| most.max(l.abs()));
            let scale = if self.has_int8 { ScaleType::F16.round(reach / 127.0) } else { 1.0 };
            let scale = if scale > 0.0 { scale } else { 1.0 };
            for (number, level) in numbers.iter_mut().zip(levels) {
                let integer = || scale * (level / scale).round_ties_even().clamp(-127.0, 127.0);
                number[lane] = if self.has_int8 { integer() } else { ScaleType::F16.round(level) };
            }
            numbers[self.grid.levels()][lane] = scale;
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
        let levels = &params.0[..self.grid.levels()];
        for ((w, code), out) in tile.iter().zip(codes).zip(decoded) {
            *code = [0; LANES];
            for pair in levels.windows(2) {
                for lane in 0..LANES {
                    code[lane] += u16::from(w[lane] > 0.5 * (pair[0][lane] + pair[1][lane]));
                }
            }
            (0..LANES).for_each(|lane| out[lane] = levels[usize::from(code[lane])][lane]);
        }
    }

    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, params: Vec<Vec<Params>>) -> Result<Storage> {
        let flat = flat_codes(self.rows, self.cols, &codes);
        let number = |r: usize, i: usize| params[r / LANES][0].0[i][r % LANES];
        let levels = self.grid.levels();
        let scales: Vec<f32> = (0..self.rows).map(|r| number(r, levels)).collect();
        let table = |r: usize| (0..levels).map(move |i| (r, i));
        let level =
            |(r, i): (usize, usize)| if self.has_int8 { (number(r, i) / scales[r]).round() } else { number(r, i) };
        let tables = (0..self.rows).flat_map(table).map(level).collect();
        let scales = if self.has_int8 { scales } else { vec![1.0] };
        TableCodes::new(self.rows, self.cols, self.grid, &flat, scales, tables).map(Storage::Table)
    }
}
