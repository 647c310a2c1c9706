//! The copies of the superblock.
//!
//! One good copy is enough for a start, which then writes both; a copy that is bad until then is damage all the same.

use super::disk::Disk;
use super::problem::{Problem, ProblemKind, name_of};
use super::report::{CopyState, newest_of};
use crate::io::File;
use crate::journal::Epoch;
use crate::journal::superblock::{SUPERBLOCK_COPIES, Superblock, SuperblockError};
use crate::limits::PAGE_BYTES;

/// Reads the copies; none when there is no such file.
pub(super) fn look(disk: &Disk) -> Vec<CopyState> {
    if disk.bytes_of(File::Superblock).is_none() {
        return Vec::new();
    }
    (0..SUPERBLOCK_COPIES).map(|copy| state_of(disk, copy)).collect()
}

/// Where a copy lies.
pub(super) fn position_of(copy: usize) -> u64 {
    (copy * PAGE_BYTES) as u64
}

fn state_of(disk: &Disk, copy: usize) -> CopyState {
    let Ok(page) = disk.bytes(File::Superblock, position_of(copy), PAGE_BYTES) else {
        return CopyState::Damaged;
    };
    match Superblock::read(&page) {
        Ok(superblock) => CopyState::Valid(superblock),
        Err(SuperblockError::Empty) => CopyState::Empty,
        Err(SuperblockError::Damaged) => CopyState::Damaged,
        Err(SuperblockError::Version(version)) => CopyState::Version(version),
    }
}

/// Whether a copy should say what the other says. An empty second one is what a first start leaves that died.
pub(super) fn is_damaged(copies: &[CopyState], copy: usize) -> bool {
    match copies[copy] {
        CopyState::Valid(_) | CopyState::Version(_) => false,
        CopyState::Damaged => true,
        CopyState::Empty => newest_of(copies).is_some_and(|newest| copy == 0 || newest.epoch > Epoch(1)),
    }
}

/// What is wrong with them.
pub(super) fn problems(disk: &Disk, copies: &[CopyState]) -> Vec<Problem> {
    let problem = |position, what: &str| Problem {
        kind: ProblemKind::Superblock,
        file: name_of(File::Superblock),
        position,
        what: what.to_owned(),
        records: None,
    };
    if copies.is_empty() {
        let what = "it is missing, and other files are there: nothing says whose they are";
        return if disk.files().is_empty() { Vec::new() } else { vec![problem(None, what)] };
    }
    let has_good = newest_of(copies).is_some();
    let what = if has_good {
        "this copy is damaged; the other one is good"
    } else {
        "this copy is damaged, too, or empty"
    };
    let damaged = (0..copies.len()).filter(|copy| is_damaged(copies, *copy));
    damaged.map(|copy| problem(Some(position_of(copy)), what)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::BlockSequence;

    fn valid(epoch: u32) -> CopyState {
        CopyState::Valid(Superblock {
            directory_id: 7,
            shard_count: 1,
            epoch: Epoch(epoch),
            journal_file_count: 1,
            first_sequence: BlockSequence(1),
        })
    }

    #[test]
    fn an_empty_copy_is_damage_unless_the_first_start_died() {
        assert!(!is_damaged(&[valid(1), CopyState::Empty], 1));
        assert!(is_damaged(&[valid(2), CopyState::Empty], 1));
        assert!(is_damaged(&[CopyState::Empty, valid(1)], 0));
        assert!(!is_damaged(&[CopyState::Empty, CopyState::Empty], 0));
        assert!(is_damaged(&[CopyState::Damaged, valid(9)], 0));
        assert!(!is_damaged(&[valid(3), valid(2)], 1), "a start died between the two");
    }
}
