//! The ring of the one thread: what is handed to the kernel, what comes back, and how to wait for it.
//!
//! It is set up for one issuer and deferred task work, so a completion shows only after an `enter` that asks for
//! events; the kernel's task-run flag says when one is worth it. The ring's three parts are split off once and kept,
//! because the registered descriptor is remembered by the `Submitter` and not by the ring. It does not know what
//! the operations mean.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{CompletionQueue, IoUring, SubmissionQueue, Submitter, squeue};

use crate::connection::CONNECTIONS_MAX;
use crate::disk::BLOCKS_IN_FLIGHT_MAX;
use crate::waiting::Rest;

/// Operations that one turn may hand over.
const SUBMISSIONS_MAX: u32 = 1024;
/// Completions that may lie unread.
const COMPLETIONS_MAX: u32 = 4096;

// A turn hands over at most one receive and one send for each connection, the blocks, a flush and the accept.
const _: () = assert!(2 * CONNECTIONS_MAX + BLOCKS_IN_FLIGHT_MAX + 2 <= SUBMISSIONS_MAX as usize);
// All that can be under way at once fits beside a backlog of accepted connections.
const _: () = assert!(2 * SUBMISSIONS_MAX <= COMPLETIONS_MAX);

/// Sets up the kernel's side. It belongs to the calling thread.
pub(crate) fn build() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_coop_taskrun()
        .setup_submit_all()
        .setup_no_sqarray()
        .setup_clamp()
        .setup_cqsize(COMPLETIONS_MAX)
        .build(SUBMISSIONS_MAX)
}

/// The three parts of a ring.
pub(crate) struct Ring<'r> {
    submitter: Submitter<'r>,
    submissions: SubmissionQueue<'r>,
    completions: CompletionQueue<'r>,
}

impl<'r> Ring<'r> {
    pub(crate) fn new(uring: &'r mut IoUring) -> io::Result<Self> {
        let (mut submitter, submissions, completions) = uring.split();
        submitter.register_ring_fd()?;
        Ok(Self { submitter, submissions, completions })
    }

    /// Queues an operation; the next `wait` hands it over.
    ///
    /// # Safety
    /// The memory that the entry points to must stay allocated until the operation's completion was taken, and,
    /// if the kernel writes to it, must not be looked at before.
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry's memory is valid for the whole operation; our caller keeps that promise.
        let pushed = unsafe { self.submissions.push(entry) };
        assert!(pushed.is_ok(), "the queue holds all that one turn can ask for");
    }

    /// Takes the next completion that `wait` has seen.
    pub(crate) fn take(&mut self) -> Option<Completion> {
        let entry = self.completions.next()?;
        let token = Token::from_user_data(entry.user_data());
        Some(Completion { token, result: entry.result(), flags: entry.flags() })
    }

    /// Hands over what was queued and rests until completions are there, not at all if some are left over.
    /// Returns the time spent spinning. A signal may end it early.
    pub(crate) fn wait(&mut self, rest: Rest) -> io::Result<Duration> {
        if rest == Rest::Sleep {
            self.enter(1)?;
            return Ok(Duration::ZERO);
        }
        if !self.submissions.is_empty() || self.submissions.taskrun() {
            self.enter(0)?;
        }
        if self.has_completions() {
            return Ok(Duration::ZERO);
        }
        let began = Instant::now();
        loop {
            // Without this the kernel's flush worker starves where it shares the core.
            thread::yield_now();
            if self.submissions.taskrun() {
                self.enter(0)?;
            }
            if self.has_completions() {
                return Ok(began.elapsed());
            }
            let now = Instant::now();
            if rest.is_over(now) {
                self.enter(1)?;
                return Ok(now - began);
            }
        }
    }

    /// The one system call: hands over, runs deferred work if there is any, sleeps until `want` completions lie there.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        self.submissions.sync();
        self.completions.sync();
        let entered = self.submitter.submit_and_wait(want);
        self.submissions.sync();
        self.completions.sync();
        match entered {
            Ok(_) => Ok(()),
            // A signal, or the kernel wants its completions to be read first: the next turn comes back.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn has_completions(&mut self) -> bool {
        self.completions.sync();
        !self.completions.is_empty()
    }
}

/// Which operation a completion answers; travels through the kernel as 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// The listener's multishot accept.
    Accept,
    /// A receive of the connection in this slot.
    Receive(usize),
    /// A send of the connection in this slot.
    Send(usize),
    /// The write of the block with this sequence.
    Write(u64),
    /// The flush.
    Flush,
}

impl Token {
    /// Bits 0..8 say which operation, the rest which one of them.
    pub(crate) fn user_data(self) -> u64 {
        match self {
            Self::Accept => 0,
            Self::Receive(slot) => 1 | (slot as u64) << 8,
            Self::Send(slot) => 2 | (slot as u64) << 8,
            Self::Write(sequence) => 3 | sequence << 8,
            Self::Flush => 4,
        }
    }

    fn from_user_data(user_data: u64) -> Self {
        let number = user_data >> 8;
        match user_data & 0xFF {
            0 => Self::Accept,
            1 => Self::Receive(number as usize),
            2 => Self::Send(number as usize),
            3 => Self::Write(number),
            4 => Self::Flush,
            kind => unreachable!("no operation was handed over with kind {kind}"),
        }
    }
}

/// What the kernel said about one operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) token: Token,
    /// Bytes or a descriptor; below 0 an errno.
    pub(crate) result: i32,
    /// `IORING_CQE_F_*`.
    pub(crate) flags: u32,
}

impl Completion {
    /// The result as Rust has it.
    pub(crate) fn outcome(&self) -> io::Result<usize> {
        usize::try_from(self.result).map_err(|_| io::Error::from_raw_os_error(-self.result))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_went() {
        let last_slot = CONNECTIONS_MAX - 1;
        let tokens =
            [Token::Accept, Token::Receive(0), Token::Send(last_slot), Token::Write(1 << 40), Token::Flush];
        for token in tokens {
            assert_eq!(Token::from_user_data(token.user_data()), token);
        }
    }

    #[test]
    fn a_pushed_operation_completes_asleep_and_spinning() {
        let mut uring = build().expect("ring");
        let mut ring = Ring::new(&mut uring).expect("registered ring");
        for rest in [Rest::Sleep, Rest::Spin, Rest::SpinUntil(Instant::now())] {
            let entry = io_uring::opcode::Nop::new().build().user_data(Token::Flush.user_data());
            // SAFETY: the operation points to no memory.
            unsafe { ring.push(&entry) };
            ring.wait(rest).expect("wait");
            let completion = ring.take().expect("completion");
            assert_eq!((completion.token, completion.result), (Token::Flush, 0));
            assert!(ring.take().is_none());
        }
    }
}
