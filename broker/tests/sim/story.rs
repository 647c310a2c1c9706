//! A world, a peer, and a model that hears of everything the peer does: what directed stories are told with.
//!
//! It does one thing after another, and fails at the first surprise. What a story is about it says itself.

use protocol::frame::Opcode;
use protocol::ids::Handle;
use protocol::status::Status;

use crate::audit::audit;
use crate::frames::{self, Received};
use crate::image::Mood;
use crate::model::Model;
use crate::peer::Peer;
use crate::records::{Size, batch_of, content};
use crate::report::{Kind, Violation, violation};
use crate::retention::Settings;
use crate::world::{World, WorldConfig};

/// One run with one peer, which does one thing after another.
#[derive(Debug)]
pub(crate) struct Story {
    pub(crate) world: World,
    pub(crate) model: Model,
    pub(crate) peer: Peer,
    lane: u64,
}

impl Story {
    /// A broker on an empty disk.
    pub(crate) fn begin(seed: u64, config: &WorldConfig) -> Result<Self, Violation> {
        let mut world = World::new(seed, config);
        world.start_and_recover()?;
        Self::on(world, Model::default())
    }

    /// Goes on with a world that serves.
    pub(crate) fn on(world: World, model: Model) -> Result<Self, Violation> {
        let mut story = Self::beside(world, model);
        story.greet()?;
        Ok(story)
    }

    /// Connects to a world that serves, and says nothing yet.
    pub(crate) fn beside(mut world: World, mut model: Model) -> Self {
        let peer = Peer::connect(&mut world);
        let lane = model.new_lane();
        Self { world, model, peer, lane }
    }

    pub(crate) fn greet(&mut self) -> Result<(), Violation> {
        self.peer.ask_for(&mut self.world, Status::Ok, frames::hello).map(|_| ())
    }

    /// Cuts the power, starts again, and connects again.
    pub(crate) fn cut_power_and_recover(&mut self, mood: Mood) -> Result<(), Violation> {
        self.world.cut_power_in(mood)?;
        self.recover()
    }

    /// Starts again after the end of the process, and connects again.
    pub(crate) fn recover(&mut self) -> Result<(), Violation> {
        self.world.start_and_recover()?;
        self.peer = Peer::greet(&mut self.world)?;
        self.lane = self.model.new_lane();
        Ok(())
    }

    /// Reads everything; gives the partitions and their ends.
    pub(crate) fn audit(&mut self) -> Result<Vec<(Handle, u64)>, Violation> {
        audit(&mut self.world, &mut self.model)
    }

    pub(crate) fn count(&self, kind: Kind) -> u64 {
        self.world.luck.report.count(kind)
    }

    pub(crate) fn create(
        &mut self,
        name: &str,
        partitions: u32,
        settings: Settings,
    ) -> Result<Vec<Handle>, Violation> {
        self.model.topics.begin_create(name, settings);
        let handles = self.peer.create_topic_with(&mut self.world, name, partitions, &settings)?;
        self.model.topics.on_created(name, handles.clone(), partitions)?;
        Ok(handles)
    }

    pub(crate) fn delete(&mut self, name: &str) -> Result<(), Violation> {
        self.model.topics.begin_delete(name);
        self.peer.delete_topic(&mut self.world, name)?;
        self.model.topics.on_deleted(name);
        Ok(())
    }

    /// Produces one frame of so many records, and waits until it is acknowledged; gives the records.
    pub(crate) fn produce(
        &mut self,
        partition: Handle,
        size: Size,
        count: usize,
    ) -> Result<Vec<u64>, Violation> {
        self.model.see(self.world.surroundings());
        let records = self.model.new_frame(partition, self.lane, size, count);
        let first = self.peer.produce(&mut self.world, partition, &records)?;
        self.model.see(self.world.surroundings());
        self.model.on_acked(partition, first, &records)?;
        Ok(records)
    }

    /// Produces at least so many bytes of large records; gives the records.
    pub(crate) fn fill(&mut self, partition: Handle, bytes: usize) -> Result<Vec<u64>, Violation> {
        const RECORDS: usize = 4;
        let mut all = Vec::new();
        let mut produced = 0;
        while produced < bytes {
            let records = self.produce(partition, Size::Large, RECORDS)?;
            produced += records.iter().map(|record| content(*record).len()).sum::<usize>();
            all.extend(records);
        }
        Ok(all)
    }

    /// Sends one new frame, and gives its records and the answer, whatever that is; the model knows of a refusal.
    pub(crate) fn try_produce(
        &mut self,
        partition: Handle,
        resumes: bool,
    ) -> Result<(Vec<u64>, Received), Violation> {
        let records = self.model.new_frame(partition, self.lane, Size::Large, 4);
        let batches = batch_of(&records);
        let produce = |correlation| frames::produce(correlation, partition, resumes, &batches);
        let answer = self.peer.ask(&mut self.world, produce)?;
        match answer.status {
            Status::Ok => self.model.on_acked(partition, answer.subject, &records)?,
            _ => self.model.on_refused(&records)?,
        }
        Ok((records, answer))
    }

    /// Produces until so many snapshots were published since the start, and no further one is being made.
    pub(crate) fn fill_until_snapshots(&mut self, partition: Handle, count: u64) -> Result<(), Violation> {
        const ROUNDS_MAX: u32 = 200;
        for _ in 0..ROUNDS_MAX {
            if self.count(Kind::SnapshotPublished) >= count && !self.world.watch.is_capturing() {
                // Its flush is under way.
                return self.world.run_for(50_000_000);
            }
            if self.count(Kind::SnapshotPublished) < count {
                self.fill(partition, 512 << 10)?;
            }
            self.world.run_for(10_000_000)?;
        }
        violation(format!("{} snapshots were published, not {count}", self.count(Kind::SnapshotPublished)))
    }

    /// Fetches some batches from an offset on; gives the answer, whatever that is.
    pub(crate) fn fetch(&mut self, partition: Handle, from: u64) -> Result<Received, Violation> {
        let fetch = |correlation| frames::fetch(correlation, partition, from, u64::MAX, 100_000);
        self.peer.ask(&mut self.world, fetch)
    }

    /// A request that any broker answers at once: it is well.
    pub(crate) fn ask_for_stats(&mut self) -> Result<(), Violation> {
        let stats = |correlation| frames::bare(Opcode::Stats, correlation, 0);
        self.peer.ask_for(&mut self.world, Status::Ok, stats).map(|_| ())
    }
}
