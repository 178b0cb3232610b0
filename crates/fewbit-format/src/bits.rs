/// Calls a function of a constant number of bits.
macro_rules! by_bits {
    ($bits:expr, $name:ident($($arg:expr),*)) => {
        match $bits {
            1 => $name::<1>($($arg),*),
            2 => $name::<2>($($arg),*),
            3 => $name::<3>($($arg),*),
            4 => $name::<4>($($arg),*),
            5 => $name::<5>($($arg),*),
            6 => $name::<6>($($arg),*),
            7 => $name::<7>($($arg),*),
            _ => $name::<8>($($arg),*),
        }
    };
}
pub(crate) use by_bits;

/// Bytes that `count` codes of `bits` bits take: a little-endian bit stream, padded to a byte.
pub fn packed_len(count: usize, bits: u8) -> usize {
    (count * usize::from(bits)).div_ceil(8)
}

/// Packs codes (each below `2^bits`) into a little-endian bit stream: code `i` lies at bits `[i·bits, (i+1)·bits)`.
pub fn pack_bits(codes: &[u8], bits: u8, out: &mut [u8]) {
    debug_assert!((1..=8).contains(&bits) && out.len() == packed_len(codes.len(), bits));
    debug_assert!(bits == 8 || codes.iter().all(|c| c >> bits == 0), "a code beyond {bits} bits");
    by_bits!(bits, pack(codes, out));
}

/// Unpacks `out.len()` codes of `bits` bits from a stream made by [`pack_bits`].
pub fn unpack_bits(packed: &[u8], bits: u8, out: &mut [u8]) {
    debug_assert!((1..=8).contains(&bits) && packed.len() >= packed_len(out.len(), bits));
    by_bits!(bits, unpack(packed, out));
}

/// Eight codes are `BITS` bytes.
fn pack<const BITS: usize>(codes: &[u8], out: &mut [u8]) {
    let (whole, rest) = codes.as_chunks::<8>();
    let (streams, last) = out.split_at_mut(whole.len() * BITS);
    for (codes, stream) in whole.iter().zip(streams.as_chunks_mut::<BITS>().0) {
        stream.copy_from_slice(&close_up::<BITS>(u64::from_le_bytes(*codes)).to_le_bytes()[..BITS]);
    }
    let mut codes = [0; 8];
    codes[..rest.len()].copy_from_slice(rest);
    let bytes = close_up::<BITS>(u64::from_le_bytes(codes)).to_le_bytes();
    last.copy_from_slice(&bytes[..last.len()]);
}

fn unpack<const BITS: usize>(packed: &[u8], out: &mut [u8]) {
    let (whole, rest) = out.as_chunks_mut::<8>();
    let (streams, last) = packed.split_at(whole.len() * BITS);
    for (codes, stream) in whole.iter_mut().zip(streams.as_chunks::<BITS>().0) {
        let mut bytes = [0; 8];
        bytes[..BITS].copy_from_slice(stream);
        *codes = spread_out::<BITS>(u64::from_le_bytes(bytes)).to_le_bytes();
    }
    let (mut bytes, used) = ([0; 8], packed_len(rest.len(), BITS as u8));
    bytes[..used].copy_from_slice(&last[..used]);
    rest.copy_from_slice(&spread_out::<BITS>(u64::from_le_bytes(bytes)).to_le_bytes()[..rest.len()]);
}

/// Eight codes, one in each byte, as `8 · BITS` bits without gaps: pairs close up, then fours, then all.
fn close_up<const BITS: usize>(x: u64) -> u64 {
    let x = x & 0x00ff_00ff_00ff_00ff | (x & 0xff00_ff00_ff00_ff00) >> (8 - BITS);
    let x = x & 0x0000_ffff_0000_ffff | (x & 0xffff_0000_ffff_0000) >> (16 - 2 * BITS);
    x & 0x0000_0000_ffff_ffff | (x & 0xffff_ffff_0000_0000) >> (32 - 4 * BITS)
}

/// The inverse of [`close_up`]; bits beyond `8 · BITS` are ignored.
fn spread_out<const BITS: usize>(x: u64) -> u64 {
    let ones = |n: usize| u64::MAX >> (64 - n);
    let halves = |x: u64, n: usize, gap: usize, lanes: u64| {
        let low = ones(n) * lanes;
        (x & low) | ((x & (low << n)) << gap)
    };
    let x = halves(x, 4 * BITS, 32 - 4 * BITS, 1);
    let x = halves(x, 2 * BITS, 16 - 2 * BITS, 0x1_0000_0001);
    halves(x, BITS, 8 - BITS, 0x0001_0001_0001_0001)
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

    #[test]
    fn a_stream_begins_with_the_low_bits_of_the_first_code() {
        let mut out = [0; 4];
        pack_bits(&[1, 2, 3, 4, 5, 6, 7, 0, 5, 3], 3, &mut out);
        let stream = [1u32, 2, 3, 4, 5, 6, 7, 0, 5, 3].iter().enumerate().fold(0, |s, (i, c)| s | c << (3 * i));
        assert_eq!(out, stream.to_le_bytes());
    }

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
