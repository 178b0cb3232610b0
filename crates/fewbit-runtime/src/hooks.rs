use fewbit_graph::ValueId;

/// Looks at, or rounds, values as they are made.
///
/// The interpreter asks [`wants`](Hooks::wants) for each value of the graph once per run, and calls
/// [`edge`](Hooks::edge) with all its rows right after they are computed, before anything reads them.
pub trait Hooks {
    /// Whether `edge` is to be called for this value.
    fn wants(&self, value: ValueId) -> bool;

    /// Rows `[tokens, dim]` of a value; what is changed is what the readers see.
    fn edge(&mut self, value: ValueId, rows: &mut [f32], dim: usize);
}

/// Wants nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoHooks;

impl Hooks for NoHooks {
    fn wants(&self, _: ValueId) -> bool {
        false
    }

    fn edge(&mut self, _: ValueId, _: &mut [f32], _: usize) {}
}
