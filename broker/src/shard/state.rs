//! The durable state of a shard: what a snapshot holds and what entries change.
//!
//! Live traffic and replay call the same `apply`, so recovery is the normal path. A snapshot's objects were captured
//! at different times: replay skips what an object has already seen, object by object.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protocol::ids::{Handle, Offset, TopicKey};
use reactor::memory::Pool;
use zerocopy::FromBytes;

use crate::catalog::Catalog;
use crate::io::File;
use crate::journal::block::Entry;
use crate::journal::entry::{
    CatalogCaptured, EntryKind, SegmentClosed, SegmentOpened, SegmentsReplaced, SegmentsTrimmed,
    TopicCreated, topic_of_subject,
};
use crate::journal::recovery::RecoveryError;
use crate::journal::{BlockSequence, Lsn};
use crate::limits::PAGE_BYTES;
use crate::log::{Position, Segment, SegmentNumber, SegmentState, data_bytes_of};
use crate::partition::{Partition, PartitionTable};

/// A segment that nothing names any more, and the entry that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Removal {
    pub(super) number: SegmentNumber,
    pub(super) lsn: Lsn,
}

/// Topics and partitions.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) catalog: Catalog,
    pub(super) partitions: PartitionTable,
    /// The number of the next segment that is made.
    pub(super) next_segment: u64,
    /// Files that are to be removed once no kept snapshot needs them, in the order of LSNs.
    pub(super) removals: VecDeque<Removal>,
    /// Partitions whose tails may give memory back, in turn.
    pub(super) chunk_order: VecDeque<Handle>,
    /// Length of the chunks at the ends of all tails: what cannot be given back for now.
    pub(super) last_chunks_bytes: usize,
    /// Segments of all partitions.
    pub(super) segment_count: usize,
    /// Bytes of batches in all partitions, about: an upper bound of what indexes hold follows from it.
    pub(super) stored_bytes: u64,
    /// Topic changes up to here are in the snapshot that recovery began with.
    catalog_replayed: Lsn,
    /// Segment files that were there at the start, with their lengths.
    files: BTreeMap<SegmentNumber, u64>,
}

impl State {
    /// An empty state over these files.
    pub(super) fn new(files: &BTreeMap<File, u64>) -> Self {
        let segments = files.iter().filter_map(|(file, bytes)| match file {
            File::Segment(number) => Some((SegmentNumber(*number), *bytes)),
            File::Superblock | File::Journal(_) | File::Snapshot(_) => None,
        });
        Self { files: segments.collect(), ..Self::default() }
    }

    /// Takes over an entry of a snapshot.
    ///
    /// # Errors
    /// `OutOfMemory`, or `UnknownEntry` for what this version did not write.
    pub(super) fn restore(&mut self, pool: &Pool, entry: Entry<'_>) -> Result<(), RecoveryError> {
        let unknown = RecoveryError::UnknownEntry(entry.lsn.sequence().0);
        let subject = entry.header.subject.get();
        match entry.header.kind().ok_or(unknown)? {
            EntryKind::CaptureCatalog => {
                let (captured, _) = CatalogCaptured::read_from_prefix(entry.body).map_err(|_| unknown)?;
                self.catalog_replayed = Lsn(captured.applied_lsn.get());
                self.next_segment = captured.next_segment.get();
                self.catalog.restore_generation(captured.last_generation.get());
            }
            EntryKind::CreateTopic => {
                let topic = TopicCreated::read(subject, entry.body).ok_or(unknown)?;
                if !self.catalog.restore_topic(&topic) {
                    return Err(unknown);
                }
                self.partitions.apply_create(topic.key, topic.partition_count, topic.settings);
                for number in 0..topic.partition_count {
                    let handle = Handle::new(topic.key, number as u16);
                    let partition = self.partitions.get_mut(handle).expect("it was just made");
                    partition.is_missing = true;
                }
            }
            EntryKind::CapturePartition => {
                let partition = self.partitions.get_mut(Handle(subject)).ok_or(unknown)?;
                if !partition.restore(pool, entry.body).ok_or(unknown)? {
                    return Err(RecoveryError::OutOfMemory);
                }
                self.segment_count += partition.log.segments().len();
                self.stored_bytes += partition.log.bytes();
            }
            _ => return Err(unknown),
        }
        Ok(())
    }

