//! Vocabularies of GGUF files against the ids of llama.cpp.

use std::time::Instant;

use crate::material::{fetched, shared, vocabulary};
use fewbit_text::{Settings, Special, Tokenizer, check_round_trip};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The tokenizer written as `tokenizer.json` and read again.
fn rewritten(t: &Tokenizer) -> Tokenizer {
    Tokenizer::from_json(&t.to_json().unwrap(), &Settings::default()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

/// The texts and ids that llama.cpp keeps beside a vocabulary.
fn texts_and_ids(name: &str) -> Option<Vec<(String, Vec<u32>)>> {
    let texts = std::fs::read_to_string(shared(&format!("data/tokenizers/{name}.inp"))?).unwrap();
    let lines = std::fs::read_to_string(shared(&format!("data/tokenizers/{name}.out"))?).unwrap();
    // The last text is empty, and so is its line.
    let lines = lines.split('\n').map(|l| l.split_whitespace().map(|id| id.parse().unwrap()).collect());
    let texts: Vec<String> = texts.split("\n__ggml_vocab_test__\n").map(str::to_owned).collect();
    let all: Vec<_> = texts.into_iter().zip(lines).collect();
    assert_eq!(all.len(), 47);
    Some(all)
}

#[test]
fn vocabularies_of_llama_cpp() {
    for name in ["ggml-vocab-llama-spm.gguf", "ggml-vocab-gpt-2.gguf", "ggml-vocab-phi-3.gguf"] {
        let Some(path) = shared(&format!("data/tokenizers/{name}")) else { return };
        let Some(cases) = texts_and_ids(name) else { return };
        let t = Tokenizer::from_gguf(&vocabulary(&path)).unwrap();
        let written = rewritten(&t);
        for (text, want) in &cases {
            for t in [&t, &written] {
                let got = t.encode(text, Special::Plain).unwrap();
                assert_eq!(&got, want, "{name}: {text:?}");
                assert_eq!(&t.decode(&got), text, "{name}");
            }
        }
        assert_eq!(check_round_trip(&t, &written), None, "{name}");
        for source in [&t, &written] {
            let again = Tokenizer::from_gguf(&source.to_gguf().unwrap()).unwrap();
            assert_eq!(check_round_trip(&t, &again), None, "{name} as GGUF");
        }
    }
}

#[test]
fn a_vocabulary_without_pre_tokenizer_is_read_as_gpt_2() {
    let name = "ggml-vocab-gpt-2.gguf";
    let Some(path) = shared(&format!("data/tokenizers/{name}")) else { return };
    let Some(cases) = texts_and_ids(name) else { return };
    let mut v = vocabulary(&path);
    v.pre = None;
    let t = Tokenizer::from_gguf(&v).unwrap();
    for (text, want) in &cases {
        assert_eq!(&t.encode(text, Special::Plain).unwrap(), want, "{text:?}");
    }
    v.pre = Some("viking".to_owned());
    assert!(Tokenizer::from_gguf(&v).err().unwrap().to_string().contains("`viking`"));
}

#[test]
fn a_sentencepiece_model_gives_the_ids_of_the_gguf_vocabulary() {
    let Some(path) = shared("data/tokenizers/llama-2/tokenizer.model") else { return };
    let Some(cases) = texts_and_ids("ggml-vocab-llama-spm.gguf") else { return };
    let t = Tokenizer::from_sentencepiece(&std::fs::read(path).unwrap(), &Settings::default()).unwrap();
    for (text, want) in &cases {
        assert_eq!(&t.encode(text, Special::Plain).unwrap(), want, "{text:?}");
    }
    assert_eq!((t.bos(), t.eos(), t.adds_bos()), (Some(1), Some(2), true));
}

fn golden(model: &str, golden: &str, pieces_of_english: &[&str]) {
    let Some(path) = fetched(model) else { return };
    let Some(golden) = shared(&format!("conformance/gguf/models/{golden}")) else { return };
    let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let started = Instant::now();
    let v = vocabulary(&path);
    println!("{model}: metadata read in {:.2?}", started.elapsed());
    let started = Instant::now();
    let t = Tokenizer::from_gguf(&v).unwrap();
    println!("{model}: tokenizer built in {:.2?}", started.elapsed());
    let started = Instant::now();
    let json = t.to_json().unwrap();
    println!("{model}: tokenizer.json of {} bytes written in {:.2?}", json.len(), started.elapsed());
    let written = rewritten(&t);
    for case in golden["tokenizer"]["strings"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        for t in [&t, &written] {
            assert_eq!(t.encode(text, Special::PlainWithBos).unwrap(), ids(&case["ids"]), "{text:?}");
            let want = ids(&case["ids_no_bos_parse_special"]);
            assert_eq!(t.encode(text, Special::Parsed).unwrap(), want, "{text:?}");
        }
    }
    for case in golden["tokenizer"]["files"].as_array().unwrap() {
        let name = case["file"].as_str().unwrap();
        let Some(path) = shared(&format!("data/{name}")) else { continue };
        let text = std::fs::read_to_string(path).unwrap();
        for (t, which) in [(&t, "as read"), (&written, "as written")] {
            let started = Instant::now();
            let ids = t.encode(&text, Special::Plain).unwrap();
            println!("{model}, {which}: {name}, {} bytes in {:.2?}", text.len(), started.elapsed());
            assert_eq!(ids.len() as u64, case["n_ids"].as_u64().unwrap(), "{name}, {which}");
            let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            assert_eq!(
                hex(&Sha256::digest(&bytes)),
                case["sha256_of_ids_as_i32_le"].as_str().unwrap(),
                "{name}, {which}"
            );
            // A SentencePiece vocabulary cannot tell a space from the character that stands for it.
            let want = if v.model == "llama" { text.replace('▁', " ") } else { text.clone() };
            assert!(t.decode(&ids) == want, "{name}, {which}: decoded text differs");
        }
    }
    let english = &golden["cases"][0];
    let got = t.encode(english["text"].as_str().unwrap(), Special::PlainWithBos).unwrap();
    let pieces: Vec<String> = got.iter().map(|&id| t.piece(id)).collect();
    assert_eq!(&pieces[..pieces_of_english.len()], pieces_of_english);
    assert_eq!(check_round_trip(&t, &written), None);
    assert_eq!(t.vocab_size() as u64, golden["vocab"].as_u64().unwrap());
    assert_eq!(t.max_id() as usize + 1, t.vocab_size());
}

#[test]
fn smollm2() {
    golden(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "smollm2-135m-instruct-q4_1.golden.json",
        &["The", "Ġlighthouse", "Ġkeeper"],
    );
}

#[test]
fn gemma3() {
    golden("gemma-3-270m-q4_k_m.gguf", "gemma-3-270m-q4_k_m.golden.json", &["<bos>", "The", "▁lighthouse"]);
}
