use fewbit_engine::kinds::{End, Entry, MapJob, OnlineTransform, parse};
use fewbit_format::Online;
use fewbit_linalg::random_signs;
use serde::Deserialize;

use super::{BLOCK, check_block, matrix};

pub(crate) const ENTRY: Entry<dyn OnlineTransform> = Entry {
    name: "incoherence",
    cite: "Tseng et al., QuIP#: Even Better LLM Quantization with Hadamard Incoherence and Lattice Codebooks, 2024 (arXiv:2402.04396)",
    settings: &[("sides = \"both\"", "`input`: before the product; `both`: and after it"), BLOCK],
    build: |table| {
        let own: Incoherence = parse("transform.incoherence", table)?;
        check_block(own.block)?;
        Ok(Box::new(own))
    },
};

/// Random signs, then a Hadamard matrix, on inputs and outputs of each linear: entries become nearly normal, whatever the
/// weights were (QuIP#, section 3). The inverse runs after the product.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Incoherence {
    sides: Sides,
    block: usize,
}

impl Default for Incoherence {
    fn default() -> Self {
        Self { sides: Sides::Both, block: 0 }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Sides {
    Input,
    Both,
}

impl OnlineTransform for Incoherence {
    fn choose(&self, job: &MapJob<'_>) -> Option<Online> {
        if job.end == End::Output && self.sides == Sides::Input {
            return None;
        }
        let block = matrix(job.dim, self.block).order();
        let flips = random_signs(job.seed, job.dim).iter().map(|s| *s < 0.0).collect();
        Some(Online::Hadamard { block, flips, is_inverse: false })
    }
}
