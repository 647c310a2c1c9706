//! The other end of Forebay.
//!
//! `connection` speaks the protocol without sockets or clocks: bytes in, events out, requests in, bytes out.
//! `producer` turns records into batches and keeps their order, again without I/O. `blocking` drives both over a
//! `TcpStream` for programs that have a thread to spare. Anything that was sent and never answered is reported as
//! *unknown*; nothing here guesses, and nothing that may have been stored is sent again.
#![forbid(unsafe_code)]

pub mod blocking;
pub mod connection;
pub mod delivered;
#[cfg(test)]
mod fake_broker;
pub mod limits;
pub mod producer;
pub mod reconnect;
