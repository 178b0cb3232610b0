//! The folder of a repository in the cache.
//!
//! `models--OWNER--NAME` holds `blobs`, whose files are named by their content, `snapshots/COMMIT`, whose files are links
//! to them, and `refs/REVISION`, which says what commit a branch or tag was at last.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result};

use crate::untrusted::is_word;

const PREFIX: &str = "models--";

/// A repository's folder.
#[derive(Clone, Debug)]
pub(crate) struct Repository {
    cache: PathBuf,
    folder: String,
}

impl Repository {
    /// That of `owner/name`.
    pub(crate) fn new(cache: &Path, name: &str) -> Self {
        Self { cache: cache.to_owned(), folder: format!("{PREFIX}{}", name.replace('/', "--")) }
    }

    /// All of a cache, with their names, sorted.
    pub(crate) fn all(cache: &Path) -> Result<Vec<(String, Self)>> {
        let names = names_in(cache)?.into_iter().filter_map(|folder| {
            let name = folder.strip_prefix(PREFIX)?.replacen("--", "/", 1);
            Some((name, Self { cache: cache.to_owned(), folder }))
        });
        Ok(names.filter(|(_, repository)| repository.path().is_dir()).collect())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.cache.join(&self.folder)
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.path().join("blobs")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.path().join("snapshots")
    }

    pub(crate) fn refs(&self) -> PathBuf {
        self.path().join("refs")
    }

    /// Where files wait for each other's writers.
    pub(crate) fn locks(&self) -> PathBuf {
        self.cache.join(".locks").join(&self.folder)
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.snapshots().join(commit)
    }

    /// The commits of which something is there, sorted.
    pub(crate) fn commits(&self) -> Result<Vec<String>> {
        Ok(names_in(&self.snapshots())?.into_iter().filter(|c| is_word(c) && self.snapshot(c).is_dir()).collect())
    }

    /// The commit that a branch or tag was at when it was downloaded; of a commit, itself.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        let noted = fs::read_to_string(self.refs().join(revision)).ok().map(|c| c.trim().to_owned());
        noted.into_iter().chain([revision.to_owned()]).find(|c| is_word(c) && self.snapshot(c).is_dir())
    }

    /// Notes what commit a revision is at.
    pub(crate) fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.refs().join(revision);
        if revision == commit || fs::read_to_string(&path).is_ok_and(|c| c.trim() == commit) {
            return Ok(());
        }
        let aside = self.path().join(format!(".ref-{}.partial", std::process::id()));
        make_parent(&path)?;
        let written = fs::write(&aside, commit).and_then(|()| fs::rename(&aside, &path));
        written.map_err(|e| Error::io("noting the revision", &path, &e))
    }

    /// The revisions that are noted, with their commits, sorted.
    pub(crate) fn noted(&self) -> Result<Vec<(String, String)>> {
        let refs = self.refs();
        let noted = files_in(&refs)?.into_iter().filter_map(|revision| {
            let commit = fs::read_to_string(refs.join(&revision)).ok()?;
            Some((revision, commit.trim().to_owned()))
        });
        Ok(noted.collect())
    }

    /// Puts a blob under its name into a snapshot.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        make_parent(&path)?;
        // A link whose blob is gone is in the way.
        let _ = fs::remove_file(&path);
        let depth = file.split('/').count();
        let target = format!("{}blobs/{etag}", "../".repeat(depth + 1));
        symlink(&target, &self.blobs().join(etag), &path).map_err(|e| Error::io("linking", &path, &e))
    }

    /// The lock of a blob, if nobody holds it; `None` if somebody does.
    pub(crate) fn try_lock(&self, etag: &str) -> Result<Option<File>> {
        let path = self.locks().join(format!("{etag}.lock"));
        make_parent(&path)?;
        let failed = |e| Error::io("locking", &path, &e);
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => {
                // Some file systems know no locks; two processes at once are rare.
                log::debug!("{}: {e}", path.display());
                Ok(Some(file))
            }
        }
    }

    /// Refuses a file whose link leads out of the cache.
    pub(crate) fn check_inside(&self, path: &Path) -> Result<()> {
        let real = |p: &Path| fs::canonicalize(p).map_err(|e| Error::io("opening", p, &e));
        if real(path)?.starts_with(real(&self.cache)?) {
            return Ok(());
        }
        Err(Error::input("leads out of the cache").hint("remove it: it will be downloaded again").file(path))
    }
}

