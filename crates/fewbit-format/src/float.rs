use std::ops::Range;

use bytes::Bytes;

use crate::{Error, Group, Minifloat, Result, ScaleType, packed_len, unpack_bits};

/// What small floats look like, without their content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FloatGrid {
    /// The type of an element.
    pub element: Minifloat,
    /// Which weights share a scale.
    pub group: Group,
    /// Type of the stored scales.
    pub scale: ScaleType,
}

impl FloatGrid {
    /// Checks that groups tile rows of `cols` columns; blocks may end at the edges.
    ///
    /// # Errors
    /// Names the sizes that fit.
    pub fn check(self, cols: usize) -> Result<()> {
        match self.group {
            Group::Block([height, width]) if height > 0 && width > 0 => Ok(()),
            Group::Block(_) => Err(Error::input("blocks of no rows or columns hold nothing")),
            group => group.check(cols),
        }
    }
}

/// Small floats `[rows, cols]` with their scales: `W[r, c] = T(q[r, c]) · (s[k] / g)`, `k` the group of the place.
///
/// `g` is one number for the matrix above the scales of the groups (NVFP4), else 1. Rows are packed one by one
/// ([`packed_len`]`(cols, bits)` bytes each); codes and scales stay as they are stored.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatCodes {
    rows: usize,
    cols: usize,
    grid: FloatGrid,
    packed: Bytes,
    scales: Bytes,
    global: Option<f32>,
}

impl FloatCodes {
    /// Takes packed codes `[rows, packed_len(cols, bits)]` and scales as bytes of the grid's scale type, one for each
    /// [group](Group::count), row by row.
    ///
    /// # Errors
    /// If a size is wrong, the group does not divide, or a code, a scale or `global` is no number.
    pub fn new(
        rows: usize,
        cols: usize,
        grid: FloatGrid,
        packed: Bytes,
        scales: Bytes,
        global: Option<f32>,
    ) -> Result<Self> {
        let FloatGrid { element, group, scale } = grid;
        grid.check(cols)?;
        let (row_bytes, groups) = (packed_len(cols, element.bits()), group.count(rows, cols));
        if packed.len() != rows * row_bytes || 8 * scales.len() as u64 != groups as u64 * scale.bits() {
            return Err(Error::internal(format!(
                "{} bytes of {element}, {} bytes of scales for [{rows}, {cols}] in {groups} groups",
                packed.len(),
                scales.len()
            )));
        }
        if element.bits() == 8
            && let Some(at) = packed.iter().position(|c| !element.is_number(*c))
        {
            return Err(Error::input(format!("holds NaN at [{}, {}]", at / cols, at % cols))
                .hint("the file is damaged: download it again"));
        }
        let is_none = |k: &usize| match scale {
            ScaleType::E4M3 => !Minifloat::E4M3.is_number(scales[*k]),
            ScaleType::E8M0 => scales[*k] == 0xff,
            _ => !scale.get(&scales, *k).is_finite(),
        };
        if let Some(k) = (0..groups).find(is_none) {
            return Err(Error::input(format!("group {k} has a scale that is no number"))
                .hint("the file is damaged: download it again"));
        }
        if global.is_some_and(|g| !g.is_normal()) {
            return Err(Error::input(format!("the scale of the matrix is {global:?}, where a number is needed")));
        }
        Ok(Self { rows, cols, grid, packed, scales, global })
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The grid.
    pub fn grid(&self) -> FloatGrid {
        self.grid
    }

    /// The packed codes, row by row.
    pub fn packed(&self) -> &Bytes {
        &self.packed
    }

    /// The stored bytes of the scales.
    pub fn scales(&self) -> &Bytes {
        &self.scales
    }

    /// What divides every scale.
    pub fn global(&self) -> Option<f32> {
        self.global
    }

    /// The factor of group `k`: its scale, divided by that of the matrix.
    pub fn factor(&self, k: usize) -> f32 {
        let scale = self.grid.scale.get(&self.scales, k);
        self.global.map_or(scale, |g| scale / g)
    }

    /// Decodes rows `rows` into `out[rows.len() · cols]`.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let FloatGrid { element, group, .. } = self.grid;
        let (width, row_bytes) = (group.width(self.cols), packed_len(self.cols, element.bits()));
        let mut unpacked = vec![0; if element.bits() == 8 { 0 } else { self.cols }];
        for (r, row) in rows.zip(out.chunks_exact_mut(self.cols)) {
            let packed = &self.packed[r * row_bytes..(r + 1) * row_bytes];
            let codes = if element.bits() == 8 {
                packed
            } else {
                unpack_bits(packed, element.bits(), &mut unpacked);
                &unpacked
            };
            let first = group.first_of_row(r, self.cols);
            for (k, (values, codes)) in row.chunks_mut(width).zip(codes.chunks(width)).enumerate() {
                let factor = self.factor(first + k);
                values.iter_mut().zip(codes).for_each(|(v, q)| *v = element.decode(*q) * factor);
            }
        }
    }

