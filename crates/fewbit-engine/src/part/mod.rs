//! One block, or the head, on its way from the checkpoint to its shard.

mod look;
mod transforms;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use fewbit_format::{ActivationFormat, Error, Mat, Online, QuantizedLinear, Result, Storage, Tensor};
use fewbit_grad::Parameters;
use fewbit_graph::{Edge, Graph, Part, WeightId};
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Hooks, Layer, NoHooks};
use fewbit_store::PartWeights;

use crate::allocate::RowChoice;
use crate::experts::{fill_up, warning};
use crate::fold::BlockTensors;
use crate::journal::Done;
use crate::kinds::{End, Grid, GridJob, InputJob, MapJob};
use crate::mapped;
use crate::origin::Origin;
use crate::outputs::{Schemes, Shard, shard_name, write_shard};
use crate::program::{Compressed, InputProgram, Target};
use crate::quantize::Run;
use crate::report::{BlockReport, LinearReport};
use crate::stats::{Collector, InputStats};
use crate::walk::{Streams, To, Walk};

/// A part on its way.
struct Work<'r, 'f> {
    run: &'r Run<'f>,
    /// Counts the blocks, and the head after them.
    i: usize,
    part: Part,
    graph: Arc<Graph>,
    /// In the basis that the recipe's rotations chose.
    source: PartWeights,
    /// Under the transforms, once they are chosen; what is rounded is taken from here.
    tensors: Option<BlockTensors>,
    /// As far as they are compressed already.
    linears: Vec<Arc<QuantizedLinear>>,
    /// What the linears were before rounding, as far as something is learned of them.
    bases: Vec<Option<Mat>>,
    /// Experts that got too few tokens.
    short: BTreeSet<usize>,
    report: BlockReport,
}

/// What is known of the inputs that are looked at together.
#[derive(Default)]
struct Looked {
    stats: Vec<(Edge, InputStats)>,
    /// Inputs of experts that were filled up.
    filled: BTreeSet<Edge>,
}

impl Run<'_> {
    /// Compresses a block, or the head, and writes its shard, and takes the calibration tokens through it.
    ///
    /// `i` counts the blocks, and the head after them.
    pub(crate) fn part(
        &self,
        i: usize,
        part: Part,
        origin: &Origin<'_>,
        streams: &mut Option<Streams<'_>>,
    ) -> Result<Done> {
        self.check_stop()?;
        let mut work = Work::new(self, i, part, origin.part(part)?);
        let mut walk = match streams {
            Some(_) => Some(work.walk(work.source.clone())?),
            None => None,
        };
        let importance = match streams {
            Some(streams) => work.importance(&mut streams.compressed)?,
            None => None,
        };
        let mut cached = work.cached();
        for (inputs, _) in self.bound.stages(i, &work.graph) {
            let mut looked = Looked::default();
            if let (Some(streams), Some(walk), true) = (&mut *streams, &mut walk, self.bound.needs.any()) {
                let seen = cached.as_mut().filter(|_| !self.bound.is_whole);
                looked.stats = work.look(&mut streams.compressed, walk, &inputs, importance.as_deref(), seen)?;
                looked.filled = fill_up(&work.graph, &mut looked.stats);
                work.short.extend(looked.filled.iter().filter_map(|edge| edge.expert));
            }
            work.give_importances(&inputs, &mut looked.stats)?;
            if !self.bound.transforms.is_empty() {
                work.transform(&mut looked.stats)?;
            }
            let by_input = work.graph.linears_by_input().into_iter();
            for (input, linears) in by_input.filter(|(edge, _)| inputs.contains(edge)) {
                work.compress(input, &linears, &looked)?;
                if let (Some(walk), false) = (&mut walk, self.bound.is_whole) {
                    walk.layer.replace(input, linears.iter().map(|w| work.linears[*w].clone()).collect());
                }
            }
        }
        work.learn(streams)?;
        work.go_on(streams, walk, &mut cached)?;
        work.finish(origin, cached)
    }

    /// Writes the shard of a part into a folder; the head's holds the embedding too. Returns how its linears are stored.
    pub(crate) fn write(
        &self,
        folder: &Path,
        i: usize,
        part: Part,
        origin: &Origin<'_>,
        linears: &[Arc<QuantizedLinear>],
        vectors: &[Vec<f32>],
        caches: &[ActivationFormat],
    ) -> Result<Schemes> {
        let mut shard = Shard::new(&self.file, self.bound.format.layout());
        if part == Part::Head {
            let embed = origin.part(Part::Embed)?;
            shard.add(Part::Embed, &self.outer(Part::Embed, &embed.linears)?, &embed.vectors)?;
        }
        let is_shared = part == Part::Head && self.bound.is_tied(&self.file);
        let linears = if is_shared { Cow::Borrowed(&[][..]) } else { self.outer(part, linears)? };
        shard.add(part, &linears, vectors)?;
        shard.caches(part, caches)?;
        write_shard(&folder.join(shard_name(i)), &shard.tensors)?;
        Ok(shard.schemes)
    }

    /// The linears of a part, those that no solver looked at rounded to nearest if a mix has a type for them.
    fn outer<'l>(&self, part: Part, linears: &'l [Arc<QuantizedLinear>]) -> Result<Cow<'l, [Arc<QuantizedLinear>]>> {
        let (Some(grid), [linear]) = (self.bound.outer(part), linears) else { return Ok(Cow::Borrowed(linears)) };
        let [band] = &linear.bands[..] else { return Ok(Cow::Borrowed(linears)) };
        if !matches!(band.storage, Storage::Dense(_) | Storage::Ggml(_)) {
            return Ok(Cow::Borrowed(linears));
        }
        let given = self.importances.as_ref();
        let mean_square = given.and_then(|g| g.means(&self.file, part, self.file.model().part(part), 0).ok());
        let stats = InputStats { mean_square, ..InputStats::default() };
        let storage = nearest(grid, linear, &stats, self.team)
            .map_err(|e| e.tensor(&self.file.module(part, 0)).file(self.file.checkpoint().path()))?;
        Ok(Cow::Owned(vec![Arc::new(QuantizedLinear::uniform(storage, linear.bias.clone()))]))
    }

    /// The map of one row, if the recipe has some.
    pub(crate) fn map(&self, name: &str, end: End, dim: usize, is_rotated: bool, place: u64) -> Option<Online> {
        let seed = self.request.seed.wrapping_add(place);
        self.bound.online.as_ref()?.choose(&MapJob { name, end, dim, is_rotated, seed })
    }
}

