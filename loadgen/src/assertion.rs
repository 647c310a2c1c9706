//! What a scenario file asserts of its run, in words such as `spike.ack.p99 <= 2 x base.ack.p99`.
//!
//! ```text
//! <figure> <= <figure or number>       also < >= > =
//! <figure> <= <factor> x <figure>
//! <figure> = predicted +- 5%           of PHASE.backlog and PHASE.seconds
//!
//! figures: PHASE.KIND.STAT    KIND ack, ack_service, delivery, send_lag; STAT p50, p90, p99, p999, p9999, max
//!          PHASE.offered, .achieved, .acked, .consumed (records per second), .seconds, .backlog (records)
//!          lost, duplicated, reordered, corrupted, phantom, busy, unknown, broker.resident, broker.cpu
//! numbers: 250us, 5ms, 2s for times; 20k, 1.5M for rates and counts; 64MiB for memory
//! ```

use crate::arrivals::{parse_duration, parse_rate};
use crate::cli::parse_bytes;
use crate::fluid::Fluid;
use crate::report::Outcome;
use crate::result::{Check, PhaseResult, RunResult};
use crate::watch::{human_count, human_time};

/// What kind of number a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Microseconds,
    Seconds,
    Count,
    Bytes,
    Percent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    AtMost,
    More,
    AtLeast,
    Equal,
}

#[derive(Clone, Debug, PartialEq)]
enum Right {
    Number(f64),
    Times { factor: f64, figure: Figure },
    Predicted { tolerance: f64 },
}

/// A figure of a run.
#[derive(Clone, Debug, PartialEq)]
struct Figure {
    /// As it was written.
    text: String,
    phase: Option<String>,
    path: Vec<String>,
    unit: Unit,
}

/// One assertion.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Assertion {
    text: String,
    left: Figure,
    comparison: Comparison,
    right: Right,
}

/// Longest first, so that `<=` is not taken for `<`.
const COMPARISONS: [(&str, Comparison); 5] = [
    ("<=", Comparison::AtMost),
    (">=", Comparison::AtLeast),
    ("<", Comparison::Less),
    (">", Comparison::More),
    ("=", Comparison::Equal),
];
const KINDS: [&str; 4] = ["ack", "ack_service", "delivery", "send_lag"];
const STATS: [&str; 6] = ["p50", "p90", "p99", "p999", "p9999", "max"];
const OF_PHASE: [(&str, Unit); 6] = [
    ("offered", Unit::Count),
    ("achieved", Unit::Count),
    ("acked", Unit::Count),
    ("consumed", Unit::Count),
    ("seconds", Unit::Seconds),
    ("backlog", Unit::Count),
];
const OF_RUN: [(&str, Unit); 9] = [
    ("lost", Unit::Count),
    ("duplicated", Unit::Count),
    ("reordered", Unit::Count),
    ("corrupted", Unit::Count),
    ("phantom", Unit::Count),
    ("busy", Unit::Count),
    ("unknown", Unit::Count),
    ("broker.resident", Unit::Bytes),
    ("broker.cpu", Unit::Percent),
];

impl Assertion {
    /// Reads one; the phases are those of the scenario.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(crate) fn parse(text: &str, phases: &[String]) -> Result<Self, String> {
        let found =
            COMPARISONS.iter().filter_map(|(sign, comparison)| Some((text.find(sign)?, *sign, *comparison)));
        let Some((at, sign, comparison)) = found.min_by_key(|(at, sign, _)| (*at, usize::MAX - sign.len()))
        else {
            return Err(format!("`{text}` has no comparison: take <=, <, >=, > or ="));
        };
        let left = Figure::parse(text[..at].trim(), phases)?;
        let right = text[at + sign.len()..].trim();
        let right = Right::parse(right, &left, phases)?;
        Ok(Self { text: text.to_owned(), left, comparison, right })
    }

    /// Judges a run.
    pub(crate) fn judge(&self, result: &RunResult, prediction: Option<&Fluid>, phases: &[String]) -> Check {
        let check = |outcome, found| Check {
            name: self.text.clone(),
            outcome: Some(outcome),
            found,
            wanted: "as asserted".to_owned(),
        };
        let Some(left) = self.left.value(result) else {
            return check(Outcome::Invalid, format!("{} is not known", self.left.text));
        };
        let shown = |value: f64| self.left.show(value);
        let (right, tolerance) = match &self.right {
            Right::Number(number) => (Some(*number), 0.0),
            Right::Times { factor, figure } => (figure.value(result).map(|value| value * factor), 0.0),
            Right::Predicted { tolerance } => (self.left.predicted(prediction, phases), *tolerance),
        };
        let Some(right) = right else {
            return check(Outcome::Invalid, format!("{}, and the other side is not known", shown(left)));
        };
        let is_met = match self.comparison {
            Comparison::Less => left < right,
            Comparison::AtMost => left <= right,
            Comparison::More => left > right,
            Comparison::AtLeast => left >= right,
            Comparison::Equal => (left - right).abs() <= (right * tolerance).abs(),
        };
        // A figure of a run that is invalid already says no more than that.
        let is_worthless = self.left.phase.is_some() && result.verdict.outcome == Outcome::Invalid;
        let missed = if is_worthless { Outcome::Invalid } else { Outcome::Fail };
        let outcome = if is_met { Outcome::Pass } else { missed };
        check(outcome, format!("{} against {}", shown(left), shown(right)))
    }
}

