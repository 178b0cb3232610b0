//! Where tokens are drafted for speculative decoding.

use std::sync::Arc;

use fewbit_format::{Error, Result};
use fewbit_kernel::Team;
use fewbit_runtime::{DraftLength, Drafter, Generation, Runtime, language};
use fewbit_store::ModelFile;
use fewbit_text::Tokenizer;

use crate::arguments::ArithmeticName;
use crate::loading;
use crate::session::Session;

/// The word that stands for lookup in the text so far.
const NGRAM: &str = "ngram";

/// What drafts, before weights are loaded.
pub(crate) enum DraftSource {
    Lookup,
    Model(Box<ModelFile>),
}

/// What drafts, ready to run.
pub(crate) enum LoadedDraft {
    Lookup,
    Model(Box<Runtime>),
}

impl DraftSource {
    /// What the option names; a model must have the vocabulary of `target`.
    ///
    /// # Errors
    /// If the model cannot be opened, or its ids mean other tokens.
    pub(crate) fn open(session: &Session, name: &str, target: &ModelFile, tokenizer: &Tokenizer) -> Result<Self> {
        if name == NGRAM {
            return Ok(Self::Lookup);
        }
        let file = loading::model_file(session, name)?;
        let tokenizer_of_draft = language::tokenizer_of(file.checkpoint())?;
        check_vocabulary(target, tokenizer, &file, &tokenizer_of_draft).map_err(|e| {
            e.place("the draft model")
                .hint("draft with a smaller model of the same family, or with `--draft ngram`")
                .file(file.checkpoint().path())
        })?;
        Ok(Self::Model(Box::new(file)))
    }

    /// Loads the weights.
    pub(crate) fn load(self, session: &Session, team: &Arc<Team>) -> Result<LoadedDraft> {
        Ok(match self {
            Self::Lookup => LoadedDraft::Lookup,
            Self::Model(file) => {
                let runtime = loading::runtime_on(session, &file, ArithmeticName::Fast, team.clone())?;
                LoadedDraft::Model(Box::new(runtime))
            }
        })
    }
}

impl LoadedDraft {
    /// Drafts for this conversation.
    pub(crate) fn serve<'a>(&'a self, generation: &mut Generation<'a>, tokens: usize) -> Result<()> {
        let drafter = match self {
            Self::Lookup => Drafter::Lookup,
            Self::Model(runtime) => Drafter::Model(runtime),
        };
        generation.speculate(drafter, DraftLength::Adaptive(tokens))
    }
}

/// Whether every id is the same token in both models.
fn check_vocabulary(target: &ModelFile, of_target: &Tokenizer, draft: &ModelFile, of_draft: &Tokenizer) -> Result<()> {
    let sizes = [draft, target].map(|f| f.model().vocabulary);
    if sizes[0] != sizes[1] {
        return Err(Error::input(format!("has a vocabulary of {}, the model one of {}", sizes[0], sizes[1])));
    }
    let last = of_target.max_id().max(of_draft.max_id());
    match (0..=last).find(|id| of_target.piece(*id) != of_draft.piece(*id)) {
        None => Ok(()),
        Some(id) => {
            Err(Error::input(format!("has `{}` for id {id}, the model `{}`", of_draft.piece(id), of_target.piece(id))))
        }
    }
}
