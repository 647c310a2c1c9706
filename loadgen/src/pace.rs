//! Which frame of which connection is due when: the plan dealt out over the connections, or as fast as answers come.
//!
//! In an open loop connection `c` of `C` sends the frames `c`, `c + C`, `c + 2C`, ... of the plan, so each has an even
//! share, shifted in phase, and one that is held up does not hold up the others. In a closed loop every connection
//! sends whenever its cap allows.

use std::ops::Range;

use crate::plan::Plan;

/// What decides when frames are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Whenever the cap allows, until the end or so many frames.
    Closed {
        /// Frames of all connections together.
        frames_max: u64,
    },
    /// When the plan says, however slow the answers are.
    Open(Plan),
}

/// Where each connection is in its share.
pub(crate) struct Schedule {
    pace: Pace,
    period: Range<u64>,
    shares: Box<[Share]>,
    sent_frames: u64,
}

#[derive(Clone, Copy)]
struct Share {
    /// Number of the next frame in the plan.
    next_number: u64,
    /// When that is due; `None` behind the last.
    next_due_ns: Option<u64>,
}

impl Schedule {
    /// Nothing is sent yet. The plan begins with `period`, in nanoseconds; a closed loop also ends with it.
    pub(crate) fn new(pace: Pace, connections: usize, period: Range<u64>) -> Self {
        let share = |number| Share { next_number: number, next_due_ns: due_ns(pace, period.start, number) };
        let shares = (0..connections as u64).map(share).collect();
        Self { pace, period, shares, sent_frames: 0 }
    }

    /// When the next frame of a connection should be sent, the past and `now_ns` included; `None` when it has sent
    /// its last.
    pub(crate) fn next_due_ns(&self, connection: usize, now_ns: u64) -> Option<u64> {
        match self.pace {
            Pace::Open(_) => self.shares[connection].next_due_ns,
            Pace::Closed { frames_max } => {
                let is_over = now_ns >= self.period.end || self.sent_frames >= frames_max;
                (!is_over).then(|| now_ns.max(self.period.start))
            }
        }
    }

    /// A connection has sent its next frame.
    pub(crate) fn on_sent(&mut self, connection: usize) {
        self.sent_frames += 1;
        let stride = self.shares.len() as u64;
        let share = &mut self.shares[connection];
        share.next_number += stride;
        share.next_due_ns = due_ns(self.pace, self.period.start, share.next_number);
    }

    /// Whether a closed loop has sent all that it may.
    pub(crate) fn is_spent(&self) -> bool {
        matches!(self.pace, Pace::Closed { frames_max } if self.sent_frames >= frames_max)
    }
}

fn due_ns(pace: Pace, start_ns: u64, number: u64) -> Option<u64> {
    let Pace::Open(plan) = pace else { return None };
    (number < plan.frame_count()).then(|| start_ns + plan.intended_ns(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Rate;

    fn open(records_per_s: u64, duration_ns: u64) -> Pace {
        Pace::Open(Plan::constant(Rate { records_per_s, batch_records: 1 }, duration_ns))
    }

    #[test]
    fn shares_make_up_the_plan() {
        let mut schedule = Schedule::new(open(1_000, 10_000_000), 3, 500..u64::MAX);
        let mut due = Vec::new();
        for connection in 0..3 {
            while let Some(due_ns) = schedule.next_due_ns(connection, 0) {
                due.push(due_ns);
                schedule.on_sent(connection);
            }
        }
        due.sort_unstable();
        assert_eq!(due, (0..10).map(|number| 500 + number * 1_000_000).collect::<Vec<_>>());
    }

    #[test]
    fn late_frames_keep_their_times() {
        let mut schedule = Schedule::new(open(1_000, 10_000_000), 1, 0..u64::MAX);
        schedule.on_sent(0);
        assert_eq!(schedule.next_due_ns(0, 9_999_999), Some(1_000_000));
    }

    #[test]
    fn closed_loop_ends_with_its_frames_or_its_time() {
        let mut schedule = Schedule::new(Pace::Closed { frames_max: 2 }, 2, 100..1_000);
        assert_eq!(schedule.next_due_ns(1, 200), Some(200));
        assert_eq!(schedule.next_due_ns(1, 50), Some(100));
        assert_eq!(schedule.next_due_ns(1, 1_000), None);
        schedule.on_sent(0);
        assert!(!schedule.is_spent());
        schedule.on_sent(1);
        assert!(schedule.is_spent());
        assert_eq!(schedule.next_due_ns(0, 200), None);
    }
}
