use fewbit_engine::kinds::{BoundGrid, Entry, Grid, GridJob, LANES, Needs, Params, Place, Weighting, parse};
use fewbit_format::{Error, Mat, Result, ScaleType, Storage, VectorCodes, VectorGrid, packed_len};
use fewbit_kernel::codebook::Codebook;
use fewbit_linalg::kmeans;
use serde::Deserialize;

pub(crate) const ENTRY: Entry<dyn Grid> = Entry {
    name: "vector",
    cite: "Liu et al., VPTQ: Extreme Low-bit Vector Post-Training Quantization for Large Language Models, 2024 (arXiv:2409.17066)",
    settings: &[
        ("bits = 2.0", "bits of codes for a weight: a vector has so many times its length"),
        (
            "len = 0",
            "rows that share a code: 2, 4, 8 or 16; 0: the most whose codebooks take an eighth of the codes at most, else 2",
        ),
        ("residual = 0", "bits of a vector's codes that choose from a second codebook, whose vector is added"),
        (
            "columns = \"auto\"",
            "scale and offset for each column: `yes`, `no`; `auto`: where they take a sixteenth of the codes",
        ),
        ("rounds = 100", "rounds of the search for the codebooks, at most"),
    ],
    build: |table| Ok(Box::new(parse::<VectorSettings>("grid.vector", table)?)),
};

/// Vectors of consecutive rows of one column as entries of a codebook that is made for the matrix: `ŵ = a · (C[q] + R[p]) + b`.
///
/// As an error of a column counts the same in all rows, the nearest entry is the best one, and a solver works column by
/// column. The codebooks are centres of the columns' vectors, weighted with `a² H_jj`: with the weights' columns the
/// metric is scaled too. The second is made of what the first leaves.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct VectorSettings {
    bits: f32,
    len: u8,
    residual: u8,
    columns: Columns,
    rounds: usize,
}

