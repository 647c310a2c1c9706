//! Checkpoints: the state goes into a snapshot, so that the journal before it can be used again.
//!
//! ```text
//! capture (some partitions in each turn) -> drain (segments are written as far as captured, the journal is durable as
//! far as captured) -> sync (segments) -> flush (the snapshot's blocks) -> header -> flush: published
//! ```
//!
//! Two snapshots are kept, and the journal down to where the older one's replay begins. A checkpoint needs no space that
//! is not allocated already, so a full disk does not stop it.

use std::collections::VecDeque;

use zerocopy::IntoBytes;

use super::serving::Serving;
use super::work::Work;
use crate::io::{File, IoError, Op, Sync};
use crate::journal::entry::{CatalogCaptured, EntryKind, topic_subject};
use crate::journal::recovery::KeptSnapshot;
use crate::journal::snapshot::{
    SNAPSHOT_BLOCKS_AT, SNAPSHOT_FILES, SnapshotBlock, SnapshotHeader, SnapshotSequence, SnapshotWriter,
};
use crate::journal::{JournalFailure, Lsn, Place, ReplayStart};
use crate::limits::{
    CAPTURE_PER_TURN_MAX, FLUSHES_PER_CHECKPOINT_MAX, JOURNAL_CHECKPOINT_PART, PAGE_BYTES,
    REMOVALS_IN_FLIGHT_MAX, SNAPSHOT_BYTES_FIRST, SNAPSHOT_WRITES_MAX, SPACE_RETRY_NS,
};
use crate::partition::record::SEGMENT_RECORD_BYTES;

/// Bytes that a topic, and a partition without its segments and index, need in a snapshot at most.
const TOPIC_BYTES: u64 = 16 + 48 + 128;
const PARTITION_BYTES: u64 = 16 + 64 + SEGMENT_RECORD_BYTES as u64 + PAGE_BYTES as u64;
/// Records of an index per byte of an open segment: 16 bytes for 64 KiB.
const INDEX_PART: u64 = 4096;
/// Snapshots are made for the sake of files that wait for their removal, but not more often than this.
const REMOVAL_INTERVAL_NS: u64 = 250_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Capture,
    Drain,
    /// So many flushes have not ended.
    Sync(usize),
    FlushBlocks,
    WriteHeader,
    FlushHeader,
}

/// A checkpoint under way.
#[derive(Debug)]
struct Checkpoint {
    start: ReplayStart,
    writer: SnapshotWriter,
    /// Topics with a higher generation came after the catalog was captured.
    last_generation: u32,
    /// The next partition to capture: slot of its topic, and number.
    next: (usize, usize),
    captured: Lsn,
    blocks: VecDeque<SnapshotBlock>,
    writes_in_flight: usize,
    stage: Stage,
}

/// Snapshots that are kept, and the one that is made.
#[derive(Debug)]
pub(super) struct Checkpoints {
    kept: Vec<KeptSnapshot>,
    next: SnapshotSequence,
    file_bytes: [u64; SNAPSHOT_FILES as usize],
    /// Snapshot files whose growth was asked for.
    growing: usize,
    has_failed_to_grow: bool,
    grow_not_before_ns: u64,
    /// Room that a topic waits for.
    wanted_bytes: u64,
    /// Where the last replay would begin: what is written behind it is what a checkpoint would save.
    last_start: Place,
    last_begun_ns: u64,
    current: Option<Box<Checkpoint>>,
    removals_in_flight: usize,
    /// Snapshots published since the start.
    pub(super) published: u64,
}

impl Checkpoints {
    pub(super) fn new(
        kept: Vec<KeptSnapshot>,
        next: SnapshotSequence,
        file_bytes: [u64; SNAPSHOT_FILES as usize],
    ) -> Self {
        let last_start = kept.last().map_or(Place::default(), |kept| Place { file: kept.turn, position: 0 });
        Self {
            kept,
            next,
            file_bytes,
            growing: 0,
            has_failed_to_grow: false,
            grow_not_before_ns: 0,
            wanted_bytes: 0,
            last_start,
            last_begun_ns: 0,
            current: None,
            removals_in_flight: 0,
            published: 0,
        }
    }