impl Right {
    fn parse(text: &str, left: &Figure, phases: &[String]) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("predicted") {
            let is_predictable =
                left.phase.is_some() && ["backlog", "seconds"].contains(&left.path[0].as_str());
            if !is_predictable {
                return Err(format!(
                    "`{}` cannot be predicted: only PHASE.backlog and PHASE.seconds can",
                    left.text
                ));
            }
            let percent = rest.trim().strip_prefix("+-").and_then(|rest| rest.trim().strip_suffix('%'));
            let percent: f64 = percent
                .and_then(|percent| percent.trim().parse().ok())
                .ok_or_else(|| format!("`{text}` is not of the form predicted +- 5%"))?;
            return Ok(Self::Predicted { tolerance: percent / 100.0 });
        }
        if let Some((factor, figure)) = text.split_once(" x ") {
            let factor: f64 =
                factor.trim().parse().map_err(|_| format!("`{}` is no factor", factor.trim()))?;
            return Ok(Self::Times { factor, figure: Figure::like(left, figure.trim(), phases)? });
        }
        match number(text, left.unit) {
            Some(number) => Ok(Self::Number(number)),
            None if text.starts_with(|letter: char| letter.is_ascii_digit()) => {
                Err(format!("`{text}` is no {}", left.unit.example()))
            }
            None => Ok(Self::Times { factor: 1.0, figure: Figure::like(left, text, phases)? }),
        }
    }
}

impl Figure {
    fn parse(text: &str, phases: &[String]) -> Result<Self, String> {
        if let Some((_, unit)) = OF_RUN.iter().find(|(name, _)| *name == text) {
            return Ok(Self { text: text.to_owned(), phase: None, path: vec![text.to_owned()], unit: *unit });
        }
        let mut parts = text.split('.').map(str::to_owned);
        let phase = parts.next().unwrap_or_default();
        let path: Vec<String> = parts.collect();
        if !phases.contains(&phase) {
            return Err(format!(
                "`{text}`: there is no phase and no figure `{phase}`; phases are {}",
                phases.join(", ")
            ));
        }
        let unit = match path.as_slice() {
            [name] => OF_PHASE.iter().find(|(known, _)| known == name).map(|(_, unit)| *unit),
            [kind, stat] if KINDS.contains(&kind.as_str()) && STATS.contains(&stat.as_str()) => {
                Some(Unit::Microseconds)
            }
            _ => None,
        };
        let unit = unit.ok_or_else(|| {
            format!("`{text}` is no figure: take PHASE.{{{}}}.{{{}}} or PHASE.{{offered|achieved|acked|consumed|seconds|backlog}}", KINDS.join("|"), STATS.join("|"))
        })?;
        Ok(Self { text: text.to_owned(), phase: Some(phase), path, unit })
    }

    /// A figure that can be compared with another.
    fn like(other: &Self, text: &str, phases: &[String]) -> Result<Self, String> {
        let figure = Self::parse(text, phases)?;
        if figure.unit == other.unit {
            Ok(figure)
        } else {
            Err(format!("`{}` and `{text}` have different units", other.text))
        }
    }

    fn value(&self, result: &RunResult) -> Option<f64> {
        let Some(phase) = &self.phase else { return of_run(result, &self.path[0]) };
        let phase = result.phase(phase)?;
        match self.path.as_slice() {
            [name] => of_phase(phase, name),
            [kind, stat] => {
                let percentiles = phase.latencies.get(kind)?;
                match stat.as_str() {
                    "p50" => percentiles.p50_us,
                    "p90" => percentiles.p90_us,
                    "p99" => percentiles.p99_us,
                    "p999" => percentiles.p999_us,
                    "p9999" => percentiles.p9999_us,
                    _ => percentiles.max_us,
                }
            }
            _ => None,
        }
    }

