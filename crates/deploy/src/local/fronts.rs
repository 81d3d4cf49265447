//! Fronts: started, found again, replaced.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use super::Inner;
use crate::front::{self, FrontClient, FrontConfig};
use crate::{daemon, durable};

/// How long a front may take to start.
const START: Duration = Duration::from_secs(20);
/// How long a front that was replaced serves its old connections.
const HANDOVER: Duration = Duration::from_mins(5);

impl Inner {
    /// Makes sure that the environment has a front that answers; its port. Blocks.
    pub(super) fn ensure_front(&self, environment: &str, port: Option<u16>) -> io::Result<u16> {
        let dir = self.options.dir.join(environment);
        if let Ok(hello) = FrontClient::connect(&dir).and_then(|client| client.hello()) {
            return Ok(hello.port);
        }
        durable::create_dir(&dir)?;
        if FrontConfig::read(&dir)?.is_none() {
            let config = FrontConfig {
                version: 1,
                environment: environment.to_owned(),
                port: port.unwrap_or(0),
                handover_ms: u64::try_from(HANDOVER.as_millis()).unwrap_or(u64::MAX),
            };
            config.write(&dir)?;
            durable::sync_dir(&self.options.dir)?;
        }
        daemon::start(&self.options.exe, front::WORD, &dir, false, START)?;
        // Started by somebody else in the meantime, perhaps: ask instead of believing.
        FrontClient::connect(&dir)?.hello().map(|hello| hello.port)
    }

    /// Replaces a front that runs another executable than ours. Blocks.
    pub(super) fn upgrade_front(&self, environment: &str) -> io::Result<bool> {
        let dir = self.options.dir.join(environment);
        let old = FrontClient::connect(&dir)?.hello()?;
        if old.build == build_of(&self.options.exe) {
            return Ok(false);
        }
        daemon::start(&self.options.exe, front::WORD, &dir, true, START)?;
        Ok(FrontClient::connect(&dir)?.hello()?.pid != old.pid)
    }
}

/// What tells executables apart: device, inode, size and time.
pub(crate) fn build_of(exe: &Path) -> String {
    std::fs::metadata(exe)
        .map(|m| format!("{}:{}:{}:{}.{}", m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
        .unwrap_or_default()
}
