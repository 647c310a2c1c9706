//! The loop that drives the load: one thread, one ring, all connections, no allocation and one system call a turn.
//!
//! Each turn takes what was answered, makes the frames that are due, and sends what waits; then it waits for
//! answers or for the next due time. While answers are outstanding, and shortly before a due time, it spins as the
//! broker does, yielding in every pass, because timers wake up tens of microseconds late.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use protocol::frame::{FRAME_HEADER_BYTES, FrameHeader, Opcode};
use protocol::ids::CorrelationId;
use reactor::memory::{Buffer, Pool};
use reactor::{Config, Event, Operation, Reactor, Token, Wait, clock, process};
use zerocopy::IntoBytes;

use crate::connection::{PeerError, SendTimes};
use crate::link::{Link, Role, take_answers, take_deliveries};
use crate::outbox::Outbox;
use crate::pace::Schedule;
use crate::setup::{DriveError, DriveSetup, Driven, Signals};
use crate::subscriber::{GRANT_FRAME_BYTES, Subscriber};
use crate::tally::{Tally, Window};

/// Frames that one connection makes before the next has its turn.
const FRAMES_PER_TURN_MAX: u32 = 256;
/// Frames between two looks at the clock: about a microsecond.
const FRAMES_PER_CLOCK: u32 = 8;
/// Time between set-up and the first due frame.
const START_DELAY_NS: u64 = 1_000_000;
/// How long the last answers and deliveries may take after the end.
const DRAIN_NS: u64 = 10_000_000_000;
/// Spin for answers, at most, since something last happened; as the broker spins for a commit.
const ANSWER_SPIN_NS: u64 = 1_000_000;
/// How long before a due time sleeping ends and spinning begins: more than the timer's slack of 50 us.
const DUE_SPIN_NS: u64 = 120_000;

struct Driver {
    reactor: Reactor,
    pool: Pool,
    links: Vec<Link>,
    schedule: Schedule,
    tally: Tally,
    frame_bytes_max: u32,
    heartbeat_ns: u64,
    next_heartbeat_ns: u64,
    last_progress_ns: u64,
}

/// Runs to the end, on the calling thread.
///
/// # Errors
/// See `DriveError`. A connection that breaks is counted, and no error.
pub(crate) fn drive(setup: DriveSetup, signals: Signals<'_>) -> Result<Driven, DriveError> {
    let cpu_before_ns = process::thread_cpu_time_ns();
    let mut driver = Driver::new(setup)?;
    let start_ns = clock::monotonic_ns();
    driver.run(signals)?;
    let Driver { links, tally, .. } = driver;
    Ok(Driven {
        tally,
        roles: links.into_iter().map(|link| link.role).collect(),
        cpu_ns: process::thread_cpu_time_ns() - cpu_before_ns,
        elapsed_ns: clock::monotonic_ns() - start_ns,
    })
}

impl Driver {
    fn new(setup: DriveSetup) -> Result<Self, DriveError> {
        let links_max = setup.links.len() as u32;
        let mut reactor = Reactor::new(Config {
            // A receive and a send for each.
            operations_max: 2 * links_max,
            sockets_max: links_max,
            worker_cpus: setup.worker_cpus,
            ..Config::default()
        })?;
        let memory_of = |(_, role): &(OwnedFd, Role)| role.memory_bytes(setup.frame_bytes_max);
        let pool = Pool::new(setup.links.iter().map(memory_of).sum())?;
        let start_ns = clock::monotonic_ns() + START_DELAY_NS;
        let window = Window {
            start_ns: start_ns + setup.warmup_ns,
            end_ns: start_ns.saturating_add(setup.warmup_ns).saturating_add(setup.measure_ns),
        };
        let mut links = Vec::with_capacity(setup.links.len());
        for (descriptor, role) in setup.links {
            let socket = reactor.add_socket(descriptor).expect("there is a slot for each");
            let outbox = Outbox::new(&pool, role.send_buffer_bytes()).expect("the pool has room for each");
            let link =
                Link { socket, is_open: true, is_blocked: false, last_sent_ns: start_ns, outbox, role };
            links.push(link);
        }
        let producers = links.iter().filter(|link| matches!(link.role, Role::Producer(_))).count();
        Ok(Self {
            reactor,
            pool,
            links,
            schedule: Schedule::new(setup.pace, producers, start_ns..window.end_ns),
            tally: Tally::new(window),
            frame_bytes_max: setup.frame_bytes_max,
            heartbeat_ns: setup.heartbeat_ns,
            next_heartbeat_ns: start_ns,
            last_progress_ns: start_ns,
        })
    }

