//! Faults that were found by reading or by a seed, each with its story and the shortest way to it.
//!
//! They drive the same world as the seeds do, so that a fault which needs a rare coincidence stays found.

use broker::journal::block::{BLOCK_MAGIC, BlockHeader};
use broker::journal::{Durability, JournalLayout};
use broker::limits::PAGE_BYTES;
use protocol::batch::{Batch, BatchBuilder, Record};
use protocol::frame::{FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle};
use protocol::status::Status;
use zerocopy::IntoBytes;

use crate::disk::DiskFaults;
use crate::frames::{self, Received, Start, Subscribing};
use crate::image::Mood;
use crate::peer::Peer;
use crate::records::Size;
use crate::world::{World, WorldConfig};

fn calm() -> WorldConfig {
    WorldConfig::calm(Durability::WriteThenFlush)
}

fn started(config: &WorldConfig) -> World {
    let mut world = World::new(11, config);
    world.start_and_recover().unwrap();
    world
}

/// A batch with one record of so many bytes.
fn batch_with(value: &[u8]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    builder.push(&Record { value, ..Record::default() }).unwrap();
    let mut bytes = Vec::new();
    builder.finish_into(&mut bytes);
    bytes
}

/// When there was no memory for a long frame, its header was read from the buffer's front, where the frame before it
/// stood: that one was answered twice, a good produce perhaps with `Busy`, and the long one never.
#[test]
fn a_long_frame_without_memory_is_refused_by_its_own_id() {
    let mut world = started(&calm());
    let mut peer = Peer::greet(&mut world).unwrap();
    let partition = peer.create_topic(&mut world, "orders", 1).unwrap()[0];
    world.run_for(50_000_000).unwrap();
    let mut hogs = Vec::new();
    for bytes in [32 << 20, 1 << 20, 256 << 10] {
        while let Some(hog) = world.pool.buffer(bytes) {
            hogs.push(hog);
        }
    }
    let (before, long) = (peer.next_correlation(), peer.next_correlation());
    let mut bytes = frames::bare(Opcode::Stats, before, 0);
    bytes.extend(frames::produce(long, partition, false, &batch_with(&[7; 300_000])));
    peer.send(&mut world, &bytes);
    let refused = peer.wait_for(&mut world, |frame| frame.correlation == long).unwrap();
    assert_eq!(refused.status, Status::Busy);
    world.run_for(5_000_000).unwrap();
    let answers = peer.take(&mut world).unwrap();
    let of_stats: Vec<_> = answers.iter().filter(|frame| frame.correlation == before).collect();
    assert_eq!((of_stats.len(), of_stats[0].status), (1, Status::Ok), "{answers:?}");

    // The long frame's bytes were thrown away, and the connection goes on behind them.
    drop(hogs);
    let resumes = |correlation| frames::produce(correlation, partition, true, &batch_with(&[7; 300_000]));
    // The first batch that is longer than the partition's first space has that grow.
    peer.ask_for(&mut world, Status::Busy, resumes).unwrap();
    world.run_for(50_000_000).unwrap();
    assert_eq!(peer.ask_for(&mut world, Status::Ok, resumes).unwrap().subject, 0);
}

/// Two long frames in a row, the second longer, made the first long buffer the connection's ordinary one: each
/// client could make each of its connections hold up to 32 MiB for ever.
#[test]
fn a_long_frame_leaves_no_longer_buffer_behind() {
    let mut world = started(&calm());
    let mut peer = Peer::greet(&mut world).unwrap();
    let before = world.pool.used_bytes();
    // Nobody's handle: nothing is stored.
    let nowhere = Handle(0xFFFF_0000_0000);
    let mut bytes = Vec::new();
    for length in [200_000, 400_000, 800_000] {
        bytes.extend(frames::produce(length, nowhere, false, &batch_with(&vec![7; length as usize])));
    }
    peer.send(&mut world, &bytes);
    for length in [200_000, 400_000, 800_000] {
        let refused = peer.wait_for(&mut world, |frame| frame.correlation == length).unwrap();
        assert_eq!(refused.status, Status::StaleHandle);
    }
    world.run_for(5_000_000).unwrap();
    assert_eq!(world.pool.used_bytes(), before);
}

/// A Subscribe that has to wait for a change of the catalog was overtaken by the Credit right behind it, which was
/// refused: the subscription then stood there without the credit that its client had granted.
#[test]
fn credit_right_behind_a_subscribe_counts() {
    let mut world = started(&calm());
    let mut peer = Peer::greet(&mut world).unwrap();
    let partition = peer.create_topic(&mut world, "orders", 1).unwrap()[0];
    peer.produce(&mut world, partition, &[Size::Small.number(1)]).unwrap();
    let wanted = Subscribing { topic: "orders", partition: 0, start: Start::Earliest, records: 0, bytes: 0 };
    let mut bytes = frames::create_topic(peer.next_correlation(), "others", 1);
    bytes.extend(frames::subscribe(peer.next_correlation(), 1, &wanted));
    bytes.extend(frames::credit(peer.next_correlation(), 1, 10, 10_000));
    peer.send(&mut world, &bytes);
    world.run_for(20_000_000).unwrap();
    let frames = peer.take(&mut world).unwrap();
    assert!(!frames.iter().any(|frame| frame.is(Opcode::Credit)), "the grant was refused: {frames:?}");
    assert!(frames.iter().any(|frame| frame.is(Opcode::Deliver)), "{frames:?}");
}

