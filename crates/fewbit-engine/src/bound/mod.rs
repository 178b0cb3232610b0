//! What a recipe means for one model: a grid for each linear, and who rounds it.

mod format;
mod grids;
mod passes;

use std::collections::BTreeMap;

use fewbit_export::GgufMix;
use fewbit_format::{Error, Result};
use fewbit_graph::{Edge, Graph, Model, Part, Residual, Site, Symmetry, Tied, WeightId, sites};
use fewbit_runtime::kept_between;
use fewbit_store::ModelFile;

use crate::allocate::{AllocateSettings, Allocation, Changes, Granularity, Grids, PartGrids, RowChoice};
use crate::kinds::{Activation, Grid, Needs, OnlineTransform, Registry, Rotation, Space, Transform};
use crate::outputs::Format;
use crate::program::Program;
use crate::recipe::{CalibrationSettings, Pass, Sequential, StreamOf};
use crate::tune::{Learn, Scope};
use crate::{Override, Pattern};
use grids::{check_patterns, mix, outer_grids, part_grids};
use passes::Passes;

/// The passes of a recipe, bound to a model.
#[derive(Debug)]
pub(crate) struct Bound {
    rotations: Vec<Box<dyn Rotation>>,
    pub(crate) transforms: Vec<Box<dyn Transform>>,
    /// What maps the inputs and outputs of linears while the model runs.
    pub(crate) online: Option<Box<dyn OnlineTransform>>,
    /// What is done to each linear; empty where none is rounded.
    pub(crate) program: Program,
    /// What improves it.
    pub(crate) learns: Vec<Learn>,
    /// How the inputs of compressed linears are rounded while the model runs.
    pub(crate) input: Option<Box<dyn Activation>>,
    /// How keys and values are rounded before they are remembered.
    pub(crate) cache: Option<Box<dyn Activation>>,
    /// Per block and then for the head, per weight of its graph; `None` stays as it is.
    pub(crate) grids: Grids,
    /// Among which grids is chosen; until then, `grids` are the largest.
    pub(crate) allocation: Option<Allocation>,
    /// Linears some of whose rows have other grids.
    pub(crate) rows: BTreeMap<(usize, WeightId), RowChoice>,
    /// Those of a mix for the embedding and for a head that no pattern names.
    outer: [Option<Box<dyn Grid>>; 2],
    /// The mix that the recipe asks for.
    pub(crate) mix: Option<GgufMix>,
    pub(crate) format: Format,
    pub(crate) needs: Needs,
    pub(crate) notes: Vec<String>,
    pub(crate) calibration: CalibrationSettings,
    /// Whether all linears of a block see what the original block makes of its input.
    pub(crate) is_whole: bool,
    /// Whether the blocks before a block are the original ones.
    pub(crate) is_original_stream: bool,
}

/// What the user chose beside the recipe.
pub(crate) struct Choices<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) keep: &'a [Pattern],
    pub(crate) overrides: &'a [Override],
    pub(crate) allocate: Option<&'a AllocateSettings>,
    pub(crate) format: Format,
}

