//! Levels that are sums of few numbers of a group: planes of signs, and codes of three values.

use std::sync::LazyLock;

use fewbit_format::{SignCodes, Signs, Storage, unpack_bits};

use super::super::packed::{BLOCK, TILE};
use super::codes::{Codes, each_code};
use super::factors::{Factors, MOST};
use super::lanes::{Sixteen, at_level};
use super::table::{interleaved, whole};
use super::{Part, Room};
use crate::Level;
use crate::product::K_BLOCK;

/// The rows of a storage.
#[derive(Debug)]
pub(super) struct SignTiles {
    signs: Signs,
    group: usize,
    codes: Packed,
    /// Those of a group side by side.
    numbers: Factors,
}

#[derive(Debug)]
enum Packed {
    /// A bit for each number.
    Planes(Codes),
    /// Five codes in a byte, `[tile][byte][16]`.
    Trits { across: usize, bytes: Vec<u8> },
}

/// Codes of three values in a byte.
const TRITS: usize = 5;

/// The five codes of a byte, four bits each.
static TRIT_CODES: LazyLock<[u32; 256]> = LazyLock::new(|| {
    std::array::from_fn(|byte| (0..TRITS as u32).fold(0, |all, i| all | (byte as u32 / 3u32.pow(i) % 3) << (4 * i)))
});

impl SignTiles {
    /// `None` for other storages, and for groups that are no multiples of four columns, or too many.
    pub(super) fn new(storage: &Storage) -> Option<Self> {
        let Storage::Signs(codes) = storage else { return None };
        let ([rows, cols], grid) = (codes.shape(), codes.grid());
        let (group, count) = (whole(grid.group, cols)?, grid.signs.numbers());
        if (K_BLOCK / group + 2).min(cols / group) * count > MOST {
            return None;
        }
        let numbers = Factors::of_scales(codes.numbers(), grid.scale, grid.group, rows, cols / group * count);
        let codes = match grid.signs {
            Signs::Planes { count, .. } => Packed::planes(codes, count),
            Signs::Ternary | Signs::Range => Packed::trits(codes),
        };
        Some(Self { signs: grid.signs, group, codes, numbers })
    }

    pub(super) fn len_bytes(&self) -> usize {
        let codes = match &self.codes {
            Packed::Planes(codes) => codes.len_bytes(),
            Packed::Trits { bytes, .. } => bytes.len(),
        };
        codes + self.numbers.len_bytes()
    }

    /// Decodes a part of a tile.
    pub(super) fn panel(&self, level: Level, part: Part, room: &mut Room, out: &mut [f32]) {
        match (&self.codes, self.signs) {
            (Packed::Planes(codes), _) => match codes.bits() {
                1 => planes_at::<1>(level, self, codes, part, room, out),
                2 => planes_at::<2>(level, self, codes, part, room, out),
                3 => planes_at::<3>(level, self, codes, part, room, out),
                4 => planes_at::<4>(level, self, codes, part, room, out),
                5 => planes_at::<5>(level, self, codes, part, room, out),
                6 => planes_at::<6>(level, self, codes, part, room, out),
                7 => planes_at::<7>(level, self, codes, part, room, out),
                _ => planes_at::<8>(level, self, codes, part, room, out),
            },
            (Packed::Trits { across, bytes }, Signs::Range) => {
                trits_at::<true>(level, self, *across, bytes, part, room, out);
            }
            (Packed::Trits { across, bytes }, _) => trits_at::<false>(level, self, *across, bytes, part, room, out),
        }
    }

    /// Spreads out the numbers of the groups of a part; the first group and the last.
    #[inline(always)]
    fn spread<S: Sixteen>(&self, s: S, part: Part, room: &mut Room) -> [usize; 2] {
        let (first, last, count) = (part.from / self.group, (part.to - 1) / self.group, self.signs.numbers());
        self.numbers.spread(s, part.tile, first * count, (last + 1 - first) * count, &mut room.scales);
        [first, last]
    }
}

impl Packed {
    fn planes(codes: &SignCodes, bits: u8) -> Self {
        let row_bytes = codes.grid().signs.row_bytes(codes.shape()[1]);
        Self::Planes(interleaved(codes.shape(), bits, |r, out| {
            unpack_bits(&codes.packed()[r * row_bytes..(r + 1) * row_bytes], bits, out);
        }))
    }

    fn trits(codes: &SignCodes) -> Self {
        let [rows, cols] = codes.shape();
        let across = codes.grid().signs.row_bytes(cols);
        let mut bytes = vec![0; rows.next_multiple_of(TILE) * across];
        for (r, row) in codes.packed().chunks_exact(across).enumerate() {
            let tile = &mut bytes[r / TILE * across * TILE..][..across * TILE];
            tile.iter_mut().skip(r % TILE).step_by(TILE).zip(row).for_each(|(to, byte)| *to = *byte);
        }
        Self::Trits { across, bytes }
    }
}

