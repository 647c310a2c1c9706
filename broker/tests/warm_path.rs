//! The warm paths of the shard allocate nothing: produce, commit, answer, and delivery to a subscriber.
//!
//! The shard runs on a disk and a network that do everything at once. After rounds that let every container find its
//! size, further rounds must not ask the allocator for anything. (The list of a tail's chunks still doubles now and
//! then while a partition grows; the measured rounds lie between two doublings.)
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed test is the right answer")]

#[path = "../../client/tests/warm_path/counting_allocator.rs"]
mod counting_allocator;

use std::collections::BTreeMap;

use broker::io::{Completion, Now, Op, Socket};
use broker::journal::{Durability, JournalLayout};
use broker::shard::{Shard, ShardConfig};
use counting_allocator::CountingAllocator;
use flatbuffers::FlatBufferBuilder;
use protocol::batch::{BatchBuilder, Record};
use protocol::frame::{FRAME_HEADER_BYTES, Frame, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle, TopicKey};
use protocol::{envelope, wire};
use reactor::memory::{Buffer, Pool};
use zerocopy::IntoBytes;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const PRODUCER: Socket = Socket { slot: 0, generation: 0 };
const CONSUMER: Socket = Socket { slot: 1, generation: 0 };
const ROUNDS_WARMING: usize = 4_500;
const ROUNDS_MEASURED: usize = 1_000;

/// The shard, and an outside that completes everything in the next turn.
struct World {
    shard: Shard,
    now: Now,
    completions: Vec<Completion>,
    spare: Vec<Completion>,
    /// The buffers of receives that wait for bytes, with where they start.
    receives: [Option<(Buffer, usize)>; 2],
    sent_bytes: [usize; 2],
}

impl World {
    fn new() -> Self {
        let config = ShardConfig {
            shard: 0,
            shard_count: 1,
            layout: JournalLayout { file_bytes: 64 << 20, file_count: 4 },
            durability: Durability::WriteThenFlush,
            durability_text: String::new(),
            is_volatile: false,
            waiting_text: String::new(),
            frame_bytes_max: 1 << 20,
            window_bytes: 1 << 20,
            heartbeat_ms: 5_000,
            fresh_directory_id: 7,
        };
        let shard = Shard::new(config, BTreeMap::new(), Pool::new(512 << 20).unwrap()).unwrap();
        let now = Now { monotonic_ns: 1_000_000_000, wall_ms: 1_700_000_000_000 };
        let (completions, spare) = (Vec::with_capacity(64), Vec::with_capacity(64));
        Self { shard, now, completions, spare, receives: [None, None], sent_bytes: [0; 2] }
    }

    /// Runs turns until nothing is left to complete.
    fn settle(&mut self) {
        loop {
            self.now.monotonic_ns += 1_000;
            std::mem::swap(&mut self.completions, &mut self.spare);
            for completion in self.spare.drain(..) {
                self.shard.on_completion(self.now, completion);
            }
            self.shard.on_tick(self.now);
            for op in self.shard.ops() {
                let completion = match op {
                    Op::Receive { socket, buffer, start, .. } => {
                        self.receives[socket.slot as usize] = Some((buffer, start));
                        continue;
                    }
                    Op::Send { socket, parts } => {
                        self.sent_bytes[socket.slot as usize] += parts.bytes();
                        Completion::Sent { socket, parts, result: Ok(()) }
                    }
                    Op::Close { .. } => panic!("the shard closed a connection"),
                    Op::PrepareFile { file, .. } => Completion::FilePrepared { file, result: Ok(()) },
                    Op::Allocate { file, bytes, .. } => Completion::Allocated { file, bytes, result: Ok(()) },
                    Op::Shrink { .. } => continue,
                    Op::Remove { file } => Completion::Removed { file, result: Ok(()) },
                    Op::SyncAll { token } => Completion::AllSynced { token, result: Ok(()) },
                    Op::Compact { .. } => unreachable!("no topic is compacted here"),
                    Op::Read { token, buffer, .. } => Completion::ReadDone { token, buffer, result: Ok(()) },
                    Op::Write { token, .. } => Completion::Written { token, result: Ok(()) },
                    Op::Flush { token, .. } => Completion::Flushed { token, result: Ok(()) },
                };
                self.completions.push(completion);
            }
            if self.completions.is_empty() {
                return;
            }
        }
    }

