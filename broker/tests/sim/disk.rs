//! A hostile disk: operations complete after random times and out of order, a flush covers only what had completed
//! when it was issued, and at a crash everything else is at the mercy of chance.
//!
//! A power cut and the end of the process are different things: a killed process leaves its completed writes in the
//! device's cache, where the next process reads them, and a later power cut may still take them away. What a shard
//! may never ask for (bytes behind a file's end, a file that it has removed) panics: that is its bug, and no fault.

#[path = "disk_contract.rs"]
mod contract;
#[path = "disk_crash.rs"]
mod crash;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use broker::io::{
    CompactError, CompactJob, Compacted, Completion, File, FileHeader, IoError, Op, Sync, Token,
};
use broker::log::compact::{self, Workspace};
use rand::RngExt;
use reactor::memory::{Buffer, Slice};

use crate::image::Image;
use crate::luck::Luck;
use crate::report::Kind;
use crate::rot::{self, Damage, is_segment, is_snapshot};

const WRITE_NS: Range<u64> = 20_000..250_000;
const FLUSH_NS: Range<u64> = 60_000..400_000;
const SYNC_ALL_NS: Range<u64> = 200_000..2_000_000;
const READ_NS: Range<u64> = 10_000..100_000;
const PREPARE_NS: Range<u64> = 1_000_000..8_000_000;
const ALLOCATE_NS: Range<u64> = 300_000..4_000_000;
const REMOVE_NS: Range<u64> = 100_000..2_000_000;
const COMPACT_NS: Range<u64> = 5_000_000..150_000_000;
/// A slow operation takes so many times longer.
const SLOW_FACTOR: u64 = 60;
/// How long a stuck operation takes: long, but less than what any peer waits.
const STUCK_NS: Range<u64> = 200_000_000..1_500_000_000;
const EIO: IoError = IoError(5);

/// How often things go wrong: once in so many operations, 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DiskFaults {
    pub(crate) write_error_one_in: u32,
    /// A part of the data is there, and the completion says that it ended short.
    pub(crate) short_write_one_in: u32,
    pub(crate) flush_error_one_in: u32,
    /// Reads of segments that fail.
    pub(crate) segment_read_error_one_in: u32,
    /// Reads of everything else that fail: recovery's, mostly.
    pub(crate) other_read_error_one_in: u32,
    pub(crate) no_space_one_in: u32,
    pub(crate) slow_one_in: u32,
    pub(crate) stuck_one_in: u32,
    /// Writes to segments and snapshots that land elsewhere, and are said to be well.
    pub(crate) misdirect_one_in: u32,
    /// Operations of any kind at whose time a durable bit rots somewhere.
    pub(crate) rot_one_in: u32,
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteFate {
    Good,
    Fails,
    EndsShort,
    Misdirected,
}

#[derive(Debug)]
struct Writing {
    token: Token,
    file: File,
    position: usize,
    data: Slice,
    sync: Sync,
    issued: u64,
    fate: WriteFate,
}

#[derive(Debug)]
enum InFlight {
    Write(Writing),
    Read { token: Token, file: File, position: usize, buffer: Buffer, bytes: usize, fails: bool },
    Flush { token: Token, file: File, covered: u64, fails: bool },
    SyncAll { token: Token, covered: u64, fails: bool },
    Prepare { file: File, bytes: usize, fails: bool },
    Allocate { file: File, bytes: usize, header: Option<Box<FileHeader>>, fails: bool },
    Remove { file: File },
    Compact { token: Token, job: Box<CompactJob>, fails: bool },
}

impl InFlight {
    /// The file and the bytes of it that are read or written.
    fn range(&self) -> Option<(File, Range<usize>)> {
        match self {
            Self::Write(write) => Some((write.file, write.position..write.position + write.data.len())),
            Self::Read { file, position, bytes, .. } => Some((*file, *position..*position + *bytes)),
            Self::Flush { .. }
            | Self::SyncAll { .. }
            | Self::Prepare { .. }
            | Self::Allocate { .. }
            | Self::Remove { .. }
            | Self::Compact { .. } => None,
        }
    }

    /// The file that is made or made longer.
    fn makes(&self) -> Option<File> {
        match self {
            Self::Prepare { file, .. } | Self::Allocate { file, .. } => Some(*file),
            _ => None,
        }
    }
}

