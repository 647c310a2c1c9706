//! What storage promises, each told on its own: a small journal is enough, old snapshots stand in for rotten ones, a
//! full disk heals, space comes back, damage isolates its range, and a time is a place to start from.

use broker::io::File;
use broker::journal::{Durability, JournalLayout};
use broker::limits::{JOURNAL_FILE_BYTES_MIN, PAGE_BYTES};
use broker::log::SegmentHeader;
use protocol::frame::Opcode;
use protocol::ids::Handle;
use protocol::status::Status;

use crate::consumer::Consumer;
use crate::fetched::on_fetched;
use crate::frames::{self, Received, Start, Subscribing};
use crate::image::Mood;
use crate::model::Appended;
use crate::records::{Size, content};
use crate::report::{Kind, Violation};
use crate::retention::Settings;
use crate::story::Story;
use crate::world::{Safety, World, WorldConfig};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Small segments, so that there are many.
const SMALL: Settings =
    Settings { retention_ms: 0, retention_bytes: 0, segment_bytes: 256 << 10, segment_ms: 0, compact: false };

/// Little memory, and a journal of so many small files.
fn calm(file_count: u32) -> WorldConfig {
    WorldConfig {
        layout: JournalLayout { file_bytes: JOURNAL_FILE_BYTES_MIN, file_count },
        pool_bytes: 32 * MIB,
        ..WorldConfig::calm(Durability::WriteThenFlush)
    }
}

/// The files of segments that belong to these partitions.
fn segments_of(world: &World, partitions: &[Handle]) -> Vec<File> {
    let is_theirs = |file: &File| {
        let header = matches!(file, File::Segment(_)).then(|| &world.disk.durable(*file)[..PAGE_BYTES]);
        let header = header.and_then(SegmentHeader::read);
        header.is_some_and(|header| partitions.contains(&header.partition))
    };
    world.disk.files().into_keys().filter(is_theirs).collect()
}

/// Where a record lies in the files of its partition.
fn place_of(world: &World, partition: Handle, record: u64) -> Option<(File, usize)> {
    let value = content(record);
    let needle = &value[..value.len().min(32)];
    segments_of(world, &[partition]).into_iter().find_map(|file| {
        let mut windows = world.disk.durable(file).windows(needle.len());
        windows.position(|window| window == needle).map(|at| (file, at))
    })
}

/// A journal of 16 MiB took so much, and memory of 32 MiB held it, because what lies in segments needs neither.
#[test]
fn a_small_journal_takes_two_hundred_mebibytes() {
    let mut story = Story::begin(1, &calm(8)).unwrap();
    let partitions = story.create("orders", 2, Settings::default()).unwrap();
    for _ in 0..50 {
        for partition in &partitions {
            story.fill(*partition, 2 * MIB).unwrap();
        }
    }
    assert!(story.count(Kind::JournalWrapped) >= 20, "{}", story.count(Kind::JournalWrapped));
    story.cut_power_and_recover(Mood::DropsAll).unwrap();
    let ends = story.audit().unwrap();
    assert_eq!(ends.len(), 2);
    assert!(story.count(Kind::ColdRead) > 0);
}

/// The journal is kept down to the older of the two snapshots, so that it can stand in for the newer one.
#[test]
fn a_rotten_newest_snapshot_costs_nothing() {
    let mut story = Story::begin(2, &WorldConfig { safety: Safety::Rot, ..calm(4) }).unwrap();
    let partition = story.create("orders", 1, SMALL).unwrap()[0];
    story.fill_until_snapshots(partition, 3).unwrap();
    let records = story.produce(partition, Size::Small, 5).unwrap();
    story.world.cut_power_in(Mood::KeepsAll).unwrap();
    let newest = story.world.watch.newest_snapshot().unwrap();
    // Its header is well, and its first block is not.
    story.world.disk.flip_bit(newest, PAGE_BYTES + 20, 5);
    story.recover().unwrap();
    assert_eq!(story.count(Kind::RecoveryFromOlderSnapshot), 1);
    let ends = story.audit().unwrap();
    assert!(ends[0].1 >= records.len() as u64);
    // It goes on, and the rotten one is written anew in its turn.
    story.fill_until_snapshots(partition, 6).unwrap();
    story.cut_power_and_recover(Mood::Mixed).unwrap();
    story.audit().unwrap();
}

