//! A deployed program that wants out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::client;
use crate::process::{is_root, run};
use crate::world::World;

/// What the probe must reach when it runs outside: otherwise its failures inside say nothing.
const REACHABLE_OUTSIDE: &[&str] = &[
    "control-api",
    "front",
    "data-directory",
    "database",
    "keys",
    "trust",
    "control-socket",
    "sibling",
    "own-supervisor",
    "signal-server",
    "see-server",
];
/// And as root.
const REACHABLE_AS_ROOT: &[&str] = &["passwd-of-host"];

const RECIPE: &str = "project = \"probe\"\n\n[web]\nkind = \"make\"\nfiles = { \"/app/probe\" = \"probe\" }\n\
                      run = [\"/app/probe\"]\nport = 8080\nhealth = \"/\"\n";

#[test]
fn a_deployed_program_reaches_nothing_that_is_not_its_own() {
    let Some(world) = World::new("a_deployed_program_reaches_nothing_that_is_not_its_own") else { return };
    let files = [
        ("adamant.toml", RECIPE),
        ("Makefile", include_str!("probe/Makefile")),
        ("probe.c", include_str!("probe/probe.c")),
    ];
    let probe = world.project("probe", &files);
    let port = |url: &str| url.trim_end_matches('/').rsplit(':').next().unwrap().to_owned();
    let sibling = find(&world.data.join("local/dev/shop/instances"), "instance.sock").expect("shop runs in dev");
    let settings = [
        ("PROBE_DATA", world.data.display().to_string()),
        ("PROBE_CONTROL", port(&world.server.url)),
        ("PROBE_FRONT", port(&world.shop.url("prod"))),
        ("PROBE_SIBLING", sibling.parent().unwrap().display().to_string()),
        ("PROBE_SERVER", world.server.process.child.id().to_string()),
    ];
    let pairs: Vec<String> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let arguments: Vec<&str> = ["config", "dev"].into_iter().chain(pairs.iter().map(String::as_str)).collect();
    probe.adamant(&arguments).ok();
    probe.commit("probe");
    let pushed = probe.push();
    assert!(pushed.err.contains("healthy"), "{}", pushed.err);
    pushed.ok();

    let url = format!("{}/probe", probe.url("dev"));
    let inside = results(&client::get(&url).unwrap().text());
    assert!(inside.len() >= 20, "{inside:?}");
    let reached: Vec<_> = inside.iter().filter(|(_, result)| *result == "REACHED").collect();
    assert!(reached.is_empty(), "a deployed program reached {reached:?}");

    // The same program outside reaches them, so the attempts are real.
    let program = find(&world.data.join("trees"), "probe").expect("the unpacked program");
    let copy = world.dir.join("probe-outside");
    std::fs::copy(program, &copy).unwrap();
    let outside = results(&run(Command::new(&copy).arg("once").envs(settings)).ok());
    let mut expected = REACHABLE_OUTSIDE.to_vec();
    if is_root() {
        expected.extend(REACHABLE_AS_ROOT);
    }
    for name in expected {
        assert_eq!(outside.get(name).map(String::as_str), Some("REACHED"), "{name}: the probe proves nothing");
    }
}

fn results(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, result)| (name.to_owned(), result.to_owned()))
        .collect()
}

/// The first file of that name below `dir`.
fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir { find(&path, name) } else { (entry.file_name() == name).then_some(path) }
    })
}
