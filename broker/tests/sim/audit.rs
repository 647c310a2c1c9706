//! The audit after a recovery.
//!
//! It reads everything that is there, as any consumer would, while nothing goes wrong, and holds it against the
//! model: what was acknowledged or seen is there, unchanged, and nothing is there that was never sent.

use protocol::frame::Opcode;
use protocol::ids::Handle;
use protocol::status::Status;

use crate::consumer::Consumer;
use crate::frames::{self, Start, Subscribing};
use crate::model::Model;
use crate::peer::Peer;
use crate::report::{Kind, Violation, violation};
use crate::world::World;

const CREDIT_RECORDS: u64 = 500;
const CREDIT_BYTES: u64 = 256 << 10;

/// Reads every partition of every topic from the earliest record on. Gives the partitions and their ends.
pub(crate) fn audit(world: &mut World, model: &mut Model) -> Result<Vec<(Handle, u64)>, Violation> {
    world.be_calm();
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
                let handles = described.iter().map(|(handle, _)| *handle).collect();
                model.topics.on_described(&name, version, Some(handles))?;
                read_topic(world, &mut peer, model, &name, &described)?;
                ends.extend(described);
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

/// Reads a topic whole, through one subscription.
fn read_topic(
    world: &mut World,
    peer: &mut Peer,
    model: &mut Model,
    name: &str,
    described: &[(Handle, u64)],
) -> Result<(), Violation> {
    for (partition, end) in described {
        let known = model.known_end(*partition);
        if *end < known {
            return violation(format!(
                "{partition} ends at {end}, and {known} records are known to be there"
            ));
        }
    }
    let mut consumer = Consumer::default();
    let subscription = consumer.begin(name, Start::Earliest, (CREDIT_RECORDS, CREDIT_BYTES), model);
    let wanted = Subscribing {
        topic: name,
        partition: -1,
        start: Start::Earliest,
        records: CREDIT_RECORDS,
        bytes: CREDIT_BYTES,
    };
    let subscribe = |correlation| frames::subscribe(correlation, subscription, &wanted);
    let answer = peer.ask_for(world, Status::Ok, subscribe)?;
    consumer.on_subscribed(subscription, &answer.subscribed()?)?;
    let is_read = |consumer: &Consumer| {
        let mut partitions = described.iter();
        partitions.all(|(handle, end)| consumer.next_offset(subscription, *handle) == Some(*end))
    };
    while !is_read(&consumer) {
        let frame = peer.wait_for(world, |frame| frame.is(Opcode::Deliver))?;
        consumer.on_deliver(&frame, model)?;
        consumer.grant(subscription, CREDIT_RECORDS, CREDIT_BYTES);
        let correlation = peer.next_correlation();
        peer.send(world, &frames::credit(correlation, subscription, CREDIT_RECORDS, CREDIT_BYTES));
    }
    peer.ask_for(world, Status::Ok, |correlation| {
        frames::bare(Opcode::Unsubscribe, correlation, subscription)
    })?;
    described.iter().try_for_each(|(handle, end)| model.check_partition(*handle, *end))
}
