use std::io::{BufRead, IsTerminal};
use std::sync::atomic::Ordering;

use clap::Args;
use fewbit_format::{Error, Kind, Result};
use fewbit_runtime::{Finish, Generation, language};
use fewbit_text::{ChatTemplate, Message, Special, Tokenizer};
use serde_json::{Map, Value, json};

use crate::adapters::Adapters;
use crate::generation::{Answer, GenerationOptions, Speaker};
use crate::interrupt;
use crate::session::Session;

/// Talk with a model, line by line
///
/// /reset forgets the conversation, /exit (or the end of the input) ends it; Ctrl-C stops an answer.
///
/// JSON: text, ids, finish_reason, prompt_tokens, prompt_tokens_per_second, tokens_per_second, drafted, accepted of the last
/// answer, and messages (all since the last /reset); error where one ended the conversation.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit chat demo --system 'You tell stories to children.'")]
pub(crate) struct Chat {
    /// Folder, GGUF file, `owner/name` of the Hugging Face hub, or `demo`
    model: String,
    #[command(flatten)]
    adapters: Adapters,
    /// The system's message, before all others
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    system: Option<String>,
    #[command(flatten)]
    generation: GenerationOptions,
}

impl Chat {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let mut file = self.adapters.model_file(session, &self.model)?;
        self.generation.reach(&mut file);
        let checkpoint = file.checkpoint();
        let tokenizer = language::tokenizer_of(checkpoint)?;
        let template = language::chat_template_of(checkpoint, &tokenizer)?;
        let mut speaker = Speaker::new(session, &self.generation, &file, &tokenizer)?;
        let models = speaker.load(&file)?;
        let mut conversation = Conversation {
            session,
            tokenizer: &tokenizer,
            template,
            generation: models.generation(&tokenizer)?,
            speaker,
            opening: self.system.iter().map(|s| Message::new("system", s)).collect(),
            messages: Vec::new(),
            last: None,
        };
        let result = conversation.talk();
        let mut object = conversation.object();
        if let Err(e) = &result
            && e.kind() != Kind::Interrupted
        {
            object["error"] = json!(e.to_string());
        }
        session.output.object(&object)?;
        result
    }
}

/// What was said so far.
struct Conversation<'a> {
    session: &'a Session,
    tokenizer: &'a Tokenizer,
    template: ChatTemplate,
    generation: Generation<'a>,
    speaker: Speaker<'a>,
    opening: Vec<Message>,
    messages: Vec<Message>,
    last: Option<Answer>,
}

impl Conversation<'_> {
    fn talk(&mut self) -> Result<()> {
        let is_terminal = std::io::stdin().is_terminal();
        if is_terminal {
            self.session.output.note("/reset forgets the conversation, /exit ends it, Ctrl-C stops an answer");
        }
        while let Some(line) = self.next_line(is_terminal)? {
            match line.trim() {
                "" => {}
                "/exit" => break,
                "/reset" => {
                    self.messages.clear();
                    self.generation.reset();
                    self.session.output.note("the conversation is forgotten");
                }
                command if command.starts_with('/') && !command.contains(char::is_whitespace) => {
                    self.session.output.note(&format!("`{command}` is unknown; there are /reset and /exit"));
                }
                _ => self.reply(&line, is_terminal)?,
            }
        }
        Ok(())
    }

    /// One line of the user; `None` at the end of the input.
    fn next_line(&self, is_terminal: bool) -> Result<Option<String>> {
        if is_terminal {
            self.session.output.text("> ")?;
        }
        let mut line = String::new();
        let read = interrupt::while_waiting(|| std::io::stdin().lock().read_line(&mut line));
        let read =
            read.map_err(|e| Error::input(format!("reading stdin failed: {e}")).hint("give lines of UTF-8 text"))?;
        if read == 0 {
            return Ok(None);
        }
        let line = line.trim_end_matches(['\n', '\r']).to_owned();
        if !is_terminal {
            // Both streams together are a transcript.
            self.session.output.note(&format!("> {line}"));
        }
        Ok(Some(line))
    }

    fn reply(&mut self, line: &str, is_terminal: bool) -> Result<()> {
        self.messages.push(Message::new("user", line));
        let all: Vec<Message> = self.opening.iter().chain(&self.messages).cloned().collect();
        let ids = self.tokenizer.encode(&self.template.render(&all, true, Map::new())?, Special::Parsed)?;
        if ids.len() >= self.speaker.context {
            self.messages.pop();
            let larger = if self.speaker.can_hold_more {
                ", a shorter line, or start again with a larger --context"
            } else {
                " or a shorter line"
            };
            self.session.output.note(&format!(
                "the conversation has {} tokens with this line, and the context holds {}: go on with /reset{larger}",
                ids.len(),
                self.speaker.context
            ));
            return Ok(());
        }
        let answer = self.speaker.answer(&mut self.generation, &ids)?;
        self.session.output.text("\n")?;
        self.messages.push(Message::new("assistant", &*answer.made.text));
        let finish = answer.made.finish;
        if is_terminal {
            self.session.output.note(&answer.summary());
        }
        self.last = Some(answer);
        if finish == Finish::Interrupted {
            if !is_terminal {
                return Err(Error::interrupted("interrupted; the conversation up to here is printed"));
            }
            // The answer has stopped: the next Ctrl-C counts from the beginning.
            self.session.stop.store(false, Ordering::SeqCst);
        }
        Ok(())
    }

    fn object(&self) -> Value {
        let nothing = || {
            json!({
                "text": "", "ids": [], "finish_reason": null, "prompt_tokens": 0,
                "prompt_tokens_per_second": null, "tokens_per_second": null, "drafted": null, "accepted": null,
            })
        };
        let mut object = self.last.as_ref().map_or_else(nothing, Answer::object);
        let messages = self.opening.iter().chain(&self.messages);
        object["messages"] = messages.map(|m| json!({ "role": m.role, "content": m.content })).collect();
        object
    }
}
