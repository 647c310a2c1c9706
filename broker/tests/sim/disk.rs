//! A hostile disk: operations complete after random times and out of order, a flush covers only what had completed
//! when it was issued, and at a crash everything else is at the mercy of chance.
//!
//! A power cut and the end of the process are different things: a killed process leaves its completed writes in the
//! device's cache, where the next process reads them, and a later power cut may still take them away.

use std::collections::BTreeMap;
use std::ops::Range;

use broker::io::{Completion, File, IoError, Op, Sync, Token};
use reactor::memory::{Buffer, Slice};

use crate::image::{Image, Mood};
use crate::luck::Luck;
use crate::report::Kind;

const WRITE_NS: Range<u64> = 20_000..250_000;
const FLUSH_NS: Range<u64> = 60_000..400_000;
const READ_NS: Range<u64> = 10_000..100_000;
const PREPARE_NS: Range<u64> = 1_000_000..8_000_000;
/// A slow operation takes so many times longer.
const SLOW_FACTOR: u64 = 60;
const EIO: IoError = IoError(5);

/// How often things go wrong: once in so many operations, 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DiskFaults {
    pub(crate) write_error_one_in: u32,
    pub(crate) flush_error_one_in: u32,
    pub(crate) no_space_one_in: u32,
    pub(crate) slow_one_in: u32,
}

#[derive(Debug)]
enum InFlight {
    Write { token: Token, file: File, position: usize, data: Slice, sync: Sync, issued: u64, fails: bool },
    Read { token: Token, file: File, position: usize, buffer: Buffer, bytes: usize },
    Flush { token: Token, file: File, covered: u64, fails: bool },
    Prepare { file: File, bytes: usize, fails: bool },
}

/// The files of one data directory, and what is on its way to them.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    files: BTreeMap<File, Image>,
    /// By the time of completion, and a number.
    in_flight: BTreeMap<(u64, u64), InFlight>,
    issued: u64,
    completed: u64,
    /// What goes wrong.
    pub(crate) faults: DiskFaults,
    /// Operations that were failed on purpose.
    pub(crate) errors: u64,
}

impl Disk {
    /// The files that are there, with their lengths.
    pub(crate) fn files(&self) -> BTreeMap<File, u64> {
        self.files.iter().map(|(file, image)| (*file, image.bytes() as u64)).collect()
    }

    /// The durable bytes of a file.
    pub(crate) fn durable(&self, file: File) -> &[u8] {
        self.files[&file].durable()
    }

    /// A bit rots.
    pub(crate) fn flip_bit(&mut self, file: File, position: usize, bit: u8) {
        self.files.get_mut(&file).expect("the file is there").flip_bit(position, bit);
    }

