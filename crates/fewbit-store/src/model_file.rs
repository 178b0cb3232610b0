use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use fewbit_format::{ActivationFormat, Adapter, Band, Dtype, Error, QuantizedLinear, Result, Storage, Tensor};
use fewbit_graph::{
    Architecture, Config, Container, Fused, Graph, Model, Part, Rows, Source, Weight, WeightId, architecture_of,
};
use serde_json::Value;

use crate::layout::{self, Quantization};
use crate::{Checkpoint, LoraAdapter, experts, json, transposed};

/// The tensors of one graph.
#[derive(Clone, Debug, Default)]
pub struct PartWeights {
    /// By the graph's weights.
    pub linears: Vec<Arc<QuantizedLinear>>,
    /// By the graph's vectors.
    pub vectors: Vec<Vec<f32>>,
    /// By the graph's cache slots: how rows are rounded before they are remembered; empty where none is.
    pub caches: Vec<Option<ActivationFormat>>,
}

/// A checkpoint as a model: its graph, and each weight of the graph where the container has it.
///
/// Opening checks that every tensor is there with the shape that the graph gives it, and reads none.
#[derive(Debug)]
pub struct ModelFile {
    checkpoint: Checkpoint,
    architecture: &'static dyn Architecture,
    model: Arc<Model>,
    quantization: Quantization,
    names: Names,
    notes: Vec<String>,
    unused: Vec<String>,
    adapters: BTreeMap<(Part, WeightId), Vec<Adapter>>,
}

/// What stands in front of all names beside the head where it is not what the family has.
pub(crate) const PREFIXES: [&str; 4] = ["", "model.language_model.", "language_model.model.", "transformer."];

/// How this checkpoint deviates from its family's names.
#[derive(Debug, Default)]
struct Names {
    /// What the family has in front of all names beside the head, and what stands there instead.
    prefix: Option<[&'static str; 2]>,
    /// The module that holds the embedding, and the one that holds the head.
    embedding: String,
    head: String,
}

impl ModelFile {
    /// Opens a model.
    ///
    /// # Errors
    /// If the architecture is unknown, a figure is absurd, or a tensor is missing or has another shape.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(Checkpoint::open(path)?)
    }

