//! AVX-512 with VNNI: one register is a cell, one `vpdpbusd` multiplies it with four activations of a token.
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics bear their own prefix"))]

use std::arch::x86_64::*;

use super::super::packed::{CELL, Form, Numbers, Packed, TILE, Zeros};
use super::activations::Token;

/// Bytes from the codes in use to those that are fetched: the hardware's own prefetchers stop at each page.
const AHEAD: usize = 4096;

const NARROW: u8 = Form::Narrow as u8;
const HALF: u8 = Form::Half as u8;
const BYTE: u8 = Form::Byte as u8;
const WIDE: u8 = Form::Wide as u8;

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
        match (packed.form(), packed.span) {
            (Form::Narrow, 32) => by_zero::<T, NARROW, 32>(packed, tile, tokens, y),
            (Form::Narrow, _) => by_zero::<T, NARROW, 16>(packed, tile, tokens, y),
            (Form::Half, 32) => by_zero::<T, HALF, 32>(packed, tile, tokens, y),
            (Form::Half, _) => by_zero::<T, HALF, 16>(packed, tile, tokens, y),
            (Form::Byte, 32) => by_zero::<T, BYTE, 32>(packed, tile, tokens, y),
            (Form::Byte, _) => by_zero::<T, BYTE, 16>(packed, tile, tokens, y),
            (Form::Wide, 32) => by_zero::<T, WIDE, 32>(packed, tile, tokens, y),
            (Form::Wide, _) => by_zero::<T, WIDE, 16>(packed, tile, tokens, y),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn by_zero<const T: usize, const FORM: u8, const SPAN: usize>(
    packed: &Packed,
    tile: usize,
    tokens: &[Token<'_>],
    y: &mut [[f32; TILE]],
) {
    // SAFETY: promised by the caller.
    unsafe {
        match packed.zeros {
            Zeros::Middle(_) => kernel::<T, FORM, SPAN, MIDDLE>(packed, tile, tokens, y),
            Zeros::Codes(_) => kernel::<T, FORM, SPAN, CODES>(packed, tile, tokens, y),
            Zeros::Offsets(_) => kernel::<T, FORM, SPAN, OFFSETS>(packed, tile, tokens, y),
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

/// Codes of one to three bits of a block as those of four bits lie.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn halves(bits: u8, at: *const u8) -> [__m512i; 4] {
    // SAFETY: the caller promises as many cells as bits.
    let cell = |i: usize| unsafe { _mm512_load_si512(at.add(i * CELL).cast()) };
    let two = |c: usize| {
        let low = if c.is_multiple_of(2) { cell(c / 2) } else { _mm512_srli_epi16::<2>(cell(c / 2)) };
        _mm512_and_si512(low, _mm512_set1_epi8(0x33))
    };
    let one = |i: usize, c: usize| {
        let low = _mm512_srl_epi16(cell(i), _mm_cvtsi32_si128(c as i32));
        _mm512_and_si512(low, _mm512_set1_epi8(0x11))
    };
    match bits {
        1 => [one(0, 0), one(0, 1), one(0, 2), one(0, 3)],
        2 => [two(0), two(1), two(2), two(3)],
        _ => [0, 1, 2, 3].map(|c| _mm512_or_si512(two(c), _mm512_slli_epi16::<2>(one(2, c)))),
    }
}

/// Codes of five to seven bits of columns `4 quad..4 quad + 4` of a block, in bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn bytes(bits: u8, at: *const u8, quad: usize) -> __m512i {
    let (c, high) = (quad % 4, 4 * (quad / 4));
    let part = |i: usize, shift: usize, mask: i8| {
        // SAFETY: the caller promises as many cells as bits.
        let cell = unsafe { _mm512_load_si512(at.add(i * CELL).cast()) };
        _mm512_and_si512(_mm512_srl_epi16(cell, _mm_cvtsi32_si128(shift as i32)), _mm512_set1_epi8(mask))
    };
    let mut all = part(c, high, 15);
    let mut next = 4;
    if bits & 2 != 0 {
        all = _mm512_or_si512(all, _mm512_slli_epi16::<4>(part(4 + c / 2, 2 * (c % 2) + high, 3)));
        next = 6;
    }
    if bits & 1 != 0 {
        let top = part(next, c + high, 1);
        let top = if next == 4 { _mm512_slli_epi16::<4>(top) } else { _mm512_slli_epi16::<6>(top) };
        all = _mm512_or_si512(all, top);
    }
    all
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn kernel<const T: usize, const FORM: u8, const SPAN: usize, const ZERO: u8>(
    packed: &Packed,
    tile: usize,
    tokens: &[Token<'_>],
    y: &mut [[f32; TILE]],
) {
    // SAFETY: the caller promises the tile and tokens of the packed width; spans and groups lie inside.
    unsafe {
        let block_bytes = usize::from(packed.bits) * CELL;
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
                let second = SPAN == 16 && s % 2 == 1;
                if FORM == NARROW || FORM == HALF {
                    let mut cells = [_mm512_setzero_si512(); 4];
                    if FORM == NARROW {
                        cells = halves(packed.bits, at);
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(CELL + AHEAD).cast());
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(2 * CELL + AHEAD).cast());
                    }
                    for c in 0..4 {
                        let cell = if FORM == NARROW {
                            cells[c]
                        } else {
                            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(c * CELL + AHEAD).cast());
                            _mm512_load_si512(at.add(c * CELL).cast())
                        };
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
                } else {
                    let from = if second { 4 } else { 0 };
                    for c in 0..SPAN / 4 {
                        let cell = if FORM == WIDE {
                            _mm512_load_si512(at.add((from + c) * CELL).cast())
                        } else {
                            bytes(packed.bits, at, from + c)
                        };
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add((from + c) * CELL + AHEAD).cast());
                        for t in 0..T {
                            let dot = if T <= 2 && c % 2 == 1 { &mut more[t] } else { &mut dots[t] };
                            *dot = _mm512_dpbusd_epi32(*dot, cell, four(t, s * SPAN + 4 * c));
                        }
                    }
                }
                if SPAN == 32 || second {
                    at = at.add(block_bytes);
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
