//! What a front keeps on disk: its address and its routes.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file;
use crate::durable;

/// Longest routing table, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// `front.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FrontConfig {
    pub(crate) version: u32,
    pub(crate) environment: String,
    /// Port on 127.0.0.1; 0 until the first start, if any port will do.
    pub(crate) port: u16,
    /// How long a front that handed over serves its connections, in milliseconds.
    pub(crate) handover_ms: u64,
}

/// `routes.json`: the durable truth a front starts from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Table {
    pub(crate) version: u32,
    pub(crate) projects: BTreeMap<String, ProjectRoutes>,
}

/// Routes of one project.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProjectRoutes {
    /// The deployment they belong to; older ones are refused.
    pub(crate) generation: u64,
    /// Host name without port → directory of the instance, relative to the environment's.
    pub(crate) hosts: BTreeMap<String, String>,
}

impl FrontConfig {
    pub(crate) fn read(dir: &Path) -> io::Result<Option<Self>> {
        durable::read_json(&dir.join(file::CONFIG), 64 * 1024)
    }

    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        durable::write_json(&dir.join(file::CONFIG), self)
    }
}

impl Table {
    pub(crate) fn read(dir: &Path) -> io::Result<Self> {
        Ok(durable::read_json(&dir.join(file::ROUTES), MAX_BYTES)?.unwrap_or(Self { version: 1, ..Self::default() }))
    }

    /// Replaces the routes of a project on disk.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        durable::write_json(&dir.join(file::ROUTES), self)
    }
}
