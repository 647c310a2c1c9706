//! `report.html`: a run on one page that needs nothing else, neither files nor a network.
//!
//! On top stands what happened, in words and a few figures; below are criteria, plots and tables. The style and the
//! small script (readout at the pointer, light and dark) are parts of this program.

use std::fmt::Write;

use crate::folder::civil;
use crate::percentiles::Percentiles;
use crate::plot::{Band, Line, Plot, Scale, Unit, escape, label};
use crate::report::Outcome;
use crate::result::{PhaseResult, RunResult, Second};
use crate::run_table::{amount, outcome_word};
use crate::watch::{human_count, human_time};

const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &str = include_str!("html/page.js");
/// Most phases that have a curve of their own; more cannot be told apart.
const CURVES_MAX: usize = 6;

/// The page.
pub(crate) fn page(result: &RunResult, series: &[Second]) -> String {
    let mut out = String::new();
    let title = title(result);
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{} - {}</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n",
        escape(&title),
        outcome_word(result.verdict.outcome)
    );
    head(&mut out, result, &title);
    let _ = writeln!(out, "<p class=\"lead\">{}</p>", escape(&lead(result)));
    tiles(&mut out, result);
    reasons(&mut out, result);
    checks(&mut out, result);
    out.push_str("<h2>Over time</h2>\n");
    let bands = bands(result);
    for plot in [rates(series, &bands), backlog(series, &bands), ack_over_time(series, &bands)] {
        out.push_str(&plot.to_html());
    }
    out.push_str("<h2>Latency by percentile</h2>\n");
    out.push_str(&spectrum(result).to_html());
    out.push_str("<h2>Resources</h2>\n");
    out.push_str(&memory(result, series, &bands).to_html());
    tables(&mut out, result);
    foot(&mut out, result);
    let _ = write!(out, "</main>\n<script>\n{SCRIPT}</script>\n</body></html>\n");
    out
}

fn title(result: &RunResult) -> String {
    match result.command.as_str() {
        "peak-shave" => "Peak shaving".to_owned(),
        "replay" => "Replay of a trace".to_owned(),
        "soak" => "Soak".to_owned(),
        "produce" => "Produce".to_owned(),
        "consume" => "Consume".to_owned(),
        _ => "Scenario".to_owned(),
    }
}

fn class(outcome: Option<Outcome>) -> &'static str {
    match outcome {
        Some(Outcome::Pass) => "pass",
        Some(Outcome::Fail) => "fail",
        Some(Outcome::Invalid) => "invalid",
        None => "none",
    }
}

fn head(out: &mut String, result: &RunResult, title: &str) {
    let (days, second) = (result.started_ms / 86_400_000, result.started_ms / 1_000 % 86_400);
    let (year, month, day) = civil(days);
    let outcome = result.verdict.outcome;
    let _ = writeln!(
        out,
        "<header><div><h1>{} <span class=\"badge {}\">{}</span></h1><p class=\"soft\">Forebay loadgen, \
         {year:04}-{month:02}-{day:02} {:02}:{:02} UTC, {} at {}, durability: {}</p></div>\
         <button id=\"theme\" type=\"button\">Dark</button></header>",
        escape(title),
        class(Some(outcome)),
        outcome_word(outcome),
        second / 3_600,
        second / 60 % 60,
        escape(&result.target),
        escape(&result.address),
        escape(result.durability.as_deref().unwrap_or("unknown"))
    );
}

