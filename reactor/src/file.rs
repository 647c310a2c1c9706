//! Files outside the ring: opening for direct I/O, locking, filling with zeros, asking what lies below.
//!
//! All of this blocks. It belongs to the start, to recovery and to threads beside a shard, never to a shard's
//! loop. It decides nothing: whether a volatile file system or a busy lock is acceptable is the caller's to
//! say.

mod device;

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::memory::{Buffer, PAGE};

pub use self::device::{Device, WriteCache, device_of};

/// Length of one write of zeros: long enough for the disk's full speed, short enough to be cancelled soon.
const ZERO_WRITE_BYTES: usize = 1 << 20;

/// Alignment that is right on every device, for a kernel that does not tell.
const ALIGNMENT_UNKNOWN: u32 = 4096;

/// Mode of a file that we make: its contents are the users' messages.
const FILE_MODE: u32 = 0o600;

/// Why a file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system answers `EINVAL` to `O_DIRECT`.
    #[error(
        "{} lies on a file system without direct I/O (O_DIRECT): put the data directory on a local ext4 or \
         XFS file system; in a container, on a volume instead of the image's own layers",
        .path.display()
    )]
    NoDirectIo {
        /// The file.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot open {}: {source}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a file is not locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has the lock: a process, or what the kernel still does for one that was killed.
    #[error("the lock is held by somebody else")]
    Held,
    /// Anything else.
    #[error("cannot lock: {0}")]
    Io(#[from] io::Error),
}

/// What a directory's file system keeps its files on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystemKind {
    /// On memory: gone with the power, though it accepts direct I/O and flushes.
    Volatile {
        /// Such as `tmpfs`.
        name: &'static str,
    },
    /// On something else.
    Other {
        /// `f_type` of `statfs(2)`.
        magic: i64,
    },
}

/// How filling with zeros ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroed {
    /// All is written and on stable storage.
    Complete,
    /// The caller wanted it to stop.
    Cancelled,
}

/// Opens a file for direct reading and writing, for us alone if it is new.
///
/// # Errors
/// See [`FileError`].
pub fn open_direct(path: &Path, create: bool) -> Result<OwnedFd, FileError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).truncate(false);
    options.mode(FILE_MODE).custom_flags(libc::O_DIRECT);
    match options.open(path) {
        Ok(file) => Ok(file.into()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Err(FileError::NoDirectIo { path: path.to_owned() })
        }
        Err(source) => Err(FileError::Open { path: path.to_owned(), source }),
    }
}

