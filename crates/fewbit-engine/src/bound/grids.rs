//! A grid for each linear, as recipe, overrides and `--keep` have it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use fewbit_export::{GgufMix, MixModel};
use fewbit_format::{Error, Mat, Result, Storage};
use fewbit_graph::{Graph, Part, Rows, Weight};
use fewbit_kernel::Team;
use fewbit_store::ModelFile;

use super::{Bound, Choices};
use crate::Override;
use crate::allocate::{Changes, PartGrids};
use crate::kinds::{BoundGrid, Grid, GridJob, LANES, MixTensor, OfTensor, Params, Place, Weighting};
use crate::recipe::GridSettings;
use crate::stats::InputStats;

impl Bound {
    /// Whether the recipe's solver can round to every grid.
    pub(super) fn check_solver(&self, file: &ModelFile) -> Result<()> {
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
    pub(super) fn check_learners(&self, file: &ModelFile) -> Result<()> {
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

    /// Refuses weights that would be lost under the scales of their grids; `greatest` has the greatest magnitude of each
    /// tensor.
    pub(crate) fn check_ranges(&self, file: &ModelFile, greatest: &BTreeMap<String, f32>) -> Result<()> {
        /// Every grid holds these.
        const USUAL: RangeInclusive<f32> = 1e-3..=1e4;
        let outer = [Part::Embed, Part::Head].into_iter().filter_map(|part| Some((part, 0, self.outer(part)?)));
        let inner = self.all_grids(file).flat_map(|((part, _), grids)| {
            grids.iter().enumerate().filter_map(move |(w, grid)| Some((part, w, grid.as_deref()?)))
        });
        for (part, w, grid) in inner.chain(outer) {
            let tensor = file.weight_tensor(part, w);
            let Some(most) = greatest.get(&tensor).filter(|m| **m > 0.0 && !USUAL.contains(*m)) else { continue };
            check_range(grid, file.model().part(part).weights[w].shape[1], *most)
                .map_err(|e| e.tensor(&tensor).file(file.checkpoint().path()))?;
        }
        Ok(())
    }

    /// How many tensors have another type than a mix has for such tensors.
    pub(super) fn fallbacks(&self, file: &ModelFile) -> Option<String> {
        let (embedding, head) = (self.outer(Part::Embed), self.outer(Part::Head).filter(|_| !self.is_tied(file)));
        let of_blocks = self.grids.iter().flatten().flatten().map(|g| &**g);
        let mut each = BTreeMap::new();
        for grid in of_blocks.chain(embedding).chain(head) {
            if let Some(wanted) = grid.instead_of() {
                *each.entry((wanted, grid.label())).or_insert(0) += 1;
            }
        }
        let all: usize = each.values().sum();
        let each: Vec<String> = each.iter().map(|((wanted, label), n)| format!("{n} {label} for {wanted}")).collect();
        let tensors = if all == 1 { "tensor has" } else { "tensors have" };
        (all > 0).then(|| format!("{all} {tensors} rows that the mix's blocks do not divide: {}", each.join(", ")))
    }
}

/// The grids of one part, `candidate` changed in the recipe's.
pub(super) fn part_grids(
    file: &ModelFile,
    part: Part,
    graph: &Graph,
    settings: Option<&GridSettings>,
    has_sides: bool,
    choices: &Choices<'_>,
    candidate: &Changes,
) -> Result<PartGrids> {
    let block_module = file.exported(Part::Block(0), &file.model().blocks[0].weights[0].name)?.name;
    let (mut grids, mut model) = (Vec::new(), None);
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
                let grid = of_tensor(file, part, w, grid, &mut model)?;
                if let Some(grid) = &grid {
                    grid.check(w.shape[0], w.shape[1]).map_err(place)?;
                }
                grid
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

/// The mix that a recipe's grid is.
pub(super) fn mix(settings: Option<&GridSettings>, choices: &Choices<'_>) -> Result<Option<GgufMix>> {
    let Some(settings) = settings else { return Ok(None) };
    Ok(settings.build(choices.registry, &Changes::default())?.mix())
}

/// What a mix has for the embedding and for the head, which are rounded to nearest.
pub(super) fn outer_grids(
    file: &ModelFile,
    settings: Option<&GridSettings>,
    choices: &Choices<'_>,
) -> Result<[Option<Box<dyn Grid>>; 2]> {
    let of_part = |part: Part| {
        let (Some(settings), [weight, ..]) = (settings, &*file.model().part(part).weights) else { return Ok(None) };
        let grid = settings.build(choices.registry, &Changes::default())?;
        let name = file.exported(part, &weight.name)?.name;
        if grid.mix().is_none() || choices.keep.iter().any(|k| k.matches(&name)) {
            return Ok(None);
        }
        of_tensor(file, part, weight, grid, &mut None)
    };
    Ok([of_part(Part::Embed)?, of_part(Part::Head)?])
}

/// The grid of one tensor, where that depends on which it is; `None` where that is to stay as it is. `model` is made when it
/// is first needed.
fn of_tensor(
    file: &ModelFile,
    part: Part,
    weight: &Weight,
    grid: Box<dyn Grid>,
    model: &mut Option<MixModel<'static>>,
) -> Result<Option<Box<dyn Grid>>> {
    if grid.mix().is_none() {
        return Ok(Some(grid));
    }
    let model = match *model {
        Some(model) => model,
        None => *model.insert(MixModel::of(file)?),
    };
    let source = file.exported_gguf(part, &weight.name);
    let tensor = source.ok_or_else(|| Error::input("has no name in a GGUF file").tensor(&weight.name))?.tensor();
    let name = tensor.strip_suffix(".weight").unwrap_or(&tensor);
    let layer = if let Part::Block(i) = part { i } else { 0 };
    let tensor = MixTensor { name, cols: weight.shape[1], layer, model };
    Ok(match grid.of_tensor(&tensor) {
        OfTensor::Same => Some(grid),
        OfTensor::Other(grid) => Some(grid),
        OfTensor::Kept => None,
    })
}

/// A pattern that chooses nothing is a mistake, and so is another grid for what is never rounded.
pub(super) fn check_patterns(file: &ModelFile, choices: &Choices<'_>) -> Result<()> {
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
        let what = format!("`{option} {}`", pattern.as_str());
        let always = kept.iter().find(|n| pattern.matches(n));
        let is_kept = |n: &String| choices.keep.iter().any(|k| k.matches(n));
        let mut chosen = rounded.iter().filter(|n| pattern.matches(n)).peekable();
        if option == "--override" && chosen.peek().is_some() && chosen.all(is_kept) {
            return Err(Error::input(format!("{what} chooses nothing but what `--keep` keeps as it is"))
                .hint("leave one of them out"));
        }
        if rounded.iter().any(|n| pattern.matches(n)) || (option == "--keep" && always.is_some()) {
            continue;
        }
        let example = rounded.first().cloned().unwrap_or_default();
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

/// A grid for a row of zeros.
fn begin_probe(grid: &dyn Grid, row: &Mat) -> Result<Box<dyn BoundGrid>> {
    grid.begin(&GridJob { weight: row, stats: &InputStats::default(), seed: 0, team: &Team::new(1) })
}

/// The storage of one row of zeros: what a layout is asked about.
pub(super) fn probe(grid: &dyn Grid, cols: usize) -> Result<Storage> {
    rounded(grid, &Mat::zeros(1, cols))
}

/// The storage of one row, each weight rounded to nearest.
fn rounded(grid: &dyn Grid, row: &Mat) -> Result<Storage> {
    let (bound, cols) = (begin_probe(grid, row)?, row.cols());
    let group = bound.group();
    let values: Vec<[f32; LANES]> = row.data().iter().map(|v| [*v; LANES]).collect();
    let (mut codes, mut decoded) = (vec![[0; LANES]; cols], vec![[0.0; LANES]; group]);
    let place = |k| Place { strip: 0, column: k * group };
    let columns = |k| k * group..(k + 1) * group;
    let fit = |k| bound.fit(place(k), &values[columns(k)], Weighting::None);
    let mut params: Vec<Vec<Params>> = vec![(0..cols / group).map(fit).collect()];
    bound.seal(&mut params);
    for (k, p) in params[0].iter().enumerate() {
        bound.round(place(k), p, &values[columns(k)], &mut codes[columns(k)], &mut decoded);
    }
    bound.store(vec![codes], params)
}

/// Refuses a grid in which weights up to `most` would be lost: what becomes of a row of them shows it.
fn check_range(grid: &dyn Grid, cols: usize, most: f32) -> Result<()> {
    let row = Mat::from_fn(1, cols, |_, c| if c % 2 == 0 { most } else { -most });
    let mut found = vec![0.0; cols];
    rounded(grid, &row)?.decode_rows(0..1, &mut found);
    let is_lost = |(found, wanted): (&f32, &f32)| found.is_nan() || (found - wanted).abs() > 0.5 * most;
    if !found.iter().zip(row.data()).any(is_lost) {
        return Ok(());
    }
    let what = if most > 1.0 { "holds weights up to" } else { "holds no weight above" };
    Err(Error::input(format!("{what} {most:e}, which the scales of `{}` do not reach", grid.label()))
        .hint("`--set grid.scale=f32`, where the grid has that setting, or `--keep` it"))
}
