use std::collections::BTreeSet;

use fewbit_format::{Error, Result};

use crate::{Graph, Node, Op, Part, ValueId, VectorId, WeightId};

/// What a rotation of the residual stream, `x' = x Q`, changes in one graph so that the model computes the same.
///
/// A root-mean-square norm without gain commutes with every orthogonal `Q`, one that subtracts the mean with those that
/// leave the vector of ones where it is. So gains go into the linears that read the norm, `W ← W diag(g)`, and offsets
/// into their biases; then readers take `W ← W Q`, writers `W ← Qᵀ W` and `b ← b Q`, embeddings `E ← E Q`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Residual {
    /// Matrices whose columns are in the basis of the stream.
    pub readers: Vec<Reader>,
    /// Matrices whose rows, and biases, are in the basis of the stream.
    pub writers: Vec<WeightId>,
    /// Embeddings `[vocabulary, hidden]`, whose rows lie in the stream.
    pub embeddings: Vec<WeightId>,
    /// Whether a norm subtracts the mean: `Q` must leave the vector of ones where it is.
    pub keeps_mean: bool,
}

/// A matrix that reads the stream, and the norm that it reads it through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader {
    /// The matrix.
    pub weight: WeightId,
    /// Gain and offset of the norm; `None` where it reads the stream itself.
    pub norm: Option<(VectorId, Option<VectorId>)>,
}

impl Residual {
    /// The norms through which the stream is read, each once.
    pub fn norms(&self) -> BTreeSet<(VectorId, Option<VectorId>)> {
        self.readers.iter().filter_map(|r| r.norm).collect()
    }

    /// What touches the stream in one part of a model.
    ///
    /// # Errors
    /// Says which operation no rotation passes.
    pub fn of(graph: &Graph, part: Part) -> Result<Self> {
        let mut found = Self::default();
        let stream = stream(graph, part);
        for &value in &stream {
            let Some(node) = graph.producer(value) else { continue };
            match node.op {
                Op::Linear { .. } | Op::Combine | Op::Gate => found.writers.extend(writers(graph, value)?),
                Op::Embedding { weight } => found.embeddings.push(weight),
                Op::Add | Op::Scale { .. } => {}
                Op::RmsNorm { gain, .. } | Op::LayerNorm { gain, .. } => {
                    return Err(Error::input(format!(
                        "`{}` stands between a linear and the residual stream, and its gains do not pass a rotation of the stream",
                        graph.vectors[gain].name
                    )));
                }
                _ => return Err(impassable(graph, value, "made")),
            }
        }
        for node in graph.nodes.iter().filter(|n| n.inputs.iter().any(|v| stream.contains(v))) {
            let whole_row = graph.values[node.output].dim;
            let norm = match node.op {
                Op::Add | Op::Scale { .. } => continue,
                Op::Linear { weight } => {
                    found.readers.push(Reader { weight, norm: None });
                    continue;
                }
                Op::RmsNorm { gain, width, .. } if width == whole_row => (gain, None),
                Op::LayerNorm { gain, bias, width, .. } if width == whole_row => {
                    found.keeps_mean = true;
                    (gain, bias)
                }
                _ => return Err(impassable(graph, node.inputs[0], "read")),
            };
            for weight in readers(graph, node.output)? {
                found.readers.push(Reader { weight, norm: Some(norm) });
            }
        }
        Ok(found)
    }
}

/// The matrices that make a value: those of a linear, or of experts whose outputs are summed, scaled by a gate or not.
fn writers(graph: &Graph, value: ValueId) -> Result<Vec<WeightId>> {
    match graph.producer(value) {
        Some(Node { op: Op::Combine | Op::Gate, inputs, .. }) => writers(graph, inputs[0]),
        Some(node @ Node { op: Op::Linear { .. } | Op::ExpertLinear { .. }, .. }) => {
            Ok(graph.linears_of(node).into_iter().map(|(_, w)| w).collect())
        }
        _ => Err(impassable(graph, value, "made")),
    }
}

/// The matrices that read a value, of experts too.
fn readers(graph: &Graph, value: ValueId) -> Result<Vec<WeightId>> {
    let mut found = Vec::new();
    for node in graph.readers(value) {
        match node.op {
            Op::Linear { .. } | Op::ExpertLinear { .. } => {
                found.extend(graph.linears_of(node).into_iter().map(|(_, w)| w));
            }
            Op::Dispatch => found.extend(readers(graph, node.output)?),
            _ => return Err(impassable(graph, value, "read")),
        }
    }
    Ok(found)
}

