//! The preparer: one thread that makes files of zeros and touches memory, so that no shard ever waits for either.
//!
//! A file is made under another name, written with zeros, synced, renamed, and its directory synced: when it has its
//! name, it has its full length in written extents, and every later write to it is a pure overwrite. That takes long,
//! so whatever is quick has another thread.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender, channel};
use std::thread::JoinHandle;

use reactor::Waker;
use reactor::file::{FileError, Zeroed, open_direct, sync_directory, write_zeros};
use reactor::memory::{Pool, Toucher};

use crate::data_dir::path_of;
use crate::io::{File, IoError};
use crate::reactor_glue::BlockingAnswer;

/// Length of one write of zeros.
const ZERO_BUFFER_BYTES: usize = 1 << 20;

#[derive(Debug)]
enum Request {
    File { file: File, bytes: u64, waker: Waker },
    Touch(Toucher),
}

/// Handle to the thread. Dropping it ends the thread, within one write.
#[derive(Debug)]
pub struct Preparer {
    /// Bounded by the files under way: a shard asks for one at a time.
    requests: Option<Sender<Request>>,
    cancel: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Preparer {
    /// Starts the thread, which answers through `outbox`. It may run where the caller may: call this before the caller
    /// pins itself.
    ///
    /// # Errors
    /// When no thread can be started.
    #[allow(clippy::disallowed_methods, reason = "a thread of a shard that may block")]
    pub fn start(directory: &Path, outbox: SyncSender<BlockingAnswer>) -> io::Result<Self> {
        let (requests, inbox) = channel::<Request>();
        let cancel = Arc::new(AtomicBool::new(false));
        let worker = Worker { directory: directory.to_owned(), cancel: Arc::clone(&cancel) };
        let thread = std::thread::Builder::new().name("preparer".to_owned()).spawn(move || {
            while let Ok(request) = inbox.recv() {
                match request {
                    Request::File { file, bytes, waker } => {
                        let result = worker.prepare(file, bytes).map_err(|error| error_of(&error));
                        if outbox.send(BlockingAnswer::Prepared { file, result }).is_err() {
                            return;
                        }
                        waker.wake();
                    }
                    Request::Touch(toucher) => worker.touch(&toucher),
                }
            }
        })?;
        Ok(Self { requests: Some(requests), cancel, thread: Some(thread) })
    }

    /// Asks for a file; the waker is used when there is an answer.
    pub fn request(&self, file: File, bytes: u64, waker: Waker) {
        self.send(Request::File { file, bytes, waker });
    }

    /// Has the shard's memory made resident, so that its first use costs the shard nothing.
    pub fn touch(&self, toucher: Toucher) {
        self.send(Request::Touch(toucher));
    }

    fn send(&self, request: Request) {
        let requests = self.requests.as_ref().expect("the thread lives as long as its handle");
        requests.send(request).expect("the thread ends only with its handle");
    }
}

impl Drop for Preparer {
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
    cancel: Arc<AtomicBool>,
}

impl Worker {
    /// A refusal costs speed only: pages then become resident when they are first used.
    fn touch(&self, toucher: &Toucher) {
        if let Err(error) = toucher.touch(&self.cancel) {
            tracing::warn!(%error, "cannot make the memory budget resident ahead of its use");
        }
    }

    fn prepare(&self, file: File, bytes: u64) -> io::Result<OwnedFd> {
        let path = path_of(&self.directory, file);
        let unfinished = path.with_extension("tmp");
        // What an earlier start left of it may be longer than what is wanted now.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let result = self.write(&unfinished, bytes);
        if result.is_err() {
            // Gives the space back; it is made again from the start.
            let _ = fs::remove_file(&unfinished);
        }
        let descriptor = result?;
        fs::rename(&unfinished, &path)?;
        sync_directory(path.parent().unwrap_or(&self.directory))?;
        Ok(descriptor)
    }

    fn write(&self, path: &Path, bytes: u64) -> io::Result<OwnedFd> {
        let descriptor = open(path, true)?;
        let pool = Pool::new(ZERO_BUFFER_BYTES).map_err(io::Error::other)?;
        let mut buffer = pool.buffer(ZERO_BUFFER_BYTES).expect("the pool is fresh");
        match write_zeros(&descriptor, bytes, &mut buffer, &self.cancel)? {
            Zeroed::Complete => Ok(descriptor),
            Zeroed::Cancelled => Err(io::Error::from_raw_os_error(libc::ECANCELED)),
        }
    }
}

/// Opens a file for direct I/O, with an error that the shard can be told.
pub(crate) fn open(path: &Path, create: bool) -> io::Result<OwnedFd> {
    open_direct(path, create).map_err(|error| match error {
        FileError::Open { source, .. } => source,
        FileError::NoDirectIo { .. } => io::Error::from_raw_os_error(libc::EINVAL),
    })
}

/// The error as the shard is told it.
pub(crate) fn error_of(error: &io::Error) -> IoError {
    IoError(error.raw_os_error().unwrap_or(libc::EIO))
}
