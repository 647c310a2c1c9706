//! What one run measured: histograms and counters by phase, filled by the loop, read by the reports.
//!
//! Two latencies of each frame are kept: *response time* from when it should have been sent, *service time* from
//! when it was. A frame counts for the phase in which it was due, however late its answer comes; rates of a phase
//! count what happened while it ran. Everything is allocated at the start.

use std::ops::Range;

use hdrhistogram::Histogram;
use protocol::status::Status;

use crate::connection::{Answer, SendTimes};
use crate::interval::{Interval, IntervalPort, latencies};
use crate::pace::Schedule;
use crate::subscriber::Delivered;

/// Status codes are below this; an unknown higher one is counted as the last.
const STATUS_CODES: usize = 128;
/// Length of an interval.
pub(crate) const INTERVAL_NS: u64 = 1_000_000_000;

/// One phase. Histograms are in nanoseconds.
pub(crate) struct PhaseTally {
    /// When it ran, on the monotonic clock; the end is not part of it.
    pub(crate) window: Range<u64>,
    /// From intended to answered, per frame that was due in it.
    pub(crate) response: Histogram<u64>,
    /// From sent to answered, per frame.
    pub(crate) service: Histogram<u64>,
    /// From the moment when a frame could have been sent (by plan, cap and pauses) until it was, per frame.
    pub(crate) send_lag: Histogram<u64>,
    /// From intended to consumed, per record.
    pub(crate) delivery_response: Histogram<u64>,
    /// From sent to consumed, per record.
    pub(crate) delivery_service: Histogram<u64>,
    /// Frames due in it that were sent.
    pub(crate) sent_frames: u64,
    /// Frames due in it that waited in the generator because of the cap or a pause.
    pub(crate) held_frames: u64,
    /// Frames that were due and sent within it, and stored.
    pub(crate) achieved_frames: u64,
    /// Frames due in it that were refused.
    pub(crate) refused_frames: u64,
    /// Records acknowledged while it ran.
    pub(crate) acked_records: u64,
    /// Records consumed while it ran.
    pub(crate) consumed_records: u64,
    /// Most records that were acknowledged and not consumed while it ran.
    pub(crate) backlog_records_max: u64,
    /// Frames due in it that were never sent; known at the end.
    pub(crate) unsent_frames: u64,
}

impl PhaseTally {
    fn new() -> Self {
        Self {
            window: 0..0,
            response: latencies(),
            service: latencies(),
            send_lag: latencies(),
            delivery_response: latencies(),
            delivery_service: latencies(),
            sent_frames: 0,
            held_frames: 0,
            achieved_frames: 0,
            refused_frames: 0,
            acked_records: 0,
            consumed_records: 0,
            backlog_records_max: 0,
            unsent_frames: 0,
        }
    }

    /// Its length in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.window.end.saturating_sub(self.window.start) as f64 / 1e9
    }
}

/// All phases, the interval that runs, and what is counted over the whole run.
pub(crate) struct Tally {
    /// In their order.
    pub(crate) phases: Vec<PhaseTally>,
    /// Frames sent.
    pub(crate) sent_frames: u64,
    /// Records sent.
    pub(crate) sent_records: u64,
    /// Records stored.
    pub(crate) acked_records: u64,
    /// Records consumed.
    pub(crate) consumed_records: u64,
    /// Frames that will never be answered: the connection broke, or the wait for answers ended.
    pub(crate) unknown_frames: u64,
    /// Connections that broke.
    pub(crate) lost_connections: u64,
    answered_frames: u64,
    /// Frames by the status of their answer.
    answers: [u64; STATUS_CODES],
    /// Phase that runs.
    current: usize,
    /// The last phase is over: what comes now belongs to no phase's rates.
    is_closing: bool,
    /// Whether anybody consumes: what nobody wants is no backlog.
    has_consumer: bool,
    interval: Option<Box<Interval>>,
    port: Option<IntervalPort>,
    offered_at_start: f64,
}

