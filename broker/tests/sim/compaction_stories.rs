//! Compaction by key, told story by story: whatever ends it or overtakes it, the last value of every key is there, at
//! the offset that it was given, and nothing is read that was not written.
//!
//! The seeds of `harness.rs` compact too, but their records have no keys, so that nothing may be missing.

use std::collections::BTreeMap;

use broker::io::File;
use broker::journal::{Durability, JournalLayout};
use broker::limits::{JOURNAL_FILE_BYTES_MIN, PAGE_BYTES};
use broker::log::SegmentHeader;
use protocol::batch::{BatchBuilder, Record};
use protocol::frame::Opcode;
use protocol::ids::Handle;
use protocol::status::Status;
use rand::RngExt;

use crate::frames::{self, Received, Start, Subscribing};
use crate::image::Mood;
use crate::peer::Peer;
use crate::records::Size;
use crate::report::{Kind, Violation, violation};
use crate::retention::Settings;
use crate::world::{World, WorldConfig};

const TOPIC: &str = "states";
const KEYS: u64 = 40;
const RECORDS_PER_FRAME: u64 = 8;
const VALUE_BYTES: usize = 1_200;
/// Long enough for a round of compaction, and for removing what it has replaced.
const SETTLING_NS: u64 = 3_000_000_000;
const RETRY_NS: u64 = 20_000_000;
const TRIES_MAX: u32 = 500;
/// What the reader of a slow subscription is sent at a time.
const CREDIT: (u64, u64) = (30, 40_000);

/// Key and value.
type Pair = (Vec<u8>, Vec<u8>);

/// A compacted topic with one partition, and all that was acknowledged to it.
struct Story {
    world: World,
    peer: Peer,
    partition: Handle,
    /// By offset.
    written: BTreeMap<u64, Pair>,
}

impl Story {
    fn begin(seed: u64) -> Result<Self, Violation> {
        let config = WorldConfig {
            layout: JournalLayout { file_bytes: JOURNAL_FILE_BYTES_MIN, file_count: 4 },
            pool_bytes: 32 << 20,
            ..WorldConfig::calm(Durability::WriteThenFlush)
        };
        let mut world = World::new(seed, &config);
        world.start_and_recover()?;
        let mut peer = Peer::greet(&mut world)?;
        let settings = Settings { segment_bytes: 256 << 10, compact: true, ..Settings::default() };
        let partition = peer.create_topic_with(&mut world, TOPIC, 1, &settings)?[0];
        Ok(Self { world, peer, partition, written: BTreeMap::new() })
    }

    fn count(&self, kind: Kind) -> u64 {
        self.world.luck.report.count(kind)
    }

    fn recover(&mut self) -> Result<(), Violation> {
        self.world.start_and_recover()?;
        self.peer = Peer::greet(&mut self.world)?;
        Ok(())
    }

    /// Writes frames whose keys come round again and again.
    fn write(&mut self, frames: u64) -> Result<(), Violation> {
        for _ in 0..frames {
            let first = self.written.len() as u64;
            let pairs: Vec<Pair> = (first..first + RECORDS_PER_FRAME).map(pair_of).collect();
            self.produce(&pairs)?;
        }
        Ok(())
    }

    fn produce(&mut self, pairs: &[Pair]) -> Result<(), Violation> {
        let (batch, partition) = (batch_of(pairs), self.partition);
        let mut resumes = false;
        for _ in 0..TRIES_MAX {
            let frame = |correlation| frames::produce(correlation, partition, resumes, &batch);
            let answer = self.peer.ask(&mut self.world, frame)?;
            match answer.status {
                Status::Ok => {
                    self.written.extend((answer.subject..).zip(pairs.iter().cloned()));
                    return Ok(());
                }
                Status::Busy => resumes = true,
                other => return violation(format!("a produce was refused with {other:?}")),
            }
            self.world.run_for(RETRY_NS)?;
        }
        violation("the broker is busy for ever")
    }

    /// Writes until a job is under way.
    fn write_until_it_compacts(&mut self) -> Result<(), Violation> {
        let before = self.count(Kind::CompactionBegun);
        for _ in 0..1_000 {
            if self.count(Kind::CompactionBegun) > before {
                return Ok(());
            }
            self.write(1)?;
        }
        violation("nothing is ever compacted")
    }

    fn end(&self) -> u64 {
        self.written.keys().next_back().map_or(0, |last| last + 1)
    }

