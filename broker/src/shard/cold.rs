//! Cold reads: streams of batches from segments, for whoever is behind the tails.
//!
//! A stream reads ahead by one window, checks every batch, and hands out runs without a copy. Streams and their windows
//! are few, so that one replaying consumer cannot push out the tails that the others read; who finds no stream waits for
//! its turn. What is damaged ends the stream with the range that cannot be read.

use std::collections::VecDeque;

use protocol::batch::BatchHeader;
use protocol::ids::{Handle, Offset};
use reactor::memory::{Buffer, Pool, Slice};

use super::state::State;
use super::work::Work;
use crate::bounded::Slab;
use crate::io::{File, IoError, Op, Socket};
use crate::limits::{COLD_IDLE_NS, COLD_READ_BYTES, COLD_STREAMS_MAX, PAGE_BYTES, SEGMENT_FOOTER_BYTES};
use crate::log::{
    CheckEnd, Expected, Found, Log, Position, ReadLimit, Run, Segment, SegmentNumber, SegmentState,
    SparseIndex, Target, check_stored, cut_batches,
};

/// ENOMEM, ENFILE, EMFILE, EAGAIN.
const TRANSIENT_ERRORS: [IoError; 4] = [IoError(12), IoError(23), IoError(24), IoError(11)];
/// Windows that are read and not taken, per stream.
const WINDOWS_MAX: usize = 2;
/// Windows after which a stream makes room for others that wait.
const WINDOWS_PER_TURN: usize = 16;

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// A subscription's cursor.
    Cursor { subscription: u32, cursor: u32 },
    /// The fetch at the front of a connection.
    Fetch(Socket),
    /// Nobody: what is damaged is to be found early.
    Scrub,
}

/// Offsets that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// The first of them.
    pub(super) first: Offset,
    /// The first one behind them that may be readable.
    pub(super) next: Offset,
}

#[derive(Debug)]
enum Phase {
    Idle,
    ReadingFooter,
    /// From this position on, so many bytes.
    Reading {
        from: Position,
        bytes: usize,
    },
}

#[derive(Debug)]
struct Window {
    bytes: Slice,
    at: Position,
}

#[derive(Debug)]
struct Stream {
    reader: Reader,
    partition: Handle,
    generation: u32,
    number: SegmentNumber,
    /// Where the next read begins: at a batch,
    next: Position,
    /// with this offset.
    expected: Offset,
    /// What is before it is not wanted.
    goal: Target,
    is_located: bool,
    phase: Phase,
    /// Bytes that the next read must give at least, from `next` on.
    needed: usize,
    /// A read in this segment has failed: from now on no more is read than is needed, batch by batch.
    is_careful: bool,
    windows: VecDeque<Window>,
    index: Option<SparseIndex>,
    /// A batch at `next` is bad; where reading may go on is not known yet.
    is_damaged: bool,
    damage: Option<Damage>,
    windows_read: usize,
    /// Its reader has gone; it ends with the read that is in flight.
    is_abandoned: bool,
    /// When its reader took something last, or a read ended.
    used_ns: u64,
}

/// A stream, and who believes to have it: it may have been given to another.
pub(super) type StreamKey = (u32, Reader);

/// What a stream has for its reader.
#[derive(Debug)]
pub(super) enum Taken {
    Run(Run),
    /// It is on its way.
    Later,
    /// Everything up to here was given, and the rest is in memory.
    CaughtUp(Position),
    /// What follows cannot be read.
    Damaged(Damage),
    /// The partition is gone, or has changed: begin anew.
    Stale,
}

/// All streams of a shard.
#[derive(Debug)]
pub(super) struct ColdStreams {
    streams: Slab<Stream>,
    waiting: VecDeque<Reader>,
    /// Readers whose turn it is: a free stream is kept for each.
    promised: Vec<Reader>,
    streams_max: usize,
    /// The time of this turn.
    now_ns: u64,
    /// Reads that were asked for since the start.
    pub(super) reads: u64,
    /// Their bytes.
    pub(super) read_bytes: u64,
    /// Ranges that were found damaged.
    pub(super) damaged: u64,
}

impl ColdStreams {
    /// Streams that take no more than this part of the memory.
    pub(super) fn new(bytes_max: usize) -> Self {
        let streams_max = (bytes_max / ((WINDOWS_MAX + 1) * COLD_READ_BYTES)).clamp(2, COLD_STREAMS_MAX);
        Self {
            streams: Slab::new(streams_max),
            waiting: VecDeque::new(),
            promised: Vec::new(),
            streams_max,
            now_ns: 0,
            reads: 0,
            read_bytes: 0,
            damaged: 0,
        }
    }

    /// Whether a read of this file is in flight.
    pub(super) fn is_reading(&self, file: File) -> bool {
        self.streams
            .iter()
            .any(|stream| !matches!(stream.phase, Phase::Idle) && File::Segment(stream.number.0) == file)
    }

