//! `loadgen verify`: writes records, may kill the broker amid the load, reads all back and accounts for each.
//!
//! What was sent on a connection that broke and not answered is unknown, and not sent again. After a kill the broker
//! starts on the same directory and port, and the connections go on with the numbers that follow.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use protocol::ids::{Handle, Offset};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reactor::clock;
use serde::Serialize;

use crate::checker::{Checker, Findings};
use crate::cli::VerifyArgs;
use crate::connection::{Producer, ProducerParts, Source};
use crate::content::{ContentFrames, ContentRules};
use crate::control::Control;
use crate::latency::nanoseconds;
use crate::link::Role;
use crate::load::{Load, LoadError, Place, allowed_in_flight, drive_pinned, heartbeat_ns, share_of};
use crate::pace::{CatchUp, Pace, PhasePlan};
use crate::report::{Outcome, SCHEMA, Verdict};
use crate::setup::{DriveSetup, Driven, Signals};
use crate::subscriber::checked_batch;
use crate::target::Target;
use crate::template::Template;

/// Time after which writing ends when the command line does not say: nobody waits for longer.
const WRITE_NS_MAX: u64 = 24 * 3_600 * 1_000_000_000;
/// How often the progress of the load is looked at, to kill amid it.
const KILL_POLL: Duration = Duration::from_micros(200);
/// Share of a phase's frames after which the broker is killed, in thousandths.
const KILL_AT_PERMILLE: std::ops::Range<u64> = 50..950;

/// What a verification came to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct VerifyReport {
    /// Version of this object.
    pub(crate) schema: u32,
    /// `verify`.
    pub(crate) command: &'static str,
    /// `broker` or `remote`.
    pub(crate) target: &'static str,
    /// Where it was.
    pub(crate) address: String,
    /// Decides contents and kills.
    pub(crate) seed: u64,
    /// How often the broker was killed.
    pub(crate) kills: u32,
    /// Connections that broke without a kill.
    pub(crate) lost_connections: u64,
    /// What was found.
    pub(crate) findings: Findings,
    /// The result in one word, and why.
    pub(crate) verdict: Verdict,
}

/// What the command line asks for, as a load.
pub(crate) fn load(args: &VerifyArgs) -> Load {
    Load {
        record_bytes: args.size as usize,
        batch_records: args.batch as usize,
        connections: args.connections as usize,
        in_flight_max: args.in_flight as usize,
        topics: 1,
        partitions: args.partitions.unwrap_or(args.connections),
        rate_records_per_s: None,
        warmup_ns: 0,
        measure_ns: args.seconds.map_or(WRITE_NS_MAX, nanoseconds),
        bytes_max: u64::MAX,
        end_to_end: false,
    }
}

/// Bytes of journal that hold all records, however badly commits are filled.
pub(crate) fn journal_bytes(args: &VerifyArgs, load: &Load) -> Result<u64, LoadError> {
    const JOURNAL_BYTES_MIN: u64 = 1 << 30;
    let frame_bytes = Template::new(load.shape(), 0)?.frame_bytes() as u64;
    let frames = args.records.div_ceil(load.batch_records as u64);
    Ok(frames.saturating_mul(frame_bytes).saturating_mul(2).max(JOURNAL_BYTES_MIN))
}

