//! The whole program on a real chat model: SmolLM2-135M-Instruct, fetched by `tools/fetch-models.sh`.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use fewbit_format::hex;
use fewbit_store::Gguf;
use sha2::{Digest, Sha256};

/// llama.cpp and a float64 forward of the same file agree on these eight tokens, and on no more.
const PROMPT: &str = "The lighthouse keeper climbed the narrow stairs every evening, and from the top he could see the \
    whole bay. In 1987, after thirty-two years of service,";
const IDS: [u64; 8] = [384, 436, 5375, 281, 253, 34376, 936, 30];
const TEXT: &str = " he was killed in a shipwreck.";

fn model() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/fewbit/models"));
    let folder = std::env::var_os("FEWBIT_MODELS").map(PathBuf::from).or_else(home)?;
    Some(folder.join("SmolLM2-135M-Instruct.Q4_1.gguf")).filter(|p| p.exists())
}

fn fewbit(arguments: &[&str]) -> serde_json::Value {
    let out = Command::new(env!("CARGO_BIN_EXE_fewbit")).args(arguments).arg("--json").output().unwrap();
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn continues(model: &Path) {
    let path = model.to_str().unwrap();
    let made = fewbit(&["run", path, "--raw", "--prompt", PROMPT, "--max-tokens", "8", "--temperature", "0"]);
    assert_eq!(made["ids"].as_array().unwrap(), &IDS.map(serde_json::Value::from));
    assert_eq!((made["text"].as_str(), made["finish_reason"].as_str()), (Some(TEXT), Some("length")));
}

#[test]
#[ignore = "needs the model of tools/fetch-models.sh; .ci/run fetches it"]
fn reads_quantizes_and_continues_as_other_programs_do() {
    let Some(model) = model() else {
        eprintln!("skipped: SmolLM2 is not there; run tools/fetch-models.sh");
        return;
    };
    continues(&model);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("w8");
    let (from, to) = (model.to_str().unwrap(), out.to_str().unwrap());
    let report =
        fewbit(&["quantize", from, "--recipe", "rtn", "--bits", "8", "--group", "32", "--requantize", "--out", to]);
    assert!(report["bits_per_weight"].as_f64().unwrap() < 8.8, "{report}");
    continues(&out);
    let ids = |model: &str| fewbit(&["tokenize", model, "Zwölf Boxkämpfer 🦊\n\tfn main() {}"])["ids"].clone();
    assert_eq!(ids(from), ids(to));
}

/// Rows of 576 and 1536: embedding, queries, keys and half of the MLP fall back to smaller blocks.
#[test]
#[ignore = "needs the model of tools/fetch-models.sh; .ci/run fetches it"]
fn mixes_have_the_bytes_of_llama_cpp() {
    let known =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance/gguf/models/smollm2-requantized.json");
    let (Some(model), Ok(known)) = (model(), std::fs::read(known)) else {
        eprintln!("skipped: SmolLM2, or what llama.cpp made of it, is not there");
        return;
    };
    let known: serde_json::Value = serde_json::from_slice(&known).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for mix in ["Q4_0", "Q4_K_M", "Q6_K", "Q8_0", "IQ4_XS", "Q3_K_M", "Q2_K"] {
        let out = folder.path().join(format!("{mix}.gguf"));
        let (from, kind) = (model.to_str().unwrap(), format!("grid.type={mix}"));
        fewbit(&["quantize", from, "--recipe", "gguf", "--set", &kind, "--requantize", "--out", out.to_str().unwrap()]);
        let (gguf, expected) = (Gguf::open(&out).unwrap(), known["mixes"][mix]["tensors"].as_object().unwrap());
        assert_eq!(gguf.tensors().len(), expected.len());
        for tensor in gguf.tensors() {
            let hash = &hex(&Sha256::digest(gguf.bytes(tensor)))[..16];
            let found = serde_json::json!([tensor.elements.name(), hash]);
            assert_eq!(found, expected[&tensor.name], "{mix}: {}", tensor.name);
        }
        std::fs::remove_file(&out).unwrap();
    }
}
