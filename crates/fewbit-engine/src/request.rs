//! What the user asks for.

use std::path::PathBuf;

use fewbit_format::Result;

use crate::calibration::CalibrationSource;
use crate::kinds::Registry;
use crate::outputs::Format;
use crate::patterns::{Override, Pattern};
use crate::recipe::{Recipe, Settings};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The model.
    pub model: PathBuf,
    /// How the model is called in cards and manifests.
    pub model_name: String,
    /// The method.
    pub recipe: Recipe,
    /// Changes of its settings.
    pub settings: Settings,
    /// All primitives.
    pub registry: &'a Registry,
    /// The folder (or `.gguf` file) that is made.
    pub out: PathBuf,
    /// What is written.
    pub format: Format,
    /// Linears that stay as they are, beside embedding and head.
    pub keep: Vec<Pattern>,
    /// Other grids for some linears.
    pub overrides: Vec<Override>,
    /// Whether a quantized source is taken, dequantized.
    pub requantize: bool,
    /// Calibration text.
    pub calibration: CalibrationSource,
    /// An importance matrix: how large the inputs of linears are, without a look at text.
    pub importances: Option<PathBuf>,
    /// Sequences, where the recipe's number is not wanted.
    pub samples: Option<usize>,
    /// Tokens of a sequence, where the recipe's number is not wanted.
    pub length: Option<usize>,
    /// Of everything random.
    pub seed: u64,
    /// Whether to go on with `OUT.partial`.
    pub resume: bool,
    /// Whether to replace `OUT` and `OUT.partial`.
    pub force: bool,
}

impl Request<'_> {
    /// The same with the calibration's settings put into the recipe.
    pub(crate) fn settled(&self) -> Result<Self> {
        let mut request = self.clone();
        request.recipe.calibration = self.recipe.calibration(&self.settings)?;
        request.recipe.allocate = self.recipe.allocate(&self.settings)?;
        if self.importances.is_some() {
            request.settings.add_default("grid.importance", "input");
        }
        Ok(request)
    }
}
