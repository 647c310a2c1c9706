//! What recovery would do, found out by recovery itself.
//!
//! The state machine of a start runs on the real files. It reads what is there; from its first write on, nothing of
//! what it asks for is done. So its verdict and that of `serve` cannot differ.

use std::collections::VecDeque;

use reactor::memory::Pool;

use super::disk::Disk;
use crate::io::{Completion, Op};
use crate::journal::block::Entry;
use crate::journal::recovery::{Recovered, Recovery, RecoveryConfig, RecoveryError, RecoveryReport, Replay};
use crate::journal::{BlockSequence, Durability, JournalLayout};
use crate::limits::{JOURNAL_BYTES_DEFAULT, JOURNAL_FILE_BYTES_DEFAULT};

/// The shard whose journal is looked at: this version serves one.
pub(super) const SHARD: u16 = 0;
const SHARD_COUNT: u32 = 1;

/// A recovery that would have come to its end.
#[derive(Debug)]
pub(super) struct DryRun {
    pub(super) recovered: Recovered,
    pub(super) report: RecoveryReport,
}

/// Takes entries and forgets them: for asking about the chain of blocks alone.
#[derive(Debug)]
pub(super) struct ChainOnly;

impl Replay for ChainOnly {
    fn reset(&mut self) {}

    fn restore(&mut self, _: Entry<'_>) -> Result<(), RecoveryError> {
        Ok(())
    }

    fn replay(&mut self, _: Entry<'_>) -> Result<(), RecoveryError> {
        Ok(())
    }

    fn finish(&mut self, _: BlockSequence) -> Result<(), RecoveryError> {
        Ok(())
    }
}

/// Runs recovery; `replay` gets what it finds, as far as it comes.
///
/// # Errors
/// Why `serve` would refuse to start.
pub(super) fn dry_run(disk: &Disk, pool: &Pool, replay: &mut impl Replay) -> Result<DryRun, RecoveryError> {
    let config = RecoveryConfig {
        shard: SHARD,
        shard_count: SHARD_COUNT,
        fresh_directory_id: 0,
        layout: JournalLayout {
            file_bytes: JOURNAL_FILE_BYTES_DEFAULT,
            file_count: (JOURNAL_BYTES_DEFAULT / JOURNAL_FILE_BYTES_DEFAULT) as u32,
        },
        files: disk.files().clone(),
        durability: Durability::WriteThenFlush,
    };
    let mut ops = Vec::new();
    let mut recovery = Recovery::new(config, pool.clone(), &mut ops)?;
    let mut asked = VecDeque::from(ops);
    while let Some(op) = asked.pop_front() {
        let mut ops = Vec::new();
        if let Some(recovered) = recovery.on_completion(carry_out(disk, op), &mut ops, replay)? {
            return Ok(DryRun { recovered, report: recovery.report() });
        }
        asked.extend(ops);
    }
    unreachable!("recovery asks for something until it has ended")
}

/// Reads are made; what would change or flush a file is only said to be done.
fn carry_out(disk: &Disk, op: Op) -> Completion {
    let result = Ok(());
    match op {
        Op::Read { token, file, position, mut buffer, bytes } => {
            let result = disk.read(file, position, &mut buffer[..bytes]);
            Completion::ReadDone { token, buffer, result }
        }
        Op::SyncAll { token } => Completion::AllSynced { token, result },
        Op::Flush { token, .. } => Completion::Flushed { token, result },
        Op::Write { token, .. } => Completion::Written { token, result },
        Op::PrepareFile { file, .. } => Completion::FilePrepared { file, result },
        Op::Receive { .. }
        | Op::Send { .. }
        | Op::Close { .. }
        | Op::Allocate { .. }
        | Op::Shrink { .. }
        | Op::Remove { .. }
        | Op::Compact { .. } => unreachable!("recovery asks for nothing of the kind"),
    }
}
