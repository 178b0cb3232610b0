use std::collections::{BTreeMap, BTreeSet};

use fewbit_format::{Dtype, Error, Group, IntCodes, IntGrid, Result, ScaleType, Storage, Tensor, Zeros};

use super::Tensors;
use super::module::Module;
use super::scheme::{IntScheme, Scheme};

/// The tensors that belong to a quantized weight: codes, numbers, and what says how they lie, a tensor each.
pub(super) const PARTS: &[&str] = &[
    "W_q",
    "scale",
    "zero",
    "shape",
    "nbits",
    "group_size",
    "axis",
    "packing",
    "channel_wise",
    "quant_scale",
    "quant_zero",
    "view_as_float",
    "unpack_view_dtype",
    "compute_dtype",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
    "optimize",
    "round_zero",
];

/// HQQ's settings: those of each module, as its tensors say them. config.json says no more, where it says anything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HqqConfig {
    of_modules: BTreeMap<String, Settings>,
}

/// How a module was quantized.
#[derive(Clone, Debug, PartialEq)]
struct Settings {
    /// `None` where it is read as floats.
    scheme: Option<Scheme>,
    words: String,
}

impl HqqConfig {
    /// Looks at the modules whose codes are called `MODULE.W_q`; what makes no sense is said when the module is read.
    pub(super) fn of_tensors<'a>(tensors: &dyn Tensors, names: impl Iterator<Item = &'a str>) -> Self {
        let settings = |module: &str| {
            let shape = tensors.tensor(&format!("{module}.shape")).ok()?.to_i32().ok()?;
            let shape = [0, 1].map(|i| shape.get(i).and_then(|n| usize::try_from(*n).ok()).unwrap_or(0));
            let m = Module { tensors, name: module, shape };
            Settings::of(m).ok().map(|settings| (module.to_owned(), settings))
        };
        Self { of_modules: names.filter_map(|n| n.strip_suffix(".W_q")).filter_map(settings).collect() }
    }

    /// The scheme of a quantized module; `None` where it is read as floats.
    pub fn scheme_of(&self, module: &str) -> Option<&Scheme> {
        self.of_modules.get(module)?.scheme.as_ref()
    }

    /// How a quantized module is stored.
    pub(super) fn words_of(&self, module: &str) -> Option<String> {
        Some(self.of_modules.get(module)?.words.clone())
    }

    /// The schemes in a few words.
    pub fn describe(&self) -> String {
        let each: BTreeSet<&str> = self.of_modules.values().map(|s| s.words.as_str()).collect();
        format!("HQQ {}", each.into_iter().collect::<Vec<_>>().join("; ")).trim_end().to_owned()
    }
}

impl Settings {
    fn of(m: Module<'_>) -> Result<Self> {
        let (bits, (sharing, _)) = (bits(m)?, sharing(m)?);
        let group = match sharing {
            Sharing::Distance(_) => {
                let words = format!("{bits} bit groups of {} across rows, read as floats", number(m, "group_size")?);
                return Ok(Self { scheme: None, words });
            }
            Sharing::Neighbours(g) if !m.shape[1].is_multiple_of(g) => {
                let words = format!("{bits} bit groups of {g} over the ends of rows, read as floats");
                return Ok(Self { scheme: None, words });
            }
            Sharing::Neighbours(g) => Group::Columns(g),
            Sharing::All => Group::Tensor,
        };
        let scheme = Scheme::Int(IntScheme { bits, group, symmetric: false, act_order: false, second: None });
        Ok(Self { words: scheme.to_string(), scheme: Some(scheme) })
    }
}

/// How codes lie in words: those of a word belong to as many equal parts of the lines, the first in its highest bits.
#[derive(Clone, Copy)]
struct Packing {
    word_bytes: usize,
    per_word: usize,
    bits: u8,
}

impl Packing {
    fn of(name: &str) -> Option<Self> {
        let (word_bytes, per_word, bits) = match name {
            "8bit_u8" => (1, 1, 8),
            "4bit_u8" => (1, 2, 4),
            "3bit_32" => (4, 10, 3),
            "2bit_u8" => (1, 4, 2),
            "1bit_u8" => (1, 8, 1),
            _ => return None,
        };
        Some(Self { word_bytes, per_word, bits })
    }

