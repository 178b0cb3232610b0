use fewbit_format::Result;
use fewbit_kernel::Team;
use fewbit_linalg::Orthogonal;
use serde::Deserialize;

/// The space that a rotation acts on.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// The residual stream: one matrix for the whole model, folded into all that reads and writes the stream.
    #[default]
    Residual,
    /// The values of each attention head, folded into the linears before and after attention.
    Heads,
}

impl Space {
    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Residual => "residual",
            Self::Heads => "heads",
        }
    }
}

/// What a rotation is chosen for.
pub struct RotationJob<'a> {
    /// Values that it mixes.
    pub order: usize,
    /// Of everything random.
    pub seed: u64,
    /// The threads.
    pub team: &'a Team,
}

/// Chooses a basis that is easier to round before any text is seen; the engine folds it into every tensor as it is loaded.
pub trait Rotation: Send + Sync + std::fmt::Debug {
    /// The space that it acts on.
    fn space(&self) -> Space;

    /// The orthogonal matrix.
    ///
    /// # Errors
    /// If there is none of this order.
    fn choose(&self, job: &RotationJob<'_>) -> Result<Orthogonal>;
}
