//! For programs that have a thread to spare: calls that wait for their answers, over `std::net::TcpStream`.
//!
//! `Client` asks about topics; each `BlockingProducer` and each `Subscription` has a connection of its own, so that
//! acknowledgements never queue behind deliveries. Nothing runs in the background: heartbeats are sent and heard
//! while the caller is inside a call. Who stays away for longer than three heartbeat intervals is cut off by the
//! broker; `Client` and `BlockingProducer` then connect again by themselves.

mod error;
mod link;
mod producer;
mod subscription;
#[cfg(test)]
mod tests;

use std::io;
use std::net::ToSocketAddrs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protocol::ids::{CorrelationId, Handle, Offset};

pub use error::ClientError;
pub use producer::BlockingProducer;
pub use subscription::{DeliveredBatch, SubscribeOptions, Subscription};

use crate::connection::{
    Connection, Event, FetchRange, Grants, RequestError, Stats, TopicDescription, TopicSettings, TopicSummary,
};
use crate::delivered::DeliveredBatches;
use crate::limits::TOPICS_LISTED_MAX;
use crate::producer::ProducerOptions;
use link::{Clock, Dialer, Link};

/// How a client greets and how long it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Shown in the broker's logs; at most `CLIENT_NAME_BYTES_MAX` bytes.
    pub client_name: String,
    /// The shard to be connected to; any if `None`.
    pub shard: Option<u16>,
    /// For each address, and for the answer to `Hello`.
    pub connect_timeout: Duration,
    /// For the answer to a request, and for room in a producer's buffer.
    pub request_timeout: Duration,
    /// How long a producer tries to get a new connection before it says that it cannot.
    pub reconnect_for: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            client_name: String::new(),
            shard: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            reconnect_for: Duration::from_secs(30),
        }
    }
}

/// A connection for questions, and the place where producers and subscriptions are made.
#[derive(Debug)]
pub struct Client {
    dialer: Dialer,
    /// `None` after it was lost; the next call makes a new one.
    link: Option<Link>,
    grants: Grants,
}

/// What a fetch gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Where the batches come from.
    pub partition: Handle,
    /// Where to go on.
    pub next_offset: Offset,
    /// End of what is durable in the partition.
    pub durable_end: Offset,
    payload: Vec<u8>,
}

impl Fetched {
    /// The batches, checked while they are read; `DeliveredBatches::next_records` gives their records.
    #[must_use]
    pub fn batches(&self) -> DeliveredBatches<'_> {
        DeliveredBatches::new(self.partition, &self.payload)
    }
}

impl Client {
    /// Connects, trying each address that the name stands for.
    ///
    /// # Errors
    /// `Connect` when no address answers; `Refused`, `GoAway`, `Io`, `Protocol` or `TimedOut` from the greeting.
    pub fn connect(address: impl ToSocketAddrs, options: Options) -> Result<Self, ClientError> {
        let unresolved = |source| ClientError::Connect { address: "the given address".to_owned(), source };
        let addresses: Vec<_> = address.to_socket_addrs().map_err(unresolved)?.collect();
        if addresses.is_empty() {
            return Err(unresolved(io::ErrorKind::NotFound.into()));
        }
        let dialer = Dialer { addresses, options, clock: Clock::new() };
        let link = Link::dial(&dialer)?;
        let grants = link.grants().clone();
        Ok(Self { dialer, link: Some(link), grants })
    }

    /// What the broker granted and said about itself when this client last connected.
    #[must_use]
    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    /// Creates a topic that keeps what the broker keeps by default; returns when that is durable.
    ///
    /// # Errors
    /// `Unknown` when the connection ended, or the time ran out, before the answer.
    pub fn create_topic(
        &mut self,
        name: &str,
        partition_count: u32,
    ) -> Result<TopicDescription, ClientError> {
        self.create_topic_with(name, partition_count, &TopicSettings::default())
    }

    /// Creates a topic; returns when that is durable.
    ///
    /// # Errors
    /// As `create_topic`.
    pub fn create_topic_with(
        &mut self,
        name: &str,
        partition_count: u32,
        settings: &TopicSettings,
    ) -> Result<TopicDescription, ClientError> {
        self.change(
            |connection| connection.create_topic_with(name, partition_count, settings),
            |event| if let Event::TopicDescribed { topic, .. } = event { Some(topic) } else { None },
        )
    }

    /// Deletes a topic and its records; returns when that is durable.
    ///
    /// # Errors
    /// As `create_topic`.
    pub fn delete_topic(&mut self, name: &str) -> Result<(), ClientError> {
        self.change(
            |connection| connection.delete_topic(name),
            |event| matches!(event, Event::TopicDeleted { .. }).then_some(()),
        )
    }

    /// A topic's partitions, their handles and offsets.
    ///
    /// # Errors
    /// Any `ClientError` but `Unknown`.
    pub fn describe_topic(&mut self, name: &str) -> Result<TopicDescription, ClientError> {
        self.ask(
            |connection| connection.describe_topic(name),
            |event| if let Event::TopicDescribed { topic, .. } = event { Some(topic) } else { None },
        )
    }

