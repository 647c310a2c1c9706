//! Partitions: offsets are assigned, order is fixed, and what is durable becomes visible.
//!
//! Invariant: `start <= applied_start <= appended_end`, `durable_end <= appended_end`; what is below `start` was dropped by
//! retention. `decide_append` changes nothing; `apply_append` is the same
//! for live traffic and for replay.

pub mod record;

use protocol::batch::{BatchHeader, BrokerFields};
use protocol::ids::{Handle, Offset, TopicKey};
use reactor::memory::Pool;

use crate::journal::entry::TopicSettings;
use crate::journal::{Epoch, Lsn};
use crate::limits::TOPICS_MAX;
use crate::log::{Found, Log, Position, Target};

/// One partition of one topic.
#[derive(Debug)]
pub struct Partition {
    /// Its name on the wire and in the journal.
    pub handle: Handle,
    /// Its batches.
    pub log: Log,
    /// Of its topic.
    pub settings: TopicSettings,
    /// Entries up to here are in it already: replay skips them.
    pub replayed: Lsn,
    /// A snapshot names its topic and not itself: the topic was deleted while the snapshot was made, and replay will
    /// say so.
    pub is_missing: bool,
    /// It stands in the queue of write-behind.
    pub is_queued: bool,
    /// It stands in the order in which tails give memory back.
    pub is_in_order: bool,
    applied_start: Offset,
    /// What may be told of it: less while the last trim is not durable.
    start: Offset,
    appended_end: Offset,
    durable_end: Offset,
    appended_ms: u64,
    /// The cursors that read it.
    pub subscribers: Vec<Subscriber>,
}

/// A subscription's cursor on a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscriber {
    /// Index into the shard's table of subscriptions.
    pub subscription: u32,
    /// Index of the cursor within the subscription.
    pub cursor: u32,
}

/// Where the batches of one frame go, decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendDecision {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Time of the append.
    pub appended_ms: u64,
    /// Epoch of the journal.
    pub log_epoch: Epoch,
}

impl Partition {
    fn new(handle: Handle, settings: TopicSettings) -> Self {
        Self {
            handle,
            log: Log::default(),
            settings,
            replayed: Lsn(0),
            is_missing: false,
            is_queued: false,
            is_in_order: false,
            applied_start: Offset(0),
            start: Offset(0),
            appended_end: Offset(0),
            durable_end: Offset(0),
            appended_ms: 0,
            subscribers: Vec::new(),
        }
    }

    /// Offset of the first record that is kept, as far as that is durable: what may be told.
    #[must_use]
    pub fn start(&self) -> Offset {
        self.start
    }

    /// Whether a record was dropped by a trim that is not durable yet: it can neither be read nor be said to be gone.
    #[must_use]
    pub fn is_being_trimmed(&self, offset: Offset) -> bool {
        self.start <= offset && offset < self.applied_start
    }

    /// Everything that was replayed is durable.
    pub fn on_replayed(&mut self) {
        self.start = self.applied_start;
    }

    /// The trim that made this the start has become durable.
    pub fn on_trim_durable(&mut self, start: Offset) {
        assert!(start <= self.applied_start);
        self.start = self.start.max(start);
    }

    /// Offset behind the last durable record: what consumers see.
    #[must_use]
    pub fn durable_end(&self) -> Offset {
        self.durable_end
    }

    /// Offset of the next record.
    #[must_use]
    pub fn appended_end(&self) -> Offset {
        self.appended_end
    }

    /// Decides where checked batches go. The append time never goes back.
    #[must_use]
    pub fn decide_append(&self, wall_ms: u64, log_epoch: Epoch) -> AppendDecision {
        let appended_ms = wall_ms.max(self.appended_ms);
        AppendDecision { base_offset: self.appended_end, appended_ms, log_epoch }
    }

    /// Makes room for batches of this length in memory. `None` when there is none, else whether a chunk was added.
    #[must_use]
    pub fn reserve(&mut self, pool: &Pool, bytes: usize, may_grow: bool) -> Option<bool> {
        self.log.tail.reserve(pool, bytes, self.appended_end, may_grow)
    }

    /// When the next append will be said to have happened: time never goes back.
    #[must_use]
    pub fn time_of_append(&self, wall_ms: u64) -> u64 {
        wall_ms.max(self.appended_ms)
    }

    /// An offset at or before the first record that was appended at or after a time, of what is durable.
    #[must_use]
    pub fn lower_bound(&self, target: Target) -> Offset {
        let offset = match self.log.find(target) {
            Found::Tail(position) => self.log.tail.offset_at(position).unwrap_or(self.appended_end),
            Found::Cold { offset, .. } => offset,
        };
        offset.clamp(self.start, self.durable_end)
    }

