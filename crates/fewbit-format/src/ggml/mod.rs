//! The block types of ggml, as they lie in GGUF files.
//!
//! A row is cut into blocks of 32 to 256 weights with their scales inside. Multi-byte fields are little-endian,
//! most scales are f16. Decoding is bit-equal to ggml's C functions: each f32 product and sum rounds by itself.

mod codes;
mod eights;
mod encode;
mod grids;
mod iq;
mod k_quants;
mod legacy;
mod levels;
mod split;
mod ternary;

use std::ops::Range;

use bytes::Bytes;
use half::f16;

use crate::{Error, Result};

pub use eights::{Eight, EightPoints};
pub use levels::{E2M1_TWICE, IQ4_LEVELS};
pub use split::{CodeMeaning, Split};

/// The block types of ggml that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are ggml's")]
pub enum GgmlType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
    Iq2Xxs,
    Iq2Xs,
    Iq3Xxs,
    Iq1S,
    Iq4Nl,
    Iq3S,
    Iq2S,
    Iq4Xs,
    Iq1M,
    Tq1_0,
    Tq2_0,
    Mxfp4,
    Nvfp4,
    Q1_0,
    Q2_0,
}

/// What a file says of a type, and how its blocks are cut.
struct Facts {
    number: u32,
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
}

const fn facts(number: u32, name: &'static str, block_len: usize, block_bytes: usize) -> Facts {
    Facts { number, name, block_len, block_bytes }
}

