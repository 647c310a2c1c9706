//! Sending: answers first, then fetches, then deliveries in bounded slices.
//!
//! One send is in flight per socket. Deliveries are made only when the socket is free, from where each subscription
//! stands, so there is no queue of them: a slow consumer costs its credit and no more.

use protocol::frame::{FrameHeader, Opcode};
use protocol::ids::CorrelationId;
use protocol::status::Status;
use reactor::memory::{Buffer, SEND_PARTS_MAX, SendParts};

use super::cold::{Reader, Taken};
use super::connection::{Connection, Stage};
use super::serving::Serving;
use super::session::OffsetRange;
use crate::io::{IoError, Op, Socket};
use crate::limits::{
    COLD_IDLE_NS, DELIVERY_IN_FLIGHT_BYTES_MAX, DELIVERY_SLICE_BYTES, SEND_STALL_NS, STARVED_RETRY_NS,
};
use crate::log::{Found, ReadLimit, Run, Target};

impl Serving {
    pub(super) fn on_sent(&mut self, socket: Socket, parts: Box<SendParts>, result: Result<(), IoError>) {
        let Some(mut connection) = self.take_connection(socket) else { return };
        connection.outbox.give_back(parts);
        if result.is_err() {
            self.close(connection);
            return;
        }
        self.put_connection(connection);
        self.mark_dirty(socket);
    }

    /// Goes on with connections that were not read because their peer did not read, or a request of theirs waited.
    pub(super) fn resume_dirty(&mut self) {
        for number in 0..self.dirty.len() {
            let slot = self.dirty[number] as usize;
            let Some(mut connection) = self.connections.get_mut(slot).and_then(Option::take) else {
                continue;
            };
            if connection.stage == Stage::Leaving {
                self.rearm_leaving(&mut connection);
            } else if connection.buffer.is_some() && connection.may_read() {
                self.handle_received(&mut connection);
            }
            self.put_connection(connection);
        }
    }

    /// Looks at every connection for which something has changed in this turn.
    pub(super) fn send_dirty(&mut self) {
        while let Some(slot) = self.dirty.pop() {
            let Some(mut connection) = self.connections.get_mut(slot as usize).and_then(Option::take) else {
                continue;
            };
            connection.is_dirty = false;
            self.send(&mut connection);
            if connection.outbox.overflowed {
                self.counters.connections_cut += 1;
                self.close(connection);
            } else {
                self.put_connection(connection);
            }
        }
    }

    fn send(&mut self, connection: &mut Connection) {
        let Some(mut parts) = connection.outbox.begin_send() else { return };
        if connection.stage != Stage::Leaving {
            while parts.bytes() < DELIVERY_IN_FLIGHT_BYTES_MAX
                && Self::has_room_for_fetch(&parts)
                && let Some(fetch) = connection.fetches.pop_front()
            {
                if let Some(fetch) = self.finish_fetch(connection, fetch, &mut parts) {
                    connection.fetches.push_front(fetch);
                    break;
                }
            }
            self.deliver(connection, &mut parts);
        }
        if parts.is_empty() || connection.outbox.overflowed {
            connection.outbox.give_back(parts);
            return;
        }
        // A peer that reads slowly has time for each piece of a long send.
        let pieces = parts.bytes().div_ceil(DELIVERY_IN_FLIGHT_BYTES_MAX) as u64;
        connection.outbox.stall_ns = pieces * SEND_STALL_NS;
        connection.outbox.sending_since_ns = self.now.monotonic_ns;
        connection.last_sent_ns = self.now.monotonic_ns;
        self.ops.push(Op::Send { socket: connection.socket, parts });
    }

    /// Fills the send with deliveries, one slice of each subscription after another.
    fn deliver(&mut self, connection: &mut Connection, parts: &mut SendParts) {
        let mut budget = DELIVERY_IN_FLIGHT_BYTES_MAX.saturating_sub(parts.bytes());
        let mut idle_in_a_row = 0;
        while idle_in_a_row < connection.subscriptions.len()
            && budget > 0
            && parts.len() + 2 <= SEND_PARTS_MAX
        {
            let count = connection.subscriptions.len();
            let number = connection.next_subscription % count;
            connection.next_subscription = (number + 1) % count;
            let (_, index) = connection.subscriptions[number];
            match self.deliver_slice(connection, index, budget, parts) {
                0 => idle_in_a_row += 1,
                bytes => {
                    budget = budget.saturating_sub(bytes);
                    idle_in_a_row = 0;
                }
            }
        }
    }