    /// Whether the snapshot files cannot grow.
    pub(super) fn has_no_space(&self) -> bool {
        self.has_failed_to_grow
    }

    /// Whether the snapshot files are there, or it is known that they cannot be had.
    pub(super) fn is_settled(&self) -> bool {
        self.growing == 0 && (self.has_failed_to_grow || self.file_bytes.iter().all(|bytes| *bytes > 0))
    }

    /// The newest snapshot that is kept.
    pub(super) fn newest(&self) -> SnapshotSequence {
        self.kept.last().map_or(SnapshotSequence(0), |kept| kept.sequence)
    }

    /// Whether there is something to capture in the next turn.
    pub(super) fn is_capturing(&self) -> bool {
        self.current.as_ref().is_some_and(|current| {
            current.stage == Stage::Capture && current.blocks.len() <= SNAPSHOT_WRITES_MAX
        })
    }

    /// Whether nothing of this shard's is on its way to the disk.
    pub(super) fn is_idle(&self) -> bool {
        self.current
            .as_ref()
            .is_none_or(|current| current.stage == Stage::Capture && current.writes_in_flight == 0)
            && self.growing == 0
            && self.removals_in_flight == 0
    }
}

impl Serving {
    /// Whether a snapshot still has room when so many partitions and segments come.
    pub(super) fn snapshot_has_room(&self, more_partitions: u64, more_segments: u64) -> bool {
        let more =
            more_partitions * (PARTITION_BYTES + TOPIC_BYTES) + more_segments * SEGMENT_RECORD_BYTES as u64;
        let room = self.checkpoints.file_bytes.iter().min().copied().unwrap_or(0);
        self.snapshot_bytes_needed() + 2 * more <= room
    }

    /// An upper bound of the next snapshot's length.
    fn snapshot_bytes_needed(&self) -> u64 {
        let (topics, partitions) = (self.state.catalog.count() as u64, self.state.partitions.count() as u64);
        let segments = self.state.segment_count as u64;
        let open_bytes = partitions.min(segments) * crate::limits::SEGMENT_BYTES_DEFAULT;
        let index = self.state.stored_bytes.min(open_bytes) / INDEX_PART;
        let entries = topics * TOPIC_BYTES
            + partitions * PARTITION_BYTES
            + segments * SEGMENT_RECORD_BYTES as u64
            + index;
        // Blocks are not filled to the last byte.
        SNAPSHOT_BLOCKS_AT + 2 * PAGE_BYTES as u64 + entries + entries / 8
    }

    /// Lets checkpoints go on: the part of a turn that is theirs.
    pub(super) fn advance_checkpoint(&mut self) {
        self.grow_snapshots();
        self.remove_files();
        if self.checkpoints.current.is_none() {
            if self.checkpoint_is_due() {
                self.begin_checkpoint();
            }
            return;
        }
        let Some(mut current) = self.checkpoints.current.take() else { return };
        if current.stage == Stage::Capture {
            self.capture(&mut current);
        }
        self.write_blocks(&mut current);
        if current.stage == Stage::Drain
            && self.write_behind.undrained() == 0
            && current.captured <= self.journal.durable()
            && current.blocks.is_empty()
            && current.writes_in_flight == 0
        {
            self.sync_segments(&mut current);
        }
        self.checkpoints.current = Some(current);
    }

    /// Whether a checkpoint goes on in the next turn without waiting for anything.
    pub(super) fn checkpoint_has_work(&self) -> bool {
        self.checkpoints.is_capturing() && self.pool.used_bytes() < self.plan.tails_bytes
    }

