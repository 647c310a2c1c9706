//! Who may import whom inside the broker, and what the core may not name at all.
//!
//! The table below is the architecture: each top-level module of `broker/src` stands in one layer, and a layer sees
//! the layers that it lists. A new arrow is a design change; a new module is one line in the table.

use crate::paths::paths;
use crate::source::{Finding, Source, inline_modules};

struct Layer {
    /// The numbers of the layers whose modules it may name. Its own number is there if its modules may see each
    /// other; a module always sees itself.
    sees: &'static [usize],
    modules: &'static [&'static str],
}

/// A layer's number is its place.
const LAYERS: [Layer; 7] = [
    Layer { sees: &[], modules: &["limits", "metrics", "bounded", "mutants"] },
    Layer { sees: &[0], modules: &["io"] },
    Layer { sees: &[0, 1], modules: &["journal", "log"] },
    Layer {
        sees: &[0, 1, 2],
        modules: &["partition", "group", "queue", "delay", "txn", "catalog", "rpc", "access"],
    },
    Layer { sees: &[0, 1, 2, 3], modules: &["shard"] },
    Layer { sees: &[0, 1], modules: &["mesh", "reactor_glue"] },
    Layer {
        sees: &[0, 1, 2, 3, 4, 5, 6],
        modules: &[
            "event_loop",
            "server",
            "admin_http",
            "config",
            "inspect",
            "cli",
            "main",
            "lib",
            "compact_thread",
            "file_thread",
            "preparer",
            "sync_thread",
            "threads",
            "data_dir",
            "durability",
            "waiting",
        ],
    },
];

/// The core: pure state, which gets the time and the outside world as data.
const CORE_LAYER_MAX: usize = 4;

const OUTSIDE_WORLD: [&[&str]; 5] = [
    &["std", "net"],
    &["std", "fs"],
    &["std", "thread"],
    &["std", "time", "Instant"],
    &["std", "time", "SystemTime"],
];

const RANDOM_ORDER: [&[&str]; 5] = [
    &["std", "collections", "HashMap"],
    &["std", "collections", "HashSet"],
    &["std", "collections", "hash_map"],
    &["std", "collections", "hash_set"],
    &["std", "hash", "RandomState"],
];

/// Imports that do not point down the table, modules that it lacks, and names of the crate's root that are none of
/// its modules.
pub(crate) fn upward_imports(source: &Source) -> Vec<Finding> {
    let Some(module) = module_of(&source.path) else { return Vec::new() };
    let Some(layer) = layer_of(module) else {
        let rule = format!("The layer table lacks the module `{module}`: add it to LAYERS in {}.", file!());
        return vec![source.finding(0, rule)];
    };
    let inline = inline_modules(&source.code);
    let upward = paths(&source.code).into_iter().filter_map(|path| {
        let inner = inline.iter().filter(|body| body.contains(&path.offset)).count();
        let target = root_name(&path.segments, depth_of(&source.path) + inner)?;
        let rule = objection(module, layer, target)?;
        Some(source.finding(path.offset, rule))
    });
    upward.collect()
}

/// In the core: the standard library's sockets, files, threads and clocks, and the reactor but for its memory.
pub(crate) fn outside_world(source: &Source) -> Vec<Finding> {
    if !is_core(&source.path) {
        return Vec::new();
    }
    let outside = paths(&source.production).into_iter().filter_map(|path| {
        let banned = OUTSIDE_WORLD.iter().find(|banned| leads_to(&path.segments, banned));
        let rule = if let Some(banned) = banned {
            format!("The core does no I/O and reads no clock: it may not name `{}`.", banned.join("::"))
        } else if path.segments[0] == "reactor" && path.segments.get(1).is_none_or(|next| next != "memory") {
            "Of the reactor, the core may name `reactor::memory` only.".to_owned()
        } else {
            return None;
        };
        Some(source.finding(path.offset, rule))
    });
    outside.collect()
}

/// In the core: maps whose order differs from run to run.
pub(crate) fn random_order(source: &Source) -> Vec<Finding> {
    if !is_core(&source.path) {
        return Vec::new();
    }
    let rule = "The core replays from a seed: take a BTreeMap, a BTreeSet or a bounded container.";
    let all = paths(&source.production);
    let random = all.iter().filter(|path| RANDOM_ORDER.iter().any(|banned| leads_to(&path.segments, banned)));
    random.map(|path| source.finding(path.offset, rule)).collect()
}

/// The client crate in any module but `cli`.
pub(crate) fn client_outside_cli(source: &Source) -> Vec<Finding> {
    if module_of(&source.path).is_none_or(|module| module == "cli") {
        return Vec::new();
    }
    let all = paths(&source.code);
    let client = all.iter().filter(|path| path.segments[0] == "client");
    client.map(|path| source.finding(path.offset, "Only the module `cli` uses the crate `client`.")).collect()
}

/// The top-level module that a file of the broker belongs to; for other files `None`.
fn module_of(path: &str) -> Option<&str> {
    let first = path.strip_prefix("broker/src/")?.split('/').next()?;
    Some(first.strip_suffix(".rs").unwrap_or(first))
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.modules.contains(&module))
}

fn is_core(path: &str) -> bool {
    module_of(path).and_then(layer_of).is_some_and(|layer| layer <= CORE_LAYER_MAX)
}

