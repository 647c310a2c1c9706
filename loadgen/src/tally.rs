//! What one run measured: histograms and counters, filled by the loop, read by the report.
//!
//! Two latencies of each frame are kept: *response time* from when it should have been sent, *service time* from
//! when it was. Frames count for the histograms when they were due within the window, warm-up and drain excluded;
//! what was answered is counted over the whole run. Everything is allocated at the start.

use hdrhistogram::Histogram;
use protocol::status::Status;

use crate::connection::{Answer, SendTimes};
use crate::subscriber::Delivered;

/// Longest latency that is told apart; longer ones count as this.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Status codes are below this; an unknown higher one is counted as the last.
const STATUS_CODES: usize = 128;

/// The part of a run that is measured, on the monotonic clock. The end is not part of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// End of the warm-up.
    pub(crate) start_ns: u64,
    /// From here on nothing new is due.
    pub(crate) end_ns: u64,
}

impl Window {
    /// Whether a moment lies within.
    pub(crate) fn contains(&self, time_ns: u64) -> bool {
        (self.start_ns..self.end_ns).contains(&time_ns)
    }

    /// Its length in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.end_ns.saturating_sub(self.start_ns) as f64 / 1e9
    }
}

/// Histograms in nanoseconds, and counters.
pub(crate) struct Tally {
    /// What is measured.
    pub(crate) window: Window,
    /// From intended to answered, per frame.
    pub(crate) response: Histogram<u64>,
    /// From sent to answered, per frame.
    pub(crate) service: Histogram<u64>,
    /// From the moment when a frame could have been sent (by plan, cap and pauses) until it was, per frame.
    pub(crate) send_lag: Histogram<u64>,
    /// From intended to delivered, per record.
    pub(crate) delivery_response: Histogram<u64>,
    /// From sent to delivered, per record.
    pub(crate) delivery_service: Histogram<u64>,
    /// Frames sent in the whole run.
    pub(crate) sent_frames: u64,
    /// Frames of the window that waited in the generator because of the cap or a pause.
    pub(crate) held_frames: u64,
    /// Frames that were due and sent within the window, and stored.
    pub(crate) achieved_frames: u64,
    /// Records stored, in the whole run.
    pub(crate) acked_records: u64,
    /// Records whose answer came within the window, and is good.
    pub(crate) acked_records_in_window: u64,
    /// Frames that will never be answered: the connection broke, or the wait for answers ended.
    pub(crate) unknown_frames: u64,
    /// Connections that broke.
    pub(crate) lost_connections: u64,
    /// Frames by the status of their answer.
    answers: [u64; STATUS_CODES],
}

impl Tally {
    /// An empty tally.
    pub(crate) fn new(window: Window) -> Self {
        Self {
            window,
            response: latencies(),
            service: latencies(),
            send_lag: latencies(),
            delivery_response: latencies(),
            delivery_service: latencies(),
            sent_frames: 0,
            held_frames: 0,
            achieved_frames: 0,
            acked_records: 0,
            acked_records_in_window: 0,
            unknown_frames: 0,
            lost_connections: 0,
            answers: [0; STATUS_CODES],
        }
    }

    /// A frame leaves. `ready_since_ns`: since when cap and pauses would have let it.
    pub(crate) fn on_sent(&mut self, times: SendTimes, ready_since_ns: u64) {
        let SendTimes { intended_ns, sent_ns } = times;
        self.sent_frames += 1;
        if self.window.contains(intended_ns) {
            self.send_lag.saturating_record(sent_ns.saturating_sub(intended_ns.max(ready_since_ns)));
            self.held_frames += u64::from(intended_ns < ready_since_ns);
        }
    }

    /// A frame was answered.
    pub(crate) fn on_answer(&mut self, answer: &Answer, now_ns: u64) {
        let frame = &answer.frame;
        self.answers[usize::from(answer.status).min(STATUS_CODES - 1)] += 1;
        if answer.status != Status::Ok as u16 {
            return;
        }
        self.acked_records += u64::from(frame.records);
        if self.window.contains(now_ns) {
            self.acked_records_in_window += u64::from(frame.records);
        }
        if self.window.contains(frame.intended_ns) {
            self.response.saturating_record(now_ns.saturating_sub(frame.intended_ns));
            self.service.saturating_record(now_ns.saturating_sub(frame.sent_ns));
            self.achieved_frames += u64::from(frame.sent_ns < self.window.end_ns);
        }
    }

    /// A record was delivered.
    pub(crate) fn on_delivered(&mut self, record: Delivered, now_ns: u64) {
        if self.window.contains(record.intended_ns) {
            self.delivery_response.saturating_record(now_ns.saturating_sub(record.intended_ns));
            self.delivery_service.saturating_record(now_ns.saturating_sub(record.sent_ns));
        }
    }

    /// Frames that were stored.
    pub(crate) fn ok_frames(&self) -> u64 {
        self.answers[Status::Ok as usize]
    }

    /// Frames refused with `Busy`.
    pub(crate) fn busy_frames(&self) -> u64 {
        self.answers[Status::Busy as usize]
    }

    /// Each status other than `Ok` that was answered, with its number of frames.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        (0..).zip(self.answers).filter(|(code, count)| *code != Status::Ok as u16 && *count > 0)
    }
}

/// An empty histogram of nanoseconds.
fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are good")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::InFlight;

    fn tally() -> Tally {
        Tally::new(Window { start_ns: 1_000, end_ns: 2_000 })
    }

    fn answer(intended_ns: u64, sent_ns: u64, status: Status) -> Answer {
        let frame = InFlight { intended_ns, sent_ns, first_sequence: 0, records: 4, lane: 0 };
        Answer { status: status as u16, frame }
    }

    #[test]
    fn warm_up_and_drain_are_counted_but_not_measured() {
        let mut tally = tally();
        tally.on_answer(&answer(999, 999, Status::Ok), 1_500);
        tally.on_answer(&answer(1_000, 1_100, Status::Ok), 1_900);
        tally.on_answer(&answer(1_999, 2_100, Status::Ok), 2_500);
        assert_eq!((tally.response.len(), tally.response.min(), tally.response.max()), (2, 501, 900));
        assert_eq!((tally.service.min(), tally.service.max()), (400, 800));
        assert_eq!((tally.acked_records, tally.acked_records_in_window), (12, 8));
        assert_eq!(tally.achieved_frames, 1, "sent in time");
    }

    #[test]
    fn refusals_are_counted_by_their_code_and_have_no_latency() {
        let mut tally = tally();
        tally.on_answer(&answer(1_000, 1_000, Status::Busy), 1_100);
        tally.on_answer(&answer(1_000, 1_000, Status::Busy), 1_100);
        tally.on_answer(&answer(1_000, 1_000, Status::StaleHandle), 1_100);
        assert_eq!(tally.refusals().collect::<Vec<_>>(), [(1, 2), (52, 1)]);
        assert_eq!((tally.ok_frames(), tally.busy_frames(), tally.response.len()), (0, 2, 0));
    }

    #[test]
    fn waiting_for_the_cap_is_not_lag_of_the_generator() {
        let mut tally = tally();
        tally.on_sent(SendTimes { intended_ns: 1_000, sent_ns: 1_010 }, 0);
        tally.on_sent(SendTimes { intended_ns: 1_100, sent_ns: 1_903 }, 1_900);
        tally.on_sent(SendTimes { intended_ns: 2_000, sent_ns: 9_000 }, 0);
        assert_eq!((tally.send_lag.len(), tally.send_lag.max()), (2, 10));
        assert_eq!((tally.sent_frames, tally.held_frames), (3, 1));
    }
}
