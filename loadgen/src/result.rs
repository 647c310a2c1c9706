//! What a run of phases came to, as it stands in `result.json`. `loadgen/README.md` describes every field.
//!
//! Units are in the names: `_us`, `_s`, `_bytes`, `_per_s`, `_percent`. What is not known is `null`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::checker::Findings;
use crate::percentiles::Percentiles;
use crate::report::{Outcome, Verdict};
use crate::subscriber::DeliveryFaults;

/// Version of `result.json`; grows when a field changes its meaning or goes.
pub(crate) const RESULT_SCHEMA: u32 = 1;

/// One phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PhaseResult {
    /// Its name.
    pub(crate) name: String,
    /// How records arrive, in the words of the arrival grammar.
    pub(crate) arrival: String,
    /// When it began.
    pub(crate) start_s: f64,
    /// Its length.
    pub(crate) seconds: f64,
    /// Whether its figures count; a warm-up's do not.
    pub(crate) is_measured: bool,
    /// Rate of the consumer: none for no limit.
    pub(crate) consumer_records_per_s: Option<f64>,
    /// By the plan; none where records were sent as fast as answers came.
    pub(crate) offered_records_per_s: Option<f64>,
    /// Due and sent in it, and stored.
    pub(crate) achieved_records_per_s: f64,
    /// Acknowledged while it ran.
    pub(crate) acked_records_per_s: f64,
    /// Consumed while it ran.
    pub(crate) consumed_records_per_s: f64,
    /// Frames due in it that were refused.
    pub(crate) refused_frames: u64,
    /// Frames due in it that waited in the generator for the cap or a pause.
    pub(crate) held_frames: u64,
    /// Frames due in it that were never sent.
    pub(crate) unsent_frames: u64,
    /// Most records that waited to be consumed.
    pub(crate) backlog_records_max: u64,
    /// By name: `ack` from intended, `ack_service` from sent, `delivery` from intended, `send_lag`.
    pub(crate) latencies: BTreeMap<String, Percentiles>,
    /// Points of the curve of `ack`, for the plot.
    pub(crate) ack_spectrum: Vec<SpectrumPoint>,
}

/// One point of a latency-by-percentile curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SpectrumPoint {
    /// Share of samples that are at most `us`, in percent.
    pub(crate) percentile: f64,
    /// Latency.
    pub(crate) us: f64,
}

/// One figure that arithmetic gives, beside what was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Prediction {
    /// Of what.
    pub(crate) name: String,
    /// How it is computed.
    pub(crate) formula: String,
    /// `records` or `s`.
    pub(crate) unit: String,
    /// By arithmetic.
    pub(crate) predicted: f64,
    /// By the run.
    pub(crate) measured: Option<f64>,
}

impl Prediction {
    /// How far the measured value is off, as a part of the predicted one.
    pub(crate) fn error(&self) -> Option<f64> {
        self.measured.filter(|_| self.predicted > 0.0).map(|measured| measured / self.predicted - 1.0)
    }
}

/// One criterion, and whether it is met.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Check {
    /// What must hold.
    pub(crate) name: String,
    /// Whether it does; none if that could not be measured.
    pub(crate) outcome: Option<Outcome>,
    /// What was found.
    pub(crate) found: String,
    /// What was asked for.
    pub(crate) wanted: String,
}

/// What was sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LoadResult {
    /// Connections that send.
    pub(crate) connections: usize,
    /// Partitions of the topic.
    pub(crate) partitions: u32,
    /// Bytes of a record; of a file's lines, the mean.
    pub(crate) record_bytes: f64,
    /// Records in a frame.
    pub(crate) batch_records: usize,
    /// Bytes of the longest frame.
    pub(crate) frame_bytes: usize,
    /// Frames that may be unanswered on a connection.
    pub(crate) in_flight_max: usize,
    /// What a connection does that has fallen behind: `paced` or `burst`.
    pub(crate) catch_up: String,
    /// Decides all that is random.
    pub(crate) seed: u64,
}

/// How frames were answered, over the whole run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct AnswersResult {
    /// Frames sent.
    pub(crate) sent_frames: u64,
    /// Frames that were stored.
    pub(crate) ok_frames: u64,
    /// Frames refused with `Busy`.
    pub(crate) busy_frames: u64,
    /// Frames refused, by status.
    pub(crate) refused_frames_by_status: BTreeMap<String, u64>,
    /// Frames that were never answered.
    pub(crate) unknown_frames: u64,
    /// Connections that broke.
    pub(crate) lost_connections: u64,
}

/// What the consumer found.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct IntegrityResult {
    /// Every record, by what became of it.
    pub(crate) findings: Findings,
    /// What was wrong with deliveries.
    pub(crate) faults: DeliveryFaults,
}

