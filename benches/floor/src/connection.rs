//! One connection: an inbox that receives and holds frames until they are cut, an outbox that sends answers.
//!
//! One receive and one send at most are in flight. Room for an answer is reserved before its frame is cut, so an
//! answer never meets a full outbox; a peer that does not read its answers is not read from. A slot is used again
//! only when nothing points to it any more: no receive, no send, no owed answer. It knows no opcodes.

use std::io;
use std::mem;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{cqueue, opcode, types};
use protocol::frame::{FRAME_HEADER_BYTES, Frame, FrameError};
use protocol::limits::ENVELOPE_BYTES_MAX;

use crate::ring::{Ring, Token};

/// Connections that are served at once.
pub(crate) const CONNECTIONS_MAX: usize = 128;
/// Most that one receive takes, so that the bytes are still in the cache when they are copied.
const RECEIVE_BYTES_AT_ONCE: usize = 256 << 10;
/// Half an outbox: answers that are owed or wait for the send under way.
const OUTBOX_BYTES: usize = 1 << 20;
/// Longest answer to a frame.
const ANSWER_BYTES_MAX: usize = FRAME_HEADER_BYTES + ENVELOPE_BYTES_MAX;
/// `IORING_RECVSEND_POLL_FIRST`, which the crate keeps to itself: wait for readiness before trying.
const POLL_FIRST: u16 = 1;

const _: () = assert!(ANSWER_BYTES_MAX < OUTBOX_BYTES);

/// A slot for a connection; its buffers stay when the connection goes.
pub(crate) struct Connection {
    socket: Option<TcpStream>,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    is_closing: bool,
    /// Frames lie uncut because there was no room; nothing is received until there is.
    pub(crate) is_stalled: bool,
}

impl Connection {
    /// A free slot. Its memory is taken from the system when it is first used.
    pub(crate) fn new(receive_bytes: usize) -> Self {
        Self {
            socket: None,
            inbox: Inbox::new(receive_bytes),
            outbox: Outbox::new(),
            is_closing: false,
            is_stalled: false,
        }
    }

    pub(crate) fn is_free(&self) -> bool {
        self.socket.is_none()
    }

    pub(crate) fn open(&mut self, socket: TcpStream) {
        assert!(self.is_free());
        self.socket = Some(socket);
    }

    /// Cuts the peer off. What is in flight comes back soon, and then the slot is free.
    pub(crate) fn close(&mut self) {
        self.is_closing = true;
        self.is_stalled = false;
        if let Some(socket) = &self.socket {
            // It fails only where the peer was faster.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Receives more behind what was not cut.
    pub(crate) fn begin_receive(&mut self, slot: usize, ring: &mut Ring<'_>) {
        let descriptor = self.descriptor();
        self.inbox.begin_receive(descriptor, slot, ring);
    }

    /// A receive came back; returns whether there are new bytes to cut.
    pub(crate) fn on_received(&mut self, outcome: io::Result<usize>, flags: u32) -> bool {
        self.inbox.is_receiving = false;
        let received = outcome.unwrap_or(0);
        if self.is_closing || received == 0 {
            self.close();
            return false;
        }
        self.inbox.end += received;
        self.inbox.poll_first = !cqueue::sock_nonempty(flags);
        true
    }

    /// A send came back; what it left over is sent again.
    pub(crate) fn on_sent(&mut self, outcome: io::Result<usize>, slot: usize, ring: &mut Ring<'_>) {
        self.outbox.is_sending = false;
        let sent = outcome.unwrap_or(0);
        if self.is_closing || sent == 0 {
            return self.close();
        }
        self.outbox.sent += sent;
        if self.outbox.sent < self.outbox.sending.len() {
            self.outbox.continue_send(self.descriptor(), slot, ring);
        }
    }

    /// Ends a turn: sends what was answered in it, or gives up the slot of a connection that is gone.
    pub(crate) fn end_turn(&mut self, slot: usize, ring: &mut Ring<'_>) {
        if self.is_closing {
            self.try_release();
        } else if !self.outbox.is_sending && !self.outbox.filling.is_empty() {
            self.outbox.begin_send(self.descriptor(), slot, ring);
        }
    }

    fn try_release(&mut self) {
        if self.inbox.is_receiving || self.outbox.is_sending || self.outbox.owed_count > 0 {
            return;
        }
        self.socket = None;
        self.is_closing = false;
        self.inbox.clear();
        self.outbox.clear();
    }

    fn descriptor(&self) -> RawFd {
        self.socket.as_ref().expect("only an open slot receives and sends").as_raw_fd()
    }
}

/// Bytes received: `[0, start)` was cut, `[start, end)` was not.
pub(crate) struct Inbox {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    is_receiving: bool,
    /// The last receive emptied the socket.
    poll_first: bool,
}

impl Inbox {
    fn new(bytes: usize) -> Self {
        Self { buffer: vec![0; bytes].into(), start: 0, end: 0, is_receiving: false, poll_first: true }
    }

    /// The frame that comes next, if it is whole.
    pub(crate) fn frame(&self) -> Result<Option<Frame<'_>>, FrameError> {
        Frame::cut(&self.buffer[self.start..self.end], self.buffer.len() as u32)
    }

    /// Steps over a frame.
    pub(crate) fn consume(&mut self, bytes: usize) {
        assert!(bytes <= self.end - self.start);
        self.start += bytes;
    }

    fn begin_receive(&mut self, descriptor: RawFd, slot: usize, ring: &mut Ring<'_>) {
        assert!(!self.is_receiving);
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let room = &mut self.buffer[self.end..];
        assert!(!room.is_empty(), "a full inbox holds a whole frame");
        let length = room.len().min(RECEIVE_BYTES_AT_ONCE) as u32;
        let entry = opcode::Recv::new(types::Fd(descriptor), room.as_mut_ptr(), length)
            .ioprio(if self.poll_first { POLL_FIRST } else { 0 })
            .build()
            .user_data(Token::Receive(slot).user_data());
        // SAFETY: the buffer lives as long as the server, which is never dropped; while `is_receiving` is set
        // nothing is looked at behind `end`, and nothing moves, for only `begin_receive` does that.
        unsafe { ring.push(&entry) };
        self.is_receiving = true;
    }

    fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
        self.poll_first = true;
    }
}

