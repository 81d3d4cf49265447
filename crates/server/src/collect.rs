//! Collecting blobs that nothing names: beside everything else, and when asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use adamant_api::{Class, GcReport};
use adamant_registry::CollectError;

use crate::error::Problem;
use crate::platform::Platform;

/// How often it is done without being asked.
const EVERY: Duration = Duration::from_hours(12);
/// How long it rests between two steps then.
const REST: Duration = Duration::from_millis(2);

/// What was collected since the process started.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) runs: AtomicU64,
    pub(crate) blobs: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

impl Platform {
    /// Removes what nothing names and nobody used for the grace period; only counts it if `dry`.
    pub(crate) async fn collect(&self, dry: bool, idle: Option<Duration>) -> Result<GcReport, Problem> {
        let grace = self.config.settings.store.grace();
        let found = self.registry.collect(grace, dry, idle).await.map_err(|error| {
            let class = match error {
                CollectError::Unreadable { .. } | CollectError::TooMany => Class::No,
                CollectError::Entry { .. } => Class::Internal,
                _ => Class::Unavailable,
            };
            Problem::new(class, error.to_string()).hint("`adamant fsck` lists what is damaged or missing")
        })?;
        if !dry {
            self.collected.runs.fetch_add(1, Ordering::Relaxed);
            self.collected.blobs.fetch_add(found.removed, Ordering::Relaxed);
            self.collected.bytes.fetch_add(found.bytes, Ordering::Relaxed);
        }
        Ok(GcReport {
            dry_run: dry,
            grace_s: grace.as_secs(),
            blobs: found.blobs,
            removed: found.removed,
            bytes: found.bytes,
            used_meanwhile: found.used_meanwhile,
        })
    }
}

/// Collects now and then, at low priority, until stopped. Cut off anywhere, nothing is half done.
/// Not in a bucket: other servers may be using what this one takes for idle, and no lock is common
/// to all.
pub(crate) async fn collecting(platform: Arc<Platform>, stop: impl Future<Output = ()>) {
    if platform.config.settings.blobs.url.is_some() {
        return;
    }
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tick.reset();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return,
            _ = tick.tick() => {}
        }
        tokio::select! {
            () = &mut stop => return,
            done = platform.collect(false, Some(REST)) => match done {
                Ok(report) => tracing::info!(removed = report.removed, bytes = report.bytes, "collected"),
                Err(problem) => tracing::error!(%problem, "collecting what nothing names"),
            }
        }
    }
}
