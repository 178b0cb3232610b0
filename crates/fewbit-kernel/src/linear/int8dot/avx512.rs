//! AVX-512 with VNNI: one register is a cell, one `vpdpbusd` multiplies it with four activations of a token.
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics bear their own prefix"))]

use std::arch::x86_64::*;

use super::super::packed::{CELL, Form, Numbers, Packed, TILE, Zeros, cells};
use super::activations::Token;

/// Bytes from the codes in use to those that are fetched: the hardware's own prefetchers stop at each page.
const AHEAD: usize = 4096;

const MIDDLE: u8 = 0;
const CODES: u8 = 1;
const OFFSETS: u8 = 2;

/// As [`super::scalar::tile`].
///
/// # Safety
/// As there; and the machine has AVX-512.
pub(super) unsafe fn tile(packed: &Packed, tile: usize, mut tokens: &[Token<'_>], mut y: &mut [[f32; TILE]]) {
    while !tokens.is_empty() {
        let count = [8, 4, 2, 1].into_iter().find(|c| *c <= tokens.len()).unwrap_or(1);
        // SAFETY: promised by the caller.
        unsafe {
            match count {
                8 => by_form::<8>(packed, tile, tokens, y),
                4 => by_form::<4>(packed, tile, tokens, y),
                2 => by_form::<2>(packed, tile, tokens, y),
                _ => by_form::<1>(packed, tile, tokens, y),
            }
        }
        (tokens, y) = (&tokens[count..], &mut y[count..]);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn by_form<const T: usize>(packed: &Packed, tile: usize, tokens: &[Token<'_>], y: &mut [[f32; TILE]]) {
    // SAFETY: promised by the caller.
    unsafe {
        match (packed.form, packed.span) {
            (Form::Half, 32) => by_zero::<T, true, 32>(packed, tile, tokens, y),
            (Form::Half, _) => by_zero::<T, true, 16>(packed, tile, tokens, y),
            (_, 32) => by_zero::<T, false, 32>(packed, tile, tokens, y),
            _ => by_zero::<T, false, 16>(packed, tile, tokens, y),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn by_zero<const T: usize, const HALF: bool, const SPAN: usize>(
    packed: &Packed,
    tile: usize,
    tokens: &[Token<'_>],
    y: &mut [[f32; TILE]],
) {
    // SAFETY: promised by the caller.
    unsafe {
        match packed.zeros {
            Zeros::Middle(_) => kernel::<T, HALF, SPAN, MIDDLE>(packed, tile, tokens, y),
            Zeros::Codes(_) => kernel::<T, HALF, SPAN, CODES>(packed, tile, tokens, y),
            Zeros::Offsets(_) => kernel::<T, HALF, SPAN, OFFSETS>(packed, tile, tokens, y),
        }
    }
}

/// Sixteen numbers from `16 · index` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn sixteen(numbers: &Numbers, index: usize) -> __m512 {
    // SAFETY: the caller promises the index.
    unsafe {
        match numbers {
            Numbers::F16(v) => _mm512_cvtph_ps(_mm256_loadu_si256(v.as_ptr().add(index * TILE).cast())),
            Numbers::Bf16(v) => {
                let halves = _mm256_loadu_si256(v.as_ptr().add(index * TILE).cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
            }
            Numbers::F32(v) => _mm512_loadu_ps(v.as_ptr().add(index * TILE)),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn kernel<const T: usize, const HALF: bool, const SPAN: usize, const ZERO: u8>(
    packed: &Packed,
    tile: usize,
    tokens: &[Token<'_>],
    y: &mut [[f32; TILE]],
) {
    // SAFETY: the caller promises the tile and tokens of the packed width; spans and groups lie inside.
    unsafe {
        let per_block = if HALF { cells(Form::Half) } else { cells(Form::Wide) };
        let mut at = packed.cells(tile);
        let codes: [*const i8; T] = std::array::from_fn(|t| tokens[t].codes.as_ptr());
        let scales: [*const f32; T] = std::array::from_fn(|t| tokens[t].scales.as_ptr());
        let minus_sums: [*const i32; T] = std::array::from_fn(|t| tokens[t].minus_sums.as_ptr());
        let sums: [*const f32; T] = std::array::from_fn(|t| tokens[t].sums.as_ptr());
        let four = |t: usize, c: usize| _mm512_set1_epi32(codes[t].add(c).cast::<i32>().read_unaligned());
        let low = _mm512_set1_epi8(15);
        let mut results = [_mm512_setzero_ps(); T];
        let mut span = 0;
        for g in 0..packed.groups {
            let index = tile * packed.groups + g;
            let zero = match &packed.zeros {
                Zeros::Middle(z) => _mm512_set1_epi32(i32::from(*z)),
                Zeros::Codes(z) => _mm512_cvtepu8_epi32(_mm_loadu_si128(z.as_ptr().add(index * TILE).cast())),
                Zeros::Offsets(_) => _mm512_setzero_si512(),
            };
            let (mut group, mut offset_sums) = ([_mm512_setzero_ps(); T], [_mm512_setzero_ps(); T]);
            for s in span..span + packed.group_spans {
                // For one token the sums of the two halves are apart: half as long a chain.
                let (mut dots, mut more) = ([_mm512_setzero_si512(); T], [_mm512_setzero_si512(); T]);
                if HALF {
                    let second = SPAN == 16 && s % 2 == 1;
                    for c in 0..4 {
                        let cell = _mm512_load_si512(at.add(c * CELL).cast());
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(c * CELL + AHEAD).cast());
                        if SPAN == 32 || !second {
                            let codes = _mm512_and_si512(cell, low);
                            for (t, dot) in dots.iter_mut().enumerate() {
                                *dot = _mm512_dpbusd_epi32(*dot, codes, four(t, s * SPAN + 4 * c));
                            }
                        }
                        if SPAN == 32 || second {
                            let codes = _mm512_and_si512(_mm512_srli_epi16::<4>(cell), low);
                            for t in 0..T {
                                let x = four(t, s * SPAN + SPAN - 16 + 4 * c);
                                let dot = if T <= 2 { &mut more[t] } else { &mut dots[t] };
                                *dot = _mm512_dpbusd_epi32(*dot, codes, x);
                            }
                        }
                    }
                    if SPAN == 32 || second {
                        at = at.add(per_block * CELL);
                    }
                } else {
                    for c in 0..SPAN / 4 {
                        let cell = _mm512_load_si512(at.add(c * CELL).cast());
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(c * CELL + AHEAD).cast());
                        for t in 0..T {
                            let dot = if T <= 2 && c % 2 == 1 { &mut more[t] } else { &mut dots[t] };
                            *dot = _mm512_dpbusd_epi32(*dot, cell, four(t, s * SPAN + 4 * c));
                        }
                    }
                    at = at.add(SPAN / 4 * CELL);
                }
                for t in 0..T {
                    if T <= 2 {
                        dots[t] = _mm512_add_epi32(dots[t], more[t]);
                    }
                    if ZERO == OFFSETS {
                        offset_sums[t] = _mm512_add_ps(offset_sums[t], _mm512_set1_ps(*sums[t].add(s)));
                    } else {
                        // Pairs (zero, 0) · (−sum, 0): the sum of a span fits 16 bits.
                        dots[t] = _mm512_dpwssd_epi32(dots[t], zero, _mm512_set1_epi32(*minus_sums[t].add(s)));
                    }
                    let scale = _mm512_set1_ps(*scales[t].add(s));
                    group[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), scale, group[t]);
                }
            }
            span += packed.group_spans;
            let scale = sixteen(&packed.scales, index);
            for t in 0..T {
                results[t] = _mm512_fmadd_ps(group[t], scale, results[t]);
            }
            if let Zeros::Offsets(offsets) = &packed.zeros {
                let offset = sixteen(offsets, index);
                for t in 0..T {
                    results[t] = _mm512_fmadd_ps(offset_sums[t], offset, results[t]);
                }
            }
        }
        for (y, result) in y.iter_mut().zip(results) {
            _mm512_storeu_ps(y.as_mut_ptr(), result);
        }
    }
}
