//! Manifest requests per second, by `wrk`.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::process::{installed, run};
use crate::report::Report;

/// Seconds of load.
const SECONDS: u64 = 5;

/// `base` is the server's URL, `name` a repository, `reference` a tag or digest in it.
pub(crate) fn measure(base: &str, name: &str, reference: &str, how: &str, report: &mut Report) -> Result<()> {
    if !installed("wrk") {
        report.note("wrk is not installed: no registry load");
        return Ok(());
    }
    let url = format!("{base}/v2/{name}/manifests/{reference}");
    let mut command = Command::new("wrk");
    command.args(["-t", "2", "-c", "32", "-d", &format!("{SECONDS}s"), "--latency"]);
    command.args(["-H", "Accept: application/vnd.oci.image.manifest.v1+json", &url]);
    let ran = run(&mut command, Duration::from_secs(SECONDS + 15))?;
    let field = |name: &str| {
        let line = ran.out.lines().map(str::trim).find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)).map(str::to_owned)
    };
    if let Some(bad) = ran.out.lines().find(|line| line.contains("Non-2xx")) {
        anyhow::bail!("{url}: {}", bad.trim());
    }
    let rate: f64 = field("Requests/sec:").context("wrk said no rate")?.parse()?;
    let p99 = field("99%").unwrap_or_default();
    report.row(format!("registry, manifest GET by {how}"), rate, "req/s").note(format!("32 connections, p99 {p99}"));
    Ok(())
}
