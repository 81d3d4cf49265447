//! What a capsule proves.

use std::fmt;

use adamant_attest::predicate::Deployment;
use serde::Serialize;

use crate::capsule::Claim;

/// The line of every report on a log without a trusted witness.
pub const NO_WITNESS: &str = "not protected against a fork by the operator: no trusted witness cosigned the checkpoint";

/// A verified capsule in plain words. `Display` prints it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was claimed, and holds.
    pub claim: Claim,
    /// Name of the log.
    pub origin: String,
    /// Number of entries in the log that was proven against.
    pub size: u64,
    /// Names of the trusted witnesses that cosigned.
    pub witnesses: Vec<String>,
    /// Number of statements verified.
    pub statements: usize,
    /// The deployment.
    pub deployment: Deployment,
    /// When the server says it was recorded, RFC 3339.
    pub recorded_at: String,
    /// Git object id of the commit.
    pub commit: String,
    /// Every deployment of the environment up to this one, in order.
    pub history: Vec<Deployed>,
    /// What signatures, hashes and the log prove.
    pub proven: Vec<String>,
    /// What is only said by the one who signed it.
    pub asserted: Vec<String>,
    /// What the reader should know.
    pub warnings: Vec<String>,
}

/// A line of an environment's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Deployed {
    /// Sequence number.
    pub sequence: u64,
    /// Index in the log.
    pub index: u64,
    /// `project/number`.
    pub release: String,
    /// When the server says it was recorded, RFC 3339.
    pub recorded_at: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Claim { project, environment, sequence } = &self.claim;
        writeln!(f, "verified: deployment {sequence} of {project} to {environment} is {}", self.deployment.release)?;
        for (title, lines) in [("proven", &self.proven), ("asserted", &self.asserted), ("note", &self.warnings)] {
            for line in lines {
                writeln!(f, "{title:>9}  {line}")?;
            }
        }
        Ok(())
    }
}
