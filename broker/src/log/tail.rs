//! The tail: a partition's newest batches in memory, one after another, exactly as delivered.
//!
//! ```text
//! chunk:  | end of a batch that begins before | batch | batch | ... | free |
//!         base (a multiple of 4 KiB)          data                  end
//! ```
//!
//! Chunks only grow at their end, and what was appended never changes, so a reader takes counted slices of a chunk
//! and no byte is copied on the way out. A batch never straddles two chunks. Byte `p` of the log lies at `p` modulo
//! 4096 of its chunk, and a chunk begins with a copy of the page that the one before could not fill, so that whole
//! pages of a chunk are whole pages of a file. What is on disk may be dropped from the front.

use std::collections::VecDeque;

use protocol::batch::BatchHeader;
use protocol::ids::Offset;
use reactor::memory::{AppendBuffer, Pool, Slice};

use super::Position;
use crate::limits::{PAGE_BYTES, TAIL_CHUNK_BYTES_MAX, TAIL_CHUNK_BYTES_MIN};

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
    pub next: Position,
}

#[derive(Debug)]
struct Chunk {
    buffer: AppendBuffer,
    /// Position of the buffer's first byte.
    base: Position,
    /// Where the first batch begins in the buffer.
    data: usize,
    base_offset: Offset,
}

impl Chunk {
    fn start(&self) -> Position {
        self.base.plus(self.data as u64)
    }

    fn end(&self) -> Position {
        self.base.plus(self.buffer.end() as u64)
    }

    fn header_at(&self, at: usize) -> Option<&BatchHeader> {
        let bytes = self.buffer.bytes(at..self.buffer.end());
        (!bytes.is_empty()).then(|| BatchHeader::peek(bytes).expect("the tail holds checked batches"))
    }
}

/// The newest batches of one partition, in order.
#[derive(Debug, Default)]
pub struct Tail {
    chunks: VecDeque<Chunk>,
    end: Position,
}

impl Tail {
    /// A tail that goes on at `end`, where `partial` is what the last page holds before it.
    ///
    /// `None` when the pool has no memory for it.
    #[must_use]
    pub fn resume(pool: &Pool, end: Position, partial: &[u8], next_offset: Offset) -> Option<Self> {
        assert_eq!(end.in_page(), partial.len());
        let mut tail = Self { chunks: VecDeque::new(), end };
        if !partial.is_empty() {
            let chunk = new_chunk(pool, TAIL_CHUNK_BYTES_MIN, end, partial, next_offset)?;
            tail.chunks.push_back(chunk);
        }
        Some(tail)
    }

    /// Makes room for `bytes` more in one chunk. `None` when the pool has no memory for it, else whether a chunk
    /// was added; one that is twice as long as the last if it `may_grow`.
    #[must_use]
    pub fn reserve(
        &mut self,
        pool: &Pool,
        bytes: usize,
        base_offset: Offset,
        may_grow: bool,
    ) -> Option<bool> {
        let last = self.chunks.back();
        if last.is_some_and(|chunk| chunk.end() == self.end && chunk.buffer.remaining() >= bytes) {
            return Some(false);
        }
        let start = self.end.in_page();
        let growth = if may_grow { 2 } else { 1 };
        let grown = last.map_or(TAIL_CHUNK_BYTES_MIN, |chunk| growth * chunk.buffer.capacity());
        let least = start + bytes;
        let wanted = grown.min(TAIL_CHUNK_BYTES_MAX).max(least);
        let partial = self.partial();
        let chunk = new_chunk(pool, wanted, self.end, partial, base_offset)
            .or_else(|| new_chunk(pool, least, self.end, partial, base_offset))?;
        self.chunks.push_back(chunk);
        Some(true)
    }

    /// Length of the last chunk, which cannot be given back while it fills.
    #[must_use]
    pub fn last_chunk_bytes(&self) -> usize {
        self.chunks.back().map_or(0, |chunk| chunk.buffer.capacity())
    }

