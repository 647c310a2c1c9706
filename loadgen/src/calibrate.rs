//! `loadgen calibrate`: what the generator itself can do, and how late it is, against a server that does nothing.
//!
//! The server is the floor without its disk: it receives, and answers at once. A closed loop shows the highest rate;
//! an open loop at half of that shows the generator's own lag, which is in every latency that is measured here.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::cli::{CalibrateArgs, Durability, TargetArgs, TargetKind, Waiting};
use crate::latency;
use crate::load::{Load, LoadError, Place};
use crate::percentiles::Percentiles;
use crate::report::{Outcome, SCHEMA, Verdict};
use crate::throughput;

/// Frames in flight on each connection: enough that nobody waits.
const IN_FLIGHT: usize = 256;
/// Length of the floor's file, which is not written to.
const FILE_BYTES: u64 = 256 << 20;
const WARMUP_NS: u64 = 300_000_000;
const OPEN_SHARE: f64 = 0.5;
const OPEN_PER_S_MAX: f64 = 500_000.0;

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Calibration {
    /// Version of this object.
    pub(crate) schema: u32,
    /// `calibrate`.
    pub(crate) command: &'static str,
    /// Bytes of a record.
    pub(crate) record_bytes: usize,
    /// Records in a frame.
    pub(crate) batch_records: usize,
    /// Core of the null server.
    pub(crate) server_core: Option<usize>,
    /// Core of the load.
    pub(crate) loadgen_core: usize,
    /// Highest rate of the closed loop.
    pub(crate) closed_records_per_s: f64,
    /// CPU of the load's thread meanwhile, of which 100 is its core.
    pub(crate) closed_loadgen_cpu_percent: f64,
    /// CPU of the server meanwhile: which of the two was the limit.
    pub(crate) closed_server_cpu_percent: f64,
    /// Rate of the open loop.
    pub(crate) open_records_per_s: f64,
    /// How late frames left.
    pub(crate) send_lag: Percentiles,
    /// From intended to answered: the least that any measurement can give here.
    pub(crate) response: Percentiles,
    /// The result in one word, and why.
    pub(crate) verdict: Verdict,
}

/// Both parts.
///
/// # Errors
/// See `LoadError`.
pub(crate) fn run(args: &CalibrateArgs, interrupted: &AtomicBool) -> Result<Calibration, LoadError> {
    let target = TargetArgs {
        connect: None,
        target: TargetKind::Floor,
        broker_core: args.broker_core,
        core: args.core,
        waiting: Waiting::Adaptive,
        durability: Durability::Auto,
        journal_bytes: None,
        memory_bytes: None,
        directory: None,
        json: args.json,
    };
    let closed = Load {
        record_bytes: args.size as usize,
        batch_records: args.batch as usize,
        connections: args.connections as usize,
        in_flight_max: IN_FLIGHT,
        topics: 1,
        partitions: args.connections,
        rate_records_per_s: None,
        warmup_ns: WARMUP_NS,
        measure_ns: args.seconds,
        bytes_max: u64::MAX,
        end_to_end: false,
    };
    let mut place = Place::new(&target, &closed, FILE_BYTES)?;
    place.child.has_no_disk = true;
    let fastest = throughput::run_once(&closed, &place, interrupted)?;
    let closed_per_s = fastest.rates.acked_records_per_s;
    let open_per_s = (closed_per_s * OPEN_SHARE).clamp(1.0, OPEN_PER_S_MAX * args.batch as f64);
    let open = Load { rate_records_per_s: Some(open_per_s as u64), ..closed };
    let even = latency::run_once(&open, &place, interrupted)?;
    if interrupted.load(Ordering::Relaxed) {
        return Err(LoadError::Interrupted);
    }
    let mut verdict = Verdict::new();
    for report in [&fastest, &even] {
        for reason in &report.verdict.reasons {
            verdict.add(true, report.verdict.outcome.max(Outcome::Invalid), || reason.clone());
        }
    }
    let of = |name: &str| {
        even.latencies
            .get(name)
            .copied()
            .ok_or_else(|| LoadError::Unsuitable(format!("no {name} was measured")))
    };
    Ok(Calibration {
        schema: SCHEMA,
        command: "calibrate",
        record_bytes: closed.record_bytes,
        batch_records: closed.batch_records,
        server_core: place.child.core,
        loadgen_core: place.core,
        closed_records_per_s: closed_per_s,
        closed_loadgen_cpu_percent: fastest.loadgen.cpu_percent,
        closed_server_cpu_percent: fastest.broker.cpu_percent,
        open_records_per_s: open_per_s,
        send_lag: of("send_lag")?,
        response: of("response")?,
        verdict,
    })
}
