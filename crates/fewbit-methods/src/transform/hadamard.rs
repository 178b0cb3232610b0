use fewbit_engine::kinds::{End, Entry, MapJob, OnlineTransform, parse};
use fewbit_format::Online;
use serde::Deserialize;

use super::{BLOCK, check_block, matrix};

pub(crate) const ENTRY: Entry<dyn OnlineTransform> = Entry {
    name: "hadamard",
    cite: "Ashkboos et al., QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, 2024 (arXiv:2404.00456)",
    settings: &[BLOCK],
    build: |table| {
        let own: Hadamard = parse("transform.hadamard", table)?;
        check_block(own.block)?;
        Ok(Box::new(own))
    },
};

/// A Hadamard matrix before each linear whose input no rotation of the recipe reaches, such as `down_proj` (QuaRot,
/// section 4): `x' = x H` runs with the model, `W' = W H` is stored. Without random signs there is nothing to store.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Hadamard {
    block: usize,
}

impl OnlineTransform for Hadamard {
    fn choose(&self, job: &MapJob<'_>) -> Option<Online> {
        if job.end == End::Output || job.is_rotated {
            return None;
        }
        let block = matrix(job.dim, self.block).order();
        Some(Online::Hadamard { block, flips: Vec::new(), is_inverse: false })
    }
}
