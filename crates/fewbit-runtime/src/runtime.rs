use std::cell::Cell;
use std::sync::Arc;

use fewbit_format::{Error, Mat, QuantizedLinear, Result};
use fewbit_graph::{Edge, Graph, Model, Op, Part, ValueId};
use fewbit_kernel::Team;
use fewbit_kernel::linear::Arithmetic;
use fewbit_store::ModelFile;
use smallvec::SmallVec;

use crate::{Batch, Hooks, Layer, LayerCache, ModelCache, NoHooks, Rotations, Workspace};

/// The way out where numbers are not finite.
const LOOK: &str = "look for them with `fewbit inspect --outliers`, or download the model again";

thread_local! {
    /// The buffers of the last run from this thread: a token needs no new ones.
    static KEPT: Cell<Kept> = Cell::default();
}

#[derive(Default)]
struct Kept {
    workspace: Workspace,
    rotations: Rotations,
    x: Vec<f32>,
}

/// A whole model, ready to run.
pub struct Runtime {
    model: Arc<Model>,
    embedding: Arc<QuantizedLinear>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) head: Layer,
    team: Arc<Team>,
}

impl Runtime {
    /// Loads every part of a model, several at once: weights that are stored as the kernels read them stay in the file's
    /// map, others are repacked.
    ///
    /// # Errors
    /// If a tensor is absent, has another shape, or holds numbers that are not finite.
    pub fn load(file: &ModelFile, arithmetic: Arithmetic, team: Arc<Team>) -> Result<Self> {
        let model = file.model().clone();
        let embed = file.part(Part::Embed)?;
        let embedding = embed.linears.into_iter().next().ok_or_else(|| Error::internal("a model without embedding"))?;
        let layer = |part| {
            let layer = Layer::new(Arc::new(model.part(part).clone()), file.part(part)?, arithmetic);
            // What was repacked is not read again, and the rest was hardly touched.
            file.drop_pages(part);
            layer
        };
        // The head, which may be the largest, first.
        let parts: Vec<Part> = std::iter::once(Part::Head).chain((0..model.blocks.len()).map(Part::Block)).collect();
        let mut loaded: Vec<Option<Result<Layer>>> = parts.iter().map(|_| None).collect();
        team.for_pieces(&mut loaded, 1, &|i, one| one[0] = Some(layer(parts[i])));
        let mut layers = loaded.into_iter().flatten().collect::<Result<Vec<_>>>()?;
        let head = layers.remove(0);
        Ok(Self { model, embedding, layers, head, team })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The threads that it runs on.
    pub fn team(&self) -> &Arc<Team> {
        &self.team
    }

    /// Goes on with other threads; no result depends on them.
    pub fn set_team(&mut self, team: Arc<Team>) {
        self.team = team;
    }

    /// Ids to the residual stream `[tokens, hidden]`.
    ///
    /// # Errors
    /// If an id has no row, or one with a number that is not finite.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        embed(&self.model.embed, &self.embedding, ids)
    }

    /// Logits `[rows.len(), vocabulary]` of the rows `rows` of a batch of ids.
    ///
    /// # Errors
    /// If an id has no row in the embedding, the context is exceeded, or the logits are not finite.
    pub fn logits(
        &self,
        batch: &Batch,
        ids: &[u32],
        caches: Option<&mut [&mut ModelCache]>,
        rows: &[usize],
    ) -> Result<Mat> {
        let mut logits = Vec::new();
        self.write_logits(batch, ids, caches, rows, &mut logits)?;
        Ok(Mat::from_vec(rows.len(), self.model.vocabulary, logits))
    }

    /// [`logits`](Self::logits) in place of what `logits` held; allocates nothing for a token like the last one.
    ///
    /// # Errors
    /// As there.
    pub fn write_logits(
        &self,
        batch: &Batch,
        ids: &[u32],
        caches: Option<&mut [&mut ModelCache]>,
        rows: &[usize],
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let mut kept = KEPT.take();
        let done = self.run_all(batch, ids, caches, rows, &mut kept, logits);
        KEPT.set(kept);
        done
    }

    fn run_all(
        &self,
        batch: &Batch,
        ids: &[u32],
        mut caches: Option<&mut [&mut ModelCache]>,
        rows: &[usize],
        Kept { workspace, rotations, x }: &mut Kept,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        check_positions(&self.model, batch)?;
        write_embedding(&self.model.embed, &self.embedding, ids, x)?;
        rotations.fill(&self.model.ropes, batch);
        for (i, layer) in self.layers.iter().enumerate() {
            let mut run = |caches: Option<&mut [&mut LayerCache]>| {
                layer.run(&self.team, batch, rotations, caches, &mut NoHooks, workspace, x);
            };
            match &mut caches {
                None => run(None),
                Some(all) => run(Some(&mut all.iter_mut().map(|c| &mut c.layers[i]).collect::<SmallVec<[_; 4]>>())),
            }
            if let Some(at) = x.iter().position(|v| !v.is_finite()) {
                let position = at / self.model.hidden;
                return Err(Error::input(format!(
                    "the model's numbers are not finite after layer {i} at position {position}"
                ))
                .hint(format!("the weights are damaged: {LOOK}")));
            }
        }
        if let Some(all) = caches {
            for (cache, span) in all.iter_mut().zip(batch.spans()) {
                cache.advance(span.start + span.len);
            }
        }
        let hidden = self.model.hidden;
        let picked = workspace.begin(Graph::INPUT, rows.len() * hidden);
        for (to, r) in picked.chunks_exact_mut(hidden).zip(rows) {
            to.copy_from_slice(&x[r * hidden..(r + 1) * hidden]);
        }
        self.run_head(rows.len(), workspace, logits)
    }

