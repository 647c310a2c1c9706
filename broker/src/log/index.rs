//! The sparse index of a segment: where to begin to look for an offset or a time.
//!
//! One entry for so many bytes, in the order of the batches. It lies in memory while the segment is open, and in the
//! last pages of its file, the footer, once it is sealed. It only saves reading: without it a search begins at the
//! segment's start. All numbers are little endian.
//!
//! ```text
//! footer:   0 magic "FBSEGIX1"  8 segment number  16 partition's handle  24 base offset  32 end offset
//!          40 base position  48 end position  56 last append time  64 entry count  68 zeros  124 CRC
//!         128 entries, 16 bytes each | zeros up to 16 KiB
//! entry:    0 offset less base offset   4 position less base position   8 append time
//! ```
//!
//! The CRC is CRC-32C of bytes 0..124 and all bytes from 128 on.

use protocol::crc::Crc32c;
use protocol::ids::{Handle, Offset};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Position, Segment, SegmentNumber};
use crate::limits::{INDEX_ENTRIES_MAX, INDEX_INTERVAL_BYTES_MIN, SEGMENT_FOOTER_BYTES};

/// First bytes of a footer.
const FOOTER_MAGIC: [u8; 8] = *b"FBSEGIX1";
/// Length of the footer before its entries.
const FOOTER_HEADER_BYTES: usize = 128;

/// A batch that begins at or before everything behind it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IndexEntry {
    /// Offset of the batch's first record, less the segment's base offset.
    pub offset_delta: U32,
    /// Its place, less the segment's base position.
    pub position_delta: U32,
    /// When it was appended, milliseconds since 1970.
    pub appended_ms: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FooterHeader {
    magic: [u8; 8],
    number: U64,
    partition: U64,
    base_offset: U64,
    end_offset: U64,
    base: U64,
    end: U64,
    last_ms: U64,
    entry_count: U32,
    reserved: [u8; 56],
    crc: U32,
}

const _: () = assert!(size_of::<IndexEntry>() == 16);
const _: () = assert!(size_of::<FooterHeader>() == FOOTER_HEADER_BYTES);
const _: () = assert!(FOOTER_HEADER_BYTES + 16 * INDEX_ENTRIES_MAX <= SEGMENT_FOOTER_BYTES);

/// Entries in the order of offsets, positions and times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SparseIndex {
    entries: Vec<IndexEntry>,
}

impl SparseIndex {
    /// An index with these entries.
    #[must_use]
    pub fn from_entries(entries: Vec<IndexEntry>) -> Self {
        Self { entries }
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// A batch was appended at a place relative to the segment's.
    pub fn on_batch(&mut self, offset_delta: u64, position_delta: u64, appended_ms: u64, segment_bytes: u64) {
        let interval = INDEX_INTERVAL_BYTES_MIN.max(segment_bytes / INDEX_ENTRIES_MAX as u64 + 1);
        let is_due = self
            .entries
            .last()
            .is_none_or(|last| u64::from(last.position_delta.get()) + interval <= position_delta);
        if !is_due || self.entries.len() == INDEX_ENTRIES_MAX {
            return;
        }
        let (Ok(offset_delta), Ok(position_delta)) =
            (u32::try_from(offset_delta), u32::try_from(position_delta))
        else {
            return;
        };
        self.entries.push(IndexEntry {
            offset_delta: U32::new(offset_delta),
            position_delta: U32::new(position_delta),
            appended_ms: U64::new(appended_ms),
        });
    }

    /// The last entry at or before an offset: where to begin to look for it. `None`: at the segment's start.
    #[must_use]
    pub fn before_offset(&self, offset_delta: u64) -> Option<IndexEntry> {
        let behind =
            self.entries.partition_point(|entry| u64::from(entry.offset_delta.get()) <= offset_delta);
        behind.checked_sub(1).map(|number| self.entries[number])
    }

    /// The last entry before a time: where to begin to look for the first batch appended at or after it. `None`: at
    /// the segment's start.
    #[must_use]
    pub fn before_time(&self, appended_ms: u64) -> Option<IndexEntry> {
        let behind = self.entries.partition_point(|entry| entry.appended_ms.get() < appended_ms);
        behind.checked_sub(1).map(|number| self.entries[number])
    }

    /// The first entry behind a place: where reading can go on behind damage.
    #[must_use]
    pub fn behind(&self, position_delta: u64) -> Option<IndexEntry> {
        let number =
            self.entries.partition_point(|entry| u64::from(entry.position_delta.get()) <= position_delta);
        self.entries.get(number).copied()
    }

    /// Writes a closed segment's footer; `footer` has `SEGMENT_FOOTER_BYTES`.
    pub fn write_footer(&self, segment: &Segment, partition: Handle, footer: &mut [u8]) {
        assert_eq!(footer.len(), SEGMENT_FOOTER_BYTES);
        let mut header = FooterHeader {
            magic: FOOTER_MAGIC,
            number: U64::new(segment.number.0),
            partition: U64::new(partition.0),
            base_offset: U64::new(segment.base_offset.0),
            end_offset: U64::new(segment.end_offset.0),
            base: U64::new(segment.base.0),
            end: U64::new(segment.end.0),
            last_ms: U64::new(segment.last_ms),
            entry_count: U32::new(self.entries.len() as u32),
            reserved: [0; 56],
            crc: U32::new(0),
        };
        footer.fill(0);
        let entries = self.entries.as_bytes();
        footer[FOOTER_HEADER_BYTES..FOOTER_HEADER_BYTES + entries.len()].copy_from_slice(entries);
        header.crc = U32::new(footer_sum(&header, &footer[FOOTER_HEADER_BYTES..]));
        footer[..FOOTER_HEADER_BYTES].copy_from_slice(header.as_bytes());
    }

    /// Reads a footer; `None` when it is damaged, or not this segment's.
    #[must_use]
    pub fn read_footer(footer: &[u8], segment: &Segment, partition: Handle) -> Option<Self> {
        let (header, _) = FooterHeader::read_from_prefix(footer).ok()?;
        let rest = footer.get(FOOTER_HEADER_BYTES..SEGMENT_FOOTER_BYTES)?;
        let is_ours = header.magic == FOOTER_MAGIC
            && header.crc.get() == footer_sum(&header, rest)
            && header.number.get() == segment.number.0
            && header.partition.get() == partition.0
            && header.base.get() == segment.base.0
            && header.end.get() == segment.end.0;
        let count = header.entry_count.get() as usize;
        if !is_ours || count > INDEX_ENTRIES_MAX {
            return None;
        }
        let entries = <[IndexEntry]>::ref_from_prefix_with_elems(rest, count).ok()?.0.to_vec();
        Some(Self { entries })
    }
}

/// What a footer says of its segment, for whoever has no other source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterFacts {
    /// The segment.
    pub number: SegmentNumber,
    /// Whose.
    pub partition: Handle,
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Offset behind its last record.
    pub end_offset: Offset,
    /// Its first position.
    pub base: Position,
    /// The position behind its last batch.
    pub end: Position,
    /// Entries of its index.
    pub entry_count: u32,
}

