//! Reports as tables for people. Times are in microseconds, rates in records of all connections together.
//!
//! What too few samples can tell is printed as `n/a (n=...)`, never as a number.

use std::fmt::Write;

use crate::calibrate::Calibration;
use crate::compare::Comparison;
use crate::find_max::MaxReport;
use crate::percentiles::Percentiles;
use crate::report::{Outcome, Report, Usage, Verdict};
use crate::sweep::SweepReport;
use crate::verify::VerifyReport;
use crate::watch::human_time;

/// The order in which latencies are read.
const LATENCY_ORDER: [(&str, &str); 5] = [
    ("response", "response time"),
    ("service", "service time"),
    ("send_lag", "send lag"),
    ("delivery_response", "publish to delivery"),
    ("delivery_service", "sent to delivery"),
];

/// A run of `latency` or `throughput`.
pub(crate) fn report(report: &Report) -> String {
    let mut out = String::new();
    head(&mut out, report);
    line(&mut out, &latency_header());
    for (name, title) in LATENCY_ORDER {
        if let Some(percentiles) = report.latencies.get(name) {
            line(&mut out, &latency_row(title, percentiles));
        }
    }
    line(&mut out, "");
    rates(&mut out, report);
    answers(&mut out, report);
    line(&mut out, &usage("broker", &report.broker));
    line(&mut out, &usage("loadgen", &report.loadgen));
    verdict(&mut out, &report.verdict);
    out
}

/// A comparison with the floor.
pub(crate) fn comparison(comparison: &Comparison) -> String {
    let mut out = String::new();
    line(
        &mut out,
        &format!("{}: medians of {} rounds each, in turns", comparison.command, comparison.rounds),
    );
    line(&mut out, &format!("{:<32} {:>14} {:>14} {:>8}", "figure", "broker", "floor", "ratio"));
    for (name, figure) in &comparison.figures {
        let ratio = figure.ratio.map_or_else(|| "n/a".to_owned(), |ratio| format!("{ratio:.2}"));
        let (broker, floor) = (figure.broker_median, figure.floor_median);
        line(&mut out, &format!("{name:<32} {broker:>14.1} {floor:>14.1} {ratio:>8}"));
    }
    verdict(&mut out, &comparison.verdict);
    out
}

/// The end of a sweep; its rows were printed as they came.
pub(crate) fn swept(report: &SweepReport) -> String {
    let mut out = String::new();
    if let Some(value) = report.stopped_at {
        line(&mut out, &format!("stopped at {} {value}: the bound was broken", report.over));
    }
    verdict(&mut out, &report.verdict);
    out
}

/// A calibration.
pub(crate) fn calibration(found: &Calibration) -> String {
    let mut out = String::new();
    let core = found.server_core.map_or_else(|| "unknown".to_owned(), |core| core.to_string());
    line(
        &mut out,
        &format!(
            "calibrate: {} x {} B, null server on core {core}, load on core {}",
            found.batch_records, found.record_bytes, found.loadgen_core
        ),
    );
    line(
        &mut out,
        &format!(
            "highest rate {:.0} records/s; the load's thread used {:.0} % of its core, the null server {:.0} %",
            found.closed_records_per_s, found.closed_loadgen_cpu_percent, found.closed_server_cpu_percent
        ),
    );
    line(&mut out, &format!("at {:.0} records/s, open loop:", found.open_records_per_s));
    line(&mut out, &latency_header());
    line(&mut out, &latency_row("send lag", &found.send_lag));
    line(&mut out, &latency_row("response time", &found.response));
    verdict(&mut out, &found.verdict);
    out
}

/// A run of `find-max`.
pub(crate) fn found_max(report: &MaxReport) -> String {
    let mut out = String::new();
    match report.max_records_per_s {
        Some(max) => line(
            &mut out,
            &format!("find-max: {max:.0} records/s with p99 <= {}", human_time(report.p99_us_max)),
        ),
        None => line(&mut out, "find-max: none"),
    }
    verdict(&mut out, &report.verdict);
    out
}

/// A run of `verify`.
pub(crate) fn verification(report: &VerifyReport) -> String {
    let mut out = String::new();
    let found = &report.findings;
    line(&mut out, &format!("verify  {} {}  seed {}", report.target, report.address, report.seed));
    line(
        &mut out,
        &format!(
            "sent {}: acked {}, refused {}, unknown {} (of which stored {})",
            found.sent_records,
            found.acked_records,
            found.refused_records,
            found.unknown_records,
            found.unknown_stored_records
        ),
    );
    line(
        &mut out,
        &format!("read back {} records, broker killed {} times", found.read_records, report.kills),
    );
    line(
        &mut out,
        &format!(
            "lost {}  duplicated {}  reordered {}  corrupted {}  phantom {}",
            found.lost_records,
            found.duplicated_records,
            found.reordered_records,
            found.corrupted_records,
            found.phantom_records
        ),
    );
    verdict(&mut out, &report.verdict);
    out
}