    /// The same codes with these rows, in this order. Blocks of rows become rows with scales of their own.
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        let FloatGrid { element, group, scale } = self.grid;
        let row_bytes = packed_len(self.cols, element.bits());
        let packed = rows.iter().flat_map(|r| &self.packed[r * row_bytes..(r + 1) * row_bytes]).copied().collect();
        let (per_row, size) = (group.per_row(self.cols), scale.bits() as usize / 8);
        let of_row = |r: &usize| {
            let first = group.first_of_row(*r, self.cols);
            &self.scales[first * size..(first + per_row) * size]
        };
        let (scales, group) = match group {
            Group::Tensor => (self.scales.clone(), group),
            Group::Row | Group::Columns(_) => (rows.iter().flat_map(of_row).copied().collect(), group),
            Group::Block([_, width]) => (rows.iter().flat_map(of_row).copied().collect(), Group::Block([1, width])),
        };
        let grid = FloatGrid { group, ..self.grid };
        Self { rows: rows.len(), cols: self.cols, grid, packed, scales, global: self.global }
    }

    /// The rows of several matrices in one; `None` where grids, widths or scales of the matrix differ, one scale serves a
    /// matrix, or a block of rows would cross from one into the next.
    pub fn stack(parts: &[&Self]) -> Option<Self> {
        let (first, rest) = parts.split_first()?;
        let is_alike = |p: &&Self| p.grid == first.grid && p.cols == first.cols && p.global == first.global;
        let is_cut = |p: &&&Self| matches!(p.grid.group, Group::Block([height, _]) if !p.rows.is_multiple_of(height));
        let before_last = &parts[..parts.len() - 1];
        if !rest.iter().all(is_alike) || first.grid.group == Group::Tensor || before_last.iter().any(|p| is_cut(&p)) {
            return None;
        }
        Some(Self {
            rows: parts.iter().map(|p| p.rows).sum(),
            packed: parts.iter().flat_map(|p| p.packed.iter().copied()).collect(),
            scales: parts.iter().flat_map(|p| p.scales.iter().copied()).collect(),
            ..(*first).clone()
        })
    }

    /// Everything stored, in bits: codes, scales, the scale of the matrix (32 bits).
    pub fn stored_bits(&self) -> u64 {
        8 * (self.packed.len() + self.scales.len()) as u64 + if self.global.is_some() { 32 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack_bits;

    fn e2m1(
        rows: usize,
        codes: &[u8],
        group: Group,
        scale: ScaleType,
        scales: &[f32],
        global: Option<f32>,
    ) -> FloatCodes {
        let cols = codes.len() / rows;
        let mut packed = vec![0; rows * packed_len(cols, 4)];
        for (row, out) in codes.chunks(cols).zip(packed.chunks_mut(packed_len(cols, 4))) {
            pack_bits(row, 4, out);
        }
        let grid = FloatGrid { element: Minifloat::E2M1, group, scale };
        FloatCodes::new(rows, cols, grid, packed.into(), scale.to_bytes(scales).into(), global).unwrap()
    }

    fn decoded(codes: &FloatCodes) -> Vec<f32> {
        let mut out = vec![0.0; codes.rows * codes.cols];
        codes.decode_rows(0..codes.rows, &mut out);
        out
    }

    #[test]
    fn decodes_level_times_scale() {
        let codes = e2m1(1, &[7, 1, 10, 15], Group::Columns(2), ScaleType::E8M0, &[0.5, 4.0], None);
        assert_eq!(decoded(&codes), [3.0, 0.25, -4.0, -24.0]);
        assert_eq!(codes.stored_bits(), 16 + 16);
        let under = e2m1(1, &[7, 1, 10, 15], Group::Columns(2), ScaleType::E4M3, &[448.0, 2.0], Some(64.0));
        assert_eq!(decoded(&under), [42.0, 3.5, -1.0 / 32.0, -6.0 / 32.0]);
        assert_eq!(under.stored_bits(), 16 + 16 + 32);
    }

    #[test]
    fn blocks_of_rows_and_columns_may_end_at_the_edges() {
        let scales = [1.0, 2.0, 4.0, 8.0];
        let codes = e2m1(3, &[2; 9], Group::Block([2, 2]), ScaleType::F32, &scales, None);
        assert_eq!(decoded(&codes), [1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 4.0, 4.0, 8.0]);
        let picked = codes.select_rows(&[2, 0]);
        assert_eq!(decoded(&picked), [4.0, 4.0, 8.0, 1.0, 1.0, 2.0]);
        assert!(FloatCodes::stack(&[&codes, &codes]).is_none(), "a block of one row in the middle");
        let upper = e2m1(2, &[2; 6], Group::Block([2, 2]), ScaleType::F32, &scales[..2], None);
        let both = FloatCodes::stack(&[&upper, &codes]).unwrap();
        assert_eq!(decoded(&both), [decoded(&upper), decoded(&codes)].concat());
    }

    #[test]
    fn rows_are_picked_and_put_together() {
        let codes =
            e2m1(2, &[1, 2, 3, 4, 5, 6, 7, 8], Group::Columns(2), ScaleType::E4M3, &[1.0, 2.0, 0.5, 4.0], Some(2.0));
        let [upper, lower] = [0, 1].map(|r| codes.select_rows(&[r]));
        assert_eq!(FloatCodes::stack(&[&upper, &lower]).unwrap(), codes);
        let other = FloatCodes { global: Some(3.0), ..lower.clone() };
        assert!(FloatCodes::stack(&[&upper, &other]).is_none());
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let grid = FloatGrid { element: Minifloat::E4M3, group: Group::Row, scale: ScaleType::F32 };
        let new = |codes: [u8; 2], scale: f32, global| {
            FloatCodes::new(1, 2, grid, codes.to_vec().into(), scale.to_le_bytes().to_vec().into(), global)
                .map(|_| ())
                .map_err(|e| e.to_string())
        };
        assert!(new([0, 0x7e], 1.0, None).is_ok());
        assert!(new([0, 0xff], 1.0, None).unwrap_err().contains("NaN at [0, 1]"));
        assert!(new([0, 0], f32::NAN, None).is_err());
        assert!(new([0, 0], 1.0, Some(0.0)).is_err());
    }
}
