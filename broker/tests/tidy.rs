//! Reads the workspace's own files and holds them to the house style: who may import whom, how long a file or a
//! function may be, where `unsafe` and clocks stand, which words a name may not hold, which links lead nowhere.
//!
//! Each rule is a function from a file's path and text to findings, in a module below `tidy/`, beside a test that
//! shows it a sample which it must find. The tests in this file run the rules over the real tree and list every
//! finding as `file:line: rule`. It parses just enough Rust for that; it is no compiler, and does not see through
//! macros.

#![forbid(unsafe_code)]

use std::sync::LazyLock;

use source::{Finding, Source};

#[path = "tidy/clocks.rs"]
mod clocks;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/links.rs"]
mod links;
#[path = "tidy/manifests.rs"]
mod manifests;
#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/paths.rs"]
mod paths;
#[path = "tidy/shape.rs"]
mod shape;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/tree.rs"]
mod tree;
#[path = "tidy/unfinished.rs"]
mod unfinished;
#[path = "tidy/unsafety.rs"]
mod unsafety;

/// Every Rust file of the workspace that people write.
static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| {
    let files =
        tree::files("rs").into_iter().filter(|(path, _)| !path.starts_with("protocol/src/generated/"));
    let sources: Vec<Source> = files.map(|(path, text)| Source::new(&path, &text)).collect();
    assert!(
        sources.iter().any(|source| source.path == "broker/tests/tidy.rs"),
        "the walk missed its own file"
    );
    sources
});

/// Runs a rule over every Rust file.
fn check_sources(rule: fn(&Source) -> Vec<Finding>) {
    assert_none(SOURCES.iter().flat_map(rule).collect());
}

/// Runs a rule over every member's `Cargo.toml`, and over the workspace's.
fn check_manifests(rule: fn(&str, &str) -> Vec<Finding>) {
    let manifests = tree::files("toml").into_iter().filter(|(path, _)| path.ends_with("Cargo.toml"));
    assert_none(manifests.flat_map(|(path, text)| rule(&path, &text)).collect());
}

fn assert_none(findings: Vec<Finding>) {
    let lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(lines.is_empty(), "{} findings:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn imports_point_down_only() {
    check_sources(layers::upward_imports);
}

#[test]
fn core_names_nothing_of_the_outside_world() {
    check_sources(layers::outside_world);
}

#[test]
fn core_has_no_map_of_random_order() {
    check_sources(layers::random_order);
}

#[test]
fn only_the_command_line_uses_the_client() {
    check_sources(layers::client_outside_cli);
}

#[test]
fn crates_depend_along_the_arrows_only() {
    check_manifests(manifests::stray_arrows);
}

#[test]
fn every_dependency_has_its_reason() {
    check_manifests(manifests::dependencies_without_reason);
}

#[test]
fn every_file_says_first_what_it_is() {
    check_sources(shape::module_doc);
}

#[test]
fn files_are_short() {
    check_sources(shape::long_file);
}

#[test]
fn functions_are_short() {
    check_sources(shape::long_functions);
}

#[test]
fn names_hold_no_empty_words() {
    check_sources(names::empty_words);
}

#[test]
fn unsafe_stands_in_its_places_only() {
    check_sources(unsafety::stray_unsafe);
}

#[test]
fn crate_roots_forbid_unsafe_code() {
    check_sources(unsafety::unguarded_root);
}

#[test]
fn clocks_are_read_in_their_places_only() {
    check_sources(clocks::stray_clock);
}

#[test]
fn nothing_is_left_unfinished() {
    check_sources(unfinished::marks);
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let documents =
        tree::files("md").into_iter().filter(|(path, _)| path == "README.md" || path.starts_with("docs/"));
    assert_none(documents.flat_map(|(path, text)| links::broken(&path, &text, tree::exists)).collect());
}
