//! The reactor: operations in, one system call a turn, events out.
//!
//! It owns the ring and all that the kernel works on. An operation enters the table when it is queued and
//! leaves it with its completion; the table has as many slots as the completion queue has places to spare, so
//! the kernel can always answer. Invariant: whatever the kernel holds is counted, as an operation in the
//! table, an armed listener or the armed watch for wake-ups; `drop` cancels and waits for that count to be
//! zero before it frees anything.
//!
//! It belongs to the thread that made it. Wakers are the only part of it that other threads touch.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;

use io_uring::{cqueue, squeue};

use crate::clock::{self, Now};
use crate::descriptors::Descriptors;
use crate::listener::Listener;
use crate::operation::{
    Errno, Event, FILE_GENERATIONS, FILES_MAX, FileId, ListenerId, Operation, SocketId, Target, Token,
    result_of,
};
use crate::probe::SetupError;
use crate::ring::Ring;
use crate::socket;
use crate::submission;
use crate::table::{Key, Table};
use crate::tag::{GENERATIONS, Tag};
use crate::waker::{Sleeper, Waker};

/// Longest submission queue. A longer one would only be colder: a full one is submitted and goes on.
const SUBMISSIONS_MAX: u32 = 1_024;

/// Most operations in flight, so that they and the reactor's own fit into the kernel's longest completion
/// queue.
const OPERATIONS_MAX: u32 = 32_768;

/// Listeners of one reactor.
const LISTENERS_MAX: usize = 8;

/// Descriptors that `hold` keeps open.
const HELD_MAX: u32 = 8;

/// Completions that no operation in the table stands for: accepts, wake-ups, cancellations. A burst of
/// accepts that is longer waits inside the kernel.
const COMPLETIONS_INTERNAL: u32 = 256;

/// How long `drop` waits for the kernel to let go of our memory before it leaks it.
const DRAIN_NS_MAX: u64 = 5_000_000_000;

/// How long it waits before it cancels again what was not cancelled the first time.
const DRAIN_STEP_NS: u64 = 50_000_000;

const _: () = assert!(OPERATIONS_MAX + COMPLETIONS_INTERNAL < 65_536);
const _: () = assert!(LISTENERS_MAX < COMPLETIONS_INTERNAL as usize);
const _: () = assert!(DRAIN_STEP_NS < DRAIN_NS_MAX);

/// Sizes of a reactor, fixed at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Most operations between `queue` and `next_event`; 1 to 32,768.
    pub operations_max: u32,
    /// Most sockets at once.
    pub sockets_max: u32,
    /// Most kernel threads for work that blocks: on files, and on all else.
    pub iowq_workers_max: [u32; 2],
    /// CPUs that these threads may run on: what the process was allowed before this thread was pinned
    /// (`affinity::allowed_cpus`). Empty: as the kernel likes.
    pub worker_cpus: Vec<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self { operations_max: 4_096, sockets_max: 4_096, iowq_workers_max: [4, 2], worker_cpus: Vec::new() }
    }
}

/// How long `submit_and_wait` may wait. The default waits for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// Point on the monotonic clock at which the wait ends.
    pub deadline_ns: Option<u64>,
    /// Until then, watch for completions without sleeping; 0 to sleep at once.
    pub spin_until_ns: u64,
    /// Submit and look, no more: the caller has work left over.
    pub no_sleep: bool,
}

/// What a reactor has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls of `io_uring_enter`.
    pub enters: u64,
    /// Entries submitted, the reactor's own included.
    pub sqes: u64,
    /// Completions taken, the reactor's own included.
    pub cqes: u64,
    /// Time spent watching instead of sleeping, in nanoseconds.
    pub spin_ns: u64,
    /// Waits that were allowed to sleep.
    pub sleeps: u64,
    /// Connections closed at once: no slot was free, or the listener was being stopped.
    pub accepts_refused: u64,
}

/// An operation that the kernel has, or will get with the next submission.
#[derive(Debug)]
struct InFlight {
    token: Token,
    operation: Operation,
}

/// One ring and all that it works on. Fields are dropped in order: the ring first.
pub struct Reactor {
    ring: Ring,
    operations: Table<InFlight>,
    sockets: Descriptors,
    files: Descriptors,
    listeners: Vec<Listener>,
    listeners_made: u32,
    held: Vec<OwnedFd>,
    sleeper: Sleeper,
    /// Whether the kernel holds the poll of the sleeper's eventfd.
    watching: bool,
    /// Operations whose socket was gone when they were queued; the kernel never sees them.
    refused: VecDeque<Key>,
    counters: Counters,
}

