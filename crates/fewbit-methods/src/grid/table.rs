use std::sync::Mutex;

use fewbit_engine::kinds::{BoundGrid, Entry, Grid, GridJob, LANES, Needs, Params, Place, Weighting, parse};
use fewbit_format::{Error, Group, Numbers, Result, Storage, TableCodes, TableGrid, packed_len};
use serde::Deserialize;

use super::second::{DOUBLE, double};
use super::{GroupSetting, ScaleSetting, flat_codes, flat_params, group_label};

pub(crate) const ENTRY: Entry<dyn Grid> = Entry {
    name: "table",
    cite: "Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023 (arXiv:2305.14314)",
    settings: &[
        (
            "levels = \"nf4\"",
            "the numbers: `nf4`, `nf3`, `nf2` (quantiles of a normal distribution), `fp4` (bitsandbytes)",
        ),
        ("group = 64", "columns that share a scale; `\"row\"` or `\"tensor\"`"),
        (
            "scale = \"source\"",
            "type of the stored scales: `f16`, `bf16`, `f32`; `source` is bf16 for a bf16 checkpoint, else f16",
        ),
        ("double = false", "scales are codes of 8 bits themselves, over 256 of them (double quantization)"),
    ],
    build: |table| {
        let grid: TableSettings = parse("grid.table", table)?;
        if grid.double && matches!(grid.group.into(), Group::Tensor) {
            return Err(Error::input("`grid.double` needs scales of rows or groups, and there is one for the matrix"));
        }
        Ok(Box::new(grid))
    },
};

/// A fixed table of numbers: `ŵ = s · T[q]`, the greatest magnitude of a group at the table's end.
///
/// The weight is rounded against the scale as it will be stored; between two levels their midpoint decides.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TableSettings {
    levels: Levels,
    group: GroupSetting,
    scale: ScaleSetting,
    double: bool,
}

impl Default for TableSettings {
    fn default() -> Self {
        Self { levels: Levels::Nf4, group: GroupSetting::Columns(64), scale: ScaleSetting::F16, double: false }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Levels {
    Nf4,
    Nf3,
    Nf2,
    Fp4,
}

/// `Φ⁻¹` at 8 and 9 equal steps from 0.9677083 to a half, 0 between, divided by the greatest (QLoRA, section 3).
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The same with 4 and 5, and 2 and 3, steps (LQ-LoRA, appendix A).
const NF3: [f32; 8] = [-1.0, -0.478_629_17, -0.217_141_82, 0.0, 0.160_930_17, 0.337_915_2, 0.562_616_94, 1.0];
const NF2: [f32; 4] = [-1.0, 0.0, 0.337_915_2, 1.0];

impl Levels {
    fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Nf3 => "nf3",
            Self::Nf2 => "nf2",
            Self::Fp4 => "fp4",
        }
    }

    /// Ascending. A format with two zeros has them both.
    fn table(self) -> Vec<f32> {
        let magnitudes: [f32; 8] = match self {
            Self::Nf4 => return NF4.to_vec(),
            Self::Nf3 => return NF3.to_vec(),
            Self::Nf2 => return NF2.to_vec(),
            Self::Fp4 => [0.0, 1.0 / 192.0, 1.0 / 6.0, 0.25, 1.0 / 3.0, 0.5, 2.0 / 3.0, 1.0],
        };
        magnitudes.iter().rev().map(|m| -m).chain(magnitudes).collect()
    }
}

impl TableSettings {
    fn grid(&self) -> TableGrid {
        let bits = match self.levels {
            Levels::Nf4 | Levels::Fp4 => 4,
            Levels::Nf3 => 3,
            Levels::Nf2 => 2,
        };
        TableGrid { bits, group: self.group.into(), scale: self.scale.into() }
    }
}

impl Grid for TableSettings {
    fn check(&self, _: usize, cols: usize) -> Result<()> {
        Group::from(self.group).check(cols)
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        let TableGrid { bits, group, scale } = self.grid();
        let codes = 8 * (rows * packed_len(cols, bits)) as u64;
        let numbers = group.count(rows, cols);
        let scales = if self.double {
            // A reach for each block, and the mean.
            8 * numbers as u64 + 32 * (DOUBLE.count(rows, numbers / rows) + 1) as u64
        } else {
            numbers as u64 * scale.bits()
        };
        codes + scales + 32 * self.grid().levels() as u64
    }

    fn begin(&self, job: &GridJob<'_>) -> Result<Box<dyn BoundGrid>> {
        let w = job.weight;
        let grid = self.grid();
        grid.group.check(w.cols())?;
        let table = self.levels.table();
        if table.len() != grid.levels() {
            return Err(Error::internal("a table that does not fill its codes"));
        }
        let midpoints = table.windows(2).map(|pair| 0.5 * (pair[0] + pair[1])).collect();
        let (double, sealed) = (self.double, Mutex::default());
        let mut bound = Bound { grid, double, sealed, table, midpoints, rows: w.rows(), cols: w.cols(), shared: None };
        if grid.group == Group::Tensor {
            bound.shared = Some(bound.scale(w.data().iter().fold(0.0, |reach, v| reach.max(v.abs()))));
        }
        Ok(Box::new(bound))
    }

