//! Hugging Face folders: which file counts, what is refused and how it is said.
#![expect(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::path::Path;

use fewbit_format::{Dtype, Storage, Tensor};
use fewbit_store::{Checkpoint, ModelFile, Safetensors};
use proptest::prelude::*;
use tempfile::TempDir;

/// Writes a safetensors file of one-dimensional f32 tensors.
fn weights(dir: &Path, name: &str, tensors: &[(&str, &[f32])]) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (tensor, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        header.insert(
            (*tensor).into(),
            serde_json::json!({"dtype": "F32", "shape": [values.len()], "data_offsets": [start, data.len()]}),
        );
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    std::fs::write(dir.join(name), file).unwrap();
}

fn index(dir: &Path, places: &[(&str, &str)]) {
    let map: BTreeMap<_, _> = places.iter().copied().collect();
    let text = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    std::fs::write(dir.join("model.safetensors.index.json"), text).unwrap();
}

fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    dir
}

fn refusal(dir: &Path) -> String {
    Checkpoint::open(dir).unwrap_err().to_string()
}

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

#[test]
fn the_index_decides_for_each_tensor() {
    let dir = folder();
    weights(dir.path(), SHARDS[0], &[("a", &[1.0]), ("b", &[9.0]), ("extra", &[3.0])]);
    weights(dir.path(), SHARDS[1], &[("b", &[2.0])]);
    index(dir.path(), &[("a", SHARDS[0]), ("b", SHARDS[1]), ("c", SHARDS[1])]);
    let open = |path: &Path| Checkpoint::open(path).unwrap();
    for checkpoint in [open(dir.path()), open(&dir.path().join(SHARDS[0])), open(&dir.path().join(SHARDS[1]))] {
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "extra"]);
        assert_eq!(checkpoint.tensor("b").unwrap().to_f32().unwrap(), [2.0]);
        assert_eq!(checkpoint.file_of("b").unwrap().file_name().unwrap(), SHARDS[1]);
        assert!(!checkpoint.contains("c"), "what is in no file is not there");
        let e = checkpoint.tensor("c").unwrap_err().to_string();
        assert!(e.contains(SHARDS[1]) && e.contains("tensor `c`: the index says that it lies here"), "{e}");
        let e = checkpoint.shape("d").unwrap_err().to_string();
        assert!(e.contains("tensor `d`: is missing; download"), "{e}");
        assert_eq!(checkpoint.size_bytes(), 12);
    }
}

#[test]
fn faults_of_the_index() {
    let dir = folder();
    weights(dir.path(), SHARDS[0], &[("a", &[1.0])]);
    index(dir.path(), &[("a", SHARDS[0]), ("b", SHARDS[1])]);
    assert!(refusal(dir.path()).contains(&format!("names the file `{}`, which is missing", SHARDS[1])));
    for outside in ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""] {
        index(dir.path(), &[("a", outside)]);
        assert!(refusal(dir.path()).contains("which does not lie beside it"), "{outside}");
    }
    weights(dir.path(), SHARDS[1], &[("a", &[1.0]), ("x", &[1.0])]);
    index(dir.path(), &[("x", SHARDS[1]), ("y", SHARDS[0])]);
    let e = refusal(dir.path());
    assert!(e.contains("tensor `a`: lies in") && e.contains("no index decides"), "{e}");
    std::fs::write(dir.path().join("model.safetensors.index.json"), "{}").unwrap();
    assert!(refusal(dir.path()).contains("missing field `weight_map`"));
}

