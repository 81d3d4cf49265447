//! Erasing a blob: asked for by one person, approved by another, recorded, then done.
//!
//! The chain `erasure/<digest>` holds requests, withdrawals and the erasure itself. The erasure is
//! recorded before any byte goes; from then on the digest is neither given nor kept, and a start or a
//! tick of the housekeeping finishes what was cut off. The reason stands in a salted document beside
//! the fact, which holds its digest alone, so that the reason can be erased like anything else.

use std::collections::{BTreeMap, BTreeSet};

use adamant_api::{Class, Erasing, Erasure as ErasureView, ErasureState};
use adamant_attest::predicate::{Erasure, ErasureRequest, ErasureStep, Predicate, Role};
use adamant_digest::{Digest, Verified};
use adamant_release::{Release, Rollout};
use adamant_store::{AppendError, Chain, Erased, Fact, Ledger, Link, Subject, Tombstone};
use ring::rand::SecureRandom as _;
use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::facts::Facts;
use crate::platform::Platform;

/// Longest reason, in bytes.
const MAX_REASON: usize = 2_000;
/// Longest blob that is searched for the digest of another, in bytes: the longest manifest.
const MAX_MANIFEST: u64 = 4 << 20;
/// Most erasures and requests that are listed and kept in memory.
const MOST: usize = 100_000;

/// The side document of a request.
#[derive(Serialize, Deserialize)]
struct Reason {
    /// Makes the digest say nothing about the text.
    salt: String,
    text: String,
}

fn chain(digest: Digest) -> String {
    format!("erasure/{digest}")
}

/// Where a chain stands.
struct Standing {
    link: Link,
    at: String,
    what: What,
}

enum What {
    Request(ErasureRequest),
    Erasure(Erasure),
}

async fn standing(facts: &Facts, digest: Digest) -> Result<Option<Standing>, Problem> {
    let Some(link) = facts.ledger.chain_head(&chain(digest)).await? else { return Ok(None) };
    let recorded = facts.at(link.index).await?;
    let what = match recorded.predicate {
        Predicate::ErasureRequest(request) => What::Request(request),
        Predicate::Erasure(erasure) => What::Erasure(erasure),
        _ => return Err(Problem::damaged(format!("entry {} is no erasure", link.index))),
    };
    Ok(Some(Standing { link, at: recorded.entry.recorded_at, what }))
}

/// Everything that has a chain, in the order of digests.
async fn all(facts: &Facts) -> Result<Vec<(Digest, Standing)>, Problem> {
    let mut found = Vec::new();
    for name in facts.ledger.chains("erasure/", MOST).await? {
        let Some(Ok(digest)) = name.strip_prefix("erasure/").map(str::parse::<Digest>) else { continue };
        if let Some(standing) = standing(facts, digest).await? {
            found.push((digest, standing));
        }
    }
    Ok(found)
}

fn tombstone(erasure: &Erasure, standing: (u64, &str), reason: Option<String>) -> Tombstone {
    Tombstone {
        reason,
        requested_by: erasure.requested_by.clone(),
        approved_by: erasure.approved_by.clone(),
        at: standing.1.to_owned(),
        entry: standing.0,
    }
}

/// What the ledger says was erased. Called before anything reads the store; `reason` gives the text
/// of a side document.
pub(crate) async fn load(
    ledger: std::sync::Arc<dyn Ledger>,
    blobs: &dyn adamant_store::BlobStore,
    erased: &Erased,
) -> Result<(), Problem> {
    let facts = Facts { ledger };
    for (digest, standing) in all(&facts).await? {
        if let What::Erasure(erasure) = &standing.what {
            let reason = reason_text(blobs, erasure.reason).await;
            erased.insert(digest, tombstone(erasure, (standing.link.index, &standing.at), reason));
        }
    }
    Ok(())
}

async fn reason_text(blobs: &dyn adamant_store::BlobStore, digest: Digest) -> Option<String> {
    let bytes = blobs.get(digest).await.ok()?;
    serde_json::from_slice::<Reason>(bytes.bytes()).ok().map(|reason| reason.text)
}

fn moved(error: AppendError, digest: Digest) -> Problem {
    match error {
        AppendError::ChainMoved { .. } => Problem::new(
            Class::Conflict,
            format!("the erasure of {digest} was changed by somebody else at the same moment"),
        )
        .hint("look at it with `adamant erase --list`, then try again"),
        other => other.into(),
    }
}

impl Platform {
    /// Asks for an erasure.
    pub(crate) async fn ask_erasure(&self, digest: Digest, text: &str, by: &str) -> Result<ErasureView, Problem> {
        let text = text.trim();
        if text.is_empty() || text.len() > MAX_REASON {
            return Err(Problem::usage(format!("a reason is 1 to {MAX_REASON} bytes of text")));
        }
        let before = standing(&self.facts, digest).await?;
        let sequence = match &before {
            Some(Standing { what: What::Erasure(_), .. }) => {
                return Err(Problem::new(Class::Conflict, format!("{digest} was erased already")));
            }
            Some(Standing { what: What::Request(r), .. }) if r.step == ErasureStep::Requested => {
                return Err(Problem::new(
                    Class::Conflict,
                    format!("{} has asked for the erasure of {digest} already", r.by),
                )
                .hint("approve it, or withdraw it first"));
            }
            Some(Standing { link, .. }) => link.sequence + 1,
            None => 1,
        };
        if self.blobs.size(digest).await?.is_none() {
            return Err(Problem::no(format!("{digest} is not in the store"))
                .hint("give the sha256 of a layer, configuration, manifest, input or document"));
        }
        let mut salt = [0_u8; 32];
        ring::rand::SystemRandom::new()
            .fill(&mut salt)
            .map_err(|_| Problem::new(Class::Unavailable, "the system has no randomness"))?;
        let salt = Digest::from_bytes(salt).hex();
        let document = serde_json::to_vec(&Reason { salt, text: text.to_owned() })
            .map_err(|e| Problem::internal("a reason cannot be written", e))?;
        let document = Verified::hash(document);
        self.blobs.put(&document).await?;
        self.step(digest, document.digest(), ErasureStep::Requested, sequence, by).await?;
        self.erasure(digest).await
    }

