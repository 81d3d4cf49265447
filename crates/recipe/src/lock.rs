//! `adamant.lock`: the inputs that no native lock file names, each by digest.
//!
//! The text is deterministic and sorted, one group of lines an entry, so that two people who
//! lock the same thing write the same bytes and a diff shows what moved.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use adamant_digest::Digest;
use serde::{Deserialize, Serialize};

use crate::names::{self, PackageRequest};
use crate::read::{Document, RecipeError, Table};

/// A parsed `adamant.lock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Version of the format, 1.
    pub version: u32,
    /// Build ABI the artifacts are built under.
    pub abi: u32,
    /// The time builds see, seconds since 1970; always [`crate::EPOCH`].
    pub epoch: u64,
    /// Debian release the packages are from, `bookworm`.
    pub debian: String,
    /// Closures by `<artifact>.toolchain` and `<artifact>.runtime`, see [`set_name`].
    pub sets: BTreeMap<String, PackageSet>,
    /// Every package of every set, sorted by name and version.
    pub packages: Vec<Package>,
    /// Files from the outside, sorted by name.
    pub urls: Vec<UrlInput>,
}

/// What was asked for, and all that it takes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageSet {
    /// The recipe's list, sorted.
    pub request: Vec<String>,
    /// The closure as `name=version`, sorted.
    pub packages: Vec<String>,
}

/// A Debian binary package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `amd64` or `all`.
    pub arch: String,
    /// Digest of the `.deb`.
    pub digest: Digest,
    /// Length of the `.deb` in bytes.
    pub size: u64,
    /// Where it lies below a mirror: `pool/…`.
    pub path: String,
}

impl Package {
    /// `name=version`, as sets name it.
    pub fn id(&self) -> String {
        format!("{}={}", self.name, self.version)
    }
}

/// A file from the outside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UrlInput {
    /// Name of the source in the recipe.
    pub name: String,
    /// Where it came from.
    pub url: String,
    /// Digest of its bytes.
    pub digest: Digest,
    /// Their length.
    pub size: u64,
}

/// Longest lock read, in bytes.
const MAX_TEXT: usize = 16 << 20;
/// Most packages, sets and members of a set.
const MAX_ENTRIES: usize = 20_000;
/// Largest single input, in bytes.
const MAX_INPUT: i64 = 8 << 30;

/// The name of a set: `web.toolchain`, `web.runtime`.
pub fn set_name(artifact: &str, use_: &str) -> String {
    format!("{artifact}.{use_}")
}

impl Lock {
    /// A lock of this version without inputs.
    pub fn new(debian: &str) -> Self {
        Self {
            version: 1,
            abi: crate::BUILD_ABI,
            epoch: crate::EPOCH,
            debian: debian.to_owned(),
            sets: BTreeMap::new(),
            packages: Vec::new(),
            urls: Vec::new(),
        }
    }

