use fewbit_format::{Error, Result};
use fewbit_text::{StopStrings, Stopped, Tokenizer};

use crate::reader::Reader;
use crate::speculate::Speculation;
use crate::{DraftLength, Drafter, Drafts, Runtime, Sampler, Sampling, Seen};

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
    /// What became of drafts, where there were any.
    pub drafts: Option<Drafts>,
}

/// One conversation with a model: what it has seen is remembered from text to text.
pub struct Generation<'a> {
    tokenizer: &'a Tokenizer,
    target: Reader<'a>,
    seen: Seen,
    speculation: Option<Speculation<'a>>,
}

impl<'a> Generation<'a> {
    /// A conversation of at most `context` positions.
    pub fn new(runtime: &'a Runtime, tokenizer: &'a Tokenizer, context: usize) -> Self {
        Self { tokenizer, target: Reader::new(runtime, context), seen: Seen::default(), speculation: None }
    }

    /// From now on tokens are drafted: texts are distributed as without, and the same where the most probable token is
    /// taken.
    ///
    /// # Errors
    /// If the drafting model has another vocabulary.
    pub fn speculate(&mut self, drafter: Drafter<'a>, length: DraftLength) -> Result<()> {
        self.speculation = Some(Speculation::new(&self.target, drafter, length)?);
        Ok(())
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.target.forget();
        self.seen.truncate(0);
    }

    /// The ids of prompts and answers so far.
    pub fn seen(&self) -> &[u32] {
        self.seen.ids()
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
        let mut ahead = Ahead::default();
        self.begin(prompt, most)?;
        let prompt_seconds = clock.elapsed().as_secs_f64();
        let mut stream = self.tokenizer.stream(prompt);
        let mut stops = StopStrings::new(limits.stop.clone());
        let mut made = Generated {
            text: String::new(),
            ids: Vec::new(),
            finish: Finish::Length,
            prompt_seconds,
            seconds: 0.0,
            drafts: None,
        };
        let clock = std::time::Instant::now();
        while made.ids.len() < most {
            let id = self.choose(&mut ahead, &mut sampler);
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
                    break;
                }
            }
            if made.ids.len() < most {
                self.go_on(&mut ahead, most - made.ids.len(), &mut sampler)?;
            }
        }
        made.seconds = clock.elapsed().as_secs_f64();
        made.drafts = self.speculation.as_mut().map(|s| s.finish(ahead.place));
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
        let capacity = self.target.capacity();
        if prompt.is_empty() {
            return Err(
                Error::input("the prompt has no token").hint("give some text; this model has no token that begins one")
            );
        }
        if prompt.len() > capacity {
            let most = self.target.runtime().model().context;
            return Err(Error::input(format!(
                "the prompt has {} tokens, and the context holds {capacity}",
                prompt.len()
            ))
            .hint(if capacity < most {
                format!("shorten it, or raise `--context` up to {most}, for which the model was made")
            } else {
                "shorten it: the model was made for no longer ones".to_owned()
            }));
        }
        Ok(capacity - prompt.len())
    }

    /// Reads the prompt, if anything is to follow.
    fn begin(&mut self, prompt: &[u32], most: usize) -> Result<()> {
        if most > 0 {
            self.target.read(prompt, 1)?;
            if let Some(speculation) = &mut self.speculation {
                speculation.begin(prompt)?;
            }
            self.seen.become_text(prompt);
        }
        Ok(())
    }

    /// The next token.
    fn choose(&mut self, ahead: &mut Ahead, sampler: &mut Sampler) -> u32 {
        let logits = self.target.logits(ahead.place);
        let drafted = self.speculation.as_ref().and_then(|s| s.draft().get(ahead.place));
        let id = match drafted {
            Some((drafted, from)) => sampler.verify(logits, &self.seen, drafted, from),
            None => sampler.choose(logits, &self.seen),
        };
        if drafted.is_some_and(|(drafted, _)| drafted == id) {
            ahead.place += 1;
        } else {
            ahead.is_used_up = true;
        }
        id
    }

    /// Makes sure that there are logits after what was seen, where `wanted` more tokens are.
    fn go_on(&mut self, ahead: &mut Ahead, wanted: usize, sampler: &mut Sampler) -> Result<()> {
        if !ahead.is_used_up {
            return Ok(());
        }
        let known = self.seen.ids().len();
        if let Some(speculation) = &mut self.speculation {
            speculation.learn(ahead.place);
            // The model's own token comes after the draft.
            speculation.propose(&mut self.seen, wanted - 1, sampler)?;
            speculation.draft().ids().iter().for_each(|id| self.seen.push(*id));
        }
        let read = self.target.read(self.seen.ids(), self.seen.ids().len() - known + 1);
        self.seen.truncate(known);
        *ahead = Ahead::default();
        read
    }
}

/// How far the text has come in what the model has read.
#[derive(Default)]
struct Ahead {
    /// The place of the next token's logits; so many of the draft were accepted.
    place: usize,
    /// Whether a token was chosen that was not drafted: there are no logits after it.
    is_used_up: bool,
}

/// The last pieces: there is nothing to stop any more.
fn deliver(text: &mut String, piece: &str, listen: &mut dyn FnMut(&str) -> bool) {
    if !piece.is_empty() {
        text.push_str(piece);
        listen(piece);
    }
}