    /// Takes an open checkpoint.
    ///
    /// # Errors
    /// As [`ModelFile::open`].
    pub fn of(checkpoint: Checkpoint) -> Result<Self> {
        let place = |e: Error| match checkpoint.gguf() {
            None => e.or_hint("take the configuration that belongs to the model").file(checkpoint.path()),
            Some(gguf) => e.or_hint(checkpoint.settings_words().1).file(gguf.path()),
        };
        let architecture = architecture_of(checkpoint.config()).map_err(place)?;
        let config = checkpoint.settings();
        check_layers(&checkpoint, &config).map_err(place)?;
        let mut model = architecture.model(&config).map_err(place)?;
        let settings = match checkpoint.sidecar("quantize_config.json") {
            Some(p) => Some(Value::Object(json::read_object(&p)?)),
            None => None,
        };
        let quantization =
            Quantization::parse(&Value::Object(checkpoint.config().clone()), settings.as_ref()).map_err(place)?;
        let quantization =
            quantization.with_files(&checkpoint, checkpoint.names(), &checkpoint.metadata()).map_err(place)?;
        let mut file = Self {
            architecture,
            quantization,
            names: Names::default(),
            notes: Vec::new(),
            unused: Vec::new(),
            adapters: BTreeMap::new(),
            model: Arc::new(model.clone()),
            checkpoint,
        };
        file.find_names(&mut model).map_err(|e| e.file(file.checkpoint.path()))?;
        file.model = Arc::new(model);
        file.check_tensors()?;
        file.check_depth()?;
        file.note_unused();
        Ok(file)
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The graph.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Makes the model one of sequences of up to so many positions, where it has other rotary tables for long ones.
    pub fn reach(&mut self, positions: usize) {
        Arc::make_mut(&mut self.model).reach(positions);
    }

    /// How the checkpoint says that its linears are quantized.
    pub fn quantization(&self) -> &Quantization {
        &self.quantization
    }

    /// What was noticed on opening: a head that the embedding stands in for, tensors that are not used.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The tensors of the checkpoint that the architecture does not know, of which the notes name the first alone.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// Whether embedding and head are one matrix.
    pub fn is_tied(&self) -> bool {
        self.names.embedding == self.names.head
    }

    /// Whether any linear lies quantized: packed in safetensors, or in blocks in a GGUF file.
    pub fn is_quantized(&self) -> bool {
        self.model.parts().any(|(part, graph)| (0..graph.weights.len()).any(|w| self.is_weight_quantized(part, w)))
    }

    /// Whether one matrix is stored as codes or blocks.
    pub fn is_weight_quantized(&self, part: Part, weight: WeightId) -> bool {
        match self.checkpoint.container() {
            Container::HuggingFace => {
                layout::is_quantized(&self.quantization, &self.checkpoint, &self.module(part, weight))
            }
            Container::Gguf => self.is_in_blocks(&self.weight_tensor(part, weight)),
        }
    }

    fn is_in_blocks(&self, tensor: &str) -> bool {
        !self.checkpoint.elements(tensor).is_ok_and(|e| matches!(e, crate::Elements::Plain(_)))
    }

    /// The module of a weight as this checkpoint names it, such as `model.layers.0.mlp.down_proj`.
    pub fn module(&self, part: Part, weight: WeightId) -> String {
        self.source(part, &self.model.part(part).weights[weight].name).map(|s| s.name).unwrap_or_default()
    }

    /// The tensor of this checkpoint that a weight lies in, where it is stored as plain numbers or blocks.
    pub fn weight_tensor(&self, part: Part, weight: WeightId) -> String {
        self.fused(part, weight).map_or_else(|| format!("{}.weight", self.module(part, weight)), |f| f.tensor)
    }

    /// The module of a weight as a Hugging Face folder of this family names it, and the rows of it that are the weight's.
    pub fn exported(&self, part: Part, name: &str) -> Result<Source> {
        let config = self.checkpoint.settings();
        self.architecture.source(Container::HuggingFace, &config, part, name).ok_or_else(|| no_name(name))
    }

    /// Where a GGUF file of this family has a weight or vector.
    pub fn exported_gguf(&self, part: Part, name: &str) -> Option<Source> {
        self.architecture.source(Container::Gguf, &self.checkpoint.settings(), part, name)
    }

    fn source(&self, part: Part, name: &str) -> Result<Source> {
        let config = self.checkpoint.settings();
        let mut source =
            self.architecture.source(self.checkpoint.container(), &config, part, name).ok_or_else(|| no_name(name))?;
        if let Some(alias) = source.alias.take_if(|a| !self.has_module(&source.name) && self.has_module(&a.name)) {
            source = *alias;
        }
        match (part, name) {
            (Part::Embed, _) => source.name.clone_from(&self.names.embedding),
            (Part::Head, "lm_head") => source.name.clone_from(&self.names.head),
            _ => {
                if let Some([of_family, prefix]) = self.names.prefix {
                    let fused = source.fused.as_mut().map(|f| [&mut f.tensor, &mut f.bias]);
                    for name in [&mut source.name].into_iter().chain(fused.into_iter().flatten()) {
                        if let Some(rest) = name.strip_prefix(of_family) {
                            *name = format!("{prefix}{rest}");
                        }
                    }
                }
            }
        }
        Ok(source)
    }

    /// Puts an adapter beside the linears that it names, its scales times `scale`; several add up.
    ///
    /// # Errors
    /// If it names a module that the model has not, or its factors do not fit or are not finite.
    pub fn attach(&mut self, adapter: &LoraAdapter, scale: f32) -> Result<()> {
        for (weight, adapter) in adapter.for_model(self, scale)? {
            self.adapters.entry(weight).or_default().push(adapter);
        }
        Ok(())
    }

    /// Whether the family answers to a class or type of transformers.
    pub(crate) fn is_of(&self, name: &str) -> bool {
        self.architecture.answers_to().contains(&name)
    }

    /// One matrix with its bias, as it is stored, and the adapters beside it.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn linear(&self, part: Part, weight: WeightId) -> Result<QuantizedLinear> {
        let linear = self.stored_linear(part, weight)?;
        Ok(QuantizedLinear { adapters: self.adapters.get(&(part, weight)).cloned().unwrap_or_default(), ..linear })
    }

