//! How a file begins, and how long it and its functions may be.
//!
//! Lengths are lines from the first to the last, comments and blank ones included: what counts is what a reader has
//! to scroll through.

use crate::source::{Finding, Source, is_word, item_end, line_ends, test_modules, words};

/// Three to ten lines are aimed at.
const DOC_LINES_MIN: usize = 2;
const DOC_LINES_MAX: usize = 14;
const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;

/// A file whose first lines are no `//!` comment, or a long one.
pub(crate) fn module_doc(source: &Source) -> Vec<Finding> {
    let count = source.text.lines().take_while(|line| line.starts_with("//!")).count();
    if (DOC_LINES_MIN..=DOC_LINES_MAX).contains(&count) {
        return Vec::new();
    }
    let rule = format!(
        "A file begins with {DOC_LINES_MIN} to {DOC_LINES_MAX} lines of `//!` that say what it is, not {count}."
    );
    vec![source.finding(0, rule)]
}

/// A file that is too long without its test modules.
pub(crate) fn long_file(source: &Source) -> Vec<Finding> {
    let in_tests: usize =
        test_modules(&source.code).into_iter().map(|body| line_ends(&source.code[body])).sum();
    let count = source.text.lines().count() - in_tests;
    if count <= FILE_LINES_MAX {
        return Vec::new();
    }
    let rule = format!("A file has at most {FILE_LINES_MAX} lines without its tests, not {count}.");
    vec![source.finding(0, rule)]
}

/// Functions that are too long, from `fn` to the closing brace.
pub(crate) fn long_functions(source: &Source) -> Vec<Finding> {
    let code = &source.code;
    let functions = words(code).filter(|(offset, word)| *word == "fn" && is_named(code, offset + word.len()));
    let long = functions.filter_map(|(offset, _)| {
        let count = line_ends(&code[offset..item_end(code, offset)]) + 1;
        let rule = format!("A function has at most {FUNCTION_LINES_MAX} lines, not {count}.");
        (count > FUNCTION_LINES_MAX).then(|| source.finding(offset, rule))
    });
    long.collect()
}

/// Whether a name follows the `fn` that ends here; in the type `fn(u8)` none does.
fn is_named(code: &str, behind_fn: usize) -> bool {
    code[behind_fn..].trim_start().bytes().next().is_some_and(is_word)
}

#[test]
fn missing_short_and_long_module_docs_are_found() {
    let found = |text: &str| module_doc(&Source::new("x.rs", text)).len();
    assert_eq!(found("use std::fmt;\n//! Late.\n//! Later."), 1);
    assert_eq!(found("//! One line.\n"), 1);
    assert_eq!(found(&"//! Long.\n".repeat(DOC_LINES_MAX + 1)), 1);
    assert_eq!(found("//! Two\n//! lines.\n\nuse std::fmt;"), 0);
}

#[test]
fn long_file_is_found_and_its_tests_do_not_count() {
    let found = |text: &str| long_file(&Source::new("x.rs", text)).len();
    let full = "\n".repeat(FILE_LINES_MAX);
    assert_eq!(found(&full), 0);
    assert_eq!(found(&format!("{full}\n")), 1);
    assert_eq!(found(&format!("{full}#[cfg(test)]\nmod tests {{\n\n\n}}\n")), 1);
    let nearly_full = "\n".repeat(FILE_LINES_MAX - 1);
    assert_eq!(found(&format!("{nearly_full}#[cfg(test)]\nmod tests {{\n\n\n}}\n")), 0);
}

#[test]
fn long_function_is_found_whatever_braces_its_strings_hold() {
    let function =
        |lines: usize| format!("fn f(g: fn(u8), x: [u8; 3]) {{ let s = \"}}\";{}}}", "\n".repeat(lines - 1));
    let found = |text: &str| long_functions(&Source::new("x.rs", text)).len();
    assert_eq!(found(&function(FUNCTION_LINES_MAX)), 0);
    assert_eq!(found(&function(FUNCTION_LINES_MAX + 1)), 1);
    assert_eq!(found(&format!("trait T {{ fn f(); }}{}", "\n".repeat(FUNCTION_LINES_MAX + 1))), 0);
}