fn head(out: &mut String, report: &Report) {
    let load = &report.load;
    line(
        out,
        &format!(
            "{}  {} {}  durability {}, waiting {}",
            report.command,
            report.target,
            report.address,
            report.durability.as_deref().unwrap_or("unknown"),
            report.waiting.as_deref().unwrap_or("unknown")
        ),
    );
    line(
        out,
        &format!(
            "{} loop, {} connections x {} in flight, {} partitions, {} x {} B in frames of {} B, {:.2} s",
            load.r#loop,
            load.connections,
            load.in_flight_max,
            load.partitions,
            load.batch_records,
            load.record_bytes,
            load.frame_bytes,
            load.measured_s
        ),
    );
    let broker_core = report.broker_core.map_or_else(|| "unknown".to_owned(), |core| core.to_string());
    let overlap = if report.broker_core == Some(report.loadgen_core) { ", shared by both" } else { "" };
    line(out, &format!("cores: broker {broker_core}, loadgen {}{overlap}", report.loadgen_core));
    line(out, "");
}

fn latency_header() -> String {
    let columns: String =
        ["p50", "p90", "p99", "p99.9", "p99.99", "max"].map(|name| format!(" {name:>14}")).concat();
    format!("{:<20} {:>10}{columns}", "us", "n")
}

fn latency_row(title: &str, percentiles: &Percentiles) -> String {
    let samples = percentiles.samples;
    let values = [
        percentiles.p50_us,
        percentiles.p90_us,
        percentiles.p99_us,
        percentiles.p999_us,
        percentiles.p9999_us,
        percentiles.max_us,
    ];
    let cell = |value: Option<f64>| {
        value.map_or_else(|| format!("n/a (n={samples})"), |value| format!("{value:.1}"))
    };
    let cells: String = values.map(|value| format!(" {:>14}", cell(value))).concat();
    format!("{title:<20} {samples:>10}{cells}")
}

fn rates(out: &mut String, report: &Report) {
    let rates = &report.rates;
    if let Some(offered) = rates.offered_records_per_s {
        let achieved = rates.achieved_records_per_s;
        let percent = achieved * 100.0 / offered.max(1e-9);
        line(out, &format!("offered {offered:.1}/s, achieved {achieved:.1}/s ({percent:.2} %)"));
    }
    line(out, &format!("acked {:.0} records/s, {:.1} MB/s", rates.acked_records_per_s, rates.acked_mb_per_s));
}

fn answers(out: &mut String, report: &Report) {
    let answers = &report.answers;
    let refused: Vec<String> =
        answers.refused_frames_by_status.iter().map(|(status, count)| format!("{status} {count}")).collect();
    let refused = if refused.is_empty() { "none".to_owned() } else { refused.join(", ") };
    line(
        out,
        &format!(
            "frames: ok {}, refused {refused}, unknown {}, unsent {}, held {}; connections lost {}",
            answers.ok_frames,
            answers.unknown_frames,
            answers.unsent_frames,
            answers.held_frames,
            answers.lost_connections
        ),
    );
    if let Some(deliveries) = &report.deliveries {
        let (delivered, missing) = (deliveries.delivered_records, deliveries.missing_records);
        let faults = deliveries.faults.count();
        line(out, &format!("delivered {delivered} records, missing {missing}, faults {faults}"));
    }
}

fn usage(name: &str, usage: &Usage) -> String {
    let memory = usage
        .resident_bytes
        .map_or_else(String::new, |bytes| format!(", {:.1} MiB resident", bytes as f64 / f64::from(1 << 20)));
    format!("{name}: {:.1} % CPU, {:.2} us per record{memory}", usage.cpu_percent, usage.cpu_us_per_record)
}

fn verdict(out: &mut String, verdict: &Verdict) {
    let word = match verdict.outcome {
        Outcome::Pass => "PASS",
        Outcome::Invalid => "INVALID",
        Outcome::Fail => "FAIL",
    };
    line(out, word);
    for reason in &verdict.reasons {
        line(out, &format!("  {reason}"));
    }
}

fn line(out: &mut String, text: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{}", text.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_printed_as_a_number() {
        let percentiles = Percentiles {
            samples: 157,
            p50_us: Some(163.25),
            p90_us: Some(170.0),
            p99_us: None,
            p999_us: None,
            p9999_us: None,
            max_us: Some(1_234.5),
        };
        let row = latency_row("service time", &percentiles);
        assert_eq!(row.matches("n/a (n=157)").count(), 3);
        assert!(row.contains(" 163.2 ") || row.contains(" 163.3 "), "{row}");
        assert_eq!(row.len(), latency_header().len());
    }
}
