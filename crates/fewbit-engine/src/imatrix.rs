//! Importance matrices: measured with calibration text, and taken from files in its place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fewbit_format::{Error, Result, hex};
use fewbit_graph::{Graph, Part, Source, WeightId};
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Layer};
use fewbit_store::{ImportanceMatrix, Importances, ModelFile};
use sha2::{Digest, Sha256};

use crate::bound::{Bound, Choices, compressible};
use crate::calibration::{Calibration, CalibrationSource};
use crate::kinds::Needs;
use crate::origin::Origin;
use crate::places::{Claim, Places};
use crate::quantize::{calibrate, open};
use crate::report::Progress;
use crate::request::Request;
use crate::stats::{Collector, InputStats};
use crate::stop::check_stop;
use crate::walk::{To, Walk, Walker};

/// Measures the mean squares of what each linear of the original model is multiplied with; the request's recipe gives
/// the calibration text alone. Streams of tokens lie in `OUT.partial` meanwhile.
///
/// # Errors
/// If the model has no names in GGUF, the text is too short, the disk is full, or `stop` was set.
pub fn importances(
    request: &Request<'_>,
    team: &Arc<Team>,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<ImportanceMatrix> {
    let request = &request.settled()?;
    let file = open(request)?;
    file.check_finite()?;
    let choices =
        Choices { registry: request.registry, keep: &[], overrides: &[], allocate: None, format: request.format };
    let bound = Bound::new(&file, Vec::new(), &request.recipe.calibration, &choices)?;
    let calibration = calibrate(request, &file, team, progress, stop)?;
    let places = Places::claim(Claim { resume: None, ..Claim::of(request) })?;
    let entries = measure(&file, &bound, &calibration, &places.partial, team, progress, stop);
    // Nobody goes on with half of it.
    places.abandon();
    Ok(ImportanceMatrix {
        entries: entries?,
        datasets: names(&request.calibration),
        chunks: calibration.samples as u32,
        chunk_tokens: calibration.length as u32,
    })
}

/// By the tensor's name in GGUF; streams of tokens lie in `folder`.
fn measure(
    file: &ModelFile,
    bound: &Bound,
    calibration: &Calibration,
    folder: &Path,
    team: &Team,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<BTreeMap<String, Importances>> {
    let origin = Origin::new(file, bound, team, 0)?;
    let mut walker = Walker::new(team, &origin, calibration, folder, "stream", 0, 0)?;
    let mut entries = BTreeMap::new();
    progress.begin("blocks", file.model().blocks.len() as u64);
    for (i, graph) in file.model().blocks.iter().enumerate() {
        progress.at(i as u64);
        let part = Part::Block(i);
        let mut walk = Walk::new(Layer::new(Arc::new(graph.clone()), origin.part(part)?, Arithmetic::Exact)?);
        let inputs = graph.linears_by_input();
        let widths = inputs.iter().map(|(edge, _)| (*edge, graph.values[edge.value].dim));
        let mut collector = Collector::new(team, Needs { mean_square: true, ..Needs::default() }, widths, None);
        walker.go(&mut walk, To::End, &mut collector, &|| check_stop(stop))?;
        walker.next_block()?;
        for (edge, stats) in collector.finish() {
            let linears = inputs.iter().find(|(e, _)| *e == edge).map_or(&[][..], |(_, linears)| linears);
            for w in linears {
                let at = place(file, part, graph, *w)?;
                // Of a matrix for each head, llama.cpp measures each head by itself.
                if at.heads.is_none() {
                    add(&mut entries, &at, &of_input(&stats));
                }
            }
        }
        origin.drop_pages(part);
    }
    Ok(entries)
}

fn of_input(stats: &InputStats) -> Importances {
    let tokens = stats.tokens as f32;
    let sums = stats.mean_square.iter().flatten().map(|mean| mean * tokens).collect();
    Importances { sums, counts: vec![tokens] }
}

/// What text it is, in words.
fn names(source: &CalibrationSource) -> Vec<String> {
    match source {
        CalibrationSource::Bundled(_) => vec!["bundled".to_owned()],
        CalibrationSource::Own => vec!["self".to_owned()],
        CalibrationSource::Files(files) => {
            files.iter().filter_map(|f| f.file_name()).map(|n| n.to_string_lossy().into_owned()).collect()
        }
    }
}

/// Where a linear lies in GGUF.
fn place(file: &ModelFile, part: Part, graph: &Graph, w: WeightId) -> Result<Source> {
    let name = &graph.weights[w].name;
    file.exported_gguf(part, name).ok_or_else(|| {
        Error::input(format!("`{name}` has no name in a GGUF file, by which importance matrices go"))
            .file(file.checkpoint().path())
    })
}

/// Puts what a linear reads where its tensor has it: an expert's behind those of the experts before it.
fn add(entries: &mut BTreeMap<String, Importances>, at: &Source, of_linear: &Importances) {
    let (expert, experts) = at.fused.as_ref().map_or((0, 1), |f| (f.expert, f.experts));
    let columns = of_linear.columns();
    let of_tensor = entries
        .entry(at.tensor())
        .or_insert_with(|| Importances { sums: vec![0.0; experts * columns], counts: vec![0.0; experts] });
    of_tensor.sums[expert * columns..][..columns].copy_from_slice(&of_linear.sums);
    of_tensor.counts[expert] = of_linear.counts[0];
}

/// An importance matrix that was read, for one model.
#[derive(Debug)]
pub(crate) struct Given {
    path: PathBuf,
    matrix: ImportanceMatrix,
}

impl Given {
    /// Reads a file, and checks that it has what every linear that is compressed needs.
    pub(crate) fn open(path: &Path, file: &ModelFile, bound: &Bound) -> Result<Self> {
        if !bound.transforms.is_empty() || bound.changes_inputs() {
            return Err(Error::input(
                "the recipe changes what linears read, and an importance matrix is of the original's",
            )
            .hint("leave out `--stats`: calibration text shows what they read then")
            .file(path));
        }
        let given = Self { matrix: ImportanceMatrix::open(path)?, path: path.to_owned() };
        for ((part, graph), grids) in compressible(file).zip(&bound.grids) {
            for w in (0..graph.weights.len()).filter(|w| grids[*w].is_some()) {
                given.means(file, part, graph, w)?;
            }
        }
        Ok(given)
    }

    /// SHA-256 of the names and numbers.
    pub(crate) fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for (name, of_tensor) in &self.matrix.entries {
            hash.update(name.as_bytes());
            of_tensor.sums.iter().chain(&of_tensor.counts).for_each(|v| hash.update(v.to_le_bytes()));
        }
        hex(&hash.finalize())
    }

    /// The mean squares of a linear's input, by column.
    pub(crate) fn means(&self, file: &ModelFile, part: Part, graph: &Graph, w: WeightId) -> Result<Vec<f32>> {
        let (at, cols) = (place(file, part, graph, w)?, graph.weights[w].shape[1]);
        let (name, experts) = (at.tensor(), at.fused.as_ref().map_or(1, |f| f.experts));
        let place = |e: Error| e.tensor(&name).file(&self.path);
        let of_tensor = self.matrix.entries.get(&name).ok_or_else(|| {
            place(Error::input("is not in the importance matrix").hint("take one that was made with this model"))
        })?;
        let (sums, counts) = (of_tensor.sums.len(), of_tensor.counts.len());
        if sums != experts * cols || ![1, experts].contains(&counts) {
            let wanted = if experts == 1 { String::new() } else { format!(" for each of {experts} experts") };
            return Err(place(
                Error::input(format!("has {sums} importances, where the model has {cols} columns{wanted}"))
                    .hint("take one that was made with this model"),
            ));
        }
        Ok(of_tensor.means_of(at.fused.as_ref().map_or(0, |f| f.expert), experts))
    }
}