/// Both copies are gone: then nobody knows what is where, and the start is refused with a reason.
#[test]
fn two_rotten_snapshots_refuse_the_start() {
    let mut story = Story::begin(3, &WorldConfig { safety: Safety::Rot, ..calm(4) }).unwrap();
    let partition = story.create("orders", 1, SMALL).unwrap()[0];
    story.fill_until_snapshots(partition, 8).unwrap();
    story.world.cut_power_in(Mood::KeepsAll).unwrap();
    for number in 0..2 {
        for position in (0..128).step_by(8) {
            story.world.disk.flip_bit(File::Snapshot(number), position, 2);
        }
    }
    story.world.start().unwrap();
    while !story.world.is_ready() && story.world.failure().is_none() {
        story.world.step(u64::MAX).unwrap();
    }
    assert!(story.world.is_refused(), "{:?}", story.world.failure());
}

#[test]
fn a_full_disk_heals_without_a_restart() {
    let mut story = Story::begin(4, &calm(4)).unwrap();
    let partition = story.create("orders", 1, SMALL).unwrap()[0];
    // Now the journal and both snapshots have their files.
    story.fill_until_snapshots(partition, 2).unwrap();
    story.world.limit_space(MIB as u64);
    let until_status = |story: &mut Story, wanted: Status| {
        for _ in 0..400 {
            let (_, answer) = story.try_produce(partition, true).unwrap();
            assert!([Status::Ok, Status::Busy, Status::DiskFull].contains(&answer.status), "{answer:?}");
            if answer.status == wanted {
                return;
            }
            story.world.run_for(50_000_000).unwrap();
        }
        panic!("{wanted:?} never came");
    };
    until_status(&mut story, Status::DiskFull);
    // Everything else goes on.
    story.ask_for_stats().unwrap();
    let old = story.fetch(partition, 0).unwrap();
    on_fetched(partition, 0, 1, &old, &mut story.model).unwrap();
    assert_eq!(old.status, Status::Ok);
    story.world.run_for(2_000_000_000).unwrap();

    story.world.disk.set_capacity(None);
    until_status(&mut story, Status::Ok);
    story.fill(partition, 2 * MIB).unwrap();
    story.cut_power_and_recover(Mood::DropsAll).unwrap();
    story.audit().unwrap();
}

#[test]
fn a_deleted_topic_gives_its_space_back() {
    let mut story = Story::begin(5, &calm(4)).unwrap();
    let keep = story.create("keep", 1, SMALL).unwrap()[0];
    let gone = story.create("gone", 2, SMALL).unwrap();
    for partition in &gone {
        story.fill(*partition, 2 * MIB).unwrap();
    }
    assert!(segments_of(&story.world, &gone).len() >= 8);
    story.delete("gone").unwrap();
    for _ in 0..200 {
        if segments_of(&story.world, &gone).is_empty() {
            break;
        }
        // Snapshots that name the files have to be replaced first.
        story.fill(keep, 256 * KIB).unwrap();
        story.world.run_for(100_000_000).unwrap();
    }
    assert!(segments_of(&story.world, &gone).is_empty());
    story.cut_power_and_recover(Mood::Mixed).unwrap();
    assert!(segments_of(&story.world, &gone).is_empty());
    assert_eq!(story.audit().unwrap().len(), 1);
}

