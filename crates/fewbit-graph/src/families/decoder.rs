//! What stands around the blocks of every family: the embedding, the last norm and the head.

use fewbit_format::Result;

use crate::{Builder, Config, Graph, Model, Op, Rope};

/// In what families differ there.
pub(super) struct Decoder {
    pub(super) norm: LastNorm,
    /// Factor of the embedding.
    pub(super) embedding_scale: Option<f32>,
    /// What is done to the logits.
    pub(super) logits: Option<Op>,
    /// Positions, where the configuration does not say.
    pub(super) context: usize,
    /// Whether one matrix serves as embedding and head, where the configuration does not say.
    pub(super) is_tied: bool,
}

/// The norm in front of the head, with its epsilon.
pub(super) enum LastNorm {
    Rms(&'static str, f32),
    Layer(&'static str, Option<&'static str>, f32),
}

impl Decoder {
    /// Nothing but a norm `norm.weight`, a head of its own.
    pub(super) fn rms(eps: f32) -> Self {
        let norm = LastNorm::Rms("norm.weight", eps);
        Self { norm, embedding_scale: None, logits: None, context: 2048, is_tied: false }
    }

    /// The model of these blocks, with the rotary tables of short sequences.
    pub(super) fn model(self, c: &Config<'_>, ropes: Vec<Rope>, block: impl FnMut(usize) -> Graph) -> Result<Model> {
        let (hidden, vocabulary) = (c.usize("hidden_size")?, c.usize("vocab_size")?);
        let longest = c.usize_opt("max_position_embeddings")?.unwrap_or(self.context);
        let mut head = Builder::new("residual", hidden);
        let n = match self.norm {
            LastNorm::Rms(gain, eps) => head.rms_norm("head_in", Graph::INPUT, gain, eps),
            LastNorm::Layer(gain, bias, eps) => head.layer_norm("head_in", Graph::INPUT, gain, bias, eps),
        };
        let mut logits = head.linear(n, "lm_head", vocabulary, false);
        if let Some(op) = self.logits {
            logits = head.apply("logits", op, &[logits]);
        }
        let mut model = Model {
            embed: embedding(hidden, vocabulary, self.embedding_scale),
            blocks: (0..c.layers()?).map(block).collect(),
            head: head.finish(logits),
            context: longest,
            longest,
            ropes,
            vocabulary,
            hidden,
            is_tied: c.bool_or("tie_word_embeddings", self.is_tied)?,
        };
        model.reach(0);
        Ok(model)
    }
}

/// Token ids to the residual stream.
fn embedding(hidden: usize, vocabulary: usize, scale: Option<f32>) -> Graph {
    let mut g = Builder::new("ids", 1);
    let mut e = g.embedding("embed_tokens", vocabulary, hidden);
    if let Some(factor) = scale {
        e = g.apply("scaled", Op::Scale { factor }, &[e]);
    }
    g.finish(e)
}
