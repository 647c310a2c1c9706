//! From a parsed command line to a printed result and an exit code.
//!
//! Exit codes: 0 pass, 1 fail, 2 invalid, 3 error. SIGINT and SIGTERM end a run early: what was measured is
//! reported, the broker that was started and its directory go. A second one ends the process at once.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::cli::{
    CalibrateArgs, Cli, Command, CompareArgs, FindMaxArgs, LatencyArgs, PeakShaveArgs, ScenarioArgs,
    StreamArgs, SweepArgs, TargetArgs, TargetKind, ThroughputArgs, VerifyArgs,
};
use crate::compare::compare;
use crate::live::LiveView;
use crate::load::{Load, LoadError, Place};
use crate::report::{Outcome, Report};
use crate::scenario::{NoViewer, Output, ScenarioRun};
use crate::watch::{Lines, Viewer};
use crate::{
    burst_sweep, calibrate, find_max, internal, latency, peak_shave, produce, replay, run_table,
    scenario_file, stored, sweep, tables, throughput, verify,
};

/// Exit code when there is no result.
const EXIT_ERROR: u8 = 3;

/// One run of `latency` or `throughput` on one target.
type RunOnce = fn(&Load, &Place, &AtomicBool) -> Result<Report, LoadError>;

/// Does what the command line says, and prints what came of it.
#[must_use]
pub fn run(cli: &Cli) -> ExitCode {
    let done = match &cli.command {
        Command::InternalBroker(args) => return internal::broker(args),
        Command::InternalFloor(options) => return internal::floor(options),
        Command::Latency(args) => run_latency(args),
        Command::Throughput(args) => run_throughput(args),
        Command::PeakShave(args) if !args.factors.is_empty() => run_factors(args),
        Command::PeakShave(args) => run_scenario(&args.stream, &args.target, |interrupted, output| {
            peak_shave::run(args, interrupted, output)
        }),
        Command::FindMax(args) => run_find_max(args),
        Command::Produce(args) => run_scenario(&args.stream, &args.target, |interrupted, output| {
            produce::produce(args, interrupted, output)
        }),
        Command::Consume(args) => run_scenario(&args.stream, &args.target, |interrupted, output| {
            produce::consume(args, interrupted, output)
        }),
        Command::Replay(args) => run_scenario(&args.stream, &args.target, |interrupted, output| {
            replay::replay(args, interrupted, output)
        }),
        Command::Soak(args) => run_scenario(&args.stream, &args.target, |interrupted, output| {
            replay::soak(args, interrupted, output)
        }),
        Command::Sweep(args) => run_sweep(args),
        Command::Run(args) => run_file(args),
        Command::Calibrate(args) => run_calibrate(args),
        Command::Report(command) => stored::run(command),
        Command::Verify(args) => run_verify(args),
    };
    match done {
        Ok(Outcome::Pass) => ExitCode::SUCCESS,
        Ok(Outcome::Fail) => ExitCode::from(1),
        Ok(Outcome::Invalid) => ExitCode::from(2),
        Err(error) => {
            eprintln!("loadgen: {error}");
            ExitCode::from(EXIT_ERROR)
        }
    }
}

fn run_latency(args: &LatencyArgs) -> Result<Outcome, LoadError> {
    if args.end_to_end && args.target.target == TargetKind::Floor {
        return Err(LoadError::Unsuitable("--end-to-end: the floor gives nothing back".to_owned()));
    }
    let load = latency::load(args);
    let place = Place::new(&args.target, &load, latency::journal_bytes(&load)?)?;
    run_load(
        "latency",
        latency::run_once,
        Wanted { load, place, target: &args.target, compare: &args.compare },
    )
}

fn run_throughput(args: &ThroughputArgs) -> Result<Outcome, LoadError> {
    let load = throughput::load(args);
    let place = Place::new(&args.target, &load, throughput::JOURNAL_BYTES)?;
    run_load(
        "throughput",
        throughput::run_once,
        Wanted { load, place, target: &args.target, compare: &args.compare },
    )
}

/// What `latency` and `throughput` have in common.
struct Wanted<'a> {
    load: Load,
    place: Place,
    target: &'a TargetArgs,
    compare: &'a CompareArgs,
}

fn run_load(command: &'static str, run_once: RunOnce, wanted: Wanted<'_>) -> Result<Outcome, LoadError> {
    let Wanted { mut load, place, target, compare: compare_args } = wanted;
    if place.remote.is_none() {
        // Half of the journal: what a broker takes before it has to make room.
        load.bytes_max = place.child.journal_bytes / 2;
    }
    let interrupted = catch_signals()?;
    if compare_args.compare_floor {
        let run = |kind| {
            let report = run_once(&load, &place.with_kind(kind), &interrupted)?;
            if interrupted.load(Ordering::Relaxed) { Err(LoadError::Interrupted) } else { Ok(report) }
        };
        let comparison = compare(command, compare_args.rounds, run)?;
        print(target.json, &comparison, || tables::comparison(&comparison))?;
        return Ok(comparison.verdict.outcome);
    }
    let report = run_once(&load, &place, &interrupted)?;
    print(target.json, &report, || tables::report(&report))?;
    Ok(report.verdict.outcome)
}

