//! What a producer is told to do, and what it tells about each record.
//!
//! Every record that was pushed gets exactly one outcome, in a result that covers the records of one batch.

use protocol::batch::Compression;
use protocol::ids::Offset;
use protocol::limits::RECORDS_PER_BATCH_MAX;
use protocol::status::Status;

/// Bits of a record's number within its partition.
const NUMBER_BITS: u32 = 48;

/// Names a pushed record: bits 48..64 its partition, 0..48 its number among the records pushed there, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub u64);

impl RecordId {
    pub(super) fn new(partition: u16, number: u64) -> Self {
        assert!(number >> NUMBER_BITS == 0);
        Self(u64::from(partition) << NUMBER_BITS | number)
    }

    /// The partition.
    #[must_use]
    pub fn partition(self) -> u16 {
        (self.0 >> NUMBER_BITS) as u16
    }

    /// Its number among the records that this producer pushed to the partition, from 0.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0 & ((1 << NUMBER_BITS) - 1)
    }
}

/// Which partition a record goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// By the hash of its key; a record without a key goes as with `Sticky`.
    ByKey,
    /// To the partition whose batch is being filled; to the next one after each batch.
    Sticky,
    /// To this one.
    Partition(u16),
}

/// What became of a batch. Nothing is guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// On stable storage, at this offset and the ones that follow it.
    Acked {
        /// Offset of the first record.
        first_offset: Offset,
    },
    /// Refused; nothing of it was stored.
    Failed {
        /// Why.
        status: Status,
    },
    /// Sent, at least in part, and never answered: stored or not. It is not sent again.
    Unknown,
    /// Given up before any byte of it was sent, and never refused; nothing of it was stored.
    Unsent,
}

/// The outcome of the records `first`, `first + 1`, ... of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchResult {
    /// The first record.
    pub first: RecordId,
    /// How many there are, at least 1.
    pub record_count: u32,
    /// What became of them.
    pub outcome: Outcome,
}

/// A record that was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The buffer is full: answers make room.
    #[error("the producer's buffer is full")]
    Full,
    /// Too many results were not taken: take them.
    #[error("results of earlier records must be taken first")]
    ResultsWaiting,
    /// Longer than the broker grants, or a header name over 65,535 bytes.
    #[error("the record is longer than the broker grants")]
    RecordTooLarge,
    /// The topic has no such partition.
    #[error("the topic has no partition {0}")]
    UnknownPartition(u16),
}

/// How a producer collects and sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerOptions {
    /// A batch is closed before it would be longer, not counting what compressing saves. A single record may be.
    pub batch_bytes_max: usize,
    /// Records of a batch; at most `RECORDS_PER_BATCH_MAX`.
    pub batch_records_max: usize,
    /// How long a batch may wait for more records. With 0 it is sent as soon as there is room, and what is pushed
    /// while there is none makes the next batch larger.
    pub linger_us: u64,
    /// Bytes of batches that are open, wait, or are unanswered. A single record is always taken.
    pub buffer_bytes_max: usize,
    /// Unanswered frames of one partition. Fewer make larger batches, more hide a longer way to the broker.
    pub frames_in_flight_max: usize,
    /// Refusals in a row after which the first refused batch of a partition is given up as `Failed`; `None`: never.
    pub refusals_max: Option<u32>,
    /// How batches are compressed. One that does not become shorter is sent as it is.
    pub compression: Compression,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self {
            batch_bytes_max: 64 << 10,
            batch_records_max: RECORDS_PER_BATCH_MAX,
            linger_us: 0,
            buffer_bytes_max: 32 << 20,
            frames_in_flight_max: 16,
            refusals_max: None,
            compression: Compression::None,
        }
    }
}
