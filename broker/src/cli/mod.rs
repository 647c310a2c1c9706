//! The command line of `forebay`: `serve`, and a client for people and scripts.
//!
//! Results go to stdout, messages to stderr, and the exit code says what became of it. Everything but `serve` and
//! `inspect` talks to a running broker over the network, through the crate `client`, and nothing else in the broker may
//! use that.
#![allow(clippy::disallowed_methods, reason = "prints durations to people, outside the core")]

mod consume;
mod inspect;
mod produce;
mod topic;
mod units;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use client::blocking::{Client, ClientError, Options};
use client::connection::TopicDescription;
use protocol::status::Status;

use consume::ConsumeArgs;
use inspect::InspectArgs;
use produce::ProduceArgs;
use topic::TopicCommand;

/// Refused, failed, or unreadable input.
const EXIT_FAILED: u8 = 1;
/// No connection to the broker.
const EXIT_CANNOT_CONNECT: u8 = 3;
/// Something was sent, and nobody said what became of it.
const EXIT_UNKNOWN: u8 = 4;

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  refused or failed
  2  wrong usage
  3  cannot connect to the broker
  4  unknown outcome: something was neither confirmed nor refused, and may have been done or not
  5  data directory or storage (serve)";

/// A message broker for one Linux host: it acknowledges a record when that is on stable storage.
#[derive(Debug, Parser)]
#[command(name = "forebay", version, after_help = EXIT_CODES)]
struct CommandLine {
    /// The broker to talk to; `serve` and `inspect` do not use it
    #[arg(
        long,
        global = true,
        env = "FOREBAY_CONNECT",
        default_value = "127.0.0.1:7440",
        value_name = "ADDR:PORT"
    )]
    connect: String,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker
    #[command(after_help = EXIT_CODES)]
    Serve(ServeArgs),
    /// Create, list, describe and delete topics
    #[command(subcommand)]
    Topic(TopicCommand),
    /// Send records, one for each line of the input
    #[command(after_help = EXIT_CODES)]
    Produce(ProduceArgs),
    /// Print records, one on each line
    #[command(after_help = EXIT_CODES)]
    Consume(ConsumeArgs),
    /// Verify a data directory that no broker serves, and repair it
    #[command(after_help = inspect::EXIT_CODES)]
    Inspect(InspectArgs),
}

/// What the operator may say on the command line; the rest is in the config file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct ServeArgs {
    /// Config file (TOML); options on the command line win over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where journal and catalog live
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Length of the journal, such as 1GiB
    #[arg(long, value_name = "SIZE")]
    pub journal_bytes: Option<String>,
    /// Memory for tails, reads and sends, such as 512MiB
    #[arg(long, value_name = "SIZE")]
    pub memory_bytes: Option<String>,
    /// CPU to run on, or 'none' to leave it to the scheduler; by default the first one allowed
    #[arg(long, value_name = "CPU")]
    pub cores: Option<String>,
    /// How a core waits: adaptive, park or busy
    #[arg(long, value_name = "POLICY")]
    pub waiting: Option<String>,
    /// How blocks become durable: auto (from the device and a probe), flush, or sync
    #[arg(long, value_name = "HOW")]
    pub durability: Option<String>,
    /// Serve a data directory on tmpfs or ramfs, which a power cut empties
    #[arg(long)]
    pub volatile: bool,
}

/// Why a client command did not end well.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// The reader of stdout has gone: there is nothing more to do, and nothing to say.
    OutputClosed,
    /// A message for stderr, and the exit code.
    Message { code: u8, text: String },
}

impl Failure {
    fn new(code: u8, text: impl Into<String>) -> Self {
        Self::Message { code, text: text.into() }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = match error {
            ClientError::Connect { .. } => EXIT_CANNOT_CONNECT,
            ClientError::Unknown => EXIT_UNKNOWN,
            _ => EXIT_FAILED,
        };
        Self::new(code, error.to_string())
    }
}

/// Of writing to stdout; reading has messages of its own.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::OutputClosed;
        }
        Self::new(EXIT_FAILED, format!("cannot write the output: {error}"))
    }
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let line = CommandLine::parse();
    let outcome = match &line.command {
        Command::Serve(args) => return serve(args),
        Command::Inspect(args) => return inspect::run(args),
        Command::Topic(command) => topic::run(&line.connect, command),
        Command::Produce(args) => produce::run(&line.connect, args),
        Command::Consume(args) => consume::run(&line.connect, args),
    };
    match outcome {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Message { code, text }) => {
            complain(&text);
            ExitCode::from(code)
        }
    }
}

