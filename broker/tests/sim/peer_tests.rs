//! Peers that lie, do not read, read slowly, or want more than their window.
//!
//! Each costs what the limits say and no more, is told why when it is refused or cut, and leaves the others alone.

use broker::journal::Durability;
use broker::limits::SEND_STALL_NS;
use protocol::frame::{FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle};
use protocol::status::Status;
use zerocopy::IntoBytes;

use crate::audit::audit;
use crate::consumer::Consumer;
use crate::frames::{self, Start, Subscribing};
use crate::model::Model;
use crate::peer::Peer;
use crate::records::{Size, batch_of};
use crate::report::Violation;
use crate::retention::Settings;
use crate::world::{World, WorldConfig};

fn started(config: &WorldConfig) -> World {
    let mut world = World::new(7, config);
    world.start_and_recover().unwrap();
    world
}

fn calm() -> WorldConfig {
    WorldConfig::calm(Durability::WriteThenFlush)
}

/// A topic with so many partitions, which the model knows of.
fn create(world: &mut World, peer: &mut Peer, model: &mut Model, partitions: u32) -> Vec<Handle> {
    model.topics.begin_create("orders", Settings::default());
    let handles = peer.create_topic(world, "orders", partitions).unwrap();
    model.topics.on_created("orders", handles.clone(), partitions).unwrap();
    handles
}

/// A request's header with one thing wrong.
fn lying_header(lie: impl FnOnce(&mut FrameHeader)) -> Vec<u8> {
    let mut header = FrameHeader::new(Opcode::Stats, CorrelationId(5), 0);
    lie(&mut header);
    header.as_bytes().to_vec()
}

#[test]
fn a_lying_client_is_told_why_and_cut() {
    let config = calm();
    let mut world = started(&config);
    let too_long = config.frame_bytes_max + 8;
    let lies = [
        (lying_header(|header| header.version = 9), Status::UnsupportedVersion),
        (lying_header(|header| header.length = 24_u32.into()), Status::MalformedFrame),
        (lying_header(|header| header.length = 36_u32.into()), Status::MalformedFrame),
        (lying_header(|header| header.length = too_long.into()), Status::FrameTooLarge),
        (lying_header(|header| header.envelope_length = 8_u32.into()), Status::MalformedFrame),
        (lying_header(|header| header.reserved = 1_u16.into()), Status::MalformedFrame),
        (lying_header(|header| header.flags = 0x100_u16.into()), Status::MalformedFrame),
    ];
    for (bytes, status) in lies {
        let mut peer = Peer::greet(&mut world).unwrap();
        peer.send(&mut world, &bytes);
        // Nothing behind a header that lies is looked at.
        peer.send(&mut world, &frames::bare(Opcode::Stats, 6, 0));
        let told = peer.wait_for_end(&mut world).unwrap();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].is(Opcode::GoAway) && !told[0].is_answer, "{told:?}");
        assert_eq!(told[0].status, status, "{}", told[0].message());
    }
    let mut stranger = Peer::connect(&mut world);
    stranger.send(&mut world, &frames::bare(Opcode::Stats, 1, 0));
    let told = stranger.wait_for_end(&mut world).unwrap();
    assert_eq!((told.len(), told[0].status), (1, Status::HelloRequired));
}

#[test]
fn a_request_that_lies_is_refused_and_the_connection_lives() {
    let mut world = started(&calm());
    let mut model = Model::default();
    let mut peer = Peer::greet(&mut world).unwrap();
    let partition = create(&mut world, &mut peer, &mut model, 1)[0];
    let records = model.new_frame(partition, 1, Size::Small, 3);
    let good = batch_of(&records);

    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 0x80;
    let mut lengthened = good.clone();
    lengthened[8] = lengthened[8].wrapping_add(8);
    let half = good[..good.len() / 16 * 8].to_vec();
    for (batches, statuses) in [
        (flipped, [Status::CorruptBatch, Status::InvalidBatch]),
        (lengthened, [Status::InvalidBatch; 2]),
        (half, [Status::InvalidBatch; 2]),
        (vec![0; 256], [Status::InvalidBatch; 2]),
    ] {
        let produce = |correlation| frames::produce(correlation, partition, false, &batches);
        let answer = peer.ask(&mut world, produce).unwrap();
        assert!(statuses.contains(&answer.status), "{:?}", answer.status);
    }
    let unknown = |correlation| {
        let mut header = FrameHeader::new(Opcode::Stats, CorrelationId(correlation), 0);
        header.opcode = 200;
        header.as_bytes().to_vec()
    };
    peer.ask_for(&mut world, Status::UnknownOpcode, unknown).unwrap();
    let no_envelope = |correlation| frames::bare(Opcode::CreateTopic, correlation, 0);
    peer.ask_for(&mut world, Status::InvalidEnvelope, no_envelope).unwrap();
    let stale = |correlation| frames::produce(correlation, Handle(partition.0 ^ 1 << 40), false, &good);
    peer.ask_for(&mut world, Status::StaleHandle, stale).unwrap();

    // No gate was closed, and nothing was stored.
    let first = peer.produce(&mut world, partition, &records).unwrap();
    assert_eq!(first, 0);
    model.on_acked(partition, first, &records).unwrap();
    audit(&mut world, &mut model).unwrap();
}

