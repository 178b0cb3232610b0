use fewbit_graph::ValueId;

/// What a forward pass keeps for the backward pass, and the buffers of both, which serve again from pass to pass.
#[derive(Debug, Default)]
pub struct Saved {
    pub(crate) tokens: usize,
    pub(crate) values: Vec<Vec<f32>>,
    /// Values as they were before an edge changed them; empty where none did.
    pub(crate) unchanged: Vec<Vec<f32>>,
    /// For each node that is an attention, the logarithms of its sums.
    pub(crate) log_sums: Vec<Vec<f32>>,
    pub(crate) pool: Pool,
}

impl Saved {
    /// A value as its readers saw it; `None` where nothing keeps it (any longer).
    pub fn value(&self, value: ValueId) -> Option<&[f32]> {
        self.values.get(value).map(Vec::as_slice).filter(|v| !v.is_empty())
    }

    pub(crate) fn begin(&mut self, tokens: usize, values: usize, nodes: usize) {
        if self.tokens != tokens {
            // Buffers of other sizes would only lie about.
            *self = Self { tokens, ..Self::default() };
        }
        for all in [&mut self.values, &mut self.unchanged, &mut self.log_sums] {
            all.drain(..).for_each(|b| self.pool.give_back(b));
        }
        self.values.resize_with(values, Vec::new);
        self.unchanged.resize_with(values, Vec::new);
        self.log_sums.resize_with(nodes, Vec::new);
    }

    pub(crate) fn give_back(&mut self, value: ValueId) {
        self.pool.give_back(std::mem::take(&mut self.values[value]));
        self.pool.give_back(std::mem::take(&mut self.unchanged[value]));
    }
}

/// Buffers that wait for their next use.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Vec<Vec<f32>>,
}

impl Pool {
    /// `len` numbers of any content.
    pub(crate) fn take(&mut self, len: usize) -> Vec<f32> {
        match self.free.iter().position(|b| b.len() == len) {
            Some(i) => self.free.swap_remove(i),
            None => vec![0.0; len],
        }
    }

    pub(crate) fn take_zeroed(&mut self, len: usize) -> Vec<f32> {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    pub(crate) fn give_back(&mut self, buffer: Vec<f32>) {
        if !buffer.is_empty() {
            self.free.push(buffer);
        }
    }
}
