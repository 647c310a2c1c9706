//! Histograms in the formats of HdrHistogram's own tools: `.hlog` (interval log, V2 compressed) and `.hgrm` (percentile
//! distribution).
//!
//! Values in a log are nanoseconds; values in a distribution are microseconds. Times are seconds since the start.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, LogEntry, Tag,
};
use hdrhistogram::serialization::{Deserializer, V2DeflateSerializer};

use crate::result::SpectrumPoint;

/// Steps of a percentile distribution in each half of the distance to 100 %.
const TICKS_PER_HALF: u32 = 5;
const NS_PER_US: f64 = 1e3;

/// A span of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Span {
    /// Since the start of the run.
    pub(crate) start_s: f64,
    /// Its length.
    pub(crate) seconds: f64,
}

/// Writes a log, histogram by histogram.
pub(crate) struct HlogWriter {
    out: BufWriter<File>,
    serializer: V2DeflateSerializer,
}

impl HlogWriter {
    /// A new file; times in it are since `start`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn create(path: &Path, start: SystemTime) -> io::Result<Self> {
        let mut out = BufWriter::new(File::create(path)?);
        let mut serializer = V2DeflateSerializer::new();
        IntervalLogWriterBuilder::new()
            .add_comment("[Histogram log format version 1.3]")
            .add_comment("[Logged by loadgen of Forebay; values are nanoseconds]")
            .with_start_time(start)
            .begin_log_with(&mut out, &mut serializer)?;
        Ok(Self { out, serializer })
    }

    /// Adds a histogram. The tag has neither commas nor white space.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&mut self, tag: &str, span: Span, histogram: &Histogram<u64>) -> io::Result<()> {
        let tag = Tag::new(tag);
        let mut log = IntervalLogWriterBuilder::new().begin_log_with(&mut self.out, &mut self.serializer)?;
        let (start, length) = (duration(span.start_s), duration(span.seconds));
        log.write_histogram(histogram, start, length, tag)
            .map_err(|error| io::Error::other(error.to_string()))
    }

    /// Brings what was added to the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// One histogram of a log.
#[derive(Clone, Debug)]
pub(crate) struct LoggedHistogram {
    /// What it is of.
    pub(crate) tag: String,
    /// When.
    pub(crate) span: Span,
    /// In nanoseconds.
    pub(crate) histogram: Histogram<u64>,
}

/// Reads a log.
///
/// # Errors
/// When it cannot be read, or is not one.
pub(crate) fn read(path: &Path) -> io::Result<Vec<LoggedHistogram>> {
    let wrong =
        |reason: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {reason}", path.display()));
    let bytes = fs::read(path)?;
    let mut found = Vec::new();
    let mut deserializer = Deserializer::new();
    for entry in IntervalLogIterator::new(&bytes) {
        let entry = entry.map_err(|error| wrong(format!("{error:?}")))?;
        let LogEntry::Interval(interval) = entry else { continue };
        let encoded =
            STANDARD.decode(interval.encoded_histogram()).map_err(|error| wrong(error.to_string()))?;
        let histogram =
            deserializer.deserialize(&mut encoded.as_slice()).map_err(|error| wrong(format!("{error:?}")))?;
        found.push(LoggedHistogram {
            tag: interval.tag().map(|tag| tag.as_str().to_owned()).unwrap_or_default(),
            span: Span {
                start_s: interval.start_timestamp().as_secs_f64(),
                seconds: interval.duration().as_secs_f64(),
            },
            histogram,
        });
    }
    Ok(found)
}

/// The percentile distribution as HdrHistogram's plotter reads it, in microseconds.
pub(crate) fn distribution(histogram: &Histogram<u64>) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut count = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF) {
        count += step.count_since_last_iteration();
        let (value, quantile) = (step.value_iterated_to() as f64 / NS_PER_US, step.quantile_iterated_to());
        let inverse = 1.0 / (1.0 - quantile);
        let _ = if quantile < 1.0 {
            writeln!(out, "{value:12.3} {quantile:2.12} {count:10} {inverse:14.2}")
        } else {
            writeln!(out, "{value:12.3} {quantile:2.12} {count:10}")
        };
    }
    let (mean, deviation) = (histogram.mean() / NS_PER_US, histogram.stdev() / NS_PER_US);
    let _ = writeln!(out, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]");
    let (max, total) = (histogram.max() as f64 / NS_PER_US, histogram.len());
    let _ = writeln!(out, "#[Max     = {max:12.3}, Total count    = {total:12}]");
    let buckets = histogram.buckets();
    let _ = writeln!(out, "#[Buckets = {buckets:12}, SubBuckets     = {:12}]", histogram.distinct_values());
    out
}

/// Points of the latency-by-percentile curve, as far as the samples tell: at least ten lie beyond each.
pub(crate) fn spectrum(histogram: &Histogram<u64>) -> Vec<SpectrumPoint> {
    let samples = histogram.len() as f64;
    histogram
        .iter_quantiles(TICKS_PER_HALF)
        .map(|step| (step.quantile_iterated_to(), step.value_iterated_to()))
        .take_while(|(quantile, _)| (1.0 - quantile) * samples >= 10.0)
        .map(|(quantile, value)| SpectrumPoint { percentile: quantile * 100.0, us: value as f64 / NS_PER_US })
        .collect()
}

fn duration(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interval::latencies;

    fn histogram(count: u64) -> Histogram<u64> {
        let mut histogram = latencies();
        (1..=count).for_each(|number| histogram.saturating_record(number * 1_000));
        histogram
    }

    #[test]
    fn log_gives_back_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.hlog");
        let mut writer = HlogWriter::create(&path, SystemTime::now()).unwrap();
        let span = |start_s| Span { start_s, seconds: 1.0 };
        writer.write("ack", span(0.0), &histogram(1_000)).unwrap();
        writer.write("send_lag", span(0.0), &histogram(5)).unwrap();
        writer.write("ack", span(1.0), &latencies()).unwrap();
        writer.flush().unwrap();
        let found = read(&path).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].tag.as_str(), found[0].histogram.len()), ("ack", 1_000));
        assert_eq!(found[0].histogram.max(), histogram(1_000).max());
        assert_eq!((found[1].tag.as_str(), found[2].span), ("send_lag", span(1.0)));
        assert!(found[2].histogram.is_empty());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("#[Histogram log format version 1.3]\n"), "{text}");
        assert!(text.contains("\nTag=ack,0.000,1.000,"), "{text}");
        assert!(text.contains(",HISTFAAA"), "V2 compressed, as the other tools write it: {text}");
        fs::write(&path, "nonsense").unwrap();
        assert!(read(&path).is_err());
    }

    #[test]
    fn distribution_ends_with_the_greatest_value_and_all_samples() {
        let text = distribution(&histogram(1_000));
        let rows: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(rows[0].contains("Value") && rows[0].contains("1/(1-Percentile)"));
        let last: Vec<&str> = rows.last().unwrap().split_whitespace().collect();
        assert_eq!(last[1..], ["1.000000000000", "1000"]);
        assert!((last[0].parse::<f64>().unwrap() - 1_000.0).abs() < 1.0);
        assert!(text.contains("#[Max     =") && text.contains("Total count    =         1000]"));
    }

    #[test]
    fn spectrum_ends_where_samples_do() {
        let points = spectrum(&histogram(10_000));
        assert!(points.windows(2).all(|pair| pair[0].us <= pair[1].us));
        assert!(points.last().unwrap().percentile <= 99.9);
        assert!(points.last().unwrap().percentile > 99.0);
        assert!(spectrum(&latencies()).is_empty());
    }
}
