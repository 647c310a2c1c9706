//! Marks of unfinished work: macros that stand for missing code, tests that are switched off, notes to oneself.
//!
//! What is not done yet goes into the issue list, where somebody finds it.

use crate::source::{Finding, Source, words};

const MACROS: [&str; 3] = ["todo", "unimplemented", "dbg"];
const SWITCHED_OFF: &str = "#[ignore";
/// In comments and in names.
const NOTES: [&str; 2] = ["FIXME", "XXX"];

/// Every such mark. Literals are not looked at.
pub(crate) fn marks(source: &Source) -> Vec<Finding> {
    let macros = words(&source.code).filter(|(offset, word)| {
        let behind = &source.code.as_bytes()[offset + word.len()..];
        MACROS.contains(word) && matches!(behind, [b'!', b'(' | b'[' | b'{', ..])
    });
    let notes = words(&source.code).chain(words(&source.comments)).filter(|(_, word)| NOTES.contains(word));
    let tests = source.code.match_indices(SWITCHED_OFF);
    let all = macros.chain(notes).chain(tests);
    all.map(|(offset, mark)| source.finding(offset, format!("`{mark}` marks unfinished work: finish it.")))
        .collect()
}

#[test]
fn every_mark_is_found() {
    let found = |text: &str| marks(&Source::new("x.rs", text)).len();
    assert_eq!(found("fn f() { todo!() }"), 1);
    assert_eq!(found("fn f() { unimplemented!(\"later\"); dbg!(x); }"), 2);
    assert_eq!(found("#[test]\n#[ignore = \"slow\"]\nfn f() {}"), 1);
    assert_eq!(found("// FIXME: wrong.\n/* XXX */ fn f() {}"), 2);
}

#[test]
fn words_that_only_look_like_marks_are_let_alone() {
    let found = |text: &str| marks(&Source::new("x.rs", text)).len();
    assert_eq!(found("fn f(todo: u8) -> bool { todo != 1 } // XXXL, ignore"), 0);
    assert_eq!(found("const S: &str = \"todo!() FIXME\";"), 0);
}
