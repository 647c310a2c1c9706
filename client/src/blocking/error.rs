//! What can go wrong for a blocking caller, in one type.
//!
//! `is_retryable` tells whether the same call may succeed later; `Unknown` is the one that must not be retried
//! blindly, because the first try may have been carried out.

use std::io;

use protocol::batch::BatchError;
use protocol::ids::Handle;
use protocol::status::Status;

use crate::connection::{ConnectionError, DamagedOffsets, EndReason, Refusal, RequestError, ValidOffsets};
use crate::producer::PushError;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where to.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke, or the broker fell silent.
    #[error("connection lost: {0}")]
    Io(#[source] io::Error),
    /// The broker sent what it must not send.
    #[error("the broker broke the protocol: {0}")]
    Protocol(#[source] ConnectionError),
    /// A delivered or fetched batch does not match its checksums.
    #[error("a batch that the broker sent is damaged: {0}")]
    Batch(#[from] BatchError),
    /// The broker refused the request; nothing of it was done.
    #[error("refused with {status:?}{}", in_words(.detail.as_deref()))]
    Refused {
        /// Why.
        status: Status,
        /// When to try again, in microseconds; 0 if the broker gave no hint.
        retry_after_us: u64,
        /// In words, if the broker gave any.
        detail: Option<String>,
    },
    /// The offset is not in the partition, or is there no more: retention has removed it.
    #[error("the offset is not in the partition{}: it has {} to {}", of_partition(.0.partition), .0.first, .0.last)]
    OffsetOutOfRange(ValidOffsets),
    /// The broker's stored bytes of some records are damaged. Those before and behind can be read.
    #[error("offsets {} to {}{} cannot be read: their stored bytes are damaged; {} can be read again",
        .0.first, .0.next.0.saturating_sub(1), of_partition(.0.partition), .0.next)]
    Corrupt(DamagedOffsets),
    /// The broker closed the connection and said why.
    #[error("the broker closed the connection with {status:?}{}", in_words(.message.as_deref()))]
    GoAway {
        /// Why.
        status: Status,
        /// In words, if the broker gave any.
        message: Option<String>,
    },
    /// No answer, or no room, within the time that the caller gave.
    #[error("nothing came in time")]
    TimedOut,
    /// The request was sent and never answered: it was carried out or not.
    #[error("the connection ended before the answer: the request was carried out or not")]
    Unknown,
    /// The request could not be made.
    #[error("{0}")]
    Request(#[from] RequestError),
    /// The record was not taken.
    #[error("{0}")]
    Push(#[from] PushError),
}

impl ClientError {
    /// Whether nothing was done and the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Io(_) | Self::GoAway { .. } | Self::TimedOut => true,
            Self::Refused { status, .. } => status.is_retryable(),
            Self::Request(error) => matches!(
                error,
                RequestError::NotReady
                    | RequestError::Closing
                    | RequestError::WindowFull
                    | RequestError::TooMany
            ),
            Self::Push(error) => matches!(error, PushError::Full | PushError::ResultsWaiting),
            Self::Protocol(_)
            | Self::Batch(_)
            | Self::Unknown
            | Self::OffsetOutOfRange(_)
            | Self::Corrupt(_) => false,
        }
    }

    /// The same, with the partition filled in where the broker named none.
    pub(super) fn in_partition(mut self, only: Option<Handle>) -> Self {
        if let Self::OffsetOutOfRange(ValidOffsets { partition, .. })
        | Self::Corrupt(DamagedOffsets { partition, .. }) = &mut self
        {
            *partition = partition.or(only);
        }
        self
    }

    /// Whether a request that was sent has no answer after it, and will get none.
    pub(super) fn leaves_open(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Protocol(_) | Self::GoAway { .. } | Self::TimedOut)
    }
}

impl From<ConnectionError> for ClientError {
    fn from(error: ConnectionError) -> Self {
        if error.is_lie() {
            Self::Protocol(error)
        } else {
            Self::Io(io::Error::new(io::ErrorKind::TimedOut, error))
        }
    }
}

impl From<Refusal> for ClientError {
    fn from(refusal: Refusal) -> Self {
        let Refusal { status, retry_after_us, detail, valid, damaged, .. } = refusal;
        match (valid, damaged) {
            (Some(valid), _) => Self::OffsetOutOfRange(valid),
            (None, Some(damaged)) => Self::Corrupt(damaged),
            (None, None) => Self::Refused { status, retry_after_us, detail },
        }
    }
}

impl From<EndReason> for ClientError {
    fn from(reason: EndReason) -> Self {
        let EndReason { status, detail, valid, damaged } = reason;
        match (valid, damaged) {
            (Some(valid), _) => Self::OffsetOutOfRange(valid),
            (None, Some(damaged)) => Self::Corrupt(damaged),
            (None, None) => Self::Refused { status, retry_after_us: 0, detail },
        }
    }
}

/// What follows the status: the broker's words.
fn in_words(detail: Option<&str>) -> String {
    detail.map(|text| format!(": {text}")).unwrap_or_default()
}

fn of_partition(partition: Option<Handle>) -> String {
    partition.map(|handle| format!(" of partition {}", handle.partition())).unwrap_or_default()
}
