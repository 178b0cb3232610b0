//! Speculative decoding (Leviathan et al. 2023; Chen et al. 2023): cheap guesses at the next tokens, which the model
//! looks at all at once.
//!
//! While a model generates, its weights are read from memory once for each token; a few rows more cost little. What is
//! generated is distributed as without: [`Sampler::verify`] keeps a drafted token or replaces it.

mod length;
mod lookup;

use fewbit_format::{Error, Result};

use crate::distribution::Distribution;
use crate::reader::Reader;
use crate::{Runtime, Sampler, Seen};
use length::{Costs, Record};

/// Where drafts come from.
#[derive(Clone, Copy)]
pub enum Drafter<'a> {
    /// What followed the last tokens where they occurred before, in the prompt or in the answer.
    Lookup,
    /// A smaller model of the same vocabulary.
    Model(&'a Runtime),
}

/// How many tokens are drafted at a time, where as many are still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftLength {
    /// Always as many.
    Fixed(usize),
    /// As many as pay, by what was accepted so far and by what a draft costs; at most these.
    Adaptive(usize),
}

/// What became of drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafts {
    /// Tokens that were drafted.
    pub drafted: usize,
    /// Of these, the ones that are in the text.
    pub accepted: usize,
}

/// Drafts tokens.
pub(crate) struct Speculation<'a> {
    /// `None`: lookup.
    model: Option<Reader<'a>>,
    length: DraftLength,
    costs: Costs,
    record: Record,
    draft: Draft,
    /// Of the text that is being made.
    drafts: Drafts,
}

/// Tokens that were drafted after a text.
#[derive(Default)]
pub(crate) struct Draft {
    ids: Vec<u32>,
    /// What each was drawn from, where it was drawn; there may be more of them, to be used again.
    drawn_from: Vec<Distribution>,
    is_drawn: bool,
}

impl Draft {
    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The token for this place and what it was drawn from (`None`: it was certain).
    pub(crate) fn get(&self, place: usize) -> Option<(u32, Option<&Distribution>)> {
        let from = self.drawn_from.get(place).filter(|_| self.is_drawn);
        self.ids.get(place).map(|id| (*id, from))
    }
}

impl<'a> Speculation<'a> {
    /// Drafts for the model of `target`.
    ///
    /// # Errors
    /// If the drafting model has another vocabulary.
    pub(crate) fn new(target: &Reader<'_>, drafter: Drafter<'a>, length: DraftLength) -> Result<Self> {
        let draft = match drafter {
            Drafter::Lookup => None,
            Drafter::Model(draft) => Some(draft),
        };
        if let Some(draft) = draft {
            let [of_target, of_draft] = [target.runtime(), draft].map(|r| r.model().vocabulary);
            if of_target != of_draft {
                return Err(Error::input(format!(
                    "the draft model has a vocabulary of {of_draft}, the model one of {of_target}"
                ))
                .hint("draft with a smaller model of the same family, or by lookup"));
            }
        }
        let (DraftLength::Fixed(most) | DraftLength::Adaptive(most)) = length;
        let costs = Costs::of(target.runtime(), draft, most);
        let model = draft.map(|d| Reader::new(d, target.capacity().min(d.model().context)));
        Ok(Self { model, length, costs, record: Record::default(), draft: Draft::default(), drafts: Drafts::default() })
    }

    /// Begins a text; reads the prompt, so that the first draft does not have to.
    pub(crate) fn begin(&mut self, prompt: &[u32]) -> Result<()> {
        self.draft.ids.clear();
        self.drafts = Drafts::default();
        match &mut self.model {
            Some(reader) if prompt.len() <= reader.capacity() => reader.read(prompt, 1).map_err(of_draft),
            _ => Ok(()),
        }
    }

    /// Drafts at most `room` tokens that may follow what was seen.
    pub(crate) fn propose(&mut self, seen: &mut Seen, room: usize, sampler: &mut Sampler) -> Result<()> {
        self.draft.ids.clear();
        let count = match self.length {
            DraftLength::Fixed(count) => count.min(room),
            DraftLength::Adaptive(most) => self.record.length(most.min(room), &self.costs),
        };
        match &mut self.model {
            None => lookup::continue_text(seen.ids(), count, &mut self.draft.ids),
            Some(reader) => draw(reader, seen, count, sampler, &mut self.draft)?,
        }
        self.drafts.drafted += self.draft.ids.len();
        Ok(())
    }

    /// The draft in hand.
    pub(crate) fn draft(&self) -> &Draft {
        &self.draft
    }

    /// Of the draft in hand the first `accepted` tokens were, and no more.
    pub(crate) fn learn(&mut self, accepted: usize) {
        self.record.add(self.draft.ids.len(), accepted);
        self.drafts.accepted += accepted;
    }

    /// The text ends after `accepted` tokens of the draft in hand; what became of all its drafts.
    pub(crate) fn finish(&mut self, accepted: usize) -> Drafts {
        self.draft.ids.clear();
        self.drafts.accepted += accepted;
        std::mem::take(&mut self.drafts)
    }
}

/// The draft model writes on, under the same settings and with the penalty of what it wrote.
fn draw(
    reader: &mut Reader<'_>,
    seen: &mut Seen,
    count: usize,
    sampler: &mut Sampler,
    draft: &mut Draft,
) -> Result<()> {
    let before = seen.ids().len();
    draft.is_drawn = true;
    for place in 0..count.min((reader.capacity() + 1).saturating_sub(before)) {
        reader.read(seen.ids(), 1).map_err(of_draft)?;
        if draft.drawn_from.len() == place {
            draft.drawn_from.push(Distribution::default());
        }
        let id = sampler.choose_from(reader.logits(0), seen, &mut draft.drawn_from[place]);
        draft.ids.push(id);
        seen.push(id);
    }
    seen.truncate(before);
    Ok(())
}

fn of_draft(e: Error) -> Error {
    e.place("the draft model")
}
