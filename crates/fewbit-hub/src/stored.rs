use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result};

use crate::cache::{Repository, files_in, names_in};
use crate::choice::{Choice, choose};
use crate::untrusted::is_word;
use crate::{ModelName, Settings};

/// What the cache holds of one revision of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// `owner/name`.
    pub name: String,
    /// The commit; `None` for what downloads left that did not end.
    pub commit: Option<String>,
    /// The branches and tags that are noted as being there.
    pub revisions: Vec<String>,
    /// Of its files; several revisions may share some.
    pub size_bytes: u64,
    /// The folder.
    pub path: PathBuf,
}

/// What the cache holds, by name.
///
/// # Errors
/// If a folder cannot be listed.
pub fn list(settings: &Settings) -> Result<Vec<Stored>> {
    let mut all = Vec::new();
    for (name, repository) in Repository::all(&settings.cache)? {
        let noted = repository.noted()?;
        for commit in repository.commits()? {
            let path = repository.snapshot(&commit);
            let size = files_in(&path)?.iter().map(|f| fs::metadata(path.join(f)).map_or(0, |m| m.len())).sum();
            let revisions = noted.iter().filter(|(_, c)| *c == commit).map(|(r, _)| r.clone()).collect();
            all.push(Stored { name: name.clone(), commit: Some(commit), revisions, size_bytes: size, path });
        }
        let blobs = repository.blobs();
        let unfinished = names_in(&blobs)?.into_iter().filter(|blob| blob.ends_with(".incomplete"));
        let size: u64 = unfinished.map(|blob| fs::metadata(blobs.join(blob)).map_or(0, |m| m.len())).sum();
        if size > 0 {
            all.push(Stored { name, commit: None, revisions: Vec::new(), size_bytes: size, path: blobs });
        }
    }
    Ok(all)
}

/// The bytes on disk of what the cache holds.
///
/// # Errors
/// If a folder cannot be listed.
pub fn disk_bytes(settings: &Settings) -> Result<u64> {
    Repository::all(&settings.cache)?.iter().map(|(_, repository)| folder_bytes(&repository.path())).sum()
}

/// Removes a model from the cache: all of it, or the named revision or GGUF file; what other revisions share stays.
///
/// Returns the bytes that are free now.
///
/// # Errors
/// If it is not in the cache, or a file cannot be removed.
pub fn remove(name: &ModelName, settings: &Settings) -> Result<u64> {
    let repository = Repository::new(&settings.cache, name.repository());
    let absent = || {
        Error::input(format!("is not in the cache `{}`", settings.cache.display()))
            .hint("`fewbit list` shows what is")
            .place(format!("`{name}`"))
    };
    if !repository.path().is_dir() {
        return Err(absent());
    }
    let before = folder_bytes(&repository.path())?;
    if name.named_revision().is_none() && name.file().is_none() {
        remove_all(&repository)?;
        return Ok(before);
    }
    let commits = match name.named_revision() {
        Some(revision) => vec![commit(&repository, revision)?.ok_or_else(absent)?],
        None => repository.commits()?,
    };
    let (mut is_there, mut unclear) = (false, None);
    for commit in commits {
        let snapshot = repository.snapshot(&commit);
        match name.file() {
            None => {
                remove_refs(&repository, &commit)?;
                remove_path(&snapshot)?;
            }
            Some(file) => {
                let files = match choose(&files_in(&snapshot)?, Some(file)) {
                    Ok(Choice::Gguf(files)) => files,
                    Ok(Choice::Folder { .. }) => continue,
                    Err(e) => {
                        unclear = Some(e.place(format!("what the cache holds of `{name}`")));
                        continue;
                    }
                };
                files.iter().try_for_each(|f| remove_path(&snapshot.join(f)))?;
                if files_in(&snapshot)?.is_empty() {
                    remove_refs(&repository, &commit)?;
                    remove_path(&snapshot)?;
                }
            }
        }
        is_there = true;
    }
    if !is_there {
        return Err(unclear.unwrap_or_else(absent));
    }
    if repository.commits()?.is_empty() {
        remove_all(&repository)?;
        return Ok(before);
    }
    remove_unused(&repository)?;
    Ok(before.saturating_sub(folder_bytes(&repository.path())?))
}

/// The commit of a revision; of the beginning of a commit as `fewbit list` shows it, the only one that begins so.
fn commit(repository: &Repository, revision: &str) -> Result<Option<String>> {
    if let Some(commit) = repository.commit_of(revision) {
        return Ok(Some(commit));
    }
    let mut found = repository.commits()?.into_iter().filter(|c| revision.len() >= 7 && c.starts_with(revision));
    let first = found.next();
    Ok(first.filter(|_| found.next().is_none()))
}

/// What makes files a model goes first: what is left if this is ended on the way never looks whole.
fn remove_all(repository: &Repository) -> Result<()> {
    [repository.refs(), repository.snapshots(), repository.path(), repository.locks()]
        .iter()
        .try_for_each(|p| remove_path(p))
}

fn remove_refs(repository: &Repository, commit: &str) -> Result<()> {
    let noted = repository.noted()?.into_iter().filter(|(_, c)| c == commit);
    noted.map(|(revision, _)| repository.refs().join(revision)).try_for_each(|path| remove_path(&path))
}

/// Removes the blobs that no snapshot leads to. Unfinished ones stay: their downloads go on.
fn remove_unused(repository: &Repository) -> Result<()> {
    let mut used = BTreeSet::new();
    for commit in repository.commits()? {
        let snapshot = repository.snapshot(&commit);
        used.extend(files_in(&snapshot)?.iter().filter_map(|f| fs::canonicalize(snapshot.join(f)).ok()));
    }
    let blobs = repository.blobs();
    for name in names_in(&blobs)?.into_iter().filter(|n| is_word(n) && !n.ends_with(".incomplete")) {
        let path = blobs.join(name);
        if fs::canonicalize(&path).is_ok_and(|real| !used.contains(&real)) {
            remove_path(&path)?;
        }
    }
    Ok(())
}

/// Removes a file, a link (not what it leads to) or a folder, if it is there.
fn remove_path(path: &Path) -> Result<()> {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("removing", path, &e)),
        _ => Ok(()),
    }
}

/// The bytes of the files in a folder and in those within it; links count nothing.
fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for name in names_in(folder)? {
        let path = folder.join(name);
        let metadata = fs::symlink_metadata(&path).map_err(|e| Error::io("reading", &path, &e))?;
        bytes += if metadata.is_dir() {
            folder_bytes(&path)?
        } else if metadata.is_file() {
            metadata.len()
        } else {
            0
        };
    }
    Ok(bytes)
}
