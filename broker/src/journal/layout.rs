//! Where blocks lie in the journal's files.
//!
//! One after another, none across a file's end: what is left of a file that is too short for a block stays as it is.

/// A place for a block: byte `position` of file `file`, which is the number of a file, or of its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Number of the journal file in recovery; else of its turn, which counts every use of a file.
    pub file: u64,
    /// Byte position in it, a multiple of 4 KiB.
    pub position: u64,
}

/// Number and length of the journal's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalLayout {
    /// Length of each file in bytes, a multiple of 4 KiB.
    pub file_bytes: u64,
    /// Number of files.
    pub file_count: u32,
}

impl JournalLayout {
    /// Length of all files together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.file_count) * self.file_bytes
    }

    /// The place of a block of `block_bytes` at or behind `cursor`, and the place behind it. The place may lie
    /// behind the last file: the caller compares `linear` with `bytes`.
    #[must_use]
    pub fn place(&self, cursor: Place, block_bytes: usize) -> (Place, Place) {
        let block_bytes = block_bytes as u64;
        assert!(block_bytes <= self.file_bytes);
        let start = if cursor.position + block_bytes <= self.file_bytes {
            cursor
        } else {
            Place { file: cursor.file + 1, position: 0 }
        };
        (start, Place { file: start.file, position: start.position + block_bytes })
    }

    /// Bytes of the journal before a place, gaps at the files' ends included.
    #[must_use]
    pub fn linear(&self, place: Place) -> u64 {
        place.file * self.file_bytes + place.position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_never_straddles_two_files() {
        let layout = JournalLayout { file_bytes: 16384, file_count: 2 };
        let (first, end) = layout.place(Place::default(), 12288);
        assert_eq!((first, end.position), (Place { file: 0, position: 0 }, 12288));
        let (second, end) = layout.place(end, 8192);
        assert_eq!(second, Place { file: 1, position: 0 });
        assert_eq!(layout.linear(end), 16384 + 8192);
        let (third, end) = layout.place(end, 8192);
        assert_eq!(third, Place { file: 1, position: 8192 });
        assert_eq!(layout.linear(end), layout.bytes());
    }
}
