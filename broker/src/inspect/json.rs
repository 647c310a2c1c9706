//! A report for programs: one JSON object on one line.
//!
//! Field names are stable; a later version may add some. Numbers are whole and not negative; ids that need more than 53
//! bits are text in hexadecimal.

use std::fmt;

use super::problem::{Problem, RecordRange, name_of};
use super::repair::Repair;
use super::report::{
    CopyState, JournalFile, Loss, Outcome, PartitionFacts, Report, SegmentFacts, SnapshotFile, TopicFacts,
    UnnamedSegment, state_name,
};
use crate::io::File;

/// A JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number.
    Number(u64),
    /// Text.
    Text(String),
    /// `[...]`
    List(Vec<Self>),
    /// `{...}`, in this order.
    Object(Vec<(&'static str, Self)>),
}

/// The object. Of a run with `--repair` it is what was found behind the repair.
///
/// ```text
/// directory          text
/// verdict            "clean", "damaged" or "refused"
/// exit_code          0, 1 or 4
/// directory_id       text, 32 digits in hexadecimal; null without a good superblock
/// superblock         [{copy, position, state, epoch, first_sequence, journal_files, shards}]
///                    state: "valid", "empty", "damaged" or "other_version"; the numbers are null unless it is valid
/// journal            [{file, bytes, data_blocks, marker_blocks, other_blocks, lowest_sequence, highest_sequence,
///                    bad_blocks: [{position, sequence, epoch}]}]; the sequences are null without a whole block
/// snapshots          [{file, bytes, state, sequence, epoch, captured_sequence, captured_entry, replay_sequence,
///                    replay_file, replay_position, blocks, block_bytes, bad_position}]
///                    state: "valid", "empty", "overwritten" or "damaged"; the numbers are null without a good first page
/// recovery           {starts, error, is_new, epoch, snapshot, blocks, entries, bytes, next_sequence, torn_file,
///                    torn_position}; error: text, null if it starts, and then the rest is not null but for `snapshot`
///                    (none) and the torn ones (no tail that nobody was told about)
/// topics             [{topic, partitions: [{partition, handle, start_offset, end_offset, segments: [{file, number,
///                    state, base_offset, end_offset, bytes, checked_bytes, damaged}]}]}]
///                    state: "open", "closed" or "sealed"
/// unnamed_segments   [{file, bytes, handle, base_offset, end_offset}]; the last three are null unless it is sealed
/// loss               null, or what a cut of the journal loses: {first_sequence, last_sequence, readable_blocks, records:
///                    [{topic, partition, handle, from_offset, end_offset}], topics_created: [text], other_entries}
/// problems           [{kind, file, position, what, topic, partition, handle, from_offset, end_offset}]; the last five are
///                    null where no records are concerned. Offsets: from `from_offset` on and before `end_offset`
/// repair             null, or {done, kept_in, refused, steps: [text], losses: [text], remains: [text]}; kept_in and
///                    refused: text or null; remains: damage that a repair leaves as it is
/// ```
#[must_use]
pub fn report_object(report: &Report, repair: Option<&Repair>) -> Value {
    let directory_id = report.newest_superblock().map(|superblock| superblock.directory_id);
    let copies = report.superblock.iter().enumerate();
    Value::Object(vec![
        ("directory", text(&report.directory.display())),
        ("verdict", text(&report.verdict().name())),
        ("exit_code", Value::Number(u64::from(report.verdict().exit_code()))),
        ("directory_id", or_null(directory_id, |id| text(&format_args!("{id:032x}")))),
        ("superblock", Value::List(copies.map(|(number, copy)| copy_object(number, *copy)).collect())),
        ("journal", list(&report.journal, journal_object)),
        ("snapshots", list(&report.snapshots, snapshot_object)),
        ("recovery", recovery_object(&report.outcome)),
        ("topics", list(&report.topics, topic_object)),
        ("unnamed_segments", list(&report.unnamed, unnamed_object)),
        ("loss", or_null(report.loss.as_ref(), loss_object)),
        ("problems", list(&report.problems, problem_object)),
        ("repair", or_null(repair, repair_object)),
    ])
}

fn copy_object(number: usize, copy: CopyState) -> Value {
    let superblock = match copy {
        CopyState::Valid(superblock) => Some(superblock),
        CopyState::Empty | CopyState::Damaged | CopyState::Version(_) => None,
    };
    Value::Object(vec![
        ("copy", Value::Number(number as u64)),
        ("position", Value::Number(super::superblocks::position_of(number))),
        ("state", text(&copy.name())),
        ("epoch", number_or_null(superblock.map(|superblock| u64::from(superblock.epoch.0)))),
        ("first_sequence", number_or_null(superblock.map(|superblock| superblock.first_sequence.0))),
        (
            "journal_files",
            number_or_null(superblock.map(|superblock| u64::from(superblock.journal_file_count))),
        ),
        ("shards", number_or_null(superblock.map(|superblock| u64::from(superblock.shard_count)))),
    ])
}

fn journal_object(file: &JournalFile) -> Value {
    let bad_blocks = list(&file.bad_blocks, |bad| {
        Value::Object(vec![
            ("position", Value::Number(bad.position)),
            ("sequence", Value::Number(bad.sequence.0)),
            ("epoch", Value::Number(u64::from(bad.epoch.0))),
        ])
    });
    Value::Object(vec![
        ("file", Value::Text(name_of(File::Journal(file.number)))),
        ("bytes", Value::Number(file.bytes)),
        ("data_blocks", Value::Number(file.data_blocks)),
        ("marker_blocks", Value::Number(file.marker_blocks)),
        ("other_blocks", Value::Number(file.other_blocks)),
        ("lowest_sequence", number_or_null(file.sequences.map(|(lowest, _)| lowest.0))),
        ("highest_sequence", number_or_null(file.sequences.map(|(_, highest)| highest.0))),
        ("bad_blocks", bad_blocks),
    ])
}

fn snapshot_object(file: &SnapshotFile) -> Value {
    let header = file.header;
    let captured = header.map(|header| header.captured);
    Value::Object(vec![
        ("file", Value::Text(name_of(File::Snapshot(file.number)))),
        ("bytes", Value::Number(file.bytes)),
        ("state", text(&file.state.name())),
        ("sequence", number_or_null(header.map(|header| header.sequence.0))),
        ("epoch", number_or_null(header.map(|header| u64::from(header.epoch.0)))),
        ("captured_sequence", number_or_null(captured.map(|lsn| lsn.sequence().0))),
        ("captured_entry", number_or_null(captured.map(|lsn| lsn.0 & 0xFFFF))),
        ("replay_sequence", number_or_null(header.map(|header| header.next_sequence.0))),
        ("replay_file", or_null(header, |header| Value::Text(name_of(File::Journal(header.journal_file))))),
        ("replay_position", number_or_null(header.map(|header| header.journal_position))),
        ("blocks", number_or_null(header.map(|header| u64::from(header.block_count)))),
        ("block_bytes", number_or_null(header.map(|header| header.block_bytes))),
        ("bad_position", number_or_null(file.bad_at)),
    ])
}

fn recovery_object(outcome: &Outcome) -> Value {
    let found = match outcome {
        Outcome::Starts { report, next_sequence } => Some((*report, *next_sequence)),
        Outcome::Refuses(_) | Outcome::UnknownFile(_) => None,
    };
    let report = found.map(|(report, _)| report);
    let torn = report.and_then(|report| report.torn_at);
    Value::Object(vec![
        ("starts", Value::Bool(found.is_some())),
        ("error", or_null(outcome.refusal(), Value::Text)),
        ("is_new", or_null(report, |report| Value::Bool(report.is_fresh))),
        ("epoch", number_or_null(report.map(|report| u64::from(report.epoch.0)))),
        ("snapshot", number_or_null(report.and_then(|report| report.snapshot).map(|sequence| sequence.0))),
        ("blocks", number_or_null(report.map(|report| report.block_count))),
        ("entries", number_or_null(report.map(|report| report.entry_count))),
        ("bytes", number_or_null(report.map(|report| report.journal_bytes))),
        ("next_sequence", number_or_null(found.map(|(_, next)| next.0))),
        ("torn_file", or_null(torn, |place| Value::Text(name_of(File::Journal(place.file as u32))))),
        ("torn_position", number_or_null(torn.map(|place| place.position))),
    ])
}

fn topic_object(topic: &TopicFacts) -> Value {
    Value::Object(vec![
        ("topic", text(&topic.name)),
        ("partitions", list(&topic.partitions, partition_object)),
    ])
}

fn partition_object(partition: &PartitionFacts) -> Value {
    Value::Object(vec![
        ("partition", Value::Number(u64::from(partition.handle.partition()))),
        ("handle", text(&partition.handle)),
        ("start_offset", Value::Number(partition.start.0)),
        ("end_offset", Value::Number(partition.end.0)),
        ("segments", list(&partition.segments, segment_object)),
    ])
}

fn segment_object(segment: &SegmentFacts) -> Value {
    Value::Object(vec![
        ("file", Value::Text(name_of(File::Segment(segment.number.0)))),
        ("number", text(&format_args!("{:016x}", segment.number.0))),
        ("state", text(&state_name(segment.state))),
        ("base_offset", Value::Number(segment.base_offset.0)),
        ("end_offset", Value::Number(segment.end_offset.0)),
        ("bytes", Value::Number(segment.bytes)),
        ("checked_bytes", Value::Number(segment.checked_bytes)),
        ("damaged", Value::Bool(segment.is_damaged)),
    ])
}

fn unnamed_object(segment: &UnnamedSegment) -> Value {
    Value::Object(vec![
        ("file", Value::Text(name_of(File::Segment(segment.number.0)))),
        ("bytes", Value::Number(segment.bytes)),
        ("handle", or_null(segment.facts, |facts| text(&facts.partition))),
        ("base_offset", number_or_null(segment.facts.map(|facts| facts.base_offset.0))),
        ("end_offset", number_or_null(segment.facts.map(|facts| facts.end_offset.0))),
    ])
}

fn loss_object(loss: &Loss) -> Value {
    Value::Object(vec![
        ("first_sequence", Value::Number(loss.first.0)),
        ("last_sequence", Value::Number(loss.last.0)),
        ("readable_blocks", Value::Number(loss.readable_blocks)),
        ("records", list(&loss.partitions, |records| Value::Object(range_fields(Some(records))))),
        ("topics_created", list(&loss.topics_created, |name| text(name))),
        ("other_entries", Value::Number(loss.other_entries)),
    ])
}

fn problem_object(problem: &Problem) -> Value {
    let mut fields = vec![
        ("kind", text(&problem.kind.name())),
        ("file", text(&problem.file)),
        ("position", number_or_null(problem.position)),
        ("what", text(&problem.what)),
    ];
    fields.extend(range_fields(problem.records.as_ref()));
    Value::Object(fields)
}

fn range_fields(records: Option<&RecordRange>) -> Vec<(&'static str, Value)> {
    let topic = records.and_then(|records| records.topic.as_ref());
    let partition = records.map(|records| u64::from(records.handle.partition()));
    vec![
        ("topic", or_null(topic, |name| text(name))),
        ("partition", number_or_null(partition)),
        ("handle", or_null(records, |records| text(&records.handle))),
        ("from_offset", number_or_null(records.map(|records| records.from.0))),
        ("end_offset", number_or_null(records.map(|records| records.end.0))),
    ]
}

fn repair_object(repair: &Repair) -> Value {
    Value::Object(vec![
        ("done", Value::Bool(repair.kept_in.is_some())),
        ("kept_in", or_null(repair.kept_in.as_ref(), |path| text(&path.display()))),
        ("refused", or_null(repair.plan.refusal.as_ref(), |refusal| text(refusal))),
        ("steps", list(&repair.plan.steps, |step| text(step))),
        ("losses", list(&repair.plan.losses, |loss| text(loss))),
        ("remains", list(&repair.plan.remains, |damage| text(damage))),
    ])
}

fn text(shown: &dyn fmt::Display) -> Value {
    Value::Text(shown.to_string())
}

fn number_or_null(number: Option<u64>) -> Value {
    or_null(number, Value::Number)
}

fn or_null<T>(found: Option<T>, value: impl FnOnce(T) -> Value) -> Value {
    found.map_or(Value::Null, value)
}

fn list<T>(all: &[T], value: impl Fn(&T) -> Value) -> Value {
    Value::List(all.iter().map(value).collect())
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(is_true) => write!(f, "{is_true}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write_text(f, text),
            Self::List(values) => {
                f.write_str("[")?;
                for (number, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if number > 0 { "," } else { "" })?;
                }
                f.write_str("]")
            }
            Self::Object(fields) => {
                f.write_str("{")?;
                for (number, (name, value)) in fields.iter().enumerate() {
                    f.write_str(if number > 0 { "," } else { "" })?;
                    write_text(f, name)?;
                    write!(f, ":{value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for letter in text.chars() {
        match letter {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            control if u32::from(control) < 0x20 => write!(f, "\\u{:04x}", u32::from(control))?,
            other => write!(f, "{other}")?,
        }
    }
    f.write_str("\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_json() {
        let value = Value::Object(vec![
            ("none", Value::Null),
            ("list", Value::List(vec![Value::Number(u64::MAX), Value::Bool(true)])),
            ("text", Value::Text("a \"b\"\\\n\u{1}ä".to_owned())),
            ("empty", Value::List(Vec::new())),
        ]);
        let written = "{\"none\":null,\"list\":[18446744073709551615,true],\
                       \"text\":\"a \\\"b\\\"\\\\\\u000a\\u0001ä\",\"empty\":[]}";
        assert_eq!(value.to_string(), written);
    }
}
