//! The receiving end of `--end-to-end`, without sockets or clocks: deliveries in, credit out.
//!
//! It checks what it gets (sums, partition, offsets without gaps, stamps, order within connection and partition)
//! and gives the times of each record to the tally. Subscribed before the first record is sent, it must see every
//! acknowledged one.

use protocol::batch::{Batch, BatchError};
use protocol::frame::{CreditGrant, Frame, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle, Offset};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use crate::connection::PeerError;
use crate::stamp::Stamp;

/// Credit that is granted at first, and again whenever half of it is used up.
pub(crate) const CREDIT_RECORDS: u64 = 1 << 20;
/// The same in bytes.
pub(crate) const CREDIT_BYTES: u64 = 1 << 30;
/// The one subscription of the connection.
pub(crate) const SUBSCRIPTION_ID: u64 = 1;
/// Length of a frame that grants credit.
pub(crate) const GRANT_FRAME_BYTES: usize = size_of::<FrameHeader>() + size_of::<CreditGrant>();

/// When a delivered record should have been sent, and when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivered {
    /// By the plan.
    pub(crate) intended_ns: u64,
    /// By the clock.
    pub(crate) sent_ns: u64,
}

/// What was wrong with deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct DeliveryFaults {
    /// Batches whose sums, lengths or partition are wrong.
    pub(crate) corrupt_batches: u64,
    /// Batches that do not begin where the one before ended.
    pub(crate) offset_gaps: u64,
    /// Records whose stamp is broken or of another run or partition.
    pub(crate) foreign_records: u64,
    /// Records that came again, or behind a later one.
    pub(crate) repeated_or_reordered_records: u64,
}

impl DeliveryFaults {
    /// All faults together.
    pub(crate) fn count(&self) -> u64 {
        self.corrupt_batches + self.offset_gaps + self.foreign_records + self.repeated_or_reordered_records
    }
}

/// A partition that is subscribed to.
struct Lane {
    handle: Handle,
    next_offset: Offset,
    /// For each connection, the sequence behind its last record here.
    next_sequences: Box<[u64]>,
}

/// The receiving end.
pub(crate) struct Subscriber {
    run_id: u32,
    /// By partition number: the partitions of one topic are numbered densely.
    lanes: Box<[Lane]>,
    delivered_records: u64,
    faults: DeliveryFaults,
    used_records: u64,
    used_bytes: u64,
}

impl Subscriber {
    /// One that gets the records of `connections` connections from these partitions, in the order of their numbers.
    pub(crate) fn new(run_id: u32, connections: usize, partitions: &[(Handle, Offset)]) -> Self {
        let lane = |(handle, next_offset): &(Handle, Offset)| Lane {
            handle: *handle,
            next_offset: *next_offset,
            next_sequences: vec![0; connections].into_boxed_slice(),
        };
        Self {
            run_id,
            lanes: partitions.iter().map(lane).collect(),
            delivered_records: 0,
            faults: DeliveryFaults::default(),
            used_records: 0,
            used_bytes: 0,
        }
    }

    /// Records that came, each counted once.
    pub(crate) fn delivered_records(&self) -> u64 {
        self.delivered_records
    }

    /// What was wrong so far.
    pub(crate) fn faults(&self) -> DeliveryFaults {
        self.faults
    }

    /// Takes the frame at the start of `bytes`, if it is whole; gives its length. Every good record goes to `seen`.
    ///
    /// # Errors
    /// When the peer breaks the protocol or says goodbye.
    pub(crate) fn take_frame(
        &mut self,
        bytes: &[u8],
        frame_bytes_max: u32,
        seen: impl FnMut(Delivered),
    ) -> Result<Option<usize>, PeerError> {
        let Some(frame) = Frame::cut(bytes, frame_bytes_max)? else { return Ok(None) };
        match Opcode::from_code(frame.header.opcode) {
            Some(Opcode::Deliver) => self.on_deliver(&frame, seen),
            Some(Opcode::Heartbeat) => {}
            Some(Opcode::GoAway) => return Err(PeerError::GoAway(frame.header.status.get())),
            _ => return Err(PeerError::StrayFrame(frame.header.opcode)),
        }
        Ok(Some(frame.header.frame_bytes()))
    }

    /// The frame that makes used credit good again, once half of it is used.
    pub(crate) fn next_grant(&mut self) -> Option<[u8; GRANT_FRAME_BYTES]> {
        if self.used_records < CREDIT_RECORDS / 2 && self.used_bytes < CREDIT_BYTES / 2 {
            return None;
        }
        let grant = CreditGrant {
            records: U64::new(std::mem::take(&mut self.used_records)),
            bytes: U64::new(std::mem::take(&mut self.used_bytes)),
        };
        let header = FrameHeader::new(Opcode::Credit, CorrelationId(0), SUBSCRIPTION_ID);
        let header = header.with_lengths(0, size_of::<CreditGrant>());
        let mut frame = [0; GRANT_FRAME_BYTES];
        let (head, tail) = frame.split_at_mut(size_of::<FrameHeader>());
        head.copy_from_slice(header.as_bytes());
        tail.copy_from_slice(grant.as_bytes());
        Some(frame)
    }

