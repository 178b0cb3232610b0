use std::ops::Range;

use crate::{Error, Group, Result, ScaleType, Scales, pack_bits, packed_len, unpack_bits};

/// Which sums of few numbers a weight may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signs {
    /// `Σ_i ±α_i`, and with an offset `+ z`: binary-coded, bit `i` of a code saying the sign of `α_i`.
    Planes {
        /// How many `α`, 1 to 8.
        count: u8,
        /// Whether there is a `z`.
        has_offset: bool,
    },
    /// `−α`, 0, `α`.
    Ternary,
    /// `lo`, 0, `hi`.
    Range,
}

impl Signs {
    /// Levels of a group.
    pub fn levels(self) -> usize {
        match self {
            Self::Planes { count, .. } => 1 << count,
            Self::Ternary | Self::Range => 3,
        }
    }

    /// Numbers of a group.
    pub fn numbers(self) -> usize {
        match self {
            Self::Planes { count, has_offset } => usize::from(count) + usize::from(has_offset),
            Self::Ternary => 1,
            Self::Range => 2,
        }
    }

    /// By how much number `i` is in the level of code `q`: −1, 0 or 1.
    pub fn factor(self, q: usize, i: usize) -> f32 {
        match self {
            Self::Planes { count, .. } if i < usize::from(count) => 2.0 * (q >> i & 1) as f32 - 1.0,
            Self::Planes { .. } => 1.0,
            Self::Ternary => q as f32 - 1.0,
            Self::Range => f32::from(u8::from(q == 2 * i)),
        }
    }

    /// What code `q` stands for under the numbers of its group: their sum with those factors, in order.
    pub fn level(self, q: usize, numbers: &[f32]) -> f32 {
        numbers.iter().enumerate().fold(0.0, |sum, (i, n)| sum + self.factor(q, i) * n)
    }

    /// Bytes of a row.
    pub fn row_bytes(self, cols: usize) -> usize {
        match self {
            Self::Planes { count, .. } => packed_len(cols, count),
            Self::Ternary | Self::Range => cols.div_ceil(TRITS),
        }
    }

    fn pack(self, codes: &[u8], out: &mut [u8]) {
        match self {
            Self::Planes { count, .. } => pack_bits(codes, count, out),
            Self::Ternary | Self::Range => {
                for (codes, byte) in codes.chunks(TRITS).zip(out) {
                    *byte = codes.iter().rev().fold(0, |sum, q| 3 * sum + q);
                }
            }
        }
    }

    fn unpack(self, packed: &[u8], out: &mut [u8]) {
        match self {
            Self::Planes { count, .. } => unpack_bits(packed, count, out),
            Self::Ternary | Self::Range => {
                for (codes, byte) in out.chunks_mut(TRITS).zip(packed) {
                    let mut rest = *byte;
                    codes.iter_mut().for_each(|q| (*q, rest) = (rest % 3, rest / 3));
                }
            }
        }
    }
}

/// Three-valued codes of a byte, the first in the lowest place of base 3.
const TRITS: usize = 5;

/// What codes of signs look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SignGrid {
    /// Which sums are levels.
    pub signs: Signs,
    /// Which weights share numbers: rows, or columns of a row.
    pub group: Group,
    /// Type of the stored numbers.
    pub scale: ScaleType,
}

/// Codes `[rows, cols]` of levels that are sums of few numbers of a group: `W[r, c] = Σ_i M[q, i] · n[r, k, i]`,
/// `M` of −1, 0 and 1 ([`Signs::factor`]).
#[derive(Clone, Debug, PartialEq)]
pub struct SignCodes {
    rows: usize,
    cols: usize,
    grid: SignGrid,
    packed: Vec<u8>,
    /// `[rows, groups, numbers]`.
    numbers: Scales,
}

impl SignCodes {
    /// Takes unpacked codes `[rows · cols]`, and numbers `[rows · groups · numbers]` that the scale type holds exactly.
    ///
    /// # Errors
    /// As [`from_packed`](Self::from_packed), or if a code is beyond the levels.
    pub fn new(rows: usize, cols: usize, grid: SignGrid, codes: &[u8], numbers: &[f32]) -> Result<Self> {
        if codes.len() != rows * cols || codes.iter().any(|q| usize::from(*q) >= grid.signs.levels()) {
            return Err(Error::input(format!(
                "holds a code beyond {} levels, or not {rows} × {cols}",
                grid.signs.levels()
            )));
        }
        let row_bytes = grid.signs.row_bytes(cols);
        let mut packed = vec![0; rows * row_bytes];
        for (row, out) in codes.chunks_exact(cols.max(1)).zip(packed.chunks_exact_mut(row_bytes.max(1))) {
            grid.signs.pack(row, out);
        }
        Self::from_packed(rows, cols, grid, packed, numbers)
    }

