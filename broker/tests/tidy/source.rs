//! One Rust file, split into code, comments and literals, and the few searches that all rules share.
//!
//! The views have the length of the text: what does not belong to a view is a space in it, and line ends stay. So
//! an offset means the same place in each of them, and braces in a view of the code are braces of the code.

use std::fmt;
use std::iter;
use std::ops::Range;

/// A place that breaks a rule.
pub(crate) struct Finding {
    pub(crate) path: String,
    pub(crate) line: usize,
    /// What the rule says, as one sentence.
    pub(crate) rule: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.path, self.line, self.rule)
    }
}

/// A file and its views.
pub(crate) struct Source {
    /// From the workspace's root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    /// Without comments and literals.
    pub(crate) code: String,
    /// Nothing but comments.
    pub(crate) comments: String,
    /// The code without `#[cfg(test)]` modules; blank if the whole file is a test.
    pub(crate) production: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let kinds = kinds(text.as_bytes());
        let code = view(text, |at| kinds[at] == Kind::Code);
        let comments = view(text, |at| kinds[at] == Kind::Comment);
        let tests: Vec<Range<usize>> =
            if is_test(path) { iter::once(0..code.len()).collect() } else { test_modules(&code) };
        let production = view(&code, |at| !tests.iter().any(|range| range.contains(&at)));
        Self { path: path.to_owned(), text: text.to_owned(), code, comments, production }
    }

    /// A finding at an offset, which may come from any of the views.
    pub(crate) fn finding(&self, offset: usize, rule: impl Into<String>) -> Finding {
        let line = line_ends(&self.text[..offset]) + 1;
        Finding { path: self.path.clone(), line, rule: rule.into() }
    }
}

/// Whether the file is compiled for tests only, judged by its path.
pub(crate) fn is_test(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs")
}

pub(crate) fn line_ends(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// Every word of the code (keyword, identifier, number) with its offset.
pub(crate) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let bytes = code.as_bytes();
    let mut at = 0;
    iter::from_fn(move || {
        while at < bytes.len() && !is_word(bytes[at]) {
            at += 1;
        }
        let start = at;
        while at < bytes.len() && is_word(bytes[at]) {
            at += 1;
        }
        if start < at { Some((start, &code[start..at])) } else { None }
    })
}

pub(crate) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Where the item that begins at `from` ends: behind its `;`, or behind the brace that closes its body.
pub(crate) fn item_end(code: &str, from: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b';' if depth == 0 => return at + 1,
            b'{' if depth == 0 => return brace_end(code, at),
            _ => {}
        }
    }
    code.len()
}

/// The bodies of the modules that are written in the file itself, as `mod name { .. }`.
pub(crate) fn inline_modules(code: &str) -> Vec<Range<usize>> {
    let all: Vec<(usize, &str)> = words(code).collect();
    let modules = all.windows(2).filter(|pair| pair[0].1 == "mod").filter_map(|pair| {
        let (name_at, name) = pair[1];
        let behind = &code[name_at + name.len()..];
        let body = name_at + name.len() + (behind.len() - behind.trim_start().len());
        code[body..].starts_with('{').then(|| body..brace_end(code, body))
    });
    modules.collect()
}

/// The modules that are compiled for tests only, each from its attribute to its end.
pub(crate) fn test_modules(code: &str) -> Vec<Range<usize>> {
    let attributes = code.match_indices("#[cfg(test)]").map(|(from, _)| from..item_end(code, from));
    let is_module = |range: &Range<usize>| {
        let head = code[range.clone()].split('{').next().unwrap_or_default();
        words(head).any(|(_, word)| word == "mod")
    };
    attributes.filter(is_module).collect()
}

