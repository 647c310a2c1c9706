//! The catalog: which topics there are.
//!
//! A topic's slot is used again after it was deleted; its generation is not, so an old handle never reaches a new
//! topic. `decide_*` checks and changes nothing; `apply_*` cannot fail and is the same for replay.

use std::collections::BTreeMap;

use protocol::ids::TopicKey;
use protocol::limits::{PARTITIONS_PER_TOPIC_MAX, TOPIC_NAME_BYTES_MAX};
use protocol::status::Status;

use crate::journal::entry::{TopicCreated, TopicSettings};
use crate::limits::{PARTITIONS_MAX, TOPICS_MAX};

/// A topic and its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Slot and generation.
    pub key: TopicKey,
    /// Its name.
    pub name: Box<str>,
    /// Number of partitions.
    pub partition_count: u32,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// What its creator chose.
    pub settings: TopicSettings,
}

impl Topic {
    /// Its creation, as an entry says it.
    #[must_use]
    pub fn as_created(&self) -> TopicCreated<'_> {
        TopicCreated {
            key: self.key,
            partition_count: self.partition_count,
            created_ms: self.created_ms,
            name: &self.name,
            settings: self.settings,
        }
    }
}

/// Why a change was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatalogError {
    /// A topic of this name exists.
    TopicExists,
    /// No topic of this name.
    UnknownTopic,
    /// Empty, too long, or with other characters than `A-Z a-z 0-9 . _ -`.
    InvalidTopicName,
    /// 0 partitions, or more than one topic may have.
    PartitionCountOutOfRange,
    /// More topics or partitions than the limits.
    Full,
}

impl CatalogError {
    /// The code to answer with.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::TopicExists => Status::TopicExists,
            Self::UnknownTopic => Status::UnknownTopic,
            Self::InvalidTopicName => Status::InvalidTopicName,
            Self::PartitionCountOutOfRange => Status::InvalidEnvelope,
            Self::Full => Status::TopicLimit,
        }
    }
}

/// All topics.
#[derive(Debug, Default)]
pub struct Catalog {
    slots: Vec<Option<Topic>>,
    by_name: BTreeMap<Box<str>, u16>,
    partition_count: usize,
    last_generation: u32,
}

impl Catalog {
    /// Decides on a new topic: its slot and generation.
    ///
    /// # Errors
    /// See `CatalogError`.
    pub fn decide_create(&self, name: &str, partition_count: u32) -> Result<TopicKey, CatalogError> {
        if !is_topic_name(name) {
            return Err(CatalogError::InvalidTopicName);
        }
        if !(1..=PARTITIONS_PER_TOPIC_MAX).contains(&partition_count) {
            return Err(CatalogError::PartitionCountOutOfRange);
        }
        if self.by_name.contains_key(name) {
            return Err(CatalogError::TopicExists);
        }
        let slot = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        let is_full = slot == TOPICS_MAX || self.partition_count + partition_count as usize > PARTITIONS_MAX;
        if is_full || self.last_generation == u32::MAX {
            return Err(CatalogError::Full);
        }
        Ok(TopicKey { slot: slot as u16, generation: self.last_generation + 1 })
    }

    /// A snapshot says which generation was given last, before its topics follow.
    pub fn restore_generation(&mut self, last_generation: u32) {
        self.last_generation = self.last_generation.max(last_generation);
    }

    /// Generation of the topic that was created last.
    #[must_use]
    pub fn last_generation(&self) -> u32 {
        self.last_generation
    }

    /// A topic of a snapshot, whose generation is not above the last one.
    ///
    /// `false` when it contradicts another.
    #[must_use]
    pub fn restore_topic(&mut self, topic: &TopicCreated<'_>) -> bool {
        let slot = usize::from(topic.key.slot);
        let is_free = self.slots.get(slot).is_none_or(Option::is_none);
        let fits = slot < TOPICS_MAX && topic.key.generation <= self.last_generation;
        if !is_free || !fits || self.by_name.contains_key(topic.name) {
            return false;
        }
        self.insert(topic);
        true
    }

    /// Adds a topic that was decided on.
    pub fn apply_create(&mut self, created: &TopicCreated<'_>) {
        assert!(created.key.generation > self.last_generation);
        self.last_generation = created.key.generation;
        self.insert(created);
    }

