//! Closures: the packages a request takes, chosen as apt would without what is installed.
//!
//! Deterministic: the same index and request give the same packages. For each dependency, what
//! is chosen already counts first; then the first alternative that can be had, real packages
//! before virtual ones, of those the newest version that fits; providers of a virtual package
//! by priority and name.

use std::collections::{BTreeMap, VecDeque};

use adamant_recipe::PackageRequest;

use super::control::{Relation, relations};
use super::index::{Candidate, Index};

/// What a closure is laid upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// A complete root: every essential package and what it needs is part of the closure.
    Essential,
    /// An image that carries only what a program links: essential packages are left out
    /// unless asked for by name, since dependencies on them are about maintainer scripts.
    Without,
}

/// Why there is no closure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// No such package.
    #[error("package `{name}` is not in {suites}: correct its name")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        suites: String,
    },
    /// The package is there, the version is not.
    #[error("package `{name}` has no version {wanted} any more, there is {found}: pin one of these or none")]
    Version {
        /// What was asked for.
        name: String,
        /// The pin.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// A dependency nothing satisfies.
    #[error("{wanted_by} needs `{dependency}`, which nothing in {suites} satisfies")]
    Unsatisfied {
        /// The dependency as written.
        dependency: String,
        /// Who needs it, and who needs that, up to the request.
        wanted_by: String,
        /// Where it was looked for.
        suites: String,
    },
    /// Two packages need different versions of a third.
    #[error("{wanted_by} needs `{dependency}`, but {chosen} is chosen: pin versions that fit together")]
    Clash {
        /// The dependency as written.
        dependency: String,
        /// Who needs it, and who needs that, up to the request.
        wanted_by: String,
        /// What was chosen before.
        chosen: String,
    },
    /// Two packages of the closure exclude each other.
    #[error("{first} and {second} exclude each other: ask for one of them")]
    Conflict {
        /// The one that says so.
        first: String,
        /// The other.
        second: String,
    },
}

struct Closure<'i> {
    index: &'i Index,
    base: Base,
    /// Chosen by name, with the name of who wanted it first.
    chosen: BTreeMap<&'i str, (&'i Candidate, Option<&'i str>)>,
    /// What the chosen provide.
    provided: BTreeMap<&'i str, Vec<(&'i Candidate, Option<&'i str>)>>,
    queue: VecDeque<&'i Candidate>,
}

/// The closure of `request`, sorted by name.
pub fn resolve<'i>(
    index: &'i Index,
    request: &[PackageRequest],
    base: Base,
) -> Result<Vec<&'i Candidate>, ResolveError> {
    let mut closure =
        Closure { index, base, chosen: BTreeMap::new(), provided: BTreeMap::new(), queue: VecDeque::new() };
    // Pins first: they must win over what others would have chosen.
    let mut sorted: Vec<&PackageRequest> = request.iter().collect();
    sorted.sort_by_key(|request| (request.version.is_none(), &request.name));
    for request in sorted {
        closure.ask(request)?;
    }
    if base == Base::Essential {
        for package in index.essential() {
            if !closure.chosen.contains_key(package.name.as_str()) {
                closure.choose(package, None);
            }
        }
    }
    while let Some(package) = closure.queue.pop_front() {
        for group in relations(&package.depends, &index.arch) {
            closure.satisfy(package, &group)?;
        }
    }
    closure.check_conflicts()?;
    Ok(closure.chosen.into_values().map(|(package, _)| package).collect())
}

impl<'i> Closure<'i> {
    fn choose(&mut self, package: &'i Candidate, wanted_by: Option<&'i str>) {
        self.chosen.insert(&package.name, (package, wanted_by));
        for (name, version) in &package.provides {
            self.provided.entry(name).or_default().push((package, version.as_deref()));
        }
        self.queue.push_back(package);
    }

    fn suites(&self) -> String {
        let names: Vec<&str> = self.index.suites.iter().map(|suite| suite.name.as_str()).collect();
        names.join(", ")
    }

    fn ask(&mut self, request: &PackageRequest) -> Result<(), ResolveError> {
        let versions: Vec<&Candidate> = self.index.versions(&request.name).collect();
        let fits = |package: &&&Candidate| request.version.as_ref().is_none_or(|version| *version == package.version);
        if let Some(package) = versions.iter().find(fits) {
            if !self.chosen.contains_key(package.name.as_str()) {
                self.choose(package, None);
            }
            return Ok(());
        }
        match &request.version {
            Some(wanted) if !versions.is_empty() => {
                let found = versions.iter().map(|package| package.version.as_str()).collect::<Vec<_>>().join(", ");
                Err(ResolveError::Version { name: request.name.clone(), wanted: wanted.clone(), found })
            }
            None => {
                let relation = Relation { name: &request.name, version: None };
                let provider = self.provider(&relation);
                let unknown = || ResolveError::Unknown { name: request.name.clone(), suites: self.suites() };
                let package = provider.ok_or_else(unknown)?;
                if !self.chosen.contains_key(package.name.as_str()) {
                    self.choose(package, None);
                }
                Ok(())
            }
            Some(_) => Err(ResolveError::Unknown { name: request.name.clone(), suites: self.suites() }),
        }
    }