/// What happened, in a few sentences.
fn lead(result: &RunResult) -> String {
    let mut text = String::new();
    if result.verdict.outcome == Outcome::Invalid {
        text.push_str(
            "This run is not valid: the load was not what it should have been, so its figures say little of the \
             broker. ",
        );
    }
    let p99 = |name: &str| result.phase(name)?.latencies.get("ack")?.p99_us;
    let offered = |name: &str| result.phase(name)?.offered_records_per_s;
    if let (Some(base), Some(spike)) = (offered("base"), offered("spike")) {
        let length = result.phase("spike").map_or(0.0, |phase| phase.seconds);
        let _ = write!(
            text,
            "The load went from {} to {} records/s for {length:.1} s. ",
            human_count(base),
            human_count(spike)
        );
        if let (Some(base), Some(spike)) = (p99("base"), p99("spike")) {
            let _ = write!(
                text,
                "Producers saw an ack p99 of {} before and {} during it. ",
                human_time(base),
                human_time(spike)
            );
        }
    } else if let Some(phase) = longest(result) {
        let _ = write!(
            text,
            "In the phase {}, {} records/s were acknowledged for {:.1} s",
            phase.name,
            human_count(phase.acked_records_per_s),
            phase.seconds
        );
        let p99 = phase.latencies.get("ack").and_then(|ack| ack.p99_us);
        let _ = write!(text, "{}. ", p99.map_or_else(String::new, |us| format!(", p99 {}", human_time(us))));
    }
    let figure = |name: &str| result.predictions.iter().find(|prediction| prediction.name == name);
    if let Some(backlog) = figure("backlog")
        && let Some(measured) = backlog.measured
    {
        let amount = |value: f64| amount(value, &backlog.unit);
        let predicted = amount(backlog.predicted);
        let _ = write!(text, "The backlog grew to {} (by arithmetic {predicted})", amount(measured));
        let drain = figure("drain time");
        let _ = match drain.and_then(|drain| Some((drain, drain.measured?))) {
            Some((drain, seconds)) => {
                write!(text, " and was gone {seconds:.1} s later (by arithmetic {:.1} s). ", drain.predicted)
            }
            None => write!(text, ". "),
        };
    }
    if let Some(integrity) = &result.integrity {
        let findings = integrity.findings;
        let faults = findings.fault_count() + integrity.faults.foreign_records;
        let acked = human_count(findings.acked_records as f64);
        let _ = match faults {
            0 => {
                write!(text, "All {acked} acknowledged records came back, once each, in order and unchanged.")
            }
            _ => write!(text, "Of {acked} acknowledged records, {faults} were not as they must be."),
        };
    }
    text
}

fn longest(result: &RunResult) -> Option<&PhaseResult> {
    let measured = result.phases.iter().filter(|phase| phase.is_measured);
    measured.max_by(|one, other| one.seconds.total_cmp(&other.seconds))
}

fn tiles(out: &mut String, result: &RunResult) {
    out.push_str("<div class=\"tiles\">");
    let mut tile = |name: &str, value: String, beside: String| {
        let _ = write!(
            out,
            "<div class=\"tile\"><div class=\"name\">{}</div><div class=\"value\">{}</div>\
             <div class=\"beside\">{}</div></div>",
            escape(name),
            escape(&value),
            escape(&beside)
        );
    };
    let p99 = |name: &str| result.phase(name)?.latencies.get("ack")?.p99_us;
    if let (Some(base), Some(spike)) = (p99("base"), p99("spike")) {
        tile(
            "Ack p99 in the spike",
            human_time(spike),
            format!("{:.2} x {} before", spike / base, human_time(base)),
        );
    } else if let Some(ack) = longest(result).and_then(|phase| phase.latencies.get("ack")) {
        let p50 = ack.p50_us.map_or_else(|| "n/a".to_owned(), human_time);
        tile("Ack p99", ack.p99_us.map_or_else(|| "n/a".to_owned(), human_time), format!("p50 {p50}"));
    }
    for prediction in &result.predictions {
        let measured =
            prediction.measured.map_or_else(|| "n/a".to_owned(), |value| amount(value, &prediction.unit));
        let error =
            prediction.error().map_or_else(String::new, |error| format!(" ({:+.1} %)", error * 100.0));
        let beside = format!("{} predicted{error}", amount(prediction.predicted, &prediction.unit));
        let value = measured.trim_end_matches(" records").to_owned();
        tile(&capitalised(&prediction.name), value, beside);
    }
    if let Some(integrity) = &result.integrity {
        let findings = integrity.findings;
        let others = findings.fault_count() - findings.lost_records + integrity.faults.foreign_records;
        tile(
            "Records lost",
            findings.lost_records.to_string(),
            format!("{others} other faults in {}", human_count(findings.acked_records as f64)),
        );
    }
    if let Some(used) = result.broker.resident_bytes_max {
        let budget = result.broker.memory_budget_bytes;
        let beside =
            budget.map_or_else(String::new, |bytes| format!("budget {}", label(bytes as f64, Unit::Bytes)));
        tile("Broker memory, most", label(used as f64, Unit::Bytes), beside);
    }
    out.push_str("</div>\n");
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn reasons(out: &mut String, result: &RunResult) {
    let verdict = &result.verdict;
    if verdict.reasons.is_empty() {
        return;
    }
    let _ = write!(out, "<ul class=\"reasons {}\">", class(Some(verdict.outcome)));
    for reason in &verdict.reasons {
        let _ = write!(out, "<li>{}</li>", escape(reason));
    }
    out.push_str("</ul>\n");
}

fn checks(out: &mut String, result: &RunResult) {
    if result.checks.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Criteria</h2>\n<div class=\"card\"><table id=\"criteria\"><thead><tr><th></th>\
         <th class=\"text\">criterion</th><th class=\"text\">found</th><th class=\"text\">wanted</th></tr></thead><tbody>",
    );
    for check in &result.checks {
        let word = check.outcome.map_or("not measured", outcome_word);
        let found = check.found.trim_start_matches("not measured: ");
        let _ = write!(
            out,
            "<tr><td><span class=\"badge {}\">{word}</span></td><td class=\"text\">{}</td>\
             <td class=\"text\">{}</td><td class=\"text\">{}</td></tr>",
            class(check.outcome),
            escape(&check.name),
            escape(found),
            escape(&check.wanted)
        );
    }
    out.push_str("</tbody></table></div>\n");
}

