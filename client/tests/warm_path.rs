//! The warm paths allocate nothing: producing and its answers, and reading deliveries.
//!
//! After some rounds that let every buffer find its size, further rounds must not ask the allocator for anything.

#![allow(clippy::unwrap_used, reason = "a failed test is the right answer")]

#[path = "warm_path/counting_allocator.rs"]
mod counting_allocator;

use client::connection::{Connection, ConnectionOptions, CreditAmount, Event, Start, SubscribeRequest};
use client::delivered::DeliveredBatches;
use client::producer::{Placement, Producer, ProducerOptions};
use counting_allocator::CountingAllocator;
use flatbuffers::FlatBufferBuilder;
use protocol::batch::{BatchBuilder, BatchHeader, BrokerFields, Compression, Compressor, Inflater, Record};
use protocol::frame::{FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle, Offset, SubscriptionId, TopicKey};
use protocol::status::Status;
use protocol::{envelope, limits, wire};
use zerocopy::IntoBytes;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const ROUNDS_WARMING: usize = 200;
const ROUNDS_MEASURED: usize = 2_000;

fn partition(number: u16) -> Handle {
    Handle::new(TopicKey { slot: 1, generation: 1 }, number)
}

fn connected() -> Connection {
    let mut connection = Connection::new(0, &ConnectionOptions::default());
    let hello = FrameHeader::read(connection.transmit(), 1 << 20).unwrap().unwrap().correlation();
    connection.transmitted(connection.transmit().len());
    let mut builder = FlatBufferBuilder::new();
    let server_name = builder.create_string("test");
    let args = wire::HelloResponseArgs {
        server_name: Some(server_name),
        version: limits::PROTOCOL_VERSION,
        frame_bytes_max: 1 << 20,
        record_bytes_max: 1 << 19,
        window_bytes: 1 << 20,
        requests_in_flight_max: 1_000,
        heartbeat_ms: 1_000,
        ..wire::HelloResponseArgs::default()
    };
    let root = wire::HelloResponse::create(&mut builder, &args);
    let mut table = Vec::new();
    let length = envelope::finish_into(&mut builder, root, &mut table);
    let header = FrameHeader::answer(Opcode::Hello, Status::Ok, hello, 0).with_lengths(length, 0);
    connection.on_bytes(0, &[header.as_bytes(), &table[..]].concat()).unwrap();
    assert!(matches!(connection.next_event(), Some(Event::HelloDone(_))));
    connection
}

/// Acknowledges every frame that waits for the socket.
fn acknowledge(connection: &mut Connection, answers: &mut Vec<u8>) {
    answers.clear();
    let mut taken = 0;
    while let Some(header) = FrameHeader::read(&connection.transmit()[taken..], 1 << 20).unwrap() {
        let answer = FrameHeader::answer(Opcode::Produce, Status::Ok, header.correlation(), 5);
        answers.extend_from_slice(answer.as_bytes());
        taken += header.frame_bytes();
    }
    connection.transmitted(taken);
    connection.on_bytes(0, answers).unwrap();
}

fn allocations_of(mut round: impl FnMut()) -> u64 {
    for _ in 0..ROUNDS_WARMING {
        round();
    }
    let before = CountingAllocator::count();
    for _ in 0..ROUNDS_MEASURED {
        round();
    }
    CountingAllocator::count() - before
}

#[test]
fn producing_allocates_nothing() {
    produce_with(Compression::None);
}

#[test]
fn producing_compressed_batches_allocates_nothing() {
    produce_with(Compression::Lz4);
    produce_with(Compression::Zstd);
}

fn produce_with(compression: Compression) {
    let mut connection = connected();
    let partitions = [partition(0), partition(1), partition(2)];
    let options = ProducerOptions { batch_bytes_max: 8 << 10, compression, ..ProducerOptions::default() };
    let mut producer = Producer::new(&partitions, connection.grants().unwrap(), options);
    let value = [7; 100];
    let mut answers = Vec::new();
    let mut acknowledged = 0_u64;
    let allocations = allocations_of(|| {
        for key in 0..200_u16 {
            let key = key.to_le_bytes();
            let record = Record { key: &key, value: &value, ..Record::default() };
            producer.push(0, Placement::ByKey, &record).unwrap();
        }
        producer.poll(0, &mut connection);
        acknowledge(&mut connection, &mut answers);
        while let Some(event) = connection.next_event() {
            assert!(producer.on_event(0, &event));
        }
        while let Some(result) = producer.next_result() {
            acknowledged += u64::from(result.record_count);
        }
    });
    assert!(producer.is_idle());
    assert_eq!(acknowledged, 200 * (ROUNDS_WARMING + ROUNDS_MEASURED) as u64);
    assert_eq!(allocations, 0);
}

#[test]
fn reading_deliveries_allocates_nothing() {
    read_with(Compression::None);
}

#[test]
fn reading_compressed_deliveries_allocates_nothing() {
    read_with(Compression::Lz4);
    read_with(Compression::Zstd);
}

fn read_with(compression: Compression) {
    let mut connection = connected();
    let credit = CreditAmount { records: 1 << 40, bytes: 1 << 40 };
    let request = SubscribeRequest { topic: "t", partition: None, start: Start::Earliest, credit };
    connection.subscribe(SubscriptionId(1), &request).unwrap();

    let mut builder = BatchBuilder::new();
    for _ in 0..50 {
        builder.push(&Record { value: &[7; 100], ..Record::default() }).unwrap();
    }
    let mut batch = Vec::new();
    builder.finish_compressed_into(&mut Compressor::new(compression), &mut batch);
    let fields = BrokerFields { base_offset: Offset(9), appended_ms: 1, log_epoch: 1 };
    BatchHeader::place(&mut batch, partition(0), fields);
    let header = FrameHeader::new(Opcode::Deliver, CorrelationId(partition(0).0), 1);
    let delivery = [header.with_lengths(0, batch.len()).as_bytes(), &batch[..]].concat();

    let (mut read, mut inflater) = (0_usize, Inflater::new());
    let allocations = allocations_of(|| {
        connection.on_bytes(0, &delivery).unwrap();
        while let Some(event) = connection.next_event() {
            let Event::Delivered { partition, payload, .. } = event else { panic!("{event:?}") };
            let mut batches = DeliveredBatches::new(partition, payload);
            while let Some(records) = batches.next_records(&mut inflater) {
                read += records.unwrap().map(|record| record.value.len()).sum::<usize>();
            }
        }
    });
    assert_eq!(read, 100 * 50 * (ROUNDS_WARMING + ROUNDS_MEASURED));
    assert_eq!(allocations, 0);
}
