//! The run: calibration, block after block, shards, the finished folder.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fewbit_format::{Dtype, Error, Kind, Mat, QuantizedLinear, Result, Storage, Tensor, hex};
use fewbit_graph::{Graph, Part, Producer, Site, Stored, ValueId, WeightId};
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Layer, NoHooks, language};
use fewbit_store::{ModelFile, PartWeights};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::calibration::{Calibration, CalibrationSource};
use crate::finish::Finished;
use crate::fold::{BlockTensors, fold, spread};
use crate::journal::{Done, Identity, JOURNAL, Journal};
use crate::kinds::{Element, LinearJob, Registry, SiteJob};
use crate::outputs::{Format, Shard, write_shard};
use crate::places::Places;
use crate::plan::{Bound, Choices, compressible};
use crate::stats::{Collector, InputStats};
use crate::walk::{To, Walk, Walker};
use crate::{Override, Pattern, Plan, Recipe, Settings};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The model.
    pub model: PathBuf,
    /// How the model is called in cards and manifests.
    pub model_name: String,
    /// The method.
    pub recipe: Recipe,
    /// Changes of its settings.
    pub settings: Settings,
    /// All primitives.
    pub registry: &'a Registry,
    /// The folder (or `.gguf` file) that is made.
    pub out: PathBuf,
    /// What is written.
    pub format: Format,
    /// Linears that stay as they are, beside embedding and head.
    pub keep: Vec<Pattern>,
    /// Other grids for some linears.
    pub overrides: Vec<Override>,
    /// Whether a quantized source is taken, dequantized.
    pub requantize: bool,
    /// Calibration text.
    pub calibration: CalibrationSource,
    /// Sequences, where the recipe's number is not wanted.
    pub samples: Option<usize>,
    /// Tokens of a sequence, where the recipe's number is not wanted.
    pub length: Option<usize>,
    /// Of everything random.
    pub seed: u64,
    /// Whether to go on with `OUT.partial`.
    pub resume: bool,
    /// Whether to replace `OUT` and `OUT.partial`.
    pub force: bool,
}

impl Request<'_> {
    /// The same with the calibration's settings put into the recipe.
    fn settled(&self) -> Result<Self> {
        let mut request = self.clone();
        request.recipe.calibration = self.recipe.calibration(&self.settings)?;
        Ok(request)
    }
}

/// Who hears how far the work is.
pub trait Progress {
    /// A stage of `total` steps begins.
    fn begin(&mut self, stage: &'static str, total: u64);
    /// So many of them are done.
    fn at(&mut self, done: u64);
    /// Something that the user should know.
    fn note(&mut self, text: &str);
}

/// One block of the report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BlockReport {
    /// Its linears.
    pub linears: Vec<LinearReport>,
    /// Warnings.
    pub warnings: Vec<String>,
    /// Seconds in forwards (statistics and step), without the Gram products.
    #[serde(skip)]
    pub forward_seconds: f64,
    /// Seconds in Gram products.
    #[serde(skip)]
    pub gram_seconds: f64,
    /// Seconds in transforms.
    #[serde(skip)]
    pub transform_seconds: f64,
    /// Seconds in solves.
    #[serde(skip)]
    pub solve_seconds: f64,
    /// Seconds in packing and writing.
    #[serde(skip)]
    pub write_seconds: f64,
}

/// One linear of the report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinearReport {
    /// Module path.
    pub name: String,
    /// The grid, such as `w4 g128`.
    pub grid: String,
    /// Everything stored ÷ weights.
    pub bits_per_weight: f64,
    /// Mean squared error of the outputs over the calibration tokens, where it is known.
    pub output_mse: Option<f64>,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Report {
    /// Per block, the head last where it was compressed.
    pub blocks: Vec<BlockReport>,
    /// The written format.
    pub format: Format,
}

/// Everything that a run knows.
struct Run<'a> {
    request: &'a Request<'a>,
    file: ModelFile,
    bound: Bound,
    team: &'a Arc<Team>,
    calibration: Option<Calibration>,
    places: Places,
    stop: &'a AtomicBool,
}