#[test]
fn retention_by_bytes_bounds_what_is_stored() {
    const KEPT: u64 = 1 << 20;
    /// A segment that is not old enough as a whole, one that is filled, and what came since retention looked.
    const STORED_MAX: u64 = KEPT + (3 << 20);
    /// And the files that snapshots still name.
    const ON_DISK_MAX: u64 = STORED_MAX + (10 << 20);
    let mut story = Story::begin(6, &calm(4)).unwrap();
    let settings = Settings { retention_bytes: KEPT, ..SMALL };
    let partition = story.create("orders", 1, settings).unwrap()[0];
    for _ in 0..80 {
        story.fill(partition, 512 * KIB).unwrap();
        story.world.run_for(300_000_000).unwrap();
        let described = story.peer.describe(&mut story.world, "orders").unwrap()[0];
        story.model.on_start_told(partition, described.start).unwrap();
        assert!(described.stored_bytes <= STORED_MAX, "{described:?}");
        let files = story.world.disk.files().into_iter();
        let segments = files.filter(|(file, _)| matches!(file, File::Segment(_)));
        let on_disk: u64 = segments.map(|(_, bytes)| bytes).sum();
        assert!(on_disk <= ON_DISK_MAX, "{on_disk}");
    }
    assert!(story.count(Kind::SegmentRemoved) >= 20);
    story.audit().unwrap();
    story.cut_power_and_recover(Mood::Mixed).unwrap();
    story.audit().unwrap();
    assert!(story.model.start_moves > 0);
}

#[test]
fn a_rotten_byte_of_a_segment_damages_its_range_only() {
    let mut story = Story::begin(7, &WorldConfig { safety: Safety::Rot, ..calm(4) }).unwrap();
    let orders = story.create("orders", 2, SMALL).unwrap();
    let quotes = story.create("quotes", 1, SMALL).unwrap()[0];
    let mut victims = Vec::new();
    for _ in 0..60 {
        victims.extend(story.produce(orders[0], Size::Medium, 10).unwrap());
        story.produce(orders[1], Size::Medium, 10).unwrap();
    }
    story.fill_until_snapshots(quotes, 4).unwrap();
    story.world.cut_power_in(Mood::KeepsAll).unwrap();
    let victim = victims.len() / 3;
    let (file, at) = place_of(&story.world, orders[0], victims[victim]).unwrap();
    story.world.disk.flip_bit(file, at + content(victims[victim]).len() / 2, 6);
    story.recover().unwrap();

    // The first record of all stands at offset 0, the others behind it in their order.
    let ends = story.audit().unwrap();
    assert_eq!(ends.len(), 3);
    assert!(!story.model.damaged.is_empty());
    for range in &story.model.damaged {
        assert_eq!(range.partition, orders[0]);
        assert!((range.first..range.behind).contains(&(victim as u64)), "{range:?} without {victim}");
        assert!(range.behind - range.first <= 100, "{range:?}");
    }
    let range = story.model.damaged[0];
    for (from, status) in [
        (0, Status::Ok),
        (range.first, Status::Corrupt),
        (victim as u64, Status::Corrupt),
        (range.behind, Status::Ok),
    ] {
        let answer = story.fetch(orders[0], from).unwrap();
        assert_eq!(answer.status, status, "from {from}");
        on_fetched(orders[0], from, u64::MAX, &answer, &mut story.model).unwrap();
    }
    // The partition still takes records.
    story.produce(orders[0], Size::Medium, 10).unwrap();
}

