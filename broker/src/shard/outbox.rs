//! What waits to be sent on one connection.
//!
//! Small answers are written one behind another into the control buffer; large ones are slices of their own. One
//! send is in flight per socket; when it ends, everything that gathered meanwhile goes out as the next, answers
//! before deliveries.

use std::collections::VecDeque;

use protocol::frame::FrameHeader;
use reactor::memory::{AppendBuffer, Pool, SendParts, Slice};
use zerocopy::IntoBytes;

use crate::limits::{CONTROL_BUFFER_BYTES, LARGE_ANSWERS_MAX};

#[derive(Debug)]
pub(super) struct Outbox {
    pool: Pool,
    control: AppendBuffer,
    /// Everything in `control` before this was handed to a send.
    sent: usize,
    large: VecDeque<Slice>,
    /// The list of parts; `None` while a send is in flight with it.
    parts: Option<Box<SendParts>>,
    /// How long it may take.
    pub(super) stall_ns: u64,
    /// When the send in flight began.
    pub(super) sending_since_ns: u64,
    /// An answer found no room: the connection cannot be kept.
    pub(super) overflowed: bool,
}

impl Outbox {
    /// `None` when there is no memory for the control buffer.
    pub(super) fn new(pool: &Pool) -> Option<Self> {
        Some(Self {
            pool: pool.clone(),
            control: pool.buffer(CONTROL_BUFFER_BYTES)?.into_append(0),
            sent: 0,
            large: VecDeque::with_capacity(LARGE_ANSWERS_MAX),
            parts: Some(SendParts::new()),
            stall_ns: 0,
            sending_since_ns: 0,
            overflowed: false,
        })
    }

    pub(super) fn unsent_bytes(&self) -> usize {
        self.control.end() - self.sent
    }

    pub(super) fn is_sending(&self) -> bool {
        self.parts.is_none()
    }

    /// Whether everything has left.
    pub(super) fn is_idle(&self) -> bool {
        self.unsent_bytes() == 0 && self.large.is_empty() && !self.is_sending()
    }

    pub(super) fn large_count(&self) -> usize {
        self.large.len()
    }

    pub(super) fn has_room_for_large(&self) -> bool {
        self.large.len() < LARGE_ANSWERS_MAX
    }

    pub(super) fn push_header(&mut self, header: &FrameHeader) {
        self.push(header.as_bytes());
    }

    /// Adds a small answer. If it finds no room, the connection is marked for its end.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.control.remaining() < bytes.len() && !self.renew_control(bytes.len()) {
            self.overflowed = true;
            return;
        }
        self.control.append(bytes);
    }

    /// Adds a large answer; the caller saw `has_room_for_large`.
    pub(super) fn push_large(&mut self, frame: Slice) {
        assert!(self.has_room_for_large());
        self.large.push_back(frame);
    }

    /// Goes on in a fresh control buffer, taking what is unsent along.
    fn renew_control(&mut self, bytes: usize) -> bool {
        if self.unsent_bytes() + bytes > CONTROL_BUFFER_BYTES {
            return false;
        }
        let Some(buffer) = self.pool.buffer(CONTROL_BUFFER_BYTES) else { return false };
        let mut fresh = buffer.into_append(0);
        fresh.append(self.control.bytes(self.sent..self.control.end()));
        self.control = fresh;
        self.sent = 0;
        true
    }

    /// Begins a send: gives the list of parts with everything that waits, as far as it has room; `None` while one
    /// is in flight.
    pub(super) fn begin_send(&mut self) -> Option<Box<SendParts>> {
        let mut parts = self.parts.take()?;
        debug_assert!(parts.is_empty());
        self.push_control_to(&mut parts);
        while let Some(frame) = self.large.pop_front() {
            if let Err(frame) = parts.push(frame) {
                self.large.push_front(frame);
                break;
            }
        }
        Some(parts)
    }

    /// Hands what was pushed since to the list of parts, as one slice.
    pub(super) fn push_control_to(&mut self, parts: &mut SendParts) {
        if self.unsent_bytes() > 0 {
            let unsent = self.control.slice(self.sent..self.control.end());
            if parts.push(unsent).is_ok() {
                self.sent = self.control.end();
            }
        }
    }

    /// The send has ended, or was not begun: the list comes back.
    pub(super) fn give_back(&mut self, mut parts: Box<SendParts>) {
        parts.clear();
        self.parts = Some(parts);
    }
}
