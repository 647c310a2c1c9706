//! Mending a directory: a plan that says what it changes and what that loses, and, once somebody has agreed, its steps.
//!
//! The plan is laid over the files and recovery is asked about it before anything is written. The originals of what is
//! written are copied first. Each step, and each part of one that a crash leaves, gives a directory that a start refuses
//! as before, or that it serves with exactly the loss that was announced.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use reactor::file::sync_directory;
use reactor::memory::Pool;

use super::disk::Disk;
use super::dry_run::{ChainOnly, SHARD, dry_run};
use super::problem::{ProblemKind, name_of};
use super::report::{Loss, Outcome, Report, SnapshotState};
use super::{CHAIN_POOL_BYTES, CannotLook, Inspection, journal, segments, superblocks};
use crate::io::File;
use crate::journal::block::{BLOCK_HEADER_BYTES, JournalIdentity};
use crate::journal::recovery::RecoveryError;
use crate::journal::snapshot::{SNAPSHOT_FILES, SnapshotHeader};
use crate::journal::superblock::{SUPERBLOCK_COPIES, Superblock};
use crate::journal::{BlockSequence, Epoch};
use crate::limits::PAGE_BYTES;
use crate::shard::offline::Offline;

/// A cut, and before it each of the snapshots given up.
const ROUNDS_MAX: usize = SNAPSHOT_FILES as usize + 2;

const ONLY_A_BACKUP: &str = "only a backup helps";

/// What would be done.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What is changed, one sentence each.
    pub steps: Vec<String>,
    /// What is lost by that.
    pub losses: Vec<String>,
    /// Damage that stays.
    pub remains: Vec<String>,
    /// Why nothing can be done.
    pub refusal: Option<String>,
    changes: Vec<Change>,
    /// Segments that the next start will remove.
    set_aside: Vec<File>,
}

/// A plan, and what became of it.
#[derive(Clone, Debug)]
pub struct Repair {
    /// What was planned.
    pub plan: Plan,
    /// Where the originals are kept, once it was carried out.
    pub kept_in: Option<PathBuf>,
}

/// Why a repair ended early. What it had done until then stays; it can be run again.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}; the repair can be run again", .path.display())]
pub struct RepairError {
    action: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

/// Bytes to be written, within one page.
#[derive(Clone, Debug)]
struct Change {
    file: File,
    position: u64,
    bytes: Vec<u8>,
}

/// Where the journal is to end.
#[derive(Clone, Copy, Debug)]
struct Cut {
    file: u32,
    position: u64,
    first: BlockSequence,
    durable: BlockSequence,
}

/// A plan under way.
struct Draft {
    disk: Disk,
    superblock: Superblock,
    /// An epoch that nobody ever had.
    next_epoch: Epoch,
    cut: Option<Cut>,
    plan: Plan,
}

impl Inspection {
    /// What a repair of what was found would do. Nothing is written.
    ///
    /// # Errors
    /// See `CannotLook`.
    pub fn plan_repair(&self, report: &Report) -> Result<Plan, CannotLook> {
        let refused = |why: String| Ok(Plan { refusal: Some(why), ..Plan::default() });
        if let Outcome::UnknownFile(_) = report.outcome {
            return refused(report.outcome.refusal().unwrap_or_default());
        }
        if report.problems.is_empty() {
            return Ok(Plan::default());
        }
        let Some(superblock) = report.newest_superblock() else {
            return refused(format!("nothing says whose the files are: {ONLY_A_BACKUP}"));
        };
        let (disk, pool) = self.disk()?;
        let next_epoch = next_epoch(&disk, report, superblock);
        let mut draft =
            Draft { disk: disk.clone(), superblock, next_epoch, cut: None, plan: Plan::default() };
        if let Err(why) = draft.make_startable(&Pool::new(CHAIN_POOL_BYTES)?) {
            return refused(why);
        }
        draft.mend_snapshots(report);
        draft.mend_superblock(report);
        let mut offline = Offline::new(draft.disk.files().clone(), pool.clone());
        match dry_run(&draft.disk, &pool, &mut offline) {
            Ok(_) => {}
            Err(RecoveryError::OutOfMemory) => return Err(CannotLook::OutOfMemory),
            Err(error) => return refused(refusal_of(error)),
        }
        if let Some(cut) = draft.cut {
            let loss = journal::loss_behind(&disk, draft.identity(), cut.first, cut.durable, &offline);
            draft.plan.losses.extend(losses_of(&loss));
            let unnamed = segments::unnamed(&disk, &segments::named(&offline));
            draft.plan.set_aside = unnamed.iter().map(|segment| File::Segment(segment.number.0)).collect();
        }
        draft.plan.remains = remains_of(report);
        Ok(draft.plan)
    }