/// A large matrix in a grid's own rounding, some rows at a time.
fn nearest(grid: &dyn Grid, linear: &QuantizedLinear, stats: &InputStats, team: &Team) -> Result<Storage> {
    const ROWS: usize = 4096;
    let [rows, cols] = linear.shape;
    let pieces = (0..rows).step_by(ROWS).map(|first| {
        let mut piece = Mat::zeros(ROWS.min(rows - first), cols);
        linear.decode_rows(first..first + piece.rows(), piece.data_mut());
        let bound = grid.begin(&GridJob { weight: &piece, stats, seed: 0, team })?;
        bound.round_rows(&piece, team).unwrap_or_else(|| Err(Error::internal("a mix without a rounding of its own")))
    });
    let pieces: Vec<Storage> = pieces.collect::<Result<_>>()?;
    Storage::stack(&pieces.iter().collect::<Vec<_>>()).ok_or_else(|| Error::internal("pieces of several kinds"))
}

impl<'r, 'f> Work<'r, 'f> {
    fn new(run: &'r Run<'f>, i: usize, part: Part, source: PartWeights) -> Self {
        let graph = Arc::new(run.file.model().part(part).clone());
        Self {
            run,
            i,
            part,
            tensors: None,
            linears: source.linears.clone(),
            bases: vec![None; graph.weights.len()],
            short: BTreeSet::new(),
            report: BlockReport::default(),
            source,
            graph,
        }
    }

    /// A walk through the part with these weights.
    fn walk(&self, weights: PartWeights) -> Result<Walk> {
        Ok(Walk::new(Layer::new(self.graph.clone(), weights, Arithmetic::Exact)?))
    }

    /// The part's vectors as they will be written.
    fn vectors(&self) -> &[Vec<f32>] {
        self.tensors.as_ref().map_or(&self.source.vectors, |t| &t.vectors)
    }

