//! A run: clients work, the shard is ended again and again, and after each end it must have kept its promises.
//!
//! One *life* is a start of the shard up to its end: by power cut, kill, both, or a shutdown; in the middle of
//! recovery, after some turns, or at the very moment when a client has heard an acknowledgement. After the last life
//! everything is read twice, with a restart between. On a disk that rots, a start may be refused; that ends the run.

use broker::journal::recovery::RecoveryError;
use broker::shard::ShardFailure;
use protocol::ids::Handle;
use rand::RngExt;

use crate::actions::Mix;
use crate::audit::audit;
use crate::client::{Client, Scene};
use crate::luck::Luck;
use crate::model::Model;
use crate::report::{Kind, Report, Violation, violation};
use crate::world::{World, WorldConfig};

/// Turns of one life when nothing else ends it.
const TURNS_PER_LIFE_MAX: u64 = 2_000;
/// Lives of one run; more means that the clients get nothing done.
const LIVES_MAX: u32 = 60;
/// Nobody does anything for so long now and then, so that markers are written.
const IDLE_NS: u64 = 15_000_000;
/// And so long now and then, so that retention looks at what is old.
const LONG_IDLE_NS: u64 = 350_000_000;
const SHUTDOWN_NS: u64 = 8_000_000_000;
const SILENT_TURNS: u32 = 8;

/// What a run is made of. `mixtures.rs` has one for each seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunConfig {
    pub(crate) world: WorldConfig,
    pub(crate) clients: usize,
    pub(crate) mix: Mix,
    /// At least so many operations of clients, and so many lives.
    pub(crate) operations: u64,
    pub(crate) lives: u32,
    /// Space on the disk beside the journal and what the first start makes, in the lives that are short of it.
    pub(crate) room_bytes: Option<u64>,
}

/// How a life has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Over,
    /// The shard has refused to start, because of what has rotted.
    Refused,
}

/// How a life ends.
#[derive(Clone, Copy, Debug)]
enum How {
    PowerCut,
    Kill,
    KillThenPowerCut,
    ShutDown,
}

/// When a life ends.
#[derive(Clone, Copy, Debug)]
enum When {
    /// At this turn of recovery, or as soon as it has ended.
    InRecovery(u64),
    AfterTurns(u64),
    /// When clients have heard of so many acknowledged records.
    AfterAcks(u64),
}

impl When {
    fn draw(luck: &mut Luck) -> Self {
        match luck.faults.random_range(0..10) {
            0 | 1 => Self::InRecovery(luck.faults.random_range(0..30)),
            2..=4 => Self::AfterAcks(luck.faults.random_range(1..300)),
            _ => Self::AfterTurns(luck.faults.random_range(100..1_500)),
        }
    }

    fn is_now(self, turn: u64, acked: u64) -> bool {
        match self {
            Self::InRecovery(_) => true,
            Self::AfterTurns(turns) => turn >= turns,
            Self::AfterAcks(records) => acked >= records,
        }
    }
}

impl How {
    fn draw(when: When, luck: &mut Luck) -> Self {
        match (luck.faults.random_range(0..10), when) {
            (0 | 1, _) => Self::Kill,
            (2, _) => Self::KillThenPowerCut,
            (3 | 4, When::AfterTurns(_)) => Self::ShutDown,
            _ => Self::PowerCut,
        }
    }
}

/// Runs a seed to its end.
pub(crate) fn run(seed: u64, config: &RunConfig) -> Result<Report, Violation> {
    let mut run = Run {
        world: World::new(seed, &config.world),
        model: Model::default(),
        clients: (0..config.clients).map(|number| Client::new(number == 0)).collect(),
        config: *config,
        lives: 0,
        idle_until_ns: 0,
    };
    while run.lives < config.lives || run.model.operations < config.operations {
        if run.lives > LIVES_MAX {
            return violation(format!("after {LIVES_MAX} lives only {} operations", run.model.operations));
        }
        if run.live()? == Life::Refused {
            return Ok(run.report());
        }
    }
    run.finish()
}

struct Run {
    world: World,
    model: Model,
    clients: Vec<Client>,
    config: RunConfig,
    lives: u32,
    idle_until_ns: u64,
}

impl Run {
    fn live(&mut self) -> Result<Life, Violation> {
        let when = When::draw(&mut self.world.luck);
        let how = How::draw(when, &mut self.world.luck);
        self.lives += 1;
        self.world.start()?;
        let mut turn = 0;
        while !self.world.is_ready() {
            if let Some(failure) = self.world.failure() {
                return self.end_after(failure);
            }
            if matches!(when, When::InRecovery(at) if turn >= at) {
                self.world.luck.count(Kind::CrashInRecovery);
                return self.end(how);
            }
            self.world.step(u64::MAX)?;
            turn += 1;
        }
        self.choose_space();
        if self.world.luck.coin() {
            let outcome = audit(&mut self.world, &mut self.model);
            // What was asked for before the audit may still fail.
            if let Some(failure) = self.world.failure() {
                self.world.be_hostile();
                return self.end_after(failure);
            }
            outcome?;
        }
        let acked_before = self.model.acked;
        for turn in 0..TURNS_PER_LIFE_MAX {
            if when.is_now(turn, self.model.acked - acked_before) {
                break;
            }
            self.turn(true)?;
            if let Some(failure) = self.world.failure() {
                return self.end_after(failure);
            }
        }
        self.world.luck.report.add(Kind::CrashAfterAck, u64::from(matches!(when, When::AfterAcks(_))));
        self.end(how)
    }