    /// Begins to read; `None` when what is looked for is not behind the tail, or all streams are in use: then the reader
    /// is told when it is its turn.
    pub(super) fn begin(
        &mut self,
        reader: Reader,
        partition: Handle,
        goal: Target,
        log: &Log,
    ) -> Option<u32> {
        let Found::Cold { number, from, offset, is_indexed } = log.find(goal) else { return None };
        let promise = self.promised.iter().position(|promised| *promised == reader);
        let is_free = self.streams.len() + self.promised.len() < self.streams_max && self.waiting.is_empty();
        if promise.is_none() && !is_free {
            if !self.waiting.contains(&reader) {
                self.waiting.push_back(reader);
            }
            return None;
        }
        if let Some(promise) = promise {
            self.promised.swap_remove(promise);
        }
        let stream = Stream {
            reader,
            partition,
            generation: log.generation(),
            number,
            next: from,
            expected: offset,
            goal,
            is_located: is_indexed,
            phase: Phase::Idle,
            needed: PAGE_BYTES,
            is_careful: false,
            windows: VecDeque::with_capacity(WINDOWS_MAX),
            index: None,
            is_damaged: false,
            damage: None,
            windows_read: 0,
            is_abandoned: false,
            used_ns: self.now_ns,
        };
        self.streams.insert(stream).ok()
    }

    /// The reader does not want more.
    pub(super) fn end(&mut self, key: StreamKey) {
        let Some(stream) = self.stream(key) else { return };
        if matches!(stream.phase, Phase::Idle) {
            self.streams.remove(key.0);
        } else {
            stream.is_abandoned = true;
            stream.windows.clear();
        }
    }

    /// The stream, unless it was given to another reader.
    fn stream(&mut self, (index, reader): StreamKey) -> Option<&mut Stream> {
        self.streams.get_mut(index).filter(|stream| stream.reader == reader && !stream.is_abandoned)
    }

    /// The readers whose turn it is now, one for each stream that is free, or held by a reader that takes nothing.
    /// A stream is kept for each of them until the next call.
    pub(super) fn next_turns(&mut self, now_ns: u64) -> Vec<Reader> {
        self.now_ns = now_ns;
        self.promised.clear();
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let is_unused =
            |stream: &Stream| matches!(stream.phase, Phase::Idle) && stream.used_ns + COLD_IDLE_NS <= now_ns;
        if self.streams.len() == self.streams_max
            && let Some(unused) = self.streams.find(is_unused)
        {
            self.streams.remove(unused);
        }
        let free = self.streams_max - self.streams.len();
        let next: Vec<Reader> = self.waiting.drain(..free.min(self.waiting.len())).collect();
        self.promised.clone_from(&next);
        next
    }

    /// The reader no longer waits for a stream.
    pub(super) fn forget(&mut self, reader: Reader) {
        self.waiting.retain(|waiting| *waiting != reader);
        self.promised.retain(|promised| *promised != reader);
    }

    /// What the stream has now.
    pub(super) fn take(&mut self, key: StreamKey, log: &Log, end: Offset, limit: ReadLimit) -> Taken {
        let (is_contended, now_ns) = (!self.waiting.is_empty(), self.now_ns);
        let Some(stream) = self.stream(key) else { return Taken::Stale };
        stream.used_ns = now_ns;
        if stream.generation != log.generation() {
            return Taken::Stale;
        }
        if let Some(window) = stream.windows.front_mut() {
            let Some(cut) = cut_batches(&window.bytes, end, limit) else { return Taken::Later };
            let run = Run {
                bytes: window.bytes.slice(0..cut.bytes),
                record_count: cut.record_count,
                next_offset: cut.next_offset,
                next: window.at.plus(cut.bytes as u64),
            };
            window.at = run.next;
            window.bytes = window.bytes.slice(cut.bytes..window.bytes.len());
            if window.bytes.is_empty() {
                stream.windows.pop_front();
            }
            return Taken::Run(run);
        }
        if let Some(damage) = stream.damage {
            return Taken::Damaged(damage);
        }
        if !matches!(stream.phase, Phase::Idle) {
            return Taken::Later;
        }
        if log.is_in_tail(stream.next) {
            return Taken::CaughtUp(stream.next);
        }
        // Others wait: the reader goes to the end of the queue.
        if is_contended && stream.windows_read >= WINDOWS_PER_TURN { Taken::Stale } else { Taken::Later }
    }

