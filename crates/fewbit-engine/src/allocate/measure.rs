//! The measure sweep over the original model.

use std::collections::BTreeMap;
use std::sync::Arc;

use fewbit_format::{Dtype, Error, Mat, Online, QuantizedLinear, Result, Storage, Tensor};
use fewbit_graph::{Edge, Part, WeightId};
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Batch, Hooks, Layer, NoHooks, Rotations, Workspace};
use fewbit_store::PartWeights;

use super::backward::Backward;
use super::divergence::Divergences;
use super::{Allocation, PartCosts, Sensitivity, graph_part};
use crate::calibration::Calibration;
use crate::experts::fill_up;
use crate::kinds::{End, InputJob, Needs};
use crate::mapped;
use crate::origin::Origin;
use crate::outputs::write_file;
use crate::program::Target;
use crate::quantize::Run;
use crate::report::Progress;
use crate::stats::{Collector, InputStats};
use crate::stream::Stream;
use crate::walk::{CHUNK_TOKENS, embedded};

/// Sequences on their way through parts of the model, in chunks of whole sequences.
pub(super) struct Passage<'a> {
    team: &'a Team,
    pub(super) sequences: usize,
    pub(super) length: usize,
    pub(super) hidden: usize,
    at_once: usize,
    /// For a chunk, and for the last.
    rotations: [Rotations; 2],
    workspace: Workspace,
}

impl<'a> Passage<'a> {
    pub(super) fn new(team: &'a Team, origin: &Origin<'_>, calibration: &Calibration) -> Self {
        let (sequences, length, model) = (calibration.samples, calibration.length, origin.model());
        let at_once = (CHUNK_TOKENS / length).clamp(1, sequences);
        let rotations =
            [at_once, sequences % at_once].map(|count| Rotations::new(&model.ropes, &Batch::sequences(count, length)));
        Self { team, sequences, length, hidden: model.hidden, at_once, rotations, workspace: Workspace::default() }
    }

    /// Numbers of the residual stream of all sequences.
    pub(super) fn floats(&self) -> usize {
        self.sequences * self.length * self.hidden
    }

    /// Takes all sequences, which lie in `stream` at slot `from`, through a layer to slot `to`.
    pub(super) fn go(
        &mut self,
        layer: &Layer,
        stream: &mut Stream,
        [from, to]: [usize; 2],
        hooks: &mut dyn Hooks,
        check: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let size = self.floats();
        for first in (0..self.sequences).step_by(self.at_once) {
            check()?;
            let count = self.at_once.min(self.sequences - first);
            let at = first * self.length * self.hidden;
            let mut x = vec![0.0; count * self.length * self.hidden];
            stream.read(from * size + at, &mut x);
            let turn = &self.rotations[usize::from(count < self.at_once)];
            let batch = Batch::sequences(count, self.length);
            layer.run(self.team, &batch, turn, None, hooks, &mut self.workspace, &mut x);
            stream.write(to * size + at, &x);
        }
        Ok(())
    }
}

/// What the sweep knows of the part that it is at.
pub(super) struct Here<'a> {
    pub(super) i: usize,
    pub(super) part: Part,
    pub(super) weights: &'a PartWeights,
    /// Statistics of the inputs of linears that are rounded.
    pub(super) stats: Vec<(Edge, InputStats)>,
}

/// One linear under one candidate.
pub(super) struct Candidate<'a> {
    pub(super) input: Edge,
    /// Those that read it.
    pub(super) readers: &'a [WeightId],
    pub(super) weight: WeightId,
    pub(super) index: usize,
    pub(super) original: &'a Mat,
    pub(super) linear: QuantizedLinear,
    pub(super) stats: &'a InputStats,
}

