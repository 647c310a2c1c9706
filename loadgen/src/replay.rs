//! `loadgen replay` and `loadgen soak`: arrivals as somebody else counted them, or the same rate for long.
//!
//! The consumer has a fixed rate, so a trace's bursts build backlogs that arithmetic knows beforehand.

use std::sync::atomic::AtomicBool;

use crate::arrivals::{Arrivals, Segment, Spread, Trace};
use crate::cli::{ReplayArgs, SoakArgs};
use crate::criteria;
use crate::find_max::{self, Search};
use crate::load::{Load, LoadError, Place};
use crate::pace::{Pace, PhaseEnd, PhasePlan};
use crate::result::Prediction;
use crate::scenario::{self, Output, Scenario, ScenarioPhase, ScenarioRun};
use crate::setup::PhaseSetup;
use crate::stream;
use crate::watch::human_count;

/// The trace's highest rate as a part of find-max, when the user does not say.
const PEAK_SHARE: f64 = 0.5;
/// The same of what a closed loop gives, when find-max found nothing.
const PEAK_SHARE_OF_CLOSED: f64 = 0.1;
/// Consumers, as a multiple of the mean rate.
const CONSUME_FACTOR: f64 = 1.2;
const WARMUP_NS: u64 = 2_000_000_000;
/// How long a drain may take beyond twice what arithmetic says.
const DRAIN_NS_MIN: u64 = 10_000_000_000;
/// A drain is over when so much of the greatest backlog is left.
const DRAINED_SHARE: f64 = 0.001;
const DRAINED_RECORDS_MIN: u64 = 100;
/// Backlogs below what the consumer does in this time are noise, and not judged.
const JUDGED_BACKLOG_S: f64 = 0.2;
/// How find-max is searched beforehand.
const TRY_NS: u64 = 1_500_000_000;
const TRIES: u32 = 3;
/// Parts of a soak that are compared.
const SOAK_PARTS: u64 = 10;
const SOAK_P99_FACTOR: f64 = 1.5;
const SOAK_GROWTH_BYTES_MAX: u64 = 64 << 20;

/// `loadgen replay`.
///
/// # Errors
/// See `LoadError`.
pub(crate) fn replay(
    args: &ReplayArgs,
    interrupted: &AtomicBool,
    output: &mut Output<'_>,
) -> Result<ScenarioRun, LoadError> {
    replay_as("replay", args, interrupted, output)
}

fn replay_as(
    command: &'static str,
    args: &ReplayArgs,
    interrupted: &AtomicBool,
    output: &mut Output<'_>,
) -> Result<ScenarioRun, LoadError> {
    let trace = Trace::read(&args.trace).map_err(|error| LoadError::Unsuitable(error.to_string()))?;
    let load = stream::load(&args.stream)?;
    let rate_scale = match args.playback.rate_scale {
        Some(rate_scale) => rate_scale,
        None => rate_scale(args, &load, &trace, interrupted, output)?,
    };
    let trace = trace.scaled(args.playback.time_scale, rate_scale);
    let consume = args.consume.unwrap_or(trace.mean_per_s() * CONSUME_FACTOR);
    output.lines.print(&format!(
        "trace of {:.0} s: mean {}/s, peak {}/s (rate scale {rate_scale:.4}), consumers {}/s",
        trace.duration_ns() as f64 / 1e9,
        human_count(trace.mean_per_s()),
        human_count(trace.peak_per_s()),
        human_count(consume)
    ));
    let mut scenario = build(args, load, &trace, consume)?;
    scenario.command = command;
    let place = Place::new(&args.target, &scenario.load, stream::journal_for(&scenario)?)?;
    let mut target = place.reach()?;
    let mut run = scenario::run(&scenario, &place, &mut target, interrupted, output)?;
    run.result.notes.push(format!("rate scale {rate_scale}, time scale {}", args.playback.time_scale));
    if !run.is_interrupted {
        conclude(&mut run, consume);
    }
    Ok(run)
}

