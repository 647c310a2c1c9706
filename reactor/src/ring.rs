//! The kernel's ring: set up, entries in, completions out, registrations.
//!
//! A thin shell over the crate `io-uring` that keeps one more promise than the crate can: its submitter
//! remembers that the ring's own descriptor is registered, so it must live as long as the ring and borrows
//! from it. The ring lives in a box of its own, all borrows of it are shared ones, and each of the two queues
//! has one handle at a time because every method that makes one takes `&mut self` or makes it for a single
//! look. Knows nothing of operations, tables or events.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{Builder, CompletionStatus, IoUring, Probe, Submitter, cqueue, squeue};

use crate::probe::SetupError;

/// How the ring was set up, best first. Each is tried when the kernel does not know the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Completions are worked off inside our own system calls. Linux 6.6.
    Deferred,
    /// The same with the indirection array of older kernels. Linux 6.1.
    DeferredArray,
    /// Completions are worked off at our next system call, whichever it is. Linux 6.0.
    Cooperative,
    /// Completions interrupt us.
    Plain,
}

const LADDER: [Mode; 4] = [Mode::Deferred, Mode::DeferredArray, Mode::Cooperative, Mode::Plain];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Deferred => "deferred task work",
            Self::DeferredArray => "deferred task work, submission array",
            Self::Cooperative => "cooperative task work",
            Self::Plain => "plain",
        }
    }

    fn build(self, submissions: u32, completions: u32) -> io::Result<IoUring> {
        let mut builder: Builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(completions);
        if self != Self::Plain {
            builder.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        }
        if matches!(self, Self::Deferred | Self::DeferredArray) {
            builder.setup_defer_taskrun();
        }
        if self == Self::Deferred {
            builder.setup_no_sqarray();
        }
        builder.build(submissions)
    }
}

/// The boxed ring. Only shared borrows are made of it, also of its queues, until it is freed.
struct Owner(NonNull<IoUring>);

impl Owner {
    fn new(ring: IoUring) -> Self {
        Self(NonNull::from(Box::leak(Box::new(ring))))
    }

    fn ring(&self) -> &IoUring {
        // SAFETY: the box is live until `drop`, and nobody makes a unique borrow of it before.
        unsafe { self.0.as_ref() }
    }

    /// The same, for a field that stands beside the owner.
    ///
    /// # Safety
    /// The borrow is not used any more when the owner is dropped.
    unsafe fn ring_unbound(&self) -> &'static IoUring {
        // SAFETY: as in `ring`; that the borrow ends in time is the caller's promise.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: made by `Box::leak` in `new` and taken back once; the borrows' holders are gone by now.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Field order is drop order: what borrows from `owner` stands before it.
pub(crate) struct Ring {
    submitter: Submitter<'static>,
    completions: CompletionStatus,
    owner: Owner,
    mode: Mode,
}

impl Ring {
    /// Makes a ring for the calling thread, which alone may use it.
    pub(crate) fn new(submissions: u32, completions: u32) -> Result<Self, SetupError> {
        let (ring, mode) = climb_down(submissions, completions)?;
        if !ring.params().is_feature_nodrop() {
            return Err(SetupError::FeatureMissing { name: "IORING_FEAT_NODROP" });
        }
        if !ring.params().is_feature_ext_arg() {
            return Err(SetupError::FeatureMissing { name: "IORING_FEAT_EXT_ARG" });
        }
        let owner = Owner::new(ring);
        // SAFETY: the submitter becomes a field of `Ring` that is dropped before the owner, and is not given
        // out.
        let unbound = unsafe { owner.ring_unbound() };
        let mut submitter = unbound.submitter();
        // Saves the kernel a look-up in each call. A refusal (16 rings on this thread already) costs only
        // that.
        let _ = submitter.register_ring_fd();
        // SAFETY: the ring is new, there is no other handle of its completion queue.
        let queue = unsafe { owner.ring().completion_shared() };
        // SAFETY: the status is a field of `Ring`, dropped before the owner, and not given out.
        let completions = unsafe { queue.status() };
        drop(queue);
        Ok(Self { submitter, completions, owner, mode })
    }

