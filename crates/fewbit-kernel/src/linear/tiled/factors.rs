//! What is multiplied with the numbers of a group, or added to them, sixteen rows at once; in the bits that it is stored in.

use fewbit_format::{Blocks, FloatCodes, Group, Levels, Minifloat, Nested, Numbers, ScaleType, Scales, dynamic_map};

use super::super::packed::TILE;
use super::codes::Codes;
use super::lanes::{LANES, Sixteen};

/// Groups that are spread out at once, at most.
pub(super) const MOST: usize = 64;

/// Numbers of some groups, a lane for each row.
pub(super) type Spread = [[f32; TILE]; MOST];

/// A number for each row and group.
#[derive(Debug)]
pub(super) enum Factors {
    /// One for all.
    One(f32),
    /// `[tile][group][16]` in the bytes of a type, each divided by one number.
    Lanes { kind: ScaleType, bytes: Vec<u8>, groups: usize, by: Option<f32> },
    /// The same for `height` rows, a multiple of 16: `[row / height][group]`.
    Bands { kind: ScaleType, bytes: Vec<u8>, groups: usize, height: usize, by: Option<f32> },
    /// Integers of six bits from −32 on `[tile][group][16]`, times an f16 that `2^shift` groups of a row share.
    Stepped { shared: Vec<u8>, steps: Vec<u8>, groups: usize, shift: u32 },
    /// Odd integers up to 31, less one and halved, two groups in a byte `[tile][pair][16]`, times an f16 that `2^shift`
    /// groups of a row share.
    Odd { shared: Vec<u8>, steps: Vec<u8>, groups: usize, shift: u32 },
    /// As codes of a second level.
    Nested(Box<SecondLevel>),
}

/// Numbers as codes of a second level.
#[derive(Debug)]
pub(super) struct SecondLevel {
    codes: Codes,
    /// Numbers in a row.
    per_row: usize,
    is_dynamic: bool,
    sharing: Sharing,
}

/// Scales and offsets by block: one may serve all, and there may be no offset.
#[derive(Debug)]
enum Sharing {
    /// Of so many rows, a multiple of 16.
    Rows(usize, [Scales; 2]),
    /// Of `2^shift` in a row, row after row; the last block again for rows past the last.
    Flat(u32, [Vec<f32>; 2]),
}

impl Factors {
    /// Of `groups` in each of `rows` rows, or one for all.
    pub(super) fn of(numbers: &Numbers, kind: ScaleType, group: Group, rows: usize, groups: usize) -> Option<Self> {
        match numbers {
            Numbers::Nested(nested) => SecondLevel::of(nested).map(|n| Self::Nested(Box::new(n))),
            Numbers::Plain(scales) if group == Group::Tensor => Some(Self::One(scales.get(0))),
            Numbers::Plain(scales) => Some(Self::lanes(kind, rows, groups, |r, k| scales.get(r * groups + k))),
        }
    }

    /// Of scales that are each for itself, in groups of columns, of a row or of all.
    pub(super) fn of_scales(scales: &Scales, kind: ScaleType, group: Group, rows: usize, groups: usize) -> Self {
        match group {
            Group::Tensor => Self::One(scales.get(0)),
            _ => Self::lanes(kind, rows, groups, |r, k| scales.get(r * groups + k)),
        }
    }

    /// Of small floats.
    pub(super) fn of_floats(floats: &FloatCodes) -> Option<Self> {
        let ([rows, cols], grid, by) = (floats.shape(), floats.grid(), floats.global());
        let groups = grid.group.per_row(cols);
        Some(match grid.group {
            Group::Tensor => Self::One(floats.factor(0)),
            Group::Row | Group::Columns(_) => {
                let get = |r, k| grid.scale.get(floats.scales(), r * groups + k);
                let Self::Lanes { kind, bytes, groups, .. } = Self::lanes(grid.scale, rows, groups, get) else {
                    return None;
                };
                Self::Lanes { kind, bytes, groups, by }
            }
            Group::Block([height, _]) => {
                let bytes = floats.scales().to_vec();
                height.is_multiple_of(TILE).then_some(Self::Bands { kind: grid.scale, bytes, groups, height, by })?
            }
        })
    }

