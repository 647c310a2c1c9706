//! Reading what was delivered or fetched: every batch is checked before a record of it is seen.
//!
//! A payload is cut into batches; each must pass `Batch::check`, carry the broker's sum for the partition that it
//! came from, and lie behind the batch before it. After the first one that does not, nothing more is read: behind a
//! length that may lie there is nothing to find. Compressed batches are inflated one by one, into room that the reader
//! lends: what is read of a payload never takes more memory than its longest batch.

use std::iter::FusedIterator;

use protocol::batch::{Batch, BatchError, Inflater, Records};
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

    /// The same without the batches that end before `start`, and for `next_records` without the records before it.
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

    /// The records of the next batch, from `starting_at` on; `None` behind the last batch. Those of a compressed batch
    /// lie in the inflater, one batch at a time.
    ///
    /// # Errors
    /// Any `BatchError`. After `Inflation` the next batch can be read, after any other there is none.
    pub fn next_records<'b>(&mut self, inflater: &'b mut Inflater) -> Option<Result<Records<'b>, BatchError>>
    where
        'a: 'b,
    {
        let batch = self.next()?;
        Some(batch.and_then(|batch| records_from(batch, self.start, inflater)))
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
///
/// # Errors
/// `Inflation` when its data area does not inflate to what its header says.
pub fn records_from<'b>(
    batch: Batch<'b>,
    start: Offset,
    inflater: &'b mut Inflater,
) -> Result<Records<'b>, BatchError> {
    Ok(batch.inflate(inflater)?.starting_at(start))
}

#[cfg(test)]
mod tests {
    use protocol::batch::{BatchHeader, BrokerFields, Compression, SparseBuilder};

    use super::*;
    use crate::fake_broker::{batch_of, compressed_batch_of, partition};

    fn placed(base_offset: u64, values: &[&[u8]]) -> Vec<u8> {
        place(batch_of(values), base_offset)
    }

    fn place(mut bytes: Vec<u8>, base_offset: u64) -> Vec<u8> {
        let fields = BrokerFields { base_offset: Offset(base_offset), appended_ms: 5, log_epoch: 1 };
        BatchHeader::place(&mut bytes, partition(0), fields);
        bytes
    }

    fn values(mut batches: DeliveredBatches<'_>) -> Result<Vec<(u64, Vec<u8>)>, BatchError> {
        let (mut inflater, mut values) = (Inflater::new(), Vec::new());
        while let Some(records) = batches.next_records(&mut inflater) {
            values.extend(records?.map(|view| (view.offset.0, view.value.to_vec())));
        }
        Ok(values)
    }

    #[test]
    fn compressed_batches_are_read_like_others() {
        let value = [b'a'; 500];
        let compressed = |compression| compressed_batch_of(compression, &[&value, b"x", b"y"]);
        let payload = [
            place(compressed(Compression::Lz4), 10),
            placed(13, &[b"plain"]),
            place(compressed(Compression::Zstd), 14),
        ]
        .concat();
        let batches = DeliveredBatches::new(partition(0), &payload);
        let kinds: Vec<_> = batches.clone().map(|batch| batch.unwrap().compression()).collect();
        assert_eq!(kinds, [Compression::Lz4, Compression::None, Compression::Zstd]);
        let found = values(batches.starting_at(Offset(11))).unwrap();
        let offsets: Vec<u64> = found.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, [11, 12, 13, 14, 15, 16]);
        assert_eq!((&found[0].1[..], &found[3].1[..]), (&b"x"[..], &value[..]));
    }

    #[test]
    fn sparse_batches_are_read_from_the_first_record_that_is_left() {
        let source = placed(10, &[b"a", b"b", b"c", b"d", b"e"]);
        let batch = Batch::check(&source).unwrap();
        let (mut builder, mut sparse) = (SparseBuilder::new(1 << 16), Vec::new());
        builder.begin(Offset(10), batch.header().created_ms.get());
        for record in batch.records().unwrap().filter(|record| [11, 13].contains(&record.offset.0)) {
            builder.push(&record).unwrap();
        }
        builder.finish_into(Offset(15), &mut sparse);
        let payload = [place(sparse, 10), placed(15, &[b"f"])].concat();
        let from = |start| {
            let batches = DeliveredBatches::new(partition(0), &payload).starting_at(Offset(start));
            values(batches).unwrap().into_iter().map(|(offset, _)| offset).collect::<Vec<_>>()
        };
        for (start, offsets) in [(0, &[11, 13, 15][..]), (11, &[11, 13, 15]), (12, &[13, 15]), (14, &[15])] {
            assert_eq!(from(start), offsets, "from {start}");
        }
    }

    #[test]
    fn batch_that_does_not_inflate_does_not_hide_the_next() {
        let mut rotten = compressed_batch_of(Compression::Lz4, &[&[b'a'; 500]]);
        let data = Batch::check(&rotten).unwrap().header().data_length.get() as usize;
        let start = rotten.len() - protocol::batch::padded(data);
        rotten[start..start + data].fill(0xFF);
        let sum = protocol::batch::producer_sum(&rotten);
        rotten[76..80].copy_from_slice(&sum.to_le_bytes());
        let payload = [place(rotten, 10), placed(11, &[b"good"])].concat();
        let (mut batches, mut inflater) = (DeliveredBatches::new(partition(0), &payload), Inflater::new());
        assert_eq!(batches.next_records(&mut inflater).unwrap().unwrap_err(), BatchError::Inflation);
        let records = batches.next_records(&mut inflater).unwrap().unwrap();
        assert_eq!(records.map(|record| record.value).collect::<Vec<_>>(), [b"good"]);
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
