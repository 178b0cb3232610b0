use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use fewbit_engine::kinds::{
    Beside, BoundGrid, Entry, InputJob, InputSolver, Keep, LANES, LinearJob, Needs, Params, Place, Rounded, Rounder,
    Solved, Solver, Strip, parse,
};
use fewbit_format::{Error, Mat, Result};
use fewbit_kernel::Team;
use fewbit_kernel::product::product_nn;
use fewbit_kernel::strip::feedback;
use fewbit_linalg::upper_inverse_factor;
use serde::Deserialize;

use super::nearest::fit_all;
use super::sensitive::Costs;

pub(crate) const ENTRY: Entry<dyn Solver> = Entry {
    name: "gptq",
    cite: "Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2022 (arXiv:2210.17323)",
    settings: &[
        ("damping = 0.01", "share of the mean diagonal of H that is added to it"),
        ("act_order = true", "columns in order of falling diagonal of H, tiles of several columns by their mean"),
        ("static_groups = true", "fit all groups on the original weights; needed for act_order with plain groups"),
        ("block = 128", "columns between updates of the rest; does not change the result"),
    ],
    build: |table| {
        let gptq: Gptq = parse("solve.gptq", table)?;
        gptq.check()?;
        Ok(Box::new(gptq))
    },
};

/// Column by column: round, and let the columns that follow make up for the error.
///
/// With `H = XᵀX + λI` and `H⁻¹ = UᵀU` (`U` upper): `e = (w_i − ŵ_i) / U[i,i]`, `W[:, j] −= e · U[i, j]` for `j > i`
/// (Algorithm 1). `‖E‖² = tr(Δ H Δᵀ)`. Where a grid rounds tiles of several columns, `E` of a tile is `Δ_t U_tt⁻¹`, found
/// column by column: block LDL (QuIP#, section 3).
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Gptq {
    damping: f32,
    act_order: bool,
    static_groups: bool,
    block: usize,
}

/// With its defaults.
pub(crate) static GPTQ: Gptq = Gptq { damping: 0.01, act_order: true, static_groups: true, block: 128 };

impl Default for Gptq {
    fn default() -> Self {
        GPTQ
    }
}

impl Gptq {
    fn check(&self) -> Result<()> {
        if !(self.damping.is_finite() && self.damping > 0.0) {
            return Err(Error::input(format!(
                "`solve.damping` is {}, where a positive number is needed",
                self.damping
            )));
        }
        if self.block == 0 {
            return Err(Error::input("`solve.block` is 0, where a positive number is needed"));
        }
        if self.act_order && !self.static_groups {
            return Err(Error::input("`solve.act_order` without `solve.static_groups` would scatter the groups")
                .hint("keep static groups, or set `solve.act_order=false`"));
        }
        Ok(())
    }

    /// What it knows of an input.
    pub(crate) fn of_input<'a>(&'a self, input: InputJob<'a>) -> Result<OfInput<'a>> {
        let gram = input.stats.gram.as_ref().ok_or_else(|| Error::internal("GPTQ without XᵀX"))?;
        Ok(OfInput { gptq: self, input, gram, factors: RefCell::default() })
    }

    /// The order of the columns, `width` of which stay together.
    fn order(&self, h: &Mat, width: usize) -> Vec<usize> {
        let mut tiles: Vec<usize> = (0..h.cols() / width).collect();
        if self.act_order {
            let weight = |tile: &usize| (tile * width..(tile + 1) * width).map(|c| h[(c, c)]).sum::<f32>();
            tiles.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then(a.cmp(b)));
        }
        tiles.into_iter().flat_map(|tile| tile * width..(tile + 1) * width).collect()
    }

    /// The factor of the columns in order under as much damping as it takes.
    fn factor(&self, input: InputJob<'_>, gram: &Mat, width: usize) -> Result<Factor> {
        let order = self.order(gram, width);
        let diagonal: Vec<f32> = order.iter().map(|c| if is_dead(gram, *c) { 1.0 } else { gram[(*c, *c)] }).collect();
        let mean = diagonal.iter().map(|d| f64::from(*d)).sum::<f64>() / diagonal.len() as f64;
        let mut damping = self.damping;
        for _ in 0..12 {
            let ridge = (f64::from(damping) * mean) as f32;
            let mut damped = Mat::zeros(order.len(), order.len());
            input.team.for_pieces(damped.data_mut(), order.len(), &|r, row| {
                gather(gram.row(order[r]), &order, row);
                row[r] = diagonal[r] + ridge;
            });
            if let Ok(u) = upper_inverse_factor(input.team, damped) {
                let added = order.iter().zip(&diagonal).map(|(c, d)| d - gram[(*c, *c)].max(0.0) + ridge).collect();
                return Ok(Factor { width, order, u, damping, added });
            }
            damping *= 10.0;
        }
        Err(Error::input("XᵀX cannot be factored, whatever the damping")
            .tensor(input.name)
            .hint("check the calibration text"))
    }
}

