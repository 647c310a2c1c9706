//! Sparse batches: what is kept of a batch is as it was, with its old offsets, however often it is thinned out.
//!
//! Offsets that do not grow, or that the batch does not cover, are refused; so is a sparse batch from a producer.

#![allow(clippy::unwrap_used, reason = "a failed test is the right answer")]

use protocol::batch::{
    Batch, BatchBuilder, BatchError, BatchHeader, BrokerFields, BuildError, Compression, Compressor,
    Encoding, Inflater, Record, SparseBuilder, producer_sum,
};
use protocol::ids::{Handle, Offset, TopicKey};
use protocol::limits::BATCH_BYTES_MAX;

const CREATED_MS: u64 = 1_700_000_000_000;
/// Bytes before the first entry of an index: root, vtable, table, vector length.
const INDEX_FRONT_BYTES: usize = 24;
const ENTRY_BYTES: usize = 24;

fn partition() -> Handle {
    Handle::new(TopicKey { slot: 3, generation: 7 }, 2)
}

/// Ten records at the offsets 40 to 49, placed.
fn source(compression: Compression) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for n in 0..10_u64 {
        let value = format!("value {n}").repeat(20);
        let headers: [(&[u8], &[u8]); 1] = [(b"h", value.as_bytes())];
        let record = Record {
            key: &[b'k', n as u8 % 3],
            headers: if n % 2 == 0 { &headers } else { &[] },
            value: value.as_bytes(),
            tag: b"tag",
            created_ms: CREATED_MS + n,
        };
        builder.push(&record).unwrap();
    }
    let mut bytes = Vec::new();
    builder.finish_compressed_into(&mut Compressor::new(compression), &mut bytes);
    let fields = BrokerFields { base_offset: Offset(40), appended_ms: CREATED_MS + 900, log_epoch: 5 };
    BatchHeader::place(&mut bytes, partition(), fields);
    bytes
}

/// What is left of a batch when only these offsets are kept.
fn kept(source: &[u8], offsets: &[u64]) -> Vec<u8> {
    let (mut builder, mut inflater) = (SparseBuilder::new(BATCH_BYTES_MAX), Inflater::new());
    let batch = Batch::check(source).unwrap();
    let header = batch.header();
    builder.begin(header.base_offset(), header.created_ms.get());
    for record in batch.inflate(&mut inflater).unwrap().filter(|record| offsets.contains(&record.offset.0)) {
        builder.push(&record).unwrap();
    }
    let mut bytes = Vec::new();
    assert_eq!(builder.finish_into(header.next_offset(), &mut bytes), bytes.len());
    assert!(builder.is_empty());
    BatchHeader::place(&mut bytes, partition(), header.broker_fields());
    bytes
}

fn offsets_of(batch: &Batch<'_>, from: u64) -> Vec<u64> {
    batch.records().unwrap().starting_at(Offset(from)).map(|record| record.offset.0).collect()
}

fn resealed(bytes: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    change(&mut bytes);
    let sum = producer_sum(&bytes);
    bytes[76..80].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The batch with the offset delta of record `n` changed.
fn with_delta(bytes: &[u8], n: usize, delta: u32) -> Vec<u8> {
    let place = 128 + INDEX_FRONT_BYTES + n * ENTRY_BYTES + 4;
    resealed(bytes, |bytes| bytes[place..place + 4].copy_from_slice(&delta.to_le_bytes()))
}

#[test]
fn kept_records_are_as_they_were() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let source = source(compression);
        let bytes = kept(&source, &[41, 44, 48]);
        let batch = Batch::check(&bytes).unwrap();
        assert_eq!((batch.encoding(), batch.compression()), (Encoding::Sparse, Compression::None));
        let (header, before) = (batch.header(), BatchHeader::peek(&source).unwrap());
        assert!(header.is_placed_in(partition()));
        assert_eq!(header.broker_fields(), before.broker_fields());
        assert_eq!(header.created_ms, before.created_ms);
        assert_eq!((header.base_offset(), header.next_offset()), (Offset(40), Offset(50)));
        let mut inflater = Inflater::new();
        let originals = Batch::check(&source).unwrap().inflate(&mut inflater).unwrap();
        let originals = originals.filter(|record| [41, 44, 48].contains(&record.offset.0));
        assert!(batch.records().unwrap().eq(originals));
    }
}

#[test]
fn reading_starts_at_the_first_kept_record_from_an_offset_on() {
    let bytes = kept(&source(Compression::None), &[41, 44, 48]);
    let batch = Batch::check(&bytes).unwrap();
    for (from, expected) in [
        (0, &[41, 44, 48][..]),
        (41, &[41, 44, 48]),
        (42, &[44, 48]),
        (44, &[44, 48]),
        (48, &[48]),
        (49, &[]),
    ] {
        assert_eq!(offsets_of(&batch, from), expected, "from {from}");
    }
    assert_eq!(batch.records().unwrap().record(1).unwrap().offset, Offset(44));
}

