/// The kinds of container that tensors lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// A Hugging Face folder: safetensors and JSON.
    HuggingFace,
    /// A GGUF file.
    Gguf,
}

/// Which rows of the stored tensor are the weight's rows, in order. Invertible: a writer runs it backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All, in order.
    All,
    /// Of every `block` rows, `rows` rows from `offset` on (GPT-NeoX's `[head, 3, dim]`).
    Blocks {
        /// Rows of a block.
        block: usize,
        /// First row within a block.
        offset: usize,
        /// Rows taken of each block.
        rows: usize,
    },
    /// Stored as adjacent rotary pairs `(2i, 2i+1)` within each head, read as half-split pairs `(i, i + dim/2)` (GGUF's llama).
    RopePairs {
        /// Rows of a head.
        head_dim: usize,
    },
}

impl Rows {
    /// The row of the stored tensor that holds row `r` of the weight.
    pub fn stored(self, r: usize) -> usize {
        match self {
            Self::All => r,
            Self::Blocks { block, offset, rows } => r / rows * block + offset + r % rows,
            Self::RopePairs { head_dim } => {
                let (head, i) = (r / head_dim, r % head_dim);
                let half = head_dim / 2;
                head * head_dim + if i < half { 2 * i } else { 2 * (i - half) + 1 }
            }
        }
    }

    /// Rows that the stored tensor has for a weight of `rows` rows.
    pub fn stored_count(self, rows: usize) -> usize {
        match self {
            Self::Blocks { block, rows: taken, .. } => rows / taken * block,
            _ => rows,
        }
    }
}

/// How a stored number is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As it is.
    AsIs,
    /// One is added (Gemma's norm gains).
    MinusOne,
}

/// Where a weight or vector lies in a container.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// For a matrix the module path, to which `.weight` and `.bias` are added; for a vector the whole tensor name.
    pub name: String,
    /// Which rows.
    pub rows: Rows,
    /// How a number is read.
    pub stored: Stored,
}

impl Source {
    /// A tensor that is read as it is.
    pub fn plain(name: impl Into<String>) -> Self {
        Self { name: name.into(), rows: Rows::All, stored: Stored::AsIs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_pairs_are_a_permutation_of_each_head() {
        let rows = Rows::RopePairs { head_dim: 6 };
        let map: Vec<usize> = (0..12).map(|r| rows.stored(r)).collect();
        assert_eq!(map, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }

    #[test]
    fn blocks_take_their_share_of_each_head() {
        let k = Rows::Blocks { block: 6, offset: 2, rows: 2 };
        let map: Vec<usize> = (0..4).map(|r| k.stored(r)).collect();
        assert_eq!(map, [2, 3, 8, 9]);
        assert_eq!(k.stored_count(4), 12);
    }
}
