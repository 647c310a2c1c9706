//! How a core waits: parked in the kernel, spinning, or spinning only where it pays.
//!
//! `adaptive` spins while a client's answer waits for a commit, at most `COMMIT_SPIN_NS_MAX` for each, and for
//! `IDLE_SPIN_NS` after the last completion; else it parks. Now and then it parks through a few commits to compare:
//! where spinning makes commits slower (somebody else needs the CPU), it parks until the next comparison.

use crate::io::Wait;

/// Longest spin for one commit.
pub const COMMIT_SPIN_NS_MAX: u64 = 1_000_000;
/// Spin after the last completion: the next request often follows at once.
pub const IDLE_SPIN_NS: u64 = 50_000;
/// Commits between two comparisons.
const COMMITS_PER_PERIOD: u64 = 65_536;
/// Commits of each kind in a comparison; the first ones of a kind are not counted.
const COMMITS_PER_SAMPLE: u64 = 64;
const COMMITS_TO_SETTLE: u64 = 8;
/// A longer commit counts as this long: one stall of the disk must not decide.
const OBSERVATION_NS_MAX: u64 = 1_000_000;

/// The operator's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WaitingMode {
    /// Spin where it pays.
    Adaptive,
    /// Always sleep in the kernel.
    Park,
    /// Never sleep.
    Busy,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    commits: u64,
    nanoseconds: u64,
}

impl Sample {
    fn mean_ns(self) -> u64 {
        self.nanoseconds / self.commits.max(1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    Spinning,
    Parked,
    /// Until the next comparison, whichever was faster.
    Settled {
        spins: bool,
    },
}

/// Decides for every turn how long to spin.
#[derive(Debug)]
pub struct WaitPolicy {
    mode: WaitingMode,
    trial: Trial,
    commits_in_trial: u64,
    spinning: Sample,
    parked: Sample,
    last_completion_ns: u64,
}

impl WaitPolicy {
    /// A policy that begins by spinning, if the mode allows it.
    #[must_use]
    pub fn new(mode: WaitingMode) -> Self {
        Self {
            mode,
            trial: Trial::Settled { spins: true },
            commits_in_trial: 0,
            spinning: Sample::default(),
            parked: Sample::default(),
            last_completion_ns: 0,
        }
    }

    /// Until when to spin before sleeping; 0 for not at all.
    #[must_use]
    pub fn spin_until_ns(&self, wait: Wait) -> u64 {
        match self.mode {
            WaitingMode::Busy => u64::MAX,
            WaitingMode::Park => 0,
            WaitingMode::Adaptive if !self.spins() => 0,
            WaitingMode::Adaptive => {
                let commit = wait.commit_since_ns.map_or(0, |since| since + COMMIT_SPIN_NS_MAX);
                commit.max(self.last_completion_ns + IDLE_SPIN_NS)
            }
        }
    }

    /// Completions came in this turn.
    pub fn on_completions(&mut self, now_ns: u64) {
        self.last_completion_ns = now_ns;
    }

    /// Blocks became durable in this turn: how many, and how long they took in all.
    pub fn on_commits(&mut self, commits: u64, nanoseconds: u64) {
        if self.mode != WaitingMode::Adaptive {
            return;
        }
        self.commits_in_trial += commits;
        let is_settled = self.commits_in_trial > COMMITS_TO_SETTLE;
        let sample = match self.trial {
            Trial::Spinning => &mut self.spinning,
            Trial::Parked => &mut self.parked,
            Trial::Settled { .. } => return self.end_period(),
        };
        if is_settled {
            sample.commits += commits;
            sample.nanoseconds += nanoseconds.min(commits * OBSERVATION_NS_MAX);
        }
        if sample.commits >= COMMITS_PER_SAMPLE {
            self.end_sample();
        }
    }

    fn spins(&self) -> bool {
        matches!(self.trial, Trial::Spinning | Trial::Settled { spins: true })
    }

    fn end_period(&mut self) {
        if self.commits_in_trial >= COMMITS_PER_PERIOD {
            self.commits_in_trial = 0;
            (self.spinning, self.parked) = (Sample::default(), Sample::default());
            self.trial = Trial::Spinning;
        }
    }

    fn end_sample(&mut self) {
        self.commits_in_trial = 0;
        self.trial = match self.trial {
            Trial::Spinning => Trial::Parked,
            Trial::Parked | Trial::Settled { .. } => {
                // Parking must be clearly faster: it costs the next request its wake-up.
                Trial::Settled { spins: self.spinning.mean_ns() * 9 <= self.parked.mean_ns() * 10 }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(policy: &mut WaitPolicy, spinning_ns: u64, parked_ns: u64) -> u64 {
        let mut spun = 0;
        for _ in 0..3 * COMMITS_PER_PERIOD {
            let spins = policy.spin_until_ns(Wait { commit_since_ns: Some(5), ..Wait::default() }) > 0;
            spun += u64::from(spins);
            policy.on_commits(1, if spins { spinning_ns } else { parked_ns });
        }
        spun
    }

    #[test]
    fn it_spins_where_spinning_is_faster() {
        let mut policy = WaitPolicy::new(WaitingMode::Adaptive);
        assert!(run(&mut policy, 150_000, 250_000) > 2 * COMMITS_PER_PERIOD);
    }

    #[test]
    fn it_parks_where_spinning_is_slower() {
        let mut policy = WaitPolicy::new(WaitingMode::Adaptive);
        assert!(run(&mut policy, 900_000, 250_000) < 2 * COMMITS_PER_PERIOD);
    }

    #[test]
    fn a_spin_has_an_end() {
        let mut policy = WaitPolicy::new(WaitingMode::Adaptive);
        policy.on_completions(7_000);
        assert_eq!(policy.spin_until_ns(Wait::default()), 7_000 + IDLE_SPIN_NS);
        let waiting = Wait { commit_since_ns: Some(9_000), ..Wait::default() };
        assert_eq!(policy.spin_until_ns(waiting), 9_000 + COMMIT_SPIN_NS_MAX);
        assert_eq!(WaitPolicy::new(WaitingMode::Park).spin_until_ns(waiting), 0);
    }
}
