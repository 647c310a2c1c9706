//! What a disk operation was asked for: the upper byte of its token.
//!
//! The journal's own tokens have a zero there: sequences have 48 bits.

use crate::io::Token;

const SHIFT: u32 = 56;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// The journal; the whole token is its own.
    Journal,
    /// Write-behind; the value is the write's index.
    WriteBehind,
    /// A block of a snapshot.
    SnapshotBlock,
    /// The first page of a snapshot.
    SnapshotHeader,
    /// Making segments durable for a checkpoint.
    SegmentFlush,
    /// A read behind the tails; the value is the stream's index.
    ColdRead,
    /// A compaction; there is one at a time.
    Compaction,
}

const ALL: [Work; 7] = [
    Work::Journal,
    Work::WriteBehind,
    Work::SnapshotBlock,
    Work::SnapshotHeader,
    Work::SegmentFlush,
    Work::ColdRead,
    Work::Compaction,
];

impl Work {
    /// A token for one operation of this kind.
    pub(super) fn token(self, value: u32) -> Token {
        Token((self as u64) << SHIFT | u64::from(value))
    }

    /// Who asked, and with which value.
    pub(super) fn of(token: Token) -> (Self, u32) {
        let kind = ALL.get((token.0 >> SHIFT) as usize).copied();
        (kind.expect("tokens are made here or by the journal"), token.0 as u32)
    }
}
