//! Compressed batches: they give back their records, are shorter, and nothing that a hostile one claims costs more
//! than its bound.

#![allow(clippy::unwrap_used, reason = "a failed test is the right answer")]

use protocol::batch::{
    BATCH_HEADER_BYTES, Batch, BatchBuilder, BatchError, BatchHeader, Compression, Compressor, Inflater,
    Record, producer_sum,
};
use protocol::ids::Offset;
use protocol::limits::{INFLATED_BATCH_BYTES_MAX, RECORD_BYTES_MAX};
use protocol::status::Status;

const METHODS: [Compression; 2] = [Compression::Lz4, Compression::Zstd];

fn batch_of(compression: Compression, values: &[&[u8]]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for value in values {
        builder
            .push(&Record { key: b"key", value, created_ms: 1_700_000_000_000, ..Record::default() })
            .unwrap();
    }
    let mut bytes = Vec::new();
    let length = builder.finish_compressed_into(&mut Compressor::new(compression), &mut bytes);
    assert_eq!(length, bytes.len());
    bytes
}

fn values_of(bytes: &[u8], inflater: &mut Inflater) -> Result<Vec<Vec<u8>>, BatchError> {
    let records = Batch::check(bytes)?.inflate(inflater)?;
    Ok(records.map(|record| record.value.to_vec()).collect())
}

/// Log lines that differ in a few places, as logs do.
fn lines(count: u32) -> Vec<Vec<u8>> {
    (0..count)
        .map(|n| {
            format!(
                "2026-11-22T10:00:{:02} GET /orders/{} 200 {} us",
                n % 60,
                n * 7919 % 10_007,
                n * 31 % 997
            )
        })
        .map(String::into_bytes)
        .collect()
}