#[cfg(unix)]
fn symlink(relative: &str, _blob: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

/// Links need rights that few have there: the snapshot gets the file itself.
#[cfg(not(unix))]
fn symlink(_relative: &str, blob: &Path, path: &Path) -> io::Result<()> {
    fs::rename(blob, path)
}

pub(crate) fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(|e| Error::io("making a folder in the cache", parent, &e))
}

/// The names in a folder, sorted; none where there is no folder.
pub(crate) fn names_in(folder: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io("listing the cache", folder, &e);
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        // Names beyond Unicode are not ours.
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    Ok(names.into_iter().collect())
}

/// The files in a folder and in those within it, with `/` between the parts of their names, sorted. Links that lead
/// nowhere are left out; links to folders are not followed.
pub(crate) fn files_in(folder: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for name in names_in(folder)? {
        let path = folder.join(&name);
        if path.is_symlink() || !path.is_dir() {
            if path.is_file() {
                files.push(name);
            }
        } else {
            files.extend(files_in(&path)?.into_iter().map(|inner| format!("{name}/{inner}")));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_links_to_blobs_and_a_ref_says_which() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::new(dir.path(), "o/n-m");
        fs::create_dir_all(repository.blobs()).unwrap();
        fs::write(repository.blobs().join("e1"), b"content").unwrap();
        for file in ["a.json", "sub/b.gguf"] {
            repository.link("c1", file, "e1").unwrap();
            repository.link("c1", file, "e1").unwrap();
            let path = repository.snapshot("c1").join(file);
            assert_eq!(fs::read(&path).unwrap(), b"content");
            repository.check_inside(&path).unwrap();
        }
        assert_eq!(files_in(&repository.snapshot("c1")).unwrap(), ["a.json", "sub/b.gguf"]);
        assert_eq!(repository.commit_of("refs/pr/1"), None);
        repository.set_ref("refs/pr/1", "c1").unwrap();
        assert_eq!(repository.commit_of("refs/pr/1").as_deref(), Some("c1"));
        assert_eq!(repository.commit_of("c1").as_deref(), Some("c1"));
        assert_eq!(repository.noted().unwrap(), [("refs/pr/1".to_owned(), "c1".to_owned())]);
        repository.set_ref("gone", "c2").unwrap();
        assert_eq!(repository.commit_of("gone"), None);
        let all = Repository::all(dir.path()).unwrap();
        assert_eq!(all.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["o/n-m"]);
        assert_eq!(Repository::all(&dir.path().join("none")).unwrap().len(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn links_out_of_the_cache_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let repository = Repository::new(&cache, "o/n");
        fs::create_dir_all(repository.snapshot("c")).unwrap();
        fs::write(dir.path().join("secret"), b"x").unwrap();
        let path = repository.snapshot("c").join("model.safetensors");
        std::os::unix::fs::symlink(dir.path().join("secret"), &path).unwrap();
        let e = repository.check_inside(&path).unwrap_err().to_string();
        assert!(e.contains("leads out of the cache; remove it"), "{e}");
    }

    #[test]
    fn one_holds_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::new(dir.path(), "o/n");
        let held = repository.try_lock("e").unwrap();
        assert!(held.is_some() && repository.try_lock("e").unwrap().is_none());
        drop(held);
        assert!(repository.try_lock("e").unwrap().is_some());
    }
}
