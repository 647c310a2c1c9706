//! The blocking driver over real sockets, against a scripted peer on a thread.
//!
//! The peer's calls block, so nothing sleeps: each step waits for the other side's bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use protocol::batch::{Batch, BatchHeader, BrokerFields, Compression, Inflater, Record};
use protocol::frame::{FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Offset};
use protocol::status::Status;

use super::*;
use crate::connection::{CreditAmount, Start};
use crate::fake_broker::{self as fake, Granted, Sent, partition};
use crate::producer::{Outcome, Placement};

const PATIENCE: Duration = Duration::from_secs(20);

/// The broker's end of one connection.
struct Peer {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Peer {
    /// Accepts a connection and answers its `Hello`.
    fn greet(listener: &TcpListener, granted: Granted) -> Self {
        let (stream, _) = listener.accept().unwrap();
        let mut peer = Self { stream, received: Vec::new() };
        let hello = peer.next().unwrap();
        peer.send(&fake::hello_answer(hello.correlation, granted));
        peer
    }

    /// The next frame that is no heartbeat; `None` when the client closed.
    fn next(&mut self) -> Option<Sent> {
        loop {
            if let Some((sent, length)) = fake::cut(&self.received) {
                self.received.drain(..length);
                if sent.opcode != Opcode::Heartbeat {
                    return Some(sent);
                }
                continue;
            }
            let mut chunk = vec![0; 64 << 10];
            let byte_count = self.stream.read(&mut chunk).unwrap_or(0);
            if byte_count == 0 {
                return None;
            }
            self.received.extend_from_slice(&chunk[..byte_count]);
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn describe(&mut self) {
        let asked = self.next().unwrap();
        self.send(&fake::described(asked.opcode, asked.correlation, 1));
    }

    /// Acknowledges every produce frame until the client closes; returns the number of records.
    fn acknowledge_all(&mut self) -> u64 {
        let mut offset = 0;
        while let Some(sent) = self.next() {
            assert_eq!(sent.opcode, Opcode::Produce);
            let record_count = Batch::check(&sent.payload).unwrap().record_count() as u64;
            self.send(&fake::produced(sent.correlation, offset));
            offset += record_count;
        }
        offset
    }
}

fn serve<T: Send + 'static>(
    script: impl FnOnce(TcpListener) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (address, thread::spawn(move || script(listener)))
}

fn connect(address: SocketAddr) -> Client {
    Client::connect(address, Options::default()).unwrap()
}

fn record(value: &[u8]) -> Record<'_> {
    Record { value, ..Record::default() }
}

/// Everything known so far: counts of acknowledged and unknown records.
fn count(producer: &mut BlockingProducer) -> (u64, u64) {
    let mut counts = (0, 0);
    while let Some(result) = producer.next_result() {
        match result.outcome {
            Outcome::Acked { .. } => counts.0 += u64::from(result.record_count),
            Outcome::Unknown => counts.1 += u64::from(result.record_count),
            other => panic!("{other:?}"),
        }
    }
    counts
}

#[test]
fn questions_get_their_answers() {
    let (address, peer) = serve(|listener| {
        let mut peer = Peer::greet(&listener, Granted::default());
        peer.describe();
        let list = peer.next().unwrap();
        peer.send(&fake::topics(list.correlation, &["a", "b"], true));
        let list = peer.next().unwrap();
        peer.send(&fake::topics(list.correlation, &["c"], false));
        let asked = peer.next().unwrap();
        peer.send(&fake::refused(asked.opcode, Status::UnknownTopic, asked.correlation, "no such topic"));
        let stats = peer.next().unwrap();
        peer.send(&fake::stats(stats.correlation, 12));
        let fetch = peer.next().unwrap();
        let batch = fake::placed_batch(partition(0), 4, &[b"x", b"y"]);
        peer.send(&fake::fetched(&fetch, 6, &batch));
        peer.next()
    });
    let mut client = connect(address);
    assert_eq!(client.grants().server_name, "fake");
    assert_eq!(client.create_topic("orders", 1).unwrap().name, "orders");
    let names: Vec<String> = client.list_topics().unwrap().into_iter().map(|topic| topic.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let error = client.describe_topic("none").unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: Status::UnknownTopic, .. }));
    assert_eq!(error.to_string(), "refused with UnknownTopic: no such topic");
    assert!(!error.is_retryable());
    let stats = client.stats().unwrap();
    assert_eq!((stats.durable_lsn, stats.removed_files), (12, 13));
    let range = FetchRange { from: Offset(5), to: Offset(6), bytes_max: 1 << 16 };
    let fetched = client.fetch(partition(0), range).unwrap();
    let (mut batches, mut inflater) = (fetched.batches().starting_at(range.from), Inflater::new());
    let records = batches.next_records(&mut inflater).unwrap().unwrap();
    assert_eq!(records.map(|record| record.value).collect::<Vec<_>>(), [b"y"]);
    drop(client);
    assert_eq!(peer.join().unwrap(), None);
}

