use std::ops::Range;

use bytes::Bytes;

/// The block types of ggml that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are ggml's")]
pub enum GgmlType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q6K,
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
    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Decodes rows `rows` into `out[rows.len() · cols]`.
    pub fn decode_rows(&self, _rows: Range<usize>, _out: &mut [f32]) {
        unimplemented!()
    }

    /// Everything stored, in bits.
    pub fn stored_bits(&self) -> u64 {
        8 * self.bytes.len() as u64
    }
}