/// Says what a request means, without doing it.
///
/// # Errors
/// If it is refused.
pub fn plan(request: &Request<'_>, flops_per_second: f64) -> Result<Plan> {
    let request = &request.settled()?;
    let (file, bound) = bind(request)?;
    let (samples, length) = sizes(request, &file);
    Ok(bound.plan(&file, &request.recipe, samples, length, flops_per_second))
}

/// Compresses a model.
///
/// # Errors
/// If the request is refused, the disk is full, or `stop` was set; what is finished stays in `OUT.partial`.
pub fn quantize(
    request: &Request<'_>,
    team: &Arc<Team>,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Report> {
    let request = &request.settled()?;
    let (file, bound) = bind(request)?;
    file.notes().iter().chain(&bound.notes).for_each(|n| progress.note(n));
    let places = Places::claim(request)?;
    let prepared = prepare(request, &file, &bound, &places, team, progress, stop).inspect_err(|e| {
        if e.kind() != Kind::Interrupted {
            places.abandon();
        }
    });
    let (source, calibration) = prepared?;
    let run = Run { request, file, bound, team, calibration, places, stop };
    run.all(&source, progress)
}

/// What can still refuse a run before its work: space, calibration text, numbers that are none.
fn prepare(
    request: &Request<'_>,
    file: &ModelFile,
    bound: &Bound,
    places: &Places,
    team: &Arc<Team>,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<(String, Option<Calibration>)> {
    let room = |samples, length| {
        let plan = bound.plan(file, &request.recipe, samples, length, 1.0);
        places.check_space(plan.out_bytes + plan.work_bytes).map(|()| plan)
    };
    let mut plan = room(0, 0)?;
    let is_own = request.calibration == CalibrationSource::Own;
    let mut calibration = None;
    if bound.needs.any() && !is_own {
        calibration = Some(calibrate(request, file, team, progress, stop)?);
    }
    let source = source_hash(file, team, progress, stop)?;
    if bound.needs.any() && is_own {
        calibration = Some(calibrate(request, file, team, progress, stop)?);
    }
    if let Some(c) = &calibration {
        plan = room(c.samples, c.length)?;
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let (peak, out, work) = (mib(plan.peak_bytes), mib(plan.out_bytes), mib(plan.work_bytes));
    progress.note(&format!(
        "at most {peak} MiB of memory are needed; the result takes {out} MiB, working files {work} MiB"
    ));
    Ok((source, calibration))
}

fn bind(request: &Request<'_>) -> Result<(ModelFile, Bound)> {
    let file = ModelFile::open(&request.model)?;
    let what = file.quantization().describe().unwrap_or_else(|| "in blocks of ggml".to_owned());
    if file.is_quantized() && !request.requantize {
        return Err(Error::input(format!("is already quantized ({what})"))
            .hint("take the original, or dequantize it first with `--requantize`")
            .file(&request.model));
    }
    let scale = if file.dtype() == Dtype::BF16 { "bf16" } else { "f16" };
    let scale = if request.format == Format::Gguf { "f16" } else { scale };
    let passes = request.recipe.compile(&request.settings, request.registry, scale)?;
    let choices = Choices {
        registry: request.registry,
        keep: &request.keep,
        overrides: &request.overrides,
        format: request.format,
    };
    let mut bound = Bound::new(&file, passes, &request.recipe.calibration, &choices)?;
    if file.is_quantized() {
        // A layout that cannot be read is refused now.
        file.quantization().check(true).map_err(|e| e.file(&request.model))?;
        file.part(Part::Block(0))?;
        bound.notes.push(format!("the source is quantized ({what}): its decoded weights are the original"));
    }
    Ok((file, bound))
}

/// Sequences and tokens of a sequence; a length that nobody chose ends at the model's context.
fn sizes(request: &Request<'_>, file: &ModelFile) -> (usize, usize) {
    let c = &request.recipe.calibration;
    (request.samples.unwrap_or(c.samples), request.length.unwrap_or(c.length.min(file.model().context)))
}

/// SHA-256 over configuration and tensors, each tensor looked through for NaN and infinity on the way.
fn source_hash(file: &ModelFile, team: &Team, progress: &mut dyn Progress, stop: &AtomicBool) -> Result<String> {
    let names: Vec<&str> = file.checkpoint().names().collect();
    progress.begin("reading the model", 1);
    let slots: Vec<std::sync::Mutex<Result<Vec<u8>>>> =
        names.iter().map(|_| std::sync::Mutex::new(Ok(Vec::new()))).collect();
    team.run(names.len(), &|i| {
        let digest = || -> Result<Vec<u8>> {
            check_stop(stop)?;
            let bytes = file.checkpoint().raw_bytes(names[i])?;
            Ok(Sha256::digest(&bytes).to_vec())
        };
        let result = digest();
        if let Ok(mut slot) = slots[i].lock() {
            *slot = result;
        }
    });
    file.check_finite()?;
    let mut all = Sha256::new();
    all.update(serde_json::to_vec(file.checkpoint().config()).map_err(|e| Error::internal(e.to_string()))?);
    for (name, slot) in names.iter().zip(slots) {
        all.update(name.as_bytes());
        all.update(slot.into_inner().map_err(|_| Error::internal("a task that panicked"))??);
        file.checkpoint().drop_pages(name);
    }
    progress.at(1);
    Ok(hex(&all.finalize()))
}

fn calibrate(
    request: &Request<'_>,
    file: &ModelFile,
    team: &Arc<Team>,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Calibration> {
    let (samples, length) = sizes(request, file);
    if samples == 0 || length < 2 {
        return Err(Error::input(format!("{samples} calibration samples of {length} tokens"))
            .hint("at least 1 sample of 2 tokens is needed"));
    }
    if length > file.model().context {
        let context = file.model().context;
        return Err(Error::input(format!("`--length {length}` is beyond the model's context of {context}"))
            .hint(format!("`--length {context}` is the longest")));
    }
    let tokenizer = language::tokenizer_of(file.checkpoint())?;
    let calibration = match &request.calibration {
        CalibrationSource::Own => {
            Calibration::of_model(file, &tokenizer, team, samples, length, request.seed, progress, stop)?
        }
        source => Calibration::of_text(source, file, &tokenizer, samples, length)?,
    };
    if calibration.samples < samples {
        progress.note(&format!(
            "the calibration text gives {} sequences of {length} tokens, where {samples} were asked for",
            calibration.samples
        ));
    }
    Ok(calibration)
}

impl Run<'_> {
    fn all(&self, source: &str, progress: &mut dyn Progress) -> Result<Report> {
        let identity = self.identity(source);
        let partial = &self.places.partial;
        if self.places.is_finished() && !partial.join(JOURNAL).exists() {
            self.places.deliver()?;
            return Ok(self.report(Vec::new()));
        }
        let mut journal =
            if self.request.resume { Journal::open(partial, &identity)? } else { Journal::create(partial, &identity)? };
        if self.places.is_finished() {
            self.places.deliver()?;
            return Ok(self.report(journal.done.into_iter().map(|d| d.report).collect()));
        }
        let parts: Vec<Part> = compressible(&self.file).map(|(part, _)| part).collect();
        let mut walker = self.walker(journal.done.len())?;
        progress.begin("blocks", parts.len() as u64);
        for (i, part) in parts.iter().enumerate().skip(journal.done.len()) {
            progress.at(i as u64);
            let report = self.part(i, *part, &mut walker)?;
            report.warnings.iter().for_each(|w| progress.note(w));
            if let Some(walker) = &mut walker {
                walker.next_block()?;
            }
            journal.add(Done { block: i, report })?;
        }
        progress.at(parts.len() as u64);
        drop(walker);
        let reports: Vec<BlockReport> = journal.done.into_iter().map(|d| d.report).collect();
        Finished {
            file: &self.file,
            bound: &self.bound,
            request: self.request,
            calibration: self.calibration.as_ref(),
            identity: &identity,
            places: &self.places,
            reports: &reports,
        }
        .write()?;
        Ok(self.report(reports))
    }

    fn report(&self, mut blocks: Vec<BlockReport>) -> Report {
        if !self.bound.has_head() {
            blocks.pop();
        }
        Report { blocks, format: self.bound.format }
    }

    fn identity(&self, source: &str) -> Identity {
        let r = self.request;
        let joined = |items: Vec<String>| items.join(" ");
        let recipe = format!("{:?} {:?}", r.recipe.passes, r.recipe.calibration);
        let calibration = self.calibration.as_ref();
        Identity {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            profile: fewbit_kernel::cpu::detect().name().to_owned(),
            source: source.to_owned(),
            recipe: hex(&Sha256::digest(recipe.as_bytes())),
            settings: joined(r.settings.0.iter().map(|(k, v)| format!("{k}={v}")).collect()),
            keep: joined(r.keep.iter().map(|k| k.as_str().to_owned()).collect()),
            overrides: joined(r.overrides.iter().map(ToString::to_string).collect()),
            // One row of ids can be cut into sequences in several ways.
            calibration: calibration.map(|c| format!("{} x {} {}", c.samples, c.length, c.hash)).unwrap_or_default(),
            seed: r.seed.to_string(),
            format: self.bound.format.name().to_owned(),
        }
    }

    fn check_stop(&self) -> Result<()> {
        check_stop(self.stop).map_err(|e| e.file(&self.places.partial))
    }

    /// The calibration tokens before the block after `done` others.
    fn walker(&self, done: usize) -> Result<Option<Walker<'_>>> {
        let Some(calibration) = &self.calibration else { return Ok(None) };
        let kept = self.bound.kept_width(self.file.model());
        Walker::new(self.team, &self.file, calibration, &self.places.partial, done, kept).map(Some)
    }

    /// Compresses a block, or the head, and writes its shard, and takes the calibration tokens through it.
    ///
    /// `i` counts the blocks, and the head after them.
    fn part(&self, i: usize, part: Part, walker: &mut Option<Walker<'_>>) -> Result<BlockReport> {
        self.check_stop()?;
        let graph = Arc::new(self.file.model().part(part).clone());
        let mut report = BlockReport::default();
        let weights = self.file.part(part)?;
        let mut current: Vec<Arc<QuantizedLinear>> = weights.linears.clone();
        let mut tensors = None;
        let mut walk = match walker {
            Some(_) => Some(Walk::new(Layer::new(graph.clone(), weights.clone(), Arithmetic::Exact)?)),
            None => None,
        };
        for (values, of_stage) in self.stages(i, &graph) {
            let mut stats = Vec::new();
            if let (Some(walker), Some(walk)) = (&mut *walker, &mut walk) {
                stats = self.look(part, walker, walk, &values, &mut report)?;
            }
            let clock = Instant::now();
            if !self.bound.transforms.is_empty() {
                tensors = Some(self.transformed(i, part, &graph, &weights, &mut stats)?);
            }
            report.transform_seconds += clock.elapsed().as_secs_f64();
            for w in of_stage.iter().copied() {
                self.check_stop()?;
                let changed = tensors
                    .as_mut()
                    .map(|t| (std::mem::replace(&mut t.weights[w], Mat::zeros(0, 0)), t.biases[w].take()));
                current[w] = Arc::new(self.linear(i, part, &graph, w, &weights, changed, &stats, &mut report)?);
            }
            if let (Some(walk), [value], false) = (&mut walk, &values[..], self.bound.is_whole) {
                walk.layer.replace(*value, of_stage.iter().map(|w| current[*w].clone()).collect());
            }
        }
        let vectors = tensors.map_or_else(|| weights.vectors.clone(), |t| t.vectors);
        let linears = current;
        drop(weights);
        let clock = Instant::now();
        let layout = self.bound.format.layout();
        let mut shard = Shard::new(&self.file, layout);
        if part == Part::Head {
            let embed = self.file.part(Part::Embed)?;
            shard.add(Part::Embed, &embed.linears, &embed.vectors)?;
        }
        let is_shared = part == Part::Head && self.file.is_tied() && !self.bound.has_head();
        shard.add(part, if is_shared { &[] } else { &linears }, &vectors)?;
        write_shard(&self.places.parts().join(shard_name(i)), &shard.tensors)?;
        drop(shard);
        report.write_seconds = clock.elapsed().as_secs_f64();
        let goes_on = !self.bound.is_original_stream && part != Part::Head;
        if let (Some(walker), Some(mut walk), true) = (walker, walk, goes_on) {
            let clock = Instant::now();
            if self.bound.is_whole {
                walk = Walk::new(Layer::new(graph, PartWeights { linears, vectors }, Arithmetic::Exact)?);
            }
            walker.go(&mut walk, To::End, &mut NoHooks, &|| self.check_stop())?;
            report.forward_seconds += clock.elapsed().as_secs_f64();
        }
        self.file.drop_pages(part);
        Ok(report)
    }

    /// The values that are looked at together, and the linears that are rounded after.
    fn stages(&self, i: usize, graph: &Graph) -> Vec<(Vec<ValueId>, Vec<WeightId>)> {
        if self.bound.grids[i].iter().all(Option::is_none) && !self.bound.is_original_stream {
            return Vec::new();
        }
        let groups = graph.linears_by_input();
        if self.bound.is_whole || self.calibration.is_none() {
            return vec![(groups.iter().map(|(v, _)| *v).collect(), (0..graph.weights.len()).collect())];
        }
        groups.into_iter().map(|(v, ws)| (vec![v], ws)).collect()
    }

    /// Statistics of some values over all tokens.
    fn look(
        &self,
        part: Part,
        walker: &mut Walker<'_>,
        walk: &mut Walk,
        values: &[ValueId],
        report: &mut BlockReport,
    ) -> Result<Vec<(ValueId, InputStats)>> {
        let clock = Instant::now();
        let widths: Vec<_> = values.iter().map(|v| (*v, walk.layer.graph().values[*v].dim)).collect();
        let mut collector = Collector::new(self.team, self.bound.needs, widths.into_iter());
        let to = if self.bound.is_original_stream && part != Part::Head {
            To::End
        } else if self.bound.is_whole {
            To::Dead(values)
        } else {
            To::Stop(values)
        };
        walker.go(walk, to, &mut collector, &|| self.check_stop())?;
        report.gram_seconds += collector.gram_seconds;
        report.forward_seconds += clock.elapsed().as_secs_f64() - collector.gram_seconds;
        Ok(collector.finish())
    }

    /// The block's tensors after all transforms.
    fn transformed(
        &self,
        i: usize,
        part: Part,
        graph: &Graph,
        weights: &PartWeights,
        stats: &mut [(ValueId, InputStats)],
    ) -> Result<BlockTensors> {
        let mut tensors = BlockTensors {
            weights: weights.linears.iter().map(|l| l.decode()).collect(),
            biases: weights.linears.iter().map(|l| l.bias.clone()).collect(),
            vectors: weights.vectors.clone(),
        };
        for (t, site) in self.bound.sites(graph) {
            self.check_stop()?;
            let transform = &self.bound.transforms[t];
            let grids: Option<Vec<_>> = site.consumers.iter().map(|w| self.bound.grids[i][*w].as_deref()).collect();
            let (Some(grids), Some(known)) = (grids, stats.iter().position(|(v, _)| *v == site.value)) else {
                continue;
            };
            let Some(((_, tied), to)) = site.folds.iter().find(|((y, _), _)| *y == transform.symmetry()) else {
                continue;
            };
            let job = SiteJob {
                name: graph.values[site.value].name,
                weights: site.consumers.iter().map(|w| &tensors.weights[*w]).collect(),
                grids,
                stats: &stats[known].1,
                tied: *tied,
                team: self.team,
            };
            let Some(mut element) = transform.choose(&job)? else { continue };
            if let Element::Diagonal(factors) = &mut element {
                self.snap(part, graph, &tensors, &site, &to.producers, factors)?;
            }
            if let Element::Diagonal(factors) = spread(&element, *tied, site.dim)? {
                stats[known].1.scale(&factors);
            }
            fold(graph, &mut tensors, &site, *tied, to, &element)?;
        }
        Ok(tensors)
    }

    /// Moves factors to where the gain that takes them can be stored exactly, so that the saved model is the one that was rounded.
    fn snap(
        &self,
        part: Part,
        graph: &Graph,
        tensors: &BlockTensors,
        site: &Site,
        producers: &std::collections::BTreeSet<Producer>,
        factors: &mut [f32],
    ) -> Result<()> {
        let mut gains = producers.iter().filter_map(|p| if let Producer::Gain(v) = p { Some(*v) } else { None });
        let Some(v) = gains.next() else { return Ok(()) };
        let name = graph.vectors[v].name;
        let dtype = self.file.vector_dtype(part, name)?;
        let offset = if self.file.exported(part, name)?.stored == Stored::MinusOne { 1.0 } else { 0.0 };
        let wanted: Vec<f32> = tensors.vectors[v].iter().zip(factors.iter()).map(|(g, f)| g * f - offset).collect();
        let mut stored = vec![0.0; site.dim];
        let bytes = dtype.narrow(&wanted).ok_or_else(|| Error::internal("a gain that is no float"))?;
        dtype.widen(&bytes, &mut stored);
        for ((f, s), g) in factors.iter_mut().zip(&stored).zip(&tensors.vectors[v]) {
            let exact = (s + offset) / g;
            if exact.is_finite() && exact > 0.0 {
                *f = exact;
            }
        }
        Ok(())
    }

    fn linear(
        &self,
        i: usize,
        part: Part,
        graph: &Graph,
        w: usize,
        weights: &PartWeights,
        changed: Option<(Mat, Option<Vec<f32>>)>,
        stats: &[(ValueId, InputStats)],
        report: &mut BlockReport,
    ) -> Result<QuantizedLinear> {
        let original = &weights.linears[w];
        let (Some(grid), Some(solver)) = (&self.bound.grids[i][w], &self.bound.solver) else {
            return match changed {
                // Written in the source's type; the run goes on with what will be read.
                Some((m, bias)) => {
                    let t = Tensor::from_f32(self.file.dtype(), &[m.rows(), m.cols()], m.data())?;
                    Ok(QuantizedLinear::uniform(Storage::Dense(t), bias))
                }
                None => Ok(QuantizedLinear::clone(original)),
            };
        };
        let name = self.file.exported(part, graph.weights[w].name)?.name;
        let (weight, bias) = changed.unwrap_or_else(|| (original.decode(), original.bias.clone()));
        let empty = InputStats::default();
        let input = graph.input_of(w);
        let stats = stats.iter().find(|(v, _)| Some(*v) == input).map_or(&empty, |(_, s)| s);
        let clock = Instant::now();
        let job = LinearJob { name: &name, weight: &weight, stats, grid: &**grid, team: self.team };
        let solved = solver.solve(&job)?;
        report.solve_seconds += clock.elapsed().as_secs_f64();
        report.warnings.extend(solved.warning);
        let bits = solved.storage.stored_bits() as f64 / (weight.rows() * weight.cols()) as f64;
        let (grid, output_mse) = (grid.label(), solved.output_mse);
        report.linears.push(LinearReport { name, grid, bits_per_weight: bits, output_mse });
        Ok(QuantizedLinear::uniform(solved.storage, bias))
    }
}

/// Refuses to go on when asked to stop.
pub(crate) fn check_stop(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) {
        Err(Error::interrupted("stopped").hint("`--resume` goes on where it was"))
    } else {
        Ok(())
    }
}

/// The working name of a block's shard; the final one counts all shards.
pub(crate) fn shard_name(block: usize) -> String {
    format!("block-{block:05}.safetensors")
}