/// Behind the brace that closes the one at `open`.
fn brace_end(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// The text with a space for every byte that is not wanted, but with all line ends.
fn view(text: &str, wanted: impl Fn(usize) -> bool) -> String {
    let keep = |(at, byte): (usize, u8)| if byte == b'\n' || wanted(at) { byte } else { b' ' };
    let bytes: Vec<u8> = text.bytes().enumerate().map(keep).collect();
    String::from_utf8(bytes).expect("the parts of a source meet at ASCII characters")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

/// What each byte belongs to. A literal's prefix (the `b` of `b"x"`) counts as code, a raw string's does not.
fn kinds(bytes: &[u8]) -> Vec<Kind> {
    let mut kinds = vec![Kind::Code; bytes.len()];
    let mut at = 0;
    while at < bytes.len() {
        let (length, kind) = next_part(&bytes[at..]);
        kinds[at..at + length].fill(kind);
        at += length;
    }
    kinds
}

/// The length and kind of the part at the front of `rest`, which is not empty.
fn next_part(rest: &[u8]) -> (usize, Kind) {
    if rest.starts_with(b"//") {
        let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        return (length, Kind::Comment);
    }
    if rest.starts_with(b"/*") {
        return (block_comment_length(rest), Kind::Comment);
    }
    if rest[0] == b'"' {
        return (string_length(rest), Kind::Literal);
    }
    if rest[0] == b'\'' {
        return character_length(rest).map_or((1, Kind::Code), |length| (length, Kind::Literal));
    }
    let word_length = rest.iter().take_while(|byte| is_word(**byte)).count();
    let (word, behind) = rest.split_at(word_length);
    if matches!(word, b"r" | b"br" | b"cr")
        && let Some(length) = raw_string_length(behind)
    {
        return (word_length + length, Kind::Literal);
    }
    (word_length.max(1), Kind::Code)
}

fn block_comment_length(rest: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn string_length(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// The length of what follows the `r`: `#"..."#` with any number of hashes. A raw identifier gives `None`.
fn raw_string_length(behind: &[u8]) -> Option<usize> {
    let hashes = behind.iter().take_while(|byte| **byte == b'#').count();
    if behind.get(hashes) != Some(&b'"') {
        return None;
    }
    let mut end = vec![b'"'];
    end.extend(iter::repeat_n(b'#', hashes));
    let body = hashes + 1;
    let close = behind[body..].windows(end.len()).position(|window| window == end);
    Some(close.map_or(behind.len(), |at| body + at + end.len()))
}

/// The length of `'x'` or `'\n'`; `None` at a lifetime.
fn character_length(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        // The character behind the backslash may itself be a quote.
        return Some(3 + rest.get(3..)?.iter().position(|byte| *byte == b'\'')? + 1);
    }
    let width = match rest.get(1)? {
        0..=0x7f => 1,
        0x80..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xff => 4,
    };
    (rest.get(1 + width) == Some(&b'\'')).then_some(width + 2)
}

#[test]
fn code_comments_and_literals_are_told_apart() {
    let text = "let a = \"// one\"; // \"two\"\nlet b: &'a str = r#\"three \" \"#; /* 4 /* 5 */ 6 */ let c = ('\\'', 'é');";
    let source = Source::new("x.rs", text);
    let code: Vec<&str> = words(&source.code).map(|(_, word)| word).collect();
    assert_eq!(code, ["let", "a", "let", "b", "a", "str", "let", "c"]);
    let comments: Vec<&str> = words(&source.comments).map(|(_, word)| word).collect();
    assert_eq!(comments, ["two", "4", "5", "6"]);
    assert_eq!(source.code.len(), text.len());
    assert_eq!(line_ends(&source.code), 1);
}

#[test]
fn production_ends_where_the_test_module_begins() {
    let text =
        "fn kept() {}\n#[cfg(test)]\n#[allow(dead_code)]\nmod tests { fn gone() { } }\nfn kept_too() {}";
    let source = Source::new("x/src/y.rs", text);
    assert!(source.production.contains("kept()"));
    assert!(source.production.contains("kept_too()"));
    assert!(!source.production.contains("gone"));
    assert_eq!(Source::new("x/tests/y.rs", text).production.trim(), "");
}

#[test]
fn finding_names_the_line_of_its_offset() {
    let source = Source::new("x.rs", "one\ntwo\nthree");
    assert_eq!(source.finding(8, "Rule.").to_string(), "x.rs:3: Rule.");
}
