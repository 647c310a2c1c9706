//! What a connection tells its owner, and the small owned structs that it tells it in.
//!
//! Payloads are lent from the receive buffer until the next call; everything else is owned, because it is rare.

use protocol::frame::Opcode;
use protocol::ids::{CorrelationId, Handle, Offset, SubscriptionId};
use protocol::status::Status;
use protocol::wire::AckClass;

/// Something that the broker sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// `Hello` was answered: requests may be made now.
    HelloDone(Grants),
    /// All records of a produce frame are on stable storage.
    Produced {
        /// Of the produce request.
        correlation: CorrelationId,
        /// Offset of the first record; the others follow without gaps.
        first_offset: Offset,
    },
    /// A request was refused; nothing of it was done.
    Refused(Refusal),
    /// A topic was created, or is as asked for.
    TopicDescribed {
        /// Of the create or describe request.
        correlation: CorrelationId,
        /// The topic.
        topic: TopicDescription,
    },
    /// A topic and its records are gone.
    TopicDeleted {
        /// Of the delete request.
        correlation: CorrelationId,
    },
    /// One page of topics.
    Topics {
        /// Of the list request.
        correlation: CorrelationId,
        /// The page.
        topics: TopicList,
    },
    /// Deliveries will follow.
    Subscribed {
        /// Of the subscribe request.
        correlation: CorrelationId,
        /// As chosen in the request.
        subscription: SubscriptionId,
        /// The partitions, each with the offset where delivery starts.
        partitions: Vec<SubscribedPartition>,
    },
    /// No deliveries will follow.
    Unsubscribed {
        /// Of the unsubscribe request.
        correlation: CorrelationId,
        /// The subscription that ended.
        subscription: SubscriptionId,
    },
    /// The broker ended a subscription: no deliveries will follow.
    SubscriptionEnded {
        /// The subscription that ended.
        subscription: SubscriptionId,
        /// Why.
        reason: EndReason,
    },
    /// Batches of one partition, not yet checked: see `delivered::DeliveredBatches`.
    Delivered {
        /// Whose credit was used.
        subscription: SubscriptionId,
        /// Where the batches come from.
        partition: Handle,
        /// One or more batches.
        payload: &'a [u8],
    },
    /// The answer of a fetch; its batches are not yet checked.
    Fetched {
        /// Of the fetch request.
        correlation: CorrelationId,
        /// Where the batches come from.
        partition: Handle,
        /// Where to go on.
        next_offset: Offset,
        /// End of what is durable in the partition.
        durable_end: Offset,
        /// Zero or more batches.
        payload: &'a [u8],
    },
    /// The broker's counters.
    Stats {
        /// Of the stats request.
        correlation: CorrelationId,
        /// The counters.
        stats: Box<Stats>,
    },
    /// The broker is about to close the connection. From now on requests are refused and nothing leaves; answers may
    /// still come.
    GoAway {
        /// Why.
        status: Status,
        /// In words, if the broker gave any.
        message: Option<String>,
    },
}

impl Event<'_> {
    /// The request that this answers; `None` for a push and for `HelloDone`.
    #[must_use]
    pub fn correlation(&self) -> Option<CorrelationId> {
        match self {
            Self::Refused(refusal) => Some(refusal.correlation),
            Self::Produced { correlation, .. }
            | Self::TopicDescribed { correlation, .. }
            | Self::TopicDeleted { correlation }
            | Self::Topics { correlation, .. }
            | Self::Subscribed { correlation, .. }
            | Self::Unsubscribed { correlation, .. }
            | Self::Fetched { correlation, .. }
            | Self::Stats { correlation, .. } => Some(*correlation),
            Self::HelloDone(_)
            | Self::SubscriptionEnded { .. }
            | Self::Delivered { .. }
            | Self::GoAway { .. } => None,
        }
    }
}

/// What `Hello` granted, and what the broker said about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    /// Name and release.
    pub server_name: String,
    /// Protocol version spoken.
    pub version: u8,
    /// Feature bits.
    pub features: u64,
    /// The shard that owns this connection.
    pub shard: u32,
    /// Number of shards.
    pub shard_count: u32,
    /// Longest frame either side may send.
    pub frame_bytes_max: u32,
    /// Longest record.
    pub record_bytes_max: u32,
    /// Bytes of produce frames that may be unanswered, headers included.
    pub window_bytes: u32,
    /// Requests that may be unanswered.
    pub requests_in_flight_max: u32,
    /// A side that sent nothing for so long sends a heartbeat.
    pub heartbeat_ms: u32,
    /// How the broker makes records durable.
    pub durability: Option<String>,
    /// Whether it was started without durability.
    pub volatile_storage: bool,
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Of the request.
    pub correlation: CorrelationId,
    /// What was asked for.
    pub opcode: Opcode,
    /// Why not.
    pub status: Status,
    /// When to try again, in microseconds; 0 if the broker gave no hint.
    pub retry_after_us: u64,
    /// In words, if the broker gave any.
    pub detail: Option<String>,
    /// With `OffsetOutOfRange`: what would have been in range.
    pub valid: Option<ValidOffsets>,
    /// With `Corrupt`: what cannot be read.
    pub damaged: Option<DamagedOffsets>,
}

/// Why the broker ended a subscription: its topic is gone, its next record was removed, or cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndReason {
    /// In one code.
    pub status: Status,
    /// In words, if the broker gave any.
    pub detail: Option<String>,
    /// With `OffsetOutOfRange`: what the partition has now.
    pub valid: Option<ValidOffsets>,
    /// With `Corrupt`: what cannot be read.
    pub damaged: Option<DamagedOffsets>,
}

