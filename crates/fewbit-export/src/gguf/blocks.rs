//! A weight as the types of a GGUF file hold it: only where they hold it exactly.

use bytes::Bytes;
use fewbit_format::{Band, Dtype, Error, GgmlBlocks, GgmlType, Group, IntCodes, Result, Storage, Tensor, Zero, Zeros};
use fewbit_store::Elements;
use half::f16;

/// Weights of one block of the types that integer codes become.
const BLOCK: usize = 32;

/// How a GGUF file holds a weight: integer codes as blocks that decode to the same numbers, plain floats as they are.
///
/// - 4 bits, symmetric → Q4_0, `d (q − 8)`; 8 bits, symmetric → Q8_0, `d (q − 128)`; 4 bits with offsets → Q4_1,
///   `d q + m`; groups of a multiple of 32 columns repeat their scale in every block.
/// - F32 and F64 become blocks where these decode to the very same numbers, else F16, or stay where F16 overflows.
///
/// # Errors
/// Why it cannot, and the way out.
pub fn can_hold_gguf(storage: &Storage) -> Result<Elements, String> {
    match storage {
        Storage::Dense(t) => Ok(dense_elements(t)),
        Storage::Ggml(blocks) => Ok(Elements::Blocks(blocks.kind)),
        Storage::Float(_) => Err("GGUF files of small floats are not written; use `--format fewbit`".to_owned()),
        Storage::Table(_) | Storage::Signs(_) => {
            Err("GGUF has no codes into tables of their own; use `--format fewbit`".to_owned())
        }
        Storage::Lattice(_) | Storage::Vector(_) | Storage::Trellis(_) | Storage::TwoOfFour(_) => {
            Err("GGUF has no codes of this kind; use `--format fewbit`".to_owned())
        }
        Storage::Int(codes) => int_kind(codes)
            .map(Elements::Blocks)
            .map_err(|why| format!("{why}; use `--group 32 --symmetric --set grid.scale=f16`, or `--format fewbit`")),
    }
}

/// The one type that holds all bands of a weight.
pub(super) fn elements_of(bands: &[Band]) -> Result<Elements, String> {
    let mut all = bands.iter().map(|b| can_hold_gguf(&b.storage));
    let first = all.next().unwrap_or_else(|| Err("it has no rows".to_owned()))?;
    for other in all {
        let other = other?;
        if other != first {
            let (a, b) = (first.name(), other.name());
            return Err(format!("its rows would be {a} and {b}, where a tensor has one type; use `--format fewbit`"));
        }
    }
    Ok(first)
}

/// The bytes of a weight's bands in a type that [`elements_of`] gave.
pub(super) fn encode(bands: &[Band], elements: Elements) -> Result<Bytes> {
    if let [band] = bands {
        return encode_storage(&band.storage, elements);
    }
    let parts = bands.iter().map(|b| encode_storage(&b.storage, elements)).collect::<Result<Vec<_>>>()?;
    Ok(parts.concat().into())
}

fn encode_storage(storage: &Storage, elements: Elements) -> Result<Bytes> {
    match (storage, elements) {
        (Storage::Ggml(blocks), _) => Ok(blocks.bytes.clone()),
        (Storage::Int(codes), Elements::Blocks(kind)) => Ok(int_blocks(codes, kind).into()),
        (Storage::Dense(t), Elements::Plain(dtype)) if t.dtype == dtype => Ok(t.bytes.clone()),
        (Storage::Dense(t), Elements::Plain(dtype)) => Ok(Tensor::from_f32(dtype, &t.shape, &t.to_f32()?)?.bytes),
        (Storage::Dense(t), Elements::Blocks(kind)) => {
            Ok(GgmlBlocks::encode(kind, t.shape[0], t.shape[1], &t.to_f32()?, None)?.bytes)
        }
        _ => Err(Error::internal(format!("codes cannot be written as {}", elements.name()))),
    }
}

fn dense_elements(t: &Tensor) -> Elements {
    /// Half of the last step of f16 above its largest number: from here on it rounds to infinity.
    const OVERFLOW: f32 = 65520.0;
    if matches!(t.dtype, Dtype::F16 | Dtype::BF16) {
        return Elements::Plain(t.dtype);
    }
    if let Some(kind) = [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q8_0].into_iter().find(|k| is_blocks(t, *k)) {
        return Elements::Blocks(kind);
    }
    let overflows = rows(t).any(|row| row.iter().any(|v| v.abs() >= OVERFLOW));
    Elements::Plain(if overflows { Dtype::F32 } else { Dtype::F16 })
}

