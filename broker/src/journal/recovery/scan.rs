//! The scan: block after block through windows read from the journal files.
//!
//! First along the chain, handing entries out; then, from the first block that does not continue the chain, over
//! every page that is left, looking for valid blocks that say what had been durable.

use reactor::memory::{Buffer, Pool};

use super::super::block::{Block, BlockHeader, Entry, JournalIdentity};
use super::super::{BlockSequence, Epoch, JournalLayout, Place};
use super::RecoveryError;
use super::judge::Evidence;
use crate::io::{File, Op, Token};
use crate::limits::{PAGE_BYTES, RECOVERY_READ_BYTES};

pub(super) enum ScanStep {
    Reading,
    Done,
}

enum Looked {
    /// A whole block that continues the chain; its length.
    Successor(u64),
    /// Something else.
    Other,
    /// More of the file is needed from here on: at least so many bytes.
    Unread(u64),
}

/// What the scan does with the place that it looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// Follow the chain.
    Chain,
    /// The chain did not go on at the kept place; see whether it goes on in the next file.
    NextFile,
    /// The chain has ended; look for evidence of later blocks.
    Evidence,
}

/// The file bytes that are in memory.
#[derive(Debug)]
struct Window {
    start: Place,
    bytes: u64,
    buffer: Buffer,
}

#[derive(Debug)]
pub(super) struct Scan {
    identity: JournalIdentity,
    layout: JournalLayout,
    file_count: u32,
    window: Option<Window>,
    reading: Option<(Place, u64)>,
    aim: Aim,
    at: Place,
    last_epoch: Epoch,
    pub(super) predecessor_crc: u32,
    pub(super) expected: BlockSequence,
    pub(super) end_of_good: Place,
    pub(super) bad_at: Place,
    /// Something that is not zeros lies where the chain ended.
    pub(super) saw_torn: bool,
    pub(super) durable_seen: BlockSequence,
    pub(super) highest_epoch: Epoch,
    pub(super) block_count: u64,
    pub(super) entry_count: u64,
    pub(super) journal_bytes: u64,
}

impl Scan {
    pub(super) fn new(identity: JournalIdentity, layout: JournalLayout, file_count: u32) -> Self {
        Self {
            identity,
            layout,
            file_count,
            window: None,
            reading: None,
            aim: Aim::Chain,
            at: Place::default(),
            last_epoch: Epoch(0),
            predecessor_crc: 0,
            expected: BlockSequence::FIRST,
            end_of_good: Place::default(),
            bad_at: Place::default(),
            saw_torn: false,
            durable_seen: BlockSequence(0),
            highest_epoch: Epoch(0),
            block_count: 0,
            entry_count: 0,
            journal_bytes: 0,
        }
    }

    pub(super) fn begin(&mut self, ops: &mut Vec<Op>, pool: &Pool) -> Result<(), RecoveryError> {
        self.read(PAGE_BYTES as u64, ops, pool)
    }