    fn predicted(&self, prediction: Option<&Fluid>, phases: &[String]) -> Option<f64> {
        let number = phases.iter().position(|name| Some(name) == self.phase.as_ref())?;
        let phase = prediction?.phases.get(number)?;
        match self.path[0].as_str() {
            "backlog" => Some(phase.backlog_max),
            "seconds" => Some((phase.end_ns - phase.start_ns) as f64 / 1e9),
            _ => None,
        }
    }

    fn show(&self, value: f64) -> String {
        match self.unit {
            Unit::Microseconds => human_time(value),
            Unit::Seconds => format!("{value:.2} s"),
            Unit::Count => human_count(value),
            Unit::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
            Unit::Percent => format!("{value:.1} %"),
        }
    }
}

impl Unit {
    fn example(self) -> &'static str {
        match self {
            Self::Microseconds => "time such as 250us or 5ms",
            Self::Seconds => "time such as 500ms or 10s",
            Self::Count => "number such as 0 or 20k",
            Self::Bytes => "size such as 64MiB",
            Self::Percent => "percentage such as 80",
        }
    }
}

fn number(text: &str, unit: Unit) -> Option<f64> {
    match unit {
        Unit::Microseconds => parse_duration(text).ok().map(|ns| ns as f64 / 1e3),
        Unit::Seconds => parse_duration(text).ok().map(|ns| ns as f64 / 1e9),
        Unit::Count => parse_rate(text).ok(),
        Unit::Bytes => parse_bytes(text).ok().map(|bytes| bytes as f64),
        Unit::Percent => text.trim_end_matches('%').trim().parse().ok(),
    }
}

fn of_phase(phase: &PhaseResult, name: &str) -> Option<f64> {
    match name {
        "offered" => phase.offered_records_per_s,
        "achieved" => Some(phase.achieved_records_per_s),
        "acked" => Some(phase.acked_records_per_s),
        "consumed" => Some(phase.consumed_records_per_s),
        "seconds" => Some(phase.seconds),
        "backlog" => Some(phase.backlog_records_max as f64),
        _ => None,
    }
}

fn of_run(result: &RunResult, name: &str) -> Option<f64> {
    let findings = || result.integrity.map(|integrity| integrity.findings);
    let count = match name {
        "lost" => findings()?.lost_records,
        "duplicated" => findings()?.duplicated_records,
        "reordered" => findings()?.reordered_records,
        "corrupted" => findings()?.corrupted_records,
        "phantom" => findings()?.phantom_records,
        "busy" => result.answers.busy_frames,
        "unknown" => result.answers.unknown_frames,
        "broker.resident" => result.broker.resident_bytes_max?,
        "broker.cpu" => return result.broker.cpu_percent,
        _ => return None,
    };
    Some(count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases() -> Vec<String> {
        ["base", "spike"].map(str::to_owned).to_vec()
    }

    #[test]
    fn words_are_understood() {
        for text in [
            "spike.ack.p99 <= 2 x base.ack.p99",
            "spike.ack.p99<5ms",
            "spike.backlog = predicted +- 5%",
            "spike.seconds >= 10s",
            "base.acked >= 19.9k",
            "base.acked > spike.consumed",
            "lost = 0",
            "broker.resident <= 1GiB",
        ] {
            assert!(
                Assertion::parse(text, &phases()).is_ok(),
                "{text}: {:?}",
                Assertion::parse(text, &phases())
            );
        }
        let parsed = Assertion::parse("spike.ack.p99 <= 2 x base.ack.p99", &phases()).unwrap();
        assert_eq!(parsed.comparison, Comparison::AtMost);
        assert!(matches!(parsed.right, Right::Times { factor: 2.0, .. }));
    }

    #[test]
    fn wrong_words_are_refused_with_the_reason() {
        for (text, reason) in [
            ("lost", "no comparison"),
            ("peak.ack.p99 < 1ms", "no phase and no figure `peak`; phases are base, spike"),
            ("spike.ack.p98 < 1ms", "is no figure"),
            ("spike.ack.p99 < 5", "no time"),
            ("spike.ack.p99 < base.acked", "different units"),
            ("lost = predicted +- 5%", "cannot be predicted"),
            ("spike.backlog = predicted", "predicted +- 5%"),
            ("spike.ack.p99 < two x base.ack.p99", "is no factor"),
        ] {
            let error = Assertion::parse(text, &phases()).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
