//! Counters in the Prometheus text format. Labels are a closed set: a request cannot add one.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::platform::Platform;

/// Parts of the interface that requests are counted by.
const PARTS: [&str; 6] = ["api", "git", "v2", "log", "page", "other"];

/// Counts since the process started.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: [AtomicU64; PARTS.len()],
}

impl Metrics {
    pub(crate) fn request(&self, path: &str) {
        let part = match path.split('/').nth(1).unwrap_or_default() {
            "api" => 0,
            "git" => 1,
            "v2" => 2,
            "log" => 3,
            "" | "p" | "ledger" | "artifact" | "events" | "assets" | "login" => 4,
            _ => 5,
        };
        self.requests[part].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) async fn render(&self, platform: &Platform) -> String {
        let mut text =
            String::from("# HELP adamant_requests_total Requests received.\n# TYPE adamant_requests_total counter\n");
        for (part, count) in PARTS.iter().zip(&self.requests) {
            // Writing to a string does not fail.
            let _ = writeln!(text, "adamant_requests_total{{part=\"{part}\"}} {}", count.load(Ordering::Relaxed));
        }
        if let Ok(head) = platform.facts.ledger.head().await {
            let _ = writeln!(
                text,
                "# HELP adamant_log_entries Entries in the ledger.\n# TYPE adamant_log_entries counter\nadamant_log_entries {}",
                head.size
            );
        }
        let upstreams = platform.registry.upstream_counts();
        if !upstreams.is_empty() {
            text.push_str("# HELP adamant_upstream_pulls_total Manifests asked of upstreams.\n# TYPE adamant_upstream_pulls_total counter\n");
            for of in &upstreams {
                for (result, count) in [("pulled", of.pulled), ("failed", of.failed)] {
                    let name = &of.name;
                    let _ = writeln!(
                        text,
                        "adamant_upstream_pulls_total{{upstream=\"{name}\",result=\"{result}\"}} {count}"
                    );
                }
            }
            text.push_str("# HELP adamant_upstream_moved_tags Bound tags that led elsewhere when last looked at.\n# TYPE adamant_upstream_moved_tags gauge\n");
            for of in &upstreams {
                let _ = writeln!(text, "adamant_upstream_moved_tags{{upstream=\"{}\"}} {}", of.name, of.moved);
            }
        }
        let _ = writeln!(
            text,
            "# HELP adamant_tasks Pieces of work under way.\n# TYPE adamant_tasks gauge\nadamant_tasks {}",
            platform.tasks.len()
        );
        let collected = &platform.collected;
        for (name, help, count) in [
            ("runs", "Collections of what nothing names.", &collected.runs),
            ("blobs", "Blobs they removed.", &collected.blobs),
            ("bytes", "Bytes of the blobs they removed.", &collected.bytes),
        ] {
            let _ = writeln!(
                text,
                "# HELP adamant_collected_{name}_total {help}\n# TYPE adamant_collected_{name}_total counter\nadamant_collected_{name}_total {}",
                count.load(Ordering::Relaxed)
            );
        }
        let (damaged, damages) =
            platform.files.as_ref().map(|files| (files.damaged(), files.damages())).unwrap_or_default();
        for (name, kind, help, value) in [
            ("adamant_blobs_damaged", "gauge", "Blobs that are damaged now.", damaged.len() as u64),
            ("adamant_blobs_damaged_total", "counter", "Blobs found damaged.", damages),
            (
                "adamant_scrub_bytes_total",
                "counter",
                "Stored bytes read to find damage.",
                platform.scrubbed.load(Ordering::Relaxed),
            ),
        ] {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        text
    }
}