    /// Takes packed rows.
    ///
    /// # Errors
    /// If a size is wrong, the group does not divide, a byte is beyond five three-valued codes, or a number is none.
    pub fn from_packed(rows: usize, cols: usize, grid: SignGrid, packed: Vec<u8>, numbers: &[f32]) -> Result<Self> {
        let SignGrid { signs, group, scale } = grid;
        if matches!(signs, Signs::Planes { count, .. } if !(1..=8).contains(&count)) {
            return Err(Error::input("signs of 1 to 8 numbers are possible"));
        }
        if group == Group::Tensor {
            return Err(Error::input("signs have numbers for rows or groups of columns, not one for a matrix"));
        }
        group.check(cols)?;
        let count = group.count(rows, cols) * signs.numbers();
        if packed.len() != rows * signs.row_bytes(cols) || numbers.len() != count {
            return Err(Error::input(format!(
                "{} bytes of signs and {} numbers for [{rows}, {cols}], where {} and {count} are needed",
                packed.len(),
                numbers.len(),
                rows * signs.row_bytes(cols)
            )));
        }
        if signs.levels() == 3 && packed.iter().any(|b| *b >= 243) {
            return Err(Error::input("a byte of three-valued codes is above 242"));
        }
        if !numbers.iter().all(|n| n.is_finite()) {
            return Err(Error::input("a level of signs is no number"));
        }
        Ok(Self { rows, cols, grid, packed, numbers: Scales::new(scale, numbers) })
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// What the codes look like.
    pub fn grid(&self) -> SignGrid {
        self.grid
    }

    /// The packed codes, row by row.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// The numbers of all groups, `[rows, groups, numbers]`.
    pub fn numbers(&self) -> &Scales {
        &self.numbers
    }

    /// The codes of row `r`: below [`Signs::levels`].
    pub fn row_codes(&self, r: usize, out: &mut [u8]) {
        let row_bytes = self.grid.signs.row_bytes(self.cols);
        self.grid.signs.unpack(&self.packed[r * row_bytes..(r + 1) * row_bytes], out);
    }

    fn numbers_per_row(&self) -> usize {
        self.grid.group.per_row(self.cols) * self.grid.signs.numbers()
    }

    /// Decodes rows `rows` into `out[rows.len() · cols]`.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let signs = self.grid.signs;
        let (width, per_row) = (self.grid.group.width(self.cols), self.numbers_per_row());
        let (mut codes, mut levels, mut numbers) = (vec![0; self.cols], vec![0.0; signs.levels()], vec![0.0; per_row]);
        for (r, row) in rows.zip(out.chunks_exact_mut(self.cols)) {
            self.row_codes(r, &mut codes);
            numbers.iter_mut().enumerate().for_each(|(i, n)| *n = self.numbers.get(r * per_row + i));
            let numbers = numbers.chunks_exact(signs.numbers());
            for ((values, codes), numbers) in row.chunks_mut(width).zip(codes.chunks(width)).zip(numbers) {
                levels.iter_mut().enumerate().for_each(|(q, l)| *l = signs.level(q, numbers));
                values.iter_mut().zip(codes).for_each(|(v, q)| *v = levels[usize::from(*q)]);
            }
        }
    }

