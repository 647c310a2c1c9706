//! A file system of its own in one file, small enough to be filled: ext4 on a loop device.
//!
//! It needs root, a loop device and `mkfs.ext4`; where one of them is missing, it says which. It is unmounted when its
//! handle is dropped, also when the test fails.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::served::directory;

/// How often it is tried to unmount, and the pause between two tries: the kernel may hold files of a process that has
/// just ended for some more milliseconds.
const UNMOUNTS_MAX: u32 = 200;
const UNMOUNT_PAUSE: Duration = Duration::from_millis(50);

/// A mounted file system.
pub(crate) struct SmallDisk {
    mount_point: PathBuf,
    /// Of its image and its mount point; removed last.
    _directory: TempDir,
}

impl SmallDisk {
    /// Makes and mounts one of this length.
    ///
    /// # Errors
    /// Why there can be none here, in words.
    pub(crate) fn mount(bytes: u64) -> Result<Self, String> {
        let owner = fs::metadata("/proc/self").map_err(|error| format!("/proc/self: {error}"))?.uid();
        if owner != 0 {
            return Err("only root can mount".to_owned());
        }
        let directory = directory();
        let (image, mount_point) = (directory.path().join("image"), directory.path().join("mounted"));
        fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        fs::create_dir(&mount_point).unwrap();
        // No blocks are set aside for root, who this is.
        run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-m", "0"], &[&image])?;
        run("mount", &["-o", "loop"], &[&image, &mount_point])?;
        Ok(Self { mount_point, _directory: directory })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mount_point
    }
}

impl Drop for SmallDisk {
    #[allow(clippy::disallowed_methods, reason = "nobody tells when the kernel has let the last file go")]
    fn drop(&mut self) {
        for _ in 0..UNMOUNTS_MAX {
            if run("umount", &[], &[&self.mount_point]).is_ok() {
                return;
            }
            std::thread::sleep(UNMOUNT_PAUSE);
        }
        // It goes when its last file does.
        if let Err(error) = run("umount", &["--lazy"], &[&self.mount_point]) {
            eprintln!("{} is still mounted: {error}", self.mount_point.display());
        }
    }
}

fn run(program: &str, flags: &[&str], paths: &[&Path]) -> Result<(), String> {
    let paths = paths.iter().map(|path| path.as_os_str());
    let arguments = flags.iter().map(OsStr::new).chain(paths);
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {}", said.trim())) }
}