impl Reactor {
    /// Makes a reactor for the calling thread.
    ///
    /// # Errors
    /// See [`SetupError`].
    ///
    /// # Panics
    /// If `operations_max` is out of its range.
    pub fn new(config: Config) -> Result<Self, SetupError> {
        let operations_max = config.operations_max;
        assert!((1..=OPERATIONS_MAX).contains(&operations_max), "operations_max is {operations_max}");
        let wanted = (operations_max + COMPLETIONS_INTERNAL).next_power_of_two();
        let submissions = operations_max.next_power_of_two().clamp(8, SUBMISSIONS_MAX);
        let ring = Ring::new(submissions, wanted)?;
        let given = ring.completions_max();
        if given < wanted {
            return Err(SetupError::TooManyOperations { wanted, given });
        }
        let refused = SetupError::refused("IORING_REGISTER_IOWQ_MAX_WORKERS");
        ring.limit_workers(config.iowq_workers_max).map_err(refused)?;
        if !config.worker_cpus.is_empty() {
            let refused = SetupError::refused("IORING_REGISTER_IOWQ_AFF");
            ring.place_workers(&config.worker_cpus).map_err(refused)?;
        }
        ring.reserve_files(HELD_MAX).map_err(SetupError::refused("IORING_REGISTER_FILES2"))?;
        Ok(Self {
            ring,
            operations: Table::new(operations_max, GENERATIONS),
            sockets: Descriptors::new(config.sockets_max, GENERATIONS),
            files: Descriptors::new(FILES_MAX, FILE_GENERATIONS),
            listeners: Vec::with_capacity(LISTENERS_MAX),
            listeners_made: 0,
            held: Vec::with_capacity(HELD_MAX as usize),
            sleeper: Sleeper::new().map_err(SetupError::refused("eventfd"))?,
            watching: false,
            refused: VecDeque::with_capacity(operations_max as usize),
            counters: Counters::default(),
        })
    }

    /// How the ring was set up: `deferred task work` on Linux 6.6 and newer.
    pub fn mode(&self) -> &'static str {
        self.ring.mode()
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Operations queued whose event was not taken yet.
    pub fn operations_in_flight(&self) -> usize {
        self.operations.len()
    }

    /// Sockets in the table, those being closed included.
    pub fn sockets_open(&self) -> usize {
        self.sockets.len()
    }

    /// A handle that ends this reactor's waits from any thread.
    pub fn waker(&self) -> Waker {
        self.sleeper.waker()
    }

    /// Takes a file in.
    ///
    /// # Panics
    /// If 65,536 files are open: the limit of descriptors has to be lower.
    pub fn add_file(&mut self, file: OwnedFd) -> FileId {
        let key = self.files.insert(file).expect("the caller bounds its open files");
        FileId::from_key(key)
    }

    /// Closes a file, after the last operation on it has ended. No new one may be queued.
    ///
    /// # Panics
    /// If the file was removed before.
    pub fn remove_file(&mut self, file: FileId) {
        let removed = self.files.close(file.key());
        assert!(removed, "{file:?} was removed before");
    }

    /// Takes a connected, blocking socket in.
    ///
    /// # Errors
    /// Hands it back when `sockets_max` are there.
    ///
    /// # Panics
    /// If the socket has `O_NONBLOCK`.
    pub fn add_socket(&mut self, socket: OwnedFd) -> Result<SocketId, OwnedFd> {
        assert!(socket::is_blocking(&socket), "sends on a socket with O_NONBLOCK would be cut short");
        self.sockets.insert(socket).map(SocketId::from_key)
    }

    /// Gives a socket away, for another reactor. `None` when it is gone, being closed, or in use by an
    /// operation.
    pub fn take_socket(&mut self, socket: SocketId) -> Option<OwnedFd> {
        self.sockets.take(socket.key())
    }

    /// Ends both directions at once, so that all operations on the socket end; the descriptor is dropped
    /// after the last of them. A stale id is ignored.
    pub fn close(&mut self, socket: SocketId) {
        if let Some(descriptor) = self.sockets.peek(socket.key()) {
            socket::shut_down(descriptor);
            self.sockets.close(socket.key());
        }
    }

