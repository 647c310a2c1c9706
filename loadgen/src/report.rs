//! What a run comes to: figures with their units in their names, a verdict, one JSON object, or tables for people.
//!
//! Rates count records over the measured time; CPU and memory are of the whole run. `loadgen/README.md` describes the
//! JSON.

use std::collections::BTreeMap;

use protocol::status::Status;
use serde::{Deserialize, Serialize};

use crate::link::Role;
use crate::load::{Load, MEASURED_PHASE, Measured, Place};
use crate::percentiles::Percentiles;
use crate::subscriber::DeliveryFaults;

/// Version of the JSON object; grows when a field changes its meaning or goes.
pub(crate) const SCHEMA: u32 = 2;

/// What a run says of the broker, or of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// All is as it should be.
    Pass,
    /// The load was not what it should have been: the figures say nothing.
    Invalid,
    /// The broker did something wrong.
    Fail,
}

/// The outcome, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// The worst of all reasons.
    pub(crate) outcome: Outcome,
    /// One sentence each; none for a pass.
    pub(crate) reasons: Vec<String>,
}

impl Verdict {
    /// A pass, so far.
    pub(crate) fn new() -> Self {
        Self { outcome: Outcome::Pass, reasons: Vec::new() }
    }

    /// Adds a reason, if it holds.
    pub(crate) fn add(&mut self, holds: bool, outcome: Outcome, reason: impl FnOnce() -> String) {
        if holds {
            self.outcome = self.outcome.max(outcome);
            self.reasons.push(reason());
        }
    }
}

/// What was asked for, and what it came to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LoadShape {
    /// `open` or `closed`.
    pub(crate) r#loop: &'static str,
    /// Connections.
    pub(crate) connections: usize,
    /// Partitions of all topics.
    pub(crate) partitions: u64,
    /// Bytes of a record.
    pub(crate) record_bytes: usize,
    /// Records in a frame.
    pub(crate) batch_records: usize,
    /// Bytes of a frame.
    pub(crate) frame_bytes: usize,
    /// Frames that may be unanswered on a connection.
    pub(crate) in_flight_max: usize,
    /// Seconds that were measured.
    pub(crate) measured_s: f64,
}

/// Rates over the measured time.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rates {
    /// What the plan asks for; none in a closed loop.
    pub(crate) offered_records_per_s: Option<f64>,
    /// What was sent in time and stored, of what was planned; in a closed loop, what was acknowledged.
    pub(crate) achieved_records_per_s: f64,
    /// Records whose acknowledgement came within the measured time.
    pub(crate) acked_records_per_s: f64,
    /// The same in bytes of records (10^6 bytes).
    pub(crate) acked_mb_per_s: f64,
}

/// How frames were answered, over the whole run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answers {
    /// Frames that were stored.
    pub(crate) ok_frames: u64,
    /// Frames refused with `Busy`.
    pub(crate) busy_frames: u64,
    /// Frames refused, by status.
    pub(crate) refused_frames_by_status: BTreeMap<String, u64>,
    /// Frames that were never answered.
    pub(crate) unknown_frames: u64,
    /// Frames of the plan that were never sent.
    pub(crate) unsent_frames: u64,
    /// Frames that waited in the generator for the cap or a pause.
    pub(crate) held_frames: u64,
    /// Connections that broke.
    pub(crate) lost_connections: u64,
}

/// What a process used during the run, warm-up and drain included.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Usage {
    /// CPU, of which 100 is one core.
    pub(crate) cpu_percent: f64,
    /// CPU time for one acknowledged record.
    pub(crate) cpu_us_per_record: f64,
    /// Resident memory at the end; unknown for the generator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resident_bytes: Option<u64>,
}

/// What a subscriber saw.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Deliveries {
    /// Records that came, each counted once.
    pub(crate) delivered_records: u64,
    /// Acknowledged records that did not come.
    pub(crate) missing_records: u64,
    /// What was wrong.
    pub(crate) faults: DeliveryFaults,
}