    /// Codes `[lines, width]` out of words `[⌈lines / per_word⌉, width]`; `None` if there are not as many bytes.
    fn unpack(self, words: &[u8], [lines, width]: [usize; 2]) -> Option<Vec<u8>> {
        let part = lines.div_ceil(self.per_word);
        if part.checked_mul(width)?.checked_mul(self.word_bytes)? != words.len() {
            return None;
        }
        let mask = ((1u32 << self.bits) - 1) as u8;
        let mut codes = Vec::with_capacity(lines * width);
        for line in 0..lines {
            let shift = (self.per_word - 1 - line / part) * usize::from(self.bits);
            // A code may begin in one byte and end in the next.
            let at = |word: &[u8]| {
                let low = word[shift / 8] >> (shift % 8);
                let high = word.get(shift / 8 + 1).map_or(0, |b| u16::from(*b) << (8 - shift % 8));
                (low | high as u8) & mask
            };
            let words = words[line % part * width * self.word_bytes..].chunks_exact(self.word_bytes);
            codes.extend(words.take(width).map(at));
        }
        Some(codes)
    }
}

/// What shares a scale and a zero point, of the weights in the order of the matrix.
#[derive(Clone, Copy)]
enum Sharing {
    /// All.
    All,
    /// So many neighbours.
    Neighbours(usize),
    /// Those at this distance from each other.
    Distance(usize),
}

/// Reads `W_q`, the codes of the matrix in the order of its weights as `[N / g, g]` (axis 1) or `[g, N / g]` (axis 0), with
/// `scale` and `zero` for each line (axis 1) or column (axis 0): `W = (q − zero) · scale` (Badri and Shaji 2023).
///
/// Groups across rows, and those that run over the ends of rows, become floats: no grid here holds them.
pub(super) fn read(m: Module<'_>) -> Result<Storage> {
    let ([rows, cols], count) = (m.shape, m.shape[0] * m.shape[1]);
    check_shape(m)?;
    let packing = text(m, "packing")?;
    let packing = Packing::of(&packing).ok_or_else(|| {
        Error::input(format!("is `{packing}`, where 8bit_u8, 4bit_u8, 3bit_32, 2bit_u8 or 1bit_u8 is needed"))
            .tensor(&m.full_name("packing"))
    })?;
    for part in ["quant_scale", "quant_zero"] {
        if m.has(part) && number(m, part)? != 0 {
            return Err(Error::input("scales or zero points that are quantized themselves are not read")
                .hint("quantize again with hqq 0.2 or newer, which writes them as floats")
                .tensor(&m.full_name(part)));
        }
    }
    let (sharing, lines) = sharing(m)?;
    let name = m.full_name("W_q");
    let codes = m.part("W_q")?;
    let codes = packing.unpack(&codes.bytes, lines).ok_or_else(|| {
        let [lines, width] = lines;
        let (bytes, bits) = (codes.bytes.len(), packing.bits);
        Error::input(format!(
            "has {bytes} bytes, where {lines} lines of {width} codes of {bits} bits do not take as many"
        ))
        .tensor(&name)
    })?;
    let (groups, shape) = match sharing {
        Sharing::All => (1, vec![]),
        Sharing::Neighbours(g) => (count / g, vec![count / g, 1]),
        Sharing::Distance(d) => (d, vec![1, d]),
    };
    let numbers = |part: &str| {
        let (kind, values) = m.scales(part, &[&shape[..], &[groups]])?;
        match kind {
            ScaleType::F16 | ScaleType::BF16 | ScaleType::F32 => Ok((kind, values)),
            _ => Err(Error::input("has a type of 8 bits, where F16, BF16 or F32 is needed").tensor(&m.full_name(part))),
        }
    };
    let ((scale, scales), (zero, zeros)) = (numbers("scale")?, numbers("zero")?);
    let group = match sharing {
        Sharing::All => Group::Tensor,
        Sharing::Neighbours(g) if cols.is_multiple_of(g) => Group::Columns(g),
        Sharing::Neighbours(g) => return floats(m, &codes, |i| (scales[i / g], zeros[i / g])),
        Sharing::Distance(d) => return floats(m, &codes, |i| (scales[i % d], zeros[i % d])),
    };
    // Five and six bits lie in bytes.
    let bits = packing.bits.min(bits(m)?);
    // One type holds both.
    let scale = if zero == scale { scale } else { ScaleType::F32 };
    let grid = IntGrid { bits, group, symmetric: false, scale };
    IntCodes::new(rows, cols, grid, &codes, scales, points(zeros, bits)).map(Storage::Int).map_err(|e| e.tensor(&name))
}

