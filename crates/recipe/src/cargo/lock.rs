//! `Cargo.lock`, versions 3 and 4.

use std::collections::BTreeSet;

use adamant_digest::Digest;
use semver::Version;
use serde::Deserialize;

/// Longest Cargo.lock read, in bytes.
const MAX_TEXT: usize = 16 << 20;
/// Most packages.
const MAX_PACKAGES: usize = 20_000;

/// A parsed `Cargo.lock`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CargoLock {
    /// Crates of the public registry, sorted by name and version.
    pub crates: Vec<Crate>,
    /// Packages of the workspace itself and path dependencies, sorted by name and version.
    pub local: Vec<Local>,
}

/// A crate of the registry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its version, as Cargo.lock writes it.
    pub version: String,
    /// Digest of the `.crate` file.
    pub checksum: Digest,
}

/// A package that is part of the source tree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Local {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it depends on, on any platform and with all features, in the order of the file.
    pub dependencies: Vec<Dependency>,
}

/// A crate or package that a package of the source tree depends on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dependency {
    /// Its name.
    pub name: String,
    /// Its version; written only where the lock holds several of the name.
    pub version: Option<String>,
}

/// Why a Cargo.lock was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CargoLockError {
    /// Not TOML, or not of Cargo's shape.
    #[error("Cargo.lock cannot be read: {0}")]
    Syntax(String),
    /// Larger than any real one.
    #[error("Cargo.lock holds more than {MAX_TEXT} bytes or {MAX_PACKAGES} packages")]
    TooLarge,
    /// Versions 1 and 2 keep checksums elsewhere; later ones are unknown.
    #[error(
        "Cargo.lock has version {0}, known are 3 and 4: write it again with `cargo generate-lockfile` of a current cargo"
    )]
    Version(u64),
    /// Not a crate name or version.
    #[error("Cargo.lock: `{0}` is not a crate name and version: run `cargo generate-lockfile`")]
    BadName(String),
    /// An entry of `dependencies` that names no crate.
    #[error(
        "Cargo.lock: {package} depends on `{entry}`, which is not a crate name and version: run `cargo generate-lockfile`"
    )]
    BadDependency {
        /// Whose.
        package: String,
        /// The entry.
        entry: String,
    },
    /// The same crate twice.
    #[error("Cargo.lock holds {0} twice: run `cargo generate-lockfile`")]
    Duplicate(String),
    /// A dependency from a git repository.
    #[error(
        "Cargo.lock: {name} {version} comes from the git repository {source_url}, which cannot be locked yet: depend on a published version or copy it into the project"
    )]
    Git {
        /// The crate.
        name: String,
        /// Its version.
        version: String,
        /// Where from.
        source_url: String,
    },
    /// Another registry.
    #[error(
        "Cargo.lock: {name} {version} comes from {source_url}; only the public crates registry is known: depend on a published version or copy it into the project"
    )]
    Registry {
        /// The crate.
        name: String,
        /// Its version.
        version: String,
        /// Where from.
        source_url: String,
    },
    /// A registry crate without a digest.
    #[error("Cargo.lock: {name} {version} is an input without a digest: run `cargo generate-lockfile`")]
    NoChecksum {
        /// The crate.
        name: String,
        /// Its version.
        version: String,
    },
}

#[derive(Deserialize)]
struct File {
    version: Option<u64>,
    #[serde(default)]
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

/// Whether `name` is a crate's name; it becomes part of addresses and file names.
pub(super) fn is_crate_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    first && name.len() <= 64 && name.bytes().all(inner)
}

/// Reads a `Cargo.lock`.
pub fn parse(text: &str) -> Result<CargoLock, CargoLockError> {
    if text.len() > MAX_TEXT {
        return Err(CargoLockError::TooLarge);
    }
    let file: File =
        toml::from_str(text).map_err(|error| CargoLockError::Syntax(error.to_string().trim_end().to_owned()))?;
    if file.package.len() > MAX_PACKAGES {
        return Err(CargoLockError::TooLarge);
    }
    let version = file.version.unwrap_or(1);
    if !matches!(version, 3 | 4) {
        return Err(CargoLockError::Version(version));
    }
    let mut lock = CargoLock::default();
    let mut seen = BTreeSet::new();
    for Package { name, version, source, checksum, dependencies } in file.package {
        if !is_crate_name(&name) || version.len() > 100 || Version::parse(&version).is_err() {
            let shown = format!("{name} {version}").chars().take(100).flat_map(char::escape_debug).collect();
            return Err(CargoLockError::BadName(shown));
        }
        let registry = source.is_some();
        match source {
            None => {
                let dependencies =
                    dependencies.iter().map(|entry| dependency(&name, entry)).collect::<Result<_, _>>()?;
                lock.local.push(Local { name: name.clone(), version: version.clone(), dependencies });
            }
            Some(source) if is_crates_io(&source) => {
                let digest = checksum.as_deref().and_then(|hex| Digest::from_hex(hex).ok());
                let Some(checksum) = digest else { return Err(CargoLockError::NoChecksum { name, version }) };
                lock.crates.push(Crate { name: name.clone(), version: version.clone(), checksum });
            }
            Some(source_url) if source_url.starts_with("git+") => {
                return Err(CargoLockError::Git { name, version, source_url: shown(&source_url) });
            }
            Some(source_url) => return Err(CargoLockError::Registry { name, version, source_url: shown(&source_url) }),
        }
        let id = format!("{name} {version}");
        if !seen.insert((id.clone(), registry)) {
            return Err(CargoLockError::Duplicate(id));
        }
    }
    lock.crates.sort();
    lock.local.sort();
    Ok(lock)
}