/// Latencies by name: `response` from when a frame should have been sent, `service` from when it was, until it was
/// answered; `send_lag` is what the generator itself was late; `delivery_*` until a record was delivered.
pub(crate) type Latencies = BTreeMap<&'static str, Percentiles>;

/// One run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Version of this object.
    pub(crate) schema: u32,
    /// `latency` or `throughput`.
    pub(crate) command: &'static str,
    /// `broker`, `floor` or `remote`.
    pub(crate) target: &'static str,
    /// Where it was.
    pub(crate) address: String,
    /// How it makes records durable.
    pub(crate) durability: Option<String>,
    /// How it waits.
    pub(crate) waiting: Option<String>,
    /// Stands in every record.
    pub(crate) run_id: u32,
    /// What was sent.
    pub(crate) load: LoadShape,
    /// Core of the broker that was started; unknown for a remote one.
    pub(crate) broker_core: Option<usize>,
    /// Core of the load.
    pub(crate) loadgen_core: usize,
    /// The result in one word, and why.
    pub(crate) verdict: Verdict,
    /// How much.
    pub(crate) rates: Rates,
    /// How fast.
    pub(crate) latencies: Latencies,
    /// How it was answered.
    pub(crate) answers: Answers,
    /// What was delivered, if that was asked for.
    pub(crate) deliveries: Option<Deliveries>,
    /// What the broker used.
    pub(crate) broker: Usage,
    /// What the load's thread used.
    pub(crate) loadgen: Usage,
}

impl Report {
    /// Puts a run together; the verdict is still to be found.
    pub(crate) fn new(command: &'static str, load: &Load, place: &Place, measured: &Measured) -> Self {
        let seconds = measured.driven.tally.phases[MEASURED_PHASE].seconds().max(1e-9);
        let broker_cpu_ns = measured.stats_after.cpu_ns.saturating_sub(measured.stats_before.cpu_ns);
        let resident_bytes = Some(measured.stats_after.resident_bytes);
        let stats = &measured.stats_after;
        Self {
            schema: SCHEMA,
            command,
            target: measured.target,
            address: measured.address.to_string(),
            durability: stats.durability.clone().or_else(|| measured.grants.durability.clone()),
            waiting: stats.waiting.clone(),
            run_id: measured.run_id,
            load: load_shape(load, measured, seconds),
            broker_core: place.remote.is_none().then_some(place.child.core).flatten(),
            loadgen_core: place.core,
            verdict: Verdict::new(),
            rates: rates(load, measured, seconds),
            latencies: latencies(load, measured),
            answers: answers(measured),
            deliveries: deliveries(measured),
            broker: usage(measured, broker_cpu_ns, resident_bytes),
            loadgen: usage(measured, measured.driven.cpu_ns, None),
        }
    }

    /// The figures that runs are compared by, each with its name and unit.
    pub(crate) fn figures(&self) -> Vec<(String, f64)> {
        let mut figures = Vec::new();
        for (name, percentiles) in &self.latencies {
            let values = [
                ("p50_us", percentiles.p50_us),
                ("p90_us", percentiles.p90_us),
                ("p99_us", percentiles.p99_us),
                ("p999_us", percentiles.p999_us),
                ("p9999_us", percentiles.p9999_us),
                ("max_us", percentiles.max_us),
            ];
            let known =
                values.into_iter().filter_map(|(unit, value)| Some((format!("{name}_{unit}"), value?)));
            figures.extend(known);
        }
        figures.extend([
            ("acked_records_per_s".to_owned(), self.rates.acked_records_per_s),
            ("acked_mb_per_s".to_owned(), self.rates.acked_mb_per_s),
            ("broker_cpu_percent".to_owned(), self.broker.cpu_percent),
            ("broker_cpu_us_per_record".to_owned(), self.broker.cpu_us_per_record),
        ]);
        figures
    }
}

