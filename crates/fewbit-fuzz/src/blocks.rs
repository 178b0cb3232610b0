use fewbit_format::{GgmlBlocks, GgmlType, QuantizedLinear, Storage};

/// Blocks of ggml: a byte for the type, one for the rows, one for the blocks of a row, then the blocks.
pub fn blocks(data: &[u8]) {
    let Some((&[kind, rows, across], data)) = data.split_first_chunk() else { return };
    let kind = GgmlType::ALL[usize::from(kind) % GgmlType::ALL.len()];
    let (rows, across) = (usize::from(rows % 40), usize::from(across % 8));
    // A block too many or too few is refused.
    let bytes = data[..data.len().min(rows * across * kind.block_bytes())].to_vec();
    let Ok(blocks) = GgmlBlocks::new(kind, rows, across * kind.block_len(), bytes.into()) else { return };
    if rows > 0 && across > 0 {
        crate::run::run(QuantizedLinear::uniform(Storage::Ggml(blocks), None));
    }
}
