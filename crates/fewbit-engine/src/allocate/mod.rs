//! How many bits each linear gets: costs are measured, an integer programme chooses, the compress sweep takes the grids.

mod backward;
mod divergence;
mod knapsack;
mod measure;
mod rows;
mod settings;

use std::collections::BTreeMap;
use std::path::PathBuf;

use fewbit_format::{Error, Result};
use fewbit_graph::{Part, Rows, WeightId};
use fewbit_store::ModelFile;
use serde::{Deserialize, Serialize};

use crate::bound::{Bound, compressible};
use crate::kinds::Grid;
use crate::origin::Origin;
use crate::quantize::Run;
use crate::report::Progress;
use knapsack::Choice;
pub(crate) use rows::Rows as RowChoice;
pub use settings::{AllocateSettings, Granularity, Sensitivity};

/// Per weight of a graph; `None` stays as it is.
pub(crate) type PartGrids = Vec<Option<Box<dyn Grid>>>;

/// Per block and then for the head.
pub(crate) type Grids = Vec<PartGrids>;

/// Keys of a grid, and what they are set to.
pub(crate) type Changes = Vec<(String, toml::Value)>;

/// The choice that a recipe leaves open.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) settings: AllocateSettings,
    /// The grids of each candidate.
    pub(crate) candidates: Vec<Grids>,
    /// Everything stored, by candidate and as the grids.
    bits: Vec<Vec<Vec<u64>>>,
}

/// What was chosen, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AllocationReport {
    /// What a cost is.
    pub sensitivity: Sensitivity,
    /// Bits per weight that were allowed.
    pub budget: f64,
    /// Bits per weight of what was chosen.
    pub bits_per_weight: f64,
    /// Sum of the costs of what was chosen.
    pub cost: f64,
    /// Every compressed linear.
    pub linears: Vec<Allocated>,
}

/// One linear's choice.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Allocated {
    /// Module path.
    pub name: String,
    /// Index of the chosen candidate.
    pub chosen: usize,
    /// The chosen grid, such as `w3 g128`.
    pub grid: String,
    /// Bits per weight of every candidate, everything stored.
    pub bits_per_weight: Vec<f64>,
    /// Cost of every candidate.
    pub costs: Vec<f64>,
}

/// Costs by weight of a part and candidate; none of a weight that is not rounded.
type PartCosts = Vec<Vec<f64>>;

/// A linear: its part, counted from the first block, and its weight.
type Linear = (usize, WeightId);

/// Name of the finished measurements in the working folder.
const MEASURED: &str = "allocation.json";

impl Allocation {
    /// Binds the candidates to a model.
    ///
    /// # Errors
    /// If the budget is too small for any choice, the head is to be compressed, or gradients are needed and unknown.
    pub(crate) fn new(
        file: &ModelFile,
        settings: &AllocateSettings,
        grids: &dyn Fn(&Changes) -> Result<Grids>,
    ) -> Result<Self> {
        settings.check()?;
        let place = |k: usize| move |e: Error| e.place(format!("`allocate.candidates[{k}]`"));
        let candidates =
            settings.changes().enumerate().map(|(k, c)| grids(&c).map_err(place(k))).collect::<Result<Vec<_>>>()?;
        if candidates[0].last().is_some_and(|head| head.iter().any(Option::is_some)) {
            return Err(Error::input("the head is compressed, whose bits are not allocated")
                .hint("leave out the `--override` that names it"));
        }
        if settings.sensitivity.is_backward() {
            let name = settings.sensitivity.name();
            let hint = "choose `allocate.sensitivity=kl`, which needs none";
            fewbit_grad::model::ModelFunction::new(file.model().clone())
                .map_err(|e| e.place(format!("`allocate.sensitivity = \"{name}\"` needs gradients")).hint(hint))?;
        }
        Ok(Self { settings: settings.clone(), candidates, bits: Vec::new() })
    }

    /// The candidate with most bits for each linear: what the run needs at most.
    pub(crate) fn largest(&self) -> usize {
        let bits = |grids: &Grids| -> u64 { grids.iter().flatten().flatten().map(|g| g.stored_bits(4096, 4096)).sum() };
        (0..self.candidates.len()).max_by_key(|k| bits(&self.candidates[*k])).unwrap_or(0)
    }

