//! The audit after a recovery.
//!
//! It reads everything that is there, as any consumer would, while nothing goes wrong, and holds it against the
//! model: what was acknowledged or seen is there, unchanged, and nothing is there that was never sent. What cannot be
//! read is passed over only where the broker says so and something was damaged.

use protocol::frame::Opcode;
use protocol::ids::Handle;
use protocol::status::Status;

use crate::consumer::Consumer;
use crate::frames::{self, Described, Received, Start, Subscribing};
use crate::model::{Damaged, Model, ReadRange};
use crate::peer::Peer;
use crate::report::{Kind, Violation, violation};
use crate::world::World;

const CREDIT_RECORDS: u64 = 500;
const CREDIT_BYTES: u64 = 256 << 10;
/// Subscriptions that one partition may need: one more for each damaged range, and for each time that retention is
/// faster than the reader.
const SUBSCRIPTIONS_MAX: u32 = 1_000;

/// Reads every partition of every topic from the earliest record on. Gives the partitions and their ends.
pub(crate) fn audit(world: &mut World, model: &mut Model) -> Result<Vec<(Handle, u64)>, Violation> {
    world.be_calm();
    model.see(world.surroundings());
    let mut peer = Peer::greet(world)?;
    let listed = peer.ask_for(world, Status::Ok, frames::list_topics)?.listed()?;
    model.topics.check_listed(&listed)?;
    let mut ends = Vec::new();
    for name in model.topics.names() {
        let describe = |correlation| frames::about_topic(Opcode::DescribeTopic, correlation, &name);
        let answer = peer.ask(world, describe)?;
        let version = model.topics.version(&name);
        match answer.status {
            Status::Ok => {
                let described = answer.described()?;
                let handles = described.iter().map(|partition| partition.handle).collect();
                model.topics.on_described(&name, version, Some(handles))?;
                model.topics.check_settings(&name, answer.settings()?)?;
                for (number, partition) in described.iter().enumerate() {
                    read_partition(world, &mut peer, model, (&name, number as i32), partition)?;
                    ends.push((partition.handle, partition.end));
                }
            }
            Status::UnknownTopic => model.topics.on_described(&name, version, None)?,
            other => return violation(format!("to describe {name} was refused with {other:?}")),
        }
    }
    world.net.hang_up(peer.socket, &mut world.luck);
    world.luck.count(Kind::Audit);
    world.be_hostile();
    Ok(ends)
}

/// Reads a partition whole, and checks what was read.
fn read_partition(
    world: &mut World,
    peer: &mut Peer,
    model: &mut Model,
    named: (&str, i32),
    described: &Described,
) -> Result<(), Violation> {
    let known = model.known_range(described.handle);
    if described.end < known.end || described.start < known.start {
        return violation(format!("clients knew of {known:?}, and now there is {described:?}"));
    }
    let mut reading = Reading {
        peer,
        named,
        partition: described.handle,
        consumer: Consumer::default(),
        subscription: 0,
        begins_at: None,
        bytes: 0,
        damaged: Vec::new(),
    };
    let mut start = Start::Earliest;
    for _ in 0..SUBSCRIPTIONS_MAX {
        match reading.read_from(world, model, start, described.end)? {
            Some(next) => start = next,
            None => return reading.check(world, model, described.end),
        }
    }
    violation(format!("{} needs more than {SUBSCRIPTIONS_MAX} subscriptions to be read", described.handle))
}

/// One partition that is being read.
struct Reading<'a> {
    peer: &'a mut Peer,
    /// The topic, and the partition's number.
    named: (&'a str, i32),
    partition: Handle,
    consumer: Consumer,
    subscription: u64,
    /// Where the partition started when it was read from the earliest record on.
    begins_at: Option<u64>,
    bytes: u64,
    damaged: Vec<Damaged>,
}

