//! One partition's side of a producer: the batch being filled, and the frames that are not resolved.
//!
//! Frames stand in the order in which their records were pushed, and are sent in that order. A retryable refusal
//! closes the gate; it opens again by one frame, the probe, which is the first that waits and carries `RESUMES`. So
//! no frame overtakes another that was refused:
//!
//! ```text
//! sent 1 2 3 4, answers: 1 ok, 2 busy, 3 busy, 4 busy -> Closed, waiting 2 3 4
//! back-off, nothing in flight -> send 2 RESUMES -> Probing -> 2 ok -> Open -> send 3 4 5 ...
//! ```

use std::collections::VecDeque;

use protocol::batch::{BatchBuilder, BuildError, Compressor, Record};
use protocol::ids::Handle;
use protocol::status::Status;

use super::outcome::RecordId;
use crate::limits::{RETRY_US_MAX, RETRY_US_MIN};

/// Whether frames may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// A frame was refused: nothing is sent before this time, and then a probe.
    Closed {
        retry_at_ns: u64,
    },
    /// The probe is in flight.
    Probing,
}

impl Gate {
    /// Whether it is closed and a probe may be sent.
    pub(super) fn is_due(self, now_ns: u64) -> bool {
        matches!(self, Self::Closed { retry_at_ns } if now_ns >= retry_at_ns)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameState {
    Waiting,
    InFlight,
    /// Its result was given; it stands only until those before it are done too.
    Done,
}

/// A closed batch.
#[derive(Debug)]
pub(super) struct QueuedFrame {
    pub(super) bytes: Vec<u8>,
    pub(super) first: RecordId,
    pub(super) record_count: u32,
    pub(super) state: FrameState,
    /// The last refusal, if it was refused and waits.
    pub(super) refused: Option<Status>,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) handle: Handle,
    pub(super) gate: Gate,
    pub(super) in_flight_count: usize,
    /// Whether it stands in the producer's list of lanes with something to send.
    pub(super) is_active: bool,
    builder: BatchBuilder,
    /// When the open batch got its first record.
    opened_ns: u64,
    /// Number of the next record.
    next_record: u64,
    frames: VecDeque<QueuedFrame>,
    /// Number of the front frame.
    first_frame: u64,
    /// Refusals in a row.
    refusals: u32,
}

impl Lane {
    pub(super) fn new(handle: Handle) -> Self {
        Self {
            handle,
            gate: Gate::Open,
            in_flight_count: 0,
            is_active: false,
            builder: BatchBuilder::new(),
            opened_ns: 0,
            next_record: 0,
            frames: VecDeque::new(),
            first_frame: 0,
            refusals: 0,
        }
    }

    /// Adds a record to the open batch.
    pub(super) fn push(&mut self, now_ns: u64, record: &Record<'_>) -> Result<RecordId, BuildError> {
        let opens = self.builder.is_empty();
        self.builder.push(record)?;
        if opens {
            self.opened_ns = now_ns;
        }
        let id = RecordId::new(self.handle.partition(), self.next_record);
        self.next_record += 1;
        Ok(id)
    }

    pub(super) fn open_records(&self) -> usize {
        self.builder.record_count()
    }

    /// Upper bound of the open batch's length; 0 when there is none.
    pub(super) fn open_bytes(&self) -> usize {
        if self.builder.is_empty() { 0 } else { self.builder.bytes_bound() }
    }

    /// When the open batch has waited long enough; `None` when there is none.
    pub(super) fn due_ns(&self, linger_ns: u64) -> Option<u64> {
        (!self.builder.is_empty()).then(|| self.opened_ns.saturating_add(linger_ns))
    }

    /// Closes the open batch, which has records, into a frame; `bytes` is an empty buffer for it. Returns the length.
    pub(super) fn close(&mut self, compressor: &mut Compressor, mut bytes: Vec<u8>) -> usize {
        let record_count = self.builder.record_count() as u32;
        let first = RecordId::new(self.handle.partition(), self.next_record - u64::from(record_count));
        let length = self.builder.finish_compressed_into(compressor, &mut bytes);
        let state = FrameState::Waiting;
        self.frames.push_back(QueuedFrame { bytes, first, record_count, state, refused: None });
        length
    }

