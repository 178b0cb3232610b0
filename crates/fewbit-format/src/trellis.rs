use std::ops::Range;

use crate::group::pick;
use crate::{Error, Group, Result, ScaleType, Scales};

/// Rows and columns of a tile, whose weights are one path.
pub const TILE: usize = 16;
/// Weights of a tile.
pub const TILE_LEN: usize = TILE * TILE;

/// What a state stands for: numbers that are computed, not stored, nearly normal over all states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrellisCode {
    /// `x = 34038481·s + 76625530`; the sum of the four bytes of `x`, less 510, by 147.8005. Standard deviation 1.
    OneMad,
    /// `x = 89226354·s + 64248484`, `r = (x & 0x8fff8fff) ^ 0x3b603b60`; the sum of the two F16 halves of `r`, by
    /// 1.2437 so that the standard deviation is 1.
    ThreeInst,
}

impl TrellisCode {
    /// The number of a state (Tseng et al., QTIP, 2024, algorithms 1 and 2; all integers modulo 2³²).
    #[inline]
    pub fn value(self, state: u32) -> f32 {
        match self {
            Self::OneMad => {
                let x = state.wrapping_mul(34_038_481).wrapping_add(76_625_530);
                let pairs = (x & 0x00ff_00ff) + (x >> 8 & 0x00ff_00ff);
                (((pairs & 0xffff) + (pairs >> 16)) as f32 - 510.0) / 147.800_5
            }
            Self::ThreeInst => {
                let x = state.wrapping_mul(89_226_354).wrapping_add(64_248_484);
                let r = (x & 0x8fff_8fff) ^ 0x3b60_3b60;
                let half = |bits: u32| half::f16::from_bits(bits as u16).to_f32();
                (half(r >> 16) + half(r)) / 1.243_7
            }
        }
    }
}

/// What trellis codes look like, without their content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrellisGrid {
    /// Bits of a state, 8 to 16.
    pub state_bits: u8,
    /// Bits of a tile of 256 weights: a multiple of 8 from 256 (1 bit a weight) on, at most half a state for a weight.
    pub tile_bits: u16,
    /// What a state stands for.
    pub code: TrellisCode,
    /// Which weights share a scale: a multiple of 16 columns, a row, or all.
    pub group: Group,
    /// Type of the stored scales.
    pub scale: ScaleType,
}

impl TrellisGrid {
    /// Checks the numbers against each other, and the shape of a matrix.
    ///
    /// # Errors
    /// One sentence with what would fit.
    pub fn check(self, cols: usize) -> Result<()> {
        let Self { state_bits, tile_bits, group, .. } = self;
        if !(8..=16).contains(&state_bits) {
            return Err(Error::input(format!("a trellis has states of 8 to 16 bits, not {state_bits}")));
        }
        let most = usize::from(state_bits) / 2 * TILE_LEN;
        if tile_bits % 8 != 0 || !(TILE_LEN..=most).contains(&usize::from(tile_bits)) {
            return Err(Error::input(format!(
                "a trellis with states of {state_bits} bits has 1 to {} bits a weight in steps of 1/32, not {}",
                state_bits / 2,
                f64::from(tile_bits) / TILE_LEN as f64
            )));
        }
        if !cols.is_multiple_of(TILE) {
            return Err(Error::input(format!("{cols} columns are not tiles of {TILE}")));
        }
        group.check(cols)?;
        if !group.width(cols).is_multiple_of(TILE) {
            return Err(Error::input(format!("groups of {} columns are not tiles of {TILE}", group.width(cols))));
        }
        Ok(())
    }

    /// Bytes of a tile.
    pub fn tile_bytes(self) -> usize {
        usize::from(self.tile_bits) / 8
    }

    /// Bits of the stream up to and with weight `i` of a tile: `⌊(i + 1) · tile_bits / 256⌋`.
    #[inline]
    pub fn end(self, i: usize) -> usize {
        (i + 1) * usize::from(self.tile_bits) / TILE_LEN
    }
}

/// A matrix in tiles of 16 × 16 weights, each a closed path through a bit-shift trellis (QTIP).
///
/// The stream of a tile has `tile_bits` bits, the first in the top bit of the first byte, and is a ring. The state of
/// weight `i` is the `state_bits` bits that end at bit [`TrellisGrid::end`]`(i)`; `W = s · f(state)`. The weights of a
/// tile follow each other row by row. Rows past the last of the matrix are coded and ignored.
#[derive(Clone, Debug, PartialEq)]
pub struct TrellisCodes {
    rows: usize,
    cols: usize,
    grid: TrellisGrid,
    packed: Vec<u8>,
    scales: Scales,
}

