//! Which tensors a file will have, in which types.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use fewbit_format::{Band, Dtype, Error, QuantizedLinear, Result, Storage, Tensor};
use fewbit_graph::{Part, Rows, Source, WeightId};
use fewbit_store::{Elements, GgufWriter, ModelFile, TensorPlan, transposed};

use super::blocks::{elements_of, encode};
use super::rotation;

/// The tensors of a file, in its order.
#[derive(Debug)]
pub(crate) struct Plan {
    tensors: Vec<(TensorPlan, From)>,
    /// Matrices that were F32 and are F16.
    rounded: usize,
}

/// The linears of which a tensor has the rows, and where.
type Members = Vec<(WeightId, Source)>;

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
        for (name, factors) in rotation::tensors(file, family)? {
            plan.plain(name.to_owned(), vec![factors.len()], From::Numbers(factors));
        }
        for (part, graph) in file.model().parts() {
            if part != Part::Head || !file.is_tied() {
                for members in shared(file, part)? {
                    plan.matrix(file, part, members)?;
                }
            }
            for (v, vector) in graph.vectors.iter().enumerate() {
                plan.plain(name(file, part, vector.name)?.name, vector.shape(), From::Vector(part, v));
            }
            file.drop_pages(part);
        }
        Ok(plan)
    }

    /// Plans the tensor of some linears.
    fn matrix(&mut self, file: &ModelFile, part: Part, members: Members) -> Result<()> {
        let Some((first, source)) = members.first() else { return Ok(()) };
        let weight = &file.model().part(part).weights[*first];
        let mut elements: Option<Elements> = None;
        for (w, at) in &members {
            let place = |e: Error| e.tensor(&file.weight_tensor(part, *w)).file(file.checkpoint().path());
            let linear = file.linear(part, *w)?;
            let bands = stored_bands(&linear, at).map_err(place)?;
            let of_linear = if weight.is_gate {
                Elements::Plain(Dtype::F32)
            } else {
                elements_of(&bands).map_err(|why| place(Error::input(format!("a GGUF file cannot hold it: {why}"))))?
            };
            elements = Some(match elements {
                None => of_linear,
                Some(before) if before == of_linear => before,
                // What is plain, each expert in the smallest type for it, is together in the largest.
                Some(before) if at.fused.is_some() && bands.iter().all(is_plain) && before.block_len() == 1 => {
                    Elements::Plain(Dtype::F32)
                }
                Some(_) => {
                    let what = "would have another type than the other rows of";
                    return Err(place(Error::input(format!("{what} `{}`, where a tensor has one", at.tensor()))));
                }
            });
            self.rounded += usize::from(is_rounded(&linear, of_linear));
        }
        let elements = elements.ok_or_else(|| Error::internal("a tensor of no linear"))?;
        let mut shape = match &source.fused {
            Some(fused) => fused.stored_shape(weight.shape).to_vec(),
            None => source.stored_shape(weight.shape),
        };
        let biases = shape[..shape.len() - 1].to_vec();
        if weight.is_gate && shape[0] == 1 {
            shape.remove(0);
        }
        self.tensors.push((TensorPlan { name: source.tensor(), elements, shape }, From::Matrix(part, members.clone())));
        if weight.has_bias {
            self.plain(source.bias(), biases, From::Bias(part, members));
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
                    let bytes = members.iter().map(|(w, at)| {
                        let bytes = file.linear(*part, *w).and_then(|l| encode(&stored_bands(&l, at)?, plan.elements));
                        bytes.map_err(|e| e.tensor(&plan.name))
                    });
                    // Experts, which are large together, follow one another.
                    let is_next = |(i, (_, at)): (usize, &(WeightId, Source))| {
                        at.fused.as_ref().is_some_and(|f| f.expert == i && f.rows == Rows::All)
                    };
                    if members.iter().enumerate().all(is_next) {
                        writer.tensor_of(bytes)?;
                    } else {
                        let rows = |w: &WeightId| file.model().part(*part).weights[*w].shape[0];
                        let members = members.iter().zip(bytes).map(|((w, at), bytes)| Ok((rows(w), at, bytes?)));
                        writer.tensor(&placed(members.collect::<Result<_>>()?))?;
                    }
                }
                From::Bias(part, members) => {
                    let bytes = members.iter().map(|(w, at)| {
                        let bias = file.linear(*part, *w)?.bias.unwrap_or_default();
                        Ok((bias.len(), at, f32s(&bias)?))
                    });
                    writer.tensor(&placed(bytes.collect::<Result<_>>()?))?;
                }
                From::Vector(part, v) => {
                    let source = name(file, *part, file.model().part(*part).vectors[*v].name)?;
                    writer.tensor(&f32s(&source.stored_vector(&file.vector(*part, *v)?))?)?;
                }
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
        for (plan, _) in self.tensors.iter().filter(|(_, from)| matches!(from, From::Matrix(Part::Block(_), ..))) {
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

/// The linears of a part by the tensors that they lie in, in the order of their first ones.
fn shared(file: &ModelFile, part: Part) -> Result<Vec<Members>> {
    let mut tensors: Vec<Members> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for (w, weight) in file.model().part(part).weights.iter().enumerate() {
        let at = name(file, part, &weight.name)?;
        let tensor = *known.entry(at.tensor()).or_insert(tensors.len());
        if tensor == tensors.len() {
            tensors.push(Members::new());
        }
        tensors[tensor].push((w, at));
    }
    Ok(tensors)
}

/// The bands of a linear as its tensor has them: transposed, where its rows are columns there.
fn stored_bands<'a>(linear: &'a QuantizedLinear, at: &Source) -> Result<Cow<'a, [Band]>> {
    if !at.is_transposed {
        return Ok(Cow::Borrowed(&linear.bands));
    }
    let [Band { storage: Storage::Dense(t), .. }] = &linear.bands[..] else {
        let what = format!("its rows are columns of `{}` in a GGUF file, where codes lie along rows", at.tensor());
        return Err(Error::input(what).hint("`--keep` it as it is"));
    };
    let mut t = transposed(t, at.heads)?;
    let cols = t.shape.last().copied().unwrap_or(1);
    t.shape = vec![t.shape.iter().product::<usize>() / cols.max(1), cols];
    Ok(Cow::Owned(vec![Band { rows: 0..t.shape[0], storage: Storage::Dense(t) }]))
}

/// Rows of linears, their counts given, where the tensor has them.
fn placed(mut members: Vec<(usize, &Source, Bytes)>) -> Bytes {
    if let [(_, Source { rows: Rows::All, .. }, bytes)] = &mut members[..] {
        return std::mem::take(bytes);
    }
    let mut all = vec![0; members.iter().map(|(.., bytes)| bytes.len()).sum()];
    for (count, at, bytes) in members {
        let width = bytes.len() / count.max(1);
        let first = at.fused.as_ref().map_or(0, |f| f.expert * count);
        for (r, row) in bytes.chunks_exact(width.max(1)).enumerate() {
            all[(first + at.rows.stored(r)) * width..][..width].copy_from_slice(row);
        }
    }
    all.into()
}

fn is_plain(band: &Band) -> bool {
    matches!(band.storage, Storage::Dense(_))
}

fn is_rounded(linear: &QuantizedLinear, elements: Elements) -> bool {
    elements == Elements::Plain(Dtype::F16)
        && linear.bands.iter().any(|b| matches!(&b.storage, Storage::Dense(t) if t.dtype != Dtype::F16))
}

fn f32s(values: &[f32]) -> Result<Bytes> {
    Ok(Tensor::from_f32(Dtype::F32, &[values.len()], values)?.bytes)
}
