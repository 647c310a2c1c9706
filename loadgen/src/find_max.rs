//! `loadgen find-max`: the highest rate at which the ack latency's p99 stays within a bound.
//!
//! A closed loop first shows what cannot be exceeded; then open loops halve the range between the highest rate that
//! kept the bound and the lowest that did not. A rate counts only if its run was valid.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::cli::{FindMaxArgs, TargetArgs};
use crate::latency::{self, journal_bytes};
use crate::load::{Load, LoadError, Place};
use crate::report::{Outcome, Report, SCHEMA, Verdict};
use crate::throughput;
use crate::watch::{Lines, human_count, human_time};

/// Length of the closed loop.
const CLOSED_NS: u64 = 1_500_000_000;
/// Not measured at the start of each try.
const WARMUP_NS: u64 = 300_000_000;
/// Tries beyond those asked for, as long as none was good.
const EXTRA_TRIES: u32 = 5;
/// The first try, as a part of what the closed loop gave.
const FIRST_SHARE: f64 = 0.7;

/// One try.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Try {
    /// What was offered.
    pub(crate) records_per_s: f64,
    /// What came of it.
    pub(crate) p99_us: Option<f64>,
    /// Whether it kept the bound.
    pub(crate) is_good: bool,
    /// Why the run was invalid, if it was.
    pub(crate) reasons: Vec<String>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MaxReport {
    /// Version of this object.
    pub(crate) schema: u32,
    /// `find-max`.
    pub(crate) command: &'static str,
    /// The bound.
    pub(crate) p99_us_max: f64,
    /// What the closed loop gave.
    pub(crate) closed_records_per_s: f64,
    /// The highest rate that kept the bound.
    pub(crate) max_records_per_s: Option<f64>,
    /// In their order.
    pub(crate) tries: Vec<Try>,
    /// The result in one word, and why.
    pub(crate) verdict: Verdict,
}

/// How to search.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Search {
    /// The bound.
    pub(crate) p99_us_max: f64,
    /// Length of each try.
    pub(crate) try_ns: u64,
    /// How many.
    pub(crate) tries: u32,
    /// Where progress goes.
    pub(crate) lines: Lines,
}

/// What the command line asks for.
pub(crate) fn load(args: &FindMaxArgs) -> Load {
    Load {
        record_bytes: args.size as usize,
        batch_records: args.batch as usize,
        connections: args.connections as usize,
        in_flight_max: args.in_flight as usize,
        topics: 1,
        partitions: args.partitions.unwrap_or(args.connections),
        rate_records_per_s: None,
        warmup_ns: WARMUP_NS,
        measure_ns: args.seconds,
        bytes_max: u64::MAX,
        end_to_end: false,
    }
}

/// Searches, each try on a broker of its own.
///
/// # Errors
/// The first try without a result.
pub(crate) fn search(
    load: &Load,
    target: &TargetArgs,
    search: Search,
    interrupted: &AtomicBool,
) -> Result<MaxReport, LoadError> {
    let closed_records_per_s = closed_rate(load, target, interrupted)?;
    search.lines.print(&format!(
        "find-max: at most {}/s, by a closed loop of {} connections x {} in flight",
        human_count(closed_records_per_s),
        load.connections,
        load.in_flight_max
    ));
    let (mut good, mut bad) = (0.0, closed_records_per_s);
    let mut tries = Vec::new();
    let mut number = 0;
    // While nothing is good yet, the range is halved a few times more.
    while number < search.tries || (good == 0.0 && number < search.tries + EXTRA_TRIES) {
        let rate = if number == 0 { closed_records_per_s * FIRST_SHARE } else { f64::midpoint(good, bad) };
        let one = try_rate(load, target, search, rate, interrupted)?;
        if interrupted.load(Ordering::Relaxed) {
            return Err(LoadError::Interrupted);
        }
        search.lines.print(&format!(
            "find-max: {:>7}/s  p99 {:>8}  {}",
            human_count(rate),
            one.p99_us.map_or_else(|| "-".to_owned(), human_time),
            if one.is_good { "good" } else { "too much" }
        ));
        *(if one.is_good { &mut good } else { &mut bad }) = rate;
        number += 1;
        tries.push(one);
    }
    let max_records_per_s = (good > 0.0).then_some(good);
    let mut verdict = Verdict::new();
    verdict.add(max_records_per_s.is_none(), Outcome::Fail, || {
        format!("no rate that was tried kept a p99 of {:.0} us", search.p99_us_max)
    });
    Ok(MaxReport {
        schema: SCHEMA,
        command: "find-max",
        p99_us_max: search.p99_us_max,
        closed_records_per_s,
        max_records_per_s,
        tries,
        verdict,
    })
}

fn closed_rate(load: &Load, target: &TargetArgs, interrupted: &AtomicBool) -> Result<f64, LoadError> {
    let place = Place::new(target, load, throughput::JOURNAL_BYTES)?;
    let bytes_max = if place.remote.is_none() { place.child.journal_bytes / 2 } else { u64::MAX };
    let closed = Load { rate_records_per_s: None, measure_ns: CLOSED_NS, bytes_max, ..load.clone() };
    let report = throughput::run_once(&closed, &place, interrupted)?;
    if interrupted.load(Ordering::Relaxed) {
        return Err(LoadError::Interrupted);
    }
    let acked = report.rates.acked_records_per_s;
    if acked < 1.0 {
        let reasons = report.verdict.reasons.join("; ");
        return Err(LoadError::Unsuitable(format!("find-max: nothing was acknowledged ({reasons})")));
    }
    Ok(acked)
}

fn try_rate(
    load: &Load,
    target: &TargetArgs,
    search: Search,
    rate: f64,
    interrupted: &AtomicBool,
) -> Result<Try, LoadError> {
    let rate_records_per_s = Some((rate as u64).max(1));
    let open = Load { rate_records_per_s, measure_ns: search.try_ns, ..load.clone() };
    let place = Place::new(target, &open, journal_bytes(&open)?)?;
    let report: Report = latency::run_once(&open, &place, interrupted)?;
    let p99_us = report.latencies.get("response").and_then(|percentiles| percentiles.p99_us);
    let is_within = p99_us.is_some_and(|p99_us| p99_us <= search.p99_us_max);
    let is_good = is_within && report.verdict.outcome == Outcome::Pass;
    Ok(Try { records_per_s: rate, p99_us, is_good, reasons: report.verdict.reasons })
}
