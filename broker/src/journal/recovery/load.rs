//! Loading a snapshot: the headers of both files, then the blocks of the newest one that is whole.
//!
//! A damaged snapshot is no reason to refuse: the journal is kept down to where the older one's replay begins.

use std::collections::BTreeMap;

use super::super::block::JournalIdentity;
use super::super::snapshot::{SNAPSHOT_FILES, SnapshotHeader, SnapshotReader, SnapshotSequence};
use super::super::{Epoch, Lsn};
use super::{RecoveryError, Replay};
use crate::io::File;
use crate::limits::{PAGE_BYTES, RECOVERY_READ_BYTES};

/// What comes next.
pub(super) enum LoadStep {
    Read {
        file: u8,
        position: u64,
        bytes: usize,
    },
    /// A snapshot was loaded, or there is none.
    Done,
}

/// Loads a snapshot.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Files whose headers are still to be read, with their lengths.
    unread: Vec<(u8, u64)>,
    lengths: BTreeMap<u8, u64>,
    reading_header: Option<u8>,
    /// Valid headers, oldest first; the last is tried first.
    headers: Vec<SnapshotHeader>,
    /// All valid headers.
    seen: Vec<SnapshotHeader>,
    reader: Option<SnapshotReader>,
    /// Bytes of blocks that the read in flight gives.
    asked_bytes: usize,
    loaded: Option<SnapshotHeader>,
    has_skipped: bool,
}

impl Load {
    pub(super) fn begin(
        &mut self,
        files: &BTreeMap<File, u64>,
        identity: JournalIdentity,
        replay: &mut impl Replay,
    ) -> LoadStep {
        for number in 0..SNAPSHOT_FILES {
            let length = files.get(&File::Snapshot(number)).copied().unwrap_or(0);
            if length >= PAGE_BYTES as u64 {
                self.lengths.insert(number, length);
                self.unread.push((number, length));
            }
        }
        self.next(identity, replay)
    }

    pub(super) fn loaded(&self) -> Option<SnapshotHeader> {
        self.loaded
    }

    /// The snapshot before the loaded one, whose replay the journal may still hold.
    pub(super) fn older(&self) -> Option<SnapshotHeader> {
        let loaded = self.loaded?;
        self.seen.iter().copied().find(|header| header.sequence < loaded.sequence)
    }

    /// A newer snapshot than the loaded one was damaged.
    pub(super) fn has_skipped(&self) -> bool {
        self.has_skipped
    }

    pub(super) fn highest_epoch(&self) -> Epoch {
        self.seen.iter().map(|header| header.epoch).max().unwrap_or_default()
    }

    pub(super) fn highest_captured(&self) -> Lsn {
        self.seen.iter().map(|header| header.captured).max().unwrap_or_default()
    }

    /// A sequence above all, whose file is not the loaded snapshot's.
    pub(super) fn next_sequence(&self) -> SnapshotSequence {
        let highest = self.seen.iter().map(|header| header.sequence).max().unwrap_or_default();
        let next = highest.next();
        match self.loaded {
            Some(loaded) if loaded.sequence.file() == next.file() => next.next(),
            _ => next,
        }
    }

    /// Takes what was read; `None` when it could not be.
    pub(super) fn on_read(
        &mut self,
        bytes: Option<&[u8]>,
        identity: JournalIdentity,
        replay: &mut impl Replay,
    ) -> Result<LoadStep, RecoveryError> {
        if let Some(file) = self.reading_header.take() {
            let header = bytes.and_then(|page| SnapshotHeader::read(&page[..PAGE_BYTES], identity));
            if let Some(header) = header.filter(|header| header.sequence.file() == file) {
                self.headers.push(header);
                self.seen.push(header);
            }
            return Ok(self.next(identity, replay));
        }
        let Some(mut reader) = self.reader.take() else { return Ok(LoadStep::Done) };
        let mut rest = bytes.map_or(&[][..], |bytes| &bytes[..self.asked_bytes]);
        let mut has_read = false;
        while let Some(length) = rest.get(..PAGE_BYTES).and_then(|page| reader.block_length(page)) {
            if length > rest.len() as u64 {
                // Goes on with it at the front of the next read, which is as long as it needs.
                let step = self.read_block(&reader, length as usize);
                self.reader = Some(reader);
                return Ok(step);
            }
            let Some(block) = reader.next_block(rest) else { break };
            for entry in block.entries() {
                match replay.restore(entry) {
                    Ok(()) => {}
                    Err(RecoveryError::OutOfMemory) => return Err(RecoveryError::OutOfMemory),
                    Err(_) => {
                        self.skip(replay);
                        return Ok(self.next(identity, replay));
                    }
                }
            }
            has_read = true;
            rest = &rest[length as usize..];
        }
        if reader.next_position().is_none() && reader.is_whole() {
            self.loaded = Some(reader.header());
            return Ok(LoadStep::Done);
        }
        if has_read && rest.is_empty() && reader.next_position().is_some() {
            let step = self.read_block(&reader, PAGE_BYTES);
            self.reader = Some(reader);
            return Ok(step);
        }
        self.skip(replay);
        Ok(self.next(identity, replay))
    }

    fn skip(&mut self, replay: &mut impl Replay) {
        self.has_skipped = true;
        self.reader = None;
        replay.reset();
    }

    fn next(&mut self, identity: JournalIdentity, replay: &mut impl Replay) -> LoadStep {
        if let Some((file, _)) = self.unread.pop() {
            self.reading_header = Some(file);
            return LoadStep::Read { file, position: 0, bytes: PAGE_BYTES };
        }
        self.headers.sort_by_key(|header| header.sequence);
        while let Some(header) = self.headers.pop() {
            let file = header.sequence.file();
            let fits = self.lengths.get(&file).is_some_and(|length| {
                PAGE_BYTES as u64 + header.block_bytes <= *length && header.block_bytes > 0
            });
            if fits {
                let reader = SnapshotReader::new(header, identity);
                let step = self.read_block(&reader, PAGE_BYTES);
                self.reader = Some(reader);
                return step;
            }
            self.skip(replay);
        }
        LoadStep::Done
    }

    fn read_block(&mut self, reader: &SnapshotReader, bytes_min: usize) -> LoadStep {
        let left = usize::try_from(reader.bytes_left()).unwrap_or(usize::MAX);
        let bytes = bytes_min.max(RECOVERY_READ_BYTES).min(left);
        self.asked_bytes = bytes;
        let position = reader.next_position().unwrap_or_default();
        LoadStep::Read { file: reader.header().sequence.file(), position, bytes }
    }
}
