//! The data directory: its lock, its files by name, and what it lies on.
//!
//! ```text
//! LOCK                          flock of the process that serves the directory
//! superblock                    two checked copies
//! journal-NNNNN                 journal files, all of one length
//! snapshot-0, snapshot-1        snapshot files, written in turn
//! segments/HHHHHHHHHHHHHHHH.seg segments of partitions' logs, by number in hexadecimal
//! *.tmp                         a file that is being made; what is left of one is made again
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reactor::file::{FileSystemKind, LockError, file_system_kind, lock_exclusive, sync_directory};

use crate::io::File;

/// Name of the file that carries the lock.
pub(crate) const LOCK_NAME: &str = "LOCK";
/// Name of the directory of segments: there can be tens of thousands, and people look at the others.
const SEGMENTS_NAME: &str = "segments";
/// Digits of a segment's name, so that names sort as numbers do.
const SEGMENT_DIGITS: usize = 16;

/// How long a start waits for the lock: after SIGKILL the dead process's writes can go on for tens of milliseconds,
/// and hold it.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It cannot be made, read or written.
    #[error("cannot use data directory {}: {source}", .path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another broker serves it.
    #[error("data directory {} is in use by process {holder}; end that one first, or choose another --data-dir", .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// What the lock file says of its holder.
        holder: String,
    },
    /// It lies in memory.
    #[error(
        "data directory {} lies on {kind}, which a power cut empties; choose a directory on a disk, or pass \
         --volatile if that is meant", .path.display()
    )]
    Volatile {
        /// The directory.
        path: PathBuf,
        /// Kind of file system.
        kind: &'static str,
    },
    /// A file that looks like one of ours and is not.
    #[error("{} is not a file that this broker knows; move it away", .0.display())]
    UnknownFile(PathBuf),
}

/// An opened and locked data directory.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Held for as long as the process may still write; the ring gets a copy.
    pub lock: OwnedFd,
    /// Whether a power cut empties it.
    pub is_volatile: bool,
}

impl DataDir {
    /// Makes the directory if it is not there, takes its lock, and makes the directory of segments in it.
    ///
    /// # Errors
    /// See `DataDirError`.
    pub fn open(path: &Path, allow_volatile: bool) -> Result<Self, DataDirError> {
        let io = |source| DataDirError::Io { path: path.to_owned(), source };
        create_durable(path).map_err(io)?;
        let is_volatile = match file_system_kind(path).map_err(io)? {
            FileSystemKind::Volatile { name } if !allow_volatile => {
                return Err(DataDirError::Volatile { path: path.to_owned(), kind: name });
            }
            FileSystemKind::Volatile { .. } => true,
            FileSystemKind::Other { .. } => false,
        };
        let lock_path = path.join(LOCK_NAME);
        let mut lock = fs::OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(io)?;
        wait_for_lock(&lock, path)?;
        lock.set_len(0).map_err(io)?;
        writeln!(lock, "{}", std::process::id()).map_err(io)?;
        fs::create_dir_all(segments_of(path)).map_err(io)?;
        sync_directory(&segments_of(path)).map_err(io)?;
        sync_directory(path).map_err(io)?;
        Ok(Self { path: path.to_owned(), lock: lock.into(), is_volatile })
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file lies.
    #[must_use]
    pub fn path_of(&self, file: File) -> PathBuf {
        path_of(&self.path, file)
    }

    /// The files that are there, with their lengths.
    ///
    /// # Errors
    /// `Io`, or `UnknownFile` for a name that begins as ours do and goes on differently, and for any other name
    /// among the segments.
    pub fn files(&self) -> Result<BTreeMap<File, u64>, DataDirError> {
        let mut files = BTreeMap::new();
        self.list(&self.path, &mut files, |name| match file_of(name) {
            Some(file) => Known::File(file),
            None if ["journal", "super", "snapshot"].iter().any(|ours| name.starts_with(ours)) => Known::No,
            None => Known::NotOurs,
        })?;
        self.list(&segments_of(&self.path), &mut files, |name| {
            segment_of(name).map_or(Known::No, Known::File)
        })?;
        Ok(files)
    }

    /// Adds the files of one directory.
    fn list(
        &self,
        directory: &Path,
        files: &mut BTreeMap<File, u64>,
        known: impl Fn(&str) -> Known,
    ) -> Result<(), DataDirError> {
        let io = |source| DataDirError::Io { path: self.path.clone(), source };
        for entry in fs::read_dir(directory).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { return Err(DataDirError::UnknownFile(entry.path())) };
            if name.ends_with(".tmp") {
                continue;
            }
            match known(name) {
                Known::File(file) => {
                    files.insert(file, entry.metadata().map_err(io)?.len());
                }
                Known::NotOurs => {}
                Known::No => return Err(DataDirError::UnknownFile(entry.path())),
            }
        }
        Ok(())
    }
}

/// What a name in a data directory stands for.
enum Known {
    File(File),
    /// Nothing of ours: it is left alone.
    NotOurs,
    /// It looks like ours, and is not.
    No,
}

