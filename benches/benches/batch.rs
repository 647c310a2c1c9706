//! What one batch costs: to build, to check at ingress, to place.
//!
//! The first two are the client's and the broker's per-record work; placing is two header writes and a short CRC.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::hint::black_box;

use benches::batch_of;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use protocol::batch::{Batch, BatchBuilder, BatchHeader, BrokerFields, Record};
use protocol::ids::{Handle, Offset};

/// Records in a batch, and bytes of each.
const SHAPES: [(usize, usize); 4] = [(1, 128), (1, 1024), (64, 1024), (420, 128)];

fn check(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("check");
    for (records, bytes) in SHAPES {
        let batch = batch_of(records, bytes);
        group.throughput(Throughput::Bytes(batch.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{records}x{bytes}")), |bencher| {
            bencher.iter(|| Batch::check(black_box(&batch)).map(|batch| batch.record_count()));
        });
    }
}

fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build");
    for (records, bytes) in SHAPES {
        let (mut builder, mut out, value) = (BatchBuilder::new(), Vec::new(), vec![7; bytes]);
        group.throughput(Throughput::Elements(records as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{records}x{bytes}")), |bencher| {
            bencher.iter(|| {
                out.clear();
                for _ in 0..records {
                    let _ = builder.push(&Record { value: black_box(&value), ..Record::default() });
                }
                builder.finish_into(&mut out)
            });
        });
    }
}

fn place(criterion: &mut Criterion) {
    let mut batch = batch_of(1, 1024);
    criterion.bench_function("place", |bencher| {
        bencher.iter(|| {
            let fields = BrokerFields { base_offset: Offset(41), appended_ms: 7, log_epoch: 1 };
            BatchHeader::place(black_box(&mut batch), Handle(1), fields);
        });
    });
}

criterion_group!(benches, check, build, place);
criterion_main!(benches);