/// The files of one data directory, and what is on its way to them.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    files: BTreeMap<File, Image>,
    /// By the time of completion, and a number.
    in_flight: BTreeMap<(u64, u64), InFlight>,
    issued: u64,
    completed: u64,
    /// Files whose removal was asked for.
    leaving: BTreeSet<File>,
    /// Segments that were ever written to: their numbers are used up.
    written_segments: BTreeSet<File>,
    /// Bytes of all files together; `None` for no bound.
    capacity_bytes: Option<u64>,
    damage: Vec<Damage>,
    /// Of the thread that compacts.
    workspace: Workspace,
    /// What goes wrong.
    pub(crate) faults: DiskFaults,
    /// Operations that were failed on purpose, or for lack of space; reads of segments apart.
    pub(crate) errors: u64,
    /// Reads of segments that were failed on purpose.
    pub(crate) segment_read_errors: u64,
}

impl Disk {
    /// The files that are there, with their lengths.
    pub(crate) fn files(&self) -> BTreeMap<File, u64> {
        self.files.iter().map(|(file, image)| (*file, image.bytes() as u64)).collect()
    }

    /// Length of all files together.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.files.values().map(|image| image.bytes() as u64).sum()
    }

    /// Operations asked for so far.
    pub(crate) fn issued(&self) -> u64 {
        self.issued
    }

    /// Gives the disk another size; `None` heals one that is full.
    pub(crate) fn set_capacity(&mut self, bytes: Option<u64>) {
        self.capacity_bytes = bytes;
    }

    pub(crate) fn contains(&self, file: File) -> bool {
        self.files.contains_key(&file)
    }

    /// The durable bytes of a file.
    pub(crate) fn durable(&self, file: File) -> &[u8] {
        self.files[&file].durable()
    }

    /// A bit rots.
    pub(crate) fn flip_bit(&mut self, file: File, position: usize, bit: u8) {
        self.files.get_mut(&file).expect("the file is there").flip_bit(position, bit);
        self.damage.push(Damage { file, position, bytes: 1 });
    }

    /// The write that made these bytes has landed elsewhere in the file, long ago.
    pub(crate) fn misplace(&mut self, file: File, from: usize, to: usize, bytes: usize) {
        self.files.get_mut(&file).expect("the file is there").misplace(from, to, bytes);
        self.damage.push(Damage { file, position: from, bytes });
        self.damage.push(Damage { file, position: to, bytes });
    }

    /// A bit rots that chance chooses, if there is one that may.
    pub(crate) fn rot(&mut self, luck: &mut Luck) {
        let Some((file, position)) = rot::place_to_rot(&self.files, luck) else { return };
        let bit = luck.faults.random_range(0..8);
        self.flip_bit(file, position, bit);
        luck.count(Kind::BitRot);
    }

    /// Everything that was damaged without a word, whatever became of it since.
    pub(crate) fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// When the next operation completes.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.in_flight.keys().next().map(|(at_ns, _)| *at_ns)
    }

    /// Takes an operation on a file.
    pub(crate) fn submit(&mut self, op: Op, luck: &mut Luck) {
        self.check(&op);
        if luck.breaks(self.faults.rot_one_in) {
            self.rot(luck);
        }
        self.issued += 1;
        let Some((in_flight, takes_ns)) = self.begin(op, luck) else { return };
        let mut delay_ns = luck.delay_ns(takes_ns);
        if luck.breaks(self.faults.slow_one_in) {
            luck.count(Kind::SlowOperation);
            delay_ns *= SLOW_FACTOR;
        }
        if luck.breaks(self.faults.stuck_one_in) {
            luck.count(Kind::StuckOperation);
            delay_ns += luck.delay_ns(STUCK_NS);
        }
        self.in_flight.insert((luck.now_ns + delay_ns, self.issued), in_flight);
    }

    /// What becomes of an operation, and how long that takes; nothing for what happens at once.
    fn begin(&mut self, op: Op, luck: &mut Luck) -> Option<(InFlight, Range<u64>)> {
        let faults = self.faults;
        let (issued, covered) = (self.issued, self.completed);
        let begun = match op {
            Op::Write { token, file, position, data, sync } => {
                if is_segment(file) {
                    self.written_segments.insert(file);
                }
                let fate = self.fate_of_write(file, luck);
                let position = position as usize;
                (InFlight::Write(Writing { token, file, position, data, sync, issued, fate }), WRITE_NS)
            }
            Op::Read { token, file, position, buffer, bytes } => {
                let one_in = if is_segment(file) {
                    faults.segment_read_error_one_in
                } else {
                    faults.other_read_error_one_in
                };
                let fails = luck.breaks(one_in);
                let position = position as usize;
                (InFlight::Read { token, file, position, buffer, bytes, fails }, READ_NS)
            }
            Op::Flush { token, file } => {
                let fails = luck.breaks(faults.flush_error_one_in);
                (InFlight::Flush { token, file, covered, fails }, FLUSH_NS)
            }
            Op::SyncAll { token } => {
                let fails = luck.breaks(faults.flush_error_one_in);
                (InFlight::SyncAll { token, covered, fails }, SYNC_ALL_NS)
            }
            Op::PrepareFile { file, bytes } => {
                let fails = luck.breaks(faults.no_space_one_in);
                (InFlight::Prepare { file, bytes: bytes as usize, fails }, PREPARE_NS)
            }
            Op::Allocate { file, bytes, header } => {
                let fails = luck.breaks(faults.no_space_one_in);
                (InFlight::Allocate { file, bytes: bytes as usize, header, fails }, ALLOCATE_NS)
            }
            Op::Compact { token, job } => {
                let fails = luck.breaks(faults.segment_read_error_one_in);
                (InFlight::Compact { token, job, fails }, COMPACT_NS)
            }
            Op::Remove { file } => {
                self.leaving.insert(file);
                (InFlight::Remove { file }, REMOVE_NS)
            }
            Op::Shrink { file, bytes } => {
                self.files.get_mut(&file).expect("it was checked").shrink(bytes as usize);
                return None;
            }
            Op::Receive { .. } | Op::Send { .. } | Op::Close { .. } => {
                unreachable!("the network's operations go to the network")
            }
        };
        Some(begun)
    }

    fn fate_of_write(&self, file: File, luck: &mut Luck) -> WriteFate {
        let can_be_misdirected = is_segment(file) || is_snapshot(file);
        if luck.breaks(self.faults.write_error_one_in) {
            WriteFate::Fails
        } else if luck.breaks(self.faults.short_write_one_in) {
            WriteFate::EndsShort
        } else if can_be_misdirected && luck.breaks(self.faults.misdirect_one_in) {
            WriteFate::Misdirected
        } else {
            WriteFate::Good
        }
    }

    /// What has completed by now.
    pub(crate) fn complete_due(&mut self, luck: &mut Luck) -> Vec<Completion> {
        let mut done = Vec::new();
        while let Some(in_flight) = self.next_due(luck.now_ns) {
            done.push(self.complete(in_flight, luck));
        }
        done
    }

    fn next_due(&mut self, now_ns: u64) -> Option<InFlight> {
        let first = self.in_flight.first_entry().filter(|first| first.key().0 <= now_ns)?;
        Some(first.remove())
    }

    fn complete(&mut self, in_flight: InFlight, luck: &mut Luck) -> Completion {
        match in_flight {
            InFlight::Write(write) => self.complete_write(write, luck),
            InFlight::Read { token, file, position, mut buffer, bytes, fails } => {
                if fails {
                    return self.fail_read(token, file, buffer, luck);
                }
                let image = self.files.get(&file).expect("a file that is read is not removed");
                image.read(position, &mut buffer[..bytes]);
                Completion::ReadDone { token, buffer, result: Ok(()) }
            }
            InFlight::Flush { token, file, covered, fails } => {
                // A file that was removed meanwhile has nothing to be flushed.
                let images = self.files.get_mut(&file).into_iter().collect();
                let result = finish_flush(images, covered, fails, luck);
                self.errors += u64::from(fails);
                Completion::Flushed { token, result }
            }
            InFlight::SyncAll { token, covered, fails } => {
                let result = finish_flush(self.files.values_mut().collect(), covered, fails, luck);
                self.errors += u64::from(fails);
                Completion::AllSynced { token, result }
            }
            InFlight::Prepare { file, bytes, fails } => {
                let result = self.allocate(file, bytes, None, fails);
                self.note_no_space(result, luck);
                Completion::FilePrepared { file, result }
            }
            InFlight::Allocate { file, bytes, header, fails } => {
                let result = self.allocate(file, bytes, header.as_deref(), fails);
                self.note_no_space(result, luck);
                Completion::Allocated { file, bytes: bytes as u64, result }
            }
            InFlight::Compact { token, job, fails } => {
                let result = Box::new(self.compact(&job, fails));
                Completion::Compacted { token, result }
            }
            InFlight::Remove { file } => {
                self.remove(file);
                Completion::Removed { file, result: Ok(()) }
            }
        }
    }

    fn complete_write(&mut self, write: Writing, luck: &mut Luck) -> Completion {
        let Writing { token, file, position, data, sync, issued, fate } = write;
        if self.is_overtaken(issued) {
            luck.count(Kind::CompletedOutOfOrder);
        }
        self.completed += 1;
        let completed = self.completed;
        if fate == WriteFate::Misdirected {
            self.misdirect(file, position, &data, luck);
            return Completion::Written { token, result: Ok(()) };
        }
        self.errors += u64::from(fate != WriteFate::Good);
        // A file may be removed while it is written: nobody will ask for what was in it.
        let Some(image) = self.files.get_mut(&file) else {
            return Completion::Written { token, result: Ok(()) };
        };
        let result = match fate {
            WriteFate::Fails => {
                luck.count(Kind::WriteError);
                image.write_badly(completed, position, &data, luck);
                Err(EIO)
            }
            WriteFate::EndsShort => {
                luck.count(Kind::ShortWrite);
                image.write_short(completed, position, &data, luck);
                Err(IoError::SHORT)
            }
            WriteFate::Good | WriteFate::Misdirected => {
                put(image, completed, position, &data, sync);
                Ok(())
            }
        };
        Completion::Written { token, result }
    }

    /// The data lands where it does not belong, or nowhere.
    fn misdirect(&mut self, file: File, position: usize, data: &[u8], luck: &mut Luck) {
        luck.count(Kind::Misdirected);
        self.damage.push(Damage { file, position, bytes: data.len() });
        let Some(wrong) = rot::wrong_place(&self.files, data.len(), luck) else { return };
        if wrong != (file, position)
            && let Some(image) = self.files.get_mut(&wrong.0)
        {
            image.write(self.completed, wrong.1, data.to_vec());
            self.damage.push(Damage { file: wrong.0, position: wrong.1, bytes: data.len() });
        }
    }

    fn fail_read(&mut self, token: Token, file: File, buffer: Buffer, luck: &mut Luck) -> Completion {
        if is_segment(file) {
            luck.count(Kind::SegmentReadError);
            self.segment_read_errors += 1;
        } else {
            luck.count(Kind::OtherReadError);
            self.errors += 1;
        }
        Completion::ReadDone { token, buffer, result: Err(EIO) }
    }

    fn note_no_space(&mut self, result: Result<(), IoError>, luck: &mut Luck) {
        if result.is_err() {
            luck.count(Kind::NoSpace);
            self.errors += 1;
        }
    }

    /// Whether a write that was issued before is still under way.
    fn is_overtaken(&self, issued: u64) -> bool {
        let mut others = self.in_flight.values();
        others.any(|other| matches!(other, InFlight::Write(write) if write.issued < issued))
    }

    /// Makes a file, or makes it longer, if there is space.
    fn allocate(
        &mut self,
        file: File,
        bytes: usize,
        header: Option<&FileHeader>,
        fails: bool,
    ) -> Result<(), IoError> {
        let more = bytes.saturating_sub(self.files.get(&file).map_or(0, Image::bytes)) as u64;
        let has_room = self.capacity_bytes.is_none_or(|capacity| self.used_bytes() + more <= capacity);
        if more > 0 && (fails || !has_room) {
            return Err(IoError::NO_SPACE);
        }
        self.files.entry(file).or_insert_with(|| Image::with_header(bytes, header)).grow(bytes);
        Ok(())
    }

    /// Carries a job out as the thread does: the new file is durable then.
    fn compact(&mut self, job: &CompactJob, fails: bool) -> Result<Compacted, CompactError> {
        let (compacted, contents) = self.rewrite(job, fails)?;
        if !contents.is_empty() {
            let file = File::Segment(job.number);
            self.allocate(file, contents.len(), None, false).map_err(CompactError::Write)?;
            self.files.get_mut(&file).expect("it was just made").write_durably(0, &contents);
            self.written_segments.insert(file);
        }
        Ok(compacted)
    }

    /// What a job gives, and the bytes of the new file; none if there is to be none.
    fn rewrite(&mut self, job: &CompactJob, fails: bool) -> Result<(Compacted, Vec<u8>), CompactError> {
        let (files, mut contents) = (&self.files, Vec::new());
        let read = |file: File, position: u64, into: &mut [u8]| {
            if fails {
                return Err(EIO);
            }
            let image = files.get(&file).expect("a file that is read is not removed");
            image.read(position as usize, into);
            Ok(())
        };
        let write = |position: u64, bytes: &[u8]| {
            assert_eq!(position, contents.len() as u64, "a new file is written from its start to its end");
            contents.extend_from_slice(bytes);
            Ok(())
        };
        let compacted = compact::run(job, &mut self.workspace, read, write)?;
        Ok((compacted, contents))
    }

    fn remove(&mut self, file: File) {
        self.files.remove(&file);
        self.leaving.remove(&file);
    }
}

/// A write has completed well.
fn put(image: &mut Image, completed: u64, position: usize, data: &[u8], sync: Sync) {
    match sync {
        Sync::Later => image.write(completed, position, data.to_vec()),
        Sync::WithWrite => image.write_durably(position, data),
    }
}

/// A flush of these files has completed, well or not.
fn finish_flush(images: Vec<&mut Image>, covered: u64, fails: bool, luck: &mut Luck) -> Result<(), IoError> {
    if fails {
        luck.count(Kind::FlushError);
    }
    for image in images {
        if fails {
            image.flush_badly(covered, luck);
        } else {
            image.flush(covered);
        }
    }
    if fails { Err(EIO) } else { Ok(()) }
}