    /// Accepts connections until `stop_listening`. Starts with the next `submit_and_wait`.
    ///
    /// # Panics
    /// With more than eight listeners.
    pub fn listen(&mut self, listener: TcpListener) -> ListenerId {
        assert!(self.listeners.len() < LISTENERS_MAX, "more than {LISTENERS_MAX} listeners");
        // On a socket that does not block, an accept would end at once, with EAGAIN.
        listener.set_nonblocking(false).expect("a listener's flags can be set");
        let id = ListenerId(self.listeners_made);
        self.listeners_made += 1;
        self.listeners.push(Listener::new(id, listener));
        id
    }

    /// Takes no more connections; what has come in but was not reported is closed. The listening descriptor
    /// is dropped within the next turns. An id that was stopped before is ignored.
    pub fn stop_listening(&mut self, listener: ListenerId) {
        if let Some(index) = self.listener_index(listener)
            && self.listeners[index].stop()
        {
            self.listeners.swap_remove(index);
        }
    }

    /// Keeps a descriptor open for as long as the kernel works for this ring, even after the process was
    /// killed: for the lock of a data directory, which must not be free while writes can still land.
    ///
    /// # Panics
    /// With more than eight descriptors, or if the kernel refuses.
    pub fn hold(&mut self, descriptor: OwnedFd) {
        let index = self.held.len() as u32;
        assert!(index < HELD_MAX, "more than {HELD_MAX} descriptors to hold");
        let registered = self.ring.register_file(index, descriptor.as_raw_fd());
        assert!(registered.is_ok(), "a lock that the ring does not hold protects nothing: {registered:?}");
        self.held.push(descriptor);
    }

    /// Queues an operation. It reaches the kernel with the next `submit_and_wait`, or sooner when much is
    /// queued. Exactly one event answers it. On a socket that is gone the event says `EBADF`.
    ///
    /// # Errors
    /// Hands it back when `operations_max` are in flight, or when the kernel takes no more at the moment:
    /// take events first.
    ///
    /// # Panics
    /// If the file was removed, or an argument breaks its rule (see [`Operation`]).
    pub fn queue(&mut self, token: Token, operation: Operation) -> Result<(), Operation> {
        operation.check();
        if self.operations.is_full() || !self.make_room() {
            return Err(operation);
        }
        let descriptor = match operation.target() {
            Target::Socket(socket) => self.sockets.begin(socket.key()),
            Target::File(file) => {
                let descriptor = self.files.begin(file.key());
                assert!(descriptor.is_some(), "{operation:?} on a file that was removed");
                descriptor
            }
        };
        let Ok(key) = self.operations.insert(InFlight { token, operation }) else {
            unreachable!("the table had room");
        };
        match descriptor {
            Some(descriptor) => self.push_operation(key, descriptor),
            None => self.refused.push_back(key),
        }
        Ok(())
    }

    /// Submits what was queued, waits as told, and reads the clocks. Returns early on a signal, on the
    /// reactor's own completions, and when the kernel is short of memory: the caller looks for events and
    /// comes again.
    pub fn submit_and_wait(&mut self, wait: Wait) -> Now {
        self.arm();
        if wait.no_sleep || self.is_ready() {
            self.submit();
            return clock::now();
        }
        let pauses = self.listeners.iter().filter_map(Listener::paused_until_ns);
        let deadline_ns = pauses.chain(wait.deadline_ns).min();
        if wait.spin_until_ns > 0 {
            self.spin(wait.spin_until_ns.min(deadline_ns.unwrap_or(u64::MAX)));
        }
        if !self.is_ready() {
            self.sleep(deadline_ns);
        }
        clock::now()
    }

    /// Takes the next event. What is not taken stays for the next turn, which then does not wait.
    pub fn next_event(&mut self) -> Option<Event> {
        if self.sleeper.take() {
            return Some(Event::Woken);
        }
        if let Some(key) = self.refused.pop_front() {
            let InFlight { token, operation } = self.take_operation(key);
            return Some(operation.finish(token, Err(Errno(libc::EBADF)), false));
        }
        // Bounded by the length of the completion queue: nothing is submitted here.
        while let Some(completion) = self.ring.pop() {
            self.counters.cqes += 1;
            if let Some(event) = self.on_completion(&completion) {
                return Some(event);
            }
        }
        None
    }

