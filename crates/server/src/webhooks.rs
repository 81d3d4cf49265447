//! Webhooks: what is pushed is told to the receivers of `server.toml`, as CDEvents in CloudEvents.
//!
//! Each hook reads the ledger by itself and keeps how far it is in a file. An entry is passed only
//! when its event was taken, so a crash loses none and may repeat the last one, with the same id.
//! A hook holds one page of entries at most, whatever its receiver does.
//! Specs: CDEvents 0.4.1 ("Artifact"), CloudEvents 1.0 (structured HTTP), Standard Webhooks.

mod event;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use adamant_fetch::Poster;
use adamant_registry::Pattern;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use ring::rand::SecureRandom as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use crate::error::Problem;
use crate::platform::{Config, Platform};
use crate::settings::{EventKind, WebhookSettings, pattern};
use event::Event;
pub(crate) use event::Log;

/// Directory of the positions in the data directory.
const DIRECTORY: &str = "webhooks";
/// Entries read at once.
const PAGE: usize = 64;
/// Longest secret file, in bytes.
const MAX_SECRET: u64 = 4096;
/// How often the ledger is looked at when nobody says that it has grown.
const LOOK: Duration = Duration::from_secs(30);
/// Longest delivery, answer included.
const TIMEOUT: Duration = Duration::from_secs(15);

/// How long a hook is patient.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Before the second attempt; doubles each time.
    first: Duration,
    /// Longest wait between two attempts.
    most: Duration,
    /// Events that are older are given up after a failed attempt.
    age: Duration,
}

const PATIENCE: Patience =
    Patience { first: Duration::from_secs(2), most: Duration::from_hours(1), age: Duration::from_hours(72) };

/// A receiver, and how far it is.
pub(crate) struct Hook {
    name: String,
    poster: Poster,
    secret: hmac::Key,
    events: Vec<EventKind>,
    repositories: Option<Pattern>,
    file: PathBuf,
    patience: Patience,
    position: AtomicU64,
    delivered: AtomicU64,
    failed: AtomicU64,
    skipped: AtomicU64,
    /// Failures since the last success.
    failing: AtomicU32,
    last_error: Mutex<Option<String>>,
}

