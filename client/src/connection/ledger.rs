//! What is in flight on one connection, and what was granted: the state that answers are held against.
//!
//! Produce requests have even correlation ids and stand in a ring, in which an answer finds its request by
//! subtraction; the few others have odd ones and stand in a short list. A request is in exactly one of the two from
//! the moment it is made until its answer was accepted.

use std::collections::VecDeque;

use protocol::frame::{FLAG_ANSWER, FRAME_HEADER_BYTES, Frame, FrameHeader, Opcode};
use protocol::ids::{CorrelationId, SubscriptionId};
use protocol::status::Status;

use super::decode::decode;
use super::error::{ConnectionError, RequestError};
use super::event::{Event, Grants};
use crate::limits::{HELLO_FRAME_BYTES_MAX, OTHER_REQUESTS_MAX, PRODUCE_SPAN_MAX, SUBSCRIPTIONS_MAX};

#[derive(Debug)]
pub(super) struct Ledger {
    grants: Option<Grants>,
    /// The broker refused `Hello` or said `GoAway`: nothing more is asked.
    is_leaving: bool,
    produces: Produces,
    others: Vec<OtherRequest>,
    /// Requests other than produce made so far.
    others_made: u64,
    subscriptions: Vec<SubscriptionId>,
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self {
            grants: None,
            is_leaving: false,
            produces: Produces::new(),
            others: Vec::new(),
            others_made: 0,
            subscriptions: Vec::new(),
        }
    }

    pub(super) fn grants(&self) -> Option<&Grants> {
        self.grants.as_ref()
    }

    /// Whether the broker refused `Hello` or said that it goes away.
    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving
    }

    pub(super) fn frame_bytes_max(&self) -> u32 {
        self.grants.as_ref().map_or(HELLO_FRAME_BYTES_MAX, |grants| grants.frame_bytes_max)
    }

    pub(super) fn requests_in_flight(&self) -> usize {
        self.produces.in_flight_count + self.others.len()
    }

    pub(super) fn produce_bytes_in_flight(&self) -> usize {
        self.produces.in_flight_bytes
    }

    /// Whether a produce frame of this length may be made now.
    pub(super) fn check_produce(&self, frame_bytes: usize) -> Result<(), RequestError> {
        let grants = self.check_ready()?;
        if frame_bytes > grants.frame_bytes_max as usize {
            return Err(RequestError::FrameTooLarge);
        }
        let requests = self.requests_in_flight();
        let bytes = self.produces.in_flight_bytes + frame_bytes;
        // A single frame is always admitted when nothing else is in flight.
        let is_over_window = requests > 0 && bytes > grants.window_bytes as usize;
        let is_over_count = requests >= grants.requests_in_flight_max as usize;
        if is_over_window || is_over_count || self.produces.entries.len() >= PRODUCE_SPAN_MAX {
            return Err(RequestError::WindowFull);
        }
        Ok(())
    }

    /// Notes a produce frame that `check_produce` allowed, which begins at this position of the stream.
    pub(super) fn begin_produce(&mut self, frame_bytes: usize, position: u64) -> CorrelationId {
        self.produces.begin(ProduceRequest { frame_bytes: frame_bytes as u32, position })
    }

    /// Whether a request other than produce may be made now.
    pub(super) fn check_other(&self) -> Result<(), RequestError> {
        let grants = self.check_ready()?;
        let is_full = self.others.len() >= OTHER_REQUESTS_MAX
            || self.requests_in_flight() >= grants.requests_in_flight_max as usize;
        if is_full { Err(RequestError::TooMany) } else { Ok(()) }
    }

    /// Notes a request other than produce that will be answered.
    pub(super) fn begin_other(&mut self, opcode: Opcode, subject: u64, position: u64) -> CorrelationId {
        let correlation = self.next_other();
        self.others.push(OtherRequest { correlation, opcode, subject, position });
        correlation
    }

    /// A correlation id for a request that is answered only when refused.
    pub(super) fn next_other(&mut self) -> CorrelationId {
        let correlation = CorrelationId(self.others_made << 1 | 1);
        self.others_made += 1;
        correlation
    }

    /// Takes the id of a subscription that is about to be asked for.
    pub(super) fn begin_subscription(&mut self, id: SubscriptionId) -> Result<(), RequestError> {
        if id.0 == 0 || self.subscriptions.contains(&id) {
            return Err(RequestError::SubscriptionInUse);
        }
        if self.subscriptions.len() >= SUBSCRIPTIONS_MAX {
            return Err(RequestError::TooMany);
        }
        self.subscriptions.push(id);
        Ok(())
    }

    /// Position in the stream where an unanswered request begins; `None` if it was answered or never made.
    pub(super) fn position(&self, correlation: CorrelationId) -> Option<u64> {
        if is_produce(correlation) {
            return self.produces.get(correlation).map(|request| request.position);
        }
        let request = self.others.iter().find(|request| request.correlation == correlation);
        request.map(|request| request.position)
    }

    /// Holds a frame against what was asked, and moves on by it.
    pub(super) fn on_frame(&mut self, frame: Frame<'_>) -> Result<(), ConnectionError> {
        let header = frame.header;
        if header.opcode == Opcode::Heartbeat as u8 {
            return check_heartbeat(frame);
        }
        let event = decode(frame)?;
        if header.has_flag(FLAG_ANSWER) { self.on_answer(header, &event) } else { self.on_push(&event) }
    }

    fn check_ready(&self) -> Result<&Grants, RequestError> {
        if self.is_leaving {
            return Err(RequestError::Closing);
        }
        self.grants.as_ref().ok_or(RequestError::NotReady)
    }

    fn on_answer(&mut self, header: &FrameHeader, event: &Event<'_>) -> Result<(), ConnectionError> {
        let correlation = header.correlation();
        let unknown = ConnectionError::UnknownCorrelation(correlation.0);
        if let Event::SubscriptionEnded { subscription, .. } = event {
            return self.on_subscription_ended(*subscription);
        }
        if header.opcode == Opcode::Produce as u8 {
            let is_open = is_produce(correlation) && self.produces.finish(correlation);
            return if is_open { Ok(()) } else { Err(unknown) };
        }
        if header.opcode == Opcode::Credit as u8 {
            // Not in the list, because it is answered only when refused.
            let was_made = !is_produce(correlation) && correlation.0 >> 1 < self.others_made;
            return if was_made { Ok(()) } else { Err(unknown) };
        }
        let Some(index) = self.others.iter().position(|request| request.correlation == correlation) else {
            return Err(unknown);
        };
        let request = self.others.swap_remove(index);
        self.on_other_answer(&request, header, event)
    }

    fn on_other_answer(
        &mut self,
        request: &OtherRequest,
        header: &FrameHeader,
        event: &Event<'_>,
    ) -> Result<(), ConnectionError> {
        let opcode = Opcode::from_code(header.opcode).ok_or(ConnectionError::UnknownOpcode(header.opcode))?;
        let is_ok = header.status.get() == Status::Ok as u16;
        if opcode != request.opcode || (is_ok && header.subject.get() != request.subject) {
            return Err(ConnectionError::OtherAnswer { asked: request.opcode, answered: opcode });
        }
        match event {
            Event::HelloDone(grants) => self.grants = Some(grants.clone()),
            Event::Refused(_) if opcode == Opcode::Hello => self.is_leaving = true,
            Event::Refused(_) if opcode == Opcode::Subscribe => self.end_subscription(request.subject),
            Event::Unsubscribed { .. } => self.end_subscription(request.subject),
            _ => {}
        }
        Ok(())
    }

    fn on_push(&mut self, event: &Event<'_>) -> Result<(), ConnectionError> {
        match event {
            Event::GoAway { .. } => {
                self.is_leaving = true;
                Ok(())
            }
            Event::Delivered { subscription, .. } if !self.subscriptions.contains(subscription) => {
                Err(ConnectionError::UnknownSubscription(subscription.0))
            }
            _ => Ok(()),
        }
    }

    fn on_subscription_ended(&mut self, id: SubscriptionId) -> Result<(), ConnectionError> {
        if !self.subscriptions.contains(&id) {
            return Err(ConnectionError::UnknownSubscription(id.0));
        }
        self.end_subscription(id.0);
        Ok(())
    }

    fn end_subscription(&mut self, subject: u64) {
        self.subscriptions.retain(|id| id.0 != subject);
    }
}

