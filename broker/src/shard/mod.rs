//! The shard: everything that one core owns, as a pure state machine.
//!
//! It takes completions, mail and the time, and yields operations. It reads no clock, makes no system call and uses
//! no randomness of its own, so any run can be replayed. First it recovers, then it serves; one file per family of
//! requests. Invariant: nothing derived from state that is not durable leaves the shard.

mod checkpoint;
mod cold;
mod commit;
mod compaction;
mod connection;
mod deliver;
mod dispatch;
mod fetch;
mod gates;
mod memory;
pub(crate) mod offline;
mod outbox;
mod produce;
mod retention;
mod scrub;
mod serving;
mod session;
mod space;
mod state;
mod subscribe;
mod sweep;
mod topics;
mod work;
mod write_behind;

use std::collections::BTreeMap;

use reactor::memory::Pool;

use crate::io::{Completion, File, IoError, Mail, Now, Op, Wait};
use crate::journal::block::Entry;
use crate::journal::recovery::{Recovered, Recovery, RecoveryConfig, RecoveryError, RecoveryReport, Replay};
use crate::journal::{BlockSequence, Durability, JournalFailure, JournalLayout};
use crate::limits::RECOVERY_READ_BYTES;
use crate::metrics::{Metrics, ProcessGauges};
use memory::MemoryPlan;
use serving::Serving;
use state::State;
use work::Work;
use write_behind::WriteBehindQueue;

/// The operator's choices and what was found out at start.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Number of this shard.
    pub shard: u16,
    /// Number of all shards.
    pub shard_count: u16,
    /// Journal files wanted.
    pub layout: JournalLayout,
    /// How blocks become durable.
    pub durability: Durability,
    /// In words, for answers to clients.
    pub durability_text: String,
    /// The data directory does not survive a power cut (tmpfs), and the operator said so.
    pub is_volatile: bool,
    /// How the core waits, in words.
    pub waiting_text: String,
    /// Longest frame that is granted.
    pub frame_bytes_max: u32,
    /// Produce bytes in flight that a connection is granted.
    pub window_bytes: u32,
    /// Heartbeat interval that is granted.
    pub heartbeat_ms: u32,
    /// Id of the data directory, if it is new.
    pub fresh_directory_id: u128,
}

/// Why a shard has stopped for good. The process says so and ends; the next start recovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardFailure {
    /// Recovery refused the data directory.
    Recovery(RecoveryError),
    /// A write or flush failed.
    Storage(JournalFailure),
}

/// A recovery: the state grows, and what memory does not hold is written behind meanwhile.
#[derive(Debug)]
struct Recovering {
    recovery: Recovery,
    state: State,
    write_behind: WriteBehindQueue,
    files: BTreeMap<File, u64>,
    plan: MemoryPlan,
    /// A piece of the journal that waits for memory.
    held: Option<Completion>,
    /// What serving will begin with, once nothing is in flight.
    recovered: Option<Recovered>,
}

#[derive(Debug)]
enum Stage {
    Recovering(Box<Recovering>),
    Serving(Box<Serving>),
    Stopped,
}

/// What recovery builds the state with.
struct Builder<'a> {
    state: &'a mut State,
    pool: &'a Pool,
    files: &'a BTreeMap<File, u64>,
}

impl Replay for Builder<'_> {
    fn reset(&mut self) {
        *self.state = State::new(self.files);
    }

    fn restore(&mut self, entry: Entry<'_>) -> Result<(), RecoveryError> {
        self.state.restore(self.pool, entry)
    }

    fn replay(&mut self, entry: Entry<'_>) -> Result<(), RecoveryError> {
        self.state.replay(self.pool, entry)
    }

    fn finish(&mut self, next: BlockSequence) -> Result<(), RecoveryError> {
        self.state.finish_replay(next)
    }
}

impl Recovering {
    /// Moves on with a completion; gives what serving begins with when all is done.
    fn on_completion(
        &mut self,
        completion: Completion,
        pool: &Pool,
        ops: &mut Vec<Op>,
    ) -> Result<Option<Recovered>, RecoveryError> {
        match completion {
            Completion::Written { token, result } if Work::of(token).0 == Work::WriteBehind => {
                let (_, index) = Work::of(token);
                let file = self.write_behind.file_of(index).unwrap_or(File::Superblock);
                result.map_err(|error: IoError| RecoveryError::Io { action: "write", file, error })?;
                self.write_behind.on_written(&mut self.state, index, ops);
            }
            Completion::ReadDone { .. } if !self.has_memory(pool) => self.held = Some(completion),
            other => self.hand_on(other, pool, ops)?,
        }
        self.write_behind.relieve(&mut self.state, pool, self.plan.relief_bytes);
        self.write_behind.pump(&mut self.state, pool, self.plan.write_behind_bytes, ops);
        // With nothing in flight there is no more to be had: recovery says so itself if it is not enough.
        if self.held.is_some() && (self.has_memory(pool) || self.write_behind.is_idle()) {
            let held = self.held.take().expect("it was just seen");
            self.hand_on(held, pool, ops)?;
        }
        let is_done = self.held.is_none() && self.write_behind.is_idle();
        Ok(self.recovered.take_if(|_| is_done))
    }

    fn hand_on(
        &mut self,
        completion: Completion,
        pool: &Pool,
        ops: &mut Vec<Op>,
    ) -> Result<(), RecoveryError> {
        let mut builder = Builder { state: &mut self.state, pool, files: &self.files };
        let recovered = self.recovery.on_completion(completion, ops, &mut builder)?;
        if recovered.is_some() {
            self.recovered = recovered;
        }
        Ok(())
    }

