//! The sending end of one connection, without sockets or clocks: frames out, answers in.
//!
//! It numbers frames and records, spreads frames over the connection's partitions (its *lanes*), and keeps the
//! gate's rule: after a retryable refusal the next frame of that lane carries `RESUMES`. What was refused is given
//! up and counted, never sent again.
//!
//! Invariant: every frame that was taken is answered once, abandoned, or still in the ring.

use protocol::frame::{FLAG_ANSWER, FrameError, FrameHeader, Opcode};
use protocol::ids::{Handle, Offset};
use protocol::status::Status;

use crate::content::{ContentFrames, Identity};
use crate::payload::LineFrames;
use crate::ring::{FrameRing, InFlight};
use crate::stamp::Stamp;
use crate::template::{FrameAddress, Template};

/// Longest pause after a refusal, whatever the broker hints.
const PAUSE_NS_MAX: u64 = 10_000_000;

/// What the broker sent that it should not have. The connection is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PeerError {
    /// A frame header that cannot be followed.
    #[error("frame header: {0}")]
    Frame(#[from] FrameError),
    /// An answer to no frame that waits for one.
    #[error("answer to frame {0}, which waits for none")]
    StrayAnswer(u64),
    /// Neither an answer nor a push that belongs on this connection.
    #[error("a frame of opcode {0} that does not belong here")]
    StrayFrame(u8),
    /// The broker goes away.
    #[error("the broker closes the connection with status {0}")]
    GoAway(u16),
}

/// Where frames come from.
pub(crate) enum Source {
    /// One frame, patched for each send: `latency` and `throughput`.
    Stamped(Box<Template>),
    /// The lines of a file: `replay`.
    Lines(Box<LineFrames>),
    /// Records that can be checked byte for byte: `verify`.
    Content(Box<ContentFrames>),
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordOutcome {
    /// Sent and not answered: it may be stored, once, or not.
    Unknown,
    /// Refused: it is not stored.
    Refused,
    /// Stored at this offset.
    Acked(Offset),
}

/// When a frame should be sent, and when it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendTimes {
    /// By the plan.
    pub(crate) intended_ns: u64,
    /// By the clock.
    pub(crate) sent_ns: u64,
    /// In which phase it is due.
    pub(crate) phase: u32,
}

/// One answered frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Number of a `Status`.
    pub(crate) status: u16,
    /// What was sent.
    pub(crate) frame: InFlight,
}

/// One partition that a connection produces to.
struct Lane {
    handle: Handle,
    resumes_next: bool,
    /// Correlation id of the last frame that opened the gate.
    resumed_at: u64,
}

/// The sending end of one connection.
pub(crate) struct Producer {
    run_id: u32,
    connection: u16,
    batch_records: u32,
    source: Source,
    lanes: Box<[Lane]>,
    ring: FrameRing,
    next_sequence: u64,
    /// Since when the next frame could have been sent, as far as the cap is concerned.
    ready_since_ns: u64,
    paused_until_ns: u64,
    /// What became of each record by its sequence, if that is asked for.
    outcomes: Option<Vec<RecordOutcome>>,
}

/// What a producer is made of.
pub(crate) struct ProducerParts {
    /// Stands in every stamp.
    pub(crate) run_id: u32,
    /// Number of the connection.
    pub(crate) connection: u16,
    /// Records in a frame.
    pub(crate) batch_records: usize,
    /// Frames that may be unanswered.
    pub(crate) in_flight_max: usize,
    /// Where frames come from.
    pub(crate) source: Source,
    /// The partitions, at least one.
    pub(crate) handles: Vec<Handle>,
    /// Whether to remember what became of each record.
    pub(crate) keeps_outcomes: bool,
}

impl Producer {
    /// A connection that has sent nothing.
    pub(crate) fn new(parts: ProducerParts) -> Self {
        assert!(!parts.handles.is_empty());
        let lane = |handle| Lane { handle, resumes_next: false, resumed_at: 0 };
        Self {
            run_id: parts.run_id,
            connection: parts.connection,
            batch_records: parts.batch_records as u32,
            source: parts.source,
            lanes: parts.handles.into_iter().map(lane).collect(),
            ring: FrameRing::new(parts.in_flight_max),
            next_sequence: 0,
            ready_since_ns: 0,
            paused_until_ns: 0,
            outcomes: parts.keeps_outcomes.then(Vec::new),
        }
    }

