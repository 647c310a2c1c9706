//! What a shard may never ask a disk for: each of these is its own bug, and ends the test at once.
//!
//! Bytes behind a file's end, half pages, a file after its removal, a number of a segment that was used before, two
//! writes in flight to the same bytes, and a file that is cut while somebody uses it.

use std::ops::Range;

use broker::io::{CompactJob, File, FileHeader, Op};
use broker::limits::{PAGE_BYTES, SEGMENT_HEADER_BYTES};

use super::{Disk, InFlight};
use crate::rot::is_segment;

impl Disk {
    /// Panics at what a shard may never ask for.
    pub(super) fn check(&self, op: &Op) {
        match op {
            Op::Read { file, position, bytes, .. } => {
                assert!(*bytes > 0, "a read of nothing from {file:?}");
                self.check_range(*file, *position, *bytes as u64);
            }
            Op::Write { file, position, data, .. } => {
                assert!(!data.is_empty(), "a write of nothing to {file:?}");
                let range = self.check_range(*file, *position, data.len() as u64);
                let overlaps = |other: &InFlight| {
                    let others = other.range().filter(|_| matches!(other, InFlight::Write(_)));
                    others.is_some_and(|(of, other)| {
                        of == *file && other.start < range.end && range.start < other.end
                    })
                };
                let is_alone = !self.in_flight.values().any(overlaps);
                assert!(is_alone, "two writes in flight overlap in {file:?} at {position}");
            }
            Op::Flush { file, .. } => {
                self.check_range(*file, 0, 0);
            }
            Op::Shrink { file, bytes } => {
                let kept = self.check_range(*file, 0, *bytes);
                let is_used = |other: &InFlight| {
                    other.range().is_some_and(|(of, range)| of == *file && range.end > kept.end)
                };
                let is_free = !self.in_flight.values().any(is_used);
                assert!(is_free, "{file:?} is shrunk to {bytes} while what is behind is used");
            }
            Op::Remove { file } => {
                self.check_range(*file, 0, 0);
                let is_used = |other: &InFlight| {
                    let is_read = matches!(other, InFlight::Read { file: of, .. } if of == file);
                    is_read || is_compacted_from(other, *file) || other.makes() == Some(*file)
                };
                let is_free = !self.in_flight.values().any(is_used);
                assert!(is_free, "{file:?} is removed while it is read or grows");
            }
            Op::Compact { job, .. } => self.check_compact(job),
            Op::Allocate { file, bytes, header } => self.check_allocate(*file, *bytes, header.as_deref()),
            Op::PrepareFile { .. }
            | Op::SyncAll { .. }
            | Op::Receive { .. }
            | Op::Send { .. }
            | Op::Close { .. } => {}
        }
    }

    /// Panics unless the file is there, is to stay, and has these bytes.
    fn check_range(&self, file: File, position: u64, bytes: u64) -> Range<usize> {
        assert!(!self.leaving.contains(&file), "{file:?} is used after its removal was asked for");
        let Some(image) = self.files.get(&file) else { panic!("{file:?} is used and is not there") };
        let page = PAGE_BYTES as u64;
        assert!(position.is_multiple_of(page), "{file:?} is used at {position}, which is no page's start");
        assert!(bytes.is_multiple_of(page), "{bytes} bytes of {file:?} are no whole pages");
        let (end, length) = (position + bytes, image.bytes() as u64);
        assert!(end <= length, "{file:?} has {length} bytes and is used from {position} up to {end}");
        position as usize..end as usize
    }

    /// Segments that are there, and a number that was not used before.
    fn check_compact(&self, job: &CompactJob) {
        assert!(!job.keys.is_empty() && !job.sources.is_empty(), "{job:?}");
        for source in job.keys.iter().chain(&job.sources) {
            let pages = source.bytes.next_multiple_of(PAGE_BYTES as u64);
            self.check_range(source.file, SEGMENT_HEADER_BYTES, pages);
        }
        let file = File::Segment(job.number);
        let is_new = !self.files.contains_key(&file) && !self.written_segments.contains(&file);
        assert!(is_new, "{file:?} was used before");
        let is_alone = !self.in_flight.values().any(|other| matches!(other, InFlight::Compact { .. }));
        assert!(is_alone, "two compactions at a time");
    }

    fn check_allocate(&self, file: File, bytes: u64, header: Option<&FileHeader>) {
        assert!(!self.leaving.contains(&file), "{file:?} grows after its removal was asked for");
        assert!(bytes > 0 && bytes.is_multiple_of(PAGE_BYTES as u64), "{file:?} with {bytes} bytes");
        match (self.files.get(&file), header) {
            (None, None) => assert!(!is_segment(file), "{file:?} is made without a header"),
            (None, Some(_)) => {
                let is_new = !self.written_segments.contains(&file);
                assert!(is_new, "{file:?} was written and removed before: its number is used twice");
            }
            (Some(image), Some(header)) => {
                let is_same = image.durable().starts_with(header);
                assert!(is_same, "{file:?} is there already, as something else");
            }
            (Some(_), None) => {}
        }
    }
}

/// Whether a compaction in flight reads this file.
fn is_compacted_from(in_flight: &InFlight, file: File) -> bool {
    let InFlight::Compact { job, .. } = in_flight else { return false };
    job.keys.iter().chain(&job.sources).any(|source| source.file == file)
}