/// Reads `name`, `name version` or `name version (source)`.
fn dependency(package: &str, entry: &str) -> Result<Dependency, CargoLockError> {
    let mut words = entry.splitn(3, ' ');
    let name = words.next().unwrap_or_default();
    let version = words.next();
    if !is_crate_name(name) || version.is_some_and(|text| text.len() > 100 || Version::parse(text).is_err()) {
        return Err(CargoLockError::BadDependency { package: package.to_owned(), entry: shown(entry) });
    }
    Ok(Dependency { name: name.to_owned(), version: version.map(str::to_owned) })
}

fn shown(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

fn is_crates_io(source: &str) -> bool {
    matches!(source, "registry+https://github.com/rust-lang/crates.io-index" | "sparse+https://index.crates.io/")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

    fn package(name: &str, version: &str, source: &str, checksum: &str) -> String {
        let line =
            |key: &str, value: &str| if value.is_empty() { String::new() } else { format!("{key} = \"{value}\"\n") };
        format!(
            "[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n{}{}\n",
            line("source", source),
            line("checksum", checksum)
        )
    }

    #[test]
    fn reads_both_versions() {
        for version in [3, 4] {
            let text = format!(
                "version = {version}\n{}{}{}",
                package("shop", "0.1.0", "", ""),
                package("serde", "1.0.1", CRATES_IO, SUM),
                package("itoa", "1.0.0", "sparse+https://index.crates.io/", SUM),
            );
            let lock = parse(&text).unwrap();
            assert_eq!(lock.local, [Local { name: "shop".into(), version: "0.1.0".into(), dependencies: Vec::new() }]);
            assert_eq!(lock.crates.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["itoa", "serde"]);
        }
    }

    #[test]
    fn reads_what_packages_depend_on() {
        let entry =
            |name: &str, version: Option<&str>| Dependency { name: name.into(), version: version.map(str::to_owned) };
        let list = |entries: &str| {
            parse(&format!(
                "version = 4\n{}dependencies = [{entries}]\n",
                package("shop", "0.1.0", "", "").trim_end_matches("\n\n").to_owned() + "\n"
            ))
        };
        let lock = list(&format!("\"itoa\", \"rand 0.8.5\", \"rand 0.9.0 ({CRATES_IO})\"")).unwrap();
        let expect = [entry("itoa", None), entry("rand", Some("0.8.5")), entry("rand", Some("0.9.0"))];
        assert_eq!(lock.local.first().unwrap().dependencies, expect);
        for bad in ["", "../a", "a latest", "a  1.0.0"] {
            let error = list(&format!("\"{bad}\"")).unwrap_err().to_string();
            assert!(error.contains(&format!("shop depends on `{bad}`")), "{error}");
        }
    }

    #[test]
    fn refuses() {
        let check = |packages: &str, expect: &str| {
            let error = parse(&format!("version = 4\n{packages}")).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(&package("a", "1.0.0", CRATES_IO, ""), "a 1.0.0 is an input without a digest");
        check(&package("a", "1.0.0", CRATES_IO, "abc"), "without a digest");
        check(
            &package("a", "1.0.0", "git+https://example.org/a#0123", ""),
            "git repository git+https://example.org/a#0123",
        );
        check(
            &package("a", "1.0.0", "registry+https://example.org/index", SUM),
            "only the public crates registry is known",
        );
        check(&package("../a", "1.0.0", CRATES_IO, SUM), "not a crate name");
        check(&package("a", "1/../..", CRATES_IO, SUM), "not a crate name");
        check(&package("a", "1.0.0", CRATES_IO, SUM).repeat(2), "twice");
        check("[[package]]\nname = 1\n", "cannot be read");
        assert_eq!(parse("version = 5\n"), Err(CargoLockError::Version(5)));
        assert_eq!(parse(""), Err(CargoLockError::Version(1)));
        assert_eq!(parse(&" ".repeat(MAX_TEXT + 1)), Err(CargoLockError::TooLarge));
    }

    #[test]
    fn reads_the_lock_of_this_workspace() {
        let lock = parse(include_str!("../../../../Cargo.lock")).unwrap();
        assert!(lock.crates.len() > 100 && lock.local.iter().any(|local| local.name == "adamant-recipe"));
    }
}
