//! Collecting what was signed about a manifest, and asking the gate.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use adamant_attest::Statement;
use adamant_attest::predicate::{BindingKind, Predicate, Rejection, Role};
use adamant_digest::{Digest, Hasher};
use adamant_oci::{Content, Manifest, RepositoryName, Tag};
use adamant_store::{AppendError, Chain, Fact, LedgerError, ReadBlobError, Subject};
use serde_json::Value;

use crate::gate::{Evidence, Gate, MAX_EVIDENCE};
use crate::{ReadManifestError, Registry, names};

/// Manifests that refer to one, and layers of a list of signatures, that are looked at. Whoever may push
/// can add more; then the gate stays closed.
const MOST: usize = 256;
/// Facts about a manifest among which its provenance is looked for. It is recorded with the first ones.
const FACTS: usize = 256;
/// Verdicts that are kept.
const KEPT: usize = 4096;
/// Refusals of one manifest that are recorded. There is another one only when something else is missing.
const REFUSALS: u64 = 16;

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";
const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// Verdicts by manifest and everything they rest on: a new signature is another key.
#[derive(Debug, Default)]
pub(crate) struct Verdicts(Mutex<HashMap<Digest, Vec<String>>>);

impl Verdicts {
    fn find(&self, key: Digest) -> Option<Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    fn keep(&self, key: Digest, missing: &[String]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // All of them are made again when they are asked for.
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(key, missing.to_vec());
    }
}

