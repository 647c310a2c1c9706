//! A partition in a snapshot: everything but its records, which lie in its segments, and the page that is not full.
//!
//! ```text
//!  0 applied LSN  8 start offset  16 end offset  24 last append time  32 end position
//! 40 segment count  44 index entry count  48 partial length  52 flags  56 zeros
//! 64 segments, 64 bytes each | entries of the open segment's index, 16 bytes each | partial page, padded to 8
//! segment:  0 number  8 base offset  16 end offset  24 base  32 end  40 opened  48 last append time  56 allocated bytes;
//! upper bit of these: compacted
//! ```
//!
//! Flags: bit 0, the last segment is open. All others are sealed once the snapshot counts.

use std::collections::VecDeque;

use protocol::ids::Offset;
use reactor::memory::Pool;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Partition;
use crate::journal::Lsn;
use crate::limits::{INDEX_ENTRIES_MAX, PAGE_BYTES, SEGMENTS_MAX};
use crate::log::{IndexEntry, Log, Position, Segment, SegmentNumber, SegmentState, SparseIndex};

const FLAG_OPEN: u32 = 1;

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RecordHeader {
    applied_lsn: U64,
    start_offset: U64,
    end_offset: U64,
    appended_ms: U64,
    end: U64,
    segment_count: U32,
    index_count: U32,
    partial_length: U32,
    flags: U32,
    zeros: U64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SegmentRecord {
    number: U64,
    base_offset: U64,
    end_offset: U64,
    base: U64,
    end: U64,
    opened_ms: U64,
    last_ms: U64,
    /// Upper bit: the segment was compacted.
    allocated_bytes: U64,
}

/// Of `SegmentRecord::allocated_bytes`.
const COMPACTED: u64 = 1 << 63;

const _: () = assert!(size_of::<RecordHeader>() == 64);
const _: () = assert!(size_of::<SegmentRecord>() == 64);

/// Most bytes that a partition without its sealed segments needs in a snapshot.
pub const RECORD_BYTES_MAX: usize = 128 + 64 + 16 * INDEX_ENTRIES_MAX + PAGE_BYTES;
/// Bytes that each further segment needs.
pub const SEGMENT_RECORD_BYTES: usize = size_of::<SegmentRecord>();

impl Partition {
    /// Length of its record, a multiple of 8.
    #[must_use]
    pub fn record_bytes(&self) -> usize {
        let index = self.log.open_segment().map_or(0, |open| open.index.entries().len());
        let partial = self.log.tail.partial().len().next_multiple_of(8);
        64 + 64 * self.log.segments().len() + 16 * index + partial
    }

    /// Writes its record; `body` has `record_bytes()`. `applied` is the LSN of the last entry that it includes.
    pub fn write_record(&self, applied: Lsn, body: &mut [u8]) {
        let open = self.log.open_segment();
        let index = open.map_or(&[][..], |open| open.index.entries());
        let partial = self.log.tail.partial();
        let header = RecordHeader {
            applied_lsn: U64::new(applied.0),
            start_offset: U64::new(self.applied_start.0),
            end_offset: U64::new(self.appended_end.0),
            appended_ms: U64::new(self.appended_ms),
            end: U64::new(self.log.tail.end().0),
            segment_count: U32::new(self.log.segments().len() as u32),
            index_count: U32::new(index.len() as u32),
            partial_length: U32::new(partial.len() as u32),
            flags: U32::new(if open.is_some() { FLAG_OPEN } else { 0 }),
            zeros: U64::new(0),
        };
        body.fill(0);
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            body[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(header.as_bytes());
        for segment in self.log.segments() {
            put(record_of(segment).as_bytes());
        }
        put(index.as_bytes());
        put(partial);
    }

    /// Takes over a record. `None` when it is not what this version writes.
    ///
    /// # Errors
    /// `Some(false)` when the pool has no memory for the last page.
    #[must_use]
    pub fn restore(&mut self, pool: &Pool, body: &[u8]) -> Option<bool> {
        let (header, rest) = RecordHeader::read_from_prefix(body).ok()?;
        let (segment_count, index_count) =
            (header.segment_count.get() as usize, header.index_count.get() as usize);
        if segment_count > SEGMENTS_MAX || index_count > INDEX_ENTRIES_MAX {
            return None;
        }
        let (records, rest) = <[SegmentRecord]>::ref_from_prefix_with_elems(rest, segment_count).ok()?;
        let (index, rest) = <[IndexEntry]>::ref_from_prefix_with_elems(rest, index_count).ok()?;
        let partial = rest.get(..header.partial_length.get() as usize)?;
        let mut segments: VecDeque<Segment> = records.iter().map(segment_of).collect();
        if header.flags.get() & FLAG_OPEN != 0 {
            let open = segments.back_mut()?;
            open.state = SegmentState::Open;
            open.index = SparseIndex::from_entries(index.to_vec());
        }
        let (end, end_offset) = (Position(header.end.get()), Offset(header.end_offset.get()));
        if end.in_page() != partial.len() {
            return None;
        }
        self.replayed = Lsn(header.applied_lsn.get());
        self.is_missing = false;
        self.applied_start = Offset(header.start_offset.get());
        self.start = self.applied_start;
        self.appended_end = end_offset;
        self.durable_end = end_offset;
        self.appended_ms = header.appended_ms.get();
        let Some(log) = Log::resume(pool, segments, end, partial, end_offset) else { return Some(false) };
        self.log = log;
        Some(true)
    }
}

fn record_of(segment: &Segment) -> SegmentRecord {
    SegmentRecord {
        number: U64::new(segment.number.0),
        base_offset: U64::new(segment.base_offset.0),
        end_offset: U64::new(segment.end_offset.0),
        base: U64::new(segment.base.0),
        end: U64::new(segment.end.0),
        opened_ms: U64::new(segment.opened_ms),
        last_ms: U64::new(segment.last_ms),
        allocated_bytes: U64::new(segment.allocated_bytes | if segment.is_compacted { COMPACTED } else { 0 }),
    }
}

fn segment_of(record: &SegmentRecord) -> Segment {
    Segment {
        number: SegmentNumber(record.number.get()),
        state: SegmentState::Sealed,
        base_offset: Offset(record.base_offset.get()),
        end_offset: Offset(record.end_offset.get()),
        base: Position(record.base.get()),
        end: Position(record.end.get()),
        opened_ms: record.opened_ms.get(),
        last_ms: record.last_ms.get(),
        allocated_bytes: record.allocated_bytes.get() & !COMPACTED,
        is_compacted: record.allocated_bytes.get() & COMPACTED != 0,
        index: SparseIndex::default(),
    }
}

#[cfg(test)]
mod tests {
    use protocol::batch::{BatchBuilder, BatchHeader, BrokerFields, Record};
    use protocol::ids::{Handle, TopicKey};

    use super::*;
    use crate::journal::entry::TopicSettings;
    use crate::partition::PartitionTable;

    const TOPIC: TopicKey = TopicKey { slot: 3, generation: 9 };

    fn table() -> PartitionTable {
        let mut table = PartitionTable::default();
        let settings = TopicSettings { segment_bytes: 1 << 20, ..TopicSettings::default() };
        table.apply_create(TOPIC, 1, settings);
        table
    }

    fn append(partition: &mut Partition, pool: &Pool, value: &[u8]) {
        let mut builder = BatchBuilder::new();
        builder.push(&Record { value, ..Record::default() }).unwrap();
        let mut bytes = Vec::new();
        builder.finish_into(&mut bytes);
        let fields = BrokerFields { base_offset: partition.appended_end(), appended_ms: 1_900, log_epoch: 1 };
        BatchHeader::place(&mut bytes, partition.handle, fields);
        assert!(partition.reserve(pool, bytes.len(), true).is_some());
        partition.apply_append(&bytes);
    }

    #[test]
    fn a_record_gives_back_the_partition_without_its_records() {
        let pool = Pool::new(16 << 20).unwrap();
        let (mut before, mut after) = (table(), table());
        let handle = Handle::new(TOPIC, 0);
        let partition = before.get_mut(handle).unwrap();
        partition.log.apply_open(Segment::open(SegmentNumber(7), Offset(0), Position(0), 1_000));
        for _ in 0..100 {
            append(partition, &pool, &[7; 5_000]);
        }
        partition.log.apply_open(Segment::open(
            SegmentNumber(8),
            Offset(100),
            partition.log.tail.end().page_up(),
            2_000,
        ));
        append(partition, &pool, b"the page that is not full");

        let mut body = vec![0xEE; partition.record_bytes()];
        partition.write_record(Lsn(5 << 16), &mut body);
        let restored = after.get_mut(handle).unwrap();
        assert_eq!(restored.restore(&pool, &body), Some(true));
        assert_eq!((restored.replayed, restored.appended_end()), (Lsn(5 << 16), Offset(101)));
        assert_eq!(restored.durable_end(), Offset(101));
        assert_eq!(restored.log.tail.end(), partition.log.tail.end());
        assert_eq!(restored.log.tail.partial(), partition.log.tail.partial());
        let facts = |partition: &Partition| {
            let of = |segment: &Segment| (segment.number, segment.base, segment.end, segment.base_offset);
            partition.log.segments().iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(facts(restored), facts(partition));
        assert_eq!(restored.log.open_segment().unwrap().index, partition.log.open_segment().unwrap().index);
        for length in 0..body.len() {
            let fresh = &mut table();
            let cut = fresh.get_mut(handle).unwrap().restore(&pool, &body[..length]);
            assert!(
                cut.is_none() || length + 8 > body.len(),
                "{length} bytes of a record pass for a whole one"
            );
        }
    }
}