    /// Whether the cap or a pause forbids another frame now.
    pub(crate) fn is_held(&self, now_ns: u64) -> bool {
        self.ring.is_full() || now_ns < self.paused_until_ns
    }

    /// End of the pause after a refusal, while there is one and nothing else forbids a frame.
    pub(crate) fn paused_until_ns(&self, now_ns: u64) -> Option<u64> {
        (now_ns < self.paused_until_ns && !self.ring.is_full()).then_some(self.paused_until_ns)
    }

    /// Since when the cap and pauses have allowed a frame.
    pub(crate) fn ready_since_ns(&self) -> u64 {
        self.ready_since_ns.max(self.paused_until_ns)
    }

    /// Length of the longest frame, in bytes.
    pub(crate) fn frame_bytes_max(&self) -> usize {
        match &self.source {
            Source::Stamped(template) => template.frame_bytes(),
            Source::Lines(frames) => frames.frame_bytes_max(),
            Source::Content(frames) => frames.frame_bytes_max(),
        }
    }

    /// Frames that are not answered.
    pub(crate) fn outstanding(&self) -> usize {
        self.ring.outstanding()
    }

    /// Number of the connection.
    pub(crate) fn connection(&self) -> usize {
        usize::from(self.connection)
    }

    /// Records in each frame.
    pub(crate) fn batch_records(&self) -> u32 {
        self.batch_records
    }

    /// Records that were taken so far.
    pub(crate) fn records_sent(&self) -> u64 {
        self.next_sequence
    }

    /// The bytes of the next frame, which counts as sent from now on. The ring must not be full.
    pub(crate) fn next_frame(&mut self, times: SendTimes) -> &[u8] {
        let correlation = self.ring.next_correlation();
        let lane_index = (correlation.0 % self.lanes.len() as u64) as usize;
        let lane = &mut self.lanes[lane_index];
        let resumes = std::mem::take(&mut lane.resumes_next);
        if resumes {
            lane.resumed_at = correlation.0;
        }
        let SendTimes { intended_ns, sent_ns, phase } = times;
        let sequence = self.next_sequence;
        self.ring.push(InFlight {
            intended_ns,
            sent_ns,
            first_sequence: sequence,
            records: self.batch_records,
            lane: lane_index as u32,
            phase,
        });
        self.next_sequence += u64::from(self.batch_records);
        if let Some(outcomes) = &mut self.outcomes {
            outcomes.resize(self.next_sequence as usize, RecordOutcome::Unknown);
        }
        let address = FrameAddress { correlation, handle: lane.handle, resumes };
        let (connection, partition) = (self.connection, lane.handle.partition());
        let run_id = self.run_id;
        let stamp = Stamp { run_id, connection, partition, sequence, intended_ns, sent_ns };
        match &mut self.source {
            Source::Stamped(template) => template.patch(address, stamp),
            Source::Lines(frames) => frames.build(address, stamp),
            Source::Content(frames) => frames.build(address, Identity { connection, partition, sequence }),
        }
    }

    /// Takes the frame at the start of `bytes`, if it is whole. Gives its length, and the answer if it is one.
    ///
    /// # Errors
    /// When the peer breaks the protocol or says goodbye.
    pub(crate) fn take_answer(
        &mut self,
        bytes: &[u8],
        frame_bytes_max: u32,
        now_ns: u64,
    ) -> Result<Option<(usize, Option<Answer>)>, PeerError> {
        let Some(header) = FrameHeader::read(bytes, frame_bytes_max)? else { return Ok(None) };
        let length = header.frame_bytes();
        if length > bytes.len() {
            return Ok(None);
        }
        if header.opcode == Opcode::Produce as u8 && header.has_flag(FLAG_ANSWER) {
            return Ok(Some((length, Some(self.on_answer(header, now_ns)?))));
        }
        match Opcode::from_code(header.opcode) {
            Some(Opcode::Heartbeat) => Ok(Some((length, None))),
            Some(Opcode::GoAway) => Err(PeerError::GoAway(header.status.get())),
            _ => Err(PeerError::StrayFrame(header.opcode)),
        }
    }

