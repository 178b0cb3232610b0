//! LoRA adapters on disk, of PEFT and of llama.cpp: pairs of factors for modules of a model.
//!
//! Sources: `LoraConfig` and `save_and_load.py` of huggingface/peft; `llama-adapter.cpp` of ggml-org/llama.cpp.

mod gguf;
mod modules;
mod peft;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fewbit_format::{Adapter, Error, Result, Tensor};
use fewbit_graph::{Container, Part, Rows, WeightId};

use self::modules::Modules;
use crate::{GgufFamily, ModelFile, finite, place, transposed};

/// An adapter: for each module that it names a pair of factors, `scale · b · a` being added to the module's matrix.
#[derive(Debug)]
pub struct LoraAdapter {
    path: PathBuf,
    /// Whose names the modules have.
    container: Container,
    /// `general.architecture` of a GGUF file.
    architecture: Option<String>,
    pairs: BTreeMap<String, Pair>,
}

/// What an adapter adds to one module.
#[derive(Debug)]
struct Pair {
    a: Factor,
    b: Factor,
    scale: f32,
    form: Form,
}

/// How a pair of factors is stored, for a matrix `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `a [rank, in]`, `b [out, rank]`.
    Linear,
    /// Of an embedding, whose rows are tokens, by PEFT: `a [rank, out]`, `b [in, rank]`.
    Embedding,
    /// The same by llama.cpp, which looks rows up: `a [out, rank]`, `b [in, rank]`.
    LookedUp,
}

/// A tensor of an adapter, with its name there.
#[derive(Debug)]
struct Factor {
    name: String,
    tensor: Tensor,
}

pub(crate) const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

impl LoraAdapter {
    /// Opens a folder that PEFT saved, a file in one, a GGUF file, or a folder with one.
    ///
    /// # Errors
    /// If there is no adapter, it is damaged, or it does more to a model than to add such products.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|e| Error::io("opening the adapter", path, &e))?;
        if metadata.is_file() && place::begins_as_gguf(path) {
            return gguf::open(path);
        }
        let folder = if metadata.is_dir() { path } else { path.parent().unwrap_or(path) };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let names = place::list(folder)?;
        let has = |name: &str| names.iter().any(|n| n == name);
        let ggufs: Vec<PathBuf> = place::of_extension(folder, &names, "gguf").collect();
        match (has(CONFIG), has(WEIGHTS), &ggufs[..]) {
            (true, true, _) => peft::open(folder),
            (true, false, _) if has("adapter_model.bin") => Err(place::pickle("adapter_model.bin")
                .hint("save it again with PEFT, which writes `adapter_model.safetensors` by default")
                .file(folder)),
            (_, _, [only]) if metadata.is_dir() => gguf::open(only),
            _ => Err(Error::input(format!("holds no adapter: there is no `{CONFIG}` with `{WEIGHTS}`"))
                .hint("give a folder that PEFT saved, or a GGUF file of llama.cpp's `convert_lora_to_gguf.py`")
                .file(folder)),
        }
    }

    /// What it adds to each matrix of a model, its scales times `scale`.
    ///
    /// # Errors
    /// If a module is none of the model, a factor has another shape or holds a number that is not finite.
    pub(crate) fn for_model(&self, file: &ModelFile, scale: f32) -> Result<Vec<((Part, WeightId), Adapter)>> {
        self.check_architecture(file).map_err(|e| e.file(&self.path))?;
        let modules = Modules::of(file, self.container);
        let mut all = Vec::new();
        for (module, pair) in &self.pairs {
            let place = |e: Error| e.file(&self.path);
            pair.check_finite().map_err(place)?;
            let targets = modules.find(module);
            if targets.is_empty() {
                let e = Error::input("belongs to no matrix of the model").hint("the adapter is one of another model");
                return Err(place(e.tensor(&pair.a.name)));
            }
            for target in targets {
                all.push((target.weight, pair.for_target(target, scale).map_err(place)?));
            }
        }
        Ok(all)
    }

    /// Refuses an adapter whose names would be found, but mean other matrices.
    fn check_architecture(&self, file: &ModelFile) -> Result<()> {
        let Some(name) = &self.architecture else { return Ok(()) };
        if GgufFamily::ALL.iter().any(|f| f.name == name && file.is_of(f.class)) {
            return Ok(());
        }
        Err(Error::input(format!("is an adapter for models of the architecture `{name}`, of which this one is not"))
            .hint("give an adapter that was made for this model"))
    }
}

