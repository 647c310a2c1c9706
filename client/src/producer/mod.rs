//! From records to acknowledged batches, for one topic over one connection. Pure: time and connection come in.
//!
//! Records are collected into one open batch per partition, closed batches go out in order while the windows have
//! room, and every record gets exactly one outcome. Each pushed byte is in one of three places: an open batch, a
//! frame that waits, a frame in flight; their sum is bounded by `buffer_bytes_max`. What was sent and never answered
//! is `Unknown`, and is not sent again; what never left, or was refused for now, goes out on the next connection.

mod lane;
mod outcome;
mod send;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use protocol::batch::{BATCH_HEADER_BYTES, Compressor, Record};
use protocol::frame::Opcode;
use protocol::ids::{CorrelationId, Handle, Offset};
use protocol::key_hash::partition_of_key;
use protocol::limits::{PARTITIONS_PER_TOPIC_MAX, RECORDS_PER_BATCH_MAX};

pub use outcome::{BatchResult, Outcome, Placement, ProducerOptions, PushError, RecordId};

use crate::connection::{Connection, Event, Grants, Refusal};
use crate::limits::{ANSWER_OVERHEAD_BYTES, FREE_BUFFERS_MAX, RESULTS_MAX};
use lane::Lane;

/// What a record adds to its batch beside its own bytes, at most: its place in the index, and padding.
const RECORD_OVERHEAD_BYTES: usize = 32;
/// What a batch adds beside its records, at most.
const BATCH_OVERHEAD_BYTES: usize = BATCH_HEADER_BYTES + 64;

/// Collects records of one topic and keeps their order in each partition.
///
/// It must be the only one that produces on its connection. The driver calls `on_event` for each event of the
/// connection, then `poll`, and takes the results.
#[derive(Debug)]
pub struct Producer {
    options: ProducerOptions,
    record_bytes_max: usize,
    frame_bytes_max: usize,
    lanes: Vec<Lane>,
    compressor: Compressor,
    /// Partitions with something to send, each once, in the order of their turns.
    active: VecDeque<u16>,
    /// Frames handed to the connection, in the order of their correlation ids.
    in_flight: VecDeque<InFlight>,
    in_flight_count: usize,
    results: VecDeque<BatchResult>,
    /// Empty buffers for the next batches, and the sum of their capacities.
    free: Vec<Vec<u8>>,
    free_bytes: usize,
    /// Open batches, at their upper bound, and frames without a result.
    buffered_bytes: usize,
    sticky: u16,
    is_flushing: bool,
    /// The last poll ended before a full window, and nothing was answered since.
    is_blocked: bool,
    /// A batch became full since the last poll.
    has_closed: bool,
}

impl Producer {
    /// A producer for these partitions, which stand in the order of their numbers, on a connection with these grants.
    #[must_use]
    pub fn new(partitions: &[Handle], grants: &Grants, options: ProducerOptions) -> Self {
        assert!(!partitions.is_empty());
        assert!(partitions.len() <= PARTITIONS_PER_TOPIC_MAX as usize);
        assert!((0..).zip(partitions).all(|(number, handle)| handle.partition() == number));
        assert!((1..=RECORDS_PER_BATCH_MAX).contains(&options.batch_records_max));
        assert!(options.frames_in_flight_max > 0);
        assert!(options.refusals_max != Some(0));
        Self {
            options,
            record_bytes_max: grants.record_bytes_max as usize,
            frame_bytes_max: grants.frame_bytes_max as usize,
            lanes: partitions.iter().map(|handle| Lane::new(*handle)).collect(),
            compressor: Compressor::new(options.compression),
            active: VecDeque::new(),
            in_flight: VecDeque::new(),
            in_flight_count: 0,
            results: VecDeque::new(),
            free: Vec::new(),
            free_bytes: 0,
            buffered_bytes: 0,
            sticky: 0,
            is_flushing: false,
            is_blocked: false,
            has_closed: false,
        }
    }

    /// Number of partitions.
    #[must_use]
    pub fn partition_count(&self) -> usize {
        self.lanes.len()
    }

    /// Takes a record into the open batch of its partition.
    ///
    /// # Errors
    /// See `PushError`; the record was not taken then.
    pub fn push(
        &mut self,
        now_ns: u64,
        placement: Placement,
        record: &Record<'_>,
    ) -> Result<RecordId, PushError> {
        let record_bytes = record_bytes(record);
        self.check_push(record_bytes)?;
        let number = self.place(placement, record.key)?;
        let lane = self.lane(number);
        let grown_bytes = lane.open_bytes() + RECORD_OVERHEAD_BYTES + record_bytes;
        if lane.open_records() > 0 && grown_bytes > self.batch_bytes_max() {
            self.close(number);
        }
        let lane = &mut self.lanes[usize::from(number)];
        let bytes_before = lane.open_bytes();
        let id = lane.push(now_ns, record).map_err(|_| PushError::RecordTooLarge)?;
        self.buffered_bytes += lane.open_bytes() - bytes_before;
        let lane = self.lane(number);
        if lane.open_records() == self.options.batch_records_max
            || lane.open_bytes() >= self.batch_bytes_max()
        {
            self.close(number);
        }
        self.activate(number);
        Ok(id)
    }

