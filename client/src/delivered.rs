//! Reading what was delivered or fetched: every batch is checked before a record of it is seen.
//!
//! A payload is cut into batches; each must pass `Batch::check`, carry the broker's sum for the partition that it
//! came from, and lie behind the batch before it. After the first one that does not, nothing more is read: behind a
//! length that may lie there is nothing to find.

use std::iter::FusedIterator;

use protocol::batch::{Batch, BatchError, RecordView};
use protocol::ids::{Handle, Offset};

/// The checked batches of one payload.
#[derive(Clone, Debug)]
pub struct DeliveredBatches<'a> {
    partition: Handle,
    rest: &'a [u8],
    /// Batches begin here or behind.
    floor: Offset,
    /// Records before this are not wanted.
    start: Offset,
}

impl<'a> DeliveredBatches<'a> {
    /// The batches of a payload that came from this partition.
    #[must_use]
    pub fn new(partition: Handle, payload: &'a [u8]) -> Self {
        Self { partition, rest: payload, floor: Offset(0), start: Offset(0) }
    }

    /// The same without the batches that end before `start`, and for `records` without the records before it.
    #[must_use]
    pub fn starting_at(mut self, start: Offset) -> Self {
        self.start = start;
        self
    }

    /// The bytes that were not read yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// All records in order, from `starting_at` on.
    pub fn records(self) -> impl Iterator<Item = Result<RecordView<'a>, BatchError>> {
        let start = self.start;
        self.flat_map(move |batch| {
            let (records, error) = match batch {
                Ok(batch) => (Some(records_from(batch, start)), None),
                Err(error) => (None, Some(Err(error))),
            };
            records.into_iter().flatten().map(Ok::<_, BatchError>).chain(error)
        })
    }

    /// Checks the batch at the front of what is left, which is not empty.
    fn check_next(&mut self) -> Result<Batch<'a>, BatchError> {
        let batch = Batch::check(self.rest)?;
        let header = batch.header();
        if !header.is_placed_in(self.partition) || header.base_offset() < self.floor {
            return Err(BatchError::Misplaced);
        }
        self.floor = header.next_offset();
        self.rest = &self.rest[batch.bytes().len()..];
        Ok(batch)
    }
}

impl<'a> Iterator for DeliveredBatches<'a> {
    type Item = Result<Batch<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            match self.check_next() {
                Ok(batch) if batch.header().next_offset() <= self.start => {}
                Ok(batch) => return Some(Ok(batch)),
                Err(error) => {
                    self.rest = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl FusedIterator for DeliveredBatches<'_> {}

/// The records of a checked batch from `start` on; all of them if it begins later.
pub fn records_from<'a>(batch: Batch<'a>, start: Offset) -> impl Iterator<Item = RecordView<'a>> + use<'a> {
    // Offsets of a plain batch are dense, so the difference counts records.
    let skipped = start.0.saturating_sub(batch.header().base_offset().0);
    let first = usize::try_from(skipped).unwrap_or(usize::MAX).min(batch.record_count());
    (first..batch.record_count()).map_while(move |n| batch.record(n))
}

#[cfg(test)]
mod tests {
    use protocol::batch::{BatchHeader, BrokerFields};

    use super::*;
    use crate::fake_broker::{batch_of, partition};

    fn placed(base_offset: u64, values: &[&[u8]]) -> Vec<u8> {
        let mut bytes = batch_of(values);
        let fields = BrokerFields { base_offset: Offset(base_offset), appended_ms: 5, log_epoch: 1 };
        BatchHeader::place(&mut bytes, partition(0), fields);
        bytes
    }

    fn values(records: DeliveredBatches<'_>) -> Result<Vec<(u64, Vec<u8>)>, BatchError> {
        records.records().map(|record| record.map(|view| (view.offset.0, view.value.to_vec()))).collect()
    }

    #[test]
    fn records_before_the_start_are_dropped() {
        let payload = [placed(10, &[b"a", b"b"]), placed(12, &[b"c", b"d", b"e"])].concat();
        let batches = DeliveredBatches::new(partition(0), &payload);
        assert_eq!(values(batches.clone()).unwrap().len(), 5);
        let from = batches.clone().starting_at(Offset(13));
        assert_eq!(values(from.clone()).unwrap(), [(13, b"d".to_vec()), (14, b"e".to_vec())]);
        assert_eq!(from.count(), 1, "the batch that ends before the start is dropped whole");
        assert!(values(batches.starting_at(Offset(99))).unwrap().is_empty());
    }

    #[test]
    fn flipped_byte_is_an_error_and_ends_the_reading() {
        let mut payload = [placed(10, &[b"first"]), placed(11, &[b"second"])].concat();
        let last = payload.len() - 8;
        payload[last] ^= 1;
        let found: Vec<_> = DeliveredBatches::new(partition(0), &payload).collect();
        assert_eq!(found.len(), 2);
        assert!(found[0].is_ok());
        assert_eq!(found[1].as_ref().unwrap_err(), &BatchError::Checksum);
        assert_eq!(values(DeliveredBatches::new(partition(0), &payload)).unwrap_err(), BatchError::Checksum);
    }

    #[test]
    fn batch_of_another_partition_or_offset_is_an_error() {
        let payload = placed(10, &[b"value"]);
        let elsewhere = DeliveredBatches::new(partition(1), &payload).next().unwrap();
        assert_eq!(elsewhere.unwrap_err(), BatchError::Misplaced);
        let mut moved = payload;
        moved[80] ^= 1;
        let found = DeliveredBatches::new(partition(0), &moved).next().unwrap();
        assert_eq!(found.unwrap_err(), BatchError::Misplaced);
    }

    #[test]
    fn batch_that_goes_back_in_offsets_is_an_error() {
        let payload = [placed(12, &[b"later"]), placed(10, &[b"earlier"])].concat();
        let found: Vec<_> = DeliveredBatches::new(partition(0), &payload).collect();
        assert_eq!(found[1].as_ref().unwrap_err(), &BatchError::Misplaced);
    }

    #[test]
    fn truncated_payload_is_an_error() {
        let payload = placed(10, &[b"value"]);
        let found = DeliveredBatches::new(partition(0), &payload[..payload.len() - 8]).next().unwrap();
        assert_eq!(found.unwrap_err(), BatchError::Truncated);
    }
}
