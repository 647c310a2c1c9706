//! One bit of a data directory rots, any bit: then what is read is right, or the start is refused, or what cannot be
//! read is named. Nothing wrong is delivered, and nothing that was acknowledged is missing without a word.
//!
//! The real shard makes a small directory in memory (`flip/story.rs`). Then one bit of every byte that was ever written
//! is flipped, a shard is started over that, and everything is read over the wire. Of journal blocks that are older than
//! both snapshots, the test tries the headers and every 61st byte of the rest; `EVERY_BYTE=1` has every byte of everything
//! tried, which takes minutes. The second test does the same to a directory whose broker was killed right behind its last
//! acknowledgement, and tries every byte of the superblock and the last blocks. There is one window in which damage cannot
//! be told from a torn tail: docs/FORMAT.md names it, and the test prints where it lies.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test is the right answer")]

#[path = "flip/blocks.rs"]
mod blocks;
#[path = "flip/disk.rs"]
mod disk;
#[path = "flip/reading.rs"]
mod reading;
#[path = "flip/story.rs"]
mod story;
#[path = "flip/wire.rs"]
mod wire;
#[path = "flip/workers.rs"]
mod workers;
#[path = "flip/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::io::Write;

use broker::io::File;
use broker::limits::{JOURNAL_BLOCKS_IN_FLIGHT_MAX, PAGE_BYTES, SEGMENT_FOOTER_BYTES};
use broker::log::FooterFacts;

use blocks::{Block, blocks, first_needed};
use disk::Disk;
use reading::{Reference, Verdict, read_all};
use story::{Ending, Told, tell};
use workers::{Plan, Tally, flip_everything};
use world::{World, fresh_pool};

/// Blocks at the end of a killed broker's journal of which every byte is tried: the window, and what lies before it.
const LAST_BLOCKS: usize = 3 * JOURNAL_BLOCKS_IN_FLIGHT_MAX;

/// Past the test runner's capture: what was exercised is to be seen in every run.
fn say(what: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{what}").unwrap();
}

fn is_segment(file: File) -> bool {
    matches!(file, File::Segment(_))
}

fn is_journal(file: File) -> bool {
    matches!(file, File::Journal(_))
}

/// The directory has everything that can be damaged.
fn check_story(told: &Told) {
    let Told { directory, ledger, sealed, open, .. } = told;
    let first = &ledger.values[sealed][0];
    let file = directory.file_with(first, is_segment).expect("it was written behind");
    let bytes = directory.bytes(file);
    assert!(FooterFacts::read(&bytes[bytes.len() - SEGMENT_FOOTER_BYTES..]).unwrap().entry_count >= 2);

    let (first, last) = (&ledger.values[open][0], ledger.values[open].last().unwrap());
    let file = directory.file_with(first, is_segment).expect("it was written behind");
    let bytes = directory.bytes(file);
    assert!(FooterFacts::read(&bytes[bytes.len() - SEGMENT_FOOTER_BYTES..]).is_none());
    assert_eq!(directory.file_with(last, is_segment), None);
    assert!(directory.file_with(last, is_journal).is_some());
    assert!(blocks(directory)[0].sequence < first_needed(directory));
}

/// Flips a bit of every byte of some pages, and of some bytes of the others.
fn flip_all(told: &Told, whole_pages: BTreeSet<(File, usize)>) -> Tally {
    check_story(told);
    let Told { directory, ledger, wall_ms, .. } = told;
    let pool = fresh_pool();
    let mut world = World::start(Disk::new(directory, None), &pool, *wall_ms).unwrap();
    let recovery_reads_segments = world.has_recovered_from_segments;
    let reference = Reference::read(&mut world, ledger);
    assert_eq!(read_all(&mut world, &reference), Ok(Verdict::Same));
    drop(world);
    let is_every_byte = std::env::var_os("EVERY_BYTE").is_some_and(|value| value == "1");
    let whole_pages = if is_every_byte { directory.written_pages().clone() } else { whole_pages };
    let whole_bytes = whole_pages.len() * PAGE_BYTES;
    let plan =
        Plan { directory, reference: &reference, wall_ms: *wall_ms, whole_pages, recovery_reads_segments };
    let tally = flip_everything(&plan);
    say(&format!(
        "{} bytes were written, of which {whole_bytes} are tried one by one; {} more were never written{tally}",
        directory.written_pages().len() * PAGE_BYTES,
        directory.unwritten_bytes(),
    ));
    let (count, failures) = (tally.failures.len(), tally.failures.join("\n"));
    assert!(count == 0, "{count} flips, or more, do what they must not:\n{failures}");
    tally
}

#[test]
fn no_flipped_bit_of_a_stopped_brokers_directory_goes_unnoticed() {
    let told = tell(Ending::Stopped);
    let needed = first_needed(&told.directory);
    let written = told.directory.written_pages().iter().copied();
    let mut whole_pages: BTreeSet<_> = written.filter(|(file, _)| !is_journal(*file)).collect();
    let needed_blocks = blocks(&told.directory).into_iter().filter(|block| block.sequence >= needed);
    whole_pages.extend(needed_blocks.flat_map(|block| block.pages().collect::<Vec<_>>()));

    let tally = flip_all(&told, whole_pages);
    assert!(tally.lost.is_empty(), "acknowledged records are missing without a word: {:?}", tally.lost);
    assert!(tally.of("journal").refused > 0);
    assert!(tally.of("segment").unreadable > 0);
    // There are two of each, so that one can stand in for the other.
    assert!(tally.of("superblock").same > 0);
    assert_eq!(tally.of("superblock").refused, 0);
    assert!(tally.of("snapshot").same > 0);
    assert_eq!(tally.of("snapshot").refused, 0);
}

#[test]
fn after_a_kill_only_damage_to_the_last_blocks_in_flight_goes_unnoticed() {
    let told = tell(Ending::Killed);
    let blocks = blocks(&told.directory);
    let last_blocks = &blocks[blocks.len() - LAST_BLOCKS..];
    let superblock = [(File::Superblock, 0), (File::Superblock, 1)];
    let whole_pages = last_blocks.iter().flat_map(Block::pages).chain(superblock).collect();
    let window = &blocks[blocks.len() - JOURNAL_BLOCKS_IN_FLIGHT_MAX..];

    let tally = flip_all(&told, whole_pages);
    for flip in &tally.lost {
        let is_named = window.iter().any(|block| block.covers(flip));
        assert!(is_named, "records are missing without a word, and it is not the window's: {flip:?}");
    }
    for block in window {
        let lost = tally.lost.iter().filter(|flip| block.covers(flip));
        let positions: Vec<usize> = lost.map(|flip| flip.position).collect();
        // All of them were acknowledged before any of them said so of another.
        let (first, last) = (positions.first().unwrap(), positions.last().unwrap());
        let Block { sequence, file, content, .. } = block;
        say(&format!(
            "  the window: block {sequence} at {content:?} of {file:?}; {} flips from byte {first} to byte {last} \
             lose it and what is behind it",
            positions.len(),
        ));
    }
}
