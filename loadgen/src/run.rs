//! From a parsed command line to a printed result and an exit code.
//!
//! Exit codes: 0 pass, 1 fail, 2 invalid, 3 error. SIGINT and SIGTERM end a run as an error, so that the broker that
//! was started and its directory go with it; a second one ends the process at once.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::cli::{
    Cli, Command, CompareArgs, LatencyArgs, TargetArgs, TargetKind, ThroughputArgs, VerifyArgs,
};
use crate::compare::compare;
use crate::load::{Load, LoadError, Place};
use crate::report::{Outcome, Report};
use crate::{internal, latency, tables, throughput, verify};

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
        let run = |kind| run_once(&load, &place.with_kind(kind), &interrupted);
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