/// Such that the trace's peak is half of find-max.
fn rate_scale(
    args: &ReplayArgs,
    load: &Load,
    trace: &Trace,
    interrupted: &AtomicBool,
    output: &Output<'_>,
) -> Result<f64, LoadError> {
    let lines = output.lines;
    let search =
        Search { p99_us_max: args.playback.p99_max as f64 / 1e3, try_ns: TRY_NS, tries: TRIES, lines };
    let load = Load { warmup_ns: 300_000_000, end_to_end: false, ..load.clone() };
    let found = find_max::search(&load, &args.target, search, interrupted)?;
    let peak_per_s = match found.max_records_per_s {
        Some(max) => max * PEAK_SHARE,
        // A busy host can bring this about; the run goes on at a moderate rate, which is printed.
        None => found.closed_records_per_s * PEAK_SHARE_OF_CLOSED,
    };
    let peak = trace.peak_per_s() * args.playback.time_scale;
    Ok(peak_per_s / peak.max(1e-9))
}

fn build(args: &ReplayArgs, load: Load, trace: &Trace, consume: f64) -> Result<Scenario, LoadError> {
    let spread = if args.playback.poisson { Spread::RandomInPiece } else { Spread::Even };
    let plan = PhasePlan::fixed(Pace::Open(trace.arrivals(spread, args.stream.seed)), trace.duration_ns());
    // What the trace leaves behind is at most all of it.
    let timeout_ns = (trace.mean_per_s() * trace.duration_ns() as f64 / consume) as u64 * 2 + DRAIN_NS_MIN;
    let consumer_per_s = Some(consume);
    let drain = |records_max| {
        let end = PhaseEnd::Backlog { records_max, timeout_ns };
        ScenarioPhase::drain("drain", 0.0, end, consumer_per_s).unmeasured()
    };
    let mut scenario = Scenario {
        retention_bytes: args.stream.retention_bytes.unwrap_or(0),
        command: "replay",
        load,
        lines: stream::lines(&args.stream)?,
        phases: vec![
            ScenarioPhase::constant("warm-up", trace.mean_per_s(), WARMUP_NS, consumer_per_s).unmeasured(),
            ScenarioPhase {
                name: "trace".to_owned(),
                arrival: format!("trace:{}", args.trace.display()),
                setup: PhaseSetup { plan, consumer_per_s },
                is_measured: true,
            },
            drain(DRAINED_RECORDS_MIN),
        ],
        has_consumer: true,
        kill_after_ns: None,
        catch_up: stream::catch_up(&args.stream),
        seed: args.stream.seed,
    };
    if let Some(fluid) = scenario.predict() {
        let drained = (fluid.phases[1].backlog_max * DRAINED_SHARE) as u64;
        scenario.phases[2] = drain(drained.max(DRAINED_RECORDS_MIN));
    }
    Ok(scenario)
}

fn conclude(run: &mut ScenarioRun, consume: f64) {
    const TRACE: usize = 1;
    const DRAIN: usize = 2;
    let Some(fluid) = &run.prediction else { return };
    let result = &mut run.result;
    let phase = &fluid.phases[TRACE];
    let trace = result.phase("trace");
    result.predictions = vec![
        Prediction {
            name: "backlog".to_owned(),
            formula: format!("the trace's counts less consumers {}/s, at its highest", human_count(consume)),
            unit: "records".to_owned(),
            predicted: phase.backlog_max,
            measured: trace.map(|phase| phase.backlog_records_max as f64),
        },
        Prediction {
            name: "longest wait".to_owned(),
            formula: format!("backlog / consumers {}/s", human_count(consume)),
            unit: "s".to_owned(),
            predicted: phase.wait_max_s,
            measured: trace.and_then(|phase| phase.latencies.get("delivery")?.max_us).map(|us| us / 1e6),
        },
        Prediction {
            name: "drain time".to_owned(),
            formula: "what the trace leaves behind / consumers".to_owned(),
            unit: "s".to_owned(),
            predicted: (fluid.phases[DRAIN].end_ns - fluid.phases[DRAIN].start_ns) as f64 / 1e9,
            measured: result.phase("drain").map(|phase| phase.seconds),
        },
    ];
    let drain_s = result.predictions[2].predicted;
    if phase.backlog_max >= consume * JUDGED_BACKLOG_S {
        criteria::as_predicted(result, "backlog");
    }
    if drain_s >= JUDGED_BACKLOG_S {
        criteria::as_predicted(result, "drain time");
    }
    criteria::nothing_refused(result);
    criteria::memory_within_budget(result);
}

