use std::cmp::Ordering;

use fewbit_kernel::elementwise::{block_maxima, exp_sums};

/// Values whose greatest, or whose sum, is known: what cannot matter is passed over by as many.
const BLOCK: usize = 64;

/// Weights of the tokens that may come next; a token's probability is its share of their sum.
#[derive(Clone, Debug, Default)]
pub struct Distribution {
    /// Ascending; empty where there is a weight for each token of the vocabulary.
    ids: Vec<u32>,
    weights: Vec<f32>,
    /// Of each `BLOCK` weights.
    sums: Vec<f64>,
    total: f64,
    order: Vec<(f32, u32)>,
}

impl Distribution {
    /// The probability of a token.
    pub fn probability(&self, id: u32) -> f64 {
        let at = if self.ids.is_empty() { Some(id as usize) } else { self.ids.binary_search(&id).ok() };
        at.and_then(|at| self.weights.get(at)).map_or(0.0, |w| f64::from(*w) / self.total)
    }

    /// The token at which the sum of probabilities, in the order of the ids, exceeds `uniform`, a number in `[0, 1)`.
    pub fn draw(&self, uniform: f64) -> u32 {
        let mut left = uniform * self.total;
        for (b, sum) in self.sums.iter().enumerate() {
            if left >= *sum {
                left -= sum;
                continue;
            }
            let from = b * BLOCK;
            for at in from..(from + BLOCK).min(self.weights.len()) {
                left -= f64::from(self.weights[at]);
                if left < 0.0 {
                    return self.id(at);
                }
            }
        }
        // Sums in another order may fall short by a rounding.
        self.id(self.weights.iter().rposition(|w| *w > 0.0).unwrap_or(0))
    }

    /// `(p − q)₊`, from which a token is drawn where one drawn from `q` was refused (Leviathan et al. 2023, algorithm 1);
    /// whether anything is left.
    pub fn subtract(&mut self, q: &Self) -> bool {
        let (of_p, of_q) = (1.0 / self.total, 1.0 / q.total);
        let mut next = 0;
        for at in 0..self.weights.len() {
            let id = self.id(at);
            let taken = if q.ids.is_empty() {
                q.weights.get(id as usize)
            } else {
                next += q.ids[next..].iter().take_while(|i| **i < id).count();
                q.ids.get(next).filter(|i| **i == id).map(|_| &q.weights[next])
            };
            let taken = taken.map_or(0.0, |w| f64::from(*w) * of_q);
            self.weights[at] = (f64::from(self.weights[at]) * of_p - taken).max(0.0) as f32;
        }
        self.sum();
        self.total > 0.0
    }

    /// All weight of a token is taken away: `(p − q)₊` where `q` is certain of it; whether anything is left.
    pub fn remove(&mut self, id: u32) -> bool {
        let at = if self.ids.is_empty() { Ok(id as usize) } else { self.ids.binary_search(&id) };
        if let Ok(at) = at
            && at < self.weights.len()
        {
            self.weights[at] = 0.0;
            let from = at / BLOCK * BLOCK;
            let block = &self.weights[from..(from + BLOCK).min(self.weights.len())];
            self.sums[at / BLOCK] = block.iter().map(|w| f64::from(*w)).sum();
            self.total = self.sums.iter().sum();
        }
        self.total > 0.0
    }

    /// Certainty.
    pub(crate) fn point(&mut self, id: u32) {
        self.ids.clear();
        self.ids.push(id);
        self.weights.clear();
        self.weights.push(1.0);
        self.sum();
    }

    /// `e^((logit − top) · factor)` for each token; the sum.
    pub(crate) fn all(&mut self, logits: &[f32], top: f32, factor: f32) -> f64 {
        self.ids.clear();
        self.weights.clear();
        self.weights.extend_from_slice(logits);
        self.weigh(top, factor)
    }

    /// The tokens whose logits are `floor` or more; the logits stand in place of their weights until they are
    /// [weighed](Self::weigh).
    pub(crate) fn gather(&mut self, logits: &[f32], maxima: &Maxima, floor: f32) {
        self.ids.clear();
        self.weights.clear();
        for (b, block) in logits.chunks(BLOCK).enumerate() {
            if maxima.values[b] < floor {
                continue;
            }
            for (i, l) in block.iter().enumerate() {
                if *l >= floor {
                    self.ids.push((b * BLOCK + i) as u32);
                    self.weights.push(*l);
                }
            }
        }
    }

