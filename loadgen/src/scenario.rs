//! A run of phases: start or find the broker, connect, drive, watch, and put together what came of it.
//!
//! Every command with phases (`peak-shave`, `produce`, `consume`, `replay`, `soak`, `run`) is a scenario and a few
//! criteria of its own. What any run must not do is judged here.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;

use client::connection::{Grants, Start, Stats};
use protocol::status::Status;
use reactor::affinity::pin_current_thread;
use reactor::clock;

use crate::arrivals::Arrivals;
use crate::connection::{Producer, ProducerParts, Source};
use crate::control::Control;
use crate::driver::drive;
use crate::environment::Environment;
use crate::fluid::Fluid;
use crate::folder::RunFolder;
use crate::hlog::{Span, spectrum};
use crate::html;
use crate::interval::{IntervalFeed, IntervalPort, interval_channel};
use crate::kill::Kill;
use crate::latency::{judge_interrupt, judge_lag};
use crate::ledger::Ledger;
use crate::link::Role;
use crate::load::{Load, LoadError, Place, allowed_in_flight, fresh_run_id, heartbeat_ns, share_of};
use crate::pace::{CatchUp, Pace, PhaseEnd, PhasePlan};
use crate::payload::{LineFrames, Payload};
use crate::percentiles::Percentiles;
use crate::report::{Outcome, Verdict};
use crate::result::{
    AnswersResult, BrokerResult, IntegrityResult, KillResult, LoadResult, PhaseResult, RESULT_SCHEMA,
    RunResult, Second,
};
use crate::setup::{DriveSetup, Driven, PhaseSetup, Signals};
use crate::subscriber::{CREDIT_RECORDS_MAX, Subscriber, SubscriberParts, credit_of};
use crate::tally::PhaseTally;
use crate::target::Target;
use crate::template::Template;
use crate::watch::{Lines, Viewer, WatchSetup, Watched, watch};

/// What a consumer of fixed rate holds, at most: what it consumes in this time.
const CONSUMER_WINDOW_S: f64 = 0.05;
/// And at least so many records.
const CONSUMER_WINDOW_RECORDS_MIN: u64 = 64;
/// Share of the offered load that must have been achieved.
const ACHIEVED_MIN: f64 = 0.99;

/// One phase.
#[derive(Clone, Debug)]
pub(crate) struct ScenarioPhase {
    /// Its name, unlike the others'.
    pub(crate) name: String,
    /// How records arrive, for people.
    pub(crate) arrival: String,
    /// When frames are sent, and how fast is consumed.
    pub(crate) setup: PhaseSetup,
    /// Whether its figures count.
    pub(crate) is_measured: bool,
}

impl ScenarioPhase {
    /// One of constant rate and fixed length.
    pub(crate) fn constant(name: &str, per_s: f64, length_ns: u64, consumer_per_s: Option<f64>) -> Self {
        let plan = PhasePlan::fixed(Pace::Open(Arrivals::constant(per_s, length_ns)), length_ns);
        Self {
            name: name.to_owned(),
            arrival: format!("const:{per_s:.0}"),
            setup: PhaseSetup { plan, consumer_per_s },
            is_measured: true,
        }
    }

    /// The same, and its figures do not count.
    pub(crate) fn unmeasured(self) -> Self {
        Self { is_measured: false, ..self }
    }

    /// One of constant rate that ends with the backlog.
    pub(crate) fn drain(name: &str, per_s: f64, end: PhaseEnd, consumer_per_s: Option<f64>) -> Self {
        let phase = Self::constant(name, per_s, end.longest_ns(), consumer_per_s);
        let plan = PhasePlan { end, ..phase.setup.plan };
        Self { setup: PhaseSetup { plan, consumer_per_s }, ..phase }
    }
}

/// What is to be run.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// Name of the command.
    pub(crate) command: &'static str,
    /// What is sent, its rate and times excepted.
    pub(crate) load: Load,
    /// The lines of a file, instead of a filler.
    pub(crate) lines: Option<Payload>,
    /// In their order.
    pub(crate) phases: Vec<ScenarioPhase>,
    /// Whether somebody consumes.
    pub(crate) has_consumer: bool,
    /// When the broker is killed, since the start of the run.
    pub(crate) kill_after_ns: Option<u64>,
    /// What a connection does that has fallen behind.
    pub(crate) catch_up: CatchUp,
    /// Decides all that is random.
    pub(crate) seed: u64,
    /// Bytes that the topic keeps in each partition; 0 for all.
    pub(crate) retention_bytes: u64,
}

