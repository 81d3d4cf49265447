//! Clients that push to `/v2/` in every way there is, remember what the server said yes to, and hold
//! it to that.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use adamant_api::FsckReport;
use adamant_digest::{Digest, Sha512};
use serde_json::{Value, json};

use crate::client::{Answer, Ask, Connection};
use crate::process::{Background, run};
use crate::template::exe;
use crate::world::{Server, up};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const BYTES: &str = "application/octet-stream";

/// Numbers that differ from run to run; the seed is printed for a repetition.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        let given = std::env::var("ADAMANT_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
        let seed = given.unwrap_or(u64::try_from(now).unwrap());
        eprintln!("ADAMANT_TEST_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// Another sequence that follows from this one.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.0 ^ (self.below(1 << 30) << 20))
    }
}

/// Rounds of a test: `fallback`, or what the environment says for a longer run.
pub(crate) fn rounds(fallback: u64) -> u64 {
    std::env::var("ADAMANT_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(fallback)
}

/// A server of a registry alone, without a token.
pub(crate) fn serve(data: &Path) -> Server {
    Server::start(data, exe(), &["--anonymous-registry"])
}

/// As `serve`, with changes to the command.
pub(crate) fn serve_with(data: &Path, change: impl FnOnce(&mut std::process::Command)) -> Server {
    let mut command = up(data, exe(), &["--anonymous-registry"]);
    change(&mut command);
    Server::of(Background::spawn(&mut command), data, exe())
}

/// Bytes that can be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Content {
    pub(crate) seed: u64,
    pub(crate) length: usize,
}

impl Content {
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut random = Random(self.seed);
        let mut bytes = Vec::with_capacity(self.length + 8);
        while bytes.len() < self.length {
            bytes.extend_from_slice(&random.below(u64::MAX).to_le_bytes());
        }
        bytes.truncate(self.length);
        bytes
    }
}

/// What the server said yes to.
#[derive(Debug, Default, Clone)]
pub(crate) struct Said {
    pub(crate) blobs: BTreeMap<Digest, Content>,
    /// Bytes by repository and digest.
    pub(crate) manifests: BTreeMap<(String, Digest), Vec<u8>>,
    pub(crate) tags: BTreeMap<(String, String), Digest>,
    /// Repository, subject and referrer.
    pub(crate) referrers: BTreeSet<(String, Digest, Digest)>,
    /// Blobs by their second name.
    pub(crate) second: BTreeMap<String, Content>,
}

impl Said {
    pub(crate) fn add(&mut self, mut other: Self) {
        self.blobs.append(&mut other.blobs);
        self.manifests.append(&mut other.manifests);
        self.tags.append(&mut other.tags);
        self.referrers.append(&mut other.referrers);
        self.second.append(&mut other.second);
    }

    /// Asks for all of it.
    #[track_caller]
    pub(crate) fn assert_there_alone(&self, url: &str, when: &str) {
        let mut connection = Connection::open(url).unwrap();
        let mut get = |path: &str| {
            let answer =
                connection.ask(&Ask::new("GET", path), false).unwrap_or_else(|e| panic!("{when}: {path}: {e}"));
            assert_eq!(answer.status, 200, "{when}: {path}: {}", answer.text());
            answer.body
        };
        for (digest, content) in &self.blobs {
            let body = get(&format!("/v2/any/blobs/{digest}"));
            assert!(body == content.bytes(), "{when}: blob {digest} has other bytes");
        }
        for (second, content) in &self.second {
            assert!(get(&format!("/v2/any/blobs/{second}")) == content.bytes(), "{when}: blob {second}");
        }
        for ((repository, digest), bytes) in &self.manifests {
            assert!(get(&format!("/v2/{repository}/manifests/{digest}")) == *bytes, "{when}: {repository}@{digest}");
        }
        for ((repository, tag), digest) in &self.tags {
            let body = get(&format!("/v2/{repository}/manifests/{tag}"));
            assert_eq!(Digest::of(&body), *digest, "{when}: {repository}:{tag}");
        }
    }