    /// Whether `next_event` has something to look at.
    fn is_ready(&self) -> bool {
        self.sleeper.is_notified() || !self.refused.is_empty() || self.ring.has_completions()
    }

    /// Queues what the reactor itself wants of the kernel: the watch for wake-ups, accepts, their
    /// cancellations. What finds no room is tried again in the next turn.
    fn arm(&mut self) {
        if !self.watching && self.make_room() {
            self.watching = true;
            self.push_own(&submission::watch(self.sleeper.descriptor()));
        }
        let pausing = self.listeners.iter().any(|listener| listener.paused_until_ns().is_some());
        let now_ns = if pausing { clock::monotonic_ns() } else { 0 };
        for index in 0..self.listeners.len() {
            if self.listeners[index].is_due(now_ns) && self.make_room() {
                let entry = self.listeners[index].begin();
                self.push_own(&entry);
            }
        }
    }

    /// Whether there is room for one more entry, after submitting if need be.
    fn make_room(&mut self) -> bool {
        if self.ring.is_full() {
            self.submit();
        }
        !self.ring.is_full()
    }

    fn push_operation(&mut self, key: Key, descriptor: RawFd) {
        let in_flight = self.operations.get_mut(key).expect("the operation is in the table");
        let entry = submission::operation(&mut in_flight.operation, descriptor);
        let entry = entry.user_data(Tag::Operation(key).encode());
        // SAFETY: the entry points into buffers and boxed parts that the operation owns. The operation stays
        // in the table, where nobody reads or changes it, until `on_operation` takes it out with its only
        // completion; `drop` leaks the table if the kernel still works on it. The tables keep the descriptor
        // open as long.
        let pushed = unsafe { self.ring.push(&entry) };
        assert!(pushed, "there was room for an operation");
    }

    /// Pushes an entry that points at no memory.
    fn push_own(&mut self, entry: &squeue::Entry) {
        // SAFETY: accepts without an address, polls and cancellations are numbers only.
        let pushed = unsafe { self.ring.push(entry) };
        assert!(pushed, "there was room for an entry");
    }

    /// One system call, if it has anything to do: entries to submit, or completions that wait for one.
    fn submit(&mut self) {
        if self.ring.unsubmitted() > 0 || self.ring.has_work() {
            self.counters.enters += 1;
            self.counters.sqes += self.ring.submit() as u64;
        }
    }

    /// Submits, and looks for completions until there are some or the time is over; does nothing when it is
    /// over already. Yields between looks: without that, the kernel's worker that flushes for us may wait for
    /// the very CPU on which we wait for it.
    fn spin(&mut self, until_ns: u64) {
        let begin_ns = clock::monotonic_ns();
        if begin_ns >= until_ns {
            return;
        }
        self.submit();
        let mut now_ns = begin_ns;
        while now_ns < until_ns && !self.is_ready() {
            if self.ring.has_work() {
                self.submit();
            } else {
                thread::yield_now();
            }
            now_ns = clock::monotonic_ns();
        }
        self.counters.spin_ns += now_ns - begin_ns;
    }

    fn sleep(&mut self, deadline_ns: Option<u64>) {
        let timeout_ns = deadline_ns.map(|deadline_ns| deadline_ns.saturating_sub(clock::monotonic_ns()));
        // Without the watch nobody could wake us.
        if timeout_ns == Some(0) || !self.watching || !self.sleeper.begin_sleep() {
            self.submit();
            return;
        }
        self.counters.sleeps += 1;
        self.counters.enters += 1;
        self.counters.sqes += self.ring.wait(timeout_ns) as u64;
        self.sleeper.end_sleep();
    }

    fn on_completion(&mut self, completion: &cqueue::Entry) -> Option<Event> {
        let result = result_of(completion.result());
        let flags = completion.flags();
        match Tag::decode(completion.user_data()) {
            Tag::Operation(key) => Some(self.on_operation(key, result, cqueue::sock_nonempty(flags))),
            Tag::Accept(number) => self.on_accept(ListenerId(number), result, cqueue::more(flags)),
            Tag::Wake => {
                self.on_watch(result, cqueue::more(flags));
                None
            }
            // It has been carried out, or what it was meant for had ended: that shows in the other's
            // completion.
            Tag::Cancel => None,
        }
    }

