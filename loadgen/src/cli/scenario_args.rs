//! The arguments of the commands that run phases.
//!
//! Rates and durations are words of the arrival grammar: `20k`, `500ms`.

use std::path::PathBuf;

use clap::{Args, Parser, value_parser};

use super::{
    Cli, Command, TargetArgs, batch_records, connections, in_flight, parse_bytes, partitions, record_bytes,
};
use crate::arrivals::{parse_duration, parse_rate};

/// What is sent, and where results go.
#[derive(Args, Clone, Debug)]
pub struct StreamArgs {
    /// Bytes of a record
    #[arg(long, default_value_t = 1_024, value_parser = record_bytes(), conflicts_with = "payload")]
    pub size: u32,
    /// Send the lines of this file instead, one after the other
    #[arg(long, value_name = "FILE")]
    pub payload: Option<PathBuf>,
    /// Records in a frame
    #[arg(long, default_value_t = 1, value_parser = batch_records())]
    pub batch: u32,
    /// Connections
    #[arg(long, default_value_t = 4, value_parser = connections())]
    pub connections: u32,
    /// Frames that may be unanswered on a connection; later ones wait here, and their latency counts that
    #[arg(long, default_value_t = 1_024, value_parser = in_flight())]
    pub in_flight: u32,
    /// Partitions of the topic; one for each connection if absent
    #[arg(long, value_parser = partitions())]
    pub partitions: Option<u32>,
    /// Bytes that each partition keeps at least, such as 64MiB; older segments are dropped. All is kept if absent
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub retention_bytes: Option<u64>,
    /// Send all that is overdue at once after a stall, instead of at twice the planned rate
    #[arg(long)]
    pub burst_after_stall: bool,
    /// Decides all that is random
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Folder of the run; a new one below loadgen-runs if absent
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write no folder
    #[arg(long, conflicts_with = "out")]
    pub no_out: bool,
    /// Show the run on the whole terminal as it goes; lines where there is none
    #[arg(long)]
    pub tui: bool,
}

impl StreamArgs {
    /// Those of a command line of `produce`, with its limits.
    pub(crate) fn of_words(words: &[String]) -> Result<Self, String> {
        let parsed = Cli::try_parse_from(words).map_err(|error| {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        })?;
        match parsed.command {
            Command::Produce(args) => Ok(args.stream),
            _ => Err("not a stream".to_owned()),
        }
    }
}

/// `loadgen peak-shave`
#[derive(Args, Clone, Debug)]
pub struct PeakShaveArgs {
    /// Records per second before and after the spike; such that the spike is 0.55 of find-max if absent
    #[arg(long, value_name = "RATE", value_parser = positive_rate)]
    pub base: Option<f64>,
    /// How many times the base rate the spike is
    #[arg(long, default_value_t = 10.0, value_parser = parse_factor)]
    pub factor: f64,
    /// Run once for each of these factors, as in 2,5,10,20,50, and say up to which the criteria are met; needs --base
    #[arg(long, value_delimiter = ',', value_parser = parse_factor, conflicts_with = "factor", requires = "base")]
    pub factors: Vec<f64>,
    /// Records per second that are consumed; 4 times the base rate if absent
    #[arg(long, value_name = "RATE", value_parser = positive_rate)]
    pub consume: Option<f64>,
    /// Consumers stand still during the spike
    #[arg(long)]
    pub consumers_stopped: bool,
    /// Kill the broker with SIGKILL in the middle of the spike, start it again on the same directory, and go on
    #[arg(long, conflicts_with = "connect")]
    pub kill: bool,
    /// Length of the warm-up, which is not measured
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub warmup: u64,
    /// Length of the base phase
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub base_for: u64,
    /// Length of the spike
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub spike_for: u64,
    /// Make the spike so long that its backlog is so many times the broker's memory budget; needs --memory-bytes
    #[arg(long, value_name = "TIMES", value_parser = parse_factor)]
    pub backlog_of_memory: Option<f64>,
    /// Length of the recovery phase
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub recovery_for: u64,
    /// Do not measure the floor before, and leave its criterion out
    #[arg(long)]
    pub no_floor: bool,
    /// p99 up to which find-max may go, when the base rate is not given
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = duration)]
    pub p99_max: u64,
    /// What.
    #[command(flatten)]
    pub stream: StreamArgs,
    /// Where to.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `loadgen find-max`
