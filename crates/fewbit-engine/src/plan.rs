//! What a run will do and need, said before any work.

use std::collections::BTreeSet;

use fewbit_graph::{Container, Graph, Model, Op, Part, Weight, WeightId};
use fewbit_store::ModelFile;
use serde::Serialize;

use crate::Recipe;
use crate::allocate::{Allocation, Sensitivity};
use crate::bound::{Bound, compressible};
use crate::kinds::Space;
use crate::measure::Fisher;
use crate::tune::{Learn, Scope};
use crate::walk::CHUNK_TOKENS;

/// A sweep over the model, for people and for `--dry-run`.
#[derive(Clone, Debug, Serialize)]
pub struct Sweep {
    /// What kind.
    pub kind: &'static str,
    /// Blocks that it visits.
    pub blocks: usize,
    /// What it does there.
    pub work: String,
}

/// What will happen, and what it needs.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// In order.
    pub sweeps: Vec<Sweep>,
    /// Most anonymous memory at any time, in bytes.
    pub peak_bytes: u64,
    /// Size of what is written.
    pub out_bytes: u64,
    /// Size of the working files beside it.
    pub work_bytes: u64,
    /// A guess from the machine's measured arithmetic.
    pub seconds_estimate: f64,
    /// Bits per weight of the quantized linears, everything stored.
    pub bits_per_weight: f64,
    /// What the user should know before.
    pub notes: Vec<String>,
}

impl Bound {
    /// The sweeps over all blocks.
    fn sweeps(&self, recipe: &Recipe, blocks: usize, samples: usize, length: usize) -> Vec<Sweep> {
        let measure = self.allocation.as_ref().map(|a| {
            let (name, count) = (a.settings.sensitivity.name(), a.candidates.len());
            let samples = a.settings.samples.min(samples);
            let work = format!("{name} of {count} candidates for each linear over {samples} × {length} tokens");
            Sweep { kind: "measure", blocks, work }
        });
        let gradients = self.needs.fisher.then(|| {
            let work = format!("squared gradients over {samples} × {length} tokens");
            Sweep { kind: "measure", blocks, work }
        });
        let compress = self.compress_sweep(recipe, blocks, samples, length);
        gradients.into_iter().chain(measure).chain([compress]).collect()
    }

    /// The sweep that compresses every block once.
    fn compress_sweep(&self, recipe: &Recipe, blocks: usize, samples: usize, length: usize) -> Sweep {
        let mut work: Vec<String> = Vec::new();
        if self.needs.any() {
            work.push(format!("statistics over {samples} × {length} tokens"));
        }
        let open = self.allocation.iter().flat_map(|a| &a.candidates);
        let all = open.chain([&self.grids]).flatten().flatten().flatten();
        let labels: BTreeSet<String> = all.map(|g| g.label()).collect();
        for name in recipe.pass_names() {
            let is_grid = name.starts_with("grid.");
            work.push(if is_grid {
                format!("{name} ({}{})", Vec::from_iter(labels.clone()).join(", "), self.program.side_label())
            } else {
                name.to_owned()
            });
        }
        Sweep { kind: "compress", blocks, work: work.join("; ") }
    }

