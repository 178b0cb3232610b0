//! What stands beside the codes of a weight.

use fewbit_format::{Dtype, Error, Gaps, LowRank, Result, Sides, Sparse, SparseValues, Tensor, tiles};
use half::f16;

use crate::layout::module::Module;
use crate::layout::{Quantization, read_linear};

/// The tensors of sparse entries: gaps between them, values, and scales of rows.
pub(super) const SPARSE: [&str; 3] = ["weight.sparse.gaps", "weight.sparse.values", "weight.sparse.scales"];

/// The modules of a correction of low rank.
pub(super) const FACTORS: [&str; 2] = ["left", "right"];

/// Sparse entries as tensors.
pub(super) fn sparse_tensors(module: &str, sparse: &Sparse) -> Vec<(String, Tensor)> {
    let [gaps, values, scales] = SPARSE;
    let mut tensors = Vec::new();
    let mut add = |part: &str, dtype, shape: Vec<usize>, bytes: Vec<u8>| {
        tensors.push((format!("{module}.{part}"), Tensor { dtype, shape, bytes: bytes.into() }));
    };
    let (Gaps { bits, packed }, entries) = sparse.parts();
    let bytes: Vec<u8> = [*bits].into_iter().chain(packed.iter().copied()).collect();
    add(gaps, Dtype::U8, vec![bytes.len()], bytes);
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
    let sparse = m.has(SPARSE[1]).then(|| read_sparse(m)).transpose()?;
    let [left, right] = FACTORS.map(|f| m.full_name(f));
    let rank = [("weight", 1), ("weight.codes", 1), ("weight.tiles", tiles::ROWS)].iter().find_map(|(part, each)| {
        let name = format!("{right}.{part}");
        let rows = |t: Tensor| t.shape.first().and_then(|n| n.checked_mul(*each));
        m.tensors.contains(&name).then(|| m.tensors.tensor(&name).map(rows))
    });
    let Some(rank) = rank.transpose()?.flatten() else {
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
    let [gaps, values, scales] = SPARSE;
    let entries = m.part(values)?;
    let halves = |t: &Tensor| t.bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)).collect::<Vec<f16>>();
    let stream = m.part(gaps)?;
    let stream = m.part_as(gaps, Dtype::U8, &[stream.len()])?;
    let Some((bits, packed)) = stream.bytes.split_first() else {
        return Err(Error::input("is empty, where its first byte says how wide gaps are").tensor(&m.full_name(gaps)));
    };
    let gaps = Gaps { bits: *bits, packed: packed.to_vec() };
    let count = entries.len();
    let entries = if m.has(scales) {
        let of = if m.part(scales)?.len() == 1 { 1 } else { m.shape[0] };
        let codes = m.part_as(values, Dtype::I8, &[count])?.bytes.iter().map(|b| *b as i8).collect();
        SparseValues::Int8 { codes, scales: halves(&m.part_as(scales, Dtype::F16, &[of])?) }
    } else {
        SparseValues::F16(halves(&m.part_as(values, Dtype::F16, &[count])?))
    };
    Sparse::read(m.shape, gaps, entries).map_err(|e| e.tensor(&m.full_name(values)))
}
