//! What is in flight on one connection: a ring of slots, found by correlation id without a search.
//!
//! Frame `n` has correlation id `n` and lies in slot `n` modulo the ring's length. Answers may come in any order;
//! a slot that is not answered yet is never given away, so a late answer cannot be taken for another frame's.
//!
//! Invariant: `outstanding <= in_flight_max <= slots.len()`.

use protocol::ids::CorrelationId;

/// What must be known when the answer comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InFlight {
    /// When the frame should have been sent.
    pub(crate) intended_ns: u64,
    /// When it was sent.
    pub(crate) sent_ns: u64,
    /// Number of its first record on the connection.
    pub(crate) first_sequence: u64,
    /// Records in it.
    pub(crate) records: u32,
    /// Which of the connection's lanes it went to.
    pub(crate) lane: u32,
    /// In which phase it was due.
    pub(crate) phase: u32,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    frame: InFlight,
    correlation: u64,
    is_outstanding: bool,
}

/// The frames that were sent and are not answered.
pub(crate) struct FrameRing {
    slots: Box<[Slot]>,
    next: u64,
    outstanding: usize,
    in_flight_max: usize,
}

impl FrameRing {
    /// A ring for at most `in_flight_max` frames, which must not be 0.
    pub(crate) fn new(in_flight_max: usize) -> Self {
        assert!(in_flight_max > 0);
        // Twice as many slots: an answer that is overtaken by others does not hold the ring up at once.
        let slots = vec![Slot::default(); (2 * in_flight_max).next_power_of_two()].into_boxed_slice();
        Self { slots, next: 0, outstanding: 0, in_flight_max }
    }

    /// Frames that are not answered.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Whether nothing more may be sent now.
    pub(crate) fn is_full(&self) -> bool {
        self.outstanding == self.in_flight_max || self.slots[self.index(self.next)].is_outstanding
    }

    /// The id that the next frame will have.
    pub(crate) fn next_correlation(&self) -> CorrelationId {
        CorrelationId(self.next)
    }

    /// Takes up the next frame. The ring must not be full.
    pub(crate) fn push(&mut self, frame: InFlight) {
        assert!(!self.is_full());
        let index = self.index(self.next);
        self.slots[index] = Slot { frame, correlation: self.next, is_outstanding: true };
        self.next += 1;
        self.outstanding += 1;
    }

    /// Gives the frame of an answer back; `None` if no frame of this id waits for one.
    pub(crate) fn take(&mut self, correlation: CorrelationId) -> Option<InFlight> {
        let index = self.index(correlation.0);
        let slot = &mut self.slots[index];
        if !slot.is_outstanding || slot.correlation != correlation.0 {
            return None;
        }
        slot.is_outstanding = false;
        self.outstanding -= 1;
        Some(slot.frame)
    }

    /// Gives up on all answers (the connection is gone); returns how many were still expected.
    pub(crate) fn abandon(&mut self) -> usize {
        for slot in &mut self.slots {
            slot.is_outstanding = false;
        }
        std::mem::take(&mut self.outstanding)
    }

    fn index(&self, correlation: u64) -> usize {
        // A power of two of slots: the mask is the remainder.
        (correlation & (self.slots.len() as u64 - 1)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: u64) -> InFlight {
        InFlight {
            intended_ns: number * 10,
            sent_ns: number * 10 + 1,
            first_sequence: number,
            records: 1,
            lane: 0,
            phase: 2,
        }
    }

    #[test]
    fn ring_wraps_many_times_and_every_answer_finds_its_frame() {
        let mut ring = FrameRing::new(3);
        for number in 0..1_000 {
            assert_eq!(ring.next_correlation(), CorrelationId(number));
            ring.push(frame(number));
            if number >= 2 {
                assert!(ring.is_full());
                assert_eq!(ring.take(CorrelationId(number - 2)), Some(frame(number - 2)));
            }
        }
        assert_eq!(ring.outstanding(), 2);
    }

    #[test]
    fn answers_may_overtake_each_other() {
        let mut ring = FrameRing::new(4);
        (0..4).for_each(|number| ring.push(frame(number)));
        for number in [3, 1, 2] {
            assert_eq!(ring.take(CorrelationId(number)), Some(frame(number)));
        }
        // Frame 0 stays unanswered until the ring has come round to its slot.
        let mut next = 4;
        while !ring.is_full() {
            ring.push(frame(next));
            assert_eq!(ring.take(CorrelationId(next)), Some(frame(next)));
            next += 1;
        }
        assert_eq!(next, 8);
        assert_eq!(ring.take(CorrelationId(0)), Some(frame(0)));
        assert!(!ring.is_full());
    }

    #[test]
    fn answer_that_nobody_waits_for_is_told() {
        let mut ring = FrameRing::new(2);
        assert_eq!(ring.take(CorrelationId(0)), None);
        ring.push(frame(0));
        assert_eq!(ring.take(CorrelationId(4)), None, "same slot, another frame");
        assert!(ring.take(CorrelationId(0)).is_some());
        assert_eq!(ring.take(CorrelationId(0)), None, "answered twice");
    }

    #[test]
    fn abandoned_frames_are_counted_once() {
        let mut ring = FrameRing::new(2);
        ring.push(frame(0));
        ring.push(frame(1));
        assert_eq!((ring.abandon(), ring.abandon()), (2, 0));
        assert!(!ring.is_full());
        assert_eq!(ring.take(CorrelationId(1)), None);
    }
}
