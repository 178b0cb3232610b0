//! What is measured of the model: prompts and generation behind caches that are filled once.

use std::fmt;
use std::time::Instant;

use fewbit_format::{Error, Result};
use fewbit_runtime::{Batch, ModelCache, PROMPT_CHUNK, Runtime, Span};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::session::Session;

/// Random ids that texts are taken from.
const IDS: usize = 1 << 16;

/// Prompt or generation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// A text is read at once; logits of its last token.
    Prompt { tokens: usize },
    /// Sequences advance together, by so many tokens each.
    Generate { tokens: usize, batch: usize },
}

/// One of the things that are measured in turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    /// Which of the teams.
    pub(super) team: usize,
    pub(super) threads: usize,
    /// Positions remembered before.
    pub(super) depth: usize,
    pub(super) work: Work,
}

impl Case {
    /// Tokens that are run.
    pub(super) fn tokens(&self) -> usize {
        match self.work {
            Work::Prompt { tokens } => tokens,
            Work::Generate { tokens, batch } => tokens * batch,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.work {
            Work::Prompt { tokens } => write!(f, "prompt of {tokens}"),
            Work::Generate { tokens, batch: 1 } => write!(f, "generate {tokens}"),
            Work::Generate { tokens, batch } => write!(f, "generate {tokens} × {batch}"),
        }
    }
}

/// Caches that are filled once for each depth, and random texts.
pub(super) struct Sequences {
    ids: Vec<u32>,
    /// Depth, and the caches of sequences that remember as much.
    filled: Vec<(usize, Vec<ModelCache>)>,
    /// Of the last step.
    logits: Vec<f32>,
}

impl Sequences {
    pub(super) fn new(vocabulary: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let ids = (0..IDS).map(|_| random.random_range(0..vocabulary as u32)).collect();
        Self { ids, filled: Vec::new(), logits: Vec::new() }
    }

    /// One token as a prompt, as the first thing that the model does.
    pub(super) fn first_token(runtime: &Runtime) -> Result<()> {
        let mut cache = ModelCache::new(runtime, 1);
        runtime.logits(&Batch::one(0, 1), &[0], Some(&mut [&mut cache]), &[0]).map(|_| ())
    }

    /// Makes `count` sequences that remember `depth` positions, with room for `longest` more.
    pub(super) fn fill(
        &mut self,
        session: &Session,
        runtime: &Runtime,
        depth: usize,
        longest: usize,
        count: usize,
    ) -> Result<()> {
        if self.filled.iter().any(|(d, _)| *d == depth) {
            return Ok(());
        }
        let new = || ModelCache::new(runtime, depth + longest);
        let mut first = new();
        for start in (0..depth).step_by(PROMPT_CHUNK) {
            session.check_stop()?;
            self.read(runtime, start, PROMPT_CHUNK.min(depth - start), &[], &mut first)?;
        }
        let others = (1..count).map(|_| if depth == 0 { new() } else { first.clone() });
        let caches = others.collect::<Vec<_>>().into_iter().chain([first]).collect();
        self.filled.push((depth, caches));
        Ok(())
    }

    /// Seconds of a case.
    pub(super) fn run(&mut self, runtime: &Runtime, case: &Case) -> Result<f64> {
        let at = self.filled.iter().position(|(depth, _)| *depth == case.depth);
        let at = at.ok_or_else(|| Error::internal("a depth that was not filled"))?;
        let mut caches = std::mem::take(&mut self.filled[at].1);
        caches.iter_mut().for_each(|c| c.truncate(case.depth));
        let begun = Instant::now();
        let done = match case.work {
            Work::Prompt { tokens } => self.prompt(runtime, case.depth, tokens, &mut caches[0]),
            Work::Generate { tokens, batch } => self.generate(runtime, case.depth, tokens, &mut caches[..batch]),
        };
        let seconds = begun.elapsed().as_secs_f64();
        self.filled[at].1 = caches;
        done.map(|()| seconds)
    }

    fn prompt(&mut self, runtime: &Runtime, depth: usize, tokens: usize, cache: &mut ModelCache) -> Result<()> {
        for start in (0..tokens).step_by(PROMPT_CHUNK) {
            let count = PROMPT_CHUNK.min(tokens - start);
            let last = [count - 1];
            let rows: &[usize] = if start + count == tokens { &last } else { &[] };
            self.read(runtime, depth + start, count, rows, cache)?;
        }
        Ok(())
    }

    fn read(
        &mut self,
        runtime: &Runtime,
        start: usize,
        count: usize,
        rows: &[usize],
        cache: &mut ModelCache,
    ) -> Result<()> {
        let ids: Vec<u32> = (start..start + count).map(|i| self.id(0, i)).collect();
        runtime.write_logits(&Batch::one(start, count), &ids, Some(&mut [cache]), rows, &mut self.logits)
    }

    fn generate(&mut self, runtime: &Runtime, depth: usize, tokens: usize, caches: &mut [ModelCache]) -> Result<()> {
        let rows: Vec<usize> = (0..caches.len()).collect();
        let mut caches: Vec<&mut ModelCache> = caches.iter_mut().collect();
        for start in depth..depth + tokens {
            let ids: Vec<u32> = rows.iter().map(|sequence| self.id(*sequence, start)).collect();
            let batch = Batch::new(vec![Span { start, len: 1 }; rows.len()]);
            runtime.write_logits(&batch, &ids, Some(&mut caches), &rows, &mut self.logits)?;
        }
        Ok(())
    }

    /// The token of a sequence at a position.
    fn id(&self, sequence: usize, position: usize) -> u32 {
        self.ids[(sequence * 7919 + position) % self.ids.len()]
    }
}
