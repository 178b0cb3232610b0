use std::ops::Range;

use fewbit_format::{Error, Result};
use fewbit_text::Tokenizer;
use sha2::{Digest, Sha256};

/// What is fed to the model, and which tokens are scored.
///
/// BOS is the token that the model's own rule puts before a text, if it puts one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Consecutive blocks, each behind BOS, every token scored; without BOS the first token of a block is not.
    Blocks,
    /// Overlapping windows, one every `stride` tokens (half the length by default), BOS before the text only; every
    /// token is scored once, with the longest context.
    Strided {
        /// Tokens from one window to the next.
        stride: Option<usize>,
    },
    /// Consecutive windows, the first token of each replaced by BOS, the second half scored, as `llama-perplexity` does.
    LlamaCpp,
}

/// One window: a range of the text's ids, perhaps behind BOS, of which the last `scored` are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// In the ids of the text.
    pub ids: Range<usize>,
    /// Whether BOS is fed before them.
    pub has_bos: bool,
    /// How many of the last ids are scored.
    pub scored: usize,
}

/// A text's ids in windows, with the rule that made them.
#[derive(Clone, Debug)]
pub struct Windows {
    ids: Vec<u32>,
    /// For each id the byte of the text at which it ends.
    ends: Vec<usize>,
    bos: Option<u32>,
    all: Vec<Window>,
    rule: String,
    notes: Vec<String>,
}

/// Cuts `text` into windows of at most `length` tokens by the model's own rule for BOS; the first `blocks` of them.
///
/// # Errors
/// If nothing is left to score, or the length or the stride is out of range.
pub fn windows(
    tokenizer: &Tokenizer,
    text: &str,
    protocol: Protocol,
    length: usize,
    blocks: Option<usize>,
) -> Result<Windows> {
    // llama.cpp drops one newline at the end of a file that it reads.
    let text = if protocol == Protocol::LlamaCpp { text.strip_suffix('\n').unwrap_or(text) } else { text };
    if text.trim().is_empty() {
        return Err(Error::input("the text holds nothing but white space: 0 tokens to score").hint("give a text"));
    }
    let (ids, ends) = tokenizer.encode_with_ends(text)?;
    let bos = tokenizer.adds_bos().then(|| tokenizer.bos()).flatten();
    Windows::new(ids, ends, bos, protocol, length, blocks)
}

/// Each text alone, behind `bos` if there is one, cut to `length` tokens, every token that has a context scored.
///
/// # Errors
/// If nothing is left to score.
pub fn documents(tokenizer: &Tokenizer, texts: &[&str], bos: Option<u32>, length: usize) -> Result<Windows> {
    check_length(length)?;
    let (mut ids, mut ends, mut all) = (Vec::new(), Vec::new(), Vec::new());
    let front = usize::from(bos.is_some());
    let (mut bytes, mut cut) = (0, 0);
    for text in texts {
        let (of_text, of_ends) = tokenizer.encode_with_ends(text)?;
        let taken = of_text.len().min(length - front);
        let start = ids.len();
        cut += usize::from(taken < of_text.len());
        ends.extend(of_ends[..taken].iter().map(|e| bytes + e));
        bytes = ends.last().copied().unwrap_or(bytes);
        ids.extend_from_slice(&of_text[..taken]);
        let scored = (taken + front).saturating_sub(1);
        if scored > 0 {
            all.push(Window { ids: start..start + taken, has_bos: bos.is_some(), scored });
        }
    }
    let rule = match bos {
        Some(id) => format!("each of {} texts alone behind BOS (id {id}), every token scored", all.len()),
        None => format!("each of {} texts alone without BOS, the first token not scored", all.len()),
    };
    let notes = if cut > 0 { vec![format!("{cut} of the texts are cut to {length} tokens")] } else { Vec::new() };
    Windows { ids, ends, bos, all, rule, notes }.checked()
}

impl Windows {
    /// Cuts `ids`, which end at the bytes `ends` of their text, into windows of at most `length` tokens.
    ///
    /// # Errors
    /// As [`windows`].
    pub fn new(
        ids: Vec<u32>,
        ends: Vec<usize>,
        bos: Option<u32>,
        protocol: Protocol,
        length: usize,
        blocks: Option<usize>,
    ) -> Result<Self> {
        check_length(length)?;
        if blocks == Some(0) {
            return Err(Error::input("0 blocks hold no token to score").hint("give `--blocks` a number from 1 on"));
        }
        debug_assert_eq!(ids.len(), ends.len());
        let all = match protocol {
            Protocol::Blocks => in_blocks(ids.len(), bos.is_some(), length),
            Protocol::Strided { stride } => strided(ids.len(), bos.is_some(), length, stride_of(stride, length)?),
            Protocol::LlamaCpp => halves(ids.len(), bos.is_some(), length)?,
        };
        let mut this = Self { rule: rule(protocol, bos, length), ids, ends, bos, all, notes: Vec::new() };
        this.note(length, blocks);
        this.all.truncate(blocks.unwrap_or(usize::MAX));
        this.checked()
    }