impl Bound {
    /// Binds passes to a model, or refuses with one sentence.
    pub(crate) fn new(
        file: &ModelFile,
        passes: Vec<Pass>,
        calibration: &CalibrationSettings,
        choices: &Choices<'_>,
    ) -> Result<Self> {
        let passes = Passes::sort(file, passes)?;
        let is_by_row = choices.allocate.is_some_and(|a| a.granularity == Granularity::Row);
        passes.check(calibration, is_by_row)?;
        let has_sides = passes.program.has_sides() || passes.maps_outputs() || is_by_row;
        let settings = passes.grid.as_ref().filter(|_| passes.program.rounds());
        let grids_under = |changes: &Changes| -> Result<Grids> {
            let of_part = |(part, graph)| part_grids(file, part, graph, settings, has_sides, choices, changes);
            compressible(file).map(of_part).collect()
        };
        let allocation = choices.allocate.map(|s| Allocation::new(file, s, &grids_under)).transpose()?;
        let changes = allocation.as_ref().and_then(|a| a.settings.changes().nth(a.largest()));
        let grids = grids_under(&changes.unwrap_or_default())?;
        check_patterns(file, choices)?;
        let open = allocation.iter().flat_map(|a| &a.candidates);
        let all = open.chain([&grids]).flatten().flatten().flatten();
        let needs = all.fold(passes.needs(), |n, g| n.and(g.needs()));
        // What single values are like is not known behind a map.
        let needs = Needs { gram: needs.gram || needs.mean_square && passes.online.is_some(), ..needs };
        let (outer, mix) = (outer_grids(file, settings, choices)?, mix(settings, choices)?);
        if needs.fisher && !(passes.transforms.is_empty() && passes.online.is_none()) {
            return Err(Error::input("the recipe measures gradients of weights that its transforms change afterwards")
                .hint("leave the transform out, or choose another importance than `fisher`"));
        }
        let is_original_stream = calibration.stream == StreamOf::Original;
        let is_by_block = calibration.sequential == Sequential::Block;
        let Passes { rotations, transforms, online, program, learns, input, cache, .. } = passes;
        let mut bound = Self {
            is_whole: !transforms.is_empty() || is_by_block || is_original_stream,
            rotations,
            transforms,
            online,
            program,
            learns,
            input,
            cache,
            grids,
            allocation,
            rows: BTreeMap::new(),
            outer,
            mix,
            format: choices.format,
            needs,
            notes: Vec::new(),
            calibration: calibration.clone(),
            is_original_stream,
        };
        bound.check_solver(file)?;
        bound.check_learners(file)?;
        bound.format = bound.fitting_format(file)?;
        if let Some(mut allocation) = bound.allocation.take() {
            allocation.count_bits(file, &bound)?;
            allocation.check_budget(file)?;
            bound.allocation = Some(allocation);
        }
        fewbit_export::check_source(file, bound.format == Format::Gguf)?;
        if file.is_tied() && !bound.is_tied(file) {
            bound.notes.push(
                "head and embedding share a matrix: the head becomes one of its own, beside the embedding".to_owned(),
            );
        }
        bound.notes.extend(bound.fallbacks(file));
        if settings.is_some() && bound.grids.iter().flatten().all(Option::is_none) {
            bound.notes.push("no linear is rounded: `--keep` keeps all of them".to_owned());
        }
        if bound.format.is_shared() {
            bound.notes.extend(fewbit_export::mixed_schemes(&bound.schemes(file)?));
        }
        Ok(bound)
    }

