//! Produce: from a frame of batches to an entry in the journal and bytes in the partition's tail.
//!
//! `begin_produce` fixes the order and takes the records in; `finish_produce` answers when they are durable. All
//! batches of a frame are taken, or none.

use protocol::batch::Batch;
use protocol::frame::{FLAG_ACK_MEMORY, FLAG_RESUMES, Frame, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle, Offset};
use protocol::limits::BATCHES_PER_FRAME_MAX;
use protocol::status::Status;

use super::commit::Waiting;
use super::connection::Connection;
use super::serving::Serving;
use super::space::NoRoom;
use crate::io::Socket;
use crate::journal::entry::EntryKind;
use crate::journal::{JournalFull, Lsn};
use crate::limits::{ANSWER_OVERHEAD_BYTES, REQUESTS_IN_FLIGHT_MAX, WAITERS_MAX};
use crate::log::Position;

/// Hint given with a retryable refusal: about one commit.
const RETRY_AFTER_US: u64 = 1_000;

/// A produce frame that was taken in and waits for the journal.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProduceInFlight {
    pub(super) correlation: CorrelationId,
    pub(super) partition: Handle,
    pub(super) base_offset: Offset,
    pub(super) end_offset: Offset,
    pub(super) end_position: Position,
    pub(super) frame_bytes: u32,
}

impl Serving {
    pub(super) fn begin_produce(&mut self, connection: &mut Connection, frame: &Frame<'_>) {
        let partition = Handle(frame.header.subject.get());
        if self.waits_for_catalog(partition) {
            self.redo_when_durable(connection, frame);
            return;
        }
        if frame.header.has_flag(FLAG_RESUMES) {
            connection.gates.open(partition);
        } else if let Some(status) = connection.gates.closed_by(partition) {
            self.refuse_produce(connection, frame.header, status);
            return;
        }
        match self.try_produce(connection, partition, frame) {
            Ok((lsn, produce)) => self.wait_for(lsn, connection, Waiting::Produce(produce)),
            Err(status) => self.refuse_produce(connection, frame.header, status),
        }
    }

    /// Whether the partition is not there because of a change that a power cut could still undo.
    pub(super) fn waits_for_catalog(&self, partition: Handle) -> bool {
        self.catalog_is_in_doubt() && self.state.partitions.get(partition).is_none()
    }

    fn try_produce(
        &mut self,
        connection: &Connection,
        handle: Handle,
        frame: &Frame<'_>,
    ) -> Result<(Lsn, ProduceInFlight), Status> {
        let frame_bytes = frame.header.length.get();
        if self.is_shutting_down() {
            return Err(Status::ShuttingDown);
        }
        if frame.header.has_flag(FLAG_ACK_MEMORY) {
            return Err(Status::Unsupported);
        }
        let is_over_window =
            connection.produce_bytes_in_flight + frame_bytes as usize > self.config.window_bytes as usize;
        if connection.requests_in_flight > 0 && is_over_window
            || connection.requests_in_flight >= REQUESTS_IN_FLIGHT_MAX
            || self.waiters.len() >= WAITERS_MAX
        {
            return Err(Status::Busy);
        }
        let record_count = check_batches(frame, self.config.frame_bytes_max)?;
        let batches = frame.payload;
        if self.state.partitions.get(handle).is_none() {
            return Err(Status::StaleHandle);
        }
        if self.pool.used_bytes() > self.plan.tails_bytes {
            return Err(Status::Busy);
        }
        self.bound_records(handle, record_count).map_err(status_of_full)?;
        self.make_room(handle, batches.len() as u64).map_err(status_of_no_room)?;
        self.journal.reserve(EntryKind::Append, batches.len()).map_err(status_of_full)?;
        if !self.state.reserve(&self.pool, handle, batches.len()) {
            return Err(Status::Busy);
        }
        let Some(partition) = self.state.partitions.get_mut(handle) else { return Err(Status::StaleHandle) };
        let decision = partition.decide_append(self.now.wall_ms, self.journal.epoch());
        let lsn = self.journal.append_batches(handle, batches, decision.places(batches));
        partition.apply_append(self.journal.last_body());

        self.counters.produce_frames += 1;
        self.counters.produce_records += record_count;
        self.counters.produce_bytes += batches.len() as u64;
        let produce = ProduceInFlight {
            correlation: frame.header.correlation(),
            partition: handle,
            base_offset: decision.base_offset,
            end_offset: partition.appended_end(),
            end_position: partition.log.tail.end(),
            frame_bytes,
        };
        self.state.stored_bytes += batches.len() as u64;
        self.ask_for_space(handle, batches.len() as u64);
        Ok((lsn, produce))
    }

    /// The records are durable: the producer is told, and consumers may see them.
    pub(super) fn finish_produce(&mut self, socket: Socket, produce: &ProduceInFlight) {
        if let Some(connection) = self.connection_mut(socket) {
            connection.produce_bytes_in_flight -= produce.frame_bytes as usize;
            connection.requests_in_flight -= 1;
            let subject = produce.base_offset.0;
            let answer = FrameHeader::answer(Opcode::Produce, Status::Ok, produce.correlation, subject);
            connection.outbox.push_header(&answer);
            self.mark_dirty(socket);
        }
        self.make_visible(produce.partition, produce.end_offset, produce.end_position);
    }

    pub(super) fn refuse_produce(
        &mut self,
        connection: &mut Connection,
        header: &FrameHeader,
        status: Status,
    ) {
        self.counters.produce_refused += 1;
        if status.closes_gate() {
            connection.gates.close(Handle(header.subject.get()), status);
        }
        let subject = if status.is_retryable() { RETRY_AFTER_US } else { 0 };
        let answer = FrameHeader::answer(Opcode::Produce, status, header.correlation(), subject);
        connection.outbox.push_header(&answer);
    }
}

/// Checks every batch of a frame and gives the number of records. A batch leaves room for the envelope of the answer
/// that it may come back in.
fn check_batches(frame: &Frame<'_>, frame_bytes_max: u32) -> Result<u64, Status> {
    if !frame.envelope.is_empty() || frame.payload.is_empty() {
        return Err(Status::MalformedFrame);
    }
    let (mut rest, mut record_count, mut batch_count) = (frame.payload, 0, 0);
    while !rest.is_empty() {
        if batch_count == BATCHES_PER_FRAME_MAX {
            return Err(Status::InvalidBatch);
        }
        let batch = Batch::check_produced(rest).map_err(protocol::batch::BatchError::status)?;
        if batch.bytes().len() + ANSWER_OVERHEAD_BYTES > frame_bytes_max as usize {
            return Err(Status::FrameTooLarge);
        }
        rest = &rest[batch.bytes().len()..];
        record_count += batch.record_count() as u64;
        batch_count += 1;
    }
    Ok(record_count)
}

fn status_of_no_room(no_room: NoRoom) -> Status {
    match no_room {
        NoRoom::Later(full) => status_of_full(full),
        NoRoom::DiskFull => Status::DiskFull,
    }
}

pub(super) fn status_of_full(full: JournalFull) -> Status {
    match full {
        JournalFull::Pending | JournalFull::Memory => Status::Busy,
        JournalFull::Space => Status::DiskFull,
    }
}