    /// Appends placed batches; `reserve` must have made room.
    pub fn append(&mut self, batches: &[u8]) {
        let chunk = self.chunks.back_mut().expect("reserve made room");
        assert_eq!(chunk.end(), self.end);
        chunk.buffer.append(batches);
        self.end = self.end.plus(batches.len() as u64);
    }

    /// Goes on at the next page: the next segment begins there.
    pub fn skip_to_page(&mut self) {
        self.end = self.end.page_up();
    }

    /// Forgets all batches before `base`, where a segment begins, with that offset, or everything ends.
    pub fn forget_before(&mut self, base: Position, base_offset: Offset) {
        while self.chunks.front().is_some_and(|first| first.end() <= base) {
            self.chunks.pop_front();
        }
        if let Some(first) = self.chunks.front_mut().filter(|first| first.start() < base) {
            first.data = (base.0 - first.base.0) as usize;
            first.base_offset = base_offset;
        }
    }

    /// The position behind everything.
    #[must_use]
    pub fn end(&self) -> Position {
        self.end
    }

    /// The position of the first batch in memory; the end when there is none.
    #[must_use]
    pub fn start(&self) -> Position {
        self.chunks.iter().find(|chunk| chunk.start() < chunk.end()).map_or(self.end, Chunk::start)
    }

    /// Offset of the first record in memory, if there is one.
    #[must_use]
    pub fn start_offset(&self) -> Option<Offset> {
        self.chunks.iter().find(|chunk| chunk.start() < chunk.end()).map(|chunk| chunk.base_offset)
    }

    /// What the last page holds before the end.
    #[must_use]
    pub fn partial(&self) -> &[u8] {
        let length = self.end.in_page();
        if length == 0 {
            return &[];
        }
        let chunk = self.chunks.back().expect("the page that is not full is in memory");
        assert_eq!(chunk.end(), self.end);
        let end = chunk.buffer.end();
        chunk.buffer.bytes(end - length..end)
    }

    /// The position of the batch that holds `offset`, or of the next one; `offset` is not before the first in memory.
    #[must_use]
    pub fn find(&self, offset: Offset) -> Position {
        let behind = self.chunks.partition_point(|chunk| chunk.base_offset <= offset);
        let Some(number) = behind.checked_sub(1) else { return self.start() };
        let chunk = &self.chunks[number];
        let mut at = chunk.data;
        while let Some(header) = chunk.header_at(at)
            && header.next_offset() <= offset
        {
            at += header.batch_bytes();
        }
        chunk.base.plus(at as u64)
    }

    /// Offset of the first record of the batch at a position, if it is in memory.
    #[must_use]
    pub fn offset_at(&self, position: Position) -> Option<Offset> {
        let chunk = self.chunks.iter().find(|chunk| chunk.start() <= position && position < chunk.end())?;
        Some(chunk.header_at((position.0 - chunk.base.0) as usize)?.base_offset())
    }

    /// The position of the first batch at or behind `from` that was appended at or after a time.
    #[must_use]
    pub fn find_time(&self, appended_ms: u64, from: Position) -> Position {
        let first = self.chunks.partition_point(|chunk| chunk.end() <= from);
        for chunk in self.chunks.range(first..) {
            let mut at = chunk.data;
            while let Some(header) = chunk.header_at(at) {
                if header.appended_ms.get() >= appended_ms {
                    return chunk.base.plus(at as u64);
                }
                at += header.batch_bytes();
            }
        }
        self.end
    }

    /// The batches from `from` on that lie side by side and hold only offsets below `end`: as many as fit into
    /// the limit, at least one; `None` when there is none below `end`, or `from` is before the first in memory.
    #[must_use]
    pub fn read(&self, from: Position, end: Offset, limit: ReadLimit) -> Option<Run> {
        let first = self.chunks.partition_point(|chunk| chunk.end() <= from);
        for chunk in self.chunks.range(first..) {
            if chunk.start() == chunk.end() {
                continue;
            }
            // Between two segments there may be a gap up to the next page.
            let from = from.max(chunk.start());
            let at = (from.0 - chunk.base.0) as usize;
            return read_chunk(chunk, at, end, limit);
        }
        None
    }

