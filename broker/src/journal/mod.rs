//! The journal of one shard: group commit over pre-written files.
//!
//! Entries fill the open block while up to K earlier blocks are in flight; a turn's end seals what is there. The
//! journal asks for writes and flushes as `Op`s and moves only on their completions.
//! Invariant: `durable <= written <= appended`. Acknowledged bytes are never written again; every block starts on
//! a page of its own, and a file is used again only when no kept snapshot needs it. Which block is durable when is
//! decided here and nowhere else.

pub mod block;
pub mod entry;
mod layout;
mod open_block;
pub mod recovery;
mod ring;
pub mod snapshot;
pub mod superblock;

use std::collections::VecDeque;

use protocol::batch::BrokerFields;
use protocol::ids::Handle;
use reactor::memory::Pool;

use crate::io::{File, IoError, Now, Op, Sync, Token};
use crate::limits::{
    JOURNAL_BLOCKS_IN_FLIGHT_MAX, JOURNAL_BLOCKS_OPEN_MAX, JOURNAL_FILES_MIN, JOURNAL_PENDING_BYTES_MAX,
    JOURNAL_RESERVE_BYTES,
};
use block::{BlockKind, JournalIdentity};
use entry::{ENTRY_HEADER_BYTES, EntryKind};
pub use layout::{JournalLayout, Place};
use open_block::OpenBlock;
use ring::Ring;

/// Fences the writers of one data directory: grows with every start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

/// Number of a block; the first ever is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSequence(pub u64);

impl BlockSequence {
    /// The sequence of the first block of a data directory.
    pub const FIRST: Self = Self(1);

    /// The sequence of the block behind this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A place in the journal: the block's sequence in the upper 48 bits, the entry's number in the lower 16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The place of an entry.
    #[must_use]
    pub fn new(sequence: BlockSequence, entry: u32) -> Self {
        debug_assert!(entry <= 0xFFFF);
        Self(sequence.0 << 16 | u64::from(entry))
    }

    /// The last place that a block can have.
    #[must_use]
    pub fn end_of(sequence: BlockSequence) -> Self {
        Self::new(sequence, 0xFFFF)
    }

    /// The block.
    #[must_use]
    pub fn sequence(self) -> BlockSequence {
        BlockSequence(self.0 >> 16)
    }
}

/// How blocks become durable; chosen at start from the device and a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Each write carries its own sync (`RWF_DSYNC`).
    SyncedWrites,
    /// Plain writes, and one flush in flight that covers all writes completed when it was issued.
    WriteThenFlush,
}

/// Why an entry cannot be taken now. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalFull {
    /// Too much is on its way to the disk; it drains by itself.
    Pending,
    /// No memory for another block.
    Memory,
    /// The journal's files are used up.
    Space,
}

/// A write or flush failed; nothing more is acknowledged, the process must end and recover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalFailure {
    /// What was tried.
    pub action: &'static str,
    /// On which file.
    pub file: File,
    /// How it failed.
    pub error: IoError,
}

/// Where a journal goes on after recovery.
#[derive(Clone, Debug)]
pub struct JournalStart {
    /// Seeds every block's CRC.
    pub identity: JournalIdentity,
    /// Epoch of this start, already durable in the superblock.
    pub epoch: Epoch,
    /// Sequence of the next block.
    pub next_sequence: BlockSequence,
    /// CRC of the last good block, 0 if there is none.
    pub predecessor_crc: u32,
    /// Epoch of the last good block.
    pub last_epoch: Epoch,
    /// The files that hold what is needed, in the order of their turns, from turn 0 on; the last is written next.
    pub files: Vec<u32>,
    /// Where the next block may start: its turn is that of the last file.
    pub cursor: Place,
    /// Files.
    pub layout: JournalLayout,
    /// Files that are there already, from number 0 on without a gap.
    pub files_prepared: u32,
    /// How blocks become durable.
    pub durability: Durability,
}

