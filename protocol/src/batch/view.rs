//! Reading a batch: one check of everything, then views without copies.
//!
//! `Batch::check` trusts nothing. What it accepts can be stored and delivered: its lengths add up, its checksum
//! matches, and every record that the index names lies inside the data area. It inflates nothing: whether a compressed
//! data area is what its header says is found out by who reads the records.

use zerocopy::{FromBytes, IntoBytes};

use super::{
    BATCH_HEADER_BYTES, BatchError, BatchHeader, Compression, Encoding, IndexEntry, Inflater, Records,
    padded, producer_sum,
};
use crate::limits::{INFLATED_BATCH_BYTES_MAX, RECORD_BYTES_MAX, RECORDS_PER_BATCH_MAX};
use crate::wire;

/// A checked batch.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    bytes: &'a [u8],
    header: &'a BatchHeader,
    entries: &'a [IndexEntry],
    /// As it is stored.
    data: &'a [u8],
    encoding: Encoding,
    compression: Compression,
}

impl<'a> Batch<'a> {
    /// Checks a batch that a producer sent: as `check`, and it must not be sparse.
    ///
    /// # Errors
    /// As `check`; `Unsupported` for a sparse batch.
    pub fn check_produced(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let batch = Self::check(bytes)?;
        if batch.encoding == Encoding::Plain {
            Ok(batch)
        } else {
            Err(BatchError::Unsupported("an encoding other than plain"))
        }
    }

    /// Checks the stored or delivered batch at the start of `bytes`, which may be followed by others.
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
        let (encoding, compression) = check_supported(header)?;
        check_inflated_length(header, compression)?;
        let entries = read_index(header, encoding, index)?;
        let data_length = header.uncompressed_length.get();
        if encoding == Encoding::Sparse {
            let mut least = 0;
            check_entries(entries, data_length, |_, delta| {
                let grows = u64::from(delta) >= least;
                least = u64::from(delta) + 1;
                grows
            })?;
        } else {
            check_entries(entries, data_length, |n, delta| delta as usize == n)?;
        }
        Ok(Self { bytes, header, entries, data, encoding, compression })
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

    /// How its offsets are laid out: plain or sparse.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// How the data area is compressed.
    #[must_use]
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Length that the whole batch would have if it were not compressed, at most `INFLATED_BATCH_BYTES_MAX`.
    #[must_use]
    pub fn inflated_bytes(&self) -> usize {
        inflated_bytes(self.header)
    }

    /// The records, if they are not compressed; `inflate` reads any batch.
    #[must_use]
    pub fn records(&self) -> Option<Records<'a>> {
        let is_plain = self.compression == Compression::None;
        is_plain.then(|| Records::new(self.header, self.entries, self.data))
    }

    /// The records, which lie in the inflater if they were compressed, and stay in the batch if not.
    ///
    /// # Errors
    /// `Inflation` when the data area does not inflate to what the header says: nobody looked at it before.
    pub fn inflate<'b>(&self, inflater: &'b mut Inflater) -> Result<Records<'b>, BatchError>
    where
        'a: 'b,
    {
        if let Some(records) = self.records() {
            return Ok(records);
        }
        let length = self.header.uncompressed_length.get() as usize;
        let data = inflater.inflate(self.compression, self.data, length)?;
        Ok(Records::new(self.header, self.entries, data))
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

/// Length of the batch with its data area inflated.
fn inflated_bytes(header: &BatchHeader) -> usize {
    let data_length = padded(header.uncompressed_length.get() as usize);
    BATCH_HEADER_BYTES + header.index_length.get() as usize + data_length
}

/// Nothing inflates to more than a batch may hold, and what is not compressed has one length only.
fn check_inflated_length(header: &BatchHeader, compression: Compression) -> Result<(), BatchError> {
    let is_as_stored = header.uncompressed_length.get() == header.data_length.get();
    if compression == Compression::None && !is_as_stored || inflated_bytes(header) > INFLATED_BATCH_BYTES_MAX
    {
        return Err(BatchError::Lengths);
    }
    Ok(())
}

/// Refuses what is drawn in the format and not built yet; nothing is ignored. Gives what is there.
fn check_supported(header: &BatchHeader) -> Result<(Encoding, Compression), BatchError> {
    let encoding = Encoding::from_code(header.encoding);
    let compression = Compression::from_code(header.compression);
    let (Some(encoding), Some(compression)) = (encoding, compression) else {
        let is_encoding = encoding.is_none();
        let what = if is_encoding {
            "an encoding other than plain and sparse"
        } else {
            "a compression other than LZ4 and Zstandard"
        };
        return Err(BatchError::Unsupported(what));
    };
    let is_sparse = encoding == Encoding::Sparse;
    let refused = [
        (is_sparse && compression != Compression::None, "compression of a sparse batch"),
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
        None => Ok((encoding, compression)),
    }
}

fn read_index<'a>(
    header: &BatchHeader,
    encoding: Encoding,
    index: &'a [u8],
) -> Result<&'a [IndexEntry], BatchError> {
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
    let last_offset_delta = header.last_offset_delta.get();
    let last_matches = if encoding == Encoding::Sparse {
        // It may cover more behind its last record.
        entries.last().is_some_and(|last| last.offset_delta.get() <= last_offset_delta)
    } else {
        entries.len().checked_sub(1) == Some(last_offset_delta as usize)
    };
    if !count_matches || !last_matches || entries.len() > RECORDS_PER_BATCH_MAX {
        return Err(BatchError::Index);
    }
    Ok(entries)
}

/// Every record starts where the one before ended, has room for its key and headers, and the last ends at the
/// end of the inflated data area. `is_in_place` gets each record's number and offset delta. `entries` is not empty.
fn check_entries(
    entries: &[IndexEntry],
    data_length: u32,
    mut is_in_place: impl FnMut(usize, u32) -> bool,
) -> Result<(), BatchError> {
    if entries[0].position.get() != 0 {
        return Err(BatchError::Index);
    }
    for (n, entry) in entries.iter().enumerate() {
        let end = entries.get(n + 1).map_or(data_length, |next| next.position.get());
        let Some(length) = end.checked_sub(entry.position.get()) else { return Err(BatchError::Index) };
        let prefix = u64::from(entry.key_length.get()) + u64::from(entry.headers_length.get());
        if prefix > u64::from(length) || !is_in_place(n, entry.offset_delta.get()) || end > data_length {
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