/// What direct I/O on this file wants offsets, lengths and addresses to be multiples of, in bytes.
///
/// # Errors
/// What `statx(2)` said.
pub fn direct_alignment(file: impl AsFd) -> io::Result<u32> {
    let descriptor = file.as_fd().as_raw_fd();
    // SAFETY: `statx` is plain numbers, for which zero is a value.
    let mut answer = unsafe { std::mem::zeroed::<libc::statx>() };
    let (flags, wanted) = (libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN);
    // SAFETY: the descriptor is borrowed, so open; the path is an empty C string; `answer` is a valid statx
    // that the call fills in. No pointer is kept.
    let result = unsafe { libc::statx(descriptor, c"".as_ptr(), flags, wanted, &raw mut answer) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let alignment = answer.stx_dio_mem_align.max(answer.stx_dio_offset_align);
    let known = answer.stx_mask & wanted != 0 && alignment > 0;
    Ok(if known { alignment } else { ALIGNMENT_UNKNOWN })
}

/// What the file system of `path` keeps its files on.
///
/// # Errors
/// What `statfs(2)` said.
pub fn file_system_kind(path: &Path) -> io::Result<FileSystemKind> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `statfs` is plain numbers, for which zero is a value.
    let mut answer = unsafe { std::mem::zeroed::<libc::statfs>() };
    // SAFETY: `path` is a C string and `answer` a valid statfs that the call fills in. No pointer is kept.
    let result = unsafe { libc::statfs(path.as_ptr(), &raw mut answer) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(match answer.f_type {
        TMPFS_MAGIC => FileSystemKind::Volatile { name: "tmpfs" },
        RAMFS_MAGIC => FileSystemKind::Volatile { name: "ramfs" },
        magic => FileSystemKind::Other { magic },
    })
}

/// Makes a directory's entries stable: new, renamed and removed files.
///
/// # Errors
/// What `open(2)` or `fsync(2)` said.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Takes the lock of an open file (`flock`), without waiting. It is released when the last descriptor of this
/// opening is closed, copies and the ring's own included.
///
/// # Errors
/// See [`LockError`].
pub fn lock_exclusive(file: impl AsFd) -> Result<(), LockError> {
    let descriptor = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed, so open; no memory is involved.
    let result = unsafe { libc::flock(descriptor, libc::LOCK_EX | libc::LOCK_NB) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(if error.kind() == io::ErrorKind::WouldBlock { LockError::Held } else { LockError::Io(error) })
}

/// Writes `bytes` zeros from the beginning of a file and makes them stable, so that later writes are pure
/// overwrites of written extents. The space is allocated first, in one piece where possible: a full disk is
/// told before anything is written. `buffer` is overwritten, and its length bounds one write. `cancel` is
/// looked at between writes.
///
/// # Errors
/// What the system said, `ENOSPC` foremost.
///
/// # Panics
/// If `bytes` is not a multiple of [`PAGE`].
pub fn write_zeros(
    file: impl AsFd,
    bytes: u64,
    buffer: &mut Buffer,
    cancel: &AtomicBool,
) -> io::Result<Zeroed> {
    assert!(bytes.is_multiple_of(PAGE as u64), "{bytes} bytes of zeros");
    let file = File::from(file.as_fd().try_clone_to_owned()?);
    // Where space cannot be allocated, the zeros themselves take it.
    allocate(&file, 0..bytes)?;
    let zeroed = fill_with_zeros(&file, 0..bytes, buffer, cancel)?;
    if zeroed == Zeroed::Complete {
        file.sync_data()?;
    }
    Ok(zeroed)
}

/// Makes a file at least `bytes` long and returns how long it was. The new space is allocated and reads as
/// zeros; nothing is synced. A file that is long enough is left alone. Where the file system cannot allocate,
/// zeros are written from `buffer`, whose length bounds one write, and `cancel` is looked at between writes.
/// After an error the file is as long as it was.
///
/// # Errors
/// What the system said, `ENOSPC` foremost; `EFBIG` for a length that no file can have; `ECANCELED`.
///
/// # Panics
/// If `bytes` is not a multiple of [`PAGE`].
pub fn grow(file: impl AsFd, bytes: u64, buffer: &mut Buffer, cancel: &AtomicBool) -> io::Result<u64> {
    assert!(bytes.is_multiple_of(PAGE as u64), "growing to {bytes} bytes");
    let file = File::from(file.as_fd().try_clone_to_owned()?);
    let before = file.metadata()?.len();
    if before >= bytes {
        return Ok(before);
    }
    if let Err(error) = extend(&file, before..bytes, buffer, cancel) {
        // What was allocated goes back, also where the length has not changed yet. The first error is the
        // one that matters; a second costs space only.
        let _ = file.set_len(before);
        return Err(error);
    }
    Ok(before)
}

/// Gives back the space of a file behind `bytes`. A file that is not longer is left alone. Nothing is synced.
///
/// # Errors
/// What `fstat(2)` or `ftruncate(2)` said.
pub fn shrink(file: impl AsFd, bytes: u64) -> io::Result<()> {
    let file = File::from(file.as_fd().try_clone_to_owned()?);
    if file.metadata()?.len() > bytes {
        file.set_len(bytes)?;
    }
    Ok(())
}

/// Makes stable what was written to any file of the file system on which `file` lies (`syncfs`), with all
/// that is needed to find it. A failure of the background to write is told once for each opening, so keep the
/// descriptor open from before the first write on. XFS leaves the device's cache alone when it has no
/// metadata to write: pure overwrites want a `sync_data` of any one file behind this.
///
/// # Errors
/// What `syncfs(2)` said.
pub fn sync_file_system(file: impl AsFd) -> io::Result<()> {
    let descriptor = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed, so open; no memory is involved.
    let result = unsafe { libc::syncfs(descriptor) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes the space of `range`, which begins at the file's end, and makes the file that long.
fn extend(file: &File, range: Range<u64>, buffer: &mut Buffer, cancel: &AtomicBool) -> io::Result<()> {
    if allocate(file, range.clone())? {
        return Ok(());
    }
    match fill_with_zeros(file, range, buffer, cancel)? {
        Zeroed::Complete => Ok(()),
        Zeroed::Cancelled => Err(io::Error::from_raw_os_error(libc::ECANCELED)),
    }
}

/// Writes zeros over `range`, at most a buffer at a time.
fn fill_with_zeros(
    file: &File,
    range: Range<u64>,
    buffer: &mut Buffer,
    cancel: &AtomicBool,
) -> io::Result<Zeroed> {
    let step = buffer.capacity().min(ZERO_WRITE_BYTES);
    let zeros = &mut buffer[..step];
    zeros.fill(0);
    let mut position = range.start;
    while position < range.end {
        if cancel.load(Ordering::Relaxed) {
            return Ok(Zeroed::Cancelled);
        }
        let length = (range.end - position).min(step as u64);
        file.write_all_at(&zeros[..length as usize], position)?;
        position += length;
    }
    Ok(Zeroed::Complete)
}

/// Allocates `range` and makes the file at least as long. `false` when the file system cannot; nothing has
/// changed then.
fn allocate(file: &File, range: Range<u64>) -> io::Result<bool> {
    if range.is_empty() {
        return Ok(true);
    }
    let number =
        |bytes: u64| libc::off_t::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG));
    let (start, length) = (number(range.start)?, number(range.end - range.start)?);
    let descriptor = file.as_raw_fd();
    // SAFETY: the descriptor is borrowed, so open; no memory is involved.
    let result = unsafe { libc::fallocate(descriptor, 0, start, length) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(false),
        _ => Err(error),
    }
}
