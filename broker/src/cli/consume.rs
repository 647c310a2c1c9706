//! `forebay consume`: prints records, one on each line, in the order of offsets within each partition.
//!
//! Without `--follow` it ends at the durable end that the topic had when it started, and prints nothing behind that,
//! so that two runs over a quiet topic print the same. Where records are damaged or gone it ends with a message that
//! says how to go on.

use std::io::{self, BufWriter, Write};
use std::time::Duration;

use clap::Args;
use client::blocking::{ClientError, SubscribeOptions, Subscription};
use client::connection::{Start, TopicDescription};
use protocol::ids::{Handle, Offset};

use super::units::parse_time_ms;
use super::{EXIT_FAILED, Failure, connect, describe};

/// How long one wait for a batch is; heartbeats go out in between.
const WAIT: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct ConsumeArgs {
    /// The topic to read
    topic: String,
    /// Only this partition
    #[arg(long, value_name = "N")]
    partition: Option<u16>,
    /// Where to start in each partition: earliest, latest, an offset, or a time such as 2026-11-22T10:00:00Z, which
    /// means the first batch that was appended then or later
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
    let explain = |error| explain(args, error);
    let mut subscription = client.subscribe(&args.topic, options).map_err(explain)?;
    let mut ends = if args.follow { None } else { Some(Ends::new(&topic, &subscription)) };
    let mut left = args.max.unwrap_or(u64::MAX);
    let mut output = BufWriter::new(io::stdout().lock());
    let separator = args.key_separator.map(String::from);

    while left > 0 && ends.as_ref().is_none_or(|ends| !ends.are_reached()) {
        let Some(batch) = subscription.next_batch(WAIT).map_err(explain)? else { continue };
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
        number if number.bytes().all(|letter| letter.is_ascii_digit()) => {
            number.parse().map(|offset| Start::Offset(Offset(offset))).map_err(|error| error.to_string())
        }
        time => parse_time_ms(time).map(Start::Time).map_err(|error| {
            format!("neither earliest, nor latest, nor an offset, nor a time such as 2026-11-22T10:00:00Z ({error})")
        }),
    }
}

/// The failure, with the command that goes on behind records that are damaged or gone.
fn explain(args: &ConsumeArgs, error: ClientError) -> Failure {
    let (partition, next) = match &error {
        ClientError::Corrupt(damaged) => (damaged.partition, damaged.next),
        ClientError::OffsetOutOfRange(valid) => {
            let is_ahead = matches!(args.from, Start::Offset(asked) if asked > valid.last);
            (valid.partition, if is_ahead { valid.last } else { valid.first })
        }
        _ => return error.into(),
    };
    let only = partition.map(|handle| format!(" --partition {}", handle.partition())).unwrap_or_default();
    Failure::new(
        EXIT_FAILED,
        format!("{error}; go on with `forebay consume {}{only} --from {next}`", args.topic),
    )
}

#[cfg(test)]
mod tests {
    use client::connection::{DamagedOffsets, ValidOffsets};
    use protocol::ids::TopicKey;

    use super::*;

    #[test]
    fn start_is_a_word_an_offset_or_a_time() {
        assert_eq!(parse_start("latest"), Ok(Start::Latest));
        assert_eq!(parse_start("0"), Ok(Start::Offset(Offset(0))));
        assert_eq!(parse_start("1970-01-01T00:00:01.5Z"), Ok(Start::Time(1_500)));
        for text in ["", "-1", "first", "99999999999999999999", "2026-11-22", "2026-11-22T10:00:00"] {
            assert!(parse_start(text).is_err(), "{text}");
        }
    }

    #[test]
    fn damaged_and_removed_records_come_with_the_command_that_goes_on() {
        let args = |from| ConsumeArgs {
            topic: "orders".to_owned(),
            partition: None,
            from,
            max: None,
            follow: false,
            key_separator: None,
        };
        let explained = |from, error| match explain(&args(from), error) {
            Failure::Message { code: EXIT_FAILED, text } => text,
            other => panic!("{other:?}"),
        };
        let partition = Some(Handle::new(TopicKey { slot: 0, generation: 1 }, 3));
        let damaged = DamagedOffsets { partition, first: Offset(40), next: Offset(90) };
        let text = explained(Start::Earliest, ClientError::Corrupt(damaged));
        assert!(text.starts_with("offsets 40 to 89 of partition 3 cannot be read"), "{text}");
        assert!(text.ends_with("`forebay consume orders --partition 3 --from 90`"), "{text}");

        let valid = ValidOffsets { partition: None, first: Offset(7), last: Offset(9) };
        let text = explained(Start::Offset(Offset(3)), ClientError::OffsetOutOfRange(valid));
        assert!(text.ends_with("it has 7 to 9; go on with `forebay consume orders --from 7`"), "{text}");
        let ahead = explained(Start::Offset(Offset(10)), ClientError::OffsetOutOfRange(valid));
        assert!(ahead.ends_with("--from 9`"), "{ahead}");
    }

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
