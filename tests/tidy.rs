//! Holds what makes the house stand: which crate may depend on which, that the brain is pure, and where
//! `unsafe` may be. Lengths are reported, not enforced.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand, Package};

/// Each crate and all it may depend on inside the workspace. `rswarm` wires everything; nothing depends on tests.
const EDGES: &[(&str, &[&str])] = &[
    ("rswarm-base", &[]),
    ("rswarm-proto", &["base"]),
    ("rswarm-manager-core", &["proto", "base"]),
    ("rswarm-manager", &["manager-core", "proto", "base"]),
    ("rswarm-worker", &["proto", "base"]),
    ("rswarm-runtime", &["base"]),
    ("rswarm-image", &["base"]),
    ("rswarm-network", &["base"]),
    ("rswarm-shim", &["runtime", "base"]),
    ("rswarm-engine", &["shim", "runtime", "image", "network", "proto", "base"]),
    ("rswarm-api", &["engine", "image", "proto", "base"]),
    (
        "rswarm",
        &[
            "api",
            "engine",
            "image",
            "network",
            "shim",
            "runtime",
            "worker",
            "manager",
            "manager-core",
            "proto",
            "base",
        ],
    ),
    ("rswarm-sim", &["manager-core", "worker", "proto", "base"]),
    ("rswarm-tests", &["proto", "base"]),
];

/// What the brain must not be able to reach: an effect it cannot name, it cannot have.
const IMPURE_CRATES: &[&str] =
    &["tokio", "tokio-util", "getrandom", "rand", "rustix", "nix", "libc", "redb", "tonic"];
const IMPURE_WORDS: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "Timestamp::now",
    "SystemClock",
    "random_bytes",
    "from_system",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::thread",
    "tokio::",
    "fsx::",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are inside the workspace").to_owned()
}

fn packages() -> Vec<Package> {
    let metadata = MetadataCommand::new().current_dir(root()).no_deps().exec().expect("cargo metadata");
    metadata.packages
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the workspace") {
            let path = entry.expect("entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Source without its tests: up to the first `#[cfg(test)]` at the start of a line.
fn product_part(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("source");
    text.split("\n#[cfg(test)]").next().unwrap_or_default().to_owned()
}

fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn crates_depend_only_downwards() {
    let allowed: BTreeMap<&str, BTreeSet<String>> = EDGES
        .iter()
        .map(|(name, edges)| (*name, edges.iter().map(|edge| format!("rswarm-{edge}")).collect()))
        .collect();
    let mut wrong = Vec::new();
    for package in packages() {
        let name = package.name.to_string();
        let edges = allowed.get(name.as_str()).unwrap_or_else(|| panic!("crate `{name}` is not in EDGES"));
        for dependency in &package.dependencies {
            let inside = dependency.path.is_some() && dependency.kind != DependencyKind::Build;
            if inside && !edges.contains(&dependency.name) {
                wrong.push(format!("{name} -> {}", dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "edges that the design does not have: {wrong:?}");
}

#[test]
fn the_brain_knows_no_time_no_chance_and_no_world() {
    let core = packages().into_iter().find(|package| package.name.as_str() == "rswarm-manager-core");
    let core = core.expect("manager/core is in the workspace");
    let reachable: Vec<&str> = core
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind == DependencyKind::Normal)
        .map(|dependency| dependency.name.as_str())
        .filter(|name| IMPURE_CRATES.contains(name))
        .collect();
    assert!(reachable.is_empty(), "manager/core depends on {reachable:?}");
    let mut words = Vec::new();
    for path in sources().iter().filter(|path| path.starts_with(root().join("manager/core/src"))) {
        let text = product_part(path);
        for (line, code) in code_lines(&text) {
            for word in IMPURE_WORDS.iter().filter(|word| code.contains(**word)) {
                words.push(format!("{}:{line}: {word}", path.display()));
            }
        }
    }
    assert!(words.is_empty(), "manager/core reaches outside: {words:#?}");
}

#[test]
fn unsafe_stands_only_in_sys() {
    let mut wrong = Vec::new();
    for path in sources() {
        let in_sys = path.file_name().is_some_and(|name| name == "sys.rs")
            || path.parent().is_some_and(|parent| parent.ends_with("sys"));
        let text = std::fs::read_to_string(&path).expect("source");
        for (line, code) in code_lines(&text) {
            let is_unsafe =
                code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl");
            if is_unsafe && !in_sys && !path.ends_with("tests/tidy.rs") {
                wrong.push(format!("{}:{line}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe outside a sys.rs: {wrong:#?}");
}

#[test]
fn every_module_says_what_it_is() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|path| path.components().any(|part| part.as_os_str() == "src"))
        .filter(|path| !std::fs::read_to_string(path).expect("source").starts_with("//!"))
        .collect();
    assert!(silent.is_empty(), "modules without a `//!` opening: {silent:#?}");
}

/// Taste, not law: prints what is long, so that a reviewer sees it.
#[test]
fn report_of_lengths() {
    let mut files: Vec<(usize, PathBuf)> = sources()
        .into_iter()
        .filter(|path| path.components().any(|part| part.as_os_str() == "src"))
        .map(|path| (product_part(&path).lines().count(), path))
        .collect();
    files.sort_by(|a, b| b.cmp(a));
    let total: usize = files.iter().map(|(lines, _)| lines).sum();
    println!("{} files, {total} lines without tests; the longest:", files.len());
    for (lines, path) in files.iter().take(10) {
        println!("{lines:6}  {}", path.strip_prefix(root()).unwrap_or(path).display());
    }
    assert!(total > 0);
}