fn bands(result: &RunResult) -> Vec<Band> {
    let band = |phase: &PhaseResult| Band {
        name: phase.name.clone(),
        from: phase.start_s,
        to: phase.start_s + phase.seconds,
        is_marked: phase.name == "spike",
    };
    result.phases.iter().map(band).collect()
}

/// A line of the series. Each second's value stands at its middle if it is a rate, at its end if it is a level.
fn line(
    (name, colour): (&str, u8),
    series: &[Second],
    is_level: bool,
    value: impl Fn(&Second) -> Option<f64>,
) -> Line {
    let mut points = Vec::new();
    let mut start_s = 0.0;
    for second in series {
        let at = if is_level { second.t_s } else { f64::midpoint(start_s, second.t_s) };
        // What is left of the last second is too short for a rate.
        if is_level || second.t_s - start_s >= 0.5 {
            points.push((at, value(second)));
        }
        start_s = second.t_s;
    }
    Line { name: name.to_owned(), colour, is_dashed: false, is_filled: false, points }
}

fn over_time(id: &'static str, title: &str, caption: &str, bands: &[Band]) -> Plot {
    Plot {
        id,
        title: title.to_owned(),
        caption: caption.to_owned(),
        x: (Scale::Linear, Unit::Seconds),
        y: (Scale::Linear, Unit::Count),
        lines: Vec::new(),
        bands: bands.to_vec(),
    }
}

fn rates(series: &[Second], bands: &[Band]) -> Plot {
    let mut plot = over_time(
        "rates",
        "Rates",
        "Records per second: what the plan asked for, what was acknowledged, what the consumers took.",
        bands,
    );
    let offered = line(("offered by the plan", 6), series, false, |second| Some(second.offered_per_s));
    plot.lines = vec![
        Line { is_dashed: true, ..offered },
        line(("acknowledged", 1), series, false, |second| Some(second.acked_per_s)),
    ];
    if series.iter().any(|second| second.consumed_per_s > 0.0) {
        plot.lines.push(line(("consumed", 3), series, false, |second| Some(second.consumed_per_s)));
    }
    plot
}

