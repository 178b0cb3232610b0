use crate::{Graph, Op, Rope};

/// One of the graphs of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Token ids to the residual stream.
    Embed,
    /// One block of the residual stream.
    Block(usize),
    /// The residual stream to logits.
    Head,
}

/// A model: embedding, blocks that read and write the residual stream, head.
#[derive(Clone, Debug)]
pub struct Model {
    /// Token ids to the residual stream.
    pub embed: Graph,
    /// In order.
    pub blocks: Vec<Graph>,
    /// The residual stream to logits.
    pub head: Graph,
    /// Rotary tables that the blocks name by index.
    pub ropes: Vec<Rope>,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Positions that the model was made for, with these rotary tables.
    pub context: usize,
    /// The same with those of the longest sequences: see [`reach`](Self::reach).
    pub longest: usize,
    /// Whether one matrix serves as embedding and head, as the configuration says.
    pub is_tied: bool,
}

impl Model {
    /// The parts in order.
    pub fn parts(&self) -> impl Iterator<Item = (Part, &Graph)> {
        std::iter::once((Part::Embed, &self.embed))
            .chain(self.blocks.iter().enumerate().map(|(i, g)| (Part::Block(i), g)))
            .chain(std::iter::once((Part::Head, &self.head)))
    }

    /// Takes the rotary tables of sequences of more than `context` positions, if there will be so many and the model has
    /// others for them (LongRoPE), as llama.cpp does: keys that are remembered cannot be rotated again half-way.
    pub fn reach(&mut self, positions: usize) {
        for rope in &mut self.ropes {
            if let Some(beyond) = rope.beyond.take_if(|b| positions > b.positions) {
                rope.inverse_frequency = beyond.inverse_frequency;
            }
        }
        self.context =
            self.ropes.iter().filter_map(|r| Some(r.beyond.as_ref()?.positions)).fold(self.longest, usize::min);
    }

    /// One part.
    pub fn part(&self, part: Part) -> &Graph {
        match part {
            Part::Embed => &self.embed,
            Part::Block(i) => &self.blocks[i],
            Part::Head => &self.head,
        }
    }

    /// Positions for which there are learned vectors, where positions enter so.
    pub fn learned_positions(&self) -> Option<usize> {
        let of = |g: &Graph, op: &Op| match *op {
            Op::Positions { table, first } => Some(g.vectors[table].rows.unwrap_or(0).saturating_sub(first)),
            _ => None,
        };
        self.blocks.iter().flat_map(|g| g.nodes.iter().filter_map(|n| of(g, &n.op))).min()
    }

    /// Numbers in all tensors, a tied matrix counted once.
    pub fn parameters(&self) -> u64 {
        let all: u64 = self.parts().map(|(_, g)| g.parameters()).sum();
        if self.is_tied { all - (self.vocabulary * self.hidden) as u64 } else { all }
    }
}
