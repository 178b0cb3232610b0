//! AVX-512 with VNNI: one register is a cell, one `vpdpbusd` multiplies it with four activations of a token.
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics bear their own prefix"))]

use std::arch::x86_64::*;
use std::sync::atomic::{Ordering, compiler_fence};

use super::super::packed::{BLOCK, CELL, Cell, Numbers, Packed, TILE, WIDE, Zeros};
use super::activations::{Token, TokenMut, Tokens, greatest, round_spans};
use super::{ByRow, Few, Kernels, Many};
use crate::ahead::Ahead;

pub(super) const KERNELS: Kernels = Kernels { round, few, unpack, write_params, many };

/// As [`super::scalar::round`].
///
/// # Safety
/// The machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn round(x: &[f32], span: usize, group_spans: usize, to: &mut TokenMut<'_>) {
    match span {
        WIDE => round_spans::<WIDE>(x, group_spans, to, |x, codes| round_span(x, codes)),
        BLOCK => round_spans::<BLOCK>(x, group_spans, to, |x, codes| round_span(x, codes)),
        _ => round_spans::<16>(x, group_spans, to, |x, codes| round_span(x, codes)),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn round_span<const S: usize>(x: &[f32; S], codes: &mut [i8; S]) -> (f32, i32) {
    let x = x.as_chunks::<16>().0;
    // SAFETY: each has sixteen values.
    let load = |x: &[f32; 16]| unsafe { _mm512_loadu_ps(x.as_ptr()) };
    let mut most = _mm512_setzero_si512();
    for x in x {
        let bits = _mm512_and_si512(_mm512_castps_si512(load(x)), _mm512_set1_epi32(0x7fff_ffff));
        most = _mm512_max_epu32(most, bits);
    }
    let most = match greatest(_mm512_reduce_max_epu32(most)) {
        Ok(most) => most,
        Err(scale) => {
            codes.fill(0);
            return (scale, 0);
        }
    };
    let inverse = _mm512_set1_ps(127.0 / most);
    let mut sum = _mm512_setzero_si512();
    for (x, codes) in x.iter().zip(codes.as_chunks_mut::<16>().0) {
        let q = _mm512_cvtps_epi32(_mm512_mul_ps(load(x), inverse));
        sum = _mm512_add_epi32(sum, q);
        // SAFETY: there are sixteen places.
        unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(q)) };
    }
    (most / 127.0, _mm512_reduce_add_epi32(sum))
}