    /// The connection is gone; returns how many frames will never be answered.
    pub(crate) fn abandon(&mut self) -> usize {
        self.ring.abandon()
    }

    /// The connection is made anew: the gates of the old one are gone with it.
    pub(crate) fn reconnected(&mut self, now_ns: u64) {
        self.ring.abandon();
        // Until now nothing could be sent.
        self.ready_since_ns = now_ns;
        self.lanes.iter_mut().for_each(|lane| lane.resumes_next = false);
        self.paused_until_ns = 0;
    }

    /// What became of each record, by its sequence.
    pub(crate) fn into_outcomes(self) -> Vec<RecordOutcome> {
        self.outcomes.unwrap_or_default()
    }

    fn on_answer(&mut self, header: &FrameHeader, now_ns: u64) -> Result<Answer, PeerError> {
        let correlation = header.correlation();
        let was_full = self.ring.is_full();
        let frame = self.ring.take(correlation).ok_or(PeerError::StrayAnswer(correlation.0))?;
        if was_full {
            self.ready_since_ns = now_ns;
        }
        let status = header.status.get();
        if status == Status::Ok as u16 {
            self.keep_outcomes(frame, |number| {
                RecordOutcome::Acked(Offset(header.subject.get()).plus(number))
            });
        } else {
            self.keep_outcomes(frame, |_| RecordOutcome::Refused);
            self.on_refusal(header, frame, now_ns);
        }
        Ok(Answer { status, frame })
    }

    /// A refusal of a frame that was sent before the last `RESUMES` tells of a gate that is open again.
    fn on_refusal(&mut self, header: &FrameHeader, frame: InFlight, now_ns: u64) {
        let Some(status) = Status::from_code(header.status.get()) else { return };
        let lane = &mut self.lanes[frame.lane as usize];
        if status.closes_gate() && header.correlation().0 >= lane.resumed_at {
            lane.resumes_next = true;
            let hint_ns = header.subject.get().saturating_mul(1_000);
            self.paused_until_ns = now_ns + hint_ns.min(PAUSE_NS_MAX);
        }
    }

