//! What this process has used (resident memory, CPU time), and how many files it may open.
//!
//! Read for `Stats` answers and for measurements, never on the path of a message. Readings are the kernel's
//! own and are not free (a file read or a system call each).

use std::fs;
use std::io;

use crate::clock;

/// Resident memory of the process, in bytes; zero when `/proc` is not mounted.
pub fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    resident_pages(&text).unwrap_or(0) * page_bytes()
}

/// User and system time of all threads of the process, in nanoseconds, the ring's workers included.
pub fn cpu_time_ns() -> u64 {
    clock::read_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// User and system time of the calling thread, in nanoseconds.
pub fn thread_cpu_time_ns() -> u64 {
    clock::read_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Lets the process have as many descriptors as it may grant itself (`RLIMIT_NOFILE`, the soft limit raised
/// to the hard one), and returns how many. The soft limit is low by default for programs that use
/// `select(2)`, which cannot name higher descriptors.
///
/// # Errors
/// What `getrlimit(2)` or `setrlimit(2)` said.
pub fn raise_open_files_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that the call fills in. No pointer is kept.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is a valid rlimit that the call only reads. No pointer is kept.
        let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

/// The second field of `statm`.
fn resident_pages(statm: &str) -> Option<u64> {
    statm.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The kernel's page size, which is not our [`PAGE`](crate::memory::PAGE) on every machine.
fn page_bytes() -> u64 {
    // SAFETY: `sysconf` only reads a constant of the system.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).expect("every system has a page size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_pages_are_the_second_field() {
        assert_eq!(resident_pages("765 438 410 5 0 123 0\n"), Some(438));
        assert_eq!(resident_pages(""), None);
    }

    #[test]
    fn raised_limit_of_open_files_stays() {
        let raised = raise_open_files_limit().unwrap();
        assert!(raised > 3, "{raised}");
        assert_eq!(raise_open_files_limit().unwrap(), raised);
    }

    #[test]
    fn touched_memory_is_resident() {
        let block = vec![1_u8; 8 << 20];
        assert!(resident_bytes() >= block.len() as u64);
    }

    #[test]
    fn cpu_time_grows_with_work() {
        let (process, thread) = (cpu_time_ns(), thread_cpu_time_ns());
        let mut sum = 0_u64;
        while thread_cpu_time_ns() == thread {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(cpu_time_ns() > process);
    }
}