impl GgmlType {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 27] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q8_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Q8K,
        Self::Iq2Xxs,
        Self::Iq2Xs,
        Self::Iq3Xxs,
        Self::Iq1S,
        Self::Iq4Nl,
        Self::Iq3S,
        Self::Iq2S,
        Self::Iq4Xs,
        Self::Iq1M,
        Self::Tq1_0,
        Self::Tq2_0,
        Self::Mxfp4,
        Self::Nvfp4,
        Self::Q1_0,
        Self::Q2_0,
    ];

    const fn facts(self) -> Facts {
        match self {
            Self::Q4_0 => facts(2, "Q4_0", 32, 18),
            Self::Q4_1 => facts(3, "Q4_1", 32, 20),
            Self::Q5_0 => facts(6, "Q5_0", 32, 22),
            Self::Q5_1 => facts(7, "Q5_1", 32, 24),
            Self::Q8_0 => facts(8, "Q8_0", 32, 34),
            Self::Q8_1 => facts(9, "Q8_1", 32, 36),
            Self::Q2K => facts(10, "Q2_K", 256, 84),
            Self::Q3K => facts(11, "Q3_K", 256, 110),
            Self::Q4K => facts(12, "Q4_K", 256, 144),
            Self::Q5K => facts(13, "Q5_K", 256, 176),
            Self::Q6K => facts(14, "Q6_K", 256, 210),
            Self::Q8K => facts(15, "Q8_K", 256, 292),
            Self::Iq2Xxs => facts(16, "IQ2_XXS", 256, 66),
            Self::Iq2Xs => facts(17, "IQ2_XS", 256, 74),
            Self::Iq3Xxs => facts(18, "IQ3_XXS", 256, 98),
            Self::Iq1S => facts(19, "IQ1_S", 256, 50),
            Self::Iq4Nl => facts(20, "IQ4_NL", 32, 18),
            Self::Iq3S => facts(21, "IQ3_S", 256, 110),
            Self::Iq2S => facts(22, "IQ2_S", 256, 82),
            Self::Iq4Xs => facts(23, "IQ4_XS", 256, 136),
            Self::Iq1M => facts(29, "IQ1_M", 256, 56),
            Self::Tq1_0 => facts(34, "TQ1_0", 256, 54),
            Self::Tq2_0 => facts(35, "TQ2_0", 256, 66),
            Self::Mxfp4 => facts(39, "MXFP4", 32, 17),
            Self::Nvfp4 => facts(40, "NVFP4", 64, 36),
            Self::Q1_0 => facts(41, "Q1_0", 128, 18),
            Self::Q2_0 => facts(42, "Q2_0", 64, 18),
        }
    }

    /// The number in a GGUF file.
    pub const fn number(self) -> u32 {
        self.facts().number
    }

    /// The type with a number, if it is one of those that are read.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.number() == number)
    }

    /// The type that ggml, or whoever writes lower case, calls so.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// ggml's name.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Weights of one block.
    pub const fn block_len(self) -> usize {
        self.facts().block_len
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        self.facts().block_bytes
    }

    /// Bytes of a row of `cols` weights; `None` if blocks do not tile it.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if cols.is_multiple_of(self.block_len()) {
            (cols / self.block_len()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }

    /// Where the f16 fields of a block begin that its weights are multiplied with or moved by: none, one or two.
    pub const fn f16_fields(self) -> &'static [usize] {
        match self {
            Self::Q8K | Self::Iq1M | Self::Mxfp4 | Self::Nvfp4 => &[],
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => &[0, 2],
            Self::Q2K => &[80, 82],
            Self::Q3K => &[108],
            Self::Q6K => &[208],
            Self::Tq1_0 => &[52],
            Self::Tq2_0 => &[64],
            _ => &[0],
        }
    }

    /// The first scale of a block that is NaN or infinite, from a look at its scales alone.
    ///
    /// The scales of NVFP4 are numbers whatever their bits.
    pub fn non_finite_scale(self, block: &[u8]) -> Option<f32> {
        let bad = |scale: f32| (!scale.is_finite()).then_some(scale);
        match self {
            Self::Q8K => bad(k_quants::q8_k_scale(block)),
            Self::Iq1M => bad(iq::iq1_m_scale(block).to_f32()),
            // The bits of MX's NaN.
            Self::Mxfp4 => (block[0] == u8::MAX).then_some(f32::NAN),
            _ => self.f16_fields().iter().find_map(|at| bad(f16_at(block, *at))),
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
    /// Decodes one block.
    pub fn decode_block(self, block: &[u8], out: &mut [f32]) {
        decode_row(self, block, out);
    }

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
        GgmlType::Q8_1 => blockwise(blocks, out, legacy::q8_1),
        GgmlType::Q8K => blockwise(blocks, out, k_quants::q8_k),
        GgmlType::Iq2Xxs => blockwise(blocks, out, |b: &[u8; 66], v| eights::decode(GgmlType::Iq2Xxs, b, v)),
        GgmlType::Iq2Xs => blockwise(blocks, out, |b: &[u8; 74], v| eights::decode(GgmlType::Iq2Xs, b, v)),
        GgmlType::Iq2S => blockwise(blocks, out, |b: &[u8; 82], v| eights::decode(GgmlType::Iq2S, b, v)),
        GgmlType::Iq3Xxs => blockwise(blocks, out, |b: &[u8; 98], v| eights::decode(GgmlType::Iq3Xxs, b, v)),
        GgmlType::Iq3S => blockwise(blocks, out, |b: &[u8; 110], v| eights::decode(GgmlType::Iq3S, b, v)),
        GgmlType::Iq1S => blockwise(blocks, out, iq::iq1_s),
        GgmlType::Iq1M => blockwise(blocks, out, iq::iq1_m),
        GgmlType::Iq4Nl => blockwise(blocks, out, levels::iq4_nl),
        GgmlType::Iq4Xs => blockwise(blocks, out, levels::iq4_xs),
        GgmlType::Mxfp4 => blockwise(blocks, out, levels::mxfp4),
        GgmlType::Nvfp4 => blockwise(blocks, out, levels::nvfp4),
        GgmlType::Tq1_0 => blockwise(blocks, out, ternary::tq1_0),
        GgmlType::Tq2_0 => blockwise(blocks, out, ternary::tq2_0),
        GgmlType::Q1_0 => blockwise(blocks, out, ternary::q1_0),
        GgmlType::Q2_0 => blockwise(blocks, out, ternary::q2_0),
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
            assert_eq!(GgmlType::from_name(&kind.name().to_lowercase()), Some(kind));
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