    /// When the next operation completes.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.in_flight.keys().next().map(|(at_ns, _)| *at_ns)
    }

    /// Takes an operation on a file.
    pub(crate) fn submit(&mut self, op: Op, luck: &mut Luck) {
        self.issued += 1;
        let issued = self.issued;
        let faults = self.faults;
        let (in_flight, takes_ns) = match op {
            Op::Write { token, file, position, data, sync } => {
                let fails = luck.breaks(faults.write_error_one_in);
                let position = position as usize;
                (InFlight::Write { token, file, position, data, sync, issued, fails }, WRITE_NS)
            }
            Op::Read { token, file, position, buffer, bytes } => {
                (InFlight::Read { token, file, position: position as usize, buffer, bytes }, READ_NS)
            }
            Op::Flush { token, file } => {
                let fails = luck.breaks(faults.flush_error_one_in);
                (InFlight::Flush { token, file, covered: self.completed, fails }, FLUSH_NS)
            }
            Op::PrepareFile { file, bytes } => {
                let fails = luck.breaks(faults.no_space_one_in);
                (InFlight::Prepare { file, bytes: bytes as usize, fails }, PREPARE_NS)
            }
            Op::Receive { .. } | Op::Send { .. } | Op::Close { .. } => {
                unreachable!("the network's operations go to the network")
            }
        };
        let mut delay_ns = luck.delay_ns(takes_ns);
        if luck.breaks(faults.slow_one_in) {
            luck.count(Kind::SlowOperation);
            delay_ns *= SLOW_FACTOR;
        }
        self.in_flight.insert((luck.now_ns + delay_ns, issued), in_flight);
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
            InFlight::Write { token, file, position, data, sync, issued, fails } => {
                if self.is_overtaken(issued) {
                    luck.count(Kind::CompletedOutOfOrder);
                }
                self.completed += 1;
                let completed = self.completed;
                let image = self.files.get_mut(&file).expect("a file is made before it is written");
                if fails {
                    luck.count(Kind::WriteError);
                    self.errors += 1;
                    image.write_badly(completed, position, &data, luck);
                    return Completion::Written { token, result: Err(EIO) };
                }
                match sync {
                    Sync::Later => image.write(completed, position, data.to_vec()),
                    Sync::WithWrite => image.write_durably(position, &data),
                }
                Completion::Written { token, result: Ok(()) }
            }
            InFlight::Read { token, file, position, mut buffer, bytes } => {
                let image = self.files.get(&file).expect("a file is made before it is read");
                image.read(position, &mut buffer[..bytes]);
                Completion::ReadDone { token, buffer, result: Ok(()) }
            }
            InFlight::Flush { token, file, covered, fails } => {
                let image = self.files.get_mut(&file).expect("a file is made before it is flushed");
                if fails {
                    luck.count(Kind::FlushError);
                    self.errors += 1;
                    image.flush_badly(covered, luck);
                    return Completion::Flushed { token, result: Err(EIO) };
                }
                image.flush(covered);
                Completion::Flushed { token, result: Ok(()) }
            }
            InFlight::Prepare { file, bytes, fails } => {
                if fails {
                    luck.count(Kind::NoSpace);
                    self.errors += 1;
                    return Completion::FilePrepared { file, result: Err(IoError::NO_SPACE) };
                }
                self.make(file, bytes);
                Completion::FilePrepared { file, result: Ok(()) }
            }
        }
    }

    /// Whether a write that was issued before is still under way.
    fn is_overtaken(&self, issued: u64) -> bool {
        let mut others = self.in_flight.values();
        others.any(|other| matches!(other, InFlight::Write { issued: earlier, .. } if *earlier < issued))
    }

    fn make(&mut self, file: File, bytes: usize) {
        self.files.entry(file).or_insert_with(|| Image::zeros(bytes));
    }

    /// The power fails: what is unflushed is kept, dropped or torn; what was under way took effect or did not.
    pub(crate) fn cut_power(&mut self, mood: Mood, luck: &mut Luck) {
        let mut lost: BTreeMap<File, Vec<(usize, Vec<u8>)>> = BTreeMap::new();
        for in_flight in std::mem::take(&mut self.in_flight).into_values() {
            match in_flight {
                InFlight::Write { file, position, data, .. } => {
                    lost.entry(file).or_default().push((position, data.to_vec()));
                }
                InFlight::Flush { file, covered, .. } => self.end_flush(file, covered, luck),
                InFlight::Prepare { file, bytes, .. } => self.end_prepare(file, bytes, luck),
                InFlight::Read { .. } => {}
            }
        }
        for (file, image) in &mut self.files {
            image.cut_power(lost.remove(file).unwrap_or_default(), mood, luck);
        }
    }

    /// The process ends: completed writes stay in the device's cache, those under way land or do not.
    pub(crate) fn kill(&mut self, luck: &mut Luck) {
        for in_flight in std::mem::take(&mut self.in_flight).into_values() {
            match in_flight {
                InFlight::Write { file, position, data, sync, .. } => {
                    if luck.coin() {
                        luck.count(Kind::WriteLandedAfterKill);
                        self.completed += 1;
                        let image = self.files.get_mut(&file).expect("a file is made before it is written");
                        match sync {
                            Sync::Later => image.write(self.completed, position, data.to_vec()),
                            Sync::WithWrite => image.write_durably(position, &data),
                        }
                    }
                }
                InFlight::Flush { file, covered, .. } => self.end_flush(file, covered, luck),
                InFlight::Prepare { file, bytes, .. } => self.end_prepare(file, bytes, luck),
                InFlight::Read { .. } => {}
            }
        }
    }

    fn end_flush(&mut self, file: File, covered: u64, luck: &mut Luck) {
        if luck.coin()
            && let Some(image) = self.files.get_mut(&file)
        {
            image.flush(covered);
        }
    }

    /// The file is there with zeros, or not at all.
    fn end_prepare(&mut self, file: File, bytes: usize, luck: &mut Luck) {
        if luck.coin() {
            self.make(file, bytes);
        }
    }
}