/// How a hook fares, for metrics.
pub(crate) struct HookCounts {
    pub(crate) name: String,
    pub(crate) position: u64,
    pub(crate) delivered: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

/// The hooks of `server.toml`. One that is new starts at the end of a log of `size` entries.
pub(crate) fn open(config: &Config, size: u64) -> Result<Vec<Arc<Hook>>, Problem> {
    let mut hooks: Vec<Arc<Hook>> = Vec::new();
    let proxies = crate::opening::proxies(config);
    for settings in &config.settings.webhooks {
        if hooks.iter().any(|other| other.name == settings.name) {
            return Err(refuse(&settings.name, "another one has the same name"));
        }
        let poster = Poster::new(&settings.url, &proxies, TIMEOUT).map_err(|error| refuse(&settings.name, error))?;
        hooks.push(Arc::new(Hook::open(settings, poster, &config.data, size, PATIENCE)?));
    }
    Ok(hooks)
}

fn refuse(name: &str, cause: impl std::fmt::Display) -> Problem {
    Problem::usage(format!("the webhook `{name}` in server.toml cannot be used")).cause(cause)
}

impl Hook {
    fn open(
        settings: &WebhookSettings,
        poster: Poster,
        data: &Path,
        size: u64,
        patience: Patience,
    ) -> Result<Self, Problem> {
        let name = &settings.name;
        if !adamant_release::valid_name(name) {
            return Err(refuse(name, "its name is not 1 to 40 lower-case letters, digits and inner hyphens"));
        }
        let secret = secret(&data.join(&settings.secret_file)).map_err(|cause| {
            refuse(name, cause)
                .hint("make one: echo \"whsec_$(openssl rand -base64 32)\" > FILE, and give it to the receiver")
        })?;
        let repositories =
            settings.repositories.as_ref().map(|text| pattern("webhook.repositories", text)).transpose()?;
        let directory = data.join(DIRECTORY);
        std::fs::create_dir_all(&directory)?;
        let file = directory.join(name);
        let position = match std::fs::read_to_string(&file) {
            Ok(text) => text.trim_end().parse::<u64>().map_err(|_| {
                refuse(name, format!("{} holds no position", file.display()))
                    .hint("remove the file: the hook then starts at the present end of the log")
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                save(&file, size)?;
                size
            }
            Err(error) => return Err(error.into()),
        };
        if position > size {
            tracing::warn!(
                webhook = name,
                position,
                size,
                "the log is shorter than it was: the hook goes on at its end"
            );
        }
        Ok(Self {
            name: name.clone(),
            poster,
            secret,
            events: settings.events.clone(),
            repositories,
            file,
            patience,
            position: AtomicU64::new(position.min(size)),
            delivered: AtomicU64::default(),
            failed: AtomicU64::default(),
            skipped: AtomicU64::default(),
            failing: AtomicU32::default(),
            last_error: Mutex::default(),
        })
    }

    /// Delivers until it is dropped.
    async fn follow(&self, log: &Log, mut grown: watch::Receiver<u64>) {
        loop {
            match self.pass(log).await {
                Ok(true) => continue,
                Ok(false) => {}
                Err(problem) => tracing::warn!(webhook = self.name, %problem, "the ledger cannot be read"),
            }
            // What could not be read is tried again without that.
            let _ = tokio::time::timeout(LOOK, grown.changed()).await;
        }
    }

    /// Goes through the next page; whether there may be another one.
    async fn pass(&self, log: &Log) -> Result<bool, Problem> {
        let from = self.position.load(Ordering::Relaxed);
        let entries = log.ledger.entries(from, PAGE).await?;
        let more = entries.len() == PAGE;
        let mut saved = from;
        for entry in entries {
            let next = entry.index + 1;
            let event = log.event(entry).await;
            let wanted = event.filter(|event| self.wants(event));
            if let Some(event) = &wanted {
                self.deliver(event).await;
            }
            self.position.store(next, Ordering::Relaxed);
            if wanted.is_some() {
                self.save(next).await;
                saved = next;
            }
        }
        let reached = self.position.load(Ordering::Relaxed);
        if reached != saved {
            self.save(reached).await;
        }
        Ok(more)
    }

    fn wants(&self, event: &Event) -> bool {
        (self.events.is_empty() || self.events.contains(&event.kind))
            && self.repositories.as_ref().is_none_or(|pattern| pattern.covers(&event.repository))
    }

    /// Tries until the event is taken, or too old.
    async fn deliver(&self, event: &Event) {
        loop {
            let overdue = age(&event.at) > self.patience.age;
            // A receiver that does not answer is asked once for what is too old, not each time.
            if overdue && self.failing.load(Ordering::Relaxed) > 0 {
                return self.skip(event);
            }
            match self.attempt(event).await {
                Ok(()) => {
                    self.failing.store(0, Ordering::Relaxed);
                    self.delivered.fetch_add(1, Ordering::Relaxed);
                    *self.last_error() = None;
                    return;
                }
                Err(cause) => {
                    let failing = self.failing.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(webhook = self.name, event = event.id, cause, failing, "a delivery failed");
                    *self.last_error() = Some(cause);
                    if overdue {
                        return self.skip(event);
                    }
                    tokio::time::sleep(wait(self.patience, failing)).await;
                }
            }
        }
    }

    fn skip(&self, event: &Event) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
        tracing::error!(webhook = self.name, event = event.id, at = event.at, "an event is given up: it is too old");
    }