#[derive(Args, Clone, Debug)]
pub struct FindMaxArgs {
    /// p99 of the ack latency that the rate must keep
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = duration)]
    pub p99_max: u64,
    /// Length of each try
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    pub seconds: u64,
    /// Tries: each halves what is not known
    #[arg(long, default_value_t = 6, value_parser = value_parser!(u32).range(1..=20))]
    pub tries: u32,
    /// Bytes of a record
    #[arg(long, default_value_t = 1_024, value_parser = record_bytes())]
    pub size: u32,
    /// Records in a frame
    #[arg(long, default_value_t = 1, value_parser = batch_records())]
    pub batch: u32,
    /// Connections
    #[arg(long, default_value_t = 4, value_parser = connections())]
    pub connections: u32,
    /// Frames that may be unanswered on a connection
    #[arg(long, default_value_t = 1_024, value_parser = in_flight())]
    pub in_flight: u32,
    /// Partitions of the topic; one for each connection if absent
    #[arg(long, value_parser = partitions())]
    pub partitions: Option<u32>,
    /// Where to.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// A rate of at least one record per second.
pub(super) fn positive_rate(text: &str) -> Result<f64, String> {
    let rate = parse_rate(text).map_err(|error| error.to_string())?;
    if rate >= 1.0 { Ok(rate) } else { Err("must be at least 1".to_owned()) }
}

/// A duration of at least a millisecond, in nanoseconds.
pub(super) fn duration(text: &str) -> Result<u64, String> {
    let duration_ns = parse_duration(text).map_err(|error| error.to_string())?;
    if duration_ns >= 1_000_000 { Ok(duration_ns) } else { Err("must be at least 1ms".to_owned()) }
}

fn parse_factor(text: &str) -> Result<f64, String> {
    let factor: f64 = text.trim_start_matches('x').parse().map_err(|_| "not a number".to_owned())?;
    if (0.01..=10_000.0).contains(&factor) { Ok(factor) } else { Err("must be 0.01 to 10000".to_owned()) }
}

/// `loadgen produce`
#[derive(Args, Clone, Debug)]
pub struct ProduceArgs {
    /// How records arrive: const:50k, poisson:50k, ramp:1k->100k/30s, step:10k*10/5s, sine:50k+-40k/20s,
    /// square:on=200k/1ms,off=0/99ms, spike:base=20k,x10,for=10s,at=30s, trace:FILE, max; joined with ;
    #[arg(long, default_value = "const:1k")]
    pub arrival: String,
    /// Make any shape random: a Poisson process of that rate
    #[arg(long)]
    pub poisson: bool,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub seconds: u64,
    /// Consume at the same time, at this rate
    #[arg(long, value_name = "RATE", value_parser = positive_rate)]
    pub consume: Option<f64>,
    /// What.
    #[command(flatten)]
    pub stream: StreamArgs,
    /// Where to.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `loadgen consume`
#[derive(Args, Clone, Debug)]
pub struct ConsumeArgs {
    /// Records to write before, as fast as answers come
    #[arg(long, default_value_t = 200_000, value_parser = value_parser!(u64).range(1..=1_000_000_000))]
    pub records: u64,
    /// Records per second that are consumed; as fast as they come if absent
    #[arg(long, value_name = "RATE", value_parser = positive_rate)]
    pub rate: Option<f64>,
    /// Records per second that are produced meanwhile
    #[arg(long, value_name = "RATE", value_parser = positive_rate)]
    pub produce: Option<f64>,
    /// What.
    #[command(flatten)]
    pub stream: StreamArgs,
    /// Where from.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `loadgen replay`
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Records in each second, as `second,count` lines
    #[arg(long, value_name = "FILE")]
    pub trace: PathBuf,
    /// How it is played back.
    #[command(flatten)]
    pub playback: PlaybackArgs,
    /// Records per second that are consumed; 1.2 times the mean rate if absent
    #[arg(long, value_name = "RATE", value_parser = positive_rate)]
    pub consume: Option<f64>,
    /// What.
    #[command(flatten)]
    pub stream: StreamArgs,
    /// Where to.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// How a trace is played back.
#[derive(Args, Clone, Debug)]
pub struct PlaybackArgs {
    /// Seconds of the trace that pass in one
    #[arg(long, default_value_t = 1.0, value_parser = parse_factor)]
    pub time_scale: f64,
    /// What its counts are multiplied by; such that its highest rate is half of find-max if absent
    #[arg(long, value_parser = parse_factor)]
    pub rate_scale: Option<f64>,
    /// Make arrivals random: a trace's within each second, a constant rate's as a Poisson process
    #[arg(long)]
    pub poisson: bool,
    /// p99 up to which find-max may go, when the rate scale is not given
    #[arg(long, value_name = "TIME", default_value = "10ms", value_parser = duration)]
    pub p99_max: u64,
}

/// `loadgen soak`
#[derive(Args, Clone, Debug)]
pub struct SoakArgs {
    /// Records per second
    #[arg(long, value_name = "RATE", default_value = "5k", value_parser = positive_rate)]
    pub rate: f64,
    /// Records per second that are consumed; twice the rate, or 1.2 times a trace's mean, if absent
    #[arg(long, value_name = "RATE", value_parser = positive_rate)]
    pub consume: Option<f64>,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub length: u64,
    /// Arrivals as a trace counted them, instead of a rate and a length
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "length"])]
    pub trace: Option<PathBuf>,
    /// How a trace is played back.
    #[command(flatten)]
    pub playback: PlaybackArgs,
    /// What.
    #[command(flatten)]
    pub stream: StreamArgs,
    /// Where to.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `loadgen run`
