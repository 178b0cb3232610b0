/// A map of a linear's input or output that is applied while the model runs, since nothing can take it in.
///
/// Rows are mapped as `x' = x M`.
#[derive(Clone, Debug, PartialEq)]
pub enum Online {
    /// `x' = (σ ⊙ x) H`, `H` an orthonormal Hadamard matrix in blocks along the row.
    Hadamard {
        /// Columns of a block; an order of Hadamard matrices that divides the row.
        block: usize,
        /// `true` where the sign `σ` of an element is −1; empty where none is.
        flips: Vec<bool>,
        /// The inverse of that: `x' = σ ⊙ (x Hᵀ)`.
        is_inverse: bool,
    },
    /// `x' = x ⊙ factors`.
    Diagonal(Vec<f32>),
}

impl Online {
    /// Whether rows of `dim` values can be mapped.
    pub fn fits(&self, dim: usize) -> bool {
        match self {
            Self::Hadamard { block, flips, .. } => {
                *block > 0 && dim.is_multiple_of(*block) && (flips.is_empty() || flips.len() == dim)
            }
            Self::Diagonal(factors) => factors.len() == dim,
        }
    }

    /// What undoes it.
    pub fn inverse(&self) -> Self {
        match self {
            Self::Hadamard { block, flips, is_inverse } => {
                Self::Hadamard { block: *block, flips: flips.clone(), is_inverse: !is_inverse }
            }
            Self::Diagonal(factors) => Self::Diagonal(factors.iter().map(|f| 1.0 / f).collect()),
        }
    }

    /// Bits that it takes in a file.
    pub fn stored_bits(&self) -> u64 {
        match self {
            // Signs in whole bytes; the block and whether it is the inverse.
            Self::Hadamard { flips, .. } => flips.len().next_multiple_of(8) as u64 + 64,
            Self::Diagonal(factors) => 32 * factors.len() as u64,
        }
    }
}
