//! Learns the whole model at once, once all of it is rounded: its logits are pulled to those of the original.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use fewbit_format::{Error, Result};
use fewbit_grad::loss::{cross_entropy, divergence, log_softmax};
use fewbit_grad::model::{ModelFunction, Visit};
use fewbit_grad::{Gradients, Parameters};
use fewbit_graph::{Graph, Part};
use fewbit_kernel::Team;
use fewbit_runtime::Batch;
use fewbit_store::ModelFile;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::learned::Learned;
use super::{Descent, Learn, LossSetting, descend, draw, over_all};
use crate::bound::compressible;
use crate::calibration::Calibration;
use crate::journal::Done;
use crate::origin::Origin;
use crate::quantize::Run;
use crate::report::BlockReport;

/// The model that is learned, part by part.
struct Student {
    parts: BTreeMap<Part, Arc<Parameters>>,
    /// All that is learned, in the order of the parts, and where each part's begins and ends.
    learned: Vec<Learned>,
    of_part: BTreeMap<Part, Range<usize>>,
    /// The step that a pass backward makes; `None` while only the loss is asked for.
    step: Option<Step>,
    team: Arc<Team>,
}

#[derive(Clone, Copy)]
struct Step {
    number: u64,
    share: f32,
    progress: f32,
}

impl Student {
    /// Weights under the leaves as they are now.
    fn refresh(&mut self, progress: f32) -> Result<()> {
        for (part, range) in &self.of_part {
            let parameters = self.parts.get_mut(part).and_then(Arc::get_mut);
            let parameters = parameters.ok_or_else(|| Error::internal("parameters that a pass still holds"))?;
            for learned in &self.learned[range.clone()] {
                learned.forward(&self.team, progress, &mut parameters.weights[learned.weight]);
            }
        }
        Ok(())
    }
}

impl Visit for Student {
    fn parameters(&mut self, part: Part) -> Result<Arc<Parameters>> {
        self.parts.get(&part).cloned().ok_or_else(|| Error::internal("a part that is not there"))
    }

    fn asked(&mut self, part: Part, graph: &Graph) -> Gradients {
        let learned = self.of_part.get(&part).map_or(&[][..], |r| &self.learned[r.clone()]);
        let mut gradients = Gradients::of_weights(graph, learned.iter().map(|l| l.weight));
        // Parts are in order: what comes before this one begins with the first.
        gradients.wants_input = self.of_part.keys().any(|p| *p < part);
        gradients
    }

    fn done(&mut self, part: Part, gradients: Gradients) -> Result<()> {
        let (Some(range), Some(Step { number, share, progress })) = (self.of_part.get(&part), self.step) else {
            return Ok(());
        };
        for learned in &mut self.learned[range.clone()] {
            let gradient = gradients.weights[learned.weight].as_ref();
            let gradient = gradient.ok_or_else(|| Error::internal("a gradient that was asked for"))?;
            learned.step(&self.team, number, share, progress, gradient);
        }
        Ok(())
    }
}

/// The original: nothing of it is learned.
struct Teacher(BTreeMap<Part, Arc<Parameters>>);

impl Visit for Teacher {
    fn parameters(&mut self, part: Part) -> Result<Arc<Parameters>> {
        self.0.get(&part).cloned().ok_or_else(|| Error::internal("a part that is not there"))
    }

    fn asked(&mut self, _: Part, graph: &Graph) -> Gradients {
        Gradients { wants_input: false, ..Gradients::none(graph) }
    }

    fn done(&mut self, _: Part, _: Gradients) -> Result<()> {
        Ok(())
    }
}

/// A model that is being learned.
struct Tuning<'a> {
    run: &'a Run<'a>,
    learn: &'a Learn,
    calibration: &'a Calibration,
    function: ModelFunction,
    student: Student,
    teacher: Teacher,
    batch: Batch,
    boundaries: Vec<f32>,
}

