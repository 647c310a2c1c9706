//! `forebay produce`: one record for each line of a file or of stdin.
//!
//! A thread reads the input ahead, so that a slow input keeps neither acknowledgements nor heartbeats waiting. At
//! the end every line has an outcome: acknowledged, failed, unknown, or not sent; the exit code tells the worst.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use client::blocking::{BlockingProducer, ClientError, unix_ms};
use client::producer::{BatchResult, Outcome, Placement, ProducerOptions, PushError};
use protocol::batch::{Compression, Record};
use protocol::limits::RECORD_BYTES_MAX;
use protocol::status::Status;

use super::{EXIT_CANNOT_CONNECT, EXIT_FAILED, EXIT_UNKNOWN, Failure, about_topic, complain, connect};

/// Bytes of one read of the input.
const CHUNK_BYTES: usize = 64 << 10;
/// Reads ahead of what was sent.
const CHUNKS_AHEAD_MAX: usize = 16;
/// Refusals in a row, about twenty seconds of them, before a batch is given up.
const REFUSALS_MAX: u32 = 30;
/// Wait for input while nothing is unanswered; heartbeats go out in between.
const IDLE_WAIT: Duration = Duration::from_millis(200);
/// Wait for answers before the input is looked at again.
const ANSWER_WAIT: Duration = Duration::from_millis(2);
/// Wait for the last answers before what is known is printed.
const FLUSH_WAIT: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct ProduceArgs {
    /// The topic to send to
    topic: String,
    /// Read this file; stdin if it is - or not given
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What stands before the first such character of a line is the record's key, and chooses its partition
    #[arg(long, value_name = "CHARACTER")]
    key_separator: Option<char>,
    /// Send everything to this partition
    #[arg(long, value_name = "N")]
    partition: Option<u16>,
    /// Close a batch before it is longer than this, not counting what compressing saves
    #[arg(long, default_value_t = 65_536, value_name = "BYTES")]
    batch_bytes: usize,
    /// Let a batch wait so long for more lines
    #[arg(long, default_value_t = 0, value_name = "MICROSECONDS")]
    linger_us: u64,
    /// Compress batches: none, lz4 or zstd
    #[arg(long, default_value = "none", value_name = "HOW", value_parser = parse_compression)]
    compression: Compression,
    /// Create the topic, with one partition, if it does not exist
    #[arg(long)]
    create: bool,
    /// Print partition and offset of each line as it is acknowledged
    #[arg(long)]
    print_acked: bool,
}

