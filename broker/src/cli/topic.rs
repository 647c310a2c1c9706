//! `forebay topic`: create, list, describe and delete.
//!
//! Lists are plain tables: a line of headings, columns padded with spaces, no decoration that a script would trip on.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use client::connection::{TopicDescription, TopicSettings, TopicSummary};
use protocol::wire::AckClass;

use super::units::{format_duration_ms, format_size, parse_duration_ms, parse_size};
use super::{Failure, connect, describe};

#[derive(Debug, Subcommand)]
pub(super) enum TopicCommand {
    /// Create a topic
    Create(CreateArgs),
    /// List all topics with their settings
    List,
    /// Show a topic's settings, partitions and offsets
    Describe {
        /// The topic
        name: String,
    },
    /// Delete a topic and its records
    Delete {
        /// The topic
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Letters, digits, dot, underscore, hyphen
    name: String,
    /// Number of partitions; fixed for ever
    #[arg(long, default_value_t = 1, value_name = "N")]
    partitions: u32,
    /// Records older than this may be removed: 7d, 12h, 30m, 90s; by default age removes nothing
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms)]
    retention: Option<u64>,
    /// Keep at least the newest so many bytes of each partition, such as 10GiB, and remove what is older; by default
    /// size removes nothing
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    retention_bytes: Option<u64>,
    /// Close a segment file at this length, such as 64MiB; removal goes by whole segments
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    segment_bytes: Option<u64>,
    /// Close a segment file at this age although it is shorter
    #[arg(long, value_name = "DURATION", value_parser = parse_duration_ms)]
    segment_age: Option<u64>,
    /// Keep only the last record of each key
    #[arg(long)]
    compact: bool,
}

impl CreateArgs {
    pub(super) fn settings(&self) -> TopicSettings {
        TopicSettings {
            retention_ms: self.retention.unwrap_or(0),
            retention_bytes: self.retention_bytes.unwrap_or(0),
            segment_bytes: self.segment_bytes.unwrap_or(0),
            segment_ms: self.segment_age.unwrap_or(0),
            compact: self.compact,
        }
    }
}

pub(super) fn run(address: &str, command: &TopicCommand) -> Result<(), Failure> {
    let mut client = connect(address)?;
    let mut output = io::stdout().lock();
    match command {
        TopicCommand::Create(args) => {
            let topic = client.create_topic_with(&args.name, args.partitions, &args.settings())?;
            writeln!(output, "created {} with {} partitions", topic.name, topic.partitions.len())?;
        }
        TopicCommand::List => {
            output.write_all(list(&client.list_topics()?).as_bytes())?;
        }
        TopicCommand::Describe { name } => {
            let topic = describe(&mut client, name)?;
            output.write_all(description(&topic).as_bytes())?;
        }
        TopicCommand::Delete { name } => {
            client.delete_topic(name)?;
            writeln!(output, "deleted {name}")?;
        }
    }
    output.flush()?;
    Ok(())
}

fn list(topics: &[TopicSummary]) -> String {
    let headings = [
        "TOPIC",
        "PARTITIONS",
        "ACKNOWLEDGED",
        "RETENTION",
        "RETENTION-BYTES",
        "SEGMENT-BYTES",
        "SEGMENT-AGE",
        "COMPACT",
    ];
    let mut rows = vec![headings.map(str::to_owned)];
    for topic in topics {
        let settings = &topic.settings;
        rows.push([
            topic.name.clone(),
            topic.partition_count.to_string(),
            ack_class(topic.ack_class),
            format_duration_ms(settings.retention_ms),
            format_size(settings.retention_bytes),
            format_size(settings.segment_bytes),
            format_duration_ms(settings.segment_ms),
            if settings.compact { "yes" } else { "-" }.to_owned(),
        ]);
    }
    table(&rows)
}

/// The settings as the options that made them; those left to the broker are not named.
fn options(settings: &TopicSettings) -> String {
    let amounts = [
        ("--retention", settings.retention_ms, format_duration_ms(settings.retention_ms)),
        ("--retention-bytes", settings.retention_bytes, format_size(settings.retention_bytes)),
        ("--segment-bytes", settings.segment_bytes, format_size(settings.segment_bytes)),
        ("--segment-age", settings.segment_ms, format_duration_ms(settings.segment_ms)),
    ];
    let mut named: Vec<String> = amounts
        .into_iter()
        .filter(|(_, amount, _)| *amount > 0)
        .map(|(option, _, written)| format!("{option} {written}"))
        .collect();
    if settings.compact {
        named.push("--compact".to_owned());
    }
    if named.is_empty() { "none".to_owned() } else { named.join(" ") }
}

fn description(topic: &TopicDescription) -> String {
    let headings = ["PARTITION", "HANDLE", "SHARD", "START", "END", "RECORDS", "BYTES"];
    let mut rows = vec![headings.map(str::to_owned)];
    for partition in &topic.partitions {
        let record_count = partition.end_offset.0.saturating_sub(partition.start_offset.0).to_string();
        // Compaction leaves gaps, and nobody counts them.
        let record_count = if topic.settings.compact { "-".to_owned() } else { record_count };
        rows.push([
            partition.handle.partition().to_string(),
            partition.handle.to_string(),
            partition.shard.to_string(),
            partition.start_offset.to_string(),
            partition.end_offset.to_string(),
            record_count,
            partition.stored_bytes.to_string(),
        ]);
    }
    let (name, class, settings) = (&topic.name, ack_class(topic.ack_class), options(&topic.settings));
    format!("{name}, acknowledged {class}, settings: {settings}\n{}", table(&rows))
}

fn ack_class(class: AckClass) -> String {
    match class {
        AckClass::Durable => "durable".to_owned(),
        AckClass::Memory => "memory".to_owned(),
        other => format!("class {}", other.0),
    }
}

/// Rows with their columns aligned to the left, two spaces apart; no space at a line's end.
pub(super) fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use client::connection::PartitionDescription;
    use protocol::ids::{Handle, Offset, TopicKey};

    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["TOPIC", "N"], ["a", "16"], ["long-name", "1"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "TOPIC      N\na          16\nlong-name  1\n");
    }

    #[test]
    fn settings_are_shown_as_they_were_given() {
        let settings = TopicSettings {
            retention_ms: 604_800_000,
            segment_bytes: 64 << 20,
            compact: true,
            ..TopicSettings::default()
        };
        assert_eq!(options(&settings), "--retention 7d --segment-bytes 64MiB --compact");
        let topic =
            TopicSummary { name: "t".to_owned(), partition_count: 2, ack_class: AckClass::Durable, settings };
        let text = list(&[topic]);
        let cells: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(cells, ["t", "2", "durable", "7d", "-", "64MiB", "-", "yes"]);
    }

    #[test]
    fn description_shows_offsets_of_each_partition() {
        let partition = PartitionDescription {
            handle: Handle::new(TopicKey { slot: 2, generation: 9 }, 0),
            start_offset: Offset(5),
            end_offset: Offset(12),
            stored_bytes: 4096,
            shard: 1,
        };
        let topic = TopicDescription {
            name: "orders".to_owned(),
            ack_class: AckClass::Durable,
            created_ms: 0,
            partitions: vec![partition],
            settings: TopicSettings::default(),
        };
        let text = description(&topic);
        let start = "orders, acknowledged durable, settings: none\nPARTITION  HANDLE";
        assert!(text.starts_with(start), "{text}");
        assert!(text.ends_with("\n0          2.9/0   1      5      12   7        4096\n"), "{text}");
    }
}
