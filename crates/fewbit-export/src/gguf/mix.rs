//! Which type each tensor of a GGUF file has: the mixes that llama.cpp's quantizer makes.

use fewbit_format::GgmlType::{
    self, Iq1M, Iq1S, Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs, Iq4Nl, Iq4Xs, Mxfp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1,
    Q5K, Q6K, Q8_0, Tq1_0, Tq2_0,
};
use fewbit_format::Result;
use fewbit_graph::Graph;
use fewbit_store::ModelFile;

use super::metadata::family;

/// A mix of block types, by the name that llama.cpp gives to such files.
///
/// Tensors that are worth more bits get them: values, the MLP's way back, the output, the first and last blocks. The
/// rules are those of llama.cpp of August 2026 (`src/llama-quant.cpp`), so that files have its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are llama.cpp's")]
#[expect(non_camel_case_types, reason = "the names are llama.cpp's")]
pub enum GgufMix {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q2_K_S,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ2_M,
    IQ3_XXS,
    IQ3_XS,
    IQ3_S,
    IQ3_M,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4_MOE,
}

/// A tensor that is to be rounded, as far as mixes look at it.
#[derive(Clone, Copy, Debug)]
pub struct MixTensor<'a> {
    /// Its name without `.weight`, such as `blk.3.attn_v`.
    pub name: &'a str,
    /// Columns.
    pub cols: usize,
    /// The block that it is of.
    pub layer: usize,
    /// The model that it is of.
    pub model: MixModel<'a>,
}

/// A model, as far as mixes look at it.
#[derive(Clone, Copy, Debug)]
pub struct MixModel<'a> {
    /// The family's name in GGUF.
    pub family: &'a str,
    /// Blocks.
    pub layers: usize,
    /// Heads of queries for each of keys and values.
    pub queries_per_kv: usize,
    /// Experts; 0 where there are none.
    pub experts: usize,
    /// The first block with shared experts beside the others; none where there are none.
    pub shared_from: Option<usize>,
    /// Whether embedding and output are one matrix.
    pub is_tied: bool,
}

/// What a tensor does.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Output,
    Embedding,
    /// And what holds queries and keys too.
    Values,
    Keys,
    Queries,
    AttentionOutput,
    /// Gate and up.
    Into,
    Down,
    /// What stays as it is.
    Kept,
    Other,
}

impl MixModel<'static> {
    /// What mixes look at of a model.
    ///
    /// # Errors
    /// If its family has no name in GGUF.
    pub fn of(file: &ModelFile) -> Result<Self> {
        let config = file.checkpoint().config();
        let (heads, kv_heads, _) = file.checkpoint().settings().heads()?;
        let names = ["num_local_experts", "num_experts", "n_routed_experts"];
        let experts = names.iter().find_map(|k| config.get(*k)?.as_u64());
        let has_shared = |g: &Graph| g.weights.iter().any(|w| w.name.starts_with("mlp.shared_expert"));
        Ok(Self {
            family: family(file)?.name,
            layers: file.model().blocks.len(),
            queries_per_kv: heads / kv_heads.max(1),
            experts: experts.unwrap_or(0) as usize,
            shared_from: file.model().blocks.iter().position(has_shared),
            is_tied: file.is_tied(),
        })
    }
}

impl MixTensor<'_> {
    fn role(&self) -> Role {
        let short = self.name.rsplit('.').next().unwrap_or_default();
        match short {
            "output" => Role::Output,
            "token_embd" if self.model.is_tied => Role::Output,
            "token_embd" => Role::Embedding,
            "attn_v" | "attn_qkv" | "attn_kv_b" => Role::Values,
            "attn_k" => Role::Keys,
            "attn_q" => Role::Queries,
            "attn_output" => Role::AttentionOutput,
            // Blocks along the rows of the first would lie across the model's, and a folder has both in one tensor.
            "attn_k_b" | "attn_v_b" => Role::Kept,
            _ if short.starts_with("ffn_down") => Role::Down,
            _ if short.starts_with("ffn_gate") || short.starts_with("ffn_up") => Role::Into,
            _ => Role::Other,
        }
    }

    /// Whether it is in the first eighth of the blocks.
    fn is_early(&self) -> bool {
        self.layer < self.model.layers / 8
    }

    /// Whether it is among as many of the MLPs' ways back as an eighth of the blocks: each of two counts where a block has
    /// shared experts.
    fn is_early_down(&self) -> bool {
        let second = self.model.shared_from.filter(|first| *first <= self.layer);
        let before = self.model.shared_from.map_or(0, |first| self.layer.saturating_sub(first));
        let is_second = second.is_some() && self.name.ends_with("_shexp");
        self.layer + before + usize::from(is_second) < self.model.layers / 8
    }

    /// Whether it is in the last eighth.
    fn is_late(&self) -> bool {
        self.layer >= 7 * self.model.layers / 8
    }

    /// Whether its block is one of those that get more bits: the first and last eighth, and every third between.
    fn is_chosen(&self) -> bool {
        self.is_early() || self.is_late() || (self.layer - self.model.layers / 8) % 3 == 2
    }

    fn is_falcon(&self) -> bool {
        self.model.family == "falcon"
    }
}

