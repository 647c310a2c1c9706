//! What arithmetic says before a run: records as a fluid that flows in at the plan's rate and out at the consumer's.
//!
//! With a base rate `Rb`, a spike of `Rp` for `Ts` and a consumer of `C` this gives the known formulas, backlog
//! `(Rp - C) Ts`, drain `backlog / (C - Rb)`, longest wait `backlog / C`; and it holds for any other shape as well.
//! Pure: made from the same phases that the run is made from.

use crate::pace::{Pace, PhaseEnd};
use crate::setup::PhaseSetup;

/// Distance of samples.
const STEP_NS: u64 = 1_000_000;
/// Most samples; longer runs have longer steps.
const SAMPLES_MAX: u64 = 400_000;

/// One phase of the prediction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct FluidPhase {
    /// Since the start of the run.
    pub(crate) start_ns: u64,
    /// The same.
    pub(crate) end_ns: u64,
    /// Most records that wait.
    pub(crate) backlog_max: f64,
    /// Longest wait of a record that comes in it, if it is consumed before the prediction ends.
    pub(crate) wait_max_s: f64,
}

/// The prediction.
#[derive(Clone, Debug)]
pub(crate) struct Fluid {
    /// By phase.
    pub(crate) phases: Vec<FluidPhase>,
    step_ns: u64,
    /// Records that wait, at each step.
    backlog: Vec<f64>,
    /// Records that came in until each step.
    came: Vec<f64>,
}

impl Fluid {
    /// The prediction for these phases; none if one of them sends as fast as it can, or its consumer has no limit
    /// in a way that nothing could be said of.
    pub(crate) fn predict(phases: &[PhaseSetup]) -> Option<Self> {
        if phases.iter().any(|phase| matches!(phase.plan.pace, Pace::Closed { .. })) {
            return None;
        }
        let longest_ns: u64 = phases.iter().map(|phase| phase.plan.end.longest_ns()).sum();
        let step_ns = STEP_NS.max(longest_ns / SAMPLES_MAX);
        let mut fluid = Self { phases: Vec::new(), step_ns, backlog: vec![0.0], came: vec![0.0] };
        for phase in phases {
            fluid.run(phase);
        }
        fluid.set_waits();
        Some(fluid)
    }

    /// Records that wait at a moment of the run.
    pub(crate) fn backlog_at(&self, time_ns: u64) -> f64 {
        let step = (time_ns / self.step_ns) as usize;
        self.backlog.get(step).or(self.backlog.last()).copied().unwrap_or_default()
    }

    fn now_ns(&self) -> u64 {
        (self.backlog.len() as u64 - 1) * self.step_ns
    }

    fn run(&mut self, phase: &PhaseSetup) {
        let start_ns = self.now_ns();
        let before = self.came.last().copied().unwrap_or_default();
        let step_s = self.step_ns as f64 / 1e9;
        let mut backlog = self.backlog.last().copied().unwrap_or_default();
        let mut backlog_max = backlog;
        let mut came_before = 0.0;
        loop {
            let inside_ns = self.now_ns() - start_ns;
            let is_over = match phase.plan.end {
                PhaseEnd::After(length_ns) | PhaseEnd::Spent { timeout_ns: length_ns } => {
                    inside_ns >= length_ns
                }
                PhaseEnd::Backlog { records_max, timeout_ns } => {
                    backlog <= records_max as f64 || inside_ns >= timeout_ns
                }
            };
            if is_over {
                break;
            }
            let came = match &phase.plan.pace {
                Pace::Open(plan) => plan.mass_until(inside_ns + self.step_ns),
                Pace::Closed { .. } | Pace::Silent => 0.0,
            };
            let flows_out = phase.consumer_per_s.map_or(f64::INFINITY, |per_s| per_s * step_s);
            backlog = (backlog + came - came_before - flows_out).max(0.0);
            backlog_max = backlog_max.max(backlog);
            came_before = came;
            self.backlog.push(backlog);
            self.came.push(before + came);
        }
        self.phases.push(FluidPhase { start_ns, end_ns: self.now_ns(), backlog_max, wait_max_s: 0.0 });
    }

