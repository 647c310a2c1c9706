//! The bytes of frames and batches: golden, round trip, and hostile.
//!
//! The mutation test prints its seed; `SEED=<number>` runs it again.

#![allow(clippy::unwrap_used, reason = "a failed test is the right answer")]

use protocol::batch::{
    Batch, BatchBuilder, BatchError, BatchHeader, BrokerFields, Compression, Compressor, Inflater, Record,
    SparseBuilder,
};
use protocol::frame::{Frame, FrameError, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle, Offset, TopicKey};
use protocol::status::Status;
use protocol::{envelope, limits, wire};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zerocopy::IntoBytes;

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(16).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n").collect()
}

fn partition() -> Handle {
    Handle::new(TopicKey { slot: 3, generation: 7 }, 2)
}

fn sample_batch() -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    let headers: [(&[u8], &[u8]); 1] = [(b"h", b"v1")];
    let first = Record {
        key: b"key",
        headers: &headers,
        value: b"value-one",
        tag: b"tag",
        created_ms: 1_700_000_000_000,
    };
    builder.push(&first).unwrap();
    builder.push(&Record { value: b"two", created_ms: 1_700_000_000_005, ..Record::default() }).unwrap();
    let mut bytes = Vec::new();
    assert_eq!(builder.finish_into(&mut bytes), bytes.len());
    bytes
}

fn compressed_batch(compression: Compression) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for value in [&b"value-one, value-two, value-one, value-two, value-one, value-two"[..], b"", &[7; 300]] {
        builder.push(&Record { key: b"key", value, ..Record::default() }).unwrap();
    }
    let mut bytes = Vec::new();
    builder.finish_compressed_into(&mut Compressor::new(compression), &mut bytes);
    bytes
}

fn placed_batch() -> Vec<u8> {
    let mut bytes = sample_batch();
    let fields = BrokerFields { base_offset: Offset(41), appended_ms: 1_700_000_000_900, log_epoch: 5 };
    BatchHeader::place(&mut bytes, partition(), fields);
    bytes
}

#[test]
fn golden_frame_header() {
    let header = FrameHeader::answer(Opcode::Produce, Status::Busy, CorrelationId(0x0102_0304), 77)
        .with_lengths(8, 16);
    assert_eq!(
        hex(header.as_bytes()),
        "38000000012001000100000008000000\n04030201000000004d00000000000000\n"
    );
}

#[test]
fn golden_batch() {
    assert_eq!(hex(&placed_batch()), include_str!("golden_batch.hex"));
}

#[test]
fn a_batch_gives_back_its_records() {
    let bytes = placed_batch();
    let batch = Batch::check(&bytes).unwrap();
    let records: Vec<_> = batch.records().unwrap().collect();
    assert_eq!(records.len(), 2);
    assert_eq!((records[0].key, records[0].value), (&b"key"[..], &b"value-one"[..]));
    assert_eq!(records[0].headers.collect::<Vec<_>>(), [(&b"h"[..], &b"v1"[..])]);
    assert_eq!((records[0].offset, records[1].offset), (Offset(41), Offset(42)));
    assert_eq!(records[1].created_ms, 1_700_000_000_005);
    assert_eq!(records[0].tag_hash, protocol::key_hash::tag_hash(b"tag"));
    assert_eq!(batch.header().next_offset(), Offset(43));
}

#[test]
fn empty_records_are_records() {
    let mut builder = BatchBuilder::new();
    for _ in 0..3 {
        builder.push(&Record::default()).unwrap();
    }
    let mut bytes = Vec::new();
    builder.finish_into(&mut bytes);
    let records = Batch::check(&bytes).unwrap().records().unwrap();
    let values: Vec<_> = records.map(|record| record.value.len()).collect();
    assert_eq!(values, [0, 0, 0]);
}

