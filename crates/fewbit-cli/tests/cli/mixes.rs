//! GGUF files by llama.cpp's mixes: `--recipe gguf`, importance matrices, GPTQ into blocks.

use std::path::{Path, PathBuf};

use fewbit_store::{Gguf, ImportanceMatrix};
use serde_json::Value;
use tempfile::TempDir;

use crate::{fewbit, shared};

/// Types and bytes of all tensors.
fn tensors(path: &Path) -> Vec<(String, &'static str, Vec<u8>)> {
    let gguf = Gguf::open(path).unwrap();
    let mut all: Vec<_> =
        gguf.tensors().iter().map(|t| (t.name.clone(), t.elements.name(), gguf.bytes(t).to_vec())).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[track_caller]
fn assert_same(ours: &Path, theirs: &Path) {
    let (ours, theirs) = (tensors(ours), tensors(theirs));
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(&theirs) {
        assert_eq!((&a.0, a.1), (&b.0, b.1));
        assert!(a.2 == b.2, "{} has other bytes", a.0);
    }
}

fn quantize(dir: &TempDir, model: &str, name: &str, more: &[&str]) -> PathBuf {
    let out = dir.path().join(name);
    fewbit(&[&["quantize", model, "--out", out.to_str().unwrap(), "--json"], more].concat()).good();
    out
}

/// Files that llama.cpp's quantizer wrote from the same numbers.
#[test]
fn files_have_the_bytes_of_llama_cpp() {
    let Some(folder) = shared("conformance/gguf/tiny") else { return };
    let dir = tempfile::tempdir().unwrap();
    let source = folder.join("tiny-f16-00001-of-00002.gguf");
    let imatrix = folder.join("../imatrix/tiny.imatrix.gguf");
    let matrices = [None, Some(imatrix.clone()), Some(imatrix.with_extension("dat"))];
    let cases = [("Q4_0", 0), ("Q4_K_M", 0), ("Q6_K", 0), ("IQ4_XS", 1), ("iq4_xs", 2)];
    for (i, (mix, matrix)) in cases.into_iter().enumerate() {
        let kind = format!("grid.type={mix}");
        let mut options = vec!["--recipe", "gguf", "--set", &kind];
        if let Some(path) = &matrices[matrix] {
            options.extend(["--stats", path.to_str().unwrap()]);
        }
        let out = quantize(&dir, source.to_str().unwrap(), &format!("{i}.gguf"), &options);
        assert_same(&out, &folder.join(format!("tiny-{}.gguf", mix.to_lowercase())));
    }
}

#[test]
fn an_importance_matrix_is_what_text_shows() {
    let dir = tempfile::tempdir().unwrap();
    let text = ["--samples", "8", "--length", "64"];
    let matrix = |name: &str| -> String {
        let path = dir.path().join(name).to_str().unwrap().to_owned();
        let made = fewbit(&[&["calibrate", "demo", "--out", &path, "--json"], &text[..]].concat()).good();
        assert_eq!((made["tensors"].as_u64(), made["tokens"].as_u64()), (Some(28), Some(512)));
        path
    };
    let [gguf, dat] = ["m.gguf", "m.dat"].map(matrix);
    let kind = ["--recipe", "gguf", "--set", "grid.type=IQ2_XS"];
    let by = |path: &str, name: &str| quantize(&dir, "demo", name, &[&kind[..], &["--stats", path]].concat());
    let (a, b) = (by(&gguf, "a.gguf"), by(&dat, "b.gguf"));
    let measured =
        quantize(&dir, "demo", "c.gguf", &[&kind[..], &["--set", "grid.importance=input"], &text[..]].concat());
    // Each block is measured after the blocks before it are rounded: only the first has the original's inputs.
    let in_first = |path: &Path| -> Vec<_> {
        tensors(path)
            .into_iter()
            .filter(|t| t.0.starts_with("blk.0.attn_q") || t.0.starts_with("blk.0.attn_k"))
            .collect()
    };
    assert_eq!(in_first(&a), in_first(&measured));
    assert_eq!(tensors(&a).len(), tensors(&b).len());
    let again = fewbit(&["calibrate", "demo", "--out", &gguf]);
    again.refused(&["exists already", "m.gguf"]);
    assert!(!dir.path().join("m.gguf.partial").exists());
}

/// Divergence from the original.
fn kl(model: &Path, text: &Path) -> f64 {
    let args = ["eval", model.to_str().unwrap(), "--against", "demo", "--text", text.to_str().unwrap(), "--json"];
    fewbit(&args).good()["kl_mean"].as_f64().unwrap()
}

#[test]
fn gptq_gets_nearer_to_the_original_in_the_same_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "Once upon a time there was a small dog who liked to run in the garden. ".repeat(30))
        .unwrap();
    for mix in ["Q2_K", "Q4_K_M", "IQ2_XS"] {
        let kind = format!("grid.type={mix}");
        let calibration = ["--samples", "48", "--length", "128", "--set", "grid.importance=input"];
        let with = |recipe: &str| {
            let options = [&["--recipe", recipe, "--set", &kind][..], &calibration].concat();
            quantize(&dir, "demo", &format!("{recipe}-{mix}.gguf"), &options)
        };
        let (nearest, gptq) = (with("gguf"), with("gguf-gptq"));
        let types = |path: &Path| tensors(path).into_iter().map(|t| (t.0, t.1)).collect::<Vec<_>>();
        assert_eq!(types(&nearest), types(&gptq));
        let (nearest, gptq) = (kl(&nearest, &text), kl(&gptq, &text));
        assert!(gptq < 0.8 * nearest, "{mix}: {gptq} for {nearest}");
    }
}

