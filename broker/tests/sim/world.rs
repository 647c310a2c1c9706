//! The world of one shard: its disk, its network, virtual time, and the turns of its loop.
//!
//! This is the event loop of the simulator. It advances time to the next thing that happens, hands in what completed
//! in an order that chance decides, and carries out what the shard asks for. It has no thread and reads no clock.

use broker::io::{Completion, File, Mail, Now, Op};
use broker::journal::recovery::{RecoveryError, RecoveryReport};
use broker::journal::{Durability, JournalLayout};
use broker::shard::{Shard, ShardConfig, ShardFailure};
use rand::RngExt;
use reactor::memory::Pool;

use crate::blocks::BlockWatch;
use crate::disk::{Disk, DiskFaults};
use crate::image::Mood;
use crate::luck::Luck;
use crate::net::{Net, NetFaults};
use crate::report::{Kind, Violation, violation};
use crate::rot::is_segment;
use crate::trace::{trace_of_completion, trace_of_op};
use crate::watch::OpWatch;

/// Turns of one world; more means that something goes round in circles.
const TURNS_MAX: u64 = 1_000_000;
const WALL_START_MS: u64 = 1_800_000_000_000;
const CLOCK_JUMP_MS: i64 = 3_600_000;

/// What a broker may answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Safety {
    /// Disks lose what was not flushed, and say when they fail: nothing that was acknowledged may be missing.
    Strict,
    /// Bytes rot without a word: the broker may refuse to start, and say of ranges that they are damaged; it may
    /// deliver nothing wrong, and pass over nothing silently.
    Rot,
}

/// How a world is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorldConfig {
    pub(crate) safety: Safety,
    pub(crate) durability: Durability,
    pub(crate) layout: JournalLayout,
    /// Memory of the shard; rounded up to 32 MiB.
    pub(crate) pool_bytes: usize,
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
            safety: Safety::Strict,
            durability,
            pool_bytes: 64 << 20,
            layout: JournalLayout { file_bytes: broker::limits::JOURNAL_FILE_BYTES_MIN, file_count: 8 },
            frame_bytes_max: 1 << 20,
            window_bytes: 4 << 20,
            disk: DiskFaults::default(),
            net: NetFaults::default(),
            clock_jump_one_in: 0,
        }
    }
}

/// What clients cannot know and the model must.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings {
    pub(crate) wall_ms: u64,
    /// The most that the wall clock ever showed.
    pub(crate) wall_max_ms: u64,
    /// Stored records may be unreadable now.
    pub(crate) may_be_damaged: bool,
}

/// A shard and everything around it.
#[derive(Debug)]
pub(crate) struct World {
    config: WorldConfig,
    shard_config: ShardConfig,
    shard: Option<Shard>,
    /// The start was refused at once.
    refusal: Option<RecoveryError>,
    pub(crate) pool: Pool,
    pub(crate) disk: Disk,
    pub(crate) net: Net,
    pub(crate) luck: Luck,
    pub(crate) blocks: BlockWatch,
    pub(crate) watch: OpWatch,
    /// This start has said which epoch is its own.
    is_epoch_known: bool,
    /// It has been ready.
    has_served: bool,
    wall_offset_ms: i64,
    wall_max_ms: u64,
    /// The power is to be cut when so many operations on files were asked for.
    cut_at_operation: Option<u64>,
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
            refusal: None,
            pool: Pool::new(config.pool_bytes).expect("some MiB can be mapped"),
            disk: Disk::default(),
            net: Net::default(),
            luck: Luck::new(seed),
            blocks: BlockWatch::default(),
            watch: OpWatch::default(),
            is_epoch_known: false,
            has_served: false,
            wall_offset_ms: 0,
            wall_max_ms: WALL_START_MS,
            cut_at_operation: None,
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

    /// Leaves so much space on the disk beside the files that are there and the journal's that will be.
    pub(crate) fn limit_space(&mut self, room_bytes: u64) {
        let files = self.disk.files();
        let journal = files.iter().filter(|(file, _)| matches!(file, File::Journal(_)));
        let journal_bytes: u64 = journal.map(|(_, bytes)| *bytes).sum();
        let missing_bytes = self.config.layout.bytes().saturating_sub(journal_bytes);
        self.disk.set_capacity(Some(self.disk.used_bytes() + missing_bytes + room_bytes));
    }

    /// Has the power cut when so many more operations on files were asked for: then `step` fails, and nothing more
    /// reaches the disk.
    pub(crate) fn plan_cut(&mut self, operations: u64) {
        self.cut_at_operation = Some(self.disk.issued() + operations);
    }

    /// Whether the planned time has come.
    pub(crate) fn is_cut_due(&self) -> bool {
        self.cut_at_operation.is_some_and(|operation| self.disk.issued() >= operation)
    }

    /// What the model must know now.
    pub(crate) fn surroundings(&self) -> Surroundings {
        let has_rot = self.disk.damage().iter().any(|damage| is_segment(damage.file));
        Surroundings {
            wall_ms: self.now().wall_ms,
            wall_max_ms: self.wall_max_ms,
            may_be_damaged: self.may_rot() && has_rot || self.disk.segment_read_errors > 0,
        }
    }

