//! `forebay inspect`: looks at a data directory that no broker serves, and repairs it if that is asked for.
//!
//! Tables for people, one object with `--json`; the exit code says the verdict. With `--repair` the plan is shown first,
//! and somebody must agree.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::topic::table;
use super::units::parse_size;
use super::{Failure, complain};
use crate::inspect::json::report_object;
use crate::inspect::repair::{Plan, Repair};
use crate::inspect::report::{CopyState, Outcome, Report, SegmentFacts, Verdict};
use crate::inspect::{CannotLook, Inspection};

/// A repair was asked for, and nobody can be asked.
const EXIT_USAGE: u8 = 2;
/// Locked, unreadable, no data directory.
const EXIT_CANNOT_LOOK: u8 = 3;

/// Of this command alone: they say what was found.
pub(super) const EXIT_CODES: &str = "Exit codes:
  0  clean: every checksum matches
  1  damaged: `serve` would start, and something is wrong; see the problems
  2  wrong usage, or a repair that nobody has agreed to
  3  cannot look: in use by another process, unreadable, no data directory
  4  `serve` would refuse to start
After a repair the code says what was found behind it.";

#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// The data directory; no broker may serve it
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Mend what can be mended: says first what is changed and lost, asks, and keeps the originals
    #[arg(long)]
    repair: bool,
    /// Do not ask before the repair
    #[arg(long, requires = "repair")]
    yes: bool,
    /// Memory for the records that the journal holds, such as 2GiB; by default as much as they may need
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory_bytes: Option<u64>,
}

pub(super) fn run(args: &InspectArgs) -> ExitCode {
    match inspect(args) {
        Ok(verdict) => ExitCode::from(verdict.exit_code()),
        Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Message { code, text }) => {
            complain(&text);
            ExitCode::from(code)
        }
    }
}

fn inspect(args: &InspectArgs) -> Result<Verdict, Failure> {
    let inspection = Inspection::open(&args.directory, args.memory_bytes).map_err(cannot_look)?;
    let found = inspection.look().map_err(cannot_look)?;
    if !args.json {
        say(&in_words(&found))?;
    }
    if !args.repair {
        if args.json {
            say(&format!("{}\n", report_object(&found, None)))?;
        }
        return Ok(found.verdict());
    }
    let repair = repair(args, &inspection, &found)?;
    let behind = if repair.kept_in.is_some() { inspection.look().map_err(cannot_look)? } else { found };
    if args.json {
        say(&format!("{}\n", report_object(&behind, Some(&repair))))?;
    } else if let Some(kept_in) = &repair.kept_in {
        say(&format!("\nrepaired; the originals are in {}\n\n{}", kept_in.display(), in_words(&behind)))?;
    }
    Ok(behind.verdict())
}

/// Plans a repair, shows the plan, asks, and carries it out.
fn repair(args: &InspectArgs, inspection: &Inspection, found: &Report) -> Result<Repair, Failure> {
    let plan = inspection.plan_repair(found).map_err(cannot_look)?;
    let words = plan_in_words(&plan);
    // Stdout is for the object alone then.
    if args.json {
        let _ = io::stderr().write_all(words.as_bytes());
    } else {
        say(&words)?;
    }
    if plan.is_empty() || plan.refusal.is_some() || !is_agreed(args)? {
        return Ok(Repair { plan, kept_in: None });
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let kept_in = inspection
        .repair(&plan, since.as_millis() as u64)
        .map_err(|error| Failure::new(EXIT_CANNOT_LOOK, error.to_string()))?;
    Ok(Repair { plan, kept_in: Some(kept_in) })
}

fn is_agreed(args: &InspectArgs) -> Result<bool, Failure> {
    if args.yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        let text = "nothing was changed: there is no terminal to ask on; pass --yes if that is to be done";
        return Err(Failure::new(EXIT_USAGE, text));
    }
    let _ = write!(io::stderr(), "Type `yes` to do that: ");
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::new(EXIT_USAGE, format!("nothing was changed: no answer: {error}")))?;
    let is_agreed = answer.trim() == "yes";
    if !is_agreed {
        complain("nothing was changed");
    }
    Ok(is_agreed)
}

fn cannot_look(error: CannotLook) -> Failure {
    Failure::new(EXIT_CANNOT_LOOK, error.to_string())
}

