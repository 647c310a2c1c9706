//! The connection core against a fake broker: handshake, cutting, pipelining, window, heartbeats, and lies.
//!
//! The fake broker takes apart what the connection would send and answers with real frames; the clock is a number
//! that each test chooses. A lie is a frame that is well-formed in itself and false in its place, or not even that.

use protocol::frame::{FLAG_ANSWER, FRAME_HEADER_BYTES, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Offset, SubscriptionId};
use protocol::status::Status;
use protocol::{envelope, wire};

use super::*;
use crate::fake_broker::{self as fake, Granted, Sent, connected, partition, take_sent};
use crate::limits::{CONTROL_BYTES_MAX, OTHER_REQUESTS_MAX, RECEIVE_SLACK_BYTES};

const SECOND_NS: u64 = 1_000_000_000;

fn produce(connection: &mut Connection) -> CorrelationId {
    connection.produce(partition(0), &fake::batch_of(&[b"value"]), false).unwrap()
}

fn subscribe(connection: &mut Connection, id: u64) -> CorrelationId {
    subscribe_from(connection, id, Start::Latest)
}

fn subscribe_from(connection: &mut Connection, id: u64, start: Start) -> CorrelationId {
    let credit = CreditAmount { records: 10, bytes: 1 << 20 };
    let request = SubscribeRequest { topic: "orders", partition: Some(2), start, credit };
    connection.subscribe(SubscriptionId(id), &request).unwrap()
}

/// Everything that the connection has to say, as text, because events borrow.
fn drain(connection: &mut Connection) -> Vec<String> {
    let mut events = Vec::new();
    while let Some(event) = connection.next_event() {
        events.push(format!("{event:?}"));
    }
    events
}

fn hear(connection: &mut Connection, bytes: &[u8]) -> Vec<String> {
    connection.on_bytes(0, bytes).unwrap();
    drain(connection)
}

#[test]
fn hello_goes_first_and_its_grants_are_given_out() {
    let options = ConnectionOptions { client_name: "tester".to_owned(), shard: Some(3) };
    let mut connection = Connection::new(0, &options);
    assert_eq!(connection.grants(), None);
    assert_eq!(connection.stats(), Err(RequestError::NotReady));
    assert!(!connection.has_room(1024));
    let sent = take_sent(&mut connection);
    assert_eq!((sent.len(), sent[0].opcode), (1, Opcode::Hello));
    let hello = envelope::read::<wire::HelloRequest<'_>>(&sent[0].envelope).unwrap();
    assert_eq!((hello.client_name(), hello.shard()), (Some("tester"), 3));
    assert_eq!((hello.version_min(), hello.version_max()), (PROTOCOL_VERSION, PROTOCOL_VERSION));

    connection.on_bytes(1, &fake::hello_answer(sent[0].correlation, Granted::default())).unwrap();
    let Some(Event::HelloDone(grants)) = connection.next_event() else { panic!("no grants") };
    assert_eq!((grants.window_bytes, grants.heartbeat_ms), (1 << 20, 1_000));
    assert_eq!(connection.grants(), Some(&grants));
    assert_eq!(connection.requests_in_flight(), 0);
}

#[test]
fn refused_hello_ends_the_asking() {
    let mut connection = Connection::new(0, &ConnectionOptions::default());
    let hello = take_sent(&mut connection).remove(0);
    let answer = fake::refused(Opcode::Hello, Status::UnsupportedVersion, hello.correlation, "too old");
    connection.on_bytes(0, &answer).unwrap();
    assert!(
        matches!(connection.next_event(), Some(Event::Refused(refusal)) if refusal.opcode == Opcode::Hello)
    );
    assert_eq!(connection.stats(), Err(RequestError::Closing));
}

