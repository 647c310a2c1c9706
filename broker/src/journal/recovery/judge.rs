//! The verdict on the first block that is not the successor of the one before: a torn tail, or rot.
//!
//! A torn tail was promised to nobody and is cut; rot in what was durable is never cut, only refused.

use super::super::{BlockSequence, Place};
use super::RecoveryError;
use crate::limits::JOURNAL_BLOCKS_IN_FLIGHT_MAX;

/// What is known to have been durable, whatever the first bad block looks like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    /// From valid blocks behind the bad one, of any epoch.
    pub(super) durable: BlockSequence,
    /// From the superblock: every block before it was good when the epoch began.
    pub(super) first_of_epoch: BlockSequence,
}

impl Evidence {
    /// What a valid block says was durable when it was sealed: the LSN that it carries, and, as at most K blocks
    /// (itself included) are sealed and not durable, everything K before it.
    pub(super) fn of_block(sequence: BlockSequence, durable: BlockSequence) -> BlockSequence {
        let bound = sequence.0.saturating_sub(JOURNAL_BLOCKS_IN_FLIGHT_MAX as u64);
        BlockSequence(durable.0.max(bound))
    }

    /// # Errors
    /// `Corrupt` when the block that should be at `bad_at` is known to have been durable.
    pub(super) fn judge(&self, bad_at: Place, expected: BlockSequence) -> Result<(), RecoveryError> {
        let durable = self.durable.0.max(self.first_of_epoch.0.saturating_sub(1));
        if durable < expected.0 {
            return Ok(());
        }
        Err(RecoveryError::Corrupt {
            file: bad_at.file as u32,
            position: bad_at.position,
            sequence: expected.0,
            durable,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: Place = Place { file: 2, position: 8192 };

    fn verdict(durable: u64, first_of_epoch: u64, expected: u64) -> Result<(), RecoveryError> {
        let evidence =
            Evidence { durable: BlockSequence(durable), first_of_epoch: BlockSequence(first_of_epoch) };
        evidence.judge(BAD, BlockSequence(expected))
    }

    #[test]
    fn what_nobody_was_told_about_is_a_torn_tail() {
        assert_eq!(verdict(9, 10, 10), Ok(()));
    }

    #[test]
    fn a_block_that_was_durable_is_corruption() {
        let corrupt = RecoveryError::Corrupt { file: 2, position: 8192, sequence: 10, durable: 10 };
        assert_eq!(verdict(10, 1, 10), Err(corrupt));
        assert_eq!(verdict(0, 11, 10), Err(corrupt));
    }

    #[test]
    fn more_damage_than_can_be_in_flight_is_evidence() {
        let seen = Evidence::of_block(BlockSequence(14), BlockSequence(3));
        assert_eq!(seen, BlockSequence(10));
    }
}
