//! What a rotten bit and a failed flush may do, and what they may not.
//!
//! A flipped bit is found or harmless, never served. A failed write or flush ends the shard: the disk may be well
//! again a moment later, and still nothing more is acknowledged.

use broker::io::File;
use broker::journal::Durability;

use broker::journal::recovery::RecoveryError;
use broker::limits::{JOURNAL_BLOCKS_IN_FLIGHT_MAX, PAGE_BYTES};
use broker::shard::ShardFailure;
use protocol::frame::Opcode;
use protocol::ids::Handle;
use protocol::status::Status;
use rand::RngExt;

use crate::audit::audit;
use crate::blocks::header_of;
use crate::disk::DiskFaults;
use crate::frames;
use crate::image::Mood;
use crate::model::Model;
use crate::peer::Peer;
use crate::records::{Size, batch_of};
use crate::report::Violation;
use crate::retention::Settings;
use crate::world::{Safety, World, WorldConfig};

const FRAMES: usize = 16;
const RECORDS: usize = 5;

/// Creates a topic with one partition, which the model knows of.
fn create_orders(world: &mut World, peer: &mut Peer, model: &mut Model) -> Result<Handle, Violation> {
    model.topics.begin_create("orders", Settings::default());
    let partitions = peer.create_topic(world, "orders", 1)?;
    let partition = partitions[0];
    model.topics.on_created("orders", partitions, 1)?;
    Ok(partition)
}

/// A directory with some acknowledged frames, each in a block of its own, all durable, and the process gone.
fn filled(seed: u64) -> Result<(World, Model), Violation> {
    let calm = WorldConfig::calm(Durability::WriteThenFlush);
    let mut world = World::new(seed, &WorldConfig { safety: Safety::Rot, ..calm });
    let mut model = Model::default();
    world.start_and_recover()?;
    let mut peer = Peer::greet(&mut world)?;
    let partition = create_orders(&mut world, &mut peer, &mut model)?;
    let lane = model.new_lane();
    for _ in 0..FRAMES {
        let records = model.new_frame(partition, lane, Size::Medium, RECORDS);
        let first = peer.produce(&mut world, partition, &records)?;
        model.on_acked(partition, first, &records)?;
    }
    world.cut_power_in(Mood::KeepsAll)?;
    Ok((world, model))
}

/// Where the blocks of a journal file start and end.
fn blocks_of(file: &[u8]) -> Vec<(usize, usize)> {
    let mut blocks = Vec::new();
    let mut position = 0;
    while let Some(header) = file.get(position..).and_then(header_of) {
        let end = position + header.block_length.get() as usize;
        blocks.push((position, end));
        position = end;
    }
    blocks
}

/// Starts on a directory that may be refused.
fn start(world: &mut World) -> Result<Option<ShardFailure>, Violation> {
    world.start()?;
    while !world.is_ready() && world.failure().is_none() {
        world.step(u64::MAX)?;
    }
    Ok(world.failure())
}

#[test]
fn a_flipped_bit_in_acked_data_refuses_the_start() {
    let mut refused = 0;
    for seed in 0..40 {
        let (mut world, mut model) = filled(seed).unwrap();
        let blocks = blocks_of(world.disk.durable(File::Journal(0)));
        assert!(blocks.len() >= FRAMES);
        // What follows says that it was durable.
        let victim = world.luck.faults.random_range(0..blocks.len() - 2);
        let (begin, end) = blocks[victim];
        let place = world.luck.faults.random_range(begin..end);
        let bit = world.luck.faults.random_range(0..8);
        world.disk.flip_bit(File::Journal(0), place, bit);
        match start(&mut world).unwrap() {
            Some(ShardFailure::Recovery(RecoveryError::Corrupt { position, .. })) => {
                assert_eq!(position, begin as u64, "SEED={seed}");
                refused += 1;
            }
            Some(other) => panic!("SEED={seed}: byte {place} bit {bit}: {other:?}"),
            // The bit was in the padding: whatever is served must be what was acknowledged.
            None => {
                drop(audit(&mut world, &mut model).unwrap_or_else(|wrong| panic!("SEED={seed}: {wrong}")))
            }
        }
    }
    assert!(refused > 10, "only {refused} of 40 flipped bits were found");
}