#[test]
fn frames_cut_at_every_byte_give_the_same_events() {
    let stream = |connection: &mut Connection| {
        let (first, second) = (produce(connection), connection.describe_topic("orders").unwrap());
        subscribe(connection, 5);
        let batch = fake::placed_batch(partition(0), 7, &[b"one", b"two"]);
        [
            fake::produced(first, 41),
            fake::bare(FrameHeader::new(Opcode::Heartbeat, CorrelationId(0), 0)),
            fake::described(Opcode::DescribeTopic, second, 3),
            fake::delivery(5, partition(0), &batch),
        ]
        .concat()
    };
    let mut whole = connected(Granted::default());
    let bytes = stream(&mut whole);
    let expected = hear(&mut whole, &bytes);
    assert_eq!(expected.len(), 3);
    for cut in 0..=bytes.len() {
        let mut connection = connected(Granted::default());
        let (front, back) = bytes.split_at(cut);
        stream(&mut connection);
        let mut events = hear(&mut connection, front);
        events.extend(hear(&mut connection, back));
        assert_eq!(events, expected, "cut at {cut}");
    }
    let mut connection = connected(Granted::default());
    stream(&mut connection);
    let events: Vec<String> = bytes.iter().flat_map(|byte| hear(&mut connection, &[*byte])).collect();
    assert_eq!(events, expected);
}

#[test]
fn pipelined_requests_find_their_answers_in_any_order() {
    let mut connection = connected(Granted::default());
    let produces: Vec<CorrelationId> = (0..100).map(|_| produce(&mut connection)).collect();
    let stats = connection.stats().unwrap();
    assert_eq!(take_sent(&mut connection).len(), 101);
    assert_eq!(connection.requests_in_flight(), 101);
    for (number, correlation) in produces.iter().enumerate().rev() {
        let found = hear(&mut connection, &fake::produced(*correlation, number as u64));
        let expected = Event::Produced { correlation: *correlation, first_offset: Offset(number as u64) };
        assert_eq!(found, [format!("{expected:?}")]);
    }
    assert_eq!(connection.produce_bytes_in_flight(), 0);
    connection.on_bytes(0, &fake::stats(stats, 99)).unwrap();
    let Some(Event::Stats { stats, .. }) = connection.next_event() else { panic!("no stats") };
    assert_eq!((stats.durable_lsn, stats.durability.as_deref()), (99, Some("write and flush")));
    assert_eq!(connection.requests_in_flight(), 0);
}

#[test]
fn window_holds_back_what_the_broker_did_not_grant() {
    let batch = fake::batch_of(&[b"value"]);
    let frame_bytes = (FRAME_HEADER_BYTES + batch.len()) as u32;
    let mut connection = connected(Granted { window_bytes: 2 * frame_bytes, ..Granted::default() });
    let first = produce(&mut connection);
    produce(&mut connection);
    let waiting = connection.transmit().len();
    assert_eq!(connection.produce(partition(0), &batch, false), Err(RequestError::WindowFull));
    assert_eq!(connection.transmit().len(), waiting, "a request that was not made leaves nothing behind");
    hear(&mut connection, &fake::produced(first, 0));
    assert!(connection.has_room(batch.len()));
    assert!(!connection.has_room(batch.len() + 8));
    produce(&mut connection);
}

#[test]
fn frame_over_the_window_goes_alone() {
    let mut connection = connected(Granted { window_bytes: 64, ..Granted::default() });
    let first = produce(&mut connection);
    let batch = fake::batch_of(&[b"value"]);
    assert_eq!(connection.produce(partition(0), &batch, false), Err(RequestError::WindowFull));
    hear(&mut connection, &fake::refused_produce(first, Status::Busy, 0));
    produce(&mut connection);
    let long = vec![b'x'; 1 << 20];
    let too_long = fake::batch_of(&[&long]);
    assert_eq!(connection.produce(partition(0), &too_long, false), Err(RequestError::FrameTooLarge));
}

