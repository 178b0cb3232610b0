use std::fmt;

use crate::{Error, Result, ScaleType};

/// A floating-point type of 2 to 8 bits: a sign, `exponent` bits and `mantissa` bits, with subnormals.
///
/// The bias is `2^(exponent−1) − 1`. All codes are numbers, except that E4M3 keeps its last code of either sign for "not
/// a number" and E5M2 its last exponent (OCP Microscaling Formats 1.0; OCP 8-bit Floating Point 1.0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Minifloat {
    exponent: u8,
    mantissa: u8,
}

impl Minifloat {
    /// 0, ½, 1, 1½, 2, 3, 4, 6: the element of MXFP4 and NVFP4.
    pub const E2M1: Self = Self { exponent: 2, mantissa: 1 };
    /// Up to 448.
    pub const E4M3: Self = Self { exponent: 4, mantissa: 3 };
    /// Up to 57344.
    pub const E5M2: Self = Self { exponent: 5, mantissa: 2 };

    /// A type by its name, such as `e2m1`.
    ///
    /// # Errors
    /// If it is no name, has no exponent, or is wider than 8 bits.
    pub fn parse(name: &str) -> Result<Self> {
        let sizes = name.strip_prefix('e').and_then(|rest| rest.split_once('m'));
        let number = |text: &str| text.parse::<u8>().ok().filter(|n| *n < 8);
        match sizes.map(|(e, m)| (number(e), number(m))) {
            Some((Some(exponent), Some(mantissa))) if exponent > 0 && exponent + mantissa < 8 => {
                Ok(Self { exponent, mantissa })
            }
            _ => Err(Error::input(format!("`{name}` is no small float")).hint(
                "`eXmY` has X bits of exponent, at least one, and Y of mantissa, 7 together at most: `e2m1`, `e4m3`",
            )),
        }
    }

    /// Bits of the exponent.
    pub fn exponent(self) -> u8 {
        self.exponent
    }

    /// Bits of the mantissa.
    pub fn mantissa(self) -> u8 {
        self.mantissa
    }

    /// Bits of a code.
    pub fn bits(self) -> u8 {
        1 + self.exponent + self.mantissa
    }

    /// The exponent of the greatest number: 2 for E2M1, 8 for E4M3.
    pub fn greatest_exponent(self) -> i32 {
        let codes = (1i32 << self.exponent) - 1;
        codes - self.bias() - i32::from(self == Self::E5M2)
    }

    /// The greatest number: `(2 − 2^−mantissa) · 2^e`, a step less for E4M3.
    pub fn max(self) -> f32 {
        let steps = (2u32 << self.mantissa) - if self == Self::E4M3 { 2 } else { 1 };
        steps as f32 * power_of_two(self.greatest_exponent() - i32::from(self.mantissa))
    }

    /// The power of two under which the greatest magnitude `reach` of a block lands below 7/8 of the binade after the
    /// greatest number's: the rule of compressed-tensors, between OCP's (always down) and one without saturation.
    pub fn power_scale(self, reach: f32) -> f32 {
        if reach == 0.0 {
            return 1.0;
        }
        let binade = f32::from_bits((reach.to_bits() + (1 << 21)) & 0x7f80_0000);
        ScaleType::E8M0.round(binade * power_of_two(-self.greatest_exponent()))
    }

    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// The nearest number; between two the one whose mantissa is even; beyond the greatest the greatest.
    #[inline]
    pub fn round(self, x: f32) -> f32 {
        let magnitude = x.abs().min(self.max());
        // 2^(e + 23 − mantissa), with the exponent of x or of the subnormals: adding it leaves whole steps.
        let least = (128 - self.bias()) as u32;
        let exponent = (magnitude.to_bits() >> 23).max(least);
        let shift = f32::from_bits((exponent + 23 - u32::from(self.mantissa)) << 23);
        ((magnitude + shift) - shift).copysign(x)
    }

    /// The code of the nearest number: sign, exponent, mantissa.
    #[inline]
    pub fn encode(self, x: f32) -> u8 {
        let bits = (self.round(x) * power_of_two(self.bias() - 127)).to_bits();
        ((bits >> 31) << (self.bits() - 1) | (bits & 0x7fff_ffff) >> (23 - self.mantissa)) as u8
    }

