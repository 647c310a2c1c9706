//! The file thread: makes, grows, shortens, removes and opens files of the data directory, so that no shard waits.
//!
//! It takes requests in groups. A group is carried out in order, then made durable as a whole, and only then answered:
//! ten thousand new files cost some hundred syncs instead of ten thousand. Files that are merely opened are handed
//! over at once. What cannot be made durable is undone, and the answer says so. Nothing here takes as long as writing
//! a file of zeros or waiting for the whole device: those have threads of their own.

use std::fs;
use std::io;
use std::iter;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::thread::JoinHandle;

use reactor::Waker;
use reactor::file::{grow, shrink, sync_file_system};
use reactor::memory::{Buffer, Pool};

use crate::data_dir::{path_of, segments_of};
use crate::io::{FILE_HEADER_BYTES, File, FileHeader, IoError};
use crate::limits::PAGE_BYTES;
use crate::preparer::{error_of, open};
use crate::reactor_glue::{BlockingAnswer, FileRequest};

/// Requests that are made durable together: each sync serves many, and the first of a group does not wait for long.
const REQUESTS_PER_GROUP_MAX: usize = 64;
/// Changed files of a group that are synced one by one; for more, one sync of the file system is cheaper.
const FILE_SYNCS_MAX: usize = 4;
/// Length of one write of zeros, where space cannot be allocated.
const ZERO_BUFFER_BYTES: usize = 1 << 20;

/// Handle to the thread. Dropping it ends the thread, within one request or sync.
#[derive(Debug)]
pub struct FileThread {
    /// Bounded by what a shard has under way: allocations and removals by their limits, openings by its operations in
    /// flight, and one shortening for each segment that is sealed.
    requests: Option<Sender<(FileRequest, Waker)>>,
    cancel: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FileThread {
    /// Starts the thread for an opened data directory; it answers through `outbox`. It may run where the caller may:
    /// call this before the caller pins itself.
    ///
    /// # Errors
    /// When the directory cannot be opened, or no thread started.
    #[allow(clippy::disallowed_methods, reason = "a thread of a shard that may block")]
    pub fn start(directory: &Path, outbox: SyncSender<BlockingAnswer>) -> io::Result<Self> {
        let (requests, inbox) = channel();
        let cancel = Arc::new(AtomicBool::new(false));
        let directories = Directories::open(directory)?;
        let thread_cancel = Arc::clone(&cancel);
        let thread = std::thread::Builder::new().name("files".to_owned()).spawn(move || {
            let mut worker = Worker { directories, cancel: thread_cancel, zeros: None };
            worker.run(&inbox, &outbox);
        })?;
        Ok(Self { requests: Some(requests), cancel, thread: Some(thread) })
    }

    /// Asks for something; the waker is used when there is an answer.
    pub fn request(&self, request: FileRequest, waker: Waker) {
        let requests = self.requests.as_ref().expect("the thread lives as long as its handle");
        requests.send((request, waker)).expect("the thread ends only with its handle");
    }
}

impl Drop for FileThread {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has aborted the process already.
            let _ = thread.join();
        }
    }
}

/// The two directories that hold files, kept open: a sync tells of every failure since the opening.
struct Directories {
    path: PathBuf,
    root: fs::File,
    segments: fs::File,
}

impl Directories {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            root: fs::File::open(path)?,
            segments: fs::File::open(segments_of(path))?,
        })
    }

    fn path_of(&self, file: File) -> PathBuf {
        path_of(&self.path, file)
    }
}

/// Nobody takes answers any more, or the thread was told to end.
struct Ended;

struct Worker {
    directories: Directories,
    cancel: Arc<AtomicBool>,
    /// Aligned memory, made when it is first needed.
    zeros: Option<Buffer>,
}

impl Worker {
    fn run(&mut self, inbox: &Receiver<(FileRequest, Waker)>, outbox: &SyncSender<BlockingAnswer>) {
        while let Ok(first) = inbox.recv() {
            let group = iter::once(first).chain(inbox.try_iter()).take(REQUESTS_PER_GROUP_MAX);
            if let Err(Ended) = self.carry_out(group, outbox) {
                return;
            }
        }
    }