    fn on_deliver(&mut self, frame: &Frame<'_>, mut seen: impl FnMut(Delivered)) {
        let handle = Handle(frame.header.correlation_id.get());
        self.used_bytes += frame.payload.len() as u64;
        let mut rest = frame.payload;
        while !rest.is_empty() {
            let Ok(batch) = checked_batch(rest, handle) else {
                // What follows cannot be cut.
                self.faults.corrupt_batches += 1;
                return;
            };
            rest = &rest[batch.bytes().len()..];
            self.used_records += batch.record_count() as u64;
            self.on_batch(&batch, handle, &mut seen);
        }
    }

    fn on_batch(&mut self, batch: &Batch<'_>, handle: Handle, seen: &mut impl FnMut(Delivered)) {
        let partition = usize::from(handle.partition());
        let Some(lane) = self.lanes.get_mut(partition).filter(|lane| lane.handle == handle) else {
            self.faults.foreign_records += batch.record_count() as u64;
            return;
        };
        self.faults.offset_gaps += u64::from(batch.header().base_offset() != lane.next_offset);
        lane.next_offset = batch.header().next_offset();
        // Nothing was sent compressed.
        let Some(records) = batch.records() else {
            self.faults.foreign_records += batch.record_count() as u64;
            return;
        };
        for record in records {
            let stamp = Stamp::read(record.value)
                .filter(|stamp| stamp.run_id == self.run_id && usize::from(stamp.partition) == partition);
            let next = stamp.and_then(|stamp| lane.next_sequences.get_mut(usize::from(stamp.connection)));
            let (Some(stamp), Some(next)) = (stamp, next) else {
                self.faults.foreign_records += 1;
                continue;
            };
            if stamp.sequence < *next {
                self.faults.repeated_or_reordered_records += 1;
                continue;
            }
            *next = stamp.sequence + 1;
            self.delivered_records += 1;
            seen(Delivered { intended_ns: stamp.intended_ns, sent_ns: stamp.sent_ns });
        }
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

    fn handle() -> Handle {
        Handle::new(TopicKey { slot: 0, generation: 1 }, 0)
    }

    /// A delivery of two records, the first with this sequence, stored at this offset.
    fn delivery(sequence: u64, offset: u64) -> Vec<u8> {
        let mut template =
            Template::new(FrameShape { record_bytes: 64, batch_records: 2, created_ms: 0 }, 0).unwrap();
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

    fn subscriber() -> Subscriber {
        Subscriber::new(RUN, 1, &[(handle(), Offset(0))])
    }

    fn take(subscriber: &mut Subscriber, bytes: &[u8]) -> Vec<u64> {
        let mut seen = Vec::new();
        let length = subscriber.take_frame(bytes, 1 << 20, |record| seen.push(record.intended_ns));
        assert_eq!(length, Ok(Some(bytes.len())));
        seen
    }

    #[test]
    fn delivered_records_are_seen_once_and_in_order() {
        let mut subscriber = subscriber();
        assert_eq!(take(&mut subscriber, &delivery(0, 0)), [0, 0]);
        assert_eq!(take(&mut subscriber, &delivery(4, 2)), [4, 4], "2 and 3 may have been refused");
        assert_eq!((subscriber.delivered_records(), subscriber.faults().count()), (4, 0));
    }

    #[test]
    fn every_kind_of_fault_is_counted() {
        let mut subscriber = subscriber();
        take(&mut subscriber, &delivery(4, 0));
        assert_eq!(take(&mut subscriber, &delivery(4, 2)), [0; 0]);
        assert_eq!(subscriber.faults().repeated_or_reordered_records, 2);
        take(&mut subscriber, &delivery(8, 7));
        assert_eq!(subscriber.faults().offset_gaps, 1);
        let mut flipped = delivery(10, 9);
        *flipped.last_mut().unwrap() ^= 1;
        take(&mut subscriber, &flipped);
        assert_eq!(subscriber.faults().corrupt_batches, 1);
        let mut other_run = Subscriber::new(RUN + 1, 1, &[(handle(), Offset(0))]);
        take(&mut other_run, &delivery(0, 0));
        assert_eq!(other_run.faults().foreign_records, 2);
    }

    #[test]
    fn credit_is_granted_again_when_half_is_used() {
        let mut subscriber = subscriber();
        assert!(subscriber.next_grant().is_none());
        subscriber.used_records = CREDIT_RECORDS / 2;
        subscriber.used_bytes = 77;
        let frame = subscriber.next_grant().unwrap();
        let frame = Frame::cut(&frame, 1 << 20).unwrap().unwrap();
        assert_eq!((frame.header.opcode, frame.header.subject.get()), (50, SUBSCRIPTION_ID));
        assert_eq!(frame.payload[..8], (CREDIT_RECORDS / 2).to_le_bytes());
        assert_eq!(frame.payload[8..], 77_u64.to_le_bytes());
        assert!(subscriber.next_grant().is_none());
    }
}
