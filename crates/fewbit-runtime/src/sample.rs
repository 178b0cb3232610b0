use fewbit_format::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

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
#[derive(Debug)]
pub struct Sampler {
    settings: Sampling,
    random: ChaCha8Rng,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler with these settings.
    ///
    /// # Errors
    /// If a setting is out of range.
    pub fn new(settings: Sampling) -> Result<Self> {
        settings.check()?;
        Ok(Self { settings, random: ChaCha8Rng::seed_from_u64(settings.seed), candidates: Vec::new() })
    }

    /// The next token under `logits [vocabulary]`; `seen` are the tokens so far.
    pub fn choose(&mut self, logits: &mut [f32], seen: &[u32]) -> u32 {
        self.penalise(logits, seen);
        let s = self.settings;
        let best = argmax(logits);
        if s.temperature < 1e-6 || s.top_k == 1 {
            return best;
        }
        let peak = logits[best as usize];
        let weight = |l: f32| ((l - peak) / s.temperature).exp();
        let least = s.min_p;
        self.candidates.clear();
        self.candidates.extend(
            logits.iter().enumerate().map(|(i, l)| (weight(*l), i as u32)).filter(|(p, _)| *p >= least && *p > 0.0),
        );
        // Ties go to the lower id, so that the order never depends on the sort.
        let by_weight = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if s.top_k > 0 && s.top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(s.top_k - 1, by_weight);
            self.candidates.truncate(s.top_k);
        }
        if s.top_p < 1.0 {
            self.candidates.sort_unstable_by(by_weight);
            let total: f64 = self.candidates.iter().map(|c| f64::from(c.0)).sum();
            let mut sum = 0.0;
            let keep = self.candidates.iter().position(|c| {
                sum += f64::from(c.0);
                sum >= f64::from(s.top_p) * total
            });
            self.candidates.truncate(keep.map_or(self.candidates.len(), |k| k + 1));
        } else {
            self.candidates.sort_unstable_by_key(|c| c.1);
        }
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.0)).sum();
        let mut left = self.random.random::<f64>() * total;
        for (p, id) in &self.candidates {
            left -= f64::from(*p);
            if left < 0.0 {
                return *id;
            }
        }
        best
    }

    fn penalise(&self, logits: &mut [f32], seen: &[u32]) {
        let by = self.settings.repetition_penalty;
        if by == 1.0 {
            return;
        }
        let mut ids: Vec<u32> = seen.to_vec();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            if let Some(l) = logits.get_mut(id as usize) {
                *l = if *l > 0.0 { *l / by } else { *l * by };
            }
        }
    }
}

/// The index of the largest value; the lowest of equals.
fn argmax(values: &[f32]) -> u32 {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(settings: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(settings).unwrap();
        (0..n).map(|_| sampler.choose(&mut logits.to_vec(), &[])).collect()
    }

    #[test]
    fn zero_tiny_and_top_k_one_are_greedy() {
        let logits = [0.1, 2.0, 1.9];
        for s in [
            Sampling::default(),
            Sampling { temperature: 1e-9, ..Sampling::default() },
            Sampling { temperature: 5.0, top_k: 1, ..Sampling::default() },
        ] {
            assert_eq!(draw(s, &logits, 20), vec![1; 20]);
        }
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let settings = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
        let drawn = draw(settings, &[0.0, f32::ln(3.0)], 4000);
        let ones = drawn.iter().filter(|i| **i == 1).count();
        assert!((2850..3150).contains(&ones), "{ones} of 4000");
    }

    #[test]
    fn top_p_zero_keeps_one_and_bounds_are_refused_by_name() {
        let settings = Sampling { temperature: 1.0, top_p: 0.0, ..Sampling::default() };
        assert_eq!(draw(settings, &[1.0, 1.5, 1.2], 10), vec![1; 10]);
        let bad = Sampling { top_p: 1.5, ..settings };
        assert_eq!(Sampler::new(bad).unwrap_err().to_string(), "`top_p` is 1.5, where 0 to 1 is possible");
    }
}
