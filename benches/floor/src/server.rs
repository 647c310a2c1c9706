//! The loop: one turn takes what completed, cuts and stores frames, gives the answers that became durable, then
//! hands all that follows to the kernel in one system call. It ends only when the disk or the ring fails.

use std::mem;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use io_uring::{cqueue, opcode, types};
use protocol::batch::{BatchError, BatchHeader};
use protocol::frame::{FrameHeader, Opcode};
use protocol::ids::CorrelationId;
use protocol::status::Status;
use zerocopy::IntoBytes;

use crate::answers::Answers;
use crate::connection::{CONNECTIONS_MAX, Connection};
use crate::disk::{Ack, Disk, DiskPlan};
use crate::ring::{Completion, Ring, Token};
use crate::waiting::Patience;
use crate::{FloorError, Options};

/// Completions that one turn takes; the rest is the next turn's.
const COMPLETIONS_PER_TURN_MAX: usize = 256;

/// All that the thread owns. Its owner never drops it, because the kernel may hold pointers into its buffers.
pub(crate) struct Server<'r> {
    ring: Ring<'r>,
    listener: TcpListener,
    answers: Answers,
    connections: Vec<Connection>,
    /// Slots from here on were never used.
    connections_end: usize,
    /// `None` without durability.
    disk: Option<Disk>,
    /// Running number of the next record, over all partitions.
    next_offset: u64,
    has_stalled: bool,
    /// Which connection is resumed first; moves on, so that none starves.
    resume_slot: usize,
    patience: Patience,
    spun: Duration,
}

impl<'r> Server<'r> {
    /// Allocates all that will be needed, and prepares the data file.
    pub(crate) fn new(options: &Options, listener: TcpListener, ring: Ring<'r>) -> Result<Self, FloorError> {
        let new_disk = |path: PathBuf| {
            Disk::new(&DiskPlan {
                path: &path,
                durability: options.durability,
                file_bytes: options.file_bytes,
                frame_bytes_max: options.receive_bytes,
                blocks_in_flight: options.blocks_in_flight,
            })
        };
        Ok(Self {
            ring,
            listener,
            answers: Answers::new(options),
            connections: (0..CONNECTIONS_MAX).map(|_| Connection::new(options.receive_bytes)).collect(),
            connections_end: 0,
            disk: options.data_file().map(new_disk).transpose()?,
            next_offset: 0,
            has_stalled: false,
            resume_slot: 0,
            patience: Patience::new(options.waiting),
            spun: Duration::ZERO,
        })
    }

    /// Serves until the disk or the ring fails.
    pub(crate) fn run(&mut self) -> Result<(), FloorError> {
        self.begin_accept();
        let mut now = Instant::now();
        loop {
            let rest = self.patience.rest(now, self.disk.as_ref().and_then(Disk::awaited));
            self.spun += self.ring.wait(rest).map_err(FloorError::doing("enter the ring"))?;
            now = Instant::now();
            self.turn()?;
        }
    }

    fn turn(&mut self) -> Result<(), FloorError> {
        for _ in 0..COMPLETIONS_PER_TURN_MAX {
            let Some(completion) = self.ring.take() else { break };
            self.on_completion(completion)?;
        }
        self.answer_durable();
        self.resume_stalled();
        if let Some(disk) = &mut self.disk {
            disk.submit(&mut self.ring);
        }
        for (slot, connection) in self.connections[..self.connections_end].iter_mut().enumerate() {
            connection.end_turn(slot, &mut self.ring);
        }
        Ok(())
    }

    fn on_completion(&mut self, completion: Completion) -> Result<(), FloorError> {
        let outcome = completion.outcome();
        match completion.token {
            Token::Accept => self.on_accepted(completion),
            Token::Receive(slot) => {
                if self.connections[slot].on_received(outcome, completion.flags) {
                    self.read_frames(slot);
                }
                Ok(())
            }
            Token::Send(slot) => {
                self.connections[slot].on_sent(outcome, slot, &mut self.ring);
                Ok(())
            }
            Token::Write(sequence) => self.disk_mut().on_written(sequence, outcome),
            Token::Flush => self.disk_mut().on_flushed(outcome),
        }
    }

