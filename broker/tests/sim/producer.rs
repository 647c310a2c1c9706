//! A producer on one connection: pipelines frames, and keeps their order through closed gates.
//!
//! After a retryable refusal every later frame of that partition must be refused too, until one says `RESUMES`. A
//! patient producer waits for those refusals and sends all again, in order. A hasty one sends all again at once: the
//! frames that are still on their way are *doomed*, and to acknowledge one of them would store its records twice.

use std::collections::{BTreeMap, VecDeque};

use broker::io::Socket;
use protocol::ids::Handle;
use protocol::status::Status;

use crate::client::Scene;
use crate::frames::{Received, produce};
use crate::model::Model;
use crate::report::{Kind, Violation, violation};

/// Refusals of the frame at the front after which it is given up.
const TRIES_MAX: u32 = 5;
const RETRY_NS: u64 = 1_500_000;

/// One frame: the same records however often it is sent.
#[derive(Clone, Debug)]
struct ProduceFrame {
    /// Its place among the frames of this producer.
    order: u64,
    records: Vec<u64>,
    batches: Vec<u8>,
    /// A bit of a batch was flipped: it must be refused.
    is_broken: bool,
}

#[derive(Debug)]
struct InFlight {
    correlation: u64,
    /// Sent behind a frame that was refused, and sent again since: it must be refused.
    is_doomed: bool,
    frame: ProduceFrame,
}

/// What goes to one partition.
#[derive(Debug, Default)]
struct Lane {
    in_flight: VecDeque<InFlight>,
    /// Refused and to be sent again, in order.
    refused: VecDeque<ProduceFrame>,
    /// The gate is closed, and the frame that closed it was given up: the next one says `RESUMES`.
    must_resume: bool,
    tries: u32,
    retry_at_ns: u64,
}

/// One connection's producer.
#[derive(Debug, Default)]
pub(crate) struct Producer {
    lanes: BTreeMap<Handle, Lane>,
    /// The partition of each frame in flight, by its correlation id.
    sent: BTreeMap<u64, Handle>,
    frame_count: u64,
}

/// Which frame to make.
#[derive(Debug)]
pub(crate) struct NewFrame {
    pub(crate) partition: Handle,
    pub(crate) records: Vec<u64>,
    pub(crate) batches: Vec<u8>,
    pub(crate) is_broken: bool,
}

impl Producer {
    /// Whether new frames may go to a partition: nothing waits to be sent again.
    pub(crate) fn may_send(&self, partition: Handle) -> bool {
        self.lanes.get(&partition).is_none_or(|lane| lane.refused.is_empty())
    }

    /// Sends a new frame.
    pub(crate) fn send(
        &mut self,
        socket: Socket,
        correlation: &mut u64,
        new: NewFrame,
        scene: &mut Scene<'_>,
    ) -> Result<(), Violation> {
        self.frame_count += 1;
        let NewFrame { partition, records, batches, is_broken } = new;
        let frame = ProduceFrame { order: self.frame_count, records, batches, is_broken };
        let lane = self.lanes.entry(partition).or_default();
        if is_broken {
            // Whatever comes of it, these records must never be seen.
            scene.model.on_refused(&frame.records)?;
        }
        let resumes = lane.must_resume && !is_broken;
        lane.must_resume &= is_broken;
        self.transmit(socket, correlation, partition, frame, resumes, scene);
        Ok(())
    }

    /// Sends again what was refused, where it is time; says whether anything was sent.
    pub(crate) fn send_again(
        &mut self,
        socket: Socket,
        correlation: &mut u64,
        scene: &mut Scene<'_>,
    ) -> bool {
        let now_ns = scene.luck.now_ns;
        let due = self.lanes.iter().find(|(_, lane)| lane.is_due(now_ns)).map(|(partition, _)| *partition);
        let Some(partition) = due else { return false };
        let Some(lane) = self.lanes.get_mut(&partition) else { return false };
        lane.tries += 1;
        if lane.tries > TRIES_MAX || scene.luck.chooses(10) {
            // Its records stay refused for good; the next frame opens the gate.
            scene.luck.count(Kind::GivenUp);
            lane.refused.pop_front();
            lane.tries = 0;
            lane.must_resume = lane.refused.is_empty();
        }
        let frames: Vec<ProduceFrame> = lane.refused.drain(..).collect();
        self.send_all_again(socket, correlation, partition, frames, scene);
        true
    }

    /// Sends these frames, the first with `RESUMES`.
    fn send_all_again(
        &mut self,
        socket: Socket,
        correlation: &mut u64,
        partition: Handle,
        frames: Vec<ProduceFrame>,
        scene: &mut Scene<'_>,
    ) {
        let mut resumes = true;
        for frame in frames {
            scene.model.on_sent_again(&frame.records);
            self.transmit(socket, correlation, partition, frame, resumes, scene);
            resumes = false;
        }
    }

    fn transmit(
        &mut self,
        socket: Socket,
        correlation: &mut u64,
        partition: Handle,
        frame: ProduceFrame,
        resumes: bool,
        scene: &mut Scene<'_>,
    ) {
        *correlation += 1;
        if resumes {
            scene.luck.count(Kind::Resumed);
        }
        let bytes = produce(*correlation, partition, resumes, &frame.batches);
        scene.net.write(socket, &bytes, scene.luck);
        self.sent.insert(*correlation, partition);
        let in_flight = InFlight { correlation: *correlation, is_doomed: false, frame };
        self.lanes.entry(partition).or_default().in_flight.push_back(in_flight);
    }