    /// Fetches from an offset on; gives what was read, and where to go on.
    fn fetch(&mut self, from: u64) -> Result<(BTreeMap<u64, Pair>, u64), Violation> {
        let partition = self.partition;
        let fetch = |correlation| frames::fetch(correlation, partition, from, u64::MAX, 200_000);
        let answer = self.peer.ask_for(&mut self.world, Status::Ok, fetch)?;
        let mut read = BTreeMap::new();
        take_in(partition, &answer.payload, &mut read)?;
        let next = answer.fetched_up_to()?;
        if next > from {
            return Ok((read, next));
        }
        violation(format!("a fetch from {from} of {} goes no further", self.end()))
    }

    fn read_all(&mut self) -> Result<BTreeMap<u64, Pair>, Violation> {
        let (mut all, mut next) = (BTreeMap::new(), 0);
        while next < self.end() {
            let (read, behind) = self.fetch(next)?;
            all.extend(read);
            next = behind;
        }
        Ok(all)
    }

    /// The offset of the first record from an offset on.
    fn first_from(&mut self, from: u64) -> Result<Option<u64>, Violation> {
        let mut next = from;
        while next < self.end() {
            let (read, behind) = self.fetch(next)?;
            if let Some((offset, _)) = read.range(from..).next() {
                return Ok(Some(*offset));
            }
            next = behind;
        }
        Ok(None)
    }

    /// What was read was written there, and the last record of each key is among it.
    fn check(&self, read: &BTreeMap<u64, Pair>) -> Result<(), Violation> {
        if let Some((offset, _)) = read.iter().find(|(offset, pair)| self.written.get(*offset) != Some(*pair))
        {
            return violation(format!("what was read at {offset} was not written there"));
        }
        let mut last = BTreeMap::new();
        for (offset, (key, _)) in &self.written {
            last.insert(key, *offset);
        }
        match last.values().find(|offset| !read.contains_key(*offset)) {
            Some(offset) => violation(format!("the last record of a key, at {offset}, is lost")),
            None => Ok(()),
        }
    }

    fn read_and_check(&mut self) -> Result<BTreeMap<u64, Pair>, Violation> {
        let read = self.read_all()?;
        self.check(&read)?;
        Ok(read)
    }

    /// Files of segments of the partition.
    fn segment_files(&self) -> usize {
        let is_ours = |file: &File| {
            let page =
                matches!(file, File::Segment(_)).then(|| &self.world.disk.durable(*file)[..PAGE_BYTES]);
            let header = page.and_then(SegmentHeader::read);
            header.is_some_and(|header| header.partition == self.partition)
        };
        self.world.disk.files().into_keys().filter(is_ours).count()
    }
}

/// The pair of a number: its key comes again, its value does not.
fn pair_of(number: u64) -> Pair {
    let mut value = number.to_le_bytes().to_vec();
    value.resize(VALUE_BYTES, number as u8);
    (format!("key {}", number * 7 % KEYS).into_bytes(), value)
}

fn batch_of(pairs: &[Pair]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for (key, value) in pairs {
        builder.push(&Record { key, value, ..Record::default() }).unwrap();
    }
    let mut bytes = Vec::new();
    builder.finish_into(&mut bytes);
    bytes
}

/// Adds the records of a payload; gives the offsets that it covers.
fn take_in(
    partition: Handle,
    payload: &[u8],
    read: &mut BTreeMap<u64, Pair>,
) -> Result<Vec<(u64, u64)>, Violation> {
    let mut covered = Vec::new();
    frames::each_batch(partition, payload, |batch| {
        covered.push((batch.header().base_offset().0, batch.header().next_offset().0));
        let Some(records) = batch.records() else { return violation("nobody compressed anything") };
        read.extend(records.map(|record| (record.offset.0, (record.key.to_vec(), record.value.to_vec()))));
        Ok(())
    })?;
    Ok(covered)
}