    /// Drops the segments that end at or before `start`, and says from where on there are records.
    pub fn apply_trim(&mut self, start: Offset) -> Vec<crate::log::SegmentNumber> {
        assert!(start <= self.appended_end);
        self.applied_start = self.applied_start.max(start);
        self.log.apply_trim(start)
    }

    /// Appends placed batches; `reserve` must have made room.
    pub fn apply_append(&mut self, batches: &[u8]) {
        let mut rest = batches;
        while !rest.is_empty() {
            let header = BatchHeader::peek(rest).expect("batches were checked");
            assert_eq!(header.base_offset(), self.appended_end);
            self.appended_end = header.next_offset();
            self.appended_ms = header.appended_ms.get();
            rest = &rest[header.batch_bytes()..];
        }
        self.log.apply_append(batches, self.settings.segment_bytes);
    }

    /// Everything below `end`, which lies at `position`, has become durable.
    pub fn on_durable(&mut self, end: Offset, position: Position) {
        assert!(end <= self.appended_end);
        self.durable_end = self.durable_end.max(end);
        self.log.on_durable(position);
    }
}

impl AppendDecision {
    /// The broker's fields for each batch of the frame, in order.
    pub fn places<'a>(&self, batches: &'a [u8]) -> impl Iterator<Item = BrokerFields> + use<'a> {
        let (mut rest, mut base_offset) = (batches, self.base_offset);
        let (appended_ms, log_epoch) = (self.appended_ms, self.log_epoch.0);
        std::iter::from_fn(move || {
            let header = BatchHeader::peek(rest).ok()?;
            let fields = BrokerFields { base_offset, appended_ms, log_epoch };
            base_offset = base_offset.plus(u64::from(header.last_offset_delta.get()) + 1);
            rest = &rest[header.batch_bytes()..];
            Some(fields)
        })
    }
}

/// All partitions of the shard, by topic slot.
#[derive(Debug, Default)]
pub struct PartitionTable {
    topics: Vec<Option<TopicPartitions>>,
    count: usize,
}

#[derive(Debug)]
struct TopicPartitions {
    generation: u32,
    partitions: Vec<Partition>,
}

impl PartitionTable {
    /// Number of partitions.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds the empty partitions of a topic whose slot is free.
    pub fn apply_create(&mut self, topic: TopicKey, partition_count: u32, settings: TopicSettings) {
        let slot = usize::from(topic.slot);
        assert!(slot < TOPICS_MAX);
        if self.topics.len() <= slot {
            self.topics.resize_with(slot + 1, || None);
        }
        assert!(self.topics[slot].is_none());
        let partitions: Vec<_> = (0..partition_count)
            .map(|number| Partition::new(Handle::new(topic, number as u16), settings))
            .collect();
        self.count += partitions.len();
        self.topics[slot] = Some(TopicPartitions { generation: topic.generation, partitions });
    }

    /// Drops a topic's partitions and gives them.
    pub fn apply_delete(&mut self, topic: TopicKey) -> Vec<Partition> {
        let taken = self.topics.get_mut(usize::from(topic.slot)).and_then(Option::take);
        let Some(dropped) = taken else { return Vec::new() };
        assert_eq!(dropped.generation, topic.generation);
        self.count -= dropped.partitions.len();
        dropped.partitions
    }

    /// Slots of topics that were ever used.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.topics.len()
    }

    /// The partitions of the topic in a slot, if there is one.
    #[must_use]
    pub fn in_slot(&self, slot: usize) -> &[Partition] {
        self.topics.get(slot).and_then(Option::as_ref).map_or(&[], |topic| &topic.partitions)
    }

    /// The partition, if its topic lives.
    #[must_use]
    pub fn get(&self, handle: Handle) -> Option<&Partition> {
        let topic = self.topics.get(usize::from(handle.topic().slot))?.as_ref()?;
        if topic.generation != handle.topic().generation {
            return None;
        }
        topic.partitions.get(usize::from(handle.partition()))
    }

    /// The partition, if its topic lives.
    #[must_use]
    pub fn get_mut(&mut self, handle: Handle) -> Option<&mut Partition> {
        let topic = self.topics.get_mut(usize::from(handle.topic().slot))?.as_mut()?;
        if topic.generation != handle.topic().generation {
            return None;
        }
        topic.partitions.get_mut(usize::from(handle.partition()))
    }

    /// All partitions, in the order of their handles' slots.
    pub fn iter(&self) -> impl Iterator<Item = &Partition> {
        self.topics.iter().flatten().flat_map(|topic| topic.partitions.iter())
    }

    /// All partitions, in the order of their handles' slots.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Partition> {
        self.topics.iter_mut().flatten().flat_map(|topic| topic.partitions.iter_mut())
    }
}
