//! The one place that reads clocks.
//!
//! The loop reads the time once in a turn and hands it down as data ([`Now`]). Deadlines are points on the
//! monotonic clock, in nanoseconds since boot, which never goes back; the wall clock may, and is only for
//! stamps that people and other hosts read.

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds since boot, without sleep (`CLOCK_MONOTONIC`).
    pub monotonic_ns: u64,
    /// Milliseconds since 1970 (`CLOCK_REALTIME`).
    pub wall_ms: u64,
}

/// Reads both clocks.
pub fn now() -> Now {
    Now { monotonic_ns: monotonic_ns(), wall_ms: read_ns(libc::CLOCK_REALTIME) / 1_000_000 }
}

/// Reads the monotonic clock: nanoseconds since boot.
pub fn monotonic_ns() -> u64 {
    read_ns(libc::CLOCK_MONOTONIC)
}

/// Any of the kernel's clocks, in nanoseconds. A clock before its own zero (wall clock before 1970) reads as
/// zero.
pub(crate) fn read_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that the call fills in; it keeps no pointer to it.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(result, 0, "clock {clock} cannot be read");
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1_000_000_000 + nanoseconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_clock_never_goes_back() {
        let mut last = monotonic_ns();
        for _ in 0..10_000 {
            let next = monotonic_ns();
            assert!(next >= last);
            last = next;
        }
        assert!(now().monotonic_ns >= last);
    }

    #[test]
    fn wall_clock_counts_from_1970() {
        const YEAR_2020_MS: u64 = 1_577_836_800_000;
        assert!(now().wall_ms > YEAR_2020_MS);
    }
}
