//! The segments that the state names: is each there, is it the right one, is every batch in it good.
//!
//! Of a sealed segment all must be on disk. Of an open or closed one it is what the snapshot counts on: whole pages up
//! to where its partition was captured. What came later is in the journal, and was checked with that.

use std::collections::BTreeSet;

use protocol::ids::Offset;

use super::disk::Disk;
use super::problem::{Problem, ProblemKind, RecordRange, name_of};
use super::report::{PartitionFacts, SegmentFacts, TopicFacts, UnnamedSegment};
use crate::io::{File, IoError};
use crate::limits::{PAGE_BYTES, RECOVERY_READ_BYTES, SEGMENT_FOOTER_BYTES};
use crate::log::{
    CheckEnd, Expected, FooterFacts, Position, Segment, SegmentHeader, SegmentNumber, SegmentState,
    SparseIndex, check_stored,
};
use crate::partition::Partition;
use crate::shard::offline::Offline;

/// Checks every segment of every partition.
pub(super) fn look(
    disk: &Disk,
    offline: &Offline,
    directory_id: u128,
    problems: &mut Vec<Problem>,
) -> Vec<TopicFacts> {
    let mut topics = Vec::new();
    for topic in offline.topics() {
        let mut partitions = Vec::new();
        for partition in offline.partitions_of(topic.key) {
            let mut check =
                Check { disk, directory_id, topic: &topic.name, partition, problems: &mut *problems };
            let segments = partition.log.segments().iter().map(|segment| check.segment(segment)).collect();
            partitions.push(PartitionFacts {
                handle: partition.handle,
                start: partition.start(),
                end: partition.appended_end(),
                segments,
            });
        }
        topics.push(TopicFacts { name: topic.name.to_string(), partitions });
    }
    topics
}

/// The segments that the state names.
pub(super) fn named(offline: &Offline) -> BTreeSet<SegmentNumber> {
    let partitions = offline.topics().flat_map(|topic| offline.partitions_of(topic.key));
    partitions.flat_map(|partition| partition.log.segments()).map(|segment| segment.number).collect()
}

/// The other segment files.
pub(super) fn unnamed(disk: &Disk, named: &BTreeSet<SegmentNumber>) -> Vec<UnnamedSegment> {
    let unnamed = disk.files().iter().filter_map(|(file, bytes)| match file {
        File::Segment(number) if !named.contains(&SegmentNumber(*number)) => Some((*number, *bytes)),
        File::Segment(_) | File::Superblock | File::Journal(_) | File::Snapshot(_) => None,
    });
    let facts_of = |number: u64, bytes: u64| {
        let position = bytes.checked_sub(SEGMENT_FOOTER_BYTES as u64)?;
        let footer = disk.bytes(File::Segment(number), position, SEGMENT_FOOTER_BYTES).ok()?;
        FooterFacts::read(&footer)
    };
    unnamed
        .map(|(number, bytes)| UnnamedSegment {
            number: SegmentNumber(number),
            bytes,
            facts: facts_of(number, bytes),
        })
        .collect()
}

/// A place in a log, and the offset of the batch that begins there.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Position,
    offset: Offset,
}