#[test]
fn a_placed_batch_belongs_to_one_partition_and_one_offset() {
    let mut bytes = placed_batch();
    let header = BatchHeader::peek(&bytes).unwrap();
    assert!(header.is_placed_in(partition()));
    assert!(!header.is_placed_in(Handle(partition().0 + 1)));
    for position in 76..124 {
        bytes[position] ^= 0x10;
        assert!(!BatchHeader::peek(&bytes).unwrap().is_placed_in(partition()), "byte {position}");
        bytes[position] ^= 0x10;
    }
    assert!(Batch::check(&bytes).is_ok(), "placing leaves the producer's sum intact");
}

#[test]
fn every_flipped_producer_byte_is_found() {
    let mut bytes = sample_batch();
    for position in (0..80).chain(128..bytes.len()) {
        bytes[position] ^= 1;
        assert!(Batch::check(&bytes).is_err(), "byte {position}");
        bytes[position] ^= 1;
    }
}

#[test]
fn what_is_drawn_and_not_built_is_refused() {
    let reseal = |position: usize| {
        let mut bytes = sample_batch();
        bytes[position] = 3;
        let sum = protocol::batch::producer_sum(&bytes);
        bytes[76..80].copy_from_slice(&sum.to_le_bytes());
        Batch::check(&bytes).unwrap_err()
    };
    for position in [5, 6, 7, 28, 30, 32, 40, 56, 64] {
        assert!(matches!(reseal(position), BatchError::Unsupported(_)), "byte {position}");
    }
}

#[test]
fn frames_are_cut_only_when_whole_and_lies_are_named() {
    let whole = FrameHeader::new(Opcode::Heartbeat, CorrelationId(1), 0).with_lengths(0, 8);
    let mut bytes = whole.as_bytes().to_vec();
    bytes.extend_from_slice(&[7; 8]);
    for cut in 0..bytes.len() {
        assert!(Frame::cut(&bytes[..cut], 1 << 20).unwrap().is_none());
    }
    assert_eq!(Frame::cut(&bytes, 1 << 20).unwrap().unwrap().payload, [7; 8]);
    assert_eq!(Frame::cut(&bytes, 39).unwrap_err(), FrameError::TooLarge(40));
    let with = |position: usize, value: u8| {
        let mut lying = bytes.clone();
        lying[position] = value;
        Frame::cut(&lying, 1 << 20).unwrap_err()
    };
    assert_eq!(with(4, 9), FrameError::Version(9));
    assert_eq!(with(0, 16), FrameError::Length(16));
    assert_eq!(with(0, 41), FrameError::Length(41));
    assert_eq!(with(12, 16), FrameError::EnvelopeLength(16));
    assert_eq!(with(6, 0x80), FrameError::Reserved);
    assert_eq!(with(10, 1), FrameError::Reserved);
}

/// Reads everything that a hostile peer can make us read; only panics and wild reads are wrong here.
fn read_all(inflater: &mut Inflater, bytes: &[u8]) {
    let _ = std::hint::black_box(Frame::cut(bytes, 16 << 20));
    let _ = envelope::read::<wire::HelloRequest<'_>>(bytes).map(|hello| hello.client_name().map(str::len));
    let _ = envelope::read::<wire::ListTopicsResponse<'_>>(bytes).map(|list| {
        list.topics().iter().filter_map(|topic| topic.settings()).map(|settings| settings.segment_ms()).max()
    });
    let _ = envelope::read::<wire::SubscribeRequest<'_>>(bytes).map(|request| request.topic().len());
    let _ = envelope::read::<wire::TopicDescription<'_>>(bytes).map(|topic| topic.partitions().len());
    if let Ok(records) = Batch::check(bytes).and_then(|batch| batch.inflate(inflater)) {
        for record in records {
            std::hint::black_box((record.key.len(), record.headers.count(), record.value.len()));
        }
    }
}

fn summary<'a>(
    builder: &mut flatbuffers::FlatBufferBuilder<'a>,
    name: &str,
) -> flatbuffers::WIPOffset<wire::TopicSummary<'a>> {
    let name = builder.create_string(name);
    let settings = wire::TopicSettingsArgs {
        retention_ms: 1,
        retention_bytes: 2,
        segment_bytes: 3,
        segment_ms: 4,
        compact: true,
    };
    let settings = Some(wire::TopicSettings::create(builder, &settings));
    let ack_class = wire::AckClass::Memory;
    let args = wire::TopicSummaryArgs { name: Some(name), partition_count: 4, ack_class, settings };
    wire::TopicSummary::create(builder, &args)
}

