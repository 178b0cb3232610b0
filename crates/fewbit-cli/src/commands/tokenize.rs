use std::path::Path;

use clap::Args;
use fewbit_format::Result;
use fewbit_runtime::language;
use fewbit_store::{Checkpoint, Gguf};
use fewbit_text::{Special, Tokenizer};
use serde_json::json;

use crate::bundled::resolve_model;
use crate::session::Session;

/// Show the ids of a text, with the tokens that the model's own rule puts around it
///
/// Control tokens in the text are recognised. JSON: ids, pieces.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit tokenize demo 'Once upon a time'")]
pub(crate) struct Tokenize {
    /// Folder, GGUF file, `owner/name` of the Hugging Face hub, or `demo`
    model: String,
    /// The text
    #[arg(allow_hyphen_values = true)]
    text: String,
}

impl Tokenize {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let tokenizer = tokenizer(&resolve_model(session, &self.model)?)?;
        let ids = tokenizer.encode(&self.text, Special::ParsedWithBos)?;
        let pieces: Vec<String> = ids.iter().map(|id| tokenizer.piece(*id)).collect();
        for (id, piece) in ids.iter().zip(&pieces) {
            session.output.line(&format!("{id:>7}  {piece}"))?;
        }
        session.output.object(&json!({ "ids": ids, "pieces": pieces }))
    }
}

/// The tokenizer of a model, also of a GGUF file of an architecture that is not run.
fn tokenizer(model: &Path) -> Result<Tokenizer> {
    Checkpoint::open(model).and_then(|checkpoint| language::tokenizer_of(&checkpoint)).or_else(|error| {
        let vocabulary = Gguf::open(model).and_then(|gguf| language::tokenizer_of_gguf(&gguf));
        vocabulary.map_err(|_| error)
    })
}
