use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use fewbit_engine::shard_head;
use fewbit_format::{Dtype, Error, Result};
use serde_json::{Map, Value, json};

use crate::bundled;
use crate::session::Session;

/// Make a model with random weights, for tests and for measuring speed and memory
///
/// Weights are bf16, Gaussian with a standard deviation of 0.02; the tokenizer is that of the bundled model. Equal
/// options give equal bytes.
///
/// JSON: out, parameters.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit make-model tinyllama --shape tinyllama-1.1b")]
pub(crate) struct MakeModel {
    /// Folder to write
    out: PathBuf,
    /// Sizes of a known model; the options below change them
    #[arg(long, value_enum, default_value = "tinyllama-1.1b")]
    shape: Shape,
    /// Blocks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    layers: Option<u32>,
    /// Width of the residual stream
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    hidden: Option<u32>,
    /// Width of the MLP
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=262_144))]
    mlp: Option<u32>,
    /// Query heads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    heads: Option<u32>,
    /// Heads of keys and values
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    kv_heads: Option<u32>,
    /// Experts of a block, for shapes that have them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    experts: Option<u32>,
    /// Experts that a token goes to
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    experts_per_token: Option<u32>,
    /// Rows of embedding and head
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    vocabulary: Option<u32>,
    /// Of the weights
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shape {
    #[value(name = "tinyllama-1.1b")]
    TinyLlama,
    #[value(name = "smollm2-135m")]
    SmolLm2,
    Mixtral,
    #[value(name = "qwen3-moe")]
    Qwen3Moe,
    GptOss,
}

/// The figures of a model; those of experts are 0 without.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    layers: u32,
    hidden: u32,
    /// Of one expert, where there are some.
    mlp: u32,
    heads: u32,
    kv_heads: u32,
    vocabulary: u32,
    experts: u32,
    experts_per_token: u32,
}

impl MakeModel {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let sizes = self.sizes()?;
        std::fs::create_dir(&self.out).map_err(|e| Error::io("creating", &self.out, &e))?;
        let gaussian = gaussian()?;
        let (mut map, mut total, parts) = (Map::new(), 0, parts(self.shape, sizes));
        for (i, tensors) in parts.iter().enumerate() {
            let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, parts.len());
            let seed = self.seed.wrapping_add((i as u64) << 32);
            total += write_shard(&self.out.join(&name), tensors, &gaussian, seed)?;
            map.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
        }
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        self.file("model.safetensors.index.json", format!("{index:#}").as_bytes())?;
        self.file("config.json", format!("{:#}", config(self.shape, sizes)).as_bytes())?;
        for (name, bytes) in bundled::tokenizer_files() {
            self.file(name, bytes)?;
        }
        session.output.text(&format!("{}: {} parameters\n", self.out.display(), total / 2))?;
        session.output.object(&json!({ "out": self.out, "parameters": total / 2 }))
    }

    fn sizes(&self) -> Result<Sizes> {
        const LLAMA: Sizes = Sizes {
            layers: 22,
            hidden: 2048,
            mlp: 5632,
            heads: 32,
            kv_heads: 4,
            vocabulary: 32_000,
            experts: 0,
            experts_per_token: 0,
        };
        // The models with experts are small: what counts is their shape.
        const SMALL: Sizes =
            Sizes { layers: 4, hidden: 256, mlp: 512, heads: 8, kv_heads: 2, vocabulary: 4096, ..LLAMA };
        let known = match self.shape {
            Shape::TinyLlama => LLAMA,
            Shape::SmolLm2 => {
                Sizes { layers: 30, hidden: 576, mlp: 1536, heads: 9, kv_heads: 3, vocabulary: 49_152, ..LLAMA }
            }
            Shape::Mixtral => Sizes { experts: 8, experts_per_token: 2, ..SMALL },
            Shape::Qwen3Moe => Sizes { experts: 32, experts_per_token: 8, mlp: 128, ..SMALL },
            Shape::GptOss => Sizes { experts: 16, experts_per_token: 4, mlp: 256, ..SMALL },
        };
        let has_experts = known.experts > 0;
        if !has_experts && (self.experts.is_some() || self.experts_per_token.is_some()) {
            return Err(Error::input("this shape has no experts").hint("choose one of mixtral, qwen3-moe, gpt-oss"));
        }
        let sizes = Sizes {
            layers: self.layers.unwrap_or(known.layers),
            hidden: self.hidden.unwrap_or(known.hidden),
            mlp: self.mlp.unwrap_or(known.mlp),
            heads: self.heads.unwrap_or(known.heads),
            kv_heads: self.kv_heads.unwrap_or(known.kv_heads),
            vocabulary: self.vocabulary.unwrap_or(known.vocabulary),
            experts: self.experts.unwrap_or(known.experts),
            experts_per_token: self.experts_per_token.unwrap_or(known.experts_per_token),
        };
        if sizes.experts_per_token > sizes.experts {
            let Sizes { experts, experts_per_token, .. } = sizes;
            return Err(Error::input(format!("a token cannot go to {experts_per_token} of {experts} experts"))
                .hint("choose `--experts-per-token` up to `--experts`"));
        }
        if !sizes.hidden.is_multiple_of(2 * sizes.heads) || !sizes.heads.is_multiple_of(sizes.kv_heads) {
            let Sizes { hidden, heads, kv_heads, .. } = sizes;
            return Err(Error::input(format!("{hidden} columns cannot be shared by {heads} heads on {kv_heads}"))
                .hint("choose `--hidden` as an even multiple of `--heads`, and that as a multiple of `--kv-heads`"));
        }
        Ok(sizes)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.out.join(name);
        std::fs::write(&path, bytes).map_err(|e| Error::io("writing", &path, &e))
    }
}

