use std::ops::Range;

use bytes::Bytes;

use crate::{
    ActivationFormat, Adapter, Error, FloatCodes, GgmlBlocks, IntCodes, LatticeCodes, Mat, Online, Result, Sides,
    SignCodes, TableCodes, Tensor, TrellisCodes, TwoOfFour, VectorCodes,
};

/// How a band of rows is stored. One variant per family of layouts; each decodes in its own file.
#[derive(Clone, Debug)]
pub enum Storage {
    /// Plain floats `[rows, in]`.
    Dense(Tensor),
    /// Integer codes with scales per group.
    Int(IntCodes),
    /// Codes into tables of numbers.
    Table(TableCodes),
    /// Codes of sums of few numbers of a group.
    Signs(SignCodes),
    /// Codes into the lattice E8, eight columns each.
    Lattice(LatticeCodes),
    /// Codes into codebooks of vectors along rows.
    Vector(VectorCodes),
    /// Paths through a trellis, a tile each.
    Trellis(TrellisCodes),
    /// Small floats with scales per group.
    Float(FloatCodes),
    /// Two weights in every four columns, in any other storage.
    TwoOfFour(TwoOfFour),
    /// Blocks of ggml.
    Ggml(GgmlBlocks),
}

impl Storage {
    /// `[rows, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(t) => [t.shape[0], t.shape[1]],
            Self::Int(c) => c.shape(),
            Self::Table(c) => c.shape(),
            Self::Signs(c) => c.shape(),
            Self::Lattice(c) => c.shape(),
            Self::Vector(c) => c.shape(),
            Self::Trellis(c) => c.shape(),
            Self::Float(c) => c.shape(),
            Self::TwoOfFour(c) => c.shape(),
            Self::Ggml(b) => b.shape(),
        }
    }

    /// Decodes rows `rows` into `out[rows.len() · in]`, row-major: the one meaning of the stored bytes.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        match self {
            Self::Dense(t) => {
                let row_bytes = t.shape[1] * t.dtype.size_bytes();
                t.dtype
                    .widen(&t.bytes[rows.start * row_bytes..rows.end * row_bytes], out)
                    .expect("dense storage is made of plain floats only");
            }
            Self::Int(c) => c.decode_rows(rows, out),
            Self::Table(c) => c.decode_rows(rows, out),
            Self::Signs(c) => c.decode_rows(rows, out),
            Self::Lattice(c) => c.decode_rows(rows, out),
            Self::Vector(c) => c.decode_rows(rows, out),
            Self::Trellis(c) => c.decode_rows(rows, out),
            Self::Float(c) => c.decode_rows(rows, out),
            Self::TwoOfFour(c) => c.decode_rows(rows, out),
            Self::Ggml(b) => b.decode_rows(rows, out),
        }
    }

    /// The same storage with these rows, in this order (copied).
    ///
    /// # Errors
    /// Where a code covers several rows, if some of them would be parted.
    pub fn select_rows(&self, rows: &[usize]) -> Result<Self> {
        let parted = |what: &str| Error::input(format!("a code covers {what}, whose order the container changes"));
        Ok(match self {
            Self::Dense(t) => {
                let bytes = gather(&t.bytes, t.shape[1] * t.dtype.size_bytes(), rows);
                Self::Dense(Tensor { dtype: t.dtype, shape: vec![rows.len(), t.shape[1]], bytes })
            }
            Self::Int(c) => Self::Int(c.select_rows(rows).ok_or_else(|| parted("scales of several rows"))?),
            Self::Table(c) => Self::Table(c.select_rows(rows).ok_or_else(|| parted("scales of several rows"))?),
            Self::Signs(c) => Self::Signs(c.select_rows(rows)),
            Self::Lattice(c) => Self::Lattice(c.select_rows(rows)),
            Self::Vector(c) => {
                let rows_of = format!("{} rows", c.grid().len);
                Self::Vector(c.select_rows(rows).ok_or_else(|| parted(&rows_of))?)
            }
            Self::Trellis(c) => Self::Trellis(c.select_rows(rows).ok_or_else(|| parted("16 rows"))?),
            Self::Float(c) => Self::Float(c.select_rows(rows)),
            Self::TwoOfFour(c) => Self::TwoOfFour(c.select_rows(rows)?),
            Self::Ggml(b) => {
                let bytes = gather(&b.bytes, b.bytes.len() / b.rows, rows);
                Self::Ggml(GgmlBlocks { rows: rows.len(), bytes, ..b.clone() })
            }
        })
    }

    /// The rows of several storages in one; `None` where they are not of one kind and grid.
    pub fn stack(parts: &[&Self]) -> Option<Self> {
        match parts {
            // Vectors have codebooks of their own.
            [] | [Self::Vector(_), ..] => None,
            [Self::Dense(first), ..] => {
                let (mut rows, mut bytes) = (0, Vec::new());
                for part in parts {
                    let Self::Dense(t) = part else { return None };
                    if t.dtype != first.dtype || t.shape[1] != first.shape[1] {
                        return None;
                    }
                    rows += t.shape[0];
                    bytes.extend_from_slice(&t.bytes);
                }
                Some(Self::Dense(Tensor { dtype: first.dtype, shape: vec![rows, first.shape[1]], bytes: bytes.into() }))
            }
            [Self::Int(_), ..] => {
                let codes: Option<Vec<&IntCodes>> =
                    parts.iter().map(|p| if let Self::Int(c) = p { Some(c) } else { None }).collect();
                IntCodes::stack(&codes?).map(Self::Int)
            }
            [Self::Table(_), ..] => {
                let codes: Option<Vec<&TableCodes>> =
                    parts.iter().map(|p| if let Self::Table(c) = p { Some(c) } else { None }).collect();
                TableCodes::stack(&codes?).map(Self::Table)
            }
            [Self::Signs(_), ..] => {
                let codes: Option<Vec<&SignCodes>> =
                    parts.iter().map(|p| if let Self::Signs(c) = p { Some(c) } else { None }).collect();
                SignCodes::stack(&codes?).map(Self::Signs)
            }
            [Self::Lattice(_), ..] => {
                let codes: Option<Vec<&LatticeCodes>> =
                    parts.iter().map(|p| if let Self::Lattice(c) = p { Some(c) } else { None }).collect();
                LatticeCodes::stack(&codes?).map(Self::Lattice)
            }
            [Self::Trellis(_), ..] => {
                let codes: Option<Vec<&TrellisCodes>> =
                    parts.iter().map(|p| if let Self::Trellis(c) = p { Some(c) } else { None }).collect();
                TrellisCodes::stack(&codes?).map(Self::Trellis)
            }
            [Self::Float(_), ..] => {
                let codes: Option<Vec<&FloatCodes>> =
                    parts.iter().map(|p| if let Self::Float(c) = p { Some(c) } else { None }).collect();
                FloatCodes::stack(&codes?).map(Self::Float)
            }
            [Self::TwoOfFour(_), ..] => {
                let codes: Option<Vec<&TwoOfFour>> =
                    parts.iter().map(|p| if let Self::TwoOfFour(c) = p { Some(c) } else { None }).collect();
                TwoOfFour::stack(&codes?).map(Self::TwoOfFour)
            }
            [Self::Ggml(first), ..] => {
                let (mut rows, mut bytes) = (0, Vec::new());
                for part in parts {
                    let Self::Ggml(b) = part else { return None };
                    if b.kind != first.kind || b.cols != first.cols {
                        return None;
                    }
                    rows += b.rows;
                    bytes.extend_from_slice(&b.bytes);
                }
                Some(Self::Ggml(GgmlBlocks { rows, bytes: bytes.into(), ..first.clone() }))
            }
        }
    }

    /// Everything stored, in bits: codes, scales, zero points, padding.
    pub fn stored_bits(&self) -> u64 {
        match self {
            Self::Dense(t) => 8 * t.bytes.len() as u64,
            Self::Int(c) => c.stored_bits(),
            Self::Table(c) => c.stored_bits(),
            Self::Signs(c) => c.stored_bits(),
            Self::Lattice(c) => c.stored_bits(),
            Self::Vector(c) => c.stored_bits(),
            Self::Trellis(c) => c.stored_bits(),
            Self::Float(c) => c.stored_bits(),
            Self::TwoOfFour(c) => c.stored_bits(),
            Self::Ggml(b) => b.stored_bits(),
        }
    }
}

