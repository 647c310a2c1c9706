//! Topics: create, delete, describe, list.
//!
//! A change is an entry; its answer waits until that is durable, and so does every answer that is derived from it.

use protocol::frame::{Frame, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle, TopicKey};
use protocol::limits::{PARTITIONS_PER_TOPIC_MAX, TOPICS_PER_LIST_MAX};
use protocol::status::Status;
use protocol::wire;

use super::commit::Waiting;
use super::connection::Connection;
use super::produce::status_of_full;
use super::serving::Serving;
use super::subscribe::EndedSubscription;
use crate::catalog::Topic;
use crate::io::Socket;
use crate::journal::entry::{EntryKind, TopicCreated, TopicSettings, topic_subject};
use crate::limits::{
    EAGER_PARTITIONS_MAX, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, WAITERS_MAX,
};

/// A topic that is durable, and whose first segments are being made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Creation {
    socket: Socket,
    correlation: CorrelationId,
    topic: TopicKey,
}

impl Serving {
    /// If an answer about topics must wait for a change, the request is kept and handled again.
    fn waits_for_change(&mut self, connection: &mut Connection, frame: &Frame<'_>) -> bool {
        let must_wait = self.catalog_is_in_doubt();
        if must_wait {
            self.redo_when_durable(connection, frame);
        }
        must_wait
    }

