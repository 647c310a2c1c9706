//! The producer core over a real connection core and a fake broker: batching, windows, gates, and what is lost.
//!
//! Frames are compared as texts: the values of their records, with a `!` in front where the frame resumes. So the
//! order in which things went out, and went out again, can be read off.

use protocol::batch::Batch;
use protocol::frame::FRAME_HEADER_BYTES;
use protocol::status::Status;

use super::*;
use crate::fake_broker::{self as fake, Granted, Sent, connected, partition, take_sent};
use crate::limits::{GATES_MAX, RETRY_US_MAX, RETRY_US_MIN};

const MS_NS: u64 = 1_000_000;

/// A producer, its connection, and a clock that only the test moves.
struct Rig {
    producer: Producer,
    connection: Connection,
    now_ns: u64,
}

impl Rig {
    fn new(partition_count: u16, granted: Granted, options: ProducerOptions) -> Self {
        let connection = connected(granted);
        let handles: Vec<Handle> = (0..partition_count).map(partition).collect();
        let producer = Producer::new(&handles, connection.grants().unwrap(), options);
        Self { producer, connection, now_ns: 0 }
    }

    fn try_push(&mut self, placement: Placement, value: &str) -> Result<RecordId, PushError> {
        let record = Record { value: value.as_bytes(), ..Record::default() };
        self.producer.push(self.now_ns, placement, &record)
    }

    /// Pushes each value as a batch of its own to partition 0.
    fn push_batches(&mut self, values: &[&str]) {
        for value in values {
            self.try_push(Placement::Partition(0), value).unwrap();
            self.producer.close(0);
        }
    }

    /// What a poll sends.
    fn poll(&mut self) -> Vec<Sent> {
        self.producer.poll(self.now_ns, &mut self.connection);
        take_sent(&mut self.connection)
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.connection.on_bytes(self.now_ns, bytes).unwrap();
        while let Some(event) = self.connection.next_event() {
            assert!(self.producer.on_event(self.now_ns, &event));
        }
    }

    fn ack(&mut self, sent: &Sent, first_offset: u64) {
        self.hear(&fake::produced(sent.correlation, first_offset));
    }

    fn refuse(&mut self, sent: &Sent, status: Status, retry_after_us: u64) {
        self.hear(&fake::refused_produce(sent.correlation, status, retry_after_us));
    }

    fn reconnect(&mut self, granted: Granted) {
        self.producer.on_disconnected(&self.connection);
        self.connection = connected(granted);
        self.producer.on_connected(self.connection.grants().unwrap());
    }

    fn outcomes(&mut self) -> Vec<Outcome> {
        std::iter::from_fn(|| self.producer.next_result()).map(|result| result.outcome).collect()
    }
}

fn one_by_one() -> ProducerOptions {
    ProducerOptions { batch_records_max: 1, ..ProducerOptions::default() }
}

/// The values of each frame, with a `!` in front where it resumes.
fn texts(sent: &[Sent]) -> Vec<String> {
    let text = |sent: &Sent| {
        let batch = Batch::check(&sent.payload).unwrap();
        let values: Vec<_> =
            batch.records().unwrap().map(|record| String::from_utf8_lossy(record.value)).collect();
        format!("{}{}", if sent.resumes { "!" } else { "" }, values.join(" "))
    };
    sent.iter().map(text).collect()
}

fn acked(first_offset: u64) -> Outcome {
    Outcome::Acked { first_offset: Offset(first_offset) }
}

const UNKNOWN: Outcome = Outcome::Unknown;

#[test]
fn records_are_batched_and_acknowledged_as_a_range() {
    let mut rig = Rig::new(2, Granted::default(), ProducerOptions::default());
    let ids: Vec<RecordId> =
        ["a", "b", "c"].map(|value| rig.try_push(Placement::Partition(1), value).unwrap()).to_vec();
    assert_eq!((ids[2].partition(), ids[2].number()), (1, 2));
    let sent = rig.poll();
    assert_eq!(texts(&sent), ["a b c"]);
    assert_eq!(sent[0].subject, partition(1).0);
    assert!(!rig.producer.is_idle());
    rig.ack(&sent[0], 70);
    let result = rig.producer.next_result().unwrap();
    assert_eq!(result, BatchResult { first: ids[0], record_count: 3, outcome: acked(70) });
    assert!(rig.producer.is_idle());
    let next = rig.try_push(Placement::Partition(1), "d").unwrap();
    assert_eq!(next, RecordId(ids[2].0 + 1));
}