/// Where a run's lines and files go.
pub(crate) struct Output<'a> {
    /// The folder, if the user named one.
    pub(crate) folder: Option<PathBuf>,
    /// Whether there is to be none.
    pub(crate) no_folder: bool,
    /// Where lines go.
    pub(crate) lines: Lines,
    /// Who looks at seconds beside.
    pub(crate) viewer: &'a mut dyn Viewer,
}

/// A viewer that does not look.
pub(crate) struct NoViewer;

impl Viewer for NoViewer {
    fn on_second(&mut self, _: &Second, _: Option<std::time::Duration>) {}
}

/// A run that is over; criteria of the command's own are still to be added.
pub(crate) struct ScenarioRun {
    /// What it came to.
    pub(crate) result: RunResult,
    /// Second by second.
    pub(crate) series: Vec<Second>,
    /// What arithmetic says.
    pub(crate) prediction: Option<Fluid>,
    /// SIGINT or SIGTERM ended it before its time.
    pub(crate) is_interrupted: bool,
    folder: Option<RunFolder>,
}

impl Scenario {
    /// Frames of it are at most so long.
    ///
    /// # Errors
    /// When its records do not fit into a batch.
    pub(crate) fn frame_bytes(&self) -> Result<usize, LoadError> {
        Ok(Template::new(self.load.shape(), 0)?.frame_bytes())
    }

    /// What arithmetic says, if it can say anything.
    pub(crate) fn predict(&self) -> Option<Fluid> {
        self.has_consumer.then(|| Fluid::predict(&self.setups())).flatten()
    }

    /// Records of all its phases by plan, and how long they take by arithmetic or, without, at most.
    pub(crate) fn extent(&self) -> (f64, f64) {
        let setups = self.setups();
        let predicted = Fluid::predict(&setups);
        let (mut records, mut seconds) = (0.0, 0.0);
        for (number, setup) in setups.iter().enumerate() {
            let length_ns = match &predicted {
                Some(fluid) => fluid.phases[number].end_ns - fluid.phases[number].start_ns,
                None => setup.plan.end.longest_ns(),
            };
            if let Pace::Open(plan) = &setup.plan.pace {
                records += plan.mass_until(length_ns);
            }
            seconds += length_ns as f64 / 1e9;
        }
        (records, seconds)
    }

    fn setups(&self) -> Vec<PhaseSetup> {
        self.phases.iter().map(|phase| phase.setup.clone()).collect()
    }

    /// Records that the consumer may hold.
    fn credit_records(&self) -> u64 {
        let rates: Vec<Option<f64>> = self.phases.iter().map(|phase| phase.setup.consumer_per_s).collect();
        if rates.contains(&None) {
            return CREDIT_RECORDS_MAX;
        }
        let highest = rates.into_iter().flatten().fold(0.0, f64::max);
        let least = CONSUMER_WINDOW_RECORDS_MIN.max(2 * self.load.batch_records as u64);
        ((highest * CONSUMER_WINDOW_S) as u64).clamp(least, CREDIT_RECORDS_MAX)
    }
}

