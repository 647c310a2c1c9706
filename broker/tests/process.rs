//! The real binary on a real file system: it is killed under load, started again, and asked for everything.
//!
//! `SEED=<number>` repeats a kill loop's choices; `ROUNDS=<number>` makes it longer.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test is the right answer")]

#[path = "process/numbered.rs"]
mod numbered;
#[path = "process/served.rs"]
mod served;
#[path = "process/small_disk.rs"]
mod small_disk;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use client::blocking::{Client, Options, SubscribeOptions, unix_ms};
use client::connection::{Start, TopicSettings};
use client::producer::{Outcome, Placement, ProducerOptions};
use numbered::Numbered;
use protocol::batch::Record;
use protocol::ids::Offset;
use protocol::status::Status;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use served::{Served, directory, forebay, refused, serve_command, shared_log};
use small_disk::SmallDisk;

/// Longer than any answer takes; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

fn options() -> Options {
    Options { reconnect_for: Duration::ZERO, ..Options::default() }
}

#[test]
fn a_topic_and_its_lines_go_through_the_command_line() {
    let data = directory();
    let broker = Served::start(data.path());
    broker.run_well(&["topic", "create", "orders", "--partitions", "3"]);
    let list = String::from_utf8(broker.run_well(&["topic", "list"])).unwrap();
    assert!(list.contains("orders"), "{list}");
    let lines = data.path().join("lines.txt");
    std::fs::write(&lines, "a:1\nb:2\nc:3\na:4\n").unwrap();
    let said =
        broker.run_well(&["produce", "orders", "--file", lines.to_str().unwrap(), "--key-separator", ":"]);
    assert!(String::from_utf8(said).unwrap().starts_with("acknowledged 4 records"));
    let consumed =
        String::from_utf8(broker.run_well(&["consume", "orders", "--key-separator", ":"])).unwrap();
    let mut consumed: Vec<&str> = consumed.lines().collect();
    let of_a: Vec<&str> = consumed.iter().copied().filter(|line| line.starts_with("a:")).collect();
    assert_eq!(of_a, ["a:1", "a:4"], "one key, one partition, in order");
    consumed.sort_unstable();
    assert_eq!(consumed, ["a:1", "a:4", "b:2", "c:3"]);
    broker.run_well(&["topic", "delete", "orders"]);
    assert_eq!(broker.run(&["topic", "describe", "orders"]).status.code(), Some(1));
    assert_eq!(broker.terminate(), Some(0));
}

/// The real-input proof: every line in, the broker killed while a second produce runs, every acknowledged line back.
fn lines_survive_a_kill(log: &Path) {
    let data = directory();
    let broker = Served::start(data.path());
    let file = log.to_str().unwrap();
    broker.run_well(&["produce", "logs", "--create", "--file", file]);

    let twenty_times = data.path().join("twenty.log");
    std::fs::write(&twenty_times, std::fs::read(log).unwrap().repeat(20)).unwrap();
    let mut second = forebay()
        .args(["--connect", &broker.address, "produce", "again", "--create", "--print-acked", "--file"])
        .arg(&twenty_times)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let acked_before_the_kill = 200;
    let mut broker = Some(broker);
    let mut acked = Vec::new();
    for line in BufReader::new(second.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some(offset) = line.strip_prefix("0 ").and_then(|offset| offset.parse::<usize>().ok()) else {
            break;
        };
        acked.push(offset);
        if acked.len() == acked_before_the_kill {
            broker.take().unwrap().kill();
            // What it was told before is in the pipe and is read to its end.
            second.kill().unwrap();
        }
    }
    second.wait().unwrap();
    assert!(acked.len() >= acked_before_the_kill);

    let broker = Served::start(data.path());
    let input = std::fs::read(log).unwrap();
    assert_eq!(broker.run_well(&["consume", "logs"]), input, "the first produce, byte for byte");
    let input = std::fs::read(&twenty_times).unwrap();
    let sent: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    let stored = broker.run_well(&["consume", "again"]);
    let stored: Vec<&[u8]> = stored.split(|byte| *byte == b'\n').collect();
    for offset in &acked {
        assert_eq!(stored[*offset], sent[*offset], "line {offset}");
    }
    println!("second produce: {} lines acknowledged, {} stored", acked.len(), stored.len() - 1);
}

