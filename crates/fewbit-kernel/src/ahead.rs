//! How weights are fetched ahead of their use: what reads memory fastest differs by the maker of the processor.
//!
//! Measured on 4-bit weights by one thread (`benches/generation.rs`). AMD's Zen 4 with AVX-512: lines fetched 4 KiB ahead
//! into the first cache from four streams read 13 GB/s, into the second one 18, and one stream with lines fetched up to
//! 1 KiB ahead into the second cache 25, of 27 that the memory gives. Zen 3 with AVX2, two streams: 7.8 and 8.4 (8 bits:
//! 8.3 and 9.0). Intel's Cascade Lake reads fastest the first way.

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
use std::sync::LazyLock;

/// A way to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// Far ahead into the first cache; from as many streams as there are registers for.
    First,
    /// Shortly ahead into the second cache; from one stream where a thread is fast enough to read it at full speed.
    Second,
}

impl Ahead {
    /// The faster one on this machine: SSE4A is what AMD's processors have, and no others of today.
    pub(crate) fn of_machine() -> Self {
        static OF_MACHINE: LazyLock<Ahead> =
            LazyLock::new(|| if is_x86_feature_detected!("sse4a") { Ahead::Second } else { Ahead::First });
        *OF_MACHINE
    }

    /// Bytes from the weights in use to those that are fetched: the hardware's own prefetchers stop at each page.
    #[inline(always)]
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::First => 4096,
            Self::Second => 1024,
        }
    }

    /// Fetches the line at this address, which may be any.
    #[inline(always)]
    pub(crate) fn fetch(self, at: *const u8) {
        // SAFETY: every such machine has the instruction, and fetching reads nothing.
        unsafe {
            match self {
                Self::First => _mm_prefetch::<_MM_HINT_T0>(at.cast()),
                Self::Second => _mm_prefetch::<_MM_HINT_T1>(at.cast()),
            }
        }
    }
}
