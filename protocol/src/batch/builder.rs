//! Building a batch on the producer's side: once, and never touched again.
//!
//! A builder is reused: after the first batches it allocates nothing.

use flatbuffers::FlatBufferBuilder;
use zerocopy::little_endian::U32;

use super::view::write_header;
use super::{
    BATCH_HEADER_BYTES, BATCH_MAGIC, BATCH_VERSION, BatchHeader, Compression, Compressor, padded,
    producer_sum,
};
use crate::limits::{BATCH_BYTES_MAX, RECORD_BYTES_MAX, RECORDS_PER_BATCH_MAX};
use crate::wire;

/// FlatBuffers around the entries: root offset, vtable, table, vector length, padding. A bound, not a promise.
const INDEX_OVERHEAD_BYTES: usize = 64;
const INDEX_ENTRY_BYTES: usize = 24;

/// A record to be added. Times are milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record<'a> {
    /// Chooses the partition, when the client places by key.
    pub key: &'a [u8],
    /// Names and values; names up to 65,535 bytes.
    pub headers: &'a [(&'a [u8], &'a [u8])],
    /// The payload.
    pub value: &'a [u8],
    /// A tag for filters, possibly empty.
    pub tag: &'a [u8],
    /// When the record was made.
    pub created_ms: u64,
}

/// A record that cannot be added; the builder is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// Key, headers and value together are over `RECORD_BYTES_MAX`, or a header name over 65,535 bytes.
    #[error("the record is longer than {RECORD_BYTES_MAX} bytes")]
    RecordTooLarge,
    /// The batch is full: finish it first.
    #[error("the batch is full")]
    Full,
}

/// Collects records, then gives the batch's bytes.
#[derive(Default)]
pub struct BatchBuilder {
    entries: Vec<wire::RecordEntry>,
    data: Vec<u8>,
    created_ms: u64,
    index: FlatBufferBuilder<'static>,
}

impl std::fmt::Debug for BatchBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchBuilder")
            .field("record_count", &self.entries.len())
            .field("data_bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}

impl BatchBuilder {
    /// An empty builder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of records so far.
    #[must_use]
    pub fn record_count(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing to finish.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Upper bound of what `finish_into` or `finish_compressed_into` would append now, in bytes.
    #[must_use]
    pub fn bytes_bound(&self) -> usize {
        bound(self.entries.len(), self.data.len())
    }

    /// Adds one record.
    ///
    /// # Errors
    /// See `BuildError`; nothing was added then.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), BuildError> {
        let headers_length: usize =
            record.headers.iter().map(|(name, value)| 6 + name.len() + value.len()).sum();
        let length = record.key.len() + headers_length + record.value.len();
        let has_long_name = record.headers.iter().any(|(name, _)| name.len() > usize::from(u16::MAX));
        if length > RECORD_BYTES_MAX || has_long_name {
            return Err(BuildError::RecordTooLarge);
        }
        if self.entries.len() == RECORDS_PER_BATCH_MAX
            || bound(self.entries.len() + 1, self.data.len() + length) > BATCH_BYTES_MAX
        {
            return Err(BuildError::Full);
        }
        if self.entries.is_empty() {
            self.created_ms = record.created_ms;
        }
        // Bounded by RECORDS_PER_BATCH_MAX and BATCH_BYTES_MAX above, so nothing is cut off.
        self.entries.push(wire::RecordEntry::new(
            self.data.len() as u32,
            self.entries.len() as u32,
            time_delta(record.created_ms, self.created_ms),
            crate::key_hash::tag_hash(record.tag),
            record.key.len() as u32,
            headers_length as u32,
        ));
        self.data.extend_from_slice(record.key);
        for (name, value) in record.headers {
            self.data.extend_from_slice(&(name.len() as u16).to_le_bytes());
            self.data.extend_from_slice(&(value.len() as u32).to_le_bytes());
            self.data.extend_from_slice(name);
            self.data.extend_from_slice(value);
        }
        self.data.extend_from_slice(record.value);
        Ok(())
    }

    /// Appends the finished batch to `out`, empties the builder and returns the batch's length in bytes.
    ///
    /// The builder must not be empty.
    pub fn finish_into(&mut self, out: &mut Vec<u8>) -> usize {
        self.finish(out, |data, out| {
            out.extend_from_slice(data);
            Compression::None
        })
    }

    /// The same with the data area compressed, if that makes it shorter; else as `finish_into`.
    ///
    /// The builder must not be empty.
    pub fn finish_compressed_into(&mut self, compressor: &mut Compressor, out: &mut Vec<u8>) -> usize {
        self.finish(out, |data, out| compressor.append(data, out))
    }

    /// `append` puts the data area behind what is there, and tells how it is compressed.
    fn finish(
        &mut self,
        out: &mut Vec<u8>,
        append: impl FnOnce(&[u8], &mut Vec<u8>) -> Compression,
    ) -> usize {
        assert!(!self.entries.is_empty());
        let header = BatchHeader {
            created_ms: self.created_ms.into(),
            last_offset_delta: U32::new(self.entries.len() as u32 - 1),
            ..BatchHeader::default()
        };
        let parts = Parts { header, entries: &self.entries, data: &self.data };
        let length = parts.write(&mut self.index, out, append);
        self.entries.clear();
        self.data.clear();
        length
    }
}

/// What a batch is made of: a header that lacks only what follows from the others.
pub(super) struct Parts<'a> {
    pub(super) header: BatchHeader,
    pub(super) entries: &'a [wire::RecordEntry],
    pub(super) data: &'a [u8],
}