    /// Asks for all of it, and for all that is listed.
    #[track_caller]
    pub(crate) fn assert_there(&self, url: &str, when: &str) {
        self.assert_there_alone(url, when);
        let mut connection = Connection::open(url).unwrap();
        let mut get = |path: &str| {
            let answer =
                connection.ask(&Ask::new("GET", path), false).unwrap_or_else(|e| panic!("{when}: {path}: {e}"));
            assert_eq!(answer.status, 200, "{when}: {path}: {}", answer.text());
            answer.body
        };
        let mut list = |path: &str, key: &str| -> Vec<Value> {
            let value: Value = serde_json::from_slice(&get(path)).unwrap();
            value[key].as_array().unwrap_or_else(|| panic!("{when}: {path}: {value}")).clone()
        };
        let mut listed = Vec::new();
        let mut repositories = BTreeSet::new();
        for name in list("/v2/_catalog", "repositories") {
            let name = name.as_str().unwrap().to_owned();
            for tag in list(&format!("/v2/{name}/tags/list"), "tags") {
                listed.push((name.clone(), tag.as_str().unwrap().to_owned()));
            }
            repositories.insert(name);
        }
        for (repository, tag) in self.tags.keys() {
            assert!(repositories.contains(repository), "{when}: {repository} is not listed");
            let found = listed.iter().any(|(r, t)| r == repository && t == tag);
            assert!(found, "{when}: {repository}:{tag} is not listed");
        }
        let subjects: BTreeSet<_> = self.referrers.iter().map(|(r, subject, _)| (r, subject)).collect();
        for (repository, subject) in subjects {
            let found = list(&format!("/v2/{repository}/referrers/{subject}"), "manifests");
            let found: BTreeSet<String> = found.iter().map(|d| d["digest"].as_str().unwrap().to_owned()).collect();
            for (_, _, referrer) in self.referrers.iter().filter(|(r, s, _)| (r, s) == (repository, subject)) {
                assert!(found.contains(&referrer.to_string()), "{when}: referrer {referrer} is not listed");
            }
            listed.extend(found.into_iter().map(|digest| (repository.clone(), digest)));
        }
        // Nothing is listed that cannot be read, with all it names.
        for (repository, reference) in listed {
            let body = get(&format!("/v2/{repository}/manifests/{reference}"));
            let manifest: Value = serde_json::from_slice(&body).unwrap();
            for named in manifest["layers"].as_array().into_iter().flatten().chain([&manifest["config"]]) {
                let digest = named["digest"].as_str().unwrap();
                let length = get(&format!("/v2/{repository}/blobs/{digest}")).len();
                assert_eq!(json!(length), named["size"], "{when}: {repository}:{reference} names {digest}");
            }
        }
    }
}

/// Why a push did not go through.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The connection broke.
    Gone(io::Error),
    /// The server said something else than yes.
    Refused(u16, String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

/// An upload in chunks that was cut off.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    location: String,
    content: Content,
    /// Bytes that the server said it has.
    acknowledged: usize,
}

/// How a blob is pushed.
#[derive(Debug, Clone, Copy)]
enum Way {
    PostAlone,
    PostPut,
    Chunks,
    Stream,
    Sha512,
}

const WAYS: [Way; 5] = [Way::PostAlone, Way::PostPut, Way::Chunks, Way::Stream, Way::Sha512];

/// An image with everything that comes before it and what refers to it; can be pushed again.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    repository: String,
    tag: String,
    layers: Vec<(Content, Way)>,
}

impl Image {
    /// `repository` has at least two parts. Layers are up to `longest` bytes.
    pub(crate) fn new(repository: &str, random: &mut Random, longest: u64) -> Self {
        let seed = random.below(1 << 31);
        let layers = (0..=random.below(2)).map(|n| {
            let length = usize::try_from(1 + random.below(longest)).unwrap();
            (Content { seed: seed ^ (n << 40), length }, WAYS[usize::try_from(random.below(5)).unwrap()])
        });
        Self { repository: repository.to_owned(), layers: layers.collect(), tag: format!("t{seed:x}") }
    }

    /// One that goes every way.
    pub(crate) fn every_way(repository: &str, random: &mut Random) -> Self {
        let seed = random.below(1 << 31);
        let layers = WAYS.iter().zip(0..).map(|(way, n)| (Content { seed: seed ^ (n << 40), length: 5000 }, *way));
        Self { repository: repository.to_owned(), layers: layers.collect(), tag: format!("t{seed:x}") }
    }

