//! The batch: records that are stored, acknowledged and delivered together.
//!
//! ```text
//!   0 magic "FBB1"  4 version 5 encoding 6 compression 7 priority   8 batch length  12 index length
//!  16 data length  20 uncompressed length  24 record count  28 attributes  30 producer epoch
//!  32 producer id  40 first sequence       48 created time  56 deliver at
//!  64 expires at   72 last offset delta    76 producer CRC  80 base offset  88 appended time
//!  96 log epoch   100 zeros               124 broker CRC
//! 128 record index (FlatBuffers, padded to 8) | data area (padded to 8)
//! ```
//!
//! The data area may be compressed; the index is not, and its positions are those of the inflated area.
//! The producer CRC covers bytes 0..76 and 128..; the broker CRC covers the partition's handle and bytes 76..124.

mod builder;
mod compress;
mod records;
mod sparse;
mod view;

pub use builder::{BatchBuilder, BuildError, Record};
pub use compress::{Compressor, Inflater};
pub use records::{Headers, RecordView, Records};
pub use sparse::SparseBuilder;
pub use view::Batch;

use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::crc::Crc32c;
use crate::ids::{Handle, Offset};
use crate::limits::{ALIGNMENT, BATCH_BYTES_MAX};
use crate::status::Status;

/// Length of the batch header, in bytes: two cache lines.
pub const BATCH_HEADER_BYTES: usize = 128;

/// First four bytes of every batch.
pub const BATCH_MAGIC: [u8; 4] = *b"FBB1";

/// Version of the batch layout.
pub const BATCH_VERSION: u8 = 1;

/// The bytes that the broker CRC covers: from the producer CRC to itself.
const BROKER_CRC_RANGE: std::ops::Range<usize> = 76..124;
/// The bytes of the header that the producer CRC covers.
const PRODUCER_CRC_RANGE: std::ops::Range<usize> = 0..76;

/// How the records of a batch are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// Offset deltas 0, 1, 2, ...; records lie one after another.
    Plain = 0,
    /// Gathered by the broker from what is left of a batch: offset deltas grow, with gaps before, between and behind
    /// the records. Never sent by a producer, never compressed.
    Sparse = 1,
    /// A foreign format carried as it came. Not built yet.
    Foreign = 2,
}

impl Encoding {
    /// The one of a number, or `None` for one that is not built.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Plain, Self::Sparse].into_iter().find(|encoding| *encoding as u8 == code)
    }
}

/// How the data area is compressed, by the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// One LZ4 block, without a length in front.
    Lz4 = 1,
    /// One Zstandard frame.
    Zstd = 2,
}

impl Compression {
    /// The one of a number, or `None` for one that this version does not know.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::None, Self::Lz4, Self::Zstd].into_iter().find(|compression| *compression as u8 == code)
    }
}

/// The fixed header of a batch, as it is sent and stored. Times are milliseconds since 1970-01-01 UTC, 0 = none.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct BatchHeader {
    /// `BATCH_MAGIC`.
    pub magic: [u8; 4],
    /// `BATCH_VERSION`.
    pub version: u8,
    /// Number of an `Encoding`.
    pub encoding: u8,
    /// Number of a `Compression`.
    pub compression: u8,
    /// 0 = normal. Drawn, not built yet.
    pub priority: u8,
    /// Length of the whole batch in bytes, a multiple of 8.
    pub batch_length: U32,
    /// Length of the record index in bytes, a multiple of 8.
    pub index_length: U32,
    /// Length of the data area in bytes as stored, without its padding.
    pub data_length: U32,
    /// Length of the data area in bytes when inflated.
    pub uncompressed_length: U32,
    /// Number of records, at least 1.
    pub record_count: U32,
    /// Bits that later versions define; 0.
    pub attributes: U16,
    /// Fences older owners of the producer id. Drawn, not built yet.
    pub producer_epoch: U16,
    /// 0 = not idempotent. Drawn, not built yet.
    pub producer_id: U64,
    /// Producer's sequence of the first record. Drawn, not built yet.
    pub first_sequence: U64,
    /// When the producer made the batch.
    pub created_ms: U64,
    /// Not to be delivered before. Drawn, not built yet.
    pub deliver_at_ms: U64,
    /// Not to be delivered after. Drawn, not built yet.
    pub expires_at_ms: U64,
    /// Offset delta of the last record; in a sparse batch of the last offset that it covers, kept or not.
    pub last_offset_delta: U32,
    /// CRC-32C of bytes 0..76 and 128.. of the batch.
    pub producer_crc: U32,
    /// Offset of the first record, in a sparse batch the first that it covers; filled in by the broker.
    pub base_offset: U64,
    /// When the broker appended it, never less than that of the batch before; filled in by the broker.
    pub appended_ms: U64,
    /// Epoch of the journal that it was first written to; filled in by the broker.
    pub log_epoch: U32,
    /// Zeros.
    pub reserved: [u8; 24],
    /// CRC-32C of the partition's handle and bytes 76..124; filled in by the broker.
    pub broker_crc: U32,
}

const _: () = assert!(size_of::<BatchHeader>() == BATCH_HEADER_BYTES);