/// Rows of `row_bytes` bytes each, picked.
fn gather(bytes: &[u8], row_bytes: usize, rows: &[usize]) -> Bytes {
    let mut out = Vec::with_capacity(rows.len() * row_bytes);
    for r in rows {
        out.extend_from_slice(&bytes[r * row_bytes..(r + 1) * row_bytes]);
    }
    out.into()
}

/// Consecutive rows of one matrix in one storage.
#[derive(Clone, Debug)]
pub struct Band {
    /// Rows of the matrix.
    pub rows: Range<usize>,
    /// Their storage, `[rows.len(), in]`.
    pub storage: Storage,
}

/// One compressed linear: `y = output(W · input(x)) + b`, `W [out, in]` in bands of rows and what stands beside them; what
/// adapters make of `x` is added to that.
///
/// Bands are in order and cover `0..out`; rows of one matrix may differ in bits.
#[derive(Clone, Debug)]
pub struct QuantizedLinear {
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// The rows.
    pub bands: Vec<Band>,
    /// Added to the bands.
    pub sides: Sides,
    /// Applied to each input, in order.
    pub input: Vec<Online>,
    /// How the input is rounded after that, as the bands see it.
    pub activation: Option<ActivationFormat>,
    /// Applied to each row of the product, in order, before the bias.
    pub output: Vec<Online>,
    /// `[out]`.
    pub bias: Option<Vec<f32>>,
    /// Added to all of that.
    pub adapters: Vec<Adapter>,
}

