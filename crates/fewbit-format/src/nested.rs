use std::sync::LazyLock;

use crate::{Error, Result, ScaleType, Scales, pack_bits, packed_len};

/// Numbers of groups, one row of them for each row of a matrix, as they are stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// Each for itself.
    Plain(Scales),
    /// As codes of a second level.
    Nested(Nested),
}

impl From<Vec<f32>> for Numbers {
    fn from(values: Vec<f32>) -> Self {
        Self::Plain(Scales::new(ScaleType::F32, &values))
    }
}

impl FromIterator<f32> for Numbers {
    fn from_iter<I: IntoIterator<Item = f32>>(values: I) -> Self {
        Self::from(values.into_iter().collect::<Vec<f32>>())
    }
}

impl Numbers {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(values) => values.len(),
            Self::Nested(nested) => nested.rows * nested.per_row,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number `i`.
    #[inline]
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Self::Plain(values) => values.get(i),
            Self::Nested(nested) => nested.get(i),
        }
    }

    /// All of them.
    pub fn values(&self) -> Vec<f32> {
        (0..self.len()).map(|i| self.get(i)).collect()
    }

    /// The numbers of row `r`, of which each has `out.len()`.
    pub(crate) fn read_row(&self, r: usize, out: &mut [f32]) {
        match self {
            Self::Plain(values) => values.read(r * out.len(), out),
            Self::Nested(nested) => nested.read_row(r, out),
        }
    }

    /// The same, held in the type of the scales, which must hold them exactly.
    pub(crate) fn held_as(self, kind: ScaleType) -> Self {
        match self {
            Self::Plain(values) if values.kind() != kind => Self::Plain(Scales::new(kind, &values.values())),
            Self::Plain(_) | Self::Nested(_) => self,
        }
    }

    /// The numbers, where each is stored for itself.
    pub fn plain(&self) -> Option<&Scales> {
        if let Self::Plain(values) = self { Some(values) } else { None }
    }

    /// Whether they are numbers of so many rows.
    pub(crate) fn has_shape(&self, rows: usize, per_row: usize) -> bool {
        self.nested().is_none_or(|n| n.shape() == [rows, per_row])
    }

    /// The codes of a second level, if they are that.
    pub fn nested(&self) -> Option<&Nested> {
        if let Self::Nested(nested) = self { Some(nested) } else { None }
    }

    /// Everything stored, in bits.
    pub fn stored_bits(&self) -> u64 {
        match self {
            Self::Plain(values) => values.stored_bits(),
            Self::Nested(nested) => nested.stored_bits(),
        }
    }

    /// Those at these places, zero where there is no place; numbers of a second level stay where they are.
    pub(crate) fn picked(&self, places: impl Iterator<Item = Option<usize>>) -> Self {
        match self {
            Self::Plain(values) => Self::Plain(values.picked(places)),
            Self::Nested(_) => self.clone(),
        }
    }

    /// The numbers of these rows of the matrix; `None` if blocks would be parted.
    pub(crate) fn select_rows(&self, rows: &[usize], per_row: usize, is_shared: bool) -> Option<Self> {
        match self {
            Self::Plain(values) => Some(Self::Plain(values.select_rows(rows, per_row, is_shared))),
            Self::Nested(nested) => nested.select_rows(rows).map(Self::Nested),
        }
    }

    /// The numbers of several matrices in one; `None` where they do not fit together.
    pub(crate) fn stack(parts: &[&Self]) -> Option<Self> {
        if let Some(plain) = parts.iter().map(|p| p.plain()).collect::<Option<Vec<_>>>() {
            return Scales::stack(plain.into_iter()).map(Self::Plain);
        }
        Nested::stack(&parts.iter().map(|p| p.nested()).collect::<Option<Vec<_>>>()?).map(Self::Nested)
    }
}

/// Which numbers share parameters of the second level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blocks {
    /// Those of so many consecutive rows, for the same group of columns.
    Rows(usize),
    /// So many in a row, row after row.
    Flat(usize),
}

/// What a code of the second level stands for before scale and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Levels {
    /// Itself.
    Codes,
    /// A number of the dynamic map of 8 bits, which is finer near zero ([`dynamic_map`]).
    Dynamic,
}

