//! The frame: the length-prefixed unit on the wire.
//!
//! ```text
//!  0       4   5   6     8     10    12      16              24              32
//!  | length |ver|op |flags|status| 0  |env len| correlation id|    subject    | envelope | payload ...
//! ```
//!
//! All numbers are little endian. `length` counts the whole frame, header included, and is a multiple of 8, as is
//! the envelope's length. What `subject` means depends on the opcode; docs/PROTOCOL.md has the table.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::CorrelationId;
use crate::limits::{ALIGNMENT, ENVELOPE_BYTES_MAX, PROTOCOL_VERSION};
use crate::status::Status;

/// Length of the frame header, in bytes.
pub const FRAME_HEADER_BYTES: usize = 32;

/// Set in every answer; clear in requests and pushes.
pub const FLAG_ANSWER: u16 = 1;
/// On a produce frame: opens the gate that a retryable refusal closed.
pub const FLAG_RESUMES: u16 = 1 << 1;
/// On a produce frame: answer before the disk (ack class `memory`). Drawn, not built yet.
pub const FLAG_ACK_MEMORY: u16 = 1 << 2;

const FLAGS_KNOWN: u16 = FLAG_ANSWER | FLAG_RESUMES | FLAG_ACK_MEMORY;

/// What a frame asks for, answers or pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// First frame of a connection, both ways. Envelopes `HelloRequest`, `HelloResponse`.
    Hello = 1,
    /// Sent by either side when silent; no answer.
    Heartbeat = 2,
    /// Pushed before a side closes the connection; `status` says why.
    GoAway = 3,
    /// Counters and watermarks. Envelope of the answer: `StatsResponse`.
    Stats = 4,

    /// Envelopes `CreateTopicRequest`, `TopicDescription`.
    CreateTopic = 16,
    /// Envelope `TopicRequest`.
    DeleteTopic = 17,
    /// Envelopes `TopicRequest`, `TopicDescription`.
    DescribeTopic = 18,
    /// Envelopes `ListTopicsRequest`, `ListTopicsResponse`.
    ListTopics = 19,

    /// Payload: batches for the partition whose handle is the subject. Subject of the answer: the first offset.
    Produce = 32,

    /// Envelopes `SubscribeRequest`, `SubscribeResponse`; subject: the subscription's id.
    Subscribe = 48,
    /// Subject: the subscription's id.
    Unsubscribe = 49,
    /// Payload: `CreditGrant`; subject: the subscription's id; answered only when refused.
    Credit = 50,
    /// Pushed: batches; subject: the subscription's id; correlation id: the partition's handle.
    Deliver = 51,
    /// Envelopes `FetchRequest`, `FetchResponse`; subject: the partition's handle; the answer's payload: batches.
    Fetch = 52,
}

impl Opcode {
    /// Every opcode, in the order of their numbers.
    pub const ALL: [Self; 14] = [
        Self::Hello,
        Self::Heartbeat,
        Self::GoAway,
        Self::Stats,
        Self::CreateTopic,
        Self::DeleteTopic,
        Self::DescribeTopic,
        Self::ListTopics,
        Self::Produce,
        Self::Subscribe,
        Self::Unsubscribe,
        Self::Credit,
        Self::Deliver,
        Self::Fetch,
    ];

    /// The opcode of a number, or `None` for one that this version does not know.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|opcode| *opcode as u8 == code)
    }
}

/// The fixed header, as it lies on the wire.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FrameHeader {
    /// Length of the whole frame in bytes, a multiple of 8.
    pub length: U32,
    /// `PROTOCOL_VERSION`.
    pub version: u8,
    /// Number of an `Opcode`.
    pub opcode: u8,
    /// `FLAG_*`; unknown bits are refused.
    pub flags: U16,
    /// Number of a `Status`; 0 in requests.
    pub status: U16,
    /// 0.
    pub reserved: U16,
    /// Length of the envelope in bytes, a multiple of 8; the payload starts behind it.
    pub envelope_length: U32,
    /// Chosen by the requester, repeated in the answer.
    pub correlation_id: U64,
    /// Handle, subscription id or offset, by opcode.
    pub subject: U64,
}

const _: () = assert!(size_of::<FrameHeader>() == FRAME_HEADER_BYTES);

/// A header that cannot be followed: the connection is answered and closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The version is not `PROTOCOL_VERSION`.
    #[error("frame version {0} is not spoken here (this side speaks {PROTOCOL_VERSION})")]
    Version(u8),
    /// Shorter than a header, or not a multiple of 8.
    #[error("frame length {0} is below 32 or not a multiple of 8")]
    Length(u32),
    /// Longer than what was granted.
    #[error("frame length {0} is over the limit that Hello granted")]
    TooLarge(u32),
    /// The envelope is longer than the frame or the limit, or not a multiple of 8.
    #[error("envelope length {0} does not fit its frame")]
    EnvelopeLength(u32),
    /// A reserved field is not 0, or a flag is unknown.
    #[error("a reserved field or unknown flag is set")]
    Reserved,
}

