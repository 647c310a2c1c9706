//! The compaction thread: rewrites segments, one job after another, slowly enough that commits beside it are not hurt.
//!
//! What a job does is `log::compact`; this has the files. A new segment is created, written and made durable, with its
//! name, before the answer; what fails leaves no file. Nothing waits for this thread but its own answer.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use reactor::Waker;
use reactor::file::{grow, shrink};
use reactor::memory::{Buffer, Pool};

use crate::data_dir::{path_of, segments_of};
use crate::io::{CompactError, CompactJob, Compacted, File, IoError, Token};
use crate::limits::{COMPACT_BYTES_PER_SECOND_MAX, COMPACT_IO_BYTES};
use crate::log::compact::{self, Workspace};
use crate::preparer::{error_of, open};
use crate::reactor_glue::BlockingAnswer;

/// The new file grows in such steps, so that it lies in few pieces and is not much longer than it will be.
const GROW_BYTES: u64 = 16 << 20;

struct Request {
    token: Token,
    job: Box<CompactJob>,
    waker: Waker,
}

/// Handle to the thread. Dropping it ends the thread, within one read, write or sync; a job under way is given up.
#[derive(Debug)]
pub struct CompactThread {
    /// Bounded by the jobs under way: a shard has one at a time.
    requests: Option<Sender<Request>>,
    cancel: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl CompactThread {
    /// Starts the thread for an opened data directory; it answers through `outbox`. It may run where the caller may:
    /// call this before the caller pins itself.
    ///
    /// # Errors
    /// When the directory cannot be opened, or no thread started.
    pub fn start(directory: &Path, outbox: SyncSender<BlockingAnswer>) -> io::Result<Self> {
        let (requests, inbox) = channel::<Request>();
        let cancel = Arc::new(AtomicBool::new(false));
        let mut worker = Worker {
            directory: directory.to_owned(),
            segments: fs::File::open(segments_of(directory))?,
            cancel: Arc::clone(&cancel),
            workspace: Workspace::default(),
        };
        let thread = std::thread::Builder::new().name("compaction".to_owned()).spawn(move || {
            while let Ok(Request { token, job, waker }) = inbox.recv() {
                let result = Box::new(worker.carry_out(&job));
                if outbox.send(BlockingAnswer::Compacted { token, result }).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        Ok(Self { requests: Some(requests), cancel, thread: Some(thread) })
    }

    /// Asks for a job; the waker is used when there is an answer.
    pub fn request(&self, token: Token, job: Box<CompactJob>, waker: Waker) {
        let requests = self.requests.as_ref().expect("the thread lives as long as its handle");
        requests.send(Request { token, job, waker }).expect("the thread ends only with its handle");
    }
}

impl Drop for CompactThread {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has aborted the process already.
            let _ = thread.join();
        }
    }
}

struct Worker {
    directory: PathBuf,
    /// Open from the start: a sync of it tells of every failure since then.
    segments: fs::File,
    cancel: Arc<AtomicBool>,
    workspace: Workspace,
}

impl Worker {
    fn carry_out(&mut self, job: &CompactJob) -> Result<Compacted, CompactError> {
        let (directory, cancel) = (self.directory.as_path(), &*self.cancel);
        let mut sources = Sources { directory, open: None };
        let mut successor = Successor {
            path: path_of(directory, File::Segment(job.number)),
            file: None,
            allocated_bytes: 0,
            written_bytes: 0,
        };
        let read = |file: File, position: u64, into: &mut [u8]| {
            pace(into.len(), cancel)?;
            sources.read(file, position, into).map_err(|error| error_of(&error))
        };
        let write = |position: u64, bytes: &[u8]| {
            pace(bytes.len(), cancel)?;
            successor.write(position, bytes, cancel).map_err(|error| error_of(&error))
        };
        let outcome = compact::run(job, &mut self.workspace, read, write);
        let outcome = outcome.and_then(|compacted| {
            successor.finish(&self.segments).map_err(|error| CompactError::Write(error_of(&error)))?;
            Ok(compacted)
        });
        if outcome.is_err() {
            successor.remove();
        }
        outcome
    }
}

/// Waits before so many bytes are read or written; an error when the thread is to end.
#[allow(clippy::disallowed_methods, reason = "a thread of a shard that may block")]
fn pace(bytes: usize, cancel: &AtomicBool) -> Result<(), IoError> {
    let ns = bytes as u64 * 1_000_000_000 / COMPACT_BYTES_PER_SECOND_MAX;
    std::thread::sleep(Duration::from_nanos(ns));
    if cancel.load(Ordering::Relaxed) { Err(IoError(libc::ECANCELED)) } else { Ok(()) }
}

/// The segments that are read; one is open at a time.
struct Sources<'a> {
    directory: &'a Path,
    open: Option<(File, fs::File)>,
}

impl Sources<'_> {
    fn read(&mut self, file: File, position: u64, into: &mut [u8]) -> io::Result<()> {
        let is_open = self.open.as_ref().is_some_and(|(opened, _)| *opened == file);
        if !is_open {
            self.open = None;
        }
        let (_, descriptor) = match &mut self.open {
            Some(open) => open,
            none => none.insert((file, open(&path_of(self.directory, file), false)?.into())),
        };
        descriptor.read_exact_at(into, position)
    }
}

/// The segment that is made, once there is something to write to it.
struct Successor {
    path: PathBuf,
    file: Option<fs::File>,
    allocated_bytes: u64,
    /// From the start on, without a gap.
    written_bytes: u64,
}

