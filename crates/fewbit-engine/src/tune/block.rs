//! Learns a block once it is rounded, before the next is looked at.

use std::sync::Arc;

use fewbit_format::{Error, Mat, QuantizedLinear, Result};
use fewbit_grad::{Input, Parameters};
use fewbit_graph::Graph;

use super::chain::{Chain, Data, Link};
use super::learned::Learned;
use super::{Scope, baked, descend};
use crate::quantize::Run;
use crate::report::BlockReport;
use crate::walk::Streams;

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
                let (name, seed) = (&graph.weights[w].name, seed.wrapping_add(w as u64));
                learned.push(Learned::begin(learn, w, name, base.clone(), &current[w], seed)?);
            }
            let now = Parameters { vectors: vectors.to_vec(), ..now(current) };
            let original = learn.settings.aug.then(|| original.clone());
            let link = Link::new(graph.clone(), now, original, 0..learned.len())?;
            let mut chain = Chain::new(self, &learn.settings, seed, data, vec![link], learned);
            report.learned.push(descend(self, &learn.settings, [i, pass], &mut chain)?);
            for learned in &chain.learned {
                let linear = &mut current[learned.weight];
                *linear = Arc::new(baked(linear, learned)?);
            }
        }
        Ok(())
    }
}

/// Weights, biases and what happens to inputs, as they are now.
fn now(linears: &[Arc<QuantizedLinear>]) -> Parameters {
    Parameters {
        weights: linears.iter().map(|l| l.decode()).collect(),
        biases: linears.iter().map(|l| l.bias.clone()).collect(),
        vectors: Vec::new(),
        inputs: linears.iter().map(|l| Input::of(l)).collect(),
    }
}