    /// Reads a lock. Refuses other versions, duplicates, entries without a digest, and sets and
    /// packages that do not match each other.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        let document = Document::new(crate::LOCK_FILE, text, MAX_TEXT)?;
        let parsed = document.parse()?;
        let root = document.root(&parsed);
        // The version first: a newer file may hold anything else.
        let version = root.required(root.integer("version", 0..=i64::from(u32::MAX))?, "version", "version = 1")?;
        if version != 1 {
            return Err(root.error_at(
                "version",
                format!("version {version} is not known here, only 1: use a newer adamant, or run `adamant lock`"),
            ));
        }
        root.only(&["version", "abi", "epoch", "debian", "set", "package", "url"])?;
        let small = 0..=i64::from(u32::MAX);
        let abi = root.required(root.integer("abi", small.clone())?, "abi", "run `adamant lock`")?;
        let epoch = root.required(root.integer("epoch", small)?, "epoch", "run `adamant lock`")?;
        let debian = root.required(root.string("debian")?, "debian", "run `adamant lock`")?;
        root.check("debian", names::label(debian))?;
        let mut lock = Self::new(debian);
        lock.abi = u32::try_from(abi).unwrap_or(u32::MAX);
        lock.epoch = epoch.unsigned_abs();
        if let Some(sets) = root.table("set")? {
            for (name, set) in sets.tables(MAX_ENTRIES)? {
                let (artifact, use_) = name.rsplit_once('.').unwrap_or((name, ""));
                if names::label(artifact).is_err() || !matches!(use_, "toolchain" | "runtime") {
                    return Err(set.error(format!(
                        "`{name}` is not a set: expected `<artifact>.toolchain` or `<artifact>.runtime`"
                    )));
                }
                lock.sets.insert(name.to_owned(), parse_set(&set)?);
            }
        }
        for package in root.tables_of("package", MAX_ENTRIES)? {
            lock.packages.push(parse_package(&package)?);
        }
        for url in root.tables_of("url", MAX_ENTRIES)? {
            lock.urls.push(parse_url(&url)?);
        }
        lock.sort();
        lock.consistent().map_err(|message| root.error(message))?;
        Ok(lock)
    }

    /// Puts packages, URLs and set members into their order.
    pub fn sort(&mut self) {
        self.packages.sort();
        self.urls.sort();
        for set in self.sets.values_mut() {
            set.request.sort();
            set.packages.sort();
        }
    }

    /// Names once each, and sets and packages that cover each other.
    fn consistent(&self) -> Result<(), String> {
        for pair in self.packages.windows(2) {
            if pair[0].name == pair[1].name && pair[0].version == pair[1].version {
                return Err(format!("package `{}` is in it twice: run `adamant lock`", pair[0].id()));
            }
        }
        for pair in self.urls.windows(2) {
            if pair[0].name == pair[1].name {
                return Err(format!("url `{}` is in it twice: run `adamant lock`", pair[0].name));
            }
        }
        let ids: BTreeSet<String> = self.packages.iter().map(Package::id).collect();
        let mut used = BTreeSet::new();
        for (name, set) in &self.sets {
            for pair in set.packages.windows(2) {
                let bare = |id: &str| id.split('=').next().unwrap_or_default().to_owned();
                if bare(&pair[0]) == bare(&pair[1]) {
                    return Err(format!("set `{name}` holds `{}` twice: run `adamant lock`", bare(&pair[0])));
                }
            }
            for id in &set.packages {
                if !ids.contains(id) {
                    return Err(format!("set `{name}` holds `{id}`, an input without a digest: run `adamant lock`"));
                }
                used.insert(id.as_str());
            }
        }
        match ids.iter().find(|id| !used.contains(id.as_str())) {
            Some(id) => Err(format!("package `{id}` is in no set: run `adamant lock`")),
            None => Ok(()),
        }
    }

    /// The packages of a set in their order; empty if there is no such set.
    pub fn packages_of<'a>(&'a self, set: &str) -> Vec<&'a Package> {
        let members: BTreeSet<&str> =
            self.sets.get(set).map(|set| set.packages.iter().map(String::as_str).collect()).unwrap_or_default();
        self.packages.iter().filter(|package| members.contains(package.id().as_str())).collect()
    }

    /// The file of that name.
    pub fn url(&self, name: &str) -> Option<&UrlInput> {
        self.urls.iter().find(|url| url.name == name)
    }
}

fn parse_set(table: &Table<'_, '_>) -> Result<PackageSet, RecipeError> {
    table.only(&["request", "packages"])?;
    let mut set = PackageSet::default();
    for (text, at) in table.strings("request", MAX_ENTRIES)?.unwrap_or_default() {
        table.check_span(&at, text.parse::<PackageRequest>())?;
        set.request.push(text.to_owned());
    }
    for (text, at) in table.strings("packages", MAX_ENTRIES)?.unwrap_or_default() {
        let request = table.check_span(&at, text.parse::<PackageRequest>())?;
        if request.version.is_none() {
            return Err(table.error_span(&at, format!("`{text}` has no version: run `adamant lock`")));
        }
        set.packages.push(text.to_owned());
    }
    Ok(set)
}

