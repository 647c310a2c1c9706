//! Records that say which one they are: what comes back can be checked byte by byte without keeping it.
//!
//! Record `n` of a topic with one partition is made from `n` alone, and is acknowledged at offset `n`.

use std::ops::Range;

use client::blocking::{BlockingProducer, Client, SubscribeOptions};
use client::connection::Start;
use client::producer::{Outcome, Placement};
use protocol::batch::Record;
use protocol::status::Status;

use crate::PATIENCE;

/// Tries to get an outcome; each takes some milliseconds.
const TRIES_MAX: u32 = 20_000;

/// The records of one topic with one partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbered<'a> {
    pub(crate) topic: &'a str,
    pub(crate) record_bytes: usize,
}

impl Numbered<'_> {
    /// Produces these records with a producer that has sent all before them, and waits until all are acknowledged.
    pub(crate) fn produce(&self, producer: &mut BlockingProducer, numbers: Range<u64>) {
        self.produce_from(producer, 0, numbers);
    }

    /// The same with a producer whose first record was `first`.
    pub(crate) fn produce_from(&self, producer: &mut BlockingProducer, first: u64, numbers: Range<u64>) {
        let mut acked = numbers.start;
        for number in numbers.clone() {
            self.send(producer, number);
            acked += take_acked(producer, first);
        }
        producer.flush(PATIENCE).unwrap();
        acked += take_acked(producer, first);
        assert_eq!(acked, numbers.end);
    }

    /// Produces records one by one, from `from` on, until the outcome of one is this; gives the number behind the last
    /// one that was acknowledged. A broker that is busy, or has no space, is asked again.
    pub(crate) fn produce_until(&self, producer: &mut BlockingProducer, from: u64, awaited: Outcome) -> u64 {
        let mut next = from;
        for _ in 0..TRIES_MAX {
            self.send(producer, next);
            producer.flush(PATIENCE).unwrap();
            let outcome = producer.next_result().unwrap().outcome;
            match outcome {
                Outcome::Acked { first_offset } => {
                    assert_eq!(first_offset.0, next);
                    next += 1;
                }
                Outcome::Failed { status: Status::Busy | Status::DiskFull } => {}
                other => panic!("record {next}: {other:?}"),
            }
            if outcome == awaited {
                return next;
            }
        }
        panic!("{awaited:?} never comes; {next} records were taken");
    }

    /// Reads these records by a subscription that starts so, and checks order and every byte.
    pub(crate) fn read(&self, client: &Client, from: Start, numbers: Range<u64>) {
        let options = SubscribeOptions { from, ..SubscribeOptions::default() };
        let mut subscription = client.subscribe(self.topic, options).unwrap();
        let mut next = numbers.start;
        while next < numbers.end {
            let batch = subscription.next_batch(PATIENCE).unwrap().expect("the broker stopped in the middle");
            for record in batch.records() {
                assert_eq!(record.offset.0, next, "from {from:?}");
                assert!(record.value == self.value(next), "record {next} is damaged");
                next += 1;
            }
        }
    }

    fn send(&self, producer: &mut BlockingProducer, number: u64) {
        let value = self.value(number);
        producer.send(Placement::Partition(0), &Record { value: &value, ..Record::default() }).unwrap();
    }

    /// The number, and steps of a generator that begins with it.
    fn value(&self, number: u64) -> Vec<u8> {
        let mut value = Vec::with_capacity(self.record_bytes + 8);
        let mut state = number;
        while value.len() < self.record_bytes {
            value.extend_from_slice(&state.to_le_bytes());
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        }
        value.truncate(self.record_bytes);
        value
    }
}

/// Takes what is known of a producer whose first record was `first`: all must be acknowledged where they belong. Gives
/// the number of records.
fn take_acked(producer: &mut BlockingProducer, first: u64) -> u64 {
    let mut count = 0;
    while let Some(result) = producer.next_result() {
        match result.outcome {
            Outcome::Acked { first_offset } => assert_eq!(first_offset.0, first + result.first.number()),
            other => panic!("record {}: {other:?}", result.first.number()),
        }
        count += u64::from(result.record_count);
    }
    count
}
