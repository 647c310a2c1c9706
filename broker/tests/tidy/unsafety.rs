//! Where the keyword `unsafe` may stand, and what each crate's root says about it.
//!
//! The reactor and the floor talk to the kernel, the generated code reads tables in place, and a counting allocator
//! cannot be written without it. Nobody else needs it.

use crate::source::{Finding, Source, words};

/// Paths that begin so may hold `unsafe`.
const UNSAFE_BELOW: [&str; 3] = ["reactor/src/", "benches/floor/src/", "protocol/src/generated/"];
/// Single files that may, wherever they are: the allocators of the tests that count allocations.
const UNSAFE_FILES: [&str; 1] = ["counting_allocator.rs"];
/// Crates whose roots need not refuse it.
const UNSAFE_CRATES: [&str; 2] = ["reactor", "benches/floor"];

/// The keyword anywhere else.
pub(crate) fn stray_unsafe(source: &Source) -> Vec<Finding> {
    let file = source.path.rsplit('/').next().unwrap_or_default();
    if UNSAFE_BELOW.iter().any(|place| source.path.starts_with(place)) || UNSAFE_FILES.contains(&file) {
        return Vec::new();
    }
    let rule = format!("`unsafe` stands below {UNSAFE_BELOW:?} and in {UNSAFE_FILES:?} only.");
    let stray = words(&source.code).filter(|(_, word)| *word == "unsafe");
    stray.map(|(offset, _)| source.finding(offset, rule.as_str())).collect()
}

/// The root of a library or a binary that does not refuse `unsafe`.
pub(crate) fn unguarded_root(source: &Source) -> Vec<Finding> {
    let Some((directory, root)) = source.path.split_once("/src/") else { return Vec::new() };
    if !is_root(root) || UNSAFE_CRATES.contains(&directory) {
        return Vec::new();
    }
    // The library `protocol` allows it again for its generated module, which `forbid` would not let it.
    let level = if source.path == "protocol/src/lib.rs" { "deny" } else { "forbid" };
    let dense: String = source.code.split_whitespace().collect();
    if dense.contains(&format!("#![{level}(unsafe_code")) {
        return Vec::new();
    }
    vec![source.finding(0, format!("The root of a crate says `#![{level}(unsafe_code)]`."))]
}

/// Whether a path below `src/` is where a crate begins.
fn is_root(path: &str) -> bool {
    match path.strip_prefix("bin/") {
        Some(binary) => !binary.contains('/') || binary.ends_with("/main.rs"),
        None => path == "lib.rs" || path == "main.rs",
    }
}

#[test]
fn stray_unsafe_is_found_in_code_only() {
    let found = |path: &str, text: &str| stray_unsafe(&Source::new(path, text)).len();
    assert_eq!(found("broker/src/io.rs", "fn f() { unsafe { g() } }"), 1);
    assert_eq!(found("reactor/tests/ring.rs", "unsafe fn f() {}"), 1);
    assert_eq!(
        found("broker/src/io.rs", "// unsafe\n#![forbid(unsafe_code)] const S: &str = \"unsafe\";"),
        0
    );
    assert_eq!(found("reactor/src/ring.rs", "unsafe fn f() {}"), 0);
    assert_eq!(found("broker/tests/warm_path/counting_allocator.rs", "unsafe fn f() {}"), 0);
}

#[test]
fn unguarded_root_is_found() {
    let found = |path: &str, text: &str| unguarded_root(&Source::new(path, text)).len();
    assert_eq!(found("broker/src/lib.rs", "// #![forbid(unsafe_code)]"), 1);
    assert_eq!(found("broker/src/lib.rs", "#![deny(unsafe_code)]"), 1);
    assert_eq!(found("loadgen/src/bin/replay.rs", ""), 1);
    assert_eq!(found("protocol/src/lib.rs", "#![forbid(unsafe_code)]"), 1);
    assert_eq!(found("protocol/src/lib.rs", "#![deny(unsafe_code)]"), 0);
    assert_eq!(found("broker/src/main.rs", "#![forbid(unsafe_code)]"), 0);
    assert_eq!(found("broker/src/io.rs", ""), 0);
    assert_eq!(found("benches/floor/src/lib.rs", ""), 0);
}
