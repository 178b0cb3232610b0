//! Which tensors a file will have, in which types.

use std::collections::BTreeMap;

use bytes::Bytes;
use fewbit_format::{Dtype, Error, QuantizedLinear, Result, Tensor};
use fewbit_graph::{Part, Rows, Source, WeightId};
use fewbit_store::{Elements, GgufWriter, ModelFile, TensorPlan};

use super::blocks::{elements_of, encode};
use super::rotation;

/// The tensors of a file, in its order.
#[derive(Debug)]
pub(crate) struct Plan {
    tensors: Vec<(TensorPlan, From)>,
    /// Matrices that were F32 and are F16.
    rounded: usize,
}

/// The linears of which a tensor has the rows, and which rows.
type Members = Vec<(WeightId, Rows)>;

/// Where the numbers of a tensor come from.
#[derive(Clone, Debug)]
enum From {
    Matrix(Part, Members),
    Bias(Part, Members),
    Vector(Part, usize),
    Numbers(Vec<f32>),
}

impl Plan {
    /// Plans every tensor of a model of a family that GGUF names as this.
    ///
    /// # Errors
    /// Names the first linear that no type holds.
    pub(crate) fn of(file: &ModelFile, family: &str) -> Result<Self> {
        let mut plan = Self { tensors: Vec::new(), rounded: 0 };
        if let Some(factors) = rotation::factors(file, family)? {
            plan.plain("rope_freqs.weight".to_owned(), vec![factors.len()], From::Numbers(factors));
        }
        for (part, graph) in file.model().parts() {
            for w in 0..graph.weights.len() {
                if part != Part::Head || !file.is_tied() {
                    plan.matrix(file, part, w)?;
                }
            }
            for (v, vector) in graph.vectors.iter().enumerate() {
                plan.plain(name(file, part, vector.name)?.name, vector.shape(), From::Vector(part, v));
            }
            file.drop_pages(part);
        }
        Ok(plan)
    }

    /// Plans the tensor that begins with a linear, if one does.
    fn matrix(&mut self, file: &ModelFile, part: Part, w: WeightId) -> Result<()> {
        let weights = &file.model().part(part).weights;
        let (weight, source) = (&weights[w], name(file, part, &weights[w].name)?);
        let mut members = Members::new();
        for (other, weight) in weights.iter().enumerate() {
            let at = name(file, part, &weight.name)?;
            if at.name == source.name {
                members.push((other, at.rows));
            }
        }
        if members.first().is_none_or(|(first, _)| *first != w) {
            return Ok(());
        }
        let mut elements = None;
        for (w, _) in &members {
            let place =
                |e: Error| e.tensor(&format!("{}.weight", file.module(part, *w))).file(file.checkpoint().path());
            let linear = file.linear(part, *w)?;
            let of_linear = elements_of(&linear.bands)
                .map_err(|why| place(Error::input(format!("a GGUF file cannot hold it: {why}"))))?;
            if *elements.get_or_insert(of_linear) != of_linear {
                return Err(place(Error::input(format!(
                    "would have another type than the other rows of `{}.weight`, where a tensor has one",
                    source.name
                ))));
            }
            self.rounded += usize::from(is_rounded(&linear, of_linear));
        }
        let elements = elements.ok_or_else(|| Error::internal("a tensor of no linear"))?;
        let rows = source.rows.stored_count(weight.shape[0]);
        let plan = TensorPlan { name: format!("{}.weight", source.name), elements, shape: vec![rows, weight.shape[1]] };
        self.tensors.push((plan, From::Matrix(part, members.clone())));
        if weight.has_bias {
            self.plain(format!("{}.bias", source.name), vec![rows], From::Bias(part, members));
        }
        Ok(())
    }

    /// Norms, biases and other vectors are F32 in every GGUF file.
    fn plain(&mut self, name: String, shape: Vec<usize>, from: From) {
        let elements = Elements::Plain(Dtype::F32);
        self.tensors.push((TensorPlan { name, elements, shape }, from));
    }

    /// The plans for the writer.
    pub(super) fn tensor_plans(&self) -> Vec<TensorPlan> {
        self.tensors.iter().map(|(plan, _)| plan.clone()).collect()
    }

