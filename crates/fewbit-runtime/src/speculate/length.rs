use crate::Runtime;

/// What drafts of each length cost, the step that verifies them included, in steps of the model with one token.
#[derive(Clone, Debug)]
pub(crate) struct Costs(Vec<f64>);

/// The arithmetic of one row more in a step, beside the bytes that it reads.
const ROW: f64 = 0.15;

impl Costs {
    /// Of at most `most` tokens, made by `draft` (`None`: for nothing): a step takes as long as its weights take to be
    /// read, and more rows ask for more experts.
    pub(crate) fn of(target: &Runtime, draft: Option<&Runtime>, most: usize) -> Self {
        let read = target.weight_bytes(1).max(1) as f64;
        let step_of_draft = draft.map_or(0.0, |d| d.weight_bytes(1) as f64 / read);
        let cost = |n| target.weight_bytes(n + 1) as f64 / read + n as f64 * (ROW + step_of_draft);
        Self((0..=most).map(cost).collect())
    }
}

/// How often drafted tokens were accepted lately.
///
/// It depends on the text alone, not on time: the same seed gives the same text.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Record {
    accepted: f64,
    tried: f64,
}

impl Record {
    /// How much of the past counts after one more draft, and where none was made: the less, the sooner one is tried again.
    const MEMORY: f64 = 0.85;
    const MEMORY_AT_REST: f64 = 0.97;

    /// A draft, and how many tokens of its beginning were accepted; those behind the first that was not tell nothing.
    pub(crate) fn add(&mut self, drafted: usize, accepted: usize) {
        let memory = if drafted == 0 { Self::MEMORY_AT_REST } else { Self::MEMORY };
        self.accepted = memory * self.accepted + accepted as f64;
        self.tried = memory * self.tried + drafted.min(accepted + 1) as f64;
    }

    /// The share that is expected to be accepted: one half, before anything is known.
    fn share(&self) -> f64 {
        (self.accepted + 1.0) / (self.tried + 2.0)
    }

    /// Tokens to draft, `most` at most, so that most are made in the time: `n` drafted tokens give `Σ αⁱ, i = 0…n` on
    /// average (Leviathan et al. 2023, equation 1).
    pub(crate) fn length(&self, most: usize, costs: &Costs) -> usize {
        let share = self.share();
        let (mut best, mut length) = (0.0, 0);
        let (mut made, mut power) = (0.0, 1.0);
        for (n, cost) in costs.0.iter().enumerate().take(most + 1) {
            made += power;
            power *= share;
            if made / cost > best {
                (best, length) = (made / cost, n);
            }
        }
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear(per_token: f64) -> Costs {
        Costs((0..=16).map(|n| 1.0 + f64::from(n) * per_token).collect())
    }

    #[test]
    fn what_is_accepted_makes_drafts_longer_and_what_is_not_ends_them() {
        let costs = &linear(0.2);
        let mut record = Record::default();
        assert!((1..4).contains(&record.length(16, costs)));
        for _ in 0..20 {
            record.add(8, 8);
        }
        assert!(record.length(16, costs) >= 8, "{record:?}");
        assert_eq!(record.length(3, costs), 3);
        for _ in 0..30 {
            record.add(8, 0);
        }
        assert_eq!(record.length(16, costs), 0, "{record:?}");
        let idle = (0..1000).position(|_| {
            record.add(0, 0);
            record.length(16, costs) > 0
        });
        assert!(idle.is_some_and(|n| n < 200), "{idle:?}");
    }

    #[test]
    fn drafts_that_cost_too_much_are_not_made() {
        let mut record = Record::default();
        (0..50).for_each(|_| record.add(4, 4));
        assert_eq!(record.length(8, &linear(1.0)), 0);
    }
}
