//! Space: segments' files are made and grow before batches are admitted, so that a full disk never stands between an
//! acknowledged batch and its segment.

use std::collections::{BTreeMap, VecDeque};

use protocol::ids::{Handle, TopicKey};

use super::serving::Serving;
use super::state::Removal;
use crate::io::{File, IoError, Op};
use crate::journal::entry::{EntryKind, SegmentClosed, SegmentOpened};
use crate::journal::{JournalFull, Lsn};
use crate::limits::{ALLOCATIONS_IN_FLIGHT_MAX, SEGMENTS_MAX, SPACE_RETRY_NS};
use crate::log::{Room, SegmentHeader, SegmentNumber, SpaceWanted, data_bytes_of, file_bytes_for};
use zerocopy::IntoBytes;

/// Requests for space.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// Under way: which partition waits for which file.
    requests: BTreeMap<SegmentNumber, Handle>,
    /// After a failure nothing is asked for until then.
    not_before_ns: u64,
    has_warned: bool,
    /// Segments whose closing is not durable yet, in the order of LSNs.
    closings: VecDeque<(Lsn, Handle, SegmentNumber)>,
}

impl Space {
    /// Whether the topic waits for space.
    pub(super) fn is_awaited_by(&self, topic: TopicKey) -> bool {
        self.requests.values().any(|handle| handle.topic() == topic)
    }

    /// Whether space for this segment is under way.
    pub(super) fn is_awaited_for(&self, number: SegmentNumber) -> bool {
        self.requests.contains_key(&number)
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }
}

/// Why batches find no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// Space is on its way, or the journal is busy.
    Later(JournalFull),
    /// There is none on the disk.
    DiskFull,
}

impl Serving {
    /// Makes sure that so many bytes find room behind the partition's last batch, opening a segment if need be.
    pub(super) fn make_room(&mut self, handle: Handle, bytes: u64) -> Result<(), NoRoom> {
        let Some(partition) = self.state.partitions.get(handle) else { return Ok(()) };
        match partition.log.room(bytes, partition.settings.segment_bytes) {
            Room::Here => Ok(()),
            Room::Roll(number) => self.open_segment(handle, number),
            Room::Wait => {
                let has_none = partition.log.has_no_space();
                self.ask_for_space(handle, bytes);
                let later = NoRoom::Later(JournalFull::Pending);
                Err(if has_none || self.segments_are_used_up() { NoRoom::DiskFull } else { later })
            }
        }
    }

    fn segments_are_used_up(&self) -> bool {
        self.state.segment_count + self.space.requests.len() >= SEGMENTS_MAX
    }

    fn open_segment(&mut self, handle: Handle, number: SegmentNumber) -> Result<(), NoRoom> {
        if !self.snapshot_has_room(0, 1) {
            return Err(if self.checkpoints.has_no_space() {
                NoRoom::DiskFull
            } else {
                NoRoom::Later(JournalFull::Pending)
            });
        }
        let body_bytes = size_of::<SegmentOpened>();
        self.journal.reserve(EntryKind::Append, body_bytes).map_err(NoRoom::Later)?;
        let Some(partition) = self.state.partitions.get(handle) else { return Ok(()) };
        let opened = SegmentOpened {
            number: number.0.into(),
            base_offset: partition.appended_end().0.into(),
            base: partition.log.tail.end().page_up().0.into(),
            time_ms: partition.time_of_append(self.now.wall_ms).into(),
        };
        let lsn = self.journal.append(EntryKind::OpenSegment, handle.0, body_bytes, |body| {
            body.copy_from_slice(opened.as_bytes());
        });
        if let Some(closed) = self.state.apply_open(handle, &opened) {
            self.space.closings.push_back((lsn, handle, closed));
        }
        self.counters.segments_opened += 1;
        Ok(())
    }

