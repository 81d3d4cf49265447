//! Whether `Cargo.lock` answers what the manifests ask, without running cargo.

use std::collections::BTreeSet;

use semver::{Version, VersionReq};
use toml::{Table, Value};

use super::lock::{CargoLock, Local};

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
    /// The lock has the crate, but for other packages alone.
    #[error(
        "{path} asks for {name} {requirement}, Cargo.lock does not list it for {package}: run `cargo update --workspace`"
    )]
    Unlisted {
        /// The manifest.
        path: String,
        /// Its package.
        package: String,
        /// The crate.
        name: String,
        /// What is asked.
        requirement: String,
    },
    /// The lock lists a crate for a package that does not ask for it.
    #[error("Cargo.lock lists {name} for {package}, {path} does not ask for it: run `cargo update --workspace`")]
    Unasked {
        /// The manifest.
        path: String,
        /// Its package.
        package: String,
        /// The crate.
        name: String,
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
/// against what `lock` lists for their packages: crates by version requirement, the packages
/// themselves by version. Cargo writes a lock anew also if it lists a crate too many.
pub fn agrees(manifests: &[Manifest<'_>], lock: &CargoLock) -> Result<(), Disagreement> {
    let mut parsed = Vec::with_capacity(manifests.len());
    for manifest in manifests {
        parsed.push((manifest.path, parse(manifest)?));
    }
    let empty = Table::new();
    let workspace = parsed.first().and_then(|(_, root)| table(root, "workspace")).unwrap_or(&empty);
    let names: BTreeSet<String> =
        lock.crates.iter().map(|c| &c.name).chain(lock.local.iter().map(|l| &l.name)).map(|name| plain(name)).collect();
    for (path, manifest) in &parsed {
        // A workspace without a package of its own has no dependencies.
        let Some(package) = package(path, manifest, workspace, lock)? else { continue };
        let mut check = Check { path, package, workspace, lock, names: &names, asked: BTreeSet::new() };
        check.tables(manifest)?;
        for target in table(manifest, "target").into_iter().flat_map(|targets| targets.values()) {
            if let Value::Table(target) = target {
                check.tables(target)?;
            }
        }
        check.nothing_else()?;
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

/// A name as cargo searches it: `-` and `_` taken as one.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// What the lock says of the manifest's package.
fn package<'a>(
    path: &str,
    manifest: &Table,
    workspace: &Table,
    lock: &'a CargoLock,
) -> Result<Option<&'a Local>, Disagreement> {
    let Some(package) = table(manifest, "package") else { return Ok(None) };
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
    let found = lock.local.iter().find(|local| local.name == name && local.version == version);
    let other = || Disagreement::Package { path: path.to_owned(), name: name.to_owned(), version: version.to_owned() };
    found.map(Some).ok_or_else(other)
}

/// One manifest beside its package in the lock.
struct Check<'a> {
    path: &'a str,
    package: &'a Local,
    workspace: &'a Table,
    lock: &'a CargoLock,
    /// All names of the lock.
    names: &'a BTreeSet<String>,
    /// Names the manifest asks for.
    asked: BTreeSet<String>,
}

impl Check<'_> {
    fn tables(&mut self, parent: &Table) -> Result<(), Disagreement> {
        // Cargo accepts both spellings of the last two.
        for kind in ["dependencies", "dev-dependencies", "dev_dependencies", "build-dependencies", "build_dependencies"]
        {
            for (key, spec) in table(parent, kind).into_iter().flatten() {
                self.dependency(key, spec)?;
            }
        }
        Ok(())
    }

    fn dependency(&mut self, key: &str, spec: &Value) -> Result<(), Disagreement> {
        let path = || self.path.to_owned();
        let inherits = spec.get("workspace") == Some(&Value::Boolean(true));
        let spec = if inherits {
            let all = table(self.workspace, "dependencies");
            let inherited = all.and_then(|all| all.get(key));
            inherited.ok_or_else(|| Disagreement::NotInherited { path: path(), name: key.to_owned() })?
        } else {
            spec
        };
        let text = |member: &str| spec.get(member).and_then(Value::as_str);
        if spec.get("git").is_some() {
            return Err(Disagreement::Git { path: path(), name: key.to_owned() });
        }
        let name = text("package").unwrap_or(key);
        let requirement = spec.as_str().or_else(|| text("version")).unwrap_or("*");
        let parsed = VersionReq::parse(requirement).map_err(|error| Disagreement::Syntax {
            path: path(),
            message: format!("{key}: `{requirement}` is not a version requirement: {error}"),
        })?;
        let (path, package) = (path(), self.package.name.clone());
        let plain_name = plain(name);
        self.asked.insert(plain_name.clone());
        if *name == package && spec.get("path").is_some() {
            // Tests may use their own package under another set of features.
            return Ok(());
        }
        let (name, requirement) = (name.to_owned(), requirement.to_owned());
        if !self.names.contains(&plain_name) {
            return Err(Disagreement::Missing { path, name, requirement });
        }
        let Some(versions) = self.listed(&plain_name) else {
            return Err(Disagreement::Unlisted { path, package, name, requirement });
        };
        // A path dependency is part of the tree; its version is that of its own manifest.
        let satisfied = |text: &&str| Version::parse(text).is_ok_and(|version| parsed.matches(&version));
        if spec.get("path").is_some() || versions.iter().any(satisfied) {
            return Ok(());
        }
        let locked = versions.join(", ");
        Err(Disagreement::Unsatisfied { path, name, requirement, locked })
    }

    /// The versions that the lock lists of a name for the package, `None` if it does not list it.
    fn listed(&self, plain_name: &str) -> Option<Vec<&str>> {
        let mut versions = Vec::new();
        let mut found = false;
        for dependency in self.package.dependencies.iter().filter(|one| plain(&one.name) == plain_name) {
            found = true;
            if let Some(version) = &dependency.version {
                versions.push(version.as_str());
                continue;
            }
            let crates = self.lock.crates.iter().map(|c| (&c.name, &c.version));
            let local = self.lock.local.iter().map(|l| (&l.name, &l.version));
            let same = crates.chain(local).filter(|(name, _)| **name == dependency.name);
            versions.extend(same.map(|(_, version)| version.as_str()));
        }
        found.then_some(versions)
    }

    /// Refuses crates that the lock lists and the manifest does not ask for. Path dependencies may
    /// be gone from the manifest alone: cargo does not mind.
    fn nothing_else(&self) -> Result<(), Disagreement> {
        let local = |name: &str| self.lock.local.iter().any(|local| local.name == name);
        let extra = |name: &str| !self.asked.contains(&plain(name)) && !local(name);
        match self.package.dependencies.iter().find(|one| extra(&one.name)) {
            None => Ok(()),
            Some(extra) => Err(Disagreement::Unasked {
                path: self.path.to_owned(),
                package: self.package.name.clone(),
                name: extra.name.clone(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use adamant_digest::Digest;

    use super::super::lock::{Crate, Dependency};
    use super::*;

    /// A lock of `shop`, which depends on all crates but those behind a `-`.
    fn lock(crates: &[&str]) -> CargoLock {
        let mut lock = CargoLock::default();
        let mut dependencies = Vec::new();
        for text in crates {
            let (name, version) = text.trim_start_matches('-').split_once(' ').unwrap();
            lock.crates.push(Crate { name: name.into(), version: version.into(), checksum: Digest::of(b"") });
            if !text.starts_with('-') {
                dependencies.push(Dependency { name: name.into(), version: Some(version.into()) });
            }
        }
        lock.local.push(Local { name: "shop".into(), version: "0.1.0".into(), dependencies });
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
        check("[dependencies]\nserde = \"1\"", &["-itoa 1.0.0"], "does not have serde: run `cargo generate-lockfile`");
        check("[dependencies]\nserde = { version = \"=1.0.1\", optional = true }", &["serde 1.0.2"], "has 1.0.2");
        check("[dependencies]\nserde = { version = \"latest\" }", &["serde 1.0.2"], "not a version requirement");
        check("[dependencies]\nold-name = \"1\"", &["old_name 1.0.2"], "yes");
        check("[dependencies]\na = \">=1.2, <1.5\"", &["a 1.4.9"], "yes");
        check("[dependencies]\na = \"0.3\"", &["a 0.4.0"], "has 0.4.0");
    }

    #[test]
    fn what_the_lock_lists_for_the_package() {
        // In the lock for somebody else: cargo would have to write the lock anew.
        check(
            "[dependencies]\nserde = \"1\"\nitoa = \"1\"",
            &["serde 1.0.0", "-itoa 1.0.0"],
            "Cargo.toml asks for itoa 1, Cargo.lock does not list it for shop: run `cargo update --workspace`",
        );
        for table in ["dev-dependencies", "build-dependencies", "target.'cfg(windows)'.dependencies"] {
            check(&format!("[{table}]\nitoa = \"1\""), &["-itoa 1.0.0"], "does not list it for shop");
        }
        check("[dependencies]\nitoa = { version = \"1\", optional = true }", &["-itoa 1.0.0"], "does not list it");
        check("[dependencies]\nx = { package = \"itoa\", version = \"1\" }", &["-itoa 1.0.0"], "does not list it");
        // The version listed counts, not another one in the lock.
        check("[dependencies]\na = \"2\"", &["a 1.0.0", "-a 2.0.0"], "asks for a 2, Cargo.lock has 1.0.0: run");
        check("[dependencies]\na = \"1\"\nb = { package = \"a\", version = \"2\" }", &["a 1.0.0", "a 2.0.0"], "yes");
        check("[dependencies]\na = \"1\"", &["a 1.0.0", "b 1.0.0"], "lists b for shop, Cargo.toml does not ask for it");
        check("[dependencies]\na = \"1\"", &["a 1.0.0", "-b 1.0.0"], "yes");
        // Not so for a path dependency that is gone.
        let text = "[package]\nname = \"shop\"\nversion = \"0.1.0\"\n";
        let mut gone = lock(&[]);
        gone.local.push(Local { name: "part".into(), version: "0.1.0".into(), dependencies: Vec::new() });
        gone.local[0].dependencies.push(Dependency { name: "part".into(), version: None });
        assert_eq!(agrees(&[Manifest { path: "Cargo.toml", text }], &gone), Ok(()));
        // Without a version in the entry, the one of that name is meant.
        let mut lock = lock(&["-a 1.2.0"]);
        lock.local[0].dependencies.push(Dependency { name: "a".into(), version: None });
        let run = |requirement: &str| {
            let text =
                format!("[package]\nname = \"shop\"\nversion = \"0.1.0\"\n[dependencies]\na = \"{requirement}\"\n");
            agrees(&[Manifest { path: "Cargo.toml", text: &text }], &lock).map_err(|error| error.to_string())
        };
        assert_eq!(run("1.1"), Ok(()));
        assert!(run("1.3").unwrap_err().contains("has 1.2.0"));
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
            Manifest { path: "crates/adamant/Cargo.toml", text: include_str!("../../../adamant/Cargo.toml") },
            Manifest { path: "crates/fetch/Cargo.toml", text: include_str!("../../../fetch/Cargo.toml") },
            Manifest { path: "crates/recipe/Cargo.toml", text: include_str!("../../Cargo.toml") },
            Manifest { path: "crates/server/Cargo.toml", text: include_str!("../../../server/Cargo.toml") },
            Manifest { path: "crates/tlog/Cargo.toml", text: include_str!("../../../tlog/Cargo.toml") },
        ];
        assert_eq!(agrees(&manifests, &lock), Ok(()));
    }
}
