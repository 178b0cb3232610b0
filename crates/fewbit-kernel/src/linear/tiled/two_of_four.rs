//! Two weights in every four columns: what is kept is decoded by its own decoder, and goes where the mask says.

use fewbit_format::{Storage, TwoOfFour};

use super::super::packed::{BLOCK, TILE};
use super::codes::Codes;
use super::lanes::{Sixteen, at_level};
use super::{Decoder, Part, Room};
use crate::Level;
use crate::product::K_BLOCK;

/// The rows of a storage.
pub(super) struct Masked {
    /// Four bits for each four columns.
    masks: Codes,
    kept: Box<Decoder>,
}

impl Masked {
    /// `None` for other storages, and where what is kept has no decoder.
    pub(super) fn new(storage: &Storage) -> Option<Self> {
        let Storage::TwoOfFour(pairs) = storage else { return None };
        let ([rows, cols], kept) = (pairs.shape(), Decoder::new(pairs.kept())?);
        let row_bytes = TwoOfFour::mask_bytes(cols);
        let masks = super::table::interleaved([rows, cols / 4], 4, |r, out| {
            let row = &pairs.mask()[r * row_bytes..(r + 1) * row_bytes];
            out.iter_mut().enumerate().for_each(|(q, m)| *m = row[q / 2] >> (4 * (q % 2)) & 15);
        });
        Some(Self { masks, kept: Box::new(kept) })
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.masks.len_bytes() + self.kept.len_bytes()
    }

    /// Decodes a part of a tile.
    pub(super) fn panel(&self, level: Level, part: Part, room: &mut Room, out: &mut [f32]) {
        let mut kept = [[0.0; TILE]; K_BLOCK / 2];
        let Part { from, to, ahead, .. } = part;
        debug_assert!(from.is_multiple_of(2 * BLOCK), "half of it begins at a block");
        let half = Part { from: from / 2, to: to / 2, stride: TILE, ahead: ahead / 2, ..part };
        self.kept.panel(level, half, room, kept.as_flattened_mut());
        spread_at(level, &self.masks, &kept, part, out);
    }
}

at_level! {
    fn spread_at(masks: &Codes, kept: &[[f32; TILE]], part: Part, out: &mut [f32]) = spread
}

#[inline(always)]
fn spread<S: Sixteen>(s: S, masks: &Codes, kept: &[[f32; TILE]], part: Part, out: &mut [f32]) {
    let Part { tile, from, to, stride, .. } = part;
    part.check(out);
    for (k, [first, second]) in (from..to).step_by(4).zip(kept.as_chunks::<2>().0) {
        let mask = masks.column(s, tile, k / 4);
        // SAFETY: sixteen numbers of each; columns have places.
        unsafe {
            let (first, second) = (s.bits(s.load(first.as_ptr())), s.bits(s.load(second.as_ptr())));
            let [a, b, c, d] = [s.shl(mask, 31), s.shl(mask, 30), s.shl(mask, 29), s.shl(mask, 28)];
            let (a, b, c, d) = (s.spread_sign(a), s.spread_sign(b), s.spread_sign(c), s.spread_sign(d));
            let columns = [
                s.and(first, a),
                s.and(s.select(a, first, second), b),
                s.and(s.select(s.or(a, b), first, second), c),
                s.and(second, d),
            ];
            for (i, column) in columns.into_iter().enumerate() {
                s.store(out.as_mut_ptr().add((k - from + i) * stride), s.as_number(column));
            }
        }
    }
}
