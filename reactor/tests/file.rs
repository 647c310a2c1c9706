//! Files outside the ring, on the file system that holds the build's output.
//!
//! Needs a file system with direct I/O there, which is what a data directory needs too.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use reactor::file::{self, FileSystemKind, LockError, Zeroed};
use reactor::memory::{PAGE, Pool};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build's directory can be written")
}

#[test]
fn zeros_replace_what_was_there_and_take_their_space() {
    const BYTES: u64 = (3 << 20) + PAGE as u64;
    let directory = directory();
    let path = directory.path().join("journal");
    fs::write(&path, vec![1; 10_000]).unwrap();
    let file = file::open_direct(&path, false).unwrap();
    let mut buffer = Pool::new(1).unwrap().buffer(2 << 20).unwrap();
    buffer.fill(9);
    let cancel = AtomicBool::new(false);
    assert_eq!(file::write_zeros(&file, BYTES, &mut buffer, &cancel).unwrap(), Zeroed::Complete);
    let contents = fs::read(&path).unwrap();
    assert_eq!(contents.len() as u64, BYTES);
    assert!(contents.iter().all(|byte| *byte == 0));
    assert!(fs::metadata(&path).unwrap().blocks() * 512 >= BYTES, "no holes");
}

#[test]
fn cancelled_zeroing_says_so() {
    let directory = directory();
    let file = file::open_direct(&directory.path().join("journal"), true).unwrap();
    let mut buffer = Pool::new(1).unwrap().buffer(PAGE).unwrap();
    let cancel = AtomicBool::new(true);
    assert_eq!(file::write_zeros(&file, 1 << 20, &mut buffer, &cancel).unwrap(), Zeroed::Cancelled);
}

#[test]
fn grown_file_keeps_its_bytes_and_gains_zeros_that_take_their_space() {
    const BYTES: u64 = 256 << 10;
    let directory = directory();
    let path = directory.path().join("segment");
    fs::write(&path, vec![7; PAGE]).unwrap();
    let file = file::open_direct(&path, false).unwrap();
    let mut buffer = Pool::new(1).unwrap().buffer(PAGE).unwrap();
    let never = AtomicBool::new(false);
    assert_eq!(file::grow(&file, BYTES, &mut buffer, &never).unwrap(), PAGE as u64);
    let contents = fs::read(&path).unwrap();
    assert_eq!(contents.len() as u64, BYTES);
    assert!(contents[..PAGE].iter().all(|byte| *byte == 7));
    assert!(contents[PAGE..].iter().all(|byte| *byte == 0));
    assert!(fs::metadata(&path).unwrap().blocks() * 512 >= BYTES, "no holes");
    assert_eq!(file::grow(&file, PAGE as u64, &mut buffer, &never).unwrap(), BYTES, "it never shrinks");
    assert_eq!(fs::metadata(&path).unwrap().len(), BYTES);
}

#[test]
fn failed_growth_leaves_the_file_as_it_was() {
    let directory = directory();
    let path = directory.path().join("segment");
    fs::write(&path, vec![7; PAGE]).unwrap();
    let file = file::open_direct(&path, false).unwrap();
    let mut buffer = Pool::new(1).unwrap().buffer(PAGE).unwrap();
    let too_long = u64::MAX - (PAGE as u64 - 1);
    let error = file::grow(&file, too_long, &mut buffer, &AtomicBool::new(false)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
    assert_eq!(fs::read(&path).unwrap(), vec![7; PAGE]);
}

#[test]
fn shrunk_file_keeps_its_beginning_and_a_shorter_one_is_left_alone() {
    let directory = directory();
    let path = directory.path().join("segment");
    fs::write(&path, vec![7; 3 * PAGE]).unwrap();
    let file = file::open_direct(&path, false).unwrap();
    file::shrink(&file, PAGE as u64).unwrap();
    assert_eq!(fs::read(&path).unwrap(), vec![7; PAGE]);
    file::shrink(&file, 2 * PAGE as u64).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), PAGE as u64);
}

#[test]
fn file_system_is_synced_through_any_of_its_descriptors() {
    let directory = directory();
    fs::write(directory.path().join("any"), b"bytes").unwrap();
    file::sync_file_system(fs::File::open(directory.path()).unwrap()).unwrap();
}

#[test]
fn missing_file_is_not_made_unless_wanted() {
    let directory = directory();
    let path = directory.path().join("nothing");
    let error = file::open_direct(&path, false).unwrap_err();
    assert!(error.to_string().contains("nothing"), "{error}");
    file::open_direct(&path, true).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o077, 0, "it is ours alone");
    file::sync_directory(directory.path()).unwrap();
}

#[test]
fn direct_alignment_is_a_power_of_two_up_to_a_page() {
    let directory = directory();
    let file = file::open_direct(&directory.path().join("any"), true).unwrap();
    let alignment = file::direct_alignment(&file).unwrap();
    assert!(alignment.is_power_of_two(), "{alignment}");
    assert!(alignment as usize <= PAGE, "{alignment}");
}

#[test]
fn lock_belongs_to_one_opening() {
    let directory = directory();
    let path = directory.path().join("lock");
    let first = file::open_direct(&path, true).unwrap();
    let second = file::open_direct(&path, false).unwrap();
    file::lock_exclusive(&first).unwrap();
    file::lock_exclusive(&first).unwrap();
    assert!(matches!(file::lock_exclusive(&second), Err(LockError::Held)));
    drop(first);
    file::lock_exclusive(&second).unwrap();
}

#[test]
fn kernel_file_systems_are_not_taken_for_memory() {
    match file::file_system_kind(Path::new("/proc")).unwrap() {
        FileSystemKind::Other { magic } => assert_eq!(magic, 0x9fa0),
        other @ FileSystemKind::Volatile { .. } => panic!("{other:?}"),
    }
}

#[test]
fn every_directory_has_a_device() {
    let directory = directory();
    let device = file::device_of(directory.path()).unwrap();
    let number = fs::metadata(directory.path()).unwrap().dev();
    assert_eq!((device.major, device.minor), (libc::major(number), libc::minor(number)));
    assert!(!device.name.is_empty());
}