    fn carry_out(
        &mut self,
        group: impl Iterator<Item = (FileRequest, Waker)>,
        outbox: &SyncSender<BlockingAnswer>,
    ) -> Result<(), Ended> {
        let mut changes = Vec::new();
        for (request, waker) in group {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Ended);
            }
            match request {
                FileRequest::Allocate { file, bytes, header } => {
                    let result = self.allocate(file, bytes, header.as_deref());
                    let result = result.map_err(|error| error_of(&error));
                    changes.push((Change::Allocated { file, bytes, result }, waker));
                }
                FileRequest::Remove { file } => {
                    let result = self.remove(file);
                    changes.push((Change::Removed { file, result }, waker));
                }
                FileRequest::Shrink { file, bytes } => self.shrink(file, bytes),
                FileRequest::Open { file } => {
                    let result = open(&self.directories.path_of(file), false);
                    let result = result.map_err(|error| error_of(&error));
                    answer(outbox, BlockingAnswer::Opened { file, result }, &waker)?;
                }
            }
        }
        self.sync_files(&mut changes);
        self.sync_directories(&mut changes);
        for (change, waker) in changes {
            answer(outbox, change.into_answer(), &waker)?;
        }
        Ok(())
    }

    /// What fails is undone at once: a new file is gone, a grown one is as long as it was.
    fn allocate(&mut self, file: File, bytes: u64, header: Option<&FileHeader>) -> io::Result<Allocation> {
        let path = self.directories.path_of(file);
        let (descriptor, is_new) = open_or_create(&path)?;
        match self.fill(&descriptor, bytes, header.filter(|_| is_new)) {
            Ok(_) if is_new => Ok(Allocation { descriptor, effect: Effect::Created }),
            Ok(before) if before < bytes => Ok(Allocation { descriptor, effect: Effect::Grown { before } }),
            Ok(_) => Ok(Allocation { descriptor, effect: Effect::Nothing }),
            Err(error) => {
                if is_new {
                    remove_new(&path);
                }
                Err(error)
            }
        }
    }

    /// Grows a file and writes its first page, if it gets one. Returns how long it was.
    fn fill(&mut self, descriptor: &fs::File, bytes: u64, header: Option<&FileHeader>) -> io::Result<u64> {
        let zeros = aligned(&mut self.zeros)?;
        let before = grow(descriptor, bytes, zeros, &self.cancel)?;
        if let Some(header) = header {
            let page = &mut zeros[..PAGE_BYTES];
            page.fill(0);
            page[..FILE_HEADER_BYTES].copy_from_slice(header);
            descriptor.write_all_at(page, 0)?;
        }
        Ok(before)
    }

    /// A failure costs space only.
    fn shrink(&self, file: File, bytes: u64) {
        let opened = open(&self.directories.path_of(file), false);
        if let Err(error) = opened.and_then(|descriptor| shrink(&descriptor, bytes)) {
            tracing::warn!(?file, %error, "cannot give back the space behind the end of a file");
        }
    }

    /// A file that is not there is as good as removed: an earlier start may have done that, and died.
    fn remove(&self, file: File) -> Result<(), IoError> {
        match fs::remove_file(self.directories.path_of(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error_of(&error)),
            _ => Ok(()),
        }
    }

    /// Makes contents and lengths durable.
    fn sync_files(&self, changes: &mut [(Change, Waker)]) {
        let count = changes.iter().filter(|(change, _)| change.changed_file().is_some()).count();
        let together = (count > FILE_SYNCS_MAX).then(|| outcome(sync_file_system(&self.directories.root)));
        for (change, _) in changes {
            let Some(file) = change.changed_file() else { continue };
            let synced = together.unwrap_or_else(|| outcome(file.sync_all()));
            if let Err(error) = synced {
                change.fail(&self.directories, error);
            }
        }
    }

    /// Makes the names of new files durable, and the absence of removed ones.
    fn sync_directories(&self, changes: &mut [(Change, Waker)]) {
        let both = [(&self.directories.root, false), (&self.directories.segments, true)];
        for (directory, holds_segments) in both {
            let is_here = |change: &Change| {
                change.changed_name().is_some_and(|file| matches!(file, File::Segment(_)) == holds_segments)
            };
            if !changes.iter().any(|(change, _)| is_here(change)) {
                continue;
            }
            let Err(error) = outcome(directory.sync_all()) else { continue };
            for (change, _) in changes.iter_mut().filter(|(change, _)| is_here(change)) {
                change.fail(&self.directories, error);
            }
        }
    }
}

/// What a request has done, or why not; not durable yet.
enum Change {
    Allocated { file: File, bytes: u64, result: Result<Allocation, IoError> },
    Removed { file: File, result: Result<(), IoError> },
}

struct Allocation {
    descriptor: fs::File,
    effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// The file was long enough.
    Nothing,
    Grown {
        before: u64,
    },
    Created,
}

impl Change {
    /// The file whose contents or length are to be made durable.
    fn changed_file(&self) -> Option<&fs::File> {
        match self {
            Self::Allocated { result: Ok(Allocation { descriptor, effect }), .. } => {
                (*effect != Effect::Nothing).then_some(descriptor)
            }
            Self::Allocated { .. } | Self::Removed { .. } => None,
        }
    }

