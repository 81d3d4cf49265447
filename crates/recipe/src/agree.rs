//! Whether a lock answers what its recipe asks. The server checks this at every push and never
//! resolves anything itself.

use std::collections::BTreeSet;

use adamant_digest::Digest;

use crate::{BUILD_ABI, EPOCH, Lock, Recipe, set_name};

/// How recipe and lock disagree. `adamant lock` mends all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// The artifact was added, or its packages are not locked.
    #[error("adamant.lock has nothing for `{set}`: run `adamant lock`")]
    NoSet {
        /// `<artifact>.<toolchain|runtime>`.
        set: String,
    },
    /// The recipe's list changed.
    #[error("adamant.toml asks {asked:?} for `{set}`, adamant.lock answers {locked:?}: run `adamant lock`")]
    OtherRequest {
        /// `<artifact>.<toolchain|runtime>`.
        set: String,
        /// What the recipe says.
        asked: Vec<String>,
        /// What the lock was made for.
        locked: Vec<String>,
    },
    /// A pinned package is not what the closure holds.
    #[error("`{set}` asks for {asked}, which adamant.lock does not hold: run `adamant lock`")]
    NotInClosure {
        /// `<artifact>.<toolchain|runtime>`.
        set: String,
        /// The member of the request.
        asked: String,
    },
    /// The lock holds a set nobody asks for.
    #[error("adamant.lock holds `{set}`, which adamant.toml does not ask for: run `adamant lock`")]
    Stale {
        /// The set.
        set: String,
    },
    /// A source without a digest anywhere.
    #[error("source `{name}` is an input without a digest: run `adamant lock`")]
    NoUrl {
        /// The source.
        name: String,
    },
    /// The address changed.
    #[error("source `{name}` is {asked} in adamant.toml and {locked} in adamant.lock: run `adamant lock`")]
    OtherUrl {
        /// The source.
        name: String,
        /// What the recipe says.
        asked: String,
        /// What the lock was made for.
        locked: String,
    },
    /// The recipe pins other bytes.
    #[error(
        "source `{name}` is {asked} in adamant.toml and {locked} in adamant.lock: run `adamant lock`, which fetches and compares"
    )]
    OtherDigest {
        /// The source.
        name: String,
        /// What the recipe says.
        asked: Digest,
        /// What the lock holds.
        locked: Digest,
    },
    /// The lock holds a URL nobody asks for.
    #[error("adamant.lock holds source `{name}`, which adamant.toml does not have: run `adamant lock`")]
    StaleUrl {
        /// The source.
        name: String,
    },
    /// Made for another build ABI.
    #[error(
        "adamant.lock asks for build ABI {0}, this server supports {BUILD_ABI}: run `adamant lock` or use a server that supports it"
    )]
    Abi(u32),
    /// The epoch is one constant.
    #[error("adamant.lock has epoch {0}, builds see {EPOCH}: run `adamant lock`")]
    Epoch(u64),
}

/// Checks that `lock` answers exactly what `recipe` asks.
pub fn lock_agrees(recipe: &Recipe, lock: &Lock) -> Result<(), LockError> {
    if lock.abi != BUILD_ABI {
        return Err(LockError::Abi(lock.abi));
    }
    if lock.epoch != EPOCH {
        return Err(LockError::Epoch(lock.epoch));
    }
    let mut asked_sets = BTreeSet::new();
    for artifact in &recipe.artifacts {
        let toolchain = set_name(&artifact.name, "toolchain");
        check_set(lock, &toolchain, &artifact.toolchain)?;
        asked_sets.insert(toolchain);
        if !artifact.runtime.is_empty() {
            let runtime = set_name(&artifact.name, "runtime");
            check_set(lock, &runtime, &artifact.runtime)?;
            asked_sets.insert(runtime);
        }
    }
    if let Some(set) = lock.sets.keys().find(|set| !asked_sets.contains(*set)) {
        return Err(LockError::Stale { set: set.clone() });
    }
    for (name, source) in &recipe.sources {
        let locked = lock.url(name).ok_or_else(|| LockError::NoUrl { name: name.clone() })?;
        if locked.url != source.url {
            let (asked, locked) = (source.url.clone(), locked.url.clone());
            return Err(LockError::OtherUrl { name: name.clone(), asked, locked });
        }
        if let Some(asked) = source.digest.filter(|digest| *digest != locked.digest) {
            return Err(LockError::OtherDigest { name: name.clone(), asked, locked: locked.digest });
        }
    }
    match lock.urls.iter().find(|url| !recipe.sources.contains_key(&url.name)) {
        Some(url) => Err(LockError::StaleUrl { name: url.name.clone() }),
        None => Ok(()),
    }
}

fn check_set(lock: &Lock, name: &str, asked: &[String]) -> Result<(), LockError> {
    let set = lock.sets.get(name).ok_or_else(|| LockError::NoSet { set: name.to_owned() })?;
    let sorted = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
    if sorted(asked) != sorted(&set.request) {
        let (asked, locked) = (asked.to_vec(), set.request.clone());
        return Err(LockError::OtherRequest { set: name.to_owned(), asked, locked });
    }
    for request in asked {
        // A pinned request must be in the closure literally. One without a version may also be
        // answered by a package that provides it, which only the resolver could tell.
        let pinned = request.contains('=');
        if pinned && set.packages.binary_search(request).is_err() {
            return Err(LockError::NotInClosure { set: name.to_owned(), asked: request.clone() });
        }
    }
    Ok(())
}
