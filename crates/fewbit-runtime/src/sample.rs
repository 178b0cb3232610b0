use fewbit_format::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Seen;
use crate::distribution::{Distribution, Maxima};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 (or below 1e-6): the most probable token. Else logits are divided by it.
    pub temperature: f32,
    /// Keep the `top_k` most probable; 0: all.
    pub top_k: usize,
    /// Keep the fewest tokens whose probabilities reach it, at least one; 1: all.
    pub top_p: f32,
    /// Drop tokens less probable than this share of the most probable; 0: none.
    pub min_p: f32,
    /// Divide positive and multiply negative logits of tokens seen (Keskar et al. 2019); 1: nothing.
    pub repetition_penalty: f32,
    /// Of the generator.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Whether the most probable token is always the next.
    pub fn is_greedy(&self) -> bool {
        self.temperature < 1e-6 || self.top_k == 1
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the field that is out of range.
    pub fn check(&self) -> Result<()> {
        let refuse = |name: &str, value: f32, range: &str| {
            Err(Error::input(format!("`{name}` is {value}, where {range} is possible")))
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return refuse("temperature", self.temperature, "0 or more");
        }
        if !(0.0..=1.0).contains(&self.top_p) {
            return refuse("top_p", self.top_p, "0 to 1");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min_p", self.min_p, "0 to 1");
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return refuse("repetition_penalty", self.repetition_penalty, "a positive number");
        }
        Ok(())
    }
}

/// Chooses tokens; the same seed and logits give the same tokens.
///
/// Settings apply in this order, each to what the one before left: repetition penalty, temperature, `min_p`, `top_k`,
/// `top_p`. A vocabulary is looked at in blocks, and only tokens that may be kept are compared; nothing is allocated once
/// the buffers have grown.
#[derive(Debug)]
pub struct Sampler {
    settings: Sampling,
    random: ChaCha8Rng,
    maxima: Maxima,
    kept: Distribution,
}

impl Sampler {
    /// A sampler with these settings.
    ///
    /// # Errors
    /// If a setting is out of range.
    pub fn new(settings: Sampling) -> Result<Self> {
        settings.check()?;
        let random = ChaCha8Rng::seed_from_u64(settings.seed);
        Ok(Self { settings, random, maxima: Maxima::default(), kept: Distribution::default() })
    }

    /// The next token under `logits [vocabulary]`, after the tokens `seen`.
    pub fn choose(&mut self, logits: &mut [f32], seen: &Seen) -> u32 {
        if self.settings.is_greedy() {
            self.penalise(logits, seen);
            return self.maxima.find(logits);
        }
        let mut kept = std::mem::take(&mut self.kept);
        let id = self.choose_from(logits, seen, &mut kept);
        self.kept = kept;
        id
    }

    /// The next token, and what it was drawn from.
    pub fn choose_from(&mut self, logits: &mut [f32], seen: &Seen, from: &mut Distribution) -> u32 {
        self.fill(logits, seen, from);
        from.draw(self.random.random())
    }

    /// The next token where `drafted` was drawn from `draft` (`None`: it was certain): `drafted`, with probability
    /// `min(1, p / q)`, or another token. What comes out is distributed as by [`Self::choose`], whatever the draft
    /// (Leviathan et al. 2023, theorem A.1; Chen et al. 2023, theorem 1).
    pub fn verify(&mut self, logits: &mut [f32], seen: &Seen, drafted: u32, draft: Option<&Distribution>) -> u32 {
        if self.settings.is_greedy() {
            return self.choose(logits, seen);
        }
        let mut p = std::mem::take(&mut self.kept);
        self.fill(logits, seen, &mut p);
        let q = draft.map_or(1.0, |q| q.probability(drafted));
        let is_accepted = self.random.random::<f64>() * q < p.probability(drafted);
        let is_something_left = !is_accepted
            && match draft {
                None => p.remove(drafted),
                Some(q) => p.subtract(q),
            };
        // Refused and nothing left: `p` is `q` but for roundings.
        let id = if is_something_left { p.draw(self.random.random()) } else { drafted };
        self.kept = p;
        id
    }

