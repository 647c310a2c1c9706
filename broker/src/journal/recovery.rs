//! Recovery: from the files of a data directory to a journal that goes on, or a refusal that says where and why.
//!
//! In order: make durable what is there, so that nothing is believed that a power cut could still take back; read the
//! superblock; load the newest valid snapshot; scan the blocks behind it by sequence; judge the first that is not the
//! successor of the one before; write the next epoch; only then is the shard let to serve. It is a state machine like
//! everything else in the shard, so that the simulator can crash it at any step. Running it twice gives the same
//! state.

mod judge;
mod load;
mod scan;

use std::collections::BTreeMap;

use reactor::memory::{Buffer, Pool};

use super::block::{Entry, JournalIdentity};
use super::snapshot::{SNAPSHOT_FILES, SnapshotHeader, SnapshotSequence};
use super::superblock::{SUPERBLOCK_COPIES, SUPERBLOCK_FILE_BYTES, Superblock, SuperblockError};
use super::{BlockSequence, Durability, Epoch, JournalLayout, JournalStart, Place};
use crate::io::{Completion, File, IoError, Op, Sync, Token};
use crate::limits::PAGE_BYTES;
use judge::Evidence;
use load::{Load, LoadStep};
use scan::{Scan, ScanStart, ScanStep};

/// The state that a recovery builds.
pub trait Replay {
    /// Begins anew: what was restored so far came from a snapshot that turned out to be damaged.
    fn reset(&mut self);

    /// Takes over an entry of a snapshot.
    ///
    /// # Errors
    /// When it is not what this version writes, or there is no memory.
    fn restore(&mut self, entry: Entry<'_>) -> Result<(), RecoveryError>;

    /// Applies an entry of the journal.
    ///
    /// # Errors
    /// When it is not what this version writes, or there is no memory.
    fn replay(&mut self, entry: Entry<'_>) -> Result<(), RecoveryError>;

    /// All was replayed; `next` is the sequence of the next block.
    ///
    /// # Errors
    /// When the state is not whole.
    fn finish(&mut self, next: BlockSequence) -> Result<(), RecoveryError>;
}

/// What recovery starts from.
#[derive(Clone, Debug)]
pub struct RecoveryConfig {
    /// Number of this shard, and of all.
    pub shard: u16,
    /// Number of shards that the directory is opened with.
    pub shard_count: u32,
    /// Used if the directory is new.
    pub fresh_directory_id: u128,
    /// Files wanted; those that exist keep their length.
    pub layout: JournalLayout,
    /// The files that exist, with their lengths.
    pub files: BTreeMap<File, u64>,
    /// How blocks become durable from now on.
    pub durability: Durability,
}

/// Why a data directory is not served. Nothing that was acknowledged is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// An operation failed.
    #[error("cannot {action} {file:?}: {error}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        file: File,
        /// How it failed.
        error: IoError,
    },
    /// Neither copy of the superblock can be used, and the directory is not new.
    #[error("no copy of the superblock is valid, but the directory is not empty; nothing was changed")]
    NoSuperblock,
    /// Another version of the format.
    #[error("the directory has format version {0}; this broker reads version {v}", v = super::superblock::FORMAT_VERSION)]
    Version(u32),
    /// Another number of shards.
    #[error("the directory was written with {0} shard(s); serve it with as many")]
    ShardCount(u32),
    /// A journal file is missing between others, or all of them are.
    #[error("journal file {0} is missing; nothing was changed")]
    MissingFile(u32),
    /// A journal file is shorter or longer than the first one.
    #[error("journal file {0} has another length than file 0; nothing was changed")]
    FileLength(u32),
    /// Acknowledged data does not match its checksums.
    #[error(
        "corruption of acknowledged data: block {sequence} at byte {position} of journal file {file} is not valid, \
         but blocks up to {durable} were durable; nothing was changed"
    )]
    Corrupt {
        /// Journal file.
        file: u32,
        /// Byte position of the first bad block.
        position: u64,
        /// Its sequence.
        sequence: u64,
        /// The last sequence that is known to have been durable.
        durable: u64,
    },
    /// A valid entry of a kind that this version does not know.
    #[error("block {0} holds an entry that this version does not know")]
    UnknownEntry(u64),
    /// A segment that takes records is missing.
    #[error("segment {0:016x} is missing, and the journal has records for it; nothing was changed")]
    MissingSegment(u64),
    /// A snapshot and the journal behind it do not fit together.
    #[error("the snapshot and the journal contradict each other; nothing was changed")]
    Contradiction,
    /// No memory for the newest records.
    #[error("the memory budget does not hold the newest records of all partitions; raise --memory-bytes")]
    OutOfMemory,
}

