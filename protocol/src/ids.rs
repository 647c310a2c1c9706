//! Newtypes for the numbers that can be confused, as they travel on the wire.
//!
//! An *offset* numbers a record within its partition; a *handle* names one partition of one topic, with a
//! generation, so that a handle of a deleted topic is told from one of its successor.

use std::fmt;

/// Number of a record within its partition, from 0 and dense at the time of the append.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset `count` records later. Saturates: an offset never wraps.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Chosen by the requester, repeated in the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CorrelationId(pub u64);

/// Chosen by the client, unique on its connection while it lives, never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(pub u64);

/// Names a partition: bits 0..16 its number, 16..32 its topic's slot, 32..64 the slot's generation.
///
/// A slot is used again after its topic was deleted; a generation is not. The raw number is unique for ever
/// within a data directory, so it also seeds the checksum that ties a stored batch to its partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

impl Handle {
    /// Puts a handle together from its parts.
    #[must_use]
    pub fn new(topic: TopicKey, partition: u16) -> Self {
        Self(u64::from(partition) | u64::from(topic.slot) << 16 | u64::from(topic.generation) << 32)
    }

    /// Number of the partition within its topic.
    #[must_use]
    pub fn partition(self) -> u16 {
        (self.0 & 0xFFFF) as u16
    }

    /// The topic that the partition belongs to.
    #[must_use]
    pub fn topic(self) -> TopicKey {
        TopicKey { slot: (self.0 >> 16 & 0xFFFF) as u16, generation: (self.0 >> 32) as u32 }
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let topic = self.topic();
        write!(f, "{}.{}/{}", topic.slot, topic.generation, self.partition())
    }
}

/// A topic's place in the catalog and how often that place was given away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicKey {
    /// Index into the catalog.
    pub slot: u16,
    /// From 1; grows each time a topic is created, over the whole data directory.
    pub generation: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_gives_back_its_parts() {
        let topic = TopicKey { slot: 0xBEEF, generation: 0xDEAD_0001 };
        let handle = Handle::new(topic, 0x1234);
        assert_eq!(handle.0, 0xDEAD_0001_BEEF_1234);
        assert_eq!(handle.partition(), 0x1234);
        assert_eq!(handle.topic(), topic);
    }

    #[test]
    fn an_offset_does_not_wrap() {
        assert_eq!(Offset(u64::MAX - 1).plus(7), Offset(u64::MAX));
    }
}
