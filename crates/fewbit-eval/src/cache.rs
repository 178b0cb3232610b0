//! Where the original's log-probabilities are kept from one evaluation to the next.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fewbit_format::{Error, Mat, Result};
use fewbit_kernel::Team;
use fewbit_store::ModelFile;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::recording::{decode, encode, row_bytes};
use crate::windows::Windows;

/// A folder of recorded log-probabilities, each file named by a hash of all that it depends on.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    most_entry_bytes: u64,
    most_bytes: u64,
}

const MAGIC: &[u8; 16] = b"fewbit-logprobs1";
const HEAD: u64 = 16 + 32 + 8 + 8;
const EXTENSION: &str = "logprobs";

/// SHA-256 of an original, as it lies on disk, and of windows.
pub(crate) type Key = [u8; 32];

/// What is in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) vocabulary: usize,
}

impl Shape {
    fn bytes(self) -> u64 {
        HEAD + self.rows as u64 * row_bytes(self.vocabulary) as u64
    }
}

impl Cache {
    /// Entries of at most 1 GiB, all together at most 4 GiB, in a folder that is made when it is needed.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), most_entry_bytes: 1 << 30, most_bytes: 4 << 30 }
    }

    /// The user's cache folder, where the system has one: `$XDG_CACHE_HOME`, `~/.cache`, `~/Library/Caches` or
    /// `%LOCALAPPDATA%`.
    pub fn of_user() -> Option<Self> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let home = |path: &str| variable("HOME").map(|h| h.join(path));
        let base = if cfg!(windows) {
            variable("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            home("Library/Caches")
        } else {
            variable("XDG_CACHE_HOME").or_else(|| home(".cache"))
        };
        base.map(|b| Self::at(b.join("fewbit").join("logprobs")))
    }

    fn path(&self, key: &Key) -> PathBuf {
        let (head, _) = key.split_first_chunk::<16>().expect("a key has 32 bytes");
        self.folder.join(format!("{:032x}", u128::from_be_bytes(*head))).with_extension(EXTENSION)
    }

    /// Opens an entry; `None` if there is none that is whole.
    pub(crate) fn open(&self, key: &Key, shape: Shape) -> Option<Reader> {
        let path = self.path(key);
        let file = File::open(&path).ok()?;
        if file.metadata().ok()?.len() != shape.bytes() {
            return None;
        }
        let mut reader = Reader { file: BufReader::new(file), path, shape };
        let mut head = [0; HEAD as usize];
        reader.file.read_exact(&mut head).ok()?;
        if head != header(key, shape) {
            return None;
        }
        // Remembers that it was of use, for the order in which entries are thrown away.
        let _ = reader.file.get_ref().set_modified(SystemTime::now());
        Some(reader)
    }

    /// Begins an entry; `None` if it would be too large or the folder cannot be written.
    pub(crate) fn create(&self, key: &Key, shape: Shape) -> Option<Writer> {
        if shape.bytes() > self.most_entry_bytes {
            log::debug!("log-probabilities are not kept: {} bytes", shape.bytes());
            return None;
        }
        let begin = || {
            std::fs::create_dir_all(&self.folder)?;
            let mut file = BufWriter::new(NamedTempFile::new_in(&self.folder)?);
            file.write_all(&header(key, shape))?;
            Ok(Writer { file, path: self.path(key), shape, rows: 0, cache: self.clone() })
        };
        begin().map_err(|e| unkept(&self.folder, &e)).ok()
    }

    /// Throws the entries away that were not of use for longest, until the rest is small enough.
    fn shrink(&self) -> std::io::Result<()> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let metadata = path.metadata()?;
            if path.extension().is_some_and(|e| e == EXTENSION) && metadata.is_file() {
                entries.push((metadata.modified()?, metadata.len(), path));
            }
        }
        entries.sort();
        let mut bytes: u64 = entries.iter().map(|e| e.1).sum();
        for (_, len, path) in entries {
            if bytes <= self.most_bytes {
                break;
            }
            std::fs::remove_file(path)?;
            bytes -= len;
        }
        Ok(())
    }
}

fn unkept(folder: &Path, error: &std::io::Error) {
    log::warn!("the original's log-probabilities are not kept in `{}`: {error}", folder.display());
}

fn header(key: &Key, shape: Shape) -> [u8; HEAD as usize] {
    let mut head = [0; HEAD as usize];
    head[..16].copy_from_slice(MAGIC);
    head[16..48].copy_from_slice(key);
    head[48..56].copy_from_slice(&(shape.rows as u64).to_le_bytes());
    head[56..].copy_from_slice(&(shape.vocabulary as u64).to_le_bytes());
    head
}

/// The key of an original's log-probabilities: its files by path, size and time, its configuration, the windows, and
/// the program that computes them.
///
/// # Errors
/// If a file of the model is gone.
pub(crate) fn key(file: &ModelFile, windows: &Windows) -> Result<Key> {
    let mut hash = Sha256::new();
    hash.update(concat!("fewbit ", env!("CARGO_PKG_VERSION"), " logprobs1 "));
    hash.update(fewbit_kernel::cpu::detect().name());
    let checkpoint = file.checkpoint();
    hash.update(serde_json::to_vec(checkpoint.config()).map_err(|e| Error::internal(e.to_string()))?);
    let files: BTreeSet<&Path> = checkpoint.names().filter_map(|n| checkpoint.file_of(n)).collect();
    for path in files {
        let unread = |e| Error::io("opening", path, &e);
        let metadata = path.metadata().map_err(unread)?;
        let modified = metadata.modified().map_err(unread)?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let canonical = path.canonicalize().map_err(unread)?;
        hash.update(canonical.as_os_str().as_encoded_bytes());
        hash.update(metadata.len().to_le_bytes());
        hash.update(modified.as_nanos().to_le_bytes());
    }
    windows.hash(&mut hash);
    Ok(hash.finalize().into())
}

