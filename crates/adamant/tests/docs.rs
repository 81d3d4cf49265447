//! Documentation that can be wrong by itself: links, keys of the recipe, commands.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use adamant_recipe::Recipe;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All pages with their texts, by path from the root.
fn pages() -> Vec<(PathBuf, String)> {
    let mut pages = Vec::new();
    for dir in ["", "docs", "bench"] {
        let Ok(entries) = std::fs::read_dir(root().join(dir)) else { continue };
        for entry in entries {
            let path = entry.expect("a directory can be read").path();
            if path.extension().is_some_and(|end| end == "md") {
                pages.push((Path::new(dir).join(path.file_name().unwrap_or_default()), read(&path)));
            }
        }
    }
    pages.sort();
    pages
}

/// The first block of code in `language`.
fn block<'t>(text: &'t str, language: &str) -> &'t str {
    let (_, rest) = text.split_once(&format!("```{language}\n")).expect("a block of code");
    rest.split("```").next().unwrap_or_default()
}

/// The anchor of a headline, as forges make it.
fn anchors(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix('#'));
    lines
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            words.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
        })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for (page, text) in pages() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => root().join(&page),
                file => root().join(page.parent().unwrap_or(Path::new(""))).join(file),
            };
            assert!(path.exists(), "{}: there is no {target}", page.display());
            let found = anchor.is_empty() || anchors(&read(&path)).contains(anchor);
            assert!(found, "{}: {file} has no headline for #{anchor}", page.display());
        }
    }
    assert!(links > 10, "only {links} links were found");
}

#[test]
fn the_recipe_page_has_every_key() {
    let source = read(&root().join("crates/recipe/src/recipe.rs"));
    let (_, keys) = source.split_once("const ARTIFACT_KEYS: &[&str] = &[").expect("the list of keys");
    let keys = keys.split("];").next().unwrap_or_default();
    let keys: BTreeSet<&str> = keys.split('"').skip(1).step_by(2).collect();
    assert!(keys.len() > 10, "{keys:?}");
    let page = read(&root().join("docs/recipe.md"));
    let (_, artifact) = page.split_once("\n## An artifact\n").expect("a section on artifacts");
    let table = artifact.split("\n### ").next().unwrap_or_default();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(rows.collect::<BTreeSet<_>>(), keys);
    let recipe = Recipe::parse(block(&page, "toml"), &|path| path == "Makefile").expect("the example is a recipe");
    assert_eq!(recipe.artifacts[0].run, ["/app/shop"]);
}

#[test]
fn commands_exist_and_are_described() {
    let adamant = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_adamant")).args(arguments).output().expect("adamant can be run");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let help = adamant(&["--help"]).expect("there is help");
    let (_, commands) = help.split_once("Commands:\n").expect("a list of commands");
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let commands: BTreeSet<String> = commands
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| *word != "help")
        .map(str::to_owned)
        .collect();
    assert!(commands.contains("promote") && commands.contains("fsck"), "{commands:?}");
    let mut said = BTreeSet::new();
    for (page, text) in pages() {
        // In code alone: `adamant lock`, or a line of a block.
        for (at, _) in text.match_indices("adamant ") {
            let before = text[..at].chars().next_back();
            let word =
                text[at + "adamant ".len()..].split(|c: char| !c.is_ascii_lowercase()).next().unwrap_or_default();
            let code = matches!(before, Some('`' | '\n'));
            if code && !word.is_empty() {
                assert!(commands.contains(word), "{}: there is no `adamant {word}`", page.display());
                said.insert(word.to_owned());
            }
        }
    }
    let silent: Vec<_> = commands.difference(&said).collect();
    assert!(silent.is_empty(), "commands that no page shows: {silent:?}");
}
