//! Every bound of the client, with one line of why.
//!
//! What the broker grants in `Hello` lies below the protocol's own limits; these bound what the client adds.

use protocol::limits::{CLIENT_NAME_BYTES_MAX, FRAME_BYTES_MAX, TOPIC_NAME_BYTES_MAX};

/// Room that a batch leaves in a frame, for the header and envelope of an answer that it may come back in: the broker
/// refuses longer ones.
pub const ANSWER_OVERHEAD_BYTES: usize = 4 << 10;
/// Room in the receive buffer behind one frame of the granted length: the next frames arrive with the last bytes.
pub const RECEIVE_SLACK_BYTES: usize = 64 << 10;
/// Longest frame before `Hello` was answered: the answer, a heartbeat or a goodbye.
pub const HELLO_FRAME_BYTES_MAX: u32 = 16 << 10;
/// Silence after which a peer that has not answered `Hello` counts as dead.
pub const HELLO_WAIT_NS: u64 = 10_000_000_000;
/// Silent heartbeat intervals after which a peer counts as dead; docs/PROTOCOL.md fixes it.
pub const SILENT_INTERVALS_MAX: u64 = 3;

/// Unanswered requests other than produce; a search among them stays short.
pub const OTHER_REQUESTS_MAX: usize = 256;
/// Longest frame of a request other than produce: a name, a few numbers, FlatBuffers around them.
pub const CONTROL_FRAME_BYTES_MAX: usize = 1 << 10;
/// Bytes of such requests that may wait for the socket, beside the produce window.
pub const CONTROL_BYTES_MAX: usize = 512 << 10;
/// Produce requests between the oldest unanswered and the newest; the ring of pending requests grows no further.
pub const PRODUCE_SPAN_MAX: usize = 262_144;
/// Subscriptions of one connection, as many as the broker allows.
pub const SUBSCRIPTIONS_MAX: usize = 1_024;

/// Gates that the broker keeps apart on one connection; beyond it the whole connection is one gate.
pub const GATES_MAX: usize = 64;
/// Results of a producer that nobody has taken; then it takes no more records.
pub const RESULTS_MAX: usize = 65_536;
/// Buffers that a producer keeps for its next batches.
pub const FREE_BUFFERS_MAX: usize = 256;
/// First wait before a refused batch is sent again.
pub const RETRY_US_MIN: u64 = 500;
/// Longest wait before a refused batch is sent again, whatever the broker hints.
pub const RETRY_US_MAX: u64 = 1_000_000;

/// First wait before a new connection is tried.
pub const RECONNECT_US_MIN: u64 = 10_000;
/// Longest wait before a new connection is tried.
pub const RECONNECT_US_MAX: u64 = 2_000_000;

/// Least room that the blocking driver wants for one read.
pub const READ_BYTES_MIN: usize = 16 << 10;
/// Topics that one listing collects: as many slots as a handle can name.
pub const TOPICS_LISTED_MAX: usize = 65_536;

const _: () = assert!(OTHER_REQUESTS_MAX * CONTROL_FRAME_BYTES_MAX < CONTROL_BYTES_MAX);
const _: () = assert!(TOPIC_NAME_BYTES_MAX + 256 < CONTROL_FRAME_BYTES_MAX);
const _: () = assert!(CLIENT_NAME_BYTES_MAX + 256 < CONTROL_FRAME_BYTES_MAX);
const _: () = assert!((HELLO_FRAME_BYTES_MAX as usize) < FRAME_BYTES_MAX);
const _: () = assert!(READ_BYTES_MIN <= RECEIVE_SLACK_BYTES);
const _: () = assert!(RETRY_US_MIN < RETRY_US_MAX);
const _: () = assert!(RECONNECT_US_MIN < RECONNECT_US_MAX);