    /// Of `groups` in each of `rows` rows, from the bytes of each number.
    pub(super) fn of_bytes<const N: usize>(
        kind: ScaleType,
        rows: usize,
        groups: usize,
        get: impl Fn(usize, usize) -> [u8; N],
    ) -> Self {
        Self::Lanes { kind, bytes: in_lanes(rows, groups, get), groups, by: None }
    }

    /// Integers of `groups` in each of `rows` rows, offset by 32; a power of two `together` of them share an f16.
    pub(super) fn stepped(
        rows: usize,
        groups: usize,
        together: usize,
        shared: impl Fn(usize, usize) -> [u8; 2],
        step: impl Fn(usize, usize) -> u8,
    ) -> Self {
        let shared = in_lanes(rows, groups / together, shared);
        let steps = in_lanes(rows, groups, |r, k| [step(r, k)]);
        Self::Stepped { shared, steps, groups, shift: together.ilog2() }
    }

    /// Odd integers up to 31 of `groups` in each of `rows` rows, an even number; a power of two `together` of them share an f16.
    pub(super) fn odd(
        rows: usize,
        groups: usize,
        together: usize,
        shared: impl Fn(usize, usize) -> [u8; 2],
        step: impl Fn(usize, usize) -> u8,
    ) -> Self {
        let shared = in_lanes(rows, groups / together, shared);
        let steps = in_lanes(rows, groups / 2, |r, k| [step(r, 2 * k) >> 1 | step(r, 2 * k + 1) >> 1 << 4]);
        Self::Odd { shared, steps, groups, shift: together.ilog2() }
    }

    fn lanes(kind: ScaleType, rows: usize, groups: usize, get: impl Fn(usize, usize) -> f32) -> Self {
        let mut numbers = vec![0.0; rows.div_ceil(TILE) * groups * TILE];
        for r in 0..rows {
            for k in 0..groups {
                numbers[(r / TILE * groups + k) * TILE + r % TILE] = get(r, k);
            }
        }
        Self::Lanes { kind, bytes: kind.to_bytes(&numbers), groups, by: None }
    }

    pub(super) fn len_bytes(&self) -> usize {
        match self {
            Self::One(_) => 4,
            Self::Lanes { bytes, .. } | Self::Bands { bytes, .. } => bytes.len(),
            Self::Stepped { shared, steps, .. } | Self::Odd { shared, steps, .. } => shared.len() + steps.len(),
            Self::Nested(nested) => nested.len_bytes(),
        }
    }

