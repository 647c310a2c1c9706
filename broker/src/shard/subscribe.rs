//! Subscriptions: where each consumer stands, and how much it may still be sent.
//!
//! A partition that has something new wakes the cursors that read it; `deliver` serves them while there is credit.

use protocol::frame::{CreditGrant, Frame, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle, Offset, SubscriptionId};
use protocol::status::Status;
use protocol::wire;
use std::collections::VecDeque;
use zerocopy::FromBytes;

use super::cold::{Damage, Reader};
use super::connection::Connection;
use super::serving::Serving;
use super::session::OffsetRange;
use crate::io::Socket;
use crate::limits::{CREDIT_MAX, CURSORS_PER_CONNECTION_MAX, SUBSCRIPTIONS_PER_CONNECTION_MAX};
use crate::log::{Position, Target};
use crate::partition::Subscriber;

/// One subscription of one connection.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) socket: Socket,
    pub(super) id: SubscriptionId,
    pub(super) credit: Credit,
    pub(super) cursors: Vec<PartitionCursor>,
    /// Cursors whose partition has something for them, in turn.
    pub(super) ready: VecDeque<u32>,
}

/// What may still be pushed; goes below zero by the last unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credit {
    pub(super) records: i64,
    pub(super) bytes: i64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PartitionCursor {
    pub(super) partition: Handle,
    /// What comes next, until it was found.
    pub(super) goal: Option<Target>,
    /// A time was looked for up to here, and not found.
    pub(super) looked_up_to: Position,
    /// Where that is in the log, once it was found;
    pub(super) at: Position,
    /// true as long as the log has this generation.
    pub(super) generation: u32,
    /// Offset of the next record; a lower bound before the first delivery.
    pub(super) next: Offset,
    /// The stream that reads for it from disk.
    pub(super) cold: Option<u32>,
    pub(super) is_ready: bool,
}

impl PartitionCursor {
    /// A cursor whose place is to be found.
    fn new(partition: Handle, goal: Target, next: Offset) -> Self {
        let at = Position(0);
        Self {
            partition,
            goal: Some(goal),
            looked_up_to: Position(0),
            at,
            generation: 0,
            next,
            cold: None,
            is_ready: false,
        }
    }

    /// Begins anew from the next record.
    pub(super) fn lose_place(&mut self) {
        // A time that was not found yet is still what is looked for.
        if self.goal.is_none() {
            self.goal = Some(Target::Offset(self.next));
        }
        self.cold = None;
    }
}

impl Credit {
    /// The sum, or `None` when it would leave its bounds.
    fn plus(self, records: u64, bytes: u64) -> Option<Self> {
        let add = |left: i64, more: u64| left.checked_add_unsigned(more).filter(|sum| *sum <= CREDIT_MAX);
        Some(Self { records: add(self.records, records)?, bytes: add(self.bytes, bytes)? })
    }

    pub(super) fn is_positive(self) -> bool {
        self.records > 0 && self.bytes > 0
    }
}

impl Subscription {
    /// The partition of a cursor has something for it.
    pub(super) fn wake(&mut self, cursor: u32) {
        let partition = &mut self.cursors[cursor as usize];
        if !partition.is_ready {
            partition.is_ready = true;
            self.ready.push_back(cursor);
        }
    }
}

impl Serving {
    pub(super) fn begin_subscribe(&mut self, connection: &mut Connection, frame: &Frame<'_>) {
        let opcode = Opcode::Subscribe;
        let Some(request) = self.envelope_of::<wire::SubscribeRequest<'_>>(connection, frame) else { return };
        if self.catalog_is_in_doubt() {
            self.redo_when_durable(connection, frame);
            return;
        }
        if let Err((status, message, valid)) = self.try_subscribe(connection, frame, &request) {
            let header =
                FrameHeader::answer(opcode, status, frame.header.correlation(), frame.header.subject.get());
            self.answer_error(connection, header, &message, valid);
        }
    }

