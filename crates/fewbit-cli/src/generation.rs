use std::path::Path;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use fewbit_format::{Error, Result};
use fewbit_runtime::{Drafts, Finish, Generated, Generation, Limits, Runtime, Sampling, language};
use fewbit_store::{Checkpoint, ModelFile};
use fewbit_text::Tokenizer;
use serde_json::{Value, json};

use crate::arguments::ArithmeticName;
use crate::drafting::{DraftSource, LoadedDraft};
use crate::loading;
use crate::session::Session;

/// Positions that are kept unless more are asked for: the cache of a long context takes gigabytes.
const DEFAULT_CONTEXT: usize = 4096;

/// How the text is made; what is not given follows the model's generation configuration.
#[derive(Args, Debug)]
#[command(next_help_heading = "Generation options")]
pub(crate) struct GenerationOptions {
    /// New tokens at most; -1: to the end of the context [default: -1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_tokens: Option<i64>,
    /// 0: always the most probable token; more: more varied
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep the N most probable tokens; 0 or -1: all
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    top_k: Option<i64>,
    /// Keep the fewest tokens whose probabilities reach F; 1: all
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Drop tokens less probable than this share of the most probable; 0: none
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Make tokens that were seen less probable; 1: not
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// End before this text; may be given several times
    #[arg(long, value_name = "S", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Of the random numbers; the same seed gives the same text
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Positions to keep, at most those that the model was made for [default: these, at most 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Guess the next tokens, by a smaller model of the same vocabulary or from the text so far (`ngram`), and check them at
    /// once: faster where the guesses are good, and texts are distributed as without
    #[arg(long, value_name = "MODEL|ngram")]
    draft: Option<String>,
    /// Tokens to guess at a time, at most
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64), requires = "draft")]
    draft_tokens: u8,
}

impl GenerationOptions {
    /// How tokens are chosen.
    ///
    /// # Errors
    /// Names the field that is out of range.
    fn sampling(&self, checkpoint: &Checkpoint) -> Result<Sampling> {
        let of_model = language::sampling_of(checkpoint);
        let mut s = of_model;
        s.temperature = self.temperature.unwrap_or(s.temperature);
        s.top_p = self.top_p.unwrap_or(s.top_p);
        s.min_p = self.min_p.unwrap_or(s.min_p);
        s.repetition_penalty = self.repetition_penalty.unwrap_or(s.repetition_penalty);
        s.seed = self.seed;
        if let Some(top_k) = self.top_k {
            s.top_k = match top_k {
                -1 => 0,
                k => usize::try_from(k).map_err(|_| out_of_range("top_k", k))?,
            };
        }
        s.check().map_err(|e| match of_model.check() {
            Ok(()) => e,
            Err(_) => e.place("generation_config.json").file(checkpoint.path()).hint("give the option of that name"),
        })?;
        Ok(s)
    }

    /// When a text ends.
    ///
    /// # Errors
    /// If `max_tokens` is out of range.
    fn limits(&self, checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Limits> {
        let max_tokens = match self.max_tokens {
            None | Some(-1) => None,
            Some(n) => Some(usize::try_from(n).map_err(|_| out_of_range("max_tokens", n))?),
        };
        Ok(Limits { max_tokens, end_ids: language::end_ids(checkpoint, Some(tokenizer)), stop: self.stop.clone() })
    }

    /// What drafts, if anything does.
    ///
    /// # Errors
    /// If a draft model cannot be opened, or has another vocabulary.
    fn draft(&self, session: &Session, file: &ModelFile, tokenizer: &Tokenizer) -> Result<Option<DraftSource>> {
        self.draft.as_ref().map(|name| DraftSource::open(session, name, file, tokenizer)).transpose()
    }

    /// Makes the model one for so many positions as shall be kept.
    pub(crate) fn reach(&self, file: &mut ModelFile) {
        if let Some(n) = self.context {
            file.reach(n as usize);
        }
    }

    /// Positions to keep.
    fn context(&self, session: &Session, file: &ModelFile) -> usize {
        let most = file.model().longest;
        match self.context.map(|n| n as usize) {
            Some(n) if n > most => {
                session.output.note(&format!("note: the model was made for {most} positions: these are kept, not {n}"));
                most
            }
            Some(n) => n,
            None => file.model().context.min(DEFAULT_CONTEXT),
        }
    }
}

fn out_of_range(name: &str, value: i64) -> Error {
    Error::input(format!("`{name}` is {value}, where 0 or more is possible, or -1 for no limit"))
}

/// The models of a conversation.
pub(crate) struct Models {
    runtime: Runtime,
    draft: Option<LoadedDraft>,
    draft_tokens: usize,
    context: usize,
}

impl Models {
    /// A conversation with them.
    pub(crate) fn generation<'a>(&'a self, tokenizer: &'a Tokenizer) -> Result<Generation<'a>> {
        let mut generation = Generation::new(&self.runtime, tokenizer, self.context);
        if let Some(draft) = &self.draft {
            draft.serve(&mut generation, self.draft_tokens)?;
        }
        Ok(generation)
    }
}

/// What was made, and how many of the prompt's tokens had to be run for it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) made: Generated,
    prompt_tokens: usize,
}