fn run_verify(args: &VerifyArgs) -> Result<Outcome, LoadError> {
    if args.target.target == TargetKind::Floor {
        return Err(LoadError::Unsuitable("verify: the floor gives nothing back".to_owned()));
    }
    let load = verify::load(args);
    let place = Place::new(&args.target, &load, verify::journal_bytes(args, &load)?)?;
    let interrupted = catch_signals()?;
    let report = verify::run_once(args, &load, &place, &interrupted)?;
    print(args.target.json, &report, || tables::verification(&report))?;
    Ok(report.verdict.outcome)
}

fn run_factors(args: &PeakShaveArgs) -> Result<Outcome, LoadError> {
    needs_broker(&args.target)?;
    let interrupted = catch_signals()?;
    let lines = lines_beside(&args.target);
    let mut viewer = NoViewer;
    let mut output = Output { folder: None, no_folder: args.stream.no_out, lines, viewer: &mut viewer };
    let report =
        burst_sweep::run(args, &interrupted, lines, |one| burst_sweep::one(one, &interrupted, &mut output))?;
    print(args.target.json, &report, || burst_sweep::table(&report))?;
    Ok(report.verdict.outcome)
}

fn run_sweep(args: &SweepArgs) -> Result<Outcome, LoadError> {
    let interrupted = catch_signals()?;
    let report = sweep::run(args, &interrupted, lines_beside(&args.target))?;
    if args.target.json {
        print(true, &report, String::new)?;
    } else {
        print(false, &report, || tables::swept(&report))?;
    }
    Ok(report.verdict.outcome)
}

fn run_calibrate(args: &CalibrateArgs) -> Result<Outcome, LoadError> {
    let interrupted = catch_signals()?;
    let calibration = calibrate::run(args, &interrupted)?;
    print(args.json, &calibration, || tables::calibration(&calibration))?;
    Ok(calibration.verdict.outcome)
}

fn run_file(args: &ScenarioArgs) -> Result<Outcome, LoadError> {
    let where_to = WhereTo { out: args.out.clone(), no_out: args.no_out, tui: args.tui };
    run_phases(&where_to, &args.target, |interrupted, output| scenario_file::run(args, interrupted, output))
}

fn run_find_max(args: &FindMaxArgs) -> Result<Outcome, LoadError> {
    let interrupted = catch_signals()?;
    let lines = lines_beside(&args.target);
    let search = find_max::Search {
        p99_us_max: args.p99_max as f64 / 1e3,
        try_ns: args.seconds,
        tries: args.tries,
        lines,
    };
    let report = find_max::search(&find_max::load(args), &args.target, search, &interrupted)?;
    print(args.target.json, &report, || tables::found_max(&report))?;
    Ok(report.verdict.outcome)
}

/// Where the folder of a run goes.
struct WhereTo {
    out: Option<PathBuf>,
    no_out: bool,
    tui: bool,
}

/// A command of phases whose stream is on the command line.
fn run_scenario(
    stream: &StreamArgs,
    target: &TargetArgs,
    run: impl FnOnce(&AtomicBool, &mut Output<'_>) -> Result<ScenarioRun, LoadError>,
) -> Result<Outcome, LoadError> {
    let where_to = WhereTo { out: stream.out.clone(), no_out: stream.no_out, tui: stream.tui };
    run_phases(&where_to, target, run)
}

/// A command of phases: lines while it runs, then tables or JSON, and the folder.
fn run_phases(
    where_to: &WhereTo,
    target: &TargetArgs,
    run: impl FnOnce(&AtomicBool, &mut Output<'_>) -> Result<ScenarioRun, LoadError>,
) -> Result<Outcome, LoadError> {
    needs_broker(target)?;
    let interrupted = catch_signals()?;
    let lines = lines_beside(target);
    let mut live = if where_to.tui && !target.json { LiveView::open()? } else { None };
    let mut nobody = NoViewer;
    let during = if live.is_some() { Lines::None } else { lines };
    let viewer: &mut dyn Viewer = match &mut live {
        Some(live) => live,
        None => &mut nobody,
    };
    let mut output =
        Output { folder: where_to.out.clone(), no_folder: where_to.no_out, lines: during, viewer };
    let run = run(&interrupted, &mut output);
    // The screen is given back before anything is printed.
    drop(live);
    let run = run?;
    let folder = run.finish()?;
    print(target.json, &run.result, || run_table::run(&run.result))?;
    if let Some(folder) = folder {
        lines.print(&format!("{}", folder.join("report.html").display()));
    }
    Ok(run.result.verdict.outcome)
}

/// Lines of progress go to standard output, unless a program reads that.
fn lines_beside(target: &TargetArgs) -> Lines {
    if target.json { Lines::Error } else { Lines::Out }
}

fn needs_broker(target: &TargetArgs) -> Result<(), LoadError> {
    if target.target == TargetKind::Floor {
        return Err(LoadError::Unsuitable("phases need a broker: the floor gives nothing back".to_owned()));
    }
    Ok(())
}

fn print(as_json: bool, result: &impl Serialize, table: impl FnOnce() -> String) -> Result<(), LoadError> {
    let text = if as_json { serde_json::to_string(result).map_err(io::Error::from)? } else { table() };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    Ok(out.flush()?)
}

/// A flag that the first SIGINT or SIGTERM sets; the second ends the process.
fn catch_signals() -> io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, i32::from(EXIT_ERROR), Arc::clone(&interrupted))?;
        flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(interrupted)
}
