//! The scrub: sealed segments are read and checked now and then, so that rot is found while there is still a backup.
//!
//! It reads as any consumer behind the tails does, at a bounded pace, and makes room when others wait for a stream.
//! What is damaged is said once in each round; what readers get for it is theirs to hear.

use protocol::ids::{Handle, Offset};

use super::cold::{Reader, Taken};
use super::serving::Serving;
use crate::limits::{SCRUB_INTERVAL_NS, SCRUB_REST_NS};
use crate::log::{ReadLimit, Target};

/// Partitions looked at in one step for something to read.
const PARTITIONS_PER_STEP_MAX: usize = 256;

/// Where the scrub stands.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    next: (usize, usize),
    reading: Option<Reading>,
    due_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    partition: Handle,
    stream: u32,
}

impl Serving {
    /// One step, if it is time: at most one read.
    pub(super) fn scrub(&mut self) {
        if self.now.monotonic_ns < self.scrub.due_ns || self.is_shutting_down() {
            return;
        }
        self.scrub.due_ns = self.now.monotonic_ns + SCRUB_INTERVAL_NS;
        match self.scrub.reading {
            Some(reading) => self.scrub_on(reading),
            None => self.begin_scrub(),
        }
    }

    fn begin_scrub(&mut self) {
        for _ in 0..PARTITIONS_PER_STEP_MAX {
            let (slot, number) = self.scrub.next;
            if slot >= self.state.partitions.slot_count() {
                self.scrub.next = (0, 0);
                self.scrub.due_ns = self.now.monotonic_ns + SCRUB_REST_NS;
                return;
            }
            let Some(partition) = self.state.partitions.in_slot(slot).get(number) else {
                self.scrub.next = (slot + 1, 0);
                continue;
            };
            self.scrub.next = (slot, number + 1);
            if self.scrub_from(partition.handle, partition.start()) {
                return;
            }
        }
    }

    /// Begins to read a partition at an offset; `false` when there is nothing to read, or no stream for it.
    fn scrub_from(&mut self, handle: Handle, from: Offset) -> bool {
        self.scrub.reading = None;
        if self.cold.is_contended() || self.cold.is_full() {
            return false;
        }
        let Some(partition) = self.state.partitions.get(handle) else { return false };
        let goal = Target::Offset(from);
        let Some(stream) = self.cold.begin(Reader::Scrub, handle, goal, &partition.log) else { return false };
        self.scrub.reading = Some(Reading { partition: handle, stream });
        self.cold.advance((stream, Reader::Scrub), &partition.log, &self.pool, &mut self.ops);
        true
    }

    fn scrub_on(&mut self, reading: Reading) {
        let Reading { partition: handle, stream } = reading;
        let Some(partition) = self.state.partitions.get(handle) else { return self.end_scrub(stream) };
        if self.cold.is_contended() {
            return self.end_scrub(stream);
        }
        let nothing = ReadLimit { bytes_max: 0, records_max: 0 };
        match self.cold.take((stream, Reader::Scrub), &partition.log, partition.durable_end(), nothing) {
            Taken::Later => {
                self.cold.advance((stream, Reader::Scrub), &partition.log, &self.pool, &mut self.ops);
            }
            Taken::Damaged(damage) => {
                let (first, next) = (damage.first, damage.next);
                tracing::error!(partition = %handle, "damage: records {first} up to {next} cannot be read");
                self.end_scrub(stream);
                self.scrub_from(handle, next);
            }
            Taken::Run(_) | Taken::CaughtUp(_) | Taken::Stale => self.end_scrub(stream),
        }
    }

    fn end_scrub(&mut self, stream: u32) {
        self.scrub.reading = None;
        self.cold.end((stream, Reader::Scrub));
    }
}
