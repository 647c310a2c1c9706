//! The data file: blocks fill, are padded and written, become durable in their order, and are used again.
//!
//! A block is open, then filled, then in flight (sealed and not durable), then free. At most `blocks_in_flight` are
//! in flight; meanwhile the open block grows, and fills one buffer after the other until the pool is used up. Each
//! write is a pure overwrite within a file of written zeros, so the kernel submits it inline and a flush has no
//! file-system metadata to commit. It reads nothing back.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use io_uring::{opcode, types};
use protocol::batch::BATCH_HEADER_BYTES;

use crate::ring::{Ring, Token};
use crate::{Durability, FloorError};

/// Memory, lengths and positions of direct I/O.
pub(crate) const BLOCK_ALIGNMENT: usize = 4096;
/// Room at the start of a block for what the broker writes there; stays zero here.
pub(crate) const BLOCK_HEADER_BYTES: usize = 64;
/// A block that holds this much is not added to.
pub(crate) const BLOCK_BYTES_TARGET: usize = 512 << 10;
/// Most that `--blocks-in-flight` may ask for.
pub(crate) const BLOCKS_IN_FLIGHT_MAX: usize = 64;
/// Buffers of all blocks together, unless so few would not even fill the flight.
const POOL_BYTES_MAX: usize = 64 << 20;
/// Zeros that are written at once when the file is made.
const ZEROS_BYTES: usize = 1 << 20;
/// Name of the data file within its directory.
pub(crate) const DATA_FILE_NAME: &str = "floor.dat";
/// Fresh directories that are tried before giving up.
const FRESH_DIRS_MAX: usize = 1_000;

/// Length of a block's buffer: the target, or the longest frame's payload on its own.
pub(crate) fn block_bytes(frame_bytes_max: usize) -> usize {
    (BLOCK_HEADER_BYTES + frame_bytes_max).max(BLOCK_BYTES_TARGET).next_multiple_of(BLOCK_ALIGNMENT)
}

/// What a disk is made from.
#[derive(Debug)]
pub(crate) struct DiskPlan<'a> {
    pub(crate) path: &'a Path,
    pub(crate) durability: Durability,
    pub(crate) file_bytes: u64,
    pub(crate) frame_bytes_max: usize,
    pub(crate) blocks_in_flight: usize,
}

/// An answer that waits until the block of its frame is durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ack {
    /// Slot of the connection.
    pub(crate) connection: usize,
    pub(crate) correlation_id: u64,
    /// Running number of the frame's first record.
    pub(crate) offset: u64,
}

/// The file, its blocks, and where each of them stands.
pub(crate) struct Disk {
    file: File,
    durability: Durability,
    file_bytes: u64,
    /// Where the next write goes; wraps round.
    position: u64,
    blocks_in_flight: usize,
    blocks: Vec<Block>,
    /// Used from the end, so that the buffers in use stay in the cache.
    free: Vec<usize>,
    open: Option<usize>,
    filled: VecDeque<usize>,
    /// In the order of their sequences, which is that of their appends.
    in_flight: VecDeque<Flight>,
    /// Sequence of the first block in flight; one higher than that of the last durable one.
    first_sequence: u64,
    /// How many blocks in flight, from the first, the flush under way covers.
    flush_covers: Option<usize>,
    /// How many blocks in flight, from the first, are durable and not yet taken.
    durable_count: usize,
}

struct Block {
    buffer: AlignedBytes,
    /// Bytes in use, the header included.
    length: usize,
    acks: Vec<Ack>,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    block: usize,
    is_written: bool,
}