    /// The plan for people; `text_bytes` of calibration text are read for `samples` sequences.
    pub(crate) fn plan(
        &self,
        file: &ModelFile,
        recipe: &Recipe,
        samples: usize,
        length: usize,
        text_bytes: u64,
        flops_per_second: f64,
    ) -> Plan {
        let model = file.model();
        let tokens = if self.reads_text() { samples * length } else { 0 };
        let (mut flops, mut out_bytes, mut peak) = (0.0, 0, Memory::default());
        let rest = [Part::Embed].into_iter().chain((!self.is_tied(file) && !self.has_head()).then_some(Part::Head));
        let (mut last, mut turned) = (Memory::default(), Memory::default());
        for part in rest {
            let is_rotated = self.rotates(part);
            turned = turned.or(self.rotating(part, model.part(part)));
            for plain in Plain::all(file, part) {
                out_bytes += plain.bytes;
                last = last.and(if is_rotated { plain.bytes } else { plain.decoded() });
            }
        }
        last = last.with(turned);
        let parts = compressible(file).filter(|(part, _)| *part != Part::Head || self.has_head());
        for (i, (part, graph)) in parts.enumerate() {
            let plain = Plain::all(file, part);
            out_bytes += self.stored(i, graph, &plain) + 4 * graph.vectors.iter().map(|v| v.dim as u64).sum::<u64>();
            flops += self.flops(i, graph, tokens);
            let work = self.memory(i, graph, &plain, tokens).or(self.learning(graph, length, model.blocks.len()));
            peak = peak.or(work.with(self.rotating(part, graph)));
        }
        let streams = if self.learns.iter().any(|l| l.settings.scope != Scope::Model) { 4 } else { 2 };
        let mut work_bytes = 4 * (tokens * (streams * model.hidden + self.kept_width(model))) as u64;
        if self.keeps_bases() {
            let parts = compressible(file).zip(&self.grids);
            let rounded =
                parts.flat_map(|((_, graph), grids)| graph.weights.iter().zip(grids).filter(|(_, g)| g.is_some()));
            work_bytes += 4 * rounded.map(|(w, _)| (w.shape[0] * w.shape[1]) as u64).sum::<u64>();
        }
        if let Some(allocation) = &self.allocation {
            let measured = allocation.settings.samples.min(samples) * length;
            let parts = compressible(file).filter(|(part, _)| *part != Part::Head).enumerate();
            for (i, (_, graph)) in parts {
                flops += self.measure_flops(i, graph, allocation, measured);
                peak = peak.or(self.measure_memory(graph, allocation, measured, length));
            }
            peak = peak.or(allocation.head_floats(model, length).into_iter().fold(Memory::default(), Memory::and_f32s));
            work_bytes += 4 * (allocation.slots(model.blocks.len()) * measured * model.hidden) as u64;
        }
        let per_token = if file.checkpoint().container() == Container::Gguf { TRANSLATION } else { TOKENIZER };
        let tokenizer = Memory { small: per_token * model.vocabulary as u64, large: 0 };
        peak = peak.or(last).or(tokenizer).or(self.learning_all(file, length));
        if self.needs.fisher && tokens > 0 {
            work_bytes += Fisher::bytes(self, compressible(file));
            flops += 8.0 * model.parts().map(|(_, g)| g.parameters() as f64).sum::<f64>() * tokens as f64;
            peak = model.parts().fold(peak, |m, (_, graph)| m.or(backward(model, graph, length)));
        }
        Plan {
            sweeps: self.sweeps(recipe, model.blocks.len(), samples, length),
            peak_bytes: BASE_BYTES + peak.bytes().max(if tokens > 0 { ENCODING * text_bytes } else { 0 }),
            out_bytes,
            work_bytes,
            seconds_estimate: flops / (SHARE_OF_PEAK * flops_per_second) + file.checkpoint().size_bytes() as f64 / 1e9,
            bits_per_weight: self.bits_per_weight(file).unwrap_or(8.0 * file.dtype().size_bytes() as f64),
            notes: self.notes.clone(),
        }
    }

    /// Whether a rotation changes matrices of a part.
    fn rotates(&self, part: Part) -> bool {
        let is_block = matches!(part, Part::Block(_));
        self.rotation(Space::Residual).is_some() || (is_block && self.rotation(Space::Heads).is_some())
    }

    /// Memory for a part in another basis: all of it in f32, and the largest of its matrices twice more while it turns.
    fn rotating(&self, part: Part, graph: &Graph) -> Memory {
        if !self.rotates(part) {
            return Memory::default();
        }
        let sizes = || graph.weights.iter().map(|w| w.shape[0] * w.shape[1]);
        let all = sizes().fold(Memory::default(), Memory::and_f32s);
        let largest = sizes().max().unwrap_or(0);
        if part == Part::Embed { all } else { all.and_f32s(largest).and_f32s(largest) }
    }