impl Tally {
    /// An empty tally. Intervals are kept only if there is somebody to hand them to.
    pub(crate) fn new(phases: usize, port: Option<IntervalPort>, start_ns: u64) -> Self {
        let mut interval = port.is_some().then(|| Box::new(Interval::new()));
        if let Some(interval) = &mut interval {
            interval.counts.start_ns = start_ns;
        }
        Self {
            phases: (0..phases).map(|_| PhaseTally::new()).collect(),
            sent_frames: 0,
            sent_records: 0,
            acked_records: 0,
            consumed_records: 0,
            unknown_frames: 0,
            lost_connections: 0,
            answered_frames: 0,
            answers: [0; STATUS_CODES],
            current: 0,
            is_closing: false,
            has_consumer: true,
            interval,
            port,
            offered_at_start: 0.0,
        }
    }

    /// The same, of a run without consumers.
    pub(crate) fn without_consumer(self) -> Self {
        Self { has_consumer: false, ..self }
    }

    /// Another phase runs.
    pub(crate) fn enter(&mut self, phase: usize) {
        self.current = phase;
        self.note_backlog();
    }

    /// Records that are stored and not consumed. A duplicate can make it 0 too early, never less.
    pub(crate) fn backlog_records(&self) -> u64 {
        if self.has_consumer { self.acked_records.saturating_sub(self.consumed_records) } else { 0 }
    }

    /// Keeps the greatest backlog of the phase; to be called once a turn.
    pub(crate) fn note_backlog(&mut self) {
        let backlog_records = self.backlog_records();
        if self.is_closing {
            return;
        }
        let phase = &mut self.phases[self.current];
        phase.backlog_records_max = phase.backlog_records_max.max(backlog_records);
    }

    /// A frame leaves. `ready_since_ns`: since when cap and pauses would have let it.
    pub(crate) fn on_sent(&mut self, times: SendTimes, ready_since_ns: u64, records: u32) {
        let SendTimes { intended_ns, sent_ns, phase } = times;
        self.sent_frames += 1;
        self.sent_records += u64::from(records);
        let lag_ns = sent_ns.saturating_sub(intended_ns.max(ready_since_ns));
        let phase = &mut self.phases[phase as usize];
        phase.sent_frames += 1;
        phase.send_lag.saturating_record(lag_ns);
        phase.held_frames += u64::from(intended_ns < ready_since_ns);
        if let Some(interval) = &mut self.interval {
            interval.counts.sent_records += u64::from(records);
            interval.send_lag.saturating_record(lag_ns);
        }
    }

    /// A frame was answered.
    pub(crate) fn on_answer(&mut self, answer: &Answer, now_ns: u64) {
        let frame = &answer.frame;
        self.answered_frames += 1;
        self.answers[usize::from(answer.status).min(STATUS_CODES - 1)] += 1;
        let phase = &mut self.phases[frame.phase as usize];
        if answer.status != Status::Ok as u16 {
            phase.refused_frames += 1;
            if let Some(interval) = &mut self.interval {
                let is_busy = answer.status == Status::Busy as u16;
                interval.counts.busy_frames += u64::from(is_busy);
                interval.counts.refused_frames += u64::from(!is_busy);
            }
            return;
        }
        let response_ns = now_ns.saturating_sub(frame.intended_ns);
        let service_ns = now_ns.saturating_sub(frame.sent_ns);
        phase.response.saturating_record(response_ns);
        phase.service.saturating_record(service_ns);
        // As long as the phase has no end, whatever was sent was sent within it.
        let was_in_time = phase.window.end == 0 || frame.sent_ns < phase.window.end;
        phase.achieved_frames += u64::from(was_in_time);
        self.acked_records += u64::from(frame.records);
        if !self.is_closing {
            self.phases[self.current].acked_records += u64::from(frame.records);
        }
        if let Some(interval) = &mut self.interval {
            interval.counts.acked_records += u64::from(frame.records);
            interval.response.saturating_record(response_ns);
            interval.service.saturating_record(service_ns);
        }
    }