    /// Carries a plan out, and gives where the originals are. `now_ms` (milliseconds since 1970) names that place.
    ///
    /// # Errors
    /// See `RepairError`.
    pub fn repair(&self, plan: &Plan, now_ms: u64) -> Result<PathBuf, RepairError> {
        let directory = self.data_dir.path();
        let kept_in = directory.join(format!("repair-{now_ms}"));
        fs::create_dir(&kept_in).map_err(failed("make", &kept_in))?;
        let changed: BTreeSet<File> = plan.changes.iter().map(|change| change.file).collect();
        for file in changed {
            keep(&self.data_dir.path_of(file), &kept_in, |from, to| fs::copy(from, to).map(|_| ()))?;
        }
        for file in &plan.set_aside {
            // A second name costs no space, and outlives the removal of the first.
            keep(&self.data_dir.path_of(*file), &kept_in, |from, to| {
                fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(|_| ()))
            })?;
        }
        for path in [kept_in.as_path(), directory] {
            sync_directory(path).map_err(failed("sync", path))?;
        }
        // The copies of the superblock are flushed one by one: one of them is good at any time.
        let together = |one: &Change, next: &Change| one.file == next.file && one.file != File::Superblock;
        for changes in plan.changes.chunk_by(together) {
            let path = self.data_dir.path_of(changes[0].file);
            write(&path, changes).map_err(failed("write", &path))?;
        }
        Ok(kept_in)
    }
}

impl Plan {
    /// Whether there is nothing to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl Draft {
    fn identity(&self) -> JournalIdentity {
        JournalIdentity { directory_id: self.superblock.directory_id, shard: SHARD }
    }

    fn change(&mut self, file: File, position: u64, bytes: Vec<u8>) {
        self.disk.lay_over(file, position, bytes.clone());
        self.plan.changes.push(Change { file, position, bytes });
    }

    /// Changes the journal and the snapshots until recovery would start; or says why that cannot be had.
    fn make_startable(&mut self, pool: &Pool) -> Result<(), String> {
        for _ in 0..ROUNDS_MAX {
            match dry_run(&self.disk, pool, &mut ChainOnly) {
                Ok(_) => return Ok(()),
                Err(RecoveryError::Corrupt { file, position, sequence, durable }) => {
                    let (first, durable) = (BlockSequence(sequence), BlockSequence(durable));
                    if !self.give_up_snapshots(first) {
                        self.cut(Cut { file, position, first, durable })?;
                    }
                }
                Err(error) => return Err(refusal_of(error)),
            }
        }
        Err(format!("the journal contradicts itself: {ONLY_A_BACKUP}"))
    }

    /// A snapshot that includes what is behind the cut goes: the journal before it must be replayed instead. Says
    /// whether there was one.
    fn give_up_snapshots(&mut self, first_lost: BlockSequence) -> bool {
        let before = self.plan.changes.len();
        for number in 0..SNAPSHOT_FILES {
            let file = File::Snapshot(number);
            let page = self.disk.bytes(file, 0, PAGE_BYTES).ok();
            let header = page.and_then(|page| SnapshotHeader::read(&page, self.identity()));
            let Some(header) = header.filter(|header| header.sequence.file() == number) else { continue };
            if header.captured.sequence() >= first_lost {
                self.plan.steps.push(format!(
                    "give up snapshot {} in {}: it includes entries of block {} and later ones; a start goes back to \
                     the snapshot before, or to the journal's beginning",
                    header.sequence.0,
                    name_of(file),
                    first_lost.0
                ));
                self.change(file, 0, vec![0; PAGE_BYTES]);
            }
        }
        self.plan.changes.len() > before
    }

    /// Ends the journal before a block: nothing may say any more that it was durable.
    fn cut(&mut self, cut: Cut) -> Result<(), String> {
        if cut.first == BlockSequence::FIRST {
            return Err(format!(
                "no snapshot is left to start from, and the journal's first block is gone: {ONLY_A_BACKUP}"
            ));
        }
        if self.cut.is_some() {
            return Err(format!("behind a cut the journal would still contradict itself: {ONLY_A_BACKUP}"));
        }
        self.cut = Some(cut);
        let headers = journal::headers_from(&self.disk, self.identity(), cut.first).map_err(
            |(number, position, error)| {
                format!("{} cannot be read at byte {position} ({error})", name_of(File::Journal(number)))
            },
        )?;
        self.plan.steps.push(format!(
            "end the journal before block {}, at byte {} of {}: erase the headers of that block and of all later ones, \
             {} in all",
            cut.first.0,
            cut.position,
            name_of(File::Journal(cut.file)),
            headers.len()
        ));
        for (number, position) in headers {
            self.change(File::Journal(number), position, vec![0; BLOCK_HEADER_BYTES]);
        }
        let superblock = Superblock { epoch: self.next_epoch, first_sequence: cut.first, ..self.superblock };
        self.plan.steps.push(format!(
            "write both copies of the superblock, with epoch {} and first sequence {}",
            superblock.epoch.0, cut.first.0
        ));
        for copy in 0..SUPERBLOCK_COPIES {
            self.write_superblock(copy, superblock);
        }
        Ok(())
    }