    /// Whether somebody waits for a stream.
    pub(super) fn is_contended(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether all streams are in use.
    pub(super) fn is_full(&self) -> bool {
        self.streams.len() == self.streams_max
    }

    /// Whether the stream has something to take without waiting.
    pub(super) fn has_news(&mut self, key: StreamKey) -> bool {
        self.stream(key).is_some_and(|stream| !stream.windows.is_empty() || stream.damage.is_some())
    }

    /// Asks for what the stream needs next, as far as it may read ahead. `false` when there is no memory for it now.
    pub(super) fn advance(&mut self, key: StreamKey, log: &Log, pool: &Pool, ops: &mut Vec<Op>) -> bool {
        let (is_contended, (index, reader)) = (!self.waiting.is_empty(), key);
        let Some(stream) = self.streams.get_mut(index).filter(|stream| stream.reader == reader) else {
            return true;
        };
        let must_wait = !matches!(stream.phase, Phase::Idle)
            || stream.windows.len() >= WINDOWS_MAX
            || stream.damage.is_some()
            || stream.generation != log.generation()
            || is_contended && stream.windows_read >= WINDOWS_PER_TURN;
        if must_wait {
            return true;
        }
        let position = log.normalize(stream.next);
        let Some(segment) = log.segment_at(position).filter(|_| !log.is_in_tail(position)) else {
            return true;
        };
        stream.enter(segment, position);
        let token = Work::ColdRead.token(index);
        if segment.state == SegmentState::Sealed && stream.index.is_none() && stream.wants_index() {
            let bytes = SEGMENT_FOOTER_BYTES;
            let Some(buffer) = pool.buffer(bytes) else { return false };
            stream.phase = Phase::ReadingFooter;
            ops.push(Op::Read {
                token,
                file: segment.file(),
                position: segment.footer_position(),
                buffer,
                bytes,
            });
            return true;
        }
        if stream.is_damaged {
            self.damaged += 1;
            stream.set_damage(segment);
            return true;
        }
        let from = stream.next.page_down();
        let on_disk = if segment.state == SegmentState::Sealed {
            segment.end.page_up()
        } else {
            log.written().min(segment.end.page_up())
        };
        if on_disk <= from {
            // What is left is in memory only, before the tail's first batch.
            return stream.take_from_memory(log, pool, segment, &[]);
        }
        let least = stream.next.in_page() + stream.needed;
        let wanted = if stream.is_careful { least } else { least.max(COLD_READ_BYTES) };
        let bytes = wanted.next_multiple_of(PAGE_BYTES).min((on_disk.0 - from.0) as usize);
        let Some(buffer) = pool.buffer(bytes) else { return false };
        stream.phase = Phase::Reading { from, bytes };
        self.reads += 1;
        self.read_bytes += bytes as u64;
        ops.push(Op::Read {
            token,
            file: segment.file(),
            position: segment.file_position(from),
            buffer,
            bytes,
        });
        true
    }

    /// A read has ended. Gives its reader, if it still wants anything.
    pub(super) fn on_read(
        &mut self,
        index: u32,
        buffer: Buffer,
        result: Result<(), IoError>,
        state: &State,
        pool: &Pool,
    ) -> Option<Reader> {
        let now_ns = self.now_ns;
        let stream = self.streams.get_mut(index).expect("a stream lives as long as its read");
        stream.used_ns = now_ns;
        let phase = std::mem::replace(&mut stream.phase, Phase::Idle);
        let partition = state.partitions.get(stream.partition);
        let log = partition.map(|partition| &partition.log);
        let is_stale = log.is_none_or(|log| log.generation() != stream.generation);
        if stream.is_abandoned || is_stale {
            let reader = stream.reader;
            if stream.is_abandoned {
                self.streams.remove(index);
                return None;
            }
            return Some(reader);
        }
        let (Some(log), number) = (log, stream.number) else { return None };
        let Some(segment) = log.segment(number) else { return Some(stream.reader) };
        match phase {
            Phase::ReadingFooter => {
                let footer = result.is_ok().then_some(&buffer[..SEGMENT_FOOTER_BYTES]);
                let index =
                    footer.and_then(|footer| SparseIndex::read_footer(footer, segment, stream.partition));
                // Without a footer, a search begins at the segment's start.
                stream.locate(segment, index.unwrap_or_default());
            }
            Phase::Reading { from, bytes } => {
                if let Err(error) = result {
                    stream.on_read_error(error, bytes);
                } else {
                    stream.on_window(buffer, from, bytes, log, segment, pool);
                }
            }
            Phase::Idle => unreachable!("a read was in flight"),
        }
        Some(stream.reader)
    }
}

impl Stream {
    /// The position to read at lies in this segment.
    fn enter(&mut self, segment: &Segment, position: Position) {
        self.next = position;
        if self.number != segment.number {
            self.number = segment.number;
            self.index = None;
            self.expected = segment.base_offset;
            self.needed = PAGE_BYTES;
            self.is_careful = false;
        }
    }

    fn wants_index(&self) -> bool {
        !self.is_located || self.is_damaged
    }