    fn manifests(&self) -> (Vec<u8>, Vec<u8>) {
        let config = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2});
        let layers = self.layers.iter().map(|(content, _)| {
            json!({"mediaType": LAYER, "digest": Digest::of(&content.bytes()).to_string(), "size": content.length})
        });
        let image = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers.collect::<Vec<_>>(),
            "annotations": {"tag": self.tag}});
        let image = image.to_string().into_bytes();
        let subject = json!({"mediaType": MANIFEST, "digest": Digest::of(&image).to_string(), "size": image.len()});
        let signature = json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x.signature",
            "config": config, "layers": [config], "subject": subject});
        (image, signature.to_string().into_bytes())
    }
}

/// One client with a connection of its own.
pub(crate) struct Client {
    url: String,
    connection: Option<Connection>,
    pub(crate) said: Said,
    /// The upload in chunks that is under way.
    pub(crate) open: Option<Open>,
    /// Set when the power goes: what arrives later was never said.
    pub(crate) cut: Arc<AtomicBool>,
}

impl Client {
    pub(crate) fn new(url: &str) -> Self {
        Self { url: url.to_owned(), connection: None, said: Said::default(), open: None, cut: Arc::default() }
    }

    fn ask(&mut self, ask: &Ask<'_>, expected: &[u16]) -> Result<Answer, Trouble> {
        let mut connection = match self.connection.take() {
            Some(open) => open,
            None => Connection::open(&self.url)?,
        };
        let answer = connection.ask(ask, false)?;
        if self.cut.load(Ordering::SeqCst) {
            return Err(Trouble::Gone(io::Error::other("the power went")));
        }
        if answer.header("connection") != "close" {
            self.connection = Some(connection);
        }
        if expected.contains(&answer.status) {
            return Ok(answer);
        }
        // What the server did not read is still on its way.
        self.connection = None;
        Err(Trouble::Refused(answer.status, format!("{} {}: {}", ask.method, ask.path, answer.text())))
    }

    fn begin(&mut self, repository: &str) -> Result<String, Trouble> {
        let answer = self.ask(&Ask::new("POST", &format!("/v2/{repository}/blobs/uploads/")), &[202])?;
        Ok(answer.header("location").to_owned())
    }

    fn push_blob(&mut self, repository: &str, content: Content, way: Way) -> Result<(), Trouble> {
        let bytes = content.bytes();
        let digest = Digest::of(&bytes);
        match way {
            Way::PostAlone => {
                let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
                self.ask(&Ask::new("POST", &path).body(BYTES, &bytes), &[201])?;
            }
            Way::PostPut => {
                let path = format!("{}?digest={digest}", self.begin(repository)?);
                self.ask(&Ask::new("PUT", &path).body(BYTES, &bytes), &[201])?;
            }
            Way::Sha512 => {
                let second = Sha512::of(&bytes).to_string();
                let path = format!("/v2/{repository}/blobs/uploads/?digest={second}");
                self.ask(&Ask::new("POST", &path).body(BYTES, &bytes), &[201])?;
                self.said.second.insert(second, content);
            }
            Way::Stream => {
                let location = self.begin(repository)?;
                self.ask(&Ask::new("PATCH", &location).body(BYTES, &bytes), &[202])?;
                self.ask(&Ask::new("PUT", &format!("{location}?digest={digest}")), &[201])?;
            }
            Way::Chunks => {
                let location = self.begin(repository)?;
                self.open = Some(Open { location, content, acknowledged: 0 });
                self.go_on()?;
            }
        }
        self.said.blobs.insert(digest, content);
        Ok(())
    }

    /// Goes on with an upload in chunks from where the client believes it to be.
    fn go_on(&mut self) -> Result<(), Trouble> {
        let Some(open) = self.open.clone() else { return Ok(()) };
        let bytes = open.content.bytes();
        let step = bytes.len().div_ceil(3);
        let mut at = open.acknowledged;
        while at < bytes.len() {
            let end = (at + step).min(bytes.len());
            let ask = Ask::new("PATCH", &open.location).header("Content-Range", format!("{at}-{}", end - 1));
            self.ask(&ask.body(BYTES, &bytes[at..end]), &[202])?;
            at = end;
            self.open = Some(Open { acknowledged: at, ..open.clone() });
        }
        let digest = Digest::of(&bytes);
        self.ask(&Ask::new("PUT", &format!("{}?digest={digest}", open.location)), &[201])?;
        self.said.blobs.insert(digest, open.content);
        self.open = None;
        Ok(())
    }