impl Run<'_> {
    /// Costs of all candidates for all linears.
    pub(super) fn measure(
        &self,
        allocation: &Allocation,
        origin: &Origin<'_>,
        progress: &mut dyn Progress,
    ) -> Result<Vec<PartCosts>> {
        let path = self.measured_path();
        let mut done: BTreeMap<usize, PartCosts> = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::input(format!("is damaged ({e})")).hint("start anew with `--force`").file(&path))?,
            Err(_) => BTreeMap::new(),
        };
        let blocks = self.file.model().blocks.len();
        let is_backward = allocation.settings.sensitivity.is_backward();
        let known: Vec<bool> = (0..blocks).map(|i| done.contains_key(&i)).collect();
        if known.contains(&false) {
            let all = self.calibration.as_ref().ok_or_else(|| Error::internal("costs without text"))?;
            let samples = allocation.settings.samples.min(all.samples);
            let calibration = Calibration::new(all.ids[..samples * all.length].to_vec(), all.length);
            progress.begin("measuring", blocks as u64);
            let mut keep = |i: usize, costs: PartCosts| {
                done.insert(i, costs);
                progress.at(done.len() as u64);
                let text = serde_json::to_vec(&done).map_err(|e| Error::internal(e.to_string()))?;
                write_file(&path, &text)
            };
            if is_backward {
                Backward::new(self, allocation, origin, &calibration)?.measure(&known, &mut keep)?;
            } else {
                self.measure_forward(allocation, origin, &calibration, &known, &mut keep)?;
            }
        }
        let none = |i: usize| vec![Vec::new(); graph_part(&self.file, i).1.weights.len()];
        let costs: Vec<PartCosts> = (0..=blocks).map(|i| done.remove(&i).unwrap_or_else(|| none(i))).collect();
        if costs.iter().flatten().flatten().any(|c| !c.is_finite()) {
            return Err(Error::input("a cost of the allocation is no number").hint("check the calibration text"));
        }
        Ok(costs)
    }

    /// Block after block, the original ones making the inputs.
    fn measure_forward(
        &self,
        allocation: &Allocation,
        origin: &Origin<'_>,
        calibration: &Calibration,
        known: &[bool],
        keep: &mut dyn FnMut(usize, PartCosts) -> Result<()>,
    ) -> Result<()> {
        let is_kl = allocation.settings.sensitivity == Sensitivity::Kl;
        let mut passage = Passage::new(self.team, origin, calibration);
        let slots = allocation.slots(known.len());
        let stream = Stream::create(&self.places.partial.join("measure.f32"), slots * passage.floats())?;
        let mut stream = embedded(origin, calibration, stream)?;
        let check = || self.check_stop();
        for (i, is_known) in known.iter().enumerate() {
            check()?;
            let rounded = allocation.rounded(i);
            let (part, graph) = graph_part(&self.file, i);
            let weights = origin.part(part)?;
            let mut layer = Layer::new(Arc::new(graph.clone()), weights.clone(), Arithmetic::Exact)?;
            if *is_known || rounded.is_empty() {
                passage.go(&layer, &mut stream, [0, 0], &mut NoHooks, &check)?;
            } else {
                let here = self.observe(allocation, &mut passage, &mut stream, [0, 1], (i, part), &weights, &layer)?;
                let mut costs = vec![vec![0.0; allocation.candidates.len()]; graph.weights.len()];
                if is_kl {
                    Divergences { run: self, origin, passage: &mut passage, stream: &mut stream }
                        .measure(allocation, &here, &mut layer, &mut costs)?;
                } else {
                    self.each_candidate(allocation, &here, &mut |c| {
                        costs[c.weight][c.index] = relative_error(self.team, &c)?;
                        Ok(())
                    })?;
                    passage.go(&layer, &mut stream, [0, 0], &mut NoHooks, &check)?;
                }
                (0..costs.len()).filter(|w| !rounded.contains(w)).for_each(|w| costs[w].clear());
                keep(i, costs)?;
            }
            drop(layer);
            self.file.drop_pages(part);
        }
        Ok(())
    }

    /// Runs the original part from one slot to another, and gathers what its linears read.
    pub(super) fn observe<'w>(
        &self,
        allocation: &Allocation,
        passage: &mut Passage<'_>,
        stream: &mut Stream,
        slots: [usize; 2],
        (i, part): (usize, Part),
        weights: &'w PartWeights,
        layer: &Layer,
    ) -> Result<Here<'w>> {
        let mut needs = self.bound.needs;
        needs = needs.and(Needs { gram: allocation.settings.sensitivity == Sensitivity::Error, ..Needs::default() });
        let graph = layer.graph();
        let rounded = allocation.rounded(i);
        let inputs = graph.linears_by_input().into_iter().filter(|(_, ws)| ws.iter().any(|w| rounded.contains(w)));
        let widths: Vec<_> = inputs.map(|(edge, _)| (edge, graph.values[edge.value].dim)).collect();
        let mut collector = Collector::new(self.team, needs, widths.into_iter(), None);
        let check = || self.check_stop();
        passage.go(layer, stream, slots, &mut collector, &check)?;
        let mut stats = collector.finish();
        fill_up(graph, &mut stats);
        Ok(Here { i, part, weights, stats })
    }

    /// Rounds every linear of a part with every candidate, as the recipe rounds it.
    pub(super) fn each_candidate(
        &self,
        allocation: &Allocation,
        here: &Here<'_>,
        visit: &mut dyn FnMut(Candidate<'_>) -> Result<()>,
    ) -> Result<()> {
        let (graph, none) = (graph_part(&self.file, here.i).1, InputStats::default());
        for (input, readers) in graph.linears_by_input() {
            let rounded: Vec<WeightId> =
                readers.iter().copied().filter(|w| allocation.candidates[0][here.i][*w].is_some()).collect();
            if rounded.is_empty() {
                continue;
            }
            let stats = here.stats.iter().find(|(edge, _)| *edge == input).map_or(&none, |(_, s)| s);
            let name = self.file.exported(here.part, &graph.weights[rounded[0]].name)?.name;
            let first = readers[0];
            let (is_rotated, dim) = (self.bound.is_rotated(graph, here.part, first), graph.weights[first].shape[1]);
            let map = self.map(&name, End::Input, dim, is_rotated, (here.i << 20 | 1 << 19 | first) as u64);
            let mapped = map.as_ref().map(|m| mapped::stats(self.team, stats, m));
            let mapped = mapped.as_ref().unwrap_or(stats);
            let program = self.bound.program.begin(InputJob { name: &name, stats: mapped, team: self.team })?;
            for weight in rounded {
                let name = self.file.exported(here.part, &graph.weights[weight].name)?.name;
                let original = here.weights.linears[weight].decode();
                let bias = here.weights.linears[weight].bias.clone();
                let place = (here.i << 20 | weight) as u64;
                let maps = [map.clone(), self.map(&name, End::Output, original.rows(), false, place)];
                let [input_map, output_map] = [&maps[0], &maps[1]].map(Option::as_ref);
                let target = mapped::weight(self.team, original.clone(), input_map, output_map);
                let fisher = self.fisher.as_ref().map(|f| f.of(&self.bound, here.i, graph, weight));
                for (index, grids) in allocation.candidates.iter().enumerate() {
                    self.check_stop()?;
                    let grid = grids[here.i][weight].as_deref().ok_or_else(|| Error::internal("half a candidate"))?;
                    let seed = self.request.seed.wrapping_add(place);
                    let target = Target { name: &name, weight: &target, grid, fisher: fisher.as_ref(), seed };
                    let mut linear = program.run(&target, bias.clone())?.linear;
                    if maps.iter().any(Option::is_some) {
                        linear = self.unmapped(&linear, &maps)?;
                    }
                    let readers = &readers[..];
                    visit(Candidate { input, readers, weight, index, original: &original, linear, stats })?;
                }
            }
        }
        Ok(())
    }
}

