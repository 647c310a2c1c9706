//! The model: what clients were told, and therefore what must be true for ever.
//!
//! A record is *fixed* at an offset once its acknowledgement or the record itself has reached a client. From then on
//! nothing else may stand there, in this run of the broker or any later one. What was refused must never appear;
//! what is unknown may appear once. The audit after a recovery reads every partition whole and then asks
//! `check_partition` for the rest: no hole, no lost end, order within each connection, frames whole.
//!
//! Retention may move a partition's start, and then never back; `trimming.rs` says when. What is damaged may be
//! missing, if the reader was told so.

use std::collections::BTreeMap;

use protocol::batch::Batch;
use protocol::ids::Handle;

use crate::frame_check::FrameCheck;
use crate::records::{Size, content, count_of, record_of};
use crate::report::{Kind, Report, Violation, violation};
use crate::retention::{ClockWatch, Moment};
use crate::topics::Topics;
use crate::world::Surroundings;

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
    /// When it was sent for the last time.
    at: Moment,
}

/// When a record was appended, as far as clients can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    At(u64),
    NotBefore(u64),
}

/// What stands at an offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fixed {
    record: u64,
    pub(crate) appended: Appended,
}

/// Offsets that a reader was told cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damaged {
    pub(crate) partition: Handle,
    pub(crate) first: u64,
    /// The offset behind the last one.
    pub(crate) behind: u64,
}

/// What clients know of a partition at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KnownRange {
    pub(crate) partition: Handle,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl KnownRange {
    /// Nothing.
    pub(crate) fn new(partition: Handle) -> Self {
        Self { partition, start: 0, end: 0 }
    }
}

/// A partition that was read whole: from its start up to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadRange {
    pub(crate) partition: Handle,
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Of the batches in it.
    pub(crate) bytes: u64,
}

/// Everything that clients did and were told, over all runs of the broker.
#[derive(Debug, Default)]
pub(crate) struct Model {
    record_count: u64,
    frame_count: u64,
    lane_count: u64,
    sent: BTreeMap<u64, Sent>,
    /// What stands at an offset, for ever.
    pub(crate) fixed: BTreeMap<(Handle, u64), Fixed>,
    /// Where a record stands.
    placed: BTreeMap<u64, (Handle, u64)>,
    /// The highest start of each partition that was told.
    pub(crate) starts: BTreeMap<Handle, u64>,
    pub(crate) topics: Topics,
    pub(crate) clock: ClockWatch,
    /// Something may be unreadable now.
    may_be_damaged: bool,
    /// Ranges of which readers were told, once for each time.
    pub(crate) damaged: Vec<Damaged>,
    /// Operations begun by clients.
    pub(crate) operations: u64,
    pub(crate) acked: u64,
    pub(crate) delivered: u64,
    unknown: u64,
    refused: u64,
    pub(crate) start_moves: u64,
    pub(crate) out_of_range: u64,
}