    /// Pushes one slice of one subscription; gives its bytes, 0 when it has nothing to get or no credit.
    fn deliver_slice(
        &mut self,
        connection: &mut Connection,
        index: u32,
        budget: usize,
        parts: &mut SendParts,
    ) -> usize {
        let mut bytes = 0;
        while bytes == 0 {
            let Some(subscription) = self.subscriptions.get_mut(index) else { return 0 };
            if !subscription.credit.is_positive() {
                return 0;
            }
            let Some(number) = subscription.ready.pop_front() else { return 0 };
            subscription.cursors[number as usize].is_ready = false;
            let credit_bytes = usize::try_from(subscription.credit.bytes).unwrap_or(0);
            let limit = ReadLimit {
                bytes_max: DELIVERY_SLICE_BYTES.min(budget).min(credit_bytes),
                records_max: u64::try_from(subscription.credit.records).unwrap_or(0),
            };
            match self.next_run(index, number, limit) {
                Next::Run(run) => bytes = self.push_run(connection, index, number, run, parts),
                Next::Nothing => {}
                Next::End(status, range) => {
                    self.end_with_range(connection, index, status, range);
                    return 0;
                }
            }
        }
        bytes
    }

    /// Puts one run of a cursor into the send; gives its bytes.
    fn push_run(
        &mut self,
        connection: &mut Connection,
        index: u32,
        number: u32,
        run: Run,
        parts: &mut SendParts,
    ) -> usize {
        let Some(subscription) = self.subscriptions.get_mut(index) else { return 0 };
        let bytes = run.bytes.len();
        let cursor = &mut subscription.cursors[number as usize];
        (cursor.at, cursor.next, cursor.goal) = (run.next, run.next_offset, None);
        let header = FrameHeader::new(Opcode::Deliver, CorrelationId(cursor.partition.0), subscription.id.0);
        subscription.credit.bytes -= bytes as i64;
        subscription.credit.records -= run.record_count as i64;
        subscription.wake(number);
        self.counters.deliver_bytes += bytes as u64;
        self.counters.deliver_records += run.record_count;
        connection.outbox.push_header(&header.with_lengths(0, bytes));
        connection.outbox.push_control_to(parts);
        if connection.outbox.overflowed {
            return 0;
        }
        parts.push(run.bytes).expect("the caller saw room for two parts");
        bytes
    }

    /// What a cursor gets next: from the tail, or from the stream that reads for it behind the tails.
    fn next_run(&mut self, index: u32, number: u32, limit: ReadLimit) -> Next {
        let Some(subscription) = self.subscriptions.get_mut(index) else { return Next::Nothing };
        let cursor = &mut subscription.cursors[number as usize];
        let Some(partition) = self.state.partitions.get(cursor.partition) else { return Next::Nothing };
        let (start, end) = (partition.start(), partition.durable_end());
        if cursor.next < start {
            let range = OffsetRange { partition: cursor.partition, first: start, last: end };
            return Next::End(Status::OffsetOutOfRange, range);
        }
        if partition.is_being_trimmed(cursor.next) {
            return Next::Nothing;
        }
        let log = &partition.log;
        let reader = Reader::Cursor { subscription: index, cursor: number };
        if let Some(stream) = cursor.cold {
            match self.cold.take((stream, reader), log, end, limit) {
                Taken::Run(run) => {
                    cursor.generation = log.generation();
                    self.cold.advance((stream, reader), log, &self.pool, &mut self.ops);
                    return Next::Run(run);
                }
                Taken::Later => {
                    if !self.cold.advance((stream, reader), log, &self.pool, &mut self.ops) {
                        self.starved.push(reader);
                    }
                    if self.cold.has_news((stream, reader)) {
                        subscription.wake(number);
                    }
                    return Next::Nothing;
                }
                Taken::Damaged(damage) => {
                    return Next::End(Status::Corrupt, damage.range_in(cursor.partition, end));
                }
                Taken::CaughtUp(at) => {
                    (cursor.at, cursor.goal, cursor.generation) = (at, None, log.generation());
                    cursor.cold = None;
                    self.cold.end((stream, reader));
                }
                Taken::Stale => {
                    cursor.lose_place();
                    self.cold.end((stream, reader));
                }
            }
        }
        self.next_from_tail(index, number, limit)
    }

