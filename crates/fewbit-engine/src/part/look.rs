//! What is looked at on the tokens' way through a part.

use std::time::Instant;

use fewbit_format::{ActivationFormat, Result};
use fewbit_graph::{Edge, Op, Part};

use super::Work;
use crate::importance::{Received, token_weights};
use crate::recipe::TokenWeights;
use crate::stats::{Both, Collector, InputStats};
use crate::walk::{To, Walk, Walker};

impl<'r> Work<'r, '_> {
    /// What each token counts in the statistics of a block, by the attention of the block before it is rounded.
    pub(super) fn importance(&mut self, walker: &mut Walker<'_>) -> Result<Option<Vec<f32>>> {
        let run = self.run;
        let settings = &run.bound.calibration;
        if settings.weights == TokenWeights::Uniform || !run.bound.needs.gram {
            return Ok(None);
        }
        let length = run.calibration.as_ref().map_or(0, |c| c.length);
        let received = Received::of(run.team, &self.graph, &self.source.vectors, length);
        let Some(mut received) = received else { return Ok(None) };
        let clock = Instant::now();
        let inputs = received.inputs();
        let mut walk = self.walk(self.source.clone())?;
        walker.go(&mut walk, To::Dead(&inputs), &mut received, &|| run.check_stop())?;
        self.report.forward_seconds += clock.elapsed().as_secs_f64();
        let mut scores = received.scores;
        token_weights(&mut scores, length, settings.least, settings.power);
        Ok(Some(scores))
    }

    /// Statistics of some inputs over all tokens.
    pub(super) fn look(
        &mut self,
        walker: &mut Walker<'_>,
        walk: &mut Walk,
        inputs: &[Edge],
        importance: Option<&[f32]>,
        seen: Option<&mut Collector<'_>>,
    ) -> Result<Vec<(Edge, InputStats)>> {
        let (run, clock) = (self.run, Instant::now());
        let widths: Vec<_> = inputs.iter().map(|e| (*e, self.graph.values[e.value].dim)).collect();
        let mut collector = Collector::new(run.team, run.bound.needs, widths.into_iter(), importance);
        let to = if run.bound.is_original_stream && self.part != Part::Head {
            To::End
        } else if run.bound.is_whole {
            To::Dead(inputs)
        } else {
            To::Stop(inputs)
        };
        match seen {
            Some(seen) => walker.go(walk, to, &mut Both(&mut collector, seen), &|| run.check_stop())?,
            None => walker.go(walk, to, &mut collector, &|| run.check_stop())?,
        }
        self.report.gram_seconds += collector.gram_seconds;
        self.report.forward_seconds += clock.elapsed().as_secs_f64() - collector.gram_seconds;
        let stats = collector.finish();
        for (edge, s) in &stats {
            if let Some(expert) = edge.expert {
                let counts = &mut self.report.tokens_per_expert;
                counts.resize(counts.len().max(expert + 1), 0);
                counts[expert] = s.tokens;
            }
        }
        Ok(stats)
    }

    /// Collects what keys and values are like, where the recipe rounds them.
    pub(super) fn cached(&self) -> Option<Collector<'r>> {
        let (run, graph) = (self.run, &self.graph);
        let act = run.bound.cache.as_ref().filter(|_| graph.slots() > 0)?;
        let values = graph.nodes.iter().filter(|n| matches!(n.op, Op::Cache { .. })).map(|n| n.output);
        let edges = values.map(|value| (Edge { value, expert: None }, graph.values[value].dim));
        Some(Collector::new(run.team, act.needs(), edges, None))
    }

    /// How the keys and values of each cache slot are rounded.
    pub(super) fn cache_formats(&self, cached: Option<Collector<'_>>) -> Result<Vec<ActivationFormat>> {
        let (Some(act), Some(cached)) = (&self.run.bound.cache, cached) else { return Ok(Vec::new()) };
        debug_assert_eq!(self.graph.cached().len(), self.graph.slots(), "every slot has its linear");
        cached.finish().iter().map(|(_, stats)| act.format(stats)).collect()
    }
}