impl TrellisCodes {
    /// Takes the streams `[⌈rows/16⌉, cols/16, tile_bytes]` and scales `[rows · groups]` (`[1]` for [`Group::Tensor`])
    /// that the grid's scale type holds exactly.
    ///
    /// # Errors
    /// If the grid is impossible or a size is wrong.
    pub fn new(rows: usize, cols: usize, grid: TrellisGrid, packed: Vec<u8>, scales: &[f32]) -> Result<Self> {
        grid.check(cols)?;
        let (bytes, groups) = (rows.div_ceil(TILE) * (cols / TILE) * grid.tile_bytes(), grid.group.count(rows, cols));
        if packed.len() != bytes || scales.len() != groups {
            return Err(Error::internal(format!(
                "{} bytes of paths and {} scales, where [{rows}, {cols}] takes {bytes} and {groups}",
                packed.len(),
                scales.len()
            )));
        }
        Ok(Self { rows, cols, grid, packed, scales: Scales::new(grid.scale, scales) })
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The grid.
    pub fn grid(&self) -> TrellisGrid {
        self.grid
    }

    /// The streams, tile by tile.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// All scales, `[rows · groups]` or `[1]`.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Decodes rows `rows` into `out[rows.len() · cols]`.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let (bytes, tiles, grid) = (self.grid.tile_bytes(), self.cols / TILE, self.grid);
        let width = grid.group.width(self.cols);
        let mut states = [0u16; TILE_LEN];
        let mut at = rows.start;
        while at < rows.end {
            let (strip, from) = (at / TILE, at % TILE);
            let count = (TILE - from).min(rows.end - at);
            let out = &mut out[(at - rows.start) * self.cols..][..count * self.cols];
            for (t, stream) in self.packed[strip * tiles * bytes..][..tiles * bytes].chunks_exact(bytes).enumerate() {
                path_states(grid, stream, from * TILE..(from + count) * TILE, &mut states);
                for r in 0..count {
                    let scale = match grid.group {
                        Group::Tensor => self.scales.get(0),
                        _ => self.scales.get((at + r) * (self.cols / width) + t * TILE / width),
                    };
                    let states = &states[(from + r) * TILE..][..TILE];
                    let values = &mut out[r * self.cols + t * TILE..][..TILE];
                    values.iter_mut().zip(states).for_each(|(v, s)| *v = scale * grid.code.value(u32::from(*s)));
                }
            }
            at += count;
        }
    }

    /// The same codes with these rows, in this order; `None` unless they are whole tiles of 16 (the last may be short).
    pub fn select_rows(&self, rows: &[usize]) -> Option<Self> {
        let strips: Vec<usize> = rows.iter().step_by(TILE).map(|r| r / TILE).collect();
        let whole = rows.iter().enumerate().all(|(i, r)| *r == strips[i / TILE] * TILE + i % TILE);
        let strip_bytes = self.cols / TILE * self.grid.tile_bytes();
        let per_row = self.cols / self.grid.group.width(self.cols);
        whole.then(|| Self {
            rows: rows.len(),
            packed: pick(&self.packed, &strips, strip_bytes, false),
            scales: self.scales.select_rows(rows, per_row, self.grid.group == Group::Tensor),
            ..*self
        })
    }

    /// The rows of several matrices in one; `None` where grids or widths differ, one scale serves a matrix, or tiles of
    /// one but the last end within a tile.
    pub fn stack(parts: &[&Self]) -> Option<Self> {
        let (first, rest) = parts.split_first()?;
        let is_alike = |p: &&Self| p.grid == first.grid && p.cols == first.cols && p.grid.group != Group::Tensor;
        let whole = parts[..parts.len() - 1].iter().all(|p| p.rows.is_multiple_of(TILE));
        if !(whole && rest.iter().all(is_alike)) {
            return None;
        }
        Some(Self {
            rows: parts.iter().map(|p| p.rows).sum(),
            packed: parts.iter().flat_map(|p| p.packed.iter().copied()).collect(),
            scales: Scales::stack(parts.iter().map(|p| &p.scales))?,
            ..**first
        })
    }

    /// Everything stored, in bits: paths and scales.
    pub fn stored_bits(&self) -> u64 {
        8 * self.packed.len() as u64 + self.scales.stored_bits()
    }
}

/// The states of weights `range` of one tile, at their places in `states`.
fn path_states(grid: TrellisGrid, stream: &[u8], range: Range<usize>, states: &mut [u16; TILE_LEN]) {
    let mask = (1u32 << grid.state_bits) - 1;
    // A state takes at most three bytes; those before the first are the last.
    let byte = |at: usize| u32::from(stream[(at + stream.len() - 3) % stream.len()]);
    for i in range {
        let end = grid.end(i) + 24;
        let last = (end - 1) / 8;
        let window = byte(last - 2) << 16 | byte(last - 1) << 8 | byte(last);
        states[i] = (window >> (8 * (last + 1) - end) & mask) as u16;
    }
}

