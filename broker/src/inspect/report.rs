//! What an inspection found, as data: the command line prints it, and `json` writes it for programs.
//!
//! Facts are listed kind by kind. What is wrong stands once more among the problems, each with its place and, where
//! that is known, with the records that it concerns.

use std::path::{Path, PathBuf};

use protocol::ids::{Handle, Offset};

use super::problem::{Problem, RecordRange};
use crate::journal::recovery::{RecoveryError, RecoveryReport};
use crate::journal::snapshot::SnapshotHeader;
use crate::journal::superblock::Superblock;
use crate::journal::{BlockSequence, Epoch};
use crate::log::{FooterFacts, SegmentNumber, SegmentState};

/// All that was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The data directory.
    pub directory: PathBuf,
    /// The copies of the superblock, in their order; empty when there is no such file.
    pub superblock: Vec<CopyState>,
    /// The journal files, by number.
    pub journal: Vec<JournalFile>,
    /// The snapshot files that are there.
    pub snapshots: Vec<SnapshotFile>,
    /// What a start would do.
    pub outcome: Outcome,
    /// Topics, partitions and segments, as far as the state could be recovered.
    pub topics: Vec<TopicFacts>,
    /// Segment files that this state does not name: spares, and what the next start removes.
    pub unnamed: Vec<UnnamedSegment>,
    /// What acknowledged entries are lost if the journal is cut where it is damaged.
    pub loss: Option<Loss>,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

/// In one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong.
    Clean,
    /// Something is, and a broker would serve all the rest.
    Damaged,
    /// A broker would refuse to start.
    Refused,
}

/// What a start would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Serve.
    Starts {
        /// What recovery says of itself.
        report: RecoveryReport,
        /// Sequence of the block that would be written next.
        next_sequence: BlockSequence,
    },
    /// Refuse, for this reason.
    Refuses(RecoveryError),
    /// Refuse, because of a file that looks like one of ours and is not.
    UnknownFile(PathBuf),
}

/// One copy of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// It says this.
    Valid(Superblock),
    /// Only zeros.
    Empty,
    /// Its checksum does not match, or it cannot be read.
    Damaged,
    /// Of this version of the format, which is another one.
    Version(u32),
}

/// A journal file. Blocks of earlier uses of the file are counted, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalFile {
    /// Its number.
    pub number: u32,
    /// Its length.
    pub bytes: u64,
    /// Whole blocks with entries.
    pub data_blocks: u64,
    /// Whole blocks that carry only the durable LSN.
    pub marker_blocks: u64,
    /// Whole blocks of other kinds.
    pub other_blocks: u64,
    /// The lowest sequence of a whole block, and the highest.
    pub sequences: Option<(BlockSequence, BlockSequence)>,
    /// Valid headers whose block is not. They may be left of a tail that was cut: only recovery can tell.
    pub bad_blocks: Vec<BadBlock>,
}

/// A valid block header before something else than its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBlock {
    /// Place in the file.
    pub position: u64,
    /// What the header says.
    pub sequence: BlockSequence,
    /// What the header says.
    pub epoch: Epoch,
}

/// What became of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotState {
    /// There is none in the file.
    Empty,
    /// Every block of it is good.
    Valid,
    /// A later one was being written over it when the broker ended: this is no damage.
    Overwritten,
    /// Its header or one of its blocks does not match its checksum.
    Damaged,
}

/// A snapshot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its number.
    pub number: u8,
    /// Its length.
    pub bytes: u64,
    /// What became of the snapshot in it.
    pub state: SnapshotState,
    /// Its first page, if that is good.
    pub header: Option<SnapshotHeader>,
    /// Place of the first bad page.
    pub bad_at: Option<u64>,
}

/// A topic and its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicFacts {
    /// Its name.
    pub name: String,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionFacts>,
}

