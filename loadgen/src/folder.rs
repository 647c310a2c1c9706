//! The folder of a run: `series.csv` and `intervals.hlog` grow while it runs, the rest is written at its end.
//!
//! | file | what is in it |
//! |---|---|
//! | `result.json` | the result, see `loadgen/README.md` |
//! | `series.csv` | one row per second |
//! | `intervals.hlog` | one histogram per second and kind |
//! | `phases.hlog` | one histogram per phase and kind: what `report merge` adds up |
//! | `<phase>.<kind>.hgrm` | percentile distributions |
//! | `env.json` | machine, kernel, device, versions, configuration |
//! | `report.html` | all of it to look at |

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::hlog::{self, HlogWriter, Span};
use crate::interval::Interval;
use crate::result::{RunResult, SERIES_HEADER, Second};

/// Where folders are made when the user does not say.
const DEFAULT_PARENT: &str = "loadgen-runs";

/// A folder that a run is written to.
pub(crate) struct RunFolder {
    path: PathBuf,
    series: BufWriter<File>,
    intervals: HlogWriter,
}

impl RunFolder {
    /// Makes it; `path` if the user named one, else a new one below `loadgen-runs`.
    ///
    /// # Errors
    /// When it cannot be made, or holds a run already.
    pub(crate) fn create(path: Option<&Path>, command: &str, started_ms: u64) -> io::Result<Self> {
        let path = path.map_or_else(
            || Path::new(DEFAULT_PARENT).join(format!("{}-{command}", utc(started_ms))),
            Path::to_owned,
        );
        if path.join("result.json").exists() {
            let reason = format!("{} holds a run already", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
        }
        fs::create_dir_all(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let mut series = BufWriter::new(File::create(path.join("series.csv"))?);
        writeln!(series, "{SERIES_HEADER}")?;
        let start = SystemTime::UNIX_EPOCH + Duration::from_millis(started_ms);
        let intervals = HlogWriter::create(&path.join("intervals.hlog"), start)?;
        Ok(Self { path, series, intervals })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a second.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn add(&mut self, second: &Second, interval: &Interval, span: Span) -> io::Result<()> {
        writeln!(self.series, "{}", second.to_row())?;
        self.series.flush()?;
        for (tag, histogram) in [
            ("ack", &interval.response),
            ("ack_service", &interval.service),
            ("delivery", &interval.delivery),
            ("send_lag", &interval.send_lag),
        ] {
            if !histogram.is_empty() {
                self.intervals.write(tag, span, histogram)?;
            }
        }
        self.intervals.flush()
    }

    /// Writes the histograms of the phases: name, kind, when, what.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn write_phases<'a>(
        &self,
        start_ms: u64,
        histograms: impl IntoIterator<Item = (&'a str, &'a str, Span, &'a Histogram<u64>)>,
    ) -> io::Result<()> {
        let start = SystemTime::UNIX_EPOCH + Duration::from_millis(start_ms);
        let mut log = HlogWriter::create(&self.path.join("phases.hlog"), start)?;
        for (phase, kind, span, histogram) in histograms {
            if histogram.is_empty() {
                continue;
            }
            let phase = file_name(phase);
            log.write(&format!("{phase}.{kind}"), span, histogram)?;
            fs::write(self.path.join(format!("{phase}.{kind}.hgrm")), hlog::distribution(histogram))?;
        }
        log.flush()
    }

    /// Writes a JSON file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write_json(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
        text.push('\n');
        fs::write(self.path.join(name), text)
    }

    /// Writes a text file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write_text(&self, name: &str, text: &str) -> io::Result<()> {
        fs::write(self.path.join(name), text)
    }
}

/// A run as it was written.
pub(crate) struct StoredRun {
    /// `result.json`.
    pub(crate) result: RunResult,
    /// `series.csv`.
    pub(crate) series: Vec<Second>,
}

impl StoredRun {
    /// Reads the folder of a run.
    ///
    /// # Errors
    /// When a file cannot be read, or is not what it should be; says which.
    pub(crate) fn read(folder: &Path) -> io::Result<Self> {
        let named = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        };
        let result = serde_json::from_str(&named("result.json")?).map_err(|error| {
            let reason = format!("{}: {error}", folder.join("result.json").display());
            io::Error::new(io::ErrorKind::InvalidData, reason)
        })?;
        let text = named("series.csv")?;
        let mut series = Vec::new();
        for (number, row) in text.lines().enumerate().skip(1) {
            series.push(Second::from_row(row).ok_or_else(|| {
                let reason =
                    format!("{}, line {}: not a row", folder.join("series.csv").display(), number + 1);
                io::Error::new(io::ErrorKind::InvalidData, reason)
            })?);
        }
        Ok(Self { result, series })
    }
}

/// A name without what a file name or a tag may not have.
pub(crate) fn file_name(name: &str) -> String {
    let safe =
        |letter: char| if letter.is_ascii_alphanumeric() || "-_".contains(letter) { letter } else { '_' };
    name.chars().map(safe).collect()
}

/// A moment as `20261122-195626`, in UTC.
pub(crate) fn utc(ms: u64) -> String {
    let (days, second) = (ms / 86_400_000, ms / 1_000 % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", second / 3_600, second / 60 % 60, second % 60)
}

/// Year, month and day of a day since 1970 (Howard Hinnant's `civil_from_days`, for days after 1970).
pub(crate) fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_their_names() {
        assert_eq!(utc(0), "19700101-000000");
        assert_eq!(utc(951_827_696_000), "20000229-123456");
        assert_eq!(utc(1_795_377_386_000), "20261122-195626");
    }

    #[test]
    fn names_are_made_safe() {
        assert_eq!(file_name("spike 10x, again/2"), "spike_10x__again_2");
    }

    #[test]
    fn folder_of_a_run_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(Some(directory.path()), "produce", 0).unwrap();
        folder.write_text("result.json", "{}").unwrap();
        let again = RunFolder::create(Some(directory.path()), "produce", 0);
        assert_eq!(again.err().map(|error| error.kind()), Some(io::ErrorKind::AlreadyExists));
    }
}
