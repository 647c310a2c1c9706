//! `forebay inspect` on directories that a real broker wrote: whole, damaged in every kind of file, and repaired.
//!
//! Damage is one flipped byte, and is taken back by flipping it again.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test is the right answer")]

#[path = "inspect/object.rs"]
mod object;
#[path = "process/served.rs"]
#[allow(dead_code, reason = "what the other tests of the binary use")]
mod served;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use object::{behind_value, number, objects};
use served::{Served, directory, forebay, refused, serve_command};
use tempfile::TempDir;

const PAGE_BYTES: usize = 4096;
const LINES_PER_ROUND: usize = 12_000;

/// What a run of `inspect` gave.
struct Found {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn inspect(data: &Path, arguments: &[&str]) -> Found {
    let output = forebay().arg("inspect").arg(data).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Found { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The object of `--json`, which must be one, on one line.
fn inspect_json(data: &Path, expected_code: i32) -> String {
    let found = inspect(data, &["--json"]);
    assert_eq!(found.code, Some(expected_code), "{}{}", found.stdout, found.stderr);
    let line = found.stdout.strip_suffix('\n').unwrap();
    assert_eq!(behind_value(line.as_bytes(), 0), Some(line.len()), "not one JSON value: {line}");
    assert_eq!(number(line, "exit_code"), Some(expected_code as u64));
    line.to_owned()
}

fn flip(path: &Path, position: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], position).unwrap();
}

/// Places of journal blocks with their sequence and kind, told by their magic alone.
fn journal_blocks(path: &Path) -> Vec<(u64, u64, u16)> {
    let bytes = fs::read(path).unwrap();
    let mut blocks = Vec::new();
    for (number, page) in bytes.chunks(PAGE_BYTES).enumerate() {
        if page.starts_with(b"FBJRNL01") {
            let kind = u16::from_le_bytes(page[14..16].try_into().unwrap());
            let sequence = u64::from_le_bytes(page[16..24].try_into().unwrap());
            blocks.push(((number * PAGE_BYTES) as u64, sequence, kind));
        }
    }
    blocks
}

fn produce(broker: &Served, data: &Path, topic: &str, lines: &str) {
    let file = data.join("lines.txt");
    fs::write(&file, lines).unwrap();
    broker.run_well(&["produce", topic, "--file", file.to_str().unwrap()]);
}

/// A directory with sealed segments and two whole snapshots, and how many lines it holds.
fn full_directory() -> (TempDir, usize) {
    let data = directory();
    for round in 1..=5 {
        let broker = Served::start(data.path());
        if round == 1 {
            broker.run_well(&["topic", "create", "t", "--segment-bytes", "256KiB"]);
        }
        let lines: String = (0..LINES_PER_ROUND).map(|n| format!("{round}-{n:0>1000}\n")).collect();
        produce(&broker, data.path(), "t", &lines);
        assert_eq!(broker.terminate(), Some(0));
        let json = inspect_json(data.path(), 0);
        let valid = |(_, rest): &&(PathBuf, &str)| rest.contains("\"state\":\"valid\"");
        if objects(&json, "snapshot-").iter().filter(valid).count() == 2 {
            return (data, round * LINES_PER_ROUND);
        }
    }
    panic!("no two snapshots in five rounds")
}

/// The snapshots, older first: file, sequence, and sequence of the block where its replay begins.
fn snapshots(json: &str) -> Vec<(PathBuf, u64, u64)> {
    let mut snapshots: Vec<_> = objects(json, "snapshot-")
        .into_iter()
        .map(|(file, rest)| {
            (file, number(rest, "sequence").unwrap(), number(rest, "replay_sequence").unwrap())
        })
        .collect();
    snapshots.sort_by_key(|(_, sequence, _)| *sequence);
    snapshots
}

#[test]
fn a_whole_directory_is_clean_and_all_of_it_is_listed() {
    let (data, lines) = full_directory();
    let json = inspect_json(data.path(), 0);
    assert!(json.contains("\"verdict\":\"clean\""), "{json}");
    assert!(json.contains("\"problems\":[]"), "{json}");
    assert_eq!(json.matches("\"copy\":").count(), 2);
    assert!(objects(&json, "journal-").len() > 1);
    let sealed = objects(&json, "segments/").iter().filter(|(_, rest)| rest.contains("\"sealed\"")).count();
    assert!(sealed > 10, "{sealed} sealed segments");
    let (_, of_topic) = json.split_once("\"topic\":\"t\"").unwrap();
    assert_eq!(number(of_topic, "end_offset"), Some(lines as u64));
    let said = inspect(data.path(), &[]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.ends_with("verdict: clean, 0 problems\n"), "{}", said.stdout);
    assert!(said.stdout.contains("would start, from snapshot"), "{}", said.stdout);
}

#[test]
fn a_flipped_byte_of_a_sealed_segment_is_named_with_its_records() {
    let (data, _) = full_directory();
    let json = inspect_json(data.path(), 0);
    let segments = objects(&json, "segments/");
    let (file, rest) = segments.iter().find(|(_, rest)| rest.contains("\"state\":\"sealed\"")).unwrap();
    let base_offset = number(rest, "base_offset").unwrap();
    let path = data.path().join(file);
    // In the first batch, behind the header page.
    flip(&path, 4096 + 200);
    let json = inspect_json(data.path(), 1);
    let problem = format!("\"kind\":\"segment_records\",\"file\":\"{}\",\"position\":4096", file.display());
    let (_, behind) = json.split_once(&problem).expect(&json);
    assert_eq!(number(behind, "from_offset"), Some(base_offset));
    assert!(number(behind, "end_offset").unwrap() > base_offset);
    assert!(behind.contains("\"topic\":\"t\",\"partition\":0"), "{json}");
    let said = inspect(data.path(), &["--repair", "--yes"]);
    assert_eq!(said.code, Some(1), "{}", said.stdout);
    assert!(said.stdout.contains("nothing is changed"), "{}", said.stdout);
    flip(&path, 4096 + 200);
    // In its first page, and in its index.
    flip(&path, 20);
    assert!(inspect_json(data.path(), 1).contains("\"kind\":\"segment_header\""));
    flip(&path, 20);
    let footer = fs::metadata(&path).unwrap().len() - (16 << 10);
    flip(&path, footer + 20);
    assert!(inspect_json(data.path(), 1).contains("\"kind\":\"segment_index\""));
    flip(&path, footer + 20);
    fs::rename(&path, data.path().join("away")).unwrap();
    assert!(inspect_json(data.path(), 1).contains("\"kind\":\"segment_missing\""));
}

#[test]
fn a_damaged_snapshot_is_named_and_repaired_by_doing_without_it() {
    let (data, lines) = full_directory();
    let (file, sequence, _) = snapshots(&inspect_json(data.path(), 0)).pop().unwrap();
    // In the first entry of its first block.
    flip(&data.path().join(&file), 4096 + 70);
    let damaged = fs::read(data.path().join(&file)).unwrap();
    let json = inspect_json(data.path(), 1);
    let problem = format!("\"kind\":\"snapshot\",\"file\":\"{}\",\"position\":4096", file.display());
    assert!(json.contains(&problem), "{json}");
    assert!(json.contains(&format!("snapshot {sequence} is damaged")), "{json}");
    let said = inspect(data.path(), &["--repair", "--yes"]);
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    assert!(said.stdout.contains("nothing is lost by that"), "{}", said.stdout);
    assert_eq!(fs::read(kept_in(data.path()).join(&file)).unwrap(), damaged);
    let broker = Served::start(data.path());
    let stored = broker.run_well(&["consume", "t"]);
    assert_eq!(stored.iter().filter(|byte| **byte == b'\n').count(), lines);
}

#[test]
fn a_block_that_only_the_older_snapshot_needs_is_named() {
    let (data, _) = full_directory();
    let found = snapshots(&inspect_json(data.path(), 0));
    let [(_, _, older), (_, _, newest)] = &found[..] else { panic!("{found:?}") };
    let files = objects(&inspect_json(data.path(), 0), "journal-")
        .into_iter()
        .map(|(file, _)| file)
        .collect::<Vec<_>>();
    let mut places = files.iter().flat_map(|file| {
        let path = data.path().join(file);
        journal_blocks(&path).into_iter().map(move |block| (path.clone(), block))
    });
    let (path, (position, sequence, _)) =
        places.find(|(_, (_, sequence, kind))| (*older..*newest).contains(sequence) && *kind == 0).unwrap();
    flip(&path, position + 70);
    let json = inspect_json(data.path(), 1);
    let name = path.file_name().unwrap().to_str().unwrap();
    let problem = format!("\"kind\":\"older_journal\",\"file\":\"{name}\",\"position\":{position}");
    assert!(json.contains(&problem), "{json}");
    assert!(json.contains(&format!("block {sequence} is not valid")), "{json}");
    // A broker serves it, and knows nothing of it.
    assert_eq!(Served::start(data.path()).terminate(), Some(0));
}

#[test]
fn a_damaged_copy_of_the_superblock_is_written_from_the_other() {
    for copy in 0..2 {
        let data = directory();
        assert_eq!(Served::start(data.path()).terminate(), Some(0));
        let path = data.path().join("superblock");
        let whole = fs::read(&path).unwrap();
        flip(&path, copy * 4096 + 20);
        let json = inspect_json(data.path(), 1);
        let problem = format!("\"kind\":\"superblock\",\"file\":\"superblock\",\"position\":{}", copy * 4096);
        assert!(json.contains(&problem), "{json}");
        assert_eq!(inspect(data.path(), &["--repair", "--yes"]).code, Some(0));
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn without_any_superblock_nothing_can_be_repaired() {
    let data = directory();
    assert_eq!(Served::start(data.path()).terminate(), Some(0));
    let path = data.path().join("superblock");
    flip(&path, 20);
    flip(&path, 4096 + 20);
    let before = fs::read(&path).unwrap();
    inspect_json(data.path(), 4);
    let said = inspect(data.path(), &["--repair", "--yes"]);
    assert_eq!(said.code, Some(4));
    assert!(said.stdout.contains("only a backup helps"), "{}", said.stdout);
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// Where the only repair has put the originals.
fn kept_in(data: &Path) -> PathBuf {
    let names = fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path());
    let mut kept = names.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("repair-"));
    let first = kept.next().expect("a repair keeps the originals");
    assert!(kept.next().is_none());
    first
}

/// A directory with acknowledged records in three parts, and a flipped byte in the first entry of the second's block.
/// Gives the place of that.
fn directory_with_a_rotten_block() -> (TempDir, u64) {
    let data = directory();
    let broker = Served::start(data.path());
    broker.run_well(&["topic", "create", "t"]);
    produce(&broker, data.path(), "t", "one\ntwo\n");
    assert_eq!(broker.terminate(), Some(0));
    let next = number(&inspect_json(data.path(), 0), "next_sequence").unwrap();
    let broker = Served::start(data.path());
    produce(&broker, data.path(), "t", "three\n");
    produce(&broker, data.path(), "t", "four\n");
    assert_eq!(broker.terminate(), Some(0));
    let blocks = journal_blocks(&data.path().join("journal-00000"));
    let second = blocks.iter().find(|(_, sequence, kind)| *sequence >= next && *kind == 0);
    let position = second.unwrap().0;
    flip(&data.path().join("journal-00000"), position + 70);
    (data, position)
}

#[test]
fn a_rotten_block_that_was_acknowledged_is_named_with_what_is_lost() {
    let (data, position) = directory_with_a_rotten_block();
    let json = inspect_json(data.path(), 4);
    assert!(json.contains("\"verdict\":\"refused\""), "{json}");
    let problem = format!("\"kind\":\"recovery\",\"file\":\"journal-00000\",\"position\":{position}");
    assert!(json.contains(&problem), "{json}");
    let (_, records) = json.split_once("\"kind\":\"journal_records\"").expect(&json);
    assert!(records.contains("\"topic\":\"t\",\"partition\":0"), "{json}");
    assert_eq!((number(records, "from_offset"), number(records, "end_offset")), (Some(2), Some(4)));
    assert!(json.contains(&format!("\"bad_blocks\":[{{\"position\":{position},")), "{json}");
    let (code, message) = refused(&mut serve_command(data.path()));
    assert_eq!(code, Some(5), "{message}");
}

#[test]
fn a_repair_that_nobody_agrees_to_changes_nothing() {
    let (data, _) = directory_with_a_rotten_block();
    let journal = data.path().join("journal-00000");
    let before = (fs::read(&journal).unwrap(), fs::read(data.path().join("superblock")).unwrap());
    let said = inspect(data.path(), &["--repair"]);
    assert_eq!(said.code, Some(2), "{}", said.stdout);
    assert!(said.stdout.contains("will be LOST"), "{}", said.stdout);
    assert!(said.stderr.contains("--yes"), "{}", said.stderr);
    assert_eq!(before, (fs::read(&journal).unwrap(), fs::read(data.path().join("superblock")).unwrap()));
    assert_eq!(inspect(data.path(), &["--yes"]).code, Some(2), "--yes alone is wrong usage");
}

#[test]
fn a_cut_journal_serves_what_was_before_and_goes_on() {
    let (data, _) = directory_with_a_rotten_block();
    let originals =
        ["journal-00000", "superblock"].map(|name| (name, fs::read(data.path().join(name)).unwrap()));
    let said = inspect(data.path(), &["--repair", "--yes"]);
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    assert!(said.stdout.contains("records of topic t, partition 0, offsets 2 to 3"), "{}", said.stdout);
    for (name, original) in originals {
        assert_eq!(fs::read(kept_in(data.path()).join(name)).unwrap(), original, "{name}");
    }
    let broker = Served::start(data.path());
    assert_eq!(broker.run_well(&["consume", "t"]), b"one\ntwo\n");
    produce(&broker, data.path(), "t", "five\n");
    assert_eq!(broker.run_well(&["consume", "t"]), b"one\ntwo\nfive\n");
    assert_eq!(broker.terminate(), Some(0));
    inspect_json(data.path(), 0);
    let broker = Served::start(data.path());
    assert_eq!(broker.run_well(&["consume", "t"]), b"one\ntwo\nfive\n");
}

#[test]
fn a_journal_without_its_first_block_is_not_cut() {
    let data = directory();
    let broker = Served::start(data.path());
    broker.run_well(&["topic", "create", "t"]);
    for _ in 0..3 {
        produce(&broker, data.path(), "t", "one\n");
    }
    assert_eq!(broker.terminate(), Some(0));
    let journal = data.path().join("journal-00000");
    flip(&journal, 20);
    let before = fs::read(&journal).unwrap();
    let said = inspect(data.path(), &["--repair", "--yes"]);
    assert_eq!(said.code, Some(4), "{}", said.stdout);
    assert!(said.stdout.contains("only a backup helps"), "{}", said.stdout);
    assert_eq!(fs::read(&journal).unwrap(), before);
}

#[test]
fn a_directory_that_is_served_or_none_is_not_looked_at() {
    let data = directory();
    let found = inspect(data.path(), &[]);
    assert_eq!(found.code, Some(3), "{}", found.stdout);
    assert!(found.stderr.contains("is no data directory"), "{}", found.stderr);
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0, "nothing was made in it");
    let broker = Served::start(data.path());
    let found = inspect(data.path(), &["--json"]);
    assert_eq!((found.code, found.stdout.as_str()), (Some(3), ""));
    assert!(found.stderr.contains("is in use by process"), "{}", found.stderr);
    assert_eq!(broker.terminate(), Some(0));
    fs::write(data.path().join("journal-x"), b"").unwrap();
    let json = inspect_json(data.path(), 4);
    assert!(json.contains("journal-x"), "{json}");
}
