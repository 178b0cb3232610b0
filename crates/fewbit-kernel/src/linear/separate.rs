//! Linears that share an input but no kind of storage: each kind by its own kernel.

use std::sync::Arc;

use fewbit_format::{QuantizedLinear, Storage};

use super::{Arithmetic, Kernel, choose_at, rows, tiled};
use crate::{Level, Team};

/// How the weights of a linear reach the products.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Dense,
    /// As integers.
    Integers,
    /// By a decoder of tiles.
    Tiles,
    /// Row by row.
    Rows,
}

impl Way {
    /// That of the first band.
    fn of(linear: &QuantizedLinear) -> Self {
        if linear.is_dense() {
            return Self::Dense;
        }
        match linear.bands.first().map(|b| &b.storage) {
            Some(storage) if rows::layout(storage).is_some() => Self::Integers,
            Some(Storage::Ggml(blocks)) if !tiled::takes_blocks(blocks.kind) => Self::Rows,
            _ => Self::Tiles,
        }
    }
}

/// Takes several linears whose weights reach the products in several ways, so that each keeps its fastest kernel.
pub(super) fn candidate(
    linears: &[Arc<QuantizedLinear>],
    arithmetic: Arithmetic,
    level: Level,
) -> Option<Box<dyn Kernel>> {
    let mut ways = linears.iter().map(|l| Way::of(l));
    let first = ways.next();
    if ways.all(|way| Some(way) == first) {
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
