//! One shard, one connection, and an outside that carries out every operation at once, in virtual time.
//!
//! Nothing here fails and nothing waits, but for writes to the journal while they are held back: so a start over a
//! small directory costs some hundred microseconds.

use broker::io::{Completion, File, Mail, Now, Op, Socket};
use broker::journal::recovery::RecoveryError;
use broker::journal::{Durability, JournalLayout};
use broker::shard::{Shard, ShardConfig, ShardFailure};
use protocol::status::Status;
use reactor::memory::{Buffer, Pool};

use crate::disk::Disk;
use crate::wire::{self, Answer};

/// Appends leave 1 MiB of the journal to other entries, so it cannot be shorter; short files are used again soon.
const LAYOUT: JournalLayout = JournalLayout { file_bytes: 32 << 10, file_count: 44 };
/// Half a journal file: a block with one frame always fits into one.
const FRAME_BYTES_MAX: u32 = 16 << 10;
/// Of the data directory.
pub(crate) const DIRECTORY_ID: u128 = 0xF11B << 64 | 7;
/// Memory of a shard.
const POOL_BYTES: usize = 32 << 20;
const SOCKET: Socket = Socket { slot: 0, generation: 0 };
const START_NS: u64 = 1_000_000_000;
/// What a turn takes.
const TURN_NS: u64 = 1_000;
const MS: u64 = 1_000_000;
/// Turns without an end to be seen; more means that something goes round in circles.
const TURNS_MAX: u32 = 20_000;
/// Milliseconds after which an answer will not come.
const PATIENCE_MS: u32 = 100;

/// Why nobody serves.
#[derive(Debug)]
pub(crate) enum NoStart {
    /// Recovery says why.
    Refused(RecoveryError),
    /// Something that must not happen.
    Broken(String),
}

/// Everything but the shard.
struct Outside<'a> {
    disk: Disk<'a>,
    completions: Vec<Completion>,
    /// The buffer of the receive that waits for bytes, and where they begin in it.
    receive: Option<(Buffer, usize)>,
    /// Completions of writes to the journal, while they are held back.
    held: Option<Vec<Completion>>,
    /// What the shard has sent.
    sent: Vec<u8>,
}

impl Outside<'_> {
    fn carry_out(&mut self, op: Op) {
        let completion = match op {
            Op::Receive { buffer, start, .. } => {
                self.receive = Some((buffer, start));
                return;
            }
            Op::Send { socket, parts } => {
                for part in parts.iter() {
                    self.sent.extend_from_slice(part);
                }
                Completion::Sent { socket, parts, result: Ok(()) }
            }
            Op::Close { .. } => {
                self.receive = None;
                return;
            }
            Op::PrepareFile { file, bytes } => {
                self.disk.make(file, bytes, None);
                Completion::FilePrepared { file, result: Ok(()) }
            }
            Op::Allocate { file, bytes, header } => {
                self.disk.make(file, bytes, header.as_deref());
                Completion::Allocated { file, bytes, result: Ok(()) }
            }
            Op::Shrink { file, bytes } => {
                self.disk.shrink(file, bytes);
                return;
            }
            Op::Remove { file } => {
                self.disk.remove(file);
                Completion::Removed { file, result: Ok(()) }
            }
            Op::SyncAll { token } => Completion::AllSynced { token, result: Ok(()) },
            Op::Flush { token, .. } => Completion::Flushed { token, result: Ok(()) },
            Op::Read { token, file, position, mut buffer, bytes } => {
                let result = self.disk.read(file, position, &mut buffer[..bytes]);
                Completion::ReadDone { token, buffer, result }
            }
            Op::Write { token, file, position, data, .. } => {
                self.disk.write(file, position, &data);
                let written = Completion::Written { token, result: Ok(()) };
                if let Some(held) = self.held.as_mut().filter(|_| matches!(file, File::Journal(_))) {
                    held.push(written);
                    return;
                }
                written
            }
            other => panic!("no topic here is compacted: {other:?}"),
        };
        self.completions.push(completion);
    }
}

/// A shard that serves one connection.
pub(crate) struct World<'a> {
    shard: Shard,
    outside: Outside<'a>,
    /// Handed in and emptied in each turn.
    arrived: Vec<Completion>,
    elapsed_ns: u64,
    wall_start_ms: u64,
    /// Recovery has looked at segments.
    pub(crate) has_recovered_from_segments: bool,
}

impl<'a> World<'a> {
    /// Starts a shard over what the disk holds, and connects to it.
    pub(crate) fn start(disk: Disk<'a>, pool: &Pool, wall_ms: u64) -> Result<Self, NoStart> {
        let files = disk.lengths().clone();
        let shard = Shard::new(config(), files, pool.clone()).map_err(NoStart::Refused)?;
        let outside = Outside { disk, completions: Vec::new(), receive: None, held: None, sent: Vec::new() };
        let mut world = Self {
            shard,
            outside,
            arrived: Vec::new(),
            elapsed_ns: 0,
            wall_start_ms: wall_ms,
            has_recovered_from_segments: false,
        };
        for _ in 0..TURNS_MAX {
            // What is asked for in the last of these turns is the scrub's: nobody has seen it when recovery ends.
            world.has_recovered_from_segments = world.outside.disk.segment_reads > 0;
            world.turn();
            match world.shard.failure() {
                Some(ShardFailure::Recovery(error)) => return Err(NoStart::Refused(error)),
                Some(ShardFailure::Storage(failure)) => return Err(NoStart::Broken(format!("{failure:?}"))),
                None if world.shard.is_ready() => return world.connect(),
                None => {}
            }
        }
        Err(NoStart::Broken("recovery comes to no end".to_owned()))
    }