/// Checks the segments of one partition.
struct Check<'a> {
    disk: &'a Disk,
    directory_id: u128,
    topic: &'a str,
    partition: &'a Partition,
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    fn segment(&mut self, segment: &Segment) -> SegmentFacts {
        let before = self.problems.len();
        let checked_bytes = self.file(segment);
        SegmentFacts {
            number: segment.number,
            state: segment.state,
            base_offset: segment.base_offset,
            end_offset: segment.end_offset,
            bytes: segment.bytes(),
            checked_bytes,
            is_damaged: self.problems.len() > before,
        }
    }

    /// Gives the bytes of batches that were found good.
    fn file(&mut self, segment: &Segment) -> u64 {
        let end = self.end_of_check(segment);
        if self.disk.bytes_of(segment.file()).is_none() {
            let what = if end.at > segment.base {
                "the file is missing: its records cannot be read"
            } else {
                "the file is missing: a broker cannot write to it"
            };
            let records = self.records(segment.base_offset, end.offset);
            self.report(segment, ProblemKind::SegmentMissing, None, what, records);
            return 0;
        }
        self.header(segment);
        let footer = self.footer(segment);
        self.batches(segment, footer.as_ref().unwrap_or(&segment.index), end)
    }

    /// Where the batches end that are not in the journal.
    fn end_of_check(&self, segment: &Segment) -> Mark {
        let end = Mark { at: segment.end, offset: segment.end_offset };
        if segment.state == SegmentState::Sealed {
            return end;
        }
        let tail = &self.partition.log.tail;
        let in_journal =
            Mark { at: tail.start(), offset: tail.start_offset().unwrap_or(self.partition.appended_end()) };
        if in_journal.at <= segment.base {
            Mark { at: segment.base, offset: segment.base_offset }
        } else if in_journal.at < segment.end {
            in_journal
        } else {
            end
        }
    }

    fn header(&mut self, segment: &Segment) {
        let page = self.disk.bytes(segment.file(), 0, PAGE_BYTES);
        let header = page.ok().and_then(|page| SegmentHeader::read(&page));
        let what = match header {
            None => "the first page is damaged; records are read without it",
            Some(header)
                if header.directory_id != self.directory_id
                    || header.number != segment.number
                    || header.partition != self.partition.handle =>
            {
                "the first page is another segment's"
            }
            Some(_) => return,
        };
        self.report(segment, ProblemKind::SegmentHeader, Some(0), what, None);
    }

    /// The index of a sealed segment, if it is good.
    fn footer(&mut self, segment: &Segment) -> Option<SparseIndex> {
        if segment.state != SegmentState::Sealed {
            return None;
        }
        let position = segment.footer_position();
        let footer = self.disk.bytes(segment.file(), position, SEGMENT_FOOTER_BYTES).ok();
        let index =
            footer.and_then(|footer| SparseIndex::read_footer(&footer, segment, self.partition.handle));
        if index.is_none() {
            let what = "the index is damaged: a search reads the segment from its start";
            self.report(segment, ProblemKind::SegmentIndex, Some(position), what, None);
        }
        index
    }

    /// Checks batch after batch; behind a bad one it goes on where the index knows of the next, as the broker does.
    fn batches(&mut self, segment: &Segment, index: &SparseIndex, end: Mark) -> u64 {
        let mut mark = Mark { at: segment.base, offset: segment.base_offset };
        let (mut needed, mut is_careful, mut good_bytes) = (PAGE_BYTES, false, 0);
        while mark.at < end.at {
            let left = (end.at.0 - mark.at.0) as usize;
            let wanted = if is_careful { needed } else { needed.max(RECOVERY_READ_BYTES) };
            let what = match self.read(segment, mark.at, wanted.min(left)) {
                Ok(bytes) => {
                    let expected = Expected {
                        partition: self.partition.handle,
                        offset: mark.offset,
                        has_gaps: segment.is_compacted,
                    };
                    let checked = check_stored(&bytes, expected);
                    mark = Mark { at: mark.at.plus(checked.bytes as u64), offset: checked.next_offset };
                    good_bytes += checked.bytes as u64;
                    let more = match checked.end {
                        CheckEnd::Complete => Some(PAGE_BYTES),
                        CheckEnd::NeedsBytes(more) => Some(more).filter(|more| *more <= left - checked.bytes),
                        CheckEnd::Damaged => None,
                    };
                    if let Some(more) = more {
                        needed = more;
                        continue;
                    }
                    "records are damaged".to_owned()
                }
                // A shorter read may spare what cannot be read.
                Err(_) if !is_careful => {
                    is_careful = true;
                    continue;
                }
                Err(error) => format!("records cannot be read ({error})"),
            };
            let next = next_known(segment, index, mark.at, end);
            let position = segment.file_position(mark.at);
            let records = self.records(mark.offset, next.offset.max(mark.offset.plus(1)));
            self.report(segment, ProblemKind::SegmentRecords, Some(position), &what, records);
            (mark, needed, is_careful) = (next, PAGE_BYTES, false);
        }
        self.check_end(segment, mark, end);
        good_bytes
    }

    /// What was found must end where the state says.
    fn check_end(&mut self, segment: &Segment, found: Mark, end: Mark) {
        let is_it =
            if segment.is_compacted { found.offset <= end.offset } else { found.offset == end.offset };
        if !is_it {
            let records = self.records(found.offset.min(end.offset), found.offset.max(end.offset));
            let position = Some(segment.file_position(end.at));
            let what = format!("its records end before offset {}, not before {}", found.offset, end.offset);
            self.report(segment, ProblemKind::SegmentRecords, position, &what, records);
        }
    }

    /// Bytes of the log: from the file, and those of a page that was not full from the snapshot.
    fn read(&self, segment: &Segment, at: Position, length: usize) -> Result<Vec<u8>, IoError> {
        let end = at.plus(length as u64);
        let on_disk = match segment.state {
            SegmentState::Sealed => segment.end,
            _ => self.partition.log.written(),
        };
        let from_disk = (on_disk.0.clamp(at.0, end.0) - at.0) as usize;
        let mut bytes = vec![0; length];
        self.disk.read(segment.file(), segment.file_position(at), &mut bytes[..from_disk])?;
        if from_disk < length {
            let from = at.plus(from_disk as u64);
            let (base, in_memory) = self.partition.log.tail.before_first_batch().ok_or(IoError::SHORT)?;
            let start = from.0.checked_sub(base.0).ok_or(IoError::SHORT)? as usize;
            let rest = in_memory.get(start..start + length - from_disk).ok_or(IoError::SHORT)?;
            bytes[from_disk..].copy_from_slice(rest);
        }
        Ok(bytes)
    }

    fn records(&self, from: Offset, end: Offset) -> Option<RecordRange> {
        let topic = Some(self.topic.to_owned());
        (from < end).then_some(RecordRange { topic, handle: self.partition.handle, from, end })
    }

    fn report(
        &mut self,
        segment: &Segment,
        kind: ProblemKind,
        position: Option<u64>,
        what: &str,
        records: Option<RecordRange>,
    ) {
        let file = name_of(segment.file());
        self.problems.push(Problem { kind, file, position, what: what.to_owned(), records });
    }
}

/// The next batch behind a place that is known of without reading: by the index, or else the end.
fn next_known(segment: &Segment, index: &SparseIndex, at: Position, end: Mark) -> Mark {
    let (next, offset) = segment.look_behind(index, at);
    if next < end.at { Mark { at: next, offset } } else { end }
}
