//! Compaction by key: sealed segments are rewritten as one, without the records that later ones supersede.
//!
//! ```text
//! the segments to take keys from -> keys: the last offset of each, for this job and those that follow it
//! the sources, once              -> what is left, and how long that is; nothing is written if there is nothing to gain
//! the sources, once more         -> their successor: header page, batches, the last page, footer
//! ```
//!
//! Of the records with one key the last stays; one without a value goes too once it is old (`TOMBSTONE_KEEP_MS`), since
//! whoever asks for the job sees to it that what it deletes is gone by then. Records without a key stay. Every offset
//! stays what it was. A batch that keeps all is copied as it came, one that keeps some becomes a sparse one. It does no
//! I/O by itself. Invariant: every batch is checked before anything of it is believed; at the first bad one all ends.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;

use protocol::batch::{
    BATCH_HEADER_BYTES, Batch, BatchError, BatchHeader, BrokerFields, Inflater, RecordView, Records,
    SparseBuilder,
};
use protocol::ids::{Handle, Offset};
use reactor::memory::{Buffer, Pool};
use zerocopy::FromBytes;

use super::{
    CheckEnd, Expected, Position, Segment, SegmentHeader, SegmentNumber, SegmentState, check_stored,
};
use crate::io::{
    CompactError, CompactJob, CompactSource, Compacted, FILE_HEADER_BYTES, File, IoError, Rewritten,
};
use crate::limits::{
    COMPACT_IO_BYTES, COMPACT_KEYS_MAX, PAGE_BYTES, SEGMENT_FOOTER_BYTES, SEGMENT_HEADER_BYTES,
    TOMBSTONE_KEEP_MS,
};

/// Address space of one job, of which it uses some MiB: 1 MiB to write, 2 MiB to read, or for a batch that is longer than
/// that, while it moves from a buffer to the next larger one, twice its length.
const SCRATCH_BYTES: usize = 96 << 20;

/// What outlives a job: the keys that serve all jobs of a round.
#[derive(Debug)]
pub struct Workspace {
    keys_max: usize,
    keys: Option<Keys>,
}

impl Default for Workspace {
    fn default() -> Self {
        Self::new(COMPACT_KEYS_MAX)
    }
}

impl Workspace {
    /// One that keeps at most so many keys.
    #[must_use]
    pub fn new(keys_max: usize) -> Self {
        Self { keys_max, keys: None }
    }
}

/// Carries a job out. `read` fills the whole slice from a place of a file; `write` puts bytes at a place of the successor,
/// from its start to its end without a gap. Places, lengths and addresses are multiples of 4 KiB.
///
/// # Errors
/// See `CompactError`. The successor may have been begun then, and is worth nothing.
pub fn run<R, W>(
    job: &CompactJob,
    workspace: &mut Workspace,
    read: R,
    write: W,
) -> Result<Compacted, CompactError>
where
    R: FnMut(File, u64, &mut [u8]) -> Result<(), IoError>,
    W: FnMut(u64, &[u8]) -> Result<(), IoError>,
{
    let pool = Pool::new(SCRATCH_BYTES).map_err(|_| CompactError::Memory)?;
    let mut scan = Scan::new(&pool, job, read)?;
    let known = workspace.keys.take().filter(|keys| keys.are_those_of(job));
    let keys = match known {
        Some(keys) => keys,
        None => Keys::gather(job, workspace.keys_max, &mut scan)?,
    };
    let source_count = job.sources.iter().take_while(|source| source.end_offset <= keys.to).count();
    let sources = &job.sources[..source_count];
    let (Some(first), Some(last)) = (sources.first(), sources.last()) else {
        return Err(CompactError::TooManyKeys);
    };

    let mut sieve = Sieve::new(job, &keys);
    let mut bytes = 0;
    sift_all(&mut scan, sources, &mut sieve, |batch| {
        bytes += batch.len() as u64;
        Ok(())
    })?;
    let is_clean = source_count == 1 && first.has_gaps && sieve.dropped_count == 0;
    let rewritten = if is_clean {
        None
    } else if bytes == 0 {
        Some(Rewritten { bytes: 0, last_ms: 0 })
    } else if bytes > last.base + last.bytes - first.base {
        return Err(CompactError::NoGain);
    } else {
        let (base_offset, end_offset) = (first.base_offset, last.end_offset);
        let planned = Planned { base_offset, end_offset, base: first.base, bytes };
        let mut successor = Successor::begin(&pool, job, planned, write)?;
        sift_all(&mut scan, sources, &mut sieve, |batch| successor.put(batch))?;
        Some(successor.finish(job.partition)?)
    };
    drop(sieve);
    let compacted = Compacted { source_count, keys_to: keys.to, rewritten };
    // Behind the last group of a round nobody needs them.
    workspace.keys = (last.end_offset < keys.to).then_some(keys);
    Ok(compacted)
}