#[test]
fn batch_closes_at_its_length_and_at_its_count() {
    let options = ProducerOptions { batch_records_max: 2, ..ProducerOptions::default() };
    let mut rig = Rig::new(1, Granted::default(), options);
    for value in ["a", "b", "c"] {
        rig.try_push(Placement::Sticky, value).unwrap();
    }
    assert_eq!(texts(&rig.poll()), ["a b", "c"]);

    let options = ProducerOptions { batch_bytes_max: 1_000, ..ProducerOptions::default() };
    let mut rig = Rig::new(1, Granted::default(), options);
    let long = "x".repeat(300);
    let longer = "z".repeat(2_000);
    for value in [long.as_str(), long.as_str(), "y", longer.as_str()] {
        rig.try_push(Placement::Sticky, value).unwrap();
    }
    let sent = rig.poll();
    assert_eq!(sent.len(), 2);
    assert!(sent[0].payload.len() <= 1_000);
    assert!(sent[1].payload.len() > 2_000, "a long record goes alone");
}

#[test]
fn records_go_where_they_are_placed() {
    let mut rig = Rig::new(4, Granted::default(), ProducerOptions::default());
    let record = Record { key: b"order-42", value: b"v", ..Record::default() };
    let id = rig.producer.push(0, Placement::ByKey, &record).unwrap();
    assert_eq!(u32::from(id.partition()), partition_of_key(b"order-42", 4));
    let refused = rig.try_push(Placement::Partition(4), "v").unwrap_err();
    assert_eq!(refused, PushError::UnknownPartition(4));

    let mut rig = Rig::new(3, Granted::default(), ProducerOptions::default());
    let mut partitions = Vec::new();
    for placement in [Placement::Sticky, Placement::ByKey, Placement::Sticky, Placement::Sticky] {
        partitions.push(rig.try_push(placement, "v").unwrap().partition());
        partitions.push(rig.try_push(placement, "v").unwrap().partition());
        rig.poll();
    }
    assert_eq!(partitions, [0, 0, 1, 1, 2, 2, 0, 0]);
}

#[test]
fn what_is_pushed_while_the_window_is_full_makes_one_batch() {
    let options = ProducerOptions { frames_in_flight_max: 1, ..ProducerOptions::default() };
    let mut rig = Rig::new(1, Granted::default(), options);
    rig.try_push(Placement::Sticky, "a").unwrap();
    assert!(rig.producer.should_poll(0, 0));
    let first = rig.poll();
    assert_eq!(texts(&first), ["a"]);
    for value in ["b", "c", "d"] {
        rig.try_push(Placement::Sticky, value).unwrap();
        assert!(rig.poll().is_empty());
        assert!(!rig.producer.should_poll(0, 0), "the poll has found the window full");
    }
    assert_eq!(rig.producer.next_deadline_ns(), None, "only the answer helps");
    rig.ack(&first[0], 0);
    assert_eq!(texts(&rig.poll()), ["b c d"]);
}

#[test]
fn granted_window_holds_frames_back_in_order() {
    let frame_bytes = (FRAME_HEADER_BYTES + fake::batch_of(&[b"1"]).len()) as u32;
    let granted = Granted { window_bytes: 2 * frame_bytes, ..Granted::default() };
    let mut rig = Rig::new(1, granted, ProducerOptions::default());
    rig.push_batches(&["1", "2", "3", "4", "5"]);
    let first = rig.poll();
    assert_eq!(texts(&first), ["1", "2"]);
    assert!(rig.poll().is_empty());
    rig.ack(&first[1], 1);
    let second = rig.poll();
    assert_eq!(texts(&second), ["3"]);
    rig.ack(&first[0], 0);
    rig.ack(&second[0], 2);
    assert_eq!(texts(&rig.poll()), ["4", "5"]);
    assert_eq!(rig.outcomes(), [acked(1), acked(0), acked(2)]);
}

