//! The block device below a directory, and what it says of its write cache.
//!
//! A device with a volatile write cache (`write back`) loses what it has acknowledged unless it is flushed;
//! one with FUA can make a single write stable. Both are read from sysfs, where a partition has no queue of
//! its own and its disk's counts. File systems without one device (overlay, network, btrfs) have nothing
//! there: unknown.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where sysfs lists block devices by number.
const SYSFS_BLOCK: &str = "/sys/dev/block";

/// What becomes of an acknowledged write when the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteCache {
    /// It may be lost until a flush.
    Back,
    /// It is kept.
    Through,
    /// Nobody told: treat it as `Back`.
    Unknown,
}

/// The block device that a file system lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Kernel's name, such as `nvme0n1p2`; `unknown` when there is no block device.
    pub name: String,
    /// Of the whole disk.
    pub write_cache: WriteCache,
    /// Whether a single write can be made stable; `None` when nobody told.
    pub fua: Option<bool>,
}

/// Finds the device of the file system that `path` is on.
///
/// # Errors
/// What `stat(2)` said of `path`. A device that sysfs does not list is no error.
pub fn device_of(path: &Path) -> io::Result<Device> {
    let number = fs::metadata(path)?.dev();
    Ok(device_under(Path::new(SYSFS_BLOCK), libc::major(number), libc::minor(number)))
}

fn device_under(sysfs: &Path, major: u32, minor: u32) -> Device {
    let mut device =
        Device { major, minor, name: "unknown".to_owned(), write_cache: WriteCache::Unknown, fua: None };
    let Ok(directory) = fs::canonicalize(sysfs.join(format!("{major}:{minor}"))) else {
        return device;
    };
    if let Some(name) = directory.file_name() {
        device.name = name.to_string_lossy().into_owned();
    }
    if let Some(queue) = queue_of(&directory) {
        device.write_cache = match read(&queue, "write_cache").as_deref() {
            Some("write back") => WriteCache::Back,
            Some("write through") => WriteCache::Through,
            _ => WriteCache::Unknown,
        };
        device.fua = match read(&queue, "fua").as_deref() {
            Some("1") => Some(true),
            Some("0") => Some(false),
            _ => None,
        };
    }
    device
}

/// The device's own queue, or, for a partition, that of its disk.
fn queue_of(directory: &Path) -> Option<PathBuf> {
    let own = directory.join("queue");
    if own.is_dir() {
        return Some(own);
    }
    let disk = directory.parent()?.join("queue");
    disk.is_dir().then_some(disk)
}

fn read(queue: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(queue.join(name)).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A disk with one partition, as sysfs shows them.
    fn sysfs(write_cache: &str, fua: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("devices/nvme0n1");
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::create_dir_all(disk.join("nvme0n1p2")).unwrap();
        fs::write(disk.join("queue/write_cache"), write_cache).unwrap();
        fs::write(disk.join("queue/fua"), fua).unwrap();
        symlink(&disk, root.path().join("259:0")).unwrap();
        symlink(disk.join("nvme0n1p2"), root.path().join("259:2")).unwrap();
        root
    }

    #[test]
    fn disk_tells_its_write_cache() {
        let root = sysfs("write through\n", "1\n");
        let device = device_under(root.path(), 259, 0);
        assert_eq!(device.name, "nvme0n1");
        assert_eq!((device.write_cache, device.fua), (WriteCache::Through, Some(true)));
    }

    #[test]
    fn partition_has_its_disks_queue() {
        let root = sysfs("write back\n", "0\n");
        let device = device_under(root.path(), 259, 2);
        assert_eq!(device.name, "nvme0n1p2");
        assert_eq!((device.write_cache, device.fua), (WriteCache::Back, Some(false)));
    }

    #[test]
    fn file_system_without_a_device_is_unknown() {
        let root = sysfs("write back\n", "0\n");
        let device = device_under(root.path(), 0, 45);
        assert_eq!(
            (device.name.as_str(), device.write_cache, device.fua),
            ("unknown", WriteCache::Unknown, None)
        );
    }
}
