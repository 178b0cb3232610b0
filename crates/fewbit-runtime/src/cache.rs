use fewbit_graph::{Graph, Op, ValueId};
use fewbit_kernel::Team;
use fewbit_kernel::attention::{CacheType, Pages};

use crate::Runtime;

/// What one sequence remembers in one block.
#[derive(Clone, Debug)]
pub struct LayerCache {
    /// By slot.
    slots: Vec<Pages>,
}

impl LayerCache {
    /// For one sequence in the block that `graph` describes; `positions` are expected.
    pub fn new(graph: &Graph, cache_type: CacheType, positions: usize) -> Self {
        let slots = graph.nodes.iter().filter(|n| matches!(n.op, Op::Cache { .. }));
        Self { slots: slots.map(|n| pages(graph, n.output, cache_type, positions)).collect() }
    }

    /// Puts rows at positions from `start` on, forgetting what stood there and after.
    pub(crate) fn write(&mut self, team: &Team, slot: usize, start: usize, rows: &[f32]) {
        self.slots[slot].write(team, start, rows);
    }

    pub(crate) fn slot(&self, slot: usize) -> &Pages {
        &self.slots[slot]
    }
}

/// Pages for a value that is remembered: keys or values of the attention that reads it.
fn pages(graph: &Graph, value: ValueId, cache_type: CacheType, positions: usize) -> Pages {
    for node in &graph.nodes {
        if let Op::Attention { kv_heads, head_dim, .. } = node.op {
            if node.inputs[1] == value {
                return Pages::keys(cache_type, kv_heads, head_dim, positions);
            } else if node.inputs[2] == value {
                return Pages::values(cache_type, kv_heads, head_dim, positions);
            }
        }
    }
    unreachable!("graphs remember the keys and values of attentions alone")
}

/// What one sequence remembers in all blocks.
#[derive(Clone, Debug)]
pub struct ModelCache {
    /// One per block.
    pub layers: Vec<LayerCache>,
    len: usize,
    capacity: usize,
}

impl ModelCache {
    /// Of the model that `runtime` runs, for `positions` positions; memory is taken as they come.
    pub fn new(runtime: &Runtime, positions: usize) -> Self {
        let layers = runtime.layers.iter().map(|l| LayerCache::new(l.graph(), l.cache_type(), positions)).collect();
        Self { layers, len: 0, capacity: positions }
    }

    /// Positions remembered.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(crate) fn advance(&mut self, to: usize) {
        self.len = to;
    }
}
