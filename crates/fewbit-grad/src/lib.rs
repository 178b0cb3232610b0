//! The differentiable interpreter: the same graphs as the runtime's, with a gradient for every weight, bias, norm and edge.
//!
//! A [`Function`] is a graph that runs forward (keeping what it must in [`Saved`]) and backward (adding to the
//! [`Gradients`] that are asked for), whole sequences without caches, on our own kernels. [`model`] runs a whole model with
//! only one block in memory. [`loss`] and [`optim`] are what training needs beside it. Results depend on the number of
//! threads nowhere.

mod backward;
mod edges;
mod experts;
mod function;
mod gradients;
mod input;
pub mod loss;
pub mod model;
pub mod optim;
mod parameters;
mod saved;

pub use edges::{Edges, NoEdges};
pub use function::Function;
pub use gradients::Gradients;
pub use input::Input;
pub use parameters::{Parameters, View};
pub use saved::Saved;
