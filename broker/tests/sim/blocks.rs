//! Watches every journal block that the shard ever asks to be written, over all starts.
//!
//! An epoch belongs to one start, a sequence within it to one block: should the same pair ever be written with other
//! bytes, then a stale block on disk could pass for the one that was acknowledged.

use std::collections::BTreeMap;

use zerocopy::FromBytes;

use broker::journal::block::{BLOCK_HEADER_BYTES, BLOCK_MAGIC, BlockHeader, BlockKind};
use broker::journal::entry::{EntryHeader, EntryKind};
use protocol::crc::crc32c;

use crate::report::{Kind, Report, Violation, violation};

/// What was written, by epoch and sequence.
#[derive(Debug, Default)]
pub(crate) struct BlockWatch {
    /// Checksum of the bytes.
    written: BTreeMap<(u32, u64), u32>,
    last_epoch: u32,
}

impl BlockWatch {
    /// Blocks written so far.
    pub(crate) fn count(&self) -> usize {
        self.written.len()
    }

    /// A start says which epoch is its own.
    pub(crate) fn on_epoch(&mut self, epoch: u32) -> Result<(), Violation> {
        if epoch <= self.last_epoch {
            return violation(format!("a start has epoch {epoch}, an earlier one had {}", self.last_epoch));
        }
        self.last_epoch = epoch;
        Ok(())
    }

    /// A block is about to be written. What it says of segments is counted.
    pub(crate) fn on_write(&mut self, bytes: &[u8], report: &mut Report) -> Result<(), Violation> {
        let Some(header) = header_of(bytes) else {
            return violation("what is written to the journal is no block");
        };
        let (epoch, sequence) = (header.epoch.get(), header.sequence.get());
        if header.block_length.get() as usize != bytes.len() {
            return violation(format!("block {sequence} of epoch {epoch} is not as long as it says"));
        }
        if epoch != self.last_epoch {
            return violation(format!(
                "block {sequence} has epoch {epoch}, this start has {}",
                self.last_epoch
            ));
        }
        if header.durable().sequence().0 >= sequence {
            return violation(format!("block {sequence} says that it was durable before it was written"));
        }
        let sum = crc32c(bytes);
        if *self.written.entry((epoch, sequence)).or_insert(sum) != sum {
            return violation(format!("block {sequence} of epoch {epoch} is written with other bytes"));
        }
        report.add(Kind::MarkerBlock, u64::from(header.kind.get() == BlockKind::Marker as u16));
        for entry in entry_kinds(bytes, &header) {
            match entry {
                EntryKind::OpenSegment => report.add(Kind::SegmentOpened, 1),
                EntryKind::CloseSegment => report.add(Kind::SegmentClosed, 1),
                EntryKind::TrimSegments => report.add(Kind::SegmentsTrimmed, 1),
                EntryKind::ReplaceSegments => report.add(Kind::SegmentsReplaced, 1),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The kinds of a block's entries, in order; those that are not known are left out.
fn entry_kinds(block: &[u8], header: &BlockHeader) -> Vec<EntryKind> {
    let content = block.get(BLOCK_HEADER_BYTES..header.content_length.get() as usize);
    let mut rest = content.unwrap_or_default();
    let mut kinds = Vec::new();
    while let Ok((entry, behind)) = EntryHeader::read_from_prefix(rest) {
        kinds.extend(entry.kind());
        rest = behind.get(entry.body_length.get() as usize..).unwrap_or_default();
    }
    kinds
}

/// The header of the block at the start of `bytes`, told by its magic alone: the watch must see it without the seed.
pub(crate) fn header_of(bytes: &[u8]) -> Option<BlockHeader> {
    let (header, _) = BlockHeader::read_from_prefix(bytes).ok()?;
    (header.magic == BLOCK_MAGIC).then_some(header)
}