#[derive(Args, Clone, Debug)]
pub struct ScenarioArgs {
    /// The scenario: phases, targets, assertions
    #[arg(short = 'f', long, value_name = "FILE")]
    pub file: PathBuf,
    /// Folder of the run; a new one below loadgen-runs if absent
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write no folder
    #[arg(long, conflicts_with = "out")]
    pub no_out: bool,
    /// Show the run on the whole terminal as it goes; lines where there is none
    #[arg(long)]
    pub tui: bool,
    /// Where to.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// What a sweep goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SweepOver {
    /// Records per second
    Rate,
    /// Bytes of a record
    Size,
    /// Records in a frame
    Batch,
}

/// `loadgen sweep`
#[derive(Args, Clone, Debug)]
pub struct SweepArgs {
    /// What to change from run to run
    #[arg(long, value_enum, default_value_t = SweepOver::Rate)]
    pub over: SweepOver,
    /// Its values, in their order
    #[arg(long, value_delimiter = ',', value_parser = positive_rate, default_value = "1k,2k,5k,10k,20k,50k")]
    pub values: Vec<f64>,
    /// Records per second, when the rate is not swept over
    #[arg(long, default_value = "1k", value_parser = positive_rate)]
    pub rate: f64,
    /// Bytes of a record, when the size is not swept over
    #[arg(long, default_value_t = 1_024, value_parser = record_bytes())]
    pub size: u32,
    /// Records in a frame, when the batch is not swept over
    #[arg(long, default_value_t = 1, value_parser = batch_records())]
    pub batch: u32,
    /// Stop behind the first run whose p99 is longer, or that is overloaded
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub p99_max: Option<u64>,
    /// Length of each run
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    pub seconds: u64,
    /// Connections
    #[arg(long, default_value_t = 4, value_parser = connections())]
    pub connections: u32,
    /// Frames that may be unanswered on a connection
    #[arg(long, default_value_t = 1_024, value_parser = in_flight())]
    pub in_flight: u32,
    /// Where to.
    #[command(flatten)]
    pub target: TargetArgs,
}

/// `loadgen calibrate`
#[derive(Args, Clone, Debug)]
pub struct CalibrateArgs {
    /// Bytes of a record
    #[arg(long, default_value_t = 1_024, value_parser = record_bytes())]
    pub size: u32,
    /// Records in a frame
    #[arg(long, default_value_t = 1, value_parser = batch_records())]
    pub batch: u32,
    /// Connections
    #[arg(long, default_value_t = 4, value_parser = connections())]
    pub connections: u32,
    /// Length of each part
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub seconds: u64,
    /// Core of the null server; the first allowed one if absent
    #[arg(long, value_name = "CPU")]
    pub broker_core: Option<usize>,
    /// Core of the load; the second allowed one if absent, or the only one
    #[arg(long, value_name = "CPU")]
    pub core: Option<usize>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `loadgen report`
#[derive(clap::Subcommand, Clone, Debug)]
pub enum ReportCommand {
    /// Writes report.html into the folder of a run
    Html {
        /// The folder
        folder: PathBuf,
    },
    /// Puts the figures of two runs side by side
    Diff {
        /// The folder of the first
        before: PathBuf,
        /// The folder of the second
        after: PathBuf,
        /// Print one JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Adds up the histograms of several runs with the same phases
    Merge {
        /// Folders of runs, at least one
        #[arg(required = true)]
        folders: Vec<PathBuf>,
        /// Write phases.hlog and .hgrm of the sums here
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Print one JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
}