/// Bytes that no method makes shorter.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// The same batch with its header changed, behind a matching checksum.
fn resealed(bytes: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    change(&mut bytes);
    let sum = producer_sum(&bytes);
    bytes[76..80].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn claiming(bytes: &[u8], uncompressed_length: u32) -> Vec<u8> {
    resealed(bytes, |bytes| bytes[20..24].copy_from_slice(&uncompressed_length.to_le_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(16).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n").collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn records_come_back_whatever_the_method() {
    let lines = lines(500);
    let values: Vec<&[u8]> = lines.iter().map(Vec::as_slice).chain([&b""[..], b"last"]).collect();
    let mut inflater = Inflater::new();
    for method in METHODS {
        let bytes = batch_of(method, &values);
        let batch = Batch::check(&bytes).unwrap();
        assert_eq!((batch.compression(), batch.record_count()), (method, values.len()));
        assert!(batch.records().is_none(), "they are not there before they are inflated");
        assert_eq!(batch.inflated_bytes(), batch_of(Compression::None, &values).len());
        let records = batch.inflate(&mut inflater).unwrap();
        assert_eq!(records.len(), values.len());
        assert!(records.clone().all(|record| record.key == b"key" && record.created_ms == 1_700_000_000_000));
        assert!(records.clone().map(|record| record.value).eq(values.iter().copied()));
        let from = records.starting_at(Offset(500));
        assert_eq!(from.map(|record| record.offset.0).collect::<Vec<_>>(), [500, 501]);
    }
}

#[test]
fn log_lines_become_less_than_a_third() {
    let lines = lines(1_000);
    let values: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
    for method in METHODS {
        let bytes = batch_of(method, &values);
        let header = BatchHeader::peek(&bytes).unwrap();
        let (stored, inflated) = (header.data_length.get(), header.uncompressed_length.get());
        println!("{method:?}: {inflated} bytes become {stored}");
        assert!(stored * 3 < inflated, "{method:?}: {inflated} bytes become {stored}");
    }
}

#[test]
fn what_does_not_become_shorter_is_stored_as_it_is() {
    for values in [&[&noise(5_000)[..]][..], &[b"x"], &[b""]] {
        for method in METHODS {
            let bytes = batch_of(method, values);
            assert_eq!(bytes, batch_of(Compression::None, values));
            let batch = Batch::check(&bytes).unwrap();
            assert_eq!(batch.compression(), Compression::None);
            assert_eq!(batch.records().unwrap().len(), 1);
        }
    }
}

#[test]
fn one_compressor_and_one_inflater_serve_any_batches() {
    for method in METHODS {
        let (mut compressor, mut inflater) = (Compressor::new(method), Inflater::new());
        let mut builder = BatchBuilder::new();
        // Short, long (beyond LZ4's small table), noisy, short: nothing of one is left in the next.
        for value in [vec![1; 100], vec![2; 200_000], noise(70_000), vec![3; 100]] {
            let mut bytes = Vec::new();
            builder.push(&Record { value: &value, ..Record::default() }).unwrap();
            builder.finish_compressed_into(&mut compressor, &mut bytes);
            assert!(builder.is_empty());
            assert_eq!(values_of(&bytes, &mut inflater).unwrap(), [value]);
        }
    }
}

#[test]
fn claimed_length_is_what_it_inflates_to_or_the_batch_is_refused() {
    let value = vec![b'a'; 100_000];
    let mut inflater = Inflater::new();
    for method in METHODS {
        let bytes = batch_of(method, &[&value]);
        let length = BatchHeader::peek(&bytes).unwrap().uncompressed_length.get();
        assert!(bytes.len() < 2_000);
        for claimed in [length - 1, length + 1, 3, 4_000, RECORD_BYTES_MAX as u32] {
            let lying = claiming(&bytes, claimed);
            assert!(Batch::check(&lying).is_ok(), "the broker does not inflate");
            let error = values_of(&lying, &mut inflater).unwrap_err();
            assert_eq!((error, error.status()), (BatchError::Inflation, Status::InvalidBatch), "{claimed}");
        }
        assert_eq!(values_of(&bytes, &mut inflater).unwrap(), [&value[..]], "and the truth still inflates");
    }
}

#[test]
fn claimed_length_over_the_bound_is_refused_before_anything_is_inflated() {
    let value = vec![b'a'; 100_000];
    for method in METHODS {
        let bytes = batch_of(method, &[&value, &value, &value]);
        let rest = BATCH_HEADER_BYTES + BatchHeader::peek(&bytes).unwrap().index_length.get() as usize;
        let most = (INFLATED_BATCH_BYTES_MAX - rest) as u32;
        assert_eq!(Batch::check(&claiming(&bytes, most)).unwrap_err(), BatchError::RecordTooLarge);
        for claimed in [most + 1, u32::MAX] {
            assert_eq!(Batch::check(&claiming(&bytes, claimed)).unwrap_err(), BatchError::Lengths);
        }
        assert_eq!(
            Batch::check(&claiming(&bytes, 100_000)).unwrap_err(),
            BatchError::Index,
            "ends too early"
        );
    }
}

#[test]
fn garbage_does_not_inflate() {
    let value = vec![b'a'; 10_000];
    let mut inflater = Inflater::new();
    for method in METHODS {
        let bytes = batch_of(method, &[&value]);
        let header = BatchHeader::peek(&bytes).unwrap();
        let start = BATCH_HEADER_BYTES + header.index_length.get() as usize;
        let data = start..start + header.data_length.get() as usize;
        let garbage = [vec![0; data.len()], vec![0xFF; data.len()], noise(data.len())];
        for garbage in garbage {
            let rotten = resealed(&bytes, |bytes| bytes[data.clone()].copy_from_slice(&garbage));
            assert_eq!(values_of(&rotten, &mut inflater).unwrap_err(), BatchError::Inflation);
        }
        let other = if method == Compression::Lz4 { Compression::Zstd } else { Compression::Lz4 };
        let mistaken = resealed(&bytes, |bytes| bytes[6] = other as u8);
        assert_eq!(values_of(&mistaken, &mut inflater).unwrap_err(), BatchError::Inflation);
    }
}

#[test]
fn uncompressed_batch_has_one_length_and_other_methods_are_unsupported() {
    let bytes = batch_of(Compression::None, &[b"value"]);
    assert_eq!(Batch::check(&claiming(&bytes, 9)).unwrap_err(), BatchError::Lengths);
    let unknown = resealed(&bytes, |bytes| bytes[6] = 3);
    assert!(matches!(Batch::check(&unknown), Err(BatchError::Unsupported(_))));
}

/// Other releases of a method may compress otherwise; what was stored once must be readable for ever.
#[test]
fn golden_batches_inflate() {
    let golden = [
        (Compression::Lz4, include_str!("golden_batch_lz4.hex")),
        (Compression::Zstd, include_str!("golden_batch_zstd.hex")),
    ];
    for (method, text) in golden {
        let bytes = unhex(text);
        assert_eq!(hex(&bytes), text);
        assert_eq!(Batch::check(&bytes).unwrap().compression(), method);
        let values = values_of(&bytes, &mut Inflater::new()).unwrap();
        assert_eq!(values, [vec![b'a'; 60], b"one".to_vec(), b"onetwo".repeat(20)]);
    }
}
