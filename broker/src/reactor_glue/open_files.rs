//! Which files are open, which operations wait for one, and which file is closed next.
//!
//! The superblock and the journal stay open. Segments and snapshots come and go: an operation on one that is not open
//! waits here, and beyond `open_max` the one that was unused for longest is closed. Files in use are never closed, so
//! there may be more while that many are in use. Invariant: `idle` holds exactly the open files without operations in
//! flight. Using a journal file asks for no memory.

use std::collections::BTreeMap;

use reactor::FileId;

use crate::io::File;

use super::disk::DiskOp;

const NOT_OPEN: &str = "the superblock and the journal are opened before they are used";

/// Descriptors by file. It opens and closes nothing itself.
#[derive(Debug)]
pub(super) struct OpenFiles {
    superblock: Option<FileId>,
    journal: Vec<Option<FileId>>,
    /// Segments and snapshots that are open or being opened.
    on_demand: BTreeMap<File, OnDemand>,
    /// Those that are open and not in use, by the time at which their last use ended.
    idle: BTreeMap<u64, File>,
    /// Counts the ends of uses: the clock of `idle`.
    clock: u64,
    open_count: usize,
    open_max: usize,
}

#[derive(Debug)]
enum OnDemand {
    /// Operations in the order in which they came.
    Opening(Vec<DiskOp>),
    Open(OpenFile),
}

#[derive(Debug)]
struct OpenFile {
    id: FileId,
    in_flight: u32,
    /// Key in `idle`, while nothing is in flight.
    idle_since: u64,
}

impl OpenFiles {
    pub(super) fn new(open_max: usize) -> Self {
        assert!(open_max > 0);
        Self {
            superblock: None,
            journal: Vec::new(),
            on_demand: BTreeMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
            open_count: 0,
            open_max,
        }
    }

    /// Whether a file stays open from its making, or from the start, on.
    pub(super) fn stays_open(file: File) -> bool {
        matches!(file, File::Superblock | File::Journal(_))
    }

    pub(super) fn is_open(&self, file: File) -> bool {
        match file {
            File::Superblock => self.superblock.is_some(),
            File::Journal(number) => self.journal.get(number as usize).is_some_and(Option::is_some),
            File::Snapshot(_) | File::Segment(_) => {
                matches!(self.on_demand.get(&file), Some(OnDemand::Open(_)))
            }
        }
    }

    /// Makes an opened file known, and gives the operations that have waited for it.
    pub(super) fn add(&mut self, file: File, id: FileId) -> Vec<DiskOp> {
        assert!(!self.is_open(file), "{file:?} is open already");
        match file {
            File::Superblock => self.superblock = Some(id),
            File::Journal(number) => {
                let index = number as usize;
                if self.journal.len() <= index {
                    self.journal.resize(index + 1, None);
                }
                self.journal[index] = Some(id);
            }
            File::Snapshot(_) | File::Segment(_) => {
                self.open_count += 1;
                let open = OpenFile { id, in_flight: 0, idle_since: self.next_idle(file) };
                if let Some(OnDemand::Opening(parked)) = self.on_demand.insert(file, OnDemand::Open(open)) {
                    return parked;
                }
            }
        }
        Vec::new()
    }

    /// Forgets a file, which nothing may be under way on; gives what is to be closed.
    pub(super) fn remove(&mut self, file: File) -> Option<FileId> {
        match file {
            File::Superblock => self.superblock.take(),
            File::Journal(number) => self.journal.get_mut(number as usize)?.take(),
            File::Snapshot(_) | File::Segment(_) => match self.on_demand.remove(&file)? {
                OnDemand::Open(open) => {
                    assert_eq!(open.in_flight, 0, "{file:?} goes while it is in use");
                    self.idle.remove(&open.idle_since);
                    self.open_count -= 1;
                    Some(open.id)
                }
                OnDemand::Opening(parked) => panic!("{file:?} goes while {} wait for it", parked.len()),
            },
        }
    }

    /// Counts one more operation on a file; `None` when it is not open and the operation has to wait.
    pub(super) fn begin(&mut self, file: File) -> Option<FileId> {
        match file {
            File::Superblock => Some(self.superblock.expect(NOT_OPEN)),
            File::Journal(number) => {
                let id = self.journal.get(number as usize).copied().flatten();
                Some(id.expect(NOT_OPEN))
            }
            File::Snapshot(_) | File::Segment(_) => {
                let Some(OnDemand::Open(open)) = self.on_demand.get_mut(&file) else { return None };
                if open.in_flight == 0 {
                    self.idle.remove(&open.idle_since);
                }
                open.in_flight += 1;
                Some(open.id)
            }
        }
    }

    /// An operation that `begin` counted has ended.
    pub(super) fn end(&mut self, file: File) {
        if Self::stays_open(file) {
            return;
        }
        let Some(OnDemand::Open(open)) = self.on_demand.get_mut(&file) else {
            panic!("{file:?} stays open while it is in use");
        };
        assert!(open.in_flight > 0, "an operation on {file:?} ended twice");
        open.in_flight -= 1;
        if open.in_flight == 0 {
            self.clock += 1;
            open.idle_since = self.clock;
            self.idle.insert(self.clock, file);
        }
    }

