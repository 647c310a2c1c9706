//! The loop that drives the load: one thread, one ring, all connections, no allocation and one system call a turn.
//!
//! Each turn takes what was answered, makes the frames that are due, and sends what waits; then it waits for
//! answers or for the next due time. While answers are outstanding, and shortly before a due time, it spins as the
//! broker does, yielding in every pass, because timers wake up tens of microseconds late.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};

use protocol::frame::{FRAME_HEADER_BYTES, FrameHeader, Opcode};
use protocol::ids::CorrelationId;
use reactor::memory::{Buffer, Pool};
use reactor::{Config, Event, Operation, Reactor, Token, Wait, clock, process};
use zerocopy::IntoBytes;

use crate::connection::{PeerError, Producer, SendTimes};
use crate::ledger::Ledger;
use crate::link::{Link, Role, take_answers, take_deliveries};
use crate::outbox::Outbox;
use crate::pace::{Pace, PhasePlan, Schedule};
use crate::setup::{DriveError, DriveSetup, Driven, PhaseSetup, Signals};
use crate::subscriber::GRANT_FRAME_BYTES;
use crate::tally::Tally;

/// Frames that one connection makes before the next has its turn.
const FRAMES_PER_TURN_MAX: u32 = 256;
/// Frames between two looks at the clock: about a microsecond.
const FRAMES_PER_CLOCK: u32 = 8;
/// Time between set-up and the first due frame.
const START_DELAY_NS: u64 = 1_000_000;
/// After the end: how long nothing may be answered or consumed before what is missing is given up.
const SILENCE_NS: u64 = 10_000_000_000;
/// The same after an interrupt: somebody waits.
const SILENCE_INTERRUPTED_NS: u64 = 1_000_000_000;
/// Spin for answers, at most, since something last happened; as the broker spins for a commit.
const ANSWER_SPIN_NS: u64 = 1_000_000;
/// How long before a due time sleeping ends and spinning begins: more than the timer's slack of 50 us.
const DUE_SPIN_NS: u64 = 120_000;

/// How often to look for new connections after a kill.
const REVIVAL_POLL_NS: u64 = 1_000_000;

struct Driver {
    reactor: Reactor,
    pool: Pool,
    links: Vec<Link>,
    schedule: Schedule,
    /// Records per second to consume, by phase.
    consumer_rates: Vec<Option<f64>>,
    tally: Tally,
    ledger: Option<Ledger>,
    frame_bytes_max: u32,
    heartbeat_ns: u64,
    next_heartbeat_ns: u64,
    last_progress_ns: u64,
    /// Frames answered and records consumed when somebody last looked, and when that was more than before.
    last_done: u64,
    last_done_ns: u64,
    /// Where new sockets come from after a kill.
    revival: Option<Receiver<Vec<OwnedFd>>>,
    /// The plan is over; what is left is to wait for answers and deliveries.
    is_closing: bool,
    is_interrupted: bool,
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
    let Driver { links, tally, ledger, is_interrupted, .. } = driver;
    Ok(Driven {
        tally,
        roles: links.into_iter().map(|link| link.role).collect(),
        cpu_ns: process::thread_cpu_time_ns() - cpu_before_ns,
        elapsed_ns: clock::monotonic_ns() - start_ns,
        ledger,
        is_interrupted,
    })
}

