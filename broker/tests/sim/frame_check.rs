//! Frames are stored whole and in one piece, but for what retention has dropped in front and what is damaged.
//!
//! It walks over the records of one partition in the order of their offsets.

use protocol::ids::Handle;

use crate::report::{Violation, violation};

/// The frame that is being walked over.
#[derive(Debug)]
pub(crate) struct FrameCheck {
    partition: Handle,
    frame: u64,
    wanted: usize,
    seen: usize,
    /// Some of its records are not there, and need not be.
    is_cut: bool,
    /// The next frame may begin in its middle.
    next_is_cut: bool,
}

impl FrameCheck {
    /// Before the first record; `is_trimmed`: something was dropped before it.
    pub(crate) fn new(partition: Handle, is_trimmed: bool) -> Self {
        Self { partition, frame: 0, wanted: 0, seen: 0, is_cut: false, next_is_cut: is_trimmed }
    }

    /// A record that cannot be read.
    pub(crate) fn on_gap(&mut self) {
        self.is_cut = true;
        self.next_is_cut = true;
    }

    /// A record of a frame of so many records.
    pub(crate) fn on_record(
        &mut self,
        offset: u64,
        frame: u64,
        frame_records: usize,
    ) -> Result<(), Violation> {
        if frame != self.frame {
            self.end()?;
            (self.frame, self.wanted, self.seen) = (frame, frame_records, 0);
            self.is_cut = self.next_is_cut;
        }
        self.next_is_cut = false;
        self.seen += 1;
        if self.seen > self.wanted {
            let partition = self.partition;
            return violation(format!("{partition}:{offset} is one record more than its frame had"));
        }
        Ok(())
    }

    /// Behind the last record of the frame.
    pub(crate) fn end(&self) -> Result<(), Violation> {
        if self.is_cut || self.seen == self.wanted {
            return Ok(());
        }
        let Self { partition, seen, wanted, .. } = self;
        violation(format!("{partition} holds {seen} of {wanted} records of one frame"))
    }
}