/// Runs a scenario on a broker.
///
/// # Errors
/// See `LoadError`. What the broker did wrong is in the result.
pub(crate) fn run(
    scenario: &Scenario,
    place: &Place,
    target: &mut Target,
    interrupted: &AtomicBool,
    output: &mut Output<'_>,
) -> Result<ScenarioRun, LoadError> {
    let address = target.address();
    let run_id = fresh_run_id();
    let grants = Control::open(address)?.grants().clone();
    let in_flight_max = allowed_in_flight(scenario.load.in_flight_max, scenario.frame_bytes()?, &grants)?;
    let started_ms = clock::now().wall_ms;
    let mut folder = open_folder(scenario, target, output, started_ms)?;
    let (port, feed) = interval_channel();
    let mut setup = set_up(scenario, place, target, &grants, (run_id, in_flight_max, port))?;
    let (_, seconds_in_all) = scenario.extent();
    let prediction = scenario.predict();
    let is_length_known =
        prediction.is_some() || setup.phases.iter().all(|phase| matches!(phase.plan.end, PhaseEnd::After(_)));
    let names: Vec<String> = scenario.phases.iter().map(|phase| phase.name.clone()).collect();
    let watching = WatchSetup {
        phases: &names,
        prediction: prediction.as_ref(),
        seconds_in_all: is_length_known.then_some(seconds_in_all),
        probe: target.probe(),
        lines: output.lines,
    };
    let stats_before = Control::open(address)?.stats()?;
    let is_over = AtomicBool::new(false);
    let topic = topic(run_id);
    let kill = scenario.kill_after_ns.map(|after_ns| {
        let (revival, sockets) = channel();
        setup.revival = Some(sockets);
        let topic = scenario.has_consumer.then_some(topic.as_str());
        let producers = scenario.load.connections;
        Kill { target: &mut *target, after_ns, producers, topic, revival, is_over: &is_over }
    });
    let signals = Signals { interrupted, sent_frames: &AtomicU64::new(0) };
    let Beside { driven, watched, kill } = drive_watched(
        (setup, place.core),
        signals,
        (&watching, &feed, folder.as_mut(), output.viewer),
        (kill, &is_over),
    )?;
    let asked = Control::open(address).and_then(|mut control| control.stats());
    let stats_after = asked.as_ref().map_or_else(|_| stats_before.clone(), Clone::clone);
    let made = Made {
        scenario,
        place,
        target,
        grants: &grants,
        run_id,
        in_flight_max,
        started_ms,
        driven: &driven,
        watched: &watched,
        kill,
        stats: (&stats_before, &stats_after),
    };
    let mut result = made.result()?;
    if let Err(error) = asked {
        result.verdict.add(true, Outcome::Fail, || format!("the broker does not answer any more: {error}"));
    }
    if let Some(folder) = &folder {
        write_phases(folder, scenario, &driven, started_ms)?;
    }
    let is_interrupted = driven.is_interrupted;
    Ok(ScenarioRun { result, series: watched.series, prediction, is_interrupted, folder })
}

/// The folder with the environment in it, if there is to be one.
fn open_folder(
    scenario: &Scenario,
    target: &Target,
    output: &Output<'_>,
    started_ms: u64,
) -> Result<Option<RunFolder>, LoadError> {
    if output.no_folder {
        return Ok(None);
    }
    let folder = RunFolder::create(output.folder.as_deref(), scenario.command, started_ms)?;
    folder.write_json("env.json", &Environment::read(target.arguments(), target.directory()))?;
    Ok(Some(folder))
}

/// All that the driver needs: run id, frames in flight and the port are those of the run.
fn set_up(
    scenario: &Scenario,
    place: &Place,
    target: &Target,
    grants: &Grants,
    (run_id, in_flight_max, port): (u32, usize, IntervalPort),
) -> Result<DriveSetup, LoadError> {
    let (records, _) = scenario.extent();
    let records_each = (records / scenario.load.connections.max(1) as f64 * 1.1) as u64;
    Ok(DriveSetup {
        links: connect(scenario, target, run_id, in_flight_max)?,
        phases: scenario.setups(),
        catch_up: scenario.catch_up,
        intervals: Some(port),
        revival: None,
        ledger: scenario.has_consumer.then(|| Ledger::new(scenario.load.connections, records_each)),
        frame_bytes_max: grants.frame_bytes_max,
        heartbeat_ns: heartbeat_ns(grants),
        worker_cpus: place.cpus.clone(),
    })
}

impl ScenarioRun {
    /// Writes the rest of the folder, and gives its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn finish(&self) -> Result<Option<PathBuf>, LoadError> {
        let Some(folder) = &self.folder else { return Ok(None) };
        folder.write_json("result.json", &self.result)?;
        folder.write_text("report.html", &html::page(&self.result, &self.series))?;
        Ok(Some(folder.path().to_owned()))
    }
}

type Watching<'a> = (&'a WatchSetup<'a>, &'a IntervalFeed, Option<&'a mut RunFolder>, &'a mut dyn Viewer);

/// What came of a run and of what was done beside it.
struct Beside {
    driven: Driven,
    watched: Watched,
    kill: Option<KillResult>,
}

