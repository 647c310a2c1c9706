//! One file below a volatile write cache.
//!
//! ```text
//! write completes -> the list of unflushed writes, in the order of completion; reads see it over `durable`
//! flush completes -> what had completed when it was issued moves to `durable`
//! power cut       -> each unflushed write is kept, dropped or torn by sectors, each for itself
//! ```
//!
//! A file that was shrunk is shorter at once; what was behind comes back at a power cut, or does not.

use broker::io::FileHeader;
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
    /// Longer than the file while nobody can tell whether it was shrunk for good.
    durable: Vec<u8>,
    /// Length of the file.
    bytes: usize,
    unflushed: Vec<Unflushed>,
}

impl Image {
    /// A file of zeros that is durable.
    pub(crate) fn zeros(bytes: usize) -> Self {
        Self { durable: vec![0; bytes], bytes, unflushed: Vec::new() }
    }

    /// A file of zeros but for what it begins with; all of it is durable.
    pub(crate) fn with_header(bytes: usize, header: Option<&FileHeader>) -> Self {
        let mut image = Self::zeros(bytes);
        if let Some(header) = header {
            store(&mut image.durable, 0, header);
        }
        image
    }

    /// Length in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What a power cut that keeps nothing would leave.
    pub(crate) fn durable(&self) -> &[u8] {
        &self.durable[..self.bytes]
    }

    /// Copies the newest completed content.
    pub(crate) fn read(&self, position: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.durable()[position..position + into.len()]);
        for write in &self.unflushed {
            overlay(into, position, write.position, &write.data);
        }
    }

    /// The file becomes at least so long, for good; whether an earlier shrink lasts is decided with it.
    pub(crate) fn grow(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.durable.truncate(self.bytes);
            self.durable.resize(bytes, 0);
            self.bytes = bytes;
        }
    }

    /// The file becomes shorter.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        self.bytes = bytes;
        self.unflushed.retain_mut(|write| {
            write.data.truncate(bytes.saturating_sub(write.position));
            !write.data.is_empty()
        });
    }

    /// A write has completed, as the disk's number `completed`.
    pub(crate) fn write(&mut self, completed: u64, position: usize, data: Vec<u8>) {
        self.unflushed.push(Unflushed { completed, position, data });
    }

    /// A write has completed that carried its own sync.
    pub(crate) fn write_durably(&mut self, position: usize, data: &[u8]) {
        store(&mut self.durable, position, data);
        for write in &mut self.unflushed {
            overlay(&mut write.data, write.position, position, data);
        }
    }

    /// A write has failed: some of its sectors may be there.
    pub(crate) fn write_badly(&mut self, completed: u64, position: usize, data: &[u8], luck: &mut Luck) {
        for (number, sector) in data.chunks(SECTOR_BYTES).enumerate() {
            if luck.coin() {
                self.write(completed, position + number * SECTOR_BYTES, sector.to_vec());
            }
        }
    }

    /// A write has ended short: its front is there.
    pub(crate) fn write_short(&mut self, completed: u64, position: usize, data: &[u8], luck: &mut Luck) {
        let sectors = luck.faults.random_range(0..data.len() / SECTOR_BYTES);
        if sectors > 0 {
            self.write(completed, position, data[..sectors * SECTOR_BYTES].to_vec());
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
        if self.durable.len() > self.bytes {
            self.decide_shrink(luck);
        }
    }

    /// Whether the file is as short as it was made: else what was behind is there again, or zeros.
    fn decide_shrink(&mut self, luck: &mut Luck) {
        match luck.faults.random_range(0..4) {
            0 | 1 => self.durable.truncate(self.bytes),
            fate => {
                luck.count(Kind::ShrinkUndone);
                if fate == 2 {
                    self.durable[self.bytes..].fill(0);
                }
                self.bytes = self.durable.len();
            }
        }
    }

    /// The write that made these durable bytes has landed elsewhere in the file, long ago.
    pub(crate) fn misplace(&mut self, from: usize, to: usize, bytes: usize) {
        let moved = self.durable[from..from + bytes].to_vec();
        self.durable[from..from + bytes].fill(0);
        store(&mut self.durable, to, &moved);
    }

    /// A durable bit rots; a write that is in the cache hides that until it is lost.
    pub(crate) fn flip_bit(&mut self, position: usize, bit: u8) {
        assert!(position < self.bytes);
        self.durable[position] ^= 1 << bit;
    }
}

fn store(into: &mut [u8], position: usize, data: &[u8]) {
    into[position..position + data.len()].copy_from_slice(data);
}

/// Copies what `from`, which begins at byte `from_at`, has of the bytes that begin at `into_at`.
fn overlay(into: &mut [u8], into_at: usize, from_at: usize, from: &[u8]) {
    let begin = into_at.max(from_at);
    let end = (into_at + into.len()).min(from_at + from.len());
    if begin < end {
        into[begin - into_at..end - into_at].copy_from_slice(&from[begin - from_at..end - from_at]);
    }
}
