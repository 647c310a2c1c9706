//! Which crate may depend on which, and that every dependency of the workspace stands below its reason.
//!
//! Reads `Cargo.toml` line by line: section headers, and keys at the front of a line. What stands in
//! `[dev-dependencies]` is free, because no user of a crate gets it.

use crate::source::Finding;

/// A crate's directory, and which of our own crates it may depend on.
const ARROWS: [(&str, &[&str]); 7] = [
    ("protocol", &[]),
    ("reactor", &[]),
    ("client", &["protocol"]),
    ("broker", &["protocol", "reactor", "client"]),
    ("benches/floor", &["protocol"]),
    ("loadgen", &["protocol", "client", "reactor", "broker", "floor"]),
    ("benches", &["protocol", "reactor", "client", "broker", "floor", "loadgen"]),
];

const OURS: [&str; 7] = ["protocol", "reactor", "client", "broker", "floor", "loadgen", "benches"];

/// Dependencies on our own crates that the table does not allow, and crates that it lacks.
pub(crate) fn stray_arrows(path: &str, text: &str) -> Vec<Finding> {
    let Some(directory) = path.strip_suffix("/Cargo.toml") else { return Vec::new() };
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == directory) else {
        let rule = format!("The crate table lacks `{directory}`: add it to ARROWS in {}.", file!());
        return vec![Finding { path: path.to_owned(), line: 1, rule }];
    };
    let stray =
        dependencies(text).into_iter().filter(|(_, name)| OURS.contains(name) && !allowed.contains(name));
    let findings = stray.map(|(line, name)| Finding {
        path: path.to_owned(),
        line,
        rule: format!("`{directory}` may depend on {allowed:?} of our crates, and not on `{name}`."),
    });
    findings.collect()
}

/// Lines of `[workspace.dependencies]` without a comment directly above. Our own crates, which follow each other, may
/// share one.
pub(crate) fn dependencies_without_reason(path: &str, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut section = "";
    // Whether the line above is a comment, or one of our own crates that has its reason.
    let mut covers_next = false;
    let mut covers_next_of_ours = false;
    for (index, line) in text.lines().map(str::trim).enumerate() {
        section = header(line).unwrap_or(section);
        let is_dependency = section == "workspace.dependencies" && key(line).is_some();
        let is_ours = is_dependency && line.contains("path =");
        let covered = covers_next || (is_ours && covers_next_of_ours);
        if is_dependency && !covered {
            let rule = "Every dependency has its reason, as a comment line above it.".to_owned();
            found.push(Finding { path: path.to_owned(), line: index + 1, rule });
        }
        covers_next = line.starts_with('#');
        covers_next_of_ours = is_ours && covered;
    }
    found
}

/// The packages that a crate's users get with it, with their lines.
fn dependencies(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut section = "";
    for (index, line) in text.lines().map(str::trim).enumerate() {
        if let Some(name) = header(line) {
            section = name;
            // `[dependencies.name]` names the package in the header.
            if let Some((above, package)) = name.rsplit_once('.')
                && is_for_users(above)
            {
                found.push((index + 1, package));
            }
        } else if is_for_users(section)
            && let Some(package) = key(line)
        {
            found.push((index + 1, renamed(line).unwrap_or(package)));
        }
    }
    found
}

/// The section's name, if the line is a header.
fn header(line: &str) -> Option<&str> {
    line.strip_prefix('[')?.split_once(']').map(|(name, _)| name.trim())
}

/// Also those below a `target.'cfg(..)'`.
fn is_for_users(section: &str) -> bool {
    let kind = section.rsplit('.').next().unwrap_or(section);
    kind == "dependencies" || kind == "build-dependencies"
}

/// The first part of the key of a `key = value` line.
fn key(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let name = key.split('.').next()?.trim().trim_matches('"');
    (!name.is_empty() && !line.starts_with('#')).then_some(name)
}

/// The package that a renamed dependency stands for.
fn renamed(line: &str) -> Option<&str> {
    let (_, value) = line.split_once("package")?;
    value.trim_start().strip_prefix('=')?.trim_start().strip_prefix('"')?.split('"').next()
}

fn lines_found(findings: &[Finding]) -> Vec<usize> {
    findings.iter().map(|finding| finding.line).collect()
}

#[test]
fn arrow_against_the_table_is_found() {
    let text = "[package]\nname = \"client\"\n[dependencies]\nprotocol.workspace = true\nbroker = { path = \"x\" }\n\n\
                [dev-dependencies]\nbroker.workspace = true\n[target.'cfg(unix)'.dependencies]\n\
                ring = { package = \"reactor\", path = \"x\" }\n[dependencies.floor]\npath = \"x\"";
    assert_eq!(lines_found(&stray_arrows("client/Cargo.toml", text)), [5, 10, 11]);
    assert!(lines_found(&stray_arrows("benches/Cargo.toml", text)).is_empty());
    assert_eq!(lines_found(&stray_arrows("novelty/Cargo.toml", "[package]")), [1]);
}

#[test]
fn dependency_without_reason_is_found() {
    let text = "[workspace.dependencies]\n# Ours.\na = { path = \"a\" }\nb = { path = \"b\" }\n\n# Why.\nc = \"1\"\nd = \"1\"\n\n\
                e = { path = \"e\" }\n[profile.dev]\npanic = \"abort\"";
    assert_eq!(lines_found(&dependencies_without_reason("Cargo.toml", text)), [8, 10]);
}
