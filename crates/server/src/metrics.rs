//! Counters in the Prometheus text format. Labels are a closed set or names of `server.toml`: a
//! request cannot add one. `docs/operations.md` lists every family.

use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adamant_registry::UpstreamCounts;
use axum::http::{Method, StatusCode};
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::platform::Platform;
use crate::webhooks::HookCounts;

/// Parts of the interface that requests are counted by.
const PARTS: [&str; 6] = ["api", "git", "v2", "log", "page", "other"];
/// Methods that requests of the registry are counted by.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "other"];
/// Classes of status they are counted by.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// Upper bounds of durations: microseconds, and seconds as they are shown.
const BOUNDS: [(u64, &str); 12] = [
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (5_000_000, "5"),
    (30_000_000, "30"),
];

/// Counts since the process started.
pub(crate) struct Metrics {
    started: SystemTime,
    requests: [AtomicU64; PARTS.len()],
    registry: [OfMethod; METHODS.len()],
    conflicts: AtomicU64,
    received: AtomicU64,
    sent: Arc<AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            started: SystemTime::now(),
            requests: Default::default(),
            registry: Default::default(),
            conflicts: AtomicU64::default(),
            received: AtomicU64::default(),
            sent: Arc::default(),
        }
    }
}

/// What is counted of one method.
#[derive(Default)]
struct OfMethod {
    classes: [AtomicU64; CLASSES.len()],
    /// One for each bound, and one for those above the last.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// What is looked up when somebody asks.
struct Now {
    entries: Option<u64>,
    tasks: usize,
    uploads: usize,
    upstreams: Vec<UpstreamCounts>,
    hooks: Vec<HookCounts>,
    /// Collections, blobs and bytes they removed.
    collected: [u64; 3],
    damaged: u64,
    damages: u64,
    scrubbed: u64,
    process: Process,
}

/// What the system says of this process.
struct Process {
    resident: Option<u64>,
    descriptors: Option<usize>,
}

impl Process {
    fn read() -> Self {
        let pages = std::fs::read_to_string("/proc/self/statm")
            .ok()
            .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
        Self {
            resident: pages.map(|pages| pages.saturating_mul(rustix::param::page_size() as u64)),
            // The directory that is being read is one of them.
            descriptors: std::fs::read_dir("/proc/self/fd").ok().map(|found| found.count().saturating_sub(1)),
        }
    }
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

