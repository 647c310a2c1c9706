//! What a scripted client does next, drawn from the workload's stream.
//!
//! Mostly it produces, in bursts that overrun the window; it subscribes, grants credit late, fetches, asks, stalls,
//! hangs up, and now and then sends a batch with a flipped bit.

use protocol::batch::BATCH_HEADER_BYTES;
use protocol::frame::Opcode;
use protocol::ids::Handle;

use crate::client::{Request, Scene, Session};
use crate::frames::{self, Start, Subscribing};
use crate::model::Appended;
use crate::producer::NewFrame;
use crate::records::{Size, batch_of};
use crate::report::{Kind, Violation};
use crate::retention::Settings;
use crate::topics::Presence;

/// Requests of a client, other than produces, that wait for their answer.
const REQUESTS_MAX: usize = 24;
/// Subscriptions of a client.
const SUBSCRIPTIONS_MAX: usize = 6;
/// Bytes on their way to the broker beyond which a client writes no more.
const BACKLOG_BYTES_MAX: usize = 400 << 10;
const STALL_NS: usize = 60_000_000;
/// Names that topics can have; few, so that they are used again.
const NAMES: [&str; 6] = ["orders", "quotes", "fills", "clicks", "jobs", "audit"];

/// What the clients of a run do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix {
    /// One in so many frames has large records,
    pub(crate) large_one_in: usize,
    /// and up to so many in a batch.
    pub(crate) large_records_max: usize,
    pub(crate) partitions_max: usize,
}

impl Mix {
    /// Many small frames to many partitions.
    pub(crate) const LIGHT: Self = Self { large_one_in: 40, large_records_max: 3, partitions_max: 4 };
    /// Much data to few partitions, so that segments are closed and memory does not hold everything.
    pub(crate) const HEAVY: Self = Self { large_one_in: 5, large_records_max: 6, partitions_max: 2 };
}

impl Session {
    /// Does one thing.
    pub(crate) fn act(&mut self, is_admin: bool, scene: &mut Scene<'_>) -> Result<(), Violation> {
        let is_slow =
            scene.net.backlog(self.socket) > BACKLOG_BYTES_MAX || self.requests.len() > REQUESTS_MAX;
        // A quarter of the clients do not wait for the answer to their Hello.
        if is_slow || !self.is_greeted && !self.lane.is_multiple_of(4) {
            return Ok(());
        }
        if self.producer.send_again(self.socket, &mut self.last_correlation, scene) {
            return Ok(());
        }
        scene.model.operations += 1;
        let is_bare = scene.model.topics.present().len() < 2;
        if is_admin && (is_bare || scene.luck.chooses(12)) {
            self.change_topic(scene);
            return Ok(());
        }
        match scene.luck.pick(100) {
            0..=54 => self.produce_burst(scene)?,
            55..=63 => self.subscribe(scene),
            64..=77 => self.grant(scene),
            78..=80 => self.unsubscribe(scene),
            81..=87 => self.fetch(scene),
            88..=90 => self.describe(scene),
            91 => self.ask(Request::List, scene, frames::list_topics),
            92 => self.ask(Request::Stats, scene, |correlation| frames::bare(Opcode::Stats, correlation, 0)),
            93 => scene.net.write(self.socket, &frames::bare(Opcode::Heartbeat, 0, 0), scene.luck),
            94..=95 => self.stall(scene),
            96 => self.hang_up(scene),
            _ => self.produce_broken(scene)?,
        }
        Ok(())
    }

    /// One of the partitions of topics that are certainly there.
    fn partition(scene: &mut Scene<'_>) -> Option<Handle> {
        let partitions = scene.model.topics.partitions();
        if partitions.is_empty() {
            return None;
        }
        Some(partitions[scene.luck.pick(partitions.len())])
    }

