//! A run of phases as tables for people: what was sent, how fast, what arithmetic said, what was asked for.
//!
//! Percentiles that too few samples can tell are `n/a`, never a number.

use std::fmt::Write;

use crate::percentiles::Percentiles;
use crate::report::Outcome;
use crate::result::{PhaseResult, Prediction, RunResult};
use crate::watch::{human_count, human_time};

/// All of it.
pub(crate) fn run(result: &RunResult) -> String {
    let mut out = String::new();
    head(&mut out, result);
    phases(&mut out, result);
    latencies(&mut out, result);
    predictions(&mut out, &result.predictions);
    checks(&mut out, result);
    for note in &result.notes {
        line(&mut out, &format!("note: {note}"));
    }
    line(&mut out, outcome_word(result.verdict.outcome));
    for reason in &result.verdict.reasons {
        line(&mut out, &format!("  {reason}"));
    }
    out
}

/// `PASS`, `FAIL` or `INVALID`.
pub(crate) fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "PASS",
        Outcome::Invalid => "INVALID",
        Outcome::Fail => "FAIL",
    }
}

fn head(out: &mut String, result: &RunResult) {
    let load = &result.load;
    let unknown = || "unknown".to_owned();
    line(out, "");
    line(
        out,
        &format!(
            "{}  {} {}  durability {}, waiting {}",
            result.command,
            result.target,
            result.address,
            result.durability.clone().unwrap_or_else(unknown),
            result.waiting.clone().unwrap_or_else(unknown)
        ),
    );
    line(
        out,
        &format!(
            "{} connections x {} in flight, {} partitions, {} x {:.0} B in frames of {} B; broker core {}, load core {}",
            load.connections,
            load.in_flight_max,
            load.partitions,
            load.batch_records,
            load.record_bytes,
            load.frame_bytes,
            result.broker_core.map_or_else(unknown, |core| core.to_string()),
            result.loadgen_core
        ),
    );
    line(out, "");
}

fn phases(out: &mut String, result: &RunResult) {
    line(
        out,
        &format!(
            "{:<10} {:>8} {:>10} {:>10} {:>10} {:>10} {:>9} {:>8} {:>8}",
            "phase",
            "seconds",
            "offered/s",
            "achieved/s",
            "acked/s",
            "consumed/s",
            "backlog",
            "refused",
            "held"
        ),
    );
    for phase in &result.phases {
        let offered = phase.offered_records_per_s.map_or_else(|| "max".to_owned(), human_count);
        line(
            out,
            &format!(
                "{:<10} {:>8.2} {:>10} {:>10} {:>10} {:>10} {:>9} {:>8} {:>8}",
                phase.name,
                phase.seconds,
                offered,
                human_count(phase.achieved_records_per_s),
                human_count(phase.acked_records_per_s),
                human_count(phase.consumed_records_per_s),
                human_count(phase.backlog_records_max as f64),
                phase.refused_frames,
                phase.held_frames
            ),
        );
    }
    line(out, "");
}

fn latencies(out: &mut String, result: &RunResult) {
    let columns: String =
        ["p50", "p90", "p99", "p99.9", "p99.99", "max"].map(|name| format!(" {name:>10}")).concat();
    line(out, &format!("{:<24} {:>9}{columns}", "latency", "n"));
    for (kind, title) in [
        ("ack", "ack, from intended"),
        ("ack_service", "ack, from sent"),
        ("delivery", "consumed, from intended"),
        ("send_lag", "generator's own lag"),
    ] {
        let of_kind: Vec<(&PhaseResult, &Percentiles)> =
            result.phases.iter().filter_map(|phase| Some((phase, phase.latencies.get(kind)?))).collect();
        if of_kind.is_empty() {
            continue;
        }
        line(out, &format!("{title}:"));
        for (phase, percentiles) in of_kind {
            line(out, &latency_row(&phase.name, percentiles));
        }
    }
    line(out, "");
}

fn latency_row(name: &str, percentiles: &Percentiles) -> String {
    let values = [
        percentiles.p50_us,
        percentiles.p90_us,
        percentiles.p99_us,
        percentiles.p999_us,
        percentiles.p9999_us,
        percentiles.max_us,
    ];
    let cells = values.map(|value| format!(" {:>10}", value.map_or_else(|| "n/a".to_owned(), human_time)));
    format!("  {name:<22} {:>9}{}", percentiles.samples, cells.concat())
}

fn predictions(out: &mut String, predictions: &[Prediction]) {
    if predictions.is_empty() {
        return;
    }
    line(out, &format!("{:<14} {:>12} {:>12} {:>8}  by arithmetic", "", "predicted", "measured", "off by"));
    for prediction in predictions {
        let value = |value: f64| amount(value, &prediction.unit);
        line(
            out,
            &format!(
                "{:<14} {:>12} {:>12} {:>8}  {}",
                prediction.name,
                value(prediction.predicted),
                prediction.measured.map_or_else(|| "n/a".to_owned(), value),
                prediction
                    .error()
                    .map_or_else(|| "n/a".to_owned(), |error| format!("{:+.1} %", error * 100.0)),
                prediction.formula
            ),
        );
    }
    line(out, "");
}

/// A predicted amount with its unit.
pub(crate) fn amount(value: f64, unit: &str) -> String {
    if unit == "s" { format!("{value:.2} s") } else { format!("{} {unit}", human_count(value)) }
}

fn checks(out: &mut String, result: &RunResult) {
    for check in &result.checks {
        let word = check.outcome.map_or("-", outcome_word);
        line(out, &format!("{word:<8} {:<46} {}  (wanted {})", check.name, check.found, check.wanted));
    }
    if !result.checks.is_empty() {
        line(out, "");
    }
}

fn line(out: &mut String, text: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{}", text.trim_end());
}
