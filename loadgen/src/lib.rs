//! Forebay's load generator: open-loop latency, throughput, and a check of every acknowledged record.
//!
//! It drives its load from the reactor, on one pinned thread, so that it is not what limits a measurement; it
//! measures latency from when a frame should have been sent; and it says so when a figure is worth nothing.
//!
//! | module | what it is |
//! |---|---|
//! | `plan`, `pace`, `stamp`, `template`, `content`, `ring`, `connection`, `subscriber` | pure: what to send when, and what the answers mean |
//! | `outbox`, `link`, `setup`, `driver`, `tally` | the loop on the reactor, and what it counts |
//! | `control`, `target`, `load` | everything around a run that is not measured |
//! | `latency`, `throughput`, `verify`, `checker`, `compare`, `percentiles`, `report`, `tables` | the commands, and what they say |
#![forbid(unsafe_code)]

pub mod cli;

mod checker;
mod compare;
mod connection;
mod content;
mod control;
mod driver;
mod internal;
mod latency;
mod link;
mod load;
mod outbox;
mod pace;
mod percentiles;
mod plan;
mod report;
mod ring;
mod run;
mod setup;
mod stamp;
mod subscriber;
mod tables;
mod tally;
mod target;
mod template;
mod throughput;
mod verify;

pub use run::run;
