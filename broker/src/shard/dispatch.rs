//! From received bytes to requests: cut frames, and one `match` over what they ask for.
//!
//! A frame is handled whole or not at all. Bytes that lie end the connection with a `GoAway` that says why.

use protocol::frame::{FLAG_ACK_MEMORY, FLAG_ANSWER, FLAG_RESUMES, Frame, FrameError, FrameHeader, Opcode};
use protocol::status::Status;
use reactor::memory::Buffer;

use super::connection::{Connection, Discard, Stage, next_frame};
use super::serving::Serving;
use crate::io::{IoError, Op, Socket};
use crate::limits::GREETING_BYTES_MAX;

impl Serving {
    pub(super) fn on_received(
        &mut self,
        socket: Socket,
        buffer: Buffer,
        start: usize,
        result: Result<usize, IoError>,
        more: bool,
    ) {
        let Some(mut connection) = self.take_connection(socket) else { return };
        let Some(received) = result.ok().filter(|received| *received > 0) else {
            // The peer has closed, or the connection is broken: there is nobody to tell.
            self.close(connection);
            return;
        };
        debug_assert_eq!(start, connection.filled);
        connection.last_heard_ns = self.now.monotonic_ns;
        connection.has_more = more;
        connection.buffer = Some(buffer);
        connection.filled += received;
        if connection.stage == Stage::Leaving {
            // Read and thrown away: closing over unread bytes would reset the connection and lose the farewell.
            self.rearm_leaving(&mut connection);
        } else {
            self.handle_received(&mut connection);
        }
        self.put_connection(connection);
        self.mark_dirty(socket);
    }

    /// Handles every whole frame in the buffer, as long as the peer reads its answers, then asks for more.
    pub(super) fn handle_received(&mut self, connection: &mut Connection) {
        let Some(buffer) = connection.buffer.take() else { return };
        let was_discarding = connection.discard.is_some();
        let mut parsed = 0;
        if let Some(discard) = connection.discard {
            parsed = discard.bytes_left.min(connection.filled);
            let bytes_left = discard.bytes_left - parsed;
            connection.discard = (bytes_left > 0).then_some(Discard { bytes_left });
        }
        while connection.discard.is_none() && connection.may_read() {
            match next_frame(&buffer, parsed, connection.filled, self.frame_bytes_max(connection)) {
                Ok(Some(frame)) => {
                    parsed += frame.header.frame_bytes();
                    self.dispatch(connection, &frame);
                }
                Ok(None) => break,
                Err(error) => {
                    self.refuse_bytes(connection, error);
                    break;
                }
            }
        }
        if connection.stage == Stage::Leaving {
            connection.buffer = Some(buffer);
            self.rearm_leaving(connection);
            return;
        }
        let frame_bytes_max = self.frame_bytes_max(connection);
        match connection.make_room(buffer, parsed, frame_bytes_max, &self.pool) {
            Ok(None) => {}
            Ok(Some(frame_bytes)) => self.discard_frame(connection, frame_bytes),
            Err(error) => {
                self.refuse_bytes(connection, error);
                self.rearm_leaving(connection);
                return;
            }
        }
        let is_within_frame = connection.filled > 0 || connection.discard.is_some();
        let is_same_frame = parsed == 0 || was_discarding && connection.discard.is_some();
        let since = connection.frame_since_ns.filter(|_| is_same_frame).unwrap_or(self.now.monotonic_ns);
        connection.frame_since_ns = is_within_frame.then_some(since);
        self.arm_receive(connection);
    }

    /// A stranger gets no more memory than its ordinary buffer.
    fn frame_bytes_max(&self, connection: &Connection) -> u32 {
        match connection.stage {
            Stage::Greeting => self.config.frame_bytes_max.min(GREETING_BYTES_MAX),
            Stage::Open | Stage::Leaving => self.config.frame_bytes_max,
        }
    }

