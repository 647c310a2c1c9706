//! Fetch: one answer with an exact range, for replay and connectors.
//!
//! A fetch waits in its connection until the socket is free, and for the disk if what it asks for is not in memory; then its
//! batches are sent without a copy.

use protocol::envelope;
use protocol::frame::{Frame, FrameHeader, Opcode};
use protocol::ids::{Handle, Offset};
use protocol::status::Status;
use protocol::wire;
use reactor::memory::{SendParts, Slice};

use super::cold::{Damage, Reader, Taken};
use super::commit::Waiting;
use super::connection::{Connection, PendingFetch};
use super::serving::Serving;
use super::session::OffsetRange;
use crate::io::Socket;
use crate::limits::DELIVERY_IN_FLIGHT_BYTES_MAX;
use crate::log::{Found, Log, Position, ReadLimit, Run, Target};

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
            self.answer_error(
                connection,
                header,
                &message,
                Some(OffsetRange { partition: handle, first: start, last: end }),
            );
            return;
        }
        connection.fetches.push_back(PendingFetch {
            correlation: frame.header.correlation(),
            partition: handle,
            from,
            to,
            bytes_max: request.bytes_max() as usize,
            cold: None,
        });
    }

    /// Puts the answer of one fetch into the send that is being made. Gives the fetch back when it waits for the disk.
    pub(super) fn finish_fetch(
        &mut self,
        connection: &mut Connection,
        mut fetch: PendingFetch,
        parts: &mut SendParts,
    ) -> Option<PendingFetch> {
        let mut header = FrameHeader::answer(Opcode::Fetch, Status::Ok, fetch.correlation, fetch.partition.0);
        let Some(partition) = self.state.partitions.get(fetch.partition) else {
            if let Some(stream) = fetch.cold {
                self.cold.end((stream, Reader::Fetch(connection.socket)));
            }
            header.status = (Status::StaleHandle as u16).into();
            if self.catalog_is_in_doubt() {
                self.wait_for(self.journal.appended(), connection, Waiting::Answer(header));
            } else {
                connection.outbox.push_header(&header);
                connection.outbox.push_control_to(parts);
            }
            return None;
        };
        let (start, durable_end) = (partition.start(), partition.durable_end());
        let mut runs = Runs::new(&fetch);
        let refused = if fetch.from < start {
            let range = OffsetRange { partition: fetch.partition, first: start, last: durable_end };
            Some((Status::OffsetOutOfRange, range))
        } else {
            match self.collect(connection.socket, &mut fetch, &mut runs) {
                Collected::Done => None,
                Collected::Later => return Some(fetch),
                Collected::Damaged(damage) => {
                    Some((Status::Corrupt, damage.range_in(fetch.partition, durable_end)))
                }
            }
        };
        if let Some(stream) = fetch.cold.take() {
            self.cold.end((stream, Reader::Fetch(connection.socket)));
        }
        if let Some((status, range)) = refused.filter(|_| runs.bytes == 0) {
            header.status = (status as u16).into();
            let message = format!("offset {} cannot be read", fetch.from);
            self.answer_error(connection, header, &message, Some(range));
            connection.outbox.push_control_to(parts);
            return None;
        }
        self.counters.deliver_records += runs.record_count;
        self.counters.deliver_bytes += runs.bytes as u64;
        let args = wire::FetchResponseArgs { next_offset: runs.next_offset.0, durable_end: durable_end.0 };
        self.push_fetch_header(connection, header, &args, runs.bytes);
        connection.outbox.push_control_to(parts);
        for run in runs.runs.into_iter().flatten() {
            parts.push(run).expect("the send has room for a whole fetch");
        }
        None
    }

    /// Collects batches from memory, or from the stream that reads for the fetch.
    fn collect(&mut self, socket: Socket, fetch: &mut PendingFetch, runs: &mut Runs) -> Collected {
        let Some(partition) = self.state.partitions.get(fetch.partition) else { return Collected::Done };
        let (log, end) = (&partition.log, partition.durable_end());
        let reader = Reader::Fetch(socket);
        if partition.is_being_trimmed(fetch.from) {
            self.starved.push(Reader::Fetch(socket));
            return Collected::Later;
        }
        if runs.is_full() || fetch.from >= end {
            return Collected::Done;
        }
        if let Some(stream) = fetch.cold {
            loop {
                match self.cold.take((stream, reader), log, end, runs.limit()) {
                    Taken::Run(run) => {
                        if !runs.take(run) {
                            return Collected::Done;
                        }
                    }
                    Taken::CaughtUp(at) => {
                        runs.take_from_memory(log, at, end);
                        return Collected::Done;
                    }
                    // What is there is a whole answer: the client asks for the rest.
                    Taken::Later if runs.bytes > 0 => return Collected::Done,
                    Taken::Later => {
                        if !self.cold.advance((stream, reader), log, &self.pool, &mut self.ops) {
                            self.starved.push(reader);
                        }
                        if !self.cold.has_news((stream, reader)) {
                            return Collected::Later;
                        }
                    }
                    Taken::Damaged(damage) => return Collected::Damaged(damage),
                    Taken::Stale => {
                        fetch.cold = None;
                        self.cold.end((stream, reader));
                        self.starved.push(reader);
                        return Collected::Later;
                    }
                }
                if runs.is_full() {
                    return Collected::Done;
                }
            }
        }
        match log.find(Target::Offset(fetch.from)) {
            Found::Tail(at) => {
                runs.take_from_memory(log, at, end);
                Collected::Done
            }
            Found::Cold { .. } => {
                let goal = Target::Offset(fetch.from);
                fetch.cold = self.cold.begin(reader, fetch.partition, goal, log);
                if let Some(stream) = fetch.cold {
                    let has_memory = self.cold.advance((stream, reader), log, &self.pool, &mut self.ops);
                    if !has_memory || self.cold.has_news((stream, reader)) {
                        self.starved.push(reader);
                    }
                }
                Collected::Later
            }
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

/// How far a fetch has come.
enum Collected {
    /// There is no more, or no more is wanted.
    Done,
    /// The disk was asked.
    Later,
    /// What follows cannot be read.
    Damaged(Damage),
}

/// The batches of one answer. A range may end inside a batch: that batch is given whole.
struct Runs {
    runs: [Option<Slice>; FETCH_RUNS_MAX],
    count: usize,
    bytes: usize,
    bytes_max: usize,
    record_count: u64,
    next_offset: Offset,
    to: Offset,
}

impl Runs {
    fn new(fetch: &PendingFetch) -> Self {
        Self {
            runs: [const { None }; FETCH_RUNS_MAX],
            count: 0,
            bytes: 0,
            bytes_max: DELIVERY_IN_FLIGHT_BYTES_MAX.min(fetch.bytes_max),
            record_count: 0,
            next_offset: fetch.from,
            to: fetch.to,
        }
    }

    fn is_full(&self) -> bool {
        let is_over = self.bytes > 0 && self.bytes >= self.bytes_max;
        self.count == FETCH_RUNS_MAX || self.next_offset >= self.to || is_over
    }

    fn limit(&self) -> ReadLimit {
        ReadLimit {
            bytes_max: self.bytes_max.saturating_sub(self.bytes),
            records_max: self.to.0.saturating_sub(self.next_offset.0),
        }
    }

    /// Goes on with what is in memory from a place on, up to the durable end. Where compaction has left nothing, the
    /// answer goes over it.
    fn take_from_memory(&mut self, log: &Log, mut at: Position, end: Offset) {
        while !self.is_full() {
            let Some(run) = log.tail.read(log.normalize(at), end, self.limit()) else {
                self.next_offset = self.next_offset.max(end);
                return;
            };
            at = run.next;
            if !self.take(run) {
                return;
            }
        }
    }

    /// `false` when it is too much.
    fn take(&mut self, run: Run) -> bool {
        if self.bytes > 0 && self.bytes + run.bytes.len() > self.bytes_max {
            return false;
        }
        self.bytes += run.bytes.len();
        self.record_count += run.record_count;
        self.next_offset = run.next_offset;
        self.runs[self.count] = Some(run.bytes);
        self.count += 1;
        true
    }
}
