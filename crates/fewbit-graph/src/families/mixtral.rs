use fewbit_format::Result;

use super::Architecture;
use super::experts::{FusedLayout, Mixture, Names, source};
use super::llama::{PreNorm, pre_norm_model_with, rope_pairs, window};
use crate::{Config, Container, Model, Part, Routing, Share, Source};

/// Mixtral: Mistral with eight experts, of which each token takes two.
#[derive(Debug)]
pub(super) struct Mixtral;

const NAMES: Names =
    Names { router: "block_sparse_moe.gate", experts: "block_sparse_moe.experts", matrices: ["w1", "w3", "w2"] };

impl Architecture for Mixtral {
    fn answers_to(&self) -> &'static [&'static str] {
        &["mixtral", "MixtralForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let (experts, top) = c.experts(&["num_local_experts"])?;
        let mixture = Mixture::plain(experts, Routing::softmax(top, Share::Chosen), c.usize("intermediate_size")?);
        let family = PreNorm { has_window: true, ..PreNorm::default() };
        pre_norm_model_with(c, &family, &window(c, true)?, &|g, _, n| mixture.build(g, n, &NAMES))
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        let layout = FusedLayout {
            experts: c.experts(&["num_local_experts"]).ok()?.0,
            width: c.usize("intermediate_size").ok()?,
            is_interleaved: false,
            is_transposed: false,
        };
        let mut source = source(container, part, name, &NAMES, &layout)?;
        match (container, part, name) {
            (Container::HuggingFace, Part::Block(i), "block_sparse_moe.gate") => {
                source.alias = Some(Box::new(Source::plain(format!("model.layers.{i}.mlp.gate"))));
            }
            (Container::Gguf, _, "self_attn.q_proj" | "self_attn.k_proj") => source.rows = rope_pairs(c)?,
            _ => {}
        }
        Some(source)
    }
}