    /// The same codes with these rows, in this order.
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        let (row_bytes, per_row) = (self.grid.signs.row_bytes(self.cols), self.numbers_per_row());
        Self {
            rows: rows.len(),
            packed: crate::group::pick(&self.packed, rows, row_bytes, false),
            numbers: self.numbers.select_rows(rows, per_row, false),
            ..*self
        }
    }

    /// The rows of several matrices in one; `None` where grids or widths differ.
    pub fn stack(parts: &[&Self]) -> Option<Self> {
        let (first, rest) = parts.split_first()?;
        if !rest.iter().all(|p| p.grid == first.grid && p.cols == first.cols) {
            return None;
        }
        Some(Self {
            rows: parts.iter().map(|p| p.rows).sum(),
            packed: parts.iter().flat_map(|p| p.packed.iter().copied()).collect(),
            numbers: Scales::stack(parts.iter().map(|p| &p.numbers))?,
            ..**first
        })
    }

    /// Everything stored, in bits.
    pub fn stored_bits(&self) -> u64 {
        8 * self.packed.len() as u64 + self.numbers.stored_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(signs: Signs, rows: usize, cols: usize, group: Group) -> SignCodes {
        let grid = SignGrid { signs, group, scale: ScaleType::F16 };
        let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 7 % signs.levels()) as u8).collect();
        let numbers: Vec<f32> = (0..group.count(rows, cols) * signs.numbers()).map(|i| 0.5 + i as f32 / 8.0).collect();
        SignCodes::new(rows, cols, grid, &codes, &numbers).unwrap()
    }

    const ALL: [Signs; 5] = [
        Signs::Planes { count: 1, has_offset: true },
        Signs::Planes { count: 3, has_offset: false },
        Signs::Planes { count: 8, has_offset: true },
        Signs::Ternary,
        Signs::Range,
    ];

    #[test]
    fn levels_are_what_they_are_called() {
        let levels = |signs: Signs, numbers: &[f32]| -> Vec<f32> {
            (0..signs.levels()).map(|q| signs.level(q, numbers)).collect()
        };
        let planes = Signs::Planes { count: 2, has_offset: true };
        assert_eq!(levels(planes, &[1.0, 2.0, 0.5]), [-2.5, -0.5, 1.5, 3.5]);
        assert_eq!(levels(Signs::Ternary, &[2.0]), [-2.0, 0.0, 2.0]);
        assert_eq!(levels(Signs::Range, &[-3.0, 1.0]), [-3.0, 0.0, 1.0]);
    }

    /// A uniform grid is a sum of signs (LUT-GEMM, section 3.1).
    #[test]
    fn integers_are_sums_of_signs() {
        let (s, z) = (0.25, 3.0);
        let numbers: Vec<f32> = (0..4).map(|i| s * 2f32.powi(i - 1)).chain([s * (7.5 - z)]).collect();
        let signs = Signs::Planes { count: 4, has_offset: true };
        (0..16).for_each(|q| assert_eq!(signs.level(q, &numbers), s * (q as f32 - z)));
    }

    #[test]
    fn rows_come_back_alone_picked_and_put_together() {
        for signs in ALL {
            for (cols, group) in [(12, Group::Columns(4)), (13, Group::Row)] {
                let all = codes(signs, 5, cols, group);
                let mut values = vec![0.0; 5 * cols];
                all.decode_rows(0..5, &mut values);
                let (upper, lower) = (all.select_rows(&[0, 1]), all.select_rows(&[2, 3, 4]));
                assert_eq!(SignCodes::stack(&[&upper, &lower]).unwrap(), all);
                let mut row = vec![0.0; cols];
                all.decode_rows(3..4, &mut row);
                assert_eq!(row, values[3 * cols..4 * cols], "{signs:?}");
                // The codes, from what they decode to.
                let numbers = |r: usize, c: usize| {
                    let k = r * group.per_row(cols) + c / group.width(cols);
                    (k * signs.numbers()..(k + 1) * signs.numbers()).map(|i| all.numbers().get(i)).collect::<Vec<f32>>()
                };
                for (i, v) in values.iter().enumerate() {
                    assert_eq!(*v, signs.level(i * 7 % signs.levels(), &numbers(i / cols, i % cols)), "{signs:?} {i}");
                }
            }
        }
        assert_eq!(codes(Signs::Ternary, 2, 20, Group::Row).stored_bits(), 2 * (32 + 16));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let grid = SignGrid { signs: Signs::Ternary, group: Group::Row, scale: ScaleType::F16 };
        assert!(SignCodes::new(1, 5, grid, &[0, 1, 2, 3, 0], &[1.0]).is_err());
        assert!(SignCodes::from_packed(1, 5, grid, vec![243], &[1.0]).is_err());
        assert!(SignCodes::from_packed(1, 5, grid, vec![242], &[f32::NAN]).is_err());
        assert!(SignCodes::from_packed(1, 6, grid, vec![1], &[1.0]).is_err());
        let tensor = SignGrid { group: Group::Tensor, ..grid };
        assert!(SignCodes::from_packed(1, 5, tensor, vec![0], &[1.0]).is_err());
    }
}