/// Drives on a pinned thread of its own, and watches on this one.
fn drive_watched(
    (setup, core): (DriveSetup, usize),
    signals: Signals<'_>,
    (watching, feed, folder, viewer): Watching<'_>,
    (kill, is_over): (Option<Kill<'_>>, &AtomicBool),
) -> Result<Beside, LoadError> {
    std::thread::scope(|scope| {
        let kill = kill.map(|kill| scope.spawn(move || kill.carry_out()));
        let load = scope.spawn(move || -> Result<Driven, LoadError> {
            pin_current_thread(core)?;
            Ok(drive(setup, signals)?)
        });
        let watched = watch(watching, feed, folder, viewer);
        let driven = load.join().expect("a panic ends the process");
        is_over.store(true, Ordering::Relaxed);
        // Why there is no broker any more says more than what the loop saw of it.
        let kill = kill.map(|kill| kill.join().expect("a panic ends the process")).transpose()?.flatten();
        Ok(Beside { driven: driven?, watched: watched?, kill })
    })
}

/// The topic of a run.
fn topic(run_id: u32) -> String {
    format!("loadgen-{run_id:08x}")
}

/// Creates the topic, and makes all connections of a run, producers first.
fn connect(
    scenario: &Scenario,
    target: &Target,
    run_id: u32,
    in_flight_max: usize,
) -> Result<Vec<(OwnedFd, Role)>, LoadError> {
    let (load, address) = (&scenario.load, target.address());
    let topic = topic(run_id);
    let handles = Control::open(address)?.create_topic(&topic, load.partitions, scenario.retention_bytes)?;
    let filler = || Payload::filler(load.record_bytes, u64::from(run_id));
    let mut links = Vec::with_capacity(load.connections + 1);
    for connection in 0..load.connections {
        let source = match &scenario.lines {
            Some(lines) => Source::Lines(Box::new(LineFrames::new(load.shape(), lines.clone())?)),
            None => Source::Stamped(Box::new(Template::new(load.shape(), u64::from(run_id))?)),
        };
        let producer = Producer::new(ProducerParts {
            run_id,
            connection: connection as u16,
            batch_records: load.batch_records,
            in_flight_max,
            source,
            handles: share_of(&handles, connection, load.connections),
            keeps_outcomes: false,
        });
        links.push((Control::open(address)?.into_socket()?, Role::Producer(producer)));
    }
    if scenario.has_consumer {
        // Before the first record is sent, so that none is missed.
        let credit_records = scenario.credit_records();
        let mut control = Control::open(address)?;
        let partitions = control.subscribe(&topic, Start::Latest, credit_of(credit_records))?;
        let subscriber = Subscriber::new(SubscriberParts {
            run_id,
            connections: load.connections,
            partitions: &partitions,
            payload: scenario.lines.clone().unwrap_or_else(filler),
            credit_records,
        });
        links.push((control.into_socket()?, Role::Subscriber(subscriber)));
    }
    Ok(links)
}

/// All that a result is made of.
struct Made<'a> {
    scenario: &'a Scenario,
    place: &'a Place,
    target: &'a Target,
    grants: &'a Grants,
    run_id: u32,
    in_flight_max: usize,
    started_ms: u64,
    driven: &'a Driven,
    watched: &'a Watched,
    kill: Option<KillResult>,
    /// Before and after.
    stats: (&'a Stats, &'a Stats),
}

