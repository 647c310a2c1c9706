//! `loadgen throughput`: how many records per second are acknowledged with many frames in flight.
//!
//! A closed loop: every connection keeps its frames in flight full. The run ends after its seconds, or when half of
//! the journal of the broker that was started for it is full, whichever comes first.

use std::sync::atomic::AtomicBool;

use crate::cli::ThroughputArgs;
use crate::latency::{judge_answers, judge_interrupt, nanoseconds};
use crate::load::{Load, LoadError, Place, measure};
use crate::report::{Outcome, Report};

/// Journal of a broker that is started for a run.
pub(crate) const JOURNAL_BYTES: u64 = 2 << 30;
/// Least time that must have been measured, in seconds.
const MEASURED_S_MIN: f64 = 0.1;

/// What the command line asks for.
pub(crate) fn load(args: &ThroughputArgs) -> Load {
    let topics = args.topics;
    Load {
        record_bytes: args.size as usize,
        batch_records: args.batch as usize,
        connections: args.connections as usize,
        in_flight_max: args.in_flight as usize,
        topics,
        partitions: args.partitions.unwrap_or_else(|| args.connections.div_ceil(topics)),
        rate_records_per_s: None,
        warmup_ns: nanoseconds(args.warmup),
        measure_ns: nanoseconds(args.seconds),
        bytes_max: u64::MAX,
        end_to_end: false,
    }
}

/// One run.
///
/// # Errors
/// See `LoadError`.
pub(crate) fn run_once(load: &Load, place: &Place, interrupted: &AtomicBool) -> Result<Report, LoadError> {
    let measured = measure(load, place, interrupted)?;
    let mut report = Report::new("throughput", load, place, &measured);
    judge_interrupt(&mut report.verdict, measured.driven.is_interrupted);
    judge_answers(&mut report);
    let measured_s = report.load.measured_s;
    report.verdict.add(measured_s < MEASURED_S_MIN, Outcome::Invalid, || {
        format!(
            "half of the journal was full after {measured_s:.3} s: raise --journal-bytes or lower --warmup"
        )
    });
    Ok(report)
}
