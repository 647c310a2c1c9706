//! One file below a volatile write cache.
//!
//! ```text
//! write completes -> `cached` (what reads see) and the list of unflushed writes, in the order of completion
//! flush completes -> what had completed when it was issued moves to `durable`
//! power cut       -> each unflushed write is kept, dropped or torn by sectors, each for itself
//! ```

use rand::RngExt;

use crate::luck::Luck;
use crate::report::Kind;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// How a power cut treats writes that were not flushed. The extremes are drawn more often than chance would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    KeepsAll,
    DropsAll,
    TearsAll,
    Mixed,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Kept,
    Dropped,
    Torn,
}

impl Mood {
    pub(crate) fn draw(luck: &mut Luck) -> Self {
        match luck.faults.random_range(0..8) {
            0 => Self::KeepsAll,
            1 | 2 => Self::DropsAll,
            3 => Self::TearsAll,
            _ => Self::Mixed,
        }
    }

    fn fate(self, luck: &mut Luck) -> Fate {
        match self {
            Self::KeepsAll => Fate::Kept,
            Self::DropsAll => Fate::Dropped,
            Self::TearsAll => Fate::Torn,
            Self::Mixed => match luck.faults.random_range(0..3) {
                0 => Fate::Kept,
                1 => Fate::Dropped,
                _ => Fate::Torn,
            },
        }
    }
}

/// A write that has completed and that no flush has covered.
#[derive(Debug)]
struct Unflushed {
    /// How many writes of the disk had completed with it.
    completed: u64,
    position: usize,
    data: Vec<u8>,
}

/// One file.
#[derive(Debug)]
pub(crate) struct Image {
    durable: Vec<u8>,
    cached: Vec<u8>,
    unflushed: Vec<Unflushed>,
}

impl Image {
    /// A file of zeros that is durable.
    pub(crate) fn zeros(bytes: usize) -> Self {
        Self { durable: vec![0; bytes], cached: vec![0; bytes], unflushed: Vec::new() }
    }

    /// Length in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.durable.len()
    }

    /// What a power cut that keeps nothing would leave.
    pub(crate) fn durable(&self) -> &[u8] {
        &self.durable
    }

    /// Copies the newest completed content.
    pub(crate) fn read(&self, position: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.cached[position..position + into.len()]);
    }

    /// A write has completed, as the disk's number `completed`.
    pub(crate) fn write(&mut self, completed: u64, position: usize, data: Vec<u8>) {
        store(&mut self.cached, position, &data);
        self.unflushed.push(Unflushed { completed, position, data });
    }

    /// A write has completed that carried its own sync.
    pub(crate) fn write_durably(&mut self, position: usize, data: &[u8]) {
        store(&mut self.cached, position, data);
        store(&mut self.durable, position, data);
    }

    /// A write has failed: some of its sectors may be there.
    pub(crate) fn write_badly(&mut self, completed: u64, position: usize, data: &[u8], luck: &mut Luck) {
        for (number, sector) in data.chunks(SECTOR_BYTES).enumerate() {
            if luck.coin() {
                self.write(completed, position + number * SECTOR_BYTES, sector.to_vec());
            }
        }
    }

    /// Makes durable what had completed up to `covered`.
    pub(crate) fn flush(&mut self, covered: u64) {
        for write in self.unflushed.extract_if(.., |write| write.completed <= covered) {
            store(&mut self.durable, write.position, &write.data);
        }
    }

    /// A flush has failed: what it covered may be gone from the cache, as Linux does it.
    pub(crate) fn flush_badly(&mut self, covered: u64, luck: &mut Luck) {
        self.unflushed.retain(|write| write.completed > covered || luck.coin());
        self.cached.copy_from_slice(&self.durable);
        for write in &self.unflushed {
            store(&mut self.cached, write.position, &write.data);
        }
    }

    /// The power fails. `in_flight` are writes that had not completed.
    pub(crate) fn cut_power(&mut self, in_flight: Vec<(usize, Vec<u8>)>, mood: Mood, luck: &mut Luck) {
        let unflushed = std::mem::take(&mut self.unflushed);
        let completed = unflushed.into_iter().map(|write| (write.position, write.data));
        let mut one_was_dropped = false;
        for (position, data) in completed.chain(in_flight) {
            match mood.fate(luck) {
                Fate::Kept => {
                    luck.count(Kind::WriteKept);
                    luck.report.add(Kind::WriteReordered, u64::from(one_was_dropped));
                    store(&mut self.durable, position, &data);
                }
                Fate::Dropped => {
                    luck.count(Kind::WriteDropped);
                    one_was_dropped = true;
                }
                Fate::Torn => {
                    luck.count(Kind::WriteTorn);
                    for (number, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                        if luck.coin() {
                            store(&mut self.durable, position + number * SECTOR_BYTES, sector);
                        }
                    }
                }
            }
        }
        self.cached.copy_from_slice(&self.durable);
    }

    /// A bit rots.
    pub(crate) fn flip_bit(&mut self, position: usize, bit: u8) {
        self.durable[position] ^= 1 << bit;
        self.cached[position] ^= 1 << bit;
    }
}

fn store(into: &mut [u8], position: usize, data: &[u8]) {
    into[position..position + data.len()].copy_from_slice(data);
}
