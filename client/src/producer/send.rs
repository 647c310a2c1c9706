//! What a producer sends when: the windows, the gates, and each partition's turn.
//!
//! A poll visits the partitions that have something to send, once each, and ends early when the connection takes no
//! more. A visit changes the state of its partition only by handing frames over, closing the open batch, or failing
//! a frame that no broker would take.

use protocol::status::Status;

use super::lane::{Gate, Lane};
use super::{Outcome, Producer};
use crate::connection::{Connection, RequestError};
use crate::limits::GATES_MAX;

impl Producer {
    /// Whether a poll would do something for the partition that was just pushed to. A driver that pushes many
    /// records saves the others.
    #[must_use]
    pub fn should_poll(&self, now_ns: u64, partition: u16) -> bool {
        let lane = self.lane(partition);
        self.has_closed
            || !self.is_blocked
                && self.may_send(now_ns, lane, Pass::All)
                && (lane.next_waiting().is_some() || self.is_due(now_ns, lane))
    }

    /// Hands frames to the connection as far as the windows have room, each partition in its turn, and closes open
    /// batches that are due for it.
    pub fn poll(&mut self, now_ns: u64, connection: &mut Connection) {
        self.has_closed = false;
        let pass = self.pass(now_ns);
        self.is_blocked = pass == Pass::Hold;
        if self.is_blocked {
            return;
        }
        for _ in 0..self.active.len() {
            let Some(number) = self.active.pop_front() else { break };
            match self.visit(now_ns, number, pass, connection) {
                Visit::Empty => self.lanes[usize::from(number)].is_active = false,
                Visit::Waits => self.active.push_back(number),
                Visit::NoRoom => {
                    self.active.push_front(number);
                    self.is_blocked = true;
                    break;
                }
            }
        }
    }

    /// When `poll` has something to do that no answer brings: a batch has lingered, or a refused one may be sent.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.active.iter().filter_map(|number| self.lane_deadline_ns(self.lane(*number))).min()
    }

    /// What this poll may send. With more partitions than the broker has gates, the whole connection may become one
    /// gate, which any `RESUMES` opens: also for frames of other partitions whose refusal is still on its way here,
    /// and then their successors would overtake them. So probes go out only when every answer is known, and alone.
    fn pass(&self, now_ns: u64) -> Pass {
        let resumes = |number: &u16| self.lane(*number).gate.is_due(now_ns);
        if self.lanes.len() <= GATES_MAX || !self.active.iter().any(resumes) {
            Pass::All
        } else if self.in_flight_count == 0 {
            Pass::Probes
        } else {
            Pass::Hold
        }
    }

    fn may_send(&self, now_ns: u64, lane: &Lane, pass: Pass) -> bool {
        match lane.gate {
            Gate::Open => pass == Pass::All && lane.in_flight_count < self.options.frames_in_flight_max,
            Gate::Closed { .. } => lane.in_flight_count == 0 && lane.gate.is_due(now_ns),
            Gate::Probing => false,
        }
    }

    fn is_due(&self, now_ns: u64, lane: &Lane) -> bool {
        lane.due_ns(self.linger_ns()).is_some_and(|due_ns| self.is_flushing || now_ns >= due_ns)
    }

    /// Sends what one partition may send now.
    fn visit(&mut self, now_ns: u64, number: u16, pass: Pass, connection: &mut Connection) -> Visit {
        loop {
            let lane = self.lane(number);
            if !lane.has_unsent() {
                return Visit::Empty;
            }
            if !self.may_send(now_ns, lane, pass) {
                return Visit::Waits;
            }
            let Some((frame, queued)) = lane.next_waiting() else {
                if !self.is_due(now_ns, lane) {
                    return Visit::Waits;
                }
                if !connection.has_room(lane.open_bytes()) {
                    return Visit::NoRoom;
                }
                self.close(number);
                continue;
            };
            let resumes = lane.gate != Gate::Open;
            match connection.produce(lane.handle, &queued.bytes, resumes) {
                Ok(correlation) => self.on_handed_over(number, frame, correlation),
                Err(RequestError::FrameTooLarge) => {
                    let outcome = Outcome::Failed { status: Status::FrameTooLarge };
                    self.resolve(number, frame, outcome);
                }
                Err(_) => return Visit::NoRoom,
            }
        }
    }

    fn lane_deadline_ns(&self, lane: &Lane) -> Option<u64> {
        match lane.gate {
            // No time brings room.
            _ if self.is_blocked => None,
            Gate::Closed { retry_at_ns } => {
                let others_drain = self.lanes.len() > GATES_MAX && self.in_flight_count > 0;
                (lane.in_flight_count == 0 && !others_drain).then_some(retry_at_ns)
            }
            Gate::Open if lane.in_flight_count < self.options.frames_in_flight_max => {
                lane.due_ns(self.linger_ns())
            }
            Gate::Open | Gate::Probing => None,
        }
    }
}

/// What one poll may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    All,
    /// The first frame of each closed gate that is due, and nothing else.
    Probes,
    /// Nothing: answers must come in first.
    Hold,
}

/// How a partition's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visit {
    /// There is nothing more to send.
    Empty,
    /// What is left waits for an answer or for a time.
    Waits,
    /// The connection takes no more.
    NoRoom,
}