    fn grow_snapshots(&mut self) {
        let needed = self.snapshot_bytes_needed().max(self.checkpoints.wanted_bytes);
        let is_due = self.checkpoints.growing == 0
            && (self.checkpoints.current.is_none() || self.checkpoints.wanted_bytes > 0)
            && self.checkpoints.grow_not_before_ns <= self.now.monotonic_ns
            && !self.is_shutting_down();
        if !is_due {
            return;
        }
        self.checkpoints.has_failed_to_grow = false;
        for number in 0..SNAPSHOT_FILES {
            if self.checkpoints.file_bytes[usize::from(number)] < (2 * needed).max(SNAPSHOT_BYTES_FIRST) {
                let bytes = (4 * needed).max(SNAPSHOT_BYTES_FIRST).next_power_of_two();
                self.checkpoints.growing += 1;
                self.ops.push(Op::Allocate { file: File::Snapshot(number), bytes, header: None });
            }
        }
    }

    pub(super) fn on_snapshot_allocated(&mut self, number: u8, bytes: u64, result: Result<(), IoError>) {
        self.checkpoints.growing -= 1;
        if result == Err(IoError::NOT_DURABLE) && self.fail_unless_ok("sync", File::Snapshot(number), result)
        {
            return;
        }
        self.checkpoints.has_failed_to_grow |= result.is_err();
        match result {
            Ok(()) => self.checkpoints.file_bytes[usize::from(number)] = bytes,
            Err(error) => {
                self.checkpoints.grow_not_before_ns = self.now.monotonic_ns + SPACE_RETRY_NS;
                tracing::warn!(%error, "cannot allocate space for snapshots; trying again");
            }
        }
        if self.checkpoints.growing == 0 {
            self.checkpoints.wanted_bytes = 0;
            self.redo_creations();
        }
    }

    /// Has the snapshot files grow for so many more partitions.
    pub(super) fn ask_for_snapshot_room(&mut self, partitions: u64) {
        let more = partitions * (PARTITION_BYTES + TOPIC_BYTES);
        self.checkpoints.wanted_bytes =
            self.checkpoints.wanted_bytes.max(self.snapshot_bytes_needed() + 2 * more);
    }

    fn checkpoint_is_due(&self) -> bool {
        let checkpoints = &self.checkpoints;
        let (_, prepared_bytes, used_bytes) = self.journal.space();
        let part = prepared_bytes / JOURNAL_CHECKPOINT_PART;
        let is_much = self.journal.bytes_since(checkpoints.last_start) >= part;
        // Nearly full, and the next snapshot would let files go: a checkpoint that began late freed too little.
        let frees =
            checkpoints.kept.last().is_none_or(|last| last.turn < self.journal.replay_start().place.file);
        let is_short = used_bytes > prepared_bytes - part && frees;
        let waits_for_removal = self
            .state
            .removals
            .front()
            .is_some_and(|first| !self.may_remove(first.lsn) && first.lsn <= self.journal.durable())
            && checkpoints.last_begun_ns + REMOVAL_INTERVAL_NS <= self.now.monotonic_ns;
        let has_room = self.snapshots_suffice();
        (is_much || is_short || waits_for_removal)
            && has_room
            && checkpoints.growing == 0
            && !self.is_shutting_down()
    }

    /// Whether the snapshot files have room for the state as it is.
    fn snapshots_suffice(&self) -> bool {
        self.snapshot_bytes_needed() <= self.checkpoints.file_bytes.iter().min().copied().unwrap_or(0)
    }

