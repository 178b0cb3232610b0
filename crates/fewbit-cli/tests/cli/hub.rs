//! Models of the hub, from a hub on this machine.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Ran, command, fewbit};

#[expect(dead_code, reason = "the hub's own tests use the rest")]
#[path = "../../../fewbit-hub/tests/server/mod.rs"]
mod server;

use server::{COMMIT, Fault, Server, etag};

const NAME: &str = "owner/small-model";
const INDEX: &str = "model.safetensors.index.json";

/// A hub with one repository, and a user's home.
struct Hub {
    server: Server,
    home: TempDir,
}

impl Hub {
    /// Of the bundled model's files, with those that nobody needs.
    fn of_demo() -> Self {
        let files = demo_files();
        let mut all: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
        all.push(("pytorch_model.bin", b"a pickle"));
        all.push(("onnx/model.onnx", b"another format"));
        Self::of(&all)
    }

    fn of(files: &[(&str, &[u8])]) -> Self {
        Self { server: Server::start(NAME, files), home: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        let others = [
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_HUB_OFFLINE",
        ];
        let proxies = ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];
        others.iter().chain(&proxies).for_each(|name| {
            command.env_remove(name);
        });
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", &self.server.endpoint);
        command
    }

    fn fewbit(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    fn cache(&self) -> PathBuf {
        self.home.path().join("hub")
    }

    fn snapshot(&self) -> PathBuf {
        self.cache().join("models--owner--small-model/snapshots").join(COMMIT)
    }
}

fn demo_files() -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo-model"));
    let names =
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
    names.iter().map(|name| ((*name).to_owned(), fs::read(folder.join(name)).unwrap())).collect()
}

#[test]
fn a_model_is_downloaded_once_and_runs() {
    let hub = Hub::of_demo();
    let run = |name| ["run", name, "--raw", "--prompt", "Once upon a time", "--max-tokens", "8", "--temperature", "0"];
    let ran = hub.fewbit(&run(NAME));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.stdout, fewbit(&run("demo")).stdout);
    assert!(ran.stderr.contains("`owner/small-model`: 8.7 MB downloaded into"), "{}", ran.stderr);
    let requests = hub.server.requests("");
    assert!(requests.iter().all(|r| !r.path.contains("onnx") && !r.path.contains(".bin")), "{requests:?}");

    let of_hub = hub.fewbit(&["inspect", &format!("{NAME}@v1"), "--json"]).good();
    assert_eq!(of_hub, fewbit(&["inspect", "demo", "--json"]).good());
    assert!(hub.server.requests("/resolve/").is_empty());
    assert!(hub.fewbit(&["tokenize", NAME, "Once", "--offline", "--json"]).good()["ids"].is_array());
    assert_eq!(hub.server.requests("").len(), 1);
}

#[test]
fn a_path_that_exists_wins() {
    let hub = Hub::of(&[]);
    let model = hub.home.path().join(NAME);
    fs::create_dir_all(&model).unwrap();
    for (name, bytes) in demo_files() {
        fs::write(model.join(name), bytes).unwrap();
    }
    let ran = Ran::of(hub.command(&["inspect", NAME, "--json"]).current_dir(hub.home.path()));
    ran.good();
    assert!(hub.server.requests("").is_empty());
}

