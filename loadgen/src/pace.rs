//! Which frame of which connection is due when: the phases of a run, dealt out over its connections.
//!
//! Phases follow each other without a gap. One of fixed length ends by the clock; one that waits for the backlog ends
//! when that is small enough, or at its time-out. A frame belongs to the phase in which it was due, however late it
//! leaves. Each connection has its own share, so one that is held up does not hold up the others.
//!
//! A connection that has fallen behind does not send all that is overdue at once, which would be a burst that nobody
//! planned: it catches up at twice the planned rate, unless `CatchUp::Burst` asks for the burst.

use std::ops::Range;

use crate::arrivals::{Arrivals, Cursor};

/// Frames that are late by less than this leave at once: what a busy host takes from a thread now and then.
const CATCH_UP_GRACE_NS: u64 = 5_000_000;
/// While a connection catches up and its thread does not run for a while, it makes good so much of that at once.
const CATCH_UP_CREDIT_NS: u64 = 20_000_000;
/// How many times the planned rate a connection that has fallen behind may send.
const CATCH_UP_FACTOR: u64 = 2;

/// What decides when frames are sent.
#[derive(Clone, Debug)]
pub(crate) enum Pace {
    /// Whenever the cap allows, until the phase's end or so many frames.
    Closed {
        /// Frames of all connections together.
        frames_max: u64,
    },
    /// When the plan says, however slow the answers are.
    Open(Arrivals),
    /// Never.
    Silent,
}

/// When a phase ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PhaseEnd {
    /// After so many nanoseconds.
    After(u64),
    /// When a closed phase has sent all its frames.
    Spent {
        /// Then it ends in any case.
        timeout_ns: u64,
    },
    /// When no more than so many records wait to be consumed.
    Backlog {
        /// Records.
        records_max: u64,
        /// Then it ends in any case.
        timeout_ns: u64,
    },
}

impl PhaseEnd {
    /// The longest that a phase may take.
    pub(crate) fn longest_ns(self) -> u64 {
        match self {
            Self::After(length_ns) => length_ns,
            Self::Spent { timeout_ns } | Self::Backlog { timeout_ns, .. } => timeout_ns,
        }
    }
}

/// One phase.
#[derive(Clone, Debug)]
pub(crate) struct PhasePlan {
    /// When frames are sent.
    pub(crate) pace: Pace,
    /// When it ends.
    pub(crate) end: PhaseEnd,
}

impl PhasePlan {
    /// One of this length.
    pub(crate) fn fixed(pace: Pace, length_ns: u64) -> Self {
        Self { pace, end: PhaseEnd::After(length_ns) }
    }
}

/// What a connection does when it has fallen behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CatchUp {
    /// It sends at twice the planned rate until it has caught up.
    Paced,
    /// It sends all that is overdue at once.
    Burst,
}

/// The next frame of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// When it should be sent, by the plan.
    pub(crate) intended_ns: u64,
    /// When it may be sent; later than intended only while the connection catches up.
    pub(crate) release_ns: u64,
    /// Its phase.
    pub(crate) phase: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Not looked up yet.
    Unknown,
    At(u64),
    /// The phase has no more.
    None,
}

struct Share {
    phase: usize,
    cursor: Option<Cursor>,
    next: Next,
    /// When the next frame may leave, while the connection catches up.
    paced_ns: Option<u64>,
    /// What made it fall behind was the cap or a pause, and not the generator.
    was_held: bool,
}

/// Where each connection is in its share of the phases.
pub(crate) struct Schedule {
    phases: Vec<PhasePlan>,
    /// Of the phases whose start is known.
    starts_ns: Vec<u64>,
    /// End of the last phase, once it is known.
    end_ns: Option<u64>,
    shares: Box<[Share]>,
    catch_up: CatchUp,
    batch_records: u64,
    current: usize,
    /// Frames that closed phases have sent in all.
    closed_frames: u64,
    /// Records that the phases before the current one should have sent.
    offered_before: f64,
}

impl Schedule {
    /// Nothing is sent yet; the first phase begins at `start_ns`.
    pub(crate) fn new(phases: Vec<PhasePlan>, connections: usize, batch_records: u64, start_ns: u64) -> Self {
        assert!(!phases.is_empty());
        let share =
            |_| Share { phase: 0, cursor: None, next: Next::Unknown, paced_ns: None, was_held: false };
        let mut schedule = Self {
            phases,
            starts_ns: Vec::new(),
            end_ns: None,
            shares: (0..connections).map(share).collect(),
            catch_up: CatchUp::Paced,
            batch_records,
            current: 0,
            closed_frames: 0,
            offered_before: 0.0,
        };
        for connection in 0..connections {
            schedule.enter(connection, 0);
        }
        schedule.start(start_ns);
        schedule
    }