#[test]
fn what_is_left_can_be_thinned_again() {
    let all = kept(&source(Compression::None), &(40..50).collect::<Vec<_>>());
    let again = kept(&kept(&all, &[40, 43, 49]), &[43, 49]);
    let batch = Batch::check(&again).unwrap();
    assert_eq!(offsets_of(&batch, 0), [43, 49]);
    assert_eq!(batch.header().base_offset(), Offset(40));
    assert_eq!(again, kept(&source(Compression::None), &[43, 49]), "the way does not matter");
}

#[test]
fn producer_may_not_send_it() {
    let bytes = kept(&source(Compression::None), &[41]);
    assert!(matches!(Batch::check_produced(&bytes), Err(BatchError::Unsupported(_))));
    for compression in [Compression::None, Compression::Lz4] {
        assert!(Batch::check_produced(&source(compression)).is_ok());
    }
}

#[test]
fn offsets_that_do_not_grow_or_are_not_covered_are_refused() {
    let bytes = kept(&source(Compression::None), &[41, 44, 48]);
    assert!(with_delta(&bytes, 1, 4) == bytes, "the test changes the right bytes");
    for (n, delta) in [(1, 1), (1, 0), (1, 8), (2, 4), (0, 4), (2, 10), (2, u32::MAX)] {
        assert_eq!(
            Batch::check(&with_delta(&bytes, n, delta)).unwrap_err(),
            BatchError::Index,
            "{n}: {delta}"
        );
    }
    for (n, delta) in [(0, 0), (1, 2), (1, 7), (2, 9)] {
        assert!(Batch::check(&with_delta(&bytes, n, delta)).is_ok(), "{n}: {delta}");
    }
    let covering = |last: u32| resealed(&bytes, |bytes| bytes[72..76].copy_from_slice(&last.to_le_bytes()));
    assert_eq!(Batch::check(&covering(7)).unwrap_err(), BatchError::Index);
    assert!(Batch::check(&covering(8)).is_ok());
}

#[test]
fn plain_batch_has_no_gaps_and_sparse_no_compression() {
    let sparse = kept(&source(Compression::None), &[41, 44]);
    let plain = resealed(&sparse, |bytes| bytes[5] = Encoding::Plain as u8);
    assert_eq!(Batch::check(&plain).unwrap_err(), BatchError::Index);
    let compressed = resealed(&source(Compression::Lz4), |bytes| bytes[5] = Encoding::Sparse as u8);
    assert!(matches!(Batch::check(&compressed), Err(BatchError::Unsupported(_))));
    let foreign = resealed(&sparse, |bytes| bytes[5] = Encoding::Foreign as u8);
    assert!(matches!(Batch::check(&foreign), Err(BatchError::Unsupported(_))));
}

#[test]
fn full_batch_is_finished_and_the_next_one_begins_where_it_ended() {
    let source = source(Compression::Zstd);
    let (batch, mut inflater) = (Batch::check(&source).unwrap(), Inflater::new());
    assert!(batch.inflated_bytes() > 1_024);
    let mut builder = SparseBuilder::new(1_024);
    let (mut parts, mut base_offset) = (Vec::new(), Offset(40));
    let mut finish = |builder: &mut SparseBuilder, base_offset: Offset, next_offset: Offset| {
        let mut bytes = Vec::new();
        assert!(builder.finish_into(next_offset, &mut bytes) <= 1_024);
        let fields = BrokerFields { base_offset, ..batch.header().broker_fields() };
        BatchHeader::place(&mut bytes, partition(), fields);
        parts.push(bytes);
    };
    builder.begin(base_offset, CREATED_MS);
    for record in batch.inflate(&mut inflater).unwrap() {
        if builder.push(&record) == Err(BuildError::Full) {
            finish(&mut builder, base_offset, record.offset);
            base_offset = record.offset;
            builder.begin(base_offset, CREATED_MS);
            builder.push(&record).unwrap();
        }
    }
    finish(&mut builder, base_offset, Offset(50));
    assert!(parts.len() > 1);
    let (mut next, mut seen) = (Offset(40), Vec::new());
    for bytes in &parts {
        let batch = Batch::check(bytes).unwrap();
        assert_eq!(batch.header().base_offset(), next);
        next = batch.header().next_offset();
        seen.extend(offsets_of(&batch, 0));
    }
    assert_eq!((next, seen), (Offset(50), (40..50).collect()));
}

#[test]
fn golden_sparse_batch() {
    let bytes = kept(&source(Compression::None), &[41, 43]);
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    let text: String = bytes.chunks(16).map(line).collect();
    assert_eq!(text, include_str!("golden_batch_sparse.hex"));
}
