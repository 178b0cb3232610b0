//! One row of log-probabilities in 16 bits a token.
//!
//! With `x = max − ln p ≥ 0` and `R` the greatest `x` of the row, the code is `round(65535 √(x / R))`: an error of a
//! code step is the smaller the likelier the token, so that the divergence computed from codes is that of the row.
//! A row is `R` (f32), the nats of the token that came (f64), then the codes (u16), all little-endian.

use fewbit_kernel::elementwise::argmax;

const HEAD: usize = 12;
const TOP: f32 = 65535.0;

/// Bytes of one row.
pub(crate) fn row_bytes(vocabulary: usize) -> usize {
    HEAD + 2 * vocabulary
}

/// Writes one row of logits.
pub(crate) fn encode(logits: &[f32], nll: f64, out: &mut [u8]) {
    let greatest = logits[argmax(logits)];
    let range = logits.iter().fold(0f32, |r, v| r.max(greatest - v));
    let factor = if range > 0.0 { 1.0 / range } else { 0.0 };
    let (head, codes) = out.split_at_mut(HEAD);
    head[..4].copy_from_slice(&range.to_le_bytes());
    head[4..].copy_from_slice(&nll.to_le_bytes());
    for (v, out) in logits.iter().zip(codes.as_chunks_mut::<2>().0) {
        let code = (((greatest - v) * factor).sqrt() * TOP).round_ties_even() as u16;
        *out = code.to_le_bytes();
    }
}

/// Reads one row as logits whose greatest is 0; returns the nats of the token that came. `None` if it is damaged.
pub(crate) fn decode(bytes: &[u8], logits: &mut [f32]) -> Option<f64> {
    let (range, rest) = bytes.split_first_chunk::<4>()?;
    let (nll, codes) = rest.split_first_chunk::<8>()?;
    let (range, nll) = (f32::from_le_bytes(*range), f64::from_le_bytes(*nll));
    if !(range.is_finite() && range >= 0.0 && nll.is_finite()) {
        return None;
    }
    let factor = -range / (TOP * TOP);
    for (v, code) in logits.iter_mut().zip(codes.as_chunks::<2>().0) {
        let code = f32::from(u16::from_le_bytes(*code));
        *v = factor * (code * code);
    }
    Some(nll)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::compare;

    #[test]
    fn divergence_from_codes_is_that_of_the_row() {
        // Peaked and flat rows, with tails as long as real models have them.
        for (n, sharp) in [(512, 1.0f32), (2048, 4.0), (49_152, 8.0), (49_152, 0.3), (9, 0.0)] {
            for noise in [0.003f32, 0.05, 0.3] {
                let (mut direct, mut coded) = (0.0, 0.0);
                for r in 0..40 {
                    let p: Vec<f32> =
                        (0..n).map(|i| ((i * 31 + r * 17) as f32 * 0.37).sin().powi(3) * sharp * 2.5).collect();
                    let wave = |i: usize| ((i + 7 * r) as f32 * 1.91).cos();
                    let q: Vec<f32> = p.iter().enumerate().map(|(i, v)| v + noise * wave(i)).collect();
                    let mut bytes = vec![0; row_bytes(n)];
                    encode(&p, 2.5, &mut bytes);
                    let mut back = vec![0.0; n];
                    assert_eq!(decode(&bytes, &mut back), Some(2.5));
                    assert_eq!(argmax(&back), argmax(&p));
                    direct += compare(&p, &q, 0).kl / 40.0;
                    coded += compare(&back, &q, 0).kl / 40.0;
                }
                let off = (direct - coded).abs();
                assert!(off <= 1e-4 * direct || off <= 2e-6, "{n} {sharp} {noise}: {direct} {coded}");
            }
        }
    }

    #[test]
    fn damage_is_noticed() {
        let mut bytes = vec![0; row_bytes(3)];
        encode(&[1.0, 1.0, 1.0], 0.5, &mut bytes);
        let mut back = [9.0; 3];
        assert_eq!(decode(&bytes, &mut back), Some(0.5));
        assert_eq!(back, [0.0; 3]);
        bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        assert_eq!(decode(&bytes, &mut back), None);
        assert_eq!(decode(&bytes[..7], &mut back), None);
    }
}
