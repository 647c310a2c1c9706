//! The reactor against the real kernel: sockets over loopback, direct I/O on a file, wake-ups, limits.
//!
//! Nothing here sleeps or measures: every wait ends with an event that the test has caused, or with a
//! deadline that it set. A failure of the kind "it never ends" shows as a test that hangs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;

use reactor::memory::{Buffer, PAGE, Pool, Slice};
use reactor::parts::SendParts;
use reactor::{
    Config, Errno, Event, ListenerId, Operation, Reactor, SocketId, Token, Wait, WriteSync, clock, connect,
    file,
};
use socket2::SockRef;

fn reactor(operations_max: u32, sockets_max: u32) -> Reactor {
    let config = Config { operations_max, sockets_max, ..Config::default() };
    Reactor::new(config).expect("this host can run a reactor")
}

fn pool() -> Pool {
    Pool::new(1).expect("32 MiB of address space")
}

fn buffer(pool: &Pool) -> Buffer {
    pool.buffer(PAGE).expect("the pool has room")
}

fn slice_of(pool: &Pool, bytes: &[u8]) -> Slice {
    let mut append = pool.buffer(bytes.len()).expect("the pool has room").into_append(0);
    append.append(bytes);
    append.freeze()
}

/// Waits for one event, as long as it takes.
fn next(reactor: &mut Reactor) -> Event {
    loop {
        if let Some(event) = reactor.next_event() {
            return event;
        }
        reactor.submit_and_wait(Wait::default());
    }
}

fn listen(reactor: &mut Reactor) -> (ListenerId, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    (reactor.listen(listener), address)
}

/// One connection: our end in the reactor, the other end blocking.
fn pair(reactor: &mut Reactor) -> (SocketId, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    let ours = connect(address).expect("the listener is there");
    let (theirs, _) = listener.accept().expect("a connection is waiting");
    (reactor.add_socket(ours).expect("a free slot"), theirs)
}

fn receive(reactor: &mut Reactor, pool: &Pool, socket: SocketId, token: u64) {
    let operation = Operation::Receive { socket, buffer: buffer(pool), start: 0, poll_first: true };
    reactor.queue(Token(token), operation).expect("room for a receive");
}

fn accepted(event: Event) -> SocketId {
    match event {
        Event::Accepted { socket, .. } => socket,
        other => panic!("{other:?} instead of a connection"),
    }
}

fn received(event: Event) -> (Token, Buffer, usize, Result<usize, Errno>) {
    match event {
        Event::Received { token, buffer, start, result, .. } => (token, buffer, start, result),
        other => panic!("{other:?} instead of received bytes"),
    }
}

fn received_count(event: Event) -> Result<usize, Errno> {
    received(event).3
}

#[test]
fn accepted_connection_gets_its_bytes_back_in_one_vectored_send() {
    let (mut reactor, pool) = (reactor(8, 8), pool());
    let (listener, address) = listen(&mut reactor);
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"hello").unwrap();
    let socket = match next(&mut reactor) {
        Event::Accepted { listener: from, socket } => {
            assert_eq!(from, listener);
            socket
        }
        other => panic!("{other:?}"),
    };
    let mut empty = buffer(&pool);
    empty[..7].copy_from_slice(b"so far ");
    let operation = Operation::Receive { socket, buffer: empty, start: 7, poll_first: true };
    reactor.queue(Token(1), operation).unwrap();
    let (token, full, start, result) = received(next(&mut reactor));
    assert_eq!((token, start, result), (Token(1), 7, Ok(5)));
    let received = full.freeze(0..12);
    assert_eq!(&received[..], b"so far hello");

    let mut parts = SendParts::new();
    parts.push(received.slice(7..12)).unwrap();
    parts.push(slice_of(&pool, b" and good")).unwrap();
    parts.push(slice_of(&pool, b"bye")).unwrap();
    reactor.queue(Token(2), Operation::Send { socket, parts }).unwrap();
    match next(&mut reactor) {
        Event::Sent { token, parts, result } => {
            assert_eq!((token, result), (Token(2), Ok(17)));
            assert_eq!(parts.len(), 3);
        }
        other => panic!("{other:?}"),
    }
    let mut answer = [0; 17];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello and goodbye");
    drop(client);
    receive(&mut reactor, &pool, socket, 3);
    assert_eq!(received_count(next(&mut reactor)), Ok(0), "the peer has closed");
}

