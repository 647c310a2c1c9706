//! What the micro-benchmarks share: samples of realistic size.
//!
//! `cargo bench -p benches` runs them. They measure pieces in one thread; what a user sees is measured by `loadgen`.
#![forbid(unsafe_code)]

use protocol::batch::{BatchBuilder, Record};

/// A finished batch of `record_count` records with values of `value_bytes`.
///
/// # Panics
/// When that does not fit into one batch.
#[must_use]
pub fn batch_of(record_count: usize, value_bytes: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    let value = vec![0x5A; value_bytes];
    for _ in 0..record_count {
        builder.push(&Record { value: &value, ..Record::default() }).expect("the sample fits into a batch");
    }
    let mut bytes = Vec::new();
    builder.finish_into(&mut bytes);
    bytes
}
