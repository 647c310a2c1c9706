//! Requests that are not measured, over plain blocking sockets: `Hello`, topics, subscriptions, counters, fetches.
//!
//! The client's connection core speaks the protocol, this file only moves its bytes. A control connection is short:
//! it sends no heartbeats, so it is opened for a few requests and dropped, or handed to the reactor after `Hello`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use client::connection::{
    Connection, ConnectionError, ConnectionOptions, CreditAmount, Event, FetchRange, Grants, RequestError,
    Start, Stats, SubscribeRequest, TopicSettings,
};
use protocol::ids::{CorrelationId, Handle, Offset, SubscriptionId};
use protocol::status::Status;
use reactor::clock;

use crate::subscriber::SUBSCRIPTION_ID;

/// How long one answer may take. Topics of many partitions are made durable one by one.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// How long to wait for the broker's journal before measuring.
const PREPARE_WAIT: Duration = Duration::from_secs(600);
/// Pause between two looks at the broker's counters.
const PREPARE_PAUSE: Duration = Duration::from_millis(100);
/// Room for one read.
const READ_BYTES: usize = 16 << 10;
/// Bytes of batches that one fetch asks for.
const FETCH_BYTES: u32 = 1 << 20;

/// Why a control request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// No connection, or it broke.
    #[error("connection to {address}: {source}")]
    Io {
        /// The broker's address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The broker breaks the protocol.
    #[error("the broker at {0} breaks the protocol: {1}")]
    Peer(SocketAddr, ConnectionError),
    /// The request cannot be made.
    #[error("request: {0}")]
    Request(#[from] RequestError),
    /// The broker says no.
    #[error("the broker refuses: {status:?}{}", .detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default())]
    Refused {
        /// Why.
        status: Status,
        /// In words, if it gave any.
        detail: Option<String>,
    },
    /// The broker answers something else than what was asked.
    #[error("an answer to another question")]
    OtherAnswer,
    /// The journal is still not prepared.
    #[error("the broker has prepared {prepared} of {journal} journal bytes, and does not go on")]
    NotPrepared {
        /// Bytes that are prepared.
        prepared: u64,
        /// Bytes of the whole journal.
        journal: u64,
    },
}

/// A fetched range: what `take` made of it, and where to go on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FetchedUntil {
    /// The offset behind what was fetched.
    pub(crate) next_offset: Offset,
    /// The end of what is durable.
    pub(crate) durable_end: Offset,
}

/// A connection on which `Hello` was answered.
pub(crate) struct Control {
    address: SocketAddr,
    stream: TcpStream,
    connection: Connection,
}

impl Control {
    /// Connects and says `Hello`.
    ///
    /// # Errors
    /// No connection, or no agreement.
    pub(crate) fn open(address: SocketAddr) -> Result<Self, ControlError> {
        let io = |source| ControlError::Io { address, source };
        let stream = TcpStream::from(reactor::connect(address).map_err(io)?);
        stream.set_read_timeout(Some(ANSWER_WAIT)).map_err(io)?;
        stream.set_write_timeout(Some(ANSWER_WAIT)).map_err(io)?;
        let options = ConnectionOptions { client_name: "loadgen".to_owned(), shard: None };
        let connection = Connection::new(clock::monotonic_ns(), &options);
        let mut control = Self { address, stream, connection };
        while control.connection.grants().is_none() {
            control.exchange()?;
            while let Some(event) = control.connection.next_event() {
                if let Some(error) = refusal(event, None) {
                    return Err(error);
                }
            }
        }
        Ok(control)
    }

    /// What `Hello` granted.
    pub(crate) fn grants(&self) -> &Grants {
        self.connection.grants().expect("`open` waits for them")
    }

    /// Creates a topic that keeps so many bytes in each partition, or all for 0; gives the handles of its partitions in their order.
    ///
    /// # Errors
    /// Any.
    pub(crate) fn create_topic(
        &mut self,
        name: &str,
        partitions: u32,
        retention_bytes: u64,
    ) -> Result<Vec<Handle>, ControlError> {
        let settings = TopicSettings { retention_bytes, ..TopicSettings::default() };
        let correlation = self.connection.create_topic_with(name, partitions, &settings)?;
        self.answer(correlation, |event| match event {
            Event::TopicDescribed { topic, .. } => {
                Some(topic.partitions.iter().map(|partition| partition.handle).collect())
            }
            _ => None,
        })
    }

    /// The broker's counters.
    ///
    /// # Errors
    /// Any.
    pub(crate) fn stats(&mut self) -> Result<Stats, ControlError> {
        let correlation = self.connection.stats()?;
        self.answer(correlation, |event| match event {
            Event::Stats { stats, .. } => Some(*stats),
            _ => None,
        })
    }