    /// Takes note of an event of the connection; false if it is none of the producer's.
    pub fn on_event(&mut self, now_ns: u64, event: &Event<'_>) -> bool {
        match event {
            Event::Produced { correlation, first_offset } => {
                self.on_produced(now_ns, *correlation, *first_offset)
            }
            Event::Refused(refusal) if refusal.opcode == Opcode::Produce => self.on_refused(now_ns, refusal),
            _ => false,
        }
    }

    /// The connection is gone; all its events must have been taken. Frames that it still held whole will go out on
    /// the next one; the other frames in flight are unknown.
    pub fn on_disconnected(&mut self, connection: &Connection) {
        let mut in_flight = std::mem::take(&mut self.in_flight);
        for sent in in_flight.drain(..).filter(|sent| !sent.is_answered) {
            if connection.is_unsent(sent.correlation) {
                self.lanes[usize::from(sent.lane)].take_back(sent.frame);
                self.activate(sent.lane);
            } else {
                self.resolve(sent.lane, sent.frame, Outcome::Unknown);
            }
        }
        self.in_flight = in_flight;
        self.in_flight_count = 0;
        self.is_blocked = false;
        self.lanes.iter_mut().for_each(Lane::on_disconnected);
    }

    /// There is a new connection, with these grants.
    pub fn on_connected(&mut self, grants: &Grants) {
        assert!(self.in_flight_count == 0);
        self.record_bytes_max = grants.record_bytes_max as usize;
        self.frame_bytes_max = grants.frame_bytes_max as usize;
        for number in 0..self.lanes.len() as u16 {
            if self.lane(number).open_bytes() > self.batch_bytes_max() {
                self.close(number);
            }
        }
    }

    /// While it is on, batches do not linger.
    pub fn set_flushing(&mut self, is_flushing: bool) {
        self.is_flushing = is_flushing;
    }

    /// Gives up everything that has no outcome. There must be no connection: call `on_disconnected` first.
    pub fn abandon(&mut self) {
        assert!(self.in_flight_count == 0);
        for number in 0..self.lanes.len() as u16 {
            if self.lane(number).open_records() > 0 {
                self.close(number);
            }
            while let Some((frame, queued)) = self.lane(number).next_waiting() {
                let outcome = queued.refused.map_or(Outcome::Unsent, |status| Outcome::Failed { status });
                self.resolve(number, frame, outcome);
            }
        }
        assert!(self.is_idle());
    }

    /// The next result, in the order in which they became known.
    pub fn next_result(&mut self) -> Option<BatchResult> {
        self.results.pop_front()
    }

    /// Whether there are results to take.
    #[must_use]
    pub fn has_results(&self) -> bool {
        !self.results.is_empty()
    }

