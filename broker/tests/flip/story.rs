//! How the directory comes about: a short life of a broker, in which everything happens that leaves bytes.
//!
//! The journal is used up and begun anew, with a kill on the way; topics come and go; segments are closed by age and
//! sealed; two snapshots are made, with records before, between and behind them; the last records are in the journal only.

use std::collections::{BTreeMap, BTreeSet};

use broker::io::File;
use broker::limits::JOURNAL_BLOCKS_IN_FLIGHT_MAX;
use protocol::batch::{BatchBuilder, Record};
use protocol::ids::Handle;
use protocol::status::Status;
use reactor::memory::Pool;

use crate::disk::{Directory, Disk};
use crate::wire::{self, Settings};
use crate::world::{World, fresh_pool};

const WALL_START_MS: u64 = 1_800_000_000_000;
/// Segments are closed at this age, and have more than one index entry, which come every 64 KiB.
const AGED: Settings = Settings { segment_bytes: 256 << 10, segment_ms: 2_000 };
/// Longer than it takes until such a segment is closed.
const AGE_MS: u64 = 2_500;
/// What a frame holds that is a few kilobytes long.
const SMALL: Shape = Shape { batches: 2, records: 4, value_bytes: 90 };
/// What fills a segment: some pages.
const LARGER: Shape = Shape { batches: 4, records: 8, value_bytes: 200 };
/// What fills the journal, and is deleted.
const FILLER: Shape = Shape { batches: 1, records: 4, value_bytes: 2_800 };
/// Frames that make a segment of more than 64 KiB.
const SEALED_FRAMES: usize = 10;
const FILLER_FRAMES: usize = 12;
/// Times that the journal is filled a little more; more means that it does not begin anew.
const ROUNDS_MAX: usize = 40;
/// The process is killed after this one.
const KILL_AFTER_ROUND: usize = 2;
const STEP_MS: u64 = 10;
const STEPS_MAX: usize = 500;

/// How the life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// In order: a marker says that everything was durable.
    Stopped,
    /// Right behind the last acknowledgement.
    Killed,
}

/// What was acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) topics: BTreeSet<String>,
    /// Values in the order of their offsets.
    pub(crate) values: BTreeMap<Handle, Vec<Vec<u8>>>,
}

impl Ledger {
    fn on_acked(&mut self, partition: Handle, first_offset: u64, values: Vec<Vec<u8>>) {
        let known = self.values.get_mut(&partition).expect("the topic was created");
        assert_eq!(first_offset, known.len() as u64);
        known.extend(values);
    }
}

/// A directory, and what is known of it.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) directory: Directory,
    pub(crate) ledger: Ledger,
    /// When it ended.
    pub(crate) wall_ms: u64,
    /// A partition whose first record lies in a sealed segment,
    pub(crate) sealed: Handle,
    /// and one whose first record lies in an open segment, and whose last one in the journal only.
    pub(crate) open: Handle,
}

/// What a frame holds.
#[derive(Clone, Copy, Debug)]
struct Shape {
    batches: usize,
    records: usize,
    value_bytes: usize,
}

/// Tells the story.
pub(crate) fn tell(ending: Ending) -> Told {
    let nothing = Directory::default();
    let pool = fresh_pool();
    let world =
        World::start(Disk::new(&nothing, None), &pool, WALL_START_MS).expect("a new directory is served");
    let mut story = Story { world, pool, ledger: Ledger::default(), records_made: 0 };
    let orders = story.create("orders", 2, Settings::default());
    story = story.wrap_the_journal(&orders);
    let quotes = story.create("quotes", 1, AGED)[0];
    for _ in 0..SEALED_FRAMES {
        story.produce(quotes, LARGER);
    }
    story.run_for(AGE_MS);
    story.replace_both_snapshots(1, |story| {
        for partition in [orders[0], quotes, orders[1], quotes, orders[0]] {
            story.produce(partition, SMALL);
        }
    });
    let late = story.create("late", 1, Settings::default())[0];
    for partition in [late, quotes, late, quotes] {
        story.produce(partition, SMALL);
    }
    // The newer snapshot has this segment open, and the journal behind it says that it was closed.
    story.run_for(AGE_MS);
    for partition in [quotes, orders[0], orders[1], late, orders[0]] {
        story.produce(partition, SMALL);
    }
    story.produce_at_once(&[orders[1], late, quotes, orders[0]]);
    assert!(story.world.disk().first_file_uses >= 2, "the journal was not used up");
    let wall_ms = story.world.now().wall_ms;
    if ending == Ending::Stopped {
        story.world.stop();
    }
    let Story { world, ledger, .. } = story;
    let directory = world.into_disk().into_directory();
    Told { directory, ledger, wall_ms, sealed: quotes, open: orders[0] }
}

struct Story<'a> {
    world: World<'a>,
    pool: Pool,
    ledger: Ledger,
    records_made: u64,
}

