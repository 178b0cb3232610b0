//! Sensitivities from gradients: a forward that keeps what enters each block, then the blocks from last to first.

use std::sync::Arc;

use fewbit_format::{Mat, Result};
use fewbit_grad::loss::cross_entropy;
use fewbit_grad::{Function, Gradients, NoEdges, Parameters, Saved};
use fewbit_graph::{Part, WeightId};
use fewbit_kernel::elementwise::log_softmax_stats;
use fewbit_runtime::{Arithmetic, Batch, Layer, NoHooks, Rotations};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use fewbit_store::PartWeights;

use super::measure::{Passage, difference};
use super::{Allocation, PartCosts, Sensitivity, graph_part};
use crate::calibration::Calibration;
use crate::origin::Origin;
use crate::quantize::Run;
use crate::stream::Stream;
use crate::walk::embedded;

/// Rows whose logits are in memory at once.
pub(super) const HEAD_ROWS: usize = 256;

/// Numbers of one task.
const PIECE: usize = 1 << 14;

/// A batch of one sequence, since gradients are squared for each.
pub(super) struct Backward<'a, 'r> {
    run: &'a Run<'r>,
    allocation: &'a Allocation,
    origin: &'a Origin<'a>,
    calibration: &'a Calibration,
    passage: Passage<'a>,
    /// A slot for what enters each block and the head, and one for the gradient of what enters the part behind.
    stream: Stream,
    batch: Batch,
    rotations: Rotations,
}

impl<'a, 'r> Backward<'a, 'r> {
    pub(super) fn new(
        run: &'a Run<'r>,
        allocation: &'a Allocation,
        origin: &'a Origin<'a>,
        calibration: &'a Calibration,
    ) -> Result<Self> {
        let passage = Passage::new(run.team, origin, calibration);
        let slots = allocation.slots(run.file.model().blocks.len());
        let stream = Stream::create(&run.places.partial.join("measure.f32"), slots * passage.floats())?;
        let stream = embedded(origin, calibration, stream)?;
        let batch = Batch::one(0, calibration.length);
        let rotations = Rotations::new(&run.file.model().ropes, &batch);
        Ok(Self { run, allocation, origin, calibration, passage, stream, batch, rotations })
    }

    /// Measures the parts that are not known yet, from last to first.
    pub(super) fn measure(
        mut self,
        known: &[bool],
        keep: &mut dyn FnMut(usize, PartCosts) -> Result<()>,
    ) -> Result<()> {
        let blocks = known.len();
        for i in 0..blocks {
            let (part, graph) = graph_part(&self.run.file, i);
            let layer = Layer::new(Arc::new(graph.clone()), self.origin.part(part)?, Arithmetic::Exact)?;
            let check = || self.run.check_stop();
            self.passage.go(&layer, &mut self.stream, [i, i + 1], &mut NoHooks, &check)?;
            self.run.file.drop_pages(part);
        }
        let tokens = self.head(blocks)?;
        // What lies before the first part that is open is not needed.
        let first = known.iter().position(|k| !k).unwrap_or(blocks);
        for i in (first..blocks).rev() {
            let rounded = if known[i] { Vec::new() } else { self.allocation.rounded(i) };
            if let Some(costs) = self.block(i, &rounded, i > first, tokens)? {
                keep(i, costs)?;
            }
        }
        Ok(())
    }

    fn at(&self, slot: usize, sequence: usize) -> usize {
        slot * self.passage.floats() + sequence * self.passage.length * self.passage.hidden
    }

    fn read(&self, slot: usize, sequence: usize) -> Vec<f32> {
        let mut x = vec![0.0; self.passage.length * self.passage.hidden];
        self.stream.read(self.at(slot, sequence), &mut x);
        x
    }

