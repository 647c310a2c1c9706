//! The simulator: the broker's shard, unchanged, on a hostile disk and network, in virtual time, from a seed.
//!
//! A seed that fails is printed as `SEED=n` and run again with that in the environment; `SEEDS=n` runs so many, from
//! `SEED` or 0 on. `sim/harness.rs` says what a run is, `sim/model.rs` what must hold. The other tests here show that
//! the simulator sees what it should: broken builds, rotten bits, and its own sameness.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends at the first surprise")]

#[path = "sim/actions.rs"]
mod actions;
#[path = "sim/audit.rs"]
mod audit;
#[path = "sim/blocks.rs"]
mod blocks;
#[path = "sim/client.rs"]
mod client;
#[path = "sim/compaction_stories.rs"]
mod compaction_stories;
#[path = "sim/consumer.rs"]
mod consumer;
#[path = "sim/crash_stories.rs"]
mod crash_stories;
#[path = "sim/disk.rs"]
mod disk;
#[path = "sim/disk_tests.rs"]
mod disk_tests;
#[path = "sim/fetched.rs"]
mod fetched;
#[path = "sim/frame_check.rs"]
mod frame_check;
#[path = "sim/frames.rs"]
mod frames;
#[path = "sim/harness.rs"]
mod harness;
#[path = "sim/image.rs"]
mod image;
#[path = "sim/luck.rs"]
mod luck;
#[path = "sim/mixtures.rs"]
mod mixtures;
#[path = "sim/model.rs"]
mod model;
#[path = "sim/net.rs"]
mod net;
#[path = "sim/peer.rs"]
mod peer;
#[path = "sim/peer_tests.rs"]
mod peer_tests;
#[path = "sim/producer.rs"]
mod producer;
#[path = "sim/records.rs"]
mod records;
#[path = "sim/report.rs"]
mod report;
#[path = "sim/retention.rs"]
mod retention;
#[path = "sim/rot.rs"]
mod rot;
#[path = "sim/storage_stories.rs"]
mod storage_stories;
#[path = "sim/stories.rs"]
mod stories;
#[path = "sim/story.rs"]
mod story;
#[path = "sim/topics.rs"]
mod topics;
#[path = "sim/trace.rs"]
mod trace;
#[path = "sim/trimming.rs"]
mod trimming;
#[path = "sim/watch.rs"]
mod watch;
#[path = "sim/world.rs"]
mod world;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use broker::journal::Durability;
use broker::mutants::{self, Mutant};

use harness::{RunConfig, run};
use report::{Kind, Report};

const FIXED_SEEDS: u64 = 40;
/// Seeds of runs on disks that rot.
const ROTTEN_SEEDS: u64 = 40;
/// Seeds within which a broken build must have been caught.
const MUTANT_SEEDS: u64 = 60;

/// Prints the seed of a run that panics.
struct SeedNote(u64);

impl Drop for SeedNote {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("SEED={}", self.0);
        }
    }
}

fn number_from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn run_or_panic(seed: u64) -> Report {
    let _note = SeedNote(seed);
    run(seed, &RunConfig::of_seed(seed)).unwrap_or_else(|violation| panic!("SEED={seed}: {violation}"))
}

#[test]
fn no_seed_breaks_a_promise() {
    let from = number_from_environment("SEED");
    let count = number_from_environment("SEEDS").unwrap_or(if from.is_some() { 1 } else { FIXED_SEEDS });
    let first = from.unwrap_or(0);
    let mut sum = Report::default();
    for seed in first..first + count {
        let report = run_or_panic(seed);
        assert!(report.operations >= 200, "SEED={seed}: only {} operations", report.operations);
        assert!(report.crash_count() > 0, "SEED={seed}: no crash");
        sum.merge(&report);
    }
    // Past the test runner's capture: what was exercised is to be seen in every run.
    writeln!(std::io::stdout(), "{count} seeds: {sum}").unwrap();
    if from.is_none() && count >= FIXED_SEEDS {
        let missing = sum.missing(Kind::ALL);
        assert!(missing.is_empty(), "never happened: {missing:?}");
    }
}

/// What is wrong is told, or the start refused; nothing wrong is delivered, and nothing passed over in silence.
#[test]
fn no_rotten_seed_is_lied_about() {
    let from = number_from_environment("SEED");
    let count = number_from_environment("SEEDS").unwrap_or(if from.is_some() { 1 } else { ROTTEN_SEEDS });
    let first = from.unwrap_or(0);
    let mut sum = Report::default();
    for seed in first..first + count {
        let _note = SeedNote(seed);
        let report = run(seed, &RunConfig::rotten_of_seed(seed));
        sum.merge(&report.unwrap_or_else(|violation| panic!("SEED={seed}: {violation}")));
    }
    writeln!(std::io::stdout(), "{count} rotten seeds: {sum}").unwrap();
    if from.is_none() && count >= ROTTEN_SEEDS {
        let missing = sum.missing(Kind::ROT);
        assert!(missing.is_empty(), "never happened: {missing:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 8] {
        assert_eq!(run_or_panic(seed), run_or_panic(seed), "SEED={seed}");
    }
    assert_ne!(run_or_panic(3).trace, run_or_panic(4).trace);
}

/// Runs seeds on a broken build until one is caught, and says what was seen.
fn catch(mutant: Mutant) -> Option<String> {
    let caught = (0..MUTANT_SEEDS).find_map(|seed| {
        let mut config = RunConfig::of_seed(seed);
        config.world.durability = Durability::WriteThenFlush;
        mutants::set(Some(mutant));
        let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, &config)));
        mutants::set(None);
        match outcome {
            Ok(Ok(_)) => None,
            Ok(Err(violation)) => Some(format!("seed {seed}: {violation}")),
            // A panic is no finding: it could be the simulator's own.
            Err(_) => None,
        }
    });
    println!("{mutant:?}: {caught:?}");
    caught
}

#[test]
fn a_build_that_acks_before_the_flush_is_caught() {
    assert!(catch(Mutant::AckBeforeFlush).is_some());
}

#[test]
fn a_build_that_reuses_an_epoch_is_caught() {
    assert!(catch(Mutant::ReuseEpoch).is_some());
}