/// The offsets that a partition has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidOffsets {
    /// The partition, if the broker named it.
    pub partition: Option<Handle>,
    /// The first.
    pub first: Offset,
    /// The last that a subscription may start at.
    pub last: Offset,
}

/// Offsets whose stored bytes are damaged: from `first` to the one before `next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedOffsets {
    /// The partition, if the broker named it.
    pub partition: Option<Handle>,
    /// The first that cannot be read.
    pub first: Offset,
    /// The first behind them that can be read: a subscription may start there.
    pub next: Offset,
}

/// What a topic keeps, and how. 0 is no limit, or the broker's own choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicSettings {
    /// Records older than this may be removed, in milliseconds.
    pub retention_ms: u64,
    /// Bytes of batches that each partition keeps at least; what is older may be removed.
    pub retention_bytes: u64,
    /// Length of a segment file: what is removed is removed by the segment.
    pub segment_bytes: u64,
    /// Age at which a segment is closed although it is not full, in milliseconds.
    pub segment_ms: u64,
    /// Whether only the last record of each key is kept.
    pub compact: bool,
}

/// A topic and its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// Its name.
    pub name: String,
    /// When produced records are acknowledged.
    pub ack_class: AckClass,
    /// When it was created, milliseconds since 1970.
    pub created_ms: u64,
    /// In the order of their numbers, from 0; at least one.
    pub partitions: Vec<PartitionDescription>,
    /// What it keeps, and how.
    pub settings: TopicSettings,
}

/// A partition as the broker describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionDescription {
    /// What produce and fetch name it by.
    pub handle: Handle,
    /// Offset of the first record that is kept.
    pub start_offset: Offset,
    /// The offset behind the last durable record.
    pub end_offset: Offset,
    /// Bytes of its batches.
    pub stored_bytes: u64,
    /// The shard that owns it.
    pub shard: u32,
}

/// One page of topics, sorted by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicList {
    /// The page.
    pub topics: Vec<TopicSummary>,
    /// Whether there are more behind the last one.
    pub more: bool,
}

/// A topic in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSummary {
    /// Its name.
    pub name: String,
    /// Number of partitions.
    pub partition_count: u32,
    /// When produced records are acknowledged.
    pub ack_class: AckClass,
    /// What it keeps, and how.
    pub settings: TopicSettings,
}

/// A partition of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribedPartition {
    /// The partition.
    pub handle: Handle,
    /// Offset of the first record that the subscriber asked for; the first batch may begin before it.
    pub start_offset: Offset,
}

/// The broker's counters and watermarks, as `docs/PROTOCOL.md` names them. They only grow, but for what is said to
/// be a level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Milliseconds since the broker started.
    pub uptime_ms: u64,
    /// Level: resident memory of the process.
    pub resident_bytes: u64,
    /// CPU time of the process.
    pub cpu_ns: u64,
    /// CPU time spent spinning for completions.
    pub spin_ns: u64,
    /// Level: memory that the broker may use.
    pub memory_budget_bytes: u64,
    /// Level: memory in use.
    pub memory_used_bytes: u64,
    /// Level: open connections.
    pub connections: u64,
    /// Level: topics.
    pub topics: u64,
    /// Level: partitions.
    pub partitions: u64,
    /// Level: length of the journal.
    pub journal_bytes: u64,
    /// Level: how much of it holds what is still needed.
    pub journal_used_bytes: u64,
    /// Level: how much of it is prepared for writing.
    pub journal_prepared_bytes: u64,
    /// LSN of the last entry in memory.
    pub appended_lsn: u64,
    /// LSN up to which writes completed.
    pub written_lsn: u64,
    /// LSN up to which entries survive power loss.
    pub durable_lsn: u64,
    /// Which start of this data directory it is.
    pub epoch: u64,
    /// Produce frames accepted.
    pub produce_frames: u64,
    /// Records accepted.
    pub produce_records: u64,
    /// Bytes of batches accepted.
    pub produce_bytes: u64,
    /// Produce frames refused.
    pub produce_refused: u64,
    /// Records delivered.
    pub deliver_records: u64,
    /// Bytes of batches delivered.
    pub deliver_bytes: u64,
    /// Journal blocks sealed.
    pub blocks_sealed: u64,
    /// Flushes issued.
    pub flushes: u64,
    /// Passes of the event loop.
    pub turns: u64,
    /// Sum of the time from sealing a block to its durability.
    pub commit_ns_total: u64,
    /// How records are made durable.
    pub durability: Option<String>,
    /// How the shard waits.
    pub waiting: Option<String>,
    /// Level: memory that holds the ends of partitions.
    pub tail_bytes: u64,
    /// Level: segment files.
    pub segment_count: u64,
    /// Level: bytes of batches in them.
    pub segment_bytes: u64,
    /// Level: bytes that they take on the disk.
    pub segment_allocated_bytes: u64,
    /// Bytes written to segments behind the acknowledgements.
    pub written_behind_bytes: u64,
    /// Checkpoints made.
    pub checkpoints: u64,
    /// Level: number of the newest snapshot.
    pub snapshot_sequence: u64,
    /// Reads from segments.
    pub cold_reads: u64,
    /// Bytes that they read.
    pub cold_read_bytes: u64,
    /// Ranges of offsets found damaged.
    pub corrupt_ranges: u64,
    /// Segments rewritten by compaction.
    pub compactions: u64,
    /// Segments that retention removed.
    pub trimmed_segments: u64,
    /// Files unlinked.
    pub removed_files: u64,
}
