mod tiled;

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use crate::group::pick;
use crate::{Error, Group, Numbers, Result, ScaleType, pack_bits, packed_len, tiles, unpack_bits};

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

impl Zeros {
    fn held_as(self, kind: ScaleType) -> Self {
        match self {
            Self::Offsets(z) => Self::Offsets(z.held_as(kind)),
            Self::Points(z) => Self::Points(z.held_as(kind)),
            Self::Middle | Self::Codes(_) => self,
        }
    }
}

/// Integer codes `[rows, cols]` with their scales: `W[r, c] = s[r, k] · (q[r, c] − z[r, k])`, `k` the group of column `c`.
///
/// Rows are packed one by one ([`packed_len`]`(cols, bits)` bytes each), or sixteen at a time in [`tiles`]; scales and zero
/// points then lie in tiles too.
#[derive(Clone, Debug)]
pub struct IntCodes {
    rows: usize,
    cols: usize,
    grid: IntGrid,
    is_tiled: bool,
    packed: Bytes,
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
        if !(1..=8).contains(&grid.bits) {
            return Err(beyond_bits(grid.bits));
        }
        if codes.len() != rows * cols {
            return Err(Error::internal(format!("{} codes for [{rows}, {cols}]", codes.len())));
        }
        if codes.iter().fold(0, |all, c| all | c) > most(grid.bits) {
            return Err(Error::input(format!("holds a code beyond {} bits", grid.bits)));
        }
        let row_bytes = packed_len(cols, grid.bits);
        let mut packed = vec![0; rows * row_bytes];
        for (row, out) in codes.chunks_exact(cols.max(1)).zip(packed.chunks_exact_mut(row_bytes.max(1))) {
            pack_bits(row, grid.bits, out);
        }
        Self::from_packed([rows, cols], grid, packed.into(), scales, zeros)
    }

    /// As [`new`](Self::new), from rows that are packed one by one ([`pack_bits`]).
    ///
    /// # Errors
    /// As there.
    pub fn from_packed(
        [rows, cols]: [usize; 2],
        grid: IntGrid,
        packed: Bytes,
        scales: impl Into<Numbers>,
        zeros: Zeros,
    ) -> Result<Self> {
        let (scales, zeros) = (scales.into().held_as(grid.scale), zeros.held_as(grid.scale));
        check([rows, cols], grid, &scales, &zeros)?;
        let bytes = rows * packed_len(cols, grid.bits);
        if packed.len() != bytes {
            let found = packed.len();
            return Err(Error::internal(format!("{found} bytes of codes for [{rows}, {cols}], which take {bytes}")));
        }
        Ok(Self { rows, cols, grid, is_tiled: false, packed, scales, zeros, group_index: None })
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
        if !is_plain {
            // Groups that lie apart are for rows alone.
            self = self.in_rows().into_owned();
            self.group_index = Some(index);
        }
        Ok(self)
    }

    /// The same numbers with scales of 16 bits, where scales of 32 are all such numbers.
    pub fn with_narrow_scales(&self) -> Option<Self> {
        let codes = self.in_rows();
        let has_offsets = matches!(codes.zeros, Zeros::Offsets(_) | Zeros::Points(_));
        let scales = codes.scales.plain().filter(|s| s.kind() == ScaleType::F32 && !has_offsets)?.values();
        let holds = |kind: &ScaleType| scales.iter().all(|s| kind.round(*s) == *s);
        let scale = [ScaleType::F16, ScaleType::BF16].into_iter().find(holds)?;
        let grid = IntGrid { scale, ..codes.grid };
        let zeros = codes.zeros.clone();
        let narrow = Self::from_packed(codes.shape(), grid, codes.packed.clone(), scales, zeros).ok()?;
        match &codes.group_index {
            Some(index) => narrow.with_group_index(index.clone()).ok(),
            None => Some(narrow),
        }
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
        if self.is_tiled {
            let tile_bytes = tiles::tile_bytes(self.cols, self.grid.bits);
            let tile = &self.packed[r / tiles::ROWS * tile_bytes..][..tile_bytes];
            return tiles::read_row(tile, self.grid.bits, r % tiles::ROWS, out);
        }
        let row_bytes = packed_len(self.cols, self.grid.bits);
        unpack_bits(&self.packed[r * row_bytes..(r + 1) * row_bytes], self.grid.bits, out);
    }

    /// The codes as they are stored: rows one by one, or tiles.
    pub fn packed(&self) -> &Bytes {
        &self.packed
    }

    /// Scale and offset of group `k` of row `r`, so that the value is `scale · (code − zero)` with an integer
    /// zero point, or `scale · code + offset` with a real one.
    pub fn group_params(&self, r: usize, k: usize) -> (f32, Zero) {
        let at = match self.grid.group {
            Group::Tensor => 0,
            _ if self.is_tiled => tiles::param(r, k, self.groups_per_row()),
            _ => r * self.groups_per_row() + k,
        };
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
        if self.grid.group == Group::Tensor || self.is_tiled {
            params.iter_mut().enumerate().for_each(|(k, params)| *params = self.group_params(r, k));
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

    /// All scales, `[rows · groups]` or `[1]`; in [`tiles`] `[tile][group][16]`.
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

    /// All zero points, in the order of the scales.
    pub fn zeros(&self) -> &Zeros {
        &self.zeros
    }

    /// The rows of several matrices of one grid in one; `None` where grids or widths differ, or one scale serves all rows.
    pub fn stack(parts: &[&Self]) -> Option<Self> {
        if let [one] = parts {
            return Some((*one).clone());
        }
        let parts: Vec<_> = parts.iter().map(|p| p.in_rows()).collect();
        let first = parts.first()?;
        let is_alike = |p: &Cow<'_, Self>| {
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
                let codes = |p: &Cow<'_, Self>| if let Zeros::Codes(z) = &p.zeros { Some(z.clone()) } else { None };
                Zeros::Codes(parts.iter().map(codes).collect::<Option<Vec<_>>>()?.concat())
            }
            Zeros::Offsets(_) => Zeros::Offsets(numbers(|z| if let Zeros::Offsets(n) = z { Some(n) } else { None })?),
            Zeros::Points(_) => Zeros::Points(numbers(|z| if let Zeros::Points(n) = z { Some(n) } else { None })?),
        };
        Some(Self {
            rows: parts.iter().map(|p| p.rows).sum(),
            packed: parts.iter().flat_map(|p| p.packed.iter().copied()).collect::<Vec<u8>>().into(),
            scales: Numbers::stack(&parts.iter().map(|p| &p.scales).collect::<Vec<_>>())?,
            zeros,
            ..first.as_ref().clone()
        })
    }

    /// The same codes with these rows, in this order; `None` if scales of scales would be parted.
    pub fn select_rows(&self, rows: &[usize]) -> Option<Self> {
        if self.is_tiled {
            return self.in_rows().select_rows(rows);
        }
        let row_bytes = packed_len(self.cols, self.grid.bits);
        let per_row = self.groups_per_row();
        let is_shared = self.grid.group == Group::Tensor;
        let packed = pick(&self.packed, rows, row_bytes, false);
        Some(Self {
            rows: rows.len(),
            packed: packed.into(),
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

/// The same codes and numbers of one grid, wherever they lie.
impl PartialEq for IntCodes {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.in_rows(), other.in_rows());
        (a.rows, a.cols, a.grid) == (b.rows, b.cols, b.grid)
            && a.packed == b.packed
            && a.scales == b.scales
            && a.zeros == b.zeros
            && a.group_index == b.group_index
    }
}

/// The greatest code.
fn most(bits: u8) -> u8 {
    ((1u32 << bits) - 1) as u8
}

fn beyond_bits(bits: u8) -> Error {
    Error::input(format!("{bits} bits, where 1 to 8 are possible"))
}

/// Checks that scales and zero points are those of such a matrix.
fn check([rows, cols]: [usize; 2], grid: IntGrid, scales: &Numbers, zeros: &Zeros) -> Result<()> {
    if !(1..=8).contains(&grid.bits) {
        return Err(beyond_bits(grid.bits));
    }
    grid.group.check(cols)?;
    let (groups, per_row) = (grid.group.count(rows, cols), cols / grid.group.width(cols));
    let zero_count = match zeros {
        Zeros::Middle => groups,
        Zeros::Codes(z) => z.len(),
        Zeros::Offsets(z) | Zeros::Points(z) => z.len(),
    };
    if scales.len() != groups || zero_count != groups {
        return Err(Error::internal(format!(
            "{} scales and {zero_count} zero points for [{rows}, {cols}] in {groups} groups",
            scales.len()
        )));
    }
    let has_shape = match zeros {
        Zeros::Middle | Zeros::Codes(_) => true,
        Zeros::Offsets(z) | Zeros::Points(z) => z.has_shape(rows, per_row),
    };
    if !(has_shape && scales.has_shape(rows, per_row)) {
        return Err(Error::input("scales of scales are for rows and groups, and those of another matrix"));
    }
    if matches!(zeros, Zeros::Codes(z) if z.iter().fold(0, |all, z| all | z) > most(grid.bits)) {
        return Err(Error::input(format!("holds a code beyond {} bits", grid.bits)));
    }
    Ok(())
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
