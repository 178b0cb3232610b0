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
    /// `x'_k = x_from[k]`, each element once.
    Reorder(Vec<u32>),
}

impl Online {
    /// Whether rows of `dim` values can be mapped.
    pub fn fits(&self, dim: usize) -> bool {
        match self {
            Self::Hadamard { block, flips, .. } => {
                *block > 0 && dim.is_multiple_of(*block) && (flips.is_empty() || flips.len() == dim)
            }
            Self::Diagonal(factors) => factors.len() == dim,
            Self::Reorder(from) => {
                let mut seen = vec![false; dim];
                let mut is_new = |k: &u32| seen.get_mut(*k as usize).is_some_and(|s| !std::mem::replace(s, true));
                from.len() == dim && from.iter().all(&mut is_new)
            }
        }
    }

    /// What undoes it.
    pub fn inverse(&self) -> Self {
        match self {
            Self::Hadamard { block, flips, is_inverse } => {
                Self::Hadamard { block: *block, flips: flips.clone(), is_inverse: !is_inverse }
            }
            Self::Diagonal(factors) => Self::Diagonal(factors.iter().map(|f| 1.0 / f).collect()),
            Self::Reorder(from) => {
                let mut back = vec![0; from.len()];
                from.iter().enumerate().for_each(|(k, from)| back[*from as usize] = k as u32);
                Self::Reorder(back)
            }
        }
    }

    /// Bits of one place of a [`Reorder`](Self::Reorder) of `dim` elements in a file.
    pub fn place_bits(dim: usize) -> u64 {
        if dim <= 1 << 16 { 16 } else { 32 }
    }

    /// Bits that it takes in a file.
    pub fn stored_bits(&self) -> u64 {
        match self {
            // Signs in whole bytes; the block and whether it is the inverse.
            Self::Hadamard { flips, .. } => flips.len().next_multiple_of(8) as u64 + 64,
            Self::Diagonal(factors) => 32 * factors.len() as u64,
            Self::Reorder(from) => Self::place_bits(from.len()) * from.len() as u64,
        }
    }
}