/// Prints what a model says, as it says it.
pub(crate) struct Speaker<'a> {
    session: &'a Session,
    model: &'a Path,
    sampling: Sampling,
    limits: Limits,
    draft: Option<DraftSource>,
    draft_tokens: usize,
    /// Positions that are kept.
    pub(crate) context: usize,
    /// Whether the model was made for more positions than are kept.
    pub(crate) can_hold_more: bool,
}

impl<'a> Speaker<'a> {
    /// A speaker with these options for this model.
    ///
    /// # Errors
    /// Names the field that is out of range.
    pub(crate) fn new(
        session: &'a Session,
        options: &GenerationOptions,
        file: &'a ModelFile,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let (checkpoint, context) = (file.checkpoint(), options.context(session, file));
        Ok(Self {
            session,
            model: checkpoint.path(),
            sampling: options.sampling(checkpoint)?,
            limits: options.limits(checkpoint, tokenizer)?,
            draft: options.draft(session, file, tokenizer)?,
            draft_tokens: usize::from(options.draft_tokens),
            context,
            can_hold_more: context < file.model().longest,
        })
    }

    /// Loads the weights of the model `file`, and of the one that drafts.
    pub(crate) fn load(&mut self, file: &ModelFile) -> Result<Models> {
        let team = self.session.team();
        let draft = self.draft.take().map(|d| d.load(self.session, &team)).transpose()?;
        let runtime = loading::runtime_on(self.session, file, ArithmeticName::Fast, team)?;
        Ok(Models { runtime, draft, draft_tokens: self.draft_tokens, context: self.context })
    }

    /// Makes the text after `prompt` and prints it as it becomes certain; says when the end of the context is near.
    pub(crate) fn answer(&self, generation: &mut Generation<'_>, prompt: &[u32]) -> Result<Answer> {
        let (session, context) = (self.session, self.context);
        session.check_stop()?;
        let room = context.saturating_sub(prompt.len());
        let mut has_warned = self.limits.max_tokens.is_some_and(|n| n <= room);
        let known = generation.seen().iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let (mut used, mut failure) = (prompt.len(), None);
        let made = generation.run(prompt, self.sampling, &self.limits, &mut |text| {
            used += 1;
            let left = context.saturating_sub(used);
            if !has_warned && left * 20 < context {
                has_warned = true;
                session.output.note(&format!("\nnote: {left} of the context's {context} positions are left"));
            }
            if let Err(e) = session.output.text(text) {
                failure = Some(e);
            }
            failure.is_none() && !session.is_asked_to_stop()
        });
        match failure {
            Some(e) => Err(e),
            None => Ok(Answer {
                made: made.map_err(|e| e.file(self.model))?,
                prompt_tokens: prompt.len() - known.min(prompt.len().saturating_sub(1)),
            }),
        }
    }
}

impl Answer {
    /// The keys of `run` and `chat`.
    pub(crate) fn object(&self) -> Value {
        json!({
            "text": self.made.text,
            "ids": self.made.ids,
            "finish_reason": self.made.finish.name(),
            "prompt_tokens": self.prompt_tokens,
            "prompt_tokens_per_second": self.prompt_tokens_per_second(),
            "tokens_per_second": self.tokens_per_second(),
            "drafted": self.made.drafts.map(|d| d.drafted),
            "accepted": self.made.drafts.map(|d| d.accepted),
        })
    }

    /// One line for people.
    pub(crate) fn summary(&self) -> String {
        let rate = |r: Option<f64>| r.map(|r| format!(" ({r:.1} a second)")).unwrap_or_default();
        let why = match self.made.finish {
            Finish::Stop => "the model ended the text, or a stop string came",
            Finish::Length => "the limit of tokens or the end of the context",
            Finish::Interrupted => "interrupted",
        };
        let drafts = |d: Drafts| format!(", {} of {} drafted accepted", d.accepted, d.drafted);
        format!(
            "[{} tokens read{}, {} made{}{}; {why}]",
            self.prompt_tokens,
            rate(self.prompt_tokens_per_second()),
            self.made.ids.len(),
            rate(self.tokens_per_second()),
            self.made.drafts.map(drafts).unwrap_or_default()
        )
    }

    fn prompt_tokens_per_second(&self) -> Option<f64> {
        per_second(self.prompt_tokens, self.made.prompt_seconds)
    }

    /// The first token comes with the prompt.
    fn tokens_per_second(&self) -> Option<f64> {
        per_second(self.made.ids.len().saturating_sub(1), self.made.seconds)
    }
}

fn per_second(tokens: usize, seconds: f64) -> Option<f64> {
    (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
}
