//! One connection: what was received and not yet cut into frames, what waits to be sent, and what its peer was
//! promised.
//!
//! Received bytes: `parsed <= filled <= capacity`; frames are cut in place and the rest is moved to the front.

use std::collections::VecDeque;

use protocol::frame::{Frame, FrameError};
use protocol::ids::{CorrelationId, Handle, Offset, SubscriptionId};
use reactor::memory::{Buffer, Pool};

use super::gates::Gates;
use super::outbox::Outbox;
use crate::io::Socket;
use crate::limits::{
    COLD_REQUESTS_IN_FLIGHT_MAX, CONTROL_UNSENT_BYTES_MAX, FETCHES_PENDING_MAX, LARGE_ANSWERS_UNSENT_MAX,
    RECEIVE_BUFFER_BYTES,
};

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Accepted; only `Hello` is taken.
    Greeting,
    /// Open for everything.
    Open,
    /// A `GoAway` was sent or received: what comes is thrown away, what was promised is still answered, and the
    /// socket is closed when the peer has closed it or had time to read the farewell.
    Leaving,
}

/// A frame longer than any buffer that there is: read and thrown away.
#[derive(Clone, Copy, Debug)]
pub(super) struct Discard {
    pub(super) bytes_left: usize,
}

/// A fetch that waits for the socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingFetch {
    pub(super) correlation: CorrelationId,
    pub(super) partition: Handle,
    pub(super) from: Offset,
    pub(super) to: Offset,
    pub(super) bytes_max: usize,
    /// The stream that reads for it from disk.
    pub(super) cold: Option<u32>,
}

/// A connection of this shard.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: Socket,
    pub(super) stage: Stage,
    /// `None` while a receive is in flight with it.
    pub(super) buffer: Option<Buffer>,
    /// The ordinary buffer, while a longer one is in use for a long frame.
    spare: Option<Buffer>,
    pub(super) filled: usize,
    pub(super) discard: Option<Discard>,
    pub(super) outbox: Outbox,
    pub(super) gates: Gates,
    pub(super) produce_bytes_in_flight: usize,
    /// Produce frames that wait for the journal.
    pub(super) requests_in_flight: u32,
    /// Other requests that wait for the journal.
    pub(super) cold_in_flight: u32,
    /// A request waits for a change of the catalog and is handled again then; what is behind it waits too, so that
    /// the order of requests holds.
    pub(super) is_parked: bool,
    pub(super) fetches: VecDeque<PendingFetch>,
    /// Ids and indexes into the shard's table.
    pub(super) subscriptions: Vec<(SubscriptionId, u32)>,
    /// Partition cursors of all its subscriptions.
    pub(super) cursor_count: usize,
    /// Where the next round of deliveries starts, so that no subscription starves another.
    pub(super) next_subscription: usize,
    pub(super) last_heard_ns: u64,
    pub(super) last_sent_ns: u64,
    pub(super) accepted_ns: u64,
    /// When it began to leave.
    pub(super) leaving_since_ns: u64,
    /// When the frame that is not whole yet was begun.
    pub(super) frame_since_ns: Option<u64>,
    /// In the shard's list of connections to look at when the turn ends.
    pub(super) is_dirty: bool,
    /// The last receive said that the socket has more.
    pub(super) has_more: bool,
}

impl Connection {
    /// `None` when there is no memory for its buffers.
    pub(super) fn new(socket: Socket, pool: &Pool, now_ns: u64) -> Option<Self> {
        Some(Self {
            socket,
            stage: Stage::Greeting,
            buffer: Some(pool.buffer(RECEIVE_BUFFER_BYTES)?),
            spare: None,
            filled: 0,
            discard: None,
            outbox: Outbox::new(pool)?,
            gates: Gates::default(),
            produce_bytes_in_flight: 0,
            requests_in_flight: 0,
            cold_in_flight: 0,
            is_parked: false,
            fetches: VecDeque::with_capacity(FETCHES_PENDING_MAX),
            subscriptions: Vec::new(),
            cursor_count: 0,
            next_subscription: 0,
            last_heard_ns: now_ns,
            last_sent_ns: now_ns,
            accepted_ns: now_ns,
            leaving_since_ns: 0,
            frame_since_ns: None,
            is_dirty: false,
            has_more: false,
        })
    }

    /// Whether the peer reads its answers and waits for few enough: otherwise nothing more is read from it for now.
    pub(super) fn may_read(&self) -> bool {
        self.stage != Stage::Leaving
            && !self.is_parked
            && self.outbox.unsent_bytes() <= CONTROL_UNSENT_BYTES_MAX
            && self.outbox.large_count() <= LARGE_ANSWERS_UNSENT_MAX
            && self.cold_in_flight < COLD_REQUESTS_IN_FLIGHT_MAX
            && self.fetches.len() < FETCHES_PENDING_MAX
    }

    /// Whether something that was promised to the peer is still to come.
    pub(super) fn is_owed_something(&self) -> bool {
        self.requests_in_flight > 0 || self.cold_in_flight > 0 || !self.outbox.is_idle()
    }

    /// The index of a subscription in the shard's table.
    pub(super) fn subscription(&self, id: SubscriptionId) -> Option<u32> {
        self.subscriptions.iter().find(|(known, _)| *known == id).map(|(_, index)| *index)
    }

    /// Moves the bytes from `parsed` on to the buffer's front, and makes sure that the frame they begin will fit.
    /// Returns the length of a frame for which there is no memory: it is to be discarded.
    pub(super) fn make_room(
        &mut self,
        mut buffer: Buffer,
        parsed: usize,
        frame_bytes_max: u32,
        pool: &Pool,
    ) -> Result<Option<usize>, FrameError> {
        let rest = parsed..self.filled;
        let header = protocol::frame::FrameHeader::read(&buffer[rest.clone()], frame_bytes_max);
        let wanted = match header {
            Ok(header) => header.map_or(0, protocol::frame::FrameHeader::frame_bytes),
            Err(error) => {
                self.buffer = Some(buffer);
                return Err(error);
            }
        };
        self.filled = rest.len();
        if wanted > buffer.capacity() {
            let Some(mut long) = pool.buffer(wanted) else {
                buffer.copy_within(rest, 0);
                self.buffer = Some(buffer);
                return Ok(Some(wanted));
            };
            long[..rest.len()].copy_from_slice(&buffer[rest]);
            self.buffer = Some(long);
            // The ordinary buffer is kept; a long one that was in use already is given back.
            self.spare.get_or_insert(buffer);
            return Ok(None);
        }
        match self.spare.take() {
            // The long frame is done: go back to the ordinary buffer, which holds what is left of it.
            Some(mut ordinary) if wanted <= ordinary.capacity() && rest.len() < ordinary.capacity() => {
                ordinary[..rest.len()].copy_from_slice(&buffer[rest]);
                self.buffer = Some(ordinary);
            }
            spare => {
                if rest.start > 0 {
                    buffer.copy_within(rest, 0);
                }
                self.spare = spare;
                self.buffer = Some(buffer);
            }
        }
        Ok(None)
    }
}

/// Cuts the frame at `parsed`, if it is whole.
pub(super) fn next_frame(
    buffer: &Buffer,
    parsed: usize,
    filled: usize,
    frame_bytes_max: u32,
) -> Result<Option<Frame<'_>>, FrameError> {
    Frame::cut(&buffer[parsed..filled], frame_bytes_max)
}
