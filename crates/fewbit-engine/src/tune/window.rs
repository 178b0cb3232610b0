//! Learns windows of consecutive blocks, once all of the model is rounded: each window begins with what the one before
//! left of the blocks that they share (CBQ, Ding et al. 2023, arXiv:2312.07950).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use fewbit_format::{Error, Result};
use fewbit_grad::Parameters;
use fewbit_graph::Part;
use fewbit_runtime::{Arithmetic, Layer, NoHooks};
use fewbit_store::{ModelFile, PartWeights};

use super::chain::{Chain, Data, Link};
use super::learned::Learned;
use super::state::{restore_values, save_values};
use super::{Learn, Scope, descend};
use crate::bound::compressible;
use crate::journal::Done;
use crate::origin::Origin;
use crate::quantize::Run;
use crate::report::BlockReport;
use crate::walk::{To, Walk, Walker};

/// A pass over windows.
pub(crate) struct Windows<'a> {
    run: &'a Run<'a>,
    learn: &'a Learn,
    /// Among the passes after the model is rounded.
    pass: usize,
    origin: &'a Origin<'a>,
    rounded: ModelFile,
    /// What learned blocks make of the tokens: the window's input.
    compressed: Walker<'a>,
    /// What original blocks make, before the window's last.
    original: Walker<'a>,
    /// The first window's line of the journal.
    first: usize,
    /// Windows that are done.
    done: usize,
}

impl Learn {
    /// Lines of the journal that a pass over a rounded model of so many blocks makes.
    pub(crate) fn entries(&self, blocks: usize) -> usize {
        if self.settings.scope == Scope::Window { blocks + 1 - self.width(blocks) } else { 1 }
    }

    /// Blocks of a window.
    fn width(&self, blocks: usize) -> usize {
        self.settings.window.min(blocks)
    }
}

impl<'a> Windows<'a> {
    /// The windows of the `pass`th pass over the rounded model, whose first line of the journal is `first`, before the one
    /// of line `line`.
    pub(crate) fn open(
        run: &'a Run<'a>,
        learn: &'a Learn,
        pass: usize,
        first: usize,
        line: usize,
        origin: &'a Origin<'a>,
    ) -> Result<Self> {
        let calibration = run.calibration.as_ref().ok_or_else(|| Error::internal("learning without text"))?;
        let done = line - first;
        let ahead = learn.width(run.file.model().blocks.len()) - 1;
        let walker = |name, done| Walker::new(run.team, origin, calibration, &run.places.partial, name, done, 0);
        let compressed = walker("stream", done)?;
        let original = walker("original", if done == 0 { 0 } else { done + ahead })?;
        let rounded = ModelFile::open(&run.places.parts())?;
        let mut windows = Self { run, learn, pass, origin, rounded, compressed, original, first, done };
        if done == 0 {
            run.places.next_parts(pass + 1)?;
            for i in 0..ahead {
                windows.walk_original(i)?;
                windows.original.next_block()?;
            }
        }
        Ok(windows)
    }

    /// Learns the next window, and writes the blocks that no window after it touches.
    pub(crate) fn next(&mut self) -> Result<Done> {
        let (clock, run, k) = (Instant::now(), self.run, self.done);
        let blocks = run.file.model().blocks.len();
        let width = self.learn.width(blocks);
        self.walk_original(k + width - 1)?;
        let mut report = BlockReport::default();
        let learned = self.descend(width, &mut report)?;
        let folder = run.places.generation(self.pass + 1);
        let is_last = k + width == blocks;
        let (mut schemes, mut first) = (Vec::new(), None);
        for i in k..if is_last { compressible(&run.file).count() } else { k + 1 } {
            let of_part = learned.get(i - k).map_or(&[][..], Vec::as_slice);
            let (weights, written) = run.write_part(&folder, i, &self.rounded, self.origin, of_part)?;
            schemes.extend(written);
            first.get_or_insert(weights);
        }
        if let (Some(weights), false) = (first, is_last) {
            save_values(&self.carried(k + 1), learned[1..].iter().flatten())?;
            let graph = Arc::new(run.file.model().part(Part::Block(k)).clone());
            let weights = PartWeights { caches: Vec::new(), ..weights };
            let mut walk = Walk::new(Layer::new(graph, weights, Arithmetic::Exact)?);
            self.compressed.go(&mut walk, To::End, &mut NoHooks, &|| run.check_stop())?;
            self.compressed.next_block()?;
            self.original.next_block()?;
        }
        self.done += 1;
        report.learn_seconds = clock.elapsed().as_secs_f64();
        Ok(Done { block: self.first + k, report, schemes })
    }

    /// Learns a window; returns what was learned, by block.
    fn descend(&self, width: usize, report: &mut BlockReport) -> Result<Vec<Vec<Learned>>> {
        let (run, k, settings) = (self.run, self.done, &self.learn.settings);
        let base = run.request.seed ^ ((self.pass as u64 + 1) << 56);
        let (mut links, mut learned, mut shared) = (Vec::new(), Vec::new(), 0);
        for part in (k..k + width).map(Part::Block) {
            let graph = Arc::new(run.file.model().part(part).clone());
            let (now, of_part) = run.open_part(self.learn, base, part, &self.rounded, self.origin)?;
            let original = settings.aug.then(|| Parameters::of(&graph, &self.origin.part(part)?)).transpose()?;
            // All blocks but the last were in the window before.
            shared = learned.len();
            learned.extend(of_part);
            links.push(Link::new(graph, now, original, shared..learned.len())?);
        }
        if k > 0 {
            restore_values(&self.carried(k), &mut learned[..shared])?;
        }
        let data = Data { compressed: &self.compressed, original: &self.original };
        let mut chain = Chain::new(run, settings, base ^ ((k as u64) << 32), data, links, learned);
        if !chain.learned.is_empty() {
            report.learned.push(descend(run, settings, [self.first + k, self.pass], &mut chain)?);
        }
        Ok(chain.into_learned())
    }

    /// Where the leaves lie that window `k` begins with: two files in turn, as the streams.
    fn carried(&self, k: usize) -> PathBuf {
        self.run.places.partial.join(format!("carried-{}.safetensors", k % 2))
    }

    /// Takes the original stream through original block `i`.
    fn walk_original(&mut self, i: usize) -> Result<()> {
        let part = Part::Block(i);
        let graph = Arc::new(self.run.file.model().part(part).clone());
        let mut walk = Walk::new(Layer::new(graph, self.origin.part(part)?, Arithmetic::Exact)?);
        self.original.go(&mut walk, To::End, &mut NoHooks, &|| self.run.check_stop())
    }
}