/// What recovery found, for the ready line and the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The directory was new.
    pub is_fresh: bool,
    /// Epoch of this start.
    pub epoch: Epoch,
    /// The snapshot that was loaded.
    pub snapshot: Option<SnapshotSequence>,
    /// A newer snapshot was damaged.
    pub skipped_snapshot: bool,
    /// Good blocks behind it.
    pub block_count: u64,
    /// Entries in them.
    pub entry_count: u64,
    /// Length of the good blocks in bytes.
    pub journal_bytes: u64,
    /// Where a torn tail was cut: blocks that nobody was told about.
    pub torn_at: Option<Place>,
}

/// A snapshot that is kept, and the turn of the journal file where its replay begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptSnapshot {
    /// Which.
    pub sequence: SnapshotSequence,
    /// Turn of the file, in the ring that `JournalStart::files` begins.
    pub turn: u64,
    /// Sequence of the first block of the replay.
    pub next_sequence: BlockSequence,
}

/// What a shard goes on with.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The journal.
    pub journal: JournalStart,
    /// Kept snapshots, older first.
    pub snapshots: Vec<KeptSnapshot>,
    /// The sequence of the next snapshot: in the file of the one that is missing, damaged or older.
    pub next_snapshot: SnapshotSequence,
    /// Lengths of the snapshot files, 0 for one that is not there.
    pub snapshot_file_bytes: [u64; SNAPSHOT_FILES as usize],
}

#[derive(Debug)]
enum Phase {
    SyncAll,
    SyncFiles { next: usize },
    ReadSuperblock,
    PrepareSuperblock,
    CheckFirstFile,
    Load,
    Scan,
    WriteSuperblock { copy: usize },
    PrepareFirstFile,
    Done,
}

/// The state machine.
#[derive(Debug)]
pub struct Recovery {
    config: RecoveryConfig,
    pool: Pool,
    phase: Phase,
    /// Superblock, journal and snapshots: flushed one by one.
    flushed_files: Vec<File>,
    /// Set as soon as it is known.
    superblock: Superblock,
    highest_epoch: Epoch,
    file_count: u32,
    load: Load,
    scan: Option<Scan>,
    report: RecoveryReport,
    next_sequence: BlockSequence,
    predecessor_crc: u32,
    last_epoch: Epoch,
    /// Journal files in the order of the chain, and where it ends in the last.
    chain_files: Vec<u32>,
    end_position: u64,
}

impl Recovery {
    /// Checks the list of files and asks for the first operations.
    ///
    /// # Errors
    /// `MissingFile`, `FileLength` or `NoSuperblock`.
    pub fn new(mut config: RecoveryConfig, pool: Pool, ops: &mut Vec<Op>) -> Result<Self, RecoveryError> {
        let file_count = check_files(&mut config)?;
        let superblock = Superblock {
            directory_id: config.fresh_directory_id,
            shard_count: config.shard_count,
            epoch: Epoch(0),
            journal_file_count: 0,
            first_sequence: BlockSequence::FIRST,
        };
        let is_flushed = |file: &&File| !matches!(file, File::Segment(_));
        let mut recovery = Self {
            pool,
            phase: Phase::SyncAll,
            flushed_files: config.files.keys().filter(is_flushed).copied().collect(),
            superblock,
            highest_epoch: Epoch(0),
            file_count,
            load: Load::default(),
            scan: None,
            report: RecoveryReport::default(),
            next_sequence: BlockSequence::FIRST,
            predecessor_crc: 0,
            last_epoch: Epoch(0),
            chain_files: vec![0],
            end_position: 0,
            config,
        };
        if recovery.config.files.is_empty() {
            recovery.report.is_fresh = true;
            recovery.phase = Phase::PrepareSuperblock;
            ops.push(Op::PrepareFile { file: File::Superblock, bytes: SUPERBLOCK_FILE_BYTES });
        } else {
            // Segments are many: one sync for all of them. What follows flushes the device in any case.
            ops.push(Op::SyncAll { token: Token(0) });
        }
        Ok(recovery)
    }

