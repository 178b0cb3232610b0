use std::ops::Range;

use half::f16;

use crate::dtype::wide;
use crate::group::pick;
use crate::{Error, Result, pack_bits, packed_len};

/// Few entries of a matrix `[rows, cols]`, row by row: what is added to the decoded codes.
///
/// Where they are is one stream of [`Gaps`] through the whole matrix, so that rows with few entries cost nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse {
    shape: [usize; 2],
    gaps: Gaps,
    values: SparseValues,
    /// Where the first entry of each [`BLOCK`](Self::BLOCK) rows, or of later ones, is read.
    marks: Vec<Cursor>,
}

/// Numbers of `bits` bits, packed: the greatest says that so many weights, row after row, are no entries; each other
/// that the weight behind so many is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gaps {
    /// 1 (a bitmap) to 8: the most gaps fit into 8 where one weight in a hundred is an entry, into 4 where one in ten is.
    pub bits: u8,
    /// The bit stream.
    pub packed: Vec<u8>,
}

/// What the entries are.
#[derive(Clone, Debug, PartialEq)]
pub enum SparseValues {
    /// 16 bits each.
    F16(Vec<f16>),
    /// 8 bits each, times a scale.
    Int8 {
        /// By entry.
        codes: Vec<i8>,
        /// By row, or one for all.
        scales: Vec<f16>,
    },
}

/// Where a reader of gaps stands: the next gap, the next entry, and the weight behind all that was read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cursor {
    gap: usize,
    entry: usize,
    place: usize,
}

impl Gaps {
    /// Of entries at rising `places`, in as many bits as make the stream shortest.
    fn of(places: &[usize]) -> Self {
        let gaps = || (0..places.len()).map(|i| if i == 0 { places[0] } else { places[i] - places[i - 1] - 1 });
        let count = |bits: u8| gaps().map(|gap| gap / most(bits) + 1).sum::<usize>();
        let bits = (1..=8).min_by_key(|bits| count(*bits) * usize::from(*bits)).unwrap_or(8);
        let of_gap = |gap| std::iter::repeat_n(most(bits), gap / most(bits)).chain([gap % most(bits)]);
        let numbers: Vec<u8> = gaps().flat_map(of_gap).map(|n| n as u8).collect();
        let mut packed = vec![0; packed_len(numbers.len(), bits)];
        pack_bits(&numbers, bits, &mut packed);
        Self { bits, packed }
    }

    /// The place of the next entry; none where the stream ends.
    #[inline]
    fn next(&self, at: &mut Cursor) -> Option<usize> {
        loop {
            let bit = at.gap * usize::from(self.bits);
            let bytes = [*self.packed.get(bit / 8)?, self.packed.get(bit / 8 + 1).copied().unwrap_or(0)];
            let gap = usize::from(u16::from_le_bytes(bytes) >> (bit % 8)) & most(self.bits);
            (at.gap, at.place) = (at.gap + 1, at.place + gap);
            if gap < most(self.bits) {
                (at.entry, at.place) = (at.entry + 1, at.place + 1);
                return Some(at.place - 1);
            }
        }
    }
}

/// The greatest number of so many bits.
#[inline]
fn most(bits: u8) -> usize {
    (1 << bits) - 1
}

impl SparseValues {
    /// How many there are.
    fn len(&self) -> usize {
        match self {
            Self::F16(values) => values.len(),
            Self::Int8 { codes, .. } => codes.len(),
        }
    }

    /// Entry `i`, which lies in row `r`.
    #[inline]
    fn get(&self, r: usize, i: usize) -> f32 {
        match self {
            Self::F16(values) => wide(values[i]),
            Self::Int8 { codes, scales } => wide(scales[if scales.len() == 1 { 0 } else { r }]) * f32::from(codes[i]),
        }
    }
}

impl Sparse {
    /// Rows that are found at once, from which on the others are.
    pub const BLOCK: usize = 64;

    /// Takes entries at `places` of a matrix `[rows, cols]`: `row · cols + column`, rising.
    ///
    /// # Errors
    /// As [`read`](Self::read), and if the places do not rise.
    pub fn new(shape: [usize; 2], places: &[usize], values: SparseValues) -> Result<Self> {
        if !places.is_sorted_by(|a, b| a < b) || places.len() != values.len() {
            return Err(Error::internal("sparse entries out of order"));
        }
        Self::read(shape, Gaps::of(places), values)
    }

