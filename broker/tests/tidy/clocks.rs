//! Where a clock may be read. Everyone else gets the time as an argument, so that any run can be replayed.
//!
//! Tests may read clocks too, in the crates' `tests` directories and in `#[cfg(test)]` modules.

use crate::paths::paths;
use crate::source::{Finding, Source, words};

/// The files that may, with the reason. A star at the end stands for anything.
const CLOCK_READERS: [(&str, &str); 6] = [
    ("reactor/src/clock.rs", "is the clock"),
    ("client/src/blocking*", "a blocking caller has time-outs and no event loop"),
    ("broker/src/cli.rs", "prints durations to people"),
    ("broker/src/cli/*", "prints durations to people"),
    ("loadgen/*", "measures"),
    ("benches/*", "measures, and the floor waits without the reactor"),
];

const CLOCK_CALLS: [[&str; 2]; 2] = [["Instant", "now"], ["SystemTime", "now"]];
const CLOCK_WORDS: [&str; 4] = ["clock_gettime", "gettimeofday", "_rdtsc", "__rdtscp"];

/// Reads of a clock anywhere else.
pub(crate) fn stray_clock(source: &Source) -> Vec<Finding> {
    if CLOCK_READERS.iter().any(|(pattern, _)| matches(pattern, &source.path)) {
        return Vec::new();
    }
    let calls = paths(&source.production).into_iter().filter(|path| {
        path.segments
            .windows(2)
            .any(|pair| CLOCK_CALLS.iter().any(|call| pair[0] == call[0] && pair[1] == call[1]))
    });
    let named = words(&source.production).filter(|(_, word)| CLOCK_WORDS.contains(word));
    let offsets = calls.map(|path| path.offset).chain(named.map(|(offset, _)| offset));
    let rule = format!("The time comes in as an argument; clocks are read in {CLOCK_READERS:?} only.");
    offsets.map(|offset| source.finding(offset, rule.as_str())).collect()
}

fn matches(pattern: &str, path: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == path, |front| path.starts_with(front))
}

#[test]
fn stray_clock_is_found() {
    let found = |path: &str, text: &str| stray_clock(&Source::new(path, text)).len();
    let call = "fn f() { let a = Instant::now(); let b = std::time::SystemTime::now; }";
    assert_eq!(found("broker/src/event_loop.rs", call), 2);
    assert_eq!(found("reactor/src/ring.rs", "fn f() { libc::clock_gettime(1, x) }"), 1);
    assert_eq!(found("broker/src/client_view.rs", call), 2);
    assert_eq!(found("broker/src/server.rs", "// Instant::now()\nfn f(now: Instant) {}"), 0);
    assert_eq!(found("broker/src/server.rs", &format!("#[cfg(test)]\nmod tests {{ {call} }}")), 0);
}

#[test]
fn clock_in_its_place_is_let_alone() {
    let call = "fn f() { Instant::now(); }";
    let places = [
        "reactor/src/clock.rs",
        "client/src/blocking.rs",
        "client/src/blocking/connection.rs",
        "broker/src/cli/publish.rs",
        "loadgen/src/main.rs",
        "broker/tests/kill.rs",
    ];
    for path in places {
        assert_eq!(stray_clock(&Source::new(path, call)).len(), 0, "{path}");
    }
}
