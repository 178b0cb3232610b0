use fewbit_format::{Dtype, GgmlType};

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elements {
    /// One by one.
    Plain(Dtype),
    /// In blocks that are decoded.
    Blocks(GgmlType),
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

impl Elements {
    /// The type with a number in a GGUF file.
    pub fn from_ggml_number(number: u32) -> Option<Self> {
        if let Some((_, dtype)) = PLAIN.iter().find(|(n, _)| *n == number) {
            return Some(Self::Plain(*dtype));
        }
        GgmlType::from_number(number).map(Self::Blocks)
    }

    /// The number in a GGUF file; `None` for the types that it cannot hold.
    pub fn ggml_number(self) -> Option<u32> {
        match self {
            Self::Plain(dtype) => PLAIN.iter().find(|(_, d)| *d == dtype).map(|(n, _)| *n),
            Self::Blocks(kind) => Some(kind.number()),
        }
    }

    /// The name of the type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain(dtype) => dtype.name(),
            Self::Blocks(kind) => kind.name(),
        }
    }

    /// Elements of one block, 1 for plain types.
    pub fn block_len(self) -> usize {
        match self {
            Self::Plain(_) => 1,
            Self::Blocks(kind) => kind.block_len(),
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Plain(dtype) => dtype.size_bytes(),
            Self::Blocks(kind) => kind.block_bytes(),
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
        assert_eq!(known.len(), PLAIN.len() + GgmlType::ALL.len());
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
