//! From a recipe to a lock whose every byte is kept.

use std::collections::{BTreeMap, BTreeSet};

use adamant_recipe::cargo::Crate;
use adamant_recipe::{Lock, Package, PackageRequest, PackageSet, Recipe, set_name};

use crate::Fetcher;
use crate::debian::{Base, Candidate, Index, Suite, resolve};
use crate::ensure::{Progress, Report};
use crate::error::LockFetchError;

/// A new lock.
#[derive(Debug, Clone)]
pub struct Locked {
    /// What to write to `adamant.lock`; every byte it names is kept.
    pub lock: Lock,
    /// What it took.
    pub report: Report,
    /// The suites that were asked, empty if nothing had to be resolved. Their `valid_until`
    /// tells whether a mirror has stopped following.
    pub suites: Vec<Suite>,
}

/// What one artifact asks for.
struct Asked<'r> {
    name: String,
    request: &'r [String],
    base: Base,
}

impl Fetcher {
    /// Resolves what `recipe` asks for, keeps every byte of it and of `crates`, and only then
    /// returns the lock. Sets and sources whose request is as in `previous` stay as they are
    /// unless `update`.
    pub async fn resolve_lock(
        &self,
        recipe: &Recipe,
        crates: &[Crate],
        previous: Option<&Lock>,
        update: bool,
        progress: &(dyn Fn(Progress<'_>) + Send + Sync),
    ) -> Result<Locked, LockFetchError> {
        let release = &self.config.debian.release;
        // Another release is another world: none of its pins can stand.
        let previous = previous.filter(|lock| !update && lock.debian == *release);
        let mut lock = Lock::new(release);
        let mut packages: BTreeMap<String, Package> = BTreeMap::new();
        let mut open = Vec::new();
        for asked in asked(recipe) {
            match previous.and_then(|lock| kept_set(lock, &asked)) {
                Some((set, kept)) => {
                    lock.sets.insert(asked.name, set.clone());
                    insert_all(&mut packages, kept)?;
                }
                None => open.push(asked),
            }
        }
        let mut suites = Vec::new();
        if !open.is_empty() {
            let index = self.debian_index().await?;
            for asked in &open {
                let (set, found) = resolve_set(&index, asked)?;
                lock.sets.insert(asked.name.clone(), set);
                insert_all(&mut packages, found)?;
            }
            suites = index.suites;
        }
        lock.packages = packages.into_values().collect();
        let mut fetched = Report::default();
        for (name, source) in &recipe.sources {
            let kept = previous.and_then(|lock| lock.url(name));
            let kept =
                kept.filter(|kept| kept.url == source.url && source.digest.is_none_or(|digest| digest == kept.digest));
            if let Some(kept) = kept {
                lock.urls.push(kept.clone());
            } else {
                let url = self.lock_url(source).await?;
                fetched.new += 1;
                fetched.bytes += url.size;
                lock.urls.push(url);
            }
        }
        lock.sort();
        let mut report = self.ensure(&lock, crates, progress).await?;
        // Sources fetched above were found in the store just now.
        report.kept = report.kept.saturating_sub(fetched.new);
        report.new += fetched.new;
        report.bytes += fetched.bytes;
        Ok(Locked { lock, report, suites })
    }
}

fn asked(recipe: &Recipe) -> Vec<Asked<'_>> {
    let mut all = Vec::new();
    for artifact in &recipe.artifacts {
        let name = set_name(&artifact.name, "toolchain");
        all.push(Asked { name, request: &artifact.toolchain, base: Base::Essential });
        if !artifact.runtime.is_empty() {
            let name = set_name(&artifact.name, "runtime");
            all.push(Asked { name, request: &artifact.runtime, base: Base::Without });
        }
    }
    all
}

fn kept_set<'l>(lock: &'l Lock, asked: &Asked<'_>) -> Option<(&'l PackageSet, Vec<Package>)> {
    let set = lock.sets.get(&asked.name)?;
    let same = set.request.iter().collect::<BTreeSet<_>>() == asked.request.iter().collect::<BTreeSet<_>>();
    same.then(|| (set, lock.packages_of(&asked.name).into_iter().cloned().collect()))
}

fn resolve_set(index: &Index, asked: &Asked<'_>) -> Result<(PackageSet, Vec<Package>), LockFetchError> {
    // The recipe's parser has checked the requests; one that cannot be read is not a package.
    let requests = asked.request.iter().map(|text| {
        text.parse::<PackageRequest>().unwrap_or_else(|_| PackageRequest { name: text.clone(), version: None })
    });
    let requests: Vec<PackageRequest> = requests.collect();
    let found = resolve(index, &requests, asked.base)
        .map_err(|source| LockFetchError::Resolve { set: asked.name.clone(), source: Box::new(source) })?;
    let packages: Vec<Package> = found.into_iter().map(package).collect();
    let mut request = asked.request.to_vec();
    request.sort();
    let mut ids: Vec<String> = packages.iter().map(Package::id).collect();
    ids.sort();
    Ok((PackageSet { request, packages: ids }, packages))
}

fn package(candidate: &Candidate) -> Package {
    Package {
        name: candidate.name.clone(),
        version: candidate.version.clone(),
        arch: candidate.arch.clone(),
        digest: candidate.digest,
        size: candidate.size,
        path: candidate.path.clone(),
    }
}

fn insert_all(all: &mut BTreeMap<String, Package>, packages: Vec<Package>) -> Result<(), LockFetchError> {
    for package in packages {
        let held = all.entry(package.id()).or_insert_with(|| package.clone());
        if held.digest != package.digest {
            return Err(LockFetchError::Disagree { name: package.id(), first: held.digest, second: package.digest });
        }
    }
    Ok(())
}
