use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result};
use sha2::{Digest, Sha256};

use crate::client::{Client, Remote, refusal, text};
use crate::refusal::{Refusal, Subject};
use crate::{Listener, size_text};

const BUFFER: usize = 256 << 10;

/// Brings a file to `path`, from where an earlier try ended; `heard` is told of each piece and its bytes.
///
/// # Errors
/// If the hub refuses, the connection breaks too often, the disk is full, or the content is not what its mark says. What
/// is there is kept, except in the last case.
pub(crate) fn download(
    client: &Client<'_>,
    of: &Subject<'_>,
    remote: &Remote,
    path: &Path,
    listener: &mut dyn Listener,
    heard: &mut dyn FnMut(&mut dyn Listener, u64),
) -> Result<()> {
    let mut part = Part::open(path, remote).map_err(|e| of.place(e))?;
    let mut patience = client.patience();
    while part.length < remote.bytes {
        let begun = part.length;
        let broken = match part.read(client, remote, &mut |bytes| heard(listener, bytes)) {
            Ok(()) => continue,
            Err(Stop::Disk(e)) => return Err(of.place(e)),
            Err(Stop::Refused(r)) => r,
        };
        if part.length > begun {
            patience.renew();
        }
        let there = format!("{} of {} are there", size_text(part.length), size_text(remote.bytes));
        patience.wait(broken, listener).map_err(|r| r.with(&there).error(of))?;
    }
    part.finish().map_err(|e| of.place(e))
}

/// A file that is not whole yet.
struct Part {
    path: PathBuf,
    file: File,
    length: u64,
    /// Of what is there, and what it will be; where the mark is the content's SHA-256.
    hash: Option<(Sha256, String)>,
}

/// Why reading ended early.
enum Stop {
    Disk(Error),
    Refused(Refusal),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Part {
    fn open(path: &Path, remote: &Remote) -> Result<Self> {
        let failed = |e| Error::io("opening", path, &e);
        let file = File::options().create(true).read(true).append(true).open(path).map_err(failed)?;
        let is_sha256 = remote.etag.len() == 64 && remote.etag.bytes().all(|b| b.is_ascii_hexdigit());
        let hash = is_sha256.then(|| (Sha256::new(), remote.etag.to_ascii_lowercase()));
        let length = file.metadata().map_err(failed)?.len();
        let mut part = Self { path: path.to_owned(), file, length, hash };
        if length > remote.bytes {
            part.begin_again()?;
        }
        if let Some((hash, _)) = &mut part.hash {
            let (mut there, mut buffer) = ((&part.file).take(part.length), vec![0; BUFFER]);
            loop {
                match there.read(&mut buffer).map_err(|e| Error::io("reading", path, &e))? {
                    0 => break,
                    n => hash.update(&buffer[..n]),
                }
            }
        }
        Ok(part)
    }

    fn begin_again(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|e| Error::io("emptying", &self.path, &e))?;
        self.length = 0;
        if let Some((hash, _)) = &mut self.hash {
            *hash = Sha256::new();
        }
        Ok(())
    }

    /// Asks for what is missing, once.
    fn read(&mut self, client: &Client<'_>, remote: &Remote, heard: &mut dyn FnMut(u64)) -> Result<(), Stop> {
        client.check_stop()?;
        let response = match client.get(&remote.url, self.length) {
            Err(Refusal::Status(status)) if status.code == 416 && self.length > 0 => {
                // What is there cannot be the beginning of this file.
                return self.begin_again().map_err(Stop::Disk);
            }
            response => response?,
        };
        let begins = match response.status().as_u16() {
            206 => range_start(text(response.headers(), "content-range").as_deref()),
            _ => Some(0),
        };
        match begins {
            Some(at) if at == self.length => {}
            // A server that knows no ranges sends all of it.
            Some(0) => self.begin_again().map_err(Stop::Disk)?,
            _ => return Err(Refusal::Fault("it sends another part of the file than was asked for".to_owned()).into()),
        }
        let mut body = response.into_body().into_reader().take(remote.bytes - self.length);
        let mut buffer = vec![0; BUFFER];
        loop {
            client.check_stop()?;
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(refusal(e.into()).into()),
            };
            self.file.write_all(&buffer[..n]).map_err(|e| Stop::Disk(full(&self.path, &e)))?;
            if let Some((hash, _)) = &mut self.hash {
                hash.update(&buffer[..n]);
            }
            self.length += n as u64;
            heard(n as u64);
        }
        if self.length < remote.bytes {
            return Err(Refusal::Broken("it ended early".to_owned()).into());
        }
        Ok(())
    }

    /// Refuses what is not the content that the mark names, and removes it.
    fn finish(self) -> Result<()> {
        if let Some((hash, wanted)) = self.hash {
            let found = hex(&hash.finalize());
            if found != wanted {
                fs::remove_file(&self.path).map_err(|e| Error::io("removing", &self.path, &e))?;
                return Err(Error::input(format!(
                    "came with other content than the hub says: its SHA-256 is {found}, not {wanted}"
                ))
                .hint("it was removed; the same command downloads it again"));
            }
        }
        // Before it gets the name of a whole file.
        self.file.sync_all().map_err(|e| full(&self.path, &e))
    }
}

fn full(path: &Path, error: &std::io::Error) -> Error {
    let e = Error::io("writing", path, error);
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => e.hint(FULL),
        _ => e,
    }
}

/// The way out of a full disk.
pub(crate) const FULL: &str =
    "free space (`fewbit list` and `fewbit rm` help), or choose another disk with `HF_HOME`; the same command goes on";

fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// The first position of `bytes 5-9/10`.
fn range_start(header: Option<&str>) -> Option<u64> {
    header?.strip_prefix("bytes")?.trim_start().split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_range_is_read() {
        assert_eq!(range_start(Some("bytes 5-9/10")), Some(5));
        for other in [None, Some("5-9/10"), Some("bytes */10"), Some("")] {
            assert_eq!(range_start(other), None, "{other:?}");
        }
    }
}