    /// Applies an entry read from the journal, unless the snapshot has seen it.
    ///
    /// # Errors
    /// `OutOfMemory`, `UnknownEntry` for what this version did not write, `MissingSegment`.
    pub(super) fn replay(&mut self, pool: &Pool, entry: Entry<'_>) -> Result<(), RecoveryError> {
        let unknown = RecoveryError::UnknownEntry(entry.lsn.sequence().0);
        let subject = entry.header.subject.get();
        match entry.header.kind().ok_or(unknown)? {
            EntryKind::CreateTopic if self.catalog_replayed < entry.lsn => {
                let created = TopicCreated::read(subject, entry.body).ok_or(unknown)?;
                self.apply_create(&created);
            }
            EntryKind::DeleteTopic if self.catalog_replayed < entry.lsn => {
                let _ = self.apply_delete(topic_of_subject(subject), entry.lsn);
            }
            EntryKind::CreateTopic | EntryKind::DeleteTopic => {}
            kind => {
                let Some(partition) = self.partitions.get_mut(Handle(subject)) else {
                    // Of a topic that was deleted before the snapshot captured the catalog.
                    return if entry.lsn <= self.catalog_replayed { Ok(()) } else { Err(unknown) };
                };
                if partition.is_missing || entry.lsn <= partition.replayed {
                    return Ok(());
                }
                self.replay_in_partition(pool, kind, entry, Handle(subject))?;
            }
        }
        Ok(())
    }

    fn replay_in_partition(
        &mut self,
        pool: &Pool,
        kind: EntryKind,
        entry: Entry<'_>,
        handle: Handle,
    ) -> Result<(), RecoveryError> {
        let unknown = RecoveryError::UnknownEntry(entry.lsn.sequence().0);
        let partition = self.partitions.get_mut(handle).ok_or(unknown)?;
        match kind {
            EntryKind::Append => {
                if partition.log.open_segment().is_none() {
                    return Err(unknown);
                }
                if !self.reserve(pool, handle, entry.body.len()) {
                    return Err(RecoveryError::OutOfMemory);
                }
                let partition = self.partitions.get_mut(handle).ok_or(unknown)?;
                partition.apply_append(entry.body);
                self.stored_bytes += entry.body.len() as u64;
                let (end, position) = (partition.appended_end(), partition.log.tail.end());
                partition.on_durable(end, position);
            }
            EntryKind::OpenSegment => {
                let (opened, _) = SegmentOpened::read_from_prefix(entry.body).map_err(|_| unknown)?;
                let number = SegmentNumber(opened.number.get());
                let Some(file_bytes) = self.files.get(&number) else {
                    return Err(RecoveryError::MissingSegment(number.0));
                };
                let allocated_bytes = data_bytes_of(*file_bytes);
                let closed = self.apply_open(handle, &opened);
                let partition = self.partitions.get_mut(handle).ok_or(unknown)?;
                if let Some(closed) = closed {
                    partition.log.on_close_durable(closed);
                }
                let _ = partition.log.on_space(number, allocated_bytes, Ok(()));
            }
            EntryKind::CloseSegment => {
                let (closed, _) = SegmentClosed::read_from_prefix(entry.body).map_err(|_| unknown)?;
                if let Some(closed) = partition.log.apply_close(Offset(closed.end_offset.get())) {
                    partition.log.on_close_durable(closed);
                }
            }
            EntryKind::TrimSegments => {
                let (trimmed, _) = SegmentsTrimmed::read_from_prefix(entry.body).map_err(|_| unknown)?;
                self.apply_trim(handle, Offset(trimmed.start_offset.get()), entry.lsn);
            }
            EntryKind::ReplaceSegments => {
                let (replaced, _) = SegmentsReplaced::read_from_prefix(entry.body).map_err(|_| unknown)?;
                self.apply_replace(handle, &replaced, entry.lsn);
            }
            _ => return Err(unknown),
        }
        Ok(())
    }

