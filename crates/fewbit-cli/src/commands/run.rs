use std::io::Read;
use std::time::Instant;

use clap::Args;
use fewbit_format::{Error, Result};
use fewbit_runtime::{Finish, language};
use fewbit_store::Checkpoint;
use fewbit_text::{Message, Special, Tokenizer};
use serde_json::{Map, json};

use crate::adapters::Adapters;
use crate::generation::{GenerationOptions, Speaker};
use crate::interrupt;
use crate::session::Session;

/// Continue a prompt, or answer it
///
/// A model with a chat template gets the prompt as a user's message. The text comes on stdout as it is made.
///
/// JSON: text, ids, finish_reason (`stop`, `length`, `interrupted`), prompt_tokens, prompt_tokens_per_second,
/// tokens_per_second, drafted, accepted (null without `--draft`), load_seconds.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit run demo --raw --prompt 'Once upon a time' --max-tokens 50 --temperature 0")]
pub(crate) struct Run {
    /// Folder, GGUF file, `owner/name` of the Hugging Face hub, or `demo`
    model: String,
    #[command(flatten)]
    adapters: Adapters,
    /// The prompt; `-`: all of stdin, less the end of its last line
    #[arg(long, value_name = "T|-", allow_hyphen_values = true)]
    prompt: String,
    /// Continue the prompt as it is, also where the model has a chat template
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    generation: GenerationOptions,
}

impl Run {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let begun = Instant::now();
        let mut file = self.adapters.model_file(session, &self.model)?;
        self.generation.reach(&mut file);
        let checkpoint = file.checkpoint();
        let tokenizer = language::tokenizer_of(checkpoint)?;
        let mut speaker = Speaker::new(session, &self.generation, &file, &tokenizer)?;
        let ids = self.prompt_ids(checkpoint, &tokenizer)?;
        let models = speaker.load(&file)?;
        let load_seconds = begun.elapsed().as_secs_f64();
        let answer = speaker.answer(&mut models.generation(&tokenizer)?, &ids)?;
        if !answer.made.text.ends_with('\n') {
            session.output.text("\n")?;
        }
        let mut object = answer.object();
        object["load_seconds"] = json!(load_seconds);
        session.output.object(&object)?;
        session.output.note(&answer.summary());
        match answer.made.finish {
            Finish::Interrupted => Err(Error::interrupted("interrupted; the text up to here is printed")),
            Finish::Stop | Finish::Length => Ok(()),
        }
    }

    fn prompt_ids(&self, checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let prompt = if self.prompt == "-" { stdin_text()? } else { self.prompt.clone() };
        if self.raw || language::chat_template_source(checkpoint)?.is_none() {
            return tokenizer.encode(&prompt, Special::ParsedWithBos);
        }
        let template = language::chat_template_of(checkpoint, tokenizer)?;
        let rendered = template.render(&[Message::new("user", prompt)], true, Map::new());
        tokenizer.encode(&rendered.map_err(|e| e.file(checkpoint.path()))?, Special::Parsed)
    }
}

fn stdin_text() -> Result<String> {
    let mut text = String::new();
    let read = interrupt::while_waiting(|| std::io::stdin().lock().read_to_string(&mut text));
    read.map_err(|e| Error::input(format!("reading the prompt from stdin failed: {e}")).hint("give UTF-8 text"))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}
