//! Rows of one matrix at two widths, chosen over the whole model (MixLLM, 2024).

use std::collections::BTreeMap;

use fewbit_format::{Band, Error, Mat, Online, QuantizedLinear, Result};

use super::{Allocated, Allocation, AllocationReport, Linear, PartCosts, graph_part};
use crate::kinds::Grid;
use crate::program::{Compressed, InputProgram, Target};
use crate::quantize::Run;
use crate::report::Progress;

/// The rows of one linear that get more bits, and these.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Rising; some, but not all.
    high: Vec<usize>,
    grid: Box<dyn Grid>,
}

impl Rows {
    /// Compresses both kinds of rows, each by itself: no solver lets rows know of each other. Those with fewer bits come
    /// first; an order behind the product puts them back.
    pub(crate) fn compress(
        &self,
        program: &InputProgram<'_>,
        target: &Target<'_>,
        bias: Option<Vec<f32>>,
    ) -> Result<Compressed> {
        let rows = target.weight.rows();
        let low: Vec<usize> = (0..rows).filter(|r| self.high.binary_search(r).is_err()).collect();
        let (mut bands, mut errors, mut warning) = (Vec::new(), Vec::new(), None);
        for (of, grid) in [(&low, target.grid), (&self.high, &*self.grid)] {
            let pick =
                |m: &Mat| Mat::from_vec(of.len(), m.cols(), of.iter().flat_map(|r| m.row(*r)).copied().collect());
            let (weight, fisher) = (pick(target.weight), target.fisher.map(pick));
            let part = Target { weight: &weight, fisher: fisher.as_ref(), grid, ..*target };
            let done = program.run(&part, None)?;
            errors.push(done.output_mse.map(|e| e * of.len() as f64 / rows as f64));
            warning = warning.or(done.warning);
            let first = bands.last().map_or(0, |b: &Band| b.rows.end);
            let storage = done.linear.bands.into_iter().next().ok_or_else(|| Error::internal("no band"))?.storage;
            bands.push(Band { rows: first..first + of.len(), storage });
        }
        let order: Vec<u32> = low.iter().chain(&self.high).map(|r| *r as u32).collect();
        let mut linear = QuantizedLinear::of_bands([rows, target.weight.cols()], bands, bias);
        linear.output.push(Online::Reorder(order).inverse());
        let output_mse = errors.into_iter().sum::<Option<f64>>();
        Ok(Compressed { linear, output_mse, warning })
    }

    /// Such as ` + 12 rows w8 g128`.
    pub(crate) fn label(&self) -> String {
        format!(" + {} rows {}", self.high.len(), self.grid.label())
    }
}

impl Allocation {
    /// The rows of all linears that get more bits: those that cost most for the bits that they ask for, as many as the
    /// budget has room for. An order of 16 bits for each row comes with the first of a linear: where few rows do not make
    /// up for it, the linear goes without.
    fn choose_rows(&self, budget: u64, costs: &[PartCosts]) -> BTreeMap<Linear, Vec<usize>> {
        let linears = (0..costs.len()).flat_map(|i| self.rounded(i).into_iter().map(move |w| (i, w)));
        let low = 1 - self.largest();
        let taken: u64 = linears.clone().map(|(i, w)| self.bits[low][i][w]).sum();
        let mut all: Vec<Candidate> = Vec::new();
        for linear in linears {
            let by = self.more(linear, costs);
            let rows = costs[linear.0][linear.1].iter().enumerate();
            all.extend(rows.map(|(row, cost)| Candidate { density: cost / by.max(1) as f64, linear, row, by }));
        }
        let order = |a: &Candidate, b: &Candidate| (a.linear, a.row).cmp(&(b.linear, b.row));
        all.sort_by(|a, b| b.density.total_cmp(&a.density).then_with(|| order(a, b)));
        loop {
            let (chosen, least) = fill(&all, budget.saturating_sub(taken), costs);
            // What a linear saves for all the bits that it takes.
            let worth = |(linear, rows): (&Linear, &Vec<usize>)| {
                let of = &costs[linear.0][linear.1];
                let bits = order_bits(of.len()) + self.more(*linear, costs) * rows.len() as u64;
                (rows.iter().map(|r| of[*r]).sum::<f64>() / bits.max(1) as f64, *linear)
            };
            let worst = chosen.iter().map(worth).min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            match worst.filter(|(worth, _)| *worth < least) {
                Some((_, linear)) => all.retain(|c| c.linear != linear),
                None => return chosen,
            }
        }
    }

    /// Bits that a row of a linear takes more.
    fn more(&self, (i, w): Linear, costs: &[PartCosts]) -> u64 {
        let (high, rows) = (self.largest(), costs[i][w].len().max(1) as u64);
        self.bits[high][i][w].saturating_sub(self.bits[1 - high][i][w]).div_ceil(rows)
    }
}

/// A row that may get more bits.
struct Candidate {
    /// What it costs with few, for each bit that it would take more.
    density: f64,
    linear: Linear,
    row: usize,
    by: u64,
}

/// Bits of the order of a linear's rows.
fn order_bits(rows: usize) -> u64 {
    Online::place_bits(rows) * rows as u64
}