#[test]
fn a_file_says_which_mix_it_is_of() {
    let dir = tempfile::tempdir().unwrap();
    let number = |path: &Path| Gguf::open(path).unwrap().u64("general.file_type").unwrap();
    for (mix, wanted) in [("Q2_K", 10), ("Q3_K_S", 11), ("Q3_K_L", 13), ("Q4_K_S", 14), ("Q4_K_M", 15)] {
        let out = quantize(&dir, "demo", mix, &["--recipe", "gguf", "--set", &format!("grid.type={mix}")]);
        assert_eq!(number(&out.join("model.gguf")), Some(wanted), "{mix}");
    }
    // Others are of the type that most weights have; a copy stays what it was.
    let plain = quantize(&dir, "demo", "q.gguf", &["--recipe", "gguf", "--set", "grid.type=Q3_K"]);
    assert_eq!(number(&plain), Some(12));
    let (from, copy) = (dir.path().join("Q3_K_L/model.gguf"), dir.path().join("copy.gguf"));
    fewbit(&["convert", from.to_str().unwrap(), copy.to_str().unwrap(), "--format", "gguf", "--json"]).good();
    assert_eq!(number(&copy), Some(13));
}

/// A model of two blocks with eight experts.
fn experts(dir: &TempDir, shape: &str) -> String {
    let path = dir.path().join(shape).display().to_string();
    let sizes = ["--layers", "2", "--hidden", "256", "--mlp", "256", "--heads", "4", "--kv-heads", "2"];
    let made = fewbit(&[&["make-model", &path, "--shape", shape, "--experts", "8"], &sizes[..]].concat());
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    path
}

