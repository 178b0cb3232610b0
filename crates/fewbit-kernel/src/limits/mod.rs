//! What the machine can do at most, measured: reads from memory, multiply-adds of f32, products of 8-bit integers.
//!
//! A speed means little on its own. These are the limits to hold it against, taken in the same run with as many threads.

mod arithmetic;
mod clock;
mod read;

pub use arithmetic::{f32_peak, int8_peak};
pub use clock::{Clocks, best_seconds};
pub use read::{Memory, Pages, Scheme, available_memory_bytes};
