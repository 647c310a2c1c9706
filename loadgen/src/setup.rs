//! What the driver is given, what it gives back, and why it may give nothing.
//!
//! A set-up is made on the main thread, sockets and all, and moved to the pinned one; what was driven comes back the
//! same way.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::Receiver;

use reactor::memory::MemoryError;
use reactor::probe::SetupError;

use crate::connection::PeerError;
use crate::interval::IntervalPort;
use crate::ledger::Ledger;
use crate::link::Role;
use crate::pace::{CatchUp, PhasePlan};
use crate::tally::Tally;

/// Why a run came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriveError {
    /// No ring.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The broker breaks the protocol.
    #[error("connection {connection}: {error}")]
    Peer {
        /// Its number.
        connection: usize,
        /// What was wrong.
        error: PeerError,
    },
    /// A frame does not fit into the receive buffer.
    #[error("connection {0}: a frame is longer than the receive buffer")]
    FrameTooLong(usize),
}

/// One phase of a run.
#[derive(Clone, Debug)]
pub(crate) struct PhaseSetup {
    /// When frames are sent, and when it ends.
    pub(crate) plan: PhasePlan,
    /// Records per second that are consumed: none for no limit, 0 for a consumer that stands still.
    pub(crate) consumer_per_s: Option<f64>,
}

impl From<PhasePlan> for PhaseSetup {
    /// A phase without a limit for the consumer.
    fn from(plan: PhasePlan) -> Self {
        Self { plan, consumer_per_s: None }
    }
}

/// A run, ready to start.
pub(crate) struct DriveSetup {
    /// Sockets after `Hello`, producers first.
    pub(crate) links: Vec<(OwnedFd, Role)>,
    /// When frames are sent, and how fast is consumed.
    pub(crate) phases: Vec<PhaseSetup>,
    /// What a connection does that has fallen behind.
    pub(crate) catch_up: CatchUp,
    /// Where each second of the run goes, if somebody watches.
    pub(crate) intervals: Option<IntervalPort>,
    /// Accounts for every record; needed when there is a subscriber.
    pub(crate) ledger: Option<Ledger>,
    /// Where new sockets come from when all connections broke because the broker was killed, in the order of `links`.
    pub(crate) revival: Option<Receiver<Vec<OwnedFd>>>,
    /// Longest frame, as granted.
    pub(crate) frame_bytes_max: u32,
    /// A connection that is silent for so long sends a heartbeat.
    pub(crate) heartbeat_ns: u64,
    /// CPUs that the ring's worker threads may run on.
    pub(crate) worker_cpus: Vec<usize>,
}

/// What the loop and the rest of the program tell each other while it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signals<'a> {
    /// Set when the user wants it to end.
    pub(crate) interrupted: &'a AtomicBool,
    /// Frames made so far, told once a turn.
    pub(crate) sent_frames: &'a AtomicU64,
}

/// What a run left behind.
pub(crate) struct Driven {
    /// What was measured.
    pub(crate) tally: Tally,
    /// What the connections ended as, in their order.
    pub(crate) roles: Vec<Role>,
    /// CPU time of the driving thread.
    pub(crate) cpu_ns: u64,
    /// From the first due time to the end of the drain.
    pub(crate) elapsed_ns: u64,
    /// What became of every record, if that was kept.
    pub(crate) ledger: Option<Ledger>,
    /// SIGINT or SIGTERM ended it before its time.
    pub(crate) is_interrupted: bool,
}