#[test]
fn a_killed_download_goes_on_where_it_was() {
    let hub = Hub::of_demo();
    let (name, weights) = demo_files().pop().unwrap();
    let there = 3_000_000;
    hub.server.fail("/other/", Fault::Stall(there));
    let mut child = hub.command(&["inspect", NAME]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let incomplete = hub.cache().join(format!("models--owner--small-model/blobs/{}.incomplete", etag(&name, &weights)));
    let begun = Instant::now();
    while fs::metadata(&incomplete).map_or(0, |m| m.len()) < there as u64 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing comes");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!hub.snapshot().join(&name).exists());
    hub.fewbit(&["inspect", NAME, "--offline"]).refused(&[
        "`owner/small-model`",
        "is not in the cache",
        "without `--offline`",
    ]);
    let listed = hub.fewbit(&["list", "--json"]).good();
    assert_eq!(listed["models"][1]["commit"], Value::Null);
    assert_eq!(listed["models"][1]["size_bytes"], json!(there));

    hub.server.requests("");
    hub.fewbit(&["inspect", NAME, "--json"]).good();
    let sent: Vec<_> = hub.server.requests("/other/").iter().map(|r| (r.from, r.sent)).collect();
    assert_eq!(sent, [(Some(there), weights.len() - there)]);
    assert_eq!(fs::read(hub.snapshot().join(&name)).unwrap(), weights);
}

#[test]
fn a_connection_that_breaks_is_no_failure() {
    let hub = Hub::of_demo();
    hub.server.fail("/other/", Fault::Cut(5_000_000));
    hub.fewbit(&["inspect", NAME, "--json"]).good();
    let requests = hub.server.requests("/other/");
    assert_eq!(requests.iter().map(|r| r.from).collect::<Vec<_>>(), [None, Some(5_000_000)]);
}

#[test]
fn a_missing_shard_and_a_hostile_index_are_told() {
    let mut files = demo_files();
    let (_, weights) = files.pop().unwrap();
    for (shard, words) in [
        (
            "model-00002-of-00002.safetensors",
            ["`model.safetensors.index.json`", "`model-00002-of-00002.safetensors`, which is not there"],
        ),
        ("../../../../model.safetensors", ["`model.safetensors.index.json`", "cannot lie beside it"]),
    ] {
        let index = json!({ "weight_map": { "a": "model-00001-of-00002.safetensors", "b": shard } }).to_string();
        let mut all: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
        all.push((INDEX, index.as_bytes()));
        all.push(("model-00001-of-00002.safetensors", &weights));
        let hub = Hub::of(&all);
        hub.fewbit(&["inspect", NAME]).refused(&words);
        assert!(hub.server.requests("00001").is_empty());
    }
}

#[test]
fn refusals_of_the_hub_are_one_sentence() {
    let hub = Hub::of_demo();
    hub.fewbit(&["inspect", "owner/other"]).refused(&["`owner/other`", "neither a path that exists", "`HF_TOKEN`"]);
    hub.fewbit(&["inspect", "owner/small-model@v9"]).refused(&["no revision `v9`"]);
    hub.fewbit(&["inspect", "owner/small-model:Q4_K_M"]).refused(&["no GGUF file", "leave `:Q4_K_M` out"]);
    hub.fewbit(&["inspect", "owner/small-model@../x"]).refused(&["`../x` is no revision"]);
    hub.server.fail("/api/", Fault::Status(401, "X-Error-Code: GatedRepo\r\n"));
    hub.fewbit(&["inspect", NAME]).refused(&["is gated", "then set `HF_TOKEN`"]);
    hub.server.fail("/api/", Fault::Status(401, ""));
    let ran = Ran::of(hub.command(&["inspect", NAME, "--json"]).env("HF_TOKEN", "hf_secret"));
    ran.refused(&["does not take the token in the variable `HF_TOKEN`"]);
    assert!(!ran.stderr.contains("hf_secret") && ran.json()["error"].is_string());
    assert_eq!(hub.server.requests("/api/").last().unwrap().authorization.as_deref(), Some("Bearer hf_secret"));
    let ran = Ran::of(hub.command(&["inspect", NAME]).env("HF_ENDPOINT", "http://127.0.0.1:9"));
    ran.refused(&["`http://127.0.0.1:9` cannot be reached", "check the path, or the connection"]);
}

#[test]
fn a_hub_that_asks_to_wait_is_waited_for() {
    let hub = Hub::of_demo();
    hub.server.fail("/api/", Fault::Status(429, "Retry-After: 1\r\n"));
    let ran = hub.fewbit(&["inspect", NAME, "--json"]);
    ran.good();
    assert!(ran.stderr.contains("the hub asks to wait 1 s"), "{}", ran.stderr);
}

#[test]
fn what_is_cached_is_listed_and_removed() {
    let hub = Hub::of_demo();
    let empty = hub.fewbit(&["list"]);
    assert!(empty.stdout.starts_with("no model is in"), "{}", empty.stdout);
    hub.fewbit(&["rm", NAME]).refused(&["`owner/small-model`", "is not in the cache", "`fewbit list`"]);
    hub.fewbit(&["rm", "demo"]).refused(&["`demo` is no name of a model of the hub"]);
    hub.fewbit(&["inspect", NAME, "--json"]).good();
    let listed = hub.fewbit(&["list", "--json"]).good();
    let model = &listed["models"][0];
    assert_eq!(
        (&model["name"], &model["commit"], &model["revisions"]),
        (&json!(NAME), &json!(COMMIT), &json!(["main"]))
    );
    assert_eq!(model["path"], json!(hub.snapshot()));
    let table = hub.fewbit(&["list"]).stdout;
    assert!(table.contains("owner/small-model  main") && table.contains("8.7 MB"), "{table}");
    let on_disk = listed["size_bytes"].as_u64().unwrap();
    let removed = hub.fewbit(&["rm", NAME, "--json"]).good();
    assert_eq!(removed, json!({ "name": NAME, "freed_bytes": on_disk }));
    assert!(model["size_bytes"].as_u64().unwrap() <= on_disk);
    assert!(!hub.cache().join("models--owner--small-model").exists());
    assert_eq!(hub.fewbit(&["list", "--json"]).good()["models"], json!([]));
}

#[test]
fn a_gguf_file_is_picked_and_the_card_names_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m.gguf").display().to_string();
    let grid = ["--group", "32", "--symmetric", "--set", "grid.scale=f16"];
    let made =
        fewbit(&[&["quantize", "demo", "--recipe", "rtn", "--format", "gguf", "--out", &out][..], &grid].concat());
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let gguf = fs::read(&out).unwrap();
    let files = demo_files();
    let mut all: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    all.push(("gguf/m-Q4_0.gguf", &gguf));
    all.push(("gguf/m-Q8_0.gguf", b"never"));
    let hub = Hub::of(&all);
    hub.fewbit(&["inspect", "owner/small-model:Q6"])
        .refused(&["no GGUF file `Q6`; there are `gguf/m-Q4_0`, `gguf/m-Q8_0`"]);
    let of_hub = hub.fewbit(&["inspect", "owner/small-model:q4_0", "--json"]).good();
    assert_eq!(of_hub, fewbit(&["inspect", &out, "--json"]).good());
    assert!(hub.server.requests("Q8_0").is_empty());

    let folder = dir.path().join("out").display().to_string();
    let made = hub.fewbit(&["quantize", NAME, "--recipe", "rtn", "--out", &folder]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let card = fs::read_to_string(dir.path().join("out/README.md")).unwrap();
    assert!(card.contains("base_model: owner/small-model\n"), "{card}");
    hub.fewbit(&["eval", NAME, "--against", NAME, "--text", "x", "--card"]).refused(&["not ours to write into"]);
}

/// An adapter's repository has no model: its two files alone are brought.
#[test]
fn an_adapter_is_taken_by_its_name() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/adapters/llama"));
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let [config, weights] = ["adapter_config.json", "adapter_model.safetensors"].map(read);
    let files =
        [("adapter_config.json", &*config), ("adapter_model.safetensors", &*weights), ("optimizer.pt", &b"x"[..])];
    let hub = Hub::of(&files);
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/families/llama");
    let logits = |lora: &str| ["logits", model, "--ids", "1,5,9", "--json", "--lora", lora].map(str::to_owned);
    let run = |lora: &str| hub.fewbit(&logits(lora).each_ref().map(String::as_str)).good();
    assert_eq!(run(&format!("{NAME}:0.5")), run(&format!("{}:0.5", folder.display())));
    assert!(hub.server.requests("optimizer").is_empty());
    hub.fewbit(&["logits", NAME, "--ids", "1"]).refused(&["holds an adapter, no model"]);
}