impl QuantizedLinear {
    /// One band for all rows.
    pub fn uniform(storage: Storage, bias: Option<Vec<f32>>) -> Self {
        let shape = storage.shape();
        Self::of_bands(shape, vec![Band { rows: 0..shape[0], storage }], bias)
    }

    /// Bands, and nothing beside them.
    pub fn of_bands(shape: [usize; 2], bands: Vec<Band>, bias: Option<Vec<f32>>) -> Self {
        Self {
            shape,
            bands,
            sides: Sides::default(),
            input: Vec::new(),
            activation: None,
            output: Vec::new(),
            bias,
            adapters: Vec::new(),
        }
    }

    /// Whether the bands are all that there is: nothing beside them, nothing before or after but a rounding, no adapter.
    pub fn is_plain(&self) -> bool {
        self.sides.is_empty() && self.input.is_empty() && self.output.is_empty() && self.adapters.is_empty()
    }

    /// Decodes rows `rows` of `W` into `out[rows.len() · in]`.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let cols = self.shape[1];
        for band in &self.bands {
            let (from, to) = (rows.start.max(band.rows.start), rows.end.min(band.rows.end));
            if from < to {
                let at = &mut out[(from - rows.start) * cols..(to - rows.start) * cols];
                band.storage.decode_rows(from - band.rows.start..to - band.rows.start, at);
            }
        }
        self.sides.add_rows(rows, out);
    }

    /// The whole `W`, decoded; what is applied before and after it, and what adapters add, is not in it.
    pub fn decode(&self) -> Mat {
        let mut m = Mat::zeros(self.shape[0], self.shape[1]);
        self.decode_rows(0..self.shape[0], m.data_mut());
        m
    }

    /// Everything stored for the matrix (without bias and adapters), in bits.
    pub fn stored_bits(&self) -> u64 {
        let bands: u64 = self.bands.iter().map(|b| b.storage.stored_bits()).sum();
        let online: u64 = self.input.iter().chain(&self.output).map(Online::stored_bits).sum();
        let activation = self.activation.map_or(0, |a| a.stored_bits());
        bands + self.sides.stored_bits() + online + activation
    }

    /// Whether all of it is plain floats.
    pub fn is_dense(&self) -> bool {
        self.is_plain() && self.bands.iter().all(|b| matches!(b.storage, Storage::Dense(_)))
    }
}
