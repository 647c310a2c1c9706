//! A consumer on one connection: subscriptions, what each was promised, and what it may still be sent.
//!
//! Deliveries come in the order of offsets without a gap, from the batch that holds the start on, only durable ones,
//! and only while both kinds of credit are positive. From a time, they come from the first batch on that was appended
//! then or later.

use std::collections::BTreeMap;

use protocol::batch::BatchHeader;
use protocol::ids::Handle;
use protocol::status::Status;

use crate::frames::{Received, Start, each_batch};
use crate::model::{Damaged, KnownRange, Model};
use crate::report::{Violation, violation};

/// What the first batch of a subscription may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// It was delivered.
    Seen,
    /// The one that holds the start.
    AtStart,
    /// The first one appended at a time or later; `is_end`: no client knew of a record at the start or behind.
    Since { time_ms: u64, is_end: bool },
}

/// Where a subscription stands in one partition.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    next: u64,
    first: First,
    appended_ms: u64,
}

/// One subscription.
#[derive(Debug)]
struct Subscription {
    topic: String,
    start: Start,
    /// The topic's version, and what clients knew of its partitions, when it was asked for.
    version: u64,
    known: Vec<KnownRange>,
    is_answered: bool,
    cursors: BTreeMap<Handle, Cursor>,
    /// Credit left, as far as this side knows.
    records: i64,
    bytes: i64,
}

/// One connection's subscriptions, by their ids.
#[derive(Debug, Default)]
pub(crate) struct Consumer {
    subscriptions: BTreeMap<u64, Subscription>,
    last_id: u64,
}

impl Consumer {
    /// A subscription is asked for, with these grants; gives its id.
    pub(crate) fn begin(
        &mut self,
        topic: &str,
        start: Start,
        (records, bytes): (u64, u64),
        model: &Model,
    ) -> u64 {
        self.last_id += 1;
        let partitions = model.topics.partitions_of(topic).iter();
        let subscription = Subscription {
            topic: topic.to_owned(),
            start,
            version: model.topics.version(topic),
            known: partitions.map(|handle| model.known_range(*handle)).collect(),
            is_answered: false,
            cursors: BTreeMap::new(),
            records: records as i64,
            bytes: bytes as i64,
        };
        self.subscriptions.insert(self.last_id, subscription);
        self.last_id
    }

    pub(crate) fn count(&self) -> usize {
        self.subscriptions.len()
    }

    /// The topic of a subscription.
    pub(crate) fn topic(&self, id: u64) -> Option<&str> {
        self.subscriptions.get(&id).map(|subscription| subscription.topic.as_str())
    }

    /// One of the subscriptions that were answered, by a number.
    pub(crate) fn choose(&self, number: usize) -> Option<u64> {
        let answered = self.subscriptions.iter().filter(|(_, subscription)| subscription.is_answered);
        let ids: Vec<u64> = answered.map(|(id, _)| *id).collect();
        ids.get(number.checked_rem(ids.len())?).copied()
    }

    /// More credit was sent.
    pub(crate) fn grant(&mut self, id: u64, records: u64, bytes: u64) {
        if let Some(subscription) = self.subscriptions.get_mut(&id) {
            subscription.records += records as i64;
            subscription.bytes += bytes as i64;
        }
    }

    /// The next offset that a subscription gets of a partition.
    pub(crate) fn next_offset(&self, id: u64, partition: Handle) -> Option<u64> {
        Some(self.subscriptions.get(&id)?.cursors.get(&partition)?.next)
    }

    /// A subscription has ended, or was refused.
    pub(crate) fn end(&mut self, id: u64) {
        self.subscriptions.remove(&id);
    }

    /// The broker has ended a subscription.
    pub(crate) fn on_ended(&mut self, frame: &Received, model: &mut Model) -> Result<(), Violation> {
        let id = frame.subject;
        let Some(subscription) = self.subscriptions.remove(&id) else {
            return violation(format!("subscription {id} was ended, and there is none"));
        };
        let mut partitions = subscription.cursors.keys().copied();
        match frame.status {
            Status::UnknownTopic => partitions.try_for_each(|partition| model.topics.on_told_gone(partition)),
            Status::OffsetOutOfRange | Status::Corrupt => {
                let detail = frame.offsets()?;
                let only = if subscription.cursors.len() == 1 { partitions.next() } else { None };
                let Some(partition) = detail.partition.or(only) else {
                    return violation(format!("subscription {id} was ended, and not for which partition"));
                };
                let Some(cursor) = subscription.cursors.get(&partition) else {
                    return violation(format!("subscription {id} was ended for {partition}, another's"));
                };
                if frame.status == Status::OffsetOutOfRange {
                    return model.on_overtaken(partition, cursor.next, detail.first);
                }
                let damaged = Damaged { partition, first: detail.first, behind: detail.behind };
                // From a time, nobody but the broker knows what was to be read next.
                let is_since = matches!(cursor.first, First::Since { .. });
                let next = if is_since { cursor.next.max(detail.first) } else { cursor.next };
                model.on_damaged(damaged, next)
            }
            other => violation(format!("subscription {id} was ended with {other:?}: {}", frame.message())),
        }
    }

