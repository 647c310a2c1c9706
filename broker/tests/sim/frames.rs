//! The client's end of the wire for tests: requests as bytes, and bytes back into frames.
//!
//! Deliberately not the client crate: a mistake made there and in the broker alike would go unseen.

use flatbuffers::{FlatBufferBuilder, WIPOffset};
use protocol::batch::Batch;
use protocol::envelope;
use protocol::frame::{CreditGrant, FLAG_ANSWER, FLAG_RESUMES, Frame, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle};
use protocol::limits::{FRAME_BYTES_MAX, PROTOCOL_VERSION};
use protocol::status::Status;
use protocol::wire;
use zerocopy::IntoBytes;

use crate::report::{Violation, violation};
use crate::retention::Settings;

/// Where a subscription starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Earliest,
    Latest,
    Offset(u64),
    /// Milliseconds since 1970.
    Time(u64),
}

/// What to subscribe to, and the first grant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subscribing<'a> {
    pub(crate) topic: &'a str,
    /// -1 for all.
    pub(crate) partition: i32,
    pub(crate) start: Start,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

pub(crate) fn bare(opcode: Opcode, correlation: u64, subject: u64) -> Vec<u8> {
    header(opcode, correlation, subject).as_bytes().to_vec()
}

pub(crate) fn hello(correlation: u64) -> Vec<u8> {
    with_envelope(header(Opcode::Hello, correlation, 0), |builder| {
        let client_name = builder.create_string("sim");
        let args = wire::HelloRequestArgs {
            client_name: Some(client_name),
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            features: 0,
            shard: -1,
            credentials: None,
        };
        wire::HelloRequest::create(builder, &args)
    })
}

/// Creates a topic with the broker's own choice of settings.
pub(crate) fn create_topic(correlation: u64, name: &str, partition_count: u32) -> Vec<u8> {
    create_topic_with(correlation, name, partition_count, &Settings::default())
}

pub(crate) fn create_topic_with(
    correlation: u64,
    name: &str,
    partition_count: u32,
    settings: &Settings,
) -> Vec<u8> {
    with_envelope(header(Opcode::CreateTopic, correlation, 0), |builder| {
        let name = builder.create_string(name);
        let settings = if *settings == Settings::default() {
            None
        } else {
            let args = wire::TopicSettingsArgs {
                retention_ms: settings.retention_ms,
                retention_bytes: settings.retention_bytes,
                segment_bytes: settings.segment_bytes,
                segment_ms: settings.segment_ms,
                compact: settings.compact,
            };
            Some(wire::TopicSettings::create(builder, &args))
        };
        let args = wire::CreateTopicRequestArgs {
            name: Some(name),
            partition_count,
            ack_class: wire::AckClass::Durable,
            settings,
        };
        wire::CreateTopicRequest::create(builder, &args)
    })
}

/// A request that names a topic and nothing else: delete or describe.
pub(crate) fn about_topic(opcode: Opcode, correlation: u64, name: &str) -> Vec<u8> {
    with_envelope(header(opcode, correlation, 0), |builder| {
        let name = builder.create_string(name);
        wire::TopicRequest::create(builder, &wire::TopicRequestArgs { name: Some(name) })
    })
}

pub(crate) fn list_topics(correlation: u64) -> Vec<u8> {
    with_envelope(header(Opcode::ListTopics, correlation, 0), |builder| {
        wire::ListTopicsRequest::create(builder, &wire::ListTopicsRequestArgs { after: None })
    })
}

pub(crate) fn produce(correlation: u64, partition: Handle, resumes: bool, batches: &[u8]) -> Vec<u8> {
    let header = header(Opcode::Produce, correlation, partition.0);
    let header = if resumes { header.with_flag(FLAG_RESUMES) } else { header };
    with_payload(header, batches)
}

