//! The files of the workspace, as paths from its root with their texts.
//!
//! Hidden directories, build output and symbolic links are left out. The order is that of the paths, so that two
//! runs report alike.

use std::fs;
use std::path::{Path, PathBuf};

/// Directories that hold no sources: cargo's output, and what a broker that was started here leaves behind.
const SKIPPED: [&str; 2] = ["target", "forebay-data"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file whose name ends in `.extension`, as its path from the root, with `/`, and its text.
pub(crate) fn files(extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    walk(&root(), "", &mut |relative, absolute| {
        if absolute.extension().is_some_and(|end| end == extension) {
            let text = fs::read_to_string(absolute).unwrap_or_else(|error| panic!("{relative}: {error}"));
            found.push((relative.to_owned(), text));
        }
    });
    found.sort();
    found
}

/// Whether there is a file or a directory at this path from the root.
pub(crate) fn exists(relative: &str) -> bool {
    root().join(relative).exists()
}

fn walk(directory: &Path, prefix: &str, visit: &mut dyn FnMut(&str, &Path)) {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    for entry in entries {
        let entry = entry.unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let kind = entry.file_type().unwrap_or_else(|error| panic!("{}: {error}", entry.path().display()));
        let name = entry.file_name().to_string_lossy().into_owned();
        let relative = format!("{prefix}{name}");
        if kind.is_dir() && !name.starts_with('.') && !SKIPPED.contains(&name.as_str()) {
            walk(&entry.path(), &format!("{relative}/"), visit);
        } else if kind.is_file() {
            visit(&relative, &entry.path());
        }
    }
}
