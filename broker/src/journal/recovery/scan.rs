//! The scan: block after block through windows read from the journal files.
//!
//! First along the chain, handing entries out; then, from the first block that does not continue the chain, over
//! every page of the journal that is left, looking for valid blocks that say what had been durable. Files are used in
//! a ring: behind the end of one the chain goes on in the next one, or in the first.

use std::collections::VecDeque;

use reactor::memory::{Buffer, Pool};

use super::super::block::{Block, BlockHeader, JournalIdentity};
use super::super::{BlockSequence, Epoch, JournalLayout, Place};
use super::judge::Evidence;
use super::{RecoveryError, Replay};
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
    /// The chain did not go on at the kept place; see whether it goes on at the start of a file.
    NextFile,
    /// The chain has ended; look for evidence of later blocks.
    Evidence,
}

/// Where a scan begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScanStart {
    pub(super) at: Place,
    pub(super) expected: BlockSequence,
    pub(super) predecessor_crc: u32,
    pub(super) last_epoch: Epoch,
    /// No file was used twice: what is not zeros behind the end is what is left of a block.
    pub(super) is_virgin: bool,
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
    /// Files that the chain has gone through, in its order.
    pub(super) visited: Vec<u32>,
    /// Starts of files where the chain may go on.
    candidates: VecDeque<u32>,
    /// Where evidence is still to be looked for: files, and the position to begin at.
    unseen: VecDeque<Place>,
    is_virgin: bool,
    pub(super) last_epoch: Epoch,
    pub(super) predecessor_crc: u32,
    pub(super) expected: BlockSequence,
    pub(super) end_of_good: Place,
    pub(super) bad_at: Place,
    /// Part of a block lies where the chain ended.
    pub(super) saw_torn: bool,
    pub(super) durable_seen: BlockSequence,
    pub(super) highest_epoch: Epoch,
    pub(super) block_count: u64,
    pub(super) entry_count: u64,
    pub(super) journal_bytes: u64,
}

impl Scan {
    pub(super) fn new(
        identity: JournalIdentity,
        layout: JournalLayout,
        file_count: u32,
        start: ScanStart,
    ) -> Self {
        Self {
            identity,
            layout,
            file_count,
            window: None,
            reading: None,
            aim: Aim::Chain,
            at: start.at,
            visited: vec![start.at.file as u32],
            candidates: VecDeque::new(),
            unseen: VecDeque::new(),
            is_virgin: start.is_virgin,
            last_epoch: start.last_epoch,
            predecessor_crc: start.predecessor_crc,
            expected: start.expected,
            end_of_good: start.at,
            bad_at: start.at,
            saw_torn: false,
            durable_seen: BlockSequence(0),
            highest_epoch: start.last_epoch,
            block_count: 0,
            entry_count: 0,
            journal_bytes: 0,
        }
    }

    pub(super) fn begin(&mut self, ops: &mut Vec<Op>, pool: &Pool) -> Result<(), RecoveryError> {
        if self.at.position == self.layout.file_bytes {
            self.on_other();
        }
        if self.at.position == self.layout.file_bytes {
            // Nowhere to go on: the file is the only one.
            self.at.position = 0;
            self.unseen.clear();
        }
        self.read(PAGE_BYTES as u64, ops, pool)
    }

    /// Takes a window that was read and goes on as far as it reaches.
    pub(super) fn on_read(
        &mut self,
        buffer: Buffer,
        ops: &mut Vec<Op>,
        pool: &Pool,
        replay: &mut impl Replay,
    ) -> Result<ScanStep, RecoveryError> {
        let (start, bytes) = self.reading.take().expect("one read is in flight");
        self.window = Some(Window { start, bytes, buffer });
        loop {
            if self.at.position == self.layout.file_bytes {
                if self.aim == Aim::Evidence {
                    let Some(next) = self.unseen.pop_front() else {
                        self.window = None;
                        return Ok(ScanStep::Done);
                    };
                    self.at = next;
                } else {
                    self.on_other();
                }
                continue;
            }
            let looked =
                if self.aim == Aim::Evidence { self.look_for_evidence() } else { self.follow(replay)? };
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
            token: Token(self.at.file),
            file: File::Journal(self.at.file as u32),
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
    fn follow(&mut self, replay: &mut impl Replay) -> Result<Looked, RecoveryError> {
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
            replay.replay(entry)?;
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
        if self.aim == Aim::NextFile {
            self.visited.push(self.at.file as u32);
        }
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
            // A block that did not fit into the file's rest starts another file.
            Aim::Chain => {
                self.bad_at = self.at;
                self.saw_torn = self.is_torn_here();
                self.aim = Aim::NextFile;
                let file = self.at.file as u32;
                let behind = (file + 1 < self.file_count).then_some(file + 1);
                let is_new = |candidate: &u32| !self.visited.contains(candidate);
                self.candidates = behind.into_iter().chain([0]).filter(is_new).collect();
                self.try_next_file();
            }
            Aim::NextFile => self.try_next_file(),
            Aim::Evidence => self.at.position += PAGE_BYTES as u64,
        }
    }

    fn try_next_file(&mut self) {
        if let Some(file) = self.candidates.pop_front() {
            self.at = Place { file: u64::from(file), position: 0 };
            return;
        }
        self.aim = Aim::Evidence;
        let elsewhere = (0..self.file_count).filter(|file| !self.visited.contains(file));
        self.unseen = elsewhere.map(|file| Place { file: u64::from(file), position: 0 }).collect();
        self.at = self.bad_at;
    }

    fn is_torn_here(&self) -> bool {
        let Some(page) = self.in_window().get(..PAGE_BYTES) else { return false };
        match BlockHeader::read(page, self.identity) {
            Some(header) => header.block_sequence() >= self.expected,
            None => self.is_virgin && page.iter().any(|byte| *byte != 0),
        }
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