    /// Whether every record that was pushed has its outcome.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.buffered_bytes == 0
    }

    /// Bytes of records without an outcome, with what batches add to them.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.buffered_bytes
    }

    /// Frames handed to the connection and not answered.
    #[must_use]
    pub fn frames_in_flight(&self) -> usize {
        self.in_flight_count
    }

    fn lane(&self, number: u16) -> &Lane {
        &self.lanes[usize::from(number)]
    }

    fn batch_bytes_max(&self) -> usize {
        self.options.batch_bytes_max.min(self.frame_bytes_max.saturating_sub(ANSWER_OVERHEAD_BYTES))
    }

    fn linger_ns(&self) -> u64 {
        self.options.linger_us.saturating_mul(1_000)
    }

    fn check_push(&self, record_bytes: usize) -> Result<(), PushError> {
        if self.results.len() >= RESULTS_MAX {
            return Err(PushError::ResultsWaiting);
        }
        let batch_bytes = BATCH_OVERHEAD_BYTES + RECORD_OVERHEAD_BYTES + record_bytes;
        if record_bytes > self.record_bytes_max || ANSWER_OVERHEAD_BYTES + batch_bytes > self.frame_bytes_max
        {
            return Err(PushError::RecordTooLarge);
        }
        if self.buffered_bytes > 0 && self.buffered_bytes + batch_bytes > self.options.buffer_bytes_max {
            return Err(PushError::Full);
        }
        Ok(())
    }

    fn place(&self, placement: Placement, key: &[u8]) -> Result<u16, PushError> {
        match placement {
            Placement::Partition(number) if usize::from(number) < self.lanes.len() => Ok(number),
            Placement::Partition(number) => Err(PushError::UnknownPartition(number)),
            Placement::ByKey if !key.is_empty() => Ok(partition_of_key(key, self.lanes.len() as u32) as u16),
            Placement::ByKey | Placement::Sticky => Ok(self.sticky),
        }
    }

    /// Closes the partition's open batch, which has records.
    fn close(&mut self, number: u16) {
        let bytes = self.free.pop().unwrap_or_default();
        self.free_bytes -= bytes.capacity();
        let lane = &mut self.lanes[usize::from(number)];
        self.buffered_bytes -= lane.open_bytes();
        self.buffered_bytes += lane.close(&mut self.compressor, bytes);
        self.has_closed = true;
        if number == self.sticky {
            self.sticky = (number + 1) % self.lanes.len() as u16;
        }
    }

    fn activate(&mut self, number: u16) {
        let lane = &mut self.lanes[usize::from(number)];
        if !lane.is_active {
            lane.is_active = true;
            self.active.push_back(number);
        }
    }

    fn on_handed_over(&mut self, number: u16, frame: u64, correlation: CorrelationId) {
        self.lanes[usize::from(number)].on_handed_over(frame);
        assert!(self.in_flight.back().is_none_or(|last| last.correlation < correlation));
        self.in_flight.push_back(InFlight { correlation, lane: number, frame, is_answered: false });
        self.in_flight_count += 1;
    }

    fn on_produced(&mut self, now_ns: u64, correlation: CorrelationId, first_offset: Offset) -> bool {
        let Some(sent) = self.take_in_flight(correlation) else { return false };
        self.lanes[usize::from(sent.lane)].on_answered(now_ns, true);
        self.resolve(sent.lane, sent.frame, Outcome::Acked { first_offset });
        true
    }

    fn on_refused(&mut self, now_ns: u64, refusal: &Refusal) -> bool {
        let Some(sent) = self.take_in_flight(refusal.correlation) else { return false };
        let status = refusal.status;
        let lane = &mut self.lanes[usize::from(sent.lane)];
        if status.is_retryable() {
            lane.on_refused(now_ns, sent.frame, status, refusal.retry_after_us);
            self.activate(sent.lane);
            self.give_up(sent.lane);
        } else {
            lane.on_answered(now_ns, false);
            self.resolve(sent.lane, sent.frame, Outcome::Failed { status });
        }
        true
    }

    /// Fails the first refused batch of a partition when it was refused too often.
    fn give_up(&mut self, number: u16) {
        let lane = &mut self.lanes[usize::from(number)];
        if self.options.refusals_max.is_none_or(|refusals_max| lane.refusals() < refusals_max) {
            return;
        }
        lane.forget_refusals();
        let Some((frame, queued)) = lane.next_waiting() else { return };
        if let Some(status) = queued.refused {
            self.resolve(number, frame, Outcome::Failed { status });
        }
    }

    fn take_in_flight(&mut self, correlation: CorrelationId) -> Option<InFlight> {
        let index = self.in_flight.binary_search_by_key(&correlation, |sent| sent.correlation).ok()?;
        let sent = self.in_flight[index];
        if sent.is_answered {
            return None;
        }
        self.in_flight[index].is_answered = true;
        self.in_flight_count -= 1;
        self.is_blocked = false;
        while self.in_flight.front().is_some_and(|sent| sent.is_answered) {
            self.in_flight.pop_front();
        }
        Some(sent)
    }

    fn resolve(&mut self, number: u16, frame: u64, outcome: Outcome) {
        let (first, record_count, mut bytes) = self.lanes[usize::from(number)].resolve(frame);
        self.buffered_bytes -= bytes.len();
        self.results.push_back(BatchResult { first, record_count, outcome });
        let fits = self.free_bytes + bytes.capacity() <= self.options.buffer_bytes_max;
        if fits && self.free.len() < FREE_BUFFERS_MAX {
            bytes.clear();
            self.free_bytes += bytes.capacity();
            self.free.push(bytes);
        }
    }
}

/// A frame handed to the connection.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    correlation: CorrelationId,
    lane: u16,
    frame: u64,
    is_answered: bool,
}

fn record_bytes(record: &Record<'_>) -> usize {
    let headers_bytes: usize = record.headers.iter().map(|(name, value)| 6 + name.len() + value.len()).sum();
    record.key.len() + headers_bytes + record.value.len()
}