impl Solver for Gptq {
    fn chooses_kept(&self) -> Option<Beside> {
        Some(Beside::ChosenWhileRounding)
    }

    fn check(&self, grid: &dyn BoundGrid, beside: Option<Beside>) -> Result<()> {
        if !self.static_groups && grid.is_sealed_as_a_whole() {
            return Err(Error::input("the scales of this grid are rounded together, after all of them are found")
                .hint("set `solve.static_groups=true`"));
        }
        if beside == Some(Beside::ChosenWhileRounding) && grid.width() > 1 {
            return Err(Error::input("weights are kept beside codes of one column, not of several together")
                .hint("leave out the `residual` pass, or take another grid"));
        }
        Ok(())
    }

    fn needs(&self) -> Needs {
        Needs { gram: true, ..Needs::default() }
    }

    fn scratch_bytes(&self, rows: usize, cols: usize) -> u64 {
        // The permuted H, which becomes its factor; the weights being worked on, their codes, one block of errors.
        (4 * cols * cols + (4 + 3) * rows * cols + 4 * rows * self.block) as u64
    }

    fn input_flops(&self, cols: usize) -> f64 {
        (cols as f64).powi(3) * 2.0 / 3.0
    }

    fn flops(&self, rows: usize, cols: usize) -> f64 {
        rows as f64 * (cols as f64).powi(2)
    }

    fn begin<'a>(&'a self, input: InputJob<'a>) -> Result<Box<dyn InputSolver + 'a>> {
        Ok(Box::new(self.of_input(input)?))
    }
}

/// What GPTQ knows of an input.
pub(crate) struct OfInput<'a> {
    gptq: &'a Gptq,
    input: InputJob<'a>,
    gram: &'a Mat,
    /// One for each width of tile that was met.
    factors: RefCell<Vec<Arc<Factor>>>,
}

/// The order of the columns in tiles of one width, and the factor in that order.
struct Factor {
    width: usize,
    order: Vec<usize>,
    u: Mat,
    damping: f32,
    /// What stands on the diagonal above `XᵀX`.
    added: Vec<f32>,
}

impl OfInput<'_> {
    /// The factor for tiles of `width` columns.
    fn factor(&self, width: usize) -> Result<Arc<Factor>> {
        let mut factors = self.factors.borrow_mut();
        // Without an order there is one for all.
        if let Some(known) = factors.iter().find(|f| f.width == width || !self.gptq.act_order) {
            return Ok(Arc::clone(known));
        }
        factors.push(Arc::new(self.gptq.factor(self.input, self.gram, width)?));
        Ok(Arc::clone(&factors[factors.len() - 1]))
    }

    /// Codes and parameters of all strips, `tr(Δ XᵀX Δᵀ)`, and the damping that it took; `weight` has zeros in dead columns.
    pub(crate) fn round(
        &self,
        job: &LinearJob<'_>,
        rounder: &Rounder<'_>,
        weight: &Mat,
    ) -> Result<(Vec<Rounded>, f64, f32)> {
        let (team, gram) = (self.input.team, self.gram);
        let factor = self.factor(rounder.width())?;
        let (n, m) = (gram.cols(), weight.rows());
        let mut w = Mat::zeros(m, n);
        team.for_pieces(w.data_mut(), n, &|r, row| gather(weight.row(r), &factor.order, row));
        let (order, u, is_static) = (&*factor.order, &factor.u, self.gptq.static_groups);
        let costs = match job.keep {
            Keep::Sensitive { threshold } => Some(Costs::new(rounder, weight, team, (order, u), *threshold)),
            _ => None,
        };
        let pass = Pass { rounder, weight, team, order, u, added: &factor.added, is_static, costs };
        let (rounded, loss) = pass.run(&mut w, self.gptq.block);
        Ok((rounded, loss, factor.damping))
    }
}

