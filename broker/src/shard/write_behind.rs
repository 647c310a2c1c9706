//! Write-behind: from the tails to the segments, off the path of any answer.
//!
//! Partitions stand in one queue; each in its turn has one large write made. How much is in flight depends on how full
//! the journal is. Memory is given back oldest first, and only what is on disk. Serving and recovery use the same.

use std::collections::{BTreeSet, VecDeque};

use protocol::ids::Handle;
use reactor::memory::Pool;

use super::state::State;
use super::work::Work;
use crate::bounded::Slab;
use crate::io::{File, Op, Sync};
use crate::limits::WRITE_BEHIND_BYTES_WORTHWHILE;
use crate::log::Position;
use crate::partition::Partition;

/// Chunks looked at in one turn to give memory back.
const RELIEF_PER_TURN_MAX: usize = 256;
/// Writes in flight: many small ones leave room in the ring to the journal and the sockets.
const WRITES_MAX: usize = 64;

#[derive(Debug)]
struct Write {
    partition: Handle,
    file: File,
    end: Position,
    bytes: usize,
}

/// Writes behind the tails of all partitions.
#[derive(Debug)]
pub(super) struct WriteBehindQueue {
    queue: VecDeque<Handle>,
    writes: Slab<Write>,
    in_flight_bytes: usize,
    /// Files written since they were last made durable.
    dirty: BTreeSet<File>,
    /// Partitions that a checkpoint has captured and that are not on disk as far as it needs.
    undrained: usize,
    /// Bytes written so far.
    pub(super) written_bytes: u64,
}

impl Default for WriteBehindQueue {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            writes: Slab::new(WRITES_MAX),
            in_flight_bytes: 0,
            dirty: BTreeSet::new(),
            undrained: 0,
            written_bytes: 0,
        }
    }
}

/// Whether the partition has something that is worth a write, or that a checkpoint waits for.
fn is_due(partition: &Partition) -> bool {
    let unwritten = partition.log.unwritten_bytes();
    unwritten >= WRITE_BEHIND_BYTES_WORTHWHILE
        || unwritten > 0 && partition.log.is_draining()
        || partition.log.can_seal()
}

impl WriteBehindQueue {
    /// Something of the partition has become durable.
    pub(super) fn on_durable(&mut self, partition: &mut Partition) {
        if !partition.is_queued && is_due(partition) {
            self.enqueue(partition);
        }
    }

    fn enqueue(&mut self, partition: &mut Partition) {
        if !std::mem::replace(&mut partition.is_queued, true) {
            self.queue.push_back(partition.handle);
        }
    }

    /// A checkpoint has captured the partition.
    pub(super) fn begin_drain(&mut self, partition: &mut Partition) {
        partition.log.begin_drain();
        if !partition.log.take_drained() {
            self.undrained += 1;
            self.on_durable(partition);
        }
    }

    /// Partitions that a checkpoint waits for.
    pub(super) fn undrained(&self) -> usize {
        self.undrained
    }

    /// A partition was deleted.
    pub(super) fn forget(&mut self, partition: &Partition) {
        self.undrained -= usize::from(partition.log.is_draining());
    }

    /// Whether an operation on the file is in flight.
    pub(super) fn is_writing(&self, file: File) -> bool {
        self.writes.iter().any(|write| write.file == file)
    }

    /// Whether nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.writes.is_empty()
    }

    /// Files written since the last call: a checkpoint makes them durable.
    pub(super) fn take_dirty(&mut self) -> BTreeSet<File> {
        std::mem::take(&mut self.dirty)
    }

    /// A file is no more.
    pub(super) fn forget_file(&mut self, file: File) {
        self.dirty.remove(&file);
    }

    /// Asks for writes until so many bytes are in flight.
    pub(super) fn pump(&mut self, state: &mut State, pool: &Pool, bytes_max: usize, ops: &mut Vec<Op>) {
        for _ in 0..self.queue.len() {
            if self.in_flight_bytes >= bytes_max {
                return;
            }
            let Some(handle) = self.queue.pop_front() else { return };
            let Some(partition) = state.partitions.get_mut(handle) else { continue };
            partition.is_queued = false;
            if self.writes.len() == WRITES_MAX {
                self.enqueue(partition);
                return;
            }
            let Some(write) = partition.log.next_write(pool, handle) else {
                // A closed segment's end waits for memory, or for the writes before it.
                if partition.log.can_seal() {
                    self.enqueue(partition);
                }
                continue;
            };
            if is_due(partition) {
                self.enqueue(partition);
            }
            let bytes = write.data.len();
            let in_flight = Write { partition: handle, file: write.file, end: write.end, bytes };
            let index = self.writes.insert(in_flight).expect("there is room for one more");
            self.in_flight_bytes += bytes;
            ops.push(Op::Write {
                token: Work::WriteBehind.token(index),
                file: write.file,
                position: write.file_position,
                data: write.data,
                sync: Sync::Later,
            });
        }
    }

    /// A write has completed.
    pub(super) fn on_written(&mut self, state: &mut State, index: u32, ops: &mut Vec<Op>) {
        let write = self.writes.remove(index).expect("a write that has completed was in flight");
        self.in_flight_bytes -= write.bytes;
        self.written_bytes += write.bytes as u64;
        self.dirty.insert(write.file);
        let Some(partition) = state.partitions.get_mut(write.partition) else { return };
        partition.log.on_written(write.end, write.file, |sealed| {
            ops.push(Op::Shrink { file: sealed.file(), bytes: sealed.sealed_file_bytes() });
        });
        if partition.log.is_draining() && partition.log.take_drained() {
            self.undrained -= 1;
        }
        self.on_durable(partition);
    }

    /// The file that a write goes to.
    pub(super) fn file_of(&self, index: u32) -> Option<File> {
        self.writes.get(index).map(|write| write.file)
    }

    /// Gives memory back until no more than so many bytes are in use: the oldest chunks go first, once they are on
    /// disk; those that are not are written.
    pub(super) fn relieve(&mut self, state: &mut State, pool: &Pool, used_max: usize) {
        let mut unwritten = Vec::new();
        for _ in 0..RELIEF_PER_TURN_MAX {
            if pool.used_bytes() <= used_max {
                break;
            }
            let Some(handle) = state.chunk_order.pop_front() else { break };
            let Some(partition) = state.partitions.get_mut(handle) else { continue };
            let (written, end) = (partition.log.written(), partition.appended_end());
            let before = partition.log.tail.last_chunk_bytes();
            if partition.log.tail.evict(written) || partition.log.tail.shrink(pool, written, end) {
                let after = partition.log.tail.last_chunk_bytes();
                partition.is_in_order = partition.log.tail.holds_more_than_a_page();
                if partition.is_in_order {
                    state.chunk_order.push_back(handle);
                }
                state.on_relieved(before, after);
                continue;
            }
            if partition.log.is_behind() {
                self.enqueue(partition);
                unwritten.push(handle);
            } else if partition.log.tail.holds_more_than_a_page() {
                // There was no memory to shrink it into.
                state.chunk_order.push_back(handle);
            } else {
                partition.is_in_order = false;
            }
        }
        for handle in unwritten.into_iter().rev() {
            state.chunk_order.push_front(handle);
        }
    }
}
