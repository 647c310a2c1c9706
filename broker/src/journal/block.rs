//! The journal block: what one commit writes.
//!
//! ```text
//!  0 magic "FBJRNL01"   8 epoch   12 shard  14 kind   16 sequence   24 block length   28 content length
//! 32 entry count  36 predecessor's CRC  40 durable LSN  48 header CRC  52 zeros  60 CRC | entries | zeros to 4 KiB
//! ```
//!
//! Both CRCs are seeded with the directory's id, the epoch and the sequence. The header CRC covers bytes 0..48: it is
//! enough to believe the header, and no length is followed before it matches. The CRC covers every entry (of a batch
//! only its header, whose own CRC covers the rest) and then bytes 0..60. A block of an older use of the file, of
//! another directory, or inside somebody's payload can therefore never pass for one in its place.

use protocol::batch::{BATCH_HEADER_BYTES, Batch, BatchHeader};
use protocol::crc::Crc32c;
use protocol::ids::Handle;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::entry::{ENTRY_HEADER_BYTES, EntryHeader, EntryKind};
use super::{BlockSequence, Epoch, Lsn};
use crate::limits::{JOURNAL_BLOCK_BYTES_MAX, JOURNAL_ENTRIES_PER_BLOCK_MAX, PAGE_BYTES};

/// Length of the block header, in bytes.
pub const BLOCK_HEADER_BYTES: usize = 64;
/// First eight bytes of every block.
pub const BLOCK_MAGIC: [u8; 8] = *b"FBJRNL01";
/// The part of the header that its own CRC covers.
const HEADER_CRC_RANGE: std::ops::Range<usize> = 0..48;
/// The part of the header that the block's CRC covers.
const CRC_RANGE: std::ops::Range<usize> = 0..60;

/// What a block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum BlockKind {
    /// Carries entries.
    Data = 0,
    /// Carries only the durable LSN.
    Marker = 1,
    /// A block of a snapshot file; its sequence is the snapshot's, times 2^20, and its number in it.
    Snapshot = 2,
}

/// The header as it lies on disk.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BlockHeader {
    /// `BLOCK_MAGIC`.
    pub magic: [u8; 8],
    /// Epoch of the writer.
    pub epoch: U32,
    /// The shard whose journal this is.
    pub shard: U16,
    /// Number of a `BlockKind`.
    pub kind: U16,
    /// Sequence of the block; the next one's is one more.
    pub sequence: U64,
    /// Length of the block, padding included: a multiple of 4 KiB.
    pub block_length: U32,
    /// Length of header and entries.
    pub content_length: U32,
    /// Number of entries.
    pub entry_count: U32,
    /// CRC of the block before, 0 for the first.
    pub predecessor_crc: U32,
    /// The highest LSN known durable when the block was sealed.
    pub durable_lsn: U64,
    /// See the module's head.
    pub header_crc: U32,
    /// Zeros.
    pub reserved: [u8; 8],
    /// See the module's head.
    pub crc: U32,
}

const _: () = assert!(size_of::<BlockHeader>() == BLOCK_HEADER_BYTES);

/// Which journal a block belongs to. The directory's id is part of every CRC's seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalIdentity {
    /// Random, made with the data directory.
    pub directory_id: u128,
    /// The shard.
    pub shard: u16,
}

/// Starts the sum of a block.
pub(super) fn seeded_sum(identity: JournalIdentity, epoch: Epoch, sequence: BlockSequence) -> Crc32c {
    Crc32c::new()
        .update(&identity.directory_id.to_le_bytes())
        .update(&epoch.0.to_le_bytes())
        .update(&sequence.0.to_le_bytes())
}

/// Adds one entry to the sum of its block. `body` must be what the kind says.
pub(super) fn add_entry_to_sum(sum: Crc32c, header: &EntryHeader, body: &[u8]) -> Crc32c {
    let mut sum = sum.update(header.as_bytes());
    if header.kind() != Some(EntryKind::Append) {
        return sum.update(body);
    }
    let mut rest = body;
    while let Ok(batch) = BatchHeader::peek(rest) {
        sum = sum.update(&rest[..BATCH_HEADER_BYTES]);
        rest = &rest[batch.batch_bytes()..];
    }
    sum.update(rest)
}

