//! AVX-512: a register.
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics bear their own prefix"))]

use std::arch::x86_64::*;

use super::Sixteen;
use crate::ahead::Ahead;

/// An expression on intrinsics, inside a method of a token.
macro_rules! proven {
    ($e:expr) => {
        // SAFETY: the token exists, so the instruction set does; memory is what the method was promised.
        unsafe { $e }
    };
}

/// Writes methods of one instruction.
macro_rules! methods {
    ($($name:ident($($a:ident: $in:ty),*) -> $out:ty = $e:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($a: $in),*) -> $out {
            proven!($e)
        }
    )*};
}

/// The token of AVX-512.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512(Ahead);

impl Avx512 {
    /// # Safety
    /// The machine has AVX-512 F, BW, VL, DQ and VNNI.
    #[inline(always)]
    pub(in super::super) unsafe fn new() -> Self {
        Self(Ahead::of_machine())
    }
}

impl Sixteen for Avx512 {
    type F = __m512;
    type I = __m512i;
    const CHAINS: usize = 8;

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> __m512 {
        proven!(_mm512_loadu_ps(at))
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: __m512) {
        proven!(_mm512_storeu_ps(at, v));
    }

    #[inline(always)]
    unsafe fn words(self, at: *const u8) -> __m512i {
        proven!(_mm512_loadu_si512(at.cast()))
    }

    #[inline(always)]
    unsafe fn shorts(self, at: *const u8) -> __m512i {
        proven!(_mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast())))
    }

    #[inline(always)]
    unsafe fn bytes(self, at: *const u8) -> __m512i {
        proven!(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())))
    }

    #[inline(always)]
    unsafe fn halves(self, at: *const u8) -> __m512 {
        proven!(_mm512_cvtph_ps(_mm256_loadu_si256(at.cast())))
    }

    #[inline(always)]
    unsafe fn bytes_as_halves(self, at: *const u8, left: u32, mask: u16) -> __m512 {
        proven!({
            let wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast()));
            let moved = _mm256_sll_epi16(wide, _mm_cvtsi32_si128(left as i32));
            _mm512_cvtph_ps(_mm256_and_si256(moved, _mm256_set1_epi16(mask as i16)))
        })
    }

    #[inline(always)]
    unsafe fn gather(self, table: *const u32, index: __m512i) -> __m512i {
        proven!(_mm512_i32gather_epi32::<4>(index, table.cast()))
    }

    #[inline(always)]
    fn fetch(self, at: *const u8) {
        self.0.fetch(at);
    }

    methods! {
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        splat_u32(x: u32) -> __m512i = _mm512_set1_epi32(x as i32);
        shl(a: __m512i, by: u32) -> __m512i = _mm512_sll_epi32(a, _mm_cvtsi32_si128(by as i32));
        shr(a: __m512i, by: u32) -> __m512i = _mm512_srl_epi32(a, _mm_cvtsi32_si128(by as i32));
        spread_sign(a: __m512i) -> __m512i = _mm512_srai_epi32::<31>(a);
        and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        or(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        xor(a: __m512i, b: __m512i) -> __m512i = _mm512_xor_si512(a, b);
        select(mask: __m512i, a: __m512i, b: __m512i) -> __m512i = _mm512_ternarylogic_epi32::<0xca>(mask, b, a);
        add_u32(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        max_u32(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epu32(a, b);
        mul_u32(a: __m512i, b: __m512i) -> __m512i = _mm512_mullo_epi32(a, b);
        sum_bytes(a: __m512i, with: i32) -> __m512i =
            _mm512_dpbusd_epi32(_mm512_set1_epi32(with), a, _mm512_set1_epi8(1));
        rotate(a: __m512i) -> __m512i = _mm512_alignr_epi32::<15>(a, a);
        number(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
        bits(a: __m512) -> __m512i = _mm512_castps_si512(a);
        as_number(a: __m512i) -> __m512 = _mm512_castsi512_ps(a);
        lookup(index: __m512i, table: __m512) -> __m512 = _mm512_permutexvar_ps(index, table);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
    }

    #[inline(always)]
    fn quotient(self, a: __m512, by: f32, inverse: f32) -> __m512 {
        // One step of Newton's makes the product the quotient, rounded once (Markstein, 1990).
        let (by, inverse) = (self.splat(-by), self.splat(inverse));
        let near = self.mul(a, inverse);
        self.fma(self.fma(near, by, a), inverse, near)
    }
}
