//! The serving shard: its tables, and what it does in a turn.
//!
//! The families of requests are in files of their own; this one has what they share.

use std::collections::VecDeque;

use flatbuffers::FlatBufferBuilder;
use reactor::memory::{Pool, Slice};

use super::ShardConfig;
use super::checkpoint::Checkpoints;
use super::cold::{ColdStreams, Reader};
use super::commit::Waiter;
use super::compaction::Compaction;
use super::connection::Connection;
use super::memory::MemoryPlan;
use super::retention::Retention;
use super::scrub::Scrub;
use super::space::Space;
use super::state::State;
use super::subscribe::Subscription;
use super::topics::Creation;
use super::work::Work;
use super::write_behind::WriteBehindQueue;
use crate::bounded::Slab;
use crate::io::{Completion, File, IoError, Now, Op, Socket, Token, Wait};
use crate::journal::recovery::Recovered;
use crate::journal::{Journal, JournalFailure, Lsn};
use crate::limits::{
    CONNECTIONS_MAX, JOURNAL_CHECKPOINT_PART, JOURNAL_MARKER_IDLE_NS, PREPARE_RETRY_NS, SHUTDOWN_GRACE_NS,
    SUBSCRIPTIONS_PER_CONNECTION_MAX, SWEEP_INTERVAL_NS, WAITERS_MAX, WRITE_BEHIND_IN_FLIGHT_BYTES,
};
use crate::metrics::{Metrics, ProcessGauges};

/// A shard behind its recovery.
pub(super) struct Serving {
    pub(super) config: ShardConfig,
    pub(super) pool: Pool,
    pub(super) journal: Journal,
    pub(super) state: State,
    pub(super) plan: MemoryPlan,
    pub(super) write_behind: WriteBehindQueue,
    pub(super) checkpoints: Checkpoints,
    pub(super) space: Space,
    pub(super) retention: Retention,
    pub(super) compaction: Compaction,
    pub(super) scrub: Scrub,
    pub(super) cold: ColdStreams,
    /// Readers of cold streams that found no memory in this turn.
    pub(super) starved: Vec<Reader>,
    /// They try again then.
    pub(super) starved_until_ns: u64,
    /// Set once a write or flush other than the journal's has failed.
    pub(super) storage_failure: Option<JournalFailure>,
    /// Topics whose first segments are being made, and who waits for them.
    pub(super) creations: Vec<Creation>,
    /// Requests to create topics that wait until snapshots have room for them.
    pub(super) parked_creations: Vec<(Socket, Slice)>,
    /// By the socket's slot.
    pub(super) connections: Vec<Option<Box<Connection>>>,
    pub(super) connection_count: usize,
    pub(super) subscriptions: Slab<Subscription>,
    /// What waits for the journal, in the order of LSNs.
    pub(super) waiters: VecDeque<Waiter>,
    /// Slots of connections to look at when the turn ends.
    pub(super) dirty: Vec<u32>,
    pub(super) ops: Vec<Op>,
    pub(super) counters: Metrics,
    pub(super) gauges: ProcessGauges,
    pub(super) envelope: FlatBufferBuilder<'static>,
    pub(super) envelope_bytes: Vec<u8>,
    /// LSN of the last change of the catalog: answers that are derived from it wait until it is durable.
    pub(super) catalog_changed: Lsn,
    pub(super) now: Now,
    pub(super) started_ns: u64,
    next_sweep_ns: u64,
    is_preparing: bool,
    prepare_not_before_ns: u64,
    shutdown_since_ns: Option<u64>,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving")
            .field("durable", &self.journal.durable())
            .field("connection_count", &self.connection_count)
            .field("waiter_count", &self.waiters.len())
            .finish_non_exhaustive()
    }
}

