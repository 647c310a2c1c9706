//! What a run has exercised, and the one way to say that a promise was broken.
//!
//! A simulator that has gone silent (no fault fires, nothing is acknowledged) passes every test. So each thing that
//! can happen is counted by its kind, and the tests demand that every kind happens.

use std::collections::BTreeMap;
use std::fmt;

/// Things that can happen in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    PowerCut,
    Kill,
    PowerCutAfterKill,
    Shutdown,
    CrashInRecovery,
    CrashAfterAck,
    CrashInAllocate,
    CrashInRemove,
    CrashInSyncAll,
    CrashInCompaction,
    WriteKept,
    WriteDropped,
    WriteTorn,
    WriteReordered,
    WriteLandedAfterKill,
    /// After a power cut, a file was as long as before it was shrunk.
    ShrinkUndone,
    CompletedOutOfOrder,
    SlowOperation,
    StuckOperation,
    WriteError,
    ShortWrite,
    FlushError,
    SegmentReadError,
    OtherReadError,
    NoSpace,
    Reset,
    HangUp,
    Stall,
    Split,
    Busy,
    DiskFull,
    Resumed,
    ResumedEarly,
    GivenUp,
    BrokenBatch,
    RecordAcked,
    RecordDelivered,
    RecordUnknown,
    RecordRefused,
    TopicCreated,
    TopicDeleted,
    Fetched,
    StartedFromTime,
    /// A client was told that a partition starts later than before.
    StartMoved,
    /// Retention overtook a reader.
    ToldOutOfRange,
    Audit,
    ClockJump,
    MarkerBlock,
    /// A journal file was begun again.
    JournalWrapped,
    /// A file for a segment was asked for.
    SegmentMade,
    SegmentGrown,
    /// The journal says so.
    SegmentOpened,
    SegmentClosed,
    /// Its last page and its footer were written.
    SegmentSealed,
    SegmentShrunk,
    SegmentRemoved,
    SegmentsTrimmed,
    CompactionBegun,
    /// The journal says so.
    SegmentsReplaced,
    /// A write to a segment.
    WrittenBehind,
    SyncedAll,
    SnapshotPublished,
    /// A segment was read while the shard served.
    ColdRead,
    RecoveryTorn,
    RecoveryClean,
    RecoveryFromJournal,
    RecoveryFromSnapshot,
    RecoveryFromOlderSnapshot,
    BitRot,
    Misdirected,
    StartRefused,
    /// A reader was told of a damaged range.
    ToldCorrupt,
}

impl Kind {
    /// What must happen over the fixed seeds.
    pub(crate) const ALL: &'static [Self] = &[
        Self::PowerCut,
        Self::Kill,
        Self::PowerCutAfterKill,
        Self::Shutdown,
        Self::CrashInRecovery,
        Self::CrashAfterAck,
        Self::CrashInAllocate,
        Self::CrashInSyncAll,
        Self::WriteKept,
        Self::WriteDropped,
        Self::WriteTorn,
        Self::WriteReordered,
        Self::WriteLandedAfterKill,
        Self::ShrinkUndone,
        Self::CompletedOutOfOrder,
        Self::SlowOperation,
        Self::StuckOperation,
        Self::WriteError,
        Self::ShortWrite,
        Self::FlushError,
        Self::SegmentReadError,
        Self::OtherReadError,
        Self::NoSpace,
        Self::Reset,
        Self::HangUp,
        Self::Stall,
        Self::Split,
        Self::Busy,
        Self::DiskFull,
        Self::Resumed,
        Self::ResumedEarly,
        Self::GivenUp,
        Self::BrokenBatch,
        Self::RecordAcked,
        Self::RecordDelivered,
        Self::RecordUnknown,
        Self::RecordRefused,
        Self::TopicCreated,
        Self::TopicDeleted,
        Self::Fetched,
        Self::StartedFromTime,
        Self::StartMoved,
        Self::ToldOutOfRange,
        Self::Audit,
        Self::ClockJump,
        Self::MarkerBlock,
        Self::JournalWrapped,
        Self::SegmentMade,
        Self::SegmentGrown,
        Self::SegmentOpened,
        Self::SegmentClosed,
        Self::SegmentSealed,
        Self::SegmentShrunk,
        Self::SegmentRemoved,
        Self::SegmentsTrimmed,
        Self::WrittenBehind,
        Self::SyncedAll,
        Self::SnapshotPublished,
        Self::ColdRead,
        Self::RecoveryTorn,
        Self::RecoveryClean,
        Self::RecoveryFromJournal,
        Self::RecoveryFromSnapshot,
        Self::CompactionBegun,
        Self::CrashInCompaction,
        Self::SegmentsReplaced,
    ];

    /// What must happen over seeds in which bytes rot.
    pub(crate) const ROT: &'static [Self] =
        &[Self::CrashInRemove, Self::BitRot, Self::Misdirected, Self::StartRefused, Self::ToldCorrupt];
}

/// Counts by kind, and a hash of everything that went in and out of the shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    counts: BTreeMap<Kind, u64>,
    /// Client operations begun.
    pub(crate) operations: u64,
    /// Turns of the shard.
    pub(crate) turns: u64,
    /// The same for the same seed.
    pub(crate) trace: u64,
}

impl Report {
    pub(crate) fn add(&mut self, kind: Kind, count: u64) {
        *self.counts.entry(kind).or_default() += count;
    }

    /// How often a life ended without a clean end.
    pub(crate) fn crash_count(&self) -> u64 {
        [Kind::PowerCut, Kind::Kill, Kind::PowerCutAfterKill].into_iter().map(|kind| self.count(kind)).sum()
    }

    pub(crate) fn count(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or_default()
    }

    /// Those of the kinds that never happened.
    pub(crate) fn missing(&self, wanted: &[Kind]) -> Vec<Kind> {
        wanted.iter().copied().filter(|kind| self.count(*kind) == 0).collect()
    }

    /// Adds another run's counts.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (kind, count) in &other.counts {
            self.add(*kind, *count);
        }
        self.operations += other.operations;
        self.turns += other.turns;
    }

    /// Adds to the trace (FNV-1a over words).
    pub(crate) fn note(&mut self, words: &[u64]) {
        for word in words {
            self.trace = (self.trace ^ word).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} operations, {} turns", self.operations, self.turns)?;
        for (kind, count) in &self.counts {
            write!(f, ", {kind:?} {count}")?;
        }
        Ok(())
    }
}

/// A promise that was broken, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says that a promise was broken.
pub(crate) fn violation<T>(what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation(what.into()))
}