#[test]
fn long_vectored_send_to_a_slow_reader_arrives_whole() {
    const PART: usize = 64 << 10;
    let (mut reactor, pool) = (reactor(8, 8), pool());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    SockRef::from(&ours).set_send_buffer_size(PART).unwrap();
    SockRef::from(&client).set_recv_buffer_size(PART).unwrap();
    let socket = reactor.add_socket(OwnedFd::from(ours)).unwrap();

    let pattern: Vec<u8> = (0..64 * PART).map(|index| (index / 251) as u8 ^ index as u8).collect();
    let mut parts = SendParts::new();
    for part in pattern.chunks(PART) {
        parts.push(slice_of(&pool, part)).unwrap();
    }
    reactor.queue(Token(1), Operation::Send { socket, parts }).unwrap();
    reactor.submit_and_wait(Wait { no_sleep: true, ..Wait::default() });
    assert!(reactor.next_event().is_none(), "nobody reads: 4 MiB do not fit into the sockets' buffers");

    let reader = thread::spawn(move || {
        let mut bytes = vec![0; 64 * PART];
        for chunk in bytes.chunks_mut(1_000) {
            client.read_exact(chunk).unwrap();
        }
        bytes
    });
    match next(&mut reactor) {
        Event::Sent { parts, result, .. } => {
            assert_eq!(result, Ok(64 * PART));
            assert_eq!(parts.bytes(), 64 * PART);
        }
        other => panic!("{other:?}"),
    }
    assert!(reader.join().unwrap() == pattern);
    assert_eq!(pool.used_bytes(), 0, "the sent parts were dropped with the event");
}

#[test]
fn direct_write_is_flushed_and_read_back() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (mut reactor, pool) = (reactor(8, 1), pool());
    let file = file::open_direct(&directory.path().join("journal"), true).unwrap();
    let file = reactor.add_file(file);
    let data = slice_of(&pool, &[7; 2 * PAGE]);
    for (token, position, sync) in [(1, 0, WriteSync::None), (2, 2 * PAGE as u64, WriteSync::Data)] {
        let operation = Operation::Write { file, position, data: data.clone(), sync };
        reactor.queue(Token(token), operation).unwrap();
        match next(&mut reactor) {
            Event::Written { token: of, data, result } => {
                assert_eq!((of, data.len(), result), (Token(token), 2 * PAGE, Ok(2 * PAGE)));
            }
            other => panic!("{other:?}"),
        }
    }
    reactor.queue(Token(3), Operation::Flush { file }).unwrap();
    assert!(matches!(next(&mut reactor), Event::Flushed { token: Token(3), result: Ok(()) }));

    let into = pool.buffer(4 * PAGE).unwrap();
    let operation = Operation::Read { file, position: PAGE as u64, buffer: into, bytes: 4 * PAGE };
    reactor.queue(Token(4), operation).unwrap();
    match next(&mut reactor) {
        Event::ReadDone { token, buffer, result } => {
            assert_eq!((token, result), (Token(4), Ok(3 * PAGE)), "the file ends there");
            assert!(buffer[..3 * PAGE].iter().all(|byte| *byte == 7));
        }
        other => panic!("{other:?}"),
    }
    reactor.remove_file(file);
}

#[test]
#[should_panic(expected = "on a file that was removed")]
fn operation_on_a_removed_file_panics() {
    let mut reactor = reactor(8, 1);
    let null = std::fs::File::open("/dev/null").unwrap();
    let file = reactor.add_file(null.into());
    reactor.remove_file(file);
    let _ = reactor.queue(Token(1), Operation::Flush { file });
}

#[test]
fn wakes_from_another_thread_end_waits() {
    const ROUNDS: usize = 2_000;
    let mut here = reactor(8, 1);
    let wake_here = here.waker();
    let (send_waker, receive_waker) = std::sync::mpsc::channel();
    let other = thread::spawn(move || {
        let mut there = reactor(8, 1);
        send_waker.send(there.waker()).unwrap();
        for _ in 0..ROUNDS {
            assert!(matches!(next(&mut there), Event::Woken));
            wake_here.wake();
        }
    });
    let wake_there = receive_waker.recv().unwrap();
    for _ in 0..ROUNDS {
        wake_there.wake();
        assert!(matches!(next(&mut here), Event::Woken));
    }
    other.join().unwrap();
}

#[test]
fn wake_before_a_wait_keeps_it_from_sleeping() {
    let mut reactor = reactor(8, 1);
    reactor.waker().wake();
    reactor.waker().wake();
    reactor.submit_and_wait(Wait::default());
    assert_eq!(reactor.counters().sleeps, 0);
    assert!(matches!(reactor.next_event(), Some(Event::Woken)));
    assert!(reactor.next_event().is_none(), "two wakes are one event");
}

#[test]
fn deadline_ends_a_wait() {
    let mut reactor = reactor(8, 1);
    // Again if the machine was so slow that the deadline had passed before the wait.
    while reactor.counters().sleeps == 0 {
        let deadline_ns = clock::monotonic_ns() + 2_000_000;
        let wait = Wait { deadline_ns: Some(deadline_ns), ..Wait::default() };
        while reactor.submit_and_wait(wait).monotonic_ns < deadline_ns {}
        assert!(reactor.next_event().is_none());
    }
}