/// How many modules deep a file stands: the crate's root 0, `journal.rs` and `journal/mod.rs` 1, `journal/block.rs` 2.
fn depth_of(path: &str) -> usize {
    let inside = path.strip_prefix("broker/src/").unwrap_or(path);
    match inside {
        "lib.rs" | "main.rs" => 0,
        _ => inside.split('/').filter(|part| *part != "mod.rs").count(),
    }
}

/// The name below the crate's root that a path goes through, when written in a module `depth` deep.
fn root_name(segments: &[String], depth: usize) -> Option<&str> {
    let ups = segments.iter().take_while(|segment| *segment == "self" || *segment == "super").count();
    let supers = segments[..ups].iter().filter(|segment| *segment == "super").count();
    let name = if segments[0] == "crate" {
        segments.get(1)
    } else if ups > 0 && supers >= depth {
        segments.get(ups)
    } else {
        None
    };
    name.map(String::as_str).filter(|name| *name != "self")
}

/// Why a module may not name something below the crate's root; `None` if it may.
fn objection(module: &str, layer: usize, target: &str) -> Option<String> {
    let sees = LAYERS[layer].sees;
    if target == module || sees.contains(&layer) {
        return None;
    }
    match layer_of(target) {
        Some(below) if sees.contains(&below) => None,
        Some(other) => Some(format!(
            "Imports point down only: `{module}` of layer {layer} sees the layers {sees:?}, and `{target}` is of layer {other}."
        )),
        None => Some(format!(
            "The layer table knows no `crate::{target}`: name the module that defines it, or add it to LAYERS in {}.",
            file!()
        )),
    }
}

/// Whether a path names the banned one, something below it, or a module from which it can be reached unseen
/// (`use std::time;`).
fn leads_to(segments: &[String], banned: &[&str]) -> bool {
    let named = segments.iter().map(String::as_str).filter(|segment| *segment != "self" && *segment != "*");
    named.clone().count() > 1 && named.zip(banned).all(|(segment, part)| segment == *part)
}

fn lines_found(rule: fn(&Source) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
    rule(&Source::new(path, text)).iter().map(|finding| finding.line).collect()
}

#[test]
fn import_of_a_higher_layer_is_found() {
    let text = "use crate::limits::X;\nuse crate::{\n    io,\n    shard::Shard,\n};\nfn f() { crate::server::run() }";
    assert_eq!(lines_found(upward_imports, "broker/src/journal/block.rs", text), [4, 6]);
    assert!(lines_found(upward_imports, "broker/src/server.rs", text).is_empty());
}

#[test]
fn neighbours_of_a_layer_do_not_see_each_other() {
    assert_eq!(lines_found(upward_imports, "broker/src/journal.rs", "use crate::log::Segment;"), [1]);
    assert_eq!(lines_found(upward_imports, "broker/src/queue/lease.rs", "use crate::group::Group;"), [1]);
    assert!(lines_found(upward_imports, "broker/src/queue/lease.rs", "use crate::queue::Queue;").is_empty());
    assert_eq!(lines_found(upward_imports, "broker/src/mesh.rs", "use crate::shard::Shard;"), [1]);
}

#[test]
fn upward_import_through_super_is_found() {
    assert_eq!(lines_found(upward_imports, "broker/src/journal.rs", "use super::shard::Shard;"), [1]);
    assert!(
        lines_found(upward_imports, "broker/src/journal/block.rs", "use super::shard::Shard;").is_empty()
    );
    let nested = "mod tests {\n    use super::super::shard::Shard;\n    use super::shard::Shard;\n}";
    assert_eq!(lines_found(upward_imports, "broker/src/journal.rs", nested), [2]);
}

#[test]
fn module_and_root_name_that_the_table_lacks_are_found() {
    assert_eq!(lines_found(upward_imports, "broker/src/novelty.rs", "fn f() {}"), [1]);
    assert_eq!(lines_found(upward_imports, "broker/src/journal.rs", "\nuse crate::Shard;"), [2]);
    assert!(lines_found(upward_imports, "client/src/novelty.rs", "use crate::anything;").is_empty());
}

#[test]
fn outside_world_in_the_core_is_found() {
    let text = "use std::{fmt, fs};\nuse std::time::{Duration, Instant};\nuse reactor::memory::Pool;\nuse reactor::ring;\nuse std::time;";
    assert_eq!(lines_found(outside_world, "broker/src/shard/dispatch.rs", text), [1, 2, 4, 5]);
    assert!(lines_found(outside_world, "broker/src/event_loop.rs", text).is_empty());
    let call = "fn f() {\n    std::thread::yield_now();\n}\n#[cfg(test)]\nmod tests { use std::fs; }";
    assert_eq!(lines_found(outside_world, "broker/src/log.rs", call), [2]);
}

#[test]
fn map_of_random_order_in_the_core_is_found() {
    let text = "use std::collections::{BTreeMap, HashMap};\nfn f(x: std::collections::HashSet<u8>) {}";
    assert_eq!(lines_found(random_order, "broker/src/catalog.rs", text), [1, 2]);
    assert!(lines_found(random_order, "broker/src/config.rs", text).is_empty());
}

#[test]
fn client_outside_the_command_line_is_found() {
    assert_eq!(lines_found(client_outside_cli, "broker/src/server.rs", "\nuse client::Connection;"), [2]);
    assert_eq!(lines_found(client_outside_cli, "broker/src/server.rs", "fn f() { client::connect() }"), [1]);
    assert!(
        lines_found(client_outside_cli, "broker/src/cli/publish.rs", "use client::Connection;").is_empty()
    );
    assert!(lines_found(client_outside_cli, "loadgen/src/main.rs", "use client::Connection;").is_empty());
}
