//! A model is a graph, written once: operations, families (one file each), weight names, sites. No tensors.
//!
//! A family is a function from `config.json` to a small typed [`Graph`] per block, and a table from the graph's
//! weights to where they lie in a container. Everything structural (which linears share an input, into which tensors
//! a transform folds) is derived from the graph.

mod builder;
mod config;
mod families;
mod graph;
mod model;
mod names;
mod residual;
mod rope;
mod site;

pub use builder::Builder;
pub use config::Config;
pub use families::{Architecture, FAMILIES, architecture_of};
pub use graph::{
    Activation, Edge, Graph, Groups, Node, Op, Routed, Routing, Score, Share, Value, ValueId, Vector, VectorId, Weight,
    WeightId,
};
pub use model::{Model, Part};
pub use names::{Container, Fused, Rows, Source, Stored};
pub use residual::{Reader, Residual};
pub use rope::{Beyond, Rope};
pub use site::{Fold, Producer, Site, Symmetry, Tied, sites};
