//! Time and chance: the only sources of both in a simulated world.
//!
//! Three streams of one seed, so that a change of the workload leaves the faults where they were, and the other way
//! round: what clients do, what breaks, and when things complete.

use std::ops::Range;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::report::{Kind, Report};

/// Virtual time starts here, so that "long ago" exists.
const START_NS: u64 = 1_000_000_000;

/// Virtual time, chance, and the count of what has happened.
#[derive(Debug)]
pub(crate) struct Luck {
    /// Monotonic virtual time.
    pub(crate) now_ns: u64,
    /// What clients do.
    pub(crate) workload: ChaCha8Rng,
    /// What breaks.
    pub(crate) faults: ChaCha8Rng,
    /// When things complete, and in which pieces.
    pub(crate) schedule: ChaCha8Rng,
    /// What has happened.
    pub(crate) report: Report,
}

impl Luck {
    pub(crate) fn new(seed: u64) -> Self {
        let stream = |number| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(number);
            random
        };
        Self {
            now_ns: START_NS,
            workload: stream(1),
            faults: stream(2),
            schedule: stream(3),
            report: Report::default(),
        }
    }

    pub(crate) fn count(&mut self, kind: Kind) {
        self.report.add(kind, 1);
    }

    /// Whether a fault that comes once in so many chances comes now; 0 is never.
    pub(crate) fn breaks(&mut self, one_in: u32) -> bool {
        one_in > 0 && self.faults.random_range(0..one_in) == 0
    }

    /// An even chance of what breaks.
    pub(crate) fn coin(&mut self) -> bool {
        self.breaks(2)
    }

    /// Whether a client does what it does once in so many chances; 0 is never.
    pub(crate) fn chooses(&mut self, one_in: u32) -> bool {
        one_in > 0 && self.workload.random_range(0..one_in) == 0
    }

    /// One of so many things that a client can do.
    pub(crate) fn pick(&mut self, count: usize) -> usize {
        self.workload.random_range(0..count)
    }

    /// A delay.
    pub(crate) fn delay_ns(&mut self, range: Range<u64>) -> u64 {
        self.schedule.random_range(range)
    }

    /// How many of the bytes that are there move in one piece: all, or now and then only some.
    pub(crate) fn piece(&mut self, available: usize, split_one_in: u32) -> usize {
        let splits = available > 1 && split_one_in > 0 && self.schedule.random_range(0..split_one_in) == 0;
        if !splits {
            return available;
        }
        self.count(Kind::Split);
        self.schedule.random_range(1..available)
    }
}
