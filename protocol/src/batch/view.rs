//! Reading a batch: one check of everything, then views without copies.
//!
//! `Batch::check` trusts nothing. What it accepts can be stored and delivered: its lengths add up, its checksum
//! matches, and every record that the index names lies inside the data area.

use zerocopy::{FromBytes, IntoBytes};

use super::{
    BATCH_HEADER_BYTES, BatchError, BatchHeader, Compression, Encoding, IndexEntry, padded, producer_sum,
};
use crate::ids::Offset;
use crate::limits::{RECORD_BYTES_MAX, RECORDS_PER_BATCH_MAX};
use crate::wire;

/// A checked batch.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    bytes: &'a [u8],
    header: &'a BatchHeader,
    entries: &'a [IndexEntry],
    data: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Checks the batch at the start of `bytes`, which may be followed by others.
    ///
    /// # Errors
    /// The first fact that does not hold. Fields that are drawn and not built give `Unsupported`.
    pub fn check(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let header = BatchHeader::peek(bytes)?;
        let bytes = &bytes[..header.batch_bytes()];
        let (index, data) = check_lengths(header, bytes)?;
        if header.producer_crc.get() != producer_sum(bytes) {
            return Err(BatchError::Checksum);
        }
        check_supported(header)?;
        let entries = read_index(header, index)?;
        check_entries(entries, header.uncompressed_length.get())?;
        Ok(Self { bytes, header, entries, data })
    }

    /// The whole batch, header included.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &'a BatchHeader {
        self.header
    }

    /// Number of records, at least 1.
    #[must_use]
    pub fn record_count(&self) -> usize {
        self.entries.len()
    }

    /// Record `n` in O(1), or `None` behind the last.
    #[must_use]
    pub fn record(&self, n: usize) -> Option<RecordView<'a>> {
        let entry = self.entries.get(n)?;
        let start = entry.position.get() as usize;
        let end = self.entries.get(n + 1).map_or(self.data.len(), |next| next.position.get() as usize);
        let (key, rest) = self.data[start..end].split_at(entry.key_length.get() as usize);
        let (headers, value) = rest.split_at(entry.headers_length.get() as usize);
        Some(RecordView {
            offset: self.header.base_offset().plus(u64::from(entry.offset_delta.get())),
            created_ms: self
                .header
                .created_ms
                .get()
                .saturating_add_signed(i64::from(entry.time_delta_ms.get())),
            tag_hash: entry.tag_hash.get(),
            key,
            headers: Headers(headers),
            value,
        })
    }

    /// All records in order.
    pub fn records(&self) -> impl Iterator<Item = RecordView<'a>> + use<'a> {
        let batch = *self;
        (0..batch.record_count()).map_while(move |n| batch.record(n))
    }
}

/// One record of a batch, without a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// Its number in the partition (once the broker has placed the batch).
    pub offset: Offset,
    /// When its producer made it, milliseconds since 1970.
    pub created_ms: u64,
    /// Hash of its tag, 0 for none.
    pub tag_hash: u32,
    /// Key, possibly empty.
    pub key: &'a [u8],
    /// Names and values.
    pub headers: Headers<'a>,
    /// Value, possibly empty.
    pub value: &'a [u8],
}

/// The headers of a record: for each, name length `u16`, value length `u32`, name, value.
///
/// They are opaque to the broker; iteration ends at the first one that does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers<'a>(pub &'a [u8]);

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (lengths, rest) = self.0.split_at_checked(6)?;
        let name_length = usize::from(u16::from_le_bytes([lengths[0], lengths[1]]));
        let value_length = u32::from_le_bytes([lengths[2], lengths[3], lengths[4], lengths[5]]) as usize;
        let (name, rest) = rest.split_at_checked(name_length)?;
        let (value, rest) = rest.split_at_checked(value_length)?;
        self.0 = rest;
        Some((name, value))
    }
}

/// Splits the body into index and data; the padding must be zero.
fn check_lengths<'a>(header: &BatchHeader, bytes: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), BatchError> {
    let index_length = header.index_length.get() as usize;
    let data_length = header.data_length.get() as usize;
    let body = &bytes[BATCH_HEADER_BYTES..];
    if padded(index_length) != index_length
        || index_length.checked_add(padded(data_length)) != Some(body.len())
    {
        return Err(BatchError::Lengths);
    }
    let (index, rest) = body.split_at(index_length);
    let (data, padding) = rest.split_at(data_length);
    if padding.iter().any(|byte| *byte != 0) {
        return Err(BatchError::Lengths);
    }
    Ok((index, data))
}

/// Refuses what is drawn in the format and not built yet; nothing is ignored.
fn check_supported(header: &BatchHeader) -> Result<(), BatchError> {
    let refused = [
        (header.encoding != Encoding::Plain as u8, "an encoding other than plain"),
        (header.compression != Compression::None as u8, "compression"),
        (header.priority != 0, "a priority"),
        (header.attributes.get() != 0, "attributes"),
        (header.producer_id.get() != 0, "a producer id"),
        (header.producer_epoch.get() != 0, "a producer epoch"),
        (header.first_sequence.get() != 0, "a sequence"),
        (header.deliver_at_ms.get() != 0, "deliver_at"),
        (header.expires_at_ms.get() != 0, "expires_at"),
    ];
    match refused.into_iter().find(|(is_set, _)| *is_set) {
        Some((_, what)) => Err(BatchError::Unsupported(what)),
        None if header.uncompressed_length.get() != header.data_length.get() => Err(BatchError::Lengths),
        None => Ok(()),
    }
}

fn read_index<'a>(header: &BatchHeader, index: &'a [u8]) -> Result<&'a [IndexEntry], BatchError> {
    let options = flatbuffers::VerifierOptions {
        max_depth: 2,
        max_tables: 1,
        max_apparent_size: index.len() + 64,
        ..Default::default()
    };
    let root =
        flatbuffers::root_with_opts::<wire::RecordIndex>(&options, index).map_err(|_| BatchError::Index)?;
    let entries = <[IndexEntry]>::ref_from_bytes(root.records().bytes()).map_err(|_| BatchError::Index)?;
    let count_matches = entries.len() == header.record_count.get() as usize;
    let last_matches = entries.len().checked_sub(1) == Some(header.last_offset_delta.get() as usize);
    if !count_matches || !last_matches || entries.len() > RECORDS_PER_BATCH_MAX {
        return Err(BatchError::Index);
    }
    Ok(entries)
}

/// Every record starts where the one before ended, has room for its key and headers, and the last ends at the
/// end of the data area. `entries` is not empty.
fn check_entries(entries: &[IndexEntry], data_length: u32) -> Result<(), BatchError> {
    if entries[0].position.get() != 0 {
        return Err(BatchError::Index);
    }
    for (n, entry) in entries.iter().enumerate() {
        let end = entries.get(n + 1).map_or(data_length, |next| next.position.get());
        let Some(length) = end.checked_sub(entry.position.get()) else { return Err(BatchError::Index) };
        let prefix = u64::from(entry.key_length.get()) + u64::from(entry.headers_length.get());
        if prefix > u64::from(length) || entry.offset_delta.get() as usize != n || end > data_length {
            return Err(BatchError::Index);
        }
        if length as usize > RECORD_BYTES_MAX {
            return Err(BatchError::RecordTooLarge);
        }
    }
    Ok(())
}

/// Writes the header's own bytes, for builders and tests.
pub(super) fn write_header(bytes: &mut [u8], header: &BatchHeader) {
    bytes[..BATCH_HEADER_BYTES].copy_from_slice(header.as_bytes());
}
