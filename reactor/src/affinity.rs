//! Which CPUs a thread may use, and pinning it to one.
//!
//! A shard's thread is pinned before it makes its ring; what it was allowed before ([`allowed_cpus`]) goes
//! into `Config::worker_cpus`, so that the ring's worker threads stay free to run elsewhere. A container's
//! quota ([`cpu_quota`]) is not an affinity: it stops all threads at once, and makes spinning expensive.

use std::fs;
use std::path::{Component, Path};

use core_affinity::CoreId;

/// Where the control groups are mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Why a thread was not pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AffinityError {
    /// The process may not use this CPU, or the host does not have it.
    #[error(
        "CPU {cpu} is not among those that this process may use: see the container's cpuset, and whether a \
         seccomp profile forbids `sched_setaffinity`"
    )]
    NotAllowed {
        /// The CPU that was asked for.
        cpu: usize,
    },
    /// The kernel agreed, but the thread is not where it should be.
    #[error("the thread was not pinned to CPU {cpu}, although the kernel said so")]
    NotPinned {
        /// The CPU that was asked for.
        cpu: usize,
    },
}

/// The CPUs that the calling thread may use, ascending; empty when the kernel does not tell.
pub fn allowed_cpus() -> Vec<usize> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    cores.into_iter().map(|core| core.id).collect()
}

/// Lets the calling thread run on `cpu` only, wherever it was allowed to run before, and checks that it
/// does.
///
/// # Errors
/// See [`AffinityError`].
pub fn pin_current_thread(cpu: usize) -> Result<(), AffinityError> {
    // A number that does not fit into a CPU set makes `core_affinity` panic.
    let fits = cpu < libc::CPU_SETSIZE as usize;
    if !fits || !core_affinity::set_for_current(CoreId { id: cpu }) {
        return Err(AffinityError::NotAllowed { cpu });
    }
    if allowed_cpus() != [cpu] {
        return Err(AffinityError::NotPinned { cpu });
    }
    Ok(())
}

/// CPU quota of this process's control group in cores' worth, the tightest of all levels; `None` without a
/// quota.
pub fn cpu_quota() -> Option<f64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    quota_under(Path::new(CGROUP_ROOT), &groups)
}

/// `groups` is the text of `/proc/self/cgroup`: a line `id:controllers:path` for each hierarchy.
fn quota_under(root: &Path, groups: &str) -> Option<f64> {
    let mut tightest: Option<f64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let quota = if controllers.is_empty() {
            tightest_level(root, path, quota_v2)
        } else if controllers.split(',').any(|controller| controller == "cpu") {
            tightest_level(&root.join(controllers), path, quota_v1)
        } else {
            None
        };
        tightest = smaller(tightest, quota);
    }
    tightest
}

/// Asks `read` at the mount and at each directory down to `path`: a quota binds all that lies below it. A
/// path that the mount does not show (seen from inside a container) ends the walk.
fn tightest_level(mount: &Path, path: &str, read: fn(&Path) -> Option<f64>) -> Option<f64> {
    let mut directory = mount.to_path_buf();
    let mut tightest = read(&directory);
    for component in Path::new(path).components() {
        let Component::Normal(name) = component else { continue };
        directory.push(name);
        tightest = smaller(tightest, read(&directory));
    }
    tightest
}

/// Version 2: `cpu.max` is `QUOTA PERIOD`, or `max PERIOD`.
fn quota_v2(directory: &Path) -> Option<f64> {
    let text = fs::read_to_string(directory.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    cores(quota, period)
}

/// Version 1: two files, and a quota of -1 for none.
fn quota_v1(directory: &Path) -> Option<f64> {
    let quota = fs::read_to_string(directory.join("cpu.cfs_quota_us")).ok()?;
    let period = fs::read_to_string(directory.join("cpu.cfs_period_us")).ok()?;
    cores(quota.trim(), period.trim())
}

fn cores(quota: &str, period: &str) -> Option<f64> {
    let quota: u64 = quota.parse().ok()?;
    let period: u64 = period.parse().ok().filter(|period| *period > 0)?;
    Some(quota as f64 / period as f64)
}

fn smaller(left: Option<f64>, right: Option<f64>) -> Option<f64> {
    match (left, right) {
        (Some(left), Some(right)) => Some(left.min(right)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with the given files, gone with the value.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn pinned_thread_may_use_one_cpu() {
        let cpus = allowed_cpus();
        let last = *cpus.last().unwrap();
        let seen = std::thread::spawn(move || {
            pin_current_thread(last).unwrap();
            allowed_cpus()
        });
        assert_eq!(seen.join().unwrap(), [last]);
        assert_eq!(allowed_cpus(), cpus, "other threads are as before");
    }

    #[test]
    fn pinned_thread_can_be_pinned_elsewhere() {
        let cpus = allowed_cpus();
        let (first, last) = (cpus[0], *cpus.last().unwrap());
        let seen = std::thread::spawn(move || {
            pin_current_thread(first).unwrap();
            pin_current_thread(last).unwrap();
            allowed_cpus()
        });
        assert_eq!(seen.join().unwrap(), [last]);
    }

    #[test]
    fn cpu_that_is_not_there_is_refused() {
        let refused = pin_current_thread(1_000_000);
        assert_eq!(refused, Err(AffinityError::NotAllowed { cpu: 1_000_000 }));
    }

    #[test]
    fn tightest_level_of_version_2_counts() {
        let root = tree(&[
            ("cpu.max", "max 100000\n"),
            ("a/cpu.max", "150000 100000\n"),
            ("a/b/cpu.max", "400000 100000\n"),
        ]);
        assert_eq!(quota_under(root.path(), "0::/a/b\n"), Some(1.5));
        assert_eq!(quota_under(root.path(), "0::/\n"), None);
    }

    #[test]
    fn version_1_quota_is_read_from_its_controllers_mount() {
        let root = tree(&[
            ("cpu,cpuacct/x/cpu.cfs_quota_us", "50000\n"),
            ("cpu,cpuacct/x/cpu.cfs_period_us", "100000\n"),
            ("cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(quota_under(root.path(), "5:memory:/x\n3:cpu,cpuacct:/x\n0::/\n"), Some(0.5));
        assert_eq!(quota_under(root.path(), "3:cpu,cpuacct:/\n"), None);
    }
}
