//! Activations rounded to 8 bits: per token and span of columns, symmetric, to nearest even, codes in `−127..=127`.

use std::ops::Range;

use fewbit_format::ActivationFormat;

use super::super::packed::BLOCK;

/// Below this magnitude a span counts as zero: its scale's inverse would not be finite.
const LEAST: f32 = 1e-30;

/// Rounded activations of some tokens, kept for the next call.
#[derive(Debug, Default)]
pub(super) struct Activations {
    /// `[tokens][blocks · 32]`.
    codes: Vec<i8>,
    /// `[tokens][spans]`.
    scales: Vec<f32>,
    /// Sum of a group's rounded values, `[tokens][groups]`.
    sums: Vec<f32>,
    /// The columns whose code is −128, where −127 stands, `[tokens]`.
    lows: Vec<Vec<u32>>,
    width: usize,
    spans: usize,
    groups: usize,
}

/// One token of [`Activations`].
#[derive(Clone, Copy)]
pub(super) struct Token<'a> {
    pub(super) codes: &'a [i8],
    pub(super) scales: &'a [f32],
    pub(super) sums: &'a [f32],
}

/// Some tokens of [`Activations`], one behind the other.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a> {
    all: &'a Activations,
    first: usize,
    count: usize,
}

impl<'a> Tokens<'a> {
    pub(super) fn len(self) -> usize {
        self.count
    }

    #[inline(always)]
    pub(super) fn get(self, t: usize) -> Token<'a> {
        self.all.token(self.first + t)
    }
}

/// One token, to be written.
pub(super) struct TokenMut<'a> {
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
    lows: &'a mut Vec<u32>,
}

impl Activations {
    /// Makes place for `tokens` of `cols` columns in spans of `span`, as many as `group_spans` of them in a group.
    pub(super) fn resize(&mut self, tokens: usize, cols: usize, span: usize, group_spans: usize) {
        self.width = cols.div_ceil(BLOCK) * BLOCK;
        self.spans = self.width / span;
        self.groups = self.spans.div_ceil(group_spans);
        let (spans, groups) = (tokens * self.spans, tokens * self.groups);
        if self.codes.len() < tokens * self.width {
            self.codes.resize(tokens * self.width, 0);
        }
        if self.lows.len() < tokens {
            self.lows.resize(tokens, Vec::new());
        }
        if self.scales.len() < spans {
            self.scales.resize(spans, 0.0);
        }
        if self.sums.len() < groups {
            self.sums.resize(groups, 0.0);
        }
    }

    #[inline(always)]
    pub(super) fn token(&self, t: usize) -> Token<'_> {
        Token {
            codes: &self.codes[t * self.width..][..self.width],
            scales: &self.scales[t * self.spans..][..self.spans],
            sums: &self.sums[t * self.groups..][..self.groups],
        }
    }

    /// Columns of a token whose code is one less than what is there.
    #[inline]
    pub(super) fn lows(&self, t: usize) -> &[u32] {
        &self.lows[t]
    }

    pub(super) fn tokens(&self, tokens: Range<usize>) -> Tokens<'_> {
        Tokens { all: self, first: tokens.start, count: tokens.len() }
    }

    /// All tokens, to be written in any order.
    pub(super) fn tokens_mut(&mut self, tokens: usize) -> impl Iterator<Item = TokenMut<'_>> {
        let codes = self.codes.chunks_exact_mut(self.width.max(1));
        let scales = self.scales.chunks_exact_mut(self.spans.max(1));
        let sums = self.sums.chunks_exact_mut(self.groups.max(1));
        let parts = codes.zip(scales).zip(sums).zip(&mut self.lows).take(tokens);
        parts.map(|(((codes, scales), sums), lows)| TokenMut { codes, scales, sums, lows })
    }
}

/// Rounds one token, whose columns stand in the order of the codes, span by span.
#[inline(always)]
pub(super) fn round_spans<const S: usize>(
    x: &[f32],
    group_spans: usize,
    to: &mut TokenMut<'_>,
    round_span: impl Fn(&[f32; S], &mut [i8; S]) -> (f32, i32),
) {
    to.lows.clear();
    to.sums.fill(0.0);
    let (whole, rest) = x.as_chunks::<S>();
    let (codes, _) = to.codes.as_chunks_mut::<S>();
    let mut spans = codes.iter_mut().zip(&mut *to.scales).enumerate();
    for group in &mut *to.sums {
        for (i, (codes, to)) in spans.by_ref().take(group_spans) {
            let (scale, sum) = if let Some(x) = whole.get(i) {
                round_span(x, codes)
            } else {
                let mut padded = [0.0; S];
                if i == whole.len() {
                    padded[..rest.len()].copy_from_slice(rest);
                }
                round_span(&padded, codes)
            };
            *to = scale;
            *group += scale * sum as f32;
        }
    }
}

