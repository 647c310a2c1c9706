//! Every submission entry that a reactor can make, in one place.
//!
//! An entry is only numbers: nothing here touches the memory that it names. That the memory stays where it
//! is, and is not freed or changed until the last completion, is the reactor's duty (see `Ring::push`).
//! Descriptors are given by number; the tables keep them open until their operations have ended.

use std::os::fd::RawFd;

use io_uring::types::{CancelBuilder, Fd, FsyncFlags};
use io_uring::{opcode, squeue};

use crate::operation::{Operation, WriteSync};
use crate::tag::Tag;

/// `IORING_RECVSEND_POLL_FIRST`, which the crate `io-uring` keeps to itself.
const POLL_FIRST: u16 = 1;

/// All or an error, and no SIGPIPE.
const SEND_FLAGS: u32 = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;

/// The entry of a caller's operation. It points into buffers and boxed parts, not into `operation` itself.
pub(crate) fn operation(operation: &mut Operation, descriptor: RawFd) -> squeue::Entry {
    let descriptor = Fd(descriptor);
    match operation {
        Operation::Receive { buffer, start, poll_first, .. } => {
            let bytes = length(buffer.capacity() - *start);
            let priority = if *poll_first { POLL_FIRST } else { 0 };
            opcode::Recv::new(descriptor, buffer.pointer(*start), bytes).ioprio(priority).build()
        }
        Operation::Send { parts, .. } => {
            opcode::SendMsg::new(descriptor, parts.prepare()).flags(SEND_FLAGS).build()
        }
        Operation::Read { position, buffer, bytes, .. } => {
            opcode::Read::new(descriptor, buffer.pointer(0), length(*bytes)).offset(*position).build()
        }
        Operation::Write { position, data, sync, .. } => {
            let flags = match sync {
                WriteSync::None => 0,
                WriteSync::Data => libc::RWF_DSYNC,
            };
            let write = opcode::Write::new(descriptor, data.as_ptr(), length(data.len()));
            write.offset(*position).rw_flags(flags).build()
        }
        Operation::Flush { .. } => opcode::Fsync::new(descriptor).flags(FsyncFlags::DATASYNC).build(),
    }
}

/// Takes connections until it fails or is cancelled. They block, and are closed on exec.
pub(crate) fn accept(listener: RawFd, tag: Tag) -> squeue::Entry {
    opcode::AcceptMulti::new(Fd(listener)).flags(libc::SOCK_CLOEXEC).build().user_data(tag.encode())
}

/// Completes each time something is written to the eventfd.
pub(crate) fn watch(eventfd: RawFd) -> squeue::Entry {
    let poll = opcode::PollAdd::new(Fd(eventfd), libc::POLLIN as u32).multi(true);
    poll.build().user_data(Tag::Wake.encode())
}

/// Ends the operation with this tag.
pub(crate) fn cancel(tag: Tag) -> squeue::Entry {
    cancel_matching(CancelBuilder::user_data(tag.encode()))
}

/// Ends all that can be ended.
pub(crate) fn cancel_all() -> squeue::Entry {
    cancel_matching(CancelBuilder::any())
}

fn cancel_matching(matching: CancelBuilder) -> squeue::Entry {
    opcode::AsyncCancel2::new(matching).build().user_data(Tag::Cancel.encode())
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a buffer is much shorter than 4 GiB")
}