#[test]
fn the_longest_list_of_topics_is_an_envelope() {
    let mut builder = flatbuffers::FlatBufferBuilder::new();
    let name = "n".repeat(limits::TOPIC_NAME_BYTES_MAX);
    let topics: Vec<_> = (0..limits::TOPICS_PER_LIST_MAX).map(|_| summary(&mut builder, &name)).collect();
    let topics = builder.create_vector(&topics);
    let args = wire::ListTopicsResponseArgs { topics: Some(topics), more: true };
    let root = wire::ListTopicsResponse::create(&mut builder, &args);
    let mut bytes = Vec::new();
    let length = envelope::finish_into(&mut builder, root, &mut bytes);
    assert!(length <= limits::ENVELOPE_BYTES_MAX);
    let list = envelope::read::<wire::ListTopicsResponse<'_>>(&bytes).unwrap();
    let settings = list.topics().get(limits::TOPICS_PER_LIST_MAX - 1).settings().unwrap();
    assert_eq!((settings.retention_ms(), settings.segment_ms(), settings.compact()), (1, 4, true));
}

fn envelope_sample() -> Vec<u8> {
    let mut builder = flatbuffers::FlatBufferBuilder::new();
    let summary = summary(&mut builder, "orders");
    let topics = builder.create_vector(&[summary]);
    let args = wire::ListTopicsResponseArgs { topics: Some(topics), more: true };
    let root = wire::ListTopicsResponse::create(&mut builder, &args);
    let mut bytes = Vec::new();
    envelope::finish_into(&mut builder, root, &mut bytes);
    bytes
}

#[test]
fn no_byte_string_makes_a_parser_panic() {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_122);
    println!("SEED={seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let samples = [placed_batch(), envelope_sample(), {
        let mut frame =
            FrameHeader::new(Opcode::Produce, CorrelationId(9), partition().0).as_bytes().to_vec();
        frame.extend_from_slice(&sample_batch());
        frame
    }];
    let compressed = [Compression::Lz4, Compression::Zstd].map(compressed_batch);
    let sparse = {
        let plain = placed_batch();
        let (mut builder, mut bytes) = (SparseBuilder::new(1 << 20), Vec::new());
        builder.begin(Offset(40), 1_700_000_000_000);
        for record in Batch::check(&plain).unwrap().records().unwrap() {
            builder.push(&record).unwrap();
        }
        builder.finish_into(Offset(90), &mut bytes);
        bytes
    };
    let samples = [&samples[..], &compressed, &[sparse]].concat();
    let mut inflater = Inflater::new();
    for _ in 0..40_000 {
        let mut bytes = samples[random.random_range(0..samples.len())].clone();
        for _ in 0..random.random_range(1..8) {
            let position = random.random_range(0..bytes.len());
            bytes[position] = match random.random_range(0..3) {
                0 => random.next_u32() as u8,
                1 => bytes[position] ^ 1 << random.random_range(0..8),
                _ => [0, 1, 0x7F, 0x80, 0xFF][random.random_range(0..5)],
            };
        }
        // Only whole ones get as far as to be inflated.
        if random.random_range(0..2) == 0 {
            bytes.truncate(random.random_range(0..=bytes.len()));
        }
        read_all(&mut inflater, &bytes);
        // The same again behind a matching checksum, so that the checks behind it are reached.
        if bytes.len() >= 128 {
            let sum = protocol::batch::producer_sum(&bytes);
            bytes[76..80].copy_from_slice(&sum.to_le_bytes());
            read_all(&mut inflater, &bytes);
        }
    }
    for _ in 0..20_000 {
        let mut bytes = vec![0; random.random_range(0..400)];
        random.fill_bytes(&mut bytes);
        read_all(&mut inflater, &bytes);
    }
}
