//! Learns what a learner left open of a block's linears: the block's output on what compressed blocks make is pulled to
//! what the original block makes of the original stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fewbit_format::{Dtype, Error, Mat, QuantizedLinear, Result, Storage, Tensor};
use fewbit_grad::optim::{AdamW, Decay, Optimizer, Schedule, SignSgd};
use fewbit_grad::{Function, Gradients, NoEdges, Parameters, Saved};
use fewbit_graph::{Graph, WeightId};
use fewbit_kernel::Team;
use fewbit_kernel::online::Map;
use fewbit_runtime::{Batch, Rotations};
use fewbit_store::Safetensors;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::kinds::{Fake, Learner};
use crate::outputs::write_shard;
use crate::quantize::Run;
use crate::walk::Walker;

/// How leaves are learned: what all learners have in common.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TuneSettings {
    /// Steps of the optimizer, for each block.
    pub steps: usize,
    /// Sequences of a step, drawn at random.
    pub batch: usize,
    /// Rule of a step.
    pub optimizer: OptimizerSetting,
    /// How rates fall.
    pub decay: DecaySetting,
    /// Share of the numbers of a block's input that come from the original stream (QDrop).
    pub mix: f32,
    /// Whether the original block's output on the same input is a second target (OmniQuant's `aug_loss`).
    pub aug: bool,
}

/// Rule of a step.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the rules")]
pub enum OptimizerSetting {
    Sign,
    Adam,
}

/// How rates fall.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the rules")]
pub enum DecaySetting {
    Constant,
    Linear,
    Cosine,
}

impl Default for TuneSettings {
    fn default() -> Self {
        Self {
            steps: 200,
            batch: 8,
            optimizer: OptimizerSetting::Sign,
            decay: DecaySetting::Linear,
            mix: 0.0,
            aug: false,
        }
    }
}

impl TuneSettings {
    /// The names of all settings, which a recipe writes beside the learner's own.
    pub(crate) const KEYS: [&str; 6] = ["steps", "batch", "optimizer", "decay", "mix", "aug"];

    pub(crate) fn check(&self) -> Result<()> {
        if self.steps == 0 || self.batch == 0 {
            return Err(Error::input("`learn.steps` and `learn.batch` are positive numbers"));
        }
        if !(0.0..=1.0).contains(&self.mix) {
            return Err(Error::input(format!("`learn.mix` is {}, where 0 to 1 is possible", self.mix)));
        }
        Ok(())
    }

    fn schedule(&self) -> Schedule {
        let decay = match self.decay {
            DecaySetting::Constant => Decay::Constant,
            DecaySetting::Linear => Decay::Linear { least: 0.0 },
            DecaySetting::Cosine => Decay::Cosine { least: 0.05 },
        };
        Schedule { peak: 1.0, steps: self.steps as u64, warmup: 0, decay }
    }

    fn optimizer(&self, len: usize) -> Box<dyn Optimizer> {
        match self.optimizer {
            OptimizerSetting::Sign => Box::new(SignSgd::new(len, 0.0)),
            OptimizerSetting::Adam => Box::new(AdamW::new(len)),
        }
    }
}

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

/// One linear that is learned.
struct Learned {
    weight: WeightId,
    fake: Box<dyn Fake>,
    optimizers: Vec<Box<dyn Optimizer>>,
    gradients: Vec<Vec<f32>>,
    /// What stands beside the codes.
    sides: Option<Mat>,
    /// Undo the maps of the input, last to first.
    back: Vec<Map>,
    /// The maps of the input.
    maps: Vec<Map>,
}

impl Learned {
    fn new(settings: &TuneSettings, weight: WeightId, fake: Box<dyn Fake>, start: &QuantizedLinear) -> Result<Self> {
        if !start.output.is_empty() {
            return Err(Error::input("a map after the product is not learned through"));
        }
        let lens: Vec<usize> = fake.leaves().iter().map(|l| l.values.len()).collect();
        let [rows, cols] = start.shape;
        let sides = (!start.sides.is_empty()).then(|| {
            let mut sides = Mat::zeros(rows, cols);
            start.sides.add_rows(0..rows, sides.data_mut());
            sides
        });
        Ok(Self {
            weight,
            fake,
            optimizers: lens.iter().map(|n| settings.optimizer(*n)).collect(),
            gradients: lens.iter().map(|n| vec![0.0; *n]).collect(),
            sides,
            back: start.input.iter().rev().map(|m| Map::new(&m.inverse(), cols)).collect(),
            maps: start.input.iter().map(|m| Map::new(m, cols)).collect(),
        })
    }