/// As [`super::scalar::few`].
///
/// # Safety
/// As there; and the machine has AVX-512.
unsafe fn few(call: Few<'_>, y: &mut [ByRow]) {
    // SAFETY: promised by the caller.
    unsafe {
        by_bits!(call.packed.bits, BITS => match call.packed.span {
            WIDE => few_of::<BITS, WIDE>(call, y),
            BLOCK => few_of::<BITS, BLOCK>(call, y),
            _ => few_of::<BITS, 16>(call, y),
        });
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn few_of<const BITS: u8, const SPAN: usize>(call: Few<'_>, y: &mut [ByRow]) {
    // SAFETY: promised by the caller. Several tiles at once are several streams from memory.
    unsafe {
        let one_by_one = call.tokens.len() == 1 && Ahead::of_machine() == Ahead::Second;
        if (call.tokens.len(), call.count, one_by_one) == (1, 4, false) {
            return few_tiles::<BITS, SPAN, 1, 4>(call, 0, 0, y);
        }
        let mut token = 0;
        while token < call.tokens.len() {
            let together = if call.tokens.len() - token >= 4 { 4 } else { (call.tokens.len() - token).min(2) };
            let mut tile = 0;
            while tile < call.count {
                let two = call.count - tile >= 2 && !one_by_one;
                match (together, two) {
                    (4, true) => few_tiles::<BITS, SPAN, 4, 2>(call, tile, token, y),
                    (4, false) => few_tiles::<BITS, SPAN, 4, 1>(call, tile, token, y),
                    (2, true) => few_tiles::<BITS, SPAN, 2, 2>(call, tile, token, y),
                    (2, false) => few_tiles::<BITS, SPAN, 2, 1>(call, tile, token, y),
                    (_, true) => few_tiles::<BITS, SPAN, 1, 2>(call, tile, token, y),
                    (_, false) => few_tiles::<BITS, SPAN, 1, 1>(call, tile, token, y),
                }
                tile += if two { 2 } else { 1 };
            }
            token += together;
        }
    }
}

/// Tiles `first..first + R` of the call, for its tokens `token..token + T`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn few_tiles<const BITS: u8, const SPAN: usize, const T: usize, const R: usize>(
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
        let ahead = Ahead::of_machine();
        let mut cells: [*const u8; R] = std::array::from_fn(|r| packed.cells(tile + r));
        // Behind the end of these tiles are those that the others of them have begun with.
        let (end, skip) = (cells[0].wrapping_add(tile_bytes), (R - 1) * tile_bytes);
        let advance = |cells: &mut [*const u8; R]| {
            let bytes = ahead.bytes();
            let next = if cells[0].wrapping_add(bytes) < end { bytes } else { bytes + skip };
            for cells in cells {
                for line in 0..usize::from(BITS) {
                    ahead.fetch(cells.wrapping_add(next + line * CELL));
                }
                *cells = cells.add(block_bytes);
            }
            // Each block's where they are: all at once they would wait for each other.
            compiler_fence(Ordering::SeqCst);
        };
        let mut results = [[_mm512_setzero_ps(); R]; T];
        let (mut s, middle) = (0, packed.middle());
        for g in 0..packed.groups {
            let mut group = input.begin_group(g, middle);
            for _ in 0..packed.group_spans {
                let mut dots = [[_mm512_setzero_si512(); R]; T];
                let c = s * SPAN;
                if SPAN >= BLOCK || s % 2 == 0 {
                    add_half::<BITS, T, R, 0>(&mut dots, cells, &input, c);
                }
                if SPAN >= BLOCK {
                    add_half::<BITS, T, R, 4>(&mut dots, cells, &input, c + 16);
                    advance(&mut cells);
                }
                if SPAN == WIDE {
                    add_half::<BITS, T, R, 0>(&mut dots, cells, &input, c + BLOCK);
                    add_half::<BITS, T, R, 4>(&mut dots, cells, &input, c + BLOCK + 16);
                    advance(&mut cells);
                }
                if SPAN < BLOCK && s % 2 == 1 {
                    add_half::<BITS, T, R, 4>(&mut dots, cells, &input, c);
                    advance(&mut cells);
                }
                input.add_span(s, &dots, &mut group);
                s += 1;
            }
            for r in 0..R {
                let index = (tile + r) * packed.groups + g;
                let params = params(packed, index);
                packed.params_at(index + R * packed.groups, |at| _mm_prefetch::<_MM_HINT_T1>(at.cast()));
                for t in 0..T {
                    results[t][r] = input.add_group(t, g, group[t][r], params, results[t][r]);
                }
            }
        }
        for t in 0..T {
            for r in 0..R {
                _mm512_store_ps(y[(token + t) * call.count + first + r].0.as_mut_ptr(), results[t][r]);
            }
        }
    }
}

/// Adds the products of columns `0..16` or `16..32` of a block (`Q`: 0 or 4), which are the input's from `c` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn add_half<const BITS: u8, const T: usize, const R: usize, const Q: usize>(
    dots: &mut [[__m512i; R]; T],
    cells: [*const u8; R],
    input: &Input<T>,
    c: usize,
) {
    // SAFETY: the caller promises the cells and the columns.
    unsafe {
        if Q == 0 {
            add_dots(dots, cells.map(|at| codes::<BITS, 0>(at)), input.four(c));
            add_dots(dots, cells.map(|at| codes::<BITS, 1>(at)), input.four(c + 4));
            add_dots(dots, cells.map(|at| codes::<BITS, 2>(at)), input.four(c + 8));
            add_dots(dots, cells.map(|at| codes::<BITS, 3>(at)), input.four(c + 12));
        } else {
            add_dots(dots, cells.map(|at| codes::<BITS, 4>(at)), input.four(c));
            add_dots(dots, cells.map(|at| codes::<BITS, 5>(at)), input.four(c + 4));
            add_dots(dots, cells.map(|at| codes::<BITS, 6>(at)), input.four(c + 8));
            add_dots(dots, cells.map(|at| codes::<BITS, 7>(at)), input.four(c + 12));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_dots<const T: usize, const R: usize>(dots: &mut [[__m512i; R]; T], codes: [__m512i; R], x: [__m512i; T]) {
    for t in 0..T {
        for r in 0..R {
            dots[t][r] = _mm512_dpbusd_epi32(dots[t][r], codes[r], x[t]);
        }
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
    #[target_feature(enable = "avx512f")]
    unsafe fn four(&self, c: usize) -> [__m512i; T] {
        // SAFETY: the caller promises the column.
        std::array::from_fn(|t| unsafe { _mm512_set1_epi32(self.codes[t].add(c).cast::<i32>().read_unaligned()) })
    }

    /// The sums of span `s` times its scales.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add_span<const R: usize>(&self, s: usize, dots: &[[__m512i; R]; T], group: &mut [[__m512; R]; T]) {
        for t in 0..T {
            // SAFETY: the caller promises the span.
            let scale = unsafe { _mm512_set1_ps(*self.scales[t].add(s)) };
            for r in 0..R {
                group[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t][r]), scale, group[t][r]);
            }
        }
    }

    /// The sums of a group before its spans: what a zero that all codes share takes away.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn begin_group<const R: usize>(&self, g: usize, middle: Option<f32>) -> [[__m512; R]; T] {
        // SAFETY: the caller promises the group.
        let start = |t: usize| middle.map_or(0.0, |z| unsafe { -z * *self.sums[t].add(g) });
        std::array::from_fn(|t| [_mm512_set1_ps(start(t)); R])
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add_group(&self, t: usize, g: usize, group: __m512, (scale, offset): Params, to: __m512) -> __m512 {
        let to = _mm512_fmadd_ps(group, scale, to);
        // SAFETY: the caller promises the group.
        let sum = || unsafe { _mm512_set1_ps(*self.sums[t].add(g)) };
        offset.map_or(to, |offset| _mm512_fmadd_ps(sum(), offset, to))
    }
}

/// Scales and offsets of the rows of a tile in a group; no offsets where the sums begin with a zero that all codes share.
type Params = (__m512, Option<__m512>);

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn params(packed: &Packed, index: usize) -> Params {
    // SAFETY: the caller promises the index.
    unsafe {
        let scale = sixteen(&packed.scales, index);
        let offset = match &packed.zeros {
            Zeros::Middle(_) => None,
            Zeros::Codes(z) => {
                let zeros = _mm512_cvtepu8_epi32(_mm_loadu_si128(z.as_ptr().add(index * TILE).cast()));
                let minus = _mm512_sub_epi32(_mm512_setzero_si512(), zeros);
                Some(_mm512_mul_ps(scale, _mm512_cvtepi32_ps(minus)))
            }
            Zeros::Offsets(offsets) => Some(sixteen(offsets, index)),
        };
        (scale, offset)
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
            Numbers::Scaled { shared, small, shift } => {
                let shared = shared.as_ptr().add((index >> shift) * TILE).cast();
                let small = _mm_loadu_si128(small.as_ptr().add(index * TILE).cast());
                let small = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(small));
                _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256(shared)), small)
            }
        }
    }
}

