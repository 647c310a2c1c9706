//! `loadgen run -f scenario.toml`: phases, targets and assertions from a file. `loadgen/README.md` has an example.
//!
//! Unknown keys, wrong words and impossible phases are refused with the line and the reason before anything starts.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Deserialize;
use toml::Spanned;

use crate::arrivals::{Arrival, parse, parse_duration, parse_rate};
use crate::assertion::Assertion;
use crate::cli::{ScenarioArgs, StreamArgs};
use crate::load::{LoadError, Place};
use crate::pace::{Pace, PhaseEnd, PhasePlan};
use crate::scenario::{self, Output, Scenario, ScenarioPhase, ScenarioRun};
use crate::setup::PhaseSetup;
use crate::stream;

/// Longest time for a phase that waits for the backlog, when the file does not say.
const TIMEOUT: &str = "300s";

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "default_seed")]
    seed: u64,
    #[serde(default)]
    producer: ProducerTable,
    consumer: Option<ConsumerTable>,
    phase: Vec<PhaseTable>,
    #[serde(default)]
    assert: Vec<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ProducerTable {
    size: u32,
    payload: Option<PathBuf>,
    batch: u32,
    connections: u32,
    in_flight: u32,
    partitions: Option<u32>,
    burst_after_stall: bool,
}