/// A partition and its segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionFacts {
    /// Its handle.
    pub handle: Handle,
    /// Offset of the first record that is kept.
    pub start: Offset,
    /// Offset behind the last one.
    pub end: Offset,
    /// Its segments, oldest first.
    pub segments: Vec<SegmentFacts>,
}

/// A segment that the state names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFacts {
    /// Names its file.
    pub number: SegmentNumber,
    /// How far it has come.
    pub state: SegmentState,
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Offset behind its last one.
    pub end_offset: Offset,
    /// Bytes of batches.
    pub bytes: u64,
    /// Bytes of batches that were checked: those that the journal does not hold.
    pub checked_bytes: u64,
    /// Something is wrong with it: see the problems.
    pub is_damaged: bool,
}

/// A segment file that the state does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnnamedSegment {
    /// Names the file.
    pub number: SegmentNumber,
    /// Its length.
    pub bytes: u64,
    /// What its last pages say, if it is sealed.
    pub facts: Option<FooterFacts>,
}

/// What a cut of the journal loses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Sequence of the first block that goes.
    pub first: BlockSequence,
    /// Sequence of the last one that is known of.
    pub last: BlockSequence,
    /// How many of these can still be read whole: only of them it is known what they hold.
    pub readable_blocks: u64,
    /// Records in them.
    pub partitions: Vec<RecordRange>,
    /// Topics that were created in them.
    pub topics_created: Vec<String>,
    /// Other entries in them: of segments, trims, deletions.
    pub other_entries: u64,
}

impl Report {
    /// A report of nothing but the outcome.
    pub(super) fn new(directory: &Path, outcome: Outcome) -> Self {
        Self {
            directory: directory.to_owned(),
            superblock: Vec::new(),
            journal: Vec::new(),
            snapshots: Vec::new(),
            outcome,
            topics: Vec::new(),
            unnamed: Vec::new(),
            loss: None,
            problems: Vec::new(),
        }
    }

    /// In one word.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self.outcome {
            Outcome::Refuses(_) | Outcome::UnknownFile(_) => Verdict::Refused,
            Outcome::Starts { .. } if self.problems.is_empty() => Verdict::Clean,
            Outcome::Starts { .. } => Verdict::Damaged,
        }
    }

    /// The copy of the superblock that counts.
    #[must_use]
    pub fn newest_superblock(&self) -> Option<Superblock> {
        newest_of(&self.superblock)
    }
}

/// The copy that counts: of those that are valid, the one with the highest epoch.
pub(super) fn newest_of(copies: &[CopyState]) -> Option<Superblock> {
    let valid = copies.iter().filter_map(|copy| match copy {
        CopyState::Valid(superblock) => Some(*superblock),
        CopyState::Empty | CopyState::Damaged | CopyState::Version(_) => None,
    });
    valid.max_by_key(|superblock| superblock.epoch)
}

impl Verdict {
    /// For programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Damaged => "damaged",
            Self::Refused => "refused",
        }
    }

    /// The process's exit code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Damaged => 1,
            Self::Refused => 4,
        }
    }
}

impl Outcome {
    /// Why a start would refuse; `None` if it would serve.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        match self {
            Self::Starts { .. } => None,
            Self::Refuses(error) => Some(error.to_string()),
            Self::UnknownFile(path) => {
                Some(format!("{} is not a file that a broker knows; move it away", path.display()))
            }
        }
    }
}

impl CopyState {
    /// For programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Valid(_) => "valid",
            Self::Empty => "empty",
            Self::Damaged => "damaged",
            Self::Version(_) => "other_version",
        }
    }
}

impl SnapshotState {
    /// For programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Valid => "valid",
            Self::Overwritten => "overwritten",
            Self::Damaged => "damaged",
        }
    }
}

/// For programs and people.
#[must_use]
pub fn state_name(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Open => "open",
        SegmentState::Closing | SegmentState::Closed | SegmentState::Sealing => "closed",
        SegmentState::Sealed => "sealed",
    }
}