    pub(super) fn begin_create_topic(&mut self, connection: &mut Connection, frame: &Frame<'_>) {
        let opcode = Opcode::CreateTopic;
        let Some(request) = self.envelope_of::<wire::CreateTopicRequest<'_>>(connection, frame) else {
            return;
        };
        if self.waits_for_change(connection, frame) {
            return;
        }
        if request.ack_class() != wire::AckClass::Durable {
            self.refuse(
                connection,
                frame.header,
                opcode,
                Status::Unsupported,
                "ack class memory is not built yet",
            );
            return;
        }
        let settings = match settings_of(request.settings()) {
            Ok(settings) => settings,
            Err((status, message)) => {
                self.refuse(connection, frame.header, opcode, status, &message);
                return;
            }
        };
        let partitions = u64::from(request.partition_count().min(PARTITIONS_PER_TOPIC_MAX));
        if !self.snapshot_has_room(partitions, 0) && !self.checkpoints.has_no_space() {
            self.redo_when_grown(connection, frame, partitions);
            return;
        }
        match self.create_topic(request.name(), request.partition_count(), settings) {
            Ok(topic) => {
                let waiting = Waiting::TopicCreated { correlation: frame.header.correlation(), topic };
                self.wait_for(self.catalog_changed, connection, waiting);
            }
            Err(status) => {
                let message = format!("cannot create topic '{}': {status:?}", request.name());
                self.refuse(connection, frame.header, opcode, status, &message);
            }
        }
    }

    fn create_topic(
        &mut self,
        name: &str,
        partition_count: u32,
        settings: TopicSettings,
    ) -> Result<TopicKey, Status> {
        if self.is_shutting_down() {
            return Err(Status::ShuttingDown);
        }
        if self.waiters.len() >= WAITERS_MAX {
            return Err(Status::Busy);
        }
        let key = self
            .state
            .catalog
            .decide_create(name, partition_count)
            .map_err(crate::catalog::CatalogError::status)?;
        if !self.snapshot_has_room(u64::from(partition_count), 0) {
            return Err(Status::DiskFull);
        }
        let created = TopicCreated { key, partition_count, created_ms: self.now.wall_ms, name, settings };
        let body_bytes = created.body_bytes();
        self.journal.reserve(EntryKind::CreateTopic, body_bytes).map_err(status_of_full)?;
        let lsn = self.journal.append(EntryKind::CreateTopic, topic_subject(key), body_bytes, |body| {
            created.write(body);
        });
        self.state.apply_create(&created);
        self.catalog_changed = lsn;
        if partition_count <= EAGER_PARTITIONS_MAX {
            for number in 0..partition_count {
                self.ask_for_space(Handle::new(key, number as u16), 1);
            }
        }
        Ok(key)
    }

    /// Answers creations whose segments are made, or cannot be.
    pub(super) fn answer_creations(&mut self) {
        let mut waiting = std::mem::take(&mut self.creations);
        waiting.retain(|creation| {
            let must_wait = self.space.is_awaited_by(creation.topic);
            if !must_wait {
                self.describe_created(*creation);
            }
            must_wait
        });
        self.creations = waiting;
    }

    pub(super) fn finish_create_topic(
        &mut self,
        socket: Socket,
        correlation: CorrelationId,
        topic: TopicKey,
    ) {
        let creation = Creation { socket, correlation, topic };
        if self.space.is_awaited_by(topic) {
            self.creations.push(creation);
        } else {
            self.describe_created(creation);
        }
    }

    fn describe_created(&mut self, creation: Creation) {
        let Creation { socket, correlation, topic } = creation;
        let Some(mut connection) = self.take_connection(socket) else { return };
        let found = self.state.catalog.get(topic).cloned();
        match found {
            Some(topic) => self.describe(&mut connection, Opcode::CreateTopic, correlation, &topic),
            // Created, and deleted again before this answer.
            None => {
                let header = FrameHeader::answer(Opcode::CreateTopic, Status::UnknownTopic, correlation, 0);
                connection.outbox.push_header(&header);
            }
        }
        self.put_connection(connection);
        self.mark_dirty(socket);
    }

    pub(super) fn begin_delete_topic(&mut self, connection: &mut Connection, frame: &Frame<'_>) {
        let opcode = Opcode::DeleteTopic;
        let Some(request) = self.envelope_of::<wire::TopicRequest<'_>>(connection, frame) else { return };
        if self.waits_for_change(connection, frame) {
            return;
        }
        match self.delete_topic(request.name()) {
            Ok(ended) => {
                let waiting = Waiting::TopicDeleted { correlation: frame.header.correlation(), ended };
                self.wait_for(self.catalog_changed, connection, waiting);
            }
            Err(status) => {
                let message = format!("cannot delete topic '{}': {status:?}", request.name());
                self.refuse(connection, frame.header, opcode, status, &message);
            }
        }
    }

    /// Deletes, and gives the subscriptions that are to be told when that is durable.
    fn delete_topic(&mut self, name: &str) -> Result<Vec<EndedSubscription>, Status> {
        if self.is_shutting_down() {
            return Err(Status::ShuttingDown);
        }
        if self.waiters.len() >= WAITERS_MAX {
            return Err(Status::Busy);
        }
        let key = self.state.catalog.find(name).map_err(crate::catalog::CatalogError::status)?.key;
        self.journal.reserve(EntryKind::DeleteTopic, 8).map_err(status_of_full)?;
        let deleted_ms = self.now.wall_ms;
        self.catalog_changed = self.journal.append(EntryKind::DeleteTopic, topic_subject(key), 8, |body| {
            body.copy_from_slice(&deleted_ms.to_le_bytes());
        });
        let partitions = self.state.apply_delete(key, self.catalog_changed);
        let mut indexes = Vec::new();
        for partition in &partitions {
            self.write_behind.forget(partition);
            indexes.extend(partition.subscribers.iter().map(|subscriber| subscriber.subscription));
        }
        indexes.sort_unstable();
        indexes.dedup();
        Ok(indexes.into_iter().filter_map(|index| self.ended_subscription(index)).collect())
    }

    pub(super) fn finish_delete_topic(
        &mut self,
        socket: Socket,
        correlation: CorrelationId,
        ended: &[EndedSubscription],
    ) {
        for subscription in ended {
            self.end_subscription(*subscription, Status::UnknownTopic);
        }
        let Some(connection) = self.connection_mut(socket) else { return };
        connection.outbox.push_header(&FrameHeader::answer(Opcode::DeleteTopic, Status::Ok, correlation, 0));
        self.mark_dirty(socket);
    }

    pub(super) fn on_describe_topic(&mut self, connection: &mut Connection, frame: &Frame<'_>) {
        let opcode = Opcode::DescribeTopic;
        let Some(request) = self.envelope_of::<wire::TopicRequest<'_>>(connection, frame) else { return };
        if self.waits_for_change(connection, frame) {
            return;
        }
        match self.state.catalog.find(request.name()).cloned() {
            Ok(topic) => self.describe(connection, opcode, frame.header.correlation(), &topic),
            Err(error) => {
                let message = format!("no topic '{}'", request.name());
                self.refuse(connection, frame.header, opcode, error.status(), &message);
            }
        }
    }

    fn describe(
        &mut self,
        connection: &mut Connection,
        opcode: Opcode,
        correlation: CorrelationId,
        topic: &Topic,
    ) {
        let shard = u32::from(self.config.shard);
        let described: Vec<_> = (0..topic.partition_count)
            .filter_map(|number| self.state.partitions.get(Handle::new(topic.key, number as u16)))
            .map(|partition| {
                let (start, end) = (partition.start().0, partition.durable_end().0);
                wire::PartitionDescription::new(
                    partition.handle.0,
                    start,
                    end,
                    partition.log.bytes(),
                    shard,
                    0,
                )
            })
            .collect();
        let header = FrameHeader::answer(opcode, Status::Ok, correlation, 0);
        self.answer(connection, header, |builder| {
            let name = builder.create_string(&topic.name);
            let partitions = builder.create_vector(&described);
            let settings = Some(wire::TopicSettings::create(builder, &settings_args(&topic.settings)));
            let args = wire::TopicDescriptionArgs {
                settings,
                name: Some(name),
                ack_class: wire::AckClass::Durable,
                created_ms: topic.created_ms,
                partitions: Some(partitions),
            };
            wire::TopicDescription::create(builder, &args)
        });
    }

    pub(super) fn on_list_topics(&mut self, connection: &mut Connection, frame: &Frame<'_>) {
        let opcode = Opcode::ListTopics;
        let Some(request) = self.envelope_of::<wire::ListTopicsRequest<'_>>(connection, frame) else {
            return;
        };
        if self.waits_for_change(connection, frame) {
            return;
        }
        let mut listed: Vec<Topic> = self
            .state
            .catalog
            .list(request.after().unwrap_or(""))
            .take(TOPICS_PER_LIST_MAX + 1)
            .cloned()
            .collect();
        let more = listed.len() > TOPICS_PER_LIST_MAX;
        listed.truncate(TOPICS_PER_LIST_MAX);
        let header = FrameHeader::answer(opcode, Status::Ok, frame.header.correlation(), 0);
        self.answer(connection, header, |builder| {
            let topics: Vec<_> = listed
                .iter()
                .map(|topic| {
                    let name = builder.create_string(&topic.name);
                    let settings =
                        Some(wire::TopicSettings::create(builder, &settings_args(&topic.settings)));
                    let args = wire::TopicSummaryArgs {
                        settings,
                        name: Some(name),
                        partition_count: topic.partition_count,
                        ack_class: wire::AckClass::Durable,
                    };
                    wire::TopicSummary::create(builder, &args)
                })
                .collect();
            let topics = builder.create_vector(&topics);
            wire::ListTopicsResponse::create(
                builder,
                &wire::ListTopicsResponseArgs { topics: Some(topics), more },
            )
        });
    }
}