    fn label(&self) -> String {
        let double = if self.double { " double" } else { "" };
        format!("{} {}{double}", self.levels.name(), group_label(self.group.into()))
    }
}

struct Bound {
    grid: TableGrid,
    double: bool,
    /// The scales of the whole matrix as they will be read.
    sealed: Mutex<Option<Numbers>>,
    table: Vec<f32>,
    midpoints: Vec<f32>,
    rows: usize,
    cols: usize,
    /// The scale of the whole matrix, for [`Group::Tensor`].
    shared: Option<f32>,
}

impl Bound {
    /// The stored scale of weights of at most this magnitude; a group of zeros gets 1.
    fn scale(&self, reach: f32) -> f32 {
        let end = self.table[self.table.len() - 1];
        let stored = self.grid.scale.round(reach / end);
        if stored > 0.0 { stored } else { 1.0 }
    }
}

impl BoundGrid for Bound {
    fn width(&self) -> usize {
        1
    }

    fn group(&self) -> usize {
        self.grid.group.width(self.cols)
    }

    fn fit(&self, _: Place, values: &[[f32; LANES]], by: Weighting<'_>) -> Params {
        if let Some(s) = self.shared {
            return Params(vec![[s; LANES]]);
        }
        Params(vec![by.reach(values).map(|r| self.scale(r))])
    }

    fn is_sealed_as_a_whole(&self) -> bool {
        self.double
    }

    /// Double quantization: the scales of the whole matrix become those that will be read.
    fn seal(&self, params: &mut [Vec<Params>]) {
        if !self.double {
            return;
        }
        let scales = flat_params(self.grid.group, self.rows, self.cols, params, 0);
        let per_row = scales.len() / self.rows;
        // Sizes are right, and finite numbers stay finite.
        let Ok(read) = double(&scales, [self.rows, per_row]) else { return };
        for (i, s) in read.values().iter().enumerate() {
            params[i / per_row / LANES][i % per_row].0[0][i / per_row % LANES] = *s;
        }
        *self.sealed.lock().expect("no task panics while it holds the scales") = Some(read);
    }

    fn round(
        &self,
        _: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        let scales = &params.0[0];
        for ((w, code), out) in tile.iter().zip(codes).zip(decoded) {
            let mut x = *w;
            x.iter_mut().zip(scales).for_each(|(x, s)| *x /= s);
            *code = [0; LANES];
            for middle in &self.midpoints {
                code.iter_mut().zip(&x).for_each(|(q, x)| *q += u16::from(x > middle));
            }
            for lane in 0..LANES {
                out[lane] = scales[lane] * self.table[usize::from(code[lane])];
            }
        }
    }

    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, params: Vec<Vec<Params>>) -> Result<Storage> {
        let flat = flat_codes(self.rows, self.cols, &codes);
        let scales = flat_params(self.grid.group, self.rows, self.cols, &params, 0);
        let sealed = self.sealed.lock().expect("no task panics while it holds the scales").take();
        let scales = sealed.unwrap_or_else(|| scales.into());
        TableCodes::new(self.rows, self.cols, self.grid, &flat, scales, self.table.clone()).map(Storage::Table)
    }
}

#[cfg(test)]
mod tests {
    use fewbit_engine::InputStats;
    use fewbit_engine::kinds::Strip;
    use fewbit_format::Mat;
    use fewbit_kernel::Team;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Sums of twelve uniform numbers: nearly normal.
    fn normal(rows: usize, cols: usize, seed: u64) -> Mat {
        let mut r = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        Mat::from_fn(rows, cols, |_, _| (0..12).map(|_| r.random::<f32>()).sum::<f32>() - 6.0)
    }

    fn build(text: &str) -> Box<dyn Grid> {
        (ENTRY.build)(text.parse().unwrap()).unwrap()
    }