    /// A record that came when so many had come waits until as many have gone.
    fn set_waits(&mut self) {
        let gone: Vec<f64> =
            self.came.iter().zip(&self.backlog).map(|(came, backlog)| came - backlog).collect();
        let mut behind = 0;
        for phase in &mut self.phases {
            let steps = phase.start_ns / self.step_ns..phase.end_ns / self.step_ns;
            let mut longest = 0;
            for step in steps {
                let step = step as usize;
                // Half a record is a rounding error of sums.
                while behind < gone.len() && gone[behind] + 0.5 < self.came[step] {
                    behind += 1;
                }
                if behind < gone.len() {
                    longest = longest.max(behind.saturating_sub(step));
                }
            }
            phase.wait_max_s = longest as f64 * self.step_ns as f64 / 1e9;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrivals::Arrivals;
    use crate::pace::PhasePlan;

    const SECOND: u64 = 1_000_000_000;

    fn phase(per_s: f64, end: PhaseEnd, consumer_per_s: f64) -> PhaseSetup {
        let pace = Pace::Open(Arrivals::constant(per_s, end.longest_ns()));
        PhaseSetup { plan: PhasePlan { pace, end }, consumer_per_s: Some(consumer_per_s) }
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() <= expected * 0.002, "{found}, not {expected}");
    }

    #[test]
    fn spike_gives_the_known_formulas() {
        // The example of the notes: 20 k/s, 200 k/s for 10 s, drained at 50 k/s.
        let threshold = 1_500;
        let fluid = Fluid::predict(&[
            phase(20_000.0, PhaseEnd::After(5 * SECOND), 50_000.0),
            phase(200_000.0, PhaseEnd::After(10 * SECOND), 50_000.0),
            phase(20_000.0, PhaseEnd::Backlog { records_max: threshold, timeout_ns: 200 * SECOND }, 50_000.0),
            phase(20_000.0, PhaseEnd::After(5 * SECOND), 50_000.0),
        ])
        .unwrap();
        near(fluid.phases[1].backlog_max, 1_500_000.0);
        near(fluid.phases[1].wait_max_s, 30.0);
        let drain_s = (fluid.phases[2].end_ns - fluid.phases[2].start_ns) as f64 / 1e9;
        near(drain_s, (1_500_000.0 - 1_500.0) / 30_000.0);
        near(fluid.backlog_at(10 * SECOND), 750_000.0);
        assert_eq!(fluid.phases[0].backlog_max, 0.0);
        assert!(fluid.phases[3].backlog_max <= 1_500.0);
    }

    #[test]
    fn consumer_that_stands_still_lets_all_wait() {
        let fluid = Fluid::predict(&[
            phase(1_000.0, PhaseEnd::After(2 * SECOND), 0.0),
            phase(0.0, PhaseEnd::Backlog { records_max: 0, timeout_ns: 10 * SECOND }, 500.0),
        ])
        .unwrap();
        near(fluid.phases[0].backlog_max, 2_000.0);
        near((fluid.phases[1].end_ns - fluid.phases[1].start_ns) as f64 / 1e9, 4.0);
        near(fluid.phases[0].wait_max_s, 4.0);
    }

    #[test]
    fn consumer_without_a_limit_leaves_nothing_and_a_closed_loop_cannot_be_predicted() {
        let mut unlimited = phase(1_000.0, PhaseEnd::After(SECOND), 1.0);
        unlimited.consumer_per_s = None;
        assert_eq!(Fluid::predict(&[unlimited]).unwrap().phases[0].backlog_max, 0.0);
        let closed = PhasePlan::fixed(Pace::Closed { frames_max: 1 }, SECOND);
        assert!(Fluid::predict(&[closed.into()]).is_none());
    }
}
