//! Tokenizers of model folders: ids, texts, streams, and the same from other files of the same model.

use std::path::PathBuf;
use std::time::Instant;

use crate::material::{shared, vocabulary};
use fewbit_text::{Settings, Special, StopStrings, Stopped, Tokenizer, check_round_trip};
use serde_json::Value;

fn settings(folder: &str) -> Settings {
    // Not every folder has both.
    let read = |name: &str| std::fs::read(shared("models")?.join(folder).join(name)).ok();
    Settings::from_json(read("tokenizer_config.json").as_deref(), read("special_tokens_map.json").as_deref()).unwrap()
}

fn file(folder: &str, name: &str) -> Option<Vec<u8>> {
    shared(&format!("models/{folder}/{name}")).map(|p: PathBuf| std::fs::read(p).unwrap())
}

fn tokenizer(folder: &str) -> Option<Tokenizer> {
    Some(Tokenizer::from_json(&file(folder, "tokenizer.json")?, &settings(folder)).unwrap())
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The texts of the reference cases whose ids were computed for a folder.
fn cases(folder: &str) -> Option<Vec<(String, Vec<u32>)>> {
    let texts: Value = serde_json::from_slice(&std::fs::read(shared("trouble/texts.json")?).unwrap()).unwrap();
    let texts = texts.as_object().unwrap().iter();
    let of_folder = texts.filter_map(|(_, t)| Some((t.get("text")?.as_str()?.to_owned(), ids(t.get(folder)?))));
    Some(of_folder.collect())
}

#[test]
fn stories260k_from_three_files() {
    let Some(json) = tokenizer("stories260K") else { return };
    let Some(model) = file("stories260K", "tokenizer.model") else { return };
    let model = Tokenizer::from_sentencepiece(&model, &settings("stories260K")).unwrap();
    let Some(gguf) = shared("conformance/gguf/tiny/stories260k-q4_k_m.gguf") else { return };
    let gguf = Tokenizer::from_gguf(&vocabulary(&gguf)).unwrap();
    let Some(cases) = cases("stories260K") else { return };
    for t in [&json, &model, &gguf] {
        for (text, want) in &cases {
            assert_eq!(&t.encode(text, Special::PlainWithBos).unwrap(), want, "{text:?}");
        }
        assert_eq!(t.encode("Once upon a time", Special::PlainWithBos).unwrap(), [1, 403, 407, 261, 378]);
        assert_eq!((t.bos(), t.eos(), t.adds_bos(), t.vocab_size(), t.max_id()), (Some(1), Some(2), true, 512, 511));
        assert_eq!(t.encode("a</s>", Special::Parsed).unwrap(), [261, 2]);
        assert!(!t.encode("a</s>", Special::Plain).unwrap().contains(&2));
    }
    assert_eq!(check_round_trip(&json, &model), None);
    assert_eq!(check_round_trip(&json, &gguf), None);
}

#[test]
fn an_added_token_beyond_the_model_is_known_by_its_id() {
    let Some(bytes) = file("stories260K", "tokenizer.json") else { return };
    let mut json: Value = serde_json::from_slice(&bytes).unwrap();
    let pad = r#"{"id":512,"content":"<pad>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}"#;
    json["added_tokens"].as_array_mut().unwrap().push(serde_json::from_str(pad).unwrap());
    let t = Tokenizer::from_json(&serde_json::to_vec(&json).unwrap(), &settings("stories260K")).unwrap();
    assert_eq!((t.max_id(), t.vocab_size(), t.token_to_id("<pad>")), (512, 513, Some(512)));
    assert_eq!(t.encode("<pad>", Special::ParsedWithBos).unwrap(), [1, 512]);
    assert_eq!((t.piece(512), t.decode(&[512])), ("<pad>".to_owned(), String::new()));
}

#[test]
fn a_vocabulary_with_holes_keeps_its_last_tokens() {
    for model in [
        serde_json::json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "b": 3, "ab": 9}, "merges": [["a", "b"]]}),
        serde_json::json!({"type": "WordLevel", "vocab": {"a": 0, "b": 3, "ab": 9}, "unk_token": "a"}),
    ] {
        let json = serde_json::json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model});
        let settings = Settings::default();
        let t = Tokenizer::from_json(json.to_string().as_bytes(), &settings).unwrap();
        assert_eq!(t.encode("ab", Special::Plain).unwrap(), [9]);
        let again = Tokenizer::from_json(&t.to_json().unwrap(), &settings).unwrap();
        assert_eq!((again.vocab_size(), again.max_id(), again.token_to_id("ab")), (3, 9, Some(9)));
        assert_eq!(again.encode("ab", Special::Plain).unwrap(), [9]);
    }
}

