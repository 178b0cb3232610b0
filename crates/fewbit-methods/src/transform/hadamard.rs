use fewbit_engine::kinds::{End, Entry, MapJob, OnlineTransform, parse};
use fewbit_format::{Error, Online};
use fewbit_kernel::hadamard::Hadamard as Matrix;
use serde::Deserialize;

pub(crate) const ENTRY: Entry<dyn OnlineTransform> = Entry {
    name: "hadamard",
    cite: "Ashkboos et al., QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, 2024 (arXiv:2404.00456)",
    settings: &[("block = 0", "values that a matrix mixes; 0: the greatest known order that divides the row")],
    build: |table| {
        let own: Hadamard = parse("transform.hadamard", table)?;
        if own.block > 0 && Matrix::of_order(own.block).is_none() {
            let reason = format!("`transform.block` is {}, an order without a Hadamard matrix", own.block);
            return Err(Error::input(reason).hint("powers of two have one"));
        }
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
        let fits = self.block > 0 && job.dim.is_multiple_of(self.block);
        let block = if fits { self.block } else { Matrix::of_greatest_order(job.dim).order() };
        Some(Online::Hadamard { block, flips: Vec::new(), is_inverse: false })
    }
}