    fn connect(mut self) -> Result<Self, NoStart> {
        self.outside.completions.push(Completion::Accepted { socket: SOCKET });
        self.settle();
        let is_greeted = self.ask(&wire::hello()).is_some_and(|answer| answer.status == Status::Ok);
        if is_greeted { Ok(self) } else { Err(NoStart::Broken("a greeting was not returned".to_owned())) }
    }

    pub(crate) fn now(&self) -> Now {
        Now { monotonic_ns: START_NS + self.elapsed_ns, wall_ms: self.wall_start_ms + self.elapsed_ns / MS }
    }

    pub(crate) fn disk(&self) -> &Disk<'a> {
        &self.outside.disk
    }

    pub(crate) fn disk_mut(&mut self) -> &mut Disk<'a> {
        &mut self.outside.disk
    }

    /// The process is killed; its disk is left.
    pub(crate) fn into_disk(self) -> Disk<'a> {
        self.outside.disk
    }

    /// One turn of the loop. Says whether there is something to do in the next one.
    pub(crate) fn turn(&mut self) -> bool {
        self.elapsed_ns += TURN_NS;
        let now = self.now();
        std::mem::swap(&mut self.arrived, &mut self.outside.completions);
        for completion in self.arrived.drain(..) {
            self.shard.on_completion(now, completion);
        }
        self.shard.on_tick(now);
        for op in self.shard.ops() {
            self.outside.carry_out(op);
        }
        !self.outside.completions.is_empty() || self.shard.wait().work_left
    }

    /// Runs turns until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            if !self.turn() {
                return;
            }
        }
        panic!("the shard goes round in circles");
    }

    /// Lets time pass at once.
    pub(crate) fn advance(&mut self, milliseconds: u64) {
        self.elapsed_ns += milliseconds * MS;
        self.settle();
    }

    /// Hands bytes to the shard; it sees them in the next turn.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        let (mut buffer, start) = self.outside.receive.take().expect("the shard reads its connection");
        buffer[start..start + bytes.len()].copy_from_slice(bytes);
        self.outside.completions.push(Completion::Received {
            socket: SOCKET,
            buffer,
            start,
            result: Ok(bytes.len()),
            more: false,
        });
    }

    /// Makes one request, lets everything happen that follows, and gives its answer.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Option<Answer<'_>> {
        self.outside.sent.clear();
        self.receive(request);
        self.settle();
        for _ in 0..PATIENCE_MS {
            if wire::answers(&self.outside.sent).next().is_some() {
                break;
            }
            self.advance(1);
        }
        wire::answers(&self.outside.sent).next()
    }

    /// Writes to the journal do not complete from now on.
    pub(crate) fn hold_journal(&mut self) {
        self.outside.sent.clear();
        self.outside.held = Some(Vec::new());
    }

    /// They complete, all at once. Gives the status and subject of each answer since they were held back.
    pub(crate) fn release_journal(&mut self) -> Vec<(Status, u64)> {
        let held = self.outside.held.take().expect("they were held back");
        self.outside.completions.extend(held);
        self.settle();
        wire::answers(&self.outside.sent).map(|answer| (answer.status, answer.subject)).collect()
    }

    /// Hangs up and stops the shard in order.
    pub(crate) fn stop(&mut self) {
        if let Some((buffer, start)) = self.outside.receive.take() {
            let (socket, result) = (SOCKET, Ok(0));
            self.outside.completions.push(Completion::Received {
                socket,
                buffer,
                start,
                result,
                more: false,
            });
        }
        self.settle();
        let now = self.now();
        self.shard.on_mail(now, Mail::Shutdown);
        for _ in 0..TURNS_MAX {
            self.turn();
            if self.shard.is_stopped() {
                return;
            }
            self.elapsed_ns += MS;
        }
        panic!("the shard does not stop");
    }
}

/// The memory of one shard after another.
pub(crate) fn fresh_pool() -> Pool {
    Pool::new(POOL_BYTES).expect("some MiB can be mapped")
}

fn config() -> ShardConfig {
    ShardConfig {
        shard: 0,
        shard_count: 1,
        layout: LAYOUT,
        durability: Durability::WriteThenFlush,
        durability_text: String::new(),
        is_volatile: false,
        waiting_text: String::new(),
        frame_bytes_max: FRAME_BYTES_MAX,
        window_bytes: 1 << 20,
        heartbeat_ms: 600_000,
        fresh_directory_id: DIRECTORY_ID,
    }
}
