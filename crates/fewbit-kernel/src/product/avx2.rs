//! AVX2 with FMA: tiles of 6 × 16 (twelve accumulators, two loads and six broadcasts per twelve multiply-adds).
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics bear their own prefix"))]

use std::arch::x86_64::*;

use super::kernels::{BF16, Dot, F16, F32, Kernels, Tile};

const MR: usize = 6;
const NR: usize = 16;
const LANES: usize = 8;
/// Bytes of a row from what is in use to what is fetched.
const AHEAD: usize = 512;

pub(crate) static KERNELS: Kernels = Kernels {
    mr: MR,
    nr: NR,
    lanes: LANES,
    tile: &TILES,
    interleave: [interleave::<F32>, interleave::<BF16>, interleave::<F16>],
    dot_rows: 2 * LANES,
    dot: [&DOT_F32, &DOT_BF16, &DOT_F16],
};
static TILES: [Tile; MR] = [tile::<1>, tile::<2>, tile::<3>, tile::<4>, tile::<5>, tile::<6>];
static DOT_F32: [Dot; 4] = [dot::<F32, 1>, dot::<F32, 2>, dot::<F32, 3>, dot::<F32, 4>];
static DOT_BF16: [Dot; 4] = [dot::<BF16, 1>, dot::<BF16, 2>, dot::<BF16, 3>, dot::<BF16, 4>];
static DOT_F16: [Dot; 4] = [dot::<F16, 1>, dot::<F16, 2>, dot::<F16, 3>, dot::<F16, 4>];

#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const M: usize>(kc: usize, mut a: *const f32, mut b: *const f32, c: *mut f32, ldc: usize, add: bool) {
    // SAFETY: the caller gives `kc` steps of both operands and `M` rows of 16 in `c`.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        if add {
            for i in 0..M {
                _mm_prefetch::<_MM_HINT_T0>(c.add(i * ldc).cast());
            }
        }
        for _ in 0..kc {
            let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(LANES)));
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = _mm256_broadcast_ss(&*a.add(i));
                sum[0] = _mm256_fmadd_ps(x, b0, sum[0]);
                sum[1] = _mm256_fmadd_ps(x, b1, sum[1]);
            }
            (a, b) = (a.add(MR), b.add(NR));
        }
        for (i, sum) in sums.iter().enumerate() {
            for (h, sum) in sum.iter().enumerate() {
                let at = c.add(i * ldc + h * LANES);
                _mm256_storeu_ps(at, if add { _mm256_add_ps(_mm256_loadu_ps(at), *sum) } else { *sum });
            }
        }
    }
}

/// Eight elements of a row of f32 or f16, widened.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn widen<const S: u8>(at: *const u8) -> __m256 {
    // SAFETY: the caller promises eight elements.
    unsafe { if S == F32 { _mm256_loadu_ps(at.cast()) } else { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) } }
}

/// Transposes 8 × 8 values.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(r: &[__m256; 8]) -> [__m256; 8] {
    let zero = _mm256_setzero_ps();
    let (mut t, mut u) = ([zero; 8], [zero; 8]);
    for i in (0..8).step_by(2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for i in (0..8).step_by(4) {
        u[i] = _mm256_shuffle_ps::<0x44>(t[i], t[i + 2]);
        u[i + 1] = _mm256_shuffle_ps::<0xee>(t[i], t[i + 2]);
        u[i + 2] = _mm256_shuffle_ps::<0x44>(t[i + 1], t[i + 3]);
        u[i + 3] = _mm256_shuffle_ps::<0xee>(t[i + 1], t[i + 3]);
    }
    for j in 0..4 {
        t[j] = _mm256_permute2f128_ps::<0x20>(u[j], u[4 + j]);
        t[4 + j] = _mm256_permute2f128_ps::<0x31>(u[j], u[4 + j]);
    }
    t
}

/// Elements of a row that [`columns`] takes at once.
const fn step<const S: u8>() -> usize {
    if S == BF16 { 2 * LANES } else { LANES }
}

