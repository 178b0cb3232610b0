//! Linears that share an input but no kind of storage: each kind by its own kernel.

use std::sync::Arc;

use fewbit_format::QuantizedLinear;

use super::{Arithmetic, Kernel, choose_at};
use crate::{Level, Team};

/// Takes several linears of which some are dense and some are not, so that the others keep their fast kernel.
pub(super) fn candidate(
    linears: &[Arc<QuantizedLinear>],
    arithmetic: Arithmetic,
    level: Level,
) -> Option<Box<dyn Kernel>> {
    let some_dense = linears.iter().any(|l| l.is_dense());
    if linears.len() < 2 || !some_dense || linears.iter().all(|l| l.is_dense()) {
        return None;
    }
    let each = linears.iter().map(|l| choose_at(level, std::slice::from_ref(l), arithmetic)).collect();
    Some(Box::new(Separate { each }))
}

struct Separate {
    each: Vec<Box<dyn Kernel>>,
}

impl Kernel for Separate {
    fn run(&self, team: &Team, tokens: usize, x: &[f32], outs: &mut [&mut [f32]]) {
        assert_eq!(outs.len(), self.each.len(), "one output for each linear");
        for (kernel, out) in self.each.iter().zip(outs) {
            kernel.run(team, tokens, x, &mut [&mut **out]);
        }
    }

    fn bytes(&self) -> usize {
        self.each.iter().map(|k| k.bytes()).sum()
    }

    fn name(&self) -> &'static str {
        "separate"
    }
}
