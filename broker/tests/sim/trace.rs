//! Operations and completions as words, for the trace that tells one run from another.
//!
//! The same seed has to give the same trace; what is not in it may differ unseen.

use broker::io::{Completion, File, Op};
use protocol::crc::crc32c;

/// A number for a file; no two files of a run share one.
fn number_of(file: File) -> u64 {
    match file {
        File::Superblock => u64::MAX,
        File::Snapshot(number) => u64::MAX - 1 - u64::from(number),
        File::Journal(number) => u64::from(number),
        File::Segment(number) => number | 1 << 62,
    }
}

pub(crate) fn trace_of_op(op: &Op) -> [u64; 4] {
    match op {
        Op::Receive { socket, start, .. } => {
            [1, u64::from(socket.slot), u64::from(socket.generation), *start as u64]
        }
        Op::Send { socket, parts } => [2, u64::from(socket.slot), parts.len() as u64, parts.bytes() as u64],
        Op::Close { socket } => [3, u64::from(socket.slot), u64::from(socket.generation), 0],
        Op::PrepareFile { file, bytes } => [4, number_of(*file), *bytes, 0],
        Op::Read { file, position, bytes, .. } => [5, number_of(*file), *position, *bytes as u64],
        Op::Write { file, position, data, .. } => [6, number_of(*file), *position, u64::from(crc32c(data))],
        Op::Flush { token, file } => [7, number_of(*file), token.0, 0],
        Op::Allocate { file, bytes, header } => [20, number_of(*file), *bytes, u64::from(header.is_some())],
        Op::Shrink { file, bytes } => [21, number_of(*file), *bytes, 0],
        Op::Remove { file } => [22, number_of(*file), 0, 0],
        Op::SyncAll { token } => [23, token.0, 0, 0],
        Op::Compact { token, job } => [27, token.0, job.number, job.sources.len() as u64],
    }
}

pub(crate) fn trace_of_completion(completion: &Completion) -> [u64; 4] {
    match completion {
        Completion::Accepted { socket } => [8, u64::from(socket.slot), u64::from(socket.generation), 0],
        Completion::Received { socket, buffer, start, result, .. } => {
            let count = result.unwrap_or_default();
            let sum = crc32c(&buffer[*start..*start + count]);
            [9, u64::from(socket.slot), count as u64, u64::from(sum)]
        }
        Completion::Sent { socket, result, .. } => [10, u64::from(socket.slot), u64::from(result.is_ok()), 0],
        Completion::FilePrepared { file, result } => [11, number_of(*file), u64::from(result.is_ok()), 0],
        Completion::ReadDone { token, result, .. } => [12, token.0, u64::from(result.is_ok()), 0],
        Completion::Written { token, result } => [13, token.0, u64::from(result.is_ok()), 0],
        Completion::Flushed { token, result } => [14, token.0, u64::from(result.is_ok()), 0],
        Completion::Allocated { file, bytes, result } => {
            [24, number_of(*file), *bytes, u64::from(result.is_ok())]
        }
        Completion::Removed { file, result } => [25, number_of(*file), u64::from(result.is_ok()), 0],
        Completion::AllSynced { token, result } => [26, token.0, u64::from(result.is_ok()), 0],
        Completion::Compacted { token, result } => [28, token.0, u64::from(result.is_ok()), 0],
    }
}
