//! `loadgen latency`: how long a durable acknowledgement takes, at a constant rate or one frame at a time.
//!
//! A run is invalid when the load was not what was asked for: less than 99 % of it was sent in time and stored, or
//! the generator itself was late (p99 of its lag over 50 us, and over a tenth of the p99 that it measured).

use std::sync::atomic::AtomicBool;

use crate::cli::LatencyArgs;
use crate::load::{Load, LoadError, Place, measure};
use crate::report::{Outcome, Report, Verdict};
use crate::template::Template;

/// Share of the offered load that must have been achieved.
const ACHIEVED_MIN: f64 = 0.99;
/// Lag of the generator that never matters.
const SEND_LAG_US_MAX: f64 = 50.0;
/// Share of the measured p99 that the generator's lag may be.
const SEND_LAG_SHARE_MAX: f64 = 0.1;
/// Least journal of a broker that is started for a run.
const JOURNAL_BYTES_MIN: u64 = 1 << 30;
/// More than any broker takes: it will say so.
const JOURNAL_BYTES_MAX: u64 = 1 << 50;
/// Frames per second and connection, at most, when each waits for the one before.
const CLOSED_FRAMES_PER_S: u64 = 20_000;
/// What padding may add to a journal in a second: ten thousand commits of a block and a marker.
const PADDING_BYTES_PER_S: u64 = 80_000_000;

/// What the command line asks for.
pub(crate) fn load(args: &LatencyArgs) -> Load {
    let is_closed = args.rate == 0 || args.one_in_flight;
    Load {
        record_bytes: args.size as usize,
        batch_records: args.batch as usize,
        connections: args.connections as usize,
        in_flight_max: if is_closed { 1 } else { args.in_flight as usize },
        topics: 1,
        partitions: args.partitions.unwrap_or(args.connections),
        rate_records_per_s: (!is_closed).then_some(args.rate),
        warmup_ns: nanoseconds(args.warmup),
        measure_ns: nanoseconds(args.seconds),
        bytes_max: u64::MAX,
        end_to_end: args.end_to_end,
    }
}

/// Bytes of journal that hold all that the run writes, and a quarter more.
///
/// # Errors
/// When the records do not fit into a batch.
pub(crate) fn journal_bytes(load: &Load) -> Result<u64, LoadError> {
    let frame_bytes = Template::new(load.shape(), 0)?.frame_bytes() as u64;
    let frames_per_s = match load.rate_records_per_s {
        Some(records_per_s) => records_per_s / load.batch_records as u64 + 1,
        None => CLOSED_FRAMES_PER_S * load.connections as u64,
    };
    let seconds = (load.warmup_ns + load.measure_ns).div_ceil(1_000_000_000);
    let bytes = seconds.saturating_mul(frames_per_s.saturating_mul(frame_bytes) + PADDING_BYTES_PER_S);
    Ok((bytes / 4).saturating_mul(5).clamp(JOURNAL_BYTES_MIN, JOURNAL_BYTES_MAX))
}

/// One run.
///
/// # Errors
/// See `LoadError`.
pub(crate) fn run_once(load: &Load, place: &Place, interrupted: &AtomicBool) -> Result<Report, LoadError> {
    let measured = measure(load, place, interrupted)?;
    let mut report = Report::new("latency", load, place, &measured);
    judge_interrupt(&mut report.verdict, measured.driven.is_interrupted);
    judge_answers(&mut report);
    judge_load(&mut report);
    Ok(report)
}

/// What a broker must not do, whatever is measured.
pub(crate) fn judge_answers(report: &mut Report) {
    let Report { verdict, answers, deliveries, .. } = report;
    for (status, count) in &answers.refused_frames_by_status {
        verdict.add(status != "Busy", Outcome::Fail, || format!("{count} frames were refused with {status}"));
    }
    let unknown = answers.unknown_frames;
    verdict.add(unknown > 0, Outcome::Fail, || format!("{unknown} frames were never answered"));
    let lost = answers.lost_connections;
    verdict.add(lost > 0, Outcome::Fail, || format!("{lost} connections broke"));
    if let Some(deliveries) = deliveries {
        let missing = deliveries.missing_records;
        verdict
            .add(missing > 0, Outcome::Fail, || format!("{missing} acknowledged records were not delivered"));
        let faults = deliveries.faults.count();
        verdict.add(faults > 0, Outcome::Fail, || {
            format!("{faults} faults in deliveries: {:?}", deliveries.faults)
        });
    }
}

/// Half a run says what it says, and is no result.
pub(crate) fn judge_interrupt(verdict: &mut Verdict, is_interrupted: bool) {
    verdict.add(is_interrupted, Outcome::Invalid, || "interrupted before its end".to_owned());
}

/// Whether the load was what it should have been.
fn judge_load(report: &mut Report) {
    let verdict = &mut report.verdict;
    if let Some(offered) = report.rates.offered_records_per_s {
        let achieved = report.rates.achieved_records_per_s;
        verdict.add(achieved < offered * ACHIEVED_MIN, Outcome::Invalid, || {
            format!("OVERLOADED: only {achieved:.1} of {offered:.1} records/s were sent in time and stored")
        });
    }
    let p99 = |name: &str| report.latencies.get(name).and_then(|percentiles| percentiles.p99_us);
    if let (Some(lag), Some(response)) = (p99("send_lag"), p99("response")) {
        judge_lag(verdict, "", lag, response);
    }
    let samples = report.latencies.get("service").map_or(0, |percentiles| percentiles.samples);
    verdict.add(samples == 0, Outcome::Invalid, || {
        "nothing was acknowledged within the measured time".to_owned()
    });
}

/// Whether the generator itself was late. `place` says where, for people.
pub(crate) fn judge_lag(verdict: &mut Verdict, place: &str, lag_us: f64, response_us: f64) {
    let is_late = lag_us > SEND_LAG_US_MAX && lag_us > response_us * SEND_LAG_SHARE_MAX;
    verdict.add(is_late, Outcome::Invalid, || {
        format!("GENERATOR-LIMITED{place}: p99 of the send lag is {lag_us:.1} us, of the response time {response_us:.1} us")
    });
}

/// Seconds of the command line, which are bounded there.
pub(crate) fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_matters_when_it_is_long_and_a_share_of_what_is_measured() {
        let outcome = |lag_us, response_us| {
            let mut verdict = Verdict::new();
            judge_lag(&mut verdict, "", lag_us, response_us);
            verdict.outcome
        };
        assert_eq!(outcome(49.0, 200.0), Outcome::Pass);
        assert_eq!(outcome(60.0, 601.0), Outcome::Pass);
        assert_eq!(outcome(60.0, 599.0), Outcome::Invalid);
    }

    #[test]
    fn journal_holds_the_whole_run() {
        let load = Load {
            record_bytes: 1_024,
            batch_records: 1,
            connections: 4,
            in_flight_max: 1_024,
            topics: 1,
            partitions: 4,
            rate_records_per_s: Some(100_000),
            warmup_ns: 1_000_000_000,
            measure_ns: 10_000_000_000,
            bytes_max: u64::MAX,
            end_to_end: false,
        };
        assert!(journal_bytes(&load).unwrap() > 100_000 * 11 * 1_200);
        let slow = Load { rate_records_per_s: Some(1), measure_ns: 1, ..load };
        assert_eq!(journal_bytes(&slow).unwrap(), JOURNAL_BYTES_MIN);
    }
}