/// Why a manifest does not pass the gate.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// Signatures are missing.
    #[error("{repository}@{digest} is not signed as this server's settings ask: missing is {}", missing.join("; "))]
    Closed {
        /// The repository.
        repository: RepositoryName,
        /// The manifest.
        digest: Digest,
        /// What would be needed.
        missing: Vec<String>,
    },
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Evidence cannot be read.
    #[error(transparent)]
    Manifest(#[from] Box<ReadManifestError>),
    /// Evidence cannot be read.
    #[error(transparent)]
    Blob(#[from] ReadBlobError),
}

impl Registry {
    /// Whether a manifest may be deployed: every gate of its repository is open. What `by` is refused is
    /// recorded.
    pub async fn may_deploy(&self, repository: &RepositoryName, digest: Digest, by: &str) -> Result<(), GateError> {
        let gates: Vec<_> = self.gates.iter().filter(|gate| gate.repositories.covers(repository.as_str())).collect();
        self.pass("deploy", repository, digest, &gates, by).await
    }

    /// Whether somebody who may not push may pull a manifest. What carries signatures is let through: it is
    /// what a client needs to check them, and it cannot run.
    pub(crate) async fn may_pull(
        &self,
        repository: &RepositoryName,
        manifest: &Manifest,
        by: &str,
    ) -> Result<(), GateError> {
        let gates: Vec<_> =
            self.gates.iter().filter(|gate| gate.pull && gate.repositories.covers(repository.as_str())).collect();
        if gates.is_empty() || is_signature(manifest) {
            return Ok(());
        }
        self.pass("pull", repository, manifest.digest(), &gates, by).await
    }

    async fn pass(
        &self,
        action: &str,
        repository: &RepositoryName,
        digest: Digest,
        gates: &[&Gate],
        by: &str,
    ) -> Result<(), GateError> {
        if gates.is_empty() {
            return Ok(());
        }
        let (carriers, facts) = (self.carriers(repository, digest).await?, self.ledger.about(digest, FACTS).await?);
        let mut key = Hasher::new();
        // A pull asks fewer gates than a deployment.
        key.update(format!("{action} {repository}@{digest} {facts:?} {carriers:?}").as_bytes());
        let key = key.finish();
        let missing = if let Some(missing) = self.verdicts.find(key) {
            missing
        } else {
            let evidence = self.evidence(&carriers, &facts).await?;
            let by_gate = |gate: &&Gate| {
                let missing = gate.demand.missing(digest, &evidence);
                let name = format!("(gate `{}`)", gate.repositories);
                missing.into_iter().map(move |what| format!("{what} {name}"))
            };
            let mut missing: Vec<_> = gates.iter().flat_map(by_gate).collect();
            missing.dedup();
            if !missing.is_empty() {
                self.record_refusal(&format!("{action} {repository}@{digest}"), digest, &missing, by).await;
            }
            self.verdicts.keep(key, &missing);
            missing
        };
        if missing.is_empty() {
            return Ok(());
        }
        Err(GateError::Closed { repository: repository.clone(), digest, missing })
    }

    /// Records that a gate stayed closed: once for what is missing, however often somebody asks, also between
    /// servers and after a restart. The refusal holds even if this cannot be written.
    async fn record_refusal(&self, object: &str, digest: Digest, missing: &[String], by: &str) {
        let recorded = async {
            let reason = format!("missing is {}", missing.join("; ")).chars().take(2000).collect();
            let name = format!("rejection/{object}");
            let head = self.ledger.chain_head(&name).await?;
            if let Some(head) = &head {
                let last =
                    self.ledger.entry(head.index).await?.and_then(|entry| Statement::parse(&entry.statement).ok());
                let last = last.and_then(|statement| statement.predicate().ok());
                let is_same = matches!(&last, Some(Predicate::Rejection(last)) if last.reason == reason);
                if is_same || head.sequence >= REFUSALS {
                    return Ok(());
                }
            }
            let rejection = Rejection { object: object.to_owned(), reason, by: by.to_owned() };
            let fact = Fact {
                role: Role::Control,
                subject: vec![Subject { name: object.to_owned(), digest }],
                predicate: Predicate::Rejection(rejection),
                chain: Some(Chain { name, expect: Some(head.map_or(1, |head| head.sequence + 1)) }),
            };
            match self.ledger.append(vec![fact]).await {
                // Somebody else was refused at the same moment.
                Ok(_) | Err(AppendError::ChainMoved { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        };
        if let Err(error) = recorded.await {
            tracing::error!(%error, object, "a gate's refusal could not be recorded");
        }
    }

    /// The manifests that may carry signatures of `digest`.
    async fn carriers(&self, repository: &RepositoryName, digest: Digest) -> Result<Vec<Digest>, LedgerError> {
        let prefix = names::referrers(repository, &digest.into());
        let bound = self.ledger.bindings(BindingKind::Tag, &prefix, "", MOST).await?;
        let mut carriers: Vec<_> = bound.into_iter().map(|(_, bound)| bound.digest).collect();
        for kind in ["sig", "att"] {
            if let Ok(tag) = format!("sha256-{}.{kind}", digest.hex()).parse::<Tag>()
                && let Some(led) = self.led(repository, &tag).await?
            {
                carriers.push(led.digest);
            }
        }
        // What was erased says nothing any more, neither now nor by a verdict of before.
        carriers.retain(|carrier| !self.erased.contains(*carrier));
        Ok(carriers)
    }

    async fn evidence(&self, carriers: &[Digest], facts: &[u64]) -> Result<Vec<Evidence>, GateError> {
        let mut evidence = Vec::new();
        for carrier in carriers {
            let manifest = self.manifest(*carrier).await.map_err(Box::new)?;
            let value: Value = serde_json::from_slice(manifest.bytes().bytes()).unwrap_or_default();
            let Content::Image { layers, .. } = manifest.content() else { continue };
            for (at, layer) in layers.iter().enumerate().take(MOST) {
                let is_simple = layer.media_type == SIMPLE;
                if !is_simple && ![BUNDLE, ENVELOPE].contains(&layer.media_type.as_str()) {
                    continue;
                }
                let Ok(digest) = layer.digest.sha256() else { continue };
                if self.erased.contains(digest) {
                    continue;
                }
                if layer.size > MAX_EVIDENCE as u64 {
                    continue;
                }
                let bytes = self.blobs.get(digest).await?.into_bytes();
                if !is_simple {
                    evidence.push(Evidence::Envelope(bytes));
                } else if let Some(signature) = value["layers"][at]["annotations"][SIGNATURE].as_str() {
                    evidence.push(Evidence::Simple { payload: bytes, signature: signature.to_owned() });
                }
            }
        }
        for index in facts {
            let Some(entry) = self.ledger.entry(*index).await? else { continue };
            let statement = Statement::parse(&entry.statement).ok();
            if statement.is_some_and(|of| matches!(of.predicate(), Ok(Predicate::Provenance(_)))) {
                evidence.push(Evidence::Envelope(entry.envelope));
            }
        }
        Ok(evidence)
    }
}

/// Whether all that a manifest carries is signatures, by the types of its layers: nothing runs those.
fn is_signature(manifest: &Manifest) -> bool {
    let Content::Image { layers, .. } = manifest.content() else { return false };
    !layers.is_empty() && layers.iter().all(|layer| [BUNDLE, ENVELOPE, SIMPLE].contains(&layer.media_type.as_str()))
}
