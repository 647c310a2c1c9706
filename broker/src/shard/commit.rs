//! Commit: what waits for the journal, and what happens when it is durable.
//!
//! Waiters stand in the order of their LSNs, so one pass from the front answers everything that a flush has made
//! durable, many answers in one send.

use protocol::frame::{Frame, FrameHeader};
use protocol::ids::{CorrelationId, Handle, Offset, TopicKey};
use reactor::memory::Slice;
use zerocopy::IntoBytes;

use super::connection::Connection;
use super::produce::ProduceInFlight;
use super::serving::Serving;
use super::subscribe::EndedSubscription;
use crate::io::Socket;
use crate::journal::Lsn;
use crate::log::Position;

/// Something that may be said once the journal is durable up to its LSN.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) lsn: Lsn,
    pub(super) since_ns: u64,
    socket: Socket,
    waiting: Waiting,
}

#[derive(Debug)]
pub(super) enum Waiting {
    Produce(ProduceInFlight),
    TopicCreated {
        correlation: CorrelationId,
        topic: TopicKey,
    },
    TopicDeleted {
        correlation: CorrelationId,
        ended: Vec<EndedSubscription>,
    },
    /// An answer that depends on a change of the catalog.
    Answer(FrameHeader),
    /// A request whose answer depends on a change of the catalog: handled again from the start.
    Redo(Slice),
}

impl Serving {
    pub(super) fn wait_for(&mut self, lsn: Lsn, connection: &mut Connection, waiting: Waiting) {
        debug_assert!(self.waiters.back().is_none_or(|last| last.lsn <= lsn));
        match &waiting {
            Waiting::Produce(produce) => {
                connection.produce_bytes_in_flight += produce.frame_bytes as usize;
                connection.requests_in_flight += 1;
            }
            Waiting::TopicCreated { .. }
            | Waiting::TopicDeleted { .. }
            | Waiting::Answer(_)
            | Waiting::Redo(_) => connection.cold_in_flight += 1,
        }
        let (since_ns, socket) = (self.now.monotonic_ns, connection.socket);
        self.waiters.push_back(Waiter { lsn, since_ns, socket, waiting });
    }

    /// Whether an answer about topics would be derived from a change that a power cut could still undo.
    pub(super) fn catalog_is_in_doubt(&self) -> bool {
        self.catalog_changed > self.journal.durable()
    }

    /// Keeps a copy of the request and handles it again when the catalog's last change is durable. Until then
    /// nothing more of the connection is handled, so there is at most one for each.
    pub(super) fn redo_when_durable(&mut self, connection: &mut Connection, frame: &Frame<'_>) {
        let Some(copy) = self.park(connection, frame) else { return };
        // Behind whatever was appended last: waiters stay in order, and the change is at or before it.
        let lsn = self.journal.appended();
        self.wait_for(lsn, connection, Waiting::Redo(copy));
    }

    /// Keeps a copy of the request and handles it again when snapshots have room for what it makes.
    pub(super) fn redo_when_grown(
        &mut self,
        connection: &mut Connection,
        frame: &Frame<'_>,
        partitions: u64,
    ) {
        let Some(copy) = self.park(connection, frame) else { return };
        self.ask_for_snapshot_room(partitions);
        connection.cold_in_flight += 1;
        self.parked_creations.push((connection.socket, copy));
    }

    /// Snapshots have grown, or cannot.
    pub(super) fn redo_creations(&mut self) {
        for (socket, frame) in std::mem::take(&mut self.parked_creations) {
            if let Some(connection) = self.connection_mut(socket) {
                connection.cold_in_flight -= 1;
                self.redo(socket, &frame);
            }
        }
    }

    /// Keeps a copy of the request; nothing more of the connection is handled meanwhile.
    fn park(&mut self, connection: &mut Connection, frame: &Frame<'_>) -> Option<Slice> {
        let length = frame.header.frame_bytes();
        let Some(mut copy) = self.pool.buffer(length) else {
            self.go_away(
                connection,
                protocol::status::Status::Busy,
                "no memory for a request that must wait",
            );
            return None;
        };
        let pieces = [frame.header.as_bytes(), frame.envelope, frame.payload];
        let mut at = 0;
        for piece in pieces {
            copy[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        connection.is_parked = true;
        Some(copy.freeze(0..length))
    }

    /// Answers everything that has become durable.
    pub(super) fn answer_durable(&mut self) {
        let durable = self.journal.durable();
        while self.waiters.front().is_some_and(|waiter| waiter.lsn <= durable) {
            let Some(waiter) = self.waiters.pop_front() else { return };
            let socket = waiter.socket;
            if !matches!(waiter.waiting, Waiting::Produce(_))
                && let Some(connection) = self.connection_mut(socket)
            {
                connection.cold_in_flight -= 1;
            }
            match waiter.waiting {
                Waiting::Produce(produce) => self.finish_produce(socket, &produce),
                Waiting::TopicCreated { correlation, topic } => {
                    self.finish_create_topic(socket, correlation, topic);
                }
                Waiting::TopicDeleted { correlation, ended } => {
                    self.finish_delete_topic(socket, correlation, &ended);
                }
                Waiting::Answer(header) => {
                    if let Some(connection) = self.connection_mut(socket) {
                        connection.outbox.push_header(&header);
                        self.mark_dirty(socket);
                    }
                }
                Waiting::Redo(frame) => self.redo(socket, &frame),
            }
        }
    }

    fn redo(&mut self, socket: Socket, bytes: &[u8]) {
        let Some(mut connection) = self.take_connection(socket) else { return };
        connection.is_parked = false;
        if let Ok(Some(frame)) = Frame::cut(bytes, self.config.frame_bytes_max) {
            self.dispatch(&mut connection, &frame);
        }
        self.put_connection(connection);
        self.mark_dirty(socket);
    }

    /// Everything of the partition below `end` is durable: whoever reads it has something to get.
    pub(super) fn make_visible(&mut self, handle: Handle, end: Offset, position: Position) {
        let Some(partition) = self.state.partitions.get_mut(handle) else { return };
        partition.on_durable(end, position);
        self.write_behind.on_durable(partition);
        self.wake_subscribers(handle);
    }

    /// The partition has something for those who read it.
    pub(super) fn wake_subscribers(&mut self, handle: Handle) {
        let Some(partition) = self.state.partitions.get(handle) else { return };
        for n in 0..partition.subscribers.len() {
            let subscriber = partition.subscribers[n];
            let Some(subscription) = self.subscriptions.get_mut(subscriber.subscription) else { continue };
            subscription.wake(subscriber.cursor);
            let socket = subscription.socket;
            let slot = socket.slot as usize;
            let connection = self.connections.get_mut(slot).and_then(Option::as_deref_mut);
            if let Some(connection) = connection.filter(|connection| !connection.is_dirty) {
                connection.is_dirty = true;
                self.dirty.push(socket.slot);
            }
        }
    }
}
