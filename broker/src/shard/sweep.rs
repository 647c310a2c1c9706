//! The sweep: now and then every connection is looked at.
//!
//! For silence, for stalls of either direction and, at a shutdown, for its farewell.

use protocol::frame::{FrameHeader, Opcode};
use protocol::ids::CorrelationId;
use protocol::status::Status;

use super::connection::{Connection, Stage};
use super::serving::Serving;
use crate::limits::{FRAME_STALL_NS, HELLO_TIMEOUT_NS, LEAVING_NS};

/// What is to be done with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Keep,
    Heartbeat,
    Farewell(Status, &'static str),
    /// Its farewell has been said and had time to be read.
    Close,
    /// It broke a rule, and there is no way to tell it.
    Cut,
}

impl Serving {
    pub(super) fn sweep(&mut self) {
        for slot in 0..self.connections.len() {
            let Some(mut connection) = self.connections[slot].take() else { continue };
            let socket = connection.socket;
            match self.judge(&connection) {
                Verdict::Keep => {}
                Verdict::Heartbeat => {
                    connection.outbox.push_header(&FrameHeader::new(Opcode::Heartbeat, CorrelationId(0), 0));
                }
                Verdict::Farewell(status, message) => self.go_away(&mut connection, status, message),
                Verdict::Close => {
                    self.close(connection);
                    continue;
                }
                Verdict::Cut => {
                    self.counters.connections_cut += 1;
                    self.close(connection);
                    continue;
                }
            }
            self.put_connection(connection);
            self.mark_dirty(socket);
        }
    }

    fn judge(&self, connection: &Connection) -> Verdict {
        let silent_ns = |since: u64| self.now.monotonic_ns.saturating_sub(since);
        let interval_ns = u64::from(self.config.heartbeat_ms) * 1_000_000;
        if connection.outbox.is_sending()
            && silent_ns(connection.outbox.sending_since_ns) > connection.outbox.stall_ns
        {
            return Verdict::Cut;
        }
        if connection.stage == Stage::Leaving {
            let is_over =
                silent_ns(connection.leaving_since_ns) > LEAVING_NS && !connection.is_owed_something();
            return if is_over { Verdict::Close } else { Verdict::Keep };
        }
        // A peer that is not read for now cannot be heard either, nor end its frame.
        let is_heard = connection.buffer.is_none();
        if connection.stage == Stage::Greeting && silent_ns(connection.accepted_ns) > HELLO_TIMEOUT_NS {
            return Verdict::Farewell(Status::TimedOut, "no Hello came in time");
        }
        if is_heard && connection.frame_since_ns.is_some_and(|since| silent_ns(since) > FRAME_STALL_NS) {
            return Verdict::Farewell(Status::TimedOut, "a frame was begun and did not come to its end");
        }
        if self.is_shutting_down() && connection.requests_in_flight == 0 && connection.cold_in_flight == 0 {
            return Verdict::Farewell(Status::ShuttingDown, "the broker is shutting down");
        }
        if is_heard
            && connection.stage == Stage::Open
            && silent_ns(connection.last_heard_ns) > 3 * interval_ns
        {
            return Verdict::Farewell(Status::TimedOut, "three heartbeat intervals passed in silence");
        }
        let is_due = connection.stage == Stage::Open && silent_ns(connection.last_sent_ns) > interval_ns;
        if is_due && connection.outbox.is_idle() { Verdict::Heartbeat } else { Verdict::Keep }
    }
}