    /// The same, with another way to catch up.
    pub(crate) fn with_catch_up(self, catch_up: CatchUp) -> Self {
        Self { catch_up, ..self }
    }

    /// Number of the phase that runs, as of the last `on_time`.
    pub(crate) fn current(&self) -> usize {
        self.current
    }

    /// When a phase begins and ends; the end is `u64::MAX` until it is known. `None` before its start is.
    pub(crate) fn window(&self, phase: usize) -> Option<Range<u64>> {
        let start_ns = *self.starts_ns.get(phase)?;
        let next_ns = self.starts_ns.get(phase + 1).copied();
        let is_last = phase + 1 == self.phases.len();
        let end_ns = if is_last { self.end_ns } else { next_ns };
        Some(start_ns..end_ns.unwrap_or(u64::MAX))
    }

    /// The phase in which a moment lies; the first for one before it.
    pub(crate) fn phase_of(&self, time_ns: u64) -> usize {
        self.starts_ns.partition_point(|start_ns| *start_ns <= time_ns).saturating_sub(1)
    }

    /// Takes the time and the backlog; gives whether another phase runs from now on.
    pub(crate) fn on_time(&mut self, now_ns: u64, backlog_records: u64) -> bool {
        let before = self.current;
        while let Some(window) = self.window(self.current) {
            if window.end == u64::MAX && now_ns >= window.start {
                let end = self.phases[self.current].end;
                let is_reached = match end {
                    PhaseEnd::After(_) => false,
                    PhaseEnd::Spent { .. } => self.is_spent(),
                    PhaseEnd::Backlog { records_max, .. } => backlog_records <= records_max,
                };
                if !is_reached && now_ns < window.start.saturating_add(end.longest_ns()) {
                    break;
                }
                self.start(now_ns);
            } else if now_ns < window.end || self.current + 1 == self.phases.len() {
                break;
            } else {
                self.offered_before = self.offered_until(window.end);
                self.current += 1;
            }
        }
        self.current != before
    }

    /// Whether the last phase is over.
    pub(crate) fn is_over(&self, now_ns: u64) -> bool {
        self.end_ns.is_some_and(|end_ns| now_ns >= end_ns)
    }

    /// Whether it is not known yet when the last phase ends.
    pub(crate) fn has_open_end(&self) -> bool {
        self.end_ns.is_none()
    }

    /// End of the last phase, once it is known.
    #[cfg(test)]
    pub(crate) fn end_ns(&self) -> Option<u64> {
        self.end_ns
    }

    /// The next moment at which the running phase may end by the clock.
    pub(crate) fn next_boundary_ns(&self) -> u64 {
        let Some(window) = self.window(self.current) else { return u64::MAX };
        let longest_ns = self.phases[self.current].end.longest_ns();
        window.end.min(window.start.saturating_add(longest_ns))
    }

    /// Ends the whole plan now: what is due later is not sent, and phases that have not begun do not exist.
    pub(crate) fn cut(&mut self, now_ns: u64) {
        let begun = self.starts_ns.partition_point(|start_ns| *start_ns <= now_ns).max(1);
        self.starts_ns.truncate(begun);
        self.phases.truncate(begun);
        self.current = self.current.min(begun - 1);
        self.end_ns = Some(self.end_ns.map_or(now_ns, |end_ns| end_ns.min(now_ns)));
    }

