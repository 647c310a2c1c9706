//! The tail: a partition's batches in memory, one after another, exactly as delivered.
//!
//! Chunks only grow at their end, and what was appended never changes, so a reader takes counted slices of a chunk
//! and no byte is copied on the way out. A batch never straddles two chunks. Byte `n` of the log lies at `n` modulo
//! 4096 of its chunk, so that whole pages of a chunk are whole pages of a file.

use std::collections::VecDeque;

use protocol::batch::BatchHeader;
use protocol::ids::Offset;
use reactor::memory::{AppendBuffer, Pool, Slice};

use crate::limits::{PAGE_BYTES, TAIL_CHUNK_BYTES_MAX, TAIL_CHUNK_BYTES_MIN};

/// A place between two batches of one tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Number of the chunk since the partition began.
    chunk: u64,
    /// Byte in the chunk's buffer.
    at: usize,
}

/// How much one read may give; at least one batch is always given.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimit {
    /// Bytes of batches.
    pub bytes_max: usize,
    /// Records.
    pub records_max: u64,
}

/// Batches that lie side by side.
#[derive(Debug)]
pub struct Run {
    /// Their bytes.
    pub bytes: Slice,
    /// Records in them.
    pub record_count: u64,
    /// Offset behind their last record.
    pub next_offset: Offset,
    /// Where to read on.
    pub next: Cursor,
}

#[derive(Debug)]
struct Chunk {
    buffer: AppendBuffer,
    base_offset: Offset,
}

/// The batches of one partition, in order.
#[derive(Debug, Default)]
pub struct Tail {
    chunks: VecDeque<Chunk>,
    /// Number of the first chunk in `chunks`.
    first_chunk: u64,
    /// Bytes appended since the partition began.
    position: u64,
}

impl Tail {
    /// Makes room for `bytes` more in one chunk; `false` when the pool has no memory for it.
    #[must_use]
    pub fn reserve(&mut self, pool: &Pool, bytes: usize, base_offset: Offset) -> bool {
        let last = self.chunks.back();
        if last.is_some_and(|chunk| chunk.buffer.remaining() >= bytes) {
            return true;
        }
        let start = (self.position % PAGE_BYTES as u64) as usize;
        let doubled = last.map_or(TAIL_CHUNK_BYTES_MIN, |chunk| 2 * chunk.buffer.capacity());
        let wanted = doubled.min(TAIL_CHUNK_BYTES_MAX).max(start + bytes);
        let Some(buffer) = pool.buffer(wanted).or_else(|| pool.buffer(start + bytes)) else { return false };
        self.chunks.push_back(Chunk { buffer: buffer.into_append(start), base_offset });
        true
    }

    /// Appends placed batches; `reserve` must have made room.
    pub fn append(&mut self, batches: &[u8]) {
        let chunk = self.chunks.back_mut().expect("reserve made room");
        chunk.buffer.append(batches);
        self.position += batches.len() as u64;
    }

    /// Bytes appended since the partition began.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The place behind everything.
    #[must_use]
    pub fn end(&self) -> Cursor {
        match self.chunks.back() {
            Some(chunk) => Cursor { chunk: self.last_chunk(), at: chunk.buffer.end() },
            None => Cursor { chunk: self.first_chunk, at: 0 },
        }
    }

    /// The place of the batch that holds `offset`, or of the next one.
    #[must_use]
    pub fn find(&self, offset: Offset) -> Cursor {
        let behind = self.chunks.partition_point(|chunk| chunk.base_offset <= offset);
        let Some(number) = behind.checked_sub(1) else {
            return Cursor {
                chunk: self.first_chunk,
                at: self.chunks.front().map_or(0, |chunk| chunk.buffer.start()),
            };
        };
        let chunk = &self.chunks[number];
        let mut at = chunk.buffer.start();
        while let Some(header) = header_at(chunk, at)
            && header.next_offset() <= offset
        {
            at += header.batch_bytes();
        }
        Cursor { chunk: self.first_chunk + number as u64, at }
    }

    /// The batches from `cursor` on that lie side by side and hold only offsets below `end`: as many as fit into
    /// `bytes_max` and `records_max`, at least one; `None` when there is none below `end`.
    #[must_use]
    pub fn read(&self, cursor: Cursor, end: Offset, limit: ReadLimit) -> Option<Run> {
        let mut cursor = cursor;
        loop {
            let index = usize::try_from(cursor.chunk.checked_sub(self.first_chunk)?).ok()?;
            let chunk = self.chunks.get(index)?;
            let from = cursor.at.max(chunk.buffer.start());
            if let Some(run) = read_chunk(chunk, Cursor { chunk: cursor.chunk, at: from }, end, limit) {
                return Some(run);
            }
            if from < chunk.buffer.end() || index + 1 == self.chunks.len() {
                return None;
            }
            cursor = Cursor { chunk: cursor.chunk + 1, at: 0 };
        }
    }

