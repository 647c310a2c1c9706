//! Plain counters of one shard.
//!
//! They are fields that the shard owns, copied out when somebody asks: no atomics and no locks on its path.

/// What a shard has done since it started. Counts, unless the name says bytes or ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Turns of the loop.
    pub turns: u64,
    /// Produce frames appended.
    pub produce_frames: u64,
    /// Records appended.
    pub produce_records: u64,
    /// Bytes of batches appended.
    pub produce_bytes: u64,
    /// Produce frames refused.
    pub produce_refused: u64,
    /// Records pushed or fetched.
    pub deliver_records: u64,
    /// Bytes of batches pushed or fetched.
    pub deliver_bytes: u64,
    /// Connections accepted.
    pub connections_accepted: u64,
    /// Connections that this side ended for a broken rule or a time-out.
    pub connections_cut: u64,
    /// Journal blocks sealed, markers included.
    pub blocks_sealed: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Segments opened.
    pub segments_opened: u64,
    /// Segments rewritten by compaction.
    pub compactions: u64,
    /// Segments dropped by retention.
    pub trimmed_segments: u64,
    /// Files of dropped segments that were removed.
    pub removed_files: u64,
    /// Time from seal to durable, summed over blocks.
    pub commit_ns_total: u64,
}

/// Gauges that the event loop measures outside the shard and hands in on every turn that asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessGauges {
    /// Resident memory of the process.
    pub resident_bytes: u64,
    /// CPU time of the process, user and system.
    pub cpu_ns: u64,
    /// Time spent spinning, which is in `cpu_ns` too.
    pub spin_ns: u64,
}
