/// How the rate falls after the warm-up, to a share of its peak.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// It does not.
    Constant,
    /// In a straight line to `least · peak`.
    Linear {
        /// Share of the peak at the end.
        least: f32,
    },
    /// In half a wave of the cosine to `least · peak` (Loshchilov and Hutter 2017).
    Cosine {
        /// Share of the peak at the end.
        least: f32,
    },
}

/// The learning rate of each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Greatest rate.
    pub peak: f32,
    /// Steps in all.
    pub steps: u64,
    /// Steps in which the rate rises linearly; the last of them has the peak.
    pub warmup: u64,
    /// What comes then.
    pub decay: Decay,
}

impl Schedule {
    /// The rate of step `number`, from 1 to `steps`; the end's rate would be that of step `steps + 1`.
    pub fn rate(&self, number: u64) -> f32 {
        if number <= self.warmup {
            return self.peak * number as f32 / self.warmup as f32;
        }
        let length = self.steps.saturating_sub(self.warmup).max(1);
        let gone = ((number - self.warmup).saturating_sub(1) as f64 / length as f64).min(1.0);
        let share = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear { least } => 1.0 - gone * (1.0 - f64::from(least)),
            Decay::Cosine { least } => {
                let least = f64::from(least);
                least + (1.0 - least) * 0.5 * (1.0 + (std::f64::consts::PI * gone).cos())
            }
        };
        (f64::from(self.peak) * share) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_and_falls() {
        let of = |decay| Schedule { peak: 2.0, steps: 12, warmup: 4, decay };
        let rates = |decay| [1, 2, 4, 5, 9, 13].map(|n| of(decay).rate(n));
        assert_eq!(rates(Decay::Constant), [0.5, 1.0, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!(rates(Decay::Linear { least: 0.0 }), [0.5, 1.0, 2.0, 2.0, 1.0, 0.0]);
        assert_eq!(rates(Decay::Cosine { least: 0.5 }), [0.5, 1.0, 2.0, 2.0, 1.5, 1.0]);
        // SignRound: (1 − i / steps) for i from 0.
        let plain = Schedule { peak: 1.0, steps: 4, warmup: 0, decay: Decay::Linear { least: 0.0 } };
        assert_eq!([1, 2, 3, 4].map(|n| plain.rate(n)), [1.0, 0.75, 0.5, 0.25]);
    }
}
