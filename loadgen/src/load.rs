//! One measured run: start what is to be measured, connect, drive, and bring back what was seen.
//!
//! The control plane (processes, topics, counters) runs on the main thread, which is not pinned, so that children do
//! not inherit a pinning; the load runs on a thread of its own, pinned, while nothing else here does anything.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64};

use client::connection::{Grants, Start, Stats};
use protocol::batch::BuildError;
use protocol::ids::Handle;
use reactor::affinity::{AffinityError, allowed_cpus, pin_current_thread};
use reactor::clock;

use crate::arrivals::Arrivals;
use crate::cli::{TargetArgs, TargetKind};
use crate::connection::{Producer, ProducerParts, Source};
use crate::control::{Control, ControlError};
use crate::driver::drive;
use crate::ledger::Ledger;
use crate::link::Role;
use crate::pace::{CatchUp, Pace, PhasePlan};
use crate::payload::Payload;
use crate::setup::{DriveError, DriveSetup, Driven, Signals};
use crate::subscriber::{CREDIT_RECORDS_MAX, Subscriber, SubscriberParts, credit_of};
use crate::target::{ChildBroker, ChildOptions, Target, TargetError};
use crate::template::{FrameShape, Template};

/// What the broker needs beside the records that its journal holds.
const MEMORY_BESIDE_JOURNAL_BYTES: u64 = 256 << 20;
/// Journals are a multiple of their files' length.
const JOURNAL_STEP_BYTES: u64 = 64 << 20;
/// Least length of the floor's receive buffers.
const FLOOR_RECEIVE_BYTES_MIN: usize = 1 << 20;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// Nothing to measure.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A request that is not measured failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The load broke off.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// The thread of the load is not where it should be.
    #[error(transparent)]
    Affinity(#[from] AffinityError),
    /// Records of this size and number do not fit into a batch.
    #[error("--size and --batch: {0}")]
    Shape(#[from] BuildError),
    /// What was asked for cannot be done.
    #[error("{0}")]
    Unsuitable(String),
    /// SIGINT or SIGTERM, where half a run says nothing.
    #[error("interrupted")]
    Interrupted,
    /// The result cannot be printed, or a signal cannot be caught.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What is sent, and how.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Bytes of a record.
    pub(crate) record_bytes: usize,
    /// Records in a frame.
    pub(crate) batch_records: usize,
    /// Connections.
    pub(crate) connections: usize,
    /// Frames that may be unanswered on each, before what the broker grants.
    pub(crate) in_flight_max: usize,
    /// Topics.
    pub(crate) topics: u32,
    /// Partitions of each.
    pub(crate) partitions: u32,
    /// Records per second over all connections; none for a closed loop.
    pub(crate) rate_records_per_s: Option<u64>,
    /// What is not measured, at first.
    pub(crate) warmup_ns: u64,
    /// What is measured.
    pub(crate) measure_ns: u64,
    /// Bytes of frames after which a closed loop ends.
    pub(crate) bytes_max: u64,
    /// Whether deliveries are measured, too.
    pub(crate) end_to_end: bool,
}

impl Load {
    /// What decides the frames.
    pub(crate) fn shape(&self) -> FrameShape {
        let created_ms = clock::now().wall_ms;
        FrameShape { record_bytes: self.record_bytes, batch_records: self.batch_records, created_ms }
    }
}

/// Where the load goes, and where it comes from, all decided.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// A broker that runs already.
    pub(crate) remote: Option<SocketAddr>,
    /// How to start one otherwise.
    pub(crate) child: ChildOptions,
    /// Core of the load.
    pub(crate) core: usize,
    /// CPUs that this process may use.
    pub(crate) cpus: Vec<usize>,
}

impl Place {
    /// Decides what the command line leaves open. `journal_bytes` is what the run needs.
    ///
    /// # Errors
    /// When the kernel does not tell which CPUs there are, or the frames are of no use.
    pub(crate) fn new(args: &TargetArgs, load: &Load, journal_bytes: u64) -> Result<Self, LoadError> {
        let cpus = allowed_cpus();
        let Some(first) = cpus.first() else {
            return Err(LoadError::Unsuitable("the kernel does not tell which CPUs may be used".to_owned()));
        };
        // Beside a memory that the user limits, the journal takes at most half of it.
        let room_bytes = args.memory_bytes.map_or(u64::MAX, |bytes| (bytes / 2).max(JOURNAL_STEP_BYTES));
        let needed_bytes = journal_bytes.min(room_bytes / JOURNAL_STEP_BYTES * JOURNAL_STEP_BYTES);
        let journal_bytes = args.journal_bytes.unwrap_or(needed_bytes.next_multiple_of(JOURNAL_STEP_BYTES));
        let memory_bytes = args.memory_bytes.unwrap_or(journal_bytes + MEMORY_BESIDE_JOURNAL_BYTES);
        let frame_bytes = Template::new(load.shape(), 0)?.frame_bytes();
        let child = ChildOptions {
            kind: args.target,
            core: Some(args.broker_core.unwrap_or(*first)),
            waiting: args.waiting,
            durability: args.durability,
            journal_bytes,
            memory_bytes,
            partitions: load.partitions,
            has_no_disk: false,
            frame_bytes_max: frame_bytes.next_power_of_two().max(FLOOR_RECEIVE_BYTES_MIN),
            parent: args.directory.clone(),
        };
        let core = args.core.unwrap_or(*cpus.get(1).unwrap_or(first));
        Ok(Self { remote: args.connect, child, core, cpus })
    }