    /// Counts an answer of the registry; its body is still to be sent.
    pub(crate) fn registry(&self, method: &Method, status: StatusCode, took: Duration, received: u64) {
        let known = METHODS.iter().position(|name| *name == method.as_str()).unwrap_or(METHODS.len() - 1);
        let of = &self.registry[known];
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        of.classes[class].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|(bound, _)| micros <= *bound).unwrap_or(BOUNDS.len());
        of.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        of.micros.fetch_add(micros, Ordering::Relaxed);
        self.received.fetch_add(received, Ordering::Relaxed);
        if status == StatusCode::CONFLICT {
            self.conflicts.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts what of a body is taken.
    pub(crate) fn counted<B>(&self, body: B) -> Counted<B> {
        Counted { body, sent: Arc::clone(&self.sent) }
    }

    pub(crate) async fn render(&self, platform: &Platform) -> String {
        let now = Now {
            entries: platform.facts.ledger.head().await.ok().map(|head| head.size),
            tasks: platform.tasks.len(),
            uploads: platform.registry.open_uploads(),
            upstreams: platform.registry.upstream_counts(),
            hooks: platform.hooks.iter().map(|hook| hook.counts()).collect(),
            collected: [&platform.collected.runs, &platform.collected.blobs, &platform.collected.bytes]
                .map(|count| count.load(Ordering::Relaxed)),
            damaged: platform.store.damaged().await.len() as u64,
            damages: platform.store.damages(),
            scrubbed: platform.scrubbed.load(Ordering::Relaxed),
            process: Process::read(),
        };
        self.text(&now)
    }

    fn text(&self, now: &Now) -> String {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut text = Text::default();
        text.family("adamant_build_info", "gauge", "Version of the binary.");
        text.sample("", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        text.family("adamant_requests_total", "counter", "Requests received.");
        for (part, count) in PARTS.iter().zip(&self.requests) {
            text.sample("", &[("part", part)], load(count));
        }
        text.family("adamant_registry_requests_total", "counter", "Requests of the registry answered.");
        for (method, of) in METHODS.iter().zip(&self.registry) {
            for (class, count) in CLASSES.iter().zip(&of.classes).skip(1) {
                text.sample("", &[("method", method), ("status", class)], load(count));
            }
        }
        let help = "Time until the head of the registry's answer.";
        text.family("adamant_registry_request_duration_seconds", "histogram", help);
        for (method, of) in METHODS.iter().zip(&self.registry) {
            let mut count = 0;
            let above = of.buckets.last().map(load).unwrap_or_default();
            for ((_, bound), bucket) in BOUNDS.iter().zip(&of.buckets) {
                count += load(bucket);
                text.sample("_bucket", &[("method", method), ("le", bound)], count);
            }
            count += above;
            text.sample("_bucket", &[("method", method), ("le", "+Inf")], count);
            let micros = load(&of.micros);
            text.sample(
                "_sum",
                &[("method", method)],
                format_args!("{}.{:06}", micros / 1_000_000, micros % 1_000_000),
            );
            text.sample("_count", &[("method", method)], count);
        }
        text.family("adamant_registry_received_bytes_total", "counter", "Bytes of bodies that the registry read.");
        text.sample("", &[], load(&self.received));
        text.family("adamant_registry_sent_bytes_total", "counter", "Bytes of bodies that the registry sent.");
        text.sample("", &[], load(&self.sent));
        text.family("adamant_registry_conflicts_total", "counter", "Pushes refused with 409.");
        text.sample("", &[], load(&self.conflicts));
        text.family("adamant_registry_uploads", "gauge", "Uploads that are not finished.");
        text.sample("", &[], now.uploads);
        text.family("adamant_log_entries", "counter", "Entries in the ledger.");
        if let Some(entries) = now.entries {
            text.sample("", &[], entries);
        }
        text.family("adamant_tasks", "gauge", "Pieces of work under way.");
        text.sample("", &[], now.tasks);
        text.family("adamant_upstream_pulls_total", "counter", "Manifests asked of upstreams.");
        for of in &now.upstreams {
            text.sample("", &[("upstream", &of.name), ("result", "pulled")], of.pulled);
            text.sample("", &[("upstream", &of.name), ("result", "failed")], of.failed);
        }
        let help = "Bound tags that led elsewhere when last looked at.";
        text.family("adamant_upstream_moved_tags", "gauge", help);
        for of in &now.upstreams {
            text.sample("", &[("upstream", &of.name)], of.moved);
        }
        hooks(now, &mut text);
        blobs(now, &mut text);
        self.process(now, &mut text);
        text.0
    }

    fn process(&self, now: &Now, text: &mut Text) {
        text.family("process_start_time_seconds", "gauge", "When the server started, in seconds since 1970.");
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        text.sample("", &[], started.as_secs());
        text.family("process_resident_memory_bytes", "gauge", "Resident memory.");
        if let Some(resident) = now.process.resident {
            text.sample("", &[], resident);
        }
        text.family("process_open_fds", "gauge", "Open file descriptors.");
        if let Some(descriptors) = now.process.descriptors {
            text.sample("", &[], descriptors);
        }
    }
}

fn hooks(now: &Now, text: &mut Text) {
    text.family("adamant_webhook_deliveries_total", "counter", "Deliveries tried, and events given up.");
    for of in &now.hooks {
        for (result, count) in [("delivered", of.delivered), ("failed", of.failed), ("skipped", of.skipped)] {
            text.sample("", &[("webhook", &of.name), ("result", result)], count);
        }
    }
    text.family("adamant_webhook_lag_entries", "gauge", "Entries that were not looked at yet.");
    if let Some(entries) = now.entries {
        for of in &now.hooks {
            text.sample("", &[("webhook", &of.name)], entries.saturating_sub(of.position));
        }
    }
}

fn blobs(now: &Now, text: &mut Text) {
    let [runs, removed, bytes] = now.collected;
    for (name, kind, help, value) in [
        ("adamant_collected_runs_total", "counter", "Collections of what nothing names.", runs),
        ("adamant_collected_blobs_total", "counter", "Blobs they removed.", removed),
        ("adamant_collected_bytes_total", "counter", "Bytes of the blobs they removed.", bytes),
        ("adamant_blobs_damaged", "gauge", "Blobs that are damaged now.", now.damaged),
        ("adamant_blobs_damaged_total", "counter", "Blobs found damaged.", now.damages),
        ("adamant_scrub_bytes_total", "counter", "Stored bytes read to find damage.", now.scrubbed),
    ] {
        text.family(name, kind, help);
        text.sample("", &[], value);
    }
}

/// The exposition, as it is written; samples belong to the family before them.
#[derive(Default)]
struct Text(String, &'static str);

impl Text {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.1 = name;
        // Writing to a string does not fail; so below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.0, "{}{suffix}", self.1);
        for (index, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{value}\"", if index == 0 { '{' } else { ',' });
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }
}

/// A body whose bytes are counted as they are taken.
pub(crate) struct Counted<B> {
    body: B,
    sent: Arc<AtomicU64>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    type Series = BTreeMap<(String, BTreeMap<String, String>), f64>;

    /// Labels of `name="value",…`, escapes resolved.
    fn labels(text: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (name, after) = rest.split_once("=\"").unwrap();
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{name}");
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().unwrap() {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        other => panic!("escape {other}"),
                    }),
                    (_, c) => value.push(c),
                }
            };
            assert!(found.insert(name.to_owned(), value).is_none(), "{text}");
            rest = &after[end + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        found
    }