fn load_shape(load: &Load, measured: &Measured, measured_s: f64) -> LoadShape {
    LoadShape {
        r#loop: if load.rate_records_per_s.is_some() { "open" } else { "closed" },
        connections: load.connections,
        partitions: u64::from(load.topics) * u64::from(load.partitions),
        record_bytes: load.record_bytes,
        batch_records: load.batch_records,
        frame_bytes: measured.frame_bytes,
        in_flight_max: measured.in_flight_max,
        measured_s,
    }
}

fn rates(load: &Load, measured: &Measured, seconds: f64) -> Rates {
    let tally = &measured.driven.tally.phases[MEASURED_PHASE];
    let records_per_s = |frames: u64| frames as f64 * load.batch_records as f64 / seconds;
    let acked_records_per_s = tally.acked_records as f64 / seconds;
    let achieved_records_per_s = match measured.planned_frames {
        Some(_) => records_per_s(tally.achieved_frames),
        None => acked_records_per_s,
    };
    Rates {
        offered_records_per_s: measured.planned_frames.map(records_per_s),
        achieved_records_per_s,
        acked_records_per_s,
        acked_mb_per_s: acked_records_per_s * load.record_bytes as f64 / 1e6,
    }
}

fn latencies(load: &Load, measured: &Measured) -> Latencies {
    let tally = &measured.driven.tally.phases[MEASURED_PHASE];
    let mut latencies = Latencies::new();
    latencies.insert("service", Percentiles::of(&tally.service));
    // In a closed loop a frame is due when it is sent: the other two would say the same again, or nothing.
    if load.rate_records_per_s.is_some() {
        latencies.insert("response", Percentiles::of(&tally.response));
        latencies.insert("send_lag", Percentiles::of(&tally.send_lag));
    }
    if load.end_to_end {
        latencies.insert("delivery_response", Percentiles::of(&tally.delivery_response));
        latencies.insert("delivery_service", Percentiles::of(&tally.delivery_service));
    }
    latencies
}

fn answers(measured: &Measured) -> Answers {
    let tally = &measured.driven.tally;
    let status_name = |code: u16| {
        Status::from_code(code).map_or_else(|| format!("status {code}"), |status| format!("{status:?}"))
    };
    Answers {
        ok_frames: tally.ok_frames(),
        busy_frames: tally.busy_frames(),
        refused_frames_by_status: tally.refusals().map(|(code, count)| (status_name(code), count)).collect(),
        unknown_frames: tally.unknown_frames,
        unsent_frames: measured.unsent_frames,
        held_frames: tally.held_frames(),
        lost_connections: tally.lost_connections,
    }
}

fn deliveries(measured: &Measured) -> Option<Deliveries> {
    let subscriber = measured.driven.roles.iter().find_map(Role::subscriber)?;
    let findings = measured.driven.ledger.as_ref()?.findings();
    let mut faults = subscriber.faults();
    faults.foreign_records += findings.phantom_records;
    Some(Deliveries {
        delivered_records: findings.read_records - findings.duplicated_records,
        missing_records: findings.lost_records,
        faults,
    })
}

fn usage(measured: &Measured, cpu_ns: u64, resident_bytes: Option<u64>) -> Usage {
    let elapsed_ns = measured.driven.elapsed_ns.max(1);
    Usage {
        cpu_percent: cpu_ns as f64 * 100.0 / elapsed_ns as f64,
        cpu_us_per_record: cpu_ns as f64 / 1e3 / measured.driven.tally.acked_records.max(1) as f64,
        resident_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worst_reason_decides() {
        let mut verdict = Verdict::new();
        verdict.add(false, Outcome::Fail, || "not so".to_owned());
        assert_eq!(verdict, Verdict::new());
        verdict.add(true, Outcome::Fail, || "lost".to_owned());
        verdict.add(true, Outcome::Invalid, || "late".to_owned());
        assert_eq!((verdict.outcome, verdict.reasons.len()), (Outcome::Fail, 2));
    }
}
