use crate::Vector;

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
    /// Stored as adjacent rotary pairs `(2i, 2i+1)` in the part of each head that turns, read as half-split pairs
    /// `(i, i + rotary_dims/2)` (GGUF's llama, Cohere, GLM).
    RopePairs {
        /// Rows of a head.
        head_dim: usize,
        /// Those of them that turn, which come first.
        rotary_dims: usize,
    },
    /// Of every `block` rows those from `offset` to its end, stored as adjacent rotary pairs and read as half-split
    /// ones, then `rest` rows from the block's beginning (DeepSeek's heads, whose last part turns).
    PairsBehind {
        /// Rows of a block.
        block: usize,
        /// First row within a block that turns.
        offset: usize,
        /// Rows taken from the beginning of each block: those of a head that do not turn.
        rest: usize,
    },
}

impl Rows {
    /// The row of the stored tensor that holds row `r` of the weight.
    pub fn stored(self, r: usize) -> usize {
        match self {
            Self::All => r,
            Self::Blocks { block, offset, rows } => r / rows * block + offset + r % rows,
            Self::RopePairs { head_dim, rotary_dims } => {
                let (head, i) = (r / head_dim, r % head_dim);
                let half = rotary_dims / 2;
                let within = match i {
                    _ if i < half => 2 * i,
                    _ if i < rotary_dims => 2 * (i - half) + 1,
                    _ => i,
                };
                head * head_dim + within
            }
            Self::PairsBehind { block, offset, rest } => {
                let turning = block - offset;
                let (b, i, half) = (r / (turning + rest), r % (turning + rest), turning / 2);
                let within = match i {
                    _ if i < half => offset + 2 * i,
                    _ if i < turning => offset + 2 * (i - half) + 1,
                    _ => i - turning,
                };
                b * block + within
            }
        }
    }

