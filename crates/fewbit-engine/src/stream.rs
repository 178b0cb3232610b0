//! The residual stream of all calibration sequences between two blocks, in a mapped file.

use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result};
use memmap2::{MmapMut, UncheckedAdvice};

/// `[sequences · length, hidden]` f32 in a file: pages that are not used leave memory by themselves.
#[derive(Debug)]
pub(crate) struct Stream {
    path: PathBuf,
    map: MmapMut,
}

impl Stream {
    /// A new file of zeros.
    pub(crate) fn create(path: &Path, floats: usize) -> Result<Self> {
        Self::open_with(path, floats, true)
    }

    /// A file that an earlier run left.
    pub(crate) fn open(path: &Path, floats: usize) -> Result<Self> {
        Self::open_with(path, floats, false)
    }

    fn open_with(path: &Path, floats: usize, is_new: bool) -> Result<Self> {
        let fail = |doing: &'static str| move |e: std::io::Error| Error::io(doing, path, &e);
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(is_new)
            .truncate(is_new)
            .open(path)
            .map_err(fail("opening"))?;
        let bytes = 4 * floats as u64;
        if is_new {
            reserve(&file, bytes).map_err(fail("reserving space in"))?;
        } else if file.metadata().map_err(fail("reading"))?.len() != bytes {
            return Err(Error::input("has another length than this run needs")
                .hint("start anew with `--force`")
                .file(path));
        }
        // SAFETY: the file lies in the run's own working folder; nobody else writes it while we do.
        let map = unsafe { MmapMut::map_mut(&file) }.map_err(fail("mapping"))?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// Floats in all.
    pub(crate) fn len(&self) -> usize {
        self.map.len() / 4
    }

    /// Copies the floats from `from` on; returns where they end.
    pub(crate) fn read(&self, from: usize, out: &mut [f32]) -> usize {
        let to = from + out.len();
        let floats = self.map[4 * from..4 * to].as_chunks::<4>().0;
        out.iter_mut().zip(floats).for_each(|(o, c)| *o = f32::from_le_bytes(*c));
        self.give_back(from, to);
        to
    }

    /// Replaces the floats from `from` on; returns where they end.
    pub(crate) fn write(&mut self, from: usize, values: &[f32]) -> usize {
        let to = from + values.len();
        let out = self.map[4 * from..4 * to].as_chunks_mut::<4>().0;
        out.iter_mut().zip(values).for_each(|(o, v)| *o = v.to_le_bytes());
        self.give_back(from, to);
        to
    }

    /// The pages of floats `from..to` need not stay in this process: their content is in the file.
    fn give_back(&self, from: usize, to: usize) {
        // SAFETY: the mapping is shared and of a file, so that dropped pages keep what was written; they come back from
        // the file when they are read.
        let advised = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, 4 * from, 4 * (to - from)) };
        if let Err(e) = advised {
            log::debug!("pages of {} stay: {e}", self.path.display());
        }
    }

    /// Puts everything on the disk.
    pub(crate) fn flush(&self) -> Result<()> {
        self.map.flush().map_err(|e| Error::io("writing", &self.path, &e))
    }
}

/// Takes the blocks from the disk now: a full disk is an error here, not a signal in the middle of the work.
fn reserve(file: &std::fs::File, bytes: u64) -> std::io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    file.set_len(bytes)?;
    match fallocate(file, FallocateFlags::empty(), 0, bytes.max(1)) {
        Ok(()) => file.set_len(bytes),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
