//! Paths and wire types of the HTTP interface: what client, page and server agree on.
//!
//! No implementation lives here. A type here is a promise: members are added, never changed.

use adamant_digest::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Prefix of every path of the interface.
pub const BASE: &str = "/api/v1";

/// An answer other than success. HTTP status says the class, `exit` the exit code for a CLI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What could not be done and why, with the object's name.
    pub message: String,
    /// Deeper causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// How it went.
    pub class: Class,
}

/// How a request went wrong, for status and exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The answer is no: denied, unverified, unhealthy, drift.
    No,
    /// The request itself is wrong: unknown name, bad value.
    Usage,
    /// Not signed in, or not allowed to.
    Denied,
    /// A name is bound to something else.
    Conflict,
    /// Not now: try again later.
    Unavailable,
    /// A bug or damage on our side.
    Internal,
}

impl Class {
    /// Exit code of a command that ends this way.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::No | Self::Denied | Self::Conflict => 1,
            Self::Usage => 2,
            Self::Unavailable => 3,
            Self::Internal => 70,
        }
    }

    /// HTTP status of an answer of this class.
    pub const fn status(self) -> u16 {
        match self {
            Self::No => 422,
            Self::Usage => 400,
            Self::Denied => 403,
            Self::Conflict => 409,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }
}

impl ApiError {
    /// An error without causes.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self { message: message.into(), causes: Vec::new(), hint: None, class }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// One line of a streamed answer (`application/x-ndjson`): progress, then one result or error.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line<T> {
    /// Something to show while waiting.
    Progress(String),
    /// The last line of a success.
    Done(T),
    /// The last line of a failure.
    Failed(ApiError),
}

/// `POST /projects`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewProject {
    /// Name: lower-case letters, digits and `-`, 1 to 40 characters.
    pub name: String,
}

/// Answer to `POST /projects` and an item of `GET /projects`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// URL of its git remote.
    pub remote: String,
    /// Names of its environments in order.
    pub environments: Vec<String>,
}

/// `POST /projects/{p}/lock`: streamed, ends with [`Locked`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LockRequest {
    /// Text of `adamant.toml`.
    pub recipe: String,
    /// Text of the `adamant.lock` that is there.
    #[serde(default)]
    pub lock: Option<String>,
    /// Native lock files by path.
    #[serde(default)]
    pub native: std::collections::BTreeMap<String, String>,
    /// Files that decide templates (`web/Makefile`), by path.
    #[serde(default)]
    pub files: Vec<String>,
    /// Resolve everything anew instead of keeping what is pinned.
    #[serde(default)]
    pub update: bool,
}

/// The lock, every byte of it kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Locked {
    /// Text of `adamant.lock`.
    pub lock: String,
    /// Inputs that were kept before.
    pub kept: usize,
    /// Inputs fetched now.
    pub new: usize,
    /// Bytes fetched now.
    pub bytes: u64,
    /// What changed against the lock that was there, a line each.
    pub changes: Vec<String>,
}

/// `GET /projects/{p}`: what is where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The project.
    pub project: String,
    /// Its environments in order.
    pub environments: Vec<Environment>,
    /// The newest releases, newest first.
    pub releases: Vec<ReleaseSummary>,
    /// Size of the log.
    pub log_size: u64,
}

/// One environment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Environment {
    /// Its name.
    pub name: String,
    /// Where it answers.
    pub url: Option<String>,
    /// The last deployment, if there was one.
    pub current: Option<DeploymentSummary>,
    /// True after a rollback, until somebody promotes: nothing is deployed here by itself.
    pub held: bool,
    /// Earlier deployments, newest first.
    #[serde(default)]
    pub history: Vec<DeploymentSummary>,
}

/// One deployment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeploymentSummary {
    /// Number in the environment's chain, from 1.
    pub sequence: u64,
    /// Index of its entry in the log.
    pub index: u64,
    /// `project/number`.
    pub release: String,
    /// Digest of the rollout document.
    pub rollout: Digest,
    /// `deploy`, `promote` or `rollback`.
    pub action: String,
    /// `healthy`, `failed`, `drift` or `pending`.
    pub state: String,
    /// What the host said.
    pub detail: String,
    /// Who asked.
    pub by: String,
    /// Recorded at, RFC 3339.
    pub at: String,
}

/// One release.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReleaseSummary {
    /// `project/number`.
    pub name: String,
    /// Its number.
    pub number: u64,
    /// Git commit id.
    pub commit: String,
    /// First line of the commit's message.
    pub subject: String,
    /// `building`, `built`, `failed` or `incomplete`.
    pub state: String,
    /// `fixed`, `rebuilt` or `diverged`; empty while nothing is known.
    pub grade: String,
    /// Digest of the release document once it is bound.
    pub digest: Option<Digest>,
    /// Artifacts.
    pub artifacts: Vec<ArtifactSummary>,
    /// Environments that run it now.
    pub running_in: Vec<String>,
    /// Commit recorded at, RFC 3339.
    pub at: String,
}

