//! What stands beside the codes of a weight.

use fewbit_format::{Dtype, Error, LowRank, Result, Sides, Sparse, Tensor};
use half::f16;

use crate::layout::module::Module;
use crate::layout::{Quantization, read_linear};

/// The tensors of sparse entries: where rows begin, columns, values.
pub(super) const SPARSE: [&str; 3] = ["weight.sparse.starts", "weight.sparse.columns", "weight.sparse.values"];

/// The modules of a correction of low rank.
pub(super) const FACTORS: [&str; 2] = ["left", "right"];

/// Sparse entries as tensors.
pub(super) fn sparse_tensors(module: &str, sparse: &Sparse) -> Vec<(String, Tensor)> {
    let (columns, values) = sparse.entries();
    let tensor = |dtype, len, bytes: Vec<u8>| Tensor { dtype, shape: vec![len], bytes: bytes.into() };
    let starts = sparse.starts().iter().flat_map(|n| n.to_le_bytes()).collect();
    let parts = [
        tensor(Dtype::U32, sparse.starts().len(), starts),
        tensor(Dtype::U16, columns.len(), columns.iter().flat_map(|c| c.to_le_bytes()).collect()),
        tensor(Dtype::F16, values.len(), values.iter().flat_map(|v| v.to_le_bytes()).collect()),
    ];
    SPARSE.iter().map(|part| format!("{module}.{part}")).zip(parts).collect()
}

/// What stands beside the codes of a module, if anything.
pub(in crate::layout) fn read_sides(q: &Quantization, m: Module<'_>) -> Result<Sides> {
    let sparse = m.has(SPARSE[0]).then(|| read_sparse(m)).transpose()?;
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
    let [rows, cols] = m.shape;
    let count = m.part(SPARSE[1])?.len();
    let starts = m.part_as(SPARSE[0], Dtype::U32, &[rows + 1])?;
    let columns = m.part_as(SPARSE[1], Dtype::U16, &[count])?;
    let values = m.part_as(SPARSE[2], Dtype::F16, &[count])?;
    let starts = starts.bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    let columns = columns.bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
    let values = values.bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
    Sparse::new(cols, starts, columns, values).map_err(|e| e.tensor(&m.full_name(SPARSE[0])))
}
