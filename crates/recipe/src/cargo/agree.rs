//! Whether `Cargo.lock` answers what the manifests ask, without running cargo.

use std::collections::BTreeMap;

use semver::{Version, VersionReq};
use toml::{Table, Value};

use super::lock::CargoLock;

/// A `Cargo.toml`.
#[derive(Debug, Clone, Copy)]
pub struct Manifest<'a> {
    /// Path of the file, for errors.
    pub path: &'a str,
    /// Its text.
    pub text: &'a str,
}

/// How manifests and Cargo.lock disagree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disagreement {
    /// A manifest is not TOML or not of Cargo's shape.
    #[error("{path} cannot be read: {message}")]
    Syntax {
        /// The manifest.
        path: String,
        /// Why.
        message: String,
    },
    /// The lock does not have the crate at all.
    #[error(
        "{path} asks for {name} {requirement}, Cargo.lock does not have {name}: run `cargo generate-lockfile`, or `cargo update --workspace` to keep the other versions"
    )]
    Missing {
        /// The manifest.
        path: String,
        /// The crate.
        name: String,
        /// What is asked.
        requirement: String,
    },
    /// The lock has only versions that do not satisfy the requirement.
    #[error("{path} asks for {name} {requirement}, Cargo.lock has {locked}: run `cargo update -p {name}`")]
    Unsatisfied {
        /// The manifest.
        path: String,
        /// The crate.
        name: String,
        /// What is asked.
        requirement: String,
        /// What the lock has.
        locked: String,
    },
    /// `workspace = true` without such an entry in the root manifest.
    #[error(
        "{path} inherits {name} from the workspace, whose Cargo.toml has no such entry under [workspace.dependencies]: add it"
    )]
    NotInherited {
        /// The manifest.
        path: String,
        /// The dependency's key.
        name: String,
    },
    /// A git dependency.
    #[error(
        "{path}: {name} comes from a git repository, which cannot be locked yet: depend on a published version or copy it into the project"
    )]
    Git {
        /// The manifest.
        path: String,
        /// The dependency's key.
        name: String,
    },
    /// The package itself was renamed or has another version.
    #[error("{path} is {name} {version}, Cargo.lock does not have that: run `cargo update --workspace`")]
    Package {
        /// The manifest.
        path: String,
        /// The package.
        name: String,
        /// Its version.
        version: String,
    },
}

/// Deepest manifest text accepted, in bytes.
const MAX_TEXT: usize = 4 << 20;

/// Checks every dependency of `manifests` (the root first, then the members of its workspace)
/// against `lock`: registry crates by version requirement, the packages themselves by version.
pub fn agrees(manifests: &[Manifest<'_>], lock: &CargoLock) -> Result<(), Disagreement> {
    let mut parsed = Vec::with_capacity(manifests.len());
    for manifest in manifests {
        parsed.push((manifest.path, parse(manifest)?));
    }
    let empty = Table::new();
    let workspace = parsed.first().and_then(|(_, root)| table(root, "workspace")).unwrap_or(&empty);
    let held = Held::new(lock);
    for (path, manifest) in &parsed {
        check_package(path, manifest, workspace, &held)?;
        check_tables(path, manifest, workspace, &held)?;
        for target in table(manifest, "target").into_iter().flat_map(|targets| targets.values()) {
            if let Value::Table(target) = target {
                check_tables(path, target, workspace, &held)?;
            }
        }
    }
    Ok(())
}

fn parse(manifest: &Manifest<'_>) -> Result<Table, Disagreement> {
    let bad = |message: String| Disagreement::Syntax { path: manifest.path.to_owned(), message };
    if manifest.text.len() > MAX_TEXT {
        return Err(bad(format!("it has more than {MAX_TEXT} bytes")));
    }
    manifest.text.parse::<Table>().map_err(|error| bad(error.to_string().trim_end().to_owned()))
}

fn table<'a>(parent: &'a Table, key: &str) -> Option<&'a Table> {
    parent.get(key).and_then(Value::as_table)
}

/// Versions by name, `-` and `_` taken as one, which is how cargo searches.
struct Held<'a>(BTreeMap<String, Vec<(Version, &'a str)>>);

