//! The finished folder: index, configuration, the files beside the weights, card, manifest; then the rename.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fewbit_export::{CardInfo, card, config, sidecars, verify_folder, write_gguf};
use fewbit_format::{Error, Result};
use fewbit_store::ModelFile;
use fewbit_store::layout::Scheme;
use serde_json::{Value, json};

use crate::allocate::AllocationReport;
use crate::bound::Bound;
use crate::calibration::{Calibration, CalibrationSource};
use crate::imatrix::Given;
use crate::journal::Done;
use crate::journal::Identity;
use crate::outputs::{Format, Schemes, rename, shard_name, write_file};
use crate::places::Places;
use crate::request::Request;
use crate::stop::crash_point;

/// What finishing needs to know of a run.
pub(crate) struct Finished<'a> {
    pub(crate) file: &'a ModelFile,
    pub(crate) bound: &'a Bound,
    pub(crate) request: &'a Request<'a>,
    pub(crate) calibration: Option<&'a Calibration>,
    pub(crate) importances: Option<&'a Given>,
    pub(crate) identity: &'a Identity,
    pub(crate) places: &'a Places,
    /// Parts of the model.
    pub(crate) shards: usize,
    pub(crate) done: Vec<Done>,
    pub(crate) allocation: Option<&'a AllocationReport>,
}

impl Finished<'_> {
    /// Completes `OUT.partial/parts` and renames it to `OUT`.
    pub(crate) fn write(&self) -> Result<()> {
        if !self.places.ready().exists() {
            rename(&self.made()?, &self.places.ready())?;
        }
        self.places.deliver()
    }

    /// The whole result, within the working folder.
    fn made(&self) -> Result<PathBuf> {
        let parts = self.open_parts()?;
        verify_folder(&parts)?;
        if self.bound.format == Format::Gguf { self.gguf(&parts) } else { Ok(parts) }
    }

    /// Makes the parts' folder a model that can be opened.
    pub(crate) fn open_parts(&self) -> Result<PathBuf> {
        let parts = self.places.parts();
        let schemes = self.index(&parts)?;
        self.files(&parts, &schemes)?;
        Ok(parts)
    }

    /// Writes the index; returns the scheme of every linear.
    fn index(&self, parts: &Path) -> Result<Schemes> {
        write_index(parts, self.shards)?;
        let mut schemes: BTreeMap<_, _> = self.bound.schemes(self.file)?.into_iter().collect();
        schemes.extend(self.done.iter().flat_map(|d| d.schemes.iter().cloned()));
        Ok(schemes.into_iter().collect())
    }

    fn files(&self, parts: &Path, schemes: &[(String, Option<Scheme>)]) -> Result<()> {
        let is_quantized = schemes.iter().any(|(_, s)| s.is_some());
        let quantization = is_quantized.then(|| {
            let cache = self.bound.cache.as_ref().map(|c| c.grid());
            self.bound.format.layout().quantization_config(schemes, cache)
        });
        let config = config(self.file, quantization, self.bound.is_tied(self.file))?;
        write_file(&parts.join("config.json"), &pretty(&Value::Object(config))?)?;
        for (name, bytes) in sidecars(self.file)? {
            write_file(&parts.join(name), &bytes)?;
        }
        write_file(&parts.join("fewbit.json"), &pretty(&self.manifest()?)?)?;
        write_file(&parts.join("README.md"), self.card(parts)?.as_bytes())
    }

    fn gguf(&self, parts: &Path) -> Result<PathBuf> {
        let folder = self.places.partial.join("gguf");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(|e| Error::io("removing", &folder, &e))?;
        }
        std::fs::create_dir(&folder).map_err(|e| Error::io("creating", &folder, &e))?;
        let path = folder.join("model.gguf");
        write_gguf(&ModelFile::open(parts)?, &path, self.bound.mix)?;
        crash_point();
        if self.places.out.extension().is_some_and(|e| e == "gguf") {
            return Ok(path);
        }
        for name in ["fewbit.json", "README.md"] {
            rename(&parts.join(name), &folder.join(name))?;
        }
        Ok(folder)
    }

    /// Everything that the result depends on, and nothing that it does not (no time, no host, no path).
    fn manifest(&self) -> Result<Value> {
        let r = self.request;
        let settings: Vec<String> = r.settings.0.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let calibration = self.calibration.map(|c| {
            let source = match &r.calibration {
                CalibrationSource::Bundled(_) => "bundled".to_owned(),
                CalibrationSource::Own => "self".to_owned(),
                CalibrationSource::Files(files) => {
                    let names = files.iter().filter_map(|f| f.file_name()).map(|n| n.to_string_lossy().into_owned());
                    names.collect::<Vec<_>>().join(", ")
                }
            };
            json!({ "source": source, "samples": c.samples, "length": c.length, "sha256": c.hash })
        });
        let blocks = serde_json::to_value(self.done.iter().map(|d| &d.report).collect::<Vec<_>>())
            .map_err(|e| Error::internal(e.to_string()))?;
        let mut manifest = json!({
            "fewbit": self.identity.version,
            "base_model": r.model_name,
            "source_sha256": self.identity.source,
            "arithmetic_profile": self.identity.profile,
            "recipe": { "name": r.recipe.name, "cite": r.recipe.cite, "passes": serde_json::to_value(&r.recipe.passes).unwrap_or_default(), "set": settings },
            "keep": r.keep.iter().map(crate::Pattern::as_str).collect::<Vec<_>>(),
            "override": r.overrides.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "dequantized_first": self.file.is_quantized(),
            "seed": r.seed,
            "calibration": calibration,
            "importances_sha256": self.importances.map(Given::hash),
            "format": self.bound.format.name(),
            "blocks": blocks,
        });
        if let Some(allocation) = self.allocation {
            manifest["allocation"] = serde_json::to_value(allocation).map_err(|e| Error::internal(e.to_string()))?;
        }
        Ok(manifest)
    }

    fn card(&self, parts: &Path) -> Result<String> {
        let file = ModelFile::open(parts)?;
        let r = self.request;
        Ok(card(&CardInfo {
            file: &file,
            source: self.file,
            base_model: &r.model_name,
            recipe: &r.recipe.name,
            cite: &r.recipe.cite,
            settings: r.settings.0.iter().map(|(k, v)| format!("{k}={v}")).collect(),
            calibration: self.calibration.map(|c| format!("{} sequences of {} tokens", c.samples, c.length)),
            format: self.bound.format.name(),
        }))
    }
}

/// Gives the shards of a folder their final names and writes the index.
pub(crate) fn write_index(parts: &Path, count: usize) -> Result<()> {
    let (mut map, mut total) = (BTreeMap::new(), 0u64);
    for i in 0..count {
        let (working, name) = (parts.join(shard_name(i)), format!("model-{:05}-of-{count:05}.safetensors", i + 1));
        let path = parts.join(&name);
        if working.exists() {
            rename(&working, &path)?;
        }
        let shard = fewbit_store::Safetensors::open(&path)?;
        for tensor in shard.names() {
            total += shard.tensor(tensor)?.bytes.len() as u64;
            map.insert(tensor.to_owned(), name.clone());
        }
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    write_file(&parts.join("model.safetensors.index.json"), &pretty(&index)?)
}

pub(crate) fn pretty(value: &Value) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::internal(e.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}
