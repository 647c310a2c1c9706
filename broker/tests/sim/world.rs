//! The world of one shard: its disk, its network, virtual time, and the turns of its loop.
//!
//! This is the event loop of the simulator. It advances time to the next thing that happens, hands in what completed
//! in an order that chance decides, and carries out what the shard asks for. It has no thread and reads no clock.

use broker::io::{Completion, File, Mail, Now, Op};
use broker::journal::{Durability, JournalLayout};
use broker::shard::{Shard, ShardConfig, ShardFailure};
use protocol::crc::crc32c;
use rand::RngExt;
use reactor::memory::Pool;

use crate::blocks::BlockWatch;
use crate::disk::{Disk, DiskFaults};
use crate::image::Mood;
use crate::luck::Luck;
use crate::net::{Net, NetFaults};
use crate::report::{Kind, Violation, violation};

/// Turns of one world; more means that something goes round in circles.
const TURNS_MAX: u64 = 400_000;
const WALL_START_MS: u64 = 1_800_000_000_000;
const CLOCK_JUMP_MS: i64 = 3_600_000;

/// How a world is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorldConfig {
    pub(crate) durability: Durability,
    pub(crate) layout: JournalLayout,
    pub(crate) frame_bytes_max: u32,
    pub(crate) window_bytes: u32,
    pub(crate) disk: DiskFaults,
    pub(crate) net: NetFaults,
    pub(crate) clock_jump_one_in: u32,
}

impl WorldConfig {
    /// A small journal, and nothing goes wrong.
    pub(crate) fn calm(durability: Durability) -> Self {
        Self {
            durability,
            layout: JournalLayout { file_bytes: broker::limits::JOURNAL_FILE_BYTES_MIN, file_count: 8 },
            frame_bytes_max: 1 << 20,
            window_bytes: 4 << 20,
            disk: DiskFaults::default(),
            net: NetFaults::default(),
            clock_jump_one_in: 0,
        }
    }
}

/// A shard and everything around it.
#[derive(Debug)]
pub(crate) struct World {
    config: WorldConfig,
    shard_config: ShardConfig,
    shard: Option<Shard>,
    pub(crate) pool: Pool,
    pub(crate) disk: Disk,
    pub(crate) net: Net,
    pub(crate) luck: Luck,
    pub(crate) blocks: BlockWatch,
    wall_offset_ms: i64,
}

impl World {
    pub(crate) fn new(seed: u64, config: &WorldConfig) -> Self {
        let shard_config = ShardConfig {
            shard: 0,
            shard_count: 1,
            layout: config.layout,
            durability: config.durability,
            durability_text: "simulated".to_owned(),
            is_volatile: false,
            waiting_text: "simulated".to_owned(),
            frame_bytes_max: config.frame_bytes_max,
            window_bytes: config.window_bytes,
            heartbeat_ms: broker::limits::HEARTBEAT_MS_DEFAULT,
            fresh_directory_id: u128::from(seed) << 64 | 0xF0EB,
        };
        let mut world = Self {
            config: *config,
            shard_config,
            shard: None,
            pool: Pool::new(64 << 20).expect("64 MiB can be mapped"),
            disk: Disk::default(),
            net: Net::default(),
            luck: Luck::new(seed),
            blocks: BlockWatch::default(),
            wall_offset_ms: 0,
        };
        world.be_hostile();
        world
    }

    /// Faults as configured.
    pub(crate) fn be_hostile(&mut self) {
        self.disk.faults = self.config.disk;
        self.net.faults = self.config.net;
    }

    /// Nothing goes wrong from now on.
    pub(crate) fn be_calm(&mut self) {
        self.disk.faults = DiskFaults::default();
        self.net.faults = NetFaults::default();
    }

    /// Nothing goes wrong ever again.
    pub(crate) fn end_hostility(&mut self) {
        self.config.disk = DiskFaults::default();
        self.config.net = NetFaults::default();
        self.config.clock_jump_one_in = 0;
        self.be_calm();
    }

    /// Starts the shard on the files that are there.
    pub(crate) fn start(&mut self) -> Result<(), Violation> {
        assert!(self.shard.is_none(), "one shard at a time");
        let files = self.disk.files();
        match Shard::new(self.shard_config.clone(), files, self.pool.clone()) {
            Ok(shard) => self.shard = Some(shard),
            Err(error) => return violation(format!("the start was refused: {error}")),
        }
        self.carry_out()
    }

    /// Starts the shard and runs until it serves.
    pub(crate) fn start_and_recover(&mut self) -> Result<(), Violation> {
        self.start()?;
        while !self.is_ready() {
            self.step(u64::MAX)?;
            if let Some(failure) = self.failure() {
                return violation(format!("recovery failed: {failure:?}"));
            }
        }
        Ok(())
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.shard.as_ref().is_some_and(Shard::is_ready)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.shard.as_ref().is_some_and(Shard::is_stopped)
    }

    pub(crate) fn failure(&self) -> Option<ShardFailure> {
        self.shard.as_ref().and_then(Shard::failure)
    }

    /// Asks the shard to stop.
    pub(crate) fn shut_down(&mut self) {
        let now = self.now();
        self.luck.count(Kind::Shutdown);
        self.shard.as_mut().expect("a shard runs").on_mail(now, Mail::Shutdown);
    }

    /// The power fails.
    pub(crate) fn cut_power(&mut self) -> Result<(), Violation> {
        let mood = Mood::draw(&mut self.luck);
        self.cut_power_in(mood)
    }