    async fn attempt(&self, event: &Event) -> Result<(), String> {
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let timestamp = seconds.to_string();
        let signature = sign(&self.secret, &event.id, &timestamp, &event.body);
        let headers = [
            ("content-type", "application/cloudevents+json; charset=utf-8"),
            ("webhook-id", &event.id),
            ("webhook-timestamp", &timestamp),
            ("webhook-signature", &signature),
        ];
        match self.poster.post(&headers, event.body.clone()).await {
            Ok(200..=299) => Ok(()),
            Ok(status) => Err(format!("{} answers HTTP {status}", self.poster.address())),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A position that is not kept is kept with the next one; a crash before repeats events.
    async fn save(&self, position: u64) {
        let file = self.file.clone();
        let saved = tokio::task::spawn_blocking(move || save(&file, position)).await;
        if let Err(error) = saved.map_err(std::io::Error::other).and_then(|saved| saved) {
            tracing::warn!(webhook = self.name, %error, "the position cannot be kept");
        }
    }

    fn last_error(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn counts(&self) -> HookCounts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        HookCounts {
            name: self.name.clone(),
            position: load(&self.position),
            delivered: load(&self.delivered),
            failed: load(&self.failed),
            skipped: load(&self.skipped),
        }
    }
}

/// `v1,` and the MAC over id, time and body (Standard Webhooks, "Signature scheme").
fn sign(secret: &hmac::Key, id: &str, timestamp: &str, body: &[u8]) -> String {
    let mut mac = hmac::Context::with_key(secret);
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    format!("v1,{}", STANDARD.encode(mac.sign()))
}

/// `whsec_` and 24 to 64 bytes in base64.
fn secret(file: &Path) -> Result<hmac::Key, String> {
    use std::io::Read as _;
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    let mut text = String::new();
    std::fs::File::open(file).map_err(failed)?.take(MAX_SECRET).read_to_string(&mut text).map_err(failed)?;
    let bytes = text.trim().strip_prefix("whsec_").and_then(|encoded| STANDARD.decode(encoded).ok());
    let bytes = bytes.filter(|bytes| (24..=64).contains(&bytes.len()));
    let bytes = bytes.ok_or_else(|| format!("{} is not `whsec_` and 24 to 64 bytes in base64", file.display()))?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

fn save(file: &Path, position: u64) -> std::io::Result<()> {
    let directory = file.parent().unwrap_or(file);
    let mut temp = tempfile::NamedTempFile::new_in(directory)?;
    std::io::Write::write_all(&mut temp, format!("{position}\n").as_bytes())?;
    temp.as_file().sync_all()?;
    temp.persist(file).map_err(|error| error.error)?;
    std::fs::File::open(directory)?.sync_all()
}

/// Doubles with each failure; between half of it and all of it, so that hooks do not march in step.
fn wait(patience: Patience, failing: u32) -> Duration {
    let whole = patience.first.saturating_mul(1 << (failing.saturating_sub(1)).min(20)).min(patience.most);
    let mut random = [0_u8];
    // Without a random byte the wait is the shortest one.
    let _ = ring::rand::SystemRandom::new().fill(&mut random);
    whole / 2 + whole.mul_f64(f64::from(random[0]) / 510.0)
}

fn age(at: &str) -> Duration {
    let at = OffsetDateTime::parse(at, &Rfc3339).map_or(SystemTime::UNIX_EPOCH, SystemTime::from);
    SystemTime::now().duration_since(at).unwrap_or_default()
}

/// Delivers what is recorded, each hook by itself, until `stop`.
pub(crate) async fn follow(platform: Arc<Platform>, hook: Arc<Hook>, stop: impl Future<Output = ()>) {
    let log = Log {
        origin: platform.origin.clone(),
        registry: platform.base_url(),
        blobs: Arc::clone(&platform.blobs),
        ledger: Arc::clone(&platform.facts.ledger),
    };
    tokio::select! {
        () = stop => {}
        () = hook.follow(&log, platform.ledger.grown()) => {}
    }
}

impl Platform {
    /// All hooks and how they fare.
    pub(crate) async fn webhooks(&self) -> Result<Vec<adamant_api::Webhook>, Problem> {
        let size = self.facts.ledger.head().await?.size;
        let shown = |hook: &Arc<Hook>| {
            let counts = hook.counts();
            adamant_api::Webhook {
                name: counts.name,
                url: hook.poster.address(),
                position: counts.position,
                lag: size.saturating_sub(counts.position),
                delivered: counts.delivered,
                failed: counts.failed,
                skipped: counts.skipped,
                last_error: hook.last_error().clone(),
            }
        };
        Ok(self.hooks.iter().map(shown).collect())
    }
}
