//! Blocks of 32 weights as integer codes in groups of 32.

use half::f16;

use super::{GgmlBlocks, GgmlType, f16_at};
use crate::{Group, IntCodes, IntGrid, ScaleType, Zeros};

const GROUP: usize = 32;

impl GgmlBlocks {
    /// Integer codes that stand for the very numbers of the blocks: Q4_0, Q5_0 and Q8_0 become symmetric codes, Q4_1 and
    /// Q5_1 codes with offsets; the other types have none.
    pub fn to_codes(&self) -> Option<IntCodes> {
        let (bits, has_offsets) = match self.kind {
            GgmlType::Q4_0 => (4, false),
            GgmlType::Q4_1 => (4, true),
            GgmlType::Q5_0 => (5, false),
            GgmlType::Q5_1 => (5, true),
            GgmlType::Q8_0 => (8, false),
            _ => return None,
        };
        let middle = if has_offsets { 0.0 } else { f32::from(1u16 << (bits - 1)) };
        let groups = self.rows * self.cols / GROUP;
        let (mut codes, mut scales, mut offsets) =
            (vec![0; self.rows * self.cols], Vec::with_capacity(groups), Vec::new());
        let mut integers = [0.0; GROUP];
        for (block, codes) in self.bytes.chunks_exact(self.kind.block_bytes()).zip(codes.as_chunks_mut::<GROUP>().0) {
            scales.push(f16_at(block, 0));
            // With the scale 1 and the offset 0, the decoder gives the integers.
            let mut unit = block.to_vec();
            unit[..2].copy_from_slice(&f16::ONE.to_le_bytes());
            if has_offsets {
                offsets.push(f16_at(block, 2));
                unit[2..4].fill(0);
            }
            super::decode_row(self.kind, &unit, &mut integers);
            codes.iter_mut().zip(integers).for_each(|(code, q)| *code = (q + middle) as u8);
        }
        let zeros = if has_offsets { Zeros::Offsets(offsets.into()) } else { Zeros::Middle };
        let grid = IntGrid { bits, group: Group::Columns(GROUP), symmetric: !has_offsets, scale: ScaleType::F16 };
        IntCodes::new(self.rows, self.cols, grid, &codes, scales, zeros).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn codes_stand_for_the_numbers_of_the_blocks(seed: u64) {
            let (rows, cols) = (3, 64);
            for kind in GgmlType::ALL {
                let Some(row_bytes) = kind.row_bytes(cols) else { continue };
                let noise = |i: usize| (seed ^ i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
                let mut bytes: Vec<u8> = (0..rows * row_bytes).map(|i| noise(i) as u8).collect();
                for block in bytes.chunks_exact_mut(kind.block_bytes()) {
                    // Finite scales and offsets.
                    kind.f16_fields().iter().for_each(|at| block[at + 1] &= 0xbf);
                }
                let blocks = GgmlBlocks::new(kind, rows, cols, bytes.into()).unwrap();
                let Some(codes) = blocks.to_codes() else { continue };
                let (mut a, mut b) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
                blocks.decode_rows(0..rows, &mut a);
                codes.decode_rows(0..rows, &mut b);
                prop_assert_eq!(a, b);
            }
        }
    }
}
