//! Learned codes and scales of small floats.

use fewbit_engine::kinds::{Fake, Leaf, LeafJob};
use fewbit_format::{FloatCodes, FloatGrid, Mat, Minifloat, Result, Storage, pack_bits, packed_len};
use fewbit_kernel::Team;

use super::affine::INSIDE;

/// The differentiable form of a matrix of small floats: `ŵ = f T((w + u δ) / f)`, `f = R(s₀ a) / g`.
///
/// `δ` is one variable a weight, in mean spacings `u` of the grid where the weights lie; `a` one a group, `R` rounds to the
/// type of the scales, `g` the number above them. What is rounded passes its gradient through: with `m = 1` where
/// `T` does not saturate, `∂ŵ/∂δ = u m`, `∂ŵ/∂f = T(v) − m v`.
pub(super) struct Small {
    grid: FloatGrid,
    global: Option<f32>,
    rows: usize,
    cols: usize,
    /// The weights, moved into the cells of the start's codes.
    base: Mat,
    /// The stored scales, by group.
    start: Vec<f32>,
    unit: f32,
    /// Places of `δ` and `a` among the leaves.
    weight: Option<usize>,
    scale: Option<usize>,
    leaves: Vec<Leaf>,
}

/// The distance from one number of a type to the one of the next greater magnitude, or to the one below the greatest.
fn spacing(element: Minifloat, number: f32) -> f32 {
    let code = element.encode(number.abs());
    let code = if number.abs() < element.max() { code } else { code - 1 };
    element.decode(code + 1) - element.decode(code)
}

/// `v`, or the place nearest to it in the cell of the number `q`.
fn inside(element: Minifloat, v: f32, q: f32) -> f32 {
    if element.round(v) == q {
        return v;
    }
    let is_outward = q == 0.0 || (v.signum() == q.signum() && v.abs() > q.abs());
    let step = if is_outward { spacing(element, q) } else { q.abs() - element.decode(element.encode(q.abs()) - 1) };
    q + (0.5 - INSIDE) * step * (v - q).signum()
}

impl Small {
    pub(super) fn new(job: &LeafJob<'_>, codes: &FloatCodes, weight: Option<f32>, scale: Option<f32>) -> Self {
        let ([rows, cols], grid) = (codes.shape(), codes.grid());
        let mut stored = Mat::zeros(rows, cols);
        codes.decode_rows(0..rows, stored.data_mut());
        let start: Vec<f32> = (0..grid.group.count(rows, cols)).map(|k| grid.scale.get(codes.scales(), k)).collect();
        let mut small = Self {
            grid,
            global: codes.global(),
            rows,
            cols,
            base: job.weight.clone(),
            start,
            unit: 0.0,
            weight: None,
            scale: None,
            leaves: Vec::new(),
        };
        let (element, mut sum) = (grid.element, 0.0f64);
        let mut base = std::mem::replace(&mut small.base, Mat::zeros(0, 0));
        for r in 0..rows {
            for (c, (w, q)) in base.row_mut(r).iter_mut().zip(stored.row(r)).enumerate() {
                let f = small.factor(small.group(r, c));
                let v = *w / f;
                let kept = inside(element, v, element.round(q / f));
                if kept != v {
                    *w = kept * f;
                }
                sum += f64::from(spacing(element, q / f) * f.abs());
            }
        }
        small.base = base;
        small.unit = (sum / (rows * cols).max(1) as f64) as f32;
        if let Some(rate) = weight {
            small.weight = Some(small.leaves.len());
            small.leaves.push(Leaf { name: "weight", values: vec![0.0; rows * cols], rate });
        }
        if let Some(rate) = scale {
            small.scale = Some(small.leaves.len());
            small.leaves.push(Leaf { name: "scale", values: vec![1.0; small.start.len()], rate });
        }
        small
    }

    /// The group of a weight.
    fn group(&self, r: usize, c: usize) -> usize {
        self.grid.group.first_of_row(r, self.cols) + c / self.grid.group.width(self.cols)
    }

