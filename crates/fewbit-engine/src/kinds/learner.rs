use fewbit_format::{Mat, Result, Storage};
use fewbit_kernel::Team;

/// Numbers that gradients move, all of one meaning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Leaf {
    /// For messages.
    pub name: &'static str,
    /// The numbers.
    pub values: Vec<f32>,
    /// Learning rate at the schedule's peak.
    pub rate: f32,
}

/// One linear whose rounding is to be learned.
#[derive(Clone, Copy)]
pub struct LeafJob<'a> {
    /// Module path, for messages.
    pub name: &'a str,
    /// `[out, in]` before any rounding, without what stands beside the codes.
    pub weight: &'a Mat,
    /// What a solver made of it: where learning begins.
    pub start: &'a Storage,
    /// Steps that will be made.
    pub steps: usize,
    /// Of everything random.
    pub seed: u64,
}

/// Says which numbers of a grid are learned, and how weights follow from them.
///
/// The tuner asks for one [`Fake`] per linear, then runs forward, backward and the optimizer; scope, loss and schedule are
/// its own.
pub trait Learner: Send + Sync + std::fmt::Debug {
    /// Whether it can learn what lies in such a storage; asked before any work.
    ///
    /// # Errors
    /// One sentence with what it needs.
    fn check(&self, storage: &Storage) -> Result<()>;

    /// The differentiable form of one linear. At its start it gives the weights of `job.start`, to the bit.
    ///
    /// # Errors
    /// If the start is nothing that it can learn.
    fn begin(&self, job: &LeafJob<'_>) -> Result<Box<dyn Fake>>;
}

/// Rounded weights as a function of leaves, with a straight-through gradient.
pub trait Fake: Send + Sync {
    /// What is learned.
    fn leaves(&self) -> Vec<&Leaf>;

    /// As [`leaves`](Self::leaves), to be moved.
    fn leaves_mut(&mut self) -> Vec<&mut Leaf>;

    /// The weights `[out, in]` under the leaves; `progress` in `0..=1` anneals what is soft at first.
    fn forward(&self, team: &Team, progress: f32, out: &mut Mat);

    /// Sets `gradients` (one for each leaf) to those of the loss, from its gradient for the weights, and adds those of the
    /// form's own penalty.
    fn backward(&self, team: &Team, progress: f32, gradient: &Mat, gradients: &mut [Vec<f32>]);

    /// Puts leaves that a step moved out of bounds back.
    fn settle(&mut self) {}

    /// What is stored.
    ///
    /// # Errors
    /// If something is beyond what the layout holds.
    fn bake(&self) -> Result<Storage>;
}
