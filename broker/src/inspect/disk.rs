//! The files of a data directory as an inspection reads them: as they are, or as a repair would leave them.
//!
//! Nothing here writes. A planned change is laid over what its file holds, so that recovery itself can be asked what would
//! come of it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::data_dir::path_of;
use crate::io::{File, IoError};
use crate::limits::{PAGE_BYTES, RECOVERY_READ_BYTES};
use crate::preparer;

/// The files, and what is laid over them.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    directory: PathBuf,
    files: BTreeMap<File, u64>,
    overlay: BTreeMap<(File, u64), Vec<u8>>,
}

impl Disk {
    /// The files of a directory, as they are.
    pub(super) fn new(directory: &Path, files: BTreeMap<File, u64>) -> Self {
        Self { directory: directory.to_owned(), files, overlay: BTreeMap::new() }
    }

    /// The directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The files with their lengths.
    pub(super) fn files(&self) -> &BTreeMap<File, u64> {
        &self.files
    }

    /// Length of a file, if it is there.
    pub(super) fn bytes_of(&self, file: File) -> Option<u64> {
        self.files.get(&file).copied()
    }

    /// Where a file lies.
    pub(super) fn path_of(&self, file: File) -> PathBuf {
        path_of(&self.directory, file)
    }

    /// Numbers of the journal files.
    pub(super) fn journal_numbers(&self) -> Vec<u32> {
        let number_of = |file: &File| match file {
            File::Journal(number) => Some(*number),
            File::Superblock | File::Snapshot(_) | File::Segment(_) => None,
        };
        self.files.keys().filter_map(number_of).collect()
    }

    /// From now on as if the file were not there.
    pub(super) fn hide(&mut self, file: File) {
        self.files.remove(&file);
    }

    /// From now on as if these bytes, which lie within one page, were written to the file.
    pub(super) fn lay_over(&mut self, file: File, position: u64, bytes: Vec<u8>) {
        assert!(position as usize % PAGE_BYTES + bytes.len() <= PAGE_BYTES);
        self.overlay.insert((file, position), bytes);
    }

    /// Reads as many bytes as `into` has.
    ///
    /// # Errors
    /// What the system said, or `SHORT` at the file's end.
    pub(super) fn read(&self, file: File, position: u64, into: &mut [u8]) -> Result<(), IoError> {
        fs::File::open(self.path_of(file))
            .and_then(|opened| opened.read_exact_at(into, position))
            .map_err(|error| error_of(&error))?;
        let end = position + into.len() as u64;
        let first = position - position % PAGE_BYTES as u64;
        for (&(_, at), bytes) in self.overlay.range((file, first)..(file, end)) {
            let (from, to) = (at.max(position), (at + bytes.len() as u64).min(end));
            if from < to {
                let source = &bytes[(from - at) as usize..(to - at) as usize];
                into[(from - position) as usize..(to - position) as usize].copy_from_slice(source);
            }
        }
        Ok(())
    }

    /// Reads so many bytes.
    ///
    /// # Errors
    /// As `read`.
    pub(super) fn bytes(&self, file: File, position: u64, length: usize) -> Result<Vec<u8>, IoError> {
        let mut bytes = vec![0; length];
        self.read(file, position, &mut bytes)?;
        Ok(bytes)
    }
}

/// One file, read through a window from front to back.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    disk: &'a Disk,
    file: File,
    file_bytes: u64,
    start: u64,
    window: Vec<u8>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(disk: &'a Disk, file: File) -> Self {
        let file_bytes = disk.bytes_of(file).unwrap_or(0);
        Self { disk, file, file_bytes, start: 0, window: Vec::new() }
    }

    /// Length of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// What the file holds from a position on: so many bytes, or more.
    ///
    /// # Errors
    /// As `Disk::read`.
    pub(super) fn at(&mut self, position: u64, least: usize) -> Result<&[u8], IoError> {
        let held_end = self.start + self.window.len() as u64;
        if position < self.start || held_end < position + least as u64 {
            let left = self.file_bytes.saturating_sub(position);
            let bytes = (RECOVERY_READ_BYTES as u64).min(left).max(least as u64);
            self.start = position;
            self.window.clear();
            self.window = self.disk.bytes(self.file, position, bytes as usize)?;
        }
        Ok(&self.window[(position - self.start) as usize..])
    }
}

fn error_of(error: &io::Error) -> IoError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => IoError::SHORT,
        _ => preparer::error_of(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_laid_over_is_read_in_place_of_the_files_own() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::Journal(0);
        fs::write(path_of(directory.path(), file), vec![1; 3 * PAGE_BYTES]).unwrap();
        let mut disk = Disk::new(directory.path(), BTreeMap::from([(file, 3 * PAGE_BYTES as u64)]));
        disk.lay_over(file, PAGE_BYTES as u64, vec![2; PAGE_BYTES]);
        let bytes = disk.bytes(file, 100, 2 * PAGE_BYTES).unwrap();
        let twos = PAGE_BYTES - 100..2 * PAGE_BYTES - 100;
        assert!(bytes[twos.clone()].iter().all(|byte| *byte == 2));
        assert_eq!(bytes.iter().filter(|byte| **byte == 1).count(), bytes.len() - twos.len());
        disk.lay_over(file, 0, vec![3; 64]);
        assert_eq!(disk.bytes(file, 60, 8), Ok(vec![3, 3, 3, 3, 1, 1, 1, 1]));
        assert_eq!(disk.bytes(file, 64, 2), Ok(vec![1, 1]));
        assert_eq!(disk.bytes(file, 2 * PAGE_BYTES as u64, 2 * PAGE_BYTES), Err(IoError::SHORT));
        assert_eq!(fs::read(path_of(directory.path(), file)).unwrap(), vec![1; 3 * PAGE_BYTES]);
    }
}
