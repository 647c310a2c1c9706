//! The receive buffer: bytes in at its end, checked frames out at its front.
//!
//! `head <= checked <= tail <= bytes.len()`: before `head` everything was given out, up to `checked` whole frames
//! were accepted, up to `tail` bytes arrived. It grows to the frames that come, and never beyond the granted frame
//! length and `RECEIVE_SLACK_BYTES`.

use std::fmt;
use std::ops::Range;

use protocol::frame::{Frame, FrameError, FrameHeader};
use protocol::limits::FRAME_BYTES_MAX;

use crate::limits::RECEIVE_SLACK_BYTES;

pub(super) struct ReceiveBuffer {
    bytes: Vec<u8>,
    head: usize,
    checked: usize,
    tail: usize,
    frame_bytes_max: u32,
}

impl fmt::Debug for ReceiveBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveBuffer")
            .field("head", &self.head)
            .field("checked", &self.checked)
            .field("tail", &self.tail)
            .field("length", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

impl ReceiveBuffer {
    pub(super) fn new(frame_bytes_max: u32) -> Self {
        Self { bytes: vec![0; RECEIVE_SLACK_BYTES], head: 0, checked: 0, tail: 0, frame_bytes_max }
    }

    /// Frames may be so long from now on.
    pub(super) fn grant(&mut self, frame_bytes_max: u32) {
        assert!(frame_bytes_max as usize <= FRAME_BYTES_MAX);
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Room for the next bytes: at least `min` of them, unless frames that were not taken yet fill the buffer.
    pub(super) fn space(&mut self, min: usize) -> &mut [u8] {
        if self.head == self.tail {
            (self.head, self.checked, self.tail) = (0, 0, 0);
        }
        if self.bytes.len() - self.tail < min.max(1) {
            self.make_space(min.max(1));
        }
        &mut self.bytes[self.tail..]
    }

    /// The first `byte_count` bytes of `space` were filled.
    pub(super) fn filled(&mut self, byte_count: usize) {
        assert!(byte_count <= self.bytes.len() - self.tail);
        self.tail += byte_count;
    }

    /// The next whole frame that was not accepted yet.
    pub(super) fn unchecked(&self) -> Result<Option<Frame<'_>>, FrameError> {
        Frame::cut(&self.bytes[self.checked..self.tail], self.frame_bytes_max)
    }

    /// The frame that `unchecked` gave is good.
    pub(super) fn accept(&mut self, frame_bytes: usize) {
        assert!(frame_bytes <= self.tail - self.checked);
        self.checked += frame_bytes;
    }

    /// Takes the next accepted frame; its place stays readable until `space` is asked for.
    pub(super) fn pop(&mut self) -> Option<Range<usize>> {
        if self.head == self.checked {
            return None;
        }
        let length = self.frame(self.head..self.checked).header.frame_bytes();
        let place = self.head..self.head + length;
        self.head = place.end;
        Some(place)
    }

    /// The frame at a place that `pop` gave.
    pub(super) fn frame(&self, place: Range<usize>) -> Frame<'_> {
        Frame::cut(&self.bytes[place], FRAME_BYTES_MAX as u32)
            .ok()
            .flatten()
            .expect("only whole frames with good headers are accepted")
    }

    /// Moves what is not taken to the front, and grows for the frame that is arriving.
    fn make_space(&mut self, min: usize) {
        if self.head > 0 {
            self.bytes.copy_within(self.head..self.tail, 0);
            self.checked -= self.head;
            self.tail -= self.head;
            self.head = 0;
        }
        let arriving = match FrameHeader::read(&self.bytes[self.checked..self.tail], self.frame_bytes_max) {
            Ok(Some(header)) => header.frame_bytes(),
            Ok(None) | Err(_) => 0,
        };
        let wanted = (self.tail + min).max(self.checked + arriving + RECEIVE_SLACK_BYTES);
        let wanted = wanted.min(self.frame_bytes_max as usize + RECEIVE_SLACK_BYTES);
        if wanted > self.bytes.len() {
            self.bytes.resize(wanted, 0);
        }
    }
}