    fn on_operation(&mut self, key: Key, result: Result<usize, Errno>, more: bool) -> Event {
        let InFlight { token, operation } = self.take_operation(key);
        match operation.target() {
            Target::Socket(socket) => self.sockets.end(socket.key()),
            Target::File(file) => self.files.end(file.key()),
        }
        operation.finish(token, result, more)
    }

    fn take_operation(&mut self, key: Key) -> InFlight {
        self.operations.remove(key).expect("the kernel completes what is in the table, once")
    }

    fn on_accept(&mut self, id: ListenerId, result: Result<usize, Errno>, more: bool) -> Option<Event> {
        // SAFETY: a multishot accept without a file table answers with a new descriptor, which nobody else
        // has.
        let accepted = result.map(|number| unsafe { OwnedFd::from_raw_fd(number as RawFd) });
        let index = self.listener_index(id).expect("a listener stays until its accept has ended");
        let listener = &mut self.listeners[index];
        let stopping = listener.is_stopping();
        match (more, stopping, &accepted) {
            (true, _, _) => {}
            (false, true, _) => drop(self.listeners.swap_remove(index)),
            (false, false, Ok(_)) => listener.on_ended(),
            (false, false, Err(_)) => listener.on_failed(clock::monotonic_ns()),
        }
        match accepted {
            Ok(socket) if !stopping => self.on_accepted(id, socket),
            Ok(_) => {
                self.counters.accepts_refused += 1;
                None
            }
            Err(errno) if !stopping => Some(Event::AcceptFailed { listener: id, errno }),
            Err(_) => None,
        }
    }

    /// Takes a new connection in, or closes it at once when all slots are taken.
    fn on_accepted(&mut self, listener: ListenerId, socket: OwnedFd) -> Option<Event> {
        match self.sockets.insert(socket) {
            Ok(key) => {
                if let Some(socket) = self.sockets.peek(key) {
                    socket::send_without_delay(socket);
                }
                Some(Event::Accepted { listener, socket: SocketId::from_key(key) })
            }
            Err(refused) => {
                drop(refused);
                self.counters.accepts_refused += 1;
                None
            }
        }
    }

    /// The eventfd was written to, which has ended a sleep; the note itself lies with the sleeper.
    fn on_watch(&mut self, result: Result<usize, Errno>, more: bool) {
        let expected = matches!(result, Ok(_) | Err(Errno(libc::ECANCELED)));
        assert!(expected, "an eventfd can be polled: {result:?}");
        self.watching = more;
    }

    fn listener_index(&self, id: ListenerId) -> Option<usize> {
        self.listeners.iter().position(|listener| listener.id() == id)
    }

    /// What the kernel may still complete.
    fn held_by_kernel(&self) -> usize {
        let accepts = self.listeners.iter().filter(|listener| listener.is_armed()).count();
        self.operations.len() + accepts + usize::from(self.watching)
    }

    /// Cancels all that is in flight and drops the events, until nothing is left. `false` when time ran out.
    fn drain(&mut self) -> bool {
        let give_up_ns = clock::monotonic_ns() + DRAIN_NS_MAX;
        let mut cancel_at_ns = 0;
        loop {
            while let Some(event) = self.next_event() {
                drop(event);
            }
            if self.held_by_kernel() == 0 {
                return true;
            }
            let now_ns = clock::monotonic_ns();
            if now_ns >= give_up_ns {
                return false;
            }
            // Not in each pass: a cancellation's own answer ends a wait.
            if now_ns >= cancel_at_ns && self.make_room() {
                self.push_own(&submission::cancel_all());
                cancel_at_ns = now_ns + DRAIN_STEP_NS;
            }
            self.ring.wait(Some(DRAIN_STEP_NS));
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        if !self.drain() {
            // The kernel still writes to this memory (a disk that does not answer). Better lost than reused.
            mem::forget(mem::replace(&mut self.operations, Table::new(0, GENERATIONS)));
        }
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = formatter.debug_struct("Reactor");
        fields.field("ring", &self.ring).field("operations", &self.operations.len());
        fields.field("sockets", &self.sockets.len()).field("files", &self.files.len());
        fields.field("listeners", &self.listeners).field("counters", &self.counters);
        fields.finish_non_exhaustive()
    }
}
