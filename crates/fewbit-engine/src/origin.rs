//! The model that is compressed: as it is stored, or in another basis.

use std::sync::Arc;

use fewbit_format::{Dtype, Error, QuantizedLinear, Result, Storage, Tensor};
use fewbit_graph::{Graph, Model, Part, Residual, Symmetry, Tied, VectorId, WeightId, sites};
use fewbit_kernel::Team;
use fewbit_linalg::Orthogonal;
use fewbit_store::{ModelFile, PartWeights};

use crate::bound::{Bound, compressible};
use crate::fold::{BlockTensors, fold};
use crate::kinds::{Element, Rotation, RotationJob, Space};

/// The source in the basis that the recipe's rotations chose. What they change is never written but in that basis.
pub(crate) struct Origin<'a> {
    file: &'a ModelFile,
    bound: &'a Bound,
    team: &'a Team,
    seed: u64,
    residual: Option<Orthogonal>,
}

impl<'a> Origin<'a> {
    /// Chooses the bases that all parts share.
    ///
    /// # Errors
    /// If a rotation has no matrix for this model.
    pub(crate) fn new(file: &'a ModelFile, bound: &'a Bound, team: &'a Team, seed: u64) -> Result<Self> {
        let mut residual = None;
        if let Some(rotation) = bound.rotation(Space::Residual) {
            let order = file.model().hidden;
            let chosen = rotation.choose(&RotationJob { order, seed, team })?;
            let keeps_mean = file.model().parts().any(|(p, g)| Residual::of(g, p).is_ok_and(|r| r.keeps_mean));
            residual = Some(if keeps_mean { chosen.keeping_ones(team) } else { chosen });
        }
        Ok(Self { file, bound, team, seed, residual })
    }

    /// The graphs.
    pub(crate) fn model(&self) -> &Model {
        self.file.model()
    }

    /// Gives the pages of a part's tensors back to the system.
    pub(crate) fn drop_pages(&self, part: Part) {
        self.file.drop_pages(part);
    }

    /// All tensors of one part. Rotated linears that will be rounded are in f32, others in the types that are written.
    ///
    /// # Errors
    /// If one cannot be read, or an offset cannot pass a rotation.
    pub(crate) fn part(&self, part: Part) -> Result<PartWeights> {
        let weights = self.file.part(part)?;
        let heads = self.bound.rotation(Space::Heads).filter(|_| matches!(part, Part::Block(_)));
        if self.residual.is_none() && heads.is_none() {
            return Ok(weights);
        }
        let graph = self.file.model().part(part);
        let mut tensors = BlockTensors::of(&weights);
        if let Some(q) = &self.residual {
            self.rotate_stream(part, graph, q, &mut tensors)?;
        }
        if let (Some(rotation), Part::Block(i)) = (heads, part) {
            self.rotate_heads(i, graph, rotation, &mut tensors)?;
        }
        self.stored(part, graph, tensors)
    }

    /// Gains and offsets of norms go into what reads them; then everything on the stream changes its basis.
    fn rotate_stream(&self, part: Part, graph: &Graph, q: &Orthogonal, tensors: &mut BlockTensors) -> Result<()> {
        let touched = Residual::of(graph, part)?;
        for (gain, offset) in touched.norms() {
            self.absorb(part, graph, &touched, gain, offset, q, tensors)?;
        }
        for reader in &touched.readers {
            q.rotate_inputs(self.team, &mut tensors.weights[reader.weight]);
        }
        for &w in &touched.writers {
            q.rotate_outputs(self.team, &mut tensors.weights[w]);
            if let Some(bias) = &mut tensors.biases[w] {
                q.rotate_rows(self.team, bias);
            }
        }
        for &w in &touched.embeddings {
            q.rotate_inputs(self.team, &mut tensors.weights[w]);
        }
        Ok(())
    }