    /// What was found so far.
    #[must_use]
    pub fn report(&self) -> RecoveryReport {
        self.report
    }

    /// Moves on with a completion; `replay` gets every entry of the snapshot, and then of each good block, in order.
    /// Gives what the shard goes on with when all is done.
    ///
    /// # Errors
    /// See `RecoveryError`; those of `replay` are handed through.
    pub fn on_completion(
        &mut self,
        completion: Completion,
        ops: &mut Vec<Op>,
        replay: &mut impl Replay,
    ) -> Result<Option<Recovered>, RecoveryError> {
        match completion {
            Completion::Flushed { token, result } => self.on_flushed(token, result, ops)?,
            Completion::AllSynced { result, .. } => {
                check("sync", File::Superblock, result)?;
                self.phase = Phase::SyncFiles { next: 0 };
                self.sync_next_file(ops);
            }
            Completion::ReadDone { token, buffer, result } => {
                self.on_read(token, buffer, result, ops, replay)?
            }
            Completion::Written { result, .. } => {
                check("write", File::Superblock, result)?;
                assert!(matches!(self.phase, Phase::WriteSuperblock { .. }));
                ops.push(Op::Flush { token: Token(0), file: File::Superblock });
            }
            Completion::FilePrepared { file, result } => {
                check("create", file, result)?;
                self.on_prepared(ops)?;
            }
            Completion::Accepted { .. }
            | Completion::Received { .. }
            | Completion::Sent { .. }
            | Completion::Allocated { .. }
            | Completion::Removed { .. }
            | Completion::Compacted { .. } => {
                unreachable!("recovery asks for nothing of the kind, and accepts nobody")
            }
        }
        Ok(matches!(self.phase, Phase::Done).then(|| self.recovered()))
    }

    fn recovered(&self) -> Recovered {
        let mut files = self.chain_files.clone();
        let mut snapshots = Vec::new();
        if let Some(newest) = self.load.loaded() {
            if let Some((older, before)) = self.older_snapshot(files[0]) {
                snapshots.push(kept(&older, 0));
                files.splice(0..0, before);
            }
            snapshots.push(kept(&newest, (files.len() - self.chain_files.len()) as u64));
        }
        let cursor = Place { file: files.len() as u64 - 1, position: self.end_position };
        let journal = JournalStart {
            identity: self.identity(),
            epoch: self.superblock.epoch,
            next_sequence: self.next_sequence,
            predecessor_crc: self.predecessor_crc,
            last_epoch: self.last_epoch,
            files,
            cursor,
            layout: self.config.layout,
            files_prepared: self.file_count,
            durability: self.config.durability,
        };
        let bytes_of = |number: u8| self.config.files.get(&File::Snapshot(number)).copied().unwrap_or(0);
        Recovered {
            journal,
            snapshots,
            next_snapshot: self.load.next_sequence(),
            snapshot_file_bytes: [bytes_of(0), bytes_of(1)],
        }
    }

    /// The snapshot before the loaded one, if it is there, with the journal files that only it needs.
    fn older_snapshot(&self, first_of_chain: u32) -> Option<(SnapshotHeader, Vec<u32>)> {
        let older = self.load.older()?;
        let mut files = Vec::new();
        let mut file = older.journal_file;
        while file != first_of_chain {
            let is_known = file < self.file_count && !files.contains(&file);
            if !is_known || self.chain_files.contains(&file) {
                return None;
            }
            files.push(file);
            file = if file + 1 < self.file_count { file + 1 } else { 0 };
        }
        Some((older, files))
    }