    /// The weight that stands for the linear in the graph: `y = W (x M)` is `y = (W Mᵀ) x`, and `M⁻¹ = Mᵀ`.
    fn forward(&self, team: &Team, progress: f32, out: &mut Mat) {
        self.fake.forward(team, progress, out);
        if let Some(sides) = &self.sides {
            out.data_mut().iter_mut().zip(sides.data()).for_each(|(o, s)| *o += s);
        }
        self.back.iter().for_each(|m| m.apply(team, out.data_mut()));
    }

    fn step(&mut self, team: &Team, number: u64, share: f32, progress: f32, gradient: &mut Mat) {
        self.maps.iter().for_each(|m| m.apply(team, gradient.data_mut()));
        self.fake.backward(team, progress, gradient, &mut self.gradients);
        let leaves = self.fake.leaves_mut().into_iter();
        for ((leaf, optimizer), gradient) in leaves.zip(&mut self.optimizers).zip(&self.gradients) {
            if leaf.rate > 0.0 {
                optimizer.step(team, number, share * leaf.rate, &mut leaf.values, gradient);
            }
        }
        self.fake.settle();
    }

    fn values(&self) -> Vec<Vec<f32>> {
        self.fake.leaves().iter().map(|l| l.values.clone()).collect()
    }

    fn set(&mut self, values: &[Vec<f32>]) {
        self.fake.leaves_mut().into_iter().zip(values).for_each(|(l, v)| l.values.clone_from(v));
    }
}

