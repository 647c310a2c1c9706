//! The broker against the floor: the same load on each in turns (A B A B ...), and the ratio of the medians.
//!
//! Both run on the same cores within the same minute, so that a ratio means the same on every machine. Each turn has
//! a fresh process on a fresh directory.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cli::TargetKind;
use crate::load::LoadError;
use crate::report::{Outcome, Report, SCHEMA, Verdict};

/// One figure of both.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct FigureOfBoth {
    /// Median of the broker's turns.
    pub(crate) broker_median: f64,
    /// Least of them.
    pub(crate) broker_min: f64,
    /// Greatest of them.
    pub(crate) broker_max: f64,
    /// Median of the floor's turns.
    pub(crate) floor_median: f64,
    /// Least of them.
    pub(crate) floor_min: f64,
    /// Greatest of them.
    pub(crate) floor_max: f64,
    /// Broker by floor; none if the floor's is 0.
    pub(crate) ratio: Option<f64>,
}

/// All turns, and what they come to.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    /// Version of this object.
    pub(crate) schema: u32,
    /// `latency` or `throughput`.
    pub(crate) command: &'static str,
    /// Turns of each.
    pub(crate) rounds: u32,
    /// The worst verdict of all turns.
    pub(crate) verdict: Verdict,
    /// By name, with the unit at its end.
    pub(crate) figures: BTreeMap<String, FigureOfBoth>,
    /// Every turn, in order.
    pub(crate) runs: Vec<Report>,
}

/// Measures both in turns.
///
/// # Errors
/// The first turn without a result.
pub(crate) fn compare(
    command: &'static str,
    rounds: u32,
    mut run: impl FnMut(TargetKind) -> Result<Report, LoadError>,
) -> Result<Comparison, LoadError> {
    let mut runs = Vec::new();
    let mut verdict = Verdict::new();
    for round in 1..=rounds {
        for kind in [TargetKind::Broker, TargetKind::Floor] {
            let report = run(kind)?;
            eprintln!(
                "round {round} of {rounds}, {}: {:.0} records/s",
                kind.name(),
                report.rates.acked_records_per_s
            );
            for reason in &report.verdict.reasons {
                verdict.add(true, report.verdict.outcome, || {
                    format!("round {round}, {}: {reason}", kind.name())
                });
            }
            runs.push(report);
        }
    }
    let figures = figures(&runs);
    verdict.add(figures.is_empty(), Outcome::Invalid, || "there is no figure of both".to_owned());
    Ok(Comparison { schema: SCHEMA, command, rounds, verdict, figures, runs })
}

fn figures(runs: &[Report]) -> BTreeMap<String, FigureOfBoth> {
    let of = |kind: TargetKind| values_by_name(runs.iter().filter(move |run| run.target == kind.name()));
    let (broker, floor) = (of(TargetKind::Broker), of(TargetKind::Floor));
    let of_both =
        |(name, values): (String, Vec<f64>)| Some((name.clone(), figure(values, floor.get(&name)?.clone())));
    broker.into_iter().filter_map(of_both).collect()
}

fn values_by_name<'a>(runs: impl Iterator<Item = &'a Report>) -> BTreeMap<String, Vec<f64>> {
    let mut values = BTreeMap::<String, Vec<f64>>::new();
    for (name, value) in runs.flat_map(Report::figures) {
        values.entry(name).or_default().push(value);
    }
    values
}

/// Neither is empty.
fn figure(mut broker: Vec<f64>, mut floor: Vec<f64>) -> FigureOfBoth {
    broker.sort_by(f64::total_cmp);
    floor.sort_by(f64::total_cmp);
    let (broker_median, floor_median) = (median(&broker), median(&floor));
    FigureOfBoth {
        broker_median,
        broker_min: broker[0],
        broker_max: broker[broker.len() - 1],
        floor_median,
        floor_min: floor[0],
        floor_max: floor[floor.len() - 1],
        ratio: (floor_median > 0.0).then(|| broker_median / floor_median),
    }
}

/// Of sorted values, at least one: the middle one, or the mean of the two in the middle.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_is_that_of_the_medians() {
        let figure = figure(vec![300.0, 180.0, 200.0], vec![100.0, 90.0, 1_000.0]);
        assert_eq!((figure.broker_median, figure.floor_median), (200.0, 100.0));
        assert_eq!((figure.broker_min, figure.broker_max), (180.0, 300.0));
        assert_eq!((figure.floor_min, figure.floor_max), (90.0, 1_000.0));
        assert_eq!(figure.ratio, Some(2.0));
        assert_eq!(super::figure(vec![1.0], vec![0.0]).ratio, None);
    }

    #[test]
    fn median_of_an_even_number_lies_between() {
        assert_eq!(median(&[1.0, 2.0, 4.0, 100.0]), 3.0);
        assert_eq!(median(&[7.0]), 7.0);
    }
}
