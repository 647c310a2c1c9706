//! The life of one listening socket: a multishot accept that is armed again whenever it ends.
//!
//! After an error it rests for a while, so that a lack of descriptors, which nothing here can cure, does not
//! turn into a hot loop. A listener that is armed can only be dropped when its accept has ended: until then
//! the kernel may still answer with connections. It makes entries and keeps state; the reactor submits.

use std::net::TcpListener;
use std::os::fd::AsRawFd;

use io_uring::squeue;

use crate::operation::ListenerId;
use crate::submission;
use crate::tag::Tag;

/// How long a listener rests after an error.
pub(crate) const ACCEPT_PAUSE_NS: u64 = 10_000_000;

/// ```text
///           submit               ended with a connection
/// WANTED ----------> ARMED ------------------------------> WANTED
///                     | |  ended with an error               pause over
///                     | '------------------------> PAUSED ----------------> ARMED
///                     |  stop                submit cancel
///                     '-------> STOP_WANTED ---------------> STOPPING
/// ```
/// Either of the last two is gone with the accept's last completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Wanted,
    Armed,
    Paused { until_ns: u64 },
    StopWanted,
    Stopping,
}

#[derive(Debug)]
pub(crate) struct Listener {
    id: ListenerId,
    socket: TcpListener,
    state: State,
}

impl Listener {
    pub(crate) fn new(id: ListenerId, socket: TcpListener) -> Self {
        Self { id, socket, state: State::Wanted }
    }

    pub(crate) fn id(&self) -> ListenerId {
        self.id
    }

    /// Whether the kernel holds an accept that is yet to end.
    pub(crate) fn is_armed(&self) -> bool {
        matches!(self.state, State::Armed | State::StopWanted | State::Stopping)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        matches!(self.state, State::StopWanted | State::Stopping)
    }

    /// End of the pause, while there is one.
    pub(crate) fn paused_until_ns(&self) -> Option<u64> {
        match self.state {
            State::Paused { until_ns } => Some(until_ns),
            _ => None,
        }
    }

    /// Whether `begin` has something to submit.
    pub(crate) fn is_due(&self, now_ns: u64) -> bool {
        match self.state {
            State::Wanted | State::StopWanted => true,
            State::Paused { until_ns } => until_ns <= now_ns,
            State::Armed | State::Stopping => false,
        }
    }

    /// What to submit now. The caller does submit it.
    pub(crate) fn begin(&mut self) -> squeue::Entry {
        let tag = Tag::Accept(self.id.0);
        match self.state {
            State::Wanted | State::Paused { .. } => {
                self.state = State::Armed;
                submission::accept(self.socket.as_raw_fd(), tag)
            }
            State::StopWanted => {
                self.state = State::Stopping;
                submission::cancel(tag)
            }
            State::Armed | State::Stopping => panic!("{:?} has nothing to submit", self.state),
        }
    }

    /// Wants to stop. `true` when it can be dropped at once; otherwise when its accept has ended.
    pub(crate) fn stop(&mut self) -> bool {
        if !self.is_armed() {
            return true;
        }
        if self.state == State::Armed {
            self.state = State::StopWanted;
        }
        false
    }

    /// The accept has ended, with a connection.
    pub(crate) fn on_ended(&mut self) {
        assert_eq!(self.state, State::Armed);
        self.state = State::Wanted;
    }

    /// The accept has ended, with an error.
    pub(crate) fn on_failed(&mut self, now_ns: u64) {
        assert_eq!(self.state, State::Armed);
        self.state = State::Paused { until_ns: now_ns + ACCEPT_PAUSE_NS };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> Listener {
        Listener::new(ListenerId(3), TcpListener::bind("127.0.0.1:0").unwrap())
    }

    #[test]
    fn failed_accept_is_tried_again_after_a_pause_only() {
        let mut listener = listener();
        assert!(listener.is_due(0));
        listener.begin();
        assert!(!listener.is_due(u64::MAX));
        listener.on_failed(1_000);
        assert_eq!(listener.paused_until_ns(), Some(1_000 + ACCEPT_PAUSE_NS));
        assert!(!listener.is_due(ACCEPT_PAUSE_NS));
        assert!(listener.is_due(1_000 + ACCEPT_PAUSE_NS));
        listener.begin();
        assert!(listener.is_armed());
    }

    #[test]
    fn accept_that_ends_with_a_connection_is_due_at_once() {
        let mut listener = listener();
        listener.begin();
        listener.on_ended();
        assert!(listener.is_due(0));
    }

    #[test]
    fn armed_listener_stops_through_a_cancellation() {
        let mut listener = listener();
        listener.begin();
        assert!(!listener.stop());
        assert!(listener.is_due(0));
        let cancel = listener.begin();
        assert_eq!(Tag::decode(cancel.get_user_data()), Tag::Cancel);
        assert!(listener.is_armed(), "the accept itself has not ended yet");
        assert!(!listener.stop(), "a second stop changes nothing");
        assert!(!listener.is_due(u64::MAX));
    }

    #[test]
    fn resting_listener_stops_at_once() {
        let mut listener = listener();
        assert!(listener.stop());
        listener.begin();
        listener.on_failed(0);
        assert!(listener.stop());
    }
}