/// Subscribers, and clients that fetch, were told that a topic is gone before its deletion was durable. A power cut
/// could then bring it back.
#[test]
fn nobody_hears_of_a_deletion_that_is_not_durable() {
    let mut world = started(&calm());
    let mut admin = Peer::greet(&mut world).unwrap();
    let mut reader = Peer::greet(&mut world).unwrap();
    let partition = admin.create_topic(&mut world, "orders", 1).unwrap()[0];
    let wanted = Subscribing { topic: "orders", partition: -1, start: Start::Earliest, records: 1, bytes: 1 };
    reader.ask_for(&mut world, Status::Ok, |correlation| frames::subscribe(correlation, 1, &wanted)).unwrap();
    world.run_for(50_000_000).unwrap();
    // From now on every operation of the disk takes more than a millisecond.
    world.disk.faults = DiskFaults { slow_one_in: 1, ..DiskFaults::default() };
    let delete = frames::about_topic(Opcode::DeleteTopic, admin.next_correlation(), "orders");
    admin.send(&mut world, &delete);
    world.run_for(300_000).unwrap();
    let fetch = frames::fetch(reader.next_correlation(), partition, 0, 1, 1_000);
    reader.send(&mut world, &fetch);
    world.run_for(600_000).unwrap();
    let is_told = |frame: &Received| frame.status != Status::Ok;
    let told = reader.take(&mut world).unwrap();
    let heard = admin.take(&mut world).unwrap();
    assert!(heard.is_empty(), "the deletion was durable too soon for this test: {heard:?}");
    assert!(!told.iter().any(is_told), "told before it was durable: {told:?}");
    world.cut_power_in(Mood::DropsAll).unwrap();
    world.start_and_recover().unwrap();
    let mut reader = Peer::greet(&mut world).unwrap();
    let fetch = |correlation| frames::fetch(correlation, partition, 0, 1, 1_000);
    reader.ask_for(&mut world, Status::Ok, fetch).unwrap();
}

/// An opcode that nobody knows was answered before any greeting, and the stranger kept.
#[test]
fn an_unknown_opcode_is_no_greeting() {
    let mut world = started(&calm());
    let mut stranger = Peer::connect(&mut world);
    let mut header = FrameHeader::new(Opcode::Stats, CorrelationId(1), 0);
    header.opcode = 200;
    stranger.send(&mut world, header.as_bytes());
    let told = stranger.wait_for_end(&mut world).unwrap();
    assert_eq!((told.len(), told[0].status), (1, Status::HelloRequired));
}

/// Recovery takes the length of the journal's files from those that exist. Where they are shorter than the longest
/// frame that is granted, such a frame fits into none of them, and its reservation panicked.
#[test]
fn a_frame_that_no_journal_file_holds_is_refused() {
    let layout = JournalLayout { file_bytes: 2 << 20, file_count: 8 };
    let mut world = started(&WorldConfig { layout, frame_bytes_max: 4 << 20, ..calm() });
    let mut peer = Peer::greet(&mut world).unwrap();
    let partition = peer.create_topic(&mut world, "orders", 1).unwrap()[0];
    let frame = frames::produce(peer.next_correlation(), partition, false, &batch_with(&vec![7; 3 << 20]));
    peer.send(&mut world, &frame);
    let answer = peer.wait_for(&mut world, |frame| frame.status != Status::Ok).unwrap();
    assert!(!answer.status.is_retryable(), "{:?} can never succeed", answer.status);
}

/// While it looks for evidence behind a torn tail, recovery took any page with the right magic for a block, and read
/// as much as it claimed to be long: a client's record could make it ask the pool for more than a buffer can be, at
/// every start anew.
#[test]
fn a_payload_that_looks_like_a_block_does_not_stop_recovery() {
    let layout = JournalLayout { file_bytes: 48 << 20, file_count: 1 };
    for seed in 0..8 {
        let mut world = World::new(seed, &WorldConfig { layout, ..calm() });
        world.start_and_recover().unwrap();
        let mut peer = Peer::greet(&mut world).unwrap();
        let partition = peer.create_topic(&mut world, "orders", 1).unwrap()[0];
        world.run_for(50_000_000).unwrap();
        let frame = frames::produce(peer.next_correlation(), partition, false, &batch_with(&fake_blocks()));
        peer.send(&mut world, &frame);
        // Until its write has been asked for; it is torn before it is durable.
        let written = world.blocks.count();
        while world.blocks.count() == written {
            world.step(u64::MAX).unwrap();
        }
        world.cut_power_in(Mood::TearsAll).unwrap();
        world.start_and_recover().unwrap_or_else(|violation| panic!("SEED={seed}: {violation}"));
    }
}

/// A value whose bytes, where they start a page of the journal, look like the header of a block of 40 MiB.
fn fake_blocks() -> Vec<u8> {
    const PAGES: usize = 16;
    let header = BlockHeader {
        magic: BLOCK_MAGIC,
        block_length: (40_u32 << 20).into(),
        content_length: 64_u32.into(),
        ..BlockHeader::default()
    };
    let mut value = vec![0; PAGES * PAGE_BYTES];
    // Block header, entry header, batch header, record index: what stands before the value.
    let index_bytes = Batch::check(&batch_with(&value)).unwrap().header().index_length.get() as usize;
    let before = 64 + 16 + 128 + index_bytes;
    for page in 1..PAGES {
        let place = page * PAGE_BYTES - before;
        value[place..place + 64].copy_from_slice(header.as_bytes());
    }
    value
}