/// A kill of the broker in mid-run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct KillResult {
    /// When, since the start of the run.
    pub(crate) at_s: f64,
    /// Until it had recovered and all connections were made anew.
    pub(crate) outage_s: f64,
}

/// What the broker's process used.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct BrokerResult {
    /// CPU over the whole run, of which 100 is one core.
    pub(crate) cpu_percent: Option<f64>,
    /// Most resident memory that was seen.
    pub(crate) resident_bytes_max: Option<u64>,
    /// What it may use.
    pub(crate) memory_budget_bytes: Option<u64>,
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunResult {
    /// Version of this object.
    pub(crate) schema: u32,
    /// `peak-shave`, `produce`, ...
    pub(crate) command: String,
    /// The whole command line.
    pub(crate) command_line: Vec<String>,
    /// When it began, in milliseconds since 1970.
    pub(crate) started_ms: u64,
    /// `broker`, `floor` or `remote`.
    pub(crate) target: String,
    /// Where it was.
    pub(crate) address: String,
    /// How it makes records durable.
    pub(crate) durability: Option<String>,
    /// How it waits.
    pub(crate) waiting: Option<String>,
    /// Stands in every record.
    pub(crate) run_id: u32,
    /// Core of the broker that was started.
    pub(crate) broker_core: Option<usize>,
    /// Core of the load.
    pub(crate) loadgen_core: usize,
    /// What was sent.
    pub(crate) load: LoadResult,
    /// In their order.
    pub(crate) phases: Vec<PhaseResult>,
    /// What arithmetic says, beside what was measured.
    pub(crate) predictions: Vec<Prediction>,
    /// The criteria.
    pub(crate) checks: Vec<Check>,
    /// How frames were answered.
    pub(crate) answers: AnswersResult,
    /// What the consumer found, if there was one.
    pub(crate) integrity: Option<IntegrityResult>,
    /// When the broker was killed, if it was.
    pub(crate) kill: Option<KillResult>,
    /// What the broker used.
    pub(crate) broker: BrokerResult,
    /// CPU of the load's thread, of which 100 is its core.
    pub(crate) loadgen_cpu_percent: f64,
    /// Sentences that belong to the result.
    pub(crate) notes: Vec<String>,
    /// The result in one word, and why.
    pub(crate) verdict: Verdict,
}

impl RunResult {
    /// A phase by its name.
    pub(crate) fn phase(&self, name: &str) -> Option<&PhaseResult> {
        self.phases.iter().find(|phase| phase.name == name)
    }

    /// Adds a criterion; what is not met decides the verdict.
    pub(crate) fn check(&mut self, check: Check) {
        if let Some(outcome) = check.outcome {
            let (name, found, wanted) = (&check.name, &check.found, &check.wanted);
            self.verdict
                .add(outcome != Outcome::Pass, outcome, || format!("{name}: {found}, wanted {wanted}"));
        }
        self.checks.push(check);
    }

    /// Adds a criterion that is met or not.
    pub(crate) fn require(&mut self, name: &str, is_met: bool, found: String, wanted: &str) {
        let outcome = Some(if is_met { Outcome::Pass } else { Outcome::Fail });
        self.check(Check { name: name.to_owned(), outcome, found, wanted: wanted.to_owned() });
    }

    /// Adds a criterion for a figure: where the run is invalid already, a figure that is missed says no more than that.
    pub(crate) fn require_figure(&mut self, name: &str, is_met: bool, found: String, wanted: &str) {
        let missed = if self.verdict.outcome == Outcome::Invalid { Outcome::Invalid } else { Outcome::Fail };
        let outcome = Some(if is_met { Outcome::Pass } else { missed });
        self.check(Check { name: name.to_owned(), outcome, found, wanted: wanted.to_owned() });
    }

    /// Adds a criterion that could not be measured, and why.
    pub(crate) fn not_measured(&mut self, name: &str, why: &str, wanted: &str) {
        let (name, wanted) = (name.to_owned(), wanted.to_owned());
        self.check(Check { name, outcome: None, found: format!("not measured: {why}"), wanted });
    }
}

