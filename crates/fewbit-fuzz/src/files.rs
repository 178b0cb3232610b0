use std::path::{Path, PathBuf};

use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = folder();
}

/// A folder of this thread, in memory where the system has such a place.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary folder can be made")
}

/// Writes these files alone into this thread's folder, and returns it.
pub(crate) fn write(files: &[(&str, &[u8])]) -> PathBuf {
    let folder = FOLDER.with(|f| f.path().to_owned());
    for entry in std::fs::read_dir(&folder).expect("the folder is ours").flatten() {
        std::fs::remove_file(entry.path()).expect("the file is ours");
    }
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).expect("a temporary file can be written");
    }
    folder
}
