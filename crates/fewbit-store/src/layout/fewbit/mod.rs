//! Our own layout, for what no established one holds; `docs/format.md` has every byte.

mod config;
mod numbers;
mod online;
mod read;
mod sides;
mod write;

use fewbit_format::{Group, tiles};

pub use config::FewbitConfig;
pub(super) use online::read as read_online;
pub(super) use read::read;
pub(super) use sides::read_sides;
pub use write::Fewbit;

use super::Scheme;

/// The tensors of one band, of which some may be absent.
const PARTS: &[&str] = &[
    "codes",
    "tiles",
    "scales",
    "zeros",
    "offsets",
    "points",
    "numbers",
    "group_index",
    "table",
    "global_scale",
    "residual",
    "codebook",
    "columns",
    "mask",
    "kept",
];

/// Whether a tensor holds tiles, which kernels read where they are stored if they begin at a multiple of 64 bytes.
pub fn is_tiles(tensor: &str) -> bool {
    tensor.contains(".weight.tiles")
}

/// All tensor names that a module's weight may have.
pub(super) fn names(config: &FewbitConfig, module: &str) -> Vec<String> {
    let mut names = vec![format!("{module}.weight")];
    let bands = match config.scheme_of(module).map(Scheme::weights) {
        Some(Scheme::Bands(bands)) => (0..bands.len()).map(|i| format!(".{i}")).collect(),
        _ => vec![String::new()],
    };
    for band in bands {
        names.extend(PARTS.iter().map(|part| format!("{module}.weight.{part}{band}")));
        names.extend(numbers::names().map(|part| format!("{module}.weight.{part}{band}")));
    }
    names.extend(online::names(module));
    names.extend(crate::layout::input::PARTS.iter().map(|part| format!("{module}.{part}")));
    names.extend(sides::SPARSE.iter().map(|part| format!("{module}.{part}")));
    for factor in sides::FACTORS.map(|f| format!("{module}.{f}.weight")) {
        names.extend(PARTS.iter().map(|part| format!("{factor}.{part}")));
        names.push(factor);
    }
    names
}

/// The shape of the scales of one band.
fn scale_shape(group: Group, rows: usize, cols: usize) -> Vec<usize> {
    match group {
        Group::Tensor => vec![1],
        Group::Block([height, _]) => vec![rows.div_ceil(height), group.per_row(cols)],
        _ => vec![rows, group.per_row(cols)],
    }
}

/// The shape of the scales of one band that lies in tiles.
fn tile_shape(group: Group, rows: usize, cols: usize) -> Vec<usize> {
    match group {
        Group::Tensor => vec![1],
        _ => vec![rows.div_ceil(tiles::ROWS), group.per_row(cols), tiles::ROWS],
    }
}
