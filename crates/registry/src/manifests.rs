//! Manifests, tags and referrers: what the ledger and the store say of a repository.

use std::collections::BTreeMap;
use std::time::Duration;

use adamant_attest::predicate::{Binding, BindingKind, Predicate, Role};
use adamant_digest::{Digest, Sha512};
use adamant_oci::{
    Content, ContentDigest, Descriptor, Manifest, ManifestError, Reference, RepositoryName, Tag, UnsupportedAlgorithm,
    media,
};
use adamant_store::{AppendError, Bound, Conflict, Fact, LedgerError, ReadBlobError, Subject, WriteBlobError};
use serde_json::{Value, json};

use crate::contents::{ContentsError, FitError, OverQuota};
use crate::pointers::{Led, POINTER};
use crate::registry::{OutOfSpace, Second};
use crate::{Access, Condition, LocateError, Misnamed, Registry, Shrinks, names, pointers};

/// Times that a push begins again because a pointer moved meanwhile; each time somebody's push took
/// effect.
const MOVES: u32 = 32;
/// Wait before the first of them; the next ones wait longer.
const MOVE_PAUSE: Duration = Duration::from_millis(1);

/// The names that a manifest is pushed under.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// All of them or none are bound.
    pub tags: &'a [Tag],
    /// The digest that the client names it by, if it does.
    pub digest: Option<&'a ContentDigest>,
    /// What must be true of the one tag; anything but the empty condition needs exactly one.
    pub condition: &'a Condition,
}

/// A push that was read.
struct Push<'a> {
    repository: &'a RepositoryName,
    names: Names<'a>,
    second: Option<Sha512>,
    manifest: Manifest,
    subject: Option<ContentDigest>,
    origin: &'a Origin<'a>,
}

/// What a name is.
enum Standing {
    /// Bound once, or free to be.
    Tag(Option<Digest>),
    /// One that moves. If it `may_move` no more, it has led somewhere.
    Pointer { led: Option<Led>, may_move: bool },
}

