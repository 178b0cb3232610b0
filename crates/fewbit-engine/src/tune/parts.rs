//! Parts of a model that is rounded already: read to be learned, written anew.

use std::path::Path;
use std::sync::Arc;

use fewbit_format::{ActivationFormat, Result};
use fewbit_grad::Parameters;
use fewbit_graph::Part;
use fewbit_store::{ModelFile, PartWeights};

use super::learned::Learned;
use super::{Learn, baked};
use crate::bound::compressible;
use crate::origin::Origin;
use crate::outputs::Schemes;
use crate::quantize::Run;

impl Run<'_> {
    /// A part's parameters, and what is learned of it.
    pub(super) fn open_part(
        &self,
        learn: &Learn,
        seed: u64,
        part: Part,
        rounded: &ModelFile,
        origin: &Origin<'_>,
    ) -> Result<(Parameters, Vec<Learned>)> {
        let graph = self.file.model().part(part);
        let weights = rounded.part(part)?;
        let mut learned = Vec::new();
        if let Some(i) = compressible(&self.file).position(|(p, _)| p == part) {
            let bases = self.bases(i, part, origin)?;
            for (w, (base, start)) in bases.into_iter().zip(&weights.linears).enumerate() {
                let Some(base) = base else { continue };
                let seed = seed.wrapping_add((i << 20 | w) as u64);
                learned.push(Learned::begin(learn, w, &graph.weights[w].name, base, start, seed)?);
            }
        }
        Ok((Parameters::of(graph, &weights)?, learned))
    }

    /// Writes the shard of the `i`th part with what was learned; returns the part, and how its linears are stored.
    pub(super) fn write_part(
        &self,
        folder: &Path,
        i: usize,
        rounded: &ModelFile,
        origin: &Origin<'_>,
        learned: &[Learned],
    ) -> Result<(PartWeights, Schemes)> {
        self.check_stop()?;
        let part = self.file.model().parts().nth(i + 1).map_or(Part::Head, |(part, _)| part);
        let mut weights = rounded.part(part)?;
        for learned in learned {
            let linear = &mut weights.linears[learned.weight];
            *linear = Arc::new(baked(linear, learned)?);
        }
        let caches: Vec<ActivationFormat> = weights.caches.iter().flatten().copied().collect();
        let schemes = self.write(folder, i, part, origin, &weights.linears, &weights.vectors, &caches)?;
        Ok((weights, schemes))
    }
}