/// The settings asked for, with the defaults where nothing was said.
fn settings_of(asked: Option<wire::TopicSettings<'_>>) -> Result<TopicSettings, (Status, String)> {
    let mut settings = TopicSettings { segment_bytes: SEGMENT_BYTES_DEFAULT, ..TopicSettings::default() };
    let Some(asked) = asked else { return Ok(settings) };
    if asked.compact() {
        return Err((Status::Unsupported, "compaction by key is not built yet".to_owned()));
    }
    if asked.segment_bytes() > 0 {
        settings.segment_bytes = asked.segment_bytes();
    } else if asked.retention_bytes() > 0 {
        // Retention drops whole segments: eight of them hold what is kept.
        let part = (asked.retention_bytes() / 8).next_multiple_of(SEGMENT_BYTES_MIN);
        settings.segment_bytes = part.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_DEFAULT);
    }
    if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&settings.segment_bytes) {
        let message = format!("segment_bytes must be {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}");
        return Err((Status::InvalidEnvelope, message));
    }
    settings.retention_ms = asked.retention_ms();
    settings.retention_bytes = asked.retention_bytes();
    settings.segment_ms = asked.segment_ms();
    Ok(settings)
}

fn settings_args(settings: &TopicSettings) -> wire::TopicSettingsArgs {
    wire::TopicSettingsArgs {
        retention_ms: settings.retention_ms,
        retention_bytes: settings.retention_bytes,
        segment_bytes: settings.segment_bytes,
        segment_ms: settings.segment_ms,
        compact: settings.is_compacted,
    }
}