pub(crate) fn subscribe(correlation: u64, subscription: u64, wanted: &Subscribing<'_>) -> Vec<u8> {
    let (start_from, start_value) = match wanted.start {
        Start::Earliest => (wire::StartFrom::Earliest, 0),
        Start::Latest => (wire::StartFrom::Latest, 0),
        Start::Offset(offset) => (wire::StartFrom::Offset, offset),
        Start::Time(time_ms) => (wire::StartFrom::Time, time_ms),
    };
    with_envelope(header(Opcode::Subscribe, correlation, subscription), |builder| {
        let topic = builder.create_string(wanted.topic);
        let args = wire::SubscribeRequestArgs {
            topic: Some(topic),
            partition: wanted.partition,
            start_from,
            start_value,
            credit_records: wanted.records,
            credit_bytes: wanted.bytes,
        };
        wire::SubscribeRequest::create(builder, &args)
    })
}

pub(crate) fn credit(correlation: u64, subscription: u64, records: u64, bytes: u64) -> Vec<u8> {
    let grant = CreditGrant { records: records.into(), bytes: bytes.into() };
    with_payload(header(Opcode::Credit, correlation, subscription), grant.as_bytes())
}

pub(crate) fn fetch(correlation: u64, partition: Handle, from: u64, to: u64, bytes_max: u32) -> Vec<u8> {
    with_envelope(header(Opcode::Fetch, correlation, partition.0), |builder| {
        let args = wire::FetchRequestArgs { offset_from: from, offset_to: to, bytes_max };
        wire::FetchRequest::create(builder, &args)
    })
}

fn header(opcode: Opcode, correlation: u64, subject: u64) -> FrameHeader {
    FrameHeader::new(opcode, CorrelationId(correlation), subject)
}

fn with_payload(header: FrameHeader, payload: &[u8]) -> Vec<u8> {
    let mut frame = header.with_lengths(0, payload.len()).as_bytes().to_vec();
    frame.extend_from_slice(payload);
    frame
}

fn with_envelope<T>(
    header: FrameHeader,
    build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let root = build(&mut builder);
    let mut envelope_bytes = Vec::new();
    let length = envelope::finish_into(&mut builder, root, &mut envelope_bytes);
    let mut frame = header.with_lengths(length, 0).as_bytes().to_vec();
    frame.extend_from_slice(&envelope_bytes);
    frame
}

/// A partition as a topic's description has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) handle: Handle,
    /// Offset of the first record that is kept.
    pub(crate) start: u64,
    /// The durable end.
    pub(crate) end: u64,
    pub(crate) stored_bytes: u64,
}

/// What a refusal says of offsets: those that are kept, or those that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OffsetDetail {
    /// `None`: the one that was asked for.
    pub(crate) partition: Option<Handle>,
    pub(crate) first: u64,
    /// Where a reader may start: the durable end, or what lies behind the damage.
    pub(crate) behind: u64,
}