    /// Asks the server how far an upload came that was cut off, and completes it from there.
    pub(crate) fn resume(&mut self, when: &str) -> Result<bool, Trouble> {
        let Some(open) = self.open.clone() else { return Ok(false) };
        let status = match self.ask(&Ask::new("GET", &open.location), &[204]) {
            // The last request may have finished it before the answer was lost.
            Err(Trouble::Refused(404, _)) if open.acknowledged == open.content.length => {
                self.open = None;
                return Ok(false);
            }
            other => other?,
        };
        let last: usize = status.header("range").trim_start_matches("0-").parse().unwrap();
        let offset = if last == 0 { 0 } else { last + 1 };
        assert!(offset >= open.acknowledged, "{when}: {} of {} bytes are left", offset, open.acknowledged);
        assert!(offset <= open.content.length, "{when}: more than was sent");
        self.open = Some(Open { acknowledged: offset, ..open });
        self.go_on()?;
        Ok(true)
    }

    /// Forgets the upload in chunks that is under way.
    pub(crate) fn cancel(&mut self) -> Result<(), Trouble> {
        if let Some(open) = self.open.take() {
            self.ask(&Ask::new("DELETE", &open.location), &[204, 404])?;
        }
        Ok(())
    }

    /// Pushes an image, mounts a layer of it, binds two more names, signs it and pushes it again.
    pub(crate) fn push(&mut self, image: &Image) -> Result<(), Trouble> {
        let repository = &image.repository;
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", Digest::of(b"{}"));
        self.ask(&Ask::new("POST", &path).body(BYTES, b"{}"), &[201])?;
        for (content, way) in &image.layers {
            self.push_blob(repository, *content, *way)?;
        }
        let mounted = Digest::of(&image.layers[0].0.bytes());
        let path = format!("/v2/{repository}/mounted/blobs/uploads/?mount={mounted}&from={repository}");
        self.ask(&Ask::new("POST", &path), &[201])?;

        let (bytes, signature) = image.manifests();
        let digest = Digest::of(&bytes);
        let tag = &image.tag;
        for _ in 0..2 {
            let path = format!("/v2/{repository}/manifests/{tag}");
            self.ask(&Ask::new("PUT", &path).body(MANIFEST, &bytes), &[201])?;
            self.said.manifests.insert((repository.clone(), digest), bytes.clone());
            self.said.tags.insert((repository.clone(), tag.clone()), digest);
        }
        let path = format!("/v2/{repository}/manifests/{digest}?tag={tag}-a&tag={tag}-b");
        self.ask(&Ask::new("PUT", &path).body(MANIFEST, &bytes), &[201])?;
        for more in ["a", "b"] {
            self.said.tags.insert((repository.clone(), format!("{tag}-{more}")), digest);
        }
        let signed = Digest::of(&signature);
        let path = format!("/v2/{repository}/manifests/{signed}");
        self.ask(&Ask::new("PUT", &path).body(MANIFEST, &signature), &[201])?;
        self.said.referrers.insert((repository.clone(), digest, signed));
        self.said.manifests.insert((repository.clone(), signed), signature);
        Ok(())
    }
}

/// Looks at everything with `adamant fsck`.
#[track_caller]
pub(crate) fn assert_sound(data: &Path, when: &str) {
    let mut command = std::process::Command::new(exe());
    let ended = run(command.args(["fsck", "--json"]).env("ADAMANT_DATA", data).env("ADAMANT_LOG", "error"));
    let report: FsckReport = serde_json::from_str(&ended.out).unwrap_or_else(|e| panic!("{when}: {e}: {}", ended.err));
    let findings: Vec<_> = report.findings.iter().map(|f| format!("{}: {}", f.object, f.problem)).collect();
    assert!(findings.is_empty(), "{when}: {findings:#?}");
}

/// The files below a directory.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() { found.extend(files(&entry.path())) } else { found.push(entry.path()) }
    }
    found
}
