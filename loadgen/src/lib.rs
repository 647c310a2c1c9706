//! Forebay's load generator: open-loop latency, throughput, and a check of every acknowledged record.
//!
//! It drives its load from the reactor, on one pinned thread, so that it is not what limits a measurement; it
//! measures latency from when a frame should have been sent; and it says so when a figure is worth nothing.
//!
//! | module | what it is |
//! |---|---|
//! | `arrivals`, `pace`, `stamp`, `template`, `content`, `payload`, `ring`, `connection`, `service`, `subscriber`, `ledger` | pure: what to send when, and what the answers mean |
//! | `outbox`, `link`, `setup`, `driver`, `tally`, `interval` | the loop on the reactor, and what it counts |
//! | `control`, `target`, `load`, `kill`, `watch`, `environment`, `folder`, `hlog` | everything around a run that is not measured |
//! | `scenario`, `fluid`, `result`, `criteria`, `assertion` | runs of phases, what arithmetic says of them, what is asked of them |
//! | `latency`, `throughput`, `verify`, `peak_shave`, `produce`, `replay`, `scenario_file`, `sweep`, `find_max`, `calibrate`, `stored`, ... | the commands |
//! | `compare`, `percentiles`, `report`, `tables`, `run_table`, `html`, `plot`, `live` | what they say |
#![forbid(unsafe_code)]

pub mod cli;

mod arrivals;
mod assertion;
mod burst_sweep;
mod calibrate;
mod checker;
mod compare;
mod connection;
mod content;
mod control;
mod criteria;
mod driver;
mod environment;
mod find_max;
mod fluid;
mod folder;
mod hlog;
mod html;
mod internal;
mod interval;
mod kill;
mod latency;
mod ledger;
mod link;
mod live;
mod load;
mod outbox;
mod pace;
mod payload;
mod peak_shave;
mod percentiles;
mod plot;
mod produce;
mod replay;
mod report;
mod result;
mod ring;
mod run;
mod run_table;
mod scenario;
mod scenario_file;
mod service;
mod setup;
mod stamp;
mod stored;
mod stream;
mod subscriber;
mod sweep;
mod tables;
mod tally;
mod target;
mod template;
mod throughput;
mod verify;
mod watch;

pub use run::run;
