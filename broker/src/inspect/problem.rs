//! What is wrong, one thing at a time: where it is, what follows from it, and which records it concerns.
//!
//! Each is one line for people, and the same fields for programs.

use std::fmt;
use std::path::Path;

use protocol::ids::{Handle, Offset};

use crate::data_dir::path_of;
use crate::io::File;

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What kind of thing.
    pub kind: ProblemKind,
    /// The file, from the data directory on.
    pub file: String,
    /// Byte in it.
    pub position: Option<u64>,
    /// In words, with what follows from it.
    pub what: String,
    /// The records that cannot be read, if any.
    pub records: Option<RecordRange>,
}

/// What is wrong where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// The superblock is missing, or a copy of it cannot be used.
    Superblock,
    /// A block that was acknowledged is not valid, or recovery refuses for another reason.
    Recovery,
    /// Records in or behind such a block.
    JournalRecords,
    /// A block that only the older snapshot needs is not valid.
    OlderJournal,
    /// A snapshot is damaged.
    Snapshot,
    /// A segment's file is missing.
    SegmentMissing,
    /// A segment's first page is damaged or another one's.
    SegmentHeader,
    /// Records in a segment.
    SegmentRecords,
    /// A sealed segment's index is damaged.
    SegmentIndex,
}

/// Records of one partition, by offset: those from `from` on and before `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordRange {
    /// Name of the topic, if it is known.
    pub topic: Option<String>,
    /// The partition.
    pub handle: Handle,
    /// Offset of the first.
    pub from: Offset,
    /// Offset behind the last.
    pub end: Offset,
}

impl ProblemKind {
    /// For programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::Recovery => "recovery",
            Self::JournalRecords => "journal_records",
            Self::OlderJournal => "older_journal",
            Self::Snapshot => "snapshot",
            Self::SegmentMissing => "segment_missing",
            Self::SegmentHeader => "segment_header",
            Self::SegmentRecords => "segment_records",
            Self::SegmentIndex => "segment_index",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(position) = self.position {
            write!(f, " at byte {position}")?;
        }
        write!(f, ": {}", self.what)?;
        match &self.records {
            Some(records) => write!(f, ": {records}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for RecordRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.topic {
            Some(topic) => write!(f, "topic {topic}, partition {}", self.handle.partition())?,
            None => write!(f, "partition {}", self.handle)?,
        }
        write!(f, ", offsets {} to {}", self.from, self.end.0.saturating_sub(1))
    }
}

/// A file's name, from the data directory on.
pub(super) fn name_of(file: File) -> String {
    path_of(Path::new(""), file).display().to_string()
}

#[cfg(test)]
mod tests {
    use protocol::ids::TopicKey;

    use super::*;

    #[test]
    fn a_problem_is_one_line_with_its_place_and_its_records() {
        let handle = Handle::new(TopicKey { slot: 2, generation: 9 }, 1);
        let records = |topic| RecordRange { topic, handle, from: Offset(5), end: Offset(9) };
        let mut problem = Problem {
            kind: ProblemKind::SegmentRecords,
            file: name_of(File::Segment(0xa1)),
            position: Some(8192),
            what: "records cannot be read".to_owned(),
            records: Some(records(Some("orders".to_owned()))),
        };
        let line = "segments/00000000000000a1.seg at byte 8192: records cannot be read: \
                    topic orders, partition 1, offsets 5 to 8";
        assert_eq!(problem.to_string(), line);
        problem.records = Some(records(None));
        assert!(problem.to_string().ends_with(": partition 2.9/1, offsets 5 to 8"));
        problem = Problem { position: None, records: None, ..problem };
        assert_eq!(problem.to_string(), "segments/00000000000000a1.seg: records cannot be read");
    }
}
