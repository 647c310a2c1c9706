//! Sending: answers first, then fetches, then deliveries in bounded slices.
//!
//! One send is in flight per socket. Deliveries are made only when the socket is free, from where each subscription
//! stands, so there is no queue of them: a slow consumer costs its credit and no more.

use protocol::frame::{FrameHeader, Opcode};
use protocol::ids::CorrelationId;
use reactor::memory::{SEND_PARTS_MAX, SendParts};

use super::connection::{Connection, Stage};
use super::serving::Serving;
use crate::io::{IoError, Op, Socket};
use crate::limits::{DELIVERY_IN_FLIGHT_BYTES_MAX, DELIVERY_SLICE_BYTES, SEND_STALL_NS};
use crate::log::ReadLimit;

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
                self.finish_fetch(connection, fetch, &mut parts);
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
        let count = connection.subscriptions.len();
        let mut budget = DELIVERY_IN_FLIGHT_BYTES_MAX.saturating_sub(parts.bytes());
        let mut idle_in_a_row = 0;
        while idle_in_a_row < count && budget > 0 && parts.len() + 2 <= SEND_PARTS_MAX {
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
        let Some(subscription) = self.subscriptions.get_mut(index) else { return 0 };
        while subscription.credit.is_positive()
            && let Some(number) = subscription.ready.pop_front()
        {
            let cursor = &mut subscription.cursors[number as usize];
            cursor.is_ready = false;
            let Some(partition) = self.state.partitions.get(cursor.partition) else { continue };
            let credit_bytes = usize::try_from(subscription.credit.bytes).unwrap_or(0);
            let limit = ReadLimit {
                bytes_max: DELIVERY_SLICE_BYTES.min(budget).min(credit_bytes),
                records_max: u64::try_from(subscription.credit.records).unwrap_or(0),
            };
            let Some(run) = partition.tail.read(cursor.at, partition.durable_end(), limit) else { continue };
            cursor.at = run.next;
            let bytes = run.bytes.len();
            let header =
                FrameHeader::new(Opcode::Deliver, CorrelationId(cursor.partition.0), subscription.id.0);
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
            return bytes;
        }
        0
    }
}
