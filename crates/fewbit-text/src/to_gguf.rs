use std::collections::HashMap;

use fewbit_format::{Error, Result};
use serde_json::Value;

use crate::gguf::GgufVocabulary;
use crate::pieces::byte_of;
use crate::pre;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The vocabulary of a `tokenizer.json` as GGUF keeps it; BOS and EOS are left to the caller.
///
/// Byte-level BPE becomes `gpt2` with the pre-tokenizer that cuts alike, BPE with byte tokens becomes `llama` with
/// the ranks of the merges as scores. The second is a translation that need not be exact: try the result.
///
/// # Errors
/// A model, normalizer or pre-tokenizer that GGUF has no name for.
pub(crate) fn vocabulary(json: &Value) -> Result<GgufVocabulary> {
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(no_name(&format!("a tokenizer of the kind {}", model["type"])));
    }
    for part in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[part].as_str().is_some_and(|s| !s.is_empty()) {
            return Err(no_name(&format!("a `{part}`")));
        }
    }
    let mut v = GgufVocabulary { tokens: tokens(json)?, ..GgufVocabulary::default() };
    v.unk = model["unk_token"].as_str().and_then(|unk| model["vocab"][unk].as_u64()).map(|id| id as u32);
    if model["byte_fallback"] == true {
        "llama".clone_into(&mut v.model);
        v.add_space_prefix = Some(space_prefix(json)?);
        v.scores = scores(model, &v.tokens);
    } else {
        "gpt2".clone_into(&mut v.model);
        let whole_words = model["ignore_merges"] == true;
        let patterns = patterns(&json["pre_tokenizer"])?;
        let known = patterns.and_then(|p| pre::by_patterns(&p, whole_words));
        v.pre = Some(known.ok_or_else(|| no_name("its way to cut text into words"))?.to_owned());
        v.merges = merges(model).map(|(a, b)| format!("{a} {b}")).collect();
    }
    v.types = types(json, &v);
    Ok(v)
}

fn no_name(what: &str) -> Error {
    Error::input(format!("GGUF has no name for {what}")).hint("write another format, such as `--format fewbit`")
}

/// The texts by id; ids that nothing has are filled, as GGUF has no holes.
fn tokens(json: &Value) -> Result<Vec<String>> {
    let model = json["model"]["vocab"].as_object().into_iter().flatten();
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let model = model.filter_map(|(text, id)| Some((id.as_u64()?, text.as_str())));
    let added = added.filter_map(|t| Some((t["id"].as_u64()?, t["content"].as_str()?)));
    let all: HashMap<u64, &str> = model.chain(added).collect();
    let count = all.keys().max().map_or(0, |max| max + 1);
    // The reader bounds ids; so many holes are still a mistake.
    if count > 4 * all.len() as u64 + 1024 {
        return Err(Error::input(format!("the vocabulary has ids up to {count} for {} tokens", all.len())));
    }
    Ok((0..count).map(|id| all.get(&id).map_or_else(|| format!("[PAD{id}]"), |t| (*t).to_owned())).collect())
}

fn merges(model: &Value) -> impl Iterator<Item = (&str, &str)> {
    model["merges"].as_array().into_iter().flatten().filter_map(|m| match m {
        Value::String(pair) => pair.split_once(' '),
        pair => Some((pair[0].as_str()?, pair[1].as_str()?)),
    })
}

/// The rank of the first merge that makes a token, negated; what no merge makes comes after all others.
fn scores(model: &Value, tokens: &[String]) -> Vec<f32> {
    let mut first: HashMap<String, usize> = HashMap::new();
    let mut count = 0;
    for (rank, (a, b)) in merges(model).enumerate() {
        first.entry(format!("{a}{b}")).or_insert(rank);
        count = rank + 1;
    }
    let last = |id: usize| count + id;
    tokens.iter().enumerate().map(|(id, t)| -(first.get(t).copied().unwrap_or_else(|| last(id)) as f32)).collect()
}

fn types(json: &Value, v: &GgufVocabulary) -> Vec<i32> {
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let added: HashMap<u64, bool> =
        added.filter_map(|t| Some((t["id"].as_u64()?, t["special"].as_bool().unwrap_or(false)))).collect();
    let has = |id: usize, text: &str| json["model"]["vocab"][text].as_u64() == Some(id as u64);
    let kind = |(id, text): (usize, &String)| match added.get(&(id as u64)) {
        _ if v.unk == Some(id as u32) && v.model == "llama" => UNKNOWN,
        Some(true) => CONTROL,
        Some(false) => USER_DEFINED,
        None if !has(id, text) => UNUSED,
        None if v.model == "llama" && byte_of(text).is_some() => BYTE,
        None => NORMAL,
    };
    v.tokens.iter().enumerate().map(kind).collect()
}

/// Whether a space is put before the text, where all that happens to the text is that spaces become `▁`.
fn space_prefix(json: &Value) -> Result<bool> {
    let normalizer = &json["normalizer"];
    let steps: Vec<&Value> = match normalizer["normalizers"].as_array() {
        Some(list) => list.iter().collect(),
        None => vec![normalizer],
    };
    let escapes = |n: &Value| n["type"] == "Replace" && n["pattern"]["String"] == " " && n["content"] == "▁";
    let prepends = |n: &Value| n["type"] == "Prepend" && n["prepend"] == "▁";
    let pre = &json["pre_tokenizer"];
    // Gemma's files split at spaces, of which the normalizer has left none.
    let whole = pre.is_null() || (pre["type"] == "Split" && pre["pattern"]["String"] == " ");
    match steps[..] {
        [escape] if escapes(escape) && whole => Ok(false),
        [prepend, escape] if prepends(prepend) && escapes(escape) && whole => Ok(true),
        [none]
            if none.is_null() && pre["type"] == "Metaspace" && pre["replacement"] == "▁" && pre["split"] == false =>
        {
            Ok(pre["prepend_scheme"] != "never")
        }
        _ => Err(no_name("its normalizer")),
    }
}

/// The patterns that cut text into words, if nothing else does.
fn patterns(pre: &Value) -> Result<Option<Vec<String>>> {
    let steps: Vec<&Value> = match pre["pretokenizers"].as_array() {
        Some(list) => list.iter().collect(),
        None => vec![pre],
    };
    let mut patterns = Vec::new();
    let mut is_byte_level = false;
    for step in steps {
        match step["type"].as_str().unwrap_or_default() {
            "Split" if step["behavior"] == "Isolated" && step["invert"] == false => {
                let Some(p) = step["pattern"]["Regex"].as_str() else { return Ok(None) };
                patterns.push(p.to_owned());
            }
            "Digits" if step["individual_digits"] == true => patterns.push(r"\p{N}".to_owned()),
            "ByteLevel" if step["add_prefix_space"] == true => return Err(no_name("a space before every text")),
            "ByteLevel" => {
                is_byte_level = true;
                if step["use_regex"] != false {
                    patterns.push(pre::GPT2.to_owned());
                }
            }
            _ => return Ok(None),
        }
    }
    Ok(Some(patterns).filter(|_| is_byte_level))
}
