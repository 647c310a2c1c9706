//! Answers that are not on the produce path: `Hello` and topics from envelopes built at start, `Stats` on the spot.
//!
//! Every name is a topic, with the partitions that the options say; nothing is remembered.

use std::fs;
use std::time::Duration;

use flatbuffers::{FlatBufferBuilder, WIPOffset};
use protocol::envelope;
use protocol::frame::{FrameHeader, Opcode};
use protocol::ids::{Handle, TopicKey};
use protocol::limits::{PROTOCOL_VERSION, RECORD_BYTES_MAX};
use protocol::status::Status;
use protocol::wire::{
    HelloResponse, HelloResponseArgs, PartitionDescription, StatsResponse, StatsResponseArgs,
    TopicDescription, TopicDescriptionArgs,
};
use zerocopy::IntoBytes;

use crate::connection::Outbox;
use crate::{Durability, Options};

/// Bytes of produce frames that a client may have in flight: as the broker grants by default.
const WINDOW_BYTES: u32 = 4 << 20;
/// Requests that a client may have in flight.
const REQUESTS_IN_FLIGHT_MAX: u32 = 1_024;
/// What frame, batch and index take from the longest record of a frame.
const FRAME_OVERHEAD_BYTES: usize = 1024;

/// The envelopes that never change.
pub(crate) struct Answers {
    hello: Vec<u8>,
    topic: Vec<u8>,
    durability: Durability,
}

impl Answers {
    pub(crate) fn new(options: &Options) -> Self {
        Self { hello: hello(options), topic: topic(options.partitions), durability: options.durability }
    }

    /// Answers a request that is no produce. `spun` is the time spent spinning so far.
    pub(crate) fn answer(&self, request: &FrameHeader, spun: Duration, outbox: &mut Outbox) {
        match Opcode::from_code(request.opcode) {
            Some(Opcode::Heartbeat | Opcode::GoAway) => {}
            Some(Opcode::Hello) => put(outbox, request, Status::Ok, &self.hello),
            Some(Opcode::CreateTopic | Opcode::DescribeTopic) => {
                put(outbox, request, Status::Ok, &self.topic)
            }
            Some(Opcode::Stats) => put(outbox, request, Status::Ok, &stats(self.durability, spun)),
            _ => put(outbox, request, Status::UnknownOpcode, &[]),
        }
    }
}

fn put(outbox: &mut Outbox, request: &FrameHeader, status: Status, envelope: &[u8]) {
    // The number is the request's own, so that one which nobody knows is answered too.
    let header = FrameHeader {
        opcode: request.opcode,
        ..FrameHeader::answer(Opcode::Hello, status, request.correlation(), 0).with_lengths(envelope.len(), 0)
    };
    outbox.put(header.as_bytes());
    outbox.put(envelope);
}

fn hello(options: &Options) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let server_name = builder.create_string("floor");
    let durability = builder.create_string(&options.durability.to_string());
    let record_bytes_max = (options.receive_bytes - FRAME_OVERHEAD_BYTES).min(RECORD_BYTES_MAX);
    let arguments = HelloResponseArgs {
        server_name: Some(server_name),
        version: PROTOCOL_VERSION,
        shard_count: 1,
        frame_bytes_max: options.receive_bytes as u32,
        record_bytes_max: record_bytes_max as u32,
        window_bytes: WINDOW_BYTES,
        requests_in_flight_max: REQUESTS_IN_FLIGHT_MAX,
        // Granted for form: the floor never speaks first and never cuts a silent peer.
        heartbeat_ms: 60_000,
        durability: Some(durability),
        volatile_storage: options.durability == Durability::None,
        ..HelloResponseArgs::default()
    };
    let root = HelloResponse::create(&mut builder, &arguments);
    finish(builder, root)
}

fn topic(partition_count: u16) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let key = TopicKey { slot: 0, generation: 1 };
    let described = |partition| PartitionDescription::new(Handle::new(key, partition).0, 0, 0, 0, 0, 0);
    let partitions: Vec<_> = (0..partition_count).map(described).collect();
    let partitions = builder.create_vector(&partitions);
    let name = builder.create_string("floor");
    let arguments = TopicDescriptionArgs {
        name: Some(name),
        partitions: Some(partitions),
        ..TopicDescriptionArgs::default()
    };
    let root = TopicDescription::create(&mut builder, &arguments);
    finish(builder, root)
}

fn stats(durability: Durability, spun: Duration) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let durability = builder.create_string(&durability.to_string());
    let arguments = StatsResponseArgs {
        resident_bytes: resident_bytes(),
        cpu_ns: cpu_ns(),
        spin_ns: spun.as_nanos() as u64,
        durability: Some(durability),
        ..StatsResponseArgs::default()
    };
    let root = StatsResponse::create(&mut builder, &arguments);
    finish(builder, root)
}

fn finish<T>(mut builder: FlatBufferBuilder<'_>, root: WIPOffset<T>) -> Vec<u8> {
    let mut bytes = Vec::new();
    envelope::finish_into(&mut builder, root, &mut bytes);
    bytes
}

/// Memory of this process that is in RAM, or 0 where `/proc` does not tell.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.map_or(0, |kibibytes| kibibytes * 1024)
}

/// CPU time of this process, the ring's kernel workers included.
fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours, and the kernel is done with it when the call returns.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "every Linux has this clock");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_verify_and_the_longest_fits_an_answer() {
        let longest = topic(4096);
        assert!(longest.len() <= protocol::limits::ENVELOPE_BYTES_MAX);
        let description = envelope::read::<TopicDescription<'_>>(&longest).expect("topic");
        assert_eq!(description.partitions().len(), 4096);
        let bytes = stats(Durability::Flush, Duration::from_nanos(7));
        let stats = envelope::read::<StatsResponse<'_>>(&bytes).expect("stats");
        assert_eq!((stats.spin_ns(), stats.durability()), (7, Some("flush")));
        assert!(stats.resident_bytes() > 0);
        assert!(stats.cpu_ns() > 0);
    }
}