#[test]
fn change_whose_answer_is_lost_is_unknown_and_the_next_call_connects_again() {
    let (address, peer) = serve(|listener| {
        let mut first = Peer::greet(&listener, Granted::default());
        first.next().unwrap();
        drop(first);
        let mut second = Peer::greet(&listener, Granted::default());
        second.next().unwrap();
        drop(second);
        Peer::greet(&listener, Granted::default()).describe();
    });
    let mut client = connect(address);
    assert!(matches!(client.create_topic("orders", 1), Err(ClientError::Unknown)));
    let lost = client.describe_topic("orders").unwrap_err();
    assert!(matches!(lost, ClientError::Io(_)), "a question that was lost may be asked again");
    assert!(lost.is_retryable());
    client.describe_topic("orders").unwrap();
    peer.join().unwrap();
}

#[test]
fn every_record_is_acknowledged_in_order() {
    let (address, peer) = serve(|listener| {
        let mut asked = Peer::greet(&listener, Granted::default());
        asked.describe();
        Peer::greet(&listener, Granted::default()).acknowledge_all()
    });
    let options = ProducerOptions { buffer_bytes_max: 256 << 10, ..ProducerOptions::default() };
    let mut producer = connect(address).producer("orders", options).unwrap();
    for number in 0..20_000_u32 {
        producer.send(Placement::Sticky, &record(&number.to_le_bytes())).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let mut next = 0;
    while let Some(result) = producer.next_result() {
        assert_eq!(result.first.number(), next);
        assert_eq!(result.outcome, Outcome::Acked { first_offset: Offset(next) });
        next += u64::from(result.record_count);
    }
    assert_eq!(next, 20_000);
    drop(producer);
    assert_eq!(peer.join().unwrap(), 20_000);
}

#[test]
fn records_of_a_lost_connection_are_unknown_and_the_next_ones_go_out_on_another() {
    let (address, peer) = serve(|listener| {
        let mut asked = Peer::greet(&listener, Granted::default());
        asked.describe();
        let mut first = Peer::greet(&listener, Granted::default());
        first.next().unwrap();
        drop(first);
        Peer::greet(&listener, Granted::default()).acknowledge_all()
    });
    let mut producer = connect(address).producer("orders", ProducerOptions::default()).unwrap();
    producer.send(Placement::Sticky, &record(b"lost")).unwrap();
    producer.flush(PATIENCE).unwrap();
    assert_eq!(count(&mut producer), (0, 1));
    for _ in 0..100 {
        producer.send(Placement::Sticky, &record(b"kept")).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    assert_eq!(count(&mut producer), (100, 0));
    drop(producer);
    assert_eq!(peer.join().unwrap(), 100);
}

#[test]
fn both_sides_may_write_before_they_read() {
    let granted = Granted { window_bytes: 16 << 20, ..Granted::default() };
    let (address, peer) = serve(move |listener| {
        let mut asked = Peer::greet(&listener, granted);
        asked.describe();
        let mut peer = Peer::greet(&listener, granted);
        // More than the sockets' buffers hold: this ends only if the client reads while it writes.
        let heartbeat = fake::bare(FrameHeader::new(Opcode::Heartbeat, CorrelationId(0), 0));
        peer.send(&heartbeat.repeat((12 << 20) / heartbeat.len()));
        peer.acknowledge_all()
    });
    let options = ProducerOptions { frames_in_flight_max: 1_000, ..ProducerOptions::default() };
    let mut producer = connect(address).producer("orders", options).unwrap();
    let value = vec![b'x'; 10_000];
    for _ in 0..1_200 {
        producer.send(Placement::Sticky, &record(&value)).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    assert_eq!(count(&mut producer), (1_200, 0));
    drop(producer);
    assert_eq!(peer.join().unwrap(), 1_200);
}

#[test]
fn subscription_gives_out_batches_and_grants_credit_again() {
    let (address, peer) = serve(|listener| {
        let _asked = Peer::greet(&listener, Granted::default());
        let mut peer = Peer::greet(&listener, Granted::default());
        let asked = peer.next().unwrap();
        peer.send(&fake::subscribed(asked.correlation, asked.subject, &[(partition(0), 1)]));
        for first in [0, 2] {
            let batch = fake::placed_batch(partition(0), first, &[b"a", b"b"]);
            peer.send(&fake::delivery(asked.subject, partition(0), &batch));
        }
        let values: [&[u8]; 2] = [&[b'z'; 300], b"z"];
        let mut compressed = fake::compressed_batch_of(Compression::Zstd, &values);
        let fields = BrokerFields { base_offset: Offset(4), appended_ms: 5, log_epoch: 1 };
        BatchHeader::place(&mut compressed, partition(0), fields);
        peer.send(&fake::delivery(asked.subject, partition(0), &compressed));
        let credit = peer.next().unwrap();
        assert_eq!((credit.opcode, credit.payload[0]), (Opcode::Credit, 4));
        let mut damaged = fake::placed_batch(partition(0), 6, &[b"c"]);
        damaged[130] ^= 1;
        peer.send(&fake::delivery(asked.subject, partition(0), &damaged));
        peer.send(&fake::go_away(Status::ShuttingDown));
    });
    let options = SubscribeOptions {
        from: Start::Offset(Offset(1)),
        credit: CreditAmount { records: 8, bytes: 1 << 20 },
        ..SubscribeOptions::default()
    };
    let mut subscription = connect(address).subscribe("orders", options).unwrap();
    let first = subscription.next_batch(PATIENCE).unwrap().unwrap();
    let offsets: Vec<u64> = first.records().map(|record| record.offset.0).collect();
    assert_eq!(offsets, [1], "the batch begins before the start");
    let second = subscription.next_batch(PATIENCE).unwrap().unwrap();
    assert_eq!((second.records().count(), second.next_offset()), (2, Offset(4)));
    let third = subscription.next_batch(PATIENCE).unwrap().unwrap();
    assert_eq!(third.batch().compression(), Compression::Zstd);
    let lengths: Vec<usize> = third.records().map(|record| record.value.len()).collect();
    assert_eq!(lengths, [300, 1], "compressed batches are inflated on the way");
    assert!(matches!(subscription.next_batch(PATIENCE), Err(ClientError::Batch(_))));
    let goodbye = subscription.next_batch(PATIENCE).unwrap_err();
    assert!(matches!(goodbye, ClientError::GoAway { status: Status::ShuttingDown, .. }));
    peer.join().unwrap();
}

#[test]
fn damaged_range_ends_a_subscription_and_says_where_to_go_on() {
    let (address, peer) = serve(|listener| {
        let _asked = Peer::greet(&listener, Granted::default());
        for (status, named) in [(Status::Corrupt, 0), (Status::OffsetOutOfRange, partition(0).0)] {
            let mut peer = Peer::greet(&listener, Granted::default());
            let asked = peer.next().unwrap();
            peer.send(&fake::subscribed(asked.correlation, asked.subject, &[(partition(0), 1)]));
            let batch = fake::placed_batch(partition(0), 1, &[b"a"]);
            peer.send(&fake::delivery(asked.subject, partition(0), &batch));
            peer.send(&fake::subscription_ended(status, named, (2, 9)));
        }
    });
    let client = connect(address);
    let end_of = || {
        let mut subscription = client.subscribe("orders", SubscribeOptions::default()).unwrap();
        assert!(subscription.next_batch(PATIENCE).unwrap().is_some(), "what came before is given out");
        subscription.next_batch(PATIENCE).unwrap_err()
    };
    let (rotten, removed) = (end_of(), end_of());
    let ClientError::Corrupt(damaged) = rotten else { panic!("{rotten:?}") };
    assert_eq!((damaged.partition, damaged.first, damaged.next), (Some(partition(0)), Offset(2), Offset(9)));
    assert!(!rotten.is_retryable());
    let text =
        "offsets 2 to 8 of partition 0 cannot be read: their stored bytes are damaged; 9 can be read again";
    assert_eq!(rotten.to_string(), text);
    let ClientError::OffsetOutOfRange(valid) = removed else { panic!("{removed:?}") };
    assert_eq!((valid.first, valid.last), (Offset(2), Offset(9)));
    peer.join().unwrap();
}

#[test]
fn nobody_there_is_said_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Client::connect(address, Options::default()).unwrap_err();
    assert!(matches!(&error, ClientError::Connect { .. }));
    assert!(error.to_string().contains(&address.to_string()));
}
