//! One connection of the driver: what happens on it, its buffers, and how its frames are taken from received bytes.
//!
//! Frames are read where they were received; what is not whole yet stays for the next receive.

use protocol::status::Status;
use reactor::SocketId;
use reactor::memory::PAGE;

use crate::connection::{PeerError, Producer};
use crate::ledger::Ledger;
use crate::outbox::Outbox;
use crate::ring::InFlight;
use crate::subscriber::Subscriber;
use crate::tally::Tally;

/// Receive buffer of a connection that gets answers only: two thousand of them.
const ANSWERS_BUFFER_BYTES: usize = 64 << 10;
/// Least receive buffer of a connection that gets deliveries: the broker has at most 256 KiB in flight.
const DELIVERIES_BUFFER_BYTES: usize = 1 << 20;
/// Least send buffer of a connection.
const SEND_BUFFER_BYTES: usize = 256 << 10;

/// What happens on a connection.
pub(crate) enum Role {
    /// It sends.
    Producer(Producer),
    /// It gets deliveries.
    Subscriber(Subscriber),
}

impl Role {
    /// The producer, if it is one.
    pub(crate) fn producer(&self) -> Option<&Producer> {
        match self {
            Self::Producer(producer) => Some(producer),
            Self::Subscriber(_) => None,
        }
    }

    /// The subscriber, if it is one.
    pub(crate) fn subscriber(&self) -> Option<&Subscriber> {
        match self {
            Self::Producer(_) => None,
            Self::Subscriber(subscriber) => Some(subscriber),
        }
    }

    /// Length of its receive buffer: a whole frame of what may come fits.
    pub(crate) fn receive_buffer_bytes(&self, frame_bytes_max: u32) -> usize {
        match self {
            Self::Producer(_) => ANSWERS_BUFFER_BYTES,
            Self::Subscriber(_) => DELIVERIES_BUFFER_BYTES.max(frame_bytes_max as usize + PAGE),
        }
    }

    /// Length of one of its send buffers: a whole frame of what it sends fits.
    pub(crate) fn send_buffer_bytes(&self) -> usize {
        match self {
            Self::Producer(producer) => SEND_BUFFER_BYTES.max(producer.frame_bytes_max()),
            Self::Subscriber(_) => PAGE,
        }
    }

    /// What it may hold of the pool, which gives powers of two.
    pub(crate) fn memory_bytes(&self, frame_bytes_max: u32) -> usize {
        let receive_bytes = self.receive_buffer_bytes(frame_bytes_max).next_power_of_two();
        receive_bytes + Outbox::BUFFERS_MAX * self.send_buffer_bytes().next_power_of_two()
    }
}

/// A connection that the reactor holds.
pub(crate) struct Link {
    /// Its socket.
    pub(crate) socket: SocketId,
    /// Whether it works still.
    pub(crate) is_open: bool,
    /// Its send buffers are full: nothing can be made until a send ends.
    pub(crate) is_blocked: bool,
    /// Receives and sends that the kernel has not answered.
    pub(crate) pending_operations: u32,
    /// When it last sent anything.
    pub(crate) last_sent_ns: u64,
    /// What is on its way to the socket.
    pub(crate) outbox: Outbox,
    /// What happens on it.
    pub(crate) role: Role,
}

/// Takes all whole frames from the front of `bytes`; gives how many bytes they are.
pub(crate) fn take_answers(
    producer: &mut Producer,
    (tally, ledger): (&mut Tally, Option<&mut Ledger>),
    bytes: &[u8],
    frame_bytes_max: u32,
    now_ns: u64,
) -> Result<usize, PeerError> {
    let (mut used, mut ledger) = (0, ledger);
    while let Some((length, answer)) = producer.take_answer(&bytes[used..], frame_bytes_max, now_ns)? {
        used += length;
        if let Some(answer) = answer {
            tally.on_answer(&answer, now_ns);
            let InFlight { first_sequence, records, .. } = answer.frame;
            let is_ok = answer.status == Status::Ok as u16;
            if let Some(ledger) = &mut ledger {
                ledger.on_answer(producer.connection(), first_sequence, records, is_ok);
            }
        }
    }
    Ok(used)
}

/// The same for deliveries.
pub(crate) fn take_deliveries(
    subscriber: &mut Subscriber,
    bytes: &[u8],
    frame_bytes_max: u32,
    now_ns: u64,
    ledger: &mut Ledger,
) -> Result<usize, PeerError> {
    let mut used = 0;
    while let Some(length) = subscriber.take_frame(&bytes[used..], frame_bytes_max, now_ns, ledger)? {
        used += length;
    }
    Ok(used)
}
