//! Likelihoods of given texts: what tasks are scored by.

use fewbit_format::{Error, Result};
use fewbit_runtime::Runtime;
use fewbit_text::{Special, Tokenizer};

use crate::{forward, row};

/// The likelihood of one continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct ChoiceScore {
    /// Its tokens after the context.
    pub ids: Vec<u32>,
    /// Log-probability of all of them, in nats.
    pub logprob: f64,
    /// Whether each of them is the likeliest.
    pub is_greedy: bool,
}

/// Log-probabilities of continuations of a context.
///
/// Context and continuation are encoded together, and the tokens after those of the context alone are scored. Spaces at
/// the end of the context go to the continuation, so that `"a " + "b"` scores as `"a" + " b"`. Without a BOS rule an
/// empty context is BOS or EOS; what exceeds the model's context is cut from the left.
///
/// # Errors
/// If a continuation is empty, or the model cannot run.
pub fn choice_logprobs(
    model: &Runtime,
    tokenizer: &Tokenizer,
    context: &str,
    continuations: &[&str],
) -> Result<Vec<ChoiceScore>> {
    let stem = context.trim_end_matches(' ');
    let spaces = &context[stem.len()..];
    let context_tokens = ids_of(tokenizer, stem)?.len();
    let score = |continuation: &&str| {
        if continuation.is_empty() {
            return Err(Error::input("a continuation is empty").hint("give each choice some text"));
        }
        let ids = ids_of(tokenizer, &format!("{stem}{spaces}{continuation}"))?;
        // A token over the seam belongs to the continuation.
        let first = context_tokens.min(ids.len().saturating_sub(1));
        choice(model, &ids, first)
    };
    continuations.iter().map(score).collect()
}

/// A text's ids, never without one before the text.
fn ids_of(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(text, Special::Plain)?;
    let front = match (tokenizer.adds_bos(), text.is_empty()) {
        (true, _) => tokenizer.bos(),
        (false, true) => tokenizer.bos().or(tokenizer.eos()),
        (false, false) => None,
    };
    ids.splice(0..0, front);
    Ok(ids)
}

fn choice(model: &Runtime, ids: &[u32], first: usize) -> Result<ChoiceScore> {
    let cut = ids.len().saturating_sub(model.model().context);
    if first <= cut {
        return Err(Error::input(format!("a continuation of {} tokens has no context", ids.len() - first))
            .hint("give a context, or shorter choices"));
    }
    let (fed, first) = (&ids[cut..], first - cut);
    let (mut logprob, mut is_greedy) = (0.0, true);
    for_rows(model, fed, first, &mut |logits, target| {
        logprob -= row::nll(logits, target);
        is_greedy &= row::is_greatest(logits, target);
    })?;
    Ok(ChoiceScore { ids: fed[first..].to_vec(), logprob, is_greedy })
}

/// The log-probability of each id given those before it, in nats; the first has none.
///
/// # Errors
/// If there are more ids than the model's context, or an id that it does not know.
pub fn token_logprobs(model: &Runtime, ids: &[u32]) -> Result<Vec<Option<f64>>> {
    let mut all = vec![None; ids.len().min(1)];
    if ids.len() > 1 {
        for_rows(model, ids, 1, &mut |logits, target| all.push(Some(-row::nll(logits, target))))?;
    }
    Ok(all)
}

/// Calls `each` with the logits before every id from `first` (at least 1) on, and that id.
fn for_rows(model: &Runtime, ids: &[u32], first: usize, each: &mut dyn FnMut(&[f32], u32)) -> Result<()> {
    let residual = forward::residual(model, ids)?;
    for rows in forward::steps(first - 1..ids.len() - 1, model.model().vocabulary) {
        let logits = forward::logits(model, &residual, rows.clone())?;
        for r in rows.clone() {
            each(logits.row(r - rows.start), ids[r + 1]);
        }
    }
    Ok(())
}