    /// A subscription begins: its partitions and where delivery starts.
    pub(crate) fn on_subscribed(
        &mut self,
        id: u64,
        partitions: &[(Handle, u64)],
        model: &mut Model,
    ) -> Result<(), Violation> {
        let Some(subscription) = self.subscriptions.get_mut(&id) else {
            return violation(format!("subscription {id} was answered, and nobody asked for it"));
        };
        subscription.is_answered = true;
        for (partition, start) in partitions {
            let known = subscription.known.iter().find(|known| known.partition == *partition);
            let known = known.copied().unwrap_or(KnownRange::new(*partition));
            let (is_right, first) = match subscription.start {
                Start::Earliest => {
                    model.on_start_told(*partition, *start)?;
                    (*start >= known.start, First::AtStart)
                }
                Start::Latest => (*start >= known.end, First::AtStart),
                Start::Offset(offset) => (*start == offset, First::AtStart),
                Start::Time(time_ms) => {
                    let first = model.first_since(*partition, 0, time_ms);
                    let is_bound = first.is_none_or(|first| *start <= first);
                    let trims = model.topics.settings_of(*partition).trims();
                    (is_bound || trims, First::Since { time_ms, is_end: *start >= known.end })
                }
            };
            if !is_right {
                let wanted = subscription.start;
                return violation(format!("asked for {wanted:?}, knowing of {known:?}, and got {start}"));
            }
            let cursor = Cursor { next: *start, first, appended_ms: 0 };
            subscription.cursors.insert(*partition, cursor);
        }
        Ok(())
    }

    /// A subscription was refused because its start is out of range.
    pub(crate) fn check_out_of_range(&self, id: u64, model: &Model) -> Result<(), Violation> {
        let Some(subscription) = self.subscriptions.get(&id) else { return Ok(()) };
        let Start::Offset(offset) = subscription.start else {
            return violation("an offset that nobody asked for is out of range");
        };
        let is_same_topic = model.topics.version(&subscription.topic) == subscription.version;
        let mut known = subscription.known.iter();
        let is_known = !subscription.known.is_empty() && known.all(|known| offset <= known.end);
        let trims = subscription.known.iter().any(|known| model.topics.settings_of(known.partition).trims());
        if is_same_topic && is_known && !trims {
            return violation(format!("offset {offset} is in {}, and is said not to be", subscription.topic));
        }
        Ok(())
    }

    /// Batches were pushed.
    pub(crate) fn on_deliver(&mut self, frame: &Received, model: &mut Model) -> Result<(), Violation> {
        let (id, partition) = (frame.subject, Handle(frame.correlation));
        let Some(subscription) = self.subscriptions.get_mut(&id) else {
            return violation(format!("a delivery for subscription {id}, which there is not"));
        };
        let (records_before, bytes_before) = (subscription.records, subscription.bytes);
        if records_before <= 0 || bytes_before <= 0 {
            return violation(format!(
                "a delivery with a credit of {records_before} records, {bytes_before} bytes"
            ));
        }
        let Some(cursor) = subscription.cursors.get_mut(&partition) else {
            return violation(format!("a delivery of {partition}, which subscription {id} does not have"));
        };
        let (mut batches, mut records) = (0, 0);
        each_batch(partition, &frame.payload, |batch| {
            batches += 1;
            records += batch.record_count() as i64;
            cursor.move_over(partition, batch.header(), model)?;
            model.on_delivered(partition, batch)
        })?;
        let bytes = frame.payload.len() as i64;
        if batches == 0 || batches > 1 && (records > records_before || bytes > bytes_before) {
            return violation(format!(
                "{batches} batches, {records} records, {bytes} bytes on a credit of {records_before} and {bytes_before}"
            ));
        }
        subscription.records -= records;
        subscription.bytes -= bytes;
        Ok(())
    }
}

impl Cursor {
    fn move_over(&mut self, partition: Handle, header: &BatchHeader, model: &Model) -> Result<(), Violation> {
        let (base, next, at_ms) = (header.base_offset().0, header.next_offset().0, header.appended_ms.get());
        let follows = match self.first {
            First::Seen => base == self.next,
            First::AtStart => base <= self.next && self.next < next,
            First::Since { time_ms, is_end } => {
                let skipped = model.first_since(partition, self.next, time_ms).filter(|known| *known < base);
                let trims = model.topics.settings_of(partition).trims();
                let is_new_enough = at_ms >= time_ms || is_end && base == self.next;
                self.next < next && is_new_enough && (skipped.is_none() || trims)
            }
        };
        if !follows {
            return violation(format!(
                "{partition}: a batch of {base} to {next}, appended at {at_ms}, where {self:?} is to go on"
            ));
        }
        if at_ms < self.appended_ms {
            return violation(format!("{partition}: the time of the append goes back"));
        }
        *self = Self { next, first: First::Seen, appended_ms: at_ms };
        Ok(())
    }
}