#[test]
fn a_client_that_never_reads_is_cut_at_a_bound_and_memory_stays() {
    let mut world = started(&calm());
    let deaf = Peer::greet(&mut world).unwrap();
    let mut other = Peer::greet(&mut world).unwrap();
    let before = world.pool.used_bytes();
    world.net.stall(deaf.socket, u64::MAX);
    let requests: Vec<u8> =
        (10..60_000).flat_map(|correlation| frames::bare(Opcode::Stats, correlation, 0)).collect();
    deaf.send(&mut world, &requests);
    let began_ns = world.luck.now_ns;
    let mut most = 0;
    while !world.net.was_closed(deaf.socket) {
        world.step(u64::MAX).unwrap();
        most = most.max(world.pool.used_bytes());
        assert!(world.luck.now_ns < began_ns + 3 * SEND_STALL_NS, "it is still connected");
    }
    assert!(world.luck.now_ns >= began_ns + SEND_STALL_NS, "it was cut too early");
    assert!(most <= before + (1 << 20), "{before} bytes became {most}");
    other.ask_for(&mut world, Status::Ok, |correlation| frames::bare(Opcode::Stats, correlation, 0)).unwrap();
    world.run_for(1_000_000).unwrap();
    assert!(world.pool.used_bytes() <= before, "the dead connection still holds memory");
}

/// Gives a consumer what has come for it; the number of records.
fn take_deliveries(
    world: &mut World,
    peer: &mut Peer,
    consumer: &mut Consumer,
    model: &mut Model,
) -> Result<u64, Violation> {
    let before = model.delivered;
    for frame in peer.take(world)?.iter().filter(|frame| frame.is(Opcode::Deliver)) {
        consumer.on_deliver(frame, model)?;
    }
    Ok(model.delivered - before)
}

/// Subscribes to all of "orders" from the start.
fn subscribe(
    world: &mut World,
    peer: &mut Peer,
    (records, bytes): (u64, u64),
    model: &mut Model,
) -> Result<(Consumer, u64), Violation> {
    let mut consumer = Consumer::default();
    let id = consumer.begin("orders", Start::Earliest, (records, bytes), model);
    let wanted = Subscribing { topic: "orders", partition: -1, start: Start::Earliest, records, bytes };
    let answer =
        peer.ask_for(world, Status::Ok, |correlation| frames::subscribe(correlation, id, &wanted))?;
    consumer.on_subscribed(id, &answer.subscribed()?, model)?;
    Ok((consumer, id))
}

#[test]
fn a_slow_consumer_costs_its_credit_and_no_more() {
    const FRAMES: u64 = 60;
    const RECORDS: u64 = 5;
    let mut world = started(&calm());
    let mut model = Model::default();
    let (mut producer, mut slow, mut fast) = (
        Peer::greet(&mut world).unwrap(),
        Peer::greet(&mut world).unwrap(),
        Peer::greet(&mut world).unwrap(),
    );
    let partition = create(&mut world, &mut producer, &mut model, 1)[0];
    let (mut slow_consumer, id) = subscribe(&mut world, &mut slow, (12, 1 << 20), &mut model).unwrap();
    let (mut fast_consumer, _) = subscribe(&mut world, &mut fast, (1 << 40, 1 << 40), &mut model).unwrap();
    let (mut slow_got, mut fast_got) = (0, 0);
    for _ in 0..FRAMES {
        let records = model.new_frame(partition, 1, Size::Medium, RECORDS as usize);
        let first = producer.produce(&mut world, partition, &records).unwrap();
        model.on_acked(partition, first, &records).unwrap();
        slow_got += take_deliveries(&mut world, &mut slow, &mut slow_consumer, &mut model).unwrap();
        fast_got += take_deliveries(&mut world, &mut fast, &mut fast_consumer, &mut model).unwrap();
    }
    world.run_for(5_000_000).unwrap();
    slow_got += take_deliveries(&mut world, &mut slow, &mut slow_consumer, &mut model).unwrap();
    fast_got += take_deliveries(&mut world, &mut fast, &mut fast_consumer, &mut model).unwrap();
    assert_eq!(fast_got, FRAMES * RECORDS);
    // The last unit may overdraw the credit, by less than a batch.
    assert_eq!(slow_got, 15);
    assert!(!world.net.was_closed(slow.socket));

    // 3 records are owed, so 4 more are a credit of 1: one more batch.
    slow_consumer.grant(id, 4, 0);
    let frame = frames::credit(slow.next_correlation(), id, 4, 0);
    slow.send(&mut world, &frame);
    world.run_for(5_000_000).unwrap();
    assert_eq!(take_deliveries(&mut world, &mut slow, &mut slow_consumer, &mut model).unwrap(), 5);
}

