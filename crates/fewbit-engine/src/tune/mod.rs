//! Learns what a learner left open of rounded linears: what blocks make of the compressed stream is pulled to what the
//! original blocks make of the original stream, or a model's logits to the original's.

mod bases;
mod block;
mod chain;
mod learned;
mod model;
mod parts;
mod settings;
mod state;
mod window;

use std::time::{Duration, Instant};

use fewbit_format::{QuantizedLinear, Result};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::kinds::Learner;
use crate::quantize::Run;
use learned::Learned;
pub use settings::{DecaySetting, LossSetting, OptimizerSetting, Scope, TuneSettings};
use state::{State, values};
pub(crate) use window::Windows;

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
    let earlier = if run.request.resume { State::restore(folder, place, tuning.learned())? } else { None };
    let mut state = if let Some(state) = earlier {
        state
    } else {
        let first = tuning.loss()?;
        State { place, done: 0, best: values(tuning.learned()), first, least: first }
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
                (state.best, state.least) = (values(tuning.learned()), loss);
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

/// Means of `loss` over all sequences, `count` at a time.
fn over_all(run: &Run<'_>, samples: usize, count: usize, mut loss: impl FnMut(&[usize]) -> Result<f64>) -> Result<f64> {
    let (mut sum, mut batches) = (0.0, 0);
    for first in (0..samples).step_by(count) {
        run.check_stop()?;
        // The last batch is filled up with sequences that were there before.
        let sequences: Vec<usize> = (0..count).map(|i| (first + i) % samples).collect();
        sum += loss(&sequences)?;
        batches += 1;
    }
    Ok(sum / f64::from(batches))
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

/// Linears with what was learned in the place of their codes.
fn baked(linear: &QuantizedLinear, learned: &Learned) -> Result<QuantizedLinear> {
    let bands = QuantizedLinear::uniform(learned.fake.bake()?, None).bands;
    Ok(QuantizedLinear { bands, ..linear.clone() })
}
