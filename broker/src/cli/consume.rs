//! `forebay consume`: prints records, one on each line, in the order of offsets within each partition.
//!
//! Without `--follow` it ends at the durable end that the topic had when it started, and prints nothing behind that,
//! so that two runs over a quiet topic print the same.

use std::io::{self, BufWriter, Write};
use std::time::Duration;

use clap::Args;
use client::blocking::{SubscribeOptions, Subscription};
use client::connection::{Start, TopicDescription};
use protocol::ids::{Handle, Offset};

use super::{Failure, connect, describe};

/// How long one wait for a batch is; heartbeats go out in between.
const WAIT: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct ConsumeArgs {
    /// The topic to read
    topic: String,
    /// Only this partition
    #[arg(long, value_name = "N")]
    partition: Option<u16>,
    /// Where to start in each partition: earliest, latest, or an offset
    #[arg(long, default_value = "earliest", value_name = "START", value_parser = parse_start)]
    pub(super) from: Start,
    /// End after so many records
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// Wait for new records at the end
    #[arg(long)]
    follow: bool,
    /// Print each record's key, and this character, before its value
    #[arg(long, value_name = "CHARACTER")]
    key_separator: Option<char>,
}

pub(super) fn run(address: &str, args: &ConsumeArgs) -> Result<(), Failure> {
    let mut client = connect(address)?;
    let topic = describe(&mut client, &args.topic)?;
    let options =
        SubscribeOptions { partition: args.partition, from: args.from, ..SubscribeOptions::default() };
    let mut subscription = client.subscribe(&args.topic, options)?;
    let mut ends = if args.follow { None } else { Some(Ends::new(&topic, &subscription)) };
    let mut left = args.max.unwrap_or(u64::MAX);
    let mut output = BufWriter::new(io::stdout().lock());
    let separator = args.key_separator.map(String::from);

    while left > 0 && ends.as_ref().is_none_or(|ends| !ends.are_reached()) {
        let Some(batch) = subscription.next_batch(WAIT)? else { continue };
        let end = ends.as_ref().map_or(Offset(u64::MAX), |ends| ends.of(batch.partition()));
        for record in batch.records().take_while(|record| record.offset < end) {
            if left == 0 {
                break;
            }
            left -= 1;
            if let Some(separator) = &separator {
                output.write_all(record.key)?;
                output.write_all(separator.as_bytes())?;
            }
            output.write_all(record.value)?;
            output.write_all(b"\n")?;
        }
        output.flush()?;
        if let Some(ends) = &mut ends {
            ends.on_read(batch.partition(), batch.next_offset());
        }
    }
    Ok(())
}

/// The partitions whose end was not reached yet, each with its end.
#[derive(Debug)]
struct Ends(Vec<(Handle, Offset)>);

impl Ends {
    fn new(topic: &TopicDescription, subscription: &Subscription) -> Self {
        let end_of = |handle: Handle| {
            let described = topic.partitions.iter().find(|partition| partition.handle == handle)?;
            Some(described.end_offset)
        };
        let open = subscription.partitions().iter().filter_map(|subscribed| {
            let end = end_of(subscribed.handle)?;
            (subscribed.start_offset < end).then_some((subscribed.handle, end))
        });
        Self(open.collect())
    }

    fn are_reached(&self) -> bool {
        self.0.is_empty()
    }

    /// The end of a partition; 0, so that nothing more of it is wanted, once it was reached.
    fn of(&self, partition: Handle) -> Offset {
        self.0.iter().find(|(handle, _)| *handle == partition).map_or(Offset(0), |(_, end)| *end)
    }

    fn on_read(&mut self, partition: Handle, next_offset: Offset) {
        self.0.retain(|(handle, end)| *handle != partition || next_offset < *end);
    }
}

fn parse_start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        number => number
            .parse()
            .map(|offset| Start::Offset(Offset(offset)))
            .map_err(|_| "neither earliest, nor latest, nor an offset".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use protocol::ids::TopicKey;

    use super::*;

    #[test]
    fn ends_are_reached_partition_by_partition() {
        let partition = |number| Handle::new(TopicKey { slot: 0, generation: 1 }, number);
        let mut ends = Ends(vec![(partition(0), Offset(10)), (partition(1), Offset(5))]);
        ends.on_read(partition(0), Offset(9));
        assert_eq!(ends.of(partition(0)), Offset(10));
        ends.on_read(partition(0), Offset(12));
        assert_eq!(ends.of(partition(0)), Offset(0));
        assert!(!ends.are_reached());
        ends.on_read(partition(1), Offset(5));
        assert!(ends.are_reached());
    }
}
