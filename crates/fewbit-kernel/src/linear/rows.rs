//! Any integer storage as rows of `scale · code + offset` per group: what is repacked at load.

use fewbit_format::{GgmlBlocks, GgmlType, Group, IntCodes, Signs, Storage, Zero, Zeros, unpack_bits};
use half::f16;

/// How the zero point of a group is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// `scale · (code − middle)` with the same integer everywhere.
    Middle(u8),
    /// `scale · (code − zero)` with an integer for each group.
    Codes,
    /// `scale · code + offset`.
    Offsets,
}

/// What is the same for all rows of a storage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) bits: u8,
    /// Columns of a group.
    pub(super) group: usize,
    pub(super) origin: Origin,
    /// Groups whose scales and offsets are small integers times two numbers that they share.
    pub(super) shared: Option<usize>,
}

/// One row, unpacked.
pub(super) struct Row {
    pub(super) codes: Vec<u8>,
    /// By group.
    pub(super) scales: Vec<f32>,
    /// By group, for [`Origin::Codes`].
    pub(super) zeros: Vec<u8>,
    /// By group, for [`Origin::Offsets`].
    pub(super) offsets: Vec<f32>,
    /// What [`Layout::shared`] groups share: of the scales, and of the offsets.
    pub(super) shared: Vec<[f32; 2]>,
}

impl Row {
    pub(super) fn of(layout: &Layout) -> Self {
        let groups = layout.cols / layout.group;
        Self {
            codes: vec![0; layout.cols],
            scales: vec![0.0; groups],
            zeros: vec![0; groups],
            offsets: vec![0.0; groups],
            shared: vec![[0.0; 2]; layout.shared.map_or(0, |s| groups / s)],
        }
    }
}

/// The layout of a storage of integers; `None` for plain floats and codes into tables, grids, lattices, codebooks,
/// trellises.
pub(super) fn layout(storage: &Storage) -> Option<Layout> {
    match storage {
        Storage::Dense(_)
        | Storage::Table(_)
        | Storage::TwoOfFour(_)
        | Storage::Float(_)
        | Storage::Lattice(_)
        | Storage::Vector(_)
        | Storage::Trellis(_) => None,
        // Decoded once, scales of scales would take more than the codes.
        Storage::Int(int) if int.has_nested() => None,
        Storage::Int(int) => {
            let ([rows, cols], grid) = (int.shape(), int.grid());
            let origin = match int.zeros() {
                Zeros::Middle => Origin::Middle(1 << (grid.bits - 1)),
                Zeros::Codes(_) => Origin::Codes,
                Zeros::Offsets(_) | Zeros::Points(_) => Origin::Offsets,
            };
            let group = match grid.group {
                Group::Columns(g) => g,
                Group::Row | Group::Tensor | Group::Block(_) => cols,
            };
            Some(Layout { rows, cols, bits: grid.bits, group, origin, shared: None })
        }
        // In two bits: five codes in a byte would take longer to take apart than a fifth less memory saves.
        Storage::Signs(signs) => {
            let ([rows, cols], grid) = (signs.shape(), signs.grid());
            (grid.signs == Signs::Ternary).then(|| Layout {
                rows,
                cols,
                bits: 2,
                group: grid.group.width(cols),
                origin: Origin::Middle(1),
                shared: None,
            })
        }
        Storage::Ggml(blocks) => {
            let (bits, group, origin) = match blocks.kind {
                GgmlType::Q4_0 => (4, 32, Origin::Middle(8)),
                GgmlType::Q4_1 | GgmlType::Q4K => (4, 32, Origin::Offsets),
                GgmlType::Q5_0 => (5, 32, Origin::Middle(16)),
                GgmlType::Q5_1 | GgmlType::Q5K => (5, 32, Origin::Offsets),
                GgmlType::Q8_0 | GgmlType::Q8_1 => (8, 32, Origin::Middle(128)),
                GgmlType::Q8K => (8, 256, Origin::Middle(128)),
                GgmlType::Q2K => (2, 16, Origin::Offsets),
                GgmlType::Q3K => (3, 16, Origin::Middle(4)),
                GgmlType::Q6K => (6, 16, Origin::Middle(32)),
                // TQ1_0 takes two bits too, as three values do elsewhere.
                GgmlType::Tq1_0 | GgmlType::Tq2_0 => (2, 256, Origin::Middle(1)),
                GgmlType::Q2_0 => (2, 64, Origin::Middle(1)),
                // Levels of a table, or points of a grid.
                _ => return None,
            };
            let has_shared =
                matches!(blocks.kind, GgmlType::Q2K | GgmlType::Q3K | GgmlType::Q4K | GgmlType::Q5K | GgmlType::Q6K);
            let shared = has_shared.then(|| blocks.kind.block_len() / group);
            Some(Layout { rows: blocks.rows, cols: blocks.cols, bits, group, origin, shared })
        }
    }
}