    /// The journal was replayed to its end: what must hold now, and which files nobody names.
    ///
    /// # Errors
    /// `Contradiction` when a partition of a snapshot's topic is nowhere.
    pub(super) fn finish_replay(&mut self, next: BlockSequence) -> Result<(), RecoveryError> {
        if self.partitions.iter().any(|partition| partition.is_missing) {
            return Err(RecoveryError::Contradiction);
        }
        let is_missing = |segment: &&Segment| {
            segment.state != SegmentState::Sealed && !self.files.contains_key(&segment.number)
        };
        let missing = self.partitions.iter().flat_map(|partition| partition.log.segments()).find(is_missing);
        if let Some(segment) = missing {
            return Err(RecoveryError::MissingSegment(segment.number.0));
        }
        let named: BTreeSet<SegmentNumber> = self
            .partitions
            .iter()
            .flat_map(|partition| partition.log.segments().iter().map(|segment| segment.number))
            .chain(self.removals.iter().map(|removal| removal.number))
            .collect();
        let lsn = Lsn(Lsn::new(next, 0).0 - 1);
        let highest = self.files.keys().chain(named.iter()).map(|number| number.0 + 1).max().unwrap_or(0);
        self.next_segment = self.next_segment.max(highest);
        let files = std::mem::take(&mut self.files);
        let unnamed = files.into_keys().filter(|number| !named.contains(number));
        self.removals.extend(unnamed.map(|number| Removal { number, lsn }));
        for partition in self.partitions.iter_mut() {
            let (end, position) = (partition.appended_end(), partition.log.tail.end());
            partition.on_durable(end, position);
            partition.on_replayed();
        }
        Ok(())
    }

    /// Segments that the state names and that are not there, or too short, with their partitions.
    pub(super) fn missing_segments(&self, files: &BTreeMap<File, u64>) -> Vec<(Handle, SegmentNumber)> {
        let is_missing = |segment: &&Segment| {
            let needed = match segment.state {
                SegmentState::Sealed => segment.footer_position(),
                SegmentState::Open | SegmentState::Closing | SegmentState::Closed | SegmentState::Sealing => {
                    0
                }
            };
            files.get(&segment.file()).is_none_or(|bytes| *bytes < needed)
        };
        let of_partition = |partition: &Partition| {
            let handle = partition.handle;
            let missing = partition.log.segments().iter().filter(is_missing);
            missing.map(|segment| (handle, segment.number)).collect::<Vec<_>>()
        };
        self.partitions.iter().flat_map(of_partition).collect()
    }

    /// Makes room for batches in a partition's tail; `false` when there is no memory. Chunks grow while those at the
    /// ends of all tails hold less than a quarter of the memory: many partitions share it better in small ones.
    pub(super) fn reserve(&mut self, pool: &Pool, handle: Handle, bytes: usize) -> bool {
        let Some(partition) = self.partitions.get_mut(handle) else { return true };
        let last_bytes = partition.log.tail.last_chunk_bytes();
        let may_grow = self.last_chunks_bytes + last_bytes < pool.capacity_bytes() / 4;
        let Some(is_new) = partition.reserve(pool, bytes, may_grow) else { return false };
        if is_new {
            if !std::mem::replace(&mut partition.is_in_order, true) {
                self.chunk_order.push_back(handle);
            }
            let grown = self.last_chunks_bytes + partition.log.tail.last_chunk_bytes();
            self.last_chunks_bytes = grown.saturating_sub(last_bytes);
        }
        true
    }

    /// A tail was so long at its end, and has given memory back.
    pub(super) fn on_relieved(&mut self, last_bytes_before: usize, last_bytes: usize) {
        self.last_chunks_bytes = (self.last_chunks_bytes + last_bytes).saturating_sub(last_bytes_before);
    }

