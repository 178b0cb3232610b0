use std::sync::Mutex;

use fewbit_engine::kinds::{BoundGrid, Entry, Grid, GridJob, LANES, Needs, Params, Place, Weighting, parse};
use fewbit_format::{
    Error, Group, Mat, Result, Storage, TILE, TILE_LEN, TrellisCode, TrellisCodes, TrellisGrid, pack_path,
};
use fewbit_kernel::trellis::{Search, Trellis};
use serde::Deserialize;

use super::{GroupSetting, ScaleSetting, flat_params, group_label, mean_squares};

pub(crate) const ENTRY: Entry<dyn Grid> = Entry {
    name: "trellis",
    cite: "Tseng et al., QTIP: Quantization with Trellises and Incoherence Processing, 2024 (arXiv:2406.11235)",
    settings: &[
        ("bits = 2.0", "bits of a weight, 1 to 4 in steps of 1/32"),
        ("states = 12", "bits of a state, 8 to 16: each more doubles the time"),
        ("code = \"1mad\"", "what a state stands for: `1mad` or `3inst`"),
        ("group = \"tensor\"", "columns that share a scale, a multiple of 16; `\"row\"` or `\"tensor\"`"),
        ("spread = 0.0", "root mean square of the code in units of the weights'; 0: searched for each matrix"),
        (
            "scale = \"source\"",
            "type of the stored scales: `f16`, `bf16`, `f32`; `source` is bf16 for a bf16 checkpoint, else f16",
        ),
    ],
    build: |table| Ok(Box::new(parse::<TrellisSettings>("grid.trellis", table)?)),
};

/// Tiles of 16 × 16 weights as closed paths through a bit-shift trellis: `ŵ = s · f(state)`, a state the last bits of the
/// tile's stream. A vector code of 256 dimensions whose codebook is computed.
///
/// Bits need not be whole: weight `i` adds the stream's bits up to `⌊(i + 1) · bits⌋`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TrellisSettings {
    bits: f32,
    states: u8,
    code: Code,
    group: GroupSetting,
    spread: f32,
    scale: ScaleSetting,
}

