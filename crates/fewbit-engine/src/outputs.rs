//! One block, or the rest of a model, as tensors of a shard.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use crate::stop::crash_point;
use fewbit_format::{ActivationFormat, Band, Dtype, Error, Online, QuantizedLinear, Result, Sides, Storage, Tensor};
use fewbit_graph::{Container, Fused, Part, Rows, WeightId};
use fewbit_store::layout::{Awq, CompressedTensors, Fewbit, Float8, Gptq, Layout, Scheme, is_tiles};
use fewbit_store::{HugePageWriter, ModelFile, experts, transposed};
use safetensors::tensor::{Metadata, TensorInfo};

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// compressed-tensors where it can hold the result, else `fewbit`.
    #[default]
    Auto,
    /// A Hugging Face folder that vLLM and transformers load.
    CompressedTensors,
    /// The same in GPTQ's layout, version 1.
    Gptq,
    /// The same in GPTQ's layout, version 2.
    GptqV2,
    /// The same in AWQ's layout `gemm`.
    Awq,
    /// The same in FP8 as DeepSeek stores it.
    Fp8,
    /// A file for llama.cpp.
    Gguf,
    /// Our own safetensors layout.
    Fewbit,
}

impl Format {
    /// The name that `--format` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Gguf => "gguf",
            Self::CompressedTensors | Self::Gptq | Self::GptqV2 | Self::Awq | Self::Fp8 | Self::Fewbit => {
                self.layout().name()
            }
        }
    }

    /// Whether other programs load the folder.
    pub(crate) fn is_shared(self) -> bool {
        matches!(self, Self::CompressedTensors | Self::Gptq | Self::GptqV2 | Self::Awq | Self::Fp8)
    }

    /// The layout of the shards; a GGUF file is put together from shards of our own.
    pub(crate) fn layout(self) -> &'static dyn Layout {
        match self {
            Self::CompressedTensors => &CompressedTensors,
            Self::Gptq => &Gptq { is_v2: false },
            Self::GptqV2 => &Gptq { is_v2: true },
            Self::Awq => &Awq,
            Self::Fp8 => &Float8,
            Self::Auto | Self::Gguf | Self::Fewbit => &Fewbit,
        }
    }
}

/// A module of the written model, with its weight's bands.
struct Module {
    name: String,
    /// Whether plain numbers are stored `[in, out]`.
    is_transposed: bool,
    bands: Vec<Band>,
    sides: Sides,
    /// What runs on its input and output.
    online: [Vec<Online>; 2],
    activation: Option<ActivationFormat>,
    bias: Option<Vec<f32>>,
}

/// How each linear is stored, by module; `None` where as before.
pub(crate) type Schemes = Vec<(String, Option<Scheme>)>;

/// Gathers the tensors of one part.
pub(crate) struct Shard<'a> {
    file: &'a ModelFile,
    layout: &'a dyn Layout,
    pub(crate) tensors: Vec<(String, Tensor)>,
    pub(crate) schemes: Schemes,
}

impl<'a> Shard<'a> {
    pub(crate) fn new(file: &'a ModelFile, layout: &'a dyn Layout) -> Self {
        Self { file, layout, tensors: Vec::new(), schemes: Vec::new() }
    }

    /// All tensors of a part, its linears given by the graph's weights.
    pub(crate) fn add(&mut self, part: Part, linears: &[Arc<QuantizedLinear>], vectors: &[Vec<f32>]) -> Result<()> {
        let written = self.fused(part, linears)?;
        for module in self.modules(part, linears, &written)? {
            self.module(part, module)?;
        }
        let graph = self.file.model().part(part);
        for (v, values) in graph.vectors.iter().zip(vectors) {
            let source = self.file.exported(part, v.name)?;
            let (stored, names, shape) =
                (source.stored_vector(values), source.vector_tensors(), source.vector_shape(v));
            let dtype = self.file.vector_dtype(part, v.name)?;
            for (name, stored) in names.iter().zip(stored.chunks_exact(stored.len() / names.len())) {
                self.tensors.push((name.clone(), Tensor::from_f32(dtype, &shape, stored)?));
            }
        }
        Ok(())
    }

    /// The scales of keys and values of a part, by cache slot.
    pub(crate) fn caches(&mut self, part: Part, caches: &[ActivationFormat]) -> Result<()> {
        for (name, format) in self.file.exported_caches(part)?.into_iter().zip(caches) {
            self.tensors.push((name, Tensor::from_f32(Dtype::F32, &[1], &[format.scale])?));
        }
        Ok(())
    }

