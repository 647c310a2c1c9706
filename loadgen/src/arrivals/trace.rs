//! Arrivals counted by somebody else: a CSV file of `second,count`, played back faster or slower, more or less.
//!
//! Seconds that the file leaves out have no records. Time scale 30 plays an hour in two minutes, which also makes the
//! rate 30 times as high; the rate scale multiplies the counts on top of that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Arrivals, PIECES_MAX, Segment, Spread};

const NS_PER_S: f64 = 1e9;

/// What is wrong with a trace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    /// It cannot be read.
    #[error("trace {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not as it should be.
    #[error("trace {}, line {line}: {reason}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// It has no line with counts.
    #[error("trace {}: no counts", .0.display())]
    Empty(PathBuf),
}

/// Records in each second, from the trace's first one on.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    counts: Vec<f64>,
    /// How many of its seconds pass in one.
    time_scale: f64,
    /// What its counts are multiplied by.
    rate_scale: f64,
}

impl Trace {
    /// Reads the file.
    ///
    /// # Errors
    /// See `TraceError`.
    pub(crate) fn read(path: &Path) -> Result<Self, TraceError> {
        let text =
            fs::read_to_string(path).map_err(|source| TraceError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, TraceError> {
        let wrong = |line, reason: String| TraceError::Line { path: path.to_owned(), line, reason };
        let mut counts = Vec::new();
        let mut first_second = None;
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let line = line.trim();
            let is_header = index == 0 && line.starts_with(|letter: char| letter.is_ascii_alphabetic());
            if line.is_empty() || line.starts_with('#') || is_header {
                continue;
            }
            let cells = line.split_once(',');
            let cells = cells.and_then(|(second, count)| {
                Some((second.trim().parse::<u64>().ok()?, count.trim().parse::<f64>().ok()?))
            });
            let Some((second, count)) = cells.filter(|(_, count)| count.is_finite() && *count >= 0.0) else {
                return Err(wrong(number, format!("`{line}` is not `second,count`")));
            };
            let first = *first_second.get_or_insert(second);
            let place = second.checked_sub(first).map(|place| place as usize);
            match place {
                Some(place) if place >= counts.len() && place < PIECES_MAX => counts.resize(place + 1, 0.0),
                Some(place) if place >= PIECES_MAX => {
                    return Err(wrong(
                        number,
                        format!("second {second} is more than {PIECES_MAX} after the first"),
                    ));
                }
                _ => return Err(wrong(number, format!("second {second} comes again, or too late"))),
            }
            if let Some(last) = counts.last_mut() {
                *last = count;
            }
        }
        if counts.is_empty() {
            return Err(TraceError::Empty(path.to_owned()));
        }
        Ok(Self { counts, time_scale: 1.0, rate_scale: 1.0 })
    }

    /// The same, played back at these scales, both more than 0.
    pub(crate) fn scaled(self, time_scale: f64, rate_scale: f64) -> Self {
        assert!(time_scale > 0.0);
        assert!(rate_scale > 0.0);
        Self { time_scale, rate_scale, ..self }
    }

    /// Its highest rate as it is played back, in records per second.
    pub(crate) fn peak_per_s(&self) -> f64 {
        self.counts.iter().copied().fold(0.0, f64::max) * self.time_scale * self.rate_scale
    }

    /// Its mean rate as it is played back.
    pub(crate) fn mean_per_s(&self) -> f64 {
        self.counts.iter().sum::<f64>() / self.counts.len() as f64 * self.time_scale * self.rate_scale
    }

    /// How long it takes as it is played back.
    pub(crate) fn duration_ns(&self) -> u64 {
        (self.counts.len() as f64 / self.time_scale * NS_PER_S) as u64
    }

    /// The plan.
    pub(crate) fn arrivals(&self, spread: Spread, seed: u64) -> Arrivals {
        let factor = self.time_scale * self.rate_scale;
        // Moments, not lengths, are rounded, so that nothing adds up.
        let moment_ns = |second: usize| (second as f64 / self.time_scale * NS_PER_S) as u64;
        let segments = self.counts.iter().enumerate().map(|(second, count)| {
            Segment::constant(count * factor, moment_ns(second + 1) - moment_ns(second))
        });
        Arrivals::new(segments, spread, seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Trace, TraceError> {
        Trace::parse(Path::new("t.csv"), text)
    }

    #[test]
    fn counts_are_kept_and_missing_seconds_are_empty() {
        let trace = parse("second,events\n100,25\n101,43\n# a gap\n104,36\n").unwrap();
        assert_eq!(trace.counts, [25.0, 43.0, 0.0, 0.0, 36.0]);
        let plan = trace.arrivals(Spread::Even, 0);
        assert_eq!((plan.mass(), plan.duration_ns()), (104.0, 5_000_000_000));
        assert_eq!(plan.mass_until(2_000_000_000), 68.0);
    }

    #[test]
    fn time_scale_keeps_the_count_and_rate_scale_multiplies_it() {
        let trace = parse("0,30\n1,60\n2,90\n").unwrap().scaled(30.0, 1.0);
        assert_eq!((trace.peak_per_s(), trace.mean_per_s()), (2_700.0, 1_800.0));
        assert_eq!(trace.duration_ns(), 100_000_000);
        let mass = trace.arrivals(Spread::Even, 0).mass();
        assert!((mass - 180.0).abs() < 0.01, "{mass}");
        let mass = trace.scaled(30.0, 10.0).arrivals(Spread::Even, 0).mass();
        assert!((mass - 1_800.0).abs() < 0.01, "{mass}");
    }

    #[test]
    fn wrong_lines_are_named() {
        for (text, reason) in [
            ("second,events\n0,5\nx,5\n", "line 3: `x,5` is not `second,count`"),
            ("0,5\n1\n", "line 2"),
            ("0,-5\n", "line 1"),
            ("0,5\n0,6\n", "line 2: second 0 comes again"),
            ("5,5\n4,6\n", "line 2"),
            ("0,1\n99999999,1\n", "more than"),
            ("second,events\n", "no counts"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }
}
