//! Owns the table of allowed edges between crates, and the invariants that are absences: what is
//! not linked, not written, not there. ARCHITECTURE.md says why each of them holds.
//!
//! A new edge fails here first: review it, then add it to the table. An edge that nobody uses any
//! more fails as well.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Every crate with the crates it may link. Layers from the bottom; arrows point down only.
const EDGES: &[(&str, &[&str])] = &[
    // L0: wire types. Parse, print, hash, sign.
    ("digest", &[]),
    ("tlog", &[]),
    ("attest", &["digest"]),
    ("oci", &["digest"]),
    // L1: pure decisions.
    ("recipe", &["attest", "digest"]),
    ("release", &["attest", "digest"]),
    // Check: verifies, links no writer.
    ("audit", &["attest", "digest", "tlog"]),
    // L2: does. Siblings meet in the traits of `store`; `sandbox` runs what they are given.
    ("store", &["attest", "digest"]),
    ("sandbox", &[]),
    ("source", &["digest"]),
    ("ledger", &["attest", "digest", "store", "tlog"]),
    ("fetch", &["digest", "recipe", "store"]),
    ("registry", &["attest", "digest", "oci", "store"]),
    ("build", &["digest", "fetch", "oci", "recipe", "sandbox", "store"]),
    ("deploy", &["attest", "digest", "release", "sandbox", "store"]),
    // L3: the rim. `server` and the binary alone compose.
    ("api", &["digest"]),
    ("client", &["api"]),
    ("ui", &["api"]),
    (
        "server",
        &[
            "api", "attest", "audit", "build", "deploy", "digest", "fetch", "ledger", "oci", "recipe", "registry",
            "release", "sandbox", "source", "store", "ui",
        ],
    ),
    ("adamant", &["api", "audit", "client", "deploy", "digest", "recipe", "sandbox", "server"]),
    // Measures; nothing links it.
    ("bench", &["attest", "audit", "digest", "ledger", "sandbox", "store"]),
    // Beside the product: suites for tests, measurements.
    ("conformance", &["attest", "digest", "store", "tlog"]),
    ("bench", &["attest", "audit", "digest", "ledger", "sandbox", "store"]),
];

/// Edges that only tests have.
const TEST_EDGES: &[(&str, &[&str])] = &[
    ("adamant", &["conformance"]),
    ("ledger", &["conformance"]),
    ("registry", &["conformance"]),
    ("store", &["conformance"]),
];

/// Crates that decide and describe: no async, no network, no files of their own.
const PURE: &[&str] = &["digest", "tlog", "attest", "oci", "recipe", "release", "audit"];

/// What a pure crate must not reach, by any way.
const IMPURE: &[&str] =
    &["tokio", "hyper", "reqwest", "sqlx", "sqlx-core", "futures-util", "tempfile", "rustix", "rand"];

/// Most packages in `Cargo.lock`, ours included.
const MAX_LOCKED: usize = 550;

type Edges = BTreeMap<String, BTreeSet<String>>;