    /// Reads an exposition, strictly: families with their types, and every series.
    fn parse(text: &str) -> (BTreeMap<String, String>, Series) {
        let (mut families, mut series) = (BTreeMap::new(), Series::new());
        let (mut helped, mut current) = (None, String::new());
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                helped = Some(help.split_once(' ').unwrap().0.to_owned());
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(helped.take().as_deref(), Some(name), "HELP stands before TYPE");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
                name.clone_into(&mut current);
            } else {
                let (key, value) = line.rsplit_once(' ').unwrap();
                let (name, inside) = match key.split_once('{') {
                    Some((name, inside)) => (name, inside.strip_suffix('}').unwrap()),
                    None => (key, ""),
                };
                let suffix = name.strip_prefix(&current).unwrap_or_else(|| panic!("{name} below {current}"));
                let histogram = families[&current] == "histogram";
                assert_eq!(histogram, ["_bucket", "_sum", "_count"].contains(&suffix), "{line}");
                assert!(histogram || suffix.is_empty(), "{line}");
                let series_is_new = series.insert((name.to_owned(), labels(inside)), value.parse().unwrap()).is_none();
                assert!(series_is_new, "{line} twice");
            }
        }
        (families, series)
    }

    fn exposed() -> (Metrics, Now) {
        let metrics = Metrics::default();
        metrics.request("/v2/a/manifests/1");
        let answers = [
            ("GET", 200, 400, 0),
            ("GET", 404, 700, 0),
            ("GET", 200, 40_000_000, 0),
            ("PUT", 409, 3_000, 120),
            ("BREW", 405, 1, 0),
        ];
        for (method, status, micros, received) in answers {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            metrics.registry(&method, StatusCode::from_u16(status).unwrap(), Duration::from_micros(micros), received);
        }
        let upstreams = vec![UpstreamCounts { name: "a\\\"b\nc".to_owned(), pulled: 3, failed: 1, moved: 2 }];
        let process = Process::read();
        let hooks = vec![HookCounts { name: "ci".to_owned(), position: 7, delivered: 5, failed: 2, skipped: 1 }];
        (
            metrics,
            Now {
                entries: Some(9),
                tasks: 1,
                uploads: 4,
                upstreams,
                hooks,
                process,
                collected: [1, 2, 3],
                damaged: 4,
                damages: 5,
                scrubbed: 6,
            },
        )
    }

    #[test]
    fn what_is_exposed_can_be_parsed_and_says_what_happened() {
        let (metrics, now) = exposed();
        let (families, series) = parse(&metrics.text(&now));
        let get = |name: &str, pairs: &[(&str, &str)]| {
            let labels = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            *series.get(&(name.to_owned(), labels)).unwrap_or_else(|| panic!("{name} {pairs:?}"))
        };
        let whole = |name: &str| get(name, &[]).to_string();
        let requests = |method, status| {
            get("adamant_registry_requests_total", &[("method", method), ("status", status)]).to_string()
        };
        assert_eq!(requests("GET", "2xx"), "2");
        assert_eq!(requests("GET", "4xx"), "1");
        assert_eq!(requests("other", "4xx"), "1");
        assert_eq!(whole("adamant_registry_conflicts_total"), "1");
        assert_eq!(whole("adamant_registry_received_bytes_total"), "120");
        assert_eq!(whole("adamant_registry_uploads"), "4");
        assert_eq!(whole("adamant_log_entries"), "9");
        assert_eq!(get("adamant_webhook_lag_entries", &[("webhook", "ci")]).to_string(), "2");
        assert_eq!(get("adamant_upstream_moved_tags", &[("upstream", "a\\\"b\nc")]).to_string(), "2");
        assert!(get("process_resident_memory_bytes", &[]) > 1e6 && get("process_open_fds", &[]) > 2.0);
        let duration = "adamant_registry_request_duration_seconds";
        assert_eq!(get(&format!("{duration}_sum"), &[("method", "GET")]).to_string(), "40.0011");
        for method in METHODS {
            let mut before = 0.0;
            for bound in BOUNDS.iter().map(|(_, bound)| *bound).chain(["+Inf"]) {
                let count = get(&format!("{duration}_bucket"), &[("method", method), ("le", bound)]);
                assert!(count >= before, "{method} {bound}");
                before = count;
            }
            assert_eq!(before.to_string(), get(&format!("{duration}_count"), &[("method", method)]).to_string());
        }
        let bucket = |le| get(&format!("{duration}_bucket"), &[("method", "GET"), ("le", le)]).to_string();
        assert_eq!([bucket("0.0005"), bucket("0.001"), bucket("30"), bucket("+Inf")], ["1", "2", "2", "3"]);
        for (name, kind) in &families {
            let counted = name.ends_with("_total") || name == "adamant_log_entries";
            assert_eq!(counted, kind == "counter", "{name}");
        }
    }

    #[test]
    fn the_reference_lists_exactly_what_is_exposed() {
        let (metrics, now) = exposed();
        let (families, _) = parse(&metrics.text(&now));
        let page = include_str!("../../../docs/operations.md");
        let section = page.split("\n## Metrics\n").nth(1).unwrap().split("\n## ").next().unwrap();
        let listed: Vec<&str> =
            section.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next()).collect();
        assert_eq!(listed.len(), listed.iter().collect::<BTreeSet<_>>().len());
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), families.keys().map(String::as_str).collect());
    }

    #[test]
    fn bytes_are_counted_as_they_are_taken() {
        use futures_util::StreamExt as _;
        let metrics = Metrics::default();
        let body = axum::body::Body::new(metrics.counted(axum::body::Body::from("12345")));
        assert_eq!(metrics.sent.load(Ordering::Relaxed), 0);
        let taken = futures_util::future::FutureExt::now_or_never(body.into_data_stream().next());
        assert_eq!(taken.unwrap().unwrap().unwrap().len(), 5);
        assert_eq!(metrics.sent.load(Ordering::Relaxed), 5);
    }
}
