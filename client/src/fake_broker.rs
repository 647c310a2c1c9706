//! A broker for tests: takes apart what a connection sends, and builds the frames that answer it.
//!
//! It holds no state but what a test gives it, and lies when it is told to.

use flatbuffers::{FlatBufferBuilder, WIPOffset};
use protocol::batch::{BatchBuilder, BatchHeader, BrokerFields, Compression, Compressor, Record};
use protocol::frame::{FLAG_ANSWER, FLAG_RESUMES, Frame, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle, Offset, TopicKey};
use protocol::limits::{FRAME_BYTES_MAX, PROTOCOL_VERSION};
use protocol::status::Status;
use protocol::{envelope, wire};
use zerocopy::IntoBytes;

use crate::connection::{Connection, ConnectionOptions, Event};

/// A frame that a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) opcode: Opcode,
    pub(crate) resumes: bool,
    pub(crate) correlation: CorrelationId,
    pub(crate) subject: u64,
    pub(crate) envelope: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// The grants that tests vary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Granted {
    pub(crate) frame_bytes_max: u32,
    pub(crate) window_bytes: u32,
    pub(crate) requests_in_flight_max: u32,
    pub(crate) heartbeat_ms: u32,
}

impl Default for Granted {
    fn default() -> Self {
        Self {
            frame_bytes_max: 1 << 20,
            window_bytes: 1 << 20,
            requests_in_flight_max: 1_000,
            heartbeat_ms: 1_000,
        }
    }
}

pub(crate) fn partition(number: u16) -> Handle {
    Handle::new(TopicKey { slot: 3, generation: 7 }, number)
}

pub(crate) fn batch_of(values: &[&[u8]]) -> Vec<u8> {
    compressed_batch_of(Compression::None, values)
}

pub(crate) fn compressed_batch_of(compression: Compression, values: &[&[u8]]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for value in values {
        builder.push(&Record { value, ..Record::default() }).expect("small records fit");
    }
    let mut bytes = Vec::new();
    builder.finish_compressed_into(&mut Compressor::new(compression), &mut bytes);
    bytes
}

/// A batch as the broker stores it.
pub(crate) fn placed_batch(partition: Handle, base_offset: u64, values: &[&[u8]]) -> Vec<u8> {
    let mut bytes = batch_of(values);
    let fields = BrokerFields { base_offset: Offset(base_offset), appended_ms: 5, log_epoch: 1 };
    BatchHeader::place(&mut bytes, partition, fields);
    bytes
}

/// Takes everything that waits for the socket, which must be whole frames.
pub(crate) fn take_sent(connection: &mut Connection) -> Vec<Sent> {
    let bytes = connection.transmit().to_vec();
    connection.transmitted(bytes.len());
    let mut rest = &bytes[..];
    let mut sent = Vec::new();
    while let Some((frame, length)) = cut(rest) {
        sent.push(frame);
        rest = &rest[length..];
    }
    assert!(rest.is_empty(), "{} bytes are no whole frame", rest.len());
    sent
}

/// The frame at the front and its length; `None` while it is not whole.
pub(crate) fn cut(bytes: &[u8]) -> Option<(Sent, usize)> {
    let frame = Frame::cut(bytes, FRAME_BYTES_MAX as u32).expect("a client's header does not lie")?;
    let header = frame.header;
    let sent = Sent {
        opcode: Opcode::from_code(header.opcode).expect("a client's opcode is known"),
        resumes: header.has_flag(FLAG_RESUMES),
        correlation: header.correlation(),
        subject: header.subject.get(),
        envelope: frame.envelope.to_vec(),
        payload: frame.payload.to_vec(),
    };
    Some((sent, header.frame_bytes()))
}

/// A connection that has heard these grants at time 0.
pub(crate) fn connected(granted: Granted) -> Connection {
    let mut connection = Connection::new(0, &ConnectionOptions::default());
    let hello = take_sent(&mut connection).remove(0);
    connection.on_bytes(0, &hello_answer(hello.correlation, granted)).expect("the answer is good");
    assert!(matches!(connection.next_event(), Some(Event::HelloDone(_))));
    connection
}

pub(crate) fn bare(header: FrameHeader) -> Vec<u8> {
    header.as_bytes().to_vec()
}

pub(crate) fn with_payload(header: FrameHeader, payload: &[u8]) -> Vec<u8> {
    let mut bytes = bare(header.with_lengths(0, payload.len()));
    bytes.extend_from_slice(payload);
    bytes
}

pub(crate) fn with_envelope<T>(
    header: FrameHeader,
    payload: &[u8],
    build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let root = build(&mut builder);
    let mut table = Vec::new();
    let length = envelope::finish_into(&mut builder, root, &mut table);
    let mut bytes = bare(header.with_lengths(length, payload.len()));
    bytes.extend_from_slice(&table);
    bytes.extend_from_slice(payload);
    bytes
}

pub(crate) fn hello_answer(correlation: CorrelationId, granted: Granted) -> Vec<u8> {
    let header = FrameHeader::answer(Opcode::Hello, Status::Ok, correlation, 0);
    with_envelope(header, &[], |builder| {
        let server_name = builder.create_string("fake");
        let args = wire::HelloResponseArgs {
            server_name: Some(server_name),
            version: PROTOCOL_VERSION,
            shard_count: 1,
            frame_bytes_max: granted.frame_bytes_max,
            record_bytes_max: granted.frame_bytes_max / 2,
            window_bytes: granted.window_bytes,
            requests_in_flight_max: granted.requests_in_flight_max,
            heartbeat_ms: granted.heartbeat_ms,
            ..wire::HelloResponseArgs::default()
        };
        wire::HelloResponse::create(builder, &args)
    })
}