impl Model {
    /// What goes on around the clients, as of now.
    pub(crate) fn see(&mut self, surroundings: Surroundings) {
        self.clock.see(surroundings.wall_ms, surroundings.wall_max_ms);
        self.may_be_damaged = surroundings.may_be_damaged;
    }

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
            let sent = Sent {
                partition,
                lane,
                frame: self.frame_count,
                frame_records: count,
                outcome: Outcome::Waiting,
                at: self.clock.moment(),
            };
            self.sent.insert(record, sent);
            records.push(record);
        }
        records
    }

    /// A frame that was refused is sent again.
    pub(crate) fn on_sent_again(&mut self, records: &[u64]) {
        self.set(records, Outcome::Waiting);
        let now = self.clock.moment();
        for record in records {
            self.sent.get_mut(record).expect("the record was made here").at = now;
        }
    }

    /// A frame was acknowledged.
    pub(crate) fn on_acked(
        &mut self,
        partition: Handle,
        first: u64,
        records: &[u64],
    ) -> Result<(), Violation> {
        for (n, record) in (0..).zip(records) {
            let sent = self.sent.get(record).map_or_else(Moment::default, |sent| sent.at);
            let appended = Appended::NotBefore(self.clock.least_since(sent));
            self.fix(partition, first + n, Fixed { record: *record, appended })?;
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
        let appended = Appended::At(batch.header().appended_ms.get());
        let Some(records) = batch.records() else {
            return violation(format!("a batch of {partition} is compressed, and nobody sent such a one"));
        };
        for view in records {
            let Some(record) = record_of(view.value) else {
                return violation(format!("nobody sent the value at {partition}:{}", view.offset));
            };
            if view.value != content(record) || !view.key.is_empty() {
                return violation(format!("the record at {partition}:{} was changed", view.offset));
            }
            self.fix(partition, view.offset.0, Fixed { record, appended })?;
            self.delivered += 1;
        }
        Ok(())
    }

    /// A reader whose next offset is `next` was told that a range cannot be read.
    pub(crate) fn on_damaged(&mut self, damaged: Damaged, next: u64) -> Result<(), Violation> {
        let Damaged { partition, first, behind } = damaged;
        if !self.may_be_damaged {
            return violation(format!("{partition}:{first} to {behind} is said to be damaged, and is not"));
        }
        if !(first..behind).contains(&next) {
            return violation(format!(
                "{partition}:{first} to {behind} is said to be damaged, and {next} was to be read"
            ));
        }
        self.damaged.push(damaged);
        Ok(())
    }

    /// The offset behind the last one that a client knows of.
    pub(crate) fn known_end(&self, partition: Handle) -> u64 {
        let mut known = self.fixed.range((partition, 0)..=(partition, u64::MAX));
        known.next_back().map_or(0, |((_, offset), _)| offset + 1)
    }

    /// What clients know of a partition now.
    pub(crate) fn known_range(&self, partition: Handle) -> KnownRange {
        let start = self.starts.get(&partition).copied().unwrap_or_default();
        KnownRange { partition, start, end: self.known_end(partition) }
    }

    /// The first offset at or behind `from` of which it is known that it was appended at a time or later.
    pub(crate) fn first_since(&self, partition: Handle, from: u64, time_ms: u64) -> Option<u64> {
        for ((_, offset), fixed) in self.fixed.range((partition, from)..=(partition, u64::MAX)) {
            if matches!(fixed.appended, Appended::At(at_ms) if at_ms >= time_ms) {
                return Some(*offset);
            }
        }
        None
    }

    /// Checks a partition that was read whole. Offsets in the damaged ranges may be missing.
    pub(crate) fn check_partition(&self, read: &ReadRange, damaged: &[Damaged]) -> Result<(), Violation> {
        let ReadRange { partition, start, end, .. } = *read;
        let is_damaged =
            |offset: u64| damaged.iter().any(|range| (range.first..range.behind).contains(&offset));
        let mut last_of_lane: BTreeMap<u64, u64> = BTreeMap::new();
        let mut whole = FrameCheck::new(partition, start > 0);
        let mut next = start;
        for ((_, offset), fixed) in self.fixed.range((partition, start)..=(partition, u64::MAX)) {
            while next < *offset && is_damaged(next) {
                whole.on_gap();
                next += 1;
            }
            if *offset != next || *offset >= end {
                return violation(format!("{partition}:{offset} is lost: found {next} of {end} before it"));
            }
            next += 1;
            let sent = &self.sent[&fixed.record];
            let last = last_of_lane.insert(sent.lane, count_of(fixed.record)).unwrap_or_default();
            if last >= count_of(fixed.record) {
                return violation(format!("{partition}:{offset} overtook a record of its connection"));
            }
            whole.on_record(*offset, sent.frame, sent.frame_records)?;
        }
        while next < end && is_damaged(next) {
            whole.on_gap();
            next += 1;
        }
        whole.end()?;
        if next == end {
            Ok(())
        } else {
            violation(format!("{partition} ends at {end}, only {next} were delivered"))
        }
    }

    /// Counts what has happened.
    pub(crate) fn add_to(&self, report: &mut Report) {
        report.operations = self.operations;
        report.add(Kind::RecordAcked, self.acked);
        report.add(Kind::RecordDelivered, self.delivered);
        report.add(Kind::RecordUnknown, self.unknown);
        report.add(Kind::RecordRefused, self.refused);
        report.add(Kind::TopicCreated, self.topics.created);
        report.add(Kind::TopicDeleted, self.topics.deleted);
        report.add(Kind::StartMoved, self.start_moves);
        report.add(Kind::ToldOutOfRange, self.out_of_range);
        report.add(Kind::ToldCorrupt, self.damaged.len() as u64);
    }

    fn set(&mut self, records: &[u64], outcome: Outcome) {
        for record in records {
            self.sent.get_mut(record).expect("the record was made here").outcome = outcome;
        }
    }

    fn fix(&mut self, partition: Handle, offset: u64, fixed: Fixed) -> Result<(), Violation> {
        let record = fixed.record;
        let Some(sent) = self.sent.get(&record) else {
            return violation(format!("record {record:#x} at {partition}:{offset} was never sent"));
        };
        if sent.partition != partition {
            return violation(format!("record {record:#x} of {} is at {partition}:{offset}", sent.partition));
        }
        if sent.outcome == Outcome::Refused {
            return violation(format!("record {record:#x} at {partition}:{offset} was refused"));
        }
        let known = self.fixed.entry((partition, offset)).or_insert(fixed);
        if known.record != record {
            let before = known.record;
            return violation(format!("{partition}:{offset} held {before:#x} and holds {record:#x}"));
        }
        match (known.appended, fixed.appended) {
            (Appended::At(before), Appended::At(now)) if before != now => {
                return violation(format!("{partition}:{offset} was appended at {before}, and now at {now}"));
            }
            (Appended::NotBefore(_), Appended::At(_)) => known.appended = fixed.appended,
            _ => {}
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