impl Made<'_> {
    fn result(&self) -> Result<RunResult, LoadError> {
        let Self { scenario, place, target, driven, stats: (_, after), .. } = self;
        let elapsed_ns = driven.elapsed_ns.max(1) as f64;
        let mut result = RunResult {
            schema: RESULT_SCHEMA,
            command: scenario.command.to_owned(),
            command_line: std::env::args().collect(),
            started_ms: self.started_ms,
            target: target.name().to_owned(),
            address: target.address().to_string(),
            durability: after.durability.clone().or_else(|| self.grants.durability.clone()),
            waiting: after.waiting.clone(),
            run_id: self.run_id,
            broker_core: place.remote.is_none().then_some(place.child.core).flatten(),
            loadgen_core: place.core,
            load: self.load()?,
            phases: self.phases(),
            predictions: Vec::new(),
            checks: Vec::new(),
            answers: self.answers(),
            integrity: self.integrity(),
            kill: self.kill,
            broker: self.broker(elapsed_ns),
            loadgen_cpu_percent: driven.cpu_ns as f64 * 100.0 / elapsed_ns,
            notes: self.notes(),
            verdict: Verdict::new(),
        };
        judge_interrupt(&mut result.verdict, driven.is_interrupted);
        if self.kill.is_none() {
            judge_load(&mut result);
        }
        judge_integrity(&mut result);
        Ok(result)
    }

    fn load(&self) -> Result<LoadResult, LoadError> {
        let load = &self.scenario.load;
        let lines_mean = self.scenario.lines.as_ref().map(Payload::record_bytes_mean);
        Ok(LoadResult {
            connections: load.connections,
            partitions: load.partitions,
            record_bytes: lines_mean.unwrap_or(load.record_bytes as f64),
            batch_records: load.batch_records,
            frame_bytes: self.scenario.frame_bytes()?,
            in_flight_max: self.in_flight_max,
            catch_up: match self.scenario.catch_up {
                CatchUp::Paced => "paced".to_owned(),
                CatchUp::Burst => "burst".to_owned(),
            },
            seed: self.scenario.seed,
        })
    }

    fn phases(&self) -> Vec<PhaseResult> {
        let tallies = &self.driven.tally.phases;
        let start_ns = tallies.first().map_or(0, |tally| tally.window.start);
        let batch_records = self.scenario.load.batch_records as f64;
        let both = self.scenario.phases.iter().zip(tallies);
        // Phases that an interrupt left no time for did not happen.
        let begun = both.filter(|(_, tally)| tally.window.start < tally.window.end);
        begun.map(|(phase, tally)| phase_result(phase, tally, start_ns, batch_records)).collect()
    }

    fn answers(&self) -> AnswersResult {
        let tally = &self.driven.tally;
        let name = |code: u16| {
            Status::from_code(code).map_or_else(|| format!("status {code}"), |status| format!("{status:?}"))
        };
        AnswersResult {
            sent_frames: tally.sent_frames,
            ok_frames: tally.ok_frames(),
            busy_frames: tally.busy_frames(),
            refused_frames_by_status: tally.refusals().map(|(code, count)| (name(code), count)).collect(),
            unknown_frames: tally.unknown_frames,
            lost_connections: tally.lost_connections,
        }
    }

    fn integrity(&self) -> Option<IntegrityResult> {
        // After an interrupt nobody has waited for what was still to come.
        let ledger = self.driven.ledger.as_ref().filter(|_| !self.driven.is_interrupted)?;
        let faults = self.driven.roles.iter().find_map(Role::subscriber)?.faults();
        let mut findings = ledger.findings();
        findings.reordered_records = faults.reordered_records;
        findings.corrupted_records = faults.corrupted_records + faults.corrupt_batches;
        Some(IntegrityResult { findings, faults })
    }

    fn broker(&self, elapsed_ns: f64) -> BrokerResult {
        let (before, after) = self.stats;
        let cpu_ns = after.cpu_ns.saturating_sub(before.cpu_ns) as f64;
        BrokerResult {
            cpu_percent: Some(cpu_ns * 100.0 / elapsed_ns),
            resident_bytes_max: self.watched.resident_bytes_max.max(Some(after.resident_bytes)),
            memory_budget_bytes: Some(after.memory_budget_bytes).filter(|bytes| *bytes > 0),
        }
    }

    fn notes(&self) -> Vec<String> {
        let place = self.place;
        let mut notes = Vec::new();
        if cfg!(debug_assertions) {
            notes.push("this is a debug build: its figures are worth little".to_owned());
        }
        if place.remote.is_none() && place.child.core == Some(place.core) {
            notes.push(format!("broker and load share core {}", place.core));
        }
        if self.grants.volatile_storage {
            notes.push("the broker's storage does not survive a power cut".to_owned());
        }
        notes
    }
}