#[expect(clippy::match_same_arms, reason = "the rules stand mix by mix")]
impl GgufMix {
    /// All of them.
    pub const ALL: [Self; 30] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q2_K_S,
        Self::Q3_K_S,
        Self::Q3_K_M,
        Self::Q3_K_L,
        Self::Q4_K_S,
        Self::Q4_K_M,
        Self::Q5_K_S,
        Self::Q5_K_M,
        Self::Q6_K,
        Self::IQ1_S,
        Self::IQ1_M,
        Self::IQ2_XXS,
        Self::IQ2_XS,
        Self::IQ2_S,
        Self::IQ2_M,
        Self::IQ3_XXS,
        Self::IQ3_XS,
        Self::IQ3_S,
        Self::IQ3_M,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::TQ1_0,
        Self::TQ2_0,
        Self::MXFP4_MOE,
    ];

    /// Its name, the type of most tensors, and the number that `general.file_type` has for it.
    const fn facts(self) -> (&'static str, GgmlType, u32) {
        match self {
            Self::Q4_0 => ("Q4_0", Q4_0, 2),
            Self::Q4_1 => ("Q4_1", Q4_1, 3),
            Self::Q8_0 => ("Q8_0", Q8_0, 7),
            Self::Q5_0 => ("Q5_0", Q5_0, 8),
            Self::Q5_1 => ("Q5_1", Q5_1, 9),
            Self::Q2_K => ("Q2_K", Q2K, 10),
            Self::Q3_K_S => ("Q3_K_S", Q3K, 11),
            Self::Q3_K_M => ("Q3_K_M", Q3K, 12),
            Self::Q3_K_L => ("Q3_K_L", Q3K, 13),
            Self::Q4_K_S => ("Q4_K_S", Q4K, 14),
            Self::Q4_K_M => ("Q4_K_M", Q4K, 15),
            Self::Q5_K_S => ("Q5_K_S", Q5K, 16),
            Self::Q5_K_M => ("Q5_K_M", Q5K, 17),
            Self::Q6_K => ("Q6_K", Q6K, 18),
            Self::IQ2_XXS => ("IQ2_XXS", Iq2Xxs, 19),
            Self::IQ2_XS => ("IQ2_XS", Iq2Xs, 20),
            Self::Q2_K_S => ("Q2_K_S", Q2K, 21),
            Self::IQ3_XS => ("IQ3_XS", Iq3S, 22),
            Self::IQ3_XXS => ("IQ3_XXS", Iq3Xxs, 23),
            Self::IQ1_S => ("IQ1_S", Iq1S, 24),
            Self::IQ4_NL => ("IQ4_NL", Iq4Nl, 25),
            Self::IQ3_S => ("IQ3_S", Iq3S, 26),
            Self::IQ3_M => ("IQ3_M", Iq3S, 27),
            Self::IQ2_S => ("IQ2_S", Iq2Xs, 28),
            Self::IQ2_M => ("IQ2_M", Iq2S, 29),
            Self::IQ4_XS => ("IQ4_XS", Iq4Xs, 30),
            Self::IQ1_M => ("IQ1_M", Iq1M, 31),
            Self::TQ1_0 => ("TQ1_0", Tq1_0, 36),
            Self::TQ2_0 => ("TQ2_0", Tq2_0, 37),
            Self::MXFP4_MOE => ("MXFP4_MOE", Mxfp4, 38),
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.facts().0
    }

    /// The mix of that name, in whatever case.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.name().eq_ignore_ascii_case(name))
    }

    /// The type of most tensors.
    pub const fn base(self) -> GgmlType {
        self.facts().1
    }

    /// What `general.file_type` has for it.
    pub const fn number(self) -> u32 {
        self.facts().2
    }

    /// The type of a tensor, where errors count by importances or alike; `None` where no blocks tile its rows.
    pub fn type_of(self, tensor: &MixTensor<'_>, has_importance: bool) -> Option<GgmlType> {
        tiling(self.wanted_type_of(tensor, has_importance)?, tensor.cols)
    }

    /// The type that a tensor has where its blocks tile the rows; `None` for those that every mix keeps.
    pub fn wanted_type_of(self, tensor: &MixTensor<'_>, has_importance: bool) -> Option<GgmlType> {
        Some(match tensor.role() {
            Role::Kept => return None,
            // Experts alone are of its type, and all else has twice the bits.
            _ if self == Self::MXFP4_MOE && tensor.name.ends_with("_exps") => Mxfp4,
            _ if self == Self::MXFP4_MOE => Q8_0,
            Role::Output => self.of_output(tensor),
            Role::Embedding => self.of_embedding(),
            role if self.is_small() => self.of_small(tensor, role),
            role => self.of_block(tensor, role, has_importance),
        })
    }

    /// Of about two bits and below.
    fn is_small(self) -> bool {
        matches!(self, Self::IQ1_S | Self::IQ1_M | Self::IQ2_XXS | Self::IQ2_XS | Self::IQ2_S | Self::IQ2_M)
    }

    fn of_output(self, tensor: &MixTensor<'_>) -> GgmlType {
        match self.base() {
            Q8_0 => Q8_0,
            base if tensor.is_falcon() || !tensor.cols.is_multiple_of(base.block_len()) => Q8_0,
            _ if self.is_small() || self == Self::IQ3_XXS => Q5K,
            _ => Q6K,
        }
    }

    fn of_embedding(self) -> GgmlType {
        match self {
            Self::IQ1_S | Self::IQ1_M | Self::IQ2_XXS | Self::IQ2_XS => Q2K,
            Self::IQ2_S | Self::IQ2_M | Self::IQ3_XXS => Iq3S,
            Self::TQ1_0 | Self::TQ2_0 => Q4K,
            _ => self.base(),
        }
    }

    fn of_small(self, tensor: &MixTensor<'_>, role: Role) -> GgmlType {
        let MixModel { queries_per_kv, experts, .. } = tensor.model;
        let better = if matches!(self, Self::IQ2_S | Self::IQ2_M) { Iq3S } else { Q2K };
        match role {
            Role::Values if queries_per_kv >= 4 || experts >= 4 => Q4K,
            Role::Values => better,
            Role::Keys if experts == 8 => Q4K,
            Role::Down if tensor.is_early_down() => better,
            Role::AttentionOutput if experts == 8 => Q5K,
            Role::AttentionOutput if matches!(self, Self::IQ1_S | Self::IQ1_M) => Iq2Xxs,
            Role::AttentionOutput if better == Iq3S => Iq3S,
            _ => self.base(),
        }
    }

    fn of_block(self, tensor: &MixTensor<'_>, role: Role, has_importance: bool) -> GgmlType {
        let has_eight = tensor.model.experts == 8;
        match role {
            Role::Values if has_eight => Q8_0,
            Role::Values => self.of_values(tensor, has_importance),
            Role::Keys if has_eight => Q8_0,
            Role::Keys | Role::Queries => match self {
                Self::IQ3_XS => Iq3Xxs,
                Self::IQ3_XXS => Iq2S,
                _ => self.base(),
            },
            Role::Down => self.of_down(tensor, has_importance),
            Role::AttentionOutput => self.of_attention_output(tensor),
            Role::Into if self == Self::IQ3_XS && !tensor.is_early() && !tensor.is_late() => Iq3Xxs,
            _ => self.base(),
        }
    }

    fn of_values(self, tensor: &MixTensor<'_>, has_importance: bool) -> GgmlType {
        let MixModel { family, layers, queries_per_kv, .. } = tensor.model;
        let is_shared = queries_per_kv >= 4;
        let kind = match self {
            Self::Q2_K if is_shared => Q4K,
            Self::Q2_K => Q3K,
            Self::Q2_K_S | Self::IQ3_XXS | Self::IQ3_XS | Self::IQ3_S if is_shared => Q4K,
            Self::IQ3_XXS if !has_importance => Iq3S,
            Self::IQ3_M => Q4K,
            Self::Q3_K_M if tensor.layer < 2 => Q5K,
            Self::Q3_K_M => Q4K,
            Self::Q3_K_L => Q5K,
            Self::IQ4_NL | Self::IQ4_XS if is_shared => Q5K,
            Self::Q4_K_M | Self::Q5_K_M if tensor.is_chosen() => Q6K,
            Self::Q4_K_S if tensor.layer < 4 => Q5K,
            _ => self.base(),
        };
        // Of the models of 70 billion weights, whose values are few.
        let is_70b = layers == 80 && matches!(family, "llama" | "qwen2");
        if is_70b && matches!(kind, Q3K | Q4K) { Q5K } else { kind }
    }

    fn of_down(self, tensor: &MixTensor<'_>, has_importance: bool) -> GgmlType {
        let is_first = tensor.layer < tensor.model.layers / 16;
        match self {
            Self::Q2_K => Q3K,
            Self::Q2_K_S if tensor.is_early() => Q4K,
            Self::IQ3_XXS if !has_importance && tensor.is_early() => Q4K,
            Self::IQ3_XXS if !has_importance => Q3K,
            Self::Q3_K_M if is_first => Q5K,
            Self::Q3_K_M if !tensor.is_falcon() || tensor.is_chosen() => Q4K,
            Self::IQ3_M if tensor.is_early() || tensor.model.experts == 8 && tensor.is_chosen() => Q4K,
            Self::Q3_K_L if tensor.is_falcon() => Q4K,
            Self::Q3_K_L => Q5K,
            Self::Q4_K_M if tensor.is_falcon() && is_first => Q6K,
            Self::Q4_K_M if tensor.is_chosen() => {
                if tensor.is_falcon() {
                    Q5K
                } else {
                    Q6K
                }
            }
            Self::IQ4_NL | Self::IQ4_XS if tensor.is_early() && !has_importance => Q5K,
            Self::Q5_K_M if tensor.is_chosen() => Q6K,
            Self::Q4_K_S if tensor.is_early() && !tensor.is_falcon() => Q5K,
            Self::Q4_0 if tensor.is_early() && has_importance => Q4_1,
            Self::Q5_0 if tensor.is_early() && has_importance => Q5_1,
            _ => self.base(),
        }
    }

    fn of_attention_output(self, tensor: &MixTensor<'_>) -> GgmlType {
        match self {
            Self::Q3_K_L if tensor.is_falcon() => Q4K,
            _ if tensor.is_falcon() => self.base(),
            Self::Q2_K
            | Self::IQ3_XS
            | Self::IQ3_XXS
            | Self::Q3_K_S
            | Self::Q3_K_M
            | Self::IQ4_NL
            | Self::Q4_K_S
            | Self::Q4_K_M
            | Self::IQ3_S
            | Self::IQ3_M
            | Self::IQ4_XS
                if tensor.model.experts == 8 =>
            {
                Q5K
            }
            _ if tensor.model.experts == 8 => self.base(),
            Self::Q2_K => Q3K,
            Self::IQ3_XXS => Iq3S,
            Self::Q3_K_M | Self::IQ3_M => Q4K,
            Self::Q3_K_L => Q5K,
            _ => self.base(),
        }
    }
}

