//! A journal block while it fills.
//!
//! Entries are copied in and summed as they come; header and padding come last, when it is sealed.

use protocol::batch::{BatchHeader, BrokerFields};
use protocol::crc::Crc32c;
use protocol::ids::Handle;
use reactor::memory::{Buffer, Pool, Slice};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::block::{
    BLOCK_HEADER_BYTES, BLOCK_MAGIC, BlockHeader, BlockKind, JournalIdentity, add_entry_to_sum, finish_sum,
    seeded_sum,
};
use super::entry::{ENTRY_HEADER_BYTES, EntryHeader, EntryKind};
use super::{BlockSequence, Epoch, Lsn};
use crate::limits::{JOURNAL_BLOCK_BYTES, JOURNAL_ENTRIES_PER_BLOCK_MAX, PAGE_BYTES};

#[derive(Debug)]
pub(super) struct OpenBlock {
    buffer: Buffer,
    identity: JournalIdentity,
    epoch: Epoch,
    sequence: BlockSequence,
    /// Bytes of header and entries so far.
    content_bytes: usize,
    /// Where the last entry's body starts.
    last_body: usize,
    entry_count: u32,
    /// Entries that would take the block beyond this go into the next one.
    bytes_max: usize,
    sum: Crc32c,
}

impl OpenBlock {
    /// An empty block with room for a first entry of `entry_bytes`; `None` when there is no memory.
    pub(super) fn new(
        pool: &Pool,
        identity: JournalIdentity,
        epoch: Epoch,
        sequence: BlockSequence,
        entry_bytes: usize,
    ) -> Option<Self> {
        let bytes_max = Self::padded_for(entry_bytes).max(JOURNAL_BLOCK_BYTES);
        Some(Self {
            buffer: pool.buffer(bytes_max)?,
            identity,
            epoch,
            sequence,
            content_bytes: BLOCK_HEADER_BYTES,
            last_body: BLOCK_HEADER_BYTES,
            entry_count: 0,
            bytes_max,
            sum: seeded_sum(identity, epoch, sequence),
        })
    }

    pub(super) fn sequence(&self) -> BlockSequence {
        self.sequence
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entry_count == 0
    }

    /// Bytes of entries, their headers included.
    pub(super) fn entry_bytes(&self) -> usize {
        self.content_bytes - BLOCK_HEADER_BYTES
    }

    pub(super) fn has_room(&self, entry_bytes: usize) -> bool {
        self.content_bytes + entry_bytes <= self.bytes_max && self.entry_count < JOURNAL_ENTRIES_PER_BLOCK_MAX
    }

    /// Length on disk with one more entry of `entry_bytes`.
    pub(super) fn padded_with(&self, entry_bytes: usize) -> usize {
        (self.content_bytes + entry_bytes).next_multiple_of(PAGE_BYTES)
    }

    /// Length on disk of a block with a single entry of `entry_bytes`.
    pub(super) fn padded_for(entry_bytes: usize) -> usize {
        (BLOCK_HEADER_BYTES + entry_bytes).next_multiple_of(PAGE_BYTES)
    }

    /// Copies the batches of one frame in, placing each with the next of `place`.
    pub(super) fn append_batches(
        &mut self,
        partition: Handle,
        batches: &[u8],
        mut place: impl Iterator<Item = BrokerFields>,
    ) -> Lsn {
        self.append(EntryKind::Append, partition.0, batches.len(), |body| {
            body.copy_from_slice(batches);
            let mut rest = body;
            while !rest.is_empty() {
                let length = BatchHeader::peek(rest).expect("batches were checked").batch_bytes();
                let (batch, behind) = rest.split_at_mut(length);
                BatchHeader::place(batch, partition, place.next().expect("one place for each batch"));
                rest = behind;
            }
        })
    }

