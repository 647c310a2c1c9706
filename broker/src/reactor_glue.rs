//! The glue: operations of the shard to the reactor, its events back.
//!
//! It knows which descriptor a file name stands for, and puts into tokens what a completion must say again.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;

use reactor::{Errno, Event, FileId, Operation, Reactor, SocketId, Token as ReactorToken, WriteSync};

use crate::io::{Completion, File, IoError, Op, Socket, Sync, Token};

/// Joins one shard to one reactor.
#[derive(Debug, Default)]
pub struct Glue {
    files: BTreeMap<File, FileId>,
    /// What the kernel did not take for the moment, in order. Bounded as all operations are: by what connections and
    /// disk may have in flight.
    backlog: VecDeque<(ReactorToken, Operation)>,
}

/// What the ring cannot do itself.
#[derive(Debug)]
pub struct PrepareRequest {
    /// The file to make.
    pub file: File,
    /// Its length.
    pub bytes: u64,
}

impl Glue {
    /// Makes an opened file known.
    pub fn add_file(&mut self, reactor: &mut Reactor, file: File, descriptor: OwnedFd) {
        self.files.insert(file, reactor.add_file(descriptor));
    }

    /// Hands an operation to the reactor. Gives back what it cannot do.
    pub fn queue(&mut self, reactor: &mut Reactor, op: Op) -> Option<PrepareRequest> {
        let (token, operation) = match op {
            Op::Receive { socket, buffer, start, poll_first } => {
                let operation = Operation::Receive { socket: id_of(socket), buffer, start, poll_first };
                (token_of_socket(socket), operation)
            }
            Op::Send { socket, parts } => {
                (token_of_socket(socket), Operation::Send { socket: id_of(socket), parts })
            }
            Op::Close { socket } => {
                reactor.close(id_of(socket));
                return None;
            }
            Op::PrepareFile { file, bytes } => return Some(PrepareRequest { file, bytes }),
            Op::Read { token, file, position, buffer, bytes } => {
                (disk_token(token, bytes), Operation::Read { file: self.id(file), position, buffer, bytes })
            }
            Op::Write { token, file, position, data, sync } => {
                let sync = match sync {
                    Sync::Later => WriteSync::None,
                    Sync::WithWrite => WriteSync::Data,
                };
                (disk_token(token, 0), Operation::Write { file: self.id(file), position, data, sync })
            }
            Op::Flush { token, file } => (disk_token(token, 0), Operation::Flush { file: self.id(file) }),
        };
        self.backlog.push_back((token, operation));
        self.queue_backlog(reactor);
        None
    }

    /// Hands on what was kept back. Returns whether something is still kept.
    pub fn queue_backlog(&mut self, reactor: &mut Reactor) -> bool {
        while let Some((token, operation)) = self.backlog.pop_front() {
            if let Err(operation) = reactor.queue(token, operation) {
                self.backlog.push_front((token, operation));
                break;
            }
        }
        !self.backlog.is_empty()
    }

    fn id(&self, file: File) -> FileId {
        *self.files.get(&file).expect("a file is opened before it is used")
    }

    /// The shard's completion of an event; `None` for what does not concern it.
    #[must_use]
    pub fn completion(&self, event: Event) -> Option<Completion> {
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
                let bytes = (token.0 >> READ_LENGTH_SHIFT & READ_LENGTH_MASK) as usize * READ_LENGTH_UNIT;
                let token = Token(token.0 & TOKEN_MASK_READ);
                Completion::ReadDone { token, buffer, result: whole(result, bytes) }
            }
            Event::Written { token, data, result } => {
                Completion::Written { token: Token(token.0), result: whole(result, data.len()) }
            }
            Event::Flushed { token, result } => {
                Completion::Flushed { token: Token(token.0), result: result.map_err(error_of) }
            }
            Event::Woken => return None,
        })
    }
}

/// A read's token also holds its length in pages, so that a short one is seen; its own token is a file's number.
const READ_LENGTH_SHIFT: u32 = 40;
const READ_LENGTH_MASK: u64 = 0xFFFF;
const READ_LENGTH_UNIT: usize = 4096;
const TOKEN_MASK_READ: u64 = (1 << READ_LENGTH_SHIFT) - 1;

fn disk_token(token: Token, read_bytes: usize) -> ReactorToken {
    let length = (read_bytes / READ_LENGTH_UNIT) as u64;
    if length > 0 {
        assert!(token.0 <= TOKEN_MASK_READ);
        assert!(length <= READ_LENGTH_MASK);
    }
    ReactorToken(token.0 | length << READ_LENGTH_SHIFT)
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

/// A transfer that ended short is an error.
fn whole(result: Result<usize, Errno>, bytes: usize) -> Result<(), IoError> {
    match result {
        Ok(done) if done == bytes => Ok(()),
        Ok(_) => Err(IoError::SHORT),
        Err(errno) => Err(error_of(errno)),
    }
}
