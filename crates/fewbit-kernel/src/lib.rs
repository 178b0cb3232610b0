//! Vector kernels and the thread team.
//!
//! Each kernel exists per instruction set beside a scalar twin, chosen at run time ([`cpu`]). A result depends on the
//! instruction set alone: never on the number of threads, nor on how many tokens are computed together.

#[cfg(target_arch = "x86_64")]
mod ahead;
mod aligned;
pub mod attention;
pub mod codebook;
pub mod cpu;
pub mod elementwise;
pub mod hadamard;
mod huge_pages;
mod lanes;
pub mod lattice;
pub mod limits;
pub mod linear;
pub mod online;
pub mod product;
mod stream;
pub mod strip;
pub mod team;
mod tile;
pub mod trellis;
pub mod triangular;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub use cpu::Level;
pub use team::Team;