    /// The first frame that waits, with its number.
    pub(super) fn next_waiting(&self) -> Option<(u64, &QueuedFrame)> {
        let index = self.frames.iter().position(|frame| frame.state == FrameState::Waiting)?;
        Some((self.first_frame + index as u64, &self.frames[index]))
    }

    /// Whether there is anything to send, now or later.
    pub(super) fn has_unsent(&self) -> bool {
        !self.builder.is_empty() || self.next_waiting().is_some()
    }

    /// Notes that the frame was handed to the connection; behind a closed gate that makes it the probe.
    pub(super) fn on_handed_over(&mut self, number: u64) {
        let frame = self.frame_mut(number);
        assert!(frame.state == FrameState::Waiting);
        frame.state = FrameState::InFlight;
        self.in_flight_count += 1;
        if self.gate != Gate::Open {
            assert!(self.in_flight_count == 1);
            self.gate = Gate::Probing;
        }
    }

    /// A frame was acknowledged or refused for good: what a probe was sent for is decided.
    pub(super) fn on_answered(&mut self, now_ns: u64, is_accepted: bool) {
        self.in_flight_count -= 1;
        if self.gate == Gate::Probing {
            // A probe that was given up leaves its `RESUMES` to the next frame.
            self.gate = if is_accepted { Gate::Open } else { Gate::Closed { retry_at_ns: now_ns } };
            self.refusals = 0;
        }
    }

    /// A frame was refused and may be sent again. Only the first of a row of refusals sets the time.
    pub(super) fn on_refused(&mut self, now_ns: u64, number: u64, status: Status, retry_after_us: u64) {
        self.in_flight_count -= 1;
        let frame = self.frame_mut(number);
        frame.state = FrameState::Waiting;
        frame.refused = Some(status);
        if !matches!(self.gate, Gate::Closed { .. }) {
            self.refusals = self.refusals.saturating_add(1);
            let delay_ns = retry_delay_us(self.refusals, retry_after_us) * 1_000;
            self.gate = Gate::Closed { retry_at_ns: now_ns.saturating_add(delay_ns) };
        }
    }

    /// How often in a row the broker refused what this lane sent.
    pub(super) fn refusals(&self) -> u32 {
        self.refusals
    }

    /// The first refused frame was given up: the next one has tries of its own.
    pub(super) fn forget_refusals(&mut self) {
        self.refusals = 0;
    }

    /// The connection is gone, and its gates with it. Frames in flight were taken care of one by one.
    pub(super) fn on_disconnected(&mut self) {
        self.gate = Gate::Open;
        self.in_flight_count = 0;
        self.refusals = 0;
    }

    /// A frame of the connection that is gone, which never left.
    pub(super) fn take_back(&mut self, number: u64) {
        self.frame_mut(number).state = FrameState::Waiting;
    }

    /// Takes the frame out of the queue and returns what is left of it; frames that are done leave the queue with it.
    pub(super) fn resolve(&mut self, number: u64) -> (RecordId, u32, Vec<u8>) {
        let frame = self.frame_mut(number);
        assert!(frame.state != FrameState::Done);
        frame.state = FrameState::Done;
        let resolved = (frame.first, frame.record_count, std::mem::take(&mut frame.bytes));
        while self.frames.front().is_some_and(|frame| frame.state == FrameState::Done) {
            self.frames.pop_front();
            self.first_frame += 1;
        }
        resolved
    }

    fn frame_mut(&mut self, number: u64) -> &mut QueuedFrame {
        let index = number - self.first_frame;
        &mut self.frames[index as usize]
    }
}

/// The wait before a refused frame is sent again: the broker's hint, or twice as long with each refusal, bounded.
fn retry_delay_us(refusals: u32, retry_after_us: u64) -> u64 {
    let doublings = refusals.saturating_sub(1).min(16);
    (RETRY_US_MIN << doublings).max(retry_after_us).min(RETRY_US_MAX)
}
