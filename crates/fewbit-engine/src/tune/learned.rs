use fewbit_format::{Error, Mat, QuantizedLinear, Result};
use fewbit_grad::optim::Optimizer;
use fewbit_graph::WeightId;
use fewbit_kernel::Team;

use super::{Learn, TuneSettings};
use crate::kinds::{Fake, LeafJob};

/// One linear that is learned.
pub(super) struct Learned {
    pub(super) weight: WeightId,
    pub(super) fake: Box<dyn Fake>,
    pub(super) optimizers: Vec<Box<dyn Optimizer>>,
    gradients: Vec<Vec<f32>>,
    /// What stands beside the codes.
    sides: Option<Mat>,
}

impl Learned {
    /// Begins with `base`, the weight before it was rounded, of which `start` was made.
    pub(super) fn begin(
        learn: &Learn,
        weight: WeightId,
        name: &str,
        mut base: Mat,
        start: &QuantizedLinear,
        seed: u64,
    ) -> Result<Self> {
        let [band] = &start.bands[..] else {
            return Err(Error::input("rows in several bands are not learned").tensor(name));
        };
        if !start.output.is_empty() {
            return Err(Error::input("a map after the product is not learned through").tensor(name));
        }
        let sides = Self::sides(start);
        if let Some(sides) = &sides {
            base.data_mut().iter_mut().zip(sides.data()).for_each(|(w, s)| *w -= s);
        }
        let job = LeafJob { name, weight: &base, start: &band.storage, steps: learn.settings.steps, seed };
        Ok(Self::new(&learn.settings, weight, learn.learner.begin(&job)?, sides))
    }

    /// What stands beside the codes, if anything does.
    fn sides(linear: &QuantizedLinear) -> Option<Mat> {
        let [rows, cols] = linear.shape;
        (!linear.sides.is_empty()).then(|| {
            let mut sides = Mat::zeros(rows, cols);
            linear.sides.add_rows(0..rows, sides.data_mut());
            sides
        })
    }

    fn new(settings: &TuneSettings, weight: WeightId, fake: Box<dyn Fake>, sides: Option<Mat>) -> Self {
        let lens: Vec<usize> = fake.leaves().iter().map(|l| l.values.len()).collect();
        Self {
            weight,
            fake,
            optimizers: lens.iter().map(|n| settings.optimizer(*n)).collect(),
            gradients: lens.iter().map(|n| vec![0.0; *n]).collect(),
            sides,
        }
    }

    /// The weight that multiplies the linear's input, as it sees that.
    pub(super) fn forward(&self, team: &Team, progress: f32, out: &mut Mat) {
        self.fake.forward(team, progress, out);
        if let Some(sides) = &self.sides {
            out.data_mut().iter_mut().zip(sides.data()).for_each(|(o, s)| *o += s);
        }
    }

    pub(super) fn step(&mut self, team: &Team, number: u64, share: f32, progress: f32, gradient: &Mat) {
        self.fake.backward(team, progress, gradient, &mut self.gradients);
        let leaves = self.fake.leaves_mut().into_iter();
        for ((leaf, optimizer), gradient) in leaves.zip(&mut self.optimizers).zip(&self.gradients) {
            if leaf.rate > 0.0 {
                optimizer.step(team, number, share * leaf.rate, &mut leaf.values, gradient);
            }
        }
        self.fake.settle();
    }

    pub(super) fn values(&self) -> Vec<Vec<f32>> {
        self.fake.leaves().iter().map(|l| l.values.clone()).collect()
    }

    pub(super) fn set(&mut self, values: &[Vec<f32>]) {
        self.fake.leaves_mut().into_iter().zip(values).for_each(|(l, v)| l.values.clone_from(v));
    }
}
