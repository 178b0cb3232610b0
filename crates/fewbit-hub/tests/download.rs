//! Downloads from a hub on this machine.
#![expect(clippy::unwrap_used, reason = "a test fails loudly")]

#[expect(dead_code, reason = "the program's tests use the rest")]
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fewbit_format::{Error, Kind};
use fewbit_hub::{Listener, ModelName, Settings, Token, fetch, list, remove};
use server::{COMMIT, Fault, Server, etag};
use tempfile::TempDir;

const NAME: &str = "o/m";
const LENGTH: usize = 1_000_000;

/// What was said.
#[derive(Default)]
struct Heard {
    totals: Vec<u64>,
    last: u64,
    notes: Vec<String>,
}

impl Listener for Heard {
    fn begin(&mut self, bytes: u64) {
        self.totals.push(bytes);
    }

    fn at(&mut self, bytes: u64, _file: &str) {
        self.last = bytes;
    }

    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
}

/// A cache, and how to fetch into it.
struct Cache {
    home: TempDir,
    settings: Settings,
}

impl Cache {
    fn of(server: &Server) -> Self {
        let home = tempfile::tempdir().unwrap();
        let settings = Settings {
            endpoint: server.endpoint.clone(),
            cache: home.path().join("hub"),
            token: None,
            is_offline: false,
            pause: Duration::from_millis(1),
        };
        Self { home, settings }
    }

    fn fetch(&self, name: &str) -> Result<PathBuf, Error> {
        self.fetch_heard(name).0
    }

    fn fetch_heard(&self, name: &str) -> (Result<PathBuf, Error>, Heard) {
        let mut heard = Heard::default();
        let stop = AtomicBool::new(false);
        let result = fetch(&named(name), &self.settings, &mut heard, &stop);
        (result, heard)
    }

    fn refused(&self, name: &str, words: &[&str]) {
        let e = self.fetch(name).unwrap_err();
        assert_eq!(e.kind(), Kind::Input);
        for word in words {
            assert!(e.to_string().contains(word), "`{word}` is not in: {e}");
        }
    }

    fn snapshot(&self) -> PathBuf {
        self.settings.cache.join("models--o--m/snapshots").join(COMMIT)
    }

    fn incomplete(&self, file: &str, bytes: &[u8]) -> PathBuf {
        self.settings.cache.join("models--o--m/blobs").join(format!("{}.incomplete", etag(file, bytes)))
    }
}

fn named(name: &str) -> ModelName {
    ModelName::parse(name).unwrap().unwrap()
}