impl Story<'_> {
    /// The process is killed, and started again on what it has left.
    fn restart(self) -> Self {
        let Self { world, pool, ledger, records_made } = self;
        let wall_ms = world.now().wall_ms;
        let disk = world.into_disk();
        let world = World::start(disk, &pool, wall_ms).expect("nothing is damaged");
        Self { world, pool, ledger, records_made }
    }

    /// Fills the journal until its first file is used again.
    fn wrap_the_journal(mut self, orders: &[Handle]) -> Self {
        for round in 0..ROUNDS_MAX {
            self.replace_both_snapshots(FILLER_FRAMES, |story| {
                for partition in orders {
                    story.produce(*partition, SMALL);
                }
            });
            if round == KILL_AFTER_ROUND {
                self = self.restart();
            } else if round > KILL_AFTER_ROUND && self.world.disk().first_file_uses >= 2 {
                return self;
            }
        }
        panic!("the journal is never used up");
    }

    /// Makes a topic with some frames and deletes it again: its files go once neither snapshot knows it any more.
    /// `between` comes behind the first snapshot and before the second.
    fn replace_both_snapshots(&mut self, frames: usize, between: impl FnOnce(&mut Self)) {
        let before = self.world.disk().lengths().clone();
        let gone = self.create("gone", 1, Settings::default());
        for _ in 0..frames {
            self.produce(gone[0], FILLER);
        }
        let files = self.world.disk().lengths().keys().copied();
        let made: Vec<File> = files.filter(|file| !before.contains_key(file)).collect();
        assert!(!made.is_empty());
        let published = self.world.disk().snapshots_published;
        self.delete("gone", &gone);
        self.run_until(|disk| disk.snapshots_published > published);
        between(self);
        self.run_until(|disk| made.iter().all(|file| !disk.lengths().contains_key(file)));
    }

    fn run_for(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds / STEP_MS {
            self.world.advance(STEP_MS);
        }
    }

    fn run_until(&mut self, is_reached: impl Fn(&Disk<'_>) -> bool) {
        for _ in 0..STEPS_MAX {
            if is_reached(self.world.disk()) {
                return;
            }
            self.world.advance(STEP_MS);
        }
        panic!("what is waited for does not come");
    }

    fn create(&mut self, name: &str, partition_count: u32, settings: Settings) -> Vec<Handle> {
        let request = wire::create_topic(name, partition_count, settings);
        for _ in 0..STEPS_MAX {
            let answer = self.world.ask(&request).expect("an answer");
            match answer.status {
                Status::Ok => {
                    let partitions = answer.described().expect("a topic's description");
                    self.ledger.topics.insert(name.to_owned());
                    self.ledger.values.extend(partitions.iter().map(|partition| (*partition, Vec::new())));
                    return partitions;
                }
                Status::Busy => self.world.advance(STEP_MS),
                other => panic!("{name} was refused with {other:?}"),
            }
        }
        panic!("the shard is busy for ever");
    }

    fn delete(&mut self, name: &str, partitions: &[Handle]) {
        let status = self.world.ask(&wire::delete_topic(name)).expect("an answer").status;
        assert_eq!(status, Status::Ok);
        self.ledger.topics.remove(name);
        self.ledger.values.retain(|partition, _| !partitions.contains(partition));
    }

    /// Produces one frame, again while the shard is busy, and waits for its acknowledgement.
    fn produce(&mut self, partition: Handle, shape: Shape) {
        let (values, batches) = self.make(shape);
        let mut resumes = false;
        for _ in 0..STEPS_MAX {
            let answer = self.world.ask(&wire::produce(partition, resumes, &batches)).expect("an answer");
            let (status, first_offset) = (answer.status, answer.subject);
            match status {
                Status::Ok => {
                    self.ledger.on_acked(partition, first_offset, values);
                    return;
                }
                Status::Busy => {
                    resumes = true;
                    self.world.advance(STEP_MS);
                }
                other => panic!("a produce was refused with {other:?}"),
            }
        }
        panic!("the shard is busy for ever");
    }

    /// Produces one frame to each, each in a block of its own, and all blocks are on their way to the disk before the
    /// first one is durable: none of them can say of another that it was.
    fn produce_at_once(&mut self, partitions: &[Handle]) {
        assert_eq!(partitions.len(), JOURNAL_BLOCKS_IN_FLIGHT_MAX);
        self.world.hold_journal();
        let mut sent = Vec::new();
        for partition in partitions {
            let (values, batches) = self.make(SMALL);
            self.world.receive(&wire::produce(*partition, false, &batches));
            self.world.turn();
            sent.push((*partition, values));
        }
        let answers = self.world.release_journal();
        assert_eq!(answers.len(), sent.len());
        for ((partition, values), (status, first_offset)) in sent.into_iter().zip(answers) {
            assert_eq!(status, Status::Ok);
            self.ledger.on_acked(partition, first_offset, values);
        }
    }

    /// New records: their values, and the batches that hold them.
    fn make(&mut self, shape: Shape) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (mut values, mut batches) = (Vec::new(), Vec::new());
        let mut builder = BatchBuilder::new();
        for _ in 0..shape.batches {
            for _ in 0..shape.records {
                self.records_made += 1;
                let value = value_of(self.records_made, shape.value_bytes);
                builder.push(&Record { value: &value, ..Record::default() }).expect("it fits into a batch");
                values.push(value);
            }
            builder.finish_into(&mut batches);
        }
        (values, batches)
    }
}

/// A value that no other record has: every eight bytes of it are a step of SplitMix64.
fn value_of(record: u64, bytes: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(bytes + 8);
    let mut state = record << 32;
    while value.len() < bytes {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        value.extend_from_slice(&(mixed ^ mixed >> 31).to_le_bytes());
    }
    value.truncate(bytes);
    value
}
