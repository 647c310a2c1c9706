//! From a whole frame to the event that it means. Holds no state: what a frame must answer is the ledger's business.
//!
//! A frame is decoded twice, once when it arrives, so that a lie ends the connection before anybody acts on it, and
//! once when it is given out. Acknowledgements and deliveries cost a few comparisons; the rest is rare.

use flatbuffers::{Follow, Verifiable};
use protocol::frame::{FLAG_ANSWER, FRAME_HEADER_BYTES, Frame, Opcode};
use protocol::ids::{CorrelationId, Handle, Offset, SubscriptionId};
use protocol::limits::{
    ALIGNMENT, ERROR_MESSAGE_BYTES_MAX, FRAME_BYTES_MAX, PROTOCOL_VERSION, RECORD_BYTES_MAX,
};
use protocol::status::Status;
use protocol::{envelope, wire};

use super::error::ConnectionError;
use super::event::{
    DamagedOffsets, EndReason, Event, Grants, PartitionDescription, Refusal, Stats, SubscribedPartition,
    TopicDescription, TopicList, TopicSettings, TopicSummary, ValidOffsets,
};

/// What a frame says; anything but a heartbeat, which says nothing.
pub(super) fn decode(frame: Frame<'_>) -> Result<Event<'_>, ConnectionError> {
    let header = frame.header;
    let opcode = Opcode::from_code(header.opcode).ok_or(ConnectionError::UnknownOpcode(header.opcode))?;
    let code = header.status.get();
    let status = Status::from_code(code).ok_or(ConnectionError::UnknownStatus(code))?;
    if header.flags.get() & !FLAG_ANSWER != 0 {
        return Err(ConnectionError::UnexpectedFrame(opcode));
    }
    match (header.has_flag(FLAG_ANSWER), status) {
        (false, status) => decode_push(opcode, status, frame),
        (true, Status::Ok) => decode_answer(opcode, frame),
        (true, status) => decode_refusal(opcode, status, frame),
    }
}

fn decode_push(opcode: Opcode, status: Status, frame: Frame<'_>) -> Result<Event<'_>, ConnectionError> {
    match opcode {
        Opcode::Deliver if status == Status::Ok => {
            if !frame.envelope.is_empty() || frame.payload.is_empty() {
                return Err(ConnectionError::Content(opcode));
            }
            Ok(Event::Delivered {
                subscription: SubscriptionId(frame.header.subject.get()),
                partition: Handle(frame.header.correlation_id.get()),
                payload: frame.payload,
            })
        }
        Opcode::GoAway => {
            let message = read_detail(opcode, status, frame)?.message;
            Ok(Event::GoAway { status, message })
        }
        _ => Err(ConnectionError::UnexpectedFrame(opcode)),
    }
}

fn decode_answer(opcode: Opcode, frame: Frame<'_>) -> Result<Event<'_>, ConnectionError> {
    let correlation = frame.header.correlation();
    let subject = frame.header.subject.get();
    if opcode != Opcode::Fetch && !frame.payload.is_empty() {
        return Err(ConnectionError::Content(opcode));
    }
    match opcode {
        Opcode::Produce | Opcode::DeleteTopic | Opcode::Unsubscribe if !frame.envelope.is_empty() => {
            Err(ConnectionError::Content(opcode))
        }
        Opcode::Produce => Ok(Event::Produced { correlation, first_offset: Offset(subject) }),
        Opcode::DeleteTopic => Ok(Event::TopicDeleted { correlation }),
        Opcode::Unsubscribe => Ok(Event::Unsubscribed { correlation, subscription: SubscriptionId(subject) }),
        Opcode::Hello => Ok(Event::HelloDone(grants(frame)?)),
        Opcode::Stats => Ok(Event::Stats { correlation, stats: Box::new(stats(frame)?) }),
        Opcode::CreateTopic | Opcode::DescribeTopic => {
            Ok(Event::TopicDescribed { correlation, topic: topic_description(opcode, frame)? })
        }
        Opcode::ListTopics => Ok(Event::Topics { correlation, topics: topic_list(frame)? }),
        Opcode::Subscribe => {
            let partitions = subscribed_partitions(frame)?;
            Ok(Event::Subscribed { correlation, subscription: SubscriptionId(subject), partitions })
        }
        Opcode::Fetch => {
            let response = read::<wire::FetchResponse<'_>>(opcode, frame)?;
            Ok(Event::Fetched {
                correlation,
                partition: Handle(subject),
                next_offset: Offset(response.next_offset()),
                durable_end: Offset(response.durable_end()),
                payload: frame.payload,
            })
        }
        Opcode::Heartbeat | Opcode::GoAway | Opcode::Credit | Opcode::Deliver => {
            Err(ConnectionError::UnexpectedFrame(opcode))
        }
    }
}

fn decode_refusal(opcode: Opcode, status: Status, frame: Frame<'_>) -> Result<Event<'_>, ConnectionError> {
    if matches!(opcode, Opcode::Heartbeat | Opcode::GoAway | Opcode::Deliver) {
        return Err(ConnectionError::UnexpectedFrame(opcode));
    }
    let Detail { message, retry_after_us, valid, damaged } = read_detail(opcode, status, frame)?;
    if opcode == Opcode::Unsubscribe && frame.header.correlation() == CorrelationId(0) {
        // Nobody asked: the broker ends the subscription by itself.
        let subscription = SubscriptionId(frame.header.subject.get());
        let reason = EndReason { status, detail: message, valid, damaged };
        return Ok(Event::SubscriptionEnded { subscription, reason });
    }
    // A refused produce carries no envelope; its hint stands in the subject.
    let is_hinted = opcode == Opcode::Produce && status.is_retryable();
    let retry_after_us = if is_hinted { frame.header.subject.get() } else { retry_after_us };
    Ok(Event::Refused(Refusal {
        correlation: frame.header.correlation(),
        opcode,
        status,
        retry_after_us,
        detail: message,
        valid,
        damaged,
    }))
}

/// What an `ErrorDetail` says, if there is one.
#[derive(Default)]
struct Detail {
    message: Option<String>,
    retry_after_us: u64,
    /// With `OffsetOutOfRange`.
    valid: Option<ValidOffsets>,
    /// With `Corrupt`.
    damaged: Option<DamagedOffsets>,
}

fn read_detail(opcode: Opcode, status: Status, frame: Frame<'_>) -> Result<Detail, ConnectionError> {
    if !frame.payload.is_empty() {
        return Err(ConnectionError::Content(opcode));
    }
    if frame.envelope.is_empty() {
        return Ok(Detail::default());
    }
    let detail = read::<wire::ErrorDetail<'_>>(opcode, frame)?;
    let (first, last) = (Offset(detail.first_valid()), Offset(detail.last_valid()));
    let partition = match detail.partition() {
        // What a fetch asks for is its subject.
        0 if opcode == Opcode::Fetch => Some(Handle(frame.header.subject.get())),
        0 => None,
        handle => Some(Handle(handle)),
    };
    let is_outside = status == Status::OffsetOutOfRange;
    // A range that does not go on is no range: whoever follows it would not move.
    let is_damaged = status == Status::Corrupt && first < last;
    Ok(Detail {
        message: detail.message().map(|text| text.chars().take(ERROR_MESSAGE_BYTES_MAX).collect()),
        retry_after_us: detail.retry_after_us(),
        valid: is_outside.then_some(ValidOffsets { partition, first, last }),
        damaged: is_damaged.then_some(DamagedOffsets { partition, first, next: last }),
    })
}

/// Verifies the envelope and gives its root.
fn read<'a, T>(opcode: Opcode, frame: Frame<'a>) -> Result<T::Inner, ConnectionError>
where
    T: Follow<'a> + Verifiable + 'a,
{
    envelope::read::<T>(frame.envelope).map_err(|_| ConnectionError::Envelope(opcode))
}

fn grants(frame: Frame<'_>) -> Result<Grants, ConnectionError> {
    let hello = read::<wire::HelloResponse<'_>>(Opcode::Hello, frame)?;
    let grants = Grants {
        server_name: hello.server_name().to_owned(),
        version: hello.version(),
        features: hello.features(),
        shard: hello.shard(),
        shard_count: hello.shard_count(),
        frame_bytes_max: hello.frame_bytes_max(),
        record_bytes_max: hello.record_bytes_max(),
        window_bytes: hello.window_bytes(),
        requests_in_flight_max: hello.requests_in_flight_max(),
        heartbeat_ms: hello.heartbeat_ms(),
        durability: hello.durability().map(str::to_owned),
        volatile_storage: hello.volatile_storage(),
    };
    check_grants(&grants)?;
    Ok(grants)
}

/// Grants that nothing could be sent under, or that are over the protocol's own limits.
fn check_grants(grants: &Grants) -> Result<(), ConnectionError> {
    let frame_range = FRAME_HEADER_BYTES as u32 + ALIGNMENT as u32..=FRAME_BYTES_MAX as u32;
    let checks = [
        (grants.version == PROTOCOL_VERSION, "version"),
        (frame_range.contains(&grants.frame_bytes_max), "frame length"),
        ((1..=RECORD_BYTES_MAX as u32).contains(&grants.record_bytes_max), "record length"),
        (grants.window_bytes > 0, "window"),
        (grants.requests_in_flight_max > 0, "number of requests in flight"),
        (grants.heartbeat_ms > 0, "heartbeat interval"),
    ];
    match checks.into_iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(ConnectionError::Grant(what)),
        None => Ok(()),
    }
}

fn topic_description(opcode: Opcode, frame: Frame<'_>) -> Result<TopicDescription, ConnectionError> {
    let topic = read::<wire::TopicDescription<'_>>(opcode, frame)?;
    let partitions: Vec<PartitionDescription> = topic
        .partitions()
        .iter()
        .map(|partition| PartitionDescription {
            handle: Handle(partition.handle()),
            start_offset: Offset(partition.start_offset()),
            end_offset: Offset(partition.end_offset()),
            stored_bytes: partition.stored_bytes(),
            shard: partition.shard(),
        })
        .collect();
    // Producers place by number: the list has every partition, in order.
    let is_complete =
        partitions.iter().enumerate().all(|(number, found)| usize::from(found.handle.partition()) == number);
    if partitions.is_empty() || !is_complete {
        return Err(ConnectionError::Envelope(opcode));
    }
    Ok(TopicDescription {
        name: topic.name().to_owned(),
        ack_class: topic.ack_class(),
        created_ms: topic.created_ms(),
        partitions,
        settings: topic_settings(topic.settings()),
    })
}

fn topic_settings(settings: Option<wire::TopicSettings<'_>>) -> TopicSettings {
    settings.map_or_else(TopicSettings::default, |settings| TopicSettings {
        retention_ms: settings.retention_ms(),
        retention_bytes: settings.retention_bytes(),
        segment_bytes: settings.segment_bytes(),
        segment_ms: settings.segment_ms(),
        compact: settings.compact(),
    })
}

fn topic_list(frame: Frame<'_>) -> Result<TopicList, ConnectionError> {
    let list = read::<wire::ListTopicsResponse<'_>>(Opcode::ListTopics, frame)?;
    let topics: Vec<TopicSummary> = list
        .topics()
        .iter()
        .map(|topic| TopicSummary {
            name: topic.name().to_owned(),
            partition_count: topic.partition_count(),
            ack_class: topic.ack_class(),
            settings: topic_settings(topic.settings()),
        })
        .collect();
    if topics.is_empty() && list.more() {
        return Err(ConnectionError::Envelope(Opcode::ListTopics));
    }
    Ok(TopicList { topics, more: list.more() })
}

fn subscribed_partitions(frame: Frame<'_>) -> Result<Vec<SubscribedPartition>, ConnectionError> {
    let response = read::<wire::SubscribeResponse<'_>>(Opcode::Subscribe, frame)?;
    let partitions = response.partitions().iter().map(|partition| SubscribedPartition {
        handle: Handle(partition.handle()),
        start_offset: Offset(partition.start_offset()),
    });
    Ok(partitions.collect())
}

fn stats(frame: Frame<'_>) -> Result<Stats, ConnectionError> {
    let stats = read::<wire::StatsResponse<'_>>(Opcode::Stats, frame)?;
    Ok(Stats {
        uptime_ms: stats.uptime_ms(),
        resident_bytes: stats.resident_bytes(),
        cpu_ns: stats.cpu_ns(),
        spin_ns: stats.spin_ns(),
        memory_budget_bytes: stats.memory_budget_bytes(),
        memory_used_bytes: stats.memory_used_bytes(),
        connections: stats.connections(),
        topics: stats.topics(),
        partitions: stats.partitions(),
        journal_bytes: stats.journal_bytes(),
        journal_used_bytes: stats.journal_used_bytes(),
        journal_prepared_bytes: stats.journal_prepared_bytes(),
        appended_lsn: stats.appended_lsn(),
        written_lsn: stats.written_lsn(),
        durable_lsn: stats.durable_lsn(),
        epoch: stats.epoch(),
        produce_frames: stats.produce_frames(),
        produce_records: stats.produce_records(),
        produce_bytes: stats.produce_bytes(),
        produce_refused: stats.produce_refused(),
        deliver_records: stats.deliver_records(),
        deliver_bytes: stats.deliver_bytes(),
        blocks_sealed: stats.blocks_sealed(),
        flushes: stats.flushes(),
        turns: stats.turns(),
        commit_ns_total: stats.commit_ns_total(),
        durability: stats.durability().map(str::to_owned),
        waiting: stats.waiting().map(str::to_owned),
        tail_bytes: stats.tail_bytes(),
        segment_count: stats.segment_count(),
        segment_bytes: stats.segment_bytes(),
        segment_allocated_bytes: stats.segment_allocated_bytes(),
        written_behind_bytes: stats.written_behind_bytes(),
        checkpoints: stats.checkpoints(),
        snapshot_sequence: stats.snapshot_sequence(),
        cold_reads: stats.cold_reads(),
        cold_read_bytes: stats.cold_read_bytes(),
        corrupt_ranges: stats.corrupt_ranges(),
        compactions: stats.compactions(),
        trimmed_segments: stats.trimmed_segments(),
        removed_files: stats.removed_files(),
    })
}
