//! Where the journal's blocks lie, and from which one on a start may need them.
//! Only the flip tests use it.

use std::ops::Range;

use broker::io::File;
use broker::journal::block::{BlockHeader, JournalIdentity};
use broker::journal::snapshot::{SNAPSHOT_FILES, SnapshotHeader};
use broker::limits::PAGE_BYTES;

use crate::disk::{Directory, Flip};
use crate::world::DIRECTORY_ID;

const IDENTITY: JournalIdentity = JournalIdentity { directory_id: DIRECTORY_ID, shard: 0 };

/// A block of the journal, as its header has it.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) sequence: u64,
    pub(crate) file: File,
    /// Its bytes in the file, padding included.
    bytes: Range<usize>,
    /// Header and entries: what its checksums cover.
    pub(crate) content: Range<usize>,
}

impl Block {
    /// Whether a flipped bit can be told by its checksums.
    pub(crate) fn covers(&self, flip: &Flip) -> bool {
        self.file == flip.file && self.content.contains(&flip.position)
    }

    /// Its pages.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (File, usize)> {
        let file = self.file;
        (self.bytes.start / PAGE_BYTES..self.bytes.end / PAGE_BYTES).map(move |page| (file, page))
    }
}

/// All blocks of the journal whose header is whole, in the order of their sequences.
pub(crate) fn blocks(directory: &Directory) -> Vec<Block> {
    let pages = directory.written_pages().iter().copied();
    let journal = pages.filter(|(file, _)| matches!(file, File::Journal(_)));
    let mut blocks: Vec<Block> = journal
        .filter_map(|(file, page)| {
            let header = BlockHeader::read(directory.page(file, page), IDENTITY)?;
            let start = page * PAGE_BYTES;
            let (length, content) =
                (header.block_length.get() as usize, header.content_length.get() as usize);
            Some(Block {
                sequence: header.sequence.get(),
                file,
                bytes: start..start + length,
                content: start..start + content,
            })
        })
        .collect();
    blocks.sort_by_key(|block| block.sequence);
    blocks
}

/// The sequence of the first block that a start from the older of the two snapshots replays.
pub(crate) fn first_needed(directory: &Directory) -> u64 {
    let headers = (0..SNAPSHOT_FILES).map(|number| {
        let page = directory.page(File::Snapshot(number), 0);
        SnapshotHeader::read(page, IDENTITY).expect("both snapshots are whole")
    });
    headers.map(|header| header.next_sequence.0).min().expect("there are two snapshots")
}
