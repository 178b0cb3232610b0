//! Storage of weights: element types, tensors, bit packing, block layouts, and the one decoder of each.
//!
//! What a solver sees as the rounded value comes from here, and so does what the runtime multiplies with: the
//! file that is written equals what was optimised, bit for bit.

mod activation;
mod adapter;
mod bits;
mod dtype;
mod error;
mod float;
mod ggml;
mod group;
mod int;
mod lattice;
mod linear;
mod mat;
mod minifloat;
mod nested;
mod online;
mod scale;
mod sides;
mod signs;
mod sparse;
mod table;
mod tensor;
pub mod tiles;
mod trellis;
mod two_of_four;
mod vector;

pub use activation::{ActivationFormat, ActivationGrid, Number, Sharing};
pub use adapter::Adapter;
pub use bits::{hex, pack_bits, packed_len, unpack_bits};
pub use dtype::Dtype;
pub use error::{Error, Kind, Result};
pub use float::{FloatCodes, FloatGrid};
pub use ggml::{CodeMeaning, E2M1_TWICE, Eight, EightPoints, GgmlBlocks, GgmlType, IQ4_LEVELS, Split};
pub use group::Group;
pub use int::{IntCodes, IntGrid, Zero, Zeros};
pub use lattice::{
    LATTICE_DIM, LatticeCodes, LatticeGrid, PATTERNS, SHORT, SecondStage, e8p_code, e8p_point, lattice_point,
};
pub use linear::{Band, QuantizedLinear, Storage};
pub use mat::Mat;
pub use minifloat::Minifloat;
pub use nested::{Blocks, Levels, Nested, NestedGrid, Numbers, dynamic_map};
pub use online::Online;
pub use scale::{ScaleType, Scales};
pub use sides::{LowRank, Sides};
pub use signs::{SignCodes, SignGrid, Signs};
pub use sparse::{Gaps, Sparse, SparseValues};
pub use table::{TableCodes, TableGrid};
pub use tensor::Tensor;
pub use trellis::{TILE, TILE_LEN, TrellisCode, TrellisCodes, TrellisGrid, pack_path};
pub use two_of_four::TwoOfFour;
pub use vector::{VectorCodes, VectorGrid};
