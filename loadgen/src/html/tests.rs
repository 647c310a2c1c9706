//! The page of a made-up run: everything is there, nothing is fetched, and a browser draws it, if there is one.
//! The browser is told to measure what it drew, and to write that into the page.

use std::fs;
use std::process::Command;

use super::*;
use crate::checker::Findings;
use crate::report::Verdict;
use crate::result::{
    AnswersResult, BrokerResult, IntegrityResult, LoadResult, Prediction, RESULT_SCHEMA, SpectrumPoint,
};
use crate::subscriber::DeliveryFaults;

const PLOTS: [&str; 5] = ["rates", "backlog", "ack", "spectrum", "memory"];
/// Where a browser may be. `CHROMIUM` names another.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];

fn percentiles(scale: f64) -> Percentiles {
    Percentiles {
        samples: 50_000,
        p50_us: Some(150.0 * scale),
        p90_us: Some(200.0 * scale),
        p99_us: Some(320.0 * scale),
        p999_us: Some(800.0 * scale),
        p9999_us: None,
        max_us: Some(2_000.0 * scale),
    }
}

fn phase(name: &str, start_s: f64, seconds: f64, per_s: f64) -> PhaseResult {
    let latencies = ["ack", "ack_service", "delivery", "send_lag"];
    PhaseResult {
        name: name.to_owned(),
        arrival: format!("const:{per_s}"),
        start_s,
        seconds,
        is_measured: name != "warm-up",
        consumer_records_per_s: Some(4_000.0),
        offered_records_per_s: Some(per_s),
        achieved_records_per_s: per_s,
        acked_records_per_s: per_s,
        consumed_records_per_s: 1_000.0,
        refused_frames: 0,
        held_frames: 0,
        unsent_frames: 0,
        backlog_records_max: 30_000,
        latencies: latencies.map(|kind| (kind.to_owned(), percentiles(1.0))).into_iter().collect(),
        ack_spectrum: (0..40)
            .map(|step| {
                let percentile = 100.0 * (1.0 - 0.5_f64.powf(f64::from(step) / 4.0));
                SpectrumPoint { percentile, us: 100.0 + 20.0 * f64::from(step) }
            })
            .collect(),
    }
}

fn result() -> RunResult {
    let mut result = RunResult {
        schema: RESULT_SCHEMA,
        command: "peak-shave".to_owned(),
        command_line: vec!["loadgen".to_owned(), "peak-shave".to_owned(), "<b>".to_owned()],
        started_ms: 1_795_377_386_000,
        target: "broker".to_owned(),
        address: "127.0.0.1:1".to_owned(),
        durability: Some("write + flush".to_owned()),
        waiting: None,
        run_id: 1,
        broker_core: Some(0),
        loadgen_core: 1,
        load: LoadResult {
            connections: 4,
            partitions: 4,
            record_bytes: 1_024.0,
            batch_records: 1,
            frame_bytes: 1_232,
            in_flight_max: 1_024,
            catch_up: "paced".to_owned(),
            seed: 1,
        },
        phases: vec![
            phase("warm-up", 0.0, 2.0, 1_000.0),
            phase("base", 2.0, 5.0, 1_000.0),
            phase("spike", 7.0, 5.0, 10_000.0),
            phase("drain", 12.0, 10.0, 1_000.0),
            phase("recovery", 22.0, 5.0, 1_000.0),
        ],
        predictions: vec![
            Prediction {
                name: "backlog".to_owned(),
                formula: "(spike - consumers) x 5 s".to_owned(),
                unit: "records".to_owned(),
                predicted: 30_000.0,
                measured: Some(30_200.0),
            },
            Prediction {
                name: "drain time".to_owned(),
                formula: "backlog / (consumers - base)".to_owned(),
                unit: "s".to_owned(),
                predicted: 10.0,
                measured: Some(10.1),
            },
        ],
        checks: Vec::new(),
        answers: AnswersResult::default(),
        integrity: Some(IntegrityResult {
            findings: Findings { acked_records: 76_000, ..Findings::default() },
            faults: DeliveryFaults::default(),
        }),
        kill: None,
        broker: BrokerResult {
            cpu_percent: Some(40.0),
            resident_bytes_max: Some(300 << 20),
            memory_budget_bytes: Some(512 << 20),
        },
        loadgen_cpu_percent: 30.0,
        notes: vec!["a note".to_owned()],
        verdict: Verdict::new(),
    };
    result.require("nothing refused", true, "0 frames".to_owned(), "0");
    result.not_measured("spike against find-max", "the base rate was given", ">= 0.5 of it");
    result
}