/// One second of a run, a row of `series.csv`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Second {
    /// Its end, since the start of the run.
    pub(crate) t_s: f64,
    /// Phase at its start.
    pub(crate) phase: String,
    /// Rates over it, in records per second.
    pub(crate) offered_per_s: f64,
    /// The same.
    pub(crate) sent_per_s: f64,
    /// The same.
    pub(crate) acked_per_s: f64,
    /// The same.
    pub(crate) consumed_per_s: f64,
    /// Frames refused with `Busy` in it.
    pub(crate) busy_frames: u64,
    /// Frames refused otherwise in it.
    pub(crate) refused_frames: u64,
    /// Frames unanswered at its end.
    pub(crate) in_flight_frames: u64,
    /// Records that wait to be consumed at its end.
    pub(crate) backlog_records: u64,
    /// The same by arithmetic.
    pub(crate) predicted_backlog_records: Option<f64>,
    /// Acks that came in it, from intended.
    pub(crate) ack_p50_us: Option<f64>,
    /// The same.
    pub(crate) ack_p99_us: Option<f64>,
    /// The same.
    pub(crate) ack_p999_us: Option<f64>,
    /// The same.
    pub(crate) ack_max_us: Option<f64>,
    /// Records consumed in it, from intended.
    pub(crate) delivery_p50_us: Option<f64>,
    /// The same.
    pub(crate) delivery_p99_us: Option<f64>,
    /// The same.
    pub(crate) delivery_max_us: Option<f64>,
    /// What the generator was late.
    pub(crate) send_lag_p99_us: Option<f64>,
    /// The same.
    pub(crate) send_lag_max_us: Option<f64>,
    /// Of the broker, at its end.
    pub(crate) broker_resident_bytes: Option<u64>,
    /// Of the broker, over it.
    pub(crate) broker_cpu_percent: Option<f64>,
}

/// Names of the columns, in their order.
pub(crate) const SERIES_HEADER: &str = "t_s,phase,offered_per_s,sent_per_s,acked_per_s,consumed_per_s,busy_frames,\
refused_frames,in_flight_frames,backlog_records,predicted_backlog_records,ack_p50_us,ack_p99_us,ack_p999_us,\
ack_max_us,delivery_p50_us,delivery_p99_us,delivery_max_us,send_lag_p99_us,send_lag_max_us,broker_resident_bytes,\
broker_cpu_percent";

impl Second {
    /// Its row.
    pub(crate) fn to_row(&self) -> String {
        let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.1}"));
        let whole = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
        [
            format!("{:.3}", self.t_s),
            self.phase.replace([',', '\n'], " "),
            format!("{:.1}", self.offered_per_s),
            format!("{:.1}", self.sent_per_s),
            format!("{:.1}", self.acked_per_s),
            format!("{:.1}", self.consumed_per_s),
            self.busy_frames.to_string(),
            self.refused_frames.to_string(),
            self.in_flight_frames.to_string(),
            self.backlog_records.to_string(),
            number(self.predicted_backlog_records),
            number(self.ack_p50_us),
            number(self.ack_p99_us),
            number(self.ack_p999_us),
            number(self.ack_max_us),
            number(self.delivery_p50_us),
            number(self.delivery_p99_us),
            number(self.delivery_max_us),
            number(self.send_lag_p99_us),
            number(self.send_lag_max_us),
            whole(self.broker_resident_bytes),
            number(self.broker_cpu_percent),
        ]
        .join(",")
    }

    /// Reads a row; none if it is not one.
    pub(crate) fn from_row(row: &str) -> Option<Self> {
        let mut cells = row.split(',');
        let mut next = || cells.next();
        let number = |cell: &str| cell.parse::<f64>().ok();
        Some(Self {
            t_s: number(next()?)?,
            phase: next()?.to_owned(),
            offered_per_s: number(next()?)?,
            sent_per_s: number(next()?)?,
            acked_per_s: number(next()?)?,
            consumed_per_s: number(next()?)?,
            busy_frames: next()?.parse().ok()?,
            refused_frames: next()?.parse().ok()?,
            in_flight_frames: next()?.parse().ok()?,
            backlog_records: next()?.parse().ok()?,
            predicted_backlog_records: number(next()?),
            ack_p50_us: number(next()?),
            ack_p99_us: number(next()?),
            ack_p999_us: number(next()?),
            ack_max_us: number(next()?),
            delivery_p50_us: number(next()?),
            delivery_p99_us: number(next()?),
            delivery_max_us: number(next()?),
            send_lag_p99_us: number(next()?),
            send_lag_max_us: number(next()?),
            broker_resident_bytes: next()?.parse().ok(),
            broker_cpu_percent: number(next()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_of_a_second_is_read_back_as_it_was_written() {
        let second = Second {
            t_s: 3.0,
            phase: "spike".to_owned(),
            offered_per_s: 1_000.0,
            acked_per_s: 999.5,
            backlog_records: 77,
            predicted_backlog_records: Some(80.0),
            ack_p99_us: Some(250.5),
            broker_resident_bytes: Some(1 << 30),
            ..Second::default()
        };
        let row = second.to_row();
        assert_eq!(Second::from_row(&row), Some(second));
        assert_eq!(row.split(',').count(), SERIES_HEADER.split(',').count());
        assert_eq!(Second::from_row("not,a,row"), None);
    }
}
