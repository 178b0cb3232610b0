use std::borrow::Cow;

use fewbit_format::{ActivationFormat, Online, QuantizedLinear};
use fewbit_kernel::Team;
use fewbit_kernel::online::Map;

/// What happens to the rows that a linear reads before its product: maps, then rounding.
///
/// The gradient passes straight through the rounding, and back through the maps. A scale that follows from the values is
/// a constant on the way back.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// `x' = x M₁ M₂ …`.
    pub maps: Vec<Online>,
    /// How `x'` is rounded.
    pub format: Option<ActivationFormat>,
}

impl Input {
    /// That of a compressed linear; `None` where it reads its input as it is.
    pub fn of(linear: &QuantizedLinear) -> Option<Self> {
        let changes = !linear.input.is_empty() || linear.activation.is_some();
        changes.then(|| Self { maps: linear.input.clone(), format: linear.activation })
    }

    /// The rows `[tokens, dim]` as the product sees them.
    pub(crate) fn forward(&self, team: &Team, x: &[f32], dim: usize) -> Vec<f32> {
        let mut seen = x.to_vec();
        self.maps.iter().for_each(|m| Map::new(m, dim).apply(team, &mut seen));
        if let Some(format) = &self.format {
            team.for_pieces(&mut seen, dim, &|_, row| format.round(row));
        }
        seen
    }

    /// The gradient of what the product saw becomes that of the rows: `d Mᵀ`.
    pub(crate) fn backward(&self, team: &Team, d: &mut [f32], dim: usize) {
        for map in self.maps.iter().rev() {
            // A diagonal is its own transpose, a Hadamard matrix has its inverse for one.
            let transposed = if matches!(map, Online::Diagonal(_)) { map.clone() } else { map.inverse() };
            Map::new(&transposed, dim).apply(team, d);
        }
    }
}

/// The rows as the product of a linear sees them.
pub(crate) fn seen<'x>(team: &Team, input: Option<&Input>, x: &'x [f32], dim: usize) -> Cow<'x, [f32]> {
    input.map_or(Cow::Borrowed(x), |i| Cow::Owned(i.forward(team, x, dim)))
}