    /// What a code stands for: its bits in the places of an f32, times a power of two for the difference of the biases.
    ///
    /// Codes that stand for no number ([`is_number`](Self::is_number)) give one beyond the greatest.
    #[inline]
    pub fn decode(self, code: u8) -> f32 {
        let sign = u32::from(code) >> (self.bits() - 1) << 31;
        let magnitude = u32::from(code) & ((1 << (self.bits() - 1)) - 1);
        f32::from_bits(sign | magnitude << (23 - self.mantissa)) * power_of_two(127 - self.bias())
    }

    /// Whether a code stands for a number.
    pub fn is_number(self, code: u8) -> bool {
        match self {
            Self::E4M3 => code & 0x7f != 0x7f,
            Self::E5M2 => code & 0x7c != 0x7c,
            _ => true,
        }
    }
}

impl fmt::Display for Minifloat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}m{}", self.exponent, self.mantissa)
    }
}

/// `2^e` for exponents of an f32, the subnormal ones too.
#[inline]
pub(crate) fn power_of_two(e: i32) -> f32 {
    if e < -126 { f32::from_bits(1 << (e + 149)) } else { f32::from_bits(((e + 127) as u32) << 23) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Minifloat> {
        (1..8).flat_map(|e| (0..8 - e).map(move |m| Minifloat { exponent: e, mantissa: m }))
    }

    #[test]
    fn the_values_of_the_specifications() {
        let values = |name: &str, count: u8| -> Vec<f32> {
            (0..count).map(|c| Minifloat::parse(name).unwrap().decode(c)).collect()
        };
        assert_eq!(values("e2m1", 8), [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
        assert_eq!(values("e3m0", 8), [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]);
        assert_eq!(values("e1m2", 8), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]);
        let greatest = |name: &str| Minifloat::parse(name).unwrap().max();
        assert_eq!(["e2m3", "e3m2", "e4m3", "e5m2"].map(greatest), [7.5, 28.0, 448.0, 57344.0]);
        let exponent = |name: &str| Minifloat::parse(name).unwrap().greatest_exponent();
        assert_eq!(["e2m1", "e2m3", "e3m2", "e4m3", "e5m2"].map(exponent), [2, 2, 4, 8, 15]);
        let e4m3 = Minifloat::E4M3;
        assert_eq!(
            [0x01, 0x07, 0x08, 0x38, 0x7e, 0xfe].map(|c| e4m3.decode(c)),
            [2f32.powi(-9), 0.875 * 2f32.powi(-6), 2f32.powi(-6), 1.0, 448.0, -448.0]
        );
        assert!(!e4m3.is_number(0x7f) && !e4m3.is_number(0xff) && e4m3.is_number(0x7e));
        assert!(!Minifloat::E5M2.is_number(0x7c) && Minifloat::E5M2.is_number(0x7b));
    }

    #[test]
    fn every_code_comes_back_and_every_number_goes_to_its_nearest() {
        for f in all() {
            let codes: Vec<u8> = (0..1u32 << f.bits()).map(|c| c as u8).filter(|c| f.is_number(*c)).collect();
            let top = codes.iter().map(|c| f.decode(*c)).fold(0.0, f32::max);
            assert_eq!(top, f.max(), "{f}");
            let mut ascending: Vec<f32> = codes.iter().map(|c| f.decode(*c)).filter(|v| v.is_sign_positive()).collect();
            ascending.sort_by(f32::total_cmp);
            for code in &codes {
                assert_eq!(f.encode(f.decode(*code)), *code, "{f}");
            }
            for pair in ascending.windows(2) {
                let middle = f32::midpoint(pair[0], pair[1]);
                let (above, below) = (middle * (1.0 + 1e-6), middle * (1.0 - 1e-6));
                assert_eq!(
                    [f.round(below), f.round(above), -f.round(-above)],
                    [pair[0], pair[1], pair[1]],
                    "{f} {pair:?}"
                );
                assert!(f.mantissa == 0 || f.encode(middle) % 2 == 0, "{f}: {middle} goes to the even code");
                assert_eq!(f.decode(f.encode(middle)), f.round(middle), "{f}");
            }
            assert_eq!([f.round(1e30), f.round(-1e30)], [f.max(), -f.max()], "{f}");
        }
    }

    #[test]
    fn names_are_read_and_written() {
        for f in all() {
            assert_eq!(Minifloat::parse(&f.to_string()).unwrap(), f);
        }
        for wrong in ["e0m3", "e5m3", "e2", "m1", "fp4", ""] {
            assert!(Minifloat::parse(wrong).is_err(), "{wrong}");
        }
    }
}
