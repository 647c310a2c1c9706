//! A snapshot: the state of a shard as entries, so that the journal before it can be used again.
//!
//! ```text
//! file:    | header page | block | block | ...     blocks as in the journal, of kind 2
//! header:  0 magic "FBSNAPS1"   8 snapshot's sequence  16 epoch  20 block count  24 bytes of blocks
//!         32 journal file  36 predecessor's CRC  40 journal position  48 next sequence  56 last epoch  60 zeros
//!         64 highest LSN captured  72 CRC of the last block  76 zeros  124 CRC
//! ```
//!
//! Two files take turns. The header is written last, when everything that it stands for is durable: the blocks, the
//! segments, and the journal up to the highest LSN captured. The CRC is CRC-32C of the directory id and bytes 0..124.
//! The sequence of block `n` is the snapshot's times 2^20, plus `n`: no block of an earlier snapshot in the same file
//! passes for one of this.

use protocol::crc::Crc32c;
use reactor::memory::{Pool, Slice};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, BlockHeader, BlockKind, JournalIdentity};
use super::entry::{ENTRY_HEADER_BYTES, EntryKind};
use super::open_block::OpenBlock;
use super::{BlockSequence, Epoch, Lsn};
use crate::limits::PAGE_BYTES;

/// Number of snapshot files.
pub const SNAPSHOT_FILES: u8 = 2;
/// First bytes of a snapshot file.
pub const SNAPSHOT_MAGIC: [u8; 8] = *b"FBSNAPS1";
/// Where the blocks begin.
pub const SNAPSHOT_BLOCKS_AT: u64 = PAGE_BYTES as u64;

/// The bits of a block's sequence that are its number in the snapshot.
pub(crate) const BLOCKS_SHIFT: u32 = 20;

/// Number of a snapshot: counts up over all of a directory's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotSequence(pub u64);

impl SnapshotSequence {
    /// The file that holds it.
    #[must_use]
    pub fn file(self) -> u8 {
        (self.0 % u64::from(SNAPSHOT_FILES)) as u8
    }

    /// The one behind it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    fn block(self, number: u32) -> BlockSequence {
        assert!(number < 1 << BLOCKS_SHIFT);
        BlockSequence(self.0 << BLOCKS_SHIFT | u64::from(number))
    }
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    magic: [u8; 8],
    sequence: U64,
    epoch: U32,
    block_count: U32,
    block_bytes: U64,
    journal_file: U32,
    predecessor_crc: U32,
    journal_position: U64,
    next_sequence: U64,
    last_epoch: U32,
    zeros: U32,
    captured_lsn: U64,
    last_block_crc: U32,
    more_zeros: [u8; 32],
    still_more_zeros: [u8; 16],
    crc: U32,
}

const _: () = assert!(size_of::<Layout>() == 128);

/// What a snapshot's first page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// Which snapshot it is.
    pub sequence: SnapshotSequence,
    /// Epoch of the start that made it.
    pub epoch: Epoch,
    /// Blocks behind this page.
    pub block_count: u32,
    /// Their length.
    pub block_bytes: u64,
    /// Where a replay finds its first block: in this file,
    pub journal_file: u32,
    /// at or behind this byte, or at the start of the next file;
    pub journal_position: u64,
    /// with this sequence,
    pub next_sequence: BlockSequence,
    /// behind a block with this CRC
    pub predecessor_crc: u32,
    /// and this epoch.
    pub last_epoch: Epoch,
    /// The highest LSN that anything in it includes: it was durable before this page was written.
    pub captured: Lsn,
    /// CRC of its last block, 0 if there is none.
    pub last_block_crc: u32,
}

impl SnapshotHeader {
    /// Writes the first page; `page` has `PAGE_BYTES`.
    pub fn write(&self, identity: JournalIdentity, page: &mut [u8]) {
        assert_eq!(page.len(), PAGE_BYTES);
        let mut layout = Layout {
            magic: SNAPSHOT_MAGIC,
            sequence: U64::new(self.sequence.0),
            epoch: U32::new(self.epoch.0),
            block_count: U32::new(self.block_count),
            block_bytes: U64::new(self.block_bytes),
            journal_file: U32::new(self.journal_file),
            predecessor_crc: U32::new(self.predecessor_crc),
            journal_position: U64::new(self.journal_position),
            next_sequence: U64::new(self.next_sequence.0),
            last_epoch: U32::new(self.last_epoch.0),
            captured_lsn: U64::new(self.captured.0),
            last_block_crc: U32::new(self.last_block_crc),
            ..Layout::default()
        };
        layout.crc = U32::new(layout_sum(&layout, identity));
        page.fill(0);
        page[..size_of::<Layout>()].copy_from_slice(layout.as_bytes());
    }