pub(super) fn run(address: &str, args: &ProduceArgs) -> Result<(), Failure> {
    let input = open_input(args.file.as_deref())?;
    let mut client = connect(address)?;
    if args.create {
        match client.create_topic(&args.topic, 1) {
            Ok(_) | Err(ClientError::Refused { status: Status::TopicExists, .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let options = ProducerOptions {
        batch_bytes_max: args.batch_bytes,
        linger_us: args.linger_us,
        refusals_max: Some(REFUSALS_MAX),
        compression: args.compression,
        ..ProducerOptions::default()
    };
    let producer = client.producer(&args.topic, options).map_err(|error| about_topic(&args.topic, error))?;
    drop(client);
    let mut run = Run {
        producer,
        separator: args.key_separator.map(String::from),
        placement: args.partition.map_or(Placement::ByKey, Placement::Partition),
        tally: Tally::default(),
        prints_acked: args.print_acked,
        is_full: false,
        acked_lines: String::new(),
    };
    let started = Instant::now();
    let fed = run.feed(&read_ahead(input));
    let cause = run.finish(fed);
    run.tally.report(started.elapsed())?;
    run.tally.verdict(cause)
}

fn parse_compression(text: &str) -> Result<Compression, &'static str> {
    match text {
        "none" => Ok(Compression::None),
        "lz4" => Ok(Compression::Lz4),
        "zstd" => Ok(Compression::Zstd),
        _ => Err("not none, lz4 or zstd"),
    }
}

/// One run over the input.
struct Run {
    producer: BlockingProducer,
    /// The broker gave a batch up for want of space.
    is_full: bool,
    separator: Option<String>,
    placement: Placement,
    tally: Tally,
    prints_acked: bool,
    acked_lines: String,
}

impl Run {
    /// Sends every line, until the input ends or something is wrong.
    fn feed(&mut self, chunks: &Receiver<io::Result<Vec<u8>>>) -> Result<(), Failure> {
        let mut lines = Lines::default();
        loop {
            let wait = if self.producer.is_idle() { IDLE_WAIT } else { Duration::ZERO };
            match chunks.recv_timeout(wait) {
                Ok(chunk) => {
                    let chunk =
                        chunk.map_err(|error| Failure::new(EXIT_FAILED, format!("cannot read: {error}")))?;
                    lines.feed(&chunk, &mut |number, line| self.send(number, line))?;
                }
                Err(RecvTimeoutError::Timeout) => {
                    let wait = if self.producer.is_idle() { Duration::ZERO } else { ANSWER_WAIT };
                    self.producer.poll(wait)?;
                    self.take_results();
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return lines.finish(&mut |number, line| self.send(number, line));
                }
            }
        }
    }

    fn send(&mut self, number: u64, line: &[u8]) -> Result<(), Failure> {
        let (key, value) = split_key(line, self.separator.as_deref());
        let record = Record { key, value, created_ms: unix_ms(), ..Record::default() };
        loop {
            let sent = self.producer.send(self.placement, &record);
            self.take_results();
            if self.is_full {
                return Err(self.give_up_full());
            }
            match sent {
                Ok(_) => return Ok(()),
                // A slow broker; one that refuses for too long fails batches, which makes room.
                Err(ClientError::TimedOut) => {}
                Err(ClientError::Push(PushError::RecordTooLarge)) => return Err(line_too_long(number)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for all outcomes; what has none when the broker is out of reach is given up. Gives the first failure.
    fn finish(&mut self, fed: Result<(), Failure>) -> Result<(), Failure> {
        let is_lost = matches!(fed, Err(Failure::Message { code: EXIT_CANNOT_CONNECT, .. }));
        let flushed = if is_lost { Ok(()) } else { self.flush() };
        self.producer.abandon();
        self.take_results();
        fed.and(flushed)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        loop {
            let flushed = self.producer.flush(FLUSH_WAIT);
            self.take_results();
            if self.is_full {
                return Err(self.give_up_full());
            }
            match flushed {
                Ok(()) => return Ok(()),
                Err(ClientError::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn give_up_full(&mut self) -> Failure {
        self.producer.abandon();
        self.take_results();
        Failure::new(EXIT_FAILED, "the broker has no space for more records")
    }

    fn take_results(&mut self) {
        while let Some(result) = self.producer.next_result() {
            self.tally.add(&result);
            // Nothing frees space while we wait: what is not sent yet would only be refused one by one.
            self.is_full |= matches!(result.outcome, Outcome::Failed { status: Status::DiskFull });
            if let Outcome::Acked { first_offset } = result.outcome
                && self.prints_acked
            {
                let partition = result.first.partition();
                for offset in first_offset.0..first_offset.plus(u64::from(result.record_count)).0 {
                    // Writing to a string cannot fail.
                    let _ = writeln!(self.acked_lines, "{partition} {offset}");
                }
            }
        }
        if !self.acked_lines.is_empty() {
            let mut output = io::stdout().lock();
            let printed = output.write_all(self.acked_lines.as_bytes()).and_then(|()| output.flush());
            self.acked_lines.clear();
            // The records matter more than who reads of them.
            self.prints_acked = printed.is_ok();
        }
    }
}

/// What became of the lines.
#[derive(Debug, Default)]
struct Tally {
    acked: u64,
    failed: u64,
    unknown: u64,
    unsent: u64,
    last_failure: Option<Status>,
}

impl Tally {
    fn add(&mut self, result: &BatchResult) {
        let count = u64::from(result.record_count);
        match result.outcome {
            Outcome::Acked { .. } => self.acked += count,
            Outcome::Unknown => self.unknown += count,
            Outcome::Unsent => self.unsent += count,
            Outcome::Failed { status } => {
                self.failed += count;
                self.last_failure = Some(status);
            }
        }
    }

    fn report(&self, elapsed: Duration) -> Result<(), Failure> {
        let seconds = elapsed.as_secs_f64();
        let rate = self.acked as f64 / seconds.max(1e-9);
        let text = format!("acknowledged {} records in {seconds:.3} s ({rate:.0} records/s)", self.acked);
        match writeln!(io::stdout(), "{text}") {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The worst that happened: a line without known outcome, else what ended the run, else a failed line.
    fn verdict(&self, cause: Result<(), Failure>) -> Result<(), Failure> {
        if self.failed > 0 {
            complain(&format!("{} records failed, the last with {:?}", self.failed, self.last_failure));
        }
        if self.unsent > 0 {
            complain(&format!("{} records were not sent", self.unsent));
        }
        if self.unknown == 0 && self.failed + self.unsent > 0 {
            return cause.and(Err(Failure::new(EXIT_FAILED, "not every record was acknowledged")));
        }
        if self.unknown == 0 {
            return cause;
        }
        if let Err(Failure::Message { text, .. }) = cause {
            complain(&text);
        }
        let text = format!("{} records are unknown: they are stored or not", self.unknown);
        Err(Failure::new(EXIT_UNKNOWN, text))
    }
}

/// Cuts chunks into lines, which may span them.
#[derive(Debug, Default)]
struct Lines {
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// Lines given out so far.
    count: u64,
}

/// Gets a line's number, from 1, and the line without its end.
type TakeLine<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), Failure>;

impl Lines {
    fn feed(&mut self, chunk: &[u8], take: TakeLine<'_>) -> Result<(), Failure> {
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            self.count += 1;
            if self.partial.is_empty() {
                take(self.count, line)?;
            } else {
                self.partial.extend_from_slice(line);
                take(self.count, &self.partial)?;
                self.partial.clear();
            }
        }
        self.partial.extend_from_slice(rest);
        if self.partial.len() > RECORD_BYTES_MAX {
            return Err(line_too_long(self.count + 1));
        }
        Ok(())
    }

    /// The last line, if it had no end.
    fn finish(mut self, take: TakeLine<'_>) -> Result<(), Failure> {
        if self.partial.is_empty() {
            return Ok(());
        }
        self.count += 1;
        take(self.count, &self.partial)
    }
}

fn line_too_long(number: u64) -> Failure {
    Failure::new(EXIT_FAILED, format!("line {number} is longer than the broker takes for one record"))
}

/// A line's key and value; without a separator in it, it has no key.
fn split_key<'a>(line: &'a [u8], separator: Option<&str>) -> (&'a [u8], &'a [u8]) {
    let found = separator.map(str::as_bytes).and_then(|separator| {
        let at = line.windows(separator.len()).position(|window| window == separator)?;
        Some((&line[..at], &line[at + separator.len()..]))
    });
    found.unwrap_or((&[], line))
}

fn open_input(file: Option<&Path>) -> Result<Box<dyn Read + Send>, Failure> {
    let Some(path) = file.filter(|path| *path != Path::new("-")) else { return Ok(Box::new(io::stdin())) };
    let opened = File::open(path);
    let file = opened
        .map_err(|error| Failure::new(EXIT_FAILED, format!("cannot open {}: {error}", path.display())))?;
    Ok(Box::new(file))
}

/// Reads the input on a thread of its own, a few chunks ahead.
fn read_ahead(mut input: Box<dyn Read + Send>) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::sync_channel(CHUNKS_AHEAD_MAX);
    thread::spawn(move || {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = match input.read(&mut chunk) {
                Ok(0) => return,
                Ok(byte_count) => {
                    chunk.truncate(byte_count);
                    Ok(chunk)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let is_end = read.is_err();
            if sender.send(read).is_err() || is_end {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use client::producer::RecordId;
    use protocol::ids::Offset;

    use super::*;

    fn lines_of(chunks: &[&str]) -> Vec<(u64, String)> {
        let mut found = Vec::new();
        let mut take = |number: u64, line: &[u8]| {
            found.push((number, String::from_utf8_lossy(line).into_owned()));
            Ok(())
        };
        let mut lines = Lines::default();
        for chunk in chunks {
            lines.feed(chunk.as_bytes(), &mut take).unwrap();
        }
        lines.finish(&mut take).unwrap();
        found
    }

    #[test]
    fn lines_are_cut_wherever_the_chunks_end() {
        let text = "one\n\nthree\nfour";
        let expected: Vec<(u64, String)> =
            (1..).zip(["one", "", "three", "four"].map(str::to_owned)).collect();
        for cut in 0..=text.len() {
            let (front, back) = text.split_at(cut);
            assert_eq!(lines_of(&[front, back]), expected, "cut at {cut}");
        }
        assert_eq!(lines_of(&["end\n"]).len(), 1, "a line end at the end begins no line");
        assert!(lines_of(&[]).is_empty());
    }

    #[test]
    fn compression_goes_by_its_name() {
        let known = ["none", "lz4", "zstd"].map(parse_compression);
        assert_eq!(known, [Ok(Compression::None), Ok(Compression::Lz4), Ok(Compression::Zstd)]);
        assert!(parse_compression("gzip").is_err());
    }

    #[test]
    fn line_over_the_limit_is_named() {
        let mut lines = Lines::default();
        lines.feed(b"short\n", &mut |_, _| Ok(())).unwrap();
        let failure = lines.feed(&vec![b'x'; RECORD_BYTES_MAX + 1], &mut |_, _| Ok(())).unwrap_err();
        assert_eq!(failure, line_too_long(2));
    }

    #[test]
    fn key_stands_before_the_first_separator() {
        assert_eq!(split_key(b"k=v=w", Some("=")), (&b"k"[..], &b"v=w"[..]));
        assert_eq!(split_key(b"no key", Some("=")), (&b""[..], &b"no key"[..]));
        assert_eq!(split_key(b"k=v", None), (&b""[..], &b"k=v"[..]));
        assert_eq!(split_key("k→v".as_bytes(), Some("→")), (&b"k"[..], &b"v"[..]));
    }

    fn code(verdict: Result<(), Failure>) -> u8 {
        match verdict {
            Ok(()) => 0,
            Err(Failure::Message { code, .. }) => code,
            Err(Failure::OutputClosed) => panic!("no output was written"),
        }
    }

    #[test]
    fn verdict_is_the_worst_outcome() {
        let mut tally = Tally::default();
        let lost = || Err(Failure::new(EXIT_CANNOT_CONNECT, "gone"));
        let add = |tally: &mut Tally, outcome| {
            tally.add(&BatchResult { first: RecordId(0), record_count: 2, outcome });
        };
        add(&mut tally, Outcome::Acked { first_offset: Offset(1) });
        assert_eq!((code(tally.verdict(Ok(()))), code(tally.verdict(lost()))), (0, EXIT_CANNOT_CONNECT));
        add(&mut tally, Outcome::Failed { status: Status::Busy });
        let codes = (code(tally.verdict(Ok(()))), code(tally.verdict(lost())));
        assert_eq!(codes, (EXIT_FAILED, EXIT_CANNOT_CONNECT));
        add(&mut tally, Outcome::Unknown);
        assert_eq!((code(tally.verdict(Ok(()))), code(tally.verdict(lost()))), (EXIT_UNKNOWN, EXIT_UNKNOWN));
    }
}