/// What a span is divided by, if it is not zero and all of it is finite; `most` are the bits of its greatest magnitude.
/// Magnitudes of floats are ordered as their bits are; whatever is not finite is above all others.
///
/// # Errors
/// With the scale of a span whose codes are zeros: of one with a value that is not finite it is NaN, so that it shows.
#[inline(always)]
pub(super) fn greatest(most: u32) -> Result<f32, f32> {
    let most = f32::from_bits(most);
    if (LEAST..=f32::MAX).contains(&most) { Ok(most) } else { Err(if most < LEAST { 0.0 } else { f32::NAN }) }
}

/// Codes of a span, its scale and the sum of the codes.
pub(super) fn round_span<const S: usize>(x: &[f32; S], codes: &mut [i8; S]) -> (f32, i32) {
    let most = match greatest(x.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff))) {
        Ok(most) => most,
        Err(scale) => {
            codes.fill(0);
            return (scale, 0);
        }
    };
    let inverse = 127.0 / most;
    let mut sum = 0;
    for (code, v) in codes.iter_mut().zip(x) {
        let q = (v * inverse).round_ties_even() as i32;
        *code = q as i8;
        sum += q;
    }
    (most / 127.0, sum)
}

/// Rounds one token as a format of integers says, under one scale, in groups of `group` columns.
///
/// The code −128 is kept as −127 and the column noted, since kernels turn signs around.
#[inline(always)]
pub(super) fn round_as(format: &ActivationFormat, x: &[f32], group: usize, to: &mut TokenMut<'_>) {
    to.lows.clear();
    let Some(params) = format.params(x) else {
        to.codes.fill(0);
        to.scales.fill(f32::NAN);
        to.sums.fill(f32::NAN);
        return;
    };
    let (codes, padding) = to.codes.split_at_mut(x.len());
    padding.fill(0);
    for (code, v) in codes.iter_mut().zip(x) {
        *code = format.code(*v, params).unwrap_or(0.0) as i8;
    }
    for (c, code) in codes.iter_mut().enumerate().filter(|(_, code)| **code == i8::MIN) {
        *code = -127;
        to.lows.push(c as u32);
    }
    to.scales.fill(params.0);
    for (to, codes) in to.sums.iter_mut().zip(to.codes.chunks(group)) {
        let sum: i32 = codes.iter().map(|q| i32::from(*q)).sum();
        *to = params.0 * sum as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(x: &[f32], span: usize, to: &mut TokenMut<'_>) {
        if span == 16 { round_spans::<16>(x, 2, to, round_span) } else { round_spans::<32>(x, 2, to, round_span) }
    }

    #[test]
    fn rounds_to_nearest_even_within_half_a_step() {
        let x: Vec<f32> = (0..70).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        for span in [16, 32] {
            let mut a = Activations::default();
            a.resize(1, x.len(), span, 2);
            a.tokens_mut(1).for_each(|mut t| round(&x, span, &mut t));
            let t = a.token(0);
            assert_eq!(t.codes.len(), 96);
            for (c, q) in t.codes.iter().enumerate() {
                let (v, s) = (x.get(c).copied().unwrap_or(0.0), t.scales[c / span]);
                assert!((f32::from(*q) * s - v).abs() <= s * 0.501 && *q > -128);
                assert_eq!(f32::from(*q), if s > 0.0 { (v * (1.0 / s)).round_ties_even() } else { 0.0 });
            }
            for (k, codes) in t.codes.chunks(2 * span).enumerate() {
                let of_span = |(i, codes): (usize, &[i8])| {
                    t.scales[2 * k + i] * codes.iter().map(|q| i32::from(*q)).sum::<i32>() as f32
                };
                assert_eq!(t.sums[k], codes.chunks(span).enumerate().map(of_span).sum::<f32>());
            }
        }
    }

    #[test]
    fn what_is_not_finite_shows_and_what_is_tiny_is_zero() {
        let mut a = Activations::default();
        a.resize(1, 96, 32, 1);
        let mut x = vec![1.0; 96];
        x[3] = f32::INFINITY;
        x[32..64].fill(1e-39);
        a.tokens_mut(1).for_each(|mut t| round_spans::<32>(&x, 1, &mut t, round_span));
        let t = a.token(0);
        assert!(
            t.scales[0].is_nan() && t.scales[1] == 0.0 && t.codes[..64].iter().all(|q| *q == 0) && t.codes[64] == 127
        );
    }
}