impl InputSolver for OfInput<'_> {
    fn solve(&self, job: &LinearJob<'_>) -> Result<Solved> {
        let weight = without_dead(job.weight, self.gram);
        let rounder = Rounder::new(self.input, job, &weight)?;
        let (strips, loss, damping) = self.round(job, &rounder, &weight)?;
        let from = self.gptq.damping;
        let warning = (damping > from)
            .then(|| format!("`{}`: damping raised from {from} to {damping}, since XᵀX is nearly singular", job.name));
        // What is left of a damping that is nearly all may be less than nothing.
        let output_mse = Some(loss.max(0.0) / (self.input.stats.tokens.max(1) * weight.rows()) as f64);
        let (storage, sparse) = rounder.finish(strips)?;
        Ok(Solved { storage, sparse, output_mse, warning })
    }
}

/// `out[i] = values[order[i]]`.
fn gather(values: &[f32], order: &[usize], out: &mut [f32]) {
    out.iter_mut().zip(order).for_each(|(o, i)| *o = values[*i]);
}

/// Whether no calibration token reaches a column.
fn is_dead(gram: &Mat, column: usize) -> bool {
    gram[(column, column)] <= 0.0
}

/// The weights with zeros in dead columns: these have no part in the range of their groups.
pub(crate) fn without_dead<'a>(weight: &'a Mat, gram: &Mat) -> Cow<'a, Mat> {
    let mut weight = Cow::Borrowed(weight);
    for c in (0..gram.cols()).filter(|c| is_dead(gram, *c)) {
        let w = weight.to_mut();
        (0..w.rows()).for_each(|r| w[(r, c)] = 0.0);
    }
    weight
}

/// One run over the columns.
struct Pass<'a> {
    rounder: &'a Rounder<'a>,
    weight: &'a Mat,
    team: &'a Team,
    order: &'a [usize],
    u: &'a Mat,
    added: &'a [f32],
    is_static: bool,
    /// Where weights may stay beside the codes.
    costs: Option<Costs>,
}

