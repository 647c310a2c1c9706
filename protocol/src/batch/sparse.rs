//! Building a sparse batch: what the broker keeps of a batch that was stored before, with the offsets that it had.
//!
//! ```text
//! source: offsets 40 41 42 43 44 45, kept 41 and 44 -> base offset 40, offset deltas 1 and 4, last offset delta 5
//! ```
//!
//! It covers the same offsets as its source, so that the log has no holes between batches. A builder is reused: after
//! the first batches it allocates nothing.

use flatbuffers::FlatBufferBuilder;
use zerocopy::little_endian::U32;

use super::builder::{Parts, bound, time_delta};
use super::{BatchHeader, BuildError, Compression, Encoding, RecordView};
use crate::ids::Offset;
use crate::limits::{BATCH_BYTES_MAX, RECORD_BYTES_MAX, RECORDS_PER_BATCH_MAX};
use crate::wire;

/// Collects the records that are kept, then gives the batch's bytes. Call `begin`, `push` for each, `finish_into`, and
/// then `BatchHeader::place`, with `BatchHeader::broker_fields` of the source.
pub struct SparseBuilder {
    batch_bytes_max: usize,
    base_offset: Offset,
    created_ms: u64,
    /// The least offset that the next record may have.
    next_offset: Offset,
    entries: Vec<wire::RecordEntry>,
    data: Vec<u8>,
    index: FlatBufferBuilder<'static>,
}

impl std::fmt::Debug for SparseBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SparseBuilder")
            .field("base_offset", &self.base_offset)
            .field("record_count", &self.entries.len())
            .field("data_bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

impl SparseBuilder {
    /// A builder of batches of at most so many bytes, which is at most `BATCH_BYTES_MAX`: what was compressed, or came
    /// from a peer that was granted longer frames, may be longer when it is gathered than a frame can be.
    #[must_use]
    pub fn new(batch_bytes_max: usize) -> Self {
        assert!(batch_bytes_max <= BATCH_BYTES_MAX);
        Self {
            batch_bytes_max,
            base_offset: Offset(0),
            created_ms: 0,
            next_offset: Offset(0),
            entries: Vec::new(),
            data: Vec::new(),
            index: FlatBufferBuilder::new(),
        }
    }

    /// Begins a batch that covers offsets from this one on, with the created time of its source. What was collected
    /// and not finished is dropped.
    pub fn begin(&mut self, base_offset: Offset, created_ms: u64) {
        self.base_offset = base_offset;
        self.created_ms = created_ms;
        self.next_offset = base_offset;
        self.entries.clear();
        self.data.clear();
    }

    /// Whether nothing was kept: there is no batch to finish then.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of records so far.
    #[must_use]
    pub fn record_count(&self) -> usize {
        self.entries.len()
    }

    /// Keeps a record of a checked batch, behind those that were kept before.
    ///
    /// # Errors
    /// `Full`, and the builder is as before: finish with this record's offset as the end, begin again there. A record
    /// that alone is `Full` fits into no batch of this length; its source must stay as it is.
    pub fn push(&mut self, record: &RecordView<'_>) -> Result<(), BuildError> {
        assert!(record.offset >= self.next_offset);
        let headers = record.headers.0;
        let length = record.key.len() + headers.len() + record.value.len();
        assert!(length <= RECORD_BYTES_MAX);
        let is_full = self.entries.len() == RECORDS_PER_BATCH_MAX
            || bound(self.entries.len() + 1, self.data.len() + length) > self.batch_bytes_max;
        if is_full {
            return Err(BuildError::Full);
        }
        // Lengths and position are bounded by `batch_bytes_max` above, so nothing is cut off.
        self.entries.push(wire::RecordEntry::new(
            self.data.len() as u32,
            self.delta_of(record.offset),
            time_delta(record.created_ms, self.created_ms),
            record.tag_hash,
            record.key.len() as u32,
            headers.len() as u32,
        ));
        self.data.extend_from_slice(record.key);
        self.data.extend_from_slice(headers);
        self.data.extend_from_slice(record.value);
        self.next_offset = record.offset.plus(1);
        Ok(())
    }

    /// Appends the batch, which covers offsets up to the one before `next_offset`, to `out`, empties the builder and
    /// returns the batch's length in bytes.
    ///
    /// The builder must not be empty.
    pub fn finish_into(&mut self, next_offset: Offset, out: &mut Vec<u8>) -> usize {
        assert!(!self.entries.is_empty());
        assert!(next_offset >= self.next_offset);
        let header = BatchHeader {
            encoding: Encoding::Sparse as u8,
            created_ms: self.created_ms.into(),
            last_offset_delta: U32::new(self.delta_of(next_offset) - 1),
            ..BatchHeader::default()
        };
        let parts = Parts { header, entries: &self.entries, data: &self.data };
        let length = parts.write(&mut self.index, out, |data, out| {
            out.extend_from_slice(data);
            Compression::None
        });
        self.begin(next_offset, 0);
        length
    }

    fn delta_of(&self, offset: Offset) -> u32 {
        u32::try_from(offset.0 - self.base_offset.0).expect("one batch covers less than 2^32 offsets")
    }
}