#[test]
fn requests_in_flight_are_bounded() {
    let mut connection = connected(Granted { requests_in_flight_max: 2, ..Granted::default() });
    produce(&mut connection);
    connection.stats().unwrap();
    assert_eq!(
        connection.produce(partition(0), &fake::batch_of(&[b"v"]), false),
        Err(RequestError::WindowFull)
    );
    assert_eq!(connection.stats(), Err(RequestError::TooMany));

    let mut connection = connected(Granted { requests_in_flight_max: 1 << 20, ..Granted::default() });
    let made = (0..).take_while(|_| connection.stats().is_ok()).count();
    assert_eq!(made, OTHER_REQUESTS_MAX);
}

#[test]
fn credit_that_does_not_leave_is_bounded() {
    let mut connection = connected(Granted::default());
    subscribe(&mut connection, 1);
    let amount = CreditAmount { records: 1, bytes: 1 };
    while connection.credit(SubscriptionId(1), amount).is_ok() {}
    assert!(connection.transmit().len() < CONTROL_BYTES_MAX + 1024);
    assert_eq!(connection.credit(SubscriptionId(1), amount), Err(RequestError::TooMany));
}

#[test]
fn rare_requests_carry_their_fields() {
    let mut connection = connected(Granted::default());
    connection.create_topic("orders", 8).unwrap();
    connection.delete_topic("old").unwrap();
    let settings = TopicSettings { retention_bytes: 1 << 40, segment_ms: 7, ..TopicSettings::default() };
    connection.list_topics(Some("m")).unwrap();
    subscribe(&mut connection, 5);
    connection.credit(SubscriptionId(5), CreditAmount { records: 3, bytes: 4 }).unwrap();
    let range = FetchRange { from: Offset(4), to: Offset(9), bytes_max: 1 << 16 };
    connection.fetch(partition(1), range).unwrap();
    connection.create_topic_with("kept", 2, &settings).unwrap();
    subscribe_from(&mut connection, 6, Start::Time(1_700_000_000_000));
    let sent = take_sent(&mut connection);

    let create = envelope::read::<wire::CreateTopicRequest<'_>>(&sent[0].envelope).unwrap();
    assert_eq!((create.name(), create.partition_count()), ("orders", 8));
    assert!(create.settings().is_none(), "the broker's own choice is not spelled out");
    let kept = envelope::read::<wire::CreateTopicRequest<'_>>(&sent[6].envelope).unwrap();
    let settings = kept.settings().unwrap();
    assert_eq!((settings.retention_bytes(), settings.segment_ms()), (1 << 40, 7));
    assert_eq!((settings.retention_ms(), settings.compact()), (0, false));
    let from_time = envelope::read::<wire::SubscribeRequest<'_>>(&sent[7].envelope).unwrap();
    let start = (from_time.start_from(), from_time.start_value());
    assert_eq!(start, (wire::StartFrom::Time, 1_700_000_000_000));
    let delete = envelope::read::<wire::TopicRequest<'_>>(&sent[1].envelope).unwrap();
    assert_eq!((sent[1].opcode, delete.name()), (Opcode::DeleteTopic, "old"));
    let list = envelope::read::<wire::ListTopicsRequest<'_>>(&sent[2].envelope).unwrap();
    assert_eq!(list.after(), Some("m"));
    let subscribe = envelope::read::<wire::SubscribeRequest<'_>>(&sent[3].envelope).unwrap();
    assert_eq!((sent[3].subject, subscribe.topic(), subscribe.partition()), (5, "orders", 2));
    assert_eq!((subscribe.start_from(), subscribe.credit_records()), (wire::StartFrom::Latest, 10));
    assert_eq!((sent[4].opcode, sent[4].payload.len()), (Opcode::Credit, 16));
    assert_eq!(sent[4].payload[..9], [3, 0, 0, 0, 0, 0, 0, 0, 4]);
    let fetch = envelope::read::<wire::FetchRequest<'_>>(&sent[5].envelope).unwrap();
    assert_eq!((sent[5].subject, fetch.offset_to(), fetch.bytes_max()), (partition(1).0, 9, 1 << 16));
}