    /// The numbers of groups `first..first + count` of a tile.
    ///
    /// # Panics
    /// If `count` is more than [`MOST`], or there are no such groups.
    #[inline(always)]
    pub(super) fn spread<S: Sixteen>(&self, s: S, tile: usize, first: usize, count: usize, out: &mut Spread) {
        let out = &mut out[..count];
        match self {
            Self::One(one) => out.fill([*one; TILE]),
            Self::Lanes { kind, bytes, groups, by } => {
                let size = kind.bits() as usize / 8 * TILE;
                let bytes = &bytes[(tile * groups + first) * size..][..count * size];
                for (out, sixteen) in out.iter_mut().zip(bytes.chunks_exact(size)) {
                    // SAFETY: there are sixteen numbers of that type, and places.
                    unsafe {
                        let v = widen(s, *kind, sixteen.as_ptr());
                        let v = if let Some(by) = by { s.div(v, s.splat(*by)) } else { v };
                        s.store(out.as_mut_ptr(), v);
                    }
                }
            }
            Self::Bands { kind, bytes, groups, height, by } => {
                for (k, out) in out.iter_mut().enumerate() {
                    let scale = kind.get(bytes, tile * TILE / height * groups + first + k);
                    *out = [by.map_or(scale, |by| scale / by); TILE];
                }
            }
            Self::Stepped { shared, steps, groups, shift } => {
                let (tiles, steps) = (tile * (groups >> shift), &steps[tile * groups * TILE..][..groups * TILE]);
                for (k, out) in (first..).zip(out) {
                    let factor = &shared[(tiles + (k >> shift)) * 2 * TILE..][..2 * TILE];
                    // SAFETY: there are sixteen of each, and places.
                    unsafe {
                        let step = s.sub(s.number(s.bytes(steps[k * TILE..][..TILE].as_ptr())), s.splat(32.0));
                        s.store(out.as_mut_ptr(), s.mul(s.halves(factor.as_ptr()), step));
                    }
                }
            }
            Self::Odd { shared, steps, groups, shift } => {
                let (tiles, steps) =
                    (tile * (groups >> shift), &steps[tile * groups / 2 * TILE..][..groups / 2 * TILE]);
                for (k, out) in (first..).zip(out) {
                    let factor = &shared[(tiles + (k >> shift)) * 2 * TILE..][..2 * TILE];
                    // SAFETY: there are sixteen of each, and places.
                    unsafe {
                        let pair = s.bytes(steps[k / 2 * TILE..][..TILE].as_ptr());
                        let half = s.and(s.shr(pair, 4 * (k as u32 % 2)), s.splat_u32(15));
                        let step = s.number(s.or(s.shl(half, 1), s.splat_u32(1)));
                        s.store(out.as_mut_ptr(), s.mul(s.halves(factor.as_ptr()), step));
                    }
                }
            }
            Self::Nested(nested) => {
                for (k, out) in out.iter_mut().enumerate() {
                    let v = nested.number(s, tile, first + k);
                    // SAFETY: there are sixteen places.
                    unsafe { s.store(out.as_mut_ptr(), v) };
                }
            }
        }
    }
}

/// The bytes of a number for each row and group, `[tile][group][16]`, zeros past the last row.
fn in_lanes<const N: usize>(rows: usize, groups: usize, get: impl Fn(usize, usize) -> [u8; N]) -> Vec<u8> {
    let mut numbers = vec![[0; N]; rows.div_ceil(TILE) * groups * TILE];
    for r in 0..rows {
        for k in 0..groups {
            numbers[(r / TILE * groups + k) * TILE + r % TILE] = get(r, k);
        }
    }
    numbers.concat()
}

/// # Safety
/// Sixteen numbers of the type can be read at `at`.
#[inline(always)]
unsafe fn widen<S: Sixteen>(s: S, kind: ScaleType, at: *const u8) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            ScaleType::F32 => s.as_number(s.words(at)),
            ScaleType::F16 => s.halves(at),
            ScaleType::BF16 => s.as_number(s.shl(s.shorts(at), 16)),
            // The least power of two is no normal number.
            ScaleType::E8M0 => s.as_number(s.max_u32(s.shl(s.bytes(at), 23), s.splat_u32(1 << 22))),
            ScaleType::E4M3 => AsHalf { left: 7, mask: 0xbf80, power: 256.0 }.sixteen(s, at),
        }
    }
}

/// How small floats of 8 bits, with up to five of exponent, are half floats: their bits in the places of an f16, times a
/// power of two for the difference of the biases.
#[derive(Clone, Copy, Debug)]
pub(super) struct AsHalf {
    left: u32,
    mask: u16,
    power: f32,
}

impl AsHalf {
    pub(super) fn of(element: Minifloat) -> Self {
        let left = 10 - u32::from(element.mantissa());
        let bias = (1 << (element.exponent() - 1)) - 1;
        Self { left, mask: 0x8000 | (0x7f << left), power: f32::from_bits((127 + 15 - bias) << 23) }
    }

    /// # Safety
    /// 16 bytes can be read at `at`.
    #[inline(always)]
    pub(super) unsafe fn sixteen<S: Sixteen>(self, s: S, at: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        s.mul(unsafe { s.bytes_as_halves(at, self.left, self.mask) }, s.splat(self.power))
    }
}