impl Standing {
    fn current(&self) -> Option<Digest> {
        match self {
            Self::Tag(digest) => *digest,
            Self::Pointer { led, .. } => led.map(|led| led.digest),
        }
    }
}

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
    /// The repository may not hold as much.
    #[error(transparent)]
    OverQuota(#[from] Box<OverQuota>),
    /// The space that is left is reserved.
    #[error(transparent)]
    OutOfSpace(#[from] OutOfSpace),
    /// A pointer of an older client would lose something.
    #[error(transparent)]
    Shrinks(#[from] Box<Shrinks>),
    /// A pointer was moved by others each time this push was about to.
    #[error("`{0}` is moved by others all the time: push again")]
    Moved(String),
    /// A pointer that the operator's settings name no more.
    #[error(
        "`{name}` is a pointer, leads to {current} and stays there: the settings of this server (`pointers` in server.toml) do not name it any more; push under another tag"
    )]
    Frozen {
        /// `repository:tag`.
        name: String,
        /// Where it leads.
        current: Digest,
    },
    /// The client's condition does not hold.
    #[error("`{name}` {}, which is not what the push asks for: look again, then decide", leads(*current))]
    Condition {
        /// `repository:tag`.
        name: String,
        /// Where it leads.
        current: Option<Digest>,
    },
    /// A condition without the one name that it would be about.
    #[error("`If-Match` and `If-None-Match` are about one tag: push to one tag at a time")]
    Unconditional,
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

fn leads(current: Option<Digest>) -> String {
    current.map_or_else(|| "is new".to_owned(), |digest| format!("leads to {digest}"))
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
    /// They may read everything.
    pub(crate) sees_all: bool,
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
        let names = Names { tags, digest: named, condition: &Condition::default() };
        self.put_manifest_if(repository, names, media_type, bytes, &Origin { by, sees_all: true, detail: None }).await
    }

    /// As [`Registry::put_manifest`], if a condition holds when it takes effect.
    pub(crate) async fn put_manifest_if(
        &self,
        repository: &RepositoryName,
        names: Names<'_>,
        media_type: Option<&str>,
        bytes: Vec<u8>,
        origin: &Origin<'_>,
    ) -> Result<Pushed, PutManifestError> {
        if bytes.len() > self.limits.manifest_bytes {
            return Err(PutManifestError::TooLarge { limit: self.limits.manifest_bytes });
        }
        if !names.condition.is_empty() && names.tags.len() != 1 {
            return Err(PutManifestError::Unconditional);
        }
        let second = names.digest.map(|named| check_named(named, &bytes)).transpose()?.flatten();
        let manifest = Manifest::parse(bytes)?;
        let found = manifest.kind().media_type();
        if let Some(declared) = media_type.filter(|declared| !declared.eq_ignore_ascii_case(found)) {
            return Err(PutManifestError::MediaType { declared: declared.chars().take(100).collect(), found });
        }
        self.check_space()?;
        let subject = manifest.meta().subject.as_ref().map(|subject| subject.digest.clone());
        if let Some(ContentDigest::Other(other)) = &subject {
            return Err(other.unsupported().into());
        }
        let push = Push { repository, names, second, manifest, subject, origin };

        let moving = names.tags.iter().any(|tag| pointers::is_list(tag) || self.is_named(repository, tag));
        let _turn = if moving { self.pointing.of(repository).await } else { None };
        let mut attempt = 0;
        loop {
            // Another server on the same ledger was first: with what it did, this push may be another one.
            match self.put_once(&push).await {
                Err(PutManifestError::Moved(_)) if attempt < MOVES => {
                    attempt += 1;
                    tokio::time::sleep(MOVE_PAUSE * attempt).await;
                }
                other => return other,
            }
        }
    }

    /// One attempt at a push; [`PutManifestError::Moved`] if a pointer moved between look and append.
    async fn put_once(&self, push: &Push<'_>) -> Result<Pushed, PutManifestError> {
        let Push { repository, names: Names { tags, condition, .. }, second, manifest, subject, origin } = push;
        let digest = manifest.digest();
        let mut missing = 0;
        let mut lost = false;
        let mut moves = Vec::new();
        let mut bound = Vec::new();
        let mut new_tags = Vec::new();
        for tag in *tags {
            let name = names::tag(repository, tag);
            let standing = self.standing(repository, tag).await?;
            if !condition.holds(standing.current()) {
                return Err(PutManifestError::Condition { name, current: standing.current() });
            }
            match standing {
                Standing::Pointer { led, .. } if led.is_some_and(|led| led.digest == digest) => {}
                Standing::Pointer { led: Some(led), may_move: false } => {
                    return Err(PutManifestError::Frozen { name, current: led.digest });
                }
                Standing::Pointer { led, .. } => {
                    missing += 1;
                    moves.push((tag, led));
                    if led.is_none() {
                        // Its first fact is bound like a tag, which lists it; later ones move it alone.
                        bound.push((tag, if pointers::is_list(tag) { digest } else { *POINTER }));
                    }
                }
                Standing::Tag(found) => {
                    bound.push((tag, digest));
                    match found {
                        Some(same) if same == digest => {}
                        Some(_) => lost = true,
                        None => {
                            missing += 1;
                            new_tags.push(tag);
                        }
                    }
                }
            }
        }
        let mut members: Vec<_> = second.iter().map(|second| names::member(repository, &(*second).into())).collect();
        if tags.is_empty() && members.is_empty() {
            members.push(names::member(repository, &digest.into()));
        }
        for name in &members {
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
            return Ok(Pushed { digest, subject: subject.clone(), new: false });
        }
        // Held until the manifest is recorded, so that what is counted is what is there.
        let mut _counted = None;
        // What is counted on from here on is in the ledger before a collection looks at it.
        let _binding = self.binding.read().await;
        // If it is lost already, the append below only records the divergence: keep no bytes.
        if !lost {
            for (tag, led) in &moves {
                if let Some(led) = led.filter(|_| pointers::is_list(tag)) {
                    let current = self.manifest(led.digest).await.map_err(Box::new)?;
                    pointers::grows(&names::tag(repository, tag), &current, manifest).map_err(Box::new)?;
                }
            }
            self.check_content(repository, manifest, origin.sees_all).await?;
            if let Some(counted) = self.counted(repository).await.map_err(contents)? {
                self.fits(&counted, manifest).await.map_err(|error| match error {
                    FitError::Over(over) => PutManifestError::OverQuota(over),
                    FitError::Contents(error) => contents(error),
                })?;
                _counted = Some(counted);
            }
            self.put_blob(manifest.bytes()).await?;
        }

        let mut facts: Vec<_> =
            moves.iter().map(|(tag, led)| pointers::moved(repository, tag, *led, digest, origin.by)).collect();
        facts.extend(self::facts(push, &new_tags, &bound));
        let list =
            |name: &str| bound.iter().any(|(tag, _)| pointers::is_list(tag) && names::tag(repository, tag) == name);
        let meanwhile = |conflict: &Conflict| {
            conflict.bound.digest == *POINTER || conflict.offered == *POINTER || list(&conflict.name)
        };
        let name = || match tags.first() {
            Some(tag) => names::tag(repository, tag),
            None => names::member(repository, &digest.into()),
        };
        match self.ledger.append(facts).await {
            // The tag's own fact is the last one.
            Ok(receipts) if condition.wants_new() && receipts.last().is_some_and(|receipt| !receipt.new) => {
                Err(PutManifestError::Condition { name: name(), current: Some(digest) })
            }
            Ok(receipts) => {
                let new = receipts.iter().any(|receipt| receipt.new);
                Ok(Pushed { digest, subject: subject.clone(), new })
            }
            // A name that was free is a tag, a pointer or a list now, made by another server.
            Err(AppendError::Conflict(conflict)) if meanwhile(&conflict) => Err(PutManifestError::Moved(conflict.name)),
            Err(AppendError::Conflict(conflict)) => Err(PutManifestError::Conflict(conflict)),
            Err(AppendError::ChainMoved { .. }) => Err(PutManifestError::Moved(name())),
            Err(source) => Err(PutManifestError::Append { name: name(), source }),
        }
    }

    /// What a name is, and where it leads.
    async fn standing(&self, repository: &RepositoryName, tag: &Tag) -> Result<Standing, LedgerError> {
        if pointers::is_list(tag) {
            return Ok(Standing::Pointer { led: self.led(repository, tag).await?, may_move: true });
        }
        let may_move = self.is_named(repository, tag);
        match self.ledger.binding(BindingKind::Tag, &names::tag(repository, tag)).await? {
            Some(bound) if bound.digest == *POINTER => {
                Ok(Standing::Pointer { led: self.led(repository, tag).await?, may_move })
            }
            Some(bound) => Ok(Standing::Tag(Some(bound.digest))),
            None if may_move => Ok(Standing::Pointer { led: None, may_move }),
            None => Ok(Standing::Tag(None)),
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

    async fn check_content(
        &self,
        repository: &RepositoryName,
        manifest: &Manifest,
        sees_all: bool,
    ) -> Result<(), PutManifestError> {
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
            let digest = digest.ok_or_else(missing)?;
            // Naming a blob makes it readable here: whoever may not read everything must have sent it.
            if !sees_all && !self.reaches(repository, digest).await.map_err(contents)? {
                return Err(missing());
            }
            if let Some(tombstone) = self.erased.tombstone(digest).map(Box::new) {
                return Err(WriteBlobError::Erased { digest, tombstone }.into());
            }
            let found = self.count_on(digest).await?.ok_or_else(missing)?;
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
                if pointers::is_list(tag)
                    && let Some(led) = self.led(repository, tag).await?
                {
                    return Ok(led.digest);
                }
                names::tag(repository, tag)
            }
            Reference::Digest(ContentDigest::Other(other)) => return Err(other.unsupported().into()),
            Reference::Digest(digest) => names::member(repository, digest),
        };
        let mut bound = self.ledger.binding(BindingKind::Tag, &name).await?.map(|bound| bound.digest);
        if let Reference::Tag(tag) = reference
            && bound == Some(*POINTER)
        {
            bound = self.led(repository, tag).await?.map(|led| led.digest);
        }
        bound.ok_or_else(|| ReadManifestError::Unknown { repository: repository.clone(), reference: reference.clone() })
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
        let bytes = self.blobs.get(digest).await?;
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

    /// As [`Registry::repositories`], those that the caller of `access` may pull from. A bounded number
    /// of repositories is looked at: the second value is where to go on, if there may be more.
    pub(crate) async fn repositories_for(
        &self,
        access: &Access,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<String>, Option<String>), ListError> {
        let mut starts: Vec<_> = access.rights.starts().collect();
        starts.sort_unstable();
        // One that starts with another is a part of it.
        starts.dedup_by(|later, earlier| later.starts_with(*earlier));
        let mut found = Vec::new();
        let mut at = after.map(str::to_owned);
        for _ in 0..LOOKS {
            if limit == 0 || starts.is_empty() {
                return Ok((found, None));
            }
            let start = at.as_deref().map(names::after).unwrap_or_default();
            let mut next: Option<String> = None;
            for prefix in &starts {
                let page = self.ledger.bindings(BindingKind::Tag, prefix, &start, 1).await?;
                let name = page.into_iter().next().map(|(name, _)| name);
                next = [next, name].into_iter().flatten().min();
            }
            let Some(name) = next else { return Ok((found, None)) };
            let repository = names::repository(&name).to_owned();
            if access.lists(&repository) {
                if found.len() == limit {
                    let last = found.last().cloned();
                    return Ok((found, last));
                }
                found.push(repository.clone());
            }
            at = Some(repository);
        }
        Ok((found, at))
    }

    /// Manifests of a repository that name `subject`, each with its descriptor, in the order of
    /// their digests: those after `after`, at most `limit` before the filter by type, and at most
    /// [`Limits::manifest_bytes`](crate::Limits) of manifests, but at least one. The
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
        let mut more = bound.len() > limit;
        let mut descriptors = Vec::new();
        let mut last = None;
        let mut read = 0;
        for (_, bound) in bound.into_iter().take(limit) {
            if self.erased.contains(bound.digest) {
                last = Some(bound.digest);
                continue;
            }
            let manifest = self.manifest(bound.digest).await?;
            // A descriptor has the annotations of its manifest and is no longer than it, more or less.
            read += usize::try_from(manifest.size()).unwrap_or(usize::MAX);
            if last.is_some() && read > self.limits.manifest_bytes {
                more = true;
                break;
            }
            last = Some(bound.digest);
            let descriptor = manifest.referrer();
            if artifact_type.is_none_or(|wanted| descriptor.artifact_type.as_deref() == Some(wanted)) {
                descriptors.push(descriptor);
            }
        }
        Ok((descriptors, last.filter(|_| more)))
    }
}