    /// The loss's gradient of what enters the head, in the last slot; returns the tokens that count.
    fn head(&mut self, blocks: usize) -> Result<usize> {
        let model = self.run.file.model();
        let function = Function::new(Arc::new(model.head.clone()))?;
        let parameters = Parameters::of(&model.head, &self.origin.part(Part::Head)?)?;
        let (length, hidden) = (self.passage.length, self.passage.hidden);
        let is_drawn = self.allocation.settings.sensitivity == Sensitivity::Trace;
        let (mut saved, mut none) = (Saved::default(), Gradients::none(&model.head));
        for s in 0..self.passage.sequences {
            self.run.check_stop()?;
            let mut rng = ChaCha8Rng::seed_from_u64(self.run.request.seed ^ (s as u64) << 20);
            let (x, mut d) = (self.read(blocks, s), Vec::new());
            for (piece, x) in x.chunks(HEAD_ROWS * hidden).enumerate() {
                let rows = x.len() / hidden;
                let batch = Batch::one(0, rows);
                let rotations = Rotations::new(&[], &batch);
                let view = parameters.view();
                let x = x.to_vec();
                let mut logits =
                    function.forward(self.run.team, &batch, &rotations, &view, &mut NoEdges, x, &mut saved);
                let first = piece * HEAD_ROWS;
                let next = |t: usize| self.calibration.ids.get(s * length + t + 1).filter(|_| t + 1 < length).copied();
                let (targets, weights): (Vec<u32>, Vec<f32>) = if is_drawn {
                    logits.chunks_exact(model.vocabulary).map(|row| (draw(row, rng.random()), 1.0)).unzip()
                } else {
                    (first..first + rows).map(|t| next(t).map_or((0, 0.0), |id| (id, 1.0))).unzip()
                };
                cross_entropy(self.run.team, &mut logits, model.vocabulary, &targets, &weights);
                d.extend(function.backward(
                    self.run.team,
                    &batch,
                    &rotations,
                    &view,
                    &mut NoEdges,
                    logits,
                    &mut saved,
                    &mut none,
                ));
            }
            let at = self.at(blocks + 1, s);
            self.stream.write(at, &d);
        }
        Ok(self.passage.sequences * if is_drawn { length } else { length - 1 })
    }

