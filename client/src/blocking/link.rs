//! A TCP stream and the connection core behind it.
//!
//! The stream never blocks: bytes move both ways until neither side takes or has more, then `poll(2)` waits for
//! either. So a broker that waits for its answers to be read never waits for a client that waits to be read.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use protocol::ids::CorrelationId;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::Options;
use super::error::ClientError;
use crate::connection::{Connection, ConnectionOptions, Event, Grants};
use crate::limits::READ_BYTES_MIN;

/// The time that the pure cores are given: nanoseconds since the client was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    started: Instant,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { started: Instant::now() }
    }

    pub(super) fn now_ns(self) -> u64 {
        nanoseconds(self.started.elapsed())
    }

    pub(super) fn after(self, wait: Duration) -> u64 {
        self.now_ns().saturating_add(nanoseconds(wait))
    }
}

/// Where the broker is, and how to greet it.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    /// At least one.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) options: Options,
    pub(super) clock: Clock,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) connection: Connection,
    stream: TcpStream,
    clock: Clock,
}

impl Link {
    /// Connects to the first address that answers, and waits for the grants.
    pub(super) fn dial(dialer: &Dialer) -> Result<Self, ClientError> {
        let until_ns = dialer.clock.after(dialer.options.connect_timeout);
        let mut stream = Err(ClientError::TimedOut);
        for address in &dialer.addresses {
            stream = connect(*address, dialer.options.connect_timeout);
            if stream.is_ok() {
                break;
            }
        }
        let options = ConnectionOptions {
            client_name: dialer.options.client_name.clone(),
            shard: dialer.options.shard,
        };
        let connection = Connection::new(dialer.clock.now_ns(), &options);
        let mut link = Self { connection, stream: stream?, clock: dialer.clock };
        link.await_grants(until_ns)?;
        Ok(link)
    }

    /// What the broker granted.
    pub(super) fn grants(&self) -> &Grants {
        self.connection.grants().expect("a link is made only when Hello was answered")
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    /// Moves bytes both ways, and waits for some when nothing has arrived, until something has or it is `until_ns`.
    /// After an error there may still be events to take.
    pub(super) fn exchange(&mut self, until_ns: u64) -> Result<(), ClientError> {
        if !self.move_bytes()? && self.clock.now_ns() < until_ns {
            self.wait(until_ns)?;
            self.move_bytes()?;
        }
        self.connection.on_tick(self.clock.now_ns())?;
        // A heartbeat, perhaps. If the socket is broken, the next pass finds it out, and reads what is left first.
        let _ = self.write();
        Ok(())
    }

    /// Hands over what waits, as far as the socket takes it.
    pub(super) fn write(&mut self) -> Result<(), ClientError> {
        while !self.connection.transmit().is_empty() {
            match self.stream.write(self.connection.transmit()) {
                Ok(0) => return Err(ClientError::Io(io::ErrorKind::WriteZero.into())),
                Ok(byte_count) => self.connection.transmitted(byte_count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ClientError::Io(error)),
            }
        }
        Ok(())
    }

    /// Waits for the answer of a request that was just made; `take` makes of it what the caller wants.
    pub(super) fn answer<T>(
        &mut self,
        correlation: CorrelationId,
        until_ns: u64,
        take: impl FnOnce(Event<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        let mut goodbye = None;
        let mut lost = None;
        loop {
            while let Some(event) = self.connection.next_event() {
                if event.correlation() == Some(correlation) {
                    return match event {
                        Event::Refused(refusal) => Err(refusal.into()),
                        event => Ok(take(event).expect("an answer has the opcode of its request")),
                    };
                }
                if let Event::GoAway { status, message } = event {
                    goodbye = Some(ClientError::GoAway { status, message });
                }
            }
            if let Some(error) = lost.take() {
                return Err(goodbye.unwrap_or(error));
            }
            if self.clock.now_ns() >= until_ns {
                return Err(ClientError::TimedOut);
            }
            lost = self.exchange(until_ns).err();
        }
    }

    fn await_grants(&mut self, until_ns: u64) -> Result<(), ClientError> {
        let mut lost = None;
        loop {
            match self.connection.next_event() {
                Some(Event::HelloDone(_)) => return Ok(()),
                Some(Event::Refused(refusal)) => return Err(refusal.into()),
                Some(Event::GoAway { status, message }) => {
                    return Err(ClientError::GoAway { status, message });
                }
                Some(_) | None => {}
            }
            if let Some(error) = lost.take() {
                return Err(error);
            }
            if self.clock.now_ns() >= until_ns {
                return Err(ClientError::TimedOut);
            }
            lost = self.exchange(until_ns).err();
        }
    }

    /// Writes and reads what the socket takes and has; true if something was read.
    fn move_bytes(&mut self) -> Result<bool, ClientError> {
        let written = self.write();
        if self.read()? {
            // Answers that arrived before the connection broke still count: first they are read, all of them.
            return Ok(true);
        }
        written.map(|()| false)
    }

    /// One read: the caller takes the events before the next, so the buffer stays small.
    fn read(&mut self) -> Result<bool, ClientError> {
        loop {
            let space = self.connection.receive_space(READ_BYTES_MIN);
            if space.is_empty() {
                return Ok(true);
            }
            match self.stream.read(space) {
                Ok(0) => return Err(ClientError::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(byte_count) => {
                    self.connection.on_received(self.clock.now_ns(), byte_count)?;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ClientError::Io(error)),
            }
        }
    }

    /// Waits until the socket has something, takes what waits for it, or a deadline has come.
    fn wait(&self, until_ns: u64) -> Result<(), ClientError> {
        let until_ns = until_ns.min(self.connection.next_deadline_ns());
        let wait_ns = until_ns.saturating_sub(self.clock.now_ns());
        let timeout =
            Timespec { tv_sec: (wait_ns / 1_000_000_000) as i64, tv_nsec: (wait_ns % 1_000_000_000) as i64 };
        let mut wanted = PollFlags::IN;
        if !self.connection.transmit().is_empty() {
            wanted |= PollFlags::OUT;
        }
        match rustix::event::poll(&mut [PollFd::new(&self.stream, wanted)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(ClientError::Io(error.into())),
        }
    }
}

fn connect(address: SocketAddr, timeout: Duration) -> Result<TcpStream, ClientError> {
    let connected = TcpStream::connect_timeout(&address, timeout).and_then(|stream| {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    });
    connected.map_err(|source| ClientError::Connect { address: address.to_string(), source })
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
