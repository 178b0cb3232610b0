//! Small floats of 8 bits, which are half floats but for the place of their bits.

use fewbit_format::Storage;

use super::super::packed::{BLOCK, TILE};
use super::factors::{AsHalf, Factors};
use super::lanes::{Sixteen, at_level};
use super::table::whole;
use super::{Part, Room};
use crate::Level;

/// The rows of a storage.
#[derive(Debug)]
pub(super) struct SmallFloat {
    element: AsHalf,
    cols: usize,
    group: usize,
    /// `[tile][column][16]`, columns filled up to whole blocks.
    codes: Vec<u8>,
    scales: Factors,
}

impl SmallFloat {
    /// `None` for other storages, for exponents wider than a half float's, and where groups are no multiples of four columns.
    pub(super) fn new(storage: &Storage) -> Option<Self> {
        let Storage::Float(floats) = storage else { return None };
        let ([rows, cols], element) = (floats.shape(), floats.grid().element);
        if element.bits() != 8 || element.exponent() > 5 {
            return None;
        }
        let (group, scales) = (whole(floats.grid().group, cols)?, Factors::of_floats(floats)?);
        let filled = cols.next_multiple_of(BLOCK);
        let mut codes = vec![0; rows.div_ceil(TILE) * filled * TILE];
        for (r, row) in floats.packed().chunks_exact(cols).enumerate() {
            let tile = &mut codes[r / TILE * filled * TILE..][..filled * TILE];
            tile.iter_mut().skip(r % TILE).step_by(TILE).zip(row).for_each(|(to, code)| *to = *code);
        }
        Some(Self { element: AsHalf::of(element), cols: filled, group, codes, scales })
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.codes.len() + self.scales.len_bytes()
    }

    /// Decodes a part of a tile.
    pub(super) fn panel(&self, level: Level, part: Part, room: &mut Room, out: &mut [f32]) {
        panel_at(level, self, part, room, out);
    }
}

at_level! {
    fn panel_at(floats: &SmallFloat, part: Part, room: &mut Room, out: &mut [f32]) = panel
}

#[inline(always)]
fn panel<S: Sixteen>(s: S, floats: &SmallFloat, part: Part, room: &mut Room, out: &mut [f32]) {
    let (group, first) = (floats.group, part.from / floats.group);
    let last = (part.to - 1) / group - first;
    let scales = &mut room.scales;
    floats.scales.spread(s, part.tile, first, last + 1, scales);
    let (mut which, mut left) = (0, group - part.from % group);
    part.each_block(
        out,
        #[inline(always)]
        |k, to| {
            let codes = &floats.codes[(part.tile * floats.cols + k) * TILE..][..BLOCK * TILE];
            for (quad, codes) in codes.as_chunks::<{ 4 * TILE }>().0.iter().enumerate() {
                s.fetch(codes.as_ptr().wrapping_add(part.ahead * BLOCK * TILE));
                if left == 0 {
                    (which, left) = ((which + 1).min(last), group);
                }
                left = left.saturating_sub(4);
                // SAFETY: sixteen codes for each of four columns; the groups are those that were spread.
                unsafe {
                    let scale = s.load(scales[which].as_ptr());
                    for j in 0..4 {
                        let number = floats.element.sixteen(s, codes.as_ptr().add(j * TILE));
                        to.put(s, 4 * quad + j, s.mul(number, scale));
                    }
                }
            }
        },
    );
}
