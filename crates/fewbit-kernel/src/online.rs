//! Maps of rows that are applied while the model runs.

use fewbit_format::Online;

use crate::Team;
use crate::hadamard::Hadamard;

/// An [`Online`] map of rows of one width, ready to run.
#[derive(Clone, Debug)]
pub enum Map {
    /// `x' = x D H`, or `x Hᵀ D`.
    Hadamard {
        /// `H`.
        matrix: Hadamard,
        /// `D`, ±1, for a row or a block.
        signs: Vec<f32>,
        /// Whether the second is meant.
        is_inverse: bool,
    },
    /// `x' = x ⊙ factors`.
    Diagonal(Vec<f32>),
    /// `x'_k = x_from[k]`.
    Reorder(Vec<u32>),
}

impl Map {
    /// The map of rows of `dim` values.
    ///
    /// # Panics
    /// If it is not one of such rows: layouts check what they read.
    pub fn new(map: &Online, dim: usize) -> Self {
        assert!(map.fits(dim), "a map of rows of {dim}");
        match map {
            Online::Hadamard { block, flips, is_inverse } => {
                let matrix = Hadamard::of_order(*block).expect("layouts take known orders alone");
                let signs = flips.iter().map(|flip| if *flip { -1.0 } else { 1.0 }).collect();
                Self::Hadamard { matrix, signs, is_inverse: *is_inverse }
            }
            Online::Diagonal(factors) => Self::Diagonal(factors.clone()),
            Online::Reorder(from) => Self::Reorder(from.clone()),
        }
    }

    /// Maps all rows.
    pub fn apply(&self, team: &Team, rows: &mut [f32]) {
        match self {
            Self::Hadamard { matrix, signs, is_inverse: false } => matrix.rotate_all(team, rows, signs),
            Self::Hadamard { matrix, signs, is_inverse: true } => matrix.rotate_back_all(team, rows, signs),
            Self::Diagonal(factors) => team.for_pieces(rows, factors.len(), &|_, row| {
                row.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
            }),
            Self::Reorder(from) => team.for_pieces(rows, from.len(), &|_, row| {
                let old = row.to_vec();
                row.iter_mut().zip(from).for_each(|(x, from)| *x = old[*from as usize]);
            }),
        }
    }
}