    /// The next frame of a connection; `None` when none is known of. A frame of a closed phase is due now.
    pub(crate) fn next_due(&mut self, connection: usize, now_ns: u64) -> Option<Due> {
        loop {
            let phase = self.shares[connection].phase;
            let window = self.window(phase)?;
            let is_past = match &self.phases[phase].pace {
                Pace::Closed { frames_max } => {
                    if now_ns < window.end && self.closed_frames < *frames_max {
                        let intended_ns = now_ns.max(window.start);
                        return Some(Due { intended_ns, release_ns: intended_ns, phase: phase as u32 });
                    }
                    now_ns >= window.end
                }
                Pace::Silent => now_ns >= window.end,
                Pace::Open(plan) => {
                    let share = &mut self.shares[connection];
                    if share.next == Next::Unknown {
                        let due_ns = share.cursor.as_mut().and_then(|cursor| cursor.next_due_ns(plan));
                        share.next = due_ns.map_or(Next::None, |due_ns| Next::At(window.start + due_ns));
                    }
                    match share.next {
                        Next::At(intended_ns) if intended_ns < window.end => {
                            let release_ns = share.paced_ns.unwrap_or(intended_ns);
                            return Some(Due { intended_ns, release_ns, phase: phase as u32 });
                        }
                        // The next phase's first frame may be due before this one's end is reached by the clock.
                        _ => window.end != u64::MAX,
                    }
                }
            };
            if !is_past || phase + 1 >= self.phases.len() {
                return None;
            }
            self.enter(connection, phase + 1);
        }
    }

    /// A connection has sent its next frame. `was_held`: the cap or a pause did not let it leave in time.
    pub(crate) fn on_sent(&mut self, connection: usize, now_ns: u64, was_held: bool) {
        let share = &mut self.shares[connection];
        let Next::At(sent_ns) = share.next else {
            self.closed_frames += 1;
            return;
        };
        share.next = Next::Unknown;
        let paced_ns = share.paced_ns.take();
        let Some(due) = self.next_due(connection, now_ns) else { return };
        if self.catch_up == CatchUp::Burst || now_ns <= due.intended_ns.saturating_add(CATCH_UP_GRACE_NS) {
            return;
        }
        let share = &mut self.shares[connection];
        if paced_ns.is_none() {
            share.was_held = was_held;
        }
        let anchor_ns =
            paced_ns.unwrap_or(now_ns - CATCH_UP_GRACE_NS).max(now_ns.saturating_sub(CATCH_UP_CREDIT_NS));
        let step_ns = due.intended_ns.saturating_sub(sent_ns) / CATCH_UP_FACTOR;
        share.paced_ns = Some(anchor_ns + step_ns);
    }

    /// Whether the connection catches up because it was held by the cap or a pause.
    pub(crate) fn catches_up_from_hold(&self, connection: usize) -> bool {
        let share = &self.shares[connection];
        share.paced_ns.is_some() && share.was_held
    }

    /// Whether a closed phase has sent all that it may, and the whole run ends with it.
    pub(crate) fn ends_spent(&self) -> bool {
        self.is_spent() && matches!(self.phases[self.current].end, PhaseEnd::After(_))
    }

    /// Whether a closed phase has sent all that it may.
    pub(crate) fn is_spent(&self) -> bool {
        matches!(self.phases[self.current].pace, Pace::Closed { frames_max } if self.closed_frames >= frames_max)
    }

    /// Records that should have been sent before a moment of the current phase, or before its end, by the plan alone.
    /// What closed phases send is not in it.
    pub(crate) fn offered_until(&self, time_ns: u64) -> f64 {
        let Some(window) = self.window(self.current) else { return self.offered_before };
        let Pace::Open(plan) = &self.phases[self.current].pace else { return self.offered_before };
        self.offered_before + plan.mass_until(time_ns.min(window.end).saturating_sub(window.start))
    }

    /// Frames by phase that were due before the end and not sent. Nothing can be sent afterwards.
    pub(crate) fn into_unsent_frames(mut self) -> Vec<u64> {
        let mut unsent = vec![0; self.phases.len()];
        for connection in 0..self.shares.len() {
            while let Some(due) = self.next_due(connection, u64::MAX) {
                unsent[due.phase as usize] += 1;
                self.shares[connection].next = Next::Unknown;
            }
        }
        unsent
    }

    /// The next phase without a start begins at this moment; all that follow by the clock have their starts with it.
    fn start(&mut self, mut start_ns: u64) {
        while self.starts_ns.len() < self.phases.len() {
            let phase = self.starts_ns.len();
            self.starts_ns.push(start_ns);
            let PhaseEnd::After(length_ns) = self.phases[phase].end else { return };
            start_ns = start_ns.saturating_add(length_ns);
        }
        self.end_ns = Some(start_ns);
    }