#[test]
fn deadline_ends_a_spin_without_a_sleep() {
    let mut reactor = reactor(8, 1);
    while reactor.counters().spin_ns == 0 {
        let deadline_ns = clock::monotonic_ns() + 1_000_000;
        let wait = Wait { deadline_ns: Some(deadline_ns), spin_until_ns: u64::MAX, no_sleep: false };
        while reactor.submit_and_wait(wait).monotonic_ns < deadline_ns {}
    }
    assert_eq!(reactor.counters().sleeps, 0);
}

#[test]
fn completion_ends_a_spin() {
    let (mut reactor, pool) = (reactor(8, 8), pool());
    let (socket, mut peer) = pair(&mut reactor);
    receive(&mut reactor, &pool, socket, 1);
    let writer = thread::spawn(move || {
        peer.write_all(b"x").unwrap();
        peer
    });
    let event = loop {
        reactor.submit_and_wait(Wait { spin_until_ns: u64::MAX, ..Wait::default() });
        if let Some(event) = reactor.next_event() {
            break event;
        }
    };
    assert_eq!(received_count(event), Ok(1));
    assert_eq!(reactor.counters().sleeps, 0);
    drop(writer.join().unwrap());
}

#[test]
fn wake_ends_a_spin() {
    let mut reactor = reactor(8, 1);
    let waker = reactor.waker();
    let other = thread::spawn(move || waker.wake());
    let event = loop {
        reactor.submit_and_wait(Wait { spin_until_ns: u64::MAX, ..Wait::default() });
        if let Some(event) = reactor.next_event() {
            break event;
        }
    };
    assert!(matches!(event, Event::Woken));
    assert_eq!(reactor.counters().sleeps, 0);
    other.join().unwrap();
}

#[test]
fn operation_beyond_the_limit_is_handed_back() {
    let (mut reactor, pool) = (reactor(2, 8), pool());
    let (socket, mut peer) = pair(&mut reactor);
    receive(&mut reactor, &pool, socket, 1);
    receive(&mut reactor, &pool, socket, 2);
    let operation = Operation::Receive { socket, buffer: buffer(&pool), start: 5, poll_first: false };
    match reactor.queue(Token(3), operation) {
        Err(Operation::Receive { start, .. }) => assert_eq!(start, 5),
        other => panic!("{other:?}"),
    }
    assert_eq!(reactor.operations_in_flight(), 2);
    peer.write_all(b"x").unwrap();
    assert_eq!(received_count(next(&mut reactor)), Ok(1));
    receive(&mut reactor, &pool, socket, 3);
}

#[test]
fn more_operations_than_the_submission_queue_holds_are_all_done() {
    const OPERATIONS: u64 = 3_000;
    let (mut reactor, pool) = (reactor(OPERATIONS as u32, 8), pool());
    let (socket, peer) = pair(&mut reactor);
    for token in 0..OPERATIONS {
        receive(&mut reactor, &pool, socket, token);
    }
    drop(peer);
    let mut seen = vec![false; OPERATIONS as usize];
    for _ in 0..OPERATIONS {
        let (token, _, _, result) = received(next(&mut reactor));
        assert_eq!(result, Ok(0));
        assert!(!std::mem::replace(&mut seen[token.0 as usize], true), "{token:?} twice");
    }
    assert_eq!(reactor.operations_in_flight(), 0);
    assert!(reactor.counters().sqes >= OPERATIONS);
}

#[test]
fn close_ends_operations_in_flight_and_frees_the_slot() {
    let (mut reactor, pool) = (reactor(8, 1), pool());
    let (socket, mut peer) = pair(&mut reactor);
    receive(&mut reactor, &pool, socket, 1);
    reactor.submit_and_wait(Wait { no_sleep: true, ..Wait::default() });
    reactor.close(socket);
    assert_eq!(reactor.sockets_open(), 1, "an operation still uses it");
    assert_eq!(received_count(next(&mut reactor)), Ok(0));
    assert_eq!(reactor.sockets_open(), 0);
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the peer sees the end");
    let (next_socket, _peer) = pair(&mut reactor);
    assert_eq!(next_socket.slot, socket.slot);
    assert_ne!(next_socket.generation, socket.generation);
}

