//! A producer with a connection of its own, which it replaces when it is lost.
//!
//! `send` takes records and sends batches when that pays; `poll` sends what there is; `flush` waits until every
//! record has its outcome. Results come out of `next_result`, in the order in which they became known. A record that
//! was sent when the connection broke is `Unknown`, and is not sent again.

use std::thread;
use std::time::Duration;

use protocol::batch::Record;
use protocol::ids::Handle;

use super::error::ClientError;
use super::link::{Dialer, Link};
use crate::producer::{BatchResult, Placement, Producer, ProducerOptions, PushError, RecordId};
use crate::reconnect::Backoff;

/// Sends records of one topic. Results must be taken: after `RESULTS_MAX` of them it takes no more records.
#[derive(Debug)]
pub struct BlockingProducer {
    dialer: Dialer,
    link: Option<Link>,
    producer: Producer,
    backoff: Backoff,
    /// Without a connection: when the next try is due.
    reconnect_at_ns: u64,
    /// Without a connection: since when it is tried to get one.
    lost_at_ns: u64,
    /// No connection could be had for `reconnect_for`; the next call says so.
    failure: Option<ClientError>,
}

impl BlockingProducer {
    pub(super) fn open(
        dialer: Dialer,
        partitions: &[Handle],
        options: ProducerOptions,
    ) -> Result<Self, ClientError> {
        let link = Link::dial(&dialer)?;
        let producer = Producer::new(partitions, link.grants(), options);
        // Two producers that lose their broker together come back at different times.
        let seed = super::unix_ms() ^ dialer.clock.now_ns() << 20 ^ u64::from(std::process::id()) << 40;
        Ok(Self {
            dialer,
            link: Some(link),
            producer,
            backoff: Backoff::new(seed),
            reconnect_at_ns: 0,
            lost_at_ns: 0,
            failure: None,
        })
    }

    /// Number of partitions of the topic.
    #[must_use]
    pub fn partition_count(&self) -> usize {
        self.producer.partition_count()
    }

    /// Takes a record, waiting for room if there is none, and sends what is worth sending. A record that is not
    /// worth a batch of its own yet waits for the next call: who has no more records calls `poll` or `flush`.
    ///
    /// # Errors
    /// `TimedOut` when no room came within `request_timeout`; `Push` when the record or its partition cannot be
    /// taken, or results wait; `Connect` when the broker was out of reach for `reconnect_for`. The record was not
    /// taken then.
    pub fn send(&mut self, placement: Placement, record: &Record<'_>) -> Result<RecordId, ClientError> {
        let until_ns = self.dialer.clock.after(self.dialer.options.request_timeout);
        loop {
            self.take_failure()?;
            let now_ns = self.dialer.clock.now_ns();
            match self.producer.push(now_ns, placement, record) {
                Ok(id) => {
                    if self.producer.should_poll(now_ns, id.partition()) {
                        self.turn(now_ns);
                    }
                    return Ok(id);
                }
                Err(PushError::Full) if now_ns < until_ns => self.turn(until_ns),
                Err(PushError::Full) => return Err(ClientError::TimedOut),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends what there is, and waits for results; returns as soon as there are some, or the time is over.
    ///
    /// # Errors
    /// `Connect` and the like, when the broker was out of reach for `reconnect_for`. Call again to try again.
    pub fn poll(&mut self, wait: Duration) -> Result<(), ClientError> {
        let until_ns = self.dialer.clock.after(wait);
        loop {
            let now_ns = self.dialer.clock.now_ns();
            let until_ns = if self.producer.has_results() { now_ns } else { until_ns };
            self.turn(until_ns);
            self.take_failure()?;
            if self.producer.has_results() || self.dialer.clock.now_ns() >= until_ns {
                return Ok(());
            }
        }
    }

    /// Waits until every record has its outcome, whatever it is: the results tell.
    ///
    /// # Errors
    /// `TimedOut` when some have none yet, and those of `poll`.
    pub fn flush(&mut self, wait: Duration) -> Result<(), ClientError> {
        let until_ns = self.dialer.clock.after(wait);
        self.producer.set_flushing(true);
        let flushed = self.flush_until(until_ns);
        self.producer.set_flushing(false);
        flushed
    }

    /// The next result, if one is known.
    pub fn next_result(&mut self) -> Option<BatchResult> {
        self.producer.next_result()
    }

    /// Whether every record has its outcome.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.producer.is_idle()
    }

    /// Gives up every record that has no outcome, so that each has one. What may have been stored is `Unknown`.
    pub fn abandon(&mut self) {
        if let Some(link) = self.link.take() {
            self.producer.on_disconnected(&link.connection);
            self.lost_at_ns = self.dialer.clock.now_ns();
        }
        self.producer.abandon();
    }

    fn flush_until(&mut self, until_ns: u64) -> Result<(), ClientError> {
        while !self.producer.is_idle() {
            self.take_failure()?;
            if self.dialer.clock.now_ns() >= until_ns {
                return Err(ClientError::TimedOut);
            }
            self.turn(until_ns);
        }
        Ok(())
    }

    fn take_failure(&mut self) -> Result<(), ClientError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// One pass: hand frames over, move bytes, wait for some at most until then, take note of the answers.
    fn turn(&mut self, until_ns: u64) {
        let clock = self.dialer.clock;
        let Some(link) = &mut self.link else { return self.reconnect(until_ns) };
        self.producer.poll(clock.now_ns(), &mut link.connection);
        let deadline_ns = self.producer.next_deadline_ns().unwrap_or(u64::MAX);
        let moved = link.exchange(until_ns.min(deadline_ns));
        let now_ns = clock.now_ns();
        while let Some(event) = link.connection.next_event() {
            if self.producer.on_event(now_ns, &event) {
                // It answers, so it is more than a listener that accepts and dies.
                self.backoff.reset();
            }
        }
        if let Err(error) = moved {
            self.producer.on_disconnected(&link.connection);
            self.link = None;
            self.lost_at_ns = now_ns;
            self.reconnect_at_ns = now_ns.saturating_add(self.backoff.next_delay_us() * 1_000);
            if !error.is_retryable() {
                // A broker that lies will lie again.
                self.failure = Some(error);
            }
        }
    }

    /// Waits for the next try, at most until then, or makes it.
    fn reconnect(&mut self, until_ns: u64) {
        let now_ns = self.dialer.clock.now_ns();
        if now_ns < self.reconnect_at_ns {
            let wait_ns = self.reconnect_at_ns.min(until_ns).saturating_sub(now_ns);
            thread::sleep(Duration::from_nanos(wait_ns));
            return;
        }
        match Link::dial(&self.dialer) {
            Ok(link) => {
                self.producer.on_connected(link.grants());
                self.link = Some(link);
            }
            Err(error) => {
                let now_ns = self.dialer.clock.now_ns();
                self.reconnect_at_ns = now_ns.saturating_add(self.backoff.next_delay_us() * 1_000);
                let tried_for = Duration::from_nanos(now_ns.saturating_sub(self.lost_at_ns));
                if !error.is_retryable() || tried_for >= self.dialer.options.reconnect_for {
                    self.lost_at_ns = now_ns;
                    self.failure = Some(error);
                }
            }
        }
    }
}