#[test]
fn open_batch_lingers_until_it_is_due_or_flushed() {
    let options = ProducerOptions { linger_us: 2_000, ..ProducerOptions::default() };
    let mut rig = Rig::new(1, Granted::default(), options);
    rig.now_ns = MS_NS;
    rig.try_push(Placement::Sticky, "a").unwrap();
    assert!(rig.poll().is_empty());
    assert_eq!(rig.producer.next_deadline_ns(), Some(3 * MS_NS));
    rig.now_ns = 3 * MS_NS - 1;
    rig.try_push(Placement::Sticky, "b").unwrap();
    assert!(rig.poll().is_empty());
    rig.now_ns += 1;
    assert_eq!(texts(&rig.poll()), ["a b"]);
    rig.try_push(Placement::Sticky, "c").unwrap();
    rig.producer.set_flushing(true);
    assert_eq!(texts(&rig.poll()), ["c"]);
}

#[test]
fn refused_frames_go_again_in_order_behind_one_that_resumes() {
    let mut rig = Rig::new(1, Granted::default(), ProducerOptions::default());
    rig.push_batches(&["1", "2", "3", "4"]);
    let sent = rig.poll();
    assert_eq!(texts(&sent), ["1", "2", "3", "4"]);
    rig.ack(&sent[0], 0);
    for frame in &sent[1..] {
        rig.push_batches(&["later"]);
        assert!(rig.poll().len() <= 1, "before the first refusal is known, new frames still go out");
        rig.refuse(frame, Status::Busy, 2_000);
    }
    // One "later" left before the gate was known to be closed; it is refused like the others.
    let strayed = rig.producer.frames_in_flight();
    assert_eq!(strayed, 1);
    rig.now_ns = 10 * MS_NS;
    assert!(rig.poll().is_empty(), "nothing goes out while an answer is under way");
    let stray = rig.producer.in_flight.back().unwrap().correlation;
    rig.hear(&fake::refused_produce(stray, Status::Busy, 2_000));

    let probe = rig.poll();
    assert_eq!(texts(&probe), ["!2"]);
    assert!(rig.poll().is_empty(), "the probe goes alone");
    rig.ack(&probe[0], 1);
    let rest = rig.poll();
    assert_eq!(texts(&rest), ["3", "4", "later", "later", "later"]);
    for (number, frame) in rest.iter().enumerate() {
        rig.ack(frame, 2 + number as u64);
    }
    assert_eq!(rig.outcomes(), (0..7).map(acked).collect::<Vec<_>>());
    assert!(rig.producer.is_idle());
}

#[test]
fn back_off_follows_the_hint_and_doubles_within_bounds() {
    let mut rig = Rig::new(1, Granted::default(), ProducerOptions::default());
    rig.push_batches(&["1"]);
    let mut waits_us = Vec::new();
    for round in 0..20 {
        let sent = rig.poll();
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].resumes, round > 0);
        let hint_us = if round == 2 { 50_000 } else { 0 };
        rig.refuse(&sent[0], Status::DiskFull, hint_us);
        let retry_at_ns = rig.producer.next_deadline_ns().unwrap();
        waits_us.push((retry_at_ns - rig.now_ns) / 1_000);
        rig.now_ns = retry_at_ns - 1;
        assert!(rig.poll().is_empty());
        rig.now_ns = retry_at_ns;
    }
    assert_eq!(waits_us[..4], [RETRY_US_MIN, 2 * RETRY_US_MIN, 50_000, 8 * RETRY_US_MIN]);
    assert_eq!(waits_us.last(), Some(&RETRY_US_MAX));
    let sent = rig.poll();
    rig.refuse(&sent[0], Status::Busy, u64::MAX);
    assert_eq!(rig.producer.next_deadline_ns(), Some(rig.now_ns + RETRY_US_MAX * 1_000));
}

