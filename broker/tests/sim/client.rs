//! A scripted client: what it does is drawn from the workload's stream, what it hears is checked against the model.
//!
//! Each request is answered exactly once, by a frame of its opcode. When the connection ends, what was not answered
//! is unknown; the client connects again and goes on as somebody else.

use std::collections::BTreeMap;

use broker::io::Socket;
use protocol::frame::Opcode;
use protocol::ids::Handle;
use protocol::status::Status;

use crate::actions::Mix;
use crate::consumer::Consumer;
use crate::fetched::on_fetched;
use crate::frames::{self, Cutter, Described, Received};
use crate::luck::Luck;
use crate::model::{Damaged, KnownRange, Model};
use crate::net::Net;
use crate::producer::Producer;
use crate::report::{Kind, Violation, violation};
use crate::topics::Presence;

/// Pause between two actions.
const PAUSE_NS: u64 = 300_000;

/// What a client can reach and touch.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) net: &'a mut Net,
    pub(crate) luck: &'a mut Luck,
    pub(crate) model: &'a mut Model,
    /// What clients of this run do.
    pub(crate) mix: Mix,
}

/// A request that waits for its answer; produces are kept by the producer.
#[derive(Debug)]
pub(crate) enum Request {
    Hello,
    Stats,
    List,
    Create { name: String, partition_count: u32 },
    Delete { name: String },
    Describe { name: String, version: u64, known: Vec<KnownRange> },
    Subscribe { subscription: u64, version: u64 },
    Unsubscribe { subscription: u64 },
    Fetch { partition: Handle, from: u64, known_end: u64 },
}

impl Request {
    fn opcode(&self) -> Opcode {
        match self {
            Self::Hello => Opcode::Hello,
            Self::Stats => Opcode::Stats,
            Self::List => Opcode::ListTopics,
            Self::Create { .. } => Opcode::CreateTopic,
            Self::Delete { .. } => Opcode::DeleteTopic,
            Self::Describe { .. } => Opcode::DescribeTopic,
            Self::Subscribe { .. } => Opcode::Subscribe,
            Self::Unsubscribe { .. } => Opcode::Unsubscribe,
            Self::Fetch { .. } => Opcode::Fetch,
        }
    }
}

/// One connection of a client.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) socket: Socket,
    /// Its number for the model.
    pub(crate) lane: u64,
    cutter: Cutter,
    pub(crate) last_correlation: u64,
    pub(crate) is_greeted: bool,
    pub(crate) requests: BTreeMap<u64, Request>,
    pub(crate) producer: Producer,
    pub(crate) consumer: Consumer,
}

/// A client, which outlives its connections.
#[derive(Debug)]
pub(crate) struct Client {
    /// Creates and deletes topics.
    is_admin: bool,
    session: Option<Session>,
    /// When it acts next.
    pub(crate) next_action_ns: u64,
}

impl Client {
    pub(crate) fn new(is_admin: bool) -> Self {
        Self { is_admin, session: None, next_action_ns: 0 }
    }

    /// Reads what has come, and does the next thing when it is time.
    pub(crate) fn turn(&mut self, may_act: bool, scene: &mut Scene<'_>) -> Result<(), Violation> {
        if let Some(session) = &mut self.session {
            session.read(scene)?;
            if scene.net.has_ended(session.socket) {
                self.lose(scene.model);
            }
        }
        if !may_act || self.next_action_ns > scene.luck.now_ns {
            return Ok(());
        }
        let pause_ns = scene.luck.pick(PAUSE_NS as usize) as u64;
        self.next_action_ns = scene.luck.now_ns + 10_000 + pause_ns;
        let Some(session) = &mut self.session else {
            self.session = Some(Session::begin(scene));
            return Ok(());
        };
        session.act(self.is_admin, scene)
    }

    /// The connection is gone, and with it whatever was not answered.
    pub(crate) fn lose(&mut self, model: &mut Model) {
        let Some(mut session) = self.session.take() else { return };
        session.producer.on_lost(model);
        for request in session.requests.into_values() {
            if let Request::Create { name, .. } | Request::Delete { name } = request {
                model.topics.on_lost(&name);
            }
        }
    }
}

impl Session {
    fn begin(scene: &mut Scene<'_>) -> Self {
        let mut session = Self {
            socket: scene.net.connect(scene.luck),
            lane: scene.model.new_lane(),
            cutter: Cutter::default(),
            last_correlation: 0,
            is_greeted: false,
            requests: BTreeMap::new(),
            producer: Producer::default(),
            consumer: Consumer::default(),
        };
        session.ask(Request::Hello, scene, frames::hello);
        session
    }

    /// Sends a request that will be answered; `build` gets its correlation id.
    pub(crate) fn ask(
        &mut self,
        request: Request,
        scene: &mut Scene<'_>,
        build: impl FnOnce(u64) -> Vec<u8>,
    ) {
        self.last_correlation += 1;
        self.requests.insert(self.last_correlation, request);
        scene.net.write(self.socket, &build(self.last_correlation), scene.luck);
    }

    fn read(&mut self, scene: &mut Scene<'_>) -> Result<(), Violation> {
        let bytes = scene.net.take_inbox(self.socket);
        if bytes.is_empty() {
            return Ok(());
        }
        self.cutter.push(&bytes);
        while let Some(frame) = self.cutter.next_frame()? {
            self.on_frame(&frame, scene)?;
        }
        Ok(())
    }

