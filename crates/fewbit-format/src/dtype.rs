use half::{bf16, f16};

use crate::{Minifloat, ScaleType};

/// The element types that tensors in files have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the types")]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E5M2,
    F8E8M0,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::F8E8M0,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::Bool,
    ];

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::F8E4M3 | Self::F8E5M2 | Self::F8E8M0 | Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E8M0 => "F8_E8M0",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }

    /// Whether the type holds weights as they are multiplied.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// Widens (or, for `F64`, rounds) little-endian elements to f32. `None` for the types that are not floats.
    ///
    /// `out.len()` elements are read from `bytes`, which must hold them.
    pub fn widen(self, bytes: &[u8], out: &mut [f32]) -> Option<()> {
        match self {
            Self::F32 => {
                for (o, c) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*c);
                }
            }
            Self::F16 => {
                for (o, c) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = wide(f16::from_le_bytes(*c));
                }
            }
            Self::BF16 => {
                for (o, c) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = bf16::from_le_bytes(*c).to_f32();
                }
            }
            Self::F64 => {
                for (o, c) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    *o = f64::from_le_bytes(*c) as f32;
                }
            }
            Self::F8E4M3 | Self::F8E5M2 => {
                let kind = if self == Self::F8E4M3 { Minifloat::E4M3 } else { Minifloat::E5M2 };
                for (o, c) in out.iter_mut().zip(bytes) {
                    *o = if kind.is_number(*c) { kind.decode(*c) } else { f32::NAN };
                }
            }
            Self::F8E8M0 => {
                for (at, o) in out.iter_mut().enumerate() {
                    *o = if bytes[at] == 0xff { f32::NAN } else { ScaleType::E8M0.get(bytes, at) };
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Rounds f32 values to this type, little-endian (nearest, ties to even). `None` for the types that are not floats.
    /// Floats of 8 bits end at their greatest number; a power of two is a magnitude.
    pub fn narrow(self, values: &[f32]) -> Option<Vec<u8>> {
        Some(match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Self::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Self::F64 => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
            Self::F8E4M3 => values.iter().map(|v| Minifloat::E4M3.encode(*v)).collect(),
            Self::F8E5M2 => values.iter().map(|v| Minifloat::E5M2.encode(*v)).collect(),
            Self::F8E8M0 => {
                let scales: Vec<f32> = values.iter().map(|v| ScaleType::E8M0.round(*v)).collect();
                ScaleType::E8M0.to_bytes(&scales)
            }
            _ => return None,
        })
    }
}

/// The same number as f32. A call into `half` for each would cost as much as the rest of a decoder.
#[inline]
pub(crate) fn wide(value: f16) -> f32 {
    let bits = u32::from(value.to_bits());
    let magnitude = bits & 0x7fff;
    // Not by one product with 2^112: it takes subnormal floats, each a hundred cycles.
    let subnormal = (magnitude as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
    let normal = (magnitude << 13) + (112 << 23);
    let other = if magnitude < 0x7c00 { normal } else { magnitude << 13 | 0xff << 23 };
    f32::from_bits(if magnitude < 0x400 { subnormal } else { other } | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_widened() {
        for half in (0..=u16::MAX).map(f16::from_bits) {
            assert!(wide(half) == half.to_f32() || wide(half).is_nan() && half.is_nan(), "{half}");
        }
    }
}
