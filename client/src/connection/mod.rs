//! One connection without sockets and clocks.
//!
//! Whoever drives it hands in the bytes that arrive and the time, takes events, and moves `transmit` to the socket:
//!
//! ```text
//! socket -> receive_space, on_received -> next_event -> requests, on_tick -> transmit, transmitted -> socket
//! ```
//!
//! Take all events before handing in more bytes. Whatever was asked is answered by exactly one event, or is unknown
//! when the connection ends; a frame that lies ends it, and what came before the lie is still given out.

mod decode;
mod error;
mod event;
mod ledger;
mod receive;
mod requests;
#[cfg(test)]
mod tests;
mod transmit;

use flatbuffers::FlatBufferBuilder;
use protocol::frame::{FrameHeader, Opcode};
use protocol::ids::CorrelationId;
use protocol::limits::{CLIENT_NAME_BYTES_MAX, PROTOCOL_VERSION};
use protocol::wire;

pub use error::{ConnectionError, RequestError};
pub use event::{
    DamagedOffsets, EndReason, Event, Grants, PartitionDescription, Refusal, Stats, SubscribedPartition,
    TopicDescription, TopicList, TopicSettings, TopicSummary, ValidOffsets,
};
pub use requests::{CreditAmount, FetchRange, Start, SubscribeRequest};

use crate::limits::{HELLO_FRAME_BYTES_MAX, HELLO_WAIT_NS, SILENT_INTERVALS_MAX};
use decode::decode;
use ledger::Ledger;
use receive::ReceiveBuffer;
use transmit::TransmitBuffer;

/// What `Hello` says about this side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// Shown in the broker's logs; at most `CLIENT_NAME_BYTES_MAX` bytes.
    pub client_name: String,
    /// The shard that should own the connection; any if `None`.
    pub shard: Option<u16>,
}

/// One connection. Times are nanoseconds of one monotonic clock, whose start does not matter.
#[derive(Debug)]
pub struct Connection {
    receive: ReceiveBuffer,
    transmit: TransmitBuffer,
    ledger: Ledger,
    /// Set by the first lie or by silence; nothing is accepted afterwards.
    failure: Option<ConnectionError>,
    /// The latest time that was handed in.
    now_ns: u64,
    last_heard_ns: u64,
    last_sent_ns: u64,
}

impl Connection {
    /// A connection whose `Hello` waits in `transmit`.
    #[must_use]
    pub fn new(now_ns: u64, options: &ConnectionOptions) -> Self {
        assert!(options.client_name.len() <= CLIENT_NAME_BYTES_MAX);
        let mut transmit = TransmitBuffer::new();
        let mut ledger = Ledger::new();
        let correlation = ledger.begin_other(Opcode::Hello, 0, transmit.end_position());
        transmit.push_envelope(FrameHeader::new(Opcode::Hello, correlation, 0), |builder| {
            hello(builder, options)
        });
        Self {
            receive: ReceiveBuffer::new(HELLO_FRAME_BYTES_MAX),
            transmit,
            ledger,
            failure: None,
            now_ns,
            last_heard_ns: now_ns,
            last_sent_ns: now_ns,
        }
    }

    /// What `Hello` granted; `None` before it was answered.
    #[must_use]
    pub fn grants(&self) -> Option<&Grants> {
        self.ledger.grants()
    }

