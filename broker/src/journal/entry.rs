//! Journal entries: every change of a shard's durable state, as data.
//!
//! ```text
//!  0 kind  2 zeros  4 body length  8 subject | body (a multiple of 8 bytes)
//! ```
//!
//! Live traffic and replay hand the same entries to the same `apply`.

use protocol::batch::padded;
use protocol::ids::TopicKey;
use protocol::limits::{PARTITIONS_PER_TOPIC_MAX, TOPIC_NAME_BYTES_MAX};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};

/// Length of an entry's header, in bytes.
pub const ENTRY_HEADER_BYTES: usize = 16;

/// What an entry changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum EntryKind {
    /// Batches are appended to the partition whose handle is the subject. Body: the placed batches.
    Append = 1,
    /// A topic is created; subject: its key. Body: `TopicCreated` and its name.
    CreateTopic = 2,
    /// A topic is deleted; subject: its key. Body: the time in milliseconds since 1970.
    DeleteTopic = 3,
    /// A segment is opened for the partition whose handle is the subject, and the one before closed. Body:
    /// `SegmentOpened`.
    OpenSegment = 4,
    /// The open segment of the partition is closed. Body: `SegmentClosed`.
    CloseSegment = 5,
    /// The partition's records before an offset are dropped. Body: `SegmentsTrimmed`.
    TrimSegments = 6,
    /// Sealed segments of the partition are exchanged for one with what is left of their records. Body:
    /// `SegmentsReplaced`.
    ReplaceSegments = 7,
    /// In snapshots only: what is to be known of the catalog as a whole. Body: `CatalogCaptured`.
    CaptureCatalog = 16,
    /// In snapshots only: the partition whose handle is the subject. Body: see `partition::record`.
    CapturePartition = 17,
}

impl EntryKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Append,
        Self::CreateTopic,
        Self::DeleteTopic,
        Self::OpenSegment,
        Self::CloseSegment,
        Self::TrimSegments,
        Self::ReplaceSegments,
        Self::CaptureCatalog,
        Self::CapturePartition,
    ];
}

/// The header as it lies on disk.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct EntryHeader {
    /// Number of an `EntryKind`.
    pub kind_code: U16,
    /// Zeros.
    pub reserved: U16,
    /// Length of the body in bytes, a multiple of 8.
    pub body_length: U32,
    /// What the kind says.
    pub subject: U64,
}

const _: () = assert!(size_of::<EntryHeader>() == ENTRY_HEADER_BYTES);

impl EntryHeader {
    /// A header for a body of this length.
    #[must_use]
    pub fn new(kind: EntryKind, subject: u64, body_length: usize) -> Self {
        assert!(body_length.is_multiple_of(8));
        let body_length =
            u32::try_from(body_length).expect("an entry fits into a frame and its frame into 16 MiB");
        Self {
            kind_code: U16::new(kind as u16),
            reserved: U16::new(0),
            body_length: U32::new(body_length),
            subject: U64::new(subject),
        }
    }

    /// The kind, or `None` for one that this version does not know.
    #[must_use]
    pub fn kind(&self) -> Option<EntryKind> {
        EntryKind::ALL.into_iter().find(|kind| *kind as u16 == self.kind_code.get())
    }
}

/// Body of `CreateTopic`, before the name.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TopicCreatedHeader {
    created_ms: U64,
    partition_count: U32,
    name_length: U16,
    ack_class: u8,
    is_compacted: u8,
    retention_ms: U64,
    retention_bytes: U64,
    segment_bytes: U64,
    segment_ms: U64,
}

/// What a topic's creator chose. 0 stands for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicSettings {
    /// Records are dropped when they are older, in milliseconds.
    pub retention_ms: u64,
    /// A partition's oldest records are dropped when it holds more bytes of batches.
    pub retention_bytes: u64,
    /// Bytes of batches at which a segment is closed; at least `SEGMENT_BYTES_MIN`.
    pub segment_bytes: u64,
    /// Age at which a segment is closed, in milliseconds.
    pub segment_ms: u64,
    /// Of the records with one key only the last is kept.
    pub is_compacted: bool,
}

/// A topic's creation, decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicCreated<'a> {
    /// Slot and generation.
    pub key: TopicKey,
    /// Number of partitions, fixed for ever.
    pub partition_count: u32,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// 1 to `TOPIC_NAME_BYTES_MAX` bytes.
    pub name: &'a str,
    /// What its creator chose.
    pub settings: TopicSettings,
}

/// Packs a topic's key into an entry's subject.
#[must_use]
pub fn topic_subject(key: TopicKey) -> u64 {
    u64::from(key.slot) | u64::from(key.generation) << 32
}

/// The topic's key in an entry's subject.
#[must_use]
pub fn topic_of_subject(subject: u64) -> TopicKey {
    TopicKey { slot: (subject & 0xFFFF) as u16, generation: (subject >> 32) as u32 }
}