    /// Reads a first page; `None` when it is damaged, was never written, or is of another directory.
    #[must_use]
    pub fn read(page: &[u8], identity: JournalIdentity) -> Option<Self> {
        let (layout, _) = Layout::read_from_prefix(page).ok()?;
        let is_valid = layout.magic == SNAPSHOT_MAGIC && layout.crc.get() == layout_sum(&layout, identity);
        is_valid.then_some(Self {
            sequence: SnapshotSequence(layout.sequence.get()),
            epoch: Epoch(layout.epoch.get()),
            block_count: layout.block_count.get(),
            block_bytes: layout.block_bytes.get(),
            journal_file: layout.journal_file.get(),
            journal_position: layout.journal_position.get(),
            next_sequence: BlockSequence(layout.next_sequence.get()),
            predecessor_crc: layout.predecessor_crc.get(),
            last_epoch: Epoch(layout.last_epoch.get()),
            captured: Lsn(layout.captured_lsn.get()),
            last_block_crc: layout.last_block_crc.get(),
        })
    }
}

fn layout_sum(layout: &Layout, identity: JournalIdentity) -> u32 {
    Crc32c::new().update(&identity.directory_id.to_le_bytes()).update(&layout.as_bytes()[..124]).finish()
}

/// A block that is ready to be written.
#[derive(Debug)]
pub struct SnapshotBlock {
    /// Place in the snapshot's file.
    pub position: u64,
    /// The block.
    pub data: Slice,
}

/// Collects entries into blocks.
#[derive(Debug)]
pub struct SnapshotWriter {
    pool: Pool,
    identity: JournalIdentity,
    epoch: Epoch,
    sequence: SnapshotSequence,
    open: Option<OpenBlock>,
    block_count: u32,
    block_bytes: u64,
    last_block_crc: u32,
}

impl SnapshotWriter {
    /// A writer of an empty snapshot.
    #[must_use]
    pub fn new(pool: Pool, identity: JournalIdentity, epoch: Epoch, sequence: SnapshotSequence) -> Self {
        Self {
            pool,
            identity,
            epoch,
            sequence,
            open: None,
            block_count: 0,
            block_bytes: 0,
            last_block_crc: 0,
        }
    }

    /// Which snapshot it is.
    #[must_use]
    pub fn sequence(&self) -> SnapshotSequence {
        self.sequence
    }

    /// Blocks sealed so far, their length, and the last one's CRC.
    #[must_use]
    pub fn sealed(&self) -> (u32, u64, u32) {
        (self.block_count, self.block_bytes, self.last_block_crc)
    }

    /// Whether an entry of this length can be added now; a block that is in its way is sealed and given.
    ///
    /// # Errors
    /// When there is no memory; nothing has changed then but the block that was given.
    pub fn reserve(&mut self, body_bytes: usize) -> (Option<SnapshotBlock>, bool) {
        let entry_bytes = ENTRY_HEADER_BYTES + body_bytes;
        let has_room = self.open.as_ref().is_some_and(|open| open.has_room(entry_bytes));
        let sealed = if has_room { None } else { self.seal() };
        if self.open.is_none() {
            let sequence = self.sequence.block(self.block_count);
            self.open = OpenBlock::new(&self.pool, self.identity, self.epoch, sequence, entry_bytes);
        }
        (sealed, self.open.is_some())
    }

    /// Adds an entry; `reserve` must have said yes.
    pub fn add(&mut self, kind: EntryKind, subject: u64, body_bytes: usize, write: impl FnOnce(&mut [u8])) {
        let open = self.open.as_mut().expect("reserve made room");
        open.append(kind, subject, body_bytes, write);
    }

    /// Seals the block that is filling, if it holds anything.
    pub fn seal(&mut self) -> Option<SnapshotBlock> {
        let open = self.open.take().filter(|open| !open.is_empty())?;
        let (data, crc) = open.seal(BlockKind::Snapshot, self.last_block_crc, Lsn(0));
        let position = SNAPSHOT_BLOCKS_AT + self.block_bytes;
        self.block_count += 1;
        self.block_bytes += data.len() as u64;
        self.last_block_crc = crc;
        Some(SnapshotBlock { position, data })
    }
}

/// Checks the blocks of a snapshot one after another.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotReader {
    header: SnapshotHeader,
    identity: JournalIdentity,
    block_count: u32,
    block_bytes: u64,
    last_block_crc: u32,
}

impl SnapshotReader {
    /// A reader before the first block.
    #[must_use]
    pub fn new(header: SnapshotHeader, identity: JournalIdentity) -> Self {
        Self { header, identity, block_count: 0, block_bytes: 0, last_block_crc: 0 }
    }

    /// What is read.
    #[must_use]
    pub fn header(&self) -> SnapshotHeader {
        self.header
    }

