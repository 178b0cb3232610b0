use fewbit_graph::ValueId;

use crate::Saved;

/// Changes values on their way forward and their gradients on the way back, or looks at the gradients.
///
/// The interpreter asks once per pass and value. Fake quantization of an activation is `forward` = round, `backward` =
/// the straight-through rule, with the gradient of a learned scale gathered on the side. A value within experts has its
/// rows in the order of [`fewbit_graph::Routed`].
pub trait Edges {
    /// Whether `forward` and `backward` are to be called for this value; its rows are then kept as they were.
    fn wants(&self, value: ValueId) -> bool {
        let _ = value;
        false
    }

    /// Rows `[tokens, dim]` right after they are computed; what is changed is what the readers see.
    fn forward(&mut self, value: ValueId, rows: &mut [f32], dim: usize) {
        let _ = (value, rows, dim);
    }

    /// `gradient`, that of the changed rows, becomes that of `input`, the rows before `forward`.
    fn backward(&mut self, value: ValueId, input: &[f32], gradient: &mut [f32], dim: usize) {
        let _ = (value, input, gradient, dim);
    }

    /// Whether `gradient` is to be called for this value.
    fn watches(&self, value: ValueId) -> bool {
        let _ = value;
        false
    }

    /// The complete gradient `[tokens, dim]` of a value as it was computed (before `forward`), one row per token.
    ///
    /// In `saved` are the values that are still needed, such as the input of the linear that made this one.
    fn gradient(&mut self, value: ValueId, gradient: &[f32], dim: usize, saved: &Saved) {
        let _ = (value, gradient, dim, saved);
    }
}

/// Changes nothing and looks at nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoEdges;

impl Edges for NoEdges {}