/// Where a file of a data directory lies.
#[must_use]
pub fn path_of(directory: &Path, file: File) -> PathBuf {
    match file {
        File::Superblock => directory.join("superblock"),
        File::Journal(number) => directory.join(format!("journal-{number:05}")),
        File::Snapshot(number) => directory.join(format!("snapshot-{number}")),
        File::Segment(number) => segments_of(directory).join(format!("{number:0SEGMENT_DIGITS$x}.seg")),
    }
}

/// Where the segments of a data directory lie.
pub(crate) fn segments_of(directory: &Path) -> PathBuf {
    directory.join(SEGMENTS_NAME)
}

/// The file of a name in the data directory itself.
fn file_of(name: &str) -> Option<File> {
    match name {
        "superblock" => return Some(File::Superblock),
        "snapshot-0" => return Some(File::Snapshot(0)),
        "snapshot-1" => return Some(File::Snapshot(1)),
        _ => {}
    }
    let digits = name.strip_prefix("journal-")?;
    let is_number = digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_number.then(|| digits.parse().ok().map(File::Journal))?
}

/// The file of a name among the segments.
fn segment_of(name: &str) -> Option<File> {
    let digits = name.strip_suffix(".seg")?;
    let is_number = digits.len() == SEGMENT_DIGITS
        && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    is_number.then(|| u64::from_str_radix(digits, 16).ok().map(File::Segment))?
}

/// Makes the directory, and its name durable, with those of all directories above it: an earlier start may have
/// made them and died.
fn create_durable(path: &Path) -> std::io::Result<()> {
    fs::create_dir_all(path)?;
    for above in path.canonicalize()?.ancestors().skip(1) {
        match sync_directory(above) {
            // A directory that may not be read was not made by us.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => break,
            outcome => outcome?,
        }
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "a start waits for the lock of a process that is ending")]
fn wait_for_lock(lock: &fs::File, path: &Path) -> Result<(), DataDirError> {
    let mut waited = Duration::ZERO;
    loop {
        match lock_exclusive(lock) {
            Ok(()) => return Ok(()),
            Err(LockError::Held) if waited < LOCK_WAIT => {
                std::thread::sleep(LOCK_RETRY);
                waited += LOCK_RETRY;
            }
            Err(LockError::Held) => {
                let holder = fs::read_to_string(path.join(LOCK_NAME)).unwrap_or_default();
                let holder = if holder.trim().is_empty() { "(unknown)" } else { holder.trim() };
                return Err(DataDirError::InUse { path: path.to_owned(), holder: holder.to_owned() });
            }
            Err(LockError::Io(source)) => return Err(DataDirError::Io { path: path.to_owned(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_files_match_both_ways() {
        let name_of = |file| path_of(Path::new("d"), file).file_name().unwrap().to_str().unwrap().to_owned();
        for file in
            [File::Superblock, File::Journal(0), File::Journal(12_345), File::Snapshot(0), File::Snapshot(1)]
        {
            assert_eq!(file_of(&name_of(file)), Some(file));
        }
        for file in [File::Segment(0), File::Segment(0xa1), File::Segment(u64::MAX)] {
            assert_eq!(segment_of(&name_of(file)), Some(file));
        }
        let path = path_of(Path::new("d"), File::Segment(0xa1));
        assert_eq!(path, Path::new("d/segments/00000000000000a1.seg"));
        for name in ["journal-1", "journal-+0001", "journal-000001", "snapshot-2", "snapshot-00", "segments"]
        {
            assert_eq!(file_of(name), None, "{name}");
        }
        for name in ["a1.seg", "00000000000000A1.seg", "+0000000000000a1.seg", "00000000000000a1"] {
            assert_eq!(segment_of(name), None, "{name}");
        }
    }

    #[test]
    fn files_of_both_levels_are_listed_with_their_lengths() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(directory.path(), true).unwrap();
        assert!(data_dir.files().unwrap().is_empty());
        let written = [(File::Journal(3), 30), (File::Snapshot(1), 10), (File::Segment(0xa1), 100)];
        for (file, bytes) in written {
            fs::write(data_dir.path_of(file), vec![0; bytes as usize]).unwrap();
        }
        for ignored in ["notes.txt", "journal-00004.tmp", "segments/half.tmp"] {
            fs::write(directory.path().join(ignored), b"").unwrap();
        }
        assert_eq!(data_dir.files().unwrap(), BTreeMap::from(written));
    }

    #[test]
    fn names_that_look_like_ours_are_refused() {
        for name in ["journal-x", "snapshot-2", "superblock.old", "segments/notes.txt"] {
            let directory = tempfile::tempdir().unwrap();
            let data_dir = DataDir::open(directory.path(), true).unwrap();
            let path = directory.path().join(name);
            fs::write(&path, b"").unwrap();
            let error = data_dir.files().unwrap_err();
            assert!(matches!(&error, DataDirError::UnknownFile(unknown) if *unknown == path), "{error}");
        }
    }

    #[test]
    fn the_lock_is_held_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let first = DataDir::open(directory.path(), true).unwrap();
        let lock = fs::File::open(directory.path().join("LOCK")).unwrap();
        assert!(matches!(lock_exclusive(&lock), Err(LockError::Held)));
        drop(first);
        assert!(lock_exclusive(&lock).is_ok());
    }
}