    /// Writes the tensors in order.
    pub(super) fn write(&self, file: &ModelFile, writer: &mut GgufWriter) -> Result<()> {
        let mut before = None;
        for (plan, from) in &self.tensors {
            match from {
                From::Matrix(part, members) => {
                    let bytes = members.iter().map(|(w, rows)| {
                        let bytes = encode(&file.linear(*part, *w)?.bands, plan.elements)?;
                        Ok((file.model().part(*part).weights[*w].shape[0], *rows, bytes))
                    });
                    let bytes = bytes.collect::<Result<Vec<_>>>().map_err(|e| e.tensor(&plan.name))?;
                    writer.tensor(&placed(bytes))?;
                }
                From::Bias(part, members) => {
                    let bytes = members.iter().map(|(w, rows)| {
                        let bias = file.linear(*part, *w)?.bias.unwrap_or_default();
                        Ok((bias.len(), *rows, f32s(&bias)?))
                    });
                    writer.tensor(&placed(bytes.collect::<Result<_>>()?))?;
                }
                From::Vector(part, v) => writer.tensor(&f32s(&file.vector(*part, *v)?)?)?,
                From::Numbers(numbers) => writer.tensor(&f32s(numbers)?)?,
            }
            if let From::Matrix(part, ..) = from
                && let Some(previous) = before.replace(*part).filter(|p| p != part)
            {
                file.drop_pages(previous);
            }
        }
        Ok(())
    }

    /// How many tensors have which type.
    pub(super) fn types(&self) -> BTreeMap<&'static str, usize> {
        let mut types = BTreeMap::new();
        for (plan, _) in &self.tensors {
            *types.entry(plan.elements.name()).or_default() += 1;
        }
        types
    }

    /// The type of most weights of the blocks.
    pub(super) fn main_type(&self) -> Elements {
        let mut weights: Vec<(Elements, usize)> = Vec::new();
        for (plan, _) in self
            .tensors
            .iter()
            .filter(|(p, from)| matches!(from, From::Matrix(Part::Block(_), ..)) && p.shape.len() == 2)
        {
            let count = plan.shape.iter().product::<usize>();
            match weights.iter_mut().find(|(e, _)| *e == plan.elements) {
                Some((_, n)) => *n += count,
                None => weights.push((plan.elements, count)),
            }
        }
        weights.iter().max_by_key(|(_, n)| *n).map_or(Elements::Plain(Dtype::F16), |(e, _)| *e)
    }

    /// Bytes of all tensors.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.tensors.iter().filter_map(|(p, _)| p.elements.tensor_bytes(&p.shape)).map(|n| n as u64).sum()
    }

    /// Bits and weights of the tensors in blocks of ggml.
    pub(crate) fn in_blocks(&self) -> (u64, u64) {
        let blocks = self.tensors.iter().filter(|(p, from)| {
            matches!(p.elements, Elements::Blocks(_)) && matches!(from, From::Matrix(Part::Block(_), ..))
        });
        blocks.fold((0, 0), |(bits, weights), (p, _)| {
            let bytes = p.elements.tensor_bytes(&p.shape).unwrap_or(0) as u64;
            (bits + 8 * bytes, weights + p.shape.iter().product::<usize>() as u64)
        })
    }

    /// What a reader of the report should know.
    pub(super) fn notes(&self) -> Option<String> {
        (self.rounded > 0).then(|| format!("{} matrices were F32 and are F16 in the GGUF file", self.rounded))
    }
}

/// Where a GGUF file of the family has a weight.
fn name(file: &ModelFile, part: Part, name: &str) -> Result<Source> {
    let source = file.exported_gguf(part, name);
    source.ok_or_else(|| Error::input(format!("`{name}` has no name in a GGUF file of this architecture")))
}

/// Rows of linears, their counts given, where the tensor has them.
fn placed(mut members: Vec<(usize, Rows, Bytes)>) -> Bytes {
    if let [(_, Rows::All, bytes)] = &mut members[..] {
        return std::mem::take(bytes);
    }
    let mut all = vec![0; members.iter().map(|(.., bytes)| bytes.len()).sum()];
    for (count, rows, bytes) in members {
        let width = bytes.len() / count.max(1);
        for (r, row) in bytes.chunks_exact(width.max(1)).enumerate() {
            all[rows.stored(r) * width..][..width].copy_from_slice(row);
        }
    }
    all.into()
}

fn is_rounded(linear: &QuantizedLinear, elements: Elements) -> bool {
    use fewbit_format::Storage::Dense;
    elements == Elements::Plain(Dtype::F16)
        && linear.bands.iter().any(|b| matches!(&b.storage, Dense(t) if t.dtype != Dtype::F16))
}

fn f32s(values: &[f32]) -> Result<Bytes> {
    Ok(Tensor::from_f32(Dtype::F32, &[values.len()], values)?.bytes)
}
