//! `loadgen report`: looks at runs that are over, by their folders.
//!
//! Percentiles of several runs come from the sum of their histograms; they are never averaged.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cli::ReportCommand;
use crate::folder::StoredRun;
use crate::hlog::{self, HlogWriter, Span};
use crate::html;
use crate::interval::latencies;
use crate::load::LoadError;
use crate::percentiles::Percentiles;
use crate::report::Outcome;
use crate::watch::human_time;

/// Version of what `diff --json` and `merge --json` print.
const SCHEMA: u32 = 1;

/// Does what the command line says, and prints what came of it.
///
/// # Errors
/// When a folder is not that of a run.
pub(crate) fn run(command: &ReportCommand) -> Result<Outcome, LoadError> {
    let text = match command {
        ReportCommand::Html { folder } => {
            let stored = StoredRun::read(folder)?;
            let path = folder.join("report.html");
            fs::write(&path, html::page(&stored.result, &stored.series))?;
            path.display().to_string()
        }
        ReportCommand::Diff { before, after, json } => {
            let diff = diff(&StoredRun::read(before)?, &StoredRun::read(after)?);
            if *json { to_json(&diff)? } else { diff_table(&diff) }
        }
        ReportCommand::Merge { folders, out, json } => {
            let merged = merge(folders)?;
            if let Some(out) = out {
                write_merged(out, &merged)?;
            }
            if *json { to_json(&merged.summary())? } else { merged_table(&merged.summary()) }
        }
    };
    writeln!(io::stdout().lock(), "{}", text.trim_end())?;
    Ok(Outcome::Pass)
}

fn to_json(value: &impl Serialize) -> Result<String, LoadError> {
    Ok(serde_json::to_string(value).map_err(io::Error::from)?)
}

/// Two runs side by side.
#[derive(Clone, Debug, Serialize)]
struct Diff {
    schema: u32,
    command: &'static str,
    figures: Vec<DiffFigure>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct DiffFigure {
    name: String,
    before: f64,
    after: f64,
    /// After by before; none if that is 0.
    ratio: Option<f64>,
}

fn diff(before: &StoredRun, after: &StoredRun) -> Diff {
    let (before, after) = (figures(before), figures(after));
    let figures = before.into_iter().filter_map(|(name, before)| {
        let after = *after.iter().find(|(other, _)| *other == name).map(|(_, after)| after)?;
        Some(DiffFigure { name, before, after, ratio: (before != 0.0).then(|| after / before) })
    });
    Diff { schema: SCHEMA, command: "report diff", figures: figures.collect() }
}

fn figures(run: &StoredRun) -> Vec<(String, f64)> {
    let mut figures = Vec::new();
    for phase in &run.result.phases {
        let mut add = |name: &str, value: Option<f64>| {
            figures.extend(value.map(|value| (format!("{}.{name}", phase.name), value)));
        };
        add("offered_per_s", phase.offered_records_per_s);
        add("acked_per_s", Some(phase.acked_records_per_s));
        add("consumed_per_s", Some(phase.consumed_records_per_s));
        add("backlog_max", Some(phase.backlog_records_max as f64));
        for (kind, percentiles) in &phase.latencies {
            add(&format!("{kind}.p50_us"), percentiles.p50_us);
            add(&format!("{kind}.p99_us"), percentiles.p99_us);
            add(&format!("{kind}.p999_us"), percentiles.p999_us);
            add(&format!("{kind}.max_us"), percentiles.max_us);
        }
    }
    let broker = &run.result.broker;
    figures.extend(broker.cpu_percent.map(|percent| ("broker.cpu_percent".to_owned(), percent)));
    figures.extend(
        broker.resident_bytes_max.map(|bytes| ("broker.resident_bytes_max".to_owned(), bytes as f64)),
    );
    figures
}

fn diff_table(diff: &Diff) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{:<36} {:>14} {:>14} {:>8}", "figure", "before", "after", "ratio");
    for DiffFigure { name, before, after, ratio } in &diff.figures {
        let ratio = ratio.map_or_else(|| "n/a".to_owned(), |ratio| format!("{ratio:.3}"));
        let _ = writeln!(out, "{name:<36} {before:>14.1} {after:>14.1} {ratio:>8}");
    }
    out
}

/// The sums of several runs' histograms, by phase and kind.
struct Merged {
    runs: usize,
    sums: BTreeMap<String, MergedHistogram>,
}

struct MergedHistogram {
    sum: Histogram<u64>,
    span: Span,
    /// p99 of each run that has enough samples.
    p99_us: Vec<f64>,
}