fn phase_result(phase: &ScenarioPhase, tally: &PhaseTally, start_ns: u64, batch_records: f64) -> PhaseResult {
    let seconds = tally.seconds().max(1e-9);
    let per_s = |records: f64| records / seconds;
    let is_open = matches!(phase.setup.plan.pace, Pace::Open(_));
    let offered_frames = (tally.sent_frames + tally.unsent_frames) as f64;
    let latencies = [
        ("ack", &tally.response),
        ("ack_service", &tally.service),
        ("delivery", &tally.delivery_response),
        ("send_lag", &tally.send_lag),
    ];
    let latencies = latencies.into_iter().filter(|(_, histogram)| !histogram.is_empty());
    PhaseResult {
        name: phase.name.clone(),
        arrival: phase.arrival.clone(),
        start_s: tally.window.start.saturating_sub(start_ns) as f64 / 1e9,
        seconds: tally.seconds(),
        is_measured: phase.is_measured,
        consumer_records_per_s: phase.setup.consumer_per_s,
        offered_records_per_s: is_open.then(|| per_s(offered_frames * batch_records)),
        achieved_records_per_s: per_s(tally.achieved_frames as f64 * batch_records),
        acked_records_per_s: per_s(tally.acked_records as f64),
        consumed_records_per_s: per_s(tally.consumed_records as f64),
        refused_frames: tally.refused_frames,
        held_frames: tally.held_frames,
        unsent_frames: tally.unsent_frames,
        backlog_records_max: tally.backlog_records_max,
        latencies: latencies.map(|(name, histogram)| (name.to_owned(), Percentiles::of(histogram))).collect(),
        ack_spectrum: spectrum(&tally.response),
    }
}

/// What a broker must not do that was left alone, and what makes a run's figures worthless.
fn judge_load(result: &mut RunResult) {
    let verdict = &mut result.verdict;
    for phase in result.phases.iter().filter(|phase| phase.is_measured) {
        let name = &phase.name;
        let p99 = |kind: &str| phase.latencies.get(kind).and_then(|percentiles| percentiles.p99_us);
        if let Some(offered) = phase.offered_records_per_s.filter(|offered| *offered > 0.0) {
            let achieved = phase.achieved_records_per_s;
            verdict.add(achieved < offered * ACHIEVED_MIN, Outcome::Invalid, || {
                format!("OVERLOADED in {name}: {achieved:.0} of {offered:.0} records/s were sent in time and stored")
            });
            let samples = phase.latencies.get("ack").map_or(0, |ack| ack.samples);
            verdict.add(samples == 0, Outcome::Invalid, || format!("nothing was acknowledged in {name}"));
            if let (Some(lag), Some(ack)) = (p99("send_lag"), p99("ack")) {
                judge_lag(verdict, &format!(" in {name}"), lag, ack);
            }
        }
    }
    let AnswersResult { unknown_frames, lost_connections, refused_frames_by_status, .. } = &result.answers;
    verdict
        .add(*unknown_frames > 0, Outcome::Fail, || format!("{unknown_frames} frames were never answered"));
    verdict.add(*lost_connections > 0, Outcome::Fail, || format!("{lost_connections} connections broke"));
    for (status, count) in refused_frames_by_status {
        verdict.add(status != "Busy", Outcome::Fail, || format!("{count} frames were refused with {status}"));
    }
}

/// What no broker may do, whatever was done to it.
fn judge_integrity(result: &mut RunResult) {
    let Some(IntegrityResult { findings, faults }) = result.integrity else { return };
    let count = findings.fault_count() + faults.foreign_records;
    let found = format!(
        "lost {}, duplicated {}, reordered {}, corrupted {}, phantom {} of {} acknowledged",
        findings.lost_records,
        findings.duplicated_records,
        findings.reordered_records,
        findings.corrupted_records,
        findings.phantom_records + faults.foreign_records,
        findings.acked_records
    );
    result.require("every record once, in order, byte for byte", count == 0, found, "0 of each");
}

/// The histograms of all phases, to be merged with those of other runs.
fn write_phases(
    folder: &RunFolder,
    scenario: &Scenario,
    driven: &Driven,
    started_ms: u64,
) -> std::io::Result<()> {
    let tallies = &driven.tally.phases;
    let start_ns = tallies.first().map_or(0, |tally| tally.window.start);
    let histograms = scenario.phases.iter().zip(tallies).flat_map(|(phase, tally)| {
        let start_s = tally.window.start.saturating_sub(start_ns) as f64 / 1e9;
        let span = Span { start_s, seconds: tally.seconds() };
        [
            ("ack", &tally.response),
            ("ack_service", &tally.service),
            ("delivery", &tally.delivery_response),
            ("send_lag", &tally.send_lag),
        ]
        .map(|(kind, histogram)| (phase.name.as_str(), kind, span, histogram))
    });
    folder.write_phases(started_ms, histograms)
}
