//! Just enough JSON to read what `inspect --json` writes.
//!
//! The shape is checked as a whole; fields are then found by their names in the text.

use std::path::PathBuf;

/// Where the JSON value that begins at `at` ends, if it is one; our writer puts no spaces between.
pub(crate) fn behind_value(text: &[u8], at: usize) -> Option<usize> {
    match *text.get(at)? {
        b'{' => behind_items(text, at + 1, b'}', |at| {
            let colon = behind_text(text, at)?;
            if *text.get(colon)? == b':' { behind_value(text, colon + 1) } else { None }
        }),
        b'[' => behind_items(text, at + 1, b']', |at| behind_value(text, at)),
        b'"' => behind_text(text, at),
        b'0'..=b'9' => Some(at + text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count()),
        _ => {
            let word =
                ["null", "true", "false"].into_iter().find(|word| text[at..].starts_with(word.as_bytes()))?;
            Some(at + word.len())
        }
    }
}

fn behind_items(
    text: &[u8],
    mut at: usize,
    close: u8,
    behind_item: impl Fn(usize) -> Option<usize>,
) -> Option<usize> {
    if *text.get(at)? == close {
        return Some(at + 1);
    }
    loop {
        at = behind_item(at)?;
        match *text.get(at)? {
            b',' => at += 1,
            other => return (other == close).then_some(at + 1),
        }
    }
}

fn behind_text(text: &[u8], at: usize) -> Option<usize> {
    if *text.get(at)? != b'"' {
        return None;
    }
    let mut end = at + 1;
    while *text.get(end)? != b'"' {
        end += if text[end] == b'\\' { 2 } else { 1 };
    }
    Some(end + 1)
}

/// The first number of a field of this name.
pub(crate) fn number(json: &str, field: &str) -> Option<u64> {
    let (_, behind) = json.split_once(&format!("\"{field}\":"))?;
    let digits = behind.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(behind.len());
    behind[..digits].parse().ok()
}

/// The objects that begin with a file whose name begins so, each as text up to the next one.
pub(crate) fn objects<'a>(json: &'a str, name: &str) -> Vec<(PathBuf, &'a str)> {
    let mut found = Vec::new();
    for piece in json.split("{\"file\":\"").skip(1).filter(|piece| piece.starts_with(name)) {
        let (file, rest) = piece.split_once('"').unwrap();
        found.push((PathBuf::from(file), rest));
    }
    found
}
