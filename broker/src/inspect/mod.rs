//! `forebay inspect`: looks at a data directory that nobody serves, and mends what can be mended.
//!
//! It verifies every checksum that there is, and asks recovery itself what a start would do. Looking changes no file
//! but `LOCK`, which it holds meanwhile. It judges nothing that recovery judges: the two can never disagree.

mod disk;
mod dry_run;
mod journal;
pub mod json;
pub mod problem;
pub mod repair;
pub mod report;
mod segments;
mod snapshots;
mod superblocks;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use reactor::memory::{MemoryError, Pool};

use crate::data_dir::{DataDir, DataDirError, LOCK_NAME, path_of, segments_of};
use crate::io::File;
use crate::journal::BlockSequence;
use crate::journal::block::JournalIdentity;
use crate::journal::recovery::RecoveryError;
use crate::limits::{PARTITIONS_MAX, TAIL_CHUNK_BYTES_MIN};
use crate::shard::offline::Offline;
use disk::Disk;
use dry_run::{ChainOnly, DryRun, SHARD, dry_run};
use problem::{Problem, ProblemKind, name_of};
use report::{Outcome, Report, SnapshotState};

/// Reading buffers, and what allocation rounds up.
const POOL_SPARE_BYTES: u64 = 64 << 20;
/// Enough for a recovery that keeps no records: two buffers of the longest block.
const CHAIN_POOL_BYTES: usize = 64 << 20;

/// Why a directory cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum CannotLook {
    /// Nothing in it has a name that a broker gives.
    #[error("{} is no data directory, or may not be read", .0.display())]
    NoDataDirectory(PathBuf),
    /// Somebody serves it, or looks at it.
    #[error("{} is in use by process {holder}: end that one first; a directory that is served cannot be inspected", .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// What the lock file says of its holder.
        holder: String,
    },
    /// It cannot be locked or listed.
    #[error("{0}")]
    DataDir(DataDirError),
    /// A file of it may not be read.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No memory.
    #[error("{0}")]
    Memory(#[from] MemoryError),
    /// The journal holds more records than memory was given for.
    #[error("memory does not hold the records of the journal: raise --memory-bytes")]
    OutOfMemory,
}

/// A locked directory.
#[derive(Debug)]
pub struct Inspection {
    data_dir: DataDir,
    memory_bytes: Option<u64>,
}

impl Inspection {
    /// Takes the directory's lock. `memory_bytes`: for the records of the journal, if not as much as they may need.
    ///
    /// # Errors
    /// See `CannotLook`.
    pub fn open(directory: &Path, memory_bytes: Option<u64>) -> Result<Self, CannotLook> {
        let known = [File::Superblock, File::Journal(0), File::Snapshot(0), File::Snapshot(1)];
        let is_ours = known.into_iter().any(|file| path_of(directory, file).exists())
            || directory.join(LOCK_NAME).exists()
            || segments_of(directory).exists();
        if !is_ours {
            return Err(CannotLook::NoDataDirectory(directory.to_owned()));
        }
        let data_dir = DataDir::open(directory, true).map_err(|error| match error {
            DataDirError::InUse { path, holder } => CannotLook::InUse { path, holder },
            other => CannotLook::DataDir(other),
        })?;
        Ok(Self { data_dir, memory_bytes })
    }

    /// Looks at everything.
    ///
    /// # Errors
    /// See `CannotLook`.
    pub fn look(&self) -> Result<Report, CannotLook> {
        match self.data_dir.files() {
            Ok(files) => {
                self.check_readable(&files)?;
                let pool = self.pool(&files)?;
                survey(&Disk::new(self.data_dir.path(), files), &pool)
            }
            Err(DataDirError::UnknownFile(path)) => {
                Ok(Report::new(self.data_dir.path(), Outcome::UnknownFile(path)))
            }
            Err(other) => Err(CannotLook::DataDir(other)),
        }
    }