/// `loadgen soak`.
///
/// # Errors
/// See `LoadError`.
pub(crate) fn soak(
    args: &SoakArgs,
    interrupted: &AtomicBool,
    output: &mut Output<'_>,
) -> Result<ScenarioRun, LoadError> {
    if let Some(trace) = &args.trace {
        let SoakArgs { playback, consume, stream, target, .. } = args.clone();
        let args = ReplayArgs { trace: trace.clone(), playback, consume, stream, target };
        return replay_as("soak", &args, interrupted, output);
    }
    let consume = args.consume.unwrap_or(args.rate * 2.0);
    if consume <= args.rate {
        return Err(LoadError::Unsuitable("--consume must be more than --rate".to_owned()));
    }
    let part_ns = args.length / SOAK_PARTS;
    let spread = if args.playback.poisson { Spread::Poisson } else { Spread::Even };
    let mut phases =
        vec![ScenarioPhase::constant("warm-up", args.rate, WARMUP_NS, Some(consume)).unmeasured()];
    for number in 1..=SOAK_PARTS {
        let seed = args.stream.seed.wrapping_add(number);
        let plan = Arrivals::new([Segment::constant(args.rate, part_ns)], spread, seed);
        let mut phase = ScenarioPhase::constant(&format!("part-{number}"), args.rate, part_ns, Some(consume));
        phase.setup.plan = PhasePlan::fixed(Pace::Open(plan), part_ns);
        phases.push(phase);
    }
    let scenario = Scenario {
        retention_bytes: args.stream.retention_bytes.unwrap_or(0),
        command: "soak",
        load: stream::load(&args.stream)?,
        lines: stream::lines(&args.stream)?,
        phases,
        has_consumer: true,
        kill_after_ns: None,
        catch_up: stream::catch_up(&args.stream),
        seed: args.stream.seed,
    };
    let place = Place::new(&args.target, &scenario.load, stream::journal_for(&scenario)?)?;
    let mut target = place.reach()?;
    let mut run = scenario::run(&scenario, &place, &mut target, interrupted, output)?;
    if !run.is_interrupted {
        conclude_soak(&mut run);
    }
    Ok(run)
}

/// The last part is compared with the second: the first still warms up what a broker warms up.
fn conclude_soak(run: &mut ScenarioRun) {
    let p99 = |name: &str| run.result.phase(name)?.latencies.get("ack")?.p99_us;
    let (early, late) = (p99("part-2"), p99(&format!("part-{SOAK_PARTS}")));
    let resident = |name: &str| {
        let of_part = run.series.iter().filter(|second| second.phase == name);
        of_part.filter_map(|second| second.broker_resident_bytes).max()
    };
    let memory = resident("part-2").zip(resident(&format!("part-{SOAK_PARTS}")));
    let result = &mut run.result;
    match (early, late) {
        (Some(early), Some(late)) => {
            let found = format!("{late:.0} us is {:.2} x {early:.0} us", late / early);
            let wanted = format!("<= {SOAK_P99_FACTOR} x the second");
            let is_met = late <= early * SOAK_P99_FACTOR;
            result.require_figure("p99 of the last part against the second", is_met, found, &wanted);
        }
        _ => result.not_measured("p99 of the last part against the second", "too few samples", "a ratio"),
    }
    match memory {
        Some((early, late)) => {
            let grown = late.saturating_sub(early);
            let found = format!("{} MiB", grown >> 20);
            let is_met = grown <= SOAK_GROWTH_BYTES_MAX;
            result.require("broker's memory does not grow", is_met, found, "<= 64 MiB since the second part");
        }
        None => result.not_measured("broker's memory does not grow", "too short", "<= 64 MiB"),
    }
    criteria::nothing_refused(result);
    criteria::memory_within_budget(result);
}
