use fewbit_format::Online;

/// A row that a linear reads, or the row that it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// What linears read: one map serves all that read it.
    Input,
    /// What one linear makes.
    Output,
}

/// One row that may be mapped.
#[derive(Clone, Copy, Debug)]
pub struct MapJob<'a> {
    /// Module path of the linear, or of the first that reads the value.
    pub name: &'a str,
    /// Which row.
    pub end: End,
    /// Its values.
    pub dim: usize,
    /// Whether a rotation of the recipe is folded into it already.
    pub is_rotated: bool,
    /// Of everything random.
    pub seed: u64,
}

/// Chooses maps that run with the model, before and after the product of a linear, where nothing takes them in.
///
/// The engine asks once for each value that linears read and once for each linear that is rounded, rounds
/// `W' = U W Vᵀ` under `H' = V H Vᵀ`, and stores `V` and what undoes `U` with it.
pub trait OnlineTransform: Send + Sync + std::fmt::Debug {
    /// The map `x' = x Vᵀ` of an input, or `y' = y Uᵀ` of an output, or none.
    fn choose(&self, job: &MapJob<'_>) -> Option<Online>;
}
