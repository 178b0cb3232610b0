//! `fewbit eval`.

use std::fs;
use std::path::Path;

use crate::{Ran, command, fewbit};

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/evaluation.txt");
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo-model");

#[test]
fn the_keys_are_there_and_a_model_equals_itself() {
    let args = ["eval", "demo", "--text", TEXT, "--length", "64", "--blocks", "3", "--json"];
    // A cache of its own: another run's is not empty.
    let cache = tempfile::tempdir().unwrap();
    let run = |more: &[&str]| Ran::of(command(&[&args[..], more].concat()).env("XDG_CACHE_HOME", cache.path())).good();
    let alone = run(&[]);
    for key in ["kl_mean", "kl_mean_ci95", "kl_p99", "top1_agreement"] {
        assert!(alone[key].is_null(), "{key}: {alone}");
    }
    let beside = run(&["--against", DEMO]);
    let again = run(&["--against", DEMO, "--threads", "1"]);
    for key in ["tokens", "nll", "perplexity", "perplexity_ci95", "bits_per_byte", "bits_per_weight", "size_bytes"] {
        assert!(!alone[key].is_null(), "{key}: {alone}");
        assert_eq!(beside[key], alone[key], "{key}");
        assert_eq!(again[key], alone[key], "{key}");
    }
    assert_eq!(alone["bits_per_weight"], 16.0);
    assert!(alone["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!((beside["kl_mean"].as_f64(), beside["top1_agreement"].as_f64()), (Some(0.0), Some(1.0)));
    // The second time the original's log-probabilities come from the cache.
    assert!(again["kl_mean"].as_f64().unwrap() < 2e-6);
    assert_eq!(again["original_perplexity"], alone["perplexity"]);
}

#[test]
fn the_protocol_stands_beside_the_number() {
    for (protocol, words) in
        [("blocks", "every token scored"), ("strided", "one every 32"), ("llamacpp", "the last 31")]
    {
        let args = ["eval", "demo", "--text", TEXT, "--length", "64", "--blocks", "2", "--protocol", protocol];
        let ran = fewbit(&args);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert!(ran.stdout.contains(protocol) && ran.stdout.contains(words), "{}", ran.stdout);
    }
}

#[test]
fn the_row_goes_into_the_card() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(DEMO).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let model = dir.path().to_str().unwrap();
    let args =
        ["eval", model, "--against", "demo", "--text", TEXT, "--length", "64", "--blocks", "2", "--card", "--json"];
    for _ in 0..2 {
        fewbit(&args).good();
        let card = fs::read_to_string(dir.path().join("README.md")).unwrap();
        assert_eq!(card.matches("| evaluation.txt | blocks | 64 | 126 |").count(), 1, "{card}");
        assert!(card.starts_with(&fs::read_to_string(Path::new(DEMO).join("README.md")).unwrap()), "{card}");
    }
    fewbit(&["eval", "demo", "--against", "demo", "--text", TEXT, "--card"]).refused(&["no card"]);
}

#[test]
fn texts_that_cannot_be_scored_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, words) in [
        ("empty.txt", &b""[..], "0 tokens"),
        ("blank.txt", b"\n\n  \n", "0 tokens"),
        ("latin1.txt", b"Il \xe9tait", "byte 0xE9 at offset 3"),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        fewbit(&["eval", "demo", "--text", path.to_str().unwrap()]).refused(&[name, words]);
    }
    fewbit(&["eval", "demo", "--text", TEXT, "--length", "100000"]).refused(&["context", "--length"]);
}
