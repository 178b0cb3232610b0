//! AVX2: half a cell is a register, which is multiplied with four activations of a token, by [`Words`] or [`Fours`].
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics bear their own prefix"))]

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::packed::{BLOCK, CELL, Cell, Numbers, Packed, TILE, WIDE, Zeros};
use super::activations::{Token, TokenMut, Tokens, greatest, round_spans};
use super::{ByRow, Few, Kernels, Many};
use crate::ahead::Ahead;
use crate::vnni::{dot_bytes, has_vex};

/// What every machine with AVX2 has.
pub(super) const KERNELS: Kernels = kernels::<Words>();

/// With `vpdpbusd` of 256 bits, encoded as AVX-VNNI, or as AVX-512 where a machine has only that.
pub(super) fn vnni() -> &'static Kernels {
    const VEX: Kernels = kernels::<Fours<true>>();
    const EVEX: Kernels = kernels::<Fours<false>>();
    if has_vex() { &VEX } else { &EVEX }
}

const fn kernels<D: Dots>() -> Kernels {
    Kernels { round, few: few::<D>, unpack, write_params: write_params::<D>, many: many::<D> }
}

/// Bytes of half a cell.
const HALF: usize = CELL / 2;

/// As [`super::scalar::round`].
///
/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn round(x: &[f32], span: usize, group_spans: usize, to: &mut TokenMut<'_>) {
    match span {
        WIDE => round_spans::<WIDE>(x, group_spans, to, |x, codes| round_span(x, codes)),
        BLOCK => round_spans::<BLOCK>(x, group_spans, to, |x, codes| round_span(x, codes)),
        _ => round_spans::<16>(x, group_spans, to, |x, codes| round_span(x, codes)),
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn round_span<const S: usize>(x: &[f32; S], codes: &mut [i8; S]) -> (f32, i32) {
    let x = x.as_chunks::<8>().0;
    // SAFETY: each has eight values.
    let load = |x: &[f32; 8]| unsafe { _mm256_loadu_ps(x.as_ptr()) };
    let mut most = _mm256_setzero_si256();
    for x in x {
        let bits = _mm256_and_si256(_mm256_castps_si256(load(x)), _mm256_set1_epi32(0x7fff_ffff));
        most = _mm256_max_epu32(most, bits);
    }
    let half = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
    let half = _mm_max_epu32(half, _mm_shuffle_epi32::<0b01_00_11_10>(half));
    let half = _mm_max_epu32(half, _mm_shuffle_epi32::<0b10_11_00_01>(half));
    let most = match greatest(_mm_cvtsi128_si32(half) as u32) {
        Ok(most) => most,
        Err(scale) => {
            codes.fill(0);
            return (scale, 0);
        }
    };
    let inverse = _mm256_set1_ps(127.0 / most);
    let mut sum = _mm256_setzero_si256();
    for (x, codes) in x.iter().zip(codes.as_chunks_mut::<8>().0) {
        let q = _mm256_cvtps_epi32(_mm256_mul_ps(load(x), inverse));
        sum = _mm256_add_epi32(sum, q);
        let words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256::<1>(q));
        // SAFETY: there are eight places.
        unsafe { _mm_storel_epi64(codes.as_mut_ptr().cast(), _mm_packs_epi16(words, words)) };
    }
    let half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let half = _mm_add_epi32(half, _mm_shuffle_epi32::<0b01_00_11_10>(half));
    let half = _mm_add_epi32(half, _mm_shuffle_epi32::<0b10_11_00_01>(half));
    (most / 127.0, _mm_cvtsi128_si32(half))
}

/// As [`super::scalar::few`].
///
/// # Safety
/// As there; and the machine has AVX2, FMA, F16C, and what `D` needs.
unsafe fn few<D: Dots>(call: Few<'_>, y: &mut [ByRow]) {
    // SAFETY: promised by the caller.
    unsafe { by_bits!(call.packed.bits, BITS => few_of::<D, BITS>(call, y)) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn few_of<D: Dots, const BITS: u8>(call: Few<'_>, y: &mut [ByRow]) {
    let narrow = call.packed.span < BLOCK;
    let mut token = 0;
    while token < call.tokens.len() {
        let together = if call.tokens.len() - token >= 2 { 2 } else { 1 };
        let mut tile = 0;
        while tile < call.count {
            let two = together == 1 && call.count - tile >= 2;
            // SAFETY: promised by the caller. Two tiles at once are two streams from memory.
            unsafe {
                match (together, two, narrow) {
                    (2, _, false) => few_tiles::<D, BITS, false, 2, 1>(call, tile, token, y),
                    (2, _, true) => few_tiles::<D, BITS, true, 2, 1>(call, tile, token, y),
                    (_, true, false) => few_tiles::<D, BITS, false, 1, 2>(call, tile, token, y),
                    (_, true, true) => few_tiles::<D, BITS, true, 1, 2>(call, tile, token, y),
                    (_, false, false) => few_tiles::<D, BITS, false, 1, 1>(call, tile, token, y),
                    (_, false, true) => few_tiles::<D, BITS, true, 1, 1>(call, tile, token, y),
                }
            }
            tile += if two { 2 } else { 1 };
        }
        token += together;
    }
}

/// Tiles `first..first + R` of the call, for its tokens `token..token + T`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn few_tiles<D: Dots, const BITS: u8, const NARROW: bool, const T: usize, const R: usize>(
    call: Few<'_>,
    first: usize,
    token: usize,
    y: &mut [ByRow],
) {
    let (packed, tile) = (call.packed, call.tile + first);
    // SAFETY: the caller promises the tiles and tokens of the packed width; spans and groups lie inside.
    unsafe {
        let input = Input::<T>::of(call.tokens, token);
        let (block_bytes, tile_bytes) = (usize::from(BITS) * CELL, packed.tile_bytes());
        let cells: [*const u8; R] = std::array::from_fn(|r| packed.cells(tile + r));
        let (ahead, mut at) = (Ahead::of_machine(), 0);
        let mut results = [[[_mm256_setzero_ps(); 2]; R]; T];
        let blocks = if NARROW { 1 } else { packed.span_blocks() };
        let (mut s, mut c, middle) = (0, 0, middle::<D, BITS>(packed));
        for g in 0..packed.groups {
            let mut group: [[_; R]; T] = std::array::from_fn(|t| [input.begin_group(t, g, middle); R]);
            for _ in 0..packed.group_spans {
                let mut dots = [[D::zero(); R]; T];
                for _ in 0..blocks {
                    let here = cells.map(|cells| cells.add(at));
                    let is_first = c % BLOCK == 0;
                    if !NARROW || is_first {
                        add_half::<D, BITS, T, R, 0>(&mut dots, here, &input, c);
                        c += 16;
                    }
                    if !NARROW || !is_first {
                        add_half::<D, BITS, T, R, 4>(&mut dots, here, &input, c);
                        c += 16;
                        // Behind the end of these tiles are those that the others of them have begun with.
                        let next = at + ahead.bytes();
                        let next = if next < tile_bytes { next } else { next + (R - 1) * tile_bytes };
                        for cells in cells {
                            for line in 0..usize::from(BITS) {
                                ahead.fetch(cells.wrapping_add(next + line * CELL));
                            }
                        }
                        at += block_bytes;
                    }
                    dots.as_flattened_mut().iter_mut().for_each(|dots| dots.end_block::<BITS>());
                }
                for t in 0..T {
                    for r in 0..R {
                        group[t][r] = input.add_span(t, s, dots[t][r].sums(), group[t][r]);
                    }
                }
                s += 1;
            }
            for r in 0..R {
                let index = (tile + r) * packed.groups + g;
                packed.params_at(index + R * packed.groups, |at| _mm_prefetch::<_MM_HINT_T1>(at.cast()));
                let params = params::<D, BITS>(packed, index);
                for t in 0..T {
                    results[t][r] = input.add_group(t, g, group[t][r], params, results[t][r]);
                }
            }
        }
        for t in 0..T {
            for r in 0..R {
                store(results[t][r], &mut y[(token + t) * call.count + first + r]);
            }
        }
    }
}

/// Adds the products of columns `0..16` or `16..32` of a block (`Q`: 0 or 4), which are the input's from `c` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_half<D: Dots, const BITS: u8, const T: usize, const R: usize, const Q: usize>(
    dots: &mut [[D; R]; T],
    cells: [*const u8; R],
    input: &Input<T>,
    c: usize,
) {
    // SAFETY: the caller promises the cells and the columns.
    unsafe {
        if Q == 0 {
            add_quad::<D, BITS, T, R, 0>(dots, cells, input.four(c));
            add_quad::<D, BITS, T, R, 1>(dots, cells, input.four(c + 4));
            add_quad::<D, BITS, T, R, 2>(dots, cells, input.four(c + 8));
            add_quad::<D, BITS, T, R, 3>(dots, cells, input.four(c + 12));
        } else {
            add_quad::<D, BITS, T, R, 4>(dots, cells, input.four(c));
            add_quad::<D, BITS, T, R, 5>(dots, cells, input.four(c + 4));
            add_quad::<D, BITS, T, R, 6>(dots, cells, input.four(c + 8));
            add_quad::<D, BITS, T, R, 7>(dots, cells, input.four(c + 12));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn add_quad<D: Dots, const BITS: u8, const T: usize, const R: usize, const Q: usize>(
    dots: &mut [[D; R]; T],
    cells: [*const u8; R],
    x: [__m256i; T],
) {
    for r in 0..R {
        // SAFETY: the caller promises the cells.
        let codes = [0, HALF].map(|h| unsafe { codes::<BITS, Q>(cells[r].add(h)) });
        for t in 0..T {
            // SAFETY: the machine has what `D` needs.
            unsafe { dots[t][r].add::<BITS>(codes, x[t], Q) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(y: &ByRow) -> [__m256; 2] {
    // SAFETY: each half has eight numbers.
    halves(y.0.as_ptr(), |at| unsafe { _mm256_loadu_ps(at) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(halves: [__m256; 2], y: &mut ByRow) {
    let (low, high) = y.0.split_at_mut(TILE / 2);
    // SAFETY: each half has eight places.
    unsafe {
        _mm256_storeu_ps(low.as_mut_ptr(), halves[0]);
        _mm256_storeu_ps(high.as_mut_ptr(), halves[1]);
    }
}

/// Sums of products of the rows of a tile with a span of one token.
trait Dots: Copy {
    /// What is taken off codes of 8 bits.
    const TAKEN_OFF: i32;

    /// # Safety
    /// The machine has AVX2.
    unsafe fn zero() -> Self;

    /// Adds the products of both halves of four columns, the `nth` of a span.
    ///
    /// # Safety
    /// The machine has what the implementation says.
    unsafe fn add<const BITS: u8>(&mut self, codes: [__m256i; 2], x: __m256i, nth: usize);

    /// Takes what has waited, after a block or the part of one that a span is, to the sums.
    ///
    /// # Safety
    /// The machine has AVX2.
    unsafe fn end_block<const BITS: u8>(&mut self);

    /// In 32 bits.
    fn sums(self) -> [__m256i; 2];
}

/// By `vpmaddubs`, in 16 bits: needs AVX2.
///
/// Codes of up to four bits: eight products of a block add up to at most 30480. Five and six bits: two. Seven: one.
/// Eight: 128 is taken off, and the activations take the sign, so that the unsigned factor is at most 128.
#[derive(Clone, Copy)]
struct Words {
    /// In 32 bits.
    whole: [__m256i; 2],
    /// In 16 bits: those of a block, for codes of up to four bits; for five and six those that wait for a second one.
    waiting: [__m256i; 2],
}

/// Keeps the compiler from summing in another order, or token after token, which needs more registers than there are.
#[inline]
#[target_feature(enable = "avx2")]
fn pinned(mut sums: __m256i) -> __m256i {
    // SAFETY: nothing is done.
    unsafe { asm!("/* {} */", inout(ymm_reg) sums, options(nomem, nostack, preserves_flags)) };
    sums
}

impl Dots for Words {
    const TAKEN_OFF: i32 = 128;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn zero() -> Self {
        Self { whole: [_mm256_setzero_si256(); 2], waiting: [_mm256_setzero_si256(); 2] }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add<const BITS: u8>(&mut self, codes: [__m256i; 2], x: __m256i, nth: usize) {
        let ones = _mm256_set1_epi16(1);
        for h in 0..2 {
            match BITS {
                0..=4 => self.waiting[h] = pinned(_mm256_add_epi16(self.waiting[h], _mm256_maddubs_epi16(codes[h], x))),
                5 | 6 => {
                    let products = _mm256_maddubs_epi16(codes[h], x);
                    if nth.is_multiple_of(2) {
                        self.waiting[h] = products;
                    } else {
                        let two = _mm256_add_epi16(self.waiting[h], products);
                        self.whole[h] = pinned(_mm256_add_epi32(self.whole[h], _mm256_madd_epi16(two, ones)));
                    }
                }
                7 => {
                    let products = _mm256_maddubs_epi16(codes[h], x);
                    self.whole[h] = pinned(_mm256_add_epi32(self.whole[h], _mm256_madd_epi16(products, ones)));
                }
                _ => {
                    let signed = _mm256_xor_si256(codes[h], _mm256_set1_epi8(-128));
                    let products = _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed));
                    self.whole[h] = pinned(_mm256_add_epi32(self.whole[h], _mm256_madd_epi16(products, ones)));
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn end_block<const BITS: u8>(&mut self) {
        if BITS <= 4 {
            for (whole, waiting) in self.whole.iter_mut().zip(&mut self.waiting) {
                *whole = _mm256_add_epi32(*whole, _mm256_madd_epi16(*waiting, _mm256_set1_epi16(1)));
                *waiting = _mm256_setzero_si256();
            }
        }
    }

    #[inline]
    fn sums(self) -> [__m256i; 2] {
        self.whole
    }
}

/// By `vpdpbusd`, in 32 bits, for codes of any width: needs AVX-VNNI for `VEX`, else AVX-512 VL and VNNI.
#[derive(Clone, Copy)]
struct Fours<const VEX: bool>([__m256i; 2]);

impl<const VEX: bool> Dots for Fours<VEX> {
    const TAKEN_OFF: i32 = 0;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn zero() -> Self {
        Self([_mm256_setzero_si256(); 2])
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add<const BITS: u8>(&mut self, codes: [__m256i; 2], x: __m256i, _nth: usize) {
        for (sum, codes) in self.0.iter_mut().zip(codes) {
            // SAFETY: promised by the caller.
            *sum = unsafe { dot_bytes::<VEX>(*sum, codes, x) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn end_block<const BITS: u8>(&mut self) {}

    #[inline]
    fn sums(self) -> [__m256i; 2] {
        self.0
    }
}

/// Where the rounded activations of some tokens lie.
struct Input<const T: usize> {
    codes: [*const i8; T],
    scales: [*const f32; T],
    sums: [*const f32; T],
}

impl<const T: usize> Input<T> {
    fn of(tokens: Tokens<'_>, first: usize) -> Self {
        let tokens: [Token<'_>; T] = std::array::from_fn(|t| tokens.get(first + t));
        Self {
            codes: tokens.map(|t| t.codes.as_ptr()),
            scales: tokens.map(|t| t.scales.as_ptr()),
            sums: tokens.map(|t| t.sums.as_ptr()),
        }
    }

    /// Four activations of each token from column `c` on, in all lanes.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn four(&self, c: usize) -> [__m256i; T] {
        // SAFETY: the caller promises the column.
        std::array::from_fn(|t| unsafe { _mm256_set1_epi32(self.codes[t].add(c).cast::<i32>().read_unaligned()) })
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn add_span(&self, t: usize, s: usize, dots: [__m256i; 2], to: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the caller promises the span.
        let scale = unsafe { _mm256_set1_ps(*self.scales[t].add(s)) };
        [0, 1].map(|h| _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[h]), scale, to[h]))
    }

    /// The sums of a group before its spans: what a zero that all codes share takes away.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn begin_group(&self, t: usize, g: usize, middle: Option<f32>) -> [__m256; 2] {
        // SAFETY: the caller promises the group.
        let start = middle.map_or(0.0, |z| unsafe { -z * *self.sums[t].add(g) });
        [_mm256_set1_ps(start); 2]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn add_group(
        &self,
        t: usize,
        g: usize,
        group: [__m256; 2],
        (scales, offsets): Params,
        to: [__m256; 2],
    ) -> [__m256; 2] {
        let to = [0, 1].map(|h| _mm256_fmadd_ps(group[h], scales[h], to[h]));
        let Some(offsets) = offsets else { return to };
        // SAFETY: the caller promises the group.
        let sum = unsafe { _mm256_set1_ps(*self.sums[t].add(g)) };
        [0, 1].map(|h| _mm256_fmadd_ps(sum, offsets[h], to[h]))
    }
}

/// Scales and offsets of the rows of a tile in a group; no offsets where the sums begin with a zero that all codes share.
type Params = ([__m256; 2], Option<[__m256; 2]>);

/// The zero that all codes share, if they do, less what `D` takes off.
fn middle<D: Dots, const BITS: u8>(packed: &Packed) -> Option<f32> {
    packed.middle().map(|z| z - if BITS == 8 { D::TAKEN_OFF as f32 } else { 0.0 })
}

/// For codes less what `D` takes off.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn params<D: Dots, const BITS: u8>(packed: &Packed, index: usize) -> Params {
    // SAFETY: the caller promises the index.
    unsafe {
        let scales = sixteen(&packed.scales, index);
        let taken_off = if BITS == 8 { D::TAKEN_OFF } else { 0 };
        let offsets = match &packed.zeros {
            Zeros::Middle(_) => None,
            Zeros::Codes(z) => {
                let zeros = halves(z.as_ptr().add(index * TILE), |at| _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())));
                let minus = zeros.map(|z| _mm256_sub_epi32(_mm256_set1_epi32(taken_off), z));
                Some([0, 1].map(|h| _mm256_mul_ps(scales[h], _mm256_cvtepi32_ps(minus[h]))))
            }
            Zeros::Offsets(offsets) if taken_off != 0 => {
                let (offsets, taken_off) = (sixteen(offsets, index), _mm256_set1_ps(taken_off as f32));
                Some([0, 1].map(|h| _mm256_add_ps(offsets[h], _mm256_mul_ps(scales[h], taken_off))))
            }
            Zeros::Offsets(offsets) => Some(sixteen(offsets, index)),
        };
        (scales, offsets)
    }
}

/// Sixteen numbers from `16 · index` on.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn sixteen(numbers: &Numbers, index: usize) -> [__m256; 2] {
    // SAFETY: the caller promises the index.
    unsafe {
        let f16 = |at: *const u16| _mm256_cvtph_ps(_mm_loadu_si128(at.cast()));
        match numbers {
            Numbers::F16(v) => halves(v.as_ptr().add(index * TILE), f16),
            Numbers::Bf16(v) => halves(v.as_ptr().add(index * TILE), |at| {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()))))
            }),
            Numbers::F32(v) => halves(v.as_ptr().add(index * TILE), |at| _mm256_loadu_ps(at)),
            Numbers::Scaled { shared, small, shift } => {
                let shared = halves(shared.as_ptr().add((index >> shift) * TILE), f16);
                let small = halves(small.as_ptr().add(index * TILE), |at| {
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())))
                });
                [0, 1].map(|h| _mm256_mul_ps(shared[h], small[h]))
            }
        }
    }
}

/// What is made of eight numbers, and of the eight behind them.
#[inline(always)]
fn halves<A, V>(at: *const A, eight: impl Fn(*const A) -> V) -> [V; 2] {
    [eight(at), eight(at.wrapping_add(TILE / 2))]
}

/// The codes of columns `4Q..4Q + 4` of a block of 8 rows, a byte each.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn codes<const BITS: u8, const Q: usize>(at: *const u8) -> __m256i {
    // SAFETY: the caller promises as many cells as bits.
    let cell = |i: usize| unsafe { _mm256_load_si256(at.add(i * CELL).cast()) };
    if BITS == 8 {
        return cell(Q);
    }
    let (c, high) = (Q % 4, Q / 4 * 4);
    // As `packed::planes`: bits `from..` of each byte of a cell become bits `to..` of the code.
    let plane = |i: usize, from: usize, to: usize, mask: i8| {
        let moved = if from >= to {
            _mm256_srl_epi16(cell(i), _mm_cvtsi32_si128((from - to) as i32))
        } else {
            _mm256_sll_epi16(cell(i), _mm_cvtsi32_si128((to - from) as i32))
        };
        _mm256_and_si256(moved, _mm256_set1_epi8(mask << to))
    };
    let four = usize::from(BITS & 4);
    let mut all = if four > 0 { plane(c, high, 0, 15) } else { _mm256_setzero_si256() };
    if BITS & 2 != 0 {
        all = _mm256_or_si256(all, plane(four + c / 2, 2 * (c % 2) + high, four, 3));
    }
    if BITS & 1 != 0 {
        let below = usize::from(BITS & 6);
        all = _mm256_or_si256(all, plane(below, c + high, below, 1));
    }
    all
}

/// As [`super::scalar::unpack`].
///
/// # Safety
/// As there; and the machine has AVX2.
unsafe fn unpack(packed: &Packed, tile: usize, block: usize, to: &mut [Cell]) {
    // SAFETY: promised by the caller.
    unsafe { by_bits!(packed.bits, BITS => unpack_of::<BITS>(packed, tile, block, to)) }
}

#[target_feature(enable = "avx2")]
unsafe fn unpack_of<const BITS: u8>(packed: &Packed, tile: usize, block: usize, to: &mut [Cell]) {
    let mut at = packed.cells(tile).wrapping_add(block * usize::from(BITS) * CELL);
    for block in to.as_chunks_mut::<{ BLOCK / 4 }>().0 {
        // SAFETY: the caller promises the blocks that `to` has room for.
        unsafe {
            for h in [0, HALF] {
                _mm256_store_si256(block[0].0.as_mut_ptr().add(h).cast(), codes::<BITS, 0>(at.add(h)));
                _mm256_store_si256(block[1].0.as_mut_ptr().add(h).cast(), codes::<BITS, 1>(at.add(h)));
                _mm256_store_si256(block[2].0.as_mut_ptr().add(h).cast(), codes::<BITS, 2>(at.add(h)));
                _mm256_store_si256(block[3].0.as_mut_ptr().add(h).cast(), codes::<BITS, 3>(at.add(h)));
                _mm256_store_si256(block[4].0.as_mut_ptr().add(h).cast(), codes::<BITS, 4>(at.add(h)));
                _mm256_store_si256(block[5].0.as_mut_ptr().add(h).cast(), codes::<BITS, 5>(at.add(h)));
                _mm256_store_si256(block[6].0.as_mut_ptr().add(h).cast(), codes::<BITS, 6>(at.add(h)));
                _mm256_store_si256(block[7].0.as_mut_ptr().add(h).cast(), codes::<BITS, 7>(at.add(h)));
            }
            at = at.add(usize::from(BITS) * CELL);
        }
    }
}

/// As [`super::scalar::write_params`].
///
/// # Safety
/// As there; and the machine has AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
unsafe fn write_params<D: Dots>(packed: &Packed, index: usize, to: &mut [[ByRow; 2]]) {
    for (i, to) in to.iter_mut().enumerate() {
        // SAFETY: promised by the caller.
        let (scales, offsets) = unsafe {
            match packed.bits {
                8 => params::<D, 8>(packed, index + i),
                _ => params::<D, 4>(packed, index + i),
            }
        };
        store(scales, &mut to[0]);
        if let Some(offsets) = offsets {
            store(offsets, &mut to[1]);
        }
    }
}

/// As [`super::scalar::many`].
///
/// # Safety
/// As there; and the machine has AVX2, FMA, F16C, and what `D` needs.
unsafe fn many<D: Dots>(call: Many<'_>, y: &mut [ByRow]) {
    // SAFETY: promised by the caller.
    unsafe {
        match call.packed.span {
            WIDE => many_in::<D, WIDE, false>(call, y),
            BLOCK if call.packed.group_spans == 1 => many_in::<D, BLOCK, true>(call, y),
            BLOCK => many_in::<D, BLOCK, false>(call, y),
            _ => many_in::<D, 16, false>(call, y),
        }
    }
}

/// `ONE`: a group is one span, whose sums need no place beside those of the results.
unsafe fn many_in<D: Dots, const SPAN: usize, const ONE: bool>(call: Many<'_>, y: &mut [ByRow]) {
    // SAFETY: promised by the caller. What is done with products depends on the largest code.
    unsafe {
        match call.packed.bits {
            0..=4 => many_of::<D, 4, SPAN, ONE>(call, y),
            5 | 6 => many_of::<D, 6, SPAN, ONE>(call, y),
            7 => many_of::<D, 7, SPAN, ONE>(call, y),
            _ => many_of::<D, 8, SPAN, ONE>(call, y),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn many_of<D: Dots, const BITS: u8, const SPAN: usize, const ONE: bool>(call: Many<'_>, y: &mut [ByRow]) {
    for i in 0..call.count {
        let mut token = 0;
        while token < call.tokens.len() {
            let together = (call.tokens.len() - token).min(3);
            // SAFETY: promised by the caller.
            unsafe {
                match together {
                    3 => many_tokens::<D, BITS, SPAN, ONE, 3>(call, i, token, y),
                    2 => many_tokens::<D, BITS, SPAN, ONE, 2>(call, i, token, y),
                    _ => many_tokens::<D, BITS, SPAN, ONE, 1>(call, i, token, y),
                }
            }
            token += together;
        }
    }
}

/// Tile `i` of the call, for its tokens `token..token + T`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn many_tokens<D: Dots, const BITS: u8, const SPAN: usize, const ONE: bool, const T: usize>(
    call: Many<'_>,
    i: usize,
    token: usize,
    y: &mut [ByRow],
) {
    let packed = call.packed;
    let y = y[token * call.count + i..][..=(T - 1) * call.count].as_mut_ptr();
    // SAFETY: the caller promises the tile, its cells, and tokens of the packed width.
    unsafe {
        let input = Input::<T>::of(call.tokens, token);
        let mut cells: *const u8 = call.cells.as_ptr().add(i * call.cells.len() / call.count).cast();
        let (mut s, middle) = (call.groups.start * packed.group_spans, middle::<D, BITS>(packed));
        for g in call.groups.clone() {
            let mut group: [_; T] = std::array::from_fn(|t| input.begin_group(t, g, middle));
            for _ in 0..if ONE { 1 } else { packed.group_spans } {
                let mut dots = [D::zero(); T];
                for block in 0..SPAN.div_ceil(BLOCK) {
                    for c in 0..SPAN.min(BLOCK) / 4 {
                        let x = input.four(s * SPAN + block * BLOCK + 4 * c);
                        let codes = [0, HALF].map(|h| _mm256_load_si256(cells.add(c * CELL + h).cast()));
                        for t in 0..T {
                            dots[t].add::<BITS>(codes, x[t], c);
                        }
                    }
                    cells = cells.add(SPAN.min(BLOCK) / 4 * CELL);
                    dots.iter_mut().for_each(|dots| dots.end_block::<BITS>());
                }
                for t in 0..T {
                    group[t] = input.add_span(t, s, dots[t].sums(), group[t]);
                }
                s += 1;
            }
            let [scales, offsets] = &call.params[i * call.groups.len() + g - call.groups.start];
            let params = (load(scales), middle.is_none().then(|| load(offsets)));
            for t in 0..T {
                let y = &mut *y.add(t * call.count);
                store(input.add_group(t, g, group[t], params, load(y)), y);
            }
        }
    }
}
