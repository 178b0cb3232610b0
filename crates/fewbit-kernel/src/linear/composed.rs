//! Linears with more than codes: maps before and after the product, sparse entries, corrections of low rank, adapters.

use std::sync::Arc;

use fewbit_format::{QuantizedLinear, Sparse};

use super::low_rank::LowRanks;
use super::{Arithmetic, Kernel, choose_at};
use crate::online::Map;
use crate::{Level, Team};

/// Takes linears of which one is not plain; what is plain in them runs on its own kernel.
pub(super) fn candidate(
    linears: &[Arc<QuantizedLinear>],
    arithmetic: Arithmetic,
    level: Level,
) -> Option<Box<dyn Kernel>> {
    if linears.iter().all(|l| l.is_plain()) {
        return None;
    }
    // Neighbours whose inputs are mapped alike share the map and the kernel.
    let groups = linears.chunk_by(|a, b| a.input == b.input);
    Some(Box::new(Composed { groups: groups.map(|g| Group::of(g, arithmetic, level)).collect() }))
}

struct Composed {
    groups: Vec<Group>,
}

/// Linears whose input is mapped in the same way.
struct Group {
    input: Vec<Map>,
    cols: usize,
    /// The bands alone, with the bias where nothing is applied after the product.
    kernel: Box<dyn Kernel>,
    /// Corrections, of the mapped input.
    corrections: Option<LowRanks>,
    linears: Vec<Beside>,
    /// Of the input as it comes.
    adapters: Option<LowRanks>,
}

/// What stands beside the bands of one linear.
struct Beside {
    rows: usize,
    sparse: Option<Sparse>,
    output: Vec<Map>,
    /// Added last.
    bias: Option<Vec<f32>>,
}

impl Group {
    fn of(linears: &[Arc<QuantizedLinear>], arithmetic: Arithmetic, level: Level) -> Self {
        let plain = |l: &Arc<QuantizedLinear>| {
            let bias = l.bias.clone().filter(|_| l.output.is_empty());
            let bands = QuantizedLinear::of_bands(l.shape, l.bands.clone(), bias);
            Arc::new(QuantizedLinear { activation: l.activation, ..bands })
        };
        let plain: Vec<Arc<QuantizedLinear>> = linears.iter().map(plain).collect();
        let numbered = || linears.iter().enumerate();
        let corrections: Vec<_> =
            numbered().filter_map(|(i, l)| l.sides.low_rank.as_ref().map(|low_rank| (i, low_rank, 1.0))).collect();
        let adapters: Vec<_> =
            numbered().flat_map(|(i, l)| l.adapters.iter().map(move |a| (i, &a.factors, a.scale))).collect();
        Self {
            input: linears[0].input.iter().map(|m| Map::new(m, linears[0].shape[1])).collect(),
            cols: linears[0].shape[1],
            kernel: choose_at(level, &plain, arithmetic),
            corrections: LowRanks::of(&corrections, level),
            linears: linears.iter().map(|l| Beside::of(l)).collect(),
            adapters: LowRanks::of(&adapters, level),
        }
    }

    fn run(&self, team: &Team, tokens: usize, x: &[f32], outs: &mut [&mut [f32]]) {
        let mapped = (!self.input.is_empty()).then(|| {
            let mut mapped = x[..tokens * self.cols].to_vec();
            self.input.iter().for_each(|m| m.apply(team, &mut mapped));
            mapped
        });
        let mapped = mapped.as_deref().unwrap_or(x);
        self.kernel.run(team, tokens, mapped, outs);
        if let Some(corrections) = &self.corrections {
            corrections.add(team, tokens, mapped, outs);
        }
        for (beside, y) in self.linears.iter().zip(&mut *outs) {
            beside.add(team, tokens, self.cols, mapped, &mut y[..tokens * beside.rows]);
        }
        if let Some(adapters) = &self.adapters {
            adapters.add(team, tokens, x, outs);
        }
    }

    fn bytes(&self) -> usize {
        let sparse = self.linears.iter().flat_map(|l| &l.sparse).map(Sparse::resident_bytes).sum::<usize>();
        let low_rank = self.corrections.iter().chain(&self.adapters).map(LowRanks::bytes).sum::<usize>();
        self.kernel.bytes() + sparse + low_rank
    }
}

impl Beside {
    fn of(linear: &QuantizedLinear) -> Self {
        Self {
            rows: linear.shape[0],
            sparse: linear.sides.sparse.clone(),
            output: linear.output.iter().map(|m| Map::new(m, linear.shape[0])).collect(),
            bias: linear.bias.clone().filter(|_| !linear.output.is_empty()),
        }
    }

    fn add(&self, team: &Team, tokens: usize, cols: usize, x: &[f32], y: &mut [f32]) {
        if let Some(sparse) = &self.sparse {
            // Threads share the rows of a single token, or the tokens.
            if tokens == 1 {
                team.for_pieces(y, Sparse::BLOCK, &|i, y| {
                    let first = i * Sparse::BLOCK;
                    sparse.for_rows(first..first + y.len(), |r, c, v| y[r - first] += x[c] * v);
                });
            } else {
                let together = TOGETHER.min(tokens.div_ceil(team.threads()));
                team.for_pieces(y, together * self.rows, &|i, y| {
                    add_entries(sparse, &x[i * together * cols..][..y.len() / self.rows * cols], y);
                });
            }
        }
        self.output.iter().for_each(|m| m.apply(team, y));
        if let Some(bias) = &self.bias {
            for y in y.chunks_exact_mut(self.rows) {
                y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
    }
}

/// Tokens for which each entry is read once: a register's width.
const TOGETHER: usize = 16;

/// Adds the products of the entries with up to [`TOGETHER`] tokens `x[tokens, cols]` to `y[tokens, rows]`; the sum of a
/// token is what it is alone.
fn add_entries(sparse: &Sparse, x: &[f32], y: &mut [f32]) {
    let [rows, cols] = sparse.shape();
    let mut columns = vec![[0.0; TOGETHER]; cols];
    for (t, x) in x.chunks_exact(cols).enumerate() {
        columns.iter_mut().zip(x).for_each(|(column, x)| column[t] = *x);
    }
    // The sums of one row, by token.
    let (mut row, mut sums) = (usize::MAX, [0.0; TOGETHER]);
    let store = |y: &mut [f32], row: usize, sums: &[f32]| {
        y.iter_mut().skip(row).step_by(rows).zip(sums).for_each(|(y, sum)| *y = *sum);
    };
    sparse.for_rows(0..rows, |r, c, v| {
        if r != row {
            store(y, row, &sums);
            row = r;
            sums.iter_mut().zip(y[row..].iter().step_by(rows)).for_each(|(sum, y)| *sum = *y);
        }
        sums.iter_mut().zip(&columns[c]).for_each(|(sum, x)| *sum += x * v);
    });
    store(y, row, &sums);
}

impl Kernel for Composed {
    fn run(&self, team: &Team, tokens: usize, x: &[f32], mut outs: &mut [&mut [f32]]) {
        for group in &self.groups {
            let (now, later) = outs.split_at_mut(group.linears.len());
            group.run(team, tokens, x, now);
            outs = later;
        }
    }

    fn bytes(&self) -> usize {
        self.groups.iter().map(Group::bytes).sum()
    }

    fn name(&self) -> &'static str {
        "composed"
    }
}