    pub(super) fn apply_create(&mut self, created: &TopicCreated<'_>) {
        self.catalog.apply_create(created);
        self.partitions.apply_create(created.key, created.partition_count, created.settings);
    }

    /// Removes a topic and gives its partitions.
    pub(super) fn apply_delete(&mut self, key: TopicKey, lsn: Lsn) -> Vec<Partition> {
        self.catalog.apply_delete(key);
        let mut partitions = self.partitions.apply_delete(key);
        for partition in &mut partitions {
            self.stored_bytes = self.stored_bytes.saturating_sub(partition.log.bytes());
            self.segment_count -= partition.log.segments().len();
            self.last_chunks_bytes =
                self.last_chunks_bytes.saturating_sub(partition.log.tail.last_chunk_bytes());
            let files = partition.log.take_files();
            self.removals.extend(files.into_iter().map(|number| Removal { number, lsn }));
        }
        partitions
    }

    /// Gives the segment that is closed by that.
    pub(super) fn apply_open(&mut self, handle: Handle, opened: &SegmentOpened) -> Option<SegmentNumber> {
        let number = SegmentNumber(opened.number.get());
        self.next_segment = self.next_segment.max(number.0 + 1);
        let partition = self.partitions.get_mut(handle)?;
        let (base_offset, base) = (Offset(opened.base_offset.get()), Position(opened.base.get()));
        self.segment_count += 1;
        partition.log.apply_open(Segment::open(number, base_offset, base, opened.time_ms.get()))
    }

    pub(super) fn apply_trim(&mut self, handle: Handle, start: Offset, lsn: Lsn) -> usize {
        let Some(partition) = self.partitions.get_mut(handle) else { return 0 };
        let before = partition.log.bytes();
        let removed = partition.apply_trim(start);
        self.stored_bytes = self.stored_bytes.saturating_sub(before - partition.log.bytes());
        self.segment_count -= removed.len();
        let count = removed.len();
        self.removals.extend(removed.into_iter().map(|number| Removal { number, lsn }));
        count
    }

    /// Gives the number of segments that were replaced.
    pub(super) fn apply_replace(&mut self, handle: Handle, replaced: &SegmentsReplaced, lsn: Lsn) -> usize {
        let Some(partition) = self.partitions.get_mut(handle) else { return 0 };
        let bytes = replaced.end.get().saturating_sub(replaced.base.get());
        let successor = (replaced.has_successor.get() == 1).then(|| Segment {
            number: SegmentNumber(replaced.number.get()),
            state: SegmentState::Sealed,
            base_offset: Offset(replaced.base_offset.get()),
            end_offset: Offset(replaced.end_offset.get()),
            base: Position(replaced.base.get()),
            end: Position(replaced.end.get()),
            opened_ms: replaced.time_ms.get(),
            last_ms: replaced.last_ms.get(),
            allocated_bytes: bytes.next_multiple_of(PAGE_BYTES as u64),
            is_compacted: true,
            index: crate::log::SparseIndex::default(),
        });
        let added = usize::from(successor.is_some());
        let (first, count) = (SegmentNumber(replaced.first.get()), replaced.count.get() as usize);
        let before = partition.log.bytes();
        let last_chunk_before = partition.log.tail.last_chunk_bytes();
        let removed = partition.log.apply_replace(first, count, successor);
        if removed.is_empty() {
            return 0;
        }
        let last_chunk = partition.log.tail.last_chunk_bytes();
        self.next_segment = self.next_segment.max(replaced.number.get() + 1);
        self.stored_bytes = self.stored_bytes.saturating_sub(before.saturating_sub(partition.log.bytes()));
        self.on_relieved(last_chunk_before, last_chunk);
        self.segment_count = self.segment_count + added - removed.len();
        let count = removed.len();
        self.removals.extend(removed.into_iter().map(|number| Removal { number, lsn }));
        count
    }
}
