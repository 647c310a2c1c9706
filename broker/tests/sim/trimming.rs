//! What retention may do to a partition, as the model sees it.
//!
//! A partition's start moves up and never back. The newest record before it has to be older than the topic keeps by
//! the latest time that the broker ever saw, or what is left as long as the topic keeps. Nothing else takes a record.

use protocol::ids::Handle;

use crate::model::{Appended, Model, ReadRange};
use crate::report::{Violation, violation};

impl Model {
    /// A client was told where a partition starts. The answer may be an old one: whoever asked compares it with what
    /// was known then.
    pub(crate) fn on_start_told(&mut self, partition: Handle, start: u64) -> Result<(), Violation> {
        let told = self.starts.entry(partition).or_default();
        if start <= *told {
            return Ok(());
        }
        *told = start;
        self.start_moves += 1;
        let settings = self.topics.settings_of(partition);
        if !settings.trims() {
            return violation(format!("{partition} starts at {start}, and its topic keeps everything"));
        }
        // What is left is counted where a partition is read whole.
        if settings.retention_bytes > 0 || self.may_have_expired(partition, start, settings.retention_ms) {
            return Ok(());
        }
        violation(format!("{partition} starts at {start}, and what was before is not old enough"))
    }

    /// A reader was refused, because what it wanted next is gone; now the partition begins at `start`.
    pub(crate) fn on_overtaken(&mut self, partition: Handle, next: u64, start: u64) -> Result<(), Violation> {
        self.out_of_range += 1;
        self.on_start_told(partition, start)?;
        if next < start {
            return Ok(());
        }
        violation(format!("{partition}:{next} is said to be gone, and the partition starts at {start}"))
    }

    /// What is left of a partition that was read whole is as much as its topic keeps.
    pub(crate) fn check_kept(&self, read: &ReadRange) -> Result<(), Violation> {
        let ReadRange { partition, start, bytes, .. } = *read;
        let settings = self.topics.settings_of(partition);
        let is_long_enough = settings.retention_bytes > 0 && bytes >= settings.retention_bytes;
        if start == 0 || is_long_enough || self.may_have_expired(partition, start, settings.retention_ms) {
            return Ok(());
        }
        violation(format!(
            "{partition} keeps {bytes} bytes from {start} on, and was created with {settings:?}"
        ))
    }

    /// Whether all that lies before `start` may be older than this. What no client ever heard of is not judged.
    fn may_have_expired(&self, partition: Handle, start: u64, retention_ms: u64) -> bool {
        if retention_ms == 0 {
            return false;
        }
        let newest = self.fixed.range((partition, 0)..(partition, start)).next_back();
        let appended_ms = newest.map(|(_, fixed)| match fixed.appended {
            Appended::At(at_ms) | Appended::NotBefore(at_ms) => at_ms,
        });
        appended_ms.is_none_or(|appended_ms| self.clock.may_be_older(appended_ms, retention_ms))
    }
}