impl SecondLevel {
    /// `None` unless blocks are of whole tiles of rows, or a power of two in a row.
    fn of(nested: &Nested) -> Option<Self> {
        let ([rows, per_row], grid) = (nested.shape(), nested.grid());
        let sharing = match grid.blocks {
            Blocks::Rows(height) if height.is_multiple_of(TILE) => {
                Sharing::Rows(height, nested.parameters().map(Clone::clone))
            }
            Blocks::Flat(len) if len.is_power_of_two() => {
                let numbers = u32::try_from(rows.next_multiple_of(TILE) * per_row).ok()?;
                let blocks = (numbers as usize).div_ceil(len);
                let filled = |of: &Scales| {
                    let mut all = of.values();
                    if all.len() > 1 {
                        all.resize(blocks, all[all.len() - 1]);
                    }
                    all
                };
                Sharing::Flat(len.trailing_zeros(), nested.parameters().map(filled))
            }
            Blocks::Rows(_) | Blocks::Flat(_) => return None,
        };
        let mut codes = Codes::new([rows, per_row], grid.bits);
        let mut row = vec![0; per_row];
        for r in 0..rows {
            nested.row_codes(r, &mut row);
            codes.put(r, &row);
        }
        Some(Self { codes, per_row, is_dynamic: grid.levels == Levels::Dynamic, sharing })
    }

    fn len_bytes(&self) -> usize {
        let blocks = match &self.sharing {
            Sharing::Rows(_, all) => all.iter().map(|n| n.stored_bits() as usize / 8).sum::<usize>(),
            Sharing::Flat(_, all) => all.iter().map(|n| 4 * n.len()).sum(),
        };
        self.codes.len_bytes() + blocks
    }

    /// Number `k` of each row of a tile.
    #[inline(always)]
    fn number<S: Sixteen>(&self, s: S, tile: usize, k: usize) -> S::F {
        let code = self.codes.column(s, tile, k);
        let level = if self.is_dynamic {
            // SAFETY: codes of the map have eight bits.
            s.as_number(unsafe { s.gather(dynamic_map().as_ptr().cast(), code) })
        } else {
            s.number(code)
        };
        let [scale, offset] = match &self.sharing {
            Sharing::Rows(height, [scales, offsets]) => {
                let block = tile * TILE / height * self.per_row + k;
                [of_block(s, scales, block), of_block(s, offsets, block)]
            }
            Sharing::Flat(shift, [scales, offsets]) => {
                let first = (tile * TILE * self.per_row + k) as u32;
                // SAFETY: sixteen numbers of an array.
                let lanes = unsafe { s.words(LANES.as_ptr().cast()) };
                let number = s.add_u32(s.splat_u32(first), s.mul_u32(lanes, s.splat_u32(self.per_row as u32)));
                let block = s.shr(number, *shift);
                [of_blocks(s, scales, block), of_blocks(s, offsets, block)]
            }
        };
        let product = scale.map_or(
            level,
            #[inline(always)]
            |scale| s.mul(scale, level),
        );
        offset.map_or(
            product,
            #[inline(always)]
            |offset| s.add(product, offset),
        )
    }
}

#[inline(always)]
fn of_block<S: Sixteen>(s: S, numbers: &Scales, block: usize) -> Option<S::F> {
    match numbers.len() {
        0 => None,
        1 => Some(s.splat(numbers.get(0))),
        _ => Some(s.splat(numbers.get(block))),
    }
}

#[inline(always)]
fn of_blocks<S: Sixteen>(s: S, numbers: &[f32], block: S::I) -> Option<S::F> {
    match numbers {
        [] => None,
        [one] => Some(s.splat(*one)),
        // SAFETY: they were filled up to the last row of the last tile.
        many => Some(s.as_number(unsafe { s.gather(many.as_ptr().cast(), block) })),
    }
}