impl<'a> TopicCreated<'a> {
    /// Length of the entry's body in bytes.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        padded(size_of::<TopicCreatedHeader>() + self.name.len())
    }

    /// Writes the body; `body` has `body_bytes()`.
    pub fn write(&self, body: &mut [u8]) {
        assert!(self.name.len() <= TOPIC_NAME_BYTES_MAX);
        let header = TopicCreatedHeader {
            created_ms: U64::new(self.created_ms),
            partition_count: U32::new(self.partition_count),
            name_length: U16::new(self.name.len() as u16),
            ack_class: 0,
            is_compacted: u8::from(self.settings.is_compacted),
            retention_ms: U64::new(self.settings.retention_ms),
            retention_bytes: U64::new(self.settings.retention_bytes),
            segment_bytes: U64::new(self.settings.segment_bytes),
            segment_ms: U64::new(self.settings.segment_ms),
        };
        body.fill(0);
        let (front, rest) = body.split_at_mut(size_of::<TopicCreatedHeader>());
        front.copy_from_slice(header.as_bytes());
        rest[..self.name.len()].copy_from_slice(self.name.as_bytes());
    }

    /// Reads the body of a checked block's entry; `None` when it is not what this version writes.
    #[must_use]
    pub fn read(subject: u64, body: &'a [u8]) -> Option<Self> {
        let (header, rest) = TopicCreatedHeader::read_from_prefix(body).ok()?;
        let name = std::str::from_utf8(rest.get(..usize::from(header.name_length.get()))?).ok()?;
        let partition_count = header.partition_count.get();
        let settings = TopicSettings {
            retention_ms: header.retention_ms.get(),
            retention_bytes: header.retention_bytes.get(),
            segment_bytes: header.segment_bytes.get(),
            segment_ms: header.segment_ms.get(),
            is_compacted: header.is_compacted == 1,
        };
        let has_known_settings = header.is_compacted <= 1
            && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&settings.segment_bytes);
        let is_known = header.ack_class == 0
            && has_known_settings
            && (1..=PARTITIONS_PER_TOPIC_MAX).contains(&partition_count);
        is_known.then_some(Self {
            key: topic_of_subject(subject),
            partition_count,
            created_ms: header.created_ms.get(),
            name,
            settings,
        })
    }
}

/// Body of `OpenSegment`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentOpened {
    /// Number of the segment.
    pub number: U64,
    /// Offset that its first record will have.
    pub base_offset: U64,
    /// Position of its first byte, a multiple of 4 KiB.
    pub base: U64,
    /// Milliseconds since 1970.
    pub time_ms: U64,
}

/// Body of `CloseSegment`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentClosed {
    /// Offset behind its last record.
    pub end_offset: U64,
    /// Milliseconds since 1970.
    pub time_ms: U64,
}

/// Body of `TrimSegments`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentsTrimmed {
    /// Offset of the first record that is kept.
    pub start_offset: U64,
    /// Milliseconds since 1970.
    pub time_ms: U64,
}

/// Body of `ReplaceSegments`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SegmentsReplaced {
    /// Number of the first segment that goes.
    pub first: U64,
    /// How many go.
    pub count: U32,
    /// 1 if a segment takes their place, 0 if nothing is left of them.
    pub has_successor: U32,
    /// Number of that segment.
    pub number: U64,
    /// Offset range and places of it; its end offset is that of the last one that goes.
    pub base_offset: U64,
    /// See `base_offset`.
    pub end_offset: U64,
    /// See `base_offset`.
    pub base: U64,
    /// See `base_offset`.
    pub end: U64,
    /// Append time of its last batch.
    pub last_ms: U64,
    /// Milliseconds since 1970.
    pub time_ms: U64,
}

/// Body of `CaptureCatalog`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CatalogCaptured {
    /// Changes of the catalog up to here are in the snapshot.
    pub applied_lsn: U64,
    /// A segment that is made later has this number or a higher one.
    pub next_segment: U64,
    /// Generation of the topic that was created last.
    pub last_generation: U32,
    /// Topics that follow.
    pub topic_count: U32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_entry_gives_back_what_was_written() {
        let key = TopicKey { slot: 9, generation: 0xFFFF_FFFE };
        let settings = TopicSettings {
            retention_ms: 5,
            segment_bytes: 1 << 20,
            is_compacted: true,
            ..Default::default()
        };
        let created = TopicCreated {
            key,
            partition_count: 12,
            created_ms: 1_700_000_000_123,
            name: "orders.v1",
            settings,
        };
        let mut body = vec![0xEE; created.body_bytes()];
        created.write(&mut body);
        assert_eq!(TopicCreated::read(topic_subject(key), &body), Some(created));
        assert_eq!(TopicCreated::read(topic_subject(key), &body[..10]), None);
    }
}