/// Writes, kills, reads back, checks.
///
/// # Errors
/// See `LoadError`. What the broker did wrong is in the report.
pub(crate) fn run_once(
    args: &VerifyArgs,
    load: &Load,
    place: &Place,
    interrupted: &AtomicBool,
) -> Result<VerifyReport, LoadError> {
    let seed = args.seed.unwrap_or_else(|| clock::now().wall_ms);
    eprintln!("seed {seed}");
    let rules =
        ContentRules { seed, run_id: crate::load::fresh_run_id(), record_bytes_max: load.record_bytes };
    let mut target = place.reach()?;
    let topic = format!("loadgen-{:08x}", rules.run_id);
    let handles = Control::open(target.address())?.create_topic(&topic, load.partitions, 0)?;
    let producers = producers(load, rules, &handles, target.address())?;
    let mut writer = Writer { load, place, interrupted, producers, lost_connections: 0 };
    let kills = if args.kill { args.kills } else { 0 };
    let frames = args.records.div_ceil(load.batch_records as u64);
    writer.write(&mut target, frames, Kills { count: kills, seed })?;
    let Writer { producers, lost_connections, .. } = writer;
    let outcomes = producers.into_iter().map(Producer::into_outcomes).collect();
    let mut checker = Checker::new(rules, outcomes);
    for handle in &handles {
        read_partition(target.address(), *handle, &mut checker)?;
    }
    let findings = checker.finish();
    let (target, address) = (target.name(), target.address().to_string());
    let verdict = judge(&findings, lost_connections);
    let command = "verify";
    Ok(VerifyReport {
        schema: SCHEMA,
        command,
        target,
        address,
        seed,
        kills,
        lost_connections,
        findings,
        verdict,
    })
}

fn producers(
    load: &Load,
    rules: ContentRules,
    handles: &[Handle],
    address: SocketAddr,
) -> Result<Vec<Producer>, LoadError> {
    let control = Control::open(address)?;
    let longest = Template::new(load.shape(), 0)?.frame_bytes();
    let in_flight_max = allowed_in_flight(load.in_flight_max, longest, control.grants())?;
    let mut producers = Vec::with_capacity(load.connections);
    for connection in 0..load.connections {
        producers.push(Producer::new(ProducerParts {
            run_id: rules.run_id,
            connection: connection as u16,
            batch_records: load.batch_records,
            in_flight_max,
            source: Source::Content(Box::new(ContentFrames::new(load.shape(), rules)?)),
            handles: share_of(handles, connection, load.connections),
            keeps_outcomes: true,
        }));
    }
    Ok(producers)
}

/// How often to kill, and what decides when.
#[derive(Clone, Copy, Debug)]
struct Kills {
    count: u32,
    seed: u64,
}

/// A phase that ends with a kill.
#[derive(Clone, Copy, Debug)]
struct PhaseFrames {
    /// Frames of the phase, at most.
    frames_max: u64,
    /// Frames after which the broker is killed.
    kill_after: u64,
}

/// The writing part: phases of load, with a kill between two of them.
struct Writer<'a> {
    load: &'a Load,
    place: &'a Place,
    interrupted: &'a AtomicBool,
    producers: Vec<Producer>,
    /// Those that broke without a kill.
    lost_connections: u64,
}

