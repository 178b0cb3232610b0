//! NEON: four rows of a cell are a register; `sdot` multiplies it with four activations of a token, `smmla` two rows at
//! a time with eight activations of two tokens.
//!
//! Codes count as signed bytes, from which 128 is taken off at 8 bits. Assembly stands for intrinsics that stable Rust
//! does not have.
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics bear their own prefix"))]

use std::arch::aarch64::*;
use std::arch::asm;

use super::super::packed::{BLOCK, CELL, Cell, Numbers, Packed, TILE, Zeros};
use super::activations::{Token, Tokens};
use super::{ByRow, Few, Kernels, Many, scalar};

/// With `sdot`, of the dotprod extension.
pub(super) const KERNELS: Kernels = Kernels { round: scalar::round, few, unpack, write_params, many };

/// With `smmla`, of the i8mm extension, for many tokens.
pub(super) const I8MM: Kernels = Kernels { unpack: unpack_pairs, many: many_pairs, ..KERNELS };

/// Registers of a cell, four rows each.
const QUARTERS: usize = 4;
/// Bytes of such a register.
const QUARTER: usize = CELL / QUARTERS;

/// Adds the products of four bytes of `w` with the bytes `4 · LANE..` of `x` to each of four sums.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot<const LANE: usize>(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction is of the extension that this function enables, and touches only these registers.
    unsafe {
        asm!("sdot {:v}.4s, {:v}.16b, {:v}.4b[{}]", inlateout(vreg) sum, in(vreg) w, in(vreg) x, const LANE,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// Adds the products of two rows of eight bytes with two tokens of eight: sums `[row][token]`.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn multiply_pairs(mut sums: int32x4_t, rows: int8x16_t, tokens: int8x16_t) -> int32x4_t {
    // SAFETY: as above.
    unsafe {
        asm!("smmla {:v}.4s, {:v}.16b, {:v}.16b", inlateout(vreg) sums, in(vreg) rows, in(vreg) tokens,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// Four f16 as f32.
#[inline]
#[target_feature(enable = "neon")]
fn widen(halves: uint16x4_t) -> float32x4_t {
    let widened;
    // SAFETY: the instruction is part of NEON, and touches only these registers.
    unsafe {
        asm!("fcvtl {:v}.4s, {:v}.4h", out(vreg) widened, in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    widened
}

/// As [`super::scalar::few`].
///
/// # Safety
/// As there; and the machine has dotprod.
unsafe fn few(call: Few<'_>, y: &mut [ByRow]) {
    // SAFETY: promised by the caller.
    unsafe { by_bits!(call.packed.bits, BITS => few_of::<BITS>(call, y)) }
}

#[target_feature(enable = "neon,dotprod")]
unsafe fn few_of<const BITS: u8>(call: Few<'_>, y: &mut [ByRow]) {
    let narrow = call.packed.span < BLOCK;
    let mut token = 0;
    while token < call.tokens.len() {
        let together = if call.tokens.len() - token >= 2 { 2 } else { 1 };
        for tile in 0..call.count {
            // SAFETY: promised by the caller.
            unsafe {
                match (together, narrow) {
                    (2, false) => few_tokens::<BITS, false, 2>(call, tile, token, y),
                    (2, true) => few_tokens::<BITS, true, 2>(call, tile, token, y),
                    (_, false) => few_tokens::<BITS, false, 1>(call, tile, token, y),
                    (_, true) => few_tokens::<BITS, true, 1>(call, tile, token, y),
                }
            }
        }
        token += together;
    }
}

/// Tile `i` of the call, for its tokens `token..token + T`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn few_tokens<const BITS: u8, const NARROW: bool, const T: usize>(
    call: Few<'_>,
    i: usize,
    token: usize,
    y: &mut [ByRow],
) {
    let (packed, tile) = (call.packed, call.tile + i);
    // SAFETY: the caller promises the tile and tokens of the packed width; spans and groups lie inside.
    unsafe {
        let input = Input::<T>::of(call.tokens, token);
        let cells = packed.cells(tile);
        let mut results = [[vdupq_n_f32(0.0); QUARTERS]; T];
        let blocks = if NARROW { 1 } else { packed.span_blocks() };
        let (mut s, mut c, middle) = (0, 0, middle(packed));
        for g in 0..packed.groups {
            let mut group: [_; T] = std::array::from_fn(|t| input.begin_group(t, g, middle));
            for _ in 0..packed.group_spans {
                let mut dots = [[vdupq_n_s32(0); QUARTERS]; T];
                for _ in 0..blocks {
                    let block = cells.add(c / BLOCK * usize::from(BITS) * CELL);
                    let is_first = c % BLOCK == 0;
                    if !NARROW || is_first {
                        add_half::<BITS, T, 0>(&mut dots, block, input.sixteen(c));
                        c += 16;
                    }
                    if !NARROW || !is_first {
                        add_half::<BITS, T, 4>(&mut dots, block, input.sixteen(c));
                        c += 16;
                    }
                }
                for t in 0..T {
                    input.add_span(t, s, dots[t], &mut group[t]);
                }
                s += 1;
            }
            for q in 0..QUARTERS {
                let params = params(packed, (tile * packed.groups + g) * QUARTERS + q);
                for t in 0..T {
                    results[t][q] = input.add_group(t, g, group[t][q], params, results[t][q]);
                }
            }
        }
        for t in 0..T {
            store(results[t], &mut y[(token + t) * call.count + i]);
        }
    }
}

/// Adds the products of columns `0..16` or `16..32` of a block (`Q`: 0 or 4).
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn add_half<const BITS: u8, const T: usize, const Q: usize>(
    dots: &mut [[int32x4_t; QUARTERS]; T],
    block: *const u8,
    x: [int8x16_t; T],
) {
    for q in 0..QUARTERS {
        // SAFETY: the caller promises the cells.
        unsafe {
            let at = block.add(q * QUARTER);
            let codes: [int8x16_t; 4] = if Q == 0 {
                [codes::<BITS, 0>(at), codes::<BITS, 1>(at), codes::<BITS, 2>(at), codes::<BITS, 3>(at)]
            } else {
                [codes::<BITS, 4>(at), codes::<BITS, 5>(at), codes::<BITS, 6>(at), codes::<BITS, 7>(at)]
            };
            for t in 0..T {
                dots[t][q] = dot_sixteen(dots[t][q], codes, x[t]);
            }
        }
    }
}

/// Adds the products of four rows with sixteen activations.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_sixteen(sum: int32x4_t, w: [int8x16_t; 4], x: int8x16_t) -> int32x4_t {
    dot::<3>(dot::<2>(dot::<1>(dot::<0>(sum, w[0], x), w[1], x), w[2], x), w[3], x)
}

#[inline]
#[target_feature(enable = "neon")]
fn store(quarters: [float32x4_t; QUARTERS], y: &mut ByRow) {
    for (y, quarter) in y.0.as_chunks_mut::<4>().0.iter_mut().zip(quarters) {
        // SAFETY: four places.
        unsafe { vst1q_f32(y.as_mut_ptr(), quarter) };
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load(y: &ByRow) -> [float32x4_t; QUARTERS] {
    // SAFETY: four values each.
    std::array::from_fn(|q| unsafe { vld1q_f32(y.0[4 * q..][..4].as_ptr()) })
}

/// Where the rounded activations of some tokens lie.
struct Input<const T: usize> {
    codes: [*const i8; T],
    scales: [*const f32; T],
    sums: [*const f32; T],
}

impl<const T: usize> Input<T> {
    /// `T` tokens from `first` on; the last stands for those that are not there.
    fn of(tokens: Tokens<'_>, first: usize) -> Self {
        let last = tokens.len() - 1;
        let tokens: [Token<'_>; T] = std::array::from_fn(|t| tokens.get((first + t).min(last)));
        Self {
            codes: tokens.map(|t| t.codes.as_ptr()),
            scales: tokens.map(|t| t.scales.as_ptr()),
            sums: tokens.map(|t| t.sums.as_ptr()),
        }
    }

    /// Sixteen activations of each token from column `c` on.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn sixteen(&self, c: usize) -> [int8x16_t; T] {
        // SAFETY: the caller promises the columns.
        std::array::from_fn(|t| unsafe { vld1q_s8(self.codes[t].add(c)) })
    }

    /// Eight activations of tokens `t` and `t + 1` from column `c` on.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn eight_of_two(&self, t: usize, c: usize) -> int8x16_t {
        // SAFETY: the caller promises the columns.
        unsafe { vcombine_s8(vld1_s8(self.codes[t].add(c)), vld1_s8(self.codes[t + 1].add(c))) }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add_span(&self, t: usize, s: usize, dots: [int32x4_t; QUARTERS], to: &mut [float32x4_t; QUARTERS]) {
        // SAFETY: the caller promises the span.
        let scale = unsafe { *self.scales[t].add(s) };
        for q in 0..QUARTERS {
            to[q] = vfmaq_n_f32(to[q], vcvtq_f32_s32(dots[q]), scale);
        }
    }

    /// The sums of a group before its spans: what a zero that all codes share takes away.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn begin_group(&self, t: usize, g: usize, middle: Option<f32>) -> [float32x4_t; QUARTERS] {
        // SAFETY: the caller promises the group.
        let start = middle.map_or(0.0, |z| unsafe { -z * *self.sums[t].add(g) });
        [vdupq_n_f32(start); QUARTERS]
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add_group(
        &self,
        t: usize,
        g: usize,
        group: float32x4_t,
        (scale, offset): Params,
        to: float32x4_t,
    ) -> float32x4_t {
        let to = vfmaq_f32(to, group, scale);
        // SAFETY: the caller promises the group.
        let sum = || unsafe { *self.sums[t].add(g) };
        offset.map_or(to, |offset| vfmaq_n_f32(to, offset, sum()))
    }
}

/// Scales and offsets of four rows of a tile in a group; no offsets where the sums begin with a zero that all codes share.
type Params = (float32x4_t, Option<float32x4_t>);

/// For codes less 128 where they have 8 bits.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn params(packed: &Packed, index: usize) -> Params {
    // SAFETY: the caller promises the index.
    unsafe {
        let scale = four(&packed.scales, index);
        let offset = match &packed.zeros {
            Zeros::Middle(_) => None,
            Zeros::Codes(z) => {
                let z: [f32; 4] = std::array::from_fn(|i| f32::from(*z.as_ptr().add(index * 4 + i)));
                Some(vmulq_f32(scale, vsubq_f32(vdupq_n_f32(taken_off(packed)), vld1q_f32(z.as_ptr()))))
            }
            Zeros::Offsets(offsets) => Some(vfmaq_n_f32(four(offsets, index), scale, taken_off(packed))),
        };
        (scale, offset)
    }
}

/// What is taken off every code.
fn taken_off(packed: &Packed) -> f32 {
    if packed.bits == 8 { 128.0 } else { 0.0 }
}

/// The zero that all codes share, if they do, less what is taken off.
fn middle(packed: &Packed) -> Option<f32> {
    packed.middle().map(|z| z - taken_off(packed))
}

/// Four numbers from `4 · index` on.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn four(numbers: &Numbers, index: usize) -> float32x4_t {
    let half = |v: *const u16| {
        // SAFETY: the caller promises the index.
        widen(unsafe { vld1_u16(v) })
    };
    // SAFETY: as above.
    unsafe {
        match numbers {
            Numbers::F16(v) => half(v.as_ptr().add(index * 4)),
            Numbers::Bf16(v) => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(v.as_ptr().add(index * 4)))),
            Numbers::F32(v) => vld1q_f32(v.as_ptr().add(index * 4)),
            Numbers::Scaled { shared, small, shift } => {
                let shared = half(shared.as_ptr().add(((index / QUARTERS) >> shift) * TILE + index % QUARTERS * 4));
                let small: [f32; 4] = std::array::from_fn(|i| f32::from(*small.as_ptr().add(index * 4 + i)));
                vmulq_f32(shared, vld1q_f32(small.as_ptr()))
            }
        }
    }
}

/// The codes of columns `4Q..4Q + 4` of a block of four rows, a byte each, less 128 where they have 8 bits.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn codes<const BITS: u8, const Q: usize>(at: *const u8) -> int8x16_t {
    // SAFETY: the caller promises as many cells as bits.
    let cell = |i: usize| unsafe { vld1q_u8(at.add(i * CELL)) };
    if BITS == 8 {
        return vreinterpretq_s8_u8(veorq_u8(cell(Q), vdupq_n_u8(128)));
    }
    let (c, high) = (Q % 4, Q / 4 * 4);
    // As `packed::planes`: bits `from..` of each byte of a cell become bits `to..` of the code.
    let plane = |i: usize, from: usize, to: usize, mask: u8| {
        let moved = vshlq_u8(cell(i), vdupq_n_s8(to as i8 - from as i8));
        vandq_u8(moved, vdupq_n_u8(mask << to))
    };
    let four = usize::from(BITS & 4);
    let mut all = if four > 0 { plane(c, high, 0, 15) } else { vdupq_n_u8(0) };
    if BITS & 2 != 0 {
        all = vorrq_u8(all, plane(four + c / 2, 2 * (c % 2) + high, four, 3));
    }
    if BITS & 1 != 0 {
        let below = usize::from(BITS & 6);
        all = vorrq_u8(all, plane(below, c + high, below, 1));
    }
    vreinterpretq_s8_u8(all)
}

/// As [`super::scalar::unpack`], less 128 where the codes have 8 bits.
///
/// # Safety
/// As there.
unsafe fn unpack(packed: &Packed, tile: usize, block: usize, to: &mut [Cell]) {
    // SAFETY: promised by the caller.
    unsafe { unpack_each(packed, tile, block, to, |quads| quads) }
}

/// [`unpack`] for [`many_pairs`]: a quarter holds eight columns of its first two rows, that of the next cell those of
/// the other two.
///
/// # Safety
/// As there.
unsafe fn unpack_pairs(packed: &Packed, tile: usize, block: usize, to: &mut [Cell]) {
    // SAFETY: promised by the caller.
    unsafe {
        unpack_each(packed, tile, block, to, |quads| {
            std::array::from_fn(|i| {
                let words = |q: usize| vreinterpretq_s32_s8(quads[i / 2 * 2 + q]);
                let two = if i % 2 == 0 { vzip1q_s32(words(0), words(1)) } else { vzip2q_s32(words(0), words(1)) };
                vreinterpretq_s8_s32(two)
            })
        });
    }
}

/// Unpacks the codes of four rows and eight times four columns, which `arrange` puts in the order of the cells.
#[inline(always)]
unsafe fn unpack_each(
    packed: &Packed,
    tile: usize,
    block: usize,
    to: &mut [Cell],
    arrange: impl Fn([int8x16_t; 8]) -> [int8x16_t; 8],
) {
    // SAFETY: promised by the caller.
    unsafe { by_bits!(packed.bits, BITS => unpack_of::<BITS>(packed, tile, block, to, arrange)) }
}

#[target_feature(enable = "neon")]
unsafe fn unpack_of<const BITS: u8>(
    packed: &Packed,
    tile: usize,
    block: usize,
    to: &mut [Cell],
    arrange: impl Fn([int8x16_t; 8]) -> [int8x16_t; 8],
) {
    let mut at = packed.cells(tile).wrapping_add(block * usize::from(BITS) * CELL);
    for block in to.as_chunks_mut::<{ BLOCK / 4 }>().0 {
        let cells: *mut i8 = block.as_mut_ptr().cast();
        // SAFETY: the caller promises the blocks that `to` has room for.
        unsafe {
            for q in 0..QUARTERS {
                let from = at.add(q * QUARTER);
                let quads = [
                    codes::<BITS, 0>(from),
                    codes::<BITS, 1>(from),
                    codes::<BITS, 2>(from),
                    codes::<BITS, 3>(from),
                    codes::<BITS, 4>(from),
                    codes::<BITS, 5>(from),
                    codes::<BITS, 6>(from),
                    codes::<BITS, 7>(from),
                ];
                for (i, register) in arrange(quads).into_iter().enumerate() {
                    vst1q_s8(cells.add(i * CELL + q * QUARTER), register);
                }
            }
            at = at.add(usize::from(BITS) * CELL);
        }
    }
}

/// As [`super::scalar::write_params`], for codes less 128 where they have 8 bits.
///
/// # Safety
/// As there.
#[target_feature(enable = "neon")]
unsafe fn write_params(packed: &Packed, index: usize, to: &mut [[ByRow; 2]]) {
    for (i, to) in to.iter_mut().enumerate() {
        // SAFETY: promised by the caller.
        let quarters: [_; QUARTERS] = std::array::from_fn(|q| unsafe { params(packed, (index + i) * QUARTERS + q) });
        store(quarters.map(|q| q.0), &mut to[0]);
        if quarters[0].1.is_some() {
            store(quarters.map(|q| q.1.unwrap_or(q.0)), &mut to[1]);
        }
    }
}

/// As [`super::scalar::many`].
///
/// # Safety
/// As there; and the machine has dotprod, and the cells are from [`unpack`].
#[target_feature(enable = "neon,dotprod")]
unsafe fn many(call: Many<'_>, y: &mut [ByRow]) {
    const TOGETHER: usize = 4;
    let span = call.packed.span;
    for i in 0..call.count {
        for token in (0..call.tokens.len()).step_by(TOGETHER) {
            let add = |cells: *const i8, input: &Input<TOGETHER>, c: usize, dots: &mut Sums<TOGETHER>| {
                for (sixteen, c) in (c..c + span).step_by(16).enumerate() {
                    // SAFETY: the caller promises the columns and their cells.
                    unsafe {
                        let (x, at) = (input.sixteen(c), cells.add(sixteen * 4 * CELL));
                        for q in 0..QUARTERS {
                            let w = std::array::from_fn(|quad| vld1q_s8(at.add(quad * CELL + q * QUARTER)));
                            for t in 0..TOGETHER {
                                dots[t][q] = dot_sixteen(dots[t][q], w, x[t]);
                            }
                        }
                    }
                }
            };
            // SAFETY: promised by the caller.
            unsafe { many_tokens(call, i, token, y, add, |sums| sums) }
        }
    }
}

/// As [`many`], by products of two rows with two tokens.
///
/// # Safety
/// As there; and the machine has i8mm, and the cells are from [`unpack_pairs`].
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn many_pairs(call: Many<'_>, y: &mut [ByRow]) {
    const TOGETHER: usize = 4;
    let span = call.packed.span;
    // The sums of two tokens: those of two rows in each register, first all first two rows of quarters.
    let add = |cells: *const i8, input: &Input<TOGETHER>, c: usize, dots: &mut Sums<TOGETHER>| {
        for (eight, c) in (c..c + span).step_by(8).enumerate() {
            // SAFETY: the caller promises the columns and their cells.
            unsafe {
                let x = [input.eight_of_two(0, c), input.eight_of_two(2, c)];
                for h in 0..2 {
                    for q in 0..QUARTERS {
                        let w = vld1q_s8(cells.add((2 * eight + h) * CELL + q * QUARTER));
                        for two in 0..2 {
                            dots[2 * two + h][q] = multiply_pairs(dots[2 * two + h][q], w, x[two]);
                        }
                    }
                }
            }
        }
    };
    let apart = |sums: Sums<TOGETHER>| -> Sums<TOGETHER> {
        std::array::from_fn(|t| {
            std::array::from_fn(|q| {
                let (a, b) = (sums[t / 2 * 2][q], sums[t / 2 * 2 + 1][q]);
                if t % 2 == 0 { vuzp1q_s32(a, b) } else { vuzp2q_s32(a, b) }
            })
        })
    };
    for i in 0..call.count {
        for token in (0..call.tokens.len()).step_by(TOGETHER) {
            // SAFETY: promised by the caller.
            unsafe { many_tokens(call, i, token, y, add, apart) }
        }
    }
}

type Sums<const T: usize> = [[int32x4_t; QUARTERS]; T];

/// Tile `i` of the call, for its tokens `token..token + T`, as many as there are: `add` adds the products of a span,
/// from its cells and its first column; `apart` puts sums in the order `[token][row]`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn many_tokens<const T: usize>(
    call: Many<'_>,
    i: usize,
    token: usize,
    y: &mut [ByRow],
    add: impl Fn(*const i8, &Input<T>, usize, &mut Sums<T>),
    apart: impl Fn(Sums<T>) -> Sums<T>,
) {
    let packed = call.packed;
    let together = (call.tokens.len() - token).min(T);
    // SAFETY: the caller promises the tile, its cells, and tokens of the packed width.
    unsafe {
        let input = Input::<T>::of(call.tokens, token);
        let cells: *const i8 = call.cells.as_ptr().add(i * call.cells.len() / call.count).cast();
        let begin = call.groups.start * packed.group_spans;
        let (mut s, middle) = (begin, middle(packed));
        for g in call.groups.clone() {
            let mut group: [_; T] = std::array::from_fn(|t| input.begin_group(t, g, middle));
            for _ in 0..packed.group_spans {
                let mut sums = [[vdupq_n_s32(0); QUARTERS]; T];
                add(cells.add((s - begin) * packed.span * TILE), &input, s * packed.span, &mut sums);
                let sums = apart(sums);
                (0..T).for_each(|t| input.add_span(t, s, sums[t], &mut group[t]));
                s += 1;
            }
            let [scales, offsets] = &call.params[i * call.groups.len() + g - call.groups.start];
            let (scales, offsets) = (load(scales), middle.is_none().then(|| load(offsets)));
            for t in 0..together {
                let y = &mut y[(token + t) * call.count + i];
                let mut results = load(y);
                for q in 0..QUARTERS {
                    results[q] = input.add_group(t, g, group[t][q], (scales[q], offsets.map(|o| o[q])), results[q]);
                }
                store(results, y);
            }
        }
    }
}