    /// Whole pages from `from`, a multiple of 4 KiB, to at most `to`, that lie in one chunk.
    #[must_use]
    pub fn pages(&self, from: Position, to: Position, bytes_max: usize) -> Option<Slice> {
        assert_eq!(from.in_page(), 0);
        let number = self.chunks.partition_point(|chunk| chunk.end().page_down() <= from);
        let chunk = self.chunks.get(number).filter(|chunk| chunk.base <= from)?;
        let end = chunk.end().page_down().min(to.page_down()).min(from.plus(bytes_max as u64).page_down());
        if end <= from {
            return None;
        }
        let at = (from.0 - chunk.base.0) as usize;
        Some(chunk.buffer.slice(at..at + (end.0 - from.0) as usize))
    }

    /// The bytes from `from` to `to`, which lie in one chunk, if it is in memory.
    #[must_use]
    pub fn bytes(&self, from: Position, to: Position) -> Option<&[u8]> {
        let holds = |chunk: &&Chunk| chunk.base <= from && to <= chunk.end();
        let chunk = self.chunks.iter().find(holds)?;
        Some(chunk.buffer.bytes((from.0 - chunk.base.0) as usize..(to.0 - chunk.base.0) as usize))
    }

    /// What the first page in memory holds before the first batch, and where: batches, or their ends, that are on disk
    /// only once that page is full.
    #[must_use]
    pub fn before_first_batch(&self) -> Option<(Position, &[u8])> {
        let chunk = self.chunks.front().filter(|chunk| chunk.data > 0)?;
        Some((chunk.base, chunk.buffer.bytes(0..chunk.data)))
    }

    /// Drops the first chunk if all of it is below `written`, or is copied at the front of the next one. Says
    /// whether it was dropped.
    pub fn evict(&mut self, written: Position) -> bool {
        let Some(first) = self.chunks.front() else { return false };
        let needed = match self.chunks.get(1) {
            Some(next) if next.base <= first.end() => first.end().page_down(),
            Some(_) => first.end(),
            // The page that is not full is nowhere else.
            None if self.end.in_page() > 0 => return false,
            None => first.end(),
        };
        let may_go = needed <= written;
        if may_go {
            self.chunks.pop_front();
        }
        may_go
    }

    /// Exchanges the last chunk, if all of its whole pages are below `written`, for one that holds only the page
    /// that is not full. Says whether that gave memory back.
    pub fn shrink(&mut self, pool: &Pool, written: Position, next_offset: Offset) -> bool {
        let is_alone = self.chunks.len() == 1;
        let is_large = self.chunks.back().is_some_and(|chunk| chunk.buffer.capacity() > TAIL_CHUNK_BYTES_MIN);
        if !is_alone || !is_large || self.end.page_down() > written || self.end.in_page() == 0 {
            return false;
        }
        let Some(chunk) = new_chunk(pool, TAIL_CHUNK_BYTES_MIN, self.end, self.partial(), next_offset) else {
            return false;
        };
        self.chunks.clear();
        self.chunks.push_back(chunk);
        true
    }

    /// Whether relief may find something to give back here.
    #[must_use]
    pub fn holds_more_than_a_page(&self) -> bool {
        self.chunks.len() > 1 || self.last_chunk_bytes() > TAIL_CHUNK_BYTES_MIN
    }

    /// Memory of all chunks.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.buffer.capacity()).sum()
    }
}

/// A chunk whose first batch will lie at `position`, behind what its page holds before.
fn new_chunk(
    pool: &Pool,
    bytes: usize,
    position: Position,
    partial: &[u8],
    base_offset: Offset,
) -> Option<Chunk> {
    debug_assert_eq!(position.in_page(), partial.len());
    let mut buffer = pool.buffer(bytes.max(PAGE_BYTES))?.into_append(0);
    buffer.append(partial);
    Some(Chunk { buffer, base: position.page_down(), data: partial.len(), base_offset })
}

