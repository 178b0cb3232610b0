//! Learns what a learner left open of a block's linears: the block's output on what compressed blocks make is pulled to
//! what the original block makes of the original stream.

mod learned;
mod model;
mod settings;
mod state;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fewbit_format::{Error, Mat, QuantizedLinear, Result};
use fewbit_grad::{Function, Gradients, NoEdges, Parameters, Saved};
use fewbit_graph::Graph;
use fewbit_runtime::{Batch, Rotations};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::kinds::Learner;
use crate::quantize::Run;
use crate::report::BlockReport;
use crate::walk::{Streams, Walker};
use learned::Learned;
pub use settings::{DecaySetting, LossSetting, OptimizerSetting, Scope, TuneSettings};
use state::{State, Values};

/// A `learn` pass.
#[derive(Debug)]
pub struct Learn {
    /// The tuner's settings.
    pub settings: TuneSettings,
    /// What is learned.
    pub learner: Box<dyn Learner>,
}

/// Times that the loss over all sequences is looked at, the start aside.
const LOOKS: usize = 4;

/// Time between two states on the disk.
const SAVE_EVERY: Duration = Duration::from_secs(20);

/// Where the sequences of a block come from and go to.
#[derive(Clone, Copy)]
pub(crate) struct Data<'a, 'w> {
    /// What compressed blocks make of the tokens: the block's input.
    pub(crate) compressed: &'a Walker<'w>,
    /// What original blocks make, before and after this one.
    pub(crate) original: &'a Walker<'w>,
}

/// A block that is being learned.
struct Tuning<'a, 'w> {
    run: &'a Run<'a>,
    settings: &'a TuneSettings,
    seed: u64,
    function: Function,
    /// Rotations of a batch.
    turn: (Batch, Rotations),
    data: Data<'a, 'w>,
    /// The block as it is, its weights overwritten at each step.
    now: Parameters,
    /// The block before any rounding.
    original: &'a Parameters,
    learned: Vec<Learned>,
    saved: Saved,
}

impl Run<'_> {
    /// Learns the linears of block `i`: `bases` are their weights before rounding, `current` what the program made of them,
    /// and, at the end, what was learned.
    pub(crate) fn learn(
        &self,
        i: usize,
        graph: &Arc<Graph>,
        original: &Parameters,
        vectors: &[Vec<f32>],
        bases: &[Option<Mat>],
        current: &mut [Arc<QuantizedLinear>],
        streams: &Streams<'_>,
        report: &mut BlockReport,
    ) -> Result<()> {
        let original_stream = streams.original.as_ref().ok_or_else(|| Error::internal("learning without targets"))?;
        let data = Data { compressed: &streams.compressed, original: original_stream };
        for (pass, learn) in self.bound.learns.iter().enumerate().filter(|(_, l)| l.settings.scope == Scope::Block) {
            let seed = self.request.seed ^ ((i as u64) << 32 | (pass as u64) << 24);
            let mut learned = Vec::new();
            for (w, base) in bases.iter().enumerate() {
                let Some(base) = base else { continue };
                let start = &*current[w];
                let rest = without_low_rank(base, start);
                let (base, seed) = (rest.as_ref().unwrap_or(base), seed.wrapping_add(w as u64));
                learned.push(Learned::begin(learn, w, &graph.weights[w].name, base, start, seed)?);
            }
            let count = learn.settings.batch.min(data.compressed.samples());
            let batch = Batch::sequences(count, data.compressed.length());
            let rotations = Rotations::new(&self.file.model().ropes, &batch);
            let mut tuning = Tuning {
                run: self,
                settings: &learn.settings,
                seed,
                function: Function::new(graph.clone())?,
                turn: (batch, rotations),
                data,
                now: Parameters { vectors: vectors.to_vec(), ..now(current) },
                original,
                learned,
                saved: Saved::default(),
            };
            report.learned.push(descend(self, &learn.settings, [i, pass], &mut tuning)?);
            for learned in tuning.learned {
                let linear = &mut current[learned.weight];
                let storage = learned.fake.bake()?;
                *linear = Arc::new(QuantizedLinear {
                    sides: linear.sides.clone(),
                    input: linear.input.clone(),
                    ..QuantizedLinear::uniform(storage, linear.bias.clone())
                });
            }
        }
        Ok(())
    }
}

/// A model or a part of it that is being learned.
trait Descent {
    /// What is learned.
    fn learned(&mut self) -> &mut [Learned];

    /// The mean loss over all sequences, with codes as they would be stored.
    fn loss(&mut self) -> Result<f64>;

    /// The step after `done` others, at a share of the leaves' rates, on sequences drawn at random.
    fn step(&mut self, done: usize, share: f32) -> Result<()>;
}

/// All steps; returns the loss over all sequences at the start and at the end. The best state that was seen stays.
fn descend(run: &Run<'_>, settings: &TuneSettings, place: [usize; 2], tuning: &mut dyn Descent) -> Result<[f64; 2]> {
    let (steps, folder) = (settings.steps, &run.places.partial);
    let values = |tuning: &mut dyn Descent| -> Values { tuning.learned().iter().map(Learned::values).collect() };
    let earlier = if run.request.resume { State::restore(folder, place, tuning.learned())? } else { None };
    let mut state = if let Some(state) = earlier {
        state
    } else {
        let first = tuning.loss()?;
        State { place, done: 0, best: values(tuning), first, least: first }
    };
    let schedule = settings.schedule();
    let mut saved = Instant::now();
    while state.done < steps {
        run.check_stop()?;
        tuning.step(state.done, schedule.rate(state.done as u64 + 1))?;
        state.done += 1;
        let is_looked_at = (state.done * LOOKS) % steps < LOOKS;
        if is_looked_at {
            let loss = tuning.loss()?;
            if loss < state.least {
                (state.best, state.least) = (values(tuning), loss);
            }
        }
        if is_looked_at || saved.elapsed() > SAVE_EVERY {
            state.save(folder, tuning.learned())?;
            saved = Instant::now();
        }
    }
    tuning.learned().iter_mut().zip(&state.best).for_each(|(learned, values)| learned.set(values));
    State::remove(folder)?;
    Ok([state.first, state.least])
}

