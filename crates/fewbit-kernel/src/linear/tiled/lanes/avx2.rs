//! AVX2: two registers.
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

/// Writes methods of one instruction for each half.
macro_rules! methods {
    ($($name:ident($($a:ident: $in:ty),*; $($same:ident: $type:ty),*) -> $out:ty = $e:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($a: [$in; 2],)* $($same: $type),*) -> [$out; 2] {
            [
                {
                    let ($($a,)*) = ($($a[0],)*);
                    proven!($e)
                },
                {
                    let ($($a,)*) = ($($a[1],)*);
                    proven!($e)
                },
            ]
        }
    )*};
}

/// The token of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2(Ahead);

impl Avx2 {
    /// # Safety
    /// The machine has AVX2, FMA and F16C.
    #[inline(always)]
    pub(in super::super) unsafe fn new() -> Self {
        Self(Ahead::of_machine())
    }
}

impl Sixteen for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    const CHAINS: usize = 4;

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> [__m256; 2] {
        proven!([_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))])
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32, v: [__m256; 2]) {
        proven!({
            _mm256_storeu_ps(at, v[0]);
            _mm256_storeu_ps(at.add(8), v[1]);
        });
    }

    #[inline(always)]
    unsafe fn words(self, at: *const u8) -> [__m256i; 2] {
        proven!([_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())])
    }

    #[inline(always)]
    unsafe fn shorts(self, at: *const u8) -> [__m256i; 2] {
        proven!([
            _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())),
            _mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(16).cast())),
        ])
    }

    #[inline(always)]
    unsafe fn bytes(self, at: *const u8) -> [__m256i; 2] {
        proven!([
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())),
            _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.add(8).cast())),
        ])
    }

    #[inline(always)]
    unsafe fn halves(self, at: *const u8) -> [__m256; 2] {
        proven!([_mm256_cvtph_ps(_mm_loadu_si128(at.cast())), _mm256_cvtph_ps(_mm_loadu_si128(at.add(16).cast()))])
    }

    #[inline(always)]
    unsafe fn bytes_as_halves(self, at: *const u8, left: u32, mask: u16) -> [__m256; 2] {
        proven!({
            let wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast()));
            let moved = _mm256_sll_epi16(wide, _mm_cvtsi32_si128(left as i32));
            let halves = _mm256_and_si256(moved, _mm256_set1_epi16(mask as i16));
            [_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves))]
        })
    }

    #[inline(always)]
    unsafe fn gather(self, table: *const u32, index: [__m256i; 2]) -> [__m256i; 2] {
        proven!([
            _mm256_i32gather_epi32::<4>(table.cast(), index[0]),
            _mm256_i32gather_epi32::<4>(table.cast(), index[1]),
        ])
    }

    #[inline(always)]
    fn fetch(self, at: *const u8) {
        self.0.fetch(at);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [__m256; 2] {
        proven!([_mm256_set1_ps(x); 2])
    }

    #[inline(always)]
    fn splat_u32(self, x: u32) -> [__m256i; 2] {
        proven!([_mm256_set1_epi32(x as i32); 2])
    }

    methods! {
        shl(a: __m256i; by: u32) -> __m256i = _mm256_sll_epi32(a, _mm_cvtsi32_si128(by as i32));
        shr(a: __m256i; by: u32) -> __m256i = _mm256_srl_epi32(a, _mm_cvtsi32_si128(by as i32));
        spread_sign(a: __m256i;) -> __m256i = _mm256_srai_epi32::<31>(a);
        and(a: __m256i, b: __m256i;) -> __m256i = _mm256_and_si256(a, b);
        or(a: __m256i, b: __m256i;) -> __m256i = _mm256_or_si256(a, b);
        xor(a: __m256i, b: __m256i;) -> __m256i = _mm256_xor_si256(a, b);
        select(mask: __m256i, a: __m256i, b: __m256i;) -> __m256i =
            _mm256_or_si256(_mm256_andnot_si256(mask, a), _mm256_and_si256(mask, b));
        add_u32(a: __m256i, b: __m256i;) -> __m256i = _mm256_add_epi32(a, b);
        max_u32(a: __m256i, b: __m256i;) -> __m256i = _mm256_max_epu32(a, b);
        mul_u32(a: __m256i, b: __m256i;) -> __m256i = _mm256_mullo_epi32(a, b);
        sum_bytes(a: __m256i; with: i32) -> __m256i = {
            let pairs = _mm256_maddubs_epi16(a, _mm256_set1_epi8(1));
            _mm256_add_epi32(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)), _mm256_set1_epi32(with))
        };
        number(a: __m256i;) -> __m256 = _mm256_cvtepi32_ps(a);
        bits(a: __m256;) -> __m256i = _mm256_castps_si256(a);
        as_number(a: __m256i;) -> __m256 = _mm256_castsi256_ps(a);
        add(a: __m256, b: __m256;) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256;) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256;) -> __m256 = _mm256_mul_ps(a, b);
        div(a: __m256, b: __m256;) -> __m256 = _mm256_div_ps(a, b);
        fma(a: __m256, b: __m256, c: __m256;) -> __m256 = _mm256_fmadd_ps(a, b, c);
    }

    #[inline(always)]
    fn rotate(self, a: [__m256i; 2]) -> [__m256i; 2] {
        proven!({
            let down = _mm256_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6);
            let [low, high] = [_mm256_permutevar8x32_epi32(a[0], down), _mm256_permutevar8x32_epi32(a[1], down)];
            [_mm256_blend_epi32::<1>(low, high), _mm256_blend_epi32::<1>(high, low)]
        })
    }

    methods! {
        // A permutation takes three bits; the fourth, as a sign, says from which half.
        lookup(index: __m256i; table: [__m256; 2]) -> __m256 = _mm256_blendv_ps(
            _mm256_permutevar8x32_ps(table[0], index),
            _mm256_permutevar8x32_ps(table[1], index),
            _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index))
        );
    }

    #[inline(always)]
    fn quotient(self, a: [__m256; 2], by: f32, inverse: f32) -> [__m256; 2] {
        // As for AVX-512.
        let (by, inverse) = (self.splat(-by), self.splat(inverse));
        let near = self.mul(a, inverse);
        self.fma(self.fma(near, by, a), inverse, near)
    }
}