    fn identity(&self) -> JournalIdentity {
        JournalIdentity { directory_id: self.superblock.directory_id, shard: self.config.shard }
    }

    fn sync_next_file(&mut self, ops: &mut Vec<Op>) {
        let Phase::SyncFiles { next } = &mut self.phase else { unreachable!("called while syncing") };
        if let Some(file) = self.flushed_files.get(*next) {
            ops.push(Op::Flush { token: Token(*next as u64), file: *file });
            *next += 1;
            return;
        }
        let buffer = self.pool.buffer(SUPERBLOCK_FILE_BYTES as usize).expect("the pool is fresh");
        self.phase = Phase::ReadSuperblock;
        let bytes = SUPERBLOCK_FILE_BYTES as usize;
        ops.push(Op::Read { token: Token(0), file: File::Superblock, position: 0, buffer, bytes });
    }

    fn on_flushed(
        &mut self,
        token: Token,
        result: Result<(), IoError>,
        ops: &mut Vec<Op>,
    ) -> Result<(), RecoveryError> {
        let file = self.flushed_files.get(token.0 as usize).copied().unwrap_or(File::Superblock);
        check("flush", file, result)?;
        match self.phase {
            Phase::SyncFiles { .. } => self.sync_next_file(ops),
            Phase::WriteSuperblock { copy } if copy + 1 < SUPERBLOCK_COPIES => {
                self.write_superblock(copy + 1, ops);
            }
            Phase::WriteSuperblock { .. } => self.phase = Phase::Done,
            _ => unreachable!("recovery flushes only when syncing and writing"),
        }
        Ok(())
    }

    fn on_prepared(&mut self, ops: &mut Vec<Op>) -> Result<(), RecoveryError> {
        match self.phase {
            Phase::PrepareSuperblock => self.prepare_first_file(ops),
            Phase::PrepareFirstFile => {
                self.file_count = 1;
                self.begin_epoch(ops);
            }
            _ => unreachable!("recovery prepares the superblock and the first file"),
        }
        Ok(())
    }

    fn on_read(
        &mut self,
        token: Token,
        buffer: Buffer,
        result: Result<(), IoError>,
        ops: &mut Vec<Op>,
        replay: &mut impl Replay,
    ) -> Result<(), RecoveryError> {
        match self.phase {
            Phase::ReadSuperblock => {
                check("read", File::Superblock, result)?;
                self.on_superblock_read(&buffer, ops, replay)
            }
            Phase::CheckFirstFile => {
                check("read", File::Journal(0), result)?;
                if buffer[..PAGE_BYTES].iter().any(|byte| *byte != 0) {
                    return Err(RecoveryError::NoSuperblock);
                }
                self.begin_epoch(ops);
                Ok(())
            }
            Phase::Load => {
                let identity = self.identity();
                // A snapshot that cannot be read is a damaged one.
                let bytes = result.is_ok().then_some(&buffer[..]);
                let step = self.load.on_read(bytes, identity, replay)?;
                self.on_load_step(step, ops)
            }
            _ => {
                let file = u32::try_from(token.0).expect("the token of a scan's read is its file's number");
                check("read", File::Journal(file), result)?;
                let scan = self.scan.as_mut().expect("a scan is under way");
                match scan.on_read(buffer, ops, &self.pool, replay)? {
                    ScanStep::Reading => Ok(()),
                    ScanStep::Done => self.on_scanned(ops, replay),
                }
            }
        }
    }