    /// Rows that the stored tensor has for a weight of `rows` rows.
    pub fn stored_count(self, rows: usize) -> usize {
        match self {
            Self::Blocks { block, rows: taken, .. } => rows / taken * block,
            Self::PairsBehind { block, offset, rest } => rows / (block - offset + rest) * block,
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

impl Stored {
    /// What is added to a stored number.
    pub fn offset(self) -> f32 {
        match self {
            Self::AsIs => 0.0,
            Self::MinusOne => 1.0,
        }
    }
}

/// One expert's matrix in a tensor that holds those of all experts: `[experts, rows, in]`, or transposed
/// `[experts, in, rows]`. Invertible: a writer runs it backwards.
#[derive(Clone, Debug, PartialEq)]
pub struct Fused {
    /// The tensor's whole name.
    pub tensor: String,
    /// The whole name of the tensor `[experts, rows]` with the biases.
    pub bias: String,
    /// Which expert.
    pub expert: usize,
    /// Of how many.
    pub experts: usize,
    /// Which of the expert's rows.
    pub rows: Rows,
    /// Whether the columns are stored as rows.
    pub is_transposed: bool,
}

impl Fused {
    /// Shape of the tensor for a weight of shape `[out, in]`.
    pub fn stored_shape(&self, [out, columns]: [usize; 2]) -> [usize; 3] {
        let rows = self.rows.stored_count(out);
        if self.is_transposed { [self.experts, columns, rows] } else { [self.experts, rows, columns] }
    }

    /// Where in the tensor element `[r, c]` of a weight of shape `[out, in]` lies.
    pub fn stored(&self, [out, columns]: [usize; 2], r: usize, c: usize) -> usize {
        let (rows, r) = (self.rows.stored_count(out), self.rows.stored(r));
        self.expert * rows * columns + if self.is_transposed { c * rows + r } else { r * columns + c }
    }

    /// Where among the biases element `r` of a weight with `out` rows lies.
    pub fn stored_bias(&self, out: usize, r: usize) -> usize {
        self.expert * self.rows.stored_count(out) + self.rows.stored(r)
    }
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
    /// For a matrix, another place that some files have.
    pub alias: Option<Box<Source>>,
    /// For an expert's matrix, where it lies if the module has no tensors of its own.
    pub fused: Option<Fused>,
    /// Whether a matrix of plain numbers is stored `[in, out]`, its rows as columns (GPT-2). Codes are stored by rows.
    pub is_transposed: bool,
    /// For a matrix whose tensor has one matrix for each head, each transposed where that is said: how many. For a table
    /// whose rows are tensors `{name}.0.weight`, `{name}.1.weight` and so on: how many.
    pub heads: Option<usize>,
}

impl Source {
    /// A tensor that is read as it is.
    pub fn plain(name: impl Into<String>) -> Self {
        let (rows, stored) = (Rows::All, Stored::AsIs);
        Self { name: name.into(), rows, stored, alias: None, fused: None, is_transposed: false, heads: None }
    }

    /// The whole name of the tensor that a writer puts a matrix into.
    pub fn tensor(&self) -> String {
        self.fused.as_ref().map_or_else(|| format!("{}.weight", self.name), |f| f.tensor.clone())
    }

    /// The whole name of the tensor that a writer puts its biases into.
    pub fn bias(&self) -> String {
        self.fused.as_ref().map_or_else(|| format!("{}.bias", self.name), |f| f.bias.clone())
    }

    /// The whole names of the tensors of a vector: one, or one for each row of a table.
    pub fn vector_tensors(&self) -> Vec<String> {
        match self.heads {
            None => vec![self.name.clone()],
            Some(heads) => (0..heads).map(|h| format!("{}.{h}.weight", self.name)).collect(),
        }
    }

    /// Shape of each of the tensors of a vector.
    pub fn vector_shape(&self, vector: &Vector) -> Vec<usize> {
        if self.heads.is_some() { vec![vector.dim] } else { vector.shape() }
    }

    /// The numbers of a vector from those that its tensors hold.
    pub fn read_vector(&self, stored: &[f32]) -> Vec<f32> {
        let offset = self.stored.offset();
        (0..stored.len()).map(|i| stored[self.rows.stored(i)] + offset).collect()
    }

    /// What the tensors of a vector hold: [`read_vector`](Self::read_vector) backwards.
    pub fn stored_vector(&self, values: &[f32]) -> Vec<f32> {
        let (offset, mut stored) = (self.stored.offset(), vec![0.0; values.len()]);
        for (i, value) in values.iter().enumerate() {
            stored[self.rows.stored(i)] = value - offset;
        }
        stored
    }

    /// Shape of the tensor, that of an expert's matrix aside, for a weight of shape `[out, in]`.
    pub fn stored_shape(&self, [out, columns]: [usize; 2]) -> Vec<usize> {
        let rows = self.rows.stored_count(out) / self.heads.unwrap_or(1);
        let [a, b] = if self.is_transposed { [columns, rows] } else { [rows, columns] };
        self.heads.into_iter().chain([a, b]).collect()
    }

    /// Where in a transposed tensor element `[r, c]` of a weight of shape `[out, in]` lies.
    pub fn stored_transposed(&self, [out, columns]: [usize; 2], r: usize, c: usize) -> usize {
        let rows = self.rows.stored_count(out) / self.heads.unwrap_or(1);
        let r = self.rows.stored(r);
        (r / rows * columns + c) * rows + r % rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rope_pairs_are_a_permutation_of_each_head() {
        let map = |rotary_dims| -> Vec<usize> {
            let rows = Rows::RopePairs { head_dim: 6, rotary_dims };
            (0..12).map(|r| rows.stored(r)).collect()
        };
        assert_eq!(map(6), [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert_eq!(map(4), [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]);
    }

    #[test]
    fn blocks_take_their_share_of_each_head() {
        let k = Rows::Blocks { block: 6, offset: 2, rows: 2 };
        let map: Vec<usize> = (0..4).map(|r| k.stored(r)).collect();
        assert_eq!(map, [2, 3, 8, 9]);
        assert_eq!(k.stored_count(4), 12);
    }

    #[test]
    fn pairs_behind_come_first() {
        let map = |rows: Rows, count: usize| (0..count).map(|r| rows.stored(r)).collect::<Vec<_>>();
        let heads = Rows::PairsBehind { block: 7, offset: 3, rest: 3 };
        assert_eq!(map(heads, 14), [3, 5, 4, 6, 0, 1, 2, 10, 12, 11, 13, 7, 8, 9]);
        assert_eq!(heads.stored_count(14), 14);
        let last = Rows::PairsBehind { block: 9, offset: 5, rest: 0 };
        assert_eq!((map(last, 4), last.stored_count(4)), (vec![5, 7, 6, 8], 9));
    }

    #[test]
    fn a_transposed_matrix_of_each_head_is_found_element_by_element() {
        // Two heads of three rows and five columns, stored `[head, in, 3]`.
        let source = Source { is_transposed: true, heads: Some(2), ..Source::plain("t") };
        assert_eq!(source.stored_shape([6, 5]), [2, 5, 3]);
        assert_eq!(source.stored_transposed([6, 5], 4, 2), 15 + 2 * 3 + 1);
        assert_eq!(Source { heads: None, ..source.clone() }.stored_transposed([6, 5], 4, 2), 2 * 6 + 4);
        assert_eq!(Source { is_transposed: false, ..source }.stored_shape([6, 5]), [2, 3, 5]);
    }

    #[test]
    fn a_table_of_a_tensor_per_row_with_adjacent_pairs() {
        let rows = Rows::RopePairs { head_dim: 4, rotary_dims: 4 };
        let source = Source { rows, stored: Stored::MinusOne, heads: Some(2), ..Source::plain("norms") };
        assert_eq!(source.vector_tensors(), ["norms.0.weight", "norms.1.weight"]);
        let stored = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        let values = source.read_vector(&stored);
        assert_eq!(values, [1.0, 3.0, 2.0, 4.0, 5.0, 7.0, 6.0, 8.0]);
        assert_eq!(source.stored_vector(&values), stored);
    }

    #[test]
    fn fused_experts_are_found_element_by_element() {
        // Two experts whose gate and up rows alternate, stored `[expert, in, 2 · out]`.
        let at = |rows| Fused {
            tensor: "t".to_owned(),
            bias: "b".to_owned(),
            expert: 1,
            experts: 2,
            rows,
            is_transposed: true,
        };
        let up = at(Rows::Blocks { block: 2, offset: 1, rows: 1 });
        assert_eq!(up.stored_shape([3, 5]), [2, 5, 6]);
        assert_eq!(up.stored([3, 5], 2, 4), 30 + 4 * 6 + 5);
        assert_eq!(up.stored_bias(3, 0), 7);
        let down = Fused { is_transposed: false, ..at(Rows::All) };
        assert_eq!(down.stored_shape([3, 5]), [2, 3, 5]);
        assert_eq!(down.stored([3, 5], 2, 4), 15 + 14);
    }
}