    /// In runs that are short of space, some lives are.
    fn choose_space(&mut self) {
        let Some(room_bytes) = self.config.room_bytes else { return };
        if self.world.luck.coin() {
            self.world.limit_space(room_bytes);
        } else {
            self.world.disk.set_capacity(None);
        }
    }

    /// Clients read and act, then the shard has a turn.
    fn turn(&mut self, may_act: bool) -> Result<(), Violation> {
        self.model.see(self.world.surroundings());
        let now_ns = self.world.luck.now_ns;
        if self.idle_until_ns <= now_ns && self.world.luck.chooses(250) {
            let is_long = self.world.luck.chooses(6);
            self.idle_until_ns = now_ns + if is_long { LONG_IDLE_NS } else { IDLE_NS };
        }
        let may_act = may_act && self.idle_until_ns <= now_ns;
        let mut next_ns = now_ns + IDLE_NS;
        for client in &mut self.clients {
            let World { net, luck, .. } = &mut self.world;
            let mut scene = Scene { net, luck, model: &mut self.model, mix: self.config.mix };
            client.turn(may_act, &mut scene)?;
            next_ns = next_ns.min(client.next_action_ns.max(self.idle_until_ns));
        }
        self.world.step(if may_act { next_ns } else { now_ns + IDLE_NS })
    }

    /// The shard ends as planned.
    fn end(&mut self, how: How) -> Result<Life, Violation> {
        match how {
            How::PowerCut => self.world.cut_power()?,
            How::Kill => self.world.kill()?,
            How::KillThenPowerCut => {
                self.world.kill()?;
                self.world.luck.count(Kind::PowerCutAfterKill);
                self.world.cut_power()?;
            }
            How::ShutDown => return self.shut_down(),
        }
        self.lose_clients();
        Ok(Life::Over)
    }

    fn lose_clients(&mut self) {
        for client in &mut self.clients {
            client.lose(&mut self.model);
        }
    }

    /// A shard that has failed says nothing more; its process ends.
    fn end_after(&mut self, failure: ShardFailure) -> Result<Life, Violation> {
        if self.world.is_refused() {
            self.world.luck.count(Kind::StartRefused);
            return Ok(Life::Refused);
        }
        let disk = &self.world.disk;
        let is_earned = match failure {
            ShardFailure::Recovery(RecoveryError::Io { .. }) => disk.errors + disk.segment_read_errors > 0,
            ShardFailure::Recovery(_) => false,
            // A write or flush has failed: of the journal, a segment or a snapshot.
            ShardFailure::Storage(_) => disk.errors > 0,
        };
        if !is_earned {
            return violation(format!("the shard failed: {failure:?}"));
        }
        for _ in 0..SILENT_TURNS {
            self.turn(false)?;
        }
        self.world.kill()?;
        self.lose_clients();
        Ok(Life::Over)
    }

    /// A shutdown ends by itself; then the power may fail, and nothing that was promised is lost.
    fn shut_down(&mut self) -> Result<Life, Violation> {
        self.world.shut_down();
        let until_ns = self.world.luck.now_ns + SHUTDOWN_NS;
        while !self.world.is_stopped() {
            if self.world.luck.now_ns > until_ns {
                return violation("a shutdown does not come to its end");
            }
            self.turn(false)?;
            if let Some(failure) = self.world.failure() {
                return self.end_after(failure);
            }
        }
        let how = if self.world.luck.coin() { How::PowerCut } else { How::Kill };
        self.end(how)
    }

    /// Starts once more and reads everything; `None` when the start is refused.
    fn recover_and_audit(&mut self) -> Result<Option<Vec<(Handle, u64)>>, Violation> {
        self.world.start()?;
        while !self.world.is_ready() {
            if self.world.is_refused() {
                self.world.luck.count(Kind::StartRefused);
                return Ok(None);
            }
            if let Some(failure) = self.world.failure() {
                return violation(format!("recovery failed: {failure:?}"));
            }
            self.world.step(u64::MAX)?;
        }
        audit(&mut self.world, &mut self.model).map(Some)
    }

    /// Reads everything, restarts, and reads it again.
    fn finish(mut self) -> Result<Report, Violation> {
        self.world.end_hostility();
        self.world.disk.set_capacity(None);
        let Some(first) = self.recover_and_audit()? else { return Ok(self.report()) };
        self.shut_down()?;
        let Some(second) = self.recover_and_audit()? else { return Ok(self.report()) };
        if first != second {
            return violation(format!("before a clean restart {first:?}, after it {second:?}"));
        }
        Ok(self.report())
    }

    fn report(self) -> Report {
        let mut report = self.world.luck.report;
        self.model.add_to(&mut report);
        report
    }
}
