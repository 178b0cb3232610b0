use fewbit_engine::kinds::{Beside, Entry, Needs, Residual, ResidualJob, Side, parse};
use fewbit_format::{
    Dtype, Error, Group, IntCodes, IntGrid, LowRank as Factors, Mat, Result, ScaleType, Storage, Tensor, Zeros,
    packed_len,
};
use fewbit_kernel::product::product_nn;
use fewbit_linalg::truncated_svd;
use serde::Deserialize;

pub(crate) const ENTRY: Entry<dyn Residual> = Entry {
    name: "lowrank",
    cite: "Zhang et al., LQER: Low-Rank Quantization Error Reconstruction for LLMs, 2024 (arXiv:2402.02446)",
    settings: &[
        ("rank = 8", "rank of the correction"),
        (
            "weighting = \"none\"",
            "which errors count: `none` (all alike, LoRC), `diagonal` (columns by mean |x|, L²QER), `activations` (those of the output, by XᵀX), `fisher` (rows and columns by their squared gradients, LQ-LoRA)",
        ),
        ("bits = 8", "bits of a number in the factors, with a scale for each row; 16 is f16"),
    ],
    build: |table| {
        let low_rank: LowRank = parse("residual.lowrank", table)?;
        low_rank.check()?;
        Ok(Box::new(low_rank))
    },
};

/// A correction of low rank: the best `A B` for what the codes lack, `Δ = W − Ŵ`.
///
/// Best in `‖Δ − AB‖²`, in `‖(Δ − AB) diag(mean |x|)‖²` (LQER, section 3.3), or in the error of the output
/// `tr((Δ − AB) H (Δ − AB)ᵀ)`. In each case `A` holds the leading left singular vectors `U` of `Δ S`, `S Sᵀ` being the
/// metric, and `B = UᵀΔ`. With a scale for each row, as LQ-LoRA has beside those of columns, `A` is divided by it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LowRank {
    rank: usize,
    weighting: Weighting,
    bits: u8,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Weighting {
    None,
    Diagonal,
    Activations,
    Fisher,
}

impl Default for LowRank {
    fn default() -> Self {
        Self { rank: 8, weighting: Weighting::None, bits: 8 }
    }
}

impl LowRank {
    fn check(&self) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::input("`residual.rank` is 0, where a positive number is needed"));
        }
        if !(2..=8).contains(&self.bits) && self.bits != 16 {
            return Err(Error::input(format!("`residual.bits` is {}, where 2 to 8 or 16 are possible", self.bits)));
        }
        Ok(())
    }

    fn rank(&self, rows: usize, cols: usize) -> usize {
        self.rank.min(rows).min(cols)
    }

    fn factor_bits(&self, rows: usize, cols: usize) -> u64 {
        if self.bits == 16 { 16 * (rows * cols) as u64 } else { (rows * (8 * packed_len(cols, self.bits) + 16)) as u64 }
    }

    /// A factor as it is stored.
    fn stored(&self, m: &Mat) -> Result<Storage> {
        let (rows, cols) = (m.rows(), m.cols());
        if self.bits == 16 {
            return Tensor::from_f32(Dtype::F16, &[rows, cols], m.data()).map(Storage::Dense);
        }
        let grid = IntGrid { bits: self.bits, group: Group::Row, symmetric: true, scale: ScaleType::F16 };
        let middle = (1u32 << (self.bits - 1)) as f32;
        let (mut codes, mut scales) = (Vec::with_capacity(rows * cols), Vec::with_capacity(rows));
        for row in m.data().chunks_exact(cols) {
            let reach = row.iter().fold(0f32, |most, v| most.max(v.abs()));
            let scale = ScaleType::F16.round(reach / (middle - 1.0));
            let scale = if scale > 0.0 { scale } else { 1.0 };
            let code = |v: &f32| (v / scale).round_ties_even().clamp(1.0 - middle, middle - 1.0) + middle;
            codes.extend(row.iter().map(|v| code(v) as u8));
            scales.push(scale);
        }
        IntCodes::new(rows, cols, grid, &codes, scales, Zeros::Middle).map(Storage::Int)
    }
}

impl Residual for LowRank {
    fn beside(&self) -> Beside {
        Beside::Correction
    }

    fn needs(&self) -> Needs {
        Needs {
            gram: self.weighting == Weighting::Activations,
            mean_abs: self.weighting == Weighting::Diagonal,
            fisher: self.weighting == Weighting::Fisher,
            ..Needs::default()
        }
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        let rank = self.rank(rows, cols);
        self.factor_bits(rows, rank) + self.factor_bits(rank, cols)
    }

