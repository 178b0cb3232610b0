use fewbit_format::{Error, Result};
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, Model};

use crate::pieces::Spelling;
use crate::pre;
use crate::scores::ScoreMerges;
use crate::tokenizer::{Pipeline, Rule, Tokenizer, refused};

/// A vocabulary as GGUF keeps it under `tokenizer.ggml.*`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocabulary {
    /// `model`: `llama` (SentencePiece with scores) or `gpt2` (byte-level BPE with merges).
    pub model: String,
    /// `pre`: how `gpt2` cuts text into words.
    pub pre: Option<String>,
    /// `tokens`, by id.
    pub tokens: Vec<String>,
    /// `scores`, by id; only for `llama`.
    pub scores: Vec<f32>,
    /// `token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; empty: all normal.
    pub types: Vec<i32>,
    /// `merges`, best first, each two pieces with a space between; only for `gpt2`.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `add_bos_token`; the model's default where absent.
    pub add_bos: Option<bool>,
    /// `add_eos_token`; false where absent.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`; true for `llama` where absent.
    pub add_space_prefix: Option<bool>,
}

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// Texts that end a turn or a text in some family: control tokens whatever type a file gives them, as in llama.cpp.
const ENDS: [&str; 19] = [
    "</s>",
    "<eos>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
];

impl GgufVocabulary {
    /// Builds the tokenizer.
    pub(crate) fn into_tokenizer(self) -> Result<Tokenizer> {
        self.check()?;
        match self.model.as_str() {
            "llama" => self.sentencepiece(),
            "gpt2" => self.byte_level(),
            other => Err(Error::input(format!("the tokenizer model `{other}` is not known (known are llama, gpt2)"))
                .place("`tokenizer.ggml.model`")
                .hint("use the model's Hugging Face folder with its `tokenizer.json`")),
        }
    }

    fn check(&self) -> Result<()> {
        let n = self.tokens.len();
        if n == 0 {
            return Err(Error::input("holds no tokens").place("`tokenizer.ggml.tokens`"));
        }
        for (name, len) in [("scores", self.scores.len()), ("token_type", self.types.len())] {
            if len != 0 && len != n {
                return Err(
                    Error::input(format!("has {len} entries for {n} tokens")).place(format!("`tokenizer.ggml.{name}`"))
                );
            }
        }
        for (name, id) in [("bos", self.bos), ("eos", self.eos), ("unknown", self.unk), ("padding", self.pad)] {
            if let Some(id) = id.filter(|&id| id as usize >= n) {
                let place = format!("`tokenizer.ggml.{name}_token_id`");
                return Err(Error::input(format!("is {id}, but there are {n} tokens")).place(place));
            }
        }
        Ok(())
    }

    fn kind(&self, id: u32) -> i32 {
        match self.types.get(id as usize) {
            Some(_) if ENDS.contains(&self.tokens[id as usize].as_str()) => CONTROL,
            Some(&kind) => kind,
            None if [self.bos, self.eos, self.pad].contains(&Some(id)) => CONTROL,
            None if self.unk == Some(id) => UNKNOWN,
            None if self.model == "llama" && crate::pieces::byte_of(&self.tokens[id as usize]).is_some() => BYTE,
            None => 1,
        }
    }

    fn ids(&self) -> std::ops::Range<u32> {
        0..self.tokens.len() as u32
    }

    /// The tokens that are found in text before the model sees it.
    fn added_tokens(&self) -> Vec<AddedToken> {
        let added = |id: u32| match self.kind(id) {
            CONTROL | UNKNOWN => Some(AddedToken::from(self.tokens[id as usize].clone(), true).normalized(false)),
            USER_DEFINED => Some(AddedToken::from(self.tokens[id as usize].clone(), false).normalized(false)),
            _ => None,
        };
        self.ids().filter_map(added).collect()
    }

    fn sentencepiece(mut self) -> Result<Tokenizer> {
        if self.scores.is_empty() {
            return Err(Error::input("is absent, but the tokenizer model `llama` merges by scores")
                .place("`tokenizer.ggml.scores`"));
        }
        let space_prefix = self.add_space_prefix.unwrap_or(true);
        let rule = self.rule(true)?;
        let added = self.added_tokens();
        let from_text = self.ids().map(|id| !matches!(self.kind(id), CONTROL | UNKNOWN | BYTE)).collect();
        let (tokens, scores) = (std::mem::take(&mut self.tokens), std::mem::take(&mut self.scores));
        let model = ScoreMerges::new(tokens, scores, from_text, self.unk);
        let parts = sentencepiece_parts(space_prefix);
        let pipeline = pipeline(model, &parts, added, &rule)?;
        Tokenizer::from_scores(pipeline, &Spelling::sentencepiece(space_prefix), rule, self.bos, self.eos)
    }

