//! The tokens of x86: AVX2 and AVX-512.
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics bear their own prefix"))]

use std::arch::x86_64::*;

use half::f16;

use super::Simd;

/// An expression on intrinsics, inside a method of a token.
macro_rules! proven {
    ($e:expr) => {
        // SAFETY: the token exists, so the instruction set does; memory is what the method checked or was promised.
        unsafe { $e }
    };
}

/// Eight lanes with fused multiply-add, and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The machine has AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }

    /// All ones in the first `n` lanes.
    #[inline(always)]
    fn first(n: usize) -> __m256i {
        const ONES_THEN_ZEROS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        let from = &ONES_THEN_ZEROS[8 - n..16 - n];
        proven!(_mm256_loadu_si256(from.as_ptr().cast()))
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    type V = __m256;
    type Mask = __m256;
    type Wide = [__m256d; 2];

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        proven!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> __m256 {
        proven!(_mm256_loadu_ps(x[..8].as_ptr()))
    }

    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> __m256 {
        proven!(_mm256_maskload_ps(x.as_ptr(), Self::first(x.len())))
    }

    #[inline(always)]
    fn store(self, x: &mut [f32], v: __m256) {
        proven!(_mm256_storeu_ps(x[..8].as_mut_ptr(), v));
    }

    #[inline(always)]
    fn store_partial(self, x: &mut [f32], v: __m256) {
        proven!(_mm256_maskstore_ps(x.as_mut_ptr(), Self::first(x.len()), v));
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> __m256 {
        proven!(_mm256_loadu_ps(x))
    }

    #[inline(always)]
    unsafe fn store_at(self, x: *mut f32, v: __m256) {
        proven!(_mm256_storeu_ps(x, v));
    }

    #[inline(always)]
    unsafe fn load_half_at(self, x: *const f16) -> __m256 {
        proven!(_mm256_cvtph_ps(_mm_loadu_si128(x.cast())))
    }

    #[inline(always)]
    unsafe fn store_half_at(self, x: *mut f16, v: __m256) {
        proven!(_mm_storeu_si128(x.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)));
    }

    #[inline(always)]
    fn prefetch<T>(self, x: *const T) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(x.cast()));
    }

    #[inline(always)]
    unsafe fn transpose_at(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        proven!({
            let mut r = [_mm256_setzero_ps(); 8];
            for (i, r) in r.iter_mut().enumerate() {
                *r = _mm256_loadu_ps(from.add(i * from_stride));
            }
            let mut pairs = r;
            for i in 0..4 {
                pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            let mut fours = r;
            for i in 0..2 {
                fours[4 * i] = _mm256_shuffle_ps::<0x44>(pairs[4 * i], pairs[4 * i + 2]);
                fours[4 * i + 1] = _mm256_shuffle_ps::<0xEE>(pairs[4 * i], pairs[4 * i + 2]);
                fours[4 * i + 2] = _mm256_shuffle_ps::<0x44>(pairs[4 * i + 1], pairs[4 * i + 3]);
                fours[4 * i + 3] = _mm256_shuffle_ps::<0xEE>(pairs[4 * i + 1], pairs[4 * i + 3]);
            }
            for i in 0..4 {
                _mm256_storeu_ps(to.add(i * to_stride), _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]));
                _mm256_storeu_ps(to.add((i + 4) * to_stride), _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]));
            }
        });
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        proven!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        proven!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a))
    }

    #[inline(always)]
    fn copysign(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_or_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0), a), _mm256_and_ps(_mm256_set1_ps(-0.0), b)))
    }

    #[inline(always)]
    fn scale_by_power(self, a: __m256, n: __m256) -> __m256 {
        // In two steps, since 2ⁿ alone may not be a normal number.
        proven!({
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let rest = _mm256_sub_epi32(n, half);
            let one = _mm256_castps_si256(_mm256_set1_ps(1.0));
            let first = _mm256_castsi256_ps(_mm256_add_epi32(one, _mm256_slli_epi32::<23>(half)));
            let second = _mm256_castsi256_ps(_mm256_add_epi32(one, _mm256_slli_epi32::<23>(rest)));
            _mm256_mul_ps(_mm256_mul_ps(a, first), second)
        })
    }

    #[inline(always)]
    fn less(self, a: __m256, b: __m256) -> __m256 {
        proven!(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
    }

    #[inline(always)]
    fn select(self, mask: __m256, yes: __m256, no: __m256) -> __m256 {
        proven!(_mm256_blendv_ps(no, yes, mask))
    }

    #[inline(always)]
    fn interleave(self, a: __m256, b: __m256) -> [__m256; 2] {
        proven!({
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]
        })
    }

    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        proven!({
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }

    #[inline(always)]
    fn greatest(self, a: __m256) -> f32 {
        proven!({
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }

    #[inline(always)]
    fn wide_zero(self) -> [__m256d; 2] {
        proven!([_mm256_setzero_pd(); 2])
    }

    #[inline(always)]
    fn wide_add(self, [low, high]: [__m256d; 2], v: __m256) -> [__m256d; 2] {
        proven!([
            _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(v))),
            _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(v)))
        ])
    }

    #[inline(always)]
    fn wide_sum(self, [low, high]: [__m256d; 2]) -> f64 {
        proven!({
            let four = _mm256_add_pd(low, high);
            let two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd::<1>(four));
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        })
    }
}

