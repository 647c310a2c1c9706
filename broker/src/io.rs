//! The seam between thinking and doing: what a shard asks of the outside, and what the outside tells it.
//!
//! All of it is data in closed enums. The event loop carries it to the ring in production; the simulator carries
//! it to a hostile disk and network in tests. Buffers travel with the operation that uses them and come back with
//! its completion, so that no memory is shared with the kernel behind the shard's back.

use protocol::ids::{Handle, Offset};
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
    /// What was written before may be lost: a sync has failed. Never tried again.
    pub const NOT_DURABLE: Self = Self(-1);
}

impl std::fmt::Display for IoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Self::SHORT {
            return f.write_str("the transfer ended short");
        }
        if *self == Self::NOT_DURABLE {
            return f.write_str("what was written could not be made durable");
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

/// A sealed segment that a compaction reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactSource {
    /// Its file.
    pub file: File,
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Offset behind its last record.
    pub end_offset: Offset,
    /// Place of its first byte in the partition's log.
    pub base: u64,
    /// Bytes of batches.
    pub bytes: u64,
    /// It was compacted before: its offsets may have gaps.
    pub has_gaps: bool,
}

/// Segments of one partition that are to be rewritten as one, without the records that later ones supersede.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactJob {
    /// Whose they are.
    pub partition: Handle,
    /// Of the data directory.
    pub directory_id: u128,
    /// Where to look for superseding records: segments that follow one another, at least one.
    pub keys: Vec<CompactSource>,
    /// What is to be rewritten: segments that follow one another, at least one, and none behind `keys`.
    pub sources: Vec<CompactSource>,
    /// Number of the segment that takes their place.
    pub number: u64,
    /// Longest batch that may be made.
    pub batch_bytes_max: usize,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

/// What a compaction has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// It went over so many of the sources, from the first on: those up to `keys_to`.
    pub source_count: usize,
    /// Superseding records were looked for up to here: less than was asked for when there are too many keys.
    pub keys_to: Offset,
    /// `None`: nothing of them is superseded, and they stay as they are.
    pub rewritten: Option<Rewritten>,
}

/// What is left of the sources of a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// Bytes of batches in the file that takes their place, which is durable; 0: nothing is left, and there is no file.
    pub bytes: u64,
    /// When its last batch was appended, milliseconds since 1970.
    pub last_ms: u64,
}

/// Why a compaction has done nothing. There is no new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompactError {
    /// A segment cannot be read.
    #[error("cannot read {0:?}: {1}")]
    Read(File, IoError),
    /// The new file cannot be made.
    #[error("cannot write the new segment: {0}")]
    Write(IoError),
    /// What lies in a segment, at a place in its file, is not what was written there.
    #[error("{0:?} is damaged at byte {1}")]
    Damaged(File, u64),
    /// The keys of the first segment alone are more than may be kept in memory.
    #[error("one segment has too many keys")]
    TooManyKeys,
    /// What is left would be longer than what was there: it was compressed.
    #[error("what is left is longer without its compression")]
    NoGain,
    /// There is no memory to work with.
    #[error("no memory")]
    Memory,
}

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
    /// Rewrite segments without the records that are superseded; a new file is durable, with its directory entry, on
    /// completion. Takes long.
    Compact { token: Token, job: Box<CompactJob> },
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
    /// The segments were rewritten, or are as they were.
    Compacted { token: Token, result: Box<Result<Compacted, CompactError>> },
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
