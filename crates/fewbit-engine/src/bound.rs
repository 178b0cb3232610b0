//! What a recipe means for one model: a grid for each linear, and who rounds it.

use std::collections::BTreeMap;
use std::sync::Arc;

use fewbit_format::{Error, Mat, Result, Storage};
use fewbit_graph::{Edge, Graph, Model, Part, Residual, Rows, Site, Symmetry, Tied, WeightId, sites};
use fewbit_kernel::Team;
use fewbit_runtime::kept_between;
use fewbit_store::ModelFile;
use fewbit_store::layout::Scheme;

use crate::allocate::{AllocateSettings, Allocation, Changes, Granularity, Grids, PartGrids, RowChoice};
use crate::kinds::{
    Activation, BoundGrid, Edges, End, Grid, GridJob, LANES, MapJob, Needs, OnlineTransform, Params, Place, Registry,
    Rotation, Space, Transform, Weighting,
};
use crate::outputs::{Format, Schemes};
use crate::program::Program;
use crate::recipe::{CalibrationSettings, GridSettings, Pass, Sequential, StreamOf};
use crate::stats::InputStats;
use crate::tune::{Learn, Scope};
use crate::{Override, Pattern};

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
        let (mut rotations, mut transforms, mut online, mut grid) = (Vec::new(), Vec::new(), None, None);
        let (mut steps, mut learns) = (Vec::new(), Vec::new());
        let (mut input, mut cache) = (None::<Box<dyn Activation>>, None);
        for pass in passes {
            match pass {
                Pass::Rotate(r) => {
                    check_rotation(file, &*r, &rotations, !transforms.is_empty())?;
                    rotations.push(r);
                }
                Pass::Transform(t) => transforms.push(t),
                Pass::Online(_) if online.is_some() => {
                    return Err(Error::input("the recipe maps inputs and outputs twice").hint("once is possible"));
                }
                Pass::Online(t) => online = Some(t),
                Pass::Activation(a) => {
                    let place = if a.edges() == Edges::Inputs { &mut input } else { &mut cache };
                    if place.replace(a).is_some() {
                        return Err(Error::input("the recipe rounds the same values twice while the model runs")
                            .hint("one `act` pass for inputs and one for the cache are possible"));
                    }
                }
                Pass::Grid(g) => grid = Some(g),
                Pass::Step(s) => steps.push(s),
                Pass::Learn(l) => learns.push(l),
            }
        }
        let program = Program::new(steps)?;
        if !learns.is_empty() && !program.rounds() {
            return Err(Error::input("the recipe learns, and rounds nothing").hint("put a `solve` pass before `learn`"));
        }
        if program.rounds() && grid.is_none() {
            return Err(Error::input("the recipe rounds, but says not to which numbers")
                .hint("put a `grid` pass before `solve`"));
        }
        if input.is_some() && !program.rounds() {
            return Err(Error::input("the recipe rounds inputs of linears that it does not compress")
                .hint("put a `grid` and a `solve` pass into it"));
        }
        let has_sides = program.has_sides() || online.as_deref().is_some_and(maps_outputs);
        let is_by_row = choices.allocate.is_some_and(|a| a.granularity == Granularity::Row);
        if is_by_row && (program.has_sides() || !learns.is_empty()) {
            return Err(Error::input("rows of one matrix have no place for what stands beside codes or is learned")
                .hint("leave out `residual` and `learn` passes, or choose another `allocate.granularity`"));
        }
        let has_sides = has_sides || is_by_row;
        let settings = grid.as_ref().filter(|_| program.rounds());
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
        let mut needs = all.fold(Needs::default(), |n, g| n.and(g.needs()));
        needs = transforms.iter().fold(needs, |n, t| n.and(t.needs()));
        needs = needs.and(program.needs());
        needs = input.iter().chain(&cache).fold(needs, |n, a| n.and(a.needs()));
        if needs.fisher && !(transforms.is_empty() && online.is_none()) {
            return Err(Error::input("the recipe measures gradients of weights that its transforms change afterwards")
                .hint("leave the transform out, or choose another importance than `fisher`"));
        }
        let is_original_stream = calibration.stream == StreamOf::Original;
        if is_original_stream && learns.iter().any(|l| l.settings.scope == Scope::Block) {
            return Err(Error::input(
                "the recipe learns on what compressed blocks make, and its stream is the original",
            )
            .hint("set `calibration.stream=compressed`"));
        }
        let is_whole = !transforms.is_empty() || calibration.sequential == Sequential::Block || is_original_stream;
        let (format, notes) = (choices.format, Vec::new());
        let calibration = calibration.clone();
        if online.is_some() && input.as_ref().is_some_and(|a| a.needs().any()) {
            return Err(Error::input(
                "the recipe maps inputs while the model runs, and what they then range over is unknown",
            )
            .hint("round inputs by their own range, not by a stored one"));
        }
        if online.as_deref().is_some_and(maps_outputs) && !learns.is_empty() {
            return Err(Error::input("the recipe learns through maps after products, which it cannot")
                .hint("leave out the `learn` passes, or set `transform.sides=input`"));
        }
        if input.is_some() && program.has_sides() && !learns.is_empty() {
            return Err(Error::input(
                "the recipe learns what rounded inputs meet, and what stands beside the codes meets exact ones",
            )
            .hint("leave out the `learn` passes, the `residual` passes, or `act`"));
        }
        let mut bound = Self {
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
            format,
            needs,
            notes,
            calibration,
            is_whole,
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
        if bound.format == Format::CompressedTensors {
            bound.notes.extend(fewbit_export::mixed_schemes(&bound.schemes(file)?));
        }
        Ok(bound)
    }

    /// The parts with each set of grids that may be chosen.
    fn all_grids<'f>(&'f self, file: &'f ModelFile) -> impl Iterator<Item = ((Part, &'f Graph), &'f PartGrids)> {
        let open = self.allocation.iter().flat_map(|a| &a.candidates);
        open.chain([&self.grids]).flat_map(|grids| compressible(file).zip(grids))
    }

    /// Whether the recipe's solver can round to every grid.
    fn check_solver(&self, file: &ModelFile) -> Result<()> {
        for ((_, graph), grids) in self.all_grids(file) {
            for (w, grid) in graph.weights.iter().zip(grids) {
                let Some(grid) = grid else { continue };
                let row = Mat::zeros(1, w.shape[1]);
                let check = begin_probe(&**grid, &row).and_then(|g| self.program.check(&*g));
                check.map_err(|e| e.tensor(&w.name).file(file.checkpoint().path()))?;
            }
        }
        Ok(())
    }

    /// Whether what rounded linears are stored as can be learned.
    fn check_learners(&self, file: &ModelFile) -> Result<()> {
        for ((_, graph), grids) in self.all_grids(file) {
            for (w, grid) in graph.weights.iter().zip(grids) {
                let Some(grid) = grid else { continue };
                for learn in &self.learns {
                    let check = probe(&**grid, w.shape[1]).and_then(|s| learn.learner.check(&s));
                    check.map_err(|e| e.tensor(&w.name).file(file.checkpoint().path()))?;
                }
            }
            if !self.learns.is_empty() && grids.iter().any(Option::is_some) {
                fewbit_grad::Function::new(Arc::new(graph.clone())).map_err(|e| e.file(file.checkpoint().path()))?;
            }
        }
        Ok(())
    }

    /// The format asked for, if it can hold every linear.
    fn fitting_format(&mut self, file: &ModelFile) -> Result<Format> {
        let wanted = if self.format == Format::Auto { Format::CompressedTensors } else { self.format };
        let mut why_not = None;
        let is_by_row = self.allocation.as_ref().is_some_and(|a| a.settings.granularity == Granularity::Row);
        for ((part, graph), grids) in self.all_grids(file) {
            for (w, grid) in grids.iter().enumerate() {
                let Some(grid) = grid else { continue };
                let storage = probe(&**grid, graph.weights[w].shape[1])?;
                let held = match wanted {
                    Format::Gguf if self.input.is_some() || self.cache.is_some() => {
                        Err("GGUF has no place for what is rounded while the model runs; use `--format fewbit`"
                            .to_owned())
                    }
                    _ if is_by_row && !matches!(storage, Storage::Int(_)) => {
                        return Err(Error::input("rows of two widths are stored as integers, and the grid is another")
                            .hint("take `grid.int`, or another `allocate.granularity`"));
                    }
                    Format::Fewbit => wanted.layout().can_hold(&storage),
                    _ if is_by_row => Err("it has no place for rows of two widths".to_owned()),
                    _ if self.program.has_sides() => Err("it has no place for what stands beside codes".to_owned()),
                    _ if self.online.is_some() => Err("it has no place for maps that run with the model".to_owned()),
                    Format::Gguf => fewbit_export::can_hold_gguf(&storage).map(|_| ()),
                    _ => wanted.layout().can_hold(&storage).and_then(|()| match &self.input {
                        Some(input) => wanted.layout().can_hold_input(&storage, input.grid(), input.clip()),
                        None => Ok(()),
                    }),
                };
                if let (Err(reason), None) = (held, &why_not) {
                    let module = file.exported(part, &graph.weights[w].name)?.name;
                    why_not = Some(Error::input(format!("{} cannot hold it: {reason}", wanted.name())).tensor(&module));
                }
            }
        }
        match (why_not, self.format) {
            (None, _) => Ok(wanted),
            (Some(e), Format::Auto) => {
                self.notes.push(format!("written in fewbit's own layout, since {e}"));
                Ok(Format::Fewbit)
            }
            // The reason of a GGUF file has its way out.
            (Some(e), Format::Gguf) => Err(e),
            (Some(e), _) => Err(e.hint("choose a grid that it holds, or `--format fewbit`")),
        }
    }

    /// What every linear of the written model is stored as, by module.
    pub(crate) fn schemes(&self, file: &ModelFile) -> Result<Schemes> {
        let mut schemes: BTreeMap<String, Option<Scheme>> = BTreeMap::new();
        for ((part, graph), grids) in compressible(file).zip(&self.grids) {
            for (w, grid) in graph.weights.iter().zip(grids) {
                let scheme = match grid {
                    Some(g) => {
                        Scheme::of(&probe(&**g, w.shape[1])?).map(|s| s.rounded(self.input.as_ref().map(|a| a.grid())))
                    }
                    None => None,
                };
                schemes.insert(file.exported(part, &w.name)?.name, scheme);
            }
        }
        Ok(schemes.into_iter().collect())
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

    /// Whether something is learned of each block, on streams of its own.
    pub(crate) fn learns_blocks(&self) -> bool {
        self.learns.iter().any(|l| l.settings.scope == Scope::Block)
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

    /// Everything stored of a matrix.
    pub(crate) fn weight_bits(&self, grid: &dyn Grid, [rows, cols]: [usize; 2]) -> u64 {
        let end = |end, dim| {
            let job = MapJob { name: "", end, dim, is_rotated: false, seed: 0 };
            self.online.as_ref().and_then(|t| t.choose(&job)).map_or(0, |m| m.stored_bits())
        };
        let maps = end(End::Input, cols) + end(End::Output, rows);
        let input = self.input.as_ref().map_or(0, |a| a.grid().dynamic().stored_bits());
        grid.stored_bits(rows, cols) + self.program.side_bits(rows, cols) + input + maps
    }

    /// Everything that the written file has of a matrix, the padding of its layout included.
    pub(crate) fn written_bits(&self, grid: &dyn Grid, shape: [usize; 2]) -> Result<u64> {
        if self.format != Format::CompressedTensors {
            return Ok(self.weight_bits(grid, shape));
        }
        let all_rows = probe(grid, shape[1])?.select_rows(&vec![0; shape[0]])?;
        let tensors = self.format.layout().tensors("module", &all_rows)?;
        let is_counted = |name: &str| !name.ends_with(".weight_shape");
        Ok(tensors.iter().filter(|(name, _)| is_counted(name)).map(|(_, t)| 8 * t.bytes.len() as u64).sum())
    }

    /// Everything stored ÷ weights, of the linears that are compressed; `None` where none is.
    pub(crate) fn bits_per_weight(&self, file: &ModelFile) -> Option<f64> {
        let (mut bits, mut weights) = (0, 0);
        for ((_, graph), grids) in compressible(file).zip(&self.grids) {
            for (w, grid) in graph.weights.iter().zip(grids) {
                if let Some(g) = grid {
                    bits += self.weight_bits(&**g, w.shape);
                    weights += w.shape[0] * w.shape[1];
                }
            }
        }
        let most = self.allocation.as_ref().map_or(f64::INFINITY, |a| a.settings.bits);
        (weights > 0).then(|| (bits as f64 / weights as f64).min(most))
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

/// Whether a transform maps what linears make, each its own.
fn maps_outputs(online: &dyn OnlineTransform) -> bool {
    online.choose(&MapJob { name: "", end: End::Output, dim: 64, is_rotated: false, seed: 0 }).is_some()
}

fn part_grids(
    file: &ModelFile,
    part: Part,
    graph: &Graph,
    settings: Option<&GridSettings>,
    has_sides: bool,
    choices: &Choices<'_>,
    candidate: &Changes,
) -> Result<PartGrids> {
    let block_module = file.exported(Part::Block(0), &file.model().blocks[0].weights[0].name)?.name;
    let mut grids = Vec::new();
    let mut fused: Vec<(String, Option<Changes>)> = Vec::new();
    for w in &graph.weights {
        let source = file.exported(part, &w.name)?;
        // The head is compressed only where an override names it, and not everything.
        let is_named = |o: &&Override| o.pattern.matches(&source.name) && !o.pattern.matches(&block_module);
        let is_kept = settings.is_none()
            || w.is_gate
            || choices.keep.iter().any(|k| k.matches(&source.name))
            || (part == Part::Head && !choices.overrides.iter().any(|o| is_named(&o)));
        let overrides = choices.overrides.iter().filter(|o| o.pattern.matches(&source.name));
        let changes: Changes = candidate.iter().chain(overrides.flat_map(|o| &o.changes)).cloned().collect();
        if source.rows != Rows::All {
            if !is_kept && has_sides {
                return Err(Error::input(
                    "is one tensor of several linears, which has no place for what stands beside codes or runs after each",
                )
                .hint("take a recipe without `residual` passes and without maps of outputs, or `--keep` it")
                .tensor(&format!("{}.weight", source.name)));
            }
            fused.push((source.name.clone(), (!is_kept).then(|| changes.clone())));
        }
        let place = |e: Error| e.tensor(&format!("{}.weight", source.name)).file(file.checkpoint().path());
        grids.push(match settings.filter(|_| !is_kept) {
            None => None,
            Some(s) => {
                let grid = s.build(choices.registry, &changes).map_err(place)?;
                grid.check(w.shape[0], w.shape[1]).map_err(place)?;
                Some(grid)
            }
        });
    }
    for (name, choice) in &fused {
        if fused.iter().any(|(n, c)| n == name && c != choice) {
            return Err(Error::input("holds several linears that are to be stored differently")
                .hint("give them the same settings")
                .tensor(name));
        }
    }
    Ok(grids)
}

/// The parts with linears that a recipe may compress: the blocks, then the head.
pub(crate) fn compressible(file: &ModelFile) -> impl Iterator<Item = (Part, &Graph)> {
    file.model().parts().skip(1)
}

/// A pattern that chooses nothing is a mistake, and so is another grid for what is never rounded.
fn check_patterns(file: &ModelFile, choices: &Choices<'_>) -> Result<()> {
    let (mut rounded, mut kept) = (Vec::new(), Vec::new());
    for (part, graph) in file.model().parts() {
        for w in &graph.weights {
            let names = if part == Part::Embed || w.is_gate { &mut kept } else { &mut rounded };
            names.push(file.exported(part, &w.name)?.name);
        }
    }
    let patterns =
        choices.keep.iter().map(|k| ("--keep", k)).chain(choices.overrides.iter().map(|o| ("--override", &o.pattern)));
    for (option, pattern) in patterns {
        let always = kept.iter().find(|n| pattern.matches(n));
        if rounded.iter().any(|n| pattern.matches(n)) || (option == "--keep" && always.is_some()) {
            continue;
        }
        let example = rounded.first().cloned().unwrap_or_default();
        let what = format!("`{option} {}`", pattern.as_str());
        return Err(match always {
            Some(name) => {
                Error::input(format!("{what} chooses `{name}`, which every recipe keeps as it is")).hint("leave it out")
            }
            None => Error::input(format!("{what} matches no linear of the model"))
                .hint(format!("a linear is called, for example, `{example}`")),
        });
    }
    Ok(())
}

/// What the algebra, or the order of the passes, forbids.
fn check_rotation(
    file: &ModelFile,
    rotation: &dyn Rotation,
    before: &[Box<dyn Rotation>],
    has_transforms: bool,
) -> Result<()> {
    if before.iter().any(|r| r.space() == rotation.space()) {
        return Err(
            Error::input(format!("the recipe rotates `{}` twice", rotation.space().name())).hint("once is enough")
        );
    }
    if has_transforms {
        let e = Error::input("a rotation after another transform would undo it");
        return Err(e.hint("put `transform.rotate` first"));
    }
    if rotation.space() == Space::Residual {
        for (part, graph) in file.model().parts() {
            let hint = "leave out the rotation of the residual stream: `heads` can still be rotated";
            Residual::of(graph, part).map_err(|e| e.hint(hint).file(file.checkpoint().path()))?;
        }
    }
    Ok(())
}

/// A grid for a row of zeros.
fn begin_probe(grid: &dyn Grid, row: &Mat) -> Result<Box<dyn BoundGrid>> {
    grid.begin(&GridJob { weight: row, stats: &InputStats::default(), seed: 0, team: &Team::new(1) })
}

/// The storage of one row of zeros: what a layout is asked about.
fn probe(grid: &dyn Grid, cols: usize) -> Result<Storage> {
    let row = Mat::zeros(1, cols);
    let bound = begin_probe(grid, &row)?;
    let group = bound.group();
    let zeros = vec![[0.0; LANES]; cols];
    let (mut codes, mut decoded) = (vec![[0; LANES]; cols], vec![[0.0; LANES]; group]);
    let place = |k| Place { strip: 0, column: k * group };
    let columns = |k| k * group..(k + 1) * group;
    let fit = |k| bound.fit(place(k), &zeros[columns(k)], Weighting::None);
    let mut params: Vec<Vec<Params>> = vec![(0..cols / group).map(fit).collect()];
    bound.seal(&mut params);
    for (k, p) in params[0].iter().enumerate() {
        bound.round(place(k), p, &zeros[columns(k)], &mut codes[columns(k)], &mut decoded);
    }
    bound.store(vec![codes], params)
}