    fn locate(&mut self, segment: &Segment, index: SparseIndex) {
        if !self.is_located {
            (self.next, self.expected) = segment.look_up(&index, self.goal);
            self.is_located = true;
        }
        self.index = Some(index);
    }

    fn set_damage(&mut self, segment: &Segment) {
        let index = self.index.as_ref().unwrap_or(&segment.index);
        let (_, next) = segment.look_behind(index, self.next);
        self.damage = Some(Damage { first: self.expected, next: next.max(self.expected.plus(1)) });
    }

    /// A shorter read may spare what cannot be read.
    fn on_read_error(&mut self, error: IoError, bytes: usize) {
        // No descriptor or no memory for now says nothing about the data: the reader asks again.
        if TRANSIENT_ERRORS.contains(&error) {
            return;
        }
        let least = (self.next.in_page() + self.needed).next_multiple_of(PAGE_BYTES);
        self.is_damaged = bytes <= least;
        self.is_careful = true;
    }

    fn on_window(
        &mut self,
        buffer: Buffer,
        from: Position,
        bytes: usize,
        log: &Log,
        segment: &Segment,
        pool: &Pool,
    ) {
        self.windows_read += 1;
        let start = (self.next.0 - from.0) as usize;
        let end = bytes.min((segment.end.0 - from.0) as usize);
        let checked = check_stored(&buffer[start..end], self.expects(segment));
        if segment.state == SegmentState::Sealed && checked.next_offset > segment.end_offset {
            // Good, and from elsewhere: where offsets have gaps, only the segment's end tells.
            self.is_damaged = true;
            return;
        }
        let rest_at = start + checked.bytes;
        let window = buffer.freeze(0..end);
        self.keep(window.slice(start..rest_at), checked.next_offset);
        match checked.end {
            CheckEnd::Complete => self.needed = PAGE_BYTES,
            CheckEnd::Damaged => self.is_damaged = true,
            CheckEnd::NeedsBytes(needed) => {
                self.needed = needed;
                let is_at_end = from.plus(end as u64) >= log.written().min(segment.end);
                if is_at_end {
                    self.take_from_memory(log, pool, segment, &window[rest_at..]);
                }
            }
        }
    }

    /// Goes on with what is in memory before the tail's first batch: `on_disk` is the part of a batch at `next` that
    /// is on disk. `false` when there is no memory to join the two.
    fn take_from_memory(&mut self, log: &Log, pool: &Pool, segment: &Segment, on_disk: &[u8]) -> bool {
        let at = self.next.plus(on_disk.len() as u64);
        let (base, bytes) = log.tail.before_first_batch().unwrap_or((log.tail.start(), &[]));
        let end = base.plus(bytes.len() as u64);
        if at < base || end <= at {
            // More was written meanwhile; or else what is there ends amid a batch.
            let is_all = segment.state == SegmentState::Sealed || log.tail.start() <= at;
            self.is_damaged |= is_all && !on_disk.is_empty();
            return true;
        }
        let in_memory = &bytes[(at.0 - base.0) as usize..];
        let Some(mut joined) = pool.buffer((on_disk.len() + in_memory.len()).max(PAGE_BYTES)) else {
            return false;
        };
        let length = on_disk.len() + in_memory.len();
        joined[..on_disk.len()].copy_from_slice(on_disk);
        joined[on_disk.len()..length].copy_from_slice(in_memory);
        let checked = check_stored(&joined[..length], self.expects(segment));
        self.is_damaged |= checked.end != CheckEnd::Complete;
        self.needed = PAGE_BYTES;
        let whole = joined.freeze(0..checked.bytes);
        self.keep(whole, checked.next_offset);
        true
    }

    fn expects(&self, segment: &Segment) -> Expected {
        Expected { partition: self.partition, offset: self.expected, has_gaps: segment.is_compacted }
    }

    /// Keeps checked batches for the reader, without those before its goal.
    fn keep(&mut self, batches: Slice, next_offset: Offset) {
        let at = self.next;
        self.next = at.plus(batches.len() as u64);
        self.expected = next_offset;
        let skipped = skip_to(&batches, self.goal);
        if skipped < batches.len() && self.reader != Reader::Scrub {
            let bytes = batches.slice(skipped..batches.len());
            self.windows.push_back(Window { bytes, at: at.plus(skipped as u64) });
        }
    }
}

/// Bytes of batches at the front that are before the goal.
fn skip_to(batches: &[u8], goal: Target) -> usize {
    let mut at = 0;
    while at < batches.len() {
        let header = BatchHeader::peek(&batches[at..]).expect("the batches were checked");
        let is_before = match goal {
            Target::Offset(offset) => header.next_offset() <= offset,
            Target::Time(time) => header.appended_ms.get() < time,
        };
        if !is_before {
            break;
        }
        at += header.batch_bytes();
    }
    at
}
