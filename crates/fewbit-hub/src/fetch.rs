use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use fewbit_format::{Error, Result};

use crate::cache::{self, Repository};
use crate::choice::{Choice, Weights, choose, shards};
use crate::client::{Client, Listing, Remote};
use crate::download::{FULL, download};
use crate::patience::Patience;
use crate::refusal::{Refusal, Subject};
use crate::{Listener, ModelName, Settings, size_text};

/// The path of a model: its folder in the cache, or its GGUF file there, with all its parts beside it.
///
/// What is missing is downloaded. Where the hub cannot be reached, or is not to be asked, the cache alone serves. The
/// revision that a branch is at is noted once all files are there.
///
/// # Errors
/// If the hub refuses, the model has no files that can be read, the connection breaks too often, the disk is full, or
/// nobody is to be asked and something is missing. `stop` ends it: what is there is kept.
pub fn fetch(name: &ModelName, settings: &Settings, listener: &mut dyn Listener, stop: &AtomicBool) -> Result<PathBuf> {
    if settings.is_offline {
        return cached(name, settings);
    }
    let of = Subject { name, settings, file: None };
    let client = Client::new(settings, stop);
    let listing = match client.listing(name, listener) {
        Ok(listing) => listing,
        Err(Refusal::Unreachable(why)) => {
            let Ok(path) = cached(name, settings) else { return Err(Refusal::Unreachable(why).error(&of)) };
            listener.note(&format!("`{}` cannot be reached: `{name}` is taken from the cache", settings.endpoint));
            return Ok(path);
        }
        Err(refusal) => return Err(refusal.error(&of)),
    };
    let repository = Repository::new(&settings.cache, name.repository());
    Fetch { name, settings, repository, client, listing, patience: Patience::new(settings.pause, stop) }.run(listener)
}

struct Fetch<'a> {
    name: &'a ModelName,
    settings: &'a Settings,
    repository: Repository,
    client: Client<'a>,
    listing: Listing,
    patience: Patience<'a>,
}

