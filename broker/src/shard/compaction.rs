//! Compaction by key: what is rewritten when. A thread does the work; here its outcome takes the place of what it was
//! made from, by an entry.
//!
//! ```text
//! | clean | clean | clean | dirty | dirty | dirty | not sealed |      clean: compacted, no key stands twice in them
//!  job 1 rewrites  job 2    job 3  job 4           one round, oldest first; each looks for the keys of all the dirty
//! ```
//!
//! A round begins when a partition has as much dirty as clean. It covers the dirty segments from the first on whose keys
//! fit into memory. A job's segments fit into one, and are all clean or all dirty. So clean is always a front part of the
//! log, also when a round breaks off, and the next one begins with what is dirty then: nothing else is to be remembered.
//! For the same reason an old tombstone may go: what it deletes lies before it, and was rewritten without it earlier.

use std::collections::BTreeMap;

use protocol::ids::{Handle, Offset};
use protocol::limits::BATCH_BYTES_MAX;
use zerocopy::IntoBytes;

use super::serving::Serving;
use super::state::Removal;
use super::work::Work;
use crate::io::{CompactError, CompactJob, CompactSource, Compacted, File, Now, Op, Rewritten};
use crate::journal::JournalFull;
use crate::journal::entry::{EntryKind, SegmentsReplaced};
use crate::limits::{
    ANSWER_OVERHEAD_BYTES, COMPACT_INTERVAL_NS, COMPACT_KEYS_BYTES_MAX, COMPACT_KEYS_MAX, COMPACT_RETRY_NS,
    COMPACT_SEGMENTS_WORTHWHILE, COMPACT_SOURCES_MAX, RETENTION_PER_TURN_MAX,
};
use crate::log::{Segment, SegmentNumber, SegmentState};
use crate::partition::Partition;

/// Where compaction stands. Partitions have their rounds one after another.
#[derive(Debug)]
pub(super) struct Compaction {
    /// The partition to look at next: slot of its topic, and number.
    next: (usize, usize),
    due_ns: u64,
    round: Option<Round>,
    running: Option<Running>,
    /// A job that has ended, and whose entry the journal has not taken yet.
    ended: Option<(Running, Compacted)>,
    blocked: BTreeMap<Handle, Blocked>,
    has_warned: bool,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    partition: Handle,
    /// The offsets whose keys are looked for.
    dirty: (Offset, Offset),
    /// What lies before was rewritten.
    next: Offset,
}

/// A job under way.
#[derive(Debug)]
struct Running {
    partition: Handle,
    keys: Vec<CompactSource>,
    sources: Vec<CompactSource>,
    number: SegmentNumber,
}

/// Why a partition has no rounds for now.
#[derive(Clone, Copy, Debug)]
enum Blocked {
    /// This segment is there, and cannot be read, or not be compacted.
    By(File),
    /// Nothing behind this offset was sealed since.
    Until(Offset),
}

impl Compaction {
    pub(super) fn new(now: Now) -> Self {
        Self {
            next: (0, 0),
            due_ns: now.monotonic_ns,
            round: None,
            running: None,
            ended: None,
            blocked: BTreeMap::new(),
            has_warned: false,
        }
    }

    /// Whether a job reads this file.
    pub(super) fn is_reading(&self, file: File) -> bool {
        self.running.as_ref().is_some_and(|running| {
            running.keys.iter().chain(&running.sources).any(|source| source.file == file)
        })
    }

    fn is_blocked(&self, partition: &Partition) -> bool {
        match self.blocked.get(&partition.handle) {
            None => false,
            Some(Blocked::By(file)) => partition.log.segments().iter().any(|segment| segment.file() == *file),
            Some(Blocked::Until(end)) => sealed(partition).all(|segment| segment.end_offset <= *end),
        }
    }
}

impl Serving {
    /// Compaction's part of a turn. It has no deadline: a job's end wakes the shard, and retention does as often as
    /// this looks for something to do.
    pub(super) fn compact(&mut self) {
        if let Some((running, compacted)) = self.compaction.ended.take()
            && !self.end_job(&running, compacted)
        {
            // The journal takes nothing now.
            self.compaction.ended = Some((running, compacted));
            return;
        }
        if self.compaction.running.is_some() || self.is_shutting_down() {
            return;
        }
        if let Some(round) = self.compaction.round.take()
            && self.begin_job(round)
        {
            return;
        }
        if self.compaction.due_ns <= self.now.monotonic_ns {
            self.compaction.due_ns = self.now.monotonic_ns + COMPACT_INTERVAL_NS;
            self.look_for_round();
        }
    }

    fn look_for_round(&mut self) {
        for _ in 0..RETENTION_PER_TURN_MAX {
            let (slot, number) = self.compaction.next;
            let partitions = &self.state.partitions;
            if slot >= partitions.slot_count() {
                self.compaction.next = (0, 0);
                self.compaction.blocked.retain(|handle, _| partitions.get(*handle).is_some());
                return;
            }
            let Some(partition) = partitions.in_slot(slot).get(number) else {
                self.compaction.next = (slot + 1, 0);
                continue;
            };
            self.compaction.next = (slot, number + 1);
            let round = round_of(partition).filter(|_| !self.compaction.is_blocked(partition));
            if let Some(round) = round
                && self.begin_job(round)
            {
                return;
            }
        }
    }