impl Serving {
    pub(super) fn new(
        mut config: ShardConfig,
        pool: Pool,
        state: State,
        write_behind: WriteBehindQueue,
        recovered: Recovered,
        now: Now,
    ) -> Self {
        // Files that exist keep their length, whatever the configuration says: a frame must fit into one.
        let half_a_file = u32::try_from(recovered.journal.layout.file_bytes / 2).unwrap_or(u32::MAX);
        config.frame_bytes_max = config.frame_bytes_max.min(half_a_file);
        let plan = MemoryPlan::of(&pool);
        let (kept, next) = (recovered.snapshots, recovered.next_snapshot);
        Self {
            journal: Journal::new(recovered.journal, pool.clone()),
            checkpoints: Checkpoints::new(kept, next, recovered.snapshot_file_bytes),
            write_behind,
            space: Space::default(),
            retention: Retention::new(now),
            compaction: Compaction::new(now),
            scrub: Scrub::default(),
            cold: ColdStreams::new(plan.cold_bytes),
            starved: Vec::new(),
            starved_until_ns: 0,
            storage_failure: None,
            creations: Vec::new(),
            parked_creations: Vec::new(),
            plan,
            config,
            pool,
            state,
            connections: Vec::new(),
            connection_count: 0,
            subscriptions: Slab::new(CONNECTIONS_MAX * SUBSCRIPTIONS_PER_CONNECTION_MAX),
            waiters: VecDeque::with_capacity(WAITERS_MAX),
            dirty: Vec::with_capacity(CONNECTIONS_MAX),
            ops: Vec::new(),
            counters: Metrics::default(),
            gauges: ProcessGauges::default(),
            envelope: FlatBufferBuilder::new(),
            envelope_bytes: Vec::new(),
            catalog_changed: Lsn(0),
            now,
            started_ns: now.monotonic_ns,
            next_sweep_ns: now.monotonic_ns,
            is_preparing: false,
            prepare_not_before_ns: 0,
            shutdown_since_ns: None,
        }
    }

    pub(super) fn metrics(&self) -> Metrics {
        Metrics {
            blocks_sealed: self.journal.blocks_sealed,
            flushes: self.journal.flushes,
            commit_ns_total: self.journal.commit_ns_total,
            ..self.counters
        }
    }

    pub(super) fn storage_failure(&self) -> Option<JournalFailure> {
        self.journal.failure().or(self.storage_failure)
    }

    /// Whether what serving needs is there, or cannot be had for now.
    pub(super) fn is_settled(&self) -> bool {
        self.checkpoints.is_settled()
    }

    /// The one list of everything that can happen to a serving shard.
    pub(super) fn on_completion(&mut self, now: Now, completion: Completion) {
        self.now = now;
        match completion {
            Completion::Accepted { socket } => self.on_accepted(socket),
            Completion::Received { socket, buffer, start, result, more } => {
                self.on_received(socket, buffer, start, result, more);
            }
            Completion::Sent { socket, parts, result } => self.on_sent(socket, parts, result),
            Completion::FilePrepared { file, result } => self.on_file_prepared(file, result),
            Completion::Allocated { file, bytes, result } => match file {
                File::Segment(number) => self.on_segment_allocated(number, bytes, result),
                File::Snapshot(number) => self.on_snapshot_allocated(number, bytes, result),
                File::Superblock | File::Journal(_) => unreachable!("journal files are prepared"),
            },
            Completion::Removed { file, result } => self.on_removed(file, result),
            Completion::Written { token, result } => self.on_written(token, result),
            Completion::Flushed { token, result } => match Work::of(token).0 {
                Work::SegmentFlush => self.on_segments_flushed(result),
                Work::SnapshotBlock => self.on_snapshot_flushed(result),
                _ => self.journal.on_flushed(now, token.0 as u32, result, &mut self.ops),
            },
            Completion::AllSynced { result, .. } => self.on_segments_flushed(result),
            Completion::Compacted { result, .. } => self.on_compacted(*result),
            Completion::ReadDone { token, buffer, result } => {
                self.on_cold_read(Work::of(token).1, buffer, result)
            }
        }
    }