    /// The distribution of the next token after all settings.
    fn fill(&mut self, logits: &mut [f32], seen: &Seen, kept: &mut Distribution) {
        self.penalise(logits, seen);
        let s = self.settings;
        let best = self.maxima.find(logits);
        if s.is_greedy() {
            return kept.point(best);
        }
        let (top, factor) = (logits[best as usize], 1.0 / s.temperature);
        let logit_of = |weight: f32| top + s.temperature * weight.ln();
        let is_counted = (1..logits.len()).contains(&s.top_k);
        if s.min_p > 0.0 || is_counted {
            let mut floor = if s.min_p > 0.0 { logit_of(s.min_p) } else { f32::NEG_INFINITY };
            if is_counted {
                floor = floor.max(self.maxima.reached_by(s.top_k));
            }
            kept.gather(logits, &self.maxima, floor);
            if is_counted {
                kept.keep_most(s.top_k);
            }
            let total = kept.weigh(top, factor);
            if s.top_p < 1.0 {
                kept.keep_sum(f64::from(s.top_p) * total);
            }
            return;
        }
        let total = kept.all(logits, top, factor);
        if s.top_p < 1.0 {
            let enough = f64::from(s.top_p) * total;
            // All that weigh less than this do not make up the rest together; 1 % for roundings.
            let least = 0.99 * (total - enough) / logits.len() as f64;
            // Most often a few tokens are enough.
            let mut bound = total / 256.0;
            loop {
                kept.gather(logits, &self.maxima, logit_of(bound.max(least) as f32));
                if kept.weigh(top, factor) >= enough || bound <= least {
                    break;
                }
                bound /= 16.0;
            }
            kept.keep_sum(enough);
        }
    }