    /// Subscribes to all partitions of a topic from `start` on; gives each with the offset where delivery starts,
    /// by number.
    ///
    /// # Errors
    /// Any.
    pub(crate) fn subscribe(
        &mut self,
        topic: &str,
        start: Start,
        credit: CreditAmount,
    ) -> Result<Vec<(Handle, Offset)>, ControlError> {
        let request = SubscribeRequest { topic, partition: None, start, credit };
        let correlation = self.connection.subscribe(SubscriptionId(SUBSCRIPTION_ID), &request)?;
        let mut partitions: Vec<(Handle, Offset)> = self.answer(correlation, |event| match event {
            Event::Subscribed { partitions, .. } => {
                Some(partitions.iter().map(|partition| (partition.handle, partition.start_offset)).collect())
            }
            _ => None,
        })?;
        partitions.sort_by_key(|(handle, _)| handle.partition());
        Ok(partitions)
    }

    /// Fetches from `from` on, as much as one answer holds; the batches go to `take`, unchecked.
    ///
    /// # Errors
    /// Any.
    pub(crate) fn fetch(
        &mut self,
        partition: Handle,
        from: Offset,
        mut take: impl FnMut(&[u8]),
    ) -> Result<FetchedUntil, ControlError> {
        let range = FetchRange { from, to: Offset(u64::MAX), bytes_max: FETCH_BYTES };
        let correlation = self.connection.fetch(partition, range)?;
        self.answer(correlation, |event| match event {
            Event::Fetched { next_offset, durable_end, payload, .. } => {
                take(payload);
                Some(FetchedUntil { next_offset, durable_end })
            }
            _ => None,
        })
    }

    /// Waits until the whole journal is prepared; a broker that has none (the floor) is ready at once.
    ///
    /// # Errors
    /// Any, and `NotPrepared` after ten minutes.
    pub(crate) fn wait_prepared(address: SocketAddr) -> Result<(), ControlError> {
        let deadline_ns = clock::monotonic_ns() + PREPARE_WAIT.as_nanos() as u64;
        loop {
            let stats = Self::open(address)?.stats()?;
            let (prepared, journal) = (stats.journal_prepared_bytes, stats.journal_bytes);
            if prepared >= journal {
                return Ok(());
            }
            if clock::monotonic_ns() >= deadline_ns {
                return Err(ControlError::NotPrepared { prepared, journal });
            }
            std::thread::sleep(PREPARE_PAUSE);
        }
    }

    /// Gives the socket up, for the reactor. Nothing may be unanswered.
    ///
    /// # Errors
    /// When its time-outs cannot be taken off.
    pub(crate) fn into_socket(self) -> Result<OwnedFd, ControlError> {
        assert!(self.connection.transmit().is_empty());
        let io = |source| ControlError::Io { address: self.address, source };
        self.stream.set_read_timeout(None).map_err(io)?;
        self.stream.set_write_timeout(None).map_err(io)?;
        Ok(self.stream.into())
    }

    /// Waits for one answer.
    fn answer<T>(
        &mut self,
        correlation: CorrelationId,
        mut take: impl FnMut(Event<'_>) -> Option<T>,
    ) -> Result<T, ControlError> {
        loop {
            while let Some(event) = self.connection.next_event() {
                let is_refusal = matches!(event, Event::Refused(_) | Event::GoAway { .. });
                if !is_refusal && event.correlation() == Some(correlation) {
                    return take(event).ok_or(ControlError::OtherAnswer);
                }
                if let Some(error) = refusal(event, Some(correlation)) {
                    return Err(error);
                }
            }
            self.exchange()?;
        }
    }

    /// Sends what waits, and receives once.
    fn exchange(&mut self) -> Result<(), ControlError> {
        let address = self.address;
        let io = |source| ControlError::Io { address, source };
        let waiting = self.connection.transmit();
        let waiting_bytes = waiting.len();
        self.stream.write_all(waiting).map_err(io)?;
        self.connection.transmitted(waiting_bytes);
        let received_bytes = self.stream.read(self.connection.receive_space(READ_BYTES)).map_err(io)?;
        if received_bytes == 0 {
            return Err(io(io::ErrorKind::UnexpectedEof.into()));
        }
        let received = self.connection.on_received(clock::monotonic_ns(), received_bytes);
        received.map_err(|error| ControlError::Peer(address, error))
    }
}

/// The error that an event stands for, if it ends the wait for this answer (or any).
fn refusal(event: Event<'_>, correlation: Option<CorrelationId>) -> Option<ControlError> {
    match event {
        Event::Refused(refused) if correlation.is_none_or(|wanted| wanted == refused.correlation) => {
            Some(ControlError::Refused { status: refused.status, detail: refused.detail })
        }
        Event::GoAway { status, message } => Some(ControlError::Refused { status, detail: message }),
        _ => None,
    }
}
