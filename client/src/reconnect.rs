//! How long to wait before the next try to connect: twice as long each time, within bounds, and never all at once.
//!
//! Pure: the caller gives the seed, so that a run can be replayed.

use crate::limits::{RECONNECT_US_MAX, RECONNECT_US_MIN};

/// Exponential back-off with jitter: each wait lies between half of its step and the whole step.
#[derive(Clone, Debug)]
pub struct Backoff {
    random: u64,
    step_us: u64,
}

impl Backoff {
    /// Starts at `RECONNECT_US_MIN`. Clients with different seeds wait differently long.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: seed, step_us: RECONNECT_US_MIN }
    }

    /// The next wait, in microseconds.
    pub fn next_delay_us(&mut self) -> u64 {
        let half = self.step_us / 2;
        let delay_us = half + self.next_random() % (self.step_us - half + 1);
        self.step_us = (self.step_us * 2).min(RECONNECT_US_MAX);
        delay_us
    }

    /// A connection proved good: the next wait is short again.
    pub fn reset(&mut self) {
        self.step_us = RECONNECT_US_MIN;
    }

    /// SplitMix64, by Sebastiano Vigna, in the public domain.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_bounds_and_start_again_after_a_reset() {
        let mut backoff = Backoff::new(7);
        let mut step_us = RECONNECT_US_MIN;
        for _ in 0..20 {
            let delay_us = backoff.next_delay_us();
            assert!((step_us / 2..=step_us).contains(&delay_us), "{delay_us} of {step_us}");
            step_us = (step_us * 2).min(RECONNECT_US_MAX);
        }
        backoff.reset();
        assert!(backoff.next_delay_us() <= RECONNECT_US_MIN);
    }

    #[test]
    fn seeds_spread_and_repeat() {
        let delays = |seed: u64| Backoff::new(seed).into_delays(8);
        assert_eq!(delays(1), delays(1));
        assert_ne!(delays(1), delays(2));
    }

    impl Backoff {
        fn into_delays(mut self, count: usize) -> Vec<u64> {
            (0..count).map(|_| self.next_delay_us()).collect()
        }
    }
}