    fn write_superblock(&mut self, copy: usize, superblock: Superblock) {
        let mut page = vec![0; PAGE_BYTES];
        superblock.write(&mut page);
        self.change(File::Superblock, superblocks::position_of(copy), page);
    }

    /// A damaged snapshot goes if a start does without it.
    fn mend_snapshots(&mut self, report: &Report) {
        let damaged = report.snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Damaged);
        for snapshot in damaged {
            let file = File::Snapshot(snapshot.number);
            if self.plan.changes.iter().any(|change| change.file == file) {
                continue;
            }
            self.plan.steps.push(format!(
                "erase the first page of {}: the snapshot in it is damaged, and a start does without it",
                name_of(file)
            ));
            self.change(file, 0, vec![0; PAGE_BYTES]);
        }
    }

    /// A damaged copy is written anew from the other, if a cut has not written both.
    fn mend_superblock(&mut self, report: &Report) {
        if self.cut.is_some() {
            return;
        }
        for copy in 0..report.superblock.len() {
            if superblocks::is_damaged(&report.superblock, copy) {
                self.plan.steps.push(format!("write copy {copy} of the superblock from the other one"));
                self.write_superblock(copy, self.superblock);
            }
        }
    }
}

fn next_epoch(disk: &Disk, report: &Report, superblock: Superblock) -> Epoch {
    let identity = JournalIdentity { directory_id: superblock.directory_id, shard: SHARD };
    let headers = report.snapshots.iter().filter_map(|snapshot| snapshot.header);
    let highest = headers
        .map(|header| header.epoch)
        .fold(superblock.epoch.max(journal::highest_epoch(disk, identity)), Epoch::max);
    Epoch(highest.0 + 1)
}

/// Why a start would still refuse.
fn refusal_of(error: RecoveryError) -> String {
    match error {
        RecoveryError::MissingFile(_) | RecoveryError::MissingSegment(_) => {
            format!("{error}: put it back, or else {ONLY_A_BACKUP}")
        }
        other => format!("{other}: that cannot be repaired"),
    }
}

/// What is lost, for people.
fn losses_of(loss: &Loss) -> Vec<String> {
    let count = loss.last.0 - loss.first.0 + 1;
    let mut losses = vec![format!(
        "{count} blocks of the journal, {} to {}; {} of them can still be read, and hold what follows",
        loss.first.0, loss.last.0, loss.readable_blocks
    )];
    losses.extend(loss.partitions.iter().map(|records| format!("records of {records}")));
    losses.extend(loss.topics_created.iter().map(|topic| format!("the creation of topic {topic}")));
    if loss.other_entries > 0 {
        let entries = loss.other_entries;
        losses
            .push(format!("{entries} other entries: segments opened and closed, trims, deletions of topics"));
    }
    if loss.readable_blocks < count {
        let unreadable = count - loss.readable_blocks;
        losses.push(format!(
            "what {unreadable} blocks held that cannot be read: records of any topic, or topics"
        ));
    }
    losses
}

/// Damage that a repair leaves as it is.
fn remains_of(report: &Report) -> Vec<String> {
    let partitions = report.topics.iter().flat_map(|topic| &topic.partitions);
    let segments = partitions.flat_map(|partition| &partition.segments).filter(|segment| segment.is_damaged);
    let mut remains: Vec<String> = segments
        .map(|segment| {
            let file = name_of(File::Segment(segment.number.0));
            format!("{file}: nothing is changed; readers are told which of its records cannot be read")
        })
        .collect();
    let older = report.problems.iter().filter(|problem| problem.kind == ProblemKind::OlderJournal);
    remains.extend(older.map(|problem| format!("{}: the next two snapshots make up for it", problem.file)));
    remains
}

/// Puts a file's original into a directory.
fn keep(
    original: &Path,
    kept_in: &Path,
    take: impl Fn(&Path, &Path) -> std::io::Result<()>,
) -> Result<(), RepairError> {
    let name = original.file_name().expect("a file of a data directory has a name");
    let copy = kept_in.join(name);
    take(original, &copy).map_err(failed("keep a copy of", original))?;
    fs::File::open(&copy).and_then(|file| file.sync_all()).map_err(failed("sync", &copy))
}

fn write(path: &Path, changes: &[Change]) -> std::io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    for change in changes {
        file.write_all_at(&change.bytes, change.position)?;
    }
    file.sync_all()
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> RepairError + use<> {
    let path = path.to_owned();
    move |source| RepairError { action, path, source }
}
