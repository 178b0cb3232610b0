use fewbit_engine::kinds::{BoundGrid, Entry, Grid, GridJob, LANES, Needs, Params, Place, Weighting, parse};
use fewbit_format::{
    Error, Group, LATTICE_DIM, LatticeCodes, LatticeGrid, Result, ScaleType, SecondStage, Storage, e8p_point,
    lattice_point,
};
use fewbit_kernel::lattice::{nearest_e8p, nearest_short};
use serde::Deserialize;

use super::{GroupSetting, ScaleSetting, flat_params, group_label, mean_squares};

pub(crate) const ENTRY: Entry<dyn Grid> = Entry {
    name: "e8p",
    cite: "Tseng et al., QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice Codebooks, 2024 (arXiv:2402.04396)",
    settings: &[
        ("bits = 2", "2: E8P; 3: and one of 256 short vectors of E8; 4: and another E8P point"),
        ("group = \"tensor\"", "columns that share a scale, a multiple of 8; `\"row\"` or `\"tensor\"`"),
        (
            "spread = 0.0",
            "root mean square of the weights in units of the lattice; 0: 0.9 for 2 bits, 0.98 for 3, 1.03 for 4",
        ),
        (
            "scale = \"source\"",
            "type of the stored scales: `f16`, `bf16`, `f32`; `source` is bf16 for a bf16 checkpoint, else f16",
        ),
    ],
    build: |table| Ok(Box::new(parse::<E8pSettings>("grid.e8p", table)?)),
};

/// Eight columns of a row as one point of a moved lattice: `ŵ = s · (E8P[c] + second stage)`.
///
/// The scale is such that the weights' root mean square becomes `spread`; what the first point leaves is rounded to the
/// second stage's points, made smaller by its divisor.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct E8pSettings {
    bits: u8,
    group: GroupSetting,
    spread: f32,
    scale: ScaleSetting,
}

impl Default for E8pSettings {
    fn default() -> Self {
        let group = GroupSetting::Named(super::GroupName::Tensor);
        Self { bits: 2, group, spread: 0.0, scale: ScaleSetting::F16 }
    }
}

impl E8pSettings {
    fn grid(&self) -> Result<LatticeGrid> {
        let second = match self.bits {
            2 => SecondStage::None,
            3 => SecondStage::E8Short,
            4 => SecondStage::E8P,
            other => return Err(Error::input(format!("`grid.bits` is {other}, where 2, 3 or 4 are possible"))),
        };
        Ok(LatticeGrid { second, group: self.group.into(), scale: self.scale.into() })
    }

    fn spread(&self) -> f32 {
        match (self.spread, self.bits) {
            (0.0, 2) => 0.9,
            (0.0, 3) => 0.98,
            (0.0, _) => 1.03,
            (spread, _) => spread,
        }
    }
}

impl Grid for E8pSettings {
    fn check(&self, _: usize, cols: usize) -> Result<()> {
        if !(self.spread.is_finite() && self.spread >= 0.0) {
            return Err(Error::input(format!("`grid.spread` is {}, where a positive number is needed", self.spread)));
        }
        self.grid()?.check(cols)
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        let (group, scale) = (Group::from(self.group), ScaleType::from(self.scale));
        rows as u64 * cols as u64 * u64::from(self.bits) + group.count(rows, cols) as u64 * scale.bits()
    }

    fn begin(&self, job: &GridJob<'_>) -> Result<Box<dyn BoundGrid>> {
        let w = job.weight;
        self.check(w.rows(), w.cols())?;
        let mut bound =
            Bound { grid: self.grid()?, spread: self.spread(), rows: w.rows(), cols: w.cols(), shared: None };
        if bound.grid.group == Group::Tensor {
            let square: f64 = w.data().iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
            bound.shared = Some(bound.scale(square / w.data().len().max(1) as f64));
        }
        Ok(Box::new(bound))
    }

    fn label(&self) -> String {
        format!("e8p {} bits {}", self.bits, group_label(self.group.into()))
    }
}

struct Bound {
    grid: LatticeGrid,
    spread: f32,
    rows: usize,
    cols: usize,
    /// The scale of the whole matrix, for [`Group::Tensor`].
    shared: Option<f32>,
}

impl Bound {
    /// The stored scale of weights with this mean square; zeros get 1.
    fn scale(&self, square: f64) -> f32 {
        if square == 0.0 { 1.0 } else { self.grid.scale.round(square.sqrt() as f32 / self.spread) }
    }
}

impl BoundGrid for Bound {
    fn width(&self) -> usize {
        LATTICE_DIM
    }

    fn group(&self) -> usize {
        self.grid.group.width(self.cols)
    }

    fn fit(&self, _: Place, values: &[[f32; LANES]], by: Weighting<'_>) -> Params {
        if let Some(scale) = self.shared {
            return Params(vec![[scale; LANES]]);
        }
        Params(vec![mean_squares(values, by).map(|square| self.scale(square))])
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
        let divisor = self.grid.second.divisor();
        let tiles = tile.as_chunks::<LATTICE_DIM>().0.iter().zip(codes.as_chunks_mut::<LATTICE_DIM>().0);
        for ((w, codes), out) in tiles.zip(decoded.as_chunks_mut::<LATTICE_DIM>().0) {
            let mut x = *w;
            x.as_flattened_mut()
                .chunks_exact_mut(LANES)
                .for_each(|x| x.iter_mut().zip(scales).for_each(|(x, s)| *x /= s));
            let first = nearest_e8p(&x);
            for lane in 0..LANES {
                let point = e8p_point(first[lane]);
                (0..LATTICE_DIM).for_each(|i| x[i][lane] = (x[i][lane] - point[i]) * divisor);
            }
            let second = match self.grid.second {
                SecondStage::None => [0; LANES],
                SecondStage::E8Short => nearest_short(&x),
                SecondStage::E8P => nearest_e8p(&x),
            };
            (codes[0], codes[1]) = (first, second);
            for lane in 0..LANES {
                let point = lattice_point(first[lane], Some((self.grid.second, second[lane])));
                (0..LATTICE_DIM).for_each(|i| out[i][lane] = scales[lane] * point[i]);
            }
        }
    }

    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, params: Vec<Vec<Params>>) -> Result<Storage> {
        let flat = |place: usize| -> Vec<u16> {
            let row = |r: usize| codes[r / LANES].iter().skip(place).step_by(LATTICE_DIM).map(move |c| c[r % LANES]);
            (0..self.rows).flat_map(row).collect()
        };
        let second = if self.grid.second == SecondStage::None { Vec::new() } else { flat(1) };
        let scales = match self.shared {
            Some(scale) => vec![scale],
            None => flat_params(self.grid.group, self.rows, self.cols, &params, 0),
        };
        LatticeCodes::new(self.rows, self.cols, self.grid, flat(0), &second, &scales).map(Storage::Lattice)
    }
}