    fn produce_burst(&mut self, scene: &mut Scene<'_>) -> Result<(), Violation> {
        let Some(partition) = Self::partition(scene).filter(|partition| self.producer.may_send(*partition))
        else {
            return Ok(());
        };
        let frames = if scene.luck.chooses(4) { 2 + scene.luck.pick(8) } else { 1 };
        for _ in 0..frames {
            let is_large = scene.luck.pick(scene.mix.large_one_in) == 0;
            let (size, records, batches) = match scene.luck.pick(5) {
                _ if is_large => {
                    (Size::Large, 1 + scene.luck.pick(scene.mix.large_records_max), 1 + scene.luck.pick(2))
                }
                0 => (Size::Medium, 1 + scene.luck.pick(12), 1),
                _ => (Size::Small, 1 + scene.luck.pick(20), 1 + scene.luck.pick(3)),
            };
            let (records, batches) = self.frame(partition, size, (records, batches), scene);
            let new = NewFrame { partition, records, batches, is_broken: false };
            self.producer.send(self.socket, &mut self.last_correlation, new, scene)?;
        }
        Ok(())
    }

    /// A frame whose checksum does not match: it is refused, and what comes behind it is not.
    fn produce_broken(&mut self, scene: &mut Scene<'_>) -> Result<(), Violation> {
        let Some(partition) = Self::partition(scene).filter(|partition| self.producer.may_send(*partition))
        else {
            return Ok(());
        };
        let (records, mut batches) = self.frame(partition, Size::Small, (2, 1), scene);
        let place = BATCH_HEADER_BYTES + scene.luck.pick(batches.len() - BATCH_HEADER_BYTES);
        batches[place] ^= 1 << scene.luck.pick(8);
        let new = NewFrame { partition, records, batches, is_broken: true };
        self.producer.send(self.socket, &mut self.last_correlation, new, scene)
    }

    /// The records and the bytes of a new frame of so many records in each of so many batches.
    fn frame(
        &self,
        partition: Handle,
        size: Size,
        (records, batches): (usize, usize),
        scene: &mut Scene<'_>,
    ) -> (Vec<u64>, Vec<u8>) {
        let all = scene.model.new_frame(partition, self.lane, size, records * batches);
        let bytes = all.chunks(records).flat_map(batch_of).collect();
        (all, bytes)
    }

    fn subscribe(&mut self, scene: &mut Scene<'_>) {
        let present = scene.model.topics.present();
        if present.is_empty() || self.consumer.count() >= SUBSCRIPTIONS_MAX {
            return;
        }
        let topic = present[scene.luck.pick(present.len())].to_owned();
        let partitions = scene.model.topics.partitions_of(&topic);
        let number = scene.luck.pick(partitions.len() + 1);
        let (partition, known_end) = match partitions.get(number) {
            Some(handle) => (number as i32, scene.model.known_end(*handle)),
            None => (-1, 0),
        };
        let handle = partitions.get(number).or(partitions.first()).copied();
        let start = match scene.luck.pick(6) {
            0 => Start::Latest,
            1 => Start::Offset(scene.luck.pick(known_end as usize + 1) as u64),
            2 => handle.and_then(|handle| Self::time_of_some_record(handle, scene)).unwrap_or(Start::Latest),
            _ => Start::Earliest,
        };
        scene.luck.report.add(Kind::StartedFromTime, u64::from(matches!(start, Start::Time(_))));
        let (records, bytes) = (scene.luck.pick(80) as u64, 1_000 + scene.luck.pick(200_000) as u64);
        let version = scene.model.topics.version(&topic);
        let subscription = self.consumer.begin(&topic, start, (records, bytes), scene.model);
        let wanted = Subscribing { topic: &topic, partition, start, records, bytes };
        self.ask(Request::Subscribe { subscription, version }, scene, |correlation| {
            frames::subscribe(correlation, subscription, &wanted)
        });
    }

    /// A time at or just before which a record of a partition was appended, if any is known.
    fn time_of_some_record(partition: Handle, scene: &mut Scene<'_>) -> Option<Start> {
        let from = scene.luck.pick(scene.model.known_end(partition) as usize + 1) as u64;
        let mut known = scene.model.fixed.range((partition, from)..=(partition, u64::MAX));
        let at_ms = known.find_map(|(_, fixed)| match fixed.appended {
            Appended::At(at_ms) => Some(at_ms),
            Appended::NotBefore(_) => None,
        })?;
        Some(Start::Time(at_ms - scene.luck.pick(3) as u64))
    }

