//! The files of a small data directory in memory, and the view of them that one start has.
//!
//! What a run has left does not change any more, so that many starts can share it. A start sees it with one bit
//! flipped, and keeps what it writes to itself, page by page. Pages that were never written are zeros.

use std::collections::{BTreeMap, BTreeSet};

use broker::io::{File, FileHeader, IoError};
use broker::limits::PAGE_BYTES;

/// No such file.
const ENOENT: IoError = IoError(2);

/// A bit that has rotted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flip {
    pub(crate) file: File,
    pub(crate) position: usize,
    pub(crate) bit: u8,
}

impl Flip {
    /// In this byte; which of its bits follows from where it stands, so that eight neighbours have eight of them, and
    /// fields that lie at the same place of other pages do not always have the same.
    pub(crate) fn at(file: File, position: usize) -> Self {
        let bit = ((position + position / 8 + position / 64) % 8) as u8;
        Self { file, position, bit }
    }
}

/// What a run has left.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    files: BTreeMap<File, Vec<u8>>,
    /// Numbers of the pages that were ever written.
    written: BTreeSet<(File, usize)>,
}

impl Directory {
    /// The bytes of a file; none if it is not there.
    pub(crate) fn bytes(&self, file: File) -> &[u8] {
        self.files.get(&file).map_or(&[], |bytes| bytes)
    }

    /// One page of a file that is there.
    pub(crate) fn page(&self, file: File, number: usize) -> &[u8] {
        &self.bytes(file)[number * PAGE_BYTES..(number + 1) * PAGE_BYTES]
    }

    /// Numbers of the pages that were ever written, by file.
    pub(crate) fn written_pages(&self) -> &BTreeSet<(File, usize)> {
        &self.written
    }

    /// Bytes that nobody ever wrote: zeros.
    pub(crate) fn unwritten_bytes(&self) -> usize {
        let all: usize = self.files.values().map(Vec::len).sum();
        all - self.written.len() * PAGE_BYTES
    }

    /// The first of the wanted files that holds these bytes.
    pub(crate) fn file_with(&self, needle: &[u8], is_wanted: impl Fn(File) -> bool) -> Option<File> {
        let mut wanted = self.files.iter().filter(|(file, _)| is_wanted(**file));
        let found = wanted.find(|(_, bytes)| bytes.windows(needle.len()).any(|window| window == needle))?;
        Some(*found.0)
    }
}

/// The disk of one start: a directory as it was left, and what was written since.
pub(crate) struct Disk<'a> {
    base: &'a Directory,
    flip: Option<Flip>,
    lengths: BTreeMap<File, u64>,
    /// Pages that were written since.
    pages: BTreeMap<(File, usize), Vec<u8>>,
    /// Reads of segments.
    pub(crate) segment_reads: u64,
    /// Snapshots whose header was written.
    pub(crate) snapshots_published: u64,
    /// Writes to the very beginning of the first journal file: one for each time that it is used.
    pub(crate) first_file_uses: u64,
}

impl<'a> Disk<'a> {
    pub(crate) fn new(base: &'a Directory, flip: Option<Flip>) -> Self {
        let lengths = base.files.iter().map(|(file, bytes)| (*file, bytes.len() as u64)).collect();
        Self {
            base,
            flip,
            lengths,
            pages: BTreeMap::new(),
            segment_reads: 0,
            snapshots_published: 0,
            first_file_uses: 0,
        }
    }

    /// The files that are there, with their lengths.
    pub(crate) fn lengths(&self) -> &BTreeMap<File, u64> {
        &self.lengths
    }

    /// From now on this bit is flipped, and no other.
    pub(crate) fn set_flip(&mut self, flip: Flip) {
        self.flip = Some(flip);
    }

    /// Makes a file, or makes it longer.
    pub(crate) fn make(&mut self, file: File, bytes: u64, header: Option<&FileHeader>) {
        let is_new = !self.lengths.contains_key(&file);
        let length = self.lengths.entry(file).or_insert(0);
        *length = bytes.max(*length);
        if let Some(header) = header.filter(|_| is_new) {
            let mut page = vec![0; PAGE_BYTES];
            page[..header.len()].copy_from_slice(header);
            self.pages.insert((file, 0), page);
        }
    }

    pub(crate) fn shrink(&mut self, file: File, bytes: u64) {
        let length = self.lengths.get_mut(&file).expect("a file that is shortened is there");
        *length = bytes.min(*length);
        self.pages.retain(|(of, page), _| *of != file || ((page * PAGE_BYTES) as u64) < bytes);
    }

    pub(crate) fn remove(&mut self, file: File) {
        self.lengths.remove(&file);
        self.pages.retain(|(of, _), _| *of != file);
    }

    /// Fills `out` with what lies at a position. As on a real disk, a file that is not there and bytes behind a file's
    /// end are errors.
    pub(crate) fn read(&mut self, file: File, position: u64, out: &mut [u8]) -> Result<(), IoError> {
        self.segment_reads += u64::from(matches!(file, File::Segment(_)));
        let length = *self.lengths.get(&file).ok_or(ENOENT)? as usize;
        let position = position as usize;
        let end = position + out.len();
        if end > length {
            return Err(IoError::SHORT);
        }
        let base = self.base.bytes(file).get(position..).unwrap_or_default();
        let count = base.len().min(out.len());
        out[..count].copy_from_slice(&base[..count]);
        out[count..].fill(0);
        if let Some(flip) = self.flip
            && flip.file == file
            && (position..end).contains(&flip.position)
        {
            out[flip.position - position] ^= 1 << flip.bit;
        }
        for ((_, page), bytes) in self.pages.range((file, position / PAGE_BYTES)..(file, end / PAGE_BYTES)) {
            let at = page * PAGE_BYTES - position;
            out[at..at + PAGE_BYTES].copy_from_slice(bytes);
        }
        Ok(())
    }

    /// Writes whole pages of a file that has them.
    pub(crate) fn write(&mut self, file: File, position: u64, data: &[u8]) {
        let position = position as usize;
        let length = self.lengths.get(&file).copied().unwrap_or(0) as usize;
        assert!(position.is_multiple_of(PAGE_BYTES), "a write to {file:?} at {position}");
        assert!(data.len().is_multiple_of(PAGE_BYTES), "a write of {} bytes to {file:?}", data.len());
        assert!(position + data.len() <= length, "a write behind the end of {file:?} at {position}");
        if position == 0 {
            self.snapshots_published += u64::from(matches!(file, File::Snapshot(_)));
            self.first_file_uses += u64::from(file == File::Journal(0));
        }
        for (number, page) in data.chunks(PAGE_BYTES).enumerate() {
            self.pages.insert((file, position / PAGE_BYTES + number), page.to_vec());
        }
    }

    /// What a run that began with nothing leaves.
    pub(crate) fn into_directory(self) -> Directory {
        assert!(self.base.files.is_empty());
        let mut directory = Directory::default();
        for (file, bytes) in &self.lengths {
            directory.files.insert(*file, vec![0; *bytes as usize]);
        }
        for ((file, page), written) in self.pages {
            let bytes = directory.files.get_mut(&file).expect("what was written to is there");
            bytes[page * PAGE_BYTES..(page + 1) * PAGE_BYTES].copy_from_slice(&written);
            directory.written.insert((file, page));
        }
        directory
    }
}