    /// Asks for the next job of a round; `false` when there is none.
    fn begin_job(&mut self, round: Round) -> bool {
        let Some(partition) = self.state.partitions.get(round.partition) else { return false };
        // A segment whose file is about to grow or shrink is let alone.
        let (dirty_from, dirty_to) = round.dirty;
        let is_usable =
            |segment: &&Segment| segment.end_offset <= dirty_to && !self.space.is_awaited_for(segment.number);
        let usable: Vec<&Segment> = sealed(partition).take_while(is_usable).collect();
        let from = |offset: Offset| usable.partition_point(|segment| segment.base_offset < offset);
        let keys: Vec<_> = usable[from(dirty_from)..].iter().copied().map(source_of).collect();
        let sources =
            sources_of_job(&usable[from(round.next)..], dirty_from, partition.settings.segment_bytes);
        if keys.is_empty() || sources.is_empty() {
            return false;
        }
        let number = SegmentNumber(self.state.next_segment);
        self.state.next_segment += 1;
        let frame_bytes_max = self.config.frame_bytes_max as usize;
        let job = CompactJob {
            partition: round.partition,
            directory_id: self.journal.identity().directory_id,
            keys: keys.clone(),
            sources: sources.clone(),
            number: number.0,
            batch_bytes_max: (frame_bytes_max - ANSWER_OVERHEAD_BYTES).min(BATCH_BYTES_MAX),
            now_ms: self.retention.wall_ms(self.now),
        };
        self.ops.push(Op::Compact { token: Work::Compaction.token(0), job: Box::new(job) });
        self.compaction.running = Some(Running { partition: round.partition, keys, sources, number });
        self.compaction.round = Some(round);
        true
    }

    /// The job under way has ended.
    pub(super) fn on_compacted(&mut self, result: Result<Compacted, CompactError>) {
        let running = self.compaction.running.take().expect("a job ends once");
        match result {
            Ok(compacted) => {
                self.compaction.has_warned = false;
                self.compaction.ended = Some((running, compacted));
            }
            Err(error) => self.on_compaction_failed(&running, error),
        }
    }

    /// The round breaks off. What cannot be read, or gains nothing, is not tried again until something has changed.
    fn on_compaction_failed(&mut self, running: &Running, error: CompactError) {
        self.compaction.round = None;
        let handle = running.partition;
        let blocked = match error {
            CompactError::Read(file, _) | CompactError::Damaged(file, _) => Some(Blocked::By(file)),
            CompactError::TooManyKeys => running.keys.first().map(|first| Blocked::By(first.file)),
            CompactError::NoGain => {
                let partition = self.state.partitions.get(handle);
                let last = partition.and_then(|partition| sealed(partition).last());
                last.map(|last| Blocked::Until(last.end_offset))
            }
            CompactError::Write(_) | CompactError::Memory => None,
        };
        let Some(blocked) = blocked else {
            self.compaction.due_ns = self.now.monotonic_ns + COMPACT_RETRY_NS;
            if !std::mem::replace(&mut self.compaction.has_warned, true) {
                tracing::warn!(partition = %handle, %error, "cannot compact; trying again");
            }
            return;
        };
        self.compaction.blocked.insert(handle, blocked);
        match blocked {
            Blocked::By(_) => {
                tracing::error!(partition = %handle, %error, "cannot compact while this segment is there");
            }
            Blocked::Until(_) => {
                tracing::info!(partition = %handle, %error, "nothing is compacted until more was written");
            }
        }
    }

    /// Puts the successor in the place of its sources, if they are still there. `false` when the journal takes nothing
    /// now.
    fn end_job(&mut self, running: &Running, compacted: Compacted) -> bool {
        let sources = &running.sources[..compacted.source_count];
        let (Some(first), Some(last)) = (sources.first(), sources.last()) else { return true };
        if let Some(rewritten) = compacted.rewritten {
            if !self.are_there(running.partition, sources) {
                // Retention was faster, or the topic is gone.
                self.drop_successor(running, rewritten);
                return true;
            }
            if !self.replace(running, (first, last), sources.len(), rewritten) {
                return false;
            }
        }
        if let Some(round) = &mut self.compaction.round {
            round.dirty.1 = round.dirty.1.min(compacted.keys_to);
            round.next = last.end_offset;
        }
        true
    }

    /// Whether these segments still follow one another in the log.
    fn are_there(&self, handle: Handle, sources: &[CompactSource]) -> bool {
        let Some(partition) = self.state.partitions.get(handle) else { return false };
        let segments = partition.log.segments();
        let first = sources.first().map(|first| first.file);
        let at = segments.iter().position(|segment| Some(segment.file()) == first);
        at.is_some_and(|at| {
            let files = segments.iter().skip(at).take(sources.len()).map(Segment::file);
            files.eq(sources.iter().map(|source| source.file))
        })
    }