impl Default for TrellisSettings {
    fn default() -> Self {
        Self {
            bits: 2.0,
            states: 12,
            code: Code::OneMad,
            group: GroupSetting::Named(super::GroupName::Tensor),
            spread: 0.0,
            scale: ScaleSetting::F16,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Code {
    #[serde(rename = "1mad")]
    OneMad,
    #[serde(rename = "3inst")]
    ThreeInst,
}

impl TrellisSettings {
    fn grid(&self) -> Result<TrellisGrid> {
        let tile_bits = self.bits * TILE_LEN as f32;
        if !(0.0..65536.0).contains(&tile_bits) || tile_bits.fract() != 0.0 {
            return Err(Error::input(format!("`grid.bits` is {}, where a multiple of 1/32 is needed", self.bits)));
        }
        let code = match self.code {
            Code::OneMad => TrellisCode::OneMad,
            Code::ThreeInst => TrellisCode::ThreeInst,
        };
        let (group, scale) = (self.group.into(), self.scale.into());
        Ok(TrellisGrid { state_bits: self.states, tile_bits: tile_bits as u16, code, group, scale })
    }
}

impl Grid for TrellisSettings {
    fn check(&self, _: usize, cols: usize) -> Result<()> {
        let grid = self.grid()?;
        grid.check(cols)?;
        if self.bits.ceil() > f32::from(Trellis::most_bits(self.states)) {
            return Err(Error::input(format!(
                "`grid.bits` is {}, too much for {} bits of state",
                self.bits, self.states
            ))
            .hint("set `grid.states` to twice the bits and four, or more"));
        }
        if !(self.spread.is_finite() && self.spread >= 0.0) {
            return Err(Error::input(format!("`grid.spread` is {}, where a positive number is needed", self.spread)));
        }
        Ok(())
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        let (group, scale) = (Group::from(self.group), fewbit_format::ScaleType::from(self.scale));
        let paths = (rows.div_ceil(TILE) * (cols / TILE)) as u64 * f64::from(self.bits * TILE_LEN as f32) as u64;
        paths + group.count(rows, cols) as u64 * scale.bits()
    }

    fn begin(&self, job: &GridJob<'_>) -> Result<Box<dyn BoundGrid>> {
        let w = job.weight;
        self.check(w.rows(), w.cols())?;
        let grid = self.grid()?;
        let mut bound = Bound {
            grid,
            trellis: Trellis::new(grid),
            spread: self.spread,
            shared: None,
            rows: w.rows(),
            cols: w.cols(),
            idle: Mutex::default(),
        };
        if self.spread == 0.0 {
            bound.spread = bound.search_spread(w);
        }
        if grid.group == Group::Tensor {
            bound.shared = Some(bound.scale(mean_square(w.data().iter())));
        }
        Ok(Box::new(bound))
    }

    fn label(&self) -> String {
        format!("trellis {} bits of {} states {}", self.bits, 1u32 << self.states, group_label(self.group.into()))
    }
}

fn mean_square<'a>(values: impl ExactSizeIterator<Item = &'a f32>) -> f64 {
    let count = values.len().max(1) as f64;
    values.map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / count
}

struct Bound {
    grid: TrellisGrid,
    trellis: Trellis,
    /// Root mean square of the code in units of the weights'.
    spread: f32,
    /// The scale of the whole matrix, for [`Group::Tensor`].
    shared: Option<f32>,
    rows: usize,
    cols: usize,
    /// Room for searches that nobody is using.
    idle: Mutex<Vec<Search>>,
}

impl Bound {
    /// The stored scale of weights with this mean square; none for zeros.
    fn scale(&self, square: f64) -> f32 {
        if square == 0.0 { 0.0 } else { self.grid.scale.round(self.spread * square.sqrt() as f32) }
    }

    /// The spread under which a sample of tiles, evenly over the matrix, loses least.
    fn search_spread(&self, w: &Mat) -> f32 {
        const SAMPLE: usize = 24;
        const SPREADS: [f32; 9] = [0.9, 0.95, 1.0, 1.04, 1.08, 1.12, 1.16, 1.2, 1.25];
        let (down, across) = (w.rows() / TILE, w.cols() / TILE);
        let count = (down * across).min(SAMPLE);
        let mut losses = [0.0f64; SPREADS.len()];
        let mut search = Search::default();
        for i in 0..count {
            // Steps of the golden section meet all rows and columns alike.
            let at = (i as f64 * 0.618_033_988_75).fract();
            let (u, t) = (i * down / count, (at * across as f64) as usize);
            let values = std::array::from_fn(|i| w[(u * TILE + i / TILE, t * TILE + i % TILE)]);
            let own = mean_square(values.iter());
            if own == 0.0 {
                continue;
            }
            let root = own.sqrt() as f32;
            for (loss, spread) in losses.iter_mut().zip(SPREADS) {
                let scales = [spread * root; TILE_LEN];
                let error = self.trellis.nearest(&mut search, &values, &scales, &mut [0; TILE_LEN]);
                *loss += f64::from(error) / own;
            }
        }
        let best = (0..SPREADS.len()).fold(4, |best, i| if losses[i] < losses[best] { i } else { best });
        SPREADS[best]
    }
}

impl BoundGrid for Bound {
    fn width(&self) -> usize {
        TILE
    }

    fn height(&self) -> usize {
        TILE
    }

    fn group(&self) -> usize {
        self.grid.group.width(self.cols)
    }

    fn fit(&self, _: Place, values: &[[f32; LANES]], by: Weighting<'_>) -> Params {
        // Lanes without a row, and rows of zeros, take no part in the search.
        let scale = |square| if square == 0.0 { 0.0 } else { self.shared.unwrap_or_else(|| self.scale(square)) };
        Params(vec![mean_squares(values, by).map(scale)])
    }

    fn round(
        &self,
        _: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        let mut search = self.idle.lock().expect("no task panics while it takes room").pop().unwrap_or_default();
        let scales = &params.0[0];
        let by_weight = std::array::from_fn(|i| scales[i / TILE]);
        let mut states = [0; TILE_LEN];
        let tiles = tile.as_chunks::<TILE>().0.iter().zip(codes.as_chunks_mut::<TILE>().0);
        for ((w, codes), out) in tiles.zip(decoded.as_chunks_mut::<TILE>().0) {
            let targets = std::array::from_fn(|i| w[i % TILE][i / TILE]);
            self.trellis.nearest(&mut search, &targets, &by_weight, &mut states);
            for (i, state) in states.iter().enumerate() {
                let (r, c) = (i / TILE, i % TILE);
                codes[c][r] = *state;
                out[c][r] = self.shared.unwrap_or(scales[r]) * self.grid.code.value(u32::from(*state));
            }
        }
        self.idle.lock().expect("no task panics while it takes room").push(search);
    }

    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, params: Vec<Vec<Params>>) -> Result<Storage> {
        let bytes = self.grid.tile_bytes();
        let mut packed = vec![0; self.rows.div_ceil(TILE) * (self.cols / TILE) * bytes];
        let tiles = codes.iter().flat_map(|strip| strip.as_chunks::<TILE>().0);
        for (tile, stream) in tiles.zip(packed.chunks_exact_mut(bytes)) {
            let states: [u16; TILE_LEN] = std::array::from_fn(|i| tile[i % TILE][i / TILE]);
            pack_path(self.grid, &states, stream);
        }
        let scales = match self.shared {
            Some(scale) => vec![scale],
            None => flat_params(self.grid.group, self.rows, self.cols, &params, 0),
        };
        TrellisCodes::new(self.rows, self.cols, self.grid, packed, &scales).map(Storage::Trellis)
    }
}
