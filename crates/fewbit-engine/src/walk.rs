//! The calibration tokens' way through the blocks, with stops where linears read: no step of a block runs twice.

use std::path::Path;

use fewbit_format::{Error, Result};
use fewbit_graph::{Edge, Graph, Part, ValueId};
use fewbit_kernel::Team;
use fewbit_runtime::{Batch, Hooks, Layer, Rotations, Workspace, embed};

use crate::calibration::Calibration;
use crate::origin::Origin;
use crate::stop::crash_point;
use crate::stream::Stream;

/// Tokens that go through a block at a time: a constant, since sums over tokens are made in its order.
pub(crate) const CHUNK_TOKENS: usize = 2048;

/// A block on the way: the first `done` of its steps are done for all tokens.
pub(crate) struct Walk {
    pub(crate) layer: Layer,
    done: usize,
}

impl Walk {
    pub(crate) fn new(layer: Layer) -> Self {
        Self { layer, done: 0 }
    }
}

/// Where a walk goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum To<'v> {
    /// To these inputs; what the rest of the block reads is kept.
    Stop(&'v [Edge]),
    /// To these inputs, and no further: the block begins anew with other weights.
    Dead(&'v [Edge]),
    /// To the block's output, which is the next block's input.
    End,
}

/// The tokens on their way through the model.
pub(crate) struct Streams<'a> {
    /// Through what is compressed (or, where a recipe wants it so, through the original blocks).
    pub(crate) compressed: Walker<'a>,
    /// Through the original blocks, where something is learned from them.
    pub(crate) original: Option<Walker<'a>>,
}

impl Streams<'_> {
    /// The outputs become the next block's inputs.
    pub(crate) fn next_block(&mut self) -> Result<()> {
        self.compressed.next_block()?;
        self.original.as_mut().map_or(Ok(()), Walker::next_block)
    }
}

/// The tokens of all sequences between two steps, and what the walks of all blocks share.
pub(crate) struct Walker<'a> {
    team: &'a Team,
    samples: usize,
    length: usize,
    /// Whole sequences that go through a block at a time; the last chunk may have fewer.
    at_once: usize,
    /// For a chunk, and for the last.
    rotations: [Rotations; 2],
    workspace: Workspace,
    /// `[tokens, hidden]`: what the block reads, and what it makes.
    streams: (Stream, Stream),
    /// `[tokens, kept_width]`: what stops keep beside the block's input.
    kept: Option<Stream>,
    kept_width: usize,
}

impl<'a> Walker<'a> {
    /// Before the block after `done` others, with streams of that name in `folder`; `kept_width` numbers per token are kept at stops.
    pub(crate) fn new(
        team: &'a Team,
        origin: &Origin<'_>,
        calibration: &Calibration,
        folder: &Path,
        name: &str,
        done: usize,
        kept_width: usize,
    ) -> Result<Self> {
        let (samples, length, model) = (calibration.samples, calibration.length, origin.model());
        let floats = samples * length * model.hidden;
        let path = |i: usize| folder.join(format!("{name}-{}.f32", i % 2));
        let streams = if done > 0 {
            (Stream::open(&path(done), floats)?, Stream::open(&path(done + 1), floats)?)
        } else {
            (embedded(origin, calibration, Stream::create(&path(0), floats)?)?, Stream::create(&path(1), floats)?)
        };
        let kept = match samples * length * kept_width {
            0 => None,
            floats => Some(Stream::create(&folder.join("kept.f32"), floats)?),
        };
        let at_once = (CHUNK_TOKENS / length).clamp(1, samples);
        let rotations =
            [at_once, samples % at_once].map(|count| Rotations::new(&model.ropes, &Batch::sequences(count, length)));
        let workspace = Workspace::default();
        Ok(Self { team, samples, length, at_once, rotations, workspace, streams, kept, kept_width })
    }

    /// Sequences.
    pub(crate) fn samples(&self) -> usize {
        self.samples
    }

    /// Tokens of a sequence.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Rows of some sequences of the block's input.
    pub(crate) fn inputs(&self, sequences: &[usize]) -> Vec<f32> {
        self.rows(&self.streams.0, sequences)
    }