#[test]
fn rare_answers_become_their_events() {
    let mut connection = connected(Granted::default());
    let create = connection.create_topic("orders", 2).unwrap();
    let delete = connection.delete_topic("old").unwrap();
    let list = connection.list_topics(None).unwrap();
    connection.on_bytes(0, &fake::described(Opcode::CreateTopic, create, 2)).unwrap();
    let Some(Event::TopicDescribed { topic, .. }) = connection.next_event() else { panic!("no topic") };
    assert_eq!((topic.name.as_str(), topic.created_ms, topic.partitions.len()), ("orders", 77, 2));
    assert_eq!(topic.partitions[1].handle, partition(1));
    assert_eq!(topic.partitions[1].end_offset, Offset(10));
    let settings = TopicSettings { retention_ms: 1_000, compact: true, ..TopicSettings::default() };
    assert_eq!(topic.settings, settings);

    let deleted = FrameHeader::answer(Opcode::DeleteTopic, Status::Ok, delete, 0);
    connection.on_bytes(0, &fake::bare(deleted)).unwrap();
    assert_eq!(connection.next_event(), Some(Event::TopicDeleted { correlation: delete }));
    connection.on_bytes(0, &fake::topics(list, &["a", "b"], true)).unwrap();
    let Some(Event::Topics { topics, .. }) = connection.next_event() else { panic!("no topics") };
    assert!(topics.more);
    assert_eq!((topics.topics[1].name.as_str(), topics.topics[1].partition_count), ("b", 4));
    assert_eq!(topics.topics[1].settings, TopicSettings::default());
}

#[test]
fn subscription_delivers_until_it_ends() {
    let mut connection = connected(Granted::default());
    let correlation = subscribe(&mut connection, 5);
    let credit = CreditAmount { records: 1, bytes: 1 };
    let again = SubscribeRequest { topic: "orders", partition: None, start: Start::Earliest, credit };
    for id in [0, 5] {
        let refused = connection.subscribe(SubscriptionId(id), &again);
        assert_eq!(refused, Err(RequestError::SubscriptionInUse));
    }
    connection.on_bytes(0, &fake::subscribed(correlation, 5, &[(partition(2), 30)])).unwrap();
    let expected = SubscribedPartition { handle: partition(2), start_offset: Offset(30) };
    assert!(matches!(
        connection.next_event(),
        Some(Event::Subscribed { partitions, .. }) if partitions == [expected]
    ));
    let batch = fake::placed_batch(partition(2), 30, &[b"x"]);
    let delivery = fake::delivery(5, partition(2), &batch);
    connection.on_bytes(0, &delivery).unwrap();
    let Some(Event::Delivered { payload, partition: from, .. }) = connection.next_event() else {
        panic!("no delivery")
    };
    assert_eq!((payload, from), (&batch[..], partition(2)));

    let unsubscribe = connection.unsubscribe(SubscriptionId(5)).unwrap();
    assert_eq!(hear(&mut connection, &delivery).len(), 1, "what was under way still counts");
    let answer = FrameHeader::answer(Opcode::Unsubscribe, Status::Ok, unsubscribe, 5);
    assert_eq!(hear(&mut connection, &fake::bare(answer)).len(), 1);
    assert_eq!(connection.on_bytes(0, &delivery), Err(ConnectionError::UnknownSubscription(5)));
}

#[test]
fn broker_may_end_a_subscription_by_itself() {
    let mut connection = connected(Granted::default());
    let correlation = subscribe(&mut connection, 5);
    hear(&mut connection, &fake::subscribed(correlation, 5, &[(partition(0), 0)]));
    let ended = FrameHeader::answer(Opcode::Unsubscribe, Status::UnknownTopic, CorrelationId(0), 5);
    connection.on_bytes(0, &fake::bare(ended)).unwrap();
    let reason = EndReason { status: Status::UnknownTopic, detail: None, valid: None, damaged: None };
    let expected = Event::SubscriptionEnded { subscription: SubscriptionId(5), reason };
    assert_eq!(connection.next_event(), Some(expected));
    subscribe(&mut connection, 5);
    let other = FrameHeader::answer(Opcode::Unsubscribe, Status::UnknownTopic, CorrelationId(0), 6);
    assert_eq!(connection.on_bytes(0, &fake::bare(other)), Err(ConnectionError::UnknownSubscription(6)));
}