    fn may_rot(&self) -> bool {
        self.config.safety == Safety::Rot
    }

    /// Starts the shard on the files that are there.
    pub(crate) fn start(&mut self) -> Result<(), Violation> {
        assert!(self.shard.is_none(), "one shard at a time");
        let files = self.disk.files();
        match Shard::new(self.shard_config.clone(), files, self.pool.clone()) {
            Ok(shard) => self.shard = Some(shard),
            Err(error) if self.may_rot() => self.refusal = Some(error),
            Err(error) => return violation(format!("the start was refused: {error}")),
        }
        self.carry_out()
    }

    /// Starts the shard and runs until it serves.
    pub(crate) fn start_and_recover(&mut self) -> Result<(), Violation> {
        self.start()?;
        while !self.is_ready() {
            if let Some(failure) = self.failure() {
                return violation(format!("recovery failed: {failure:?}"));
            }
            self.step(u64::MAX)?;
        }
        Ok(())
    }

    /// Whether the shard has refused what it found on a disk on which bytes have rotted.
    pub(crate) fn is_refused(&self) -> bool {
        let Some(ShardFailure::Recovery(error)) = self.failure() else { return false };
        let is_typed = !matches!(error, RecoveryError::Io { .. } | RecoveryError::OutOfMemory);
        is_typed && self.may_rot() && !self.disk.damage().is_empty()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.shard.as_ref().is_some_and(Shard::is_ready)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.shard.as_ref().is_some_and(Shard::is_stopped)
    }

    pub(crate) fn failure(&self) -> Option<ShardFailure> {
        self.refusal.map(ShardFailure::Recovery).or(self.shard.as_ref().and_then(Shard::failure))
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
        self.refusal = None;
        self.cut_at_operation = None;
        self.is_epoch_known = false;
        self.has_served = false;
        self.watch.on_end();
        self.net.crash();
        self.disk.segment_read_errors = 0;
        if self.config.disk.rot_one_in > 0 && self.luck.breaks(3) {
            self.disk.rot(&mut self.luck);
        }
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
        if self.is_cut_due() {
            return violation("the power is to be cut now");
        }
        self.advance(until_ns)?;
        let now = self.now();
        self.wall_max_ms = self.wall_max_ms.max(now.wall_ms);
        let completions = self.take_completions();
        let must_fail = completions.iter().any(is_storage_failure);
        let Some(shard) = &mut self.shard else { return violation("no shard runs") };
        let had_failed = shard.failure().is_some();
        for completion in completions {
            self.luck.report.note(&trace_of_completion(&completion));
            shard.on_completion(now, completion);
        }
        shard.on_tick(now);
        let report = shard.recovery_report();
        let (is_ready, failure) = (shard.is_ready(), shard.failure());
        if must_fail && failure.is_none() && !shard.is_stopped() {
            return violation("a write or flush failed, and the shard goes on");
        }
        if had_failed && shard.ops().next().is_some() {
            return violation("a shard that has failed still asks for something");
        }
        if report.epoch.0 > 0 && !self.is_epoch_known {
            self.is_epoch_known = true;
            self.blocks.on_epoch(report.epoch.0)?;
        }
        if is_ready && !self.has_served {
            self.has_served = true;
            self.count_recovery(&report);
        }
        self.carry_out()
    }

    fn count_recovery(&mut self, report: &RecoveryReport) {
        let from = match (report.snapshot, report.skipped_snapshot) {
            (Some(_), true) => Kind::RecoveryFromOlderSnapshot,
            (Some(_), false) => Kind::RecoveryFromSnapshot,
            (None, _) => Kind::RecoveryFromJournal,
        };
        let tail = if report.torn_at.is_some() { Kind::RecoveryTorn } else { Kind::RecoveryClean };
        self.luck.count(from);
        self.luck.count(tail);
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
        let is_serving = self.has_served;
        for op in ops {
            if self.is_cut_due() {
                break;
            }
            self.luck.report.note(&trace_of_op(&op));
            match op {
                Op::Receive { .. } | Op::Send { .. } | Op::Close { .. } => {
                    self.net.submit(op, &mut self.luck)
                }
                Op::PrepareFile { .. }
                | Op::Allocate { .. }
                | Op::Shrink { .. }
                | Op::Remove { .. }
                | Op::SyncAll { .. }
                | Op::Compact { .. }
                | Op::Read { .. }
                | Op::Write { .. }
                | Op::Flush { .. } => {
                    if let Op::Write { file: File::Journal(_), data, .. } = &op {
                        self.blocks.on_write(data, &mut self.luck.report)?;
                    }
                    self.watch.on_op(&op, is_serving, &self.disk, &mut self.luck);
                    self.disk.submit(op, &mut self.luck);
                }
            }
        }
        Ok(())
    }
}

/// Whether the shard must stop for good because of this.
fn is_storage_failure(completion: &Completion) -> bool {
    matches!(
        completion,
        Completion::Written { result: Err(_), .. }
            | Completion::Flushed { result: Err(_), .. }
            | Completion::AllSynced { result: Err(_), .. }
    )
}