/// One artifact of a release.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ArtifactSummary {
    /// Name in the recipe.
    pub name: String,
    /// `linux/amd64`.
    pub platform: String,
    /// Manifest digest.
    pub digest: Digest,
    /// Where to pull it: `host:port/project/name@sha256:…`.
    pub reference: String,
    /// `rebuilt`, `diverged` or `fixed`.
    pub grade: String,
}

/// `POST /projects/{p}/promote`: streamed, ends with [`Deployed`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Promote {
    /// Release number.
    pub release: u64,
    /// Where to.
    pub environment: String,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
    /// Wait for a rebuild that is under way instead of answering no.
    #[serde(default)]
    pub wait: bool,
}

/// `POST /projects/{p}/rollback`: streamed, ends with [`Deployed`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rollback {
    /// Where.
    pub environment: String,
    /// Release number to return to; by default the last healthy one before the current.
    #[serde(default)]
    pub to: Option<u64>,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
}

/// A deployment that ended healthy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Deployed {
    /// `project/number`.
    pub release: String,
    /// Environment.
    pub environment: String,
    /// Number in the environment's chain.
    pub sequence: u64,
    /// Index of the deployment's entry.
    pub index: u64,
    /// Digest of the rollout document.
    pub rollout: Digest,
    /// Where it answers.
    pub url: Option<String>,
    /// What the host saw.
    pub detail: String,
    /// True if it ran already and nothing was done.
    pub unchanged: bool,
}

/// `GET /projects/{p}/diff?from=&to=`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Diff {
    /// Earlier release.
    pub from: String,
    /// Later release.
    pub to: String,
    /// Commits in `to` that are not in `from`, newest first: id and subject.
    pub commits: Vec<(String, String)>,
    /// Inputs that changed, a line each.
    pub inputs: Vec<String>,
    /// Artifacts that changed: name, old digest, new digest.
    pub artifacts: Vec<(String, Option<Digest>, Option<Digest>)>,
}

/// `GET`/`POST /projects/{p}/config/{environment}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// Digest of the revision.
    pub revision: Digest,
    /// Environment variables given to instances.
    pub env: std::collections::BTreeMap<String, String>,
}

/// Changes to a configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConfigChange {
    /// Variables to set.
    #[serde(default)]
    pub set: std::collections::BTreeMap<String, String>,
    /// Variables to remove.
    #[serde(default)]
    pub unset: Vec<String>,
}

/// One line of the ledger, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FactSummary {
    /// Index in the log.
    pub index: u64,
    /// Short name of the predicate: `binding`, `deployment`, …
    pub kind: String,
    /// What it says, in one line.
    pub text: String,
    /// Recorded at, RFC 3339.
    pub at: String,
    /// The statement itself, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<Value>,
}

/// A move of a pointer: `GET /pointer?name=repository:tag`, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointerMove {
    /// From 1, without gaps.
    pub sequence: u64,
    /// Index of the entry.
    pub index: u64,
    /// Where it leads from then on.
    pub digest: Digest,
    /// Where it led before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Digest>,
    /// Who moved it.
    pub by: String,
    /// Recorded at, RFC 3339.
    pub at: String,
}

/// Something `fsck` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about: `blob sha256:…`, `row bindings(tag, shop/web:1)`, `tree sha256:…`.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What `fsck` did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FsckReport {
    /// Entries recomputed.
    pub entries: u64,
    /// Blobs hashed.
    pub blobs: u64,
    /// Trees hashed.
    pub trees: u64,
    /// Commits looked up.
    pub commits: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What is worth knowing and not wrong: bytes that were moved aside.
    #[serde(default)]
    pub notes: Vec<Finding>,
}

/// `POST /tokens`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewToken {
    /// Name: lower-case letters, digits and `-`, 1 to 40 characters. It is given once.
    pub name: String,
    /// What it allows, each `REPOSITORIES:ACTIONS`.
    pub scopes: Vec<String>,
    /// Whose it is; one that asks for or approves erasures must say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<String>,
    /// Seconds until it ends; `None`: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<u64>,
}

/// Answer to `POST /tokens`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenMade {
    /// Its name.
    pub name: String,
    /// The secret, which is shown this once.
    pub secret: String,
    /// What it allows.
    pub scopes: Vec<String>,
    /// When it ends, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

/// An item of `GET /tokens`, and answer to `POST /tokens/<name>/revoke`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenSummary {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub scopes: Vec<String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<String>,
    /// When it ends, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Who made it.
    pub by: String,
    /// When, RFC 3339.
    pub at: String,
    /// Who revoked it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_by: Option<String>,
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
}

/// `POST /gc`: streamed, [`GcReport`] at the end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Gc {
    /// Only count.
    pub dry_run: bool,
}

/// What a collection found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReport {
    /// Nothing was removed.
    pub dry_run: bool,
    /// The grace period, in seconds.
    pub grace_s: u64,
    /// Blobs in the store.
    pub blobs: u64,
    /// Blobs that went, or would go.
    pub removed: u64,
    /// Their length, in bytes.
    pub bytes: u64,
    /// Blobs that were to go and that somebody used in the meantime.
    pub used_meanwhile: u64,
}

