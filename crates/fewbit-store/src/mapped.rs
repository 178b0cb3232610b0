use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fewbit_format::{Error, Result};
use memmap2::{Mmap, UncheckedAdvice};

use crate::reading;

/// A file mapped for reading; slices of [`Mapped::bytes`] keep the map alive.
#[derive(Debug)]
pub(crate) struct Mapped {
    path: PathBuf,
    map: Arc<Mmap>,
    bytes: Bytes,
}

struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Mapped {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        reading::regular_file("opening", path)?;
        let file = File::open(path).map_err(|e| Error::io("opening", path, &e))?;
        // SAFETY: the map is only read. A file that another process shortens meanwhile ends this one with SIGBUS, as
        // for every reader through maps; its length is checked against its header when it is opened.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("mapping", path, &e))?;
        reading::check_pointer(&map).map_err(|e| e.file(path))?;
        let map = Arc::new(map);
        let bytes = Bytes::from_owner(Owner(Arc::clone(&map)));
        Ok(Self { path: path.to_owned(), map, bytes })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Says that all of the file will be read again and again: the system may read it in huge pages.
    pub(crate) fn ask_for_huge_pages(&self) {
        #[cfg(target_os = "linux")]
        if let Err(e) = self.map.advise(memmap2::Advice::HugePage) {
            // A system without them has small ones.
            log::debug!("{}: no huge pages: {e}", self.path.display());
        }
    }

    /// Gives the pages of a range back to the system; they are read again when they are touched again.
    pub(crate) fn drop_pages(&self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        // SAFETY: the map is shared, read-only and backed by a file, so that dropped pages come back with the same
        // bytes; nothing is ever written to them.
        let dropped = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        if let Err(e) = dropped {
            // Only resident memory depends on it.
            log::debug!("{}: dropping pages failed: {e}", self.path.display());
        }
    }
}