    fn stored_linear(&self, part: Part, weight: WeightId) -> Result<QuantizedLinear> {
        let w = &self.model.part(part).weights[weight];
        let source = self.source(part, &w.name)?;
        if let Some(fused) = self.fused_at(&source) {
            return self.fused_linear(w, &fused);
        }
        let is_gguf = self.checkpoint.container() == Container::Gguf;
        if source.is_transposed && (is_gguf || !self.is_weight_quantized(part, weight)) {
            let name = format!("{}.weight", source.name);
            let stored = if is_gguf { self.checkpoint.decoded(&name) } else { self.checkpoint.tensor(&name) }?;
            let storage = transposed::columns(&stored, &source, w.shape).map_err(|e| self.place(e, &name))?;
            return Ok(QuantizedLinear::uniform(storage, self.bias(w, &source)?));
        }
        let stored = [source.rows.stored_count(w.shape[0]), w.shape[1]];
        let mut bands = self.bands(&source.name, stored)?;
        let mut sides = layout::read_sides(&self.quantization, &self.checkpoint, &source.name, stored)
            .map_err(|e| e.file(self.checkpoint.path()))?;
        let [input, output] = layout::read_online(&self.quantization, &self.checkpoint, &source.name, stored)
            .map_err(|e| e.file(self.checkpoint.path()))?;
        if source.rows != Rows::All {
            if !output.is_empty() {
                let e = Error::input("is one tensor of several linears, whose outputs cannot be mapped together");
                return Err(self.place(e, &format!("{}.output", source.name)));
            }
            let rows: Vec<usize> = (0..w.shape[0]).map(|r| source.rows.stored(r)).collect();
            bands = vec![Band { rows: 0..w.shape[0], storage: select(&bands, &rows)? }];
            sides = sides.select_rows(&rows)?;
        }
        let bias = self.bias(w, &source)?;
        let activation = layout::read_activation(&self.quantization, &self.checkpoint, &source.name, stored)
            .map_err(|e| e.file(self.checkpoint.path()))?;
        Ok(QuantizedLinear { sides, input, output, activation, ..QuantizedLinear::of_bands(w.shape, bands, bias) })
    }

    fn bias(&self, w: &Weight, source: &Source) -> Result<Option<Vec<f32>>> {
        if !w.has_bias {
            return Ok(None);
        }
        let name = format!("{}.bias", source.name);
        let all = self.checkpoint.tensor(&name)?.to_f32().map_err(|e| self.place(e, &name))?;
        Ok(Some((0..w.shape[0]).map(|r| all[source.rows.stored(r)]).collect()))
    }

    /// Where a matrix lies, if it is in one tensor with those of all experts.
    pub fn fused(&self, part: Part, weight: WeightId) -> Option<Fused> {
        self.fused_at(&self.source(part, &self.model.part(part).weights[weight].name).ok()?)
    }

    fn fused_at(&self, source: &Source) -> Option<Fused> {
        let fused = source.fused.as_ref().filter(|f| self.checkpoint.contains(&f.tensor))?;
        (!self.has_module(&source.name)).then(|| fused.clone())
    }

    fn fused_linear(&self, w: &Weight, fused: &Fused) -> Result<QuantizedLinear> {
        let storage = if self.is_in_blocks(&fused.tensor) {
            experts::one_in_blocks(self.checkpoint.storage(&fused.tensor)?, fused, w.shape)
        } else {
            experts::one(&self.checkpoint.tensor(&fused.tensor)?, fused, w.shape)
        };
        let storage = storage.map_err(|e| self.place(e, &fused.tensor))?;
        let bias = if w.has_bias {
            let all = self.checkpoint.tensor(&fused.bias)?.to_f32().map_err(|e| self.place(e, &fused.bias))?;
            Some((0..w.shape[0]).map(|r| all[fused.stored_bias(w.shape[0], r)]).collect())
        } else {
            None
        };
        Ok(QuantizedLinear::uniform(storage, bias))
    }

