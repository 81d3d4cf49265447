//! Requests per second, by `wrk`.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::process::{installed, run};
use crate::report::Report;

/// Seconds of load.
const SECONDS: u64 = 5;

/// What `wrk` says.
pub(crate) struct Load {
    /// Per second.
    pub(crate) rate: f64,
    pub(crate) requests: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// Asks for one address over 32 connections.
pub(crate) fn load(url: &str) -> Result<Load> {
    let mut command = Command::new("wrk");
    command.args(["-t", "2", "-c", "32", "-d", &format!("{SECONDS}s"), "--latency"]);
    command.args(["-H", "Accept: application/vnd.oci.image.manifest.v1+json", url]);
    let ran = run(&mut command, Duration::from_secs(SECONDS + 15))?;
    if let Some(bad) = ran.out.lines().find(|line| line.contains("Non-2xx")) {
        anyhow::bail!("{url}: {}", bad.trim());
    }
    parse(&ran.out).with_context(|| format!("wrk says something else: {}", ran.out))
}

fn parse(out: &str) -> Option<Load> {
    let field = |name: &str| {
        let line = out.lines().map(str::trim).find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)
    };
    let requests = out.lines().find(|line| line.contains(" requests in "))?.split_whitespace().next()?;
    Some(Load {
        rate: field("Requests/sec:")?.parse().ok()?,
        requests: requests.parse().ok()?,
        p50_ms: milliseconds(field("50%")?)?,
        p99_ms: milliseconds(field("99%")?)?,
    })
}

/// `1.53ms`, `820.00us`, `1.20s`.
fn milliseconds(text: &str) -> Option<f64> {
    let (unit, factor) = [("us", 1e-3), ("ms", 1.0), ("s", 1e3)].into_iter().find(|(unit, _)| text.ends_with(unit))?;
    Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor)
}

/// `base` is the server's URL, `name` a repository, `reference` a tag or digest in it.
pub(crate) fn measure(base: &str, name: &str, reference: &str, how: &str, report: &mut Report) -> Result<()> {
    if !installed("wrk") {
        report.note("wrk is not installed: no registry load");
        return Ok(());
    }
    let load = load(&format!("{base}/v2/{name}/manifests/{reference}"))?;
    let note = format!("32 connections, p99 {:.1} ms", load.p99_ms);
    report.row(format!("registry, manifest GET by {how}"), load.rate, "req/s").note(note);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_understood() {
        let out = "  Latency Distribution\n     50%  820.00us\n     75%    1.00ms\n     99%    1.53ms\n  \
                   12345 requests in 5.00s, 3.21MB read\nRequests/sec:   2469.12\n";
        let load = parse(out).unwrap_or(Load { rate: 0.0, requests: 0.0, p50_ms: 0.0, p99_ms: 0.0 });
        let all = [load.rate, load.requests, load.p50_ms, load.p99_ms];
        let right = [2469.12, 12_345.0, 0.82, 1.53];
        assert!(all.iter().zip(right).all(|(found, right)| (found - right).abs() < 1e-6), "{all:?}");
        assert!(milliseconds("1.20s").is_some_and(|time| (time - 1200.0).abs() < 1e-6));
        assert!(milliseconds("x").is_none());
    }
}