#[test]
fn real_log_lines_survive_a_kill() {
    match shared_log() {
        Some(log) => lines_survive_a_kill(&log),
        None => println!("skipped: ../shared/data/apache_access_10k.log is not beside the checkout"),
    }
}

#[test]
fn made_up_log_lines_survive_a_kill() {
    let data = directory();
    let log = data.path().join("made-up.log");
    let mut text = String::new();
    for n in 0..10_000_u32 {
        let path = "/a".repeat((n % 40) as usize);
        writeln!(text, "10.0.{}.{} - - \"GET {path}/{n} HTTP/1.1\" 200 {}", n / 256 % 256, n % 256, n * 7)
            .unwrap();
    }
    std::fs::write(&log, text).unwrap();
    lines_survive_a_kill(&log);
}

/// What the client of the kill loop knows.
#[derive(Default)]
struct Ledger {
    sent: u64,
    /// Value by offset.
    acked: BTreeMap<u64, u64>,
    unknown: u64,
}

/// Produces until the broker is killed, at a random number of acknowledgements; keeps what was acknowledged.
fn produce_until_killed(broker: Served, random: &mut ChaCha8Rng, ledger: &mut Ledger) {
    let mut client = Client::connect(broker.address.as_str(), options()).unwrap();
    let producer_options = ProducerOptions { batch_bytes_max: 2_048, ..ProducerOptions::default() };
    let mut producer = client.producer("kill", producer_options).unwrap();
    let kill_at = ledger.acked.len() + random.random_range(1..3_000);
    let mut broker = Some(broker);
    let first = ledger.sent;
    loop {
        if broker.is_some() {
            let value = ledger.sent.to_le_bytes().repeat(random.random_range(1..40));
            producer.send(Placement::Partition(0), &Record { value: &value, ..Record::default() }).unwrap();
            ledger.sent += 1;
        }
        let lost = producer.poll(Duration::ZERO).is_err();
        while let Some(result) = producer.next_result() {
            let value = first + result.first.number();
            match result.outcome {
                Outcome::Acked { first_offset } => {
                    let records = 0..u64::from(result.record_count);
                    ledger.acked.extend(records.map(|n| (first_offset.0 + n, value + n)));
                }
                Outcome::Unknown => ledger.unknown += u64::from(result.record_count),
                Outcome::Unsent => {}
                Outcome::Failed { status } => panic!("refused: {status:?}"),
            }
        }
        if broker.is_some() && ledger.acked.len() >= kill_at {
            broker.take().unwrap().kill();
        }
        if lost || broker.is_none() && producer.poll(Duration::from_millis(10)).is_err() {
            break;
        }
    }
    producer.abandon();
}

/// Reads everything back and holds it against what the client knows.
fn check_everything(broker: &Served, ledger: &Ledger) -> u64 {
    let mut client = Client::connect(broker.address.as_str(), options()).unwrap();
    let end = client.describe_topic("kill").unwrap().partitions[0].end_offset.0;
    let mut subscription = client.subscribe("kill", SubscribeOptions::default()).unwrap();
    let (mut next, mut seen) = (0, std::collections::BTreeSet::new());
    while next < end {
        let batch = subscription.next_batch(PATIENCE).unwrap().expect("the broker stopped in the middle");
        for record in batch.records() {
            assert_eq!(record.offset.0, next, "offsets are dense");
            let value = u64::from_le_bytes(record.value[..8].try_into().unwrap());
            assert!(
                record.value.chunks(8).all(|chunk| chunk == value.to_le_bytes()),
                "offset {next} is damaged"
            );
            assert!(value < ledger.sent, "offset {next} holds what nobody sent");
            assert!(seen.insert(value), "value {value} is there twice");
            if let Some(acked) = ledger.acked.get(&next) {
                assert_eq!(*acked, value, "offset {next} changed after it was acknowledged");
            }
            next += 1;
        }
    }
    let last_acked = ledger.acked.keys().next_back().map_or(0, |offset| offset + 1);
    assert!(last_acked <= end, "acknowledged up to {last_acked}, stored up to {end}");
    end
}

