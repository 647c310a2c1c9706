//! The power fails at every step of a small workload that touches all of storage: segments are made, written and
//! removed, checkpoints come and go, topics are created and deleted.
//!
//! A step is one operation on a file: the power fails when it was asked for, and whatever comes behind it is not. Then
//! it fails once more in the recovery, and after the next one everything is read. `CRASH_POINTS=n` tries more steps.

use broker::journal::{Durability, JournalLayout};
use broker::limits::JOURNAL_FILE_BYTES_MIN;

use crate::model::Model;
use crate::records::Size;
use crate::report::Violation;
use crate::retention::Settings;
use crate::story::Story;
use crate::world::{World, WorldConfig};

/// Steps at which the power fails, for each way to make blocks durable.
const POINTS: u64 = 24;
const SEED: u64 = 21;

fn config(durability: Durability) -> WorldConfig {
    WorldConfig {
        layout: JournalLayout { file_bytes: JOURNAL_FILE_BYTES_MIN, file_count: 4 },
        pool_bytes: 32 << 20,
        ..WorldConfig::calm(durability)
    }
}

/// Some MiB, so that two checkpoints are made and retention has something to remove.
fn work(story: &mut Story) -> Result<(), Violation> {
    let bounded = Settings { retention_bytes: 512 << 10, segment_bytes: 256 << 10, ..Settings::default() };
    let orders = story.create("orders", 2, bounded)?;
    let gone = story.create("gone", 1, Settings { segment_bytes: 256 << 10, ..Settings::default() })?;
    for round in 0..14 {
        story.produce(orders[0], Size::Large, 5)?;
        story.produce(orders[1], Size::Medium, 8)?;
        if round < 5 {
            story.produce(gone[0], Size::Large, 3)?;
        }
        if round == 6 {
            story.delete("gone")?;
        }
        if round % 4 == 3 {
            story.world.run_for(250_000_000)?;
        }
    }
    Ok(())
}

/// Works on a new disk; gives the world and the model as they are when the work is done, or the power is to be cut.
fn run(durability: Durability, cut_at: Option<u64>) -> Result<(World, Model), Violation> {
    let mut world = World::new(SEED, &config(durability));
    if let Some(operations) = cut_at {
        world.plan_cut(operations);
    }
    if let Err(violation) = world.start_and_recover() {
        return if world.is_cut_due() { Ok((world, Model::default())) } else { Err(violation) };
    }
    let mut story = Story::beside(world, Model::default());
    let outcome = story.greet().and_then(|()| work(&mut story));
    match outcome {
        Err(violation) if !story.world.is_cut_due() => Err(violation),
        _ => Ok((story.world, story.model)),
    }
}

/// Cuts the power at an operation, and again in the recovery; then everything must be there, twice.
fn cut_and_check(durability: Durability, operation: u64) -> Result<(), Violation> {
    let (mut world, mut model) = run(durability, Some(operation))?;
    model.topics.on_all_lost();
    world.cut_power()?;
    world.plan_cut(1 + operation % 13);
    let outcome = world.start_and_recover();
    if !world.is_cut_due() {
        outcome?;
    }
    world.cut_power()?;
    world.start_and_recover()?;
    let mut story = Story::on(world, model)?;
    let first = story.audit()?;
    story.world.kill()?;
    story.recover()?;
    let second = story.audit()?;
    assert_eq!(first, second, "a restart has changed something");
    Ok(())
}

fn sweep(durability: Durability) {
    let (world, _) = run(durability, None).unwrap();
    let operations = world.disk.issued();
    let points = crate::number_from_environment("CRASH_POINTS").unwrap_or(POINTS).min(operations);
    assert!(operations >= 100, "only {operations} operations");
    for point in 0..points {
        let operation = 1 + point * operations / points;
        if let Err(violation) = cut_and_check(durability, operation) {
            panic!("the power failed at operation {operation} of {operations}: {violation}");
        }
    }
}

#[test]
fn a_power_cut_at_any_step_loses_nothing() {
    sweep(Durability::WriteThenFlush);
}

#[test]
fn a_power_cut_at_any_step_of_synced_writes_loses_nothing() {
    sweep(Durability::SyncedWrites);
}
