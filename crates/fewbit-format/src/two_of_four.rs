use std::ops::Range;

use crate::group::pick;
use crate::{Error, Result, Storage};

/// A matrix `[rows, cols]` with two weights in every four consecutive columns of a row; the others are zero.
///
/// What there is lies side by side in a storage `[rows, cols/2]`, whose groups are half as wide; a bit for each column
/// says where, rows padded to bytes, the first column in the lowest bit (the `sparse-24-bitmask` of compressed-tensors).
#[derive(Clone, Debug)]
pub struct TwoOfFour {
    cols: usize,
    mask: Vec<u8>,
    kept: Box<Storage>,
}

impl TwoOfFour {
    /// Bytes of a row's mask.
    pub fn mask_bytes(cols: usize) -> usize {
        cols.div_ceil(8)
    }

    /// Takes the mask `[rows, ⌈cols/8⌉]` and what it keeps, `[rows, cols/2]`.
    ///
    /// # Errors
    /// If `cols` is no multiple of four, a size is wrong, or four columns do not have two bits.
    pub fn new(cols: usize, mask: Vec<u8>, kept: Storage) -> Result<Self> {
        let [rows, width] = kept.shape();
        let row_bytes = Self::mask_bytes(cols);
        if !cols.is_multiple_of(4) || width != cols / 2 || mask.len() != rows * row_bytes {
            return Err(Error::input(format!(
                "a mask of {} bytes and kept weights [{rows}, {width}] for {cols} columns, two of every four",
                mask.len()
            )));
        }
        if matches!(kept, Storage::TwoOfFour(_)) {
            return Err(Error::input("two of every four of two of every four is more than there is a place for"));
        }
        let pairs = |byte: u8| [byte & 15, byte >> 4].map(u8::count_ones);
        let is_right = |(i, byte): (usize, &u8)| {
            // Four columns alone in the last byte leave its upper half empty.
            let is_half = i % row_bytes == row_bytes - 1 && cols % 8 == 4;
            pairs(*byte) == [2, if is_half { 0 } else { 2 }]
        };
        if let Some((i, _)) = mask.iter().enumerate().find(|(i, byte)| !is_right((*i, byte))) {
            return Err(Error::input(format!("row {} has other than two weights in four columns", i / row_bytes)));
        }
        Ok(Self { cols, mask, kept: Box::new(kept) })
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.kept.shape()[0], self.cols]
    }

    /// The mask, row by row.
    pub fn mask(&self) -> &[u8] {
        &self.mask
    }

    /// What it keeps, `[rows, cols/2]`.
    pub fn kept(&self) -> &Storage {
        &self.kept
    }

    /// Decodes rows `rows` into `out[rows.len() · cols]`.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let (row_bytes, half) = (Self::mask_bytes(self.cols), self.cols / 2);
        let mut kept = vec![0.0; rows.len() * half];
        self.kept.decode_rows(rows.clone(), &mut kept);
        let masks = self.mask[rows.start * row_bytes..rows.end * row_bytes].chunks_exact(row_bytes.max(1));
        for ((row, kept), mask) in out.chunks_exact_mut(self.cols).zip(kept.chunks_exact(half)).zip(masks) {
            let mut next = kept.iter();
            for (c, value) in row.iter_mut().enumerate() {
                let is_kept = mask[c / 8] >> (c % 8) & 1 == 1;
                *value = if is_kept { next.next().copied().unwrap_or(0.0) } else { 0.0 };
            }
        }
    }

    /// The same with these rows, in this order.
    ///
    /// # Errors
    /// As [`Storage::select_rows`].
    pub fn select_rows(&self, rows: &[usize]) -> Result<Self> {
        let mask = pick(&self.mask, rows, Self::mask_bytes(self.cols), false);
        Ok(Self { cols: self.cols, mask, kept: Box::new(self.kept.select_rows(rows)?) })
    }

    /// The rows of several in one; `None` where they differ in more than rows.
    pub fn stack(parts: &[&Self]) -> Option<Self> {
        let first = parts.first()?;
        let kept: Vec<&Storage> = parts.iter().map(|p| &*p.kept).collect();
        let kept = Box::new(Storage::stack(&kept)?);
        let mask = parts.iter().flat_map(|p| p.mask.iter().copied()).collect();
        parts.iter().all(|p| p.cols == first.cols).then_some(Self { cols: first.cols, mask, kept })
    }

    /// Everything stored, in bits.
    pub fn stored_bits(&self) -> u64 {
        8 * self.mask.len() as u64 + self.kept.stored_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, Group, IntCodes, IntGrid, ScaleType, Tensor, Zeros};

    const MASKS: [u8; 6] = [0b0011, 0b0101, 0b1001, 0b0110, 0b1010, 0b1100];

    fn mask(rows: usize, cols: usize) -> Vec<u8> {
        let nibble = |r: usize, k: usize| if 4 * k < cols { MASKS[(r + 5 * k) % 6] } else { 0 };
        let bytes = (0..rows).flat_map(|r| (0..cols.div_ceil(8)).map(move |b| (r, 2 * b)));
        bytes.map(|(r, k)| nibble(r, k) | nibble(r, k + 1) << 4).collect()
    }

    fn ints(rows: usize, cols: usize) -> Storage {
        let grid = IntGrid { bits: 3, group: Group::Columns(2), symmetric: true, scale: ScaleType::F16 };
        let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 5 % 8) as u8).collect();
        let scales: Vec<f32> = (0..rows * cols / 2).map(|i| 0.5 + i as f32 / 4.0).collect();
        Storage::Int(IntCodes::new(rows, cols, grid, &codes, scales, Zeros::Middle).unwrap())
    }

    #[test]
    fn what_is_kept_comes_back_in_its_place_and_all_else_is_zero() {
        for cols in [12, 16] {
            let kept = ints(3, cols / 2);
            let all = TwoOfFour::new(cols, mask(3, cols), kept.clone()).unwrap();
            let (mut values, mut side) = (vec![f32::NAN; 3 * cols], vec![0.0; 3 * cols / 2]);
            all.decode_rows(0..3, &mut values);
            kept.decode_rows(0..3, &mut side);
            let mut next = side.iter();
            for (i, v) in values.iter().enumerate() {
                let (r, c) = (i / cols, i % cols);
                let is_kept = MASKS[(r + 5 * (c / 4)) % 6] >> (c % 4) & 1 == 1;
                assert_eq!(*v, if is_kept { *next.next().unwrap() } else { 0.0 }, "{r}, {c}");
            }
            let [upper, lower] = [&[0usize, 1][..], &[2]].map(|rows| all.select_rows(rows).unwrap());
            let again = TwoOfFour::stack(&[&upper, &lower]).unwrap();
            let mut row = vec![0.0; cols];
            again.decode_rows(2..3, &mut row);
            assert_eq!(row, values[2 * cols..]);
            assert_eq!(all.stored_bits(), 3 * 8 * cols.div_ceil(8) as u64 + kept.stored_bits());
        }
    }

    #[test]
    fn what_is_not_two_of_four_is_refused() {
        let (kept, right) = (ints(3, 6), mask(3, 12));
        assert!(TwoOfFour::new(12, right[1..].to_vec(), kept.clone()).is_err());
        assert!(TwoOfFour::new(16, mask(3, 16), kept.clone()).is_err());
        for wrong in [0b0111, 0b0001, 0] {
            let mut mask = right.clone();
            mask[2] = mask[2] & 0xf0 | wrong;
            let e = TwoOfFour::new(12, mask, kept.clone()).unwrap_err();
            assert!(e.to_string().contains("row 1"), "{e}");
        }
        let mut beyond = right.clone();
        beyond[1] |= 0b0101_0000;
        assert!(TwoOfFour::new(12, beyond, kept).is_err());
        let plain = Storage::Dense(Tensor::from_f32(Dtype::F16, &[1, 4], &[0.0; 4]).unwrap());
        let once = TwoOfFour::new(8, vec![0x33], plain).unwrap();
        assert!(TwoOfFour::new(16, vec![0x33, 0x33], Storage::TwoOfFour(once)).is_err());
    }
}