#[test]
fn close_before_submission_ends_the_operation_too() {
    let (mut reactor, pool) = (reactor(8, 1), pool());
    let (socket, _peer) = pair(&mut reactor);
    receive(&mut reactor, &pool, socket, 1);
    let mut parts = SendParts::new();
    parts.push(slice_of(&pool, b"late")).unwrap();
    reactor.queue(Token(2), Operation::Send { socket, parts }).unwrap();
    reactor.close(socket);
    for _ in 0..2 {
        match next(&mut reactor) {
            Event::Received { token, result, .. } => assert_eq!((token, result), (Token(1), Ok(0))),
            Event::Sent { token, result, .. } => {
                assert_eq!((token, result), (Token(2), Err(Errno(libc::EPIPE))));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((reactor.sockets_open(), reactor.operations_in_flight()), (0, 0));
}

#[test]
fn stale_socket_is_answered_with_an_error_and_closed_in_vain() {
    let (mut reactor, pool) = (reactor(8, 1), pool());
    let (old, _old_peer) = pair(&mut reactor);
    reactor.close(old);
    let (new, mut peer) = pair(&mut reactor);
    reactor.close(old);
    receive(&mut reactor, &pool, old, 1);
    assert_eq!(received_count(next(&mut reactor)), Err(Errno(libc::EBADF)));
    assert!(reactor.take_socket(old).is_none());
    peer.write_all(b"still there").unwrap();
    receive(&mut reactor, &pool, new, 2);
    assert_eq!(received_count(next(&mut reactor)), Ok(11));
}

#[test]
fn socket_moves_to_another_reactor() {
    let pool = pool();
    let (mut first, mut second) = (reactor(8, 1), reactor(8, 1));
    let (socket, mut peer) = pair(&mut first);
    let moved = first.take_socket(socket).unwrap();
    let socket = second.add_socket(moved).unwrap();
    peer.write_all(b"moved").unwrap();
    receive(&mut second, &pool, socket, 1);
    assert_eq!(received_count(next(&mut second)), Ok(5));
    assert_eq!(first.sockets_open(), 0);
}

#[test]
fn connection_beyond_the_limit_is_closed_and_counted() {
    let mut reactor = reactor(8, 1);
    let (_, address) = listen(&mut reactor);
    let _first = TcpStream::connect(address).unwrap();
    accepted(next(&mut reactor));
    let mut second = TcpStream::connect(address).unwrap();
    loop {
        assert!(reactor.next_event().is_none());
        if reactor.counters().accepts_refused > 0 {
            break;
        }
        reactor.submit_and_wait(Wait::default());
    }
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    assert_eq!(reactor.sockets_open(), 1);
}

#[test]
fn many_connections_are_accepted_by_one_listener() {
    let mut reactor = reactor(8, 100);
    let (_, address) = listen(&mut reactor);
    let clients: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut sockets: Vec<SocketId> = clients.iter().map(|_| accepted(next(&mut reactor))).collect();
    sockets.sort_unstable_by_key(|socket| socket.slot);
    sockets.dedup();
    assert_eq!(sockets.len(), 100);
}

#[test]
fn stopped_listener_refuses_connections() {
    let mut reactor = reactor(8, 8);
    let (listener, address) = listen(&mut reactor);
    let _client = TcpStream::connect(address).unwrap();
    let socket = accepted(next(&mut reactor));
    reactor.stop_listening(listener);
    reactor.stop_listening(listener);
    while TcpStream::connect(address).is_ok() {
        reactor.submit_and_wait(Wait { no_sleep: true, ..Wait::default() });
        assert!(reactor.next_event().is_none());
    }
    assert_eq!(reactor.sockets_open(), 1, "{socket:?} stays");
}

#[test]
fn dropped_reactor_gives_back_the_memory_of_what_was_in_flight() {
    let pool = pool();
    let mut reactor = reactor(8, 8);
    let (socket, peer) = pair(&mut reactor);
    let (_, address) = listen(&mut reactor);
    receive(&mut reactor, &pool, socket, 1);
    let _ = TcpStream::connect(address).unwrap();
    reactor.submit_and_wait(Wait { no_sleep: true, ..Wait::default() });
    receive(&mut reactor, &pool, socket, 2);
    assert_eq!(pool.used_bytes(), 2 * PAGE);
    drop(reactor);
    assert_eq!(pool.used_bytes(), 0);
    drop(peer);
}

#[test]
fn held_lock_is_free_some_time_after_the_reactor_only() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("lock");
    let mut reactor = reactor(8, 1);
    let lock = file::open_direct(&path, true).unwrap();
    file::lock_exclusive(&lock).unwrap();
    reactor.hold(lock);
    let other = file::open_direct(&path, false).unwrap();
    assert!(matches!(file::lock_exclusive(&other), Err(file::LockError::Held)));
    drop(reactor);
    // The kernel takes rings apart in the background.
    while file::lock_exclusive(&other).is_err() {
        thread::yield_now();
    }
}

#[test]
fn ring_works_beside_workers_on_all_cpus() {
    let config = Config {
        operations_max: 8,
        sockets_max: 1,
        worker_cpus: reactor::affinity::allowed_cpus(),
        ..Config::default()
    };
    let reactor = Reactor::new(config).unwrap();
    assert!(!reactor.mode().is_empty());
}
