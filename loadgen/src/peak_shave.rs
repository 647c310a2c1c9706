//! `loadgen peak-shave`: a burst is absorbed at constant producer latency, and drained at the consumers' own rate.
//!
//! Phases: warm-up, base, spike, drain (the base rate again, until the backlog is gone), recovery; then everything
//! that was acknowledged is consumed and accounted for. Before it starts, arithmetic says what backlog, drain and wait
//! there must be; afterwards every criterion is PASS or FAIL, and INVALID when the load was not what it should be.

use std::sync::atomic::AtomicBool;

use crate::cli::{PeakShaveArgs, TargetKind};
use crate::criteria;
use crate::find_max::{self, MaxReport, Search};
use crate::fluid::Fluid;
use crate::latency;
use crate::load::{Load, LoadError, Place};
use crate::pace::PhaseEnd;
use crate::report::Outcome;
use crate::result::{Check, KillResult, PhaseResult, Prediction, RunResult};
use crate::scenario::{self, Output, Scenario, ScenarioPhase, ScenarioRun};
use crate::stream;
use crate::watch::{Lines, human_count, human_time};

/// The spike as a part of find-max, when the user does not say: half of it is a criterion.
const SPIKE_SHARE: f64 = 0.55;
const SPIKE_SHARE_MIN: f64 = 0.5;
/// The spike as a part of what a closed loop gives, when find-max found nothing.
const SPIKE_SHARE_OF_CLOSED: f64 = 0.1;
/// Consumers, as a multiple of the base rate.
const CONSUME_FACTOR: f64 = 4.0;
/// The drain is over when so much of the predicted backlog is left.
const DRAINED_SHARE: f64 = 0.001;
const DRAINED_RECORDS_MIN: u64 = 100;
/// The drain may take so many times what arithmetic says.
const DRAIN_TIMEOUT_FACTOR: f64 = 3.0;
const SPIKE_P99_FACTOR: f64 = 2.0;
const RECOVERY_P99_FACTOR: f64 = 1.2;
const FLOOR_P99_FACTOR: f64 = 2.0;
/// Length of the floor's measurement.
const FLOOR_NS: u64 = 4_000_000_000;
/// How find-max is searched beforehand.
const TRY_NS: u64 = 1_500_000_000;
const TRIES: u32 = 3;

/// What was found out before the run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before {
    /// Highest rate within the latency bound.
    pub(crate) max_records_per_s: Option<f64>,
    /// Whether it was searched for.
    pub(crate) has_searched: bool,
    /// The floor's p99 at the base rate.
    pub(crate) floor_p99_us: Option<f64>,
}

/// The rates of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    /// Before and after.
    pub(crate) base: f64,
    /// In the spike.
    pub(crate) spike: f64,
    /// Of the consumers.
    pub(crate) consume: f64,
}

/// Everything.
///
/// # Errors
/// See `LoadError`.
pub(crate) fn run(
    args: &PeakShaveArgs,
    interrupted: &AtomicBool,
    output: &mut Output<'_>,
) -> Result<ScenarioRun, LoadError> {
    let mut before = Before::default();
    let lines = output.lines;
    let base = match args.base {
        Some(base) => base,
        None => {
            let found = find_max(args, lines, interrupted)?;
            before.max_records_per_s = found.max_records_per_s;
            before.has_searched = true;
            (spike_of(&found) / args.factor).floor().max(1.0)
        }
    };
    let rates =
        Rates { base, spike: base * args.factor, consume: args.consume.unwrap_or(base * CONSUME_FACTOR) };
    if rates.consume <= rates.base {
        return Err(LoadError::Unsuitable(format!(
            "consumers of {:.0}/s would never drain a backlog at a base rate of {:.0}/s: raise --consume",
            rates.consume, rates.base
        )));
    }
    let scenario = build(args, rates)?;
    let place = Place::new(&args.target, &scenario.load, stream::journal_for(&scenario)?)?;
    let is_floor_wanted = !args.no_floor && place.remote.is_none() && args.stream.payload.is_none();
    let place = if is_floor_wanted { place.with_kind(TargetKind::Broker) } else { place };
    if is_floor_wanted {
        before.floor_p99_us = floor_p99(&scenario.load, &place, base, interrupted)?;
        lines.print(&format!(
            "floor at {}/s: p99 {}",
            human_count(base),
            before.floor_p99_us.map_or_else(|| "unknown".to_owned(), human_time)
        ));
    }
    announce(&scenario, rates, lines);
    let mut target = place.reach()?;
    let mut run = scenario::run(&scenario, &place, &mut target, interrupted, output)?;
    conclude(&mut run, rates, before);
    Ok(run)
}

fn find_max(args: &PeakShaveArgs, lines: Lines, interrupted: &AtomicBool) -> Result<MaxReport, LoadError> {
    let search = Search { p99_us_max: args.p99_max as f64 / 1e3, try_ns: TRY_NS, tries: TRIES, lines };
    let load = Load { warmup_ns: 300_000_000, ..stream::load(&args.stream)? };
    find_max::search(&load, &args.target, search, interrupted)
}