    fn run(&mut self, signals: Signals<'_>) -> Result<(), DriveError> {
        for index in 0..self.links.len() {
            let bytes = self.links[index].role.receive_buffer_bytes(self.frame_bytes_max);
            let buffer = self.pool.buffer(bytes).expect("the pool has room for each");
            self.receive(index, buffer, 0, false);
        }
        let mut now_ns = clock::monotonic_ns();
        while !self.is_done(now_ns) {
            if signals.interrupted.load(Ordering::Relaxed) {
                return Err(DriveError::Interrupted);
            }
            signals.sent_frames.store(self.tally.sent_frames, Ordering::Relaxed);
            self.beat(now_ns);
            for index in 0..self.links.len() {
                self.fill(index);
                self.send(index);
            }
            let wait = self.wait();
            now_ns = self.reactor.submit_and_wait(wait).monotonic_ns;
            while let Some(event) = self.reactor.next_event() {
                self.on_event(event)?;
            }
        }
        self.give_up();
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> Result<(), DriveError> {
        match event {
            Event::Received { token, buffer, start, result: Ok(length), more } if length > 0 => {
                self.on_received(token.0 as usize, buffer, start + length, more)?;
            }
            Event::Received { token, .. } => self.lose(token.0 as usize),
            Event::Sent { token, parts, result } => {
                let index = token.0 as usize;
                let is_whole = result == Ok(parts.bytes());
                self.links[index].outbox.finish_send(parts);
                self.links[index].is_blocked = false;
                if !is_whole {
                    self.lose(index);
                }
            }
            // Nothing else was asked for.
            _ => {}
        }
        Ok(())
    }

    fn on_received(
        &mut self,
        index: usize,
        mut buffer: Buffer,
        end: usize,
        more: bool,
    ) -> Result<(), DriveError> {
        let now_ns = clock::monotonic_ns();
        self.last_progress_ns = now_ns;
        let link = &mut self.links[index];
        if !link.is_open {
            return Ok(());
        }
        let taken = match &mut link.role {
            Role::Producer(producer) => {
                take_answers(producer, &mut self.tally, &buffer[..end], self.frame_bytes_max, now_ns)
            }
            Role::Subscriber(subscriber) => {
                let seen = |record| self.tally.on_delivered(record, now_ns);
                take_deliveries(subscriber, &buffer[..end], self.frame_bytes_max, seen)
            }
        };
        let used = match taken {
            Ok(used) => used,
            Err(PeerError::GoAway(_)) => {
                self.lose(index);
                return Ok(());
            }
            Err(error) => return Err(DriveError::Peer { connection: index, error }),
        };
        if used < end {
            buffer.copy_within(used..end, 0);
        }
        let start = end - used;
        if start == buffer.capacity() {
            return Err(DriveError::FrameTooLong(index));
        }
        self.receive(index, buffer, start, more);
        Ok(())
    }

    /// Makes the frames of a connection that are due, or the credit that a subscriber grants.
    fn fill(&mut self, index: usize) {
        let link = &mut self.links[index];
        if !link.is_open || link.is_blocked {
            return;
        }
        match &mut link.role {
            Role::Producer(producer) => {
                let frame_bytes = producer.frame_bytes_max();
                let mut now_ns = 0;
                for number in 0..FRAMES_PER_TURN_MAX {
                    if number % FRAMES_PER_CLOCK == 0 {
                        now_ns = clock::monotonic_ns();
                    }
                    let due_ns = self.schedule.next_due_ns(index, now_ns).filter(|due_ns| *due_ns <= now_ns);
                    let Some(intended_ns) = due_ns else { return };
                    if producer.is_held(now_ns) {
                        return;
                    }
                    if !link.outbox.reserve(&self.pool, frame_bytes) {
                        link.is_blocked = true;
                        return;
                    }
                    let times = SendTimes { intended_ns, sent_ns: now_ns };
                    self.tally.on_sent(times, producer.ready_since_ns());
                    let bytes = producer.next_frame(times);
                    link.outbox.append(bytes);
                    self.schedule.on_sent(index);
                    if self.schedule.is_spent() {
                        self.tally.window.end_ns = self.tally.window.end_ns.min(now_ns);
                    }
                }
            }
            Role::Subscriber(subscriber) => {
                if link.outbox.reserve(&self.pool, GRANT_FRAME_BYTES)
                    && let Some(frame) = subscriber.next_grant()
                {
                    link.outbox.append(&frame);
                }
            }
        }
    }

    /// Sends what waits on a connection, unless a send is in flight.
    fn send(&mut self, index: usize) {
        let link = &mut self.links[index];
        if !link.is_open {
            return;
        }
        if let Some(parts) = link.outbox.begin_send() {
            link.last_sent_ns = clock::monotonic_ns();
            self.last_progress_ns = link.last_sent_ns;
            let operation = Operation::Send { socket: link.socket, parts };
            self.reactor.queue(Token(index as u64), operation).expect("one send and one receive for each");
        }
    }

    fn receive(&mut self, index: usize, buffer: Buffer, start: usize, more: bool) {
        let socket = self.links[index].socket;
        let operation = Operation::Receive { socket, buffer, start, poll_first: !more };
        self.reactor.queue(Token(index as u64), operation).expect("one send and one receive for each");
    }

    /// Adds heartbeats where a connection was silent.
    fn beat(&mut self, now_ns: u64) {
        if now_ns < self.next_heartbeat_ns {
            return;
        }
        self.next_heartbeat_ns = now_ns + self.heartbeat_ns / 4;
        let heartbeat = FrameHeader::new(Opcode::Heartbeat, CorrelationId(0), 0);
        for link in self.links.iter_mut().filter(|link| link.is_open) {
            let is_silent = now_ns >= link.last_sent_ns + self.heartbeat_ns / 2;
            if is_silent && link.outbox.reserve(&self.pool, FRAME_HEADER_BYTES) {
                link.outbox.append(heartbeat.as_bytes());
            }
        }
    }

    /// How to wait for what comes next.
    fn wait(&self) -> Wait {
        let now_ns = clock::monotonic_ns();
        let (mut due_ns, mut is_outstanding) = (u64::MAX, false);
        for (index, link) in self.links.iter().enumerate() {
            let producer = match &link.role {
                Role::Producer(producer) => producer,
                Role::Subscriber(subscriber) => {
                    is_outstanding |= self.is_behind(subscriber);
                    continue;
                }
            };
            is_outstanding |= producer.outstanding() > 0;
            if !link.is_open || link.is_blocked {
                continue;
            }
            let next_ns = if producer.is_held(now_ns) {
                producer.paused_until_ns(now_ns)
            } else {
                self.schedule.next_due_ns(index, now_ns)
            };
            due_ns = due_ns.min(next_ns.unwrap_or(u64::MAX));
        }
        let other_ns = self.next_heartbeat_ns.min(self.hard_stop_ns());
        if due_ns <= now_ns {
            return Wait { no_sleep: true, ..Wait::default() };
        }
        if due_ns - now_ns <= DUE_SPIN_NS {
            return Wait { deadline_ns: Some(due_ns.min(other_ns)), spin_until_ns: due_ns, no_sleep: false };
        }
        let spin_until_ns = if is_outstanding { self.last_progress_ns + ANSWER_SPIN_NS } else { 0 };
        Wait { deadline_ns: Some((due_ns - DUE_SPIN_NS).min(other_ns)), spin_until_ns, no_sleep: false }
    }

    fn is_done(&self, now_ns: u64) -> bool {
        if now_ns >= self.hard_stop_ns() {
            return true;
        }
        let (mut any_open, mut is_busy) = (false, false);
        for (index, link) in self.links.iter().enumerate().filter(|(_, link)| link.is_open) {
            match &link.role {
                Role::Producer(producer) => {
                    any_open = true;
                    is_busy |=
                        producer.outstanding() > 0 || self.schedule.next_due_ns(index, now_ns).is_some();
                }
                Role::Subscriber(subscriber) => is_busy |= self.is_behind(subscriber),
            }
        }
        !any_open || !is_busy
    }

    /// Whether records were acknowledged that are not delivered yet.
    fn is_behind(&self, subscriber: &Subscriber) -> bool {
        subscriber.delivered_records() < self.tally.acked_records
    }

    fn hard_stop_ns(&self) -> u64 {
        self.tally.window.end_ns.saturating_add(DRAIN_NS)
    }

    /// A connection broke: what it has not answered stays unknown.
    fn lose(&mut self, index: usize) {
        let link = &mut self.links[index];
        if !link.is_open {
            return;
        }
        link.is_open = false;
        self.reactor.close(link.socket);
        self.tally.lost_connections += 1;
        if let Role::Producer(producer) = &mut link.role {
            self.tally.unknown_frames += producer.abandon() as u64;
        }
    }

    /// The run is over: what is not answered by now stays unknown.
    fn give_up(&mut self) {
        for link in &mut self.links {
            if let Role::Producer(producer) = &mut link.role {
                self.tally.unknown_frames += producer.abandon() as u64;
            }
        }
    }
}