fn read_chunk(chunk: &Chunk, from: usize, end: Offset, limit: ReadLimit) -> Option<Run> {
    let cut = cut_batches(chunk.buffer.bytes(from..chunk.buffer.end()), end, limit)?;
    Some(Run {
        bytes: chunk.buffer.slice(from..from + cut.bytes),
        record_count: cut.record_count,
        next_offset: cut.next_offset,
        next: chunk.base.plus((from + cut.bytes) as u64),
    })
}

/// Whole batches at the front of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Their length.
    pub bytes: usize,
    /// Records in them.
    pub record_count: u64,
    /// Offset behind their last record.
    pub next_offset: Offset,
}

/// As many of the checked batches that lie side by side in `bytes` as fit into the limit and hold only offsets below
/// `end`, at least one; `None` when there is none below `end`.
#[must_use]
pub fn cut_batches(bytes: &[u8], end: Offset, limit: ReadLimit) -> Option<Cut> {
    let mut cut = Cut { bytes: 0, record_count: 0, next_offset: Offset(0) };
    while cut.bytes < bytes.len() {
        let header = BatchHeader::peek(&bytes[cut.bytes..]).expect("the batches were checked");
        let is_over = cut.bytes + header.batch_bytes() > limit.bytes_max
            || cut.record_count + u64::from(header.record_count.get()) > limit.records_max;
        if header.next_offset() > end || cut.bytes > 0 && is_over {
            break;
        }
        cut.bytes += header.batch_bytes();
        cut.record_count += u64::from(header.record_count.get());
        cut.next_offset = header.next_offset();
    }
    (cut.bytes > 0).then_some(cut)
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
        let fields = BrokerFields { base_offset: Offset(base), appended_ms: base, log_epoch: 1 };
        BatchHeader::place(&mut bytes, Handle(1), fields);
        bytes
    }

    fn filled(pool: &Pool, batch_count: u64) -> (Tail, Vec<u8>) {
        let (mut tail, mut all) = (Tail::default(), Vec::new());
        for n in 0..batch_count {
            let bytes = batch(2 * n, 2, 700);
            assert!(tail.reserve(pool, bytes.len(), Offset(2 * n), true).is_some());
            tail.append(&bytes);
            all.extend_from_slice(&bytes);
        }
        (tail, all)
    }

    fn read_all(tail: &Tail, mut from: Position, end: Offset, bytes_max: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(run) = tail.read(from, end, at_most(bytes_max)) {
            bytes.extend_from_slice(&run.bytes);
            from = run.next;
        }
        bytes
    }

    #[test]
    fn what_was_appended_is_read_back_in_runs() {
        let pool = Pool::new(64 << 20).unwrap();
        let (tail, all) = filled(&pool, 100);
        for bytes_max in [1, 4096, 1 << 20] {
            assert_eq!(read_all(&tail, tail.find(Offset(0)), Offset(200), bytes_max), all);
        }
    }

    #[test]
    fn nothing_at_or_behind_the_end_is_read() {
        let pool = Pool::new(64 << 20).unwrap();
        let (tail, all) = filled(&pool, 10);
        let length = all.len() / 10;
        assert_eq!(read_all(&tail, tail.find(Offset(0)), Offset(7), 1 << 20), all[..3 * length]);
        assert!(tail.read(tail.find(Offset(0)), Offset(1), at_most(1 << 20)).is_none());
        assert!(tail.read(tail.end(), Offset(20), at_most(1 << 20)).is_none());
    }

    #[test]
    fn a_start_inside_a_batch_finds_the_whole_batch() {
        let pool = Pool::new(64 << 20).unwrap();
        let (tail, all) = filled(&pool, 50);
        let length = all.len() / 50;
        for offset in 0..100 {
            let run = tail.read(tail.find(Offset(offset)), Offset(100), at_most(1)).unwrap();
            let number = (offset / 2) as usize;
            assert_eq!(run.bytes[..], all[number * length..(number + 1) * length]);
        }
        assert_eq!(tail.find(Offset(100)), tail.end());
    }

    #[test]
    fn a_time_finds_the_first_batch_at_or_after_it() {
        let pool = Pool::new(64 << 20).unwrap();
        let (tail, _) = filled(&pool, 50);
        for time in 0..97 {
            let batch = u64::div_ceil(time, 2) * 2;
            assert_eq!(tail.find_time(time, Position(0)), tail.find(Offset(batch)), "time {time}");
        }
        assert_eq!(tail.find_time(1_000, Position(0)), tail.end());
    }

    #[test]
    fn whole_pages_are_what_a_file_would_hold() {
        let pool = Pool::new(64 << 20).unwrap();
        let (tail, all) = filled(&pool, 500);
        let mut at = Position(0);
        while let Some(pages) = tail.pages(at, tail.end(), 64 << 10) {
            assert_eq!(pages[..], all[at.0 as usize..][..pages.len()]);
            at = at.plus(pages.len() as u64);
        }
        assert_eq!(at, tail.end().page_down());
        assert_eq!(tail.partial(), &all[at.0 as usize..]);
    }

    #[test]
    fn what_is_written_can_go_and_the_rest_is_still_read() {
        let pool = Pool::new(64 << 20).unwrap();
        let (mut tail, all) = filled(&pool, 500);
        let written = Position(400_000).page_down();
        while tail.evict(written) {}
        let start = tail.start();
        assert!(start > Position(0));
        assert_eq!(read_all(&tail, start, Offset(1000), 1 << 20), all[start.0 as usize..]);
        let (base, end_of_batch) = tail.before_first_batch().unwrap();
        assert!(base <= written);
        assert_eq!(*end_of_batch, all[base.0 as usize..start.0 as usize]);
    }

    #[test]
    fn an_idle_tail_shrinks_to_its_last_page_and_goes_on() {
        let pool = Pool::new(64 << 20).unwrap();
        let (mut tail, mut all) = filled(&pool, 100);
        let written = tail.end().page_down();
        while tail.evict(written) {}
        assert!(tail.shrink(&pool, written, Offset(200)));
        assert_eq!(pool.used_bytes(), TAIL_CHUNK_BYTES_MIN);
        assert_eq!(tail.partial(), &all[written.0 as usize..]);
        let more = batch(200, 2, 3000);
        assert!(tail.reserve(&pool, more.len(), Offset(200), true).is_some());
        tail.append(&more);
        all.extend_from_slice(&more);
        assert_eq!(read_all(&tail, tail.start(), Offset(202), 1 << 20), more);
        let pages = tail.pages(written, tail.end(), 1 << 20).unwrap();
        assert_eq!(pages[..], all[written.0 as usize..][..pages.len()]);
    }

    #[test]
    fn a_resumed_tail_writes_the_page_that_was_not_full() {
        let pool = Pool::new(64 << 20).unwrap();
        let (tail, mut all) = filled(&pool, 20);
        let mut resumed = Tail::resume(&pool, tail.end(), tail.partial(), Offset(40)).unwrap();
        assert_eq!((resumed.start(), resumed.end()), (tail.end(), tail.end()));
        for n in 20..40 {
            let bytes = batch(2 * n, 2, 700);
            assert!(resumed.reserve(&pool, bytes.len(), Offset(2 * n), true).is_some());
            resumed.append(&bytes);
            all.extend_from_slice(&bytes);
        }
        let mut at = tail.end().page_down();
        while let Some(pages) = resumed.pages(at, resumed.end(), 1 << 20) {
            assert_eq!(pages[..], all[at.0 as usize..][..pages.len()]);
            at = at.plus(pages.len() as u64);
        }
        assert_eq!(at, resumed.end().page_down());
    }
}