    /// A read's batches go into tails, whose chunks may be twice as long.
    fn has_memory(&self, pool: &Pool) -> bool {
        pool.used_bytes() + 4 * RECOVERY_READ_BYTES <= self.plan.tails_bytes
    }
}

/// One shard.
#[derive(Debug)]
pub struct Shard {
    config: ShardConfig,
    pool: Pool,
    stage: Stage,
    ops: Vec<Op>,
    failure: Option<ShardFailure>,
    report: RecoveryReport,
}

impl Shard {
    /// A shard that begins to recover what `files` (with their lengths) hold.
    ///
    /// # Errors
    /// When the list of files alone says that the directory cannot be served.
    pub fn new(config: ShardConfig, files: BTreeMap<File, u64>, pool: Pool) -> Result<Self, RecoveryError> {
        let recovery_config = RecoveryConfig {
            shard: config.shard,
            shard_count: u32::from(config.shard_count),
            fresh_directory_id: config.fresh_directory_id,
            layout: config.layout,
            files: files.clone(),
            durability: config.durability,
        };
        let mut ops = Vec::new();
        let recovery = Recovery::new(recovery_config, pool.clone(), &mut ops)?;
        let recovering = Recovering {
            recovery,
            state: State::new(&files),
            write_behind: WriteBehindQueue::default(),
            files,
            plan: MemoryPlan::of(&pool),
            held: None,
            recovered: None,
        };
        let stage = Stage::Recovering(Box::new(recovering));
        Ok(Self { config, pool, stage, ops, failure: None, report: RecoveryReport::default() })
    }

    /// Whether recovery has ended and connections may be accepted.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(&self.stage, Stage::Serving(serving) if serving.is_settled())
    }

    /// Whether a shutdown has run to its end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        matches!(self.stage, Stage::Stopped)
    }

    /// Set when the shard has stopped for good.
    #[must_use]
    pub fn failure(&self) -> Option<ShardFailure> {
        self.failure
    }

    /// What recovery found.
    #[must_use]
    pub fn recovery_report(&self) -> RecoveryReport {
        self.report
    }

    /// What the shard has done since it started.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        match &self.stage {
            Stage::Serving(serving) => serving.metrics(),
            Stage::Recovering(_) | Stage::Stopped => Metrics::default(),
        }
    }

    /// Takes over what was measured outside.
    pub fn set_gauges(&mut self, gauges: ProcessGauges) {
        if let Stage::Serving(serving) = &mut self.stage {
            serving.gauges = gauges;
        }
    }

    /// Something that was asked for has happened, or a connection came.
    pub fn on_completion(&mut self, now: Now, completion: Completion) {
        if self.failure.is_some() {
            return;
        }
        match &mut self.stage {
            Stage::Recovering(recovering) => {
                match recovering.on_completion(completion, &self.pool, &mut self.ops) {
                    Ok(None) => {}
                    Ok(Some(recovered)) => self.begin_serving(recovered, now),
                    Err(error) => self.failure = Some(ShardFailure::Recovery(error)),
                }
            }
            Stage::Serving(serving) => serving.on_completion(now, completion),
            Stage::Stopped => {}
        }
    }

    fn begin_serving(&mut self, recovered: Recovered, now: Now) {
        let Stage::Recovering(recovering) = &mut self.stage else { return };
        self.report = recovering.recovery.report();
        for (partition, segment) in recovering.state.missing_segments(&recovering.files) {
            let number = segment.0;
            tracing::error!(%partition, "segment {number:016x} is missing or cut short: its records cannot be read");
        }
        let state = std::mem::take(&mut recovering.state);
        let write_behind = std::mem::take(&mut recovering.write_behind);
        let (config, pool) = (self.config.clone(), self.pool.clone());
        let serving = Serving::new(config, pool, state, write_behind, recovered, now);
        self.stage = Stage::Serving(Box::new(serving));
    }

    /// Another thread says something.
    pub fn on_mail(&mut self, now: Now, mail: Mail) {
        match (mail, &mut self.stage) {
            (Mail::Shutdown, Stage::Serving(serving)) => serving.begin_shutdown(now),
            (Mail::Shutdown, Stage::Recovering(_) | Stage::Stopped) => self.stage = Stage::Stopped,
        }
    }

    /// The end of a turn: acknowledges what is durable, seals what was appended, sends what waits.
    pub fn on_tick(&mut self, now: Now) {
        if self.failure.is_some() {
            return;
        }
        if let Stage::Serving(serving) = &mut self.stage {
            serving.on_tick(now);
            if let Some(failure) = serving.storage_failure() {
                self.failure = Some(ShardFailure::Storage(failure));
            } else if serving.is_stopped() {
                self.ops.append(&mut serving.ops);
                self.stage = Stage::Stopped;
            }
        }
    }

    /// The operations asked for since the last call, in order.
    pub fn ops(&mut self) -> std::vec::Drain<'_, Op> {
        match &mut self.stage {
            Stage::Serving(serving) => {
                if self.ops.is_empty() {
                    std::mem::swap(&mut self.ops, &mut serving.ops);
                } else {
                    self.ops.append(&mut serving.ops);
                }
            }
            Stage::Recovering(_) | Stage::Stopped => {}
        }
        self.ops.drain(..)
    }

    /// When the next turn is due.
    #[must_use]
    pub fn wait(&self) -> Wait {
        match &self.stage {
            Stage::Serving(serving) if self.failure.is_none() => serving.wait(),
            Stage::Serving(_) | Stage::Recovering(_) | Stage::Stopped => Wait::default(),
        }
    }
}