/// Caches of downloads are links to files elsewhere; a link is as good as what it leads to.
#[cfg(unix)]
#[test]
fn shards_that_are_links() {
    use std::os::unix::fs::symlink;
    let (dir, elsewhere) = (folder(), tempfile::tempdir().unwrap());
    weights(elsewhere.path(), "blob", &[("a", &[1.0])]);
    let shard = dir.path().join(SHARDS[0]);
    index(dir.path(), &[("a", SHARDS[0])]);
    let link = |to: &Path| {
        let _ = std::fs::remove_file(&shard);
        symlink(to, &shard).unwrap();
        Checkpoint::open(dir.path()).map(|c| c.names().count()).map_err(|e| e.to_string())
    };
    assert_eq!(link(&elsewhere.path().join("blob")), Ok(1));
    for (to, wanted) in [
        (Path::new("/dev/zero"), "is no regular file"),
        (elsewhere.path(), "is no regular file"),
        (Path::new("/nowhere/at/all"), "is a link to `/nowhere/at/all`, which is gone"),
        (&shard, "which leads nowhere"),
        (&dir.path().join("config.json"), "says that its header takes"),
    ] {
        let e = link(to).unwrap_err();
        assert!(e.contains(wanted), "{}: {e}", to.display());
    }
}

/// A pickle is named and never opened: here it leads nowhere, which a reader would say.
#[cfg(unix)]
#[test]
fn pickles_are_never_read() {
    let dir = folder();
    for name in ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"] {
        std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("pytorch_model.bin.index.json"), "{}").unwrap();
    let e = refusal(dir.path());
    assert!(e.contains("pickle, which can run any program") && e.contains("save_pretrained"), "{e}");
    index(dir.path(), &[("a", "pytorch_model.bin")]);
    let e = refusal(dir.path());
    assert!(
        e.contains("names the file `pytorch_model.bin`, which is no safetensors file; save the model again"),
        "{e}"
    );
}

#[test]
fn metadata_without_end_is_passed_over_or_refused() {
    let dir = folder();
    for (header, is_sound) in [
        (format!("{{\"__metadata__\":{}1{}}}", "[".repeat(200_000), "]".repeat(200_000)), true),
        (format!("{{\"__metadata__\":{}", "{\"a\":".repeat(200_000)), false),
        (format!("{{\"w\":{}", "[".repeat(200_000)), false),
    ] {
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        match Checkpoint::open(dir.path()) {
            Ok(_) => assert!(is_sound),
            Err(e) => assert!(e.to_string().contains("header: "), "{e}"),
        }
    }
}

#[test]
fn faults_of_the_configuration() {
    let dir = folder();
    weights(dir.path(), "model.safetensors", &[("a", &[1.0])]);
    let config = dir.path().join("config.json");
    for (bytes, wanted) in [
        (b"{".to_vec(), "is not valid JSON: EOF"),
        (b"\xff\xfe{".to_vec(), "is not UTF-8 at byte 0"),
        (b"[".repeat(200_000), "recursion limit exceeded"),
        (b"{\"a\":".repeat(200_000), "recursion limit exceeded"),
    ] {
        std::fs::write(&config, bytes).unwrap();
        let e = refusal(dir.path());
        assert!(e.contains("config.json`: ") && e.contains(wanted), "{e}");
    }
    std::fs::remove_file(&config).unwrap();
    assert!(refusal(dir.path()).contains("holds no `config.json`"));
}

#[test]
fn the_first_value_that_is_not_finite_is_found() {
    let dir = folder();
    weights(dir.path(), "model.safetensors", &[("sound", &[1.0, -2.0]), ("bad", &[1.0, f32::INFINITY, f32::NAN])]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.non_finite("sound").unwrap(), None);
    assert_eq!(checkpoint.non_finite("bad").unwrap(), Some((vec![1], f32::INFINITY)));
    checkpoint.drop_pages("bad");
    assert_eq!(checkpoint.tensor("bad").unwrap().to_f32().unwrap()[..2], [1.0, f32::INFINITY]);
    assert_eq!(checkpoint.storage("sound").unwrap().shape(), [1, 2], "a vector is a matrix of one row");
}