/// Ends the sum with the header's own bytes.
pub(super) fn finish_sum(sum: Crc32c, header: &BlockHeader) -> u32 {
    sum.update(&header.as_bytes()[CRC_RANGE]).finish()
}

impl BlockHeader {
    /// Reads the header at the start of `page` and checks it, its CRC included: what it says can be believed, what
    /// follows it cannot yet.
    #[must_use]
    pub fn read(page: &[u8], identity: JournalIdentity) -> Option<Self> {
        let (header, _) = Self::read_from_prefix(page).ok()?;
        let (block, content) = (header.block_length.get() as usize, header.content_length.get() as usize);
        let is_plausible = header.magic == BLOCK_MAGIC
            && header.shard.get() == identity.shard
            && block.is_multiple_of(PAGE_BYTES)
            && block <= JOURNAL_BLOCK_BYTES_MAX
            && (BLOCK_HEADER_BYTES..=block).contains(&content)
            && header.entry_count.get() <= JOURNAL_ENTRIES_PER_BLOCK_MAX;
        (is_plausible && header.header_crc.get() == header.own_sum(identity)).then_some(header)
    }

    /// The sum that belongs into `header_crc`.
    pub(super) fn own_sum(&self, identity: JournalIdentity) -> u32 {
        seeded_sum(identity, Epoch(self.epoch.get()), self.block_sequence())
            .update(&self.as_bytes()[HEADER_CRC_RANGE])
            .finish()
    }

    /// Sequence of the block.
    #[must_use]
    pub fn block_sequence(&self) -> BlockSequence {
        BlockSequence(self.sequence.get())
    }

    /// The highest LSN known durable when the block was sealed.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        Lsn(self.durable_lsn.get())
    }
}

/// A block whose every byte was checked.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// The header.
    pub header: BlockHeader,
    content: &'a [u8],
}

/// One entry of a checked block.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its place.
    pub lsn: Lsn,
    /// Kind and subject.
    pub header: EntryHeader,
    /// What the kind says.
    pub body: &'a [u8],
}

impl<'a> Block<'a> {
    /// Checks the block at the start of `bytes` as a whole: its header, its own CRC, the shape of its entries, and the
    /// CRCs of its batches. `None` when any of it is wrong or `bytes` is shorter than the block.
    #[must_use]
    pub fn check(bytes: &'a [u8], identity: JournalIdentity) -> Option<Self> {
        let header = BlockHeader::read(bytes, identity)?;
        let block = bytes.get(..header.block_length.get() as usize)?;
        let content = &block[BLOCK_HEADER_BYTES..header.content_length.get() as usize];
        let mut sum = seeded_sum(identity, Epoch(header.epoch.get()), header.block_sequence());
        let mut rest = content;
        for _ in 0..header.entry_count.get() {
            let (entry, body, behind) = split_entry(rest)?;
            sum = add_entry_to_sum(sum, &entry, body);
            rest = behind;
        }
        let is_whole = rest.is_empty() && finish_sum(sum, &header) == header.crc.get();
        let checked = is_whole.then_some(Self { header, content })?;
        checked.batches_match().then_some(checked)
    }

    /// The entries in order.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let first = Lsn::new(self.header.block_sequence(), 0);
        let mut rest = self.content;
        (0..u64::from(self.header.entry_count.get())).map_while(move |n| {
            let (header, body, behind) = split_entry(rest)?;
            rest = behind;
            Some(Entry { lsn: Lsn(first.0 + n), header, body })
        })
    }

    fn batches_match(&self) -> bool {
        self.entries().filter(|entry| entry.header.kind() == Some(EntryKind::Append)).all(|entry| {
            let mut rest = entry.body;
            while !rest.is_empty() {
                let Ok(batch) = Batch::check(rest) else { return false };
                if !batch.header().is_placed_in(Handle(entry.header.subject.get())) {
                    return false;
                }
                rest = &rest[batch.bytes().len()..];
            }
            true
        })
    }
}

fn split_entry(bytes: &[u8]) -> Option<(EntryHeader, &[u8], &[u8])> {
    let (header, rest) = EntryHeader::read_from_prefix(bytes).ok()?;
    let (body, behind) = rest.split_at_checked(header.body_length.get() as usize)?;
    debug_assert!(bytes.len() - rest.len() == ENTRY_HEADER_BYTES);
    Some((header, body, behind))
}
