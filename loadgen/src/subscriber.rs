//! The consuming end of a run, without sockets or clocks: deliveries in, credit out.
//!
//! It checks what it gets (sums, partition, offsets without gaps, stamps, contents, order within connection and
//! partition), tells the ledger which records it met, and serves them at its rate. Credit goes back for what was
//! served, so a slow consumer holds no more than its window. Subscribed before the first record is sent, it must
//! see every acknowledged one.

use client::connection::CreditAmount;
use protocol::batch::{Batch, BatchError};
use protocol::frame::{CreditGrant, Frame, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle, Offset};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use crate::connection::PeerError;
use crate::ledger::{Ledger, Sighting};
use crate::payload::Payload;
use crate::service::{self, Served, Service};
use crate::stamp::Stamp;

/// Credit of a consumer without a limit, in records.
pub(crate) const CREDIT_RECORDS_MAX: u64 = 1 << 20;
/// Credit in bytes.
pub(crate) const CREDIT_BYTES: u64 = 1 << 30;
/// The one subscription of the connection.
pub(crate) const SUBSCRIPTION_ID: u64 = 1;
/// Length of a frame that grants credit.
pub(crate) const GRANT_FRAME_BYTES: usize = size_of::<FrameHeader>() + size_of::<CreditGrant>();

/// What a consumer grants at first.
pub(crate) fn credit_of(records: u64) -> CreditAmount {
    CreditAmount { records, bytes: CREDIT_BYTES }
}

/// When a delivered record should have been sent, and when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    /// By the plan.
    pub(crate) intended_ns: u64,
    /// By the clock.
    pub(crate) sent_ns: u64,
}

/// What was wrong with deliveries, besides what the ledger finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct DeliveryFaults {
    /// Batches whose sums, lengths or partition are wrong.
    pub(crate) corrupt_batches: u64,
    /// Records with other bytes than were sent.
    pub(crate) corrupted_records: u64,
    /// Batches that do not begin where the one before ended.
    pub(crate) offset_gaps: u64,
    /// Records whose stamp is broken or of another run or partition.
    pub(crate) foreign_records: u64,
    /// Records that came behind a later one of the same connection and partition.
    pub(crate) reordered_records: u64,
    /// Records that came once more.
    pub(crate) duplicated_records: u64,
}

impl DeliveryFaults {
    /// All faults together.
    pub(crate) fn count(&self) -> u64 {
        self.corrupt_batches
            + self.corrupted_records
            + self.offset_gaps
            + self.foreign_records
            + self.reordered_records
            + self.duplicated_records
    }
}

/// A partition that is subscribed to.
struct Lane {
    handle: Handle,
    next_offset: Offset,
    /// For each connection, the sequence behind its last record here.
    next_sequences: Box<[u64]>,
}

/// What a subscriber is made of.
pub(crate) struct SubscriberParts<'a> {
    /// Stands in every stamp.
    pub(crate) run_id: u32,
    /// Connections that send.
    pub(crate) connections: usize,
    /// The partitions of the topic in the order of their numbers, and where delivery begins.
    pub(crate) partitions: &'a [(Handle, Offset)],
    /// What records hold.
    pub(crate) payload: Payload,
    /// Records that may wait here.
    pub(crate) credit_records: u64,
}

/// The consuming end.
pub(crate) struct Subscriber {
    run_id: u32,
    /// By partition number: the partitions of one topic are numbered densely.
    lanes: Box<[Lane]>,
    payload: Payload,
    service: Service,
    faults: DeliveryFaults,
    credit_records: u64,
    /// Whether batches that came before may come again.
    passes_over: bool,
    /// What can be granted again.
    free_records: u64,
    free_bytes: u64,
}

impl Subscriber {
    /// One that has got nothing, and consumes without a limit.
    pub(crate) fn new(parts: SubscriberParts<'_>) -> Self {
        let lane = |(handle, next_offset): &(Handle, Offset)| Lane {
            handle: *handle,
            next_offset: *next_offset,
            next_sequences: vec![0; parts.connections].into_boxed_slice(),
        };
        Self {
            run_id: parts.run_id,
            lanes: parts.partitions.iter().map(lane).collect(),
            payload: parts.payload,
            service: Service::new(),
            faults: DeliveryFaults::default(),
            credit_records: parts.credit_records,
            passes_over: false,
            free_records: 0,
            free_bytes: 0,
        }
    }

