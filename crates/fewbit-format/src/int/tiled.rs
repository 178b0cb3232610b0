//! Integer codes as they lie in tiles, and both ways between tiles and rows.

use std::borrow::Cow;

use bytes::Bytes;

use super::{IntCodes, IntGrid, Zeros, check};
use crate::tiles::{self, BLOCK, ROWS};
use crate::{Error, Group, Numbers, Result, ScaleType, packed_len};

impl IntCodes {
    /// Takes codes in [`tiles`] of 16 rows, `[⌈rows/16⌉][⌈cols/32⌉][bits]` cells, and their scales and zero points in the
    /// same order, `[⌈rows/16⌉][groups][16]` (one scale and zero point for [`Group::Tensor`]).
    ///
    /// # Errors
    /// If a size is wrong, the group does not divide, or numbers have a second level.
    pub fn from_tiles(
        [rows, cols]: [usize; 2],
        grid: IntGrid,
        cells: Bytes,
        scales: impl Into<Numbers>,
        zeros: Zeros,
    ) -> Result<Self> {
        let (scales, zeros) = (scales.into().held_as(grid.scale), zeros.held_as(grid.scale));
        let padded = rows.div_ceil(ROWS) * ROWS;
        check([padded, cols], grid, &scales, &zeros)?;
        let made = Self { rows, cols, grid, is_tiled: true, packed: cells, scales, zeros, group_index: None };
        if made.has_nested() {
            return Err(Error::input("numbers with a second level have no place in tiles"));
        }
        let bytes = rows.div_ceil(ROWS) * tiles::tile_bytes(cols, grid.bits);
        if made.packed.len() != bytes {
            let found = made.packed.len();
            return Err(Error::internal(format!("{found} bytes of tiles for [{rows}, {cols}], which take {bytes}")));
        }
        Ok(made)
    }

    /// Whether kernels can read these codes from tiles where they are stored, and nothing in them would only fill up: whole
    /// tiles and blocks, groups of a multiple of 16 columns in order, numbers of a plain type.
    pub fn suits_tiles(&self) -> bool {
        let is_wide = match self.grid.group {
            Group::Columns(g) => g.is_multiple_of(16),
            Group::Row | Group::Tensor => true,
            Group::Block(_) => false,
        };
        let is_plain = matches!(self.grid.scale, ScaleType::F16 | ScaleType::BF16 | ScaleType::F32);
        let is_whole = self.rows.is_multiple_of(ROWS) && self.cols.is_multiple_of(BLOCK);
        is_wide && is_plain && is_whole && self.group_index.is_none() && !self.has_nested()
    }

    /// The cells of all tiles, if the codes lie in tiles.
    pub fn cells(&self) -> Option<&Bytes> {
        self.is_tiled.then_some(&self.packed)
    }

