//! Consecutive blocks that are learned at once.

use std::ops::Range;
use std::sync::Arc;

use fewbit_format::{Error, Result};
use fewbit_grad::loss::{divergence, log_softmax, squared_error};
use fewbit_grad::{Function, Gradients, NoEdges, Parameters, Saved};
use fewbit_graph::Graph;
use fewbit_runtime::{Batch, Rotations};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::learned::Learned;
use super::{Descent, TuneSettings, draw, over_all};
use crate::quantize::Run;
use crate::walk::Walker;

/// Where the sequences of a chain come from and go to.
#[derive(Clone, Copy)]
pub(super) struct Data<'a, 'w> {
    /// What compressed blocks make of the tokens: the input of the first block.
    pub(super) compressed: &'a Walker<'w>,
    /// What original blocks make, before and after the last block.
    pub(super) original: &'a Walker<'w>,
}

/// One block of a chain.
pub(super) struct Link {
    function: Function,
    /// The block as it is, the weights that are learned overwritten at each step.
    now: Parameters,
    /// The block before any rounding, where it is asked what that makes of the compressed stream.
    original: Option<Parameters>,
    /// Which of the chain's weights are its own.
    learned: Range<usize>,
    saved: Saved,
}

impl Link {
    pub(super) fn new(
        graph: Arc<Graph>,
        now: Parameters,
        original: Option<Parameters>,
        learned: Range<usize>,
    ) -> Result<Self> {
        Ok(Self { function: Function::new(graph)?, now, original, learned, saved: Saved::default() })
    }
}

/// Blocks that are learned at once: what the last makes is pulled to what the original makes.
pub(super) struct Chain<'a, 'w> {
    run: &'a Run<'a>,
    settings: &'a TuneSettings,
    seed: u64,
    /// Rotations of a batch.
    turn: (Batch, Rotations),
    data: Data<'a, 'w>,
    links: Vec<Link>,
    pub(super) learned: Vec<Learned>,
}

impl<'a, 'w> Chain<'a, 'w> {
    pub(super) fn new(
        run: &'a Run<'a>,
        settings: &'a TuneSettings,
        seed: u64,
        data: Data<'a, 'w>,
        links: Vec<Link>,
        learned: Vec<Learned>,
    ) -> Self {
        let count = settings.batch.min(data.compressed.samples());
        let batch = Batch::sequences(count, data.compressed.length());
        let rotations = Rotations::new(&run.file.model().ropes, &batch);
        Self { run, settings, seed, turn: (batch, rotations), data, links, learned }
    }

    /// What was learned, by block.
    pub(super) fn into_learned(mut self) -> Vec<Vec<Learned>> {
        let mut all: Vec<_> = self.links.iter().rev().map(|l| self.learned.split_off(l.learned.start)).collect();
        all.reverse();
        all
    }

    /// Rows of some sequences of the input and of the target.
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

    /// Weights under the leaves as they are now.
    fn refresh(&mut self, progress: f32) {
        for link in &mut self.links {
            for learned in &self.learned[link.learned.clone()] {
                learned.forward(self.run.team, progress, &mut link.now.weights[learned.weight]);
            }
        }
    }

    fn forward(&mut self, mut x: Vec<f32>) -> Vec<f32> {
        let (batch, turn) = &self.turn;
        for Link { function, now, saved, .. } in &mut self.links {
            x = function.forward(self.run.team, batch, turn, &now.view(), &mut NoEdges, x, saved);
        }
        x
    }

    /// What the original blocks make of the input, where that is a second target.
    fn second(&mut self, x: &[f32]) -> Option<Vec<f32>> {
        let (batch, turn) = &self.turn;
        let mut x = self.settings.aug.then(|| x.to_vec())?;
        for Link { function, original, saved, .. } in &mut self.links {
            let original = original.as_ref()?;
            x = function.forward(self.run.team, batch, turn, &original.view(), &mut NoEdges, x, saved);
        }
        Some(x)
    }

    /// The loss of outputs `y` for `target`; they become its gradient.
    fn loss_of(&self, y: &mut [f32], target: &[f32]) -> f64 {
        let tokens = self.turn.0.tokens();
        let (team, width, by) = (&**self.run.team, y.len() / tokens, 1.0 / tokens as f32);
        let mut soft = None;
        if self.settings.soft > 0.0 {
            let (mut gradient, mut wanted) = (y.to_vec(), target.to_vec());
            log_softmax(team, &mut wanted, width);
            let loss = divergence(team, &mut gradient, width, &wanted, &vec![by * self.settings.soft; tokens]);
            soft = Some((loss, gradient));
        }
        let loss = squared_error(team, y, target, width, &vec![by * width as f32; tokens]);
        let Some((divergence, gradient)) = soft else { return loss };
        y.iter_mut().zip(gradient).for_each(|(y, g)| *y += g);
        loss + divergence
    }
}

impl Descent for Chain<'_, '_> {
    fn learned(&mut self) -> &mut [Learned] {
        &mut self.learned
    }

    fn loss(&mut self) -> Result<f64> {
        self.refresh(1.0);
        let (run, samples, count) = (self.run, self.data.compressed.samples(), self.turn.0.spans().len());
        over_all(run, samples, count, |sequences| {
            let (x, target) = self.rows(sequences, None);
            let mut y = self.forward(x);
            Ok(self.loss_of(&mut y, &target))
        })
    }

    fn step(&mut self, done: usize, share: f32) -> Result<()> {
        // A step's own numbers: a run that goes on draws what it would have drawn.
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(done as u64 + 1);
        let sequences = draw(self.turn.0.spans().len(), self.data.compressed.samples(), &mut rng);
        let (x, target) = self.rows(&sequences, Some(&mut rng));
        let progress = done as f32 / self.settings.steps as f32;
        self.refresh(progress);
        let second = self.second(&x);
        let mut dy = self.forward(x);
        let mut again = second.as_ref().map(|_| dy.clone());
        self.loss_of(&mut dy, &target);
        if let (Some(again), Some(second)) = (&mut again, second) {
            self.loss_of(again, &second);
            dy.iter_mut().zip(again).for_each(|(d, a)| *d += *a);
        }
        let (team, (batch, turn)) = (&**self.run.team, &self.turn);
        for (k, link) in self.links.iter_mut().enumerate().rev() {
            let Link { function, now, saved, .. } = link;
            let learned = &mut self.learned[link.learned.clone()];
            let mut gradients = Gradients::of_weights(function.graph(), learned.iter().map(|l| l.weight));
            gradients.wants_input = k > 0;
            dy = function.backward(team, batch, turn, &now.view(), &mut NoEdges, dy, saved, &mut gradients);
            for learned in learned {
                let gradient = gradients.weights[learned.weight].as_ref();
                let gradient = gradient.ok_or_else(|| Error::internal("a gradient that was asked for"))?;
                learned.step(team, done as u64 + 1, share, progress, gradient);
            }
        }
        Ok(())
    }
}