    /// The stored scale of group `k`.
    fn stored(&self, k: usize) -> f32 {
        let start = self.start[k];
        let Some(at) = self.scale else { return start };
        let rounded = self.grid.scale.round(start * self.leaves[at].values[k]);
        if rounded == 0.0 { start } else { rounded }
    }

    /// What a number of the element's type is multiplied with.
    fn factor(&self, k: usize) -> f32 {
        self.global.map_or(self.stored(k), |g| self.stored(k) / g)
    }

    /// Calls `each(column, group, factor, (w + u δ) / f)` for row `r`.
    fn row(&self, r: usize, mut each: impl FnMut(usize, usize, f32, f32)) {
        let width = self.grid.group.width(self.cols);
        for first in (0..self.cols).step_by(width) {
            let k = self.group(r, first);
            let f = self.factor(k);
            for c in first..(first + width).min(self.cols) {
                let at = r * self.cols + c;
                let moved = self.weight.map_or(0.0, |w| self.unit * self.leaves[w].values[at]);
                each(c, k, f, (self.base.data()[at] + moved) / f);
            }
        }
    }
}

impl Fake for Small {
    fn leaves(&self) -> Vec<&Leaf> {
        self.leaves.iter().collect()
    }

    fn leaves_mut(&mut self) -> Vec<&mut Leaf> {
        self.leaves.iter_mut().collect()
    }

    fn forward(&self, team: &Team, _: f32, out: &mut Mat) {
        let element = self.grid.element;
        team.for_pieces(out.data_mut(), self.cols, &|r, row| {
            self.row(r, |c, _, f, v| row[c] = element.round(v) * f);
        });
    }

    fn backward(&self, team: &Team, _: f32, gradient: &Mat, gradients: &mut [Vec<f32>]) {
        let (element, cols) = (self.grid.element, self.cols);
        if let Some(at) = self.weight {
            team.for_pieces(&mut gradients[at], cols, &|r, row| {
                let g = gradient.row(r);
                self.row(r, |c, _, _, v| row[c] = if v.abs() <= element.max() { g[c] * self.unit } else { 0.0 });
            });
        }
        let Some(at) = self.scale else { return };
        // Of each row by itself, then over the rows that share a scale.
        let per_row = self.grid.group.per_row(cols);
        let mut rows = vec![0.0f32; self.rows * per_row];
        team.for_pieces(&mut rows, per_row, &|r, sums| {
            let g = gradient.row(r);
            let first = self.grid.group.first_of_row(r, cols);
            self.row(r, |c, k, _, v| {
                let through = if v.abs() <= element.max() { v } else { 0.0 };
                sums[k - first] += g[c] * (element.round(v) - through);
            });
        });
        gradients[at].fill(0.0);
        for (r, sums) in rows.chunks_exact(per_row).enumerate() {
            let first = self.grid.group.first_of_row(r, cols);
            for (k, sum) in sums.iter().enumerate() {
                let unit = self.global.map_or(self.start[first + k], |g| self.start[first + k] / g);
                gradients[at][first + k] += sum * unit;
            }
        }
    }

    fn settle(&mut self) {
        if let Some(at) = self.scale {
            self.leaves[at].values.iter_mut().for_each(|a| *a = a.clamp(0.05, 8.0));
        }
    }

    fn bake(&self) -> Result<Storage> {
        let FloatGrid { element, scale, .. } = self.grid;
        let row_bytes = packed_len(self.cols, element.bits());
        let mut packed = vec![0; self.rows * row_bytes];
        let mut codes = vec![0; self.cols];
        for (r, out) in packed.chunks_exact_mut(row_bytes).enumerate() {
            self.row(r, |c, _, _, v| codes[c] = element.encode(v));
            pack_bits(&codes, element.bits(), out);
        }
        let scales: Vec<f32> = (0..self.start.len()).map(|k| self.stored(k)).collect();
        let scales = scale.to_bytes(&scales).into();
        FloatCodes::new(self.rows, self.cols, self.grid, packed.into(), scales, self.global).map(Storage::Float)
    }
}
