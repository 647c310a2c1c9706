//! Percentiles of a histogram, and only those that its samples can tell.
//!
//! A percentile is given where at least ten samples lie beyond it: p99.9 from 10,000 samples on, p99.99 from 100,000
//! on. Percentiles of several runs are never averaged.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Samples that must lie beyond a percentile.
const SAMPLES_BEYOND_MIN: f64 = 10.0;

/// Percentiles in microseconds; what too few samples tell is left out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    /// How many there are.
    pub(crate) samples: u64,
    /// Half are at most this.
    pub(crate) p50_us: Option<f64>,
    /// 90 % are.
    pub(crate) p90_us: Option<f64>,
    /// 99 % are.
    pub(crate) p99_us: Option<f64>,
    /// 99.9 % are.
    pub(crate) p999_us: Option<f64>,
    /// 99.99 % are.
    pub(crate) p9999_us: Option<f64>,
    /// All are.
    pub(crate) max_us: Option<f64>,
}

impl Percentiles {
    /// Those of a histogram of nanoseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let samples = histogram.len();
        let at = |quantile: f64| {
            // In whole samples: 0.1 % of 10,000 is 10, whatever 1 - 0.999 is in binary.
            let beyond = ((1.0 - quantile) * samples as f64 * 1e6).round() / 1e6;
            (beyond >= SAMPLES_BEYOND_MIN).then(|| microseconds(histogram.value_at_quantile(quantile)))
        };
        Self {
            samples,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            p9999_us: at(0.9999),
            max_us: (samples > 0).then(|| microseconds(histogram.max())),
        }
    }
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percentiles(samples: u64) -> Percentiles {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap();
        (1..=samples).for_each(|number| histogram.saturating_record(number * 1_000));
        Percentiles::of(&histogram)
    }

    #[test]
    fn percentiles_need_ten_samples_beyond_them() {
        let none = percentiles(0);
        assert_eq!((none.samples, none.p50_us, none.max_us), (0, None, None));
        assert!(percentiles(19).p50_us.is_none());
        assert!(percentiles(20).p50_us.is_some());
        assert!(percentiles(999).p99_us.is_none());
        assert!(percentiles(1_000).p99_us.is_some());
        assert!(percentiles(9_999).p999_us.is_none());
        assert!(percentiles(10_000).p999_us.is_some());
        assert!(percentiles(99_999).p9999_us.is_none());
        assert!(percentiles(100_000).p9999_us.is_some());
    }

    #[test]
    fn percentiles_are_within_a_thousandth() {
        let percentiles = percentiles(100_000);
        for (value, exact) in [
            (percentiles.p50_us, 50_000.0),
            (percentiles.p99_us, 99_000.0),
            (percentiles.p9999_us, 99_990.0),
            (percentiles.max_us, 100_000.0),
        ] {
            let error = (value.unwrap() - exact).abs() / exact;
            assert!(error < 0.001, "{value:?} for {exact}");
        }
    }
}
