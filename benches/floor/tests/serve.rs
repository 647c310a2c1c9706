//! The floor over real sockets and a real disk: answers, order, limits, lying peers, and what it allocates.
//!
//! Each test runs a floor of its own on a thread that ends with the process.

#[path = "serve/counting_allocator.rs"]
mod counting_allocator;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use counting_allocator::{ALLOCATIONS, COUNTED, Counting};
use floor::disk_only::{self, DiskOptions};
use floor::{Durability, FloorError, Options};
use protocol::batch::{BatchBuilder, Record};
use protocol::envelope;
use protocol::frame::{FLAG_ANSWER, FRAME_HEADER_BYTES, FrameHeader, Opcode};
use protocol::ids::CorrelationId;
use protocol::status::Status;
use protocol::wire::{HelloResponse, StatsResponse, TopicDescription};
use zerocopy::{FromBytes, IntoBytes};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A peer that hears nothing for so long fails its test.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[test]
fn answers_come_in_order_with_running_offsets_however_durability_is_made() {
    for (durability, waiting) in
        [("flush", "adaptive"), ("flush", "park"), ("sync", "adaptive"), ("none", "park")]
    {
        let name = format!("order-{durability}-{waiting}");
        let arguments = ["--durability", durability, "--waiting", waiting];
        let mut peer = Peer::connect(start(&name, &arguments, || {}));
        for correlation_id in 0..500 {
            peer.send(&produce_frame(correlation_id, &[100, 200, 300]));
        }
        for correlation_id in 0..500 {
            assert_eq!(peer.receive_ack(), (correlation_id, 3 * correlation_id), "{durability}, {waiting}");
        }
    }
}

#[test]
fn the_longest_frames_go_round_the_file() {
    let mut peer = Peer::connect(start("longest", &[], || {}));
    let overhead_bytes = produce_frame(0, &[8]).len() - 8;
    for correlation_id in 0..40 {
        let frame = produce_frame(correlation_id, &[(1 << 20) - overhead_bytes]);
        assert_eq!(frame.len(), 1 << 20);
        peer.send(&frame);
    }
    for correlation_id in 0..40 {
        assert_eq!(peer.receive_ack(), (correlation_id, correlation_id));
    }
}

#[test]
fn a_full_pool_stops_receiving_and_loses_nothing() {
    // Frames of up to 16 MiB leave room for three blocks.
    let arguments = ["--receive-bytes", "16777216", "--blocks-in-flight", "1", "--file-bytes", "67108864"];
    let address = start("full-pool", &arguments, || {});
    let peers: Vec<_> =
        (0..2).map(|_| thread::spawn(move || send_and_receive_large_frames(address))).collect();
    for peer in peers {
        peer.join().expect("peer");
    }
}

fn send_and_receive_large_frames(address: SocketAddr) {
    let mut peer = Peer::connect(address);
    for correlation_id in 0..6 {
        peer.send(&produce_frame(correlation_id, &[6 << 20, 6 << 20]));
    }
    for correlation_id in 0..6 {
        assert_eq!(peer.receive_ack().0, correlation_id);
    }
}

#[test]
fn requests_that_are_no_produce_are_answered_too() {
    let mut peer = Peer::connect(start("requests", &["--partitions", "5"], || {}));
    let (header, bytes) = peer.request(Opcode::Hello as u8);
    let hello = envelope::read::<HelloResponse<'_>>(&bytes).expect("hello");
    assert_eq!(header.status.get(), Status::Ok as u16);
    assert_eq!((hello.server_name(), hello.frame_bytes_max()), ("floor", 1 << 20));

    let (_, bytes) = peer.request(Opcode::DescribeTopic as u8);
    let topic = envelope::read::<TopicDescription<'_>>(&bytes).expect("topic");
    assert_eq!(topic.partitions().len(), 5);

    let (_, bytes) = peer.request(Opcode::Stats as u8);
    let stats = envelope::read::<StatsResponse<'_>>(&bytes).expect("stats");
    assert!(stats.resident_bytes() > 0);
    assert_eq!(stats.durability(), Some("flush"));

    peer.send(FrameHeader::new(Opcode::Heartbeat, CorrelationId(0), 0).as_bytes());
    for code in [Opcode::Fetch as u8, 99] {
        let (header, bytes) = peer.request(code);
        assert_eq!((header.opcode, header.status.get()), (code, Status::UnknownOpcode as u16));
        assert!(bytes.is_empty());
    }
}

#[test]
fn a_lying_frame_ends_its_connection_and_no_other() {
    let address = start("lying", &[], || {});
    let mut honest = Peer::connect(address);
    let frame = produce_frame(1, &[100]);
    let lie = |at: usize, byte: u8| {
        let mut lying = frame.clone();
        lying[at] = byte;
        lying
    };
    let without_batch = FrameHeader::new(Opcode::Produce, CorrelationId(1), 0);
    let lies = [
        ("length is not a multiple of 8", lie(0, 9)),
        ("longer than was granted", lie(3, 1)),
        ("another version", lie(4, 9)),
        ("envelope longer than the frame", lie(14, 1)),
        ("payload is no batch", lie(FRAME_HEADER_BYTES, b'X')),
        ("batch longer than the payload", lie(FRAME_HEADER_BYTES + 10, 1)),
        ("no batch at all", without_batch.as_bytes().to_vec()),
    ];
    for (correlation_id, (what, frame)) in (0..).zip(&lies) {
        let mut liar = Peer::connect(address);
        liar.send(frame);
        let ended = liar.stream.read(&mut [0; 1]);
        let is_closed = match &ended {
            Ok(bytes) => *bytes == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        };
        assert!(is_closed, "{what}: {ended:?}");
        honest.send(&produce_frame(correlation_id, &[100]));
        assert_eq!(honest.receive_ack().0, correlation_id);
    }
}

