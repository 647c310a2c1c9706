//! The shard: everything that one core owns, as a pure state machine.
//!
//! It takes completions, mail and the time, and yields operations. It reads no clock, makes no system call and uses
//! no randomness of its own, so any run can be replayed. First it recovers, then it serves; one file per family of
//! requests. Invariant: nothing derived from state that is not durable leaves the shard.

mod commit;
mod connection;
mod deliver;
mod dispatch;
mod fetch;
mod gates;
mod outbox;
mod produce;
mod serving;
mod session;
mod state;
mod subscribe;
mod sweep;
mod topics;

use std::collections::BTreeMap;

use reactor::memory::Pool;

use crate::io::{Completion, File, Mail, Now, Op, Wait};
use crate::journal::recovery::{Recovery, RecoveryConfig, RecoveryError, RecoveryReport};
use crate::journal::{Durability, JournalFailure, JournalLayout};
use crate::metrics::{Metrics, ProcessGauges};
use serving::Serving;
use state::State;

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
    /// A write or flush of the journal failed.
    Journal(JournalFailure),
}

#[derive(Debug)]
enum Stage {
    Recovering { recovery: Box<Recovery>, state: State },
    Serving(Box<Serving>),
    Stopped,
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
            files,
            durability: config.durability,
        };
        let mut ops = Vec::new();
        let recovery = Recovery::new(recovery_config, pool.clone(), &mut ops)?;
        let stage = Stage::Recovering { recovery: Box::new(recovery), state: State::default() };
        Ok(Self { config, pool, stage, ops, failure: None, report: RecoveryReport::default() })
    }

    /// Whether recovery has ended and connections may be accepted.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Serving(_))
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
            Stage::Recovering { .. } | Stage::Stopped => Metrics::default(),
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
            Stage::Recovering { recovery, state } => {
                let pool = &self.pool;
                let mut apply = |entry: crate::journal::block::Entry<'_>| state.replay(pool, entry);
                match recovery.on_completion(completion, &mut self.ops, &mut apply) {
                    Ok(None) => {}
                    Ok(Some(start)) => {
                        self.report = recovery.report();
                        let state = std::mem::take(state);
                        let serving = Serving::new(self.config.clone(), self.pool.clone(), state, start, now);
                        self.stage = Stage::Serving(Box::new(serving));
                    }
                    Err(error) => self.failure = Some(ShardFailure::Recovery(error)),
                }
            }
            Stage::Serving(serving) => serving.on_completion(now, completion),
            Stage::Stopped => {}
        }
    }

    /// Another thread says something.
    pub fn on_mail(&mut self, now: Now, mail: Mail) {
        match (mail, &mut self.stage) {
            (Mail::Shutdown, Stage::Serving(serving)) => serving.begin_shutdown(now),
            (Mail::Shutdown, Stage::Recovering { .. } | Stage::Stopped) => self.stage = Stage::Stopped,
        }
    }

    /// The end of a turn: acknowledges what is durable, seals what was appended, sends what waits.
    pub fn on_tick(&mut self, now: Now) {
        if self.failure.is_some() {
            return;
        }
        if let Stage::Serving(serving) = &mut self.stage {
            serving.on_tick(now);
            if let Some(failure) = serving.journal_failure() {
                self.failure = Some(ShardFailure::Journal(failure));
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
            Stage::Recovering { .. } | Stage::Stopped => {}
        }
        self.ops.drain(..)
    }

    /// When the next turn is due.
    #[must_use]
    pub fn wait(&self) -> Wait {
        match &self.stage {
            Stage::Serving(serving) if self.failure.is_none() => serving.wait(),
            Stage::Serving(_) | Stage::Recovering { .. } | Stage::Stopped => Wait::default(),
        }
    }
}