    fn bands(&self, module: &str, shape: [usize; 2]) -> Result<Vec<Band>> {
        let name = format!("{module}.weight");
        match self.checkpoint.container() {
            Container::HuggingFace => layout::read_bands(&self.quantization, &self.checkpoint, module, shape)
                .map_err(|e| e.file(self.checkpoint.file_of(&name).unwrap_or(self.checkpoint.path()))),
            Container::Gguf => {
                let storage = self.checkpoint.storage(&name)?;
                if storage.shape() != shape {
                    return Err(self.wrong_shape(&storage.shape(), &shape, &name));
                }
                Ok(vec![Band { rows: 0..shape[0], storage }])
            }
        }
    }

    /// One vector.
    ///
    /// # Errors
    /// If the tensor cannot be read.
    pub fn vector(&self, part: Part, vector: usize) -> Result<Vec<f32>> {
        let source = self.source(part, self.model.part(part).vectors[vector].name)?;
        let mut stored = Vec::new();
        for name in source.vector_tensors() {
            stored.extend(self.checkpoint.tensor(&name)?.to_f32().map_err(|e| self.place(e, &name))?);
        }
        Ok(source.read_vector(&stored))
    }

    /// The type in which vector `name` is stored.
    ///
    /// # Errors
    /// If it has no tensor.
    pub fn vector_dtype(&self, part: Part, name: &str) -> Result<Dtype> {
        Ok(self.checkpoint.tensor(&self.source(part, name)?.vector_tensors()[0])?.dtype)
    }

    /// The type in which biases of a part are stored; that of its first vector for one that the checkpoint lacks.
    ///
    /// # Errors
    /// If the part has no tensor.
    pub fn bias_dtype(&self, part: Part, module: &str) -> Result<Dtype> {
        let name = format!("{module}.bias");
        if self.checkpoint.contains(&name) {
            return Ok(self.checkpoint.tensor(&name)?.dtype);
        }
        let sources = self.model.part(part).weights.iter().filter_map(|w| self.source(part, &w.name).ok());
        if let Some(fused) = sources.filter(|s| s.name == module).find_map(|s| self.fused_at(&s))
            && self.checkpoint.contains(&fused.bias)
        {
            return Ok(self.checkpoint.tensor(&fused.bias)?.dtype);
        }
        let first = self.model.part(part).vectors.first();
        self.vector_dtype(part, first.ok_or_else(|| Error::internal("a part without vectors"))?.name)
    }