/// The rate of the spike, by what was found. Where no rate kept the bound, which a busy host can bring about, the run
/// goes on at a moderate one, and its report says so.
fn spike_of(found: &MaxReport) -> f64 {
    match found.max_records_per_s {
        Some(max) => max * SPIKE_SHARE,
        None => found.closed_records_per_s * SPIKE_SHARE_OF_CLOSED,
    }
}

fn build(args: &PeakShaveArgs, rates: Rates) -> Result<Scenario, LoadError> {
    let Rates { base, spike, consume } = rates;
    let load = stream::load(&args.stream)?;
    let in_spike = if args.consumers_stopped { 0.0 } else { consume };
    let spike_ns = spike_length(args, &load, spike - in_spike)?;
    let backlog = (spike - in_spike).max(0.0) * spike_ns as f64 / 1e9;
    let drained = ((backlog * DRAINED_SHARE) as u64).max(DRAINED_RECORDS_MIN);
    let drain_s = backlog / (consume - base);
    let timeout_ns = ((drain_s * DRAIN_TIMEOUT_FACTOR + 5.0) * 1e9) as u64;
    let phase = |name: &str, per_s, length_ns| ScenarioPhase::constant(name, per_s, length_ns, Some(consume));
    let mut burst = phase("spike", spike, spike_ns);
    burst.setup.consumer_per_s = Some(in_spike);
    let end = PhaseEnd::Backlog { records_max: drained, timeout_ns };
    Ok(Scenario {
        retention_bytes: args.stream.retention_bytes.unwrap_or(0),
        command: "peak-shave",
        load,
        lines: stream::lines(&args.stream)?,
        phases: vec![
            phase("warm-up", base, args.warmup).unmeasured(),
            phase("base", base, args.base_for),
            burst,
            ScenarioPhase::drain("drain", base, end, Some(consume)),
            phase("recovery", base, args.recovery_for),
        ],
        has_consumer: true,
        kill_after_ns: args.kill.then(|| args.warmup + args.base_for + spike_ns / 2),
        catch_up: stream::catch_up(&args.stream),
        seed: args.stream.seed,
    })
}

/// As asked for, or so long that the backlog is as many times the broker's memory as asked for.
fn spike_length(args: &PeakShaveArgs, load: &Load, grows_per_s: f64) -> Result<u64, LoadError> {
    let Some(times) = args.backlog_of_memory else { return Ok(args.spike_for) };
    let Some(memory_bytes) = args.target.memory_bytes else {
        return Err(LoadError::Unsuitable("--backlog-of-memory needs --memory-bytes".to_owned()));
    };
    let bytes_per_s = grows_per_s * load.record_bytes as f64;
    if bytes_per_s <= 0.0 {
        return Err(LoadError::Unsuitable("--backlog-of-memory: the spike builds no backlog".to_owned()));
    }
    Ok((times * memory_bytes as f64 / bytes_per_s * 1e9) as u64)
}

fn floor_p99(
    load: &Load,
    place: &Place,
    base: f64,
    interrupted: &AtomicBool,
) -> Result<Option<f64>, LoadError> {
    let load = Load {
        rate_records_per_s: Some((base as u64).max(1)),
        warmup_ns: 500_000_000,
        measure_ns: FLOOR_NS,
        end_to_end: false,
        ..load.clone()
    };
    let report = latency::run_once(&load, &place.with_kind(TargetKind::Floor), interrupted)?;
    Ok(report.latencies.get("response").and_then(|percentiles| percentiles.p99_us))
}

/// What is going to happen.
fn announce(scenario: &Scenario, rates: Rates, lines: Lines) {
    let (_, seconds) = scenario.extent();
    lines.print(&format!(
        "base {}/s, spike {}/s, consumers {}/s; about {seconds:.0} s",
        human_count(rates.base),
        human_count(rates.spike),
        human_count(rates.consume)
    ));
}

/// Predictions beside what was measured, and the criteria.
fn conclude(run: &mut ScenarioRun, rates: Rates, before: Before) {
    if let Some(fluid) = run.prediction.take() {
        run.result.predictions = predictions(&run.result, &fluid, rates);
        run.prediction = Some(fluid);
    }
    if run.is_interrupted {
        return;
    }
    let result = &mut run.result;
    if let Some(kill) = result.kill {
        conclude_killed(result, kill);
        return;
    }
    check_share_of_max(result, rates, before);
    check_floor(result, before);
    check_ratio(result, "spike", SPIKE_P99_FACTOR);
    // The longest wait follows from these two, and is the moment of one record: it is shown, not judged.
    criteria::as_predicted(result, "backlog");
    criteria::as_predicted(result, "drain time");
    criteria::nothing_refused(result);
    criteria::memory_within_budget(result);
    check_ratio(result, "recovery", RECOVERY_P99_FACTOR);
}

