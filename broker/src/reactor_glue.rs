//! The glue: operations of the shard to the reactor and to the threads that may block, their answers back.
//!
//! It knows which descriptor a file name stands for. The superblock and the journal stay open; segments and snapshots
//! are opened when they are used, and closed again when too many are open. An operation on a file that is not open
//! waits for it, in order with the others on that file. While the reactor has an operation on a file, what its
//! completion must say again lies in a table; the place in it is the reactor's token.

mod disk;
mod open_files;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use reactor::{Errno, Event, Operation, Reactor, SocketId, Token as ReactorToken};

use crate::bounded::Slab;
use crate::io::{
    CompactError, CompactJob, Compacted, Completion, File, FileHeader, IoError, Op, Socket, Token,
};
use crate::limits::{CONNECTIONS_MAX, JOURNAL_FILES_MAX, OPERATIONS_MAX};

use self::disk::{Action, DiskOp, InFlight, whole};
use self::open_files::OpenFiles;

/// Most segments and snapshots open at once, if the system allows as many: half of what a reactor can name.
const FILES_OPEN_MAX: u64 = 32_768;
/// With fewer, every operation would open and close files. The system may then refuse some.
const FILES_OPEN_MIN: u64 = 64;
/// Descriptors for all else: files on their way from the file thread (`ANSWERS_WAITING_MAX`, and as many in a group),
/// directories, the ring, logs, the operator's tools.
const DESCRIPTORS_BESIDE: u64 = 256;

const _: () = assert!(FILES_OPEN_MIN < FILES_OPEN_MAX);
// The reactor names 65,536 files. Beyond the limit only files in use stay open.
const _: () = assert!(FILES_OPEN_MAX + JOURNAL_FILES_MAX + (OPERATIONS_MAX as u64) < 65_536);

/// Joins one shard to one reactor.
#[derive(Debug)]
pub struct Glue {
    files: OpenFiles,
    /// Operations on files that the reactor has, by its token.
    in_flight: Slab<InFlight>,
    /// What the kernel did not take for the moment, in order. Bounded as all operations are: by what connections and
    /// disk may have in flight.
    backlog: VecDeque<(Caller, Operation)>,
    /// Completions that no event stands for, until the loop takes them.
    ready: VecDeque<Completion>,
}

/// Who gets the end of an operation.
#[derive(Clone, Copy, Debug)]
enum Caller {
    Socket(Socket),
    Disk(InFlight),
}

/// What the ring cannot do, or not without blocking: for other threads.
#[derive(Debug)]
pub enum BlockingRequest {
    /// Make a file of zeros.
    Prepare {
        /// The file to make.
        file: File,
        /// Its length.
        bytes: u64,
    },
    /// Change or open a file.
    File(FileRequest),
    /// Make all that was written to any file durable.
    SyncAll {
        /// The shard's name for it.
        token: Token,
    },
    /// Rewrite segments.
    Compact {
        /// The shard's name for it.
        token: Token,
        /// Which, and how.
        job: Box<CompactJob>,
    },
}

/// What the file thread is asked for.
#[derive(Debug)]
pub enum FileRequest {
    /// Make the file at least so long, and make it at all if it is not there.
    Allocate {
        /// Which.
        file: File,
        /// Its length at least.
        bytes: u64,
        /// How a new one begins.
        header: Option<Box<FileHeader>>,
    },
    /// Give back the space behind a length. There is no answer.
    Shrink {
        /// Which.
        file: File,
        /// Its length at most.
        bytes: u64,
    },
    /// Remove the file.
    Remove {
        /// Which.
        file: File,
    },
    /// Open the file, which must be there.
    Open {
        /// Which.
        file: File,
    },
}

