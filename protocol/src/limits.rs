//! Compile-time bounds of the wire and batch format.
//! A broker may grant less (see `HelloResponse`), never more.

/// Version of frame and batch layout that this crate speaks.
pub const PROTOCOL_VERSION: u8 = 1;

/// Everything on the wire is padded to this many bytes.
pub const ALIGNMENT: usize = 8;

/// Longest record (key, headers and value together), in bytes.
pub const RECORD_BYTES_MAX: usize = 8 << 20;

/// Longest frame, header included, in bytes.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// Longest batch, header included: what fits into a frame beside its header and the envelope of an answer.
pub const BATCH_BYTES_MAX: usize = FRAME_BYTES_MAX - (4 << 10);

/// Longest batch when its data area is inflated, header and index included: whoever inflates it, or gathers some of its
/// records into a batch that is not compressed, needs no more room than for any other batch.
pub const INFLATED_BATCH_BYTES_MAX: usize = BATCH_BYTES_MAX;

/// Most records in one batch; bounds the work of one check.
pub const RECORDS_PER_BATCH_MAX: usize = 65_536;

/// Most batches in one produce frame; bounds the work of one request.
pub const BATCHES_PER_FRAME_MAX: usize = 1_024;

/// Longest envelope, in bytes; cold requests stay small.
pub const ENVELOPE_BYTES_MAX: usize = 256 << 10;

/// Longest topic name, in bytes.
pub const TOPIC_NAME_BYTES_MAX: usize = 128;

/// Most partitions of one topic.
pub const PARTITIONS_PER_TOPIC_MAX: u32 = 4_096;

/// Most topics that one answer of `ListTopics` names; the next request goes on after the last.
pub const TOPICS_PER_LIST_MAX: usize = 512;

/// Longest client name in `Hello`, in bytes.
pub const CLIENT_NAME_BYTES_MAX: usize = 128;

/// Longest error message in an answer, in bytes.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 512;

const _: () = assert!(RECORD_BYTES_MAX + (1 << 20) < FRAME_BYTES_MAX);
const _: () = assert!(FRAME_BYTES_MAX.is_multiple_of(ALIGNMENT));
const _: () = assert!(BATCH_BYTES_MAX.is_multiple_of(ALIGNMENT));
// Every batch that is not compressed is within the bound for those that are.
const _: () = assert!(INFLATED_BATCH_BYTES_MAX >= BATCH_BYTES_MAX);
// The index of a full batch leaves room for its data.
const _: () = assert!(RECORDS_PER_BATCH_MAX * 24 < BATCH_BYTES_MAX / 8);
// One answer that lists topics fits into an envelope: name, settings, vtables, offsets.
const _: () = assert!(TOPICS_PER_LIST_MAX * (TOPIC_NAME_BYTES_MAX + 192) < ENVELOPE_BYTES_MAX);
const _: () = assert!(PARTITIONS_PER_TOPIC_MAX as usize * 40 + 1024 < ENVELOPE_BYTES_MAX);