    /// The file whose name came or went.
    fn changed_name(&self) -> Option<File> {
        match self {
            Self::Allocated { file, result: Ok(allocation), .. } => {
                (allocation.effect == Effect::Created).then_some(*file)
            }
            Self::Removed { file, result: Ok(()) } => Some(*file),
            Self::Allocated { .. } | Self::Removed { .. } => None,
        }
    }

    /// It cannot be made durable: what was taken is given back, and the answer is the error.
    fn fail(&mut self, directories: &Directories, error: IoError) {
        tracing::error!(%error, "a sync of the data directory has failed");
        let error = IoError::NOT_DURABLE;
        match self {
            Self::Allocated { file, result, .. } => {
                if let Ok(Allocation { descriptor, effect }) = result {
                    match *effect {
                        Effect::Nothing => {}
                        Effect::Grown { before } => {
                            // The error that is answered says enough; this one costs space only.
                            let _ = shrink(descriptor, before);
                        }
                        Effect::Created => remove_new(&directories.path_of(*file)),
                    }
                }
                *result = Err(error);
            }
            Self::Removed { result, .. } => *result = Err(error),
        }
    }

    fn into_answer(self) -> BlockingAnswer {
        match self {
            Self::Allocated { file, bytes, result } => {
                let result = result.map(|allocation| allocation.descriptor.into());
                BlockingAnswer::Allocated { file, bytes, result }
            }
            Self::Removed { file, result } => BlockingAnswer::Removed { file, result },
        }
    }
}

/// Waits while the shard has many answers to take: each may hold a descriptor.
fn answer(outbox: &SyncSender<BlockingAnswer>, answer: BlockingAnswer, waker: &Waker) -> Result<(), Ended> {
    outbox.send(answer).map_err(|_| Ended)?;
    waker.wake();
    Ok(())
}

/// The file, and whether it is new.
fn open_or_create(path: &Path) -> io::Result<(fs::File, bool)> {
    match open(path, false) {
        Ok(descriptor) => Ok((descriptor.into(), false)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((open(path, true)?.into(), true)),
        Err(error) => Err(error),
    }
}

/// Takes a new file away again.
fn remove_new(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove a file that could not be made");
    }
}