    fn grant(&mut self, scene: &mut Scene<'_>) {
        let Some(subscription) = self.consumer.choose(scene.luck.pick(SUBSCRIPTIONS_MAX)) else { return };
        let (records, bytes) = (1 + scene.luck.pick(200) as u64, 1 + scene.luck.pick(300_000) as u64);
        self.consumer.grant(subscription, records, bytes);
        self.last_correlation += 1;
        let frame = frames::credit(self.last_correlation, subscription, records, bytes);
        scene.net.write(self.socket, &frame, scene.luck);
    }

    fn unsubscribe(&mut self, scene: &mut Scene<'_>) {
        let Some(subscription) = self.consumer.choose(scene.luck.pick(SUBSCRIPTIONS_MAX)) else { return };
        self.ask(Request::Unsubscribe { subscription }, scene, |correlation| {
            frames::bare(Opcode::Unsubscribe, correlation, subscription)
        });
    }

    fn fetch(&mut self, scene: &mut Scene<'_>) {
        let Some(partition) = Self::partition(scene) else { return };
        let known_end = scene.model.known_end(partition);
        let from = scene.luck.pick(known_end as usize + 2) as u64;
        let to = from + scene.luck.pick(100) as u64;
        let bytes_max = scene.luck.pick(100_000) as u32;
        self.ask(Request::Fetch { partition, from, known_end }, scene, |correlation| {
            frames::fetch(correlation, partition, from, to, bytes_max)
        });
    }

    fn describe(&mut self, scene: &mut Scene<'_>) {
        let name = NAMES[scene.luck.pick(NAMES.len())];
        self.describe_topic(name, scene);
    }

    fn describe_topic(&mut self, name: &str, scene: &mut Scene<'_>) {
        let topics = &scene.model.topics;
        let partitions = topics.partitions_of(name).iter();
        let known = partitions.map(|handle| scene.model.known_range(*handle)).collect();
        let request = Request::Describe { name: name.to_owned(), version: topics.version(name), known };
        self.ask(request, scene, |correlation| frames::about_topic(Opcode::DescribeTopic, correlation, name));
    }

    /// Creates what is not there, deletes what is, and asks where that is unclear.
    fn change_topic(&mut self, scene: &mut Scene<'_>) {
        let name = NAMES[scene.luck.pick(NAMES.len())];
        match scene.model.topics.presence(name) {
            Presence::Absent => {
                let partition_count = 1 + scene.luck.pick(scene.mix.partitions_max) as u32;
                let settings = Settings::draw(scene.luck);
                scene.model.topics.begin_create(name, settings);
                let request = Request::Create { name: name.to_owned(), partition_count };
                self.ask(request, scene, |correlation| {
                    frames::create_topic_with(correlation, name, partition_count, &settings)
                });
            }
            Presence::Present if scene.luck.chooses(3) => {
                scene.model.topics.begin_delete(name);
                let request = Request::Delete { name: name.to_owned() };
                self.ask(request, scene, |correlation| {
                    frames::about_topic(Opcode::DeleteTopic, correlation, name)
                });
            }
            Presence::Unclear => self.describe_topic(name, scene),
            Presence::Present | Presence::Creating | Presence::Deleting => {}
        }
    }

    fn stall(&mut self, scene: &mut Scene<'_>) {
        scene.luck.count(Kind::Stall);
        let until_ns = scene.luck.now_ns + scene.luck.pick(STALL_NS) as u64;
        scene.net.stall(self.socket, until_ns);
    }

    /// Closes, unless a change of a topic is under way: it would still arrive, and nobody could say when.
    fn hang_up(&mut self, scene: &mut Scene<'_>) {
        let changes = |request: &Request| matches!(request, Request::Create { .. } | Request::Delete { .. });
        if !self.requests.values().any(changes) {
            scene.luck.count(Kind::HangUp);
            scene.net.hang_up(self.socket, scene.luck);
        }
    }
}