    /// The connection is made anew, without credit yet, and will deliver everything from the beginning: what was
    /// delivered before is passed over.
    pub(crate) fn resume(&mut self) {
        self.passes_over = true;
        self.free_records = self.credit_records;
        self.free_bytes = CREDIT_BYTES;
    }

    /// What was wrong so far.
    pub(crate) fn faults(&self) -> DeliveryFaults {
        self.faults
    }

    /// From now on it consumes so many records per second: none for no limit, 0 to stand still.
    pub(crate) fn set_rate(&mut self, now_ns: u64, per_s: Option<f64>) {
        self.service.set_rate(now_ns, per_s);
    }

    /// Whether nothing waits here, so that what is missing is still to come.
    pub(crate) fn is_idle(&self) -> bool {
        self.service.waiting_records() == 0
    }

    /// Consumes what is due; every record and its time go to `seen`.
    pub(crate) fn serve(&mut self, now_ns: u64, seen: impl FnMut(Delivered, u64)) {
        let Served { records, bytes } = self.service.serve(now_ns, seen);
        self.free_records += records;
        self.free_bytes += bytes;
    }

    /// When so much will have been consumed that credit can be granted, or all that waits here.
    pub(crate) fn next_wake_ns(&self) -> Option<u64> {
        let missing = (self.credit_records / 2).saturating_sub(self.free_records).max(1);
        self.service.time_of(missing)
    }

    /// Takes the frame at the start of `bytes`, if it is whole; gives its length.
    ///
    /// # Errors
    /// When the peer breaks the protocol or says goodbye.
    pub(crate) fn take_frame(
        &mut self,
        bytes: &[u8],
        frame_bytes_max: u32,
        now_ns: u64,
        ledger: &mut Ledger,
    ) -> Result<Option<usize>, PeerError> {
        let Some(frame) = Frame::cut(bytes, frame_bytes_max)? else { return Ok(None) };
        match Opcode::from_code(frame.header.opcode) {
            Some(Opcode::Deliver) => self.on_deliver(&frame, now_ns, ledger),
            Some(Opcode::Heartbeat) => {}
            Some(Opcode::GoAway) => return Err(PeerError::GoAway(frame.header.status.get())),
            _ => return Err(PeerError::StrayFrame(frame.header.opcode)),
        }
        Ok(Some(frame.header.frame_bytes()))
    }

    /// The frame that makes used credit good again, once half of it is used.
    pub(crate) fn next_grant(&mut self) -> Option<[u8; GRANT_FRAME_BYTES]> {
        if self.free_records < self.credit_records.div_ceil(2) && self.free_bytes < CREDIT_BYTES / 2 {
            return None;
        }
        let grant = CreditGrant {
            records: U64::new(std::mem::take(&mut self.free_records)),
            bytes: U64::new(std::mem::take(&mut self.free_bytes)),
        };
        let header = FrameHeader::new(Opcode::Credit, CorrelationId(0), SUBSCRIPTION_ID);
        let header = header.with_lengths(0, size_of::<CreditGrant>());
        let mut frame = [0; GRANT_FRAME_BYTES];
        let (head, tail) = frame.split_at_mut(size_of::<FrameHeader>());
        head.copy_from_slice(header.as_bytes());
        tail.copy_from_slice(grant.as_bytes());
        Some(frame)
    }

    fn on_deliver(&mut self, frame: &Frame<'_>, now_ns: u64, ledger: &mut Ledger) {
        let handle = Handle(frame.header.correlation_id.get());
        let mut rest = frame.payload;
        while !rest.is_empty() {
            let Ok(batch) = checked_batch(rest, handle) else {
                // What follows cannot be cut.
                self.faults.corrupt_batches += 1;
                self.free_bytes += rest.len() as u64;
                return;
            };
            rest = &rest[batch.bytes().len()..];
            self.on_batch(&batch, handle, now_ns, ledger);
        }
    }

