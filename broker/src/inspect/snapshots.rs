//! The snapshot files: which snapshot each holds, and whether every block of it is good.
//!
//! A snapshot's blocks are written before its header. Where a broker ended meanwhile, the header is still that of the
//! snapshot before, whose blocks are gone: later blocks in the file tell that from damage.

use super::disk::{Disk, Reader};
use super::problem::{Problem, ProblemKind, name_of};
use super::report::{SnapshotFile, SnapshotState};
use crate::io::File;
use crate::journal::block::{BlockHeader, BlockKind, JournalIdentity};
use crate::journal::snapshot::{
    BLOCKS_SHIFT, SNAPSHOT_BLOCKS_AT, SNAPSHOT_FILES, SnapshotHeader, SnapshotReader,
};
use crate::limits::PAGE_BYTES;

/// Looks at all that are there.
pub(super) fn look(disk: &Disk, identity: JournalIdentity) -> Vec<SnapshotFile> {
    (0..SNAPSHOT_FILES).filter_map(|number| look_at(disk, number, identity)).collect()
}

fn look_at(disk: &Disk, number: u8, identity: JournalIdentity) -> Option<SnapshotFile> {
    let file = File::Snapshot(number);
    let bytes = disk.bytes_of(file)?;
    let mut found = SnapshotFile { number, bytes, state: SnapshotState::Empty, header: None, bad_at: None };
    if bytes < PAGE_BYTES as u64 {
        return Some(found);
    }
    let page = disk.bytes(file, 0, PAGE_BYTES).ok();
    if page.as_ref().is_some_and(|page| page.iter().all(|byte| *byte == 0)) {
        return Some(found);
    }
    let header = page.and_then(|page| SnapshotHeader::read(&page, identity));
    let Some(header) = header.filter(|header| header.sequence.file() == number) else {
        found.state = SnapshotState::Damaged;
        found.bad_at = Some(0);
        return Some(found);
    };
    found.header = Some(header);
    let mut reader = Reader::new(disk, file);
    found.bad_at = first_bad(&mut reader, header, identity);
    found.state = match found.bad_at {
        None => SnapshotState::Valid,
        Some(_) if has_later_block(&mut reader, header, identity) => SnapshotState::Overwritten,
        Some(_) => SnapshotState::Damaged,
    };
    Some(found)
}

/// Where the first block lies that is not what it should be.
fn first_bad(reader: &mut Reader<'_>, header: SnapshotHeader, identity: JournalIdentity) -> Option<u64> {
    if header.block_bytes == 0 {
        return Some(SNAPSHOT_BLOCKS_AT);
    }
    let mut blocks = SnapshotReader::new(header, identity);
    while let Some(position) = blocks.next_position() {
        let page = reader.at(position, PAGE_BYTES).ok();
        let Some(length) = page.and_then(|page| blocks.block_length(page)) else { return Some(position) };
        let bytes = reader.at(position, length as usize).ok();
        if bytes.and_then(|bytes| blocks.next_block(bytes)).is_none() {
            return Some(position);
        }
    }
    (!blocks.is_whole()).then_some(SNAPSHOT_BLOCKS_AT)
}

/// Whether a block of a later snapshot lies in the file.
fn has_later_block(reader: &mut Reader<'_>, header: SnapshotHeader, identity: JournalIdentity) -> bool {
    let mut position = SNAPSHOT_BLOCKS_AT;
    while position + PAGE_BYTES as u64 <= reader.file_bytes() {
        let page = reader.at(position, PAGE_BYTES).ok();
        let block = page.and_then(|page| BlockHeader::read(page, identity));
        let is_later = block.is_some_and(|block| {
            block.kind.get() == BlockKind::Snapshot as u16
                && (block.sequence.get() >> BLOCKS_SHIFT) > header.sequence.0
        });
        if is_later {
            return true;
        }
        position += PAGE_BYTES as u64;
    }
    false
}

/// What is wrong with them.
pub(super) fn problems(snapshots: &[SnapshotFile]) -> Vec<Problem> {
    let damaged = snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Damaged);
    let problem = |snapshot: &SnapshotFile| Problem {
        kind: ProblemKind::Snapshot,
        file: name_of(File::Snapshot(snapshot.number)),
        position: snapshot.bad_at,
        what: match snapshot.header {
            Some(header) => format!("snapshot {} is damaged: a start does without it", header.sequence.0),
            None => "the snapshot's first page is damaged: a start does without it".to_owned(),
        },
        records: None,
    };
    damaged.map(problem).collect()
}