/// A reader of stdout that has gone does not change what was found.
fn say(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(EXIT_CANNOT_LOOK, format!("cannot write the output: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn plan_in_words(plan: &Plan) -> String {
    let mut text = String::from("\nrepair:\n");
    if let Some(refusal) = &plan.refusal {
        let _ = writeln!(text, "  refused: {refusal}");
        return text;
    }
    if plan.is_empty() {
        text.push_str("  there is nothing that a repair would change\n");
    }
    let parts = [("will do", &plan.steps), ("will be LOST", &plan.losses), ("stays as it is", &plan.remains)];
    for (title, lines) in parts.into_iter().filter(|(_, lines)| !lines.is_empty()) {
        let _ = writeln!(text, "  {title}:");
        for line in lines {
            let _ = writeln!(text, "    - {line}");
        }
    }
    if !plan.is_empty() && plan.losses.is_empty() {
        text.push_str("  nothing is lost by that\n");
    }
    text
}

fn in_words(report: &Report) -> String {
    let mut text = match report.newest_superblock() {
        Some(superblock) => {
            format!("data directory {}, id {:032x}\n", report.directory.display(), superblock.directory_id)
        }
        None => format!("data directory {}\n", report.directory.display()),
    };
    let tables = [copies(report), journal(report), snapshots(report), topics(report)];
    for table in tables.iter().filter(|table| table.lines().count() > 1) {
        let _ = write!(text, "\n{table}");
    }
    if !report.unnamed.is_empty() {
        let count = report.unnamed.len();
        let bytes: u64 = report.unnamed.iter().map(|segment| segment.bytes).sum();
        let _ = writeln!(text, "\n{count} segment files that nothing names, {bytes} bytes (no damage)");
    }
    let _ = writeln!(text, "\nrecovery: {}", recovery(&report.outcome));
    for problem in &report.problems {
        let _ = writeln!(text, "problem: {problem}");
    }
    let _ = writeln!(text, "verdict: {}, {} problems", report.verdict().name(), report.problems.len());
    text
}

fn copies(report: &Report) -> String {
    let mut rows =
        vec![["SUPERBLOCK", "STATE", "EPOCH", "FIRST-SEQUENCE", "JOURNAL-FILES"].map(str::to_owned)];
    for (number, copy) in report.superblock.iter().enumerate() {
        let numbers = match copy {
            CopyState::Valid(superblock) => [
                superblock.epoch.0.to_string(),
                superblock.first_sequence.0.to_string(),
                superblock.journal_file_count.to_string(),
            ],
            CopyState::Empty | CopyState::Damaged | CopyState::Version(_) => ["-"; 3].map(str::to_owned),
        };
        let [epoch, first, files] = numbers;
        rows.push([format!("copy {number}"), copy.name().to_owned(), epoch, first, files]);
    }
    table(&rows)
}

fn journal(report: &Report) -> String {
    let headings = ["JOURNAL", "BYTES", "BLOCKS", "MARKERS", "SEQUENCES", "BAD-BLOCKS"];
    let mut rows = vec![headings.map(str::to_owned)];
    for file in &report.journal {
        let sequences = file.sequences.map(|(lowest, highest)| format!("{}-{}", lowest.0, highest.0));
        rows.push([
            format!("file {}", file.number),
            file.bytes.to_string(),
            (file.data_blocks + file.other_blocks).to_string(),
            file.marker_blocks.to_string(),
            sequences.unwrap_or_else(|| "-".to_owned()),
            file.bad_blocks.len().to_string(),
        ]);
    }
    table(&rows)
}

fn snapshots(report: &Report) -> String {
    let headings = ["SNAPSHOT", "STATE", "SEQUENCE", "CAPTURED", "REPLAY-FROM", "BLOCKS", "BYTES"];
    let mut rows = vec![headings.map(str::to_owned)];
    for file in &report.snapshots {
        let numbers = file.header.map(|header| {
            [
                header.sequence.0.to_string(),
                format!("{}/{}", header.captured.sequence().0, header.captured.0 & 0xFFFF),
                header.next_sequence.0.to_string(),
                header.block_count.to_string(),
                header.block_bytes.to_string(),
            ]
        });
        let [sequence, captured, replay, blocks, bytes] =
            numbers.unwrap_or_else(|| ["-"; 5].map(str::to_owned));
        let (name, state) = (format!("file {}", file.number), file.state.name().to_owned());
        rows.push([name, state, sequence, captured, replay, blocks, bytes]);
    }
    table(&rows)
}

fn topics(report: &Report) -> String {
    let headings = ["TOPIC", "PARTITIONS", "OFFSETS", "SEGMENTS", "BYTES", "CHECKED", "DAMAGED"];
    let mut rows = vec![headings.map(str::to_owned)];
    for topic in &report.topics {
        let segments: Vec<&SegmentFacts> =
            topic.partitions.iter().flat_map(|partition| &partition.segments).collect();
        let offsets: u64 =
            topic.partitions.iter().map(|partition| partition.end.0.saturating_sub(partition.start.0)).sum();
        rows.push([
            topic.name.clone(),
            topic.partitions.len().to_string(),
            offsets.to_string(),
            segments.len().to_string(),
            segments.iter().map(|segment| segment.bytes).sum::<u64>().to_string(),
            segments.iter().map(|segment| segment.checked_bytes).sum::<u64>().to_string(),
            segments.iter().filter(|segment| segment.is_damaged).count().to_string(),
        ]);
    }
    table(&rows)
}

fn recovery(outcome: &Outcome) -> String {
    let Outcome::Starts { report, next_sequence } = outcome else {
        return format!("would refuse to start: {}", outcome.refusal().unwrap_or_default());
    };
    if report.is_fresh {
        return "would start, as a new directory".to_owned();
    }
    let from = match report.snapshot {
        Some(sequence) => format!("snapshot {}", sequence.0),
        None => "the journal's beginning".to_owned(),
    };
    let torn = match report.torn_at {
        Some(place) => format!(
            "; behind it part of a block that nobody was told about, at byte {} of journal file {}",
            place.position, place.file
        ),
        None => String::new(),
    };
    format!(
        "would start, from {from} and {} blocks with {} entries, up to block {}{torn}",
        report.block_count,
        report.entry_count,
        next_sequence.0.saturating_sub(1)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_what_is_lost_or_that_nothing_is() {
        let mut refused = Plan::default();
        refused.refusal = Some("only a backup helps".to_owned());
        assert_eq!(plan_in_words(&refused), "\nrepair:\n  refused: only a backup helps\n");
        let mut nothing = Plan::default();
        nothing.remains = vec!["a segment".to_owned()];
        let nothing = plan_in_words(&nothing);
        assert!(nothing.contains("nothing that a repair would change"), "{nothing}");
        assert!(nothing.ends_with("  stays as it is:\n    - a segment\n"), "{nothing}");
    }
}