    /// The files as they are, and memory for what they hold.
    fn disk(&self) -> Result<(Disk, Pool), CannotLook> {
        let files = self.data_dir.files().map_err(CannotLook::DataDir)?;
        let pool = self.pool(&files)?;
        Ok((Disk::new(self.data_dir.path(), files), pool))
    }

    /// What may not be read is no damage.
    fn check_readable(&self, files: &BTreeMap<File, u64>) -> Result<(), CannotLook> {
        for file in files.keys() {
            let path = self.data_dir.path_of(*file);
            if let Err(source) = fs::File::open(&path) {
                return Err(CannotLook::Unreadable { path, source });
            }
        }
        Ok(())
    }

    /// Address space; what is not used costs nothing. Tails take up to twice their records, for their chunks are powers
    /// of two, and one page for each partition.
    fn pool(&self, files: &BTreeMap<File, u64>) -> Result<Pool, CannotLook> {
        let journal_files = files.iter().filter(|(file, _)| matches!(file, File::Journal(_)));
        let journal_bytes: u64 = journal_files.map(|(_, bytes)| *bytes).sum();
        let pages_bytes = (PARTITIONS_MAX * TAIL_CHUNK_BYTES_MIN) as u64;
        let bytes = self.memory_bytes.unwrap_or(2 * journal_bytes + pages_bytes + POOL_SPARE_BYTES);
        Ok(Pool::new(bytes as usize)?)
    }
}

/// Lists everything, verifies it, and asks recovery.
fn survey(disk: &Disk, pool: &Pool) -> Result<Report, CannotLook> {
    let mut offline = Offline::new(disk.files().clone(), pool.clone());
    let run = dry_run(disk, pool, &mut offline);
    let outcome = match &run {
        Ok(run) => Outcome::Starts { report: run.report, next_sequence: run.recovered.journal.next_sequence },
        Err(RecoveryError::OutOfMemory) => return Err(CannotLook::OutOfMemory),
        Err(error) => Outcome::Refuses(*error),
    };
    let mut report = Report::new(disk.directory(), outcome);
    report.superblock = superblocks::look(disk);
    report.problems.extend(superblocks::problems(disk, &report.superblock));
    let identity = identity_of(&report);
    list_journal(disk, identity, &mut report);
    if let Some(identity) = identity {
        report.snapshots = snapshots::look(disk, identity);
        if let Ok(run) = &run {
            distrust_skipped(run, &mut report);
            check_older(disk, run, &mut report)?;
        }
        report.problems.extend(snapshots::problems(&report.snapshots));
        add_refusal(disk, identity, &offline, &mut report);
        report.topics = segments::look(disk, &offline, identity.directory_id, &mut report.problems);
    } else {
        add_refusal_without_identity(&mut report);
    }
    report.unnamed = segments::unnamed(disk, &segments::named(&offline));
    Ok(report)
}

/// What seeds the checksums, if any copy of the superblock says it.
fn identity_of(report: &Report) -> Option<JournalIdentity> {
    let superblock = report.newest_superblock()?;
    Some(JournalIdentity { directory_id: superblock.directory_id, shard: SHARD })
}

fn list_journal(disk: &Disk, identity: Option<JournalIdentity>, report: &mut Report) {
    for number in disk.journal_numbers() {
        let (file, walked) = journal::look_at(disk, number, identity);
        report.journal.push(file);
        if let Err((position, error)) = walked {
            report.problems.push(Problem {
                kind: ProblemKind::Recovery,
                file: name_of(File::Journal(number)),
                position: Some(position),
                what: format!("the journal cannot be read ({error})"),
                records: None,
            });
        }
    }
}

/// A snapshot whose blocks are all good and that recovery did not take all the same holds what it does not know.
fn distrust_skipped(run: &DryRun, report: &mut Report) {
    for snapshot in &mut report.snapshots {
        let sequence = snapshot.header.map(|header| header.sequence);
        if snapshot.state == SnapshotState::Valid && sequence > run.report.snapshot {
            snapshot.state = SnapshotState::Damaged;
        }
    }
}

