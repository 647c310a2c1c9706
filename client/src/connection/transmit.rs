//! The bytes that wait for the socket, in the order in which they leave.
//!
//! Every byte has a position in the stream of all bytes ever sent on the connection; so it can be told for each
//! request whether any part of it was handed over. How much may wait is the business of whoever adds to it.

use std::fmt;

use flatbuffers::{FlatBufferBuilder, WIPOffset};
use protocol::envelope;
use protocol::frame::{FRAME_HEADER_BYTES, FrameHeader};
use zerocopy::IntoBytes;

pub(super) struct TransmitBuffer {
    bytes: Vec<u8>,
    /// Bytes before this were handed over.
    head: usize,
    /// Bytes handed over since the connection began.
    transmitted: u64,
    envelope: FlatBufferBuilder<'static>,
}

impl fmt::Debug for TransmitBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransmitBuffer")
            .field("waiting", &self.waiting().len())
            .field("transmitted", &self.transmitted)
            .finish_non_exhaustive()
    }
}

impl TransmitBuffer {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), head: 0, transmitted: 0, envelope: FlatBufferBuilder::new() }
    }

    /// What waits.
    pub(super) fn waiting(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// The socket took the first `byte_count` bytes of what waits.
    pub(super) fn transmitted(&mut self, byte_count: usize) {
        assert!(byte_count <= self.bytes.len() - self.head);
        self.head += byte_count;
        self.transmitted += byte_count as u64;
        if self.head == self.bytes.len() {
            self.bytes.clear();
            self.head = 0;
        }
    }

    /// Position in the stream of the next byte that is added.
    pub(super) fn end_position(&self) -> u64 {
        self.transmitted + self.waiting().len() as u64
    }

    /// Whether the byte at a position still waits.
    pub(super) fn is_waiting(&self, position: u64) -> bool {
        position >= self.transmitted
    }

    /// Adds a frame without envelope.
    pub(super) fn push(&mut self, header: FrameHeader, payload: &[u8]) {
        self.make_room(FRAME_HEADER_BYTES + payload.len());
        self.bytes.extend_from_slice(header.with_lengths(0, payload.len()).as_bytes());
        self.bytes.extend_from_slice(payload);
    }

    /// Adds a frame without payload, whose envelope `build` makes.
    pub(super) fn push_envelope<T>(
        &mut self,
        header: FrameHeader,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) {
        self.make_room(crate::limits::CONTROL_FRAME_BYTES_MAX);
        let root = build(&mut self.envelope);
        let start = self.bytes.len();
        let body = start + FRAME_HEADER_BYTES;
        self.bytes.resize(body, 0);
        let envelope_bytes = envelope::finish_into(&mut self.envelope, root, &mut self.bytes);
        let header = header.with_lengths(envelope_bytes, 0);
        self.bytes[start..body].copy_from_slice(header.as_bytes());
    }

    /// Moves what waits to the front when that costs no more than what left since; else the vector grows. So each
    /// byte is moved once on average, and the capacity stays below four times the most that ever waited.
    fn make_room(&mut self, byte_count: usize) {
        let is_full = self.bytes.len() + byte_count > self.bytes.capacity();
        if is_full && self.head > 0 && self.head >= self.waiting().len() {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }
}
