//! The run: calibration, block after block, shards, the finished folder.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use fewbit_format::{Dtype, Error, Kind, Result, hex};
use fewbit_graph::Part;
use fewbit_kernel::Team;
use fewbit_runtime::language;
use fewbit_store::ModelFile;
use sha2::{Digest, Sha256};

use crate::Plan;
use crate::allocate::AllocationReport;
use crate::bound::{Bound, Choices, compressible};
use crate::calibration::{Calibration, CalibrationSource};
use crate::finish::Finished;
use crate::imatrix::Given;
use crate::journal::{Done, Identity, JOURNAL, Journal};
use crate::measure::Fisher;
use crate::origin::Origin;
use crate::outputs::Format;
use crate::places::{Claim, Places, check_space};
use crate::report::{BlockReport, Progress, Report};
use crate::request::Request;
use crate::stop::check_stop;
use crate::tune::{Learn, Scope, Windows};
use crate::walk::{Streams, Walker};

/// Everything that a run knows.
pub(crate) struct Run<'a> {
    pub(crate) request: &'a Request<'a>,
    pub(crate) file: ModelFile,
    pub(crate) bound: Bound,
    pub(crate) team: &'a Arc<Team>,
    pub(crate) calibration: Option<Calibration>,
    /// In the place of what text would show.
    pub(crate) importances: Option<Given>,
    pub(crate) places: Places,
    pub(crate) stop: &'a AtomicBool,
    /// Once it is measured, where a pass asks for it.
    pub(crate) fisher: Option<Fisher>,
}

/// Says what a request means, without doing it.
///
/// # Errors
/// If it is refused.
pub fn plan(request: &Request<'_>, flops_per_second: f64) -> Result<Plan> {
    let request = &request.settled()?;
    let (file, mut bound, _) = bind(request)?;
    let (mut samples, mut length) = (0, 0);
    if bound.reads_text() {
        (samples, length) = sizes(request, &file)?;
        samples *= request.recipe.calibration.shifts;
        if request.calibration != CalibrationSource::Own {
            let text = given_text(request, &file)?;
            bound.notes.extend(shortfall(request, &file, &text));
            (samples, length) = (text.samples, text.length);
        }
    }
    let plan = bound.plan(&file, &request.recipe, samples, length, request.calibration.bytes(), flops_per_second);
    check_space(&request.out, &request.out, plan.out_bytes + plan.work_bytes)?;
    Ok(plan)
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
    let (file, bound, importances) = bind(request)?;
    file.notes().iter().chain(&bound.notes).for_each(|n| progress.note(n));
    let places = Places::claim(Claim::of(request))?;
    let prepared = prepare(request, &file, &bound, &places, team, progress, stop).inspect_err(|e| {
        if e.kind() != Kind::Interrupted {
            places.abandon();
        }
    });
    let (source, calibration) = prepared?;
    let run = Run { request, file, bound, team, calibration, importances, places, stop, fisher: None };
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
        let plan = bound.plan(file, &request.recipe, samples, length, request.calibration.bytes(), 1.0);
        places.check_space(plan.out_bytes + plan.work_bytes).map(|()| plan)
    };
    let mut plan = room(0, 0)?;
    let is_own = request.calibration == CalibrationSource::Own;
    let mut calibration = None;
    if bound.reads_text() && !is_own {
        calibration = Some(calibrate(request, file, team, progress, stop)?);
    }
    let (source, greatest) = read_source(file, team, progress, stop)?;
    bound.check_ranges(file, &greatest)?;
    if bound.reads_text() && is_own {
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

/// The model, made for sequences of the length that was asked for.
pub(crate) fn open(request: &Request<'_>) -> Result<ModelFile> {
    let mut file = ModelFile::open(&request.model)?;
    if let Some(length) = request.length {
        file.reach(length);
    }
    Ok(file)
}

/// The model, what the request means for it, and the importance matrix that stands in the place of text.
fn bind(request: &Request<'_>) -> Result<(ModelFile, Bound, Option<Given>)> {
    let file = open(request)?;
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
        allocate: request.recipe.allocate.as_ref(),
        format: request.format,
    };
    let mut bound = Bound::new(&file, passes, &request.recipe.calibration, &choices)?;
    if file.is_quantized() {
        // A layout that cannot be read is refused now.
        file.quantization().check(true).map_err(|e| e.file(&request.model))?;
        file.part(Part::Block(0))?;
        bound.notes.push(format!("the source is quantized ({what}): its decoded weights are the original"));
    }
    let importances = request.importances.as_deref().map(|path| Given::open(path, &file, &bound)).transpose()?;
    bound.needs.mean_square &= importances.is_none();
    Ok((file, bound, importances))
}