impl Fetch<'_> {
    fn run(&self, listener: &mut dyn Listener) -> Result<PathBuf> {
        let choice = choose(&self.listing.files, self.name.file()).map_err(|e| self.subject(None).place(e))?;
        let snapshot = self.repository.snapshot(&self.listing.commit);
        let (path, weights) = match choice {
            Choice::Gguf(files) => (snapshot.join(&files[0]), files),
            Choice::Folder { beside, weights } => {
                // Small, and first: whoever has the weights has these.
                self.all(&beside, listener)?;
                (snapshot, self.weights(weights, listener)?)
            }
        };
        self.all(&weights, listener)?;
        self.repository.set_ref(self.name.revision(), &self.listing.commit)?;
        Ok(path)
    }

    fn weights(&self, weights: Weights, listener: &mut dyn Listener) -> Result<Vec<String>> {
        let index = match weights {
            Weights::Files(files) => return Ok(files),
            Weights::Index(index) => index,
        };
        self.all(std::slice::from_ref(&index), listener)?;
        let path = self.path(&index);
        let read = fs::read(&path).map_err(|e| Error::io("reading", &path, &e))?;
        let hint = "tell its owners, or choose another revision";
        shards(&read, &self.listing.files).map_err(|e| self.subject(Some(&index)).place(e.or_hint(hint)))
    }

    /// Sees to it that files are there.
    fn all(&self, files: &[String], listener: &mut dyn Listener) -> Result<()> {
        let mut missing = Vec::new();
        for file in files {
            let path = self.path(file);
            if path.exists() {
                self.repository.check_inside(&path)?;
                continue;
            }
            let head = self.client.head(self.name, &self.listing.commit, file, listener);
            missing.push((file.as_str(), head.map_err(|r| r.error(&self.subject(Some(file))))?));
        }
        let to_come = missing.iter().map(|(_, remote)| self.bytes_to_come(remote)).sum();
        self.check_space(to_come)?;
        if to_come > 0 {
            listener.begin(to_come);
        }
        let mut done = 0;
        for (file, remote) in &missing {
            self.one(file, remote, &mut done, listener)?;
        }
        Ok(())
    }

    fn one(&self, file: &str, remote: &Remote, done: &mut u64, listener: &mut dyn Listener) -> Result<()> {
        let blob = self.blob(remote);
        cache::make_parent(&blob)?;
        let _lock = self.lock(remote, file, listener)?;
        // Whoever held the lock may have brought it; another revision may have it too.
        if fs::metadata(&blob).map(|m| m.len()).ok() != Some(remote.bytes) && !self.path(file).exists() {
            let incomplete = self.incomplete(remote);
            let mut heard = |listener: &mut dyn Listener, bytes: u64| {
                *done += bytes;
                listener.at(*done, file);
            };
            heard(listener, 0);
            download(&self.client, &self.subject(Some(file)), remote, &incomplete, listener, &mut heard)?;
            fs::rename(&incomplete, &blob).map_err(|e| Error::io("renaming", &incomplete, &e))?;
        }
        if self.path(file).exists() {
            return Ok(());
        }
        self.repository.link(&self.listing.commit, file, &remote.etag)
    }

    /// Waits until no other process brings the same file.
    fn lock(&self, remote: &Remote, file: &str, listener: &mut dyn Listener) -> Result<fs::File> {
        let mut is_said = false;
        loop {
            if let Some(lock) = self.repository.try_lock(&remote.etag)? {
                return Ok(lock);
            }
            if !std::mem::replace(&mut is_said, true) {
                listener.note(&format!("another process downloads `{file}`: waiting for it"));
            }
            self.patience.sleep(Duration::from_millis(500)).map_err(|r| r.error(&self.subject(Some(file))))?;
        }
    }

    fn bytes_to_come(&self, remote: &Remote) -> u64 {
        let length = |path: PathBuf| fs::metadata(path).map_or(0, |m| m.len());
        remote.bytes.saturating_sub(length(self.incomplete(remote)).max(length(self.blob(remote))))
    }

    /// Refuses what the disk has no room for.
    fn check_space(&self, bytes: u64) -> Result<()> {
        let blobs = self.repository.blobs();
        if bytes == 0 {
            return Ok(());
        }
        cache::make_parent(&blobs.join("x"))?;
        let Ok(s) = rustix::fs::statvfs(&blobs) else { return Ok(()) };
        let free = s.f_bavail.saturating_mul(s.f_frsize);
        if free >= bytes {
            return Ok(());
        }
        let e = Error::input(format!("no space: {} are free, {} are needed", size_text(free), size_text(bytes)));
        Err(self.subject(None).place(e.hint(FULL).file(&blobs)))
    }

    fn subject<'b>(&'b self, file: Option<&'b str>) -> Subject<'b> {
        Subject { name: self.name, settings: self.settings, file }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.repository.snapshot(&self.listing.commit).join(file)
    }

    fn blob(&self, remote: &Remote) -> PathBuf {
        self.repository.blobs().join(&remote.etag)
    }

    fn incomplete(&self, remote: &Remote) -> PathBuf {
        self.repository.blobs().join(format!("{}.incomplete", remote.etag))
    }
}

/// The path of a model of which all is in the cache.
fn cached(name: &ModelName, settings: &Settings) -> Result<PathBuf> {
    let lacks = |what: String| {
        let e = Error::input(what).hint("download it once without `--offline` and without `HF_HUB_OFFLINE`");
        e.place(format!("`{name}`"))
    };
    let repository = Repository::new(&settings.cache, name.repository());
    let Some(commit) = repository.commit_of(name.revision()) else {
        let cache = settings.cache.display();
        return Err(lacks(if repository.path().is_dir() {
            format!("revision `{}` of it is not in the cache `{cache}`", name.revision())
        } else {
            format!("is neither a path that exists nor a model in the cache `{cache}`")
        }));
    };
    let snapshot = repository.snapshot(&commit);
    let there = cache::files_in(&snapshot)?;
    let place = |e: Error| e.place(format!("what the cache holds of `{name}`"));
    let (path, files) = match choose(&there, name.file()).map_err(place)? {
        Choice::Gguf(files) => (snapshot.join(&files[0]), files),
        Choice::Folder { beside, weights } => {
            (snapshot.clone(), [beside, cached_weights(&snapshot, weights, &there, &lacks)?].concat())
        }
    };
    files.iter().try_for_each(|file| repository.check_inside(&snapshot.join(file)))?;
    Ok(path)
}

fn cached_weights(
    snapshot: &Path,
    weights: Weights,
    there: &[String],
    lacks: &dyn Fn(String) -> Error,
) -> Result<Vec<String>> {
    let index = match weights {
        Weights::Files(files) => return Ok(files),
        Weights::Index(index) => index,
    };
    let path = snapshot.join(&index);
    let read = fs::read(&path).map_err(|e| Error::io("reading", &path, &e))?;
    shards(&read, there).map_err(|e| lacks(format!("`{index}` {e}")))
}