    /// The linears that are chosen alike.
    fn units(&self, file: &ModelFile) -> Result<Vec<Vec<Linear>>> {
        let mut units: Vec<Vec<Linear>> = Vec::new();
        for (i, (part, graph)) in compressible(file).enumerate() {
            let mut of_tensor: BTreeMap<String, usize> = BTreeMap::new();
            let first = units.len();
            for w in (0..graph.weights.len()).filter(|w| self.candidates[0][i][*w].is_some()) {
                let source = file.exported(part, &graph.weights[w].name)?;
                let known = match self.settings.granularity {
                    Granularity::Block => Some(first),
                    Granularity::Matrix if source.rows != Rows::All => {
                        Some(*of_tensor.entry(source.name).or_insert(units.len()))
                    }
                    Granularity::Matrix | Granularity::Row => None,
                };
                match known.and_then(|u| units.get_mut(u)) {
                    Some(unit) => unit.push((i, w)),
                    None => units.push(vec![(i, w)]),
                }
            }
        }
        Ok(units)
    }

    /// Counts what every candidate takes in the format that is written.
    pub(crate) fn count_bits(&mut self, file: &ModelFile, bound: &Bound) -> Result<()> {
        // Blocks are alike.
        let mut known: BTreeMap<(String, [usize; 2]), u64> = BTreeMap::new();
        let mut count = |grid: &dyn Grid, shape: [usize; 2]| -> Result<u64> {
            let key = (format!("{grid:?}"), shape);
            if let Some(bits) = known.get(&key) {
                return Ok(*bits);
            }
            let bits = bound.written_bits(grid, shape)?;
            known.insert(key, bits);
            Ok(bits)
        };
        self.bits = vec![Vec::new(); self.candidates.len()];
        for (grids, bits) in self.candidates.iter().zip(&mut self.bits) {
            for ((_, graph), grids) in compressible(file).zip(grids) {
                let of =
                    graph.weights.iter().zip(grids).map(|(w, g)| g.as_deref().map_or(Ok(0), |g| count(g, w.shape)));
                bits.push(of.collect::<Result<_>>()?);
            }
        }
        Ok(())
    }

    /// Bits that may be stored, and the weights that they stand for.
    fn budget(&self, file: &ModelFile) -> (u64, usize) {
        let size = |w: &fewbit_graph::Weight| w.shape[0] * w.shape[1];
        let parts = compressible(file).zip(&self.candidates[0]);
        let all = parts.flat_map(|((_, graph), grids)| graph.weights.iter().zip(grids));
        let weights: usize = all.filter(|(_, grid)| grid.is_some()).map(|(w, _)| size(w)).sum();
        ((self.settings.bits * weights as f64).floor() as u64, weights)
    }

    /// Refuses a budget that no choice keeps.
    pub(crate) fn check_budget(&self, file: &ModelFile) -> Result<()> {
        let (budget, weights) = self.budget(file);
        if weights == 0 {
            return Err(Error::input("the recipe allocates bits, and rounds nothing"));
        }
        let of_unit = |unit: &Vec<Linear>, k: usize| unit.iter().map(|(i, w)| self.bits[k][*i][*w]).sum::<u64>();
        let least = |unit: &Vec<Linear>| (0..self.candidates.len()).map(|k| of_unit(unit, k)).min().unwrap_or(0);
        let least: u64 = self.units(file)?.iter().map(least).sum();
        if least > budget {
            let [asked, least] = [self.settings.bits, least as f64 / weights as f64];
            return Err(Error::input(format!(
                "`allocate.bits` is {asked}, where the smallest candidates take {least:.3} bits per weight"
            ))
            .hint("add a smaller candidate, or allow more bits"));
        }
        Ok(())
    }

