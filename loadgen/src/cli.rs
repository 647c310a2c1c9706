//! The command line.
//!
//! Two subcommands are hidden: with them the program executes itself, to be the broker or the floor that it measures
//! in a process of their own.

mod scenario_args;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use protocol::limits::{PARTITIONS_PER_TOPIC_MAX, RECORD_BYTES_MAX, RECORDS_PER_BATCH_MAX};

use crate::stamp::STAMP_BYTES;

pub use scenario_args::{
    CalibrateArgs, ConsumeArgs, FindMaxArgs, PeakShaveArgs, PlaybackArgs, ProduceArgs, ReplayArgs,
    ReportCommand, ScenarioArgs, SoakArgs, StreamArgs, SweepArgs, SweepOver,
};

/// Most connections: as many as one shard takes.
const CONNECTIONS_MAX: i64 = 1_024;
/// Most frames in flight on one connection.
const IN_FLIGHT_MAX: i64 = 65_536;
/// Longest run, in seconds: a week.
const SECONDS_MAX: f64 = 604_800.0;

/// Measures a Forebay broker, and checks that it keeps what it acknowledged.
///
/// Without --connect it starts a broker of its own, on a temporary directory, and removes both at the end.
/// Exit codes: 0 pass, 1 fail, 2 invalid (the load was not what it should have been), 3 error.
#[derive(Debug, Parser)]
#[command(name = "loadgen", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Latency of durable acknowledgements, at a constant rate or one by one
    Latency(Box<LatencyArgs>),
    /// Records per second that the broker acknowledges
    Throughput(Box<ThroughputArgs>),
    /// A burst, absorbed and drained: arithmetic beside what is measured, PASS or FAIL for each criterion
    PeakShave(Box<PeakShaveArgs>),
    /// The highest rate at which the ack latency's p99 stays within a bound
    FindMax(Box<FindMaxArgs>),
    /// Sends records as a plan says, and may consume them at a fixed rate
    Produce(Box<ProduceArgs>),
    /// Fills a topic, and consumes it at a fixed rate
    Consume(Box<ConsumeArgs>),
    /// Sends records as a trace counted them, consumed at a fixed rate
    Replay(Box<ReplayArgs>),
    /// The same rate for long: latency and memory must stay what they are
    Soak(Box<SoakArgs>),
    /// One rate, record size or batch after the other
    Sweep(Box<SweepArgs>),
    /// Phases, targets and assertions from a file
    Run(Box<ScenarioArgs>),
    /// What this generator itself can do, against a server that does nothing
    Calibrate(Box<CalibrateArgs>),
    /// Looks at runs that are over
    #[command(subcommand)]
    Report(ReportCommand),
    /// Writes records, reads all back, and accounts for each by its content
    Verify(Box<VerifyArgs>),
    /// Is the broker
    #[command(hide = true)]
    InternalBroker(Box<broker::cli::ServeArgs>),
    /// Is the floor
    #[command(hide = true)]
    InternalFloor(Box<floor::Options>),
}

/// Where the load goes, and where it comes from.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    /// A broker that runs already; without it, one is started
    #[arg(long, value_name = "ADDR:PORT")]
    pub connect: Option<SocketAddr>,
    /// What to start
    #[arg(long, value_enum, default_value_t = TargetKind::Broker)]
    pub target: TargetKind,
    /// Core of the broker that is started; the first allowed one if absent
    #[arg(long, value_name = "CPU")]
    pub broker_core: Option<usize>,
    /// Core of the load; the second allowed one if absent, or the only one
    #[arg(long, value_name = "CPU")]
    pub core: Option<usize>,
    /// How the broker that is started waits
    #[arg(long, value_enum, default_value_t = Waiting::Adaptive)]
    pub waiting: Waiting,
    /// How the started broker makes records durable
    #[arg(long, value_enum, default_value_t = Durability::Auto)]
    pub durability: Durability,
    /// Length of its journal (512MiB, 2GiB, ...); sized for the run if absent, at most half of --memory-bytes
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub journal_bytes: Option<u64>,
    /// Its memory budget; the journal and 256 MiB if absent
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory_bytes: Option<u64>,
    /// Directory below which it gets a temporary one; the system's, or the current one where that is in memory
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Print one JSON object (loadgen/README.md describes it) instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Whether to measure against the floor.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// Measure the broker and the floor in turns, and print the ratio of their medians
    #[arg(long, conflicts_with_all = ["connect", "target"])]
    pub compare_floor: bool,
    /// Turns of each
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=1_000), requires = "compare_floor")]
    pub rounds: u32,
}

