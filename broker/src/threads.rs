//! The threads of a shard that do what would block its loop, and the way back from them.
//!
//! One for each kind of slowness, so that none waits behind another: the preparer writes whole files, the file thread
//! changes the directory, the sync thread waits for the device, the compaction thread rewrites segments. All answer
//! through one bounded channel, which the loop looks at in every turn, and wake the reactor after each answer.

use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};

use reactor::Waker;
use reactor::memory::Toucher;

use crate::compact_thread::CompactThread;
use crate::file_thread::FileThread;
use crate::preparer::Preparer;
use crate::reactor_glue::{BlockingAnswer, BlockingRequest};
use crate::sync_thread::SyncThread;

/// Answers that wait for the loop; the threads wait behind it. Each may hold an open file, which counts against the
/// process's limit.
const ANSWERS_WAITING_MAX: usize = 64;

/// Handles to the threads. Fields are dropped in order: with the answers' end gone, no thread waits for the loop.
#[derive(Debug)]
pub struct Threads {
    answers: Receiver<BlockingAnswer>,
    preparer: Preparer,
    file_thread: FileThread,
    sync_thread: SyncThread,
    compact_thread: CompactThread,
}

impl Threads {
    /// Starts the threads for an opened data directory. They may run where the caller may: call this before the caller
    /// pins itself.
    ///
    /// # Errors
    /// When the directory cannot be opened, or no thread started.
    pub fn start(directory: &Path) -> io::Result<Self> {
        let (outbox, answers) = sync_channel(ANSWERS_WAITING_MAX);
        Ok(Self {
            answers,
            preparer: Preparer::start(directory, outbox.clone())?,
            file_thread: FileThread::start(directory, outbox.clone())?,
            sync_thread: SyncThread::start(directory, outbox.clone())?,
            compact_thread: CompactThread::start(directory, outbox)?,
        })
    }

    /// Hands a request to its thread; the waker is used when there is an answer.
    pub fn request(&self, request: BlockingRequest, waker: Waker) {
        match request {
            BlockingRequest::Prepare { file, bytes } => self.preparer.request(file, bytes, waker),
            BlockingRequest::File(request) => self.file_thread.request(request, waker),
            BlockingRequest::SyncAll { token } => self.sync_thread.request(token, waker),
            BlockingRequest::Compact { token, job } => self.compact_thread.request(token, job, waker),
        }
    }

    /// Has the shard's memory made resident, so that its first use costs the shard nothing.
    pub fn touch(&self, toucher: Toucher) {
        self.preparer.touch(toucher);
    }

    /// An answer, if there is one.
    pub fn next_answer(&self) -> Option<BlockingAnswer> {
        self.answers.try_recv().ok()
    }
}
