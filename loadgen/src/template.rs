//! A produce frame that is built once and patched for each send.
//!
//! All frames of a connection differ in their header's correlation id, handle and flags, in the stamps at the
//! fronts of their records, and in the batch's checksum. So the index is built once, and one patch costs the
//! stamps and one CRC over the batch.

use protocol::batch::{BATCH_HEADER_BYTES, BatchBuilder, BatchHeader, BuildError, Record, producer_sum};
use protocol::frame::{FLAG_RESUMES, FRAME_HEADER_BYTES, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::stamp::{STAMP_BYTES, Stamp};

/// What every frame of a run has in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameShape {
    /// Length of a record, at least `STAMP_BYTES`.
    pub(crate) record_bytes: usize,
    /// Records in a frame's one batch, at least 1.
    pub(crate) batch_records: usize,
    /// When the records were made, as their batch says: once for the whole run.
    pub(crate) created_ms: u64,
}

/// What the header of one frame says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameAddress {
    /// Repeated in the answer.
    pub(crate) correlation: CorrelationId,
    /// The partition.
    pub(crate) handle: Handle,
    /// Whether the frame opens a closed gate.
    pub(crate) resumes: bool,
}

/// The frame, and where its records' values lie in it.
pub(crate) struct Template {
    bytes: Vec<u8>,
    shape: FrameShape,
    first_value_at: usize,
}

impl Template {
    /// Builds the frame; `seed` decides the filler behind the stamps.
    ///
    /// # Errors
    /// When records of this shape do not fit into one batch.
    pub(crate) fn new(shape: FrameShape, seed: u64) -> Result<Self, BuildError> {
        assert!(shape.record_bytes >= STAMP_BYTES);
        assert!(shape.batch_records > 0);
        let mut value = vec![0; shape.record_bytes];
        fill(&mut value, seed);
        let mut builder = BatchBuilder::new();
        for _ in 0..shape.batch_records {
            builder.push(&Record { value: &value, created_ms: shape.created_ms, ..Record::default() })?;
        }
        let mut bytes = Vec::new();
        seal_frame(&mut builder, &mut bytes);
        let batch = BatchHeader::peek(&bytes[FRAME_HEADER_BYTES..]).expect("the batch was just built");
        let first_value_at = FRAME_HEADER_BYTES + BATCH_HEADER_BYTES + batch.index_length.get() as usize;
        Ok(Self { bytes, shape, first_value_at })
    }

    /// Length of every frame, in bytes.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The frame with this header, the records stamped with `first` and the sequences that follow.
    pub(crate) fn patch(&mut self, address: FrameAddress, first: Stamp) -> &[u8] {
        write_address(&mut self.bytes, address);
        stamp_records(&mut self.bytes[self.first_value_at..], self.shape, first);
        seal_batch(&mut self.bytes[FRAME_HEADER_BYTES..]);
        &self.bytes
    }
}

/// Replaces `frame` by a produce frame with the builder's records; its address is still to be written.
pub(crate) fn seal_frame(builder: &mut BatchBuilder, frame: &mut Vec<u8>) {
    frame.clear();
    frame.resize(FRAME_HEADER_BYTES, 0);
    let payload_bytes = builder.finish_into(frame);
    let header = FrameHeader::new(Opcode::Produce, CorrelationId(0), 0).with_lengths(0, payload_bytes);
    frame[..FRAME_HEADER_BYTES].copy_from_slice(header.as_bytes());
}

/// Writes what differs from frame to frame into the header.
pub(crate) fn write_address(frame: &mut [u8], address: FrameAddress) {
    let (header, _) = FrameHeader::mut_from_prefix(frame).expect("a frame begins with its header");
    header.correlation_id = U64::new(address.correlation.0);
    header.subject = U64::new(address.handle.0);
    header.flags = U16::new(if address.resumes { FLAG_RESUMES } else { 0 });
}

/// Fills `bytes` with a stream that `seed` alone decides (splitmix64), so that it can be made again to compare.
pub(crate) fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed;
    for chunk in bytes.chunks_mut(8) {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        chunk.copy_from_slice(&mix(state).to_le_bytes()[..chunk.len()]);
    }
}

/// The output function of splitmix64: every bit of `state` moves every bit of the result.
pub(crate) fn mix(state: u64) -> u64 {
    let state = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let state = (state ^ state >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ state >> 31
}

/// The per-record loop.
fn stamp_records(values: &mut [u8], shape: FrameShape, first: Stamp) {
    let records = values.chunks_exact_mut(shape.record_bytes).take(shape.batch_records);
    for (sequence, record) in (first.sequence..).zip(records) {
        Stamp { sequence, ..first }.write(record);
    }
}

fn seal_batch(batch: &mut [u8]) {
    let sum = producer_sum(batch);
    let (header, _) = BatchHeader::mut_from_prefix(batch).expect("a batch begins with its header");
    header.producer_crc = U32::new(sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::batch::Batch;
    use protocol::frame::Frame;
    use protocol::ids::TopicKey;

    fn address(number: u64, resumes: bool) -> FrameAddress {
        let handle = Handle::new(TopicKey { slot: 1, generation: 2 }, 3);
        FrameAddress { correlation: CorrelationId(number), handle, resumes }
    }

    #[test]
    fn patched_frames_are_valid_and_carry_their_stamps() {
        for (record_bytes, batch_records) in [(STAMP_BYTES, 1), (37, 3), (1_024, 1), (100, 64), (65_536, 2)] {
            let mut template =
                Template::new(FrameShape { record_bytes, batch_records, created_ms: 1_700_000_000_000 }, 9)
                    .unwrap();
            let first =
                Stamp { run_id: 4, connection: 2, partition: 3, sequence: 1_000, intended_ns: 5, sent_ns: 6 };
            for (number, resumes) in [(77, false), (78, true), (79, false)] {
                let bytes = template.patch(address(number, resumes), first);
                let frame = Frame::cut(bytes, 16 << 20).unwrap().unwrap();
                assert_eq!(frame.header.frame_bytes(), bytes.len());
                assert_eq!(frame.header.correlation(), CorrelationId(number));
                assert_eq!(frame.header.has_flag(FLAG_RESUMES), resumes);
                assert_eq!(frame.header.subject.get(), address(0, false).handle.0);
                let batch = Batch::check(frame.payload).unwrap();
                assert_eq!(batch.bytes().len(), frame.payload.len());
                let stamps: Vec<_> =
                    batch.records().unwrap().map(|record| Stamp::read(record.value).unwrap()).collect();
                let expected: Vec<_> = (1_000..1_000 + batch_records as u64)
                    .map(|sequence| Stamp { sequence, ..first })
                    .collect();
                assert_eq!(stamps, expected);
                assert!(batch.records().unwrap().all(|record| record.value.len() == record_bytes));
            }
        }
    }

    #[test]
    fn filler_is_that_of_its_seed() {
        let (mut one, mut same, mut other) = ([0; 61], [0; 61], [0; 61]);
        fill(&mut one, 1);
        fill(&mut same, 1);
        fill(&mut other, 2);
        assert_eq!(one, same);
        assert_ne!(one, other);
    }

    #[test]
    fn batch_that_is_too_long_is_refused() {
        let shape = FrameShape { record_bytes: 1 << 20, batch_records: 17, created_ms: 0 };
        assert!(Template::new(shape, 0).is_err());
    }
}
