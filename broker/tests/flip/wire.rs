//! The few requests that are made here, as bytes, and what their answers say.
//!
//! Not the client crate: a mistake made there and in the broker alike would go unseen. Each request is answered before
//! the next one is made, so that all of them can have the same correlation id.

use flatbuffers::{FlatBufferBuilder, WIPOffset};
use protocol::envelope;
use protocol::frame::{FLAG_ANSWER, FLAG_RESUMES, Frame, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle};
use protocol::limits::{FRAME_BYTES_MAX, PROTOCOL_VERSION};
use protocol::status::Status;
use protocol::wire;
use zerocopy::IntoBytes;

const CORRELATION: CorrelationId = CorrelationId(1);
/// More than anything here holds.
const FETCH_BYTES_MAX: u32 = 1 << 20;

/// When a topic's segments are closed; 0 for the broker's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) segment_bytes: u64,
    pub(crate) segment_ms: u64,
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) status: Status,
    pub(crate) subject: u64,
    pub(crate) payload: &'a [u8],
    envelope: &'a [u8],
}

/// Offsets that cannot be read, as an answer names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) partition: Handle,
    pub(crate) first: u64,
    /// The first one behind them that may be readable.
    pub(crate) behind: u64,
}

/// What a fetch's answer says beside its batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) next_offset: u64,
    pub(crate) durable_end: u64,
}

impl Answer<'_> {
    /// The partitions in a topic's description.
    pub(crate) fn described(&self) -> Option<Vec<Handle>> {
        let topic = envelope::read::<wire::TopicDescription<'_>>(self.envelope).ok()?;
        Some(topic.partitions().iter().map(|partition| Handle(partition.handle())).collect())
    }

    /// The names in a list of topics.
    pub(crate) fn listed(&self) -> Option<Vec<String>> {
        let list = envelope::read::<wire::ListTopicsResponse<'_>>(self.envelope).ok()?;
        Some(list.topics().iter().map(|topic| topic.name().to_owned()).collect())
    }

    pub(crate) fn fetched(&self) -> Option<Fetched> {
        let fetched = envelope::read::<wire::FetchResponse<'_>>(self.envelope).ok()?;
        Some(Fetched { next_offset: fetched.next_offset(), durable_end: fetched.durable_end() })
    }

    pub(crate) fn unreadable(&self) -> Option<Unreadable> {
        let detail = envelope::read::<wire::ErrorDetail<'_>>(self.envelope).ok()?;
        let partition = Handle(detail.partition());
        Some(Unreadable { partition, first: detail.first_valid(), behind: detail.last_valid() })
    }
}

/// The answers among the frames that a shard has sent.
pub(crate) fn answers(sent: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    let mut rest = sent;
    let frames = std::iter::from_fn(move || {
        let frame = Frame::cut(rest, FRAME_BYTES_MAX as u32).ok()??;
        rest = &rest[frame.header.frame_bytes()..];
        Some(frame)
    });
    frames.filter(|frame| frame.header.has_flag(FLAG_ANSWER)).map(|frame| Answer {
        status: Status::from_code(frame.header.status.get()).expect("the status is a known one"),
        subject: frame.header.subject.get(),
        payload: frame.payload,
        envelope: frame.envelope,
    })
}

pub(crate) fn hello() -> Vec<u8> {
    with_envelope(Opcode::Hello, 0, |builder| {
        let args = wire::HelloRequestArgs {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            ..wire::HelloRequestArgs::default()
        };
        wire::HelloRequest::create(builder, &args)
    })
}

pub(crate) fn create_topic(name: &str, partition_count: u32, settings: Settings) -> Vec<u8> {
    with_envelope(Opcode::CreateTopic, 0, |builder| {
        let name = builder.create_string(name);
        let settings = wire::TopicSettingsArgs {
            segment_bytes: settings.segment_bytes,
            segment_ms: settings.segment_ms,
            ..wire::TopicSettingsArgs::default()
        };
        let settings = wire::TopicSettings::create(builder, &settings);
        let args = wire::CreateTopicRequestArgs {
            name: Some(name),
            partition_count,
            ack_class: wire::AckClass::Durable,
            settings: Some(settings),
        };
        wire::CreateTopicRequest::create(builder, &args)
    })
}

pub(crate) fn delete_topic(name: &str) -> Vec<u8> {
    with_envelope(Opcode::DeleteTopic, 0, |builder| {
        let name = builder.create_string(name);
        wire::TopicRequest::create(builder, &wire::TopicRequestArgs { name: Some(name) })
    })
}

pub(crate) fn list_topics() -> Vec<u8> {
    with_envelope(Opcode::ListTopics, 0, |builder| {
        wire::ListTopicsRequest::create(builder, &wire::ListTopicsRequestArgs { after: None })
    })
}

/// Everything from an offset on, as far as one answer holds it.
pub(crate) fn fetch(partition: Handle, from: u64) -> Vec<u8> {
    with_envelope(Opcode::Fetch, partition.0, |builder| {
        let args =
            wire::FetchRequestArgs { offset_from: from, offset_to: u64::MAX, bytes_max: FETCH_BYTES_MAX };
        wire::FetchRequest::create(builder, &args)
    })
}

/// `resumes`: the same was refused for now, and is sent again.
pub(crate) fn produce(partition: Handle, resumes: bool, batches: &[u8]) -> Vec<u8> {
    let header = FrameHeader::new(Opcode::Produce, CORRELATION, partition.0).with_lengths(0, batches.len());
    let header = if resumes { header.with_flag(FLAG_RESUMES) } else { header };
    [header.as_bytes(), batches].concat()
}

fn with_envelope<T>(
    opcode: Opcode,
    subject: u64,
    build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let root = build(&mut builder);
    let mut table = Vec::new();
    let length = envelope::finish_into(&mut builder, root, &mut table);
    let header = FrameHeader::new(opcode, CORRELATION, subject).with_lengths(length, 0);
    [header.as_bytes(), &table[..]].concat()
}
