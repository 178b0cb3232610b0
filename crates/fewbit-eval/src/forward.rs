use std::ops::Range;

use fewbit_format::{Error, Mat, Result};
use fewbit_runtime::{Batch, NoHooks, Runtime};

/// The numbers that the logits of one step may take: 64 MiB, so that a large vocabulary never lies in memory for a
/// whole window.
const MOST_LOGITS: usize = 1 << 24;

/// The residual stream `[ids, hidden]` of one sequence after all blocks.
///
/// # Errors
/// If an id has no row, the sequence is longer than the model's context, or a number is not finite.
pub(crate) fn residual(model: &Runtime, ids: &[u32]) -> Result<Vec<f32>> {
    let context = model.model().context;
    if ids.len() > context {
        return Err(Error::input(format!("windows of {} tokens exceed the model's context of {context}", ids.len()))
            .hint(format!("give `--length {context}` or less")));
    }
    let batch = Batch::one(0, ids.len());
    let mut x = model.embed(ids)?;
    model.blocks(&batch, &mut x, |_| Box::new(NoHooks));
    if x.iter().any(|v| !v.is_finite()) {
        // Runs once more, looking after each block: its error says where.
        model.logits(&batch, ids, None, &[])?;
    }
    Ok(x)
}

/// Logits `[rows, vocabulary]` of some rows of a residual stream.
pub(crate) fn logits(model: &Runtime, residual: &[f32], rows: Range<usize>) -> Result<Mat> {
    let hidden = model.model().hidden;
    model.head(&residual[rows.start * hidden..rows.end * hidden])
}

/// `rows` in steps whose logits fit in memory.
pub(crate) fn steps(rows: Range<usize>, vocabulary: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (MOST_LOGITS / vocabulary.max(1)).max(1);
    let end = rows.end;
    rows.step_by(step).map(move |start| start..(start + step).min(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_cover_the_rows() {
        let all: Vec<_> = steps(255..511, 262_144).collect();
        assert_eq!(all, [255..319, 319..383, 383..447, 447..511]);
        assert_eq!(steps(0..511, 2048).count(), 1);
        assert_eq!(steps(3..3, 2048).count(), 0);
    }
}
