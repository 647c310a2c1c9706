//! What a reactor can be asked to do, and what it answers.
//!
//! Both are data in closed enums. An operation owns the memory that the kernel works on, so nothing can be
//! freed or changed too early; its event brings all of it back, whatever the outcome. Each queued operation
//! yields exactly one event. Short results are passed on as they are: what they mean is the caller's to
//! decide.

use std::fmt;
use std::io;

use crate::memory::{Buffer, Slice};
use crate::parts::SendParts;
use crate::table::Key;

/// Offsets, lengths and addresses of direct I/O are multiples of this at least; many files want 4,096.
pub const DIRECT_ALIGNMENT_MIN: usize = 512;

/// A file of one reactor. Goes stale with `remove_file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub u32);

/// Slots of files take the low half of a [`FileId`], generations the high half.
const FILE_SLOT_BITS: u32 = 16;
/// Most files of one reactor that are open at once.
pub(crate) const FILES_MAX: u32 = 1 << FILE_SLOT_BITS;
/// Generations of a file's slot.
pub(crate) const FILE_GENERATIONS: u32 = 1 << (u32::BITS - FILE_SLOT_BITS);

impl FileId {
    pub(crate) fn from_key(key: Key) -> Self {
        assert!(key.slot < FILES_MAX);
        assert!(key.generation < FILE_GENERATIONS);
        Self((key.generation << FILE_SLOT_BITS) | key.slot)
    }

    pub(crate) fn key(self) -> Key {
        Key { slot: self.0 & (FILES_MAX - 1), generation: self.0 >> FILE_SLOT_BITS }
    }
}

/// A connected socket of one reactor. Goes stale when the socket is gone; slots are used again, ids are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketId {
    /// Place in the reactor's table, below `sockets_max`: good as an index.
    pub slot: u32,
    /// How often the place was emptied before.
    pub generation: u32,
}

impl SocketId {
    pub(crate) fn from_key(key: Key) -> Self {
        Self { slot: key.slot, generation: key.generation }
    }

    pub(crate) fn key(self) -> Key {
        Key { slot: self.slot, generation: self.generation }
    }
}

/// A listening socket of one reactor. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId(pub(crate) u32);

/// The caller's name for an operation. The reactor gives it back and does not look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// Whether a write's event says that the data is on stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteSync {
    /// It does not: a later [`Operation::Flush`] does.
    None,
    /// It does (`RWF_DSYNC`).
    Data,
}

/// One request to the kernel, with all that it works on.
#[derive(Debug)]
pub enum Operation {
    /// Receives once, into `buffer[start..]`.
    Receive {
        /// From where.
        socket: SocketId,
        /// Where to.
        buffer: Buffer,
        /// First byte to fill, below the buffer's capacity.
        start: usize,
        /// Wait for data before trying: right unless the last event said that there is more.
        poll_first: bool,
    },
    /// Sends all parts, in order. One send at a time on a socket: two could interleave.
    Send {
        /// To where.
        socket: SocketId,
        /// What; at least one byte.
        parts: Box<SendParts>,
    },
    /// Reads `bytes` bytes into the beginning of `buffer`.
    Read {
        /// From where.
        file: FileId,
        /// Byte place in the file, aligned.
        position: u64,
        /// Where to.
        buffer: Buffer,
        /// How many, aligned, at most the buffer's capacity.
        bytes: usize,
    },
    /// Writes `data`.
    Write {
        /// To where.
        file: FileId,
        /// Byte place in the file, aligned.
        position: u64,
        /// What; begins and ends aligned in memory, not empty.
        data: Slice,
        /// Whether the event says that it is on stable storage.
        sync: WriteSync,
    },
    /// Makes all writes stable whose events had come when this was queued (`fdatasync`).
    Flush {
        /// Of which file.
        file: FileId,
    },
}

/// What an operation works on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Socket(SocketId),
    File(FileId),
}

impl Operation {
    pub(crate) fn target(&self) -> Target {
        match self {
            Self::Receive { socket, .. } | Self::Send { socket, .. } => Target::Socket(*socket),
            Self::Read { file, .. } | Self::Write { file, .. } | Self::Flush { file } => Target::File(*file),
        }
    }

    /// Asserts what the caller promises about its arguments.
    pub(crate) fn check(&self) {
        match self {
            Self::Receive { buffer, start, .. } => {
                assert!(*start < buffer.capacity(), "a receive into a full buffer");
            }
            Self::Send { parts, .. } => assert!(parts.bytes() > 0, "a send of nothing"),
            Self::Read { position, buffer, bytes, .. } => {
                assert!(position.is_multiple_of(DIRECT_ALIGNMENT_MIN as u64), "read at {position}");
                assert!(bytes.is_multiple_of(DIRECT_ALIGNMENT_MIN), "read of {bytes} bytes");
                assert!(*bytes > 0, "a read of nothing");
                assert!(*bytes <= buffer.capacity(), "{bytes} bytes into {}", buffer.capacity());
            }
            Self::Write { position, data, .. } => {
                assert!(position.is_multiple_of(DIRECT_ALIGNMENT_MIN as u64), "write at {position}");
                assert!(data.len().is_multiple_of(DIRECT_ALIGNMENT_MIN), "write of {} bytes", data.len());
                assert!(data.as_ptr().addr().is_multiple_of(DIRECT_ALIGNMENT_MIN), "write from amid a block");
                assert!(!data.is_empty(), "a write of nothing");
            }
            Self::Flush { .. } => {}
        }
    }