    /// When a checkpoint is due that nothing else would wake the shard for.
    pub(super) fn checkpoint_deadline_ns(&self) -> Option<u64> {
        let checkpoints = &self.checkpoints;
        let has_unsaved = self
            .state
            .removals
            .front()
            .is_some_and(|first| !self.may_remove(first.lsn) && first.lsn <= self.journal.durable());
        let waits = has_unsaved
            && checkpoints.current.is_none()
            && checkpoints.growing == 0
            && self.snapshots_suffice()
            && !self.is_shutting_down();
        let retries = checkpoints.has_failed_to_grow && checkpoints.growing == 0;
        [
            waits.then_some(checkpoints.last_begun_ns + REMOVAL_INTERVAL_NS),
            retries.then_some(checkpoints.grow_not_before_ns),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The catalog is captured whole, in one turn: it is small.
    fn begin_checkpoint(&mut self) {
        self.checkpoints.last_begun_ns = self.now.monotonic_ns;
        let identity = self.journal.identity();
        let sequence = self.checkpoints.next;
        let writer = SnapshotWriter::new(self.pool.clone(), identity, self.journal.epoch(), sequence);
        let applied = self.journal.appended();
        let mut checkpoint = Box::new(Checkpoint {
            start: self.journal.replay_start(),
            writer,
            last_generation: self.state.catalog.last_generation(),
            next: (0, 0),
            captured: applied,
            blocks: VecDeque::new(),
            writes_in_flight: 0,
            stage: Stage::Capture,
        });
        // Without memory for the whole catalog it is tried again later.
        if self.capture_catalog(&mut checkpoint, applied) {
            self.checkpoints.last_start = checkpoint.start.place;
            self.checkpoints.current = Some(checkpoint);
        }
    }

    fn capture_catalog(&self, checkpoint: &mut Checkpoint, applied: Lsn) -> bool {
        let captured = CatalogCaptured {
            applied_lsn: applied.0.into(),
            next_segment: self.state.next_segment.into(),
            last_generation: checkpoint.last_generation.into(),
            topic_count: (self.state.catalog.count() as u32).into(),
        };
        let body_bytes = size_of::<CatalogCaptured>();
        if !reserve(checkpoint, body_bytes) {
            return false;
        }
        checkpoint.writer.add(EntryKind::CaptureCatalog, 0, body_bytes, |body| {
            body.copy_from_slice(captured.as_bytes());
        });
        for topic in self.state.catalog.iter() {
            let created = topic.as_created();
            if !reserve(checkpoint, created.body_bytes()) {
                return false;
            }
            let subject = topic_subject(topic.key);
            checkpoint
                .writer
                .add(EntryKind::CreateTopic, subject, created.body_bytes(), |body| created.write(body));
        }
        true
    }

    fn capture(&mut self, checkpoint: &mut Checkpoint) {
        let applied = self.journal.appended();
        for _ in 0..CAPTURE_PER_TURN_MAX {
            if checkpoint.blocks.len() > SNAPSHOT_WRITES_MAX {
                return;
            }
            let (slot, number) = checkpoint.next;
            if slot >= self.state.partitions.slot_count() {
                if let Some(block) = checkpoint.writer.seal() {
                    checkpoint.blocks.push_back(block);
                }
                checkpoint.stage = Stage::Drain;
                return;
            }
            let Some(partition) = self.state.partitions.in_slot(slot).get(number) else {
                checkpoint.next = (slot + 1, 0);
                continue;
            };
            if partition.handle.topic().generation > checkpoint.last_generation {
                checkpoint.next = (slot + 1, 0);
                continue;
            }
            let body_bytes = partition.record_bytes();
            if !reserve(checkpoint, body_bytes) {
                return;
            }
            let handle = partition.handle;
            checkpoint.writer.add(EntryKind::CapturePartition, handle.0, body_bytes, |body| {
                partition.write_record(applied, body);
            });
            checkpoint.captured = checkpoint.captured.max(applied);
            checkpoint.next = (slot, number + 1);
            if let Some(partition) = self.state.partitions.get_mut(handle) {
                self.write_behind.begin_drain(partition);
            }
        }
    }

    fn write_blocks(&mut self, checkpoint: &mut Checkpoint) {
        let file = File::Snapshot(checkpoint.writer.sequence().file());
        while checkpoint.writes_in_flight < SNAPSHOT_WRITES_MAX {
            let Some(block) = checkpoint.blocks.pop_front() else { return };
            checkpoint.writes_in_flight += 1;
            let (position, data) = (block.position, block.data);
            self.ops.push(Op::Write {
                token: Work::SnapshotBlock.token(0),
                file,
                position,
                data,
                sync: Sync::Later,
            });
        }
    }

    /// Everything that was captured is written: now it is made durable.
    fn sync_segments(&mut self, checkpoint: &mut Checkpoint) {
        let dirty = self.write_behind.take_dirty();
        let count = dirty.len();
        if count > FLUSHES_PER_CHECKPOINT_MAX {
            checkpoint.stage = Stage::Sync(1);
            self.ops.push(Op::SyncAll { token: Work::SegmentFlush.token(0) });
            return;
        }
        checkpoint.stage = Stage::Sync(count);
        for file in dirty {
            self.ops.push(Op::Flush { token: Work::SegmentFlush.token(0), file });
        }
        if count == 0 {
            self.flush_blocks(checkpoint);
        }
    }

    fn flush_blocks(&mut self, checkpoint: &mut Checkpoint) {
        checkpoint.stage = Stage::FlushBlocks;
        let file = File::Snapshot(checkpoint.writer.sequence().file());
        self.ops.push(Op::Flush { token: Work::SnapshotBlock.token(0), file });
    }

    /// A flush of segments has ended.
    pub(super) fn on_segments_flushed(&mut self, result: Result<(), IoError>) {
        if self.fail_unless_ok("flush", File::Segment(0), result) {
            return;
        }
        let mut current = self.checkpoints.current.take().expect("its flushes are in flight");
        let Stage::Sync(left) = &mut current.stage else {
            unreachable!("segments are flushed in one stage only")
        };
        *left -= 1;
        if *left == 0 {
            self.flush_blocks(&mut current);
        }
        self.checkpoints.current = Some(current);
    }

    /// A block of the snapshot was written.
    pub(super) fn on_snapshot_block_written(&mut self, result: Result<(), IoError>) {
        let current = self.checkpoints.current.as_mut().expect("its blocks are in flight");
        current.writes_in_flight -= 1;
        let file = File::Snapshot(current.writer.sequence().file());
        self.fail_unless_ok("write", file, result);
    }

    /// A flush of the snapshot's file has ended: of its blocks, or of its header.
    pub(super) fn on_snapshot_flushed(&mut self, result: Result<(), IoError>) {
        let mut current = self.checkpoints.current.take().expect("its flush is in flight");
        let file = File::Snapshot(current.writer.sequence().file());
        if self.fail_unless_ok("flush", file, result) {
            return;
        }
        match current.stage {
            Stage::FlushBlocks => {
                let Some(mut page) = self.pool.buffer(PAGE_BYTES) else {
                    // Flushed again in the next turn, and then there may be memory.
                    self.flush_blocks(&mut current);
                    self.checkpoints.current = Some(current);
                    return;
                };
                let header = header_of(&current, self.journal.epoch());
                header.write(self.journal.identity(), &mut page[..PAGE_BYTES]);
                current.stage = Stage::WriteHeader;
                let data = page.freeze(0..PAGE_BYTES);
                let token = Work::SnapshotHeader.token(0);
                self.ops.push(Op::Write { token, file, position: 0, data, sync: Sync::Later });
                self.checkpoints.current = Some(current);
            }
            Stage::FlushHeader => self.publish(&current),
            _ => unreachable!("a snapshot is flushed twice"),
        }
    }

    /// The snapshot's header was written.
    pub(super) fn on_snapshot_header_written(&mut self, result: Result<(), IoError>) {
        let current = self.checkpoints.current.as_mut().expect("its header is in flight");
        let file = File::Snapshot(current.writer.sequence().file());
        current.stage = Stage::FlushHeader;
        if !self.fail_unless_ok("write", file, result) {
            self.ops.push(Op::Flush { token: Work::SnapshotBlock.token(0), file });
        }
    }

    fn publish(&mut self, checkpoint: &Checkpoint) {
        let start = checkpoint.start;
        let sequence = checkpoint.writer.sequence();
        let kept = KeptSnapshot { sequence, turn: start.place.file, next_sequence: start.next_sequence };
        self.checkpoints.next = sequence.next();
        self.checkpoints.published += 1;
        self.checkpoints.kept.push(kept);
        if self.checkpoints.kept.len() > usize::from(SNAPSHOT_FILES) {
            self.checkpoints.kept.remove(0);
        }
        if self.checkpoints.kept.len() == usize::from(SNAPSHOT_FILES) {
            self.journal.recycle(self.checkpoints.kept[0].turn);
        }
        self.remove_files();
    }

    /// Whether no kept snapshot, and no replay behind one, names what an entry has dropped.
    fn may_remove(&self, lsn: Lsn) -> bool {
        let kept = &self.checkpoints.kept;
        kept.len() == usize::from(SNAPSHOT_FILES) && lsn < Lsn::new(kept[0].next_sequence, 0)
    }

    fn remove_files(&mut self) {
        while self.checkpoints.removals_in_flight < REMOVALS_IN_FLIGHT_MAX
            && let Some(first) = self.state.removals.front().copied()
            && self.may_remove(first.lsn)
            && !self.is_in_use(File::Segment(first.number.0))
            && !self.space.is_awaited_for(first.number)
        {
            self.state.removals.pop_front();
            self.checkpoints.removals_in_flight += 1;
            let file = File::Segment(first.number.0);
            self.write_behind.forget_file(file);
            self.ops.push(Op::Remove { file });
        }
    }

    /// Whether an operation on a segment's file is in flight.
    fn is_in_use(&self, file: File) -> bool {
        let is_syncing =
            self.checkpoints.current.as_ref().is_some_and(|current| matches!(current.stage, Stage::Sync(_)));
        is_syncing
            || self.write_behind.is_writing(file)
            || self.cold.is_reading(file)
            || self.compaction.is_reading(file)
    }

    pub(super) fn on_removed(&mut self, file: File, result: Result<(), IoError>) {
        self.checkpoints.removals_in_flight -= 1;
        if result == Err(IoError::NOT_DURABLE) && self.fail_unless_ok("sync", file, result) {
            return;
        }
        match result {
            Ok(()) => self.counters.removed_files += 1,
            // The next start finds it, and that nothing names it.
            Err(error) => {
                tracing::warn!(%error, ?file, "cannot remove a segment that is not needed any more")
            }
        }
    }

    /// Ends the shard if an operation on its storage has failed: it is never tried again.
    pub(super) fn fail_unless_ok(
        &mut self,
        action: &'static str,
        file: File,
        result: Result<(), IoError>,
    ) -> bool {
        if let Err(error) = result {
            self.storage_failure.get_or_insert(JournalFailure { action, file, error });
        }
        result.is_err()
    }
}

fn header_of(checkpoint: &Checkpoint, epoch: crate::journal::Epoch) -> SnapshotHeader {
    let (block_count, block_bytes, last_block_crc) = checkpoint.writer.sealed();
    SnapshotHeader {
        sequence: checkpoint.writer.sequence(),
        epoch,
        block_count,
        block_bytes,
        journal_file: checkpoint.start.file,
        journal_position: checkpoint.start.place.position,
        next_sequence: checkpoint.start.next_sequence,
        predecessor_crc: checkpoint.start.predecessor_crc,
        last_epoch: checkpoint.start.last_epoch,
        captured: checkpoint.captured,
        last_block_crc,
    }
}

/// Makes room for one more entry; `false` when there is no memory.
fn reserve(checkpoint: &mut Checkpoint, body_bytes: usize) -> bool {
    let (sealed, has_room) = checkpoint.writer.reserve(body_bytes);
    checkpoint.blocks.extend(sealed);
    has_room
}