    /// Operations of measuring a block: every candidate is solved; `kl` runs what follows again, gradients run once.
    fn measure_flops(&self, i: usize, graph: &Graph, allocation: &Allocation, tokens: usize) -> f64 {
        let pass = 2.0 * graph.parameters() as f64 * tokens as f64;
        let solves: f64 = graph.weights.iter().map(|w| self.program.flops(w.shape[0], w.shape[1])).sum();
        let inputs = graph.linears_by_input().into_iter();
        let inputs: f64 = inputs.map(|(edge, _)| self.program.input_flops(graph.values[edge.value].dim)).sum();
        let again = match allocation.settings.sensitivity {
            Sensitivity::Kl => (self.grids.len() - i) * graph.weights.len() * allocation.candidates.len(),
            Sensitivity::Error => 1,
            Sensitivity::Fisher | Sensitivity::Trace | Sensitivity::Taylor => 4,
        };
        pass * again as f64 + solves * allocation.candidates.len() as f64 + inputs
    }

    /// Anonymous memory while a block is measured.
    fn measure_memory(&self, graph: &Graph, allocation: &Allocation, tokens: usize, length: usize) -> Memory {
        let largest = graph.weights.iter().max_by_key(|w| w.shape[0] * w.shape[1]);
        let [rows, cols] = largest.map_or([0, 0], |w| w.shape);
        let mut all = forward(graph, tokens).and_f32s(CHUNK_TOKENS.max(length) * graph.values[Graph::INPUT].dim);
        if self.needs.gram || allocation.settings.sensitivity == Sensitivity::Error {
            all = gram_floats(graph).fold(all, Memory::and_f32s);
        }
        if allocation.settings.sensitivity.is_backward() {
            let values: usize = graph.values.iter().map(fewbit_graph::Value::width).sum();
            let each = graph.weights.iter().map(|w| w.shape[0] * w.shape[1]);
            // Weights, gradients, their squares; values and their gradients.
            all = each.fold(all, |m, n| m.and_f32s(n).and_f32s(n).and_f32s(n)).and_f32s(2 * values * length);
        }
        let codes = Memory::default().and(self.program.scratch_bytes(rows, cols)).and_f32s(rows * cols);
        all.with(codes).and_f32s(rows * cols).and_f32s(rows * cols)
    }

    /// Bytes of the matrices that are written of a part.
    fn stored(&self, i: usize, graph: &Graph, plain: &[Plain]) -> u64 {
        let weights = graph.weights.iter().zip(&self.grids[i]).zip(plain);
        weights.map(|((w, grid), p)| grid.as_ref().map_or(p.bytes, |g| self.weight_bits(&**g, w.shape) / 8)).sum()
    }

    /// Operations on a part; those of attention are few beside the linears'.
    fn flops(&self, i: usize, graph: &Graph, tokens: usize) -> f64 {
        let [weights, squares] = [graph.parameters() as f64, gram_floats(graph).sum::<usize>() as f64];
        let forwards = if self.is_whole && !self.is_original_stream { 2.0 } else { 1.0 };
        let mut flops = 2.0 * forwards * weights * tokens as f64;
        if self.needs.gram {
            flops += squares * tokens as f64;
        }
        let rounded = graph.weights.iter().zip(&self.grids[i]).filter(|(_, g)| g.is_some());
        flops += rounded.map(|(w, _)| self.program.flops(w.shape[0], w.shape[1])).sum::<f64>();
        let inputs = graph.linears_by_input().into_iter();
        flops += inputs.map(|(edge, _)| self.program.input_flops(graph.values[edge.value].dim)).sum::<f64>();
        for (t, site) in self.sites(graph) {
            let rows: usize = site.consumers.iter().map(|w| graph.weights[*w].shape[0]).sum();
            flops += self.transforms[t].flops(rows, site.dim);
        }
        flops
    }