    /// An answer has come.
    pub(crate) fn on_answer(
        &mut self,
        socket: Socket,
        correlation: &mut u64,
        answer: &Received,
        scene: &mut Scene<'_>,
    ) -> Result<(), Violation> {
        let Some(partition) = self.sent.remove(&answer.correlation) else {
            return violation(format!("produce {} was answered twice or never sent", answer.correlation));
        };
        let lane = self.lanes.entry(partition).or_default();
        let found = lane.in_flight.iter().position(|sent| sent.correlation == answer.correlation);
        let place = found.expect("what was sent is in flight");
        let in_flight = lane.in_flight.remove(place).expect("it was just found");
        match answer.status {
            Status::Ok => lane.on_acked(place, partition, answer, &in_flight, scene.model),
            status if status.closes_gate() => {
                scene.luck.count(if status == Status::DiskFull { Kind::DiskFull } else { Kind::Busy });
                self.on_gate_closed(socket, correlation, partition, in_flight, scene)
            }
            status => {
                check_refusal(status, partition, &in_flight, scene.model)?;
                scene.luck.report.add(Kind::BrokenBatch, u64::from(in_flight.frame.is_broken));
                if in_flight.is_doomed { Ok(()) } else { scene.model.on_refused(&in_flight.frame.records) }
            }
        }
    }

    /// A frame was refused, and everything behind it will be, until one resumes.
    fn on_gate_closed(
        &mut self,
        socket: Socket,
        correlation: &mut u64,
        partition: Handle,
        refused: InFlight,
        scene: &mut Scene<'_>,
    ) -> Result<(), Violation> {
        if refused.is_doomed {
            return Ok(());
        }
        scene.model.on_refused(&refused.frame.records)?;
        let now_ns = scene.luck.now_ns;
        let lane = self.lanes.entry(partition).or_default();
        if refused.frame.is_broken {
            // It came to a closed gate before anybody looked into it. It is not sent again.
            lane.must_resume |= lane.refused.is_empty() && lane.in_flight.iter().all(|sent| sent.is_doomed);
            return Ok(());
        }
        let is_first = lane.refused.is_empty();
        let place = lane.refused.partition_point(|frame| frame.order < refused.frame.order);
        lane.refused.insert(place, refused.frame);
        lane.retry_at_ns = now_ns + RETRY_NS;
        if is_first && lane.tries < TRIES_MAX && scene.luck.chooses(3) {
            lane.tries += 1;
            scene.luck.count(Kind::ResumedEarly);
            let frames = lane.take_all_behind_gate();
            self.send_all_again(socket, correlation, partition, frames, scene);
        }
        Ok(())
    }

    /// The connection is gone: what was not answered may be stored or not.
    pub(crate) fn on_lost(&mut self, model: &mut Model) {
        let lanes = std::mem::take(&mut self.lanes);
        let in_flight = lanes.into_values().flat_map(|lane| lane.in_flight);
        for sent in in_flight.filter(|sent| !sent.is_doomed && !sent.frame.is_broken) {
            model.on_lost(&sent.frame.records);
        }
        self.sent.clear();
    }
}

impl Lane {
    /// Whether what was refused can be sent again: all that was sent behind it was answered.
    fn is_due(&self, now_ns: u64) -> bool {
        let Some(first) = self.refused.front() else { return false };
        self.retry_at_ns <= now_ns && self.in_flight.iter().all(|sent| sent.frame.order < first.order)
    }

    fn on_acked(
        &mut self,
        place: usize,
        partition: Handle,
        answer: &Received,
        acked: &InFlight,
        model: &mut Model,
    ) -> Result<(), Violation> {
        let what = format!("produce {} to {partition}", answer.correlation);
        if acked.is_doomed {
            return violation(format!("{what} was taken behind a closed gate"));
        }
        if acked.frame.is_broken {
            return violation(format!("{what} was taken, and its checksum does not match"));
        }
        if place != 0 {
            return violation(format!("{what} was answered before the one sent before it"));
        }
        if self.refused.front().is_some_and(|first| first.order < acked.frame.order) {
            return violation(format!("{what} was taken, and one before it was refused"));
        }
        self.tries = 0;
        model.on_acked(partition, answer.subject, &acked.frame.records)
    }

    /// Everything that was or will be refused, in order; what is still on its way is doomed.
    fn take_all_behind_gate(&mut self) -> Vec<ProduceFrame> {
        let first = self.refused.front().map_or(u64::MAX, |frame| frame.order);
        let mut frames: Vec<ProduceFrame> = self.refused.drain(..).collect();
        for sent in &mut self.in_flight {
            if sent.frame.order > first && !sent.is_doomed && !sent.frame.is_broken {
                sent.is_doomed = true;
                frames.push(sent.frame.clone());
            }
        }
        frames.sort_by_key(|frame| frame.order);
        frames
    }
}

/// Whether a refusal that cannot be retried is one that the frame has earned.
fn check_refusal(
    status: Status,
    partition: Handle,
    refused: &InFlight,
    model: &mut Model,
) -> Result<(), Violation> {
    match status {
        Status::StaleHandle => model.topics.on_told_gone(partition),
        Status::ShuttingDown => Ok(()),
        Status::CorruptBatch | Status::InvalidBatch | Status::Unsupported if refused.frame.is_broken => {
            Ok(())
        }
        other => violation(format!("a good frame to {partition} was refused with {other:?}")),
    }
}