fn backlog(series: &[Second], bands: &[Band]) -> Plot {
    let mut plot = over_time(
        "backlog",
        "Backlog",
        "Records acknowledged and not yet consumed; dashed, what arithmetic said before the run.",
        bands,
    );
    let measured = line(("measured", 2), series, true, |second| Some(second.backlog_records as f64));
    plot.lines = vec![Line { is_filled: true, ..measured }];
    if series.iter().any(|second| second.predicted_backlog_records.is_some()) {
        let predicted = line(("predicted", 6), series, true, |second| second.predicted_backlog_records);
        plot.lines.push(Line { is_dashed: true, ..predicted });
    }
    plot
}

fn ack_over_time(series: &[Second], bands: &[Band]) -> Plot {
    let mut plot = over_time(
        "ack",
        "Ack latency, second by second",
        "From when a record should have been sent until it was acknowledged as durable. Logarithmic.",
        bands,
    );
    plot.y = (Scale::Log, Unit::Time);
    plot.lines = vec![
        line(("max", 5), series, false, |second| second.ack_max_us),
        line(("p99", 2), series, false, |second| second.ack_p99_us),
        line(("p50", 1), series, false, |second| second.ack_p50_us),
    ];
    if series.iter().any(|second| second.delivery_p50_us.is_some()) {
        let consumed = line(("consumed, p50", 3), series, false, |second| second.delivery_p50_us);
        plot.lines.push(Line { is_dashed: true, ..consumed });
    }
    plot
}

fn spectrum(result: &RunResult) -> Plot {
    // Those that count first; the order of the phases stays.
    let with_curve = result.phases.iter().filter(|phase| phase.is_measured && !phase.ack_spectrum.is_empty());
    let curve = |(number, phase): (usize, &PhaseResult)| Line {
        name: phase.name.clone(),
        colour: [1, 2, 4, 3, 5, 6][number % CURVES_MAX],
        is_dashed: false,
        is_filled: false,
        points: phase.ack_spectrum.iter().map(|point| (point.percentile, Some(point.us))).collect(),
    };
    Plot {
        id: "spectrum",
        title: "Ack latency by percentile".to_owned(),
        caption:
            "Every step to the right is ten times rarer. Curves end where fewer than ten samples lie beyond."
                .to_owned(),
        x: (Scale::Nines, Unit::Percentile),
        y: (Scale::Log, Unit::Time),
        lines: with_curve.take(CURVES_MAX).enumerate().map(curve).collect(),
        bands: Vec::new(),
    }
}

fn memory(result: &RunResult, series: &[Second], bands: &[Band]) -> Plot {
    let mut plot = over_time("memory", "Broker memory", "Resident memory of the broker's process.", bands);
    plot.y = (Scale::Linear, Unit::Bytes);
    plot.lines = vec![line(("resident", 4), series, true, |second| {
        second.broker_resident_bytes.map(|bytes| bytes as f64)
    })];
    if let Some(budget) = result.broker.memory_budget_bytes {
        let limit = line(("budget", 6), series, true, |_| Some(budget as f64));
        plot.lines.push(Line { is_dashed: true, ..limit });
    }
    plot
}

fn tables(out: &mut String, result: &RunResult) {
    if !result.predictions.is_empty() {
        out.push_str(
            "<h2>Arithmetic and measurement</h2>\n<div class=\"card\"><table id=\"predictions\"><thead><tr><th></th>\
             <th>predicted</th><th>measured</th><th>off by</th><th class=\"text\">arithmetic</th></tr></thead><tbody>",
        );
        for prediction in &result.predictions {
            let value = |value: f64| amount(value, &prediction.unit);
            let error = prediction
                .error()
                .map_or_else(|| "n/a".to_owned(), |error| format!("{:+.1} %", error * 100.0));
            let _ = write!(
                out,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{error}</td><td class=\"text\">{}</td></tr>",
                escape(&prediction.name),
                value(prediction.predicted),
                prediction.measured.map_or_else(|| "n/a".to_owned(), value),
                escape(&prediction.formula)
            );
        }
        out.push_str("</tbody></table></div>\n");
    }
    phases(out, result);
    latencies(out, result);
}

