//! What happens beside a run, on a thread that is not measured: it takes each second from the loop, looks at the
//! broker's process, prints a line, and adds the second to the folder.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::control::Control;
use crate::fluid::Fluid;
use crate::folder::RunFolder;
use crate::hlog::Span;
use crate::interval::{Counts, Interval, IntervalFeed};
use crate::percentiles::Percentiles;
use crate::result::Second;

/// Kernel ticks per second in `/proc/<pid>/stat`, on every Linux that this runs on.
const TICKS_PER_S: f64 = 100.0;

/// What comes behind the last phase: the last answers and deliveries, until every record is accounted for.
const VERIFY: &str = "verify";

/// A shorter interval has no rates, and is passed over when nothing happened in it.
const INTERVAL_MIN_S: f64 = 1e-3;

/// A broker whose process can be looked at, or asked.
#[derive(Clone, Debug)]
pub(crate) enum Probe {
    /// A process of this host; another one after a kill.
    Process(Arc<AtomicU32>),
    /// Somebody else's broker: it is asked for its counters.
    Remote(SocketAddr),
}

/// What a look gave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Look {
    /// Resident memory.
    pub(crate) resident_bytes: Option<u64>,
    /// CPU time so far, in seconds.
    pub(crate) cpu_s: Option<f64>,
}

impl Probe {
    /// Looks at the broker now.
    pub(crate) fn look(&self) -> Look {
        match self {
            Self::Process(pid) => look_at(pid.load(Ordering::Relaxed)),
            Self::Remote(address) => match Control::open(*address).and_then(|mut control| control.stats()) {
                Ok(stats) => Look {
                    resident_bytes: Some(stats.resident_bytes),
                    cpu_s: Some(stats.cpu_ns as f64 / 1e9),
                },
                Err(_) => Look::default(),
            },
        }
    }
}

fn look_at(pid: u32) -> Look {
    Look {
        resident_bytes: fs::read_to_string(format!("/proc/{pid}/status"))
            .ok()
            .and_then(|text| resident_bytes(&text)),
        cpu_s: fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|text| cpu_s(&text)),
    }
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// User and system time: fields 14 and 15, counted behind the name, which may hold anything.
fn cpu_s(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let ticks: f64 = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    Some(ticks / TICKS_PER_S)
}

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lines {
    /// To standard output.
    Out,
    /// To standard error: standard output is for a program.
    Error,
    /// Nowhere: the live view has the terminal.
    None,
}

impl Lines {
    /// Prints a line. Nobody can be told when that fails.
    pub(crate) fn print(self, line: &str) {
        match self {
            Self::Out => {
                let mut out = io::stdout().lock();
                let _ = writeln!(out, "{line}");
                let _ = out.flush();
            }
            Self::Error => eprintln!("{line}"),
            Self::None => {}
        }
    }
}

/// Whoever looks at seconds as they come, beside the lines.
pub(crate) trait Viewer {
    /// A second has passed.
    fn on_second(&mut self, second: &Second, left: Option<Duration>);
}

/// What a watcher is made of.
pub(crate) struct WatchSetup<'a> {
    /// Names of the phases.
    pub(crate) phases: &'a [String],
    /// What arithmetic says.
    pub(crate) prediction: Option<&'a Fluid>,
    /// How long it will take, if that is known.
    pub(crate) seconds_in_all: Option<f64>,
    /// The broker.
    pub(crate) probe: Probe,
    /// Where lines go.
    pub(crate) lines: Lines,
}

/// What was seen beside a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    /// Second by second.
    pub(crate) series: Vec<Second>,
    /// Most memory of the broker.
    pub(crate) resident_bytes_max: Option<u64>,
}

/// Takes seconds until the run is over.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn watch(
    setup: &WatchSetup<'_>,
    feed: &IntervalFeed,
    mut folder: Option<&mut RunFolder>,
    viewer: &mut dyn Viewer,
) -> io::Result<Watched> {
    let mut watched = Watched::default();
    let mut last_look = setup.probe.look();
    let mut start_ns = None;
    while let Some(interval) = feed.next() {
        let start_ns = *start_ns.get_or_insert(interval.counts.start_ns);
        if is_nothing(&interval) {
            feed.give_back(interval);
            continue;
        }
        let look = setup.probe.look();
        let second = second_of(setup, &interval, start_ns, (last_look, look));
        last_look = look;
        watched.resident_bytes_max = watched.resident_bytes_max.max(look.resident_bytes);
        let left_s = setup.seconds_in_all.map(|all_s| (all_s - second.t_s).max(0.0));
        setup.lines.print(&line(&second, left_s));
        viewer.on_second(&second, left_s.map(Duration::from_secs_f64));
        if let Some(folder) = &mut folder {
            let seconds = (interval.counts.end_ns - interval.counts.start_ns) as f64 / 1e9;
            folder.add(&second, &interval, Span { start_s: second.t_s - seconds, seconds })?;
        }
        watched.series.push(second);
        feed.give_back(interval);
    }
    Ok(watched)
}

fn is_nothing(interval: &Interval) -> bool {
    let Counts { start_ns, end_ns, sent_records, acked_records, consumed_records, .. } = interval.counts;
    let is_short = (end_ns.saturating_sub(start_ns) as f64) < INTERVAL_MIN_S * 1e9;
    is_short && sent_records + acked_records + consumed_records == 0
}

