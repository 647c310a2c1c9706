//! A segment: one file of a partition's log.
//!
//! ```text
//! file:    | header page | batches, one behind another | zeros up to 4 KiB | footer 16 KiB (once sealed) |
//!          0             4096                          end
//! header:  0 magic "FBSEGMT1"  8 format version  12 zeros  16 directory id  32 segment number  40 handle
//!         48 created  56 zeros  124 CRC (CRC-32C of bytes 0..124)
//! ```
//!
//! Byte `p` of the log lies at `4096 + p - base` of its segment's file. Only whole pages are written until the segment
//! is closed; then the last page follows, filled up with zeros, and the footer, and it is sealed.

use protocol::crc::crc32c;
use protocol::ids::{Handle, Offset};
use zerocopy::little_endian::{U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{IndexEntry, Position, SegmentNumber, SparseIndex, Target};
use crate::io::{FILE_HEADER_BYTES, File, FileHeader};
use crate::limits::{PAGE_BYTES, SEGMENT_FOOTER_BYTES, SEGMENT_HEADER_BYTES};

/// First bytes of a segment's file.
const SEGMENT_MAGIC: [u8; 8] = *b"FBSEGMT1";
/// Version of a segment's layout.
const SEGMENT_VERSION: u32 = 1;

/// How far a segment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Takes batches.
    Open,
    /// Takes no more, but that is not durable: after a power cut it might be open again.
    Closing,
    /// Takes no more; its last page or its footer is not on disk yet.
    Closed,
    /// The write of its last page and its footer was asked for.
    Sealing,
    /// All of it is on disk.
    Sealed,
}

/// A part of a partition's log with a file of its own.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Names its file.
    pub number: SegmentNumber,
    /// How far it has come.
    pub state: SegmentState,
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Offset behind its last record.
    pub end_offset: Offset,
    /// Position of its first byte, a multiple of 4 KiB.
    pub base: Position,
    /// Position behind its last batch.
    pub end: Position,
    /// When it was opened, milliseconds since 1970.
    pub opened_ms: u64,
    /// When its last batch was appended.
    pub last_ms: u64,
    /// Bytes of batches for which its file has space.
    pub allocated_bytes: u64,
    /// Its offsets may have gaps.
    pub is_compacted: bool,
    /// Of an open or closed segment; that of a sealed one is in its footer.
    pub index: SparseIndex,
}

impl Segment {
    /// An empty segment.
    #[must_use]
    pub fn open(number: SegmentNumber, base_offset: Offset, base: Position, opened_ms: u64) -> Self {
        assert_eq!(base.in_page(), 0);
        Self {
            number,
            state: SegmentState::Open,
            base_offset,
            end_offset: base_offset,
            base,
            end: base,
            opened_ms,
            last_ms: opened_ms,
            allocated_bytes: 0,
            is_compacted: false,
            index: SparseIndex::default(),
        }
    }

    /// Where to begin to look for something in it, by its index: a batch begins there, with that offset.
    #[must_use]
    pub fn look_up(&self, index: &SparseIndex, target: Target) -> (Position, Offset) {
        let entry = match target {
            Target::Offset(offset) => index.before_offset(offset.0.saturating_sub(self.base_offset.0)),
            Target::Time(time) => index.before_time(time),
        };
        entry.map_or((self.base, self.base_offset), |entry| self.place_of(entry))
    }

    /// The place and offset of a batch behind a place, by its index; the segment's end when there is none.
    #[must_use]
    pub fn look_behind(&self, index: &SparseIndex, position: Position) -> (Position, Offset) {
        let entry = index.behind(position.0 - self.base.0);
        entry.map_or((self.end, self.end_offset), |entry| self.place_of(entry))
    }

    fn place_of(&self, entry: IndexEntry) -> (Position, Offset) {
        let offset = Offset(self.base_offset.0 + u64::from(entry.offset_delta.get()));
        (self.base.plus(u64::from(entry.position_delta.get())), offset)
    }

    /// Its file.
    #[must_use]
    pub fn file(&self) -> File {
        File::Segment(self.number.0)
    }

    /// Bytes of batches.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end.0 - self.base.0
    }

    /// Where a position lies in the file.
    #[must_use]
    pub fn file_position(&self, position: Position) -> u64 {
        assert!(self.base <= position);
        SEGMENT_HEADER_BYTES + position.0 - self.base.0
    }

    /// Where the footer lies in the file of a closed segment.
    #[must_use]
    pub fn footer_position(&self) -> u64 {
        self.file_position(self.end.page_up())
    }

    /// Length of the file once the segment is sealed.
    #[must_use]
    pub fn sealed_file_bytes(&self) -> u64 {
        self.footer_position() + SEGMENT_FOOTER_BYTES as u64
    }
}