impl Driver {
    fn new(setup: DriveSetup) -> Result<Self, DriveError> {
        let links_max = setup.links.len() as u32;
        let mut reactor = Reactor::new(Config {
            // A receive and a send for each.
            operations_max: 2 * links_max,
            // After a kill, the old one may not be gone yet when the new one comes.
            sockets_max: 2 * links_max,
            worker_cpus: setup.worker_cpus,
            ..Config::default()
        })?;
        let memory_of = |(_, role): &(OwnedFd, Role)| role.memory_bytes(setup.frame_bytes_max);
        let pool = Pool::new(setup.links.iter().map(memory_of).sum())?;
        let start_ns = clock::monotonic_ns() + START_DELAY_NS;
        let mut links = Vec::with_capacity(setup.links.len());
        for (descriptor, role) in setup.links {
            let socket = reactor.add_socket(descriptor).expect("there is a slot for each");
            let outbox = Outbox::new(&pool, role.send_buffer_bytes()).expect("the pool has room for each");
            links.push(Link {
                socket,
                is_open: true,
                is_blocked: false,
                pending_operations: 0,
                last_sent_ns: start_ns,
                outbox,
                role,
            });
        }
        let producers: Vec<&Producer> = links.iter().filter_map(|link| link.role.producer()).collect();
        let batch_records = producers.first().map_or(1, |producer| u64::from(producer.batch_records()));
        let (plans, consumer_rates): (Vec<_>, Vec<_>) = setup
            .phases
            .into_iter()
            .map(|PhaseSetup { plan, consumer_per_s }| (plan, consumer_per_s))
            .unzip();
        let mut tally = Tally::new(plans.len(), setup.intervals, start_ns);
        if producers.len() == links.len() {
            tally = tally.without_consumer();
        }
        let schedule = Schedule::new(plans, producers.len(), batch_records, start_ns);
        let mut driver = Self {
            reactor,
            pool,
            links,
            schedule: schedule.with_catch_up(setup.catch_up),
            consumer_rates,
            tally,
            ledger: setup.ledger,
            frame_bytes_max: setup.frame_bytes_max,
            heartbeat_ns: setup.heartbeat_ns,
            next_heartbeat_ns: start_ns,
            last_progress_ns: start_ns,
            last_done: 0,
            last_done_ns: start_ns,
            revival: setup.revival,
            is_closing: false,
            is_interrupted: false,
        };
        driver.set_consumer_rate(start_ns, driver.consumer_rates[0]);
        Ok(driver)
    }