fn impassable(graph: &Graph, value: ValueId, how: &str) -> Error {
    let name = graph.values[value].name;
    Error::input(format!("`{name}` is {how} by an operation that a rotation of the residual stream does not pass"))
}

/// The values that lie in the stream: what enters and leaves a block, and what is added to it.
fn stream(graph: &Graph, part: Part) -> BTreeSet<ValueId> {
    let mut stream = BTreeSet::new();
    if part != Part::Embed {
        stream.insert(Graph::INPUT);
    }
    if part != Part::Head {
        stream.insert(graph.output);
    }
    loop {
        let before = stream.len();
        for node in graph.nodes.iter().filter(|n| matches!(n.op, Op::Add | Op::Scale { .. })) {
            let values = || node.inputs.iter().chain([&node.output]);
            if values().any(|v| stream.contains(v)) {
                stream.extend(values());
            }
        }
        if stream.len() == before {
            return stream;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Config, Model, architecture_of};

    fn model(changes: &Value) -> Model {
        let mut config = json!({"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
            "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 8});
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let map = config.as_object().unwrap();
        architecture_of(map).unwrap().model(&Config::new(map)).unwrap()
    }

    fn names(graph: &Graph, weights: impl IntoIterator<Item = WeightId>) -> Vec<&str> {
        weights.into_iter().map(|w| &*graph.weights[w].name).collect()
    }

    #[test]
    fn pre_norm_models_rotate() {
        for family in ["llama", "qwen2", "qwen3"] {
            let m = model(&json!({"model_type": family}));
            let g = &m.blocks[0];
            let r = Residual::of(g, Part::Block(0)).unwrap();
            assert_eq!(names(g, r.writers.clone()), ["self_attn.o_proj", "mlp.down_proj"]);
            let of = |norm: &str| {
                let gain = |r: &&Reader| r.norm.is_some_and(|(gain, _)| g.vectors[gain].name == norm);
                names(g, r.readers.iter().filter(gain).map(|r| r.weight))
            };
            let qkv = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
            assert_eq!(of("input_layernorm.weight"), qkv);
            assert_eq!(of("post_attention_layernorm.weight"), ["mlp.gate_proj", "mlp.up_proj"]);
            assert!(r.embeddings.is_empty() && !r.keeps_mean && r.readers.len() == 5);
            let embed = Residual::of(&m.embed, Part::Embed).unwrap();
            assert_eq!(embed, Residual { embeddings: vec![0], ..Residual::default() });
            let head = Residual::of(&m.head, Part::Head).unwrap();
            assert_eq!(head.readers, [Reader { weight: 0, norm: Some((0, None)) }]);
            assert!(head.writers.is_empty());
        }
    }

    #[test]
    fn experts_read_and_write_the_stream() {
        let m = model(&json!({"model_type": "qwen2_moe", "num_experts": 2, "num_experts_per_tok": 1,
            "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12}));
        let r = Residual::of(&m.blocks[0], Part::Block(0)).unwrap();
        let writers = names(&m.blocks[0], r.writers);
        let down = ["mlp.experts.0.down_proj", "mlp.experts.1.down_proj", "mlp.shared_expert.down_proj"];
        assert!(down.iter().all(|d| writers.contains(d)) && writers.len() == 4, "{writers:?}");
        let readers = names(&m.blocks[0], r.readers.iter().map(|r| r.weight));
        // q, k, v, the router, gate and up of two experts, gate and up of the shared one, and its gate.
        assert_eq!(readers.len(), 3 + 1 + 4 + 3, "{readers:?}");
    }

    #[test]
    fn layer_norms_keep_the_mean() {
        for parallel in [true, false] {
            let m = model(&json!({"model_type": "gpt_neox", "use_parallel_residual": parallel, "rotary_pct": 1.0}));
            let g = &m.blocks[0];
            let r = Residual::of(g, Part::Block(0)).unwrap();
            assert!(r.keeps_mean && r.readers.iter().all(|r| r.norm.is_some_and(|(_, offset)| offset.is_some())));
            assert_eq!(names(g, r.writers), ["attention.dense", "mlp.dense_4h_to_h"]);
            assert_eq!(r.readers.len(), 4);
        }
    }

    #[test]
    fn norms_before_the_stream_forbid_it() {
        let m = model(&json!({"model_type": "gemma3_text"}));
        assert_eq!(Residual::of(&m.embed, Part::Embed).unwrap().embeddings, [0]);
        let e = Residual::of(&m.blocks[0], Part::Block(0)).unwrap_err().to_string();
        assert!(e.contains("post_attention_layernorm.weight") && e.contains("rotation"), "{e}");
    }
}