    fn keep_outcomes(&mut self, frame: InFlight, outcome: impl Fn(u64) -> RecordOutcome) {
        let Some(outcomes) = &mut self.outcomes else { return };
        let records = outcomes.iter_mut().skip(frame.first_sequence as usize).take(frame.records as usize);
        for (number, record) in (0..).zip(records) {
            *record = outcome(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::FrameShape;
    use protocol::frame::{FLAG_RESUMES, Frame};
    use protocol::ids::{CorrelationId, TopicKey};
    use zerocopy::IntoBytes;

    const BYTES_MAX: u32 = 1 << 20;

    fn handle(partition: u16) -> Handle {
        Handle::new(TopicKey { slot: 0, generation: 1 }, partition)
    }

    fn producer(in_flight_max: usize, partitions: u16) -> Producer {
        let shape = FrameShape { record_bytes: 64, batch_records: 2, created_ms: 0 };
        Producer::new(ProducerParts {
            run_id: 1,
            connection: 5,
            batch_records: shape.batch_records,
            in_flight_max,
            source: Source::Stamped(Box::new(Template::new(shape, 0).unwrap())),
            handles: (0..partitions).map(handle).collect(),
            keeps_outcomes: true,
        })
    }

    /// Sends one frame; gives its partition and whether it resumes.
    fn send(producer: &mut Producer, now_ns: u64) -> (u16, bool) {
        let bytes = producer.next_frame(SendTimes { intended_ns: now_ns, sent_ns: now_ns, phase: 0 });
        let frame = Frame::cut(bytes, BYTES_MAX).unwrap().unwrap();
        (Handle(frame.header.subject.get()).partition(), frame.header.has_flag(FLAG_RESUMES))
    }

    fn answer(producer: &mut Producer, correlation: u64, status: Status, subject: u64) -> Answer {
        let header = FrameHeader::answer(Opcode::Produce, status, CorrelationId(correlation), subject);
        let taken = producer.take_answer(header.as_bytes(), BYTES_MAX, 1_000).unwrap();
        let (length, answer) = taken.unwrap();
        assert_eq!(length, 32);
        answer.unwrap()
    }

    #[test]
    fn cap_holds_until_an_answer_and_tells_since_when_it_does_not() {
        let mut producer = producer(2, 1);
        send(&mut producer, 10);
        assert!(!producer.is_held(10));
        send(&mut producer, 20);
        assert!(producer.is_held(20));
        let answer = answer(&mut producer, 0, Status::Ok, 7);
        assert_eq!((answer.status, answer.frame.intended_ns, answer.frame.records), (0, 10, 2));
        assert!(!producer.is_held(1_000));
        assert_eq!(producer.ready_since_ns(), 1_000);
        assert_eq!((producer.outstanding(), producer.records_sent()), (1, 4));
    }

    #[test]
    fn frames_take_turns_over_the_partitions() {
        let mut producer = producer(8, 3);
        let partitions: Vec<u16> = (0..6).map(|now| send(&mut producer, now).0).collect();
        assert_eq!(partitions, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn refused_lane_resumes_once_and_again_when_that_is_refused() {
        let mut producer = producer(16, 1);
        (0..4).for_each(|now| assert!(!send(&mut producer, now).1));
        answer(&mut producer, 0, Status::Ok, 0);
        answer(&mut producer, 1, Status::Busy, 0);
        assert!(send(&mut producer, 4).1, "frame 4 opens the gate");
        answer(&mut producer, 2, Status::Busy, 0);
        answer(&mut producer, 3, Status::Busy, 0);
        assert!(!send(&mut producer, 5).1, "2 and 3 were refused by the gate that 4 opens");
        answer(&mut producer, 4, Status::Busy, 0);
        assert!(send(&mut producer, 6).1, "4 itself was refused");
        let outcomes = producer.into_outcomes();
        let acked = |offset| RecordOutcome::Acked(Offset(offset));
        assert_eq!(outcomes[..4], [acked(0), acked(1), RecordOutcome::Refused, RecordOutcome::Refused]);
        assert_eq!(outcomes[10..], [RecordOutcome::Unknown; 4]);
    }

    #[test]
    fn refusal_pauses_for_the_hint() {
        let mut producer = producer(16, 1);
        send(&mut producer, 0);
        answer(&mut producer, 0, Status::Busy, 5);
        assert!(producer.is_held(5_999));
        assert_eq!(producer.paused_until_ns(5_999), Some(6_000));
        assert!(!producer.is_held(6_000));
        assert_eq!(producer.ready_since_ns(), 6_000);
    }

    #[test]
    fn what_does_not_belong_here_is_an_error() {
        let mut producer = producer(2, 1);
        let stray = FrameHeader::answer(Opcode::Produce, Status::Ok, CorrelationId(3), 0);
        let taken = producer.take_answer(stray.as_bytes(), BYTES_MAX, 0);
        assert_eq!(taken, Err(PeerError::StrayAnswer(3)));
        let goodbye = FrameHeader::answer(Opcode::GoAway, Status::ShuttingDown, CorrelationId(0), 0);
        let taken = producer.take_answer(goodbye.as_bytes(), BYTES_MAX, 0);
        assert_eq!(taken, Err(PeerError::GoAway(5)));
        let heartbeat = FrameHeader::new(Opcode::Heartbeat, CorrelationId(0), 0);
        assert_eq!(producer.take_answer(heartbeat.as_bytes(), BYTES_MAX, 0), Ok(Some((32, None))));
        assert_eq!(producer.take_answer(&heartbeat.as_bytes()[..31], BYTES_MAX, 0), Ok(None));
    }
}
