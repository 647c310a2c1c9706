//! Criteria that several commands ask for: nothing refused, memory within its budget, figures as predicted.
//! Each adds itself to the result, with what was found and what was wanted.

use crate::report::Outcome;
use crate::result::{Check, RunResult};

/// How far a measured figure may be from what arithmetic says.
pub(crate) const PREDICTION_ERROR_MAX: f64 = 0.05;
/// What a process holds beside its budget: program, stacks, connections.
const MEMORY_BESIDE_BUDGET_BYTES: u64 = 64 << 20;
const MIB: f64 = (1 << 20) as f64;

/// Nothing was refused because the broker was full.
pub(crate) fn nothing_refused(result: &mut RunResult) {
    let busy = result.answers.busy_frames;
    result.require("nothing refused", busy == 0, format!("{busy} frames refused with Busy"), "0");
}

/// The broker kept to its memory.
pub(crate) fn memory_within_budget(result: &mut RunResult) {
    const NAME: &str = "broker's memory within its budget";
    match (result.broker.resident_bytes_max, result.broker.memory_budget_bytes) {
        (Some(used), Some(budget)) => {
            let found = format!("{:.0} MiB of {:.0} MiB", used as f64 / MIB, budget as f64 / MIB);
            let is_met = used <= budget + MEMORY_BESIDE_BUDGET_BYTES;
            result.require(NAME, is_met, found, "<= budget and 64 MiB for the program");
        }
        _ => result.not_measured(NAME, "the broker does not tell", "<= its budget"),
    }
}

/// A predicted figure was met.
pub(crate) fn as_predicted(result: &mut RunResult, name: &str) {
    let Some(prediction) = result.predictions.iter().find(|prediction| prediction.name == name) else {
        return;
    };
    let name = format!("{name} as predicted");
    let wanted = format!("within {:.0} %", PREDICTION_ERROR_MAX * 100.0);
    match prediction.error() {
        Some(error) => {
            let found = format!("{:+.1} %", error * 100.0);
            result.require_figure(&name, error.abs() <= PREDICTION_ERROR_MAX, found, &wanted);
        }
        None => {
            let found = "it did not come to that".to_owned();
            result.check(Check { name, outcome: Some(Outcome::Fail), found, wanted });
        }
    }
}
