//! Manifests, tags and referrers: what the ledger and the store say of a repository.

use std::collections::BTreeMap;

use adamant_attest::predicate::{Binding, BindingKind, Predicate, Role};
use adamant_digest::{Digest, Sha512};
use adamant_oci::{
    Content, ContentDigest, Descriptor, Manifest, ManifestError, Reference, RepositoryName, Tag, UnsupportedAlgorithm,
    media,
};
use adamant_store::{AppendError, Bound, Conflict, Fact, LedgerError, ReadBlobError, Subject, WriteBlobError};
use serde_json::{Value, json};

use crate::registry::Second;
use crate::{LocateError, Misnamed, Registry, Shrinks, names, pointers};

/// A manifest that is in a repository now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Its digest.
    pub digest: Digest,
    /// The manifest it refers to, if any.
    pub subject: Option<ContentDigest>,
    /// False if all of it was there before and no fact was written.
    pub new: bool,
}

/// Why a manifest was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PutManifestError {
    /// Longer than the limit.
    #[error("the manifest is longer than {limit} bytes: move what is large into blobs")]
    TooLarge {
        /// In bytes.
        limit: usize,
    },
    /// It cannot be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The client calls it something else than its bytes do.
    #[error("the manifest was sent as `{declared}` but is of type `{found}`: send its own type")]
    MediaType {
        /// The request's `Content-Type`.
        declared: String,
        /// What the bytes say.
        found: &'static str,
    },
    /// It names content by an algorithm that is not checked here.
    #[error(transparent)]
    Unsupported(#[from] UnsupportedAlgorithm),
    /// It names something that is not here.
    #[error("the manifest names {what} {digest}, which {repository} does not have: push it first")]
    Missing {
        /// `blob` or `manifest`.
        what: &'static str,
        /// Its digest.
        digest: ContentDigest,
        /// Where it was looked for.
        repository: RepositoryName,
    },
    /// It names something by a wrong size.
    #[error("the manifest says that {digest} has {declared} bytes, but it has {found}")]
    Size {
        /// The digest.
        digest: ContentDigest,
        /// What the manifest says, in bytes.
        declared: u64,
        /// Its length in bytes.
        found: u64,
    },
    /// It was pushed by a digest that its bytes do not have.
    #[error("the manifest is not what was announced: {0}")]
    Misnamed(#[from] Box<Misnamed>),
    /// The store cannot say what it has.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// The tag is one of those that the repository's owner gives.
    #[error(
        "`{repository}:{tag}` is for a release of project `{project}`, which gives its numbers and commits as tags itself: push it under another tag"
    )]
    Reserved {
        /// The repository.
        repository: RepositoryName,
        /// The tag.
        tag: Tag,
        /// Whose it is.
        project: String,
    },
    /// A pointer of an older client would lose something.
    #[error(transparent)]
    Shrinks(#[from] Box<Shrinks>),
    /// A pointer was moved by somebody else meanwhile.
    #[error("`{0}` was changed meanwhile: pull it, add to it and push again")]
    Moved(String),
    /// The manifest that a pointer leads to cannot be read.
    #[error(transparent)]
    Current(#[from] Box<ReadManifestError>),
    /// The tag is bound to another manifest.
    #[error(transparent)]
    Conflict(Box<Conflict>),
    /// The ledger cannot write the fact.
    #[error("the push of {name} cannot be recorded: {source}")]
    Append {
        /// `repository:tag` or `repository@digest`.
        name: String,
        /// Why.
        #[source]
        source: AppendError,
    },
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadBlobError),
    /// The store cannot be written.
    #[error(transparent)]
    Write(#[from] WriteBlobError),
}

/// Why a manifest was not found or not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadManifestError {
    /// Not in this repository.
    #[error("{repository} has no manifest `{reference}`")]
    Unknown {
        /// The repository.
        repository: RepositoryName,
        /// Tag or digest.
        reference: Reference,
    },
    /// Asked for by an algorithm that nothing is named by here.
    #[error(transparent)]
    Unsupported(#[from] UnsupportedAlgorithm),
    /// The name leads to bytes that it does not name: somebody changed the view of names.
    #[error("{named} leads to {digest}, whose bytes it does not name")]
    Misled {
        /// What was asked for.
        named: ContentDigest,
        /// What is bound to it.
        digest: Digest,
    },
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The bytes cannot be read.
    #[error(transparent)]
    Blob(#[from] ReadBlobError),
    /// The bytes are right and no manifest: bound by another version of this program.
    #[error("{digest} is bound as a manifest and is none: {source}")]
    Manifest {
        /// The digest.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
}

/// Why a listing was not made.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// Nothing was ever pushed there.
    #[error("there is no repository `{0}`: push something to it to make it")]
    UnknownRepository(RepositoryName),
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A manifest that must be described cannot be read.
    #[error(transparent)]
    Manifest(#[from] ReadManifestError),
}

/// Who puts a manifest here, and what else their bindings say.
#[derive(Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) by: &'a str,
    /// Members beside those that every binding of a manifest has.
    pub(crate) detail: Option<Value>,
}

impl Registry {
    /// Puts a manifest into a repository and binds `tags` to it, in one append. `named` is the digest
    /// it was pushed by, if it was. Whatever the manifest names must be there already, except its
    /// subject. Idempotent: the same manifest under the same names writes nothing; the bytes are
    /// compared with what is stored and heal it if it is damaged. Durable on return.
    pub async fn put_manifest(
        &self,
        repository: &RepositoryName,
        tags: &[Tag],
        named: Option<&ContentDigest>,
        media_type: Option<&str>,
        bytes: Vec<u8>,
        by: &str,
    ) -> Result<Pushed, PutManifestError> {
        self.put_manifest_from(repository, tags, named, media_type, bytes, &Origin { by, detail: None }).await
    }

    pub(crate) async fn put_manifest_from(
        &self,
        repository: &RepositoryName,
        tags: &[Tag],
        named: Option<&ContentDigest>,
        media_type: Option<&str>,
        bytes: Vec<u8>,
        origin: &Origin<'_>,
    ) -> Result<Pushed, PutManifestError> {
        if bytes.len() > self.limits.manifest_bytes {
            return Err(PutManifestError::TooLarge { limit: self.limits.manifest_bytes });
        }
        let second = named.map(|named| check_named(named, &bytes)).transpose()?.flatten();
        let manifest = Manifest::parse(bytes)?;
        let found = manifest.kind().media_type();
        if let Some(declared) = media_type.filter(|declared| !declared.eq_ignore_ascii_case(found)) {
            return Err(PutManifestError::MediaType { declared: declared.chars().take(100).collect(), found });
        }
        let digest = manifest.digest();
        let subject = manifest.meta().subject.as_ref().map(|subject| subject.digest.clone());
        if let Some(ContentDigest::Other(other)) = &subject {
            return Err(other.unsupported().into());
        }

        // One move at a time, so that none is refused because of another one's first step.
        let _pointing = if tags.iter().any(pointers::is_pointer) { Some(self.pointing.lock().await) } else { None };
        let mut names = Vec::new();
        let mut missing = 0;
        let mut lost = false;
        let mut moves = Vec::new();
        for tag in tags {
            names.push(names::tag(repository, tag));
            if pointers::is_pointer(tag) {
                let led = self.led(repository, tag).await?;
                if led.is_none_or(|led| led.digest != digest) {
                    missing += 1;
                    moves.push((tag, led));
                }
            }
        }
        names.extend(second.map(|second| names::member(repository, &second.into())));
        if names.is_empty() {
            names.push(names::member(repository, &digest.into()));
        }
        let is_pointer =
            |name: &String| tags.iter().any(|t| pointers::is_pointer(t) && names::tag(repository, t) == *name);
        for name in names.iter().filter(|name| !is_pointer(name)) {
            match self.ledger.binding(BindingKind::Tag, name).await? {
                Some(Bound { digest: same, .. }) if same == digest => {}
                Some(_) => lost = true,
                None => missing += 1,
            }
        }
        if missing > 0 {
            self.check_owner(repository, tags).await?;
        }
        // Every binding of a tag was made with those of its manifest, which was whole then.
        if missing == 0 && !lost {
            self.put_blob(manifest.bytes()).await?;
            return Ok(Pushed { digest, subject, new: false });
        }
        // If it is lost already, the append below only records the divergence: keep no bytes.
        if !lost {
            for (tag, led) in &moves {
                if let Some(led) = led {
                    let current = self.manifest(led.digest).await.map_err(Box::new)?;
                    pointers::grows(&names::tag(repository, tag), &current, &manifest).map_err(Box::new)?;
                }
            }
            self.check_content(repository, &manifest).await?;
            self.put_blob(manifest.bytes()).await?;
        }

        // A pointer's first manifest is bound like a tag, which lists it; later ones move it alone.
        let bound = |tag: &&Tag| !pointers::is_pointer(tag) || moves.iter().any(|(of, led)| of == tag && led.is_none());
        let bound: Vec<_> = tags.iter().filter(bound).collect();
        let mut facts = self::facts(repository, &bound, second, &manifest, subject.as_ref(), origin);
        facts.extend(moves.iter().map(|(tag, led)| pointers::moved(repository, tag, *led, digest, origin.by)));
        match self.ledger.append(facts).await {
            Ok(receipts) => Ok(Pushed { digest, subject, new: receipts.iter().any(|receipt| receipt.new) }),
            Err(AppendError::Conflict(conflict)) => Err(PutManifestError::Conflict(conflict)),
            // Another server on the same ledger.
            Err(AppendError::ChainMoved { .. }) => Err(PutManifestError::Moved(names.join(", "))),
            Err(source) => Err(PutManifestError::Append { name: names.join(", "), source }),
        }
    }

    /// Refuses new tags that are not for clients: whoever bound one first would keep the release of
    /// that number from ever being made. One that is bound answers like any other.
    async fn check_owner(&self, repository: &RepositoryName, tags: &[Tag]) -> Result<(), PutManifestError> {
        let (Some(owned), Some((project, _))) = (&self.owned, repository.as_str().split_once('/')) else {
            return Ok(());
        };
        for tag in tags.iter().filter(|tag| names::is_release(tag)) {
            let bound = self.ledger.binding(BindingKind::Tag, &names::tag(repository, tag)).await?;
            if bound.is_none() && owned(project.to_owned()).await? {
                let (repository, tag, project) = (repository.clone(), tag.clone(), project.to_owned());
                return Err(PutManifestError::Reserved { repository, tag, project });
            }
        }
        Ok(())
    }

    async fn check_content(&self, repository: &RepositoryName, manifest: &Manifest) -> Result<(), PutManifestError> {
        let mut seen = BTreeMap::new();
        let (blobs, children): (Vec<&Descriptor>, &[Descriptor]) = match manifest.content() {
            Content::Image { config, layers } => {
                let kept = layers.iter().filter(|layer| !media::is_non_distributable(&layer.media_type));
                (std::iter::once(&**config).chain(kept).collect(), &[])
            }
            Content::Index { manifests } => (Vec::new(), manifests),
        };
        for descriptor in blobs.into_iter().chain(children) {
            let named = &descriptor.digest;
            if seen.insert(named, descriptor.size) == Some(descriptor.size) {
                continue;
            }
            let what = if media::is_manifest(&descriptor.media_type) { "manifest" } else { "blob" };
            let missing = || PutManifestError::Missing { what, digest: named.clone(), repository: repository.clone() };
            let digest = if what == "manifest" && manifest.kind().is_index() {
                let member = names::member(repository, named);
                self.ledger.binding(BindingKind::Tag, &member).await?.map(|bound| bound.digest)
            } else {
                self.locate(named).await?
            };
            let found = self.blob_size(digest.ok_or_else(missing)?).await?.ok_or_else(missing)?;
            if found != descriptor.size {
                return Err(PutManifestError::Size { digest: named.clone(), declared: descriptor.size, found });
            }
        }
        Ok(())
    }

    /// The digest of a manifest of a repository.
    pub async fn resolve(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Digest, ReadManifestError> {
        let name = match reference {
            Reference::Tag(tag) => {
                if pointers::is_pointer(tag)
                    && let Some(led) = self.led(repository, tag).await?
                {
                    return Ok(led.digest);
                }
                names::tag(repository, tag)
            }
            Reference::Digest(ContentDigest::Other(other)) => return Err(other.unsupported().into()),
            Reference::Digest(digest) => names::member(repository, digest),
        };
        let bound = self.ledger.binding(BindingKind::Tag, &name).await?;
        bound
            .map(|bound| bound.digest)
            .ok_or_else(|| ReadManifestError::Unknown { repository: repository.clone(), reference: reference.clone() })
    }

    /// A manifest of a repository, its bytes checked.
    pub async fn read_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Manifest, ReadManifestError> {
        let digest = self.resolve(repository, reference).await?;
        match reference {
            Reference::Tag(_) => self.manifest(digest).await,
            Reference::Digest(named) => self.manifest_named(named, digest).await,
        }
    }

    /// The manifest `digest`, which was found by `named`.
    pub(crate) async fn manifest_named(
        &self,
        named: &ContentDigest,
        digest: Digest,
    ) -> Result<Manifest, ReadManifestError> {
        let manifest = self.manifest(digest).await?;
        let right = match named {
            // The store has hashed the bytes by its own algorithm.
            ContentDigest::Sha256(named) => *named == digest,
            ContentDigest::Sha512(other) => Sha512::of(manifest.bytes().bytes()) == *other,
            ContentDigest::Other(_) => false,
        };
        if right { Ok(manifest) } else { Err(ReadManifestError::Misled { named: named.clone(), digest }) }
    }

    pub(crate) async fn manifest(&self, digest: Digest) -> Result<Manifest, ReadManifestError> {
        let bytes = self.blobs.get(digest).await.inspect_err(|error| self.note_damage(error))?;
        Manifest::from_verified(bytes).map_err(|source| ReadManifestError::Manifest { digest, source })
    }

    /// Tags of a repository that sort after `after` (bytewise), at most `limit`.
    pub async fn tags(
        &self,
        repository: &RepositoryName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, ListError> {
        let prefix = names::tags(repository);
        let start = after.map(|tag| format!("{prefix}{tag}")).unwrap_or_default();
        let bound = self.ledger.bindings(BindingKind::Tag, &prefix, &start, limit).await?;
        if bound.is_empty() && !self.exists(repository).await? {
            return Err(ListError::UnknownRepository(repository.clone()));
        }
        Ok(bound.into_iter().map(|(name, _)| name[prefix.len()..].to_owned()).collect())
    }

    async fn exists(&self, repository: &RepositoryName) -> Result<bool, LedgerError> {
        let members = names::members(repository);
        Ok(!self.ledger.bindings(BindingKind::Tag, &members, "", 1).await?.is_empty())
    }

    /// Repositories after `after`, at most `limit`: one look-up each, however many tags they
    /// have. The order is that of their first names in the ledger: `a-b` comes before `a`.
    pub async fn repositories(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, ListError> {
        let mut found = Vec::new();
        let mut start = after.map(names::after).unwrap_or_default();
        while found.len() < limit {
            let next = self.ledger.bindings(BindingKind::Tag, "", &start, 1).await?;
            let Some((name, _)) = next.first() else { break };
            let repository = names::repository(name);
            start = names::after(repository);
            found.push(repository.to_owned());
        }
        Ok(found)
    }

    /// Manifests of a repository that name `subject`, each with its descriptor, in the order of
    /// their digests: those after `after`, at most `limit` before the filter by type. The
    /// second value is the digest to go on after, if there are more.
    pub async fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &ContentDigest,
        artifact_type: Option<&str>,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<(Vec<Descriptor>, Option<Digest>), ListError> {
        let prefix = names::referrers(repository, subject);
        let start = after.map(|digest| format!("{prefix}{digest}")).unwrap_or_default();
        let bound = self.ledger.bindings(BindingKind::Tag, &prefix, &start, limit.saturating_add(1)).await?;
        let more = bound.len() > limit;
        let mut descriptors = Vec::new();
        let mut last = None;
        for (_, bound) in bound.into_iter().take(limit) {
            last = Some(bound.digest);
            let descriptor = self.manifest(bound.digest).await?.referrer();
            if artifact_type.is_none_or(|wanted| descriptor.artifact_type.as_deref() == Some(wanted)) {
                descriptors.push(descriptor);
            }
        }
        Ok((descriptors, last.filter(|_| more)))
    }
}

/// Checks the digest a manifest was pushed by; gives it if the store does not know the bytes by it.
pub(crate) fn check_named(named: &ContentDigest, bytes: &[u8]) -> Result<Option<Sha512>, PutManifestError> {
    if let ContentDigest::Other(other) = named {
        return Err(other.unsupported().into());
    }
    let found = Digest::of(bytes).into();
    if matches!(named, ContentDigest::Sha256(_)) && found != *named {
        return Err(Box::new(Misnamed { expected: named.clone(), found }).into());
    }
    let mut second = Second::of(named);
    second.update(bytes);
    Ok(second.check()?)
}

/// What becomes true with a push. The tags are last: only they can be in conflict, and then none of
/// it is recorded.
fn facts(
    repository: &RepositoryName,
    tags: &[&Tag],
    second: Option<Sha512>,
    manifest: &Manifest,
    subject: Option<&ContentDigest>,
    origin: &Origin<'_>,
) -> Vec<Fact> {
    let digest = manifest.digest();
    let mut detail = json!({"mediaType": manifest.kind().media_type(), "size": manifest.size()});
    if let Some(subject) = subject {
        detail["subject"] = json!(subject.to_string());
    }
    if let Some(Value::Object(more)) = &origin.detail
        && let Some(detail) = detail.as_object_mut()
    {
        detail.extend(more.clone());
    }
    let fact = |name: String, about: Option<Subject>| Fact {
        role: Role::Control,
        subject: std::iter::once(Subject { name: name.clone(), digest }).chain(about).collect(),
        predicate: Predicate::Binding(Binding {
            kind: BindingKind::Tag,
            name,
            digest,
            by: origin.by.to_owned(),
            detail: detail.clone(),
        }),
        chain: None,
    };
    let about = subject.and_then(|subject| subject.sha256().ok());
    let about = about.map(|digest| Subject { name: "subject".to_owned(), digest });
    std::iter::once(fact(names::member(repository, &digest.into()), None))
        .chain(second.map(|second| fact(names::member(repository, &second.into()), None)))
        .chain(subject.map(|subject| fact(names::referrer(repository, subject, digest), about)))
        .chain(tags.iter().map(|tag| fact(names::tag(repository, tag), None)))
        .collect()
}
