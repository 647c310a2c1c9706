//! What a result was made on: kernel, processors, memory, the device below the data, versions. It stands in
//! `env.json`, because a figure without it says little.
//!
//! Everything is read from files of the kernel; what is not there is left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

/// Revision of the sources that this program was built from, if they were in a repository.
const GIT_REVISION: Option<&str> = option_env!("LOADGEN_GIT_REVISION");

/// The machine and the program.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Environment {
    /// Version of this object.
    pub(crate) schema: u32,
    /// Of this program.
    pub(crate) loadgen_version: &'static str,
    /// Of the sources; none without a repository.
    pub(crate) git_revision: Option<&'static str>,
    /// Whether it was built without optimisations, which spoils figures.
    pub(crate) is_debug_build: bool,
    /// The whole command line.
    pub(crate) command_line: Vec<String>,
    /// How the broker was started, if it was.
    pub(crate) broker_arguments: Vec<String>,
    /// Release and version.
    pub(crate) kernel: String,
    /// Arguments that it was started with.
    pub(crate) kernel_command_line: Option<String>,
    /// Name of the host.
    pub(crate) host: Option<String>,
    /// As the kernel calls it.
    pub(crate) cpu_model: Option<String>,
    /// How many there are.
    pub(crate) cpu_count: usize,
    /// Which of them may be used.
    pub(crate) cpus_allowed: Vec<usize>,
    /// Whether this is a virtual machine.
    pub(crate) is_virtual: bool,
    /// Governor, boost, clock source, huge pages, ...
    pub(crate) settings: BTreeMap<String, String>,
    /// Memory of the host.
    pub(crate) memory_bytes: Option<u64>,
    /// Where the broker's data lie, if it was started here.
    pub(crate) device: Option<Device>,
}

/// The device below a directory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Device {
    /// Name of the block device.
    pub(crate) name: String,
    /// Type of the file system.
    pub(crate) file_system: String,
    /// Options of the mount.
    pub(crate) mount_options: String,
    /// Model, scheduler, write cache, ...
    pub(crate) settings: BTreeMap<String, String>,
}

impl Environment {
    /// As it is now.
    pub(crate) fn read(broker_arguments: Vec<String>, data_directory: Option<&Path>) -> Self {
        let cpu_info = read("/proc/cpuinfo").unwrap_or_default();
        Self {
            schema: 1,
            loadgen_version: env!("CARGO_PKG_VERSION"),
            git_revision: GIT_REVISION,
            is_debug_build: cfg!(debug_assertions),
            command_line: std::env::args().collect(),
            broker_arguments,
            kernel: [read("/proc/sys/kernel/osrelease"), read("/proc/sys/kernel/version")]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(" "),
            kernel_command_line: read("/proc/cmdline"),
            host: read("/proc/sys/kernel/hostname"),
            cpu_model: field(&cpu_info, "model name"),
            cpu_count: cpu_info.lines().filter(|line| line.starts_with("processor")).count(),
            cpus_allowed: reactor::affinity::allowed_cpus(),
            is_virtual: cpu_info
                .lines()
                .any(|line| line.starts_with("flags") && line.contains(" hypervisor")),
            settings: settings(&[
                ("governor", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
                ("smt", "/sys/devices/system/cpu/smt/active"),
                ("clock_source", "/sys/devices/system/clocksource/clocksource0/current_clocksource"),
                ("transparent_huge_pages", "/sys/kernel/mm/transparent_hugepage/enabled"),
                ("isolated_cpus", "/sys/devices/system/cpu/isolated"),
                ("somaxconn", "/proc/sys/net/core/somaxconn"),
                ("swappiness", "/proc/sys/vm/swappiness"),
            ]),
            memory_bytes: read("/proc/meminfo")
                .and_then(|text| field(&text, "MemTotal"))
                .and_then(|text| text.trim_end_matches(" kB").trim().parse::<u64>().ok())
                .map(|kib| kib << 10),
            device: data_directory.and_then(Device::below),
        }
    }
}

impl Device {
    fn below(directory: &Path) -> Option<Self> {
        let mounts = read("/proc/self/mountinfo")?;
        let directory = directory.canonicalize().ok()?;
        let mount = deepest_mount(&mounts, &directory)?;
        let name = mount.source.strip_prefix("/dev/").unwrap_or(&mount.source).to_owned();
        // A partition has its queue in the directory of its disk.
        let queue = fs::canonicalize(format!("/sys/class/block/{name}")).ok().and_then(|path| {
            [Some(path.as_path()), path.parent()]
                .into_iter()
                .flatten()
                .map(|path| path.join("queue"))
                .find(|path| path.is_dir())
        });
        let mut found = BTreeMap::new();
        if let Some(queue) = queue {
            let wanted =
                ["scheduler", "write_cache", "fua", "rotational", "logical_block_size", "nr_requests"];
            for key in wanted {
                if let Some(value) = read(queue.join(key)) {
                    found.insert(key.to_owned(), value);
                }
            }
            if let Some(model) = read(queue.join("../device/model")) {
                found.insert("model".to_owned(), model);
            }
        }
        Some(Self { name, file_system: mount.file_system, mount_options: mount.options, settings: found })
    }
}

struct Mount {
    source: String,
    file_system: String,
    options: String,
}

/// The mount with the longest mount point above a directory.
fn deepest_mount(mounts: &str, directory: &Path) -> Option<Mount> {
    let mut best: Option<(usize, Mount)> = None;
    for line in mounts.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let (front, back): (Vec<&str>, Vec<&str>) = (front.split(' ').collect(), back.split(' ').collect());
        let (Some(point), Some(options)) = (front.get(4), front.get(5)) else { continue };
        let (Some(file_system), Some(source)) = (back.first(), back.get(1)) else { continue };
        let is_deeper = best.as_ref().is_none_or(|(length, _)| point.len() >= *length);
        if directory.starts_with(point) && is_deeper {
            let mount = Mount {
                source: (*source).to_owned(),
                file_system: (*file_system).to_owned(),
                options: (*options).to_owned(),
            };
            best = Some((point.len(), mount));
        }
    }
    best.map(|(_, mount)| mount)
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The value behind `name :` or `name:`.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn settings(wanted: &[(&str, &str)]) -> BTreeMap<String, String> {
    wanted.iter().filter_map(|(name, path)| Some(((*name).to_owned(), read(path)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deepest_mount_is_that_of_the_directory() {
        let mounts = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      30 21 0:26 / /tmp rw,nosuid - tmpfs tmpfs rw\n\
                      40 21 8:1 / /data rw,noatime - xfs /dev/sda1 rw\n";
        let of = |path: &str| deepest_mount(mounts, Path::new(path)).unwrap();
        assert_eq!(of("/data/broker").source, "/dev/sda1");
        assert_eq!((of("/data").file_system.as_str(), of("/data").options.as_str()), ("xfs", "rw,noatime"));
        assert_eq!(of("/tmp/x").file_system, "tmpfs");
        assert_eq!(of("/database").source, "/dev/vda");
    }

    #[test]
    fn this_machine_can_be_described() {
        let environment = Environment::read(Vec::new(), Some(Path::new("/")));
        assert!(environment.cpu_count > 0);
        assert!(environment.memory_bytes.unwrap() > 0);
        assert!(!environment.kernel.is_empty());
    }
}