/// What those threads answer. Descriptors are opened for direct I/O.
#[derive(Debug)]
#[allow(missing_docs, reason = "each variant's sentence names its fields")]
pub enum BlockingAnswer {
    /// Another file has this name now.
    Prepared { file: File, result: Result<OwnedFd, IoError> },
    /// The file is at least `bytes` long, durably.
    Allocated { file: File, bytes: u64, result: Result<OwnedFd, IoError> },
    /// The file is gone, durably.
    Removed { file: File, result: Result<(), IoError> },
    /// The file is open.
    Opened { file: File, result: Result<OwnedFd, IoError> },
    /// All that had been written is durable.
    AllSynced { token: Token, result: Result<(), IoError> },
    /// The segments were rewritten, or are as they were.
    Compacted { token: Token, result: Box<Result<Compacted, CompactError>> },
}

impl Glue {
    /// A glue that keeps up to `files_open_max` segments and snapshots open.
    #[must_use]
    pub fn new(files_open_max: usize) -> Self {
        Self {
            files: OpenFiles::new(files_open_max),
            in_flight: Slab::new(OPERATIONS_MAX),
            backlog: VecDeque::with_capacity(OPERATIONS_MAX),
            ready: VecDeque::new(),
        }
    }

    /// Whether a file is opened at the start, if it is there, and never closed; the others are opened when they are
    /// used.
    #[must_use]
    pub fn keeps_open(file: File) -> bool {
        OpenFiles::stays_open(file)
    }

    /// Makes an opened file known. A second descriptor of a file that is open is closed.
    pub fn add_file(&mut self, reactor: &mut Reactor, file: File, descriptor: OwnedFd) {
        if self.files.is_open(file) {
            return;
        }
        let id = reactor.add_file(descriptor);
        for op in self.files.add(file, id) {
            let request = self.queue_disk(reactor, op);
            assert!(request.is_none(), "the file is open");
        }
        self.close_excess(reactor);
    }

    /// Hands an operation to the reactor. Gives back what it cannot do.
    pub fn queue(&mut self, reactor: &mut Reactor, op: Op) -> Option<BlockingRequest> {
        match op {
            Op::Receive { socket, buffer, start, poll_first } => {
                let operation = Operation::Receive { socket: id_of(socket), buffer, start, poll_first };
                self.queue_operation(reactor, Caller::Socket(socket), operation);
            }
            Op::Send { socket, parts } => {
                let operation = Operation::Send { socket: id_of(socket), parts };
                self.queue_operation(reactor, Caller::Socket(socket), operation);
            }
            Op::Close { socket } => reactor.close(id_of(socket)),
            Op::Read { token, file, position, buffer, bytes } => {
                let action = Action::Read { position, buffer, bytes };
                return self.queue_disk(reactor, DiskOp { token, file, action });
            }
            Op::Write { token, file, position, data, sync } => {
                let action = Action::Write { position, data, sync };
                return self.queue_disk(reactor, DiskOp { token, file, action });
            }
            Op::Flush { token, file } => {
                return self.queue_disk(reactor, DiskOp { token, file, action: Action::Flush });
            }
            Op::PrepareFile { file, bytes } => return Some(BlockingRequest::Prepare { file, bytes }),
            Op::Allocate { file, bytes, header } => {
                return Some(BlockingRequest::File(FileRequest::Allocate { file, bytes, header }));
            }
            Op::Shrink { file, bytes } => {
                return Some(BlockingRequest::File(FileRequest::Shrink { file, bytes }));
            }
            Op::Remove { file } => {
                // The last descriptor gives the space back, which takes long: that is for the file thread to close.
                self.close(reactor, file);
                return Some(BlockingRequest::File(FileRequest::Remove { file }));
            }
            Op::SyncAll { token } => return Some(BlockingRequest::SyncAll { token }),
            Op::Compact { token, job } => return Some(BlockingRequest::Compact { token, job }),
        }
        None
    }

    /// Hands on what was kept back. Returns whether something is still kept.
    pub fn queue_backlog(&mut self, reactor: &mut Reactor) -> bool {
        while let Some((caller, operation)) = self.backlog.pop_front() {
            if let Err(operation) = self.hand_on(reactor, caller, operation) {
                self.backlog.push_front((caller, operation));
                break;
            }
        }
        !self.backlog.is_empty()
    }