/// What is told of them.
#[derive(Clone, Debug, Serialize)]
struct MergedSummary {
    schema: u32,
    command: &'static str,
    runs: usize,
    /// By phase and kind.
    latencies: BTreeMap<String, MergedFigure>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct MergedFigure {
    /// Of the sum.
    #[serde(flatten)]
    percentiles: Percentiles,
    /// Least p99 of a single run.
    p99_us_min: Option<f64>,
    /// Greatest.
    p99_us_max: Option<f64>,
}

fn merge(folders: &[PathBuf]) -> io::Result<Merged> {
    let mut sums = BTreeMap::<String, MergedHistogram>::new();
    for folder in folders {
        for logged in hlog::read(&folder.join("phases.hlog"))? {
            let merged = sums.entry(logged.tag).or_insert_with(|| MergedHistogram {
                sum: latencies(),
                span: logged.span,
                p99_us: Vec::new(),
            });
            merged.p99_us.extend(Percentiles::of(&logged.histogram).p99_us);
            merged.sum.add(&logged.histogram).map_err(|error| io::Error::other(error.to_string()))?;
        }
    }
    Ok(Merged { runs: folders.len(), sums })
}

impl Merged {
    fn summary(&self) -> MergedSummary {
        let figure = |merged: &MergedHistogram| MergedFigure {
            percentiles: Percentiles::of(&merged.sum),
            p99_us_min: merged.p99_us.iter().copied().reduce(f64::min),
            p99_us_max: merged.p99_us.iter().copied().reduce(f64::max),
        };
        let latencies = self.sums.iter().map(|(tag, merged)| (tag.clone(), figure(merged))).collect();
        MergedSummary { schema: SCHEMA, command: "report merge", runs: self.runs, latencies }
    }
}

fn write_merged(out: &Path, merged: &Merged) -> io::Result<()> {
    fs::create_dir_all(out)?;
    let mut log = HlogWriter::create(&out.join("phases.hlog"), SystemTime::now())?;
    for (tag, one) in &merged.sums {
        log.write(tag, one.span, &one.sum)?;
        fs::write(out.join(format!("{tag}.hgrm")), hlog::distribution(&one.sum))?;
    }
    log.flush()
}

fn merged_table(summary: &MergedSummary) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{} runs, their histograms added up", summary.runs);
    let _ = writeln!(
        out,
        "{:<26} {:>10} {:>10} {:>10} {:>10} {:>10}  p99 of single runs",
        "latency", "n", "p50", "p99", "p99.9", "max"
    );
    let time = |us: Option<f64>| us.map_or_else(|| "n/a".to_owned(), human_time);
    for (name, figure) in &summary.latencies {
        let Percentiles { samples, p50_us, p99_us, p999_us, max_us, .. } = figure.percentiles;
        let _ = writeln!(
            out,
            "{name:<26} {samples:>10} {:>10} {:>10} {:>10} {:>10}  {} to {}",
            time(p50_us),
            time(p99_us),
            time(p999_us),
            time(max_us),
            time(figure.p99_us_min),
            time(figure.p99_us_max)
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_percentiles_are_those_of_the_union() {
        let directory = tempfile::tempdir().unwrap();
        let folder = |name: &str, us: u64, count: u64| {
            let folder = directory.path().join(name);
            fs::create_dir(&folder).unwrap();
            let mut histogram = latencies();
            histogram.record_n(us * 1_000, count).unwrap();
            let mut log = HlogWriter::create(&folder.join("phases.hlog"), SystemTime::now()).unwrap();
            log.write("base.ack", Span { start_s: 0.0, seconds: 1.0 }, &histogram).unwrap();
            log.flush().unwrap();
            folder
        };
        // One run of 9,900 at 100 us, one of 100 at 10 ms: the mean of their p99 would be 5 ms.
        let folders = [folder("a", 100, 9_900), folder("b", 10_000, 1_000)];
        let summary = merge(&folders).unwrap().summary();
        let figure = summary.latencies["base.ack"];
        assert_eq!((summary.runs, figure.percentiles.samples), (2, 10_900));
        assert!(figure.percentiles.p50_us.unwrap() < 101.0);
        assert!(figure.percentiles.p99_us.unwrap() > 9_900.0);
        assert!(figure.p99_us_min.unwrap() < 101.0 && figure.p99_us_max.unwrap() > 9_900.0);
        let out = directory.path().join("sum");
        write_merged(&out, &merge(&folders).unwrap()).unwrap();
        assert_eq!(hlog::read(&out.join("phases.hlog")).unwrap()[0].histogram.len(), 10_900);
    }
}
