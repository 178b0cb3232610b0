use fewbit_format::{Dtype, GgmlType};

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elements {
    /// One by one.
    Plain(Dtype),
    /// In blocks that are decoded.
    Blocks(GgmlType),
    /// In blocks of ggml that are not decoded: only their size is known.
    Unread(&'static UnreadBlocks),
}

/// A block type of ggml that is known by name only.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct UnreadBlocks {
    number: u32,
    name: &'static str,
    block_len: usize,
    block_bytes: usize,
}

const PLAIN: [(u32, Dtype); 8] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (24, Dtype::I8),
    (25, Dtype::I16),
    (26, Dtype::I32),
    (27, Dtype::I64),
    (28, Dtype::F64),
    (30, Dtype::BF16),
];

const fn unread(number: u32, name: &'static str, block_len: usize, block_bytes: usize) -> UnreadBlocks {
    UnreadBlocks { number, name, block_len, block_bytes }
}

static UNREAD: [UnreadBlocks; 17] = [
    unread(9, "Q8_1", 32, 36),
    unread(15, "Q8_K", 256, 292),
    unread(16, "IQ2_XXS", 256, 66),
    unread(17, "IQ2_XS", 256, 74),
    unread(18, "IQ3_XXS", 256, 98),
    unread(19, "IQ1_S", 256, 50),
    unread(20, "IQ4_NL", 32, 18),
    unread(21, "IQ3_S", 256, 110),
    unread(22, "IQ2_S", 256, 82),
    unread(23, "IQ4_XS", 256, 136),
    unread(29, "IQ1_M", 256, 56),
    unread(34, "TQ1_0", 256, 54),
    unread(35, "TQ2_0", 256, 66),
    unread(39, "MXFP4", 32, 17),
    unread(40, "NVFP4", 64, 36),
    unread(41, "Q1_0", 128, 18),
    unread(42, "Q2_0", 64, 18),
];

impl Elements {
    /// The type with a number in a GGUF file.
    pub fn from_ggml_number(number: u32) -> Option<Self> {
        if let Some((_, dtype)) = PLAIN.iter().find(|(n, _)| *n == number) {
            return Some(Self::Plain(*dtype));
        }
        let blocks = GgmlType::from_number(number).map(Self::Blocks);
        blocks.or_else(|| UNREAD.iter().find(|u| u.number == number).map(Self::Unread))
    }

    /// The number in a GGUF file; `None` for the types that it cannot hold.
    pub fn ggml_number(self) -> Option<u32> {
        match self {
            Self::Plain(dtype) => PLAIN.iter().find(|(_, d)| *d == dtype).map(|(n, _)| *n),
            Self::Blocks(kind) => Some(kind.number()),
            Self::Unread(unread) => Some(unread.number),
        }
    }

    /// The name of the type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain(dtype) => dtype.name(),
            Self::Blocks(kind) => kind.name(),
            Self::Unread(unread) => unread.name,
        }
    }

    /// Elements of one block, 1 for plain types.
    pub fn block_len(self) -> usize {
        match self {
            Self::Plain(_) => 1,
            Self::Blocks(kind) => kind.block_len(),
            Self::Unread(unread) => unread.block_len,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Plain(dtype) => dtype.size_bytes(),
            Self::Blocks(kind) => kind.block_bytes(),
            Self::Unread(unread) => unread.block_bytes,
        }
    }

    /// Bytes of a tensor of this shape (outermost first); `None` if blocks do not tile its rows or it is beyond 64 bits.
    pub fn tensor_bytes(self, shape: &[usize]) -> Option<usize> {
        let (outer, cols) = match shape {
            [outer @ .., cols] => (outer, *cols),
            [] => (&[][..], 1),
        };
        let blocks = cols.is_multiple_of(self.block_len()).then(|| cols / self.block_len())?;
        let row_bytes = blocks.checked_mul(self.block_bytes())?;
        outer.iter().try_fold(row_bytes, |bytes, n| bytes.checked_mul(*n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back() {
        let known: Vec<u32> = (0..100).filter(|n| Elements::from_ggml_number(*n).is_some()).collect();
        assert_eq!(known.len(), PLAIN.len() + GgmlType::ALL.len() + UNREAD.len());
        for n in known {
            assert_eq!(Elements::from_ggml_number(n).unwrap().ggml_number(), Some(n));
        }
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(Elements::Plain(Dtype::BF16).tensor_bytes(&[2, 3]), Some(12));
        assert_eq!(Elements::Plain(Dtype::F32).tensor_bytes(&[]), Some(4));
        assert_eq!(Elements::Blocks(GgmlType::Q8_0).tensor_bytes(&[2, 64]), Some(2 * 68));
        assert_eq!(Elements::Blocks(GgmlType::Q8_0).tensor_bytes(&[2, 63]), None);
        assert_eq!(Elements::Plain(Dtype::F32).tensor_bytes(&[usize::MAX, 2]), None);
    }
}