impl Run<'_> {
    /// The matrix of a linear between maps, as it is without them.
    fn unmapped(&self, linear: &QuantizedLinear, maps: &[Option<Online>; 2]) -> Result<QuantizedLinear> {
        let [input, output] = maps.each_ref().map(|m| m.as_ref().map(Online::inverse));
        let w = mapped::weight(self.team, linear.decode(), input.as_ref(), output.as_ref());
        let tensor = Tensor::from_f32(Dtype::F32, &[w.rows(), w.cols()], w.data())?;
        Ok(QuantizedLinear::uniform(Storage::Dense(tensor), linear.bias.clone()))
    }
}

/// `tr(Δ H Δᵀ) / tr(W H Wᵀ)`, of an input that was never seen `‖Δ‖² / ‖W‖²`.
fn relative_error(team: &Team, candidate: &Candidate<'_>) -> Result<f64> {
    let of = |m: &Mat| candidate.stats.squared_output(team, m);
    let (error, whole) = (of(&difference(candidate)), of(candidate.original));
    match (error, whole) {
        (Some(_), Some(0.0)) => Ok(0.0),
        (Some(error), Some(whole)) => Ok(error / whole),
        _ => Err(Error::input("the error of its outputs is no number").hint("check the calibration text")),
    }
}

/// `Ŵ − W`.
pub(super) fn difference(candidate: &Candidate<'_>) -> Mat {
    let mut delta = candidate.linear.decode();
    delta.data_mut().iter_mut().zip(candidate.original.data()).for_each(|(d, w)| *d -= w);
    delta
}