/// The codes of columns `4Q..4Q + 4` of a block of 16 rows, a byte each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn codes<const BITS: u8, const Q: usize>(at: *const u8) -> __m512i {
    // SAFETY: the caller promises as many cells as bits.
    let cell = |i: usize| unsafe { _mm512_load_si512(at.add(i * CELL).cast()) };
    if BITS == 8 {
        return cell(Q);
    }
    let (c, high) = (Q % 4, Q / 4 * 4);
    // As `packed::planes`: bits `from..` of each byte of a cell become bits `to..` of the code.
    let plane = |i: usize, from: usize, to: usize, mask: i8| {
        let moved = if from >= to {
            _mm512_srl_epi16(cell(i), _mm_cvtsi32_si128((from - to) as i32))
        } else {
            _mm512_sll_epi16(cell(i), _mm_cvtsi32_si128((to - from) as i32))
        };
        _mm512_and_si512(moved, _mm512_set1_epi8(mask << to))
    };
    let four = usize::from(BITS & 4);
    let mut all = if four > 0 { plane(c, high, 0, 15) } else { _mm512_setzero_si512() };
    if BITS & 2 != 0 {
        all = _mm512_or_si512(all, plane(four + c / 2, 2 * (c % 2) + high, four, 3));
    }
    if BITS & 1 != 0 {
        let below = usize::from(BITS & 6);
        all = _mm512_or_si512(all, plane(below, c + high, below, 1));
    }
    all
}

/// As [`super::scalar::unpack`].
///
/// # Safety
/// As there; and the machine has AVX-512.
unsafe fn unpack(packed: &Packed, tile: usize, block: usize, to: &mut [Cell]) {
    // SAFETY: promised by the caller.
    unsafe { by_bits!(packed.bits, BITS => unpack_of::<BITS>(packed, tile, block, to)) }
}

#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn unpack_of<const BITS: u8>(packed: &Packed, tile: usize, block: usize, to: &mut [Cell]) {
    let mut at = packed.cells(tile).wrapping_add(block * usize::from(BITS) * CELL);
    for block in to.as_chunks_mut::<{ BLOCK / 4 }>().0 {
        // SAFETY: the caller promises the blocks that `to` has room for.
        unsafe {
            _mm512_store_si512(block[0].0.as_mut_ptr().cast(), codes::<BITS, 0>(at));
            _mm512_store_si512(block[1].0.as_mut_ptr().cast(), codes::<BITS, 1>(at));
            _mm512_store_si512(block[2].0.as_mut_ptr().cast(), codes::<BITS, 2>(at));
            _mm512_store_si512(block[3].0.as_mut_ptr().cast(), codes::<BITS, 3>(at));
            _mm512_store_si512(block[4].0.as_mut_ptr().cast(), codes::<BITS, 4>(at));
            _mm512_store_si512(block[5].0.as_mut_ptr().cast(), codes::<BITS, 5>(at));
            _mm512_store_si512(block[6].0.as_mut_ptr().cast(), codes::<BITS, 6>(at));
            _mm512_store_si512(block[7].0.as_mut_ptr().cast(), codes::<BITS, 7>(at));
            at = at.add(usize::from(BITS) * CELL);
        }
    }
}