impl Writer<'_> {
    fn write(&mut self, target: &mut Target, frames: u64, kills: Kills) -> Result<(), LoadError> {
        let mut random = ChaCha8Rng::seed_from_u64(kills.seed);
        let share = frames / (u64::from(kills.count) + 1);
        for kill in 1..=kills.count {
            let kill_after = share * random.random_range(KILL_AT_PERMILLE) / 1_000;
            self.write_until_killed(target, PhaseFrames { frames_max: share, kill_after })?;
            eprintln!("kill {kill} of {}: {} frames sent in all", kills.count, self.frames_sent());
        }
        let rest = frames.saturating_sub(self.frames_sent());
        if rest > 0 {
            let setup = self.connect(target.address(), rest)?;
            let sent_frames = AtomicU64::new(0);
            let signals = Signals { interrupted: self.interrupted, sent_frames: &sent_frames };
            let driven = drive_pinned(setup, self.place.core, signals)?;
            if driven.is_interrupted {
                return Err(LoadError::Interrupted);
            }
            self.lost_connections += driven.tally.lost_connections;
            self.take_back(driven);
        }
        Ok(())
    }

    /// Drives one phase, kills the broker amid it, takes what was answered still, and starts the broker again.
    fn write_until_killed(&mut self, target: &mut Target, phase: PhaseFrames) -> Result<(), LoadError> {
        let setup = self.connect(target.address(), phase.frames_max)?;
        let Target::Child(child) = target else {
            return Err(LoadError::Unsuitable("--kill needs a broker that was started here".to_owned()));
        };
        let sent_frames = AtomicU64::new(0);
        let signals = Signals { interrupted: self.interrupted, sent_frames: &sent_frames };
        let core = self.place.core;
        let driven = std::thread::scope(|scope| {
            let load = scope.spawn(move || drive_pinned(setup, core, signals));
            while sent_frames.load(Ordering::Relaxed) < phase.kill_after && !load.is_finished() {
                std::thread::sleep(KILL_POLL);
            }
            child.kill();
            load.join().expect("a panic ends the process")
        })?;
        if driven.is_interrupted {
            return Err(LoadError::Interrupted);
        }
        self.take_back(driven);
        child.restart()?;
        Ok(())
    }

    /// Makes all connections anew.
    fn connect(&mut self, address: SocketAddr, frames_max: u64) -> Result<DriveSetup, LoadError> {
        let grants = Control::open(address)?.grants().clone();
        let mut links: Vec<(OwnedFd, Role)> = Vec::with_capacity(self.producers.len());
        for mut producer in std::mem::take(&mut self.producers) {
            producer.reconnected(clock::monotonic_ns());
            links.push((Control::open(address)?.into_socket()?, Role::Producer(producer)));
        }
        Ok(DriveSetup {
            links,
            phases: vec![PhasePlan::fixed(Pace::Closed { frames_max }, self.load.measure_ns).into()],
            catch_up: CatchUp::Burst,
            intervals: None,
            revival: None,
            ledger: None,
            frame_bytes_max: grants.frame_bytes_max,
            heartbeat_ns: heartbeat_ns(&grants),
            worker_cpus: self.place.cpus.clone(),
        })
    }

    fn take_back(&mut self, driven: Driven) {
        self.producers = driven
            .roles
            .into_iter()
            .filter_map(|role| match role {
                Role::Producer(producer) => Some(producer),
                Role::Subscriber(_) => None,
            })
            .collect();
    }

    fn frames_sent(&self) -> u64 {
        let records: u64 = self.producers.iter().map(Producer::records_sent).sum();
        records / self.load.batch_records as u64
    }
}

/// Reads a partition from its first record to its end.
fn read_partition(address: SocketAddr, handle: Handle, checker: &mut Checker) -> Result<(), LoadError> {
    let mut control = Control::open(address)?;
    let mut next = Offset(0);
    checker.begin_partition();
    loop {
        let fetched = control.fetch(handle, next, |payload| read_batches(payload, handle, checker))?;
        // A broker that does not go on has no more; what is missing then counts as lost.
        if fetched.next_offset <= next || fetched.next_offset >= fetched.durable_end {
            return Ok(());
        }
        next = fetched.next_offset;
    }
}

fn read_batches(payload: &[u8], handle: Handle, checker: &mut Checker) {
    let mut rest = payload;
    while !rest.is_empty() {
        let Ok(batch) = checked_batch(rest, handle) else {
            // What follows cannot be cut; acknowledged records in it count as lost.
            checker.on_corrupt_batch();
            return;
        };
        rest = &rest[batch.bytes().len()..];
        // Nothing was sent compressed.
        let Some(records) = batch.records() else { return checker.on_corrupt_batch() };
        for record in records {
            checker.on_record(handle.partition(), record.offset, record.value);
        }
    }
}

fn judge(findings: &Findings, lost_connections: u64) -> Verdict {
    let mut verdict = Verdict::new();
    let faults = findings.fault_count();
    verdict.add(faults > 0, Outcome::Fail, || format!("{faults} records are not as they must be"));
    verdict.add(lost_connections > 0, Outcome::Fail, || {
        format!("{lost_connections} connections broke though nothing was killed")
    });
    verdict.add(findings.acked_records == 0, Outcome::Invalid, || "nothing was acknowledged".to_owned());
    verdict
}
