use std::ops::Range;

use smallvec::{SmallVec, smallvec};

/// Consecutive positions of one sequence within a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Position of the first token in its sequence.
    pub start: usize,
    /// Tokens.
    pub len: usize,
}

/// Rows that are computed together: spans of sequences, one after the other.
///
/// What a row becomes does not depend on what else is in the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    spans: SmallVec<[Span; 1]>,
}

impl Batch {
    /// A batch of these spans.
    pub fn new(spans: Vec<Span>) -> Self {
        Self { spans: spans.into() }
    }

    /// `count` whole sequences of `len` tokens.
    pub fn sequences(count: usize, len: usize) -> Self {
        Self::new(vec![Span { start: 0, len }; count])
    }

    /// One sequence's positions `start..start + len`.
    pub fn one(start: usize, len: usize) -> Self {
        Self { spans: smallvec![Span { start, len }] }
    }

    /// The spans in order.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Rows in all.
    pub fn tokens(&self) -> usize {
        self.spans.iter().map(|s| s.len).sum()
    }

    /// Each span with its rows in the batch.
    pub fn rows(&self) -> impl Iterator<Item = (Span, Range<usize>)> {
        let mut at = 0;
        self.spans.iter().map(move |s| {
            at += s.len;
            (*s, at - s.len..at)
        })
    }

    /// Position of every row.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        self.spans.iter().flat_map(|s| s.start..s.start + s.len)
    }
}