fn config(shape: Shape, s: Sizes) -> Value {
    let mut config = json!({
        "torch_dtype": "bfloat16",
        "hidden_size": s.hidden,
        "intermediate_size": s.mlp,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "vocab_size": s.vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
    });
    let more = match shape {
        Shape::TinyLlama | Shape::SmolLm2 => json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama" }),
        Shape::Mixtral => json!({
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_local_experts": s.experts,
            "num_experts_per_tok": s.experts_per_token,
            "sliding_window": null,
        }),
        Shape::Qwen3Moe => json!({
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "head_dim": s.hidden / s.heads,
            "num_experts": s.experts,
            "num_experts_per_tok": s.experts_per_token,
            "moe_intermediate_size": s.mlp,
            "norm_topk_prob": true,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }),
        Shape::GptOss => json!({
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "head_dim": s.hidden / s.heads,
            "attention_bias": true,
            "num_local_experts": s.experts,
            "num_experts_per_tok": s.experts_per_token,
            "sliding_window": 128,
            "swiglu_limit": 7.0,
            "layer_types": (0..s.layers).map(|i| ["sliding_attention", "full_attention"][i as usize % 2]).collect::<Vec<_>>(),
            "rope_scaling": {
                "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "original_max_position_embeddings": 512, "truncate": false,
            },
        }),
    };
    if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
        config.extend(more);
    }
    config
}

/// The tensors of each shard: embedding, blocks, final norm and head.
fn parts(shape: Shape, s: Sizes) -> Vec<Vec<(String, Vec<u32>)>> {
    let block = |i: u32| -> Vec<(String, Vec<u32>)> {
        let tensors = attention(shape, s).into_iter().chain(mlp(shape, s));
        tensors.map(|(name, shape)| (format!("model.layers.{i}.{name}"), shape)).collect()
    };
    let mut parts = vec![vec![("model.embed_tokens.weight".to_owned(), vec![s.vocabulary, s.hidden])]];
    parts.extend((0..s.layers).map(block));
    parts.push(vec![
        ("model.norm.weight".to_owned(), vec![s.hidden]),
        ("lm_head.weight".to_owned(), vec![s.vocabulary, s.hidden]),
    ]);
    parts
}

/// Norms and attention of a block.
fn attention(shape: Shape, s: Sizes) -> Vec<(String, Vec<u32>)> {
    let head = s.hidden / s.heads;
    let kv = head * s.kv_heads;
    let mut tensors = vec![
        ("input_layernorm.weight".to_owned(), vec![s.hidden]),
        ("post_attention_layernorm.weight".to_owned(), vec![s.hidden]),
    ];
    for (name, out) in [("q_proj", s.hidden), ("k_proj", kv), ("v_proj", kv), ("o_proj", s.hidden)] {
        tensors.push((format!("self_attn.{name}.weight"), vec![out, s.hidden]));
        if let Shape::GptOss = shape {
            tensors.push((format!("self_attn.{name}.bias"), vec![out]));
        }
    }
    match shape {
        Shape::Qwen3Moe => {
            tensors.extend(["q_norm", "k_norm"].map(|name| (format!("self_attn.{name}.weight"), vec![head])));
        }
        Shape::GptOss => tensors.push(("self_attn.sinks".to_owned(), vec![s.heads])),
        _ => {}
    }
    tensors
}