    fn satisfy(&mut self, package: &'i Candidate, group: &[Relation<'_>]) -> Result<(), ResolveError> {
        if group.iter().any(|relation| self.holds(relation)) {
            return Ok(());
        }
        let mut clash = None;
        for relation in group {
            if let Some((chosen, _)) = self.chosen.get(relation.name) {
                // Another version of it is in already; only one can be.
                clash = clash.or(Some(*chosen));
                continue;
            }
            let real = self.index.versions(relation.name).find(|candidate| relation.accepts(&candidate.version));
            if let Some(found) = real.or_else(|| self.provider(relation)) {
                if self.base == Base::Essential || !found.essential {
                    self.choose(found, Some(&package.name));
                }
                return Ok(());
            }
        }
        let dependency = group.iter().map(shown).collect::<Vec<_>>().join(" | ");
        let dependency = if dependency.is_empty() { "a relation that cannot be read".to_owned() } else { dependency };
        let wanted_by = self.path(&package.name);
        Err(match clash {
            Some(chosen) => {
                let chosen = format!("{} {} (for {})", chosen.name, chosen.version, self.path(&chosen.name));
                ResolveError::Clash { dependency, wanted_by, chosen }
            }
            None => ResolveError::Unsatisfied { dependency, wanted_by, suites: self.suites() },
        })
    }

    /// Whether what is chosen satisfies the relation.
    fn holds(&self, relation: &Relation<'_>) -> bool {
        if self.chosen.get(relation.name).is_some_and(|(package, _)| relation.accepts(&package.version)) {
            return true;
        }
        let provided = self.provided.get(relation.name).into_iter().flatten();
        provided.into_iter().any(|(_, version)| provides(relation, *version))
    }

    /// The best package that provides it and can still be chosen.
    fn provider(&self, relation: &Relation<'_>) -> Option<&'i Candidate> {
        let fits = |package: &&'i Candidate| {
            let versions = package.provides.iter().filter(|(name, _)| name == relation.name);
            !self.chosen.contains_key(package.name.as_str())
                && versions.into_iter().any(|(_, version)| provides(relation, version.as_deref()))
        };
        let chosen = self.provided.get(relation.name).into_iter().flatten();
        let already = chosen.filter(|(_, version)| provides(relation, *version)).map(|(package, _)| *package).next();
        already.or_else(|| {
            let all = self.index.providers(relation.name).filter(fits);
            all.min_by_key(|package| (package.priority, &package.name))
        })
    }

    /// `c ← b ← request`, bounded.
    fn path(&self, name: &str) -> String {
        let mut text = name.to_owned();
        let mut name = name;
        for _ in 0..20 {
            match self.chosen.get(name) {
                Some((_, Some(wanted_by))) => {
                    text.push_str(" ← ");
                    text.push_str(wanted_by);
                    name = wanted_by;
                }
                _ => break,
            }
        }
        text
    }

    fn check_conflicts(&self) -> Result<(), ResolveError> {
        for (package, _) in self.chosen.values() {
            for relation in relations(&package.conflicts, &self.index.arch).flatten() {
                let real = self.chosen.get(relation.name).filter(|(other, _)| relation.accepts(&other.version));
                let real = real.map(|(other, _)| *other);
                // A package may conflict with a virtual name it provides itself: it wants to be
                // the only one.
                let provided = self.provided.get(relation.name).into_iter().flatten();
                let provided = provided.filter(|(_, version)| provides(&relation, *version)).map(|(other, _)| *other);
                if let Some(other) = real.into_iter().chain(provided).find(|other| other.name != package.name) {
                    let first = format!("{} {}", package.name, package.version);
                    return Err(ResolveError::Conflict { first, second: format!("{} {}", other.name, other.version) });
                }
            }
        }
        Ok(())
    }
}

/// A virtual package without a version satisfies only relations without one. Policy §7.5.
fn provides(relation: &Relation<'_>, version: Option<&str>) -> bool {
    match (relation.version, version) {
        (None, _) => true,
        (Some(_), Some(version)) => relation.accepts(version),
        (Some(_), None) => false,
    }
}

