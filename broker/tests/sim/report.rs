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
    WriteKept,
    WriteDropped,
    WriteTorn,
    WriteReordered,
    WriteLandedAfterKill,
    CompletedOutOfOrder,
    SlowOperation,
    WriteError,
    FlushError,
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
    RecoveryTorn,
    RecoveryClean,
    MarkerBlock,
    RecordAcked,
    RecordDelivered,
    RecordUnknown,
    RecordRefused,
    TopicCreated,
    TopicDeleted,
    Fetched,
    ClockJump,
    Audit,
}

impl Kind {
    /// All of them: each must happen over a set of seeds.
    pub(crate) const ALL: [Self; 38] = [
        Self::PowerCut,
        Self::Kill,
        Self::PowerCutAfterKill,
        Self::Shutdown,
        Self::CrashInRecovery,
        Self::CrashAfterAck,
        Self::WriteKept,
        Self::WriteDropped,
        Self::WriteTorn,
        Self::WriteReordered,
        Self::WriteLandedAfterKill,
        Self::CompletedOutOfOrder,
        Self::SlowOperation,
        Self::WriteError,
        Self::FlushError,
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
        Self::RecoveryTorn,
        Self::RecoveryClean,
        Self::MarkerBlock,
        Self::RecordAcked,
        Self::RecordDelivered,
        Self::RecordUnknown,
        Self::RecordRefused,
        Self::TopicCreated,
        Self::TopicDeleted,
        Self::Fetched,
        Self::ClockJump,
        Self::Audit,
    ];
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

    /// Kinds that never happened.
    pub(crate) fn missing(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| self.count(*kind) == 0).collect()
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