#[test]
fn nothing_acknowledged_is_lost_over_many_kills() {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7_440);
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    println!("SEED={seed} ROUNDS={rounds}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (data, mut ledger) = (directory(), Ledger::default());
    let broker = Served::start(data.path());
    broker.run_well(&["topic", "create", "kill"]);
    broker.kill();
    for round in 0..rounds {
        let broker = Served::start(data.path());
        produce_until_killed(broker, &mut random, &mut ledger);
        let broker = Served::start(data.path());
        let stored = check_everything(&broker, &ledger);
        println!(
            "round {round}: {} acknowledged, {} unknown, {stored} stored",
            ledger.acked.len(),
            ledger.unknown
        );
        broker.kill();
    }
    assert!(!ledger.acked.is_empty());
}

#[test]
fn a_clean_shutdown_and_a_restart_keep_everything() {
    let data = directory();
    let broker = Served::start(data.path());
    assert!(broker.ready_line.contains("durability: "), "{}", broker.ready_line);
    let lines = data.path().join("lines.txt");
    std::fs::write(&lines, "one\ntwo\n").unwrap();
    broker.run_well(&["produce", "t", "--create", "--file", lines.to_str().unwrap()]);
    assert_eq!(broker.terminate(), Some(0));
    let broker = Served::start(data.path());
    assert!(!broker.ready_line.contains("cut"), "a clean end leaves no torn tail: {}", broker.ready_line);
    assert_eq!(broker.run_well(&["consume", "t", "--from", "1"]), b"two\n");
}

#[test]
fn a_second_broker_on_the_same_directory_or_port_says_what_is_wrong() {
    let data = directory();
    let broker = Served::start(data.path());
    let (code, message) = refused(&mut serve_command(data.path()));
    assert_eq!(code, Some(5), "{message}");
    assert!(message.contains("in use by process"), "{message}");
    let other = directory();
    let (code, message) = refused(
        forebay()
            .args([
                "serve",
                "--cores=none",
                "--journal-bytes=32MiB",
                "--listen",
                &broker.address,
                "--data-dir",
            ])
            .arg(other.path()),
    );
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("cannot listen on"), "{message}");
}

#[test]
fn a_directory_in_memory_is_refused_unless_it_is_meant() {
    let Ok(data) = tempfile::tempdir_in("/dev/shm") else {
        println!("skipped: no tmpfs at /dev/shm");
        return;
    };
    let (code, message) = refused(&mut serve_command(data.path()));
    assert_eq!(code, Some(5), "{message}");
    assert!(message.contains("--volatile"), "{message}");
}