/// The journal is kept down to where the older snapshot's replay begins: that way must be good, too, or there is
/// nothing to fall back on.
fn check_older(disk: &Disk, run: &DryRun, report: &mut Report) -> Result<(), CannotLook> {
    let [older, newest] = &run.recovered.snapshots[..] else { return Ok(()) };
    let is_valid = report.snapshots.iter().any(|snapshot| {
        snapshot.state == SnapshotState::Valid
            && snapshot.header.is_some_and(|header| header.sequence == older.sequence)
    });
    if !is_valid {
        return Ok(());
    }
    let mut without_newest = disk.clone();
    without_newest.hide(File::Snapshot(newest.sequence.file()));
    let pool = Pool::new(CHAIN_POOL_BYTES)?;
    let fallback = format!(
        "only snapshot {} needs it, as long as {} is good; the next two snapshots make up for it",
        older.sequence.0, newest.sequence.0
    );
    let (file, position, what) = match dry_run(&without_newest, &pool, &mut ChainOnly) {
        Ok(other) if other.recovered.journal.next_sequence == run.recovered.journal.next_sequence => {
            return Ok(());
        }
        Ok(_) => (
            File::Snapshot(older.sequence.file()),
            None,
            format!("the journal behind it ends early: {fallback}"),
        ),
        Err(RecoveryError::Corrupt { file, position, sequence, .. }) => {
            (File::Journal(file), Some(position), format!("block {sequence} is not valid: {fallback}"))
        }
        Err(error) => (File::Snapshot(older.sequence.file()), None, format!("{error}: {fallback}")),
    };
    report.problems.push(Problem {
        kind: ProblemKind::OlderJournal,
        file: name_of(file),
        position,
        what,
        records: None,
    });
    Ok(())
}

/// Why a start would refuse, and which records that concerns.
fn add_refusal(disk: &Disk, identity: JournalIdentity, offline: &Offline, report: &mut Report) {
    let Outcome::Refuses(error) = report.outcome else { return };
    let RecoveryError::Corrupt { file, position, sequence, durable } = error else {
        add_refusal_without_identity(report);
        return;
    };
    let file = name_of(File::Journal(file));
    let what =
        format!("block {sequence} is not valid, and blocks up to {durable} were durable: a start refuses");
    let kind = ProblemKind::Recovery;
    report.problems.push(Problem { kind, file: file.clone(), position: Some(position), what, records: None });
    let (first, durable) = (BlockSequence(sequence), BlockSequence(durable));
    let loss = journal::loss_behind(disk, identity, first, durable, offline);
    for records in &loss.partitions {
        report.problems.push(Problem {
            kind: ProblemKind::JournalRecords,
            file: file.clone(),
            position: Some(position),
            what: "acknowledged records in this block or behind it".to_owned(),
            records: Some(records.clone()),
        });
    }
    report.loss = Some(loss);
}

/// Why a start would refuse, in recovery's own words.
fn add_refusal_without_identity(report: &mut Report) {
    let Outcome::Refuses(error) = report.outcome else { return };
    let (file, position) = match error {
        RecoveryError::Io { file, .. } => (file, None),
        RecoveryError::MissingFile(number) | RecoveryError::FileLength(number) => {
            (File::Journal(number), None)
        }
        RecoveryError::Corrupt { file, position, .. } => (File::Journal(file), Some(position)),
        RecoveryError::MissingSegment(number) => (File::Segment(number), None),
        RecoveryError::NoSuperblock
        | RecoveryError::Version(_)
        | RecoveryError::ShardCount(_)
        | RecoveryError::UnknownEntry(_)
        | RecoveryError::Contradiction
        | RecoveryError::OutOfMemory => (File::Superblock, None),
    };
    let (kind, what) = (ProblemKind::Recovery, error.to_string());
    report.problems.push(Problem { kind, file: name_of(file), position, what, records: None });
}