/// Whether blocks decode to exactly these numbers, as they do where the numbers were decoded from such blocks.
fn is_blocks(t: &Tensor, kind: GgmlType) -> bool {
    let cols = t.shape[1];
    let mut decoded = vec![0.0; cols];
    cols.is_multiple_of(BLOCK)
        && rows(t).all(|row| {
            let Ok(blocks) = GgmlBlocks::encode(kind, 1, cols, &row, None) else { return false };
            blocks.decode_rows(0..1, &mut decoded);
            decoded.iter().zip(&row).all(|(a, b)| a == b)
        })
}

/// The rows of a plain matrix, one at a time, as f32.
fn rows(t: &Tensor) -> impl Iterator<Item = Vec<f32>> {
    let cols = t.shape[1];
    let row_bytes = (cols * t.dtype.size_bytes()).max(1);
    t.bytes.chunks_exact(row_bytes).map(move |bytes| {
        let mut row = vec![0.0; cols];
        t.dtype.widen(bytes, &mut row).expect("dense storage is made of plain floats only");
        row
    })
}

/// The block type that decodes to the same numbers, or why there is none.
fn int_kind(codes: &IntCodes) -> Result<GgmlType, String> {
    let (grid, [_, cols]) = (codes.grid(), codes.shape());
    let kind = match (grid.bits, codes.zeros()) {
        (4, Zeros::Middle) => GgmlType::Q4_0,
        (8, Zeros::Middle) => GgmlType::Q8_0,
        (4, Zeros::Offsets(_)) => GgmlType::Q4_1,
        (bits, Zeros::Middle) => return Err(format!("GGUF has no blocks of {bits}-bit codes that are written")),
        (bits, Zeros::Codes(_)) => return Err(format!("GGUF has no blocks of {bits}-bit codes with zero points")),
        (bits, Zeros::Offsets(_) | Zeros::Points(_)) => {
            return Err(format!("GGUF has no blocks of {bits}-bit codes with offsets that are written"));
        }
    };
    if codes.group_index().is_some() {
        return Err("the columns of a group lie apart, where a block holds 32 neighbours".to_owned());
    }
    let width = grid.group.width(cols);
    if !width.is_multiple_of(BLOCK) {
        let group = if grid.group == Group::Row { format!("rows of {cols}") } else { format!("groups of {width}") };
        return Err(format!("{group} are no multiple of a block of 32"));
    }
    if codes.has_nested() {
        return Err("the scales are codes of a second level".to_owned());
    }
    let offsets = if let Zeros::Offsets(m) = codes.zeros() { m.values() } else { Vec::new() };
    match codes.scales().values().iter().chain(&offsets).find(|s| f16::from_f32(**s).to_f32() != **s) {
        Some(s) => Err(format!("the scale {s:e} is no f16, which the scales of blocks are")),
        None => Ok(kind),
    }
}

