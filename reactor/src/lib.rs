//! One io_uring for each pinned thread: ring, memory, files, sockets, wake-ups.
//!
//! A [`Reactor`] takes [`Operation`]s that own the memory they work on, submits them with one system call for
//! each turn of the caller's loop, and gives everything back in [`Event`]s. It knows nothing of messaging,
//! decides nothing, and retries nothing but its own accepts. Beside it stand what it works on ([`memory`],
//! [`parts`]) and what is asked of the system outside the ring (the other modules).
//!
//! Invariant of the hand-written `unsafe`: memory that the kernel may touch is owned by the reactor from
//! submission to the last completion, and leaked rather than freed if the kernel does not let go.

pub mod affinity;
pub mod clock;
pub mod file;
pub mod memory;
pub mod parts;
pub mod probe;
pub mod process;

mod descriptors;
mod listener;
mod operation;
mod reactor;
mod ring;
mod socket;
mod submission;
mod table;
mod tag;
mod waker;

pub use self::operation::{
    DIRECT_ALIGNMENT_MIN, Errno, Event, FileId, ListenerId, Operation, SocketId, Token, WriteSync,
};
pub use self::reactor::{Config, Counters, Reactor, Wait};
pub use self::socket::connect;
pub use self::waker::Waker;

const _: () = assert!(usize::BITS == 64, "positions and lengths are 64 bits wide throughout");
