//! Products of low rank beside linears that share an input: corrections of what was rounded, adapters.

use std::cell::Cell;
use std::sync::Arc;

use fewbit_format::{LowRank, QuantizedLinear, Storage};
use smallvec::SmallVec;

use super::{Arithmetic, Kernel, MANY, choose_at};
use crate::{Level, Team};

/// `scale · left · right` of some of the linears; one may have several.
pub(super) struct LowRanks {
    /// All right factors on the shared input.
    right: Box<dyn Kernel>,
    lefts: Vec<Left>,
    bytes: usize,
}

struct Left {
    /// To whose result it is added.
    linear: usize,
    rows: usize,
    rank: usize,
    scale: f32,
    kernel: Box<dyn Kernel>,
}

thread_local! {
    /// `right · x` of all, and `left` of that, of the last call from this thread.
    static KEPT: Cell<[Vec<f32>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
}

impl LowRanks {
    /// The products with the linears that they belong to and their scales; `None` where there is none.
    pub(super) fn of(products: &[(usize, &LowRank, f32)], level: Level) -> Option<Self> {
        let linear = |s: &Storage| Arc::new(QuantizedLinear::uniform(s.clone(), None));
        // Factors are small: their products are exact whatever the arithmetic of the codes.
        let kernel = |linears: &[Arc<QuantizedLinear>]| choose_at(level, linears, Arithmetic::Exact);
        let rights: Vec<_> = products.iter().map(|(_, l, _)| linear(&l.right)).collect();
        let left = |&(i, l, scale): &(usize, &LowRank, f32)| {
            let [rows, rank] = l.left.shape();
            Left { linear: i, rows, rank, scale, kernel: kernel(&[linear(&l.left)]) }
        };
        (!products.is_empty()).then(|| Self {
            right: kernel(&rights),
            lefts: products.iter().map(left).collect(),
            bytes: products.iter().map(|(_, l, _)| l.stored_bits().div_ceil(8) as usize).sum(),
        })
    }

    /// Adds the products with `x[tokens, in]` to `outs[i][tokens, out_i]`.
    pub(super) fn add(&self, team: &Team, tokens: usize, x: &[f32], outs: &mut [&mut [f32]]) {
        let [mut inner, mut product] = KEPT.take();
        let mut rest = room(&mut inner, tokens * self.lefts.iter().map(|l| l.rank).sum::<usize>());
        let mut inners: SmallVec<[&mut [f32]; MANY]> = SmallVec::new();
        for left in &self.lefts {
            let (its, others) = rest.split_at_mut(tokens * left.rank);
            inners.push(its);
            rest = others;
        }
        self.right.run(team, tokens, x, &mut inners);
        for (left, inner) in self.lefts.iter().zip(&inners) {
            let product = room(&mut product, tokens * left.rows);
            left.kernel.run(team, tokens, inner, &mut [&mut *product]);
            team.for_rows(left.rows, &mut outs[left.linear][..tokens * left.rows], &|first, y| {
                y.iter_mut().zip(&product[first..]).for_each(|(y, p)| *y += left.scale * p);
            });
        }
        drop(inners);
        KEPT.set([inner, product]);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The first `len` numbers of a buffer that grows where it must.
fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
