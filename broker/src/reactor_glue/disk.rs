//! One operation on a file: before its descriptor is known, in the reactor, and at its end.
//!
//! `DiskOp` waits for its file, `InFlight` is kept while the reactor has the rest of it: what the completion must say
//! again, and what tells a whole transfer from a short one.

use reactor::memory::{Buffer, Slice};
use reactor::{Errno, FileId, Operation, WriteSync};

use crate::io::{Completion, File, IoError, Sync, Token};

/// What the shard asks for, on a file that may not be open yet.
#[derive(Debug)]
pub(super) struct DiskOp {
    pub(super) token: Token,
    pub(super) file: File,
    pub(super) action: Action,
}

#[derive(Debug)]
pub(super) enum Action {
    Read { position: u64, buffer: Buffer, bytes: usize },
    Write { position: u64, data: Slice, sync: Sync },
    Flush,
}

/// What is remembered of an operation until its event comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub(super) token: Token,
    pub(super) file: File,
    /// Bytes to be transferred.
    bytes: usize,
}

impl DiskOp {
    /// The operation on the open file, and what to remember of it.
    pub(super) fn begin(self, id: FileId) -> (InFlight, Operation) {
        let Self { token, file, action } = self;
        let (bytes, operation) = match action {
            Action::Read { position, buffer, bytes } => {
                (bytes, Operation::Read { file: id, position, buffer, bytes })
            }
            Action::Write { position, data, sync } => {
                let sync = match sync {
                    Sync::Later => WriteSync::None,
                    Sync::WithWrite => WriteSync::Data,
                };
                (data.len(), Operation::Write { file: id, position, data, sync })
            }
            Action::Flush => (0, Operation::Flush { file: id }),
        };
        (InFlight { token, file, bytes }, operation)
    }

    /// The completion when the file cannot be opened.
    pub(super) fn fail(self, error: IoError) -> Completion {
        let (token, result) = (self.token, Err(error));
        match self.action {
            Action::Read { buffer, .. } => Completion::ReadDone { token, buffer, result },
            Action::Write { .. } => Completion::Written { token, result },
            Action::Flush => Completion::Flushed { token, result },
        }
    }
}

impl InFlight {
    /// The outcome of a transfer: one that ended short is an error.
    pub(super) fn outcome(&self, result: Result<usize, Errno>) -> Result<(), IoError> {
        whole(result, self.bytes)
    }
}

/// The outcome of a transfer of `bytes` bytes.
pub(super) fn whole(result: Result<usize, Errno>, bytes: usize) -> Result<(), IoError> {
    match result {
        Ok(done) if done == bytes => Ok(()),
        Ok(_) => Err(IoError::SHORT),
        Err(errno) => Err(IoError(errno.0)),
    }
}
