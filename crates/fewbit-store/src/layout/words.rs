use fewbit_format::{Dtype, Tensor, pack_bits, packed_len, unpack_bits};

/// Words as a tensor.
pub(super) fn words(shape: [usize; 2], bytes: Vec<u8>) -> Tensor {
    Tensor { dtype: Dtype::I32, shape: shape.to_vec(), bytes: bytes.into() }
}

/// 32-bit words that `count` codes take: a little-endian bit stream, padded to a word.
pub(super) fn words_for(count: usize, bits: u8) -> usize {
    (count * usize::from(bits)).div_ceil(32)
}

/// Unpacks words `[rows, words]`, each row a stream of `count` codes, into codes `[rows, count]`.
pub(super) fn unpack_rows(words: &[u8], rows: usize, count: usize, bits: u8) -> Vec<u8> {
    let mut codes = vec![0; rows * count];
    let row_bytes = 4 * words_for(count, bits);
    for (stream, out) in words.chunks_exact(row_bytes).zip(codes.chunks_exact_mut(count)) {
        unpack_bits(stream, bits, out);
    }
    codes
}

/// Packs codes `[rows, count]` into words `[rows, words]`.
pub(super) fn pack_rows(codes: &[u8], count: usize, bits: u8) -> Vec<u8> {
    let row_bytes = 4 * words_for(count, bits);
    let mut words = vec![0; codes.len() / count * row_bytes];
    for (codes, out) in codes.chunks_exact(count).zip(words.chunks_exact_mut(row_bytes)) {
        pack_bits(codes, bits, &mut out[..packed_len(count, bits)]);
    }
    words
}

/// Unpacks words `[words, cols]`, each column a stream of `count` codes, into codes `[cols, count]`.
pub(super) fn unpack_columns(words: &[u8], cols: usize, count: usize, bits: u8) -> Vec<u8> {
    let row_bytes = 4 * words_for(count, bits);
    let streams = transposed_words(words, cols);
    let mut codes = vec![0; cols * count];
    for (stream, out) in streams.chunks_exact(row_bytes).zip(codes.chunks_exact_mut(count)) {
        unpack_bits(stream, bits, out);
    }
    codes
}

/// Packs codes `[cols, count]` into words `[words, cols]`, each column a stream.
pub(super) fn pack_columns(codes: &[u8], count: usize, bits: u8) -> Vec<u8> {
    transposed_words(&pack_rows(codes, count, bits), words_for(count, bits))
}

/// Words `[rows, cols]` as `[cols, rows]`.
fn transposed_words(words: &[u8], cols: usize) -> Vec<u8> {
    let words = words.as_chunks::<4>().0;
    let mut out = vec![[0u8; 4]; words.len()];
    transpose_into(words, cols, &mut out);
    out.into_flattened()
}

/// A matrix `[rows, cols]` as `[cols, rows]`.
pub(super) fn transposed<T: Copy + Default>(values: &[T], cols: usize) -> Vec<T> {
    let mut out = vec![T::default(); values.len()];
    transpose_into(values, cols, &mut out);
    out
}

/// Tiles of 16 rows, so that both sides stay in the first-level cache.
fn transpose_into<T: Copy>(values: &[T], cols: usize, out: &mut [T]) {
    let rows = values.len() / cols;
    for first in (0..rows).step_by(16) {
        let last = (first + 16).min(rows);
        for c in 0..cols {
            for r in first..last {
                out[c * rows + r] = values[r * cols + c];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn eight_nibbles_make_the_word_of_the_literature() {
        assert_eq!(pack_rows(&[0, 1, 2, 3, 4, 5, 6, 7], 8, 4), 0x7654_3210u32.to_le_bytes());
    }

    proptest! {
        #[test]
        fn columns_and_rows_come_back(bits in 1u8..=8, count in 1usize..70, lanes in 1usize..40, seed: u64) {
            let codes: Vec<u8> = (0..count * lanes)
                .map(|i| ((seed.wrapping_mul(2 * i as u64 + 1) >> 40) as u32 & ((1 << bits) - 1)) as u8)
                .collect();
            prop_assert_eq!(&unpack_rows(&pack_rows(&codes, count, bits), lanes, count, bits), &codes);
            prop_assert_eq!(&unpack_columns(&pack_columns(&codes, count, bits), lanes, count, bits), &codes);
            prop_assert_eq!(transposed(&transposed(&codes, count), lanes), codes);
        }
    }
}