    /// The power fails, and unflushed writes fare as the mood says.
    pub(crate) fn cut_power_in(&mut self, mood: Mood) -> Result<(), Violation> {
        self.luck.count(Kind::PowerCut);
        self.disk.cut_power(mood, &mut self.luck);
        self.end_process()
    }

    /// The process is killed, or ends because storage has failed.
    pub(crate) fn kill(&mut self) -> Result<(), Violation> {
        self.luck.count(Kind::Kill);
        self.disk.kill(&mut self.luck);
        self.end_process()
    }

    fn end_process(&mut self) -> Result<(), Violation> {
        self.shard = None;
        self.net.crash();
        match self.pool.used_bytes() {
            0 => Ok(()),
            bytes => violation(format!("{bytes} bytes of the pool are held by nobody")),
        }
    }

    fn now(&self) -> Now {
        let wall_ms = WALL_START_MS + self.luck.now_ns / 1_000_000;
        Now { monotonic_ns: self.luck.now_ns, wall_ms: wall_ms.saturating_add_signed(self.wall_offset_ms) }
    }

    /// One turn of the loop, at the next time at which something happens, or at `until_ns`.
    pub(crate) fn step(&mut self, until_ns: u64) -> Result<(), Violation> {
        self.advance(until_ns)?;
        let now = self.now();
        let completions = self.take_completions();
        let must_fail = completions.iter().any(is_journal_failure);
        let Some(shard) = &mut self.shard else { return violation("no shard runs") };
        let (was_ready, had_failed) = (shard.is_ready(), shard.failure().is_some());
        for completion in completions {
            self.luck.report.note(&trace_of_completion(&completion));
            shard.on_completion(now, completion);
        }
        shard.on_tick(now);
        let report = shard.recovery_report();
        let (is_ready, failure) = (shard.is_ready(), shard.failure());
        if must_fail && failure.is_none() {
            return violation("a write or flush of the journal failed, and the shard goes on");
        }
        if had_failed && shard.ops().next().is_some() {
            return violation("a shard that has failed still asks for something");
        }
        if is_ready && !was_ready {
            self.blocks.on_ready(report.epoch.0)?;
            let kind = if report.torn_at.is_some() { Kind::RecoveryTorn } else { Kind::RecoveryClean };
            self.luck.count(kind);
        }
        self.carry_out()
    }

    /// Runs for some virtual time.
    pub(crate) fn run_for(&mut self, duration_ns: u64) -> Result<(), Violation> {
        let until_ns = self.luck.now_ns + duration_ns;
        while self.luck.now_ns < until_ns {
            self.step(until_ns)?;
        }
        Ok(())
    }

    /// Moves time to the next event, the shard's deadline or `until_ns`, and a little more: a loop is never exact.
    fn advance(&mut self, until_ns: u64) -> Result<(), Violation> {
        self.luck.report.turns += 1;
        if self.luck.report.turns > TURNS_MAX {
            return violation("the budget of turns is used up: something goes round in circles");
        }
        if self.luck.breaks(self.config.clock_jump_one_in) {
            self.luck.count(Kind::ClockJump);
            self.wall_offset_ms += self.luck.faults.random_range(-CLOCK_JUMP_MS..=CLOCK_JUMP_MS);
        }
        let wait = self.shard.as_ref().map(Shard::wait).unwrap_or_default();
        let now_ns = self.luck.now_ns;
        let work = wait.work_left.then_some(now_ns);
        let events = [wait.deadline_ns, self.disk.next_ns(), self.net.next_ns(), work];
        let next_ns = events.into_iter().flatten().min().unwrap_or(u64::MAX).min(until_ns);
        if next_ns == u64::MAX {
            return violation("nothing will ever happen again");
        }
        self.luck.now_ns = next_ns.max(now_ns) + self.luck.delay_ns(300..15_000);
        Ok(())
    }

    /// What has completed by now, in any order: a ring promises none.
    fn take_completions(&mut self) -> Vec<Completion> {
        let mut completions = self.disk.complete_due(&mut self.luck);
        completions.extend(self.net.complete_due(&mut self.luck));
        for last in (1..completions.len()).rev() {
            let other = self.luck.schedule.random_range(0..=last);
            completions.swap(last, other);
        }
        completions
    }

    fn carry_out(&mut self) -> Result<(), Violation> {
        let Some(shard) = &mut self.shard else { return Ok(()) };
        let ops: Vec<Op> = shard.ops().collect();
        for op in ops {
            self.luck.report.note(&trace_of_op(&op));
            match op {
                Op::Receive { .. } | Op::Send { .. } | Op::Close { .. } => {
                    self.net.submit(op, &mut self.luck)
                }
                Op::PrepareFile { .. } | Op::Read { .. } | Op::Write { .. } | Op::Flush { .. } => {
                    if let Op::Write { file: File::Journal(_), data, .. } = &op {
                        self.blocks.on_write(data)?;
                    }
                    self.disk.submit(op, &mut self.luck);
                }
            }
        }
        Ok(())
    }
}

/// Whether the shard must stop for good because of this.
fn is_journal_failure(completion: &Completion) -> bool {
    matches!(
        completion,
        Completion::Written { result: Err(_), .. } | Completion::Flushed { result: Err(_), .. }
    )
}

fn number_of(file: File) -> u64 {
    match file {
        File::Superblock => u64::MAX,
        File::Journal(number) => u64::from(number),
    }
}

fn trace_of_op(op: &Op) -> [u64; 4] {
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
    }
}

fn trace_of_completion(completion: &Completion) -> [u64; 4] {
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
    }
}