    /// Puts the numbers of an importance matrix, if there is one, to what was seen of the inputs.
    fn give_importances(&self, inputs: &[Edge], stats: &mut Vec<(Edge, InputStats)>) -> Result<()> {
        let Some(given) = &self.run.importances else { return Ok(()) };
        for (edge, linears) in self.graph.linears_by_input() {
            let first = linears.iter().find(|w| self.run.bound.grids[self.i][**w].is_some());
            let Some(first) = first.filter(|_| inputs.contains(&edge)) else { continue };
            let mean_square = Some(given.means(&self.run.file, self.part, &self.graph, *first)?);
            match stats.iter_mut().find(|(e, _)| *e == edge) {
                Some((_, seen)) => seen.mean_square = mean_square,
                None => stats.push((edge, InputStats { mean_square, ..InputStats::default() })),
            }
        }
        Ok(())
    }

    /// Whether the block is learned before the next is looked at.
    fn is_learned(&self) -> bool {
        self.run.bound.learns_blocks() && self.part != Part::Head && self.bases.iter().any(Option::is_some)
    }

    /// Whether the tokens go on through what the part became.
    fn goes_on(&self) -> bool {
        !self.run.bound.is_original_stream && self.run.bound.compresses_after(self.i)
    }

    /// Compresses the linears that read one input.
    fn compress(&mut self, input: Edge, linears: &[WeightId], looked: &Looked) -> Result<()> {
        let run = self.run;
        run.check_stop()?;
        let no_stats = InputStats::default();
        let stats = looked.stats.iter().find(|(edge, _)| *edge == input).map_or(&no_stats, |(_, s)| s);
        let first = &self.graph.weights[linears[0]];
        let name = run.file.exported(self.part, &first.name)?.name;
        let is_rotated = run.bound.is_rotated(&self.graph, self.part, linears[0]);
        let place = (self.i << 20 | 1 << 19 | linears[0]) as u64;
        let map = run.map(&name, End::Input, first.shape[1], is_rotated, place);
        let mapped = map.as_ref().map(|m| mapped::stats(run.team, stats, m));
        let stats = mapped.as_ref().unwrap_or(stats);
        let mut program = None;
        if linears.iter().any(|w| run.bound.grids[self.i][*w].is_some()) {
            let clock = Instant::now();
            program = Some(run.bound.program.begin(InputJob { name: &name, stats, team: run.team })?);
            self.report.solve_seconds += clock.elapsed().as_secs_f64();
        }
        for w in linears.iter().copied() {
            run.check_stop()?;
            let mut linear = match &program {
                Some(program) if run.bound.grids[self.i][w].is_some() => self.linear(w, program, map.as_ref())?,
                _ => self.untouched(w)?,
            };
            if let (Some(act), Some(_)) = (&run.bound.input, &run.bound.grids[self.i][w]) {
                linear.activation = Some(act.format(stats)?);
            }
            self.linears[w] = Arc::new(linear);
            // An error over tokens that stand in for others is none of the calibration's.
            if let (true, Some(linear)) = (looked.filled.contains(&input), self.report.linears.last_mut()) {
                linear.output_mse = None;
            }
        }
        Ok(())
    }

    /// Takes matrix and bias out of what the transforms made, if there were some.
    fn take(&mut self, w: WeightId) -> Option<(Mat, Option<Vec<f32>>)> {
        let tensors = self.tensors.as_mut()?;
        Some((std::mem::replace(&mut tensors.weights[w], Mat::zeros(0, 0)), tensors.biases[w].take()))
    }

    /// A linear that is not rounded: written in the source's type; the run goes on with what will be read.
    fn untouched(&mut self, w: WeightId) -> Result<QuantizedLinear> {
        let Some((matrix, bias)) = self.take(w) else { return Ok(QuantizedLinear::clone(&self.source.linears[w])) };
        let tensor = Tensor::from_f32(self.run.file.dtype(), &[matrix.rows(), matrix.cols()], matrix.data())?;
        Ok(QuantizedLinear::uniform(Storage::Dense(tensor), bias))
    }

