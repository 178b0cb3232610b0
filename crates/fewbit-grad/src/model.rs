//! A whole model with one block in memory: boundaries are kept, the inside of a block is computed again on the way back.

use std::ops::Range;
use std::sync::Arc;

use fewbit_format::Result;
use fewbit_graph::{Graph, Model, Part, WeightId};
use fewbit_kernel::Team;
use fewbit_runtime::{Batch, Rotations, check_ids};

use crate::{Edges, Function, Gradients, NoEdges, Parameters, Saved};

/// What a pass through a model asks of its caller, part by part.
///
/// Forward goes from [`Part::Embed`] to [`Part::Head`], backward the other way. A part's parameters are asked for once
/// on each way, just before they are used, and let go right afterwards.
pub trait Visit {
    /// The numbers of a part.
    ///
    /// # Errors
    /// If they cannot be read.
    fn parameters(&mut self, part: Part) -> Result<Arc<Parameters>>;

    /// The gradients that are wanted of a part. The pass ends at the first part that wants none of its input's.
    ///
    /// Of a matrix that is embedding and head, ask with [`Part::Embed`]: both its gradients are added to that one.
    fn asked(&mut self, part: Part, graph: &Graph) -> Gradients;

    /// What changes or watches the values of a part, if anything. It sees a block forward twice.
    fn edges(&mut self, part: Part) -> Option<&mut dyn Edges> {
        let _ = part;
        None
    }

    /// A part's gradients, as soon as they are made.
    ///
    /// # Errors
    /// Any error ends the pass.
    fn done(&mut self, part: Part, gradients: Gradients) -> Result<()>;
}

/// Turns the logits `[tokens, vocabulary]` of some rows of the batch into the gradient of a loss, and returns the loss.
pub trait Loss {
    /// `rows` are the rows' numbers in the batch; they come in order.
    fn of(&mut self, team: &Team, rows: Range<usize>, logits: &mut [f32]) -> f64;
}

impl<F: FnMut(&Team, Range<usize>, &mut [f32]) -> f64> Loss for F {
    fn of(&mut self, team: &Team, rows: Range<usize>, logits: &mut [f32]) -> f64 {
        self(team, rows, logits)
    }
}

/// Rows whose logits are in memory at once. Part of the arithmetic: sums of the head's gradient are cut here.
const HEAD_ROWS: usize = 256;

/// A model as a differentiable function of its parameters.
#[derive(Clone, Debug)]
pub struct ModelFunction {
    model: Arc<Model>,
    embed: Function,
    blocks: Vec<Function>,
    head: Function,
}