fn second_of(
    setup: &WatchSetup<'_>,
    interval: &Interval,
    start_ns: u64,
    (last, look): (Look, Look),
) -> Second {
    let counts = &interval.counts;
    let since_start_ns = counts.end_ns.saturating_sub(start_ns);
    let seconds = (counts.end_ns.saturating_sub(counts.start_ns) as f64 / 1e9).max(INTERVAL_MIN_S);
    let per_s = |records: u64| records as f64 / seconds;
    let us = |histogram: &Histogram<u64>| Percentiles::of(histogram);
    let (ack, delivery, lag) = (us(&interval.response), us(&interval.delivery), us(&interval.send_lag));
    // After a kill it is another process, which has used less.
    let cpu_percent =
        look.cpu_s.zip(last.cpu_s).map(|(now, before)| (now - before).max(0.0) * 100.0 / seconds);
    Second {
        t_s: since_start_ns as f64 / 1e9,
        phase: setup.phases.get(counts.phase).map_or(VERIFY, String::as_str).to_owned(),
        offered_per_s: counts.offered_records / seconds,
        sent_per_s: per_s(counts.sent_records),
        acked_per_s: per_s(counts.acked_records),
        consumed_per_s: per_s(counts.consumed_records),
        busy_frames: counts.busy_frames,
        refused_frames: counts.refused_frames,
        in_flight_frames: counts.in_flight_frames,
        backlog_records: counts.backlog_records,
        predicted_backlog_records: setup.prediction.map(|fluid| fluid.backlog_at(since_start_ns)),
        ack_p50_us: ack.p50_us,
        ack_p99_us: ack.p99_us,
        ack_p999_us: ack.p999_us,
        ack_max_us: ack.max_us,
        delivery_p50_us: delivery.p50_us,
        delivery_p99_us: delivery.p99_us,
        delivery_max_us: delivery.max_us,
        send_lag_p99_us: lag.p99_us,
        send_lag_max_us: lag.max_us,
        broker_resident_bytes: look.resident_bytes,
        broker_cpu_percent: cpu_percent,
    }
}

/// One second for people.
pub(crate) fn line(second: &Second, left_s: Option<f64>) -> String {
    let time = |us: Option<f64>| us.map_or_else(|| "-".to_owned(), human_time);
    let refused = second.busy_frames + second.refused_frames;
    let refused = if refused == 0 {
        String::new()
    } else {
        format!("  busy {} refused {}", second.busy_frames, second.refused_frames)
    };
    let left = left_s.map_or_else(String::new, |left_s| format!("  {left_s:.0} s left"));
    format!(
        "{:>4.0} s  {:<9} offered {:>7}/s  acked {:>7}/s  consumed {:>7}/s  backlog {:>7}  ack p50 {:>7} p99 {:>7} \
         max {:>7}  e2e p99 {:>7}{refused}{left}",
        second.t_s,
        second.phase,
        human_count(second.offered_per_s),
        human_count(second.acked_per_s),
        human_count(second.consumed_per_s),
        human_count(second.backlog_records as f64),
        time(second.ack_p50_us),
        time(second.ack_p99_us),
        time(second.ack_max_us),
        time(second.delivery_p99_us),
    )
}

/// Three digits and a letter.
pub(crate) fn human_count(count: f64) -> String {
    match count {
        count if count >= 999_950.0 => format!("{:.2}M", count / 1e6),
        count if count >= 9_999.5 => format!("{:.1}k", count / 1e3),
        count => format!("{count:.0}"),
    }
}

/// A time in the unit that suits it.
pub(crate) fn human_time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.2} s", us / 1e6),
        us if us >= 1e4 => format!("{:.1} ms", us / 1e3),
        us if us >= 1e3 => format!("{:.2} ms", us / 1e3),
        us => format!("{us:.0} us"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_files_are_read() {
        assert_eq!(resident_bytes("VmHWM:\t 9 kB\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        let stat = "77 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20";
        assert_eq!(cpu_s(stat), Some(3.0));
        let own = look_at(std::process::id());
        assert!(own.resident_bytes.unwrap() > 0);
        assert!(own.cpu_s.is_some());
        assert_eq!(look_at(u32::MAX), Look::default());
    }

    #[test]
    fn line_names_what_matters_and_only_what_happened() {
        let second = Second {
            t_s: 42.0,
            phase: "spike".to_owned(),
            offered_per_s: 200_000.0,
            acked_per_s: 199_900.0,
            backlog_records: 1_412_000,
            ack_p99_us: Some(240.0),
            ..Second::default()
        };
        let text = line(&second, Some(12.4));
        assert!(
            text.contains("42 s  spike") && text.contains("200.0k/s") && text.contains("1.41M"),
            "{text}"
        );
        assert!(text.contains("240 us") && text.ends_with("12 s left") && !text.contains("busy"), "{text}");
        assert!(line(&Second { busy_frames: 3, ..second }, None).contains("busy 3"));
    }

    #[test]
    fn times_and_counts_have_units_that_suit() {
        assert_eq!(human_time(61.4), "61 us");
        assert_eq!(human_time(3_200.0), "3.20 ms");
        assert_eq!(human_time(195_000.0), "195.0 ms");
        assert_eq!(human_time(2_100_000.0), "2.10 s");
        assert_eq!((human_count(999.0), human_count(20_000.0)), ("999".to_owned(), "20.0k".to_owned()));
    }
}
