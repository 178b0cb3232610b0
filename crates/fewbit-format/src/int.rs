use std::ops::Range;

use crate::group::pick;
use crate::{Error, Group, Numbers, Result, ScaleType, pack_bits, packed_len, unpack_bits};

/// An integer grid: which numbers can stand for a group of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IntGrid {
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// Which weights share a scale.
    pub group: Group,
    /// Symmetric: the zero point is `2^(bits−1)` and is not stored.
    pub symmetric: bool,
    /// Type of the stored scales.
    pub scale: ScaleType,
}

/// Zero points of the groups.
#[derive(Clone, Debug, PartialEq)]
pub enum Zeros {
    /// `2^(bits−1)` everywhere; nothing is stored.
    Middle,
    /// One integer code per group, `[rows, groups]`, stored in `bits` bits each.
    Codes(Vec<u8>),
    /// One offset per group, `[rows, groups]`: the value is `scale · code + offset` (Q4_1).
    Offsets(Numbers),
    /// One real zero point per group, `[rows, groups]`: the value is `scale · code + offset`, `offset = −(scale · zero)`.
    Points(Numbers),
}

/// Integer codes `[rows, cols]` with their scales: `W[r, c] = s[r, k] · (q[r, c] − z[r, k])`, `k` the group of column `c`.
///
/// Rows are packed one by one ([`packed_len`]`(cols, bits)` bytes each).
#[derive(Clone, Debug, PartialEq)]
pub struct IntCodes {
    rows: usize,
    cols: usize,
    grid: IntGrid,
    packed: Vec<u8>,
    scales: Numbers,
    zeros: Zeros,
    group_index: Option<Vec<u32>>,
}

impl IntCodes {
    /// Takes unpacked codes `[rows · cols]`, scales `[rows · groups]` (`[1]` for [`Group::Tensor`]) that the grid's
    /// scale type holds exactly, and zero points of the same number.
    ///
    /// # Errors
    /// If a size is wrong, the group does not divide, or a code or zero point is beyond the bits.
    pub fn new(
        rows: usize,
        cols: usize,
        grid: IntGrid,
        codes: &[u8],
        scales: impl Into<Numbers>,
        zeros: Zeros,
    ) -> Result<Self> {
        let scales = scales.into().held_as(grid.scale);
        let zeros = match zeros {
            Zeros::Offsets(z) => Zeros::Offsets(z.held_as(grid.scale)),
            Zeros::Points(z) => Zeros::Points(z.held_as(grid.scale)),
            Zeros::Middle | Zeros::Codes(_) => zeros,
        };
        if !(1..=8).contains(&grid.bits) {
            return Err(Error::input(format!("{} bits, where 1 to 8 are possible", grid.bits)));
        }
        grid.group.check(cols)?;
        let groups = grid.group.count(rows, cols);
        let per_row = cols / grid.group.width(cols);
        let zero_count = match &zeros {
            Zeros::Middle => groups,
            Zeros::Codes(z) => z.len(),
            Zeros::Offsets(z) | Zeros::Points(z) => z.len(),
        };
        if codes.len() != rows * cols || scales.len() != groups || zero_count != groups {
            return Err(Error::internal(format!(
                "{} codes, {} scales, {zero_count} zero points for [{rows}, {cols}] in {groups} groups",
                codes.len(),
                scales.len()
            )));
        }
        let has_shape = match &zeros {
            Zeros::Middle | Zeros::Codes(_) => true,
            Zeros::Offsets(z) | Zeros::Points(z) => z.has_shape(rows, per_row),
        };
        if !(has_shape && scales.has_shape(rows, per_row)) {
            return Err(Error::input("scales of scales are for rows and groups, and those of another matrix"));
        }
        let most = ((1u32 << grid.bits) - 1) as u8;
        let all_bits = |codes: &[u8]| codes.iter().fold(0, |all, c| all | c);
        if all_bits(codes) > most || matches!(&zeros, Zeros::Codes(z) if all_bits(z) > most) {
            return Err(Error::input(format!("holds a code beyond {} bits", grid.bits)));
        }
        let row_bytes = packed_len(cols, grid.bits);
        let mut packed = vec![0; rows * row_bytes];
        for (row, out) in codes.chunks_exact(cols).zip(packed.chunks_exact_mut(row_bytes)) {
            pack_bits(row, grid.bits, out);
        }
        Ok(Self { rows, cols, grid, packed, scales, zeros, group_index: None })
    }

