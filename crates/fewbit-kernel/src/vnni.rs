//! `vpdpbusd` of 256 bits for functions that enable only AVX2.
//!
//! AVX-VNNI and AVX-512 each have an intrinsic and an encoding of it; called from a function without that feature an
//! intrinsic is not inlined.

use std::arch::asm;
use std::arch::x86_64::__m256i;

/// Adds the products of four unsigned bytes of `a` with four signed ones of `b` to each sum of 32 bits.
///
/// # Safety
/// The machine has AVX-VNNI for `VEX`, else AVX-512 VL and VNNI.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn dot_bytes<const VEX: bool>(mut sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller promises the instruction, which touches only these registers.
    unsafe {
        if VEX {
            asm!("{{vex}} vpdpbusd {}, {}, {}", inlateout(ymm_reg) sum, in(ymm_reg) a, in(ymm_reg) b,
                options(pure, nomem, nostack, preserves_flags));
        } else {
            asm!("{{evex}} vpdpbusd {}, {}, {}", inlateout(ymm_reg) sum, in(ymm_reg) a, in(ymm_reg) b,
                options(pure, nomem, nostack, preserves_flags));
        }
    }
    sum
}

/// Whether the machine has the encoding of AVX-VNNI.
pub(crate) fn has_vex() -> bool {
    is_x86_feature_detected!("avxvnni")
}
