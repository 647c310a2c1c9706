//! Result codes of answers, and which of them a client may retry.
//!
//! A retryable refusal says that nothing was stored and that the same request can succeed later; every other
//! refusal stands until the request or the world changes.

/// Result code of an answer (`u16` at bytes 8..10 of the frame header).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Status {
    /// Done; for a durable produce: on stable storage.
    Ok = 0,

    /// A queue or window is full, or there is no memory for a long frame; `subject` of a produce answer hints at the wait in microseconds.
    Busy = 1,
    /// No space for more records: the journal, or the memory that holds what it holds, is used up.
    DiskFull = 2,
    /// A quota of the topic or the client is used up.
    QuotaExceeded = 3,
    /// Another shard owns this partition.
    NotOwner = 4,
    /// The broker is going away; reconnect.
    ShuttingDown = 5,

    /// The opcode is not one that this version knows.
    UnknownOpcode = 16,
    /// The frame's version, or every version that `Hello` offers, is not spoken here.
    UnsupportedVersion = 17,
    /// A frame header, length or reserved field lies.
    MalformedFrame = 18,
    /// The envelope does not verify, or a field of it is out of bounds.
    InvalidEnvelope = 19,
    /// The frame is longer than `Hello` granted, or a batch leaves no room in it for the header of an answer.
    FrameTooLarge = 20,
    /// A record is longer than `Hello` granted.
    RecordTooLarge = 21,
    /// The first frame of a connection was not `Hello`.
    HelloRequired = 22,
    /// A field or value that is drawn in the format and not built yet.
    Unsupported = 23,
    /// The peer was silent, or slow with a frame, for longer than a named time.
    TimedOut = 24,

    /// A batch header, index or length lies.
    InvalidBatch = 32,
    /// The checksum over the producer's bytes does not match.
    CorruptBatch = 33,

    /// No topic of this name.
    UnknownTopic = 48,
    /// A topic of this name exists.
    TopicExists = 49,
    /// Empty, too long, or with characters other than `A-Z a-z 0-9 . _ -`.
    InvalidTopicName = 50,
    /// The topic has no such partition.
    UnknownPartition = 51,
    /// The handle's topic was deleted.
    StaleHandle = 52,
    /// More topics or partitions than the broker's limits.
    TopicLimit = 53,

    /// The offset is not in the partition, or no longer; the envelope `ErrorDetail` gives the valid range.
    OffsetOutOfRange = 64,
    /// No subscription of this id on this connection.
    UnknownSubscription = 65,
    /// A subscription of this id exists on this connection.
    SubscriptionExists = 66,
    /// A grant would take the credit over its bound.
    CreditOverflow = 67,
    /// More subscriptions than the broker's limit.
    SubscriptionLimit = 68,

    /// Stored bytes do not match their checksum; the envelope `ErrorDetail` gives the offsets that cannot be read.
    Corrupt = 80,
}

impl Status {
    /// Every code, in the order of their numbers.
    pub const ALL: [Self; 29] = [
        Self::Ok,
        Self::Busy,
        Self::DiskFull,
        Self::QuotaExceeded,
        Self::NotOwner,
        Self::ShuttingDown,
        Self::UnknownOpcode,
        Self::UnsupportedVersion,
        Self::MalformedFrame,
        Self::InvalidEnvelope,
        Self::FrameTooLarge,
        Self::RecordTooLarge,
        Self::HelloRequired,
        Self::Unsupported,
        Self::TimedOut,
        Self::InvalidBatch,
        Self::CorruptBatch,
        Self::UnknownTopic,
        Self::TopicExists,
        Self::InvalidTopicName,
        Self::UnknownPartition,
        Self::StaleHandle,
        Self::TopicLimit,
        Self::OffsetOutOfRange,
        Self::UnknownSubscription,
        Self::SubscriptionExists,
        Self::CreditOverflow,
        Self::SubscriptionLimit,
        Self::Corrupt,
    ];

    /// The code of a number, or `None` for one that this version does not know.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|status| *status as u16 == code)
    }

    /// Whether nothing was stored and the same request may succeed later.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Busy | Self::DiskFull | Self::QuotaExceeded | Self::NotOwner | Self::ShuttingDown
        )
    }

    /// Whether a produce refused so closes the gate of its connection and partition (docs/PROTOCOL.md, "Gate").
    #[must_use]
    pub fn closes_gate(self) -> bool {
        matches!(self, Self::Busy | Self::DiskFull | Self::QuotaExceeded | Self::NotOwner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_number() {
        for status in Status::ALL {
            assert_eq!(Status::from_code(status as u16), Some(status));
        }
        assert_eq!(Status::from_code(999), None);
    }

    #[test]
    fn codes_grow_strictly_and_what_closes_a_gate_is_retryable() {
        assert!(Status::ALL.windows(2).all(|pair| (pair[0] as u16) < pair[1] as u16));
        assert!(Status::ALL.iter().all(|status| !status.closes_gate() || status.is_retryable()));
    }
}
