//! What one produce frame costs in the shard, without network and disk: cut, check, journal, tail, commit, answer.
//!
//! The outside completes every operation at once, so this is the shard's own work and nothing else.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::collections::BTreeMap;

use benches::batch_of;
use broker::io::{Completion, Now, Op, Socket};
use broker::journal::{Durability, JournalLayout};
use broker::shard::{Shard, ShardConfig};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flatbuffers::{FlatBufferBuilder, WIPOffset};
use protocol::frame::{FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle, TopicKey};
use protocol::{envelope, wire};
use reactor::memory::{Buffer, Pool};
use zerocopy::IntoBytes;

const SOCKET: Socket = Socket { slot: 0, generation: 0 };
/// Frames received at once: what a busy connection brings in one turn.
const FRAMES_PER_TURN: usize = 32;
/// Turns on one shard before its journal would be full.
const TURNS_PER_SHARD: usize = 256;

struct World {
    shard: Shard,
    now: Now,
    completions: Vec<Completion>,
    receive: Option<(Buffer, usize)>,
}

impl World {
    fn new() -> Self {
        let config = ShardConfig {
            shard: 0,
            shard_count: 1,
            layout: JournalLayout { file_bytes: 64 << 20, file_count: 64 },
            durability: Durability::WriteThenFlush,
            durability_text: String::new(),
            is_volatile: false,
            waiting_text: String::new(),
            frame_bytes_max: 1 << 20,
            window_bytes: 8 << 20,
            heartbeat_ms: 5_000,
            fresh_directory_id: 7,
        };
        let pool = Pool::new(2 << 30).expect("the sample's memory can be mapped");
        let shard = Shard::new(config, BTreeMap::new(), pool).expect("no files are a fresh directory");
        let now = Now { monotonic_ns: 1_000_000_000, wall_ms: 1_700_000_000_000 };
        let mut world = Self { shard, now, completions: Vec::new(), receive: None };
        world.settle();
        world.completions.push(Completion::Accepted { socket: SOCKET });
        world.settle();
        world.receive(&request(Opcode::Hello, |builder| {
            let args = wire::HelloRequestArgs { version_min: 1, version_max: 1, ..Default::default() };
            wire::HelloRequest::create(builder, &args)
        }));
        world.receive(&request(Opcode::CreateTopic, |builder| {
            let name = builder.create_string("bench");
            let args = wire::CreateTopicRequestArgs { name: Some(name), ..Default::default() };
            wire::CreateTopicRequest::create(builder, &args)
        }));
        world
    }

    fn settle(&mut self) {
        loop {
            self.now.monotonic_ns += 1_000;
            for completion in std::mem::take(&mut self.completions) {
                self.shard.on_completion(self.now, completion);
            }
            self.shard.on_tick(self.now);
            for op in self.shard.ops() {
                self.completions.push(match op {
                    Op::Receive { buffer, start, .. } => {
                        self.receive = Some((buffer, start));
                        continue;
                    }
                    Op::Close { .. } => continue,
                    Op::Send { socket, parts } => Completion::Sent { socket, parts, result: Ok(()) },
                    Op::PrepareFile { file, .. } => Completion::FilePrepared { file, result: Ok(()) },
                    Op::Allocate { file, bytes, .. } => Completion::Allocated { file, bytes, result: Ok(()) },
                    Op::Shrink { .. } => continue,
                    Op::Remove { file } => Completion::Removed { file, result: Ok(()) },
                    Op::SyncAll { token } => Completion::AllSynced { token, result: Ok(()) },
                    Op::Compact { .. } => unreachable!("no topic is compacted here"),
                    Op::Read { token, buffer, .. } => Completion::ReadDone { token, buffer, result: Ok(()) },
                    Op::Write { token, .. } => Completion::Written { token, result: Ok(()) },
                    Op::Flush { token, .. } => Completion::Flushed { token, result: Ok(()) },
                });
            }
            if self.completions.is_empty() {
                return;
            }
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let (mut buffer, start) = self.receive.take().expect("a receive is armed");
        buffer[start..start + bytes.len()].copy_from_slice(bytes);
        let result = Ok(bytes.len());
        self.completions.push(Completion::Received { socket: SOCKET, buffer, start, result, more: false });
        self.settle();
    }
}

fn request<T>(
    opcode: Opcode,
    build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let root = build(&mut builder);
    let mut table = Vec::new();
    let length = envelope::finish_into(&mut builder, root, &mut table);
    [FrameHeader::new(opcode, CorrelationId(1), 0).with_lengths(length, 0).as_bytes(), &table[..]].concat()
}

fn produce(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("produce_turn");
    group.sample_size(10);
    for (records, bytes) in [(1, 128), (1, 1024), (2, 1024)] {
        let handle = Handle::new(TopicKey { slot: 0, generation: 1 }, 0);
        let batch = batch_of(records, bytes);
        let header =
            FrameHeader::new(Opcode::Produce, CorrelationId(2), handle.0).with_lengths(0, batch.len());
        let frames = [header.as_bytes(), &batch[..]].concat().repeat(FRAMES_PER_TURN);
        group.throughput(Throughput::Elements((FRAMES_PER_TURN * TURNS_PER_SHARD * records) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{records}x{bytes}")), |bencher| {
            bencher.iter_batched_ref(
                World::new,
                |world| (0..TURNS_PER_SHARD).for_each(|_| world.receive(&frames)),
                BatchSize::PerIteration,
            );
        });
    }
}

criterion_group!(benches, produce);
criterion_main!(benches);
