/// Bytes that `count` codes of `bits` bits take: a little-endian bit stream, padded to a byte.
pub fn packed_len(count: usize, bits: u8) -> usize {
    (count * usize::from(bits)).div_ceil(8)
}

/// Packs codes (each below `2^bits`) into a little-endian bit stream: code `i` lies at bits `[i·bits, (i+1)·bits)`.
pub fn pack_bits(codes: &[u8], bits: u8, out: &mut [u8]) {
    debug_assert!((1..=8).contains(&bits) && out.len() == packed_len(codes.len(), bits));
    let (mut word, mut filled, mut at) = (0u32, 0u32, 0);
    for &code in codes {
        debug_assert!(bits == 8 || code >> bits == 0, "code {code} beyond {bits} bits");
        word |= u32::from(code) << filled;
        filled += u32::from(bits);
        while filled >= 8 {
            out[at] = word as u8;
            (word, filled, at) = (word >> 8, filled - 8, at + 1);
        }
    }
    if filled > 0 {
        out[at] = word as u8;
    }
}

/// Unpacks `out.len()` codes of `bits` bits from a stream made by [`pack_bits`].
pub fn unpack_bits(packed: &[u8], bits: u8, out: &mut [u8]) {
    debug_assert!((1..=8).contains(&bits) && packed.len() >= packed_len(out.len(), bits));
    let mask = ((1u32 << bits) - 1) as u8;
    match bits {
        8 => out.copy_from_slice(&packed[..out.len()]),
        4 => {
            for (i, o) in out.iter_mut().enumerate() {
                *o = packed[i / 2] >> (4 * (i % 2)) & 15;
            }
        }
        _ => {
            let (mut word, mut filled, mut at) = (0u32, 0u32, 0);
            for o in out {
                if filled < u32::from(bits) {
                    word |= u32::from(packed[at]) << filled;
                    (filled, at) = (filled + 8, at + 1);
                }
                *o = word as u8 & mask;
                (word, filled) = (word >> bits, filled - u32::from(bits));
            }
        }
    }
}

/// Bytes as lower-case hexadecimal digits, for hashes.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('?');
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn unpacks_what_was_packed(bits in 1u8..=8, raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            let codes: Vec<u8> = raw.iter().map(|c| (u32::from(*c) & ((1 << bits) - 1)) as u8).collect();
            let mut packed = vec![0; packed_len(codes.len(), bits)];
            pack_bits(&codes, bits, &mut packed);
            let mut back = vec![0; codes.len()];
            unpack_bits(&packed, bits, &mut back);
            prop_assert_eq!(back, codes);
        }
    }
}