    /// The candidate of every linear, and the report.
    fn choose(&self, file: &ModelFile, costs: &[PartCosts]) -> Result<(BTreeMap<Linear, usize>, AllocationReport)> {
        let units = self.units(file)?;
        let option = |unit: &Vec<Linear>, k: usize| Choice {
            bits: unit.iter().map(|(i, w)| self.bits[k][*i][*w]).sum(),
            cost: unit.iter().map(|(i, w)| costs[*i][*w][k]).sum(),
        };
        let options: Vec<Vec<Choice>> =
            units.iter().map(|u| (0..self.candidates.len()).map(|k| option(u, k)).collect()).collect();
        let (budget, weights) = self.budget(file);
        let solution =
            knapsack::solve(&options, budget).ok_or_else(|| Error::internal("a budget that was enough is not"))?;
        let chosen: BTreeMap<Linear, usize> =
            units.iter().zip(&solution).flat_map(|(unit, k)| unit.iter().map(|l| (*l, *k))).collect();
        let mut linears = Vec::new();
        for (&(i, w), &k) in &chosen {
            let (part, graph) = graph_part(file, i);
            let weight = &graph.weights[w];
            let size = (weight.shape[0] * weight.shape[1]) as f64;
            linears.push(Allocated {
                name: file.exported(part, &weight.name)?.name,
                chosen: k,
                grid: self.candidates[k][i][w].as_ref().map(|g| g.label()).unwrap_or_default(),
                bits_per_weight: self.bits.iter().map(|of| of[i][w] as f64 / size).collect(),
                costs: costs[i][w].clone(),
            });
        }
        let taken = || solution.iter().zip(&options).map(|(k, o)| o[*k]);
        let report = AllocationReport {
            sensitivity: self.settings.sensitivity,
            budget: self.settings.bits,
            bits_per_weight: taken().map(|c| c.bits).sum::<u64>() as f64 / weights as f64,
            cost: taken().map(|c| c.cost).sum(),
            linears,
        };
        Ok((chosen, report))
    }

    /// Copies of the residual stream of all sequences that the sweep keeps at a time.
    pub(crate) fn slots(&self, blocks: usize) -> usize {
        match self.settings.sensitivity {
            Sensitivity::Kl => {
                2 + (0..blocks).map(|i| self.rounded(i).len()).max().unwrap_or(0) * self.candidates.len()
            }
            Sensitivity::Error => 2,
            Sensitivity::Fisher | Sensitivity::Trace | Sensitivity::Taylor => blocks + 2,
        }
    }

    /// Numbers in memory while losses are found at the head.
    pub(crate) fn head_floats(&self, model: &fewbit_graph::Model, length: usize) -> Vec<usize> {
        match self.settings.sensitivity {
            Sensitivity::Kl => vec![divergence::MOST_LOGITS.max(model.vocabulary); 2],
            Sensitivity::Error => Vec::new(),
            Sensitivity::Fisher | Sensitivity::Trace | Sensitivity::Taylor => {
                vec![model.head.parameters() as usize, 3 * backward::HEAD_ROWS.min(length) * model.vocabulary]
            }
        }
    }

    /// Linears of part `i` that are rounded.
    fn rounded(&self, i: usize) -> Vec<WeightId> {
        let grids = self.candidates[0][i].iter().enumerate();
        grids.filter(|(_, g)| g.is_some()).map(|(w, _)| w).collect()
    }
}

impl AllocationReport {
    /// How many linears got which grid, for people.
    pub fn summary(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        self.linears.iter().for_each(|l| *counts.entry(&l.grid).or_default() += 1);
        counts.iter().map(|(grid, n)| format!("{n} × {grid}")).collect::<Vec<_>>().join(", ")
    }
}

/// A compressible part and its graph.
fn graph_part(file: &ModelFile, i: usize) -> (Part, &fewbit_graph::Graph) {
    let part = if i < file.model().blocks.len() { Part::Block(i) } else { Part::Head };
    (part, file.model().part(part))
}

impl Run<'_> {
    /// Measures what candidates cost, as far as an earlier run has not, and sets the grids.
    pub(crate) fn allocate(&mut self, progress: &mut dyn Progress) -> Result<Option<AllocationReport>> {
        let Some(mut allocation) = self.bound.allocation.take() else { return Ok(None) };
        let costs = {
            let origin = Origin::new(&self.file, &self.bound, self.team, self.request.seed)?;
            self.measure(&allocation, &origin, progress)?
        };
        if allocation.settings.granularity == Granularity::Row {
            return self.allocate_rows(allocation, &costs, progress).map(Some);
        }
        let (chosen, report) = allocation.choose(&self.file, &costs)?;
        for ((i, w), k) in chosen {
            self.bound.grids[i][w] = allocation.candidates[k][i][w].take();
        }
        progress.note(&format!("{:.3} bits per weight: {}", report.bits_per_weight, report.summary()));
        Ok(Some(report))
    }

    fn measured_path(&self) -> PathBuf {
        self.places.partial.join(MEASURED)
    }
}