/// As [`super::scalar::write_params`].
///
/// # Safety
/// As there; and the machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn write_params(packed: &Packed, index: usize, to: &mut [[ByRow; 2]]) {
    for (i, to) in to.iter_mut().enumerate() {
        // SAFETY: promised by the caller.
        unsafe {
            let (scale, offset) = params(packed, index + i);
            _mm512_store_ps(to[0].0.as_mut_ptr(), scale);
            offset.into_iter().for_each(|offset| _mm512_store_ps(to[1].0.as_mut_ptr(), offset));
        }
    }
}

/// As [`super::scalar::many`].
///
/// # Safety
/// As there; and the machine has AVX-512.
unsafe fn many(call: Many<'_>, y: &mut [ByRow]) {
    // SAFETY: promised by the caller.
    unsafe {
        match call.packed.span {
            WIDE => many_of::<WIDE>(call, y),
            BLOCK => many_of::<BLOCK>(call, y),
            _ => many_of::<16>(call, y),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn many_of<const SPAN: usize>(call: Many<'_>, y: &mut [ByRow]) {
    for token in (0..call.tokens.len()).step_by(4) {
        // SAFETY: promised by the caller. Four tokens and three tiles fill the registers.
        unsafe {
            match (call.tokens.len() - token, call.count) {
                (1, 1) => many_tiles::<SPAN, 1, 1>(call, token, y),
                (1, 2) => many_tiles::<SPAN, 1, 2>(call, token, y),
                (1, _) => many_tiles::<SPAN, 1, 3>(call, token, y),
                (2, 1) => many_tiles::<SPAN, 2, 1>(call, token, y),
                (2, 2) => many_tiles::<SPAN, 2, 2>(call, token, y),
                (2, _) => many_tiles::<SPAN, 2, 3>(call, token, y),
                (3, 1) => many_tiles::<SPAN, 3, 1>(call, token, y),
                (3, 2) => many_tiles::<SPAN, 3, 2>(call, token, y),
                (3, _) => many_tiles::<SPAN, 3, 3>(call, token, y),
                (_, 1) => many_tiles::<SPAN, 4, 1>(call, token, y),
                (_, 2) => many_tiles::<SPAN, 4, 2>(call, token, y),
                (_, _) => many_tiles::<SPAN, 4, 3>(call, token, y),
            }
        }
    }
}

/// All tiles of the call, for its tokens `token..token + T`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn many_tiles<const SPAN: usize, const T: usize, const R: usize>(call: Many<'_>, token: usize, y: &mut [ByRow]) {
    let y = y[token * R..][..T * R].as_mut_ptr();
    let packed = call.packed;
    // SAFETY: the caller promises the tiles, their cells, and tokens of the packed width.
    unsafe {
        let input = Input::<T>::of(call.tokens, token);
        let cells: [*const Cell; R] = std::array::from_fn(|r| call.cells.as_ptr().add(r * call.cells.len() / R));
        let begin = call.groups.start * packed.group_spans;
        let (mut s, middle) = (begin, packed.middle());
        for g in call.groups.clone() {
            let mut group: [[__m512; R]; T] = input.begin_group(g, middle);
            for _ in 0..packed.group_spans {
                let mut dots = [[_mm512_setzero_si512(); R]; T];
                for from in (0..SPAN).step_by(BLOCK) {
                    for c in (from..SPAN.min(from + BLOCK)).step_by(4) {
                        let x = input.four(s * SPAN + c);
                        let at = ((s - begin) * SPAN + c) / 4;
                        let codes = std::array::from_fn(|r| _mm512_load_si512(cells[r].add(at).cast()));
                        add_dots(&mut dots, codes, x);
                    }
                }
                input.add_span(s, &dots, &mut group);
                s += 1;
            }
            for r in 0..R {
                let [scale, offset] = &call.params[r * call.groups.len() + g - call.groups.start];
                let offset = middle.is_none().then(|| _mm512_load_ps(offset.0.as_ptr()));
                let params = (_mm512_load_ps(scale.0.as_ptr()), offset);
                for t in 0..T {
                    let y = y.add(t * R + r).cast();
                    _mm512_store_ps(y, input.add_group(t, g, group[t][r], params, _mm512_load_ps(y)));
                }
            }
        }
    }
}
