use fewbit_engine::kinds::{Beside, Entries, Entry, Keep, Needs, Residual, ResidualJob, Side, parse};
use fewbit_format::{Error, Result};
use serde::Deserialize;

pub(crate) const ENTRY: Entry<dyn Residual> = Entry {
    name: "sparse",
    cite: "Kim et al., SqueezeLLM: Dense-and-Sparse Quantization, 2023 (arXiv:2306.07629)",
    settings: &[
        ("fraction = 0.005", "share of the weights that stay beside the codes, each in 32 bits"),
        ("by = \"magnitude\"", "which: `magnitude` (the largest of the matrix)"),
    ],
    build: |table| {
        let sparse: Sparse = parse("residual.sparse", table)?;
        if !(sparse.fraction > 0.0 && sparse.fraction <= 0.5) {
            return Err(Error::input(format!(
                "`residual.fraction` is {}, where more than 0 and at most 0.5 is possible",
                sparse.fraction
            )));
        }
        Ok(Box::new(sparse))
    },
};

/// The most important weights stay beside the codes, in f16: what is left has a smaller range.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Sparse {
    fraction: f64,
    by: By,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    Magnitude,
}

impl Default for Sparse {
    fn default() -> Self {
        Self { fraction: 0.005, by: By::Magnitude }
    }
}

impl Sparse {
    fn count(&self, rows: usize, cols: usize) -> usize {
        (self.fraction * (rows * cols) as f64).round() as usize
    }
}

impl Residual for Sparse {
    fn beside(&self) -> Beside {
        Beside::Weights
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        32 * (self.count(rows, cols) + rows + 1) as u64
    }

    fn scratch_bytes(&self, rows: usize, cols: usize) -> u64 {
        // An importance and a place for each weight.
        12 * (rows * cols) as u64
    }

    fn flops(&self, rows: usize, cols: usize) -> f64 {
        10.0 * (rows * cols) as f64
    }

    fn fit(&self, job: &ResidualJob<'_>) -> Result<Side> {
        let (rows, cols) = (job.weight.rows(), job.weight.cols());
        let importance: Vec<f32> = match self.by {
            By::Magnitude => job.weight.data().iter().map(|w| w.abs()).collect(),
        };
        let mut order: Vec<usize> = (0..rows * cols).collect();
        let count = self.count(rows, cols);
        let more = |a: &usize, b: &usize| importance[*b].total_cmp(&importance[*a]).then(a.cmp(b));
        if count < order.len() {
            order.select_nth_unstable_by(count, more);
        }
        let mut entries = Entries::none(rows, cols);
        order[..count].iter().for_each(|i| entries.add(i / cols, i % cols));
        Ok(Side::Keep(Keep::Entries(entries)))
    }

    fn label(&self) -> String {
        format!("{} % sparse", 100.0 * self.fraction)
    }
}