    /// The residual stream `[tokens, hidden]` to logits `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// If the logits are not finite.
    pub fn head(&self, x: &[f32]) -> Result<Mat> {
        let (tokens, mut logits, mut workspace) = (x.len() / self.model.hidden, Vec::new(), Workspace::default());
        workspace.begin(Graph::INPUT, x.len()).copy_from_slice(x);
        self.run_head(tokens, &mut workspace, &mut logits)?;
        Ok(Mat::from_vec(tokens, self.model.vocabulary, logits))
    }

    /// Runs the head on the input that lies in `workspace`, unless there is no token.
    fn run_head(&self, tokens: usize, workspace: &mut Workspace, logits: &mut Vec<f32>) -> Result<()> {
        logits.clear();
        let mut read = HeadInput::of(self.head.graph());
        if tokens > 0 {
            let (batch, steps) = (Batch::one(0, tokens), 0..self.head.steps());
            self.head.run_steps(&self.team, &batch, &Rotations::default(), None, &mut read, workspace, steps);
            logits.extend_from_slice(workspace.value(self.head.graph().output));
        }
        workspace.clear();
        if logits.iter().all(|v| v.is_finite()) {
            return Ok(());
        }
        if !read.is_finite {
            return Err(Error::input("the model's numbers are not finite after the final norm")
                .hint(format!("its weights are damaged: {LOOK}")));
        }
        let of_head = if self.model.is_tied { "the head, which is the embedding," } else { "the head" };
        Err(Error::input("the logits are not finite").hint(format!("the weights of {of_head} are damaged: {LOOK}")))
    }

    /// Runs the blocks on the residual stream of whole sequences, with hooks per block.
    pub fn blocks(&self, batch: &Batch, x: &mut Vec<f32>, mut hooks: impl FnMut(usize) -> Box<dyn Hooks>) {
        let rotations = Rotations::new(&self.model.ropes, batch);
        let mut workspace = Workspace::default();
        for (i, layer) in self.layers.iter().enumerate() {
            layer.run(&self.team, batch, &rotations, None, &mut *hooks(i), &mut workspace, x);
        }
    }
}

/// Sees whether what the head's matrix reads is still finite: the norm before it may be what is damaged.
struct HeadInput {
    value: Option<ValueId>,
    is_finite: bool,
}

impl HeadInput {
    fn of(head: &Graph) -> Self {
        let matrix = head.nodes.iter().find(|n| matches!(n.op, Op::Linear { .. }));
        Self { value: matrix.map(|n| n.inputs[0]), is_finite: true }
    }
}

impl Hooks for HeadInput {
    fn wants(&self, value: ValueId) -> bool {
        self.value == Some(value)
    }

    fn edge(&mut self, _: Edge, rows: &mut [f32], _: usize) {
        self.is_finite &= rows.iter().all(|v| v.is_finite());
    }
}

/// Whether there is a learned vector for each position of a batch.
fn check_positions(model: &Model, batch: &Batch) -> Result<()> {
    let Some(rows) = model.learned_positions() else { return Ok(()) };
    match batch.positions().max().filter(|p| *p >= rows) {
        None => Ok(()),
        Some(p) => Err(Error::input(format!("position {p} is beyond those that the model has learned, {rows} in all"))
            .hint("take a shorter text")),
    }
}

/// Whether an embedding of so many rows has one for each id.
///
/// # Errors
/// Names the first id that has none.
pub fn check_ids(ids: &[u32], rows: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= rows) {
        None => Ok(()),
        Some(id) => Err(Error::input(format!("id {id} is beyond the embedding, which has {rows} rows"))
            .hint("the tokenizer has tokens that the model does not know, or the ids are wrong")),
    }
}

/// Runs an embedding graph: rows of the matrix, scaled where the family does so.
///
/// # Errors
/// If an id has no row, or one with a number that is not finite.
pub fn embed(graph: &Graph, matrix: &QuantizedLinear, ids: &[u32]) -> Result<Vec<f32>> {
    let mut x = Vec::new();
    write_embedding(graph, matrix, ids, &mut x)?;
    Ok(x)
}

/// [`embed`] in place of what `x` held.
fn write_embedding(graph: &Graph, matrix: &QuantizedLinear, ids: &[u32], x: &mut Vec<f32>) -> Result<()> {
    let [rows, hidden] = matrix.shape;
    check_ids(ids, rows)?;
    x.clear();
    x.resize(ids.len() * hidden, 0.0);
    for (id, out) in ids.iter().zip(x.chunks_exact_mut(hidden)) {
        let r = *id as usize;
        matrix.decode_rows(r..r + 1, out);
        matrix.adapters.iter().for_each(|a| a.add_rows(r..r + 1, out));
    }
    for node in &graph.nodes {
        match node.op {
            Op::Embedding { .. } => {}
            Op::Scale { factor } => x.iter_mut().for_each(|v| *v *= factor),
            _ => return Err(Error::internal("an embedding graph with an operation that is not run")),
        }
    }
    match x.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::input(format!("the embedding of id {} is not finite", ids[at / hidden]))
            .hint(format!("the weights of the embedding are damaged: {LOOK}"))),
    }
}