    /// Takes in what a thread has done; `next_ready` then gives the shard's completions of it.
    pub fn on_answer(&mut self, reactor: &mut Reactor, answer: BlockingAnswer) {
        let completion = match answer {
            BlockingAnswer::Prepared { file, result } => {
                let result = result.map(|descriptor| {
                    self.close(reactor, file);
                    self.add_file(reactor, file, descriptor);
                });
                Completion::FilePrepared { file, result }
            }
            BlockingAnswer::Allocated { file, bytes, result } => {
                let result = result.map(|descriptor| self.add_file(reactor, file, descriptor));
                Completion::Allocated { file, bytes, result }
            }
            BlockingAnswer::Removed { file, result } => {
                // An allocation that was under way when the file was removed has opened it once more.
                self.close(reactor, file);
                Completion::Removed { file, result }
            }
            BlockingAnswer::Opened { file, result: Ok(descriptor) } => {
                return self.add_file(reactor, file, descriptor);
            }
            BlockingAnswer::Opened { file, result: Err(error) } => {
                let parked = self.files.fail(file);
                return self.ready.extend(parked.into_iter().map(|op| op.fail(error)));
            }
            BlockingAnswer::AllSynced { token, result } => Completion::AllSynced { token, result },
            BlockingAnswer::Compacted { token, result } => Completion::Compacted { token, result },
        };
        self.ready.push_back(completion);
    }

    /// A completion that does not come from an event, if there is one.
    pub fn next_ready(&mut self) -> Option<Completion> {
        self.ready.pop_front()
    }

    /// The shard's completion of an event; `None` for what does not concern it.
    pub fn completion(&mut self, reactor: &mut Reactor, event: Event) -> Option<Completion> {
        Some(match event {
            Event::Accepted { socket, .. } => Completion::Accepted { socket: socket_of(socket) },
            Event::AcceptFailed { errno, .. } => {
                tracing::warn!(error = %errno, "cannot accept a connection; trying again");
                return None;
            }
            Event::Received { token, buffer, start, result, more } => Completion::Received {
                socket: socket_of_token(token),
                buffer,
                start,
                result: result.map_err(error_of),
                more,
            },
            Event::Sent { token, parts, result } => {
                let result = whole(result, parts.bytes());
                Completion::Sent { socket: socket_of_token(token), parts, result }
            }
            Event::ReadDone { token, buffer, result } => {
                let ended = self.end_disk(reactor, token);
                Completion::ReadDone { token: ended.token, buffer, result: ended.outcome(result) }
            }
            Event::Written { token, result, .. } => {
                let ended = self.end_disk(reactor, token);
                Completion::Written { token: ended.token, result: ended.outcome(result) }
            }
            Event::Flushed { token, result } => {
                let ended = self.end_disk(reactor, token);
                Completion::Flushed { token: ended.token, result: result.map_err(error_of) }
            }
            Event::Woken => return None,
        })
    }

    /// Queues an operation on a file, or keeps it until the file is open. Gives the request to open it, if this is
    /// the first that waits.
    fn queue_disk(&mut self, reactor: &mut Reactor, op: DiskOp) -> Option<BlockingRequest> {
        let file = op.file;
        if let Some(id) = self.files.begin(file) {
            let (in_flight, operation) = op.begin(id);
            self.queue_operation(reactor, Caller::Disk(in_flight), operation);
            return None;
        }
        let is_first = self.files.park(op);
        is_first.then_some(BlockingRequest::File(FileRequest::Open { file }))
    }

    fn queue_operation(&mut self, reactor: &mut Reactor, caller: Caller, operation: Operation) {
        self.backlog.push_back((caller, operation));
        self.queue_backlog(reactor);
    }

