//! What records hold behind their stamps, so that what comes back can be compared byte for byte.
//!
//! Either a filler that is the same in every record of a run, or the lines of a file in turns: record `n` of a
//! connection holds line `n`, modulo their number.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use protocol::batch::{BatchBuilder, BuildError, Record};

use crate::stamp::{STAMP_BYTES, Stamp};
use crate::template::{FrameAddress, FrameShape, Template, fill, seal_frame, write_address};

/// Longest line that is sent; what is longer is cut.
pub(crate) const LINE_BYTES_MAX: usize = 64 << 10;
/// Most lines that are kept.
const LINES_MAX: usize = 1 << 20;

/// What records hold.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    /// The same in each, stamp's place included.
    Filler(Arc<[u8]>),
    /// The lines of a file.
    Lines(Arc<[Box<[u8]>]>),
}

impl Payload {
    /// The filler of records of this length; `seed` decides it.
    pub(crate) fn filler(record_bytes: usize, seed: u64) -> Self {
        let mut value = vec![0; record_bytes];
        fill(&mut value, seed);
        Self::Filler(value.into())
    }

    /// The lines of a file, without their ends.
    ///
    /// # Errors
    /// When it cannot be read, or is empty.
    pub(crate) fn read_lines(path: &Path) -> io::Result<Self> {
        let bytes = fs::read(path)?;
        let lines: Vec<Box<[u8]>> = bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .take(LINES_MAX)
            .map(|line| line[..line.len().min(LINE_BYTES_MAX)].into())
            .collect();
        if lines.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no lines"));
        }
        Ok(Self::Lines(lines.into()))
    }

    /// Length of the longest record, its stamp included.
    pub(crate) fn record_bytes_max(&self) -> usize {
        match self {
            Self::Filler(value) => value.len(),
            Self::Lines(lines) => STAMP_BYTES + lines.iter().map(|line| line.len()).max().unwrap_or_default(),
        }
    }

    /// Mean length of a record, its stamp included.
    pub(crate) fn record_bytes_mean(&self) -> f64 {
        match self {
            Self::Filler(value) => value.len() as f64,
            Self::Lines(lines) => {
                let bytes: usize = lines.iter().map(|line| line.len()).sum();
                STAMP_BYTES as f64 + bytes as f64 / lines.len() as f64
            }
        }
    }

    /// What stands behind the stamp of a record.
    pub(crate) fn behind_stamp(&self, sequence: u64) -> &[u8] {
        match self {
            Self::Filler(value) => &value[STAMP_BYTES..],
            Self::Lines(lines) => &lines[(sequence % lines.len() as u64) as usize],
        }
    }

    /// Whether a record holds what was sent.
    pub(crate) fn matches(&self, stamp: Stamp, value: &[u8]) -> bool {
        value[STAMP_BYTES..] == *self.behind_stamp(stamp.sequence)
    }
}

/// Makes produce frames whose records hold the lines of a file.
pub(crate) struct LineFrames {
    payload: Payload,
    batch_records: usize,
    frame_bytes_max: usize,
    created_ms: u64,
    builder: BatchBuilder,
    value: Vec<u8>,
    frame: Vec<u8>,
}

impl LineFrames {
    /// Frames of `shape.batch_records` records.
    ///
    /// # Errors
    /// When the longest records do not fit into one batch.
    pub(crate) fn new(shape: FrameShape, payload: Payload) -> Result<Self, BuildError> {
        let longest = FrameShape { record_bytes: payload.record_bytes_max(), ..shape };
        Ok(Self {
            frame_bytes_max: Template::new(longest, 0)?.frame_bytes(),
            payload,
            batch_records: shape.batch_records,
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

    /// The frame with this header, the records stamped with `first` and the sequences that follow.
    pub(crate) fn build(&mut self, address: FrameAddress, first: Stamp) -> &[u8] {
        for sequence in (first.sequence..).take(self.batch_records) {
            self.value.clear();
            self.value.resize(STAMP_BYTES, 0);
            Stamp { sequence, ..first }.write(&mut self.value);
            self.value.extend_from_slice(self.payload.behind_stamp(sequence));
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
    use std::io::Write;

    #[test]
    fn lines_take_turns_and_are_compared() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"one\n\nlonger\nlast").unwrap();
        let payload = Payload::read_lines(file.path()).unwrap();
        assert_eq!(payload.behind_stamp(4), b"longer");
        assert_eq!(payload.record_bytes_max(), STAMP_BYTES + 6);
        let stamp = Stamp { sequence: 2, ..Stamp::default() };
        let mut value = vec![0; STAMP_BYTES];
        value.extend(b"last");
        assert!(payload.matches(stamp, &value));
        assert!(!payload.matches(Stamp { sequence: 3, ..stamp }, &value));
        assert!(Payload::read_lines(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn filler_is_that_of_the_template() {
        let payload = Payload::filler(100, 5);
        let mut value = vec![0; 100];
        fill(&mut value, 5);
        assert!(payload.matches(Stamp::default(), &value));
        value[99] ^= 1;
        assert!(!payload.matches(Stamp::default(), &value));
    }
}