    /// The plain type that most of the weights have: what "as the source" means for new tensors.
    pub fn dtype(&self) -> Dtype {
        let mut most = (Dtype::F16, 0);
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            let of_type = |n: &&str| matches!(self.checkpoint.elements(n), Ok(crate::Elements::Plain(d)) if d == dtype);
            let matrices = |n: &&str| self.checkpoint.shape(n).is_ok_and(|s| s.len() >= 2);
            let count = self.checkpoint.names().filter(of_type).filter(matrices).count();
            if count > most.1 {
                most = (dtype, count);
            }
        }
        most.0
    }

    /// All tensors of one graph.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn part(&self, part: Part) -> Result<PartWeights> {
        let graph = self.model.part(part);
        Ok(PartWeights {
            linears: (0..graph.weights.len()).map(|w| self.linear(part, w).map(Arc::new)).collect::<Result<_>>()?,
            vectors: (0..graph.vectors.len()).map(|v| self.vector(part, v)).collect::<Result<_>>()?,
            caches: self.caches(part, graph)?,
        })
    }

    fn caches(&self, part: Part, graph: &Graph) -> Result<Vec<Option<ActivationFormat>>> {
        if self.quantization.cache().is_none() {
            return Ok(Vec::new());
        }
        let of_slot = |(weight, name): (WeightId, &str)| {
            let module = self.cache_module(part, weight);
            layout::read_cache(&self.quantization, &self.checkpoint, &module, name)
                .map_err(|e| e.file(self.checkpoint.path()))
        };
        graph.cached().into_iter().map(|(weight, is_keys)| of_slot((weight, cache_scale(is_keys)))).collect()
    }

    /// By cache slot, the tensor of a Hugging Face folder of this family that has the scale of its keys or values.
    ///
    /// # Errors
    /// If a linear has no name there.
    pub fn exported_caches(&self, part: Part) -> Result<Vec<String>> {
        let graph = self.model.part(part);
        let of_slot = |(w, is_keys): (WeightId, bool)| {
            let module = self.exported(part, &graph.weights[w].name)?.name;
            let attention = module.rsplit_once('.').map_or(&*module, |(attention, _)| attention);
            Ok(format!("{attention}.{}", cache_scale(is_keys)))
        };
        graph.cached().into_iter().map(of_slot).collect()
    }

    /// The attention whose keys or values a linear makes.
    fn cache_module(&self, part: Part, weight: WeightId) -> String {
        let module = self.module(part, weight);
        module.rsplit_once('.').map_or(module.clone(), |(attention, _)| attention.to_owned())
    }

    /// Gives the pages of a graph's tensors back to the system.
    pub fn drop_pages(&self, part: Part) {
        for name in self.tensor_names(part, self.model.part(part)) {
            self.checkpoint.drop_pages(&name);
        }
    }

    /// Refuses a model with a NaN or an infinity in any tensor that is used, with its position.
    ///
    /// # Errors
    /// Names the tensor and the position.
    pub fn check_finite(&self) -> Result<()> {
        for name in self.used_tensors() {
            self.check_finite_tensor(&name)?;
            self.checkpoint.drop_pages(&name);
        }
        Ok(())
    }

    /// The tensors of the checkpoint that the model is made of.
    pub fn used_tensors(&self) -> BTreeSet<String> {
        let names = self.model.parts().flat_map(|(part, graph)| self.tensor_names(part, graph));
        names.filter(|name| self.checkpoint.contains(name)).collect()
    }

    /// Refuses a tensor with a NaN or an infinity, with its position.
    ///
    /// # Errors
    /// Names the tensor and the position.
    pub fn check_finite_tensor(&self, name: &str) -> Result<()> {
        self.checkpoint.non_finite(name)?.map_or(Ok(()), |(at, value)| {
            let e = Error::input(format!("holds {value} at {at:?}"));
            Err(self.place(e.hint("download it again, or repair the checkpoint"), name))
        })
    }

    fn place(&self, e: Error, tensor: &str) -> Error {
        e.tensor(tensor).file(self.checkpoint.file_of(tensor).unwrap_or(self.checkpoint.path()))
    }

    /// The names of all tensors that may belong to a graph.
    fn tensor_names(&self, part: Part, graph: &Graph) -> Vec<String> {
        let mut names = Vec::new();
        for w in &graph.weights {
            let Ok(source) = self.source(part, &w.name) else { continue };
            if let Some(fused) = self.fused_at(&source) {
                names.extend([fused.tensor].into_iter().chain(w.has_bias.then_some(fused.bias)));
                continue;
            }
            names.extend(layout::tensor_names(&self.quantization, &source.name));
            if w.has_bias {
                names.push(format!("{}.bias", source.name));
            }
        }
        if self.quantization.cache().is_some() {
            let cached = graph.cached().into_iter();
            names.extend(cached.map(|(w, is_keys)| format!("{}.{}", self.cache_module(part, w), cache_scale(is_keys))));
        }
        let vectors = graph.vectors.iter().filter_map(|v| self.source(part, v.name).ok());
        names.extend(vectors.flat_map(|s| s.vector_tensors()));
        names
    }

    fn has_module(&self, module: &str) -> bool {
        let has = |n: &String| self.checkpoint.contains(n);
        layout::tensor_names(&self.quantization, module).iter().any(has)
    }

    /// Finds the prefix of the names, and which matrix serves as embedding and which as head.
    fn find_names(&mut self, model: &mut Model) -> Result<()> {
        let config = self.checkpoint.settings();
        let container = self.checkpoint.container();
        let of = |part, name: &str| {
            self.architecture.source(container, &config, part, name).map(|s| s.name).ok_or_else(|| no_name(name))
        };
        let (mut embedding, head) = (of(Part::Embed, &model.embed.weights[0].name)?, of(Part::Head, "lm_head")?);
        let of_family = ["model.", "transformer."].into_iter().find(|p| embedding.starts_with(p));
        if let (Container::HuggingFace, Some(of_family)) = (container, of_family)
            && !self.has_module(&embedding)
        {
            let rest = &embedding[of_family.len()..];
            let norm = of(Part::Head, model.head.vectors[0].name)?;
            let norm = norm.strip_prefix(of_family).unwrap_or(&norm).to_owned();
            let found = PREFIXES
                .into_iter()
                .find(|p| self.has_module(&format!("{p}{rest}")) || self.checkpoint.contains(&format!("{p}{norm}")));
            if let Some(prefix) = found {
                embedding = format!("{prefix}{rest}");
                self.names.prefix = Some([of_family, prefix]);
            }
        }
        let (has_embedding, has_head) = (self.has_module(&embedding), self.has_module(&head));
        match (has_embedding, has_head) {
            (true, true) if !model.is_tied => {}
            (true, true | false) => {
                if !has_head && !model.is_tied && self.checkpoint.config().get("tie_word_embeddings").is_none() {
                    self.notes
                        .push(format!("no `{head}.weight` in the checkpoint: `{embedding}.weight` serves as head"));
                } else if !has_head && !model.is_tied && container == Container::HuggingFace {
                    self.notes.push(format!(
                        "config.json says that the head is a matrix of its own, but there is no `{head}.weight`: `{embedding}.weight` serves as head"
                    ));
                }
                model.is_tied = true;
                (self.names.embedding, self.names.head) = (embedding.clone(), embedding);
                return Ok(());
            }
            (false, true) => {
                if !model.is_tied {
                    self.notes.push(format!(
                        "no `{embedding}.weight` in the checkpoint: `{head}.weight` serves as embedding"
                    ));
                }
                model.is_tied = true;
                (self.names.embedding, self.names.head) = (head.clone(), head);
                return Ok(());
            }
            (false, false) => {
                let found = self.checkpoint.names().next().unwrap_or("none").to_owned();
                return Err(Error::input(format!(
                    "there is no `{embedding}.weight`; the first tensor found is `{found}`"
                ))
                .hint("the names are not those of this architecture: convert the checkpoint to Hugging Face names"));
            }
        }
        (self.names.embedding, self.names.head) = (embedding, head);
        Ok(())
    }

    /// Every tensor that is stored plain has the graph's shape; every other is there.
    fn check_tensors(&self) -> Result<()> {
        for (part, graph) in self.model.parts() {
            for (i, w) in graph.weights.iter().enumerate() {
                let source = self.source(part, &w.name)?;
                if let Some(fused) = self.fused_at(&source) {
                    let shape = fused.stored_shape(w.shape);
                    self.check_shape(&fused.tensor, &shape)?;
                    if w.has_bias {
                        self.check_shape(&fused.bias, &[fused.experts, fused.rows.stored_count(w.shape[0])])?;
                    }
                    continue;
                }
                if self.checkpoint.container() == Container::Gguf || !self.is_weight_quantized(part, i) {
                    let shape = source.stored_shape(w.shape);
                    let name = format!("{}.weight", source.name);
                    // A matrix of one row may be a vector in a GGUF file.
                    let may_be_vector = self.checkpoint.container() == Container::Gguf && shape[0] == 1;
                    if !may_be_vector || self.checkpoint.shape(&name)? != shape[1..] {
                        self.check_shape(&name, &shape)?;
                    }
                }
                if w.has_bias {
                    self.check_shape(&format!("{}.bias", source.name), &[source.rows.stored_count(w.shape[0])])?;
                }
            }
            for v in &graph.vectors {
                let source = self.source(part, v.name)?;
                let shape = source.vector_shape(v);
                source.vector_tensors().iter().try_for_each(|name| self.check_shape(name, &shape))?;
            }
        }
        Ok(())
    }

    /// Refuses a configuration that leaves the last blocks out.
    fn check_depth(&self) -> Result<()> {
        let layers = self.model.blocks.len();
        let vectors = self.model.blocks.first().map(|g| g.vectors.iter()).into_iter().flatten();
        // A table of positions is in the first block alone.
        let Some(first) = vectors.into_iter().find(|v| v.rows.is_none()) else { return Ok(()) };
        let behind = layers + self.further_blocks()?;
        let name = self.source(Part::Block(behind), first.name)?.name;
        if !self.checkpoint.contains(&name) {
            return Ok(());
        }
        let says = match self.checkpoint.container() {
            Container::HuggingFace => "config.json".to_owned(),
            Container::Gguf => self.checkpoint.settings().name("num_hidden_layers"),
        };
        Err(self.place(
            Error::input(format!("belongs to block {behind}, where {says} says that there are {layers} blocks"))
                .hint(self.checkpoint.settings_words().1),
            &name,
        ))
    }

    /// Blocks behind the last that predict further tokens (DeepSeek-V3), which nothing here needs.
    fn further_blocks(&self) -> Result<usize> {
        self.checkpoint.settings().count_or("num_nextn_predict_layers", 0)
    }

    fn check_shape(&self, name: &str, expected: &[usize]) -> Result<()> {
        let found = self.checkpoint.shape(name)?;
        if found == expected { Ok(()) } else { Err(self.wrong_shape(&found, expected, name)) }
    }

    fn wrong_shape(&self, found: &[usize], expected: &[usize], tensor: &str) -> Error {
        let (settings, way_out) = self.checkpoint.settings_words();
        let what = format!("has shape {found:?}, where {settings} implies {expected:?}");
        self.place(Error::input(what).hint(way_out), tensor)
    }

    fn note_unused(&mut self) {
        let mut used: BTreeSet<String> = BTreeSet::new();
        for (part, graph) in self.model.parts() {
            used.extend(self.tensor_names(part, graph));
        }
        // Buffers that older exporters stored and that follow from the configuration.
        let derived = [
            ".rotary_emb.inv_freq",
            ".attention.bias",
            ".attention.masked_bias",
            ".attn.bias",
            ".attn.masked_bias",
            "rope_freqs.weight",
            "rope_factors_short.weight",
            "rope_factors_long.weight",
        ];
        let unused =
            (self.checkpoint.names()).filter(|n| !used.contains(*n) && !derived.iter().any(|d| n.ends_with(d)));
        let layers = self.model.blocks.len();
        let further: Vec<String> =
            (0..self.further_blocks().unwrap_or(0)).map(|i| format!("model.layers.{}.", layers + i)).collect();
        let (further, unused): (Vec<&str>, Vec<&str>) =
            unused.partition(|n| further.iter().any(|block| n.starts_with(block)));
        if !further.is_empty() {
            self.notes.push(format!("not used: what follows block {}, which predicts further tokens", layers - 1));
        }
        if let Some(first) = unused.first() {
            let more = if unused.len() > 1 { format!(" and {} more", unused.len() - 1) } else { String::new() };
            self.notes.push(format!("not used: tensor `{first}`{more}, which this architecture does not know"));
        }
        self.unused = unused.into_iter().map(str::to_owned).collect();
    }
}

