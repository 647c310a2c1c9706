//! Ending a reactor's wait from another thread.
//!
//! One word says where the reactor is: awake, asleep, or told to wake. Only a waker that finds it asleep pays
//! for a system call (a write to an eventfd that the ring polls); all others leave a note, which the reactor
//! reads before it sleeps. So `wake` may be called after every message: while the reactor works it costs one
//! atomic swap. All steps are read-modify-writes of the one word: whatever a thread did before `wake` is seen
//! by the reactor after `take`, and no wake-up is lost.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

//          begin_sleep               wake, with a write to the eventfd
//   AWAKE -------------> ASLEEP -----------------------------------------> NOTIFIED
//   AWAKE <------------- ASLEEP
//          end_sleep
//   AWAKE ------------------- wake, without a system call ---------------> NOTIFIED
//   AWAKE <------------------------------ take --------------------------- NOTIFIED
const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const NOTIFIED: u32 = 2;

/// On cache lines of its own: other threads write here while the reactor works.
#[derive(Debug)]
#[repr(align(128))]
struct Shared {
    state: AtomicU32,
    eventfd: File,
}

/// Wakes one reactor. Any thread may hold it, also longer than the reactor lives.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

impl Waker {
    /// Makes the reactor's present or next wait end with [`Event::Woken`](crate::Event::Woken). Several calls
    /// before that event count as one.
    pub fn wake(&self) {
        if self.shared.state.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP {
            let written = (&self.shared.eventfd).write(&1_u64.to_ne_bytes());
            assert!(written.is_ok(), "an eventfd takes 2^64 - 2 wake-ups: {written:?}");
        }
    }
}

/// The reactor's end of its wakers.
#[derive(Debug)]
pub(crate) struct Sleeper {
    shared: Arc<Shared>,
}

impl Sleeper {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the call takes two numbers and makes a new descriptor.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `descriptor` was just made, is open, and nobody else has it.
        let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let shared = Shared { state: AtomicU32::new(AWAKE), eventfd: File::from(owned) };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker { shared: Arc::clone(&self.shared) }
    }

    /// What the ring polls. It is never read: each write fires an edge-triggered poll, and a new poll fires
    /// at once if there ever was a write, which costs one needless turn.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.shared.eventfd.as_raw_fd()
    }

    /// Whether `take` would say yes.
    pub(crate) fn is_notified(&self) -> bool {
        self.shared.state.load(Ordering::Relaxed) == NOTIFIED
    }

    /// Takes the note. What the wakers did before they woke is visible afterwards.
    pub(crate) fn take(&self) -> bool {
        self.is_notified() && self.shared.state.swap(AWAKE, Ordering::AcqRel) == NOTIFIED
    }

    /// From here on a waker writes to the eventfd. `false` when there is a note already: do not sleep.
    pub(crate) fn begin_sleep(&self) -> bool {
        self.shared.state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Awake again, for whatever reason. A note that came meanwhile stays.
    pub(crate) fn end_sleep(&self) {
        let _ = self.shared.state.compare_exchange(ASLEEP, AWAKE, Ordering::AcqRel, Ordering::Acquire);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn awake_reactor_gets_a_note_and_no_system_call() {
        let sleeper = Sleeper::new().unwrap();
        sleeper.waker().wake();
        sleeper.waker().wake();
        assert!(!sleeper.begin_sleep(), "a note keeps it awake");
        assert!(sleeper.take());
        assert!(!sleeper.take(), "several wakes are one note");
        assert!(sleeper.begin_sleep());
    }

    #[test]
    fn only_the_first_waker_of_a_sleeping_reactor_writes() {
        let sleeper = Sleeper::new().unwrap();
        assert!(sleeper.begin_sleep());
        sleeper.waker().wake();
        sleeper.waker().wake();
        sleeper.end_sleep();
        assert!(sleeper.take());
        let mut count = [0; 8];
        (&sleeper.shared.eventfd).read_exact(&mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }

    #[test]
    fn sleep_without_wake_leaves_no_note() {
        let sleeper = Sleeper::new().unwrap();
        assert!(sleeper.begin_sleep());
        sleeper.end_sleep();
        assert!(!sleeper.take());
    }
}
