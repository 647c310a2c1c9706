//! A hostile network between scripted clients and the shard.
//!
//! ```text
//! client -> `to_server` -> `arrived` (64 KiB) -> Receive      Send -> `sending` -> `leaving` (64 KiB) -> inbox
//! ```
//!
//! Bytes move in pieces and after delays that chance decides. A client that does not read fills `leaving`; then the
//! shard's send does not complete. A reset loses whatever is on its way.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use broker::io::{Completion, IoError, Op, Socket};
use reactor::memory::Buffer;

use crate::luck::Luck;
use crate::report::Kind;

/// What the kernel holds of each direction of a connection.
const SOCKET_BYTES: usize = 64 << 10;

const HOP_NS: Range<u64> = 3_000..40_000;
const SLOW_FACTOR: u64 = 40;
const CONNECTION_RESET: IoError = IoError(104);
const CANCELLED: IoError = IoError(125);

/// How often things go wrong: once in so many events, 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NetFaults {
    pub(crate) reset_one_in: u32,
    pub(crate) split_one_in: u32,
    pub(crate) slow_one_in: u32,
}

#[derive(Debug)]
enum Event {
    Accept(Socket),
    /// Bytes of the client reach the shard's host.
    Arrive(Socket),
    /// The receive that is armed completes.
    Receive(Socket),
    /// The send that is under way was taken by the socket.
    Sent(Socket),
    /// The client reads.
    Leave(Socket),
    /// An operation on a connection that is gone completes.
    Failed(Completion),
}

/// One connection.
#[derive(Debug, Default)]
struct Link {
    to_server: VecDeque<u8>,
    arrived: VecDeque<u8>,
    receive: Option<(Buffer, usize)>,
    sending: VecDeque<u8>,
    /// Told when `sending` is empty; holds the parts until then.
    sent: Option<Completion>,
    leaving: VecDeque<u8>,
    inbox: Vec<u8>,
    /// The client does not read before.
    reads_from_ns: u64,
    /// The client will write no more, and reads no more.
    client_is_gone: bool,
    /// The shard has closed it.
    server_is_gone: bool,
    /// Nothing more comes to the client.
    has_ended: bool,
    was_reset: bool,
    arrive_is_due: bool,
    receive_is_due: bool,
    leave_is_due: bool,
}

impl Link {
    /// Moves what fits from the send under way into the socket; gives its completion when that is all.
    fn fill_socket(&mut self) -> Option<Completion> {
        let count = self.sending.len().min(SOCKET_BYTES - self.leaving.len());
        self.leaving.extend(self.sending.drain(..count));
        if self.sending.is_empty() { self.sent.take() } else { None }
    }
}

/// All connections of one start of the shard.
#[derive(Debug, Default)]
pub(crate) struct Net {
    links: BTreeMap<Socket, Link>,
    /// Of each slot how often it was used, and whether it is.
    slots: Vec<(u32, bool)>,
    events: BTreeMap<(u64, u64), Event>,
    event_count: u64,
    /// What goes wrong.
    pub(crate) faults: NetFaults,
}