impl Pair {
    fn check_finite(&self) -> Result<()> {
        for Factor { name, tensor } in [&self.a, &self.b] {
            if let Some((index, value)) = finite::first_in_plain(tensor.dtype, &tensor.bytes) {
                let at = finite::position(index, &tensor.shape);
                return Err(Error::input(format!("holds {value} at {at:?}"))
                    .hint("the adapter is damaged: download it again, or train it anew")
                    .tensor(name));
            }
        }
        Ok(())
    }

    /// The rows that are a weight's.
    fn for_target(&self, target: &modules::Target, scale: f32) -> Result<Adapter> {
        let [out, columns] = target.shape;
        let stored = target.rows.stored_count(out);
        let is_embedding = target.weight.0 == Part::Embed;
        if is_embedding != (self.form != Form::Linear) {
            let [of, is] = if is_embedding { ["a linear", "an embedding"] } else { ["an embedding", "a linear"] };
            return Err(Error::input(format!("is a factor of {of}, where the model has {is}")).tensor(&self.a.name));
        }
        let rank = *self.b.tensor.shape.last().unwrap_or(&0);
        let (a, b) = match self.form {
            Form::Linear => ([rank, columns], [stored, rank]),
            Form::Embedding => ([rank, stored], [columns, rank]),
            Form::LookedUp => ([stored, rank], [columns, rank]),
        };
        for (Factor { name, tensor }, wanted) in [(&self.a, a), (&self.b, b)] {
            if tensor.shape != wanted {
                let e =
                    Error::input(format!("has shape {:?}, where the model's matrix needs {wanted:?}", tensor.shape));
                return Err(e.hint("the adapter is one of another model").tensor(name));
            }
        }
        let (a, b) = (&self.a.tensor, &self.b.tensor);
        let (left, right) = match self.form {
            Form::Linear => (b.clone(), a.clone()),
            Form::Embedding => (transposed(a, None)?, transposed(b, None)?),
            Form::LookedUp => (a.clone(), transposed(b, None)?),
        };
        let scale = self.scale * scale;
        if !scale.is_finite() {
            let e =
                Error::input(format!("has the scale {scale}")).hint("give a smaller one, or mend the adapter's alpha");
            return Err(e.tensor(&self.b.name));
        }
        let mut adapter = Adapter::new(left, right, scale).map_err(|e| e.tensor(&self.b.name))?;
        if target.rows != Rows::All {
            let rows: Vec<usize> = (0..out).map(|r| target.rows.stored(r)).collect();
            adapter.factors.left = adapter.factors.left.select_rows(&rows)?;
        }
        Ok(adapter)
    }
}

/// Puts the factors of each module together: by module, whether it is `a`, and the factor.
fn pairs(
    factors: Vec<(String, bool, Factor)>,
    pair: impl Fn(&str, Factor, Factor) -> Result<Pair>,
) -> Result<BTreeMap<String, Pair>> {
    let mut by_module: BTreeMap<String, [Option<Factor>; 2]> = BTreeMap::new();
    for (module, is_a, factor) in factors {
        let place = &mut by_module.entry(module).or_default()[usize::from(!is_a)];
        if let Some(other) = place {
            return Err(Error::input(format!("is the same factor as `{}`", other.name)).tensor(&factor.name));
        }
        *place = Some(factor);
    }
    if by_module.is_empty() {
        return Err(Error::input("holds no factors").hint("the adapter was saved before it was trained, or is none"));
    }
    let whole = |(module, factors): (String, [Option<Factor>; 2])| match factors {
        [Some(a), Some(b)] => pair(&module, a, b).map(|pair| (module, pair)),
        [Some(f), None] | [None, Some(f)] => {
            Err(Error::input("lacks the other factor of its pair").hint("download the adapter again").tensor(&f.name))
        }
        [None, None] => Err(Error::internal("a module without factors")),
    };
    by_module.into_iter().map(whole).collect()
}
