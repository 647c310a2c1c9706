//! The floor: the smallest io_uring program that makes the system calls of the broker's produce path and nothing
//! else. Every figure of Forebay is a ratio to what this program reaches on the same cores in the same minute.
//!
//! Life of a frame: receive, cut by the real frame header, copy the payload into the open block; at the end of the
//! turn pad the block to 4 KiB and write it; flush; answer; send. It does not check records, keep partitions apart,
//! recover, or give anything back. Its invariant: `answered <= durable <= written <= appended`, so an answer leaves
//! only after the flush (or the `RWF_DSYNC` write) that covers its frame.

pub mod disk_only;

mod answers;
mod connection;
mod disk;
mod ring;
mod server;
mod waiting;

use std::error::Error;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use core_affinity::CoreId;
use protocol::limits::{FRAME_BYTES_MAX, PARTITIONS_PER_TOPIC_MAX};

use crate::disk::{BLOCK_ALIGNMENT, BLOCKS_IN_FLIGHT_MAX, DATA_FILE_NAME};
use crate::ring::Ring;
use crate::server::Server;

/// Answers produce frames with the fewest system calls that make them durable
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Core to pin the thread to; unpinned if absent
    #[arg(long)]
    pub core: Option<usize>,
    /// What has to happen before an answer
    #[arg(long, value_enum, default_value_t = Durability::Flush)]
    pub durability: Durability,
    /// What the thread does when there is nothing to do
    #[arg(long, value_enum, default_value_t = Waiting::Adaptive)]
    pub waiting: Waiting,
    /// Directory of the data file; a fresh one below the current directory if absent
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Length of the data file, written round and round; a multiple of 4096
    #[arg(long, default_value_t = 1 << 30)]
    pub file_bytes: u64,
    /// Receive buffer of each connection, and so the longest frame; a multiple of 4096
    #[arg(long, default_value_t = 1 << 20)]
    pub receive_bytes: usize,
    /// Blocks that may be sealed and not yet durable
    #[arg(long, default_value_t = 4)]
    pub blocks_in_flight: usize,
    /// Partitions that every topic is said to have
    #[arg(long, default_value_t = 8)]
    pub partitions: u16,
}

impl Options {
    /// The same with a data directory that exists: the named one, else a fresh one below the current directory.
    /// Without durability there is no file, and nothing changes.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn with_data_dir(mut self) -> Result<Self, FloorError> {
        if self.durability != Durability::None {
            let made = disk::make_data_dir(self.data_dir.as_deref());
            self.data_dir = Some(made.map_err(FloorError::doing("make the data directory"))?);
        }
        Ok(self)
    }

    /// The file that blocks are written to; `None` without durability, and before `with_data_dir` chose a directory.
    #[must_use]
    pub fn data_file(&self) -> Option<PathBuf> {
        if self.durability == Durability::None {
            return None;
        }
        self.data_dir.as_ref().map(|directory| directory.join(DATA_FILE_NAME))
    }

    fn check(&self) -> Result<(), FloorError> {
        let is_aligned = |bytes: u64| bytes.is_multiple_of(BLOCK_ALIGNMENT as u64);
        if !(BLOCK_ALIGNMENT..=FRAME_BYTES_MAX).contains(&self.receive_bytes)
            || !is_aligned(self.receive_bytes as u64)
        {
            return Err(FloorError::Option("--receive-bytes must be a multiple of 4096, up to 16 MiB"));
        }
        if !(1..=BLOCKS_IN_FLIGHT_MAX).contains(&self.blocks_in_flight) {
            return Err(FloorError::Option("--blocks-in-flight must be 1 to 64"));
        }
        // A block must not be written over one that is still in flight.
        let file_bytes_min = (self.blocks_in_flight + 1) * disk::block_bytes(self.receive_bytes);
        if self.file_bytes < file_bytes_min as u64 || !is_aligned(self.file_bytes) {
            let rule = "--file-bytes must be a multiple of 4096, and more than the longest blocks in flight";
            return Err(FloorError::Option(rule));
        }
        if !(1..=PARTITIONS_PER_TOPIC_MAX).contains(&u32::from(self.partitions)) {
            return Err(FloorError::Option("--partitions must be 1 to 4096"));
        }
        Ok(())
    }
}

/// What has to happen before an answer.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A plain write, then an `FSYNC(DATASYNC)` that was issued after it had completed
    Flush,
    /// A write with `RWF_DSYNC`
    Sync,
    /// Nothing: no disk at all, the payload is not even copied
    None,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flush => "flush",
            Self::Sync => "sync",
            Self::None => "none",
        })
    }
}

/// What the thread does when there is nothing to do; the broker has the same three.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Spins while answers wait for a commit (at most 1 ms each) and 50 us after a completion, then sleeps
    Adaptive,
    /// Sleeps in the kernel
    Park,
    /// Never sleeps
    Busy,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adaptive => "adaptive",
            Self::Park => "park",
            Self::Busy => "busy",
        })
    }
}

/// Why the floor stopped, or did not start.
#[derive(Debug)]
pub enum FloorError {
    /// An option is out of its bounds; says which, and what they are.
    Option(&'static str),
    /// Not a core that this process may run on.
    Core(usize),
    /// A system call failed; says what was being done.
    System {
        /// Completes the sentence "cannot ...".
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl FloorError {
    pub(crate) fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::System { doing, error }
    }
}

impl fmt::Display for FloorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option(rule) => f.write_str(rule),
            Self::Core(core) => write!(f, "core {core} is not one that this process may run on"),
            Self::System { doing, error } => write!(f, "cannot {doing}: {error}"),
        }
    }
}

impl Error for FloorError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::System { error, .. } => Some(error),
            Self::Option(_) | Self::Core(_) => None,
        }
    }
}

/// Serves on the calling thread until the process is killed; calls `ready` once it listens and its file is prepared.
///
/// # Errors
/// An option out of bounds, a system call that failed at start, or a write or flush that failed later. It does not
/// return otherwise. Its memory stays allocated then, because the kernel may still be writing to it.
pub fn run(options: &Options, ready: impl FnOnce(SocketAddr)) -> Result<(), FloorError> {
    options.check()?;
    let options = options.clone().with_data_dir()?;
    pin(options.core)?;
    let listener = TcpListener::bind(options.listen).map_err(FloorError::doing("listen"))?;
    let address = listener.local_addr().map_err(FloorError::doing("read the listener's address"))?;
    let mut uring = ring::build().map_err(FloorError::doing("set up the ring"))?;
    let ring = Ring::new(&mut uring).map_err(FloorError::doing("register the ring"))?;
    // Every buffer that an operation may point to lives in the server, and outlives the ring by never being dropped.
    let mut server = ManuallyDrop::new(Server::new(&options, listener, ring)?);
    ready(address);
    server.run()
}

/// Pins the calling thread. The ring's kernel workers are not pinned along: that costs 20 to 30 % of throughput.
pub(crate) fn pin(core: Option<usize>) -> Result<(), FloorError> {
    let Some(id) = core else { return Ok(()) };
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    if !allowed.contains(&CoreId { id }) || !core_affinity::set_for_current(CoreId { id }) {
        return Err(FloorError::Core(id));
    }
    Ok(())
}
