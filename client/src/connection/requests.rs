//! What can be asked of the broker: each request becomes one frame behind those that wait already.
//!
//! A request that is made returns the correlation id that its answer will carry. One that cannot be made now returns
//! why, and leaves the connection as it was; the caller keeps its data.

use protocol::frame::{CreditGrant, FLAG_RESUMES, FRAME_HEADER_BYTES, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle, Offset, SubscriptionId};
use protocol::limits::{ALIGNMENT, TOPIC_NAME_BYTES_MAX};
use protocol::wire::{self, StartFrom};
use zerocopy::IntoBytes;

use super::Connection;
use super::error::RequestError;
use super::event::TopicSettings;
use crate::limits::CONTROL_BYTES_MAX;

/// Where a subscription starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At this offset.
    Offset(Offset),
    /// At the first record that is kept.
    Earliest,
    /// Behind the last record.
    Latest,
    /// At the first batch that was appended at this time or later, in milliseconds since 1970.
    Time(u64),
}

impl Start {
    fn on_wire(self) -> (StartFrom, u64) {
        match self {
            Self::Offset(offset) => (StartFrom::Offset, offset.0),
            Self::Earliest => (StartFrom::Earliest, 0),
            Self::Latest => (StartFrom::Latest, 0),
            Self::Time(time_ms) => (StartFrom::Time, time_ms),
        }
    }
}

/// How much more the broker may push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditAmount {
    /// Records.
    pub records: u64,
    /// Bytes of batches, headers included.
    pub bytes: u64,
}

/// What to subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribeRequest<'a> {
    /// Name of the topic.
    pub topic: &'a str,
    /// One partition, or all that the connection's shard owns.
    pub partition: Option<u16>,
    /// Where to start in each of them.
    pub start: Start,
    /// The first grant.
    pub credit: CreditAmount,
}

/// What to fetch of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchRange {
    /// The first offset wanted.
    pub from: Offset,
    /// The offset behind the last one wanted.
    pub to: Offset,
    /// Bytes of batches; a single batch may be longer.
    pub bytes_max: u32,
}

impl Connection {
    /// Asks for a new topic that keeps what the broker keeps by default.
    ///
    /// # Errors
    /// Any `RequestError` but those of produce and subscribe.
    pub fn create_topic(&mut self, name: &str, partition_count: u32) -> Result<CorrelationId, RequestError> {
        self.create_topic_with(name, partition_count, &TopicSettings::default())
    }

    /// Asks for a new topic.
    ///
    /// # Errors
    /// As `create_topic`.
    pub fn create_topic_with(
        &mut self,
        name: &str,
        partition_count: u32,
        settings: &TopicSettings,
    ) -> Result<CorrelationId, RequestError> {
        self.check_other(name)?;
        let header = self.begin(Opcode::CreateTopic, 0);
        self.transmit.push_envelope(header, |builder| {
            let name = builder.create_string(name);
            let has_settings = *settings != TopicSettings::default();
            let settings = wire::TopicSettingsArgs {
                retention_ms: settings.retention_ms,
                retention_bytes: settings.retention_bytes,
                segment_bytes: settings.segment_bytes,
                segment_ms: settings.segment_ms,
                compact: settings.compact,
            };
            let settings = has_settings.then(|| wire::TopicSettings::create(builder, &settings));
            let args = wire::CreateTopicRequestArgs {
                name: Some(name),
                partition_count,
                settings,
                ..wire::CreateTopicRequestArgs::default()
            };
            wire::CreateTopicRequest::create(builder, &args)
        });
        Ok(header.correlation())
    }

    /// Asks to delete a topic and its records.
    ///
    /// # Errors
    /// As `create_topic`.
    pub fn delete_topic(&mut self, name: &str) -> Result<CorrelationId, RequestError> {
        self.ask_about_topic(Opcode::DeleteTopic, name)
    }

    /// Asks for a topic's partitions, their handles and offsets.
    ///
    /// # Errors
    /// As `create_topic`.
    pub fn describe_topic(&mut self, name: &str) -> Result<CorrelationId, RequestError> {
        self.ask_about_topic(Opcode::DescribeTopic, name)
    }

    /// Asks for the topics behind the one named, or from the first.
    ///
    /// # Errors
    /// As `create_topic`.
    pub fn list_topics(&mut self, after: Option<&str>) -> Result<CorrelationId, RequestError> {
        self.check_other(after.unwrap_or_default())?;
        let header = self.begin(Opcode::ListTopics, 0);
        self.transmit.push_envelope(header, |builder| {
            let after = after.map(|name| builder.create_string(name));
            wire::ListTopicsRequest::create(builder, &wire::ListTopicsRequestArgs { after })
        });
        Ok(header.correlation())
    }

    /// Asks for the broker's counters.
    ///
    /// # Errors
    /// As `create_topic`.
    pub fn stats(&mut self) -> Result<CorrelationId, RequestError> {
        self.check_other("")?;
        let header = self.begin(Opcode::Stats, 0);
        self.transmit.push(header, &[]);
        Ok(header.correlation())
    }