#[test]
fn what_is_left_is_the_last_of_each_key_and_outlives_a_power_cut() {
    let mut story = Story::begin(31).unwrap();
    story.write(300).unwrap();
    story.world.run_for(SETTLING_NS).unwrap();
    assert!(story.count(Kind::SegmentsReplaced) > 0);
    let read = story.read_and_check().unwrap();
    assert!(read.len() < story.written.len() / 4, "{} of {} are left", read.len(), story.written.len());
    // From every offset, gone or not, one gets on.
    for from in (0..story.end()).step_by(101) {
        let first = read.range(from..).next().map(|(offset, _)| *offset);
        assert_eq!(story.first_from(from).unwrap(), first, "from {from}");
    }
    for mood in [Mood::DropsAll, Mood::Mixed] {
        story.world.cut_power_in(mood).unwrap();
        story.recover().unwrap();
        assert_eq!(story.read_and_check().unwrap(), read);
    }
    // It goes on, and gives back the space of what it has replaced.
    story.write(200).unwrap();
    story.world.run_for(SETTLING_NS).unwrap();
    story.read_and_check().unwrap();
    story.world.run_for(SETTLING_NS).unwrap();
    assert!(story.segment_files() <= 8, "{}", story.segment_files());
    assert!(story.count(Kind::SegmentRemoved) >= 10);
}

/// Three lives that end soon after a job has begun; gives how many ended before the job did.
fn crash_amid_compactions(seed: u64) -> Result<u64, Violation> {
    let mut story = Story::begin(seed)?;
    for _ in 0..3 {
        story.write_until_it_compacts()?;
        for _ in 0..story.world.luck.faults.random_range(0..12) {
            story.world.step(u64::MAX)?;
        }
        if seed.is_multiple_of(3) {
            story.world.kill()?;
        } else {
            story.world.cut_power()?;
        }
        story.recover()?;
        story.read_and_check()?;
    }
    story.world.run_for(SETTLING_NS)?;
    story.write(10)?;
    story.read_and_check()?;
    Ok(story.count(Kind::CrashInCompaction))
}

#[test]
fn a_crash_amid_a_compaction_changes_nothing() {
    let crash =
        |seed| crash_amid_compactions(seed).unwrap_or_else(|violation| panic!("SEED={seed}: {violation}"));
    let crashes: u64 = (0..16).map(crash).sum();
    assert!(crashes >= 8, "only {crashes} jobs were under way at a crash");
}

#[test]
fn a_reader_that_is_overtaken_goes_on_with_what_is_left() {
    let mut story = Story::begin(33).unwrap();
    story.write(150).unwrap();
    let mut reader = Peer::greet(&mut story.world).unwrap();
    let (id, (records, bytes)) = (1, CREDIT);
    let wanted = Subscribing { topic: TOPIC, partition: 0, start: Start::Earliest, records, bytes };
    let subscribe = |correlation| frames::subscribe(correlation, id, &wanted);
    reader.ask_for(&mut story.world, Status::Ok, subscribe).unwrap();
    let replaced_before = story.count(Kind::SegmentsReplaced);
    let (mut read, mut next, mut left_to_write) = (BTreeMap::new(), 0, 150);
    while left_to_write > 0 || next < story.end() {
        let is_news = |frame: &Received| frame.is(Opcode::Deliver) || frame.is(Opcode::Unsubscribe);
        let frame = reader.wait_for(&mut story.world, is_news).unwrap();
        assert!(frame.is(Opcode::Deliver), "{:?}: {}", frame.status, frame.message());
        for (base, behind) in take_in(story.partition, &frame.payload, &mut read).unwrap() {
            assert!(next <= base, "{base} to {behind} was delivered behind {next}");
            next = behind;
        }
        if left_to_write > 0 {
            left_to_write -= 1;
            story.write(1).unwrap();
        }
        story.world.run_for(RETRY_NS).unwrap();
        let correlation = reader.next_correlation();
        reader.send(&mut story.world, &frames::credit(correlation, id, records, bytes));
    }
    assert_eq!(next, story.end());
    story.check(&read).unwrap();
    assert!(story.count(Kind::SegmentsReplaced) > replaced_before, "nothing was compacted meanwhile");
}

#[test]
fn a_topic_that_is_deleted_amid_a_compaction_leaves_no_file() {
    let mut story = Story::begin(34).unwrap();
    let other = story.peer.create_topic(&mut story.world, "others", 1).unwrap()[0];
    story.write_until_it_compacts().unwrap();
    assert!(story.segment_files() > 0);
    story.peer.delete_topic(&mut story.world, TOPIC).unwrap();
    for number in 0..40 {
        story.peer.produce(&mut story.world, other, &[Size::Small.number(number)]).unwrap();
        story.world.run_for(SETTLING_NS / 10).unwrap();
    }
    assert_eq!(story.segment_files(), 0);
}