#[test]
fn probe_that_fails_for_good_leaves_resumes_to_the_next_frame() {
    let mut rig = Rig::new(1, Granted::default(), ProducerOptions::default());
    rig.push_batches(&["1", "2"]);
    let sent = rig.poll();
    rig.refuse(&sent[0], Status::Busy, 0);
    rig.refuse(&sent[1], Status::Busy, 0);
    rig.now_ns = 10 * MS_NS;
    let probe = rig.poll();
    assert_eq!(texts(&probe), ["!1"]);
    rig.refuse(&probe[0], Status::CorruptBatch, 0);
    assert_eq!(texts(&rig.poll()), ["!2"]);
    assert_eq!(rig.outcomes(), [Outcome::Failed { status: Status::CorruptBatch }]);
}

#[test]
fn batch_refused_too_often_is_given_up() {
    let options = ProducerOptions { refusals_max: Some(2), ..ProducerOptions::default() };
    let mut rig = Rig::new(1, Granted::default(), options);
    rig.push_batches(&["1", "2"]);
    let sent = rig.poll();
    rig.refuse(&sent[0], Status::Busy, 0);
    rig.refuse(&sent[1], Status::Busy, 0);
    assert!(rig.outcomes().is_empty());
    rig.now_ns = 10 * MS_NS;
    let probe = rig.poll();
    rig.refuse(&probe[0], Status::QuotaExceeded, 0);
    assert_eq!(rig.outcomes(), [Outcome::Failed { status: Status::QuotaExceeded }]);
    rig.now_ns = 100 * MS_NS;
    assert_eq!(texts(&rig.poll()), ["!2"]);
}

#[test]
fn refusal_for_good_fails_its_batch_alone() {
    let mut rig = Rig::new(1, Granted::default(), ProducerOptions::default());
    rig.push_batches(&["1", "2"]);
    let sent = rig.poll();
    rig.refuse(&sent[0], Status::StaleHandle, 0);
    rig.push_batches(&["3"]);
    assert_eq!(texts(&rig.poll()), ["3"]);
    rig.ack(&sent[1], 0);
    assert_eq!(rig.outcomes(), [Outcome::Failed { status: Status::StaleHandle }, acked(0)]);
}

#[test]
fn what_was_sent_is_unknown_and_what_was_not_goes_out_on_the_next_connection() {
    let mut rig = Rig::new(2, Granted::default(), ProducerOptions::default());
    rig.push_batches(&["1", "2", "3"]);
    let sent = rig.poll();
    rig.ack(&sent[1], 5);
    rig.push_batches(&["4", "5"]);
    rig.try_push(Placement::Partition(1), "open").unwrap();
    rig.producer.poll(0, &mut rig.connection);
    // "4" left with its first byte only; "5" and what was open never did.
    rig.connection.transmitted(1);
    rig.reconnect(Granted::default());
    assert_eq!(rig.outcomes(), [acked(5), UNKNOWN, UNKNOWN, UNKNOWN]);
    rig.push_batches(&["6"]);
    let mut sent = texts(&rig.poll());
    sent.sort();
    assert_eq!(sent, ["5", "6", "open"]);
}

#[test]
fn refused_frames_survive_the_connection_and_its_gates_do_not() {
    let mut rig = Rig::new(1, Granted::default(), ProducerOptions::default());
    rig.push_batches(&["1", "2", "3"]);
    let sent = rig.poll();
    rig.refuse(&sent[0], Status::ShuttingDown, 0);
    rig.refuse(&sent[1], Status::ShuttingDown, 0);
    rig.reconnect(Granted::default());
    assert_eq!(rig.outcomes(), [UNKNOWN], "the third was sent, and nobody answered");
    assert_eq!(texts(&rig.poll()), ["1", "2"]);
}