    /// Takes the gradient through a block; returns the costs of those of its linears that are `rounded`.
    fn block(&mut self, i: usize, rounded: &[WeightId], goes_on: bool, tokens: usize) -> Result<Option<PartCosts>> {
        let (run, last) = (self.run, self.run.file.model().blocks.len() + 1);
        let (part, graph) = graph_part(&run.file, i);
        let graph = Arc::new(graph.clone());
        let weights = self.origin.part(part)?;
        let is_taylor = self.allocation.settings.sensitivity == Sensitivity::Taylor;
        let deltas = if is_taylor && !rounded.is_empty() { self.deltas(i, part, &weights)? } else { Vec::new() };
        let mut changes: Vec<Vec<f64>> = deltas.iter().map(|d| vec![0.0; d.as_ref().map_or(0, Mat::rows)]).collect();
        let mut squares: Vec<Option<Mat>> = vec![None; graph.weights.len()];
        rounded
            .iter()
            .for_each(|w| squares[*w] = Some(Mat::zeros(graph.weights[*w].shape[0], graph.weights[*w].shape[1])));
        {
            let function = Function::new(graph.clone())?;
            let parameters = Parameters::of(&graph, &weights)?;
            let (view, mut saved) = (parameters.view(), Saved::default());
            let mut gradients = Gradients::of_weights(&graph, rounded.iter().copied());
            gradients.wants_input = goes_on;
            for s in 0..self.passage.sequences {
                run.check_stop()?;
                let (x, d) = (self.read(i, s), self.read(last, s));
                gradients.clear();
                let (batch, turn) = (&self.batch, &self.rotations);
                function.forward(run.team, batch, turn, &view, &mut NoEdges, x, &mut saved);
                let d = function.backward(run.team, batch, turn, &view, &mut NoEdges, d, &mut saved, &mut gradients);
                if goes_on {
                    let at = self.at(last, s);
                    self.stream.write(at, &d);
                }
                for ((sums, delta), g) in changes.iter_mut().zip(&deltas).zip(&gradients.weights) {
                    let (Some(delta), Some(g)) = (delta, g) else { continue };
                    run.team.for_pieces(sums, 1, &|r, sum| {
                        let products = g.row(r).iter().zip(delta.row(r)).map(|(g, d)| f64::from(*g) * f64::from(*d));
                        let change = products.sum::<f64>() * self.passage.sequences as f64 / tokens as f64;
                        sum[0] += (change + 0.5 * change * change).abs();
                    });
                }
                for (f, g) in squares.iter_mut().zip(&mut gradients.weights).filter(|_| !is_taylor) {
                    let (Some(f), Some(g)) = (f, g) else { continue };
                    run.team.for_paired_pieces(f.data_mut(), PIECE, g.data_mut(), PIECE, |_, f, g| {
                        f.iter_mut().zip(g).for_each(|(f, g)| *f += *g * *g);
                    });
                }
            }
        }
        if rounded.is_empty() {
            return Ok(None);
        }
        if is_taylor {
            run.file.drop_pages(part);
            return Ok(Some(changes));
        }
        let layer = Layer::new(graph.clone(), weights.clone(), Arithmetic::Exact)?;
        // The block's output lies in the next slot already, to the bit.
        let here =
            run.observe(self.allocation, &mut self.passage, &mut self.stream, [i, i + 1], (i, part), &weights, &layer)?;
        let mut costs = vec![Vec::new(); graph.weights.len()];
        rounded.iter().for_each(|w| costs[*w] = vec![0.0; self.allocation.candidates.len()]);
        let is_trace = self.allocation.settings.sensitivity == Sensitivity::Trace;
        run.each_candidate(self.allocation, &here, &mut |c| {
            let delta = difference(&c);
            if let Some(f) = &squares[c.weight] {
                let sum = if is_trace {
                    total(f.data().iter().copied()) / f.data().len() as f64 * total(delta.data().iter().map(|d| d * d))
                } else {
                    total(f.data().iter().zip(delta.data()).map(|(f, d)| f * d * d))
                };
                costs[c.weight][c.index] = 0.5 * sum / tokens as f64;
            }
            Ok(())
        })?;
        run.file.drop_pages(part);
        Ok(Some(costs))
    }
}

impl Backward<'_, '_> {
    /// `Ŵ − W` of a part's linears under the candidate of fewer bits. The way forward has left the part's input in its slot
    /// and its output in the next, where it is made again, to the bit.
    fn deltas(&mut self, i: usize, part: Part, weights: &PartWeights) -> Result<Vec<Option<Mat>>> {
        let graph = Arc::new(graph_part(&self.run.file, i).1.clone());
        let mut deltas = vec![None; graph.weights.len()];
        let layer = Layer::new(graph, weights.clone(), Arithmetic::Exact)?;
        let (stream, passage, slots) = (&mut self.stream, &mut self.passage, [i, i + 1]);
        let here = self.run.observe(self.allocation, passage, stream, slots, (i, part), weights, &layer)?;
        let lower = 1 - self.allocation.largest();
        self.run.each_candidate(self.allocation, &here, &mut |c| {
            if c.index == lower {
                deltas[c.weight] = Some(difference(&c));
            }
            Ok(())
        })?;
        Ok(deltas)
    }
}

fn total(values: impl Iterator<Item = f32>) -> f64 {
    values.map(f64::from).sum()
}

/// The entry at which the cumulated probability passes `at` in `0..1`.
fn draw(logits: &[f32], at: f64) -> u32 {
    let (_, log_sum) = log_softmax_stats(logits);
    let mut rest = at;
    for (i, v) in logits.iter().enumerate() {
        rest -= (f64::from(*v) - log_sum).exp();
        if rest < 0.0 {
            return i as u32;
        }
    }
    logits.len().saturating_sub(1) as u32
}