    fn module(&mut self, part: Part, module: Module) -> Result<()> {
        let name = format!("{}.weight", module.name);
        let stored = |t: Tensor| if module.is_transposed { transposed(&t, None) } else { Ok(t) };
        if let [Band { storage: Storage::Dense(t), .. }] = &module.bands[..] {
            self.tensors.push((name, stored(t.clone())?));
            if part != Part::Embed {
                self.schemes.push((module.name.clone(), None));
            }
        } else if module.bands.iter().any(|b| self.is_foreign(&b.storage)) {
            // Blocks of ggml have no place there: the values are kept, not the blocks.
            self.tensors.push((name, stored(exact(&module.bands)?)?));
            if part != Part::Embed {
                self.schemes.push((module.name.clone(), None));
            }
        } else {
            self.tensors.extend(match &module.activation {
                Some(input) => self.layout.rounded_tensors(&module.name, &module.bands, input)?,
                None => self.layout.band_tensors(&module.name, &module.bands)?,
            });
            let input = module.activation.map(|a| a.grid);
            self.schemes.push((module.name.clone(), Scheme::of_bands(&module.bands).map(|s| s.rounded(input))));
            let (tensors, schemes) = self.layout.side_tensors(&module.name, &module.sides)?;
            self.tensors.extend(tensors);
            self.schemes.extend(schemes);
            let [input, output] = &module.online;
            self.tensors.extend(self.layout.online_tensors(&module.name, [input, output])?);
        }
        if let Some(bias) = module.bias {
            let dtype = self.file.bias_dtype(part, &module.name)?;
            self.tensors.push((format!("{}.bias", module.name), Tensor::from_f32(dtype, &[bias.len()], &bias)?));
        }
        Ok(())
    }

    /// Whether the layout has no place for blocks of ggml that a linear is kept in.
    fn is_foreign(&self, storage: &Storage) -> bool {
        matches!(storage, Storage::Ggml(_)) && self.layout.can_hold(storage).is_err()
    }

    /// Adds the tensors of the source that hold the matrices of all experts, where these stay plain; says whose they are.
    fn fused(&mut self, part: Part, linears: &[Arc<QuantizedLinear>]) -> Result<BTreeSet<WeightId>> {
        let mut tensors: BTreeMap<(String, String), Vec<(WeightId, Fused)>> = BTreeMap::new();
        // A folder does not have the tensors of a GGUF file.
        let is_alike = self.file.checkpoint().container() == Container::HuggingFace;
        for w in (0..linears.len()).filter(|_| is_alike) {
            if let Some(fused) = self.file.fused(part, w) {
                tensors.entry((fused.tensor.clone(), fused.bias.clone())).or_default().push((w, fused));
            }
        }
        let mut written = BTreeSet::new();
        for ((tensor, bias), weights) in tensors {
            let plain = |(w, fused): &(WeightId, Fused)| match &linears[*w].bands[..] {
                [Band { storage: Storage::Dense(t), .. }] => Some((fused.clone(), t, linears[*w].bias.as_deref())),
                _ => None,
            };
            let matrices: Option<Vec<_>> = weights.iter().map(plain).collect();
            let Some((all, biases)) = matrices.and_then(|m| experts::fuse(&m)) else { continue };
            if let Some(biases) = biases {
                let dtype = self.file.checkpoint().tensor(&bias)?.dtype;
                let shape = [all.shape[0], biases.len() / all.shape[0]];
                self.tensors.push((bias, Tensor::from_f32(dtype, &shape, &biases)?));
            }
            self.tensors.push((tensor, all));
            for (w, _) in weights {
                let module = self.file.exported(part, &self.file.model().part(part).weights[w].name)?.name;
                self.schemes.push((module, None));
                written.insert(w);
            }
        }
        Ok(written)
    }