fn shown(relation: &Relation<'_>) -> String {
    use super::control::Operator;
    match relation.version {
        None => relation.name.to_owned(),
        Some((operator, version)) => {
            let operator = match operator {
                Operator::Earlier => "<<",
                Operator::EarlierEqual => "<=",
                Operator::Exactly => "=",
                Operator::LaterEqual => ">=",
                Operator::Later => ">>",
            };
            format!("{} ({operator} {version})", relation.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::debian::Suite;

    /// `name version [field: value; …]` a line.
    fn index(lines: &str) -> Index {
        let mut index = Index::default();
        let mut text = String::new();
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (name, rest) = line.split_once(' ').unwrap();
            let (version, fields) = rest.split_once(' ').unwrap_or((rest, ""));
            let zeros = "0".repeat(64);
            write!(text, "Package: {name}\nVersion: {version}\nArchitecture: amd64\n").unwrap();
            write!(text, "Filename: pool/{name}.deb\nSize: 1\nSHA256: {zeros}\n").unwrap();
            for field in fields.split(';').filter(|field| !field.trim().is_empty()) {
                writeln!(text, "{}", field.trim()).unwrap();
            }
            text.push('\n');
        }
        index.add(suite(), &text, "amd64").unwrap();
        index
    }

    fn suite() -> Suite {
        Suite { name: "test".into(), date: String::new(), valid_until: None }
    }

    fn check(index: &Index, request: &str, base: Base, expect: &str) {
        let request: Vec<PackageRequest> = request.split_whitespace().map(|text| text.parse().unwrap()).collect();
        let found = match resolve(index, &request, base) {
            Ok(packages) => packages.iter().map(|p| format!("{}={}", p.name, p.version)).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expect);
    }

    #[test]
    fn closures() {
        let index = index(
            "aa 1 Depends: bb (>= 2), cc | dd
             bb 1
             bb 2 Pre-Depends: ee
             bb 3
             dd 1
             ee 1 Depends: aa
             base 1 Essential: yes; Depends: libx
             libx 1",
        );
        check(&index, "aa", Base::Without, "aa=1 bb=3 dd=1");
        check(&index, "aa bb=2", Base::Without, "aa=1 bb=2 dd=1 ee=1");
        check(&index, "dd", Base::Essential, "base=1 dd=1 libx=1");
        check(&index, "zz", Base::Without, "package `zz` is not in test: correct its name");
        check(
            &index,
            "bb=9",
            Base::Without,
            "package `bb` has no version 9 any more, there is 3, 2, 1: pin one of these or none",
        );
        check(
            &index,
            "aa bb=1",
            Base::Without,
            "aa needs `bb (>= 2)`, but bb 1 (for bb) is chosen: pin versions that fit together",
        );
    }

    #[test]
    fn virtual_packages() {
        let index = index(
            "mawk 1 Provides: awk; Priority: required
             gawk 1 Provides: awk (= 2); Priority: optional
             abc 1 Depends: awk
             def 1 Depends: awk (>= 2)
             ghi 1 Depends: awk (>= 3)
             jkl 1 Depends: gawk | awk, awk",
        );
        check(&index, "abc", Base::Without, "abc=1 mawk=1");
        check(&index, "abc gawk", Base::Without, "abc=1 gawk=1");
        check(&index, "def", Base::Without, "def=1 gawk=1");
        check(&index, "jkl", Base::Without, "gawk=1 jkl=1");
        check(&index, "awk", Base::Without, "mawk=1");
        check(&index, "ghi", Base::Without, "ghi needs `awk (>= 3)`, which nothing in test satisfies");
    }

    #[test]
    fn essential_is_left_out_of_images() {
        let index = index(
            "libssl 1 Depends: dpkg (>= 1), libc\nlibc 1\ndpkg 2 Essential: yes; Depends: tar\ntar 1 Essential: yes",
        );
        check(&index, "libssl", Base::Without, "libc=1 libssl=1");
        check(&index, "libssl dpkg", Base::Without, "dpkg=2 libc=1 libssl=1");
        check(&index, "libssl", Base::Essential, "dpkg=2 libc=1 libssl=1 tar=1");
    }

    #[test]
    fn conflicts_and_paths() {
        let index = index(
            "one 1 Conflicts: two
             two 1
             mta1 1 Provides: mta; Conflicts: mta
             mta2 1 Provides: mta; Conflicts: mta
             old 1 Breaks: two (<< 1)
             top 1 Depends: mid
             mid 1 Depends: low
             low 1 Depends: none (= 3) | gone:arm64",
        );
        check(&index, "one two", Base::Without, "one 1 and two 1 exclude each other: ask for one of them");
        check(&index, "mta1", Base::Without, "mta1=1");
        check(&index, "mta1 mta2", Base::Without, "mta1 1 and mta2 1 exclude each other: ask for one of them");
        check(&index, "old two", Base::Without, "old=1 two=1");
        check(&index, "top", Base::Without, "low ← mid ← top needs `none (= 3)`, which nothing in test satisfies");
    }

    #[test]
    fn refuses_bad_stanzas() {
        for text in [
            "Package: a\n",
            "Package: ../a\nVersion: 1\n",
            "Package: aa\nVersion: 1\nFilename: ../../x\nSize: 1\nSHA256: 00\n",
            "Package: aa\nVersion: 1\nFilename: pool/x\nSize: x\n",
        ] {
            assert!(Index::default().add(suite(), text, "amd64").is_err(), "{text}");
        }
    }
}
