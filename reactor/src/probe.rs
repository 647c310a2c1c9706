//! Whether this host can run a reactor, and if not, what is missing and how to mend it.
//!
//! [`probe`] runs once, before anything else is started, so that an operator reads one clear sentence instead
//! of an error number. It makes a small ring, asks the kernel for its operations, and throws the ring away.

use std::fs;
use std::io;

use io_uring::opcode;

use crate::ring::Ring;

/// Oldest kernel with single-issuer rings, multishot accept and cancellation by rule. The errors below name
/// it.
const KERNEL_MIN: (u32, u32) = (6, 0);

/// What the reactor submits.
const OPCODES: [(&str, u8); 8] = [
    ("IORING_OP_ACCEPT", opcode::AcceptMulti::CODE),
    ("IORING_OP_RECV", opcode::Recv::CODE),
    ("IORING_OP_SENDMSG", opcode::SendMsg::CODE),
    ("IORING_OP_READ", opcode::Read::CODE),
    ("IORING_OP_WRITE", opcode::Write::CODE),
    ("IORING_OP_FSYNC", opcode::Fsync::CODE),
    ("IORING_OP_POLL_ADD", opcode::PollAdd::CODE),
    ("IORING_OP_ASYNC_CANCEL", opcode::AsyncCancel2::CODE),
];

/// What `probe` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostReport {
    /// Release of the running kernel, such as `6.18.44`.
    pub kernel_release: String,
    /// How rings are set up here, see `Reactor::mode`.
    pub ring_mode: &'static str,
    /// Limit of locked memory in bytes, which rings count against; `None` when there is no limit.
    pub memlock_bytes: Option<u64>,
}

/// Why a ring cannot be made. Each sentence says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The administrator has switched io_uring off.
    #[error(
        "io_uring is switched off on this host (kernel.io_uring_disabled = {level}): set it to 0 with \
         `sysctl -w kernel.io_uring_disabled=0`, or to 1 and put this user into the group \
         kernel.io_uring_group"
    )]
    Disabled {
        /// 1: only for a group and for root; 2: for all.
        level: u32,
    },
    /// Something between us and the kernel says no.
    #[error(
        "io_uring_setup is not permitted (EPERM): a seccomp profile or a security module forbids it. In a \
         container, start it with a profile that allows io_uring_setup, io_uring_enter and io_uring_register \
         (`--security-opt seccomp=PROFILE.json`)"
    )]
    Forbidden,
    /// The system call does not exist here.
    #[error(
        "this kernel has no io_uring (ENOSYS), it is built without CONFIG_IO_URING, or a seccomp profile \
         hides it: use Linux 6.0 or newer, and in a container a profile that allows io_uring"
    )]
    Absent,
    /// Rings count as locked memory.
    #[error(
        "no memory for a ring (ENOMEM): locked memory is limited to {limit}: raise it with \
         `ulimit -l unlimited`, LimitMEMLOCK=infinity in the systemd unit, or `--ulimit memlock=-1` for a \
         container"
    )]
    LockedMemory {
        /// The present limit, for people.
        limit: String,
    },
    /// No more files.
    #[error(
        "too many open files for a ring ({source}): raise `ulimit -n` or LimitNOFILE in the systemd unit"
    )]
    Descriptors {
        /// Per process or per host.
        source: io::Error,
    },
    /// Multishot accept and others are missing.
    #[error("Linux {release} is too old: 6.0 or newer is needed, 6.6 or newer is best")]
    KernelTooOld {
        /// Of the running kernel.
        release: String,
    },
    /// The kernel's io_uring does not do what it should at its version.
    #[error("this kernel's io_uring lacks the operation {name}: use a stock kernel of Linux 6.0 or newer")]
    OpcodeMissing {
        /// As in `linux/io_uring.h`.
        name: &'static str,
    },
    /// The kernel's io_uring does not do what it should at its version.
    #[error("this kernel's io_uring lacks the feature {name}: use a stock kernel of Linux 6.0 or newer")]
    FeatureMissing {
        /// As in `linux/io_uring.h`.
        name: &'static str,
    },
    /// More operations were asked for than the kernel's queues hold.
    #[error("a ring with {wanted} completions was asked for, the kernel gives {given}: lower operations_max")]
    TooManyOperations {
        /// Completions that may be there at once.
        wanted: u32,
        /// Length of the completion queue.
        given: u32,
    },
    /// Anything else.
    #[error("setting up io_uring failed in {call}: {source}")]
    Refused {
        /// Which step.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl SetupError {
    /// Why `io_uring_setup` (or the mapping of its queues) failed.
    pub(crate) fn from_ring_setup(source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM) => match disabled_level() {
                0 => Self::Forbidden,
                level => Self::Disabled { level },
            },
            Some(libc::ENOSYS) => Self::Absent,
            Some(libc::ENOMEM) => Self::LockedMemory { limit: describe(memlock_bytes()) },
            Some(libc::EMFILE | libc::ENFILE) => Self::Descriptors { source },
            _ => Self::Refused { call: "io_uring_setup", source },
        }
    }

    /// For `map_err` on a later step.
    pub(crate) fn refused(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Refused { call, source }
    }
}