    /// The modules of the written model: linears that lie in one tensor are put together again.
    fn modules(
        &self,
        part: Part,
        linears: &[Arc<QuantizedLinear>],
        written: &BTreeSet<WeightId>,
    ) -> Result<Vec<Module>> {
        let graph = self.file.model().part(part);
        let mut fused: BTreeMap<(String, bool), Vec<(Rows, &QuantizedLinear)>> = BTreeMap::new();
        let mut modules = Vec::new();
        let others = graph.weights.iter().zip(linears).enumerate().filter(|(w, _)| !written.contains(w));
        for (_, (w, linear)) in others {
            let source = self.file.exported(part, &w.name)?;
            if source.rows == Rows::All {
                modules.push(Module {
                    name: source.name,
                    is_transposed: source.is_transposed,
                    bands: linear.bands.clone(),
                    sides: linear.sides.clone(),
                    online: [linear.input.clone(), linear.output.clone()],
                    activation: linear.activation,
                    bias: linear.bias.clone(),
                });
            } else {
                fused.entry((source.name, source.is_transposed)).or_default().push((source.rows, linear));
            }
        }
        for ((name, is_transposed), parts) in fused {
            modules.push(Module { is_transposed, ..fuse(name, &parts)? });
        }
        Ok(modules)
    }
}

/// Puts the rows of several linears where they lie in the tensor that they share.
fn fuse(name: String, parts: &[(Rows, &QuantizedLinear)]) -> Result<Module> {
    let total: usize = parts.iter().map(|(_, l)| l.shape[0]).sum();
    let (mut order, mut offset, mut bias) = (vec![usize::MAX; total], 0, Vec::new());
    let mut storages = Vec::new();
    for (rows, linear) in parts {
        for r in 0..linear.shape[0] {
            *order.get_mut(rows.stored(r)).ok_or_else(|| Error::internal("rows beyond the fused tensor"))? = offset + r;
        }
        offset += linear.shape[0];
        bias.extend(linear.bias.iter().flatten());
        // They read one value, and what maps it.
        let is_alike = linear.sides.is_empty() && linear.output.is_empty() && linear.input == parts[0].1.input;
        let ([band], true) = (&linear.bands[..], is_alike) else {
            return Err(Error::input("linears that share a tensor have room for nothing beside one band").tensor(&name));
        };
        if linear.activation != parts[0].1.activation {
            return Err(Error::input("linears that share a tensor round their input alike").tensor(&name));
        }
        storages.push(&band.storage);
    }
    let stacked = Storage::stack(&storages).ok_or_else(|| {
        Error::input("the linears that share it need one storage").tensor(&name).hint("give them the same settings")
    })?;
    let bias = (bias.len() == total).then(|| order.iter().map(|r| bias[*r]).collect());
    let storage = stacked.select_rows(&order).map_err(|e| e.tensor(&name))?;
    let bands = vec![Band { rows: 0..total, storage }];
    let (online, activation) = ([parts[0].1.input.clone(), Vec::new()], parts[0].1.activation);
    Ok(Module { name, is_transposed: false, bands, sides: Sides::default(), online, activation, bias })
}

/// The values of bands in the smallest plain type that holds them all exactly.
fn exact(bands: &[Band]) -> Result<Tensor> {
    let [rows, cols] = [bands.iter().map(|b| b.rows.len()).sum(), bands[0].storage.shape()[1]];
    exact_values(&QuantizedLinear::of_bands([rows, cols], bands.to_vec(), None))
}

/// The values of a linear's weight, what stands beside its codes added, in the smallest plain type that holds them all
/// exactly.
pub(crate) fn exact_values(linear: &QuantizedLinear) -> Result<Tensor> {
    let [rows, cols] = linear.shape;
    // An embedding is large: some rows at a time are f32.
    let pieces = || {
        (0..rows).step_by(EXACT_ROWS).map(|first| {
            let piece = first..(first + EXACT_ROWS).min(rows);
            let mut values = vec![0.0; piece.len() * cols];
            linear.decode_rows(piece, &mut values);
            values
        })
    };
    let holds = |dtype: Dtype| {
        pieces().all(|values| {
            let mut back = vec![0.0; values.len()];
            dtype.narrow(&values).and_then(|b| dtype.widen(&b, &mut back)).is_some() && back == values
        })
    };
    let dtype = [Dtype::BF16, Dtype::F16].into_iter().find(|d| holds(*d)).unwrap_or(Dtype::F32);
    let mut bytes = Vec::with_capacity(rows * cols * dtype.size_bytes());
    for values in pieces() {
        bytes.extend(dtype.narrow(&values).ok_or_else(|| Error::internal("a float type that holds no floats"))?);
    }
    Ok(Tensor { dtype, shape: linear.shape.to_vec(), bytes: bytes.into() })
}