    /// Nothing will ever name the successor: its file goes.
    fn drop_successor(&mut self, running: &Running, rewritten: Rewritten) {
        self.compaction.round = None;
        if rewritten.bytes > 0 {
            let lsn = self.journal.appended();
            self.state.removals.push_back(Removal { number: running.number, lsn });
        }
    }

    fn replace(
        &mut self,
        running: &Running,
        (first, last): (&CompactSource, &CompactSource),
        count: usize,
        rewritten: Rewritten,
    ) -> bool {
        let File::Segment(first_number) = first.file else { return true };
        let body_bytes = size_of::<SegmentsReplaced>();
        if self.journal.reserve(EntryKind::ReplaceSegments, body_bytes).is_err() {
            return false;
        }
        let replaced = SegmentsReplaced {
            first: first_number.into(),
            count: (count as u32).into(),
            has_successor: u32::from(rewritten.bytes > 0).into(),
            number: running.number.0.into(),
            base_offset: first.base_offset.0.into(),
            end_offset: last.end_offset.0.into(),
            base: first.base.into(),
            end: (first.base + rewritten.bytes).into(),
            last_ms: rewritten.last_ms.into(),
            time_ms: self.now.wall_ms.into(),
        };
        let handle = running.partition;
        let lsn = self.journal.append(EntryKind::ReplaceSegments, handle.0, body_bytes, |body| {
            body.copy_from_slice(replaced.as_bytes());
        });
        let count = self.state.apply_replace(handle, &replaced, lsn);
        self.counters.compactions += count as u64;
        // Whoever reads what was replaced finds its place anew.
        self.wake_subscribers(handle);
        true
    }

    /// Closes the open segment of a compacted topic before it gets more records than there may be keys in memory: the
    /// keys of one segment always fit.
    pub(super) fn bound_records(&mut self, handle: Handle, record_count: u64) -> Result<(), JournalFull> {
        let partition = self.state.partitions.get(handle).filter(|partition| partition.settings.is_compacted);
        let open = partition.and_then(|partition| partition.log.open_segment());
        let is_over = open.is_some_and(|open| {
            let records = open.end_offset.0 - open.base_offset.0;
            records > 0 && records + record_count > COMPACT_KEYS_MAX as u64
        });
        if is_over && !self.close_segment(handle) {
            return Err(JournalFull::Pending);
        }
        Ok(())
    }
}

/// The sealed segments at the front of a partition's log: all of them, but while later ones are sealed first.
fn sealed(partition: &Partition) -> impl Iterator<Item = &Segment> {
    partition.log.segments().iter().take_while(|segment| segment.state == SegmentState::Sealed)
}

/// The round that a partition has earned.
fn round_of(partition: &Partition) -> Option<Round> {
    let settings = partition.settings;
    if !settings.is_compacted {
        return None;
    }
    let clean_count = sealed(partition).take_while(|segment| segment.is_compacted).count();
    let clean_bytes: u64 = sealed(partition).take(clean_count).map(Segment::bytes).sum();
    let dirty_bytes: u64 = sealed(partition).skip(clean_count).map(Segment::bytes).sum();
    let dirty_count = sealed(partition).skip(clean_count).count();
    // A full segment may be half empty: a long batch did not fit.
    let is_much = 2 * dirty_bytes >= settings.segment_bytes || dirty_count >= COMPACT_SEGMENTS_WORTHWHILE;
    if !is_much || dirty_bytes < clean_bytes {
        return None;
    }
    let next = sealed(partition).next()?.base_offset;
    let dirty_from = sealed(partition).nth(clean_count)?.base_offset;
    let (mut bytes, mut dirty_to) = (0, dirty_from);
    for segment in sealed(partition).skip(clean_count).take(COMPACT_SOURCES_MAX) {
        bytes += segment.bytes();
        if bytes > COMPACT_KEYS_BYTES_MAX && dirty_to > dirty_from {
            break;
        }
        dirty_to = segment.end_offset;
    }
    Some(Round { partition: partition.handle, dirty: (dirty_from, dirty_to), next })
}

/// Segments from the front on that fit into one, and are all clean or all dirty; at least one, if there is one.
fn sources_of_job(segments: &[&Segment], dirty_from: Offset, segment_bytes: u64) -> Vec<CompactSource> {
    let (mut sources, mut bytes) = (Vec::new(), 0);
    let mut begins_clean = false;
    for segment in segments.iter().take(COMPACT_SOURCES_MAX) {
        let is_clean = segment.base_offset < dirty_from;
        bytes += segment.bytes();
        if sources.is_empty() {
            begins_clean = is_clean;
        } else if bytes > segment_bytes || is_clean != begins_clean {
            break;
        }
        sources.push(source_of(segment));
    }
    sources
}

fn source_of(segment: &Segment) -> CompactSource {
    CompactSource {
        file: segment.file(),
        base_offset: segment.base_offset,
        end_offset: segment.end_offset,
        base: segment.base.0,
        bytes: segment.bytes(),
        has_gaps: segment.is_compacted,
    }
}
