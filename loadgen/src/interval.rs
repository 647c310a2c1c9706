//! One second of a run as it is handed from the loop to whoever watches: counters, levels and histograms.
//!
//! The loop fills one while others are read, so a handful goes round: nothing is allocated while load runs.

use std::sync::mpsc::{Receiver, Sender, channel};

use hdrhistogram::Histogram;

/// Longest latency that is told apart; longer ones count as this.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Intervals that go round before more have to be made.
const SPARE_INTERVALS: usize = 4;

/// An empty histogram of nanoseconds.
pub(crate) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are good")
}

/// What happened between two moments, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    /// On the monotonic clock.
    pub(crate) start_ns: u64,
    /// The same.
    pub(crate) end_ns: u64,
    /// Phase at its start; behind the last one, while the end is awaited.
    pub(crate) phase: usize,
    /// Records that the plan says should have been sent in it.
    pub(crate) offered_records: f64,
    /// Records sent.
    pub(crate) sent_records: u64,
    /// Records acknowledged.
    pub(crate) acked_records: u64,
    /// Records consumed.
    pub(crate) consumed_records: u64,
    /// Frames refused with `Busy`.
    pub(crate) busy_frames: u64,
    /// Frames refused otherwise.
    pub(crate) refused_frames: u64,
    /// Frames unanswered at its end.
    pub(crate) in_flight_frames: u64,
    /// Records acknowledged and not consumed at its end.
    pub(crate) backlog_records: u64,
}

/// The same with histograms of what ended within it, in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Interval {
    /// In numbers.
    pub(crate) counts: Counts,
    /// From intended to answered, per frame.
    pub(crate) response: Histogram<u64>,
    /// From sent to answered, per frame.
    pub(crate) service: Histogram<u64>,
    /// What the generator was late, per frame.
    pub(crate) send_lag: Histogram<u64>,
    /// From intended to consumed, per record.
    pub(crate) delivery: Histogram<u64>,
}

impl Interval {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self {
            counts: Counts::default(),
            response: latencies(),
            service: latencies(),
            send_lag: latencies(),
            delivery: latencies(),
        }
    }

    fn clear(&mut self) {
        self.counts = Counts::default();
        for histogram in [&mut self.response, &mut self.service, &mut self.send_lag, &mut self.delivery] {
            histogram.reset();
        }
    }
}

/// The loop's end: full intervals out, empty ones in.
pub(crate) struct IntervalPort {
    full: Sender<Box<Interval>>,
    empty: Receiver<Box<Interval>>,
}

/// The watcher's end.
pub(crate) struct IntervalFeed {
    full: Receiver<Box<Interval>>,
    empty: Sender<Box<Interval>>,
}

/// Both ends, with empty intervals on their way to the loop.
pub(crate) fn interval_channel() -> (IntervalPort, IntervalFeed) {
    let ((full_in, full_out), (empty_in, empty_out)) = (channel(), channel());
    for _ in 0..SPARE_INTERVALS {
        empty_in.send(Box::new(Interval::new())).expect("the other end is here");
    }
    (IntervalPort { full: full_in, empty: empty_out }, IntervalFeed { full: full_out, empty: empty_in })
}

impl IntervalPort {
    /// Hands a full interval over, and gives an empty one.
    pub(crate) fn exchange(&self, full: Box<Interval>) -> Box<Interval> {
        // A watcher that has gone wants to know nothing.
        let _ = self.full.send(full);
        self.empty.try_recv().unwrap_or_else(|_| Box::new(Interval::new()))
    }
}

impl IntervalFeed {
    /// The next full interval; none when the run is over.
    pub(crate) fn next(&self) -> Option<Box<Interval>> {
        self.full.recv().ok()
    }

    /// Gives one back that was read.
    pub(crate) fn give_back(&self, mut interval: Box<Interval>) {
        interval.clear();
        // The loop may be over; then nobody needs it.
        let _ = self.empty.send(interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_go_round_and_come_back_empty() {
        let (port, feed) = interval_channel();
        let mut interval = Box::new(Interval::new());
        interval.counts.sent_records = 5;
        interval.response.saturating_record(1_000);
        let mut next = port.exchange(interval);
        let full = feed.next().unwrap();
        assert_eq!((full.counts.sent_records, full.response.len()), (5, 1));
        feed.give_back(full);
        for _ in 0..SPARE_INTERVALS {
            assert_eq!((next.counts.sent_records, next.response.len()), (0, 0));
            next = port.exchange(next);
        }
        next.delivery.saturating_record(3_000_000);
        assert_eq!(next.delivery.len(), 1, "bounds are kept");
        drop(port);
        assert_eq!(std::iter::from_fn(|| feed.next()).count(), SPARE_INTERVALS);
    }
}