#[test]
fn a_bpe_without_words_gives_its_ids_on_short_and_long_texts() {
    let Some(t) = tokenizer("TinyStories-656K") else { return };
    let Some(cases) = cases("TinyStories-656K") else { return };
    for (text, want) in &cases {
        assert_eq!(&t.encode(text, Special::PlainWithBos).unwrap(), want, "{text:?}");
    }
    let written = Tokenizer::from_json(&t.to_json().unwrap(), &settings("TinyStories-656K")).unwrap();
    assert_eq!(check_round_trip(&t, &written), None);
    let Some(long) = shared("data/tinystories/valid.txt") else { return };
    let long = std::fs::read_to_string(long).unwrap();
    let started = Instant::now();
    let ids = t.encode(&long, Special::Parsed).unwrap();
    println!("TinyStories-656K: {} bytes, {} ids in {:.2?}", long.len(), ids.len(), started.elapsed());
    assert!(ids.len() > 300_000);
}

#[test]
fn a_vocabulary_for_gguf_is_tried_before_it_is_trusted() {
    let Some(stories) = tokenizer("stories260K") else { return };
    let v = stories.to_gguf().unwrap();
    assert_eq!((v.model.as_str(), v.add_space_prefix, v.add_bos, v.bos), ("llama", Some(true), Some(true), Some(1)));
    assert_eq!(check_round_trip(&stories, &Tokenizer::from_gguf(&v).unwrap()), None);

    let Some(demo) = tokenizer("fewbit-demo-4m") else { return };
    let v = demo.to_gguf().unwrap();
    assert_eq!((v.model.as_str(), v.pre.as_deref()), ("gpt2", Some("gpt-2")));
    assert_eq!(check_round_trip(&demo, &Tokenizer::from_gguf(&v).unwrap()), None);

    // Its merges cross words and its vocabulary holds pieces that no merge makes: scores may say something else.
    let Some(tiny) = tokenizer("TinyStories-656K") else { return };
    let differs = check_round_trip(&tiny, &Tokenizer::from_gguf(&tiny.to_gguf().unwrap()).unwrap());
    println!("TinyStories-656K as GGUF: the first text that differs is {differs:?}");
}

#[test]
fn the_demo_model_has_byte_level_words() {
    let Some(t) = tokenizer("fewbit-demo-4m") else { return };
    assert_eq!((t.bos(), t.eos(), t.adds_bos()), (Some(0), Some(1), true));
    let text = "<|user|>Hello,  wörld 😀\n<|assistant|>";
    let parsed = t.encode(text, Special::Parsed).unwrap();
    assert_eq!((parsed.first(), parsed.last()), (Some(&2), Some(&3)));
    assert_eq!(t.decode(&parsed), "Hello,  wörld 😀\n");
    assert_eq!(t.decode(&t.encode(text, Special::PlainWithBos).unwrap()), text);
    let Some(long) = shared("data/calibration/wiki.utf8") else { return };
    let long = std::fs::read_to_string(long).unwrap();
    let started = Instant::now();
    let ids = t.encode(&long, Special::Plain).unwrap();
    println!("demo model: {} bytes, {} ids in {:.2?}", long.len(), ids.len(), started.elapsed());
    assert!(t.decode(&ids) == long);
}

/// The greedy answer of stories260K to `Once upon a time`, as its weights give it.
const ANSWER: [u32; 40] = [
    432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396, 267, 337, 410, 408, 419, 292, 411, 322, 265,
    282, 295, 433, 426, 385, 328, 432, 358, 394, 261, 370, 432, 352, 266, 268, 388, 426,
];