#[test]
fn files_beside_the_weights() {
    let dir = folder();
    weights(dir.path(), "model.safetensors", &[("a", &[1.0])]);
    for name in ["tokenizer.json", "LICENSE.md", "pytorch_model.bin"] {
        std::fs::write(dir.path().join(name), "{}").unwrap();
    }
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [1, 2]}"#).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.sidecar("tokenizer.json").unwrap(), dir.path().join("tokenizer.json"));
    assert_eq!(checkpoint.sidecar("chat_template.jinja"), None);
    assert_eq!(checkpoint.sidecar("../tokenizer.json"), None);
    assert_eq!(checkpoint.generation_config().unwrap()["eos_token_id"][1], 2);
    let names = checkpoint.sidecars().unwrap();
    let names: Vec<_> = names.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["LICENSE.md", "config.json", "generation_config.json", "tokenizer.json"]);
}

/// What the format's own crate writes is read, whatever the types and shapes.
#[test]
fn files_of_the_reference_implementation() {
    use safetensors::{Dtype as Reference, tensor::TensorView};
    let dir = folder();
    let bytes: Vec<u8> = (0..48).collect();
    let views = [
        ("w", TensorView::new(Reference::BF16, vec![4, 6], &bytes).unwrap()),
        ("f8", TensorView::new(Reference::F8_E4M3, vec![48], &bytes).unwrap()),
        ("empty", TensorView::new(Reference::F32, vec![0, 7], &[]).unwrap()),
        ("scalar", TensorView::new(Reference::I64, vec![], &bytes[..8]).unwrap()),
    ];
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let Storage::Dense(Tensor { dtype, shape, bytes: stored }) = checkpoint.storage("w").unwrap() else { panic!() };
    assert_eq!((dtype, &shape[..], &stored[..]), (Dtype::BF16, &[4, 6][..], &bytes[..]));
    assert_eq!(checkpoint.tensor("f8").unwrap().dtype, Dtype::F8E4M3);
    assert_eq!(checkpoint.tensor("scalar").unwrap().shape, [0; 0]);
    assert!(checkpoint.tensor("empty").unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn damaged_folders_never_panic(at: prop::sample::Index, byte: u8, file in 0usize..3, cut in any::<bool>()) {
        let dir = folder();
        weights(dir.path(), SHARDS[0], &[("a", &[1.0, 2.0])]);
        index(dir.path(), &[("a", SHARDS[0])]);
        let path = dir.path().join(["config.json", "model.safetensors.index.json", SHARDS[0]][file]);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if cut {
            bytes.truncate(at);
        }
        std::fs::write(&path, bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(dir.path()) {
            for name in checkpoint.names() {
                let _ = (checkpoint.tensor(name), checkpoint.storage(name).is_ok(), checkpoint.non_finite(name));
            }
        }
    }
}

/// DeepSeek-V3's files go on behind the last block with one that predicts the token after the next.
#[test]
fn blocks_that_predict_further_tokens_are_passed_over() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/families/deepseek_v3");
    let dir = tempfile::tempdir().unwrap();
    let shard = dir.path().join(SHARDS[0]);
    std::fs::copy(from.join("model.safetensors"), &shard).unwrap();
    let further = "model.layers.2.input_layernorm.weight";
    weights(dir.path(), SHARDS[1], &[(further, &[1.0])]);
    let shard = Safetensors::open(&shard).unwrap();
    let places: Vec<_> = shard.names().map(|n| (n, SHARDS[0])).chain([(further, SHARDS[1])]).collect();
    index(dir.path(), &places);
    let text = std::fs::read_to_string(from.join("config.json")).unwrap();
    let open = |further: usize| {
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["num_nextn_predict_layers"] = further.into();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        ModelFile::open(dir.path())
    };
    let notes = open(1).unwrap().notes().to_vec();
    assert!(matches!(&notes[..], [one] if one.contains("block 1, which predicts further tokens")), "{notes:?}");
    let e = open(0).unwrap_err().to_string();
    assert!(e.contains("belongs to block 2, where config.json says that there are 2 blocks"), "{e}");
}