/// Memory for direct I/O, made on the first call.
fn aligned(memory: &mut Option<Buffer>) -> io::Result<&mut Buffer> {
    if memory.is_none() {
        *memory = Pool::new(ZERO_BUFFER_BYTES).map_err(io::Error::other)?.buffer(ZERO_BUFFER_BYTES);
    }
    memory.as_mut().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

fn outcome(result: io::Result<()>) -> Result<(), IoError> {
    result.map_err(|error| error_of(&error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::mpsc::sync_channel;

    use reactor::Reactor;

    use super::*;
    use crate::data_dir::DataDir;

    const SEGMENT: File = File::Segment(0xa1);
    const BYTES: u64 = 256 << 10;
    const HEADER: FileHeader = [7; FILE_HEADER_BYTES];

    /// Fields are dropped in order: answers first, so that the thread does not wait for us.
    struct World {
        answers: Receiver<BlockingAnswer>,
        thread: FileThread,
        reactor: Reactor,
        data_dir: DataDir,
        _directory: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let data_dir = DataDir::open(directory.path(), true).unwrap();
            let (outbox, answers) = sync_channel(1);
            let thread = FileThread::start(data_dir.path(), outbox).unwrap();
            let config = reactor::Config { operations_max: 8, ..reactor::Config::default() };
            Self { answers, thread, reactor: Reactor::new(config).unwrap(), data_dir, _directory: directory }
        }

        fn request(&self, request: FileRequest) {
            self.thread.request(request, self.reactor.waker());
        }

        fn allocate(&self, file: File, bytes: u64) -> Result<std::os::fd::OwnedFd, IoError> {
            self.request(FileRequest::Allocate { file, bytes, header: Some(Box::new(HEADER)) });
            match self.answers.recv().unwrap() {
                BlockingAnswer::Allocated { file: answered, bytes: length, result } => {
                    assert_eq!((answered, length), (file, bytes));
                    result
                }
                other => panic!("{other:?}"),
            }
        }

        fn read(&self, file: File) -> Vec<u8> {
            fs::read(self.data_dir.path_of(file)).unwrap()
        }
    }

    #[test]
    fn new_file_begins_with_its_header_and_is_zeros_behind_it() {
        let world = World::new();
        world.allocate(SEGMENT, BYTES).unwrap();
        let contents = world.read(SEGMENT);
        assert_eq!(contents.len() as u64, BYTES);
        assert_eq!(contents[..FILE_HEADER_BYTES], HEADER);
        assert!(contents[FILE_HEADER_BYTES..].iter().all(|byte| *byte == 0));
        let metadata = fs::metadata(world.data_dir.path_of(SEGMENT)).unwrap();
        assert!(metadata.blocks() * 512 >= BYTES, "no holes");
        assert_eq!(metadata.mode() & 0o077, 0, "it is ours alone");
    }

    #[test]
    fn growing_keeps_what_is_there_and_never_shrinks() {
        let world = World::new();
        let descriptor = world.allocate(SEGMENT, BYTES).unwrap();
        fs::write(world.data_dir.path_of(SEGMENT), vec![3; BYTES as usize]).unwrap();
        drop(descriptor);
        world.allocate(SEGMENT, 2 * BYTES).unwrap();
        world.allocate(SEGMENT, BYTES).unwrap();
        let contents = world.read(SEGMENT);
        assert_eq!(contents.len() as u64, 2 * BYTES);
        assert!(contents[..BYTES as usize].iter().all(|byte| *byte == 3), "no header on an old file");
        assert!(contents[BYTES as usize..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn new_file_that_cannot_have_its_space_is_gone_and_an_old_one_as_it_was() {
        let world = World::new();
        let too_long = u64::MAX - (PAGE_BYTES as u64 - 1);
        assert_eq!(world.allocate(SEGMENT, too_long).unwrap_err(), IoError(libc::EFBIG));
        assert!(world.data_dir.files().unwrap().is_empty());
        world.allocate(SEGMENT, BYTES).unwrap();
        assert_eq!(world.allocate(SEGMENT, too_long).unwrap_err(), IoError(libc::EFBIG));
        assert_eq!(world.data_dir.files().unwrap()[&SEGMENT], BYTES);
    }

    #[test]
    fn every_request_of_a_long_queue_is_answered_in_order() {
        let world = World::new();
        let count = 3 * REQUESTS_PER_GROUP_MAX as u64;
        for number in 0..count {
            let file = File::Segment(number);
            world.request(FileRequest::Allocate { file, bytes: PAGE_BYTES as u64, header: None });
        }
        for number in 0..count {
            match world.answers.recv().unwrap() {
                BlockingAnswer::Allocated { file, result: Ok(_), .. } => {
                    assert_eq!(file, File::Segment(number));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(world.data_dir.files().unwrap().len() as u64, count);
    }

    #[test]
    fn removed_file_is_gone_and_removing_it_again_succeeds() {
        let world = World::new();
        world.allocate(SEGMENT, BYTES).unwrap();
        for _ in 0..2 {
            world.request(FileRequest::Remove { file: SEGMENT });
            let answer = world.answers.recv().unwrap();
            assert!(
                matches!(answer, BlockingAnswer::Removed { file: SEGMENT, result: Ok(()) }),
                "{answer:?}"
            );
            assert!(world.data_dir.files().unwrap().is_empty());
        }
    }

    #[test]
    fn shrinking_gives_space_back_and_never_grows() {
        let world = World::new();
        world.allocate(SEGMENT, BYTES).unwrap();
        for bytes in [PAGE_BYTES as u64, 2 * PAGE_BYTES as u64] {
            world.request(FileRequest::Shrink { file: SEGMENT, bytes });
        }
        world.request(FileRequest::Open { file: SEGMENT });
        let answer = world.answers.recv().unwrap();
        assert!(matches!(answer, BlockingAnswer::Opened { file: SEGMENT, result: Ok(_) }), "{answer:?}");
        assert_eq!(world.data_dir.files().unwrap()[&SEGMENT], PAGE_BYTES as u64);
    }

    #[test]
    fn file_that_is_not_there_cannot_be_opened() {
        let world = World::new();
        world.request(FileRequest::Open { file: File::Snapshot(1) });
        match world.answers.recv().unwrap() {
            BlockingAnswer::Opened { file: File::Snapshot(1), result: Err(error) } => {
                assert_eq!(error, IoError(libc::ENOENT));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn dropped_handle_ends_a_thread_that_has_much_to_do() {
        let world = World::new();
        for number in 0..1_000 {
            let file = File::Segment(number);
            world.request(FileRequest::Allocate { file, bytes: BYTES, header: None });
        }
        let World { answers, thread, data_dir, .. } = world;
        drop(answers);
        drop(thread);
        assert!(data_dir.files().unwrap().len() < 1_000);
    }
}
