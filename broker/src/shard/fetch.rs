//! Fetch: one answer with an exact range, for replay and connectors.
//!
//! A fetch waits in its connection until the socket is free, then takes its batches from the tail without a copy.

use protocol::envelope;
use protocol::frame::{Frame, FrameHeader, Opcode};
use protocol::ids::{Handle, Offset};
use protocol::status::Status;
use protocol::wire;
use reactor::memory::{SendParts, Slice};

use super::commit::Waiting;
use super::connection::{Connection, PendingFetch};
use super::serving::Serving;
use crate::limits::DELIVERY_IN_FLIGHT_BYTES_MAX;
use crate::log::ReadLimit;

/// Parts of one fetch: its header and at most this many runs.
const FETCH_RUNS_MAX: usize = 16;

impl Serving {
    pub(super) fn begin_fetch(&mut self, connection: &mut Connection, frame: &Frame<'_>) {
        let Some(request) = self.envelope_of::<wire::FetchRequest<'_>>(connection, frame) else { return };
        let handle = Handle(frame.header.subject.get());
        let (from, to) = (Offset(request.offset_from()), Offset(request.offset_to()));
        if self.waits_for_catalog(handle) {
            self.redo_when_durable(connection, frame);
            return;
        }
        let Some(partition) = self.state.partitions.get(handle) else {
            self.refuse(connection, frame.header, Opcode::Fetch, Status::StaleHandle, "no such partition");
            return;
        };
        let (start, end) = (partition.start(), partition.durable_end());
        if from < start || from > end {
            let status = Status::OffsetOutOfRange;
            let header = FrameHeader::answer(Opcode::Fetch, status, frame.header.correlation(), handle.0);
            let message = format!("offset {from} is not in the partition: {start} to {end}");
            self.answer_error(connection, header, &message, Some(start.0..=end.0));
            return;
        }
        connection.fetches.push_back(PendingFetch {
            correlation: frame.header.correlation(),
            partition: handle,
            from,
            to,
            bytes_max: request.bytes_max() as usize,
        });
    }

    /// Puts the answer of one fetch into the send that is being made.
    pub(super) fn finish_fetch(
        &mut self,
        connection: &mut Connection,
        fetch: PendingFetch,
        parts: &mut SendParts,
    ) {
        let mut header = FrameHeader::answer(Opcode::Fetch, Status::Ok, fetch.correlation, fetch.partition.0);
        let Some(partition) = self.state.partitions.get(fetch.partition) else {
            header.status = (Status::StaleHandle as u16).into();
            if self.catalog_is_in_doubt() {
                self.wait_for(self.journal.appended(), connection, Waiting::Answer(header));
            } else {
                connection.outbox.push_header(&header);
                connection.outbox.push_control_to(parts);
            }
            return;
        };
        let durable_end = partition.durable_end();
        // A range may end inside a batch: that batch is given whole.
        let limit_max = DELIVERY_IN_FLIGHT_BYTES_MAX.min(fetch.bytes_max);
        let (mut cursor, mut next_offset, mut bytes) = (partition.tail.find(fetch.from), fetch.from, 0);
        let mut runs: [Option<Slice>; FETCH_RUNS_MAX] = [const { None }; FETCH_RUNS_MAX];
        for slot in &mut runs {
            if next_offset >= fetch.to || bytes > 0 && bytes >= limit_max {
                break;
            }
            let limit = ReadLimit {
                bytes_max: limit_max.saturating_sub(bytes),
                records_max: fetch.to.0.saturating_sub(next_offset.0),
            };
            let Some(run) = partition.tail.read(cursor, durable_end, limit) else { break };
            if bytes > 0 && bytes + run.bytes.len() > limit_max {
                break;
            }
            (cursor, next_offset) = (run.next, run.next_offset);
            bytes += run.bytes.len();
            self.counters.deliver_records += run.record_count;
            *slot = Some(run.bytes);
        }
        self.counters.deliver_bytes += bytes as u64;
        let args = wire::FetchResponseArgs { next_offset: next_offset.0, durable_end: durable_end.0 };
        self.push_fetch_header(connection, header, &args, bytes);
        connection.outbox.push_control_to(parts);
        for run in runs.into_iter().flatten() {
            parts.push(run).expect("the send has room for a whole fetch");
        }
    }

    fn push_fetch_header(
        &mut self,
        connection: &mut Connection,
        header: FrameHeader,
        args: &wire::FetchResponseArgs,
        payload_bytes: usize,
    ) {
        self.envelope_bytes.clear();
        let root = wire::FetchResponse::create(&mut self.envelope, args);
        let envelope_bytes = envelope::finish_into(&mut self.envelope, root, &mut self.envelope_bytes);
        connection.outbox.push_header(&header.with_lengths(envelope_bytes, payload_bytes));
        connection.outbox.push(&self.envelope_bytes);
    }

    /// Whether a send with this many parts has room for one more fetch.
    pub(super) fn has_room_for_fetch(parts: &SendParts) -> bool {
        parts.len() + FETCH_RUNS_MAX + 2 <= reactor::memory::SEND_PARTS_MAX
    }
}