    /// A record of this phase was consumed.
    pub(crate) fn on_consumed(&mut self, record: Delivered, phase: usize, now_ns: u64) {
        self.consumed_records += 1;
        self.phases[self.current].consumed_records += u64::from(!self.is_closing);
        let response_ns = now_ns.saturating_sub(record.intended_ns);
        let tally = &mut self.phases[phase];
        tally.delivery_response.saturating_record(response_ns);
        tally.delivery_service.saturating_record(now_ns.saturating_sub(record.sent_ns));
        if let Some(interval) = &mut self.interval {
            interval.counts.consumed_records += 1;
            interval.delivery.saturating_record(response_ns);
        }
    }

    /// When the running interval ends; never, if nobody wants it.
    pub(crate) fn interval_end_ns(&self) -> u64 {
        self.interval.as_ref().map_or(u64::MAX, |interval| interval.counts.start_ns + INTERVAL_NS)
    }

    /// Hands the running interval over and begins the next.
    pub(crate) fn end_interval(&mut self, now_ns: u64, schedule: &Schedule, in_flight_frames: u64) {
        let backlog_records = self.backlog_records();
        let (Some(mut full), Some(port)) = (self.interval.take(), &self.port) else { return };
        let offered = schedule.offered_until(now_ns);
        let counts = &mut full.counts;
        counts.end_ns = now_ns;
        counts.offered_records = offered - self.offered_at_start;
        counts.in_flight_frames = in_flight_frames;
        counts.backlog_records = backlog_records;
        self.offered_at_start = offered;
        let mut next = port.exchange(full);
        next.counts.start_ns = now_ns;
        next.counts.phase = if self.is_closing { self.phases.len() } else { self.current };
        self.interval = Some(next);
    }

    /// The last phase is over: an interval ends with it.
    pub(crate) fn begin_closing(&mut self, now_ns: u64, schedule: &Schedule, in_flight_frames: u64) {
        self.is_closing = true;
        self.end_interval(now_ns, schedule, in_flight_frames);
    }

    /// The run is over: nobody waits for intervals any more, and phases know when they ran.
    pub(crate) fn finish(&mut self, schedule: Schedule, now_ns: u64) {
        self.interval = None;
        self.port = None;
        for (number, phase) in self.phases.iter_mut().enumerate() {
            let window = schedule.window(number).unwrap_or(now_ns..now_ns);
            phase.window = window;
        }
        for (phase, unsent) in self.phases.iter_mut().zip(schedule.into_unsent_frames()) {
            phase.unsent_frames = unsent;
        }
    }

    /// A phase is over, and its end is known.
    pub(crate) fn set_window(&mut self, phase: usize, window: Range<u64>) {
        self.phases[phase].window = window;
    }

    /// Frames that were answered, whatever the answer.
    pub(crate) fn answered_frames(&self) -> u64 {
        self.answered_frames
    }

    /// Frames that were stored.
    pub(crate) fn ok_frames(&self) -> u64 {
        self.answers[Status::Ok as usize]
    }

    /// Frames refused with `Busy`.
    pub(crate) fn busy_frames(&self) -> u64 {
        self.answers[Status::Busy as usize]
    }

    /// Frames of all phases that waited in the generator because of the cap or a pause.
    pub(crate) fn held_frames(&self) -> u64 {
        self.phases.iter().map(|phase| phase.held_frames).sum()
    }

    /// Each status other than `Ok` that was answered, with its number of frames.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        (0..).zip(self.answers).filter(|(code, count)| *code != Status::Ok as u16 && *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrivals::Arrivals;
    use crate::interval::interval_channel;
    use crate::pace::{Pace, PhasePlan};
    use crate::ring::InFlight;