impl Disk {
    /// Opens or makes the file, and allocates all that will be needed.
    pub(crate) fn new(plan: &DiskPlan<'_>) -> Result<Self, FloorError> {
        let file = open_zeroed(plan.path, plan.file_bytes);
        let block_bytes = block_bytes(plan.frame_bytes_max);
        // One fills while the others are in flight, and one more says that there is room.
        let block_count = (POOL_BYTES_MAX / block_bytes).max(plan.blocks_in_flight + 2);
        Ok(Self {
            file: file.map_err(FloorError::doing("make the data file"))?,
            durability: plan.durability,
            file_bytes: plan.file_bytes,
            position: 0,
            blocks_in_flight: plan.blocks_in_flight,
            blocks: (0..block_count).map(|_| Block::new(block_bytes)).collect(),
            free: (0..block_count).collect(),
            open: None,
            filled: VecDeque::with_capacity(block_count),
            in_flight: VecDeque::with_capacity(plan.blocks_in_flight),
            first_sequence: 0,
            flush_covers: None,
            durable_count: 0,
        })
    }

    /// Whether the longest frame can be appended.
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Number of the commit that answers wait for.
    pub(crate) fn awaited(&self) -> Option<u64> {
        (!self.in_flight.is_empty()).then_some(self.first_sequence)
    }

    /// Blocks sealed and not durable.
    pub(crate) fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    /// Copies a payload, at least as long as a batch header, into the open block. `has_room` must have said so.
    pub(crate) fn append(&mut self, payload: &[u8], ack: Ack) {
        // What bounds the number of answers that wait for one block.
        assert!(payload.len() >= BATCH_HEADER_BYTES);
        if let Some(open) = self.open.take_if(|open| !self.blocks[*open].fits(payload.len())) {
            self.filled.push_back(open);
        }
        let open = *self.open.get_or_insert_with(|| self.free.pop().expect("has_room was asked"));
        self.blocks[open].append(payload, ack);
    }

    /// Ends a turn: flushes what was written, then seals and writes what the flight has room for.
    pub(crate) fn submit(&mut self, ring: &mut Ring<'_>) {
        self.submit_flush(ring);
        while self.in_flight.len() < self.blocks_in_flight {
            let Some(block) = self.filled.pop_front().or_else(|| self.open.take()) else { break };
            self.submit_write(block, ring);
        }
    }

    /// A block was written.
    pub(crate) fn on_written(&mut self, sequence: u64, outcome: io::Result<usize>) -> Result<(), FloorError> {
        let index = (sequence - self.first_sequence) as usize;
        let flight = &mut self.in_flight[index];
        assert!(!flight.is_written);
        let written = outcome.map_err(FloorError::doing("write a block"))?;
        if written != self.blocks[flight.block].padded_bytes() {
            return Err(FloorError::doing("write a whole block")(io::ErrorKind::WriteZero.into()));
        }
        flight.is_written = true;
        if self.durability == Durability::Sync {
            self.durable_count = self.written_count();
        }
        Ok(())
    }

    /// The flush came back. One that failed is final: nobody can say what it lost.
    pub(crate) fn on_flushed(&mut self, outcome: io::Result<usize>) -> Result<(), FloorError> {
        outcome.map_err(FloorError::doing("flush"))?;
        self.durable_count = self.flush_covers.take().expect("only a flush that was issued comes back");
        Ok(())
    }

    /// Takes the next block that has become durable; it must be released when its answers are given.
    pub(crate) fn take_durable(&mut self) -> Option<usize> {
        self.durable_count = self.durable_count.checked_sub(1)?;
        self.first_sequence += 1;
        let flight = self.in_flight.pop_front().expect("what is durable was in flight");
        assert!(flight.is_written);
        Some(flight.block)
    }

    /// The answers that a block owes, in the order of the appends.
    pub(crate) fn acks(&self, block: usize) -> &[Ack] {
        &self.blocks[block].acks
    }

    /// Makes a block free again.
    pub(crate) fn release(&mut self, block: usize) {
        self.blocks[block].clear();
        self.free.push(block);
    }

    /// Length of the unbroken run of written blocks at the front of the flight.
    fn written_count(&self) -> usize {
        self.in_flight.iter().take_while(|flight| flight.is_written).count()
    }