    /// Hands one operation to the reactor; gets it back when the reactor takes no more for the moment.
    fn hand_on(
        &mut self,
        reactor: &mut Reactor,
        caller: Caller,
        operation: Operation,
    ) -> Result<(), Operation> {
        match caller {
            Caller::Socket(socket) => reactor.queue(token_of_socket(socket), operation),
            Caller::Disk(in_flight) => {
                // As many places as the reactor has for all operations: full here is full there.
                let Ok(place) = self.in_flight.insert(in_flight) else { return Err(operation) };
                let queued = reactor.queue(ReactorToken(u64::from(place)), operation);
                if queued.is_err() {
                    self.in_flight.remove(place);
                }
                queued
            }
        }
    }

    /// An operation on a file has ended: its file may be closed from now on.
    fn end_disk(&mut self, reactor: &mut Reactor, token: ReactorToken) -> InFlight {
        let ended = self.in_flight.remove(token.0 as u32).expect("each operation ends once");
        self.files.end(ended.file);
        self.close_excess(reactor);
        ended
    }

    fn close(&mut self, reactor: &mut Reactor, file: File) {
        if let Some(id) = self.files.remove(file) {
            reactor.remove_file(id);
        }
    }

    fn close_excess(&mut self, reactor: &mut Reactor) {
        while let Some(id) = self.files.take_excess() {
            reactor.remove_file(id);
        }
    }
}

/// How many segments and snapshots may be open at once in a process that may have `descriptors_max` descriptors and
/// keeps `journal_files` journal files open.
#[must_use]
pub fn files_open_max(descriptors_max: u64, journal_files: u32) -> usize {
    let taken = CONNECTIONS_MAX as u64 + u64::from(journal_files) + DESCRIPTORS_BESIDE;
    descriptors_max.saturating_sub(taken).clamp(FILES_OPEN_MIN, FILES_OPEN_MAX) as usize
}

fn token_of_socket(socket: Socket) -> ReactorToken {
    ReactorToken(u64::from(socket.slot) | u64::from(socket.generation) << 32)
}

fn socket_of_token(token: ReactorToken) -> Socket {
    Socket { slot: token.0 as u32, generation: (token.0 >> 32) as u32 }
}

fn id_of(socket: Socket) -> SocketId {
    SocketId { slot: socket.slot, generation: socket.generation }
}

fn socket_of(socket: SocketId) -> Socket {
    Socket { slot: socket.slot, generation: socket.generation }
}