#[test]
fn experts_are_rounded_into_one_tensor() {
    let dir = tempfile::tempdir().unwrap();
    for (shape, values, output) in [("mixtral", "Q8_0", "Q5_K"), ("qwen3-moe", "Q8_0", "Q5_K")] {
        let model = experts(&dir, shape);
        let kind = ["--recipe", "gguf", "--set", "grid.type=Q4_K_M"];
        let gguf = quantize(&dir, &model, &format!("{shape}.gguf"), &kind);
        let file = Gguf::open(&gguf).unwrap();
        let tensor = |name: &str| {
            let t = file.tensors().iter().find(|t| t.name == name).unwrap();
            (t.elements.name(), t.shape.clone())
        };
        assert_eq!(tensor("blk.0.ffn_gate_exps.weight"), ("Q4_K", vec![8, 256, 256]));
        assert_eq!(tensor("blk.1.ffn_down_exps.weight"), ("Q6_K", vec![8, 256, 256]));
        assert_eq!(tensor("blk.1.attn_v.weight").0, values);
        assert_eq!(tensor("blk.1.attn_output.weight").0, output);
        assert_eq!(tensor("blk.1.ffn_gate_inp.weight"), ("F32", vec![8, 256]));
        // Each expert runs on its blocks as it does on its own module's.
        let own = quantize(&dir, &model, &format!("{shape}-own"), &[&kind[..], &["--format", "fewbit"]].concat());
        let logits = |model: &Path| -> Value {
            let model = model.to_str().unwrap();
            let args = ["logits", model, "--prompt", "Once upon", "--arithmetic", "weights-only", "--json"];
            fewbit(&args).good()["logits"].clone()
        };
        assert_eq!(logits(&gguf), logits(&own), "{shape}");
        // A GGUF file is a model like any other: each expert's matrix is one of a folder.
        let again = dir.path().join(format!("{shape}-again"));
        let args = ["convert", gguf.to_str().unwrap(), again.to_str().unwrap(), "--format", "fewbit", "--json"];
        fewbit(&args).good();
        assert_eq!(logits(&gguf), logits(&again), "{shape}");
    }
}