    /// Says where less is scored than was asked for.
    fn note(&mut self, length: usize, blocks: Option<usize>) {
        let (got, whole) = (self.all.len(), self.ids.len() + usize::from(self.bos.is_some()));
        if let Some(asked) = blocks.filter(|n| *n > got) {
            self.notes.push(format!("{asked} windows were asked for, the text makes {got}"));
        }
        if whole < length && got > 0 {
            self.notes.push(format!("the text is shorter than one window: {whole} tokens instead of {length}"));
        }
        let end = self.all.last().map_or(0, |w| w.ids.end);
        if blocks.is_none_or(|n| n >= got) && end < self.ids.len() {
            self.notes.push(format!("the last {} tokens fill no window and are left out", self.ids.len() - end));
        }
    }

    fn checked(self) -> Result<Self> {
        if self.tokens() == 0 {
            return Err(Error::input(format!("the text has {} tokens, of which 0 can be scored", self.ids.len()))
                .hint("give a longer text"));
        }
        Ok(self)
    }

    /// What is fed and what is scored, as a sentence without a full stop.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// Where less is scored than was asked for, each a sentence without a full stop.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is no window.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The windows.
    pub fn all(&self) -> &[Window] {
        &self.all
    }

    /// The ids that are fed for window `i`, BOS included.
    pub fn fed(&self, i: usize) -> Vec<u32> {
        let w = &self.all[i];
        let bos = self.bos.filter(|_| w.has_bos);
        bos.into_iter().chain(self.ids[w.ids.clone()].iter().copied()).collect()
    }

    /// Tokens scored.
    pub fn tokens(&self) -> usize {
        self.all.iter().map(|w| w.scored).sum()
    }

    /// Tokens in the longest window.
    pub fn longest(&self) -> usize {
        self.all.iter().map(|w| w.ids.len() + usize::from(w.has_bos)).max().unwrap_or(0)
    }

    /// UTF-8 bytes of the text that the scored tokens of window `i` stand for.
    pub fn bytes(&self, i: usize) -> usize {
        let w = &self.all[i];
        let end_of = |tokens: usize| if tokens == 0 { 0 } else { self.ends[tokens - 1] };
        end_of(w.ids.end) - end_of(w.ids.end - w.scored)
    }

    /// A hash of everything that is fed and scored.
    pub(crate) fn hash(&self, into: &mut Sha256) {
        let mut number = |n: usize| into.update((n as u64).to_le_bytes());
        number(self.all.len());
        for (i, w) in self.all.iter().enumerate() {
            number(w.scored);
            let fed = self.fed(i);
            number(fed.len());
            for id in fed {
                number(id as usize);
            }
        }
    }
}

fn check_length(length: usize) -> Result<()> {
    if length < 2 {
        return Err(Error::input(format!("windows of {length} tokens leave nothing to score"))
            .hint("give `--length` a number from 2 on, usually 512 or 2048"));
    }
    Ok(())
}

fn stride_of(stride: Option<usize>, length: usize) -> Result<usize> {
    let stride = stride.unwrap_or(length / 2);
    if !(1..length).contains(&stride) {
        return Err(Error::input(format!("a stride of {stride} does not score every token in windows of {length}"))
            .hint(format!("choose one from 1 to {}", length - 1)));
    }
    Ok(stride)
}

/// `count` ids in blocks; one shorter block where they fill none.
fn in_blocks(count: usize, has_bos: bool, length: usize) -> Vec<Window> {
    let front = usize::from(has_bos);
    let step = length - front;
    let block =
        |start: usize, end: usize| Window { ids: start..end, has_bos, scored: (end - start + front).saturating_sub(1) };
    if count < step {
        return vec![block(0, count)];
    }
    (0..count / step).map(|i| block(i * step, (i + 1) * step)).collect()
}

fn strided(count: usize, has_bos: bool, length: usize, stride: usize) -> Vec<Window> {
    // Positions count BOS as the first token of the text.
    let front = usize::from(has_bos);
    let (whole, mut scored_to, mut all) = (count + front, 1, Vec::new());
    for start in (0..whole).step_by(stride) {
        let end = (start + length).min(whole);
        let ids = start.saturating_sub(front)..end - front;
        all.push(Window { ids, has_bos: has_bos && start == 0, scored: end.saturating_sub(scored_to) });
        scored_to = end;
        if end == whole {
            break;
        }
    }
    all
}

fn halves(count: usize, has_bos: bool, length: usize) -> Result<Vec<Window>> {
    let front = usize::from(has_bos);
    if count + front < length {
        return Err(Error::input(format!("the text has {} tokens, less than one window of {length}", count + front))
            .hint("give a longer text or a smaller `--length`, or use `--protocol blocks`"));
    }
    let window =
        |w: usize| Window { ids: w * length..(w + 1) * length - front, has_bos, scored: length - length / 2 - 1 };
    Ok((0..(count + front) / length).map(window).collect())
}

