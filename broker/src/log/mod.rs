//! A partition's log: segments on disk, and a tail in memory.
//!
//! ```text
//! | sealed segment | sealed segment | open segment: pages on disk | not on disk yet |
//!                              | tail in memory, as far as memory reaches back      |
//! start                                                  written    durable        end
//! ```
//!
//! Invariant: `written <= issued <= durable <= end`; what is not on disk is in the tail. Write-behind never passes what
//! the journal has made durable, and a page is written once: whole, or as the last one of a closed segment.

pub mod compact;
mod index;
mod segment;
mod tail;
mod verify;

use std::collections::VecDeque;

use protocol::batch::BatchHeader;
use protocol::ids::{Handle, Offset};
use reactor::memory::{Pool, Slice};

use crate::io::{File, IoError};
use crate::limits::{
    PAGE_BYTES, SEGMENT_BYTES_MIN, SEGMENT_FOOTER_BYTES, SPACE_GROWTH, WRITE_BEHIND_BYTES,
    WRITE_BEHIND_PER_PARTITION_MAX,
};

pub use index::{FooterFacts, IndexEntry, SparseIndex};
pub use segment::{Segment, SegmentHeader, SegmentState, data_bytes_of, file_bytes_for};
pub use tail::{Cut, ReadLimit, Run, Tail, cut_batches};
pub use verify::{CheckEnd, Checked, Expected, check_stored};

/// A byte's place in a partition's log, over all segments; a batch's place is that of its first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    /// So many bytes behind.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }

    /// Bytes of the page before it.
    #[must_use]
    pub fn in_page(self) -> usize {
        (self.0 % PAGE_BYTES as u64) as usize
    }

    /// Where its page begins.
    #[must_use]
    pub fn page_down(self) -> Self {
        Self(self.0 - self.in_page() as u64)
    }

    /// Itself if a page begins there, else where the next one does.
    #[must_use]
    pub fn page_up(self) -> Self {
        Self(self.0.next_multiple_of(PAGE_BYTES as u64))
    }
}

/// Number of a segment; never used twice in a data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(pub u64);

/// Where batches of some length can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Behind the last one.
    Here,
    /// Into this segment, which has to be opened first.
    Roll(SegmentNumber),
    /// Nowhere, until space was allocated.
    Wait,
}

/// Space that is to be allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceWanted {
    /// A new segment with room for so many bytes of batches.
    New(u64),
    /// More room in this segment: for so many bytes in all.
    Grow(SegmentNumber, u64),
}

/// One write behind the tail.
#[derive(Debug)]
pub struct WriteBehind {
    /// The segment's file.
    pub file: File,
    /// Place in the file.
    pub file_position: u64,
    /// Whole pages.
    pub data: Slice,
    /// What is written up to when it has completed: names the write.
    pub end: Position,
}

/// A file with space for the next segment.
#[derive(Clone, Copy, Debug)]
struct Spare {
    number: SegmentNumber,
    allocated_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    end: Position,
    is_done: bool,
    /// The segment that it seals.
    seals: Option<SegmentNumber>,
}

/// Where an offset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// In memory, at this position.
    Tail(Position),
    /// In this segment, at or behind this position; `is_indexed`: the segment's index has been asked.
    Cold {
        /// The segment.
        number: SegmentNumber,
        /// Where to begin to look: a batch begins there,
        from: Position,
        /// with this offset.
        offset: Offset,
        /// Whether `from` is close; else the segment's footer says more.
        is_indexed: bool,
    },
}

/// What is to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The batch that holds this offset, or the next one.
    Offset(Offset),
    /// The first batch that was appended at or after this time, milliseconds since 1970.
    Time(u64),
}

/// The log of one partition.
#[derive(Debug, Default)]
pub struct Log {
    /// The newest batches.
    pub tail: Tail,
    segments: VecDeque<Segment>,
    spare: Option<Spare>,
    /// Space was asked for and is not there yet.
    is_waiting_for_space: bool,
    /// The last request for space has failed.
    has_no_space: bool,
    durable: Position,
    issued: Position,
    written: Position,
    in_flight: VecDeque<InFlight>,
    drain_to: Option<Position>,
    /// Grows when positions of what is stored change: places that were found before are no longer true.
    generation: u32,
}