/// What a manifest declares.
struct Declared {
    normal: Edges,
    tests: Edges,
    /// Every dependency that is linked into the product, ours or not.
    linked: Edges,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where a crate lies.
fn directory(name: &str) -> PathBuf {
    if name == "bench" { root().join(name) } else { root().join("crates").join(name) }
}

/// Where a crate lives: what is no part of the product has a place of its own.
fn home(name: &str) -> PathBuf {
    if name == "bench" { root().join(name) } else { root().join("crates").join(name) }
}

/// The name of a crate of ours without its prefix.
fn short(package: &str) -> Option<&str> {
    if package == "adamant" { Some(package) } else { package.strip_prefix("adamant-") }
}

fn declared() -> Declared {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo can be run");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let mut declared = Declared { normal: Edges::new(), tests: Edges::new(), linked: Edges::new() };
    for package in metadata["packages"].as_array().expect("a list of packages") {
        let name = package["name"].as_str().expect("a package has a name");
        let name = short(name).unwrap_or_else(|| panic!("{name} is not called adamant-…"));
        let [normal, tests, linked] = [&mut declared.normal, &mut declared.tests, &mut declared.linked]
            .map(|edges| edges.entry(name.to_owned()).or_default());
        for dependency in package["dependencies"].as_array().expect("a list of dependencies") {
            let to = dependency["name"].as_str().expect("a dependency has a name");
            let in_tests = dependency["kind"].as_str() == Some("dev");
            if !in_tests {
                linked.insert(to.to_owned());
            }
            if let Some(to) = short(to) {
                if in_tests { &mut *tests } else { &mut *normal }.insert(to.to_owned());
            }
        }
    }
    declared
}

fn table(edges: &[(&str, &[&str])]) -> Edges {
    let set = |to: &[&str]| to.iter().map(|to| (*to).to_owned()).collect();
    edges.iter().map(|(from, to)| ((*from).to_owned(), set(to))).collect()
}

/// Packages of `Cargo.lock` with what they depend on, on any platform; all versions of a name
/// together.
fn locked() -> (usize, Edges) {
    let text = std::fs::read_to_string(root().join("Cargo.lock")).expect("there is a Cargo.lock");
    let mut edges = Edges::new();
    let mut count = 0;
    for package in text.split("[[package]]").skip(1) {
        count += 1;
        let name = package.lines().find_map(|line| line.strip_prefix("name = ")).expect("a package has a name");
        let to = edges.entry(name.trim_matches('"').to_owned()).or_default();
        let dependencies = package.split_once("dependencies = [").map_or("", |(_, rest)| rest);
        for line in dependencies.lines().take_while(|line| *line != "]") {
            let line = line.trim().trim_matches([',', '"']);
            to.extend(line.split(' ').next().filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    (count, edges)
}

/// Everything `from` links, by any way.
fn reached(from: &str, declared: &Declared, locked: &Edges) -> BTreeSet<String> {
    let package = |name: &str| if name == "adamant" { name.to_owned() } else { format!("adamant-{name}") };
    let mut reached = BTreeSet::new();
    let mut open = vec![package(from)];
    while let Some(name) = open.pop() {
        // The lock joins what is linked and what only tests use; for our own crates the manifest
        // tells them apart.
        let next = match short(&name).and_then(|name| declared.linked.get(name)) {
            Some(next) => next,
            None => locked.get(&name).unwrap_or_else(|| panic!("{name} is not in Cargo.lock")),
        };
        open.extend(next.iter().filter(|name| reached.insert((*name).clone())).cloned());
    }
    reached
}

/// All Rust files below a directory.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("a directory can be read").path());
    let mut found: Vec<_> = paths
        .flat_map(|path| match path.extension() {
            _ if path.is_dir() => sources(&path),
            Some(end) if end == "rs" => vec![path],
            _ => Vec::new(),
        })
        .collect();
    found.sort();
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Differences between what is declared and what is allowed.
fn compare(declared: &Edges, allowed: &Edges) -> Vec<String> {
    let none = BTreeSet::new();
    let mut found = Vec::new();
    for (from, to) in declared {
        let may = allowed.get(from).unwrap_or(&none);
        found.extend(to.difference(may).map(|to| format!("{from} → {to} is not in the table")));
        found.extend(may.difference(to).map(|to| format!("{from} → {to} is in the table and nowhere else")));
    }
    found.extend(allowed.keys().filter(|name| !declared.contains_key(*name)).map(|name| format!("there is no {name}")));
    found
}

#[test]
fn edges_are_those_of_the_table() {
    let declared = declared();
    let allowed = table(EDGES);
    let unknown: Vec<_> = declared.normal.keys().filter(|name| !allowed.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "crates that the table does not know: {unknown:?}");
    let mut found = compare(&declared.normal, &allowed);
    found.extend(compare(&declared.tests, &table(TEST_EDGES)));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The table itself: an arrow leads to a line above its own.
#[test]
fn arrows_point_down() {
    for (at, (from, to)) in EDGES.iter().enumerate() {
        for to in *to {
            let below = EDGES[..at].iter().any(|(name, _)| name == to);
            assert!(below, "{from} → {to}, which does not stand before it");
        }
    }
}

#[test]
fn edges_are_used() {
    let declared = declared();
    let mut unused = Vec::new();
    for (edges, dirs) in [(&declared.normal, &["src"][..]), (&declared.tests, &["src", "tests", "examples"][..])] {
        for (from, to) in edges.iter().filter(|(_, to)| !to.is_empty()) {
            let dir = home(from);
            let text: String = dirs.iter().flat_map(|sub| sources(&dir.join(sub))).map(|path| read(&path)).collect();
            let name = |to: &str| if to == "adamant" { to.to_owned() } else { format!("adamant_{to}") };
            unused.extend(to.iter().filter(|to| !text.contains(&name(to))).map(|to| format!("{from} → {to}")));
        }
    }
    assert!(unused.is_empty(), "declared and used by no file: {}", unused.join(", "));
}

#[test]
fn audit_links_no_writer() {
    let declared = declared();
    let reached = reached("audit", &declared, &locked().1);
    for name in ["adamant-ledger", "adamant-store", "adamant-server", "tokio", "sqlx", "hyper", "reqwest", "rustix"] {
        assert!(!reached.contains(name), "audit reaches {name}");
    }
    // The check can fail: what does link them is found the same way.
    let (declared, locked) = (self::declared(), locked().1);
    let server = self::reached("server", &declared, &locked);
    assert!(["adamant-ledger", "tokio", "sqlx", "hyper"].iter().all(|name| server.contains(*name)));
}

#[test]
fn what_decides_does_nothing_else() {
    let (declared, locked) = (declared(), locked().1);
    for name in PURE {
        let reached = reached(name, &declared, &locked);
        let found: Vec<_> = IMPURE.iter().filter(|name| reached.contains(**name)).collect();
        assert!(found.is_empty(), "{name} reaches {found:?}");
        for path in sources(&directory(name).join("src")) {
            let text = read(&path);
            // Tests may do as they like; they stand at the end of a file.
            let product = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in
                ["std::fs", "std::net", "std::process", "std::env", "SystemTime::now", "Instant::now", "async fn"]
            {
                assert!(!product.contains(word), "{} has `{word}`", path.display());
            }
        }
    }
}

#[test]
fn suites_are_for_tests_alone() {
    let users: Vec<_> = declared().normal.into_iter().filter(|(_, to)| to.contains("conformance")).collect();
    assert!(users.is_empty(), "{users:?}");
}

#[test]
fn unsafe_code_is_in_the_sandbox_alone() {
    let mut allowances = 0;
    for path in [sources(&root().join("crates")), sources(&root().join("bench"))].concat() {
        // This file names the lint to look for it.
        if path.ends_with(file!()) || path.ends_with("adamant/tests/edges.rs") {
            continue;
        }
        for line in read(&path).lines().filter(|line| line.contains("unsafe_code")) {
            let ours = path.components().any(|part| part.as_os_str() == "sandbox");
            assert!(ours, "{}: {line}", path.display());
            allowances += 1;
        }
    }
    assert!(allowances > 0, "nothing is found where something is known to be");
    let workspace = read(&root().join("Cargo.toml"));
    assert!(workspace.contains("unsafe_code = \"deny\""));
    for name in declared().normal.keys() {
        let manifest = read(&home(name).join("Cargo.toml"));
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name} does not take the workspace's lints");
    }
}

/// A file of tests that no module declares would never run.
#[test]
fn every_file_of_tests_is_declared() {
    let mut files = 0;
    for crate_dir in std::fs::read_dir(root().join("crates")).expect("there are crates") {
        let dir = crate_dir.expect("a directory can be read").path().join("tests/it");
        let modules = sources(&dir);
        let text: String = modules.iter().map(|path| read(path)).collect();
        for path in modules {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if !matches!(name.as_str(), "main" | "mod") {
                files += 1;
                assert!(text.contains(&format!("mod {name};")), "{} is declared by no module", path.display());
            }
        }
    }
    assert!(files > 20, "only {files} files of tests were found");
}

#[test]
fn the_lock_stays_small() {
    let (count, edges) = locked();
    assert!(count > 100 && edges.contains_key("tokio"), "Cargo.lock was not understood");
    assert!(count <= MAX_LOCKED, "{count} packages are locked, more than {MAX_LOCKED}: drop some");
}