    /// What is stored, and what the solver saw.
    fn nearest(grid: &dyn Grid, w: &Mat) -> (Mat, Mat) {
        let bound =
            grid.begin(&GridJob { weight: w, stats: &InputStats::default(), seed: 0, team: &Team::new(1) }).unwrap();
        let fit = |i: usize| {
            let groups = Strip::of(w, i).data;
            let groups = groups.chunks(bound.group()).enumerate();
            let at = |k| Place { strip: i, column: k * bound.group() };
            groups.map(|(k, values)| bound.fit(at(k), values, Weighting::None)).collect::<Vec<_>>()
        };
        let mut all_params: Vec<_> = (0..Strip::count(w.rows())).map(fit).collect();
        bound.seal(&mut all_params);
        let (mut all_codes, mut seen) = (Vec::new(), Mat::zeros(w.rows(), w.cols()));
        for i in 0..Strip::count(w.rows()) {
            let strip = Strip::of(w, i);
            let (mut codes, mut decoded) = (vec![[0; LANES]; w.cols()], vec![[0.0; LANES]; w.cols()]);
            for (k, p) in all_params[i].iter().enumerate() {
                let at = k * bound.group()..(k + 1) * bound.group();
                let place = Place { strip: i, column: at.start };
                bound.round(place, p, &strip.data[at.clone()], &mut codes[at.clone()], &mut decoded[at]);
            }
            for (lane, r) in strip.rows.clone().enumerate() {
                (0..w.cols()).for_each(|c| seen[(r, c)] = decoded[c][lane]);
            }
            all_codes.push(codes);
        }
        let storage = bound.store(all_codes, all_params).unwrap();
        assert_eq!(storage.stored_bits(), grid.stored_bits(w.rows(), w.cols()));
        let mut stored = Mat::zeros(w.rows(), w.cols());
        storage.decode_rows(0..w.rows(), stored.data_mut());
        (stored, seen)
    }

    #[test]
    fn what_is_stored_is_the_nearest_level_and_rounding_it_again_changes_nothing() {
        let w = normal(21, 64, 1);
        for levels in [Levels::Nf4, Levels::Nf3, Levels::Nf2, Levels::Fp4] {
            for group in ["16", "\"row\"", "\"tensor\""] {
                let grid = build(&format!("levels = \"{}\"\ngroup = {group}\nscale = \"f32\"", levels.name()));
                let (stored, seen) = nearest(&*grid, &w);
                assert_eq!(stored, seen);
                let (again, _) = nearest(&*grid, &stored);
                assert!(stored.data().iter().zip(again.data()).all(|(a, b)| (a - b).abs() <= 1e-6), "{levels:?}");
                let table = levels.table();
                for r in 0..21 {
                    let width = if group == "16" { 16 } else { 64 };
                    for (k, (ws, qs)) in w.row(r).chunks(width).zip(stored.row(r).chunks(width)).enumerate() {
                        let all = if group == "\"tensor\"" { w.data() } else { ws };
                        let scale = all.iter().fold(0f32, |m, v| m.max(v.abs())) / table[table.len() - 1];
                        // Both ends of NF4 are levels: what reaches farthest comes back as it was.
                        let is_end = |w: f32| matches!(levels, Levels::Nf4) && w.abs() == scale;
                        assert!(ws.iter().zip(qs).all(|(w, q)| !is_end(*w) || w == q), "{levels:?}");
                        for (w, q) in ws.iter().zip(qs) {
                            let best = table.iter().map(|t| (w - scale * t).abs()).fold(f32::MAX, f32::min);
                            assert!((w - q).abs() <= best + 1e-6, "{levels:?}, row {r}, group {k}: {w} became {q}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn double_quantization_costs_four_tenths_of_a_bit_less_and_hardly_any_precision() {
        // 320 scales: blocks of 256 begin within rows, and the last is not full.
        let w = normal(40, 512, 3);
        let error = |q: &Mat| -> f64 { w.data().iter().zip(q.data()).map(|(a, b)| f64::from((a - b).powi(2))).sum() };
        let [plain, double] = ["", "double = true"].map(build);
        let ((once, _), (twice, seen)) = (nearest(&*plain, &w), nearest(&*double, &w));
        assert_eq!(twice, seen);
        assert!(error(&twice) < 1.01 * error(&once), "{} {}", error(&twice), error(&once));
        assert_eq!(double.stored_bits(4096, 4096), 4096 * (4096 * 4 + 64 * 8 + 8) + 32 + 512);
    }

    #[test]
    fn tables_are_what_their_papers_say() {
        // bitsandbytes' floats in units of the greatest.
        assert!((Levels::Fp4.table()[9] - 0.005_208_3).abs() < 1e-7);
        assert!(NF4.windows(2).all(|p| p[0] < p[1]) && NF4[7] == 0.0);
    }

    #[test]
    fn normal_weights_lose_less_on_quantiles_than_on_a_uniform_grid() {
        let w = normal(64, 256, 2);
        let error = |q: &Mat| -> f64 { w.data().iter().zip(q.data()).map(|(a, b)| f64::from((a - b).powi(2))).sum() };
        let (nf4, _) = nearest(&*build(""), &w);
        // Sixteen even steps over the same range.
        let uniform = Mat::from_fn(64, 256, |r, c| {
            let reach = w.row(r)[c / 64 * 64..][..64].iter().fold(0f32, |m, v| m.max(v.abs()));
            (w[(r, c)] * 7.0 / reach).round() * reach / 7.0
        });
        assert!(error(&nf4) < 0.95 * error(&uniform), "{} {}", error(&nf4), error(&uniform));
    }
}