/// Writes the states of a closed path as its stream: of each state the bits that it adds to the one before.
///
/// # Panics
/// If there are not 256 states, or `stream` has not [`TrellisGrid::tile_bytes`].
pub fn pack_path(grid: TrellisGrid, states: &[u16], stream: &mut [u8]) {
    assert!(states.len() == TILE_LEN && stream.len() == grid.tile_bytes(), "a tile has {TILE_LEN} states");
    stream.fill(0);
    let mut begin = 0;
    for (i, state) in states.iter().enumerate() {
        let end = grid.end(i);
        for bit in begin..end {
            stream[bit / 8] |= ((state >> (end - 1 - bit) & 1) as u8) << (7 - bit % 8);
        }
        begin = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_published_values() {
        let states = [0, 1, 2, 1000, 65535];
        let near = |code: TrellisCode, by: f32, expected: [f32; 5], within: f32| {
            for (s, e) in states.into_iter().zip(expected) {
                assert!((code.value(s) * by - e).abs() < within, "{code:?} of {s}: {}", code.value(s) * by);
            }
        };
        near(TrellisCode::OneMad, 1.0, [-1.251_687, -0.838_969, -0.426_250, 0.798_373, 0.412_718], 2e-6);
        // The published sums are rounded to F16.
        near(TrellisCode::ThreeInst, 1.2437, [0.768_066, -0.919_434, 0.931_641, 0.980_469, -0.158_203], 2.5e-4);
        for code in [TrellisCode::OneMad, TrellisCode::ThreeInst] {
            let square: f64 = (0..65536).map(|s| f64::from(code.value(s)).powi(2)).sum::<f64>() / 65536.0;
            assert!((square.sqrt() - 1.0).abs() < 2e-3, "{code:?}: {square}");
        }
    }

    fn grid(state_bits: u8, tile_bits: u16, group: Group) -> TrellisGrid {
        TrellisGrid { state_bits, tile_bits, code: TrellisCode::OneMad, group, scale: ScaleType::F32 }
    }

    fn random(rows: usize, cols: usize, grid: TrellisGrid, seed: u32) -> TrellisCodes {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        let bytes = rows.div_ceil(TILE) * (cols / TILE) * grid.tile_bytes();
        let packed = (0..bytes).map(|_| next() as u8).collect();
        let scales: Vec<f32> = (0..grid.group.count(rows, cols)).map(|_| next() as f32 / 1e4).collect();
        TrellisCodes::new(rows, cols, grid, packed, &scales).unwrap()
    }

    #[test]
    fn each_state_shifts_in_the_bits_of_its_weight_and_the_path_is_closed() {
        for (state_bits, tile_bits) in [(8, 256), (12, 512), (12, 552), (16, 768), (16, 1024), (13, 1536)] {
            let grid = grid(state_bits, tile_bits, Group::Tensor);
            let codes = random(16, 16, grid, u32::from(tile_bits));
            let mut states = [0; TILE_LEN];
            path_states(grid, codes.packed(), 0..TILE_LEN, &mut states);
            for i in 0..TILE_LEN {
                let before = states[(i + TILE_LEN - 1) % TILE_LEN];
                let shift = grid.end(i) - if i == 0 { 0 } else { grid.end(i - 1) };
                let kept = u32::from(before) << shift & ((1 << state_bits) - 1);
                assert_eq!(u32::from(states[i]) >> shift, kept >> shift, "{grid:?}: {i}");
            }
            let mut stream = vec![0; grid.tile_bytes()];
            pack_path(grid, &states, &mut stream);
            assert_eq!(stream, codes.packed());
        }
    }

    #[test]
    fn rows_decode_alone_as_together_and_are_put_together_tile_by_tile() {
        for group in [Group::Columns(16), Group::Row] {
            let codes = random(37, 64, grid(12, 544, group), 5);
            let mut all = vec![0.0; 37 * 64];
            codes.decode_rows(0..37, &mut all);
            for rows in [0..1, 3..20, 15..37, 36..37] {
                let mut part = vec![0.0; rows.len() * 64];
                codes.decode_rows(rows.clone(), &mut part);
                assert_eq!(part, all[rows.start * 64..rows.end * 64], "{rows:?}");
            }
            let upper = codes.select_rows(&(16..32).collect::<Vec<_>>()).unwrap();
            let lower = codes.select_rows(&(32..37).collect::<Vec<_>>()).unwrap();
            let both = TrellisCodes::stack(&[&upper, &lower]).unwrap();
            assert_eq!(both, codes.select_rows(&(16..37).collect::<Vec<_>>()).unwrap());
            assert!(TrellisCodes::stack(&[&lower, &upper]).is_none());
            assert!(codes.select_rows(&[1, 0]).is_none());
            assert_eq!(codes.stored_bits(), 3 * 4 * 544 + 32 * codes.scales().len() as u64);
        }
    }
}
