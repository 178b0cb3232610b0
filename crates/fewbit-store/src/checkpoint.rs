use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fewbit_format::{Dtype, Error, GgmlBlocks, Result, Storage, Tensor};
use fewbit_graph::{Config, Container};
use serde_json::{Map, Value};

use crate::gguf::{self, Gguf};
use crate::mapped::Mapped;
use crate::place::{self, Place, Weights};
use crate::{Elements, Safetensors, finite, gguf_config, json, reading, shards};

/// A model on disk: its configuration, and its tensors through maps.
///
/// Opening reads headers only. Errors about a tensor name the file and the tensor.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: Map<String, Value>,
    /// The keys of a GGUF file by those of `config`.
    gguf_keys: BTreeMap<String, String>,
    generation_config: Option<Map<String, Value>>,
    files: Files,
    tensors: BTreeMap<String, Entry>,
    /// Names that an index gives to a file which does not hold them.
    absent: BTreeMap<String, PathBuf>,
}

#[derive(Debug)]
enum Files {
    HuggingFace(Vec<Safetensors>),
    Gguf(Vec<Gguf>),
}

impl Files {
    fn get(&self, index: usize) -> &Mapped {
        match self {
            Self::HuggingFace(files) => &files[index].file,
            Self::Gguf(files) => &files[index].file,
        }
    }
}