    fn run(&mut self, signals: Signals<'_>) -> Result<(), DriveError> {
        for index in 0..self.links.len() {
            let bytes = self.links[index].role.receive_buffer_bytes(self.frame_bytes_max);
            let buffer = self.pool.buffer(bytes).expect("the pool has room for each");
            self.receive(index, buffer, 0, false);
        }
        let mut now_ns = clock::monotonic_ns();
        loop {
            self.revive(now_ns);
            self.consume(now_ns);
            self.keep_time(now_ns, signals);
            if self.is_done(now_ns) {
                break;
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
        self.give_up(now_ns);
        Ok(())
    }

    /// After a kill: goes on with new sockets, once they are there and the kernel has let go of the old ones.
    fn revive(&mut self, now_ns: u64) {
        let Some(revival) = &self.revival else { return };
        if self.links.iter().any(|link| link.is_open || link.pending_operations > 0) {
            return;
        }
        let sockets = match revival.try_recv() {
            Ok(sockets) => sockets,
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => {
                self.revival = None;
                return;
            }
        };
        assert_eq!(sockets.len(), self.links.len());
        // They broke as they should.
        self.tally.lost_connections -= self.links.len() as u64;
        self.revival = None;
        self.last_done_ns = now_ns;
        for (index, descriptor) in sockets.into_iter().enumerate() {
            let socket = self.reactor.add_socket(descriptor).expect("there are two slots for each");
            let link = &mut self.links[index];
            link.socket = socket;
            link.is_open = true;
            link.is_blocked = false;
            link.outbox.discard();
            match &mut link.role {
                Role::Producer(producer) => producer.reconnected(now_ns),
                Role::Subscriber(subscriber) => subscriber.resume(),
            }
            let bytes = link.role.receive_buffer_bytes(self.frame_bytes_max);
            let buffer = self.pool.buffer(bytes).expect("the old one is back");
            self.receive(index, buffer, 0, false);
        }
    }

    /// Lets the consumers work.
    fn consume(&mut self, now_ns: u64) {
        let (schedule, tally) = (&self.schedule, &mut self.tally);
        for link in &mut self.links {
            if let Role::Subscriber(subscriber) = &mut link.role {
                subscriber.serve(now_ns, |record, done_ns| {
                    tally.on_consumed(record, schedule.phase_of(record.intended_ns), done_ns);
                });
            }
        }
        tally.note_backlog();
        let done = tally.answered_frames() + tally.consumed_records;
        if done != self.last_done {
            self.last_done = done;
            self.last_done_ns = now_ns;
        }
    }

    /// Ends what the time, the backlog or the user ends: intervals, phases, the plan.
    fn keep_time(&mut self, now_ns: u64, signals: Signals<'_>) {
        if signals.interrupted.load(Ordering::Relaxed) && !self.is_interrupted {
            self.is_interrupted = true;
            self.last_done_ns = now_ns;
            self.schedule.cut(now_ns);
        }
        if self.schedule.ends_spent() && !self.is_closing {
            self.schedule.cut(now_ns);
        }
        let before = self.schedule.current();
        if self.schedule.on_time(now_ns, self.tally.backlog_records()) {
            let current = self.schedule.current();
            for phase in before..current {
                let window = self.schedule.window(phase).expect("a later one has begun");
                self.tally.set_window(phase, window);
            }
            self.tally.enter(current);
            self.set_consumer_rate(now_ns, self.consumer_rates[current]);
        }
        if now_ns >= self.tally.interval_end_ns() {
            self.tally.end_interval(now_ns, &self.schedule, self.in_flight_frames());
        }
        if self.schedule.is_over(now_ns) && !self.is_closing {
            self.is_closing = true;
            self.last_done_ns = self.last_done_ns.max(now_ns);
            let current = self.schedule.current();
            if let Some(window) = self.schedule.window(current) {
                self.tally.set_window(current, window);
            }
            self.tally.begin_closing(now_ns, &self.schedule, self.in_flight_frames());
            // What is left is not measured: the sooner it is here, the better.
            self.set_consumer_rate(now_ns, None);
        }
    }

    fn in_flight_frames(&self) -> u64 {
        let producers = self.links.iter().filter_map(|link| link.role.producer());
        producers.map(|producer| producer.outstanding() as u64).sum()
    }

    fn set_consumer_rate(&mut self, now_ns: u64, per_s: Option<f64>) {
        for link in &mut self.links {
            if let Role::Subscriber(subscriber) = &mut link.role {
                subscriber.set_rate(now_ns, per_s);
            }
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), DriveError> {
        if let Event::Received { token, .. } | Event::Sent { token, .. } = &event {
            self.links[token.0 as usize].pending_operations -= 1;
        }
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
                let books = (&mut self.tally, self.ledger.as_mut());
                take_answers(producer, books, &buffer[..end], self.frame_bytes_max, now_ns)
            }
            Role::Subscriber(subscriber) => {
                let ledger = self.ledger.as_mut().expect("a run with a subscriber keeps a ledger");
                take_deliveries(subscriber, &buffer[..end], self.frame_bytes_max, now_ns, ledger)
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
                    let due = self.schedule.next_due(index, now_ns).filter(|due| due.release_ns <= now_ns);
                    let Some(due) = due else { return };
                    if producer.is_held(now_ns) {
                        return;
                    }
                    if !link.outbox.reserve(&self.pool, frame_bytes) {
                        link.is_blocked = true;
                        return;
                    }
                    let times = SendTimes { intended_ns: due.intended_ns, sent_ns: now_ns, phase: due.phase };
                    let mut ready_since_ns = producer.ready_since_ns();
                    if self.schedule.catches_up_from_hold(index) {
                        ready_since_ns = ready_since_ns.max(due.release_ns);
                    }
                    let records = producer.batch_records();
                    self.tally.on_sent(times, ready_since_ns, records);
                    if let Some(ledger) = &mut self.ledger {
                        ledger.on_sent(index, records);
                    }
                    let bytes = producer.next_frame(times);
                    link.outbox.append(bytes);
                    self.schedule.on_sent(index, now_ns, due.intended_ns < ready_since_ns);
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
            link.pending_operations += 1;
            let operation = Operation::Send { socket: link.socket, parts };
            self.reactor.queue(Token(index as u64), operation).expect("one send and one receive for each");
        }
    }

    fn receive(&mut self, index: usize, buffer: Buffer, start: usize, more: bool) {
        let link = &mut self.links[index];
        link.pending_operations += 1;
        let socket = link.socket;
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
    fn wait(&mut self) -> Wait {
        let now_ns = clock::monotonic_ns();
        let (mut due_ns, mut wake_ns, mut is_outstanding) = (u64::MAX, u64::MAX, false);
        let is_behind = self.tally.backlog_records() > 0;
        for (index, link) in self.links.iter().enumerate() {
            let producer = match &link.role {
                Role::Producer(producer) => producer,
                Role::Subscriber(subscriber) => {
                    is_outstanding |= is_behind && subscriber.is_idle();
                    wake_ns = wake_ns.min(subscriber.next_wake_ns().unwrap_or(u64::MAX));
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
                self.schedule.next_due(index, now_ns).map(|due| due.release_ns)
            };
            due_ns = due_ns.min(next_ns.unwrap_or(u64::MAX));
        }
        let other_ns =
            wake_ns.min(self.next_heartbeat_ns).min(self.tally.interval_end_ns()).min(if self.is_closing {
                self.last_done_ns + SILENCE_NS
            } else {
                self.schedule.next_boundary_ns()
            });
        let is_dead = self.revival.is_some() && !self.links.iter().any(|link| link.is_open);
        let other_ns = if is_dead { other_ns.min(now_ns + REVIVAL_POLL_NS) } else { other_ns };
        if due_ns <= now_ns {
            return Wait { no_sleep: true, ..Wait::default() };
        }
        if due_ns - now_ns <= DUE_SPIN_NS {
            return Wait { deadline_ns: Some(due_ns.min(other_ns)), spin_until_ns: due_ns, no_sleep: false };
        }
        let spin_until_ns = if is_outstanding { self.last_progress_ns + ANSWER_SPIN_NS } else { 0 };
        Wait { deadline_ns: Some((due_ns - DUE_SPIN_NS).min(other_ns)), spin_until_ns, no_sleep: false }
    }

    /// Whether there is nothing left to send or to wait for, or nobody who would answer.
    fn is_done(&mut self, now_ns: u64) -> bool {
        let producers = self.links.iter().filter(|link| link.role.producer().is_some());
        let is_dead = producers.clone().next().is_some() && !producers.clone().any(|link| link.is_open);
        if is_dead && self.revival.is_none() {
            return true;
        }
        let silence_ns = if self.is_interrupted { SILENCE_INTERRUPTED_NS } else { SILENCE_NS };
        if !self.is_closing {
            return false;
        }
        if now_ns >= self.last_done_ns + silence_ns {
            return true;
        }
        let is_unanswered =
            producers.filter_map(|link| link.role.producer()).any(|one| one.outstanding() > 0);
        let missing_records = self.ledger.as_ref().map_or(0, Ledger::missing_records);
        let is_unconsumed = self.links.iter().filter(|link| link.is_open).any(|link| {
            let subscriber = link.role.subscriber();
            subscriber.is_some_and(|subscriber| missing_records > 0 || !subscriber.is_idle())
        });
        let is_unconsumed = is_unconsumed && !self.is_interrupted;
        let is_unsent = (0..self.links.len()).any(|index| self.has_overdue(index, now_ns));
        !(is_dead || is_unanswered || is_unconsumed || is_unsent)
    }

    /// Whether frames that were due before the end wait still to be sent, which an interrupt gives up.
    fn has_overdue(&mut self, index: usize, now_ns: u64) -> bool {
        let link = &self.links[index];
        let is_open_producer = link.is_open && link.role.producer().is_some();
        is_open_producer && !self.is_interrupted && self.schedule.next_due(index, now_ns).is_some()
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
    fn give_up(&mut self, now_ns: u64) {
        for link in &mut self.links {
            if let Role::Producer(producer) = &mut link.role {
                self.tally.unknown_frames += producer.abandon() as u64;
            }
        }
        let in_flight_frames = 0;
        self.tally.end_interval(now_ns, &self.schedule, in_flight_frames);
        // When all connections broke, the rest of the plan was offered all the same, if it is known how much that is.
        if self.schedule.has_open_end() {
            self.schedule.cut(now_ns);
        }
        let nothing = Schedule::new(vec![PhasePlan::fixed(Pace::Silent, 0)], 0, 1, now_ns);
        self.tally.finish(std::mem::replace(&mut self.schedule, nothing), now_ns);
    }
}

#[cfg(test)]
mod tests;