/// Where a replay that begins behind what is durable now would find its first block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayStart {
    /// At or behind this place, or at the start of the next file; counted in turns.
    pub place: Place,
    /// The file that has that turn.
    pub file: u32,
    /// Sequence of the block.
    pub next_sequence: BlockSequence,
    /// CRC of the block before it.
    pub predecessor_crc: u32,
    /// Epoch of the block before it.
    pub last_epoch: Epoch,
}

#[derive(Debug)]
struct InFlight {
    sequence: BlockSequence,
    file: u32,
    /// The place behind it.
    end: Place,
    crc: u32,
    kind: BlockKind,
    written: bool,
    sealed_ns: u64,
}

/// The journal of one shard.
#[derive(Debug)]
pub struct Journal {
    start: JournalStart,
    pool: Pool,
    /// Filled or filling, in order; the last one takes entries.
    open: VecDeque<OpenBlock>,
    /// Sealed and not yet durable, in order; at most K.
    in_flight: VecDeque<InFlight>,
    next_sequence: BlockSequence,
    predecessor_crc: u32,
    /// Where the next block to be sealed starts at the earliest.
    seal_cursor: Place,
    /// Where the last open block will start: the lengths of those before it are final.
    fill_cursor: Place,
    pending_bytes: usize,
    ring: Ring,
    /// Where what is durable ends.
    replay_start: ReplayStart,
    prepare_failed: bool,
    flush_covers: Option<BlockSequence>,
    appended: Lsn,
    written: Lsn,
    durable: Lsn,
    /// Everything up to here is known durable to a block on disk; a marker is due while it lags `durable`.
    marked: Lsn,
    idle_since_ns: u64,
    failure: Option<JournalFailure>,
    /// Blocks sealed so far, markers included.
    pub blocks_sealed: u64,
    /// Flushes completed so far.
    pub flushes: u64,
    /// Time from seal to durable, summed over blocks.
    pub commit_ns_total: u64,
}

impl Journal {
    /// A journal that goes on where recovery ended.
    #[must_use]
    pub fn new(start: JournalStart, pool: Pool) -> Self {
        let recovered = Lsn(Lsn::new(start.next_sequence, 0).0 - 1);
        assert_eq!(start.cursor.file + 1, start.files.len() as u64);
        let replay_start = ReplayStart {
            place: start.cursor,
            file: *start.files.last().expect("a journal has a file"),
            next_sequence: start.next_sequence,
            predecessor_crc: start.predecessor_crc,
            last_epoch: start.last_epoch,
        };
        Self {
            pool,
            ring: Ring::new(start.files.clone(), start.files_prepared),
            replay_start,
            open: VecDeque::with_capacity(JOURNAL_BLOCKS_OPEN_MAX),
            in_flight: VecDeque::with_capacity(JOURNAL_BLOCKS_IN_FLIGHT_MAX),
            next_sequence: start.next_sequence,
            predecessor_crc: start.predecessor_crc,
            seal_cursor: start.cursor,
            fill_cursor: start.cursor,
            pending_bytes: 0,
            prepare_failed: false,
            flush_covers: None,
            appended: recovered,
            written: recovered,
            durable: recovered,
            marked: recovered,
            idle_since_ns: 0,
            failure: None,
            blocks_sealed: 0,
            flushes: 0,
            commit_ns_total: 0,
            start,
        }
    }

    /// Seeds the checksums of everything that belongs to this journal.
    #[must_use]
    pub fn identity(&self) -> JournalIdentity {
        self.start.identity
    }

    /// Where a replay of everything that is not durable now would begin.
    #[must_use]
    pub fn replay_start(&self) -> ReplayStart {
        self.replay_start
    }

    /// Bytes of the journal written behind a place.
    #[must_use]
    pub fn bytes_since(&self, place: Place) -> u64 {
        self.start.layout.linear(self.seal_cursor).saturating_sub(self.start.layout.linear(place))
    }

    /// Nothing before this turn of a file is needed any more.
    pub fn recycle(&mut self, turn: u64) {
        self.ring.recycle(turn);
    }

    /// Place of the last entry taken.
    #[must_use]
    pub fn appended(&self) -> Lsn {
        self.appended
    }

    /// End of the unbroken run of written blocks.
    #[must_use]
    pub fn written(&self) -> Lsn {
        self.written
    }