    /// Rows of some sequences of the block's output, once all tokens went [`To::End`].
    pub(crate) fn outputs(&self, sequences: &[usize]) -> Vec<f32> {
        self.rows(&self.streams.1, sequences)
    }

    fn rows(&self, stream: &Stream, sequences: &[usize]) -> Vec<f32> {
        let size = stream.len() / self.samples;
        let mut rows = vec![0.0; sequences.len() * size];
        for (s, out) in sequences.iter().zip(rows.chunks_exact_mut(size)) {
            stream.read(s * size, out);
        }
        rows
    }

    /// The output becomes the next block's input.
    pub(crate) fn next_block(&mut self) -> Result<()> {
        self.streams.1.flush()?;
        std::mem::swap(&mut self.streams.0, &mut self.streams.1);
        Ok(())
    }

    /// Takes all tokens further, in chunks of whole sequences; `hooks` see the values that they want and that are made
    /// on the way, or lie there at its beginning. `check` may end it between two chunks.
    pub(crate) fn go(
        &mut self,
        walk: &mut Walk,
        to: To<'_>,
        hooks: &mut dyn Hooks,
        check: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let (layer, done) = (&walk.layer, walk.done);
        let until = match to {
            To::Stop(inputs) | To::Dead(inputs) => inputs.iter().map(|e| layer.until(e.value)).fold(done, usize::max),
            To::End => layer.steps(),
        };
        let resume = layer.resume(until);
        let (before, after) = (layer.live(done), layer.live(resume));
        for first in (0..self.samples).step_by(self.at_once) {
            check()?;
            let count = self.at_once.min(self.samples - first);
            let (token, tokens) = (first * self.length, count * self.length);
            self.load(layer, &before, token, tokens, hooks);
            let batch = Batch::sequences(count, self.length);
            let turn = usize::from(count < self.at_once);
            let mut run = |walker: &mut Self, steps| {
                let (turn, workspace) = (&walker.rotations[turn], &mut walker.workspace);
                layer.run_steps(walker.team, &batch, turn, None, hooks, workspace, steps);
            };
            run(self, done..resume);
            if matches!(to, To::Stop(_)) {
                self.keep(&after, token);
            }
            run(self, resume..until);
            if matches!(to, To::End) {
                let output = self.workspace.value(layer.graph().output);
                self.streams.1.write(token * output.len() / tokens, output);
                crash_point();
            }
            self.workspace.clear();
        }
        // The next work may need the memory.
        self.workspace = Workspace::default();
        if !matches!(to, To::Dead(_)) {
            walk.done = resume;
        }
        Ok(())
    }

    /// Reads what steps need for some tokens: the block's input from its stream, everything else from what was kept.
    fn load(&mut self, layer: &Layer, values: &[ValueId], token: usize, tokens: usize, hooks: &mut dyn Hooks) {
        let mut at = token * self.kept_width;
        for v in values {
            let width = layer.graph().values[*v].width();
            let rows = self.workspace.begin(*v, tokens * width);
            match &self.kept {
                Some(kept) if *v != Graph::INPUT => at = kept.read(at, rows),
                _ => _ = self.streams.0.read(token * width, rows),
            }
        }
        values.iter().for_each(|v| layer.show(*v, hooks, &mut self.workspace));
    }

    /// Writes what later steps need of these tokens, in the order in which it is loaded.
    fn keep(&mut self, values: &[ValueId], token: usize) {
        let Some(kept) = &mut self.kept else { return };
        let mut at = token * self.kept_width;
        for v in values.iter().filter(|v| **v != Graph::INPUT) {
            at = kept.write(at, self.workspace.value(*v));
        }
    }
}

/// Fills a stream with what the first block reads.
pub(crate) fn embedded(origin: &Origin<'_>, calibration: &Calibration, mut stream: Stream) -> Result<Stream> {
    let weights = origin.part(Part::Embed)?;
    let matrix = weights.linears.first().ok_or_else(|| Error::internal("a model without embedding"))?;
    let mut at = 0;
    for ids in calibration.ids.chunks(CHUNK_TOKENS) {
        at = stream.write(at, &embed(&origin.model().embed, matrix, ids)?);
    }
    origin.drop_pages(Part::Embed);
    stream.flush()?;
    Ok(stream)
}