#[test]
fn a_stream_is_the_whole_text_and_keeps_its_spaces() {
    let Some(t) = tokenizer("stories260K") else { return };
    let prompt = t.encode("Once upon a time", Special::PlainWithBos).unwrap();
    let whole = ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball.";
    assert_eq!(t.decode_after(&prompt, &ANSWER), whole);
    let mut stream = t.stream(&prompt);
    let mut chunks: Vec<String> = ANSWER.iter().filter_map(|&id| stream.push(id)).collect();
    chunks.extend(stream.finish());
    assert_eq!(chunks.concat(), whole);

    let prompt = t.encode("Once upon a", Special::PlainWithBos).unwrap();
    let mut stream = t.stream(&prompt);
    assert_eq!(stream.push(378).as_deref(), Some(" time"));

    let mut stream = t.stream(&[]);
    assert_eq!(stream.push(1), None);
    assert_eq!(stream.push(403).as_deref(), Some("Once"));
    assert_eq!(stream.push(407).as_deref(), Some(" upon"));

    let indented = "    if x:";
    assert_eq!(t.decode(&t.encode(indented, Special::PlainWithBos).unwrap()), indented);
}

#[test]
fn a_character_over_several_tokens_comes_whole() {
    let Some(t) = tokenizer("stories260K") else { return };
    let byte = |b: u8| t.token_to_id(&format!("<0x{b:02X}>")).unwrap();
    let smile: Vec<u32> = "😀".bytes().map(byte).collect();
    let answer: Vec<u32> = smile.iter().cycle().take(12).copied().collect();
    let prompt = t.encode("Once", Special::PlainWithBos).unwrap();
    for n in [1, 2, 3, 4, 5, 12] {
        let mut stream = t.stream(&prompt);
        let mut chunks: Vec<String> = answer[..n].iter().filter_map(|&id| stream.push(id)).collect();
        assert!(chunks.iter().all(|c| c == "😀"), "{chunks:?}");
        assert_eq!(chunks.len(), n / 4);
        chunks.extend(stream.finish());
        assert_eq!(chunks.concat(), t.decode_after(&prompt, &answer[..n]));
    }
    // What can no longer become a character does not hold back what follows.
    let mut stream = t.stream(&prompt);
    assert_eq!(stream.push(byte(0xF0)), None);
    assert_eq!(stream.push(378).as_deref(), Some("\u{FFFD} time"));
    assert_eq!(stream.push(byte(0xFF)).as_deref(), Some("\u{FFFD}"));
}

#[test]
fn stop_strings_end_a_stream_and_leak_nothing() {
    let Some(t) = tokenizer("stories260K") else { return };
    let prompt = t.encode("Once upon a time", Special::PlainWithBos).unwrap();
    let whole = t.decode_after(&prompt, &ANSWER);
    let cases = [
        ("girl named Li", ", there was a little "),
        ("e", ", th"),
        ("ved", ", there was a little girl named Lily. She lo"),
        ("Lily. She loathed", whole.as_str()),
    ];
    for (stop, want) in cases {
        let (mut stream, mut stops) = (t.stream(&prompt), StopStrings::new([stop]));
        let mut out = String::new();
        let mut stopped = false;
        for id in ANSWER {
            match stream.push(id).map(|chunk| stops.push(&chunk)) {
                Some(Stopped::No(text)) => out += &text,
                Some(Stopped::Yes(text)) => {
                    out += &text;
                    stopped = true;
                    break;
                }
                None => {}
            }
        }
        out += &stops.finish();
        assert_eq!((out.as_str(), stopped), (want, want != whole), "{stop}");
    }
}

#[test]
fn a_long_stream_costs_the_same_for_every_token() {
    let Some(t) = tokenizer("stories260K") else { return };
    let mut stream = t.stream(&[]);
    let started = Instant::now();
    let text: usize = ANSWER.iter().cycle().take(400_000).filter_map(|&id| stream.push(id)).map(|c| c.len()).sum();
    println!("400,000 tokens, {text} bytes streamed in {:.2?}", started.elapsed());
    assert!(started.elapsed().as_secs() < 5);
}

#[test]
fn damaged_tokenizers_are_refused() {
    let Some(bytes) = file("stories260K", "tokenizer.json") else { return };
    let text = String::from_utf8(bytes).unwrap();
    for bad in [
        String::new(),
        "{}".to_owned(),
        text[..text.len() / 2].to_owned(),
        "[".repeat(200_000),
        text.replace("\"unk_token\": \"<unk>\"", "\"unk_token\": 7"),
        text.replacen("\"▁the\"", "\"▁thx\"", 1),
    ] {
        let e = Tokenizer::from_json(bad.as_bytes(), &Settings::default()).err().map(|e| e.to_string());
        let e = e.unwrap_or_else(|| panic!("accepted: {bad:.80}"));
        assert!(e.ends_with("re-download it, or convert the model's tokenizer again"), "{e}");
    }
}