#[test]
fn ended_subscription_names_the_offsets() {
    let reason_of = |bytes: Vec<u8>| {
        let mut connection = connected(Granted::default());
        subscribe(&mut connection, 1);
        connection.on_bytes(0, &bytes).unwrap();
        let Some(Event::SubscriptionEnded { reason, .. }) = connection.next_event() else {
            panic!("not ended")
        };
        reason
    };
    let removed = reason_of(fake::subscription_ended(Status::OffsetOutOfRange, partition(2).0, (40, 90)));
    let valid = ValidOffsets { partition: Some(partition(2)), first: Offset(40), last: Offset(90) };
    assert_eq!((removed.valid, removed.damaged), (Some(valid), None));
    let damaged = reason_of(fake::subscription_ended(Status::Corrupt, 0, (40, 90)));
    let range = DamagedOffsets { partition: None, first: Offset(40), next: Offset(90) };
    assert_eq!((damaged.valid, damaged.damaged), (None, Some(range)));
    let empty = reason_of(fake::subscription_ended(Status::Corrupt, 0, (40, 40)));
    assert_eq!(empty.damaged, None, "a range that does not go on is no range");
}

#[test]
fn fetched_batches_are_lent_from_the_buffer() {
    let mut connection = connected(Granted::default());
    let range = FetchRange { from: Offset(4), to: Offset(9), bytes_max: 1 << 16 };
    connection.fetch(partition(1), range).unwrap();
    let sent = take_sent(&mut connection).remove(0);
    let batch = fake::placed_batch(partition(1), 4, &[b"x", b"y"]);
    connection.on_bytes(0, &fake::fetched(&sent, 6, &batch)).unwrap();
    let Some(Event::Fetched { next_offset, durable_end, payload, .. }) = connection.next_event() else {
        panic!("no answer")
    };
    assert_eq!((next_offset, durable_end, payload), (Offset(6), Offset(11), &batch[..]));
}

#[test]
fn refusals_tell_why_and_when() {
    let mut connection = connected(Granted::default());
    let first = produce(&mut connection);
    connection.on_bytes(0, &fake::refused_produce(first, Status::Busy, 1500)).unwrap();
    let Some(Event::Refused(refusal)) = connection.next_event() else { panic!("no refusal") };
    assert_eq!((refusal.status, refusal.retry_after_us, refusal.detail), (Status::Busy, 1500, None));

    let correlation = subscribe(&mut connection, 5);
    let answer = fake::refused(Opcode::Subscribe, Status::OffsetOutOfRange, correlation, "no such offset");
    connection.on_bytes(0, &answer).unwrap();
    let Some(Event::Refused(refusal)) = connection.next_event() else { panic!("no refusal") };
    assert_eq!(refusal.detail.as_deref(), Some("no such offset"));
    let valid = ValidOffsets { partition: None, first: Offset(100), last: Offset(200) };
    assert_eq!(refusal.valid, Some(valid));
    subscribe(&mut connection, 5);

    let range = FetchRange { from: Offset(4), to: Offset(9), bytes_max: 1 << 16 };
    let fetch = connection.fetch(partition(1), range).unwrap();
    let mut answer = fake::refused(Opcode::Fetch, Status::Corrupt, fetch, "rotten");
    answer[24..32].copy_from_slice(&partition(1).0.to_le_bytes());
    connection.on_bytes(0, &answer).unwrap();
    let Some(Event::Refused(refusal)) = connection.next_event() else { panic!("no refusal") };
    let damaged = DamagedOffsets { partition: Some(partition(1)), first: Offset(100), next: Offset(200) };
    assert_eq!((refusal.valid, refusal.damaged), (None, Some(damaged)));

    let credit = connection.credit(SubscriptionId(5), CreditAmount { records: 1, bytes: 1 }).unwrap();
    let answer = fake::refused(Opcode::Credit, Status::CreditOverflow, credit, "too much");
    assert_eq!(hear(&mut connection, &answer).len(), 1);
}

