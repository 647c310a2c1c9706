//! The preparer: one thread that makes files and touches memory, so that no shard ever waits for either.
//!
//! A file is made under another name, written with zeros, synced, renamed, and its directory synced: when it has its
//! name, it has its full length in written extents, and every later write to it is a pure overwrite.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use reactor::Waker;
use reactor::file::{FileError, Zeroed, open_direct, sync_directory, write_zeros};
use reactor::memory::{Pool, Toucher};

use crate::data_dir::path_of;
use crate::io::{File, IoError};

/// Length of one write of zeros.
const ZERO_BUFFER_BYTES: usize = 1 << 20;

/// A file that was asked for.
#[derive(Debug)]
pub struct Prepared {
    /// Which.
    pub file: File,
    /// The file, opened for direct I/O.
    pub result: Result<OwnedFd, IoError>,
}

#[derive(Debug)]
enum Request {
    File { file: File, bytes: u64, waker: Waker },
    Touch(Toucher),
}

/// Handle to the thread. Dropping it ends the thread, within one write.
#[derive(Debug)]
pub struct Preparer {
    requests: Option<Sender<Request>>,
    results: Receiver<Prepared>,
    cancel: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Preparer {
    /// Starts the thread. It may run where the caller may: call this before the caller pins itself.
    ///
    /// # Errors
    /// When no thread can be started.
    #[allow(clippy::disallowed_methods, reason = "the one helper thread of a shard")]
    pub fn start(directory: &Path) -> io::Result<Self> {
        let (requests, inbox) = channel::<Request>();
        let (outbox, results) = channel();
        let cancel = Arc::new(AtomicBool::new(false));
        let worker = Worker { directory: directory.to_owned(), cancel: Arc::clone(&cancel) };
        let thread = std::thread::Builder::new().name("preparer".to_owned()).spawn(move || {
            while let Ok(request) = inbox.recv() {
                match request {
                    Request::File { file, bytes, waker } => {
                        let result = worker.prepare(file, bytes).map_err(|error| error_of(&error));
                        if outbox.send(Prepared { file, result }).is_err() {
                            return;
                        }
                        waker.wake();
                    }
                    Request::Touch(toucher) => worker.touch(&toucher),
                }
            }
        })?;
        Ok(Self { requests: Some(requests), results, cancel, thread: Some(thread) })
    }

    /// Asks for a file, and to be woken when it is ready. At most one request for each file is under way, so the queue is bounded by their number.
    pub fn request(&self, file: File, bytes: u64, waker: Waker) {
        let requests = self.requests.as_ref().expect("the thread lives as long as its handle");
        requests.send(Request::File { file, bytes, waker }).expect("the thread ends only with its handle");
    }

    /// Has the shard's memory made resident, so that its first use costs the shard nothing.
    pub fn touch(&self, toucher: Toucher) {
        let requests = self.requests.as_ref().expect("the thread lives as long as its handle");
        requests.send(Request::Touch(toucher)).expect("the thread ends only with its handle");
    }

    /// A file that is ready, if there is one.
    pub fn poll(&self) -> Option<Prepared> {
        self.results.try_recv().ok()
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
        sync_directory(&self.directory)?;
        Ok(descriptor)
    }

    fn write(&self, path: &Path, bytes: u64) -> io::Result<OwnedFd> {
        let descriptor = open_direct(path, true).map_err(|error| match error {
            FileError::Open { source, .. } => source,
            other @ FileError::NoDirectIo { .. } => io::Error::new(io::ErrorKind::Unsupported, other),
        })?;
        let pool = Pool::new(ZERO_BUFFER_BYTES).map_err(io::Error::other)?;
        let mut buffer = pool.buffer(ZERO_BUFFER_BYTES).expect("the pool is fresh");
        match write_zeros(&descriptor, bytes, &mut buffer, &self.cancel)? {
            Zeroed::Complete => Ok(descriptor),
            Zeroed::Cancelled => Err(io::Error::from_raw_os_error(libc::ECANCELED)),
        }
    }
}

fn error_of(error: &io::Error) -> IoError {
    IoError(error.raw_os_error().unwrap_or(libc::EIO))
}