    fn enter(&mut self, connection: usize, phase: usize) {
        let connections = self.shares.len();
        let cursor = match &self.phases[phase].pace {
            Pace::Open(plan) => Some(Cursor::new(plan, connection, connections, self.batch_records)),
            Pace::Closed { .. } | Pace::Silent => None,
        };
        let share = &mut self.shares[connection];
        share.phase = phase;
        share.cursor = cursor;
        share.next = Next::Unknown;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn open(per_s: f64, length_ns: u64) -> Pace {
        Pace::Open(Arrivals::constant(per_s, length_ns))
    }

    fn schedule(phases: Vec<PhasePlan>, connections: usize) -> Schedule {
        Schedule::new(phases, connections, 1, 500)
    }

    /// Sends all frames when they are due; gives their intended times and phases.
    fn send_all(schedule: &mut Schedule, connection: usize) -> Vec<(u64, u32)> {
        let mut sent = Vec::new();
        while let Some(due) = schedule.next_due(connection, 0) {
            assert_eq!(due.release_ns, due.intended_ns);
            sent.push((due.intended_ns, due.phase));
            schedule.on_sent(connection, due.intended_ns, false);
        }
        sent
    }

    #[test]
    fn shares_make_up_the_plan() {
        let mut schedule = schedule(vec![PhasePlan::fixed(open(1_000.0, 10 * MS), 10 * MS)], 3);
        let mut due: Vec<u64> =
            (0..3).flat_map(|connection| send_all(&mut schedule, connection)).map(|(due, _)| due).collect();
        due.sort_unstable();
        assert_eq!(due, (0..10).map(|number| 500 + number * MS).collect::<Vec<_>>());
        assert_eq!(schedule.into_unsent_frames(), [0]);
    }

    #[test]
    fn phases_follow_each_other_and_their_frames_know_them() {
        let phases = vec![
            PhasePlan::fixed(open(1_000.0, 3 * MS), 3 * MS),
            PhasePlan::fixed(Pace::Silent, 5 * MS),
            PhasePlan::fixed(open(2_000.0, 2 * MS), 2 * MS),
        ];
        let mut schedule = schedule(phases, 1);
        assert_eq!(send_all(&mut schedule, 0), [(500, 0), (500 + MS, 0), (500 + 2 * MS, 0)]);
        assert!(!schedule.on_time(500 + 3 * MS - 1, 0));
        assert!(schedule.on_time(500 + 3 * MS, 0));
        assert_eq!(schedule.current(), 1);
        assert!(schedule.on_time(500 + 8 * MS, 0));
        assert_eq!(schedule.next_due(0, 500 + 8 * MS).unwrap().phase, 2);
        assert_eq!(schedule.window(2), Some(500 + 8 * MS..500 + 10 * MS));
        assert_eq!((schedule.offered_until(500 + 9 * MS), schedule.phase_of(500 + 4 * MS)), (5.0, 1));
        assert!(!schedule.is_over(500 + 10 * MS - 1));
        assert!(schedule.is_over(500 + 10 * MS));
    }

    #[test]
    fn waiting_phase_ends_with_the_backlog_or_its_time_and_the_next_begins_there() {
        let drain = |timeout_ns| PhasePlan {
            pace: open(1_000.0, 1_000 * MS),
            end: PhaseEnd::Backlog { records_max: 10, timeout_ns },
        };
        let recovery = PhasePlan::fixed(open(1_000.0, 5 * MS), 5 * MS);
        let mut schedule = schedule(vec![drain(100 * MS), recovery.clone()], 1);
        assert_eq!(schedule.end_ns(), None);
        schedule.next_due(0, 0);
        (0..5).for_each(|number| schedule.on_sent(0, 500 + number * MS, false));
        assert!(!schedule.on_time(5 * MS, 11));
        assert!(schedule.on_time(5 * MS, 10));
        assert_eq!(schedule.window(0), Some(500..5 * MS));
        assert_eq!(schedule.end_ns(), Some(10 * MS));
        assert_eq!(
            schedule.next_due(0, 5 * MS).unwrap(),
            Due { intended_ns: 5 * MS, release_ns: 5 * MS, phase: 1 }
        );
        let mut late = super::Schedule::new(vec![drain(100 * MS), recovery], 1, 1, 0);
        assert!(!late.on_time(100 * MS - 1, 99));
        assert!(late.on_time(100 * MS, 99));
    }

    #[test]
    fn late_frames_keep_their_times_and_phase() {
        let phases = vec![
            PhasePlan::fixed(open(1_000.0, 3 * MS), 3 * MS),
            PhasePlan::fixed(open(1_000.0, 3 * MS), 3 * MS),
        ];
        let mut schedule = schedule(phases, 1).with_catch_up(CatchUp::Burst);
        schedule.on_time(5 * MS, 0);
        assert_eq!(schedule.current(), 1);
        for number in 0..6 {
            let due = schedule.next_due(0, 5 * MS).unwrap();
            assert_eq!((due.intended_ns, due.phase), (500 + number * MS, (number / 3) as u32));
            assert_eq!(due.release_ns, due.intended_ns, "all at once, as asked for");
            schedule.on_sent(0, 5 * MS, false);
        }
        assert_eq!(schedule.next_due(0, 5 * MS), None);
    }

    #[test]
    fn catching_up_is_no_burst() {
        let mut schedule = schedule(vec![PhasePlan::fixed(open(1_000.0, 1_000 * MS), 1_000 * MS)], 1);
        // Nothing could be sent for 200 ms; from then on everything is, as soon as it may.
        let (mut now_ns, mut sent) = (200 * MS + 500, Vec::new());
        while let Some(due) = schedule.next_due(0, now_ns) {
            now_ns = now_ns.max(due.release_ns);
            sent.push((due.intended_ns, now_ns));
            schedule.on_sent(0, now_ns, true);
        }
        assert_eq!(sent.len(), 1_000);
        let within = |from_ms: u64, to_ms: u64| {
            sent.iter().filter(|(_, at_ns)| (from_ms * MS + 501..=to_ms * MS + 501).contains(at_ns)).count()
        };
        assert!((200..=212).contains(&within(200, 300)), "twice the planned rate, and the grace at once");
        assert!((190..=202).contains(&within(300, 400)));
        assert_eq!(within(500, 600), 100, "the planned rate again");
        assert!(sent.iter().all(|(intended_ns, at_ns)| intended_ns <= at_ns));
        let late = sent.iter().filter(|(intended_ns, at_ns)| at_ns - intended_ns > MS).count();
        assert!((380..=400).contains(&late), "{late}: the stall's frames and those behind them");
    }

    #[test]
    fn thread_that_runs_only_now_and_then_keeps_the_rate() {
        let mut schedule = schedule(vec![PhasePlan::fixed(open(500.0, 2_000 * MS), 2_000 * MS)], 1);
        // It is let run every 15 ms, and has not been for the first 100.
        let (mut now_ns, mut lates) = (100 * MS, Vec::new());
        while now_ns < 2_000 * MS {
            while let Some(due) = schedule.next_due(0, now_ns).filter(|due| due.release_ns <= now_ns) {
                lates.push(now_ns - due.intended_ns);
                schedule.on_sent(0, now_ns, false);
            }
            now_ns += 15 * MS;
        }
        assert!(lates.len() >= 990, "{}", lates.len());
        assert!(lates[500..].iter().all(|late_ns| *late_ns <= 16 * MS), "it has caught up for good");
    }

    #[test]
    fn closed_loop_ends_with_its_frames_or_its_time() {
        let closed = PhasePlan::fixed(Pace::Closed { frames_max: 2 }, 900);
        let mut schedule = Schedule::new(vec![closed], 2, 1, 100);
        let due = |schedule: &mut Schedule, now_ns| schedule.next_due(1, now_ns).map(|due| due.intended_ns);
        assert_eq!(due(&mut schedule, 200), Some(200));
        assert_eq!(due(&mut schedule, 50), Some(100));
        assert_eq!(due(&mut schedule, 1_000), None);
        schedule.on_sent(0, 200, false);
        assert!(!schedule.is_spent());
        schedule.on_sent(1, 200, false);
        assert!(schedule.is_spent());
        assert_eq!(due(&mut schedule, 200), None);
    }

    #[test]
    fn cut_ends_all_and_what_was_due_before_is_unsent() {
        let phases = vec![
            PhasePlan::fixed(open(1_000.0, 10 * MS), 10 * MS),
            PhasePlan::fixed(open(1_000.0, 10 * MS), 10 * MS),
        ];
        let mut schedule = schedule(phases, 2);
        schedule.next_due(0, 0);
        schedule.on_sent(0, 500, false);
        schedule.cut(4 * MS);
        assert!(schedule.is_over(4 * MS));
        assert_eq!(schedule.window(0), Some(500..4 * MS));
        // 0 to 3 ms, less one.
        assert_eq!(schedule.into_unsent_frames(), [3]);
    }
}