at_level! {
    fn planes_at[const COUNT: u8](tiles: &SignTiles, codes: &Codes, part: Part, room: &mut Room, out: &mut [f32]) = planes
}

#[inline(always)]
fn planes<S: Sixteen, const COUNT: u8>(
    s: S,
    tiles: &SignTiles,
    codes: &Codes,
    part: Part,
    room: &mut Room,
    out: &mut [f32],
) {
    let [first, last] = tiles.spread(s, part, room);
    let (count, sign) = (tiles.signs.numbers(), s.splat_u32(1 << 31));
    let (mut which, mut left) = (first, tiles.group - part.from % tiles.group);
    let mut numbers = [s.splat(0.0); 8];
    let mut offset = None;
    part.each_block(
        out,
        #[inline(always)]
        |k, to| {
            let at = codes.block(part.tile, k / BLOCK);
            codes.fetch(s, at, part.ahead);
            // SAFETY: the block is in the tile; groups are those that were spread.
            unsafe {
                each_code::<S, COUNT>(
                    s,
                    at,
                    #[inline(always)]
                    |c, word| {
                        if c % 4 == 0 {
                            if left == 0 {
                                (which, left) = ((which + 1).min(last), tiles.group);
                            }
                            left = left.saturating_sub(4);
                            let of_group = &room.scales[(which - first) * count..][..count];
                            for i in 0..usize::from(COUNT) {
                                // Turned: a bit that is not set leaves it so.
                                numbers[i] = s.as_number(s.xor(s.bits(s.load(of_group[i].as_ptr())), sign));
                            }
                            offset = if count > usize::from(COUNT) {
                                Some(s.load(of_group[count - 1].as_ptr()))
                            } else {
                                None
                            };
                        }
                        let mut sum = s.splat(0.0);
                        for i in 0..usize::from(COUNT) {
                            let turn = s.and(s.shl(word, 31 - i as u32), sign);
                            let number = s.as_number(s.xor(s.bits(numbers[i]), turn));
                            sum = if i == 0 { number } else { s.add(sum, number) };
                        }
                        if let Some(offset) = offset {
                            sum = s.add(sum, offset);
                        }
                        to.put(s, c, sum);
                    },
                );
            }
        },
    );
}

at_level! {
    fn trits_at[const RANGE: bool](
        tiles: &SignTiles,
        across: usize,
        bytes: &[u8],
        part: Part,
        room: &mut Room,
        out: &mut [f32],
    ) = trits
}

#[inline(always)]
fn trits<S: Sixteen, const RANGE: bool>(
    s: S,
    tiles: &SignTiles,
    across: usize,
    bytes: &[u8],
    part: Part,
    room: &mut Room,
    out: &mut [f32],
) {
    let Part { tile, from, to, stride, .. } = part;
    part.check(out);
    let [first, last] = tiles.spread(s, part, room);
    let count = tiles.signs.numbers();
    let factors = |i| -> [f32; TILE] { std::array::from_fn(|q| if q < 3 { tiles.signs.factor(q, i) } else { 0.0 }) };
    let (of_first, of_second) = (factors(0), factors(1));
    // SAFETY: there are sixteen of each.
    let (of_first, of_second) = unsafe { (s.load(of_first.as_ptr()), s.load(of_second.as_ptr())) };
    let codes = TRIT_CODES.as_ptr();
    let (mut which, mut left) = (first, tiles.group - from % tiles.group);
    for byte in from / TRITS..=(to - 1) / TRITS {
        let at = &bytes[(tile * across + byte) * TILE..][..TILE];
        s.fetch(at.as_ptr().wrapping_add(part.ahead * 8 * TILE));
        // SAFETY: sixteen bytes; the table has an entry for each; columns have places; groups were spread.
        unsafe {
            let five = s.gather(codes, s.bytes(at.as_ptr()));
            for i in 0..TRITS {
                let c = byte * TRITS + i;
                if c < from || c >= to {
                    continue;
                }
                if left == 0 {
                    (which, left) = ((which + 1).min(last), tiles.group);
                }
                left -= 1;
                let numbers = &room.scales[(which - first) * count..][..count];
                let code = s.shr(five, 4 * i as u32);
                let mut sum = s.mul(s.lookup(code, of_first), s.load(numbers[0].as_ptr()));
                if RANGE {
                    sum = s.add(sum, s.mul(s.lookup(code, of_second), s.load(numbers[1].as_ptr())));
                }
                s.store(out.as_mut_ptr().add((c - from) * stride), sum);
            }
        }
    }
}