/// Where the sequences of a block come from and go to.
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
    /// and, at the end, what was learned. Returns a sentence for the report.
    pub(crate) fn learn(
        &self,
        i: usize,
        graph: &Arc<Graph>,
        original: &Parameters,
        vectors: &[Vec<f32>],
        bases: &[Option<Mat>],
        current: &mut [Arc<QuantizedLinear>],
        data: &Data<'_, '_>,
    ) -> Result<Vec<String>> {
        let mut said = Vec::new();
        for (pass, learn) in self.bound.learns.iter().enumerate() {
            let seed = self.request.seed ^ ((i as u64) << 32 | (pass as u64) << 24);
            let mut learned = Vec::new();
            for (w, base) in bases.iter().enumerate() {
                let Some(base) = base else { continue };
                let start = &*current[w];
                let [band] = &start.bands[..] else {
                    return Err(Error::input("rows in several bands are not learned").tensor(graph.weights[w].name));
                };
                let rest = without_low_rank(base, start);
                let seed = seed.wrapping_add(w as u64);
                let job = crate::kinds::LeafJob {
                    name: graph.weights[w].name,
                    weight: rest.as_ref().unwrap_or(base),
                    start: &band.storage,
                    steps: learn.settings.steps,
                    seed,
                };
                let fake = learn.learner.begin(&job)?;
                let place = |e: Error| e.tensor(graph.weights[w].name);
                learned.push(Learned::new(&learn.settings, w, fake, start).map_err(place)?);
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
                data: Data { ..*data },
                now: Parameters { vectors: vectors.to_vec(), ..now(current) },
                original,
                learned,
                saved: Saved::default(),
            };
            let [first, last] = tuning.run((i, pass))?;
            said.push(format!("learned: block error {first:.4e} to {last:.4e}"));
            for learned in tuning.learned {
                let linear = &mut current[learned.weight];
                let storage: Storage = learned.fake.bake()?;
                *linear = Arc::new(QuantizedLinear {
                    sides: linear.sides.clone(),
                    input: linear.input.clone(),
                    ..QuantizedLinear::uniform(storage, linear.bias.clone())
                });
            }
        }
        Ok(said)
    }
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
    /// All steps; returns the error over all sequences at the start and at the end. The best state that was seen stays.
    fn run(&mut self, place: (usize, usize)) -> Result<[f64; 2]> {
        let steps = self.settings.steps;
        let (mut done, mut best, [first, mut least]) = match self.restore(place)? {
            Some(state) => state,
            None => {
                let start = self.error()?;
                (0, self.values(), [start; 2])
            }
        };
        let schedule = self.settings.schedule();
        let mut saved = Instant::now();
        while done < steps {
            self.run.check_stop()?;
            self.step(done, schedule.rate(done as u64 + 1))?;
            done += 1;
            if (done * LOOKS) % steps < LOOKS {
                let error = self.error()?;
                if error < least {
                    (best, least) = (self.values(), error);
                }
            }
            if saved.elapsed() > SAVE_EVERY {
                self.save(place, done, &best, [first, least])?;
                saved = Instant::now();
            }
        }
        for (learned, values) in self.learned.iter_mut().zip(&best) {
            learned.set(values);
        }
        let path = self.run.places.partial.join(STATE);
        if path.exists() {
            std::fs::remove_file(&path).map_err(|e| Error::io("removing", &path, &e))?;
        }
        Ok([first, least])
    }

    fn values(&self) -> Vec<Vec<Vec<f32>>> {
        self.learned.iter().map(Learned::values).collect()
    }

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

    /// The block's mean squared error per token over all sequences, with codes as they would be stored.
    fn error(&mut self) -> Result<f64> {
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

    /// One step on sequences drawn at random.
    fn step(&mut self, done: usize, share: f32) -> Result<()> {
        let Self { run, settings, function, turn: (batch, turn), now, original, learned, saved, .. } = self;
        let progress = done as f32 / settings.steps as f32;
        let team = &**run.team;
        learned.iter().for_each(|l| l.forward(team, progress, &mut now.weights[l.weight]));
        // A step's own numbers: a run that goes on draws what it would have drawn.
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(done as u64 + 1);
        let sequences = draw(batch.spans().len(), self.data.compressed.samples(), &mut rng);
        let tokens = batch.tokens() as f32;
        let (x, target) = {
            let Data { compressed, original } = self.data;
            let mut x = compressed.inputs(&sequences);
            if settings.mix > 0.0 {
                for (x, o) in x.iter_mut().zip(original.inputs(&sequences)) {
                    if rng.random::<f32>() < settings.mix {
                        *x = o;
                    }
                }
            }
            (x, original.outputs(&sequences))
        };
        let second = settings.aug.then(|| {
            function.forward(team, batch, turn, &original.view(), &mut NoEdges, x.clone(), saved)
        });
        let mut y = function.forward(team, batch, turn, &now.view(), &mut NoEdges, x, saved);
        let by = 2.0 / tokens;
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

    /// Writes the state down, so that a run that is ended goes on from here.
    fn save(&self, place: (usize, usize), done: usize, best: &[Vec<Vec<f32>>], losses: [f64; 2]) -> Result<()> {
        let floats = |v: &[f32]| Tensor::from_f32(Dtype::F32, &[v.len()], v);
        let numbers = [place.0 as u64, place.1 as u64, done as u64, losses[0].to_bits(), losses[1].to_bits()];
        let numbers: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let place = Tensor { dtype: Dtype::U8, shape: vec![numbers.len()], bytes: numbers.into() };
        let mut tensors = vec![("place".to_owned(), place)];
        for (l, (learned, best)) in self.learned.iter().zip(best).enumerate() {
            for (k, ((leaf, optimizer), best)) in
                learned.fake.leaves().iter().zip(&learned.optimizers).zip(best).enumerate()
            {
                tensors.push((format!("{l}.{k}.leaf"), floats(&leaf.values)?));
                tensors.push((format!("{l}.{k}.best"), floats(best)?));
                tensors.push((format!("{l}.{k}.optimizer"), floats(optimizer.state())?));
            }
        }
        write_shard(&self.run.places.partial.join(STATE), &tensors)
    }

    /// The state that an earlier run wrote down for this block and pass: steps done, the best leaves, and the errors at the
    /// start and of the best.
    fn restore(&mut self, place: (usize, usize)) -> Result<Option<(usize, Vec<Vec<Vec<f32>>>, [f64; 2])>> {
        let path = self.run.places.partial.join(STATE);
        if !self.run.request.resume || !path.exists() {
            return Ok(None);
        }
        let file = Safetensors::open(&path)?;
        let bytes = file.tensor("place")?.bytes;
        let numbers: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let [block, pass, done, first, least] = numbers[..] else {
            return Err(Error::input("is no state of learning").file(&path).hint("delete it"));
        };
        if (block as usize, pass as usize) != place {
            return Ok(None);
        }
        let mut best = self.values();
        for (l, (learned, best)) in self.learned.iter_mut().zip(&mut best).enumerate() {
            let leaves = learned.fake.leaves_mut().into_iter();
            for (k, ((leaf, optimizer), best)) in leaves.zip(&mut learned.optimizers).zip(best).enumerate() {
                let mut read = |part: &str, to: &mut [f32]| -> Result<()> {
                    let values = file.tensor(&format!("{l}.{k}.{part}"))?.to_f32()?;
                    if values.len() != to.len() {
                        return Err(Error::input("is the state of another run").file(&path).hint("delete it"));
                    }
                    to.copy_from_slice(&values);
                    Ok(())
                };
                read("leaf", &mut leaf.values)?;
                read("best", best)?;
                read("optimizer", optimizer.state_mut())?;
            }
        }
        Ok(Some((done as usize, best, [f64::from_bits(first), f64::from_bits(least)])))
    }
}

/// The state of learning in the working folder.
const STATE: &str = "learning.safetensors";

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