    fn scratch_bytes(&self, rows: usize, cols: usize) -> u64 {
        // A weighted copy, and the directions that are followed, in both spaces and in f64.
        let followed = self.rank(rows, cols) + 10;
        (4 * rows * cols + followed * (16 * rows + 12 * cols)) as u64
    }

    fn flops(&self, rows: usize, cols: usize) -> f64 {
        // Seven times there and back.
        let passes =
            28.0 * rows as f64 + if self.weighting == Weighting::Activations { 14.0 * cols as f64 } else { 0.0 };
        passes * cols as f64 * (self.rank(rows, cols) + 10) as f64
    }

    fn fit(&self, job: &ResidualJob<'_>) -> Result<Side> {
        let (missing, unknown) = (job.missing, || Error::internal("a weighted correction without statistics"));
        let metric = match self.weighting {
            Weighting::Activations => Some(job.stats.gram.as_ref().ok_or_else(unknown)?),
            _ => None,
        };
        let (m, n) = (missing.rows(), missing.cols());
        let [rows, cols] = match self.weighting {
            Weighting::Diagonal => [Vec::new(), relative(job.stats.mean_abs.as_ref().ok_or_else(unknown)?)],
            Weighting::Fisher => root_means(job.fisher.ok_or_else(unknown)?),
            _ => [Vec::new(), Vec::new()],
        };
        let of = |scales: &[f32], i: usize| scales.get(i).copied().unwrap_or(1.0);
        let has_scales = !(rows.is_empty() && cols.is_empty());
        let scaled = has_scales.then(|| Mat::from_fn(m, n, |r, c| missing[(r, c)] * of(&rows, r) * of(&cols, c)));
        let svd = truncated_svd(job.team, scaled.as_ref().unwrap_or(missing), metric, self.rank, job.seed);
        let rank = svd.left.rows();
        // The same factor to both sides of the balance, so that f16 holds either.
        let by = svd.values.first().map_or(1.0, |s| s.sqrt()).max(1e-20) as f32;
        let left = Mat::from_fn(m, rank, |r, k| svd.left[(k, r)] * by / of(&rows, r));
        // `B = Uᵀ D Δ` with D the scales of rows: nothing has to be divided by those of columns.
        let directions = Mat::from_fn(rank, m, |k, r| svd.left[(k, r)] * of(&rows, r));
        let mut right = Mat::zeros(rank, n);
        product_nn(job.team, rank, n, m, by.recip(), directions.data(), m, missing.data(), n, right.data_mut(), n);
        Ok(Side::LowRank(Box::new(Factors { left: self.stored(&left)?, right: self.stored(&right)? })))
    }

    fn label(&self) -> String {
        format!("rank {}", self.rank)
    }
}

/// The roots of the means of each row and each column, over their greatest: what is nearest to squared gradients among
/// products of a factor for each row and each column (LQ-LoRA, section 3.3). Rows and columns without any count little.
fn root_means(fisher: &Mat) -> [Vec<f32>; 2] {
    let (m, n) = (fisher.rows(), fisher.cols());
    let (mut rows, mut cols) = (vec![0f64; m], vec![0f64; n]);
    for (r, sum) in rows.iter_mut().enumerate() {
        for (v, col) in fisher.row(r).iter().zip(&mut cols) {
            *sum += f64::from(*v);
            *col += f64::from(*v);
        }
    }
    [rows, cols].map(|sums| {
        let most = sums.iter().fold(0.0, |m: f64, s| m.max(*s));
        let root = |s: &f64| if most > 0.0 { (s / most).sqrt().max(1e-3) as f32 } else { 1.0 };
        sums.iter().map(root).collect()
    })
}

/// Mean magnitudes over the middle of their range (LQER, equation 13); a dead column counts as little as any.
fn relative(mean_abs: &[f32]) -> Vec<f32> {
    let (mut least, mut most) = (f32::INFINITY, 0f32);
    for a in mean_abs.iter().filter(|a| **a > 0.0) {
        (least, most) = (least.min(*a), most.max(*a));
    }
    if most == 0.0 {
        return vec![1.0; mean_abs.len()];
    }
    let middle = (least * most).sqrt();
    mean_abs.iter().map(|a| a.max(least) / middle).collect()
}