pub(crate) fn produced(correlation: CorrelationId, first_offset: u64) -> Vec<u8> {
    bare(FrameHeader::answer(Opcode::Produce, Status::Ok, correlation, first_offset))
}

pub(crate) fn refused_produce(correlation: CorrelationId, status: Status, retry_after_us: u64) -> Vec<u8> {
    bare(FrameHeader::answer(Opcode::Produce, status, correlation, retry_after_us))
}

/// A refusal with an `ErrorDetail`.
pub(crate) fn refused(opcode: Opcode, status: Status, correlation: CorrelationId, message: &str) -> Vec<u8> {
    with_envelope(FrameHeader::answer(opcode, status, correlation, 0), &[], |builder| {
        let message = builder.create_string(message);
        let args = wire::ErrorDetailArgs {
            message: Some(message),
            retry_after_us: 9,
            first_valid: 100,
            last_valid: 200,
            ..wire::ErrorDetailArgs::default()
        };
        wire::ErrorDetail::create(builder, &args)
    })
}

/// The end of subscription 1 without being asked, with a range of offsets of this partition (0: not named).
pub(crate) fn subscription_ended(status: Status, partition: u64, range: (u64, u64)) -> Vec<u8> {
    let header = FrameHeader::answer(Opcode::Unsubscribe, status, CorrelationId(0), 1);
    with_envelope(header, &[], |builder| {
        let (first_valid, last_valid) = range;
        let args =
            wire::ErrorDetailArgs { first_valid, last_valid, partition, ..wire::ErrorDetailArgs::default() };
        wire::ErrorDetail::create(builder, &args)
    })
}

/// A topic with this many partitions, each of ten records.
pub(crate) fn described(opcode: Opcode, correlation: CorrelationId, partition_count: u16) -> Vec<u8> {
    let header = FrameHeader::answer(opcode, Status::Ok, correlation, 0);
    with_envelope(header, &[], |builder| {
        let name = builder.create_string("orders");
        let partitions: Vec<_> = (0..partition_count)
            .map(|number| wire::PartitionDescription::new(partition(number).0, 0, 10, 4096, 0, 0))
            .collect();
        let partitions = builder.create_vector(&partitions);
        let settings = wire::TopicSettingsArgs {
            retention_ms: 1_000,
            compact: true,
            ..wire::TopicSettingsArgs::default()
        };
        let settings = wire::TopicSettings::create(builder, &settings);
        let args = wire::TopicDescriptionArgs {
            name: Some(name),
            created_ms: 77,
            partitions: Some(partitions),
            settings: Some(settings),
            ..wire::TopicDescriptionArgs::default()
        };
        wire::TopicDescription::create(builder, &args)
    })
}

pub(crate) fn topics(correlation: CorrelationId, names: &[&str], more: bool) -> Vec<u8> {
    let header = FrameHeader::answer(Opcode::ListTopics, Status::Ok, correlation, 0);
    with_envelope(header, &[], |builder| {
        let mut summaries = Vec::new();
        for name in names {
            let name = builder.create_string(name);
            let args = wire::TopicSummaryArgs {
                name: Some(name),
                partition_count: 4,
                ack_class: wire::AckClass::Durable,
                settings: None,
            };
            summaries.push(wire::TopicSummary::create(builder, &args));
        }
        let topics = builder.create_vector(&summaries);
        let args = wire::ListTopicsResponseArgs { topics: Some(topics), more };
        wire::ListTopicsResponse::create(builder, &args)
    })
}

pub(crate) fn stats(correlation: CorrelationId, durable_lsn: u64) -> Vec<u8> {
    let header = FrameHeader::answer(Opcode::Stats, Status::Ok, correlation, 0);
    with_envelope(header, &[], |builder| {
        let durability = builder.create_string("write and flush");
        let args = wire::StatsResponseArgs {
            durable_lsn,
            durability: Some(durability),
            removed_files: 13,
            ..wire::StatsResponseArgs::default()
        };
        wire::StatsResponse::create(builder, &args)
    })
}

pub(crate) fn subscribed(correlation: CorrelationId, subscription: u64, starts: &[(Handle, u64)]) -> Vec<u8> {
    let header = FrameHeader::answer(Opcode::Subscribe, Status::Ok, correlation, subscription);
    with_envelope(header, &[], |builder| {
        let partitions: Vec<_> =
            starts.iter().map(|(handle, start)| wire::SubscribedPartition::new(handle.0, *start)).collect();
        let partitions = builder.create_vector(&partitions);
        wire::SubscribeResponse::create(
            builder,
            &wire::SubscribeResponseArgs { partitions: Some(partitions) },
        )
    })
}

pub(crate) fn delivery(subscription: u64, partition: Handle, payload: &[u8]) -> Vec<u8> {
    let correlation = CorrelationId(partition.0);
    with_payload(FrameHeader::new(Opcode::Deliver, correlation, subscription), payload)
}

pub(crate) fn fetched(sent: &Sent, next_offset: u64, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader::answer(Opcode::Fetch, Status::Ok, sent.correlation, sent.subject);
    with_envelope(header, payload, |builder| {
        let args = wire::FetchResponseArgs { next_offset, durable_end: next_offset + 5 };
        wire::FetchResponse::create(builder, &args)
    })
}

pub(crate) fn go_away(status: Status) -> Vec<u8> {
    let mut header = FrameHeader::answer(Opcode::GoAway, status, CorrelationId(0), 0);
    header.flags = (header.flags.get() & !FLAG_ANSWER).into();
    bare(header)
}