    fn submit_flush(&mut self, ring: &mut Ring<'_>) {
        assert_eq!(self.durable_count, 0, "what is durable is taken before the turn ends");
        let written_count = self.written_count();
        if self.durability != Durability::Flush || self.flush_covers.is_some() || written_count == 0 {
            return;
        }
        let entry = opcode::Fsync::new(types::Fd(self.file.as_raw_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build()
            .user_data(Token::Flush.user_data());
        // SAFETY: a flush points to no memory.
        unsafe { ring.push(&entry) };
        self.flush_covers = Some(written_count);
    }

    fn submit_write(&mut self, block: usize, ring: &mut Ring<'_>) {
        let bytes = self.blocks[block].seal();
        if self.position + bytes.len() as u64 > self.file_bytes {
            self.position = 0;
        }
        let flags = if self.durability == Durability::Sync { libc::RWF_DSYNC } else { 0 };
        let sequence = self.first_sequence + self.in_flight.len() as u64;
        let entry = opcode::Write::new(types::Fd(self.file.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .offset(self.position)
            .rw_flags(flags)
            .build()
            .user_data(Token::Write(sequence).user_data());
        // SAFETY: a sealed block's buffer is not written to before `release`, which follows the completion, and
        // the owner of a `Disk` does not drop it while a write is under way.
        unsafe { ring.push(&entry) };
        self.position += bytes.len() as u64;
        self.in_flight.push_back(Flight { block, is_written: false });
    }
}

impl Block {
    fn new(bytes: usize) -> Self {
        let acks = Vec::with_capacity(bytes / BATCH_HEADER_BYTES);
        Self { buffer: AlignedBytes::new(bytes), length: BLOCK_HEADER_BYTES, acks }
    }

    /// Whether a payload may be added. The longest may always, to an empty block.
    fn fits(&self, payload_bytes: usize) -> bool {
        self.acks.is_empty() || self.length + payload_bytes <= BLOCK_BYTES_TARGET
    }

    fn append(&mut self, payload: &[u8], ack: Ack) {
        let end = self.length + payload.len();
        self.buffer.get_mut()[self.length..end].copy_from_slice(payload);
        self.length = end;
        self.acks.push(ack);
    }

    fn padded_bytes(&self) -> usize {
        self.length.next_multiple_of(BLOCK_ALIGNMENT)
    }

    /// Pads with zeros, and gives what is to be written.
    fn seal(&mut self) -> &[u8] {
        let padded_bytes = self.padded_bytes();
        let bytes = &mut self.buffer.get_mut()[..padded_bytes];
        bytes[self.length..].fill(0);
        bytes
    }

    fn clear(&mut self) {
        self.length = BLOCK_HEADER_BYTES;
        self.acks.clear();
    }
}

/// Zeroed memory that starts at a multiple of `BLOCK_ALIGNMENT`; a page of it is real once it was touched.
struct AlignedBytes {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBytes {
    fn new(length: usize) -> Self {
        let memory = vec![0_u8; length + BLOCK_ALIGNMENT];
        let start = memory.as_ptr().align_offset(BLOCK_ALIGNMENT);
        Self { memory, start, length }
    }

    fn get_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// Makes sure that the named directory is there; without a name makes a fresh one below the current directory.
pub(crate) fn make_data_dir(named: Option<&Path>) -> io::Result<PathBuf> {
    if let Some(directory) = named {
        fs::create_dir_all(directory)?;
        return Ok(directory.to_owned());
    }
    for number in 0..FRESH_DIRS_MAX {
        let directory = PathBuf::from(format!("floor-data-{number}"));
        match fs::create_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| directory),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Opens the file for direct I/O, after writing zeros over its whole length.
///
/// A file that already has this length was written from its start to its end, and is taken as it is.
fn open_zeroed(path: &Path, bytes: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT);
    let file = options.open(path)?;
    if file.metadata()?.len() == bytes {
        return Ok(file);
    }
    file.set_len(0)?;
    let mut zeros = AlignedBytes::new(ZEROS_BYTES);
    let mut position = 0;
    while position < bytes {
        let length = (bytes - position).min(ZEROS_BYTES as u64);
        file.write_all_at(&zeros.get_mut()[..length as usize], position)?;
        position += length;
    }
    file.sync_all()?;
    Ok(file)
}
