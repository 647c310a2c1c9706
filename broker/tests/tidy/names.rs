//! Words that say nothing, kept out of the names of types, modules and files.
//!
//! A name is cut at underscores and at capitals, so `handle` and `utility` pass where `ConnectionHandler` and
//! `string_util` do not.

use crate::source::{Finding, Source, words};

const EMPTY_WORDS: [&str; 10] =
    ["manager", "managers", "handler", "handlers", "helper", "helpers", "util", "utils", "common", "misc"];
/// Only as the last word: `impl` says how, and the name should say what.
const EMPTY_SUFFIX: &str = "impl";
/// The product's name, which every type of it could bear.
const PRODUCT: &str = "forebay";

const TYPE_KEYWORDS: [&str; 5] = ["struct", "enum", "trait", "union", "type"];

/// Types and modules that the file defines, and the parts of its own path, which hold an empty word.
pub(crate) fn empty_words(source: &Source) -> Vec<Finding> {
    let all: Vec<(usize, &str)> = words(&source.code).collect();
    let defined = all.windows(2).filter_map(|pair| {
        let ((_, keyword), (offset, name)) = (pair[0], pair[1]);
        let is_type = TYPE_KEYWORDS.contains(&keyword);
        let word = if is_type || keyword == "mod" { empty_word(name, is_type)? } else { return None };
        Some(source.finding(offset, rule(name, &word)))
    });
    let parts = source.path.split('/').filter_map(|part| {
        let word = empty_word(part.strip_suffix(".rs").unwrap_or(part), false)?;
        Some(source.finding(0, rule(part, &word)))
    });
    parts.chain(defined).collect()
}

fn rule(name: &str, word: &str) -> String {
    format!("The name `{name}` holds `{word}`, which says nothing: name what it is or does.")
}

/// The first word of a name that is not allowed there.
fn empty_word(name: &str, is_type: bool) -> Option<String> {
    let parts = parts(name);
    if is_type && parts.first().is_some_and(|first| first == PRODUCT) {
        return Some(PRODUCT.to_owned());
    }
    if parts.last().is_some_and(|last| last == EMPTY_SUFFIX) {
        return Some(EMPTY_SUFFIX.to_owned());
    }
    parts.into_iter().find(|part| EMPTY_WORDS.contains(&part.as_str()))
}

/// The words of a name in small letters: `RecordIndex` and `record_index` give the same.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for letter in name.chars() {
        if letter == '_' || letter == '-' || letter.is_uppercase() {
            parts.push(String::new());
        }
        if let Some(part) = parts.last_mut()
            && letter.is_alphanumeric()
        {
            part.extend(letter.to_lowercase());
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[test]
fn empty_word_in_a_type_or_module_is_found() {
    let found = |text: &str| empty_words(&Source::new("broker/src/io.rs", text)).len();
    for name in ["JournalManager", "FrameHandler", "TestHelpers", "ByteUtil", "StoreImpl", "ForebayError"] {
        assert_eq!(found(&format!("pub(crate) struct {name};")), 1, "{name}");
    }
    assert_eq!(found("mod string_utils;"), 1);
    assert_eq!(found("type CommonHeader = u8; enum Misc {}"), 2);
    assert_eq!(
        found("struct Handle; mod implied; enum Utility {} // struct Manager\nfn forebay_dir() {}"),
        0
    );
}

#[test]
fn empty_word_in_a_path_is_found() {
    let found = |path: &str| empty_words(&Source::new(path, "")).len();
    assert_eq!(found("broker/tests/common/mod.rs"), 1);
    assert_eq!(found("broker/src/signal_handler.rs"), 1);
    assert_eq!(found("broker/src/bin/forebay.rs"), 0);
}