    /// One side of a comparison: this kind of broker, and the same way to be durable for both.
    pub(crate) fn with_kind(&self, kind: TargetKind) -> Self {
        let durability = self.child.durability.pinned();
        Self { child: ChildOptions { kind, durability, ..self.child.clone() }, ..self.clone() }
    }

    /// Starts the broker, or finds it, and waits until its journal is prepared.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn reach(&self) -> Result<Target, LoadError> {
        let target = match self.remote {
            Some(address) => Target::Remote(address),
            None => Target::Child(Box::new(ChildBroker::start(self.child.clone())?)),
        };
        Control::wait_prepared(target.address())?;
        Ok(target)
    }
}

/// What a run brought back.
pub(crate) struct Measured {
    /// `broker`, `floor` or `remote`.
    pub(crate) target: &'static str,
    /// Where it was.
    pub(crate) address: SocketAddr,
    /// What it granted.
    pub(crate) grants: Grants,
    /// Its counters before the load.
    pub(crate) stats_before: Stats,
    /// Its counters after the load.
    pub(crate) stats_after: Stats,
    /// What the loop saw.
    pub(crate) driven: Driven,
    /// Stands in every stamp.
    pub(crate) run_id: u32,
    /// Length of a frame.
    pub(crate) frame_bytes: usize,
    /// Frames that were allowed in flight on each connection.
    pub(crate) in_flight_max: usize,
    /// Frames that were due within the window; none in a closed loop.
    pub(crate) planned_frames: Option<u64>,
    /// Frames that were planned and never sent.
    pub(crate) unsent_frames: u64,
}

/// The phases of a run of `measure`: the first is not measured, the second is.
pub(crate) const MEASURED_PHASE: usize = 1;

/// Runs the load against a fresh broker, or the remote one.
///
/// # Errors
/// See `LoadError`.
pub(crate) fn measure(load: &Load, place: &Place, interrupted: &AtomicBool) -> Result<Measured, LoadError> {
    let target = place.reach()?;
    let address = target.address();
    let run_id = fresh_run_id();
    let grants = Control::open(address)?.grants().clone();
    let frame_bytes = Template::new(load.shape(), 0)?.frame_bytes();
    let in_flight_max = allowed_in_flight(load.in_flight_max, frame_bytes, &grants)?;
    let frames_max = (load.bytes_max / frame_bytes as u64).max(1);
    let phase = |length_ns| {
        let pace = match load.rate_records_per_s {
            Some(per_s) => Pace::Open(Arrivals::constant(per_s as f64, length_ns)),
            None => Pace::Closed { frames_max },
        };
        PhasePlan::fixed(pace, length_ns).into()
    };
    let setup = DriveSetup {
        links: connect(load, address, run_id, in_flight_max)?,
        phases: vec![phase(load.warmup_ns), phase(load.measure_ns)],
        catch_up: CatchUp::Burst,
        intervals: None,
        revival: None,
        ledger: load.end_to_end.then(|| Ledger::new(load.connections, 0)),
        frame_bytes_max: grants.frame_bytes_max,
        heartbeat_ns: heartbeat_ns(&grants),
        worker_cpus: place.cpus.clone(),
    };
    let stats_before = Control::open(address)?.stats()?;
    let driven = drive_pinned(setup, place.core, Signals { interrupted, sent_frames: &AtomicU64::new(0) })?;
    let stats_after = Control::open(address)?.stats()?;
    let unsent_frames = driven.tally.phases.iter().map(|phase| phase.unsent_frames).sum();
    let measured = &driven.tally.phases[MEASURED_PHASE];
    let planned_frames = load.rate_records_per_s.map(|_| measured.sent_frames + measured.unsent_frames);
    Ok(Measured {
        target: target.name(),
        address,
        grants,
        stats_before,
        stats_after,
        driven,
        run_id,
        frame_bytes,
        in_flight_max,
        planned_frames,
        unsent_frames,
    })
}