/// Hands on what is left of each batch of these segments, in order.
fn sift_all<R>(
    scan: &mut Scan<'_, R>,
    sources: &[CompactSource],
    sieve: &mut Sieve<'_>,
    mut put: impl FnMut(&[u8]) -> Result<(), CompactError>,
) -> Result<(), CompactError>
where
    R: FnMut(File, u64, &mut [u8]) -> Result<(), IoError>,
{
    for source in sources {
        scan.begin(*source);
        loop {
            let place = scan.place();
            let Some(batch) = scan.next_batch()? else { break };
            sieve.sift(&batch, place, &mut put)?;
        }
    }
    Ok(())
}

/// The last offset of each key in a range of offsets, of all keys up to `to` and perhaps some behind.
///
/// A key is known by 128 bits: two SipHashes of it, each begun with the directory's random id. Nobody outside knows that
/// id, so nobody can make two keys that collide; by chance two of them do in less than one of 10^26 jobs.
#[derive(Debug)]
struct Keys {
    salt: u128,
    partition: Handle,
    from: Offset,
    to: Offset,
    last: BTreeMap<u128, Offset>,
}

impl Keys {
    /// Takes in the keys of all segments that the job names, or of as many as fit.
    fn gather<R>(job: &CompactJob, keys_max: usize, scan: &mut Scan<'_, R>) -> Result<Self, CompactError>
    where
        R: FnMut(File, u64, &mut [u8]) -> Result<(), IoError>,
    {
        let from = job.keys.first().map_or(Offset(0), |first| first.base_offset);
        let (salt, partition) = (job.directory_id, job.partition);
        let mut keys = Self { salt, partition, from, to: from, last: BTreeMap::new() };
        let mut inflater = Inflater::new();
        for source in &job.keys {
            scan.begin(*source);
            loop {
                let place = scan.place();
                let Some(batch) = scan.next_batch()? else { break };
                let records = batch.inflate(&mut inflater).map_err(|_| place.damaged())?;
                if !keys.take_in(records, keys_max) {
                    return if keys.to > from { Ok(keys) } else { Err(CompactError::TooManyKeys) };
                }
            }
            keys.to = source.end_offset;
        }
        Ok(keys)
    }

    /// Whether gathering would give the same, or less.
    fn are_those_of(&self, job: &CompactJob) -> bool {
        let (first, last) = (job.keys.first(), job.keys.last());
        self.partition == job.partition
            && first.is_some_and(|first| first.base_offset == self.from)
            && last.is_some_and(|last| last.end_offset == self.to)
    }

    /// `false` when there is no room for all of them.
    fn take_in(&mut self, records: Records<'_>, keys_max: usize) -> bool {
        for record in records.filter(|record| !record.key.is_empty()) {
            let hash = self.hash(record.key);
            if self.last.len() >= keys_max && !self.last.contains_key(&hash) {
                return false;
            }
            self.last.insert(hash, record.offset);
        }
        true
    }

    fn hash(&self, key: &[u8]) -> u128 {
        let half = |number: u8| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u128(self.salt);
            hasher.write_u8(number);
            hasher.write(key);
            u128::from(hasher.finish())
        };
        half(0) << 64 | half(1)
    }

    /// Whether a record stays.
    fn keep(&self, record: &RecordView<'_>, is_old: bool) -> bool {
        if record.key.is_empty() {
            return true;
        }
        let is_superseded = self.last.get(&self.hash(record.key)).is_some_and(|last| record.offset < *last);
        let is_old_tombstone = is_old && record.value.is_empty();
        !is_superseded && !is_old_tombstone
    }
}

/// Decides what stays of each batch.
struct Sieve<'a> {
    job: &'a CompactJob,
    keys: &'a Keys,
    inflater: Inflater,
    builder: SparseBuilder,
    /// Of the batch at hand, whether each record stays.
    are_kept: Vec<bool>,
    gathered: Vec<u8>,
    dropped_count: u64,
}

impl<'a> Sieve<'a> {
    fn new(job: &'a CompactJob, keys: &'a Keys) -> Self {
        Self {
            job,
            keys,
            inflater: Inflater::new(),
            builder: SparseBuilder::new(job.batch_bytes_max),
            are_kept: Vec::new(),
            gathered: Vec::new(),
            dropped_count: 0,
        }
    }