    fn on_superblock_read(
        &mut self,
        pages: &[u8],
        ops: &mut Vec<Op>,
        replay: &mut impl Replay,
    ) -> Result<(), RecoveryError> {
        let copies =
            [Superblock::read(&pages[..PAGE_BYTES]), Superblock::read(&pages[PAGE_BYTES..2 * PAGE_BYTES])];
        for copy in copies {
            if let Err(SuperblockError::Version(version)) = copy {
                return Err(RecoveryError::Version(version));
            }
        }
        let newest = copies.into_iter().flatten().max_by_key(|superblock| superblock.epoch);
        let Some(superblock) = newest else {
            let is_unwritten = copies.iter().all(|copy| *copy == Err(SuperblockError::Empty));
            let has_more =
                self.config.files.keys().any(|file| matches!(file, File::Segment(_) | File::Snapshot(_)));
            if !is_unwritten || self.file_count > 1 || has_more {
                return Err(RecoveryError::NoSuperblock);
            }
            // An earlier start died before its first epoch.
            self.report.is_fresh = true;
            self.check_first_file(ops);
            return Ok(());
        };
        if superblock.shard_count != self.config.shard_count {
            return Err(RecoveryError::ShardCount(superblock.shard_count));
        }
        if self.file_count < superblock.journal_file_count {
            return Err(RecoveryError::MissingFile(self.file_count));
        }
        self.superblock = superblock;
        self.highest_epoch = superblock.epoch;
        self.phase = Phase::Load;
        let identity = self.identity();
        let step = self.load.begin(&self.config.files, identity, replay);
        self.on_load_step(step, ops)
    }

    fn on_load_step(&mut self, step: LoadStep, ops: &mut Vec<Op>) -> Result<(), RecoveryError> {
        match step {
            LoadStep::Read { file, position, bytes } => {
                let buffer = self.pool.buffer(bytes).ok_or(RecoveryError::OutOfMemory)?;
                ops.push(Op::Read { token: Token(0), file: File::Snapshot(file), position, buffer, bytes });
                Ok(())
            }
            LoadStep::Done => self.begin_scan(ops),
        }
    }

    fn begin_scan(&mut self, ops: &mut Vec<Op>) -> Result<(), RecoveryError> {
        let start = match self.load.loaded() {
            Some(snapshot) => {
                let known = snapshot.journal_file < self.file_count
                    && snapshot.journal_position <= self.config.layout.file_bytes;
                if !known {
                    return Err(RecoveryError::MissingFile(snapshot.journal_file));
                }
                self.report.snapshot = Some(snapshot.sequence);
                ScanStart {
                    at: Place { file: u64::from(snapshot.journal_file), position: snapshot.journal_position },
                    expected: snapshot.next_sequence,
                    predecessor_crc: snapshot.predecessor_crc,
                    last_epoch: snapshot.last_epoch,
                    is_virgin: false,
                }
            }
            None => ScanStart {
                at: Place::default(),
                expected: BlockSequence::FIRST,
                predecessor_crc: 0,
                last_epoch: Epoch(0),
                is_virgin: true,
            },
        };
        self.report.skipped_snapshot = self.load.has_skipped();
        self.phase = Phase::Scan;
        let mut scan = Scan::new(self.identity(), self.config.layout, self.file_count, start);
        scan.begin(ops, &self.pool)?;
        self.scan = Some(scan);
        Ok(())
    }

    fn on_scanned(&mut self, ops: &mut Vec<Op>, replay: &mut impl Replay) -> Result<(), RecoveryError> {
        let scan = self.scan.take().expect("a scan has ended");
        // What a snapshot includes was durable before the snapshot counted.
        let captured = self.load.highest_captured().sequence();
        let evidence = Evidence {
            durable: scan.durable_seen.max(captured),
            first_of_epoch: self.superblock.first_sequence,
        };
        evidence.judge(scan.bad_at, scan.expected)?;
        self.report.block_count = scan.block_count;
        self.report.entry_count = scan.entry_count;
        self.report.journal_bytes = scan.journal_bytes;
        self.report.torn_at = scan.saw_torn.then_some(scan.bad_at);
        self.highest_epoch = self.highest_epoch.max(scan.highest_epoch).max(self.load.highest_epoch());
        self.next_sequence = scan.expected;
        self.predecessor_crc = scan.predecessor_crc;
        self.last_epoch = scan.last_epoch;
        self.end_position = scan.end_of_good.position;
        self.chain_files = scan.visited;
        replay.finish(self.next_sequence)?;
        self.begin_epoch(ops);
        Ok(())
    }

