//! Retention: segments that are too old, or too many, are dropped; and open ones are closed at their age.
//!
//! A few partitions are looked at now and then. The unit is a sealed segment: a partition keeps at least what its topic
//! asks for, and at most one segment more. Time is that of the appends: a clock that jumps ahead is believed only as far
//! as it has gone on since the start.

use std::collections::VecDeque;

use protocol::ids::{Handle, Offset};
use zerocopy::IntoBytes;

use super::serving::Serving;
use crate::io::Now;
use crate::journal::Lsn;
use crate::journal::entry::{EntryKind, SegmentsTrimmed};
use crate::limits::{RETENTION_INTERVAL_NS, RETENTION_PER_TURN_MAX};
use crate::log::SegmentState;
use crate::partition::Partition;

/// Where retention stands.
#[derive(Debug)]
pub(super) struct Retention {
    next: (usize, usize),
    due_ns: u64,
    started: Now,
    /// Trims that are not durable yet, in the order of LSNs.
    trims: VecDeque<(Lsn, Handle, Offset)>,
}

impl Retention {
    pub(super) fn new(now: Now) -> Self {
        Self { next: (0, 0), due_ns: now.monotonic_ns, started: now, trims: VecDeque::new() }
    }

    /// The wall clock, at most as far ahead as the monotonic clock has gone since the start: a jump ahead deletes
    /// nothing early.
    pub(super) fn wall_ms(&self, now: Now) -> u64 {
        let passed_ms = (now.monotonic_ns - self.started.monotonic_ns) / 1_000_000;
        now.wall_ms.min(self.started.wall_ms + passed_ms)
    }
}

/// What is to be done with a partition.
enum Verdict {
    Keep,
    Close,
    Trim(Offset),
}

impl Serving {
    /// When retention looks again.
    pub(super) fn retention_deadline_ns(&self) -> Option<u64> {
        (self.state.partitions.count() > 0 && !self.is_shutting_down()).then_some(self.retention.due_ns)
    }

    /// Looks at some partitions, if it is time.
    pub(super) fn retain(&mut self) {
        if self.now.monotonic_ns < self.retention.due_ns || self.is_shutting_down() {
            return;
        }
        self.retention.due_ns = self.now.monotonic_ns + RETENTION_INTERVAL_NS;
        let wall_ms = self.retention.wall_ms(self.now);
        for _ in 0..RETENTION_PER_TURN_MAX {
            let (slot, number) = self.retention.next;
            if slot >= self.state.partitions.slot_count() {
                self.retention.next = (0, 0);
                return;
            }
            let Some(partition) = self.state.partitions.in_slot(slot).get(number) else {
                self.retention.next = (slot + 1, 0);
                continue;
            };
            let handle = partition.handle;
            let is_done = match judge(partition, wall_ms) {
                Verdict::Keep => true,
                Verdict::Close => self.close_segment(handle),
                Verdict::Trim(start) => self.trim(handle, start),
            };
            if !is_done {
                // The journal takes nothing now: again in the next turn that is due.
                return;
            }
            self.retention.next = (slot, number + 1);
        }
    }

    /// What was trimmed durably may be told, and readers that waited for it are.
    pub(super) fn tell_trims(&mut self) {
        let durable = self.journal.durable();
        while let Some((_, handle, start)) = self.retention.trims.pop_front_if(|(lsn, ..)| *lsn <= durable) {
            let Some(partition) = self.state.partitions.get_mut(handle) else { continue };
            partition.on_trim_durable(start);
            self.wake_subscribers(handle);
        }
    }

    fn trim(&mut self, handle: Handle, start: Offset) -> bool {
        let body_bytes = size_of::<SegmentsTrimmed>();
        if self.journal.reserve(EntryKind::TrimSegments, body_bytes).is_err() {
            return false;
        }
        let trimmed = SegmentsTrimmed { start_offset: start.0.into(), time_ms: self.now.wall_ms.into() };
        let lsn = self.journal.append(EntryKind::TrimSegments, handle.0, body_bytes, |body| {
            body.copy_from_slice(trimmed.as_bytes());
        });
        let count = self.state.apply_trim(handle, start, lsn);
        self.retention.trims.push_back((lsn, handle, start));
        self.counters.trimmed_segments += count as u64;
        true
    }
}

/// What retention demands of a partition.
fn judge(partition: &Partition, wall_ms: u64) -> Verdict {
    let settings = partition.settings;
    let segments = partition.log.segments();
    let mut bytes = partition.log.bytes();
    let mut start = None;
    for segment in segments.iter().take_while(|segment| segment.state == SegmentState::Sealed) {
        let is_too_old =
            settings.retention_ms > 0 && segment.last_ms.saturating_add(settings.retention_ms) < wall_ms;
        let is_too_much = settings.retention_bytes > 0 && bytes - segment.bytes() >= settings.retention_bytes;
        if !is_too_old && !is_too_much {
            break;
        }
        bytes -= segment.bytes();
        start = Some(segment.end_offset);
    }
    if let Some(start) = start {
        return Verdict::Trim(start);
    }
    let Some(open) = partition.log.open_segment().filter(|open| open.bytes() > 0) else {
        return Verdict::Keep;
    };
    let age_max = [settings.segment_ms, settings.retention_ms].into_iter().filter(|age| *age > 0).min();
    let is_of_age = age_max.is_some_and(|age| open.opened_ms.saturating_add(age) < wall_ms);
    if is_of_age { Verdict::Close } else { Verdict::Keep }
}
