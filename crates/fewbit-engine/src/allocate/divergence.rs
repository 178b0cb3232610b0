use std::sync::Arc;

use fewbit_format::Result;
use fewbit_grad::loss::divergence;
use fewbit_graph::{Part, WeightId};
use fewbit_kernel::elementwise::log_softmax_stats;
use fewbit_runtime::{Arithmetic, Batch, Layer, NoHooks, Rotations, Workspace};

use super::measure::{Here, Passage};
use super::{Allocation, PartCosts};
use crate::origin::Origin;
use crate::quantize::Run;
use crate::stream::Stream;

/// Numbers that the logits of one step may take: 16 MiB, for the original and for one variant.
pub(super) const MOST_LOGITS: usize = 1 << 22;

/// What one rounded linear does to the logits: only the blocks after it run again, each loaded once for all variants.
///
/// In the stream, slot 0 holds what enters the block, slot 1 what the original makes of it, then follow the variants.
pub(super) struct Divergences<'a, 'p, 'r> {
    pub(super) run: &'a Run<'r>,
    pub(super) origin: &'a Origin<'a>,
    pub(super) passage: &'a mut Passage<'p>,
    pub(super) stream: &'a mut Stream,
}

impl Divergences<'_, '_, '_> {
    /// Mean KL divergence per token of every linear and candidate; slot 0 then holds what enters the next block.
    ///
    /// `layer` is the original block, which it is again at the end.
    pub(super) fn measure(
        &mut self,
        allocation: &Allocation,
        here: &Here<'_>,
        layer: &mut Layer,
        costs: &mut PartCosts,
    ) -> Result<()> {
        let run = self.run;
        let check = || run.check_stop();
        let mut variants: Vec<(WeightId, usize)> = Vec::new();
        run.each_candidate(allocation, here, &mut |candidate| {
            let of_input = |replaced: Option<&Arc<_>>| {
                let one = |w: &WeightId| match replaced {
                    Some(linear) if *w == candidate.weight => Arc::clone(linear),
                    _ => here.weights.linears[*w].clone(),
                };
                candidate.readers.iter().map(one).collect::<Vec<_>>()
            };
            let rounded = Arc::new(candidate.linear);
            layer.replace(candidate.input, of_input(Some(&rounded)));
            let slot = 2 + variants.len();
            self.passage.go(layer, self.stream, [0, slot], &mut NoHooks, &check)?;
            layer.replace(candidate.input, of_input(None));
            variants.push((candidate.weight, candidate.index));
            Ok(())
        })?;
        let size = self.passage.floats();
        self.copy(size, 0)?;
        for later in here.i + 1..run.file.model().blocks.len() {
            let part = Part::Block(later);
            let graph = Arc::new(run.file.model().part(part).clone());
            let layer = Layer::new(graph, self.origin.part(part)?, Arithmetic::Exact)?;
            for slot in 1..2 + variants.len() {
                self.passage.go(&layer, self.stream, [slot, slot], &mut NoHooks, &check)?;
            }
        }
        let losses = self.losses(variants.len())?;
        for ((weight, candidate), loss) in variants.into_iter().zip(losses) {
            costs[weight][candidate] = loss.max(0.0);
        }
        Ok(())
    }

    /// Copies a slot that begins at `from` to `to`.
    fn copy(&mut self, from: usize, to: usize) -> Result<()> {
        let mut row = vec![0.0; self.passage.length * self.passage.hidden];
        for s in 0..self.passage.sequences {
            self.run.check_stop()?;
            self.stream.read(from + s * row.len(), &mut row);
            self.stream.write(to + s * row.len(), &row);
        }
        Ok(())
    }

    /// Mean divergences of the variants' logits from the original's.
    fn losses(&mut self, variants: usize) -> Result<Vec<f64>> {
        let run = self.run;
        let model = run.file.model();
        let head = Layer::new(Arc::new(model.head.clone()), self.origin.part(Part::Head)?, Arithmetic::Exact)?;
        let (tokens, hidden, size) =
            (self.passage.sequences * self.passage.length, model.hidden, self.passage.floats());
        let most = (MOST_LOGITS / model.vocabulary).clamp(1, tokens);
        let mut workspace = Workspace::default();
        let mut losses = vec![0.0; variants];
        for first in (0..tokens).step_by(most) {
            run.check_stop()?;
            let rows = most.min(tokens - first);
            let batch = Batch::one(0, rows);
            let rotations = Rotations::new(&[], &batch);
            let mut logits = |slot: usize| {
                let mut x = vec![0.0; rows * hidden];
                self.stream.read(slot * size + first * hidden, &mut x);
                head.run(run.team, &batch, &rotations, None, &mut NoHooks, &mut workspace, &mut x);
                x
            };
            let mut log_p = logits(1);
            run.team.for_pieces(&mut log_p, model.vocabulary, &|_, row| {
                let (_, log_sum) = log_softmax_stats(row);
                row.iter_mut().for_each(|v| *v = (f64::from(*v) - log_sum) as f32);
            });
            for (v, loss) in losses.iter_mut().enumerate() {
                let mut logits = logits(2 + v);
                *loss += divergence(run.team, &mut logits, model.vocabulary, &log_p, &vec![1.0; rows]);
            }
        }
        Ok(losses.into_iter().map(|l| l / tokens as f64).collect())
    }
}