#[test]
fn silent_side_sends_heartbeats() {
    let mut connection = connected(Granted::default());
    connection.on_tick(SECOND_NS - 1).unwrap();
    assert!(connection.transmit().is_empty());
    assert_eq!(connection.next_deadline_ns(), SECOND_NS);
    connection.on_tick(SECOND_NS).unwrap();
    assert_eq!(connection.next_deadline_ns(), 3 * SECOND_NS, "one heartbeat waits, no other joins it");
    connection.on_tick(2 * SECOND_NS).unwrap();
    let sent = take_sent(&mut connection);
    assert_eq!((sent.len(), sent[0].opcode), (1, Opcode::Heartbeat));
    assert_eq!(connection.next_deadline_ns(), 3 * SECOND_NS);
}

#[test]
fn peer_that_is_silent_for_three_intervals_is_dead() {
    let mut connection = connected(Granted::default());
    let heartbeat = fake::bare(FrameHeader::new(Opcode::Heartbeat, CorrelationId(0), 0));
    connection.on_bytes(2 * SECOND_NS, &heartbeat).unwrap();
    assert_eq!(connection.next_event(), None);
    connection.on_tick(5 * SECOND_NS - 1).unwrap();
    assert_eq!(connection.on_tick(5 * SECOND_NS), Err(ConnectionError::PeerSilent));
    assert_eq!(connection.stats(), Err(RequestError::Closing));

    let mut connection = Connection::new(0, &ConnectionOptions::default());
    connection.on_tick(HELLO_WAIT_NS - 1).unwrap();
    assert_eq!(connection.on_tick(HELLO_WAIT_NS), Err(ConnectionError::PeerSilent));
}

#[test]
fn goodbye_ends_the_asking_but_not_the_answers() {
    let mut connection = connected(Granted::default());
    let first = produce(&mut connection);
    let events = hear(&mut connection, &fake::go_away(Status::ShuttingDown));
    assert_eq!(events.len(), 1);
    let batch = fake::batch_of(&[b"v"]);
    assert_eq!(connection.produce(partition(0), &batch, false), Err(RequestError::Closing));
    assert_eq!(hear(&mut connection, &fake::produced(first, 3)).len(), 1);
}

#[test]
fn nothing_leaves_after_a_goodbye() {
    let mut connection = connected(Granted::default());
    let (first, second) = (produce(&mut connection), produce(&mut connection));
    connection.transmitted(8);
    hear(&mut connection, &fake::go_away(Status::ShuttingDown));
    connection.on_tick(2 * SECOND_NS).unwrap();
    assert!(connection.transmit().is_empty());
    assert!(!connection.is_unsent(first));
    assert!(connection.is_unsent(second));
}

#[test]
fn unsent_is_only_what_the_socket_never_saw() {
    let mut connection = connected(Granted::default());
    let (first, second) = (produce(&mut connection), produce(&mut connection));
    assert!(connection.is_unsent(first) && connection.is_unsent(second));
    connection.transmitted(1);
    assert!(!connection.is_unsent(first), "a single byte counts");
    let length = connection.transmit().len();
    connection.transmitted(length / 2 - 1);
    assert!(connection.is_unsent(second));
    connection.transmitted(1);
    connection.transmitted(1);
    assert!(!connection.is_unsent(second));
    assert!(!connection.is_unsent(CorrelationId(1 << 40)));
}

