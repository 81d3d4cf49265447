//! Facts from Cargo manifests: which binaries there are.

use toml::{Table, Value};

use super::{Choice, Draft, Facts, join, to_label};
use crate::cargo::manifests;

pub(super) fn drafts(dir: &str, facts: &Facts, choices: &mut Vec<Choice>) -> Vec<Draft> {
    let root = join(dir, "Cargo.toml");
    let text = facts.texts.get(&root).map_or("", String::as_str);
    let members = manifests(dir, text, facts.paths.iter().map(String::as_str)).unwrap_or_default();
    let workspace = members.len() > 1;
    let mut drafts = Vec::new();
    for manifest in members {
        let Some((package, binary, reason)) = binary(&manifest, facts) else { continue };
        let image = format!("/app/{binary}");
        let mut draft = Draft { name: to_label(&binary), path: dir.to_owned(), kind: "cargo", ..Draft::default() };
        if drafts.is_empty() {
            choices.push(Choice { choice: "kind = \"cargo\"".to_owned(), reason: format!("{root} is there") });
        }
        choices.push(Choice { choice: format!("files = {{ \"{image}\" = \"target/release/{binary}\" }}"), reason });
        draft.files.insert(image.clone(), format!("target/release/{binary}"));
        draft.run = vec![image];
        draft.runtime = vec!["libc6".to_owned(), "libgcc-s1".to_owned()];
        if workspace {
            draft.build = Some(format!("cargo build --release --offline --locked -p {package}"));
        }
        drafts.push(draft);
    }
    if drafts.is_empty() {
        return drafts;
    }
    let reason = "Rust programs link the C library and the unwinder dynamically".to_owned();
    choices.push(Choice { choice: "runtime = [\"libc6\", \"libgcc-s1\"]".to_owned(), reason });
    let lock = join(dir, "Cargo.lock");
    if !facts.has(&lock) {
        let reason = format!("{lock} is missing: run `cargo generate-lockfile` and commit it");
        choices.push(Choice { choice: "crates".to_owned(), reason });
    }
    drafts
}

/// Why a manifest gives no draft, as the end of a sentence that its path begins.
pub(super) fn why_not(manifest: &str, facts: &Facts) -> String {
    let Some(text) = facts.texts.get(manifest) else { return "cannot be read as text".to_owned() };
    let Ok(table) = text.parse::<Table>() else { return "is not TOML of Cargo's shape".to_owned() };
    let Some(package) = table.get("package") else { return "is a workspace without a program".to_owned() };
    if package.get("name").and_then(Value::as_str).is_none() {
        return "has no package name".to_owned();
    }
    "is a library: it has neither src/main.rs nor src/bin/ nor [[bin]]".to_owned()
}

/// Package, binary and why that one.
fn binary(manifest: &str, facts: &Facts) -> Option<(String, String, String)> {
    let table: Table = facts.texts.get(manifest)?.parse().ok()?;
    let package = table.get("package")?;
    let name = package.get("name")?.as_str()?.to_owned();
    let dir = manifest.strip_suffix("Cargo.toml")?;
    let plain = |name: &str| {
        !name.is_empty()
            && name.len() <= 64
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if !plain(&name) {
        return None;
    }
    if let Some(run) = package.get("default-run").and_then(Value::as_str).filter(|run| plain(run)) {
        return Some((name, run.to_owned(), format!("default-run of {manifest}")));
    }
    let bins = table.get("bin").and_then(Value::as_array).into_iter().flatten();
    if let Some(bin) = bins.filter_map(|bin| bin.get("name")?.as_str()).find(|bin| plain(bin)) {
        return Some((name, bin.to_owned(), format!("first [[bin]] of {manifest}")));
    }
    if facts.has(&format!("{dir}src/main.rs")) {
        return Some((name.clone(), name, format!("{dir}src/main.rs is there")));
    }
    let below = format!("{dir}src/bin/");
    let stem = |path: &String| {
        let stem = path.strip_prefix(&below)?.strip_suffix(".rs")?.trim_end_matches("/main");
        plain(stem).then(|| stem.to_owned())
    };
    let bin = facts.paths.iter().filter_map(stem).min()?;
    Some((name, bin, format!("first program in {below}")))
}