    fn try_subscribe(
        &mut self,
        connection: &mut Connection,
        frame: &Frame<'_>,
        request: &wire::SubscribeRequest<'_>,
    ) -> Result<(), SubscribeRefusal> {
        let id = SubscriptionId(frame.header.subject.get());
        if id.0 == 0 || connection.subscription(id).is_some() {
            return refusal(Status::SubscriptionExists, format!("subscription id {} is 0 or in use", id.0));
        }
        let none = Credit { records: 0, bytes: 0 };
        let Some(credit) = none.plus(request.credit_records(), request.credit_bytes()) else {
            return refusal(Status::CreditOverflow, "credit is over 2^62".to_owned());
        };
        let cursors = self.place_cursors(request)?;
        let cursor_count = connection.cursor_count + cursors.len();
        let is_full = connection.subscriptions.len() == SUBSCRIPTIONS_PER_CONNECTION_MAX
            || cursor_count > CURSORS_PER_CONNECTION_MAX;
        let starts: Vec<_> = cursors
            .iter()
            .map(|(cursor, start)| wire::SubscribedPartition::new(cursor.partition.0, start.0))
            .collect();
        let subscription = Subscription {
            socket: connection.socket,
            id,
            credit,
            cursors: cursors.into_iter().map(|(cursor, _)| cursor).collect(),
            ready: VecDeque::new(),
        };
        let inserted = if is_full { Err(subscription) } else { self.subscriptions.insert(subscription) };
        let Ok(index) = inserted else {
            return refusal(Status::SubscriptionLimit, "too many subscriptions".to_owned());
        };
        connection.subscriptions.push((id, index));
        connection.cursor_count = cursor_count;
        self.attach(index);
        let header = FrameHeader::answer(Opcode::Subscribe, Status::Ok, frame.header.correlation(), id.0);
        self.answer(connection, header, |builder| {
            let partitions = builder.create_vector(&starts);
            wire::SubscribeResponse::create(
                builder,
                &wire::SubscribeResponseArgs { partitions: Some(partitions) },
            )
        });
        Ok(())
    }

    /// Finds the partitions asked for and where delivery starts in each.
    fn place_cursors(
        &self,
        request: &wire::SubscribeRequest<'_>,
    ) -> Result<Vec<(PartitionCursor, Offset)>, SubscribeRefusal> {
        let Ok(topic) = self.state.catalog.find(request.topic()) else {
            return refusal(Status::UnknownTopic, format!("no topic '{}'", request.topic()));
        };
        let wanted = match u32::try_from(request.partition()) {
            Ok(number) if number < topic.partition_count => number..number + 1,
            Err(_) if request.partition() == -1 => 0..topic.partition_count,
            _ => return refusal(Status::UnknownPartition, format!("no partition {}", request.partition())),
        };
        let mut cursors = Vec::with_capacity(wanted.len());
        for number in wanted {
            let handle = Handle::new(topic.key, number as u16);
            let Some(partition) = self.state.partitions.get(handle) else { continue };
            let (start, end) = (partition.start(), partition.durable_end());
            let (goal, offset) = match request.start_from() {
                wire::StartFrom::Earliest => (Target::Offset(start), start),
                wire::StartFrom::Latest => (Target::Offset(end), end),
                wire::StartFrom::Offset => {
                    let offset = Offset(request.start_value());
                    (Target::Offset(offset), offset)
                }
                wire::StartFrom::Time => {
                    let time = Target::Time(request.start_value());
                    (time, partition.lower_bound(time))
                }
                _ => return refusal(Status::Unsupported, "this start is not built yet".to_owned()),
            };
            if offset < start || offset > end {
                let message = format!("offset {offset} is not in partition {number}: {start} to {end}");
                let range = OffsetRange { partition: handle, first: start, last: end };
                return Err((Status::OffsetOutOfRange, message, Some(range)));
            }
            cursors.push((PartitionCursor::new(handle, goal, offset), offset));
        }
        Ok(cursors)
    }

    /// Has the partitions wake the subscription, and wakes it for what is there already.
    fn attach(&mut self, index: u32) {
        let Some(subscription) = self.subscriptions.get_mut(index) else { return };
        for number in 0..subscription.cursors.len() {
            let cursor = number as u32;
            let handle = subscription.cursors[number].partition;
            if let Some(partition) = self.state.partitions.get_mut(handle) {
                partition.subscribers.push(Subscriber { subscription: index, cursor });
                subscription.wake(cursor);
            }
        }
    }

    pub(super) fn on_unsubscribe(&mut self, connection: &mut Connection, frame: &Frame<'_>) {
        let id = SubscriptionId(frame.header.subject.get());
        let status = match connection.subscription(id) {
            Some(index) => {
                connection.cursor_count -= self.drop_subscription(index);
                connection.subscriptions.retain(|(known, _)| *known != id);
                Status::Ok
            }
            None => Status::UnknownSubscription,
        };
        let answer = FrameHeader::answer(Opcode::Unsubscribe, status, frame.header.correlation(), id.0);
        connection.outbox.push_header(&answer);
    }

