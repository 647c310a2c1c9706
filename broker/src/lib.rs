//! Forebay's broker.
//!
//! The shard is a pure state machine (`shard` and everything below it); the event loop, the server and the command
//! line join it to the ring, the files and the user. docs/ARCHITECTURE.md has the map; a test holds the layers.
#![forbid(unsafe_code)]

pub mod bounded;
pub mod catalog;
pub mod cli;
pub mod compact_thread;
pub mod config;
pub mod data_dir;
pub mod durability;
pub mod event_loop;
pub mod file_thread;
pub mod inspect;
pub mod io;
pub mod journal;
pub mod limits;
pub mod log;
pub mod metrics;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod partition;
pub mod preparer;
pub mod reactor_glue;
pub mod server;
pub mod shard;
pub mod sync_thread;
pub mod threads;
pub mod waiting;