/// After a kill nothing is as predicted; what was acknowledged must be there all the same.
fn conclude_killed(result: &mut RunResult, kill: KillResult) {
    let KillResult { at_s, outage_s } = kill;
    result.notes.push(format!("the broker was killed at {at_s:.2} s and served again {outage_s:.2} s later"));
    let unknown = result.answers.unknown_frames;
    result
        .notes
        .push(format!("{unknown} frames were in flight at the kill: they may be stored once or not at all"));
    let why = "the broker was killed";
    for name in ["spike p99 against base", "backlog as predicted", "drain time as predicted"] {
        result.not_measured(name, why, "a broker that is left alone");
    }
    let recovered = result
        .phase("recovery")
        .map(|phase| phase.achieved_records_per_s / phase.offered_records_per_s.unwrap_or(1.0));
    let found = recovered
        .map_or_else(|| "it did not come to that".to_owned(), |share| format!("{:.1} %", share * 100.0));
    let is_met = recovered.is_some_and(|share| share >= 0.99);
    result.require_figure("recovery: offered load achieved again", is_met, found, ">= 99 %");
    check_ratio(result, "recovery", RECOVERY_P99_FACTOR);
    criteria::memory_within_budget(result);
}

fn predictions(result: &RunResult, fluid: &Fluid, rates: Rates) -> Vec<Prediction> {
    const SPIKE: usize = 2;
    const DRAIN: usize = 3;
    let Rates { base, spike, .. } = rates;
    let phase = |name: &str| result.phase(name);
    let in_spike = phase("spike").and_then(|phase| phase.consumer_records_per_s).unwrap_or(rates.consume);
    let both = || ["spike", "drain"].into_iter().filter_map(phase);
    let waits = both().filter_map(|phase| phase.latencies.get("delivery")?.max_us);
    let drained = phase("recovery").and(phase("drain"));
    let highest =
        |of: fn(&crate::fluid::FluidPhase) -> f64| of(&fluid.phases[SPIKE]).max(of(&fluid.phases[DRAIN]));
    let spike_s = (fluid.phases[SPIKE].end_ns - fluid.phases[SPIKE].start_ns) as f64 / 1e9;
    vec![
        Prediction {
            name: "backlog".to_owned(),
            formula: format!(
                "(spike {} - consumers {})/s x {:.1} s",
                human_count(spike),
                human_count(in_spike),
                spike_s
            ),
            unit: "records".to_owned(),
            predicted: highest(|phase| phase.backlog_max),
            measured: both().map(|phase| phase.backlog_records_max as f64).reduce(f64::max),
        },
        Prediction {
            name: "drain time".to_owned(),
            formula: format!(
                "backlog / (consumers {} - base {})/s",
                human_count(rates.consume),
                human_count(base)
            ),
            unit: "s".to_owned(),
            predicted: (fluid.phases[DRAIN].end_ns - fluid.phases[DRAIN].start_ns) as f64 / 1e9,
            measured: drained.map(|phase| phase.seconds),
        },
        Prediction {
            name: "longest wait".to_owned(),
            formula: format!("backlog / consumers {}/s", human_count(rates.consume)),
            unit: "s".to_owned(),
            predicted: highest(|phase| phase.wait_max_s),
            measured: waits.reduce(f64::max).map(|us| us / 1e6),
        },
    ]
}

fn check_share_of_max(result: &mut RunResult, rates: Rates, before: Before) {
    const NAME: &str = "spike against find-max";
    let wanted = format!(">= {SPIKE_SHARE_MIN} of it");
    match before.max_records_per_s {
        Some(max) => {
            let found = format!(
                "{}/s is {:.2} of {}/s",
                human_count(rates.spike),
                rates.spike / max,
                human_count(max)
            );
            result.require_figure(NAME, rates.spike >= max * SPIKE_SHARE_MIN, found, &wanted);
        }
        None if before.has_searched => result.not_measured(NAME, "no rate kept the bound of p99", &wanted),
        None => result.not_measured(NAME, "the base rate was given", &wanted),
    }
}

fn check_floor(result: &mut RunResult, before: Before) {
    const NAME: &str = "base p99 against the floor";
    let wanted = format!("<= {FLOOR_P99_FACTOR} x the floor's");
    match (ack_p99(result.phase("base")), before.floor_p99_us) {
        (Some(base), Some(floor)) => {
            let found = format!("{} is {:.2} x {}", human_time(base), base / floor, human_time(floor));
            result.require_figure(NAME, base <= floor * FLOOR_P99_FACTOR, found, &wanted);
        }
        _ => result.not_measured(NAME, "no floor beside this run", &wanted),
    }
}

/// The p99 of a phase against that of the base phase.
fn check_ratio(result: &mut RunResult, name: &str, factor: f64) {
    let (base, other) = (ack_p99(result.phase("base")), ack_p99(result.phase(name)));
    let title = format!("{name} p99 against base");
    let wanted = format!("<= {factor} x base");
    match (base, other) {
        (Some(base), Some(other)) => {
            let found = format!("{} is {:.2} x {}", human_time(other), other / base, human_time(base));
            result.require_figure(&title, other <= base * factor, found, &wanted);
        }
        _ => result.check(Check {
            name: title,
            outcome: Some(Outcome::Invalid),
            found: "too few samples".to_owned(),
            wanted,
        }),
    }
}

fn ack_p99(phase: Option<&PhaseResult>) -> Option<f64> {
    phase?.latencies.get("ack")?.p99_us
}
