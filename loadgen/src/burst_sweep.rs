//! `loadgen peak-shave --factors 2,5,10,20,50`: one peak-shave run after the other, each with a higher spike, each on a
//! broker of its own; and up to which factor the criteria are met.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use crate::cli::PeakShaveArgs;
use crate::load::LoadError;
use crate::peak_shave;
use crate::report::{Outcome, SCHEMA, Verdict};
use crate::result::RunResult;
use crate::run_table::outcome_word;
use crate::scenario::{Output, ScenarioRun};
use crate::watch::{Lines, human_time};

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FactorRow {
    /// Spike by base rate.
    pub(crate) factor: f64,
    /// Of the base phase.
    pub(crate) base_p99_us: Option<f64>,
    /// Of the spike.
    pub(crate) spike_p99_us: Option<f64>,
    /// The same.
    pub(crate) spike_p999_us: Option<f64>,
    /// How far the backlog was from the arithmetic, as a part of it.
    pub(crate) backlog_error: Option<f64>,
    /// How far the drain was.
    pub(crate) drain_error: Option<f64>,
    /// Of the run.
    pub(crate) outcome: Outcome,
    /// Where it was written to.
    pub(crate) folder: Option<PathBuf>,
}

/// All runs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FactorsReport {
    /// Version of this object.
    pub(crate) schema: u32,
    /// `peak-shave --factors`.
    pub(crate) command: &'static str,
    /// In their order.
    pub(crate) rows: Vec<FactorRow>,
    /// The highest factor up to which every run passed.
    pub(crate) absorbed_factor: Option<f64>,
    /// The worst of all.
    pub(crate) verdict: Verdict,
}

/// Runs all factors; `output` is made anew for each.
///
/// # Errors
/// The first run without a result.
pub(crate) fn run(
    args: &PeakShaveArgs,
    interrupted: &AtomicBool,
    lines: Lines,
    mut run_one: impl FnMut(&PeakShaveArgs) -> Result<(ScenarioRun, Option<PathBuf>), LoadError>,
) -> Result<FactorsReport, LoadError> {
    let (mut rows, mut verdict) = (Vec::new(), Verdict::new());
    for factor in &args.factors {
        let mut one = args.clone();
        one.factor = *factor;
        one.stream.out = args.stream.out.as_ref().map(|out| out.join(format!("x{factor}")));
        lines.print(&format!("factor {factor}"));
        let (run, folder) = run_one(&one)?;
        verdict.add(run.result.verdict.outcome != Outcome::Pass, run.result.verdict.outcome, || {
            format!("factor {factor}: {}", run.result.verdict.reasons.join("; "))
        });
        rows.push(row(*factor, &run.result, folder));
        if interrupted.load(std::sync::atomic::Ordering::Relaxed) {
            break;
        }
    }
    let passed = rows.iter().take_while(|row| row.outcome == Outcome::Pass);
    let absorbed_factor = passed.map(|row| row.factor).last();
    Ok(FactorsReport { schema: SCHEMA, command: "peak-shave --factors", rows, absorbed_factor, verdict })
}

/// One run of a factor.
///
/// # Errors
/// See `LoadError`.
pub(crate) fn one(
    args: &PeakShaveArgs,
    interrupted: &AtomicBool,
    output: &mut Output<'_>,
) -> Result<(ScenarioRun, Option<PathBuf>), LoadError> {
    output.folder = args.stream.out.clone();
    let run = peak_shave::run(args, interrupted, output)?;
    let folder = run.finish()?;
    Ok((run, folder))
}

fn row(factor: f64, result: &RunResult, folder: Option<PathBuf>) -> FactorRow {
    let ack = |name: &str| result.phase(name)?.latencies.get("ack").copied();
    let error = |name: &str| result.predictions.iter().find(|one| one.name == name)?.error();
    FactorRow {
        factor,
        base_p99_us: ack("base").and_then(|ack| ack.p99_us),
        spike_p99_us: ack("spike").and_then(|ack| ack.p99_us),
        spike_p999_us: ack("spike").and_then(|ack| ack.p999_us),
        backlog_error: error("backlog"),
        drain_error: error("drain time"),
        outcome: result.verdict.outcome,
        folder,
    }
}

/// The runs as a table.
pub(crate) fn table(report: &FactorsReport) -> String {
    let time = |us: Option<f64>| us.map_or_else(|| "n/a".to_owned(), human_time);
    let percent = |error: Option<f64>| {
        error.map_or_else(|| "n/a".to_owned(), |error| format!("{:+.1} %", error * 100.0))
    };
    let mut lines = vec![format!(
        "{:>7} {:>10} {:>10} {:>10} {:>9} {:>9}  verdict",
        "factor", "base p99", "spike p99", "p99.9", "backlog", "drain"
    )];
    lines.extend(report.rows.iter().map(|row| {
        format!(
            "{:>7} {:>10} {:>10} {:>10} {:>9} {:>9}  {}",
            row.factor,
            time(row.base_p99_us),
            time(row.spike_p99_us),
            time(row.spike_p999_us),
            percent(row.backlog_error),
            percent(row.drain_error),
            outcome_word(row.outcome)
        )
    }));
    lines.push(match report.absorbed_factor {
        Some(factor) => format!("absorbs {factor}x"),
        None => "no factor passed".to_owned(),
    });
    lines.push(outcome_word(report.verdict.outcome).to_owned());
    lines.extend(report.verdict.reasons.iter().map(|reason| format!("  {reason}")));
    lines.join("\n")
}
