//! Erasing bytes, as a blob and as a file in git: asked for by one person, approved by another, recorded, then done.
//!
//! The chain `erasure/<digest>` holds requests, withdrawals and the erasure itself. The erasure is
//! recorded before any byte goes; from then on the digest is neither given nor kept, and a start or a
//! tick of the housekeeping finishes what was cut off. The reason stands in a salted document beside
//! the fact, which holds its digest alone, so that the reason can be erased like anything else.

mod copies;
mod names;

use std::sync::{Arc, PoisonError};

use adamant_api::{Class, Erasable, Erasing, Erasure as ErasureView, ErasureState};
use adamant_attest::predicate::{Erasure, ErasureRequestV2, ErasureStep, ErasureV2, Names, Predicate, Role};
use adamant_digest::{Digest, Verified};
use adamant_store::{AppendError, Chain, Erased, Fact, Ledger, Link, Subject, Tombstone};
use ring::rand::SecureRandom as _;
use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::facts::Facts;
use crate::platform::Platform;
use crate::tokens::Holder;
use names::Named;

/// Longest reason, in bytes.
const MAX_REASON: usize = 2_000;
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
    Request(Request),
    Erasure(Erasure, Option<Names>),
}

/// A request of any version.
struct Request {
    step: ErasureStep,
    reason: Digest,
    by: String,
    named: Option<Named>,
}

