//! What a shard's operations on files tell of its inner life: counted, so that a storage which sleeps is seen.
//!
//! It also knows which snapshot is the newest that was published, and whether one is being made.

use std::collections::BTreeSet;

use broker::io::{File, Op};
use broker::limits::SEGMENT_FOOTER_BYTES;

use crate::disk::Disk;
use crate::luck::Luck;
use crate::report::Kind;

/// First bytes of the footer, which the last write to a segment ends with.
const FOOTER_MAGIC: &[u8] = b"FBSEGIX1";

/// Everything that was seen so far, over all starts.
#[derive(Debug, Default)]
pub(crate) struct OpWatch {
    /// Journal files whose first block was written.
    journal_begun: BTreeSet<File>,
    newest_snapshot: Option<File>,
    /// A snapshot was begun and is not published.
    is_capturing: bool,
}

impl OpWatch {
    /// An operation on a file is about to be carried out.
    pub(crate) fn on_op(&mut self, op: &Op, is_serving: bool, disk: &Disk, luck: &mut Luck) {
        let kind = match op {
            Op::Allocate { file: file @ File::Segment(_), .. } => {
                if disk.contains(*file) {
                    Kind::SegmentGrown
                } else {
                    Kind::SegmentMade
                }
            }
            Op::Shrink { file: File::Segment(_), .. } => Kind::SegmentShrunk,
            Op::Remove { file: File::Segment(_) } => Kind::SegmentRemoved,
            Op::SyncAll { .. } => Kind::SyncedAll,
            Op::Compact { .. } => Kind::CompactionBegun,
            Op::Read { file: File::Segment(_), .. } if is_serving => Kind::ColdRead,
            Op::Write { file: File::Segment(_), data, .. } => {
                luck.report.add(Kind::SegmentSealed, u64::from(ends_segment(data)));
                Kind::WrittenBehind
            }
            Op::Write { file: file @ File::Journal(_), position: 0, .. } => {
                if self.journal_begun.insert(*file) {
                    return;
                }
                Kind::JournalWrapped
            }
            Op::Write { file: file @ File::Snapshot(_), position, .. } => {
                // Its first page is written last.
                self.is_capturing = *position > 0;
                if self.is_capturing {
                    return;
                }
                self.newest_snapshot = Some(*file);
                Kind::SnapshotPublished
            }
            _ => return,
        };
        luck.count(kind);
    }

    /// Whether a snapshot is being made.
    pub(crate) fn is_capturing(&self) -> bool {
        self.is_capturing
    }

    /// The file of the newest snapshot that was published.
    pub(crate) fn newest_snapshot(&self) -> Option<File> {
        self.newest_snapshot
    }

    /// The process is gone, and what it was making with it.
    pub(crate) fn on_end(&mut self) {
        self.is_capturing = false;
    }
}

/// Whether a write ends with a segment's footer.
fn ends_segment(data: &[u8]) -> bool {
    let footer = data.len().checked_sub(SEGMENT_FOOTER_BYTES).and_then(|at| data.get(at..));
    footer.is_some_and(|footer| footer.starts_with(FOOTER_MAGIC))
}
