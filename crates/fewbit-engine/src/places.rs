//! Where a run works, and what it replaces: `OUT`, and `OUT.partial` beside it.
//!
//! A run works in `OUT.partial/parts`. What is whole becomes `OUT.partial/ready`, then `OUT`, each by one rename, so that
//! nothing unfinished ever stands at `OUT`. `OUT.partial/replace` says that the run was begun with `--force`,
//! `OUT.partial/lock` is held by the run that works there.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result};

use crate::Request;
use crate::journal::JOURNAL;
use crate::outputs::rename;
use crate::stop::crash_point;

/// The folders of one run.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) out: PathBuf,
    pub(crate) partial: PathBuf,
    /// Held as long as the run lives, however it ends.
    lock: Option<File>,
}

/// Where a run wants to work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim<'a> {
    /// What it makes.
    pub(crate) out: &'a Path,
    /// What it makes it from.
    pub(crate) model: &'a Path,
    /// Whether it goes on with what lies there; `None` for work that cannot be gone on with.
    pub(crate) resume: Option<bool>,
    /// Whether it replaces what lies there.
    pub(crate) force: bool,
}

impl<'a> Claim<'a> {
    pub(crate) fn of(request: &'a Request<'_>) -> Self {
        Self { out: &request.out, model: &request.model, resume: Some(request.resume), force: request.force }
    }

    fn resumes(self) -> bool {
        self.resume == Some(true)
    }
}

impl Places {
    /// Looks whether the run may work there, and makes its folder.
    pub(crate) fn claim(request: Claim<'_>) -> Result<Self> {
        // Without the trailing slash, after which a suffix would name a file within the folder.
        let out: PathBuf = request.out.components().collect();
        if out.file_name().is_none() {
            return Err(Error::input("is no name for a new folder").hint("choose another `--out`").file(request.out));
        }
        let mut name = out.as_os_str().to_owned();
        name.push(".partial");
        let mut places = Self { out, partial: name.into(), lock: None };
        places.check(request)?;
        if places.partial.exists() {
            places.lock = Some(places.locked()?);
        }
        let is_forced = request.force && !request.resumes();
        places.make(is_forced)?;
        // A folder that was removed and made anew has another lock.
        if is_forced || places.lock.is_none() {
            places.lock = Some(places.locked()?);
        }
        Ok(places)
    }

