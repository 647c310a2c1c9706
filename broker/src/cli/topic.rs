//! `forebay topic`: create, list, describe and delete.
//!
//! Lists are plain tables: a line of headings, columns padded with spaces, no decoration that a script would trip on.

use std::io::{self, Write};

use clap::Subcommand;
use client::connection::TopicDescription;
use protocol::wire::AckClass;

use super::{Failure, connect, describe};

#[derive(Debug, Subcommand)]
pub(super) enum TopicCommand {
    /// Create a topic
    Create {
        /// Letters, digits, dot, underscore, hyphen
        name: String,
        /// Number of partitions; fixed for ever
        #[arg(long, default_value_t = 1, value_name = "N")]
        partitions: u32,
    },
    /// List all topics
    List,
    /// Show a topic's partitions and offsets
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

pub(super) fn run(address: &str, command: &TopicCommand) -> Result<(), Failure> {
    let mut client = connect(address)?;
    let mut output = io::stdout().lock();
    match command {
        TopicCommand::Create { name, partitions } => {
            let topic = client.create_topic(name, *partitions)?;
            writeln!(output, "created {} with {} partitions", topic.name, topic.partitions.len())?;
        }
        TopicCommand::List => {
            let mut rows = vec![["TOPIC", "PARTITIONS", "ACKNOWLEDGED"].map(str::to_owned)];
            for topic in client.list_topics()? {
                rows.push([topic.name, topic.partition_count.to_string(), ack_class(topic.ack_class)]);
            }
            output.write_all(table(&rows).as_bytes())?;
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

fn description(topic: &TopicDescription) -> String {
    let headings = ["PARTITION", "HANDLE", "SHARD", "START", "END", "RECORDS", "BYTES"];
    let mut rows = vec![headings.map(str::to_owned)];
    for partition in &topic.partitions {
        let record_count = partition.end_offset.0.saturating_sub(partition.start_offset.0);
        rows.push([
            partition.handle.partition().to_string(),
            partition.handle.to_string(),
            partition.shard.to_string(),
            partition.start_offset.to_string(),
            partition.end_offset.to_string(),
            record_count.to_string(),
            partition.stored_bytes.to_string(),
        ]);
    }
    format!("{}, acknowledged {}\n{}", topic.name, ack_class(topic.ack_class), table(&rows))
}

fn ack_class(class: AckClass) -> String {
    match class {
        AckClass::Durable => "durable".to_owned(),
        AckClass::Memory => "memory".to_owned(),
        other => format!("class {}", other.0),
    }
}

/// Rows with their columns aligned to the left, two spaces apart; no space at a line's end.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
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
        };
        let text = description(&topic);
        assert!(text.starts_with("orders, acknowledged durable\nPARTITION  HANDLE"), "{text}");
        assert!(text.ends_with("\n0          2.9/0   1      5      12   7        4096\n"), "{text}");
    }
}
