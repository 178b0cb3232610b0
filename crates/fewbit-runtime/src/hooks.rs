use fewbit_graph::{Edge, ValueId};

/// Looks at, or rounds, values as they are made.
///
/// The interpreter asks [`wants`](Hooks::wants) for each value of the graph at least once per run, and calls
/// [`edge`](Hooks::edge) with all its rows right after they are computed, before anything reads them; for a value within
/// experts, once for each expert that has rows.
pub trait Hooks {
    /// Whether `edge` is to be called for this value.
    fn wants(&self, value: ValueId) -> bool;

    /// Rows `[tokens, dim]` of a value, or of one expert; what is changed is what the readers see.
    fn edge(&mut self, edge: Edge, rows: &mut [f32], dim: usize);
}

/// Wants nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoHooks;

impl Hooks for NoHooks {
    fn wants(&self, _: ValueId) -> bool {
        false
    }

    fn edge(&mut self, _: Edge, _: &mut [f32], _: usize) {}
}
