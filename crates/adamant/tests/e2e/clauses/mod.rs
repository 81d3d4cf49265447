//! The OCI distribution specification 1.1, clause by clause, over raw HTTP. A test's name begins with
//! the endpoint in the specification's table; its comment is the clause. What the specification
//! leaves open and this registry decides is in tests that say so (`ours_`).
//!
//! They run against one server of this binary, or against any registry on this machine:
//!
//! ```console
//! ADAMANT_CLAUSES_URL=http://127.0.0.1:5000 cargo test -p adamant --test e2e clauses::
//! ```
//!
//! with `ADAMANT_CLAUSES_TOKEN` for one that asks for a bearer token. Every test has repositories of
//! its own, so they can run against the same registry again.

mod content;
mod discovery;
mod errors;
mod management;
mod manifests;
mod pull;
mod quirks;
mod uploads;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use adamant_digest::Digest;
use serde_json::{Value, json};

use crate::client::{Answer, Ask};
use crate::process::run;
use crate::template::exe;
use crate::world::{Server, fresh};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const OCTETS: &str = "application/octet-stream";

/// A server that lives as long as a test uses it, with a token for it.
struct Shared {
    server: Server,
    token: String,
    dir: PathBuf,
}

impl Shared {
    fn start() -> Self {
        let dir = fresh("clauses");
        let server = Server::start(&dir.join("data"), exe(), &[]);
        let mut command = std::process::Command::new(exe());
        let token = run(command.args(["token", "--data"]).arg(&server.data)).ok().trim().to_owned();
        Self { server, token, dir }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.server.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

static SHARED: Mutex<Weak<Shared>> = Mutex::new(Weak::new());

fn shared() -> Arc<Shared> {
    let mut held = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    held.upgrade().unwrap_or_else(|| {
        let server = Arc::new(Shared::start());
        *held = Arc::downgrade(&server);
        server
    })
}

/// A registry, and repositories of one test in it.
struct Target {
    url: String,
    token: Option<String>,
    prefix: String,
    /// `None` if the registry is somebody else's.
    ours: Option<Arc<Shared>>,
}

impl Target {
    fn new(test: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let prefix = format!("clauses/{now}/{}", test.replace('_', "-"));
        if let Ok(url) = std::env::var("ADAMANT_CLAUSES_URL") {
            return Self { url, token: std::env::var("ADAMANT_CLAUSES_TOKEN").ok(), prefix, ours: None };
        }
        let ours = shared();
        Self { url: ours.server.url.clone(), token: Some(ours.token.clone()), prefix, ours: Some(ours) }
    }

    fn is_ours(&self) -> bool {
        self.ours.is_some()
    }

    /// A repository of this test.
    fn repo(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    fn send(&self, mut ask: Ask<'_>) -> Answer {
        if let Some(token) = &self.token {
            ask = ask.token(token);
        }
        ask.send(&self.url).unwrap()
    }

    fn ask(&self, method: &str, path: &str) -> Answer {
        self.send(Ask::new(method, path))
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path)
    }

    fn head(&self, path: &str) -> Answer {
        self.ask("HEAD", path)
    }

    fn send_bytes(&self, method: &str, path: &str, bytes: &[u8]) -> Answer {
        self.send(Ask::new(method, path).body(OCTETS, bytes))
    }

    /// end-4a: an upload; gives where it goes on.
    fn start(&self, repo: &str) -> String {
        let answer = self.ask("POST", &format!("/v2/{repo}/blobs/uploads/")).expect(202);
        location(&answer)
    }

    /// end-5 with a place.
    fn chunk(&self, location: &str, start: usize, bytes: &[u8]) -> Answer {
        let range = format!("{start}-{}", start + bytes.len() - 1);
        self.send(Ask::new("PATCH", location).header("Content-Range", range).body(OCTETS, bytes))
    }

    /// Pushes a blob by end-4a and end-6; gives its digest.
    fn push(&self, repo: &str, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        let path = finish(&self.start(repo), &digest);
        self.send_bytes("PUT", &path, bytes).expect(201);
        digest
    }

    /// Pushes a blob; gives its descriptor.
    fn describe(&self, repo: &str, kind: &str, bytes: &[u8]) -> Value {
        self.push(repo, bytes);
        descriptor(kind, bytes)
    }

    /// Pushes the blobs of an image that nobody else has; gives its manifest.
    fn image(&self, repo: &str, content: &str) -> Vec<u8> {
        let config = format!(r#"{{"architecture":"amd64","os":"linux","author":"{content}"}}"#);
        let config = self.describe(repo, CONFIG, config.as_bytes());
        let layer = self.describe(repo, LAYER, content.as_bytes());
        print(&json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}))
    }

    fn put(&self, repo: &str, reference: &str, bytes: &[u8]) -> Answer {
        let value: Value = serde_json::from_slice(bytes).unwrap();
        let kind = value["mediaType"].as_str().unwrap_or(MANIFEST);
        let path = format!("/v2/{repo}/manifests/{reference}");
        self.send(Ask::new("PUT", &path).body(kind, bytes))
    }

    fn manifest(&self, repo: &str, reference: &str) -> Answer {
        let accept = format!("{MANIFEST}, {INDEX}");
        let path = format!("/v2/{repo}/manifests/{reference}");
        self.send(Ask::new("GET", &path).header("Accept", accept))
    }

    /// Whether a blob is there, with these bytes.
    #[track_caller]
    fn holds(&self, path: &str, bytes: &[u8]) {
        let answer = self.get(path).expect(200);
        assert_eq!(answer.body, bytes, "{path}");
        assert_eq!(answer.header("content-length"), bytes.len().to_string(), "{path}");
    }
}

fn sha256(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": sha256(bytes), "size": bytes.len()})
}

fn print(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

/// The path of a `Location`, which may be absolute or relative (RFC 9110, 10.2.2).
#[track_caller]
fn location(answer: &Answer) -> String {
    let text = answer.header("location");
    assert!(!text.is_empty(), "no Location: {answer:?}");
    match text.split_once("://") {
        Some((_, rest)) => rest[rest.find('/').unwrap()..].to_owned(),
        None => text.to_owned(),
    }
}

/// The address that ends an upload: what the location holds already stays.
fn finish(location: &str, digest: &str) -> String {
    let sign = if location.contains('?') { '&' } else { '?' };
    format!("{location}{sign}digest={digest}")
}

/// "Error Codes": a body in JSON has this form; gives the first code.
#[track_caller]
fn code(answer: &Answer) -> String {
    let body = answer.json();
    let first = &body["errors"][0];
    let code = first["code"].as_str().unwrap_or_else(|| panic!("no code: {body}"));
    assert!(code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{code}");
    code.to_owned()
}

#[track_caller]
fn fails(answer: &Answer, status: u16, expected: &str) {
    assert_eq!((answer.status, code(answer).as_str()), (status, expected), "{}", answer.text());
}
