//! Records whose every byte follows from a seed, a connection and a sequence: what `verify` sends and compares.
//!
//! A record is a stamp without times and a filler; its length, too, follows from the three. So nothing has to be
//! remembered of what was sent but the outcome.

use protocol::batch::{BatchBuilder, BuildError, Record};

use crate::stamp::{STAMP_BYTES, Stamp};
use crate::template::{FrameAddress, FrameShape, Template, fill, mix, seal_frame, write_address};

/// The first record of a frame, or any record, by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Number of the connection that sent it.
    pub(crate) connection: u16,
    /// Number of the partition that it was sent to.
    pub(crate) partition: u16,
    /// Number of the record on its connection.
    pub(crate) sequence: u64,
}

/// What decides the records of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ContentRules {
    /// Printed, and taken back.
    pub(crate) seed: u64,
    /// Stands in every stamp.
    pub(crate) run_id: u32,
    /// Longest record, at least `STAMP_BYTES`.
    pub(crate) record_bytes_max: usize,
}

impl ContentRules {
    /// Replaces `value` by the record's bytes.
    pub(crate) fn write_value(&self, identity: Identity, value: &mut Vec<u8>) {
        let mixed = mix(self.seed ^ mix(identity.sequence) ^ u64::from(identity.connection) << 48);
        let spare_bytes = (self.record_bytes_max - STAMP_BYTES) as u64;
        value.clear();
        value.resize(STAMP_BYTES + (mixed % (spare_bytes + 1)) as usize, 0);
        let stamp = Stamp {
            run_id: self.run_id,
            connection: identity.connection,
            partition: identity.partition,
            sequence: identity.sequence,
            ..Stamp::default()
        };
        stamp.write(value);
        fill(&mut value[STAMP_BYTES..], mixed);
    }
}

/// Makes produce frames of such records.
pub(crate) struct ContentFrames {
    rules: ContentRules,
    batch_records: usize,
    frame_bytes_max: usize,
    created_ms: u64,
    builder: BatchBuilder,
    value: Vec<u8>,
    frame: Vec<u8>,
}

impl ContentFrames {
    /// Frames of `shape.batch_records` records each, up to `shape.record_bytes` long.
    ///
    /// # Errors
    /// When records of this shape do not fit into one batch.
    pub(crate) fn new(shape: FrameShape, rules: ContentRules) -> Result<Self, BuildError> {
        assert_eq!(shape.record_bytes, rules.record_bytes_max);
        // The longest frame that there can be says whether all fit.
        let longest = Template::new(shape, 0)?;
        Ok(Self {
            rules,
            batch_records: shape.batch_records,
            frame_bytes_max: longest.frame_bytes(),
            created_ms: shape.created_ms,
            builder: BatchBuilder::new(),
            value: Vec::new(),
            frame: Vec::new(),
        })
    }

    /// Length of the longest frame, in bytes.
    pub(crate) fn frame_bytes_max(&self) -> usize {
        self.frame_bytes_max
    }

    /// The frame with this header, and the records from `first` on.
    pub(crate) fn build(&mut self, address: FrameAddress, first: Identity) -> &[u8] {
        for sequence in (first.sequence..).take(self.batch_records) {
            self.rules.write_value(Identity { sequence, ..first }, &mut self.value);
            let record = Record { value: &self.value, created_ms: self.created_ms, ..Record::default() };
            self.builder.push(&record).expect("the longest batch fits, as checked at the start");
        }
        seal_frame(&mut self.builder, &mut self.frame);
        write_address(&mut self.frame, address);
        &self.frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::batch::Batch;
    use protocol::frame::Frame;
    use protocol::ids::{CorrelationId, Handle};

    const RULES: ContentRules = ContentRules { seed: 7, run_id: 3, record_bytes_max: 300 };

    fn value(identity: Identity) -> Vec<u8> {
        let mut value = Vec::new();
        RULES.write_value(identity, &mut value);
        value
    }

    #[test]
    fn record_follows_from_its_identity() {
        let identity = Identity { connection: 1, partition: 2, sequence: 9 };
        assert_eq!(value(identity), value(identity));
        assert_ne!(value(identity), value(Identity { sequence: 10, ..identity }));
        assert_ne!(
            value(identity)[STAMP_BYTES..],
            value(Identity { connection: 0, ..identity })[STAMP_BYTES..]
        );
    }

    #[test]
    fn lengths_vary_from_the_stamp_to_the_longest() {
        let length = |sequence| value(Identity { connection: 0, partition: 0, sequence }).len();
        let lengths: Vec<usize> = (0..10_000).map(length).collect();
        assert_eq!(lengths.iter().min(), Some(&STAMP_BYTES));
        assert_eq!(lengths.iter().max(), Some(&300));
    }

    #[test]
    fn frames_hold_the_records_that_are_expected() {
        let shape = FrameShape { record_bytes: 300, batch_records: 5, created_ms: 0 };
        let mut frames = ContentFrames::new(shape, RULES).unwrap();
        let address = FrameAddress { correlation: CorrelationId(4), handle: Handle(8), resumes: false };
        let first = Identity { connection: 2, partition: 6, sequence: 100 };
        for _ in 0..2 {
            let frame = Frame::cut(frames.build(address, first), 1 << 20).unwrap().unwrap();
            assert_eq!((frame.header.correlation(), frame.header.subject.get()), (CorrelationId(4), 8));
            let batch = Batch::check(frame.payload).unwrap();
            assert_eq!(batch.record_count(), 5);
            for (sequence, record) in (100..).zip(batch.records().unwrap()) {
                assert_eq!(record.value, value(Identity { sequence, ..first }));
            }
        }
    }
}