    fn penalise(&self, logits: &mut [f32], seen: &Seen) {
        let by = self.settings.repetition_penalty;
        if by == 1.0 {
            return;
        }
        for id in seen.distinct() {
            if let Some(l) = logits.get_mut(id as usize) {
                *l = if *l > 0.0 { *l / by } else { *l * by };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draw(settings: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(settings).unwrap();
        (0..n).map(|_| sampler.choose(&mut logits.to_vec(), &Seen::default())).collect()
    }

    fn text(ids: &[u32]) -> Seen {
        let mut seen = Seen::default();
        seen.become_text(ids);
        seen
    }

    /// The probabilities by the definition of each setting, on the whole sorted vocabulary.
    fn plain(logits: &[f32], s: Sampling, seen: &[u32]) -> Vec<f64> {
        let mut all: Vec<(f32, usize)> = logits.iter().copied().zip(0..).collect();
        for (l, id) in &mut all {
            if seen.contains(&(*id as u32)) {
                *l = if *l > 0.0 { *l / s.repetition_penalty } else { *l * s.repetition_penalty };
            }
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut p = vec![0.0; logits.len()];
        if s.is_greedy() {
            p[all[0].1] = 1.0;
            return p;
        }
        let weight = |l: f32| (f64::from(l - all[0].0) / f64::from(s.temperature)).exp();
        let mut kept: Vec<(f64, usize)> = all.iter().map(|(l, id)| (weight(*l), *id)).collect();
        kept.retain(|(w, _)| *w >= f64::from(s.min_p));
        kept.truncate(if s.top_k == 0 { kept.len() } else { s.top_k });
        let enough = f64::from(s.top_p) * kept.iter().map(|k| k.0).sum::<f64>();
        let (mut sum, mut count) = (0.0, 0);
        while count < kept.len() && (count == 0 || sum < enough || s.top_p == 1.0) {
            sum += kept[count].0;
            count += 1;
        }
        for (w, id) in &kept[..count] {
            p[*id] = w / sum;
        }
        p
    }

    /// Whether `counts` may come from `p`: Pearson's statistic within five deviations of its mean.
    fn is_drawn_from(counts: &[usize], p: &[f64]) -> bool {
        let n: f64 = counts.iter().sum::<usize>() as f64;
        let mut freedom = -1.0;
        let mut statistic = 0.0;
        for (c, p) in counts.iter().zip(p) {
            if *p == 0.0 {
                if *c > 0 {
                    return false;
                }
                continue;
            }
            freedom += 1.0;
            statistic += (*c as f64 - n * p).powi(2) / (n * p);
        }
        statistic < freedom + 5.0 * (2.0 * f64::max(freedom, 1.0)).sqrt()
    }

    fn settings() -> impl Strategy<Value = Sampling> {
        let top_k = prop_oneof![Just(0), 1..20usize, 1..500usize];
        let top_p = prop_oneof![Just(1.0_f32), Just(0.0), 0.01..0.999_f32];
        let min_p = prop_oneof![Just(0.0_f32), Just(1.0), 0.001..0.7_f32];
        let penalty = prop_oneof![Just(1.0_f32), 0.7..1.6_f32];
        (0.05..4.0_f32, top_k, top_p, min_p, penalty).prop_map(|(temperature, top_k, top_p, min_p, penalty)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty: penalty,
            seed: 1,
        })
    }

    proptest! {
        /// Eighths give ties, which go to the lower id.
        #[test]
        fn probabilities_are_those_of_the_definition(
            eighths in prop::collection::vec(-80i32..80, 1..700),
            s in settings(),
            seen in prop::collection::vec(0u32..700, 0..30),
        ) {
            let logits: Vec<f32> = eighths.iter().map(|e| *e as f32 / 8.0).collect();
            let mut from = Distribution::default();
            let mut sampler = Sampler::new(s).unwrap();
            sampler.choose_from(&mut logits.clone(), &text(&seen), &mut from);
            for (id, want) in plain(&logits, s, &seen).iter().enumerate() {
                let got = from.probability(id as u32);
                prop_assert!((got - want).abs() < 1e-5 * want + 1e-30, "{id}: {got}, {want}, {s:?}");
            }
        }
    }

    #[test]
    fn a_large_vocabulary_is_no_exception() {
        let logits: Vec<f32> = (0..50_001).map(|i| (i as f32 * 0.377).sin() * 6.0 + (i % 97) as f32 * 0.01).collect();
        let base = Sampling { temperature: 0.8, ..Sampling::default() };
        for s in [
            base,
            Sampling { top_k: 40, ..base },
            Sampling { top_k: 4000, ..base },
            Sampling { top_p: 0.9, ..base },
            Sampling { top_k: 200, top_p: 0.7, min_p: 0.05, ..base },
            Sampling { min_p: 0.3, ..base },
        ] {
            let mut from = Distribution::default();
            Sampler::new(s).unwrap().choose_from(&mut logits.clone(), &Seen::default(), &mut from);
            let want = plain(&logits, s, &[]);
            let apart: f64 = want.iter().enumerate().map(|(i, w)| (from.probability(i as u32) - w).abs()).sum();
            assert!(apart < 2e-5, "{s:?}: {apart}");
            // What is drawn is kept.
            for id in draw(s, &logits, 50) {
                assert!(want[id as usize] > 0.0);
            }
        }
    }

    #[test]
    fn zero_tiny_and_top_k_one_are_greedy() {
        let logits = [0.1, 2.0, 1.9, 2.0];
        for s in [
            Sampling::default(),
            Sampling { temperature: 1e-9, ..Sampling::default() },
            Sampling { temperature: 5.0, top_k: 1, ..Sampling::default() },
        ] {
            assert_eq!(draw(s, &logits, 20), vec![1; 20]);
        }
    }

    #[test]
    fn frequencies_follow_the_definition() {
        let logits: Vec<f32> = (0..150).map(|i| (i as f32 * 0.9).cos() * 2.0).collect();
        let base = Sampling { temperature: 0.9, seed: 3, ..Sampling::default() };
        for s in [base, Sampling { top_k: 7, ..base }, Sampling { top_p: 0.5, repetition_penalty: 1.3, ..base }] {
            let mut counts = vec![0; logits.len()];
            draw(s, &logits, 40_000).iter().for_each(|id| counts[*id as usize] += 1);
            assert!(is_drawn_from(&counts, &plain(&logits, s, &[])), "{s:?}");
        }
    }

    #[test]
    fn top_p_zero_keeps_one_and_bounds_are_refused_by_name() {
        let settings = Sampling { temperature: 1.0, top_p: 0.0, ..Sampling::default() };
        assert_eq!(draw(settings, &[1.0, 1.5, 1.2], 10), vec![1; 10]);
        let bad = Sampling { top_p: 1.5, ..settings };
        assert_eq!(Sampler::new(bad).unwrap_err().to_string(), "`top_p` is 1.5, where 0 to 1 is possible");
    }

    /// Drafted by another distribution, or with certainty, tokens come as often as without a draft.
    #[test]
    fn verified_drafts_are_distributed_as_the_model() {
        let target = [0.5_f32, 1.4, -0.3, 0.9, -1.0, 0.2];
        let drafting = [1.5_f32, -0.2, 0.4, 0.8, 0.1, -2.0];
        let seen = text(&[3]);
        let base = Sampling { temperature: 0.8, seed: 5, ..Sampling::default() };
        for s in [
            base,
            Sampling { top_k: 4, ..base },
            Sampling { top_p: 0.8, repetition_penalty: 1.5, ..base },
            Sampling { min_p: 0.3, ..base },
            Sampling { temperature: 0.0, ..base },
        ] {
            let want = plain(&target, s, seen.ids());
            let (mut drawn, mut certain) = ([0; 6], [0; 6]);
            let (mut sampler, mut from) = (Sampler::new(s).unwrap(), Distribution::default());
            let mut accepted = 0;
            for _ in 0..60_000 {
                let id = sampler.choose_from(&mut drafting.clone(), &seen, &mut from);
                let got = sampler.verify(&mut target.clone(), &seen, id, Some(&from));
                accepted += usize::from(id == got);
                drawn[got as usize] += 1;
                certain[sampler.verify(&mut target.clone(), &seen, 1, None) as usize] += 1;
            }
            assert!(is_drawn_from(&drawn, &want), "{s:?}: {drawn:?}, {want:?}");
            assert!(is_drawn_from(&certain, &want), "{s:?}: {certain:?}, {want:?}");
            // As often as can be: one less the total variation (Leviathan et al. 2023, theorem 3.5).
            let q = plain(&drafting, s, seen.ids());
            let overlap: f64 = want.iter().zip(&q).map(|(p, q)| p.min(*q)).sum();
            assert!((accepted as f64 / 60_000.0 - overlap).abs() < 0.01, "{s:?}: {accepted}, {overlap}");
        }
    }

    #[test]
    fn a_draft_from_the_same_distribution_is_always_accepted() {
        let logits: Vec<f32> = (0..300).map(|i| (i as f32 * 0.9).cos() * 2.0).collect();
        for top_k in [0, 50] {
            let s = Sampling { temperature: 1.0, top_k, ..Sampling::default() };
            let (mut sampler, mut from) = (Sampler::new(s).unwrap(), Distribution::default());
            for _ in 0..500 {
                let id = sampler.choose_from(&mut logits.clone(), &Seen::default(), &mut from);
                assert_eq!(sampler.verify(&mut logits.clone(), &Seen::default(), id, Some(&from)), id);
            }
        }
    }
}