/// `POST /erasures`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Erase {
    /// What it is about.
    #[serde(flatten)]
    pub what: Erasable,
    /// What to do.
    pub action: EraseAction,
}

/// Names of bytes that can be erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Erasable {
    /// A blob of the store.
    Digest(Digest),
    /// A file of a commit.
    Git {
        /// The project in whose repository it is.
        project: String,
        /// Id of the git blob.
        object: String,
    },
}

/// See [`Erase`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EraseAction {
    /// Ask for it.
    Request {
        /// Why, in words.
        reason: String,
    },
    /// Approve what somebody else asked for: the bytes go.
    Approve,
    /// Take a request back.
    Withdraw,
}

/// How far an erasure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErasureState {
    /// Waits for a second person.
    Requested,
    /// Taken back.
    Withdrawn,
    /// Recorded and done.
    Erased,
}

/// An item of `GET /erasures`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// What it is about.
    pub digest: Digest,
    /// The same bytes as a file in git; `None` in what was recorded without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_blob: Option<String>,
    /// How far it is.
    pub state: ErasureState,
    /// Why; `None` if the words were erased.
    pub reason: Option<String>,
    /// Digest of the document with the words.
    pub reason_digest: Digest,
    /// Who asked, or took it back.
    pub by: String,
    /// Who approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
    /// Recorded at, RFC 3339.
    pub at: String,
    /// Index of the fact.
    pub entry: u64,
}

/// Answer to `POST /erasures`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Erasing {
    /// Where it stands now.
    pub erasure: Erasure,
    /// Copies that are still in use, with what to do about them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
}

/// Requests on the control socket, one JSON line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "op")]
pub enum Control {
    /// A short-lived token for the process at the other end.
    Token,
    /// A new one-time login link.
    Login,
}

/// Answers on the control socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ControlAnswer {
    /// Base URL of the server.
    pub url: String,
    /// The token, or the login link.
    pub secret: String,
    /// Seconds until it ends.
    pub expires_s: u64,
}

/// An item of `GET /upstreams`: another registry that is read through this one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Upstream {
    /// First part of its repositories here.
    pub name: String,
    /// Its address.
    pub url: String,
    /// Repositories there that may be pulled.
    pub repositories: Vec<String>,
    /// It is asked for what is damaged here.
    pub heal: bool,
    /// Tags that are bound here.
    pub tags: Vec<UpstreamTag>,
    /// There are more tags than these.
    pub more: bool,
}

/// A tag of an [`Upstream`] that is bound here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpstreamTag {
    /// `NAME/REPOSITORY:TAG`.
    pub name: String,
    /// What it is bound to.
    pub digest: Digest,
    /// Who bound it.
    pub by: String,
    /// When, RFC 3339.
    pub at: String,
    /// What it led to there when it was last looked at, if that is something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Digest>,
}

/// `POST /upstreams/check`: streamed, ends with [`UpstreamChecked`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct UpstreamCheck {
    /// `NAME`, `NAME/REPOSITORY` or `NAME/REPOSITORY:TAG`; all tags if absent.
    #[serde(default)]
    pub what: Option<String>,
}

/// What a look at upstreams found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct UpstreamChecked {
    /// Tags compared.
    pub checked: u64,
    /// Those that lead elsewhere now; here they stay what they are.
    pub moved: Vec<UpstreamMoved>,
    /// Those that could not be compared.
    pub failed: Vec<UpstreamFailed>,
}

/// See [`UpstreamChecked`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpstreamMoved {
    /// `NAME/REPOSITORY:TAG`.
    pub name: String,
    /// What it is bound to here.
    pub bound: Digest,
    /// What it leads to there.
    pub now: Digest,
}

/// See [`UpstreamChecked`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpstreamFailed {
    /// `NAME/REPOSITORY:TAG`.
    pub name: String,
    /// Why.
    pub cause: String,
}

/// `POST /upstreams/update`: streamed, ends with [`UpstreamUpdated`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpstreamUpdate {
    /// `NAME/REPOSITORY:TAG`.
    pub name: String,
}

/// What an update made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpstreamUpdated {
    /// `NAME/REPOSITORY:TAG`, which stays what it is.
    pub name: String,
    /// What that is.
    pub bound: Digest,
    /// The name of what the tag leads to there now; `name` itself if nothing moved.
    pub updated: String,
    /// What that is bound to.
    pub digest: Digest,
    /// False if it was there before.
    pub new: bool,
}

/// An item of `GET /webhooks`: a receiver that is told what is pushed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Webhook {
    /// Its name.
    pub name: String,
    /// Where deliveries go, without the query.
    pub url: String,
    /// The entry of the ledger that is looked at next.
    pub position: u64,
    /// Entries from there to the end of the ledger.
    pub lag: u64,
    /// Events taken since the server started.
    pub delivered: u64,
    /// Attempts that failed since then.
    pub failed: u64,
    /// Events given up since then.
    pub skipped: u64,
    /// Why the last attempt failed, unless one has succeeded since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