/// Sequences and tokens of a sequence; a length that nobody chose ends at the model's context.
fn sizes(request: &Request<'_>, file: &ModelFile) -> Result<(usize, usize)> {
    let (c, context) = (&request.recipe.calibration, file.model().context);
    let (samples, length) = (request.samples.unwrap_or(c.samples), request.length.unwrap_or(c.length.min(context)));
    if samples == 0 || length < 2 {
        return Err(Error::input(format!("{samples} calibration samples of {length} tokens"))
            .hint("at least 1 sample of 2 tokens is needed"));
    }
    if length > context {
        return Err(Error::input(format!("`--length {length}` is beyond the model's context of {context}"))
            .hint(format!("`--length {context}` is the longest")));
    }
    Ok((samples, length))
}

/// SHA-256 over configuration and tensors, each tensor looked through for NaN and infinity on the way, and the greatest
/// magnitude of each that is used.
fn read_source(
    file: &ModelFile,
    team: &Team,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<(String, BTreeMap<String, f32>)> {
    /// The digest of a tensor, and its greatest magnitude.
    type Seen = (Vec<u8>, Option<f32>);
    let checkpoint = file.checkpoint();
    let names: Vec<&str> = checkpoint.names().collect();
    let used = file.used_tensors();
    progress.begin("reading the model", 1);
    let slots: Vec<Mutex<Result<Seen>>> = names.iter().map(|_| Mutex::new(Ok(Seen::default()))).collect();
    team.run(names.len(), &|i| {
        let digest = || -> Result<Seen> {
            check_stop(stop)?;
            let mut greatest = None;
            if used.contains(names[i]) {
                file.check_finite_tensor(names[i])?;
                greatest = checkpoint.greatest(names[i])?;
            }
            Ok((Sha256::digest(&checkpoint.raw_bytes(names[i])?).to_vec(), greatest))
        };
        let result = digest();
        checkpoint.drop_pages(names[i]);
        if let Ok(mut slot) = slots[i].lock() {
            *slot = result;
        }
    });
    let mut all = Sha256::new();
    all.update(serde_json::to_vec(checkpoint.config()).map_err(|e| Error::internal(e.to_string()))?);
    let mut greatest = BTreeMap::new();
    for (name, slot) in names.iter().zip(slots) {
        let (digest, most) = slot.into_inner().map_err(|_| Error::internal("a task that panicked"))??;
        all.update(name.as_bytes());
        all.update(digest);
        greatest.extend(most.map(|most| ((*name).to_owned(), most)));
    }
    progress.at(1);
    Ok((hex(&all.finalize()), greatest))
}

pub(crate) fn calibrate(
    request: &Request<'_>,
    file: &ModelFile,
    team: &Arc<Team>,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Calibration> {
    let calibration = if request.calibration == CalibrationSource::Own {
        let (samples, length) = sizes(request, file)?;
        let tokenizer = language::tokenizer_of(file.checkpoint())?;
        let own = Calibration::of_model(file, &tokenizer, team, samples, length, request.seed, progress, stop)?;
        own.shifted(request.recipe.calibration.shifts)
    } else {
        given_text(request, file)?
    };
    if let Some(note) = shortfall(request, file, &calibration) {
        progress.note(&note);
    }
    Ok(calibration)
}

/// Calibration text that need not be made.
fn given_text(request: &Request<'_>, file: &ModelFile) -> Result<Calibration> {
    let (samples, length) = sizes(request, file)?;
    let tokenizer = language::tokenizer_of(file.checkpoint())?;
    let text = Calibration::of_text(&request.calibration, file, &tokenizer, samples, length)?;
    Ok(text.shifted(request.recipe.calibration.shifts))
}

/// How much less the text gives than was asked for, if it does.
fn shortfall(request: &Request<'_>, file: &ModelFile, found: &Calibration) -> Option<String> {
    let (samples, length) = sizes(request, file).ok()?;
    let given = found.samples / request.recipe.calibration.shifts;
    (given < samples).then(|| {
        format!("the calibration text gives {given} sequences of {length} tokens, where {samples} were asked for")
    })
}

impl Run<'_> {
    fn all(mut self, source: &str, progress: &mut dyn Progress) -> Result<Report> {
        let identity = self.identity(source);
        let partial = &self.places.partial;
        if self.places.is_finished() && !partial.join(JOURNAL).exists() {
            self.places.deliver()?;
            return Ok(self.report(Vec::new(), None));
        }
        let mut journal =
            if self.request.resume { Journal::open(partial, &identity)? } else { Journal::create(partial, &identity)? };
        if self.places.is_finished() {
            self.places.deliver()?;
            return Ok(self.report(journal.done.into_iter().map(|d| d.report).collect(), None));
        }
        let parts: Vec<Part> = compressible(&self.file).map(|(part, _)| part).collect();
        if journal.done.len() < parts.len() {
            self.fisher = self.measure_fisher(progress)?;
        }
        let allocation = self.allocate(progress)?;
        let origin = Origin::new(&self.file, &self.bound, self.team, self.request.seed)?;
        let mut streams =
            if journal.done.len() < parts.len() { self.streams(journal.done.len(), &origin)? } else { None };
        progress.begin("blocks", parts.len() as u64);
        for (i, part) in parts.iter().enumerate().skip(journal.done.len()) {
            progress.at(i as u64);
            let done = self.part(i, *part, &origin, &mut streams)?;
            done.report.warnings.iter().for_each(|w| progress.note(w));
            if let Some(streams) = &mut streams {
                streams.next_block()?;
            }
            journal.add(done)?;
        }
        progress.at(parts.len() as u64);
        drop(streams);
        let finished = |done: &[Done]| {
            let (request, calibration) = (self.request, self.calibration.as_ref());
            let importances = self.importances.as_ref();
            let (file, bound, identity, places) = (&self.file, &self.bound, &identity, &self.places);
            let (shards, done, allocation) = (parts.len(), done.to_vec(), allocation.as_ref());
            Finished { file, bound, request, calibration, importances, identity, places, shards, done, allocation }
        };
        let learns = self.bound.learns.iter().filter(|l| l.settings.scope != Scope::Block);
        let mut first = parts.len();
        for (pass, learn) in learns.enumerate() {
            let (last, at) = (first + learn.entries(self.file.model().blocks.len()), journal.done.len());
            if at < last {
                finished(&journal.done).open_parts()?;
                self.learn_rounded(pass, learn, first..last, &origin, &mut journal, progress)?;
            }
            self.places.settle_parts(pass + 1)?;
            first = last;
        }
        finished(&journal.done).write()?;
        Ok(self.report(journal.done.into_iter().map(|d| d.report).collect(), allocation))
    }

    /// Goes on with a pass over the rounded model, whose lines of the journal are `lines`.
    fn learn_rounded(
        &self,
        pass: usize,
        learn: &Learn,
        lines: Range<usize>,
        origin: &Origin<'_>,
        journal: &mut Journal,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        progress.begin("learning", lines.len() as u64);
        if learn.settings.scope == Scope::Model {
            journal.add(self.learn_model(pass, lines.start, learn, origin)?)?;
        } else {
            let mut windows = Windows::open(self, learn, pass, lines.start, journal.done.len(), origin)?;
            for line in journal.done.len()..lines.end {
                progress.at((line - lines.start) as u64);
                journal.add(windows.next()?)?;
            }
        }
        progress.at(lines.len() as u64);
        Ok(())
    }

    fn report(&self, mut blocks: Vec<BlockReport>, allocation: Option<AllocationReport>) -> Report {
        let head = self.file.model().blocks.len();
        if !self.bound.has_head() && head < blocks.len() {
            blocks.remove(head);
        }
        Report { blocks, format: self.bound.format, allocation }
    }

    fn identity(&self, source: &str) -> Identity {
        let r = self.request;
        let joined = |items: Vec<String>| items.join(" ");
        let recipe = format!("{:?} {:?} {:?}", r.recipe.passes, r.recipe.calibration, r.recipe.allocate);
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
            importances: self.importances.as_ref().map(Given::hash).unwrap_or_default(),
            seed: r.seed.to_string(),
            format: self.bound.format.name().to_owned(),
        }
    }

    pub(crate) fn check_stop(&self) -> Result<()> {
        check_stop(self.stop).map_err(|e| e.file(&self.places.partial))
    }

    /// The calibration tokens before the block after `done` others.
    fn streams(&self, done: usize, origin: &Origin<'_>) -> Result<Option<Streams<'_>>> {
        // The text may have been needed for the allocation alone.
        let is_read = self.bound.needs.any() || !self.bound.learns.is_empty();
        let Some(calibration) = self.calibration.as_ref().filter(|_| is_read) else { return Ok(None) };
        let kept = self.bound.kept_width(self.file.model());
        let walker = |name, kept| Walker::new(self.team, origin, calibration, &self.places.partial, name, done, kept);
        let original = self.bound.learns_blocks().then(|| walker("original", 0)).transpose()?;
        Ok(Some(Streams { compressed: walker("stream", kept)?, original }))
    }
}
