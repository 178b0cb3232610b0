//! One block, or the head, on its way from the checkpoint to its shard.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use fewbit_format::{ActivationFormat, Error, Mat, Online, QuantizedLinear, Result, Storage, Tensor};
use fewbit_grad::Parameters;
use fewbit_graph::{Edge, Graph, Op, Part, Producer, Site, Stored, WeightId};
use fewbit_runtime::{Arithmetic, Hooks, Layer, NoHooks};
use fewbit_store::PartWeights;

use crate::allocate::RowChoice;
use crate::experts::{fill_up, warning};
use crate::fold::{BlockTensors, fold, spread};
use crate::importance::{Received, token_weights};
use crate::journal::Done;
use crate::kinds::{Element, End, InputJob, MapJob, SiteJob};
use crate::mapped;
use crate::origin::Origin;
use crate::outputs::{Schemes, Shard, shard_name, write_shard};
use crate::program::{InputProgram, Target};
use crate::quantize::Run;
use crate::recipe::TokenWeights;
use crate::report::{BlockReport, LinearReport};
use crate::stats::{Both, Collector, InputStats};
use crate::walk::{Streams, To, Walk, Walker};

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
        let graph = Arc::new(self.file.model().part(part).clone());
        let mut report = BlockReport::default();
        let weights = origin.part(part)?;
        let mut current: Vec<Arc<QuantizedLinear>> = weights.linears.clone();
        // What the linears were before rounding, as far as something is learned of them.
        let mut bases: Vec<Option<Mat>> = vec![None; graph.weights.len()];
        let (mut tensors, no_stats, mut short) = (None, InputStats::default(), BTreeSet::new());
        let mut walk = match streams {
            Some(_) => Some(Walk::new(Layer::new(graph.clone(), weights.clone(), Arithmetic::Exact)?)),
            None => None,
        };
        let importance = match (&mut *streams, &walk) {
            (Some(streams), Some(walk)) => {
                self.importance(&mut streams.compressed, &walk.layer, &weights, &mut report)?
            }
            _ => None,
        };
        let mut cached = self.cached(&graph);
        for (inputs, _) in self.bound.stages(i, &graph) {
            let mut stats = Vec::new();
            let mut filled = BTreeSet::new();
            if let (Some(streams), Some(walk), true) = (&mut *streams, &mut walk, self.bound.needs.any()) {
                let weights = importance.as_deref();
                let seen = cached.as_mut().filter(|_| !self.bound.is_whole);
                stats = self.look(part, &mut streams.compressed, walk, &inputs, weights, seen, &mut report)?;
                filled = fill_up(&graph, &mut stats);
                short.extend(filled.iter().filter_map(|edge| edge.expert));
            }
            let clock = Instant::now();
            if !self.bound.transforms.is_empty() {
                tensors = Some(self.transformed(i, part, &graph, &weights, &mut stats)?);
            }
            report.transform_seconds += clock.elapsed().as_secs_f64();
            for (input, linears) in graph.linears_by_input().into_iter().filter(|(edge, _)| inputs.contains(edge)) {
                self.check_stop()?;
                let stats = stats.iter().find(|(edge, _)| *edge == input).map_or(&no_stats, |(_, s)| s);
                let first = &graph.weights[linears[0]];
                let name = self.file.exported(part, &first.name)?.name;
                let is_rotated = self.bound.is_rotated(&graph, part, linears[0]);
                let place = (i << 20 | 1 << 19 | linears[0]) as u64;
                let map = self.map(&name, End::Input, first.shape[1], is_rotated, place);
                let mapped = map.as_ref().map(|m| mapped::stats(self.team, stats, m));
                let stats = mapped.as_ref().unwrap_or(stats);
                let program = self.begin(i, &linears, InputJob { name: &name, stats, team: self.team }, &mut report)?;
                for w in linears.iter().copied() {
                    self.check_stop()?;
                    let changed = tensors
                        .as_mut()
                        .map(|t| (std::mem::replace(&mut t.weights[w], Mat::zeros(0, 0)), t.biases[w].take()));
                    let (program, map) = (program.as_ref(), map.as_ref());
                    let (mut linear, base) =
                        self.linear(i, part, &graph, w, &weights, changed, program, map, &mut report)?;
                    if let (Some(act), Some(_)) = (&self.bound.input, &self.bound.grids[i][w]) {
                        linear.activation = Some(act.format(stats)?);
                    }
                    current[w] = Arc::new(linear);
                    bases[w] = base;
                    // An error over tokens that stand in for others is none of the calibration's.
                    if let (true, Some(linear)) = (filled.contains(&input), report.linears.last_mut()) {
                        linear.output_mse = None;
                    }
                }
                if let (Some(walk), false) = (&mut walk, self.bound.is_whole) {
                    walk.layer.replace(input, linears.iter().map(|w| current[*w].clone()).collect());
                }
            }
        }
        report.warnings.extend(warning(i, &report.tokens_per_expert, short.len()));
        let vectors = tensors.map_or_else(|| weights.vectors.clone(), |t| t.vectors);
        let goes_on = !self.bound.is_original_stream && self.bound.compresses_after(i);
        if self.bound.keeps_bases() {
            self.keep_bases(i, &bases)?;
        }
        let is_learned = self.bound.learns_blocks() && part != Part::Head && bases.iter().any(Option::is_some);
        if let Some(streams) = &mut *streams {
            let clock = Instant::now();
            if goes_on || is_learned {
                self.originals(&graph, &weights, streams)?;
            }
            if is_learned {
                let original = Parameters::of(&graph, &weights)?;
                self.learn(i, &graph, &original, &vectors, &bases, &mut current, streams, &mut report)?;
            }
            report.learn_seconds = clock.elapsed().as_secs_f64();
        }
        let linears = current;
        drop((weights, bases));
        let is_unseen = cached.is_some() && self.bound.is_whole;
        if let (Some(streams), Some(mut walk), true) = (streams, walk, goes_on || is_unseen) {
            let clock = Instant::now();
            if self.bound.is_whole || is_learned {
                let (linears, vectors) = (linears.clone(), vectors.clone());
                let weights = PartWeights { linears, vectors, ..PartWeights::default() };
                walk = Walk::new(Layer::new(graph.clone(), weights, Arithmetic::Exact)?);
            }
            let hooks: &mut dyn Hooks = match &mut cached {
                Some(seen) if is_unseen => seen,
                _ => &mut NoHooks,
            };
            streams.compressed.go(&mut walk, To::End, hooks, &|| self.check_stop())?;
            report.forward_seconds += clock.elapsed().as_secs_f64();
        }
        let clock = Instant::now();
        let caches = self.cache_formats(&graph, cached)?;
        let schemes = self.write(&self.places.parts(), i, part, origin, &linears, &vectors, &caches)?;
        report.write_seconds = clock.elapsed().as_secs_f64();
        self.file.drop_pages(part);
        Ok(Done { block: i, report, schemes })
    }

    /// Takes the original stream through the original block, if there is one.
    fn originals(&self, graph: &Arc<Graph>, weights: &PartWeights, streams: &mut Streams<'_>) -> Result<()> {
        let Some(walker) = &mut streams.original else { return Ok(()) };
        let mut walk = Walk::new(Layer::new(graph.clone(), weights.clone(), Arithmetic::Exact)?);
        walker.go(&mut walk, To::End, &mut NoHooks, &|| self.check_stop())
    }

    /// Collects what keys and values are like, where the recipe rounds them.
    fn cached(&self, graph: &Graph) -> Option<Collector<'_>> {
        let act = self.bound.cache.as_ref().filter(|_| graph.slots() > 0)?;
        let values = graph.nodes.iter().filter(|n| matches!(n.op, Op::Cache { .. })).map(|n| n.output);
        let edges = values.map(|value| (Edge { value, expert: None }, graph.values[value].dim));
        Some(Collector::new(self.team, act.needs(), edges, None))
    }

    /// How the keys and values of each cache slot are rounded.
    fn cache_formats(&self, graph: &Graph, cached: Option<Collector<'_>>) -> Result<Vec<ActivationFormat>> {
        let (Some(act), Some(cached)) = (&self.bound.cache, cached) else { return Ok(Vec::new()) };
        debug_assert_eq!(graph.cached().len(), graph.slots(), "every slot has its linear");
        cached.finish().iter().map(|(_, stats)| act.format(stats)).collect()
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
            shard.add(Part::Embed, &embed.linears, &embed.vectors)?;
        }
        let is_shared = part == Part::Head && self.bound.is_tied(&self.file);
        shard.add(part, if is_shared { &[] } else { linears }, vectors)?;
        shard.caches(part, caches)?;
        write_shard(&folder.join(shard_name(i)), &shard.tensors)?;
        Ok(shard.schemes)
    }

    /// What each token counts in the statistics of a block, by the attention of the block before it is rounded.
    fn importance(
        &self,
        walker: &mut Walker<'_>,
        layer: &Layer,
        weights: &PartWeights,
        report: &mut BlockReport,
    ) -> Result<Option<Vec<f32>>> {
        let settings = &self.bound.calibration;
        if settings.weights == TokenWeights::Uniform || !self.bound.needs.gram {
            return Ok(None);
        }
        let length = self.calibration.as_ref().map_or(0, |c| c.length);
        let graph = layer.graph();
        let Some(mut received) = Received::of(self.team, graph, &weights.vectors, length) else { return Ok(None) };
        let clock = Instant::now();
        let inputs = received.inputs();
        let mut walk = Walk::new(Layer::new(Arc::new(graph.clone()), weights.clone(), Arithmetic::Exact)?);
        walker.go(&mut walk, To::Dead(&inputs), &mut received, &|| self.check_stop())?;
        report.forward_seconds += clock.elapsed().as_secs_f64();
        let mut scores = received.scores;
        token_weights(&mut scores, length, settings.least, settings.power);
        Ok(Some(scores))
    }

    /// Statistics of some inputs over all tokens.
    fn look(
        &self,
        part: Part,
        walker: &mut Walker<'_>,
        walk: &mut Walk,
        inputs: &[Edge],
        importance: Option<&[f32]>,
        seen: Option<&mut Collector<'_>>,
        report: &mut BlockReport,
    ) -> Result<Vec<(Edge, InputStats)>> {
        let clock = Instant::now();
        let widths: Vec<_> = inputs.iter().map(|e| (*e, walk.layer.graph().values[e.value].dim)).collect();
        let mut collector = Collector::new(self.team, self.bound.needs, widths.into_iter(), importance);
        let to = if self.bound.is_original_stream && part != Part::Head {
            To::End
        } else if self.bound.is_whole {
            To::Dead(inputs)
        } else {
            To::Stop(inputs)
        };
        match seen {
            Some(seen) => walker.go(walk, to, &mut Both(&mut collector, seen), &|| self.check_stop())?,
            None => walker.go(walk, to, &mut collector, &|| self.check_stop())?,
        }
        report.gram_seconds += collector.gram_seconds;
        report.forward_seconds += clock.elapsed().as_secs_f64() - collector.gram_seconds;
        let stats = collector.finish();
        for (edge, s) in &stats {
            if let Some(expert) = edge.expert {
                let counts = &mut report.tokens_per_expert;
                counts.resize(counts.len().max(expert + 1), 0);
                counts[expert] = s.tokens;
            }
        }
        Ok(stats)
    }

    /// The block's tensors after all transforms.
    fn transformed(
        &self,
        i: usize,
        part: Part,
        graph: &Graph,
        weights: &PartWeights,
        stats: &mut [(Edge, InputStats)],
    ) -> Result<BlockTensors> {
        let mut tensors = BlockTensors::of(weights);
        for (t, site) in self.bound.sites(graph) {
            self.check_stop()?;
            let transform = &self.bound.transforms[t];
            // A gate is never rounded: it only undoes the element.
            let rounded: Vec<WeightId> =
                site.consumers.iter().copied().filter(|w| !graph.weights[*w].is_gate).collect();
            let grids: Option<Vec<_>> = rounded.iter().map(|w| self.bound.grids[i][*w].as_deref()).collect();
            let (Some(grids), Some(known)) = (grids, stats.iter().position(|(edge, _)| *edge == site.edge())) else {
                continue;
            };
            let Some(((_, tied), to)) = site.folds.iter().find(|((y, _), _)| *y == transform.symmetry()) else {
                continue;
            };
            let job = SiteJob {
                name: graph.values[site.value].name,
                weights: rounded.iter().map(|w| &tensors.weights[*w]).collect(),
                grids,
                stats: &stats[known].1,
                tied: *tied,
                team: self.team,
            };
            let Some(mut element) = transform.choose(&job)? else { continue };
            if let Element::Diagonal(factors) = &mut element {
                self.snap(part, graph, &tensors, &site, &to.producers, factors)?;
            }
            if let Element::Diagonal(factors) = spread(&element, *tied, site.dim)? {
                for (edge, ws) in graph.linears_by_input() {
                    // What experts read of the value is scaled with it.
                    if let Some((_, s)) = stats.iter_mut().find(|(e, _)| *e == edge)
                        && ws.iter().any(|w| site.consumers.contains(w))
                    {
                        s.scale(&factors);
                    }
                }
            }
            fold(graph, &mut tensors, &site, *tied, to, &element)?;
        }
        Ok(tensors)
    }

    /// Moves factors to where the gain that takes them can be stored exactly, so that the saved model is the one that was rounded.
    fn snap(
        &self,
        part: Part,
        graph: &Graph,
        tensors: &BlockTensors,
        site: &Site,
        producers: &BTreeSet<Producer>,
        factors: &mut [f32],
    ) -> Result<()> {
        let mut gains = producers.iter().filter_map(|p| if let Producer::Gain(v) = p { Some(*v) } else { None });
        let Some(v) = gains.next() else { return Ok(()) };
        let name = graph.vectors[v].name;
        let dtype = self.file.vector_dtype(part, name)?;
        let offset = if self.file.exported(part, name)?.stored == Stored::MinusOne { 1.0 } else { 0.0 };
        let wanted: Vec<f32> = tensors.vectors[v].iter().zip(factors.iter()).map(|(g, f)| g * f - offset).collect();
        let mut stored = vec![0.0; site.dim];
        let bytes = dtype.narrow(&wanted).ok_or_else(|| Error::internal("a gain that is no float"))?;
        dtype.widen(&bytes, &mut stored);
        for ((f, s), g) in factors.iter_mut().zip(&stored).zip(&tensors.vectors[v]) {
            let exact = (s + offset) / g;
            if exact.is_finite() && exact > 0.0 {
                *f = exact;
            }
        }
        Ok(())
    }

    /// The program for linears that share an input, if any of them is rounded.
    fn begin<'a>(
        &'a self,
        i: usize,
        linears: &[WeightId],
        input: InputJob<'a>,
        report: &mut BlockReport,
    ) -> Result<Option<InputProgram<'a>>> {
        if linears.iter().all(|w| self.bound.grids[i][*w].is_none()) {
            return Ok(None);
        }
        let clock = Instant::now();
        let begun = self.bound.program.begin(input)?;
        report.solve_seconds += clock.elapsed().as_secs_f64();
        Ok(Some(begun))
    }

    /// The map of one row, if the recipe has some.
    pub(crate) fn map(&self, name: &str, end: End, dim: usize, is_rotated: bool, place: u64) -> Option<Online> {
        let seed = self.request.seed.wrapping_add(place);
        self.bound.online.as_ref()?.choose(&MapJob { name, end, dim, is_rotated, seed })
    }

    fn linear(
        &self,
        i: usize,
        part: Part,
        graph: &Graph,
        w: usize,
        weights: &PartWeights,
        changed: Option<(Mat, Option<Vec<f32>>)>,
        program: Option<&InputProgram<'_>>,
        input: Option<&Online>,
        report: &mut BlockReport,
    ) -> Result<(QuantizedLinear, Option<Mat>)> {
        let original = &weights.linears[w];
        let (Some(grid), Some(program)) = (&self.bound.grids[i][w], program) else {
            return match changed {
                // Written in the source's type; the run goes on with what will be read.
                Some((m, bias)) => {
                    let t = Tensor::from_f32(self.file.dtype(), &[m.rows(), m.cols()], m.data())?;
                    Ok((QuantizedLinear::uniform(Storage::Dense(t), bias), None))
                }
                None => Ok((QuantizedLinear::clone(original), None)),
            };
        };
        let name = self.file.exported(part, &graph.weights[w].name)?.name;
        let (weight, bias) = changed.unwrap_or_else(|| (original.decode(), original.bias.clone()));
        let clock = Instant::now();
        let output = self.map(&name, End::Output, weight.rows(), false, (i << 20 | w) as u64);
        let weight = mapped::weight(self.team, weight, input, output.as_ref());
        // Every matrix has its own random numbers.
        let seed = self.request.seed.wrapping_add((i << 20 | w) as u64);
        let fisher = self.fisher.as_ref().map(|f| f.of(&self.bound, i, graph, w));
        let target = Target { name: &name, weight: &weight, grid: &**grid, fisher: fisher.as_ref(), seed };
        let split = self.bound.rows.get(&(i, w));
        let mut done = match split {
            Some(rows) => rows.compress(program, &target, bias)?,
            None => program.run(&target, bias)?,
        };
        report.solve_seconds += clock.elapsed().as_secs_f64();
        report.warnings.extend(done.warning);
        done.linear.input.extend(input.cloned());
        done.linear.output.extend(output.map(|m| m.inverse()));
        let bits = done.linear.stored_bits() as f64 / (weight.rows() * weight.cols()) as f64;
        let grid = grid.label() + &split.map_or_else(String::new, RowChoice::label) + &self.bound.program.side_label();
        report.linears.push(LinearReport { name, grid, bits_per_weight: bits, output_mse: done.output_mse });
        let is_kept = self.bound.keeps_bases() || self.bound.learns_blocks() && part != Part::Head;
        Ok((done.linear, Some(weight).filter(|_| is_kept)))
    }
}