    /// `(x ⊙ g + b) Wᵀ = x (W diag(g))ᵀ + b Wᵀ`: gain and offset of one norm, into its readers.
    ///
    /// Where a reader has no bias, the offset stays with the norm, divided by the gain, in the new basis.
    fn absorb(
        &self,
        part: Part,
        graph: &Graph,
        touched: &Residual,
        gain: VectorId,
        offset: Option<VectorId>,
        q: &Orthogonal,
        tensors: &mut BlockTensors,
    ) -> Result<()> {
        let readers = || touched.readers.iter().filter(|r| r.norm == Some((gain, offset))).map(|r| r.weight);
        let gains = std::mem::replace(&mut tensors.vectors[gain], vec![1.0; q.order()]);
        let offsets = offset.map(|o| std::mem::replace(&mut tensors.vectors[o], vec![0.0; q.order()]));
        if let (Some(mut offsets), Some(o)) = (offsets, offset) {
            if readers().all(|w| graph.weights[w].has_bias) {
                readers().for_each(|w| tensors.add_image(w, &offsets));
            } else {
                for (b, g) in offsets.iter_mut().zip(&gains).filter(|(b, _)| **b != 0.0) {
                    *b /= g;
                }
                if !offsets.iter().all(|b| b.is_finite()) {
                    let name = self.file.exported(part, graph.vectors[gain].name)?.name;
                    return Err(Error::input("a gain of zero beside an offset does not pass a rotation").tensor(&name));
                }
                q.rotate_rows(self.team, &mut offsets);
                let dtype = self.file.vector_dtype(part, graph.vectors[o].name)?;
                tensors.vectors[o] = narrowed(dtype, &offsets)?;
            }
        }
        for w in readers() {
            let matrix = &mut tensors.weights[w];
            for r in 0..matrix.rows() {
                matrix.row_mut(r).iter_mut().zip(&gains).for_each(|(v, g)| *v *= g);
            }
        }
        Ok(())
    }

    /// One matrix on the values of all heads of block `i`.
    fn rotate_heads(&self, i: usize, graph: &Graph, rotation: &dyn Rotation, tensors: &mut BlockTensors) -> Result<()> {
        for site in sites(graph) {
            for ((symmetry, tied), to) in &site.folds {
                let (heads, head_dim) = match *tied {
                    Tied::PerHead { head_dim } => (site.dim / head_dim, head_dim),
                    Tied::PerKvGroup { head_dim, group } => (site.dim / head_dim / group, head_dim),
                    _ => continue,
                };
                if *symmetry != Symmetry::Orthogonal {
                    continue;
                }
                let seed = self.seed ^ (1 + i as u64) << 32;
                let q = rotation.choose(&RotationJob { order: head_dim, seed, team: self.team })?.matrix(self.team);
                let (blocks, inverses) = (vec![q.clone(); heads], vec![q.transposed(); heads]);
                fold(graph, tensors, &site, *tied, to, &Element::Matrix { blocks, inverses })?;
            }
        }
        Ok(())
    }

    /// The tensors as weights: what will not be rounded becomes what is written, so that the run sees what will be read.
    fn stored(&self, part: Part, graph: &Graph, tensors: BlockTensors) -> Result<PartWeights> {
        let place = compressible(self.file).position(|(p, _)| p == part);
        let is_rounded = |w: WeightId| place.is_some_and(|i| self.bound.grids[i][w].is_some());
        let mut linears = Vec::new();
        for (w, (matrix, bias)) in tensors.weights.into_iter().zip(tensors.biases).enumerate() {
            let dtype = if is_rounded(w) { Dtype::F32 } else { self.file.dtype() };
            let tensor = Tensor::from_f32(dtype, &[matrix.rows(), matrix.cols()], matrix.data())?;
            let name = self.file.exported(part, &graph.weights[w].name)?.name;
            let bias = bias.map(|b| self.file.bias_dtype(part, &name).and_then(|t| narrowed(t, &b))).transpose()?;
            linears.push(Arc::new(QuantizedLinear::uniform(Storage::Dense(tensor), bias)));
        }
        Ok(PartWeights { linears, vectors: tensors.vectors, ..PartWeights::default() })
    }
}

/// The values as they are read again from tensors of `dtype`.
fn narrowed(dtype: Dtype, values: &[f32]) -> Result<Vec<f32>> {
    let mut out = vec![0.0; values.len()];
    let bytes = dtype.narrow(values).ok_or_else(|| Error::internal("a vector that is no float"))?;
    dtype.widen(&bytes, &mut out);
    Ok(out)
}