    /// Takes what [`parts`](Self::parts) gave.
    ///
    /// # Errors
    /// If there are not as many gaps as values, an entry is beyond the matrix, or a value is no number.
    pub fn read(shape: [usize; 2], gaps: Gaps, values: SparseValues) -> Result<Self> {
        let [rows, cols] = shape;
        if !(1..=8).contains(&gaps.bits) {
            return Err(Error::input(format!(
                "has sparse entries behind gaps of {} bits, where 1 to 8 can be",
                gaps.bits
            )));
        }
        let (mut at, mut marks) = (Cursor::default(), Vec::new());
        while at.entry < values.len() {
            let before = at;
            let place = gaps.next(&mut at).filter(|place| *place < rows.saturating_mul(cols));
            let Some(place) = place else {
                return Err(Error::input("has more sparse values than places for them in the matrix"));
            };
            marks.resize(marks.len().max(place / cols / Self::BLOCK + 1), before);
        }
        if gaps.packed.len() != packed_len(at.gap, gaps.bits) {
            return Err(Error::input("has fewer sparse values than gaps between them"));
        }
        let is_finite = match &values {
            SparseValues::F16(values) => values.iter().all(|v| v.is_finite()),
            SparseValues::Int8 { scales, .. } => {
                (scales.len() == rows || scales.len() == 1) && scales.iter().all(|s| s.is_finite())
            }
        };
        if !is_finite {
            return Err(Error::input("a sparse entry is no number that f16 holds"));
        }
        Ok(Self { shape, gaps, values, marks })
    }

    /// Rows and columns of the matrix.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// How many entries there are.
    pub fn count(&self) -> usize {
        self.values.len()
    }

    /// Where the entries are, and what they are.
    pub fn parts(&self) -> (&Gaps, &SparseValues) {
        (&self.gaps, &self.values)
    }

    /// Calls `f(row, column, value)` for each entry of these rows, in order.
    #[inline]
    pub fn for_rows(&self, rows: Range<usize>, mut f: impl FnMut(usize, usize, f32)) {
        self.visit(rows, |r, c, i| f(r, c, self.values.get(r, i)));
    }

    /// Calls `f(row, column, entry)` for each entry of these rows, in order.
    #[inline]
    fn visit(&self, rows: Range<usize>, mut f: impl FnMut(usize, usize, usize)) {
        let (block, cols) = (rows.start / Self::BLOCK, self.shape[1]);
        let Some(mut at) = self.marks.get(block).copied() else { return };
        let (mut r, mut begin) = (block * Self::BLOCK, block * Self::BLOCK * cols);
        while at.entry < self.count() {
            let entry = at.entry;
            let Some(place) = self.gaps.next(&mut at) else { return };
            while place >= begin + cols {
                (r, begin) = (r + 1, begin + cols);
            }
            if r >= rows.end {
                return;
            }
            if r >= rows.start {
                f(r, place - begin, entry);
            }
        }
    }

