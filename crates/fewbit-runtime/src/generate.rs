use fewbit_format::{Error, Result};
use fewbit_text::{StopStrings, Stopped, Tokenizer};

use crate::{Batch, ModelCache, Runtime, Sampler, Sampling};

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop string came.
    Stop,
    /// The limit of tokens, or the end of the context.
    Length,
    /// The listener asked to stop.
    Interrupted,
}

impl Finish {
    /// As programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Interrupted => "interrupted",
        }
    }
}

/// When a text ends.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// New tokens at most; `None`: to the end of the context.
    pub max_tokens: Option<usize>,
    /// Ids that end a text.
    pub end_ids: Vec<u32>,
    /// Texts that end it; none of them is delivered.
    pub stop: Vec<String>,
}

/// A text that was made.
#[derive(Clone, Debug)]
pub struct Generated {
    /// All of it.
    pub text: String,
    /// The new ids, an end id excluded.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Seconds for the prompt.
    pub prompt_seconds: f64,
    /// Seconds for the new tokens after the first.
    pub seconds: f64,
}

/// One conversation with a model: what it has seen is remembered from text to text.
pub struct Generation<'a> {
    runtime: &'a Runtime,
    tokenizer: &'a Tokenizer,
    cache: ModelCache,
    seen: Vec<u32>,
}

/// Positions that a prompt is run in at a time: bounds the memory that a long prompt needs.
pub const PROMPT_CHUNK: usize = 512;

impl<'a> Generation<'a> {
    /// A conversation of at most `context` positions.
    pub fn new(runtime: &'a Runtime, tokenizer: &'a Tokenizer, context: usize) -> Self {
        Self { runtime, tokenizer, cache: ModelCache::new(runtime.model(), context), seen: Vec::new() }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.cache.truncate(0);
        self.seen.clear();
    }

    /// The ids of prompts and answers so far.
    pub fn seen(&self) -> &[u32] {
        &self.seen
    }

    /// Makes the text that follows `prompt` (all ids of the conversation; what is remembered of it is not run again);
    /// `listen` is called for every new token with the text that became certain with it (often none), and for what is
    /// left at the end; it answers whether to go on.
    ///
    /// # Errors
    /// If the prompt is empty or does not fit the context, or the logits are not finite.
    pub fn run(
        &mut self,
        prompt: &[u32],
        sampling: Sampling,
        limits: &Limits,
        listen: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generated> {
        let room = self.room(prompt)?;
        let most = limits.max_tokens.map_or(room, |m| m.min(room));
        let mut sampler = Sampler::new(sampling)?;
        let clock = std::time::Instant::now();
        let mut logits = Vec::new();
        if most > 0 {
            self.read(prompt, &mut logits)?;
        }
        let prompt_seconds = clock.elapsed().as_secs_f64();
        let mut stream = self.tokenizer.stream(prompt);
        let mut stops = StopStrings::new(limits.stop.clone());
        let mut made =
            Generated { text: String::new(), ids: Vec::new(), finish: Finish::Length, prompt_seconds, seconds: 0.0 };
        let clock = std::time::Instant::now();
        while made.ids.len() < most {
            let id = sampler.choose(&mut logits, &self.seen);
            if limits.end_ids.contains(&id) {
                made.finish = Finish::Stop;
                break;
            }
            made.ids.push(id);
            self.seen.push(id);
            // Every token is told, also one that completes no text: the listener can count, and stop, at each.
            match stream.push(id).map_or_else(|| Stopped::No(String::new()), |chunk| stops.push(&chunk)) {
                Stopped::No(text) => {
                    made.text.push_str(&text);
                    if !listen(&text) {
                        made.finish = Finish::Interrupted;
                        break;
                    }
                }
                Stopped::Yes(text) => {
                    deliver(&mut made.text, &text, listen);
                    made.finish = Finish::Stop;
                    made.seconds = clock.elapsed().as_secs_f64();
                    return Ok(made);
                }
            }
            if made.ids.len() < most {
                self.advance(self.cache.len(), &[id], &[0], &mut logits)?;
            }
        }
        made.seconds = clock.elapsed().as_secs_f64();
        if let Some(rest) = stream.finish()
            && let Stopped::No(text) | Stopped::Yes(text) = stops.push(&rest)
        {
            deliver(&mut made.text, &text, listen);
        }
        deliver(&mut made.text, &stops.finish(), listen);
        Ok(made)
    }

    /// New positions that fit after the prompt.
    fn room(&self, prompt: &[u32]) -> Result<usize> {
        let capacity = self.cache.capacity();
        if prompt.is_empty() {
            return Err(
                Error::input("the prompt has no token").hint("give some text; this model has no token that begins one")
            );
        }
        if prompt.len() > capacity {
            return Err(Error::input(format!(
                "the prompt has {} tokens, and the context holds {capacity}",
                prompt.len()
            ))
            .hint("shorten it, or raise `--context` up to what the model was made for"));
        }
        Ok(capacity - prompt.len())
    }

    /// Runs what of the prompt is not remembered; the logits after its last token.
    fn read(&mut self, prompt: &[u32], logits: &mut Vec<f32>) -> Result<()> {
        let same = self.seen.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is run again in any case: its logits are wanted.
        let from = same.min(self.cache.len()).min(prompt.len() - 1);
        self.cache.truncate(from);
        self.seen = prompt.to_vec();
        for start in (from..prompt.len()).step_by(PROMPT_CHUNK) {
            let end = (start + PROMPT_CHUNK).min(prompt.len());
            let rows: &[usize] = if end == prompt.len() { &[end - start - 1] } else { &[] };
            self.advance(start, &prompt[start..end], rows, logits)?;
        }
        Ok(())
    }

    fn advance(&mut self, start: usize, ids: &[u32], rows: &[usize], logits: &mut Vec<f32>) -> Result<()> {
        let batch = Batch::one(start, ids.len());
        self.runtime.write_logits(&batch, ids, Some(&mut [&mut self.cache]), rows, logits)
    }
}

/// The last pieces: there is nothing to stop any more.
fn deliver(text: &mut String, piece: &str, listen: &mut dyn FnMut(&str) -> bool) {
    if !piece.is_empty() {
        text.push_str(piece);
        listen(piece);
    }
}