/// Sixteen lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The machine has AVX-512 F, BW, VL and DQ, AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }

    /// The first `n` lanes.
    #[inline(always)]
    fn first(n: usize) -> __mmask16 {
        assert!(n <= 16, "more values than lanes");
        ((1u32 << n) - 1) as __mmask16
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    type V = __m512;
    type Mask = __mmask16;
    type Wide = [__m512d; 2];

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> __m512 {
        proven!(_mm512_loadu_ps(x[..16].as_ptr()))
    }

    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> __m512 {
        proven!(_mm512_maskz_loadu_ps(Self::first(x.len()), x.as_ptr()))
    }

    #[inline(always)]
    fn store(self, x: &mut [f32], v: __m512) {
        proven!(_mm512_storeu_ps(x[..16].as_mut_ptr(), v));
    }

    #[inline(always)]
    fn store_partial(self, x: &mut [f32], v: __m512) {
        proven!(_mm512_mask_storeu_ps(x.as_mut_ptr(), Self::first(x.len()), v));
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> __m512 {
        proven!(_mm512_loadu_ps(x))
    }

    #[inline(always)]
    unsafe fn store_at(self, x: *mut f32, v: __m512) {
        proven!(_mm512_storeu_ps(x, v));
    }

    #[inline(always)]
    unsafe fn load_half_at(self, x: *const f16) -> __m512 {
        // `_mm512_cvtph_ps` asks for no exceptions, which an operand in memory cannot say.
        proven!(_mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(_mm256_loadu_si256(x.cast())))
    }

    #[inline(always)]
    unsafe fn store_half_at(self, x: *mut f16, v: __m512) {
        proven!(_mm256_storeu_si256(x.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)));
    }

    #[inline(always)]
    fn prefetch<T>(self, x: *const T) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(x.cast()));
    }

    #[inline(always)]
    unsafe fn transpose_at(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        proven!({
            let mut r = [_mm512_setzero_ps(); 16];
            for (i, r) in r.iter_mut().enumerate() {
                *r = _mm512_loadu_ps(from.add(i * from_stride));
            }
            let mut pairs = r;
            for i in 0..8 {
                pairs[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                pairs[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            // fours[4 i + c] holds column c + 4 l of rows 4 i .. 4 i + 4 in its 128-bit lane l.
            let mut fours = r;
            for i in 0..4 {
                fours[4 * i] = _mm512_shuffle_ps::<0x44>(pairs[4 * i], pairs[4 * i + 2]);
                fours[4 * i + 1] = _mm512_shuffle_ps::<0xEE>(pairs[4 * i], pairs[4 * i + 2]);
                fours[4 * i + 2] = _mm512_shuffle_ps::<0x44>(pairs[4 * i + 1], pairs[4 * i + 3]);
                fours[4 * i + 3] = _mm512_shuffle_ps::<0xEE>(pairs[4 * i + 1], pairs[4 * i + 3]);
            }
            for c in 0..4 {
                let even_low = _mm512_shuffle_f32x4::<0x88>(fours[c], fours[4 + c]);
                let even_high = _mm512_shuffle_f32x4::<0x88>(fours[8 + c], fours[12 + c]);
                let odd_low = _mm512_shuffle_f32x4::<0xDD>(fours[c], fours[4 + c]);
                let odd_high = _mm512_shuffle_f32x4::<0xDD>(fours[8 + c], fours[12 + c]);
                let columns = [
                    _mm512_shuffle_f32x4::<0x88>(even_low, even_high),
                    _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high),
                    _mm512_shuffle_f32x4::<0xDD>(even_low, even_high),
                    _mm512_shuffle_f32x4::<0xDD>(odd_low, odd_high),
                ];
                for (l, column) in columns.into_iter().enumerate() {
                    _mm512_storeu_ps(to.add((c + 4 * l) * to_stride), column);
                }
            }
        });
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        proven!(_mm512_abs_ps(a))
    }

    #[inline(always)]
    fn copysign(self, a: __m512, b: __m512) -> __m512 {
        proven!({
            let sign = _mm512_and_ps(_mm512_set1_ps(-0.0), b);
            _mm512_or_ps(_mm512_abs_ps(a), sign)
        })
    }

    #[inline(always)]
    fn scale_by_power(self, a: __m512, n: __m512) -> __m512 {
        proven!(_mm512_scalef_ps(a, n))
    }

    #[inline(always)]
    fn less(self, a: __m512, b: __m512) -> __mmask16 {
        proven!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }

    #[inline(always)]
    fn select(self, mask: __mmask16, yes: __m512, no: __m512) -> __m512 {
        proven!(_mm512_mask_blend_ps(mask, no, yes))
    }

    #[inline(always)]
    fn interleave(self, a: __m512, b: __m512) -> [__m512; 2] {
        proven!({
            let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let last = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            [_mm512_permutex2var_ps(a, first, b), _mm512_permutex2var_ps(a, last, b)]
        })
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        proven!({
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            Avx2(()).sum(eight)
        })
    }

    #[inline(always)]
    fn greatest(self, a: __m512) -> f32 {
        proven!({
            let eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            Avx2(()).greatest(eight)
        })
    }

    #[inline(always)]
    fn wide_zero(self) -> [__m512d; 2] {
        proven!([_mm512_setzero_pd(); 2])
    }

    #[inline(always)]
    fn wide_add(self, [low, high]: [__m512d; 2], v: __m512) -> [__m512d; 2] {
        proven!([
            _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(v))),
            _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(v)))
        ])
    }

    #[inline(always)]
    fn wide_sum(self, [low, high]: [__m512d; 2]) -> f64 {
        proven!({
            let eight = _mm512_add_pd(low, high);
            let low = _mm512_castpd512_pd256(eight);
            Avx2(()).wide_sum([low, _mm512_extractf64x4_pd::<1>(eight)])
        })
    }
}