impl FooterFacts {
    /// Reads a footer whose checksum matches.
    #[must_use]
    pub fn read(footer: &[u8]) -> Option<Self> {
        let (header, _) = FooterHeader::read_from_prefix(footer).ok()?;
        let rest = footer.get(FOOTER_HEADER_BYTES..SEGMENT_FOOTER_BYTES)?;
        let is_valid = header.magic == FOOTER_MAGIC && header.crc.get() == footer_sum(&header, rest);
        is_valid.then_some(Self {
            number: SegmentNumber(header.number.get()),
            partition: Handle(header.partition.get()),
            base_offset: Offset(header.base_offset.get()),
            end_offset: Offset(header.end_offset.get()),
            base: Position(header.base.get()),
            end: Position(header.end.get()),
            entry_count: header.entry_count.get(),
        })
    }
}

fn footer_sum(header: &FooterHeader, rest: &[u8]) -> u32 {
    Crc32c::new().update(&header.as_bytes()[..124]).update(rest).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (SparseIndex, Segment) {
        let mut index = SparseIndex::default();
        for n in 0..5_000_u64 {
            index.on_batch(n * 10, n * 1_000, 1_000_000 + n, 4 << 20);
        }
        let mut segment = Segment::open(SegmentNumber(7), Offset(100), Position(8192), 1);
        segment.end = Position(8192 + 5_000_000);
        segment.end_offset = Offset(50_100);
        (index, segment)
    }

    #[test]
    fn a_search_begins_at_or_before_what_is_looked_for() {
        let (index, _) = sample();
        let place =
            |entry: Option<IndexEntry>| entry.map_or(0, |entry| u64::from(entry.position_delta.get()));
        assert!(index.entries().len() > 50);
        for n in [0, 1, 65, 66, 67, 999, 4_999] {
            let position = place(index.before_offset(n * 10));
            assert!(position <= n * 1_000 && position + 70_000 > n * 1_000, "{n}: {position}");
            let position = place(index.before_time(1_000_000 + n));
            assert!(position <= n * 1_000 && position + 70_000 > n * 1_000, "{n}: {position}");
        }
        assert_eq!(index.before_time(0), None);
        let next = index.behind(0).unwrap();
        assert_eq!(index.before_offset(u64::from(next.offset_delta.get())), Some(next));
        assert_eq!(index.behind(u64::MAX), None);
    }

    #[test]
    fn a_footer_gives_back_the_index_and_no_flipped_byte_passes() {
        let (index, segment) = sample();
        let mut footer = vec![0xEE; SEGMENT_FOOTER_BYTES];
        index.write_footer(&segment, Handle(5), &mut footer);
        assert_eq!(SparseIndex::read_footer(&footer, &segment, Handle(5)), Some(index));
        assert_eq!(SparseIndex::read_footer(&footer, &segment, Handle(6)), None);
        assert_eq!(FooterFacts::read(&footer).unwrap().number, SegmentNumber(7));
        for at in 0..SEGMENT_FOOTER_BYTES {
            footer[at] ^= 4;
            assert!(FooterFacts::read(&footer).is_none(), "byte {at}");
            footer[at] ^= 4;
        }
    }

    fn hex(bytes: &[u8]) -> String {
        let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
        bytes.chunks(16).map(line).collect()
    }

    #[test]
    fn golden_footer() {
        let mut index = SparseIndex::default();
        index.on_batch(0, 0, 1_000, 1 << 20);
        index.on_batch(700, 70_000, 1_700, 1 << 20);
        let mut segment = Segment::open(SegmentNumber(7), Offset(100), Position(8_192), 1);
        (segment.end, segment.end_offset, segment.last_ms) = (Position(98_192), Offset(1_000), 1_900);
        let mut footer = vec![0xEE; SEGMENT_FOOTER_BYTES];
        index.write_footer(&segment, Handle(5), &mut footer);
        assert_eq!(hex(&footer[..FOOTER_HEADER_BYTES + 32]), include_str!("golden_footer.hex"));
    }
}