    /// Turns the ended operation into its event.
    pub(crate) fn finish(self, token: Token, result: Result<usize, Errno>, more: bool) -> Event {
        match self {
            Self::Receive { buffer, start, .. } => Event::Received { token, buffer, start, result, more },
            Self::Send { parts, .. } => Event::Sent { token, parts, result },
            Self::Read { buffer, .. } => Event::ReadDone { token, buffer, result },
            Self::Write { data, .. } => Event::Written { token, data, result },
            Self::Flush { .. } => Event::Flushed { token, result: result.map(|_| ()) },
        }
    }
}

/// What has happened.
#[derive(Debug)]
pub enum Event {
    /// A connection has come in; its socket blocks, and sends without delay (`TCP_NODELAY`).
    Accepted {
        /// Where it came in.
        listener: ListenerId,
        /// The new socket.
        socket: SocketId,
    },
    /// Connections cannot be taken at the moment. The listener tries again by itself, after a pause.
    AcceptFailed {
        /// Which one.
        listener: ListenerId,
        /// Why: mostly `EMFILE` or `ENFILE`, too many open files.
        errno: Errno,
    },
    /// A receive has ended.
    Received {
        /// The caller's name for it.
        token: Token,
        /// The buffer, which the bytes were added to.
        buffer: Buffer,
        /// Where they begin.
        start: usize,
        /// How many; zero when the peer will send no more. `EBADF` when the socket was gone already.
        result: Result<usize, Errno>,
        /// The socket has more to give at once: receive again without `poll_first`.
        more: bool,
    },
    /// A send has ended.
    Sent {
        /// The caller's name for it.
        token: Token,
        /// The parts, as they were.
        parts: Box<SendParts>,
        /// Bytes sent. Fewer than `parts.bytes()` mean that the connection broke amid. `EBADF` when the
        /// socket was gone already.
        result: Result<usize, Errno>,
    },
    /// A read has ended.
    ReadDone {
        /// The caller's name for it.
        token: Token,
        /// The buffer that was read into.
        buffer: Buffer,
        /// Bytes read: fewer than asked for at the end of the file.
        result: Result<usize, Errno>,
    },
    /// A write has ended.
    Written {
        /// The caller's name for it.
        token: Token,
        /// What was to be written.
        data: Slice,
        /// Bytes written.
        result: Result<usize, Errno>,
    },
    /// A flush has ended.
    Flushed {
        /// The caller's name for it.
        token: Token,
        /// Whether all is stable. After an error nothing is known: a second flush proves nothing.
        result: Result<(), Errno>,
    },
    /// A [`Waker`](crate::Waker) was used since the last event of this kind.
    Woken,
}

/// An error number of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&io::Error::from_raw_os_error(self.0), formatter)
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

/// A completion's number: not negative is a count, negative an error.
pub(crate) fn result_of(number: i32) -> Result<usize, Errno> {
    usize::try_from(number).map_err(|_| Errno(-number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{PAGE, Pool};

    #[test]
    fn file_ids_hold_slot_and_generation() {
        for key in [
            Key { slot: 0, generation: 0 },
            Key { slot: FILES_MAX - 1, generation: 0 },
            Key { slot: 5, generation: FILE_GENERATIONS - 1 },
        ] {
            assert_eq!(FileId::from_key(key).key(), key);
        }
    }

    #[test]
    fn completion_numbers_are_counts_or_errors() {
        assert_eq!(result_of(0), Ok(0));
        assert_eq!(result_of(4096), Ok(4096));
        assert_eq!(result_of(-libc::EIO), Err(Errno(libc::EIO)));
        assert!(Errno(libc::ENOSPC).to_string().contains("No space left"));
    }

    #[test]
    #[should_panic(expected = "write from amid a block")]
    fn unaligned_write_is_refused() {
        let data = Pool::new(1).unwrap().buffer(2 * PAGE).unwrap().freeze(8..8 + PAGE);
        Operation::Write { file: FileId(0), position: 0, data, sync: WriteSync::None }.check();
    }

    #[test]
    #[should_panic(expected = "a receive into a full buffer")]
    fn receive_needs_room() {
        let buffer = Pool::new(1).unwrap().buffer(PAGE).unwrap();
        let socket = SocketId { slot: 0, generation: 0 };
        Operation::Receive { socket, buffer, start: PAGE, poll_first: false }.check();
    }
}