    /// Unanswered requests, credit not counted.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.ledger.requests_in_flight()
    }

    /// Bytes of unanswered produce frames, headers included.
    #[must_use]
    pub fn produce_bytes_in_flight(&self) -> usize {
        self.ledger.produce_bytes_in_flight()
    }

    /// Whether a request is unanswered and every byte of it still waits here: then the broker cannot know of it.
    #[must_use]
    pub fn is_unsent(&self, correlation: CorrelationId) -> bool {
        self.ledger.position(correlation).is_some_and(|position| self.transmit.is_waiting(position))
    }

    /// Room to receive into: at least `min` bytes, unless events that were not taken fill the buffer. `min` may be
    /// up to `RECEIVE_SLACK_BYTES`. Call `on_received` next.
    pub fn receive_space(&mut self, min: usize) -> &mut [u8] {
        self.receive.space(min)
    }

    /// The first `byte_count` bytes of `receive_space` were filled from the socket.
    ///
    /// # Errors
    /// The first lie among the frames that became whole. Events of the frames before it can still be taken.
    pub fn on_received(&mut self, now_ns: u64, byte_count: usize) -> Result<(), ConnectionError> {
        self.see(now_ns);
        if byte_count > 0 {
            self.last_heard_ns = self.now_ns;
        }
        self.receive.filled(byte_count);
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        self.check_received().inspect_err(|failure| self.failure = Some(*failure))
    }

    /// Takes bytes that lie somewhere else. Up to `RECEIVE_SLACK_BYTES` fit when all events were taken.
    ///
    /// # Errors
    /// As `on_received`; `NotDrained` when the bytes do not fit, and then none of them is taken.
    pub fn on_bytes(&mut self, now_ns: u64, bytes: &[u8]) -> Result<(), ConnectionError> {
        let space = self.receive.space(bytes.len());
        let Some(target) = space.get_mut(..bytes.len()) else { return Err(ConnectionError::NotDrained) };
        target.copy_from_slice(bytes);
        self.on_received(now_ns, bytes.len())
    }

    /// The next thing that the broker said. Its payload lies in the receive buffer until the next call.
    pub fn next_event(&mut self) -> Option<Event<'_>> {
        let place = loop {
            let place = self.receive.pop()?;
            let is_heartbeat = self.receive.frame(place.clone()).header.opcode == Opcode::Heartbeat as u8;
            if !is_heartbeat {
                break place;
            }
        };
        let event = decode(self.receive.frame(place)).expect("only frames that decode are accepted");
        Some(event)
    }

    /// The bytes that wait for the socket. None after a goodbye: the broker reads nothing more, and what it never got
    /// can be said to be unsent.
    #[must_use]
    pub fn transmit(&self) -> &[u8] {
        if self.ledger.is_leaving() { &[] } else { self.transmit.waiting() }
    }

    /// The socket took the first `byte_count` bytes of `transmit`.
    pub fn transmitted(&mut self, byte_count: usize) {
        if byte_count > 0 {
            self.last_sent_ns = self.now_ns;
        }
        self.transmit.transmitted(byte_count);
    }

    /// Sends a heartbeat when this side was silent, and finds out whether the other one is dead. Read what has
    /// arrived before calling it.
    ///
    /// # Errors
    /// `PeerSilent`, or what failed before.
    pub fn on_tick(&mut self, now_ns: u64) -> Result<(), ConnectionError> {
        self.see(now_ns);
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        if self.now_ns >= self.silence_deadline_ns() {
            self.failure = Some(ConnectionError::PeerSilent);
            return Err(ConnectionError::PeerSilent);
        }
        if self.heartbeat_deadline_ns().is_some_and(|deadline_ns| self.now_ns >= deadline_ns) {
            self.transmit.push(FrameHeader::new(Opcode::Heartbeat, CorrelationId(0), 0), &[]);
            self.last_sent_ns = self.now_ns;
        }
        Ok(())
    }

    /// When `on_tick` has something to do.
    #[must_use]
    pub fn next_deadline_ns(&self) -> u64 {
        let silence_ns = self.silence_deadline_ns();
        self.heartbeat_deadline_ns().map_or(silence_ns, |heartbeat_ns| heartbeat_ns.min(silence_ns))
    }

    fn see(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
    }

    fn check_received(&mut self) -> Result<(), ConnectionError> {
        while let Some(frame) = self.receive.unchecked()? {
            let frame_bytes = frame.header.frame_bytes();
            self.ledger.on_frame(frame)?;
            self.receive.accept(frame_bytes);
            self.receive.grant(self.ledger.frame_bytes_max());
        }
        Ok(())
    }

    fn heartbeat_interval_ns(&self) -> Option<u64> {
        self.ledger.grants().map(|grants| u64::from(grants.heartbeat_ms) * 1_000_000)
    }

    /// `None` while bytes wait for the socket, because behind them a heartbeat would say nothing, and after a goodbye.
    fn heartbeat_deadline_ns(&self) -> Option<u64> {
        let interval_ns = self.heartbeat_interval_ns()?;
        let may_send = self.transmit.waiting().is_empty() && !self.ledger.is_leaving();
        may_send.then(|| self.last_sent_ns.saturating_add(interval_ns))
    }

    fn silence_deadline_ns(&self) -> u64 {
        let wait_ns = self
            .heartbeat_interval_ns()
            .map_or(HELLO_WAIT_NS, |interval_ns| interval_ns.saturating_mul(SILENT_INTERVALS_MAX));
        self.last_heard_ns.saturating_add(wait_ns)
    }
}

fn hello(
    builder: &mut FlatBufferBuilder<'static>,
    options: &ConnectionOptions,
) -> flatbuffers::WIPOffset<wire::HelloRequest<'static>> {
    let client_name = builder.create_string(&options.client_name);
    let args = wire::HelloRequestArgs {
        client_name: Some(client_name),
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        shard: options.shard.map_or(-1, i32::from),
        ..wire::HelloRequestArgs::default()
    };
    wire::HelloRequest::create(builder, &args)
}