fn phases(out: &mut String, result: &RunResult) {
    out.push_str(
        "<h2>Phases</h2>\n<div class=\"card\"><table id=\"phases\"><thead><tr><th>phase</th><th>length</th>\
         <th>offered/s</th><th>achieved/s</th><th>acked/s</th><th>consumed/s</th><th>backlog, most</th>\
         <th>refused</th><th>held</th></tr></thead><tbody>",
    );
    for phase in &result.phases {
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{:.2} s</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td></tr>",
            escape(&phase.name),
            phase.seconds,
            phase.offered_records_per_s.map_or_else(|| "max".to_owned(), human_count),
            human_count(phase.achieved_records_per_s),
            human_count(phase.acked_records_per_s),
            human_count(phase.consumed_records_per_s),
            human_count(phase.backlog_records_max as f64),
            phase.refused_frames,
            phase.held_frames
        );
    }
    out.push_str("</tbody></table></div>\n");
}

fn latencies(out: &mut String, result: &RunResult) {
    out.push_str(
        "<h2>Latencies</h2>\n<div class=\"card\"><table id=\"latencies\"><thead><tr><th></th><th>samples</th>\
         <th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>p99.99</th><th>max</th></tr></thead><tbody>",
    );
    for (kind, title) in [
        ("ack", "Acknowledged, from when it should have been sent"),
        ("ack_service", "Acknowledged, from when it was sent"),
        ("delivery", "Consumed, from when it should have been sent"),
        ("send_lag", "How late the generator itself was"),
    ] {
        let of_kind: Vec<(&str, &Percentiles)> = result
            .phases
            .iter()
            .filter_map(|phase| Some((phase.name.as_str(), phase.latencies.get(kind)?)))
            .collect();
        if of_kind.is_empty() {
            continue;
        }
        let _ = write!(out, "<tr><th colspan=\"8\">{title}</th></tr>");
        for (name, percentiles) in of_kind {
            let Percentiles { samples, p50_us, p90_us, p99_us, p999_us, p9999_us, max_us } = percentiles;
            let _ = write!(out, "<tr><td>{}</td><td>{samples}</td>", escape(name));
            for value in [p50_us, p90_us, p99_us, p999_us, p9999_us, max_us] {
                let _ = write!(out, "<td>{}</td>", value.map_or_else(|| "n/a".to_owned(), human_time));
            }
            out.push_str("</tr>");
        }
    }
    out.push_str("</tbody></table></div>\n");
}

fn foot(out: &mut String, result: &RunResult) {
    let load = &result.load;
    let words: Vec<String> = result.command_line.iter().map(|word| quoted(word)).collect();
    let core = result.broker_core.map_or_else(|| "unknown".to_owned(), |core| core.to_string());
    let _ = write!(
        out,
        "<footer><p>{} connections x {} in flight, {} partitions, {} x {:.0} B in frames of {} B, seed {}; broker on \
         core {core}, load on core {}, broker CPU {}, load CPU {:.0} %.</p>",
        load.connections,
        load.in_flight_max,
        load.partitions,
        load.batch_records,
        load.record_bytes,
        load.frame_bytes,
        load.seed,
        result.loadgen_core,
        result.broker.cpu_percent.map_or_else(|| "unknown".to_owned(), |percent| format!("{percent:.0} %")),
        result.loadgen_cpu_percent
    );
    for note in &result.notes {
        let _ = write!(out, "<p>Note: {}.</p>", escape(note));
    }
    let _ = writeln!(
        out,
        "<p><code>{}</code></p><p>In this folder: <a href=\"result.json\">result.json</a>, \
         <a href=\"series.csv\">series.csv</a>, <a href=\"env.json\">env.json</a>, \
         <a href=\"intervals.hlog\">intervals.hlog</a>, <a href=\"phases.hlog\">phases.hlog</a>.</p></footer>",
        escape(&words.join(" "))
    );
}

fn quoted(word: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_=./:,+%".contains(letter);
    if !word.is_empty() && word.chars().all(is_plain) { word.to_owned() } else { format!("'{word}'") }
}

#[cfg(test)]
mod tests;