    fn on_written(&mut self, token: Token, result: Result<(), IoError>) {
        match Work::of(token) {
            (Work::WriteBehind, index) => {
                let file = self.write_behind.file_of(index).unwrap_or(File::Superblock);
                if !self.fail_unless_ok("write", file, result) {
                    self.write_behind.on_written(&mut self.state, index, &mut self.ops);
                }
            }
            (Work::SnapshotBlock, _) => self.on_snapshot_block_written(result),
            (Work::SnapshotHeader, _) => self.on_snapshot_header_written(result),
            _ => self.journal.on_written(self.now, token, result, &mut self.ops),
        }
    }

    /// What is written behind the tails in a turn: more when the journal fills up, or memory is short.
    fn write_behind_tails(&mut self) {
        let (_, prepared_bytes, used_bytes) = self.journal.space();
        let is_short = self.pool.used_bytes() > self.plan.relief_bytes;
        let is_urgent = is_short || used_bytes > prepared_bytes / 2;
        let may_wait = used_bytes < prepared_bytes / JOURNAL_CHECKPOINT_PART && !self.journal.is_quiet();
        if may_wait && !is_urgent && self.write_behind.undrained() == 0 {
            return;
        }
        if is_short {
            self.write_behind.relieve(&mut self.state, &self.pool, self.plan.relief_bytes);
        }
        let bytes_max = WRITE_BEHIND_IN_FLIGHT_BYTES[usize::from(is_urgent)];
        self.write_behind.pump(&mut self.state, &self.pool, bytes_max, &mut self.ops);
    }

    /// The end of a turn. Disk first, so that its work runs while answers are sent.
    pub(super) fn on_tick(&mut self, now: Now) {
        self.now = now;
        self.counters.turns += 1;
        self.answer_durable();
        self.tell_trims();
        self.seal_closed();
        self.wake_readers();
        self.resume_dirty();
        self.journal.on_turn_end(now, &mut self.ops);
        if self.marker_deadline_ns().is_some_and(|deadline| deadline <= now.monotonic_ns) {
            self.journal.mark(now, &mut self.ops);
        }
        self.prepare_next_file();
        self.retain();
        self.compact();
        self.scrub();
        self.write_behind_tails();
        self.advance_checkpoint();
        if self.next_sweep_ns <= now.monotonic_ns {
            self.next_sweep_ns = now.monotonic_ns + SWEEP_INTERVAL_NS;
            self.sweep();
        }
        self.send_dirty();
    }

    pub(super) fn wait(&self) -> Wait {
        let sweep =
            (self.connection_count > 0 || self.shutdown_since_ns.is_some()).then_some(self.next_sweep_ns);
        let wants_file =
            !self.is_preparing && !self.is_shutting_down() && self.journal.file_wanted().is_some();
        let retry = wants_file.then_some(self.prepare_not_before_ns);
        Wait {
            deadline_ns: [
                sweep,
                retry,
                self.marker_deadline_ns(),
                self.checkpoint_deadline_ns(),
                self.retention_deadline_ns(),
                self.readers_deadline_ns(),
            ]
            .into_iter()
            .flatten()
            .min(),
            commit_since_ns: self.waiters.front().map(|waiter| waiter.since_ns),
            work_left: !self.dirty.is_empty() || self.checkpoint_has_work(),
        }
    }

    /// At a shutdown the marker does not wait for idleness.
    fn marker_deadline_ns(&self) -> Option<u64> {
        let idle_ns = if self.shutdown_since_ns.is_some() { 0 } else { JOURNAL_MARKER_IDLE_NS };
        self.journal.marker_due_since_ns().map(|since| since + idle_ns)
    }

    fn prepare_next_file(&mut self) {
        let is_due = !self.is_preparing
            && self.prepare_not_before_ns <= self.now.monotonic_ns
            && self.shutdown_since_ns.is_none();
        if let Some(file) = self.journal.file_wanted().filter(|_| is_due) {
            self.is_preparing = true;
            let bytes = self.journal.layout().file_bytes;
            self.ops.push(Op::PrepareFile { file: File::Journal(file), bytes });
        }
    }