    fn on_batch(&mut self, batch: &Batch<'_>, handle: Handle, now_ns: u64, ledger: &mut Ledger) {
        let partition = usize::from(handle.partition());
        let (records, bytes) = (batch.record_count() as u64, batch.bytes().len() as u64);
        let Some(lane) = self.lanes.get_mut(partition).filter(|lane| lane.handle == handle) else {
            self.faults.foreign_records += records;
            self.free_records += records;
            self.free_bytes += bytes;
            return;
        };
        if self.passes_over && batch.header().base_offset() < lane.next_offset {
            self.free_records += records;
            self.free_bytes += bytes;
            return;
        }
        self.faults.offset_gaps += u64::from(batch.header().base_offset() != lane.next_offset);
        lane.next_offset = batch.header().next_offset();
        // Nothing was sent compressed.
        let Some(batch_records) = batch.records() else {
            self.faults.foreign_records += records;
            return;
        };
        let mut good_records = 0;
        let mut times = Delivered { intended_ns: 0, sent_ns: 0 };
        for record in batch_records {
            let stamp = Stamp::read(record.value)
                .filter(|stamp| stamp.run_id == self.run_id && usize::from(stamp.partition) == partition);
            let next = stamp.and_then(|stamp| lane.next_sequences.get_mut(usize::from(stamp.connection)));
            let (Some(stamp), Some(next)) = (stamp, next) else {
                self.faults.foreign_records += 1;
                continue;
            };
            self.faults.corrupted_records += u64::from(!self.payload.matches(stamp, record.value));
            match ledger.on_seen(stamp.connection, stamp.sequence) {
                Sighting::First => {
                    self.faults.reordered_records += u64::from(stamp.sequence < *next);
                    *next = (*next).max(stamp.sequence + 1);
                    // All records of a batch were sent together.
                    times = Delivered { intended_ns: stamp.intended_ns, sent_ns: stamp.sent_ns };
                    good_records += 1;
                }
                Sighting::Again => self.faults.duplicated_records += 1,
                // The ledger has counted it.
                Sighting::Phantom => {}
            }
        }
        self.free_records += records - u64::from(good_records);
        self.service.push(now_ns, service::Batch { records: good_records, bytes, times });
    }
}

