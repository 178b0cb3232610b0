use fewbit_kernel::Team;

use super::{Optimizer, PIECE};

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).
///
/// `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`,
/// `p ← p − rate (m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε) + weight_decay · p)`.
#[derive(Clone, Debug)]
pub struct AdamW {
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of their squares.
    pub beta2: f32,
    /// Added to the root.
    pub epsilon: f32,
    /// Share of the parameters that is taken away per step and unit of the rate.
    pub weight_decay: f32,
    /// Piece by piece of [`PIECE`]: `m`, then `v`.
    moments: Vec<f32>,
}

impl AdamW {
    /// For `len` parameters: β = (0.9, 0.999), ε = 1e-8, no weight decay.
    pub fn new(len: usize) -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, moments: vec![0.0; 2 * len] }
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, team: &Team, number: u64, rate: f32, parameters: &mut [f32], gradient: &[f32]) {
        assert!(parameters.len() == gradient.len() && 2 * gradient.len() == self.moments.len(), "one length");
        let Self { beta1, beta2, epsilon, weight_decay, .. } = *self;
        // f64, since 1 − β₂ᵗ cancels at first.
        let unbias = |beta: f32| 1.0 - f64::from(beta).powf(number as f64);
        let (size, root) = ((f64::from(rate) / unbias(beta1)) as f32, (1.0 / unbias(beta2).sqrt()) as f32);
        let kept = 1.0 - rate * weight_decay;
        team.for_paired_pieces(parameters, PIECE, &mut self.moments, 2 * PIECE, |i, parameters, moments| {
            let (first, second) = moments.split_at_mut(parameters.len());
            let gradient = &gradient[i * PIECE..i * PIECE + parameters.len()];
            for (((p, g), m), v) in parameters.iter_mut().zip(gradient).zip(first).zip(second) {
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * (g * g);
                *p = kept * *p - size * *m / (v.sqrt() * root + epsilon);
            }
        });
    }

    fn state(&self) -> &[f32] {
        &self.moments
    }

    fn state_mut(&mut self) -> &mut [f32] {
        &mut self.moments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_the_algorithm() {
        let len = 2 * PIECE + 5;
        let mut adam = AdamW::new(len);
        (adam.beta1, adam.beta2, adam.weight_decay) = (0.8, 0.95, 0.1);
        let mut parameters: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
        let at = [0, 7, PIECE - 1, PIECE, len - 1];
        let (mut want, mut m, mut v) = (at.map(|i| f64::from(parameters[i])), [0.0; 5], [0.0; 5]);
        for t in 1..=20u64 {
            let gradient: Vec<f32> = (0..len).map(|i| ((i as f32 + t as f32) * 0.11).cos() * 0.3).collect();
            let rate = 0.01 * t as f32;
            adam.step(&Team::new(2), t, rate, &mut parameters, &gradient);
            for (k, i) in at.into_iter().enumerate() {
                let (g, rate) = (f64::from(gradient[i]), f64::from(rate));
                m[k] = 0.8 * m[k] + 0.2 * g;
                v[k] = 0.95 * v[k] + 0.05 * g * g;
                let (m, v) = (m[k] / (1.0 - 0.8f64.powi(t as i32)), v[k] / (1.0 - 0.95f64.powi(t as i32)));
                want[k] -= rate * (m / (v.sqrt() + 1e-8) + 0.1 * want[k]);
            }
        }
        for (k, i) in at.into_iter().enumerate() {
            assert!((f64::from(parameters[i]) - want[k]).abs() < 2e-5, "{i}: {} {}", parameters[i], want[k]);
        }
    }

    #[test]
    fn threads_do_not_matter_and_state_goes_on() {
        let len = 3 * PIECE + 1;
        let gradient = |t: u64| -> Vec<f32> { (0..len).map(|i| ((i as f32 + t as f32) * 0.7).sin()).collect() };
        let run = |threads: usize, stop: Option<u64>| {
            let (team, mut adam, mut p) = (Team::new(threads), AdamW::new(len), vec![1.0; len]);
            for t in 1..=6 {
                adam.step(&team, t, 0.01, &mut p, &gradient(t));
                if stop == Some(t) {
                    let kept = adam.state().to_vec();
                    adam = AdamW::new(len);
                    adam.state_mut().copy_from_slice(&kept);
                }
            }
            p
        };
        assert_eq!(run(1, None), run(3, None));
        assert_eq!(run(2, None), run(2, Some(3)));
    }
}