/// Zero points as codes where all of them are.
fn points(zeros: Vec<f32>, bits: u8) -> Zeros {
    let most = ((1u32 << bits) - 1) as f32;
    if zeros.iter().all(|z| z.fract() == 0.0 && (0.0..=most).contains(z)) {
        Zeros::Codes(zeros.iter().map(|z| *z as u8).collect())
    } else {
        Zeros::Points(zeros.into())
    }
}

/// The weights themselves, `of` giving scale and zero point of the i-th.
fn floats(m: Module<'_>, codes: &[u8], of: impl Fn(usize) -> (f32, f32)) -> Result<Storage> {
    let value = |(i, q): (usize, &u8)| {
        let (scale, zero) = of(i);
        (f32::from(*q) - zero) * scale
    };
    let values: Vec<f32> = codes.iter().enumerate().map(value).collect();
    Tensor::from_f32(Dtype::F32, &m.shape, &values).map(Storage::Dense)
}

/// What shares numbers, and the lines and width of the codes.
fn sharing(m: Module<'_>) -> Result<(Sharing, [usize; 2])> {
    if m.has("channel_wise") && number(m, "channel_wise")? == 0 {
        return Ok((Sharing::All, m.shape));
    }
    let size = number(m, "group_size")?;
    let count = m.shape[0].saturating_mul(m.shape[1]);
    let g = usize::try_from(size).ok().filter(|g| *g > 0 && count.is_multiple_of(*g)).ok_or_else(|| {
        Error::input(format!("is {size}, which does not divide {count} weights")).tensor(&m.full_name("group_size"))
    })?;
    match number(m, "axis")? {
        0 => Ok((Sharing::Distance(count / g), [g, count / g])),
        1 => Ok((Sharing::Neighbours(g), [count / g, g])),
        axis => Err(Error::input(format!("is {axis}, where 0 or 1 is needed")).tensor(&m.full_name("axis"))),
    }
}

/// `shape` must agree with the model, for the codes lie as a list.
fn check_shape(m: Module<'_>) -> Result<()> {
    let shape = m.part("shape")?.to_i32().map_err(|e| e.tensor(&m.full_name("shape")))?;
    if shape.iter().map(|n| i64::from(*n)).eq(m.shape.iter().map(|n| *n as i64)) {
        return Ok(());
    }
    Err(Error::input(format!("says {shape:?}, where the config asks for {:?}", m.shape)).tensor(&m.full_name("shape")))
}

/// One integer, I32 or a byte.
fn number(m: Module<'_>, part: &str) -> Result<i32> {
    let tensor = m.part(part)?;
    match (tensor.dtype, &tensor.bytes[..]) {
        (Dtype::U8, [byte]) => Ok(i32::from(*byte)),
        (Dtype::I32, bytes) if bytes.len() == 4 => Ok(tensor.to_i32()?[0]),
        _ => Err(Error::input("is not one whole number").tensor(&m.full_name(part))),
    }
}

/// Bits of a code; three values are 1.58.
fn bits(m: Module<'_>) -> Result<u8> {
    let tensor = m.part("nbits")?;
    let is_broken = tensor.dtype.is_float() && tensor.len() == 1;
    let bits = if is_broken { tensor.to_f32()?[0].ceil() as i32 } else { number(m, "nbits")? };
    u8::try_from(bits)
        .ok()
        .filter(|b| (1..=8).contains(b))
        .ok_or_else(|| Error::input(format!("is {bits}, where 1 to 8 are read")).tensor(&m.full_name("nbits")))
}

