//! `loadgen sweep`: the same open loop at one rate, record size or batch after the other, each on a broker of its own.
//! An overloaded run is a result here, and no fault: it shows where the broker's limit is.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::cli::{SweepArgs, SweepOver};
use crate::latency::{self, journal_bytes};
use crate::load::{Load, LoadError, Place};
use crate::report::{Outcome, Report, SCHEMA, Verdict};
use crate::watch::{Lines, human_count, human_time};

/// Not measured at the start of each run.
const WARMUP_NS: u64 = 500_000_000;

/// One run of a sweep.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SweepStep {
    /// What was swept over: records per second, bytes, or records in a frame.
    pub(crate) value: f64,
    /// The run.
    pub(crate) report: Report,
}

/// All runs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SweepReport {
    /// Version of this object.
    pub(crate) schema: u32,
    /// `sweep`.
    pub(crate) command: &'static str,
    /// `rate`, `size` or `batch`.
    pub(crate) over: &'static str,
    /// In their order.
    pub(crate) steps: Vec<SweepStep>,
    /// The value at which the bound was broken, if it was.
    pub(crate) stopped_at: Option<f64>,
    /// Failed if a broker did something wrong. An overloaded run ends a sweep, and is no fault.
    pub(crate) verdict: Verdict,
}

/// Runs until the values or the bound end.
///
/// # Errors
/// The first run without a result.
pub(crate) fn run(
    args: &SweepArgs,
    interrupted: &AtomicBool,
    lines: Lines,
) -> Result<SweepReport, LoadError> {
    let over = name(args.over);
    lines.print(&format!(
        "{over:>9} {:>11} {:>11} {:>9} {:>9} {:>9} {:>9}  verdict",
        "offered/s", "achieved/s", "MB/s", "p50", "p99", "max"
    ));
    let (mut steps, mut stopped_at, mut verdict) = (Vec::new(), None, Verdict::new());
    for value in &args.values {
        let load = load(args, *value);
        let place = Place::new(&args.target, &load, journal_bytes(&load)?)?;
        let report = latency::run_once(&load, &place, interrupted)?;
        if interrupted.load(Ordering::Relaxed) {
            verdict.add(true, Outcome::Invalid, || "interrupted before its end".to_owned());
            break;
        }
        lines.print(&row(*value, &report));
        verdict.add(report.verdict.outcome == Outcome::Fail, Outcome::Fail, || {
            format!("{over} {value}: {}", report.verdict.reasons.join("; "))
        });
        let p99_us = report.latencies.get("response").and_then(|percentiles| percentiles.p99_us);
        let is_too_long =
            args.p99_max.zip(p99_us).is_some_and(|(bound_ns, p99_us)| p99_us * 1e3 > bound_ns as f64);
        let offered = report.rates.offered_records_per_s.unwrap_or(0.0);
        let is_overloaded = report.rates.achieved_records_per_s < offered * 0.99;
        // An overloaded run is a result; one whose generator was late is none.
        let is_worthless = report.verdict.outcome == Outcome::Invalid && !is_overloaded;
        verdict.add(is_worthless, Outcome::Invalid, || {
            format!("{over} {value}: {}", report.verdict.reasons.join("; "))
        });
        steps.push(SweepStep { value: *value, report });
        if args.p99_max.is_some() && (is_too_long || is_overloaded) {
            stopped_at = Some(*value);
            break;
        }
    }
    verdict.add(steps.is_empty(), Outcome::Invalid, || "nothing was measured".to_owned());
    Ok(SweepReport { schema: SCHEMA, command: "sweep", over, steps, stopped_at, verdict })
}

fn name(over: SweepOver) -> &'static str {
    match over {
        SweepOver::Rate => "rate",
        SweepOver::Size => "size",
        SweepOver::Batch => "batch",
    }
}

fn load(args: &SweepArgs, value: f64) -> Load {
    let chosen = |over: SweepOver, otherwise: f64| if args.over == over { value } else { otherwise };
    Load {
        record_bytes: chosen(SweepOver::Size, f64::from(args.size)).max(crate::stamp::STAMP_BYTES as f64)
            as usize,
        batch_records: chosen(SweepOver::Batch, f64::from(args.batch)) as usize,
        connections: args.connections as usize,
        in_flight_max: args.in_flight as usize,
        topics: 1,
        partitions: args.connections,
        rate_records_per_s: Some(chosen(SweepOver::Rate, args.rate) as u64),
        warmup_ns: WARMUP_NS,
        measure_ns: args.seconds,
        bytes_max: u64::MAX,
        end_to_end: false,
    }
}

fn row(value: f64, report: &Report) -> String {
    let time = |us: Option<f64>| us.map_or_else(|| "n/a".to_owned(), human_time);
    let response = report.latencies.get("response");
    let of = |get: fn(&crate::percentiles::Percentiles) -> Option<f64>| time(response.and_then(get));
    format!(
        "{:>9} {:>11} {:>11} {:>9.1} {:>9} {:>9} {:>9}  {}",
        human_count(value),
        human_count(report.rates.offered_records_per_s.unwrap_or(0.0)),
        human_count(report.rates.achieved_records_per_s),
        report.rates.acked_mb_per_s,
        of(|percentiles| percentiles.p50_us),
        of(|percentiles| percentiles.p99_us),
        of(|percentiles| percentiles.max_us),
        crate::run_table::outcome_word(report.verdict.outcome)
    )
}