/// `loadgen latency`
#[derive(Args, Clone, Debug)]
pub struct LatencyArgs {
    /// Records per second over all connections; 0 for one in flight per connection
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u64).range(0..=1_000_000_000))]
    pub rate: u64,
    /// Send the next frame of a connection when the one before is answered
    #[arg(long)]
    pub one_in_flight: bool,
    /// Bytes of a record
    #[arg(long, default_value_t = 1_024, value_parser = record_bytes())]
    pub size: u32,
    /// Seconds to measure
    #[arg(long, default_value = "10", value_parser = parse_seconds)]
    pub seconds: f64,
    /// Seconds before, which are not measured
    #[arg(long, default_value = "1", value_parser = parse_warmup)]
    pub warmup: f64,
    /// Connections
    #[arg(long, default_value_t = 1, value_parser = connections())]
    pub connections: u32,
    /// Records in a frame
    #[arg(long, default_value_t = 1, value_parser = batch_records())]
    pub batch: u32,
    /// Frames that may be unanswered on a connection; later ones wait here, and their latency counts that
    #[arg(long, default_value_t = 1_024, value_parser = in_flight())]
    pub in_flight: u32,
    /// Partitions of the topic; one for each connection if absent
    #[arg(long, value_parser = partitions())]
    pub partitions: Option<u32>,
    /// Subscribe, and measure from publish to delivery as well
    #[arg(long, conflicts_with = "compare_floor")]
    pub end_to_end: bool,
    /// Where to.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Against what.
    #[command(flatten)]
    pub compare: CompareArgs,
}

/// `loadgen throughput`
#[derive(Args, Clone, Debug)]
pub struct ThroughputArgs {
    /// Connections
    #[arg(long, default_value_t = 16, value_parser = connections())]
    pub connections: u32,
    /// Frames that may be unanswered on a connection
    #[arg(long, default_value_t = 64, value_parser = in_flight())]
    pub in_flight: u32,
    /// Bytes of a record
    #[arg(long, default_value_t = 1_024, value_parser = record_bytes())]
    pub size: u32,
    /// Records in a frame
    #[arg(long, default_value_t = 1, value_parser = batch_records())]
    pub batch: u32,
    /// Seconds to measure; a run also ends when half of the journal that was started for it is full
    #[arg(long, default_value = "3", value_parser = parse_seconds)]
    pub seconds: f64,
    /// Seconds before, which are not measured
    #[arg(long, default_value = "0.2", value_parser = parse_warmup)]
    pub warmup: f64,
    /// Topics
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=16_384))]
    pub topics: u32,
    /// Partitions of each topic; one for each connection if absent
    #[arg(long, value_parser = partitions())]
    pub partitions: Option<u32>,
    /// Where to.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Against what.
    #[command(flatten)]
    pub compare: CompareArgs,
}

