//! The bytes of one connection that are on their way to its socket: appended once, sent in few large pieces.
//!
//! Frames are appended to a buffer while an earlier part of the same buffer is being sent; one send is in flight
//! at a time, and takes with it all that was appended before it. A full buffer is left to its slices and comes back
//! to the pool when they are sent.
//!
//! Invariant: bytes leave in the order in which they were appended.

use reactor::memory::{AppendBuffer, Pool, Slice};
use reactor::parts::SendParts;

/// What waits to be sent, and what is being sent.
pub(crate) struct Outbox {
    buffer: AppendBuffer,
    /// Bytes of `buffer` before this were handed to a send.
    unsent_from: usize,
    /// The unsent end of the buffer before this one.
    left_over: Option<Slice>,
    /// `None` while a send is in flight.
    parts: Option<Box<SendParts>>,
    buffer_bytes: usize,
}

impl Outbox {
    /// Most buffers of an outbox: one that is filled, and two whose slices are being sent or wait.
    pub(crate) const BUFFERS_MAX: usize = 3;

    /// An outbox whose buffers hold `buffer_bytes` each; `None` when the pool has none.
    pub(crate) fn new(pool: &Pool, buffer_bytes: usize) -> Option<Self> {
        let buffer = pool.buffer(buffer_bytes)?.into_append(0);
        Some(Self { buffer, unsent_from: 0, left_over: None, parts: Some(SendParts::new()), buffer_bytes })
    }

    /// Makes room for `byte_count` bytes; false when that has to wait for a send to end.
    pub(crate) fn reserve(&mut self, pool: &Pool, byte_count: usize) -> bool {
        if byte_count <= self.buffer.remaining() {
            return true;
        }
        assert!(byte_count <= self.buffer_bytes, "{byte_count} bytes into buffers of {}", self.buffer_bytes);
        if self.left_over.is_some() {
            return false;
        }
        let Some(buffer) = pool.buffer(self.buffer_bytes) else { return false };
        let full = std::mem::replace(&mut self.buffer, buffer.into_append(0));
        if self.unsent_from < full.end() {
            self.left_over = Some(full.slice(self.unsent_from..full.end()));
        }
        self.unsent_from = 0;
        true
    }

    /// Appends bytes that `reserve` has made room for.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.buffer.append(bytes);
    }

    /// The next send, with all that waits; `None` when nothing waits or a send is in flight.
    pub(crate) fn begin_send(&mut self) -> Option<Box<SendParts>> {
        let end = self.buffer.end();
        if self.left_over.is_none() && self.unsent_from == end {
            return None;
        }
        let mut parts = self.parts.take()?;
        let appended = (self.unsent_from < end).then(|| self.buffer.slice(self.unsent_from..end));
        for slice in self.left_over.take().into_iter().chain(appended) {
            parts.push(slice).expect("an empty list takes two pieces");
        }
        self.unsent_from = end;
        Some(parts)
    }

    /// Forgets what waits: the connection that it was for is gone. No send may be in flight.
    pub(crate) fn discard(&mut self) {
        assert!(self.parts.is_some());
        self.left_over = None;
        self.unsent_from = self.buffer.end();
    }

    /// Takes the parts of the ended send back.
    pub(crate) fn finish_send(&mut self, mut parts: Box<SendParts>) {
        assert!(self.parts.is_none(), "one send is in flight at a time");
        parts.clear();
        self.parts = Some(parts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(parts: &SendParts) -> Vec<u8> {
        parts.iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn bytes_leave_in_order_over_many_buffers() {
        let pool = Pool::new(1).unwrap();
        let mut outbox = Outbox::new(&pool, 4_096).unwrap();
        let (mut appended, mut left) = (Vec::new(), Vec::new());
        let mut in_flight = None;
        for number in 0..500_u32 {
            let frame = vec![number as u8; 40 + (number as usize * 37) % 900];
            while !outbox.reserve(&pool, frame.len()) {
                outbox.finish_send(in_flight.take().expect("only a send can hold it up"));
                in_flight = outbox.begin_send();
                left.extend(in_flight.as_deref().map(sent).unwrap_or_default());
            }
            outbox.append(&frame);
            appended.extend(frame);
            if in_flight.is_none() {
                in_flight = outbox.begin_send();
                left.extend(in_flight.as_deref().map(sent).unwrap_or_default());
            }
        }
        while let Some(parts) = in_flight.take() {
            outbox.finish_send(parts);
            in_flight = outbox.begin_send();
            left.extend(in_flight.as_deref().map(sent).unwrap_or_default());
        }
        assert_eq!(left, appended);
        assert_eq!(pool.used_bytes(), 4_096, "the buffers before the last are back in the pool");
    }

    #[test]
    fn one_send_is_in_flight_at_a_time() {
        let pool = Pool::new(1).unwrap();
        let mut outbox = Outbox::new(&pool, 4_096).unwrap();
        assert!(outbox.begin_send().is_none(), "nothing waits");
        outbox.append(b"one");
        let first = outbox.begin_send().unwrap();
        outbox.append(b"two");
        assert!(outbox.begin_send().is_none());
        outbox.finish_send(first);
        assert_eq!(sent(&outbox.begin_send().unwrap()), b"two");
    }
}