    /// Every topic, sorted by name; at most `TOPICS_LISTED_MAX`.
    ///
    /// # Errors
    /// Any `ClientError` but `Unknown`.
    pub fn list_topics(&mut self) -> Result<Vec<TopicSummary>, ClientError> {
        let mut topics: Vec<TopicSummary> = Vec::new();
        loop {
            let after = topics.last().map(|topic| topic.name.clone());
            let page = self.ask(
                |connection| connection.list_topics(after.as_deref()),
                |event| if let Event::Topics { topics, .. } = event { Some(topics) } else { None },
            )?;
            topics.extend(page.topics);
            if !page.more || topics.len() >= TOPICS_LISTED_MAX {
                return Ok(topics);
            }
        }
    }

    /// The broker's counters.
    ///
    /// # Errors
    /// Any `ClientError` but `Unknown`.
    pub fn stats(&mut self) -> Result<Stats, ClientError> {
        self.ask(
            Connection::stats,
            |event| {
                if let Event::Stats { stats, .. } = event { Some(*stats) } else { None }
            },
        )
    }

    /// The batches that hold a range of a partition's records, as far as they are durable and fit.
    ///
    /// # Errors
    /// Any `ClientError` but `Unknown`.
    pub fn fetch(&mut self, partition: Handle, range: FetchRange) -> Result<Fetched, ClientError> {
        self.ask(
            |connection| connection.fetch(partition, range),
            |event| {
                let Event::Fetched { partition, next_offset, durable_end, payload, .. } = event else {
                    return None;
                };
                Some(Fetched { partition, next_offset, durable_end, payload: payload.to_vec() })
            },
        )
    }

    /// A producer for a topic that exists.
    ///
    /// # Errors
    /// As `describe_topic`, and those of `connect`.
    pub fn producer(
        &mut self,
        topic: &str,
        options: ProducerOptions,
    ) -> Result<BlockingProducer, ClientError> {
        let description = self.describe_topic(topic)?;
        let handles: Vec<Handle> = description.partitions.iter().map(|partition| partition.handle).collect();
        BlockingProducer::open(self.dialer.clone(), &handles, options)
    }

    /// Deliveries of a topic.
    ///
    /// # Errors
    /// Those of `connect`; `OffsetOutOfRange` when the start is not in the partition.
    pub fn subscribe(&self, topic: &str, options: SubscribeOptions) -> Result<Subscription, ClientError> {
        Subscription::open(&self.dialer, topic, options)
    }

    /// A request that changes nothing: it may be made again when it was lost.
    fn ask<T>(
        &mut self,
        make: impl FnOnce(&mut Connection) -> Result<CorrelationId, RequestError>,
        take: impl FnOnce(Event<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        let (answer, _) = self.call(make, take)?;
        answer
    }

    /// A request that changes something: once sent, only an answer tells whether it did.
    fn change<T>(
        &mut self,
        make: impl FnOnce(&mut Connection) -> Result<CorrelationId, RequestError>,
        take: impl FnOnce(Event<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        let (answer, was_sent) = self.call(make, take)?;
        answer.map_err(|error| if was_sent && error.leaves_open() { ClientError::Unknown } else { error })
    }

    /// Makes a request and waits for its answer. Tells also whether any byte of the request left, if it failed.
    fn call<T>(
        &mut self,
        make: impl FnOnce(&mut Connection) -> Result<CorrelationId, RequestError>,
        take: impl FnOnce(Event<'_>) -> Option<T>,
    ) -> Result<(Result<T, ClientError>, bool), ClientError> {
        let mut link = self.take_link()?;
        let correlation = match make(&mut link.connection) {
            Ok(correlation) => correlation,
            Err(error) => {
                self.link = Some(link);
                return Err(error.into());
            }
        };
        let until_ns = self.dialer.clock.after(self.dialer.options.request_timeout);
        let answer = link.answer(correlation, until_ns, take);
        let was_sent = !link.connection.is_unsent(correlation);
        // A late answer would find nobody: after a time-out the next call starts afresh.
        let is_over = answer.as_ref().is_err_and(ClientError::leaves_open);
        if !is_over {
            self.link = Some(link);
        }
        Ok((answer, was_sent))
    }

    /// The connection that is there, if it still is, or a new one. A broker that closed an idle connection is found
    /// out before anything is asked on it.
    fn take_link(&mut self) -> Result<Link, ClientError> {
        if let Some(mut link) = self.link.take() {
            let is_alive = link.exchange(0).is_ok();
            let mut is_leaving = false;
            while let Some(event) = link.connection.next_event() {
                is_leaving |= matches!(event, Event::GoAway { .. });
            }
            if is_alive && !is_leaving {
                return Ok(link);
            }
        }
        let link = Link::dial(&self.dialer)?;
        self.grants = link.grants().clone();
        Ok(link)
    }
}

/// Milliseconds since 1970 by the system's clock, for `Record::created_ms`.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