/// bitsandbytes' dynamic map of 8 bits with a sign, ascending: for each of seven decades below 1, one, two, four … 64 even
/// steps of `0.1 … 1`, at their middles; 0; and 1.
pub fn dynamic_map() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| {
        let mut map = vec![0.0f32, 1.0];
        for decade in 0..7 {
            let steps = 1 << decade;
            for k in 0..steps {
                let middle = 0.1 + 0.9 * (f64::from(k) + 0.5) / f64::from(steps);
                let value = (middle * 10f64.powi(decade - 6)) as f32;
                map.extend([value, -value]);
            }
        }
        map.sort_by(f32::total_cmp);
        std::array::from_fn(|i| map[i])
    });
    &MAP
}

/// What the codes of a second level mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NestedGrid {
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// What a code stands for.
    pub levels: Levels,
    /// Which numbers share parameters.
    pub blocks: Blocks,
    /// Type of the stored parameters.
    pub scale: ScaleType,
}

impl NestedGrid {
    /// Blocks of `[rows, per_row]` numbers.
    pub fn count(&self, rows: usize, per_row: usize) -> usize {
        match self.blocks {
            Blocks::Rows(height) => rows.div_ceil(height) * per_row,
            Blocks::Flat(len) => (rows * per_row).div_ceil(len),
        }
    }

    /// The block of number `i`.
    #[inline]
    pub fn block_of(&self, i: usize, per_row: usize) -> usize {
        match self.blocks {
            Blocks::Rows(height) => i / per_row / height * per_row + i % per_row,
            Blocks::Flat(len) => i / len,
        }
    }

    /// Rows that stand or fall together: blocks begin at multiples of it. `None` where blocks and rows have no common end.
    fn height(&self, per_row: usize) -> Option<usize> {
        match self.blocks {
            Blocks::Rows(height) => Some(height),
            Blocks::Flat(len) if per_row.is_multiple_of(len) => Some(1),
            Blocks::Flat(len) => len.is_multiple_of(per_row).then(|| len / per_row),
        }
    }
}

/// Numbers `[rows, per_row]` as codes of few bits: `n = s[block] · L(code) + m[block]`, `L` the code itself or its
/// number of a map.
///
/// The scales of scales of SpQR (3 bits over 16 rows), of QLoRA's double quantization (the dynamic map over 256 in a
/// row, one offset for all) and of ggml's K-quants.
#[derive(Clone, Debug, PartialEq)]
pub struct Nested {
    rows: usize,
    per_row: usize,
    grid: NestedGrid,
    /// One bit stream.
    packed: Vec<u8>,
    /// By block.
    scales: Scales,
    /// By block, or one for all, or none.
    offsets: Scales,
}

impl Nested {
    /// Takes unpacked codes `[rows · per_row]`, scales by block that the grid's type holds exactly, and offsets by block,
    /// one or none.
    ///
    /// # Errors
    /// If a size is wrong, a code is beyond the bits, or a number is none.
    pub fn new(
        [rows, per_row]: [usize; 2],
        grid: NestedGrid,
        codes: &[u8],
        scales: &[f32],
        offsets: &[f32],
    ) -> Result<Self> {
        if !(1..=8).contains(&grid.bits) {
            return Err(Error::input(format!("a second level of {} bits, where 1 to 8 are possible", grid.bits)));
        }
        if codes.iter().fold(0, |all, c| all | c) > ((1u32 << grid.bits) - 1) as u8 {
            return Err(Error::input(format!("the second level holds a code beyond {} bits", grid.bits)));
        }
        let mut packed = vec![0; packed_len(codes.len(), grid.bits)];
        pack_bits(codes, grid.bits, &mut packed);
        Self::from_packed([rows, per_row], grid, packed, scales, offsets)
    }