#[test]
fn what_cannot_be_done_is_said_with_its_exit_code() {
    let data = directory();
    let broker = Served::start(data.path());
    let refused = broker.run(&["consume", "nothing"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("nothing"));
    assert_eq!(broker.run(&["topic", "create", "a b"]).status.code(), Some(1));
    assert_eq!(broker.run(&["no-such-command"]).status.code(), Some(2));
    let address = broker.address.clone();
    broker.kill();
    let gone = forebay().args(["--connect", &address, "topic", "list"]).output().unwrap();
    assert_eq!(gone.status.code(), Some(3), "{}", String::from_utf8_lossy(&gone.stderr));
}

#[test]
fn a_rotten_block_that_was_acknowledged_refuses_the_start() {
    let data = directory();
    let broker = Served::start(data.path());
    let lines = data.path().join("lines.txt");
    std::fs::write(&lines, "one\ntwo\n").unwrap();
    for _ in 0..3 {
        broker.run_well(&["produce", "t", "--create", "--file", lines.to_str().unwrap()]);
    }
    assert_eq!(broker.terminate(), Some(0));
    let journal = data.path().join("journal-00000");
    let mut bytes = std::fs::read(&journal).unwrap();
    // In the header of the second block, whatever it holds: a marker or records.
    bytes[4096 + 20] ^= 1;
    std::fs::write(&journal, &bytes).unwrap();
    let (code, message) = refused(&mut serve_command(data.path()));
    assert_eq!(code, Some(5), "{message}");
    assert!(message.contains("corruption of acknowledged data"), "{message}");
    assert_eq!(std::fs::read(&journal).unwrap(), bytes, "nothing was changed");
}

/// A client that waits as long as a slow disk may take.
fn patient_client(broker: &Served) -> Client {
    Client::connect(broker.address.as_str(), Options { request_timeout: PATIENCE, ..options() }).unwrap()
}

/// A time that lies behind everything so far and before everything from now on, in milliseconds since 1970.
#[allow(clippy::disallowed_methods, reason = "the clock that the broker reads has to go on a little")]
fn time_between() -> u64 {
    let reached_ms = unix_ms();
    while unix_ms() < reached_ms + 50 {
        std::thread::sleep(Duration::from_millis(1));
    }
    reached_ms + 25
}

#[test]
fn records_beyond_journal_and_memory_come_back_after_a_kill() {
    const JOURNAL_BYTES: u64 = 32 << 20;
    const MEMORY_BYTES: u64 = 64 << 20;
    let sizes = ["--journal-bytes=32MiB", "--memory-bytes=64MiB"];
    // Some 300 MiB.
    let big = Numbered { topic: "big", record_bytes: 60_000 };
    let (middle, end) = (2_625, 5_250);

    let data = directory();
    let broker = Served::start_with(data.path(), &sizes);
    let mut client = patient_client(&broker);
    client.create_topic(big.topic, 1).unwrap();
    let mut producer = client.producer(big.topic, ProducerOptions::default()).unwrap();
    big.produce(&mut producer, 0..middle);
    let middle_ms = time_between();
    big.produce(&mut producer, middle..end);
    broker.kill();
    drop((producer, client));

    let broker = Served::start_with(data.path(), &sizes);
    let mut client = patient_client(&broker);
    assert_eq!(client.describe_topic(big.topic).unwrap().partitions[0].end_offset, Offset(end));
    big.read(&client, Start::Earliest, 0..end);
    for from in [1, 777, middle + 1, end - 1] {
        big.read(&client, Start::Offset(Offset(from)), from..end.min(from + 300));
    }
    big.read(&client, Start::Time(middle_ms), middle..end);
    let stats = client.stats().unwrap();
    assert!(stats.journal_bytes <= JOURNAL_BYTES, "{}", stats.journal_bytes);
    assert!(stats.memory_budget_bytes <= MEMORY_BYTES, "{}", stats.memory_budget_bytes);
    assert!(stats.cold_read_bytes >= end * 60_000 - MEMORY_BYTES, "{}", stats.cold_read_bytes);
    assert_eq!(broker.terminate(), Some(0));
}

#[test]
fn deleting_a_topic_on_a_full_disk_heals_it_without_a_restart() {
    let disk = match SmallDisk::mount(96 << 20) {
        Ok(disk) => disk,
        Err(reason) => {
            // Past the test runner's capture.
            writeln!(std::io::stdout(), "skipped: no small file system can be mounted: {reason}").unwrap();
            return;
        }
    };
    let sizes = ["--journal-bytes=16MiB", "--memory-bytes=64MiB"];
    let broker = Served::start_with(&disk.path().join("data"), &sizes);
    let mut client = patient_client(&broker);
    let settings = TopicSettings { segment_bytes: 4 << 20, ..TopicSettings::default() };
    let old = Numbered { topic: "old", record_bytes: 400_000 };
    let new = Numbered { topic: "new", record_bytes: 400_000 };
    for topic in [old.topic, new.topic] {
        client.create_topic_with(topic, 1, &settings).unwrap();
    }
    // Some 24 MiB.
    let old_end = 63;
    let mut producer = client.producer(old.topic, ProducerOptions::default()).unwrap();
    old.produce(&mut producer, 0..old_end);
    drop(producer);

    // A refusal is to be seen, and not waited out.
    let impatient = ProducerOptions { refusals_max: Some(3), ..ProducerOptions::default() };
    let mut producer = client.producer(new.topic, impatient).unwrap();
    let full_at = new.produce_until(&mut producer, 0, Outcome::Failed { status: Status::DiskFull });
    assert!(full_at > 0);

    // Nothing else has stopped.
    old.read(&client, Start::Earliest, 0..old_end);
    new.read(&client, Start::Earliest, 0..full_at);
    client.delete_topic(old.topic).unwrap();
    let healed_at =
        new.produce_until(&mut producer, full_at, Outcome::Acked { first_offset: Offset(full_at) });
    assert_eq!(healed_at, full_at + 1);
    drop(producer);

    let mut producer = client.producer(new.topic, ProducerOptions::default()).unwrap();
    new.produce_from(&mut producer, healed_at, healed_at..healed_at + 10);
    new.read(&client, Start::Earliest, 0..healed_at + 10);
    assert_eq!(broker.terminate(), Some(0));
}