    /// Takes a request back; whoever may ask may.
    pub(crate) async fn withdraw_erasure(&self, digest: Digest, by: &str) -> Result<ErasureView, Problem> {
        let (request, link) = self.pending(digest).await?;
        self.step(digest, request.reason, ErasureStep::Withdrawn, link.sequence + 1, by).await?;
        self.erasure(digest).await
    }

    async fn pending(&self, digest: Digest) -> Result<(ErasureRequest, Link), Problem> {
        match standing(&self.facts, digest).await? {
            Some(Standing { what: What::Request(request), link, .. }) if request.step == ErasureStep::Requested => {
                Ok((request, link))
            }
            Some(Standing { what: What::Erasure(_), .. }) => {
                Err(Problem::new(Class::Conflict, format!("{digest} was erased already")))
            }
            _ => Err(Problem::no(format!("nobody asks for the erasure of {digest}"))
                .hint(format!("ask for it: adamant erase {digest} --reason TEXT"))),
        }
    }

    async fn step(
        &self,
        digest: Digest,
        reason: Digest,
        step: ErasureStep,
        sequence: u64,
        by: &str,
    ) -> Result<(), Problem> {
        let predicate = Predicate::ErasureRequest(ErasureRequest { digest, step, reason, by: by.to_owned() });
        self.record_erasure(digest, predicate, sequence).await
    }

    async fn record_erasure(&self, digest: Digest, predicate: Predicate, sequence: u64) -> Result<(), Problem> {
        let fact = Fact {
            role: Role::Control,
            subject: vec![Subject { name: "erasure".to_owned(), digest }],
            predicate,
            chain: Some(Chain { name: chain(digest), expect: Some(sequence) }),
        };
        self.ledger.append(vec![fact]).await.map_err(|error| moved(error, digest))?;
        Ok(())
    }

    /// Erases what somebody else asked to erase: the fact first, then every copy.
    pub(crate) async fn approve_erasure(&self, digest: Digest, by: &str) -> Result<Erasing, Problem> {
        let (request, link) = self.pending(digest).await?;
        if request.by == by {
            return Err(Problem::new(
                Class::Denied,
                format!("{by} asked for the erasure of {digest} and cannot approve it: it takes two people"),
            )
            .hint("another user approves it with an own login or token: adamant erase DIGEST --approve"));
        }
        let erasure = Erasure {
            digest,
            size_bytes: self.blobs.size(digest).await?.unwrap_or_default(),
            reason: request.reason,
            requested_by: request.by,
            approved_by: by.to_owned(),
        };
        let text = reason_text(&*self.blobs, erasure.reason).await;
        self.record_erasure(digest, Predicate::Erasure(erasure.clone()), link.sequence + 1).await?;
        let done = standing(&self.facts, digest).await?;
        let (index, at) = done.map_or((0, String::new()), |standing| (standing.link.index, standing.at));
        self.erased.insert(digest, tombstone(&erasure, (index, &at), text));
        let left = self.erase_copies(digest).await?;
        Ok(Erasing { erasure: self.erasure(digest).await?, left })
    }

    /// One erasure or request.
    async fn erasure(&self, digest: Digest) -> Result<ErasureView, Problem> {
        let standing = standing(&self.facts, digest).await?;
        let standing = standing.ok_or_else(|| Problem::damaged(format!("the erasure of {digest} is not recorded")))?;
        Ok(self.view(digest, standing).await)
    }

    /// All erasures and requests, in the order of digests.
    pub(crate) async fn erasures(&self) -> Result<Vec<ErasureView>, Problem> {
        let mut views = Vec::new();
        for (digest, standing) in all(&self.facts).await? {
            views.push(self.view(digest, standing).await);
        }
        Ok(views)
    }

    async fn view(&self, digest: Digest, standing: Standing) -> ErasureView {
        let (state, reason, requested_by, approved_by) = match standing.what {
            What::Request(r) => match r.step {
                ErasureStep::Requested => (ErasureState::Requested, r.reason, r.by, None),
                ErasureStep::Withdrawn => (ErasureState::Withdrawn, r.reason, r.by, None),
            },
            What::Erasure(e) => (ErasureState::Erased, e.reason, e.requested_by, Some(e.approved_by)),
        };
        let text = reason_text(&*self.blobs, reason).await;
        let (at, entry) = (standing.at, standing.link.index);
        ErasureView { digest, state, reason: text, reason_digest: reason, by: requested_by, approved_by, at, entry }
    }

    /// Finishes what is on record: bytes that are still here go. Gives what must wait, in words.
    pub(crate) async fn finish_erasures(&self) -> Result<Vec<String>, Problem> {
        let mut left = Vec::new();
        for digest in self.erased.digests() {
            left.extend(self.erase_copies(digest).await?);
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