    /// Of what was gathered, the `count` greatest; of equals the lower ids.
    pub(crate) fn keep_most(&mut self, count: usize) {
        if count < self.ids.len() {
            self.fill_order();
            let border = *self.order.select_nth_unstable_by(count - 1, descending).1;
            self.keep_to(border);
        }
    }

    /// Logits become `e^((logit − top) · factor)`; the sum.
    pub(crate) fn weigh(&mut self, top: f32, factor: f32) -> f64 {
        self.sums.resize(self.weights.len().div_ceil(BLOCK), 0.0);
        exp_sums(&mut self.weights, top, factor, BLOCK, &mut self.sums);
        self.total = self.sums.iter().sum();
        self.total
    }

    /// The fewest of what was gathered whose weights reach `sum` together, all if they do not; of equals the lower ids.
    ///
    /// Halves, the greater values and the others, until few are left: only those are sorted.
    pub(crate) fn keep_sum(&mut self, sum: f64) {
        const FEW: usize = 16;
        self.fill_order();
        let (mut from, mut to, mut left) = (0, self.order.len(), sum);
        while to - from > FEW {
            let half = (to - from) / 2;
            self.order[from..to].select_nth_unstable_by(half, descending);
            let sum: f64 = self.order[from..from + half].iter().map(|c| f64::from(c.0)).sum();
            if sum >= left {
                to = from + half;
            } else {
                left -= sum;
                from += half;
            }
        }
        let few = &mut self.order[from..to];
        few.sort_unstable_by(descending);
        let reaches = |c: &&(f32, u32)| {
            left -= f64::from(c.0);
            left <= 0.0
        };
        if let Some(border) = few.iter().find(reaches).or(few.last()).copied() {
            self.keep_to(border);
        }
    }

    fn id(&self, at: usize) -> u32 {
        self.ids.get(at).copied().unwrap_or(at as u32)
    }

    fn fill_order(&mut self) {
        self.order.clear();
        self.order.extend(self.weights.iter().copied().zip(self.ids.iter().copied()));
    }

    /// Drops what comes after `border` in descending order.
    fn keep_to(&mut self, border: (f32, u32)) {
        let mut kept = 0;
        for at in 0..self.ids.len() {
            let entry = (self.weights[at], self.ids[at]);
            if descending(&entry, &border).is_le() {
                (self.weights[kept], self.ids[kept]) = entry;
                kept += 1;
            }
        }
        self.ids.truncate(kept);
        self.weights.truncate(kept);
        self.sum();
    }

    fn sum(&mut self) {
        self.sums.clear();
        self.sums.extend(self.weights.chunks(BLOCK).map(|b| b.iter().map(|w| f64::from(*w)).sum::<f64>()));
        self.total = self.sums.iter().sum();
    }
}

/// The greater first; of equals the lower id, so that nothing depends on how they are sorted.
fn descending(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The greatest of each block of a row of logits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Maxima {
    values: Vec<f32>,
    order: Vec<f32>,
}

impl Maxima {
    /// Looks at the logits; the token with the greatest, the lowest of equals.
    pub(crate) fn find(&mut self, logits: &[f32]) -> u32 {
        self.values.resize(logits.len().div_ceil(BLOCK), 0.0);
        block_maxima(logits, BLOCK, &mut self.values);
        let mut best = 0;
        for (b, v) in self.values.iter().enumerate() {
            if *v > self.values[best] {
                best = b;
            }
        }
        let block = logits.chunks(BLOCK).nth(best).unwrap_or_default();
        let within = block.iter().position(|l| *l == self.values[best]).unwrap_or(0);
        (best * BLOCK + within) as u32
    }

    /// A number that at least `count` logits reach, if the blocks tell one.
    pub(crate) fn reached_by(&mut self, count: usize) -> f32 {
        if count > self.values.len() {
            return f32::NEG_INFINITY;
        }
        self.order.clone_from(&self.values);
        *self.order.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
    }
}