/// The batch at the start of `bytes`, if all its sums are right and it belongs to this partition.
pub(crate) fn checked_batch(bytes: &[u8], handle: Handle) -> Result<Batch<'_>, BatchError> {
    let batch = Batch::check(bytes)?;
    if batch.header().is_placed_in(handle) { Ok(batch) } else { Err(BatchError::Misplaced) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::{FrameAddress, FrameShape, Template};
    use protocol::batch::{BatchHeader, BrokerFields};
    use protocol::ids::TopicKey;

    const RUN: u32 = 9;
    const SHAPE: FrameShape = FrameShape { record_bytes: 64, batch_records: 2, created_ms: 0 };

    fn handle() -> Handle {
        Handle::new(TopicKey { slot: 0, generation: 1 }, 0)
    }

    /// A delivery of two records, the first with this sequence, stored at this offset, filled by this seed.
    fn filled_delivery(sequence: u64, offset: u64, seed: u64) -> Vec<u8> {
        let mut template = Template::new(SHAPE, seed).unwrap();
        let stamp = Stamp { run_id: RUN, sequence, intended_ns: sequence, sent_ns: 50, ..Stamp::default() };
        let address = FrameAddress { correlation: CorrelationId(0), handle: handle(), resumes: false };
        let mut batch = template.patch(address, stamp)[32..].to_vec();
        let fields = BrokerFields { base_offset: Offset(offset), appended_ms: 1, log_epoch: 1 };
        BatchHeader::place(&mut batch, handle(), fields);
        let header = FrameHeader::new(Opcode::Deliver, CorrelationId(handle().0), SUBSCRIPTION_ID);
        let mut bytes = header.with_lengths(0, batch.len()).as_bytes().to_vec();
        bytes.extend(batch);
        bytes
    }

    fn delivery(sequence: u64, offset: u64) -> Vec<u8> {
        filled_delivery(sequence, offset, 0)
    }

    /// A subscriber and the ledger of a connection that has sent 100 records.
    struct Both {
        subscriber: Subscriber,
        ledger: Ledger,
    }

    impl Both {
        fn new(run_id: u32, credit_records: u64) -> Self {
            let subscriber = Subscriber::new(SubscriberParts {
                run_id,
                connections: 1,
                partitions: &[(handle(), Offset(0))],
                payload: Payload::filler(64, 0),
                credit_records,
            });
            let mut ledger = Ledger::new(1, 100);
            ledger.on_sent(0, 100);
            Self { subscriber, ledger }
        }

        /// Intended times of what was consumed.
        fn take(&mut self, bytes: &[u8]) -> Vec<u64> {
            let length = self.subscriber.take_frame(bytes, 1 << 20, 1_000, &mut self.ledger);
            assert_eq!(length, Ok(Some(bytes.len())));
            let mut seen = Vec::new();
            self.subscriber.serve(2_000, |record, _| seen.push(record.intended_ns));
            seen
        }
    }

    #[test]
    fn delivered_records_are_seen_once_and_in_order() {
        let mut both = Both::new(RUN, CREDIT_RECORDS_MAX);
        assert_eq!(both.take(&delivery(0, 0)), [0, 0]);
        assert_eq!(both.take(&delivery(4, 2)), [4, 4], "2 and 3 may have been refused");
        assert_eq!((both.ledger.seen_records(), both.subscriber.faults().count()), (4, 0));
    }

    #[test]
    fn every_kind_of_fault_is_counted_as_what_it_is() {
        let mut both = Both::new(RUN, CREDIT_RECORDS_MAX);
        both.take(&delivery(4, 0));
        assert_eq!(both.take(&delivery(4, 2)), [0; 0]);
        assert_eq!(both.subscriber.faults().duplicated_records, 2);
        assert_eq!(both.take(&delivery(2, 4)), [2, 2]);
        assert_eq!(both.subscriber.faults().reordered_records, 2);
        both.take(&delivery(8, 7));
        assert_eq!(both.subscriber.faults().offset_gaps, 1);
        let mut flipped = delivery(10, 9);
        *flipped.last_mut().unwrap() ^= 1;
        both.take(&flipped);
        assert_eq!(both.subscriber.faults().corrupt_batches, 1);
        both.take(&filled_delivery(12, 9, 77));
        assert_eq!(both.subscriber.faults().corrupted_records, 2, "sums are right, contents are not");
        both.take(&delivery(200, 11));
        assert_eq!(both.ledger.findings().phantom_records, 2, "nobody sent them");
        let mut other_run = Both::new(RUN + 1, CREDIT_RECORDS_MAX);
        other_run.take(&delivery(0, 0));
        assert_eq!(other_run.subscriber.faults().foreign_records, 2);
    }

    #[test]
    fn what_comes_again_after_a_kill_is_passed_over() {
        let mut both = Both::new(RUN, CREDIT_RECORDS_MAX);
        both.take(&delivery(0, 0));
        both.take(&delivery(2, 2));
        both.subscriber.resume();
        assert_eq!(both.take(&delivery(0, 0)), [0; 0]);
        assert_eq!(both.take(&delivery(2, 2)), [0; 0]);
        assert_eq!(both.take(&delivery(4, 4)), [4, 4]);
        assert_eq!((both.ledger.seen_records(), both.subscriber.faults().count()), (6, 0));
        assert_eq!(both.take(&delivery(8, 8)), [8, 8]);
        assert_eq!(both.subscriber.faults().offset_gaps, 1, "what is missing is missing still");
    }

    #[test]
    fn credit_is_granted_again_when_half_is_consumed() {
        let mut both = Both::new(RUN, 8);
        both.subscriber.set_rate(1_000, Some(1e9 / 500.0));
        let bytes = delivery(0, 0);
        both.subscriber.take_frame(&bytes, 1 << 20, 1_000, &mut both.ledger).unwrap();
        both.subscriber.take_frame(&delivery(2, 2), 1 << 20, 1_000, &mut both.ledger).unwrap();
        both.subscriber.serve(2_500, |_, _| {});
        assert!(both.subscriber.next_grant().is_none(), "three are consumed");
        assert_eq!(both.subscriber.next_wake_ns(), Some(3_001));
        both.subscriber.serve(3_001, |_, _| {});
        let frame = both.subscriber.next_grant().unwrap();
        let frame = Frame::cut(&frame, 1 << 20).unwrap().unwrap();
        assert_eq!((frame.header.opcode, frame.header.subject.get()), (50, SUBSCRIPTION_ID));
        assert_eq!(frame.payload[..8], 4_u64.to_le_bytes());
        assert_eq!(frame.payload[8..], (2 * (bytes.len() as u64 - 32)).to_le_bytes());
        assert!(both.subscriber.next_grant().is_none());
    }
}