    fn receive(&mut self, socket: Socket, bytes: &[u8]) {
        let (mut buffer, start) = self.receives[socket.slot as usize].take().expect("a receive is armed");
        buffer[start..start + bytes.len()].copy_from_slice(bytes);
        let result = Ok(bytes.len());
        self.completions.push(Completion::Received { socket, buffer, start, result, more: false });
        self.settle();
    }

    fn connect(&mut self, socket: Socket) {
        self.completions.push(Completion::Accepted { socket });
        self.settle();
        let hello = request(Opcode::Hello, 0, |builder| {
            let args = wire::HelloRequestArgs { version_min: 1, version_max: 1, ..Default::default() };
            wire::HelloRequest::create(builder, &args)
        });
        self.receive(socket, &hello);
    }
}

fn request<T>(
    opcode: Opcode,
    subject: u64,
    build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> flatbuffers::WIPOffset<T>,
) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let root = build(&mut builder);
    let mut table = Vec::new();
    let length = envelope::finish_into(&mut builder, root, &mut table);
    let header = FrameHeader::new(opcode, CorrelationId(1), subject).with_lengths(length, 0);
    [header.as_bytes(), &table[..]].concat()
}

fn produce_frame(partition: Handle) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for _ in 0..4 {
        builder.push(&Record { value: &[7; 1024], ..Record::default() }).unwrap();
    }
    let mut batch = Vec::new();
    builder.finish_into(&mut batch);
    let header =
        FrameHeader::new(Opcode::Produce, CorrelationId(9), partition.0).with_lengths(0, batch.len());
    [header.as_bytes(), &batch[..]].concat()
}

#[test]
fn produce_commit_answer_and_delivery_allocate_nothing() {
    let mut world = World::new();
    world.settle();
    assert!(world.shard.is_ready());
    world.connect(PRODUCER);
    world.connect(CONSUMER);
    let create = request(Opcode::CreateTopic, 0, |builder| {
        let name = builder.create_string("orders");
        let args = wire::CreateTopicRequestArgs {
            name: Some(name),
            partition_count: 1,
            ack_class: wire::AckClass::Durable,
            settings: None,
        };
        wire::CreateTopicRequest::create(builder, &args)
    });
    world.receive(PRODUCER, &create);
    let subscribe = request(Opcode::Subscribe, 5, |builder| {
        let topic = builder.create_string("orders");
        let args = wire::SubscribeRequestArgs {
            topic: Some(topic),
            partition: 0,
            start_from: wire::StartFrom::Earliest,
            start_value: 0,
            credit_records: 1 << 40,
            credit_bytes: 1 << 40,
        };
        wire::SubscribeRequest::create(builder, &args)
    });
    world.receive(CONSUMER, &subscribe);

    let frame = produce_frame(Handle::new(TopicKey { slot: 0, generation: 1 }, 0));
    for _ in 0..ROUNDS_WARMING {
        world.receive(PRODUCER, &frame);
    }
    let sent_before = world.sent_bytes;
    let allocations_before = CountingAllocator::count();
    for _ in 0..ROUNDS_MEASURED {
        world.receive(PRODUCER, &frame);
    }
    let allocations = CountingAllocator::count() - allocations_before;
    let answered = world.sent_bytes[0] - sent_before[0];
    let delivered = world.sent_bytes[1] - sent_before[1];
    let batch_bytes = Frame::cut(&frame, 1 << 20).unwrap().unwrap().payload.len();
    assert_eq!(answered, ROUNDS_MEASURED * FRAME_HEADER_BYTES);
    assert_eq!(delivered, ROUNDS_MEASURED * (FRAME_HEADER_BYTES + batch_bytes));
    assert_eq!(allocations, 0);
}
