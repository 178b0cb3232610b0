//! AVX-512: tiles of 12 × 32 (24 accumulators, two loads and twelve broadcasts per 24 multiply-adds).
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics bear their own prefix"))]

use std::arch::x86_64::*;

use super::kernels::{BF16, Dot, F16, F32, Kernels, Tile};

const MR: usize = 12;
const NR: usize = 32;
const LANES: usize = 16;
/// Bytes of a row from what is in use to what is fetched.
const AHEAD: usize = 512;

pub(crate) static KERNELS: Kernels = Kernels {
    mr: MR,
    nr: NR,
    lanes: LANES,
    tile: &TILES,
    interleave: [interleave::<F32>, interleave::<BF16>, interleave::<F16>],
    dot_rows: LANES,
    dot: [&DOT_F32, &DOT_BF16, &DOT_F16],
};
#[rustfmt::skip]
static TILES: [Tile; MR] = [
    tile::<1>, tile::<2>, tile::<3>, tile::<4>, tile::<5>, tile::<6>,
    tile::<7>, tile::<8>, tile::<9>, tile::<10>, tile::<11>, tile::<12>,
];
macro_rules! dots {
    ($s:ident) => {
        [dot::<$s, 1>, dot::<$s, 2>, dot::<$s, 3>, dot::<$s, 4>, dot::<$s, 5>, dot::<$s, 6>, dot::<$s, 7>, dot::<$s, 8>]
    };
}
static DOT_F32: [Dot; 8] = dots!(F32);
static DOT_BF16: [Dot; 8] = dots!(BF16);
static DOT_F16: [Dot; 8] = dots!(F16);

#[target_feature(enable = "avx512f")]
unsafe fn tile<const M: usize>(kc: usize, mut a: *const f32, mut b: *const f32, c: *mut f32, ldc: usize, add: bool) {
    // SAFETY: the caller gives `kc` steps of both operands and `M` rows of 32 in `c`.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        if add {
            for i in 0..M {
                _mm_prefetch::<_MM_HINT_T0>(c.add(i * ldc).cast());
                _mm_prefetch::<_MM_HINT_T0>(c.add(i * ldc + LANES).cast());
            }
        }
        for _ in 0..kc {
            let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(LANES)));
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(i));
                sum[0] = _mm512_fmadd_ps(x, b0, sum[0]);
                sum[1] = _mm512_fmadd_ps(x, b1, sum[1]);
            }
            (a, b) = (a.add(MR), b.add(NR));
        }
        for (i, sum) in sums.iter().enumerate() {
            for (h, sum) in sum.iter().enumerate() {
                let at = c.add(i * ldc + h * LANES);
                _mm512_storeu_ps(at, if add { _mm512_add_ps(_mm512_loadu_ps(at), *sum) } else { *sum });
            }
        }
    }
}

/// Sixteen elements of a row, widened; those outside `mask` are zero and not read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn widen<const S: u8>(at: *const u8, mask: u16) -> __m512 {
    // SAFETY: the caller promises that the elements of `mask` can be read.
    unsafe {
        match S {
            F32 => _mm512_maskz_loadu_ps(mask, at.cast()),
            BF16 => {
                let halves = _mm256_maskz_loadu_epi16(mask, at.cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
            }
            _ => _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at.cast())),
        }
    }
}

/// Transposes 16 × 16 values of 32 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: &[__m512; 16]) -> [__m512; 16] {
    let zero = _mm512_setzero_ps();
    let (mut t, mut u) = ([zero; 16], [zero; 16]);
    for i in (0..16).step_by(2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    let pd = |v: __m512| _mm512_castps_pd(v);
    for i in (0..16).step_by(4) {
        u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(t[i]), pd(t[i + 2])));
        u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(t[i]), pd(t[i + 2])));
        u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(t[i + 1]), pd(t[i + 3])));
        u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(t[i + 1]), pd(t[i + 3])));
    }
    // u[4q + j], 128-bit lane l: rows 4q..4q+4 of column 4l + j.
    for j in 0..4 {
        let low = (_mm512_shuffle_f32x4::<0x88>(u[j], u[4 + j]), _mm512_shuffle_f32x4::<0xdd>(u[j], u[4 + j]));
        let high =
            (_mm512_shuffle_f32x4::<0x88>(u[8 + j], u[12 + j]), _mm512_shuffle_f32x4::<0xdd>(u[8 + j], u[12 + j]));
        t[j] = _mm512_shuffle_f32x4::<0x88>(low.0, high.0);
        t[4 + j] = _mm512_shuffle_f32x4::<0x88>(low.1, high.1);
        t[8 + j] = _mm512_shuffle_f32x4::<0xdd>(low.0, high.0);
        t[12 + j] = _mm512_shuffle_f32x4::<0xdd>(low.1, high.1);
    }
    t
}