/// Length of a file with space for so many bytes of batches, its header and its footer.
#[must_use]
pub fn file_bytes_for(data_bytes: u64) -> u64 {
    SEGMENT_HEADER_BYTES + data_bytes.next_multiple_of(PAGE_BYTES as u64) + SEGMENT_FOOTER_BYTES as u64
}

/// Bytes of batches for which a file of this length has space.
#[must_use]
pub fn data_bytes_of(file_bytes: u64) -> u64 {
    file_bytes.saturating_sub(SEGMENT_HEADER_BYTES + SEGMENT_FOOTER_BYTES as u64)
}

/// The first bytes of a segment's file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    magic: [u8; 8],
    version: U32,
    reserved: U32,
    directory_id: U128,
    number: U64,
    partition: U64,
    created_ms: U64,
    zeros: [u8; 68],
    crc: U32,
}

const _: () = assert!(size_of::<Layout>() == FILE_HEADER_BYTES);

/// What a segment's first page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Of the data directory that it was made for.
    pub directory_id: u128,
    /// Its number.
    pub number: SegmentNumber,
    /// Whose it is.
    pub partition: Handle,
    /// When the file was made, milliseconds since 1970.
    pub created_ms: u64,
}

impl SegmentHeader {
    /// The bytes for `Op::Allocate`.
    #[must_use]
    pub fn write(&self) -> Box<FileHeader> {
        let mut layout = Layout {
            magic: SEGMENT_MAGIC,
            version: U32::new(SEGMENT_VERSION),
            reserved: U32::new(0),
            directory_id: U128::new(self.directory_id),
            number: U64::new(self.number.0),
            partition: U64::new(self.partition.0),
            created_ms: U64::new(self.created_ms),
            zeros: [0; 68],
            crc: U32::new(0),
        };
        layout.crc = U32::new(crc32c(&layout.as_bytes()[..124]));
        let mut bytes = Box::new([0; FILE_HEADER_BYTES]);
        bytes.copy_from_slice(layout.as_bytes());
        bytes
    }

    /// Reads a first page; `None` when it is damaged, or no segment's.
    #[must_use]
    pub fn read(page: &[u8]) -> Option<Self> {
        let (layout, _) = Layout::read_from_prefix(page).ok()?;
        let is_valid = layout.magic == SEGMENT_MAGIC
            && layout.version.get() == SEGMENT_VERSION
            && layout.crc.get() == crc32c(&layout.as_bytes()[..124]);
        is_valid.then_some(Self {
            directory_id: layout.directory_id.get(),
            number: SegmentNumber(layout.number.get()),
            partition: Handle(layout.partition.get()),
            created_ms: layout.created_ms.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_gives_back_what_was_written_and_no_flipped_byte_passes() {
        let header = SegmentHeader {
            directory_id: 77 << 90,
            number: SegmentNumber(0xA1),
            partition: Handle(42),
            created_ms: 1_700_000_000_000,
        };
        let mut bytes = header.write();
        assert_eq!(SegmentHeader::read(&bytes[..]), Some(header));
        for at in 0..FILE_HEADER_BYTES {
            bytes[at] ^= 1;
            assert_eq!(SegmentHeader::read(&bytes[..]), None, "byte {at}");
            bytes[at] ^= 1;
        }
    }

    fn hex(bytes: &[u8]) -> String {
        let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
        bytes.chunks(16).map(line).collect()
    }

    #[test]
    fn golden_segment_header() {
        let header = SegmentHeader {
            directory_id: 77 << 90,
            number: SegmentNumber(0xA1),
            partition: Handle(42),
            created_ms: 1_700_000_000_000,
        };
        assert_eq!(hex(&header.write()[..]), include_str!("golden_segment_header.hex"));
    }

    #[test]
    fn positions_and_file_lengths_add_up() {
        let mut segment = Segment::open(SegmentNumber(1), Offset(0), Position(8192), 0);
        segment.end = Position(8192 + 5000);
        assert_eq!(segment.file_position(Position(8192)), 4096);
        assert_eq!(segment.footer_position(), 4096 + 8192);
        assert_eq!(segment.sealed_file_bytes(), file_bytes_for(5000));
        assert_eq!(data_bytes_of(file_bytes_for(8192)), 8192);
    }
}