    /// Adds one entry, whose body `write` fills.
    pub(super) fn append(
        &mut self,
        kind: EntryKind,
        subject: u64,
        body_bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> Lsn {
        assert!(self.has_room(ENTRY_HEADER_BYTES + body_bytes));
        let header = EntryHeader::new(kind, subject, body_bytes);
        let body_start = self.content_bytes + ENTRY_HEADER_BYTES;
        let body_end = body_start + body_bytes;
        self.buffer[self.content_bytes..body_start].copy_from_slice(header.as_bytes());
        write(&mut self.buffer[body_start..body_end]);
        let sum = std::mem::take(&mut self.sum);
        self.sum = add_entry_to_sum(sum, &header, &self.buffer[body_start..body_end]);
        self.last_body = body_start;
        self.content_bytes = body_end;
        self.entry_count += 1;
        Lsn::new(self.sequence, self.entry_count - 1)
    }

    /// The body of the entry added last.
    pub(super) fn last_body(&self) -> &[u8] {
        &self.buffer[self.last_body..self.content_bytes]
    }

    /// Writes header and padding; gives the block's bytes and its CRC.
    pub(super) fn seal(mut self, kind: BlockKind, predecessor_crc: u32, durable: Lsn) -> (Slice, u32) {
        let length = self.padded_with(0);
        let mut header = BlockHeader {
            magic: BLOCK_MAGIC,
            epoch: U32::new(self.epoch.0),
            shard: U16::new(self.identity.shard),
            kind: U16::new(kind as u16),
            sequence: U64::new(self.sequence.0),
            block_length: U32::new(length as u32),
            content_length: U32::new(self.content_bytes as u32),
            entry_count: U32::new(self.entry_count),
            predecessor_crc: U32::new(predecessor_crc),
            durable_lsn: U64::new(durable.0),
            ..BlockHeader::default()
        };
        header.header_crc = U32::new(header.own_sum(self.identity));
        let crc = finish_sum(self.sum, &header);
        header.crc = U32::new(crc);
        self.buffer[..BLOCK_HEADER_BYTES].copy_from_slice(header.as_bytes());
        self.buffer[self.content_bytes..length].fill(0);
        (self.buffer.freeze(0..length), crc)
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::Block;
    use super::super::entry::{TopicCreated, TopicSettings, topic_subject};
    use super::*;
    use protocol::ids::TopicKey;

    const IDENTITY: JournalIdentity = JournalIdentity { directory_id: 0x1122, shard: 0 };

    fn sample() -> Slice {
        let pool = Pool::new(1).unwrap();
        let mut block = OpenBlock::new(&pool, IDENTITY, Epoch(3), BlockSequence(42), 0).unwrap();
        let key = TopicKey { slot: 2, generation: 9 };
        let settings =
            TopicSettings { retention_ms: 86_400_000, segment_bytes: 1 << 20, ..Default::default() };
        let (created_ms, name) = (1_700_000_000_000, "orders");
        let created = TopicCreated { key, partition_count: 4, created_ms, name, settings };
        block.append(EntryKind::CreateTopic, topic_subject(key), created.body_bytes(), |body| {
            created.write(body)
        });
        block.append(EntryKind::DeleteTopic, topic_subject(key), 8, |body| body.copy_from_slice(&[7; 8]));
        block.seal(BlockKind::Data, 0xAABB_CCDD, Lsn::end_of(BlockSequence(41))).0
    }

    #[test]
    fn golden_block() {
        let hex: String = sample()[..176]
            .chunks(16)
            .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n")
            .collect();
        assert_eq!(hex, include_str!("golden_block.hex"));
    }

    #[test]
    fn a_sealed_block_is_valid_and_every_flipped_byte_of_it_is_found() {
        let block = sample();
        let content = Block::check(&block, IDENTITY).unwrap().header.content_length.get() as usize;
        assert_eq!(Block::check(&block, IDENTITY).unwrap().entries().count(), 2);
        for position in 0..content {
            let mut flipped = block.to_vec();
            flipped[position] ^= 0x40;
            assert!(Block::check(&flipped, IDENTITY).is_none(), "byte {position}");
        }
        let other = JournalIdentity { directory_id: 0x1123, shard: 0 };
        assert!(Block::check(&block, other).is_none(), "a block of another directory");
    }
}