impl Net {
    /// A client connects; the shard hears of it later.
    pub(crate) fn connect(&mut self, luck: &mut Luck) -> Socket {
        let slot = self.slots.iter().position(|(_, is_used)| !is_used).unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push((0, true));
        }
        let (generation, is_used) = &mut self.slots[slot];
        *generation += 1;
        *is_used = true;
        let socket = Socket { slot: slot as u32, generation: *generation };
        self.links.insert(socket, Link::default());
        self.schedule(Event::Accept(socket), luck);
        socket
    }

    /// A client writes.
    pub(crate) fn write(&mut self, socket: Socket, bytes: &[u8], luck: &mut Luck) {
        let Some(link) = self.links.get_mut(&socket) else { return };
        if !link.has_ended {
            link.to_server.extend(bytes);
            self.arrive_later(socket, luck);
        }
    }

    /// Bytes that a client has written and that have not reached the shard's host.
    pub(crate) fn backlog(&self, socket: Socket) -> usize {
        self.links.get(&socket).map_or(0, |link| link.to_server.len())
    }

    /// What a client has received since the last call.
    pub(crate) fn take_inbox(&mut self, socket: Socket) -> Vec<u8> {
        self.links.get_mut(&socket).map(|link| std::mem::take(&mut link.inbox)).unwrap_or_default()
    }

    /// Whether a client has received all that it ever will.
    pub(crate) fn has_ended(&self, socket: Socket) -> bool {
        self.links.get(&socket).is_none_or(|link| link.has_ended && link.inbox.is_empty())
    }

    /// Whether the shard has closed a connection; its client may not have heard of it.
    pub(crate) fn was_closed(&self, socket: Socket) -> bool {
        self.links.get(&socket).is_none_or(|link| link.server_is_gone)
    }

    /// A client does not read before a time.
    pub(crate) fn stall(&mut self, socket: Socket, until_ns: u64) {
        if let Some(link) = self.links.get_mut(&socket) {
            link.reads_from_ns = until_ns;
        }
    }

    /// A client closes: what it has written still arrives, what it has not read is lost.
    pub(crate) fn hang_up(&mut self, socket: Socket, luck: &mut Luck) {
        if let Some(link) = self.links.get_mut(&socket) {
            link.client_is_gone = true;
            link.has_ended = true;
            link.inbox.clear();
            self.arrive_later(socket, luck);
        }
    }

    /// The process is gone, and all connections with it.
    pub(crate) fn crash(&mut self) {
        self.links.clear();
        self.slots.clear();
        self.events.clear();
    }

    /// When something happens next.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.events.keys().next().map(|(at_ns, _)| *at_ns)
    }

    /// Takes an operation on a connection.
    pub(crate) fn submit(&mut self, op: Op, luck: &mut Luck) {
        match op {
            Op::Receive { socket, buffer, start, .. } => {
                assert!(start < buffer.capacity(), "a receive without room would look like the peer's end");
                match self.links.get_mut(&socket).filter(|link| !link.server_is_gone && !link.was_reset) {
                    Some(link) => {
                        assert!(link.receive.is_none(), "two receives on one socket");
                        link.receive = Some((buffer, start));
                        self.receive_later(socket, luck);
                    }
                    None => self.fail(receive_failed(socket, buffer, start, CONNECTION_RESET), luck),
                }
            }
            Op::Send { socket, parts } => {
                assert!(!parts.is_empty(), "a send of nothing");
                let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
                let sent = Completion::Sent { socket, parts, result: Ok(()) };
                match self.links.get_mut(&socket).filter(|link| !link.server_is_gone && !link.was_reset) {
                    Some(link) => {
                        assert!(link.sent.is_none(), "two sends on one socket");
                        link.sending.extend(bytes);
                        link.sent = Some(sent);
                        self.schedule(Event::Sent(socket), luck);
                    }
                    None => self.fail(send_failed(sent, CONNECTION_RESET), luck),
                }
            }
            Op::Close { socket } => self.close(socket, luck),
            Op::PrepareFile { .. }
            | Op::Allocate { .. }
            | Op::Shrink { .. }
            | Op::Remove { .. }
            | Op::SyncAll { .. }
            | Op::Compact { .. }
            | Op::Read { .. }
            | Op::Write { .. }
            | Op::Flush { .. } => unreachable!("the disk's operations go to the disk"),
        }
    }

    /// The shard closes: its operations complete with errors, what the socket has taken still leaves.
    fn close(&mut self, socket: Socket, luck: &mut Luck) {
        let Some(link) = self.links.get_mut(&socket) else { return };
        assert!(!link.server_is_gone, "a socket is closed twice");
        link.server_is_gone = true;
        link.sending.clear();
        let receive = link.receive.take();
        let sent = link.sent.take();
        if let Some((buffer, start)) = receive {
            self.fail(receive_failed(socket, buffer, start, CANCELLED), luck);
        }
        if let Some(sent) = sent {
            self.fail(send_failed(sent, CANCELLED), luck);
        }
        self.slots[socket.slot as usize].1 = false;
        self.leave_later(socket, luck);
    }

    /// Everything that happens by now; what the shard is told of it.
    pub(crate) fn complete_due(&mut self, luck: &mut Luck) -> Vec<Completion> {
        let mut done = Vec::new();
        while let Some(event) = self.next_due(luck.now_ns) {
            match event {
                Event::Accept(socket) => done.push(Completion::Accepted { socket }),
                Event::Failed(completion) => done.push(completion),
                Event::Arrive(socket) if luck.breaks(self.faults.reset_one_in) => self.reset(socket, luck),
                Event::Arrive(socket) => self.on_arrive(socket, luck),
                Event::Receive(socket) => done.extend(self.on_receive(socket, luck)),
                Event::Sent(socket) => done.extend(self.on_sent(socket, luck)),
                Event::Leave(socket) => done.extend(self.on_leave(socket, luck)),
            }
        }
        done
    }

    fn next_due(&mut self, now_ns: u64) -> Option<Event> {
        let first = self.events.first_entry().filter(|first| first.key().0 <= now_ns)?;
        Some(first.remove())
    }

    fn on_arrive(&mut self, socket: Socket, luck: &mut Luck) {
        let Some(link) = self.links.get_mut(&socket) else { return };
        link.arrive_is_due = false;
        let room = SOCKET_BYTES - link.arrived.len();
        let count = luck.piece(link.to_server.len().min(room), self.faults.split_one_in);
        link.arrived.extend(link.to_server.drain(..count));
        let has_more = !link.to_server.is_empty() && count > 0;
        self.receive_later(socket, luck);
        if has_more {
            self.arrive_later(socket, luck);
        }
    }

    fn on_receive(&mut self, socket: Socket, luck: &mut Luck) -> Option<Completion> {
        let link = self.links.get_mut(&socket)?;
        link.receive_is_due = false;
        let (mut buffer, start) = link.receive.take()?;
        let room = buffer.capacity() - start;
        let count = luck.piece(link.arrived.len().min(room), self.faults.split_one_in);
        let is_end = link.client_is_gone && link.to_server.is_empty();
        if count == 0 && !is_end {
            link.receive = Some((buffer, start));
            return None;
        }
        for (to, from) in buffer[start..start + count].iter_mut().zip(link.arrived.drain(..count)) {
            *to = from;
        }
        let more = !link.arrived.is_empty();
        self.arrive_later(socket, luck);
        Some(Completion::Received { socket, buffer, start, result: Ok(count), more })
    }

    fn on_sent(&mut self, socket: Socket, luck: &mut Luck) -> Option<Completion> {
        let sent = self.links.get_mut(&socket)?.fill_socket();
        self.leave_later(socket, luck);
        sent
    }

    fn on_leave(&mut self, socket: Socket, luck: &mut Luck) -> Option<Completion> {
        let link = self.links.get_mut(&socket)?;
        link.leave_is_due = false;
        if link.has_ended {
            // Nobody reads any more: the socket swallows what is left.
            link.leaving.clear();
            link.sending.clear();
            return link.sent.take();
        }
        if link.reads_from_ns > luck.now_ns {
            if link.reads_from_ns < u64::MAX {
                link.leave_is_due = true;
                self.event_count += 1;
                self.events.insert((link.reads_from_ns, self.event_count), Event::Leave(socket));
            }
            return None;
        }
        let count = luck.piece(link.leaving.len(), self.faults.split_one_in);
        link.inbox.extend(link.leaving.drain(..count));
        let sent = link.fill_socket();
        link.has_ended = link.server_is_gone && link.leaving.is_empty();
        if !link.leaving.is_empty() {
            self.leave_later(socket, luck);
        }
        sent
    }

    /// The connection breaks: what is on its way is lost, operations in flight fail.
    fn reset(&mut self, socket: Socket, luck: &mut Luck) {
        let Some(link) = self.links.get_mut(&socket) else { return };
        if link.was_reset || link.server_is_gone {
            return;
        }
        link.was_reset = true;
        link.has_ended = true;
        for bytes in [&mut link.to_server, &mut link.arrived, &mut link.sending, &mut link.leaving] {
            bytes.clear();
        }
        let receive = link.receive.take();
        let sent = link.sent.take();
        luck.count(Kind::Reset);
        if let Some((buffer, start)) = receive {
            self.fail(receive_failed(socket, buffer, start, CONNECTION_RESET), luck);
        }
        if let Some(sent) = sent {
            self.fail(send_failed(sent, CONNECTION_RESET), luck);
        }
    }

    fn fail(&mut self, completion: Completion, luck: &mut Luck) {
        self.schedule(Event::Failed(completion), luck);
    }

    fn arrive_later(&mut self, socket: Socket, luck: &mut Luck) {
        let Some(link) = self.links.get_mut(&socket) else { return };
        let has_something = !link.to_server.is_empty() || link.client_is_gone;
        if has_something && !link.arrive_is_due && link.arrived.len() < SOCKET_BYTES && !link.server_is_gone {
            link.arrive_is_due = true;
            self.schedule(Event::Arrive(socket), luck);
        }
    }

    fn receive_later(&mut self, socket: Socket, luck: &mut Luck) {
        let Some(link) = self.links.get_mut(&socket) else { return };
        let is_end = link.client_is_gone && link.to_server.is_empty();
        if link.receive.is_some() && !link.receive_is_due && (!link.arrived.is_empty() || is_end) {
            link.receive_is_due = true;
            self.schedule(Event::Receive(socket), luck);
        }
    }

    fn leave_later(&mut self, socket: Socket, luck: &mut Luck) {
        let Some(link) = self.links.get_mut(&socket) else { return };
        if !link.leave_is_due && link.reads_from_ns < u64::MAX {
            link.leave_is_due = true;
            self.schedule(Event::Leave(socket), luck);
        }
    }

    fn schedule(&mut self, event: Event, luck: &mut Luck) {
        let mut delay_ns = luck.delay_ns(HOP_NS);
        if luck.breaks(self.faults.slow_one_in) {
            delay_ns *= SLOW_FACTOR;
        }
        self.event_count += 1;
        self.events.insert((luck.now_ns + delay_ns, self.event_count), event);
    }
}

fn receive_failed(socket: Socket, buffer: Buffer, start: usize, error: IoError) -> Completion {
    Completion::Received { socket, buffer, start, result: Err(error), more: false }
}

fn send_failed(sent: Completion, error: IoError) -> Completion {
    match sent {
        Completion::Sent { socket, parts, .. } => Completion::Sent { socket, parts, result: Err(error) },
        other => other,
    }
}