/// A frame that came from the broker.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) opcode: u8,
    pub(crate) is_answer: bool,
    pub(crate) status: Status,
    pub(crate) correlation: u64,
    pub(crate) subject: u64,
    pub(crate) envelope: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Received {
    pub(crate) fn is(&self, opcode: Opcode) -> bool {
        self.opcode == opcode as u8
    }

    /// The partitions of a topic's description.
    pub(crate) fn described(&self) -> Result<Vec<Described>, Violation> {
        let Ok(topic) = envelope::read::<wire::TopicDescription<'_>>(&self.envelope) else {
            return violation("a topic's description does not verify");
        };
        let partitions = topic.partitions();
        let described = partitions.iter().map(|partition| Described {
            handle: Handle(partition.handle()),
            start: partition.start_offset(),
            end: partition.end_offset(),
            stored_bytes: partition.stored_bytes(),
        });
        Ok(described.collect())
    }

    /// The settings in a topic's description.
    pub(crate) fn settings(&self) -> Result<Settings, Violation> {
        let Ok(topic) = envelope::read::<wire::TopicDescription<'_>>(&self.envelope) else {
            return violation("a topic's description does not verify");
        };
        let Some(settings) = topic.settings() else { return Ok(Settings::default()) };
        Ok(Settings {
            retention_ms: settings.retention_ms(),
            retention_bytes: settings.retention_bytes(),
            segment_bytes: settings.segment_bytes(),
            segment_ms: settings.segment_ms(),
            compact: settings.compact(),
        })
    }

    /// The offsets in an error's detail.
    pub(crate) fn offsets(&self) -> Result<OffsetDetail, Violation> {
        let Ok(detail) = envelope::read::<wire::ErrorDetail<'_>>(&self.envelope) else {
            return violation(format!("{:?} does not say which offsets it is about", self.status));
        };
        let partition = Some(Handle(detail.partition())).filter(|handle| handle.0 != 0);
        Ok(OffsetDetail { partition, first: detail.first_valid(), behind: detail.last_valid() })
    }

    /// The names of a list of topics.
    pub(crate) fn listed(&self) -> Result<Vec<String>, Violation> {
        let Ok(list) = envelope::read::<wire::ListTopicsResponse<'_>>(&self.envelope) else {
            return violation("a list of topics does not verify");
        };
        Ok(list.topics().iter().map(|topic| topic.name().to_owned()).collect())
    }

    /// The partitions of a subscription: handle and the offset where delivery starts.
    pub(crate) fn subscribed(&self) -> Result<Vec<(Handle, u64)>, Violation> {
        let Ok(subscribed) = envelope::read::<wire::SubscribeResponse<'_>>(&self.envelope) else {
            return violation("the answer to a Subscribe does not verify");
        };
        let partitions = subscribed.partitions();
        Ok(partitions
            .iter()
            .map(|partition| (Handle(partition.handle()), partition.start_offset()))
            .collect())
    }

    /// Of a fetch: the next offset.
    pub(crate) fn fetched_up_to(&self) -> Result<u64, Violation> {
        match envelope::read::<wire::FetchResponse<'_>>(&self.envelope) {
            Ok(fetched) => Ok(fetched.next_offset()),
            Err(_) => violation("the answer to a Fetch does not verify"),
        }
    }

    /// What an error says, if it says something.
    pub(crate) fn message(&self) -> String {
        let detail = envelope::read::<wire::ErrorDetail<'_>>(&self.envelope);
        detail.ok().and_then(|detail| detail.message()).unwrap_or_default().to_owned()
    }
}

/// Checks a payload of batches of one partition and hands each out.
pub(crate) fn each_batch(
    partition: Handle,
    payload: &[u8],
    mut each: impl FnMut(&Batch<'_>) -> Result<(), Violation>,
) -> Result<(), Violation> {
    let mut rest = payload;
    while !rest.is_empty() {
        let batch = match Batch::check(rest) {
            Ok(batch) => batch,
            Err(error) => return violation(format!("a batch of {partition} is not one: {error}")),
        };
        let header = batch.header();
        if !header.is_placed_in(partition) {
            return violation(format!("a batch at {} is not placed in {partition}", header.base_offset()));
        }
        each(&batch)?;
        rest = &rest[batch.bytes().len()..];
    }
    Ok(())
}

/// Cuts a connection's bytes into frames.
#[derive(Debug, Default)]
pub(crate) struct Cutter {
    bytes: Vec<u8>,
    /// Everything before this was cut.
    cut: usize,
}

impl Cutter {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.cut);
        self.cut = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Received>, Violation> {
        let frame = match Frame::cut(&self.bytes[self.cut..], FRAME_BYTES_MAX as u32) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(None),
            Err(error) => return violation(format!("the broker sent a header that lies: {error}")),
        };
        let header = frame.header;
        let Some(status) = Status::from_code(header.status.get()) else {
            return violation(format!("the broker sent the unknown status {}", header.status.get()));
        };
        let received = Received {
            opcode: header.opcode,
            is_answer: header.has_flag(FLAG_ANSWER),
            status,
            correlation: header.correlation_id.get(),
            subject: header.subject.get(),
            envelope: frame.envelope.to_vec(),
            payload: frame.payload.to_vec(),
        };
        let length = header.frame_bytes();
        self.cut += length;
        Ok(Some(received))
    }
}