impl FrameError {
    /// The code to answer with.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Version(_) => Status::UnsupportedVersion,
            Self::TooLarge(_) => Status::FrameTooLarge,
            Self::Length(_) | Self::EnvelopeLength(_) | Self::Reserved => Status::MalformedFrame,
        }
    }
}

impl FrameHeader {
    /// A request or push without envelope, of `payload_bytes` (a multiple of 8) behind the header.
    #[must_use]
    pub fn new(opcode: Opcode, correlation_id: CorrelationId, subject: u64) -> Self {
        Self {
            length: U32::new(FRAME_HEADER_BYTES as u32),
            version: PROTOCOL_VERSION,
            opcode: opcode as u8,
            correlation_id: U64::new(correlation_id.0),
            subject: U64::new(subject),
            ..Self::default()
        }
    }

    /// An answer without envelope and payload.
    #[must_use]
    pub fn answer(opcode: Opcode, status: Status, correlation_id: CorrelationId, subject: u64) -> Self {
        Self {
            flags: U16::new(FLAG_ANSWER),
            status: U16::new(status as u16),
            ..Self::new(opcode, correlation_id, subject)
        }
    }

    /// The same with these lengths, both multiples of 8, and a sum within `FRAME_BYTES_MAX`.
    #[must_use]
    pub fn with_lengths(mut self, envelope_bytes: usize, payload_bytes: usize) -> Self {
        assert!(envelope_bytes.is_multiple_of(ALIGNMENT));
        assert!(payload_bytes.is_multiple_of(ALIGNMENT));
        let length = FRAME_HEADER_BYTES + envelope_bytes + payload_bytes;
        assert!(length <= crate::limits::FRAME_BYTES_MAX);
        self.length = U32::new(length as u32);
        self.envelope_length = U32::new(envelope_bytes as u32);
        self
    }

    /// The same with one more flag.
    #[must_use]
    pub fn with_flag(mut self, flag: u16) -> Self {
        self.flags = U16::new(self.flags.get() | flag);
        self
    }

    /// Reads and checks the header at the start of `bytes`; `None` while fewer than 32 bytes are there.
    ///
    /// # Errors
    /// A header that lies, or asks for more than `frame_bytes_max`; nothing behind it can be cut then.
    pub fn read(bytes: &[u8], frame_bytes_max: u32) -> Result<Option<&Self>, FrameError> {
        let Ok((header, _)) = Self::ref_from_prefix(bytes) else { return Ok(None) };
        header.check(frame_bytes_max)?;
        Ok(Some(header))
    }

    fn check(&self, frame_bytes_max: u32) -> Result<(), FrameError> {
        let (length, envelope) = (self.length.get(), self.envelope_length.get());
        if self.version != PROTOCOL_VERSION {
            return Err(FrameError::Version(self.version));
        }
        if length < FRAME_HEADER_BYTES as u32 || !length.is_multiple_of(ALIGNMENT as u32) {
            return Err(FrameError::Length(length));
        }
        if length > frame_bytes_max {
            return Err(FrameError::TooLarge(length));
        }
        if envelope > length - FRAME_HEADER_BYTES as u32
            || envelope > ENVELOPE_BYTES_MAX as u32
            || !envelope.is_multiple_of(ALIGNMENT as u32)
        {
            return Err(FrameError::EnvelopeLength(envelope));
        }
        if self.reserved.get() != 0 || self.flags.get() & !FLAGS_KNOWN != 0 {
            return Err(FrameError::Reserved);
        }
        Ok(())
    }

    /// Whether a flag is set.
    #[must_use]
    pub fn has_flag(&self, flag: u16) -> bool {
        self.flags.get() & flag != 0
    }

    /// The correlation id.
    #[must_use]
    pub fn correlation(&self) -> CorrelationId {
        CorrelationId(self.correlation_id.get())
    }

    /// Length of the whole frame in bytes.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        self.length.get() as usize
    }
}

/// One whole frame, its lengths checked.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The checked header.
    pub header: &'a FrameHeader,
    /// The envelope's bytes, not yet verified.
    pub envelope: &'a [u8],
    /// What follows the envelope.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Cuts the frame at the start of `bytes`; `None` while it is not whole.
    ///
    /// # Errors
    /// As `FrameHeader::read`.
    pub fn cut(bytes: &'a [u8], frame_bytes_max: u32) -> Result<Option<Self>, FrameError> {
        let Some(header) = FrameHeader::read(bytes, frame_bytes_max)? else { return Ok(None) };
        let Some(frame) = bytes.get(..header.frame_bytes()) else { return Ok(None) };
        let (envelope, payload) = frame[FRAME_HEADER_BYTES..].split_at(header.envelope_length.get() as usize);
        Ok(Some(Self { header, envelope, payload }))
    }
}

/// Payload of a `Credit` frame: how much more the broker may push. Both are added to what is left.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CreditGrant {
    /// Records.
    pub records: U64,
    /// Bytes of batches, headers included.
    pub bytes: U64,
}

const _: () = assert!(size_of::<CreditGrant>() == 16);