impl Pass<'_> {
    /// Rounds `w` (columns in order) block by block; returns the strips and `tr(Δ XᵀX Δᵀ)`.
    fn run(&self, w: &mut Mat, block: usize) -> (Vec<Rounded>, f64) {
        let (m, n, strips) = (w.rows(), w.cols(), Strip::count(w.rows()));
        let width = self.rounder.width();
        let block = block.div_ceil(width) * width;
        // Static groups: all parameters from the original weights.
        let params = if self.is_static {
            self.fit_static()
        } else {
            vec![vec![Params::default(); n / self.rounder.group()]; strips]
        };
        let state: Vec<Mutex<Rounded>> = params.into_iter().map(|p| Mutex::new((vec![[0; LANES]; n], p))).collect();
        let losses: Vec<Mutex<f64>> = (0..strips).map(|_| Mutex::new(0.0)).collect();
        let mut errors = vec![0.0f32; m * block.min(n)];
        for first in (0..n).step_by(block) {
            let last = (first + block).min(n);
            let len = last - first;
            let errors = &mut errors[..m * len];
            let current = &*w;
            self.team.for_pieces(errors, LANES * len, &|i, errors| {
                let mut state = state[i].lock().expect("no task panics while it holds its strip");
                let loss = self.block(current, i, first..last, &mut state, errors);
                *losses[i].lock().expect("no task panics while it holds its strip") += loss;
            });
            if last < n {
                let (u, rest) = (self.u.data(), n - last);
                product_nn(
                    self.team,
                    m,
                    rest,
                    len,
                    -1.0,
                    errors,
                    len,
                    &u[first * n + last..],
                    n,
                    &mut w.data_mut()[last..],
                    n,
                );
            }
        }
        let loss = losses.iter().map(|l| *l.lock().expect("no task panics while it holds its strip")).sum();
        (state.into_iter().map(|s| s.into_inner().expect("no task panics while it holds its strip")).collect(), loss)
    }

    /// Columns `cols` of one strip; writes the errors `[row][column]` and returns their sum of squares, which is
    /// `tr(Δ (XᵀX + D) Δᵀ)`, less the part of what was added to the diagonal.
    fn block(
        &self,
        w: &Mat,
        strip: usize,
        cols: std::ops::Range<usize>,
        state: &mut Rounded,
        errors: &mut [f32],
    ) -> f64 {
        let (len, width, group) = (cols.len(), self.rounder.width(), self.rounder.group());
        let rows = errors.len() / len;
        let (mut data, mut original) = (vec![[0.0f32; LANES]; len], vec![[0.0f32; LANES]; len]);
        for lane in 0..rows {
            let row = strip * LANES + lane;
            data.iter_mut().zip(&w.row(row)[cols.clone()]).for_each(|(d, v)| d[lane] = *v);
            let before = self.weight.row(row);
            original.iter_mut().zip(&self.order[cols.clone()]).for_each(|(o, c)| o[lane] = before[*c]);
        }
        let (codes, params) = state;
        let mut decoded = vec![[0.0f32; LANES]; width];
        let mut coupling = vec![0.0f32; width * width];
        let mut sum = 0.0;
        for at in (0..len).step_by(width) {
            let column = cols.start + at;
            let stored = self.order[column];
            let k = stored / group;
            if !self.is_static && stored.is_multiple_of(group) {
                // The group may reach past this block: its later columns are compensated up to the last block only.
                params[k] = self.fit_group(w, strip, &data[at..], stored, rows);
            }
            let (place, tile) = (Place { strip, column: stored }, &data[at..at + width]);
            let codes_now = &mut codes[stored..stored + width];
            if width == 1 {
                self.rounder.round(place, &params[k], tile, codes_now, &mut decoded);
            } else {
                for (t, u) in coupling.chunks_exact_mut(width).enumerate() {
                    u.copy_from_slice(&self.u.row(column + t)[column..column + width]);
                }
                self.rounder.round_coupled(place, &params[k], tile, &coupling, codes_now, &mut decoded);
            }
            if let Some(costs) = &self.costs {
                let lanes = costs.kept(column, &data[at], &decoded[0], rows);
                if lanes != 0 {
                    self.rounder.keep(place, &params[k], &data[at], lanes, &mut codes[stored], &mut decoded[0]);
                }
            }
            for t in 0..width {
                let i = column + t;
                let u = self.u.row(i);
                let mut e = [0.0f32; LANES];
                // Lanes without a row may share a code with rows, but make no error.
                for lane in 0..rows {
                    e[lane] = (data[at + t][lane] - decoded[t][lane]) / u[i];
                    let delta = original[at + t][lane] - decoded[t][lane];
                    sum += f64::from(e[lane]).powi(2) - f64::from(self.added[i]) * f64::from(delta).powi(2);
                }
                feedback(data[at + t + 1..].as_flattened_mut(), &e, &u[i + 1..cols.end]);
                for lane in 0..rows {
                    errors[lane * len + at + t] = e[lane];
                }
            }
        }
        sum
    }

    /// Dynamic groups: parameters from the weights as they are now, compensated within the block.
    fn fit_group(&self, w: &Mat, strip: usize, in_block: &[[f32; LANES]], first: usize, rows: usize) -> Params {
        let group = self.rounder.group();
        let mut values = vec![[0.0; LANES]; group];
        let inside = in_block.len().min(group);
        values[..inside].copy_from_slice(&in_block[..inside]);
        for lane in 0..rows {
            let row = w.row(strip * LANES + lane);
            for c in inside..group {
                values[c][lane] = row[first + c];
            }
        }
        self.fit(Place { strip, column: first }, &values)
    }

    /// Static groups: the parameters of all strips, from the original weights.
    fn fit_static(&self) -> Vec<Vec<Params>> {
        if self.costs.is_none() {
            return fit_all(self.rounder, self.weight, self.team);
        }
        let (group, mut params) = (self.rounder.group(), vec![Vec::new(); Strip::count(self.weight.rows())]);
        self.team.for_pieces(&mut params, 1, &|strip, params| {
            let all = Strip::of(self.weight, strip);
            let groups = all.data.chunks_exact(group).enumerate();
            params[0] = groups.map(|(k, values)| self.fit(Place { strip, column: k * group }, values)).collect();
        });
        self.rounder.seal(&mut params);
        params
    }

    /// Parameters of a group, without the weights that are likely to stay beside the codes.
    fn fit(&self, at: Place, values: &[[f32; LANES]]) -> Params {
        let likely = self.costs.as_ref().and_then(|c| c.likely(self.rounder, at, values));
        likely.map_or_else(|| self.rounder.fit(at, values), |seen| self.rounder.fit_seen(at, values, &seen))
    }
}