fn mlp(shape: Shape, s: Sizes) -> Vec<(String, Vec<u32>)> {
    let (up, down) = (vec![s.mlp, s.hidden], vec![s.hidden, s.mlp]);
    let modules = |prefix: &str, [gate_name, up_name, down_name]: [&str; 3]| {
        [(gate_name, up.clone()), (up_name, up.clone()), (down_name, down.clone())]
            .map(|(name, shape)| (format!("{prefix}.{name}.weight"), shape))
    };
    let names = ["gate_proj", "up_proj", "down_proj"];
    let experts = |prefix: &str, names: [&str; 3]| -> Vec<(String, Vec<u32>)> {
        let router = (format!("{prefix}.gate.weight"), vec![s.experts, s.hidden]);
        let all = (0..s.experts).flat_map(|e| modules(&format!("{prefix}.experts.{e}"), names));
        std::iter::once(router).chain(all).collect()
    };
    match shape {
        Shape::TinyLlama | Shape::SmolLm2 => modules("mlp", names).into(),
        Shape::Mixtral => experts("block_sparse_moe", ["w1", "w3", "w2"]),
        Shape::Qwen3Moe => experts("mlp", names),
        Shape::GptOss => [
            ("router.weight", vec![s.experts, s.hidden]),
            ("router.bias", vec![s.experts]),
            ("experts.gate_up_proj", vec![s.experts, s.hidden, 2 * s.mlp]),
            ("experts.gate_up_proj_bias", vec![s.experts, 2 * s.mlp]),
            ("experts.down_proj", vec![s.experts, s.mlp, s.hidden]),
            ("experts.down_proj_bias", vec![s.experts, s.hidden]),
        ]
        .map(|(name, shape)| (format!("mlp.{name}"), shape))
        .into(),
    }
}

fn bytes_of(shape: &[u32]) -> u64 {
    2 * shape.iter().map(|d| u64::from(*d)).product::<u64>()
}

/// Writes one safetensors file; gains of norms are ones, all else is random. Returns the bytes of its tensors.
fn write_shard(path: &Path, tensors: &[(String, Vec<u32>)], gaussian: &[[u8; 2]], seed: u64) -> Result<u64> {
    let parts = tensors.iter().map(|(name, shape)| {
        (name.as_str(), Dtype::BF16, shape.iter().map(|d| *d as usize).collect(), bytes_of(shape) as usize)
    });
    let head = shard_head(parts).map_err(|e| e.file(path))?;
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&head)?;
        let mut state = seed;
        let mut piece = Vec::with_capacity(PIECE);
        for (name, shape) in tensors {
            let mut left = bytes_of(shape) as usize / 2;
            while left > 0 {
                let count = left.min(PIECE / 2);
                piece.clear();
                if name.ends_with("norm.weight") {
                    piece.extend(std::iter::repeat_n(ONE, count).flatten());
                } else {
                    random(count, &mut state, gaussian, &mut piece);
                }
                file.write_all(&piece)?;
                left -= count;
            }
        }
        file.flush()
    };
    write().map_err(|e| Error::io("writing", path, &e))?;
    Ok(tensors.iter().map(|(_, shape)| bytes_of(shape)).sum())
}

/// Bytes that are made and written at a time.
const PIECE: usize = 1 << 20;

/// 1 in bf16.
const ONE: [u8; 2] = 0x3f80u16.to_le_bytes();

/// Appends `count` random elements: four from each step of SplitMix64.
fn random(count: usize, state: &mut u64, gaussian: &[[u8; 2]], out: &mut Vec<u8>) {
    for at in (0..count).step_by(4) {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = *state;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        for i in 0..(count - at).min(4) {
            out.extend(gaussian[(x >> (16 * i)) as usize & 0xffff]);
        }
    }
}

/// bf16 of 2¹⁶ equally likely values of a Gaussian with standard deviation 0.02.
fn gaussian() -> Result<Vec<[u8; 2]>> {
    const COUNT: usize = 1 << 16;
    let (mut x, mut below) = (-6.0f64, 0.0);
    let step = 1e-5;
    let mut values = Vec::with_capacity(COUNT);
    // The distribution function by the midpoint rule, up to the middle of each value's share.
    while values.len() < COUNT {
        below += (-(x + step / 2.0).powi(2) / 2.0).exp() / std::f64::consts::TAU.sqrt() * step;
        x += step;
        while values.len() < COUNT && (below * COUNT as f64 >= values.len() as f64 + 0.5 || x > 6.0) {
            values.push((0.02 * x) as f32);
        }
    }
    let bytes = Dtype::BF16.narrow(&values).ok_or_else(|| Error::internal("bf16 is a float"))?;
    Ok(bytes.as_chunks::<2>().0.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_have_the_moments_of_a_gaussian() {
        let mut values = vec![0.0f32; 1 << 16];
        Dtype::BF16.widen(gaussian().unwrap().as_flattened(), &mut values).unwrap();
        let moment = |p: i32| values.iter().map(|v| (f64::from(*v) / 0.02).powi(p)).sum::<f64>() / values.len() as f64;
        assert!(moment(1).abs() < 1e-3, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 1e-3, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.03, "{}", moment(4));
    }
}
