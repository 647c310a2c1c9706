//! When each frame of an open loop is due: a pure function of its number.
//!
//! The plan knows neither answers nor lateness. A frame that goes out late keeps its intended time, and latency is
//! measured from that, so a stall of the broker (or of this host) is seen by every frame that should have been
//! sent during it, and not only by the one that met it.
//!
//! Invariant: `intended_ns` never decreases, and exactly `frame_count` frames are due before `duration_ns`.

const NS_PER_S: u64 = 1_000_000_000;

/// What a plan is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// Records per second over all connections, at least 1.
    pub(crate) records_per_s: u64,
    /// Records in one frame, at least 1; a frame is due when its first record is.
    pub(crate) batch_records: u64,
}

/// A constant rate for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    rate: Rate,
    duration_ns: u64,
}

impl Plan {
    /// Frames at `rate` from 0 until `duration_ns`.
    pub(crate) fn constant(rate: Rate, duration_ns: u64) -> Self {
        assert!(rate.records_per_s > 0);
        assert!(rate.batch_records > 0);
        Self { rate, duration_ns }
    }

    /// Frames that are due before the end.
    pub(crate) fn frame_count(&self) -> u64 {
        self.frames_before(self.duration_ns)
    }

    /// Frames that are due before `time_ns`, at most those of the whole plan.
    pub(crate) fn frames_before(&self, time_ns: u64) -> u64 {
        let time_ns = u128::from(time_ns.min(self.duration_ns));
        let frame_ns_by_rate = u128::from(self.rate.batch_records) * u128::from(NS_PER_S);
        (time_ns * u128::from(self.rate.records_per_s)).div_ceil(frame_ns_by_rate) as u64
    }

    /// When frame `number` (from 0) is due, in nanoseconds since the start. Rounded down, without drift.
    pub(crate) fn intended_ns(&self, number: u64) -> u64 {
        let Some(ns_by_rate) = number.checked_mul(self.rate.batch_records * NS_PER_S) else {
            let records = u128::from(number) * u128::from(self.rate.batch_records);
            return (records * u128::from(NS_PER_S) / u128::from(self.rate.records_per_s)) as u64;
        };
        // The usual case, without a division of 128 bits.
        ns_by_rate / self.rate.records_per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(records_per_s: u64, batch_records: u64, duration_ns: u64) -> Plan {
        Plan::constant(Rate { records_per_s, batch_records }, duration_ns)
    }

    #[test]
    fn integral_of_the_rate_is_the_count() {
        for rate in [1, 3, 7, 1_000, 1_001, 999_983, 1_000_000, 13_000_000] {
            for seconds in [1, 2, 10, 3_600] {
                assert_eq!(plan(rate, 1, seconds * NS_PER_S).frame_count(), rate * seconds);
            }
        }
        assert_eq!(plan(1_000, 64, 10 * NS_PER_S).frame_count(), 157);
        assert_eq!(plan(3, 1, NS_PER_S / 2).frame_count(), 2);
    }

    #[test]
    fn exactly_the_counted_frames_are_due_before_the_end() {
        for (rate, batch, duration) in
            [(1_000, 1, 999_999_999), (999_983, 7, 1_234_567_890), (7, 3, 5_000_000_001)]
        {
            let plan = plan(rate, batch, duration);
            let count = plan.frame_count();
            assert!(plan.intended_ns(count - 1) < duration);
            assert!(plan.intended_ns(count) >= duration);
        }
    }

    #[test]
    fn frames_are_evenly_spaced_without_drift() {
        let plan = plan(999_983, 1, NS_PER_S);
        let gaps = (0..100_000).map(|number| plan.intended_ns(number + 1) - plan.intended_ns(number));
        assert!(gaps.into_iter().all(|gap| gap == 1_000 || gap == 1_001));
        assert_eq!(plan.intended_ns(999_983 * 50), 50 * NS_PER_S);
    }

    #[test]
    fn numbers_beyond_64_bits_of_product_are_exact() {
        let plan = plan(1_000_000, 64, u64::MAX);
        let number = 1_u64 << 40;
        assert!(number.checked_mul(64 * NS_PER_S).is_none());
        assert_eq!(plan.intended_ns(number), number * 64 * 1_000);
    }

    #[test]
    fn schedule_does_not_depend_on_who_asks_when() {
        let plan = plan(1_000, 1, 10 * NS_PER_S);
        let forwards: Vec<u64> = (0..10_000).map(|number| plan.intended_ns(number)).collect();
        let backwards: Vec<u64> = (0..10_000).rev().map(|number| plan.intended_ns(number)).collect();
        assert!(forwards.iter().eq(backwards.iter().rev()));
    }
}