impl<'a> Held<'a> {
    fn new(lock: &'a CargoLock) -> Self {
        let mut held: BTreeMap<String, Vec<(Version, &str)>> = BTreeMap::new();
        let crates = lock.crates.iter().map(|c| (&c.name, &c.version));
        let local = lock.local.iter().map(|l| (&l.name, &l.version));
        for (name, version) in crates.chain(local) {
            if let Ok(parsed) = Version::parse(version) {
                held.entry(name.replace('-', "_")).or_default().push((parsed, version));
            }
        }
        Self(held)
    }

    fn versions(&self, name: &str) -> &[(Version, &'a str)] {
        self.0.get(&name.replace('-', "_")).map_or(&[], Vec::as_slice)
    }
}

fn check_package(path: &str, manifest: &Table, workspace: &Table, held: &Held<'_>) -> Result<(), Disagreement> {
    let Some(package) = table(manifest, "package") else { return Ok(()) };
    let Some(name) = package.get("name").and_then(Value::as_str) else {
        return Err(Disagreement::Syntax { path: path.to_owned(), message: "[package] has no name".to_owned() });
    };
    let version = match package.get("version") {
        Some(Value::String(version)) => version,
        Some(Value::Table(inherit)) if inherit.get("workspace") == Some(&Value::Boolean(true)) => {
            let inherited =
                table(workspace, "package").and_then(|package| package.get("version")).and_then(Value::as_str);
            inherited.unwrap_or("0.0.0")
        }
        _ => "0.0.0",
    };
    if held.versions(name).iter().any(|(_, held)| *held == version) {
        return Ok(());
    }
    Err(Disagreement::Package { path: path.to_owned(), name: name.to_owned(), version: version.to_owned() })
}

fn check_tables(path: &str, parent: &Table, workspace: &Table, held: &Held<'_>) -> Result<(), Disagreement> {
    // Cargo accepts both spellings of the last two.
    for kind in ["dependencies", "dev-dependencies", "dev_dependencies", "build-dependencies", "build_dependencies"] {
        for (key, spec) in table(parent, kind).into_iter().flatten() {
            check_dependency(path, key, spec, workspace, held)?;
        }
    }
    Ok(())
}

fn check_dependency(
    path: &str,
    key: &str,
    spec: &Value,
    workspace: &Table,
    held: &Held<'_>,
) -> Result<(), Disagreement> {
    let inherits = spec.get("workspace") == Some(&Value::Boolean(true));
    let spec = if inherits {
        let all = table(workspace, "dependencies");
        let inherited = all.and_then(|all| all.get(key));
        inherited.ok_or_else(|| Disagreement::NotInherited { path: path.to_owned(), name: key.to_owned() })?
    } else {
        spec
    };
    let text = |member: &str| spec.get(member).and_then(Value::as_str);
    if spec.get("git").is_some() {
        return Err(Disagreement::Git { path: path.to_owned(), name: key.to_owned() });
    }
    let name = text("package").unwrap_or(key);
    let requirement = spec.as_str().or_else(|| text("version")).unwrap_or("*");
    let parsed = VersionReq::parse(requirement).map_err(|error| Disagreement::Syntax {
        path: path.to_owned(),
        message: format!("{key}: `{requirement}` is not a version requirement: {error}"),
    })?;
    let versions = held.versions(name);
    // A path dependency is part of the tree; its version is that of its own manifest.
    if spec.get("path").is_some() && !versions.is_empty() {
        return Ok(());
    }
    let (path, name, requirement) = (path.to_owned(), name.to_owned(), requirement.to_owned());
    if versions.is_empty() {
        return Err(Disagreement::Missing { path, name, requirement });
    }
    if versions.iter().any(|(version, _)| parsed.matches(version)) {
        return Ok(());
    }
    let locked = versions.iter().map(|(_, text)| *text).collect::<Vec<_>>().join(", ");
    Err(Disagreement::Unsatisfied { path, name, requirement, locked })
}

#[cfg(test)]
mod tests {
    use adamant_digest::Digest;

    use super::super::lock::{Crate, Local};
    use super::*;

    fn lock(crates: &[&str]) -> CargoLock {
        let mut lock = CargoLock::default();
        for text in crates {
            let (name, version) = text.split_once(' ').unwrap();
            lock.crates.push(Crate { name: name.into(), version: version.into(), checksum: Digest::of(b"") });
        }
        lock.local.push(Local { name: "shop".into(), version: "0.1.0".into() });
        lock
    }