fn parse_digest(table: &Table<'_, '_>, what: &str) -> Result<Digest, RecipeError> {
    let Some(hex) = table.string("sha256")? else {
        return Err(table.error(format!("{what} is an input without a digest: run `adamant lock`")));
    };
    Digest::from_hex(hex).map_err(|_| {
        table.error_at("sha256", format!("{what}: sha256 is not 64 lower-case hex digits: run `adamant lock`"))
    })
}

fn parse_size(table: &Table<'_, '_>) -> Result<u64, RecipeError> {
    let size = table.required(table.integer("size", 0..=MAX_INPUT)?, "size", "run `adamant lock`")?;
    Ok(size.unsigned_abs())
}

fn parse_package(table: &Table<'_, '_>) -> Result<Package, RecipeError> {
    table.only(&["name", "version", "arch", "sha256", "size", "path"])?;
    let text = |key: &str| table.required(table.string(key)?, key, "run `adamant lock`");
    let (name, version, arch, path) = (text("name")?, text("version")?, text("arch")?, text("path")?);
    table.check("name", names::package_name(name))?;
    table.check("version", names::package_version(version))?;
    table.check("arch", names::label(arch))?;
    table.check("path", names::relative_path(path))?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'+' | b'-' | b'~' | b':' | b'%');
    if !path.bytes().all(plain) {
        return Err(table.error_at("path", format!("`{path}` is not a path in a Debian mirror")));
    }
    Ok(Package {
        digest: parse_digest(table, &format!("package `{name}`"))?,
        size: parse_size(table)?,
        name: name.to_owned(),
        version: version.to_owned(),
        arch: arch.to_owned(),
        path: path.to_owned(),
    })
}

fn parse_url(table: &Table<'_, '_>) -> Result<UrlInput, RecipeError> {
    table.only(&["name", "url", "sha256", "size"])?;
    let text = |key: &str| table.required(table.string(key)?, key, "run `adamant lock`");
    let (name, url) = (text("name")?, text("url")?);
    table.check("name", names::label(name))?;
    table.check("url", names::url(url))?;
    Ok(UrlInput {
        digest: parse_digest(table, &format!("url `{name}`"))?,
        size: parse_size(table)?,
        name: name.to_owned(),
        url: url.to_owned(),
    })
}

/// A TOML basic string.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.clone();
        sorted.sort();
        writeln!(f, "# Written by `adamant lock`. Commit it; the server keeps every byte it names.")?;
        writeln!(f, "version = {}\nabi = {}\nepoch = {}", sorted.version, sorted.abi, sorted.epoch)?;
        writeln!(f, "debian = {}", quote(&sorted.debian))?;
        for (name, set) in &sorted.sets {
            writeln!(f, "\n[set.{}]", quote(name))?;
            let request: Vec<String> = set.request.iter().map(|text| quote(text)).collect();
            writeln!(f, "request = [{}]\npackages = [", request.join(", "))?;
            for id in &set.packages {
                writeln!(f, "  {},", quote(id))?;
            }
            writeln!(f, "]")?;
        }
        for package in &sorted.packages {
            writeln!(f, "\n[[package]]\nname = {}\nversion = {}", quote(&package.name), quote(&package.version))?;
            writeln!(f, "arch = {}\nsha256 = {}", quote(&package.arch), quote(&package.digest.hex()))?;
            writeln!(f, "size = {}\npath = {}", package.size, quote(&package.path))?;
        }
        for url in &sorted.urls {
            writeln!(f, "\n[[url]]\nname = {}\nurl = {}", quote(&url.name), quote(&url.url))?;
            writeln!(f, "sha256 = {}\nsize = {}", quote(&url.digest.hex()), url.size)?;
        }
        Ok(())
    }
}
