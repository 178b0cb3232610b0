use fewbit_format::{Dtype, GgmlType};
use half::{bf16, f16};

/// Elements looked at together before the answer is asked for: long enough for vectors, short enough for the cache.
const STRIDE: usize = 4096;

/// As many as vectors of all machines divide.
const LANES: usize = 16;

/// The first NaN or infinity among plain elements, with its index; types that have none are sound.
pub(crate) fn first_in_plain(dtype: Dtype, bytes: &[u8]) -> Option<(usize, f32)> {
    match dtype {
        Dtype::F64 => first(bytes, |b| !f64::from_le_bytes(b).is_finite(), |b| f64::from_le_bytes(b) as f32),
        Dtype::F32 => first(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000, f32::from_le_bytes),
        Dtype::F16 => first(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => first(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F8E4M3 => first(bytes, |[b]: [u8; 1]| b & 0x7f == 0x7f, |_| f32::NAN),
        // The upper byte of f16.
        Dtype::F8E5M2 => first(bytes, |[b]: [u8; 1]| b & 0x7c == 0x7c, |[b]| f16::from_le_bytes([0, b]).to_f32()),
        Dtype::F8E8M0 => first(bytes, |[b]: [u8; 1]| b == 0xff, |_| f32::NAN),
        Dtype::I64
        | Dtype::I32
        | Dtype::I16
        | Dtype::I8
        | Dtype::U64
        | Dtype::U32
        | Dtype::U16
        | Dtype::U8
        | Dtype::Bool => None,
    }
}

/// The first block with a NaN or infinity among its scales: the index of its first weight, and the scale.
pub(crate) fn first_in_blocks(kind: GgmlType, bytes: &[u8]) -> Option<(usize, f32)> {
    let mut blocks = bytes.chunks_exact(kind.block_bytes()).enumerate();
    blocks.find_map(|(i, block)| Some((i * kind.block_len(), kind.non_finite_scale(block)?)))
}

/// The greatest magnitude among plain floats that are finite; `None` where they are no floats.
pub(crate) fn greatest(dtype: Dtype, bytes: &[u8]) -> Option<f32> {
    let mut values = [0.0; STRIDE];
    let mut most = [0f32; LANES];
    for stride in bytes.chunks(STRIDE * dtype.size_bytes()) {
        let values = &mut values[..stride.len() / dtype.size_bytes()];
        dtype.widen(stride, values)?;
        for some in values.chunks(LANES) {
            most.iter_mut().zip(some).for_each(|(m, v)| *m = m.max(v.abs()));
        }
    }
    Some(most.into_iter().fold(0.0, f32::max))
}

fn first<const N: usize>(
    bytes: &[u8],
    is_bad: impl Fn([u8; N]) -> bool,
    value: impl Fn([u8; N]) -> f32,
) -> Option<(usize, f32)> {
    let elements = bytes.as_chunks::<N>().0;
    for (i, stride) in elements.chunks(STRIDE).enumerate() {
        // Without an early exit the loop becomes vector instructions.
        if stride.iter().fold(false, |bad, b| bad | is_bad(*b)) {
            let at = stride.iter().position(|b| is_bad(*b))?;
            return Some((i * STRIDE + at, value(stride[at])));
        }
    }
    None
}

/// The position of element `index` in a tensor of this shape.
pub(crate) fn position(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut position = vec![0; shape.len()];
    for (p, size) in position.iter_mut().zip(shape).rev() {
        (*p, index) = (index % size, index / size);
    }
    position
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_looking_at_each(mut values in prop::collection::vec(-1e30f32..1e30, 1..9000), at: prop::sample::Index, bad in 0usize..4) {
            let at = at.index(values.len());
            values[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0][bad];
            for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16] {
                let bytes = dtype.narrow(&values).unwrap();
                let mut back = vec![0.0; values.len()];
                dtype.widen(&bytes, &mut back).unwrap();
                let expected = back.iter().position(|v| !v.is_finite());
                prop_assert_eq!(first_in_plain(dtype, &bytes).map(|(i, _)| i), expected);
                if expected.is_none() {
                    let most = back.iter().fold(0f32, |m, v| m.max(v.abs()));
                    prop_assert_eq!(greatest(dtype, &bytes), Some(most));
                }
            }
        }
    }

    #[test]
    fn positions_and_scales() {
        assert_eq!(position(17, &[2, 3, 4]), [1, 1, 1]);
        assert_eq!(position(0, &[]), [0; 0]);
        let mut blocks = vec![0; 3 * 20];
        assert_eq!(first_in_blocks(GgmlType::Q4_1, &blocks), None);
        blocks[20 + 3] = 0x7c;
        assert_eq!(first_in_blocks(GgmlType::Q4_1, &blocks), Some((32, f32::INFINITY)));
    }
}