/// The produce requests from the oldest unanswered one to the newest, by number.
#[derive(Debug)]
struct Produces {
    entries: VecDeque<ProduceRequest>,
    /// Number of the front entry.
    first_number: u64,
    in_flight_count: usize,
    in_flight_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct ProduceRequest {
    /// Length of its frame; 0 once it was answered.
    frame_bytes: u32,
    /// Where its frame begins in the stream of all bytes sent.
    position: u64,
}

impl Produces {
    fn new() -> Self {
        // Number 0 is not used, so that no produce request has the correlation id 0 of a heartbeat.
        Self { entries: VecDeque::new(), first_number: 1, in_flight_count: 0, in_flight_bytes: 0 }
    }

    fn begin(&mut self, request: ProduceRequest) -> CorrelationId {
        assert!(request.frame_bytes as usize > FRAME_HEADER_BYTES);
        let number = self.first_number + self.entries.len() as u64;
        self.in_flight_count += 1;
        self.in_flight_bytes += request.frame_bytes as usize;
        self.entries.push_back(request);
        CorrelationId(number << 1)
    }

    fn index(&self, correlation: CorrelationId) -> Option<usize> {
        let index = (correlation.0 >> 1).checked_sub(self.first_number)?;
        usize::try_from(index).ok()
    }

    fn get(&self, correlation: CorrelationId) -> Option<&ProduceRequest> {
        let entry = self.entries.get(self.index(correlation)?)?;
        (entry.frame_bytes > 0).then_some(entry)
    }

    /// Takes an answered request out; false if it is not open.
    fn finish(&mut self, correlation: CorrelationId) -> bool {
        let Some(index) = self.index(correlation) else { return false };
        let Some(entry) = self.entries.get_mut(index) else { return false };
        if entry.frame_bytes == 0 {
            return false;
        }
        self.in_flight_bytes -= entry.frame_bytes as usize;
        self.in_flight_count -= 1;
        entry.frame_bytes = 0;
        while self.entries.front().is_some_and(|entry| entry.frame_bytes == 0) {
            self.entries.pop_front();
            self.first_number += 1;
        }
        true
    }
}

/// A request that is not a produce.
#[derive(Clone, Copy, Debug)]
struct OtherRequest {
    correlation: CorrelationId,
    opcode: Opcode,
    /// Its subject, which a good answer repeats.
    subject: u64,
    /// Where its frame begins in the stream of all bytes sent.
    position: u64,
}

fn is_produce(correlation: CorrelationId) -> bool {
    correlation.0 & 1 == 0
}

fn check_heartbeat(frame: Frame<'_>) -> Result<(), ConnectionError> {
    if frame.header.has_flag(FLAG_ANSWER) {
        return Err(ConnectionError::UnexpectedFrame(Opcode::Heartbeat));
    }
    let is_bare = frame.envelope.is_empty() && frame.payload.is_empty();
    if is_bare { Ok(()) } else { Err(ConnectionError::Content(Opcode::Heartbeat)) }
}
