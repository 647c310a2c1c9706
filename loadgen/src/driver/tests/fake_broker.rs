//! A broker that does what a script says, over real sockets: it stalls, loses, repeats, swaps, spoils, refuses, is
//! slow, or hangs up. One connection sends, one gets deliveries; credit is taken and ignored.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;
use std::time::Duration;

use protocol::batch::{BatchHeader, BrokerFields, producer_sum};
use protocol::frame::{Frame, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, Handle, Offset, TopicKey};
use protocol::status::Status;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use crate::subscriber::SUBSCRIPTION_ID;

const FRAME_BYTES_MAX: u32 = 1 << 20;

/// What it does, by the number of the frame that it gets, from 0.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Script {
    /// At this frame it stops for so long: it neither reads nor answers.
    pub(super) stall: Option<(u64, Duration)>,
    /// Every frame takes so long.
    pub(super) slow: Duration,
    /// Acknowledges these frames, and forgets them.
    pub(super) loses: &'static [u64],
    /// Delivers these frames twice.
    pub(super) repeats: &'static [u64],
    /// Delivers these frames behind the next one.
    pub(super) swaps: &'static [u64],
    /// Changes a byte of these frames, and their sums with it.
    pub(super) spoils: &'static [u64],
    /// Changes a byte of these frames on their way.
    pub(super) flips: &'static [u64],
    /// Refuses these frames with `Busy`.
    pub(super) refuses: &'static [u64],
    /// Stores these frames and never answers.
    pub(super) forgets_to_answer: &'static [u64],
    /// Answers these frames behind the answer to the next one.
    pub(super) answers_late: &'static [u64],
    /// After this frame it hangs up.
    pub(super) hangs_up_after: Option<u64>,
    /// Frames that it gets in all; then it has no more deliveries.
    pub(super) frames: u64,
}

/// The partition that there is.
pub(super) fn handle() -> Handle {
    Handle::new(TopicKey { slot: 0, generation: 1 }, 0)
}

/// A running fake; it ends when the connections do.
pub(super) struct FakeBroker {
    pub(super) producer: OwnedFd,
    pub(super) subscriber: OwnedFd,
    pub(super) thread: JoinHandle<()>,
}

impl FakeBroker {
    pub(super) fn start(script: Script) -> Self {
        Self::start_at(script, 0)
    }

    /// One that goes on where another one ended.
    pub(super) fn start_at(script: Script, next_offset: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || {
            let socket = TcpStream::connect(address).unwrap();
            socket.set_nodelay(true).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            accepted.set_nodelay(true).unwrap();
            (socket.into(), accepted)
        };
        let (producer, from_producer) = connect();
        let (subscriber, to_subscriber) = connect();
        let serving = Serving {
            script,
            from_producer,
            to_subscriber,
            next_offset,
            held_delivery: None,
            held_answer: None,
        };
        Self { producer, subscriber, thread: std::thread::spawn(move || serving.serve()) }
    }
}

struct Serving {
    script: Script,
    from_producer: TcpStream,
    to_subscriber: TcpStream,
    next_offset: u64,
    held_delivery: Option<Vec<u8>>,
    held_answer: Option<FrameHeader>,
}

impl Serving {
    fn serve(mut self) {
        let (mut bytes, mut number) = (Vec::new(), 0);
        let mut chunk = [0; 16 << 10];
        loop {
            let length = match self.from_producer.read(&mut chunk) {
                Ok(0) => return,
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            bytes.extend_from_slice(&chunk[..length]);
            while let Some((header, payload, used)) = cut(&bytes) {
                bytes.drain(..used);
                if header.opcode == Opcode::Produce as u8 {
                    self.on_frame(number, &header, payload);
                    if self.script.hangs_up_after == Some(number) {
                        return;
                    }
                    number += 1;
                }
            }
            if number == self.script.frames {
                // The end of the stream, behind all deliveries.
                let _ = self.to_subscriber.shutdown(Shutdown::Write);
            }
        }
    }

    fn on_frame(&mut self, number: u64, header: &FrameHeader, payload: Vec<u8>) {
        if let Some((at, stall)) = self.script.stall
            && at == number
        {
            std::thread::sleep(stall);
        }
        std::thread::sleep(self.script.slow);
        let is_in = |numbers: &[u64]| numbers.contains(&number);
        let status = if is_in(self.script.refuses) { Status::Busy } else { Status::Ok };
        let answer = FrameHeader::answer(Opcode::Produce, status, header.correlation(), self.next_offset);
        let late = self.held_answer.take();
        if is_in(self.script.answers_late) {
            self.held_answer = Some(answer);
        } else if !is_in(self.script.forgets_to_answer) {
            self.answer(answer);
        }
        if let Some(late) = late {
            self.answer(late);
        }
        if status == Status::Busy || is_in(self.script.loses) {
            return;
        }
        let mut payload = payload;
        if is_in(self.script.spoils) {
            // Within the record: behind it there may be padding.
            let at = payload.len() - 20;
            payload[at] ^= 1;
            let sum = producer_sum(&payload);
            let (batch, _) = BatchHeader::mut_from_prefix(&mut payload).unwrap();
            batch.producer_crc = U32::new(sum);
        }
        if is_in(self.script.swaps) {
            self.held_delivery = Some(payload);
            return;
        }
        self.deliver(number, &payload);
        if is_in(self.script.repeats) {
            self.deliver(number, &payload);
        }
        if let Some(held) = self.held_delivery.take() {
            self.deliver(number, &held);
        }
    }

    fn answer(&mut self, answer: FrameHeader) {
        // The load may have gone.
        let _ = self.from_producer.write_all(answer.as_bytes());
    }

    fn deliver(&mut self, number: u64, payload: &[u8]) {
        let mut batch = payload.to_vec();
        let fields = BrokerFields { base_offset: Offset(self.next_offset), appended_ms: 1, log_epoch: 1 };
        BatchHeader::place(&mut batch, handle(), fields);
        self.next_offset = {
            let (header, _) = BatchHeader::ref_from_prefix(&batch).unwrap();
            header.next_offset().0
        };
        if self.script.flips.contains(&number) {
            *batch.last_mut().unwrap() ^= 1;
        }
        let header = FrameHeader::new(Opcode::Deliver, CorrelationId(handle().0), SUBSCRIPTION_ID);
        let header = header.with_lengths(0, batch.len());
        let _ = self.to_subscriber.write_all(header.as_bytes());
        let _ = self.to_subscriber.write_all(&batch);
    }
}

/// The first frame, if it is whole: header, payload, length.
fn cut(bytes: &[u8]) -> Option<(FrameHeader, Vec<u8>, usize)> {
    let frame = Frame::cut(bytes, FRAME_BYTES_MAX).unwrap()?;
    Some((*frame.header, frame.payload.to_vec(), frame.header.frame_bytes()))
}