    pub(crate) fn mode(&self) -> &'static str {
        self.mode.name()
    }

    /// Completions that the queue can hold before the kernel keeps them aside.
    pub(crate) fn completions_max(&self) -> u32 {
        self.owner.ring().params().cq_entries()
    }

    /// Adds an entry to the submission queue; `false` when it is full. Nothing reaches the kernel before the
    /// next `submit` or `wait`.
    ///
    /// # Safety
    /// Whatever the entry points at stays valid and in place, and is not changed (nor read, if the kernel
    /// writes it), until the entry's last completion was taken or the ring is dropped with nothing in flight.
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: `&mut self`, and no method keeps a handle: this is the only one of the queue.
        let mut queue = unsafe { self.owner.ring().submission_shared() };
        // SAFETY: the caller's promise.
        let pushed = unsafe { queue.push(entry) };
        pushed.is_ok()
    }

    /// Takes the oldest completion.
    pub(crate) fn pop(&mut self) -> Option<cqueue::Entry> {
        // SAFETY: `&mut self`, and no method keeps a handle: this is the only one of the queue.
        let mut queue = unsafe { self.owner.ring().completion_shared() };
        queue.next()
    }

    /// Whether `pop` would find something.
    pub(crate) fn has_completions(&self) -> bool {
        !self.completions.is_empty()
    }

    /// Whether the kernel has completions that only a system call brings out.
    pub(crate) fn has_work(&mut self) -> bool {
        let queue = self.submissions();
        queue.taskrun() || queue.cq_overflow()
    }

    /// Whether `push` would refuse.
    pub(crate) fn is_full(&mut self) -> bool {
        self.submissions().is_full()
    }

    /// Entries that the kernel has not seen yet.
    pub(crate) fn unsubmitted(&mut self) -> usize {
        self.submissions().len()
    }

    /// Submits what is queued and lets the kernel work off what it deferred, without waiting. Number
    /// submitted.
    pub(crate) fn submit(&mut self) -> usize {
        entered(self.submitter.submit())
    }

    /// The same, and waits until there is a completion, a signal, or the time is over. Number submitted.
    pub(crate) fn wait(&mut self, timeout_ns: Option<u64>) -> usize {
        const SECOND_NS: u64 = 1_000_000_000;
        let Some(timeout_ns) = timeout_ns else {
            return entered(self.submitter.submit_and_wait(1));
        };
        let time = Timespec::new().sec(timeout_ns / SECOND_NS).nsec((timeout_ns % SECOND_NS) as u32);
        let arguments = SubmitArgs::new().timespec(&time);
        entered(self.submitter.submit_with_args(1, &arguments))
    }

    /// Bounds the kernel's worker threads: those for files, those for all else.
    pub(crate) fn limit_workers(&self, workers_max: [u32; 2]) -> io::Result<()> {
        let mut workers_max = workers_max;
        self.submitter.register_iowq_max_workers(&mut workers_max)
    }

    /// Says on which CPUs the worker threads may run.
    pub(crate) fn place_workers(&self, cpus: &[usize]) -> io::Result<()> {
        // SAFETY: a CPU set is an array of bits, for which zero is a value: the empty set.
        let mut set = unsafe { std::mem::zeroed::<libc::cpu_set_t>() };
        for cpu in cpus {
            assert!(*cpu < libc::CPU_SETSIZE as usize, "CPU {cpu} does not fit into a CPU set");
            // SAFETY: sets one bit of `set`; the assert keeps it inside.
            unsafe { libc::CPU_SET(*cpu, &mut set) };
        }
        self.submitter.register_iowq_aff(&set)
    }

    /// Makes room for `count` registered files.
    pub(crate) fn reserve_files(&self, count: u32) -> io::Result<()> {
        self.submitter.register_files_sparse(count)
    }

    /// Gives the ring its own reference to an open file, at place `index`.
    pub(crate) fn register_file(&self, index: u32, descriptor: RawFd) -> io::Result<()> {
        self.submitter.register_files_update(index, &[descriptor]).map(drop)
    }

    /// Which operations the kernel knows.
    pub(crate) fn probe(&self) -> io::Result<Probe> {
        let mut probe = Probe::new();
        self.submitter.register_probe(&mut probe)?;
        Ok(probe)
    }

    /// A handle of the submission queue, to be dropped before the next is made.
    fn submissions(&mut self) -> squeue::SubmissionQueue<'_> {
        // SAFETY: the answer borrows `self` uniquely, so there is no other handle while it lives.
        unsafe { self.owner.ring().submission_shared() }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // A registered descriptor would keep the kernel's ring alive until the thread ends. An error means
        // that registering was refused at the start.
        let _ = self.submitter.unregister_ring_fd();
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ring").field("mode", &self.mode).finish_non_exhaustive()
    }
}