/// One entry of the record index, as FlatBuffers lays out `RecordEntry`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IndexEntry {
    /// Where the record starts in the inflated data area.
    pub position: U32,
    /// Offset of the record less the batch's base offset.
    pub offset_delta: U32,
    /// Time of the record less the batch's created time, in milliseconds.
    pub time_delta_ms: I32,
    /// Hash of the record's tag, 0 for none.
    pub tag_hash: U32,
    /// Length of the key, which comes first.
    pub key_length: U32,
    /// Length of the headers, which come second; the value is the rest.
    pub headers_length: U32,
}

const _: () = assert!(size_of::<IndexEntry>() == size_of::<crate::wire::RecordEntry>());

/// Why a batch was refused. Nothing of it was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than the header, or than the header says.
    #[error("batch is cut short")]
    Truncated,
    /// Not a batch of this version.
    #[error("bytes are not a batch of version {BATCH_VERSION}")]
    Magic,
    /// Lengths that do not add up, are over a limit or not multiples of 8.
    #[error("lengths of the batch header do not add up")]
    Lengths,
    /// The producer CRC does not match the bytes.
    #[error("checksum of the batch does not match")]
    Checksum,
    /// The broker CRC does not match: a flipped offset, or a batch of another partition.
    #[error("checksum of offset and partition does not match")]
    Misplaced,
    /// The index does not verify, has another count, or its entries lie.
    #[error("record index lies")]
    Index,
    /// The data area does not inflate to the length that the header gives.
    #[error("data area does not inflate to what the header says")]
    Inflation,
    /// A record is over `RECORD_BYTES_MAX`.
    #[error("a record is longer than the limit")]
    RecordTooLarge,
    /// A field that is drawn in the format and not built yet.
    #[error("the batch uses {0}, which is not built yet")]
    Unsupported(&'static str),
}

impl BatchError {
    /// The code to answer with.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Truncated | Self::Magic | Self::Lengths | Self::Index | Self::Inflation => {
                Status::InvalidBatch
            }
            Self::Checksum => Status::CorruptBatch,
            Self::Misplaced => Status::Corrupt,
            Self::RecordTooLarge => Status::RecordTooLarge,
            Self::Unsupported(_) => Status::Unsupported,
        }
    }
}

/// What the broker fills in when it appends a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokerFields {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Time of the append, milliseconds since 1970.
    pub appended_ms: u64,
    /// Epoch of the journal.
    pub log_epoch: u32,
}

impl BatchHeader {
    /// The header at the start of `bytes`, with only magic, version and length checked: for walking over bytes
    /// that were checked before, and for cutting a payload into batches.
    ///
    /// # Errors
    /// `Truncated`, `Magic` or `Lengths`.
    pub fn peek(bytes: &[u8]) -> Result<&Self, BatchError> {
        let Ok((header, _)) = Self::ref_from_prefix(bytes) else { return Err(BatchError::Truncated) };
        if header.magic != BATCH_MAGIC || header.version != BATCH_VERSION {
            return Err(BatchError::Magic);
        }
        let length = header.batch_bytes();
        if !(BATCH_HEADER_BYTES..=BATCH_BYTES_MAX).contains(&length) || !length.is_multiple_of(ALIGNMENT) {
            return Err(BatchError::Lengths);
        }
        if length > bytes.len() {
            return Err(BatchError::Truncated);
        }
        Ok(header)
    }

    /// Length of the whole batch in bytes.
    #[must_use]
    pub fn batch_bytes(&self) -> usize {
        self.batch_length.get() as usize
    }

    /// Offset of the first record.
    #[must_use]
    pub fn base_offset(&self) -> Offset {
        Offset(self.base_offset.get())
    }

    /// The broker's fields, for a batch that takes the place of this one.
    #[must_use]
    pub fn broker_fields(&self) -> BrokerFields {
        BrokerFields {
            base_offset: self.base_offset(),
            appended_ms: self.appended_ms.get(),
            log_epoch: self.log_epoch.get(),
        }
    }

    /// The offset behind the last record, or behind the last offset that a sparse batch covers.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.base_offset().plus(u64::from(self.last_offset_delta.get()) + 1)
    }

    /// Fills the broker's fields into the batch at the start of `bytes`, and its CRC.
    ///
    /// `bytes` must hold a checked batch.
    pub fn place(bytes: &mut [u8], partition: Handle, fields: BrokerFields) {
        let (header, _) = Self::mut_from_prefix(bytes).expect("a checked batch has a header");
        header.base_offset = U64::new(fields.base_offset.0);
        header.appended_ms = U64::new(fields.appended_ms);
        header.log_epoch = U32::new(fields.log_epoch);
        header.reserved = [0; 24];
        header.broker_crc = U32::new(header.broker_sum(partition));
    }

    /// Whether the broker's fields are those that were written for this partition.
    #[must_use]
    pub fn is_placed_in(&self, partition: Handle) -> bool {
        self.broker_crc.get() == self.broker_sum(partition)
    }

    fn broker_sum(&self, partition: Handle) -> u32 {
        Crc32c::new().update(&partition.0.to_le_bytes()).update(&self.as_bytes()[BROKER_CRC_RANGE]).finish()
    }
}

/// The sum that the producer stores in its batch: of a whole batch with its header.
#[must_use]
pub fn producer_sum(batch: &[u8]) -> u32 {
    Crc32c::new().update(&batch[PRODUCER_CRC_RANGE]).update(&batch[BATCH_HEADER_BYTES..]).finish()
}

/// Rounds a length up to the wire's alignment.
#[must_use]
pub fn padded(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT)
}