    fn check(root: &str, crates: &[&str], expect: &str) {
        let root = format!("[package]\nname = \"shop\"\nversion = \"0.1.0\"\n{root}");
        let manifests = [Manifest { path: "Cargo.toml", text: &root }];
        let found = agrees(&manifests, &lock(crates)).map_or_else(|error| error.to_string(), |()| "yes".to_owned());
        assert!(found.contains(expect), "{root}\n→ {found}");
    }

    #[test]
    fn requirements() {
        check("[dependencies]\nserde = \"1.0.2\"", &["serde 1.0.5"], "yes");
        check(
            "[dependencies]\nserde = \"1.0.6\"",
            &["serde 1.0.5"],
            "asks for serde 1.0.6, Cargo.lock has 1.0.5: run `cargo update -p serde`",
        );
        check("[dependencies]\nserde = \"1\"", &["serde 2.0.0", "serde 1.9.0"], "yes");
        check("[dependencies]\nserde = \"1\"", &["itoa 1.0.0"], "does not have serde: run `cargo generate-lockfile`");
        check("[dependencies]\nserde = { version = \"=1.0.1\", optional = true }", &["serde 1.0.2"], "has 1.0.2");
        check("[dependencies]\nserde = { version = \"latest\" }", &["serde 1.0.2"], "not a version requirement");
        check("[dependencies]\nold-name = \"1\"", &["old_name 1.0.2"], "yes");
        check("[dependencies]\na = \">=1.2, <1.5\"", &["a 1.4.9"], "yes");
        check("[dependencies]\na = \"0.3\"", &["a 0.4.0"], "has 0.4.0");
    }

    #[test]
    fn all_tables_and_renames() {
        for table in [
            "dev-dependencies",
            "build-dependencies",
            "target.'cfg(unix)'.dependencies",
            "target.x86_64-unknown-linux-gnu.dev-dependencies",
        ] {
            check(&format!("[{table}]\nserde = \"2\""), &["serde 1.0.0"], "has 1.0.0");
        }
        check("[dependencies]\njson = { package = \"serde_json\", version = \"1\" }", &["serde_json 1.0.0"], "yes");
        check(
            "[dependencies]\njson = { package = \"serde_json\", version = \"2\" }",
            &["serde_json 1.0.0"],
            "asks for serde_json 2",
        );
        check("[dependencies.serde]\ngit = \"https://example.org\"", &["serde 1.0.0"], "git repository");
        check("[dependencies]\nshop = { path = \".\" }", &[], "yes");
        check("[dependencies]\nother = { path = \"other\" }", &[], "does not have other");
    }

    #[test]
    fn inheritance() {
        let root = "[workspace]\nmembers = [\"a\"]\n[workspace.package]\nversion = \"0.1.0\"\n[workspace.dependencies]\nserde = \"1.0.3\"\n";
        let member = "[package]\nname = \"shop\"\nversion.workspace = true\n[dependencies]\nserde = { workspace = true, features = [\"derive\"] }\n";
        let run = |member: &str, crates: &[&str]| {
            let manifests =
                [Manifest { path: "Cargo.toml", text: root }, Manifest { path: "a/Cargo.toml", text: member }];
            agrees(&manifests, &lock(crates))
        };
        assert_eq!(run(member, &["serde 1.0.3"]), Ok(()));
        let error = run(member, &["serde 1.0.2"]).unwrap_err().to_string();
        assert_eq!(error, "a/Cargo.toml asks for serde 1.0.3, Cargo.lock has 1.0.2: run `cargo update -p serde`");
        let other = member.replace("serde =", "itoa =");
        assert!(matches!(run(&other, &[]), Err(Disagreement::NotInherited { .. })));
        let renamed = member.replace("shop", "shop2");
        assert!(matches!(run(&renamed, &["serde 1.0.3"]), Err(Disagreement::Package { .. })));
    }

    #[test]
    fn this_workspace_agrees_with_its_lock() {
        let lock = super::super::lock::parse(include_str!("../../../../Cargo.lock")).unwrap();
        let manifests = [
            Manifest { path: "Cargo.toml", text: include_str!("../../../../Cargo.toml") },
            Manifest { path: "crates/recipe/Cargo.toml", text: include_str!("../../Cargo.toml") },
        ];
        assert_eq!(agrees(&manifests, &lock), Ok(()));
    }
}