/// A name, one byte for each letter.
fn text(m: Module<'_>, part: &str) -> Result<String> {
    let tensor = m.part(part)?;
    match String::from_utf8(tensor.bytes.to_vec()) {
        Ok(text) if tensor.dtype == Dtype::U8 && text.len() <= 32 => Ok(text),
        _ => Err(Error::input("is no short name").tensor(&m.full_name(part))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Quantization, read_linear, tensor_names};

    fn tensor(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Tensor {
        Tensor { dtype, shape: shape.to_vec(), bytes: bytes.to_vec().into() }
    }

    /// Two rows of four in groups of two, with zero points that are codes.
    fn module(axis: i32) -> BTreeMap<String, Tensor> {
        let numbers = if axis == 1 { [4, 1] } else { [1, 4] };
        let floats = |values: &[f32]| Tensor::from_f32(Dtype::F16, &numbers, values).unwrap();
        let one = |n: i32| Tensor::from_i32(&[], &[n]);
        let packed = if axis == 1 { [2, 2] } else { [1, 4] };
        let named = [
            ("W_q", tensor(Dtype::U8, &packed, &[0x15, 0x26, 0x37, 0x48])),
            ("scale", floats(&[1.0, 2.0, 4.0, 8.0])),
            ("zero", floats(&[0.0, 1.0, 2.0, 3.0])),
            ("shape", Tensor::from_i32(&[2], &[2, 4])),
            ("nbits", one(4)),
            ("group_size", one(2)),
            ("axis", one(axis)),
            ("packing", tensor(Dtype::U8, &[7], b"4bit_u8")),
        ];
        named.into_iter().map(|(part, t)| (format!("m.{part}"), t)).collect()
    }

    fn quantization(tensors: &BTreeMap<String, Tensor>) -> Quantization {
        let names = tensors.keys().map(String::as_str);
        Quantization::None.with_files(tensors, names, &BTreeMap::new()).unwrap()
    }

    fn decoded(tensors: &BTreeMap<String, Tensor>) -> (Storage, [f32; 8]) {
        let mut values = [0.0; 8];
        let storage = read_linear(&quantization(tensors), tensors, "m", [2, 4]).unwrap();
        storage.decode_rows(0..2, &mut values);
        (storage, values)
    }

    #[test]
    fn lines_are_groups_or_columns_are() {
        let along = module(1);
        let (storage, values) = decoded(&along);
        assert_eq!(values, [1.0, 2.0, 4.0, 6.0, 12.0, 16.0, 32.0, 40.0]);
        assert!(matches!(&storage, Storage::Int(codes) if matches!(codes.zeros(), Zeros::Codes(_))));
        let q = quantization(&along);
        assert_eq!(q.describe().unwrap(), "HQQ 4 bit group 2 asymmetric");
        assert_eq!(Scheme::of(&storage).as_ref(), q.scheme_of("m"));
        assert!(along.keys().all(|n| tensor_names(&q, "m").contains(n)));

        let across = module(0);
        let (storage, values) = decoded(&across);
        assert_eq!(values, [1.0, 2.0, 4.0, 8.0, 5.0, 10.0, 20.0, 40.0]);
        assert!(matches!(storage, Storage::Dense(_)));
        assert_eq!(quantization(&across).words_of("m").unwrap(), "4 bit groups of 2 across rows, read as floats");
    }

    #[test]
    fn real_zero_points_stay_real() {
        let mut tensors = module(1);
        tensors.insert("m.zero".into(), Tensor::from_f32(Dtype::F32, &[4, 1], &[0.5, 1.0, 2.0, 3.0]).unwrap());
        let (storage, values) = decoded(&tensors);
        assert_eq!(values[..2], [0.5, 1.5]);
        assert!(matches!(storage, Storage::Int(codes) if matches!(codes.zeros(), Zeros::Points(_))));
    }

    #[test]
    fn contradictions_name_the_tensor() {
        let fails = |part: &str, t: Tensor| {
            let mut tensors = module(1);
            tensors.insert(format!("m.{part}"), t);
            read_linear(&quantization(&tensors), &tensors, "m", [2, 4]).unwrap_err().to_string()
        };
        let one = |n: i32| Tensor::from_i32(&[], &[n]);
        assert!(fails("shape", Tensor::from_i32(&[2], &[4, 2])).starts_with("tensor `m.shape`: says [4, 2]"));
        assert_eq!(fails("axis", one(2)), "tensor `m.axis`: is 2, where 0 or 1 is needed");
        assert_eq!(fails("group_size", one(0)), "tensor `m.group_size`: is 0, which does not divide 8 weights");
        assert_eq!(fails("nbits", one(9)), "tensor `m.nbits`: is 9, where 1 to 8 are read");
        assert!(fails("nbits", one(3)).contains("holds a code beyond 3 bits"));
        assert!(fails("packing", tensor(Dtype::U8, &[3], b"4x4")).contains("is `4x4`, where 8bit_u8"));
        assert!(
            fails("W_q", tensor(Dtype::U8, &[3], &[0; 3])).contains("has 3 bytes, where 4 lines of 2 codes of 4 bits")
        );
        assert!(fails("quant_zero", tensor(Dtype::U8, &[], &[1])).contains("quantized themselves"));
        assert!(fails("zero", tensor(Dtype::U8, &[4, 1], &[1; 4])).contains("has a type of 8 bits"));
    }
}