/// The write was acknowledged, and the block lies elsewhere: it must not be taken for a torn tail.
#[test]
fn a_misdirected_block_of_acked_data_refuses_the_start() {
    for seed in 0..10 {
        let (mut world, _) = filled(seed).unwrap();
        let blocks = blocks_of(world.disk.durable(File::Journal(0)));
        let (begin, end) = blocks[world.luck.faults.random_range(0..FRAMES - JOURNAL_BLOCKS_IN_FLIGHT_MAX)];
        let behind = blocks.last().unwrap().1 + PAGE_BYTES;
        world.disk.misplace(File::Journal(0), begin, behind, end - begin);
        match start(&mut world).unwrap() {
            Some(ShardFailure::Recovery(RecoveryError::Corrupt { position, .. })) => {
                assert_eq!(position, begin as u64, "SEED={seed}");
            }
            other => panic!("SEED={seed}: {other:?}"),
        }
    }
}

#[test]
fn an_untouched_directory_is_served_as_it_was() {
    let (mut world, mut model) = filled(1).unwrap();
    assert_eq!(start(&mut world).unwrap(), None);
    let ends = audit(&mut world, &mut model).unwrap();
    assert_eq!(ends.len(), 1);
    assert_eq!(ends[0].1, (FRAMES * RECORDS) as u64);
}

/// Sends frames while the disk fails; none of them is acknowledged, then or later, and recovery has the rest.
fn fail_while_producing(seed: u64, faults: DiskFaults) -> Result<(), Violation> {
    let mut world = World::new(seed, &WorldConfig::calm(Durability::WriteThenFlush));
    let mut model = Model::default();
    world.start_and_recover()?;
    let mut peer = Peer::greet(&mut world)?;
    let partition = create_orders(&mut world, &mut peer, &mut model)?;
    let lane = model.new_lane();
    let acked = model.new_frame(partition, lane, Size::Small, RECORDS);
    let first = peer.produce(&mut world, partition, &acked)?;
    model.on_acked(partition, first, &acked)?;

    world.disk.faults = faults;
    let mut lost = Vec::new();
    for _ in 0..FRAMES {
        let records = model.new_frame(partition, lane, Size::Small, RECORDS);
        let frame = frames::produce(peer.next_correlation(), partition, false, &batch_of(&records));
        peer.send(&mut world, &frame);
        lost.push(records);
        world.run_for(50_000)?;
    }
    world.run_for(5_000_000)?;
    assert!(matches!(world.failure(), Some(ShardFailure::Storage(_))), "{:?}", world.failure());
    // The disk is well again; a shard that retried would now acknowledge.
    world.disk.faults = DiskFaults::default();
    peer.send(&mut world, &frames::bare(Opcode::Stats, 999, 0));
    world.run_for(50_000_000)?;
    let answers = peer.take(&mut world)?;
    let was_acked = |frame: &frames::Received| frame.is(Opcode::Produce) && frame.status == Status::Ok;
    assert!(!answers.iter().any(was_acked), "acknowledged after a failure");

    for records in &lost {
        model.on_lost(records);
    }
    world.kill()?;
    world.cut_power()?;
    world.start_and_recover()?;
    audit(&mut world, &mut model).map(|_| ())
}

#[test]
fn a_failed_flush_stops_acks_for_good() {
    for seed in 0..10 {
        let faults = DiskFaults { flush_error_one_in: 1, ..DiskFaults::default() };
        fail_while_producing(seed, faults).unwrap_or_else(|violation| panic!("SEED={seed}: {violation}"));
    }
}

#[test]
fn a_failed_write_stops_acks_for_good() {
    for seed in 0..10 {
        let faults = DiskFaults { write_error_one_in: 1, ..DiskFaults::default() };
        fail_while_producing(seed, faults).unwrap_or_else(|violation| panic!("SEED={seed}: {violation}"));
    }
}