/// Elements of a row that [`columns`] takes at once.
const fn step<const S: u8>() -> usize {
    if S == BF16 { 2 * LANES } else { LANES }
}

/// The first `count ≤ step` columns of sixteen rows, each as one vector, given to `each(k, column)` in ascending order.
///
/// bf16 goes through the transposition in pairs: half the shuffles, whole cache lines.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn columns<const S: u8>(rows: &[*const u8; 16], at: usize, count: usize, mut each: impl FnMut(usize, __m512)) {
    // SAFETY: the caller promises that `count` elements from byte `at` of each row can be read.
    unsafe {
        let mut r = [_mm512_setzero_ps(); 16];
        if S == BF16 {
            let mask = if count >= 32 { u32::MAX } else { (1u32 << count) - 1 };
            for (v, row) in r.iter_mut().zip(rows) {
                *v = _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, row.add(at).cast()));
            }
            let t = transpose(&r);
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            for j in 0..16 {
                let pair = _mm512_castps_si512(t[j]);
                if 2 * j < count {
                    each(2 * j, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pair)));
                }
                if 2 * j + 1 < count {
                    each(2 * j + 1, _mm512_castsi512_ps(_mm512_and_si512(pair, high)));
                }
            }
        } else {
            let mask = if count >= 16 { u16::MAX } else { (1u16 << count) - 1 };
            for (v, row) in r.iter_mut().zip(rows) {
                *v = widen::<S>(row.add(at), mask);
            }
            let t = transpose(&r);
            for j in 0..16 {
                if j < count {
                    each(j, t[j]);
                }
            }
        }
    }
}

/// The addresses of `rows` rows; the last stands for those that are missing.
unsafe fn addresses(w: *const u8, row_bytes: usize, rows: usize) -> [*const u8; 16] {
    // SAFETY: the caller promises `rows` rows.
    std::array::from_fn(|r| unsafe { w.add(r.min(rows - 1) * row_bytes) })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn interleave<const S: u8>(
    rows: usize,
    lanes: usize,
    kc: usize,
    src: *const u8,
    row_bytes: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller gives `rows` rows of `kc` elements and `kc` steps of `lanes` places.
    unsafe {
        let size = if S == F32 { 4 } else { 2 };
        let at = addresses(src, row_bytes, rows);
        let (present, written) = ((1u32 << rows) - 1, (1u32 << lanes) - 1);
        let put = |k: usize, v: __m512| {
            let v = _mm512_maskz_mov_ps(present as u16, v);
            _mm512_mask_storeu_ps(out.add(k * stride), written as u16, v);
        };
        let whole = kc - kc % step::<S>();
        for k0 in (0..whole).step_by(step::<S>()) {
            columns::<S>(&at, k0 * size, step::<S>(), |k, v| put(k0 + k, v));
        }
        if whole < kc {
            columns::<S>(&at, whole * size, kc - whole, |k, v| put(whole + k, v));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn dot<const S: u8, const M: usize>(
    rows: usize,
    kc: usize,
    x: *const f32,
    ldx: usize,
    w: *const u8,
    row_bytes: usize,
    c: *mut f32,
    ldc: usize,
    add: bool,
) {
    // SAFETY: the caller gives `M` rows of x, `rows` rows of w and their places in c.
    unsafe {
        let size = if S == F32 { 4 } else { 2 };
        let at = addresses(w, row_bytes, rows);
        let mut sums = [_mm512_setzero_ps(); M];
        let mut multiply = |k: usize, v: __m512| {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_fmadd_ps(_mm512_set1_ps(*x.add(i * ldx + k)), v, *sum);
            }
        };
        let whole = kc - kc % step::<S>();
        for k0 in (0..whole).step_by(step::<S>()) {
            // What this block of rows reads next: the hardware follows fewer streams than there are rows.
            for row in at {
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(k0 * size + AHEAD).cast());
            }
            columns::<S>(&at, k0 * size, step::<S>(), |k, v| multiply(k0 + k, v));
        }
        if whole < kc {
            columns::<S>(&at, whole * size, kc - whole, |k, v| multiply(whole + k, v));
        }
        let mask = ((1u32 << rows) - 1) as u16;
        for (i, sum) in sums.iter().enumerate() {
            let at = c.add(i * ldc);
            let sum = if add { _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), *sum) } else { *sum };
            _mm512_mask_storeu_ps(at, mask, sum);
        }
    }
}
