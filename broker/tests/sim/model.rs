//! The model: what clients were told, and therefore what must be true for ever.
//!
//! A record is *fixed* at an offset once its acknowledgement or the record itself has reached a client. From then on
//! nothing else may stand there, in this run of the broker or any later one. What was refused must never appear;
//! what is unknown may appear once. The audit after a recovery reads every partition whole and then asks
//! `check_partition` for the rest: no hole, no lost end, order within each connection, frames whole.

use std::collections::BTreeMap;

use protocol::batch::Batch;
use protocol::ids::Handle;

use crate::records::{Size, content, count_of, record_of};
use crate::report::{Violation, violation};
use crate::topics::Topics;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Waiting,
    Refused,
    Acked,
    Unknown,
}

/// A record that was sent.
#[derive(Debug)]
struct Sent {
    partition: Handle,
    /// The connection that sent it.
    lane: u64,
    frame: u64,
    /// Records of its frame.
    frame_records: usize,
    outcome: Outcome,
}

/// Everything that clients did and were told, over all runs of the broker.
#[derive(Debug, Default)]
pub(crate) struct Model {
    record_count: u64,
    frame_count: u64,
    lane_count: u64,
    sent: BTreeMap<u64, Sent>,
    /// What stands at an offset, for ever.
    fixed: BTreeMap<(Handle, u64), u64>,
    /// Where a record stands.
    placed: BTreeMap<u64, (Handle, u64)>,
    pub(crate) topics: Topics,
    /// Operations begun by clients.
    pub(crate) operations: u64,
    pub(crate) acked: u64,
    pub(crate) delivered: u64,
    pub(crate) unknown: u64,
    pub(crate) refused: u64,
}

impl Model {
    /// A number for a connection.
    pub(crate) fn new_lane(&mut self) -> u64 {
        self.lane_count += 1;
        self.lane_count
    }

    /// The records of a new frame, in their order.
    pub(crate) fn new_frame(&mut self, partition: Handle, lane: u64, size: Size, count: usize) -> Vec<u64> {
        self.frame_count += 1;
        let mut records = Vec::new();
        for _ in 0..count {
            self.record_count += 1;
            let record = size.number(self.record_count);
            let frame = self.frame_count;
            let outcome = Outcome::Waiting;
            self.sent.insert(record, Sent { partition, lane, frame, frame_records: count, outcome });
            records.push(record);
        }
        records
    }

    /// A frame that was refused is sent again.
    pub(crate) fn on_sent_again(&mut self, records: &[u64]) {
        self.set(records, Outcome::Waiting);
    }

    /// A frame was acknowledged.
    pub(crate) fn on_acked(
        &mut self,
        partition: Handle,
        first: u64,
        records: &[u64],
    ) -> Result<(), Violation> {
        for (n, record) in (0..).zip(records) {
            self.fix(partition, first + n, *record)?;
        }
        self.set(records, Outcome::Acked);
        self.acked += records.len() as u64;
        Ok(())
    }

    /// A frame was refused: nothing of it was stored.
    pub(crate) fn on_refused(&mut self, records: &[u64]) -> Result<(), Violation> {
        if let Some(record) = records.iter().find(|record| self.placed.contains_key(*record)) {
            return violation(format!("record {record:#x} was delivered, and then its frame was refused"));
        }
        self.set(records, Outcome::Refused);
        self.refused += records.len() as u64;
        Ok(())
    }

    /// The connection ended before a frame was answered.
    pub(crate) fn on_lost(&mut self, records: &[u64]) {
        self.set(records, Outcome::Unknown);
        self.unknown += records.len() as u64;
    }

    /// A batch was delivered.
    pub(crate) fn on_delivered(&mut self, partition: Handle, batch: &Batch<'_>) -> Result<(), Violation> {
        for view in batch.records() {
            let Some(record) = record_of(view.value) else {
                return violation(format!("nobody sent the value at {partition}:{}", view.offset));
            };
            if view.value != content(record) || !view.key.is_empty() {
                return violation(format!("the record at {partition}:{} was changed", view.offset));
            }
            self.fix(partition, view.offset.0, record)?;
            self.delivered += 1;
        }
        Ok(())
    }

    /// The offset behind the last one that a client knows of.
    pub(crate) fn known_end(&self, partition: Handle) -> u64 {
        let mut known = self.fixed.range((partition, 0)..=(partition, u64::MAX));
        known.next_back().map_or(0, |((_, offset), _)| offset + 1)
    }

    /// Checks a partition that was read whole, from 0 to `end`.
    pub(crate) fn check_partition(&self, partition: Handle, end: u64) -> Result<(), Violation> {
        let mut last_of_lane: BTreeMap<u64, u64> = BTreeMap::new();
        let mut whole = FrameCheck::default();
        let mut next = 0;
        for ((_, offset), record) in self.fixed.range((partition, 0)..=(partition, u64::MAX)) {
            if *offset != next || *offset >= end {
                return violation(format!("{partition}:{offset} is lost: found {next} of {end} before it"));
            }
            next += 1;
            let sent = &self.sent[record];
            let last = last_of_lane.insert(sent.lane, count_of(*record)).unwrap_or_default();
            if last >= count_of(*record) {
                return violation(format!("{partition}:{offset} overtook a record of its connection"));
            }
            whole.on_record(partition, *offset, sent)?;
        }
        whole.end(partition)?;
        if next == end {
            Ok(())
        } else {
            violation(format!("{partition} ends at {end}, only {next} were delivered"))
        }
    }

    fn set(&mut self, records: &[u64], outcome: Outcome) {
        for record in records {
            self.sent.get_mut(record).expect("the record was made here").outcome = outcome;
        }
    }

    fn fix(&mut self, partition: Handle, offset: u64, record: u64) -> Result<(), Violation> {
        let Some(sent) = self.sent.get(&record) else {
            return violation(format!("record {record:#x} at {partition}:{offset} was never sent"));
        };
        if sent.partition != partition {
            return violation(format!("record {record:#x} of {} is at {partition}:{offset}", sent.partition));
        }
        if sent.outcome == Outcome::Refused {
            return violation(format!("record {record:#x} at {partition}:{offset} was refused"));
        }
        let before = *self.fixed.entry((partition, offset)).or_insert(record);
        if before != record {
            return violation(format!("{partition}:{offset} held {before:#x} and holds {record:#x}"));
        }
        let place = *self.placed.entry(record).or_insert((partition, offset));
        if place != (partition, offset) {
            return violation(format!(
                "record {record:#x} is at {}:{} and at {partition}:{offset}",
                place.0, place.1
            ));
        }
        Ok(())
    }
}

/// Frames are stored whole and in one piece.
#[derive(Debug, Default)]
struct FrameCheck {
    frame: u64,
    wanted: usize,
    seen: usize,
}

impl FrameCheck {
    fn on_record(&mut self, partition: Handle, offset: u64, sent: &Sent) -> Result<(), Violation> {
        if sent.frame != self.frame {
            self.end(partition)?;
            *self = Self { frame: sent.frame, wanted: sent.frame_records, seen: 0 };
        }
        self.seen += 1;
        if self.seen > self.wanted {
            return violation(format!("{partition}:{offset} is one record more than its frame had"));
        }
        Ok(())
    }

    fn end(&self, partition: Handle) -> Result<(), Violation> {
        if self.seen == self.wanted {
            return Ok(());
        }
        violation(format!("{partition} holds {} of {} records of one frame", self.seen, self.wanted))
    }
}
