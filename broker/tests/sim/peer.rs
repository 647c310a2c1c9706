//! A plain peer for tests that say step by step what happens.
//!
//! It writes bytes and waits for frames, running the world meanwhile. It checks nothing by itself but that the
//! broker's bytes are frames; what they must say is the test's business.

use std::collections::VecDeque;

use broker::io::Socket;
use protocol::frame::Opcode;
use protocol::ids::Handle;
use protocol::status::Status;

use crate::frames::{self, Cutter, Described, Received};
use crate::records::batch_of;
use crate::report::{Violation, violation};
use crate::retention::Settings;
use crate::world::World;

/// Virtual time after which a frame that was waited for will not come.
const PATIENCE_NS: u64 = 5_000_000_000;
/// Pause before a refused produce is sent again.
const RETRY_NS: u64 = 20_000_000;
/// Times that a produce is sent again.
const RETRIES_MAX: u32 = 500;

/// One connection, driven by a test.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) socket: Socket,
    cutter: Cutter,
    /// Frames that came and that nobody has asked for yet.
    frames: VecDeque<Received>,
    last_correlation: u64,
}

impl Peer {
    /// Connects and says nothing.
    pub(crate) fn connect(world: &mut World) -> Self {
        let socket = world.net.connect(&mut world.luck);
        Self { socket, cutter: Cutter::default(), frames: VecDeque::new(), last_correlation: 0 }
    }

    /// Connects and exchanges greetings.
    pub(crate) fn greet(world: &mut World) -> Result<Self, Violation> {
        let mut peer = Self::connect(world);
        peer.ask_for(world, Status::Ok, frames::hello)?;
        Ok(peer)
    }

    /// A correlation id that was not used.
    pub(crate) fn next_correlation(&mut self) -> u64 {
        self.last_correlation += 1;
        self.last_correlation
    }

    pub(crate) fn send(&self, world: &mut World, bytes: &[u8]) {
        world.net.write(self.socket, bytes, &mut world.luck);
    }

    /// Takes in what has come; says whether nothing more will.
    pub(crate) fn poll(&mut self, world: &mut World) -> Result<bool, Violation> {
        let bytes = world.net.take_inbox(self.socket);
        self.cutter.push(&bytes);
        while let Some(frame) = self.cutter.next_frame()? {
            self.frames.push_back(frame);
        }
        Ok(world.net.has_ended(self.socket))
    }

    /// All frames that have come.
    pub(crate) fn take(&mut self, world: &mut World) -> Result<Vec<Received>, Violation> {
        self.poll(world)?;
        Ok(self.frames.drain(..).collect())
    }

    /// Runs the world until a frame of this kind comes, and takes it out; others stay.
    pub(crate) fn wait_for(
        &mut self,
        world: &mut World,
        what: impl Fn(&Received) -> bool,
    ) -> Result<Received, Violation> {
        let until_ns = world.luck.now_ns + PATIENCE_NS;
        loop {
            let has_ended = self.poll(world)?;
            let found = self.frames.iter().position(&what).and_then(|place| self.frames.remove(place));
            if let Some(frame) = found {
                return Ok(frame);
            }
            if has_ended || world.luck.now_ns >= until_ns {
                let left: Vec<_> = self.frames.iter().map(|frame| (frame.opcode, frame.status)).collect();
                return violation(format!(
                    "the frame did not come (connection ended: {has_ended}), but {left:?}"
                ));
            }
            world.step(until_ns)?;
        }
    }

    /// Runs the world until the broker has closed the connection, and gives the frames that came before.
    pub(crate) fn wait_for_end(&mut self, world: &mut World) -> Result<Vec<Received>, Violation> {
        let until_ns = world.luck.now_ns + PATIENCE_NS;
        while !self.poll(world)? {
            if world.luck.now_ns >= until_ns {
                return violation("the connection was not closed");
            }
            world.step(until_ns)?;
        }
        Ok(self.frames.drain(..).collect())
    }

    /// Sends a request and waits for its answer, whatever that is.
    pub(crate) fn ask(
        &mut self,
        world: &mut World,
        build: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<Received, Violation> {
        let correlation = self.next_correlation();
        self.send(world, &build(correlation));
        self.wait_for(world, |frame| frame.is_answer && frame.correlation == correlation)
    }

    /// Sends a request and waits for its answer, which must have this status.
    pub(crate) fn ask_for(
        &mut self,
        world: &mut World,
        status: Status,
        build: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<Received, Violation> {
        let answer = self.ask(world, build)?;
        if answer.status == status {
            return Ok(answer);
        }
        violation(format!("wanted {status:?}, got {:?}: {}", answer.status, answer.message()))
    }

    /// Creates a topic and gives its partitions.
    pub(crate) fn create_topic(
        &mut self,
        world: &mut World,
        name: &str,
        partitions: u32,
    ) -> Result<Vec<Handle>, Violation> {
        self.create_topic_with(world, name, partitions, &Settings::default())
    }

    /// Creates a topic with settings and gives its partitions.
    pub(crate) fn create_topic_with(
        &mut self,
        world: &mut World,
        name: &str,
        partitions: u32,
        settings: &Settings,
    ) -> Result<Vec<Handle>, Violation> {
        let create = |correlation| frames::create_topic_with(correlation, name, partitions, settings);
        let answer = self.ask_for(world, Status::Ok, create)?;
        Ok(answer.described()?.into_iter().map(|partition| partition.handle).collect())
    }

    /// What a topic has, by its description.
    pub(crate) fn describe(&mut self, world: &mut World, name: &str) -> Result<Vec<Described>, Violation> {
        let describe = |correlation| frames::about_topic(Opcode::DescribeTopic, correlation, name);
        self.ask_for(world, Status::Ok, describe)?.described()
    }

    /// Deletes a topic.
    pub(crate) fn delete_topic(&mut self, world: &mut World, name: &str) -> Result<(), Violation> {
        let delete = |correlation| frames::about_topic(Opcode::DeleteTopic, correlation, name);
        self.ask_for(world, Status::Ok, delete).map(|_| ())
    }

    /// Produces these records as one batch, again while the broker is busy (it may have to make space first), and
    /// waits for the acknowledgement; gives the first offset.
    pub(crate) fn produce(
        &mut self,
        world: &mut World,
        partition: Handle,
        records: &[u64],
    ) -> Result<u64, Violation> {
        let batches = batch_of(records);
        let mut resumes = false;
        for _ in 0..RETRIES_MAX {
            let answer =
                self.ask(world, |correlation| frames::produce(correlation, partition, resumes, &batches))?;
            match answer.status {
                Status::Ok => return Ok(answer.subject),
                Status::Busy => resumes = true,
                other => return violation(format!("a produce was refused with {other:?}")),
            }
            world.run_for(RETRY_NS)?;
        }
        violation("the broker is busy for ever")
    }
}
