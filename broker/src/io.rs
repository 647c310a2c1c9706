//! The seam between thinking and doing: what a shard asks of the outside, and what the outside tells it.
//!
//! All of it is data in closed enums. The event loop carries it to the ring in production; the simulator carries
//! it to a hostile disk and network in tests. Buffers travel with the operation that uses them and come back with
//! its completion, so that no memory is shared with the kernel behind the shard's back.

use reactor::memory::{Buffer, SendParts, Slice};

/// The time of one turn of the loop, read once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, from an arbitrary start, in nanoseconds.
    pub monotonic_ns: u64,
    /// Milliseconds since 1970-01-01 UTC; may jump.
    pub wall_ms: u64,
}

/// An accepted connection's socket; the generation tells it from an earlier one in the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Socket {
    /// Index into the table of sockets.
    pub slot: u32,
    /// How often the slot was used before.
    pub generation: u32,
}

/// A file of the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum File {
    /// Two checked copies of what recovery must know first.
    Superblock,
    /// Journal file by number, from 0.
    Journal(u32),
    /// One of the two snapshot files, 0 or 1.
    Snapshot(u8),
    /// A segment of some partition's log, by its number. A number is never used twice.
    Segment(u64),
}

/// Chosen by the shard, given back with the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// A failed operation: the system's error number. `0` stands for a transfer that ended short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoError(pub i32);

impl IoError {
    /// A transfer that ended short of what was asked.
    pub const SHORT: Self = Self(0);
    /// No space left on the device.
    pub const NO_SPACE: Self = Self(28);
}

impl std::fmt::Display for IoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Self::SHORT {
            return f.write_str("the transfer ended short");
        }
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// How a write is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// By a later flush.
    Later,
    /// By the write itself: its completion means durable.
    WithWrite,
}

/// The first bytes of a new file.
pub type FileHeader = [u8; FILE_HEADER_BYTES];
/// Length of what a new file's first page begins with; the rest of the page is zeros.
pub const FILE_HEADER_BYTES: usize = 128;

/// What the shard asks for. Positions and lengths of files are multiples of `PAGE_BYTES`.
#[derive(Debug)]
#[allow(missing_docs, reason = "each variant's sentence names its fields")]
pub enum Op {
    /// Receive what is there into `buffer[start..]`; wait for some if nothing is.
    Receive { socket: Socket, buffer: Buffer, start: usize, poll_first: bool },
    /// Send all parts in order.
    Send { socket: Socket, parts: Box<SendParts> },
    /// End the connection; operations in flight on it complete first, with errors.
    Close { socket: Socket },
    /// Create the file with this length, written with zeros; durable, with its directory entry, on completion.
    PrepareFile { file: File, bytes: u64 },
    /// Make the file at least so long, with all of its space allocated (reads give zeros). It is created if it is not
    /// there, with the first page given by `header` and zeros; durable, with its directory entry, on completion.
    Allocate { file: File, bytes: u64, header: Option<Box<FileHeader>> },
    /// Give back the space behind `bytes`; nothing tells when, and a failure costs space only.
    Shrink { file: File, bytes: u64 },
    /// Remove the file; durable on completion.
    Remove { file: File },
    /// Make durable every write to any file of the directory that completed before this was issued.
    SyncAll { token: Token },
    /// Read `bytes` into the start of the buffer.
    Read { token: Token, file: File, position: u64, buffer: Buffer, bytes: usize },
    /// Write the slice.
    Write { token: Token, file: File, position: u64, data: Slice, sync: Sync },
    /// Make durable every write to the file that completed before this was issued.
    Flush { token: Token, file: File },
}

/// What the outside tells the shard.
#[derive(Debug)]
#[allow(missing_docs, reason = "each variant's sentence names its fields")]
pub enum Completion {
    /// A new connection; the shard answers with its first `Op::Receive`, or `Op::Close`.
    Accepted { socket: Socket },
    /// `result` bytes lie in `buffer[start..]`; 0 says that the peer closed. `more`: the socket has more.
    Received { socket: Socket, buffer: Buffer, start: usize, result: Result<usize, IoError>, more: bool },
    /// All parts were sent, or the connection is broken.
    Sent { socket: Socket, parts: Box<SendParts>, result: Result<(), IoError> },
    /// The file is there, or could not be made.
    FilePrepared { file: File, result: Result<(), IoError> },
    /// The file is at least `bytes` long and all of that is allocated, or that could not be done.
    Allocated { file: File, bytes: u64, result: Result<(), IoError> },
    /// The file is gone, or could not be removed.
    Removed { file: File, result: Result<(), IoError> },
    /// Everything that had been written before is durable.
    AllSynced { token: Token, result: Result<(), IoError> },
    /// The bytes asked for lie at the start of the buffer.
    ReadDone { token: Token, buffer: Buffer, result: Result<(), IoError> },
    /// The whole slice was written; durable only as `Sync` says.
    Written { token: Token, result: Result<(), IoError> },
    /// What had been written before the flush is durable.
    Flushed { token: Token, result: Result<(), IoError> },
}

/// A message from another thread of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mail {
    /// Stop: finish what was promised, then say so.
    Shutdown,
}

/// When the next turn is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// The shard has something to do at this monotonic time.
    pub deadline_ns: Option<u64>,
    /// A client's answer has waited for a commit since this time.
    pub commit_since_ns: Option<u64>,
    /// Work is left over: do not sleep.
    pub work_left: bool,
}

const _: () = assert!(size_of::<Op>() <= 64);
const _: () = assert!(size_of::<Completion>() <= 64);
