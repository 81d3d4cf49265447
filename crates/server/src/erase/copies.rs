//! Copies of erased bytes that this server made, and taking them away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use adamant_digest::Digest;
use adamant_release::{Release, Rollout};

use crate::error::Problem;
use crate::platform::Platform;

/// Longest blob that is searched for the digest of another, in bytes: the longest manifest.
const MAX_MANIFEST: u64 = 4 << 20;

impl Platform {
    /// Finishes what is on record: bytes that are still here go. Gives what must wait, in words.
    pub(crate) async fn finish_erasures(&self) -> Result<Vec<String>, Problem> {
        let mut left = Vec::new();
        let unfinished = self.unfinished.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if unfinished.is_empty() {
            return Ok(left);
        }
        let mut done = Vec::new();
        for digest in unfinished {
            // One that fails keeps none of the others.
            match self.erase_copies(digest).await {
                Ok(waiting) if waiting.is_empty() => done.push(digest),
                Ok(waiting) => left.extend(waiting),
                Err(problem) => left.push(format!("{digest} is not erased everywhere yet: {}", problem.line())),
            }
        }
        self.source.erase().await.map_err(|e| Problem::internal("git objects are not erased", e))?;
        let mut unfinished = self.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in done {
            unfinished.remove(&digest);
        }
        Ok(left)
    }

    /// Removes every copy of an erased blob that this server made. What runs now is not stopped: it is
    /// named, and its tree goes when something else runs.
    async fn erase_copies(&self, digest: Digest) -> Result<Vec<String>, Problem> {
        let mut left = Vec::new();
        self.store.remove(digest, None).await?;
        let running = self.running_manifests().await?;
        for (manifest, trees) in self.unpacked()? {
            if manifest != digest && !self.mentions(manifest, digest).await {
                continue;
            }
            if let Some(places) = running.get(&manifest) {
                let places: Vec<_> = places.iter().cloned().collect();
                left.push(format!(
                    "{} runs {manifest}, which holds {digest}: roll forward to a release without it",
                    places.join(", ")
                ));
                continue;
            }
            let dir = self.config.data.join("trees");
            tokio::task::spawn_blocking(move || trees.iter().try_for_each(|name| remove_path(&dir.join(name))))
                .await
                .map_err(std::io::Error::other)
                .flatten()?;
        }
        if !self.drop_build_cache().await? {
            left.push("the build cache is in use by a build and goes later".to_owned());
        }
        Ok(left)
    }

    /// Manifests that run now, with where.
    async fn running_manifests(&self) -> Result<BTreeMap<Digest, BTreeSet<String>>, Problem> {
        let mut running: BTreeMap<Digest, BTreeSet<String>> = BTreeMap::new();
        let observed = self.local.observe().await.map_err(|e| Problem::internal("cannot look at what runs", e))?;
        for seen in observed {
            let Some(rollout) = seen.rollout else { continue };
            let rollout: Rollout = self.document(rollout).await?;
            let release: Release = self.document(rollout.release_digest).await?;
            for artifact in release.artifacts {
                let place = format!("{} of {} ({})", seen.environment, seen.project, seen.release);
                running.entry(artifact.digest).or_default().insert(place);
            }
        }
        Ok(running)
    }

    /// Unpacked artifacts: manifest, and the names in `trees/` that belong to it.
    fn unpacked(&self) -> Result<Vec<(Digest, Vec<String>)>, Problem> {
        let mut found = Vec::new();
        let dir = self.config.data.join("trees");
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
            other => other?,
        };
        for entry in entries {
            let hint = entry?.file_name().to_string_lossy().into_owned();
            let Some(manifest) = hint.strip_suffix(".manifest").and_then(|hex| Digest::from_hex(hex).ok()) else {
                continue;
            };
            let mut names = Vec::new();
            if let Ok(tree) = std::fs::read_to_string(dir.join(&hint))
                && let Ok(tree) = tree.trim().parse::<Digest>()
            {
                names.extend([tree.hex(), format!("{}.json", tree.hex()), format!(".damaged-{}", tree.hex())]);
            }
            // Last: it leads to the others.
            names.push(hint);
            found.push((manifest, names));
        }
        Ok(found)
    }

    /// Whether a manifest names a digest.
    async fn mentions(&self, manifest: Digest, digest: Digest) -> bool {
        if self.blobs.size(manifest).await.is_ok_and(|size| size.is_none_or(|size| size > MAX_MANIFEST)) {
            return false;
        }
        let hex = digest.hex();
        self.blobs.get(manifest).await.is_ok_and(|bytes| bytes.bytes().windows(64).any(|part| part == hex.as_bytes()))
    }

    /// Removes package trees made from inputs, unless a build may be using them; false then.
    async fn drop_build_cache(&self) -> Result<bool, Problem> {
        if self.is_making() {
            return Ok(false);
        }
        let dir = self.config.data.join("cache/roots");
        let removed = tokio::task::spawn_blocking(move || match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(mut entries) => entries.try_for_each(|entry| remove_path(&entry?.path())),
        });
        removed.await.map_err(std::io::Error::other).flatten()?;
        Ok(true)
    }

    /// Refuses a release that cannot run because part of it was erased.
    pub(crate) async fn must_be_whole(&self, release: &Release) -> Result<(), Problem> {
        for artifact in &release.artifacts {
            for digest in self.erased.digests() {
                if (artifact.digest == digest || self.mentions(artifact.digest, digest).await)
                    && let Some(tombstone) = self.erased.tombstone(digest)
                {
                    return Err(Problem::no(format!(
                        "{} cannot run: {digest} of its artifact `{}` {tombstone}",
                        release.name(),
                        artifact.name
                    ))
                    .hint("promote a release that does not hold it"));
                }
            }
        }
        Ok(())
    }
}

/// Removes a file or directory with everything in it; one that is not there is fine. Files made
/// read-only by a build are removed all the same, since their directories are writable to us.
fn remove_path(path: &std::path::Path) -> std::io::Result<()> {
    let gone = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => {
            open_up(path)?;
            std::fs::remove_dir_all(path)
        }
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match gone {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes every directory below writable to its owner.
fn open_up(dir: &std::path::Path) -> std::io::Result<()> {
    std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}