    /// The parts with each set of grids that may be chosen.
    fn all_grids<'f>(&'f self, file: &'f ModelFile) -> impl Iterator<Item = ((Part, &'f Graph), &'f PartGrids)> {
        let open = self.allocation.iter().flat_map(|a| &a.candidates);
        open.chain([&self.grids]).flat_map(|grids| compressible(file).zip(grids))
    }

    /// The rotation of a space.
    pub(crate) fn rotation(&self, space: Space) -> Option<&dyn Rotation> {
        self.rotations.iter().find(|r| r.space() == space).map(|r| &**r)
    }

    /// Whether a rotation of the recipe reaches what a linear reads.
    pub(crate) fn is_rotated(&self, graph: &Graph, part: Part, weight: WeightId) -> bool {
        let reads_stream = || Residual::of(graph, part).is_ok_and(|r| r.readers.iter().any(|r| r.weight == weight));
        let reads_heads = || {
            let is_turned =
                |(symmetry, tied): &(Symmetry, Tied)| *symmetry == Symmetry::Orthogonal && *tied != Tied::No;
            sites(graph).iter().any(|s| s.consumers.contains(&weight) && s.folds.keys().any(is_turned))
        };
        (self.rotation(Space::Residual).is_some() && reads_stream())
            || (self.rotation(Space::Heads).is_some() && reads_heads())
    }

    /// Whether one matrix is written for embedding and head: the head takes the gain of its norm in a rotated stream.
    pub(crate) fn is_tied(&self, file: &ModelFile) -> bool {
        file.is_tied() && !self.has_head() && self.rotation(Space::Residual).is_none()
    }

    /// Whether linears read something else than those of the original model.
    pub(crate) fn changes_inputs(&self) -> bool {
        !self.rotations.is_empty() || self.online.is_some()
    }

    /// Whether something is learned of each block, on streams of its own.
    pub(crate) fn learns_blocks(&self) -> bool {
        self.learns.iter().any(|l| l.settings.scope == Scope::Block)
    }

    /// What an embedding or a head is rounded to that no solver looks at.
    pub(crate) fn outer(&self, part: Part) -> Option<&dyn Grid> {
        let [embedding, head] = &self.outer;
        match part {
            Part::Embed => embedding.as_deref(),
            Part::Block(_) => None,
            Part::Head => head.as_deref().filter(|_| !self.has_head()),
        }
    }

    /// Whether calibration text has to be run.
    pub(crate) fn reads_text(&self) -> bool {
        self.needs.any() || self.needs.fisher || !self.learns.is_empty() || self.allocation.is_some()
    }

    /// Whether the head is compressed too.
    pub(crate) fn has_head(&self) -> bool {
        self.grids.last().is_some_and(|g| g.iter().any(Option::is_some))
    }

    /// Whether a part after part `i` is compressed.
    pub(crate) fn compresses_after(&self, i: usize) -> bool {
        self.grids[i + 1..].iter().flatten().any(Option::is_some)
    }

    /// The sites of a block that transforms may act on, with the transform's index.
    pub(crate) fn sites(&self, graph: &Graph) -> Vec<(usize, Site)> {
        let all = sites(graph);
        (0..self.transforms.len())
            .flat_map(|t| {
                let symmetry = self.transforms[t].symmetry();
                let fits = move |s: &&Site| !s.consumers.is_empty() && s.folds.keys().any(|(y, _)| *y == symmetry);
                all.iter().filter(fits).map(move |s| (t, s.clone())).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Of part `i`: the inputs that are looked at together, and the linears that are rounded after.
    pub(crate) fn stages(&self, i: usize, graph: &Graph) -> Vec<(Vec<Edge>, Vec<WeightId>)> {
        if self.grids[i].iter().all(Option::is_none) && !self.is_original_stream {
            return Vec::new();
        }
        let groups = graph.linears_by_input();
        if self.is_whole || !self.needs.any() {
            return vec![(groups.iter().map(|(edge, _)| *edge).collect(), (0..graph.weights.len()).collect())];
        }
        let mut stages: Vec<(Vec<Edge>, Vec<WeightId>)> = Vec::new();
        for (edge, ws) in groups.into_iter().filter(|(_, ws)| ws.iter().any(|w| self.grids[i][*w].is_some())) {
            let most = (STAGE_FLOATS / graph.values[edge.value].dim.pow(2)).max(1);
            match stages.last_mut().filter(|(edges, _)| edges[0].value == edge.value && edges.len() < most) {
                Some((edges, weights)) => {
                    edges.push(edge);
                    weights.extend(ws);
                }
                None => stages.push((vec![edge], ws)),
            }
        }
        stages
    }

    /// Numbers per token that stops within a block keep, beside its input and output.
    pub(crate) fn kept_width(&self, model: &Model) -> usize {
        let parts = model.blocks.iter().chain([&model.head]);
        if self.is_whole { 0 } else { parts.map(kept_between).max().unwrap_or(0) }
    }
}

/// Numbers in `XᵀX` of the experts that are looked at together: 256 MiB.
const STAGE_FLOATS: usize = 1 << 26;

/// The parts with linears that a recipe may compress: the blocks, then the head.
pub(crate) fn compressible(file: &ModelFile) -> impl Iterator<Item = (Part, &Graph)> {
    file.model().parts().skip(1)
}