    /// Closes the partition's open segment, because of its age. `false` when the journal takes nothing now.
    pub(super) fn close_segment(&mut self, handle: Handle) -> bool {
        let body_bytes = size_of::<SegmentClosed>();
        if self.journal.reserve(EntryKind::CloseSegment, body_bytes).is_err() {
            return false;
        }
        let Some(partition) = self.state.partitions.get_mut(handle) else { return true };
        let end_offset = partition.appended_end();
        let closed = SegmentClosed { end_offset: end_offset.0.into(), time_ms: self.now.wall_ms.into() };
        let lsn = self.journal.append(EntryKind::CloseSegment, handle.0, body_bytes, |body| {
            body.copy_from_slice(closed.as_bytes());
        });
        if let Some(closed) = partition.log.apply_close(end_offset) {
            self.space.closings.push_back((lsn, handle, closed));
        }
        true
    }

    /// Segments whose closing is durable may be sealed.
    pub(super) fn seal_closed(&mut self) {
        let durable = self.journal.durable();
        while let Some((_, handle, number)) = self.space.closings.pop_front_if(|(lsn, ..)| *lsn <= durable) {
            let Some(partition) = self.state.partitions.get_mut(handle) else { continue };
            partition.log.on_close_durable(number);
            self.write_behind.on_durable(partition);
        }
    }

    /// Asks for the space that the partition wants for so many more bytes, or ahead of its use.
    pub(super) fn ask_for_space(&mut self, handle: Handle, bytes: u64) {
        let Some(partition) = self.state.partitions.get_mut(handle) else { return };
        let Some(wanted) = partition.log.space_wanted(bytes, partition.settings.segment_bytes) else {
            return;
        };
        let is_new = matches!(wanted, SpaceWanted::New(_));
        let is_too_many = self.space.requests.len() >= ALLOCATIONS_IN_FLIGHT_MAX
            || is_new && self.state.segment_count + self.space.requests.len() >= SEGMENTS_MAX;
        if is_too_many || self.now.monotonic_ns < self.space.not_before_ns || self.is_shutting_down() {
            return;
        }
        let partition = self.state.partitions.get_mut(handle).expect("it was there a moment ago");
        partition.log.on_space_requested();
        let (number, data_bytes, header) = match wanted {
            SpaceWanted::Grow(number, bytes) => (number, bytes, None),
            SpaceWanted::New(bytes) => {
                let number = SegmentNumber(self.state.next_segment);
                self.state.next_segment += 1;
                let header = SegmentHeader {
                    directory_id: self.journal.identity().directory_id,
                    number,
                    partition: handle,
                    created_ms: self.now.wall_ms,
                };
                (number, bytes, Some(header.write()))
            }
        };
        self.space.requests.insert(number, handle);
        let (file, bytes) = (File::Segment(number.0), file_bytes_for(data_bytes));
        self.ops.push(Op::Allocate { file, bytes, header });
    }

    /// Space is there, or could not be had.
    pub(super) fn on_segment_allocated(&mut self, number: u64, bytes: u64, result: Result<(), IoError>) {
        let number = SegmentNumber(number);
        let handle = self.space.requests.remove(&number).expect("space that comes was asked for");
        if result == Err(IoError::NOT_DURABLE) && self.fail_unless_ok("sync", File::Segment(number.0), result)
        {
            return;
        }
        if let Err(error) = result {
            self.space.not_before_ns = self.now.monotonic_ns + SPACE_RETRY_NS;
            if !std::mem::replace(&mut self.space.has_warned, true) {
                tracing::warn!(%error, "cannot allocate space for records; trying again as they come");
            }
        } else if std::mem::take(&mut self.space.has_warned) {
            tracing::info!("space for records can be allocated again");
        }
        match self.state.partitions.get_mut(handle) {
            Some(partition) => {
                if let Some(sealed) = partition.log.on_space(number, data_bytes_of(bytes), result) {
                    self.ops.push(Op::Shrink { file: sealed.file(), bytes: sealed.sealed_file_bytes() });
                }
            }
            None if result.is_ok() => {
                // Its topic was deleted meanwhile. The file may be in the list already, as one that was growing.
                let lsn = self.journal.appended();
                if !self.state.removals.iter().any(|removal| removal.number == number) {
                    self.state.removals.push_back(Removal { number, lsn });
                }
            }
            None => {}
        }
        self.answer_creations();
    }
}