    /// Takes a window that was read and goes on as far as it reaches.
    pub(super) fn on_read(
        &mut self,
        buffer: Buffer,
        ops: &mut Vec<Op>,
        pool: &Pool,
        apply: &mut impl FnMut(Entry<'_>) -> Result<(), RecoveryError>,
    ) -> Result<ScanStep, RecoveryError> {
        let (start, bytes) = self.reading.take().expect("one read is in flight");
        self.window = Some(Window { start, bytes, buffer });
        loop {
            if self.at.file == self.file_count {
                if self.aim == Aim::Evidence {
                    self.window = None;
                    return Ok(ScanStep::Done);
                }
                self.end_chain();
                continue;
            }
            if self.at.position == self.layout.file_bytes {
                self.at = Place { file: self.at.file + 1, position: 0 };
                continue;
            }
            let looked =
                if self.aim == Aim::Evidence { self.look_for_evidence() } else { self.follow(apply)? };
            match looked {
                Looked::Successor(length) => self.on_good(length),
                Looked::Other => self.on_other(),
                Looked::Unread(bytes) => {
                    self.read(bytes, ops, pool)?;
                    return Ok(ScanStep::Reading);
                }
            }
        }
    }

    fn read(&mut self, bytes_min: u64, ops: &mut Vec<Op>, pool: &Pool) -> Result<(), RecoveryError> {
        // Given back before a new one is taken: one window at a time.
        self.window = None;
        let left = self.layout.file_bytes - self.at.position;
        let bytes = bytes_min.max(RECOVERY_READ_BYTES as u64).min(left);
        let buffer = pool.buffer(bytes as usize).ok_or(RecoveryError::OutOfMemory)?;
        self.reading = Some((self.at, bytes));
        ops.push(Op::Read {
            token: Token(u64::from(self.at.file)),
            file: File::Journal(self.at.file),
            position: self.at.position,
            buffer,
            bytes: bytes as usize,
        });
        Ok(())
    }

    /// The bytes from `at` to the window's end; fewer than a page when it must be read.
    fn in_window(&self) -> &[u8] {
        let Some(window) = &self.window else { return &[] };
        let is_inside = window.start.file == self.at.file
            && (window.start.position..window.start.position + window.bytes).contains(&self.at.position);
        if !is_inside {
            return &[];
        }
        let from = (self.at.position - window.start.position) as usize;
        &window.buffer[from..window.bytes as usize]
    }

    /// Looks at the block that should continue the chain, and hands its entries out if it does.
    fn follow(
        &mut self,
        apply: &mut impl FnMut(Entry<'_>) -> Result<(), RecoveryError>,
    ) -> Result<Looked, RecoveryError> {
        let bytes = self.in_window();
        if bytes.len() < PAGE_BYTES {
            return Ok(Looked::Unread(PAGE_BYTES as u64));
        }
        let Some(header) = BlockHeader::read(bytes, self.identity) else { return Ok(Looked::Other) };
        let length = u64::from(header.block_length.get());
        if length > self.layout.file_bytes - self.at.position || !self.continues(&header) {
            return Ok(Looked::Other);
        }
        if length > bytes.len() as u64 {
            return Ok(Looked::Unread(length));
        }
        let Some(block) = Block::check(bytes, self.identity) else { return Ok(Looked::Other) };
        let mut entry_count = 0;
        for entry in block.entries() {
            apply(entry)?;
            entry_count += 1;
        }
        self.entry_count += entry_count;
        self.last_epoch = Epoch(header.epoch.get());
        self.predecessor_crc = header.crc.get();
        Ok(Looked::Successor(length))
    }

    fn continues(&self, header: &BlockHeader) -> bool {
        header.block_sequence() == self.expected
            && header.predecessor_crc.get() == self.predecessor_crc
            && Epoch(header.epoch.get()) >= self.last_epoch
    }

    fn on_good(&mut self, length: u64) {
        self.aim = Aim::Chain;
        self.saw_torn = false;
        self.at.position += length;
        self.end_of_good = self.at;
        self.expected = self.expected.next();
        self.highest_epoch = self.highest_epoch.max(self.last_epoch);
        self.block_count += 1;
        self.journal_bytes += length;
    }

    fn on_other(&mut self) {
        match self.aim {
            // A block that did not fit into the file's rest starts the next file.
            Aim::Chain if self.at.position > 0 && self.at.file + 1 < self.file_count => {
                self.bad_at = self.at;
                self.saw_torn = self.in_window()[..PAGE_BYTES].iter().any(|byte| *byte != 0);
                self.aim = Aim::NextFile;
                self.at = Place { file: self.at.file + 1, position: 0 };
            }
            Aim::Chain => {
                self.saw_torn = self.in_window()[..PAGE_BYTES].iter().any(|byte| *byte != 0);
                self.end_chain();
            }
            Aim::NextFile => {
                self.at = self.bad_at;
                self.aim = Aim::Evidence;
            }
            Aim::Evidence => self.at.position += PAGE_BYTES as u64,
        }
    }

    fn end_chain(&mut self) {
        self.bad_at = self.at;
        self.aim = Aim::Evidence;
    }

    /// Looks at one page as the start of any block that was ever sealed, of any epoch: its header is enough.
    fn look_for_evidence(&mut self) -> Looked {
        let bytes = self.in_window();
        if bytes.len() < PAGE_BYTES {
            return Looked::Unread(PAGE_BYTES as u64);
        }
        if let Some(header) = BlockHeader::read(bytes, self.identity) {
            let seen = Evidence::of_block(header.block_sequence(), header.durable().sequence());
            self.durable_seen = self.durable_seen.max(seen);
            self.highest_epoch = self.highest_epoch.max(Epoch(header.epoch.get()));
        }
        Looked::Other
    }
}