fn error_of(errno: Errno) -> IoError {
    IoError(errno.0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use reactor::Wait;
    use reactor::memory::{PAGE, Pool};

    use super::*;

    const SEGMENT: File = File::Segment(1);

    fn reactor() -> Reactor {
        Reactor::new(reactor::Config { operations_max: 8, ..reactor::Config::default() }).unwrap()
    }

    /// A file of pages, each filled with its number.
    fn descriptor(directory: &Path, name: &str, pages: u8) -> OwnedFd {
        let contents: Vec<u8> = (0..pages).flat_map(|page| [page; PAGE]).collect();
        fs::write(directory.join(name), contents).unwrap();
        fs::OpenOptions::new().read(true).write(true).open(directory.join(name)).unwrap().into()
    }

    fn read(token: u64, file: File, page: u64, pages: usize) -> Op {
        let buffer = Pool::new(1).unwrap().buffer(pages * PAGE).unwrap();
        let position = page * PAGE as u64;
        Op::Read { token: Token(token), file, position, buffer, bytes: pages * PAGE }
    }

    /// The completion of the next event that has one.
    fn next(glue: &mut Glue, reactor: &mut Reactor) -> Completion {
        loop {
            while let Some(event) = reactor.next_event() {
                if let Some(completion) = glue.completion(reactor, event) {
                    return completion;
                }
            }
            reactor.submit_and_wait(Wait::default());
        }
    }

    fn is_open_request(request: Option<BlockingRequest>, wanted: File) -> bool {
        matches!(request, Some(BlockingRequest::File(FileRequest::Open { file })) if file == wanted)
    }

    #[test]
    fn an_operation_waits_until_its_file_is_open() {
        let directory = tempfile::tempdir().unwrap();
        let (mut glue, mut reactor) = (Glue::new(1), reactor());
        assert!(is_open_request(glue.queue(&mut reactor, read(7, SEGMENT, 1, 1)), SEGMENT));
        assert!(glue.queue(&mut reactor, read(8, SEGMENT, 0, 1)).is_none(), "it is being opened");
        let result = Ok(descriptor(directory.path(), "segment", 2));
        glue.on_answer(&mut reactor, BlockingAnswer::Opened { file: SEGMENT, result });
        assert!(glue.next_ready().is_none());
        let mut seen = Vec::new();
        for _ in 0..2 {
            match next(&mut glue, &mut reactor) {
                Completion::ReadDone { token, buffer, result: Ok(()) } => seen.push((token, buffer[0])),
                other => panic!("{other:?}"),
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, [(Token(7), 1), (Token(8), 0)]);
    }

    #[test]
    fn operations_on_a_file_that_cannot_be_opened_get_its_error() {
        let (mut glue, mut reactor) = (Glue::new(1), reactor());
        assert!(is_open_request(glue.queue(&mut reactor, read(7, SEGMENT, 0, 1)), SEGMENT));
        assert!(glue.queue(&mut reactor, Op::Flush { token: Token(8), file: SEGMENT }).is_none());
        let result = Err(IoError(libc::ENOENT));
        glue.on_answer(&mut reactor, BlockingAnswer::Opened { file: SEGMENT, result });
        let first = glue.next_ready();
        assert!(matches!(first, Some(Completion::ReadDone { token: Token(7), result: Err(_), .. })));
        let second = glue.next_ready();
        assert!(matches!(second, Some(Completion::Flushed { token: Token(8), result: Err(_) })));
        assert!(glue.next_ready().is_none());
        assert!(is_open_request(glue.queue(&mut reactor, read(9, SEGMENT, 0, 1)), SEGMENT));
    }

    #[test]
    fn a_read_across_the_end_of_a_file_is_short() {
        let directory = tempfile::tempdir().unwrap();
        let (mut glue, mut reactor) = (Glue::new(1), reactor());
        glue.add_file(&mut reactor, SEGMENT, descriptor(directory.path(), "segment", 1));
        assert!(glue.queue(&mut reactor, read(7, SEGMENT, 0, 2)).is_none());
        match next(&mut glue, &mut reactor) {
            Completion::ReadDone { token: Token(7), result: Err(IoError::SHORT), .. } => {}
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_beyond_the_limit_is_closed_and_opened_again_when_it_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let (mut glue, mut reactor) = (Glue::new(1), reactor());
        glue.add_file(&mut reactor, SEGMENT, descriptor(directory.path(), "first", 1));
        assert!(glue.queue(&mut reactor, read(7, SEGMENT, 0, 1)).is_none());
        let other = File::Segment(2);
        // The first is in use, so it is the second that is closed.
        glue.add_file(&mut reactor, other, descriptor(directory.path(), "second", 1));
        assert!(is_open_request(glue.queue(&mut reactor, read(8, other, 0, 1)), other));
        assert!(matches!(
            next(&mut glue, &mut reactor),
            Completion::ReadDone { token: Token(7), result: Ok(()), .. }
        ));
        let result = Ok(descriptor(directory.path(), "second", 1));
        glue.on_answer(&mut reactor, BlockingAnswer::Opened { file: other, result });
        assert!(matches!(
            next(&mut glue, &mut reactor),
            Completion::ReadDone { token: Token(8), result: Ok(()), .. }
        ));
        assert!(is_open_request(glue.queue(&mut reactor, read(9, SEGMENT, 0, 1)), SEGMENT));
    }

    #[test]
    fn what_more_descriptors_allow_has_bounds() {
        assert_eq!(files_open_max(1_024, 16), FILES_OPEN_MIN as usize);
        assert_eq!(files_open_max(4_096, 16), 4_096 - CONNECTIONS_MAX - 16 - 256);
        assert_eq!(files_open_max(1 << 30, 16), FILES_OPEN_MAX as usize);
    }
}
