//! Everything that must hold before a program is started, checked anew at each start.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use adamant_digest::Digest;
use adamant_release::{Configuration, Document as _, Rollout, Service};
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::tree::{self, HashError, ImageConfig};

/// Names of the files in an instance's directory.
pub(crate) mod file {
    pub(crate) const DESCRIPTION: &str = "instance.json";
    pub(crate) const ROLLOUT: &str = "rollout.json";
    pub(crate) const CONFIGURATION: &str = "configuration.json";
    pub(crate) const EVIDENCE: &str = "evidence.json";
    pub(crate) const MANIFEST: &str = "manifest.json";
    pub(crate) const IMAGE: &str = "image.json";
    pub(crate) const STATUS: &str = "status.json";
    pub(crate) const LOG: &str = "log";
    pub(crate) const CONTROL: &str = "control.sock";
    pub(crate) const SOCKET: &str = "instance.sock";
    pub(crate) const LOCK: &str = "lock";
    pub(crate) const RETIRING: &str = "retiring";
}

/// Most bytes of the evidence of a deployment.
const MAX_EVIDENCE_BYTES: u64 = 64 << 20;

/// `instance.json`: which part of the rollout this instance is, and where things are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Description {
    pub(crate) version: u32,
    /// Sequence number of the deployment it was started for.
    pub(crate) generation: u64,
    pub(crate) artifact: String,
    /// Tree digest of the artifact, computed from verified blobs.
    pub(crate) tree: Digest,
    pub(crate) trees: PathBuf,
    pub(crate) trust: PathBuf,
}

/// What evidence has to show before an instance starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The capsule's bytes.
    pub evidence: Vec<u8>,
    /// The trust file's bytes.
    pub trust: Vec<u8>,
    /// The project.
    pub project: String,
    /// The environment.
    pub environment: String,
    /// Sequence number of the deployment the instance is started for. The evidence may be of
    /// another deployment of the same rollout, after a rollback for example.
    pub generation: u64,
    /// Digest of the rollout document: the deployment in the evidence must name it.
    pub rollout: Digest,
    /// Digest of the artifact's manifest; the rollout names it.
    pub manifest: Digest,
}

/// Verifies evidence offline. Anything but `Ok` keeps the instance from starting.
pub type Verify<'a> = &'a (dyn Fn(&Claim) -> Result<(), String> + Sync);

/// A program that may be started.
pub(super) struct Prepared {
    /// The verified tree, to be mounted from this descriptor.
    pub(super) root: OwnedFd,
    pub(super) image: ImageConfig,
    pub(super) configuration: Configuration,
    pub(super) service: Service,
    pub(super) hostname: String,
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Files on disk differ.
    #[error("damaged: {0}")]
    Damaged(#[from] tree::Damage),
    /// Documents or evidence do not hold.
    #[error("refused: {0}")]
    Refused(String),
}

/// Checks documents, evidence and files of the instance in `dir`.
pub(super) fn prepare(dir: &Path, verify: Verify<'_>) -> Result<Prepared, Refusal> {
    let refused = |what: &str, why: &dyn std::fmt::Display| Refusal::Refused(format!("{what}: {why}"));
    let read = |name: &str, max: u64| durable::read(&dir.join(name), max).map_err(|e| refused(name, &e));
    let document = |name: &str| read(name, 4 << 20);

    let description: Description =
        serde_json::from_slice(&document(file::DESCRIPTION)?).map_err(|e| refused(file::DESCRIPTION, &e))?;
    let rollout_bytes = document(file::ROLLOUT)?;
    let rollout = Rollout::parse(&rollout_bytes).map_err(|e| refused(file::ROLLOUT, &e))?;
    let configuration_bytes = document(file::CONFIGURATION)?;
    let configuration = Configuration::parse(&configuration_bytes).map_err(|e| refused(file::CONFIGURATION, &e))?;
    same(file::CONFIGURATION, rollout.configuration, &configuration_bytes)?;
    let artifact = rollout.artifacts.iter().find(|a| a.name == description.artifact);
    let service = rollout.target.services.iter().find(|s| s.artifact == description.artifact);
    let (Some(artifact), Some(service)) = (artifact, service) else {
        return Err(Refusal::Refused(format!("the rollout does not run `{}`", description.artifact)));
    };
    let manifest_bytes = document(file::MANIFEST)?;
    same(file::MANIFEST, artifact.digest, &manifest_bytes)?;
    let config = tree::config_of(artifact.digest, &manifest_bytes).map_err(|e| refused(file::MANIFEST, &e))?;
    let image_bytes = document(file::IMAGE)?;
    same(file::IMAGE, config, &image_bytes)?;
    let image = ImageConfig::parse(config, &image_bytes).map_err(|e| refused(file::IMAGE, &e))?;

    let claim = Claim {
        evidence: read(file::EVIDENCE, MAX_EVIDENCE_BYTES)?,
        trust: durable::read(&description.trust, 1 << 20)
            .map_err(|e| refused(&description.trust.display().to_string(), &e))?,
        project: rollout.project.clone(),
        environment: rollout.environment.clone(),
        generation: description.generation,
        rollout: Digest::of(&rollout_bytes),
        manifest: artifact.digest,
    };
    verify(&claim).map_err(|reason| refused("evidence", &reason))?;

    let root = tree::verify(&description.trees, description.tree).map_err(|error| match error {
        HashError::Damaged(damage) => Refusal::Damaged(damage),
        // A tree that is gone or unreadable can be unpacked again like a changed one.
        HashError::Io { tree, source } => {
            Refusal::Damaged(tree::Damage { expected: tree, path: ".".to_owned(), found: source.to_string() })
        }
    })?;
    let hostname = format!("{}-{}", rollout.project, artifact.name).chars().take(63).collect();
    Ok(Prepared { root, image, configuration, service: service.clone(), hostname })
}

fn same(name: &str, expected: Digest, bytes: &[u8]) -> Result<(), Refusal> {
    let found = Digest::of(bytes);
    if found == expected {
        return Ok(());
    }
    Err(Refusal::Refused(format!("{name} has {found}, the rollout names {expected}")))
}