    /// Keeps an operation until its file is open. Whether it is the first: then the file is to be opened.
    pub(super) fn park(&mut self, op: DiskOp) -> bool {
        assert!(!Self::stays_open(op.file), "{NOT_OPEN}");
        match self.on_demand.entry(op.file).or_insert_with(|| OnDemand::Opening(Vec::new())) {
            OnDemand::Opening(parked) => {
                parked.push(op);
                parked.len() == 1
            }
            OnDemand::Open(_) => panic!("{:?} is open: nothing has to wait for it", op.file),
        }
    }

    /// A file could not be opened; gives what has waited for it.
    pub(super) fn fail(&mut self, file: File) -> Vec<DiskOp> {
        // It may be open all the same, if it was made in the meantime.
        if self.is_open(file) {
            return Vec::new();
        }
        match self.on_demand.remove(&file) {
            Some(OnDemand::Opening(parked)) => parked,
            Some(OnDemand::Open(_)) | None => Vec::new(),
        }
    }

    /// Forgets the file that was unused for longest, if too many are open; gives what is to be closed.
    pub(super) fn take_excess(&mut self) -> Option<FileId> {
        if self.open_count <= self.open_max {
            return None;
        }
        let file = *self.idle.first_key_value()?.1;
        self.remove(file)
    }

    fn next_idle(&mut self, file: File) -> u64 {
        self.clock += 1;
        self.idle.insert(self.clock, file);
        self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{IoError, Token};
    use crate::reactor_glue::disk::Action;

    fn flush(token: u64, file: File) -> DiskOp {
        DiskOp { token: Token(token), file, action: Action::Flush }
    }

    #[test]
    fn the_file_that_was_unused_for_longest_is_closed_first() {
        let mut files = OpenFiles::new(2);
        for number in 1..=3 {
            assert!(files.add(File::Segment(number), FileId(number as u32)).is_empty());
        }
        assert_eq!(files.begin(File::Segment(1)), Some(FileId(1)));
        files.end(File::Segment(1));
        assert_eq!(files.take_excess(), Some(FileId(2)));
        assert_eq!(files.take_excess(), None, "two may stay open");
        assert!(!files.is_open(File::Segment(2)));
        assert!(files.begin(File::Segment(2)).is_none());
    }

    #[test]
    fn files_in_use_are_not_closed() {
        let mut files = OpenFiles::new(1);
        for number in 1..=2 {
            files.add(File::Segment(number), FileId(number as u32));
            assert!(files.begin(File::Segment(number)).is_some());
        }
        assert!(files.begin(File::Segment(1)).is_some());
        assert_eq!(files.take_excess(), None);
        files.end(File::Segment(1));
        assert_eq!(files.take_excess(), None, "one operation is left on the first");
        files.end(File::Segment(1));
        assert_eq!(files.take_excess(), Some(FileId(1)));
        assert_eq!(files.take_excess(), None);
    }

    #[test]
    fn superblock_and_journal_are_neither_counted_nor_closed() {
        let mut files = OpenFiles::new(1);
        files.add(File::Superblock, FileId(0));
        files.add(File::Journal(2), FileId(1));
        files.add(File::Segment(7), FileId(2));
        assert_eq!(files.take_excess(), None);
        assert!(!files.is_open(File::Journal(0)));
        assert_eq!(files.begin(File::Journal(2)), Some(FileId(1)));
        files.end(File::Journal(2));
        assert_eq!(files.remove(File::Journal(2)), Some(FileId(1)));
        assert!(!files.is_open(File::Journal(2)));
    }

    #[test]
    fn operations_wait_in_order_for_their_file() {
        let mut files = OpenFiles::new(1);
        let file = File::Snapshot(1);
        assert!(files.begin(file).is_none());
        assert!(files.park(flush(1, file)), "the first has the file opened");
        assert!(!files.park(flush(2, file)));
        let tokens: Vec<_> = files.add(file, FileId(9)).iter().map(|op| op.token).collect();
        assert_eq!(tokens, [Token(1), Token(2)]);
        assert!(files.fail(file).is_empty(), "an open file has nothing waiting");
        assert!(files.is_open(file));
    }

    #[test]
    fn operations_of_a_file_that_cannot_be_opened_are_given_back_once() {
        let mut files = OpenFiles::new(1);
        let file = File::Segment(1);
        files.park(flush(1, file));
        assert_eq!(files.fail(file).len(), 1);
        assert!(files.fail(file).is_empty());
        assert!(files.park(flush(2, file)), "it is tried again");
        let completion = flush(3, file).fail(IoError::NO_SPACE);
        let expected = crate::io::Completion::Flushed { token: Token(3), result: Err(IoError::NO_SPACE) };
        assert_eq!(format!("{completion:?}"), format!("{expected:?}"));
    }
}
