//! What stands beside the codes of a weight.

use fewbit_format::{Dtype, Error, LowRank, Result, Sides, Sparse, SparseIndex, SparseValues, Tensor};
use half::f16;

use crate::layout::module::Module;
use crate::layout::{Quantization, read_linear};

/// The tensors of sparse entries: where rows begin, columns, or a bitmap in their place; values, and scales of rows.
pub(super) const SPARSE: [&str; 5] = [
    "weight.sparse.starts",
    "weight.sparse.columns",
    "weight.sparse.bitmap",
    "weight.sparse.values",
    "weight.sparse.scales",
];

/// The modules of a correction of low rank.
pub(super) const FACTORS: [&str; 2] = ["left", "right"];

/// Sparse entries as tensors.
pub(super) fn sparse_tensors(module: &str, sparse: &Sparse) -> Vec<(String, Tensor)> {
    let [starts, columns, bitmap, values, scales] = SPARSE;
    let mut tensors = Vec::new();
    let mut add = |part: &str, dtype, shape: Vec<usize>, bytes: Vec<u8>| {
        tensors.push((format!("{module}.{part}"), Tensor { dtype, shape, bytes: bytes.into() }));
    };
    let (index, entries) = sparse.parts();
    match index {
        SparseIndex::Columns(c) => {
            let s = sparse.starts();
            add(starts, Dtype::U32, vec![s.len()], s.iter().flat_map(|n| n.to_le_bytes()).collect());
            add(columns, Dtype::U16, vec![c.len()], c.iter().flat_map(|c| c.to_le_bytes()).collect());
        }
        SparseIndex::Bitmap(bits) => {
            add(bitmap, Dtype::U8, vec![sparse.rows(), sparse.cols().div_ceil(8)], bits.clone());
        }
    }
    let halves = |v: &[f16]| v.iter().flat_map(|v| v.to_le_bytes()).collect();
    match entries {
        SparseValues::F16(v) => add(values, Dtype::F16, vec![v.len()], halves(v)),
        SparseValues::Int8 { codes, scales: s } => {
            add(values, Dtype::I8, vec![codes.len()], codes.iter().map(|q| *q as u8).collect());
            add(scales, Dtype::F16, vec![s.len()], halves(s));
        }
    }
    tensors
}

/// What stands beside the codes of a module, if anything.
pub(in crate::layout) fn read_sides(q: &Quantization, m: Module<'_>) -> Result<Sides> {
    let sparse = m.has(SPARSE[3]).then(|| read_sparse(m)).transpose()?;
    let [left, right] = FACTORS.map(|f| m.full_name(f));
    let rank = ["weight", "weight.codes"].iter().find_map(|part| {
        let name = format!("{right}.{part}");
        m.tensors.contains(&name).then(|| m.tensors.tensor(&name))
    });
    let Some(rank) = rank.transpose()?.and_then(|t| t.shape.first().copied()) else {
        return Ok(Sides { sparse, low_rank: None });
    };
    let [rows, cols] = m.shape;
    if rank > rows.min(cols) {
        return Err(Error::input(format!("has {rank} rows, more than its matrix [{rows}, {cols}] can need"))
            .tensor(&format!("{right}.weight")));
    }
    let factor = |name: &str, shape| read_linear(q, m.tensors, name, shape);
    let low_rank = LowRank { left: factor(&left, [rows, rank])?, right: factor(&right, [rank, cols])? };
    Ok(Sides { sparse, low_rank: Some(low_rank) })
}

fn read_sparse(m: Module<'_>) -> Result<Sparse> {
    let [starts, columns, bitmap, values, scales] = SPARSE;
    let [rows, cols] = m.shape;
    let entries = m.part(values)?;
    let halves = |t: &Tensor| t.bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)).collect::<Vec<f16>>();
    let (starts, index) = if m.has(bitmap) {
        let bits = m.part_as(bitmap, Dtype::U8, &[rows, cols.div_ceil(8)])?;
        (Sparse::starts_of(&bits.bytes, rows, cols), SparseIndex::Bitmap(bits.bytes.to_vec()))
    } else {
        let starts = m.part_as(starts, Dtype::U32, &[rows + 1])?;
        let columns = m.part_as(columns, Dtype::U16, &[entries.len()])?;
        let starts = starts.bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let columns = columns.bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        (starts, SparseIndex::Columns(columns))
    };
    let count = entries.len();
    let entries = if m.has(scales) {
        let codes = m.part_as(values, Dtype::I8, &[count])?.bytes.iter().map(|b| *b as i8).collect();
        SparseValues::Int8 { codes, scales: halves(&m.part_as(scales, Dtype::F16, &[rows])?) }
    } else {
        SparseValues::F16(halves(&m.part_as(values, Dtype::F16, &[count])?))
    };
    Sparse::with(cols, starts, index, entries).map_err(|e| e.tensor(&m.full_name(values)))
}