#[test]
fn bytes_leave_in_order_however_the_socket_takes_them() {
    let mut connection = connected(Granted::default());
    let mut reference = connected(Granted::default());
    let mut taken = Vec::new();
    for round in 0..200_usize {
        produce(&mut connection);
        produce(&mut reference);
        let count = connection.transmit().len().min(round % 37 * 11);
        taken.extend_from_slice(&connection.transmit()[..count]);
        connection.transmitted(count);
    }
    taken.extend_from_slice(connection.transmit());
    assert_eq!(taken, reference.transmit());
}

#[test]
fn receive_buffer_grows_to_its_frame_and_no_further() {
    let granted = Granted { frame_bytes_max: 256 << 10, ..Granted::default() };
    let mut connection = connected(granted);
    subscribe(&mut connection, 5);
    let value = vec![7; 200 << 10];
    let batch = fake::placed_batch(partition(2), 0, &[&value]);
    let delivery = fake::delivery(5, partition(2), &batch);
    for _ in 0..3 {
        let mut rest = &delivery[..];
        while !rest.is_empty() {
            let space = connection.receive_space(1024);
            let count = space.len().min(rest.len());
            assert!(count > 0);
            space[..count].copy_from_slice(&rest[..count]);
            connection.on_received(0, count).unwrap();
            rest = &rest[count..];
        }
        assert_eq!(drain(&mut connection).len(), 1);
    }
    let most = (256 << 10) + RECEIVE_SLACK_BYTES;
    assert!(connection.receive_space(usize::MAX / 4).len() <= most);
    assert_eq!(connection.on_bytes(0, &vec![0; most + 1]), Err(ConnectionError::NotDrained));
    assert_eq!(hear(&mut connection, &delivery).len(), 1, "bytes that do not fit change nothing");
}

/// A header with one field changed.
fn lying(mut header: FrameHeader, lie: impl FnOnce(&mut FrameHeader)) -> Vec<u8> {
    lie(&mut header);
    fake::bare(header)
}

#[test]
fn lies_end_the_connection() {
    type Lie = fn(&mut Connection) -> Vec<u8>;
    let envelope_of = |connection: &mut Connection| {
        let asked = connection.describe_topic("orders").unwrap();
        let mut bytes = fake::described(Opcode::DescribeTopic, asked, 1);
        bytes[FRAME_HEADER_BYTES..].fill(0xEE);
        bytes
    };
    let lies: [(Lie, ConnectionError); 11] = [
        (|_| fake::produced(CorrelationId(2), 0), ConnectionError::UnknownCorrelation(2)),
        (|c| [fake::produced(produce(c), 0), fake::produced(CorrelationId(2), 0)].concat(), {
            ConnectionError::UnknownCorrelation(2)
        }),
        (|_| fake::stats(CorrelationId(1), 0), ConnectionError::UnknownCorrelation(1)),
        (
            |c| fake::described(Opcode::CreateTopic, c.describe_topic("a").unwrap(), 1),
            ConnectionError::OtherAnswer { asked: Opcode::DescribeTopic, answered: Opcode::CreateTopic },
        ),
        (
            |c| fake::subscribed(subscribe(c, 5), 6, &[]),
            ConnectionError::OtherAnswer { asked: Opcode::Subscribe, answered: Opcode::Subscribe },
        ),
        (|_| fake::delivery(9, partition(0), &[0; 8]), ConnectionError::UnknownSubscription(9)),
        (
            |c| {
                let correlation = produce(c);
                let header = FrameHeader::answer(Opcode::Produce, Status::Ok, correlation, 0);
                fake::with_payload(header, &[0; 8])
            },
            ConnectionError::Content(Opcode::Produce),
        ),
        (
            |_| fake::bare(FrameHeader::new(Opcode::Stats, CorrelationId(1), 0)),
            ConnectionError::UnexpectedFrame(Opcode::Stats),
        ),
        (
            |_| lying(FrameHeader::new(Opcode::Stats, CorrelationId(1), 0), |header| header.opcode = 99),
            ConnectionError::UnknownOpcode(99),
        ),
        (
            |_| {
                let header = FrameHeader::answer(Opcode::Stats, Status::Ok, CorrelationId(1), 0);
                lying(header, |header| header.status = 999_u16.into())
            },
            ConnectionError::UnknownStatus(999),
        ),
        (
            |_| {
                let header = FrameHeader::new(Opcode::Heartbeat, CorrelationId(0), 0);
                lying(header, |header| header.flags = FLAG_ANSWER.into())
            },
            ConnectionError::UnexpectedFrame(Opcode::Heartbeat),
        ),
    ];
    for (number, (lie, expected)) in lies.into_iter().enumerate() {
        let mut connection = connected(Granted::default());
        let bytes = lie(&mut connection);
        assert_eq!(connection.on_bytes(0, &bytes), Err(expected), "lie {number}");
        assert!(expected.is_lie());
    }
    let mut connection = connected(Granted::default());
    let bytes = envelope_of(&mut connection);
    assert_eq!(connection.on_bytes(0, &bytes), Err(ConnectionError::Envelope(Opcode::DescribeTopic)));
}