    fn disk_mut(&mut self) -> &mut Disk {
        self.disk.as_mut().expect("without a disk nothing is written")
    }

    fn begin_accept(&mut self) {
        let entry = opcode::AcceptMulti::new(types::Fd(self.listener.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC)
            .build()
            .user_data(Token::Accept.user_data());
        // SAFETY: a multishot accept points to no memory.
        unsafe { self.ring.push(&entry) };
    }

    fn on_accepted(&mut self, completion: Completion) -> Result<(), FloorError> {
        if !cqueue::more(completion.flags) {
            self.begin_accept();
        }
        match completion.outcome() {
            Ok(_) => self.open(completion.result),
            // What a peer that went away again leaves behind.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EPROTO | libc::EINTR)) => {}
            Err(error) => return Err(FloorError::doing("accept")(error)),
        }
        Ok(())
    }

    /// Gives a new connection a slot; one too many is closed.
    fn open(&mut self, descriptor: i32) {
        // SAFETY: the accept that has just completed made the descriptor, and gave it to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let socket = TcpStream::from(socket);
        let Some(slot) = self.connections.iter().position(Connection::is_free) else { return };
        // It fails only for a peer that is gone.
        if socket.set_nodelay(true).is_err() {
            return;
        }
        self.connections_end = self.connections_end.max(slot + 1);
        self.connections[slot].open(socket);
        self.connections[slot].begin_receive(slot, &mut self.ring);
    }

    /// Cuts, stores and answers the whole frames of a connection, then receives more. It stops early, and is called
    /// again in a later turn, where there is no room; a frame that lies ends the connection.
    fn read_frames(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        loop {
            let disk_has_room = self.disk.as_ref().is_none_or(Disk::has_room);
            connection.is_stalled = !disk_has_room || !connection.outbox.has_room();
            if connection.is_stalled {
                self.has_stalled = true;
                return;
            }
            let Ok(cut) = connection.inbox.frame() else { return connection.close() };
            let Some(frame) = cut else { break };
            if frame.header.opcode == Opcode::Produce as u8 {
                let Ok(record_count) = record_count(frame.payload) else { return connection.close() };
                let correlation_id = frame.header.correlation().0;
                let ack = Ack { connection: slot, correlation_id, offset: self.next_offset };
                // The count is the peer's word, and only the batch's length was checked.
                self.next_offset = self.next_offset.wrapping_add(record_count);
                connection.outbox.owe();
                match &mut self.disk {
                    Some(disk) => disk.append(frame.payload, ack),
                    None => connection.outbox.pay(ack_header(&ack).as_bytes()),
                }
            } else {
                self.answers.answer(frame.header, self.spun, &mut connection.outbox);
            }
            let frame_bytes = frame.header.frame_bytes();
            connection.inbox.consume(frame_bytes);
        }
        connection.begin_receive(slot, &mut self.ring);
    }

    fn answer_durable(&mut self) {
        let Some(disk) = &mut self.disk else { return };
        while let Some(block) = disk.take_durable() {
            for ack in disk.acks(block) {
                self.connections[ack.connection].outbox.pay(ack_header(ack).as_bytes());
            }
            disk.release(block);
        }
    }

    fn resume_stalled(&mut self) {
        // `read_frames` sets it again.
        if !mem::take(&mut self.has_stalled) {
            return;
        }
        self.resume_slot += 1;
        for step in 0..self.connections_end {
            let slot = (self.resume_slot + step) % self.connections_end;
            if self.connections[slot].is_stalled {
                self.read_frames(slot);
            }
        }
    }
}

fn ack_header(ack: &Ack) -> FrameHeader {
    FrameHeader::answer(Opcode::Produce, Status::Ok, CorrelationId(ack.correlation_id), ack.offset)
}

/// Records in a payload of one batch or more: the one thing that is read of a batch, because the answers count them.
fn record_count(mut payload: &[u8]) -> Result<u64, BatchError> {
    let mut count = 0;
    loop {
        let batch = BatchHeader::peek(payload)?;
        count += u64::from(batch.record_count.get());
        payload = &payload[batch.batch_bytes()..];
        if payload.is_empty() {
            return Ok(count);
        }
    }
}