    /// Says for each column which group it belongs to (GPTQ's `g_idx`), where this is not `column / width`.
    ///
    /// # Errors
    /// If the length is not the number of columns, or a group does not exist.
    pub fn with_group_index(mut self, index: Vec<u32>) -> Result<Self> {
        let per_row = self.cols / self.grid.group.width(self.cols);
        if index.len() != self.cols || index.iter().any(|k| *k as usize >= per_row) {
            return Err(Error::input(format!(
                "g_idx does not name one of {per_row} groups for each of {} columns",
                self.cols
            )));
        }
        let width = self.grid.group.width(self.cols);
        let is_plain = index.iter().enumerate().all(|(c, k)| c / width == *k as usize);
        self.group_index = (!is_plain).then_some(index);
        Ok(self)
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The grid.
    pub fn grid(&self) -> IntGrid {
        self.grid
    }

    /// Groups in one row (1 for [`Group::Row`] and [`Group::Tensor`]).
    pub fn groups_per_row(&self) -> usize {
        self.cols / self.grid.group.width(self.cols)
    }

    /// For each column its group, where this is not `column / width`.
    pub fn group_index(&self) -> Option<&[u32]> {
        self.group_index.as_deref()
    }

    /// The codes of one row, unpacked into `out[cols]`.
    pub fn row_codes(&self, r: usize, out: &mut [u8]) {
        let row_bytes = packed_len(self.cols, self.grid.bits);
        unpack_bits(&self.packed[r * row_bytes..(r + 1) * row_bytes], self.grid.bits, out);
    }

    /// Scale and offset of group `k` of row `r`, so that the value is `scale · (code − zero)` with an integer
    /// zero point, or `scale · code + offset` with a real one.
    pub fn group_params(&self, r: usize, k: usize) -> (f32, Zero) {
        let at = if self.grid.group == Group::Tensor { 0 } else { r * self.groups_per_row() + k };
        let scale = self.scales.get(at);
        let zero = match &self.zeros {
            Zeros::Middle => Zero::Code((1u32 << (self.grid.bits - 1)) as u8),
            Zeros::Codes(z) => Zero::Code(z[at]),
            Zeros::Offsets(z) => Zero::Offset(z.get(at)),
            Zeros::Points(z) => Zero::Offset(-(scale * z.get(at))),
        };
        (scale, zero)
    }

    /// What [`group_params`](Self::group_params) gives for the groups of row `r`, read together; `numbers` has a place for
    /// each.
    fn row_params(&self, r: usize, numbers: &mut [f32], params: &mut [(f32, Zero)]) {
        if self.grid.group == Group::Tensor {
            params.fill(self.group_params(r, 0));
            return;
        }
        self.scales.read_row(r, numbers);
        params.iter_mut().zip(&*numbers).for_each(|((scale, _), s)| *scale = *s);
        match &self.zeros {
            Zeros::Middle => {
                params.iter_mut().for_each(|(_, zero)| *zero = Zero::Code((1u32 << (self.grid.bits - 1)) as u8));
            }
            Zeros::Codes(z) => {
                params.iter_mut().zip(&z[r * numbers.len()..]).for_each(|((_, zero), z)| *zero = Zero::Code(*z));
            }
            Zeros::Offsets(z) => {
                z.read_row(r, numbers);
                params.iter_mut().zip(&*numbers).for_each(|((_, zero), m)| *zero = Zero::Offset(*m));
            }
            Zeros::Points(z) => {
                z.read_row(r, numbers);
                params.iter_mut().zip(&*numbers).for_each(|((scale, zero), z)| *zero = Zero::Offset(-(*scale * z)));
            }
        }
    }

    /// All scales, `[rows · groups]` or `[1]`.
    pub fn scales(&self) -> &Numbers {
        &self.scales
    }

    /// Whether scales, offsets or zero points are codes of a second level.
    pub fn has_nested(&self) -> bool {
        let zeros = match &self.zeros {
            Zeros::Middle | Zeros::Codes(_) => None,
            Zeros::Offsets(z) | Zeros::Points(z) => z.nested(),
        };
        self.scales.nested().or(zeros).is_some()
    }

    /// All zero points.
    pub fn zeros(&self) -> &Zeros {
        &self.zeros
    }

    /// The rows of several matrices of one grid in one; `None` where grids or widths differ, or one scale serves all rows.
    pub fn stack(parts: &[&Self]) -> Option<Self> {
        let (first, rest) = parts.split_first()?;
        if rest.is_empty() {
            return Some((*first).clone());
        }
        let is_alike = |p: &&Self| {
            let is_grid = p.grid == first.grid && p.cols == first.cols && p.grid.group != Group::Tensor;
            is_grid && p.group_index == first.group_index
        };
        if !parts.iter().all(is_alike) {
            return None;
        }
        let numbers = |of: fn(&Zeros) -> Option<&Numbers>| {
            Numbers::stack(&parts.iter().map(|p| of(&p.zeros)).collect::<Option<Vec<_>>>()?)
        };
        let zeros = match &first.zeros {
            Zeros::Middle => parts.iter().all(|p| p.zeros == Zeros::Middle).then_some(Zeros::Middle)?,
            Zeros::Codes(_) => {
                let codes = |p: &&Self| if let Zeros::Codes(z) = &p.zeros { Some(z.clone()) } else { None };
                Zeros::Codes(parts.iter().map(codes).collect::<Option<Vec<_>>>()?.concat())
            }
            Zeros::Offsets(_) => Zeros::Offsets(numbers(|z| if let Zeros::Offsets(n) = z { Some(n) } else { None })?),
            Zeros::Points(_) => Zeros::Points(numbers(|z| if let Zeros::Points(n) = z { Some(n) } else { None })?),
        };
        Some(Self {
            rows: parts.iter().map(|p| p.rows).sum(),
            packed: parts.iter().flat_map(|p| p.packed.iter().copied()).collect(),
            scales: Numbers::stack(&parts.iter().map(|p| &p.scales).collect::<Vec<_>>())?,
            zeros,
            ..(*first).clone()
        })
    }

    /// The same codes with these rows, in this order; `None` if scales of scales would be parted.
    pub fn select_rows(&self, rows: &[usize]) -> Option<Self> {
        let row_bytes = packed_len(self.cols, self.grid.bits);
        let per_row = self.groups_per_row();
        let is_shared = self.grid.group == Group::Tensor;
        let packed = rows.iter().flat_map(|r| &self.packed[r * row_bytes..(r + 1) * row_bytes]).copied().collect();
        Some(Self {
            rows: rows.len(),
            packed,
            scales: self.scales.select_rows(rows, per_row, is_shared)?,
            zeros: match &self.zeros {
                Zeros::Middle => Zeros::Middle,
                Zeros::Codes(z) => Zeros::Codes(pick(z, rows, per_row, is_shared)),
                Zeros::Offsets(z) => Zeros::Offsets(z.select_rows(rows, per_row, is_shared)?),
                Zeros::Points(z) => Zeros::Points(z.select_rows(rows, per_row, is_shared)?),
            },
            group_index: self.group_index.clone(),
            ..*self
        })
    }

    /// Decodes rows `rows` into `out[rows.len() · cols]`.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let mut codes = vec![0u8; self.cols];
        let width = self.grid.group.width(self.cols);
        let mut params = vec![(0.0, Zero::Code(0)); self.groups_per_row()];
        let mut numbers = vec![0.0; params.len()];
        for (r, row) in rows.zip(out.chunks_exact_mut(self.cols)) {
            self.row_codes(r, &mut codes);
            self.row_params(r, &mut numbers, &mut params);
            if let Some(index) = &self.group_index {
                for ((v, q), k) in row.iter_mut().zip(&codes).zip(index) {
                    let (s, z) = params[*k as usize];
                    *v = z.value(s, *q);
                }
            } else {
                let groups = row.chunks_exact_mut(width).zip(codes.chunks_exact(width));
                for ((values, codes), (s, z)) in groups.zip(&params) {
                    values.iter_mut().zip(codes).for_each(|(v, q)| *v = z.value(*s, *q));
                }
            }
        }
    }

