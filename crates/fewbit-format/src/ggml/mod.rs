//! The block types of ggml, as they lie in GGUF files.
//!
//! A row is cut into blocks of 32 or 256 weights with their scales inside. Multi-byte fields are little-endian,
//! scales are f16. Decoding is bit-equal to ggml's C functions: each f32 product and sum rounds by itself.

mod codes;
mod encode;
mod k_quants;
mod legacy;

use std::ops::Range;

use bytes::Bytes;
use half::f16;

use crate::{Error, Result};

/// The block types of ggml that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are ggml's")]
pub enum GgmlType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl GgmlType {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The number in a GGUF file.
    pub const fn number(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
        }
    }

    /// The type with a number, if it is one of those that are read.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.number() == number)
    }

    /// ggml's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Weights of one block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `cols` weights; `None` if blocks do not tile it.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if cols.is_multiple_of(self.block_len()) {
            (cols / self.block_len()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }

    /// Where the f16 fields of a block begin (one or two), for checks that look at nothing else.
    pub const fn f16_fields(self) -> &'static [usize] {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => &[0, 2],
            Self::Q2K => &[80, 82],
            Self::Q3K => &[108],
            Self::Q6K => &[208],
        }
    }
}

/// Rows of ggml blocks, as they lie in a GGUF file; the bytes may be mapped.
#[derive(Clone, Debug)]
pub struct GgmlBlocks {
    /// Block type.
    pub kind: GgmlType,
    /// Number of rows.
    pub rows: usize,
    /// Columns, a multiple of the block size.
    pub cols: usize,
    /// Blocks, row by row.
    pub bytes: Bytes,
}

impl GgmlBlocks {
    /// Takes the blocks of a matrix `[rows, cols]`.
    ///
    /// # Errors
    /// If blocks do not tile the rows, or the number of bytes is wrong.
    pub fn new(kind: GgmlType, rows: usize, cols: usize, bytes: Bytes) -> Result<Self> {
        let row_bytes = kind.row_bytes(cols).ok_or_else(|| kind.does_not_tile(cols))?;
        if row_bytes.checked_mul(rows) != Some(bytes.len()) {
            let (name, len) = (kind.name(), bytes.len());
            return Err(Error::input(format!(
                "[{rows}, {cols}] in {name} takes {row_bytes} bytes a row, not {len} bytes"
            )));
        }
        Ok(Self { kind, rows, cols, bytes })
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The blocks of one row.
    pub fn row(&self, r: usize) -> &[u8] {
        let row_bytes = self.cols / self.kind.block_len() * self.kind.block_bytes();
        &self.bytes[r * row_bytes..(r + 1) * row_bytes]
    }

    /// Decodes rows `rows` into `out[rows.len() · cols]`.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        for (r, values) in rows.zip(out.chunks_exact_mut(self.cols)) {
            decode_row(self.kind, self.row(r), values);
        }
    }

    /// Everything stored, in bits.
    pub fn stored_bits(&self) -> u64 {
        8 * self.bytes.len() as u64
    }
}

impl GgmlType {
    fn does_not_tile(self, cols: usize) -> Error {
        Error::input(format!(
            "rows of {cols} are no multiple of the {} weights of a {} block",
            self.block_len(),
            self.name()
        ))
    }
}

fn decode_row(kind: GgmlType, blocks: &[u8], out: &mut [f32]) {
    match kind {
        GgmlType::Q4_0 => blockwise(blocks, out, legacy::q4_0),
        GgmlType::Q4_1 => blockwise(blocks, out, legacy::q4_1),
        GgmlType::Q5_0 => blockwise(blocks, out, legacy::q5_0),
        GgmlType::Q5_1 => blockwise(blocks, out, legacy::q5_1),
        GgmlType::Q8_0 => blockwise(blocks, out, legacy::q8_0),
        GgmlType::Q2K => blockwise(blocks, out, k_quants::q2_k),
        GgmlType::Q3K => blockwise(blocks, out, k_quants::q3_k),
        GgmlType::Q4K => blockwise(blocks, out, k_quants::q4_k),
        GgmlType::Q5K => blockwise(blocks, out, k_quants::q5_k),
        GgmlType::Q6K => blockwise(blocks, out, k_quants::q6_k),
    }
}

/// Decodes block by block; `B` bytes become `N` weights.
fn blockwise<const B: usize, const N: usize>(blocks: &[u8], out: &mut [f32], decode: impl Fn(&[u8; B], &mut [f32; N])) {
    for (block, values) in blocks.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        decode(block, values);
    }
}

/// The f16 field that begins at byte `at`.
#[inline]
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_lead_back() {
        for kind in GgmlType::ALL {
            assert_eq!(GgmlType::from_number(kind.number()), Some(kind));
            assert!(kind.f16_fields().iter().all(|at| at + 2 <= kind.block_bytes()));
        }
        assert_eq!(GgmlType::from_number(4), None);
    }

    #[test]
    fn rows_that_blocks_do_not_tile_are_refused() {
        let e = GgmlBlocks::new(GgmlType::Q4K, 1, 172, Bytes::new()).unwrap_err().to_string();
        assert_eq!(e, "rows of 172 are no multiple of the 256 weights of a Q4_K block");
        assert!(GgmlBlocks::new(GgmlType::Q8_0, 2, 32, vec![0; 67].into()).is_err());
        assert!(GgmlBlocks::new(GgmlType::Q8_0, usize::MAX, 1 << 40, Bytes::new()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode(kind in prop::sample::select(&GgmlType::ALL[..]), seed in any::<u64>()) {
            let mut state = seed;
            let bytes: Vec<u8> = (0..2 * kind.block_bytes()).map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            }).collect();
            let blocks = GgmlBlocks::new(kind, 1, 2 * kind.block_len(), bytes.into()).unwrap();
            let mut whole = vec![0.0; blocks.cols];
            blocks.decode_rows(0..1, &mut whole);
        }
    }
}