impl Run<'_> {
    /// Learns the model that lies in the parts' folder, the `pass`th that does so, and writes it anew; `line` is its line
    /// of the journal.
    pub(crate) fn learn_model(&self, pass: usize, line: usize, learn: &Learn, origin: &Origin<'_>) -> Result<Done> {
        let calibration = self.calibration.as_ref().ok_or_else(|| Error::internal("learning without text"))?;
        let clock = Instant::now();
        let rounded = ModelFile::open(&self.places.parts())?;
        let (mut parts, mut learned, mut of_part) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        let mut teacher = BTreeMap::new();
        let seed = self.request.seed ^ ((pass as u64) << 56);
        for (part, graph) in self.file.model().parts() {
            teacher.insert(part, Arc::new(Parameters::of(graph, &self.file.part(part)?)?));
            let (parameters, of_this) = self.open_part(learn, seed, part, &rounded, origin)?;
            if !of_this.is_empty() {
                of_part.insert(part, learned.len()..learned.len() + of_this.len());
            }
            learned.extend(of_this);
            parts.insert(part, Arc::new(parameters));
        }
        let function = ModelFunction::new(self.file.model().clone())?;
        let batch = Batch::sequences(learn.settings.batch.min(calibration.samples), calibration.length);
        let mut tuning = Tuning {
            run: self,
            learn,
            calibration,
            boundaries: vec![0.0; function.boundaries(batch.tokens())],
            function,
            student: Student { parts, learned, of_part, step: None, team: self.team.clone() },
            teacher: Teacher(teacher),
            batch,
        };
        let losses = descend(self, &learn.settings, [usize::MAX, pass], &mut tuning)?;
        let Student { learned, of_part, .. } = tuning.student;
        let (folder, mut schemes) = (self.places.next_parts(pass + 1)?, Vec::new());
        for (i, (part, _)) in compressible(&self.file).enumerate() {
            let of_part = of_part.get(&part).map_or(&[][..], |r| &learned[r.clone()]);
            schemes.extend(self.write_part(&folder, i, &rounded, origin, of_part)?.1);
        }
        let learn_seconds = clock.elapsed().as_secs_f64();
        let report = BlockReport { learned: vec![losses], learn_seconds, ..BlockReport::default() };
        Ok(Done { block: line, report, schemes })
    }
}

impl Descent for Tuning<'_> {
    fn learned(&mut self) -> &mut [Learned] {
        &mut self.student.learned
    }

    fn step(&mut self, done: usize, share: f32) -> Result<()> {
        let progress = done as f32 / self.learn.settings.steps as f32;
        self.student.refresh(progress)?;
        let mut rng = ChaCha8Rng::seed_from_u64(self.run.request.seed);
        rng.set_stream(1 << 32 | done as u64);
        let sequences = draw(self.batch.spans().len(), self.calibration.samples, &mut rng);
        self.student.step = Some(Step { number: done as u64 + 1, share, progress });
        self.pass(&sequences)?;
        self.student.step = None;
        Ok(())
    }

    fn loss(&mut self) -> Result<f64> {
        self.student.refresh(1.0)?;
        let (run, samples, count) = (self.run, self.calibration.samples, self.batch.spans().len());
        over_all(run, samples, count, |sequences| self.pass(sequences))
    }
}

impl Tuning<'_> {
    /// The loss of some sequences; where a step is to be made, its gradients move the leaves.
    fn pass(&mut self, sequences: &[usize]) -> Result<f64> {
        let Self { run, learn, calibration, function, student, teacher, batch, boundaries } = self;
        let (team, length) = (&**run.team, calibration.length);
        let ids: Vec<u32> =
            sequences.iter().flat_map(|s| &calibration.ids[s * length..(s + 1) * length]).copied().collect();
        let vocabulary = run.file.model().vocabulary;
        // The last token of a sequence has no successor.
        let has_next = |row: usize| !(row + 1).is_multiple_of(length);
        let is_kl = learn.settings.loss == LossSetting::Kl;
        let count = if is_kl { ids.len() } else { ids.len() - sequences.len() };
        let mut wanted = Vec::new();
        if is_kl {
            wanted = vec![0.0f32; ids.len() * vocabulary];
            let mut keep = |_: &Team, rows: Range<usize>, logits: &mut [f32]| {
                log_softmax(team, logits, vocabulary);
                wanted[rows.start * vocabulary..rows.end * vocabulary].copy_from_slice(logits);
                0.0
            };
            function.loss(team, batch, &ids, teacher, &mut keep)?;
        }
        let mut loss = |team: &Team, rows: Range<usize>, logits: &mut [f32]| {
            let by = 1.0 / count as f32;
            if is_kl {
                let wanted = &wanted[rows.start * vocabulary..rows.end * vocabulary];
                return divergence(team, logits, vocabulary, wanted, &vec![by; rows.len()]);
            }
            let next: Vec<u32> = rows.clone().map(|r| if has_next(r) { ids[r + 1] } else { 0 }).collect();
            let weights: Vec<f32> = rows.map(|r| if has_next(r) { by } else { 0.0 }).collect();
            cross_entropy(team, logits, vocabulary, &next, &weights)
        };
        if student.step.is_some() {
            function.gradients(team, batch, &ids, student, &mut loss, boundaries)
        } else {
            function.loss(team, batch, &ids, student, &mut loss)
        }
    }
}