#[test]
fn deleted_topic_ends_its_subscriptions() {
    let mut world = started(&calm());
    let mut model = Model::default();
    let (mut admin, mut reader) = (Peer::greet(&mut world).unwrap(), Peer::greet(&mut world).unwrap());
    let partitions = create(&mut world, &mut admin, &mut model, 3);
    let (_, id) = subscribe(&mut world, &mut reader, (100, 1 << 20), &mut model).unwrap();
    admin.delete_topic(&mut world, "orders").unwrap();
    world.run_for(2_000_000).unwrap();
    let told = reader.take(&mut world).unwrap();
    assert_eq!(told.len(), 1, "one word for all its partitions: {told:?}");
    assert!(told[0].is(Opcode::Unsubscribe), "{told:?}");
    assert_eq!((told[0].status, told[0].subject), (Status::UnknownTopic, id));

    let credit = |correlation| frames::credit(correlation, id, 1, 1);
    reader.ask_for(&mut world, Status::UnknownSubscription, credit).unwrap();
    let batches = batch_of(&[Size::Small.number(1)]);
    let produce = |correlation| frames::produce(correlation, partitions[2], false, &batches);
    admin.ask_for(&mut world, Status::StaleHandle, produce).unwrap();
    let fetch = |correlation| frames::fetch(correlation, partitions[0], 0, 1, 1_000);
    reader.ask_for(&mut world, Status::StaleHandle, fetch).unwrap();

    let successors = admin.create_topic(&mut world, "orders", 3).unwrap();
    assert!(successors.iter().all(|handle| !partitions.contains(handle)));
    let again = Subscribing { topic: "orders", partition: 0, start: Start::Latest, records: 1, bytes: 1 };
    let subscribe = |correlation| frames::subscribe(correlation, id, &again);
    assert_eq!(reader.ask_for(&mut world, Status::Ok, subscribe).unwrap().subject, id);
}

#[test]
fn window_overflow_is_busy_and_order_holds() {
    const FRAMES: usize = 40;
    let mut world = started(&WorldConfig { window_bytes: 16 << 10, ..calm() });
    let mut model = Model::default();
    let mut peer = Peer::greet(&mut world).unwrap();
    let partition = create(&mut world, &mut peer, &mut model, 1)[0];
    let lane = model.new_lane();
    let mut left: Vec<Vec<u64>> =
        (0..FRAMES).map(|_| model.new_frame(partition, lane, Size::Medium, 2)).collect();
    let mut rounds = 0;
    while !left.is_empty() {
        rounds += 1;
        let mut sent = Vec::new();
        let mut bytes = Vec::new();
        for (n, records) in left.iter().enumerate() {
            let correlation = peer.next_correlation();
            let resumes = rounds > 1 && n == 0;
            bytes.extend(frames::produce(correlation, partition, resumes, &batch_of(records)));
            sent.push(correlation);
        }
        peer.send(&mut world, &bytes);
        let mut taken = 0;
        for (n, correlation) in sent.into_iter().enumerate() {
            let answer = peer.wait_for(&mut world, |frame| frame.correlation == correlation).unwrap();
            match answer.status {
                Status::Ok => {
                    assert_eq!(taken, n, "a frame was taken behind one that was refused");
                    model.on_acked(partition, answer.subject, &left[n]).unwrap();
                    taken += 1;
                }
                Status::Busy => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(taken > 0, "a frame is always taken when nothing is in flight");
        left.drain(..taken);
    }
    assert!(rounds > 1, "the window never overflowed");
    audit(&mut world, &mut model).unwrap();
}