    fn on_frame(&mut self, frame: &Received, scene: &mut Scene<'_>) -> Result<(), Violation> {
        let Some(opcode) = Opcode::from_code(frame.opcode) else {
            return violation(format!("a frame of the unknown opcode {}", frame.opcode));
        };
        match (frame.is_answer, opcode) {
            (false, Opcode::Deliver) => self.consumer.on_deliver(frame, scene.model),
            (false, Opcode::Heartbeat) => Ok(()),
            (false, Opcode::GoAway) => check_farewell(frame),
            (false, other) => violation(format!("a {other:?} was pushed")),
            (true, Opcode::Produce) => {
                self.producer.on_answer(self.socket, &mut self.last_correlation, frame, scene)
            }
            // Credit is answered only when refused; it was sent for a subscription whose topic is gone since.
            (true, Opcode::Credit) if frame.status == Status::UnknownSubscription => Ok(()),
            (true, Opcode::Unsubscribe) if frame.correlation == 0 => {
                self.consumer.on_ended(frame, scene.model)
            }
            (true, _) => match self.requests.remove(&frame.correlation) {
                Some(request) if request.opcode() == opcode => self.on_answer(request, frame, scene),
                other => violation(format!("a {opcode:?} answers {other:?}")),
            },
        }
    }

    fn on_answer(
        &mut self,
        request: Request,
        frame: &Received,
        scene: &mut Scene<'_>,
    ) -> Result<(), Violation> {
        let model = &mut *scene.model;
        match (request, frame.status) {
            (Request::Hello, Status::Ok) => {
                self.is_greeted = true;
                Ok(())
            }
            (Request::Stats | Request::List, Status::Ok) => Ok(()),
            (Request::Create { name, partition_count }, Status::Ok) => {
                let partitions = frame.described()?.into_iter().map(|described| described.handle).collect();
                model.topics.on_created(&name, partitions, partition_count)
            }
            (Request::Create { name, .. }, status) => model.topics.on_create_refused(&name, status),
            (Request::Delete { name }, Status::Ok) => {
                model.topics.on_deleted(&name);
                Ok(())
            }
            (Request::Delete { name }, status) => model.topics.on_delete_refused(&name, status),
            (Request::Describe { name, version, known }, Status::Ok) => {
                let partitions = frame.described()?;
                check_known(&partitions, &known)?;
                let handles = partitions.iter().map(|described| described.handle).collect();
                model.topics.on_described(&name, version, Some(handles))?;
                if model.topics.version(&name) == version {
                    model.topics.check_settings(&name, frame.settings()?)?;
                }
                partitions
                    .iter()
                    .try_for_each(|described| model.on_start_told(described.handle, described.start))
            }
            (Request::Describe { name, version, .. }, Status::UnknownTopic) => {
                model.topics.on_described(&name, version, None)
            }
            (Request::Subscribe { subscription, version }, status) => {
                self.on_subscribe_answer(subscription, version, status, frame, model)
            }
            (Request::Unsubscribe { subscription }, Status::Ok | Status::UnknownSubscription) => {
                self.consumer.end(subscription);
                Ok(())
            }
            (Request::Fetch { partition, from, known_end }, _) => {
                scene.luck.count(Kind::Fetched);
                on_fetched(partition, from, known_end, frame, model)
            }
            (request, status) => {
                violation(format!("{request:?} was answered {status:?}: {}", frame.message()))
            }
        }
    }

    fn on_subscribe_answer(
        &mut self,
        subscription: u64,
        version: u64,
        status: Status,
        frame: &Received,
        model: &mut Model,
    ) -> Result<(), Violation> {
        match status {
            Status::Ok => self.consumer.on_subscribed(subscription, &frame.subscribed()?, model),
            Status::UnknownTopic | Status::UnknownPartition => {
                let topic = self.consumer.topic(subscription).unwrap_or_default();
                let is_unchanged = model.topics.version(topic) == version;
                if is_unchanged && model.topics.presence(topic) == Presence::Present {
                    return violation(format!("{topic} is there, and is said not to be"));
                }
                self.consumer.end(subscription);
                Ok(())
            }
            Status::OffsetOutOfRange => {
                self.consumer.check_out_of_range(subscription, model)?;
                self.consumer.end(subscription);
                Ok(())
            }
            Status::Corrupt => {
                let detail = frame.offsets()?;
                self.consumer.end(subscription);
                let partition = detail.partition.unwrap_or_default();
                let damaged = Damaged { partition, first: detail.first, behind: detail.behind };
                model.on_damaged(damaged, detail.first)
            }
            other => violation(format!("a Subscribe was answered {other:?}: {}", frame.message())),
        }
    }
}

/// Whether the broker may say this to a client that keeps every rule.
fn check_farewell(frame: &Received) -> Result<(), Violation> {
    match frame.status {
        Status::Ok | Status::Busy | Status::ShuttingDown => Ok(()),
        other => violation(format!("an honest client was cut with {other:?}: {}", frame.message())),
    }
}

/// What a client knew when it asked is still true.
fn check_known(described: &[Described], known: &[KnownRange]) -> Result<(), Violation> {
    for now in described {
        let Some(known) = known.iter().find(|known| known.partition == now.handle) else { continue };
        if now.end < known.end || now.start < known.start {
            return violation(format!("clients knew of {known:?}, and now there is {now:?}"));
        }
    }
    Ok(())
}