    /// The first journal file is there before the first superblock says so.
    fn prepare_first_file(&mut self, ops: &mut Vec<Op>) {
        self.phase = Phase::PrepareFirstFile;
        ops.push(Op::PrepareFile { file: File::Journal(0), bytes: self.config.layout.file_bytes });
    }

    /// Without a superblock, a journal file that was ever written to is damage, not a new directory.
    fn check_first_file(&mut self, ops: &mut Vec<Op>) {
        if self.file_count == 0 {
            self.prepare_first_file(ops);
            return;
        }
        let buffer = self.pool.buffer(PAGE_BYTES).expect("the pool is fresh");
        self.phase = Phase::CheckFirstFile;
        let file = File::Journal(0);
        ops.push(Op::Read { token: Token(0), file, position: 0, buffer, bytes: PAGE_BYTES });
    }

    fn begin_epoch(&mut self, ops: &mut Vec<Op>) {
        let epoch = if reuses_epoch() { self.highest_epoch.0.max(1) } else { self.highest_epoch.0 + 1 };
        self.superblock.epoch = Epoch(epoch);
        self.superblock.first_sequence = self.next_sequence;
        self.superblock.journal_file_count = self.file_count;
        self.report.epoch = self.superblock.epoch;
        self.write_superblock(0, ops);
    }

    fn write_superblock(&mut self, copy: usize, ops: &mut Vec<Op>) {
        let mut page = self.pool.buffer(PAGE_BYTES).expect("recovery has given its buffers back");
        self.superblock.write(&mut page[..PAGE_BYTES]);
        self.phase = Phase::WriteSuperblock { copy };
        ops.push(Op::Write {
            token: Token(copy as u64),
            file: File::Superblock,
            position: (copy * PAGE_BYTES) as u64,
            data: page.freeze(0..PAGE_BYTES),
            sync: Sync::Later,
        });
    }
}

fn kept(header: &SnapshotHeader, turn: u64) -> KeptSnapshot {
    KeptSnapshot { sequence: header.sequence, turn, next_sequence: header.next_sequence }
}

/// The files must be numbered without a gap and of one length; gives their number and takes that length over.
fn check_files(config: &mut RecoveryConfig) -> Result<u32, RecoveryError> {
    let journal_files = config.files.iter().filter_map(|(file, bytes)| match file {
        File::Journal(number) => Some((*number, *bytes)),
        File::Superblock | File::Snapshot(_) | File::Segment(_) => None,
    });
    let mut count = 0;
    for (number, bytes) in journal_files {
        if number != count {
            return Err(RecoveryError::MissingFile(count));
        }
        if count == 0 {
            let wanted = config.layout.bytes();
            config.layout.file_bytes = bytes.max(PAGE_BYTES as u64);
            config.layout.file_count =
                u32::try_from(wanted / config.layout.file_bytes).unwrap_or(u32::MAX).max(1);
        }
        if bytes != config.layout.file_bytes || !bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(RecoveryError::FileLength(number));
        }
        count += 1;
    }
    if !config.files.is_empty() && !config.files.contains_key(&File::Superblock) {
        return Err(RecoveryError::NoSuperblock);
    }
    config.layout.file_count = config.layout.file_count.max(count);
    Ok(count)
}

fn check(action: &'static str, file: File, result: Result<(), IoError>) -> Result<(), RecoveryError> {
    result.map_err(|error| RecoveryError::Io { action, file, error })
}

/// The broken variant that starts with the epoch of the start before: the simulator must catch it.
fn reuses_epoch() -> bool {
    #[cfg(feature = "mutants")]
    return crate::mutants::is_on(crate::mutants::Mutant::ReuseEpoch);
    #[cfg(not(feature = "mutants"))]
    false
}