    /// Sees to it that no other run works in the folder: two would make a result of both.
    fn locked(&self) -> Result<File> {
        let path = self.partial.join("lock");
        let file = File::create(&path).map_err(|e| Error::io("creating", &path, &e))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Err(Error::input("another run works there").hint("wait for it, or stop it").file(&self.partial))
            }
            // Some network disks have no locks: there the user has to know.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        }
    }

    pub(crate) fn parts(&self) -> PathBuf {
        self.partial.join("parts")
    }

    /// An empty folder for generation `number` of the parts; what a run that was ended left there goes.
    pub(crate) fn next_parts(&self, number: usize) -> Result<PathBuf> {
        let next = self.generation(number);
        remove(&next)?;
        std::fs::create_dir(&next).map_err(|e| Error::io("creating", &next, &e))?;
        Ok(next)
    }

    /// Puts generation `number` of the parts, of which the journal says that it is whole, in the place of the one before.
    pub(crate) fn settle_parts(&self, number: usize) -> Result<()> {
        let next = self.generation(number);
        if !next.exists() {
            return Ok(());
        }
        remove(&self.parts())?;
        rename(&next, &self.parts())
    }

    /// The folder of generation `number` of the parts.
    pub(crate) fn generation(&self, number: usize) -> PathBuf {
        self.partial.join(format!("parts-{number}"))
    }

    /// What only has to be renamed to `OUT`.
    pub(crate) fn ready(&self) -> PathBuf {
        self.partial.join("ready")
    }

    fn marker(&self) -> PathBuf {
        self.partial.join("replace")
    }

    /// Whether the result stands at `OUT`, and just the working folder was not yet removed.
    pub(crate) fn is_finished(&self) -> bool {
        self.partial.exists() && self.out.exists() && !self.parts().exists() && !self.ready().exists()
    }

    fn check(&self, request: Claim<'_>) -> Result<()> {
        let (out, partial) = (&self.out, &self.partial);
        if request.resumes() {
            if !partial.exists() {
                let e = if out.exists() {
                    Error::input("is finished").file(out)
                } else {
                    Error::input("there is nothing to resume").file(partial)
                };
                return Err(e.hint("leave `--resume` out"));
            }
            if self.is_finished() || self.marker().exists() {
                return Ok(());
            }
        } else if partial.exists() && !request.force {
            let way_out = match request.resume {
                Some(_) => "go on with `--resume`, or start anew with `--force`",
                None => "start anew with `--force`",
            };
            return Err(Error::input("holds an unfinished run").hint(way_out).file(partial));
        }
        match (out.exists(), request.force) {
            (false, _) => Ok(()),
            (true, false) => Err(Error::input("exists already")
                .hint("choose another `--out`, or replace it with `--force`")
                .file(out)),
            (true, true) => self.check_replaceable(request.model),
        }
    }

    /// `--force` replaces models, not whatever folder was named by mistake, and not the source.
    fn check_replaceable(&self, model: &Path) -> Result<()> {
        let out = &self.out;
        let whole = |p: &Path| p.canonicalize().map_err(|e| Error::io("looking for", p, &e));
        if whole(model)?.starts_with(whole(out)?) {
            return Err(Error::input("is, or holds, the model itself").hint("choose another `--out`").file(out));
        }
        let is_model = if out.is_dir() {
            let is_empty = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
            is_empty || ["config.json", "model.gguf"].iter().any(|name| out.join(name).exists())
        } else {
            out.extension().is_some_and(|e| e == "gguf")
        };
        if is_model {
            return Ok(());
        }
        Err(Error::input("is not a model, and is not replaced")
            .hint("choose another `--out`, or remove it yourself")
            .file(out))
    }

    fn make(&self, is_forced: bool) -> Result<()> {
        let fail = |e: &std::io::Error| Error::io("creating", &self.partial, e);
        if is_forced && self.partial.exists() {
            std::fs::remove_dir_all(&self.partial).map_err(|e| Error::io("removing", &self.partial, &e))?;
        }
        if self.partial.exists() && (self.is_finished() || self.ready().exists()) {
            return Ok(());
        }
        std::fs::create_dir_all(&self.partial).map_err(|e| fail(&e))?;
        if is_forced && self.out.exists() {
            std::fs::write(self.marker(), b"").map_err(|e| fail(&e))?;
        }
        std::fs::create_dir_all(self.parts()).map_err(|e| fail(&e))?;
        crash_point();
        Ok(())
    }

    /// Leaves no working folder behind a run that was refused before it had begun.
    pub(crate) fn abandon(&self) {
        if !self.partial.join(JOURNAL).exists() {
            // The refusal is what the user has to hear.
            let _ = std::fs::remove_dir_all(&self.partial);
        }
    }

    /// Refuses a run for which the disk has no room; what an earlier run left there counts.
    pub(crate) fn check_space(&self, needed: u64) -> Result<()> {
        check_space(&self.out, &self.partial, needed.saturating_sub(stored_bytes(&self.partial)))
    }

    /// Makes what is ready the result.
    pub(crate) fn deliver(&self) -> Result<()> {
        let (out, ready) = (&self.out, self.ready());
        if ready.exists() {
            remove(&self.parts())?;
            if out.exists() {
                let replaced = self.partial.join("replaced");
                remove(&replaced)?;
                rename(out, &replaced)?;
            }
            rename(&ready, out)?;
        }
        // The journal goes last: as long as it is there, the folder is known for what it is.
        let journal = self.partial.join(JOURNAL);
        for entry in std::fs::read_dir(&self.partial).map_err(|e| Error::io("reading", &self.partial, &e))? {
            let path = entry.map_err(|e| Error::io("reading", &self.partial, &e))?.path();
            if path != journal {
                remove(&path)?;
            }
        }
        remove(&journal)?;
        remove(&self.partial)
    }
}

/// Refuses a result at `out` if the disk of `place`, or of the first folder above it that exists, has no room.
pub(crate) fn check_space(out: &Path, place: &Path, needed: u64) -> Result<()> {
    let place = place.ancestors().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    let Some(stat) = place.filter(|p| p.exists()).find_map(|p| rustix::fs::statvfs(p).ok()) else { return Ok(()) };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= needed {
        return Ok(());
    }
    let e = Error::input(format!("no space: {free} bytes are free, {needed} are needed"));
    Err(e.hint("free space, or choose another disk").file(out))
}

/// Removes a file or a folder, if there is one.
fn remove(path: &Path) -> Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    crash_point();
    let done = if metadata.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    done.map_err(|e| Error::io("removing", path, &e))
}

/// Bytes of all files under a folder.
fn stored_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(m) if m.is_dir() => stored_bytes(&entry.path()),
        Ok(m) => m.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}