#[test]
fn smaller_grants_of_the_next_connection_fail_what_no_longer_fits() {
    let mut rig = Rig::new(1, Granted::default(), ProducerOptions::default());
    rig.try_push(Placement::Sticky, &"x".repeat(8_000)).unwrap();
    rig.reconnect(Granted { frame_bytes_max: 8_192, ..Granted::default() });
    assert_eq!(rig.try_push(Placement::Sticky, &"y".repeat(5_000)), Err(PushError::RecordTooLarge));
    rig.try_push(Placement::Sticky, "small").unwrap();
    assert_eq!(texts(&rig.poll()), ["small"]);
    assert_eq!(rig.outcomes(), [Outcome::Failed { status: Status::FrameTooLarge }]);
}

#[test]
fn buffer_is_bounded_and_always_takes_one() {
    let options = ProducerOptions { buffer_bytes_max: 4_096, ..ProducerOptions::default() };
    let mut rig = Rig::new(1, Granted::default(), options);
    rig.try_push(Placement::Sticky, &"x".repeat(10_000)).unwrap();
    assert_eq!(rig.try_push(Placement::Sticky, "y"), Err(PushError::Full));
    let sent = rig.poll();
    assert_eq!(rig.try_push(Placement::Sticky, "y"), Err(PushError::Full));
    rig.ack(&sent[0], 0);
    while rig.try_push(Placement::Sticky, &"z".repeat(100)).is_ok() {
        assert!(rig.producer.buffered_bytes() <= 4_096);
    }
    let too_long = "x".repeat(600 << 10);
    assert_eq!(rig.try_push(Placement::Sticky, &too_long), Err(PushError::RecordTooLarge));
}

#[test]
fn results_that_nobody_takes_stop_the_pushing() {
    let mut rig = Rig::new(1, Granted::default(), one_by_one());
    for _ in 0..RESULTS_MAX {
        rig.try_push(Placement::Sticky, "").unwrap();
    }
    rig.producer.abandon();
    assert_eq!(rig.try_push(Placement::Sticky, ""), Err(PushError::ResultsWaiting));
    assert_eq!(rig.producer.next_result().unwrap().outcome, Outcome::Unsent);
    rig.try_push(Placement::Sticky, "").unwrap();
}

#[test]
fn abandoned_batches_say_why() {
    let mut rig = Rig::new(2, Granted::default(), ProducerOptions::default());
    rig.push_batches(&["1", "2"]);
    let sent = rig.poll();
    rig.refuse(&sent[0], Status::DiskFull, 0);
    rig.try_push(Placement::Partition(1), "open").unwrap();
    rig.producer.on_disconnected(&rig.connection);
    rig.producer.abandon();
    let refused = Outcome::Failed { status: Status::DiskFull };
    assert_eq!(rig.outcomes(), [UNKNOWN, refused, Outcome::Unsent]);
}

#[test]
fn with_more_partitions_than_gates_probes_wait_for_every_answer_and_go_first() {
    let partition_count = GATES_MAX as u16 + 2;
    let mut rig = Rig::new(partition_count, Granted::default(), ProducerOptions::default());
    for number in 0..partition_count {
        rig.try_push(Placement::Partition(number), "first").unwrap();
    }
    let sent = rig.poll();
    assert_eq!(sent.len(), usize::from(partition_count));
    rig.refuse(&sent[0], Status::Busy, 0);
    rig.now_ns = 10 * MS_NS;
    rig.try_push(Placement::Partition(5), "second").unwrap();
    assert!(rig.poll().is_empty(), "refusals of other partitions may be under way");
    assert_eq!(rig.producer.next_deadline_ns(), None);
    for frame in &sent[1..] {
        assert!(rig.poll().is_empty());
        rig.refuse(frame, Status::Busy, 0);
    }
    rig.now_ns = 20 * MS_NS;
    let probes = rig.poll();
    assert_eq!(probes.len(), usize::from(partition_count));
    assert!(probes.iter().all(|probe| probe.resumes && texts(std::slice::from_ref(probe)) == ["!first"]));
    for probe in &probes {
        rig.ack(probe, 0);
    }
    assert_eq!(texts(&rig.poll()), ["second"]);
}
