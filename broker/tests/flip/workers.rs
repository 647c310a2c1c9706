//! Flips one bit after another, on all processors, and counts what comes of it.
//!
//! One start costs some hundred microseconds, most of it for reading the journal. Recovery reads no segment, so one start
//! serves for all flips of a page of a segment; the test finds out whether that is still so.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use broker::io::File;
use broker::journal::recovery::RecoveryError;
use broker::limits::PAGE_BYTES;
use reactor::memory::Pool;

use crate::disk::{Directory, Disk, Flip};
use crate::reading::{Reference, Verdict, read_all};
use crate::world::{NoStart, World, fresh_pool};

/// First bytes of a page, of which every one is tried: the header of a block and of its first entry.
const HEADER_BYTES: usize = 80;
/// Of the rest of a page that is not tried as a whole, one byte in so many is. Odd, so that all bits have their turn.
const STEP: usize = 61;
/// Failures after which a worker has seen enough.
const FAILURES_MAX: usize = 10;

/// What is to be tried.
pub(crate) struct Plan<'a> {
    pub(crate) directory: &'a Directory,
    pub(crate) reference: &'a Reference,
    pub(crate) wall_ms: u64,
    /// Pages of which every byte is tried.
    pub(crate) whole_pages: BTreeSet<(File, usize)>,
    /// Each flip of a segment needs a start of its own.
    pub(crate) recovery_reads_segments: bool,
}

/// How often what came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) same: u64,
    pub(crate) refused: u64,
    pub(crate) unreadable: u64,
    pub(crate) lost: u64,
}

/// Everything that came of it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    counts: BTreeMap<&'static str, Counts>,
    /// Flips that made records disappear without a word.
    pub(crate) lost: Vec<Flip>,
    /// What must never be, in words.
    pub(crate) failures: Vec<String>,
}

/// Tries every page that was ever written.
pub(crate) fn flip_everything(plan: &Plan<'_>) -> Tally {
    let pages: Vec<(File, usize)> = plan.directory.written_pages().iter().copied().collect();
    let next = AtomicUsize::new(0);
    let count = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut tally = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..count).map(|_| scope.spawn(|| Worker::new(plan).run(&pages, &next))).collect();
        let tallies = workers.into_iter().map(|worker| worker.join().expect("a worker catches panics"));
        tallies.fold(Tally::default(), Tally::plus)
    });
    tally.lost.sort_unstable();
    tally
}

struct Worker<'a> {
    plan: &'a Plan<'a>,
    pool: Pool,
    /// Has recovered from what is sound, and reads segments in which a bit is flipped.
    serving: Option<World<'a>>,
    tally: Tally,
}

impl<'a> Worker<'a> {
    fn new(plan: &'a Plan<'a>) -> Self {
        Self { plan, pool: fresh_pool(), serving: None, tally: Tally::default() }
    }

    /// Takes page after page.
    fn run(mut self, pages: &[(File, usize)], next: &AtomicUsize) -> Tally {
        while let Some((file, page)) = pages.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
            let is_whole = self.plan.whole_pages.contains(&(file, page));
            for within in 0..PAGE_BYTES {
                let position = page * PAGE_BYTES + within;
                if is_whole || within < HEADER_BYTES || position.is_multiple_of(STEP) {
                    self.flip(Flip::at(file, position));
                }
            }
            self.serving = None;
            self.check_pool(file, page);
            if self.tally.failures.len() >= FAILURES_MAX {
                break;
            }
        }
        self.tally
    }

    /// Memory that a shard has not given back is lost to a broker that runs for months.
    fn check_pool(&mut self, file: File, page: usize) {
        let held = self.pool.used_bytes();
        if held > 0 {
            let what = format!("{held} bytes of memory are held by nobody after {file:?}, page {page}");
            self.tally.failures.push(what);
            self.pool = fresh_pool();
        }
    }

    fn flip(&mut self, flip: Flip) {
        let judged = catch_unwind(AssertUnwindSafe(|| self.judge(flip)));
        let outcome = judged.unwrap_or_else(|panic| Err(format!("a panic: {}", words_of(&*panic))));
        if outcome.is_err() {
            // What has failed in the middle of something may hold memory; the next start shall not suffer for it.
            self.serving = None;
            self.pool = fresh_pool();
        }
        self.tally.note(flip, outcome);
    }

    fn judge(&mut self, flip: Flip) -> Result<Verdict, String> {
        let plan = self.plan;
        if matches!(flip.file, File::Segment(_)) && !plan.recovery_reads_segments {
            let mut world = match self.serving.take() {
                Some(world) => world,
                None => self.start(None).map_err(|error| format!("{error:?}"))?,
            };
            world.disk_mut().set_flip(flip);
            let verdict = read_all(&mut world, plan.reference);
            self.serving = Some(world);
            return verdict;
        }
        match self.start(Some(flip)) {
            Ok(mut world) => read_all(&mut world, plan.reference),
            // The disk does what it is told, and memory is enough: neither would be a reason.
            Err(NoStart::Refused(error @ (RecoveryError::Io { .. } | RecoveryError::OutOfMemory))) => {
                Err(format!("the start was refused: {error}"))
            }
            Err(NoStart::Refused(_)) => Ok(Verdict::Refused),
            Err(NoStart::Broken(what)) => Err(what),
        }
    }

    fn start(&self, flip: Option<Flip>) -> Result<World<'a>, NoStart> {
        World::start(Disk::new(self.plan.directory, flip), &self.pool, self.plan.wall_ms)
    }
}

impl Tally {
    /// What came of the flips in files of this kind.
    pub(crate) fn of(&self, kind: &str) -> Counts {
        self.counts.get(kind).copied().unwrap_or_default()
    }

    fn note(&mut self, flip: Flip, outcome: Result<Verdict, String>) {
        let counts = self.counts.entry(kind_of(flip.file)).or_default();
        match outcome {
            Ok(Verdict::Same) => counts.same += 1,
            Ok(Verdict::Refused) => counts.refused += 1,
            Ok(Verdict::Unreadable) => counts.unreadable += 1,
            Ok(Verdict::Lost) => {
                counts.lost += 1;
                self.lost.push(flip);
            }
            Err(what) => {
                let Flip { file, position, bit } = flip;
                self.failures.push(format!("{file:?}, byte {position}, bit {bit}: {what}"));
            }
        }
    }

    fn plus(mut self, other: Self) -> Self {
        for (kind, more) in other.counts {
            let counts = self.counts.entry(kind).or_default();
            counts.same += more.same;
            counts.refused += more.refused;
            counts.unreadable += more.unreadable;
            counts.lost += more.lost;
        }
        self.lost.extend(other.lost);
        self.failures.extend(other.failures);
        self
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, Counts { same, refused, unreadable, lost }) in &self.counts {
            let flips = same + refused + unreadable + lost;
            write!(
                f,
                "\n  {kind}: {flips} flips, {same} same data, {refused} refused, {unreadable} with a range that \
                 cannot be read, {lost} lost"
            )?;
        }
        Ok(())
    }
}

fn kind_of(file: File) -> &'static str {
    match file {
        File::Superblock => "superblock",
        File::Journal(_) => "journal",
        File::Snapshot(_) => "snapshot",
        File::Segment(_) => "segment",
    }
}

/// What a panic has said.
fn words_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it has no words")
}