#[derive(Debug)]
struct Entry {
    file: usize,
    elements: Elements,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Checkpoint {
    /// Opens a Hugging Face folder, a `.safetensors` file in one, a `.gguf` file (any part of a split one), or a folder
    /// with one GGUF model.
    ///
    /// # Errors
    /// If nothing readable is there, a file is missing, truncated or damaged, or the configuration is no JSON object.
    pub fn open(path: &Path) -> Result<Self> {
        match place::find(path)? {
            Place::Folder { dir, weights } => Self::open_folder(path, &dir, &weights),
            Place::Gguf(file) => Self::open_gguf(path, &file),
        }
    }

    fn open_folder(path: &Path, dir: &Path, weights: &Weights) -> Result<Self> {
        let config_path = dir.join("config.json");
        reading::check_link(&config_path)?;
        if !config_path.exists() {
            if dir.join(crate::adapter::CONFIG).exists() {
                return Err(Error::input("holds an adapter, no model")
                    .hint("give it with `--lora` beside the model that it was made for")
                    .file(dir));
            }
            return Err(Error::input("holds no `config.json`")
                .hint("copy it from the model's page; without it the architecture is not known")
                .file(dir));
        }
        let config = json::read_object(&config_path)?;
        let generation_path = dir.join("generation_config.json");
        let has_generation = generation_path.exists() || reading::is_broken_link(&generation_path);
        let generation_config = has_generation.then(|| json::read_object(&generation_path)).transpose()?;
        let shards = shards::open(weights)?;
        let entry = |(file, index): (usize, usize)| {
            let tensor = &shards.files[file].tensors[index];
            Entry {
                file,
                elements: Elements::Plain(tensor.dtype),
                shape: tensor.shape.clone(),
                range: tensor.range.clone(),
            }
        };
        let tensors = shards.tensors.iter().map(|(name, at)| (name.clone(), entry(*at))).collect();
        Ok(Self {
            path: path.to_owned(),
            config,
            gguf_keys: BTreeMap::new(),
            generation_config,
            tensors,
            absent: shards.absent,
            files: Files::HuggingFace(shards.files),
        })
    }

    fn open_gguf(path: &Path, file: &Path) -> Result<Self> {
        let files = gguf::open_all(file)?;
        let mut tensors = BTreeMap::new();
        for (f, part) in files.iter().enumerate() {
            for t in part.tensors() {
                let entry = Entry { file: f, elements: t.elements, shape: t.shape.clone(), range: t.range.clone() };
                if tensors.insert(t.name.clone(), entry).is_some() {
                    return Err(Error::input("lies in another part too")
                        .hint("the parts belong to different models: download them again")
                        .tensor(&t.name)
                        .file(part.path()));
                }
            }
        }
        let mut checkpoint = Self {
            path: path.to_owned(),
            config: Map::new(),
            gguf_keys: BTreeMap::new(),
            generation_config: None,
            tensors,
            absent: BTreeMap::new(),
            files: Files::Gguf(files),
        };
        (checkpoint.config, checkpoint.gguf_keys) = gguf_config::config(&checkpoint)?;
        checkpoint.generation_config = gguf_config::generation_config(&checkpoint)?;
        Ok(checkpoint)
    }

    /// How it lies on disk.
    pub fn container(&self) -> Container {
        match self.files {
            Files::HuggingFace(_) => Container::HuggingFace,
            Files::Gguf(_) => Container::Gguf,
        }
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`, or the same made from the metadata of a GGUF file.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// [`config`](Self::config) with its errors: they name the keys that the file has.
    pub fn settings(&self) -> Config<'_> {
        match self.container() {
            Container::HuggingFace => Config::new(&self.config),
            Container::Gguf => Config::of_gguf(&self.config, &self.gguf_keys),
        }
    }

    /// What errors call the place of the settings, and what may help where these do not fit the tensors.
    pub(crate) fn settings_words(&self) -> (&'static str, &'static str) {
        match self.container() {
            Container::HuggingFace => {
                ("config.json", "the configuration belongs to another model, or the file is damaged: download it again")
            }
            Container::Gguf => {
                ("the file's header", "the file is damaged: download it again, or convert the original anew")
            }
        }
    }

    /// `generation_config.json`, or the same made from the metadata of a GGUF file.
    pub fn generation_config(&self) -> Option<&Map<String, Value>> {
        self.generation_config.as_ref()
    }

    /// The GGUF file with the metadata.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.files {
            Files::Gguf(files) => files.first(),
            Files::HuggingFace(_) => None,
        }
    }

    /// The metadata of safetensors files, all in one.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        match &self.files {
            Files::HuggingFace(files) => files.iter().flat_map(|f| f.metadata.clone()).collect(),
            Files::Gguf(_) => BTreeMap::new(),
        }
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Sizes of a tensor, outermost first: `[out, in]` for a linear, in GGUF files too.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.entry(name)?.shape.clone())
    }

    /// How the elements of a tensor are stored.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn elements(&self, name: &str) -> Result<Elements> {
        Ok(self.entry(name)?.elements)
    }

    /// A matrix as it is stored, its bytes mapped: all rows of a tensor of more than two dimensions, the one row of a vector.
    ///
    /// # Errors
    /// If there is none of that name, it has no dimension, or its type is neither a plain float nor a block type that is
    /// read.
    pub fn storage(&self, name: &str) -> Result<Storage> {
        let entry = self.entry(name)?;
        let place = |e: Error| e.tensor(name).file(self.files.get(entry.file).path());
        let &[ref outer @ .., cols] = &entry.shape[..] else {
            return Err(place(Error::input("is one number, where a matrix is needed")));
        };
        let rows = outer.iter().product();
        match entry.elements {
            Elements::Plain(dtype) if dtype.is_float() => {
                Ok(Storage::Dense(Tensor { dtype, shape: vec![rows, cols], bytes: self.bytes(entry) }))
            }
            Elements::Blocks(kind) => {
                GgmlBlocks::new(kind, rows, cols, self.bytes(entry)).map(Storage::Ggml).map_err(place)
            }
            Elements::Plain(dtype) => Err(place(no_weight(dtype))),
        }
    }

    /// A tensor of plain elements, its bytes mapped.
    ///
    /// # Errors
    /// If there is none of that name, or it is stored in blocks.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let entry = self.entry(name)?;
        match entry.elements {
            Elements::Plain(dtype) => Ok(Tensor { dtype, shape: entry.shape.clone(), bytes: self.bytes(entry) }),
            Elements::Blocks(kind) => {
                Err(Error::input(format!("is stored in blocks of {}, where plain elements are needed", kind.name())))
            }
        }
        .map_err(|e| e.tensor(name).file(self.files.get(entry.file).path()))
    }

    /// A tensor of plain elements, or the numbers that the blocks of one decode to.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`] and [`Checkpoint::storage`].
    pub fn decoded(&self, name: &str) -> Result<Tensor> {
        let Elements::Blocks(_) = self.elements(name)? else { return self.tensor(name) };
        let blocks = self.storage(name)?;
        let [rows, cols] = blocks.shape();
        let mut values = vec![0.0; rows * cols];
        blocks.decode_rows(0..rows, &mut values);
        Tensor::from_f32(Dtype::F32, &self.shape(name)?, &values)
    }

    /// The bytes of a tensor as they lie in the file, mapped.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn raw_bytes(&self, name: &str) -> Result<Bytes> {
        Ok(self.bytes(self.entry(name)?))
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|entry| self.files.get(entry.file).path())
    }

    /// Gives a tensor's pages back to the system, so that streaming through a model keeps little of it resident.
    pub fn drop_pages(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            self.files.get(entry.file).drop_pages(entry.range.clone());
        }
    }

    /// Bytes of the tensors, as stored.
    pub fn size_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.range.len() as u64).sum()
    }

    /// The position and value of the first NaN or infinity of a tensor.
    ///
    /// In blocks, the scales are looked at: the position is that of the block's first weight, the value the scale.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn non_finite(&self, name: &str) -> Result<Option<(Vec<usize>, f32)>> {
        let entry = self.entry(name)?;
        let bytes = &self.files.get(entry.file).bytes()[entry.range.clone()];
        let first = match entry.elements {
            Elements::Plain(dtype) => finite::first_in_plain(dtype, bytes),
            Elements::Blocks(kind) => finite::first_in_blocks(kind, bytes),
        };
        Ok(first.map(|(index, value)| (finite::position(index, &entry.shape), value)))
    }

    /// The greatest magnitude in a tensor of plain floats that are finite; `None` for other tensors.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn greatest(&self, name: &str) -> Result<Option<f32>> {
        let entry = self.entry(name)?;
        let Elements::Plain(dtype) = entry.elements else { return Ok(None) };
        Ok(finite::greatest(dtype, &self.files.get(entry.file).bytes()[entry.range.clone()]))
    }

    /// A file that lies beside the weights of a Hugging Face folder, such as `tokenizer.json`, if it is there; a link that
    /// leads nowhere is.
    pub fn sidecar(&self, name: &str) -> Option<PathBuf> {
        let path = self.folder()?.join(name);
        let is_there = path.is_file() || reading::is_broken_link(&path);
        (Path::new(name).file_name() == Some(name.as_ref()) && is_there).then_some(path)
    }

    /// All files of a Hugging Face folder except weights and their index, sorted: the tokenizer, licences, cards.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn sidecars(&self) -> Result<Vec<PathBuf>> {
        let Some(folder) = self.folder() else { return Ok(Vec::new()) };
        let weights = ["safetensors", "gguf", "bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "index.json"];
        let is_weights = |name: &str| weights.iter().any(|w| name.strip_suffix(w).is_some_and(|n| n.ends_with('.')));
        let names = place::list(folder)?.into_iter().filter(|name| !is_weights(name));
        Ok(names.map(|name| folder.join(name)).filter(|path| path.is_file()).collect())
    }

    fn folder(&self) -> Option<&Path> {
        match &self.files {
            Files::HuggingFace(files) => files.first().and_then(|f| f.file.path().parent()),
            Files::Gguf(_) => None,
        }
    }

    fn bytes(&self, entry: &Entry) -> Bytes {
        self.files.get(entry.file).bytes().slice(entry.range.clone())
    }

    fn way_out_of_absence(&self) -> &'static str {
        match self.container() {
            Container::HuggingFace => "download the model again, or take the configuration that belongs to it",
            Container::Gguf => "download the file again, or convert the original anew",
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| match self.absent.get(name) {
            Some(file) => Error::input("the index says that it lies here, but it does not")
                .hint("download the file again")
                .tensor(name)
                .file(file),
            None => Error::input("is missing").hint(self.way_out_of_absence()).tensor(name).file(&self.path),
        })
    }
}

fn no_weight(dtype: Dtype) -> Error {
    let way_out = match dtype {
        Dtype::F8E4M3 | Dtype::F8E5M2 | Dtype::F8E8M0 => "its scales are needed too",
        _ => "it is no weight of a plain model",
    };
    Error::input(format!("has type {}, which is not read as a weight", dtype.name())).hint(way_out)
}