    /// Everything up to here survives a power cut.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// Epoch of this start.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.start.epoch
    }

    /// Set once a write or flush has failed.
    #[must_use]
    pub fn failure(&self) -> Option<JournalFailure> {
        self.failure
    }

    /// Number and length of the files.
    #[must_use]
    pub fn layout(&self) -> JournalLayout {
        self.start.layout
    }

    /// Bytes of all files, of those that are prepared, and of those that are used.
    #[must_use]
    pub fn space(&self) -> (u64, u64, u64) {
        let layout = self.start.layout;
        let prepared = u64::from(self.ring.prepared()) * layout.file_bytes;
        let used = layout.linear(self.seal_cursor) - self.ring.first_turn() * layout.file_bytes;
        (layout.bytes(), prepared, used)
    }

    /// The next file that is not there yet.
    #[must_use]
    pub fn file_wanted(&self) -> Option<u32> {
        let prepared = self.ring.prepared();
        (prepared < self.start.layout.file_count).then_some(prepared)
    }

    /// The file asked for by `file_wanted` is there, or could not be made for now.
    pub fn on_file_prepared(&mut self, file: u32, result: Result<(), IoError>) {
        assert_eq!(file, self.ring.prepared());
        self.prepare_failed = result.is_err();
        if result.is_ok() {
            self.ring.on_prepared();
        }
    }

    /// Whether an entry with a body of this length can be taken now; the next `append` of that length then
    /// cannot fail.
    ///
    /// # Errors
    /// See `JournalFull`. Appends leave `JOURNAL_RESERVE_BYTES` to other entries.
    pub fn reserve(&mut self, kind: EntryKind, body_bytes: usize) -> Result<(), JournalFull> {
        let entry_bytes = ENTRY_HEADER_BYTES + body_bytes;
        if self.pending_bytes + entry_bytes > JOURNAL_PENDING_BYTES_MAX {
            return Err(JournalFull::Pending);
        }
        let reserve = if kind == EntryKind::Append { JOURNAL_RESERVE_BYTES } else { 0 };
        if let Some(open) = self.open.back()
            && open.has_room(entry_bytes)
        {
            return self.check_space(self.fill_cursor, open.padded_with(entry_bytes), reserve);
        }
        if self.open.len() == JOURNAL_BLOCKS_OPEN_MAX {
            return Err(JournalFull::Pending);
        }
        // An empty block was opened for an entry that was refused for another reason, and is too small for this one.
        let replaces = self.open.back().is_some_and(OpenBlock::is_empty);
        let cursor = match self.open.back() {
            Some(_) if replaces => self.fill_cursor,
            Some(open) => self.start.layout.place(self.fill_cursor, open.padded_with(0)).1,
            None => self.seal_cursor,
        };
        self.check_space(cursor, OpenBlock::padded_for(entry_bytes), reserve)?;
        let sequence = if replaces { BlockSequence(self.next_sequence.0 - 1) } else { self.next_sequence };
        let (identity, epoch) = (self.start.identity, self.start.epoch);
        let Some(block) = OpenBlock::new(&self.pool, identity, epoch, sequence, entry_bytes) else {
            return Err(JournalFull::Memory);
        };
        if replaces {
            self.open.pop_back();
        }
        self.fill_cursor = cursor;
        self.next_sequence = sequence.next();
        self.open.push_back(block);
        Ok(())
    }

    /// Takes the batches of one produce frame as one entry, placing each; `reserve` must have said yes.
    /// Returns the entry's place; `last_body` then gives the placed bytes.
    pub fn append_batches(
        &mut self,
        partition: Handle,
        batches: &[u8],
        place: impl Iterator<Item = BrokerFields>,
    ) -> Lsn {
        let open = self.open.back_mut().expect("reserve made room");
        let lsn = open.append_batches(partition, batches, place);
        self.on_appended(lsn, batches.len())
    }

    /// Takes any other entry; `write` fills its body.
    pub fn append(
        &mut self,
        kind: EntryKind,
        subject: u64,
        body_bytes: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> Lsn {
        let open = self.open.back_mut().expect("reserve made room");
        let lsn = open.append(kind, subject, body_bytes, write);
        self.on_appended(lsn, body_bytes)
    }

    fn on_appended(&mut self, lsn: Lsn, body_bytes: usize) -> Lsn {
        assert!(lsn > self.appended);
        self.appended = lsn;
        self.pending_bytes += ENTRY_HEADER_BYTES + body_bytes;
        lsn
    }

    /// The body of the entry taken last.
    #[must_use]
    pub fn last_body(&self) -> &[u8] {
        self.open.back().expect("an entry was just taken").last_body()
    }

    /// Seals what is there, as far as K allows, and asks for what is due: the end of a turn.
    pub fn on_turn_end(&mut self, now: Now, ops: &mut Vec<Op>) {
        if self.failure.is_some() {
            return;
        }
        while self.in_flight.len() < JOURNAL_BLOCKS_IN_FLIGHT_MAX {
            let Some(front) = self.open.front() else { break };
            if front.is_empty() {
                break;
            }
            self.seal_front(now, BlockKind::Data, ops);
        }
        self.flush_if_due(ops);
    }

    /// Writes a marker block if everything is durable and the last durable LSN stands in no block yet.
    /// Returns whether one was written.
    pub fn mark(&mut self, now: Now, ops: &mut Vec<Op>) -> bool {
        if !self.marker_is_due() || self.failure.is_some() {
            return false;
        }
        if self.open.is_empty() {
            let sequence = self.next_sequence;
            if self.check_space(self.seal_cursor, OpenBlock::padded_for(0), 0).is_err() {
                // A full journal goes without: the marker only narrows what recovery must assume.
                self.marked = self.durable;
                return false;
            }
            let identity = self.start.identity;
            let Some(block) = OpenBlock::new(&self.pool, identity, self.start.epoch, sequence, 0) else {
                self.idle_since_ns = now.monotonic_ns;
                return false;
            };
            self.fill_cursor = self.seal_cursor;
            self.next_sequence = sequence.next();
            self.open.push_back(block);
        }
        self.seal_front(now, BlockKind::Marker, ops);
        true
    }

    /// Since when a marker has been due, if one is.
    #[must_use]
    pub fn marker_due_since_ns(&self) -> Option<u64> {
        (self.marker_is_due() && self.failure.is_none()).then_some(self.idle_since_ns)
    }

    fn marker_is_due(&self) -> bool {
        self.in_flight.is_empty() && self.open.iter().all(OpenBlock::is_empty) && self.marked < self.durable
    }

    /// Whether nothing is on its way to the disk.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.in_flight.is_empty() && self.open.iter().all(OpenBlock::is_empty)
    }

    /// A block's write has completed.
    pub fn on_written(&mut self, now: Now, token: Token, result: Result<(), IoError>, ops: &mut Vec<Op>) {
        let sequence = BlockSequence(token.0);
        let block = self
            .in_flight
            .iter_mut()
            .find(|block| block.sequence == sequence)
            .expect("a written block is in flight");
        let file = File::Journal(block.file);
        assert!(!block.written);
        block.written = result.is_ok();
        if let Err(error) = result {
            self.fail("write", file, error);
            return;
        }
        let run = self.in_flight.iter().take_while(|block| block.written).last().map(|block| block.sequence);
        if let Some(last) = run {
            self.written = Lsn::end_of(last).max(self.written);
            if self.start.durability == Durability::SyncedWrites || acks_before_flush() {
                self.on_durable(now, last);
            }
        }
        self.flush_if_due(ops);
    }

    /// A flush has completed.
    pub fn on_flushed(&mut self, now: Now, file: u32, result: Result<(), IoError>, ops: &mut Vec<Op>) {
        let covered = self.flush_covers.take().expect("one flush is in flight");
        if let Err(error) = result {
            self.fail("flush", File::Journal(file), error);
            return;
        }
        self.flushes += 1;
        self.on_durable(now, covered);
        self.flush_if_due(ops);
    }

    fn on_durable(&mut self, now: Now, last: BlockSequence) {
        while let Some(block) = self.in_flight.front()
            && block.sequence <= last
        {
            assert!(block.written);
            self.commit_ns_total += now.monotonic_ns.saturating_sub(block.sealed_ns);
            let end = Lsn::end_of(block.sequence);
            if block.kind == BlockKind::Marker {
                // A marker needs no marker.
                self.marked = self.marked.max(end);
            }
            self.durable = self.durable.max(end);
            self.replay_start = ReplayStart {
                place: block.end,
                file: block.file,
                next_sequence: block.sequence.next(),
                predecessor_crc: block.crc,
                last_epoch: self.start.epoch,
            };
            self.in_flight.pop_front();
        }
        self.idle_since_ns = now.monotonic_ns;
        assert!(self.durable <= self.written);
    }

    /// Asks for a flush of the oldest file with written blocks. A flush covers one file, so `durable` passes a
    /// file's end only after that file was flushed.
    fn flush_if_due(&mut self, ops: &mut Vec<Op>) {
        let is_wanted = self.start.durability == Durability::WriteThenFlush
            && self.flush_covers.is_none()
            && self.failure.is_none();
        let Some(first) = self.in_flight.front().filter(|block| is_wanted && block.written) else { return };
        let file = first.file;
        let last = self
            .in_flight
            .iter()
            .take_while(|block| block.written && block.file == file)
            .last()
            .map(|block| block.sequence);
        self.flush_covers = last;
        ops.push(Op::Flush { token: Token(u64::from(file)), file: File::Journal(file) });
    }

    /// Seals the first open block and asks for its write.
    fn seal_front(&mut self, now: Now, kind: BlockKind, ops: &mut Vec<Op>) {
        let front = self.open.front().expect("the caller saw a block");
        let (place, end) = self.start.layout.place(self.seal_cursor, front.padded_with(0));
        let file = self.ring.file(place.file);
        let block = self.open.pop_front().expect("the caller saw a block");
        let sequence = block.sequence();
        self.pending_bytes -= block.entry_bytes();
        let (data, crc) = block.seal(kind, self.predecessor_crc, self.durable);
        self.predecessor_crc = crc;
        self.seal_cursor = end;
        self.blocks_sealed += 1;
        if kind == BlockKind::Marker {
            self.appended = self.appended.max(Lsn::end_of(sequence));
        }
        let sealed_ns = now.monotonic_ns;
        let in_flight = InFlight { sequence, file, end, crc, kind, written: false, sealed_ns };
        self.in_flight.push_back(in_flight);
        assert!(self.in_flight.len() <= JOURNAL_BLOCKS_IN_FLIGHT_MAX);
        let sync = match self.start.durability {
            Durability::SyncedWrites => Sync::WithWrite,
            Durability::WriteThenFlush => Sync::Later,
        };
        ops.push(Op::Write {
            token: Token(sequence.0),
            file: File::Journal(file),
            position: place.position,
            data,
            sync,
        });
    }

    /// Whether a block fits behind `cursor`, into files that are there and not needed: what is taken can always be
    /// sealed. A journal that is full for now gets free by the next checkpoint.
    fn check_space(&self, cursor: Place, block_bytes: usize, reserve: u64) -> Result<(), JournalFull> {
        let layout = self.start.layout;
        let end = layout.linear(layout.place(cursor, block_bytes).1);
        if end + reserve <= self.ring.end_turn() * layout.file_bytes {
            return Ok(());
        }
        // Without space for more files than these, checkpoints may free too little.
        let is_short = self.prepare_failed && self.ring.prepared() < JOURNAL_FILES_MIN;
        Err(if is_short { JournalFull::Space } else { JournalFull::Pending })
    }

    fn fail(&mut self, action: &'static str, file: File, error: IoError) {
        self.failure.get_or_insert(JournalFailure { action, file, error });
    }
}

/// The broken variant that acknowledges what is written and not yet flushed: the simulator must catch it.
fn acks_before_flush() -> bool {
    #[cfg(feature = "mutants")]
    return crate::mutants::is_on(crate::mutants::Mutant::AckBeforeFlush);
    #[cfg(not(feature = "mutants"))]
    false
}
