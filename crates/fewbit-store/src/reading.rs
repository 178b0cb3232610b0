//! Files that are there by name alone: what Git LFS and broken links leave in the place of a file.

use std::fs::Metadata;
use std::path::Path;

use fewbit_format::{Error, Result};

/// How every file begins that Git LFS puts in the place of a large one.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1";

/// Reads a whole file beside the weights of at most so many bytes.
///
/// # Errors
/// If it is longer, no regular file, cannot be read, or is not the file itself: a link that leads nowhere, a pointer of
/// Git LFS.
pub fn read_file(path: &Path, longest_bytes: u64) -> Result<Vec<u8>> {
    let length = regular_file("reading", path)?.len();
    if length > longest_bytes {
        let what = format!("is {length} bytes long, where at most {longest_bytes} are read");
        return Err(Error::input(what).hint("download it again").file(path));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io("reading", path, &e))?;
    check_pointer(&bytes).map_err(|e| e.file(path))?;
    Ok(bytes)
}

/// What is known of a file before it is opened: opening a pipe may never end.
pub(crate) fn regular_file(doing: &str, path: &Path) -> Result<Metadata> {
    check_link(path)?;
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(doing, path, &e))?;
    if metadata.is_file() { Ok(metadata) } else { Err(Error::input("is no regular file").file(path)) }
}

/// Whether a name leads nowhere although it is there: a link whose target is gone, as in a cache that was emptied.
pub(crate) fn is_broken_link(path: &Path) -> bool {
    path.is_symlink() && std::fs::metadata(path).is_err()
}

/// Refuses a link that leads nowhere.
pub(crate) fn check_link(path: &Path) -> Result<()> {
    if !is_broken_link(path) {
        return Ok(());
    }
    let target = std::fs::read_link(path).map_err(|e| Error::io("reading", path, &e))?;
    let is_gone = path.parent().is_none_or(|folder| !folder.join(&target).is_symlink());
    let end = if is_gone { "which is gone" } else { "which leads nowhere" };
    Err(Error::input(format!("is a link to `{}`, {end}", target.display()))
        .hint("download the model again, or mend the link")
        .file(path))
}

/// Refuses what Git LFS leaves where it did not download.
pub(crate) fn check_pointer(bytes: &[u8]) -> Result<()> {
    if !bytes.starts_with(POINTER) {
        return Ok(());
    }
    Err(Error::input("is a Git LFS pointer, not the file that it stands for").hint("run `git lfs pull` in its folder"))
}
