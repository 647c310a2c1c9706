//! How a disk comes out of a power cut, and out of the end of the process that used it.
//!
//! Whatever was under way has happened or has not, each for itself; writes may also be torn.

use std::collections::BTreeMap;

use broker::io::{CompactJob, File};
use broker::limits::PAGE_BYTES;
use broker::log::compact::Workspace;
use rand::RngExt;

use super::{Disk, InFlight, put};
use crate::image::{Image, Mood};
use crate::luck::Luck;
use crate::report::Kind;

impl Disk {
    /// The power fails: what is unflushed is kept, dropped or torn; what was under way took effect or did not.
    pub(crate) fn cut_power(&mut self, mood: Mood, luck: &mut Luck) {
        let mut lost: BTreeMap<File, Vec<(usize, Vec<u8>)>> = BTreeMap::new();
        for in_flight in std::mem::take(&mut self.in_flight).into_values() {
            match in_flight {
                InFlight::Write(write) => {
                    lost.entry(write.file).or_default().push((write.position, write.data.to_vec()));
                }
                other => self.end(other, luck),
            }
        }
        self.leaving.clear();
        self.workspace = Workspace::default();
        for (file, image) in &mut self.files {
            image.cut_power(lost.remove(file).unwrap_or_default(), mood, luck);
        }
    }

    /// The process ends: completed writes stay in the device's cache, those under way land or do not.
    pub(crate) fn kill(&mut self, luck: &mut Luck) {
        for in_flight in std::mem::take(&mut self.in_flight).into_values() {
            match in_flight {
                InFlight::Write(write) => {
                    if luck.coin()
                        && let Some(image) = self.files.get_mut(&write.file)
                    {
                        luck.count(Kind::WriteLandedAfterKill);
                        self.completed += 1;
                        put(image, self.completed, write.position, &write.data, write.sync);
                    }
                }
                other => self.end(other, luck),
            }
        }
        self.leaving.clear();
        self.workspace = Workspace::default();
    }

    /// What was under way when the process ended has happened, or has not.
    fn end(&mut self, in_flight: InFlight, luck: &mut Luck) {
        match in_flight {
            InFlight::Flush { file, covered, .. } => {
                if luck.coin()
                    && let Some(image) = self.files.get_mut(&file)
                {
                    image.flush(covered);
                }
            }
            InFlight::SyncAll { covered, .. } => {
                luck.count(Kind::CrashInSyncAll);
                for image in self.files.values_mut() {
                    if luck.coin() {
                        image.flush(covered);
                    }
                }
            }
            InFlight::Prepare { file, bytes, fails } => {
                if luck.coin() {
                    let _ = self.allocate(file, bytes, None, fails);
                }
            }
            InFlight::Allocate { file, bytes, header, fails } => {
                luck.count(Kind::CrashInAllocate);
                if luck.coin() {
                    let _ = self.allocate(file, bytes, header.as_deref(), fails);
                }
            }
            InFlight::Compact { job, fails, .. } => {
                luck.count(Kind::CrashInCompaction);
                if luck.coin() {
                    self.leave_unfinished(&job, fails, luck);
                }
            }
            InFlight::Remove { file } => {
                luck.count(Kind::CrashInRemove);
                if luck.coin() {
                    self.remove(file);
                }
            }
            InFlight::Read { .. } | InFlight::Write(_) => {}
        }
    }

    /// A compaction has come some way: its file is there, and the front of what belongs into it.
    fn leave_unfinished(&mut self, job: &CompactJob, fails: bool, luck: &mut Luck) {
        let Ok((_, contents)) = self.rewrite(job, fails) else { return };
        if contents.is_empty() {
            return;
        }
        let pages = luck.faults.random_range(0..=contents.len() / PAGE_BYTES);
        let mut image = Image::zeros(contents.len());
        image.write_durably(0, &contents[..pages * PAGE_BYTES]);
        self.files.insert(File::Segment(job.number), image);
    }
}