    /// Compresses one linear, whose input is mapped by `input`.
    fn linear(&mut self, w: WeightId, program: &InputProgram<'_>, input: Option<&Online>) -> Result<QuantizedLinear> {
        let (run, i) = (self.run, self.i);
        let name = run.file.exported(self.part, &self.graph.weights[w].name)?.name;
        let original = self.source.linears[w].clone();
        let (weight, bias) = self.take(w).unwrap_or_else(|| (original.decode(), original.bias.clone()));
        let clock = Instant::now();
        let output = run.map(&name, End::Output, weight.rows(), false, (i << 20 | w) as u64);
        let weight = mapped::weight(run.team, weight, input, output.as_ref());
        // Every matrix has its own random numbers.
        let seed = run.request.seed.wrapping_add((i << 20 | w) as u64);
        let fisher = run.fisher.as_ref().map(|f| f.of(&run.bound, i, &self.graph, w));
        let grid = run.bound.grids[i][w].as_deref().ok_or_else(|| Error::internal("a linear without a grid"))?;
        let target = Target { name: &name, weight: &weight, grid, fisher: fisher.as_ref(), seed };
        let split = run.bound.rows.get(&(i, w));
        let Compressed { mut linear, output_mse, warning } = match split {
            Some(rows) => rows.compress(program, &target, bias)?,
            None => program.run(&target, bias)?,
        };
        self.report.solve_seconds += clock.elapsed().as_secs_f64();
        self.report.warnings.extend(warning);
        linear.input.extend(input.cloned());
        linear.output.extend(output.map(|m| m.inverse()));
        let bits_per_weight = linear.stored_bits() as f64 / (weight.rows() * weight.cols()) as f64;
        let grid = grid.label() + &split.map_or_else(String::new, RowChoice::label) + &run.bound.program.side_label();
        self.report.linears.push(LinearReport { name, grid, bits_per_weight, output_mse });
        if run.bound.keeps_bases() || run.bound.learns_blocks() && self.part != Part::Head {
            self.bases[w] = Some(weight);
        }
        Ok(linear)
    }

    /// Takes the original stream through the original block, and learns what the recipe left open.
    fn learn(&mut self, streams: &mut Option<Streams<'_>>) -> Result<()> {
        let run = self.run;
        self.report.warnings.extend(warning(self.i, &self.report.tokens_per_expert, self.short.len()));
        if run.bound.keeps_bases() {
            run.keep_bases(self.i, &self.bases)?;
        }
        let Some(streams) = streams else { return Ok(()) };
        let clock = Instant::now();
        if let (Some(walker), true) = (&mut streams.original, self.goes_on() || self.is_learned()) {
            let mut walk = self.walk(self.source.clone())?;
            walker.go(&mut walk, To::End, &mut NoHooks, &|| run.check_stop())?;
        }
        if self.is_learned() {
            let original = Parameters::of(&self.graph, &self.source)?;
            let vectors = self.vectors().to_vec();
            let (i, bases, linears) = (self.i, &self.bases, &mut self.linears);
            run.learn(i, &self.graph, &original, &vectors, bases, linears, streams, &mut self.report)?;
        }
        self.report.learn_seconds = clock.elapsed().as_secs_f64();
        Ok(())
    }

    /// Takes the tokens through what the part became, where somebody reads what comes out.
    fn go_on(
        &mut self,
        streams: &mut Option<Streams<'_>>,
        walk: Option<Walk>,
        cached: &mut Option<Collector<'_>>,
    ) -> Result<()> {
        let run = self.run;
        let is_unseen = cached.is_some() && run.bound.is_whole;
        let is_changed = run.bound.is_whole || self.is_learned();
        self.bases.clear();
        self.source.linears.clear();
        let (Some(streams), Some(mut walk), true) = (streams, walk, self.goes_on() || is_unseen) else { return Ok(()) };
        let clock = Instant::now();
        if is_changed {
            let (linears, vectors) = (self.linears.clone(), self.vectors().to_vec());
            walk = self.walk(PartWeights { linears, vectors, ..PartWeights::default() })?;
        }
        let hooks: &mut dyn Hooks = match cached {
            Some(seen) if is_unseen => seen,
            _ => &mut NoHooks,
        };
        streams.compressed.go(&mut walk, To::End, hooks, &|| run.check_stop())?;
        self.report.forward_seconds += clock.elapsed().as_secs_f64();
        Ok(())
    }

    /// Writes the shard.
    fn finish(mut self, origin: &Origin<'_>, cached: Option<Collector<'_>>) -> Result<Done> {
        let (run, clock) = (self.run, Instant::now());
        let caches = self.cache_formats(cached)?;
        let schemes =
            run.write(&run.places.parts(), self.i, self.part, origin, &self.linears, self.vectors(), &caches)?;
        self.report.write_seconds = clock.elapsed().as_secs_f64();
        run.file.drop_pages(self.part);
        Ok(Done { block: self.i, report: self.report, schemes })
    }
}