impl Parts<'_> {
    /// Appends the batch to `out` and returns its length in bytes. `append` puts the data area behind what is there, and
    /// tells how it is compressed.
    pub(super) fn write(
        mut self,
        index: &mut FlatBufferBuilder<'static>,
        out: &mut Vec<u8>,
        append: impl FnOnce(&[u8], &mut Vec<u8>) -> Compression,
    ) -> usize {
        index.reset();
        let records = index.create_vector(self.entries);
        let root = wire::RecordIndex::create(index, &wire::RecordIndexArgs { records: Some(records) });
        index.finish_minimal(root);
        let index = index.finished_data();

        let start = out.len();
        let index_length = padded(index.len());
        out.resize(start + BATCH_HEADER_BYTES, 0);
        out.extend_from_slice(index);
        let data_start = start + BATCH_HEADER_BYTES + index_length;
        out.resize(data_start, 0);
        let compression = append(self.data, out);
        let data_length = out.len() - data_start;
        out.resize(data_start + padded(data_length), 0);

        let batch = &mut out[start..];
        let header = &mut self.header;
        header.magic = BATCH_MAGIC;
        header.version = BATCH_VERSION;
        header.compression = compression as u8;
        header.batch_length = U32::new(batch.len() as u32);
        header.index_length = U32::new(index_length as u32);
        header.data_length = U32::new(data_length as u32);
        header.uncompressed_length = U32::new(self.data.len() as u32);
        header.record_count = U32::new(self.entries.len() as u32);
        write_header(batch, header);
        header.producer_crc = U32::new(producer_sum(batch));
        write_header(batch, header);
        batch.len()
    }
}

/// Upper bound of a batch's length when it is not compressed, in bytes.
pub(super) fn bound(record_count: usize, data_length: usize) -> usize {
    BATCH_HEADER_BYTES + INDEX_OVERHEAD_BYTES + record_count * INDEX_ENTRY_BYTES + padded(data_length)
}

/// Difference in milliseconds, clamped to what the index can hold (24 days either way).
pub(super) fn time_delta(time_ms: u64, base_ms: u64) -> i32 {
    let delta = i128::from(time_ms) - i128::from(base_ms);
    delta.clamp(i128::from(i32::MIN), i128::from(i32::MAX)) as i32
}