/// The weight without its correction of low rank: what the codes stand for.
fn without_low_rank(weight: &Mat, linear: &QuantizedLinear) -> Option<Mat> {
    let low_rank = linear.sides.low_rank.as_ref()?;
    let mut sides = Mat::zeros(weight.rows(), weight.cols());
    low_rank.add_rows(0..weight.rows(), sides.data_mut());
    sides.data_mut().iter_mut().zip(weight.data()).for_each(|(s, w)| *s = w - *s);
    Some(sides)
}

/// Weights and biases as they are now.
fn now(linears: &[Arc<QuantizedLinear>]) -> Parameters {
    Parameters {
        weights: linears.iter().map(|l| l.decode()).collect(),
        biases: linears.iter().map(|l| l.bias.clone()).collect(),
        vectors: Vec::new(),
    }
}

impl Tuning<'_, '_> {
    /// Rows of some sequences of the block's input and of its target.
    fn rows(&self, sequences: &[usize], rng: Option<&mut ChaCha8Rng>) -> (Vec<f32>, Vec<f32>) {
        let Data { compressed, original } = self.data;
        let mut x = compressed.inputs(sequences);
        if let Some(rng) = rng.filter(|_| self.settings.mix > 0.0) {
            for (x, o) in x.iter_mut().zip(original.inputs(sequences)) {
                if rng.random::<f32>() < self.settings.mix {
                    *x = o;
                }
            }
        }
        (x, original.outputs(sequences))
    }
}

impl Descent for Tuning<'_, '_> {
    fn learned(&mut self) -> &mut [Learned] {
        &mut self.learned
    }

    /// The block's mean squared error per token.
    fn loss(&mut self) -> Result<f64> {
        let Self { run, learned, now, .. } = self;
        learned.iter().for_each(|l| l.forward(run.team, 1.0, &mut now.weights[l.weight]));
        let (samples, count) = (self.data.compressed.samples(), self.turn.0.spans().len());
        let (mut sum, mut tokens) = (0.0, 0);
        for first in (0..samples).step_by(count) {
            self.run.check_stop()?;
            // The last batch is filled up with sequences that were there before.
            let sequences: Vec<usize> = (0..count).map(|i| (first + i) % samples).collect();
            let (x, target) = self.rows(&sequences, None);
            let y = self.function.forward(
                self.run.team,
                &self.turn.0,
                &self.turn.1,
                &self.now.view(),
                &mut NoEdges,
                x,
                &mut self.saved,
            );
            sum += squares(&y, &target);
            tokens += self.turn.0.tokens();
        }
        Ok(sum / tokens as f64)
    }

    fn step(&mut self, done: usize, share: f32) -> Result<()> {
        // A step's own numbers: a run that goes on draws what it would have drawn.
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(done as u64 + 1);
        let sequences = draw(self.turn.0.spans().len(), self.data.compressed.samples(), &mut rng);
        let (x, target) = self.rows(&sequences, Some(&mut rng));
        let Self { run, settings, function, turn: (batch, turn), now, original, learned, saved, .. } = self;
        let (progress, team) = (done as f32 / settings.steps as f32, &**run.team);
        learned.iter().for_each(|l| l.forward(team, progress, &mut now.weights[l.weight]));
        let second =
            settings.aug.then(|| function.forward(team, batch, turn, &original.view(), &mut NoEdges, x.clone(), saved));
        let mut y = function.forward(team, batch, turn, &now.view(), &mut NoEdges, x, saved);
        let by = 2.0 / batch.tokens() as f32;
        match second {
            None => y.iter_mut().zip(&target).for_each(|(y, t)| *y = by * (*y - t)),
            Some(second) => {
                for ((y, t), s) in y.iter_mut().zip(&target).zip(second) {
                    *y = by * ((*y - t) + (*y - s));
                }
            }
        }
        let mut gradients = Gradients::of_weights(function.graph(), learned.iter().map(|l| l.weight));
        gradients.wants_input = false;
        function.backward(team, batch, turn, &now.view(), &mut NoEdges, y, saved, &mut gradients);
        for learned in learned.iter_mut() {
            let gradient = gradients.weights[learned.weight].as_mut();
            let gradient = gradient.ok_or_else(|| Error::internal("a gradient that was asked for"))?;
            learned.step(team, done as u64 + 1, share, progress, gradient);
        }
        Ok(())
    }
}

/// `count` different numbers below `of`, in random order.
fn draw(count: usize, of: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut all: Vec<usize> = (0..of).collect();
    for i in 0..count {
        let j = rng.random_range(i..of);
        all.swap(i, j);
    }
    all.truncate(count);
    all
}

/// `Σ (y − t)²`.
fn squares(y: &[f32], target: &[f32]) -> f64 {
    y.iter().zip(target).map(|(y, t)| f64::from((y - t).powi(2))).sum()
}