fn rule(protocol: Protocol, bos: Option<u32>, length: usize) -> String {
    match (protocol, bos) {
        (Protocol::Blocks, Some(id)) => {
            format!("consecutive blocks of {} tokens, each behind BOS (id {id}), every token scored", length - 1)
        }
        (Protocol::Blocks, None) => {
            format!("consecutive blocks of {length} tokens without BOS, the first of each not scored")
        }
        (Protocol::Strided { stride }, bos) => {
            let stride = stride.unwrap_or(length / 2);
            let bos = bos.map_or("without BOS".to_owned(), |id| format!("BOS (id {id}) before the text only"));
            format!(
                "windows of {length} tokens, one every {stride}, {bos}, each token scored once with the longest context"
            )
        }
        (Protocol::LlamaCpp, bos) => {
            let bos = bos.map_or("without BOS".to_owned(), |id| format!("the first of each replaced by BOS (id {id})"));
            let scored = length - length / 2 - 1;
            format!("consecutive windows of {length} tokens, {bos}, the last {scored} of each scored")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(count: usize, bos: bool, protocol: Protocol, length: usize, blocks: Option<usize>) -> Result<Windows> {
        let ids: Vec<u32> = (10..10 + count as u32).collect();
        let ends = (1..=count).map(|i| 3 * i).collect();
        Windows::new(ids, ends, bos.then_some(1), protocol, length, blocks)
    }

    fn fed(w: &Windows) -> Vec<(Vec<u32>, usize)> {
        (0..w.len()).map(|i| (w.fed(i), w.all()[i].scored)).collect()
    }

    #[test]
    fn blocks_behind_bos_score_every_token() {
        let w = cut(7, true, Protocol::Blocks, 4, None).unwrap();
        assert_eq!(fed(&w), [(vec![1, 10, 11, 12], 3), (vec![1, 13, 14, 15], 3)]);
        assert_eq!(w.notes(), ["the last 1 tokens fill no window and are left out"]);
        assert_eq!((w.tokens(), w.bytes(0), w.bytes(1)), (6, 9, 9));
    }

    #[test]
    fn blocks_without_bos_leave_out_the_first_token() {
        let w = cut(8, false, Protocol::Blocks, 4, Some(1)).unwrap();
        assert_eq!(fed(&w), [(vec![10, 11, 12, 13], 3)]);
        assert_eq!(w.bytes(0), 9);
        assert!(w.notes().is_empty());
    }

    #[test]
    fn strides_score_every_token_once() {
        for bos in [false, true] {
            for count in 2..30 {
                for length in 2..12 {
                    for stride in 1..length {
                        let w = cut(count, bos, Protocol::Strided { stride: Some(stride) }, length, None).unwrap();
                        let scored: Vec<u32> = (0..w.len())
                            .flat_map(|i| {
                                let fed = w.fed(i);
                                assert!(w.all()[i].scored < fed.len() && fed.len() <= length);
                                fed[fed.len() - w.all()[i].scored..].to_vec()
                            })
                            .collect();
                        let first = if bos { 10 } else { 11 };
                        assert_eq!(
                            scored,
                            (first..10 + count as u32).collect::<Vec<_>>(),
                            "{bos} {count} {length} {stride}"
                        );
                        let bytes: usize = (0..w.len()).map(|i| w.bytes(i)).sum();
                        assert_eq!(bytes, 3 * w.tokens());
                    }
                }
            }
        }
    }

    #[test]
    fn llama_cpp_replaces_the_first_token() {
        let w = cut(12, true, Protocol::LlamaCpp, 6, None).unwrap();
        assert_eq!(fed(&w), [(vec![1, 10, 11, 12, 13, 14], 2), (vec![1, 16, 17, 18, 19, 20], 2)]);
        let w = cut(12, false, Protocol::LlamaCpp, 6, None).unwrap();
        assert_eq!(fed(&w)[1], (vec![16, 17, 18, 19, 20, 21], 2));
        assert_eq!(cut(600, true, Protocol::LlamaCpp, 512, None).unwrap().tokens(), 255);
    }

    #[test]
    fn a_short_text_is_one_short_block_and_says_so() {
        let w = cut(9, true, Protocol::Blocks, 512, Some(128)).unwrap();
        assert_eq!(w.tokens(), 9);
        let notes = w.notes().join("; ");
        assert!(notes.contains("128 windows were asked for, the text makes 1"), "{notes}");
        assert!(notes.contains("10 tokens instead of 512"), "{notes}");
        assert_eq!(cut(9, true, Protocol::Strided { stride: None }, 512, None).unwrap().tokens(), 9);
        let e = cut(9, true, Protocol::LlamaCpp, 512, None).unwrap_err().to_string();
        assert!(e.contains("10 tokens, less than one window of 512"), "{e}");
    }

    #[test]
    fn nothing_to_score_is_refused() {
        assert!(cut(1, false, Protocol::Blocks, 512, None).unwrap_err().to_string().contains("0 can be scored"));
        assert!(cut(0, true, Protocol::Blocks, 512, None).is_err());
        assert!(cut(9, true, Protocol::Blocks, 1, None).is_err());
        assert!(cut(9, true, Protocol::Blocks, 8, Some(0)).is_err());
        assert!(cut(9, true, Protocol::Strided { stride: Some(8) }, 8, None).is_err());
        assert!(cut(9, false, Protocol::LlamaCpp, 2, None).is_err());
    }
}
