use fewbit_format::Result;

use crate::seen::same_beginning;
use crate::{Batch, ModelCache, Runtime};

/// A model, and the text that it has read.
pub(crate) struct Reader<'a> {
    runtime: &'a Runtime,
    cache: ModelCache,
    ids: Vec<u32>,
    rows: Vec<usize>,
    logits: Vec<f32>,
}

/// Positions that a prompt is run in at a time: bounds the memory that a long prompt needs.
pub const PROMPT_CHUNK: usize = 512;

impl<'a> Reader<'a> {
    /// Has read nothing; a text of at most `positions` fits.
    pub(crate) fn new(runtime: &'a Runtime, positions: usize) -> Self {
        let cache = ModelCache::new(runtime, positions);
        Self { runtime, cache, ids: Vec::new(), rows: Vec::new(), logits: Vec::new() }
    }

    pub(crate) fn runtime(&self) -> &'a Runtime {
        self.runtime
    }

    /// Tokens that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    /// Forgets the text.
    pub(crate) fn forget(&mut self) {
        self.cache.truncate(0);
        self.ids.clear();
    }

    /// Reads a text, for the [logits](Self::logits) after each of its `last` last tokens (at least one, at most all).
    /// Those tokens are run, and what before them differs from the text that was read.
    ///
    /// # Errors
    /// If an id has no row in the embedding, or the logits are not finite.
    pub(crate) fn read(&mut self, text: &[u32], last: usize) -> Result<()> {
        let mut at = same_beginning(&self.ids, text).min(text.len() - last);
        self.cache.truncate(at);
        self.ids.truncate(at);
        self.rows.clear();
        while text.len() - at > PROMPT_CHUNK.max(last) {
            let end = (at + PROMPT_CHUNK).min(text.len() - last);
            self.advance(&text[at..end])?;
            at = end;
        }
        self.rows.extend(text.len() - last - at..text.len() - at);
        self.advance(&text[at..])
    }

    /// Logits `[vocabulary]` after the `place`-th of the tokens that were asked for.
    pub(crate) fn logits(&mut self, place: usize) -> &mut [f32] {
        let vocabulary = self.runtime.model().vocabulary;
        &mut self.logits[place * vocabulary..(place + 1) * vocabulary]
    }

    fn advance(&mut self, ids: &[u32]) -> Result<()> {
        let batch = Batch::one(self.ids.len(), ids.len());
        let caches = &mut [&mut self.cache];
        self.runtime.write_logits(&batch, ids, Some(caches), &self.rows, &mut self.logits)?;
        self.ids.extend_from_slice(ids);
        Ok(())
    }
}