fn serve(args: &ServeArgs) -> ExitCode {
    match crate::server::serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Says something on stderr; that nobody reads it is no reason to fail.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "forebay: {text}");
}

fn connect(address: &str) -> Result<Client, Failure> {
    let client_name = concat!("forebay-cli/", env!("CARGO_PKG_VERSION")).to_owned();
    Client::connect(address, Options { client_name, ..Options::default() })
        .map_err(|error| Failure::new(EXIT_CANNOT_CONNECT, format!("{address}: {error}")))
}

fn describe(client: &mut Client, topic: &str) -> Result<TopicDescription, Failure> {
    client.describe_topic(topic).map_err(|error| about_topic(topic, error))
}

/// The same failure, with what to do about it when the topic does not exist.
fn about_topic(topic: &str, error: ClientError) -> Failure {
    if !matches!(error, ClientError::Refused { status: Status::UnknownTopic, .. }) {
        return error.into();
    }
    let text = format!(
        "there is no topic {topic}: create it with `forebay topic create {topic}`, or with `produce --create`"
    );
    Failure::new(EXIT_FAILED, text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use client::connection::{Start, TopicSettings};
    use protocol::ids::Offset;

    use super::*;

    fn parse(line: &str) -> Command {
        CommandLine::try_parse_from(line.split_whitespace()).unwrap().command
    }

    #[test]
    fn command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn serve_takes_its_options() {
        let Command::Serve(args) = parse("forebay serve --data-dir d --listen 0.0.0.0:1 --volatile") else {
            panic!("not serve")
        };
        let expected = ServeArgs {
            data_dir: Some("d".into()),
            listen: Some(SocketAddr::from(([0, 0, 0, 0], 1))),
            volatile: true,
            ..ServeArgs::default()
        };
        assert_eq!(args, expected);
    }

    #[test]
    fn broker_may_be_named_before_and_behind_the_command() {
        for line in ["forebay --connect h:1 topic list", "forebay topic list --connect h:1"] {
            assert_eq!(CommandLine::try_parse_from(line.split_whitespace()).unwrap().connect, "h:1");
        }
    }

    #[test]
    fn consume_starts_where_it_is_told() {
        let start_of = |line: &str| match parse(line) {
            Command::Consume(args) => args.from,
            other => panic!("{other:?}"),
        };
        assert_eq!(start_of("forebay consume t"), Start::Earliest);
        assert_eq!(start_of("forebay consume t --from latest"), Start::Latest);
        assert_eq!(start_of("forebay consume t --from 42"), Start::Offset(Offset(42)));
        let time = Start::Time(1_795_341_600_000);
        assert_eq!(start_of("forebay consume t --from 2026-11-22T10:00:00Z"), time);
        assert!(CommandLine::try_parse_from(["forebay", "consume", "t", "--from", "yesterday"]).is_err());
    }

    #[test]
    fn topics_are_created_with_their_settings() {
        let settings_of = |line: &str| match parse(line) {
            Command::Topic(TopicCommand::Create(args)) => args.settings(),
            other => panic!("{other:?}"),
        };
        assert_eq!(settings_of("forebay topic create t"), TopicSettings::default());
        let line = "forebay topic create t --retention 7d --retention-bytes 10GiB --segment-bytes 64MiB \
                    --segment-age 12h --compact";
        let expected = TopicSettings {
            retention_ms: 604_800_000,
            retention_bytes: 10 << 30,
            segment_bytes: 64 << 20,
            segment_ms: 43_200_000,
            compact: true,
        };
        assert_eq!(settings_of(line), expected);
        for option in ["--retention=week", "--retention-bytes=1.5G", "--segment-age=0s"] {
            assert!(CommandLine::try_parse_from(["forebay", "topic", "create", "t", option]).is_err());
        }
    }

    #[test]
    fn closed_output_is_no_failure_and_lost_answers_are_unknown() {
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)), Failure::OutputClosed);
        let Failure::Message { code, .. } = Failure::from(ClientError::Unknown) else { panic!("quiet") };
        assert_eq!(code, EXIT_UNKNOWN);
    }
}
