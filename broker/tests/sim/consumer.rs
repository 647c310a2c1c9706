//! A consumer on one connection: subscriptions, what each was promised, and what it may still be sent.
//!
//! Deliveries come in the order of offsets without a gap, from the batch that holds the start on, only durable ones,
//! and only while both kinds of credit are positive.

use std::collections::BTreeMap;

use protocol::ids::Handle;

use crate::frames::{Received, Start, each_batch};
use crate::model::Model;
use crate::report::{Violation, violation};
use crate::topics::Topics;

/// Where a subscription stands in one partition.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    next: u64,
    /// Nothing was delivered yet: the first batch may begin before the start.
    is_fresh: bool,
    appended_ms: u64,
}

/// One subscription.
#[derive(Debug)]
struct Subscription {
    topic: String,
    start: Start,
    /// The topic's version, and the ends of its partitions that a client knew of, when it was asked for.
    version: u64,
    floors: Vec<(Handle, u64)>,
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
            floors: partitions.map(|handle| (*handle, model.known_end(*handle))).collect(),
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

    /// The topic of a subscription was deleted, says the broker.
    pub(crate) fn on_topic_gone(&mut self, id: u64, topics: &mut Topics) -> Result<(), Violation> {
        let Some(subscription) = self.subscriptions.remove(&id) else {
            return violation(format!("subscription {id} was ended, and there is none"));
        };
        subscription.cursors.keys().try_for_each(|partition| topics.on_told_gone(*partition))
    }

    /// A subscription begins: its partitions and where delivery starts.
    pub(crate) fn on_subscribed(&mut self, id: u64, partitions: &[(Handle, u64)]) -> Result<(), Violation> {
        let Some(subscription) = self.subscriptions.get_mut(&id) else {
            return violation(format!("subscription {id} was answered, and nobody asked for it"));
        };
        subscription.is_answered = true;
        for (partition, start) in partitions {
            let floor = subscription.floors.iter().find(|(handle, _)| handle == partition);
            let floor = floor.map_or(0, |(_, end)| *end);
            let is_right = match subscription.start {
                Start::Earliest => *start == 0,
                Start::Latest => *start >= floor,
                Start::Offset(offset) => *start == offset,
            };
            if !is_right {
                let wanted = subscription.start;
                return violation(format!("{partition}: asked for {wanted:?} (end {floor}), got {start}"));
            }
            let cursor = Cursor { next: *start, is_fresh: true, appended_ms: 0 };
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
        let is_known =
            !subscription.floors.is_empty() && subscription.floors.iter().all(|(_, end)| offset <= *end);
        if is_same_topic && is_known {
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
            let header = batch.header();
            cursor.move_over(partition, header.base_offset().0, header.next_offset().0)?;
            if header.appended_ms.get() < cursor.appended_ms {
                return violation(format!("{partition}: the time of the append goes back"));
            }
            cursor.appended_ms = header.appended_ms.get();
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
    fn move_over(&mut self, partition: Handle, base: u64, next: u64) -> Result<(), Violation> {
        let follows = if self.is_fresh { base <= self.next && self.next < next } else { base == self.next };
        if !follows {
            return violation(format!(
                "{partition}: a batch of {base} to {next} where {} is next",
                self.next
            ));
        }
        *self = Self { next, is_fresh: false, ..*self };
        Ok(())
    }
}