    fn last_chunk(&self) -> u64 {
        self.first_chunk + self.chunks.len() as u64 - 1
    }
}

fn header_at(chunk: &Chunk, at: usize) -> Option<&BatchHeader> {
    let bytes = chunk.buffer.bytes(at..chunk.buffer.end());
    (!bytes.is_empty()).then(|| BatchHeader::peek(bytes).expect("the tail holds checked batches"))
}

fn read_chunk(chunk: &Chunk, from: Cursor, end: Offset, limit: ReadLimit) -> Option<Run> {
    let (mut at, mut record_count, mut next_offset) = (from.at, 0, Offset(0));
    while let Some(header) = header_at(chunk, at) {
        let is_first = at == from.at;
        let is_over = at + header.batch_bytes() - from.at > limit.bytes_max
            || record_count + u64::from(header.record_count.get()) > limit.records_max;
        if header.next_offset() > end || !is_first && is_over {
            break;
        }
        at += header.batch_bytes();
        record_count += u64::from(header.record_count.get());
        next_offset = header.next_offset();
    }
    (at > from.at).then(|| Run {
        bytes: chunk.buffer.slice(from.at..at),
        record_count,
        next_offset,
        next: Cursor { chunk: from.chunk, at },
    })
}

#[cfg(test)]
mod tests {
    use protocol::batch::{BatchBuilder, BrokerFields, Record};
    use protocol::ids::Handle;

    use super::*;

    fn at_most(bytes_max: usize) -> ReadLimit {
        ReadLimit { bytes_max, records_max: u64::MAX }
    }

    fn batch(base: u64, record_count: usize, value: usize) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        for _ in 0..record_count {
            builder.push(&Record { value: &vec![7; value], ..Record::default() }).unwrap();
        }
        let mut bytes = Vec::new();
        builder.finish_into(&mut bytes);
        let fields = BrokerFields { base_offset: Offset(base), appended_ms: 0, log_epoch: 1 };
        BatchHeader::place(&mut bytes, Handle(1), fields);
        bytes
    }

    fn filled(batch_count: u64) -> (Tail, Vec<u8>) {
        let pool = Pool::new(64 << 20).unwrap();
        let (mut tail, mut all) = (Tail::default(), Vec::new());
        for n in 0..batch_count {
            let bytes = batch(2 * n, 2, 700);
            assert!(tail.reserve(&pool, bytes.len(), Offset(2 * n)));
            tail.append(&bytes);
            all.extend_from_slice(&bytes);
        }
        (tail, all)
    }

    fn read_all(tail: &Tail, mut cursor: Cursor, end: Offset, bytes_max: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(run) = tail.read(cursor, end, at_most(bytes_max)) {
            bytes.extend_from_slice(&run.bytes);
            cursor = run.next;
        }
        bytes
    }

    #[test]
    fn what_was_appended_is_read_back_in_runs() {
        let (tail, all) = filled(100);
        for bytes_max in [1, 4096, 1 << 20] {
            assert_eq!(read_all(&tail, tail.find(Offset(0)), Offset(200), bytes_max), all);
        }
    }

    #[test]
    fn nothing_at_or_behind_the_end_is_read() {
        let (tail, all) = filled(10);
        let length = all.len() / 10;
        assert_eq!(read_all(&tail, tail.find(Offset(0)), Offset(7), 1 << 20), all[..3 * length]);
        assert!(tail.read(tail.find(Offset(0)), Offset(1), at_most(1 << 20)).is_none());
        assert!(tail.read(tail.end(), Offset(20), at_most(1 << 20)).is_none());
    }

    #[test]
    fn a_start_inside_a_batch_finds_the_whole_batch() {
        let (tail, all) = filled(50);
        let length = all.len() / 50;
        for offset in 0..100 {
            let run = tail.read(tail.find(Offset(offset)), Offset(100), at_most(1)).unwrap();
            let number = (offset / 2) as usize;
            assert_eq!(run.bytes[..], all[number * length..(number + 1) * length]);
        }
        assert_eq!(tail.find(Offset(100)), tail.end());
    }

    #[test]
    fn a_reader_at_the_end_goes_on_in_the_next_chunk() {
        let pool = Pool::new(64 << 20).unwrap();
        let mut tail = Tail::default();
        let mut cursor = tail.end();
        for n in 0..200 {
            let bytes = batch(n, 1, 900);
            assert!(tail.reserve(&pool, bytes.len(), Offset(n)));
            tail.append(&bytes);
            let run = tail.read(cursor, Offset(n + 1), at_most(1 << 20)).unwrap();
            assert_eq!(run.bytes[..], bytes[..]);
            cursor = run.next;
        }
    }
}