/// The first batch that a subscription from a time gets: its first offset, and when it was appended.
fn first_since(story: &mut Story, partition: Handle, time_ms: u64) -> Result<(u64, u64), Violation> {
    let mut consumer = Consumer::default();
    let id = consumer.begin("orders", Start::Time(time_ms), (1, 1), &story.model);
    let wanted =
        Subscribing { topic: "orders", partition: 0, start: Start::Time(time_ms), records: 1, bytes: 1 };
    let subscribe = |correlation| frames::subscribe(correlation, id, &wanted);
    let answer = story.peer.ask_for(&mut story.world, Status::Ok, subscribe)?;
    consumer.on_subscribed(id, &answer.subscribed()?, &mut story.model)?;
    let is_delivery = |frame: &Received| frame.is(Opcode::Deliver);
    let frame = story.peer.wait_for(&mut story.world, is_delivery)?;
    consumer.on_deliver(&frame, &mut story.model)?;
    let mut first = None;
    frames::each_batch(partition, &frame.payload, |batch| {
        let header = batch.header();
        first.get_or_insert((header.base_offset().0, header.appended_ms.get()));
        Ok(())
    })?;
    let unsubscribe = |correlation| frames::bare(Opcode::Unsubscribe, correlation, id);
    story.peer.ask_for(&mut story.world, Status::Ok, unsubscribe)?;
    Ok(first.expect("a delivery holds a batch"))
}

/// Starts from times at, before and between those of known batches.
fn check_starts(story: &mut Story, partition: Handle) {
    let known: Vec<(u64, u64)> = story
        .model
        .fixed
        .range((partition, 0)..=(partition, u64::MAX))
        .filter_map(|((_, offset), fixed)| match fixed.appended {
            Appended::At(at_ms) => Some((*offset, at_ms)),
            Appended::NotBefore(_) => None,
        })
        .collect();
    let times: Vec<u64> = known.iter().step_by(17).flat_map(|(_, at_ms)| [at_ms - 1, *at_ms]).collect();
    assert!(times.len() >= 20);
    for time_ms in times.into_iter().chain([0]) {
        let (base, at_ms) = first_since(story, partition, time_ms).unwrap();
        let wanted = known.iter().find(|(_, at_ms)| *at_ms >= time_ms).unwrap();
        assert_eq!((base, at_ms), *wanted, "from {time_ms}");
    }
}

#[test]
fn a_start_from_a_time_gets_the_first_batch_since() {
    let mut story = Story::begin(8, &calm(4)).unwrap();
    let partition = story.create("orders", 1, SMALL).unwrap()[0];
    for _ in 0..100 {
        story.produce(partition, Size::Medium, 3).unwrap();
        story.world.run_for(7_000_000).unwrap();
    }
    story.audit().unwrap();
    check_starts(&mut story, partition);

    // The same from disk: after a start, memory holds none of it.
    let other = story.create("quotes", 1, SMALL).unwrap()[0];
    story.fill_until_snapshots(other, 4).unwrap();
    story.cut_power_and_recover(Mood::Mixed).unwrap();
    let cold_reads = story.count(Kind::ColdRead);
    check_starts(&mut story, partition);
    assert!(story.count(Kind::ColdRead) > cold_reads);

    // Nothing is that new: the next batch is the first one.
    let last_ms = story.model.clock.latest_ms();
    story.world.run_for(20_000_000).unwrap();
    let end = story.model.known_end(partition);
    let mut consumer = Consumer::default();
    let id = consumer.begin("orders", Start::Time(last_ms + 1), (1, 1), &story.model);
    let start = Start::Time(last_ms + 1);
    let wanted = Subscribing { topic: "orders", partition: 0, start, records: 1, bytes: 1 };
    let subscribe = |correlation| frames::subscribe(correlation, id, &wanted);
    let answer = story.peer.ask_for(&mut story.world, Status::Ok, subscribe).unwrap();
    assert_eq!(answer.subscribed().unwrap(), [(partition, end)]);
    consumer.on_subscribed(id, &answer.subscribed().unwrap(), &mut story.model).unwrap();
    story.produce(partition, Size::Small, 2).unwrap();
    let delivery = story.peer.wait_for(&mut story.world, |frame| frame.is(Opcode::Deliver)).unwrap();
    consumer.on_deliver(&delivery, &mut story.model).unwrap();
    assert_eq!(consumer.next_offset(id, partition), Some(end + 2));
}
