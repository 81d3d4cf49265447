//! What changed between two locks, for `adamant lock`, `adamant diff` and the push report.

use std::collections::BTreeMap;
use std::fmt;

use crate::Lock;

/// One input that moved. Packages are named `name:arch`, sources by their name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Only in the newer lock.
    Added {
        /// `package` or `source`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Its version or address.
        to: String,
    },
    /// Only in the older lock.
    Removed {
        /// `package` or `source`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Its version or address.
        from: String,
    },
    /// In both, with another version, address or digest.
    Changed {
        /// `package` or `source`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Version or address before; the digest where only that differs.
        from: String,
        /// Version or address now; the digest where only that differs.
        to: String,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { what, name, to } => write!(f, "+ {what} {name} {to}"),
            Self::Removed { what, name, from } => write!(f, "- {what} {name} {from}"),
            Self::Changed { what, name, from, to } => write!(f, "~ {what} {name} {from} → {to}"),
        }
    }
}

/// Version or address, and the digest below it.
type Held = BTreeMap<(&'static str, String), Vec<(String, String)>>;

fn held(lock: &Lock) -> Held {
    let mut held = Held::new();
    for package in &lock.packages {
        let name = format!("{}:{}", package.name, package.arch);
        held.entry(("package", name)).or_default().push((package.version.clone(), package.digest.to_string()));
    }
    for url in &lock.urls {
        held.entry(("source", url.name.clone())).or_default().push((url.url.clone(), url.digest.to_string()));
    }
    held
}

/// Changes from `old` to `new`, sorted by name. A package that several sets hold in several
/// versions is compared version by version.
pub fn diff(old: &Lock, new: &Lock) -> Vec<Change> {
    let (old, new) = (held(old), held(new));
    let none = Vec::new();
    let mut names: Vec<_> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    let mut changes = Vec::new();
    for key in names {
        let (before, after) = (old.get(key).unwrap_or(&none), new.get(key).unwrap_or(&none));
        let gone: Vec<_> = before.iter().filter(|held| !after.contains(held)).collect();
        let come: Vec<_> = after.iter().filter(|held| !before.contains(held)).collect();
        let (what, name) = (key.0, &key.1);
        for i in 0..gone.len().max(come.len()) {
            let name = name.clone();
            changes.push(match (gone.get(i), come.get(i)) {
                (Some(from), Some(to)) if from.0 == to.0 => {
                    Change::Changed { what, name, from: from.1.clone(), to: to.1.clone() }
                }
                (Some(from), Some(to)) => Change::Changed { what, name, from: from.0.clone(), to: to.0.clone() },
                (Some(from), None) => Change::Removed { what, name, from: from.0.clone() },
                (None, Some(to)) => Change::Added { what, name, to: to.0.clone() },
                (None, None) => continue,
            });
        }
    }
    changes
}
