//! Scales and zero points as codes of a second level.

use fewbit_engine::kinds::{LANES, Params};
use fewbit_format::{Blocks, Error, Levels, Nested, NestedGrid, Numbers, Result, ScaleType, dynamic_map, packed_len};

/// Blocks of sixteen rows, one group of columns each: `n = u q + o`, `q` of so many bits (SpQR, section 4.2).
///
/// A block is what one strip has of a group, so that it is rounded where its numbers are fitted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Second {
    pub(super) bits: u8,
    pub(super) scale: ScaleType,
}

/// Scales of a whole matrix as codes of 8 bits into the dynamic map: `s = u L(q) + μ`, `μ` the mean of all, `u` the
/// greatest distance from it among 256 scales in a row (QLoRA, section 3, as bitsandbytes has it).
pub(super) const DOUBLE: NestedGrid =
    NestedGrid { bits: 8, levels: Levels::Dynamic, blocks: Blocks::Flat(256), scale: ScaleType::F32 };

/// The codes, scales and offset of the scales `[rows, per_row]` of a matrix, as they will be read.
pub(super) fn double(scales: &[f32], shape: [usize; 2]) -> Result<Numbers> {
    let mean = (scales.iter().map(|s| f64::from(*s)).sum::<f64>() / scales.len().max(1) as f64) as f32;
    let Blocks::Flat(len) = DOUBLE.blocks else { return Err(Error::internal("blocks that are not flat")) };
    let (map, mut codes, mut reaches) = (dynamic_map(), Vec::with_capacity(scales.len()), Vec::new());
    for block in scales.chunks(len) {
        let reach = block.iter().fold(0f32, |reach, s| reach.max((s - mean).abs()));
        for s in block {
            let x = if reach > 0.0 { (s - mean) / reach } else { 0.0 };
            let above = map.partition_point(|level| *level < x);
            let nearer = above.checked_sub(1).filter(|b| above == map.len() || x - map[*b] <= map[above] - x);
            codes.push(nearer.unwrap_or(above) as u8);
        }
        reaches.push(reach);
    }
    Nested::new(shape, DOUBLE, &codes, &reaches, &[mean]).map(Numbers::Nested)
}

/// The numbers of one block as they are stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) codes: [f32; LANES],
    scale: f32,
    offset: f32,
}

impl Second {
    fn grid(self) -> NestedGrid {
        NestedGrid { bits: self.bits, levels: Levels::Codes, blocks: Blocks::Rows(LANES), scale: self.scale }
    }

    /// Bits of `[rows, per_row]` numbers.
    pub(super) fn stored_bits(self, rows: usize, per_row: usize) -> u64 {
        let blocks = self.grid().count(rows, per_row) as u64;
        8 * packed_len(rows * per_row, self.bits) as u64 + 2 * blocks * self.scale.bits()
    }

    /// Rounds the numbers of a block, of which `is_there` says which count; returns them as they will be read.
    pub(super) fn round(self, numbers: &[f32; LANES], is_there: [bool; LANES]) -> ([f32; LANES], Block) {
        let most = ((1u32 << self.bits) - 1) as f32;
        let there = || (0..LANES).filter(|l| is_there[*l]).map(|l| numbers[l]);
        let (mut lo, mut hi) = (f32::INFINITY, f32::NEG_INFINITY);
        there().for_each(|n| (lo, hi) = (lo.min(n), hi.max(n)));
        if lo > hi {
            (lo, hi) = (1.0, 1.0);
        }
        let offset = self.scale.round(lo);
        let scale = if hi > lo { self.scale.round((hi - lo) / most) } else { 0.0 };
        let code = |n: f32| if scale > 0.0 { ((n - offset) / scale).round_ties_even().clamp(0.0, most) } else { 0.0 };
        let codes: [f32; LANES] = std::array::from_fn(|l| if is_there[l] { code(numbers[l]) } else { 0.0 });
        (codes.map(|q| Nested::value(scale, Some(offset), q)), Block { codes, scale, offset })
    }
}

impl Block {
    /// As parameters that travel with a group.
    pub(super) fn write(&self, to: &mut Vec<[f32; LANES]>) {
        to.extend([self.codes, [self.scale; LANES], [self.offset; LANES]]);
    }
}

/// The numbers `[rows, per_row]` whose blocks begin at `from` of the parameters `[strip][group]`.
pub(super) fn numbers(second: Second, rows: usize, params: &[Vec<Params>], from: usize) -> Result<Numbers> {
    let per_row = params[0].len();
    let code = |i: usize| params[i / per_row / LANES][i % per_row].0[from][i / per_row % LANES] as u8;
    let codes: Vec<u8> = (0..rows * per_row).map(code).collect();
    let of_blocks = |at: usize| params.iter().flatten().map(|p| p.0[at][0]).collect::<Vec<f32>>();
    let (scales, offsets) = (of_blocks(from + 1), of_blocks(from + 2));
    Nested::new([rows, per_row], second.grid(), &codes, &scales, &offsets).map(Numbers::Nested)
}