const EXACT_ROWS: usize = 1024;

/// Where tensors begin that are read by whole lines of the cache.
const LINE_BYTES: usize = 64;

/// Writes a shard: aside, then renamed.
///
/// # Errors
/// If the disk is full or the place cannot be written.
pub fn write_shard(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    // What kernels read where it lies comes first, in whole lines of the cache; the others by falling alignment, then by
    // name, as safetensors itself orders them.
    let mut ordered = tensors.iter().map(|named| Ok((dtype(named.1.dtype)?, named))).collect::<Result<Vec<_>>>()?;
    let key = |(dtype, (name, _)): &(safetensors::Dtype, &(String, Tensor))| (!is_tiles(name), Reverse(*dtype));
    ordered.sort_by(|a, b| key(a).cmp(&key(b)).then_with(|| a.1.0.cmp(&b.1.0)));
    let parts = ordered.iter().map(|(_, (name, t))| (name.as_str(), t.dtype, t.shape.clone(), t.bytes.len()));
    let head = shard_head(parts).map_err(|e| e.file(path))?;
    let aside = path.with_extension("writing");
    // Not by `serialize_to_file` of safetensors: its file has a random name, which a run that is killed would leave behind.
    let write = || -> std::io::Result<()> {
        let mut file = HugePageWriter::new(File::create(&aside)?);
        file.write_all(&head)?;
        for (_, (_, tensor)) in ordered {
            file.write_all(&tensor.bytes)?;
        }
        // The journal is on the disk at once: what it says is there has to be there after a loss of power too.
        file.sync()
    };
    write().map_err(|e| Error::io("writing", path, &e))?;
    crash_point();
    rename(&aside, path)
}

/// What a safetensors file begins with: the length of its header, and the header. Name, type, shape and bytes of the tensors
/// come in the order in which their elements follow.
///
/// # Errors
/// If a type has no place in such a file, or the bytes are not those of the shape.
pub fn shard_head<'a>(tensors: impl Iterator<Item = (&'a str, Dtype, Vec<usize>, usize)>) -> Result<Vec<u8>> {
    let mut at = 0;
    let infos = tensors.map(|(name, of, shape, bytes)| {
        let first = at;
        at += bytes;
        Ok((name.to_owned(), TensorInfo { dtype: dtype(of)?, shape, data_offsets: (first, at) }))
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let fail = |e: &dyn std::fmt::Display| Error::internal(format!("a shard that cannot be written: {e}"));
    let header = Metadata::new(Some(format), infos.collect::<Result<_>>()?).map_err(|e| fail(&e))?;
    let header = serde_json::to_vec(&header).map_err(|e| fail(&e))?;
    let len = (8 + header.len()).next_multiple_of(LINE_BYTES) - 8;
    let mut head = [&(len as u64).to_le_bytes(), &*header].concat();
    head.resize(8 + len, b' ');
    Ok(head)
}

/// Writes a small file: aside, then renamed.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = path.with_extension("writing");
    std::fs::write(&aside, bytes).map_err(|e| Error::io("writing", path, &e))?;
    crash_point();
    rename(&aside, path)
}

/// Renames what is whole; content and name are on the disk when this returns.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    sync(from)?;
    std::fs::rename(from, to).map_err(|e| Error::io("renaming to", to, &e))?;
    sync(to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    crash_point();
    Ok(())
}

fn sync(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io("opening", path, &e))?;
    file.sync_all().map_err(|e| Error::io("writing", path, &e))
}

fn dtype(d: Dtype) -> Result<safetensors::Dtype> {
    use safetensors::Dtype as S;
    Ok(match d {
        Dtype::F64 => S::F64,
        Dtype::F32 => S::F32,
        Dtype::F16 => S::F16,
        Dtype::BF16 => S::BF16,
        Dtype::I64 => S::I64,
        Dtype::I32 => S::I32,
        Dtype::I8 => S::I8,
        Dtype::U8 => S::U8,
        Dtype::U16 => S::U16,
        Dtype::U32 => S::U32,
        Dtype::F8E4M3 => S::F8_E4M3,
        Dtype::F8E8M0 => S::F8_E8M0,
        other => return Err(Error::internal(format!("no shard is written with {}", other.name()))),
    })
}

/// The working name of a block's shard; the final one counts all shards.
pub(crate) fn shard_name(block: usize) -> String {
    format!("block-{block:05}.safetensors")
}