/// The type, or the one in its place whose blocks tile rows of `cols`.
fn tiling(kind: GgmlType, cols: usize) -> Option<GgmlType> {
    let fits = |kind: &GgmlType| cols.is_multiple_of(kind.block_len());
    let smaller = match kind {
        _ if fits(&kind) => kind,
        Iq1S | Iq1M | Iq2Xxs | Iq2Xs | Iq2S | Iq3Xxs | Iq3S | Iq4Xs => Iq4Nl,
        Q2K | Q3K | Tq1_0 | Tq2_0 => Q4_0,
        Q4K => Q5_0,
        Q5K => Q5_1,
        Q6K => Q8_0,
        other => other,
    };
    Some(smaller).filter(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: MixModel<'_> =
        MixModel { family: "llama", layers: 32, queries_per_kv: 4, experts: 0, shared_from: None, is_tied: false };

    fn kind(mix: GgufMix, name: &str, layer: usize, cols: usize) -> Option<GgmlType> {
        mix.type_of(&MixTensor { name, cols, layer, model: MODEL }, true)
    }

    #[test]
    fn names_lead_back() {
        for mix in GgufMix::ALL {
            assert_eq!(GgufMix::named(&mix.name().to_lowercase()), Some(mix));
            assert_eq!(GgufMix::ALL.iter().filter(|m| m.number() == mix.number()).count(), 1);
        }
        assert_eq!(GgufMix::named("Q4_K"), None);
    }

    #[test]
    fn what_counts_most_gets_more_bits() {
        let of_downs: String = (0..32)
            .map(|l| if kind(GgufMix::Q4_K_M, "blk.0.ffn_down", l, 256) == Some(Q6K) { '6' } else { '4' })
            .collect();
        assert_eq!(of_downs, "66664464464464464464464464466666");
        assert_eq!(kind(GgufMix::Q4_K_M, "output", 0, 256), Some(Q6K));
        assert_eq!(kind(GgufMix::Q4_K_M, "token_embd", 0, 256), Some(Q4K));
        assert_eq!(kind(GgufMix::IQ2_XS, "blk.9.attn_v", 9, 256), Some(Q4K));
        assert_eq!(kind(GgufMix::IQ2_XS, "blk.9.ffn_up", 9, 256), Some(Iq2Xs));
    }

    #[test]
    fn experts_have_their_own_rules() {
        let eight = MixModel { experts: 8, ..MODEL };
        let kind = |mix: GgufMix, name: &str, layer: usize, model| {
            mix.type_of(&MixTensor { name, cols: 256, layer, model }, true)
        };
        for name in ["blk.9.attn_k", "blk.9.attn_v"] {
            assert_eq!(kind(GgufMix::Q4_K_M, name, 9, eight), Some(Q8_0));
        }
        assert_eq!(kind(GgufMix::Q4_K_M, "blk.9.attn_output", 9, eight), Some(Q5K));
        assert_eq!(kind(GgufMix::Q4_K_M, "blk.0.ffn_down_exps", 0, eight), Some(Q6K));
        assert_eq!(kind(GgufMix::Q4_K_M, "blk.9.ffn_gate_exps", 9, eight), Some(Q4K));
        assert_eq!(kind(GgufMix::Q4_K_M, "blk.9.attn_k_b", 9, eight), None);
        assert_eq!(kind(GgufMix::MXFP4_MOE, "blk.9.ffn_up_exps", 9, eight), Some(Mxfp4));
        assert_eq!(kind(GgufMix::MXFP4_MOE, "blk.9.ffn_up_shexp", 9, eight), Some(Q8_0));
        // Of 32 blocks the first dense: four ways back are early, the one of block 0 and three behind it.
        let shared = MixModel { experts: 60, shared_from: Some(1), ..MODEL };
        let early = |name: &str| -> Vec<usize> {
            (0..32).filter(|l| kind(GgufMix::IQ2_XS, &format!("blk.{l}.{name}"), *l, shared) == Some(Q2K)).collect()
        };
        assert_eq!((early("ffn_down_exps"), early("ffn_down_shexp")), (vec![0, 1, 2], vec![0, 1]));
    }

    #[test]
    fn rows_that_blocks_do_not_tile_get_smaller_blocks() {
        assert_eq!(kind(GgufMix::Q4_K_M, "blk.9.ffn_up", 9, 384), Some(Q5_0));
        assert_eq!(kind(GgufMix::Q4_K_M, "output", 0, 576), Some(Q8_0));
        assert_eq!(kind(GgufMix::IQ2_XS, "blk.9.ffn_up", 9, 384), Some(Iq4Nl));
        assert_eq!(kind(GgufMix::Q2_K, "blk.9.ffn_up", 9, 384), Some(Q4_0));
        assert_eq!(kind(GgufMix::Q8_0, "blk.9.ffn_up", 9, 172), None);
    }
}