/// Repositories that are looked at for one page of a list that leaves some out.
const LOOKS: usize = 2_000;

fn contents(error: ContentsError) -> PutManifestError {
    match error {
        ContentsError::Ledger(error) => error.into(),
        ContentsError::Locate(error) => error.into(),
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
fn facts(push: &Push<'_>, new_tags: &[&Tag], bound: &[(&Tag, Digest)]) -> Vec<Fact> {
    let Push { repository, second, manifest, subject, origin, .. } = push;
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
    let fact = |name: String, digest: Digest, about: Option<Subject>| Fact {
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
    let about = subject.as_ref().and_then(|subject| subject.sha256().ok());
    let about = about.map(|digest| Subject { name: "subject".to_owned(), digest });
    let second = second.map(ContentDigest::from);
    let pushed_by = second.iter().flat_map(|second| new_tags.iter().map(move |tag| (tag, second)));
    let pushed_by = pushed_by.map(|(tag, second)| fact(names::pushed_by(repository, tag, second), digest, None));
    let second = second.as_ref().map(|second| fact(names::member(repository, second), digest, None));
    let referrer = subject.as_ref().map(|subject| fact(names::referrer(repository, subject, digest), digest, about));
    std::iter::once(fact(names::member(repository, &digest.into()), digest, None))
        .chain(second)
        .chain(referrer)
        .chain(pushed_by)
        .chain(bound.iter().map(|(tag, to)| fact(names::tag(repository, tag), *to, None)))
        .collect()
}
