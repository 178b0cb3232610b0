//! Linears whose input is rounded as the checkpoint says, where no kernel multiplies the rounded numbers themselves.

use std::cell::Cell;
use std::sync::Arc;

use fewbit_format::{ActivationFormat, QuantizedLinear};

use super::{Arithmetic, Kernel, choose_at};
use crate::{Level, Team};

/// Takes linears of which one rounds its input.
pub(super) fn candidate(
    linears: &[Arc<QuantizedLinear>],
    arithmetic: Arithmetic,
    level: Level,
) -> Option<Box<dyn Kernel>> {
    if arithmetic == Arithmetic::WeightsOnly || linears.iter().all(|l| l.activation.is_none()) {
        return None;
    }
    // Neighbours that round alike share the rounded input and the kernel.
    let groups = linears.chunk_by(|a, b| a.activation == b.activation).map(|some| {
        let plain =
            |l: &Arc<QuantizedLinear>| Arc::new(QuantizedLinear { activation: None, ..QuantizedLinear::clone(l) });
        let plain: Vec<Arc<QuantizedLinear>> = some.iter().map(plain).collect();
        // Rounded once is enough: the product itself is exact.
        let arithmetic = if some[0].activation.is_some() { Arithmetic::Exact } else { arithmetic };
        Group {
            activation: some[0].activation,
            cols: some[0].shape[1],
            count: some.len(),
            kernel: choose_at(level, &plain, arithmetic),
        }
    });
    Some(Box::new(Rounded { groups: groups.collect() }))
}

struct Rounded {
    groups: Vec<Group>,
}

struct Group {
    activation: Option<ActivationFormat>,
    cols: usize,
    count: usize,
    kernel: Box<dyn Kernel>,
}

thread_local! {
    /// The rounded input of the last call from this thread.
    static KEPT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl Kernel for Rounded {
    fn run(&self, team: &Team, tokens: usize, x: &[f32], mut outs: &mut [&mut [f32]]) {
        for group in &self.groups {
            let (now, later) = outs.split_at_mut(group.count);
            outs = later;
            let Some(format) = &group.activation else {
                group.kernel.run(team, tokens, x, now);
                continue;
            };
            let mut rounded = KEPT.take();
            rounded.clear();
            rounded.extend_from_slice(&x[..tokens * group.cols]);
            team.for_pieces(&mut rounded, group.cols, &|_, row| format.round(row));
            group.kernel.run(team, tokens, &rounded, now);
            KEPT.set(rounded);
        }
    }

    fn bytes(&self) -> usize {
        self.groups.iter().map(|g| g.kernel.bytes()).sum()
    }

    fn name(&self) -> &'static str {
        "rounded"
    }
}