    fn byte_level(mut self) -> Result<Tokenizer> {
        let pre = pre::by_name(self.pre.as_deref())?;
        let rule = self.rule(pre.adds_bos)?;
        let added = self.added_tokens();
        let mut vocabulary = Vocab::with_capacity(self.tokens.len());
        for (id, token) in std::mem::take(&mut self.tokens).into_iter().enumerate() {
            vocabulary.entry(token).or_insert(id as u32);
        }
        let merges = std::mem::take(&mut self.merges).into_iter().enumerate();
        let merges = merges.map(|(i, m)| merge(&m, &vocabulary).map_err(|e| e.place(format!("merge {i}"))));
        let merges = merges.collect::<Result<Vec<_>>>()?;
        let bpe = BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(pre.whole_words).build();
        let bpe = tokenizers::ModelWrapper::BPE(bpe.map_err(|e| refused("the vocabulary", &e))?);
        let pipeline = pipeline(bpe, &byte_level_parts(pre.patterns), added, &rule)?;
        Tokenizer::from_pipeline(pipeline, rule, self.bos, self.eos)
    }

    /// What a text gets at its ends.
    fn rule(&self, adds_bos: bool) -> Result<Rule> {
        let end = |wanted: bool, id: Option<u32>, name: &str| match (wanted, id) {
            (false, _) => Ok(None),
            (true, Some(id)) => Ok(Some((id, self.tokens[id as usize].clone()))),
            (true, None) => Err(Error::input(format!("is set, but there is no `tokenizer.ggml.{name}_token_id`"))
                .place(format!("`tokenizer.ggml.add_{name}_token`"))),
        };
        // Where the file does not speak, a vocabulary without the token goes without it.
        let bos = end(self.add_bos.unwrap_or(adds_bos && self.bos.is_some()), self.bos, "bos")?;
        let eos = end(self.add_eos.unwrap_or(false), self.eos, "eos")?;
        Ok(Rule { before: bos.into_iter().collect(), after: eos.into_iter().collect() })
    }
}

fn merge(text: &str, vocabulary: &Vocab) -> Result<(String, String)> {
    let bad = |why: String| Error::input(why).place("`tokenizer.ggml.merges`");
    // A piece may itself be a space, so the separator is looked for from the second character on.
    let from = text.chars().next().map_or(0, char::len_utf8);
    let (a, b) = text[from..]
        .find(' ')
        .map(|at| (&text[..from + at], &text[from + at + 1..]))
        .ok_or_else(|| bad(format!("`{text}` is not two pieces with a space between")))?;
    for piece in [a, b, &format!("{a}{b}")] {
        if !vocabulary.contains_key(piece) {
            return Err(bad(format!("`{piece}` is not a token")));
        }
    }
    Ok((a.to_owned(), b.to_owned()))
}

/// Normalizer, pre-tokenizer and decoder in the words of `tokenizer.json`.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
}

fn sentencepiece_parts(space_prefix: bool) -> Parts {
    let escape = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let unescape = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let mut normalizers = vec![escape];
    let mut decoders = vec![unescape, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if space_prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
    }
}

fn byte_level_parts(patterns: &[&str]) -> Parts {
    let split = |p: &&str| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let steps: Vec<Value> = patterns.iter().map(split).chain([bytes.clone()]).collect();
    Parts {
        normalizer: Value::Null,
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}),
        decoder: bytes,
    }
}

/// The post-processor that puts `rule`'s tokens around a text.
fn template(rule: &Rule) -> Value {
    if rule.before.is_empty() && rule.after.is_empty() {
        return Value::Null;
    }
    let special = |t: &(u32, String)| json!({"SpecialToken": {"id": t.1, "type_id": 0}});
    let around = |sequence: Vec<Value>| -> Vec<Value> {
        rule.before.iter().map(special).chain(sequence).chain(rule.after.iter().map(special)).collect()
    };
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let tokens: serde_json::Map<String, Value> = rule
        .before
        .iter()
        .chain(&rule.after)
        .map(|(id, text)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    json!({
        "type": "TemplateProcessing",
        "single": around(vec![sequence("A")]),
        "pair": around(vec![sequence("A"), sequence("B")]),
        "special_tokens": tokens,
    })
}

fn pipeline<M: Model>(model: M, parts: &Parts, added: Vec<AddedToken>, rule: &Rule) -> Result<Pipeline<M>> {
    let broken = |e: serde_json::Error| Error::internal(format!("a part of the tokenizer is refused: {e}"));
    let mut p = Pipeline::new(model);
    let normalizer: Option<tokenizers::NormalizerWrapper> =
        serde_json::from_value(parts.normalizer.clone()).map_err(broken)?;
    p.with_normalizer(normalizer).map_err(|e| refused("the normalizer", &e))?;
    let pre: Option<tokenizers::PreTokenizerWrapper> =
        serde_json::from_value(parts.pre_tokenizer.clone()).map_err(broken)?;
    p.with_pre_tokenizer(pre);
    let decoder: Option<tokenizers::DecoderWrapper> = serde_json::from_value(parts.decoder.clone()).map_err(broken)?;
    p.with_decoder(decoder);
    let post: Option<tokenizers::PostProcessorWrapper> = serde_json::from_value(template(rule)).map_err(broken)?;
    p.with_post_processor(post);
    p.add_tokens(added).map_err(|e| refused("the control tokens", &e))?;
    Ok(p)
}
