//! A topic's settings, and the clock by which retention judges.
//!
//! What retention may do is small: a partition's start moves up, when what lies before it is older than the topic
//! keeps by the latest time that the broker's clock ever showed, or when what is left is still as long as it keeps.

use crate::luck::Luck;

const KIB: u64 = 1 << 10;

/// What a topic is created with; 0 stands for no limit, or the broker's own choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) retention_ms: u64,
    pub(crate) retention_bytes: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) segment_ms: u64,
    pub(crate) compact: bool,
}

impl Settings {
    /// Small ones, so that segments come and go within a run.
    pub(crate) fn draw(luck: &mut Luck) -> Self {
        let segment_bytes = match luck.pick(8) {
            0 => 0,
            1 | 2 => 512 * KIB,
            _ => 256 * KIB,
        };
        let mut one_in = |count: usize, least: u64, more: usize| {
            if luck.pick(count) == 0 { least + luck.pick(more) as u64 } else { 0 }
        };
        Self {
            retention_ms: one_in(6, 50, 400),
            retention_bytes: one_in(3, 512 * KIB, 1 << 20),
            segment_bytes,
            segment_ms: one_in(4, 20, 200),
            compact: luck.pick(3) == 0,
        }
    }

    /// Whether a description says the same; where nothing was chosen it may name the broker's choice.
    pub(crate) fn are_repeated_by(&self, found: &Self) -> bool {
        let pairs = [
            (self.retention_ms, found.retention_ms),
            (self.retention_bytes, found.retention_bytes),
            (self.segment_bytes, found.segment_bytes),
            (self.segment_ms, found.segment_ms),
        ];
        self.compact == found.compact && pairs.into_iter().all(|(asked, said)| asked == 0 || asked == said)
    }

    /// Whether records may be gone.
    pub(crate) fn trims(&self) -> bool {
        self.retention_ms > 0 || self.retention_bytes > 0
    }
}

/// The broker's clock as it was seen from outside; it may jump.
#[derive(Debug, Default)]
pub(crate) struct ClockWatch {
    now_ms: u64,
    max_ms: u64,
    /// What it showed each time after it was set back.
    set_back_to: Vec<u64>,
}

/// When something was sent, by the broker's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    at_ms: u64,
    jumps_before: usize,
}

impl ClockWatch {
    /// The clock shows this, and the most that it ever showed is that.
    pub(crate) fn see(&mut self, now_ms: u64, max_ms: u64) {
        if now_ms < self.now_ms {
            self.set_back_to.push(now_ms);
        }
        self.now_ms = now_ms;
        self.max_ms = self.max_ms.max(max_ms);
    }

    /// The most that the clock has ever shown.
    pub(crate) fn latest_ms(&self) -> u64 {
        self.max_ms
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment { at_ms: self.now_ms, jumps_before: self.set_back_to.len() }
    }

    /// The least that the clock has shown since a moment.
    pub(crate) fn least_since(&self, moment: Moment) -> u64 {
        let set_back = self.set_back_to[moment.jumps_before..].iter().copied().min();
        set_back.map_or(moment.at_ms, |least| least.min(moment.at_ms))
    }

    /// Whether what happened at a time, or later, is so old at the most that the clock has ever shown.
    pub(crate) fn may_be_older(&self, appended_ms: u64, age_ms: u64) -> bool {
        appended_ms.saturating_add(age_ms) <= self.max_ms
    }
}
