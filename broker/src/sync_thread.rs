//! The sync thread: makes everything durable that was written to any file of the data directory.
//!
//! One sync of the file system can take as long as the device needs for all that it holds back, other programs' data
//! included. Nothing else waits behind it.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Sender, SyncSender, channel};

use reactor::Waker;
use reactor::file::sync_file_system;

use crate::data_dir::LOCK_NAME;
use crate::io::Token;
use crate::preparer::error_of;
use crate::reactor_glue::BlockingAnswer;

/// Handle to the thread. It ends soon after its handle; nobody waits for that, because a sync that has begun cannot be
/// cut short, and has nothing to tell any more.
#[derive(Debug)]
pub struct SyncThread {
    /// Bounded by the checkpoints under way: a shard has one at a time.
    requests: Sender<(Token, Waker)>,
}

impl SyncThread {
    /// Starts the thread for an opened data directory; it answers through `outbox`. It may run where the caller may:
    /// call this before the caller pins itself.
    ///
    /// # Errors
    /// When the directory cannot be opened, or no thread started.
    #[allow(clippy::disallowed_methods, reason = "a thread of a shard that may block")]
    pub fn start(directory: &Path, outbox: SyncSender<BlockingAnswer>) -> io::Result<Self> {
        let (requests, inbox) = channel::<(Token, Waker)>();
        // Open from here on, so that no failure of the file system's own writing is missed.
        let root = fs::File::open(directory)?;
        let any_file = fs::File::open(directory.join(LOCK_NAME))?;
        std::thread::Builder::new().name("sync".to_owned()).spawn(move || {
            while let Ok((token, waker)) = inbox.recv() {
                let result = sync_all(&root, &any_file).map_err(|error| error_of(&error));
                if outbox.send(BlockingAnswer::AllSynced { token, result }).is_err() {
                    return;
                }
                waker.wake();
            }
        })?;
        Ok(Self { requests })
    }

    /// Asks for a sync of all that was written before; the waker is used when there is an answer.
    pub fn request(&self, token: Token, waker: Waker) {
        self.requests.send((token, waker)).expect("the thread ends only with its handle");
    }
}

/// XFS syncs a file system by forcing its log: with nothing to log, after pure overwrites, the device keeps its cache.
/// A file's own sync always ends with a flush of the device.
fn sync_all(root: &fs::File, any_file: &fs::File) -> io::Result<()> {
    sync_file_system(root)?;
    any_file.sync_data()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use reactor::Reactor;

    use super::*;
    use crate::data_dir::DataDir;

    #[test]
    fn each_request_is_answered_with_its_token() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(directory.path(), true).unwrap();
        let (outbox, answers) = sync_channel(1);
        let thread = SyncThread::start(data_dir.path(), outbox).unwrap();
        let config = reactor::Config { operations_max: 8, ..reactor::Config::default() };
        let reactor = Reactor::new(config).unwrap();
        for number in 1..=2 {
            thread.request(Token(number), reactor.waker());
        }
        for number in 1..=2 {
            match answers.recv().unwrap() {
                BlockingAnswer::AllSynced { token, result: Ok(()) } => assert_eq!(token, Token(number)),
                other => panic!("{other:?}"),
            }
        }
    }
}
