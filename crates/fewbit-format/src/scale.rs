use bytes::Bytes;
use half::{bf16, f16};

use crate::dtype::wide;
use crate::group::pick;
use crate::minifloat::power_of_two;
use crate::{Dtype, Minifloat, Tensor};

/// The type in which a scale is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the types")]
pub enum ScaleType {
    F16,
    BF16,
    F32,
    /// A power of two, one byte: the exponent plus 127 (OCP Microscaling Formats).
    E8M0,
    /// Eight bits of float, up to 448 (NVFP4).
    E4M3,
}

impl ScaleType {
    /// Bits of one scale.
    pub fn bits(self) -> u64 {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::BF16 => 16,
            Self::E8M0 | Self::E4M3 => 8,
        }
    }

    /// The type of elements that tensors of such scales have.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
            Self::F32 => Dtype::F32,
            Self::E8M0 => Dtype::F8E8M0,
            Self::E4M3 => Dtype::F8E4M3,
        }
    }

    /// The nearest value that can be stored. A positive scale never becomes zero or infinite; a power of two is positive.
    pub fn round(self, s: f32) -> f32 {
        match self {
            Self::F32 => s,
            Self::F16 => {
                let (least, most) = (f16::from_bits(1).to_f32(), f16::MAX.to_f32());
                if s == 0.0 { 0.0 } else { f16::from_f32(s.abs().clamp(least, most)).to_f32().copysign(s) }
            }
            Self::BF16 => {
                let most = bf16::MAX.to_f32();
                bf16::from_f32(s.clamp(-most, most)).to_f32()
            }
            Self::E8M0 => {
                // Past the middle of its mantissa a number is nearer to the next power.
                let exponent = (s.abs().to_bits() + (1 << 22)) >> 23;
                power_of_two((exponent as i32).min(254) - 127)
            }
            Self::E4M3 => {
                let least = 1.0 / 512.0;
                if s == 0.0 { 0.0 } else { Minifloat::E4M3.round(s.abs().max(least)).copysign(s) }
            }
        }
    }

    /// Scales that the type holds exactly, as stored bytes (little-endian).
    pub fn to_bytes(self, scales: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
            Self::F16 => scales.iter().flat_map(|s| f16::from_f32(*s).to_le_bytes()).collect(),
            Self::BF16 => scales.iter().flat_map(|s| bf16::from_f32(*s).to_le_bytes()).collect(),
            Self::E8M0 => scales.iter().map(|s| (s.to_bits() >> 23) as u8).collect(),
            Self::E4M3 => scales.iter().map(|s| Minifloat::E4M3.encode(*s)).collect(),
        }
    }

    /// Scale `at` of stored bytes.
    #[inline]
    pub fn get(self, bytes: &[u8], at: usize) -> f32 {
        let two = || [bytes[2 * at], bytes[2 * at + 1]];
        match self {
            Self::F32 => f32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]]),
            Self::F16 => wide(f16::from_le_bytes(two())),
            Self::BF16 => bf16::from_le_bytes(two()).to_f32(),
            Self::E8M0 => power_of_two(i32::from(bytes[at]) - 127),
            Self::E4M3 => Minifloat::E4M3.decode(bytes[at]),
        }
    }
}

/// Scales as they are held and stored: in the bytes of their type, which may be mapped.
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    kind: ScaleType,
    bytes: Bytes,
}

impl Scales {
    /// Takes numbers that the type holds exactly.
    pub fn new(kind: ScaleType, values: &[f32]) -> Self {
        Self::stored(kind, kind.to_bytes(values).into())
    }

    /// Takes numbers in the bytes of their type.
    pub fn stored(kind: ScaleType, bytes: Bytes) -> Self {
        Self { kind, bytes }
    }

    /// Their type.
    pub fn kind(&self) -> ScaleType {
        self.kind
    }

