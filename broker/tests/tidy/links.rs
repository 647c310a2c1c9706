//! Relative links of the Markdown documents, which must name files that exist.
//!
//! Links inside code are none; addresses with a scheme and places within the same page are not followed. A link from
//! the root (`/docs/x.md`) is taken from the workspace's root, as the web view does.

use crate::source::Finding;

/// Links of a document that lead to nothing, where `exists` answers for a path from the workspace's root.
pub(crate) fn broken(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut found = Vec::new();
    for (line, target) in targets(text) {
        let resolved = resolve(path, &target);
        if resolved.is_none_or(|file| !exists(&file)) {
            let rule = format!("The link `{target}` leads to no file of the workspace.");
            found.push(Finding { path: path.to_owned(), line, rule });
        }
    }
    found
}

/// The relative targets of all links, with their lines.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut is_fenced = false;
    for (index, line) in text.lines().enumerate() {
        let start = line.trim_start();
        if start.starts_with("```") || start.starts_with("~~~") {
            is_fenced = !is_fenced;
        } else if !is_fenced {
            let prose = without_code(line);
            let inline = prose.match_indices("](").filter_map(|(at, _)| file_part(&prose[at + 2..]));
            found.extend(inline.chain(definition(&prose)).map(|target| (index + 1, target)));
        }
    }
    found
}

/// The line with spaces for what stands between backticks.
fn without_code(line: &str) -> String {
    let parts = line.split('`').enumerate();
    let prose: Vec<String> =
        parts.map(|(index, part)| if index % 2 == 0 { part.to_owned() } else { " ".to_owned() }).collect();
    prose.concat()
}

/// The target of a line such as `[name]: docs/x.md`.
fn definition(line: &str) -> Option<String> {
    let (name, target) = line.trim_start().strip_prefix('[')?.split_once("]: ")?;
    if name.starts_with('^') || name.contains(']') { None } else { file_part(target) }
}

/// The file that a link's target names, without title and place in the page; `None` if it names none.
fn file_part(target: &str) -> Option<String> {
    let target = target.trim_start();
    let whole = match target.strip_prefix('<') {
        Some(quoted) => quoted.split('>').next()?,
        None => bare(target),
    };
    let file = whole.split(['#', '?']).next()?;
    let is_elsewhere = whole.contains("://") || whole.starts_with("mailto:");
    (!is_elsewhere && !file.is_empty()).then(|| file.replace("%20", " "))
}

/// Up to a space or the parenthesis that closes the link; pairs of parentheses may stand in it.
fn bare(target: &str) -> &str {
    let mut depth = 0_usize;
    for (at, letter) in target.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' if depth == 0 => return &target[..at],
            ')' => depth -= 1,
            _ if letter.is_whitespace() => return &target[..at],
            _ => {}
        }
    }
    target
}

/// The path from the workspace's root that a link in the document means; `None` if it leaves the workspace.
fn resolve(document: &str, target: &str) -> Option<String> {
    let directory = document.rsplit_once('/').map_or("", |(directory, _)| directory);
    let start = if target.starts_with('/') { "" } else { directory };
    let mut parts = Vec::new();
    for part in start.split('/').chain(target.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn lines_found(path: &str, text: &str, present: &[&str]) -> Vec<usize> {
    broken(path, text, |file| present.contains(&file)).iter().map(|finding| finding.line).collect()
}

#[test]
fn broken_link_is_found() {
    let text = "[a](docs/A.md)\n[b](docs/B.md#part \"title\")\n[c]: docs/C.md\n![d](<docs/D d.png>) [a](./docs/A.md)";
    assert_eq!(lines_found("README.md", text, &["docs/A.md"]), [2, 3, 4]);
    assert!(
        lines_found("README.md", text, &["docs/A.md", "docs/B.md", "docs/C.md", "docs/D d.png"]).is_empty()
    );
}

#[test]
fn links_start_at_their_document() {
    let text = "[a](A.md)\n[r](../README.md)\n[s](/LICENSE-MIT)\n[out](../../x.md)";
    assert_eq!(
        lines_found("docs/DECISIONS/1.md", text, &["docs/DECISIONS/A.md", "docs/README.md", "LICENSE-MIT"]),
        [4]
    );
    assert_eq!(lines_found("docs/1.md", text, &["docs/A.md", "README.md"]), [3, 4]);
}

#[test]
fn links_elsewhere_and_in_code_are_let_alone() {
    let text = "[a](https://example.org/x) [b](#part) [c](mailto:a@b)\n```\n[d](nowhere.md)\n```\n`[e](nowhere.md)`\n[^1]: Note.";
    assert!(lines_found("README.md", text, &[]).is_empty());
}
