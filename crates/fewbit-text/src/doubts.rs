//! What the tokenizers library makes of a vocabulary that contradicts itself, which it does without a word.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use tokenizers::ModelWrapper;

use crate::tokenizer::Pipeline;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// Added tokens of a `tokenizer.json` that do not get the id that the file gives them: the first, and how many more.
pub(crate) fn moved_tokens(json: &[u8], library: &Pipeline<ModelWrapper>) -> Option<String> {
    let File { added_tokens } = serde_json::from_slice(json).ok()?;
    let mut moved = added_tokens.iter().filter_map(|t| Some((t, library.token_to_id(&t.content)?)));
    let mut moved = moved.by_ref().filter(|(t, id)| t.id != *id);
    let (Added { id, content }, instead) = moved.next()?;
    let owner = library.id_to_token(*id).map(|other| format!(", which is `{other}`")).unwrap_or_default();
    let more = match moved.count() {
        0 => String::new(),
        n => format!(" ({n} more tokens are moved)"),
    };
    Some(format!(
        "added token `{content}` has id {id} in the file{owner}: it gets id {instead} instead{more}; the model may have no row for it"
    ))
}

/// The first id that stands for two entries of a vocabulary.
pub(crate) fn shared_id(vocabulary: &HashMap<String, u32>) -> Option<String> {
    let mut seen = HashSet::with_capacity(vocabulary.len());
    let id = vocabulary.values().filter(|id| !seen.insert(**id)).min()?;
    let mut texts: Vec<&str> = vocabulary.iter().filter(|(_, i)| *i == id).map(|(text, _)| text.as_str()).collect();
    texts.sort_unstable();
    Some(format!(
        "id {id} stands for {} entries of the vocabulary, `{}`: the model cannot tell them apart; download the tokenizer again",
        texts.len(),
        texts.join("` and `")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(added: &str) -> Vec<u8> {
        let token = |(id, content)| {
            format!(
                r#"{{"id": {id}, "content": "{content}", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false}}"#
            )
        };
        let added: Vec<String> =
            added.split_whitespace().filter_map(|t| t.split_once('=')).map(|(a, b)| token((b, a))).collect();
        format!(
            r#"{{"version": "1.0", "added_tokens": [{}], "model": {{"type": "BPE", "vocab": {{"a": 0, "b": 1, "c": 2}}, "merges": []}}}}"#,
            added.join(", ")
        )
        .into_bytes()
    }

    #[test]
    fn a_token_whose_id_is_taken_is_named() {
        let doubt = |added: &str| {
            let json = words(added);
            let library = serde_json::from_slice::<tokenizers::Tokenizer>(&json).unwrap();
            moved_tokens(&json, &library.into_inner())
        };
        assert_eq!(doubt("<new>=3 c=2"), None);
        let sentence = "added token `<new>` has id 1 in the file, which is `b`: it gets id 3 instead";
        assert!(doubt("<new>=1").unwrap().starts_with(&format!("{sentence};")));
        assert!(doubt("<new>=1 <more>=2").unwrap().starts_with(&format!("{sentence} (1 more")));
        assert!(doubt("<new>=9").unwrap().starts_with("added token `<new>` has id 9 in the file: it gets id 3"));
    }

    #[test]
    fn an_id_of_two_entries_is_named() {
        let vocabulary = |pairs: &[(&str, u32)]| pairs.iter().map(|(t, i)| ((*t).to_owned(), *i)).collect();
        assert_eq!(shared_id(&vocabulary(&[("a", 0), ("b", 1)])), None);
        let doubt = shared_id(&vocabulary(&[("a", 0), ("ne", 4), ("Once", 4), ("x", 9), ("y", 9)])).unwrap();
        assert!(doubt.starts_with("id 4 stands for 2 entries of the vocabulary, `Once` and `ne`: "), "{doubt}");
    }
}