#[test]
fn each_expert_has_its_own_importances() {
    let dir = tempfile::tempdir().unwrap();
    let model = experts(&dir, "mixtral");
    let text = ["--samples", "4", "--length", "64"];
    let [gguf, dat] = ["m.gguf", "m.dat"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    for path in [&gguf, &dat] {
        let made = fewbit(&[&["calibrate", &model, "--out", path, "--json"], &text[..]].concat()).good();
        // q, k, v, the output and the router; gate, up and down of all experts.
        assert_eq!(made["tensors"].as_u64(), Some(2 * 8));
    }
    let matrix = ImportanceMatrix::open(Path::new(&gguf)).unwrap();
    let down = &matrix.entries["blk.1.ffn_down_exps.weight"];
    assert_eq!((down.counts.len(), down.sums.len()), (8, 8 * 256));
    assert_eq!(down.counts.iter().sum::<f32>(), 4.0 * 64.0 * 2.0);
    let kind = ["--recipe", "gguf", "--set", "grid.type=IQ2_XS", "--stats"];
    let [by_gguf, by_dat] = [(&gguf, "a.gguf"), (&dat, "b.gguf")]
        .map(|(matrix, name)| tensors(&quantize(&dir, &model, name, &[&kind[..], &[matrix]].concat())));
    assert_eq!(by_gguf.iter().map(|t| t.1).collect::<Vec<_>>(), by_dat.iter().map(|t| t.1).collect::<Vec<_>>());
    // Weights that count otherwise are rounded otherwise.
    let even = quantize(&dir, &model, "c.gguf", &["--recipe", "gguf", "--set", "grid.type=Q4_K_M"]);
    let uneven = ["--recipe", "gguf", "--set", "grid.type=Q4_K_M", "--stats", &gguf];
    let uneven = quantize(&dir, &model, "d.gguf", &uneven);
    let down = |path: &Path| tensors(path).into_iter().find(|t| t.0 == "blk.1.ffn_down_exps.weight").unwrap();
    assert_ne!(down(&even).2, down(&uneven).2);
    // Of another number of experts.
    let other = dir.path().join("other").display().to_string();
    let sizes = ["--layers", "2", "--hidden", "256", "--mlp", "256", "--heads", "4", "--kv-heads", "2"];
    let made = fewbit(&[&["make-model", &other, "--shape", "mixtral", "--experts", "4"], &sizes[..]].concat());
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let out = dir.path().join("e.gguf").display().to_string();
    fewbit(&[&["quantize", &other, "--out", &out], &kind[..], &[&gguf]].concat()).refused(&[
        "ffn_gate_exps",
        "2048 importances",
        "256 columns for each of 4 experts",
    ]);
}

#[test]
fn mixes_go_into_our_own_layout_too() {
    let dir = tempfile::tempdir().unwrap();
    let kind = ["--recipe", "gguf", "--set", "grid.type=Q4_K_M"];
    let gguf = quantize(&dir, "demo", "m.gguf", &kind);
    let own = quantize(&dir, "demo", "own", &[&kind[..], &["--format", "fewbit"]].concat());
    let logits = |model: &Path| -> Value {
        let model = model.to_str().unwrap();
        fewbit(&["logits", model, "--prompt", "Once upon", "--arithmetic", "weights-only", "--json"]).good()["logits"]
            .clone()
    };
    assert_eq!(logits(&gguf), logits(&own));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m.gguf").to_str().unwrap().to_owned();
    let refused = |more: &[&str], words: &[&str]| {
        fewbit(&[&["quantize", "demo", "--out", &out], more].concat()).refused(words);
    };
    refused(&["--recipe", "gguf", "--set", "grid.type=Q4_K_X"], &["`Q4_K_X`", "neither a mix", "Q4_K_M"]);
    refused(&["--recipe", "gguf", "--set", "grid.type=IQ2_XS"], &["IQ2_XS", "importances", "--stats"]);
    let nothing = dir.path().join("nothing.gguf").to_str().unwrap().to_owned();
    refused(&["--recipe", "gguf", "--stats", &nothing], &["nothing.gguf"]);
    refused(&["--recipe", "gguf", "--stats", &nothing, "--dry-run"], &["nothing.gguf"]);
    let matrix = dir.path().join("m.imatrix").to_str().unwrap().to_owned();
    fewbit(&["calibrate", "demo", "--out", &matrix, "--length", "100000"]).refused(&["--length 100000", "context"]);
    assert!(!dir.path().join("m.imatrix.partial").exists());
    std::fs::write(&nothing, b"not an importance matrix at all").unwrap();
    refused(&["--recipe", "gguf", "--stats", &nothing], &["nothing.gguf", "neither a GGUF file"]);
    if let Some(folder) = shared("conformance/gguf/imatrix") {
        let other = folder.join("tiny.imatrix.gguf").to_str().unwrap().to_owned();
        refused(&["--recipe", "gguf", "--stats", &other], &["importance", "made with this model"]);
        refused(&["--recipe", "rtn", "--stats", &other], &["importance"]);
    }
    assert!(!Path::new(&out).exists());
}

#[test]
fn tensors_of_other_types_than_the_mix_has_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("narrow").display().to_string();
    let sizes = ["--layers", "2", "--hidden", "192", "--mlp", "512", "--heads", "4", "--kv-heads", "2"];
    let made = fewbit(&[&["make-model", &path, "--shape", "tinyllama-1.1b"], &sizes[..]].concat());
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let plan = |model: &str| {
        let args = ["quantize", model, "--recipe", "gguf", "--dry-run", "--json", "--out"];
        fewbit(&[&args[..], &[&*format!("{path}.gguf")]].concat()).good()["notes"].to_string()
    };
    // All but the two that read the MLP; values and the second down projection would have more bits.
    let notes = plan(&path);
    assert!(notes.contains("rows that the mix's blocks do not divide: "), "{notes}");
    assert!(notes.contains("Q5_0 for Q4_K"), "{notes}");
    assert!(!plan("demo").contains("do not divide"));
}