impl Successor {
    fn write(&mut self, position: u64, bytes: &[u8], cancel: &AtomicBool) -> io::Result<()> {
        assert_eq!(position, self.written_bytes);
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                // No number is used twice: a file of this name is none of ours, and stays.
                if self.path.try_exists()? {
                    return Err(io::Error::from_raw_os_error(libc::EEXIST));
                }
                none.insert(open(&self.path, true)?.into())
            }
        };
        let end = position + bytes.len() as u64;
        if self.allocated_bytes < end {
            self.allocated_bytes = end.next_multiple_of(GROW_BYTES);
            grow(&*file, self.allocated_bytes, &mut zeros()?, cancel)?;
        }
        file.write_all_at(bytes, position)?;
        self.written_bytes = end;
        Ok(())
    }

    /// Makes what was written durable, with its name.
    fn finish(&self, segments: &fs::File) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        shrink(file, self.written_bytes)?;
        file.sync_all()?;
        segments.sync_all()
    }

    /// What is worth nothing goes; a start would find it, and that nothing names it.
    fn remove(self) {
        if self.file.is_some()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a segment that could not be made");
        }
    }
}

/// What is written where the file system cannot allocate.
fn zeros() -> io::Result<Buffer> {
    let pool = Pool::new(COMPACT_IO_BYTES).map_err(io::Error::other)?;
    pool.buffer(COMPACT_IO_BYTES).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use protocol::batch::Compression;
    use reactor::Reactor;

    use super::*;
    use crate::data_dir::DataDir;
    use crate::log::compact::sample::{NOW_MS, SUCCESSOR, Sample, left_in};

    /// Fields are dropped in order: answers first, so that the thread does not wait for us.
    struct World {
        answers: Receiver<BlockingAnswer>,
        thread: CompactThread,
        reactor: Reactor,
        data_dir: DataDir,
        _directory: tempfile::TempDir,
    }

    impl World {
        fn new(sample: &Sample) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let data_dir = DataDir::open(directory.path(), true).unwrap();
            for (file, contents) in &sample.files {
                fs::write(data_dir.path_of(*file), contents).unwrap();
            }
            let (outbox, answers) = sync_channel(1);
            let thread = CompactThread::start(data_dir.path(), outbox).unwrap();
            let config = reactor::Config { operations_max: 8, ..reactor::Config::default() };
            Self { answers, thread, reactor: Reactor::new(config).unwrap(), data_dir, _directory: directory }
        }

        fn run(&self, job: &CompactJob) -> Result<Compacted, CompactError> {
            self.thread.request(Token(5), Box::new(job.clone()), self.reactor.waker());
            match self.answers.recv().unwrap() {
                BlockingAnswer::Compacted { token: Token(5), result } => *result,
                other => panic!("{other:?}"),
            }
        }
    }

    fn sample() -> Sample {
        let mut sample = Sample::default();
        let none = Compression::None;
        sample.add(&[&[("a", "1"), ("b", "1")], &[("c", "1")]], NOW_MS, none);
        sample.add(&[&[("b", "2"), ("c", "2")]], NOW_MS, none);
        sample
    }

    #[test]
    fn the_successor_lies_in_a_file_of_its_length_when_the_answer_comes() {
        let sample = sample();
        let world = World::new(&sample);
        let job = sample.job(0, 2);
        let compacted = world.run(&job).unwrap();
        let written = fs::read(world.data_dir.path_of(File::Segment(SUCCESSOR))).unwrap();
        let keys: Vec<_> = left_in(&written, &job, &compacted).into_iter().map(|(_, key, _)| key).collect();
        assert_eq!(keys, ["a", "b", "c"]);
        let (expected, written_in_memory, _) = sample.run(&job, &mut Workspace::default());
        assert_eq!((expected, written_in_memory), (Ok(compacted), written));
    }

    #[test]
    fn a_job_that_fails_leaves_no_file_and_the_next_one_is_carried_out() {
        let sample = sample();
        let world = World::new(&sample);
        let file = sample.sources[1].file;
        fs::write(world.data_dir.path_of(file), b"").unwrap();
        assert_eq!(world.run(&sample.job(1, 1)), Err(CompactError::Read(file, IoError(libc::EIO))));
        assert!(!world.data_dir.files().unwrap().contains_key(&File::Segment(SUCCESSOR)));
        fs::write(world.data_dir.path_of(file), &sample.files[&file]).unwrap();
        assert!(world.run(&sample.job(0, 2)).is_ok());
    }

    #[test]
    fn a_file_that_has_the_name_is_let_alone() {
        let sample = sample();
        let world = World::new(&sample);
        let path = world.data_dir.path_of(File::Segment(SUCCESSOR));
        fs::write(&path, b"somebody's").unwrap();
        assert_eq!(world.run(&sample.job(0, 2)), Err(CompactError::Write(IoError(libc::EEXIST))));
        assert_eq!(fs::read(&path).unwrap(), b"somebody's");
    }

    #[test]
    fn dropped_handle_ends_a_thread_amid_a_job() {
        let mut sample = Sample::default();
        let long = "z".repeat(4 << 20);
        for _ in 0..4 {
            sample.add(&[&[("a", long.as_str())], &[("", long.as_str())]], NOW_MS, Compression::None);
        }
        let world = World::new(&sample);
        world.thread.request(Token(5), Box::new(sample.job(0, 4)), world.reactor.waker());
        let World { answers, thread, data_dir, .. } = world;
        drop(answers);
        drop(thread);
        assert!(!data_dir.files().unwrap().contains_key(&File::Segment(SUCCESSOR)));
    }
}