/// Takes candidates in order as far as there is room; returns them, rising, and the least density among them.
fn fill(all: &[Candidate], room: u64, costs: &[PartCosts]) -> (BTreeMap<Linear, Vec<usize>>, f64) {
    let (mut taken, mut least) = (0, f64::INFINITY);
    let mut chosen: BTreeMap<Linear, Vec<usize>> = BTreeMap::new();
    for c in all {
        let order = if chosen.contains_key(&c.linear) { 0 } else { order_bits(costs[c.linear.0][c.linear.1].len()) };
        if taken + order + c.by <= room {
            taken += order + c.by;
            least = least.min(c.density);
            chosen.entry(c.linear).or_default().push(c.row);
        }
    }
    chosen.values_mut().for_each(|rows| rows.sort_unstable());
    (chosen, least)
}

impl Run<'_> {
    /// Chooses rows by their costs, and sets the grids.
    pub(super) fn allocate_rows(
        &mut self,
        mut allocation: Allocation,
        costs: &[PartCosts],
        progress: &mut dyn Progress,
    ) -> Result<AllocationReport> {
        let (budget, weights) = allocation.budget(&self.file);
        let high = allocation.largest();
        let low = 1 - high;
        let mut chosen = allocation.choose_rows(budget, costs);
        let (mut linears, mut stored, mut cost) = (Vec::new(), 0, 0.0);
        for i in 0..costs.len() {
            for w in allocation.rounded(i) {
                let (part, graph) = graph_part(&self.file, i);
                let [rows, cols] = graph.weights[w].shape;
                let name = self.file.exported(part, &graph.weights[w].name)?.name;
                let rows_high = chosen.remove(&(i, w)).unwrap_or_default();
                let all: f64 = costs[i][w].iter().sum();
                let saved: f64 = rows_high.iter().map(|r| costs[i][w][*r]).sum();
                let bits = [low, high].map(|k| allocation.bits[k][i][w]);
                let mut take = |k: usize| allocation.candidates[k][i][w].take();
                let (Some(low_grid), Some(high_grid)) = (take(low), take(high)) else {
                    return Err(Error::internal("half a candidate"));
                };
                let mut grid = low_grid.label();
                let is_all = rows_high.len() == rows;
                if is_all {
                    grid = high_grid.label();
                    stored += bits[1];
                    self.bound.grids[i][w] = Some(high_grid);
                } else {
                    self.bound.grids[i][w] = Some(low_grid);
                    stored += bits[0];
                    if !rows_high.is_empty() {
                        let more = allocation.more((i, w), costs);
                        stored += more * rows_high.len() as u64 + order_bits(rows);
                        let split = Rows { high: rows_high, grid: high_grid };
                        grid += &split.label();
                        self.bound.rows.insert((i, w), split);
                    }
                }
                cost += all - saved;
                let mut bits_per_weight = vec![0.0; 2];
                let mut by_candidate = vec![0.0; 2];
                for (k, bits) in [low, high].into_iter().zip(bits) {
                    bits_per_weight[k] = bits as f64 / (rows * cols) as f64;
                    by_candidate[k] = if k == low { all } else { 0.0 };
                }
                let chosen = if is_all { high } else { low };
                linears.push(Allocated { name, chosen, grid, bits_per_weight, costs: by_candidate });
            }
        }
        let (sensitivity, budget) = (allocation.settings.sensitivity, allocation.settings.bits);
        let bits_per_weight = stored as f64 / weights as f64;
        let report = AllocationReport { sensitivity, budget, bits_per_weight, cost, linears };
        let split = self.bound.rows.values().map(|r| r.high.len()).sum::<usize>();
        progress.note(&format!(
            "{bits_per_weight:.3} bits per weight: {split} rows of {} linears have more",
            self.bound.rows.len()
        ));
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_taken_where_a_bit_saves_most() {
        let costs: Vec<PartCosts> = vec![vec![vec![9.0, 1.0, 8.0], vec![7.0, 0.5]]];
        let candidate = |w: usize, row: usize, by: u64| Candidate {
            density: costs[0][w][row] / by as f64,
            linear: (0, w),
            row,
            by,
        };
        // The second linear's rows take ten times the bits.
        let mut all = vec![candidate(0, 0, 10), candidate(0, 1, 10), candidate(0, 2, 10)];
        all.extend([candidate(1, 0, 100), candidate(1, 1, 100)]);
        all.sort_by(|a, b| b.density.total_cmp(&a.density));
        let rows = |room: u64| fill(&all, room, &costs).0;
        assert!(rows(57).is_empty(), "an order of 48 bits and a row of 10");
        assert_eq!(rows(58)[&(0, 0)], [0]);
        assert_eq!(rows(68)[&(0, 0)], [0, 2]);
        assert_eq!(rows(68 + 132), BTreeMap::from([((0, 0), vec![0, 1, 2])]));
        assert_eq!(rows(78 + 132), BTreeMap::from([((0, 0), vec![0, 1, 2]), ((0, 1), vec![0])]));
        assert_eq!(fill(&all, 68, &costs).1, 0.8);
    }
}