    /// What learning a block holds: of each weight the base, what is learned, its best, the optimizer's, the weight and its
    /// gradient, here and in the original; of each token in a step all values, forward and backward. A window has as much
    /// for each of its blocks.
    fn learning(&self, graph: &Graph, length: usize, blocks: usize) -> Memory {
        let values: usize = graph.values.iter().map(|v| v.dim).sum();
        let of = |l: &Learn| {
            let width = if l.settings.scope == Scope::Window { l.settings.window.min(blocks) } else { 1 };
            let tokens = l.settings.batch * length;
            Memory::default().and_f32s(width * (9 * graph.parameters() as usize + 2 * tokens * values))
        };
        let learns = self.learns.iter().filter(|l| l.settings.scope != Scope::Model);
        learns.map(of).fold(Memory::default(), Memory::or)
    }

    /// What learning the whole model holds, as [`learning`](Self::learning) of all its blocks, and the logits of a step.
    fn learning_all(&self, file: &ModelFile, length: usize) -> Memory {
        let (model, models) = (file.model(), self.learns.iter().filter(|l| l.settings.scope == Scope::Model));
        let parameters: u64 = model.parts().map(|(_, g)| g.parameters()).sum();
        let widest = model.blocks.iter().map(|g| g.values.iter().map(|v| v.dim).sum::<usize>()).max().unwrap_or(0);
        let of = |batch: usize| {
            let boundaries = (model.blocks.len() + 1) * model.hidden;
            let per_token = 2 * widest + boundaries + model.vocabulary;
            Memory::default().and_f32s(9 * parameters as usize).and_f32s(batch * length * per_token)
        };
        models.map(|l| of(l.settings.batch)).fold(Memory::default(), Memory::or)
    }

    /// Anonymous memory of the largest moments in one part.
    fn memory(&self, i: usize, graph: &Graph, plain: &[Plain], tokens: usize) -> Memory {
        let floats = |w: &WeightId| graph.weights[*w].shape[0] * graph.weights[*w].shape[1];
        let packed = |w: &WeightId| {
            let shape = graph.weights[*w].shape;
            self.grids[i][*w].as_ref().map_or(0, |g| self.weight_bits(&**g, shape) / 8)
        };
        let mut all = Memory::default();
        let mut done = Memory::default();
        for (inputs, weights) in self.stages(i, graph) {
            let mut held = done;
            if self.needs.gram {
                held = inputs.iter().fold(held, |m, edge| m.and_f32s(graph.values[edge.value].dim.pow(2)));
            }
            if tokens > 0 {
                all = all.or(held.with(forward(graph, tokens)));
            }
            if !self.transforms.is_empty() {
                held = weights.iter().fold(held, |m, w| m.and_f32s(floats(w)));
            }
            for w in &weights {
                let [rows, cols] = graph.weights[*w].shape;
                let mut solve = if self.needs.fisher { held.and_f32s(floats(w)) } else { held };
                if self.transforms.is_empty() {
                    solve = solve.and_f32s(floats(w));
                } else {
                    // A search rounds a scaled copy, and looks at the difference.
                    all = all.or(held.and_f32s(floats(w)).and_f32s(floats(w)));
                }
                all = all.or(solve.and(self.program.scratch_bytes(rows, cols)));
                done = done.and(packed(w));
                held = held.and(packed(w));
            }
        }
        // Writing holds the packed tensors beside the storages; then the compressed block makes the next one's input.
        let written = |w: WeightId| if self.grids[i][w].is_some() { packed(&w) } else { plain[w].decoded() };
        let written = (0..graph.weights.len()).map(written).fold(done, Memory::and);
        all.or(written).or(if tokens > 0 { done.with(forward(graph, tokens)) } else { done })
    }
}

/// A matrix that is written as it is.
struct Plain {
    bytes: u64,
    /// Whether it lies in the source as that what is written.
    is_mapped: bool,
}