/// Reads the rows of an entry in order.
#[derive(Debug)]
pub(crate) struct Reader {
    file: BufReader<File>,
    path: PathBuf,
    shape: Shape,
}

impl Reader {
    /// Goes back to the first row.
    pub(crate) fn rewind(&mut self) -> Result<()> {
        self.file.seek(SeekFrom::Start(HEAD)).map(drop).map_err(|e| Error::io("reading", &self.path, &e))
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// The next `rows` rows as logits `[rows, vocabulary]`, and the nats of the tokens that came.
    pub(crate) fn rows(&mut self, team: &Team, rows: usize) -> Result<(Mat, Vec<f64>)> {
        let (vocabulary, size) = (self.shape.vocabulary, row_bytes(self.shape.vocabulary));
        let mut bytes = vec![0; rows * size];
        self.file.read_exact(&mut bytes).map_err(|e| Error::io("reading", &self.path, &e))?;
        let mut all: Vec<(Vec<f32>, Option<f64>)> = vec![(Vec::new(), None); rows];
        team.for_pieces(&mut all, 1, &|r, row| {
            let mut logits = vec![0.0; vocabulary];
            let nll = decode(&bytes[r * size..(r + 1) * size], &mut logits);
            row[0] = (logits, nll);
        });
        let damaged = || Error::input("is damaged").hint("delete it: it is made again").file(&self.path);
        let nll = all.iter().map(|(_, nll)| nll.ok_or_else(damaged)).collect::<Result<_>>()?;
        let data: Vec<f32> = all.into_iter().flat_map(|(logits, _)| logits).collect();
        Ok((Mat::from_vec(rows, vocabulary, data), nll))
    }
}

/// Writes the rows of an entry in order; the entry is there once it is whole.
#[derive(Debug)]
pub(crate) struct Writer {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
    shape: Shape,
    rows: usize,
    cache: Cache,
}

impl Writer {
    /// Adds rows; `None` if they cannot be written (the entry is given up, the evaluation goes on).
    pub(crate) fn push(mut self, team: &Team, logits: &Mat, nll: &[f64]) -> Option<Self> {
        let size = row_bytes(self.shape.vocabulary);
        let mut bytes = vec![0; logits.rows() * size];
        team.for_pieces(&mut bytes, size, &|r, out| encode(logits.row(r), nll[r], out));
        self.rows += logits.rows();
        self.file.write_all(&bytes).map_err(|e| unkept(&self.cache.folder, &e)).ok()?;
        Some(self)
    }

    /// Puts the entry in its place, if it is whole.
    pub(crate) fn finish(self) {
        if self.rows != self.shape.rows {
            return;
        }
        let Self { file, path, cache, .. } = self;
        let write = || {
            let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.persist(&path).map_err(|e| e.error)?;
            cache.shrink()
        };
        if let Err(e) = write() {
            unkept(&cache.folder, &e);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { rows: 3, vocabulary: 5 };

    fn write(cache: &Cache, key: Key, rows: usize) {
        let team = Team::new(1);
        let mut writer = cache.create(&key, SHAPE).unwrap();
        for r in 0..rows {
            let logits = Mat::from_fn(1, 5, |_, c| (r + c) as f32);
            writer = writer.push(&team, &logits, &[r as f64]).unwrap();
        }
        writer.finish();
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("a/b"));
        write(&cache, [1; 32], 3);
        write(&cache, [2; 32], 2);
        assert!(cache.open(&[2; 32], SHAPE).is_none(), "an entry that is not whole");
        assert!(cache.open(&[1; 32], Shape { rows: 3, vocabulary: 6 }).is_none());
        let mut reader = cache.open(&[1; 32], SHAPE).unwrap();
        for _ in 0..2 {
            reader.rewind().unwrap();
            let (logits, nll) = reader.rows(&Team::new(2), 3).unwrap();
            assert_eq!(nll, [0.0, 1.0, 2.0]);
            assert_eq!((logits[(1, 4)], logits[(1, 0)]), (0.0, -4.0));
        }
        assert!(reader.rows(&Team::new(1), 1).is_err());
        std::fs::write(cache.path(&[1; 32]), b"fewbit").unwrap();
        assert!(cache.open(&[1; 32], SHAPE).is_none());
    }

    #[test]
    fn it_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = Cache::at(dir.path());
        cache.most_bytes = 2 * SHAPE.bytes();
        for k in 1..5 {
            write(&cache, [k; 32], 3);
            let times = SystemTime::now() - std::time::Duration::from_secs(100 - u64::from(k));
            File::options().append(true).open(cache.path(&[k; 32])).unwrap().set_modified(times).unwrap();
        }
        let there = [1u8, 2, 3, 4].map(|k| cache.open(&[k; 32], SHAPE).is_some());
        assert_eq!(there, [false, false, true, true]);
        cache.most_entry_bytes = 10;
        assert!(cache.create(&[9; 32], SHAPE).is_none());
    }
}