    /// As [`new`](Self::new), from a bit stream.
    ///
    /// # Errors
    /// As there.
    pub fn from_packed(
        [rows, per_row]: [usize; 2],
        grid: NestedGrid,
        packed: Vec<u8>,
        scales: &[f32],
        offsets: &[f32],
    ) -> Result<Self> {
        if grid.levels == Levels::Dynamic && grid.bits != 8 {
            return Err(Error::input(format!("the dynamic map has codes of 8 bits, not of {}", grid.bits)));
        }
        if !(1..=8).contains(&grid.bits) || matches!(grid.blocks, Blocks::Rows(0) | Blocks::Flat(0)) {
            return Err(Error::input("a second level of 1 to 8 bits in blocks that hold something is possible"));
        }
        let (numbers, blocks) = (rows * per_row, grid.count(rows, per_row));
        let fits = packed.len() == packed_len(numbers, grid.bits)
            && scales.len() == blocks
            && (offsets.len() <= 1 || offsets.len() == blocks);
        if !fits {
            return Err(Error::input(format!(
                "a second level of {numbers} numbers in {blocks} blocks has {} bytes of codes, {} scales and {} offsets",
                packed.len(),
                scales.len(),
                offsets.len()
            )));
        }
        if !scales.iter().chain(offsets).all(|v| v.is_finite()) {
            return Err(Error::input("a second level holds what is no number"));
        }
        let kind = if offsets.len() == 1 { ScaleType::F32 } else { grid.scale };
        let (scales, offsets) = (Scales::new(grid.scale, scales), Scales::new(kind, offsets));
        Ok(Self { rows, per_row, grid, packed, scales, offsets })
    }

    /// What the codes mean.
    pub fn grid(&self) -> NestedGrid {
        self.grid
    }