impl Plain {
    /// All matrices of a part. What is decoded from blocks may need 32 bits for each value.
    fn all(file: &ModelFile, part: Part) -> Vec<Self> {
        let weights = file.model().part(part).weights.iter().enumerate();
        let plain = |(w, weight): (WeightId, &Weight)| {
            let is_mapped = !file.is_weight_quantized(part, w);
            let element = if is_mapped { file.dtype().size_bytes() } else { 4 };
            // What lies transposed is turned in memory.
            let is_mapped = is_mapped && !file.fused(part, w).is_some_and(|f| f.is_transposed);
            Self { bytes: (element * weight.shape[0] * weight.shape[1]) as u64, is_mapped }
        };
        weights.map(plain).collect()
    }

    /// Memory that it takes when it is written.
    fn decoded(&self) -> u64 {
        if self.is_mapped { 0 } else { self.bytes }
    }
}

/// Values of one chunk that are there at a time: two of the MLP, and the residual stream, before and after its norm, as
/// far as buffers of one size serve several.
fn forward(graph: &Graph, tokens: usize) -> Memory {
    let chunk = CHUNK_TOKENS.min(tokens);
    let widest = graph.values.iter().filter(|v| v.routed.is_none()).map(|v| v.dim).max().unwrap_or(0);
    let stream = graph.values[Graph::INPUT].dim;
    // What products within experts make.
    let within = graph.nodes.iter().filter(|n| matches!(n.op, Op::Dispatch | Op::ExpertLinear { .. }));
    [widest, widest, stream, stream, stream, stream, stream]
        .into_iter()
        .chain(within.map(|n| graph.values[n.output].width()))
        .fold(Memory::default(), |m, d| m.and_f32s(chunk * d))
}

/// A sequence on its way back through one part: its numbers and their gradients, what the way forward kept, and the
/// boundaries of all blocks.
fn backward(model: &Model, graph: &Graph, tokens: usize) -> Memory {
    let kept: usize = graph.values.iter().map(|v| v.dim).sum();
    // The head is taken some rows at a time.
    let rows = if graph.values.iter().any(|v| v.dim == model.vocabulary) { tokens.min(256) } else { tokens };
    let boundaries = (model.blocks.len() + 1) * tokens * model.hidden;
    let weights = graph.weights.iter().fold(Memory::default(), |m, w| {
        let floats = w.shape[0] * w.shape[1];
        m.and_f32s(floats).and_f32s(floats)
    });
    weights.and_f32s(boundaries).and_f32s(3 * rows * kept)
}

/// The sizes of `XᵀX` of all inputs of linears.
fn gram_floats(graph: &Graph) -> impl Iterator<Item = usize> {
    graph.linears_by_input().into_iter().map(|(edge, _)| graph.values[edge.value].dim.pow(2))
}

/// Memory at some moment. What is large goes back to the system when it is let go; what is small stays with the
/// allocator for the next phase, so that each kind has its own peak.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    small: u64,
    large: u64,
}

impl Memory {
    /// Where glibc's threshold for pieces that are mapped one by one ends up.
    const LARGE: u64 = 32 << 20;

    /// Beside a piece of so many bytes.
    fn and(mut self, bytes: u64) -> Self {
        *(if bytes >= Self::LARGE { &mut self.large } else { &mut self.small }) += bytes;
        self
    }

    fn and_f32s(self, count: usize) -> Self {
        self.and(4 * count as u64)
    }

    /// Both at a time.
    fn with(self, other: Self) -> Self {
        Self { small: self.small + other.small, large: self.large + other.large }
    }

    /// One after the other.
    fn or(self, other: Self) -> Self {
        Self { small: self.small.max(other.small), large: self.large.max(other.large) }
    }

    fn bytes(self) -> u64 {
        self.small + self.large
    }
}

/// What the work as a whole reaches of the speed of a plain product.
const SHARE_OF_PEAK: f64 = 0.7;

/// Bytes that the tokenizer takes for each byte of a text while it encodes it.
const ENCODING: u64 = 60;

/// Bytes that a tokenizer takes for each of its tokens.
const TOKENIZER: u64 = 400;

/// The same where the vocabulary of a GGUF file becomes a `tokenizer.json`, which is read again and compared.
const TRANSLATION: u64 = 1900;

/// Code and tables: what a run has before any block.
const BASE_BYTES: u64 = 32 << 20;