impl Default for VectorSettings {
    fn default() -> Self {
        Self { bits: 2.0, len: 0, residual: 0, columns: Columns::Auto, rounds: 100 }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Columns {
    Auto,
    Yes,
    No,
}

impl VectorSettings {
    /// The grid with vectors of this length.
    fn of_len(&self, len: u8, rows: usize) -> Result<VectorGrid> {
        let all = self.bits * f32::from(len);
        if all.fract() != 0.0 || !(1.0..=32.0).contains(&all) || f32::from(self.residual) >= all {
            return Err(Error::input(format!(
                "{} bits a weight are {all} for a vector of {len}, which two codebooks of 1 to 16 bits need to share",
                self.bits
            )));
        }
        let has_columns = match self.columns {
            Columns::Yes => true,
            Columns::No => false,
            Columns::Auto => 32.0 * 16.0 <= self.bits * rows as f32,
        };
        let grid = VectorGrid { len, bits: all as u8 - self.residual, residual_bits: self.residual, has_columns };
        grid.check().map(|()| grid)
    }

    /// The grid for a matrix `[rows, cols]`.
    fn grid(&self, rows: usize, cols: usize) -> Result<VectorGrid> {
        if self.len > 0 {
            return self.of_len(self.len, rows);
        }
        let is_light = |grid: &VectorGrid| {
            let codebooks = 16 * usize::from(grid.len) * grid.entries();
            codebooks as f32 <= self.bits * (rows * cols) as f32 / 8.0
        };
        let mut fitting = [16, 8, 4].into_iter().filter_map(|len| self.of_len(len, rows).ok());
        fitting.find(is_light).map_or_else(|| self.of_len(2, rows), Ok)
    }
}

impl Grid for VectorSettings {
    fn check(&self, rows: usize, cols: usize) -> Result<()> {
        self.grid(rows, cols).map(|_| ())
    }

    fn needs(&self) -> Needs {
        Needs { gram: true, ..Needs::default() }
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        let Ok(grid) = self.grid(rows, cols) else { return 0 };
        let len = usize::from(grid.len);
        let codes = packed_len(cols, grid.bits) + packed_len(cols, grid.residual_bits);
        let numbers = grid.entries() * len + if grid.has_columns { 2 * cols } else { 0 };
        (8 * rows.div_ceil(len) * codes + 16 * numbers) as u64
    }

    fn begin(&self, job: &GridJob<'_>) -> Result<Box<dyn BoundGrid>> {
        let w = job.weight;
        let grid = self.grid(w.rows(), w.cols())?;
        let columns = if grid.has_columns { normalised(w) } else { Vec::new() };
        let mut bound =
            Bound { grid, books: Vec::new(), codebook: Vec::new(), columns, rows: w.rows(), cols: w.cols() };
        let (mut points, weights) = bound.points(job);
        let len = usize::from(grid.len);
        for (bits, part) in [(grid.bits, 0), (grid.residual_bits, 1)].into_iter().filter(|(bits, _)| *bits > 0) {
            if let Some(first) = bound.books.last() {
                job.team.for_pieces(points.data_mut(), len, &|_, x| {
                    let own = first.nearest(x) * len;
                    x.iter_mut().zip(&bound.codebook[own..]).for_each(|(x, c)| *x -= c);
                });
            }
            let centres = kmeans(job.team, &points, &weights, 1 << bits, self.rounds, job.seed.wrapping_add(part));
            let book: Vec<f32> = centres.data().iter().map(|v| stored(*v)).collect();
            bound.books.push(Codebook::new(&book, len));
            bound.codebook.extend(book);
        }
        Ok(Box::new(bound))
    }

    fn label(&self) -> String {
        let len = if self.len > 0 { format!(" of {}", self.len) } else { String::new() };
        format!("vectors{len} {} bits", self.bits)
    }
}

/// The nearest number of F16.
fn stored(v: f32) -> f32 {
    ScaleType::F16.round(v)
}

/// For each column its standard deviation, then for each its mean, as they are stored.
fn normalised(w: &Mat) -> Vec<f32> {
    let (mut sums, mut squares) = (vec![0.0f64; w.cols()], vec![0.0f64; w.cols()]);
    for r in 0..w.rows() {
        for ((sum, square), v) in sums.iter_mut().zip(&mut squares).zip(w.row(r)) {
            *sum += f64::from(*v);
            *square += f64::from(*v) * f64::from(*v);
        }
    }
    let count = w.rows().max(1) as f64;
    let means = sums.iter().map(|s| s / count);
    let spreads = means.clone().zip(&squares).map(|(mean, square)| (square / count - mean * mean).max(0.0).sqrt());
    // A column of one number needs no codes.
    let scale = |s: f64| if stored(s as f32) > 0.0 { stored(s as f32) } else { 1.0 };
    spreads.map(scale).chain(means.map(|m| stored(m as f32))).collect()
}

struct Bound {
    grid: VectorGrid,
    books: Vec<Codebook>,
    /// Both codebooks, `[entries · len]`.
    codebook: Vec<f32>,
    /// Scales of the columns, then their offsets; or nothing.
    columns: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Bound {
    /// Scale and offset of a column.
    fn column(&self, c: usize) -> (f32, f32) {
        if self.columns.is_empty() { (1.0, 0.0) } else { (self.columns[c], self.columns[self.cols + c]) }
    }

    /// All whole vectors of the normalised matrix, and how much an error of each counts.
    fn points(&self, job: &GridJob<'_>) -> (Mat, Vec<f32>) {
        let len = usize::from(self.grid.len);
        let strips = (self.rows / len).max(1);
        let value = |r: usize, c: usize| {
            let (scale, offset) = self.column(c);
            if r < self.rows { (job.weight[(r, c)] - offset) / scale } else { 0.0 }
        };
        let points = Mat::from_fn(strips * self.cols, len, |i, k| value(i / self.cols * len + k, i % self.cols));
        let weight = |c: usize| self.column(c).0.powi(2) * job.stats.gram.as_ref().map_or(1.0, |h| h[(c, c)]);
        let mut weights: Vec<f32> = (0..self.cols).map(weight).collect();
        if weights.iter().all(|w| *w <= 0.0) {
            weights.fill(1.0);
        }
        (points, weights.repeat(strips))
    }
}

impl BoundGrid for Bound {
    fn width(&self) -> usize {
        1
    }

    fn height(&self) -> usize {
        usize::from(self.grid.len)
    }

    fn group(&self) -> usize {
        1
    }

    fn fit(&self, _: Place, _: &[[f32; LANES]], _: Weighting<'_>) -> Params {
        Params::default()
    }

    fn round(
        &self,
        at: Place,
        _: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        let len = self.height();
        let (main, second) = self.codebook.split_at(len << self.grid.bits);
        for (i, ((w, codes), out)) in tile.iter().zip(codes).zip(decoded).enumerate() {
            let (scale, offset) = self.column(at.column + i);
            let mut x = w.map(|v| (v - offset) / scale);
            *codes = [0; LANES];
            for first in (0..LANES).step_by(len) {
                let lanes = first..first + len;
                let q = self.books[0].nearest(&x[lanes.clone()]);
                codes[first] = q as u16;
                let entry = &main[q * len..(q + 1) * len];
                out[lanes.clone()].copy_from_slice(entry);
                if let Some(book) = self.books.get(1) {
                    x[lanes.clone()].iter_mut().zip(entry).for_each(|(x, c)| *x -= c);
                    let p = book.nearest(&x[lanes.clone()]);
                    codes[first + 1] = p as u16;
                    out[lanes].iter_mut().zip(&second[p * len..]).for_each(|(o, c)| *o += c);
                }
            }
            if !self.columns.is_empty() {
                out.iter_mut().for_each(|o| *o = scale * *o + offset);
            }
        }
    }

    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, _: Vec<Vec<Params>>) -> Result<Storage> {
        let len = self.height();
        let flat = |place: usize| -> Vec<u16> {
            let row = |first: usize| codes[first / LANES].iter().map(move |lanes| lanes[first % LANES + place]);
            (0..self.rows).step_by(len).flat_map(row).collect()
        };
        let residual = if self.grid.residual_bits == 0 { Vec::new() } else { flat(1) };
        let (codebook, columns) = (self.codebook.clone(), self.columns.clone());
        VectorCodes::new(self.rows, self.cols, self.grid, &flat(0), &residual, codebook, columns).map(Storage::Vector)
    }
}
