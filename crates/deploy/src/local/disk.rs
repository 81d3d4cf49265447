//! What the target remembers of a project in an environment.
//!
//! `<env>/<project>/history/<generation>.json` is written before anything is started, so the
//! highest of them is the newest deployment accepted; `current.json` names the one that runs and
//! changes before the switch. `instances/<name>/` is one instance, `logs/` what the last ones said.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use adamant_digest::Digest;
use adamant_release::{Desired, Document as _, Rollout};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::Applied;
use crate::durable;

/// Most bytes of a record.
const MAX_RECORD_BYTES: u64 = 80 << 20;
/// Records kept; what runs is always kept.
const MAX_HISTORY: usize = 200;

/// A deployment this host has accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// Always 1.
    pub version: u32,
    /// Sequence number of the deployment.
    pub generation: u64,
    /// Exact text of the rollout document.
    pub rollout: String,
    /// Exact text of the configuration revision.
    pub configuration: String,
    /// The capsule.
    pub evidence: String,
    /// Whether it became healthy; `None` while it is being tried.
    pub healthy: Option<bool>,
    /// Time to healthy, or why it failed.
    pub detail: String,
}

impl Record {
    /// The deployment to give to [`super::Local::apply`] under a new `generation`.
    pub fn again(&self, generation: u64) -> Applied {
        Applied {
            generation,
            rollout: self.rollout.clone().into_bytes(),
            configuration: self.configuration.clone().into_bytes(),
            evidence: self.evidence.clone(),
            port: None,
        }
    }

    /// Digest of the rollout document.
    pub fn digest(&self) -> Digest {
        Digest::of(self.rollout.as_bytes())
    }

    pub(super) fn document(&self) -> io::Result<Rollout> {
        Rollout::parse(self.rollout.as_bytes()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Current {
    version: u32,
    generation: u64,
}

/// The directory of a project in an environment.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    pub(super) environment: String,
    pub(super) name: String,
    environment_dir: PathBuf,
    dir: PathBuf,
}

impl Project {
    pub(super) fn new(local: &Path, environment: &str, name: &str) -> Self {
        let environment_dir = local.join(environment);
        let dir = environment_dir.join(name);
        Self { environment: environment.to_owned(), name: name.to_owned(), environment_dir, dir }
    }

    /// Every project below `local`, with valid names alone.
    pub(super) fn all(local: &Path) -> Vec<Self> {
        let mut all = Vec::new();
        for environment in names(local) {
            for name in names(&local.join(&environment)) {
                all.push(Self::new(local, &environment, &name));
            }
        }
        all
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn environment_dir(&self) -> &Path {
        &self.environment_dir
    }

    pub(super) fn instances_dir(&self) -> PathBuf {
        self.dir.join("instances")
    }

    pub(super) fn instance_dir(&self, name: &str) -> PathBuf {
        self.instances_dir().join(name)
    }

    /// How the front calls an instance.
    pub(super) fn key(&self, instance: &str) -> String {
        format!("{}/instances/{instance}", self.name)
    }

    pub(super) fn logs_dir(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub(super) fn create(&self) -> io::Result<()> {
        for dir in [self.dir.join("history"), self.instances_dir(), self.logs_dir()] {
            durable::create_dir(&dir)?;
        }
        durable::sync_dir(&self.dir)?;
        durable::sync_dir(&self.environment_dir)
    }

    /// Keeps other processes from changing this project; `None` if one does right now.
    pub(super) fn lock(&self) -> io::Result<Option<File>> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(self.dir.join("lock"))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn record_path(&self, generation: u64) -> PathBuf {
        self.dir.join("history").join(format!("{generation}.json"))
    }

    /// Generations on record, in order.
    pub(super) fn generations(&self) -> io::Result<Vec<u64>> {
        let mut found = Vec::new();
        let entries = match std::fs::read_dir(self.dir.join("history")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
            other => other?,
        };
        for entry in entries {
            let name = entry?.file_name();
            found.extend(name.to_str().and_then(|n| n.strip_suffix(".json")?.parse::<u64>().ok()));
        }
        found.sort_unstable();
        Ok(found)
    }

    pub(super) fn record(&self, generation: u64) -> io::Result<Option<Record>> {
        durable::read_json(&self.record_path(generation), MAX_RECORD_BYTES)
    }

    pub(super) fn write_record(&self, record: &Record) -> io::Result<()> {
        durable::write_json(&self.record_path(record.generation), record)
    }

    pub(super) fn history(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for generation in self.generations()? {
            records.extend(self.record(generation)?);
        }
        Ok(records)
    }

    /// The generation that runs, 0 if none.
    pub(super) fn current(&self) -> io::Result<u64> {
        let current: Option<Current> = durable::read_json(&self.dir.join("current.json"), 4096)?;
        Ok(current.map_or(0, |current| current.generation))
    }

    pub(super) fn set_current(&self, generation: u64) -> io::Result<()> {
        durable::write_json(&self.dir.join("current.json"), &Current { version: 1, generation })?;
        let known = self.generations()?;
        let old = known.len().saturating_sub(MAX_HISTORY);
        for doomed in known.into_iter().take(old).filter(|g| *g != generation) {
            std::fs::remove_file(self.record_path(doomed))?;
        }
        Ok(())
    }

    /// Names of the instances on disk.
    pub(super) fn instances(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.instances_dir()) else { return Vec::new() };
        let mut found: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(|c: char| c.is_ascii_digit()))
            .collect();
        found.sort();
        found
    }
}

/// What a rollout asks a planner for.
pub(super) fn desired(generation: u64, digest: Digest, rollout: &Rollout) -> Desired {
    let services = rollout.target.services.iter().map(|s| (s.artifact.clone(), s.port.is_some())).collect();
    Desired { generation, rollout: digest, services }
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<String> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            entry.file_type().ok()?.is_dir().then_some(entry.file_name())
        })
        .filter_map(|name| name.into_string().ok())
        .filter(|name| adamant_release::valid_name(name))
        .collect();
    found.sort();
    found
}
