//! The session: greeting, farewell, refusals and counters.
//!
//! Every answer with an envelope is made here, small ones in the control buffer, large ones in a buffer of their own.

use flatbuffers::{FlatBufferBuilder, Follow, Verifiable, WIPOffset};
use protocol::envelope;
use protocol::frame::{FRAME_HEADER_BYTES, Frame, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle, Offset};
use protocol::limits::{CLIENT_NAME_BYTES_MAX, ERROR_MESSAGE_BYTES_MAX, PROTOCOL_VERSION, RECORD_BYTES_MAX};
use protocol::status::Status;
use protocol::wire;
use zerocopy::IntoBytes;

use super::connection::{Connection, Stage};
use super::serving::Serving;
use crate::limits::{REQUESTS_IN_FLIGHT_MAX, SMALL_ANSWER_BYTES_MAX};

/// Two offsets of a partition, as `ErrorDetail` says them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OffsetRange {
    pub(super) partition: Handle,
    pub(super) first: Offset,
    pub(super) last: Offset,
}

impl Serving {
    pub(super) fn on_hello(&mut self, connection: &mut Connection, frame: &Frame<'_>) {
        let Ok(hello) = envelope::read::<wire::HelloRequest<'_>>(frame.envelope) else {
            self.go_away(connection, Status::InvalidEnvelope, "the Hello does not verify");
            return;
        };
        if !(hello.version_min()..=hello.version_max()).contains(&PROTOCOL_VERSION) {
            self.go_away(connection, Status::UnsupportedVersion, "this broker speaks version 1");
            return;
        }
        let name_is_short = hello.client_name().is_none_or(|name| name.len() <= CLIENT_NAME_BYTES_MAX);
        let shard_is_here = hello.shard() == -1 || hello.shard() == i32::from(self.config.shard);
        let has_credentials = hello.credentials().is_some_and(|credentials| !credentials.is_empty());
        if !name_is_short || !shard_is_here || has_credentials || hello.features() != 0 {
            self.go_away(
                connection,
                Status::Unsupported,
                "this broker has one shard, no features, no credentials",
            );
            return;
        }
        connection.stage = Stage::Open;
        let config = self.config.clone();
        let header = FrameHeader::answer(Opcode::Hello, Status::Ok, frame.header.correlation(), 0);
        self.answer(connection, header, |builder| {
            let server_name = builder.create_string(concat!("forebay ", env!("CARGO_PKG_VERSION")));
            let durability = builder.create_string(&config.durability_text);
            let args = wire::HelloResponseArgs {
                server_name: Some(server_name),
                version: PROTOCOL_VERSION,
                features: 0,
                shard: u32::from(config.shard),
                shard_count: u32::from(config.shard_count),
                frame_bytes_max: config.frame_bytes_max,
                record_bytes_max: RECORD_BYTES_MAX as u32,
                window_bytes: config.window_bytes,
                requests_in_flight_max: REQUESTS_IN_FLIGHT_MAX,
                heartbeat_ms: config.heartbeat_ms,
                durability: Some(durability),
                volatile_storage: config.is_volatile,
            };
            wire::HelloResponse::create(builder, &args)
        });
    }

    /// Says why, takes nothing more, and closes the connection when the peer has closed it or had time to read that.
    pub(super) fn go_away(&mut self, connection: &mut Connection, status: Status, message: &str) {
        let mut header = FrameHeader::new(Opcode::GoAway, CorrelationId(0), 0);
        header.status = (status as u16).into();
        self.answer_error(connection, header, message, None);
        self.begin_leaving(connection);
    }

    /// Nothing more is taken from the peer; what it was promised is still answered.
    pub(super) fn begin_leaving(&mut self, connection: &mut Connection) {
        connection.stage = Stage::Leaving;
        connection.leaving_since_ns = self.now.monotonic_ns;
    }

    /// Verifies the envelope of a request; one that does not verify is refused here.
    pub(super) fn envelope_of<'a, T>(
        &mut self,
        connection: &mut Connection,
        frame: &Frame<'a>,
    ) -> Option<T::Inner>
    where
        T: Follow<'a> + Verifiable + 'a,
    {
        let verified = envelope::read::<T>(frame.envelope).ok();
        if verified.is_none()
            && let Some(opcode) = Opcode::from_code(frame.header.opcode)
        {
            let message = "the envelope does not verify";
            self.refuse(connection, frame.header, opcode, Status::InvalidEnvelope, message);
        }
        verified
    }

    /// Answers a request with a status other than `Ok`, and a sentence.
    pub(super) fn refuse(
        &mut self,
        connection: &mut Connection,
        header: &FrameHeader,
        opcode: Opcode,
        status: Status,
        message: &str,
    ) {
        let answer = FrameHeader::answer(opcode, status, header.correlation(), header.subject.get());
        self.answer_error(connection, answer, message, None);
    }

    pub(super) fn answer_error(
        &mut self,
        connection: &mut Connection,
        header: FrameHeader,
        message: &str,
        valid: Option<OffsetRange>,
    ) {
        let end = message.floor_char_boundary(ERROR_MESSAGE_BYTES_MAX);
        self.answer(connection, header, |builder| {
            let message = builder.create_string(&message[..end]);
            let args = wire::ErrorDetailArgs {
                message: Some(message),
                retry_after_us: 0,
                first_valid: valid.map_or(0, |valid| valid.first.0),
                last_valid: valid.map_or(0, |valid| valid.last.0),
                partition: valid.map_or(0, |valid| valid.partition.0),
            };
            wire::ErrorDetail::create(builder, &args)
        });
    }

    /// Answers with an envelope.
    pub(super) fn answer<T>(
        &mut self,
        connection: &mut Connection,
        header: FrameHeader,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) {
        self.envelope_bytes.clear();
        let root = build(&mut self.envelope);
        let envelope_bytes = envelope::finish_into(&mut self.envelope, root, &mut self.envelope_bytes);
        let header = header.with_lengths(envelope_bytes, 0);
        let length = header.frame_bytes();
        if length <= SMALL_ANSWER_BYTES_MAX {
            connection.outbox.push_header(&header);
            connection.outbox.push(&self.envelope_bytes);
            return;
        }
        let buffer = if connection.outbox.has_room_for_large() { self.pool.buffer(length) } else { None };
        let Some(mut buffer) = buffer else {
            // No answer that is true can be given: the connection ends, and the outcome is unknown.
            connection.outbox.overflowed = true;
            return;
        };
        buffer[..FRAME_HEADER_BYTES].copy_from_slice(header.as_bytes());
        buffer[FRAME_HEADER_BYTES..length].copy_from_slice(&self.envelope_bytes);
        connection.outbox.push_large(buffer.freeze(0..length));
    }

    pub(super) fn on_stats(&mut self, connection: &mut Connection, frame: &Frame<'_>) {
        let header = FrameHeader::answer(Opcode::Stats, Status::Ok, frame.header.correlation(), 0);
        let metrics = self.metrics();
        let (journal_bytes, journal_prepared_bytes, journal_used_bytes) = self.journal.space();
        let mut args = wire::StatsResponseArgs {
            uptime_ms: (self.now.monotonic_ns - self.started_ns) / 1_000_000,
            resident_bytes: self.gauges.resident_bytes,
            cpu_ns: self.gauges.cpu_ns,
            spin_ns: self.gauges.spin_ns,
            memory_budget_bytes: self.pool.capacity_bytes() as u64,
            memory_used_bytes: self.pool.used_bytes() as u64,
            connections: self.connection_count as u64,
            topics: self.state.catalog.count() as u64,
            partitions: self.state.partitions.count() as u64,
            journal_bytes,
            journal_used_bytes,
            journal_prepared_bytes,
            appended_lsn: self.journal.appended().0,
            written_lsn: self.journal.written().0,
            durable_lsn: self.journal.durable().0,
            epoch: u64::from(self.journal.epoch().0),
            produce_frames: metrics.produce_frames,
            produce_records: metrics.produce_records,
            produce_bytes: metrics.produce_bytes,
            produce_refused: metrics.produce_refused,
            deliver_records: metrics.deliver_records,
            deliver_bytes: metrics.deliver_bytes,
            blocks_sealed: metrics.blocks_sealed,
            flushes: metrics.flushes,
            turns: metrics.turns,
            commit_ns_total: metrics.commit_ns_total,
            tail_bytes: self
                .state
                .partitions
                .iter()
                .map(|partition| partition.log.tail.memory_bytes() as u64)
                .sum(),
            segment_count: self.state.segment_count as u64,
            segment_bytes: self.state.partitions.iter().map(|partition| partition.log.bytes()).sum(),
            segment_allocated_bytes: self
                .state
                .partitions
                .iter()
                .map(|partition| partition.log.allocated_bytes())
                .sum(),
            written_behind_bytes: self.write_behind.written_bytes,
            checkpoints: self.checkpoints.published,
            snapshot_sequence: self.checkpoints.newest().0,
            cold_reads: self.cold.reads,
            cold_read_bytes: self.cold.read_bytes,
            corrupt_ranges: self.cold.damaged,
            compactions: metrics.compactions,
            trimmed_segments: metrics.trimmed_segments,
            removed_files: metrics.removed_files,
            durability: None,
            waiting: None,
        };
        let (durability, waiting) = (self.config.durability_text.clone(), self.config.waiting_text.clone());
        self.answer(connection, header, |builder| {
            args.durability = Some(builder.create_string(&durability));
            args.waiting = Some(builder.create_string(&waiting));
            wire::StatsResponse::create(builder, &args)
        });
    }
}
