use fewbit_graph::{Graph, Model, Op};

/// What one sequence remembers in one block: for each slot, a row of f32 per position.
#[derive(Clone, Debug)]
pub struct LayerCache {
    slots: Vec<Slot>,
}

#[derive(Clone, Debug)]
struct Slot {
    dim: usize,
    rows: Vec<f32>,
}

impl LayerCache {
    /// Bytes of a remembered number.
    pub(crate) const NUMBER_BYTES: usize = size_of::<f32>();

    /// Room for `positions` positions of one sequence in the block that `graph` describes.
    pub fn new(graph: &Graph, positions: usize) -> Self {
        let slots = graph.nodes.iter().filter(|n| matches!(n.op, Op::Cache { .. })).map(|n| {
            let dim = graph.values[n.output].dim;
            Slot { dim, rows: Vec::with_capacity(positions * dim) }
        });
        Self { slots: slots.collect() }
    }

    /// Puts rows at positions from `start` on, forgetting what stood there and after; returns all rows up to them.
    pub(crate) fn append(&mut self, slot: usize, start: usize, rows: &[f32]) -> &[f32] {
        let slot = &mut self.slots[slot];
        slot.rows.truncate(start * slot.dim);
        debug_assert_eq!(slot.rows.len(), start * slot.dim, "positions before the span are remembered");
        slot.rows.extend_from_slice(rows);
        &slot.rows
    }

    pub(crate) fn rows(&self, slot: usize) -> &[f32] {
        &self.slots[slot].rows
    }
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
    /// Room for `positions` positions.
    pub fn new(model: &Model, positions: usize) -> Self {
        let layers = model.blocks.iter().map(|g| LayerCache::new(g, positions)).collect();
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