#[test]
fn connections_come_and_go_without_using_up_the_slots() {
    let address = start("slots", &[], || {});
    for _ in 0..300 {
        let mut peer = Peer::connect(address);
        peer.send(&produce_frame(1, &[10]));
        assert_eq!(peer.receive_ack().0, 1);
    }
}

#[test]
fn the_warm_produce_path_allocates_nothing() {
    let address = start("allocations", &[], || COUNTED.set(true));
    let mut peer = Peer::connect(address);
    let mut produce = |frame_count: u64| {
        for correlation_id in 0..frame_count {
            peer.send(&produce_frame(correlation_id, &[1_000]));
        }
        for correlation_id in 0..frame_count {
            assert_eq!(peer.receive_ack().0, correlation_id);
        }
    };
    produce(1_000);
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    assert!(before > 0, "the start was counted");
    produce(5_000);
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst), before);
}

#[test]
fn the_disk_alone_is_measured_and_its_file_is_removed() {
    for (durability, depth) in [(Durability::Flush, 1), (Durability::Sync, 4)] {
        let data_dir = data_dir(&format!("disk-{durability}"));
        let report = disk_only::measure(&DiskOptions {
            bytes: 4096,
            seconds: 1,
            durability,
            depth,
            core: None,
            data_dir: Some(data_dir.clone()),
            file_bytes: 1 << 20,
        });
        let report = report.expect("disk");
        assert!(report.operations > 0);
        assert!(report.p50_us > 0.0 && report.p50_us <= report.p99_us && report.p99_us <= report.p999_us);
        assert_eq!(fs::read_dir(&data_dir).expect("data directory").count(), 0);
    }
}

#[test]
fn options_out_of_bounds_are_refused() {
    let refused = [
        ["--receive-bytes", "5000"],
        ["--blocks-in-flight", "0"],
        ["--file-bytes", "4096"],
        ["--partitions", "0"],
    ];
    for arguments in refused {
        let options = options("bounds", &arguments);
        let error = floor::run(&options, |_| {}).expect_err("refused");
        assert!(matches!(error, FloorError::Option(rule) if rule.contains(arguments[0])), "{error}");
    }
    let options = options("bounds", &["--core", "100000"]);
    assert!(matches!(floor::run(&options, |_| {}), Err(FloorError::Core(100_000))));
}

/// Starts a floor that runs `prepare` on its thread first, and gives its address.
fn start(name: &str, arguments: &[&str], prepare: fn()) -> SocketAddr {
    let options = options(name, arguments);
    let data_file = options.data_file();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        prepare();
        let ended = floor::run(&options, |address| sender.send(address).expect("test waits"));
        eprintln!("the floor ended: {ended:?}");
    });
    let address = receiver.recv().expect("floor is ready");
    if let Some(path) = data_file {
        // The floor keeps it open; so nothing is left when the process ends.
        fs::remove_file(path).expect("data file");
    }
    address
}

fn options(name: &str, arguments: &[&str]) -> Options {
    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        options: Options,
    }
    let data_dir = data_dir(name);
    let own = ["floor", "--data-dir", data_dir.to_str().expect("UTF-8"), "--file-bytes", "16777216"];
    // What comes later on a command line wins only where it may be given twice, so ours gives way.
    let own = if arguments.contains(&"--file-bytes") { &own[..3] } else { &own[..] };
    CommandLine::parse_from(own.iter().chain(arguments)).options
}

fn data_dir(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("floor-{name}"))
}

/// A frame with one batch; its records have values of these lengths.
fn produce_frame(correlation_id: u64, value_bytes: &[usize]) -> Vec<u8> {
    let mut builder = BatchBuilder::new();
    for bytes in value_bytes {
        builder.push(&Record { value: &vec![7; *bytes], ..Record::default() }).expect("record");
    }
    let mut batch = Vec::new();
    builder.finish_into(&mut batch);
    let header =
        FrameHeader::new(Opcode::Produce, CorrelationId(correlation_id), 0).with_lengths(0, batch.len());
    [header.as_bytes(), batch.as_slice()].concat()
}

/// The other end of a connection.
struct Peer {
    stream: TcpStream,
}

impl Peer {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(SILENCE_MAX)).expect("time-out");
        Self { stream }
    }

    fn send(&mut self, frame: &[u8]) {
        self.stream.write_all(frame).expect("send");
    }

    /// Sends a request without envelope; gives the header and the envelope of its answer.
    fn request(&mut self, code: u8) -> (FrameHeader, Vec<u8>) {
        let header = FrameHeader { opcode: code, ..FrameHeader::new(Opcode::Hello, CorrelationId(42), 0) };
        self.send(header.as_bytes());
        let (answer, envelope) = self.receive();
        assert_eq!((answer.opcode, answer.correlation_id.get()), (code, 42));
        (answer, envelope)
    }

    fn receive(&mut self) -> (FrameHeader, Vec<u8>) {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        self.stream.read_exact(&mut bytes).expect("answer");
        let header = FrameHeader::read_from_bytes(&bytes).expect("length");
        assert!(header.has_flag(FLAG_ANSWER));
        let mut envelope = vec![0; header.frame_bytes() - FRAME_HEADER_BYTES];
        self.stream.read_exact(&mut envelope).expect("envelope");
        (header, envelope)
    }

    /// Receives the answer to a produce; gives its correlation id and offset.
    fn receive_ack(&mut self) -> (u64, u64) {
        let (header, _) = self.receive();
        assert_eq!((header.opcode, header.status.get()), (Opcode::Produce as u8, Status::Ok as u16));
        (header.correlation_id.get(), header.subject.get())
    }
}