    fn next_from_tail(&mut self, index: u32, number: u32, limit: ReadLimit) -> Next {
        let Some(subscription) = self.subscriptions.get_mut(index) else { return Next::Nothing };
        let cursor = &mut subscription.cursors[number as usize];
        let Some(partition) = self.state.partitions.get(cursor.partition) else { return Next::Nothing };
        let log = &partition.log;
        if cursor.goal.is_none() && (cursor.generation != log.generation() || !log.is_in_tail(cursor.at)) {
            cursor.lose_place();
        }
        if let Some(goal) = cursor.goal {
            if let Found::Tail(at) = log.find_behind(goal, cursor.looked_up_to) {
                (cursor.at, cursor.generation) = (at, log.generation());
                // A time that lies ahead is looked for until something is there.
                if at < log.tail.end() || matches!(goal, Target::Offset(_)) {
                    cursor.goal = None;
                } else {
                    cursor.looked_up_to = at;
                }
            } else {
                let reader = Reader::Cursor { subscription: index, cursor: number };
                cursor.cold = self.cold.begin(reader, cursor.partition, goal, log);
                if let Some(stream) = cursor.cold {
                    if !self.cold.advance((stream, reader), log, &self.pool, &mut self.ops) {
                        self.starved.push(reader);
                    }
                    if self.cold.has_news((stream, reader)) {
                        subscription.wake(number);
                    }
                }
                return Next::Nothing;
            }
        }
        let from = log.normalize(cursor.at);
        log.tail.read(from, partition.durable_end(), limit).map_or(Next::Nothing, Next::Run)
    }

    /// A cold read has ended: its reader goes on.
    pub(super) fn on_cold_read(&mut self, stream: u32, buffer: Buffer, result: Result<(), IoError>) {
        let reader = self.cold.on_read(stream, buffer, result, &self.state, &self.pool);
        if let Some(reader) = reader {
            self.wake_reader(reader);
        }
    }

    /// Readers whose turn it is get a stream; those that found no memory try again after a while.
    pub(super) fn wake_readers(&mut self) {
        let now_ns = self.now.monotonic_ns;
        for reader in self.cold.next_turns(now_ns) {
            self.wake_reader(reader);
        }
        if self.starved_until_ns <= now_ns && !self.starved.is_empty() {
            self.starved_until_ns = now_ns + STARVED_RETRY_NS;
            for reader in std::mem::take(&mut self.starved) {
                self.wake_reader(reader);
            }
        }
    }

    /// When readers that wait are looked at again.
    pub(super) fn readers_deadline_ns(&self) -> Option<u64> {
        let starved = (!self.starved.is_empty()).then_some(self.starved_until_ns);
        let waiting = self.cold.is_contended().then_some(self.now.monotonic_ns + COLD_IDLE_NS);
        [starved, waiting].into_iter().flatten().min()
    }

    fn wake_reader(&mut self, reader: Reader) {
        match reader {
            Reader::Cursor { subscription, cursor } => {
                let Some(subscription) = self.subscriptions.get_mut(subscription) else { return };
                if (cursor as usize) < subscription.cursors.len() {
                    subscription.wake(cursor);
                    let socket = subscription.socket;
                    self.mark_dirty(socket);
                }
            }
            Reader::Fetch(socket) => self.mark_dirty(socket),
            Reader::Scrub => {}
        }
    }
}

/// What a cursor gets next.
enum Next {
    Run(Run),
    /// Nothing now; the cursor is woken when that changes.
    Nothing,
    /// Nothing any more: why, and which offsets.
    End(Status, OffsetRange),
}
