//! Blocks of ggml whose codes are levels of one table: IQ4_NL, IQ4_XS, MXFP4, NVFP4, Q1_0.

use fewbit_format::{E2M1_TWICE, GgmlBlocks, GgmlType, IQ4_LEVELS, ScaleType};

use super::factors::Factors;

/// How the codes of a type are cut, and what they stand for.
pub(super) struct Levels {
    pub(super) bits: u8,
    /// Weights that share a scale.
    pub(super) group: usize,
    pub(super) table: Vec<f32>,
}

/// `None` for types whose codes are none of one table.
pub(super) fn of(kind: GgmlType) -> Option<Levels> {
    let numbers = |levels: [i8; 16]| levels.map(f32::from).to_vec();
    // The scale is stored whole, the levels are E2M1's own.
    let e2m1 = || E2M1_TWICE.map(|twice| f32::from(twice) / 2.0).to_vec();
    let (bits, group, table) = match kind {
        GgmlType::Iq4Nl | GgmlType::Iq4Xs => (4, 32, numbers(IQ4_LEVELS)),
        GgmlType::Mxfp4 => (4, 32, e2m1()),
        GgmlType::Nvfp4 => (4, 16, e2m1()),
        GgmlType::Q1_0 => (1, 128, vec![-1.0, 1.0]),
        _ => return None,
    };
    Some(Levels { bits, group, table })
}

/// The scales of blocks that have [`of`], a number for each group.
pub(super) fn scales(blocks: &GgmlBlocks, group: usize) -> Factors {
    let (rows, groups, per_block) = (blocks.rows, blocks.cols / group, blocks.kind.block_len() / group);
    let block = |r: usize, k: usize| &blocks.row(r)[k / per_block * blocks.kind.block_bytes()..];
    match blocks.kind {
        GgmlType::Mxfp4 => Factors::of_bytes(ScaleType::E8M0, rows, groups, |r, k| [block(r, k)[0]]),
        GgmlType::Nvfp4 => Factors::of_bytes(ScaleType::E4M3, rows, groups, |r, k| {
            let byte = block(r, k)[k % per_block];
            // Neither NaN nor a sign is known there.
            [if byte == 0x7f { 0 } else { byte & 0x7f }]
        }),
        GgmlType::Iq4Xs => {
            let step = |r: usize, k: usize| {
                let (block, i) = (block(r, k), k % per_block);
                block[4 + i / 2] >> (i % 2 * 4) & 15 | (block[2 + i / 4] >> (i % 4 * 2) & 3) << 4
            };
            Factors::stepped(rows, groups, per_block, |r, b| f16_at(block(r, b * per_block)), step)
        }
        _ => Factors::of_bytes(ScaleType::F16, rows, groups, |r, k| f16_at(block(r, k))),
    }
}

/// The two bytes with which a block begins.
fn f16_at(block: &[u8]) -> [u8; 2] {
    [block[0], block[1]]
}

/// The codes of row `r`.
pub(super) fn read(blocks: &GgmlBlocks, r: usize, out: &mut [u8]) {
    let kind = blocks.kind;
    let stored = blocks.row(r).chunks_exact(kind.block_bytes());
    for (block, codes) in stored.zip(out.chunks_exact_mut(kind.block_len())) {
        kind.read_codes(block, codes);
    }
}