async fn standing(facts: &Facts, digest: Digest) -> Result<Option<Standing>, Problem> {
    let Some(link) = facts.ledger.chain_head(&chain(digest)).await? else { return Ok(None) };
    let recorded = facts.at(link.index).await?;
    let what = match recorded.predicate {
        Predicate::ErasureRequest(r) => {
            What::Request(Request { step: r.step, reason: r.reason, by: r.by, named: None })
        }
        Predicate::ErasureRequestV2(r) => {
            let named = Some(Named { names: r.names, size_bytes: r.size_bytes });
            What::Request(Request { step: r.step, reason: r.reason, by: r.by, named })
        }
        Predicate::Erasure(erasure) => What::Erasure(erasure, None),
        Predicate::ErasureV2(erasure) => What::Erasure(erasure.erasure, Some(erasure.names)),
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

fn tombstone(erasure: &Erasure, names: Option<&Names>, standing: (u64, &str), reason: Option<String>) -> Tombstone {
    Tombstone {
        sha512: names.map(|names| names.sha512),
        git_blob: names.map(|names| names.git_blob.clone()),
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
    ledger: Arc<dyn Ledger>,
    blobs: &dyn adamant_store::BlobStore,
    erased: &Erased,
) -> Result<(), Problem> {
    let facts = Facts { ledger };
    for (digest, standing) in all(&facts).await? {
        if let What::Erasure(erasure, names) = &standing.what {
            let reason = reason_text(blobs, erasure.reason).await;
            erased.insert(digest, tombstone(erasure, names.as_ref(), (standing.link.index, &standing.at), reason));
        }
    }
    Ok(())
}

/// Refuses an erased digest in git, too.
fn forbid(source: &adamant_source::Repositories, erased: &Erased, digest: Digest) {
    if let Some(tombstone) = erased.tombstone(digest)
        && let Some(oid) = tombstone.git_blob.as_deref().and_then(|oid| oid.parse().ok())
    {
        source.forbid(oid, &tombstone.to_string());
    }
}

/// The same for all that is known.
pub(crate) fn forbid_all(source: &adamant_source::Repositories, erased: &Erased) {
    erased.digests().into_iter().for_each(|digest| forbid(source, erased, digest));
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

/// Whether two holders may be one person. Whoever makes a token can use it, whoever it is for.
fn may_be_one(one: &Holder, other: &Holder) -> bool {
    let is = |name: &str, holder: &Holder| holder.actor == name || holder.person.as_deref() == Some(name);
    let made = |maker: &Holder, token: &Holder| token.maker.as_deref().is_some_and(|name| is(name, maker));
    is(&one.actor, other)
        || one.person.as_deref().is_some_and(|person| is(person, other))
        || made(one, other)
        || made(other, one)
}

impl Platform {
    /// Asks for an erasure.
    pub(crate) async fn ask_erasure(&self, what: &Erasable, text: &str, by: &str) -> Result<ErasureView, Problem> {
        let text = text.trim();
        if text.is_empty() || text.len() > MAX_REASON {
            return Err(Problem::usage(format!("a reason is 1 to {MAX_REASON} bytes of text")));
        }
        let (digest, named) = self.named(what).await?;
        let before = standing(&self.facts, digest).await?;
        let sequence = match &before {
            Some(Standing { what: What::Erasure(..), .. }) => {
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
        let Some(named) = named else {
            return Err(Problem::no(format!("{digest} is not in the store"))
                .hint("give the sha256 of a layer, configuration, manifest, input or document, or --git and --project for a file of a commit"));
        };
        let mut salt = [0_u8; 32];
        ring::rand::SystemRandom::new()
            .fill(&mut salt)
            .map_err(|_| Problem::new(Class::Unavailable, "the system has no randomness"))?;
        let salt = Digest::from_bytes(salt).hex();
        let document = serde_json::to_vec(&Reason { salt, text: text.to_owned() })
            .map_err(|e| Problem::internal("a reason cannot be written", e))?;
        let document = Verified::hash(document);
        self.blobs.put(&document).await?;
        self.step(digest, named, document.digest(), ErasureStep::Requested, sequence, by).await?;
        self.erasure(digest).await
    }

    /// Takes a request back; whoever may ask may.
    pub(crate) async fn withdraw_erasure(&self, what: &Erasable, by: &str) -> Result<ErasureView, Problem> {
        let (digest, found) = self.named(what).await?;
        let (request, link) = self.pending(digest).await?;
        let Some(named) = request.named.or(found) else {
            return Err(Problem::no(format!("{digest} is not in the store any more")));
        };
        self.step(digest, named, request.reason, ErasureStep::Withdrawn, link.sequence + 1, by).await?;
        self.erasure(digest).await
    }

    async fn pending(&self, digest: Digest) -> Result<(Request, Link), Problem> {
        match standing(&self.facts, digest).await? {
            Some(Standing { what: What::Request(request), link, .. }) if request.step == ErasureStep::Requested => {
                Ok((request, link))
            }
            Some(Standing { what: What::Erasure(..), .. }) => {
                Err(Problem::new(Class::Conflict, format!("{digest} was erased already")))
            }
            _ => Err(Problem::no(format!("nobody asks for the erasure of {digest}"))
                .hint(format!("ask for it: adamant erase {digest} --reason TEXT"))),
        }
    }

    async fn step(
        &self,
        digest: Digest,
        Named { names, size_bytes }: Named,
        reason: Digest,
        step: ErasureStep,
        sequence: u64,
        by: &str,
    ) -> Result<(), Problem> {
        let request = ErasureRequestV2 { digest, names, size_bytes, step, reason, by: by.to_owned() };
        self.record_erasure(digest, Predicate::ErasureRequestV2(request), sequence).await
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

    /// Erases what somebody else asked to erase: the fact first, then every copy. `holder` says whose
    /// name an actor is.
    pub(crate) async fn approve_erasure(
        &self,
        what: &Erasable,
        by: &str,
        holder: impl Fn(&str) -> Holder,
    ) -> Result<Erasing, Problem> {
        let (digest, found) = match what {
            // It need not be in the store: the request has the names.
            Erasable::Digest(digest) => (*digest, None),
            Erasable::Git { .. } => self.named(what).await?,
        };
        let (request, link) = self.pending(digest).await?;
        if may_be_one(&holder(&request.by), &holder(by)) {
            return Err(Problem::new(
                Class::Denied,
                format!(
                    "{by} cannot approve the erasure of {digest}, which {} asked for: it takes two people, and a person, the tokens of that person and the tokens that person made are one",
                    request.by
                ),
            )
            .hint("another user approves it with an own login or token: adamant erase DIGEST --approve"));
        }
        let named = match request.named.or(found) {
            Some(named) => Some(named),
            None => self.named_in_store(digest).await?,
        };
        let (names, size_bytes) = named.map_or((None, 0), |named| (Some(named.names), named.size_bytes));
        let erasure = Erasure {
            digest,
            size_bytes,
            reason: request.reason,
            requested_by: request.by,
            approved_by: by.to_owned(),
        };
        let predicate = match names {
            Some(names) => Predicate::ErasureV2(ErasureV2 { erasure, names }),
            None => Predicate::Erasure(erasure),
        };
        self.record_erasure(digest, predicate, link.sequence + 1).await?;
        self.learn(digest).await?;
        let left = self.finish_erasures().await?;
        Ok(Erasing { erasure: self.erasure(digest).await?, left })
    }

    /// Takes an erasure from the ledger: from now on this server refuses the bytes by all their names.
    /// False if it is none, or is known.
    async fn learn(&self, digest: Digest) -> Result<bool, Problem> {
        if self.erased.contains(digest) {
            return Ok(false);
        }
        let Some(Standing { link, at, what: What::Erasure(erasure, names) }) = standing(&self.facts, digest).await?
        else {
            return Ok(false);
        };
        let text = reason_text(&*self.blobs, erasure.reason).await;
        // Before the list: whoever sees the tombstone may count on what is left being dealt with.
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        self.erased.insert(digest, tombstone(&erasure, names.as_ref(), (link.index, &at), text));
        forbid(&self.source, &self.erased, digest);
        Ok(true)
    }

    /// Learns of erasures that other servers on the same ledger recorded, and removes this server's
    /// copies.
    pub(crate) async fn learn_erasures(&self) -> Result<(), Problem> {
        let mut learned = false;
        for name in self.facts.ledger.chains("erasure/", MOST).await? {
            if let Some(Ok(digest)) = name.strip_prefix("erasure/").map(str::parse::<Digest>) {
                learned |= self.learn(digest).await?;
            }
        }
        if learned {
            for left in self.finish_erasures().await? {
                tracing::warn!(left, "an erasure is not finished");
            }
        }
        Ok(())
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
        let (state, reason, requested_by, approved_by, names) = match standing.what {
            What::Request(r) => {
                let names = r.named.map(|named| named.names);
                match r.step {
                    ErasureStep::Requested => (ErasureState::Requested, r.reason, r.by, None, names),
                    ErasureStep::Withdrawn => (ErasureState::Withdrawn, r.reason, r.by, None, names),
                }
            }
            What::Erasure(e, names) => (ErasureState::Erased, e.reason, e.requested_by, Some(e.approved_by), names),
        };
        let git_blob = names.map(|names| names.git_blob);
        let text = reason_text(&*self.blobs, reason).await;
        let (at, entry) = (standing.at, standing.link.index);
        ErasureView {
            digest,
            git_blob,
            state,
            reason: text,
            reason_digest: reason,
            by: requested_by,
            approved_by,
            at,
            entry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_person_is_not_two() {
        let holder = |actor: &str, person: Option<&str>, maker: Option<&str>| Holder {
            actor: actor.to_owned(),
            person: person.map(str::to_owned),
            maker: maker.map(str::to_owned),
        };
        let root = || holder("root", None, None);
        let bob = || holder("token:bob", Some("bob"), Some("root"));
        let check = |one: &Holder, other: &Holder, expect: bool| {
            assert_eq!(may_be_one(one, other), expect, "{one:?} {other:?}");
            assert_eq!(may_be_one(other, one), expect, "{other:?} {one:?}");
        };
        check(&root(), &root(), true);
        check(&root(), &holder("ann", None, None), false);
        check(&bob(), &bob(), true);
        check(&bob(), &holder("token:laptop", Some("bob"), Some("ann")), true);
        check(&bob(), &holder("token:carol", Some("carol"), Some("root")), false);
        check(&bob(), &holder("bob", None, None), true);
        check(&bob(), &root(), true);
        check(&bob(), &holder("ann", None, None), false);
        check(&bob(), &holder("token:own", Some("root"), Some("ann")), true);
    }
}