    fn on_file_prepared(&mut self, file: File, result: Result<(), IoError>) {
        let File::Journal(number) = file else { unreachable!("a serving shard prepares journal files") };
        self.is_preparing = false;
        self.journal.on_file_prepared(number, result);
        if let Err(error) = result {
            self.prepare_not_before_ns = self.now.monotonic_ns + PREPARE_RETRY_NS;
            tracing::warn!(%error, "cannot make journal file {number}; trying again in 5 s");
        }
    }

    pub(super) fn is_shutting_down(&self) -> bool {
        self.shutdown_since_ns.is_some()
    }

    /// Refuses new produces, tells every peer, and waits for what was promised.
    pub(super) fn begin_shutdown(&mut self, now: Now) {
        self.now = now;
        self.shutdown_since_ns = Some(now.monotonic_ns);
        self.next_sweep_ns = now.monotonic_ns;
    }

    pub(super) fn is_stopped(&self) -> bool {
        let Some(since) = self.shutdown_since_ns else { return false };
        let is_quiet = self.waiters.is_empty()
            && self.journal.is_quiet()
            && self.journal.marker_due_since_ns().is_none()
            && self.connection_count == 0
            && self.write_behind.is_idle()
            && self.checkpoints.is_idle()
            && self.space.is_idle()
            && !self.is_preparing;
        is_quiet || self.now.monotonic_ns >= since + SHUTDOWN_GRACE_NS
    }

    pub(super) fn connection_mut(&mut self, socket: Socket) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(socket.slot as usize)?.as_deref_mut()?;
        (connection.socket == socket).then_some(connection)
    }

    /// Takes a connection out of its table, so that it and the rest of the shard can be changed side by side; it is
    /// put back or closed before the turn goes on.
    pub(super) fn take_connection(&mut self, socket: Socket) -> Option<Box<Connection>> {
        self.connection_mut(socket)?;
        self.connections[socket.slot as usize].take()
    }

    pub(super) fn put_connection(&mut self, connection: Box<Connection>) {
        let slot = connection.socket.slot as usize;
        debug_assert!(self.connections[slot].is_none());
        self.connections[slot] = Some(connection);
    }

    /// Has the connection looked at when the turn ends.
    pub(super) fn mark_dirty(&mut self, socket: Socket) {
        let Some(connection) = self.connection_mut(socket) else { return };
        if !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push(socket.slot);
        }
    }

    /// Ends a connection that was taken out of its table, at once and without a word.
    pub(super) fn close(&mut self, connection: Box<Connection>) {
        for (_, index) in &connection.subscriptions {
            self.drop_subscription(*index);
        }
        self.cold.forget(Reader::Fetch(connection.socket));
        for stream in connection.fetches.iter().filter_map(|fetch| fetch.cold) {
            self.cold.end((stream, Reader::Fetch(connection.socket)));
        }
        self.connection_count -= 1;
        self.ops.push(Op::Close { socket: connection.socket });
    }

    fn on_accepted(&mut self, socket: Socket) {
        self.counters.connections_accepted += 1;
        let slot = socket.slot as usize;
        if slot >= CONNECTIONS_MAX || self.is_shutting_down() {
            self.ops.push(Op::Close { socket });
            return;
        }
        if self.connections.len() <= slot {
            self.connections.resize_with(slot + 1, || None);
        }
        if let Some(stale) = self.connections[slot].take() {
            self.close(stale);
        }
        let Some(connection) = Connection::new(socket, &self.pool, self.now.monotonic_ns) else {
            self.counters.connections_cut += 1;
            self.ops.push(Op::Close { socket });
            return;
        };
        self.connection_count += 1;
        let mut connection = Box::new(connection);
        self.arm_receive(&mut connection);
        self.put_connection(connection);
    }

    /// Asks for more bytes, unless they are asked for or the peer does not read its answers.
    pub(super) fn arm_receive(&mut self, connection: &mut Connection) {
        if !connection.may_read() {
            return;
        }
        let Some(buffer) = connection.buffer.take() else { return };
        self.ops.push(Op::Receive {
            socket: connection.socket,
            buffer,
            start: connection.filled,
            poll_first: !connection.has_more,
        });
    }
}