/// The tensor beside an attention that has the scale of its keys or values.
fn cache_scale(is_keys: bool) -> &'static str {
    if is_keys { "k_scale" } else { "v_scale" }
}

fn no_name(name: &str) -> Error {
    Error::input(format!("`{name}` of this architecture has no name in this kind of file"))
}

/// Refuses a number of layers for which there cannot be tensors, before a graph is built for each.
fn check_layers(checkpoint: &Checkpoint, config: &Config<'_>) -> Result<()> {
    let (layers, tensors) = (config.layers()?, checkpoint.names().count());
    if layers > tensors {
        let what = format!("is {layers}, but there are only {tensors} tensors");
        return Err(config.error_at("num_hidden_layers", what).hint(match checkpoint.container() {
            Container::HuggingFace => "the configuration belongs to another model, or a shard is missing",
            Container::Gguf => checkpoint.settings_words().1,
        }));
    }
    Ok(())
}

/// Picks rows out of bands into one storage.
fn select(bands: &[Band], rows: &[usize]) -> Result<Storage> {
    match bands {
        [band] => band.storage.select_rows(rows),
        _ => Err(Error::input("rows of several bands cannot be reordered")),
    }
}

impl layout::Tensors for Checkpoint {
    fn contains(&self, name: &str) -> bool {
        Checkpoint::contains(self, name)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        Checkpoint::tensor(self, name)
    }
}