#[test]
fn headers_that_cannot_be_followed_end_the_connection() {
    let header = || FrameHeader::new(Opcode::Heartbeat, CorrelationId(0), 0);
    let lies = [
        lying(header(), |header| header.version = 9),
        lying(header(), |header| header.length = 41_u32.into()),
        lying(header(), |header| header.length = (2_u32 << 20).into()),
        lying(header(), |header| header.reserved = 1_u16.into()),
    ];
    for bytes in lies {
        let mut connection = connected(Granted::default());
        assert!(matches!(connection.on_bytes(0, &bytes), Err(ConnectionError::Frame(_))));
    }
}

#[test]
fn grants_that_cannot_be_worked_with_are_lies() {
    let good = Granted::default();
    let lies = [
        Granted { frame_bytes_max: 32, ..good },
        Granted { frame_bytes_max: 32 << 20, ..good },
        Granted { window_bytes: 0, ..good },
        Granted { requests_in_flight_max: 0, ..good },
        Granted { heartbeat_ms: 0, ..good },
    ];
    for granted in lies {
        let mut connection = Connection::new(0, &ConnectionOptions::default());
        let hello = take_sent(&mut connection).remove(0);
        let answer = fake::hello_answer(hello.correlation, granted);
        assert!(matches!(connection.on_bytes(0, &answer), Err(ConnectionError::Grant(_))), "{granted:?}");
    }
}

#[test]
fn what_came_before_a_lie_is_given_out_and_nothing_after_it() {
    let mut connection = connected(Granted::default());
    let (first, second) = (produce(&mut connection), produce(&mut connection));
    let lie = fake::produced(CorrelationId(1 << 20), 0);
    let bytes = [fake::produced(first, 1), lie, fake::produced(second, 2)].concat();
    let error = Err(ConnectionError::UnknownCorrelation(1 << 20));
    assert_eq!(connection.on_bytes(0, &bytes), error);
    assert_eq!(drain(&mut connection).len(), 1);
    assert_eq!(connection.on_tick(1), error);
    assert_eq!(connection.on_bytes(1, &[]), error);
    assert_eq!(connection.next_event(), None);
}

#[test]
fn resumes_stands_in_its_frame_only() {
    let mut connection = connected(Granted::default());
    let batch = fake::batch_of(&[b"v"]);
    connection.produce(partition(0), &batch, true).unwrap();
    connection.produce(partition(0), &batch, false).unwrap();
    let sent: Vec<Sent> = take_sent(&mut connection);
    assert_eq!((sent[0].resumes, sent[1].resumes), (true, false));
    assert_eq!((sent[0].subject, &sent[0].payload), (partition(0).0, &batch));
}