    /// The same codes in tiles. Numbers of a second level stay where they are: they are for rows.
    pub fn in_tiles(&self) -> Cow<'_, Self> {
        if self.is_tiled || self.group_index.is_some() || self.has_nested() {
            return Cow::Borrowed(self);
        }
        let tile_bytes = tiles::tile_bytes(self.cols, self.grid.bits);
        let mut cells = vec![0; self.rows.div_ceil(ROWS) * tile_bytes];
        let mut codes = vec![0; self.cols];
        for r in 0..self.rows {
            self.row_codes(r, &mut codes);
            tiles::write_row(&codes, self.grid.bits, r % ROWS, &mut cells[r / ROWS * tile_bytes..][..tile_bytes]);
        }
        let (rows, groups) = (self.rows, self.groups_per_row());
        let place = move |i: usize| {
            let (lane, k, tile) = (i % ROWS, i / ROWS % groups, i / ROWS / groups);
            (tile * ROWS + lane < rows).then(|| (tile * ROWS + lane) * groups + k)
        };
        Cow::Owned(Self { is_tiled: true, packed: cells.into(), ..self.with_params(rows.div_ceil(ROWS) * ROWS, place) })
    }

    /// The same codes row by row, as all other layouts have them.
    pub fn in_rows(&self) -> Cow<'_, Self> {
        if !self.is_tiled {
            return Cow::Borrowed(self);
        }
        let row_bytes = packed_len(self.cols, self.grid.bits);
        let mut packed = vec![0; self.rows * row_bytes];
        let mut codes = vec![0; self.cols];
        for (r, out) in packed.chunks_exact_mut(row_bytes).enumerate() {
            self.row_codes(r, &mut codes);
            crate::pack_bits(&codes, self.grid.bits, out);
        }
        let groups = self.groups_per_row();
        let place = move |i: usize| Some(tiles::param(i / groups, i % groups, groups));
        Cow::Owned(Self { is_tiled: false, packed: packed.into(), ..self.with_params(self.rows, place) })
    }

    /// No codes, and for `rows` rows the numbers from `place`; where one serves the matrix, it stays.
    fn with_params(&self, rows: usize, place: impl Fn(usize) -> Option<usize>) -> Self {
        let is_shared = self.grid.group == Group::Tensor;
        let count = if is_shared { 1 } else { rows * self.groups_per_row() };
        let places = || (0..count).map(|i| if is_shared { Some(0) } else { place(i) });
        Self {
            packed: Bytes::new(),
            scales: self.scales.picked(places()),
            zeros: match &self.zeros {
                Zeros::Middle => Zeros::Middle,
                Zeros::Codes(z) => Zeros::Codes(places().map(|i| i.map_or(0, |i| z[i])).collect()),
                Zeros::Offsets(z) => Zeros::Offsets(z.picked(places())),
                Zeros::Points(z) => Zeros::Points(z.picked(places())),
            },
            group_index: self.group_index.clone(),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Codes, numbers and decoded weights are the same by both storages; what fills up is counted.
        #[test]
        fn tiles_hold_what_rows_hold(
            bits in 1u8..=8, rows in 1usize..40, groups in 1usize..4, kind in 0usize..4, zeros in 0u8..4, seed: u32,
        ) {
            let mut state = seed;
            let mut next = || { state = state.wrapping_mul(1664525).wrapping_add(1013904223); state >> 16 };
            let group = [Group::Columns(5), Group::Columns(32), Group::Row, Group::Tensor][kind];
            let cols = if let Group::Columns(g) = group { g * groups } else { 1 + next() as usize % 100 };
            let scale = [ScaleType::F16, ScaleType::F32][next() as usize % 2];
            let grid = IntGrid { bits, group, symmetric: zeros == 0, scale };
            let count = group.count(rows, cols);
            let mut code = || (next() & ((1 << bits) - 1)) as u8;
            let codes: Vec<u8> = (0..rows * cols).map(|_| code()).collect();
            let zero_codes = (0..count).map(|_| code()).collect();
            let mut numbers = || (0..count).map(|_| next() as f32 / 256.0).map(|v| scale.round(v)).collect::<Vec<f32>>();
            let zeros = match zeros {
                0 => Zeros::Middle,
                1 => Zeros::Codes(zero_codes),
                2 => Zeros::Offsets(numbers().into()),
                _ => Zeros::Points(numbers().into()),
            };
            let ours = IntCodes::new(rows, cols, grid, &codes, numbers(), zeros).unwrap();
            let tiled = ours.in_tiles();
            prop_assert!(tiled.cells().is_some() && tiled.in_tiles() == tiled);
            prop_assert_eq!(tiled.in_rows().packed.clone(), ours.packed.clone());
            prop_assert_eq!(tiled.as_ref(), &ours);
            let (mut a, mut b) = (vec![0.0; rows * cols], vec![f32::NAN; rows * cols]);
            ours.decode_rows(0..rows, &mut a);
            tiled.decode_rows(0..rows, &mut b);
            prop_assert_eq!(&a, &b);
            if rows % ROWS == 0 && cols % BLOCK == 0 {
                prop_assert_eq!(tiled.stored_bits(), ours.stored_bits());
            } else {
                // Equal where the rows are padded to the same whole bytes.
                prop_assert!(tiled.stored_bits() >= ours.stored_bits());
            }
            let read = IntCodes::from_tiles(
                [rows, cols], grid, tiled.packed.clone(), tiled.scales.clone(), tiled.zeros.clone(),
            );
            prop_assert_eq!(read.unwrap(), ours.clone());
            let picked: Vec<usize> = (0..rows).rev().step_by(2).collect();
            prop_assert_eq!(tiled.select_rows(&picked), ours.select_rows(&picked));
            prop_assert_eq!(IntCodes::stack(&[&ours, &tiled]), IntCodes::stack(&[&ours, &ours]));
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let grid = IntGrid { bits: 4, group: Group::Columns(32), symmetric: true, scale: ScaleType::F16 };
        let make = |bytes: usize, scales: usize| {
            IntCodes::from_tiles([16, 64], grid, vec![0; bytes].into(), vec![1.0; scales], Zeros::Middle)
        };
        assert!(make(512, 32).is_ok_and(|c| c.suits_tiles() && c.stored_bits() == 8 * (512 + 64)));
        assert!(make(511, 32).is_err() && make(512, 31).is_err());
    }
}