    /// Their bytes, little-endian.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        8 * self.bytes.len() / self.kind.bits() as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Scale `i`.
    #[inline]
    pub fn get(&self, i: usize) -> f32 {
        self.kind.get(&self.bytes, i)
    }

    /// Scales `first..first + out.len()`.
    pub(crate) fn read(&self, first: usize, out: &mut [f32]) {
        let size = self.kind.bits() as usize / 8;
        let bytes = &self.bytes[first * size..][..out.len() * size];
        self.kind.dtype().widen(bytes, out).expect("scales are floats");
    }

    /// As a tensor of this shape.
    pub fn tensor(&self, shape: &[usize]) -> Tensor {
        Tensor { dtype: self.kind.dtype(), shape: shape.to_vec(), bytes: self.bytes.clone() }
    }

    /// All of them.
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        self.read(0, &mut values);
        values
    }

    /// Everything stored, in bits.
    pub fn stored_bits(&self) -> u64 {
        8 * self.bytes.len() as u64
    }

    /// Those of these rows of a matrix with `per_row` scales each; all where one set serves every row.
    pub(crate) fn select_rows(&self, rows: &[usize], per_row: usize, is_shared: bool) -> Self {
        let row_bytes = per_row * self.kind.bits() as usize / 8;
        Self { kind: self.kind, bytes: pick(&self.bytes, rows, row_bytes, is_shared).into() }
    }

    /// Those at these places, in this order; zero where there is no place.
    pub(crate) fn picked(&self, places: impl Iterator<Item = Option<usize>>) -> Self {
        let size = self.kind.bits() as usize / 8;
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for place in places {
            match place {
                Some(i) => bytes.extend_from_slice(&self.bytes[i * size..(i + 1) * size]),
                None => bytes.resize(bytes.len() + size, 0),
            }
        }
        Self { kind: self.kind, bytes: bytes.into() }
    }

    /// Those of several matrices of one type.
    pub(crate) fn stack<'a>(parts: impl Iterator<Item = &'a Self> + Clone) -> Option<Self> {
        let kind = parts.clone().next()?.kind;
        let is_alike = parts.clone().all(|p| p.kind == kind);
        is_alike.then(|| Self { kind, bytes: parts.flat_map(|p| p.bytes.iter().copied()).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rounded_comes_back_from_its_bytes() {
        for kind in [ScaleType::F16, ScaleType::BF16, ScaleType::F32, ScaleType::E8M0, ScaleType::E4M3] {
            let scales: Vec<f32> = (1..400).map(|i| kind.round(1e-3 * 1.04f32.powi(i))).collect();
            let bytes = kind.to_bytes(&scales);
            assert_eq!(8 * bytes.len() as u64, kind.bits() * scales.len() as u64);
            let held = Scales::new(kind, &scales);
            assert_eq!((held.values(), held.len()), (scales, 399), "{kind:?}");
            let (some, all) = (held.select_rows(&[2, 0], 3, false), Scales::stack([&held, &held].into_iter()).unwrap());
            assert_eq!(some.values(), [6, 7, 8, 0, 1, 2].map(|i| held.get(i)), "{kind:?}");
            assert_eq!((all.stored_bits(), all.get(400)), (2 * held.stored_bits(), held.get(1)), "{kind:?}");
        }
    }

    #[test]
    fn powers_of_two_are_the_nearest_and_never_nothing() {
        let round = |s| ScaleType::E8M0.round(s);
        assert_eq!([round(1.0), round(1.49), round(1.5), round(3.1), round(0.7)], [1.0, 1.0, 2.0, 4.0, 0.5]);
        assert_eq!([round(0.0), round(f32::MAX)], [2f32.powi(-127), 2f32.powi(127)]);
        assert_eq!(ScaleType::E8M0.to_bytes(&[2f32.powi(-127), 1.0, 2f32.powi(127)]), [0, 127, 254]);
        assert_eq!([ScaleType::E4M3.round(1e-9), ScaleType::E4M3.round(1e9)], [1.0 / 512.0, 448.0]);
    }
}