/// Checks the host.
///
/// # Errors
/// The first thing that is missing.
pub fn probe() -> Result<HostReport, SetupError> {
    let kernel_release = kernel_release();
    if version(&kernel_release).is_some_and(|version| version < KERNEL_MIN) {
        return Err(SetupError::KernelTooOld { release: kernel_release });
    }
    let ring = Ring::new(8, 16)?;
    let operations = ring.probe().map_err(SetupError::refused("IORING_REGISTER_PROBE"))?;
    for (name, code) in OPCODES {
        if !operations.is_supported(code) {
            return Err(SetupError::OpcodeMissing { name });
        }
    }
    Ok(HostReport { kernel_release, ring_mode: ring.mode(), memlock_bytes: memlock_bytes() })
}

/// Empty when `/proc` is not mounted.
fn kernel_release() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// Major and minor number; `None` when the text has none.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some((major, minor))
}

/// The sysctl `kernel.io_uring_disabled`; 0 where it does not exist (before Linux 6.6).
fn disabled_level() -> u32 {
    let text = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Soft limit of locked memory; `None` when there is no limit.
fn memlock_bytes() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that the call fills in; it keeps no pointer to it.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    assert_eq!(result, 0, "the limit of locked memory can always be read");
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn describe(memlock_bytes: Option<u64>) -> String {
    match memlock_bytes {
        Some(bytes) => format!("{} KiB", bytes / 1024),
        None => "nothing, so the host itself is short of memory".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_releases() {
        assert_eq!(version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(version("5.15.0-1044-aws"), Some((5, 15)));
        assert_eq!(version("6.1"), Some((6, 1)));
        assert_eq!(version(""), None);
        assert!(version("5.19.2").unwrap() < KERNEL_MIN);
    }

    #[test]
    fn this_host_is_fit() {
        let report = probe().unwrap();
        assert!(version(&report.kernel_release).unwrap() >= KERNEL_MIN);
        assert!(!report.ring_mode.is_empty());
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = |number| SetupError::from_ring_setup(io::Error::from_raw_os_error(number)).to_string();
        assert!(error(libc::ENOSYS).contains("Linux 6.0"));
        assert!(error(libc::ENOMEM).contains("LimitMEMLOCK"));
        assert!(error(libc::EMFILE).contains("ulimit -n"));
        assert!(error(libc::EINVAL).contains("io_uring_setup"));
        assert!(SetupError::Disabled { level: 2 }.to_string().contains("kernel.io_uring_disabled"));
        assert!(SetupError::Forbidden.to_string().contains("seccomp"));
        assert!(SetupError::OpcodeMissing { name: "IORING_OP_RECV" }.to_string().contains("IORING_OP_RECV"));
    }
}