    pub(super) fn rearm_leaving(&mut self, connection: &mut Connection) {
        if let Some(buffer) = connection.buffer.take() {
            connection.filled = 0;
            self.ops.push(Op::Receive { socket: connection.socket, buffer, start: 0, poll_first: true });
        }
    }

    /// One request. Everything that a peer can ask for stands here.
    pub(super) fn dispatch(&mut self, connection: &mut Connection, frame: &Frame<'_>) {
        let opcode = Opcode::from_code(frame.header.opcode);
        if connection.stage == Stage::Greeting && opcode != Some(Opcode::Hello) {
            self.go_away(connection, Status::HelloRequired, "the first frame must be Hello");
            return;
        }
        let Some(opcode) = opcode else {
            self.answer_unknown_opcode(connection, frame.header);
            return;
        };
        if !is_request(frame.header, opcode) {
            self.refuse(
                connection,
                frame.header,
                opcode,
                Status::MalformedFrame,
                "a flag or status is out of place",
            );
            return;
        }
        match opcode {
            Opcode::Produce => self.begin_produce(connection, frame),
            Opcode::Credit => self.on_credit(connection, frame),
            Opcode::Fetch => self.begin_fetch(connection, frame),
            Opcode::Subscribe => self.begin_subscribe(connection, frame),
            Opcode::Unsubscribe => self.on_unsubscribe(connection, frame),
            Opcode::Hello => self.on_hello(connection, frame),
            Opcode::Heartbeat => {}
            Opcode::GoAway => self.begin_leaving(connection),
            Opcode::Stats => self.on_stats(connection, frame),
            Opcode::CreateTopic => self.begin_create_topic(connection, frame),
            Opcode::DeleteTopic => self.begin_delete_topic(connection, frame),
            Opcode::DescribeTopic => self.on_describe_topic(connection, frame),
            Opcode::ListTopics => self.on_list_topics(connection, frame),
            Opcode::Deliver => self.refuse(connection, frame.header, opcode, Status::MalformedFrame, ""),
        }
    }

    fn answer_unknown_opcode(&mut self, connection: &mut Connection, header: &FrameHeader) {
        let mut answer = FrameHeader::answer(
            Opcode::GoAway,
            Status::UnknownOpcode,
            header.correlation(),
            header.subject.get(),
        );
        answer.opcode = header.opcode;
        connection.outbox.push_header(&answer);
    }

    fn refuse_bytes(&mut self, connection: &mut Connection, error: FrameError) {
        self.counters.connections_cut += 1;
        self.go_away(connection, error.status(), &error.to_string());
    }

    /// There is no memory for a long frame that has begun: it is read, thrown away and answered `Busy`.
    fn discard_frame(&mut self, connection: &mut Connection, frame_bytes: usize) {
        let buffer = connection.buffer.take().expect("make_room has left the buffer");
        let header = FrameHeader::read(&buffer[..connection.filled], self.config.frame_bytes_max);
        if let Ok(Some(header)) = header {
            match Opcode::from_code(header.opcode) {
                Some(Opcode::Produce) => self.refuse_produce(connection, header, Status::Busy),
                Some(opcode) => {
                    self.refuse(connection, header, opcode, Status::Busy, "no memory for the frame")
                }
                None => self.answer_unknown_opcode(connection, header),
            }
        }
        connection.discard = Some(Discard { bytes_left: frame_bytes - connection.filled });
        connection.filled = 0;
        connection.buffer = Some(buffer);
    }
}

/// Whether the flags and the status are those of a request for this opcode.
fn is_request(header: &FrameHeader, opcode: Opcode) -> bool {
    let for_produce_only = header.has_flag(FLAG_RESUMES) || header.has_flag(FLAG_ACK_MEMORY);
    let has_status = header.status.get() != 0 && opcode != Opcode::GoAway;
    !header.has_flag(FLAG_ANSWER) && !has_status && (opcode == Opcode::Produce || !for_produce_only)
}
