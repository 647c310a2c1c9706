//! The whole load generator against a broker that misbehaves on purpose: each fault is reported as what it is, and a
//! stall is seen by every record that should have been sent during it.
//!
//! Nothing here depends on how fast the machine is: a slow one only makes latencies longer, and all bounds are lower
//! ones.

mod fake_broker;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::channel;
use std::time::Duration;

use protocol::ids::Offset;
use reactor::affinity::allowed_cpus;

use self::fake_broker::{FakeBroker, Script, handle};
use super::drive;
use crate::arrivals::Arrivals;
use crate::checker::Findings;
use crate::connection::{Producer, ProducerParts, Source};
use crate::ledger::Ledger;
use crate::link::Role;
use crate::pace::{CatchUp, Pace, PhasePlan};
use crate::payload::Payload;
use crate::percentiles::Percentiles;
use crate::setup::{DriveSetup, Driven, Signals};
use crate::subscriber::{CREDIT_RECORDS_MAX, DeliveryFaults, Subscriber, SubscriberParts};
use crate::template::{FrameShape, Template};

const RUN: u32 = 77;
const RECORD_BYTES: usize = 100;
const MS: u64 = 1_000_000;

/// One record per millisecond for so long.
struct Run {
    script: Script,
    length_ms: u64,
    in_flight_max: usize,
    catch_up: CatchUp,
}

impl Run {
    fn new(script: Script, length_ms: u64) -> Self {
        let script = Script { frames: length_ms, ..script };
        Self { script, length_ms, in_flight_max: 4_096, catch_up: CatchUp::Paced }
    }

    fn drive(self) -> Done {
        self.drive_and_revive(None)
    }

    /// Drives; when the broker has hung up, goes on with another one.
    fn drive_and_revive(self, next: Option<FakeBroker>) -> Done {
        let broker = FakeBroker::start(self.script);
        let (revival, sockets) = channel();
        let next_thread = next.map(|next| {
            revival.send(vec![next.producer, next.subscriber]).unwrap();
            next.thread
        });
        let shape = FrameShape { record_bytes: RECORD_BYTES, batch_records: 1, created_ms: 0 };
        let producer = Producer::new(ProducerParts {
            run_id: RUN,
            connection: 0,
            batch_records: 1,
            in_flight_max: self.in_flight_max,
            source: Source::Stamped(Box::new(Template::new(shape, u64::from(RUN)).unwrap())),
            handles: vec![handle()],
            keeps_outcomes: false,
        });
        let subscriber = Subscriber::new(SubscriberParts {
            run_id: RUN,
            connections: 1,
            partitions: &[(handle(), Offset(0))],
            payload: Payload::filler(RECORD_BYTES, u64::from(RUN)),
            credit_records: CREDIT_RECORDS_MAX,
        });
        let length_ns = self.length_ms * MS;
        let setup = DriveSetup {
            links: vec![
                (broker.producer, Role::Producer(producer)),
                (broker.subscriber, Role::Subscriber(subscriber)),
            ],
            phases: vec![
                PhasePlan::fixed(Pace::Open(Arrivals::constant(1_000.0, length_ns)), length_ns).into(),
            ],
            catch_up: self.catch_up,
            intervals: None,
            revival: next_thread.is_some().then_some(sockets),
            ledger: Some(Ledger::new(1, self.length_ms)),
            frame_bytes_max: 1 << 20,
            heartbeat_ns: 60_000 * MS,
            worker_cpus: allowed_cpus(),
        };
        let signals = Signals { interrupted: &AtomicBool::new(false), sent_frames: &AtomicU64::new(0) };
        let driven = drive(setup, signals).unwrap();
        let faults = driven.roles.iter().find_map(Role::subscriber).unwrap().faults();
        let findings = driven.ledger.as_ref().unwrap().findings();
        let done = Done { driven, findings, faults };
        broker.thread.join().unwrap();
        if let Some(thread) = next_thread {
            thread.join().unwrap();
        }
        done
    }
}

struct Done {
    driven: Driven,
    findings: Findings,
    faults: DeliveryFaults,
}

impl Done {
    /// Frames whose ack took at least so long, from when they should have been sent.
    fn late_frames(&self, ms: u64) -> u64 {
        let response = &self.driven.tally.phases[0].response;
        // Buckets are a thousandth wide.
        response.count_between(ms * MS * 999 / 1_000, u64::MAX)
    }
}

#[test]
fn good_broker_has_no_faults() {
    let done = Run::new(Script::default(), 200).drive();
    let Findings { sent_records, acked_records, lost_records, .. } = done.findings;
    assert_eq!((sent_records, acked_records, lost_records), (200, 200, 0));
    assert_eq!((done.findings.fault_count(), done.faults), (0, DeliveryFaults::default()));
    assert_eq!(done.driven.tally.phases[0].delivery_response.len(), 200);
}

#[test]
fn stall_is_seen_by_every_record_that_was_due_in_it() {
    let stall = Some((300, Duration::from_millis(200)));
    let done = Run::new(Script { stall, ..Script::default() }, 1_000).drive();
    assert!(done.late_frames(200) >= 1, "the one that met it");
    assert!(done.late_frames(100) >= 100, "{} were due in its first half", done.late_frames(100));
    assert!(done.late_frames(10) >= 190, "{}", done.late_frames(10));
    let percentiles = Percentiles::of(&done.driven.tally.phases[0].response);
    assert!(percentiles.p99_us.unwrap() >= 180_000.0, "{percentiles:?}");
    assert!(percentiles.p90_us.unwrap() >= 90_000.0, "{percentiles:?}");
    assert_eq!(done.findings.fault_count(), 0);
}

