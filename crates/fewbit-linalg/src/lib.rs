//! Factorisations on the project's own matrix products, and random rotations.
//!
//! Every blocking is a constant, so that a result has the same bits for any number of threads.

mod cholesky;
mod eigen;
mod inverse;
mod kmeans;
mod orthogonal;
mod rotation;
mod svd;

pub use cholesky::{NotPositive, cholesky_in_place};
pub use eigen::symmetric_eigen;
pub use inverse::{scratch_bytes, upper_inverse_factor};
pub use kmeans::kmeans;
pub use orthogonal::Orthogonal;
pub use rotation::{random_orthogonal, random_signs};
pub use svd::{Svd, truncated_svd};