impl Default for ProducerTable {
    fn default() -> Self {
        Self {
            size: 1_024,
            payload: None,
            batch: 1,
            connections: 4,
            in_flight: 1_024,
            partitions: None,
            burst_after_stall: false,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsumerTable {
    rate: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PhaseTable {
    name: Spanned<String>,
    duration: Option<Spanned<String>>,
    until: Option<Spanned<String>>,
    timeout: Option<Spanned<String>>,
    arrival: Spanned<String>,
    #[serde(default)]
    poisson: bool,
    consumer: Option<Spanned<String>>,
    #[serde(default = "default_measure")]
    measure: bool,
}

fn default_seed() -> u64 {
    1
}

fn default_measure() -> bool {
    true
}

/// A scenario and what it asserts.
#[derive(Debug)]
pub(crate) struct Asserted {
    /// What is run.
    pub(crate) scenario: Scenario,
    assertions: Vec<Assertion>,
}

/// Reads the file, runs it, and judges its assertions.
///
/// # Errors
/// See `LoadError`; a bad file is `Unsuitable`, with the line and the reason.
pub(crate) fn run(
    args: &ScenarioArgs,
    interrupted: &AtomicBool,
    output: &mut Output<'_>,
) -> Result<ScenarioRun, LoadError> {
    let path = &args.file;
    let text = fs::read_to_string(path)
        .map_err(|error| LoadError::Unsuitable(format!("{}: {error}", path.display())))?;
    let Asserted { scenario, assertions } = read(path, &text)?;
    let place = Place::new(&args.target, &scenario.load, stream::journal_for(&scenario)?)?;
    let mut target = place.reach()?;
    let mut run = scenario::run(&scenario, &place, &mut target, interrupted, output)?;
    if !run.is_interrupted {
        let names: Vec<String> = scenario.phases.iter().map(|phase| phase.name.clone()).collect();
        for assertion in &assertions {
            let check = assertion.judge(&run.result, run.prediction.as_ref(), &names);
            run.result.check(check);
        }
    }
    Ok(run)
}

/// Reads a scenario from a text.
///
/// # Errors
/// With the line and the reason.
pub(crate) fn read(path: &Path, text: &str) -> Result<Asserted, LoadError> {
    let at = |span: Range<usize>, reason: &str| {
        let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
        LoadError::Unsuitable(format!("{}, line {line}: {reason}", path.display()))
    };
    let file: File =
        toml::from_str(text).map_err(|error| at(error.span().unwrap_or_default(), error.message()))?;
    if file.phase.is_empty() {
        return Err(at(0..0, "there is no [[phase]]"));
    }
    let consumer_per_s = match file.consumer.as_ref().and_then(|consumer| consumer.rate.as_ref()) {
        Some(rate) => Some(parse_rate(rate.get_ref()).map_err(|error| at(rate.span(), &error.to_string()))?),
        None => None,
    };
    let mut phases: Vec<ScenarioPhase> = Vec::new();
    for table in &file.phase {
        let phase = phase(table, consumer_per_s, file.seed, &at)?;
        if phases.iter().any(|other| other.name == phase.name) {
            return Err(at(table.name.span(), "two phases have this name"));
        }
        phases.push(phase);
    }
    let names: Vec<String> = phases.iter().map(|phase| phase.name.clone()).collect();
    let mut assertions = Vec::new();
    for words in &file.assert {
        let parsed = Assertion::parse(words.get_ref(), &names);
        assertions.push(parsed.map_err(|reason| at(words.span(), &reason))?);
    }
    let stream = stream_of(&file).map_err(|reason| at(0..0, &reason))?;
    let scenario = Scenario {
        retention_bytes: 0,
        command: "run",
        load: stream::load(&stream)?,
        lines: stream::lines(&stream)?,
        phases,
        has_consumer: file.consumer.is_some(),
        kill_after_ns: None,
        catch_up: stream::catch_up(&stream),
        seed: file.seed,
    };
    // Records that do not fit are found here, not in mid-run.
    scenario.frame_bytes()?;
    Ok(Asserted { scenario, assertions })
}

fn phase(
    table: &PhaseTable,
    consumer_per_s: Option<f64>,
    seed: u64,
    at: &impl Fn(Range<usize>, &str) -> LoadError,
) -> Result<ScenarioPhase, LoadError> {
    let duration = |words: &Spanned<String>| {
        parse_duration(words.get_ref()).map_err(|error| at(words.span(), &error.to_string()))
    };
    let end = match (&table.duration, &table.until) {
        (Some(words), None) => PhaseEnd::After(duration(words)?),
        (None, Some(until)) => {
            let records_max = backlog_of(until.get_ref()).ok_or_else(|| {
                at(until.span(), &format!("`{}` is not of the form backlog<=1000", until.get_ref()))
            })?;
            let timeout_ns = match &table.timeout {
                Some(words) => duration(words)?,
                None => parse_duration(TIMEOUT).expect("it is one"),
            };
            PhaseEnd::Backlog { records_max, timeout_ns }
        }
        _ => return Err(at(table.name.span(), "a phase has either a duration or an until")),
    };
    if let (Some(words), None) = (&table.timeout, &table.until) {
        return Err(at(words.span(), "a timeout belongs to an until"));
    }
    let arrival = parse(table.arrival.get_ref(), end.longest_ns(), table.poisson, seed);
    let pace = match arrival.map_err(|error| at(table.arrival.span(), &error.to_string()))? {
        Arrival::Max => Pace::Closed { frames_max: u64::MAX },
        Arrival::Plan(plan) => Pace::Open(plan),
    };
    let consumer_per_s = match &table.consumer {
        None => consumer_per_s,
        Some(words) => match words.get_ref().as_str() {
            "stop" => Some(0.0),
            "unlimited" => None,
            rate => Some(parse_rate(rate).map_err(|_| {
                at(words.span(), &format!("`{rate}` is no consumer: take a rate, stop or unlimited"))
            })?),
        },
    };
    Ok(ScenarioPhase {
        name: table.name.get_ref().clone(),
        arrival: table.arrival.get_ref().clone(),
        setup: PhaseSetup { plan: PhasePlan { pace, end }, consumer_per_s },
        is_measured: table.measure,
    })
}

/// `backlog<=1000`.
fn backlog_of(until: &str) -> Option<u64> {
    let records = until.trim().strip_prefix("backlog")?.trim().strip_prefix("<=")?;
    parse_rate(records).ok().map(|records| records as u64)
}

/// The same limits as on the command line.
fn stream_of(file: &File) -> Result<StreamArgs, String> {
    let table = &file.producer;
    let size = table.size.to_string();
    let mut words = vec!["loadgen".to_owned(), "produce".to_owned()];
    let mut add = |name: &str, value: String| words.push(format!("--{name}={value}"));
    match &table.payload {
        Some(path) => add("payload", path.display().to_string()),
        None => add("size", size),
    }
    add("batch", table.batch.to_string());
    add("connections", table.connections.to_string());
    add("in-flight", table.in_flight.to_string());
    add("seed", file.seed.to_string());
    if let Some(partitions) = table.partitions {
        add("partitions", partitions.to_string());
    }
    if table.burst_after_stall {
        words.push("--burst-after-stall".to_owned());
    }
    StreamArgs::of_words(&words).map_err(|error| format!("[producer]: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
seed = 7

[producer]
connections = 2
size = 512

[consumer]
rate = "5k"

[[phase]]
name = "warm-up"
duration = "1s"
arrival = "const:2k"
measure = false

[[phase]]
name = "spike"
duration = "2s"
arrival = "const:20k"
poisson = true
consumer = "stop"

[[phase]]
name = "drain"
until = "backlog<=100"
timeout = "60s"
arrival = "const:2k"
"#;

    fn with(extra: &str) -> Result<Asserted, String> {
        let text = format!("assert = [{extra}]\n{GOOD}");
        read(Path::new("s.toml"), &text).map_err(|error| error.to_string())
    }

    #[test]
    fn scenario_is_what_its_file_says() {
        let asserted = with("\"lost = 0\", \"spike.backlog = predicted +- 5%\"").unwrap();
        let scenario = &asserted.scenario;
        assert_eq!((scenario.load.connections, scenario.load.record_bytes, scenario.seed), (2, 512, 7));
        assert!(scenario.has_consumer);
        let names: Vec<&str> = scenario.phases.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(names, ["warm-up", "spike", "drain"]);
        let rates: Vec<_> = scenario.phases.iter().map(|phase| phase.setup.consumer_per_s).collect();
        assert_eq!(rates, [Some(5_000.0), Some(0.0), Some(5_000.0)]);
        assert_eq!(
            scenario.phases[2].setup.plan.end,
            PhaseEnd::Backlog { records_max: 100, timeout_ns: 60_000_000_000 }
        );
        assert!(!scenario.phases[0].is_measured && scenario.phases[1].is_measured);
        assert_eq!(asserted.assertions.len(), 2);
    }

    #[test]
    fn bad_files_get_the_line_and_the_reason() {
        let error = |text: &str| read(Path::new("s.toml"), text).unwrap_err().to_string();
        for (from, to, reason) in [
            ("size = 512", "size = \"big\"", "line 6: "),
            ("size = 512", "sise = 512", "line 6: unknown field `sise`"),
            ("size = 512", "size = 3", "[producer]: "),
            ("rate = \"5k\"", "rate = \"fast\"", "line 9: `fast` is no rate"),
            ("const:20k", "flood:20k", "line 20: `flood:20k` is no arrival"),
            ("\"stop\"", "\"stopped\"", "line 22: `stopped` is no consumer"),
            ("duration = \"2s\"", "duration = \"2\"", "line 19: `2` is no duration"),
            ("name = \"spike\"", "name = \"drain\"", "two phases have this name"),
            ("backlog<=100", "backlog=100", "line 26: "),
            ("until = \"backlog<=100\"\n", "", "either a duration or an until"),
            ("[[phase]]", "[[face]]", "line "),
        ] {
            let text = GOOD.replace(from, to);
            assert!(error(&text).contains(reason), "{to}: {}", error(&text));
            assert!(error(&text).starts_with("s.toml, line "), "{}", error(&text));
        }
        let found = with("\"lost = 0\",\n \"peak.ack.p99 < 1ms\"").unwrap_err();
        assert!(found.starts_with("s.toml, line 2: ") && found.contains("`peak`"), "{found}");
    }
}
