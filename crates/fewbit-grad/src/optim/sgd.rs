use fewbit_kernel::Team;

use super::{Optimizer, PIECE};

/// Gradient descent with momentum: `v ← momentum · v + g + weight_decay · p`, `p ← p − rate · v`.
#[derive(Clone, Debug)]
pub struct Sgd {
    /// Share of the last step's direction that is kept.
    pub momentum: f32,
    /// Pull of the parameters to zero, as part of the gradient.
    pub weight_decay: f32,
    velocity: Vec<f32>,
}

impl Sgd {
    /// For `len` parameters, without weight decay.
    pub fn new(len: usize, momentum: f32) -> Self {
        Self { momentum, weight_decay: 0.0, velocity: vec![0.0; len] }
    }
}

impl Optimizer for Sgd {
    fn step(&mut self, team: &Team, _: u64, rate: f32, parameters: &mut [f32], gradient: &[f32]) {
        assert!(parameters.len() == gradient.len() && gradient.len() == self.velocity.len(), "one length");
        let Self { momentum, weight_decay, .. } = *self;
        team.for_paired_pieces(parameters, PIECE, &mut self.velocity, PIECE, |i, parameters, velocity| {
            for ((p, g), v) in parameters.iter_mut().zip(&gradient[i * PIECE..]).zip(velocity) {
                *v = momentum * *v + g + weight_decay * *p;
                *p -= rate * *v;
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
    fn two_steps_by_hand() {
        let mut sgd = Sgd::new(2, 0.5);
        sgd.weight_decay = 1.0;
        let mut p = [1.0, -2.0];
        sgd.step(&Team::new(1), 1, 0.5, &mut p, &[1.0, 0.0]);
        assert_eq!(p, [0.0, -1.0]);
        sgd.step(&Team::new(1), 2, 0.5, &mut p, &[2.0, 1.0]);
        assert_eq!(p, [-1.5, -0.5]);
    }
}