    /// Where the next block lies in the file; `None` behind the last.
    #[must_use]
    pub fn next_position(&self) -> Option<u64> {
        (self.block_count < self.header.block_count).then_some(SNAPSHOT_BLOCKS_AT + self.block_bytes)
    }

    /// Bytes of blocks that are left.
    #[must_use]
    pub fn bytes_left(&self) -> u64 {
        self.header.block_bytes.saturating_sub(self.block_bytes)
    }

    /// Length of the next block, which begins with `page`; `None` when it is not what it should be.
    #[must_use]
    pub fn block_length(&self, page: &[u8]) -> Option<u64> {
        let header = BlockHeader::read(page, self.identity)?;
        let length = u64::from(header.block_length.get());
        (length <= self.bytes_left()).then_some(length)
    }

    /// Checks the next block, at the front of `bytes`; `None` when it is damaged or another one.
    #[must_use]
    pub fn next_block<'a>(&mut self, bytes: &'a [u8]) -> Option<Block<'a>> {
        let block = Block::check(bytes, self.identity)?;
        let is_it = block.header.kind.get() == BlockKind::Snapshot as u16
            && block.header.epoch.get() == self.header.epoch.0
            && block.header.block_sequence() == self.header.sequence.block(self.block_count)
            && block.header.predecessor_crc.get() == self.last_block_crc;
        if !is_it {
            return None;
        }
        self.block_count += 1;
        self.block_bytes += u64::from(block.header.block_length.get());
        self.last_block_crc = block.header.crc.get();
        Some(block)
    }

    /// Whether everything was read, and is what the header says.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.block_count == self.header.block_count
            && self.block_bytes == self.header.block_bytes
            && self.last_block_crc == self.header.last_block_crc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: JournalIdentity = JournalIdentity { directory_id: 5 << 64, shard: 0 };

    fn header() -> SnapshotHeader {
        SnapshotHeader {
            sequence: SnapshotSequence(9),
            epoch: Epoch(3),
            block_count: 2,
            block_bytes: 8192,
            journal_file: 4,
            journal_position: 12288,
            next_sequence: BlockSequence(77),
            predecessor_crc: 0xABCD,
            last_epoch: Epoch(2),
            captured: Lsn(99 << 16),
            last_block_crc: 5,
        }
    }

    #[test]
    fn a_header_gives_back_what_was_written_and_no_flipped_byte_passes() {
        let mut page = vec![0xEE; PAGE_BYTES];
        header().write(IDENTITY, &mut page);
        assert_eq!(SnapshotHeader::read(&page, IDENTITY), Some(header()));
        for at in 0..128 {
            page[at] ^= 8;
            assert_eq!(SnapshotHeader::read(&page, IDENTITY), None, "byte {at}");
            page[at] ^= 8;
        }
        assert_eq!(SnapshotHeader::read(&page, JournalIdentity { directory_id: 1, shard: 0 }), None);
    }

    fn hex(bytes: &[u8]) -> String {
        let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
        bytes.chunks(16).map(line).collect()
    }

    #[test]
    fn golden_snapshot_header() {
        let mut page = vec![0; PAGE_BYTES];
        header().write(IDENTITY, &mut page);
        assert_eq!(hex(&page[..128]), include_str!("golden_snapshot_header.hex"));
    }

    #[test]
    fn entries_come_back_in_order_and_only_of_this_snapshot() {
        let pool = Pool::new(16 << 20).unwrap();
        let mut writer = SnapshotWriter::new(pool, IDENTITY, Epoch(3), SnapshotSequence(9));
        let mut file = vec![0; PAGE_BYTES];
        let mut keep = |block: Option<SnapshotBlock>| {
            let Some(block) = block else { return };
            assert_eq!(block.position, file.len() as u64);
            file.extend_from_slice(&block.data);
        };
        for n in 0..300_u64 {
            let (sealed, has_room) = writer.reserve(4096);
            assert!(has_room);
            keep(sealed);
            writer.add(EntryKind::CapturePartition, n, 4096, |body| body.fill(n as u8));
        }
        keep(writer.seal());
        let (block_count, block_bytes, last_block_crc) = writer.sealed();
        assert!(block_count > 1);
        let header = SnapshotHeader { block_count, block_bytes, last_block_crc, ..header() };
        let mut reader = SnapshotReader::new(header, IDENTITY);
        let mut subjects = Vec::new();
        while let Some(position) = reader.next_position() {
            let block = reader.next_block(&file[position as usize..]).unwrap();
            subjects.extend(block.entries().map(|entry| entry.header.subject.get()));
        }
        assert!(reader.is_whole());
        assert_eq!(subjects, (0..300).collect::<Vec<_>>());
        let other = SnapshotHeader { sequence: SnapshotSequence(7), ..header };
        assert!(SnapshotReader::new(other, IDENTITY).next_block(&file[PAGE_BYTES..]).is_none());
    }
}
