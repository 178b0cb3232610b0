use fewbit_kernel::Team;

use super::{Optimizer, PIECE};

/// Descent by the gradient's sign, as bounded variables of rounding suit it: `v ← momentum · v + g`,
/// `p ← p − rate · sign(v)`, and no move where `v` is 0.
///
/// Source: SignRound (Cheng et al. 2023), which has no momentum and a rate that falls linearly to zero.
#[derive(Clone, Debug)]
pub struct SignSgd {
    /// Share of the last gradients that is kept.
    pub momentum: f32,
    velocity: Vec<f32>,
}

impl SignSgd {
    /// For `len` parameters.
    pub fn new(len: usize, momentum: f32) -> Self {
        Self { momentum, velocity: vec![0.0; len] }
    }
}

impl Optimizer for SignSgd {
    fn step(&mut self, team: &Team, _: u64, rate: f32, parameters: &mut [f32], gradient: &[f32]) {
        assert!(parameters.len() == gradient.len() && gradient.len() == self.velocity.len(), "one length");
        let momentum = self.momentum;
        team.for_paired_pieces(parameters, PIECE, &mut self.velocity, PIECE, |i, parameters, velocity| {
            for ((p, g), v) in parameters.iter_mut().zip(&gradient[i * PIECE..]).zip(velocity) {
                *v = momentum * *v + g;
                *p -= rate * (f32::from(*v > 0.0) - f32::from(*v < 0.0));
            }
        });
    }

    fn state(&self) -> &[f32] {
        &self.velocity
    }

    fn state_mut(&mut self) -> &mut [f32] {
        &mut self.velocity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sign_counts() {
        let mut sign = SignSgd::new(3, 0.5);
        let mut p = [0.0, 0.0, 0.0];
        sign.step(&Team::new(1), 1, 0.25, &mut p, &[1e-20, -40.0, 0.0]);
        assert_eq!(p, [-0.25, 0.25, 0.0]);
        // What is kept of −40 outweighs 10.
        sign.step(&Team::new(1), 2, 0.25, &mut p, &[1.0, 10.0, 0.0]);
        assert_eq!(p, [-0.5, 0.5, 0.0]);
    }
}