    fn insert(&mut self, created: &TopicCreated<'_>) {
        let slot = usize::from(created.key.slot);
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, None);
        }
        assert!(self.slots[slot].is_none());
        self.partition_count += created.partition_count as usize;
        self.by_name.insert(created.name.into(), created.key.slot);
        self.slots[slot] = Some(Topic {
            key: created.key,
            name: created.name.into(),
            partition_count: created.partition_count,
            created_ms: created.created_ms,
            settings: created.settings,
        });
    }

    /// Removes a topic.
    pub fn apply_delete(&mut self, key: TopicKey) {
        let Some(topic) = self.slots.get_mut(usize::from(key.slot)).and_then(Option::take) else { return };
        assert_eq!(topic.key, key);
        self.partition_count -= topic.partition_count as usize;
        self.by_name.remove(&topic.name);
    }

    /// A topic by its name.
    ///
    /// # Errors
    /// `UnknownTopic`.
    pub fn find(&self, name: &str) -> Result<&Topic, CatalogError> {
        let slot = *self.by_name.get(name).ok_or(CatalogError::UnknownTopic)?;
        self.slots[usize::from(slot)].as_ref().ok_or(CatalogError::UnknownTopic)
    }

    /// Number of topics.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    /// A topic by its key.
    #[must_use]
    pub fn get(&self, key: TopicKey) -> Option<&Topic> {
        self.slots.get(usize::from(key.slot))?.as_ref().filter(|topic| topic.key == key)
    }

    /// All topics, in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = &Topic> {
        self.slots.iter().flatten()
    }

    /// Topics in the order of their names, those behind `after`.
    pub fn list<'a>(&'a self, after: &str) -> impl Iterator<Item = &'a Topic> + use<'a> {
        let behind = (std::ops::Bound::Excluded(Box::from(after)), std::ops::Bound::Unbounded);
        self.by_name
            .range::<Box<str>, _>(behind)
            .filter_map(|(_, slot)| self.slots[usize::from(*slot)].as_ref())
    }
}

fn is_topic_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=TOPIC_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(catalog: &mut Catalog, name: &str, partition_count: u32) -> TopicKey {
        let key = catalog.decide_create(name, partition_count).unwrap();
        catalog.apply_create(&TopicCreated {
            key,
            partition_count,
            created_ms: 1,
            name,
            settings: TopicSettings::default(),
        });
        key
    }

    #[test]
    fn a_slot_is_used_again_with_another_generation() {
        let mut catalog = Catalog::default();
        let first = create(&mut catalog, "a", 1);
        let second = create(&mut catalog, "b", 1);
        catalog.apply_delete(first);
        assert_eq!(catalog.find("a"), Err(CatalogError::UnknownTopic));
        let third = create(&mut catalog, "a", 2);
        assert_eq!(third.slot, first.slot);
        assert!(third.generation > second.generation);
    }

    #[test]
    fn bad_names_counts_and_doubles_are_refused() {
        let mut catalog = Catalog::default();
        create(&mut catalog, "orders", 1);
        for name in ["", "a b", "ä", "x/y", &"n".repeat(129)] {
            assert_eq!(catalog.decide_create(name, 1), Err(CatalogError::InvalidTopicName), "{name}");
        }
        assert_eq!(catalog.decide_create("orders", 1), Err(CatalogError::TopicExists));
        assert_eq!(catalog.decide_create("more", 0), Err(CatalogError::PartitionCountOutOfRange));
        assert_eq!(catalog.decide_create("more", 5000), Err(CatalogError::PartitionCountOutOfRange));
    }

    #[test]
    fn lists_are_sorted_and_go_on_behind_a_name() {
        let mut catalog = Catalog::default();
        for name in ["c", "a", "b"] {
            create(&mut catalog, name, 1);
        }
        let names = |after: &str| catalog.list(after).map(|topic| &*topic.name).collect::<Vec<_>>();
        assert_eq!(names(""), ["a", "b", "c"]);
        assert_eq!(names("a"), ["b", "c"]);
    }

    #[test]
    fn the_number_of_partitions_is_bounded() {
        let mut catalog = Catalog::default();
        for n in 0..PARTITIONS_MAX / 4096 {
            create(&mut catalog, &format!("t{n}"), 4096);
        }
        assert_eq!(catalog.decide_create("one-more", 1), Err(CatalogError::Full));
    }
}
