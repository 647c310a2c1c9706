//! The waiting policy, the same as the broker's: how long to spin for the next completion before going to sleep.
//!
//! Pure: the time comes in as an argument. The broker's fall-back from `adaptive` to `park`, where spinning is
//! measured to be worse, is left out, so that a run of the floor waits as it was told to.

use std::time::{Duration, Instant};

use crate::Waiting;

/// Longest spin for one commit that answers wait for.
const COMMIT_SPIN_MAX: Duration = Duration::from_micros(1_000);
/// Spin after a completion, whatever it was.
const COMPLETION_SPIN: Duration = Duration::from_micros(50);

/// What to do until the next completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Sleep in the kernel.
    Sleep,
    /// Spin, and sleep from this moment on.
    SpinUntil(Instant),
    /// Spin.
    Spin,
}

impl Rest {
    /// Whether the spin has lasted long enough.
    pub(crate) fn is_over(self, now: Instant) -> bool {
        match self {
            Self::Sleep => true,
            Self::SpinUntil(end) => now >= end,
            Self::Spin => false,
        }
    }
}

/// Remembers since when answers have waited for the commit that comes next.
#[derive(Debug)]
pub(crate) struct Patience {
    waiting: Waiting,
    awaited: Option<Commit>,
}

#[derive(Clone, Copy, Debug)]
struct Commit {
    number: u64,
    since: Instant,
}

impl Patience {
    pub(crate) fn new(waiting: Waiting) -> Self {
        Self { waiting, awaited: None }
    }

    /// How to rest after the turn that began at `now` with completions. `awaited` numbers the commit that answers
    /// wait for, if any do.
    pub(crate) fn rest(&mut self, now: Instant, awaited: Option<u64>) -> Rest {
        self.awaited = awaited.map(|number| match self.awaited {
            Some(commit) if commit.number == number => commit,
            _ => Commit { number, since: now },
        });
        match self.waiting {
            Waiting::Park => Rest::Sleep,
            Waiting::Busy => Rest::Spin,
            Waiting::Adaptive => {
                let after_completion = now + COMPLETION_SPIN;
                let after_commit = self.awaited.map(|commit| commit.since + COMMIT_SPIN_MAX);
                Rest::SpinUntil(after_commit.map_or(after_completion, |end| end.max(after_completion)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_commit_is_spun_for_at_most_a_millisecond_and_each_completion_for_50_us() {
        let mut patience = Patience::new(Waiting::Adaptive);
        let start = Instant::now();
        let at = |us| start + Duration::from_micros(us);
        assert_eq!(patience.rest(at(0), None), Rest::SpinUntil(at(50)));
        assert_eq!(patience.rest(at(100), Some(7)), Rest::SpinUntil(at(1_100)));
        assert_eq!(patience.rest(at(400), Some(7)), Rest::SpinUntil(at(1_100)));
        assert_eq!(patience.rest(at(1_090), Some(7)), Rest::SpinUntil(at(1_140)));
        assert_eq!(patience.rest(at(1_500), Some(8)), Rest::SpinUntil(at(2_500)));
        assert_eq!(patience.rest(at(1_600), None), Rest::SpinUntil(at(1_650)));
    }

    #[test]
    fn park_never_spins_and_busy_never_sleeps() {
        let now = Instant::now();
        assert_eq!(Patience::new(Waiting::Park).rest(now, Some(1)), Rest::Sleep);
        assert_eq!(Patience::new(Waiting::Busy).rest(now, None), Rest::Spin);
        assert!(Rest::Sleep.is_over(now));
        assert!(!Rest::Spin.is_over(now));
    }
}