    /// A warm-up and a measured phase, the second one running from 1,000 to 2,000.
    fn tally() -> Tally {
        let mut tally = Tally::new(2, None, 0);
        tally.set_window(0, 0..1_000);
        tally.enter(1);
        tally
    }

    fn answer(intended_ns: u64, sent_ns: u64, status: Status) -> Answer {
        let phase = u32::from(intended_ns >= 1_000);
        let frame = InFlight { intended_ns, sent_ns, first_sequence: 0, records: 4, lane: 0, phase };
        Answer { status: status as u16, frame }
    }

    #[test]
    fn frames_count_for_the_phase_in_which_they_were_due() {
        let mut tally = tally();
        tally.on_answer(&answer(999, 999, Status::Ok), 1_500);
        tally.on_answer(&answer(999, 1_001, Status::Ok), 1_600);
        tally.on_answer(&answer(1_000, 1_100, Status::Ok), 1_900);
        let (warmup, measured) = (&tally.phases[0], &tally.phases[1]);
        assert_eq!((warmup.response.len(), warmup.achieved_frames), (2, 1), "one was sent in time");
        assert_eq!((measured.response.max(), measured.service.max()), (900, 800));
        assert_eq!((warmup.acked_records, measured.acked_records), (0, 12), "by when the answer came");
        assert_eq!(tally.acked_records, 12);
    }

    #[test]
    fn refusals_are_counted_by_their_code_and_have_no_latency() {
        let mut tally = tally();
        tally.on_answer(&answer(1_000, 1_000, Status::Busy), 1_100);
        tally.on_answer(&answer(1_000, 1_000, Status::Busy), 1_100);
        tally.on_answer(&answer(1_000, 1_000, Status::StaleHandle), 1_100);
        assert_eq!(tally.refusals().collect::<Vec<_>>(), [(1, 2), (52, 1)]);
        assert_eq!((tally.ok_frames(), tally.busy_frames(), tally.phases[1].response.len()), (0, 2, 0));
        assert_eq!(tally.phases[1].refused_frames, 3);
    }

    #[test]
    fn waiting_for_the_cap_is_not_lag_of_the_generator() {
        let mut tally = tally();
        let times = |intended_ns, sent_ns| SendTimes { intended_ns, sent_ns, phase: 1 };
        tally.on_sent(times(1_000, 1_010), 0, 1);
        tally.on_sent(times(1_100, 1_903), 1_900, 1);
        assert_eq!((tally.phases[1].send_lag.len(), tally.phases[1].send_lag.max()), (2, 10));
        assert_eq!((tally.sent_frames, tally.held_frames()), (2, 1));
    }

    #[test]
    fn interval_tells_what_happened_in_it_and_what_should_have() {
        let (port, feed) = interval_channel();
        let mut tally = Tally::new(1, Some(port), 0);
        let plan = Pace::Open(Arrivals::constant(1_000.0, 2 * INTERVAL_NS));
        let schedule = Schedule::new(vec![PhasePlan::fixed(plan, 2 * INTERVAL_NS)], 1, 1, 0);
        assert_eq!(tally.interval_end_ns(), INTERVAL_NS);
        tally.on_answer(&answer(0, 0, Status::Ok), 50);
        tally.on_consumed(Delivered { intended_ns: 0, sent_ns: 0 }, 0, 70);
        tally.end_interval(INTERVAL_NS, &schedule, 3);
        tally.end_interval(2 * INTERVAL_NS, &schedule, 0);
        let first = feed.next().unwrap();
        assert_eq!((first.counts.offered_records, first.counts.acked_records), (1_000.0, 4));
        assert_eq!((first.counts.backlog_records, first.counts.in_flight_frames), (3, 3));
        assert_eq!((first.response.len(), first.delivery.len()), (1, 1));
        let second = feed.next().unwrap();
        assert_eq!((second.counts.offered_records, second.counts.acked_records), (1_000.0, 0));
        assert_eq!((second.response.len(), second.counts.backlog_records), (0, 3));
    }
}