/// Bytes that repeat nowhere near.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let step = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(step).take(length).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_needed_comes_once() {
    let weights = noise(LENGTH, 1);
    let files: [(&str, &[u8]); 7] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{\"a\": 1}"),
        ("LICENSE", b"do as you like"),
        ("model.safetensors", &weights),
        ("pytorch_model.bin", b"never"),
        ("onnx/model.onnx", b"never"),
        ("../../evil", b"never"),
    ];
    let server = Server::start(NAME, &files);
    let mut cache = Cache::of(&server);
    fs::write(cache.home.path().join("token"), "secret").unwrap();
    cache.settings.token = Token::read(&cache.home.path().join("token"));
    let (path, heard) = cache.fetch_heard(NAME);
    let path = path.unwrap();
    assert_eq!(path, cache.snapshot());
    assert_eq!(names(&path), ["LICENSE", "config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights);
    assert_eq!(heard.totals.last(), Some(&(LENGTH as u64)));
    assert_eq!(heard.last, LENGTH as u64);

    let requests = server.requests("");
    assert!(requests.iter().all(|r| !r.path.contains("onnx") && !r.path.contains(".bin") && !r.path.contains("evil")));
    // The token is for the hub, not for the host that keeps its files.
    for r in requests {
        assert_eq!(r.authorization.is_some(), !r.path.starts_with("/other/"), "{r:?}");
    }
    for name in [NAME, "o/m@v1", "o/m@refs/pr/1"] {
        assert_eq!(cache.fetch(name).unwrap(), path);
        assert_eq!(server.requests("").len(), 1, "{name}");
    }
    let stored = list(&cache.settings).unwrap();
    assert_eq!(stored.len(), 1);
    assert_eq!((stored[0].name.as_str(), stored[0].commit.as_deref()), (NAME, Some(COMMIT)));
    assert_eq!(stored[0].revisions, ["main", "refs/pr/1", "v1"]);
    assert_eq!(stored[0].size_bytes, LENGTH as u64 + 2 + 8 + 14);
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let weights = noise(LENGTH, 2);
    let server = Server::start(NAME, &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    let cache = Cache::of(&server);
    server.fail("/other/", Fault::Cut(300_000));
    server.fail("/other/", Fault::Cut(200_000));
    let path = cache.fetch(NAME).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights);
    let sent: Vec<_> = server.requests("/other/").iter().map(|r| (r.from, r.sent)).collect();
    assert_eq!(sent, [(None, 300_000), (Some(300_000), 200_000), (Some(500_000), 500_000)]);
}

#[test]
fn a_later_run_goes_on() {
    let weights = noise(LENGTH, 3);
    let server = Server::start(NAME, &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    let cache = Cache::of(&server);
    server.fail("/other/", Fault::Cut(400_000));
    for _ in 0..4 {
        server.fail("/other/", Fault::Cut(0));
    }
    cache.refused(
        NAME,
        &["`o/m`: `model.safetensors`", "broke", "400.0 kB of 1.0 MB are there; the same command goes on"],
    );
    assert!(!cache.snapshot().join("model.safetensors").exists());
    assert_eq!(fs::metadata(cache.incomplete("model.safetensors", &weights)).unwrap().len(), 400_000);
    let stored = list(&cache.settings).unwrap();
    assert_eq!(
        stored.iter().map(|s| (s.commit.is_some(), s.size_bytes)).collect::<Vec<_>>(),
        [(true, 2), (false, 400_000)]
    );
    server.requests("");

    let (path, heard) = cache.fetch_heard(NAME);
    assert_eq!(fs::read(path.unwrap().join("model.safetensors")).unwrap(), weights);
    assert_eq!((heard.totals, heard.last), (vec![600_000], 600_000));
    let sent: Vec<_> = server.requests("/other/").iter().map(|r| (r.from, r.sent)).collect();
    assert_eq!(sent, [(Some(400_000), 600_000)]);
}

#[test]
fn a_user_who_stops_it_keeps_what_is_there() {
    struct Stopping<'a>(&'a AtomicBool);
    impl Listener for Stopping<'_> {
        fn begin(&mut self, _bytes: u64) {}
        fn at(&mut self, bytes: u64, file: &str) {
            if file == "model.safetensors" && bytes > 0 {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        fn note(&mut self, _text: &str) {}
    }
    let weights = noise(LENGTH, 4);
    let server = Server::start(NAME, &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    let cache = Cache::of(&server);
    let stop = AtomicBool::new(false);
    let e = fetch(&named(NAME), &cache.settings, &mut Stopping(&stop), &stop).unwrap_err();
    assert_eq!(e.kind(), Kind::Interrupted);
    let there = fs::metadata(cache.incomplete("model.safetensors", &weights)).unwrap().len();
    assert!(there > 0 && there < LENGTH as u64, "{there}");
    server.requests("");
    let path = cache.fetch(NAME).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights);
    assert_eq!(server.requests("/other/")[0].from, Some(there as usize));
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    let weights = noise(LENGTH, 5);
    let server = Server::start(NAME, &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    let cache = Cache::of(&server);
    server.fail("/other/", Fault::Cut(300_000));
    server.fail("/other/", Fault::NoRange);
    let path = cache.fetch(NAME).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights);
}

#[test]
fn other_content_is_refused() {
    let weights = noise(1000, 6);
    let server = Server::start(NAME, &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    let cache = Cache::of(&server);
    server.fail("/other/", Fault::Garbled);
    cache.refused(
        NAME,
        &["`model.safetensors`", "other content", &etag("model.safetensors", &weights), "downloads it again"],
    );
    assert!(!cache.incomplete("model.safetensors", &weights).exists());
    // What an earlier try left may be wrong too: longer than it may be, or other bytes.
    fs::write(cache.incomplete("model.safetensors", &weights), noise(1001, 7)).unwrap();
    cache.fetch(NAME).unwrap();
    remove(&named(NAME), &cache.settings).unwrap();
    fs::create_dir_all(cache.settings.cache.join("models--o--m/blobs")).unwrap();
    fs::write(cache.incomplete("model.safetensors", &weights), noise(10, 7)).unwrap();
    cache.refused(NAME, &["other content"]);
    cache.fetch(NAME).unwrap();
}

#[test]
fn an_index_names_its_shards() {
    let index = br#"{"weight_map": {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}}"#;
    let shards = [noise(1000, 8), noise(2000, 9)];
    let files: [(&str, &[u8]); 5] = [
        ("config.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("m-00001-of-00002.safetensors", &shards[0]),
        ("m-00002-of-00002.safetensors", &shards[1]),
        ("consolidated.safetensors", b"never"),
    ];
    let server = Server::start(NAME, &files);
    let mut cache = Cache::of(&server);
    let path = cache.fetch(NAME).unwrap();
    assert_eq!(names(&path).len(), 4);
    cache.settings.is_offline = true;
    assert_eq!(cache.fetch(NAME).unwrap(), path);
    fs::remove_file(path.join(files[2].0)).unwrap();
    cache.refused(
        NAME,
        &["`o/m`: `model.safetensors.index.json` names the file `m-00001-of-00002.safetensors`", "without `--offline`"],
    );

    server.remove(files[2].0);
    cache.settings.is_offline = false;
    cache.refused(
        NAME,
        &[
            "`o/m`: `model.safetensors.index.json`",
            "`m-00001-of-00002.safetensors`, which is not there",
            "another revision",
        ],
    );
}

#[test]
fn a_hostile_index_leads_nowhere() {
    for file in ["../../../../evil.safetensors", "/evil.safetensors", "a/evil.safetensors"] {
        let index = format!(r#"{{"weight_map": {{"a": {file:?}}}}}"#);
        let files: [(&str, &[u8]); 3] =
            [("config.json", b"{}"), ("model.safetensors.index.json", index.as_bytes()), (file, b"evil")];
        let server = Server::start(NAME, &files);
        let cache = Cache::of(&server);
        cache.refused(NAME, &["`model.safetensors.index.json`", "cannot lie beside it", "do not use this model"]);
        assert!(server.requests("evil").is_empty());
    }
}

#[test]
fn refusals_say_the_way_out() {
    let server = Server::start(NAME, &[("config.json", b"{}"), ("model.safetensors", b"12345678")]);
    let mut cache = Cache::of(&server);
    cache.refused("o/other", &["`o/other`", "neither a path that exists nor a model", "set `HF_TOKEN`"]);
    cache.refused("o/m@v7", &["no revision `v7`", "/o/m"]);
    server.fail("/resolve/", Fault::Status(403, "X-Error-Code: GatedRepo\r\n"));
    cache.refused(NAME, &["`config.json`", "is gated", "/o/m, then set `HF_TOKEN`"]);
    fs::write(cache.home.path().join("token"), "secret").unwrap();
    cache.settings.token = Token::read(&cache.home.path().join("token"));
    server.fail("/api/", Fault::Status(401, ""));
    cache.refused(NAME, &["does not take the token in the file", "(401)"]);
    cache.fetch(NAME).unwrap();
}

#[test]
fn a_busy_hub_is_left_alone_for_as_long_as_it_asks() {
    let server = Server::start(NAME, &[("config.json", b"{}"), ("model.safetensors", b"12345678")]);
    let cache = Cache::of(&server);
    server.fail("/api/", Fault::Status(429, "Retry-After: 1\r\n"));
    server.fail("/resolve/", Fault::Status(503, ""));
    let begun = std::time::Instant::now();
    let (path, heard) = cache.fetch_heard(NAME);
    path.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(heard.notes, ["the hub asks to wait 1 s"]);
    for _ in 0..5 {
        server.fail("/api/", Fault::Status(429, "Retry-After: 0\r\n"));
    }
    server.requests("");
    cache.refused(NAME, &["asked too often", "try again"]);
    assert_eq!(server.requests("/api/").len(), 5);
    // Nobody is kept waiting for an hour.
    server.fail("/api/", Fault::Status(429, "Retry-After: 3600\r\n"));
    cache.refused(NAME, &["try again in 3600 s"]);
}

#[test]
fn the_cache_alone_serves_where_nobody_is_to_be_asked() {
    let server = Server::start(NAME, &[("config.json", b"{}"), ("model.safetensors", b"12345678")]);
    let mut cache = Cache::of(&server);
    cache.settings.is_offline = true;
    cache.refused(NAME, &["`o/m`: is neither a path that exists nor a model in the cache", "without `--offline`"]);
    assert!(server.requests("").is_empty());
    cache.settings.is_offline = false;
    let path = cache.fetch(NAME).unwrap();
    server.requests("");
    cache.settings.is_offline = true;
    for name in [NAME.to_owned(), format!("{NAME}@{COMMIT}")] {
        assert_eq!(cache.fetch(&name).unwrap(), path);
    }
    cache.refused("o/m@v1", &["revision `v1` of it is not in the cache"]);
    assert!(server.requests("").is_empty());
    // Nobody listens on this port.
    cache.settings.is_offline = false;
    cache.settings.endpoint = "http://127.0.0.1:9".to_owned();
    let (found, heard) = cache.fetch_heard(NAME);
    assert_eq!(found.unwrap(), path);
    assert!(heard.notes[0].contains("cannot be reached: `o/m` is taken from the cache"), "{:?}", heard.notes);
    cache.refused("o/other", &["is no path that exists, and `http://127.0.0.1:9` cannot be reached", "check the path"]);
}

#[test]
fn gguf_files_are_named_by_a_part_and_removed_alone() {
    let (small, parts) = (noise(100, 10), [noise(200, 11), noise(300, 12)]);
    let files: [(&str, &[u8]); 5] = [
        ("README.md", b"# m"),
        ("m-Q4_K_M.gguf", &small),
        ("m-IQ4_NL.gguf", b"never"),
        ("Q8_0/m-Q8_0-00001-of-00002.gguf", &parts[0]),
        ("Q8_0/m-Q8_0-00002-of-00002.gguf", &parts[1]),
    ];
    let server = Server::start(NAME, &files);
    let mut cache = Cache::of(&server);
    cache.refused(NAME, &["several GGUF files: `Q8_0/m-Q8_0`, `m-IQ4_NL`, `m-Q4_K_M`", "as in `owner/name:Q4_K_M`"]);
    cache.refused("o/m:Q2_K", &["no GGUF file `Q2_K`; there are"]);
    let four = cache.fetch("o/m:q4_k_m").unwrap();
    assert_eq!(four, cache.snapshot().join("m-Q4_K_M.gguf"));
    let eight = cache.fetch("o/m:Q8_0").unwrap();
    assert_eq!(eight, cache.snapshot().join(files[3].0));
    assert_eq!(fs::read(cache.snapshot().join(files[4].0)).unwrap(), parts[1]);
    cache.settings.is_offline = true;
    assert_eq!(cache.fetch("o/m:Q8_0").unwrap(), eight);
    cache.refused("o/m:IQ4_NL", &["what the cache holds of `o/m:IQ4_NL`", "no GGUF file `IQ4_NL`"]);

    assert_eq!(remove(&named("o/m:Q8_0"), &cache.settings).unwrap(), 500);
    assert!(four.exists() && !eight.exists());
    let e = remove(&named("o/m:Q8_0"), &cache.settings).unwrap_err().to_string();
    assert!(e.contains("no GGUF file `Q8_0`"), "{e}");
    assert!(remove(&named("o/m:Q4_K_M"), &cache.settings).unwrap() >= 100);
    assert!(list(&cache.settings).unwrap().is_empty());
}

#[cfg(unix)]
#[test]
fn what_is_removed_is_what_was_named() {
    let weights = noise(1000, 13);
    let server = Server::start(NAME, &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    let cache = Cache::of(&server);
    let e = remove(&named(NAME), &cache.settings).unwrap_err().to_string();
    assert!(e.contains("`o/m`: is not in the cache") && e.contains("`fewbit list`"), "{e}");
    cache.fetch(NAME).unwrap();
    // Another revision with one file of its own.
    let other = cache.snapshot().with_file_name("ffffffffffffffff");
    let blobs = cache.settings.cache.join("models--o--m/blobs");
    fs::create_dir_all(&other).unwrap();
    fs::write(blobs.join("own"), noise(77, 1)).unwrap();
    let shared = fs::read_link(cache.snapshot().join("model.safetensors")).unwrap();
    std::os::unix::fs::symlink(shared, other.join("model.safetensors")).unwrap();
    std::os::unix::fs::symlink("../../blobs/own", other.join("config.json")).unwrap();
    assert!(remove(&named("o/m@nothing"), &cache.settings).is_err());
    assert_eq!(remove(&named("o/m@ffffffff"), &cache.settings).unwrap(), 77);
    assert_eq!(fs::read(cache.snapshot().join("model.safetensors")).unwrap(), weights);
    let freed = remove(&named(NAME), &cache.settings).unwrap();
    assert!((1002..1200).contains(&freed), "{freed}");
    assert!(names(&cache.settings.cache).iter().all(|n| n == ".locks"));
    assert!(names(&cache.settings.cache.join(".locks")).is_empty());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told_and_a_link_out_of_the_cache_refused() {
    let weights = noise(LENGTH, 14);
    let server = Server::start(NAME, &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    let cache = Cache::of(&server);
    let incomplete = cache.incomplete("model.safetensors", &weights);
    fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &incomplete).unwrap();
    cache.refused(NAME, &["`model.safetensors`", "No space left", "`fewbit rm`", "`HF_HOME`"]);
    fs::remove_file(&incomplete).unwrap();

    fs::create_dir_all(cache.snapshot()).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", cache.snapshot().join("model.safetensors")).unwrap();
    cache.refused(NAME, &["leads out of the cache"]);
}

#[test]
fn two_at_once_download_once() {
    let weights = noise(LENGTH, 15);
    let server = Server::start(NAME, &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    let cache = Cache::of(&server);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| cache.fetch(NAME).unwrap());
        }
    });
    assert_eq!(server.requests("/other/").iter().map(|r| r.sent).sum::<usize>(), LENGTH);
}
