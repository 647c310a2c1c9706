//! `loadgen produce` and `loadgen consume`: one side of the broker by itself, or both at rates of their own.
//! What is consumed was written before, by the same run, so every record can be accounted for.

use std::sync::atomic::AtomicBool;

use crate::arrivals::{Arrival, parse};
use crate::cli::{ConsumeArgs, ProduceArgs};
use crate::criteria;
use crate::load::{LoadError, Place};
use crate::pace::{Pace, PhaseEnd, PhasePlan};
use crate::result::Prediction;
use crate::scenario::{self, Output, Scenario, ScenarioPhase, ScenarioRun};
use crate::setup::PhaseSetup;
use crate::stream;
use crate::watch::human_count;

/// Longest time to write what is to be consumed.
const FILL_NS_MAX: u64 = 600_000_000_000;
/// Longest time to consume it, beyond what arithmetic says.
const CONSUME_NS_MAX: u64 = 600_000_000_000;
/// How far the rate of the consumer may be from what was asked for.
const RATE_ERROR_MAX: f64 = 0.02;

/// `loadgen produce`.
///
/// # Errors
/// See `LoadError`.
pub(crate) fn produce(
    args: &ProduceArgs,
    interrupted: &AtomicBool,
    output: &mut Output<'_>,
) -> Result<ScenarioRun, LoadError> {
    let arrival = parse(&args.arrival, args.seconds, args.poisson, args.stream.seed);
    let arrival = arrival.map_err(|error| LoadError::Unsuitable(format!("--arrival: {error}")))?;
    let load = stream::load(&args.stream)?;
    let mut scenario = Scenario {
        retention_bytes: args.stream.retention_bytes.unwrap_or(0),
        command: "produce",
        lines: stream::lines(&args.stream)?,
        phases: Vec::new(),
        has_consumer: args.consume.is_some(),
        kill_after_ns: None,
        catch_up: stream::catch_up(&args.stream),
        seed: args.stream.seed,
        load,
    };
    let (pace, length_ns) = match arrival {
        Arrival::Max => (Pace::Closed { frames_max: u64::MAX }, args.seconds),
        Arrival::Plan(plan) => {
            let length_ns = plan.duration_ns();
            (Pace::Open(plan), length_ns)
        }
    };
    scenario.phases.push(ScenarioPhase {
        name: "produce".to_owned(),
        arrival: args.arrival.clone(),
        setup: PhaseSetup { plan: PhasePlan::fixed(pace, length_ns), consumer_per_s: args.consume },
        is_measured: true,
    });
    let mut place = Place::new(&args.target, &scenario.load, stream::journal_for(&scenario)?)?;
    if place.remote.is_none()
        && let Pace::Closed { frames_max } = &mut scenario.phases[0].setup.plan.pace
    {
        // Half of the journal: what a broker takes before it has to make room.
        place.child.journal_bytes = args.target.journal_bytes.unwrap_or(crate::throughput::JOURNAL_BYTES);
        place.child.memory_bytes =
            args.target.memory_bytes.unwrap_or(place.child.journal_bytes + (256 << 20));
        *frames_max = (place.child.journal_bytes / 2 / scenario_frame_bytes(&scenario.load)?).max(1);
    }
    let mut target = place.reach()?;
    let mut run = scenario::run(&scenario, &place, &mut target, interrupted, output)?;
    if let (Some(fluid), Some(consume), false) = (&run.prediction, args.consume, run.is_interrupted) {
        let measured = run.result.phase("produce").map(|phase| phase.backlog_records_max as f64);
        run.result.predictions.push(Prediction {
            name: "backlog".to_owned(),
            formula: format!("what arrives less consumers {}/s, at its highest", human_count(consume)),
            unit: "records".to_owned(),
            predicted: fluid.phases[0].backlog_max,
            measured,
        });
    }
    Ok(run)
}

fn scenario_frame_bytes(load: &crate::load::Load) -> Result<u64, LoadError> {
    Ok(crate::template::Template::new(load.shape(), 0)?.frame_bytes() as u64)
}

/// `loadgen consume`.
///
/// # Errors
/// See `LoadError`.
pub(crate) fn consume(
    args: &ConsumeArgs,
    interrupted: &AtomicBool,
    output: &mut Output<'_>,
) -> Result<ScenarioRun, LoadError> {
    if args.produce.zip(args.rate).is_some_and(|(produce, rate)| produce >= rate) {
        return Err(LoadError::Unsuitable("--produce must be less than --rate, or it never ends".to_owned()));
    }
    let load = stream::load(&args.stream)?;
    let frames_max = args.records.div_ceil(load.batch_records as u64);
    let backlog = (frames_max * load.batch_records as u64) as f64;
    let shrinks_per_s = args.rate.map(|rate| rate - args.produce.unwrap_or(0.0));
    let predicted_s = shrinks_per_s.map(|per_s| backlog / per_s);
    let timeout_ns = (predicted_s.unwrap_or(0.0) * 2e9) as u64 + CONSUME_NS_MAX;
    let fill =
        PhasePlan { pace: Pace::Closed { frames_max }, end: PhaseEnd::Spent { timeout_ns: FILL_NS_MAX } };
    let end = PhaseEnd::Backlog { records_max: 0, timeout_ns };
    let scenario = Scenario {
        retention_bytes: args.stream.retention_bytes.unwrap_or(0),
        command: "consume",
        lines: stream::lines(&args.stream)?,
        phases: vec![
            ScenarioPhase {
                name: "fill".to_owned(),
                arrival: "max".to_owned(),
                setup: PhaseSetup { plan: fill, consumer_per_s: Some(0.0) },
                is_measured: false,
            },
            ScenarioPhase::drain("consume", args.produce.unwrap_or(0.0), end, args.rate),
        ],
        has_consumer: true,
        kill_after_ns: None,
        catch_up: stream::catch_up(&args.stream),
        seed: args.stream.seed,
        load,
    };
    let seconds = predicted_s.unwrap_or(60.0);
    let mut measured = scenario.clone();
    let per_s = backlog / seconds + args.produce.unwrap_or(0.0);
    measured.phases = vec![ScenarioPhase::constant("all", per_s, (seconds * 1e9) as u64, None)];
    let place = Place::new(&args.target, &scenario.load, stream::journal_for(&measured)?)?;
    let mut target = place.reach()?;
    let mut run = scenario::run(&scenario, &place, &mut target, interrupted, output)?;
    if !run.is_interrupted {
        conclude(&mut run, args, backlog);
    }
    Ok(run)
}

fn conclude(run: &mut ScenarioRun, args: &ConsumeArgs, backlog: f64) {
    let (Some(rate), Some(phase)) = (args.rate, run.result.phase("consume")) else { return };
    let (seconds, consumed) = (phase.seconds, phase.consumed_records_per_s);
    let produce = args.produce.unwrap_or(0.0);
    run.result.predictions.push(Prediction {
        name: "drain time".to_owned(),
        formula: format!(
            "{} records / (consumers {} - producers {})/s",
            human_count(backlog),
            human_count(rate),
            human_count(produce)
        ),
        unit: "s".to_owned(),
        predicted: backlog / (rate - produce),
        measured: Some(seconds),
    });
    let found = format!("{}/s of {}/s", human_count(consumed), human_count(rate));
    let is_met = (consumed / rate - 1.0).abs() <= RATE_ERROR_MAX;
    run.result.require_figure("consumed at its rate", is_met, found, "within 2 %");
    criteria::as_predicted(&mut run.result, "drain time");
}