fn series() -> Vec<Second> {
    let second = |number: u32| {
        let t_s = f64::from(number) + 1.0;
        let backlog =
            (6_000.0 * (t_s - 7.0).clamp(0.0, 5.0) - 3_000.0 * (t_s - 12.0).clamp(0.0, 10.0)).max(0.0);
        Second {
            t_s,
            offered_per_s: if (8.0..13.0).contains(&t_s) { 10_000.0 } else { 1_000.0 },
            acked_per_s: if (8.0..13.0).contains(&t_s) { 9_990.0 } else { 1_000.0 },
            consumed_per_s: if backlog > 0.0 { 4_000.0 } else { 1_000.0 },
            backlog_records: (backlog * 1.01) as u64,
            predicted_backlog_records: Some(backlog),
            ack_p50_us: Some(150.0),
            ack_p99_us: Some(320.0 + 40.0 * f64::from(number % 3)),
            ack_max_us: Some(2_000.0),
            delivery_p50_us: Some(300.0 + backlog * 200.0),
            broker_resident_bytes: Some(290 << 20),
            ..Second::default()
        }
    };
    (0..27).map(second).collect()
}

/// The part of the page that is one plot.
fn plot<'a>(page: &'a str, id: &str) -> &'a str {
    let start =
        page.find(&format!("<figure class=\"plot\" id=\"{id}\">")).unwrap_or_else(|| panic!("no plot {id}"));
    &page[start..start + page[start..].find("</figure>").unwrap()]
}

#[test]
fn every_plot_has_its_lines_and_the_prediction_is_dashed() {
    let page = page(&result(), &series());
    for (id, lines) in PLOTS.into_iter().zip([3, 2, 4, 4, 2]) {
        let plot = plot(&page, id);
        let paths: Vec<&str> = plot.split("<path class=\"line ").skip(1).collect();
        assert_eq!(paths.len(), lines, "{id}");
        for path in paths {
            let (_, d) = path.split_once(" d=\"").unwrap();
            let points = d.split('"').next().unwrap().matches(['M', 'L']).count();
            assert!(points >= 20, "{id}: a line of {points} points");
        }
        assert!(plot.matches("<text class=\"y\"").count() >= 2, "{id}: a scale");
    }
    assert_eq!(plot(&page, "rates").matches("<g class=\"band").count(), 5, "every phase is shaded");
    let backlog = plot(&page, "backlog");
    let predicted = &backlog[backlog.find("data-name=\"predicted\"").unwrap()..];
    assert!(predicted[..predicted.find("/>").unwrap()].contains("stroke-dasharray"));
}

#[test]
fn page_needs_nothing_else_and_shows_foreign_text_as_text() {
    let page = page(&result(), &series());
    for fetched in ["http://", "https://", " src=", "url(", "@import", "<link", "<img"] {
        assert!(!page.contains(fetched), "{fetched}");
    }
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("data-theme=\"dark\""));
    assert!(!page.contains("<b>") && page.contains("&lt;b&gt;"));
    for table in ["criteria", "predictions", "phases", "latencies"] {
        assert!(page.contains(&format!("<table id=\"{table}\">")), "{table}");
    }
    assert!(page.contains("All 76.0k acknowledged records came back"));
    assert!(page.contains(">PASS</span>") && page.contains(">not measured</span>"));
}

#[test]
fn run_without_samples_has_a_page_too() {
    let mut empty = result();
    empty.phases.clear();
    empty.predictions.clear();
    empty.integrity = None;
    empty.broker = BrokerResult::default();
    empty.verdict.add(true, Outcome::Invalid, || "interrupted".to_owned());
    let page = page(&empty, &[]);
    assert!(page.contains(">INVALID</span>") && page.contains("<li>interrupted</li>"));
    assert!(!page.contains("NaN"), "an empty axis has ends, too");
}

/// Says so and stops where there is no browser: the structure is tested above.
#[test]
fn browser_draws_every_plot() {
    let named = std::env::var("CHROMIUM").ok();
    let found = named.into_iter().chain(BROWSERS.map(str::to_owned)).find(|name| {
        Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
    });
    let Some(browser) = found else {
        eprintln!("skipped: no browser; name one in CHROMIUM");
        return;
    };
    let probe = "<script>\
        const lines = [...document.querySelectorAll('figure.plot path.line')];\
        const seen = lines.filter((line) => line.getTotalLength() > 100 && \
            line.getBoundingClientRect().width > 100 && getComputedStyle(line).stroke !== 'none');\
        const wide = [...document.querySelectorAll('svg.drawing')].filter((svg) => svg.clientWidth > 300);\
        document.body.dataset.seen = `${seen.length} of ${lines.length}, ${wide.length} drawings, \
        overflow ${document.documentElement.scrollWidth - document.documentElement.clientWidth}`;\
        </script></body>";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.html");
    fs::write(&path, page(&result(), &series()).replace("</body>", probe)).unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,900", "--dump-dom"])
        .arg(format!("--user-data-dir={}", directory.path().join("profile").display()))
        .arg(format!("file://{}", path.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout);
    assert!(
        dom.contains("data-seen=\"15 of 15, 5 drawings, overflow 0\""),
        "{:?}",
        dom.find("data-seen").map(|at| &dom[at..at + 80])
    );
    assert!(dom.contains(">Light</button>") || dom.contains(">Dark</button>"), "the script has run");
}