#[test]
fn stall_is_seen_in_full_with_one_frame_in_flight_too() {
    for catch_up in [CatchUp::Paced, CatchUp::Burst] {
        let stall = Some((300, Duration::from_millis(200)));
        let run = Run::new(Script { stall, ..Script::default() }, 1_000);
        let done = Run { in_flight_max: 1, catch_up, ..run }.drive();
        assert!(done.late_frames(100) >= 100, "{catch_up:?}: {}", done.late_frames(100));
        let tally = &done.driven.tally.phases[0];
        assert!(tally.held_frames >= 190, "{catch_up:?}: {} waited for the cap", tally.held_frames);
        assert_eq!((tally.sent_frames, tally.unsent_frames), (1_000, 0));
        // A clock that starts when a frame is sent has seen one long wait, and lost the others.
        let sent_late = tally.service.count_between(100 * MS, u64::MAX);
        assert!(sent_late < done.late_frames(100), "{catch_up:?}: {sent_late}");
    }
}

#[test]
fn slow_acks_are_in_every_percentile() {
    let slow = Duration::from_millis(2);
    let done = Run::new(Script { slow, ..Script::default() }, 100).drive();
    let response = &done.driven.tally.phases[0].response;
    assert!(response.min() >= 2 * MS * 999 / 1_000);
    // Two milliseconds each, one per millisecond: the last one has waited for fifty others.
    assert!(done.late_frames(90) >= 1, "{}", response.max());
}

#[test]
fn lost_records_are_lost() {
    let done = Run::new(Script { loses: &[10, 20, 199], ..Script::default() }, 200).drive();
    assert_eq!((done.findings.acked_records, done.findings.lost_records), (200, 3));
    assert_eq!(done.findings.fault_count(), 3);
}

#[test]
fn repeated_records_are_duplicates() {
    let done = Run::new(Script { repeats: &[0, 50], ..Script::default() }, 200).drive();
    assert_eq!((done.findings.duplicated_records, done.findings.lost_records), (2, 0));
    assert_eq!(done.faults.duplicated_records, 2);
    assert_eq!(done.driven.tally.consumed_records, 200, "each is consumed once");
}

#[test]
fn swapped_records_are_out_of_order() {
    let done = Run::new(Script { swaps: &[50, 60], ..Script::default() }, 200).drive();
    assert_eq!((done.faults.reordered_records, done.faults.count()), (2, 2));
    assert_eq!((done.findings.lost_records, done.findings.duplicated_records), (0, 0));
}

#[test]
fn spoilt_records_are_corrupted_whether_sums_are_right_or_not() {
    let done = Run::new(Script { spoils: &[7], flips: &[9, 11], ..Script::default() }, 200).drive();
    assert_eq!((done.faults.corrupted_records, done.faults.corrupt_batches), (1, 2));
    // What cannot be read is missing as well.
    assert_eq!(done.findings.lost_records, 2);
}

#[test]
fn refused_records_are_refused_and_not_lost() {
    let done = Run::new(Script { refuses: &[5, 6, 100], ..Script::default() }, 200).drive();
    assert_eq!((done.findings.refused_records, done.findings.lost_records), (3, 0));
    assert_eq!((done.driven.tally.busy_frames(), done.driven.tally.phases[0].refused_frames), (3, 3));
    assert_eq!(done.findings.fault_count(), 0);
}

#[test]
fn answers_that_overtake_each_other_find_their_frames() {
    let done = Run::new(Script { answers_late: &[3, 90], ..Script::default() }, 200).drive();
    assert_eq!((done.findings.acked_records, done.findings.fault_count()), (200, 0));
}

#[test]
fn connection_that_breaks_leaves_what_was_not_answered_unknown() {
    let script = Script { forgets_to_answer: &[40, 41, 42], hangs_up_after: Some(42), ..Script::default() };
    let done = Run::new(script, 200).drive();
    assert!(done.findings.unknown_records >= 3, "{:?}", done.findings);
    assert_eq!((done.findings.acked_records, done.findings.lost_records), (40, 0));
    assert_eq!(done.findings.unknown_stored_records, 3, "stored, and never acknowledged: no fault");
    assert_eq!(done.findings.fault_count(), 0);
    assert!(done.driven.tally.lost_connections >= 1);
    assert!(done.driven.tally.phases[0].unsent_frames > 0, "the rest of the plan");
}

#[test]
fn load_goes_on_when_a_killed_broker_is_back() {
    let script = Script { forgets_to_answer: &[40, 41, 42], hangs_up_after: Some(42), ..Script::default() };
    let run = Run::new(script, 300);
    let next = FakeBroker::start_at(Script { frames: u64::MAX, ..Script::default() }, 43);
    let done = run.drive_and_revive(Some(next));
    assert_eq!((done.findings.sent_records, done.findings.lost_records), (300, 0));
    assert!(done.findings.unknown_records >= 3, "{:?}", done.findings);
    assert_eq!(done.findings.acked_records + done.findings.unknown_records, 300);
    assert_eq!((done.findings.fault_count(), done.faults.offset_gaps), (0, 0));
    assert_eq!((done.driven.tally.lost_connections, done.driven.tally.phases[0].unsent_frames), (0, 0));
}