/// The first `count ≤ step` columns of eight rows, each as one vector, given to `each(k, column)` in ascending order.
///
/// bf16 goes through the transposition in pairs: half the shuffles.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn columns<const S: u8>(rows: &[*const u8; 8], at: usize, count: usize, mut each: impl FnMut(usize, __m256)) {
    // SAFETY: the caller promises that `count` elements from byte `at` of each row can be read.
    unsafe {
        let load = |at: *const u8| if S == BF16 { _mm256_loadu_ps(at.cast()) } else { widen::<S>(at) };
        let mut r = [_mm256_setzero_ps(); 8];
        if count == step::<S>() {
            for (v, row) in r.iter_mut().zip(rows) {
                *v = load(row.add(at));
            }
        } else {
            let size = if S == F32 { 4 } else { 2 };
            for (v, row) in r.iter_mut().zip(rows) {
                let mut whole = [0u8; 4 * LANES];
                std::ptr::copy_nonoverlapping(row.add(at), whole.as_mut_ptr(), count * size);
                *v = load(whole.as_ptr());
            }
        }
        let t = transpose(&r);
        for j in 0..8 {
            if S == BF16 {
                let pair = _mm256_castps_si256(t[j]);
                if 2 * j < count {
                    each(2 * j, _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair)));
                }
                if 2 * j + 1 < count {
                    let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                    each(2 * j + 1, _mm256_castsi256_ps(_mm256_and_si256(pair, high)));
                }
            } else if j < count {
                each(j, t[j]);
            }
        }
    }
}

/// The addresses of `rows` rows; the last stands for those that are missing.
unsafe fn addresses(w: *const u8, row_bytes: usize, rows: usize) -> [*const u8; 8] {
    // SAFETY: the caller promises `rows` rows.
    std::array::from_fn(|r| unsafe { w.add(r.min(rows - 1) * row_bytes) })
}

/// Ones in the first `count` of eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn first(count: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

#[target_feature(enable = "avx2,f16c")]
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
        let present = _mm256_castsi256_ps(first(rows));
        let put = |k: usize, v: __m256| {
            let (v, to) = (_mm256_and_ps(v, present), out.add(k * stride));
            if lanes == LANES {
                _mm256_storeu_ps(to, v);
            } else {
                // Six of eight: masked stores are slow on some machines.
                debug_assert_eq!(lanes, MR);
                _mm_storeu_ps(to, _mm256_castps256_ps128(v));
                _mm_storel_pd(to.add(4).cast(), _mm_castps_pd(_mm256_extractf128_ps::<1>(v)));
            }
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

/// Adds the products of `count` columns of eight rows from column `k` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_columns<const S: u8, const M: usize>(
    rows: &[*const u8; 8],
    k: usize,
    count: usize,
    x: *const f32,
    ldx: usize,
    sums: &mut [__m256; M],
) {
    let at = k * if S == F32 { 4 } else { 2 };
    // SAFETY: the caller gives `count` columns of the rows and of x.
    unsafe {
        // What these rows read next: the hardware follows fewer streams than there are rows.
        if at.is_multiple_of(64) {
            for row in rows {
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(at + AHEAD).cast());
            }
        }
        columns::<S>(rows, at, count, |j, v| {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_fmadd_ps(_mm256_broadcast_ss(&*x.add(i * ldx + k + j)), v, *sum);
            }
        });
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
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
        // Two groups of rows in turn: the sums of one wait for each other.
        let groups = rows.div_ceil(LANES);
        let of = |g: usize| (rows - g * LANES).min(LANES);
        let at = [0, groups - 1].map(|g| addresses(w.add(g * LANES * row_bytes), row_bytes, of(g)));
        let (mut low, mut high) = ([_mm256_setzero_ps(); M], [_mm256_setzero_ps(); M]);
        let whole = kc - kc % step::<S>();
        for k in (0..whole).step_by(step::<S>()) {
            add_columns::<S, M>(&at[0], k, step::<S>(), x, ldx, &mut low);
            if groups == 2 {
                add_columns::<S, M>(&at[1], k, step::<S>(), x, ldx, &mut high);
            }
        }
        if whole < kc {
            add_columns::<S, M>(&at[0], whole, kc - whole, x, ldx, &mut low);
            if groups == 2 {
                add_columns::<S, M>(&at[1], whole, kc - whole, x, ldx, &mut high);
            }
        }
        for (g, sums) in [low, high].iter().enumerate().take(groups) {
            for (i, sum) in sums.iter().enumerate() {
                let (at, mask) = (c.add(i * ldc + g * LANES), first(of(g)));
                let sum = if add { _mm256_add_ps(_mm256_maskload_ps(at, mask), *sum) } else { *sum };
                if of(g) == LANES { _mm256_storeu_ps(at, sum) } else { _mm256_maskstore_ps(at, mask, sum) }
            }
        }
    }
}
