//! The paths (`a::b::c`) that a file's code names, those of `use` trees written out in full.
//!
//! `use crate::{io, journal::{self, Block}}` gives `crate::io`, `crate::journal::self`, `crate::journal::Block`.
//! Generic arguments end a path; what stands in them is found on its own.

use crate::source::is_word;

/// A path, and where its last part was written.
pub(crate) struct Path {
    pub(crate) offset: usize,
    pub(crate) segments: Vec<String>,
}

/// Every path of two segments or more, and every import, in the order of the file.
pub(crate) fn paths(code: &str) -> Vec<Path> {
    let mut cursor = Cursor { code, at: 0 };
    let mut found = Vec::new();
    while cursor.seek_word() {
        let offset = cursor.at;
        let first = cursor.word();
        // `use<..>` lists what a return type captures and imports nothing.
        if first == "use" && !cursor.sees("<") {
            cursor.use_tree(&[], &mut found);
            continue;
        }
        let mut segments = vec![first];
        while cursor.takes("::") {
            let next = cursor.word();
            if next.is_empty() {
                break;
            }
            segments.push(next);
        }
        if segments.len() > 1 {
            found.push(Path { offset, segments });
        }
    }
    found
}

struct Cursor<'a> {
    code: &'a str,
    at: usize,
}

impl Cursor<'_> {
    /// Moves to the next word; false if there is none.
    fn seek_word(&mut self) -> bool {
        let bytes = self.code.as_bytes();
        while self.at < bytes.len() && !is_word(bytes[self.at]) {
            self.at += 1;
        }
        self.at < bytes.len()
    }

    fn skip_space(&mut self) {
        let bytes = self.code.as_bytes();
        while self.at < bytes.len() && bytes[self.at].is_ascii_whitespace() {
            self.at += 1;
        }
    }

    fn sees(&mut self, token: &str) -> bool {
        self.skip_space();
        self.code.as_bytes()[self.at..].starts_with(token.as_bytes())
    }

    fn takes(&mut self, token: &str) -> bool {
        let seen = self.sees(token);
        if seen {
            self.at += token.len();
        }
        seen
    }

    /// Takes the word that comes next; empty if something else does.
    fn word(&mut self) -> String {
        self.skip_space();
        let bytes = self.code.as_bytes();
        let start = self.at;
        while self.at < bytes.len() && is_word(bytes[self.at]) {
            self.at += 1;
        }
        self.code[start..self.at].to_owned()
    }

    /// One branch of a `use`, below the segments of the branches that it hangs on.
    fn use_tree(&mut self, prefix: &[String], found: &mut Vec<Path>) {
        self.skip_space();
        let offset = self.at;
        let mut segments = prefix.to_vec();
        self.takes("::");
        loop {
            if self.takes("{") {
                self.use_group(&segments, found);
                return;
            }
            let next = if self.takes("*") { "*".to_owned() } else { self.word() };
            if !next.is_empty() {
                segments.push(next);
            }
            if !self.takes("::") {
                break;
            }
        }
        self.skip_rename();
        if !segments.is_empty() {
            found.push(Path { offset, segments });
        }
    }

    /// The branches between braces. Stops at anything that it cannot read, such as a macro's variable.
    fn use_group(&mut self, prefix: &[String], found: &mut Vec<Path>) {
        while !self.takes("}") {
            let before = self.at;
            self.use_tree(prefix, found);
            self.takes(",");
            if self.at == before {
                return;
            }
        }
    }

    fn skip_rename(&mut self) {
        let before = self.at;
        if self.word() == "as" {
            self.word();
        } else {
            self.at = before;
        }
    }
}

#[test]
fn use_trees_are_written_out_in_full() {
    let code = "pub use crate::{\n    io, journal::{self, Block as B}, log::*,\n};\nuse ::std::fs as files;";
    let found: Vec<String> = paths(code).iter().map(|path| path.segments.join("::")).collect();
    let expected = ["crate::io", "crate::journal::self", "crate::journal::Block", "crate::log::*", "std::fs"];
    assert_eq!(found, expected);
}

#[test]
fn paths_in_expressions_and_types_are_found() {
    let code =
        "fn f() -> Vec<crate::io::Op> { let x = std :: fs\n::read(1); y.z::<a::B>(); c::D::<e::F>::g() }";
    let found: Vec<String> = paths(code).iter().map(|path| path.segments.join("::")).collect();
    assert_eq!(found, ["crate::io::Op", "std::fs::read", "a::B", "c::D", "e::F"]);
}
