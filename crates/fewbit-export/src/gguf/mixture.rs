//! Experts, and DeepSeek's attention, in the words of a GGUF file, and what of them llama.cpp does not compute.

use fewbit_format::Result;
use fewbit_graph::{Groups, Op, Routing, Score, Share};
use fewbit_store::{GgufFamily, ModelFile, Value};

use super::metadata::refused;

/// Keys of one family, without its name.
type Keys = Vec<(&'static str, Value)>;

/// The most experts that llama.cpp takes (`LLAMA_MAX_EXPERTS`).
const MOST: usize = 512;

/// How a layer with experts chooses among how many.
struct Experts {
    count: usize,
    routing: Routing,
}

/// The experts of each layer, `None` for a dense one.
fn layers(file: &ModelFile) -> Vec<Option<Experts>> {
    let of_block = |g: &fewbit_graph::Graph| {
        let routing =
            g.nodes.iter().find_map(|n| if let Op::Route { routing, .. } = n.op { Some(routing) } else { None });
        let count = g.values.iter().find_map(|v| v.routed.map(|r| r.experts));
        Some(Experts { routing: routing?, count: count? })
    };
    file.model().blocks.iter().map(of_block).collect()
}

/// What llama.cpp has in its code for a family with experts.
///
/// # Errors
/// If the model is another.
pub(super) fn check(file: &ModelFile, family: &GgufFamily) -> Result<()> {
    let layers = layers(file);
    let Some(experts) = layers.iter().flatten().next() else { return Ok(()) };
    if experts.count > MOST {
        return Err(refused(&format!("it has {} experts, where llama.cpp takes {MOST}", experts.count)));
    }
    let dense = layers.iter().rposition(Option::is_none);
    if family.name == "deepseek2" {
        let first = layers.iter().position(Option::is_some).unwrap_or(layers.len());
        if let Some(layer) = dense.filter(|layer| *layer > first) {
            return Err(refused(&format!("layer {layer} has no experts, where llama.cpp has them behind the first")));
        }
        return check_deepseek(file, experts);
    }
    if let Some(layer) = dense {
        let name = family.name;
        return Err(refused(&format!("layer {layer} has no experts, where llama.cpp has them for `{name}`")));
    }
    let share = if family.name == "qwen2moe" { Share::All } else { Share::Chosen };
    if experts.routing.share != share {
        let name = family.name;
        return Err(refused(&format!(
            "the weights of experts are shared out otherwise than llama.cpp does for `{name}`"
        )));
    }
    if matches!(family.name, "qwen2moe" | "gpt-oss") && file.is_tied() {
        let name = family.name;
        return Err(refused(&format!("embedding and head are one matrix, where llama.cpp wants two for `{name}`")));
    }
    let limit = file.model().blocks.iter().flat_map(|g| &g.nodes).find_map(|n| match n.op {
        Op::ClampedGlu { limit, .. } => Some(limit),
        _ => None,
    });
    match limit {
        Some(limit) if limit != 7.0 => {
            Err(refused(&format!("`swiglu_limit` is {limit}, where llama.cpp has 7 for `{}`", family.name)))
        }
        _ => Ok(()),
    }
}

fn check_deepseek(file: &ModelFile, experts: &Experts) -> Result<()> {
    /// Depths at which llama.cpp looks for no queries from a latent.
    const LITE: [usize; 2] = [26, 27];
    let config = file.checkpoint().settings();
    if let Some(groups @ Groups { best: 1, .. }) = experts.routing.groups {
        return Err(refused(&format!(
            "{} groups of experts are chosen by their best expert (`group_limited_greedy`), and by their best two in llama.cpp",
            groups.count
        )));
    }
    if config.bool_or("attention_bias", false)? {
        return Err(refused("it has biases, which llama.cpp does not read for `deepseek2`"));
    }
    if config.count_or("n_shared_experts", 0)? == 0 {
        return Err(refused("it has no shared experts, which llama.cpp wants for `deepseek2`"));
    }
    let (depth, has_queries) = (file.model().blocks.len(), config.usize_opt("q_lora_rank")?.is_some());
    if has_queries == LITE.contains(&depth) {
        let (has, wants) = if has_queries { ("", "none") } else { ("no ", "them") };
        return Err(refused(&format!(
            "its {depth} layers have {has}queries from a latent (`q_lora_rank`), where llama.cpp wants {wants} at this depth"
        )));
    }
    let eps = file.model().blocks.iter().flat_map(|g| &g.nodes).filter_map(|n| match n.op {
        Op::RmsNorm { eps, .. } => Some(eps),
        _ => None,
    });
    let mut eps: Vec<f32> = eps.collect();
    eps.dedup();
    if let [a, b, ..] = eps[..] {
        return Err(refused(&format!("its norms have the epsilons {a:e} and {b:e}, where llama.cpp has one")));
    }
    Ok(())
}

/// How many experts there are, how they are chosen, and how wide they are.
pub(super) fn keys(file: &ModelFile, family: &GgufFamily) -> Result<Keys> {
    let layers = layers(file);
    let Some(experts) = layers.iter().flatten().next() else { return Ok(Vec::new()) };
    let (config, routing) = (file.checkpoint().settings(), experts.routing);
    let size = |n: usize| Value::U32(n as u32);
    let mut keys = vec![("expert_count", size(experts.count)), ("expert_used_count", size(routing.top))];
    match family.name {
        "llama" => {}
        "gpt-oss" => keys.push(("expert_feed_forward_length", size(config.usize("intermediate_size")?))),
        _ => keys.push(("expert_feed_forward_length", size(config.usize("moe_intermediate_size")?))),
    }
    if family.name == "qwen2moe" {
        let width = config.usize("shared_expert_intermediate_size")?;
        keys.push(("expert_shared_feed_forward_length", size(width)));
    }
    if family.name == "deepseek2" {
        let is_sigmoid = routing.score == Score::Sigmoid;
        keys.extend([
            ("leading_dense_block_count", size(layers.iter().take_while(|l| l.is_none()).count())),
            ("expert_shared_count", size(config.count_or("n_shared_experts", 0)?)),
            ("expert_weights_scale", Value::F32(routing.scale)),
            ("expert_weights_norm", Value::Bool(routing.share == Share::Chosen)),
            ("expert_gating_func", Value::U32(if is_sigmoid { GgufFamily::SIGMOID as u32 } else { 1 })),
        ]);
        if let Some(groups) = routing.groups {
            keys.push(("expert_group_count", size(groups.count)));
            keys.push(("expert_group_used_count", size(groups.kept)));
        }
    }
    Ok(keys)
}

/// DeepSeek's attention as llama.cpp runs it: one head of keys and values as wide as their latent.
pub(super) fn latent(file: &ModelFile) -> Result<Keys> {
    let c = file.checkpoint().settings();
    let [rank, rope, nope, value] =
        ["kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"].map(|key| c.usize(key));
    let (rank, rope, nope, value) = (rank?, rope?, nope?, value?);
    let size = |n: usize| Value::U32(n as u32);
    let mut keys = vec![
        ("attention.head_count_kv", size(1)),
        ("attention.key_length", size(rank + rope)),
        ("attention.value_length", size(rank)),
        ("attention.key_length_mla", size(nope + rope)),
        ("attention.value_length_mla", size(value)),
        ("attention.kv_lora_rank", size(rank)),
    ];
    keys.extend(c.usize_opt("q_lora_rank")?.map(|rank| ("attention.q_lora_rank", size(rank))));
    Ok(keys)
}