fn climb_down(submissions: u32, completions: u32) -> Result<(IoUring, Mode), SetupError> {
    let mut refusal = io::Error::from_raw_os_error(libc::EINVAL);
    for mode in LADDER {
        match mode.build(submissions, completions) {
            Ok(ring) => return Ok((ring, mode)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = error,
            Err(error) => return Err(SetupError::from_ring_setup(error)),
        }
    }
    Err(SetupError::from_ring_setup(refusal))
}

/// Entries submitted. Where the kernel took none, they stay in the queue for the next call.
fn entered(result: io::Result<usize>) -> usize {
    let error = match result {
        Ok(submitted) => return submitted,
        Err(error) => error,
    };
    match error.raw_os_error() {
        // The time is over, a signal came, the kernel is short of memory, or wants completions taken first.
        Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY) => 0,
        _ => panic!("the ring is unusable: io_uring_enter: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::opcode;

    #[test]
    fn every_mode_that_the_kernel_knows_completes_an_entry() {
        for mode in LADDER {
            match mode.build(8, 16) {
                Ok(ring) => assert!(ring.params().cq_entries() >= 16),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{mode:?}"),
            }
        }
    }

    #[test]
    fn entry_goes_in_and_its_completion_comes_out() {
        let mut ring = Ring::new(8, 16).unwrap();
        let entry = opcode::Nop::new().build().user_data(42);
        // SAFETY: an entry of this kind points at nothing.
        let pushed = unsafe { ring.push(&entry) };
        assert!(pushed);
        assert_eq!(ring.unsubmitted(), 1);
        assert_eq!(ring.wait(None), 1);
        assert!(ring.has_completions());
        let completion = ring.pop().unwrap();
        assert_eq!((completion.user_data(), completion.result()), (42, 0));
        assert!(ring.pop().is_none());
        assert!(!ring.has_completions());
    }

    #[test]
    fn full_submission_queue_refuses() {
        let mut ring = Ring::new(4, 16).unwrap();
        let entry = opcode::Nop::new().build();
        for _ in 0..4 {
            // SAFETY: an entry of this kind points at nothing.
            let pushed = unsafe { ring.push(&entry) };
            assert!(pushed);
        }
        assert!(ring.is_full());
        // SAFETY: as above.
        let pushed = unsafe { ring.push(&entry) };
        assert!(!pushed);
        assert_eq!(ring.submit(), 4);
        assert!(!ring.is_full());
    }

    #[test]
    fn wait_ends_when_its_time_is_over() {
        let mut ring = Ring::new(8, 16).unwrap();
        let begin_ns = crate::clock::monotonic_ns();
        assert_eq!(ring.wait(Some(1_000_000)), 0);
        assert!(crate::clock::monotonic_ns() >= begin_ns + 1_000_000);
    }

    #[test]
    fn many_rings_one_after_another_leave_no_registration_behind() {
        // A thread has 16 places for registered rings.
        for _ in 0..40 {
            let mut ring = Ring::new(4, 8).unwrap();
            assert_eq!(ring.submit(), 0);
        }
    }
}