    /// Hands on what is left of a batch: all of it as it came, some of it as sparse batches, or nothing.
    fn sift(
        &mut self,
        batch: &Batch<'_>,
        place: Place,
        put: &mut impl FnMut(&[u8]) -> Result<(), CompactError>,
    ) -> Result<(), CompactError> {
        let Self { job, keys, inflater, builder, are_kept, gathered, dropped_count } = self;
        let header = batch.header();
        let is_old = header.appended_ms.get().saturating_add(TOMBSTONE_KEEP_MS) < job.now_ms;
        let records = batch.inflate(inflater).map_err(|_| place.damaged())?;
        are_kept.clear();
        are_kept.extend(records.clone().map(|record| keys.keep(&record, is_old)));
        let kept_count = are_kept.iter().filter(|is_kept| **is_kept).count();
        *dropped_count += (are_kept.len() - kept_count) as u64;
        if kept_count == are_kept.len() {
            return put(batch.bytes());
        }
        if kept_count == 0 {
            return Ok(());
        }
        let (mut base_offset, created_ms) = (header.base_offset(), header.created_ms.get());
        builder.begin(base_offset, created_ms);
        for (record, _) in records.zip(are_kept.iter()).filter(|(_, is_kept)| **is_kept) {
            if builder.push(&record).is_ok() {
                continue;
            }
            // A record that alone fits into no batch came in one that was compressed.
            if builder.is_empty() {
                return Err(CompactError::NoGain);
            }
            gather(builder, base_offset..record.offset, header, job.partition, gathered);
            put(gathered.as_slice())?;
            base_offset = record.offset;
            builder.begin(base_offset, created_ms);
            builder.push(&record).map_err(|_| CompactError::NoGain)?;
        }
        gather(builder, base_offset..header.next_offset(), header, job.partition, gathered);
        put(gathered.as_slice())
    }
}

/// Makes a batch, in `gathered`, of what was collected of its source. It covers these offsets.
fn gather(
    builder: &mut SparseBuilder,
    covered: Range<Offset>,
    source: &BatchHeader,
    partition: Handle,
    gathered: &mut Vec<u8>,
) {
    gathered.clear();
    builder.finish_into(covered.end, gathered);
    let fields = BrokerFields { base_offset: covered.start, ..source.broker_fields() };
    BatchHeader::place(gathered, partition, fields);
}

/// Where a batch begins.
#[derive(Clone, Copy)]
struct Place {
    file: File,
    position: u64,
}

impl Place {
    fn damaged(self) -> CompactError {
        CompactError::Damaged(self.file, self.position)
    }
}

/// Reads the batches of one segment after another, each checked.
struct Scan<'a, R> {
    pool: &'a Pool,
    read: R,
    partition: Handle,
    source: CompactSource,
    /// Offset that the next batch has, or one before it where there are gaps.
    expected: Offset,
    /// Where the next read begins in the file.
    next: u64,
    buffer: Buffer,
    /// What was read and not handed out: `buffer[start..end]`.
    start: usize,
    end: usize,
}