impl ModelFunction {
    /// The function of a model.
    ///
    /// # Errors
    /// If one of its graphs has an operation without a derivative.
    pub fn new(model: Arc<Model>) -> Result<Self> {
        let of = |graph: &Graph| Function::new(Arc::new(graph.clone()));
        Ok(Self {
            embed: of(&model.embed)?,
            blocks: model.blocks.iter().map(of).collect::<Result<_>>()?,
            head: of(&model.head)?,
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Numbers that the boundaries of a batch take: what enters each block, and the head.
    pub fn boundaries(&self, tokens: usize) -> usize {
        (self.blocks.len() + 1) * tokens * self.model.hidden
    }

    /// The loss of the ids of a batch of whole sequences, and all gradients that `visit` asks for.
    ///
    /// `boundaries` is the caller's memory of [`boundaries`](Self::boundaries) numbers, of any content: in memory, or
    /// mapped.
    ///
    /// # Errors
    /// If an id has no row in the embedding, or `visit` fails.
    ///
    /// # Panics
    /// If `boundaries` is too short, or there is not one id for each token.
    pub fn gradients(
        &self,
        team: &Team,
        batch: &Batch,
        ids: &[u32],
        visit: &mut dyn Visit,
        loss: &mut dyn Loss,
        boundaries: &mut [f32],
    ) -> Result<f64> {
        let size = batch.tokens() * self.model.hidden;
        let (boundaries, last) = boundaries[..self.boundaries(batch.tokens())].split_at_mut(self.blocks.len() * size);
        let rotations = Rotations::new(&self.model.ropes, batch);
        let mut saved = Saved::default();
        let mut x = self.enter(team, batch, ids, visit)?;
        for (i, boundary) in boundaries.chunks_exact_mut(size.max(1)).enumerate() {
            boundary.copy_from_slice(&x);
            x = self.forward(team, batch, &rotations, i, visit, x, &mut saved)?;
        }
        last.copy_from_slice(&x);

        let mut of_embed = self.model.is_tied.then(|| visit.asked(Part::Embed, &self.model.embed));
        let shared = of_embed.as_mut().and_then(|g| g.weights[0].take());
        let is_shared = shared.is_some();
        let mut of_head = visit.asked(Part::Head, &self.model.head);
        let tied = self.head_matrix();
        if is_shared {
            of_head.weights[tied] = shared;
        }
        let (total, mut d) = self.head(team, last, visit, loss, Some(&mut of_head))?;
        if let Some(of_embed) = of_embed.as_mut().filter(|_| is_shared) {
            of_embed.weights[0] = of_head.weights[tied].take();
        }
        let mut goes_on = of_head.wants_input;
        visit.done(Part::Head, of_head)?;

        for (i, boundary) in boundaries.chunks_exact(size.max(1)).enumerate().rev() {
            if !goes_on {
                break;
            }
            let part = Part::Block(i);
            x.copy_from_slice(boundary);
            let parameters = visit.parameters(part)?;
            let mut gradients = visit.asked(part, self.blocks[i].graph());
            let (mut none, view) = (NoEdges, parameters.view());
            let edges = visit.edges(part).unwrap_or(&mut none);
            let y = self.blocks[i].forward(team, batch, &rotations, &view, edges, x, &mut saved);
            d = self.blocks[i].backward(team, batch, &rotations, &view, edges, d, &mut saved, &mut gradients);
            x = y;
            goes_on = gradients.wants_input;
            visit.done(part, gradients)?;
        }
        // A tied matrix has its part of the head even where the pass ends before the embedding.
        if goes_on || of_embed.is_some() {
            let mut gradients = of_embed.unwrap_or_else(|| visit.asked(Part::Embed, &self.model.embed));
            gradients.wants_input = false;
            if goes_on && gradients.slices().next().is_some() {
                let parameters = visit.parameters(Part::Embed)?;
                self.run_embed(team, batch, ids, &parameters, visit.edges(Part::Embed), Some((d, &mut gradients)));
            }
            visit.done(Part::Embed, gradients)?;
        }
        Ok(total)
    }

    /// The loss alone.
    ///
    /// # Errors
    /// As [`gradients`](Self::gradients).
    pub fn loss(
        &self,
        team: &Team,
        batch: &Batch,
        ids: &[u32],
        visit: &mut dyn Visit,
        loss: &mut dyn Loss,
    ) -> Result<f64> {
        let rotations = Rotations::new(&self.model.ropes, batch);
        let mut saved = Saved::default();
        let mut x = self.enter(team, batch, ids, visit)?;
        for i in 0..self.blocks.len() {
            x = self.forward(team, batch, &rotations, i, visit, x, &mut saved)?;
        }
        Ok(self.head(team, &x, visit, loss, None)?.0)
    }

    fn enter(&self, team: &Team, batch: &Batch, ids: &[u32], visit: &mut dyn Visit) -> Result<Vec<f32>> {
        assert_eq!(ids.len(), batch.tokens(), "an id for each token");
        check_ids(ids, self.model.vocabulary)?;
        let parameters = visit.parameters(Part::Embed)?;
        Ok(self.run_embed(team, batch, ids, &parameters, visit.edges(Part::Embed), None))
    }

    /// Forward through the embedding, and backward where a gradient of its output is given; returns the output.
    fn run_embed(
        &self,
        team: &Team,
        batch: &Batch,
        ids: &[u32],
        parameters: &Parameters,
        edges: Option<&mut dyn Edges>,
        back: Option<(Vec<f32>, &mut Gradients)>,
    ) -> Vec<f32> {
        let (rotations, mut saved, mut none) = (Rotations::new(&[], batch), Saved::default(), NoEdges);
        let (view, edges) = (parameters.view(), edges.unwrap_or(&mut none));
        let x = ids.iter().map(|id| *id as f32).collect();
        let y = self.embed.forward(team, batch, &rotations, &view, edges, x, &mut saved);
        if let Some((d, gradients)) = back {
            self.embed.backward(team, batch, &rotations, &view, edges, d, &mut saved, gradients);
        }
        y
    }

    fn forward(
        &self,
        team: &Team,
        batch: &Batch,
        rotations: &Rotations,
        block: usize,
        visit: &mut dyn Visit,
        x: Vec<f32>,
        saved: &mut Saved,
    ) -> Result<Vec<f32>> {
        let parameters = visit.parameters(Part::Block(block))?;
        let mut none = NoEdges;
        let edges = visit.edges(Part::Block(block)).unwrap_or(&mut none);
        Ok(self.blocks[block].forward(team, batch, rotations, &parameters.view(), edges, x, saved))
    }

    /// The loss, and the gradient of what enters the head, if it is asked for among `gradients`.
    fn head(
        &self,
        team: &Team,
        x: &[f32],
        visit: &mut dyn Visit,
        loss: &mut dyn Loss,
        mut gradients: Option<&mut Gradients>,
    ) -> Result<(f64, Vec<f32>)> {
        let parameters = visit.parameters(Part::Head)?;
        let (mut none, view) = (NoEdges, parameters.view());
        let edges = visit.edges(Part::Head).unwrap_or(&mut none);
        let (hidden, mut total, mut d, mut saved) = (self.model.hidden, 0.0, Vec::new(), Saved::default());
        for (i, x) in x.chunks(HEAD_ROWS * hidden).enumerate() {
            let rows = i * HEAD_ROWS..i * HEAD_ROWS + x.len() / hidden;
            let batch = Batch::one(0, rows.len());
            let rotations = Rotations::new(&[], &batch);
            let mut logits = self.head.forward(team, &batch, &rotations, &view, edges, x.to_vec(), &mut saved);
            total += loss.of(team, rows, &mut logits);
            if let Some(gradients) = gradients.as_deref_mut() {
                d.extend(self.head.backward(team, &batch, &rotations, &view, edges, logits, &mut saved, gradients));
            }
        }
        Ok((total, d))
    }

    /// The head's matrix of logits.
    fn head_matrix(&self) -> WeightId {
        self.model.head.weights.iter().position(|w| w.name == "lm_head").unwrap_or(0)
    }
}