    /// Asks for deliveries under an id of the caller's choice, which is not 0 and not in use on this connection.
    ///
    /// # Errors
    /// As `create_topic`, and `SubscriptionInUse`.
    pub fn subscribe(
        &mut self,
        subscription: SubscriptionId,
        request: &SubscribeRequest<'_>,
    ) -> Result<CorrelationId, RequestError> {
        self.check_other(request.topic)?;
        self.ledger.begin_subscription(subscription)?;
        let (start_from, start_value) = request.start.on_wire();
        let header = self.begin(Opcode::Subscribe, subscription.0);
        self.transmit.push_envelope(header, |builder| {
            let topic = builder.create_string(request.topic);
            let args = wire::SubscribeRequestArgs {
                topic: Some(topic),
                partition: request.partition.map_or(-1, i32::from),
                start_from,
                start_value,
                credit_records: request.credit.records,
                credit_bytes: request.credit.bytes,
            };
            wire::SubscribeRequest::create(builder, &args)
        });
        Ok(header.correlation())
    }

    /// Asks for no more deliveries. Some may still come before the answer.
    ///
    /// # Errors
    /// As `create_topic`.
    pub fn unsubscribe(&mut self, subscription: SubscriptionId) -> Result<CorrelationId, RequestError> {
        self.check_other("")?;
        let header = self.begin(Opcode::Unsubscribe, subscription.0);
        self.transmit.push(header, &[]);
        Ok(header.correlation())
    }

    /// Grants a subscription more credit; answered only when refused.
    ///
    /// # Errors
    /// As `create_topic`.
    pub fn credit(
        &mut self,
        subscription: SubscriptionId,
        amount: CreditAmount,
    ) -> Result<CorrelationId, RequestError> {
        self.check_other("")?;
        let correlation = self.ledger.next_other();
        let grant = CreditGrant { records: amount.records.into(), bytes: amount.bytes.into() };
        let header = FrameHeader::new(Opcode::Credit, correlation, subscription.0);
        self.transmit.push(header, grant.as_bytes());
        Ok(correlation)
    }

    /// Asks for a range of a partition's records.
    ///
    /// # Errors
    /// As `create_topic`.
    pub fn fetch(&mut self, partition: Handle, range: FetchRange) -> Result<CorrelationId, RequestError> {
        self.check_other("")?;
        let header = self.begin(Opcode::Fetch, partition.0);
        self.transmit.push_envelope(header, |builder| {
            let args = wire::FetchRequestArgs {
                offset_from: range.from.0,
                offset_to: range.to.0,
                bytes_max: range.bytes_max,
            };
            wire::FetchRequest::create(builder, &args)
        });
        Ok(header.correlation())
    }

    /// Sends whole batches, as `BatchBuilder` makes them, to one partition; they are copied. `resumes` opens the gate
    /// that a retryable refusal closed.
    ///
    /// # Errors
    /// `WindowFull` when the granted window has no room, `FrameTooLarge` when it never has, `NotReady`, `Closing`.
    pub fn produce(
        &mut self,
        partition: Handle,
        batches: &[u8],
        resumes: bool,
    ) -> Result<CorrelationId, RequestError> {
        assert!(!batches.is_empty());
        assert!(batches.len().is_multiple_of(ALIGNMENT));
        let frame_bytes = FRAME_HEADER_BYTES + batches.len();
        self.check_produce(frame_bytes)?;
        let correlation = self.ledger.begin_produce(frame_bytes, self.transmit.end_position());
        let header = FrameHeader::new(Opcode::Produce, correlation, partition.0);
        let header = if resumes { header.with_flag(FLAG_RESUMES) } else { header };
        self.transmit.push(header, batches);
        Ok(correlation)
    }

    /// Whether `produce` would take batches of this length now.
    #[must_use]
    pub fn has_room(&self, batches_bytes: usize) -> bool {
        self.check_produce(FRAME_HEADER_BYTES + batches_bytes).is_ok()
    }

    fn ask_about_topic(&mut self, opcode: Opcode, name: &str) -> Result<CorrelationId, RequestError> {
        self.check_other(name)?;
        let header = self.begin(opcode, 0);
        self.transmit.push_envelope(header, |builder| {
            let name = builder.create_string(name);
            wire::TopicRequest::create(builder, &wire::TopicRequestArgs { name: Some(name) })
        });
        Ok(header.correlation())
    }

    /// The header of a request that `check_other` allowed and that will be answered.
    fn begin(&mut self, opcode: Opcode, subject: u64) -> FrameHeader {
        let correlation = self.ledger.begin_other(opcode, subject, self.transmit.end_position());
        FrameHeader::new(opcode, correlation, subject)
    }

    fn check_produce(&self, frame_bytes: usize) -> Result<(), RequestError> {
        if self.failure.is_some() {
            return Err(RequestError::Closing);
        }
        self.ledger.check_produce(frame_bytes)
    }

    fn check_other(&self, name: &str) -> Result<(), RequestError> {
        if self.failure.is_some() {
            return Err(RequestError::Closing);
        }
        if name.len() > TOPIC_NAME_BYTES_MAX {
            return Err(RequestError::NameTooLong);
        }
        // What waits beyond the produce frames are these requests, and credit, which nothing else bounds.
        if self.transmit().len() > self.produce_bytes_in_flight() + CONTROL_BYTES_MAX {
            return Err(RequestError::TooMany);
        }
        self.ledger.check_other()
    }
}