/// `loadgen verify`
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// Records to write
    #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u64).range(1..=100_000_000))]
    pub records: u64,
    /// Bytes of the longest record; the others are shorter
    #[arg(long, default_value_t = 1_024, value_parser = record_bytes())]
    pub size: u32,
    /// Records in a frame
    #[arg(long, default_value_t = 1, value_parser = batch_records())]
    pub batch: u32,
    /// Connections
    #[arg(long, default_value_t = 4, value_parser = connections())]
    pub connections: u32,
    /// Frames that may be unanswered on a connection
    #[arg(long, default_value_t = 64, value_parser = in_flight())]
    pub in_flight: u32,
    /// Partitions of the topic; one for each connection if absent
    #[arg(long, value_parser = partitions())]
    pub partitions: Option<u32>,
    /// Seconds after which writing ends, whatever is left
    #[arg(long, value_parser = parse_seconds)]
    pub seconds: Option<f64>,
    /// Kill the broker with SIGKILL amid the load, start it again on the same directory, and go on
    #[arg(long, conflicts_with = "connect")]
    pub kill: bool,
    /// How often
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=1_000), requires = "kill")]
    pub kills: u32,
    /// Decides the records' contents and when to kill; printed, so that it can be given again
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where to.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TargetKind {
    /// Forebay
    Broker,
    /// The smallest program that makes the same system calls
    Floor,
}

impl TargetKind {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Floor => "floor",
        }
    }
}

/// How a broker waits for what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Waiting {
    /// Spins while answers wait for a commit, else sleeps
    Adaptive,
    /// Sleeps
    Park,
    /// Never sleeps
    Busy,
}

/// How a started broker makes records durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// As it finds best for the device; a comparison uses `flush` for both
    Auto,
    /// Plain writes, then a flush
    Flush,
    /// Each write carries its own sync
    Sync,
}

impl Durability {
    /// As on the broker's command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Flush => "flush",
            Self::Sync => "sync",
        }
    }

    /// The same for both sides of a comparison.
    #[must_use]
    pub fn pinned(self) -> Self {
        if self == Self::Auto { Self::Flush } else { self }
    }
}

impl Waiting {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Park => "park",
            Self::Busy => "busy",
        }
    }
}

fn record_bytes() -> clap::builder::RangedI64ValueParser<u32> {
    value_parser!(u32).range(STAMP_BYTES as i64..=RECORD_BYTES_MAX as i64)
}

fn batch_records() -> clap::builder::RangedI64ValueParser<u32> {
    value_parser!(u32).range(1..=RECORDS_PER_BATCH_MAX as i64)
}

fn connections() -> clap::builder::RangedI64ValueParser<u32> {
    value_parser!(u32).range(1..=CONNECTIONS_MAX)
}

fn in_flight() -> clap::builder::RangedI64ValueParser<u32> {
    value_parser!(u32).range(1..=IN_FLIGHT_MAX)
}

fn partitions() -> clap::builder::RangedI64ValueParser<u32> {
    value_parser!(u32).range(1..=i64::from(PARTITIONS_PER_TOPIC_MAX))
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = parse_warmup(text)?;
    if seconds > 0.0 { Ok(seconds) } else { Err("must be more than 0".to_owned()) }
}

fn parse_warmup(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (0.0..=SECONDS_MAX).contains(&seconds) { Ok(seconds) } else { Err("must be 0 to 604800".to_owned()) }
}

/// A length such as `64MiB`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        unit => return Err(format!("`{unit}` is no unit: take B, KiB, MiB or GiB")),
    };
    let number: u64 = digits.parse().map_err(|_| "not a number of bytes".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too many bytes".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"loadgen").chain(words))
    }

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bytes_take_units() {
        assert_eq!(parse_bytes("4096"), Ok(4_096));
        assert_eq!(parse_bytes("3MiB"), Ok(3 << 20));
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        for wrong in ["", "GiB", "1GB", "-1", "99999999999GiB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(parse(&["latency", "--size", "35"]).is_err());
        assert!(parse(&["latency", "--seconds", "0"]).is_err());
        assert!(parse(&["throughput", "--connections", "0"]).is_err());
        assert!(parse(&["latency", "--compare-floor", "--connect", "127.0.0.1:1"]).is_err());
        assert!(parse(&["verify", "--kills", "3"]).is_err());
        assert!(parse(&["verify", "--kill", "--kills", "3"]).is_ok());
        assert!(parse(&["latency", "--rate", "0", "--warmup", "0", "--json"]).is_ok());
    }
}