impl<'a, R> Scan<'a, R>
where
    R: FnMut(File, u64, &mut [u8]) -> Result<(), IoError>,
{
    fn new(pool: &'a Pool, job: &CompactJob, read: R) -> Result<Self, CompactError> {
        let buffer = pool.buffer(2 * COMPACT_IO_BYTES).ok_or(CompactError::Memory)?;
        let source = *job.sources.first().ok_or(CompactError::TooManyKeys)?;
        let (expected, next) = (source.base_offset, SEGMENT_HEADER_BYTES);
        Ok(Self { pool, read, partition: job.partition, source, expected, next, buffer, start: 0, end: 0 })
    }

    fn begin(&mut self, source: CompactSource) {
        self.source = source;
        self.expected = source.base_offset;
        self.next = SEGMENT_HEADER_BYTES;
        (self.start, self.end) = (0, 0);
    }

    /// Where the batches end in the file.
    fn data_end(&self) -> u64 {
        SEGMENT_HEADER_BYTES + self.source.bytes
    }

    /// Where the next batch begins.
    fn place(&self) -> Place {
        let read_to = self.next.min(self.data_end());
        Place { file: self.source.file, position: read_to - (self.end - self.start) as u64 }
    }

    /// The next batch; `None` behind the last.
    fn next_batch(&mut self) -> Result<Option<Batch<'_>>, CompactError> {
        let place = self.place();
        let length = loop {
            let there = &self.buffer[self.start..self.end];
            let is_all = self.next >= self.data_end();
            if there.is_empty() && is_all {
                let is_whole = self.source.has_gaps || self.expected == self.source.end_offset;
                return if is_whole { Ok(None) } else { Err(place.damaged()) };
            }
            let needed = match BatchHeader::peek(there) {
                Ok(header) => break header.batch_bytes(),
                Err(BatchError::Truncated) if !is_all => {
                    let header = BatchHeader::ref_from_prefix(there).ok();
                    header.map_or(BATCH_HEADER_BYTES, |(header, _)| header.batch_bytes())
                }
                Err(_) => return Err(place.damaged()),
            };
            self.fill(needed)?;
        };
        let bytes = &self.buffer[self.start..self.start + length];
        let expected =
            Expected { partition: self.partition, offset: self.expected, has_gaps: self.source.has_gaps };
        let checked = check_stored(bytes, expected);
        let is_good = checked.end == CheckEnd::Complete && checked.next_offset <= self.source.end_offset;
        let Some(batch) = Batch::check(bytes).ok().filter(|_| is_good) else { return Err(place.damaged()) };
        self.start += length;
        self.expected = checked.next_offset;
        Ok(Some(batch))
    }

    /// Reads on, so that `needed` bytes are there, or all that there are.
    fn fill(&mut self, needed: usize) -> Result<(), CompactError> {
        let kept = self.end - self.start;
        // What is kept moves to where a page begins behind it: the read goes there.
        let front = kept.next_multiple_of(PAGE_BYTES) - kept;
        let at = front + kept;
        let wanted = needed.saturating_sub(kept).max(COMPACT_IO_BYTES).next_multiple_of(PAGE_BYTES);
        let left = (self.data_end() - self.next).next_multiple_of(PAGE_BYTES as u64);
        let bytes = left.min(wanted as u64) as usize;
        if at + bytes > self.buffer.capacity() {
            let mut larger = self.pool.buffer(at + bytes).ok_or(CompactError::Memory)?;
            larger[front..at].copy_from_slice(&self.buffer[self.start..self.end]);
            self.buffer = larger;
        } else {
            self.buffer.copy_within(self.start..self.end, front);
        }
        let file = self.source.file;
        (self.read)(file, self.next, &mut self.buffer[at..at + bytes])
            .map_err(|error| CompactError::Read(file, error))?;
        self.next += bytes as u64;
        let behind = self.next.saturating_sub(self.data_end()) as usize;
        (self.start, self.end) = (front, at + bytes - behind);
        Ok(())
    }
}

/// The segment that is to be made.
struct Planned {
    base_offset: Offset,
    end_offset: Offset,
    base: u64,
    bytes: u64,
}

/// The segment that is made, through one buffer.
struct Successor<W> {
    write: W,
    buffer: Buffer,
    filled: usize,
    /// Place of the buffer's first byte in the file.
    position: u64,
    segment: Segment,
    planned_bytes: u64,
}

