//! AVX2: half a cell is a register; `vpmaddubs` multiplies it with four activations of a token, in 16 bits.
//!
//! Codes of up to four bits: eight products of a block add up to at most 30480. Up to seven bits: one fits. Eight bits:
//! 128 is taken off, and the activations take the sign, so that the unsigned factor is at most 128.
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics bear their own prefix"))]

use std::arch::x86_64::*;

use super::super::packed::{CELL, Form, Numbers, Packed, TILE, Zeros};
use super::activations::Token;

const NARROW: u8 = Form::Narrow as u8;
const HALF: u8 = Form::Half as u8;
const BYTE: u8 = Form::Byte as u8;
const WIDE: u8 = Form::Wide as u8;

/// As [`super::scalar::tile`].
///
/// # Safety
/// As there; and the machine has AVX2 and FMA.
pub(super) unsafe fn tile(packed: &Packed, tile: usize, mut tokens: &[Token<'_>], mut y: &mut [[f32; TILE]]) {
    while !tokens.is_empty() {
        // SAFETY: promised by the caller. Both halves of a cell at once, or one after the other for four tokens.
        let count = unsafe {
            if tokens.len() >= 4 {
                by_form::<4, 1>(packed, tile, 0, tokens, y);
                by_form::<4, 1>(packed, tile, 1, tokens, y);
                4
            } else {
                by_form::<1, 2>(packed, tile, 0, tokens, y);
                1
            }
        };
        (tokens, y) = (&tokens[count..], &mut y[count..]);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn by_form<const T: usize, const H: usize>(
    packed: &Packed,
    tile: usize,
    first: usize,
    tokens: &[Token<'_>],
    y: &mut [[f32; TILE]],
) {
    // SAFETY: promised by the caller.
    unsafe {
        match (packed.form(), packed.span) {
            (Form::Narrow, 32) => kernel::<T, H, NARROW, 32>(packed, tile, first, tokens, y),
            (Form::Narrow, _) => kernel::<T, H, NARROW, 16>(packed, tile, first, tokens, y),
            (Form::Half, 32) => kernel::<T, H, HALF, 32>(packed, tile, first, tokens, y),
            (Form::Half, _) => kernel::<T, H, HALF, 16>(packed, tile, first, tokens, y),
            (Form::Byte, 32) => kernel::<T, H, BYTE, 32>(packed, tile, first, tokens, y),
            (Form::Byte, _) => kernel::<T, H, BYTE, 16>(packed, tile, first, tokens, y),
            (Form::Wide, 32) => kernel::<T, H, WIDE, 32>(packed, tile, first, tokens, y),
            (Form::Wide, _) => kernel::<T, H, WIDE, 16>(packed, tile, first, tokens, y),
        }
    }
}

/// Eight numbers from `8 · index` on.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn eight(numbers: &Numbers, index: usize) -> __m256 {
    // SAFETY: the caller promises the index.
    unsafe {
        match numbers {
            Numbers::F16(v) => _mm256_cvtph_ps(_mm_loadu_si128(v.as_ptr().add(index * 8).cast())),
            Numbers::Bf16(v) => {
                let halves = _mm_loadu_si128(v.as_ptr().add(index * 8).cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
            }
            Numbers::F32(v) => _mm256_loadu_ps(v.as_ptr().add(index * 8)),
        }
    }
}

/// Half a cell of codes of one to three bits as those of four bits lie; `c` as there.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn halves(bits: u8, at: *const u8, c: usize) -> __m256i {
    let part = |i: usize, shift: usize, mask: i8| {
        // SAFETY: the caller promises as many cells as bits.
        let cell = unsafe { _mm256_load_si256(at.add(i * CELL).cast()) };
        _mm256_and_si256(_mm256_srl_epi16(cell, _mm_cvtsi32_si128(shift as i32)), _mm256_set1_epi8(mask))
    };
    match bits {
        1 => part(0, c, 0x11),
        2 => part(c / 2, 2 * (c % 2), 0x33),
        _ => _mm256_or_si256(part(c / 2, 2 * (c % 2), 0x33), _mm256_slli_epi16::<2>(part(2, c, 0x11))),
    }
}

/// Half a cell of codes of five to seven bits of columns `4 quad..4 quad + 4` of a block, in bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn bytes(bits: u8, at: *const u8, quad: usize) -> __m256i {
    let (c, high) = (quad % 4, 4 * (quad / 4));
    let part = |i: usize, shift: usize, mask: i8| {
        // SAFETY: the caller promises as many cells as bits.
        let cell = unsafe { _mm256_load_si256(at.add(i * CELL).cast()) };
        _mm256_and_si256(_mm256_srl_epi16(cell, _mm_cvtsi32_si128(shift as i32)), _mm256_set1_epi8(mask))
    };
    let mut all = part(c, high, 15);
    let mut next = 4;
    if bits & 2 != 0 {
        all = _mm256_or_si256(all, _mm256_slli_epi16::<4>(part(4 + c / 2, 2 * (c % 2) + high, 3)));
        next = 6;
    }
    if bits & 1 != 0 {
        let top = part(next, c + high, 1);
        let top = if next == 4 { _mm256_slli_epi16::<4>(top) } else { _mm256_slli_epi16::<6>(top) };
        all = _mm256_or_si256(all, top);
    }
    all
}

/// Halves `first..first + H` of the tile's rows, for `T` tokens.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn kernel<const T: usize, const H: usize, const FORM: u8, const SPAN: usize>(
    packed: &Packed,
    tile: usize,
    first: usize,
    tokens: &[Token<'_>],
    y: &mut [[f32; TILE]],
) {
    // SAFETY: the caller promises the tile and tokens of the packed width; spans and groups lie inside.
    unsafe {
        let block_bytes = usize::from(packed.bits) * CELL;
        let mut at = packed.cells(tile).add(first * 32);
        let codes: [*const i8; T] = std::array::from_fn(|t| tokens[t].codes.as_ptr());
        let scales: [*const f32; T] = std::array::from_fn(|t| tokens[t].scales.as_ptr());
        let minus_sums: [*const i32; T] = std::array::from_fn(|t| tokens[t].minus_sums.as_ptr());
        let sums: [*const f32; T] = std::array::from_fn(|t| tokens[t].sums.as_ptr());
        let four = |t: usize, c: usize| _mm256_set1_epi32(codes[t].add(c).cast::<i32>().read_unaligned());
        let (low, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        let taken_off = _mm256_set1_epi32(if FORM == WIDE { 128 } else { 0 });
        let mut results = [[_mm256_setzero_ps(); H]; T];
        let mut span = 0;
        for g in 0..packed.groups {
            let index = 2 * (tile * packed.groups + g) + first;
            let zero: [__m256i; H] = std::array::from_fn(|h| {
                let zero = match &packed.zeros {
                    Zeros::Middle(z) => _mm256_set1_epi32(i32::from(*z)),
                    Zeros::Codes(z) => _mm256_cvtepu8_epi32(_mm_loadl_epi64(z.as_ptr().add((index + h) * 8).cast())),
                    Zeros::Offsets(_) => _mm256_setzero_si256(),
                };
                // In the low 16 bits alone, as a pair (zero, 0).
                _mm256_and_si256(_mm256_sub_epi32(zero, taken_off), _mm256_set1_epi32(0xffff))
            });
            let (mut group, mut offset_sums) = ([[_mm256_setzero_ps(); H]; T], [_mm256_setzero_ps(); T]);
            for s in span..span + packed.group_spans {
                let mut dots = [[_mm256_setzero_si256(); H]; T];
                let second = SPAN == 16 && s % 2 == 1;
                if FORM == NARROW || FORM == HALF {
                    for c in 0..4 {
                        for h in 0..H {
                            let cell = if FORM == NARROW {
                                halves(packed.bits, at.add(h * 32), c)
                            } else {
                                _mm256_load_si256(at.add(c * CELL + h * 32).cast())
                            };
                            if SPAN == 32 || !second {
                                let codes = _mm256_and_si256(cell, low);
                                for t in 0..T {
                                    let products = _mm256_maddubs_epi16(codes, four(t, s * SPAN + 4 * c));
                                    dots[t][h] = _mm256_add_epi16(dots[t][h], products);
                                }
                            }
                            if SPAN == 32 || second {
                                let codes = _mm256_and_si256(_mm256_srli_epi16::<4>(cell), low);
                                for t in 0..T {
                                    let x = four(t, s * SPAN + SPAN - 16 + 4 * c);
                                    dots[t][h] = _mm256_add_epi16(dots[t][h], _mm256_maddubs_epi16(codes, x));
                                }
                            }
                        }
                    }
                    for dot in dots.iter_mut().flatten() {
                        *dot = _mm256_madd_epi16(*dot, ones);
                    }
                } else {
                    let from = if second { 4 } else { 0 };
                    for c in 0..SPAN / 4 {
                        for h in 0..H {
                            let cell = if FORM == WIDE {
                                let cell = _mm256_load_si256(at.add((from + c) * CELL + h * 32).cast());
                                _mm256_xor_si256(cell, _mm256_set1_epi8(-128))
                            } else {
                                bytes(packed.bits, at.add(h * 32), from + c)
                            };
                            for t in 0..T {
                                let x = four(t, s * SPAN + 4 * c);
                                let products = if FORM == WIDE {
                                    _mm256_maddubs_epi16(_mm256_abs_epi8(cell), _mm256_sign_epi8(x, cell))
                                } else {
                                    _mm256_maddubs_epi16(cell, x)
                                };
                                dots[t][h] = _mm256_add_epi32(dots[t][h], _mm256_madd_epi16(products, ones));
                            }
                        }
                    }
                }
                if SPAN == 32 || second {
                    at = at.add(block_bytes);
                }
                for t in 0..T {
                    let minus_sum = _mm256_set1_epi32(*minus_sums[t].add(s));
                    let scale = _mm256_set1_ps(*scales[t].add(s));
                    offset_sums[t] = _mm256_add_ps(offset_sums[t], _mm256_set1_ps(*sums[t].add(s)));
                    for h in 0..H {
                        let dot = _mm256_add_epi32(dots[t][h], _mm256_madd_epi16(zero[h], minus_sum));
                        group[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, group[t][h]);
                    }
                }
            }
            span += packed.group_spans;
            for h in 0..H {
                let scale = eight(&packed.scales, index + h);
                for t in 0..T {
                    results[t][h] = _mm256_fmadd_ps(group[t][h], scale, results[t][h]);
                }
                if let Zeros::Offsets(offsets) = &packed.zeros {
                    let offset = eight(offsets, index + h);
                    for t in 0..T {
                        results[t][h] = _mm256_fmadd_ps(offset_sums[t], offset, results[t][h]);
                    }
                }
            }
        }
        for t in 0..T {
            for h in 0..H {
                _mm256_storeu_ps(y[t].as_mut_ptr().add((first + h) * 8), results[t][h]);
            }
        }
    }
}
