//! Package indexes of several suites as one.

use std::collections::BTreeMap;

use adamant_digest::Digest;

use super::control::{fields, relations, stanzas};
use super::release::ReleaseError;
use super::version::compare;

/// A suite that went into an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    /// Its name.
    pub name: String,
    /// When it was published, as the suite writes it.
    pub date: String,
    /// Until when it claims to be current, as the suite writes it.
    pub valid_until: Option<String>,
}

/// A package that can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
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
    /// Where it lies below a mirror.
    pub path: String,
    /// `Essential: yes`.
    pub essential: bool,
    /// 0 required, 1 important, 2 standard, 3 optional, 4 anything else.
    pub(super) priority: u8,
    /// `Pre-Depends` and `Depends`, joined.
    pub(super) depends: String,
    /// `Conflicts` and `Breaks`, joined.
    pub(super) conflicts: String,
    /// Virtual packages, with a version where one is given.
    pub(super) provides: Vec<(String, Option<String>)>,
}

/// All packages of one or more suites.
#[derive(Debug, Clone, Default)]
pub struct Index {
    /// Where they are from.
    pub suites: Vec<Suite>,
    pub(super) arch: String,
    pub(super) packages: Vec<Candidate>,
    /// Name → packages, newest first.
    by_name: BTreeMap<String, Vec<usize>>,
    /// Virtual name → packages that provide it.
    providers: BTreeMap<String, Vec<usize>>,
}

/// Most packages of all suites together.
const MAX_PACKAGES: usize = 500_000;

impl Index {
    /// Reads a `Packages` file into the index. A version that several suites have is taken
    /// from the first.
    pub fn add(&mut self, suite: Suite, text: &str, arch: &str) -> Result<(), ReleaseError> {
        arch.clone_into(&mut self.arch);
        let name = suite.name.clone();
        self.suites.push(suite);
        for stanza in stanzas(text) {
            let bad = |cause: String| ReleaseError::Index { suite: name.clone(), cause };
            let candidate = read(stanza, arch).map_err(bad)?;
            if self.packages.len() >= MAX_PACKAGES {
                return Err(bad(format!("more than {MAX_PACKAGES} packages")));
            }
            self.insert(candidate);
        }
        Ok(())
    }

    fn insert(&mut self, candidate: Candidate) {
        if candidate.arch != "all" && candidate.arch != self.arch {
            return;
        }
        let at = self.packages.len();
        let versions = self.by_name.entry(candidate.name.clone()).or_default();
        let newer = |other: &usize| compare(&self.packages[*other].version, &candidate.version).is_gt();
        let place = versions.iter().take_while(|other| newer(other)).count();
        if versions.get(place).is_some_and(|other| self.packages[*other].version == candidate.version) {
            return;
        }
        versions.insert(place, at);
        for (name, _) in &candidate.provides {
            self.providers.entry(name.clone()).or_default().push(at);
        }
        self.packages.push(candidate);
    }

    /// How many packages.
    pub fn len(&self) -> usize {
        self.packages.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.packages.is_empty()
    }

    /// All versions of a package, newest first.
    pub fn versions<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Candidate> + use<'a> {
        self.by_name.get(name).into_iter().flatten().map(|at| &self.packages[*at])
    }

    /// Packages that provide a virtual package and are the newest of their name.
    pub(super) fn providers<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Candidate> + use<'a> {
        let all = self.providers.get(name).into_iter().flatten().map(|at| &self.packages[*at]);
        all.filter(|package| self.versions(&package.name).next() == Some(package))
    }

    /// Newest version of every package marked essential, by name.
    pub(super) fn essential(&self) -> impl Iterator<Item = &Candidate> {
        let newest = self.by_name.values().filter_map(|versions| versions.first());
        newest.map(|at| &self.packages[*at]).filter(|package| package.essential)
    }
}

fn read(stanza: &str, arch: &str) -> Result<Candidate, String> {
    let mut candidate = Candidate {
        name: String::new(),
        version: String::new(),
        arch: String::new(),
        digest: Digest::from_bytes([0; 32]),
        size: 0,
        path: String::new(),
        essential: false,
        priority: 4,
        depends: String::new(),
        conflicts: String::new(),
        provides: Vec::new(),
    };
    let (mut digest, mut size) = (None, None);
    let join = |list: &mut String, value: &str| {
        if !list.is_empty() {
            list.push_str(", ");
        }
        list.push_str(value);
    };
    for (field, value) in fields(stanza) {
        match field {
            "Package" => value.clone_into(&mut candidate.name),
            "Version" => value.clone_into(&mut candidate.version),
            "Architecture" => value.clone_into(&mut candidate.arch),
            "Filename" => value.clone_into(&mut candidate.path),
            "SHA256" => digest = Digest::from_hex(value).ok(),
            "Size" => size = value.parse().ok(),
            "Essential" => candidate.essential = value == "yes",
            "Depends" | "Pre-Depends" => join(&mut candidate.depends, value),
            "Conflicts" | "Breaks" => join(&mut candidate.conflicts, value),
            "Priority" => {
                let known = ["required", "important", "standard", "optional"];
                let place = known.iter().position(|priority| *priority == value).unwrap_or(4);
                candidate.priority = u8::try_from(place).unwrap_or(4);
            }
            "Provides" => {
                for group in relations(value, arch).take(1000) {
                    let names = group
                        .into_iter()
                        .map(|r| (r.name.to_owned(), r.version.map(|(_, version)| version.to_owned())));
                    candidate.provides.extend(names);
                }
            }
            _ => {}
        }
    }
    let shown: String = candidate.name.chars().take(100).flat_map(char::escape_debug).collect();
    let bad = |what: &str| format!("package `{shown}` has no {what}");
    adamant_recipe::package_name(&candidate.name).map_err(|_| bad("proper name"))?;
    adamant_recipe::package_version(&candidate.version).map_err(|_| bad("proper version"))?;
    let path = adamant_recipe::relative_path(&candidate.path).map_err(|_| bad("proper path"))?;
    if path != candidate.path {
        return Err(bad("proper path"));
    }
    candidate.digest = digest.ok_or_else(|| bad("SHA256"))?;
    candidate.size = size.ok_or_else(|| bad("size"))?;
    Ok(candidate)
}