/// Answers: one half fills while the other is sent. Neither half ever grows.
pub(crate) struct Outbox {
    filling: Vec<u8>,
    sending: Vec<u8>,
    /// Bytes of `sending` that are sent.
    sent: usize,
    is_sending: bool,
    /// Answers without envelope that are to come, for whose bytes there is room in `filling`.
    owed_count: usize,
}

impl Outbox {
    fn new() -> Self {
        Self {
            filling: Vec::with_capacity(OUTBOX_BYTES),
            sending: Vec::with_capacity(OUTBOX_BYTES),
            sent: 0,
            is_sending: false,
            owed_count: 0,
        }
    }

    /// Whether any answer to one more frame fits beside those that are owed.
    pub(crate) fn has_room(&self) -> bool {
        let reserved_bytes = self.owed_count * FRAME_HEADER_BYTES;
        self.filling.len() + reserved_bytes + ANSWER_BYTES_MAX <= OUTBOX_BYTES
    }

    /// Reserves the bytes of a header, for `pay`.
    pub(crate) fn owe(&mut self) {
        self.owed_count += 1;
    }

    /// Adds an owed answer.
    pub(crate) fn pay(&mut self, header: &[u8]) {
        assert_eq!(header.len(), FRAME_HEADER_BYTES);
        self.owed_count = self.owed_count.checked_sub(1).expect("only what is owed is paid");
        self.put(header);
    }

    /// Adds a part of an answer; `has_room` must have said so, or `owe` been called.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        assert!(self.filling.len() + bytes.len() <= OUTBOX_BYTES);
        self.filling.extend_from_slice(bytes);
    }

    fn begin_send(&mut self, descriptor: RawFd, slot: usize, ring: &mut Ring<'_>) {
        assert!(!self.is_sending);
        self.sending.clear();
        mem::swap(&mut self.filling, &mut self.sending);
        self.sent = 0;
        self.continue_send(descriptor, slot, ring);
    }

    fn continue_send(&mut self, descriptor: RawFd, slot: usize, ring: &mut Ring<'_>) {
        let rest = &self.sending[self.sent..];
        let entry = opcode::Send::new(types::Fd(descriptor), rest.as_ptr(), rest.len() as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build()
            .user_data(Token::Send(slot).user_data());
        // SAFETY: the half lives as long as the server, which is never dropped; while `is_sending` is set it is
        // neither changed nor swapped, for only `begin_send` and `clear` do that.
        unsafe { ring.push(&entry) };
        self.is_sending = true;
    }

    fn clear(&mut self) {
        self.filling.clear();
        self.sending.clear();
        self.sent = 0;
    }
}