/// Creates the topics, and makes all connections of a run, producers first.
fn connect(
    load: &Load,
    address: SocketAddr,
    run_id: u32,
    in_flight_max: usize,
) -> Result<Vec<(OwnedFd, Role)>, LoadError> {
    let topics: Vec<String> =
        (0..load.topics).map(|number| format!("loadgen-{run_id:08x}-{number}")).collect();
    let mut handles = Vec::new();
    for topic in &topics {
        handles.extend(Control::open(address)?.create_topic(topic, load.partitions, 0)?);
    }
    let mut links = Vec::with_capacity(load.connections + 1);
    for connection in 0..load.connections {
        let producer = Producer::new(ProducerParts {
            run_id,
            connection: connection as u16,
            batch_records: load.batch_records,
            in_flight_max,
            source: Source::Stamped(Box::new(Template::new(load.shape(), u64::from(run_id))?)),
            handles: share_of(&handles, connection, load.connections),
            keeps_outcomes: false,
        });
        links.push((Control::open(address)?.into_socket()?, Role::Producer(producer)));
    }
    if load.end_to_end {
        // Before the first record is sent, so that none is missed.
        let mut control = Control::open(address)?;
        let partitions = control.subscribe(&topics[0], Start::Latest, credit_of(CREDIT_RECORDS_MAX))?;
        let subscriber = Subscriber::new(SubscriberParts {
            run_id,
            connections: load.connections,
            partitions: &partitions,
            payload: Payload::filler(load.record_bytes, u64::from(run_id)),
            credit_records: CREDIT_RECORDS_MAX,
        });
        links.push((control.into_socket()?, Role::Subscriber(subscriber)));
    }
    Ok(links)
}

/// Drives the load on a thread of its own, pinned to `core`.
pub(crate) fn drive_pinned(
    setup: DriveSetup,
    core: usize,
    signals: Signals<'_>,
) -> Result<Driven, LoadError> {
    std::thread::scope(|scope| {
        let load = scope.spawn(move || -> Result<Driven, LoadError> {
            pin_current_thread(core)?;
            Ok(drive(setup, signals)?)
        });
        load.join().expect("a panic ends the process")
    })
}

/// Frames in flight that the user, the window and the broker's count of requests allow.
pub(crate) fn allowed_in_flight(
    wanted: usize,
    frame_bytes: usize,
    grants: &Grants,
) -> Result<usize, LoadError> {
    if frame_bytes > grants.frame_bytes_max as usize {
        let granted = grants.frame_bytes_max;
        return Err(LoadError::Unsuitable(format!(
            "a frame of {frame_bytes} bytes is longer than the broker grants ({granted}): lower --size or --batch"
        )));
    }
    let by_window = (grants.window_bytes as usize / frame_bytes).max(1);
    Ok(wanted.min(by_window).min(grants.requests_in_flight_max as usize))
}

/// The partitions of a connection: its own one, or as many as there are for each connection.
pub(crate) fn share_of(handles: &[Handle], connection: usize, connections: usize) -> Vec<Handle> {
    let first = connection % handles.len();
    handles.iter().copied().skip(first).step_by(connections).collect()
}

/// The heartbeat interval that was granted.
pub(crate) fn heartbeat_ns(grants: &Grants) -> u64 {
    u64::from(grants.heartbeat_ms) * 1_000_000
}

/// A number that no other run has had lately.
pub(crate) fn fresh_run_id() -> u32 {
    (crate::template::mix(clock::now().wall_ms ^ u64::from(std::process::id()) << 44) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants() -> Grants {
        Grants {
            server_name: String::new(),
            version: 1,
            features: 0,
            shard: 0,
            shard_count: 1,
            frame_bytes_max: 1 << 20,
            record_bytes_max: 1 << 20,
            window_bytes: 4 << 20,
            requests_in_flight_max: 1_024,
            heartbeat_ms: 5_000,
            durability: None,
            volatile_storage: false,
        }
    }

    #[test]
    fn frames_in_flight_stay_within_what_is_granted() {
        let allowed = |wanted, frame_bytes| allowed_in_flight(wanted, frame_bytes, &grants());
        assert_eq!(allowed(64, 1_200).unwrap(), 64);
        assert_eq!(allowed(64, 66_000).unwrap(), 63);
        assert_eq!(allowed(5_000, 200).unwrap(), 1_024);
        assert!(allowed(1, (1 << 20) + 8).is_err());
    }

    #[test]
    fn every_partition_has_a_connection_and_every_connection_a_partition() {
        for (partitions, connections) in [(1, 1), (4, 4), (3, 8), (8, 3), (100, 16), (1, 16)] {
            let handles: Vec<Handle> = (0..partitions).map(Handle).collect();
            let shares: Vec<_> =
                (0..connections).map(|connection| share_of(&handles, connection, connections)).collect();
            assert!(shares.iter().all(|share| !share.is_empty()));
            let mut shared: Vec<u64> = shares.into_iter().flatten().map(|handle| handle.0).collect();
            shared.sort_unstable();
            shared.dedup();
            assert_eq!(shared, (0..partitions).collect::<Vec<_>>());
        }
    }
}