/// Writes codes as blocks of a type that [`int_kind`] gave.
fn int_blocks(codes: &IntCodes, kind: GgmlType) -> Vec<u8> {
    let [rows, cols] = codes.shape();
    let blocks_per_group = codes.grid().group.width(cols) / BLOCK;
    let mut row = vec![0; cols];
    let mut out = Vec::with_capacity(rows * cols / BLOCK * kind.block_bytes());
    for r in 0..rows {
        codes.row_codes(r, &mut row);
        for (b, block) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
            let (scale, zero) = codes.group_params(r, b / blocks_per_group);
            out.extend(f16::from_f32(scale).to_le_bytes());
            if let Zero::Offset(m) = zero {
                out.extend(f16::from_f32(m).to_le_bytes());
            }
            match kind {
                // From 0..=255 around 128 to −128..=127.
                GgmlType::Q8_0 => out.extend(block.map(|q| q ^ 0x80)),
                _ => out.extend((0..BLOCK / 2).map(|j| block[j] | block[j + BLOCK / 2] << 4)),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewbit_format::{IntGrid, ScaleType};

    fn int(bits: u8, cols: usize, group: Group, zeros: fn(usize) -> Zeros) -> IntCodes {
        let rows = 3;
        let groups = if group == Group::Tensor { 1 } else { rows * cols / group.width(cols) };
        let grid = IntGrid { bits, group, symmetric: zeros(1) == Zeros::Middle, scale: ScaleType::F16 };
        let codes: Vec<u8> = (0..rows * cols).map(|i| (i * i * 31 + i * 7) as u8 >> (8 - bits)).collect();
        let scales =
            (0..groups).map(|k| ScaleType::F16.round(0.01 * (1.0 + k as f32) * if k % 3 == 2 { -1.0 } else { 1.0 }));
        IntCodes::new(rows, cols, grid, &codes, scales.collect::<Vec<f32>>(), zeros(groups)).unwrap()
    }

    fn decoded(storage: &Storage) -> Vec<f32> {
        let [rows, cols] = storage.shape();
        let mut out = vec![0.0; rows * cols];
        storage.decode_rows(0..rows, &mut out);
        out
    }

    fn assert_exact(storage: Storage, kind: GgmlType) {
        let [rows, cols] = storage.shape();
        assert_eq!(can_hold_gguf(&storage), Ok(Elements::Blocks(kind)));
        let bands = [Band { rows: 0..rows, storage }];
        let bytes = encode(&bands, Elements::Blocks(kind)).unwrap();
        let blocks = Storage::Ggml(GgmlBlocks::new(kind, rows, cols, bytes).unwrap());
        assert_eq!(decoded(&blocks), decoded(&bands[0].storage));
    }

    #[test]
    fn blocks_decode_to_the_same_numbers() {
        for group in [Group::Columns(32), Group::Columns(64), Group::Row, Group::Tensor] {
            assert_exact(Storage::Int(int(4, 128, group, |_| Zeros::Middle)), GgmlType::Q4_0);
            assert_exact(Storage::Int(int(8, 128, group, |_| Zeros::Middle)), GgmlType::Q8_0);
            let offsets = |n| Zeros::Offsets((0..n).map(|k| -0.125 * k as f32).collect::<Vec<f32>>().into());
            assert_exact(Storage::Int(int(4, 128, group, offsets)), GgmlType::Q4_1);
        }
    }

    #[test]
    fn what_has_no_blocks_is_refused_with_the_way_out() {
        let why = |codes: IntCodes| can_hold_gguf(&Storage::Int(codes)).unwrap_err();
        let way_out = "; use `--group 32 --symmetric --set grid.scale=f16`, or `--format fewbit`";
        let e = why(int(3, 64, Group::Row, |_| Zeros::Middle));
        assert_eq!(e, format!("GGUF has no blocks of 3-bit codes that are written{way_out}"));
        let e = why(int(4, 64, Group::Row, |n| Zeros::Codes(vec![7; n])));
        assert_eq!(e, format!("GGUF has no blocks of 4-bit codes with zero points{way_out}"));
        assert!(why(int(4, 64, Group::Columns(16), |_| Zeros::Middle)).starts_with("groups of 16 are no multiple"));
        assert!(why(int(4, 172, Group::Row, |_| Zeros::Middle)).starts_with("rows of 172 are no multiple"));
        let grid = IntGrid { bits: 4, group: Group::Row, symmetric: true, scale: ScaleType::F32 };
        let odd = IntCodes::new(1, 32, grid, &[1; 32], vec![0.1], Zeros::Middle).unwrap();
        assert!(why(odd).starts_with("the scale 1e-1 is no f16"));
        let apart = int(4, 64, Group::Columns(32), |_| Zeros::Middle);
        let apart = apart.with_group_index((0..64).map(|c| c % 2).collect()).unwrap();
        assert!(why(apart).starts_with("the columns of a group lie apart"));
    }

    #[test]
    fn plain_floats_stay_unless_f32() {
        let kind = |dtype, values: &[f32]| {
            can_hold_gguf(&Storage::Dense(Tensor::from_f32(dtype, &[1, values.len()], values).unwrap())).unwrap()
        };
        assert_eq!(kind(Dtype::BF16, &[1.0, 2.0]), Elements::Plain(Dtype::BF16));
        assert_eq!(kind(Dtype::F32, &[1.0, 65519.0]), Elements::Plain(Dtype::F16));
        assert_eq!(kind(Dtype::F32, &[1.0, -65520.0]), Elements::Plain(Dtype::F32));
        let of_blocks: Vec<f32> = (0..64).map(|i| 0.0625 * ((i * 37 % 255) - 127) as f32).collect();
        let of_blocks: Vec<f32> =
            of_blocks.iter().enumerate().map(|(i, v)| if i % 32 == 0 { 127.0 * 0.0625 } else { *v }).collect();
        assert_eq!(kind(Dtype::F32, &of_blocks), Elements::Blocks(GgmlType::Q8_0));
    }
}