/// Unpacks row `r`.
pub(super) fn read(storage: &Storage, r: usize, row: &mut Row) {
    match storage {
        Storage::Int(int) => read_int(int, r, row),
        Storage::Ggml(blocks) => read_ggml(blocks, r, row),
        Storage::Signs(signs) => {
            signs.row_codes(r, &mut row.codes);
            let groups = row.scales.len();
            row.scales.iter_mut().enumerate().for_each(|(k, s)| *s = signs.numbers().get(r * groups + k));
        }
        _ => unreachable!("only integers have such a layout"),
    }
}

fn read_int(int: &IntCodes, r: usize, row: &mut Row) {
    int.row_codes(r, &mut row.codes);
    for k in 0..row.scales.len() {
        let (scale, zero) = int.group_params(r, k);
        row.scales[k] = scale;
        match zero {
            Zero::Code(z) => row.zeros[k] = z,
            Zero::Offset(m) => row.offsets[k] = m,
        }
    }
}

fn read_ggml(blocks: &GgmlBlocks, r: usize, row: &mut Row) {
    let kind = blocks.kind;
    let (len, groups) = (kind.block_len(), row.scales.len() * kind.block_len() / blocks.cols);
    for (b, block) in blocks.row(r).chunks_exact(kind.block_bytes()).enumerate() {
        let codes = &mut row.codes[b * len..(b + 1) * len];
        let scales = &mut row.scales[b * groups..(b + 1) * groups];
        let offsets = &mut row.offsets[b * groups..(b + 1) * groups];
        match kind {
            GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q8_0 | GgmlType::Q8_1 => {
                scales[0] = half_at(block, 0);
                offsets[0] = if kind == GgmlType::Q4_1 || kind == GgmlType::Q5_1 { half_at(block, 2) } else { 0.0 };
                legacy_codes(kind, block, codes);
            }
            GgmlType::Q2K => {
                let (d, dmin) = (half_at(block, 80), half_at(block, 82));
                row.shared[b] = [d, dmin];
                for j in 0..16 {
                    scales[j] = d * f32::from(block[j] & 15);
                    offsets[j] = -(dmin * f32::from(block[j] >> 4));
                }
                bit_pairs(&block[16..80], codes);
            }
            GgmlType::Q3K => {
                let (d, packed) = (half_at(block, 108), &block[96..108]);
                row.shared[b] = [d, 0.0];
                for (j, scale) in scales.iter_mut().enumerate() {
                    let low = if j < 8 { packed[j] & 15 } else { packed[j - 8] >> 4 };
                    let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
                    *scale = d * f32::from((low | high << 4) as i8 - 32);
                }
                bit_pairs(&block[32..96], codes);
                for (j, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    codes.iter_mut().zip(&block[..32]).for_each(|(q, high)| *q |= (high >> j & 1) << 2);
                }
            }
            GgmlType::Q4K | GgmlType::Q5K => {
                let (d, dmin) = (half_at(block, 0), half_at(block, 2));
                row.shared[b] = [d, dmin];
                for j in 0..8 {
                    let (scale, min) = scale_and_min(&block[4..16], j);
                    scales[j] = d * f32::from(scale);
                    offsets[j] = -(dmin * f32::from(min));
                }
                let low = if kind == GgmlType::Q4K { 16 } else { 48 };
                for (codes, bytes) in codes.as_chunks_mut::<64>().0.iter_mut().zip(block[low..].as_chunks::<32>().0) {
                    let (first, second) = codes.split_at_mut(32);
                    first.iter_mut().zip(bytes).for_each(|(q, b)| *q = b & 15);
                    second.iter_mut().zip(bytes).for_each(|(q, b)| *q = b >> 4);
                }
                if kind == GgmlType::Q5K {
                    for (j, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                        codes.iter_mut().zip(&block[16..48]).for_each(|(q, high)| *q |= (high >> j & 1) << 4);
                    }
                }
            }
            GgmlType::Q6K => {
                let d = half_at(block, 208);
                row.shared[b] = [d, 0.0];
                scales.iter_mut().zip(&block[192..208]).for_each(|(s, scale)| *s = d * f32::from(*scale as i8));
                for (j, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    let (half, quarter) = (j / 4, j % 4);
                    let low = &block[64 * half + 32 * (quarter % 2)..][..32];
                    let high = &block[128 + 32 * half..][..32];
                    for ((q, low), high) in codes.iter_mut().zip(low).zip(high) {
                        *q = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
                    }
                }
            }
            GgmlType::Q8K => {
                scales[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
                signed_bytes(&block[4..260], codes);
            }
            GgmlType::Tq1_0 => {
                scales[0] = half_at(block, 52);
                three_values(&block[..52], codes);
            }
            GgmlType::Tq2_0 => {
                scales[0] = half_at(block, 64);
                bit_pairs(&block[..64], codes);
            }
            GgmlType::Q2_0 => {
                scales[0] = half_at(block, 0);
                unpack_bits(&block[2..], 2, codes);
            }
            _ => unreachable!("only integers have such a layout"),
        }
    }
}

fn legacy_codes(kind: GgmlType, block: &[u8], codes: &mut [u8]) {
    if kind == GgmlType::Q8_0 || kind == GgmlType::Q8_1 {
        signed_bytes(&block[block.len() - 32..], codes);
        return;
    }
    let bytes = &block[block.len() - 16..];
    for (j, byte) in bytes.iter().enumerate() {
        (codes[j], codes[j + 16]) = (byte & 15, byte >> 4);
    }
    if kind == GgmlType::Q5_0 || kind == GgmlType::Q5_1 {
        let high = &block[block.len() - 20..];
        codes.iter_mut().enumerate().for_each(|(j, q)| *q |= (high[j / 8] >> (j % 8) & 1) << 4);
    }
}

/// Bytes with a sign, offset by 128.
fn signed_bytes(bytes: &[u8], codes: &mut [u8]) {
    codes.iter_mut().zip(bytes).for_each(|(q, b)| *q = b ^ 0x80);
}

/// The values of TQ1_0, five in a byte as a fraction of 256 in base three: first those of 32 bytes, then of 16, then
/// four in each of the last four.
fn three_values(bytes: &[u8], codes: &mut [u8]) {
    let (mut bytes, mut codes) = (bytes, codes);
    for (len, count) in [(32, 5), (16, 5), (4, 4)] {
        let (these, later) = std::mem::take(&mut codes).split_at_mut(len * count);
        for (power, codes) in [1u8, 3, 9, 27, 81].into_iter().zip(these.chunks_exact_mut(len)) {
            for (q, byte) in codes.iter_mut().zip(bytes) {
                *q = ((3 * u16::from(byte.wrapping_mul(power))) >> 8) as u8;
            }
        }
        (bytes, codes) = (&bytes[len..], later);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Codes of two bits: each 32 bytes hold four times 32 of them.
fn bit_pairs(bytes: &[u8], codes: &mut [u8]) {
    for (codes, bytes) in codes.as_chunks_mut::<128>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        for (j, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            codes.iter_mut().zip(bytes).for_each(|(q, b)| *q = b >> (2 * j) & 3);
        }
    }
}

/// Scale and minimum of sub-block `j` of Q4_K and Q5_K.
fn scale_and_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let halves = packed[j + 4];
        (halves & 15 | packed[j - 4] >> 6 << 4, halves >> 4 | packed[j] >> 6 << 4)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn rows_decode_as_the_format_says() {
        let mut state = 7u32;
        let mut byte = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 24) as u8
        };
        let mut integers = 0;
        for kind in GgmlType::ALL {
            let (rows, cols) = (3, 2 * kind.block_len());
            let mut bytes: Vec<u8> = (0..rows * 2 * kind.block_bytes()).map(|_| byte()).collect();
            for block in bytes.chunks_exact_mut(kind.block_bytes()) {
                // Finite scales.
                kind.f16_fields().iter().for_each(|at| block[at + 1] &= 0xbf);
                if kind == GgmlType::Q8K {
                    block[3] &= 0xbf;
                }
            }
            let storage = Storage::Ggml(GgmlBlocks::new(kind, rows, cols, Bytes::from(bytes)).unwrap());
            let Some(layout) = layout(&storage) else { continue };
            integers += 1;
            let mut want = vec![0.0; cols];
            let mut row = Row::of(&layout);
            for r in 0..rows {
                storage.decode_rows(r..r + 1, &mut want);
                read(&storage, r, &mut row);
                for (c, want) in want.iter().enumerate() {
                    let (k, q) = (c / layout.group, row.codes[c]);
                    let zero = match layout.origin {
                        Origin::Middle(z) => Zero::Code(z),
                        Origin::Codes => Zero::Code(row.zeros[k]),
                        Origin::Offsets => Zero::Offset(row.offsets[k]),
                    };
                    assert_eq!(zero.value(row.scales[k], q), *want, "{kind:?} row {r} column {c}");
                }
            }
        }
        assert_eq!(integers, 15);
    }
}
