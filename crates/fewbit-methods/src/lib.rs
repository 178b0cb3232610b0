//! The published methods: one file per primitive, a const list per kind, a recipe per paper.
//!
//! To add a method: write its primitive (if it needs a new one) in the folder of its kind, add one line to the list
//! there, and put a TOML file into `recipes/`.

mod act;
mod fence;
mod grid;
mod learn;
mod recipes;
mod residual;
mod solve;
mod transform;

pub use recipes::RECIPES;

use fewbit_engine::kinds::Registry;

/// All primitives.
pub const REGISTRY: Registry = Registry {
    activations: act::ACTIVATIONS,
    grids: grid::GRIDS,
    solvers: solve::SOLVERS,
    learners: learn::LEARNERS,
    residuals: residual::RESIDUALS,
    onlines: transform::ONLINES,
    transforms: transform::TRANSFORMS,
    rotations: transform::ROTATIONS,
};