impl Reading<'_> {
    /// Reads on from here up to `end`. Gives where to go on when the broker has ended the subscription.
    fn read_from(
        &mut self,
        world: &mut World,
        model: &mut Model,
        start: Start,
        end: u64,
    ) -> Result<Option<Start>, Violation> {
        if start == Start::Offset(end) {
            return Ok(None);
        }
        let (topic, number) = self.named;
        let credit = (CREDIT_RECORDS, CREDIT_BYTES);
        self.subscription = self.consumer.begin(topic, start, credit, model);
        let id = self.subscription;
        let wanted =
            Subscribing { topic, partition: number, start, records: CREDIT_RECORDS, bytes: CREDIT_BYTES };
        let answer = self.peer.ask(world, |correlation| frames::subscribe(correlation, id, &wanted))?;
        match (answer.status, start) {
            (Status::Ok, _) => self.consumer.on_subscribed(id, &answer.subscribed()?, model)?,
            (Status::Corrupt | Status::OffsetOutOfRange, Start::Offset(next)) => {
                return self.go_on_behind(&answer, next, end, model).map(Some);
            }
            (other, _) => return violation(format!("a Subscribe from {start:?} was answered {other:?}")),
        }
        if start == Start::Earliest {
            self.begins_at = self.consumer.next_offset(id, self.partition);
            self.bytes = 0;
        }
        while self.consumer.next_offset(id, self.partition) != Some(end) {
            let is_news = |frame: &Received| frame.is(Opcode::Deliver) || frame.is(Opcode::Unsubscribe);
            let frame = self.peer.wait_for(world, is_news)?;
            model.see(world.surroundings());
            if frame.is(Opcode::Unsubscribe) {
                let Some(next) = self.consumer.next_offset(id, self.partition) else {
                    return violation(format!("subscription {id} was ended, and there is none"));
                };
                self.consumer.end(id);
                return self.go_on_behind(&frame, next, end, model).map(Some);
            }
            self.consumer.on_deliver(&frame, model)?;
            self.bytes += frame.payload.len() as u64;
            self.consumer.grant(id, CREDIT_RECORDS, CREDIT_BYTES);
            let correlation = self.peer.next_correlation();
            self.peer.send(world, &frames::credit(correlation, id, CREDIT_RECORDS, CREDIT_BYTES));
        }
        let unsubscribe = |correlation| frames::bare(Opcode::Unsubscribe, correlation, id);
        self.peer.ask_for(world, Status::Ok, unsubscribe).map(|_| None)
    }

    /// What was next cannot be read, says the broker: where to go on.
    fn go_on_behind(
        &mut self,
        told: &Received,
        next: u64,
        end: u64,
        model: &mut Model,
    ) -> Result<Start, Violation> {
        let partition = self.partition;
        let detail = told.offsets()?;
        if detail.partition.is_some_and(|other| other != partition) {
            return violation(format!("{detail:?} was told to a reader of {partition}"));
        }
        match told.status {
            Status::OffsetOutOfRange => {
                model.on_overtaken(partition, next, detail.first)?;
                self.damaged.clear();
                Ok(Start::Earliest)
            }
            Status::Corrupt if detail.behind <= end => {
                let damaged = Damaged { partition, first: detail.first, behind: detail.behind };
                model.on_damaged(damaged, next)?;
                self.damaged.push(damaged);
                Ok(Start::Offset(detail.behind))
            }
            _ => violation(format!("a reader of {partition} was told {:?} {detail:?}", told.status)),
        }
    }

    /// Everything up to `end` was read, or said to be damaged.
    fn check(&self, world: &World, model: &mut Model, end: u64) -> Result<(), Violation> {
        let Some(start) = self.begins_at else {
            return violation(format!("{} was not read from its start", self.partition));
        };
        model.see(world.surroundings());
        let read = ReadRange { partition: self.partition, start, end, bytes: self.bytes };
        if self.damaged.is_empty() {
            model.check_kept(&read)?;
        }
        model.check_partition(&read, &self.damaged)
    }
}