    pub(super) fn on_credit(&mut self, connection: &mut Connection, frame: &Frame<'_>) {
        let id = SubscriptionId(frame.header.subject.get());
        let granted = CreditGrant::read_from_bytes(frame.payload).map_err(|_| Status::MalformedFrame);
        let subscription = connection
            .subscription(id)
            .and_then(|index| self.subscriptions.get_mut(index))
            .ok_or(Status::UnknownSubscription);
        let outcome = granted.and_then(|grant| {
            let subscription = subscription?;
            let sum = subscription.credit.plus(grant.records.get(), grant.bytes.get());
            subscription.credit = sum.ok_or(Status::CreditOverflow)?;
            Ok(())
        });
        if let Err(status) = outcome {
            self.refuse(connection, frame.header, Opcode::Credit, status, "credit was not added");
        }
    }

    /// Forgets a subscription; its partitions no longer wake it. Gives the number of its cursors.
    pub(super) fn drop_subscription(&mut self, index: u32) -> usize {
        let Some(subscription) = self.subscriptions.remove(index) else { return 0 };
        for (number, cursor) in (0..).zip(&subscription.cursors) {
            let reader = Reader::Cursor { subscription: index, cursor: number };
            self.cold.forget(reader);
            if let Some(stream) = cursor.cold {
                self.cold.end((stream, reader));
            }
            if let Some(partition) = self.state.partitions.get_mut(cursor.partition) {
                partition.subscribers.retain(|subscriber| subscriber.subscription != index);
            }
        }
        subscription.cursors.len()
    }

    /// What must be known to end a subscription later, when its index may have been given away again.
    pub(super) fn ended_subscription(&self, index: u32) -> Option<EndedSubscription> {
        let subscription = self.subscriptions.get(index)?;
        Some(EndedSubscription { index, socket: subscription.socket, id: subscription.id })
    }

    /// Ends a subscription from this side and tells its connection: its topic is gone.
    pub(super) fn end_subscription(&mut self, ended: EndedSubscription, status: Status) {
        if self.ended_subscription(ended.index) != Some(ended) {
            return;
        }
        let cursors = self.drop_subscription(ended.index);
        let Some(connection) = self.connection_mut(ended.socket) else { return };
        connection.subscriptions.retain(|(_, known)| *known != ended.index);
        connection.cursor_count -= cursors;
        let header = FrameHeader::answer(Opcode::Unsubscribe, status, CorrelationId(0), ended.id.0);
        connection.outbox.push_header(&header);
        self.mark_dirty(ended.socket);
    }

    /// Ends a subscription of a connection that was taken out of its table: what comes next cannot be read, or is not
    /// there any more. Its peer is told where it can go on.
    pub(super) fn end_with_range(
        &mut self,
        connection: &mut Connection,
        index: u32,
        status: Status,
        range: OffsetRange,
    ) {
        let Some(ended) = self.ended_subscription(index) else { return };
        let cursors = self.drop_subscription(index);
        connection.subscriptions.retain(|(_, known)| *known != index);
        connection.cursor_count -= cursors;
        let header = FrameHeader::answer(Opcode::Unsubscribe, status, CorrelationId(0), ended.id.0);
        let (first, last) = (range.first, range.last);
        let message = match status {
            Status::Corrupt => format!("records from {first} on, up to {last}, cannot be read"),
            _ => format!("the next record was dropped by retention: {first} to {last} are left"),
        };
        self.answer_error(connection, header, &message, Some(range));
    }
}

impl Damage {
    /// As `ErrorDetail` says it: the first record that cannot be read, and the first behind them that may be, or the
    /// durable end.
    pub(super) fn range_in(self, partition: Handle, durable_end: Offset) -> OffsetRange {
        OffsetRange { partition, first: self.first, last: self.next.min(durable_end) }
    }
}

/// A subscription whose topic was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndedSubscription {
    index: u32,
    socket: Socket,
    id: SubscriptionId,
}

type SubscribeRefusal = (Status, String, Option<OffsetRange>);

fn refusal<T>(status: Status, message: String) -> Result<T, SubscribeRefusal> {
    Err((status, message, None))
}
