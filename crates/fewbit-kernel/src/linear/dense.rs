//! f32 on the decoded weights: plain floats are read where they are stored, other storages decode a few rows at a time.

use std::sync::Arc;

use fewbit_format::{Dtype, QuantizedLinear, Storage};
use smallvec::SmallVec;

use super::{Arithmetic, Kernel, MANY};
use crate::product::{Job, Left, Right, Weights, multiply};
use crate::{Level, Team};

/// Takes any linear; never holds a matrix as f32.
#[expect(clippy::unnecessary_wraps, reason = "the signature of a candidate")]
pub(super) fn candidate(linears: &[Arc<QuantizedLinear>], _: Arithmetic, level: Level) -> Option<Box<dyn Kernel>> {
    Some(Box::new(Dense { linears: linears.to_vec(), level }))
}

struct Dense {
    linears: Vec<Arc<QuantizedLinear>>,
    level: Level,
}

impl Kernel for Dense {
    fn run(&self, team: &Team, tokens: usize, x: &[f32], outs: &mut [&mut [f32]]) {
        assert_eq!(outs.len(), self.linears.len(), "one output for each linear");
        let cols = self.linears[0].shape[1];
        let bands = || self.linears.iter().flat_map(|l| &l.bands);
        let decoders: SmallVec<[_; MANY]> =
            bands().map(|band| move |rows, out: &mut [f32]| band.storage.decode_rows(rows, out)).collect();
        let mut decoder = decoders.iter();
        let mut jobs: SmallVec<[Job<'_>; MANY]> = SmallVec::new();
        for (linear, y) in self.linears.iter().zip(outs) {
            let parts = linear.bands.iter().map(|band| {
                let decode = decoder.next().expect("one for each band");
                (band.rows.len(), stored(&band.storage).map_or(Right::Decoded(decode), Right::stored))
            });
            let mut first = 0;
            for (job, band) in Job::side_by_side(y, linear.shape[0], parts).zip(&linear.bands) {
                let bias = linear.bias.as_ref().map(|b| &b[first..first + band.rows.len()]);
                first += band.rows.len();
                jobs.push(job.with_bias(bias));
            }
        }
        multiply(team, self.level, tokens, cols, Left::rows(x, cols), &jobs);
    }

    fn bytes(&self) -> usize {
        self.linears.iter().map(|l| l.stored_bits().div_ceil(8) as usize).sum()
    }

    fn name(&self) -> &'static str {
        if self.linears.iter().all(|l| l.is_dense()) { "dense" } else { "decoded" }
    }
}

/// The weights as the products read them in place; `None` where they must be decoded.
fn stored(storage: &Storage) -> Option<Weights<'_>> {
    let Storage::Dense(tensor) = storage else { return None };
    match tensor.dtype {
        Dtype::BF16 => Some(Weights::Bf16(&tensor.bytes)),
        Dtype::F16 => Some(Weights::F16(&tensor.bytes)),
        Dtype::F32 => Some(Weights::F32Bytes(&tensor.bytes)),
        _ => None,
    }
}