    /// Adds rows `rows` to `out[rows.len() · cols]`.
    pub fn add_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let (first, cols) = (rows.start, self.shape[1]);
        self.for_rows(rows, |r, c, v| out[(r - first) * cols + c] += v);
    }

    /// The same entries with these rows, in this order.
    ///
    /// # Errors
    /// None where the rows are the matrix's.
    pub fn select_rows(&self, rows: &[usize]) -> Result<Self> {
        let (mut places, mut entries) = (Vec::new(), Vec::new());
        for (new, r) in rows.iter().enumerate() {
            self.visit(*r..r + 1, |_, c, i| {
                places.push(new * self.shape[1] + c);
                entries.push(i);
            });
        }
        let values = match &self.values {
            SparseValues::F16(values) => SparseValues::F16(entries.iter().map(|i| values[*i]).collect()),
            SparseValues::Int8 { codes, scales } => SparseValues::Int8 {
                codes: entries.iter().map(|i| codes[*i]).collect(),
                scales: pick(scales, rows, 1, scales.len() == 1),
            },
        };
        Self::new([rows.len(), self.shape[1]], &places, values)
    }

    /// Everything stored, in bits: gaps, a byte for how wide they are, values and scales.
    pub fn stored_bits(&self) -> u64 {
        let values = match &self.values {
            SparseValues::F16(values) => 16 * values.len(),
            SparseValues::Int8 { codes, scales } => 8 * codes.len() + 16 * scales.len(),
        };
        (8 * (1 + self.gaps.packed.len()) + values) as u64
    }

    /// Bytes that it takes in memory: the marks are made when it is read.
    pub fn resident_bytes(&self) -> usize {
        self.stored_bits().div_ceil(8) as usize + size_of_val(&*self.marks)
    }

    /// Whether `count` entries of 8 bits in so many rows have scales for each row: where these cost little beside them.
    pub fn has_scales_of_rows(rows: usize, count: usize) -> bool {
        count >= 16 * rows
    }

    /// Bits that the gaps between `count` of `weights` weights take, where these lie by chance.
    pub fn expected_gap_bits(weights: usize, count: usize) -> u64 {
        let none = 1.0 - (count as f64 / weights.max(1) as f64).min(1.0);
        // A gap is at least the greatest number by the chance that so many weights are none.
        let each = |bits: u8| f64::from(bits) / (1.0 - none.powi(most(bits) as i32));
        8 + (count as f64 * (1..=8).map(each).fold(f64::INFINITY, f64::min)).round() as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn halves(v: &[f32]) -> Vec<f16> {
        v.iter().copied().map(f16::from_f32).collect()
    }

    fn ones(n: usize) -> SparseValues {
        SparseValues::F16(vec![f16::ONE; n])
    }

    #[test]
    fn the_example_of_the_documentation() {
        let values = || SparseValues::F16(halves(&[1.0, -2.0, 0.5]));
        let sparse = Sparse::new([3, 10], &[0, 9, 24], values()).unwrap();
        // Gaps of 0, 8 and 14, which four bits just hold.
        assert_eq!(sparse.parts().0, &Gaps { bits: 4, packed: vec![0x80, 0x0e] });
        assert_eq!(sparse.stored_bits(), 8 + 16 + 3 * 16);
        let mut dense = [0.0; 30];
        sparse.add_rows(0..3, &mut dense);
        assert_eq!((dense[0], dense[9], dense[24], dense.iter().sum::<f32>()), (1.0, -2.0, 0.5, -0.5));
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let gaps = |bits, packed: &[u8]| Gaps { bits, packed: packed.to_vec() };
        assert!(Sparse::new([1, 4], &[3, 1], ones(2)).is_err() && Sparse::new([1, 4], &[1, 4], ones(2)).is_err());
        assert!(Sparse::read([1, 4], gaps(8, &[1, 1]), ones(2)).is_ok());
        assert!(Sparse::read([1, 4], gaps(8, &[1, 1]), ones(1)).is_err());
        assert!(Sparse::read([1, 4], gaps(8, &[1, 1]), ones(3)).is_err());
        assert!(Sparse::read([1, 4], gaps(8, &[1, 255]), ones(2)).is_err());
        assert!(Sparse::read([1, 4], gaps(9, &[1, 1]), ones(2)).is_err());
        assert!(Sparse::read([0, 0], gaps(8, &[0]), ones(1)).is_err());
        assert!(Sparse::read([1, 4], gaps(8, &[0]), SparseValues::F16(vec![f16::INFINITY])).is_err());
        let scales = SparseValues::Int8 { codes: vec![1], scales: halves(&[1.0, 2.0]) };
        assert!(Sparse::read([3, 4], gaps(8, &[0]), scales).is_err());
    }

    proptest! {
        #[test]
        fn rows_are_found_whatever_lies_between(
            rows in 1usize..200,
            cols in 1usize..70,
            share in prop::sample::select(vec![0.0, 0.001, 0.01, 0.1, 0.5, 1.0]),
            is_int8: bool,
            has_one_scale: bool,
            seed: u64,
        ) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) as f64 / (1u64 << 31) as f64
            };
            let places: Vec<usize> = (0..rows * cols).filter(|_| next() < share).collect();
            let codes: Vec<i8> = (0..places.len()).map(|i| (i % 251) as i8).collect();
            let scale = |r: usize| if has_one_scale { 3.0 } else { 1.0 + r as f32 };
            let scales = (0..if has_one_scale { 1 } else { rows }).map(|r| f16::from_f32(scale(r))).collect();
            let mut expected = vec![0.0; rows * cols];
            for (place, code) in places.iter().zip(&codes) {
                expected[*place] = f32::from(*code) * if is_int8 { scale(place / cols) } else { 1.0 };
            }
            let values = if is_int8 {
                SparseValues::Int8 { codes, scales }
            } else {
                SparseValues::F16(codes.iter().map(|c| f16::from_f32(f32::from(*c))).collect())
            };
            let sparse = Sparse::new([rows, cols], &places, values).unwrap();
            for range in [0..rows, rows / 2..rows, rows / 3..rows / 2, rows - 1..rows] {
                let mut out = vec![0.0; range.len() * cols];
                sparse.add_rows(range.clone(), &mut out);
                prop_assert_eq!(&out, &expected[range.start * cols..range.end * cols]);
            }
            let picked: Vec<usize> = (0..rows).rev().step_by(3).collect();
            let mut out = vec![0.0; picked.len() * cols];
            sparse.select_rows(&picked).unwrap().add_rows(0..picked.len(), &mut out);
            for (row, r) in out.chunks(cols).zip(&picked) {
                prop_assert_eq!(row, &expected[r * cols..(r + 1) * cols]);
            }
        }
    }

    #[test]
    fn chance_tells_how_long_the_gaps_are() {
        let mut state = 7u64;
        for one_in in [10u64, 100, 1000] {
            let places: Vec<usize> = (0..1 << 20)
                .filter(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (state >> 33).is_multiple_of(one_in)
                })
                .collect();
            let sparse = Sparse::new([1 << 10, 1 << 10], &places, ones(places.len())).unwrap();
            let bits = sparse.stored_bits() - 16 * places.len() as u64;
            let ratio = bits as f64 / Sparse::expected_gap_bits(1 << 20, places.len()) as f64;
            assert!((0.99..1.01).contains(&ratio), "{ratio} with one in {one_in}");
        }
    }
}