    /// `[rows, per_row]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.per_row]
    }

    /// The codes, one bit stream.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// Scales by block; offsets by block, one or none.
    pub fn parameters(&self) -> [&Scales; 2] {
        [&self.scales, &self.offsets]
    }

    /// The codes of row `r`, unpacked into `out[per_row]`.
    pub fn row_codes(&self, r: usize, out: &mut [u8]) {
        let first = r * self.per_row;
        out.iter_mut().enumerate().for_each(|(k, q)| *q = self.code(first + k) as u8);
    }

    /// What code `q` stands for under the scale and offset of a block: the one meaning of a code of the second level.
    #[inline]
    pub fn value(scale: f32, offset: Option<f32>, level: f32) -> f32 {
        let product = scale * level;
        offset.map_or(product, |m| product + m)
    }

    #[inline]
    fn code(&self, i: usize) -> usize {
        let (bits, at) = (usize::from(self.grid.bits), i * usize::from(self.grid.bits));
        let next = self.packed.get(at / 8 + 1).copied().unwrap_or(0);
        let word = u32::from(self.packed[at / 8]) | u32::from(next) << 8;
        (word >> (at % 8)) as usize & ((1 << bits) - 1)
    }

    /// What the code of number `i` says.
    #[inline]
    fn level(&self, i: usize) -> f32 {
        let q = self.code(i);
        match self.grid.levels {
            Levels::Codes => q as f32,
            Levels::Dynamic => dynamic_map()[q],
        }
    }

    /// The numbers of row `r`.
    fn read_row(&self, r: usize, out: &mut [f32]) {
        let at = r * self.per_row;
        if matches!(self.grid.blocks, Blocks::Flat(_)) || self.offsets.len() == 1 {
            out.iter_mut().enumerate().for_each(|(k, o)| *o = self.get(at + k));
            return;
        }
        // The blocks of a row lie side by side, and are read side by side.
        let first = self.grid.block_of(at, self.per_row);
        self.scales.read(first, out);
        let mut offsets = [0.0; 64];
        for (piece, out) in out.chunks_mut(offsets.len()).enumerate() {
            let from = piece * offsets.len();
            let offsets = &mut offsets[..if self.offsets.is_empty() { 0 } else { out.len() }];
            if !offsets.is_empty() {
                self.offsets.read(first + from, offsets);
            }
            for (k, o) in out.iter_mut().enumerate() {
                *o = Self::value(*o, offsets.get(k).copied(), self.level(at + from + k));
            }
        }
    }

    /// Number `i`.
    fn get(&self, i: usize) -> f32 {
        let (level, block) = (self.level(i), self.grid.block_of(i, self.per_row));
        let offset = match self.offsets.len() {
            0 => None,
            1 => Some(self.offsets.get(0)),
            _ => Some(self.offsets.get(block)),
        };
        Self::value(self.scales.get(block), offset, level)
    }

    fn select_rows(&self, rows: &[usize]) -> Option<Self> {
        let height = self.grid.height(self.per_row)?;
        let is_whole = |run: &[usize]| {
            run[0].is_multiple_of(height)
                && run.windows(2).all(|w| w[1] == w[0] + 1)
                && (run.len() == height || run[run.len() - 1] + 1 == self.rows)
        };
        if rows.is_empty() || !rows.chunks(height).all(is_whole) {
            return None;
        }
        let numbers = rows.iter().flat_map(|r| r * self.per_row..(r + 1) * self.per_row);
        let codes: Vec<u8> = numbers.map(|i| self.code(i) as u8).collect();
        let blocks: Vec<usize> = (rows.chunks(height))
            .flat_map(|run| {
                let first = self.grid.block_of(run[0] * self.per_row, self.per_row);
                let count = self.grid.count(run.len(), self.per_row);
                first..first + count
            })
            .collect();
        let picked = |v: &Scales| blocks.iter().map(|b| v.get(*b)).collect::<Vec<f32>>();
        let by_block = |v: &Scales| if v.len() > 1 { picked(v) } else { v.values() };
        let scales = picked(&self.scales);
        let shape = [rows.len(), self.per_row];
        Self::new(shape, self.grid, &codes, &scales, &by_block(&self.offsets)).ok()
    }

    fn stack(parts: &[&Self]) -> Option<Self> {
        let (last, whole) = parts.split_last()?;
        let height = last.grid.height(last.per_row)?;
        let is_alike = |p: &&Self| {
            let is_kind = p.grid == last.grid && p.per_row == last.per_row;
            let has_same = match (&p.offsets.values()[..], &last.offsets.values()[..]) {
                ([], []) => true,
                // One block in a part, several in another: which kind it is cannot be told apart from its number.
                ([a], [b]) => a == b && p.scales.len() > 1 && last.scales.len() > 1,
                (a, b) => a.len() == p.scales.len() && b.len() == last.scales.len(),
            };
            is_kind && has_same
        };
        if !parts.iter().all(is_alike) || !whole.iter().all(|p| p.rows.is_multiple_of(height)) {
            return None;
        }
        let codes: Vec<u8> = parts.iter().flat_map(|p| (0..p.rows * p.per_row).map(|i| p.code(i) as u8)).collect();
        let all = |of: fn(&Self) -> &Scales| parts.iter().flat_map(|p| of(p).values()).collect::<Vec<f32>>();
        let offsets = if last.offsets.len() == 1 { last.offsets.values() } else { all(|p| &p.offsets) };
        let rows = parts.iter().map(|p| p.rows).sum();
        Self::new([rows, last.per_row], last.grid, &codes, &all(|p| &p.scales), &offsets).ok()
    }

    /// Everything stored, in bits; an offset for all is f32.
    fn stored_bits(&self) -> u64 {
        let by_block = self.scales.len() + if self.offsets.len() > 1 { self.offsets.len() } else { 0 };
        let single = usize::from(self.offsets.len() == 1);
        8 * self.packed.len() as u64 + by_block as u64 * self.grid.scale.bits() + 32 * single as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(count: usize) -> Vec<u8> {
        (0..count).map(|i| (i * 5 % 8) as u8).collect()
    }

    fn nested(blocks: Blocks, [rows, per_row]: [usize; 2], has_offsets: bool) -> Nested {
        let grid = NestedGrid { bits: 3, levels: Levels::Codes, blocks, scale: ScaleType::F16 };
        let count = grid.count(rows, per_row);
        let scales: Vec<f32> = (0..count).map(|b| 0.5 + b as f32).collect();
        let offsets = if has_offsets { (0..count).map(|b| -(b as f32)).collect() } else { Vec::new() };
        Nested::new([rows, per_row], grid, &codes(rows * per_row), &scales, &offsets).unwrap()
    }

    #[test]
    fn numbers_are_scale_times_code_plus_offset() {
        let n = Numbers::Nested(nested(Blocks::Rows(2), [3, 2], true));
        // Codes 0 5 / 2 7 / 4 1; blocks 0 1 / 0 1 / 2 3.
        assert_eq!(n.values(), [0.0, 6.5, 1.0, 9.5, 8.0, 0.5]);
        assert_eq!(n.stored_bits(), 24 + 8 * 16);
        let grid = NestedGrid { bits: 8, levels: Levels::Dynamic, blocks: Blocks::Flat(4), scale: ScaleType::F32 };
        let n = Nested::new([3, 2], grid, &[0, 127, 191, 255, 255, 0], &[2.0, 4.0], &[10.0]).unwrap();
        let n = Numbers::Nested(n);
        let at = |q: usize| dynamic_map()[q];
        assert_eq!(n.values(), [2.0 * at(0) + 10.0, 10.0, 2.0 * at(191) + 10.0, 12.0, 14.0, 4.0 * at(0) + 10.0]);
        assert_eq!(n.stored_bits(), 48 + 2 * 32 + 32);
    }

    #[test]
    fn rows_read_as_their_numbers_do() {
        for has_offsets in [false, true] {
            for blocks in [Blocks::Rows(2), Blocks::Flat(4)] {
                let n = Numbers::Nested(nested(blocks, [3, 70], has_offsets));
                let mut row = vec![0.0; 70];
                for r in 0..3 {
                    n.read_row(r, &mut row);
                    assert_eq!(row, n.values()[r * 70..(r + 1) * 70], "{blocks:?}");
                }
            }
        }
    }

    #[test]
    fn the_dynamic_map_is_that_of_bitsandbytes() {
        let map = dynamic_map();
        assert!(map.windows(2).all(|w| w[0] < w[1]));
        assert_eq!((map[127], map[255]), (0.0, 1.0));
        // The ends, from bitsandbytes' `create_dynamic_map()`.
        for (q, value) in [(0, -0.992_968_75), (1, -0.978_906_3), (128, 5.5e-7), (254, 0.992_968_75)] {
            assert!((map[q] / value - 1.0).abs() < 1e-6, "{q}: {}", map[q]);
        }
    }

    #[test]
    fn rows_are_picked_and_put_together_in_whole_blocks() {
        for (blocks, per_row) in [(Blocks::Rows(4), 3), (Blocks::Flat(8), 2), (Blocks::Flat(2), 8)] {
            let all = Numbers::Nested(nested(blocks, [10, per_row], true));
            let at =
                |range: std::ops::Range<usize>| all.select_rows(&range.collect::<Vec<_>>(), per_row, false).unwrap();
            let (upper, lower) = (at(0..4), at(4..10));
            assert_eq!(Numbers::stack(&[&upper, &lower]).unwrap(), all, "{blocks:?}");
            assert_eq!([upper.values(), lower.values()].concat(), all.values(), "{blocks:?}");
        }
        let all = Numbers::Nested(nested(Blocks::Rows(4), [10, 3], true));
        assert!(all.select_rows(&[1, 0, 2, 3], 3, false).is_none());
        assert!(all.select_rows(&[8, 9, 0, 1, 2, 3], 3, false).is_none());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let grid = |bits, blocks| NestedGrid { bits, levels: Levels::Codes, blocks, scale: ScaleType::F16 };
        let new = |grid, codes: &[u8], scales: &[f32]| Nested::new([2, 2], grid, codes, scales, &[]);
        assert!(new(grid(3, Blocks::Rows(16)), &[0, 8, 0, 0], &[1.0; 2]).is_err());
        assert!(new(grid(3, Blocks::Rows(16)), &[0; 4], &[1.0; 3]).is_err());
        assert!(new(grid(3, Blocks::Rows(0)), &[0; 4], &[1.0; 2]).is_err());
        assert!(new(grid(9, Blocks::Rows(16)), &[0; 4], &[1.0; 2]).is_err());
        assert!(new(grid(3, Blocks::Flat(4)), &[0; 4], &[f32::NAN]).is_err());
    }
}