impl Log {
    /// A log that goes on where a snapshot left it: everything below the last page is on disk.
    ///
    /// `None` when the pool has no memory for the last page.
    #[must_use]
    pub fn resume(
        pool: &Pool,
        segments: VecDeque<Segment>,
        end: Position,
        partial: &[u8],
        next_offset: Offset,
    ) -> Option<Self> {
        let on_disk = end.page_down();
        Some(Self {
            tail: Tail::resume(pool, end, partial, next_offset)?,
            segments,
            durable: end,
            issued: on_disk,
            written: on_disk,
            ..Self::default()
        })
    }

    /// All segments, oldest first.
    #[must_use]
    pub fn segments(&self) -> &VecDeque<Segment> {
        &self.segments
    }

    /// Changes when positions that were found before are no longer true.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Everything below is on disk.
    #[must_use]
    pub fn written(&self) -> Position {
        self.written
    }

    /// Bytes of batches that are kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(Segment::bytes).sum()
    }

    /// Bytes of batches for which files have space.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        let spare = self.spare.map_or(0, |spare| spare.allocated_bytes);
        self.segments.iter().map(|segment| segment.allocated_bytes).sum::<u64>() + spare
    }

    /// The segment that takes batches.
    #[must_use]
    pub fn open_segment(&self) -> Option<&Segment> {
        self.segments.back().filter(|segment| segment.state == SegmentState::Open)
    }

    /// The segment of this number.
    #[must_use]
    pub fn segment(&self, number: SegmentNumber) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.number == number)
    }

    /// The file that was made ahead for the next segment.
    #[must_use]
    pub fn spare(&self) -> Option<SegmentNumber> {
        self.spare.map(|spare| spare.number)
    }

    /// Where so many bytes of batches can go.
    #[must_use]
    pub fn room(&self, bytes: u64, segment_bytes: u64) -> Room {
        if let Some(open) = self.open_segment()
            && fits(open, bytes, segment_bytes)
        {
            return if open.bytes() + bytes <= open.allocated_bytes { Room::Here } else { Room::Wait };
        }
        match self.spare {
            Some(spare) if bytes <= spare.allocated_bytes => Room::Roll(spare.number),
            _ => Room::Wait,
        }
    }

    /// Whether the last request for space has failed and none is under way.
    #[must_use]
    pub fn has_no_space(&self) -> bool {
        self.has_no_space
    }

    /// The space that is to be allocated, now or ahead of its use, so that `bytes` find room. Space grows in steps,
    /// and a segment that was filled is followed by one with as much space at once.
    #[must_use]
    pub fn space_wanted(&self, bytes: u64, segment_bytes: u64) -> Option<SpaceWanted> {
        if self.is_waiting_for_space {
            return None;
        }
        let page = PAGE_BYTES as u64;
        let spare_bytes = self.spare.map_or(0, |spare| spare.allocated_bytes);
        let grow_spare = |least: u64| match self.spare {
            Some(spare) => SpaceWanted::Grow(spare.number, least.next_multiple_of(page)),
            None => SpaceWanted::New(least.next_multiple_of(page)),
        };
        let Some(open) = self.open_segment() else {
            let least = bytes.max(SEGMENT_BYTES_MIN);
            return (spare_bytes < bytes.max(1)).then(|| grow_spare(least));
        };
        let (used, allocated) = (open.bytes(), open.allocated_bytes);
        if fits(open, bytes, segment_bytes) {
            let most = segment_bytes.max(used + bytes).next_multiple_of(page);
            if allocated < most && allocated.saturating_sub(used + bytes) < allocated - allocated / 4 {
                let least = (used + bytes).max(SEGMENT_BYTES_MIN);
                let wanted = (SPACE_GROWTH * allocated).clamp(least, most.max(SEGMENT_BYTES_MIN));
                return Some(SpaceWanted::Grow(open.number, wanted.next_multiple_of(page)));
            }
            // The next one is made early: under load that takes a while.
            if allocated < most || used < segment_bytes / 8 {
                return None;
            }
        }
        let least = bytes.max(allocated.min(segment_bytes)).max(SEGMENT_BYTES_MIN);
        (spare_bytes < bytes.max(1)).then(|| grow_spare(least))
    }

    /// Space was asked for.
    pub fn on_space_requested(&mut self) {
        assert!(!self.is_waiting_for_space);
        self.is_waiting_for_space = true;
    }

    /// Space for so many bytes of batches is there, or is not. Gives the segment if it was sealed meanwhile: it has no
    /// use for more.
    pub fn on_space(
        &mut self,
        number: SegmentNumber,
        bytes: u64,
        result: Result<(), IoError>,
    ) -> Option<&Segment> {
        self.is_waiting_for_space = false;
        self.has_no_space = result.is_err();
        if result.is_err() {
            return None;
        }
        let Some(segment) = self.segments.iter_mut().rev().find(|segment| segment.number == number) else {
            self.spare = Some(Spare { number, allocated_bytes: bytes });
            return None;
        };
        if segment.state == SegmentState::Sealed {
            return Some(segment);
        }
        segment.allocated_bytes = segment.allocated_bytes.max(bytes);
        None
    }

    /// Opens a segment behind the last one, which is closed by that.
    ///
    /// Gives the segment that is closed.
    pub fn apply_open(&mut self, mut segment: Segment) -> Option<SegmentNumber> {
        let closed = self.apply_close(segment.base_offset);
        assert_eq!(segment.base, self.tail.end());
        if let Some(spare) = self.spare.take_if(|spare| spare.number == segment.number) {
            segment.allocated_bytes = spare.allocated_bytes;
        }
        self.segments.push_back(segment);
        closed
    }

    /// Closes the open segment, if there is one, and gives it: what comes next begins on a page of its own.
    pub fn apply_close(&mut self, end_offset: Offset) -> Option<SegmentNumber> {
        let open = self.segments.back_mut().filter(|segment| segment.state == SegmentState::Open)?;
        assert_eq!(open.end, self.tail.end());
        open.end_offset = end_offset;
        open.state = SegmentState::Closing;
        let closed = open.number;
        self.tail.skip_to_page();
        Some(closed)
    }

    /// That the segment is closed has become durable: its last page may be written.
    pub fn on_close_durable(&mut self, number: SegmentNumber) {
        let closing =
            |segment: &&mut Segment| segment.number == number && segment.state == SegmentState::Closing;
        if let Some(segment) = self.segments.iter_mut().rev().find(closing) {
            segment.state = SegmentState::Closed;
        }
    }

    /// Appends placed batches to the open segment; the tail has room for them.
    pub fn apply_append(&mut self, batches: &[u8], segment_bytes: u64) {
        let open = self.segments.back_mut().expect("batches are appended to an open segment");
        assert_eq!(open.state, SegmentState::Open);
        assert_eq!(open.end, self.tail.end());
        let mut rest = batches;
        while !rest.is_empty() {
            let header = BatchHeader::peek(rest).expect("batches were checked");
            let offset_delta = header.base_offset().0 - open.base_offset.0;
            open.last_ms = header.appended_ms.get();
            open.index.on_batch(offset_delta, open.bytes(), open.last_ms, segment_bytes);
            open.end = open.end.plus(header.batch_bytes() as u64);
            open.end_offset = header.next_offset();
            rest = &rest[header.batch_bytes()..];
        }
        self.tail.append(batches);
    }

    /// Forgets all segments before the one that holds `start`; gives their numbers.
    pub fn apply_trim(&mut self, start: Offset) -> Vec<SegmentNumber> {
        let mut removed = Vec::new();
        while let Some(first) = self.segments.front()
            && first.state != SegmentState::Open
            && first.end_offset <= start
        {
            removed.push(first.number);
            self.segments.pop_front();
        }
        let base = self.segments.front().map_or(self.tail.end(), |first| first.base);
        self.give_up_unwritten(base);
        while self.tail.start() < base && self.tail.evict(base) {}
        removed
    }

    /// Exchanges sealed segments that follow one another for one that holds what is left of their records. Gives their
    /// numbers; none, and nothing is changed, if they are not there. Memory forgets what lies before the next segment:
    /// its positions are those of before.
    pub fn apply_replace(
        &mut self,
        first: SegmentNumber,
        count: usize,
        by: Option<Segment>,
    ) -> Vec<SegmentNumber> {
        let at = self.segments.iter().position(|segment| segment.number == first);
        let Some(at) = at.filter(|at| at + count <= self.segments.len()) else { return Vec::new() };
        let replaced = self.segments.range(at..at + count).map(|segment| segment.number).collect();
        let mut behind = self.segments.split_off(at).split_off(count);
        let next = behind.front().map(|next| (next.base, next.base_offset));
        let (base, base_offset) = next.unwrap_or((self.tail.end(), Offset(0)));
        assert!(by.as_ref().is_none_or(|by| by.end <= base));
        self.segments.extend(by);
        self.segments.append(&mut behind);
        self.give_up_unwritten(base);
        self.tail.forget_before(base, base_offset);
        self.generation = self.generation.wrapping_add(1);
        replaced
    }

    /// Only in recovery: what was on disk before, and is dropped now, is not written again.
    fn give_up_unwritten(&mut self, base: Position) {
        if self.written >= base {
            return;
        }
        self.in_flight.retain(|write| write.end > base);
        self.written = base;
        self.issued = self.issued.max(base);
        self.durable = self.durable.max(base);
        self.settle_written(|_| {});
    }

    /// Everything below has become durable in the journal.
    pub fn on_durable(&mut self, end: Position) {
        self.durable = self.durable.max(end);
    }

    /// Bytes that may be written behind now, whole pages and closed segments' ends.
    #[must_use]
    pub fn unwritten_bytes(&self) -> u64 {
        self.durable.page_down().0.saturating_sub(self.issued.0)
    }

    /// Whether whole pages, or a closed segment's end, are not on disk yet.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.written < self.tail.end().page_down()
            || self
                .segments
                .back()
                .is_some_and(|last| !matches!(last.state, SegmentState::Open | SegmentState::Sealed))
    }

    /// Whether a closed segment can be sealed.
    #[must_use]
    pub fn can_seal(&self) -> bool {
        self.first_unsealed()
            .is_some_and(|segment| segment.state == SegmentState::Closed && self.durable >= segment.end)
    }

    fn first_unsealed(&self) -> Option<&Segment> {
        let number = self.first_unsealed_index();
        self.segments.get(number)
    }

    fn first_unsealed_index(&self) -> usize {
        // Unsealed ones are at the end, and few.
        let is_unsealed = |segment: &&Segment| {
            matches!(segment.state, SegmentState::Open | SegmentState::Closing | SegmentState::Closed)
        };
        self.segments.len() - self.segments.iter().rev().take_while(is_unsealed).count()
    }

    /// The next write behind the tail, if there is one that can be made.
    pub fn next_write(&mut self, pool: &Pool, partition: Handle) -> Option<WriteBehind> {
        if self.in_flight.len() == WRITE_BEHIND_PER_PARTITION_MAX {
            return None;
        }
        let number = self.first_unsealed_index();
        let segment = self.segments.get_mut(number)?;
        let from = self.issued.max(segment.base);
        let whole = self.durable.min(segment.end).page_down();
        if from < whole {
            let data = self.tail.pages(from, whole, WRITE_BEHIND_BYTES)?;
            let end = from.plus(data.len() as u64);
            self.issued = end;
            self.in_flight.push_back(InFlight { end, is_done: false, seals: None });
            return Some(WriteBehind {
                file: segment.file(),
                file_position: segment.file_position(from),
                data,
                end,
            });
        }
        if segment.state != SegmentState::Closed || self.durable < segment.end {
            return None;
        }
        let last_page = segment.end.page_down();
        let data = end_of_segment(pool, segment, &self.tail, partition)?;
        segment.state = SegmentState::Sealing;
        let end = segment.end.page_up();
        self.issued = end;
        self.in_flight.push_back(InFlight { end, is_done: false, seals: Some(segment.number) });
        Some(WriteBehind { file: segment.file(), file_position: segment.file_position(last_page), data, end })
    }

    /// The write that ends at `end` has completed. Calls `on_sealed` for each segment that is sealed by that.
    pub fn on_written(&mut self, end: Position, file: File, on_sealed: impl FnMut(&Segment)) {
        let is_it = |write: &&mut InFlight| {
            let seals = write.seals.map(|number| File::Segment(number.0));
            write.end == end && !write.is_done && seals.is_none_or(|sealed| sealed == file)
        };
        let Some(write) = self.in_flight.iter_mut().find(is_it) else { return };
        write.is_done = true;
        self.settle_written(on_sealed);
    }

    /// Takes in the writes that have completed, up to the first that has not.
    fn settle_written(&mut self, mut on_sealed: impl FnMut(&Segment)) {
        while let Some(first) = self.in_flight.front().copied().filter(|first| first.is_done) {
            self.in_flight.pop_front();
            assert!(self.written <= first.end);
            self.written = first.end;
            let sealed = self.segments.iter_mut().find(|segment| Some(segment.number) == first.seals);
            if let Some(segment) = sealed {
                assert_eq!(segment.state, SegmentState::Sealing);
                segment.state = SegmentState::Sealed;
                segment.allocated_bytes = segment.bytes().next_multiple_of(PAGE_BYTES as u64);
                segment.index = SparseIndex::default();
                on_sealed(segment);
            }
        }
    }

    /// A checkpoint has captured the log as it is: everything but the last page is to be written.
    pub fn begin_drain(&mut self) {
        self.drain_to = Some(self.tail.end().page_down());
    }

    /// Whether everything that a checkpoint has captured is on disk; says so once.
    pub fn take_drained(&mut self) -> bool {
        let Some(end) = self.drain_to else { return false };
        let is_sealed = |segment: &Segment| {
            segment.base >= end || matches!(segment.state, SegmentState::Open | SegmentState::Sealed)
        };
        let is_drained = self.written >= end && self.segments.iter().all(is_sealed);
        if is_drained {
            self.drain_to = None;
        }
        is_drained
    }

    /// Whether a checkpoint waits for it.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.drain_to.is_some()
    }

    /// The same place, moved to the next segment if it is behind a closed one's end, and to the first if it is
    /// before that.
    #[must_use]
    pub fn normalize(&self, position: Position) -> Position {
        let behind = self.segments.partition_point(|segment| segment.base <= position);
        let Some(segment) = behind.checked_sub(1).and_then(|number| self.segments.get(number)) else {
            return self.segments.front().map_or(self.tail.end(), |first| first.base);
        };
        if segment.state == SegmentState::Open || position < segment.end {
            return position;
        }
        self.segments.get(behind).map_or(self.tail.end(), |next| next.base)
    }

    /// Whether the batch at this place is in memory, or there is none yet.
    #[must_use]
    pub fn is_in_tail(&self, position: Position) -> bool {
        self.normalize(position) >= self.tail.start()
    }

    /// The segment in which a position lies.
    #[must_use]
    pub fn segment_at(&self, position: Position) -> Option<&Segment> {
        let behind = self.segments.partition_point(|segment| segment.base <= position);
        self.segments.get(behind.checked_sub(1)?)
    }

    /// Where what is looked for is, or would be.
    #[must_use]
    pub fn find(&self, target: Target) -> Found {
        self.find_behind(target, Position(0))
    }

    /// The same when it is known that what is looked for does not lie before `from`.
    #[must_use]
    pub fn find_behind(&self, target: Target, from: Position) -> Found {
        let in_tail = match target {
            Target::Offset(offset) => {
                self.tail.start_offset().filter(|start| *start <= offset).map(|_| self.tail.find(offset))
            }
            Target::Time(time) => {
                // Everything before the tail is older, if the batch that the tail begins with is.
                let position = self.tail.find_time(time, from);
                let is_found = position > self.tail.start() || self.is_in_tail(Position(0));
                is_found.then_some(position)
            }
        };
        if let Some(position) = in_tail {
            return Found::Tail(position);
        }
        let behind = match target {
            Target::Offset(offset) => self.segments.partition_point(|segment| segment.end_offset <= offset),
            Target::Time(time) => self.segments.partition_point(|segment| segment.last_ms < time),
        };
        let Some(segment) = self.segments.get(behind) else { return Found::Tail(self.tail.end()) };
        let (from, offset) = segment.look_up(&segment.index, target);
        let is_indexed = segment.state != SegmentState::Sealed;
        Found::Cold { number: segment.number, from, offset, is_indexed }
    }

    /// Forgets everything; gives the numbers of all files.
    pub fn take_files(&mut self) -> Vec<SegmentNumber> {
        let spare = self.spare.take().map(|spare| spare.number);
        self.segments.drain(..).map(|segment| segment.number).chain(spare).collect()
    }
}

/// Whether batches may go into an open segment, if it has space: a batch that is longer than a segment has one alone.
fn fits(open: &Segment, bytes: u64, segment_bytes: u64) -> bool {
    open.bytes() + bytes <= segment_bytes || open.bytes() == 0
}

/// The last page, filled up with zeros, and the footer. `None` when there is no memory.
fn end_of_segment(pool: &Pool, segment: &Segment, tail: &Tail, partition: Handle) -> Option<Slice> {
    let last_page = segment.end.page_down();
    let partial = tail.bytes(last_page, segment.end);
    let partial =
        if last_page == segment.end { &[] } else { partial.expect("what is not on disk is in memory") };
    let page_bytes = partial.len().next_multiple_of(PAGE_BYTES);
    let mut buffer = pool.buffer(page_bytes + SEGMENT_FOOTER_BYTES)?;
    buffer[..partial.len()].copy_from_slice(partial);
    buffer[partial.len()..page_bytes].fill(0);
    let footer = &mut buffer[page_bytes..page_bytes + SEGMENT_FOOTER_BYTES];
    segment.index.write_footer(segment, partition, footer);
    Some(buffer.freeze(0..page_bytes + SEGMENT_FOOTER_BYTES))
}
