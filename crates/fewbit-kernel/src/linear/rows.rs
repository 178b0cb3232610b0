//! Any integer storage as rows of `scale · code + offset` per group: what is repacked at load.

use fewbit_format::{CodeMeaning, GgmlBlocks, Group, IntCodes, Signs, Storage, Zero, Zeros};

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
            let split = blocks.kind.split()?;
            let origin = match split.meaning {
                CodeMeaning::Middle(z) => Origin::Middle(z),
                CodeMeaning::Offset => Origin::Offsets,
                // Levels of a table.
                CodeMeaning::Levels(_) => return None,
            };
            let shared = split.has_shared.then(|| blocks.kind.block_len() / split.group);
            // TQ1_0 takes two bits too, as three values do elsewhere.
            let (bits, group) = (split.bits, split.group);
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
        let of_block = b * groups..(b + 1) * groups;
        let shared = kind.read_scales(block, &mut row.scales[of_block.clone()], &mut row.offsets[of_block]);
        if let Some(of_block) = row.shared.get_mut(b) {
            *of_block = shared;
        }
        kind.read_codes(block, &mut row.codes[b * len..(b + 1) * len]);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fewbit_format::GgmlType;

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
