//! Weights as they were before they were rounded, for passes over the rounded model.

use std::path::PathBuf;

use fewbit_format::{Dtype, Mat, Result, Tensor};
use fewbit_graph::Part;
use fewbit_store::Safetensors;

use super::Scope;
use crate::bound::Bound;
use crate::origin::Origin;
use crate::outputs::write_shard;
use crate::quantize::Run;

impl Bound {
    /// Whether something is learned once all of the model is rounded, and the source is not what was rounded.
    pub(crate) fn keeps_bases(&self) -> bool {
        let is_changed = !self.transforms.is_empty() || self.online.is_some();
        is_changed && self.learns.iter().any(|l| l.settings.scope != Scope::Block)
    }
}

impl Run<'_> {
    /// Writes down what was rounded of part `i`, by its weights.
    pub(crate) fn keep_bases(&self, i: usize, bases: &[Option<Mat>]) -> Result<()> {
        let mut tensors = Vec::new();
        for (w, base) in bases.iter().enumerate() {
            if let Some(base) = base {
                let tensor = Tensor::from_f32(Dtype::F32, &[base.rows(), base.cols()], base.data())?;
                tensors.push((w.to_string(), tensor));
            }
        }
        write_shard(&self.kept_bases(i), &tensors)
    }

    /// What was rounded of part `i`, by its weights.
    pub(super) fn bases(&self, i: usize, part: Part, origin: &Origin<'_>) -> Result<Vec<Option<Mat>>> {
        let grids = &self.bound.grids[i];
        if !self.bound.keeps_bases() {
            let source = origin.part(part)?.linears;
            return Ok(source.iter().zip(grids).map(|(l, grid)| grid.as_ref().map(|_| l.decode())).collect());
        }
        let file = Safetensors::open(&self.kept_bases(i))?;
        let base = |w: usize| -> Result<Mat> {
            let [rows, cols] = self.file.model().part(part).weights[w].shape;
            Ok(Mat::from_vec(rows, cols, file.tensor(&w.to_string())?.to_f32()?))
        };
        grids.iter().enumerate().map(|(w, grid)| grid.as_ref().map(|_| base(w)).transpose()).collect()
    }

    fn kept_bases(&self, i: usize) -> PathBuf {
        self.places.partial.join(format!("bases-{i}.safetensors"))
    }
}