impl<W> Successor<W>
where
    W: FnMut(u64, &[u8]) -> Result<(), IoError>,
{
    fn begin(pool: &Pool, job: &CompactJob, planned: Planned, write: W) -> Result<Self, CompactError> {
        let mut buffer = pool.buffer(COMPACT_IO_BYTES).ok_or(CompactError::Memory)?;
        let number = SegmentNumber(job.number);
        let (directory_id, partition, created_ms) = (job.directory_id, job.partition, job.now_ms);
        let header = SegmentHeader { directory_id, number, partition, created_ms };
        buffer[..PAGE_BYTES].fill(0);
        buffer[..FILE_HEADER_BYTES].copy_from_slice(&header.write()[..]);
        let mut segment = Segment::open(number, planned.base_offset, Position(planned.base), job.now_ms);
        segment.state = SegmentState::Sealed;
        segment.end_offset = planned.end_offset;
        segment.is_compacted = true;
        Ok(Self { write, buffer, filled: PAGE_BYTES, position: 0, segment, planned_bytes: planned.bytes })
    }

    fn put(&mut self, batch: &[u8]) -> Result<(), CompactError> {
        let header = BatchHeader::peek(batch).expect("the batch was checked, or just made");
        let segment = &mut self.segment;
        segment.last_ms = header.appended_ms.get();
        let offset_delta = header.base_offset().0 - segment.base_offset.0;
        segment.index.on_batch(offset_delta, segment.bytes(), segment.last_ms, self.planned_bytes);
        segment.end = segment.end.plus(batch.len() as u64);
        let mut rest = batch;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(self.buffer.capacity() - self.filled));
            self.buffer[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            rest = later;
            if self.filled == self.buffer.capacity() {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes the last page and the footer.
    fn finish(mut self, partition: Handle) -> Result<Rewritten, CompactError> {
        assert_eq!(self.segment.bytes(), self.planned_bytes);
        let page_end = self.filled.next_multiple_of(PAGE_BYTES);
        self.buffer[self.filled..page_end].fill(0);
        self.filled = page_end;
        if self.filled + SEGMENT_FOOTER_BYTES > self.buffer.capacity() {
            self.flush()?;
        }
        assert_eq!(self.position + self.filled as u64, self.segment.footer_position());
        let footer = &mut self.buffer[self.filled..self.filled + SEGMENT_FOOTER_BYTES];
        self.segment.index.write_footer(&self.segment, partition, footer);
        self.filled += SEGMENT_FOOTER_BYTES;
        self.flush()?;
        Ok(Rewritten { bytes: self.planned_bytes, last_ms: self.segment.last_ms })
    }

    fn flush(&mut self) -> Result<(), CompactError> {
        (self.write)(self.position, &self.buffer[..self.filled]).map_err(CompactError::Write)?;
        self.position += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}

/// Segments in memory, for tests here and of whoever carries jobs out.
#[cfg(test)]
pub(crate) mod sample {
    use protocol::batch::{BatchBuilder, Compression, Compressor, Record};
    use protocol::limits::BATCH_BYTES_MAX;

    use super::*;
    use crate::log::{FooterFacts, SparseIndex};

    pub(crate) const PARTITION: Handle = Handle(7 << 32);
    pub(crate) const NOW_MS: u64 = 100 * TOMBSTONE_KEEP_MS;
    /// Number of the successor.
    pub(crate) const SUCCESSOR: u64 = 99;

    /// A key and a value.
    pub(crate) type Pair<'a> = (&'a str, &'a str);
    /// An offset, a key and a value.
    pub(crate) type Left = (u64, String, String);

    /// A partition's log whose segments are sealed.
    #[derive(Default)]
    pub(crate) struct Sample {
        pub(crate) files: BTreeMap<File, Vec<u8>>,
        pub(crate) sources: Vec<CompactSource>,
        next_offset: u64,
        base: u64,
    }

    impl Sample {
        /// Adds a segment of these batches, appended at a time.
        pub(crate) fn add(&mut self, batches: &[&[Pair<'_>]], appended_ms: u64, compression: Compression) {
            let (base_offset, mut data) = (Offset(self.next_offset), Vec::new());
            for pairs in batches {
                let mut batch = batch_of(pairs, compression);
                let fields =
                    BrokerFields { base_offset: Offset(self.next_offset), appended_ms, log_epoch: 3 };
                BatchHeader::place(&mut batch, PARTITION, fields);
                self.next_offset += pairs.len() as u64;
                data.extend_from_slice(&batch);
            }
            let file = File::Segment(self.sources.len() as u64 + 1);
            let (end_offset, bytes) = (Offset(self.next_offset), data.len() as u64);
            let source =
                CompactSource { file, base_offset, end_offset, base: self.base, bytes, has_gaps: false };
            self.sources.push(source);
            self.base += bytes.next_multiple_of(PAGE_BYTES as u64);
            let mut contents = vec![0; SEGMENT_HEADER_BYTES as usize];
            contents.extend_from_slice(&data);
            contents.resize(contents.len().next_multiple_of(PAGE_BYTES) + SEGMENT_FOOTER_BYTES, 0);
            self.files.insert(file, contents);
        }

        /// A job that takes keys from the segments from number `first_keys` on, and rewrites so many from the first on.
        pub(crate) fn job(&self, first_keys: usize, source_count: usize) -> CompactJob {
            CompactJob {
                partition: PARTITION,
                directory_id: 0xD1,
                keys: self.sources[first_keys..].to_vec(),
                sources: self.sources[..source_count].to_vec(),
                number: SUCCESSOR,
                batch_bytes_max: BATCH_BYTES_MAX,
                now_ms: NOW_MS,
            }
        }

        /// Carries a job out; gives what was written, and which files were read, too.
        pub(crate) fn run(
            &self,
            job: &CompactJob,
            workspace: &mut Workspace,
        ) -> (Result<Compacted, CompactError>, Vec<u8>, Vec<File>) {
            let (mut written, mut files) = (Vec::new(), Vec::new());
            let read = |file: File, position: u64, into: &mut [u8]| {
                assert!(position.is_multiple_of(PAGE_BYTES as u64));
                assert!(into.len().is_multiple_of(PAGE_BYTES));
                assert_eq!(into.as_ptr().addr() % PAGE_BYTES, 0);
                let from = position as usize;
                into.copy_from_slice(&self.files[&file][from..from + into.len()]);
                files.push(file);
                Ok(())
            };
            let write = |position: u64, bytes: &[u8]| {
                assert_eq!(position, written.len() as u64);
                assert!(bytes.len().is_multiple_of(PAGE_BYTES));
                assert_eq!(bytes.as_ptr().addr() % PAGE_BYTES, 0);
                written.extend_from_slice(bytes);
                Ok(())
            };
            let result = run(job, workspace, read, write);
            files.dedup();
            (result, written, files)
        }
    }

    pub(crate) fn batch_of(pairs: &[Pair<'_>], compression: Compression) -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        for (key, value) in pairs {
            let record = Record { key: key.as_bytes(), value: value.as_bytes(), ..Record::default() };
            builder.push(&record).unwrap();
        }
        let mut bytes = Vec::new();
        builder.finish_compressed_into(&mut Compressor::new(compression), &mut bytes);
        bytes
    }

    /// What a successor's file holds, after a check of all of it.
    pub(crate) fn left_in(written: &[u8], job: &CompactJob, compacted: &Compacted) -> Vec<Left> {
        let rewritten = compacted.rewritten.unwrap();
        let (first, last) = (job.sources[0], job.sources[compacted.source_count - 1]);
        let header = SegmentHeader::read(written).unwrap();
        assert_eq!((header.number, header.partition), (SegmentNumber(SUCCESSOR), PARTITION));
        let mut segment = Segment::open(header.number, first.base_offset, Position(first.base), 0);
        segment.end = segment.end.plus(rewritten.bytes);
        assert_eq!(written.len() as u64, segment.sealed_file_bytes());
        let footer = &written[segment.footer_position() as usize..];
        let facts = FooterFacts::read(footer).unwrap();
        assert_eq!((facts.base_offset, facts.end_offset), (first.base_offset, last.end_offset));
        assert!(SparseIndex::read_footer(footer, &segment, PARTITION).is_some());
        let mut rest = &written[SEGMENT_HEADER_BYTES as usize..][..rewritten.bytes as usize];
        let expected = Expected { partition: PARTITION, offset: first.base_offset, has_gaps: true };
        assert_eq!(check_stored(rest, expected).end, CheckEnd::Complete);
        let (mut left, mut inflater) = (Vec::new(), Inflater::new());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        while !rest.is_empty() {
            let batch = Batch::check(rest).unwrap();
            let records = batch.inflate(&mut inflater).unwrap();
            left.extend(records.map(|record| (record.offset.0, text(record.key), text(record.value))));
            rest = &rest[batch.bytes().len()..];
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use protocol::batch::Compression::{Lz4, None as Plain, Zstd};

    use super::sample::{Left, NOW_MS, Pair, Sample, batch_of, left_in};
    use super::*;

    /// Runs a job that must leave something; gives that.
    fn left_by(sample: &Sample, job: &CompactJob) -> Vec<Left> {
        let (result, written, _) = sample.run(job, &mut Workspace::default());
        left_in(&written, job, &result.unwrap())
    }

    fn left(expected: &[(u64, &str, &str)]) -> Vec<Left> {
        expected
            .iter()
            .map(|(offset, key, value)| (*offset, (*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    /// Offsets 0 to 2 in one segment, 3 to 5 in the next.
    fn two_segments() -> Sample {
        let mut sample = Sample::default();
        sample.add(&[&[("a", "1"), ("b", "1")], &[("a", "2")]], NOW_MS, Plain);
        sample.add(&[&[("c", "1"), ("b", "2"), ("a", "3")]], NOW_MS, Plain);
        sample
    }

    #[test]
    fn the_last_value_of_each_key_stays_at_its_offset() {
        let sample = two_segments();
        let expected = left(&[(3, "c", "1"), (4, "b", "2"), (5, "a", "3")]);
        assert_eq!(left_by(&sample, &sample.job(0, 2)), expected);
    }

    #[test]
    fn later_segments_supersede_what_is_rewritten_before_them() {
        let mut sample = Sample::default();
        sample.add(&[&[("a", "1"), ("b", "1"), ("d", "1")], &[("e", "1")]], NOW_MS, Plain);
        sample.add(&[&[("b", "2")]], NOW_MS, Plain);
        let job = sample.job(1, 1);
        let (result, written, _) = sample.run(&job, &mut Workspace::default());
        let compacted = result.unwrap();
        assert_eq!(compacted.keys_to, Offset(5));
        assert_eq!(left_in(&written, &job, &compacted), left(&[(0, "a", "1"), (2, "d", "1"), (3, "e", "1")]));
        // A batch that has lost some covers its offsets all the same; one that has lost none is as it came.
        let batches = &written[SEGMENT_HEADER_BYTES as usize..];
        let sparse = Batch::check(batches).unwrap();
        assert_eq!((sparse.header().base_offset(), sparse.header().next_offset()), (Offset(0), Offset(3)));
        let rest = &batches[sparse.bytes().len()..];
        let whole = &sample.files[&File::Segment(1)];
        assert!(whole.windows(160).any(|window| window == &rest[..160]));
    }

    #[test]
    fn records_without_a_key_stay() {
        let mut sample = Sample::default();
        sample.add(&[&[("", "1"), ("a", "1"), ("", "")], &[("", "1")]], 0, Plain);
        sample.add(&[&[("a", "2"), ("", "3")]], 0, Plain);
        let expected = left(&[(0, "", "1"), (2, "", ""), (3, "", "1"), (4, "a", "2"), (5, "", "3")]);
        assert_eq!(left_by(&sample, &sample.job(0, 2)), expected);
    }

    #[test]
    fn a_tombstone_deletes_and_goes_when_it_is_old() {
        let of_age = |appended_ms: u64| {
            let mut sample = Sample::default();
            let batches: [&[Pair<'_>]; 2] = [&[("a", "1"), ("b", "1")], &[("a", "")]];
            sample.add(&batches, appended_ms, Plain);
            left_by(&sample, &sample.job(0, 1))
        };
        assert_eq!(of_age(NOW_MS - TOMBSTONE_KEEP_MS), left(&[(1, "b", "1"), (2, "a", "")]));
        assert_eq!(of_age(NOW_MS - TOMBSTONE_KEEP_MS - 1), left(&[(1, "b", "1")]));
    }

    #[test]
    fn what_was_compressed_is_thinned_out_and_what_is_whole_stays_compressed() {
        let long = "long ".repeat(200);
        let long = long.as_str();
        for compression in [Lz4, Zstd] {
            let mut sample = Sample::default();
            sample.add(&[&[("a", long), ("b", "1")], &[("c", long), ("d", long)]], NOW_MS, compression);
            sample.add(&[&[("a", "2"), ("b", "2")], &[("c", "2"), ("b", "3")]], NOW_MS, compression);
            let expected = left(&[(3, "d", long), (4, "a", "2"), (6, "c", "2"), (7, "b", "3")]);
            assert_eq!(left_by(&sample, &sample.job(0, 2)), expected);
        }
        let mut sample = Sample::default();
        sample.add(&[&[("a", "1"), ("b", "1")], &[("c", long), ("d", long)]], NOW_MS, Lz4);
        sample.add(&[&[("a", "2"), ("b", "2")]], NOW_MS, Lz4);
        let (result, written, _) = sample.run(&sample.job(0, 2), &mut Workspace::default());
        assert!(result.is_ok());
        let whole = batch_of(&[("c", long), ("d", long)], Lz4);
        let first = Batch::check(&written[SEGMENT_HEADER_BYTES as usize..]).unwrap();
        assert_eq!(first.bytes()[..80], whole[..80]);
        assert_eq!(first.bytes()[128..], whole[128..]);
    }

    #[test]
    fn nothing_is_written_when_it_would_be_longer() {
        let long = "x".repeat(200_000);
        let long = long.as_str();
        let mut sample = Sample::default();
        sample.add(&[&[("a", long), ("b", long)]], NOW_MS, Lz4);
        sample.add(&[&[("b", "2")]], NOW_MS, Plain);
        let (result, written, _) = sample.run(&sample.job(0, 1), &mut Workspace::default());
        assert_eq!((result, written.len()), (Err(CompactError::NoGain), 0));
    }

    #[test]
    fn damage_ends_it_before_anything_is_written() {
        let clean = two_segments();
        for (number, source) in clean.sources.iter().enumerate() {
            for at in (0..source.bytes as usize).step_by(3) {
                let mut sample = two_segments();
                let contents = sample.files.get_mut(&source.file).unwrap();
                contents[SEGMENT_HEADER_BYTES as usize + at] ^= 0x20;
                let (result, written, _) = sample.run(&sample.job(1, 2), &mut Workspace::default());
                assert!(
                    matches!(result, Err(CompactError::Damaged(file, _)) if file == source.file),
                    "segment {number}, byte {at}: {result:?}"
                );
                assert!(written.is_empty());
            }
        }
    }

    #[test]
    fn too_many_keys_shorten_the_range_and_one_segment_must_fit() {
        let mut sample = two_segments();
        sample.add(&[&[("d", "1"), ("e", "1")]], NOW_MS, Plain);
        let job = sample.job(0, 3);
        let (result, written, _) = sample.run(&job, &mut Workspace::new(3));
        let compacted = result.unwrap();
        assert_eq!((compacted.source_count, compacted.keys_to), (2, Offset(6)));
        let expected = left(&[(3, "c", "1"), (4, "b", "2"), (5, "a", "3")]);
        assert_eq!(left_in(&written, &job, &compacted), expected);
        let (result, written, _) = sample.run(&sample.job(1, 1), &mut Workspace::new(2));
        assert_eq!((result, written.len()), (Err(CompactError::TooManyKeys), 0));
    }

    #[test]
    fn a_clean_segment_that_loses_nothing_stays() {
        let mut sample = Sample::default();
        sample.add(&[&[("a", "1"), ("b", "1")]], NOW_MS, Plain);
        sample.add(&[&[("c", "1")]], NOW_MS, Plain);
        sample.sources[0].has_gaps = true;
        let (result, written, _) = sample.run(&sample.job(1, 1), &mut Workspace::default());
        assert_eq!((result.unwrap().rewritten, written.len()), (None, 0));
        sample.sources[0].has_gaps = false;
        let (result, _, _) = sample.run(&sample.job(1, 1), &mut Workspace::default());
        assert!(result.unwrap().rewritten.is_some(), "it is clean from now on, and says so");
    }

    #[test]
    fn nothing_is_made_when_nothing_is_left() {
        let mut sample = Sample::default();
        sample.add(&[&[("a", "1")], &[("a", "2")]], NOW_MS, Plain);
        sample.add(&[&[("a", "3")]], NOW_MS, Plain);
        let (result, written, _) = sample.run(&sample.job(1, 1), &mut Workspace::default());
        assert_eq!(result.unwrap().rewritten.map(|rewritten| rewritten.bytes), Some(0));
        assert!(written.is_empty());
    }

    #[test]
    fn what_fits_into_no_batch_is_split() {
        let values: Vec<String> = (0..12).map(|n| format!("{n} ").repeat(100)).collect();
        let keys: Vec<String> = (0..12).map(|n| format!("key {n}")).collect();
        let pairs: Vec<Pair<'_>> = keys.iter().zip(&values).map(|(key, value)| (&**key, &**value)).collect();
        let mut sample = Sample::default();
        sample.add(&[&pairs], NOW_MS, Plain);
        sample.add(&[&[("key 3", "new")]], NOW_MS, Plain);
        let job = CompactJob { batch_bytes_max: 1_024, ..sample.job(1, 2) };
        let (result, written, _) = sample.run(&job, &mut Workspace::default());
        let compacted = result.unwrap();
        let offsets: Vec<u64> =
            left_in(&written, &job, &compacted).iter().map(|(offset, ..)| *offset).collect();
        assert_eq!(offsets, [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        let bytes = compacted.rewritten.unwrap().bytes as usize;
        let mut rest = &written[SEGMENT_HEADER_BYTES as usize..][..bytes];
        let mut batch_count = 0;
        while !rest.is_empty() {
            let length = BatchHeader::peek(rest).unwrap().batch_bytes();
            assert!(length <= 1_024);
            rest = &rest[length..];
            batch_count += 1;
        }
        assert!(batch_count >= 5, "{batch_count}");
    }

    #[test]
    fn keys_are_taken_in_once_for_all_jobs_of_a_round() {
        let mut sample = two_segments();
        sample.add(&[&[("b", "3")]], NOW_MS, Plain);
        let (mut workspace, first, keys) = (Workspace::default(), sample.job(2, 1), File::Segment(3));
        let (result, _, files) = sample.run(&first, &mut workspace);
        assert!(result.is_ok() && files.contains(&keys));
        let second = CompactJob { sources: vec![sample.sources[1]], ..sample.job(2, 1) };
        let (result, written, files) = sample.run(&second, &mut workspace);
        assert!(!files.contains(&keys));
        assert_eq!(left_in(&written, &second, &result.unwrap()), left(&[(3, "c", "1"), (5, "a", "3")]));
        let third = CompactJob { sources: vec![sample.sources[2]], ..sample.job(2, 1) };
        let (result, _, _) = sample.run(&third, &mut workspace);
        assert!(result.is_ok() && workspace.keys.is_none(), "the round has ended");
    }

    #[test]
    fn batches_longer_than_a_read_are_read() {
        let long = "y".repeat(5 << 20);
        let long = long.as_str();
        let mut sample = Sample::default();
        for round in ["1", "2"] {
            sample.add(&[&[("a", round)], &[("b", long), ("", round)], &[("c", round)]], NOW_MS, Plain);
        }
        let left = left_by(&sample, &sample.job(0, 2));
        let offsets: Vec<u64> = left.iter().map(|(offset, ..)| *offset).collect();
        assert_eq!(offsets, [2, 4, 5, 6, 7]);
        assert_eq!(left[2].2, long);
    }
}