    /// Everything stored, in bits: codes, scales, zero points, the group index.
    pub fn stored_bits(&self) -> u64 {
        let zeros = match &self.zeros {
            Zeros::Middle => 0,
            Zeros::Codes(z) => z.len() as u64 * u64::from(self.grid.bits),
            Zeros::Offsets(z) | Zeros::Points(z) => z.stored_bits(),
        };
        let index = self.group_index.as_ref().map_or(0, |i| 32 * i.len() as u64);
        8 * self.packed.len() as u64 + self.scales.stored_bits() + zeros + index
    }
}

/// The zero point of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Zero {
    /// An integer code.
    Code(u8),
    /// A real offset.
    Offset(f32),
}

impl Zero {
    /// What code `q` stands for under scale `s`: the one meaning of an integer code.
    #[inline]
    pub fn value(self, s: f32, q: u8) -> f32 {
        match self {
            Self::Code(z) => s * (i32::from(q) - i32::from(z)) as f32,
            Self::Offset(m) => s * f32::from(q) + m,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_scale_times_code_minus_zero() {
        let grid = IntGrid { bits: 3, group: Group::Columns(2), symmetric: false, scale: ScaleType::F16 };
        let codes = IntCodes::new(1, 4, grid, &[0, 7, 1, 5], vec![0.5, 2.0], Zeros::Codes(vec![3, 1])).unwrap();
        let mut out = [0.0; 4];
        codes.decode_rows(0..1, &mut out);
        assert_eq!(out, [-1.5, 2.0, 0.0, 8.0]);
        assert_eq!(codes.stored_bits(), 16 + 2 * 16 + 2 * 3);
    }
}
